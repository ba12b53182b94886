//! The conditions that every kind of Lictor shows, in the manner of kstatus.

use jiff::Timestamp;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The types of conditions in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// True when Consul equals what the object claims, whatever the health of its instances.
    Ready,
    /// True while Lictor works towards that by itself; otherwise absent or False.
    Reconciling,
    /// True while only a change of the object, or of what stands in its way, can help.
    Stalled,
}

impl ConditionType {
    /// The text in `type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
        }
    }
}

/// What is to be shown in one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `status`: `Some` is `True` or `False`, `None` is `Unknown`.
    pub status: Option<bool>,
    /// A CamelCase word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// The condition of type `kind`, if it is there.
#[must_use]
pub fn find(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions
        .iter()
        .find(|condition| condition.type_ == kind.as_str())
}

/// Sets the condition of type `kind`. Its `lastTransitionTime` becomes `now` only where its status
/// differs from the one before.
pub fn set(
    conditions: &mut Vec<Condition>,
    kind: ConditionType,
    verdict: Verdict,
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = match verdict.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    // The API serves whole seconds; a finer value would never equal what is read back.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let before = conditions
        .iter()
        .position(|condition| condition.type_ == kind.as_str());
    let since = before
        .map(|at| &conditions[at])
        .filter(|condition| condition.status == status)
        .map_or(Time(now), |condition| {
            condition.last_transition_time.clone()
        });
    let condition = Condition {
        last_transition_time: since,
        message: cut(verdict.message, MESSAGE_BYTES),
        observed_generation: generation,
        reason: verdict.reason.to_owned(),
        status: status.to_owned(),
        type_: kind.as_str().to_owned(),
    };
    match before {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

/// Longest `message` that the CRDs accept.
pub(super) const MESSAGE_BYTES: usize = 32 * 1024;

/// Cuts a text to at most `limit` bytes, between two characters.
#[must_use]
pub fn cut(mut text: String, limit: usize) -> String {
    text.truncate(text.floor_char_boundary(limit));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap() + jiff::SignedDuration::from_millis(250)
    }

    fn verdict(status: bool, reason: &'static str) -> Verdict {
        Verdict {
            status: Some(status),
            reason,
            message: reason.to_lowercase(),
        }
    }

    #[test]
    fn a_transition_is_a_change_of_status_only() {
        let mut conditions = Vec::new();
        set(
            &mut conditions,
            ConditionType::Ready,
            verdict(false, "Waiting"),
            Some(1),
            at(10),
        );
        set(
            &mut conditions,
            ConditionType::Ready,
            verdict(false, "Conflict"),
            Some(2),
            at(20),
        );
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].reason, "Conflict");
        assert_eq!(conditions[0].observed_generation, Some(2));
        assert_eq!(conditions[0].last_transition_time.0.as_second(), 10);
        assert_eq!(conditions[0].last_transition_time.0.subsec_nanosecond(), 0);

        set(
            &mut conditions,
            ConditionType::Ready,
            verdict(true, "InSync"),
            Some(2),
            at(30),
        );
        assert_eq!(conditions[0].last_transition_time.0.as_second(), 30);
    }

    #[test]
    fn conditions_keep_to_themselves() {
        let mut conditions = Vec::new();
        set(
            &mut conditions,
            ConditionType::Ready,
            verdict(true, "InSync"),
            None,
            at(1),
        );
        set(
            &mut conditions,
            ConditionType::Stalled,
            verdict(false, "InSync"),
            None,
            at(2),
        );
        assert_eq!(
            find(&conditions, ConditionType::Ready).unwrap().status,
            "True"
        );
        assert_eq!(
            find(&conditions, ConditionType::Stalled).unwrap().status,
            "False"
        );
        assert!(find(&conditions, ConditionType::Reconciling).is_none());
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let mut conditions = Vec::new();
        let message = "é".repeat(MESSAGE_BYTES);
        let verdict = Verdict {
            status: None,
            reason: "Long",
            message,
        };
        set(&mut conditions, ConditionType::Ready, verdict, None, at(1));
        assert_eq!(conditions[0].message.len(), MESSAGE_BYTES);
        assert_eq!(conditions[0].status, "Unknown");
    }
}
