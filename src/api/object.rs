//! Objects of our kinds as they come from a watch: decoded, or with the reason why they were not.

use super::{
    IntentionSpec, IntentionStatus, PreparedQueryStatus, QuerySpec, RegistrationPolicySpec,
    ServiceRegistrationSpec, ServiceRegistrationStatus,
};
use crate::model::text::{Pairs, Text};

/// An object of one of our kinds as the API server holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Object<S, T> {
    /// `metadata.namespace`.
    pub namespace: Text,
    /// `metadata.name`.
    pub name: Text,
    /// `metadata.uid`.
    pub uid: Text,
    /// `metadata.creationTimestamp`, seconds since the epoch.
    pub created: i64,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.annotations` of the domain `lictor.io`.
    pub annotations: Pairs,
    /// The spec, or why it cannot be decoded.
    pub spec: Result<Box<S>, Text>,
    /// The status, where there is one that can be decoded.
    pub status: Option<Box<T>>,
}

/// A `ServiceRegistration` as the API server holds it.
pub type RegistrationObject = Object<ServiceRegistrationSpec, ServiceRegistrationStatus>;

/// An `Intention` as the API server holds it.
pub type IntentionObject = Object<IntentionSpec, IntentionStatus>;

/// A `PreparedQuery` as the API server holds it.
pub type PreparedQueryObject = Object<QuerySpec, PreparedQueryStatus>;

/// A `RegistrationPolicy` as the API server holds it; it has no status.
pub type PolicyObject = Object<RegistrationPolicySpec, ()>;
