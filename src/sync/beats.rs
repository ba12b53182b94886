//! Checks that follow sessions: whose heart beats, and what is done about it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::apply::Done;
use super::dirty::{Cause, Due};
use super::engine::Engine;
use super::sessions::{self, Acted, Checked, Read};
use super::wrote::replace;
use crate::consul::ErrorClass;
use crate::desired::probe::Asked;
use crate::heartbeat::leases::{Beat, Leases, News};
use crate::heartbeat::pulses::{Act, Found, Outcome, Place, Pulses, Want};
use crate::k8s::{BrokenKind, WatchEvent};
use crate::model::entry::{ALIVE_CHECK_ID, Check, Health};
use crate::model::facts::LeaseFacts;
use crate::model::key::{InstanceKey, Key, Place as KeyPlace};
use crate::model::names::{InstanceId, NodeName};
use crate::model::text::Text;
use crate::observed::entry::ObservedCheck;
use crate::observed::mirror::Completeness;
use crate::plan::{self, Asks, Finding, Mode};
use crate::status::board::{Reason, Trouble};

/// How often to look whether Consul is new enough by now.
const VERSION_PAUSE: Duration = Duration::from_mins(1);
/// How long the Leases of a namespace are watched after nobody looks at one any more.
const LINGER: Duration = Duration::from_mins(1);
/// Who judges a lapse later than this stood still.
const LATE: Duration = Duration::from_secs(2);
/// Calls about sessions under way at once.
const AT_ONCE: usize = 32;
/// How often a process that does not write looks which sessions there are: less than the shortest of them lives.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long after a list the next one may begin.
const LIST_PAUSE: Duration = Duration::from_secs(2);
/// The first version of Consul with checks that follow sessions.
const SINCE: (u64, u64) = (1, 21);

/// The heartbeats of instances, and Lictor's own.
#[derive(Debug)]
pub(super) struct Beats {
    pulses: Pulses,
    leases: Leases,
    of: HashMap<Place, Row>,
    of_instance: HashMap<InstanceKey, BTreeSet<Place>>,
    looking_at: HashMap<(Text, Text), BTreeSet<Place>>,
    /// When a Lease will have lapsed.
    lapses: BTreeSet<(Instant, Place)>,
    /// How many checks look at a Lease in each namespace, and until when it is watched where none does any
    /// more: one that comes back at once, as when a service is renamed, finds it as it was.
    looks_in: BTreeMap<Text, (usize, Option<Instant>)>,
    namespaces: watch::Sender<BTreeSet<Text>>,
    /// What is told of them.
    troubles: HashMap<Place, Trouble>,
    /// What Consul refused last.
    refused: HashMap<Place, Trouble>,
    /// Instances with checks that Consul is too old for.
    unsupported: HashSet<InstanceKey>,
    under_way: usize,
    /// Of these, those that are no renewals.
    changing: usize,
    /// Whether sessions were listed since the start.
    known: bool,
    listing: bool,
    list_at: Option<Instant>,
    leads: bool,
}

/// A check of an instance that looks at a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Beating {
    key: InstanceKey,
    /// The name of the check within its registration.
    name: Text,
    namespace: Text,
    lease: Text,
    ttl: Duration,
}

#[derive(Debug)]
struct Row {
    beating: Beating,
    /// What the check was in Consul last.
    check: Option<Health>,
    /// Under when it is among the lapses.
    until: Option<Instant>,
}

impl Beats {
    pub(super) fn new() -> Self {
        Self {
            pulses: Pulses::default(),
            leases: Leases::default(),
            of: HashMap::new(),
            of_instance: HashMap::new(),
            looking_at: HashMap::new(),
            lapses: BTreeSet::new(),
            looks_in: BTreeMap::new(),
            namespaces: watch::Sender::new(BTreeSet::new()),
            troubles: HashMap::new(),
            refused: HashMap::new(),
            unsupported: HashSet::new(),
            under_way: 0,
            changing: 0,
            known: false,
            listing: false,
            list_at: None,
            leads: false,
        }
    }

    /// When there is something to do.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let lapse = self.lapses.first().map(|(at, _)| *at);
        let pulse = self.pulses.wake_at().filter(|_| self.under_way < AT_ONCE);
        let list = self.list_at.filter(|_| !self.listing);
        let leave = self.looks_in.values().filter_map(|(_, until)| *until).min();
        [lapse, pulse, list, leave].into_iter().flatten().min()
    }

    fn look_at(&mut self, now: Instant) {
        for (count, until) in self.looks_in.values_mut() {
            *until = match count {
                0 => Some(until.unwrap_or(now + LINGER)),
                _ => None,
            };
        }
        self.looks_in
            .retain(|_, (_, until)| until.is_none_or(|until| now < until));
        let namespaces = self.namespaces.borrow();
        if !namespaces.iter().eq(self.looks_in.keys()) {
            drop(namespaces);
            let namespaces: BTreeSet<Text> = self.looks_in.keys().cloned().collect();
            self.leases.look_at(&namespaces);
            self.namespaces.send_replace(namespaces);
        }
    }

    fn follow(&mut self, place: &Place, beating: Beating) {
        let known = self.of.get(place);
        if known.is_some_and(|known| known.beating == beating) {
            return;
        }
        let check = known.and_then(|known| known.check);
        self.forget(place);
        self.looks_in
            .entry(beating.namespace.clone())
            .or_default()
            .0 += 1;
        let lease = (beating.namespace.clone(), beating.lease.clone());
        self.looking_at
            .entry(lease)
            .or_default()
            .insert(place.clone());
        let until = None;
        self.of.insert(
            place.clone(),
            Row {
                beating,
                check,
                until,
            },
        );
    }

    fn forget(&mut self, place: &Place) {
        self.troubles.remove(place);
        self.refused.remove(place);
        self.lapses_at(place, None);
        let Some(Row { beating, .. }) = self.of.remove(place) else {
            return;
        };
        if let Some((count, _)) = self.looks_in.get_mut(&beating.namespace) {
            *count -= 1;
        }
        let lease = (beating.namespace, beating.lease);
        if let Some(places) = self.looking_at.get_mut(&lease) {
            places.remove(place);
            if places.is_empty() {
                self.looking_at.remove(&lease);
            }
        }
    }

    fn lapses_at(&mut self, place: &Place, until: Option<Instant>) {
        let Some(row) = self.of.get_mut(place) else {
            return;
        };
        if let Some(before) = std::mem::replace(&mut row.until, until) {
            self.lapses.remove(&(before, place.clone()));
        }
        if let Some(until) = until {
            self.lapses.insert((until, place.clone()));
        }
    }
}

impl Engine {
    /// The namespaces whose Leases are to be watched.
    #[must_use]
    pub fn namespaces_of_leases(&self) -> watch::Receiver<BTreeSet<Text>> {
        self.beats.namespaces.subscribe()
    }

    /// Does what is due.
    pub(super) fn beat(&mut self, now: Instant) {
        if self.rules.mode == Mode::DryRun {
            return;
        }
        let leads = self.fence.index().is_some() && self.strange.is_empty();
        if leads != self.beats.leads {
            self.beats.leads = leads;
            // Whoever wrote before may have made some, and ended others.
            self.beats.pulses.doubt(now);
            self.beats.pulses.reconsider(now);
            self.beats.list_at = None;
        }
        self.beats.look_at(now);
        let lapse = self.beats.lapses.first().map(|(at, _)| *at);
        if lapse.is_some_and(|at| at + LATE < now) {
            // It stood still, and renewals may wait to be heard.
            self.beats.leases.forgive(now);
            for place in self.beats.of.keys().cloned().collect::<Vec<_>>() {
                self.judge_beat(&place, now);
            }
        }
        while let Some((_, place)) = self
            .beats
            .lapses
            .first()
            .filter(|(at, _)| *at <= now)
            .cloned()
        {
            self.beats.lapses_at(&place, None);
            self.judge_beat(&place, now);
        }
        self.list_sessions(now);
        while self.beats.under_way < AT_ONCE
            && let Some(act) = self.beats.pulses.next(leads, now)
        {
            self.beats.under_way += 1;
            let fence = self
                .fence
                .index()
                .map(|index| (self.fence_key.clone(), index));
            // A renewal changes nothing that anybody could see.
            let changes = !matches!(act, Act::Renew(..));
            let id = changes.then(|| self.own.start());
            self.beats.changing += usize::from(changes);
            let client = self.consul.clone();
            self.jobs.spawn(async move {
                Done::Acted(Box::new(sessions::act(client, id, fence, act).await))
            });
        }
    }

    fn count_sessions(&self) {
        let alive = i64::try_from(self.beats.pulses.alive()).unwrap_or(i64::MAX);
        self.report.metrics.sessions.set(alive);
    }

    /// Sessions that are being created or ended: they are no writes that others wait for.
    pub(super) fn sessions_changing(&self) -> usize {
        self.beats.changing
    }

    fn list_sessions(&mut self, now: Instant) {
        if self.mirror.completeness() != Completeness::Complete || self.beats.listing {
            return;
        }
        // Once at the start, whatever is claimed: what is held, or cannot be told yet, lives on.
        let first = !self.beats.known;
        let outdated = self.rules.sessions.is_err();
        if self.beats.leads && !first && !outdated && !self.beats.pulses.wants_list() {
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
    pub(super) fn absorb_sessions(&mut self, read: Read) {
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
                tracing::warn!("cannot read the sessions of Consul: {error}");
                return;
            }
        };
        self.beats.known = true;
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
        self.count_sessions();
        let places: Vec<Place> = self.beats.of.keys().cloned().collect();
        for place in places {
            self.judge_beat(&place, now);
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

    /// What was found under the key of an instance: which of its checks follow sessions.
    pub(super) fn follow_beats(&mut self, key: &InstanceKey, finding: &Finding, now: Instant) {
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

    /// Judges by its Lease, as far as that is known, whether a check is to pass.
    fn judge_beat(&mut self, place: &Place, now: Instant) {
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
        let until = match &beat {
            Beat::Fresh(until) => Some(*until),
            Beat::Lapsed(_) | Beat::Unknown(_) => None,
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

    /// What a Lease says counts also for an instance that Consul has not.
    fn note_beat(&mut self, Beating { key, name, .. }: &Beating, beat: &Beat, now: Instant) {
        let verdicts = &mut self.rules.heartbeats;
        let known = verdicts.get(key, name).map(|check| check.status);
        let found = match beat {
            Beat::Fresh(_) => Some((Health::Passing, Text::default())),
            Beat::Lapsed(why) => Some((Health::Critical, why.clone())),
            Beat::Unknown(_) => None,
        };
        match found {
            Some((status, output)) if known != Some(status) => {
                verdicts.found(key.clone(), name.clone(), Check { status, output });
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

    fn trouble_of_beat(&self, place: &Place, beating: &Beating) -> Option<Trouble> {
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

    fn tell_beat(
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

    /// Why a check of an instance that follows a session is not as it should be, if one is not.
    pub(super) fn beat_trouble(&self, key: &InstanceKey) -> Option<Trouble> {
        if let (Err(why), true) = (&self.rules.sessions, self.beats.unsupported.contains(key)) {
            return Some(Trouble {
                reason: Reason::ConsulRefused,
                message: format!("health.checks: ttl: {why}"),
            });
        }
        let places = self.beats.of_instance.get(key)?;
        places
            .iter()
            .find_map(|place| self.beats.troubles.get(place))
            .cloned()
    }

    /// What was found under the key of a node: whether Consul is to notice there that Lictor is dead.
    pub(super) fn follow_node(&mut self, name: &NodeName, now: Instant) {
        let place = Place {
            node: name.clone(),
            check: ALIVE_CHECK_ID.into(),
        };
        let node = self
            .mirror
            .node(name)
            .filter(|node| self.mirror.is_our_node(name, node));
        let check = node
            .and_then(|node| node.alive_check())
            .map(|check| check.check.status);
        match self.rules.dead_after {
            Some(after) if node.is_some() && self.rules.sessions.is_ok() => {
                self.beats
                    .pulses
                    .follow(&place, (after, Want::Alive), check, now);
            }
            _ if node.is_none() => self.beats.pulses.drop(&place),
            _ => self.beats.pulses.forget(&place, check, now),
        }
    }

    /// A Lease was renewed, or how they are watched changed.
    pub(super) fn hear_leases(
        &mut self,
        namespace: &Text,
        event: WatchEvent<LeaseFacts>,
        at: Instant,
    ) {
        let leases = &mut self.beats.leases;
        let mut news = Vec::new();
        match event {
            WatchEvent::Listing => leases.listing(namespace),
            WatchEvent::Page(page) => {
                news.extend(page.iter().filter_map(|lease| leases.applied(lease, at)));
            }
            WatchEvent::Listed { .. } => news.extend(leases.listed(namespace, at)),
            WatchEvent::Applied(lease) => news.extend(leases.applied(&lease, at)),
            WatchEvent::Deleted { object, .. } => news.extend(leases.deleted(&object)),
            WatchEvent::Broken(broken) => {
                let denied = broken.kind == BrokenKind::Denied;
                news.extend(leases.broken(namespace, &broken.message, denied));
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

    /// A session was created, renewed or ended, or was not.
    pub(super) fn absorb_act(&mut self, acted: Acted) {
        let Acted {
            id,
            act,
            outcome,
            error,
            index,
            check,
            at,
        } = acted;
        if let Some(id) = id {
            self.own.finish(id);
            self.beats.changing -= 1;
        }
        self.beats.under_way -= 1;
        let changed = !matches!(outcome, Outcome::Renewed | Outcome::Failed);
        match (&act, &outcome) {
            (Act::Create(..), Outcome::Created(_)) => {
                if let Some(index) = index {
                    self.own.wrote(index);
                }
            }
            (Act::End(..), Outcome::Gone) => self.own.removed(at),
            _ => {}
        }
        let place = act.place().clone();
        if let Outcome::Created(_) | Outcome::Gone = outcome {
            self.see_check(&place, check);
        }
        self.beats
            .pulses
            .done(&act, outcome, at, rand::random::<f64>);
        if changed {
            self.count_sessions();
        }
        if error.is_none() {
            self.beats.refused.remove(&place);
        }
        let Some(beating) = self.beats.of.get(&place).map(|row| row.beating.clone()) else {
            if let Some(error) = error {
                tracing::warn!(node = %place.node, check = &*place.check, "its session: {error}");
            }
            return;
        };
        match error {
            None => self.judge_beat(&place, at),
            Some(error) if error.class() == ErrorClass::AccessDenied => {
                let message = format!(
                    "{}: Consul does not allow its session: give the token session:write on the node {}: {error}",
                    place.check, place.node
                );
                let trouble = Trouble {
                    reason: Reason::AccessDenied,
                    message,
                };
                self.beats.refused.insert(place.clone(), trouble);
                let trouble = self.trouble_of_beat(&place, &beating);
                self.tell_beat(&place, &beating.key, trouble, at);
            }
            Some(error) => {
                tracing::warn!(node = %place.node, check = &*place.check, "its session: {error}");
            }
        }
    }

    /// This is what a check is now.
    fn see_check(&mut self, place: &Place, check: Checked) {
        let check = match check {
            Checked::Is(check) => check,
            Checked::Gone => return,
            Checked::Unread => return self.doubt(KeyPlace::Node(place.node.clone())),
        };
        if *place.check == *ALIVE_CHECK_ID {
            let node = self.mirror.node(&place.node);
            if let Some(mut node) = node.filter(|node| node.alive_check().is_some()).cloned() {
                replace(&mut node.checks, ObservedCheck::of(&check, None));
                self.mirror.wrote_node(&place.node, node);
                self.follow_node(&place.node, Instant::now());
            }
            return;
        }
        let Some(key) = instance_of(place) else {
            return;
        };
        let there = self.mirror.instance(&key);
        if let Some(mut there) = there
            .filter(|there| there.check(&place.check).is_some())
            .cloned()
        {
            replace(&mut there.checks, ObservedCheck::of(&check, Some(&key.id)));
            self.mirror.wrote_instance(&key, Some(there));
            let due = Due {
                cause: Cause::Read,
                since: Instant::now(),
            };
            self.dirty.touch(Key::Instance(key), due);
        }
    }

    /// Consul may have lost its sessions.
    pub(super) fn doubt_sessions(&mut self, now: Instant) {
        self.beats.pulses.doubt(now);
    }
}

/// The instance whose check this is, by its id.
fn instance_of(place: &Place) -> Option<InstanceKey> {
    let (id, _) = place.check.rsplit_once(':')?;
    Some(InstanceKey {
        node: place.node.clone(),
        id: InstanceId::observed(id),
    })
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
