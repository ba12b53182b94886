//! What Kubernetes objects ask Consul to hold. Pure.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

pub mod annotations;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod health;
pub mod shape;
pub mod spec;
pub mod template;
