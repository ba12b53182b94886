//! Networks that fail, before either API.

use std::time::Duration;

use anyhow::{Result, ensure};
use lictor_testbed::{
    proxy::{Answer, Fault, Proxy},
    wait,
};
use tokio::time::sleep;

use super::{Churn, foreign, settle};
use crate::support::{Annotated as _, Lictor, Oracle, Scene, until};

/// Two pods that stay, and proxies before both APIs.
struct Stage {
    scene: Scene,
    kubernetes: Proxy,
    consul: Proxy,
    lictor: Lictor,
    oracle: Oracle,
}

const STAY: [&str; 2] = ["web-0", "web-1"];

impl Stage {
    async fn set() -> Result<Self> {
        let scene = Scene::new().await?;
        let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
        let consul = Proxy::start(&scene.bed.consul_addr())?;
        let lictor = scene.lictor_through(&kubernetes, &consul).await?;
        let ids = settle(&scene, &STAY).await?;
        let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
        Ok(Self {
            scene,
            kubernetes,
            consul,
            lictor,
            oracle,
        })
    }

    /// Waits until something is seen of a fault.
    async fn told(&self, text: &str) -> Result<()> {
        super::ready_but(&self.lictor, text).await
    }

    async fn requests(&self) -> Result<f64> {
        let name = "lictor_consul_requests_total";
        self.lictor.metric(name, &[]).await
    }
}

fn cut(after: u64, reset: bool) -> Fault {
    Fault::Cut { after, reset }
}

/// The most requests that it sends in a fault of some seconds and some thirty changes.
const BOUND: f64 = 400.0;

#[tokio::test]
async fn consul_behind_a_broken_network() -> Result<()> {
    let stage = Stage::set().await?;
    let mut churn = Churn::beside(&stage.scene, &STAY);
    let faults = [
        ("refuse", Fault::Refuse),
        ("reset", Fault::Reset),
        ("corrupt", Fault::Corrupt),
        ("cut in the header", cut(20, false)),
        ("cut in the body", cut(700, false)),
        ("reset in the body", cut(700, true)),
    ];
    for (what, fault) in faults {
        let before = stage.requests().await?;
        stage.consul.set(fault).await?;
        churn.turns(5).await?;
        stage.told("consul: ").await?;
        churn.turns(10).await?;
        // Long enough for tries without a pause to show.
        sleep(Duration::from_secs(1)).await;
        stage.consul.set(Fault::Pass).await?;
        churn.exact().await?;
        let sent = stage.requests().await? - before;
        println!("{what}: {sent} requests");
        // What other tests write at the same time wakes it, too.
        ensure!(sent < BOUND / 2.0, "{what}: {sent} requests");
    }
    stage.oracle.verdict().await
}

#[tokio::test]
async fn consul_behind_a_slow_network() -> Result<()> {
    let stage = Stage::set().await?;
    let mut churn = Churn::beside(&stage.scene, &STAY);
    let slow = Duration::from_millis(300);
    let faults = [
        (
            "delay",
            Fault::Delay {
                request: slow,
                response: slow,
            },
        ),
        (
            "throttle",
            Fault::Throttle {
                bytes_per_second: 20_000,
            },
        ),
    ];
    for (what, fault) in faults {
        let before = stage.requests().await?;
        stage.consul.set(fault).await?;
        churn.turns(20).await?;
        // It works all the same.
        churn.exact().await?;
        stage.consul.set(Fault::Pass).await?;
        churn.turns(2).await?;
        churn.exact().await?;
        let sent = stage.requests().await? - before;
        println!("{what}: {sent} requests");
        ensure!(sent < BOUND, "{what}: {sent} requests");
    }
    stage.oracle.verdict().await
}

#[tokio::test]
async fn consul_that_answers_writes_with_errors() -> Result<()> {
    let stage = Stage::set().await?;
    let mut churn = Churn::beside(&stage.scene, &STAY);
    for (status, body) in [
        (429, "Your IP is issuing too many concurrent connections"),
        (500, "No cluster leader"),
        (500, "rpc error making call: EOF"),
        (
            503,
            "rate limit exceeded, try again later or against a different server",
        ),
    ] {
        let before = stage.requests().await?;
        let answer = Answer::new(status).body(body).only("PUT /v1/txn").times(6);
        stage.consul.set(Fault::Answer(answer)).await?;
        churn.turns(10).await?;
        until("the burst to be over", async || {
            let answered = stage.consul.answered();
            ensure!(answered == 6, "{answered} were answered");
            Ok(())
        })
        .await?;
        churn.exact().await?;
        let sent = stage.requests().await? - before;
        println!("{status} {body}: {sent} requests");
        ensure!(sent < BOUND, "{status}: {sent} requests");
    }
    stage.oracle.verdict().await
}

/// While watches and writes go on.
#[tokio::test]
async fn what_cannot_be_read_is_not_missing() -> Result<()> {
    let stage = Stage::set().await?;
    let mut churn = Churn::beside(&stage.scene, &STAY);
    let counts = async || -> Result<[u64; 2]> {
        let owned = stage.lictor.metric("lictor_owned", &[]).await?;
        let tried = stage.lictor.metric("lictor_operations_total", &[]).await?;
        Ok([owned.to_bits(), tried.to_bits()])
    };
    for (status, body) in [
        (200, ""),
        (403, "Permission denied"),
        (404, "no such page"),
        (500, "rpc error making call: EOF"),
    ] {
        churn.turns(5).await?;
        churn.exact().await?;
        stage.lictor.idle().await?;
        let before = counts().await?;
        // After what cuts its watches short it looks at all.
        stage.consul.set(Fault::Reset).await?;
        let answer = Answer::new(status).body(body).only("consistent");
        stage.consul.set(Fault::Answer(answer)).await?;
        until("reads to fail", async || {
            let answered = stage.consul.answered();
            ensure!(answered >= 3, "{answered} did");
            Ok(())
        })
        .await?;
        stage.told("consul: cannot read").await?;
        ensure!(counts().await? == before, "{status} {body}");
        stage.consul.set(Fault::Pass).await?;
    }
    churn.turns(5).await?;
    churn.exact().await?;
    stage.oracle.verdict().await
}

/// Longer than any request to Consul may take.
const LATE: Duration = Duration::from_secs(75);

/// What is open stays half-open when the fault is over, so that only deadlines help.
#[tokio::test]
async fn consul_behind_half_open_connections() -> Result<()> {
    let stage = Stage::set().await?;
    let scene = &stage.scene;
    let pod = scene.pod("fails").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "fails", "passing").await?;
    stage.lictor.idle().await?;
    let before = stage.requests().await?;
    stage.consul.set(Fault::Blackhole).await?;
    pod.not_ready(&scene.client, "app").await?;
    until("the outage to be told", async || {
        let age = stage
            .lictor
            .metric("lictor_consul_last_contact_seconds", &[])
            .await?;
        ensure!(age > 2.0, "{age}");
        Ok(())
    })
    .await?;
    stage.consul.set(Fault::Pass).await?;
    wait::until("the failure to be shown", LATE, async || {
        let seen = scene.find("web", "fails").await?;
        ensure!(
            seen.as_ref().is_some_and(|seen| seen.status == "critical"),
            "{seen:?}"
        );
        Ok(())
    })
    .await?;
    let mut churn = Churn::beside(scene, &STAY);
    churn.turns(5).await?;
    pod.finish_deletion(&scene.client).await?;
    churn.exact().await?;
    let sent = stage.requests().await? - before;
    ensure!(sent < BOUND, "{sent} requests");
    stage.oracle.verdict().await
}

#[tokio::test]
async fn kubernetes_behind_a_broken_network() -> Result<()> {
    let stage = Stage::set().await?;
    let mut churn = Churn::beside(&stage.scene, &STAY);
    let faults = [
        ("refuse", Fault::Refuse),
        ("reset", Fault::Reset),
        ("cut", cut(3_000, false)),
        ("reset in an answer", cut(3_000, true)),
        ("corrupt", Fault::Corrupt),
    ];
    for (what, fault) in faults {
        let before = stage.kubernetes.accepted();
        stage.kubernetes.set(fault).await?;
        churn.turns(10).await?;
        stage.told("pods: ").await?;
        churn.turns(5).await?;
        stage.kubernetes.set(Fault::Pass).await?;
        churn.exact().await?;
        let taken = stage.kubernetes.accepted() - before;
        println!("{what}: {taken} connections");
        ensure!(taken < 200, "{what}: {taken} connections");
    }
    stage.oracle.verdict().await
}

/// A watch that is half-open is silent, and looks like one in which nothing happens.
#[tokio::test]
async fn kubernetes_behind_half_open_connections() -> Result<()> {
    let stage = Stage::set().await?;
    let scene = &stage.scene;
    for name in ["fails", "goes"] {
        let pod = scene.pod(name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
    }
    stage.kubernetes.set(Fault::Blackhole).await?;
    scene.pod("fails").not_ready(&scene.client, "app").await?;
    scene.pod("goes").finish_deletion(&scene.client).await?;
    stage.kubernetes.set(Fault::Pass).await?;
    wait::until("the failure to be shown", LATE, async || {
        let seen = scene.find("web", "fails").await?;
        ensure!(
            seen.as_ref().is_some_and(|seen| seen.status == "critical"),
            "{seen:?}"
        );
        Ok(())
    })
    .await?;
    scene.gone("web", "goes").await?;
    stage.oracle.verdict().await
}
