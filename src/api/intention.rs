//! `Intention`: who may call a service in the mesh.
//!
//! Fields and spelling are those of consul-k8s' `ServiceIntentions`, so that a manifest moves by a
//! change of its `apiVersion` and `kind`. In optional texts `""`, as templates leave it, is the same
//! as none, for the rules and in what is decoded.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::Condition;
use super::schema;
use super::status::ConsulState;

/// Who may call the destination.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "lictor.io",
    version = "v1alpha1",
    kind = "Intention",
    plural = "intentions",
    shortname = "intent",
    category = "lictor",
    namespaced,
    status = "IntentionStatus",
    derive = "PartialEq",
    doc = "Allows or denies services in the mesh to call a Consul service. Many Intentions may name one destination: their sources are merged.",
    printcolumn(
        name = "Destination",
        type_ = "string",
        json_path = ".status.destination",
        description = "The Consul service that is called"
    ),
    printcolumn(
        name = "Sources",
        type_ = "string",
        json_path = ".status.sources.summary",
        description = "Sources in Consul / sources asked for"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether Consul equals what this object claims"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since the object was created"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not, in a word",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        description = "Why it is ready or not",
        priority = 1
    ),
    validation = Rule::new(
        "self.spec.destination.name != '*' \
         || self.spec.sources.all(source, source.?permissions.orValue([]).size() == 0)"
    ).message(
        "permissions need a destination by name: for destination * give an action"
    ).field_path(".spec.sources")
)]
#[serde(rename_all = "camelCase")]
pub struct IntentionSpec {
    /// The service that is called.
    pub destination: IntentionDestination,
    /// The services that call it, and what each may do. Their order does not matter: the more exact
    /// one decides.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = schema::sources_once())]
    pub sources: Vec<IntentionSource>,
    /// JSON Web Tokens that every request to the destination must carry, whoever the source. One
    /// Intention of a destination gives them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<IntentionJwt>,
    /// Whether sources that stand in Consul for this destination and have no owner's mark of any kind,
    /// such as those that were made by hand, are taken over. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopt: Option<bool>,
}

/// The service that is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = schema::wildcard_namespace())]
#[serde(rename_all = "camelCase")]
pub struct IntentionDestination {
    /// Name of the Consul service, which need not be registered; `*` is every service that has no
    /// intentions of its own.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(
        validation = schema::name_or_wildcard("a destination's name"),
        validation = Rule::new("!(self in ['.', '..'])").message(
            "a destination's name is not . or .., which no URL can ask for"
        )
    )]
    pub name: String,
    /// Its Consul namespace (Consul Enterprise), or `*` with the name `*`.
    #[schemars(length(max = 256))]
    #[x_kube(validation = schema::empty_name_or_wildcard("namespace"))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub namespace: Option<String>,
    /// Its admin partition (Consul Enterprise).
    #[schemars(length(max = 256))]
    #[x_kube(validation = schema::empty_or_name("partition"))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub partition: Option<String>,
}

/// A service that calls, and what it may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "(self.?action.orValue('') != '') != (self.?permissions.orValue([]).size() > 0)"
    ).message("give exactly one of action (for every request) and permissions (by path, header and method)"),
    validation = schema::wildcard_namespace(),
    validation = schema::at_most_one(&["partition", "peer", "samenessGroup"]).message(
        "give at most one of partition, peer and samenessGroup: each says on its own where the source is"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct IntentionSource {
    /// Name of the Consul service, which need not be registered; `*` is every service that is not
    /// named.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = schema::name_or_wildcard("a source's name"))]
    pub name: String,
    /// Its Consul namespace (Consul Enterprise), or `*` with the name `*`.
    #[schemars(length(max = 256))]
    #[x_kube(validation = schema::empty_name_or_wildcard("namespace"))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub namespace: Option<String>,
    /// Its admin partition (Consul Enterprise). At most one of partition, peer and samenessGroup.
    #[schemars(length(max = 256))]
    #[x_kube(validation = schema::empty_or_name("partition"))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub partition: Option<String>,
    /// The cluster peering that it comes through. At most one of partition, peer and samenessGroup.
    #[schemars(length(max = 256))]
    #[x_kube(validation = schema::empty_or_name("peer"))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub peer: Option<String>,
    /// Its sameness group (Consul Enterprise). At most one of partition, peer and samenessGroup.
    #[schemars(length(max = 256))]
    #[x_kube(validation = schema::empty_or_name("samenessGroup"))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub sameness_group: Option<String>,
    /// What becomes of a request: `allow` or `deny`. Exactly one of action and permissions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<IntentionAction>,
    /// What it may do, by request: the first that matches decides, and where none does, Consul's
    /// default. The destination's protocol must be http, http2 or grpc. Exactly one of action and
    /// permissions.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub permissions: Vec<IntentionPermission>,
    /// A text for people, shown by Consul; at most 512 bytes.
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new("bytes(self).size() <= 512").message(
        "a description has at most 512 bytes: letters outside of ASCII count for more than one"
    ))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub description: Option<String>,
}

/// What becomes of a request: `allow` or `deny`. A source has exactly one of action and permissions.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum IntentionAction {
    /// It passes.
    Allow,
    /// It is refused.
    #[default]
    Deny,
}

/// What becomes of the requests that match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct IntentionPermission {
    /// What becomes of a request that matches: `allow` or `deny`.
    pub action: IntentionAction,
    /// Which requests match: those for which all that is given here holds.
    pub http: HttpPermission,
    /// JSON Web Tokens that a request must carry to match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<IntentionJwt>,
}

/// Which HTTP requests match: those for which all that is given holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = schema::at_most_one(&["pathExact", "pathPrefix", "pathRegex"]).message(
        "give at most one of pathExact, pathPrefix and pathRegex"
    ),
    validation = Rule::new(
        "self.?pathExact.orValue('') != '' || self.?pathPrefix.orValue('') != '' \
         || self.?pathRegex.orValue('') != '' || self.?header.orValue([]).size() > 0 \
         || self.?methods.orValue([]).size() > 0"
    ).message("say which requests match, by a path, header or methods: pathPrefix / is every request")
)]
#[serde(rename_all = "camelCase")]
pub struct HttpPermission {
    /// The whole path, which starts with `/`. At most one of pathExact, pathPrefix and pathRegex.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = schema::absolute_path("pathExact"))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub path_exact: Option<String>,
    /// How the path begins, from its first `/`. At most one of pathExact, pathPrefix and pathRegex.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = schema::absolute_path("pathPrefix"))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub path_prefix: Option<String>,
    /// A regular expression (RE2) for the whole path. At most one of pathExact, pathPrefix and
    /// pathRegex.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = schema::regular_expression())]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub path_regex: Option<String>,
    /// What headers must be like: all of these.
    #[schemars(length(max = 8))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub header: Vec<HeaderPermission>,
    /// The methods, in capital letters. Default: any.
    #[schemars(length(max = 9))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<HttpMethod>,
}

/// What a header of a request must be like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "[self.?present.orValue(false), self.?exact.orValue('') != '', self.?prefix.orValue('') != '', \
         self.?suffix.orValue('') != '', self.?contains.orValue('') != '', \
         self.?regex.orValue('') != ''].exists_one(given, given)"
    ).message("give exactly one of present: true, exact, prefix, suffix, contains and regex"),
    validation = Rule::new(
        "!self.?ignoreCase.orValue(false) || (!self.?present.orValue(false) && self.?regex.orValue('') == '')"
    ).message("ignoreCase goes with exact, prefix, suffix and contains only").field_path(".ignoreCase")
)]
#[serde(rename_all = "camelCase")]
pub struct HeaderPermission {
    /// Name of the header.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// `true`: the header is there, with any value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
    /// Its whole value.
    #[schemars(length(max = 1024))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub exact: Option<String>,
    /// How its value begins.
    #[schemars(length(max = 1024))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub prefix: Option<String>,
    /// How its value ends.
    #[schemars(length(max = 1024))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub suffix: Option<String>,
    /// What is somewhere in its value (Consul 1.20.1 and later).
    #[schemars(length(max = 1024))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub contains: Option<String>,
    /// A regular expression (RE2) for its whole value.
    #[schemars(length(max = 256))]
    #[x_kube(validation = schema::regular_expression())]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub regex: Option<String>,
    /// `true`: the request matches when the header is not like that. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invert: Option<bool>,
    /// `true`: capital and small letters are the same, for exact, prefix, suffix and contains (Consul
    /// 1.20.1 and later). Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_case: Option<bool>,
}

/// A method of HTTP.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the names say it")]
pub enum HttpMethod {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Connect,
    Options,
    Trace,
}

impl HttpMethod {
    /// The name, as HTTP and Consul have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
        }
    }
}

/// JSON Web Tokens that a request must carry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct IntentionJwt {
    /// Who may have issued the token: one of these must have.
    #[schemars(length(min = 1, max = 16))]
    pub providers: Vec<JwtProvider>,
}

/// An issuer of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct JwtProvider {
    /// Name of a `jwt-provider` config entry, which must be in Consul.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// What the token must say: all of these.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify_claims: Vec<JwtClaim>,
}

/// What a token must say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct JwtClaim {
    /// Where in the token the claim is, from the outside in, such as `[roles]`.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 256)))]
    pub path: Vec<String>,
    /// What it is there, or what one item of a list is there. Default: the empty text.
    #[schemars(length(max = 1024))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub value: Option<String>,
}

/// What Lictor last saw and did. Written by Lictor only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct IntentionStatus {
    /// The generation of the spec that this status is about.
    #[schemars(schema_with = "schema::index")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The Consul service that is called, or `*`; absent while the object cannot be understood.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Ready (Consul equals what this object claims), Reconciling, Stalled.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Sources of this Intention, and of others for the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<SourceCounts>,
    /// Where it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consul: Option<ConsulState>,
    /// The last error, while it lasts.
    #[schemars(length(max = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Counts of sources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceCounts {
    /// Sources that this object asks for.
    #[schemars(schema_with = "schema::count")]
    pub desired: u32,
    /// Those of them that Consul has as asked for.
    #[schemars(schema_with = "schema::count")]
    pub applied: u32,
    /// Sources of the destination in Consul that are not Lictor's, and are kept.
    #[schemars(schema_with = "schema::count")]
    pub foreign: u32,
    /// `applied/desired`, for `kubectl get`.
    #[schemars(length(max = 32))]
    pub summary: String,
}
