//! What `lictor gc` asks of the process that writes, and what that answers, through a key in Consul's
//! KV. Both sides write it by compare-and-set.

use serde::{Deserialize, Serialize};

use super::names::ClusterName;

/// The key in Consul's KV.
#[must_use]
pub fn key(cluster: &ClusterName) -> String {
    format!("lictor/v1/{cluster}/gc")
}

/// How long the entries of one answer may be together, in bytes: a transaction of Consul's holds 512 KiB,
/// and values are a third longer there.
const PAGE_BYTES: usize = 256 * 1024;

/// The value of the key, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// What is asked.
    pub request: Request,
    /// What was answered; only that of the same id counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

/// A question: what is held, or, where it says so, to release what was shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Tells requests apart.
    pub id: String,
    /// The question before it, where this one asks for what its answer had no room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// What is to be released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
}

/// What is to be released: exactly what was shown, and only by the process that showed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The last question that was answered with it. The process that answered knows what it showed.
    pub shown: String,
    /// That process.
    pub holder: String,
    /// Its epoch at the time.
    pub epoch: u64,
}

/// The answer of the process that holds the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The request's id.
    pub id: String,
    /// The process that answers.
    pub holder: String,
    /// The index of its epoch.
    pub epoch: u64,
    /// What is held, as much of it as there is room for.
    #[serde(default)]
    pub held: Vec<HeldEntry>,
    /// How much else is held.
    #[serde(default)]
    pub more: usize,
    /// How much was released.
    #[serde(default)]
    pub released: usize,
    /// Why nothing was released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// An entry that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldEntry {
    /// `instance`, `intention`, `query` or `service-defaults`.
    pub kind: String,
    /// Its key.
    pub key: String,
    /// Whose it is.
    pub owner: String,
    /// Why it is held.
    pub why: String,
    /// For how long it has been, in seconds, as far as the process that answers knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// As much of what is held as one answer has room for.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// What it has.
    pub held: Vec<HeldEntry>,
    /// How much else there is.
    pub more: usize,
    bytes: usize,
}

impl Page {
    /// Adds an entry; `false` if there was no room for it, from when on it only counts.
    pub fn add(&mut self, entry: HeldEntry) -> bool {
        // Field names, quotes and commas take less.
        const REST: usize = 64;
        let texts = [&entry.kind, &entry.key, &entry.owner, &entry.why];
        let bytes = self.bytes + REST + texts.iter().map(|text| text.len()).sum::<usize>();
        if self.more > 0 || (bytes > PAGE_BYTES && !self.held.is_empty()) {
            self.more += 1;
            return false;
        }
        self.bytes = bytes;
        self.held.push(entry);
        true
    }
}

impl Exchange {
    /// Whether the request waits for an answer.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.answered().is_none()
    }

    /// The answer to the request.
    #[must_use]
    pub fn answered(&self) -> Option<&Answer> {
        let answer = self.answer.as_ref();
        answer.filter(|answer| answer.id == self.request.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_the_present_request_counts() {
        let mut exchange: Exchange =
            serde_json::from_str(r#"{"request": {"id": "1", "later": true}}"#).unwrap();
        assert!(exchange.is_open() && exchange.request.release.is_none());
        let answer = serde_json::from_str(r#"{"id": "1", "holder": "h", "epoch": 3}"#);
        exchange.answer = Some(answer.unwrap());
        assert!(!exchange.is_open());
        exchange.request.id = "2".to_owned();
        assert!(exchange.is_open());
    }

    #[test]
    fn a_question_that_names_nothing_shown_cannot_be_read_as_a_release() {
        for release in ["true", r#"{"shown": "1"}"#] {
            let question = format!(r#"{{"request": {{"id": "1", "release": {release}}}}}"#);
            assert!(serde_json::from_str::<Exchange>(&question).is_err());
        }
    }

    #[test]
    fn an_answer_with_all_that_a_page_has_room_for_fits_into_a_transaction() {
        let entry = |number: usize| HeldEntry {
            kind: "instance".to_owned(),
            key: format!("lictor-prod--{number:0100}/prod.shop.payment.payment-{number:0100}"),
            owner: "ServiceRegistration/shop/payment".to_owned(),
            why: "w".repeat(250),
            seconds: Some(u64::MAX),
        };
        let mut page = Page::default();
        let named = (0..2000).filter(|&number| page.add(entry(number))).count();
        assert!(named > 400, "{named}");
        assert_eq!((page.held.len(), page.more), (named, 2000 - named));
        let value = serde_json::to_vec(&page.held).unwrap();
        assert!(value.len() * 4 / 3 < 480 * 1024, "{}", value.len());
    }
}
