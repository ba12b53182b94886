//! `lictor gc`.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use clap::Args;

use super::consul::ConsulFlags;
use super::kubernetes::KubernetesFlags;
use super::run::cluster;
use super::scope::ScopeFlags;
use super::{Failure, complain};
use crate::app::{self, Scope};
use crate::consul::{Client, Fence};
use crate::gc::entries::DoomedEntry;
use crate::gc::remove::{Removed, Remover};
use crate::gc::{Doomed, ask, dead, offline};
use crate::k8s;
use crate::k8s::home::{identity, uid_of};
use crate::model::epoch::{self, EpochKind};
use crate::model::gc::Answer;
use crate::model::names::ClusterName;
use crate::sync::claim::{Claimant, Mandate};
use crate::telemetry::{self, LogFormat};

#[derive(Args, Debug)]
pub(super) struct Gc {
    /// Name of this Kubernetes cluster, whose held removals are shown
    #[arg(long, env = "LICTOR_CLUSTER", value_name = "NAME", value_parser = cluster)]
    cluster: ClusterName,
    /// Shows what this other cluster left, which is dead: its instances, intentions, queries, nodes and keys
    #[arg(long, value_name = "NAME", value_parser = cluster)]
    dead: Option<ClusterName>,
    /// Only shows what would be removed, which is the default
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Removes what is shown
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    scope: ScopeFlags,
    #[command(flatten)]
    kubernetes: KubernetesFlags,
    #[command(flatten)]
    consul: ConsulFlags,
}

impl Gc {
    pub(super) fn execute(self) -> Result<(), Failure> {
        // The audit lines are for whoever keeps them; what is shown goes to standard output.
        telemetry::start("warn,audit=info", LogFormat::Text)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        if self.dead.as_ref() == Some(&self.cluster) {
            let message = "--dead: the cluster that runs this is not dead: name another one";
            return Err(Failure::Usage(message.to_owned()));
        }
        let scope = self.scope.scope()?;
        self.consul.once(async |consul| {
            if let Some(dead) = &self.dead {
                return bury(consul, dead, self.yes).await;
            }
            let held = Held {
                cluster: self.cluster,
                scope,
                kubernetes: self.kubernetes.options(),
                yes: self.yes,
            };
            held.handle(consul).await
        })
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

struct Held {
    cluster: ClusterName,
    scope: Scope,
    kubernetes: k8s::client::ClientOptions,
    yes: bool,
}

impl Held {
    async fn handle(self, consul: &Client) -> anyhow::Result<()> {
        if let Some(answer) = ask::show(consul, &self.cluster, None).await? {
            return self.by_the_writer(consul, answer).await;
        }
        complain("no process of the cluster answers: looking by ourselves");
        self.by_ourselves(consul).await
    }

    async fn by_the_writer(self, consul: &Client, first: Answer) -> anyhow::Result<()> {
        let (holder, epoch) = (first.holder.clone(), first.epoch);
        let (mut shown, mut count) = (first, 0);
        loop {
            for entry in &shown.held {
                say(&format!("{}  {}  {}", entry.key, entry.owner, entry.why))?;
            }
            count += shown.held.len();
            if shown.more == 0 || shown.held.is_empty() {
                break;
            }
            let next = ask::show(consul, &self.cluster, Some(&shown)).await?;
            shown =
                next.with_context(|| format!("{holder} does not answer any more: try again"))?;
            if (&shown.holder, shown.epoch) != (&holder, epoch) {
                bail!("{} writes now: try again", shown.holder);
            }
        }
        if count == 0 {
            return say(&format!("nothing is held ({holder})"));
        }
        if !self.yes {
            return say(&format!("{count} held by {holder}; --yes releases them"));
        }
        let Some(answer) = ask::release(consul, &self.cluster, &shown).await? else {
            bail!("{holder} does not answer any more, and releases nothing: try again");
        };
        if let Some(why) = answer.refused {
            bail!("{} releases nothing: {why}: try again", answer.holder);
        }
        let released = answer.released;
        say(&format!("{released} released, {holder} removes them"))?;
        if released < count {
            let rest = count - released;
            say(&format!("{rest} of those shown are not held any more"))?;
        }
        if answer.more > 0 {
            let more = answer.more;
            say(&format!("{more} that were found meanwhile stay held"))?;
        }
        Ok(())
    }

    async fn by_ourselves(self, consul: &Client) -> anyhow::Result<()> {
        let kube = k8s::client::client(&self.kubernetes)
            .await
            .context("cannot set up Kubernetes access")?;
        // What is read before the epoch is ours may be changed by whoever has it.
        let epoch = if self.yes {
            Some(claim(&kube, consul, &self.cluster, &self.scope).await?)
        } else {
            None
        };
        let found = offline::find(&kube, consul, &self.cluster, &self.scope).await?;
        let offline::Found {
            instances,
            entries,
            owned,
        } = found;
        show(&instances)?;
        show_entries(&self.cluster, &entries)?;
        if instances.is_empty() && entries.is_empty() {
            return say("nothing is in Consul that Kubernetes does not claim");
        }
        let count = instances.len() + entries.iter().map(|it| it.gone.len()).sum::<usize>();
        let Some(index) = epoch else {
            return say(&format!(
                "{count} of {owned} are claimed by nothing; --yes removes them"
            ));
        };
        let key = epoch::key(&self.cluster);
        let fence = Fence { key: &key, index };
        let mut remover = Remover::new(consul, fence, "no object claims it");
        let done = async {
            remover.instances(&instances).await?;
            remover.entries(&self.cluster, &entries).await
        };
        let done = done.await;
        say(&format!("removed: {}", remover.removed))?;
        done.and(judge(&remover.stayed))
    }
}

async fn claim(
    kube: &kube::Client,
    consul: &Client,
    cluster: &ClusterName,
    scope: &Scope,
) -> anyhow::Result<u64> {
    let uid = uid_of(kube, &identity(&scope.namespaces))
        .await?
        .to_string();
    let claimant = Claimant {
        cluster: cluster.clone(),
        epoch: app::epoch_of(uid, scope.of_epoch(), EpochKind::Gc),
        take_over: None,
    };
    let mandate = Mandate::unopposed();
    Ok(claimant.claim(consul, None, &mandate).await?.index)
}

async fn bury(consul: &Client, dead: &ClusterName, yes: bool) -> anyhow::Result<()> {
    let estate = dead::find(consul, dead).await?;
    show(&estate.instances)?;
    show_entries(dead, &estate.entries)?;
    for name in &estate.nodes {
        say(&format!("{name}  node"))?;
    }
    for (key, _) in &estate.keys {
        say(&format!("{key}  key"))?;
    }
    for (name, why) in &estate.kept {
        say(&format!("{name}  stays: {why}"))?;
    }
    if estate.foreign > 0 {
        let foreign = estate.foreign;
        say(&format!("{foreign} entries of others on its nodes stay"))?;
    }
    let mut removed = Removed {
        instances: estate.instances.len(),
        nodes: estate.nodes.len(),
        keys: estate.keys.len(),
        ..Removed::default()
    };
    removed.add(&estate.entries);
    if removed == Removed::default() {
        return say(&format!("nothing is left of {dead}"));
    }
    if !yes {
        return say(&format!("{removed} of {dead}; --yes removes them"));
    }
    let epoch = dead::take_epoch(consul, dead, app::holder(), complain).await?;
    let (outcome, done) = estate.remove(consul, epoch).await;
    say(&format!("removed: {} of {dead}", outcome.removed))?;
    done.and(judge(&outcome.stayed))
}

fn show(doomed: &[Doomed]) -> anyhow::Result<()> {
    for Doomed { key, owner, .. } in doomed {
        say(&format!("{key}  {owner}"))?;
    }
    Ok(())
}

fn show_entries(cluster: &ClusterName, doomed: &[DoomedEntry]) -> anyhow::Result<()> {
    for doomed in doomed {
        for (key, owner) in &doomed.gone {
            say(&format!("{key}  {owner}"))?;
        }
        if let Some(key) = doomed.ledger(cluster) {
            say(&format!("{key}  key"))?;
        }
    }
    Ok(())
}

/// Says what stayed.
fn judge(stayed: &[String]) -> anyhow::Result<()> {
    for text in stayed {
        say(&format!("stayed: {text}"))?;
    }
    if stayed.is_empty() {
        return Ok(());
    }
    bail!(
        "{} entries stayed: look at why, and try again",
        stayed.len()
    )
}
