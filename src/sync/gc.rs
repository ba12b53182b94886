//! The engine's side of `lictor gc`: it shows what the guard holds, and releases it.

use tokio::time::Instant;

use super::apply;
use super::dirty::{Cause, Due};
use super::engine::Engine;
use crate::model::gc::{Answer, Exchange, HeldEntry, MOST_NAMED};
use crate::model::key::Key;
use crate::model::marks::Standing;

impl Engine {
    /// Answers a request, if this process is the one that writes.
    pub(super) fn asked(&mut self, exchange: &Exchange, index: u64) {
        let (Some(epoch), Some(claimant)) = (self.fence.index(), &self.claimant) else {
            return;
        };
        if !exchange.is_open() {
            return;
        }
        let holder = claimant.epoch.holder.clone();
        let keys: Vec<Key> = self.rules.guard.waiting().cloned().collect();
        let held = keys.iter().take(MOST_NAMED);
        let held = held.filter_map(|key| self.held_entry(key)).collect();
        if exchange.request.release {
            tracing::warn!(count = keys.len(), "released by lictor gc");
            let due = Due {
                cause: Cause::Read,
                since: Instant::now(),
            };
            for key in self.rules.guard.release() {
                self.dirty.touch(key, due);
            }
        }
        let answer = Answer {
            id: exchange.request.id.clone(),
            holder,
            held,
            total: keys.len(),
            released: exchange.request.release,
        };
        let exchange = Exchange {
            request: exchange.request.clone(),
            answer: Some(answer),
        };
        let fence = (self.fence_key.clone(), epoch);
        let cluster = self.index.cluster().clone();
        let job = apply::answer(self.consul.clone(), fence, cluster, exchange, index);
        self.jobs.spawn(job);
    }

    fn held_entry(&self, key: &Key) -> Option<HeldEntry> {
        let Key::Instance(instance) = key else {
            return None;
        };
        let there = self.mirror.instance(instance)?;
        let Standing::Ours(owner) = self.mirror.standing(instance, there) else {
            return None;
        };
        let why = self.rules.guard.admits(key).err()?;
        Some(HeldEntry {
            kind: key.kind().to_owned(),
            key: key.to_string(),
            owner: owner.to_string(),
            why: why.to_string(),
        })
    }
}
