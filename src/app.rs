//! The composition root: what `lictor run` is made of. A part that ends ends the process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use globset::GlobSet;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::consul::{self, ConsulConfig, TokenStanding};
use crate::desired::index::Index;
use crate::k8s;
use crate::k8s::client::ClientOptions;
use crate::metrics::Metrics;
use crate::model::names::ClusterName;
use crate::server::{self, Shown};
use crate::sync::engine::Engine;
use crate::sync::report::Report;
use crate::sync::signals;

/// Events of Kubernetes that may wait for the engine; then the watches wait.
const EVENT_BUFFER: usize = 4096;
/// Signals of Consul that may wait for the engine.
const SIGNAL_BUFFER: usize = 16;
/// How often the token is checked while it is good.
const TOKEN_INTERVAL: Duration = Duration::from_mins(3);
/// How often the token is checked while it is not, or Consul does not answer.
const TOKEN_RETRY: Duration = Duration::from_secs(2);

/// Validated settings of `lictor run`.
#[derive(Debug)]
pub struct Settings {
    /// `--cluster`.
    pub cluster: ClusterName,
    /// `--exclude-namespace`.
    pub excluded: GlobSet,
    /// `--listen`.
    pub listen: SocketAddr,
    /// `--drift-interval`.
    pub drift_interval: Duration,
    /// Where Kubernetes is.
    pub kubernetes: ClientOptions,
    /// Where Consul is.
    pub consul: ConsulConfig,
}

/// Runs until stopped, or until a part fails.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let Settings {
        cluster,
        excluded,
        listen,
        drift_interval,
        kubernetes,
        consul,
    } = settings;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let kube = k8s::client::client(&kubernetes)
        .await
        .context("cannot set up Kubernetes access")?;
    let consul = consul::Client::with_observer(consul, Arc::new(metrics.clone()))
        .context("cannot set up Consul access")?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let listen = listener.local_addr()?;
    tracing::info!(%cluster, %listen, version = env!("CARGO_PKG_VERSION"), "starting");

    let (events, event_writer) = k8s::events::EventWriter::new(kube.clone(), &identity());
    let (statuses, status_writer) = k8s::status::StatusWriter::new(kube.clone());
    let report = Report::new(events, statuses, metrics.clone());
    let index = Index::new(cluster, excluded);
    let (engine, readiness) = Engine::new(consul.clone(), index, report, drift_interval);
    let (event_sender, event_receiver) = mpsc::channel(EVENT_BUFFER);
    let (signal_sender, signal_receiver) = mpsc::channel(SIGNAL_BUFFER);
    // Nobody else writes yet: leadership comes with more than one replica.
    metrics.leader.set(1);

    let mut parts = JoinSet::new();
    for kind in k8s::Kind::ALL {
        let watch = kind.watch(kube.clone(), None, event_sender.clone());
        parts.spawn(async move {
            watch.await;
            Ok("a watch of Kubernetes")
        });
    }
    drop(event_sender);
    parts.spawn(ending("Events", event_writer.run()));
    parts.spawn(ending("statuses", status_writer.run()));
    parts.spawn(ending(
        "the check of the token",
        check_token(consul.clone()),
    ));
    let signals = signals::watch(consul.clone(), signal_sender, stop.clone());
    parts.spawn(ending("the watch of Consul", signals));
    let shown = Shown {
        readiness,
        registry: Arc::new(registry),
        metrics,
        consul,
    };
    let server = server::serve(listener, shown, stop.clone());
    parts.spawn(async move {
        server
            .await
            .map(|()| "the server")
            .context("the server failed")
    });
    let engine = engine.run(event_receiver, signal_receiver, stop.clone());

    tokio::select! {
        ended = engine => ended.context("the engine ended"),
        Some(ended) = parts.join_next() => {
            if stop.is_cancelled() {
                return Ok(());
            }
            match ended {
                Ok(Ok(part)) => Err(anyhow::anyhow!("{part} ended")),
                Ok(Err(error)) => Err(error),
                Err(error) => Err(error).context("a part broke down"),
            }
        }
    }
}

async fn ending(part: &'static str, run: impl Future<Output = ()>) -> anyhow::Result<&'static str> {
    run.await;
    Ok(part)
}

/// Who reports Events: the pod, or the host that the process runs on.
fn identity() -> String {
    std::env::var("POD_NAME")
        .or_else(|_| std::env::var("HOSTNAME"))
        .unwrap_or_else(|_| format!("lictor-{}", std::process::id()))
}

/// Keeps knowing whether the token is one: with ACLs on, reads without one are silently empty.
async fn check_token(consul: consul::Client) {
    let mut told = None;
    loop {
        let standing = consul.check_token().await;
        let good = matches!(
            standing,
            Ok(TokenStanding::AclsOff | TokenStanding::Token { .. })
        );
        let text = match &standing {
            Ok(standing) => format!("{standing:?}"),
            Err(error) => error.to_string(),
        };
        if !good && told.as_ref() != Some(&text) {
            tracing::warn!("the Consul token cannot be relied on: {text}");
        }
        told = (!good).then_some(text);
        tokio::time::sleep(if good { TOKEN_INTERVAL } else { TOKEN_RETRY }).await;
    }
}
