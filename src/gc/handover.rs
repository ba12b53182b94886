//! What a cluster left that was renamed: intentions, prepared queries and defaults of services become those
//! of its new name where they stand, and an instance goes once its copy under the new name passes.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::{Instant, sleep};

use super::ask;
use super::copies::{Copies, CopyHealth, id_of_copy};
use super::dead::{self, Estate, Outcome};
use super::findings::DEAD;
use super::handed::{Handed, HandedOver};
use super::remark::{Remarker, noted_twice};
use super::remove::Remover;
use super::{Doomed, sure};
use crate::consul::{Client, Consistency, Fence};
use crate::model::epoch::{self, Epoch};
use crate::model::key::Key;
use crate::model::ledger;
use crate::model::names::{ClusterName, InstanceId, QueryName};

/// How long copies may take to pass.
const PATIENCE: Duration = Duration::from_mins(2);
/// How often they are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// All that a cluster left, and the name that it has now.
#[derive(Debug)]
pub struct HandOver {
    /// What goes.
    pub estate: Estate,
    /// The name that the cluster has now.
    pub to: ClusterName,
    /// What becomes that one's.
    pub handed: Vec<Handed>,
    copies: Copies,
}

/// Reads what a cluster has in Consul, and how it is to become that of its new name.
pub async fn find(
    client: &Client,
    cluster: &ClusterName,
    to: &ClusterName,
) -> anyhow::Result<HandOver> {
    let mut estate = dead::find(client, cluster).await?;
    let prefix = ledger::prefix(to);
    let noted = client.kv_list(&prefix, Consistency::Consistent);
    let noted = sure(noted.await).with_context(|| format!("cannot list {prefix} in Consul"))?;
    let is_noted = |name: &QueryName| {
        let key = ledger::key(to, name);
        noted.iter().any(|pair| *pair.key == *key)
    };
    let handed = split(&mut estate, to, is_noted);
    let copies = Copies::read(client, to, &estate.instances).await;
    let copies = copies.with_context(|| format!("cannot read the health of {to}'s instances"))?;
    let handover = HandOver {
        estate,
        to: to.clone(),
        handed,
        copies,
    };
    if !handover.handed.is_empty() || !handover.estate.instances.is_empty() {
        handover.verify_names(client).await?;
    }
    Ok(handover)
}

/// Whether both names are of one Kubernetes cluster, as far as is known: another one claims nothing of what
/// it is given, and removes it.
fn fits(
    (cluster, before): (&ClusterName, Option<&Epoch>),
    (to, now): (&ClusterName, Option<&Epoch>),
) -> Result<(), String> {
    let Some(now) = now else {
        return Err(format!(
            "no Lictor has run as {to} in this Consul: is the name right? Start it with --cluster {to} \
             before"
        ));
    };
    let Some(before) = before.filter(|before| !before.uid.is_empty()) else {
        return Err(format!(
            "for which Kubernetes cluster {cluster} ran is not known, since its epoch in Consul is lost: {to} \
             would remove what it does not know. Start lictor once with --cluster {cluster}, or leave --hand-to \
             out, to remove what {cluster} left"
        ));
    };
    if (&before.uid, &before.scope) == (&now.uid, &now.scope) {
        return Ok(());
    }
    Err(format!(
        "{cluster} ran for {}, and {to} runs for {}: it would remove what it does not know; run {to} for \
         the same, or leave --hand-to out, to remove what {cluster} left",
        ran_for(before),
        ran_for(now)
    ))
}

fn ran_for(epoch: &Epoch) -> String {
    let uid = &epoch.uid;
    match epoch.scope.as_slice() {
        [] => format!("all namespaces of the Kubernetes cluster {uid}"),
        scope => format!("the namespaces {} ({uid})", scope.join(", ")),
    }
}

/// Takes what is handed over out of what goes. Of a query only its entry in the ledger may be left: that
/// goes.
fn split(
    estate: &mut Estate,
    to: &ClusterName,
    is_noted: impl Fn(&QueryName) -> bool,
) -> Vec<Handed> {
    let marked = std::mem::take(&mut estate.marked).into_iter();
    let mut handed: Vec<Handed> = marked.map(Handed::bare).collect();
    for doomed in std::mem::take(&mut estate.entries) {
        match &doomed.key {
            Key::Query(name) if !doomed.gone.is_empty() && is_noted(name) => {
                let old = ledger::key(&estate.cluster, name);
                let why = noted_twice(&old, &ledger::key(to, name));
                estate.kept.push((doomed.key.to_string(), why));
            }
            _ if doomed.gone.is_empty() => estate.entries.push(doomed),
            _ => handed.push(Handed::from(doomed)),
        }
    }
    handed
}

impl HandOver {
    /// Makes sure that both names are of one Kubernetes cluster.
    async fn verify_names(&self, client: &Client) -> anyhow::Result<()> {
        let (cluster, to) = (&self.estate.cluster, &self.to);
        let epoch = async |name: &ClusterName| -> anyhow::Result<Option<Epoch>> {
            let there = dead::epoch_of(client, name).await?;
            Ok(there.map(|there| there.epoch))
        };
        let (before, now) = (epoch(cluster).await?, epoch(to).await?);
        if let Err(why) = fits((cluster, before.as_ref()), (to, now.as_ref())) {
            bail!("--hand-to {to}: {why}");
        }
        Ok(())
    }

    /// Makes sure that the new name is kept true by somebody: of one that does not run, copies pass for ever.
    ///
    /// # Errors
    ///
    /// Nobody answers, or nobody can be asked.
    pub async fn verify_runs(&self, client: &Client) -> anyhow::Result<()> {
        let to = &self.to;
        let answer = ask::show(client, to, None).await.with_context(|| {
            format!(
                "the Lictor of {to} cannot be asked whether it runs; the token needs what lictor acl-policy prints \
                 for {} and for {to}",
                self.estate.cluster
            )
        })?;
        answer.map(drop).with_context(|| {
            format!(
                "no Lictor of {to} answers: start it with --cluster {to}, wait until its ServiceRegistrations are \
                 Ready, and try again"
            )
        })
    }

    /// The copy of an instance, and how it stood when all was read.
    #[must_use]
    pub fn copy_of(&self, doomed: &Doomed) -> Option<(InstanceId, CopyHealth)> {
        self.stands(doomed, &self.copies)
    }

    fn stands(&self, doomed: &Doomed, copies: &Copies) -> Option<(InstanceId, CopyHealth)> {
        let id = id_of_copy(&doomed.key.id, &self.estate.cluster, &self.to)?;
        let health = copies.of(&doomed.service, &id);
        Some((id, health))
    }

    /// How much is handed over.
    #[must_use]
    pub fn count(&self) -> HandedOver {
        let mut count = HandedOver::default();
        for handed in &self.handed {
            count.add(handed);
        }
        count
    }

    /// Hands over what was shown, first what is on no node, then removes what goes: instances as their copies
    /// pass, nodes that are empty, keys, the epoch last. Tells what became of it also where it fails half-way;
    /// what is left can be handed over by another call.
    pub async fn carry_out(
        &self,
        client: &Client,
        epoch: u64,
        say: impl Fn(&str),
    ) -> (HandedOver, Outcome, anyhow::Result<()>) {
        let key = epoch::key(&self.estate.cluster);
        let fence = Fence {
            key: &key,
            index: epoch,
        };
        let why = format!("its copy of the cluster {} passes", self.to);
        let mut remover = Remover::new(client, fence, DEAD);
        let mut remarker = Remarker::new(client, fence, &self.estate.cluster, &self.to);
        let done = async {
            // A minute and a question lie between.
            self.verify_names(client).await?;
            self.verify_runs(client).await?;
            for handed in &self.handed {
                remarker.hand(handed).await?;
            }
            remover.stayed.append(&mut remarker.stayed);
            remover.why = &why;
            self.instances(client, &mut remover, say).await?;
            remover.why = DEAD;
            self.rest(client, &mut remover).await
        };
        let done = done.await;
        remover.stayed.append(&mut remarker.stayed);
        (remarker.handed, remover.into(), done)
    }

    /// Removes each instance once its copy passes.
    async fn instances(
        &self,
        client: &Client,
        remover: &mut Remover<'_>,
        say: impl Fn(&str),
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut left = self.estate.instances.clone();
        let mut told = false;
        loop {
            let looked = Instant::now();
            let copies = match Copies::read(client, &self.to, &left).await {
                Ok(copies) => copies,
                Err(error) if began.elapsed() < PATIENCE => {
                    say(&format!(
                        "the health of the copies cannot be read: {error:#}"
                    ));
                    sleep(LOOK.max(looked.elapsed())).await;
                    continue;
                }
                Err(error) => {
                    let what = format!("cannot read the health of {}'s instances", self.to);
                    return Err(anyhow::Error::from(error).context(what));
                }
            };
            let took = looked.elapsed();
            let passes = |doomed: &Doomed| {
                let copy = self.stands(doomed, &copies);
                copy.is_some_and(|(_, health)| health == CopyHealth::Passing)
            };
            let (ready, waiting): (Vec<_>, Vec<_>) = left.into_iter().partition(passes);
            remover.instances(&ready).await?;
            if waiting.is_empty() {
                return Ok(());
            }
            if began.elapsed() >= PATIENCE {
                let stays = waiting.iter().filter_map(|doomed| {
                    let (id, health) = self.stands(doomed, &copies)?;
                    Some(format!("{}: {}", doomed.key, health.tell(&id)))
                });
                remover.stayed.extend(stays);
                return Ok(());
            }
            if !std::mem::replace(&mut told, true) {
                let (count, seconds) = (waiting.len(), PATIENCE.as_secs());
                say(&format!(
                    "waiting for up to {seconds} s until {count} copies of {} pass ...",
                    self.to
                ));
            }
            left = waiting;
            // No more than half of the time Consul is asked.
            sleep(LOOK.max(took)).await;
        }
    }

    /// Removes all else. The keys stay while anything does.
    async fn rest(&self, client: &Client, remover: &mut Remover<'_>) -> anyhow::Result<()> {
        let estate = &self.estate;
        remover.entries(&estate.cluster, &estate.entries).await?;
        estate.remove_nodes(client, remover).await?;
        if remover.stayed.is_empty() {
            return estate.remove_keys(client, remover).await;
        }
        let cluster = &estate.cluster;
        let keys = format!("lictor/v1/{cluster}/: its keys go when nothing else stays");
        remover.stayed.push(keys);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gc::entries::DoomedEntry;
    use crate::model::epoch::fixtures::epoch;
    use crate::model::owner::Owner;
    use crate::plan::entries::Change;

    fn refused(before: Option<&Epoch>, now: Option<&Epoch>) -> Option<String> {
        let (cluster, to) = ("old".parse().unwrap(), "new".parse().unwrap());
        fits((&cluster, before), (&to, now)).err()
    }

    #[test]
    fn only_what_runs_for_the_same_is_handed_anything() {
        let one = epoch("u1", &[]);
        assert_eq!(refused(Some(&one), Some(&epoch("u1", &[]))), None);
        // What was known of the old one was removed, or was never there.
        for unknown in [None, Some(&epoch("", &[]))] {
            let unknown = refused(unknown, Some(&one)).unwrap();
            assert!(unknown.contains("--cluster old"), "{unknown}");
        }
        let never = refused(Some(&one), None).unwrap();
        assert!(never.contains("--cluster new"), "{never}");
        let other = refused(Some(&one), Some(&epoch("u2", &[]))).unwrap();
        assert!(other.contains("u1") && other.contains("u2"), "{other}");
        let less = refused(Some(&one), Some(&epoch("u1", &["shop"]))).unwrap();
        assert!(less.contains("the namespaces shop"), "{less}");
    }

    fn query(name: &str, gone: bool) -> DoomedEntry {
        let key = Key::Query(QueryName::new(name));
        let owner = Owner::prepared_query(&"shop".into(), &name.into());
        let mut changes = vec![Change::DeleteLedger(9)];
        if gone {
            changes.insert(0, Change::DeleteQuery("1".into(), 7));
        }
        DoomedEntry {
            gone: gone.then(|| (key.clone(), owner)).into_iter().collect(),
            key,
            changes,
        }
    }

    #[test]
    fn of_a_query_the_entry_in_the_ledger_is_handed_over_where_the_new_name_has_none() {
        let mut estate = Estate::empty(&"old".parse().unwrap());
        let all = [query("one", true), query("left", false), query("two", true)];
        estate.entries = all.into();
        let noted = ["two", "left"].map(QueryName::new);
        let handed = split(&mut estate, &"new".parse().unwrap(), |name| {
            noted.contains(name)
        });
        assert_eq!(handed.len(), 1);
        assert_eq!(handed[0].key.to_string(), "query/one");
        assert_eq!(handed[0].ledger, Some(9));
        assert_eq!(estate.entries.len(), 1);
        assert_eq!(estate.entries[0].key.to_string(), "query/left");
        let (kept, why) = &estate.kept[0];
        assert_eq!(kept, "query/two");
        assert!(why.contains("lictor/v1/new/query/two"), "{why}");
    }
}
