//! How fast Consul is written, how fast it takes writes, and which of its servers are asked.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lictor_testbed::{
    ConsulApi,
    kubelet::create_all,
    proxy::{Answer, Fault, Proxy},
    wait,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Churn, alone, foreign, settle, three};
use crate::support::{Annotated as _, Installed, Oracle, SOON, Scene, until};

const STAY: [&str; 3] = ["web-0", "web-1", "web-2"];

/// Entries a second, and how many there are to write.
const RATE: u32 = 10;
const ENTRIES: u32 = 60;

#[tokio::test]
async fn the_rate_of_writes_is_what_is_asked_for() -> Result<()> {
    let scene = Scene::new().await?;
    let name = |number: u32| format!("web-{number:02}");
    let pod = |number| scene.pod(&name(number)).lictor("service", "web");
    create_all(&scene.client, (0..ENTRIES).map(pod), 8).await?;
    let began = Instant::now();
    let lictor = scene
        .lictor_with(&[&format!("--consul-write-rate={RATE}")])
        .await?;
    // At no time are there more than what the time since the start is good for.
    loop {
        let all = scene.consul.health("web").await?;
        let prefix = format!("{}.", scene.cluster);
        let id = |one: &&Value| one["Service"]["ID"].as_str().map(str::to_owned);
        let ours = |one: &&Value| id(one).is_some_and(|id| id.starts_with(&prefix));
        let there = u32::try_from(all.iter().filter(ours).count())?;
        let took = began.elapsed();
        let good_for = f64::from(RATE) * (took.as_secs_f64() + 1.0);
        ensure!(f64::from(there) <= good_for, "{there} after {took:?}");
        if there == ENTRIES {
            break;
        }
        ensure!(took < Duration::from_secs(20), "{there} after {took:?}");
        sleep(Duration::from_millis(20)).await;
    }
    println!("{ENTRIES} entries in {:?}", began.elapsed());
    ensure!(began.elapsed() >= Duration::from_secs(u64::from(ENTRIES / RATE - 1)));
    lictor.idle().await?;

    // Where there is little to write nothing waits.
    let ids: Vec<_> = (1..ENTRIES)
        .map(|number| scene.id("web", &name(number)))
        .collect();
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &[]).await?;
    let changed = Instant::now();
    pod(0).not_ready(&scene.client, "app").await?;
    scene.status("web", &name(0), "critical").await?;
    ensure!(
        changed.elapsed() < Duration::from_secs(2),
        "{:?}",
        changed.elapsed()
    );
    oracle.verdict().await
}

/// Two servers that follow are all that it knows, and the leader changes under them. What other hands
/// do is found out only from what they tell: without that, it would be looked for too late.
#[tokio::test]
async fn any_server_may_tell_of_changes_where_that_is_asked_for() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let followers = installed.bed.consul_followers().await?;
    let addresses: Vec<_> = followers.iter().map(|server| server.addr()).collect();
    let addresses = format!("--consul-http-addr={}", addresses.join(","));
    let lictor = scene
        .lictor_with(&["--consistency=stale", "--drift-interval=60s", &addresses])
        .await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    // None of these turns is a removal, which would hide those of another hand for a moment.
    churn.turns(4).await?;
    churn.exact().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    lictor.idle().await?;
    repaired(&scene, &churn).await?;
    let leader = installed.bed.consul_leader().await?;
    leader.kill();
    churn.turns(5).await?;
    installed.bed.consul_leader().await?;
    churn.exact().await?;
    leader.start().await?;
    lictor.idle().await?;
    repaired(&scene, &churn).await?;
    oracle.verdict().await
}

/// Another hand removes one entry and changes one, and both are put right.
async fn repaired(scene: &Scene, churn: &Churn<'_>) -> Result<()> {
    let mut names = churn.want.keys();
    let gone = names.next().context("nobody is there")?;
    let away = json!({"Node": scene.consul_node(), "ServiceID": scene.id("web", gone)});
    scene.away_by_hand(&away).await?;
    churn.exact().await?;
    let altered = names.next().context("only one is there")?;
    let seen = scene.find("web", altered).await?;
    let mut service = seen.context("it is not registered")?.raw["Service"].clone();
    service["Tags"] = json!(["by-hand"]);
    let entry = json!({
        "Node": scene.consul_node(), "SkipNodeUpdate": true, "Address": "192.168.7.1",
        "Service": service,
    });
    scene.by_hand(&entry).await?;
    churn.exact().await
}

/// A server that is far behind says that nothing is there.
#[tokio::test]
async fn what_a_stale_server_says_decides_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let address = format!("--consul-http-addr={}", consul.url());
    let lictor = scene
        .lictor_with(&["--consistency=stale", &address])
        .await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(15).await?;
    churn.exact().await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let before = scene.dump().await?;
    let writes = "lictor_operations_total";
    let tried = lictor.metric(writes, &[]).await?;

    consul.set(Fault::Reset).await?;
    let nothing = Answer::new(200)
        .body("[]")
        .header("Content-Type", "application/json")
        .header("X-Consul-Index", "3")
        .header("X-Consul-KnownLeader", "true")
        .header("X-Consul-LastContact", "0")
        .only("stale");
    consul.set(Fault::Answer(nothing)).await?;
    until("a stale server to be asked", async || {
        let answered = consul.answered();
        ensure!(answered >= 6, "{answered} times");
        Ok(())
    })
    .await?;
    lictor.idle().await?;
    assert_eq!(scene.dump().await?, before);
    // Nor was anything tried that Consul refused.
    let now = lictor.metric(writes, &[]).await?;
    ensure!(
        now.to_bits() == tried.to_bits(),
        "{now} operations after {tried}"
    );
    // Changes go on to be shown.
    churn.turns(10).await?;
    churn.exact().await?;
    consul.set(Fault::Pass).await?;
    churn.turns(5).await?;
    churn.exact().await?;
    oracle.verdict().await
}

/// Lays limits over the configuration of the running Consul.
async fn limit(installed: &Installed, consul: &ConsulApi, limits: Value) -> Result<()> {
    let file = installed.bed.dir().join("consul/consul.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    config["limits"] = json!({"request_limits": limits});
    std::fs::write(&file, config.to_string())?;
    consul.put("/v1/agent/reload", &Value::Null).await?;
    Ok(())
}

/// Waits until Consul refuses. It takes up a limit once a second, and only where it was asked one
/// single time since the last one; from then on it holds as long as anything is asked
/// (`multilimiter.go` of 1.22.7).
async fn in_force(ask: impl AsyncFn() -> Result<Value>) -> Result<()> {
    wait::until("the limit to be in force", SOON * 3, async || {
        if ask().await.is_err() {
            return Ok(());
        }
        sleep(Duration::from_millis(2500)).await;
        for _ in 0..15 {
            if ask().await.is_err() {
                return Ok(());
            }
        }
        bail!("it takes all")
    })
    .await
}

/// The most requests that it sends while Consul takes one in a second.
const BOUND: f64 = 200.0;

#[tokio::test]
async fn a_consul_that_limits_requests_gets_all_in_the_end() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(15).await?;
    churn.exact().await?;
    lictor.idle().await?;
    let mut before = Vec::new();
    for name in STAY {
        before.push(scene.status("web", name, "passing").await?);
    }
    let writes = "lictor_operations_total";
    let requests = "lictor_consul_requests_total";
    let refused = async |churn: &mut Churn<'_>, name: &str, with: &[&str]| {
        until("Consul to refuse requests", async || {
            churn.turns(5).await?;
            let now = lictor.metric(name, with).await?;
            ensure!(now >= 1.0, "none {with:?}");
            Ok(())
        })
        .await
    };
    let asked = lictor.metric(requests, &[]).await?;
    let test = async {
        // A burst is ten times the rate.
        let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
        let limits = json!({"mode": "enforcing", "read_rate": -1, "write_rate": 1});
        limit(installed, &scene.consul, limits).await?;
        in_force(async || scene.consul.put("/v1/kv/limited", &Value::Null).await).await?;
        refused(&mut churn, writes, &["outcome=\"slow_down\""]).await?;
        churn.exact().await?;
        oracle.verdict().await?;

        // The oracle, and all who look, would use up what may be read.
        let limits = json!({"mode": "enforcing", "read_rate": 1, "write_rate": -1});
        lictor.idle().await?;
        limit(installed, &scene.consul, limits).await?;
        in_force(async || scene.consul.get("/v1/catalog/nodes").await).await?;
        refused(&mut churn, requests, &["code=\"429\""]).await
    };
    let test = test.await;
    limit(installed, &scene.consul, json!({"mode": "disabled"})).await?;
    test?;
    churn.exact().await?;
    for (name, before) in STAY.iter().zip(&before) {
        assert_eq!(scene.find("web", name).await?.as_ref(), Some(before));
    }
    // It was never taken for a refusal of what was written.
    let given_up = lictor.metric(writes, &["outcome=\"refused\""]).await?;
    ensure!(given_up == 0.0, "{given_up} writes were given up");
    let asked = lictor.metric(requests, &[]).await? - asked;
    println!("{asked} requests");
    ensure!(asked < BOUND, "{asked} requests");
    Ok(())
}
