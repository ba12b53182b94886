//! What Kubernetes objects ask Consul to hold. Pure.
