//! `lictor run`, end to end: a real API server, a real Consul, the real binary with the rights that
//! the chart gives it. What is asserted is what people see: Consul's HTTP API, the status and the
//! Events of objects, `/readyz`, metrics, logs and exit codes.
//!
//! All tests share one bed. Each has a [`support::Scene`] of its own: a namespace, a node, a
//! `--cluster` name, and a `lictor` that sees no other test's namespaces. Tests that stop servers
//! share a second bed, one after the other ([`faults`]).
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod beside;
mod chart;
mod checks;
mod critical;
mod discovery;
mod drift;
mod esm;
mod faults;
mod fence;
mod gates;
mod gc;
mod gc_asks;
mod gc_entries;
mod gc_handover;
mod gitops;
mod guard;
mod heartbeats;
mod intentions;
mod invalid;
mod leader;
mod login;
mod mesh;
mod migrate;
mod modes;
mod namespaces;
mod nodes;
mod ownership;
mod plan;
mod pods;
mod policy;
mod preflight;
mod process;
mod queries;
mod registrations;
mod releases;
mod restart;
mod settings;
mod status;
mod support;
#[cfg(feature = "otel")]
mod traces;
