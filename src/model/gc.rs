//! What `lictor gc` asks of the process that writes, and what that answers, through a key in Consul's
//! KV. Both sides write it by compare-and-set.

use serde::{Deserialize, Serialize};

use super::names::ClusterName;

/// The key in Consul's KV.
#[must_use]
pub fn key(cluster: &ClusterName) -> String {
    format!("lictor/v1/{cluster}/gc")
}

/// Most entries that an answer names; Consul's KV holds 512 KiB under a key.
pub const MOST_NAMED: usize = 1000;

/// The value of the key, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// What is asked.
    pub request: Request,
    /// What was answered; only that of the same id counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Tells requests apart.
    pub id: String,
    /// Whether what is held is to be released, and not only shown.
    #[serde(default)]
    pub release: bool,
}

/// The answer of the process that holds the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The request's id.
    pub id: String,
    /// The process that answers.
    pub holder: String,
    /// What is held, the first [`MOST_NAMED`] of it.
    pub held: Vec<HeldEntry>,
    /// How much is held.
    pub total: usize,
    /// Whether it was released.
    pub released: bool,
}

/// An entry that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldEntry {
    /// `instance`.
    pub kind: String,
    /// Its key.
    pub key: String,
    /// Whose it is.
    pub owner: String,
    /// Why it is held.
    pub why: String,
}

impl Exchange {
    /// Whether the request waits for an answer.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let answer = self.answer.as_ref();
        answer.is_none_or(|answer| answer.id != self.request.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_the_present_request_counts() {
        let mut exchange: Exchange =
            serde_json::from_str(r#"{"request": {"id": "1", "later": true}}"#).unwrap();
        assert!(exchange.is_open() && !exchange.request.release);
        exchange.answer = Some(Answer {
            id: "1".to_owned(),
            holder: "h".to_owned(),
            held: Vec::new(),
            total: 0,
            released: false,
        });
        assert!(!exchange.is_open());
        exchange.request.id = "2".to_owned();
        assert!(exchange.is_open());
    }
}
