//! `lictor run`.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::consul::ConsulFlags;
use super::election::ElectionFlags;
use super::kubernetes::KubernetesFlags;
use super::planning::PlanningFlags;
use super::scope::ScopeFlags;
use crate::app::{self, Settings};
use crate::consul::Consistency;
use crate::model::names::{ClusterName, InvalidName};
use crate::plan::guard::Limits;
use crate::plan::panic::{self, NodePanic};
use crate::plan::vacancy::Vacancies;
use crate::plan::{DriftMode, Rules};
use crate::settings::{Values, duration};
use crate::sync::engine::Options;
use crate::telemetry::{self, LogFormat};

#[derive(Args, Debug)]
pub(super) struct Run {
    /// Name of this Kubernetes cluster: a DNS label of at most 32 characters without `--`, unique
    /// among all that write to this Consul. Everything that Lictor writes carries it
    #[arg(long, env = "LICTOR_CLUSTER", value_name = "NAME", value_parser = cluster)]
    cluster: ClusterName,
    #[command(flatten)]
    scope: ScopeFlags,
    /// Longest time in which a change that another hand made in Consul is found while Lictor writes
    #[arg(
        long,
        env = "LICTOR_DRIFT_INTERVAL",
        default_value = "10s",
        value_parser = duration,
        value_name = "DURATION"
    )]
    drift_interval: Duration,
    /// Which servers of Consul may tell that something changed; what is there is always read from the
    /// leader before anything is decided
    #[arg(
        long,
        env = "LICTOR_CONSISTENCY",
        default_value = "default",
        value_name = "MODE"
    )]
    consistency: Consistency,
    /// Most entries written to Consul in a second; by default as many as it takes
    #[arg(long, env = "LICTOR_CONSUL_WRITE_RATE", value_name = "ENTRIES")]
    consul_write_rate: Option<NonZeroU32>,
    /// Address for `/livez`, `/readyz` and `/metrics`
    #[arg(
        long,
        env = "LICTOR_LISTEN",
        default_value = "0.0.0.0:8080",
        value_name = "ADDR:PORT"
    )]
    listen: SocketAddr,
    /// How log lines are written
    #[arg(
        long,
        env = "LICTOR_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    log_format: LogFormat,
    /// Least level of log lines (error, warn, info, debug, trace), or a filter by target
    #[arg(
        long,
        env = "LICTOR_LOG_LEVEL",
        default_value = "info",
        value_name = "LEVEL"
    )]
    log_level: String,
    /// What is done about a change that another hand made in Consul
    #[arg(
        long,
        env = "LICTOR_DRIFT",
        default_value = "repair",
        value_name = "MODE"
    )]
    drift: DriftMode,
    /// Complete lists, 30 s apart, that must agree before something is removed that way
    #[arg(
        long,
        env = "LICTOR_DELETE_CONFIRM",
        default_value_t = Limits::default().confirm,
        value_parser = clap::value_parser!(u32).range(1..=100),
        value_name = "LISTS"
    )]
    delete_confirm: u32,
    /// If more than this share of the nodes, in percent, turns not Ready or is found missing within a
    /// minute, their checks in Consul stay as they are until it is less; 100 is off
    #[arg(
        long,
        env = "LICTOR_NODE_PANIC",
        default_value_t = panic::DEFAULT_PERCENT,
        value_parser = clap::value_parser!(u8).range(0..=100),
        value_name = "PERCENT"
    )]
    node_panic: u8,
    /// How long a node in Consul stays when it is empty and its Kubernetes node is gone; with --namespace it goes
    /// with its last instance
    #[arg(
        long,
        env = "LICTOR_NODE_GRACE",
        default_value = "10m",
        value_parser = duration,
        value_name = "DURATION"
    )]
    node_grace: Duration,
    /// Let checks ask loopback and link-local addresses, the API server and Consul: for tests, or where
    /// all is on one machine
    #[arg(long, env = "LICTOR_ALLOW_LOCAL_CHECKS")]
    allow_local_checks: bool,
    /// Set the condition lictor.io/registered of pods that have it as a readiness gate once Consul has
    /// all their instances; needs the right to patch pods/status
    #[arg(long, env = "LICTOR_READINESS_GATE")]
    readiness_gate: bool,
    #[command(flatten)]
    election: ElectionFlags,
    /// UID of the Kubernetes cluster (of its namespace kube-system, or of the first of --namespace by name) that
    /// this one replaces under its cluster name; its own UID where --namespace changed
    #[arg(long, env = "LICTOR_TAKE_OVER", value_name = "UID")]
    take_over: Option<String>,
    #[command(flatten)]
    planning: PlanningFlags,
    #[command(flatten)]
    kubernetes: KubernetesFlags,
    #[command(flatten)]
    consul: ConsulFlags,
}

impl Run {
    pub(super) fn execute(self) -> Result<(), Failure> {
        let (log_level, traces) = telemetry::start_traced(&self.log_level, self.log_format)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let scope = self.scope.scope()?;
        let admission = self.planning.claims(&scope)?.admission();
        // Nobody knows of a node there that it is gone: it goes with the last that is on it.
        let node_grace = if scope.namespaces.is_empty() {
            self.node_grace
        } else {
            Duration::ZERO
        };
        let lease = self.election.lease(&self.cluster);
        let settings = Settings {
            cluster: self.cluster,
            scope,
            listen: self.listen,
            consistency: self.consistency,
            checks: self.planning.checks,
            allow_local_checks: self.allow_local_checks,
            readiness_gate: self.readiness_gate,
            admission,
            election: self.election.leader_election,
            lease,
            engine: Options {
                settings: Values {
                    log_level: self.log_level,
                    policy: self.planning.policy,
                    drift: self.drift,
                    drift_interval: self.drift_interval,
                    limits: Limits {
                        confirm: self.delete_confirm,
                        ..self.planning.limits()
                    },
                    sweep_critical_after: self.planning.sweep_critical_after,
                    consul_write_rate: self.consul_write_rate,
                },
                log_level: Some(log_level),
                take_over: self.take_over,
                rules: Rules {
                    nodes: NodePanic::new(self.node_panic),
                    vacancies: Vacancies::new(node_grace),
                    dead_after: self.planning.dead_after,
                    ..Rules::default()
                },
            },
            kubernetes: self.kubernetes.options(),
            auth_method: self.consul.auth_method()?,
            consul: self.consul.config()?,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let ended = runtime.block_on(async {
            let stop = CancellationToken::new();
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let stopping = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!("stopping; Consul stays as it is");
                stopping.cancel();
            });
            Box::pin(app::run(settings, stop)).await
        });
        // Also after a failure: else the end would wait for a name that cannot be resolved.
        runtime.shutdown_timeout(Duration::from_secs(1));
        traces.end();
        Ok(ended?)
    }
}

pub(super) fn cluster(name: &str) -> Result<ClusterName, InvalidName> {
    name.parse()
}
