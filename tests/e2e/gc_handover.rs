//! `lictor gc --dead OLD --hand-to NEW`: a cluster that is called otherwise from now on.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::gc::{Outcome, gc_within, squeezed};
use crate::plan::plan;
use crate::support::{Annotated as _, Kind, Lictor, Scene, acl_policy, condition, run};

/// A minute in which the old name is to be silent, two for the copies, and then some.
const PATIENCE: Duration = Duration::from_mins(5);

struct Renamed {
    scene: Scene,
    old: String,
    new: String,
    payment: String,
    web: String,
    nearest: String,
}

impl Renamed {
    async fn new() -> Result<Self> {
        let scene = Scene::new().await?;
        Ok(Self {
            old: scene.cluster.clone(),
            new: format!("{}n", scene.cluster),
            payment: scene.named("payment"),
            web: scene.named("web"),
            nearest: scene.named("nearest"),
            scene,
        })
    }

    /// A pod, an endpoint with a protocol, two objects and another hand at one destination, a query: all as
    /// the process of the old name wrote it.
    async fn settle(&self) -> Result<Lictor> {
        let scene = &self.scene;
        let lictor = scene.lictor().await?;
        let pod = scene.pod("web-0").lictor("service", &self.web);
        pod.create_ready(&scene.client).await?;
        let endpoint = json!({"name": "a", "address": "10.71.0.1", "port": 80});
        let spec = json!({"service": self.payment, "endpoints": [endpoint], "protocol": "http"});
        scene.register("payment", spec).await?;
        let spec = json!({"name": self.nearest, "service": self.payment});
        scene.create(Kind::PreparedQuery, "nearest", spec).await?;
        for source in ["one", "two"] {
            let sources = json!([{"name": source, "action": "allow"}]);
            let spec = json!({"destination": {"name": self.payment}, "sources": sources});
            scene.create(Kind::Intention, source, spec).await?;
        }
        self.all_ready().await?;
        scene.status(&self.web, "web-0", "passing").await?;
        let mut entry = self.entry("service-intentions").await?;
        let theirs = json!({"Name": "hand", "Action": "deny", "Type": "consul"});
        let sources = entry["Sources"].as_array_mut().context("no sources")?;
        sources.push(theirs);
        entry["Meta"]["team"] = json!("shop");
        scene.consul.put("/v1/config", &entry).await?;
        Ok(lictor)
    }

    async fn all_ready(&self) -> Result<()> {
        let ready = |status: &Value| condition(status, "Ready").0 == "True";
        self.objects_are(ready).await?;
        self.scene.registration("payment", ready).await?;
        Ok(())
    }

    async fn objects_are(&self, is: impl Fn(&Value) -> bool) -> Result<()> {
        for (kind, name) in [
            (Kind::PreparedQuery, "nearest"),
            (Kind::Intention, "one"),
            (Kind::Intention, "two"),
        ] {
            self.scene.shown(kind, name, &is).await?;
        }
        Ok(())
    }

    /// The process of the new name, with all instances registered.
    async fn start_new(&self) -> Result<Lictor> {
        let lictor = self.scene.lictor_with_cluster(&self.new).await?;
        let scene = &self.scene;
        for (service, name) in self.instances() {
            let id = self.id(&self.new, name);
            scene.instance_id(service, &id, |_| true).await?;
        }
        let held = |status: &Value| condition(status, "Ready").1 == "OwnedByAnother";
        self.objects_are(held).await?;
        Ok(lictor)
    }

    fn instances(&self) -> [(&str, &str); 2] {
        [(&self.web, "web-0"), (&self.payment, "payment.a")]
    }

    fn id(&self, cluster: &str, name: &str) -> String {
        let (namespace, web, payment) = (&self.scene.namespace, &self.web, &self.payment);
        let service = if name == "web-0" { web } else { payment };
        format!("{cluster}.{namespace}.{service}.{name}")
    }

    async fn entry(&self, kind: &str) -> Result<Value> {
        self.scene.config_entry(kind, &self.payment).await
    }

    async fn query(&self) -> Result<Value> {
        self.scene.query_named(&self.nearest).await
    }

    async fn ledger(&self, cluster: &str) -> Result<Option<Value>> {
        let path = format!("/v1/kv/lictor/v1/{cluster}/query/{}?raw", self.nearest);
        self.scene.consul.find(&path).await
    }

    async fn hand_over(&self, more: &[&str]) -> Result<Outcome> {
        let args = [
            format!("--cluster={}", self.new),
            format!("--dead={}", self.old),
            format!("--hand-to={}", self.new),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        gc_within(PATIENCE, &self.scene, &[&args, more].concat()).await
    }

    /// A token with the rights of both names, and no more.
    async fn token(&self) -> Result<String> {
        let rules = [acl_policy(&self.old).await?, acl_policy(&self.new).await?];
        let token = self.scene.consul.create_token(&rules.join("\n")).await?;
        Ok(format!("--consul-http-token={}", token.secret))
    }

    /// Looks all the time, and ends with the first thing that is missing for a moment.
    async fn watch(&self) -> Result<Infallible> {
        let made = async || {
            let entries = [
                self.entry("service-intentions").await?,
                self.entry("service-defaults").await?,
            ];
            let shape = entries.map(|mut entry| {
                entry["Meta"]["lictor-cluster"].take();
                for moved in ["ModifyIndex", "Hash"] {
                    entry[moved].take();
                }
                entry
            });
            anyhow::Ok((shape, self.query().await?))
        };
        let before = made().await?;
        loop {
            let now = made().await?;
            ensure!(now == before, "{now:#?} is not {before:#?}");
            for (service, name) in self.instances() {
                let all = self.scene.consul.health(service).await?;
                let passes = all.iter().any(|it| {
                    let id = it["Service"]["ID"].as_str().unwrap_or_default();
                    let checks = it["Checks"].as_array().into_iter().flatten();
                    let mut checks = checks.map(|check| &check["Status"]);
                    id.ends_with(name) && checks.all(|status| status == "passing")
                });
                ensure!(passes, "nothing passes for {name}: {all:#?}");
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether all instances of the old name are there.
    async fn old_instances_stand(&self) -> Result<()> {
        for (service, name) in self.instances() {
            let id = self.id(&self.old, name);
            let found = self.scene.find_id(service, &id).await?;
            ensure!(found.is_some(), "{id} is gone");
        }
        Ok(())
    }

    /// Whether nothing carries the old name any more.
    async fn old_is_gone(&self) -> Result<()> {
        let keys = format!("/v1/kv/lictor/v1/{}/?keys&consistent", self.old);
        ensure!(
            self.scene.consul.find(&keys).await?.is_none(),
            "keys are left"
        );
        let dump = self.scene.dump().await?;
        ensure!(dump == json!([]), "{dump:#}");
        Ok(())
    }

    async fn epoch(&self, cluster: &str) -> Result<Value> {
        let path = format!("/v1/kv/lictor/v1/{cluster}/epoch?consistent");
        self.scene.consul.get(&path).await
    }
}

#[tokio::test]
async fn a_renamed_cluster_is_handed_over_where_it_stands() -> Result<()> {
    let renamed = Renamed::new().await?;
    let scene = &renamed.scene;
    renamed.settle().await?.stop().await?;
    let (old, new, payment) = (&renamed.old, &renamed.new, &renamed.payment);
    let noted = renamed.ledger(old).await?.context("not noted")?;

    // A name that nobody has would get what nobody claims then.
    let never = renamed.hand_over(&["--yes"]).await?;
    assert_eq!(never.code, Some(1), "{}", never.out);
    assert!(
        never.err.contains(&format!("has run as {new}")),
        "{}",
        never.err
    );

    let lictor = renamed.start_new().await?;
    let (epoch, token) = (renamed.epoch(old).await?, renamed.token().await?);
    let intentions = renamed.entry("service-intentions").await?;
    let defaults = renamed.entry("service-defaults").await?;
    let query = renamed.query().await?;

    let shown = renamed.hand_over(&["--dry-run", &token]).await?;
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    let out = squeezed(&shown.out);
    let namespace = &scene.namespace;
    for line in [
        format!(
            "~ intention service-intentions/{payment}: one Intention/{namespace}/one becomes {new}'s"
        ),
        format!("~ intention service-intentions/{payment}: two "),
        format!(
            "~ service-defaults service-defaults/{payment} ServiceRegistration/{namespace}/payment "
        ),
        format!(
            "~ query query/{} PreparedQuery/{namespace}/nearest ",
            renamed.nearest
        ),
        format!("- instance {} ", renamed.id(old, "web-0")),
        format!("its copy {} passes", renamed.id(new, "web-0")),
        format!("its copy {} passes", renamed.id(new, "payment.a")),
        format!("- node {} ", scene.consul_node()),
        format!("- key lictor/v1/{old}/epoch "),
        format!("handed over to {new}: 2 intentions, 1 queries and 1 service-defaults; "),
    ] {
        assert!(out.contains(&line), "{line} is not in {out}");
    }
    assert!(!out.contains("hand "), "another's: {out}");
    assert_eq!(renamed.epoch(old).await?, epoch, "only shown");
    assert_eq!(renamed.entry("service-intentions").await?, intentions);

    let args = ["--yes", "--output=json", &*token];
    let handed = tokio::select! {
        handed = renamed.hand_over(&args) => handed?,
        missing = renamed.watch() => bail!("{:?}", missing.err()),
    };
    assert_eq!(handed.code, Some(0), "{}{}", handed.out, handed.err);
    let found: Value = serde_json::from_str(&handed.out)?;
    assert_eq!(found["hand_to"], json!(new), "{found}");
    let counts = json!({"intentions": 2, "queries": 1, "defaults": 1});
    assert_eq!(found["done"]["handed"], counts, "{found}");
    let removed = &found["done"]["removed"];
    assert_eq!(removed["instances"], 2, "{found}");
    assert_eq!(removed["intentions"], 0, "{found}");
    assert_eq!(removed["queries"], 0, "{found}");
    let why = format!("its copy of the cluster {new} passes");
    assert_eq!(handed.err.matches(&why).count(), 2, "{}", handed.err);

    renamed.old_is_gone().await?;
    renamed.all_ready().await?;
    for (kind, before) in [
        ("service-intentions", &intentions),
        ("service-defaults", &defaults),
    ] {
        let now = renamed.entry(kind).await?;
        let mut expected = before.clone();
        expected["Meta"]["lictor-cluster"] = json!(new);
        for moved in ["ModifyIndex", "Hash"] {
            expected[moved] = now[moved].clone();
        }
        assert_eq!(now, expected, "{kind}");
    }
    assert_eq!(renamed.query().await?, query);
    assert_eq!(renamed.ledger(new).await?, Some(noted));
    lictor.idle().await?;
    for kind in ["intentions", "query", "service-defaults"] {
        let kind = format!("kind=\"{kind}\"");
        let wrote = lictor.metric("lictor_operations_total", &[&kind]).await?;
        assert!(wrote < 0.5, "{wrote} operations on {kind}");
    }
    let cluster = format!("--cluster={new}");
    let planned = plan(scene, &[&cluster, "--output=json"]).await?;
    assert_eq!(planned.items()?, Vec::<String>::new(), "{}", planned.out);

    // They are the new name's in all that follows.
    scene.delete(Kind::PreparedQuery, "nearest").await?;
    scene.delete(Kind::Intention, "one").await?;
    scene.query_is(&renamed.nearest, Value::is_null).await?;
    scene
        .sources_are(payment, &["hand deny", "two allow"])
        .await?;
    let nothing = renamed.hand_over(&["--yes"]).await?;
    assert!(nothing.out.contains("nothing is left"), "{}", nothing.out);
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn an_instance_stays_until_its_copy_passes_and_another_run_goes_on() -> Result<()> {
    let renamed = Renamed::new().await?;
    let scene = &renamed.scene;
    renamed.settle().await?.stop().await?;
    scene.pod("web-0").not_ready(&scene.client, "main").await?;
    // This one ended between the two, so that there is no copy of it.
    scene.unregister("payment").await?;
    let lictor = scene.lictor_with_cluster(&renamed.new).await?;
    let copy = renamed.id(&renamed.new, "web-0");
    let critical = |it: &crate::support::Instance| it.status == "critical";
    scene.instance_id(&renamed.web, &copy, critical).await?;

    let (first, old) = (renamed.hand_over(&["--yes"]), &renamed.old);
    let first = first.await?;
    assert_eq!(first.code, Some(1), "{}", first.out);
    let ended = renamed.id(&renamed.new, "payment.a");
    for line in [
        format!("waits for its copy {copy}, which is critical"),
        format!("waits for its copy {ended}, which is not registered"),
        format!("stayed: lictor/v1/{old}/: its keys go"),
        format!(
            "stayed: {}: 1 entries that stay are on it",
            scene.consul_node()
        ),
        "removed: 0 instances, ".to_owned(),
    ] {
        assert!(first.out.contains(&line), "{line} is not in {}", first.out);
    }
    assert!(first.err.contains("without --hand-to"), "{}", first.err);
    renamed.old_instances_stand().await?;
    // What is on no node was handed over all the same.
    let entry = renamed.entry("service-intentions").await?;
    assert_eq!(entry["Meta"]["lictor-cluster"], json!(renamed.new));
    assert!(renamed.ledger(&renamed.new).await?.is_some());

    scene.pod("web-0").running_ready(&scene.client).await?;
    let endpoint = json!({"name": "a", "address": "10.71.0.1", "port": 80});
    let spec = json!({"service": renamed.payment, "endpoints": [endpoint], "protocol": "http"});
    scene.register("payment", spec).await?;
    let second = renamed.hand_over(&["--yes"]).await?;
    assert_eq!(second.code, Some(0), "{}{}", second.out, second.err);
    assert!(
        second.out.contains("removed: 2 instances"),
        "{}",
        second.out
    );
    renamed.old_is_gone().await?;
    renamed.all_ready().await?;
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn of_a_cluster_that_lives_nothing_is_handed_over() -> Result<()> {
    let renamed = Renamed::new().await?;
    let scene = &renamed.scene;
    let (old, new) = (&renamed.old, &renamed.new);
    let lives = renamed.settle().await?;
    let lictor = renamed.scene.lictor_with_cluster(new).await?;
    let copy = renamed.id(new, "web-0");
    scene.instance_id(&renamed.web, &copy, |_| true).await?;
    let entry = renamed.entry("service-intentions").await?;
    let refused = renamed.hand_over(&["--yes"]).await?;
    assert_eq!(refused.code, Some(1), "{}", refused.out);
    assert!(refused.err.contains("lives"), "{}", refused.err);
    assert_eq!(renamed.entry("service-intentions").await?, entry);
    assert!(renamed.ledger(old).await?.is_some());
    renamed.old_instances_stand().await?;
    assert_eq!(lives.http("/readyz").await?.0, 200);
    lives.stop().await?;
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn what_another_hand_or_the_new_name_has_is_not_handed_over() -> Result<()> {
    let renamed = Renamed::new().await?;
    let scene = &renamed.scene;
    let (old, new) = (&renamed.old, &renamed.new);
    renamed.settle().await?.stop().await?;
    let lictor = renamed.start_new().await?;
    // Of one that does not run, nobody keeps the copies true.
    lictor.stop().await?;
    let alone = renamed.hand_over(&["--yes"]).await?;
    assert_eq!(alone.code, Some(1), "{}", alone.out);
    assert!(alone.err.contains("answers: start it"), "{}", alone.err);
    let again = format!("--cluster={new}");
    let lictor = scene.lictor_with(&[&again]).await?;
    // One that may not ask the new one is refused before anything is done.
    let token = format!("--consul-http-token={}", scene.token_for(old).await?);
    let denied = renamed.hand_over(&["--yes", &token]).await?;
    assert_eq!(denied.code, Some(1), "{}", denied.out);
    let asked = format!("lictor/v1/{new}/gc");
    for text in [&*asked, "acl-policy prints", "lacks permission"] {
        assert!(denied.err.contains(text), "{text} is not in {}", denied.err);
    }
    let noted = renamed.ledger(old).await?.context("not noted")?;
    lictor.stop().await?;

    // As if both had noted it: then it is the new one's already.
    let path = format!("/v1/kv/lictor/v1/{new}/query/{}", renamed.nearest);
    scene.consul.put(&path, &noted).await?;
    let query = renamed.query().await?;
    // Another hand took the entry by then.
    let mut entry = renamed.entry("service-defaults").await?;
    entry["Meta"] = json!({"external-source": "nomad"});
    scene.consul.put("/v1/config", &entry).await?;
    let lictor = scene.lictor_with(&[&again]).await?;
    let handed = renamed.hand_over(&["--yes"]).await?;
    assert_eq!(handed.code, Some(0), "{}{}", handed.out, handed.err);
    let counts = format!("handed over to {new}: 2 intentions, 0 queries and 0 service-defaults");
    assert!(handed.out.contains(&counts), "{}", handed.out);
    assert_eq!(renamed.query().await?["ID"], query["ID"]);
    assert!(renamed.ledger(new).await?.is_some());
    let now = renamed.entry("service-defaults").await?;
    assert_eq!(now["Meta"], json!({"external-source": "nomad"}));
    renamed.old_is_gone().await?;
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_hand_over_names_a_dead_cluster_and_another_living_one() -> Result<()> {
    for args in [
        &["gc", "--cluster=a", "--hand-to=a"][..],
        &["gc", "--cluster=a", "--dead=b", "--hand-to=b"],
        &["gc", "--cluster=a", "--dead=b", "--hand-to=A_"],
    ] {
        let (code, _, said) = run(args).await?;
        assert_eq!(code, Some(64), "{args:?}: {said}");
    }
    Ok(())
}
