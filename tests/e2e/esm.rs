//! Checks that consul-esm runs (`--checks esm`). Its part is played by [`finds`], which does what
//! consul-esm 0.10 does when a status changes: it reads the checks of a node that is external,
//! consistently, and writes the one whole, by compare-and-set in a transaction.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::support::{Answer, Instance, Lictor, Scene, Target, condition, selected, until};

const BY_ESM: &str = "--checks=esm";
const LOCAL: &str = "--allow-local-checks";

async fn lictor(scene: &Scene) -> Result<Lictor> {
    scene.lictor_with(&[BY_ESM, LOCAL]).await
}

/// A service of one endpoint.
async fn register(scene: &Scene, address: &str, port: u16, checks: &Value) -> Result<()> {
    let endpoint = json!({"name": "one", "address": address, "port": port});
    let spec = json!({"service": "db", "endpoints": [endpoint], "health": {"checks": checks}});
    scene.register("db", spec).await?;
    Ok(())
}

fn id(scene: &Scene) -> String {
    format!("{}.{}.db.db.one", scene.cluster, scene.namespace)
}

async fn shows(
    scene: &Scene,
    check: &str,
    is: impl Fn(&Value) -> bool,
) -> Result<(Instance, Value)> {
    let (id, check) = (id(scene), format!("{}:{check}", id(scene)));
    let seen = scene
        .instance_id("db", &id, |seen| is(seen.check(&check)))
        .await?;
    let found = seen.check(&check).clone();
    Ok((seen, found))
}

/// A check as Consul's own client for Go, which consul-esm is made with, writes it: without fields that it does
/// not know, and with all that it knows, however empty.
fn of_consuls_api(check: &Value) -> Value {
    let mut written = check.clone();
    if let Some(fields) = written.as_object_mut() {
        fields.retain(|name, _| !["Interval", "Timeout"].contains(&&**name));
    }
    let mut definition = json!({
        "HTTP": "", "Header": null, "Method": "", "Body": "", "TLSServerName": "", "TLSSkipVerify": false,
        "TCP": "", "TCPUseTLS": false, "UDP": "", "GRPC": "", "OSService": "", "GRPCUseTLS": false,
        "Interval": "0s", "Timeout": "0s", "DeregisterCriticalServiceAfter": "0s",
    });
    for (name, value) in check["Definition"].as_object().into_iter().flatten() {
        definition[name] = value.clone();
    }
    written["Definition"] = definition;
    written
}

/// What it says of a run: over HTTP the first words are those that Lictor would say.
fn output(definition: &Value, status: &str) -> String {
    let answer = match status {
        "passing" => "200 OK",
        "warning" => "429 Too Many Requests",
        _ => "503 Service Unavailable",
    };
    match (&definition["HTTP"], &definition["TCP"]) {
        (Value::String(url), _) => {
            let method = definition["Method"].as_str().unwrap_or("GET");
            format!("HTTP {method} {url}: {answer} Output: secret")
        }
        (_, tcp) => format!("TCP connect {}: Success", tcp.as_str().unwrap_or_default()),
    }
}

/// consul-esm found this of a check.
async fn finds(scene: &Scene, node: &str, check: &str, status: &str) -> Result<()> {
    until("consul-esm to write what it found", async || {
        let external = scene
            .consul
            .get("/v1/catalog/nodes?node-meta=external-node:true")
            .await?;
        let mut external = external.as_array().context("no list")?.iter();
        ensure!(
            external.any(|it| it["Node"] == node),
            "consul-esm does not look at {node}"
        );
        let checks = scene
            .consul
            .get(&format!("/v1/health/node/{node}?consistent"))
            .await?;
        let mut checks = checks.as_array().context("no list")?.iter();
        let found = checks.find(|it| it["CheckID"] == check);
        let found = found.context("no such check")?;
        let definition = &found["Definition"];
        ensure!(
            definition["HTTP"].is_string() || definition["TCP"].is_string(),
            "consul-esm does not run it: {found}"
        );
        let mut check = of_consuls_api(found);
        check["Status"] = json!(status);
        check["Output"] = json!(output(definition, status));
        let ops = json!([{"Check": {"Verb": "cas", "Check": check}}]);
        scene.consul.put("/v1/txn", &ops).await
    })
    .await?;
    Ok(())
}

fn external(scene: &Scene) -> String {
    format!("lictor-{}-external", scene.cluster)
}

/// Waits until all was planned by a process that has just started, and sees that nothing was to be written.
async fn writes_nothing(scene: &Scene, running: &Lictor, before: &Value) -> Result<()> {
    running.shows("lictor_leader", 1.0).await?;
    running.idle().await?;
    assert_eq!(scene.dump().await?, *before);
    let written = running.metric("lictor_operations_total", &[]).await?;
    ensure!(written == 0.0, "{written} writes");
    Ok(())
}

async fn node_meta(scene: &Scene, node: &str) -> Result<Value> {
    let node = scene
        .consul
        .get(&format!("/v1/catalog/node/{node}"))
        .await?;
    Ok(node["Node"]["Meta"].clone())
}

#[tokio::test]
async fn definitions_are_written_whole_and_once() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let running = lictor(&scene).await?;
    let http = json!({"path": "/health?deep=1", "method": "HEAD", "scheme": "https",
                      "headers": {"x-who": "me", "Host": "db"}});
    let checks = json!([
        {"name": "api", "http": http, "interval": "90s", "timeout": "1500ms"},
        {"name": "plain", "http": {}, "interval": "1s", "timeout": "100ms"},
        {"name": "port", "tcp": {"port": 1234}, "interval": "24h"},
    ]);
    register(&scene, "127.0.0.1", target.port, &checks).await?;
    let at = format!("127.0.0.1:{}", target.port);
    for (check, definition) in [
        (
            "api",
            json!({"HTTP": format!("https://{at}/health?deep=1"), "Method": "HEAD", "TLSSkipVerify": true,
                   "Header": {"X-Who": ["me"], "Host": ["db"]}, "Interval": "1m30s", "Timeout": "1.5s"}),
        ),
        (
            "plain",
            json!({"HTTP": format!("http://{at}/"), "Method": "GET", "Interval": "1s", "Timeout": "100ms"}),
        ),
        (
            "port",
            json!({"TCP": "127.0.0.1:1234", "Interval": "24h0m0s", "Timeout": "3s"}),
        ),
    ] {
        let (_, found) = shows(&scene, check, |found| found["Definition"] == definition).await?;
        assert_eq!(
            (&found["Status"], &found["Output"]),
            (&json!("critical"), &json!("not asked yet"))
        );
        let kind = if check == "port" { "tcp" } else { "http" };
        assert_eq!(found["Type"], kind);
    }
    assert_eq!(
        node_meta(&scene, &external(&scene)).await?["external-node"],
        "true"
    );
    // What cannot be in a transaction is written otherwise, and as whole.
    let pod = scene.pod("p").label("app", "p");
    pod.create_ready(&scene.client).await?;
    let spec = json!({"service": "native", "selector": {"matchLabels": {"app": "p"}},
                      "connect": {"native": true},
                      "health": {"checks": [{"name": "api", "http": {"headers": {"a": "b"}}}]}});
    scene.register("native", spec).await?;
    let check = format!("{}:api", scene.id("native", "p"));
    let is = |seen: &Instance| seen.check(&check)["Definition"]["Header"] == json!({"A": ["b"]});
    scene.instance("native", "p", is).await?;
    running.idle().await?;
    let before = scene.dump().await?;
    running.stop().await?;
    let running = lictor(&scene).await?;
    writes_nothing(&scene, &running, &before).await?;
    running.shows("lictor_checks", 0.0).await?;
    assert_eq!(target.asked(), 0, "Lictor asked");
    Ok(())
}

#[tokio::test]
async fn a_restart_writes_nothing_and_leaves_what_consul_esm_found() -> Result<()> {
    let scene = Scene::new().await?;
    let running = lictor(&scene).await?;
    let checks =
        json!([{"name": "api", "http": {"headers": {"x-who": "me"}}}, {"name": "db", "tcp": {}}]);
    register(&scene, "10.1.2.3", 80, &checks).await?;
    shows(&scene, "db", |found| found["Status"] == "critical").await?;
    for (check, status) in [("api", "passing"), ("db", "warning")] {
        finds(
            &scene,
            &external(&scene),
            &format!("{}:{check}", id(&scene)),
            status,
        )
        .await?;
    }
    // It is seen, and no drift.
    scene
        .registration("db", |status| status["instances"]["warning"] == 1)
        .await?;
    running.idle().await?;
    let before = scene.dump().await?;
    running.shows("lictor_drift_total", 0.0).await?;
    running.stop().await?;
    let running = lictor(&scene).await?;
    writes_nothing(&scene, &running, &before).await
}

#[tokio::test]
async fn a_definition_that_another_hand_changes_is_put_right_and_no_status_is() -> Result<()> {
    let scene = Scene::new().await?;
    let running = lictor(&scene).await?;
    let checks = json!([{"name": "api", "http": {}}]);
    register(&scene, "10.1.2.3", 80, &checks).await?;
    let (seen, found) = shows(&scene, "api", |found| {
        found["Definition"]["HTTP"].is_string()
    })
    .await?;
    let check = format!("{}:api", id(&scene));
    finds(&scene, &seen.node, &check, "passing").await?;
    let right = found["Definition"].clone();
    for (field, value) in [
        ("HTTP", json!("http://169.254.169.254/")),
        ("DeregisterCriticalServiceAfter", json!("1m0s")),
        ("Body", json!("x")),
    ] {
        let (_, mut forged) = shows(&scene, "api", |found| found["Definition"] == right).await?;
        forged["Definition"][field] = value;
        let entry = json!({"Node": seen.node, "SkipNodeUpdate": true, "Address": "127.0.0.1", "Check": forged});
        scene.by_hand(&entry).await?;
        let is = |found: &Value| found["Definition"] == right && found["Status"] == "passing";
        let (_, found) = shows(&scene, "api", is).await.context(field)?;
        ensure!(found["Output"].to_string().contains("secret"), "{found}");
    }
    let name = "lictor_drift_total";
    ensure!(running.metric(name, &[]).await? >= 3.0);
    // What consul-esm, or an operator, says of the node is no surplus; but whether it is looked after
    // otherwise is nobody else's to say.
    let entry = json!({"Node": seen.node, "Address": "127.0.0.1",
                       "NodeMeta": {"external-node": "true", "external-probe": "true",
                                    "external-source": "kubernetes", "lictor-cluster": scene.cluster},
                       "Check": {"CheckID": "externalNodeHealth", "Name": "External Node Status",
                                 "Status": "critical", "Output": "Node not live or unreachable"}});
    scene.by_hand(&entry).await?;
    until("external-probe to be gone", async || {
        let meta = node_meta(&scene, &seen.node).await?;
        ensure!(
            meta["external-probe"].is_null() && meta["external-node"] == "true",
            "{meta}"
        );
        Ok(())
    })
    .await?;
    running.idle().await?;
    let checks = scene
        .consul
        .get(&format!("/v1/health/node/{}", seen.node))
        .await?;
    ensure!(
        checks.to_string().contains("externalNodeHealth"),
        "{checks}"
    );
    // Its reaping takes a node with all on it: that is made anew.
    scene.away_by_hand(&json!({"Node": seen.node})).await?;
    shows(&scene, "api", |found| found["Definition"] == right).await?;
    Ok(())
}

async fn alias(scene: &Scene, status: &str) -> Result<Value> {
    let alias = format!("{}:alias", scene.id("web-sidecar-proxy", "p"));
    let is = |seen: &Instance| seen.check(&alias)["Status"] == status;
    let seen = scene.instance("web-sidecar-proxy", "p", is).await?;
    Ok(seen.check(&alias).clone())
}

#[tokio::test]
async fn the_proxy_follows_what_consul_esm_finds() -> Result<()> {
    let scene = Scene::new().await?;
    let running = lictor(&scene).await?;
    selected(&scene, 8080).await?;
    alias(&scene, "critical").await?;
    let check = format!("{}:api", scene.id("web", "p"));
    for status in ["passing", "warning", "critical", "passing"] {
        finds(&scene, &scene.consul_node(), &check, status).await?;
        let alias = alias(&scene, status).await?;
        ensure!(!alias["Output"].to_string().contains("secret"), "{alias}");
    }
    let drift = running.metric("lictor_drift_total", &[]).await?;
    ensure!(drift == 0.0, "{drift} times");
    Ok(())
}

#[tokio::test]
async fn who_runs_the_checks_is_switched_without_a_status_that_changes() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let running = scene.lictor_with(&[LOCAL]).await?;
    selected(&scene, target.port).await?;
    alias(&scene, "passing").await?;
    let check = format!("{}:api", scene.id("web", "p"));
    let first = scene.instance("web", "p", |_| true).await?;
    running.idle().await?;
    running.stop().await?;

    let running = lictor(&scene).await?;
    let is = |seen: &Instance| seen.check(&check)["Definition"]["HTTP"].is_string();
    let seen = scene.instance("web", "p", is).await?;
    assert_eq!(seen.check(&check)["Status"], "passing");
    assert_eq!(seen.create_index, first.create_index);
    until("the node to be external", async || {
        let meta = node_meta(&scene, &scene.consul_node()).await?;
        ensure!(meta["external-node"] == "true", "{meta}");
        Ok(())
    })
    .await?;
    running.idle().await?;
    let of = ["instance", "update"];
    let count = running.metric("lictor_operations_total", &of).await?;
    // None but the one was to be.
    ensure!((count - 1.0).abs() < f64::EPSILON, "{count} updates");
    alias(&scene, "passing").await?;
    let asked = target.asked();
    finds(&scene, &scene.consul_node(), &check, "warning").await?;
    alias(&scene, "warning").await?;
    assert_eq!(target.asked(), asked, "Lictor asked");
    running.stop().await?;

    target.answers(Answer::Hang);
    let running = scene.lictor_with(&[LOCAL]).await?;
    let is = |seen: &Instance| {
        let definition = &seen.check(&check)["Definition"];
        definition.is_null() || *definition == json!({})
    };
    let seen = scene.instance("web", "p", is).await?;
    assert_eq!(
        seen.check(&check)["Status"],
        "warning",
        "it stays until it was asked"
    );
    assert_eq!(seen.create_index, first.create_index);
    let meta = node_meta(&scene, &scene.consul_node()).await?;
    ensure!(meta["external-node"].is_null(), "{meta}");
    until("Lictor to ask again", async || {
        ensure!(target.asked() > asked);
        Ok(())
    })
    .await?;
    target.answers(Answer::Status(200));
    alias(&scene, "passing").await?;
    running.shows("lictor_checks", 1.0).await?;
    Ok(())
}

#[tokio::test]
async fn back_from_consul_esm_each_check_is_asked_at_once_and_no_body_is_left() -> Result<()> {
    let (scene, target) = (Scene::new().await?, Target::start().await?);
    let running = lictor(&scene).await?;
    let checks = json!([{"name": "api", "http": {}, "interval": "1h"}]);
    register(&scene, "127.0.0.1", target.port, &checks).await?;
    shows(&scene, "api", |found| {
        found["Definition"]["HTTP"].is_string()
    })
    .await?;
    let check = format!("{}:api", id(&scene));
    finds(&scene, &external(&scene), &check, "passing").await?;
    shows(&scene, "api", |found| {
        found["Output"].to_string().contains("secret")
    })
    .await?;
    running.idle().await?;
    running.stop().await?;
    let _running = scene.lictor_with(&[LOCAL]).await?;
    let is_lictors = |found: &Value| {
        let output = found["Output"].as_str().unwrap_or_default();
        output.ends_with(" ms)") && !output.contains("secret")
    };
    let (_, found) = shows(&scene, "api", is_lictors).await?;
    assert_eq!(found["Status"], "passing");
    Ok(())
}

#[tokio::test]
async fn what_consul_esm_cannot_do_is_said() -> Result<()> {
    let scene = Scene::new().await?;
    let _running = lictor(&scene).await?;
    let spec = |checks: Value| {
        let endpoint = json!({"name": "one", "address": "10.1.2.3", "port": 80});
        json!({"endpoints": [endpoint], "health": {"checks": checks}})
    };
    let grpc = json!([{"name": "rpc", "grpc": {}}]);
    scene.register("rpc", spec(grpc)).await?;
    let status = scene
        .registration("rpc", |status| condition(status, "Ready").1 == "Invalid")
        .await?;
    let (_, _, message) = condition(&status, "Ready");
    ensure!(message.contains("health.checks: rpc: grpc"), "{message}");
    scene
        .event("InvalidAnnotation", "rpc", "health.checks: rpc: grpc")
        .await?;
    let often = json!([{"name": "api", "http": {}, "failuresBeforeCritical": 3}]);
    scene.register("often", spec(often)).await?;
    let says = |status: &Value| {
        condition(status, "Ready")
            .2
            .contains("failuresBeforeCritical")
    };
    let status = scene.registration("often", says).await?;
    assert_eq!(condition(&status, "Ready").0, "True");
    scene
        .event("InvalidAnnotation", "often", "critical_threshold")
        .await?;
    let once = json!([{"name": "api", "http": {}}]);
    scene
        .edit("often", json!({"spec": spec(once.clone())}))
        .await?;
    scene.registration("often", |status| !says(status)).await?;
    scene.edit("rpc", json!({"spec": spec(once)})).await?;
    let is_ready = |status: &Value| condition(status, "Ready").0 == "True";
    scene.registration("rpc", is_ready).await?;
    Ok(())
}

#[tokio::test]
async fn consul_esm_is_sent_to_nothing_local() -> Result<()> {
    let scene = Scene::new().await?;
    let _running = scene.lictor_with(&[BY_ESM]).await?;
    let consul = scene.bed.consul_addr();
    let (_, port) = consul.rsplit_once(':').context("no port")?;
    register(
        &scene,
        "127.0.0.1",
        port.parse()?,
        &json!([{"name": "api", "http": {}}]),
    )
    .await?;
    let refused = |says: &'static str| {
        move |found: &Value| {
            let definition = &found["Definition"];
            let has_none = definition.is_null() || *definition == json!({});
            has_none && found["Status"] == "critical" && found["Output"].to_string().contains(says)
        }
    };
    shows(&scene, "api", refused("loopback")).await?;
    let address = |address: &str| {
        let endpoint = json!({"name": "one", "address": address, "port": 80});
        json!({"spec": {"endpoints": [endpoint]}})
    };
    scene.edit("db", address("10.1.2.3")).await?;
    shows(&scene, "api", |found| {
        found["Definition"]["HTTP"] == "http://10.1.2.3:80/"
    })
    .await?;
    finds(
        &scene,
        &external(&scene),
        &format!("{}:api", id(&scene)),
        "passing",
    )
    .await?;
    scene.edit("db", address("169.254.169.254")).await?;
    shows(&scene, "api", refused("link-local")).await?;
    Ok(())
}
