//! `lictor gc` and what is on no node: intentions, prepared queries, the protocol of a service.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::gc::{gc, squeezed};
use crate::support::{Kind, Scene, condition, sources_of};

/// How many sources of intentions go: more than `--max-delete-floor`.
const SOURCES: usize = 12;

/// Names of things in Consul.
struct Names {
    payment: String,
    stays: String,
    nearest: String,
}

/// Intentions, a query and a registration with a protocol, which one source needs.
async fn settle(scene: &Scene) -> Result<Names> {
    let names = Names {
        payment: scene.named("payment"),
        stays: scene.named("stays"),
        nearest: scene.named("nearest"),
    };
    let endpoint = json!({"name": "a", "address": "10.71.0.1", "port": 80});
    let spec = json!({"service": names.payment, "endpoints": [endpoint], "protocol": "http"});
    scene.register("payment", spec).await?;
    let spec = json!({"name": names.nearest, "service": names.payment});
    scene.create(Kind::PreparedQuery, "nearest", spec).await?;
    let rules = json!([{"action": "allow", "http": {"pathPrefix": "/"}}]);
    let mut sources = vec![json!({"name": "rules", "permissions": rules})];
    for number in 1..SOURCES {
        sources.push(json!({"name": format!("s{number:02}"), "action": "allow"}));
    }
    let spec = json!({"destination": {"name": names.payment}, "sources": sources});
    scene.create(Kind::Intention, "many", spec).await?;
    let sources = json!([{"name": "web", "action": "allow"}]);
    let spec = json!({"destination": {"name": names.stays}, "sources": sources});
    scene.create(Kind::Intention, "stays", spec).await?;
    for (kind, name) in [
        (Kind::PreparedQuery, "nearest"),
        (Kind::Intention, "many"),
        (Kind::Intention, "stays"),
    ] {
        let is = |status: &Value| condition(status, "Ready").0 == "True";
        scene.shown(kind, name, is).await?;
    }
    let is = |status: &Value| condition(status, "Ready").0 == "True";
    scene.registration("payment", is).await?;
    Ok(names)
}

async fn delete_all_but_one(scene: &Scene) -> Result<()> {
    scene.delete(Kind::Intention, "many").await?;
    scene.delete(Kind::PreparedQuery, "nearest").await?;
    scene.unregister("payment").await
}

async fn ledger(scene: &Scene, name: &str) -> Result<Option<Value>> {
    let path = format!("/v1/kv/lictor/v1/{}/query/{name}?raw", scene.cluster);
    scene.consul.find(&path).await
}

async fn only_one_is_left(scene: &Scene, names: &Names) -> Result<()> {
    scene
        .config_entry_is("service-intentions", &names.payment, Value::is_null)
        .await?;
    scene
        .config_entry_is("service-defaults", &names.payment, Value::is_null)
        .await?;
    scene.query_is(&names.nearest, Value::is_null).await?;
    scene.sources_are(&names.stays, &["web allow"]).await?;
    Ok(())
}

/// What `lictor gc` shows of all that goes.
fn shows_all(names: &Names, out: &str) {
    let Names {
        payment, nearest, ..
    } = names;
    for key in [
        format!("- intention service-intentions/{payment}: rules - "),
        format!("- intention service-intentions/{payment}: s11 - "),
        format!("- query query/{nearest} - "),
        format!("- service-defaults service-defaults/{payment} - "),
    ] {
        assert!(squeezed(out).contains(&key), "{key} in {out}");
    }
    assert!(!out.contains(&names.stays), "{out}");
}

#[tokio::test]
async fn entries_that_are_held_are_shown_and_released() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let names = settle(&scene).await?;
    lictor.stop().await?;
    delete_all_but_one(&scene).await?;
    let lictor = scene.lictor().await?;
    // The sources, the query, the protocol and the endpoint.
    lictor.shows("lictor_held_deletes", 15.0).await?;
    let shown = gc(&scene, &[]).await?;
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    shows_all(&names, &shown.out);
    assert!(shown.out.contains("15 held by"), "{}", shown.out);
    let released = gc(&scene, &["--yes"]).await?;
    assert!(released.out.contains("15 released"), "{}", released.out);
    only_one_is_left(&scene, &names).await?;
    lictor.shows("lictor_held_deletes", 0.0).await?;
    lictor.idle().await?;
    ensure!(ledger(&scene, &names.nearest).await?.is_none());
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn without_a_process_entries_go_in_the_order_in_which_they_can() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let names = settle(&scene).await?;
    lictor.stop().await?;
    delete_all_but_one(&scene).await?;
    let before = scene.query_named(&names.nearest).await?;
    let shown = gc(&scene, &[]).await?;
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    shows_all(&names, &shown.out);
    let counts = "15 of 16 are claimed by nothing";
    assert!(shown.out.contains(counts), "{}", shown.out);
    assert_eq!(scene.query_named(&names.nearest).await?, before);

    let removed = gc(&scene, &["--yes"]).await?;
    assert_eq!(removed.code, Some(0), "{}{}", removed.out, removed.err);
    let counts =
        "removed: 1 instances, 12 intentions, 1 queries, 1 service-defaults, 0 nodes and 1 keys";
    assert!(removed.out.contains(counts), "{}", removed.out);
    let audited = removed.err.matches("audit: removed").count();
    assert_eq!(audited, 16, "{}", removed.err);
    only_one_is_left(&scene, &names).await?;
    ensure!(ledger(&scene, &names.nearest).await?.is_none());
    let nothing = gc(&scene, &["--yes"]).await?;
    assert!(
        nothing.out.contains("nothing is in Consul"),
        "{}",
        nothing.out
    );
    // The next process finds nothing to do.
    let lictor = scene.lictor().await?;
    lictor.idle().await?;
    let wrote = lictor.metric("lictor_operations_total", &[]).await?;
    ensure!(wrote == 0.0, "{wrote} operations");
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn of_a_dead_cluster_entries_go_and_what_others_added_stays() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let names = settle(&scene).await?;
    let (changed, newer) = (scene.named("changed"), scene.named("newer"));
    for (object, name) in [("changed", &changed), ("newer", &newer)] {
        let spec = json!({"name": name, "service": "ledger"});
        scene.create(Kind::PreparedQuery, object, spec).await?;
        let is = |status: &Value| condition(status, "Ready").0 == "True";
        scene.shown(Kind::PreparedQuery, object, is).await?;
    }
    lictor.kill();

    // Others add a source, change a query, and have an entry and a query of their own.
    let mut entry = scene
        .config_entry("service-intentions", &names.stays)
        .await?;
    let theirs = json!({"Name": "hand", "Action": "deny", "Type": "consul"});
    entry["Sources"].as_array_mut().unwrap().push(theirs);
    entry["Meta"]["team"] = json!("shop");
    scene.consul.put("/v1/config", &entry).await?;
    let mut query = scene.query_named(&changed).await?;
    query["DNS"]["TTL"] = json!("9s");
    let id = query["ID"].as_str().unwrap_or_default().to_owned();
    let at = format!("/v1/query/{id}");
    scene.consul.put(&at, &query).await?;
    let hand = json!({
        "Kind": "service-intentions", "Name": scene.named("hand"),
        "Sources": [{"Name": "web", "Action": "allow"}],
    });
    scene.consul.put("/v1/config", &hand).await?;
    let hand_query = json!({"Name": scene.named("hand"), "Service": {"Service": "web"}});
    scene.consul.post("/v1/query", &hand_query).await?;
    // What a newer release would note.
    let mut noted = ledger(&scene, &newer).await?.context("not noted")?;
    noted["kind"] = json!("Newer");
    let newer_at = format!("/v1/kv/lictor/v1/{}/query/{newer}", scene.cluster);
    scene.consul.put(&newer_at, &noted).await?;
    let newer_query = scene.query_named(&newer).await?;
    let foreign = async || {
        let hand = scene.named("hand");
        let entry = scene.config_entry("service-intentions", &hand);
        let query = scene.query_named(&hand);
        anyhow::Ok([entry.await?, query.await?])
    };
    let before = foreign().await?;

    let undertaker = format!("--cluster={}x", scene.cluster);
    let dead = format!("--dead={}", scene.cluster);
    let bury = async |more: &[&str]| gc(&scene, &[&[&*undertaker, &*dead], more].concat()).await;
    let shown = bury(&[]).await?;
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    let out = squeezed(&shown.out);
    let web = format!("service-intentions/{}: web - ", names.stays);
    assert!(out.contains(&web), "{}", shown.out);
    let kept = format!("= query/{changed} stays: it is not as the cluster's ledger says");
    assert!(out.contains(&kept), "{}", shown.out);
    let kept = format!("= query/{newer} stays: ");
    assert!(out.contains(&kept), "{}", shown.out);
    let buried = bury(&["--yes"]).await?;
    assert_eq!(buried.code, Some(1), "queries stay: {}", buried.out);
    let counts = "removed: 1 instances, 13 intentions, 1 queries, 1 service-defaults, ";
    assert!(buried.out.contains(counts), "{}", buried.out);
    let entry = scene
        .config_entry("service-intentions", &names.stays)
        .await?;
    assert_eq!(sources_of(&entry), ["hand deny"]);
    assert_eq!(entry["Meta"], json!({"team": "shop"}));
    for kind in ["service-intentions", "service-defaults"] {
        let gone = scene.config_entry(kind, &names.payment).await?;
        assert_eq!(gone, Value::Null, "{kind}");
    }
    assert_eq!(scene.query_named(&names.nearest).await?, Value::Null);
    assert_eq!(scene.query_named(&changed).await?["ID"], id);
    ensure!(ledger(&scene, &changed).await?.is_some());
    ensure!(ledger(&scene, &newer).await? == Some(noted));
    assert_eq!(scene.query_named(&newer).await?, newer_query);
    ensure!(ledger(&scene, &names.nearest).await?.is_none());

    scene.consul.delete(&at).await?;
    scene.consul.delete(&newer_at).await?;
    let newer_id = newer_query["ID"].as_str().unwrap_or_default();
    scene
        .consul
        .delete(&format!("/v1/query/{newer_id}"))
        .await?;
    let buried = bury(&["--yes"]).await?;
    assert_eq!(buried.code, Some(0), "{}{}", buried.out, buried.err);
    let keys = format!("/v1/kv/lictor/v1/{}/?keys&consistent", scene.cluster);
    assert_eq!(scene.consul.find(&keys).await?, None);
    assert_eq!(foreign().await?, before);
    Ok(())
}
