//! The guard against mass removal: found absences are judged together, not one by one.
//!
//! A view of Kubernetes that is wrong looks like a cluster in which much was deleted at once: another
//! cluster behind the address, an empty etcd, a CRD made anew, a narrowed role. What this process saw
//! being deleted needs no guard; what it only finds missing does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::gate::Hold;
use crate::model::key::Key;
use crate::model::kind::Kind;

/// The time over which found absences are counted.
pub const WINDOW: Duration = Duration::from_mins(10);
/// Lists that must agree before all of a few entries go, or anything of an intention: without one,
/// others than before may connect. So many also where a kind of ours was not served, or went with its
/// CRD, and may be about to come back object by object.
const LISTS_FOR_THE_LAST: u32 = 3;

/// From how many found absences on nothing of it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `--max-delete-percent`: of what we own.
    pub percent: u8,
    /// `--max-delete-floor`: so many may always go, whatever the share.
    pub floor: usize,
    /// `--delete-confirm`: complete lists that must show an absence.
    pub confirm: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            percent: 30,
            floor: 10,
            confirm: 1,
        }
    }
}

/// What was said to the found absences that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// They may go once enough lists agree.
    Pass,
    /// All that we own would go, but it is not much; or it is what is left of what was held.
    Confirm,
    /// They are held until someone releases them, or the objects come back.
    Hold { would_go: usize, of: usize },
}

/// Why something is to go that nobody was seen deleting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    /// Nothing claims it, as a list showed.
    Missing,
    /// What claims it may not. One event of a watch says so, and no list yet.
    Refused,
}

/// What waits.
#[derive(Debug)]
struct Waiting {
    case: Case,
    /// The number of lists before it was found.
    since: Lists,
    /// Whether a round of lists was under way then, which may have listed before.
    late: bool,
    /// When it was judged for the first time.
    at: Option<Instant>,
}

/// Lists that were asked for and are complete, by kind.
type Lists = [u32; Kind::ALL.len()];

/// Judges found absences.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says another thing, and none follows from the others"
)]
pub struct Guard {
    limits: Limits,
    /// What was removed, and is not there again, by when.
    removed: BTreeMap<Key, Instant>,
    /// The found absences that wait.
    waiting: BTreeMap<Key, Waiting>,
    /// Those that may go.
    released: BTreeMap<Key, Case>,
    /// Lists that were asked for and are complete.
    lists: Lists,
    /// Whether a round of lists is under way.
    listing: bool,
    /// How many there were of a kind when its CRD was last missing, or was made anew.
    doubted: [Option<u32>; Kind::ALL.len()],
    verdict: Verdict,
    /// Whether something changed since the last verdict.
    open: bool,
    /// Whether objects came back since the last verdict.
    shrunk: bool,
    /// Whether what waits is the rest of what was held, most of which came back.
    recovering: bool,
    /// How many more are likely to follow what waits.
    soon: usize,
}

impl Guard {
    /// A guard that has seen nothing yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            removed: BTreeMap::new(),
            waiting: BTreeMap::new(),
            released: BTreeMap::new(),
            lists: Lists::default(),
            listing: false,
            doubted: Default::default(),
            verdict: Verdict::Pass,
            open: false,
            shrunk: false,
            recovering: false,
            soon: 0,
        }
    }

    /// From now on these limits hold: also for what waits. What is held stays so.
    pub fn set_limits(&mut self, limits: Limits) {
        self.open |= self.limits != limits && !self.waiting.is_empty();
        self.limits = limits;
    }

    /// Whether a found absence may be removed now.
    pub fn admits(&self, key: &Key) -> Result<(), Hold> {
        if self.released.contains_key(key) {
            return Ok(());
        }
        let Some(waiting) = self.waiting.get(key) else {
            return Err(Hold::Unjudged);
        };
        Err(match self.verdict {
            _ if self.open => Hold::Unjudged,
            Verdict::Hold { would_go, of } => Hold::TooMany { would_go, of },
            Verdict::Pass | Verdict::Confirm => Hold::Unconfirmed {
                lists: self.agree(key, waiting),
                needed: self.needed(key, waiting),
            },
        })
    }

    /// Since when a found absence waits, where it was judged already.
    #[must_use]
    pub fn waits_since(&self, key: &Key) -> Option<Instant> {
        self.waiting.get(key)?.at
    }

    /// A key is found to be claimed by nothing.
    pub fn found(&mut self, key: &Key) {
        if !self.released.contains_key(key) && !self.waiting.contains_key(key) {
            self.restored(key);
            self.wait(key.clone(), Case::Missing);
        }
    }

    /// What claims a key is found not to be allowed.
    pub fn refused(&mut self, key: &Key) {
        let waits = |it: &Waiting| it.case == Case::Refused;
        if !self.released.contains_key(key) && !self.waiting.get(key).is_some_and(waits) {
            self.restored(key);
            self.wait(key.clone(), Case::Refused);
        }
    }

    fn wait(&mut self, key: Key, case: Case) {
        let waiting = Waiting {
            case,
            since: self.lists,
            late: case == Case::Refused && self.listing,
            at: None,
        };
        self.waiting.insert(key, waiting);
        self.open = true;
    }

    /// A key is claimed again: its object came back.
    pub fn returned(&mut self, key: &Key) {
        self.shrunk |= self.dismiss(key);
    }

    /// A key is no found absence, or not any more: it was seen going, is gone from Consul, or is
    /// another's. That says nothing about the view of Kubernetes in which others are missing, and
    /// releases none of them.
    pub fn lapsed(&mut self, key: &Key) {
        self.dismiss(key);
    }

    /// Whether it waited.
    fn dismiss(&mut self, key: &Key) -> bool {
        self.released.remove(key);
        let waited = self.waiting.remove(key).is_some();
        self.open |= waited;
        self.rest();
        waited
    }

    /// So many more are likely to follow what waits, and are judged with it: what fails together does not
    /// fail in the same moment. That there are fewer than before is a return of objects, or is not.
    pub fn expect(&mut self, soon: usize, returns: impl FnOnce(&Self) -> bool) {
        if soon == self.soon {
            return;
        }
        self.shrunk |= soon < self.soon && returns(self);
        self.soon = soon;
        self.open |= !self.waiting.is_empty();
    }

    /// A found absence was removed.
    pub fn removed(&mut self, key: &Key, now: Instant) {
        self.released.remove(key);
        self.removed.insert(key.clone(), now);
    }

    /// Another process removes what may go from now on: what is still there later is judged anew.
    pub fn take_back(&mut self) {
        for (key, case) in std::mem::take(&mut self.released) {
            self.wait(key, case);
        }
    }

    /// What was removed is there again: one that comes and goes is missing once, however often it went.
    pub fn restored(&mut self, key: &Key) {
        self.removed.remove(key);
    }

    /// A round of lists begins.
    pub fn listing(&mut self) {
        self.listing = true;
    }

    /// A round of lists that was asked for is complete, in which these kinds were listed.
    pub fn listed(&mut self, kinds: &BTreeSet<Kind>) {
        for kind in kinds {
            self.lists[*kind as usize] += 1;
        }
        self.listing = false;
        for waiting in self.waiting.values_mut().filter(|it| it.late) {
            waiting.since = self.lists;
            waiting.late = false;
        }
        self.open = true;
    }

    /// The CRD of a kind is missing, or its objects went with it: what of the kind is found missing until
    /// it was listed once more was not deleted by anybody.
    pub fn doubt(&mut self, kind: Kind) {
        self.doubted[kind as usize] = Some(self.lists[kind as usize]);
        self.open = true;
    }

    /// Whether something changed since the last verdict.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether more lists are needed to judge, and help, where these kinds can be listed.
    #[must_use]
    pub fn wants_lists(&self, kinds: &BTreeSet<Kind>) -> bool {
        let helps =
            |(key, of): (&Key, &Waiting)| judged_by(key, of.case).all(|kind| kinds.contains(&kind));
        !matches!(self.verdict, Verdict::Hold { .. })
            && self
                .waiting
                .iter()
                .any(|waiting| helps(waiting) && !self.is_confirmed(waiting))
    }

    /// How many lists show it: so many of each kind that has a say in it. A kind that cannot be listed
    /// says nothing of what it has nothing to do with.
    fn agree(&self, key: &Key, Waiting { case, since, .. }: &Waiting) -> u32 {
        let of = |kind: Kind| {
            let doubted = self.doubted[kind as usize].unwrap_or_default();
            self.lists[kind as usize] - since[kind as usize].max(doubted)
        };
        // What is missing was found so by a list.
        let before = u32::from(*case == Case::Missing);
        before + judged_by(key, *case).map(of).min().unwrap_or_default()
    }

    /// Lists that must show it.
    fn needed(&self, key: &Key, Waiting { case, since, .. }: &Waiting) -> u32 {
        let is_intention = matches!(key, Key::Intentions(_) | Key::Source(_));
        let is_doubted = judged_by(key, *case).any(|kind| {
            let doubted = self.doubted[kind as usize];
            doubted.is_some_and(|doubted| since[kind as usize] <= doubted)
        });
        if self.verdict == Verdict::Confirm || is_intention || is_doubted {
            self.limits.confirm.max(LISTS_FOR_THE_LAST)
        } else {
            self.limits.confirm
        }
    }

    fn is_confirmed(&self, (key, waiting): (&Key, &Waiting)) -> bool {
        self.agree(key, waiting) >= self.needed(key, waiting)
    }

    /// Judges what waits, if something changed, with `owned` entries in Consul. Returns the keys that
    /// may go from now on.
    ///
    /// What is held stays held, however much time passes and however many lists agree. If so much of
    /// it comes back that the rest is within the limits, the rest goes once three lists showed that no
    /// more does.
    pub fn judge(&mut self, owned: usize, now: Instant) -> Vec<Key> {
        if !std::mem::take(&mut self.open) {
            return Vec::new();
        }
        for waiting in self.waiting.values_mut() {
            waiting.at.get_or_insert(now);
        }
        let shrunk = std::mem::take(&mut self.shrunk);
        let was_held = self.held().is_some();
        let verdict = self.assess(owned, now);
        if matches!(verdict, Verdict::Hold { .. }) {
            self.verdict = verdict;
            self.recovering = false;
            return Vec::new();
        }
        if was_held && !shrunk {
            return Vec::new();
        }
        // Objects come back one by one: that the rest is few by now does not mean that it stays away.
        self.recovering = (was_held || self.recovering) && !self.waiting.is_empty();
        self.verdict = verdict;
        if self.recovering {
            self.verdict = Verdict::Confirm;
            if shrunk {
                let lists = self.lists;
                self.waiting.values_mut().for_each(|it| it.since = lists);
            }
        }
        let agreed: Vec<Key> = self
            .waiting
            .iter()
            .filter(|waiting| self.is_confirmed(*waiting))
            .map(|(key, _)| key.clone())
            .collect();
        self.let_go(&agreed);
        self.recovering &= !self.waiting.is_empty();
        agreed
    }

    fn assess(&mut self, owned: usize, now: Instant) -> Verdict {
        self.removed
            .retain(|_, at| now.duration_since(*at) < WINDOW);
        let before = self.removed.len();
        let candidates = self.waiting.len() + self.released.len() + self.soon;
        let (would_go, of) = (before + candidates, before + owned);
        let share_exceeded = would_go * 100 > usize::from(self.limits.percent) * of;
        let all = candidates >= owned && would_go > 1;
        if (share_exceeded || all) && would_go > self.limits.floor {
            return Verdict::Hold { would_go, of };
        }
        if all {
            return Verdict::Confirm;
        }
        Verdict::Pass
    }

    /// Someone who may releases all that is held. Returns it.
    pub fn release(&mut self) -> Vec<Key> {
        let keys = self.waiting.keys().cloned().collect();
        self.release_these(&keys)
    }

    /// Someone who may releases these of what waits. Returns those that did; whatever else waits stays as
    /// it is.
    pub fn release_these(&mut self, keys: &BTreeSet<Key>) -> Vec<Key> {
        let waits = |key: &&Key| self.waiting.contains_key(*key);
        let keys: Vec<Key> = keys.iter().filter(waits).cloned().collect();
        self.let_go(&keys);
        self.rest();
        keys
    }

    /// Where nothing waits any more, what comes next is a new case.
    fn rest(&mut self) {
        if self.waiting.is_empty() {
            self.verdict = Verdict::Pass;
            self.recovering = false;
        }
    }

    fn let_go(&mut self, keys: &[Key]) {
        for key in keys {
            if let Some(waiting) = self.waiting.remove(key) {
                self.released.insert(key.clone(), waiting.case);
            }
        }
    }

    /// What waits or is held.
    pub fn waiting(&self) -> impl Iterator<Item = &Key> {
        self.waiting.keys()
    }

    /// How many would go of how many, while so many are held.
    #[must_use]
    pub fn held(&self) -> Option<(usize, usize)> {
        match self.verdict {
            Verdict::Hold { would_go, of } if !self.waiting.is_empty() => Some((would_go, of)),
            _ => None,
        }
    }
}

/// The kinds whose lists tell whether it is to go.
fn judged_by(key: &Key, case: Case) -> impl Iterator<Item = Kind> {
    let judges: &[Kind] = match case {
        Case::Missing => &[],
        Case::Refused => &[Kind::Namespace, Kind::Policy],
    };
    key.claimed_by().iter().chain(judges).copied()
}

#[cfg(test)]
mod tests;
