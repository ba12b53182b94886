//! Checks that follow sessions: those of a workload that renews a Lease, and that of Lictor itself.

mod faults;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use lictor_testbed::{
    proxy::{Fault, Proxy},
    wait,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::faults::three;
use crate::support::{
    Annotated as _, Instance, Lictor, Oracle, Scene, acl_policy, condition, until,
};

/// Who renews a Lease, as a workload does that makes progress.
struct Worker {
    leases: Api<Lease>,
    name: String,
    beating: JoinHandle<()>,
}

impl Worker {
    /// Renews it a few times a second until it is stopped.
    fn start(scene: &Scene, name: &str) -> Self {
        let leases: Api<Lease> = Api::namespaced(scene.client.clone(), &scene.namespace);
        let beating = tokio::spawn({
            let (leases, name) = (leases.clone(), name.to_owned());
            async move {
                loop {
                    // One that fails is made up for by the next.
                    let _ = renew(&leases, &name).await;
                    tokio::time::sleep(Duration::from_millis(400)).await;
                }
            }
        });
        Self {
            leases,
            name: name.to_owned(),
            beating,
        }
    }

    fn stop(&self) {
        self.beating.abort();
    }

    async fn says(&self, status: Option<&str>) -> Result<()> {
        let patch = json!({"metadata": {"annotations": {"lictor.io/status": status}}});
        let patch = Patch::Merge(&patch);
        let name = &self.name;
        self.leases
            .patch(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn renew(leases: &Api<Lease>, name: &str) -> Result<()> {
    let now = k8s_openapi::jiff::Timestamp::now();
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name}, "spec": {"renewTime": format!("{now:.6}")}});
    let params = PatchParams::apply("worker").force();
    leases.patch(name, &params, &Patch::Apply(&lease)).await?;
    Ok(())
}

fn checks() -> Value {
    json!([{"name": "progress", "ttl": {"lease": "${pod.name}-beat", "ttl": "10s"}}])
}

/// A ready pod, whose registration looks at its Lease.
async fn register(scene: &Scene) -> Result<()> {
    let pod = scene.pod("p").label("app", "p");
    pod.create_ready(&scene.client).await?;
    let spec = json!({"service": "web", "selector": {"matchLabels": {"app": "p"}},
                      "health": {"checks": checks()}});
    scene.register("web", spec).await?;
    Ok(())
}

/// A ready pod whose heartbeat Consul shows, and who renews its Lease.
async fn beating(scene: &Scene) -> Result<Worker> {
    register(scene).await?;
    let worker = Worker::start(scene, "p-beat");
    is(scene, "passing").await?;
    Ok(worker)
}

/// The same once nothing is left to be done, and its one session.
async fn settled(scene: &Scene, lictor: &Lictor) -> Result<(Worker, Vec<Value>)> {
    let worker = beating(scene).await?;
    lictor.idle().await?;
    Ok((worker, session_count(scene, 1).await?))
}

fn check_id(scene: &Scene) -> String {
    format!("{}:progress", scene.id("web", "p"))
}

async fn is(scene: &Scene, status: &str) -> Result<Instance> {
    let check = check_id(scene);
    let is = |instance: &Instance| instance.check(&check)["Status"] == status;
    scene.instance("web", "p", is).await
}

/// The sessions on the nodes of this test.
async fn sessions(scene: &Scene) -> Result<Vec<Value>> {
    let mut ours = Vec::new();
    for node in [
        scene.consul_node(),
        format!("lictor-{}-external", scene.cluster),
    ] {
        let found = scene
            .consul
            .get(&format!("/v1/session/node/{node}?consistent"))
            .await?;
        ours.extend(found.as_array().cloned().unwrap_or_default());
    }
    Ok(ours)
}

async fn session_count(scene: &Scene, count: usize) -> Result<Vec<Value>> {
    until(&format!("{count} sessions"), async || {
        let found = sessions(scene).await?;
        ensure!(found.len() == count, "{found:?}");
        Ok(found)
    })
    .await
}

#[tokio::test]
async fn a_lease_that_is_renewed_keeps_the_check_passing() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    register(&scene).await?;
    let seen = is(&scene, "critical").await?;
    let check = seen.check(&check_id(&scene)).clone();
    assert_eq!(
        (&check["Name"], &check["Type"]),
        (&json!("progress"), &json!("session"))
    );
    assert_eq!(check["Definition"]["SessionName"], json!(check_id(&scene)));
    ensure!(sessions(&scene).await?.is_empty(), "it was not renewed yet");

    let worker = Worker::start(&scene, "p-beat");
    is(&scene, "passing").await?;
    let session = session_count(&scene, 1).await?.remove(0);
    assert_eq!(session["Name"], json!(check_id(&scene)));
    assert_eq!(session["TTL"], "10s");
    assert_eq!(session["NodeChecks"], json!([]));
    let status = |status: &Value| status["instances"]["passing"] == 1;
    scene.registration("web", status).await?;

    // It says itself that it is not well, and that it is again.
    worker.says(Some("critical")).await?;
    is(&scene, "critical").await?;
    session_count(&scene, 0).await?;
    let status = |status: &Value| status["instances"]["critical"] == 1;
    let status = scene.registration("web", status).await?;
    assert_eq!(condition(&status, "Ready").0, "True", "whatever the health");
    worker.says(None).await?;
    is(&scene, "passing").await?;

    // It stops, and goes on.
    worker.stop();
    is(&scene, "critical").await?;
    session_count(&scene, 0).await?;
    let worker = Worker::start(&scene, "p-beat");
    is(&scene, "passing").await?;
    session_count(&scene, 1).await?;

    // Without its Lease.
    worker.stop();
    until("the Lease to be deleted", async || {
        worker
            .leases
            .delete("p-beat", &DeleteParams::default())
            .await
    })
    .await?;
    is(&scene, "critical").await?;
    session_count(&scene, 0).await?;

    let _worker = Worker::start(&scene, "p-beat");
    is(&scene, "passing").await?;
    lictor.idle().await?;
    scene
        .edit("web", json!({"spec": {"health": {"checks": null}}}))
        .await?;
    let check = check_id(&scene);
    scene
        .instance("web", "p", |instance| instance.check(&check).is_null())
        .await?;
    session_count(&scene, 0).await?;
    scene.unregister("web").await?;
    scene.gone("web", "p").await
}

/// What Consul has is read once, and not for each that Lictor makes itself.
#[tokio::test]
async fn however_many_sessions_are_made_they_are_not_listed_again() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--dead-after", "1m"]).await?;
    let _worker = beating(&scene).await?;
    session_count(&scene, 2).await?;
    let lists = async || {
        let with = ["endpoint=\"session/list\""];
        lictor.metric("lictor_consul_requests_total", &with).await
    };
    let before = lists().await?;
    ensure!(before >= 1.0);
    for (count, pod) in [(3, "q"), (4, "r"), (5, "s")] {
        let of_it = scene.pod(pod).label("app", "p");
        of_it.create_ready(&scene.client).await?;
        // The first time that is heard of proves nothing, the second does.
        let leases: Api<Lease> = Api::namespaced(scene.client.clone(), &scene.namespace);
        until(&format!("a session of {pod}"), async || {
            renew(&leases, &format!("{pod}-beat")).await?;
            let found = sessions(&scene).await?.len();
            ensure!(found == count, "{found}");
            Ok(())
        })
        .await?;
    }
    let after = lists().await?;
    // One more comes half a minute after the start, whatever is made.
    ensure!(after <= before + 1.0, "{before}, and {after} after that");
    Ok(())
}

#[tokio::test]
async fn a_restart_keeps_the_session_and_an_instance_that_goes_takes_it_with_it() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let (worker, before) = settled(&scene, &lictor).await?;
    let dump = scene.dump().await?;
    lictor.stop().await?;
    let lictor = scene.lictor().await?;
    lictor.shows("lictor_sessions", 1.0).await?;
    lictor.idle().await?;
    assert_eq!(session_count(&scene, 1).await?, before);
    assert_eq!(scene.dump().await?, dump);

    // Whose workload died meanwhile has the time of one renewal.
    lictor.stop().await?;
    worker.stop();
    let lictor = scene.lictor().await?;
    is(&scene, "critical").await?;
    session_count(&scene, 0).await?;

    let _worker = Worker::start(&scene, "p-beat");
    is(&scene, "passing").await?;
    scene.pod("p").finish_deletion(&scene.client).await?;
    scene.gone("web", "p").await?;
    session_count(&scene, 0).await?;
    lictor.shows("lictor_sessions", 0.0).await
}

#[tokio::test]
async fn without_lictor_consul_turns_it_critical() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let _worker = beating(&scene).await?;
    lictor.kill();
    is(&scene, "critical").await?;
    let _lictor = scene.lictor().await?;
    is(&scene, "passing").await?;
    session_count(&scene, 1).await?;
    Ok(())
}

#[tokio::test]
async fn what_another_hand_does_to_sessions_and_their_checks_is_mended() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let _worker = beating(&scene).await?;
    let first = session_count(&scene, 1).await?.remove(0);
    let id = first["ID"].as_str().context("no id")?.to_owned();
    scene
        .consul
        .put(&format!("/v1/session/destroy/{id}"), &Value::Null)
        .await?;
    until("another session", async || {
        let found = sessions(&scene).await?;
        ensure!(found.len() == 1 && found[0]["ID"] != json!(id), "{found:?}");
        Ok(())
    })
    .await?;
    is(&scene, "passing").await?;

    // The check is removed: one that comes after its session would stay critical.
    let node = scene.consul_node();
    scene
        .away_by_hand(&json!({"Node": node, "CheckID": check_id(&scene)}))
        .await?;
    let check = check_id(&scene);
    scene
        .instance("web", "p", |instance| !instance.check(&check).is_null())
        .await?;
    is(&scene, "passing").await?;
    session_count(&scene, 1).await?;

    // The whole instance is.
    scene
        .away_by_hand(&json!({"Node": node, "ServiceID": scene.id("web", "p")}))
        .await?;
    is(&scene, "passing").await?;
    session_count(&scene, 1).await?;
    Ok(())
}

#[tokio::test]
async fn the_proxy_beside_an_instance_follows_its_heartbeat() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let pod = scene.pod("p").label("app", "p");
    pod.create_ready(&scene.client).await?;
    let spec = json!({"service": "web", "selector": {"matchLabels": {"app": "p"}},
                      "health": {"checks": checks()}, "connect": {"sidecar": {"port": 20000}}});
    scene.register("web", spec).await?;
    let proxy = |status: &'static str| {
        let id = format!("{}:alias", scene.id("web-sidecar-proxy", "p"));
        move |instance: &Instance| instance.check(&id)["Status"] == status
    };
    scene
        .instance("web-sidecar-proxy", "p", proxy("critical"))
        .await?;
    let worker = Worker::start(&scene, "p-beat");
    scene
        .instance("web-sidecar-proxy", "p", proxy("passing"))
        .await?;
    worker.says(Some("critical")).await?;
    scene
        .instance("web-sidecar-proxy", "p", proxy("critical"))
        .await?;
    lictor.idle().await
}

#[tokio::test]
async fn endpoints_have_heartbeats_and_bad_names_are_told() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let spec = |lease: &str| {
        let checks = json!([{"name": "progress", "ttl": {"lease": lease, "ttl": "10s"}}]);
        json!({"service": "db", "endpoints": [{"name": "one", "address": "192.0.2.1", "port": 1}],
               "health": {"checks": checks}})
    };
    scene.register("db", spec("${pod.name}")).await?;
    let invalid = |status: &Value| condition(status, "Ready").1 == "Invalid";
    let status = scene.registration("db", invalid).await?;
    let (_, _, message) = condition(&status, "Ready");
    ensure!(
        message.contains("ttl.lease") && message.contains("needs a pod"),
        "{message}"
    );
    scene.edit("db", json!({"spec": spec("db-beat")})).await?;
    let _worker = Worker::start(&scene, "db-beat");
    let id = format!("{}.{}.db.db.one", scene.cluster, scene.namespace);
    let check = format!("{id}:progress");
    let passes = |instance: &Instance| instance.check(&check)["Status"] == "passing";
    scene.instance_id("db", &id, passes).await?;
    Ok(())
}

/// All nodes turn critical by Consul's own hand, and are back with Lictor.
#[tokio::test]
async fn consul_notices_that_lictor_is_dead_where_that_is_asked_for() -> Result<()> {
    let scene = Scene::new().await?;
    let dead_after = ["--dead-after", "1m"];
    let lictor = scene.lictor_with(&dead_after).await?;
    let pod = scene.pod("p").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "p", "passing").await?;
    let node = scene.consul_node();
    let alive = async || {
        let checks = scene
            .consul
            .get(&format!("/v1/health/node/{node}?consistent"))
            .await?;
        let checks = checks.as_array().context("no list")?.iter();
        let found = checks
            .filter(|check| check["CheckID"] == "lictor-alive")
            .cloned();
        Ok::<_, anyhow::Error>(found.collect::<Vec<Value>>())
    };
    session_count(&scene, 1).await?;
    let check = alive().await?.pop().context("no check")?;
    assert_eq!(check["Status"], "passing");
    assert_eq!(check["Type"], "session");
    lictor.idle().await?;
    let dump = scene.dump().await?;
    let before = sessions(&scene).await?;
    lictor.stop().await?;
    let lictor = scene.lictor_with(&dead_after).await?;
    lictor.shows("lictor_sessions", 1.0).await?;
    lictor.idle().await?;
    assert_eq!(scene.dump().await?, dump);
    assert_eq!(sessions(&scene).await?, before);

    // As if it had been dead for long enough.
    lictor.kill();
    let id = before[0]["ID"].as_str().context("no id")?;
    scene
        .consul
        .put(&format!("/v1/session/destroy/{id}"), &Value::Null)
        .await?;
    assert_eq!(alive().await?[0]["Status"], "critical");
    let lictor = scene.lictor_with(&dead_after).await?;
    until("the node to pass again", async || {
        let found = alive().await?;
        ensure!(found[0]["Status"] == "passing", "{found:?}");
        Ok(())
    })
    .await?;
    session_count(&scene, 1).await?;

    // No longer asked for: the check goes before its session could end.
    lictor.stop().await?;
    let lictor = scene.lictor_with(&["--policy", "upsert-only"]).await?;
    until("the check to go", async || {
        let found = alive().await?;
        ensure!(found.is_empty(), "{found:?}");
        Ok(())
    })
    .await?;
    scene.status("web", "p", "passing").await?;

    // Asked for again, nobody sees it critical before its session is there.
    lictor.stop().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &[scene.id("web", "p")], &[]).await?;
    let _lictor = scene.lictor_with(&dead_after).await?;
    session_count(&scene, 1).await?;
    oracle.verdict().await
}

/// The rights of the docs are enough, and it is said when one is lacking.
#[tokio::test]
async fn with_acls_sessions_need_a_right() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let rights = acl_policy(&scene.cluster).await?;
    let of_sessions = |line: &&str| !line.starts_with("session");
    let fewer: Vec<&str> = rights.lines().filter(of_sessions).collect();
    let token = scene.consul.create_token(&fewer.join("\n")).await?;
    let given = format!("--consul-http-token={}", token.secret);
    let (own, pod) = ("lictor-0", scene.pod("lictor-0"));
    pod.create_ready(&scene.client).await?;
    let uid = scene.uid(own).await?;
    let env = [
        ("POD_NAME", own),
        ("POD_NAMESPACE", &*scene.namespace),
        ("POD_UID", &*uid),
    ];
    let args = [&*given, "--dead-after=1m"];
    let mut lictor = scene.spawn_lictor(&args, &env).await?;
    lictor.bears_refusals();
    lictor.ready().await?;
    register(&scene).await?;
    let _worker = Worker::start(&scene, "p-beat");
    let denied = |status: &Value| condition(status, "Ready").1 == "AccessDenied";
    let status = scene.registration("web", denied).await?;
    let (_, _, message) = condition(&status, "Ready");
    ensure!(message.contains("session:write"), "{message}");
    // Of its own check no object tells.
    let said = scene.event("ConsulRefused", own, "lictor-alive").await?;
    let note = said.note.unwrap_or_default();
    let place = scene.consul_node();
    ensure!(
        note.contains("session:write") && note.contains(&place),
        "{note}"
    );
    let readyz = async || lictor.http("/readyz").await;
    let (code, text) = readyz().await?;
    ensure!(code == 200 && text.contains("lictor-alive"), "{text}");
    scene.consul.change_rules(&token, &rights).await?;
    is(&scene, "passing").await?;
    session_count(&scene, 2).await?;
    until("it to be told no more", async || {
        let (_, text) = readyz().await?;
        ensure!(!text.contains("lictor-alive"), "{text}");
        Ok(())
    })
    .await?;
    let log = lictor.log();
    let lines = log.lines().filter(|line| line.contains("--dead-after:"));
    assert_eq!(lines.count(), 1, "{log}");
    let ready = |status: &Value| condition(status, "Ready").0 == "True";
    scene.registration("web", ready).await?;
    Ok(())
}

/// Consul's timers begin anew with each leader, and renewals go to whoever leads.
#[tokio::test]
async fn a_leader_of_consul_that_is_lost_is_no_false_alarm() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let _lictor = scene.lictor_with(&["--dead-after", "1m"]).await?;
    let _worker = beating(&scene).await?;
    session_count(&scene, 2).await?;
    let before = sessions(&scene).await?;
    let ids = [scene.id("web", "p")];
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &[]).await?;
    for _ in 0..2 {
        let leader = installed.bed.consul_leader().await?;
        leader.kill();
        installed.bed.consul_leader().await?;
        leader.start().await?;
    }
    oracle.verdict().await?;
    let after = until("sessions to be read", async || sessions(&scene).await).await?;
    assert_eq!(after, before);
    Ok(())
}

/// Deregistered for want of a heartbeat, it is back with the next.
#[tokio::test]
async fn what_has_no_heartbeat_for_long_is_deregistered_until_it_has() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    scene
        .pod("stays")
        .lictor("service", "stays")
        .create_ready(&scene.client)
        .await?;
    let pod = scene.pod("p").label("app", "p");
    pod.create_ready(&scene.client).await?;
    let health = json!({"checks": checks(), "deregisterCriticalServiceAfter": "30s"});
    let spec =
        json!({"service": "web", "selector": {"matchLabels": {"app": "p"}}, "health": health});
    scene.register("web", spec).await?;
    let worker = Worker::start(&scene, "p-beat");
    is(&scene, "passing").await?;
    worker.says(Some("critical")).await?;
    is(&scene, "critical").await?;
    let kept_out = |status: &Value| condition(status, "Ready").1 == "DeregisteredCritical";
    wait::until(
        "it to be deregistered",
        Duration::from_mins(2),
        async || scene.registration("web", kept_out).await,
    )
    .await?;
    scene.gone("web", "p").await?;
    session_count(&scene, 0).await?;
    worker.says(None).await?;
    is(&scene, "passing").await?;
    session_count(&scene, 1).await?;
    Ok(())
}
