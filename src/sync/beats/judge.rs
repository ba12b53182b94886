//! Which checks look at which Leases, and what follows of these.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::{Beating, LISTED_LATELY};
use crate::desired::probe::Asked;
use crate::heartbeat::leases::{Beat, News};
use crate::heartbeat::pulses::{Place, Want};
use crate::k8s::{BrokenKind, WatchEvent};
use crate::model::entry::{Check, Health};
use crate::model::facts::LeaseFacts;
use crate::model::key::{InstanceKey, Key};
use crate::model::text::Text;
use crate::plan::{Asks, Finding};
use crate::status::board::{Reason, Trouble};
use crate::sync::dirty::{Cause, Due};
use crate::sync::engine::Engine;

impl Engine {
    /// What was found under the key of an instance: which of its checks follow sessions.
    pub(in crate::sync) fn follow_beats(
        &mut self,
        key: &InstanceKey,
        finding: &Finding,
        now: Instant,
    ) {
        let held = finding.held().is_some();
        match &finding.asks {
            Asks::These(_, asked) => self.follow_all(key, finding, asked, now),
            // What is held stays as it is, and so does what cannot be told.
            Asks::Nothing if !held && self.beats.of_instance.contains_key(key) => {
                self.follow_all(key, finding, &[], now);
            }
            Asks::Nothing | Asks::Kept => {
                for place in self.beats.of_instance.get(key).cloned().unwrap_or_default() {
                    self.judge_beat(&place, now);
                }
            }
        }
    }

    fn follow_all(&mut self, key: &InstanceKey, finding: &Finding, asked: &[Asked], now: Instant) {
        let before = self.beats.of_instance.remove(key).unwrap_or_default();
        let owner = finding.owner.as_ref();
        let mut places = BTreeSet::new();
        let any = asked.iter().any(|asked| asked.heartbeat().is_some());
        if self.rules.sessions.is_err() && any {
            self.beats.unsupported.insert(key.clone());
        } else {
            self.beats.unsupported.remove(key);
        }
        if self.rules.sessions.is_ok() {
            for asked in asked {
                if let (Some(heartbeat), Some(owner)) = (asked.heartbeat(), owner) {
                    let place = Place {
                        node: key.node.clone(),
                        check: asked.probe.kind().id(&key.id).into(),
                    };
                    let beating = Beating {
                        key: key.clone(),
                        name: asked.probe.name.clone(),
                        namespace: owner.namespace.clone(),
                        lease: asked.lease.clone(),
                        ttl: heartbeat.ttl,
                    };
                    self.beats.follow(&place, beating);
                    places.insert(place);
                }
            }
        }
        let gone: Vec<&Place> = before.difference(&places).collect();
        let mut leaving = BTreeSet::new();
        for place in gone {
            let check = self.status_at(place, key);
            let name = place.check.rsplit_once(':').map(|(_, name)| name);
            self.rules
                .heartbeats
                .retain(key, |other| Some(other) != name);
            self.beats.pulses.forget(place, check, now);
            self.beats.forget(place);
            if check.is_some() {
                // Until it is seen that the check is gone.
                leaving.insert(place.clone());
            }
        }
        for place in &places {
            self.judge_beat(place, now);
        }
        places.extend(leaving);
        if !places.is_empty() {
            self.beats.of_instance.insert(key.clone(), places);
        }
    }

    fn status_at(&self, place: &Place, key: &InstanceKey) -> Option<Health> {
        let check = self.mirror.instance(key)?.check(&place.check)?;
        (check.follows_session()).then_some(check.check.status)
    }

    pub(super) fn judge_all_beats(&mut self, now: Instant) {
        let places: Vec<Place> = self.beats.of.keys().cloned().collect();
        for place in places {
            self.judge_beat(&place, now);
        }
    }

    /// Judges by its Lease, as far as that is known, whether a check is to pass.
    pub(super) fn judge_beat(&mut self, place: &Place, now: Instant) {
        let Some(beating) = self.beats.of.get(place).map(|row| row.beating.clone()) else {
            return;
        };
        let check = self.status_at(place, &beating.key);
        let alive = self.beats.pulses.is_alive(place);
        let (namespace, lease) = (&beating.namespace, &beating.lease);
        let was_alive = alive != Some(false);
        let beat = self
            .beats
            .leases
            .beat(namespace, lease, beating.ttl, now, was_alive);
        let beat = match beat {
            // There is nothing that could end wrongly.
            Beat::Overdue(why) if alive == Some(false) => Beat::Lapsed(why),
            beat => beat,
        };
        let until = match &beat {
            Beat::Fresh(until) => Some(*until),
            Beat::Overdue(_) | Beat::Lapsed(_) | Beat::Unknown(_) => None,
        };
        self.beats.lapses_at(place, until);
        let want = match &beat {
            // Which sessions there are is not known yet.
            _ if alive.is_none() => Want::Kept,
            Beat::Fresh(_) => Want::Alive,
            Beat::Lapsed(why) => {
                if alive == Some(true) {
                    tracing::info!(node = %place.node, check = &*place.check, "its heartbeat ended: {why}");
                }
                Want::Ended
            }
            Beat::Overdue(_) => {
                self.beats.look_again(namespace);
                Want::Kept
            }
            Beat::Unknown(_) => Want::Kept,
        };
        self.beats
            .pulses
            .follow(place, (beating.ttl, want), check, now);
        if alive.is_some() {
            self.note_beat(&beating, &beat, now);
        }
        if let Some(known) = self.beats.of.get_mut(place)
            && known.check != check
        {
            known.check = check;
            self.changed_beat(&beating.key, now);
        }
        let trouble = self.trouble_of_beat(place, &beating);
        self.tell_beat(place, &beating.key, trouble, now);
    }

    /// Whether the Leases that make an instance critical, if any do, were listed a moment ago; else they are
    /// from now on. A watch that is silent looks like workers that are.
    pub(in crate::sync) fn lapses_are_read(&mut self, key: &InstanceKey, now: Instant) -> bool {
        let found = &self.rules.heartbeats;
        let is_lapsed = |beating: &&Beating| {
            let found = found.get(key, &beating.name);
            found.is_some_and(|found| found.status == Health::Critical)
        };
        let of = &self.beats.of;
        let places = self.beats.of_instance.get(key).into_iter().flatten();
        let beating = places.filter_map(|place| Some(&of.get(place)?.beating));
        let Some(lapsed) = beating.clone().find(is_lapsed) else {
            return true;
        };
        // All that an instance looks at are of one namespace.
        let namespace = lapsed.namespace.clone();
        let since = now.checked_sub(LISTED_LATELY).unwrap_or(now);
        if self.beats.leases.was_listed_since(&namespace, since) {
            return true;
        }
        self.beats.look_again(&namespace);
        self.beats.look_at(now);
        false
    }

    /// What a Lease says counts also for an instance that Consul has not.
    fn note_beat(&mut self, Beating { key, name, .. }: &Beating, beat: &Beat, now: Instant) {
        let verdicts = &mut self.rules.heartbeats;
        let known = verdicts.get(key, name).map(|check| check.status);
        let found = match beat {
            Beat::Fresh(_) => Some((Health::Passing, Text::default())),
            Beat::Lapsed(why) => Some((Health::Critical, why.clone())),
            Beat::Overdue(_) => return,
            Beat::Unknown(_) => None,
        };
        match found {
            Some((status, output)) if known != Some(status) => {
                let (key, check) = (key.clone(), Check { status, output });
                // A Lease is judged by its name, whichever pod renews it.
                verdicts.found(key, &Text::default(), name.clone(), check);
            }
            None if known.is_some() => verdicts.retain(key, |other| *other != **name),
            _ => return,
        }
        let due = Due {
            cause: Cause::Kubernetes,
            since: now,
        };
        self.dirty.touch(Key::Instance(key.clone()), due);
    }

    /// The status of a check that follows a session is another: the proxy beside its instance follows.
    fn changed_beat(&mut self, key: &InstanceKey, now: Instant) {
        let due = Due {
            cause: Cause::Kubernetes,
            since: now,
        };
        let proxy = key.counterpart(self.index.cluster());
        if let Some(proxy) = proxy.filter(|proxy| !self.index.claimants(proxy).is_empty()) {
            self.dirty.touch(Key::Instance(proxy), due);
        }
    }

    pub(super) fn trouble_of_beat(&self, place: &Place, beating: &Beating) -> Option<Trouble> {
        if let Some(why) = self.beats.leases.denied(&beating.namespace) {
            let namespace = &beating.namespace;
            return Some(Trouble {
                reason: Reason::AccessDenied,
                message: format!(
                    "{}: the Leases of namespace {namespace} cannot be watched, and its session is kept alive: {why}",
                    place.check
                ),
            });
        }
        if self.beats.pulses.is_deaf(place) {
            return Some(Trouble {
                reason: Reason::ConsulRefused,
                message: format!(
                    "{}: the check stays critical although its session lives: Consul 1.21 or later is needed",
                    place.check
                ),
            });
        }
        // What Consul said last stays until it takes something.
        self.beats.refused.get(place).cloned()
    }

    pub(super) fn tell_beat(
        &mut self,
        place: &Place,
        key: &InstanceKey,
        trouble: Option<Trouble>,
        now: Instant,
    ) {
        let known = self.beats.troubles.get(place);
        if known == trouble.as_ref() {
            return;
        }
        match trouble {
            Some(trouble) => self.beats.troubles.insert(place.clone(), trouble),
            None => self.beats.troubles.remove(place),
        };
        let due = Due {
            cause: Cause::Read,
            since: now,
        };
        self.dirty.touch(Key::Instance(key.clone()), due);
    }

    /// A Lease was renewed, or how they are watched changed.
    pub(in crate::sync) fn hear_leases(
        &mut self,
        namespace: &Text,
        event: WatchEvent<LeaseFacts>,
        at: Instant,
    ) {
        let leases = &mut self.beats.leases;
        let mut news = Vec::new();
        match event {
            WatchEvent::Listing => {
                leases.listing(namespace, at);
                self.beats.asked(namespace);
            }
            WatchEvent::Page(page) => {
                news.extend(page.iter().filter_map(|lease| leases.applied(lease, at)));
            }
            WatchEvent::Listed { .. } => news.extend(leases.listed(namespace, at)),
            WatchEvent::Applied(lease) => news.extend(leases.applied(&lease, at)),
            WatchEvent::Deleted { object, .. } => news.extend(leases.deleted(&object)),
            WatchEvent::Broken(broken) => {
                let denied = broken.kind == BrokenKind::Denied;
                news.extend(leases.broken(namespace, &broken.message, denied));
                self.beats.asked(namespace);
            }
            WatchEvent::Healthy => news.extend(leases.healthy(namespace, at)),
        }
        for news in news {
            let places: Vec<Place> = match news {
                News::Of(name) => {
                    let places = self.beats.looking_at.get(&(namespace.clone(), name));
                    places.into_iter().flatten().cloned().collect()
                }
                News::OfAll => {
                    let of = self.beats.of.iter();
                    let of = of.filter(|(_, row)| row.beating.namespace == *namespace);
                    of.map(|(place, _)| place.clone()).collect()
                }
            };
            for place in places {
                self.judge_beat(&place, at);
            }
        }
    }
}
