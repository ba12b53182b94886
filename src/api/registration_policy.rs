//! `RegistrationPolicy`: who may claim which name in Consul.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use super::selector::LabelSelector;

/// What objects in the chosen namespaces may claim in Consul. A namespace that no policy chooses is
/// judged by `--default-policy`; of several that choose it, one must allow the whole of a claim.
///
/// Patterns: `*` stands for any text, `?` for any one character, `{namespace}` for the namespace of the
/// object that claims.
#[expect(
    clippy::duplicated_attributes,
    reason = "columns may be of one type, and of one priority"
)]
#[derive(
    Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema,
)]
#[kube(
    group = "lictor.io",
    version = "v1alpha1",
    kind = "RegistrationPolicy",
    plural = "registrationpolicies",
    shortname = "regpol",
    category = "lictor",
    derive = "PartialEq",
    doc = "Who may claim which name in Consul: what objects in the chosen namespaces may register, open and look up. Written by administrators.",
    printcolumn(
        name = "Services",
        type_ = "string",
        json_path = ".spec.services",
        description = "The service names that may be claimed"
    ),
    printcolumn(
        name = "Destinations",
        type_ = "string",
        json_path = ".spec.destinations",
        description = "The destinations of Intentions that may be claimed"
    ),
    printcolumn(
        name = "Queries",
        type_ = "string",
        json_path = ".spec.queries",
        description = "The names of prepared queries that may be claimed"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since the object was created"
    ),
    printcolumn(
        name = "Tags",
        type_ = "string",
        json_path = ".spec.tags",
        description = "The tags that instances may have",
        priority = 1
    ),
    printcolumn(
        name = "Account",
        type_ = "boolean",
        json_path = ".spec.requireServiceAccountName",
        description = "Whether a pod's service account must be named like the service",
        priority = 1
    ),
    printcolumn(
        name = "Checks",
        type_ = "string",
        json_path = ".spec.checks",
        description = "Whether instances may have checks",
        priority = 1
    ),
    printcolumn(
        name = "Adopt",
        type_ = "string",
        json_path = ".spec.adopt",
        description = "Whether what nobody owns may be taken over",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct RegistrationPolicySpec {
    /// The namespaces that it is about, by their labels; every namespace has the label
    /// `kubernetes.io/metadata.name`. An empty selector chooses all.
    pub namespace_selector: LabelSelector,
    /// Patterns of the service names that may be claimed. The proxy of a service goes with it. Default:
    /// none.
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)))]
    #[x_kube(validation = schema::name_patterns())]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Patterns of the destinations that Intentions may have. Only the pattern `*` allows the destination
    /// `*`, which stands for all services. Default: none.
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)))]
    #[x_kube(validation = schema::name_patterns())]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<String>,
    /// Patterns of the names that prepared queries may have. A template, which answers every name that
    /// begins with its own, needs a pattern that ends in `*` and has all of them. Default: none.
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)))]
    #[x_kube(validation = schema::name_patterns())]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queries: Vec<String>,
    /// Patterns that every tag of an instance must match one of; an empty list allows no tag. Default: any
    /// tag.
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    #[x_kube(validation = schema::tag_patterns())]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// Whether a pod's service account must be named like the service that it registers as. Endpoints
    /// outside of the cluster have none, and are not allowed then. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_service_account_name: Option<bool>,
    /// Whether instances may have checks of their own (`health.checks`): Allow or Deny. Default: Allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<Checks>,
    /// Whether what stands in Consul without an owner may be taken over (`adopt`): Allow or Deny.
    /// Default: Deny.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopt: Option<Adopt>,
}

/// Whether instances may have checks of their own (`health.checks`): `Allow` (the default) or `Deny`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Checks {
    /// They may.
    Allow,
    /// They may not.
    Deny,
}

/// Whether what stands in Consul without an owner may be taken over (`adopt`): `Allow` or `Deny` (the
/// default).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Adopt {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}
