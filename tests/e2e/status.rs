//! `lictor status`: what there is, how it is, and what is the matter.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::plan::{only_reading, reading};
use crate::support::{Annotated as _, Kind, RELEASE, Scene};

async fn status(scene: &Scene) -> Result<Value> {
    let lease = format!("--lease-namespace={RELEASE}");
    let seen = only_reading(scene, "status", &["--output=json", &lease]).await?;
    ensure!(seen.code == Some(0), "{:?}: {}", seen.code, seen.err);
    serde_json::from_str(&seen.out).context(seen.out)
}

/// What is told of a service.
fn service(status: &Value, name: &str) -> Result<Value> {
    let services = status["services"].as_array().context("no services")?;
    let found = services.iter().find(|service| service["name"] == name);
    Ok(found.with_context(|| format!("{status:#}"))?.clone())
}

#[tokio::test]
async fn it_tells_by_service_what_is_there_how_it_is_and_what_is_the_matter() -> Result<()> {
    let scene = Scene::new().await?;
    let empty = status(&scene).await?;
    ensure!(empty["services"] == json!([]), "{empty:#}");
    ensure!(empty["writer"] == json!({}), "{empty:#}");

    let lictor = scene.lictor().await?;
    let good = scene.pod("web-0").lictor("service", "web");
    good.create_ready(&scene.client).await?;
    let ill = scene.pod("web-1").lictor("service", "web");
    ill.create_ready(&scene.client).await?;
    ill.not_ready(&scene.client, "app").await?;
    let bad = scene.pod("bad").lictor("service", "api");
    let bad = bad.lictor("port", "no-such-port");
    bad.create_ready(&scene.client).await?;
    let payment = scene.named("payment");
    let spec = json!({"destination": {"name": payment},
                      "sources": [{"name": "web", "action": "allow"}]});
    scene.create(Kind::Intention, "shop", spec).await?;
    let chosen = scene.pod("db-0").label("app", "db");
    chosen.create_ready(&scene.client).await?;
    let spec = json!({"service": "db", "selector": {"matchLabels": {"app": "db"}}});
    scene
        .create(Kind::ServiceRegistration, "base", spec)
        .await?;
    scene.status("db", "db-0", "passing").await?;
    scene.status("web", "web-0", "passing").await?;
    scene.status("web", "web-1", "critical").await?;
    scene.sources_are(&payment, &["web allow"]).await?;

    let seen = status(&scene).await?;
    let web = service(&seen, "web")?;
    let tally = &web["tally"];
    let counts = ["owned", "passing", "critical", "drift"].map(|name| tally[name].as_u64());
    ensure!(counts == [2, 1, 1, 0].map(Some), "{web:#}");
    ensure!(
        web["owners"] == json!([format!("Pod/{}/*", scene.namespace)]),
        "{web:#}"
    );
    let base = json!(format!("ServiceRegistration/{}/base", scene.namespace));
    let db = service(&seen, "db")?;
    ensure!(
        db["owners"] == json!([base]) && db["instances"][0]["owner"] == base,
        "{db:#}"
    );
    let api = service(&seen, "api")?;
    ensure!(api["tally"]["rejected"] == 1, "{api:#}");
    let matter = api["instances"][0]["matters"][0]["message"].as_str();
    ensure!(
        matter.is_some_and(|it| it.contains("no-such-port")),
        "{api:#}"
    );
    let others = seen["others"].as_array().context("no others")?;
    let intention = format!("service-intentions/{payment}: web");
    ensure!(others.iter().any(|it| it["key"] == intention), "{seen:#}");
    let writer = &seen["writer"];
    let holder = writer["holder"].as_str().unwrap_or_default();
    let leader = writer["leader"].as_str().context("nobody leads")?;
    ensure!(holder.starts_with(leader), "{writer}");
    let age = writer["seenSecondsAgo"].as_i64();
    ensure!(age.is_some_and(|age| (-1..15).contains(&age)), "{writer}");

    // Nobody puts right what another hand does while it is stopped.
    lictor.stop().await?;
    let away = json!({"Node": scene.consul_node(), "ServiceID": scene.id("web", "web-0")});
    scene.away_by_hand(&away).await?;
    let seen = status(&scene).await?;
    let web = service(&seen, "web")?;
    ensure!(
        web["tally"]["owned"] == 1 && web["tally"]["drift"] == 1,
        "{web:#}"
    );
    let wide = only_reading(&scene, "status", &["--output=wide"])
        .await?
        .out;
    let line = |name: &str| wide.lines().find(|line| line.contains(name));
    let id = scene.id("web", "web-0");
    let gone = line(&id).context(wide.clone())?;
    ensure!(
        gone.contains("create") && gone.starts_with("web "),
        "{wide}"
    );
    ensure!(wide.contains("is not in Consul"), "{wide}");
    let there = line(&scene.id("web", "web-1")).context(wide.clone())?;
    ensure!(
        there.contains("critical") && there.contains(" ok "),
        "{wide}"
    );
    Ok(())
}

#[tokio::test]
async fn where_kubernetes_is_away_what_is_in_consul_is_told_all_the_same() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    lictor.stop().await?;
    let nowhere = scene.bed.dir().join(format!("{}-nowhere", scene.cluster));
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "nowhere",
        "clusters": [{"name": "nowhere", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "nowhere", "context": {"cluster": "nowhere", "user": "nobody"}}],
        "users": [{"name": "nobody", "user": {}}],
    });
    std::fs::write(&nowhere, config.to_string())?;
    let kubeconfig = format!("--kubeconfig={}", nowhere.display());
    let seen = only_reading(&scene, "status", &["--output=json", &kubeconfig]).await?;
    ensure!(seen.code == Some(1), "{:?}: {}", seen.code, seen.err);
    let status: Value = serde_json::from_str(&seen.out).context(seen.out)?;
    let web = service(&status, "web")?;
    ensure!(
        web["tally"]["owned"] == 1 && web["tally"]["drift"] == 0,
        "{web:#}"
    );
    let notes = status["notes"].as_array().context("no notes")?;
    let told = |note: &Value| {
        note.as_str()
            .is_some_and(|note| note.contains("is not known"))
    };
    ensure!(notes.iter().any(told), "{status:#}");
    Ok(())
}

#[tokio::test]
async fn it_goes_on_looking_until_it_is_stopped() -> Result<()> {
    let scene = Scene::new().await?;
    let args = reading(&scene, "status", &["--watch", "--output=json"]).await?;
    let mut watching = tokio::process::Command::new(env!("CARGO_BIN_EXE_lictor"))
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let out = watching.stdout.take().context("no pipe")?;
    let mut lines = BufReader::new(out).lines();
    let id = scene.id("web", "web-0");
    let first = lines.next_line().await?;
    ensure!(first.is_some(), "it ended");
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let told = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains(&id) {
                return anyhow::Ok(());
            }
        }
        bail!("it ended")
    };
    tokio::time::timeout(Duration::from_secs(30), told).await??;
    watching.kill().await?;
    Ok(())
}
