//! The composition root: what `lictor run` is made of. A part that ends ends the process.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use globset::GlobSet;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::access::{Access, AuthMethod};
use crate::checks;
use crate::checks::apis::{self, Api};
use crate::checks::forbidden::Forbidden;
use crate::consul::{self, Consistency, ConsulConfig};
use crate::desired::esm::Runner;
use crate::desired::index::Index;
use crate::k8s;
use crate::k8s::client::ClientOptions;
use crate::k8s::{Home, Regarding};
use crate::metrics::Metrics;
use crate::model::epoch::{Epoch, EpochKind};
use crate::model::kind::Kind;
use crate::model::names::ClusterName;
use crate::model::text::Text;
use crate::plan::critical::looks;
use crate::server::{self, Shown};
use crate::sync::engine::{Engine, Inputs, Options};
use crate::sync::gates::Gates;
use crate::sync::report::Report;
use crate::sync::signals;

/// Events of Kubernetes that may wait for the engine; then the watches wait.
const EVENT_BUFFER: usize = 4096;
/// Signals of Consul that may wait for the engine.
const SIGNAL_BUFFER: usize = 16;
/// How long giving back what logins gave may take at the end.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// The namespaces whose objects count.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Those that alone are watched (`--namespace`); empty for all.
    pub namespaces: BTreeSet<Text>,
    /// Those whose objects claim nothing (`--exclude-namespace`).
    pub excluded: GlobSet,
}

impl Scope {
    /// As the epoch has it.
    #[must_use]
    pub fn of_epoch(&self) -> Vec<String> {
        self.namespaces.iter().map(ToString::to_string).collect()
    }
}

/// Validated settings of `lictor run`.
#[derive(Debug)]
pub struct Settings {
    /// `--cluster`.
    pub cluster: ClusterName,
    /// `--namespace` and `--exclude-namespace`.
    pub scope: Scope,
    /// `--listen`.
    pub listen: SocketAddr,
    /// `--consistency`.
    pub consistency: Consistency,
    /// How the engine works.
    pub engine: Options,
    /// `--checks`.
    pub checks: Runner,
    /// `--allow-local-checks`.
    pub allow_local_checks: bool,
    /// `--readiness-gate`.
    pub readiness_gate: bool,
    /// Where Kubernetes is.
    pub kubernetes: ClientOptions,
    /// Where Consul is.
    pub consul: ConsulConfig,
    /// `--consul-auth-method`.
    pub auth_method: Option<AuthMethod>,
}

/// Runs until stopped, or until a part fails.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let Settings {
        cluster,
        scope,
        listen,
        consistency,
        engine: options,
        checks: runner,
        allow_local_checks,
        readiness_gate,
        kubernetes,
        consul,
        auth_method,
    } = settings;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let (kube, api_server) = k8s::client::client_and_address(&kubernetes)
        .await
        .context("cannot set up Kubernetes access")?;
    let apis = api_server.into_iter().chain(consul.hosts()).collect();
    let consul = consul::Client::with_observer(consul, Arc::new(metrics.clone()))
        .context("cannot set up Consul access")?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let listen = listener.local_addr()?;
    tracing::info!(%cluster, %listen, version = env!("CARGO_PKG_VERSION"), "starting");

    let (events, event_writer) = k8s::events::EventWriter::new(kube.clone(), &identity());
    let (statuses, status_writer) = k8s::status::StatusWriter::new(kube.clone());
    let status_writer = status_writer.telling(events.clone());
    let mut report = Report::new(events, statuses, metrics.clone());
    report.own_pod = own_pod();
    report.gates = Gates::new(readiness_gate);
    let watched = scope.of_epoch();
    let Scope {
        namespaces,
        excluded,
    } = scope;
    let index = Index::new(cluster.clone(), excluded)
        .with_runner(runner)
        .in_namespaces(namespaces.clone());
    let (orders, prober, told) = checks::channel();
    let (questions, asked) = mpsc::channel(looks::AT_ONCE);
    let (answers, looked) = mpsc::channel(looks::AT_ONCE);
    let (engine, readiness) =
        Engine::new(consul.clone(), index, report, orders, questions, options);
    let (event_sender, event_receiver) = mpsc::channel(EVENT_BUFFER);
    let (signal_sender, signal_receiver) = mpsc::channel(SIGNAL_BUFFER);
    let mut parts = JoinSet::new();
    let home = Home::in_namespaces(kube, namespaces.clone());
    watch_kubernetes(&mut parts, &home, &namespaces, event_sender, &engine);
    let look = k8s::look(home.clone(), asked, answers, looks::AT_ONCE);
    parts.spawn(ending("the look at single pods", look));
    let forbidden = look_up(&mut parts, apis, consul.clone(), allow_local_checks);
    parts.spawn(prober.run(forbidden.clone(), metrics.clone()));
    parts.spawn(ending("Events", event_writer.run()));
    parts.spawn(ending("statuses", status_writer.run()));
    let (token_sender, token_problem) = watch::channel(None);
    let access = Access::new(consul.clone(), auth_method);
    let done = CancellationToken::new();
    let access = tokio::spawn(access.keep(token_sender, done.clone()));
    let signals = signals::watch(
        consul.clone(),
        cluster,
        consistency,
        signal_sender,
        stop.clone(),
    );
    parts.spawn(ending("the watch of Consul", signals));
    let (epoch_sender, epoch_receiver) = oneshot::channel();
    tokio::spawn(async move {
        let uid = home.uid().await.to_string();
        // Nobody waits for it any more only where the engine ended.
        let _ = epoch_sender.send(epoch_of(uid, watched, EpochKind::Run));
    });
    let shown = Shown {
        readiness,
        registry: Arc::new(registry),
        metrics,
        consul,
        token_problem,
        started: Instant::now(),
    };
    let server = server::serve(listener, shown, stop.clone());
    parts.spawn(ending("the server", server));
    let inputs = Inputs {
        kubernetes: event_receiver,
        signals: signal_receiver,
        told,
        forbidden,
        looked,
        epoch: epoch_receiver,
    };
    let engine = engine.run(inputs, stop.clone());

    let engine = Box::pin(async { engine.await.context("the engine ended") });
    let ended = first_to_end(engine, &mut parts, &stop).await;
    // After the last write, which needs the token.
    done.cancel();
    let _ = tokio::time::timeout(LAST_CALLS, access).await;
    ended
}

/// Waits until the engine ends, or a part, which ends the process too.
async fn first_to_end(
    mut engine: std::pin::Pin<Box<impl Future<Output = anyhow::Result<()>>>>,
    parts: &mut JoinSet<anyhow::Result<&'static str>>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        ended = &mut engine => ended,
        // Parts end when told to stop; the engine then still waits for its writes.
        Some(ended) = parts.join_next() => match ended {
            _ if stop.is_cancelled() => engine.await,
            Ok(Ok(part)) => Err(anyhow::anyhow!("{part} ended")),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error).context("a part broke down"),
        }
    }
}

/// Keeps it known where no check may connect to.
fn look_up(
    parts: &mut JoinSet<anyhow::Result<&'static str>>,
    apis: Vec<Api>,
    consul: consul::Client,
    allows_local: bool,
) -> watch::Receiver<Option<Arc<Forbidden>>> {
    let (sender, forbidden) = watch::channel(None);
    let servers = move || {
        let consul = consul.clone();
        async move { consul.servers().await.ok() }
    };
    let follow = apis::follow(apis, servers, allows_local, sender);
    parts.spawn(ending("the look-up of the APIs", follow));
    forbidden
}

/// Starts the watches of all kinds, whose events go to the engine.
fn watch_kubernetes(
    parts: &mut JoinSet<anyhow::Result<&'static str>>,
    home: &Home,
    namespaces: &BTreeSet<Text>,
    events: mpsc::Sender<k8s::KubeEvent>,
    engine: &Engine,
) {
    for kind in Kind::ALL {
        let relists = engine.relists();
        let watch = k8s::watch_in(kind, home.clone(), namespaces, events.clone(), relists);
        if let Some(watch) = watch {
            parts.spawn(ending("a watch of Kubernetes", watch));
        }
    }
    let leases = k8s::watch_leases(engine.lease_namespaces(), home.clone(), events);
    parts.spawn(ending("the watch of Leases", leases));
}

async fn ending(part: &'static str, run: impl Future<Output = ()>) -> anyhow::Result<&'static str> {
    run.await;
    Ok(part)
}

/// The first epoch of this process.
#[must_use]
pub fn epoch_of(uid: String, scope: Vec<String>, kind: EpochKind) -> Epoch {
    Epoch {
        holder: holder(),
        uid,
        scope,
        kind,
        term: 1,
        other: serde_json::Map::new(),
    }
}

/// A name for this process that no other has.
#[must_use]
pub fn holder() -> String {
    format!("{}/{:08x}", identity(), rand::random::<u32>())
}

/// What a variable of the environment says. One that is set to nothing is not set.
#[must_use]
pub fn told(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The pod that this process runs as, if it was told.
fn own_pod() -> Option<Regarding> {
    let (namespace, name, uid) = (told("POD_NAMESPACE")?, told("POD_NAME")?, told("POD_UID")?);
    Some(Regarding::pod(namespace.into(), name.into(), uid.into()))
}

/// Who reports Events: the pod, or the host that the process runs on.
fn identity() -> String {
    std::env::var("POD_NAME")
        .or_else(|_| std::env::var("HOSTNAME"))
        .unwrap_or_else(|_| format!("lictor-{}", std::process::id()))
}
