//! Everything that fails, for what is on no node: intentions and prepared queries.

mod consul;
mod kubernetes;
mod rights;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::wait;
use rand::Rng as _;
use serde_json::{Value, json};

use super::not_ready;
use crate::support::{
    Annotated as _, Kind, Lictor, OFF, Oracle, Scene, condition, sources_of, until,
};

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
    let first = scene.lictor_with(&[OFF]).await?;
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
    let second = scene.lictor_with(&[OFF]).await?;
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
    let _again = scene.lictor_with(&[OFF]).await?;
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
