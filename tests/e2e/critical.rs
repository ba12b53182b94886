//! Instances that are critical for long are deregistered, and come back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::{kubelet, wait};
use serde_json::{Value, json};

use crate::support::{Annotated as _, Answer, Lictor, Scene, Target, condition, json_lines, until};

/// The least that can be asked for.
const AFTER: Duration = Duration::from_secs(30);
/// Longer than anything may take beside the time that is waited for.
const REST: Duration = Duration::from_secs(20);
const LOCAL: &str = "--allow-local-checks";

fn selecting(app: &str, more: &Value) -> Value {
    let mut spec = json!({"selector": {"matchLabels": {"app": app}},
                          "health": {"deregisterCriticalServiceAfter": "30s"}});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    spec
}

/// Waits until the pod's instance is gone, which it must not be before its time.
async fn goes(
    scene: &Scene,
    service: &str,
    pod: &str,
    since: Instant,
    least: Duration,
) -> Result<()> {
    let what = format!("{service} of {pod} to be deregistered");
    wait::until(&what, AFTER + REST, async || {
        let found = scene.find(service, pod).await?;
        ensure!(found.is_none(), "{found:#?}");
        Ok(())
    })
    .await?;
    let took = since.elapsed();
    ensure!(took >= least, "after {took:?} already");
    Ok(())
}

/// The pod's instance stays for so long.
async fn stays(scene: &Scene, service: &str, pod: &str, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let found = scene.find(service, pod).await?;
        found.with_context(|| format!("{service} of {pod} went"))?;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

/// What Consul keeps of the node of the scene.
async fn kept(scene: &Scene) -> Result<Option<Value>> {
    let key = format!(
        "/v1/kv/lictor/v1/{}/critical/?recurse&consistent",
        scene.cluster
    );
    let pairs = scene.consul.find(&key).await?;
    Ok(pairs.and_then(|pairs| pairs.get(0).cloned()))
}

async fn keeps_nothing(scene: &Scene) -> Result<()> {
    until("nothing to be kept of what is not critical", async || {
        let kept = kept(scene).await?;
        ensure!(kept.is_none(), "{kept:?}");
        Ok(())
    })
    .await
}

/// Healthy pods beside those that matter, so that these are not all there is.
async fn company(scene: &Scene, count: usize) -> Result<()> {
    let pods = (0..count).map(|n| {
        scene
            .pod(&format!("company-{n}"))
            .lictor("service", "company")
    });
    kubelet::create_all(&scene.client, pods, 8).await?;
    scene.status("company", "company-0", "passing").await?;
    Ok(())
}

#[tokio::test]
async fn a_pod_that_is_not_ready_for_long_goes_with_its_proxy_and_comes_back_ready() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--log-format=json"]).await?;
    company(&scene, 3).await?;
    let more = json!({"connect": {"sidecar": {"port": 20000}}});
    scene.register("web", selecting("web", &more)).await?;
    let (bad, good) = (
        scene.pod("bad").label("app", "web"),
        scene.pod("good").label("app", "web"),
    );
    bad.create_ready(&scene.client).await?;
    good.create_ready(&scene.client).await?;
    scene.status("web", "bad", "passing").await?;
    scene.status("web", "good", "passing").await?;
    let foreign = json!({"Node": "by-hand", "Address": "10.1.1.1", "Service": {"Service": "web"},
                         "Check": {"Name": "x", "ServiceID": "web", "Status": "critical"}});
    scene.by_hand(&foreign).await?;

    let since = Instant::now();
    bad.not_ready(&scene.client, "app").await?;
    scene.status("web", "bad", "critical").await?;
    goes(&scene, "web", "bad", since, AFTER).await?;
    scene.gone("web-sidecar-proxy", "bad").await?;
    let status = scene
        .registration("web", |status| {
            condition(status, "Ready").1 == "DeregisteredCritical"
        })
        .await?;
    let (ready, _, message) = condition(&status, "Ready");
    ensure!(
        ready == "False" && message.contains("critical for 30s") && message.contains("bad"),
        "{message}"
    );
    assert_eq!(condition(&status, "Reconciling").0, "True");
    assert_eq!(status["instances"]["summary"], "2/4");
    assert_eq!(status["instances"]["critical"], 0);
    assert_eq!(status["lastError"], Value::Null);
    scene
        .event("Deregistered", "web", "its checks were critical for 30s")
        .await?;
    lictor.shows("lictor_deregistered_critical", 2.0).await?;
    let lines = json_lines(&lictor.log())?;
    let audit: Vec<&Value> = lines
        .iter()
        .filter(|line| line["target"] == "audit")
        .collect();
    ensure!(audit.len() == 2, "{audit:#?}");
    for line in audit {
        assert_eq!(line["why"], "its checks were critical for 30s");
        assert_eq!(line["seen"], false);
    }
    // Nobody else is touched.
    scene.status("web", "good", "passing").await?;
    let all = scene.consul.health("web").await?;
    ensure!(
        all.iter().any(|one| one["Node"]["Node"] == "by-hand"),
        "{all:#?}"
    );
    // Nor does a restart bring it back, or write anything.
    lictor.idle().await?;
    lictor.stop().await?;
    let before = scene.dump().await?;
    let lictor = scene.lictor().await?;
    lictor.idle().await?;
    assert_eq!(scene.dump().await?, before);
    let operations = lictor.metric("lictor_operations_total", &[]).await?;
    ensure!(operations == 0.0, "{operations} operations");

    bad.running_ready(&scene.client).await?;
    scene.status("web", "bad", "passing").await?;
    scene.instance("web-sidecar-proxy", "bad", |_| true).await?;
    scene
        .event("Registered", "bad", "web is registered")
        .await?;
    scene
        .registration("web", |status| {
            condition(status, "Ready").0 == "True" && status["instances"]["summary"] == "4/4"
        })
        .await?;
    lictor.shows("lictor_deregistered_critical", 0.0).await?;
    keeps_nothing(&scene).await
}

#[tokio::test]
async fn an_endpoint_goes_and_comes_back_by_what_it_answers() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let _lictor = scene.lictor_with(&[LOCAL]).await?;
    company(&scene, 3).await?;
    let endpoint = json!({"name": "one", "address": "127.0.0.1", "port": target.port});
    let checks = json!([{"name": "api", "http": {}, "interval": "1s"}]);
    let health = json!({"checks": checks, "deregisterCriticalServiceAfter": "30s"});
    scene
        .register("db", json!({"endpoints": [endpoint], "health": health}))
        .await?;
    let id = format!("{}.{}.db.db.one", scene.cluster, scene.namespace);
    let passes =
        |seen: &crate::support::Instance| seen.check(&format!("{id}:api"))["Status"] == "passing";
    scene.instance_id("db", &id, passes).await?;
    let since = Instant::now();
    target.answers(Answer::Status(503));
    wait::until("it to be deregistered", AFTER + REST, async || {
        ensure!(scene.find_id("db", &id).await?.is_none(), "it is there");
        Ok(())
    })
    .await?;
    ensure!(since.elapsed() >= AFTER);
    let asked = target.asked();
    until("it to be asked on", async || {
        let more = target.asked() - asked;
        (more >= 3).then_some(()).context(more)
    })
    .await?;
    target.answers(Answer::Status(200));
    scene.instance_id("db", &id, passes).await?;
    keeps_nothing(&scene).await
}

#[tokio::test]
async fn a_restart_in_the_middle_keeps_the_time() -> Result<()> {
    let scene = Scene::new().await?;
    let flag = "--sweep-critical-after=45s";
    let lictor = scene.lictor_with(&[flag]).await?;
    company(&scene, 3).await?;
    let pod = scene.pod("p").lictor("service", "web");
    pod.create(&scene.client).await?;
    let since = Instant::now();
    pod.not_ready(&scene.client, "app").await?;
    scene.status("web", "p", "critical").await?;
    stays(&scene, "web", "p", Duration::from_secs(25)).await?;
    ensure!(kept(&scene).await?.is_some(), "nothing is kept");
    lictor.kill();
    let lictor = scene.lictor_with(&[flag]).await?;
    lictor.idle().await?;
    let operations = lictor.metric("lictor_operations_total", &[]).await?;
    ensure!(operations == 0.0, "{operations} operations");
    goes(&scene, "web", "p", since, Duration::from_secs(44)).await?;
    // It would have begun anew at 25 s.
    ensure!(
        since.elapsed() < Duration::from_secs(62),
        "{:?}",
        since.elapsed()
    );
    scene
        .event("Deregistered", "p", "its checks were critical for 45s")
        .await?;
    // The end of the pod ends what is kept of it.
    pod.finish_deletion(&scene.client).await?;
    keeps_nothing(&scene).await
}

#[tokio::test]
async fn without_being_asked_for_nothing_goes_and_nothing_is_kept() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let pod = scene.pod("p").lictor("service", "web");
    pod.create(&scene.client).await?;
    pod.not_ready(&scene.client, "app").await?;
    scene.status("web", "p", "critical").await?;
    stays(&scene, "web", "p", AFTER + Duration::from_secs(10)).await?;
    ensure!(kept(&scene).await?.is_none());
    Ok(())
}

#[tokio::test]
async fn while_its_node_is_lost_nothing_goes() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    company(&scene, 3).await?;
    scene.register("web", selecting("web", &json!({}))).await?;
    let pod = scene.pod("p").label("app", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "p", "passing").await?;
    pod.not_ready(&scene.client, "app").await?;
    scene.status("web", "p", "critical").await?;
    stays(&scene, "web", "p", Duration::from_secs(20)).await?;
    let node = scene.kubernetes_node();
    node.ready(&scene.client, "Unknown").await?;
    stays(&scene, "web", "p", AFTER + Duration::from_secs(5)).await?;
    ensure!(
        kept(&scene).await?.is_none(),
        "what counts for nothing is kept"
    );
    // With its node it begins anew: it may be well before the kubelet can say so.
    let since = Instant::now();
    node.ready(&scene.client, "True").await?;
    goes(&scene, "web", "p", since, AFTER).await?;
    // What went stays away while the node is lost.
    node.ready(&scene.client, "False").await?;
    scene
        .instance("company", "company-0", |seen| {
            seen.node_status == "critical"
        })
        .await?;
    scene.barrier().await?;
    ensure!(scene.find("web", "p").await?.is_none());
    Ok(())
}

#[tokio::test]
async fn what_an_operator_says_deregisters_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    company(&scene, 3).await?;
    scene.register("web", selecting("web", &json!({}))).await?;
    for name in ["good", "bad"] {
        let pod = scene.pod(name).label("app", "web");
        pod.create_ready(&scene.client).await?;
        let seen = scene.status("web", name, "passing").await?;
        let check = json!({"CheckID": format!("_service_maintenance:{}", seen.id), "Name": "Maintenance",
                           "ServiceID": seen.id, "Status": "critical"});
        let entry = json!({"Node": seen.node, "SkipNodeUpdate": true, "Address": "127.0.0.1",
                           "Check": check});
        scene.by_hand(&entry).await?;
    }
    scene
        .pod("bad")
        .label("app", "web")
        .not_ready(&scene.client, "app")
        .await?;
    scene.status("web", "bad", "critical").await?;
    stays(&scene, "web", "good", AFTER + Duration::from_secs(10)).await?;
    // It would come back from maintenance by itself.
    let bad = scene.find("web", "bad").await?.context("it went")?;
    let id = format!("_service_maintenance:{}", bad.id);
    assert_eq!(bad.check(&id)["Status"], "critical");
    let away = json!({"Node": bad.node, "CheckID": id});
    scene.away_by_hand(&away).await?;
    goes(&scene, "web", "bad", Instant::now(), Duration::ZERO).await
}

#[tokio::test]
async fn many_at_once_are_held_and_told() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    scene.register("web", selecting("web", &json!({}))).await?;
    let name = |n: usize| format!("web-{n}");
    let pods = || (0..16).map(|n| scene.pod(&name(n)).label("app", "web"));
    kubelet::create_all(&scene.client, pods(), 8).await?;
    scene
        .registration("web", |status| status["instances"]["passing"] == 16)
        .await?;
    let bad: Vec<_> = pods().take(12).collect();
    kubelet::for_each(bad.clone(), 8, async |pod| {
        pod.not_ready(&scene.client, "app").await.map(drop)
    })
    .await?;
    scene
        .registration("web", |status| status["instances"]["critical"] == 12)
        .await?;
    stays(&scene, "web", "web-0", AFTER).await?;
    lictor.shows("lictor_held_deletes", 12.0).await?;
    scene
        .event("DeletesHeld", "web", "12 of 16 entries would go")
        .await?;
    let held = |status: &Value| {
        let (_, reason, message) = condition(status, "Ready");
        let says = |text: &str| message.contains(text);
        reason == "Held" && says("critical for 30s") && says("12 of 16")
    };
    scene.registration("web", held).await?;
    for n in 0..12 {
        ensure!(scene.find("web", &name(n)).await?.is_some(), "{n} went");
    }
    // They recover, one after the other: of the rest nothing goes for that before three lists agree.
    kubelet::for_each(bad[..8].to_vec(), 1, async |pod| {
        pod.running_ready(&scene.client).await.map(drop)
    })
    .await?;
    scene
        .registration("web", |status| status["instances"]["critical"] == 4)
        .await?;
    stays(&scene, "web", "web-11", Duration::from_secs(20)).await?;
    let what = "the rest, which is within the limits, to go";
    wait::until(what, Duration::from_secs(90), async || {
        let status = scene.registrations().get("web").await?.data["status"].clone();
        ensure!(status["instances"]["summary"] == "12/16", "{status:#}");
        Ok(())
    })
    .await
}

/// A lictor of `--policy dry-run` tells what would go.
#[tokio::test]
async fn a_dry_run_tells_what_would_go() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    company(&scene, 3).await?;
    scene.register("web", selecting("web", &json!({}))).await?;
    let pod = scene.pod("p").label("app", "web");
    pod.create(&scene.client).await?;
    pod.not_ready(&scene.client, "app").await?;
    scene.status("web", "p", "critical").await?;
    until("it to be kept", async || {
        kept(&scene).await?.context("nothing is kept")
    })
    .await?;
    lictor.stop().await?;
    let before = scene.dump().await?;
    let dry: Lictor = scene.lictor_with(&["--policy=dry-run"]).await?;
    wait::until("it to be told", AFTER + REST, async || {
        let told = "remove web: its checks were critical for 30s";
        ensure!(dry.log().contains(told));
        Ok(())
    })
    .await?;
    assert_eq!(scene.dump().await?, before);
    Ok(())
}
