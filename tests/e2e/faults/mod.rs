//! Everything that fails, under the eyes of the oracle.
//!
//! Tests that stop servers have beds of their own, and those one after the other: [`alone`] with one
//! Consul server, [`three`] with three and ACLs. Where only connections or `lictor` itself fail, the
//! shared bed does.

mod access;
mod away;
#[cfg(target_os = "linux")]
mod clock;
mod clusters;
mod consul;
mod crd;
mod critical;
mod entries;
mod kubernetes;
mod leader;
mod network;
mod pace;
mod process;
mod quorum;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::BedOptions;
use serde_json::json;
use tokio::sync::MutexGuard;

use crate::support::{Annotated as _, Installed, Instance, Lictor, Scene, Turns, until};

/// A bed for faults, with all its servers running, for one test at a time.
pub async fn alone() -> Result<(MutexGuard<'static, ()>, &'static Installed)> {
    static BEDS: Turns<2> = Turns::new();
    let (guard, installed) = BEDS.take(Installed::start).await?;
    // A test may have failed half-way.
    installed.bed.mend().await?;
    Ok((guard, installed))
}

/// A bed with three Consul servers and ACLs, with a leader, for one test at a time.
pub(crate) async fn three() -> Result<(MutexGuard<'static, ()>, &'static Installed)> {
    static BEDS: Turns<2> = Turns::new();
    let start = || {
        let options = BedOptions {
            consul_servers: 3,
            consul_acls: true,
            ..BedOptions::default()
        };
        Installed::with(options)
    };
    let (guard, installed) = BEDS.take(start).await?;
    installed.bed.mend().await?;
    installed.bed.consul_leader().await?;
    Ok((guard, installed))
}

/// Some pods of a service, registered, and one hand-made entry beside them.
async fn settle(scene: &Scene, names: &[&str]) -> Result<Vec<String>> {
    for name in names {
        scene
            .pod(name)
            .lictor("service", "web")
            .create_ready(&scene.client)
            .await?;
    }
    for name in names {
        scene.status("web", name, "passing").await?;
    }
    let entry = json!({
        "Node": format!("hand-{}", scene.cluster), "Address": "10.88.0.1",
        "Service": {"ID": "hand", "Service": "web", "Port": 1, "Tags": ["mine"]},
        "Check": {"CheckID": "hand", "Name": "mine", "ServiceID": "hand", "Status": "critical"},
    });
    scene.by_hand(&entry).await?;
    Ok(names.iter().map(|name| scene.id("web", name)).collect())
}

/// What another hand wrote, which must stay as it is.
fn foreign(scene: &Scene) -> Vec<String> {
    let node = format!("hand-{}", scene.cluster);
    ["catalog", "health"]
        .map(|api| format!("/v1/{api}/node/{node}?consistent"))
        .into()
}

async fn not_ready(lictor: &Lictor, text: &str) -> Result<()> {
    until("it to say why it is not ready", async || {
        let (status, body) = lictor.http("/readyz").await?;
        ensure!(status == 503 && body.contains(text), "{status}: {body}");
        Ok(())
    })
    .await
}

/// It is ready, and says what is wrong all the same.
async fn ready_but(lictor: &Lictor, text: &str) -> Result<()> {
    until("it to say what is wrong", async || {
        let (status, body) = lictor.http("/readyz").await?;
        ensure!(status == 200 && body.contains(text), "{status}: {body}");
        Ok(())
    })
    .await
}

/// Pods of the service `web` that come, change and go, and how Consul must show them in the end.
struct Churn<'a> {
    scene: &'a Scene,
    turns: usize,
    /// Status and tag of each pod that is there; the names sort by age.
    want: BTreeMap<String, (&'static str, String)>,
    /// Pods that stay as they are.
    stay: Vec<String>,
}

impl<'a> Churn<'a> {
    /// Beside pods that [`settle`] made.
    fn beside(scene: &'a Scene, stay: &[&str]) -> Self {
        Self {
            scene,
            turns: 0,
            want: BTreeMap::new(),
            stay: stay.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    async fn turns(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            self.turn().await?;
        }
        Ok(())
    }

    /// One change: two pods of five turns come, one fails, one gets another tag, and one goes.
    async fn turn(&mut self) -> Result<()> {
        let (scene, turn) = (self.scene, self.turns);
        self.turns += 1;
        let pick = |from_last: usize| self.want.keys().rev().nth(from_last).cloned();
        match turn % 5 {
            2 => {
                let name = pick(1).context("nobody to fail")?;
                scene.pod(&name).not_ready(&scene.client, "app").await?;
                if let Some((status, _)) = self.want.get_mut(&name) {
                    *status = "critical";
                }
            }
            3 => {
                let name = pick(0).context("nobody to change")?;
                let tag = format!("t{turn}");
                scene.annotate(&name, &[("tags", Some(&tag))]).await?;
                if let Some((_, known)) = self.want.get_mut(&name) {
                    *known = tag;
                }
            }
            4 if self.want.len() > 3 => {
                let (name, _) = self.want.pop_first().context("nobody to go")?;
                scene.pod(&name).finish_deletion(&scene.client).await?;
            }
            _ => {
                let name = format!("turn-{turn:04}");
                let pod = scene.pod(&name).lictor("service", "web");
                let pod = pod.lictor("tags", "new");
                pod.create_ready(&scene.client).await?;
                self.want.insert(name, ("passing", "new".to_owned()));
            }
        }
        Ok(())
    }

    /// Waits until Consul shows what it must, and nothing else of this cluster.
    async fn exact(&self) -> Result<()> {
        let mut want: Vec<_> = self.stay.iter().map(|name| (name, "passing", "")).collect();
        for (name, (status, tag)) in &self.want {
            want.push((name, status, tag));
        }
        let id = |(name, status, tag): &(&String, &str, &str)| {
            format!("{} {status} {tag}", self.scene.id("web", name))
        };
        let mut want: Vec<String> = want.iter().map(id).collect();
        want.sort();
        until("Consul to be exact", async || {
            let prefix = format!("lictor-{}-", self.scene.cluster);
            let all = self.scene.consul.health("web").await?;
            let ours = all.iter().map(Instance::of);
            let ours = ours.filter(|instance| instance.node.starts_with(&prefix));
            let shown = |seen: Instance| {
                ensure!(seen.node_status == "passing", "{seen:#?}");
                Ok(format!(
                    "{} {} {}",
                    seen.id,
                    seen.status,
                    seen.tags.join(",")
                ))
            };
            let mut seen = ours.map(shown).collect::<Result<Vec<_>>>()?;
            seen.sort();
            let lacking: Vec<_> = want.iter().filter(|one| !seen.contains(one)).collect();
            let more: Vec<_> = seen.iter().filter(|one| !want.contains(one)).collect();
            ensure!(seen == want, "lacking: {lacking:?}, more: {more:?}");
            Ok(())
        })
        .await
    }
}
