//! Prepared queries.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/query>; observed on Consul 1.22.7.

use serde::{Deserialize, Deserializer, Serialize};

use super::{is_default, list, null_is_default, pairs};
use crate::model::text::{Pairs, Text};

/// A named search for a service, with what to do where there is none.
///
/// Consul returns every field always, as `""`, `false`, 0 or `null`, and changes none: lists keep their
/// order, the time to live its spelling. Fields that are not known here are neither kept nor written;
/// an update replaces the whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PreparedQuery {
    /// Its UUID, which Consul chooses. Sent in the path alone.
    #[serde(rename = "ID", deserialize_with = "null_is_default", skip_serializing)]
    pub id: Text,
    /// Its name, unique without case. Beside the name of no other query it must not be the id of one.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub name: Text,
    /// The session that it ends with. A query without a name needs one, unless it is a template.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub session: Text,
    /// Whether a token is stored in it, to be used when it is executed. The token itself is not kept,
    /// and none is ever written: an update takes it out.
    #[serde(deserialize_with = "is_set", skip_serializing)]
    pub token: bool,
    /// Makes it answer to all names that begin with its own.
    #[serde(deserialize_with = "template", skip_serializing_if = "Option::is_none")]
    pub template: Option<QueryTemplate>,
    /// What is searched for.
    #[serde(deserialize_with = "null_is_default")]
    pub service: QueryService,
    /// How it is answered over DNS.
    #[serde(
        rename = "DNS",
        deserialize_with = "null_is_default",
        skip_serializing_if = "is_default"
    )]
    pub dns: QueryDns,
    /// Raft index of the creation. Not sent.
    #[serde(skip_serializing)]
    pub create_index: u64,
    /// Raft index of the last change, which an update with the same content moves as well. Not sent.
    #[serde(skip_serializing)]
    pub modify_index: u64,
}

/// How a query answers to many names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct QueryTemplate {
    /// `name_prefix_match`, the only one there is. Where it is empty the query is no template.
    #[serde(
        rename = "Type",
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub template_type: Text,
    /// Takes the name apart for `${match(N)}`; Consul checks it.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub regexp: Text,
    /// Leaves out tags that came out empty.
    #[serde(skip_serializing_if = "is_default")]
    pub remove_empty_tags: bool,
}

/// The service that a query searches for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct QueryService {
    /// Its name; need not exist.
    #[serde(deserialize_with = "null_is_default")]
    pub service: Text,
    /// Its sameness group. Enterprise; the Community Edition takes only an empty one.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub sameness_group: Text,
    /// Where else to look if none is found.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "is_default"
    )]
    pub failover: QueryFailover,
    /// Whether instances with a warning are left out too.
    #[serde(skip_serializing_if = "is_default")]
    pub only_passing: bool,
    /// Checks that do not count.
    #[serde(
        rename = "IgnoreCheckIDs",
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ignore_check_ids: Vec<Text>,
    /// A node, `_agent` or `_ip`, nearest to which comes first.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub near: Text,
    /// Tags that an instance must have, or with `!` must not have.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Text>,
    /// Metadata that its node must have; at most 64 pairs, with keys and values as in a node's.
    #[serde(with = "pairs", skip_serializing_if = "Pairs::is_empty")]
    pub node_meta: Pairs,
    /// Metadata that it must have; not checked.
    #[serde(with = "pairs", skip_serializing_if = "Pairs::is_empty")]
    pub service_meta: Pairs,
    /// Whether only what speaks the mesh's protocol is found.
    #[serde(skip_serializing_if = "is_default")]
    pub connect: bool,
    /// The peer that it is imported from; need not exist.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub peer: Text,
}

/// Where else to look. Targets exclude the other two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct QueryFailover {
    /// In how many of the nearest datacenters, first; not negative.
    #[serde(skip_serializing_if = "is_default")]
    pub nearest_n: i64,
    /// In which datacenters, in this order. They need not exist.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub datacenters: Vec<Text>,
    /// Where, in this order.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<QueryTarget>,
}

/// A place to look. Nothing of it need exist, and peer and datacenter can stand together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct QueryTarget {
    /// A peer.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub peer: Text,
    /// A datacenter.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub datacenter: Text,
    /// A partition. Enterprise; the Community Edition refuses even an empty one.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub partition: Text,
    /// A namespace. Enterprise; the Community Edition refuses even an empty one.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub namespace: Text,
}

/// How a query is answered over DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct QueryDns {
    /// How long an answer may be kept, as Go writes durations; empty for what the agent is set to.
    #[serde(
        rename = "TTL",
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub ttl: Text,
}

fn is_set<'de, D>(deserializer: D) -> Result<bool, D::Error>
where
    D: Deserializer<'de>,
{
    let token = Option::<std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    Ok(token.is_some_and(|token| !token.is_empty()))
}

/// Of a query that is no template Consul returns an empty one.
fn template<'de, D>(deserializer: D) -> Result<Option<QueryTemplate>, D::Error>
where
    D: Deserializer<'de>,
{
    let template = Option::<QueryTemplate>::deserialize(deserializer)?;
    Ok(template.filter(|template| !is_default(template)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_consul_returns_of_a_bare_query_is_bare() {
        let read = json!({
            "ID": "x", "Name": "min", "Session": "", "Token": "",
            "Template": {"Type": "", "Regexp": "", "RemoveEmptyTags": false},
            "Service": {"Service": "a", "SamenessGroup": "",
                "Failover": {"NearestN": 0, "Datacenters": null, "Targets": null},
                "OnlyPassing": false, "IgnoreCheckIDs": null, "Near": "", "Tags": null,
                "NodeMeta": null, "ServiceMeta": null, "Connect": false, "Peer": ""},
            "DNS": {"TTL": ""}, "CreateIndex": 65, "ModifyIndex": 66,
        });
        let query: PreparedQuery = serde_json::from_value(read).unwrap();
        let expected = PreparedQuery {
            id: "x".into(),
            name: "min".into(),
            service: QueryService {
                service: "a".into(),
                ..QueryService::default()
            },
            create_index: 65,
            modify_index: 66,
            ..PreparedQuery::default()
        };
        assert_eq!(query, expected);
        assert_eq!(
            serde_json::to_value(query).unwrap(),
            json!({"Name": "min", "Service": {"Service": "a"}})
        );
    }

    #[test]
    fn a_token_is_neither_kept_nor_shown_nor_written() {
        let read = json!({"Name": "q", "Token": "s3cret", "Service": null});
        let query: PreparedQuery = serde_json::from_value(read).unwrap();
        assert!(query.token && !format!("{query:?}").contains("s3cret"));
        assert_eq!(
            serde_json::to_value(query).unwrap(),
            json!({"Name": "q", "Service": {"Service": ""}})
        );
    }
}
