//! Checks that follow sessions: whose heart beats, and what is done about it.

mod acts;
mod judge;
mod list;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::apply::Done;
use super::engine::Engine;
use super::outage::Outage;
use super::sessions;
use crate::heartbeat::leases::Leases;
use crate::heartbeat::pulses::{Act, Place, Pulses, Want};
use crate::k8s::LeaseNamespaces;
use crate::model::entry::{ALIVE_CHECK_ID, Health};
use crate::model::key::InstanceKey;
use crate::model::names::{InstanceId, NodeName};
use crate::model::text::Text;
use crate::plan::Mode;
use crate::status::board::{Reason, Trouble};

/// How often to look whether Consul is new enough by now.
const VERSION_PAUSE: Duration = Duration::from_mins(1);
/// How long the Leases of a namespace are watched after nobody looks at one any more.
const LINGER: Duration = Duration::from_mins(1);
/// A list of Leases is so young that what it shows counts for an instance that is to go.
const LISTED_LATELY: Duration = Duration::from_secs(10);
/// Who judges a lapse later than this stood still.
const LATE: Duration = Duration::from_secs(2);
/// Calls about sessions under way at once.
const AT_ONCE: usize = 32;
/// How often a process that does not write looks which sessions there are: less than the shortest of them lives.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long after a list the next one may begin.
const LIST_PAUSE: Duration = Duration::from_secs(2);
/// How long after this process began to write sessions are listed once more: whoever wrote before may have read
/// the epoch before that and created one since. Longer than a write takes.
const LIST_LATE: Duration = Duration::from_secs(30);
/// The least time between two lines about calls that failed.
const TELL_PAUSE: Duration = Duration::from_secs(10);
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
    looks_in: BTreeMap<Text, Looked>,
    watched: watch::Sender<LeaseNamespaces>,
    /// What is told of them.
    troubles: HashMap<Place, Trouble>,
    /// What Consul refused last.
    refused: HashMap<Place, Trouble>,
    /// The nodes on which Consul does not allow the session of Lictor's own check, and its words.
    denied: BTreeMap<NodeName, String>,
    /// Instances with checks that Consul is too old for.
    unsupported: HashSet<InstanceKey>,
    under_way: usize,
    /// Of these, those that are no renewals.
    changing: usize,
    /// Whether sessions were listed since the start.
    known: bool,
    listing: bool,
    list_at: Option<Instant>,
    /// When they are to be listed whatever is known of them.
    list_again_at: Option<Instant>,
    leads: bool,
    /// When it was told last that a call failed, and how many that failed since were not.
    told_at: Option<Instant>,
    /// That sessions cannot be read.
    unlisted: Outage,
    untold: usize,
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

/// A namespace in which checks look at Leases.
#[derive(Debug, Default)]
struct Looked {
    /// How many do.
    checks: usize,
    /// Until when it is watched where none does any more: one that comes back at once, as when a service is
    /// renamed, finds it as it was.
    until: Option<Instant>,
    /// How often it was asked to list its Leases anew, and whether it was since the last list began.
    lists: u64,
    asked: bool,
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
            watched: watch::Sender::new(LeaseNamespaces::new()),
            troubles: HashMap::new(),
            refused: HashMap::new(),
            denied: BTreeMap::new(),
            unsupported: HashSet::new(),
            under_way: 0,
            changing: 0,
            known: false,
            listing: false,
            list_at: None,
            list_again_at: None,
            leads: false,
            told_at: None,
            unlisted: Outage::default(),
            untold: 0,
        }
    }

    /// When there is something to do.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let lapse = self.lapses.first().map(|(at, _)| *at);
        let pulse = self.pulses.wake_at().filter(|_| self.under_way < AT_ONCE);
        let list = self.list_at.or(self.list_again_at);
        let list = list.filter(|_| !self.listing);
        let leave = self.looks_in.values().filter_map(|it| it.until).min();
        [lapse, pulse, list, leave].into_iter().flatten().min()
    }

    fn look_at(&mut self, now: Instant) {
        for looked in self.looks_in.values_mut() {
            looked.until = match looked.checks {
                0 => Some(looked.until.unwrap_or(now + LINGER)),
                _ => None,
            };
        }
        self.looks_in
            .retain(|_, looked| looked.until.is_none_or(|until| now < until));
        let is_told = {
            let told = self.watched.borrow();
            told.iter()
                .eq(self.looks_in.iter().map(|(name, it)| (name, &it.lists)))
        };
        if !is_told {
            self.leases.look_at(&self.looks_in.keys().collect());
            let watched = self.looks_in.iter();
            let watched = watched.map(|(name, it)| (name.clone(), it.lists));
            self.watched.send_replace(watched.collect());
        }
    }

    /// Asks for a list of the Leases of a namespace that begins after now.
    fn look_again(&mut self, namespace: &Text) {
        if self.leases.is_listing(namespace) {
            // It is judged again after that.
            return;
        }
        if let Some(looked) = self.looks_in.get_mut(namespace)
            && !std::mem::replace(&mut looked.asked, true)
        {
            looked.lists += 1;
        }
    }

    /// A list begins, or none can: another may be asked for.
    fn asked(&mut self, namespace: &Text) {
        if let Some(looked) = self.looks_in.get_mut(namespace) {
            looked.asked = false;
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
            .checks += 1;
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
        if let Some(looked) = self.looks_in.get_mut(&beating.namespace) {
            looked.checks -= 1;
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
    pub fn lease_namespaces(&self) -> watch::Receiver<LeaseNamespaces> {
        self.beats.watched.subscribe()
    }

    /// Does what is due.
    pub(super) fn beat(&mut self, now: Instant) {
        // Where a key in Consul holds it still, what there is goes on being renewed: else it would turn
        // critical.
        if self.settings.flags().policy == Mode::DryRun {
            return;
        }
        let rehearses = self.rules.mode == Mode::DryRun;
        let leads = self.fence.index().is_some() && self.strange.is_empty() && !rehearses;
        if leads != self.beats.leads {
            self.beats.leads = leads;
            // Whoever may not write does not try again.
            self.beats.denied.clear();
            // Whoever wrote before may have made some, and ended others.
            self.beats.pulses.doubt(now);
            self.beats.pulses.reconsider(now);
            self.beats.list_at = None;
            self.beats.list_again_at = leads.then_some(now + LIST_LATE);
        }
        let lapse = self.beats.lapses.first().map(|(at, _)| *at);
        if lapse.is_some_and(|at| at + LATE < now) {
            // It stood still, and renewals may wait to be heard.
            self.beats.leases.forgive(now);
            self.judge_all_beats(now);
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
        while self.beats.under_way < AT_ONCE {
            // Renewals change nothing, and are held up by nothing.
            let changes = leads.then(|| self.pace.begins_at().unwrap_or(now));
            let Some(begun) = self.beats.pulses.next(changes, now) else {
                break;
            };
            self.beats.under_way += 1;
            let pass = self.pass();
            // A renewal changes nothing that anybody could see.
            let changes = !matches!(begun.act, Act::Renew(..));
            let id = changes.then(|| self.own.start());
            if changes {
                self.beats.changing += 1;
                self.pace.begun(1, now);
            }
            let client = self.consul.clone();
            self.jobs.spawn(async move {
                Done::Acted(Box::new(sessions::act(client, id, pass, begun).await))
            });
        }
        self.beats.look_at(now);
    }

    fn count_sessions(&self) {
        let alive = i64::try_from(self.beats.pulses.alive()).unwrap_or(i64::MAX);
        self.report.metrics.sessions.set(alive);
    }

    /// Sessions that are being created or ended: they are no writes that others wait for.
    pub(super) fn sessions_changing(&self) -> usize {
        self.beats.changing
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
        if node.is_none() || self.rules.dead_after.is_none() {
            self.beats.denied.remove(name);
        }
        match self.rules.dead_after {
            Some(after) if node.is_some() && self.rules.sessions.is_ok() => {
                self.beats
                    .pulses
                    .follow(&place, (after, Want::Alive), check, now);
            }
            _ if self.mirror.node(name).is_none() => self.beats.pulses.drop(&place),
            _ if node.is_none() => self.beats.pulses.leave(&place, now),
            _ => self.beats.pulses.forget(&place, check, now),
        }
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
