//! Everything that fails, for what is on no node: intentions and prepared queries.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::api::ListParams;
use lictor_testbed::proxy::{Answer, Fault, Proxy};
use lictor_testbed::wait;
use rand::Rng as _;
use serde_json::{Value, json};

use super::kubernetes::{admin, restoring};
use super::{alone, not_ready, ready_but, three};
use crate::support::{Annotated as _, Kind, Lictor, Oracle, Scene, condition, sources_of, until};

/// Longer than three lists take that must agree, 30 s apart.
const LISTS: Duration = Duration::from_secs(150);

/// Without limits: more than the guard lets go may happen while nobody looks.
const NO_LIMIT: &str = "--max-delete-percent=100";

/// The objects that stay, and what others wrote, as [`Oracle::watch_entries`] has it.
struct Kept {
    sources: Vec<(String, String)>,
    queries: Vec<String>,
    foreign: Vec<String>,
}

impl Kept {
    async fn watch(&self, scene: &Scene) -> Result<Oracle> {
        let Self {
            sources,
            queries,
            foreign,
        } = self;
        Oracle::watch_entries(&scene.consul, sources, queries, foreign).await
    }
}

fn is_ready(status: &Value) -> bool {
    condition(status, "Ready").0 == "True"
}

fn to(scene: &Scene, sources: &[&str], action: &str) -> Value {
    let source = |name: &&str| json!({"name": name, "action": action});
    let sources: Vec<Value> = sources.iter().map(source).collect();
    json!({"destination": {"name": scene.named("payment")}, "sources": sources})
}

/// Some sources and a query that stay, with a source, an entry and a query of another hand.
async fn settle(scene: &Scene) -> Result<Kept> {
    let payment = scene.named("payment");
    let spec = to(scene, &["stay-0", "stay-1"], "allow");
    scene.create(Kind::Intention, "stays", spec).await?;
    let spec = json!({"name": scene.named("stays"), "service": "payment"});
    scene.create(Kind::PreparedQuery, "stays", spec).await?;
    scene.shown(Kind::Intention, "stays", is_ready).await?;
    scene.shown(Kind::PreparedQuery, "stays", is_ready).await?;
    let mut entry = scene.config_entry("service-intentions", &payment).await?;
    let sources = entry["Sources"].as_array_mut().context("no sources")?;
    sources.push(json!({"Name": "hand", "Action": "deny", "Type": "consul"}));
    scene.consul.put("/v1/config", &entry).await?;
    let hand = scene.named("hand");
    let source = json!({"Name": "web", "Action": "allow"});
    let entry = json!({"Kind": "service-intentions", "Name": hand, "Sources": [source]});
    scene.consul.put("/v1/config", &entry).await?;
    let query = json!({"Name": hand, "Service": {"Service": "web"}});
    let created = scene.consul.post("/v1/query", &query).await?;
    let id = created["ID"].as_str().context("no id")?;
    let source = |name: &str| (payment.clone(), name.to_owned());
    Ok(Kept {
        sources: ["stay-0", "stay-1", "hand"].map(source).into(),
        queries: vec![scene.named("stays")],
        foreign: vec![
            format!("/v1/config/service-intentions/{hand}?consistent"),
            format!("/v1/query/{id}?consistent"),
        ],
    })
}

/// Intentions and queries that come, change and go, and what Consul must hold in the end.
struct Turns<'a> {
    scene: &'a Scene,
    turn: usize,
    /// What others wrote is there too.
    hand: bool,
    /// Sources and what they may; each is of an Intention of its own. The names sort by age.
    sources: BTreeMap<String, &'static str>,
    /// Queries and their TTL.
    queries: BTreeMap<String, String>,
}

impl<'a> Turns<'a> {
    /// Beside what [`settle`] made.
    fn beside(scene: &'a Scene) -> Self {
        let ttl = (scene.named("stays"), String::new());
        Self {
            scene,
            turn: 0,
            hand: true,
            sources: [
                ("stay-0".to_owned(), "allow"),
                ("stay-1".to_owned(), "allow"),
            ]
            .into(),
            queries: [ttl].into(),
        }
    }

    async fn turns(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            self.turn().await?;
        }
        Ok(())
    }

    /// One change: in five turns an Intention and a query come, both change, and one of each goes.
    async fn turn(&mut self) -> Result<()> {
        let (scene, turn) = (self.scene, self.turn);
        self.turn += 1;
        let is_of_turns = |name: &&String| name.starts_with("turn-");
        let last_source = self.sources.keys().rev().find(is_of_turns).cloned();
        let last_query = self.queries.keys().rev().find(is_of_turns).cloned();
        match turn % 5 {
            0 => {
                let name = format!("turn-{turn:04}");
                let spec = to(scene, &[&name], "allow");
                scene.create(Kind::Intention, &name, spec).await?;
                self.sources.insert(name, "allow");
            }
            1 => {
                let name = format!("turn-{turn:04}");
                let query = scene.named(&name);
                let spec = json!({"name": query, "service": "payment"});
                scene.create(Kind::PreparedQuery, &name, spec).await?;
                self.queries.insert(query, String::new());
            }
            2 => {
                let name = last_source.context("no source")?;
                let spec = json!({"spec": to(scene, &[&name], "deny")});
                scene.change(Kind::Intention, &name, spec).await?;
                self.sources.insert(name, "deny");
            }
            3 => {
                let query = last_query.context("no query")?;
                let ttl = format!("{turn}s");
                let spec = json!({"spec": {"dns": {"ttl": ttl}}});
                let name = object_of(scene, &query);
                scene.change(Kind::PreparedQuery, &name, spec).await?;
                self.queries.insert(query, ttl);
            }
            _ => {
                let source = self.sources.keys().find(is_of_turns).cloned();
                let query = self.queries.keys().find(is_of_turns).cloned();
                if let (Some(source), Some(query), true) = (source, query, turn > 12) {
                    scene.delete(Kind::Intention, &source).await?;
                    self.sources.remove(&source);
                    let name = object_of(scene, &query);
                    scene.delete(Kind::PreparedQuery, &name).await?;
                    self.queries.remove(&query);
                }
            }
        }
        Ok(())
    }

    /// Waits until Consul holds what it must: the sources, one query of each name, and for each query
    /// an entry of the ledger with its id, and no other.
    async fn exact(&self) -> Result<()> {
        let scene = self.scene;
        let hand = self.hand.then_some(("hand", "deny"));
        let ours = self.sources.iter().map(|(name, may)| (&**name, *may));
        let sources = ours.chain(hand).map(|(name, may)| format!("{name} {may}"));
        let mut sources: Vec<String> = sources.collect();
        sources.sort();
        let hand = self.hand.then(|| (scene.named("hand"), String::new()));
        let ours = self.queries.clone().into_iter();
        let queries: BTreeMap<String, String> = ours.chain(hand).collect();
        wait::until("Consul to be exact", LISTS, async || {
            let payment = scene.named("payment");
            let entry = scene.config_entry("service-intentions", &payment);
            let seen = sources_of(&entry.await?);
            ensure!(seen == sources, "{seen:?} instead of {sources:?}");
            let all = scene.consul.get("/v1/query?consistent").await?;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let all = all.as_array().context("not a list")?.iter();
            let all = all.map(|query| (text(&query["Name"]), query));
            let suffix = format!("-{}", scene.namespace);
            let here: Vec<_> = all.filter(|(name, _)| name.ends_with(&suffix)).collect();
            let ttl = |(name, query): &(String, &Value)| (name.clone(), text(&query["DNS"]["TTL"]));
            let mut seen: Vec<_> = here.iter().map(ttl).collect();
            seen.sort();
            let want: Vec<_> = queries.clone().into_iter().collect();
            ensure!(seen == want, "{seen:?} instead of {want:?}");
            let prefix = format!("lictor/v1/{}/query/", scene.cluster);
            let keys = format!("/v1/kv/{prefix}?keys&consistent");
            let keys = scene.consul.find(&keys).await?.unwrap_or(json!([]));
            let keys = keys.as_array().context("not a list")?.iter().map(text);
            let noted: Vec<String> = keys.map(|key| key.replace(&prefix, "")).collect();
            let want: Vec<String> = self.queries.keys().cloned().collect();
            ensure!(noted == want, "noted {noted:?} instead of {want:?}");
            for (name, query) in here.iter().filter(|(name, _)| want.contains(name)) {
                let noted = ledger(scene, name).await?.unwrap_or_default();
                ensure!(noted["id"] == query["ID"], "{noted} for {query}");
            }
            Ok::<_, anyhow::Error>(())
        })
        .await
    }
}

/// The name of the object that asks for a query.
fn object_of(scene: &Scene, query: &str) -> String {
    query.replace(&format!("-{}", scene.namespace), "")
}

async fn ledger(scene: &Scene, name: &str) -> Result<Option<Value>> {
    let path = format!("/v1/kv/{}?raw&consistent", ledger_key(scene, name));
    scene.consul.find(&path).await
}

fn ledger_key(scene: &Scene, name: &str) -> String {
    format!("lictor/v1/{}/query/{name}", scene.cluster)
}

/// A pod that comes and goes: whatever is wrong with entries, instances go on.
async fn instances_go_on(scene: &Scene, name: &str) -> Result<()> {
    let pod = scene.pod(name).lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", name, "passing").await?;
    pod.finish_deletion(&scene.client).await?;
    scene.gone("web", name).await
}

async fn nothing_to_complain_about(lictor: &Lictor) -> Result<()> {
    until("it to have nothing to complain about", async || {
        let (status, body) = lictor.http("/readyz").await?;
        ensure!(status == 200 && body == "ok\n", "{status}: {body}");
        Ok(())
    })
    .await
}

// === lictor ===

/// How often it is killed.
const KILLS: u32 = 12;
const LONGEST_LIFE: u64 = 700;

#[tokio::test]
async fn killed_at_random_moments_no_intention_or_query_is_lost() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&[NO_LIMIT]).await?;
    let kept = settle(&scene).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(10).await?;
    let oracle = kept.watch(&scene).await?;
    lictor.kill();
    for life in 0..KILLS {
        let lictor = scene.spawn_lictor(&[NO_LIMIT], &[]).await?;
        let end = Duration::from_millis(rand::rng().random_range(0..LONGEST_LIFE));
        let end = tokio::time::Instant::now() + end;
        while tokio::time::Instant::now() < end {
            turns.turn().await?;
        }
        if life % 3 == 0 {
            lictor.stop().await?;
        } else {
            lictor.kill();
        }
        turns.turn().await?;
    }
    let _lictor = scene.lictor_with(&[NO_LIMIT]).await?;
    turns.exact().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn a_process_that_was_replaced_writes_no_entry_any_more() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.lictor().await?;
    let kept = settle(&scene).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(10).await?;
    turns.exact().await?;
    first.idle().await?;
    let oracle = kept.watch(&scene).await?;
    let wrote = async || {
        let with = ["outcome=\"ok\""];
        first.metric("lictor_operations_total", &with).await
    };
    let before = wrote().await?;
    first.pause()?;
    // What is in its sockets when it goes on: all of the past.
    turns.turns(15).await?;
    let second = scene.lictor().await?;
    turns.exact().await?;
    first.resume()?;
    not_ready(&first, "replaced").await?;
    turns.turns(15).await?;
    turns.exact().await?;
    second.stop().await?;
    turns.turns(5).await?;
    not_ready(&first, "replaced").await?;
    let after = wrote().await?;
    ensure!(
        after.to_bits() == before.to_bits(),
        "{before}, then {after}"
    );
    first.stop().await?;
    let _again = scene.lictor().await?;
    turns.exact().await?;
    oracle.verdict().await
}

/// Each with a Kubernetes namespace of its own, as two clusters have.
#[tokio::test]
async fn of_two_clusters_the_second_leaves_what_the_first_holds() -> Result<()> {
    let (one, two) = (Scene::new().await?, Scene::new().await?);
    let first = one.lictor().await?;
    let mut kept = settle(&one).await?;
    let payment = one.named("payment");
    let query = one.query_named(&one.named("stays")).await?;
    let id = query["ID"].as_str().context("no id")?;
    kept.foreign.extend([
        format!("/v1/config/service-intentions/{payment}?consistent"),
        format!("/v1/query/{id}?consistent"),
        format!(
            "/v1/kv/{}?consistent",
            ledger_key(&one, &one.named("stays"))
        ),
    ]);
    first.idle().await?;
    let oracle = kept.watch(&one).await?;

    let second = two.lictor().await?;
    let spec = to(&one, &["web", "stay-0"], "deny");
    two.create(Kind::Intention, "late", spec).await?;
    let spec = json!({"name": one.named("stays"), "service": "other"});
    two.create(Kind::PreparedQuery, "late", spec).await?;
    let is_anothers = |status: &Value| {
        let (ready, reason, _) = condition(status, "Ready");
        (ready, reason) == ("False", "OwnedByAnother")
    };
    for kind in [Kind::Intention, Kind::PreparedQuery] {
        two.shown(kind, "late", is_anothers).await?;
    }
    let status = two.shown(Kind::Intention, "late", is_anothers).await?;
    let message = condition(&status, "Ready").2;
    assert!(message.contains(&one.cluster), "{message}");
    let noted = ledger(&two, &one.named("stays")).await?;
    assert_eq!(noted, None);
    for kind in [Kind::Intention, Kind::PreparedQuery] {
        two.delete(kind, "late").await?;
    }
    two.barrier().await?;
    second.idle().await?;
    second.stop().await?;
    oracle.verdict().await
}

// === Consul ===

#[tokio::test]
async fn a_wiped_consul_gets_all_intentions_and_queries_again() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    settle(&scene).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(15).await?;
    turns.exact().await?;
    let before = scene.query_named(&scene.named("stays")).await?;
    let consul = &installed.bed.consul_server;
    consul.kill();
    consul.wipe()?;
    consul.start().await?;
    turns.hand = false;
    turns.exact().await?;
    let after = scene.query_named(&scene.named("stays")).await?;
    ensure!(after["ID"] != before["ID"], "{after}");
    scene
        .shown(Kind::PreparedQuery, "stays", |status| {
            status["id"] == after["ID"]
        })
        .await?;
    turns.turns(10).await?;
    turns.exact().await?;
    assert_eq!(lictor.http("/readyz").await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn taken_back_to_a_snapshot_intentions_and_queries_are_exact() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let kept = settle(&scene).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(15).await?;
    turns.exact().await?;
    lictor.idle().await?;
    let oracle = kept.watch(&scene).await?;
    let snapshot = scene.consul.snapshot().await?;
    turns.turns(15).await?;
    turns.exact().await?;
    lictor.idle().await?;
    scene.consul.restore(&snapshot).await?;
    turns.exact().await?;
    turns.turns(10).await?;
    turns.exact().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn a_leader_that_is_lost_between_ledger_and_query_costs_neither() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let followers = installed.bed.consul_followers().await?;
    let consul = Proxy::start(followers[0].addr())?;
    let through = format!("--consul-http-addr={}", consul.url());
    let lictor = scene.lictor_with(&[&through]).await?;
    let kept = settle(&scene).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(10).await?;
    turns.exact().await?;
    let oracle = kept.watch(&scene).await?;

    let lost = Answer::new(500).body("No cluster leader");
    consul
        .set(Fault::Answer(lost.only("POST /v1/query")))
        .await?;
    let half = scene.named("half");
    let spec = json!({"name": half, "service": "payment"});
    scene.create(Kind::PreparedQuery, "half", spec).await?;
    until("the ledger to have it", async || {
        let noted = ledger(&scene, &half).await?.context("not noted")?;
        ensure!(noted["id"].is_null(), "{noted}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    assert_eq!(scene.query_named(&half).await?, Value::Null);
    let leader = installed.bed.consul_leader().await?;
    leader.kill();
    consul.set(Fault::Pass).await?;
    turns.turns(10).await?;
    turns.queries.insert(half, String::new());
    installed.bed.consul_leader().await?;
    turns.exact().await?;
    leader.start().await?;

    // And once more amid all kinds of writes.
    let leader = installed.bed.consul_leader().await?;
    turns.turns(5).await?;
    leader.kill();
    turns.turns(15).await?;
    // It may be the one that Lictor asks.
    leader.start().await?;
    turns.exact().await?;
    assert_eq!(lictor.http("/readyz").await?.0, 200);
    oracle.verdict().await
}

#[tokio::test]
async fn without_a_quorum_intentions_and_queries_are_kept() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let kept = settle(&scene).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(15).await?;
    turns.exact().await?;
    lictor.idle().await?;
    let oracle = kept.watch(&scene).await?;
    for server in installed.bed.consul_followers().await? {
        server.kill();
    }
    installed.bed.no_consul_leader().await?;
    turns.turns(15).await?;
    ready_but(&lictor, "consul: ").await?;
    installed.bed.start_consul().await?;
    installed.bed.consul_leader().await?;
    turns.exact().await?;
    nothing_to_complain_about(&lictor).await?;
    oracle.verdict().await
}

// === rights in Consul ===

/// What Lictor needs in Consul, with these rights on intentions and queries.
fn rules(scene: &Scene, intentions: &str, queries: &str) -> String {
    let cluster = &scene.cluster;
    format!(
        r#"
        node_prefix "" {{ policy = "read" }}
        node_prefix "lictor-{cluster}--" {{ policy = "write" }}
        node "lictor-{cluster}-external" {{ policy = "write" }}
        service_prefix "" {{
          policy = "write"
          intentions = "{intentions}"
        }}
        query_prefix "" {{ policy = "{queries}" }}
        key_prefix "lictor/v1/{cluster}/" {{ policy = "write" }}
        "#
    )
}

#[tokio::test]
async fn entries_that_may_not_be_read_are_neither_missing_nor_given_up() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let all = rules(&scene, "write", "write");
    let token = scene.consul.create_token(&all).await?;
    let arg = format!("--consul-http-token={}", token.secret);
    let more = [&*arg, "--drift-interval=1s"];
    let lictor = scene.lictor_with(&more).await?;
    let mut kept = settle(&scene).await?;
    for (kind, spec) in [
        (Kind::Intention, to(&scene, &["goes"], "allow")),
        (
            Kind::PreparedQuery,
            json!({"name": scene.named("goes"), "service": "payment"}),
        ),
    ] {
        scene.create(kind, "goes", spec).await?;
        scene.shown(kind, "goes", is_ready).await?;
    }
    lictor.idle().await?;
    kept.sources
        .push((scene.named("payment"), "goes".to_owned()));
    kept.queries.push(scene.named("goes"));
    for name in ["stays", "goes"] {
        let key = ledger_key(&scene, &scene.named(name));
        kept.foreign.push(format!("/v1/kv/{key}?consistent"));
    }
    let oracle = kept.watch(&scene).await?;

    let hidden = rules(&scene, "deny", "deny");
    scene.consul.change_rules(&token, &hidden).await?;
    let is_said = async |lictor: &Lictor| {
        ready_but(lictor, "give the token intentions:read").await?;
        ready_but(lictor, "give the token query:read").await?;
        instances_go_on(&scene, "web-0").await?;
        let log = lictor.log();
        ensure!(log.contains("left service-intentions out"), "{log}");
        ensure!(log.contains("left prepared queries out"), "{log}");
        Ok(())
    };
    is_said(&lictor).await?;
    // One is changed, and the others go, in front of its eyes.
    let spec = json!({"spec": {"dns": {"ttl": "7s"}}});
    scene.change(Kind::PreparedQuery, "stays", spec).await?;
    for kind in [Kind::Intention, Kind::PreparedQuery] {
        scene.delete(kind, "goes").await?;
    }
    instances_go_on(&scene, "web-1").await?;
    lictor.stop().await?;
    let lictor = scene.lictor_with(&more).await?;
    is_said(&lictor).await?;
    oracle.verdict().await?;

    scene.consul.change_rules(&token, &all).await?;
    let mut turns = Turns::beside(&scene);
    turns.queries.insert(scene.named("stays"), "7s".to_owned());
    turns.exact().await?;
    nothing_to_complain_about(&lictor).await
}

#[tokio::test]
async fn without_the_right_to_write_them_intentions_and_queries_say_so() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let all = rules(&scene, "write", "write");
    let token = scene.consul.create_token(&all).await?;
    let arg = format!("--consul-http-token={}", token.secret);
    let lictor = scene.lictor_with(&[&arg]).await?;
    let kept = settle(&scene).await?;
    lictor.idle().await?;
    let oracle = kept.watch(&scene).await?;
    let only_read = rules(&scene, "read", "read");
    scene.consul.change_rules(&token, &only_read).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(2).await?;
    let is_denied = |status: &Value| {
        let (ready, reason, message) = condition(status, "Ready");
        (ready, reason) == ("False", "AccessDenied") && message.contains("ermission denied")
    };
    scene.shown(Kind::Intention, "turn-0000", is_denied).await?;
    scene
        .shown(Kind::PreparedQuery, "turn-0001", is_denied)
        .await?;
    instances_go_on(&scene, "web-0").await?;
    scene.consul.change_rules(&token, &all).await?;
    turns.exact().await?;
    oracle.verdict().await
}

// === Kubernetes ===

/// How many objects of a kind there are: more than `--max-delete-floor`.
const MANY: usize = 12;

/// So many objects of a kind, each with a source or a query of its own.
async fn create_many(scene: &Scene, kind: Kind) -> Result<()> {
    for number in 0..MANY {
        let name = format!("many-{number:02}");
        let spec = match kind {
            Kind::Intention => to(scene, &[&name], "allow"),
            Kind::PreparedQuery => json!({"name": scene.named(&name), "service": "payment"}),
        };
        scene.create(kind, &name, spec).await?;
    }
    Ok(())
}

async fn many_are_ready(scene: &Scene, kind: Kind) -> Result<()> {
    for number in 0..MANY {
        let name = format!("many-{number:02}");
        scene.shown(kind, &name, is_ready).await?;
    }
    Ok(())
}

/// What [`create_many`] leads to, in which not a byte changes.
async fn kept_of_many(scene: &Scene, kind: Kind) -> Result<Kept> {
    let payment = scene.named("payment");
    let names = (0..MANY).map(|number| format!("many-{number:02}"));
    let mut kept = Kept {
        sources: Vec::new(),
        queries: Vec::new(),
        foreign: Vec::new(),
    };
    match kind {
        Kind::Intention => {
            kept.sources = names.map(|name| (payment.clone(), name)).collect();
            let path = format!("/v1/config/service-intentions/{payment}?consistent");
            kept.foreign.push(path);
        }
        Kind::PreparedQuery => {
            kept.queries = names.map(|name| scene.named(&name)).collect();
            for name in &kept.queries {
                let query = scene.query_named(name).await?;
                let id = query["ID"].as_str().context("no id")?;
                kept.foreign.push(format!("/v1/query/{id}?consistent"));
            }
        }
    }
    Ok(kept)
}

/// With a CRD its objects go, and nobody asked for the removal of what they hold.
async fn a_crd_goes(kind: Kind, crd: &str) -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let mut lictor = scene.lictor().await?;
    lictor.bears_refusals();
    create_many(&scene, kind).await?;
    many_are_ready(&scene, kind).await?;
    lictor.idle().await?;
    let oracle = kept_of_many(&scene, kind).await?.watch(&scene).await?;
    let crds = crate::support::run(&["crds"]).await?.1;
    scene.bed.kubectl(&["delete", "crd", crd]).await?;
    let without = async {
        not_ready(&lictor, "is its CRD installed").await?;
        instances_go_on(&scene, "web-0").await?;
        instances_go_on(&scene, "web-1").await
    };
    let without = without.await;
    scene.bed.kubectl_apply(&crds).await?;
    without?;
    // Now the kind is there and empty.
    lictor.shows("lictor_held_deletes", 12.0).await?;
    instances_go_on(&scene, "web-2").await?;
    until("the objects to be created", async || {
        scene.objects(kind).list(&ListParams::default()).await
    })
    .await?;
    create_many(&scene, kind).await?;
    many_are_ready(&scene, kind).await?;
    lictor.shows("lictor_held_deletes", 0.0).await?;
    lictor.idle().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn intentions_whose_crd_is_deleted_stay() -> Result<()> {
    a_crd_goes(Kind::Intention, "intentions.lictor.io").await
}

#[tokio::test]
async fn queries_whose_crd_is_deleted_stay() -> Result<()> {
    a_crd_goes(Kind::PreparedQuery, "preparedqueries.lictor.io").await
}

#[tokio::test]
async fn an_intention_that_is_found_missing_goes_when_three_lists_agree() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let kept = settle(&scene).await?;
    let spec = to(&scene, &["goes"], "allow");
    scene.create(Kind::Intention, "goes", spec).await?;
    scene.shown(Kind::Intention, "goes", is_ready).await?;
    lictor.stop().await?;
    scene.delete(Kind::Intention, "goes").await?;
    let oracle = kept.watch(&scene).await?;
    let lictor = scene.lictor().await?;
    let rounds = || {
        let log = lictor.log();
        log.matches("everything is listed anew, to confirm").count()
    };
    let seen = wait::until("it to go", LISTS, async || {
        let before = rounds();
        let payment = scene.named("payment");
        let entry = scene.config_entry("service-intentions", &payment);
        let sources = sources_of(&entry.await?);
        ensure!(!sources.contains(&"goes allow".to_owned()), "{sources:?}");
        Ok::<_, anyhow::Error>(before)
    })
    .await?;
    ensure!(seen >= 2, "gone after {seen} further rounds of lists");
    Turns::beside(&scene).exact().await?;
    oracle.verdict().await
}

const ROLE: &str = "clusterrole/lictor";

#[tokio::test]
async fn rights_on_intentions_that_are_withdrawn_cost_nothing() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let mut lictor = scene.lictor_through(&kubernetes, &consul).await?;
    lictor.bears_refusals();
    let kept = settle(&scene).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(15).await?;
    turns.exact().await?;
    lictor.idle().await?;
    let oracle = kept.watch(&scene).await?;
    let role = scene.bed.kubectl(&["get", ROLE, "-o", "json"]).await?;
    let role: Value = serde_json::from_str(&role)?;
    let mut rules = role["rules"].clone();
    for rule in rules.as_array_mut().context("no rules")? {
        let resources = rule["resources"].as_array_mut().context("no resources")?;
        resources.retain(|resource| resource != "intentions");
    }
    let with = async |rules: &Value| {
        let patch = json!({"rules": rules}).to_string();
        let args = ["patch", ROLE, "--type=merge", "-p", &patch];
        scene.bed.kubectl(&args).await
    };
    let entry = async || {
        let payment = scene.named("payment");
        scene.config_entry("service-intentions", &payment).await
    };
    let before = entry().await?;
    with(&rules).await?;
    let without = async {
        // An open watch goes on; the next one is refused.
        kubernetes.set(Fault::Reset).await?;
        kubernetes.set(Fault::Pass).await?;
        ready_but(&lictor, "intentions: 403").await?;
        turns.turns(15).await?;
        instances_go_on(&scene, "web-0").await?;
        // Queries go on too.
        let last = turns.queries.keys().next_back().context("no query")?;
        let ttl = turns.queries[last].clone();
        scene
            .query_is(last, |query| query["DNS"]["TTL"] == *ttl)
            .await?;
        assert_eq!(entry().await?, before);
        ready_but(&lictor, "intentions: 403").await
    };
    let without = without.await;
    with(&role["rules"]).await?;
    without?;
    turns.exact().await?;
    nothing_to_complain_about(&lictor).await?;
    oracle.verdict().await
}

#[tokio::test]
async fn a_wiped_etcd_removes_no_intention_and_no_query() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor_with(&[&admin(&scene)]).await?;
    let kept = settle(&scene).await?;
    let mut oracles = vec![kept.watch(&scene).await?];
    for kind in [Kind::Intention, Kind::PreparedQuery] {
        create_many(&scene, kind).await?;
        many_are_ready(&scene, kind).await?;
    }
    lictor.idle().await?;
    for kind in [Kind::Intention, Kind::PreparedQuery] {
        oracles.push(kept_of_many(&scene, kind).await?.watch(&scene).await?);
    }
    let saved = scene.bed.dir().join("saved-before-wipe-of-entries");
    scene.bed.save_kubernetes(&saved).await?;
    restoring(installed, &saved, async {
        scene.bed.wipe_kubernetes().await?;
        let crds = crate::support::run(&["crds"]).await?.1;
        scene.bed.kubectl_apply(&crds).await?;
        lictor.shows("lictor_held_deletes", 27.0).await?;
        until("the guard to tell of it", async || {
            ensure!(lictor.log().contains("DeletesHeld"), "it is not told");
            Ok(())
        })
        .await?;
        scene.bed.restore_kubernetes(&saved).await
    })
    .await?;
    lictor.shows("lictor_held_deletes", 0.0).await?;
    for oracle in oracles {
        oracle.verdict().await?;
    }
    Ok(())
}
