//! The epoch: who writes to Consul for a cluster. Its key is the fence of every transaction.

use serde::{Deserialize, Serialize};

use super::names::ClusterName;

/// The key of the epoch in Consul's KV.
#[must_use]
pub fn key(cluster: &ClusterName) -> String {
    format!("lictor/v1/{cluster}/epoch")
}

/// What an epoch is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EpochKind {
    /// `lictor run`: keeps Consul equal to Kubernetes.
    Run,
    /// `lictor gc`: removes what a cluster left.
    Gc,
}

/// The value of the epoch's key, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// The process that took it.
    pub holder: String,
    /// UID of the namespace `kube-system`, or of the first that is watched by name, where only some are: it tells
    /// Kubernetes clusters apart.
    pub uid: String,
    /// The namespaces that are watched, sorted; empty for all.
    #[serde(default)]
    pub scope: Vec<String>,
    /// What it was taken for.
    pub kind: EpochKind,
    /// One more each time: Consul moves a key's index only where its value changes.
    #[serde(default)]
    pub term: u64,
    /// What a newer release wrote, kept for it.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// The name of the cluster belongs to another one, or to another scope of this one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster name \"{cluster}\" is taken in this Consul by {holder}, which runs for {what}: give \
     this cluster another name, or, if it replaces that one, start once with --take-over {uid}"
)]
pub struct ClusterNameTaken {
    cluster: String,
    holder: String,
    what: String,
    uid: String,
}

impl Epoch {
    /// What is watched, for people.
    fn watched(&self) -> String {
        if self.scope.is_empty() {
            "all namespaces".to_owned()
        } else {
            format!("the namespaces {}", self.scope.join(", "))
        }
    }

    /// The epoch to write over `before`, if that may be.
    ///
    /// `take_over` is the UID that the operator named as the one to be replaced.
    pub fn succeed(
        self,
        before: Option<&Self>,
        cluster: &ClusterName,
        take_over: Option<&str>,
    ) -> Result<Self, ClusterNameTaken> {
        let Some(before) = before else {
            return Ok(self);
        };
        // `lictor gc` may have found a name without an epoch, and says of no cluster that it is its.
        let nobodys = before.kind == EpochKind::Gc && before.uid.is_empty();
        let same = nobodys || (before.uid == self.uid && before.scope == self.scope);
        if !same && take_over != Some(before.uid.as_str()) {
            let what = if before.uid == self.uid {
                format!("{} of this Kubernetes cluster", before.watched())
            } else {
                let namespace = before.scope.first().map_or("kube-system", String::as_str);
                format!(
                    "{} of the Kubernetes cluster whose {namespace} has UID {}",
                    before.watched(),
                    before.uid
                )
            };
            return Err(ClusterNameTaken {
                cluster: cluster.to_string(),
                holder: before.holder.clone(),
                what,
                uid: before.uid.clone(),
            });
        }
        Ok(Self {
            term: before.term.wrapping_add(1),
            other: before.other.clone(),
            ..self
        })
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;

    /// That of a process that ran for this Kubernetes cluster and these namespaces.
    pub(crate) fn epoch(uid: &str, scope: &[&str]) -> Epoch {
        Epoch {
            holder: "pod-1".to_owned(),
            uid: uid.to_owned(),
            scope: scope.iter().map(|name| (*name).to_owned()).collect(),
            kind: EpochKind::Run,
            term: 7,
            other: serde_json::Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::epoch;
    use super::*;

    fn succeeded(before: &Epoch, uid: &str, take_over: Option<&str>) -> Result<u64, String> {
        let cluster = "a".parse().unwrap();
        let next = epoch(uid, &[]).succeed(Some(before), &cluster, take_over);
        next.map(|next| next.term)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn each_term_is_one_more_so_that_the_value_differs() {
        assert_eq!(succeeded(&epoch("u1", &[]), "u1", None), Ok(8));
    }

    #[test]
    fn another_cluster_or_scope_is_refused_until_named() {
        let refused = succeeded(&epoch("u1", &[]), "u2", None).unwrap_err();
        assert!(
            refused.contains("u1") && refused.contains("--take-over u1"),
            "{refused}"
        );
        assert!(succeeded(&epoch("u1", &[]), "u2", Some("u3")).is_err());
        assert_eq!(succeeded(&epoch("u1", &[]), "u2", Some("u1")), Ok(8));
        assert!(
            succeeded(&epoch("u1", &["shop"]), "u1", None)
                .unwrap_err()
                .contains("shop")
        );
        assert_eq!(succeeded(&epoch("u1", &["shop"]), "u1", Some("u1")), Ok(8));
    }

    #[test]
    fn what_gc_left_under_a_name_without_an_epoch_is_nobodys() {
        let gc = Epoch {
            kind: EpochKind::Gc,
            term: u64::MAX,
            ..epoch("", &[])
        };
        assert_eq!(succeeded(&gc, "u1", None), Ok(0));
        assert!(succeeded(&epoch("", &[]), "u1", None).is_err());
    }

    #[test]
    fn fields_of_a_newer_release_are_kept() {
        let json = r#"{"holder":"h","uid":"u1","kind":"run","shard":3}"#;
        let before: Epoch = serde_json::from_str(json).unwrap();
        let next = epoch("u1", &[])
            .succeed(Some(&before), &"a".parse().unwrap(), None)
            .unwrap();
        assert_eq!(serde_json::to_value(&next).unwrap()["shard"], 3);
        assert_eq!(next.term, 1);
    }
}
