//! `lictor plan`: what `run` would do, with rights that can only read.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::kubelet::TestPod;
use serde_json::{Value, json};

use crate::support::{Annotated as _, Kind, Scene, acl_policy, condition, run_within};

/// A plan, and how the command ended.
pub(crate) struct Plan {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Plan {
    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("{} {}", self.out, self.err))
    }

    /// The items, as `action key`.
    pub(crate) fn items(&self) -> Result<Vec<String>> {
        let plan = self.json()?;
        let items = plan["items"].as_array().context("no items")?.clone();
        let text = |item: &Value, name: &str| item[name].as_str().unwrap_or_default().to_owned();
        let shown = |item: Value| format!("{} {}", text(&item, "action"), text(&item, "key"));
        Ok(items.into_iter().map(shown).collect())
    }

    pub(crate) fn item(&self, key: &str) -> Result<Value> {
        let plan = self.json()?;
        let items = plan["items"].as_array().context("no items")?;
        let found = items.iter().find(|item| item["key"] == key);
        Ok(found
            .with_context(|| format!("no {key} in {plan:#}"))?
            .clone())
    }
}

/// The value of a field before and after.
fn field<'a>(item: &'a Value, name: &str) -> (&'a Value, &'a Value) {
    let fields = item["fields"].as_array().into_iter().flatten();
    let found = fields.into_iter().find(|field| field["name"] == name);
    found.map_or((&Value::Null, &Value::Null), |field| {
        (&field["before"], &field["after"])
    })
}

/// A token that reads what Lictor reads, and writes nothing.
async fn reader(scene: &Scene) -> Result<String> {
    let rules = acl_policy(&scene.cluster).await?;
    let rules = rules.replace("\"write\"", "\"read\"");
    Ok(scene.consul.create_token(&rules).await?.secret)
}

pub(crate) async fn plan(scene: &Scene, more: &[&str]) -> Result<Plan> {
    only_reading(scene, "plan", more).await
}

/// A subcommand that reads what `run` would, with a token that can do no more.
pub(crate) async fn only_reading(scene: &Scene, command: &str, more: &[&str]) -> Result<Plan> {
    let args = reading(scene, command, more).await?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (code, out, err) = run_within(Duration::from_mins(2), &args).await?;
    Ok(Plan { code, out, err })
}

/// Its arguments.
pub(crate) async fn reading(scene: &Scene, command: &str, more: &[&str]) -> Result<Vec<String>> {
    let mut args = scene.args();
    command.clone_into(&mut args[0]);
    let name = |arg: &str| arg.split('=').next().unwrap_or_default().to_owned();
    let given: Vec<String> = more.iter().map(|arg| name(arg)).collect();
    args.retain(|arg| !arg.starts_with("--listen") && !given.contains(&name(arg)));
    if scene.acls {
        args.push(format!("--consul-http-token={}", reader(scene).await?));
    }
    if !more.iter().any(|arg| arg.starts_with("--default-policy")) {
        // As of those that run here.
        args.push("--default-policy=shared".to_owned());
    }
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    Ok(args)
}

pub(crate) const JSON: [&str; 2] = ["--output=json", "--detailed-exitcode"];

/// Consul is as it should be.
pub(crate) async fn nothing_to_do(scene: &Scene) -> Result<()> {
    let settled = plan(scene, &JSON).await?;
    assert_eq!(
        (settled.code, settled.items()?),
        (Some(0), Vec::new()),
        "{}",
        settled.err
    );
    Ok(())
}

pub(crate) fn written(scene: &Scene, name: &str, text: &str) -> Result<PathBuf> {
    let file = scene.bed.dir().join(format!("{}-{name}", scene.cluster));
    fs::write(&file, text)?;
    Ok(file)
}

#[tokio::test]
async fn it_shows_what_run_then_does_and_writes_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let payment = scene.named("payment");
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let spec = json!({"destination": {"name": payment},
                      "sources": [{"name": "web", "action": "allow"}]});
    scene.create(Kind::Intention, "shop", spec).await?;
    let query = scene.named("find-web");
    let spec = json!({"name": query, "service": "web"});
    scene.create(Kind::PreparedQuery, "find", spec).await?;
    let bad = scene.pod("bad").lictor("service", "web");
    let bad = bad.lictor("port", "no-such-port");
    bad.create_ready(&scene.client).await?;

    let node = scene.consul_node();
    let instance = format!("{node}/{}", scene.id("web", "web-0"));
    let before = scene.dump().await?;
    let first = plan(&scene, &JSON).await?;
    let created = [
        format!("create {node}"),
        format!("create {instance}"),
        format!("create query/{query}"),
        format!("create service-intentions/{payment}"),
    ];
    let items = first.items()?;
    for item in &created {
        ensure!(items.contains(item), "{item} is not in {items:#?}");
    }
    let rejected: Vec<_> = items
        .iter()
        .filter(|it| it.starts_with("rejected "))
        .collect();
    ensure!(
        rejected.len() == 1 && items.len() == created.len() + 1,
        "{items:#?}"
    );
    ensure!(first.out.contains("no-such-port"), "{}", first.out);
    assert_eq!(first.code, Some(1), "something is rejected: {}", first.err);
    let item = first.item(&instance)?;
    assert_eq!(
        item["owners"],
        json!([format!("Pod/{}/web-0", scene.namespace)])
    );
    assert_eq!(field(&item, "Service"), (&Value::Null, &json!("web")));
    ensure!(
        field(&item, "Meta.lictor-cluster").1 == &json!(scene.cluster),
        "{item:#}"
    );
    assert_eq!(scene.dump().await?, before, "a plan writes nothing");
    bad.finish_deletion(&scene.client).await?;
    assert_eq!(plan(&scene, &JSON).await?.code, Some(2));

    let lictor = scene.lictor().await?;
    scene.status("web", "web-0", "passing").await?;
    scene.sources_are(&payment, &["web allow"]).await?;
    scene.query_is(&query, |found| !found.is_null()).await?;
    lictor.idle().await?;
    nothing_to_do(&scene).await?;
    lictor.stop().await?;

    // Each sort of change, while nobody writes.
    scene.annotate("web-0", &[("tags", Some("v2"))]).await?;
    let other = json!({"spec": {"sources": [{"name": "web", "action": "deny"}]}});
    scene.change(Kind::Intention, "shop", other).await?;
    scene.delete(Kind::PreparedQuery, "find").await?;
    let later = plan(&scene, &JSON).await?;
    assert_eq!(
        later.items()?,
        [
            format!("update {instance}"),
            format!("delete query/{query}"),
            format!("update service-intentions/{payment}"),
        ]
    );
    assert_eq!(later.code, Some(2), "{}", later.err);
    let item = later.item(&instance)?;
    assert_eq!(
        field(&item, "Tags"),
        (&Value::Null, &json!(["v2"])),
        "{item:#}"
    );
    let item = later.item(&format!("service-intentions/{payment}"))?;
    let action = field(&item, "Sources.web.Action");
    assert_eq!(action, (&json!("allow"), &json!("deny")), "{item:#}");
    let _lictor = scene.lictor().await?;
    scene
        .instance("web", "web-0", |seen| seen.tags == ["v2"])
        .await?;
    scene.sources_are(&payment, &["web deny"]).await?;
    scene.query_is(&query, Value::is_null).await.map(|_| ())
}

#[tokio::test]
async fn people_get_text_and_no_exit_code_unless_they_ask() -> Result<()> {
    let scene = Scene::new().await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let lictor = scene.lictor().await?;
    scene.status("web", "web-0", "passing").await?;
    lictor.idle().await?;
    lictor.stop().await?;
    scene.annotate("web-0", &[("tags", Some("v2"))]).await?;
    let text = plan(&scene, &[]).await?;
    assert_eq!(text.code, Some(0), "{}", text.err);
    let instance = format!("{}/{}", scene.consul_node(), scene.id("web", "web-0"));
    for line in [
        format!("~ update instance {instance}"),
        "    Tags: [\"v2\"]".to_owned(),
        format!("{}: 0 to create, 1 to update, 0 to delete", scene.cluster),
    ] {
        ensure!(text.out.contains(&line), "{line} is not in {}", text.out);
    }
    ensure!(!text.out.contains('\u{1b}'), "no colours but on a terminal");
    Ok(())
}

#[tokio::test]
async fn what_is_held_or_anothers_is_told_and_counted() -> Result<()> {
    let scene = Scene::new().await?;
    let names: Vec<String> = (0..8).map(|number| format!("web-{number}")).collect();
    for name in &names {
        let pod = scene.pod(name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
    }
    let lictor = scene.lictor().await?;
    for name in &names {
        scene.status("web", name, "passing").await?;
    }
    lictor.idle().await?;
    lictor.stop().await?;
    for name in &names {
        scene.pod(name).finish_deletion(&scene.client).await?;
    }
    let strict = [
        "--output=json",
        "--max-delete-floor=2",
        "--max-delete-percent=10",
    ];
    let held = plan(&scene, &strict).await?;
    let count = |plan: &Plan, action: &str| -> Result<Value> {
        Ok(plan.json()?["summary"][action].clone())
    };
    assert_eq!(
        (count(&held, "held")?, count(&held, "delete")?),
        (json!(8), json!(0))
    );
    ensure!(held.out.contains("lictor gc --yes"), "{}", held.out);
    let loose = [
        "--output=json",
        "--max-delete-percent=100",
        "--max-delete-floor=100",
    ];
    let goes = plan(&scene, &loose).await?;
    assert_eq!(
        (count(&goes, "held")?, count(&goes, "delete")?),
        (json!(0), json!(8))
    );
    let policy = plan(&scene, &["--output=json", "--policy=upsert-only"]).await?;
    assert_eq!(count(&policy, "delete")?, json!(0));
    ensure!(
        policy.out.contains("--policy is upsert-only"),
        "{}",
        policy.out
    );
    Ok(())
}

const MANIFESTS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: not-ours}
data: {a: b}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: good, namespace: NS}
spec:
  template:
    metadata: {annotations: {lictor.io/service: web, lictor.io/port: "80"}}
    spec: {containers: [{name: web}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: bad, namespace: NS}
spec:
  template:
    metadata: {annotations: {lictor.io/service: web, lictor.io/port: nowhere}}
    spec: {containers: [{name: web, ports: [{name: http, containerPort: 80}]}]}
---
apiVersion: v1
kind: List
items:
- apiVersion: lictor.io/v1alpha1
  kind: ServiceRegistration
  metadata: {name: db, namespace: NS}
  spec:
    service: db
    endpoints: [{name: one, address: 10.9.8.7, port: 5432}]
- apiVersion: lictor.io/v1alpha1
  kind: Intention
  metadata: {name: shop, namespace: NS}
  spec:
    destination: {name: DESTINATION}
    sources: [{name: web, action: allow}]
"#;

#[tokio::test]
async fn manifests_are_planned_without_a_cluster() -> Result<()> {
    let scene = Scene::new().await?;
    let payment = scene.named("payment");
    let text = MANIFESTS
        .replace("NS", &scene.namespace)
        .replace("DESTINATION", &payment);
    let file = written(&scene, "manifests.yaml", &text)?;
    let file = file.to_str().context("a path")?;
    // The cluster is not asked: there is none.
    let alone = [
        "--default-policy=shared",
        "--output=json",
        "--detailed-exitcode",
        "--kubeconfig=/nowhere",
        "-f",
        file,
    ];
    let planned = async || {
        let mut args = scene.args();
        "plan".clone_into(&mut args[0]);
        args.retain(|arg| !arg.starts_with("--listen") && !arg.starts_with("--kubeconfig"));
        args.push(format!("--consul-http-token={}", reader(&scene).await?));
        args.extend(alone.map(str::to_owned));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (code, out, err) = run_within(Duration::from_mins(1), &args).await?;
        anyhow::Ok(Plan { code, out, err })
    };
    let first = planned().await?;
    let items = first.items()?;
    let external = format!("lictor-{}-external", scene.cluster);
    let db = items.iter().find(|item| item.contains("db"));
    let db = db.context(format!("{items:#?}"))?.clone();
    assert_eq!(
        items,
        [
            format!("create {external}"),
            db.clone(),
            format!("create service-intentions/{payment}"),
            format!("rejected StatefulSet/{}/bad", scene.namespace),
        ]
    );
    ensure!(first.out.contains("nowhere"), "{}", first.out);
    assert_eq!(first.code, Some(1), "{}", first.err);

    // What others have is no delete, and what is applied is no change.
    let spec = json!({"service": "db", "endpoints": [{"name": "one", "address": "10.9.8.7", "port": 5432}]});
    scene.register("db", spec).await?;
    let sources =
        json!({"destination": {"name": payment}, "sources": [{"name": "web", "action": "allow"}]});
    scene.create(Kind::Intention, "shop", sources).await?;
    scene
        .pod("other")
        .lictor("service", "other")
        .create_ready(&scene.client)
        .await?;
    let lictor = scene.lictor().await?;
    scene.status("other", "other", "passing").await?;
    scene.sources_are(&payment, &["web allow"]).await?;
    scene
        .shown(Kind::Intention, "shop", |status| {
            condition(status, "Ready").0 == "True"
        })
        .await?;
    lictor.idle().await?;
    let second = planned().await?;
    assert_eq!(
        second.items()?,
        [format!("rejected StatefulSet/{}/bad", scene.namespace)]
    );

    // An endpoint that the manifest has no more is a delete: Consul shows whose it is.
    let changed = text.replace(
        "name: one, address: 10.9.8.7",
        "name: two, address: 10.9.8.8",
    );
    let changed = changed.replace("nowhere", "http");
    fs::write(file, changed)?;
    let third = planned().await?;
    let items = third.items()?;
    let gone = db.replace("create", "delete");
    ensure!(items.len() == 2 && items.contains(&gone), "{items:#?}");
    assert_eq!(third.code, Some(2), "{}", third.err);
    Ok(())
}

#[tokio::test]
async fn a_plan_that_cannot_be_made_is_an_error_that_says_why() -> Result<()> {
    let scene = Scene::new().await?;
    for (text, says) in [
        ("a: [", "is no YAML"),
        ("kind: Pod", "without apiVersion and kind"),
        ("apiVersion: v1\nkind: Pod", "without metadata.name"),
    ] {
        let file = written(&scene, "bad.yaml", text)?;
        let file = file.to_str().context("a path")?;
        let failed = plan(&scene, &["-f", file]).await?;
        assert_eq!(failed.code, Some(1), "{}", failed.out);
        ensure!(
            failed.err.contains(says) && failed.err.contains(file),
            "{}",
            failed.err
        );
        ensure!(failed.out.is_empty(), "{}", failed.out);
    }
    let failed = plan(&scene, &["-f", "/nowhere.yaml"]).await?;
    assert_eq!(failed.code, Some(1));
    ensure!(failed.err.contains("/nowhere.yaml"), "{}", failed.err);
    // A token that sees but a part would make a plan that is wrong.
    let rules = acl_policy(&scene.cluster)
        .await?
        .replace("\"write\"", "\"read\"");
    let narrow = rules.replace("node_prefix \"\"", "node_prefix \"nothing\"");
    let token = scene.consul.create_token(&narrow).await?.secret;
    let token = format!("--consul-http-token={token}");
    scene
        .pod("web")
        .lictor("service", "web")
        .create_ready(&scene.client)
        .await?;
    let lictor = scene.lictor().await?;
    scene.status("web", "web", "passing").await?;
    lictor.stop().await?;
    let mut args = scene.args();
    "plan".clone_into(&mut args[0]);
    args.retain(|arg| !arg.starts_with("--listen"));
    args.push(token);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (code, out, err) = run_within(Duration::from_mins(1), &args).await?;
    ensure!(code == Some(1) && out.is_empty(), "{code:?} {out} {err}");
    Ok(())
}

#[tokio::test]
async fn what_a_deletion_would_take_is_shown_before_it_is_done() -> Result<()> {
    let scene = Scene::new().await?;
    let namespace = scene.namespace.clone();
    let other = format!("{namespace}-other");
    scene.create_namespace(&other).await?;
    let (payment, query) = (scene.named("payment"), scene.named("find-web"));
    for pod in ["web-0", "web-1"] {
        let pod = scene.pod(pod).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
    }
    let stays = TestPod::new(&other, "db-0")
        .node(&scene.node)
        .ip("10.250.9.7");
    let stays = stays.port("sql", 5432).lictor("service", "db");
    stays.create_ready(&scene.client).await?;
    let spec = json!({"destination": {"name": payment},
                      "sources": [{"name": "web", "action": "allow"}]});
    scene.create(Kind::Intention, "shop", spec).await?;
    let spec = json!({"name": query, "service": "web"});
    scene.create(Kind::PreparedQuery, "find", spec).await?;
    let lictor = scene.lictor().await?;
    for pod in ["web-0", "web-1"] {
        scene.status("web", pod, "passing").await?;
    }
    scene.sources_are(&payment, &["web allow"]).await?;
    scene.query_is(&query, |found| !found.is_null()).await?;
    lictor.idle().await?;

    let before = scene.dump().await?;
    let node = scene.consul_node();
    let instance = |pod: &str| format!("delete {node}/{}", scene.id("web", pod));
    let whole = format!("--without=namespace/{namespace}");
    let gone = plan(&scene, &[&JSON[..], &[&whole]].concat()).await?;
    let mut all = vec![
        instance("web-0"),
        instance("web-1"),
        format!("delete query/{query}"),
        format!("delete service-intentions/{payment}"),
    ];
    all.sort();
    let mut shown = gone.items()?;
    shown.sort();
    assert_eq!(shown, all, "{}", gone.err);
    assert_eq!(gone.code, Some(2));
    ensure!(
        gone.out
            .contains(&format!("the deletion of Namespace/{namespace}")),
        "{}",
        gone.out
    );
    let one = format!("--without=pod/{namespace}/web-1,pq/{namespace}/find");
    let gone = plan(&scene, &[&JSON[..], &[&one]].concat()).await?;
    assert_eq!(
        gone.items()?,
        [instance("web-1"), format!("delete query/{query}")]
    );
    let unknown = plan(
        &scene,
        &[&JSON[..], &["--without=namespace/nowhere"]].concat(),
    )
    .await?;
    assert_eq!(unknown.code, Some(1));
    ensure!(
        unknown.err.contains("Namespace/nowhere: there is none"),
        "{}",
        unknown.err
    );
    assert_eq!(scene.dump().await?, before, "a plan deletes nothing");

    // What is due anyhow is counted and not shown.
    lictor.stop().await?;
    scene.annotate("web-0", &[("tags", Some("v2"))]).await?;
    let one = format!("--without=pod/{namespace}/web-1");
    let gone = plan(&scene, &[&JSON[..], &[&one]].concat()).await?;
    assert_eq!(gone.items()?, [instance("web-1")]);
    ensure!(gone.out.contains("has 1 more without it"), "{}", gone.out);
    Ok(())
}
