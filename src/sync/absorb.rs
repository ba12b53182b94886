//! What the engine makes of the outcomes of its reads and writes.

use std::collections::BTreeSet;

use rand::Rng as _;
use tokio::time::Instant;

use super::apply::{Done, Nodes, ReadError};
use super::claim::{Before, ClaimError, Claimed};
use super::dirty::{Cause, Due};
use super::engine::Engine;
use super::outage::Outage;
use crate::consul::ErrorClass;
use crate::model::key::{Key, Place};
use crate::model::names::NodeName;
use crate::observed::content::NodeContent;
use crate::observed::mirror::{Completeness, Ticket};

impl Engine {
    pub(super) fn absorb(&mut self, done: Done) {
        match done {
            Done::Wrote {
                id,
                epoch,
                steps,
                outcome,
                at,
            } => {
                self.absorb_write(epoch, steps, outcome, at);
                self.own.finish(id);
            }
            Done::WroteEntry(written) => self.absorb_entry(*written),
            Done::ReadTable(read) => self.absorb_table(read),
            Done::Acted(acted) => self.absorb_act(*acted),
            Done::ReadSessions(read) => self.absorb_sessions(*read),
            Done::ReadCritical(read) => self.absorb_critical_read(read),
            Done::WroteCritical(written) => self.absorb_critical_write(written),
            Done::Claimed(claimed) => self.absorb_claim(claimed),
            Done::ReadNames(read) => self.absorb_names_read(read),
            Done::WroteNames(written) => self.absorb_names_write(written),
            Done::LookedAtName(looked) => self.absorb_name(looked),
            Done::Answered(answered) => self.absorb_answer(answered),
            Done::Listed { ticket, nodes } => self.absorb_list(ticket, nodes),
            Done::Read {
                ticket,
                name,
                content,
            } => self.absorb_read(ticket, name, content),
        }
    }

    // === the epoch ===

    fn absorb_claim(&mut self, claimed: Result<Claimed, ClaimError>) {
        let now = Instant::now();
        match claimed {
            Ok(Claimed {
                index,
                before,
                retaken,
            }) => {
                self.no_epoch = None;
                self.answered();
                if !self.fence.claimed(index) {
                    tracing::info!(
                        index,
                        "the epoch was taken too late: this process does not lead any more"
                    );
                    // The next epoch follows this one, which knows nothing of what was before.
                    if before == Before::Lost {
                        self.lost_names(self.lead.followed);
                        self.start_over();
                    }
                    return;
                }
                if retaken {
                    self.retook(now);
                }
                if before != Before::Kept {
                    tracing::info!(index, "epoch taken");
                }
                self.name_moved();
                let followed = self.lead.followed;
                self.lead.caught_up();
                match before {
                    Before::Lost => {
                        self.lost_names(followed);
                        self.start_over();
                    }
                    Before::Taken => {
                        self.followed_names();
                        self.look_again();
                    }
                    // Nobody has written: what is known of names holds.
                    Before::Lapsed => self.look_again(),
                    Before::None | Before::Kept if followed => {
                        self.followed_names();
                        self.look_again();
                    }
                    Before::None | Before::Kept => {}
                }
            }
            Err(ClaimError::Contested(holder)) => self.epoch_contested(holder, now),
            Err(error @ ClaimError::NotLeading) => {
                tracing::warn!("the epoch is not taken: {error}");
                self.fence.claim_failed(now);
            }
            Err(ClaimError::Refused(why)) => {
                self.no_epoch = None;
                if self.fence.refusal() != Some(&why.to_string()) {
                    tracing::error!("{why}");
                }
                self.fence.refused(&why);
            }
            Err(error @ ClaimError::Unreadable { .. }) => {
                self.unreadable_epoch(error.to_string());
                self.fence.claim_failed(now);
            }
            Err(error) => {
                self.fence.claim_failed(now);
                self.failed(&format!("cannot take the epoch: {error}"));
            }
        }
    }

    pub(super) fn unreadable_epoch(&mut self, why: String) {
        if self.no_epoch.as_ref() != Some(&why) {
            tracing::error!("nothing is written: {why}");
        }
        self.no_epoch = Some(why);
    }

    /// Someone else had the epoch meanwhile and may have written with it, or this process did not lead:
    /// everything is read before it is planned again. What is known of entries' pasts still holds.
    fn look_again(&mut self) {
        tracing::info!("another may have written meanwhile: what Consul holds is read again");
        let nodes: Vec<NodeName> = self.mirror.node_names().cloned().collect();
        for node in nodes {
            self.doubt(Place::Node(node));
        }
        for (table, state) in &mut self.tables {
            state.own.forget();
            self.mirror.doubt_table(*table);
        }
        self.own.forget();
        self.told_of_nodes.clear();
        self.doubt_sessions(Instant::now());
        // Nodes may have come, or gone.
        self.sweeper.signal(Instant::now());
    }

    /// Consul lost the epoch, and with it maybe everything: what it holds is read anew before anything
    /// is written.
    fn start_over(&mut self) {
        tracing::warn!("the epoch was lost: what Consul holds is read anew");
        self.mirror.start_over();
        // What it keeps of how long something was critical may be from before, too.
        let now = Instant::now();
        self.rules.criticals.interrupt(None, |_| true, now);
        self.doubt_sessions(now);
        self.loading = None;
        self.unread.clear();
        self.own.forget();
        for state in self.tables.values_mut() {
            state.own.forget();
        }
        self.drifted.clear();
        // What waited is planned with everything else once Consul is known.
        self.waiting.clear();
        self.node_troubles.clear();
        self.told_of_nodes.clear();
    }

    // === reads ===

    fn absorb_list(&mut self, ticket: Ticket, nodes: Result<Nodes, ReadError>) {
        self.reads -= 1;
        self.listing = false;
        if self.mirror.is_void(&ticket) {
            return;
        }
        let nodes = match nodes {
            Ok(nodes) => nodes,
            Err(error) => {
                self.mirror.abandon_read(ticket);
                self.read_failed(&error);
                if self.loading.is_some() {
                    self.sweeper.signal(Instant::now());
                }
                return;
            }
        };
        self.readable();
        let (nodes, datacenter) = nodes;
        if datacenter.is_some() {
            self.report.datacenter = datacenter;
        }
        let changed = self.mirror.finish_list(ticket, &nodes, self.dirty.busy());
        self.changed(changed);
        self.forget_what_went();
        if self.loading.is_none() {
            self.loading = Some(nodes.clone());
            self.unread.extend(nodes);
            self.loaded();
        } else {
            let known = |node: &NodeName| self.mirror.node(node).is_some();
            let unknown: Vec<_> = nodes.into_iter().filter(|node| !known(node)).collect();
            self.unread.extend(unknown);
        }
    }

    fn absorb_read(
        &mut self,
        ticket: Ticket,
        name: NodeName,
        content: Result<NodeContent, ReadError>,
    ) {
        self.reads -= 1;
        if self.mirror.is_void(&ticket) {
            return;
        }
        match content {
            Ok(content) => {
                self.readable();
                self.garbled.remove(&name);
                let datacenter = content.node.as_ref().map(|node| &*node.datacenter);
                if let Some(datacenter) = datacenter.filter(|name| !name.is_empty())
                    && self.report.datacenter.is_none()
                {
                    self.report.datacenter = Some(datacenter.to_owned());
                }
                let changed = self
                    .mirror
                    .finish_read(ticket, &name, &content, self.dirty.busy());
                if let Some(loading) = &mut self.loading {
                    loading.remove(&name);
                }
                self.changed(changed);
                self.loaded();
                self.go_on(&Place::Node(name));
            }
            Err(error) => {
                self.mirror.abandon_read(ticket);
                self.unread.insert(name.clone());
                if error.is_garbled() {
                    self.garbled(name, &error);
                } else {
                    self.read_failed(&error);
                }
            }
        }
    }

    /// Whether the first snapshot is complete, and if so, everything is planned.
    fn loaded(&mut self) {
        let complete = self.loading.as_ref().is_some_and(BTreeSet::is_empty);
        if complete && self.mirror.completeness() == Completeness::Unknown {
            self.mirror.complete();
            tracing::info!(
                nodes = self.mirror.owned_nodes(),
                instances = self.mirror.owned_instances(),
                "Consul is known"
            );
            self.touch_all(Cause::Read, Instant::now());
        }
    }

    /// Keys that a read found other than they were known.
    pub(super) fn changed(&mut self, keys: Vec<Key>) {
        if self.mirror.completeness() == Completeness::Unknown || keys.is_empty() {
            return;
        }
        let due = Due {
            cause: Cause::Drift,
            since: Instant::now(),
        };
        for key in keys {
            match &key {
                Key::Node(node) => {
                    self.look_again_on(node);
                    self.try_again_on(node);
                }
                Key::Instance(instance) => {
                    self.occupied(&instance.node, due.since);
                    self.follow_beside(instance, due.since);
                }
                Key::Defaults(_) | Key::Intentions(_) | Key::Source(_) | Key::Query(_) => {}
            }
            self.dirty.touch(key, due);
        }
    }

    /// What is claimed on a node and not there may have been kept away by the node's holder.
    fn try_again_on(&mut self, node: &NodeName) {
        let due = Due {
            cause: Cause::Read,
            since: Instant::now(),
        };
        for key in self.index.claimed_on(node) {
            if self.mirror.instance(key).is_none() {
                self.dirty.touch(Key::Instance(key.clone()), due);
            }
        }
    }

    /// The health of a node counts for its instances: how they stand is worked out again.
    pub(super) fn look_again_on(&mut self, node: &NodeName) {
        let due = Due {
            cause: Cause::Written,
            since: Instant::now(),
        };
        let keys: Vec<_> = self
            .mirror
            .on_node(node)
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.dirty.touch(Key::Instance(key), due);
        }
    }

    /// Consul answers. What it answers to a read says nothing about writes, unless nothing was
    /// answered before.
    pub(super) fn answered(&mut self) {
        if self.outage.reason().is_some() {
            if self.outage.over() {
                tracing::info!("Consul answers again");
            }
            self.unwritable.over();
        }
    }

    /// A write was answered, even if with a no.
    pub(super) fn writable(&mut self) {
        self.answered();
        if self.unwritable.over() {
            tracing::info!("Consul takes writes again");
        }
    }

    /// A read was answered with authority.
    fn readable(&mut self) {
        self.answered();
        if self.unreadable.over() {
            tracing::info!("Consul can be read again");
        }
    }

    /// What is on a node cannot be understood: that is no outage, and holds no other node up.
    fn garbled(&mut self, name: NodeName, error: &ReadError) {
        let reason = format!("cannot read the Consul node {name}: {error}");
        let outage = self.garbled.entry(name).or_default();
        note(outage, reason);
    }

    fn read_failed(&mut self, error: &ReadError) {
        if let ReadError::Failed(error) = error
            && error.class() == ErrorClass::SlowDown
        {
            self.pace.slow_down(Instant::now());
        }
        let reason = format!("cannot read Consul: {error}");
        match error {
            ReadError::Failed(_) => self.failed(&reason),
            ReadError::NotAuthoritative(_) => note(&mut self.unreadable, reason),
        }
    }

    /// A write failed, and not for what it was to write.
    pub(super) fn write_failed_for(&mut self, reason: &str) {
        note(&mut self.unwritable, reason.to_owned());
    }

    pub(super) fn failed(&mut self, reason: &str) {
        note(&mut self.outage, reason.to_owned());
    }
}

/// Consul failed once more in this way, which is told where it is news.
fn note(outage: &mut Outage, reason: String) {
    let (now, chance) = (Instant::now(), rand::rng().random::<f64>());
    if outage.is_news(&reason, now) {
        tracing::warn!("{reason}");
    }
    outage.failed(reason, now, chance);
}
