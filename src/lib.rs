//! Lictor keeps Consul equal to what Kubernetes objects ask for.

pub mod api;
pub mod consul;
pub mod desired;
pub mod k8s;
pub mod metrics;
pub mod model;
pub mod observed;
pub mod plan;
pub mod status;
pub mod sync;
