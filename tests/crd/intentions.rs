//! Which Intentions the API server accepts and refuses, and that Consul does the same.

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use lictor::api::{Intention, IntentionSpec};
use lictor_testbed::{Bed, ConsulApi};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::asking::{OfLength, judge, long, refused, taken, with, yaml};

/// Where a case stands in an Intention that is good without it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum At {
    #[default]
    Spec,
    Destination,
    /// The only source, without an action.
    Source,
    /// The only permission.
    Permission,
    /// Its whole `http`.
    Http,
    /// Its only header, without a test.
    Header,
    /// The only provider of the destination's `jwt`.
    Provider,
}

fn intention(at: At, case: Value) -> Value {
    let sources = |source: Value| json!({"destination": {"name": "api"}, "sources": [source]});
    let permission =
        |permission: Value| sources(json!({"name": "web", "permissions": [permission]}));
    let http = |http: Value| permission(json!({"action": "allow", "http": http}));
    let good = sources(json!({"name": "web", "action": "allow"}));
    match at {
        At::Spec => with(good, case),
        At::Destination => with(
            good,
            json!({"destination": with(json!({"name": "api"}), case)}),
        ),
        At::Source => sources(with(json!({"name": "web"}), case)),
        At::Permission => {
            let any = json!({"action": "allow", "http": {"pathPrefix": "/"}});
            permission(with(any, case))
        }
        At::Http => http(case),
        At::Header => http(json!({"header": [with(json!({"name": "x-team"}), case)]})),
        At::Provider => {
            let provider = with(json!({"name": "okta"}), case);
            with(good, json!({"jwt": {"providers": [provider]}}))
        }
    }
}

pub async fn consul_agrees_on_what_is_taken_and_refused(bed: &Bed, client: &Client) -> Result<()> {
    let consul = bed.consul()?;
    for entry in [
        json!({"Kind": "service-defaults", "Name": "api", "Protocol": "http"}),
        json!({"Kind": "jwt-provider", "Name": "okta", "JSONWebKeySet": {"Local": {"JWKS": "eyJrZXlzIjogW119"}}}),
    ] {
        consul.put("/v1/config", &entry).await?;
    }
    // Consul would take these, and by no URL would they go again.
    for name in [".", ".."] {
        let spec = intention(At::Destination, json!({"name": name}));
        refused::<Intention>(client, "bad", &spec, "which no URL can ask for").await?;
    }
    let cases = include_str!("cases/intentions.yaml");
    let offer = async |spec: &Value| offer(&consul, spec).await;
    judge::<Intention, _>(client, cases, intention, offer).await?;
    for name in ["jwt-provider/okta", "service-defaults/api"] {
        consul.delete(&format!("/v1/config/{name}")).await?;
    }
    Ok(())
}

/// Whether Consul takes it as a config entry. Its fields are spelt as ours, but for capitals, which
/// Consul does not mind.
async fn offer(consul: &ConsulApi, spec: &Value) -> Result<()> {
    // As the controller reads it, without what is empty; what is wrong as it is.
    let read = serde_json::from_value::<IntentionSpec>(spec.clone());
    let spec = &read.map_or_else(|_| Ok(spec.clone()), serde_json::to_value)?;
    let name = &spec["destination"]["name"];
    let mut entry = json!({"Kind": "service-intentions", "Name": name, "Sources": spec["sources"]});
    for field in ["namespace", "partition"] {
        if let Some(value) = spec["destination"].get(field) {
            entry[field] = value.clone();
        }
    }
    if let Some(jwt) = spec.get("jwt") {
        entry["JWT"] = jwt.clone();
    }
    let answer = consul.put("/v1/config", &entry).await;
    if answer.is_ok() {
        let name = name.as_str().context("taken without a name")?;
        let path = format!("/v1/config/service-intentions/{name}");
        consul.delete(&path).await?;
    }
    answer.map(drop)
}

pub async fn lengths_have_limits(client: &Client) -> Result<()> {
    let source = |n: usize| json!({"name": format!("s{n}"), "action": "allow"});
    let sources = |count| json!({"sources": (0..count).map(source).collect::<Vec<_>>()});
    let list = |item: Value, count: usize| vec![item; count];
    let permission = json!({"action": "allow", "http": {"pathPrefix": "/"}});
    let header = json!({"name": "a", "present": true});
    let claim = json!({"path": ["a"], "value": "b"});
    let provider = json!({"name": "a"});
    // The most that is taken, one more, and what the refusal says.
    let most: [(At, OfLength<'_>, usize, &str); 13] = [
        (At::Spec, &sources, 256, "must have at most 256 items"),
        (
            At::Source,
            &|n| json!({"permissions": list(permission.clone(), n)}),
            16,
            "at most 16 items",
        ),
        (
            At::Http,
            &|n| json!({"header": list(header.clone(), n)}),
            8,
            "at most 8 items",
        ),
        (
            At::Spec,
            &|n| json!({"jwt": {"providers": list(provider.clone(), n)}}),
            16,
            "at most 16 items",
        ),
        (
            At::Provider,
            &|n| json!({"verifyClaims": list(claim.clone(), n)}),
            16,
            "at most 16 items",
        ),
        (
            At::Provider,
            &|n| json!({"verifyClaims": [{"path": list(json!("a"), n)}]}),
            16,
            "at most 16 items",
        ),
        (
            At::Destination,
            &|n| json!({"name": long(n)}),
            256,
            "may not be more than 256",
        ),
        (
            At::Source,
            &|n| json!({"name": long(n), "action": "deny"}),
            256,
            "may not be more than 256",
        ),
        (
            At::Source,
            &|n| json!({"action": "deny", "description": long(n)}),
            512,
            "may not be more than 512",
        ),
        (
            At::Source,
            &|n| json!({"action": "deny", "description": "é".repeat(n)}),
            256,
            "at most 512 bytes",
        ),
        (
            At::Http,
            &|n| json!({"pathExact": format!("/{}", long(n - 1))}),
            1024,
            "may not be more than 1024",
        ),
        (
            At::Header,
            &|n| json!({"exact": long(n)}),
            1024,
            "may not be more than 1024",
        ),
        (
            At::Header,
            &|n| json!({"regex": long(n)}),
            256,
            "may not be more than 256",
        ),
    ];
    for (at, case, most, expected) in most {
        taken::<Intention>(client, "good", &intention(at, case(most))).await?;
        refused::<Intention>(client, "bad", &intention(at, case(most + 1)), expected).await?;
    }
    // As much of everything as etcd holds: the rules must not cost more than the API server spends.
    let permission = json!({"action": "allow", "http": {"header": list(header, 8)}});
    let source =
        |n: usize| json!({"name": format!("s{n}"), "permissions": list(permission.clone(), 16)});
    let most = json!({"sources": (0..256).map(source).collect::<Vec<_>>()});
    taken::<Intention>(client, "good", &intention(At::Spec, most)).await?;
    Ok(())
}

/// Every field that `ServiceIntentions` of consul-k8s has.
const OF_CONSUL_K8S: &str = r#"
apiVersion: consul.hashicorp.com/v1alpha1
kind: ServiceIntentions
metadata:
  name: moved
  namespace: default
spec:
  destination:
    name: api
    namespace: shop
  jwt:
    providers:
    - name: okta
      verifyClaims:
      - path: [perms, role]
        value: admin
  sources:
  - name: web
    namespace: front
    partition: eu
    action: allow
    description: The shop itself.
  - name: partner
    namespace: front
    peer: dc2
    action: deny
  - name: "*"
    namespace: "*"
    samenessGroup: all
    action: deny
  - name: reports
    permissions:
    - action: deny
      http:
        pathExact: /admin
    - action: allow
      http:
        pathPrefix: /v1
        methods: [GET, HEAD]
        header:
        - name: x-team
          exact: reports
          ignoreCase: true
        - {name: x-debug, present: true, invert: true}
        - {name: x-a, prefix: a}
        - {name: x-b, suffix: b}
        - {name: x-c, contains: c}
        - {name: x-d, regex: d+}
      jwt:
        providers:
        - name: okta
          verifyClaims:
          - {path: [aud], value: reports}
    - action: allow
      http:
        pathRegex: /v[2-9]/.*
"#;

/// With kubectl, which refuses fields that the CRD does not have.
pub async fn a_manifest_of_consul_k8s_moves(bed: &Bed) -> Result<()> {
    let moved = OF_CONSUL_K8S
        .replace("consul.hashicorp.com/v1alpha1", "lictor.io/v1alpha1")
        .replace("kind: ServiceIntentions", "kind: Intention");
    let out = bed.kubectl_apply(&moved).await?;
    ensure!(out.contains("created"), "{out}");
    let out = bed.kubectl_apply(&moved).await?;
    ensure!(out.contains("unchanged"), "{out}");
    let spec = bed
        .kubectl(&["get", "intent", "moved", "--output=jsonpath={.spec}"])
        .await?;
    let (meant, held) = (
        yaml(&moved)?["spec"].clone(),
        serde_json::from_str::<Value>(&spec)?,
    );
    ensure!(meant == held, "{held}");
    let read: IntentionSpec = serde_json::from_value(held)?;
    ensure!(
        serde_json::to_value(read)? == meant,
        "not all of it is read"
    );
    let shown = bed.kubectl(&["get", "intent", "--output=wide"]).await?;
    let columns: Vec<_> = shown
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(
        columns
            == [
                "NAME",
                "DESTINATION",
                "SOURCES",
                "READY",
                "AGE",
                "REASON",
                "MESSAGE"
            ],
        "{shown}"
    );
    bed.kubectl(&["delete", "intent", "moved"]).await?;
    Ok(())
}
