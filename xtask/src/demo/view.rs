//! Consul as anybody sees it: blocking queries of `/v1/health/service`, apart from Lictor's own.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use reqwest::Client;
use serde::Deserialize;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

/// An instance of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub service: String,
    pub id: String,
    pub node: String,
    pub address: String,
    pub tags: String,
    /// The worst of its checks, the node's included.
    pub health: &'static str,
    /// What the worst check says.
    pub output: String,
    pub create_index: u64,
}

/// What Consul answered, and when.
#[derive(Debug, Clone)]
struct Shown {
    at: Instant,
    instances: Vec<Instance>,
}

/// Services as Consul shows them, from moment to moment.
#[derive(Debug)]
pub struct View {
    services: BTreeMap<&'static str, watch::Receiver<Shown>>,
    /// They end with the view.
    _queries: JoinSet<()>,
}

impl View {
    /// Begins to look at services; returns when Consul has answered for each.
    pub async fn open(consul: &str, services: &[&'static str]) -> Result<Self> {
        let client = Client::builder().no_proxy().build()?;
        let mut view = BTreeMap::new();
        let mut queries = JoinSet::new();
        for service in services {
            let url = format!("{consul}/v1/health/service/{service}");
            let (index, shown) = ask(&client, &url, 0).await?;
            let (sender, receiver) = watch::channel(shown);
            queries.spawn(follow(client.clone(), url, index, sender));
            view.insert(*service, receiver);
        }
        Ok(Self {
            services: view,
            _queries: queries,
        })
    }

    /// Waits until Consul shows a service as described, and returns when it did.
    pub async fn until(
        &self,
        service: &str,
        what: &str,
        deadline: Duration,
        is: impl Fn(&[Instance]) -> bool,
    ) -> Result<Instant> {
        let shown = self.services.get(service).context("not looked at")?;
        let mut shown = shown.clone();
        let seen = timeout(deadline, shown.wait_for(|shown| is(&shown.instances)))
            .await
            .map(|seen| seen.map(|shown| shown.at));
        if let Ok(seen) = seen {
            return seen.context("Consul cannot be read any more");
        }
        let last = shown.borrow().instances.clone();
        bail!(
            "waited {} s in vain for {what}; Consul shows {last:#?}",
            deadline.as_secs()
        )
    }

    /// All instances, by service and id.
    pub fn instances(&self) -> Vec<Instance> {
        let all = self.services.values();
        all.flat_map(|shown| shown.borrow().instances.clone())
            .collect()
    }
}

/// Goes on until nobody looks any more.
async fn follow(client: Client, url: String, mut index: u64, shown: watch::Sender<Shown>) {
    while !shown.is_closed() {
        match ask(&client, &url, index).await {
            Ok((next, now)) => {
                // An index that goes back starts over.
                index = if next < index { 0 } else { next };
                shown.send_replace(now);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

async fn ask(client: &Client, url: &str, index: u64) -> Result<(u64, Shown)> {
    let answer = client
        .get(format!("{url}?index={index}&wait=30s"))
        .timeout(Duration::from_secs(40))
        .send()
        .await?
        .error_for_status()?;
    let index = answer.headers().get("X-Consul-Index");
    let index = index
        .context("an answer without index")?
        .to_str()?
        .parse()?;
    let at = Instant::now();
    let entries: Vec<Entry> = answer.json().await?;
    let mut instances: Vec<_> = entries.into_iter().map(Instance::from).collect();
    instances.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((index, Shown { at, instances }))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
    checks: Vec<Check>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    node: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Service")]
    name: String,
    address: String,
    port: u16,
    tags: Option<Vec<String>>,
    create_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    status: String,
    output: String,
}

impl From<Entry> for Instance {
    fn from(entry: Entry) -> Self {
        let Entry {
            node,
            service,
            checks,
        } = entry;
        let of = |status: &str| checks.iter().find(|check| check.status == status);
        let worst = [("critical", of("critical")), ("warning", of("warning"))];
        let worst = worst
            .into_iter()
            .find_map(|(name, check)| Some((name, check?)));
        Self {
            node: node.node,
            id: service.id,
            service: service.name,
            address: format!("{}:{}", service.address, service.port),
            tags: service.tags.unwrap_or_default().join(", "),
            health: worst.map_or("passing", |(name, _)| name),
            output: worst.map_or_else(String::new, |(_, check)| check.output.clone()),
            create_index: service.create_index,
        }
    }
}
