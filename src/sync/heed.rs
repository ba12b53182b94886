//! What the engine makes of events of Kubernetes and signals of Consul.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::dirty::{Cause, Due};
use super::engine::Engine;
use super::feed::feed;
use super::signals::Signal;
use crate::api::object::Object;
use crate::desired::index::{Holding, Touched};
use crate::desired::watches::Watch;
use crate::k8s::{BrokenKind, Change, KubeEvent, ObjectStatus, WatchEvent};
use crate::metrics::KindLabel;
use crate::model::key::Key;
use crate::model::kind::Kind;
use crate::model::owner::OwnerKind;
use crate::model::text::Text;
use crate::observed::mirror::Completeness;
use crate::plan;

/// How often all keys are planned, to find what incremental passes missed.
const AUDIT_INTERVAL: Duration = Duration::from_mins(10);

impl Engine {
    pub(super) fn take(&mut self, event: KubeEvent) {
        let at = event.at;
        let mut touched = Touched::default();
        let complete = self.complete_kinds();
        let news = self.news_of_nodes(&event.change);
        match &event.change {
            Change::Pod(event) => self.watched(Kind::Pod, event),
            Change::Node(event) => {
                self.count_nodes(event, at);
                self.watched(Kind::Node, event);
            }
            Change::Registration(event) => {
                let kind = OwnerKind::ServiceRegistration;
                self.shown(kind, event, ObjectStatus::Registration);
                self.watched(Kind::Registration, event);
            }
            Change::Intention(event) => {
                self.shown(OwnerKind::Intention, event, ObjectStatus::Intention);
                self.watched(Kind::Intention, event);
            }
            Change::PreparedQuery(event) => {
                let kind = OwnerKind::PreparedQuery;
                self.shown(kind, event, ObjectStatus::PreparedQuery);
                self.watched(Kind::PreparedQuery, event);
            }
        }
        feed(&mut self.index, event.change, &mut touched);
        self.count_missing(news, at);
        self.touch(touched, at);
        let now_complete = self.complete_kinds();
        if now_complete == complete {
            return;
        }
        let again = now_complete.difference(&complete).copied();
        self.known_again(&again.collect(), at);
        if now_complete.len() == Kind::ALL.len() {
            self.complete_again(at);
        }
    }

    fn complete_kinds(&self) -> BTreeSet<Kind> {
        let is_complete = |kind: &Kind| *self.index.watches.state(*kind) == Watch::Complete;
        Kind::ALL.into_iter().filter(is_complete).collect()
    }

    /// These kinds are known completely, for the first time or once more: what could not be removed for
    /// want of that is looked at, however long another kind is missing.
    fn known_again(&mut self, kinds: &BTreeSet<Kind>, now: Instant) {
        let due = Due {
            cause: Cause::Read,
            since: now,
        };
        let is_concerned = |key: &&Key| key.claimed_by().iter().any(|kind| kinds.contains(kind));
        let held: Vec<Key> = self.held.iter().filter(is_concerned).cloned().collect();
        for key in held {
            self.held.remove(&key);
            self.dirty.touch(key, due);
        }
    }

    /// What an event shows of the status of objects.
    fn shown<S, T: Clone>(
        &mut self,
        kind: OwnerKind,
        event: &WatchEvent<Object<S, T>>,
        status: fn(T) -> ObjectStatus,
    ) {
        let objects = match event {
            WatchEvent::Applied(object) => std::slice::from_ref(object),
            WatchEvent::Page(page) => page,
            _ => &[],
        };
        for object in objects {
            self.report.observed(kind, object, status);
        }
    }

    /// What an event of a watch means beside its objects.
    fn watched<T>(&mut self, kind: Kind, event: &WatchEvent<T>) {
        match event {
            WatchEvent::Listing => self.rounds.listing(kind),
            WatchEvent::Listed { .. } => {
                self.missing.remove(&kind);
                if self.rounds.listed(kind) {
                    self.rules.guard.listed(kind);
                }
            }
            WatchEvent::Broken(broken) => {
                self.rounds.broken(kind);
                if broken.kind == BrokenKind::Missing {
                    self.missing.insert(kind);
                }
                let label = KindLabel {
                    kind: kind.resource(),
                };
                let restarts = &self.report.metrics.watch_restarts;
                restarts.get_or_create(&label).inc();
            }
            _ => {}
        }
    }

    /// All kinds are known completely, for the first time or once more.
    fn complete_again(&mut self, now: Instant) {
        // Which nodes are gone could not be told.
        let due = Due {
            cause: Cause::Read,
            since: now,
        };
        let nodes: Vec<Key> = self.mirror.node_names().cloned().map(Key::Node).collect();
        for key in nodes {
            self.dirty.touch(key, due);
        }
        if self.mirror.completeness() == Completeness::Complete {
            // Before the first time, nothing was planned that could have been missed.
            let cause = if self.known_once {
                Cause::Audit
            } else {
                Cause::Read
            };
            self.touch_all(cause, now);
        }
    }

    pub(super) fn touch(&mut self, touched: Touched, now: Instant) {
        let due = Due {
            cause: Cause::Kubernetes,
            since: now,
        };
        let Touched {
            keys,
            holdings,
            let_go,
            problems,
            registrations,
            addresses,
            entry_holdings,
            entries_let_go,
        } = touched;
        let mut touched = keys;
        for owner in &entries_let_go {
            for key in self.mirror.entries_held_by(owner) {
                self.index.withdraw_entry(key);
            }
        }
        for owner in &entry_holdings {
            touched.extend(self.mirror.entries_held_by(owner));
        }
        for let_go in &let_go {
            let Holding { owner, node } = &let_go.holding;
            for key in self.mirror.held_by(owner, node.as_ref()) {
                if let Key::Instance(key) = &key
                    && let Some(held) = plan::held_under(key, &self.mirror)
                {
                    self.index.withdraw(key, &held, let_go);
                }
            }
        }
        for Holding { owner, node } in holdings {
            touched.extend(self.mirror.held_by(&owner, node.as_ref()));
        }
        touched.extend(self.held_at(&addresses));
        for key in touched {
            match &key {
                Key::Instance(_) => self.report.expect(&key, &self.index),
                // Its address may be known by now.
                Key::Node(_) => self.go_on(&key.place()),
                _ => self.expect_entry(&key),
            }
            self.dirty.touch(key, due);
        }
        for owner in registrations {
            if owner.kind == OwnerKind::Intention {
                self.rules.refusals.forget(&owner);
            }
            self.report.touch(owner);
        }
        self.report.tell_problems(problems, &self.index);
    }

    /// What may not be removed and has one of these addresses, which are others' now.
    fn held_at(&self, addresses: &[Text]) -> Vec<Key> {
        if addresses.is_empty() {
            return Vec::new();
        }
        let is_at = |key: &&Key| match key {
            Key::Instance(instance) => self
                .mirror
                .instance(instance)
                .is_some_and(|there| addresses.contains(&there.service.address)),
            _ => false,
        };
        self.held.iter().filter(is_at).cloned().collect()
    }

    /// Plans every key that is claimed or held.
    pub(super) fn touch_all(&mut self, cause: Cause, now: Instant) {
        let due = Due { cause, since: now };
        for key in self.index.claimed_keys().chain(self.mirror.keys()) {
            self.dirty.touch(key, due);
        }
        for key in self.index.claimed_entries().chain(self.mirror.entry_keys()) {
            self.dirty.touch(key, due);
        }
        self.audit_at = Some(now + AUDIT_INTERVAL);
    }

    pub(super) fn audit(&mut self, now: Instant) {
        if self.audit_at.is_some_and(|at| at <= now) {
            self.touch_all(Cause::Audit, now);
        }
    }

    // === signals of Consul ===

    pub(super) fn heed(&mut self, signal: &Signal, now: Instant) {
        match signal {
            Signal::Changed {
                topic,
                index,
                first,
                interrupted,
            } => {
                self.answered();
                let raft = index.map_or(0, std::num::NonZeroU64::get);
                if let Some(table) = topic.table() {
                    if *interrupted {
                        self.unwritable.over();
                    }
                    self.table_changed(table, raft, (*first, *interrupted), now);
                } else if *first {
                    self.unwatched.remove(topic);
                } else if *interrupted {
                    // It was away, or is another one: what it did to writes before is over.
                    self.unwritable.over();
                    self.own.forget();
                    self.sweeper.signal(now);
                } else {
                    self.own.signalled(raft);
                    // Were it wrongly taken for our own, a sweep finds what it told of.
                    self.sweeper.wrote(now);
                }
            }
            Signal::Asked {
                exchange,
                index,
                fresh,
            } => self.asked(exchange, *index, *fresh, now),
            Signal::Epoch { index } => self.fence.seen(*index),
            Signal::Failed { topic, error } if self.unwatched.contains(topic) => {
                self.failed(&format!("cannot watch Consul: {error}"));
            }
            Signal::Failed { topic, error } => {
                tracing::debug!(?topic, "cannot watch Consul: {error}");
            }
        }
    }
}
