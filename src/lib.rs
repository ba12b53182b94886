//! Lictor keeps Consul equal to what Kubernetes objects ask for.
//!
//! One straight pipe; what is decided is pure, what is done is in one place.
//!
//! ```text
//!  Pods, Nodes, ServiceRegistrations,             Consul: our nodes, their services and checks,
//!  Intentions, PreparedQueries,                   config entries, prepared queries, ledgers
//!  RegistrationPolicies, Namespaces
//!        │ k8s: list and watch, trimmed                   │ sync::apply reads, sync::signals wake
//!        ▼                                                ▼
//!  desired::index   (pure)                        observed::mirror   (pure)
//!  object -> claims on keys,                      key -> entry, and how sure that is
//!  judged by policy::admission
//!        │ touched keys                                   │ changed keys
//!        └───────────────┬────────────────────────────────┘
//!                        ▼
//!      sync::dirty ─▶ plan::decide(key, desired, observed)      (pure)
//!                        ▼
//!      plan::batch ─▶ sync::apply: one transaction, bounded in number, a deadline on every call
//!      plan::entries ─▶ sync::carry: what no transaction takes, one call each, the same way
//!                        │ outcomes ──▶ observed::mirror (what was written is known at once)
//!                        ▼
//!      status::board, status::derive   (pure) ─▶ k8s::status, k8s::events, metrics, logs
//! ```
//!
//! [`leader`] says whether this process may write: the engine plans only while it leads, and
//! [`sync::pass`] looks once more directly before each write.
//!
//! [`sync::engine`] is the one task that owns the index, the mirror and the set of dirty keys; it
//! is the only imperative part that knows both sides. Purity of `api`, `model`, `desired`,
//! `observed`, `plan`, `policy` and `status` is kept by a lint (`clippy.toml`).

pub mod access;
pub mod api;
pub mod app;
pub mod audit;
pub mod checks;
pub mod cli;
pub mod consul;
pub mod desired;
pub mod gc;
pub mod heartbeat;
pub mod k8s;
pub mod leader;
pub mod metrics;
pub mod migrate;
pub mod model;
pub mod observed;
pub mod overview;
pub mod plan;
pub mod policy;
pub mod preflight;
pub mod preview;
pub mod server;
pub mod settings;
pub mod status;
pub mod sync;
pub mod telemetry;
#[cfg(test)]
mod test_log;
#[cfg(test)]
mod test_words;
pub mod traces;
