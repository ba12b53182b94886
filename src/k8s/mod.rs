//! The Kubernetes edge: watches, status, events.
