//! A reader that looks at Consul all the time, and does not miss what comes and goes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use lictor_testbed::ConsulApi;
use serde_json::Value;
use tokio::task::JoinHandle;

const PAUSE: Duration = Duration::from_millis(20);

/// Samples Consul until it is asked for its verdict.
///
/// A sample that Consul does not answer, while it is down, says nothing.
#[derive(Debug)]
pub struct Oracle {
    stop: Arc<AtomicBool>,
    samples: Arc<AtomicU64>,
    task: JoinHandle<Vec<String>>,
}

impl Oracle {
    /// Watches that the instances of these ids stay under the service, with the same `CreateIndex`
    /// and passing, and that what these paths give stays the same to the byte.
    pub async fn watch(
        consul: &ConsulApi,
        service: &str,
        ids: &[String],
        foreign: &[String],
    ) -> Result<Self> {
        let mut first = Vec::new();
        for path in foreign {
            first.push((path.clone(), consul.get(path).await?));
        }
        let (service, ids) = (service.to_owned(), ids.to_vec());
        let mut created = Vec::new();
        let health = consul.health(&service).await?;
        for id in ids {
            let index = create_index(&health, &id);
            ensure!(index.is_some(), "{id} is not there to begin with");
            created.push((id, index));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let samples = Arc::new(AtomicU64::new(0));
        let (asked_to_stop, count) = (stop.clone(), samples.clone());
        let consul = consul.clone();
        let task = tokio::spawn(async move {
            let mut faults = Vec::new();
            while !asked_to_stop.load(Ordering::Relaxed) {
                if let Ok(health) = consul.health(&service).await {
                    count.fetch_add(1, Ordering::Relaxed);
                    for (id, index) in &created {
                        let now = create_index(&health, id);
                        if now != *index {
                            faults.push(format!("{id}: CreateIndex {index:?}, then {now:?}"));
                        }
                    }
                }
                for (path, before) in &first {
                    if let Ok(Some(now)) = consul.find(path).await
                        && now != *before
                    {
                        faults.push(format!("{path}: {before}, then {now}"));
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
            faults
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

fn create_index(health: &[Value], id: &str) -> Option<u64> {
    let found = health
        .iter()
        .find(|instance| instance["Service"]["ID"] == id);
    found.and_then(|instance| instance["Service"]["CreateIndex"].as_u64())
}
