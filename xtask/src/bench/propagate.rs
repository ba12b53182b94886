//! How long a change of readiness takes from the API server to Consul.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lictor_testbed::kubelet::TestPod;
use reqwest::Client;
use serde_json::Value;
use tokio::time::sleep;

use super::{
    Setup,
    expected::Expected,
    report::{Goal, Report, percentile},
    scene::{self, Scene},
    subject::Floor,
};

/// The pod that flips, alone in its service, so that a query for it says nothing else.
const SERVICE: &str = "flipping";
const NODES: usize = 100;
/// Flips in a row that are not counted: connections open, caches fill.
const WARM_UP: usize = 5;
/// A flip that takes longer is a failure.
const LOST: Duration = Duration::from_secs(30);

/// Lictor and the floor take turns on one bed, so that what the machine does beside hits both.
pub async fn measure(setup: &Setup, report: &mut Report) -> Result<()> {
    let mut sizes = vec![100, 1_000];
    if setup.large {
        sizes.push(10_000);
    }
    let (blocks, flips) = if setup.quick { (2, 25) } else { (6, 60) };
    for size in sizes {
        let scene = Scene::start(setup, NODES.min(size / 10)).await?;
        let instances = scene.instances(1..size);
        scene.create(&instances).await?;
        let pod = scene::pod("flipping", SERVICE, 0, "10.200.0.1");
        pod.create_ready(&scene.kube).await?;

        let mut flipper = Flipper::new(&scene, &pod)?;
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        for _ in 0..blocks {
            let lictor = scene.lictor()?;
            lictor.settled().await?;
            flipper.present().await?;
            ours.extend(flipper.flips(flips).await?);
            lictor.kill().await?;
            let floor = Floor::start(&scene.bed, SERVICE).await?;
            floors.extend(flipper.flips(flips).await?);
            floor.kill().await?;
        }
        pod.delete(&scene.kube).await?;
        pod.finish_deletion(&scene.kube).await?;
        let lictor = scene.lictor()?;
        lictor.settled().await?;
        Expected::of(scene.nodes, &instances)
            .wait(&scene.consul, LOST)
            .await?;
        tell(report, &format!("propagate {size}"), ours, floors);
    }
    Ok(())
}

fn tell(report: &mut Report, row: &str, mut ours: Vec<f64>, mut floors: Vec<f64>) {
    ours.sort_by(f64::total_cmp);
    floors.sort_by(f64::total_cmp);
    for (percent, name, limit) in [(50, "p50", 1.5), (99, "p99", 2.0)] {
        let (ours, floor) = (percentile(&ours, percent), percentile(&floors, percent));
        report.add(row, &format!("{name} lictor"), ours, "ms", Goal::None);
        report.add(row, &format!("{name} floor"), floor, "ms", Goal::None);
        let goal = Goal::AtMost(limit);
        report.add(row, &format!("{name} ratio"), ours / floor, "x", goal);
    }
    let (ours, floor) = (percentile(&ours, 100), percentile(&floors, 100));
    report.add(row, "max lictor", ours, "ms", Goal::None);
    report.add(row, "max floor", floor, "ms", Goal::None);
}

struct Flipper<'a> {
    scene: &'a Scene,
    pod: &'a TestPod,
    http: Client,
    url: String,
    ready: bool,
}

impl<'a> Flipper<'a> {
    fn new(scene: &'a Scene, pod: &'a TestPod) -> Result<Self> {
        Ok(Self {
            scene,
            pod,
            http: Client::builder().no_proxy().build()?,
            url: format!("{}/v1/health/service/{SERVICE}", scene.bed.consul_addr()),
            ready: true,
        })
    }

    /// Waits until the pod is shown as it is.
    async fn present(&self) -> Result<()> {
        let look = self.until(None, self.ready);
        tokio::time::timeout(LOST, look).await??;
        Ok(())
    }

    /// Milliseconds of each of so many flips.
    async fn flips(&mut self, count: usize) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(count);
        for number in 0..count + WARM_UP {
            let took = self.flip(number).await?;
            if number >= WARM_UP {
                times.push(took);
            }
        }
        Ok(times)
    }

    async fn flip(&mut self, number: usize) -> Result<f64> {
        let ready = !self.ready;
        let (index, _) = self.ask(None).await?;
        let seen = async {
            let look = self.until(index, ready);
            tokio::time::timeout(LOST, look)
                .await
                .context("a flip was never shown")?
        };
        let flip = async {
            // The query is on its way first; and no two flips come in the same rhythm.
            let pause = 15 + (number as u64 * 7) % 20;
            sleep(Duration::from_millis(pause)).await;
            if ready {
                self.pod.running_ready(&self.scene.kube).await?;
            } else {
                self.pod.not_ready(&self.scene.kube, "app").await?;
            }
            Ok(Instant::now())
        };
        let (seen, replied) = tokio::try_join!(seen, flip)?;
        self.ready = ready;
        Ok(seen.saturating_duration_since(replied).as_secs_f64() * 1e3)
    }

    /// Waits until Consul shows the pod's readiness, and gives the moment.
    async fn until(&self, mut index: Option<u64>, ready: bool) -> Result<Instant> {
        loop {
            let (next, shown) = self.ask(index).await?;
            let now = Instant::now();
            if shown == Some(ready) {
                return Ok(now);
            }
            index = next;
        }
    }

    /// A query, blocking if there is an index, and whether it shows the instance as passing.
    async fn ask(&self, index: Option<u64>) -> Result<(Option<u64>, Option<bool>)> {
        let url = match index {
            Some(index) => format!("{}?wait=20s&index={index}", self.url),
            None => self.url.clone(),
        };
        let answer = self.http.get(url).send().await?.error_for_status()?;
        let index = answer.headers().get("x-consul-index");
        let index = index.and_then(|index| index.to_str().ok()?.parse().ok());
        let instances: Value = answer.json().await?;
        let Some(instance) = instances.get(0) else {
            return Ok((index, None));
        };
        let Some(checks) = instance["Checks"].as_array() else {
            bail!("an instance without checks: {instance}");
        };
        let own = |check: &&Value| check["ServiceID"] == instance["Service"]["ID"];
        let status = checks.iter().find(own).map(|check| &check["Status"]);
        Ok((index, status.map(|status| status == "passing")))
    }
}
