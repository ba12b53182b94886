//! The fence: every transaction holds only while nobody else took the epoch. Pure: time is passed in.
//!
//! An epoch that failed once is never used again, not even where its index would be valid once more,
//! as after the restore of a snapshot.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::time::Duration;

use tokio::time::Instant;

use crate::consul::TxnFailure;
use crate::model::epoch::{ClusterNameTaken, Epoch, EpochKind};
use crate::model::names::ClusterName;

/// How long to wait before the epoch is claimed again after a failed attempt.
const RETRY: Duration = Duration::from_secs(2);

/// Whether this process may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fence {
    /// The epoch is to be claimed, not before this time.
    Wanted {
        /// Not before.
        after: Option<Instant>,
        /// The epoch that this process had.
        last: Option<Last>,
    },
    /// It is being claimed.
    Claiming {
        /// The epoch that this process had.
        last: Option<Last>,
        /// What the key was seen to hold since the claim began.
        seen: Option<Sighting>,
        /// Whether the leadership that it is claimed under is over: then it is worth nothing.
        void: bool,
    },
    /// It is ours, with this index.
    Held(u64),
    /// Another process took it: this one stands by for good.
    Replaced(String),
    /// The name belongs to another cluster, or another scope of this one, until its epoch changes.
    NameTaken(String),
}

/// What the key of the epoch was seen to hold: its index, or nothing.
type Sighting = Option<u64>;

/// An epoch that this process had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// Its index.
    pub index: u64,
    /// Whether a transaction failed at it; else it is only in doubt.
    pub failed: bool,
    /// Whether the leadership is over that it was had under: then it is no wonder that another process
    /// has it.
    pub over: bool,
}

impl Last {
    /// One whose leadership is over, and that nothing failed at.
    fn lapsed(index: u64) -> Self {
        Self {
            index,
            failed: false,
            over: true,
        }
    }
}

/// The epoch as Consul has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The value.
    pub epoch: Epoch,
    /// The key's `ModifyIndex`.
    pub index: u64,
}

/// What to do to have the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nothing: it is ours and unharmed.
    Keep,
    /// Write this over what stands there.
    Write(Epoch),
}

/// Why the epoch may not be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name is not ours.
    #[error("ClusterNameTaken: {0}")]
    NameTaken(#[from] ClusterNameTaken),
    /// Another process of this cluster took it after us.
    #[error(
        "replaced: {holder} took the epoch and writes for this cluster since; this process stands by: \
         restart it if that is wrong"
    )]
    Replaced {
        /// Who.
        holder: String,
    },
}

/// Decides whether this process may have the epoch.
///
/// At its start it takes the epoch from any other of its cluster. One that had it takes it again
/// where Consul lost it (the key is missing, or has a lower index: wiped or restored), or where
/// `lictor gc` holds it, and else stands by.
pub fn decide(
    ours: Epoch,
    there: Option<&Standing>,
    last: Option<Last>,
    cluster: &ClusterName,
    take_over: Option<&str>,
) -> Result<Claim, Refusal> {
    if let (Some(there), Some(last)) = (there, last) {
        let is_ours = there.epoch.holder == ours.holder;
        if is_ours && there.index == last.index && !last.failed && !last.over {
            return Ok(Claim::Keep);
        }
        let newer = there.index > last.index;
        if newer && !is_ours && there.epoch.kind == EpochKind::Run && !last.over {
            let holder = there.epoch.holder.clone();
            return Err(Refusal::Replaced { holder });
        }
    }
    let before = there.map(|there| &there.epoch);
    Ok(Claim::Write(ours.succeed(before, cluster, take_over)?))
}

impl Fence {
    /// The fence of a process that starts.
    #[must_use]
    pub fn new() -> Self {
        Self::Wanted {
            after: None,
            last: None,
        }
    }

    /// The index that transactions are fenced with, if this process may write.
    #[must_use]
    pub fn index(&self) -> Option<u64> {
        match self {
            Self::Held(index) => Some(*index),
            _ => None,
        }
    }

    /// Why this process may not have the epoch, if it may not.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Replaced(why) | Self::NameTaken(why) => Some(why),
            _ => None,
        }
    }

    /// Whether another process took over for good.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        matches!(self, Self::Replaced(_))
    }

    /// Why the name of the cluster is not ours, if it is not.
    #[must_use]
    pub fn name_taken(&self) -> Option<&str> {
        match self {
            Self::NameTaken(why) => Some(why),
            _ => None,
        }
    }

    /// Begins a claim, if one is due: the epoch that this process had before.
    pub fn begin(&mut self, now: Instant) -> Option<Option<Last>> {
        let Self::Wanted { after, last } = self else {
            return None;
        };
        if after.is_some_and(|after| after > now) {
            return None;
        }
        let last = *last;
        *self = Self::Claiming {
            last,
            seen: None,
            void: false,
        };
        Some(last)
    }

    /// When it is to be claimed.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        match self {
            Self::Wanted { after, .. } => *after,
            _ => None,
        }
    }

    /// A claim could not be carried out: it is tried again.
    pub fn claim_failed(&mut self, now: Instant) {
        if let Self::Claiming { last, .. } = *self {
            let after = Some(now + RETRY);
            *self = Self::Wanted { after, last };
        }
    }

    /// It is not claimed before this time.
    pub fn wait_until(&mut self, at: Instant) {
        if let Self::Claiming { last, .. } = *self {
            let after = Some(at);
            *self = Self::Wanted { after, last };
        }
    }

    /// The leadership is over that the epoch was had, or is being claimed, under.
    pub fn lapse(&mut self) {
        let over = |last: Last| Last { over: true, ..last };
        match self {
            Self::Held(index) => {
                let last = Some(Last::lapsed(*index));
                *self = Self::Wanted { after: None, last };
            }
            Self::Claiming { last, void, .. } => {
                *last = last.map(over);
                *void = true;
            }
            Self::Wanted { last, after } => {
                *last = last.map(over);
                *after = None;
            }
            Self::Replaced(_) | Self::NameTaken(_) => {}
        }
    }

    /// A look shows that the name is ours, or to be had: what was learnt before, late, is not true any more.
    pub fn name_is_free(&mut self) {
        if matches!(self, Self::NameTaken(_)) {
            *self = Self::new();
        }
    }

    /// A claim was refused.
    pub fn refused(&mut self, why: &Refusal) {
        let text = why.to_string();
        *self = match why {
            Refusal::NameTaken(_) => Self::NameTaken(text),
            Refusal::Replaced { .. } => Self::Replaced(text),
        };
    }

    /// A transaction that was fenced with `index` failed at the fence.
    pub fn failed(&mut self, index: u64, reason: TxnFailure) {
        // The right to read it may be missing, which says nothing about the epoch; and a transaction
        // of an earlier epoch of ours says nothing about this one.
        if self.index() == Some(index) && reason != TxnFailure::PermissionDenied {
            // Where the leadership was over nothing was sent.
            let over = reason == TxnFailure::Lapsed;
            let last = Some(Last {
                index,
                failed: !over,
                over,
            });
            *self = Self::Wanted { after: None, last };
        }
    }

    /// The claim was carried out: the epoch is ours with this index, unless the leadership was lost
    /// meanwhile. Returns whether it is.
    pub fn claimed(&mut self, index: u64) -> bool {
        let sighting = match self {
            Self::Claiming { void: true, .. } => {
                let last = Some(Last::lapsed(index));
                *self = Self::Wanted { after: None, last };
                return false;
            }
            Self::Claiming { seen, .. } => *seen,
            _ => None,
        };
        *self = Self::Held(index);
        // The key does not change again by itself: what was seen meanwhile is not told twice.
        if let Some(seen) = sighting {
            self.seen(seen);
        }
        true
    }

    /// The key was seen to have this index; `None` if it is not there.
    pub fn seen(&mut self, now: Sighting) {
        match self {
            // What was seen may be older than our claim: it is only doubted.
            Self::Held(index) if now != Some(*index) => {
                let last = Some(Last {
                    index: *index,
                    failed: false,
                    over: false,
                });
                *self = Self::Wanted { after: None, last };
            }
            Self::Claiming { seen, .. } => *seen = Some(now),
            Self::NameTaken(_) => *self = Self::new(),
            // What kept it from being claimed may be over.
            Self::Wanted { after, .. } => *after = None,
            _ => {}
        }
    }
}

impl Default for Fence {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::epoch::fixtures;

    fn epoch(holder: &str, kind: EpochKind) -> Epoch {
        Epoch {
            holder: holder.to_owned(),
            kind,
            term: 4,
            ..fixtures::epoch("uid", &[])
        }
    }

    fn decided(
        holder: &str,
        kind: EpochKind,
        index: u64,
        last: Option<Last>,
    ) -> Result<Claim, Refusal> {
        let there = Standing {
            epoch: epoch(holder, kind),
            index,
        };
        let ours = epoch("we", EpochKind::Run);
        decide(ours, Some(&there), last, &"a".parse().unwrap(), None)
    }

    fn had(index: u64, failed: bool) -> Last {
        Last {
            index,
            failed,
            over: false,
        }
    }

    #[test]
    fn a_process_that_starts_takes_the_epoch_from_its_predecessor() {
        let Ok(Claim::Write(next)) = decided("they", EpochKind::Run, 12, None) else {
            panic!("not taken");
        };
        assert_eq!((&*next.holder, next.term), ("we", 5));
        let ours = epoch("we", EpochKind::Run);
        let none = decide(ours.clone(), None, None, &"a".parse().unwrap(), None);
        assert_eq!(none, Ok(Claim::Write(ours)));
    }

    #[test]
    fn one_that_was_replaced_is_refused_for_good() {
        for failed in [true, false] {
            let refused = decided("they", EpochKind::Run, 12, Some(had(9, failed)));
            let Err(why @ Refusal::Replaced { .. }) = refused else {
                panic!("{refused:?}");
            };
            let mut fence = Fence::new();
            fence.begin(Instant::now());
            fence.refused(&why);
            assert!(fence.refusal().unwrap().contains("they"));
            fence.seen(None);
            assert_eq!(fence.begin(Instant::now()), None);
        }
    }

    #[test]
    fn a_new_leadership_takes_it_from_whoever_led_meanwhile() {
        let over = Last {
            over: true,
            ..had(9, true)
        };
        let decided = decided("they", EpochKind::Run, 12, Some(over));
        assert!(matches!(decided, Ok(Claim::Write(_))), "{decided:?}");
    }

    #[test]
    fn an_epoch_whose_leadership_lapsed_is_never_used_again() {
        let now = Instant::now();
        let over = |index| Last {
            over: true,
            ..had(index, false)
        };
        let mut fence = Fence::Held(9);
        fence.lapse();
        assert_eq!(fence.index(), None);
        // What is under way comes too late, whether it was carried out or not.
        assert_eq!(fence.begin(now), Some(Some(over(9))));
        fence.lapse();
        assert!(!fence.claimed(12));
        assert_eq!(fence.index(), None);
        assert_eq!(fence.begin(now), Some(Some(over(12))));
        assert!(fence.claimed(13));
        assert_eq!(fence.index(), Some(13));
        // Also one that failed before the leadership did.
        fence.failed(13, TxnFailure::Missing);
        fence.lapse();
        let failed = Last {
            failed: true,
            ..over(13)
        };
        assert_eq!(fence.begin(now), Some(Some(failed)));
        let mut fence = Fence::Held(9);
        fence.failed(9, TxnFailure::Lapsed);
        assert_eq!(fence.begin(now), Some(Some(over(9))));
        // Nor where nobody else had it meanwhile.
        let again = decided("we", EpochKind::Run, 9, Some(over(9)));
        assert!(matches!(again, Ok(Claim::Write(_))), "{again:?}");
    }

    #[test]
    fn what_consul_lost_or_gc_took_is_taken_again() {
        for (holder, kind, index) in [
            ("they", EpochKind::Run, 3),
            ("they", EpochKind::Gc, 12),
            ("we", EpochKind::Run, 12),
        ] {
            let decided = decided(holder, kind, index, Some(had(9, true)));
            assert!(matches!(decided, Ok(Claim::Write(_))), "{decided:?}");
        }
    }

    #[test]
    fn an_epoch_is_kept_when_only_in_doubt_and_never_when_it_failed() {
        assert_eq!(
            decided("we", EpochKind::Run, 9, Some(had(9, false))),
            Ok(Claim::Keep)
        );
        let again = decided("we", EpochKind::Run, 9, Some(had(9, true)));
        assert!(matches!(again, Ok(Claim::Write(_))));
        // A restored snapshot may have another's epoch under the very same index.
        let others = decided("they", EpochKind::Run, 9, Some(had(9, false)));
        assert!(matches!(others, Ok(Claim::Write(_))));
    }

    #[test]
    fn a_failure_at_the_fence_ends_the_epoch_and_a_missing_right_does_not() {
        let now = Instant::now();
        let replaced = TxnFailure::FailedIndexCheck {
            current: 12,
            expected: 9,
        };
        for reason in [TxnFailure::Missing, replaced] {
            let mut fence = Fence::Held(9);
            fence.failed(9, reason);
            assert_eq!(fence.index(), None);
            assert_eq!(fence.begin(now), Some(Some(had(9, true))));
        }
        let mut fence = Fence::Held(9);
        fence.failed(9, TxnFailure::PermissionDenied);
        assert_eq!(fence, Fence::Held(9));
        fence.failed(7, TxnFailure::Missing);
        assert_eq!(fence, Fence::Held(9), "a late answer to an earlier epoch");
    }

    #[test]
    fn what_is_seen_only_raises_a_doubt() {
        let now = Instant::now();
        let mut fence = Fence::Held(9);
        fence.seen(Some(9));
        assert_eq!(fence, Fence::Held(9));
        for seen in [None, Some(8), Some(10)] {
            let mut fence = Fence::Held(9);
            fence.seen(seen);
            assert_eq!(fence.begin(now), Some(Some(had(9, false))));
        }
    }

    #[test]
    fn a_refusal_that_comes_late_is_forgotten_once_the_name_is_ours() {
        let mut fence = Fence::NameTaken("taken".to_owned());
        fence.name_is_free();
        assert_eq!(fence.begin(Instant::now()), Some(None));
        let mut fence = Fence::Replaced("they".to_owned());
        fence.name_is_free();
        assert!(fence.is_replaced());
    }

    #[test]
    fn a_taken_name_is_asked_for_again_when_its_epoch_changes() {
        let mut fence = Fence::NameTaken("taken".to_owned());
        fence.seen(Some(30));
        assert_eq!(fence.begin(Instant::now()), Some(None));
    }

    #[test]
    fn what_is_seen_while_the_epoch_is_claimed_puts_it_in_doubt() {
        let now = Instant::now();
        for (seen, doubted) in [(Some(12), true), (None, true), (Some(9), false)] {
            let mut fence = Fence::new();
            fence.begin(now);
            fence.seen(seen);
            assert!(fence.claimed(9));
            let begun = fence.begin(now);
            assert_eq!(begun, doubted.then_some(Some(had(9, false))), "{seen:?}");
        }
    }

    #[test]
    fn a_failed_claim_is_tried_again_after_a_while() {
        let (mut fence, now) = (Fence::new(), Instant::now());
        assert_eq!(fence.begin(now), Some(None));
        assert_eq!(fence.begin(now), None);
        fence.claim_failed(now);
        assert_eq!(fence.begin(now), None);
        assert_eq!(fence.wake_at(), Some(now + RETRY));
        assert_eq!(fence.begin(now + RETRY), Some(None));
    }
}
