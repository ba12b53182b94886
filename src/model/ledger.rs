//! The ledger of prepared queries: they have no room for marks, so that whose they are is kept in
//! Consul's KV, written before the query is.

use serde::{Deserialize, Serialize};

use super::names::{ClusterName, QueryName, is_object_name};
use super::owner::{Owner, OwnerKind};

/// How the keys of the ledger of a cluster begin in Consul's KV; the name of the query follows.
#[must_use]
pub fn prefix(cluster: &ClusterName) -> String {
    format!("lictor/v1/{cluster}/query/")
}

/// The key of a query's entry.
#[must_use]
pub fn key(cluster: &ClusterName, name: &QueryName) -> String {
    format!("{}{name}", prefix(cluster))
}

/// The folder of everything that any cluster keeps in Consul's KV.
pub const CLUSTERS: &str = "lictor/v1/";

/// The cluster and the query that a key of any ledger is of.
#[must_use]
pub fn parse(key: &str) -> Option<(&str, QueryName)> {
    let (cluster, rest) = key.strip_prefix(CLUSTERS)?.split_once('/')?;
    let name = rest.strip_prefix("query/")?;
    Some((cluster, QueryName::new(name)))
}

/// An entry of the ledger, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// The id of the query; empty until it is known to be created.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// What tells the query that was to be created from one that someone else did.
    pub hash: String,
    /// The kind of the object that it is for.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    #[serde(default)]
    pub uid: String,
    /// What a newer release wrote, kept for it.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Ledger {
    /// An entry for a query that is to be created for this object.
    #[must_use]
    pub fn new(owner: &Owner, uid: &str, hash: String) -> Self {
        Self {
            id: String::new(),
            hash,
            kind: owner.kind.as_str().to_owned(),
            namespace: owner.namespace.to_string(),
            name: owner.name.to_string(),
            uid: uid.to_owned(),
            other: serde_json::Map::new(),
        }
    }

    /// The object that the query is for; `None` where the entry names none.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        let kinds = [OwnerKind::PreparedQuery, OwnerKind::ServiceRegistration];
        let kind = kinds
            .into_iter()
            .find(|kind| *kind.as_str() == *self.kind)?;
        let whole = is_object_name(&self.namespace) && is_object_name(&self.name);
        whole.then(|| Owner {
            kind,
            namespace: self.namespace.as_str().into(),
            name: self.name.as_str().into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_release_wrote_is_kept() {
        let text =
            r#"{"hash":"h","kind":"PreparedQuery","namespace":"shop","name":"q","new":{"a":1}}"#;
        let ledger: Ledger = serde_json::from_str(text).unwrap();
        assert_eq!(
            ledger.owner(),
            Some(Owner::prepared_query(&"shop".into(), &"q".into()))
        );
        let again: Ledger = serde_json::from_str(&serde_json::to_string(&ledger).unwrap()).unwrap();
        assert_eq!((again.other.len(), again), (1, ledger));
    }

    #[test]
    fn an_entry_that_names_no_object_is_nobodys() {
        for (kind, name) in [
            ("Pod", "q"),
            ("PreparedQuery", "a\nb"),
            ("PreparedQuery", ""),
        ] {
            let owner = Owner::prepared_query(&"shop".into(), &name.into());
            let mut ledger = Ledger::new(&owner, "uid", "h".to_owned());
            ledger.kind = kind.to_owned();
            assert_eq!(ledger.owner(), None, "{kind} {name:?}");
        }
    }
}
