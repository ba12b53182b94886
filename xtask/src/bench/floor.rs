//! The floor: what one direct catalog write on each watch event costs, with no queue, no diff and
//! no safety. Nothing that keeps Consul true to Kubernetes can be much faster.

use std::{io::Write as _, pin::pin};

use anyhow::{Context, Result};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};

/// Writes the one instance of a service on each event of its pod, until killed. A line on standard
/// output tells that it watches.
pub async fn run(service: &str) -> Result<()> {
    let address = std::env::var("CONSUL_HTTP_ADDR")?;
    let consul = lictor_testbed::ConsulApi::new(&address)?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let mut registration = registration(&consul, service).await?;
    let url = format!("{address}/v1/catalog/register");

    let pods = Api::<Pod>::all(Client::try_default().await?);
    let version = pods.list(&ListParams::default().limit(1)).await?;
    let version = version.metadata.resource_version.unwrap_or_default();
    let mut events = pin!(pods.watch(&WatchParams::default(), &version).await?);
    println!("watching");
    std::io::stdout().flush()?;
    while let Some(event) = events.try_next().await? {
        let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else {
            continue;
        };
        let annotations = pod.metadata.annotations.unwrap_or_default();
        if annotations.get("lictor.io/service").map(String::as_str) != Some(service) {
            continue;
        }
        let conditions = pod.status.and_then(|status| status.conditions);
        let ready = conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        registration["Check"]["Status"] = json!(if ready { "passing" } else { "critical" });
        http.put(&url)
            .json(&registration)
            .send()
            .await?
            .error_for_status()?;
    }
    Ok(())
}

/// What is in the catalog already, as it would be registered again.
async fn registration(consul: &lictor_testbed::ConsulApi, service: &str) -> Result<Value> {
    let found = consul.health(service).await?;
    let found = found.first().context("the service is not registered")?;
    let check = found["Checks"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|check| check["ServiceID"] == found["Service"]["ID"])
        .context("the service has no check")?;
    let pick = |from: &Value, names: &[&str]| -> Value {
        names
            .iter()
            .map(|&name| (name.to_owned(), from[name].clone()))
            .collect()
    };
    let check_fields = [
        "Node",
        "CheckID",
        "Name",
        "Status",
        "Notes",
        "Output",
        "ServiceID",
        "ServiceName",
        "Type",
    ];
    let service_fields = [
        "ID",
        "Service",
        "Tags",
        "Meta",
        "Address",
        "Port",
        "TaggedAddresses",
        "Weights",
    ];
    Ok(json!({
        "Node": found["Node"]["Node"],
        "Address": found["Node"]["Address"],
        "SkipNodeUpdate": true,
        "Service": pick(&found["Service"], &service_fields),
        "Check": pick(check, &check_fields),
    }))
}
