//! What Consul's KV keeps of whose names are: a key for each name, and one that says that there is a rule.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::consul::wire::KvPair;
use crate::model::names::ClusterName;
use crate::model::text::Text;

/// That a name may be used as a service.
pub(super) const SERVICE: &str = "service";
/// Longest value that is written or understood, in bytes.
pub const MAX_VALUE_BYTES: usize = 256 * 1024;
/// Writes in one transaction.
const MOST_WRITES: usize = 64;
/// Bytes in one transaction, which carries them in base64.
const MOST_BYTES: usize = MAX_VALUE_BYTES;

/// How all keys of it begin, that of the rule too.
#[must_use]
pub fn prefix(cluster: &ClusterName) -> String {
    format!("lictor/v1/{cluster}/name")
}

/// The key that says that names belong to namespaces, and since when.
#[must_use]
pub fn rule_key(cluster: &ClusterName) -> String {
    format!("{}s", prefix(cluster))
}

/// The key of a name.
#[must_use]
pub fn key(cluster: &ClusterName, name: &str) -> String {
    format!("{}/{name}", prefix(cluster))
}

/// Who may use a name, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// The namespace that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// The namespaces that may use it, the holder among them.
    pub namespaces: BTreeMap<String, KeeperRecord>,
    /// What a newer release wrote, kept for it.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A namespace that may use a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperRecord {
    /// Its uid.
    #[serde(default)]
    pub uid: String,
    /// Since when, in seconds since 1970.
    #[serde(default)]
    pub since: i64,
    /// Since when it has no claim on it any more, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unclaimed: Option<i64>,
    /// As what it may use it: `service`, `destination`, `query`, `template`. Left out where that is
    /// `service` alone.
    #[serde(default = "as_service", skip_serializing_if = "is_as_service")]
    pub sorts: BTreeSet<String>,
    /// What a newer release wrote, kept for it.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn as_service() -> BTreeSet<String> {
    BTreeSet::from([SERVICE.to_owned()])
}

fn is_as_service(sorts: &BTreeSet<String>) -> bool {
    sorts.len() == 1 && sorts.contains(SERVICE)
}

/// The value of the key of the rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct RuleRecord {
    rule: String,
    since: i64,
}

/// What is in a key of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// Who may use a name.
    Name(Text),
    /// That there is a rule.
    Rule,
}

/// A write of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The key.
    pub entry: Entry,
    /// Its value; `None` to remove it.
    pub value: Option<Vec<u8>>,
    /// The `ModifyIndex` that it must have; 0 where it is not there.
    pub index: u64,
}

/// What Consul keeps.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The keys that are there, their `ModifyIndex`, and what they say; `None` where that is not
    /// understood, and left alone.
    there: BTreeMap<Text, (u64, Option<NameRecord>)>,
    rule: Option<u64>,
    /// Names of which it is to be looked what is to be kept.
    wanted: BTreeSet<Text>,
    /// Whether there is to be a rule; `None` where that stays as it is.
    wants_rule: Option<bool>,
}

impl Ledger {
    /// What these keys say, and what of it is not understood.
    #[must_use]
    pub fn of(cluster: &ClusterName, pairs: &[KvPair]) -> (Self, Vec<String>) {
        let (mut ledger, mut garbled) = (Self::default(), Vec::new());
        let (of_names, of_rule) = (key(cluster, ""), rule_key(cluster));
        for pair in pairs {
            if *pair.key == *of_rule {
                ledger.rule = Some(pair.modify_index);
            } else if let Some(name) = pair.key.strip_prefix(&of_names) {
                let record: serde_json::Result<NameRecord> = serde_json::from_slice(&pair.value);
                let record = record.inspect_err(|why| {
                    garbled.push(format!(
                        "{} in Consul's KV is not understood and left alone: remove it, unless a newer \
                         release wrote it ({why})",
                        pair.key
                    ));
                });
                let there = (pair.modify_index, record.ok());
                ledger.there.insert(name.into(), there);
            }
        }
        (ledger, garbled)
    }

    /// Whether a rule was noted.
    #[must_use]
    pub fn has_rule(&self) -> bool {
        self.rule.is_some()
    }

    /// What is noted of each name.
    pub fn records(&self) -> impl Iterator<Item = (Text, NameRecord)> {
        self.there
            .iter()
            .filter_map(|(name, (_, record))| Some((name.clone(), record.clone()?)))
    }

    /// The namespaces that are noted anywhere, and their uids.
    #[must_use]
    pub fn namespaces(&self) -> BTreeMap<Text, Text> {
        let records = self.there.values().filter_map(|(_, it)| it.as_ref());
        let all = records.flat_map(|record| &record.namespaces);
        // Of one that was made anew, what was noted last.
        let mut newest: BTreeMap<Text, (i64, Text)> = BTreeMap::new();
        for (name, keeper) in all {
            let noted = (keeper.since, Text::from(keeper.uid.as_str()));
            let known = newest.entry(name.as_str().into()).or_default();
            *known = noted.max(known.clone());
        }
        let uids = newest.into_iter().map(|(name, (_, uid))| (name, uid));
        uids.collect()
    }

    /// These names were read anew: this is what is there of them.
    pub fn renew(&mut self, names: &BTreeSet<Text>, read: Self) {
        self.there.retain(|name, _| !names.contains(name));
        self.there.extend(read.there);
    }

    /// The names whose record is not understood.
    pub fn not_understood(&self) -> impl Iterator<Item = Text> {
        let garbled = self.there.iter().filter(|(_, (_, it))| it.is_none());
        garbled.map(|(name, _)| name.clone())
    }

    /// What is noted of a name.
    #[must_use]
    pub fn record(&self, name: &str) -> Option<&NameRecord> {
        self.there.get(name)?.1.as_ref()
    }

    /// All names of which something is there.
    pub fn names(&self) -> impl Iterator<Item = Text> {
        self.there.keys().cloned()
    }

    /// What is to be kept of these names may be other than what is there.
    pub fn want(&mut self, names: impl IntoIterator<Item = Text>) {
        self.wanted.extend(names);
    }

    /// Whether there is to be a rule.
    pub fn want_rule(&mut self, wanted: bool) {
        self.wants_rule = Some(wanted);
    }

    /// Whether there may be something to write.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.wanted.is_empty()
            || self
                .wants_rule
                .is_some_and(|wanted| wanted != self.has_rule())
    }

    /// The next writes, if there are any. What is not understood is left alone.
    pub fn next_writes(
        &mut self,
        wall: i64,
        record: impl Fn(&str) -> Option<NameRecord>,
    ) -> Vec<Write> {
        let (mut writes, mut bytes) = (Vec::new(), 0);
        while writes.len() < MOST_WRITES
            && bytes < MOST_BYTES
            && let Some(name) = self.wanted.pop_first()
        {
            let wanted = record(&name);
            let index = match self.there.get(&name) {
                Some((_, None)) => continue,
                Some((_, Some(there))) if wanted.as_ref() == Some(there) => continue,
                Some((index, _)) => *index,
                None if wanted.is_none() => continue,
                None => 0,
            };
            let value = wanted.and_then(|wanted| serde_json::to_vec(&wanted).ok());
            let length = value.as_ref().map_or(0, Vec::len);
            if length > MAX_VALUE_BYTES {
                continue;
            }
            if bytes + length > MOST_BYTES && !writes.is_empty() {
                self.wanted.insert(name);
                break;
            }
            bytes += length;
            writes.push(Write {
                entry: Entry::Name(name),
                value,
                index,
            });
        }
        // After the last name: until then the rule only begins.
        if writes.is_empty()
            && self
                .wants_rule
                .is_some_and(|wanted| wanted != self.has_rule())
        {
            let value = (!self.has_rule()).then(|| {
                let rule = RuleRecord {
                    rule: "exclusive".to_owned(),
                    since: wall,
                };
                serde_json::to_vec(&rule).unwrap_or_default()
            });
            writes.push(Write {
                entry: Entry::Rule,
                value,
                index: self.rule.unwrap_or_default(),
            });
        }
        writes
    }

    /// A key was written, and has this `ModifyIndex` now.
    pub fn written(&mut self, write: &Write, index: u64) {
        match (&write.entry, &write.value) {
            (Entry::Rule, Some(_)) => self.rule = Some(index),
            (Entry::Rule, None) => self.rule = None,
            (Entry::Name(name), Some(value)) => {
                let record = serde_json::from_slice(value).ok();
                self.there.insert(name.clone(), (index, record));
            }
            (Entry::Name(name), None) => {
                self.there.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterName {
        "a".parse().unwrap()
    }

    fn pair(key: &str, value: &str, index: u64) -> KvPair {
        KvPair {
            key: key.into(),
            value: value.as_bytes().into(),
            modify_index: index,
            ..KvPair::default()
        }
    }

    fn record(holder: &str) -> NameRecord {
        NameRecord {
            holder: Some(holder.to_owned()),
            namespaces: BTreeMap::from([(holder.to_owned(), KeeperRecord::default())]),
            ..NameRecord::default()
        }
    }

    #[test]
    fn only_what_differs_is_written() {
        let value = serde_json::to_string(&record("shop")).unwrap();
        let pairs = [
            pair("lictor/v1/a/name/web", &value, 7),
            pair("lictor/v1/a/name/old", &value, 8),
            pair("lictor/v1/a/name/odd", "[]", 9),
            pair("lictor/v1/a/names", "{}", 10),
        ];
        let (mut ledger, garbled) = Ledger::of(&cluster(), &pairs);
        assert_eq!(garbled.len(), 1);
        assert!(ledger.has_rule() && ledger.records().count() == 2);
        let names: Vec<Text> = ledger.names().chain(["new".into()]).collect();
        ledger.want(names);
        ledger.want_rule(true);
        let wanted = |name: &str| match name {
            "web" => Some(record("shop")),
            "new" | "odd" => Some(record("other")),
            _ => None,
        };
        let writes = ledger.next_writes(1, wanted);
        let told: Vec<_> = writes
            .iter()
            .map(|write| (write.entry.clone(), write.value.is_some(), write.index))
            .collect();
        let name = |name: &str| Entry::Name(name.into());
        assert_eq!(told, [(name("new"), true, 0), (name("old"), false, 8)]);
        for write in &writes {
            ledger.written(write, 11);
        }
        ledger.want(["new".into(), "old".into()]);
        assert_eq!(ledger.next_writes(1, wanted), []);
        assert!(!ledger.is_dirty());
    }

    #[test]
    fn the_rule_is_noted_after_all_names() {
        let (mut ledger, _) = Ledger::of(&cluster(), &[]);
        ledger.want(["web".into()]);
        ledger.want_rule(true);
        let first = ledger.next_writes(1, |_| Some(record("shop")));
        assert_eq!(first[0].entry, Entry::Name("web".into()));
        ledger.written(&first[0], 3);
        let second = ledger.next_writes(1, |_| Some(record("shop")));
        assert_eq!(second[0].entry, Entry::Rule);
        ledger.written(&second[0], 4);
        assert!(ledger.has_rule() && !ledger.is_dirty());
        ledger.want_rule(false);
        let gone = ledger.next_writes(1, |_| None);
        assert_eq!((gone[0].value.as_ref(), gone[0].index), (None, 4));
    }

    #[test]
    fn what_a_newer_release_wrote_is_kept() {
        let text =
            r#"{"holder":"shop","namespaces":{"shop":{"uid":"u","since":1,"by":"x"}},"new":2}"#;
        let record: NameRecord = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
    }
}
