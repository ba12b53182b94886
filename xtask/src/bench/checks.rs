//! 5,000 checks that nothing comes of: what it costs to ask.
//!
//! Each of 1,000 pods has five checks, two over HTTP, two of a connection and one of gRPC, every 10 s. All
//! pods have the address of this machine's loopback, and three servers of this process answer for them all:
//! their CPU is not counted, and is taken from the same cores.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, PostParams},
};
use lictor_testbed::{kubelet, wait};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};

use super::{
    Setup,
    report::{Goal, Report},
    scene::{self, NAMESPACE, Scene},
    subject::Metrics,
};

const NODES: usize = 100;
const SERVICES: usize = 20;
/// Checks of each pod.
const EACH: usize = 5;
const INTERVAL: Duration = Duration::from_secs(10);
/// Calls of the API server at once.
const CONCURRENCY: usize = 24;
const DEADLINE: Duration = Duration::from_mins(2);

/// Asks for a minute, once everything passes.
pub async fn measure(setup: &Setup, report: &mut Report) -> Result<()> {
    let pods = if setup.quick { 100 } else { 1_000 };
    let row = format!("checks {}", pods * EACH);
    let targets = Targets::start().await?;
    let scene = Scene::start(setup, NODES).await?;
    create(&scene, &targets, pods).await?;
    let lictor = scene.lictor_with(&["--allow-local-checks"])?;
    passing(&scene, pods).await?;
    // Every check has been asked by its clock, too, and what was written is known to have been.
    sleep(INTERVAL * 2).await;
    lictor.settled().await?;

    let measured = Duration::from_secs(if setup.quick { 20 } else { 60 });
    let (before, cpu) = (lictor.metrics().await?, lictor.cpu()?);
    let raft = scene.raft_index().await?;
    sleep(measured).await;
    let (since, cpu) = (lictor.metrics().await?, lictor.cpu()? - cpu);
    let raft = scene.raft_index().await? - raft;
    let late = Lateness::between(&before, &since)?;
    let (resident, _) = lictor.memory()?;
    let seconds = measured.as_secs_f64();
    report.add(&row, "runs a second", late.runs / seconds, "", Goal::None);
    let cores = cpu / seconds;
    report.add(&row, "CPU", cores, "cores", Goal::Below(0.25));
    for (share, name, goal) in [
        (0.5, "lateness p50, at most", Goal::None),
        (0.99, "lateness p99, at most", Goal::AtMost(500.0)),
    ] {
        report.add(&row, name, late.at(share) * 1e3, "ms", goal);
    }
    let written = since.transactions() - before.transactions();
    report.add(&row, "writes", written, "", Goal::AtMost(0.0));
    report.add(&row, "raft entries, whoever's", raft, "", Goal::None);
    report.add(&row, "memory", resident, "MiB", Goal::None);
    // What did not run cost nothing.
    let due = f64::from(u32::try_from(pods * EACH)?) * seconds / INTERVAL.as_secs_f64();
    ensure!(
        late.runs > due * 0.9,
        "only {} of {due} runs were made",
        late.runs
    );
    Ok(())
}

async fn create(scene: &Scene, targets: &Targets, pods: usize) -> Result<()> {
    let kind = GroupVersionKind::gvk("lictor.io", "v1alpha1", "ServiceRegistration");
    let resource = ApiResource::from_gvk_with_plural(&kind, "serviceregistrations");
    let api: Api<DynamicObject> = Api::namespaced_with(scene.kube.clone(), NAMESPACE, &resource);
    let checks = json!([
        {"name": "api", "http": {"path": "/health", "port": "http"}},
        {"name": "deep", "http": {"path": "/health?deep=1", "method": "HEAD", "port": "http"}},
        {"name": "port", "tcp": {"port": "tcp"}},
        {"name": "main", "tcp": {}},
        {"name": "rpc", "grpc": {"port": "grpc"}},
    ]);
    for number in 0..SERVICES {
        let name = service(number);
        let spec = json!({
            "selector": {"matchLabels": {"app": name}}, "port": "http", "health": {"checks": checks},
        });
        let object = DynamicObject::new(&name, &resource).data(json!({"spec": spec}));
        api.create(&PostParams::default(), &object).await?;
    }
    let pods = (0..pods).map(|number| {
        let node = format!("node-{:03}", number % NODES);
        kubelet::TestPod::new(NAMESPACE, &format!("web-{number:05}"))
            .node(&node)
            .label("app", &service(number % SERVICES))
            .port("http", targets.http)
            .port("tcp", targets.tcp)
            .port("grpc", targets.grpc)
            .ip("127.0.0.1")
    });
    kubelet::create_all(&scene.kube, pods, CONCURRENCY).await
}

fn service(number: usize) -> String {
    format!("service-{number:02}")
}

/// Waits until Consul shows all checks passing.
async fn passing(scene: &Scene, pods: usize) -> Result<()> {
    let prefix = format!("{}.", scene::CLUSTER);
    wait::until("all checks to pass", DEADLINE, async || {
        // All the same to Consul, and it is left alone meanwhile.
        sleep(Duration::from_secs(1)).await;
        let all = scene.consul.get("/v1/health/state/passing").await?;
        let all = all.as_array().context("no list")?.iter();
        let is_ours = |check: &&Value| {
            let of = check["ServiceID"].as_str().unwrap_or_default();
            of.starts_with(&prefix)
        };
        // And the readiness of each.
        let (found, wanted) = (all.filter(is_ours).count(), pods * (EACH + 1));
        ensure!(found == wanted, "{found} of {wanted} pass");
        Ok(())
    })
    .await
}

/// How long after their time runs began, by the buckets of the histogram.
struct Lateness {
    /// The upper bound of each bucket in seconds, and how many runs were within it.
    within: Vec<(f64, f64)>,
    runs: f64,
}

impl Lateness {
    fn between(before: &Metrics, since: &Metrics) -> Result<Self> {
        let name = "lictor_check_lateness_seconds";
        let (known, buckets) = (before.buckets(name), since.buckets(name));
        ensure!(
            known.len() == buckets.len() && !known.is_empty(),
            "no lateness is told"
        );
        let within: Vec<_> = buckets
            .into_iter()
            .zip(known)
            .map(|((bound, count), (_, before))| (bound, count - before))
            .collect();
        let runs = within.last().map_or(0.0, |(_, count)| *count);
        Ok(Self { within, runs })
    }

    /// The bound that this share of the runs kept.
    fn at(&self, share: f64) -> f64 {
        let mut within = self.within.iter();
        let found = within.find(|(_, count)| *count >= self.runs * share);
        found.map_or(f64::INFINITY, |(bound, _)| *bound)
    }
}

/// Servers on loopback that answer every check.
struct Targets {
    http: u16,
    tcp: u16,
    grpc: u16,
    _serve: JoinSet<()>,
}

impl Targets {
    async fn start() -> Result<Self> {
        let mut serve = JoinSet::new();
        let bind = || TcpListener::bind("127.0.0.1:0");
        let (http, tcp, grpc) = (bind().await?, bind().await?, bind().await?);
        let port = |listener: &TcpListener| Ok::<_, std::io::Error>(listener.local_addr()?.port());
        let ports = (port(&http)?, port(&tcp)?, port(&grpc)?);
        serve.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = http.accept().await {
                while open.try_join_next().is_some() {}
                open.spawn(async move {
                    // Whoever asks may go at any time.
                    let _ = answer(stream).await;
                });
            }
        });
        serve.spawn(async move { while tcp.accept().await.is_ok() {} });
        let (_reporter, service) = tonic_health::server::health_reporter();
        let router = tonic::transport::Server::builder().add_service(service);
        let incoming = tonic::transport::server::TcpIncoming::from(grpc);
        serve.spawn(async move {
            // It serves until it is dropped.
            let _ = router.serve_with_incoming(incoming).await;
        });
        let (http, tcp, grpc) = ports;
        Ok(Self {
            http,
            tcp,
            grpc,
            _serve: serve,
        })
    }
}

/// Answers one request of a few lines.
async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut head, mut part) = (Vec::new(), [0; 1024]);
    while !head.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut part).await?;
        if read == 0 || head.len() > 16 * 1024 {
            return Ok(());
        }
        head.extend_from_slice(&part[..read]);
    }
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_runs_is_within_the_bound_of_its_bucket() {
        let late = Lateness {
            within: vec![
                (0.1, 50.0),
                (0.5, 98.0),
                (1.0, 99.0),
                (f64::INFINITY, 100.0),
            ],
            runs: 100.0,
        };
        let close = |share: f64, bound: f64| (late.at(share) - bound).abs() < f64::EPSILON;
        assert!(close(0.5, 0.1) && close(0.98, 0.5) && close(0.99, 1.0));
        assert!(late.at(1.0).is_infinite());
    }
}
