//! `Intention`s and `protocol`: what they become in Consul, how several share a destination, and
//! whose is what.

mod merge;
mod ownership;
mod protocol;
mod refusals;
mod removal;
mod repair;
mod stored;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::wait;
use serde_json::{Value, json};

use crate::support::{Kind, Lictor, SOON, Scene, condition, json_lines};

/// How long lists that confirm an absence are apart.
const SPACING: Duration = Duration::from_secs(30);

const ENTRY: &str = "service-intentions";
const DEFAULTS: &str = "service-defaults";

/// An Intention's spec.
fn to(destination: &str, sources: &Value) -> Value {
    json!({"destination": {"name": destination}, "sources": sources})
}

/// One source.
fn one(name: &str, action: &str) -> Value {
    json!([{"name": name, "action": action}])
}

/// One source that has rules for requests.
fn rules(name: &str) -> Value {
    json!([{"name": name, "permissions": [{"action": "allow", "http": {"pathPrefix": "/"}}]}])
}

/// A registration's spec that asks for a protocol and registers nothing.
fn speaks(service: &str, protocol: &str) -> Value {
    json!({"service": service, "endpoints": [], "protocol": protocol})
}

impl Scene {
    /// Creates an Intention.
    async fn intend(&self, name: &str, spec: Value) -> Result<()> {
        self.create(Kind::Intention, name, spec).await.map(drop)
    }

    /// Writes a config entry by hand.
    async fn entry_by_hand(&self, entry: &Value) -> Result<()> {
        self.consul.put("/v1/config", entry).await.map(drop)
    }

    /// Removes a config entry by hand.
    async fn entry_away(&self, kind: &str, name: &str) -> Result<()> {
        let path = format!("/v1/config/{kind}/{name}");
        self.consul.delete(&path).await.map(drop)
    }

    /// Waits until an Intention is ready.
    async fn is_ready(&self, name: &str) -> Result<Value> {
        let is = |status: &Value| condition(status, "Ready").0 == "True";
        self.shown(Kind::Intention, name, is).await
    }

    /// Waits until an Intention is not ready for this reason; the message.
    async fn is_not(&self, name: &str, reason: &str) -> Result<String> {
        let is = |status: &Value| {
            let (ready, why, _) = condition(status, "Ready");
            (ready, why) == ("False", reason)
        };
        let status = self.shown(Kind::Intention, name, is).await?;
        Ok(condition(&status, "Ready").2.to_owned())
    }

    /// Waits until Consul has no entry for the destination, as long as lists take to confirm.
    async fn goes_confirmed(&self, destination: &str) -> Result<()> {
        let deadline = 2 * SPACING + SOON;
        wait::until("the entry to go", deadline, async || {
            let found = self.config_entry(ENTRY, destination).await?;
            ensure!(found.is_null(), "{found:#}");
            Ok(())
        })
        .await
    }
}

/// The lines of the audit log.
fn audit(lictor: &Lictor) -> Result<Vec<Value>> {
    let mut lines = json_lines(&lictor.log())?;
    lines.retain(|line| line["target"] == "audit");
    Ok(lines)
}

/// Every field of an Intention, for a destination that speaks HTTP and a provider that exists.
fn everything(destination: &str, provider: &str) -> Value {
    let headers = json!([
        {"name": "x-present", "present": true},
        {"name": "x-exact", "exact": "a", "ignoreCase": true},
        {"name": "x-prefix", "prefix": "b", "invert": true},
        {"name": "x-suffix", "suffix": "c"},
        {"name": "x-contains", "contains": "d"},
        {"name": "x-regex", "regex": "e.*"},
    ]);
    let token = json!({"providers": [{"name": provider, "verifyClaims": [
        {"path": ["aud"], "value": "shop"}, {"path": ["realm", "roles"], "value": "admin"}]}]});
    let permissions = json!([
        {"action": "allow", "http": {"pathExact": "/exact"}},
        {"action": "deny", "http": {"pathPrefix": "/v1", "methods": ["POST", "GET"]}},
        {"action": "allow", "http": {"pathRegex": "/r/[a-z]+", "header": headers}, "jwt": token},
        {"action": "allow", "http": {"methods": ["DELETE"]}},
    ]);
    json!({
        "destination": {"name": destination},
        "sources": [
            {"name": "web", "action": "allow", "description": "the shop's front — ☂"},
            {"name": "reports", "permissions": permissions, "description": "by request"},
            {"name": "web", "peer": "elsewhere", "action": "deny"},
            {"name": "Web", "action": "deny"},
            {"name": "*", "action": "deny"},
        ],
        "jwt": {"providers": [{"name": provider}]},
    })
}

/// The entry that comes of it, without what Consul adds.
fn everything_in_consul(provider: &str) -> Value {
    let headers = json!([
        {"Name": "x-present", "Present": true},
        {"Name": "x-exact", "Exact": "a", "IgnoreCase": true},
        {"Name": "x-prefix", "Prefix": "b", "Invert": true},
        {"Name": "x-suffix", "Suffix": "c"},
        {"Name": "x-contains", "Contains": "d"},
        {"Name": "x-regex", "Regex": "e.*"},
    ]);
    let token = json!({"Providers": [{"Name": provider, "VerifyClaims": [
        {"Path": ["aud"], "Value": "shop"}, {"Path": ["realm", "roles"], "Value": "admin"}]}]});
    let permissions = json!([
        {"Action": "allow", "HTTP": {"PathExact": "/exact"}},
        {"Action": "deny", "HTTP": {"PathPrefix": "/v1", "Methods": ["POST", "GET"]}},
        {"Action": "allow", "HTTP": {"PathRegex": "/r/[a-z]+", "Header": headers}, "JWT": token},
        {"Action": "allow", "HTTP": {"Methods": ["DELETE"]}},
    ]);
    let source = |name: &str, precedence: u8, more: Value| {
        let mut source = json!({"Name": name, "Precedence": precedence, "Type": "consul"});
        let fields = source.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        source
    };
    json!({
        "JWT": {"Providers": [{"Name": provider}]},
        "Sources": [
            source("Web", 9, json!({"Action": "deny"})),
            source("reports", 9, json!({"Permissions": permissions, "Description": "by request"})),
            source("web", 9, json!({"Action": "allow", "Description": "the shop's front — ☂"})),
            source("web", 9, json!({"Action": "deny", "Peer": "elsewhere"})),
            source("*", 8, json!({"Action": "deny"})),
        ],
    })
}

async fn provider(scene: &Scene, name: &str) -> Result<()> {
    let keys = json!({"Local": {"JWKS": "eyJrZXlzIjogW119"}});
    let entry = json!({"Kind": "jwt-provider", "Name": name, "JSONWebKeySet": keys});
    scene.entry_by_hand(&entry).await
}

/// What Consul holds of this, indexes included.
async fn held(scene: &Scene, names: &[(&str, &str)]) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for (kind, name) in names {
        let entry = scene.config_entry(kind, name).await?;
        ensure!(!entry.is_null(), "{kind} {name} is not there");
        all.push(entry);
    }
    Ok(all)
}

#[tokio::test]
async fn every_field_arrives_and_a_restart_writes_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let (payment, okta) = (scene.named("payment"), scene.named("okta"));
    provider(&scene, &okta).await?;
    let lictor = scene.lictor().await?;
    scene.register("payment", speaks(&payment, "http")).await?;
    scene.intend("all", everything(&payment, &okta)).await?;
    scene.is_ready("all").await?;
    let entry = scene.config_entry(ENTRY, &payment).await?;
    let wanted = everything_in_consul(&okta);
    assert_eq!(entry["JWT"], wanted["JWT"]);
    assert_eq!(entry["Sources"], wanted["Sources"]);
    let owner = format!("{}/all", scene.namespace);
    assert_eq!(
        entry["Meta"],
        json!({
            "external-source": "kubernetes", "lictor-cluster": scene.cluster, "lictor-jwt": owner,
            "lictor-src-0": format!("{owner}=*,Web,reports,web,web|peer:elsewhere"),
        })
    );
    let defaults = scene.config_entry(DEFAULTS, &payment).await?;
    assert_eq!(defaults["Protocol"], "http");
    // One for each way in which a source can be told or ruled, alone in its entry.
    let permissions = everything(&payment, &okta)["sources"][1]["permissions"].clone();
    let mut names = vec![(ENTRY, payment.clone()), (DEFAULTS, payment.clone())];
    for (n, permission) in permissions.as_array().unwrap().iter().enumerate() {
        let name = scene.named(&format!("p{n}"));
        let spoken = format!("p{n}");
        scene.register(&spoken, speaks(&name, "grpc")).await?;
        let source = json!([{"name": "web", "permissions": [permission]}]);
        scene.intend(&spoken, to(&name, &source)).await?;
        names.extend([(ENTRY, name.clone()), (DEFAULTS, name)]);
    }
    for n in 0..names.len() / 2 - 1 {
        scene.is_ready(&format!("p{n}")).await?;
    }
    let names: Vec<_> = names.iter().map(|(kind, name)| (*kind, &**name)).collect();
    lictor.idle().await?;
    let count = lictor
        .metric("lictor_owned", &["kind=\"intention\""])
        .await?;
    // Five sources, a requirement of tokens, and four sources.
    assert!((count - 10.0).abs() < f64::EPSILON, "{count}");
    lictor.stop().await?;

    let before = held(&scene, &names).await?;
    let object = scene.objects(Kind::Intention).get("all").await?;
    let lictor = scene.lictor().await?;
    scene.barrier().await?;
    lictor.idle().await?;
    assert_eq!(held(&scene, &names).await?, before);
    let written = lictor
        .metric("lictor_operations_total", &["intentions"])
        .await?
        + lictor
            .metric("lictor_operations_total", &[DEFAULTS])
            .await?;
    assert!(written == 0.0, "{}", lictor.http("/metrics").await?.1);
    let puts = ["endpoint=\"config\""];
    let puts = lictor.metric("lictor_consul_requests_total", &puts).await?;
    assert!(puts == 0.0, "{puts} writes of config entries");
    let now = scene.objects(Kind::Intention).get("all").await?;
    assert_eq!(
        now.metadata.resource_version, object.metadata.resource_version,
        "the status was written"
    );
    Ok(())
}

#[tokio::test]
async fn what_is_changed_is_written_and_nothing_else() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let (payment, ledger) = (scene.named("payment"), scene.named("ledger"));
    scene
        .intend("payment", to(&payment, &one("web", "allow")))
        .await?;
    scene
        .intend("ledger", to(&ledger, &one("web", "allow")))
        .await?;
    let before = scene.sources_are(&payment, &["web allow"]).await?;
    scene.sources_are(&ledger, &["web allow"]).await?;
    let edit = json!({"spec": {"sources": one("web", "deny")}});
    scene.change(Kind::Intention, "ledger", edit).await?;
    scene.sources_are(&ledger, &["web deny"]).await?;
    scene.is_ready("ledger").await?;
    // Another destination: the old one is left at once.
    let other = scene.named("other");
    let edit = json!({"spec": {"destination": {"name": other}}});
    scene.change(Kind::Intention, "ledger", edit).await?;
    scene.sources_are(&other, &["web deny"]).await?;
    scene
        .config_entry_is(ENTRY, &ledger, Value::is_null)
        .await?;
    let status = scene.is_ready("ledger").await?;
    assert_eq!(status["destination"], other);
    assert_eq!(status["sources"]["summary"], "1/1");
    // An edit that says the same.
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    scene.change(Kind::Intention, "payment", labels).await?;
    scene.barrier().await?;
    lictor.idle().await?;
    assert_eq!(scene.config_entry(ENTRY, &payment).await?, before);
    Ok(())
}

/// Consul compares the names of destinations without case, and those of sources with it.
#[tokio::test]
async fn names_are_compared_as_consul_does() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let name = scene.named("Payment_API.v1");
    scene
        .intend("upper", to(&name, &one("Web", "allow")))
        .await?;
    scene
        .intend("lower", to(&name.to_lowercase(), &one("web", "deny")))
        .await?;
    scene.is_ready("upper").await?;
    scene.is_ready("lower").await?;
    let all = scene
        .consul
        .get("/v1/config/service-intentions?consistent")
        .await?;
    let same = |entry: &&Value| {
        entry["Name"]
            .as_str()
            .is_some_and(|there| there.eq_ignore_ascii_case(&name))
    };
    let found: Vec<_> = all
        .as_array()
        .context("not a list")?
        .iter()
        .filter(same)
        .collect();
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        crate::support::sources_of(found[0]),
        ["Web allow", "web deny"]
    );
    scene.delete(Kind::Intention, "upper").await?;
    scene.delete(Kind::Intention, "lower").await?;
    scene
        .config_entry_is(ENTRY, &name.to_lowercase(), Value::is_null)
        .await?;
    lictor.idle().await
}

/// The example, in a namespace that there is.
#[tokio::test]
async fn the_api_server_takes_the_example() -> Result<()> {
    let scene = Scene::new().await?;
    let example = include_str!("../../../examples/40-intentions.yaml");
    let file = scene.bed.dir().join(format!("{}.yaml", scene.namespace));
    let here = format!("namespace: {}", scene.namespace);
    std::fs::write(&file, example.replace("namespace: shop", &here))?;
    let file = file.display().to_string();
    let taken = scene
        .bed
        .kubectl(&["apply", "--dry-run=server", "--filename", &file])
        .await?;
    assert_eq!(taken.lines().count(), 4, "{taken}");
    Ok(())
}

/// Whoever is called. No other test has this destination.
#[tokio::test]
async fn every_destination_is_one_too() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let source = scene.named("web");
    scene.intend("all", to("*", &one(&source, "allow"))).await?;
    let entry = scene
        .sources_are("*", &[&format!("{source} allow")])
        .await?;
    assert_eq!(entry["Sources"][0]["Precedence"], 6);
    assert_eq!(scene.is_ready("all").await?["destination"], "*");
    scene.delete(Kind::Intention, "all").await?;
    scene.config_entry_is(ENTRY, "*", Value::is_null).await?;
    Ok(())
}
