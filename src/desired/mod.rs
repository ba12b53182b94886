//! What Kubernetes objects ask Consul to hold. Pure.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

pub mod annotations;
pub mod claim;
pub mod esm;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod health;
pub mod index;
pub mod intention;
pub mod mesh;
pub mod parsed;
pub mod probe;
mod problems;
pub mod query;
pub mod registration;
pub mod shape;
pub mod spec;
pub mod table;
pub mod template;
pub mod watches;
