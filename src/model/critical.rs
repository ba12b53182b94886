//! Since when instances are critical, kept in Consul's KV so that a restart and a hand-over go on from
//! there: a key for each synthetic node, and in it only instances that may be deregistered for that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::names::{ClusterName, NodeName};

/// Longest value, in bytes: Consul takes 512 KiB, and a transaction carries it in base64.
const MAX_VALUE_BYTES: usize = 256 * 1024;

/// How the keys of a cluster begin; the name of the Consul node follows.
#[must_use]
pub fn prefix(cluster: &ClusterName) -> String {
    format!("lictor/v1/{cluster}/critical/")
}

/// The key of a node.
#[must_use]
pub fn key(cluster: &ClusterName, node: &NodeName) -> String {
    format!("{}{node}", prefix(cluster))
}

/// The node that a key is of, if it is one of the cluster's.
#[must_use]
pub fn parse(cluster: &ClusterName, key: &str) -> Option<NodeName> {
    let name = key.strip_prefix(&prefix(cluster))?;
    // Keys are compared as they are written, unlike the names of nodes.
    NodeName::parse(cluster, name).filter(|node| node.as_ref() == name)
}

/// The value of a node's key, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CriticalTimes {
    /// Instances by their id.
    pub instances: BTreeMap<String, CriticalTime>,
    /// What a newer release wrote, kept for it.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// Since when an instance is critical.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CriticalTime {
    /// In seconds since 1970, by the clock of the process that saw it turn critical.
    pub since: i64,
    /// The uid of its pod or `ServiceRegistration`: one that took its place has a time of its own.
    pub uid: String,
    /// What a newer release wrote, kept for it.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// What a time takes beside its texts, in bytes, and more.
const TIME_BYTES: usize = 64;

fn length(other: &serde_json::Map<String, serde_json::Value>) -> usize {
    if other.is_empty() {
        return 0;
    }
    serde_json::to_string(other).map_or(MAX_VALUE_BYTES, |text| text.len())
}

impl CriticalTime {
    /// How much of a value it takes, at most.
    fn length(&self, id: &str) -> usize {
        id.len() + self.uid.len() + length(&self.other) + TIME_BYTES
    }
}

impl CriticalTimes {
    /// Reads the value of a key, or says why it is none that this release may write again.
    pub fn parse(value: &[u8]) -> Result<Self, String> {
        let times: Self = serde_json::from_slice(value).map_err(|error| error.to_string())?;
        // With more there may be no room left for what is to be kept, and it would go with the key.
        let others = times.instances.values().map(|time| length(&time.other));
        if length(&times.other) + others.sum::<usize>() > MAX_VALUE_BYTES / 2 {
            return Err("too long are the fields that a newer release wrote into it".to_owned());
        }
        Ok(times)
    }

    /// Without what a value has no room for, which are the youngest: they are not deregistered while they
    /// are not kept.
    #[must_use]
    pub fn fitted(mut self) -> Self {
        let mut oldest: Vec<(i64, &String, usize)> = self
            .instances
            .iter()
            .map(|(id, time)| (time.since, id, time.length(id)))
            .collect();
        oldest.sort_unstable();
        let mut length = length(&self.other);
        let fits = oldest.iter().take_while(|(_, _, more)| {
            length += more;
            length <= MAX_VALUE_BYTES
        });
        let count = fits.count();
        let surplus: Vec<String> = oldest[count..]
            .iter()
            .map(|(_, id, _)| (*id).clone())
            .collect();
        for id in surplus {
            self.instances.remove(&id);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterName {
        "a".parse().unwrap()
    }

    #[test]
    fn a_key_is_of_a_node_of_the_cluster_or_nobodys() {
        let node = NodeName::for_kubernetes(&cluster(), "n1.example.com");
        let key = key(&cluster(), &node);
        assert_eq!(key, "lictor/v1/a/critical/lictor-a--n1.example.com");
        assert_eq!(parse(&cluster(), &key), Some(node));
        for other in [
            "lictor/v1/a/critical/",
            "lictor/v1/a/critical/lictor-b--n1",
            "lictor/v1/a/critical/Lictor-a--n1",
            "lictor/v1/a/epoch",
            "lictor/v1/b/critical/lictor-a--n1",
        ] {
            assert_eq!(parse(&cluster(), other), None, "{other}");
        }
    }

    #[test]
    fn what_a_newer_release_wrote_is_kept() {
        let text = r#"{"instances":{"a.b.c.d":{"since":5,"uid":"u","by":"x"}},"format":2}"#;
        let times: CriticalTimes = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&times.fitted()).unwrap(), text);
    }

    #[test]
    fn what_is_no_value_of_ours_is_not_taken_for_an_empty_one() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"instances":{"a":{"since":"x","uid":"u"}}}"#,
        ] {
            assert!(CriticalTimes::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    /// There would be no room for what is kept beside them, and the key would be taken for empty.
    #[test]
    fn fields_of_a_newer_release_that_leave_no_room_are_left_alone() {
        let long = |length: usize| "x".repeat(length);
        let of_all = |length: usize| format!(r#"{{"instances":{{}},"more":"{}"}}"#, long(length));
        let of_one = |length: usize| {
            let more = long(length);
            format!(r#"{{"instances":{{"a.b.c.d":{{"since":5,"uid":"u","more":"{more}"}}}}}}"#)
        };
        for value in [of_all(MAX_VALUE_BYTES), of_one(MAX_VALUE_BYTES)] {
            assert!(CriticalTimes::parse(value.as_bytes()).is_err());
        }
        let times = CriticalTimes::parse(of_one(MAX_VALUE_BYTES / 3).as_bytes()).unwrap();
        assert_eq!(times.clone().fitted(), times);
    }

    #[test]
    fn the_oldest_are_kept_where_not_all_have_room() {
        let time = |since| CriticalTime {
            since,
            uid: "u".repeat(36),
            ..CriticalTime::default()
        };
        let instances = (0..4000).map(|n| (format!("{}{n:04}", "i".repeat(60)), time(4000 - n)));
        let times = CriticalTimes {
            instances: instances.collect(),
            ..CriticalTimes::default()
        };
        let fitted = times.fitted();
        let value = serde_json::to_vec(&fitted).unwrap();
        assert!(value.len() <= MAX_VALUE_BYTES && value.len() > MAX_VALUE_BYTES / 2);
        let count = i64::try_from(fitted.instances.len()).unwrap();
        let youngest = fitted.instances.values().map(|time| time.since).max();
        assert_eq!(youngest, Some(count));
        assert_eq!(fitted.clone().fitted(), fitted);
    }
}
