//! The Kubernetes API that Lictor serves: its kinds, their validation rules and their status. Pure.
//!
//! The doc comments of the fields become the descriptions in the CRDs, so they are written for
//! readers of `kubectl explain`.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod conditions;
pub mod health;
pub mod intention;
pub mod mesh;
pub mod object;
pub mod prepared_query;
pub mod registration_policy;
mod schema;
pub mod selector;
pub mod service_registration;
pub mod status;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

pub use conditions::{Condition, ConditionType};
pub use intention::{Intention, IntentionSpec, IntentionStatus};
pub use object::{IntentionObject, PolicyObject, PreparedQueryObject, RegistrationObject};
pub use prepared_query::{PreparedQuery, PreparedQueryStatus, QuerySpec};
pub use registration_policy::{RegistrationPolicy, RegistrationPolicySpec};
pub use selector::LabelSelector;
pub use service_registration::{
    ServiceRegistration, ServiceRegistrationSpec, ServiceRegistrationStatus,
};
pub use status::ConsulState;

/// The API group of all kinds of Lictor, and the domain of its annotations.
pub const GROUP: &str = "lictor.io";

/// The CRDs of all kinds, in the order in which they are to be installed.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    [
        ServiceRegistration::crd(),
        Intention::crd(),
        PreparedQuery::crd(),
        RegistrationPolicy::crd(),
    ]
    .map(schema::polished)
    .into()
}

/// A CRD as YAML, for `lictor crds` and the files under `crds/`. The same CRD always gives the same
/// text.
pub fn crd_yaml(crd: &CustomResourceDefinition) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(&schema::plain(crd)?)?)
}

/// The name of the file under `crds/` that holds a CRD.
#[must_use]
pub fn crd_file_name(crd: &CustomResourceDefinition) -> String {
    format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural)
}
