//! What instances are asked, and what the engine makes of what is found.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::dirty::{Cause, Due};
use super::engine::Engine;
use crate::checks::forbidden::Forbidden;
use crate::checks::{self, Known, Orders, Target, Told};
use crate::desired::esm::Runner;
use crate::desired::probe::{Asked, AskedCall};
use crate::model::key::{InstanceKey, Key};
use crate::model::marks;
use crate::plan::{self, Asks, Mode, Subject};

/// What instances are asked now.
#[derive(Debug)]
pub(super) struct Asking {
    orders: Orders,
    /// Whether this process is the one that asks.
    begun: bool,
    of: HashMap<InstanceKey, Followed>,
    /// Counted up with each order, so that what was found under an older one can be told.
    orders_given: u64,
}

#[derive(Debug)]
struct Followed {
    subject: Subject,
    /// Each with the number of the order since which it is asked like this: what is found of it is of that
    /// order, whatever became of the others beside it.
    asked: Box<[(AskedCall, u64)]>,
}

impl Followed {
    fn of(&self, name: &str) -> Option<&(AskedCall, u64)> {
        let mut asked = self.asked.iter();
        asked.find(|(asked, _)| *asked.probe.name == *name)
    }
}

impl Asking {
    pub(super) fn new(orders: Orders) -> Self {
        Self {
            orders,
            begun: false,
            of: HashMap::new(),
            orders_given: 0,
        }
    }
}

impl Engine {
    /// Begins to ask once this process may write, and ends when another one does: what was found until
    /// then is worth nothing any more.
    pub(super) fn begin_or_end_asking(&mut self, now: Instant) {
        let begins = self.fence.index().is_some() && self.rules.mode != Mode::DryRun;
        if begins == self.asking.begun {
            return;
        }
        self.asking.begun = begins;
        if begins {
            self.touch_all(Cause::Read, now);
            return;
        }
        self.asking.orders.forget_all();
        self.asking.of.clear();
        self.rules.verdicts.clear();
    }

    /// What an instance is to be asked was found out.
    pub(super) fn ask(&mut self, key: &InstanceKey, asks: &Asks) {
        if !self.asking.begun {
            return;
        }
        match asks {
            Asks::Kept => {}
            Asks::Nothing => {
                if self.asking.of.remove(key).is_some() {
                    self.asking.orders.forget(key.clone());
                    self.rules.verdicts.retain(key, |_| false);
                }
            }
            Asks::These(subject, asked) => {
                let asked: Box<[AskedCall]> = asked.iter().filter_map(Asked::call).collect();
                if asked.is_empty() {
                    self.ask(key, &Asks::Nothing);
                } else {
                    self.follow(key, subject, &asked);
                }
            }
        }
    }

    fn follow(&mut self, key: &InstanceKey, subject: &Subject, asked: &[AskedCall]) {
        let before = self.asking.of.get(key);
        let same = before.filter(|it| it.subject == *subject);
        if same.is_some_and(|it| it.asked.iter().map(|(asked, _)| asked).eq(asked)) {
            return;
        }
        // The number of the order that holds on for what is asked as before.
        let kept = |asked: &AskedCall| {
            let (before, order) = same?.of(&asked.probe.name)?;
            (before == asked).then_some(*order)
        };
        let is_unchanged = |name: &str| {
            let mut asked = asked.iter();
            let asked = asked.find(|it| *it.probe.name == *name);
            asked.and_then(kept).is_some()
        };
        self.rules.verdicts.retain(key, is_unchanged);
        if before.is_some_and(|it| it.subject.uid != subject.uid) {
            // What was found of its predecessor is nothing to go on.
            self.asking.orders.forget(key.clone());
        }
        let known = asked.iter().map(|asked| self.known(key, subject, asked));
        let known = known.collect();
        self.asking.orders_given += 1;
        let order = self.asking.orders_given;
        let host = subject.host.clone();
        let numbered = asked
            .iter()
            .map(|it| (it.clone(), kept(it).unwrap_or(order)));
        let followed = Followed {
            subject: subject.clone(),
            asked: numbered.collect(),
        };
        self.asking.of.insert(key.clone(), followed);
        let orders = &self.asking.orders;
        orders.follow(key.clone(), host, asked.into(), known, order);
    }

    /// What Consul shows of a check: what was found by whoever asked before, perhaps something else.
    fn known(&self, key: &InstanceKey, subject: &Subject, asked: &AskedCall) -> Option<Known> {
        let there = self.mirror.instance(key)?;
        let uid = there.service.meta.get(marks::UID);
        if there.service.address != subject.host || uid != Some(&subject.uid) {
            return None;
        }
        let there = there.check_of(key, &asked.probe.kind())?;
        let target = Target::of(&subject.host, asked);
        let is_same = plan::checks::question(&there.check) == Some(&*checks::question(&target));
        Some(Known {
            status: there.check.status,
            is_answer: is_same && there.definition.is_none(),
        })
    }

    /// An instance was asked, and it is news how it is.
    pub(super) fn heard(&mut self, told: Told) {
        let Told {
            key,
            name,
            check,
            order,
            at,
        } = told;
        let followed = self.asking.of.get(&key);
        let asked = followed.and_then(|followed| Some((followed, followed.of(&name)?)));
        // What was found under an order that does not hold any more is of something else.
        let Some((followed, (asked, _))) = asked.filter(|(_, (_, since))| *since == order) else {
            return;
        };
        let there = self.mirror.instance(&key);
        let there = there.and_then(|there| there.check_of(&key, &asked.probe.kind()));
        // What Consul shows already, as after a start, asks for nothing new: what is held, or left to another
        // hand, stays so.
        let is_known = there.is_some_and(|there| plan::checks::is_same(&check, there));
        let uid = &followed.subject.uid;
        self.rules.verdicts.found(key.clone(), uid, name, check);
        let due = Due {
            cause: if is_known { Cause::Read } else { Cause::Found },
            since: at,
        };
        let proxy = self.claimed_beside(&key);
        for key in proxy.into_iter().chain([key]) {
            self.dirty.touch(Key::Instance(key), due);
        }
    }

    /// The proxy beside an instance, also one that is just being written.
    fn claimed_beside(&self, key: &InstanceKey) -> Option<InstanceKey> {
        let proxy = key.counterpart(self.index.cluster());
        proxy.filter(|proxy| !self.index.claimants(proxy).is_empty())
    }

    /// Consul shows an instance otherwise than it was known: where consul-esm finds how it is, the proxy
    /// beside it follows.
    pub(super) fn follow_beside(&mut self, key: &InstanceKey, at: Instant) {
        if self.index.runner() != Runner::Esm {
            return;
        }
        if let Some(proxy) = self.claimed_beside(key) {
            let due = Due {
                // It is nobody's drift.
                cause: Cause::Found,
                since: at,
            };
            self.dirty.touch(Key::Instance(proxy), due);
        }
    }

    /// It is known, or known anew, where consul-esm may not be sent.
    pub(super) fn forbid(&mut self, forbidden: Option<Arc<Forbidden>>, now: Instant) {
        if self.rules.forbidden == forbidden {
            return;
        }
        self.rules.forbidden = forbidden;
        self.touch_all(Cause::Read, now);
    }
}
