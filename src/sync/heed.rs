//! What the engine makes of events of Kubernetes and signals of Consul.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::apply::ReadError;
use super::dirty::{Cause, Due};
use super::engine::Engine;
use super::feed::feed;
use super::signals::Signal;
use crate::api::object::Object;
use crate::desired::claim::Absence;
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

/// How long what was seen losing its claim stays where an object of another kind may claim it by now.
/// Each kind is watched on its own, and the API server is some milliseconds behind with one or the other.
const HAND_OVER: Duration = Duration::from_millis(250);
/// How often all keys are planned, to find what incremental passes missed.
const AUDIT_INTERVAL: Duration = Duration::from_mins(10);

impl Engine {
    pub(super) fn take(&mut self, event: KubeEvent) {
        let at = event.at;
        if let Change::Lease(news) = event.change {
            if let Some(namespace) = &event.scope {
                self.hear_leases(namespace, news, at);
            }
            return;
        }
        self.report.gates.hear(&event.change);
        let mut touched = Touched::default();
        let news = self.news_of_nodes(&event.change);
        let was_strange = !self.strange.is_empty();
        let kind = match &event.change {
            Change::Pod(event) => {
                self.watched(Kind::Pod, event);
                Kind::Pod
            }
            Change::Node(event) => {
                self.count_nodes(event, at);
                self.nodes_turn(event, at);
                self.watched(Kind::Node, event);
                Kind::Node
            }
            Change::Registration(event) => {
                let kind = OwnerKind::ServiceRegistration;
                self.shown(kind, event, ObjectStatus::Registration);
                self.watched(Kind::Registration, event);
                Kind::Registration
            }
            Change::Intention(event) => {
                self.shown(OwnerKind::Intention, event, ObjectStatus::Intention);
                self.watched(Kind::Intention, event);
                Kind::Intention
            }
            Change::PreparedQuery(event) => {
                let kind = OwnerKind::PreparedQuery;
                self.shown(kind, event, ObjectStatus::PreparedQuery);
                self.watched(Kind::PreparedQuery, event);
                Kind::PreparedQuery
            }
            Change::Namespace(event) => {
                self.watched(Kind::Namespace, event);
                Kind::Namespace
            }
            Change::Policy(event) => {
                self.watched(Kind::Policy, event);
                Kind::Policy
            }
            Change::Lease(_) => return,
        };
        let was_complete = *self.index.watches.state(kind) == Watch::Complete;
        feed(&mut self.index, event.change, &mut touched);
        self.count_missing(news, at);
        for changed in &touched.registrations {
            self.report.gates.look_again_in(&changed.namespace);
        }
        self.touch(touched, at);
        if was_strange && self.strange.is_empty() && self.known_once {
            // What was left because of it is planned again.
            self.touch_all(Cause::Read, at);
        }
        if !was_complete && *self.index.watches.state(kind) == Watch::Complete {
            self.complete_again(kind, at);
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
            WatchEvent::Healthy => {
                self.strange.remove(&kind);
            }
            WatchEvent::Listed { .. } => {
                self.strange.remove(&kind);
                self.missing.remove(&kind);
                if let Some(kinds) = self.rounds.listed(kind) {
                    self.rules.guard.listed(&kinds);
                }
            }
            WatchEvent::Broken(broken) => {
                if let Some(kinds) = self.rounds.broken(kind) {
                    self.rules.guard.listed(&kinds);
                }
                if broken.kind == BrokenKind::Stranger {
                    self.strange.insert(kind);
                } else {
                    self.strange.remove(&kind);
                }
                if broken.kind == BrokenKind::Missing {
                    self.missing.insert(kind);
                }
                if matches!(broken.kind, BrokenKind::Missing | BrokenKind::Leaving) {
                    self.rules.guard.doubt(kind);
                }
                let label = KindLabel {
                    kind: kind.resource(),
                };
                let restarts = &self.report.metrics.watch_restarts;
                restarts.get_or_create(&label).inc();
            }
            WatchEvent::Deleted {
                by_itself: false, ..
            } => self.rules.guard.doubt(kind),
            _ => {}
        }
    }

    /// A kind is known completely, for the first time or once more: what was held for want of it is
    /// planned, unless another that could claim it is not.
    fn complete_again(&mut self, kind: Kind, now: Instant) {
        let watches = &self.index.watches;
        let is_known = |key: &Key| {
            let kinds = key.claimed_by();
            let complete = |kind: &Kind| *watches.state(*kind) == Watch::Complete;
            kinds.contains(&kind) && kinds.iter().all(complete)
        };
        let held = std::mem::take(&mut self.held).into_iter();
        let (mut again, rest): (BTreeSet<Key>, BTreeSet<Key>) = held.partition(is_known);
        // Which nodes are gone could not be told.
        let nodes = self.mirror.node_names().cloned().map(Key::Node);
        again.extend(nodes.filter(is_known));
        let all_complete = watches.all_complete();
        self.held = rest;
        let due = Due {
            cause: Cause::Read,
            since: now,
        };
        for key in again {
            self.dirty.touch(key, due);
        }
        if all_complete && self.mirror.completeness() == Completeness::Complete {
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
        plan::end_let_go(&touched, &mut self.index, &self.mirror);
        let Touched {
            keys,
            holdings,
            let_go: _,
            problems,
            registrations,
            addresses,
            entry_holdings,
            entries_let_go: _,
        } = touched;
        let mut touched = keys;
        for owner in &entry_holdings {
            touched.extend(self.mirror.entries_held_by(owner));
        }
        for Holding { owner, node } in holdings {
            touched.extend(self.mirror.held_by(&owner, node.as_ref()));
        }
        touched.extend(self.held_at(&addresses));
        if self.lead.follows() {
            // All of it is planned, and told, when this process leads.
            for owner in registrations {
                if owner.kind == OwnerKind::Intention {
                    self.rules.refusals.forget(&owner);
                }
            }
            return;
        }
        for key in touched {
            match &key {
                Key::Instance(_) => self.report.expect(&key, &self.index),
                // Its address may be known by now.
                Key::Node(_) => self.go_on(&key.place()),
                _ => self.expect_entry(&key),
            }
            if self.may_be_handed_over(&key) {
                let due = due.merged(self.dirty.take_key(&key));
                // A claim that comes meanwhile ends the wait.
                self.dirty.park(&key, due, now + HAND_OVER);
            } else {
                self.dirty.touch(key, due);
            }
        }
        for owner in registrations {
            if owner.kind == OwnerKind::Intention {
                self.rules.refusals.forget(&owner);
            }
            self.report.touch(owner);
        }
        if !self.lead.is_silent() {
            self.report.tell_problems(problems, &self.index);
        }
    }

    /// Whether nothing claims the key any more, and an object of another kind may do so by now.
    fn may_be_handed_over(&self, key: &Key) -> bool {
        match key {
            Key::Instance(instance) => plan::held_under(instance, &self.mirror)
                .is_some_and(|held| self.index.may_be_handed_over(instance, &held)),
            Key::Query(_) => self.index.absence_of_entry(key) == Absence::Seen,
            // Only one kind can claim these.
            Key::Node(_) | Key::Defaults(_) | Key::Intentions(_) | Key::Source(_) => false,
        }
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
        if self.audit_at.is_some_and(|at| at <= now) && !self.lead.follows() {
            self.touch_all(Cause::Audit, now);
        }
    }

    // === signals of Consul ===

    pub(super) fn heed(&mut self, signal: &Signal, now: Instant) {
        self.miss_contact(signal, now);
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
                    // An older state may be back, with sessions that were ended since.
                    self.doubt_sessions(now);
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
            Signal::Epoch { index } => self.epoch_seen(*index),
            Signal::Settings(reading) => self.take_settings(reading, now),
            Signal::NoSettings(why) => self.unread_settings = Some(why.clone()),
            Signal::Failed { topic, error } if self.unwatched.contains(topic) => {
                self.failed(&format!("cannot watch Consul: {error}"));
            }
            Signal::Failed { topic, error } => match topic.table() {
                Some(table) if self.is_unwatched(table) => {
                    self.table_unread(table, &ReadError::Failed(error.clone()));
                }
                _ => tracing::debug!(?topic, "cannot watch Consul: {error}"),
            },
        }
    }
}
