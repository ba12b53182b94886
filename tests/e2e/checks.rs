//! Checks that Lictor runs itself, against servers that answer, hang, redirect, trickle and go away.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::support::{
    Answer, GrpcTarget, Instance, Lictor, OFF, Scene, Target, condition, selected, until,
};

/// What is local may be asked, as everything is in a test.
const LOCAL: &str = "--allow-local-checks";

/// A service of one endpoint, the server.
async fn register(scene: &Scene, port: u16, checks: &Value) -> Result<()> {
    let endpoint = json!({"name": "one", "address": "127.0.0.1", "port": port});
    let spec = json!({"service": "db", "endpoints": [endpoint], "health": {"checks": checks}});
    scene.register("db", spec).await?;
    Ok(())
}

fn id(scene: &Scene) -> String {
    format!("{}.{}.db.db.one", scene.cluster, scene.namespace)
}

async fn shows(scene: &Scene, check: &str, status: &str, says: &str) -> Result<Instance> {
    let (id, check) = (id(scene), format!("{}:{check}", id(scene)));
    let is = |instance: &Instance| {
        let found = instance.check(&check);
        found["Status"] == status
            && found["Output"]
                .as_str()
                .is_some_and(|output| output.contains(says))
    };
    scene.instance_id("db", &id, is).await
}

#[tokio::test]
async fn an_answer_over_http_is_the_status() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let elsewhere = Target::start().await?;
    let _lictor = scene.lictor_with(&[LOCAL]).await?;
    let http = json!({"path": "/health?deep=1", "method": "HEAD", "headers": {"X-Who": "me", "Host": "db"}});
    let checks = json!([{"name": "api", "http": http, "interval": "1s", "timeout": "400ms"}]);
    register(&scene, target.port, &checks).await?;
    let asked = format!("HTTP HEAD http://127.0.0.1:{}/health?deep=1: ", target.port);
    let seen = shows(&scene, "api", "passing", &format!("{asked}200 OK")).await?;
    let check = seen.check(&format!("{}:api", id(&scene)));
    assert_eq!(
        (&check["Name"], &check["Type"]),
        (&json!("api"), &json!("http"))
    );
    ensure!(!check["Output"].to_string().contains("secret"), "{check}");
    let head = target.last_head().to_lowercase();
    ensure!(
        head.starts_with("head /health?deep=1 http/1.1\r\n"),
        "{head}"
    );
    ensure!(
        head.contains("x-who: me\r\n") && head.contains("host: db\r\n"),
        "{head}"
    );

    let location = format!("http://127.0.0.1:{}/", elsewhere.port);
    for (answer, status, says) in [
        (Answer::Status(429), "warning", "429 Too Many Requests"),
        (Answer::Status(503), "critical", "503 Service Unavailable"),
        (Answer::Status(204), "passing", "204 No Content"),
        (Answer::Redirect(location), "critical", "302 Found"),
        (Answer::Status(201), "passing", "201 Created"),
        (Answer::Hang, "critical", "no answer within 400ms"),
        (Answer::Status(202), "passing", "202 Accepted"),
        (Answer::Trickle, "critical", "no answer within 400ms"),
        (Answer::Status(200), "passing", "200 OK"),
        (Answer::Endless, "critical", ""),
        (Answer::Status(203), "passing", "203"),
        (Answer::Reset, "critical", ""),
        (Answer::Status(404), "critical", ""),
    ] {
        target.answers(answer.clone());
        shows(&scene, "api", status, says)
            .await
            .with_context(|| format!("{answer:?}"))?;
    }
    assert_eq!(elsewhere.asked(), 0, "a redirect was followed");
    let status = scene
        .registration("db", |status| status["instances"]["critical"] == 1)
        .await?;
    assert_eq!(condition(&status, "Ready").0, "True", "whatever the health");

    drop(target);
    shows(&scene, "api", "critical", "").await?;
    Ok(())
}

#[tokio::test]
async fn a_connection_over_tcp_is_enough() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let _lictor = scene.lictor_with(&[LOCAL]).await?;
    let checks = json!([{"name": "port", "tcp": {}, "interval": "1s"}]);
    register(&scene, target.port, &checks).await?;
    let asked = format!("TCP 127.0.0.1:{}: connected", target.port);
    shows(&scene, "port", "passing", &asked).await?;
    drop(target);
    shows(&scene, "port", "critical", "connection refused").await?;
    Ok(())
}

#[tokio::test]
async fn the_health_service_of_grpc_is_asked() -> Result<()> {
    let (scene, target) = (Scene::new().await?, GrpcTarget::start().await?);
    let _lictor = scene.lictor_with(&[LOCAL]).await?;
    target.serves("shop.Payments", true).await;
    let checks = json!([
        {"name": "server", "grpc": {}, "interval": "1s"},
        {"name": "payments", "grpc": {"service": "shop.Payments"}, "interval": "1s"},
        {"name": "unknown", "grpc": {"service": "shop.Nothing"}, "interval": "1s"},
    ]);
    register(&scene, target.port, &checks).await?;
    shows(&scene, "server", "passing", "SERVING").await?;
    let asked = format!("gRPC 127.0.0.1:{}/shop.Payments: SERVING", target.port);
    shows(&scene, "payments", "passing", &asked).await?;
    shows(&scene, "unknown", "critical", "does not know the service").await?;
    target.serves("shop.Payments", false).await;
    shows(&scene, "payments", "critical", "NOT_SERVING").await?;
    drop(target);
    shows(&scene, "server", "critical", "").await?;
    Ok(())
}

#[tokio::test]
async fn nothing_is_written_while_the_answer_is_the_same() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let lictor = scene.lictor_with(&[LOCAL]).await?;
    let checks = json!([{"name": "api", "http": {}, "interval": "1s"}]);
    register(&scene, target.port, &checks).await?;
    shows(&scene, "api", "passing", "").await?;
    lictor.idle().await?;
    let (before, asked) = (scene.dump().await?, target.asked());
    until("five more runs", async || {
        let more = target.asked() - asked;
        (more >= 5).then_some(()).context(more)
    })
    .await?;
    assert_eq!(scene.dump().await?, before);
    // Nor is anything after a restart, whoever ran the check before.
    let status = lictor.stop().await?;
    ensure!(status.success());
    let asked = target.asked();
    let lictor = scene.lictor_with(&[LOCAL]).await?;
    until("a run", async || {
        let more = target.asked() - asked;
        (more >= 2).then_some(()).context(more)
    })
    .await?;
    lictor.idle().await?;
    assert_eq!(scene.dump().await?, before);
    Ok(())
}

#[tokio::test]
async fn local_addresses_are_not_asked_even_where_a_pod_claims_them() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let _lictor = scene.lictor().await?;
    let checks = json!([{"name": "api", "http": {}, "interval": "1s"}]);
    register(&scene, target.port, &checks).await?;
    shows(&scene, "api", "critical", "loopback").await?;
    let pod = scene.pod("p").label("app", "p").ip("169.254.169.254");
    pod.create_ready(&scene.client).await?;
    let spec = json!({"service": "meta", "selector": {"matchLabels": {"app": "p"}}, "port": 80,
                      "health": {"checks": checks}});
    scene.register("meta", spec).await?;
    let check = format!("{}:api", scene.id("meta", "p"));
    scene
        .instance("meta", "p", |instance| {
            instance.check(&check)["Output"]
                .to_string()
                .contains("link-local")
        })
        .await?;
    assert_eq!(target.asked(), 0);
    Ok(())
}

/// Waits until the worst check of an instance of the pod has this status.
async fn is(scene: &Scene, service: &str, status: &str) -> Result<Instance> {
    let worst = |instance: &Instance| {
        let all = instance.raw["Checks"].as_array();
        let all = all
            .into_iter()
            .flatten()
            .filter_map(|check| check["Status"].as_str());
        let by_badness = |status: &&str| {
            ["passing", "warning", "critical"]
                .iter()
                .position(|it| it == status)
        };
        all.max_by_key(by_badness).map(str::to_owned)
    };
    let is = |instance: &Instance| worst(instance).as_deref() == Some(status);
    scene.instance(service, "p", is).await
}

#[tokio::test]
async fn of_readiness_and_checks_the_worst_counts_and_proxies_follow() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let _lictor = scene.lictor_with(&[LOCAL]).await?;
    selected(&scene, target.port).await?;
    is(&scene, "web", "passing").await?;
    is(&scene, "web-sidecar-proxy", "passing").await?;
    target.answers(Answer::Status(503));
    let seen = is(&scene, "web", "critical").await?;
    let ready = format!("{}:ready", scene.id("web", "p"));
    assert_eq!(seen.check(&ready)["Status"], "passing");
    let seen = is(&scene, "web-sidecar-proxy", "critical").await?;
    let alias = format!("{}:alias", scene.id("web-sidecar-proxy", "p"));
    let output = seen.check(&alias)["Output"].to_string();
    ensure!(
        output.contains("api: HTTP GET") && output.contains("503"),
        "{output}"
    );
    target.answers(Answer::Status(200));
    is(&scene, "web", "passing").await?;
    is(&scene, "web-sidecar-proxy", "passing").await?;
    let pod = scene.pod("p").label("app", "p").ip("127.0.0.1");
    pod.port("api", target.port)
        .not_ready(&scene.client, "app")
        .await?;
    is(&scene, "web", "critical").await?;
    is(&scene, "web-sidecar-proxy", "critical").await?;
    Ok(())
}

#[tokio::test]
async fn it_takes_as_many_runs_as_are_asked_for() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let _lictor = scene.lictor_with(&[LOCAL]).await?;
    let checks = json!([{"name": "api", "http": {}, "interval": "1s",
                         "failuresBeforeCritical": 3, "successesBeforePassing": 2}]);
    register(&scene, target.port, &checks).await?;
    shows(&scene, "api", "passing", "").await?;
    assert!(target.asked() >= 2);
    let asked = target.asked();
    target.answers(Answer::Status(500));
    shows(&scene, "api", "critical", "500").await?;
    // The run that was under way may have been answered before.
    ensure!(target.asked() - asked >= 3, "{}", target.asked() - asked);
    Ok(())
}

#[tokio::test]
async fn what_is_not_asked_for_any_more_goes_and_is_not_asked() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let lictor = scene.lictor_with(&[LOCAL]).await?;
    let check = |name: &str| json!({"name": name, "http": {}, "interval": "1s"});
    register(&scene, target.port, &json!([check("a"), check("b")])).await?;
    shows(&scene, "a", "passing", "").await?;
    shows(&scene, "b", "passing", "").await?;
    let patch = json!({"spec": {"health": {"checks": [check("a")]}}});
    scene.edit("db", patch).await?;
    let gone = format!("{}:b", id(&scene));
    scene
        .instance_id("db", &id(&scene), |instance| {
            instance.check(&gone).is_null()
        })
        .await?;
    lictor.shows("lictor_checks", 1.0).await?;
    // Paused, it is asked on as it was.
    scene
        .edit(
            "db",
            json!({"metadata": {"annotations": {"lictor.io/paused": "true"}}}),
        )
        .await?;
    target.answers(Answer::Status(503));
    shows(&scene, "a", "critical", "503")
        .await
        .context("health goes on while it is paused")?;
    scene.unregister("db").await?;
    scene.gone_id("db", &id(&scene)).await?;
    lictor.shows("lictor_checks", 0.0).await?;
    Ok(())
}

#[tokio::test]
async fn only_the_process_that_writes_asks() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let first: Lictor = scene.lictor_with(&[LOCAL, OFF]).await?;
    let checks = json!([{"name": "api", "http": {}, "interval": "1s"}]);
    register(&scene, target.port, &checks).await?;
    shows(&scene, "api", "passing", "").await?;
    first.shows("lictor_checks", 1.0).await?;
    let second = scene.lictor_with(&[LOCAL, OFF]).await?;
    second.shows("lictor_checks", 1.0).await?;
    first.shows("lictor_checks", 0.0).await?;
    target.answers(Answer::Status(503));
    shows(&scene, "api", "critical", "503").await?;
    Ok(())
}

#[tokio::test]
async fn a_status_that_another_hand_writes_is_undone() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let _lictor = scene.lictor_with(&[LOCAL]).await?;
    target.answers(Answer::Status(503));
    let checks = json!([{"name": "api", "http": {}, "interval": "1s"}]);
    register(&scene, target.port, &checks).await?;
    let seen = shows(&scene, "api", "critical", "503").await?;
    let mut check = seen.check(&format!("{}:api", id(&scene))).clone();
    check["Status"] = json!("passing");
    check["Output"] = json!("all is well");
    let node = check["Node"].clone();
    let entry =
        json!({"Node": node, "SkipNodeUpdate": true, "Address": "127.0.0.1", "Check": check});
    scene.by_hand(&entry).await?;
    shows(&scene, "api", "critical", "503").await?;
    Ok(())
}

#[tokio::test]
async fn what_changed_while_it_was_away_is_asked_anew() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let other = Target::start().await?;
    let lictor = scene.lictor_with(&[LOCAL]).await?;
    // With this interval nothing is asked again by the clock.
    let checks = json!([{"name": "api", "http": {}, "interval": "1h"}]);
    register(&scene, target.port, &checks).await?;
    shows(&scene, "api", "passing", "").await?;
    lictor.stop().await?;
    // Another address under the same id.
    other.answers(Answer::Status(503));
    let endpoint = json!({"name": "one", "address": "127.0.0.1", "port": other.port});
    scene
        .edit("db", json!({"spec": {"endpoints": [endpoint]}}))
        .await?;
    let lictor = scene.lictor_with(&[LOCAL]).await?;
    let asked = format!("127.0.0.1:{}", other.port);
    shows(&scene, "api", "critical", &asked).await?;
    lictor.stop().await?;
    // Another object of the same name: the address is that of before, and what was found there is not
    // taken over.
    scene.unregister("db").await?;
    other.answers(Answer::Status(200));
    register(&scene, other.port, &checks).await?;
    let _lictor = scene.lictor_with(&[LOCAL]).await?;
    shows(&scene, "api", "passing", &asked).await?;
    Ok(())
}

#[tokio::test]
async fn where_drift_is_only_told_a_check_still_says_what_was_found() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let lictor = scene.lictor_with(&[LOCAL, "--drift=report"]).await?;
    let checks = json!([{"name": "api", "http": {}, "interval": "1s"}]);
    register(&scene, target.port, &checks).await?;
    for (answer, status) in [(200, "passing"), (503, "critical"), (200, "passing")] {
        target.answers(Answer::Status(answer));
        shows(&scene, "api", status, &answer.to_string()).await?;
    }
    // A status by another hand is told, and stays as long as what is found is the same.
    let seen = shows(&scene, "api", "passing", "").await?;
    let mut check = seen.check(&format!("{}:api", id(&scene))).clone();
    check["Status"] = json!("warning");
    let entry =
        json!({"Node": seen.node, "SkipNodeUpdate": true, "Address": "127.0.0.1", "Check": check});
    scene.by_hand(&entry).await?;
    scene.event("DriftRepaired", "db", "is left so").await?;
    let asked = target.asked();
    until("two more runs", async || {
        let more = target.asked() - asked;
        (more >= 2).then_some(()).context(more)
    })
    .await?;
    shows(&scene, "api", "warning", "").await?;
    // What is found next is Kubernetes', so to speak, and ends that.
    target.answers(Answer::Status(503));
    shows(&scene, "api", "critical", "503").await?;
    target.answers(Answer::Status(200));
    shows(&scene, "api", "passing", "200").await?;
    lictor.idle().await?;
    Ok(())
}

#[tokio::test]
async fn what_was_found_of_a_pod_says_nothing_of_the_next_of_its_name() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let lictor = scene.lictor_with(&[LOCAL]).await?;
    let pod = scene.pod("p").label("app", "p").ip("127.0.0.1");
    pod.create_ready(&scene.client).await?;
    // With this interval nothing is asked again by the clock, and with this timeout nothing is found soon.
    let checks = json!([{"name": "api", "http": {}, "interval": "1h", "timeout": "1m"}]);
    let spec = json!({"service": "web", "selector": {"matchLabels": {"app": "p"}}, "port": target.port,
                      "health": {"checks": checks}});
    scene.register("web", spec).await?;
    let check = format!("{}:api", scene.id("web", "p"));
    let is = |status: &'static str, says: &'static str| {
        let check = check.clone();
        move |seen: &Instance| {
            let check = seen.check(&check);
            check["Status"] == status && check["Output"].to_string().contains(says)
        }
    };
    let first = scene.instance("web", "p", is("passing", "200 OK")).await?;
    lictor.stop().await?;
    target.answers(Answer::Hang);
    pod.finish_deletion(&scene.client).await?;
    pod.create_ready(&scene.client).await?;
    let _lictor = scene.lictor_with(&[LOCAL]).await?;
    let next = scene
        .instance("web", "p", is("critical", "not asked yet"))
        .await?;
    assert_eq!(
        next.create_index, first.create_index,
        "it is the same entry"
    );
    Ok(())
}
