//! `lictor gc`, and nodes that nothing is on any more.

use std::time::Duration;

use anyhow::{Result, ensure};
use lictor_testbed::CONSUL_MANAGEMENT_TOKEN;
use lictor_testbed::proxy::{Answer, Fault, Proxy};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::faults::alone;
use crate::support::{Annotated as _, Scene, run_within, until};

/// How long `lictor gc --dead` waits whether the cluster lives, and then some.
const BURIAL: Duration = Duration::from_mins(3);

pub struct Outcome {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub async fn gc(scene: &Scene, more: &[&str]) -> Result<Outcome> {
    gc_within(BURIAL, scene, more).await
}

/// The same where it may take so long.
pub async fn gc_within(patience: Duration, scene: &Scene, more: &[&str]) -> Result<Outcome> {
    let mut args = scene.args();
    "gc".clone_into(&mut args[0]);
    let flag = |arg: &str| arg.split('=').next().unwrap_or_default().to_owned();
    let given: Vec<String> = more.iter().map(|arg| flag(arg)).collect();
    args.retain(|arg| !arg.starts_with("--listen") && !given.contains(&flag(arg)));
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    // What a dead cluster left needs rights on its name.
    if !given.iter().any(|flag| flag == "--consul-http-token") {
        args.push(format!("--consul-http-token={CONSUL_MANAGEMENT_TOKEN}"));
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (code, out, err) = run_within(patience, &args).await?;
    Ok(Outcome { code, out, err })
}

/// Without what aligns columns.
pub fn squeezed(text: &str) -> String {
    let lines = text.lines();
    let lines = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

/// The id of an entry of another hand, which no other scene has.
fn hand(scene: &Scene) -> String {
    format!("hand-{}", scene.cluster)
}

/// Asks as `lictor gc` does, and waits for the answer.
async fn asked(scene: &Scene, id: &str, more: Value) -> Result<Value> {
    question(scene, id, more).await?;
    answer(scene, id).await
}

/// Leaves a question behind.
async fn question(scene: &Scene, id: &str, mut more: Value) -> Result<()> {
    more["id"] = json!(id);
    let path = format!("/v1/kv/lictor/v1/{}/gc", scene.cluster);
    scene.consul.put(&path, &json!({"request": more})).await?;
    Ok(())
}

async fn answer(scene: &Scene, id: &str) -> Result<Value> {
    let path = format!("/v1/kv/lictor/v1/{}/gc?raw&consistent", scene.cluster);
    until("an answer", async || {
        let exchange = scene.consul.get(&path).await?;
        let answer = exchange["answer"].clone();
        ensure!(answer["id"] == id, "{exchange}");
        Ok::<_, anyhow::Error>(answer)
    })
    .await
}

/// The question to release what this answer showed.
fn release(shown: &Value) -> Value {
    json!({"release": {
        "shown": shown["id"], "holder": shown["holder"], "epoch": shown["epoch"],
    }})
}

/// The key of the epoch: its value, and its index.
async fn epoch(scene: &Scene) -> Result<(Value, Value)> {
    let path = format!("/v1/kv/lictor/v1/{}/epoch", scene.cluster);
    let pairs = scene.consul.get(&format!("{path}?consistent")).await?;
    let value = scene.consul.get(&format!("{path}?raw&consistent")).await?;
    Ok((value, pairs[0]["ModifyIndex"].clone()))
}

/// So many pods, registered, of which all but two are deleted while no lictor runs.
pub async fn much_is_gone(scene: &Scene, count: usize) -> Result<()> {
    let lictor = scene.lictor().await?;
    for number in 0..count {
        let pod = scene.pod(&format!("web-{number}"));
        let pod = pod.lictor("service", "web");
        pod.create_ready(&scene.client).await?;
    }
    for number in 0..count {
        scene
            .status("web", &format!("web-{number}"), "passing")
            .await?;
    }
    lictor.stop().await?;
    for number in 2..count {
        let pod = scene.pod(&format!("web-{number}"));
        pod.finish_deletion(&scene.client).await?;
    }
    Ok(())
}

async fn two_are_left(scene: &Scene, count: usize) -> Result<()> {
    for number in 2..count {
        scene.gone("web", &format!("web-{number}")).await?;
    }
    for name in ["web-0", "web-1"] {
        scene.status("web", name, "passing").await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_held_is_shown_and_released_by_the_process_that_runs() -> Result<()> {
    let scene = Scene::new().await?;
    much_is_gone(&scene, 14).await?;
    let lictor = scene.lictor().await?;
    lictor.shows("lictor_held_deletes", 12.0).await?;

    let shown = gc(&scene, &["--dry-run"]).await?;
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    assert!(shown.out.contains(&scene.id("web", "web-7")));
    assert!(shown.out.contains("12 of 14"), "{}", shown.out);
    let row = shown
        .out
        .lines()
        .find(|line| line.contains(&scene.id("web", "web-7")));
    let cells: Vec<&str> = row.unwrap_or_default().split_whitespace().collect();
    let owner = format!("Pod/{}/web-7", scene.namespace);
    let expected = [
        "-",
        "instance",
        &scene.id("web", "web-7"),
        &scene.consul_node(),
        &owner,
    ];
    assert_eq!(cells[..5], expected, "{}", shown.out);
    assert!(cells[5].ends_with('s'), "for how long: {cells:?}");
    assert!(!shown.out.contains('\u{1b}'), "colours without a terminal");
    assert!(shown.out.contains("12 held by"), "{}", shown.out);
    let kept = format!("{}  ", scene.id("web", "web-1"));
    assert!(!shown.out.contains(&kept), "{}", shown.out);
    assert!(scene.find("web", "web-7").await?.is_some(), "only shown");

    let json = gc(&scene, &["--output=json"]).await?;
    let found: Value = serde_json::from_str(&json.out)?;
    assert_eq!(found["goes"].as_array().map(Vec::len), Some(12), "{found}");
    assert_eq!(found["goes"][0]["node"], scene.consul_node(), "{found}");
    assert_eq!(found["done"], Value::Null, "only shown: {found}");

    let released = gc(&scene, &["--yes"]).await?;
    assert_eq!(released.code, Some(0), "{}", released.err);
    assert!(released.out.contains("12 released"), "{}", released.out);
    two_are_left(&scene, 14).await?;
    let nothing = gc(&scene, &["--yes"]).await?;
    assert!(nothing.out.contains("nothing is held"), "{}", nothing.out);
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_question_that_was_left_behind_releases_nothing() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    much_is_gone(&scene, 14).await?;
    let consul = Proxy::start(&installed.bed.consul_addr())?;
    let through = format!("--consul-http-addr={}", consul.url());
    let lictor = scene.lictor_with(&[&through]).await?;
    lictor.shows("lictor_held_deletes", 12.0).await?;
    let shown = asked(&scene, "show", json!({})).await?;
    assert_eq!(shown["held"].as_array().map(Vec::len), Some(12), "{shown}");

    // The asker is gone before anyone could answer.
    consul.set(Fault::Refuse).await?;
    question(&scene, "left", release(&shown)).await?;
    installed.bed.consul_server.stop().await?;
    installed.bed.consul_server.start().await?;
    consul.set(Fault::Pass).await?;
    let left = answer(&scene, "left").await?;
    assert_eq!(left["released"], 0, "{left}");
    assert!(left["refused"].to_string().contains("old one"), "{left}");
    // Nor does it when it is asked once more.
    let again = asked(&scene, "again", release(&shown)).await?;
    assert!(again["refused"].is_string(), "{again}");
    lictor.idle().await?;
    lictor.shows("lictor_held_deletes", 12.0).await?;
    for number in 0..14 {
        let name = format!("web-{number}");
        assert!(scene.find("web", &name).await?.is_some(), "{name}");
    }

    let released = gc(&scene, &["--yes"]).await?;
    assert!(released.out.contains("12 released"), "{}", released.err);
    two_are_left(&scene, 14).await?;
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_answered_is_not_released() -> Result<()> {
    let scene = Scene::new().await?;
    much_is_gone(&scene, 14).await?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let through = format!("--consul-http-addr={}", consul.url());
    let lictor = scene.lictor_with(&[&through]).await?;
    lictor.shows("lictor_held_deletes", 12.0).await?;
    let shown = asked(&scene, "show", json!({})).await?;
    let answer = Answer::new(502).only("/v1/txn");
    consul.set(Fault::Answer(answer)).await?;
    question(&scene, "release", release(&shown)).await?;
    until("it to give up", async || {
        let log = lictor.log();
        ensure!(log.contains("lictor gc is to ask again"));
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    consul.set(Fault::Pass).await?;
    lictor.idle().await?;
    lictor.shows("lictor_held_deletes", 12.0).await?;
    assert!(scene.find("web", "web-7").await?.is_some());
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn what_is_found_after_it_was_shown_is_not_released() -> Result<()> {
    let scene = Scene::new().await?;
    much_is_gone(&scene, 14).await?;
    let lictor = scene.lictor().await?;
    lictor.shows("lictor_held_deletes", 12.0).await?;
    let shown = asked(&scene, "show", json!({})).await?;
    let late = scene.id("web", "late");
    let entry = json!({
        "Node": scene.consul_node(), "Address": "192.168.7.1", "SkipNodeUpdate": true,
        "Service": {"ID": late, "Service": "web", "Port": 1, "Meta": {
            "lictor-cluster": scene.cluster, "lictor-node": scene.consul_node(),
            "lictor-owner": format!("Pod/{}/late", scene.namespace),
        }},
    });
    scene.by_hand(&entry).await?;
    lictor.shows("lictor_held_deletes", 13.0).await?;

    let mut other = release(&shown);
    other["release"]["epoch"] = json!(1);
    let refused = asked(&scene, "other", other).await?;
    assert!(refused["refused"].is_string(), "{refused}");
    let shown = asked(&scene, "show-2", json!({})).await?;
    assert_eq!(shown["held"].as_array().map(Vec::len), Some(13), "{shown}");
    let more = scene.id("web", "more");
    let mut entry = entry;
    entry["Service"]["ID"] = json!(more);
    entry["Service"]["Meta"]["lictor-owner"] = json!(format!("Pod/{}/more", scene.namespace));
    scene.by_hand(&entry).await?;
    lictor.shows("lictor_held_deletes", 14.0).await?;
    let released = asked(&scene, "release", release(&shown)).await?;
    assert_eq!(released["released"], 13, "{released}");
    assert_eq!(released["more"], 1, "{released}");
    two_are_left(&scene, 14).await?;
    scene.gone_id("web", &late).await?;
    lictor.idle().await?;
    lictor.shows("lictor_held_deletes", 1.0).await?;
    assert!(scene.find_id("web", &more).await?.is_some());
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn without_a_process_it_works_by_itself_and_leaves_what_is_claimed() -> Result<()> {
    let scene = Scene::new().await?;
    much_is_gone(&scene, 5).await?;
    let entry = json!({
        "Node": scene.consul_node(), "Address": "10.88.0.1", "SkipNodeUpdate": true,
        "Service": {"ID": hand(&scene), "Service": "web", "Port": 1},
    });
    scene.by_hand(&entry).await?;
    let shown = gc(&scene, &[]).await?;
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    assert!(shown.err.contains("by ourselves"), "{}", shown.err);
    assert!(
        shown.out.contains("3 of 5 are claimed by nothing"),
        "{}",
        shown.out
    );
    let removed = gc(&scene, &["--yes", "--output=json"]).await?;
    assert_eq!(removed.code, Some(0), "{}", removed.err);
    let found: Value = serde_json::from_str(&removed.out)?;
    assert_eq!(found["goes"].as_array().map(Vec::len), Some(3), "{found}");
    assert_eq!(found["done"]["removed"]["instances"], 3, "{found}");
    assert!(removed.err.contains("audit"), "{}", removed.err);
    two_are_left(&scene, 5).await?;
    assert!(scene.find_id("web", &hand(&scene)).await?.is_some());
    // The next process takes the epoch as ever.
    let lictor = scene.lictor().await?;
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn without_a_process_the_epoch_is_taken_before_anything_is_read() -> Result<()> {
    let scene = Scene::new().await?;
    much_is_gone(&scene, 3).await?;
    let before = epoch(&scene).await?;
    assert_eq!(before.0["kind"], "run");
    assert_eq!(gc(&scene, &[]).await?.code, Some(0));
    assert_eq!(epoch(&scene).await?, before, "only shown");

    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let answer = Answer::new(403).body("Permission denied");
    consul
        .set(Fault::Answer(answer.only("/v1/catalog/nodes")))
        .await?;
    let through = format!("--consul-http-addr={}", consul.url());
    let failed = gc(&scene, &["--yes", &through]).await?;
    assert_eq!(failed.code, Some(1), "{}", failed.out);
    assert!(
        failed.err.contains("cannot list the nodes"),
        "{}",
        failed.err
    );
    let after = epoch(&scene).await?;
    assert_eq!(after.0["kind"], "gc");
    assert_ne!(after.1, before.1);
    assert!(scene.find("web", "web-2").await?.is_some());
    Ok(())
}

async fn keys_of(scene: &Scene, cluster: &str) -> Result<Value> {
    let path = format!("/v1/kv/lictor/v1/{cluster}/?keys&consistent");
    Ok(scene.consul.get(&path).await.unwrap_or(json!([])))
}

#[tokio::test]
async fn a_dead_cluster_is_buried_and_a_living_one_is_not() -> Result<()> {
    let scene = Scene::new().await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let lictor = scene.lictor().await?;
    scene.status("web", "web-0", "passing").await?;
    let undertaker = format!("--cluster={}x", scene.cluster);
    let dead = format!("--dead={}", scene.cluster);
    let bury = async |more: &[&str]| gc(&scene, &[&[&*undertaker, &*dead], more].concat()).await;

    let before = scene.find("web", "web-0").await?;
    let refused = bury(&["--yes"]).await?;
    assert_eq!(refused.code, Some(1), "{}", refused.out);
    assert!(refused.err.contains("lives"), "{}", refused.err);
    assert_eq!(scene.find("web", "web-0").await?, before);
    assert_eq!(lictor.http("/readyz").await?.0, 200);
    lictor.kill();

    let entry = json!({
        "Node": scene.consul_node(), "Address": "10.88.0.1", "SkipNodeUpdate": true,
        "Service": {"ID": hand(&scene), "Service": "web", "Port": 1},
    });
    scene.by_hand(&entry).await?;
    let shown = bury(&[]).await?;
    assert!(shown.out.contains(&scene.id("web", "web-0")));
    assert!(shown.out.contains("1 entries of others"), "{}", shown.out);
    let buried = bury(&["--yes"]).await?;
    assert_eq!(buried.code, Some(1), "a node stays: {}", buried.out);
    let removed = format!(
        "removed: 1 instances, 0 intentions, 0 queries, 0 service-defaults, 0 nodes and 0 keys of {}",
        scene.cluster
    );
    assert!(buried.out.contains(&removed), "{}", buried.out);
    assert!(scene.find("web", "web-0").await?.is_none());
    assert!(
        scene.find_id("web", &hand(&scene)).await?.is_some(),
        "another's"
    );
    let gone = json!({"Node": scene.consul_node(), "ServiceID": hand(&scene)});
    scene.away_by_hand(&gone).await?;
    let buried = bury(&["--yes"]).await?;
    assert_eq!(buried.code, Some(0), "{}", buried.err);
    assert_eq!(keys_of(&scene, &scene.cluster).await?, json!([]));
    let nothing = bury(&["--yes"]).await?;
    assert!(nothing.out.contains("nothing is left"), "{}", nothing.out);
    Ok(())
}

#[tokio::test]
async fn of_a_dead_cluster_only_what_carries_its_marks_goes() -> Result<()> {
    let scene = Scene::new().await?;
    let dead = format!("{}d", scene.cluster);
    let node = |name: &str| format!("lictor-{dead}--{name}");
    let marks = [("marked", json!(dead)), ("bare", Value::Null)];
    for (name, mark) in marks.into_iter().chain([("theirs", json!("x"))]) {
        let meta = match mark {
            Value::Null => json!({}),
            mark => json!({"lictor-cluster": mark}),
        };
        let entry = json!({"Node": node(name), "Address": "10.88.0.2", "NodeMeta": meta});
        scene.by_hand(&entry).await?;
    }
    // On the first all marks agree; on the other it is a copy.
    for name in ["marked", "theirs"] {
        let entry = json!({
            "Node": node(name), "Address": "10.88.0.2", "SkipNodeUpdate": true,
            "Service": {"ID": format!("{dead}.shop.web.p"), "Service": "web", "Port": 1, "Meta": {
                "lictor-cluster": dead, "lictor-node": node("marked"), "lictor-owner": "Pod/shop/p",
            }},
        });
        scene.by_hand(&entry).await?;
    }
    let key = format!("lictor/v1/{dead}/name/web");
    let path = format!("/v1/kv/{key}");
    scene.consul.put(&path, &json!({})).await?;

    let bury = format!("--dead={dead}");
    let shown = gc(&scene, &[&bury]).await?;
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    let out = &shown.out;
    let all = format!(
        "1 instances, 0 intentions, 0 queries, 0 service-defaults, 1 nodes and 1 keys of {dead}"
    );
    for line in [
        format!("- node {} ", node("marked")),
        format!("= {} stays: it does not carry the mark", node("bare")),
        format!("= {} stays: it is marked as the cluster x", node("theirs")),
        format!("- key {key} "),
        format!("{all}; --yes"),
    ] {
        assert!(squeezed(out).contains(&line), "{line} is not in {out}");
    }
    let buried = gc(&scene, &[&bury, "--yes"]).await?;
    assert_eq!(buried.code, Some(1), "two nodes stay: {}", buried.err);
    let removed = format!("removed: {all}");
    assert!(buried.out.contains(&removed), "{}", buried.out);
    for name in ["bare", "theirs"] {
        let stayed = format!("stayed: {}", node(name));
        assert!(buried.out.contains(&stayed), "{}", buried.out);
    }
    for kind in ["instance", "node", "key"] {
        let kind = format!("kind=\"{kind}\"");
        assert!(buried.err.contains(&kind), "{}", buried.err);
    }
    let nodes = scene.consul.get("/v1/catalog/nodes?consistent").await?;
    let nodes = nodes.to_string();
    assert!(nodes.contains(&node("bare")) && nodes.contains(&node("theirs")));
    assert!(!nodes.contains(&node("marked")));
    let on = format!("/v1/catalog/node-services/{}?consistent", node("theirs"));
    let on = scene.consul.get(&on).await?;
    assert_eq!(on["Services"].as_array().map(Vec::len), Some(1), "{on}");
    assert_eq!(scene.consul.find(&path).await?, None);
    Ok(())
}

#[tokio::test]
async fn while_consul_is_away_no_cluster_is_taken_for_dead() -> Result<()> {
    let scene = Scene::new().await?;
    let (theirs, ours) = (
        Proxy::start(&scene.bed.consul_addr())?,
        Proxy::start(&scene.bed.consul_addr())?,
    );
    let through = format!("--consul-http-addr={}", theirs.url());
    let lictor = scene.lictor_with(&[&through]).await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let before = scene.status("web", "web-0", "passing").await?;
    theirs.set(Fault::Refuse).await?;

    let through = format!("--consul-http-addr={}", ours.url());
    let dead = format!("--dead={}", scene.cluster);
    let cluster = format!("--cluster={}x", scene.cluster);
    let args = [&*through, &*dead, &*cluster, "--yes"];
    let outage = async {
        until("the epoch to be taken", async || {
            let (epoch, _) = epoch(&scene).await?;
            ensure!(epoch["kind"] == "gc", "{epoch}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        sleep(Duration::from_secs(2)).await;
        ours.set(Fault::Refuse).await?;
        sleep(Duration::from_secs(50)).await;
        ours.set(Fault::Pass).await?;
        // The process that lives needs longer to notice.
        sleep(Duration::from_secs(20)).await;
        theirs.set(Fault::Pass).await
    };
    let (refused, outage) = tokio::join!(gc(&scene, &args), outage);
    outage?;
    let refused = refused?;
    assert_eq!(refused.code, Some(1), "{}", refused.out);
    assert!(refused.err.contains("begin anew"), "{}", refused.err);
    assert!(refused.err.contains("lives"), "{}", refused.err);
    assert_eq!(scene.find("web", "web-0").await?, Some(before));
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn an_empty_node_goes_with_its_kubernetes_node_and_not_before_others_left() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--node-grace=1s"]).await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    let entry = json!({
        "Node": scene.consul_node(), "Address": "10.88.0.1", "SkipNodeUpdate": true,
        "Service": {"ID": hand(&scene), "Service": "web", "Port": 1},
    });
    scene.by_hand(&entry).await?;
    scene.pod("web-0").finish_deletion(&scene.client).await?;
    scene.gone("web", "web-0").await?;
    scene.kubernetes_node().delete(&scene.client).await?;
    let check = format!("/v1/health/node/{}?consistent", scene.consul_node());
    until("the node to be known to be gone", async || {
        let checks = scene.consul.get(&check).await?;
        ensure!(checks.to_string().contains("does not exist"), "{checks}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    lictor.idle().await?;
    sleep(Duration::from_secs(2)).await;
    assert!(
        scene.find_id("web", &hand(&scene)).await?.is_some(),
        "another's"
    );

    let gone = json!({"Node": scene.consul_node(), "ServiceID": hand(&scene)});
    scene.away_by_hand(&gone).await?;
    until("the node to be gone", async || {
        let checks = scene.consul.get(&check).await?;
        ensure!(checks == json!([]), "{checks}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    assert!(lictor.log().contains("audit"), "{}", lictor.log());
    lictor.stop().await?;
    Ok(())
}
