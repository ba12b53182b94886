//! `lictor run`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::consul::ConsulFlags;
use crate::app::{self, Settings};
use crate::k8s::client::ClientOptions;
use crate::model::names::{ClusterName, InvalidName};
use crate::telemetry::{self, LogFormat};

#[derive(Args, Debug)]
pub(super) struct Run {
    /// Name of this Kubernetes cluster: a DNS label of at most 32 characters without `--`, unique
    /// among all that write to this Consul. Everything that Lictor writes carries it
    #[arg(long, env = "LICTOR_CLUSTER", value_name = "NAME", value_parser = cluster)]
    cluster: ClusterName,
    /// Namespaces whose pods and resources claim nothing; a glob, may be repeated
    #[arg(
        long = "exclude-namespace",
        env = "LICTOR_EXCLUDE_NAMESPACE",
        value_delimiter = ',',
        value_name = "GLOB"
    )]
    exclude_namespace: Vec<String>,
    /// Longest time in which a change that another hand made in Consul is found while Lictor writes
    #[arg(
        long,
        env = "LICTOR_DRIFT_INTERVAL",
        default_value = "10s",
        value_parser = duration,
        value_name = "DURATION"
    )]
    drift_interval: Duration,
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
    /// Kubeconfig file; without it `KUBECONFIG`, `~/.kube/config`, or the service account of the pod
    #[arg(long, env = "LICTOR_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, env = "LICTOR_CONTEXT", value_name = "NAME")]
    context: Option<String>,
    #[command(flatten)]
    consul: ConsulFlags,
}

impl Run {
    pub(super) fn execute(self) -> Result<(), Failure> {
        telemetry::start(&self.log_level, self.log_format)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let settings = Settings {
            cluster: self.cluster,
            excluded: globs(&self.exclude_namespace)?,
            listen: self.listen,
            drift_interval: self.drift_interval,
            kubernetes: ClientOptions {
                kubeconfig: self.kubeconfig,
                context: self.context,
            },
            consul: self.consul.config()?,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        runtime.block_on(async {
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
            app::run(settings, stop).await
        })?;
        runtime.shutdown_timeout(Duration::from_secs(1));
        Ok(())
    }
}

fn cluster(name: &str) -> Result<ClusterName, InvalidName> {
    name.parse()
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: kube::core::Duration = text.parse().map_err(|error| format!("{error}"))?;
    if parsed.is_negative() {
        return Err("must not be negative".to_owned());
    }
    let parsed = Duration::from(parsed);
    if parsed < Duration::from_secs(1) {
        return Err("must be at least 1s".to_owned());
    }
    Ok(parsed)
}

fn globs(patterns: &[String]) -> Result<GlobSet, Failure> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern)
            .build()
            .map_err(|error| Failure::Usage(format!("--exclude-namespace {pattern}: {error}")))?;
        set.add(glob);
    }
    Ok(set.build()?)
}
