//! A reader that looks at Consul all the time, and does not miss what comes and goes.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use lictor_testbed::ConsulApi;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const PAUSE: Duration = Duration::from_millis(20);

/// A server that takes longer is as good as dead, and the next one is asked.
const TURN: Duration = Duration::from_secs(2);

/// Samples Consul until it is asked for its verdict.
///
/// Each sample is read through the server that answered last or, where that one fails, through the
/// next one. A sample that no server answers, while Consul is down or without a leader, says
/// nothing.
#[derive(Debug)]
pub struct Oracle {
    stop: Arc<AtomicBool>,
    samples: Arc<AtomicU64>,
    task: JoinHandle<Vec<String>>,
}

/// Something that must stay as it is in what a path gives.
struct Kept {
    what: String,
    path: String,
    of: Box<dyn Fn(&Value) -> Value + Send>,
    before: Value,
}

impl Kept {
    fn new(what: &str, path: &str, of: impl Fn(&Value) -> Value + Send + 'static) -> Self {
        Self {
            what: what.to_owned(),
            path: path.to_owned(),
            of: Box::new(of),
            before: Value::Null,
        }
    }
}

impl Oracle {
    /// Watches that the instances of these ids stay under the service, with the same `CreateIndex`
    /// and as healthy as they are now, and that what these paths give stays the same to the byte.
    pub async fn watch(
        consul: &ConsulApi,
        service: &str,
        ids: &[String],
        foreign: &[String],
    ) -> Result<Self> {
        let health = format!("/v1/health/service/{service}?consistent");
        let instance = |id: &String| {
            let wanted = id.clone();
            Kept::new(id, &health, move |health| standing(health, &wanted))
        };
        Self::keep(consul, ids.iter().map(instance).collect(), foreign).await
    }

    /// Watches that these sources of these destinations stay, with what they allow, and these queries,
    /// with their ids, and that what the paths give stays the same to the byte.
    pub async fn watch_entries(
        consul: &ConsulApi,
        sources: &[(String, String)],
        queries: &[String],
        foreign: &[String],
    ) -> Result<Self> {
        let source = |(destination, source): &(String, String)| {
            let (to, from) = (destination.clone(), source.clone());
            let of = move |all: &Value| {
                let entry = found(all, "Name", &to);
                let source = found(&entry["Sources"], "Name", &from);
                json!([source["Action"], source["Permissions"]])
            };
            let what = format!("{source} to {destination}");
            Kept::new(&what, "/v1/config/service-intentions?consistent", of)
        };
        let query = |name: &String| {
            let wanted = name.clone();
            let of = move |all: &Value| found(all, "Name", &wanted)["ID"].clone();
            Kept::new(name, "/v1/query?consistent", of)
        };
        let sources = sources.iter().map(source);
        let kept = sources.chain(queries.iter().map(query)).collect();
        Self::keep(consul, kept, foreign).await
    }

    async fn keep(consul: &ConsulApi, mut kept: Vec<Kept>, foreign: &[String]) -> Result<Self> {
        for path in foreign {
            kept.push(Kept::new(path, path, Value::clone));
        }
        for one in &mut kept {
            one.before = (one.of)(&consul.get(&one.path).await?);
            let missing = json!([null, null]);
            let is_there = !one.before.is_null() && one.before != missing;
            ensure!(is_there, "{} is not there to begin with", one.what);
        }
        let paths: BTreeSet<String> = kept.iter().map(|one| one.path.clone()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let samples = Arc::new(AtomicU64::new(0));
        let (asked_to_stop, count) = (stop.clone(), samples.clone());
        let mut servers = Servers::of(consul);
        let task = tokio::spawn(async move {
            let mut faults = Vec::new();
            loop {
                // One more sample after the end: it shows what came and went while a server hung.
                let last = asked_to_stop.load(Ordering::Relaxed);
                let mut whole = true;
                for path in &paths {
                    let Some(found) = servers.read(path).await else {
                        whole = false;
                        continue;
                    };
                    for one in kept.iter().filter(|one| one.path == *path) {
                        let now = (one.of)(&found);
                        if now != one.before {
                            faults.push(format!("{}: {}, then {now}", one.what, one.before));
                        }
                    }
                }
                if whole {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                if last {
                    return faults;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Ok(Self {
            stop,
            samples,
            task,
        })
    }

    /// Ends it; fails with what it saw that must not be.
    pub async fn verdict(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let faults = self.task.await?;
        let samples = self.samples.load(Ordering::Relaxed);
        ensure!(samples > 0, "no sample was taken");
        ensure!(
            faults.is_empty(),
            "{} of {samples} samples were wrong, first {}",
            faults.len(),
            faults[0]
        );
        Ok(())
    }
}

/// The Consul servers, the one that answered last in front.
struct Servers(VecDeque<ConsulApi>);

impl Servers {
    fn of(consul: &ConsulApi) -> Self {
        Self(consul.each().into())
    }

    /// What one of them gives; nothing if none answers.
    async fn read(&mut self, path: &str) -> Option<Value> {
        for _ in 0..self.0.len() {
            let read = self.0[0].find(path);
            if let Ok(Ok(found)) = tokio::time::timeout(TURN, read).await {
                return found;
            }
            self.0.rotate_left(1);
        }
        None
    }
}

/// The element of a list that has this value in a field; `null` without one.
fn found(all: &Value, field: &str, value: &str) -> Value {
    let mut all = all.as_array().into_iter().flatten();
    all.find(|one| one[field] == value)
        .cloned()
        .unwrap_or_default()
}

/// The `CreateIndex` of an instance, and which of its checks do not pass; `null` without one.
fn standing(health: &Value, id: &str) -> Value {
    let mut all = health.as_array().into_iter().flatten();
    let Some(found) = all.find(|instance| instance["Service"]["ID"] == id) else {
        return Value::Null;
    };
    let checks = found["Checks"].as_array().into_iter().flatten();
    let failing: Vec<_> = checks
        .filter(|check| check["Status"] != "passing")
        .collect();
    json!([found["Service"]["CreateIndex"], failing])
}

#[cfg(test)]
mod tests {
    use lictor_testbed::{Bed, BedOptions};

    use super::*;
    use crate::support::until;

    /// On three servers that die and freeze, one after the other.
    #[tokio::test]
    async fn the_oracle_sees_as_long_as_one_server_does() -> Result<()> {
        let options = BedOptions {
            consul_servers: 3,
            ..BedOptions::default()
        };
        let bed = Bed::start(options).await?;
        let consul = bed.consul()?;
        let entry = json!({
            "Node": "n1", "Address": "10.0.0.1", "Service": {"ID": "web-0", "Service": "web"},
        });
        consul.put("/v1/catalog/register", &entry).await?;
        let ids = ["web-0".to_owned()];
        let node = ["/v1/catalog/node/n1?consistent".to_owned()];
        let oracle = Oracle::watch(&consul, "web", &ids, &node).await?;
        let sampled = async || {
            let before = oracle.samples.load(Ordering::Relaxed);
            until("a sample", async || {
                let now = oracle.samples.load(Ordering::Relaxed);
                ensure!(now > before + 1, "{now} samples");
                Ok(())
            })
            .await
        };
        for server in bed.consul_servers() {
            server.kill();
            sampled().await?;
            server.start().await?;
            server.pause()?;
            sampled().await?;
            server.resume()?;
            bed.consul_leader().await?;
        }
        for server in bed.consul_servers() {
            server.kill();
        }
        bed.start_consul().await?;
        sampled().await?;
        oracle.verdict().await?;

        let oracle = Oracle::watch(&consul, "web", &ids, &[]).await?;
        let foreign = Oracle::watch(&consul, "web", &[], &node).await?;
        bed.consul_leader().await?.kill();
        let gone = json!({"Node": "n1", "ServiceID": "web-0"});
        until("it to be gone", async || {
            consul.put("/v1/catalog/deregister", &gone).await
        })
        .await?;
        until("it to be back", async || {
            consul.put("/v1/catalog/register", &entry).await
        })
        .await?;
        for oracle in [oracle, foreign] {
            ensure!(oracle.verdict().await.is_err(), "the oracle is blind");
        }
        Ok(())
    }
}
