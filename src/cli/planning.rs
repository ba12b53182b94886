//! The flags that say what is decided, by `lictor run` and by `lictor plan`, which shows what that would do.

use std::time::Duration;

use clap::Args;

use super::Failure;
use crate::app::Scope;
use crate::desired::esm::Runner;
use crate::plan::Mode;
use crate::plan::guard::Limits;
use crate::policy::{Admission, DefaultPolicy};
use crate::settings::{critical_time, duration};

#[derive(Args, Debug)]
pub(super) struct PlanningFlags {
    /// What may be written to Consul
    #[arg(
        long,
        env = "LICTOR_POLICY",
        default_value = "sync",
        value_name = "POLICY"
    )]
    pub(super) policy: Mode,
    /// Largest share of all entries, in percent, that may be removed within ten minutes without
    /// anybody having been seen to delete what they were for
    #[arg(
        long,
        env = "LICTOR_MAX_DELETE_PERCENT",
        default_value_t = Limits::default().percent,
        value_parser = clap::value_parser!(u8).range(0..=100),
        value_name = "PERCENT"
    )]
    max_delete_percent: u8,
    /// So many entries may be removed that way whatever their share
    #[arg(
        long,
        env = "LICTOR_MAX_DELETE_FLOOR",
        default_value_t = Limits::default().floor,
        value_name = "COUNT"
    )]
    max_delete_floor: usize,
    /// Let Consul itself turn all instances critical when no Lictor has reached it for this long, or up to
    /// twice as long; by default their health stays as it was last seen. 1m to 24h; needs Consul 1.21 or later
    #[arg(long, env = "LICTOR_DEAD_AFTER", value_parser = dead_after, value_name = "DURATION")]
    pub(super) dead_after: Option<Duration>,
    /// Deregister any instance of ours whose own checks were critical for that long, at least 30s, until they
    /// are not; by default only where deregisterCriticalServiceAfter asks for it
    #[arg(
        long,
        env = "LICTOR_SWEEP_CRITICAL_AFTER",
        value_parser = critical_time,
        value_name = "DURATION"
    )]
    pub(super) sweep_critical_after: Option<Duration>,
    /// Who runs the checks of `ServiceRegistration`s: Lictor, or consul-esm by definitions that Lictor
    /// writes
    #[arg(
        long,
        env = "LICTOR_CHECKS",
        default_value = "lictor",
        value_name = "WHO"
    )]
    pub(super) checks: Runner,
    /// What objects may claim in namespaces that no `RegistrationPolicy` chooses: with exclusive a service
    /// name belongs to the namespace that claimed it first, with shared everything is allowed, with deny
    /// nothing; to be given with --namespace, else exclusive
    #[arg(long, env = "LICTOR_DEFAULT_POLICY", value_name = "POLICY")]
    default_policy: Option<DefaultPolicy>,
    /// With --default-policy exclusive: how long a service name belongs to a namespace after its last claim
    #[arg(
        long,
        env = "LICTOR_NAME_HOLD",
        default_value = "24h",
        value_parser = duration,
        value_name = "DURATION"
    )]
    name_hold: Duration,
}

/// `--default-policy` and `--name-hold`, as they hold for the namespaces that count.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClaimRule {
    rule: DefaultPolicy,
    hold: Duration,
    /// Whether no policies are read, which `--namespace` implies.
    is_alone: bool,
}

impl ClaimRule {
    /// A judge that knows of no claim yet.
    pub(super) fn admission(self) -> Admission {
        if self.is_alone {
            Admission::by_default_alone(self.rule, self.hold)
        } else {
            Admission::new(self.rule, self.hold)
        }
    }
}

impl PlanningFlags {
    /// Who may claim which name.
    pub(super) fn claims(&self, scope: &Scope) -> Result<ClaimRule, Failure> {
        let is_alone = !scope.namespaces.is_empty();
        let given = self.default_policy;
        let given = given.or_else(|| (!is_alone).then(DefaultPolicy::default));
        let rule = given.ok_or_else(|| {
            Failure::Usage(
                "--namespace needs --default-policy, which alone says who may claim which name then: give \
                 exclusive, shared or deny"
                    .to_owned(),
            )
        })?;
        Ok(ClaimRule {
            rule,
            hold: self.name_hold,
            is_alone,
        })
    }

    /// What may be removed of all that is found missing.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            percent: self.max_delete_percent,
            floor: self.max_delete_floor,
            ..Limits::default()
        }
    }
}

/// What the time to live of a session may be, but for less than a minute, which would be an outage whenever
/// Lictor is started anew.
pub(super) fn dead_after(text: &str) -> Result<Duration, String> {
    let after = duration(text)?;
    if after < Duration::from_mins(1) {
        return Err("must be at least 1m".to_owned());
    }
    if after > Duration::from_hours(24) {
        return Err("must be at most 24h".to_owned());
    }
    if after.subsec_nanos() != 0 {
        return Err("must be a number of whole seconds".to_owned());
    }
    Ok(after)
}
