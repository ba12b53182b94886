//! What the ledgers that Lictor keeps in Consul's KV have in common: when one is read again after it could
//! not be used, and what the outcome of a write to one means.

use std::time::Duration;

use tokio::time::Instant;

use super::apply::ReadError;
use super::engine::Engine;
use crate::consul::{ConsulError, ErrorClass, Quality, TxnError, TxnFailure, TxnOutcome};
use crate::model::backoff;

/// How soon it is read again after it could not be read, or not be written.
const AGAIN: Duration = Duration::from_secs(30);
/// First ceiling of the pause after a read that failed and said nothing of the next one.
const FIRST: Duration = Duration::from_secs(1);
/// Highest ceiling of that pause.
const CEILING: Duration = Duration::from_secs(10);
/// How long such reads are tried before it counts as out of reach.
const PATIENCE: Duration = Duration::from_mins(1);

/// When a ledger is read again. Time and chance are passed in.
#[derive(Debug, Default)]
pub(super) struct Retry {
    again_at: Option<Instant>,
    /// Since when it could not be read, and how often that was tried.
    failing: Option<(Instant, u32)>,
    /// Why it cannot be read or written, as was told.
    trouble: Option<String>,
}

impl Retry {
    /// When it is read again, if that is known.
    pub(super) fn at(&self) -> Option<Instant> {
        self.again_at
    }

    /// It is being read.
    pub(super) fn begins(&mut self) {
        self.again_at = None;
    }

    /// It was read.
    pub(super) fn succeeded(&mut self) {
        self.failing = None;
    }

    /// It could not be read. Returns whether that is to be taken for lasting: else it is read again soon.
    pub(super) fn failed(&mut self, error: &ReadError, now: Instant, chance: f64) -> bool {
        let (since, failures) = self.failing.unwrap_or((now, 0));
        self.failing = Some((since, failures.saturating_add(1)));
        if is_final(error) || now.saturating_duration_since(since) >= PATIENCE {
            return true;
        }
        let ceiling = backoff::ceiling(FIRST, failures, CEILING);
        let pause = backoff::jittered(ceiling, chance).max(FIRST / 2);
        self.again_at = Some(now + pause);
        false
    }

    /// It is left alone for a while for this reason. Returns whether that is to be told.
    pub(super) fn gives_up(&mut self, why: &str, now: Instant) -> bool {
        self.again_at = Some(now + AGAIN);
        let is_news = self.trouble.as_deref() != Some(why);
        self.trouble = Some(why.to_owned());
        is_news
    }

    /// Nothing is wrong with it any more.
    pub(super) fn is_well(&mut self) {
        self.trouble = None;
    }

    /// Where another epoch begins: what was told stays told.
    pub(super) fn begun_anew(&mut self) -> Self {
        Self {
            trouble: self.trouble.take(),
            ..Self::default()
        }
    }
}

/// Whether a further read would fail as well.
fn is_final(error: &ReadError) -> bool {
    match error {
        ReadError::Failed(error) => matches!(
            error.class(),
            ErrorClass::AccessDenied | ErrorClass::Refused | ErrorClass::Malformed
        ),
        ReadError::NotAuthoritative(quality) => *quality == Quality::Filtered,
    }
}

/// What of a transaction that was rolled back would be refused again.
pub(super) fn refusal(errors: &[TxnError]) -> Option<&TxnError> {
    errors.iter().find(|error| {
        matches!(
            error.reason,
            TxnFailure::PermissionDenied | TxnFailure::Refused
        )
    })
}

/// The outcome of a write, as metrics have it.
pub(super) fn label(outcome: &Result<TxnOutcome, ConsulError>) -> &'static str {
    match outcome {
        Ok(TxnOutcome::Applied(_)) => "ok",
        Ok(TxnOutcome::RolledBack(_)) => "conflict",
        Ok(TxnOutcome::Fenced { .. }) => "fenced",
        Err(error) => error.class().as_str(),
    }
}

impl Engine {
    /// A write that is in no batch was stopped at the fence.
    pub(super) fn fenced_off(&mut self, epoch: u64, what: &str, reason: TxnFailure) {
        tracing::warn!(epoch, "the write was fenced off: {what}");
        self.fence.failed(epoch, reason);
        if reason == TxnFailure::PermissionDenied {
            self.write_failed_for(&format!("the epoch may not be read: {what}"));
        }
    }

    /// A write failed on the way, or Consul has no time for it now.
    pub(super) fn not_written(&mut self, error: &ConsulError, now: Instant) {
        if error.class() == ErrorClass::SlowDown {
            self.pace.slow_down(now);
        }
        self.write_failed_for(&format!("cannot write to Consul: {error}"));
    }
}
