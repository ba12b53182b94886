//! The composition root: what `lictor run` is made of. A part that ends ends the process.

mod election;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::future::OptionFuture;
use globset::GlobSet;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use self::election::{Ballot, Running};
use crate::access::{Access, AuthMethod};
use crate::checks;
use crate::checks::apis::{self, Apis};
use crate::checks::forbidden::Forbidden;
use crate::consul::{self, Consistency, ConsulConfig};
use crate::desired::esm::Runner;
use crate::desired::index::Index;
use crate::k8s;
use crate::k8s::client::ClientOptions;
use crate::k8s::{Home, LeaseName, Regarding};
use crate::leader::Election;
use crate::metrics::Metrics;
use crate::model::epoch::{Epoch, EpochKind};
use crate::model::kind::Kind;
use crate::model::names::ClusterName;
use crate::model::text::Text;
use crate::plan::Mode;
use crate::plan::critical::looks;
use crate::policy::Admission;
use crate::server::{self, Shown};
use crate::sync::engine::{Engine, EngineError, Inputs, Options};
use crate::sync::gates::Gates;
use crate::sync::report::Report;
use crate::sync::signals;

/// Events of Kubernetes that may wait for the engine; then the watches wait.
const EVENT_BUFFER: usize = 4096;
/// Signals of Consul that may wait for the engine.
const SIGNAL_BUFFER: usize = 16;
/// How long giving back what logins gave may take at the end.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// The namespaces whose objects count.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Those that alone are watched (`--namespace`); empty for all.
    pub namespaces: BTreeSet<Text>,
    /// Those whose objects claim nothing (`--exclude-namespace`).
    pub excluded: GlobSet,
}

impl Scope {
    /// An index of the objects that count, without any yet.
    #[must_use]
    pub fn index(&self, cluster: ClusterName) -> Index {
        Index::new(cluster, self.excluded.clone()).in_namespaces(self.namespaces.clone())
    }

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
    /// `--default-policy` and `--name-hold`.
    pub admission: Admission,
    /// `--leader-election`.
    pub election: Election,
    /// The Lease that is agreed by, where that is how.
    pub lease: LeaseName,
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
        admission,
        election,
        lease,
        kubernetes,
        consul,
        auth_method,
    } = settings;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let (kube, api_server) = k8s::client::client_and_address(&kubernetes)
        .await
        .context("cannot set up Kubernetes access")?;
    let apis = Apis::of(api_server, &consul);
    let consul = consul::Client::with_observer(consul, Arc::new(metrics.clone()))
        .context("cannot set up Consul access")?;
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}: give another address with --listen")
    })?;
    let listen = listener.local_addr()?;
    tracing::info!(%cluster, %listen, version = env!("CARGO_PKG_VERSION"), "starting");

    let mut parts = JoinSet::new();
    let gates = Gates::new(readiness_gate);
    let report = report(&mut parts, &kube, metrics.clone(), gates);
    let index = scope
        .index(cluster.clone())
        .with_runner(runner)
        .with_admission(admission);
    let (orders, prober, told) = checks::channel();
    let (questions, asked) = mpsc::channel(looks::AT_ONCE);
    let (answers, looked) = mpsc::channel(looks::AT_ONCE);
    let ballot = Ballot {
        election: (options.settings.policy != Mode::DryRun).then_some(election),
        lease,
        cluster: cluster.clone(),
        node: index.external_node(),
    };
    let released = CancellationToken::new();
    let (candidate, election) = ballot.open(&kube, &consul, released.clone());
    let (engine, readiness) = Engine::new(
        consul.clone(),
        index,
        report,
        (orders, questions),
        candidate,
        options,
    );
    let (event_sender, event_receiver) = mpsc::channel(EVENT_BUFFER);
    let (signal_sender, signal_receiver) = mpsc::channel(SIGNAL_BUFFER);
    let home = Home::in_namespaces(kube, scope.namespaces.clone());
    watch_kubernetes(&mut parts, &home, &scope.namespaces, event_sender, &engine);
    look_at_pods(&mut parts, home.clone(), asked, answers);
    let forbidden = look_up(&mut parts, apis, consul.clone(), allow_local_checks);
    parts.spawn(prober.run(forbidden.clone(), metrics.clone()));
    let (access, token_problem) = KeptAccess::begin(consul.clone(), auth_method);
    let signals = signals::watch(
        consul.clone(),
        cluster,
        consistency,
        signal_sender,
        stop.clone(),
    );
    parts.spawn(ending("the watch of Consul", signals));
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
        epoch: first_epoch(home, &scope),
    };
    let engine = engine.run(inputs, stop.clone());
    let whole = Whole {
        parts,
        election,
        released,
        access,
        stop,
    };
    Box::pin(whole.end(engine)).await
}

/// Looks how single pods are that are asked for.
fn look_at_pods(
    parts: &mut JoinSet<anyhow::Result<&'static str>>,
    home: Home,
    asked: mpsc::Receiver<k8s::Question>,
    answers: mpsc::Sender<k8s::Answer>,
) {
    let look = k8s::look(home, asked, answers, looks::AT_ONCE);
    parts.spawn(ending("the look at single pods", look));
}

/// What people are told by, and what sends that.
fn report(
    parts: &mut JoinSet<anyhow::Result<&'static str>>,
    kube: &kube::Client,
    metrics: Metrics,
    gates: Gates,
) -> Report {
    let (events, event_writer) = k8s::events::EventWriter::new(kube.clone(), &identity());
    let (statuses, status_writer) = k8s::status::StatusWriter::new(kube.clone());
    let status_writer = status_writer.telling(events.clone());
    parts.spawn(ending("Events", event_writer.run()));
    parts.spawn(ending("statuses", status_writer.run()));
    let mut report = Report::new(events, statuses, metrics);
    report.own_pod = own_pod();
    report.gates = gates;
    report
}

/// Finds out what the epoch is to say.
fn first_epoch(home: Home, scope: &Scope) -> oneshot::Receiver<Epoch> {
    let (sender, epoch) = oneshot::channel();
    let scope = scope.of_epoch();
    tokio::spawn(async move {
        let uid = home.uid().await.to_string();
        // Nobody waits for it any more only where the engine ended.
        let _ = sender.send(epoch_of(uid, scope, EpochKind::Run));
    });
    epoch
}

/// The token, while it is kept.
struct KeptAccess {
    task: JoinHandle<()>,
    done: CancellationToken,
}

impl KeptAccess {
    /// Returns, too, where to see why the token cannot be relied on, while it cannot.
    fn begin(
        consul: consul::Client,
        method: Option<AuthMethod>,
    ) -> (Self, watch::Receiver<Option<String>>) {
        let (sender, problem) = watch::channel(None);
        let done = CancellationToken::new();
        let task = tokio::spawn(Access::new(consul, method).keep(sender, done.clone()));
        (Self { task, done }, problem)
    }

    /// Gives back what logins gave.
    async fn end(self) {
        self.done.cancel();
        let _ = tokio::time::timeout(LAST_CALLS, self.task).await;
    }
}

/// All that runs beside the engine.
struct Whole {
    parts: JoinSet<anyhow::Result<&'static str>>,
    election: Option<Running>,
    /// Ends the election.
    released: CancellationToken,
    access: KeptAccess,
    stop: CancellationToken,
}

impl Whole {
    /// Waits for the end of the engine, or of a part; then lets another process lead.
    async fn end(
        self,
        engine: impl Future<Output = Result<bool, EngineError>>,
    ) -> anyhow::Result<()> {
        let Self {
            mut parts,
            mut election,
            released,
            access,
            stop,
        } = self;
        let engine = async { engine.await.context("the engine ended") };
        tokio::pin!(engine);
        let settled = tokio::select! {
            ended = &mut engine => ended,
            Some(ended) = OptionFuture::from(election.as_mut()) => match ended {
                Ok(Err(taken)) => Err(taken.into()),
                Ok(Ok(())) => Err(anyhow::anyhow!("the election ended")),
                Err(error) => Err(error).context("the election broke down"),
            },
            // Parts end when told to stop; the engine then still waits for its writes.
            Some(ended) = parts.join_next() => match ended {
                _ if stop.is_cancelled() => engine.await,
                Ok(Ok(part)) => Err(anyhow::anyhow!("{part} ended")),
                Ok(Err(error)) => Err(error),
                Err(error) => Err(error).context("a part broke down"),
            }
        };
        match settled {
            Ok(true) => {
                // Only now may another process write.
                released.cancel();
                // However it went, this process ends.
                let _ = OptionFuture::from(election).await;
            }
            Ok(false) => tracing::warn!(
                "writes are still under way: the leadership is not released, and ends by itself"
            ),
            Err(_) => {}
        }
        // After the last write, which needs the token.
        access.end().await;
        settled.map(drop)
    }
}

/// Keeps it known where no check may connect to.
fn look_up(
    parts: &mut JoinSet<anyhow::Result<&'static str>>,
    apis: Apis,
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
    told("POD_NAME").unwrap_or_else(host)
}

fn host() -> String {
    let kernel = || {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
        Some(host.trim().to_owned()).filter(|host| !host.is_empty())
    };
    let host = told("HOSTNAME").or_else(kernel);
    host.unwrap_or_else(|| "lictor".to_owned())
}
