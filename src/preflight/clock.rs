//! How far a server's clock is from ours.

use jiff::{SignedDuration, Timestamp};

use super::finding::Finding;

/// From here on it is worth a word: tokens and certificates are judged to the second somewhere.
const FAR: SignedDuration = SignedDuration::from_secs(5);

/// One answer with the time of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Our time when it was asked.
    pub sent: Timestamp,
    /// Our time when the answer was there.
    pub received: Timestamp,
    /// The server's time, cut to whole seconds.
    pub theirs: Timestamp,
}

impl Clock {
    /// By how much the server's clock is at least before ours (negative: behind), seen that it may have
    /// answered at any moment between question and answer.
    fn offset(&self) -> SignedDuration {
        let least = self.theirs.duration_since(self.received);
        let most = self.theirs.duration_since(self.sent) + SignedDuration::from_secs(1);
        if least > SignedDuration::ZERO {
            least
        } else if most < SignedDuration::ZERO {
            most
        } else {
            SignedDuration::ZERO
        }
    }
}

/// What depends on it is said by whoever asks.
pub(super) fn judge(name: &'static str, clock: Option<&Clock>, depends: &str) -> Finding {
    let Some(clock) = clock else {
        return Finding::skipped(name, "the server does not tell its time");
    };
    let offset = clock.offset();
    let seconds = offset.as_secs().unsigned_abs();
    if offset.abs() < FAR {
        return Finding::ok(name, "within a few seconds of ours");
    }
    let direction = if offset.is_positive() {
        "before"
    } else {
        "behind"
    };
    Finding::warning(
        name,
        format!("at least {seconds} s {direction} ours: {depends}"),
    )
    .remedy("synchronise the clocks (NTP) of this machine and of the server")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Status;

    fn judged(sent: i64, received: i64, theirs: i64) -> (Status, String) {
        let at = |seconds| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        let clock = Clock {
            sent: at(sent),
            received: at(received),
            theirs: at(theirs),
        };
        let finding = judge("kubernetes.clock", Some(&clock), "tokens");
        (finding.status, finding.message)
    }

    #[test]
    fn an_offset_is_what_the_round_trip_cannot_explain() {
        assert_eq!(judged(0, 0, 0).0, Status::Ok);
        // A slow answer: the server may have looked at its clock at any moment.
        assert_eq!(judged(0, 60, 1).0, Status::Ok);
        assert_eq!(judged(0, 60, 59).0, Status::Ok);
        assert_eq!(judged(0, 1, 5).0, Status::Ok);
        let (status, message) = judged(0, 1, 9);
        assert_eq!(status, Status::Warning);
        assert!(message.contains("at least 8 s before"), "{message}");
        // A whole second may be cut off.
        assert_eq!(judged(10, 11, 5).0, Status::Ok);
        let (status, message) = judged(100, 101, 39);
        assert_eq!(status, Status::Warning);
        assert!(message.contains("at least 60 s behind"), "{message}");
    }
}
