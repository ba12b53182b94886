//! What the engine makes of events of Kubernetes and signals of Consul.

use std::time::Duration;

use tokio::time::Instant;

use super::dirty::{Cause, Due};
use super::engine::Engine;
use super::signals::Signal;
use crate::desired::index::{Index, Touched};
use crate::desired::registration::Registration;
use crate::desired::watches::Kind;
use crate::k8s::{BrokenKind, Change, EventReason, KubeEvent, WatchEvent};
use crate::metrics::KindLabel;
use crate::model::key::Key;
use crate::observed::mirror::Completeness;

/// How often all keys are planned, to find what incremental passes missed.
const AUDIT_INTERVAL: Duration = Duration::from_mins(10);

impl Engine {
    pub(super) fn take(&mut self, event: KubeEvent) {
        let at = event.at;
        let mut touched = Touched::default();
        let complete = self.index.watches.all_complete();
        match event.change {
            Change::Pod(event) => {
                self.watched(
                    Kind::Pod,
                    event,
                    &mut touched,
                    |index, change, touched| match change {
                        One::Applied(pod) => index.apply_pod(pod, touched),
                        One::Deleted(pod) => index.remove_pod(&pod.namespace, &pod.name, touched),
                    },
                );
            }
            Change::Node(event) => {
                self.watched(
                    Kind::Node,
                    event,
                    &mut touched,
                    |index, change, touched| match change {
                        One::Applied(node) => index.apply_node(node, touched),
                        One::Deleted(node) => index.remove_node(&node.name, touched),
                    },
                );
            }
            Change::Registration(event) => {
                match &event {
                    WatchEvent::Applied(object) => self.report.observed(object),
                    WatchEvent::Page(page) => {
                        for object in page {
                            self.report.observed(object);
                        }
                    }
                    _ => {}
                }
                self.watched(
                    Kind::Registration,
                    event,
                    &mut touched,
                    |index, change, touched| match change {
                        One::Applied(object) => {
                            index.apply_registration(Registration::of(&object), touched);
                        }
                        One::Deleted(object) => {
                            index.remove_registration(&object.namespace, &object.name, touched);
                        }
                    },
                );
            }
        }
        self.touch(touched, at);
        if !complete && self.index.watches.all_complete() {
            self.complete_again(at);
        }
    }

    fn watched<T>(
        &mut self,
        kind: Kind,
        event: WatchEvent<T>,
        touched: &mut Touched,
        change: impl Fn(&mut Index, One<T>, &mut Touched),
    ) {
        let index = &mut self.index;
        match event {
            WatchEvent::Listing => index.begin_list(kind),
            WatchEvent::Page(page) => {
                for object in page {
                    change(index, One::Applied(object), touched);
                }
            }
            WatchEvent::Listed { .. } => {
                index.end_list(kind, touched);
                self.missing.remove(&kind);
            }
            WatchEvent::Applied(object) => change(index, One::Applied(object), touched),
            WatchEvent::Deleted(object) => change(index, One::Deleted(object), touched),
            WatchEvent::Broken(broken) => {
                index.watches.broken(kind, broken.message.to_string());
                if broken.kind == BrokenKind::Missing {
                    self.missing.insert(kind);
                }
                let label = KindLabel {
                    kind: kind.resource(),
                };
                let restarts = &self.report.metrics.watch_restarts;
                restarts.get_or_create(&label).inc();
            }
            WatchEvent::Healthy => index.watches.healthy(kind),
        }
    }

    /// All kinds are known completely, for the first time or once more.
    fn complete_again(&mut self, now: Instant) {
        for key in std::mem::take(&mut self.held) {
            self.dirty.touch(
                key,
                Due {
                    cause: Cause::Read,
                    since: now,
                },
            );
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
            problems,
            registrations,
        } = touched;
        let mut touched = keys;
        for holding in holdings {
            let held = self.mirror.held_by(&holding.owner, holding.node.as_ref());
            for key in &held {
                if let (true, Key::Instance(key)) = (holding.gone, key) {
                    self.index.withdraw(key);
                }
            }
            touched.extend(held);
        }
        for key in touched {
            match &key {
                Key::Instance(instance) => self.report.expect(instance, &self.index),
                // Its address may be known by now.
                Key::Node(node) => self.go_on(node),
            }
            self.dirty.touch(key, due);
        }
        for owner in registrations {
            self.report.touch(owner);
        }
        for owner in problems {
            for problem in self.index.problems(&owner) {
                tracing::warn!(object = %owner, reason = "InvalidAnnotation", "{problem}");
                let uid = self.index.uid(&owner);
                self.report
                    .event(&owner, uid, EventReason::InvalidAnnotation, problem.clone());
            }
        }
    }

    /// Plans every key that is claimed or held.
    pub(super) fn touch_all(&mut self, cause: Cause, now: Instant) {
        let due = Due { cause, since: now };
        for key in self.index.claimed_keys().chain(self.mirror.keys()) {
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
                table,
                index,
                first,
                interrupted,
            } => {
                self.answered();
                if *first {
                    self.unwatched.remove(table);
                } else if *interrupted {
                    self.own.forget();
                    self.sweeper.signal(now);
                } else {
                    self.own
                        .signalled(index.map_or(0, std::num::NonZeroU64::get));
                    // Were it wrongly taken for our own, a sweep finds what it told of.
                    self.sweeper.wrote(now);
                }
            }
            Signal::Failed { table, error } if self.unwatched.contains(table) => {
                self.failed(&format!("cannot watch Consul: {error}"));
            }
            Signal::Failed { table, error } => {
                tracing::debug!(?table, "cannot watch Consul: {error}");
            }
        }
    }
}

/// A change of one object.
enum One<T> {
    Applied(T),
    Deleted(T),
}
