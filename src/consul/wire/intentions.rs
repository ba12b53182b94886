//! `service-intentions`: who may connect to a service.
//!
//! Source: <https://developer.hashicorp.com/consul/docs/reference/config-entry/service-intentions>;
//! observed on Consul 1.22.7.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::entry::{ConfigEntry, unknown, unknown_of_entry};
use super::{is_default, list, null_is_default, pairs};
use crate::model::text::{Pairs, Text};

/// What the legacy API for intentions left in a source. Consul refuses `LegacyMeta` in an entry and
/// clears the others; written back, the source can no longer be changed by that API.
const LEGACY: [&str; 4] = [
    "LegacyID",
    "LegacyMeta",
    "LegacyCreateTime",
    "LegacyUpdateTime",
];

/// All intentions of one destination.
///
/// Every type here keeps fields that it does not know, so that a rule of someone else is written back
/// whole: a condition of a newer Consul that got lost would let more through.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "Kind",
    rename = "service-intentions",
    rename_all = "PascalCase",
    default
)]
pub struct ServiceIntentions {
    /// The destination; `*` for all.
    #[serde(deserialize_with = "null_is_default")]
    pub name: Text,
    /// Its namespace. Enterprise; the Community Edition refuses even an empty one.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub namespace: Text,
    /// Its partition. Enterprise; the Community Edition refuses even an empty one.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub partition: Text,
    /// What token every request must carry. An empty one is another than none.
    #[serde(rename = "JWT", skip_serializing_if = "Option::is_none")]
    pub jwt: Option<IntentionJwt>,
    /// Who may or may not; at least one. Consul keeps the order within a precedence and sorts by it.
    #[serde(deserialize_with = "list")]
    pub sources: Vec<SourceIntention>,
    /// Metadata.
    #[serde(with = "pairs", skip_serializing_if = "Pairs::is_empty")]
    pub meta: Pairs,
    /// Raft index of the creation. Not sent.
    #[serde(skip_serializing)]
    pub create_index: u64,
    /// Raft index of the last change. Not sent.
    #[serde(skip_serializing)]
    pub modify_index: u64,
    /// All else, without Consul's `Hash`.
    #[serde(flatten, deserialize_with = "unknown_of_entry")]
    pub other: Map<String, Value>,
}

impl ConfigEntry for ServiceIntentions {
    const KIND: &'static str = "service-intentions";
    const ENDPOINT: &'static str = "config/service-intentions";

    fn name(&self) -> &Text {
        &self.name
    }

    fn meta(&self) -> &Pairs {
        &self.meta
    }

    fn create_index(&self) -> u64 {
        self.create_index
    }

    fn modify_index(&self) -> u64 {
        self.modify_index
    }
}

/// What is true of one source, or of all.
///
/// Unlike the name of the destination, that of a source is compared with case: one entry can hold
/// `web` and `Web`. Sources are told apart by name, namespace, partition, peer and sameness group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SourceIntention {
    /// The service; `*` for all.
    #[serde(deserialize_with = "null_is_default")]
    pub name: Text,
    /// Its namespace. Enterprise; the Community Edition refuses even an empty one.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub namespace: Text,
    /// Its partition. Enterprise; the Community Edition refuses even an empty one.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub partition: Text,
    /// The peer that it is imported from; need not exist.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub peer: Text,
    /// Its sameness group. Enterprise.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub sameness_group: Text,
    /// `allow` or `deny`; empty where there are permissions.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub action: Text,
    /// Rules for requests, of which the first that matches decides.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub permissions: Vec<IntentionPermission>,
    /// A text for people, at most 512 bytes.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub description: Text,
    /// How exact both names are, highest first: 9 both, 8 only the destination's, 6 only the source's,
    /// 5 neither. Not sent.
    #[serde(skip_serializing)]
    pub precedence: i64,
    /// `consul`, which Consul fills in where it is empty.
    #[serde(
        rename = "Type",
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub source_type: Text,
    /// All else. What the legacy API left in it (`LegacyID` and its kind) is not sent.
    #[serde(
        flatten,
        deserialize_with = "unknown",
        serialize_with = "without_legacy"
    )]
    pub other: Map<String, Value>,
}

/// A rule for requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IntentionPermission {
    /// `allow` or `deny`.
    #[serde(deserialize_with = "null_is_default")]
    pub action: Text,
    /// Which requests; Consul insists on it, and on at least one condition.
    #[serde(rename = "HTTP", skip_serializing_if = "Option::is_none")]
    pub http: Option<IntentionHttpPermission>,
    /// What token they must carry. An empty one is another than none.
    #[serde(rename = "JWT", skip_serializing_if = "Option::is_none")]
    pub jwt: Option<IntentionJwt>,
    /// All else.
    #[serde(flatten, deserialize_with = "unknown")]
    pub other: Map<String, Value>,
}

/// Conditions on a request, all of which must hold; at most one of the path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IntentionHttpPermission {
    /// The whole path; begins with `/`.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub path_exact: Text,
    /// The beginning of the path; begins with `/`.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub path_prefix: Text,
    /// An expression for the path, which Consul does not check.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub path_regex: Text,
    /// Conditions on headers. Consul keeps their order.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub header: Vec<IntentionHeader>,
    /// Methods, each once. Consul keeps their order and writes them in upper case.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Text>,
    /// All else.
    #[serde(flatten, deserialize_with = "unknown")]
    pub other: Map<String, Value>,
}

/// A condition on a header: exactly one of `present`, `exact`, `prefix`, `suffix`, `contains`, `regex`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IntentionHeader {
    /// Name of the header.
    #[serde(deserialize_with = "null_is_default")]
    pub name: Text,
    /// It is there.
    #[serde(skip_serializing_if = "is_default")]
    pub present: bool,
    /// Its value.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub exact: Text,
    /// The beginning of its value.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub prefix: Text,
    /// The end of its value.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub suffix: Text,
    /// A part of its value.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub contains: Text,
    /// An expression for its value, which Consul does not check.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub regex: Text,
    /// Turns the condition round.
    #[serde(skip_serializing_if = "is_default")]
    pub invert: bool,
    /// Compares without case; not with `present` or `regex`.
    #[serde(skip_serializing_if = "is_default")]
    pub ignore_case: bool,
    /// All else.
    #[serde(flatten, deserialize_with = "unknown")]
    pub other: Map<String, Value>,
}

/// Which JSON web tokens are taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IntentionJwt {
    /// Any of these. Consul keeps their order.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<IntentionJwtProvider>,
    /// All else.
    #[serde(flatten, deserialize_with = "unknown")]
    pub other: Map<String, Value>,
}

/// An issuer of tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IntentionJwtProvider {
    /// Name of its `jwt-provider` entry, which must exist.
    #[serde(deserialize_with = "null_is_default")]
    pub name: Text,
    /// What its tokens must say. Consul keeps the order.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub verify_claims: Vec<IntentionJwtClaim>,
    /// All else.
    #[serde(flatten, deserialize_with = "unknown")]
    pub other: Map<String, Value>,
}

/// A claim with a value. Consul checks neither, and stores even `null` for one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IntentionJwtClaim {
    /// Where it is in the token.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<Text>,
    /// The text there, or one in the list there.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub value: Text,
    /// All else.
    #[serde(flatten, deserialize_with = "unknown")]
    pub other: Map<String, Value>,
}

fn without_legacy<S>(fields: &Map<String, Value>, serializer: S) -> Result<S::Ok, S::Error>
where
    S: Serializer,
{
    serializer.collect_map(
        fields
            .iter()
            .filter(|(name, _)| !LEGACY.contains(&name.as_str())),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_is_an_empty_value_at_every_depth() {
        let entry: ServiceIntentions = serde_json::from_value(json!({
            "Kind": "service-intentions", "Name": "web", "Meta": null, "JWT": {"Providers": null},
            "Sources": [{"Name": "a", "Permissions": null, "Description": null, "LegacyMeta": null},
                        null],
        }))
        .unwrap();
        let source = SourceIntention {
            name: "a".into(),
            ..SourceIntention::default()
        };
        let expected = ServiceIntentions {
            name: "web".into(),
            jwt: Some(IntentionJwt::default()),
            sources: vec![source, SourceIntention::default()],
            ..ServiceIntentions::default()
        };
        assert_eq!(entry, expected);
        // Seen in the answer of a real one.
        let claims: IntentionJwtProvider =
            serde_json::from_value(json!({"Name": "okta", "VerifyClaims": [null]})).unwrap();
        assert_eq!(claims.verify_claims, [IntentionJwtClaim::default()]);
    }

    #[test]
    fn what_is_empty_is_not_written() {
        let bare = ServiceIntentions {
            name: "web".into(),
            jwt: Some(IntentionJwt::default()),
            sources: vec![SourceIntention {
                name: "a".into(),
                action: "allow".into(),
                precedence: 9,
                ..SourceIntention::default()
            }],
            create_index: 3,
            modify_index: 4,
            ..ServiceIntentions::default()
        };
        assert_eq!(
            serde_json::to_value(bare).unwrap(),
            json!({"Kind": "service-intentions", "Name": "web", "JWT": {},
                   "Sources": [{"Name": "a", "Action": "allow"}]})
        );
    }

    #[test]
    fn what_is_not_known_is_written_back_but_for_the_legacy_of_a_source() {
        let mut written = json!({
            "Kind": "service-intentions", "Name": "web", "New": 1,
            "JWT": {"New": 2, "Providers": [{"Name": "p", "New": 3,
                "VerifyClaims": [{"Path": ["a"], "New": 4}]}]},
            "Sources": [{"Name": "a", "New": {"deep": [5]}, "LegacyCreateTime": "2026-01-01T00:00:00Z",
                "LegacyID": "x", "LegacyMeta": {"k": "v"}, "LegacyUpdateTime": "2026-01-01T00:00:00Z",
                "Permissions": [{"Action": "allow", "New": 6, "HTTP": {"New": 7,
                    "Header": [{"Name": "h", "Present": true, "New": 8}]}}]}],
        });
        let mut read = written.clone();
        read["Hash"] = 9.into();
        let entry: ServiceIntentions = serde_json::from_value(read).unwrap();
        assert_eq!(entry.sources[0].other["LegacyMeta"], json!({"k": "v"}));
        for field in LEGACY {
            let source = written["Sources"][0].as_object_mut().unwrap();
            assert!(source.remove(field).is_some());
        }
        assert_eq!(serde_json::to_value(entry).unwrap(), written);
    }
}
