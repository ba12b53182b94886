//! Which sessions there are, and whether Consul knows checks that follow them.

use tokio::time::Instant;

use super::{Beats, LIST_PAUSE, LOOK_AGAIN, SINCE, VERSION_PAUSE, instance_of};
use crate::heartbeat::pulses::{Found, Place, Want};
use crate::model::entry::ALIVE_CHECK_ID;
use crate::model::key::Key;
use crate::model::names::NodeName;
use crate::model::text::Text;
use crate::observed::mirror::Completeness;
use crate::plan;
use crate::sync::apply::Done;
use crate::sync::dirty::Cause;
use crate::sync::engine::Engine;
use crate::sync::sessions::{self, Read};

impl Engine {
    pub(super) fn list_sessions(&mut self, now: Instant) {
        if self.mirror.completeness() != Completeness::Complete || self.beats.listing {
            return;
        }
        // Once at the start, whatever is claimed: what is held, or cannot be told yet, lives on.
        let first = !self.beats.known;
        let outdated = self.rules.sessions.is_err();
        let again = self.beats.list_again_at.is_some_and(|at| at <= now);
        let wanted = first || outdated || again || self.beats.pulses.wants_list();
        if self.beats.leads && !wanted {
            self.beats.list_at = None;
            return;
        }
        let at = *self.beats.list_at.get_or_insert(now);
        if now < at {
            return;
        }
        let follows = self.beats.pulses.places().next().is_some();
        let may_follow = || self.rules.dead_after.is_some() || self.index.has_heartbeats();
        if !self.beats.leads && !first && !follows && !may_follow() {
            self.beats.list_at = Some(now + LOOK_AGAIN);
            return;
        }
        self.beats.listing = true;
        let client = self.consul.clone();
        self.jobs
            .spawn(async move { Done::ReadSessions(Box::new(sessions::read(client, now).await)) });
    }

    /// It was read which sessions there are.
    pub(in crate::sync) fn absorb_sessions(&mut self, read: Read) {
        let now = Instant::now();
        self.beats.listing = false;
        if let Some(version) = &read.version {
            self.learn_version(version, now);
        }
        let pause = match &self.rules.sessions {
            Err(_) => VERSION_PAUSE,
            Ok(()) if self.beats.leads => LIST_PAUSE,
            Ok(()) => LOOK_AGAIN,
        };
        self.beats.list_at = Some(now + pause);
        let found = match read.sessions {
            Ok(found) => found,
            Err(error) => {
                if self.beats.unlisted.is_news(&error.to_string(), now) {
                    tracing::warn!("cannot read the sessions of Consul: {error}");
                }
                return;
            }
        };
        self.beats.known = true;
        self.beats.unlisted.over();
        if self.beats.list_again_at.is_some_and(|at| at <= read.asked) {
            self.beats.list_again_at = None;
        }
        let cluster = self.index.cluster().clone();
        let ours = found.iter().filter_map(|session| {
            let node = NodeName::parse(&cluster, &session.node)?;
            let check = session.name.clone();
            Some(Found {
                place: Place { node, check },
                id: session.id.clone(),
                ttl: sessions::ttl(session),
            })
        });
        let ours: Vec<Found> = ours.collect();
        let strays = self
            .beats
            .pulses
            .listed(ours.clone(), read.asked, now, rand::random::<f64>);
        let mut taken_in = false;
        for stray in &strays {
            taken_in |= self.take_in(stray, now);
        }
        if taken_in {
            self.beats
                .pulses
                .listed(ours, read.asked, now, rand::random::<f64>);
        }
        if self.beats.leads {
            self.beats.pulses.rely_on(&strays, read.asked);
        } else {
            self.drop_ended();
        }
        self.count_sessions();
        self.judge_all_beats(now);
    }

    /// A process that stands by follows what there is: what was ended by the one that writes is not told.
    fn drop_ended(&mut self) {
        let Beats { pulses, of, .. } = &self.beats;
        let is_asked_for = |place: &Place| {
            of.contains_key(place)
                || *place.check == *ALIVE_CHECK_ID && self.rules.dead_after.is_some()
        };
        let has_ended =
            |place: &&Place| pulses.is_alive(place) == Some(false) && !is_asked_for(place);
        for place in pulses
            .places()
            .filter(has_ended)
            .cloned()
            .collect::<Vec<_>>()
        {
            self.beats.pulses.drop(&place);
            if let Some(key) = instance_of(&place)
                && let Some(places) = self.beats.of_instance.get_mut(&key)
            {
                places.remove(&place);
                if places.is_empty() {
                    self.beats.of_instance.remove(&key);
                }
            }
        }
    }

    /// A session on a node of ours that is not followed: one whose check is there is kept alive until it is
    /// known better, as by a process that stands by.
    fn take_in(&mut self, stray: &Found, now: Instant) -> bool {
        let Found { place, ttl, .. } = stray;
        let Some(ttl) = *ttl else {
            return false;
        };
        if *place.check == *ALIVE_CHECK_ID {
            let node = self.mirror.node(&place.node);
            let check = node.and_then(|node| node.alive_check());
            if let Some(status) = check.map(|check| check.check.status) {
                self.beats
                    .pulses
                    .follow(place, (ttl, Want::Kept), Some(status), now);
                return true;
            }
            return false;
        }
        let Some(key) = instance_of(place) else {
            return false;
        };
        let there = self.mirror.instance(&key);
        let Some(status) = there
            .and_then(|there| there.check(&place.check))
            .map(|it| it.check.status)
        else {
            return false;
        };
        // Without a complete view of Kubernetes nobody seems to claim anything.
        if self.index.watches.all_listed() {
            let whole = Key::Instance(key.clone());
            let finding = plan::decide(&whole, &self.index, &self.mirror, &self.rules);
            self.follow_beats(&key, &finding, now);
        }
        if !self.beats.of.contains_key(place) {
            self.beats
                .pulses
                .follow(place, (ttl, Want::Kept), Some(status), now);
            // So that it is forgotten with its instance.
            let places = self.beats.of_instance.entry(key).or_default();
            places.insert(place.clone());
        }
        true
    }

    fn learn_version(&mut self, version: &Text, now: Instant) {
        let told = if is_older(version, SINCE) {
            Err(Text::from(format!(
                "Consul {version} has no checks that follow a session: 1.21 or later is needed"
            )))
        } else {
            Ok(())
        };
        if told == self.rules.sessions {
            return;
        }
        if let (Err(why), Some(_)) = (&told, self.rules.dead_after) {
            tracing::error!("--dead-after is without effect: {why}");
        }
        self.rules.sessions = told;
        self.touch_all(Cause::Read, now);
    }
}

/// Whether a version such as `1.20.4+ent` is older than this one. One that cannot be read is not.
fn is_older(version: &str, (major, minor): (u64, u64)) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u64>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(its_major), Some(its_minor)) => (its_major, its_minor) < (major, minor),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for (version, older) in [
            ("1.9.5", true),
            ("1.20.4+ent", true),
            ("1.21.0", false),
            ("1.22.7", false),
            ("2.0.0", false),
            ("next", false),
        ] {
            assert_eq!(is_older(version, SINCE), older, "{version}");
        }
    }
}
