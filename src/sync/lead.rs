//! The engine's part in the election: when it campaigns, what it does when it wins or loses, and what a
//! process that stands by leaves alone.
//!
//! Who stands by plans nothing: it keeps what Kubernetes asks for and what Consul holds, and whatever
//! piled up is planned when it leads, with what was read anew by then.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::apply;
use super::claim::{ClaimError, Mandate, NameIs};
use super::contest::Contests;
use super::dirty::Cause;
use super::engine::Engine;
use super::pass::Pass;
use crate::leader::{Candidate, Election, Leadership, Tenure};
use crate::model::key::Key;
use crate::observed::mirror::Completeness;
use crate::plan::{self, Mode};

/// How long to wait before the name is looked at again after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// How often the epoch is taken back from another process within [`WINDOW`].
const RETAKES: usize = 2;
/// The time over which that is counted.
const WINDOW: Duration = Duration::from_mins(1);

/// Whether it was looked at whose the name of the cluster is, before this process campaigns for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// It is to be looked at, not before this time.
    Due(Option<Instant>),
    /// It is being looked at.
    UnderWay,
    Done,
}

/// How this process stands in the election.
#[derive(Debug)]
pub(super) struct Lead {
    pub(super) candidate: Candidate,
    /// The leadership that it has.
    tenure: Option<Tenure>,
    /// Whether another process led since this one planned last: what it knows of Consul is from before.
    pub(super) followed: bool,
    /// Who leads, as was told last.
    told: Option<String>,
    look: Look,
    /// Whether the name was this cluster's when it was looked at last.
    is_ours: bool,
    retakes: Retakes,
    /// Who took the epoch so often that it is not taken back at once.
    contested: Option<String>,
}

impl Lead {
    pub(super) fn new(candidate: Candidate) -> Self {
        // Without an election nothing changes.
        let alone = candidate.election() == Election::Off;
        let tenure = candidate.tenure(Instant::now()).filter(|_| alone);
        Self {
            candidate,
            tenure,
            followed: false,
            told: None,
            look: Look::Due(None),
            is_ours: false,
            retakes: Retakes::default(),
            contested: None,
        }
    }

    /// Whether it leads, as far as it was told.
    pub(super) fn leads(&self) -> bool {
        self.tenure.is_some()
    }

    /// Whether it was not elected, and so says nothing about objects.
    pub(super) fn is_silent(&self) -> bool {
        self.tenure.is_none() && self.candidate.election() != Election::Off
    }

    /// Whether another process leads, or did until a moment ago.
    pub(super) fn follows(&self) -> bool {
        self.tenure.is_none() && self.followed
    }

    /// What it knows of Consul is from its own time again.
    pub(super) fn caught_up(&mut self) {
        self.followed = false;
        self.contested = None;
    }

    /// When the name is to be looked at, and when the leadership lapses.
    pub(super) fn wakes_at(&self) -> [Option<Instant>; 2] {
        let look = match self.look {
            Look::Due(after) => after,
            Look::UnderWay | Look::Done => None,
        };
        [look, self.candidate.until()]
    }

    /// How it stands, for people; nothing where there is nothing to tell.
    pub(super) fn remark(&self) -> Option<String> {
        if let Some(holder) = &self.contested {
            return Some(format!(
                "leadership: {holder} takes the epoch again and again, though this process leads: is \
                 another one started with another --leader-election or --lease-namespace?"
            ));
        }
        if self.tenure.is_some() {
            return None;
        }
        Some(match self.candidate.leadership() {
            Leadership::StandsBy {
                leader: Some(leader),
            } => format!("leadership: standing by, {leader} leads"),
            _ => "leadership: nobody is known to lead yet".to_owned(),
        })
    }
}

/// How often the epoch was taken back of late. Pure: time is passed in.
#[derive(Debug, Default)]
struct Retakes(VecDeque<Instant>);

impl Retakes {
    /// From when on it may be taken back.
    fn from(&self, now: Instant) -> Instant {
        let first = self.0.front().filter(|_| self.0.len() >= RETAKES);
        first.map_or(now, |first| (*first + WINDOW).max(now))
    }

    fn took(&mut self, now: Instant) {
        self.0.push_back(now);
        while self.0.len() > RETAKES {
            self.0.pop_front();
        }
    }
}

impl Engine {
    /// What a write is made with, if this process may write.
    pub(super) fn pass(&self) -> Option<Pass> {
        let epoch = self.fence.index()?;
        let tenure = self.lead.tenure.clone()?;
        Some(Pass::new(self.fence_key.clone(), epoch, tenure))
    }

    /// What the epoch is claimed with, if this process leads.
    pub(super) fn mandate(&self, now: Instant) -> Option<Mandate> {
        let tenure = self.lead.tenure.clone()?;
        let candidate = &self.lead.candidate;
        let elected = candidate.election() != Election::Off;
        Some(Mandate {
            tenure,
            verifier: elected.then(|| candidate.verifier()),
            may_retake: self.lead.retakes.from(now) <= now,
        })
    }

    /// Takes in how the election stands, before anything else is done.
    pub(super) fn follow_election(&mut self, now: Instant) {
        self.lead.candidate.note();
        // A dry run by its flag takes no part; one by a key in Consul keeps what there is, so that writes go
        // on at once.
        if self.settings.flags().policy == Mode::DryRun {
            return;
        }
        let lapsed = |tenure: &Tenure| !tenure.holds(now);
        if self.lead.tenure.as_ref().is_some_and(lapsed) {
            self.lose();
        }
        if self.lead.tenure.is_none() {
            match self.lead.candidate.tenure(now) {
                Some(tenure) => self.win(tenure, now),
                None => self.stand_by(),
            }
        }
        let elected = self.lead.candidate.election() != Election::Off;
        if elected {
            self.look_at_name(now);
        }
        let able = self.known_once || self.is_ready();
        let welcome = self.lead.is_ours && self.fence.name_taken().is_none();
        let campaigns = able && welcome && self.strange.is_empty();
        // Whoever gives up what it has lets its writes end first.
        let writes = self.lead.leads() && (self.own.under_way() > 0 || self.entry_writes > 0);
        self.lead.candidate.campaign(campaigns || writes);
        self.report.follows = self.lead.follows();
        self.hush();
    }

    /// Sends Events only where this process is the one to tell.
    fn hush(&mut self) {
        let tells = self.lead.leads() || self.fence.name_taken().is_some();
        self.report.mute = !tells || self.rules.mode == Mode::DryRun;
    }

    fn win(&mut self, tenure: Tenure, now: Instant) {
        if self.lead.candidate.election() != Election::Off {
            let follows = self.lead.followed;
            tracing::info!(term = tenure.term(), follows, "leading");
        }
        self.lead.told = None;
        self.lead.tenure = Some(tenure);
        self.hush();
        let problems = self.index.all_problems().cloned().collect();
        self.report.tell_problems(problems, &self.index);
        self.tell_nodes_held();
        if !self.lead.followed {
            return;
        }
        // How things stood when this process led last is worth nothing.
        self.report.start_over();
        self.contests = Contests::default();
        self.alone.clear();
        self.denied.clear();
        self.shown = None;
        if self.mirror.completeness() == Completeness::Unknown {
            return;
        }
        let waiting = self.rules.guard.waiting();
        let is_gone = |key: &&Key| match key {
            Key::Instance(instance) => self.mirror.instance(instance).is_none(),
            key => plan::entries::owner_of(key, &self.mirror).is_none(),
        };
        let gone: Vec<Key> = waiting.filter(is_gone).cloned().collect();
        for key in gone {
            self.rules.guard.lapsed(&key);
        }
        // As after a start: whatever is found was not seen being changed by another hand.
        self.touch_all(Cause::Kubernetes, now);
        let keys = self.index.claimed_keys().collect::<Vec<_>>();
        for key in keys {
            self.report.expect(&key, &self.index);
        }
        let entries = self.index.claimed_entries().collect::<Vec<_>>();
        for key in entries {
            self.expect_entry(&key);
        }
        for owner in self.index.all_objects() {
            self.report.touch(owner);
        }
    }

    /// The leadership is over: the epoch that was had under it is never used again.
    fn lose(&mut self) {
        let term = self.lead.tenure.take().map_or(0, |tenure| tenure.term());
        self.lead.followed = true;
        self.lead.look = Look::Due(None);
        self.lead.contested = None;
        self.fence.lapse();
        self.held.clear();
        self.drifted.clear();
        self.rules.guard.take_back();
        self.report.fall_silent();
        match self.lead.candidate.leadership() {
            Leadership::StandsBy {
                leader: Some(leader),
            } => {
                tracing::warn!(term, %leader, "the leadership is lost to another process: standing by");
            }
            Leadership::StandsBy { leader: None } => {
                tracing::warn!(term, "the leadership is given up: standing by");
            }
            Leadership::Leads { .. } => {
                tracing::warn!(
                    term,
                    "the leadership lapsed, it could not be renewed in time"
                );
            }
        }
    }

    /// Plans nothing, and keeps nothing for later that is found again then.
    fn stand_by(&mut self) {
        let Leadership::StandsBy { leader } = self.lead.candidate.leadership() else {
            return;
        };
        if leader.is_some() {
            if self.lead.told != leader
                && let Some(leader) = &leader
            {
                tracing::info!(%leader, "standing by");
            }
            self.lead.told = leader;
            self.lead.followed = true;
        }
        if self.lead.followed && self.fence.name_taken().is_none() {
            self.dirty.clear();
            self.waiting.clear();
            self.report.let_go();
        }
    }

    /// Looks whether the name of the cluster is this one's, before it is campaigned for: whoever holds the
    /// leadership and may not write would keep others from writing.
    fn look_at_name(&mut self, now: Instant) {
        let due = matches!(self.lead.look, Look::Due(after) if after.is_none_or(|at| at <= now));
        if !due || self.lead.leads() || self.outage.limit(now, 1) == 0 {
            return;
        }
        let Some(claimant) = &self.claimant else {
            return;
        };
        self.lead.look = Look::UnderWay;
        let job = apply::look_at_name(self.consul.clone(), claimant.clone());
        self.jobs.spawn(job);
    }

    pub(super) fn absorb_name(&mut self, looked: Result<NameIs, ClaimError>) {
        let now = Instant::now();
        if self.lead.look == Look::UnderWay {
            self.lead.look = Look::Done;
        }
        match looked {
            Ok(name) => {
                self.no_epoch = None;
                self.lead.is_ours = true;
                self.fence.name_is_free();
                self.answered();
                if name == NameIs::Ours {
                    self.name_moved();
                }
            }
            Err(ClaimError::Refused(why)) => {
                self.no_epoch = None;
                self.lead.is_ours = false;
                if self.fence.refusal() != Some(&why.to_string()) {
                    tracing::error!("{why}");
                }
                self.fence.refused(&why);
            }
            Err(error @ ClaimError::Unreadable { .. }) => {
                self.lead.look = Look::Due(Some(now + RETRY));
                self.unreadable_epoch(error.to_string());
            }
            Err(error) => {
                self.lead.look = Look::Due(Some(now + RETRY));
                self.failed(&format!("cannot take the epoch: {error}"));
            }
        }
    }

    /// The key of the epoch changed: who stands by looks whose the name is now.
    pub(super) fn epoch_seen(&mut self, index: Option<u64>) {
        self.fence.seen(index);
        if !self.lead.leads() {
            self.lead.look = Look::Due(None);
        }
    }

    /// Another process has the epoch, though this one leads, and it was taken back often enough.
    pub(super) fn epoch_contested(&mut self, holder: String, now: Instant) {
        let after = self.lead.retakes.from(now);
        self.fence.wait_until(after);
        self.lead.contested = Some(holder);
        if let Some(remark) = self.lead.remark() {
            tracing::error!("{remark}");
        }
    }

    /// The epoch was taken back from another process.
    pub(super) fn retook(&mut self, now: Instant) {
        tracing::warn!("another process took the epoch, though this one leads: it is taken back");
        self.lead.retakes.took(now);
    }

    /// The name of the cluster is this one's: `--take-over` did its part, whichever process it was. A name
    /// moves once, and one that is taken away later stays away.
    pub(super) fn name_moved(&mut self) {
        if let Some(claimant) = &mut self.claimant {
            claimant.take_over = None;
        }
    }

    /// A process that follows keeps in mind how what is still there lost its claim, and nothing else.
    pub(super) fn forget_what_went(&mut self) {
        if self.lead.follows() {
            let mirror = &self.mirror;
            self.index
                .forget_absences(|key| mirror.instance(key).is_none());
            self.index
                .forget_entries(|key| plan::entries::owner_of(key, mirror).is_none());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_taken_back_twice_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut retakes = Retakes::default();
        for seconds in [0, 10] {
            assert_eq!(retakes.from(at(seconds)), at(seconds));
            retakes.took(at(seconds));
        }
        assert_eq!(retakes.from(at(20)), at(60));
        assert_eq!(retakes.from(at(61)), at(61));
        retakes.took(at(61));
        assert_eq!(retakes.from(at(62)), at(70));
    }
}
