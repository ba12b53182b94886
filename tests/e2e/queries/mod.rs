//! Prepared queries: `PreparedQuery`s and those of `ServiceRegistration`s.

mod crashes;
mod failover;
mod lookups;
mod ownership;
mod removal;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::support::{Kind, Lictor, Scene, condition, until};

impl Scene {
    /// What the ledger of a cluster says of a query; `null` for nothing.
    async fn ledger_of(&self, cluster: &str, query: &str) -> Result<Value> {
        let path = format!("/v1/kv/lictor/v1/{cluster}/query/{query}?raw&consistent");
        Ok(self.consul.find(&path).await?.unwrap_or_default())
    }

    async fn ledger(&self, query: &str) -> Result<Value> {
        self.ledger_of(&self.cluster, query).await
    }

    /// Waits until the ledger says what it should.
    async fn ledger_is(&self, query: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        until(
            &format!("the ledger of {query} to be as wanted"),
            async || {
                let ledger = self.ledger(query).await?;
                ensure!(is(&ledger), "{ledger}");
                Ok(ledger)
            },
        )
        .await
    }

    /// Waits until the query is there, and the ledger, the status and Consul agree on its id.
    async fn whole(&self, object: &str, query: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let found = self
            .query_is(query, |query| !query.is_null() && is(query))
            .await?;
        let id = &found["ID"];
        let noted = self.ledger_is(query, |ledger| ledger["id"] == *id).await?;
        assert_eq!(noted["namespace"], self.namespace);
        assert_eq!(noted["name"], object);
        self.shown(Kind::PreparedQuery, object, |status| {
            status["id"] == *id && condition(status, "Ready").0 == "True"
        })
        .await?;
        Ok(found)
    }

    /// Creates a `PreparedQuery` of this name in Consul, and waits until it is there.
    async fn query(&self, object: &str, query: &str, mut spec: Value) -> Result<Value> {
        spec["name"] = query.into();
        self.create(Kind::PreparedQuery, object, spec).await?;
        self.whole(object, query, |_| true).await
    }

    /// Waits until a condition `Ready` is false for this reason, and gives its message.
    async fn refused(&self, object: &str, reason: &str) -> Result<String> {
        let status = self
            .shown(Kind::PreparedQuery, object, |status| {
                condition(status, "Ready").1 == reason
            })
            .await?;
        let (ready, _, message) = condition(&status, "Ready");
        assert_eq!(ready, "False");
        Ok(message.to_owned())
    }

    /// A query that somebody made by hand; its id.
    async fn query_by_hand(&self, query: &Value) -> Result<String> {
        let made = self.consul.post("/v1/query", query).await?;
        let id = made["ID"].as_str().context("no id")?;
        Ok(id.to_owned())
    }

    /// Lays these fields over a query by hand.
    async fn change_by_hand(&self, query: &Value, fields: &Value) -> Result<()> {
        let id = query["ID"].as_str().context("no id")?;
        let mut changed = query.clone();
        let object = changed.as_object_mut().context("not a query")?;
        for field in ["ID", "CreateIndex", "ModifyIndex"] {
            object.remove(field);
        }
        for (name, value) in fields.as_object().into_iter().flatten() {
            object.insert(name.clone(), value.clone());
        }
        self.consul
            .put(&format!("/v1/query/{id}"), &changed)
            .await?;
        Ok(())
    }
}

/// Nothing was written that had to be written again.
fn wrote_once(lictor: &Lictor) {
    let log = lictor.log();
    let again = log
        .lines()
        .find(|line| line.contains("does not hold what was written"));
    assert_eq!(again, None);
}

/// How often queries were written so.
async fn writes(lictor: &Lictor, verb: &str) -> Result<f64> {
    written(lictor, verb, "ok").await
}

/// How often that was tried, with this outcome.
async fn written(lictor: &Lictor, verb: &str, outcome: &str) -> Result<f64> {
    let (verb, outcome) = (format!("verb=\"{verb}\""), format!("outcome=\"{outcome}\""));
    lictor
        .metric(
            "lictor_operations_total",
            &["kind=\"query\"", &verb, &outcome],
        )
        .await
}

#[tokio::test]
async fn a_query_is_created_changed_in_place_and_removed() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--log-format=json"]).await?;
    let name = scene.named("nearest");
    let spec = json!({"service": "payment", "onlyPassing": true, "tags": ["v2"]});
    let query = scene.query("nearest", &name, spec).await?;
    assert_eq!(query["Service"]["OnlyPassing"], true);
    lictor.shows("lictor_owned{kind=\"query\"}", 1.0).await?;

    // The spelling of the name is another, too.
    let spelt = name.to_uppercase();
    let change = json!({"spec": {"name": spelt, "dns": {"ttl": "7s"}}});
    scene.change(Kind::PreparedQuery, "nearest", change).await?;
    let changed = scene
        .whole("nearest", &name, |query| query["DNS"]["TTL"] == "7s")
        .await?;
    assert_eq!(
        (&changed["ID"], &changed["Name"]),
        (&query["ID"], &json!(spelt))
    );
    lictor.idle().await?;
    assert!((writes(&lictor, "update").await? - 1.0).abs() < f64::EPSILON);
    let shown = scene
        .bed
        .kubectl(&["get", "pq", "--namespace", &scene.namespace])
        .await?;
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["NAME", "NAME", "SERVICE", "ID", "READY", "AGE"]);
    let id = query["ID"].as_str().context("no id")?;
    assert_eq!(rows[1][1..5], [&*spelt, "payment", id, "True"]);

    scene.delete(Kind::PreparedQuery, "nearest").await?;
    scene.query_is(&name, Value::is_null).await?;
    scene.ledger_is(&name, Value::is_null).await?;
    scene.event("Registered", "nearest", &name).await?;
    lictor.shows("lictor_owned{kind=\"query\"}", 0.0).await?;
    let lines = crate::support::json_lines(&lictor.log())?;
    let audit: Vec<&Value> = lines
        .iter()
        .filter(|line| line["target"] == "audit")
        .collect();
    assert_eq!(audit.len(), 1);
    let line = audit[0];
    assert_eq!(
        (&line["kind"], &line["seen"]),
        (&json!("query"), &json!(true))
    );
    assert_eq!(line["key"], format!("query/{name}"));
    assert_eq!(
        line["owner"],
        format!("PreparedQuery/{}/nearest", scene.namespace)
    );
    assert_eq!(line["index"], changed["ModifyIndex"]);
    wrote_once(&lictor);
    Ok(())
}

/// Specs that have every field, and what Consul shows of each.
fn full() -> [(&'static str, Value, Value); 3] {
    let plain = json!({
        "service": "payment", "tags": ["v2", "!canary"], "serviceMeta": {"version": "2", "team": "a"},
        "nodeMeta": {"topology-zone": "north-1"}, "near": "_agent", "onlyPassing": true,
        "ignoreCheckIds": ["slow", "flaky"], "connect": true,
        "failover": {"nearestN": 2, "datacenters": ["dc3", "dc2"]}, "dns": {"ttl": "1m10s"},
    });
    let plain_there = json!({
        "Service": "payment", "Tags": ["v2", "!canary"], "ServiceMeta": {"version": "2", "team": "a"},
        "NodeMeta": {"topology-zone": "north-1"}, "Near": "_agent", "OnlyPassing": true,
        "IgnoreCheckIDs": ["slow", "flaky"], "Connect": true, "SamenessGroup": "", "Peer": "",
        "Failover": {"NearestN": 2, "Datacenters": ["dc3", "dc2"], "Targets": null},
    });
    let targets = json!({
        "service": "payment",
        "failover": {"targets": [{"datacenter": "dc2"}, {"peer": "east"}]},
    });
    let targets_there = json!([{"Datacenter": "dc2"}, {"Peer": "east"}]);
    let template = json!({
        "service": "${match(1)}", "tags": ["${match(2)}"],
        "template": {"type": "name_prefix_match", "regexp": "^(.*)-([a-z]*)$", "removeEmptyTags": true},
    });
    let template_there = json!({
        "Type": "name_prefix_match", "Regexp": "^(.*)-([a-z]*)$", "RemoveEmptyTags": true,
    });
    [
        ("plain", plain, plain_there),
        ("targets", targets, targets_there),
        ("template", template, template_there),
    ]
}

#[tokio::test]
async fn every_field_arrives_and_a_restart_writes_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let mut before = Vec::new();
    for (object, spec, there) in full() {
        let name = scene.named(object);
        let query = scene.query(object, &name, spec).await?;
        let shown = match object {
            "plain" => query["Service"].clone(),
            "targets" => {
                let targets = query["Service"]["Failover"]["Targets"].as_array();
                let targets = targets.context("no targets")?.iter();
                // Empty ones are shown beside those that were set.
                let set = targets.map(|target| {
                    let mut target = target.clone();
                    if let Some(fields) = target.as_object_mut() {
                        fields.retain(|_, value| *value != "");
                    }
                    target
                });
                set.collect()
            }
            _ => query["Template"].clone(),
        };
        assert_eq!(shown, there, "{object}");
        before.push((name, query));
    }
    assert_eq!(before[0].1["DNS"]["TTL"], "1m10s");
    lictor.idle().await?;
    wrote_once(&lictor);
    lictor.stop().await?;

    let lictor = scene.lictor().await?;
    lictor.shows("lictor_owned{kind=\"query\"}", 3.0).await?;
    lictor.idle().await?;
    scene.barrier().await?;
    for (name, query) in &before {
        assert_eq!(scene.query_named(name).await?, *query);
    }
    let all = lictor
        .metric("lictor_operations_total", &["kind=\"query\""])
        .await?;
    assert!(all == 0.0, "{all} operations");
    Ok(())
}

#[tokio::test]
async fn what_another_hand_does_to_a_query_is_undone() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let name = scene.named("nearest");
    let spec = json!({"service": "payment", "dns": {"ttl": "7s"}});
    let query = scene.query("nearest", &name, spec).await?;
    let same = |seen: &Value| {
        let fields = [
            "ID", "Name", "Session", "Token", "Template", "Service", "DNS",
        ];
        fields.iter().all(|field| seen[*field] == query[*field])
    };
    let other = scene.named("renamed");
    let changes = [
        (
            "service, tags",
            json!({"Service": {"Service": "evil", "Tags": ["x"]}}),
        ),
        ("name", json!({"Name": other})),
        (
            "token",
            json!({"Token": "7d7e5b8c-5a4e-4b62-9d1c-111111111111"}),
        ),
    ];
    for (fields, change) in changes {
        lictor.idle().await?;
        scene.change_by_hand(&query, &change).await?;
        scene.query_is(&name, same).await?;
        let event = scene.event("DriftRepaired", "nearest", fields).await;
        event.with_context(|| format!("{fields} by hand"))?;
    }
    assert!(scene.query_named(&other).await?.is_null());
    let drift = async || {
        lictor
            .metric("lictor_drift_total", &["kind=\"query\""])
            .await
    };
    assert!((drift().await? - 3.0).abs() < f64::EPSILON);
    Ok(())
}

#[tokio::test]
async fn a_query_that_was_deleted_comes_back_with_another_id() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let name = scene.named("nearest");
    let query = scene
        .query("nearest", &name, json!({"service": "payment"}))
        .await?;
    lictor.idle().await?;
    let id = query["ID"].as_str().context("no id")?;
    scene.consul.delete(&format!("/v1/query/{id}")).await?;
    scene
        .whole("nearest", &name, |seen| seen["ID"] != query["ID"])
        .await?;
    scene.event("DriftRepaired", "nearest", &name).await?;
    let drift = lictor
        .metric("lictor_drift_total", &["kind=\"query\""])
        .await?;
    assert!((drift - 1.0).abs() < f64::EPSILON, "{drift}");
    // The note of whose it is comes back too, and the query keeps its id.
    lictor.idle().await?;
    let there = scene.query_named(&name).await?;
    let noted = scene.ledger(&name).await?;
    let key = format!("/v1/kv/lictor/v1/{}/query/{name}", scene.cluster);
    scene.consul.delete(&key).await?;
    scene.ledger_is(&name, |ledger| *ledger == noted).await?;
    assert_eq!(scene.query_named(&name).await?, there);
    Ok(())
}

#[tokio::test]
async fn queries_of_a_registration_go_with_it_and_with_the_list() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let (near, far) = (scene.named("near"), scene.named("far"));
    let endpoints = json!([{"name": "a", "address": "10.1.1.1"}]);
    let queries =
        json!([{"name": near}, {"name": far, "service": "elsewhere", "onlyPassing": true}]);
    let spec = json!({"service": "payment", "endpoints": endpoints, "queries": queries});
    scene.register("pay", spec).await?;
    let of_near = scene.query_is(&near, |query| !query.is_null()).await?;
    assert_eq!(of_near["Service"]["Service"], "payment");
    let of_far = scene.query_is(&far, |query| !query.is_null()).await?;
    assert_eq!(of_far["Service"]["Service"], "elsewhere");
    let ids = |status: &Value| -> BTreeSet<(String, String)> {
        let queries = status["queries"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        queries
            .map(|query| (text(&query["name"]), text(&query["id"])))
            .collect()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let both = BTreeSet::from([
        (near.clone(), text(&of_near["ID"])),
        (far.clone(), text(&of_far["ID"])),
    ]);
    scene
        .registration("pay", |status| {
            ids(status) == both && condition(status, "Ready").0 == "True"
        })
        .await?;
    let noted = scene.ledger(&near).await?;
    assert_eq!(
        (&noted["kind"], &noted["name"]),
        (&json!("ServiceRegistration"), &json!("pay"))
    );

    // A query that says no service follows that of its registration.
    scene
        .edit("pay", json!({"spec": {"service": "paying"}}))
        .await?;
    let moved = scene
        .query_is(&near, |query| query["Service"]["Service"] == "paying")
        .await?;
    assert_eq!(moved["ID"], of_near["ID"]);
    scene
        .edit("pay", json!({"spec": {"queries": [{"name": near}]}}))
        .await?;
    scene.query_is(&far, Value::is_null).await?;
    scene.event("Deregistered", "pay", &far).await?;
    scene
        .registration("pay", |status| ids(status).len() == 1)
        .await?;
    scene.unregister("pay").await?;
    scene.query_is(&near, Value::is_null).await?;
    scene.ledger_is(&near, Value::is_null).await?;
    Ok(())
}

#[tokio::test]
async fn a_query_that_consul_refuses_is_told_and_keeps_what_it_was() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let name = scene.named("bad");
    // The Community Edition knows no partitions, which no schema can tell.
    let targets = |target: Value| json!({"spec": {"failover": {"targets": [target]}}});
    let spoil = targets(json!({"partition": "east"}));
    let mut spec = spoil["spec"].clone();
    spec["name"] = name.clone().into();
    spec["service"] = "payment".into();
    scene.create(Kind::PreparedQuery, "bad", spec).await?;
    let message = scene.refused("bad", "ConsulRefused").await?;
    ensure!(message.to_lowercase().contains("partition"), "{message}");
    scene.event("ConsulRefused", "bad", "artition").await?;
    assert!(scene.query_named(&name).await?.is_null());
    // It is not tried again and again.
    scene.barrier().await?;
    let tried = written(&lictor, "create", "refused").await?;
    ensure!((1.0..=4.0).contains(&tried), "{tried} times");
    let mend = targets(json!({"datacenter": "dc2"}));
    scene.change(Kind::PreparedQuery, "bad", mend).await?;
    let good = scene.whole("bad", &name, |_| true).await?;
    scene.change(Kind::PreparedQuery, "bad", spoil).await?;
    scene.refused("bad", "ConsulRefused").await?;
    assert_eq!(scene.query_named(&name).await?, good);
    scene.delete(Kind::PreparedQuery, "bad").await?;
    scene.query_is(&name, Value::is_null).await?;
    scene.ledger_is(&name, Value::is_null).await?;
    Ok(())
}
