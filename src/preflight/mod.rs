//! `lictor check`: whether `lictor run` could work with these settings, here and now.
//!
//! `gather` asks both sides, reads only and gives [`Facts`]; [`judge`] is pure and makes [`Finding`]s of them.
//! What one question brings or fails to bring stops no other.

mod clock;
mod consul;
mod facts;
mod finding;
mod gather;
mod kubernetes;
mod neighbours;

pub use facts::Facts;
pub use finding::{Finding, Report, Status};
pub use gather::gather;

use std::time::Duration;

use crate::app::Scope;
use crate::k8s::LeaseName;
use crate::model::names::ClusterName;

/// What `lictor run` would be started with, as far as something here depends on it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `--cluster`.
    pub cluster: ClusterName,
    /// `--namespace`; empty for all.
    pub scope: Scope,
    /// The Lease that is agreed by on who leads, if it is by one.
    pub lease: Option<LeaseName>,
    /// `--readiness-gate`.
    pub readiness_gate: bool,
    /// `--dead-after`.
    pub dead_after: Option<Duration>,
    /// `--take-over`.
    pub take_over: Option<String>,
    /// The only services that are to be registered; empty for any.
    pub services: Vec<String>,
}

/// What the facts mean for a `lictor run` with these settings.
#[must_use]
pub fn judge(settings: &Settings, facts: &Facts) -> Report {
    let mut findings = kubernetes::judge(&facts.kubernetes);
    findings.extend(consul::judge(settings, &facts.consul));
    findings.push(neighbours::name(settings, facts));
    findings.extend(neighbours::nodes(facts));
    findings.extend(neighbours::consul_k8s(facts));
    Report {
        cluster: settings.cluster.to_string(),
        findings,
    }
}

/// The first few of many names, in one line.
fn some(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>();
    let shown = shown.join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
