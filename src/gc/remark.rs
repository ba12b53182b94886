//! Giving what is on no node another owner where it stands: it is there all the while.

use anyhow::{Context as _, bail};
use tokio::time::sleep;

use super::handed::{Handed, HandedOver};
use super::remove::{ATTEMPTS, PAUSE, replaced};
use super::sure;
use crate::consul::wire::{ConfigEntry, KvPair, ServiceDefaults, ServiceIntentions};
use crate::consul::{
    Client, Consistency, ConsulError, ErrorClass, Fence, Txn, TxnFailure, TxnOp, TxnOutcome,
};
use crate::model::key::Key;
use crate::model::ledger;
use crate::model::marks;
use crate::model::names::{ClusterName, QueryName};
use crate::model::text::{Pairs, Text};
use crate::observed::entries::{Holder, ObservedDefaults, ObservedIntentions};
use crate::plan::entries::Change;
use crate::sync::apply::ReadError;
use crate::sync::carry::{Carried, carry_out};
use crate::sync::pass::Pass;

/// The target of the lines that tell what was handed over: nothing is removed, so that they are not among
/// those of the audit log.
pub const HANDED: &str = "handover";

/// Makes things of one cluster those of another, behind a fence.
pub(super) struct Remarker<'a> {
    client: &'a Client,
    fence: Fence<'a>,
    from: &'a ClusterName,
    to: &'a ClusterName,
    /// How much was handed over.
    pub(super) handed: HandedOver,
    /// What was not handed over, and why.
    pub(super) stayed: Vec<String>,
}

/// What became of one thing.
enum Fate {
    Handed,
    /// There is nothing any more that could be.
    Gone,
    Stayed(String),
}

/// What an attempt came to.
enum Attempt {
    Ended(Fate),
    /// Somebody else was faster: it is read again.
    Outdated,
    /// Consul did not say, and may the next time.
    Unsure(anyhow::Error),
}

/// What a config entry needs, as it stands.
#[derive(Debug, PartialEq)]
enum Need {
    Write(Box<Change>),
    /// It is the other cluster's already.
    Nothing,
    /// It is not there.
    Gone,
    /// It is not the cluster's any more.
    Another(Text),
}

impl<'a> Remarker<'a> {
    pub(super) fn new(
        client: &'a Client,
        fence: Fence<'a>,
        from: &'a ClusterName,
        to: &'a ClusterName,
    ) -> Self {
        Self {
            client,
            fence,
            from,
            to,
            handed: HandedOver::default(),
            stayed: Vec::new(),
        }
    }

    /// Hands one thing over, or says why it stays. Fails where another process took the epoch.
    pub(super) async fn hand(&mut self, handed: &Handed) -> anyhow::Result<()> {
        let key = &handed.key;
        let fate = match key {
            Key::Query(name) => self.query(name, handed.ledger).await,
            key => self.entry(key).await,
        };
        match fate.with_context(|| format!("cannot hand over {key}"))? {
            Fate::Handed => {
                let (from, to) = (self.from, self.to);
                tracing::info!(target: HANDED, %key, %from, %to, "handed over");
                self.handed.add(handed);
            }
            Fate::Gone => {}
            Fate::Stayed(why) => self.stayed.push(format!("{key}: {why}")),
        }
        Ok(())
    }

    /// Puts the mark of the other cluster into a config entry, by compare-and-set.
    async fn entry(&self, key: &Key) -> anyhow::Result<Fate> {
        let pass = Pass::of(self.fence);
        let attempt = async || {
            let change = match self.need(key).await {
                Ok(Need::Write(change)) => change,
                Ok(Need::Nothing) => return Ok(Attempt::Ended(Fate::Handed)),
                Ok(Need::Gone) => return Ok(Attempt::Ended(Fate::Gone)),
                Ok(Need::Another(holder)) => {
                    let why = format!("it changed meanwhile: {holder} has it");
                    return Ok(Attempt::Ended(Fate::Stayed(why)));
                }
                Err(error) => return self.unread(error),
            };
            match carry_out(self.client, self.to, &pass, key, &change).await {
                Ok(Carried::Done(..) | Carried::Unseen(_)) => Ok(Attempt::Ended(Fate::Handed)),
                Ok(Carried::Outdated) => Ok(Attempt::Outdated),
                Ok(Carried::Fenced { what, .. }) => Err(replaced(&what)),
                Ok(Carried::Denied(what)) => Err(self.denied(&what)),
                Ok(Carried::NoEpoch(what)) => {
                    let unread = anyhow::anyhow!("the epoch cannot be read: {what}");
                    Ok(Attempt::Unsure(unread))
                }
                Err(error) => self.failed(error),
            }
        };
        persist(attempt, "somebody else writes it all the time").await
    }

    async fn need(&self, key: &Key) -> Result<Need, ReadError> {
        let consistency = Consistency::Consistent;
        match key {
            Key::Intentions(destination) => {
                let entry = self.client.config_entry(destination.as_ref(), consistency);
                let entry = sure(entry.await)?;
                Ok(of_intentions(entry, self.from, self.to))
            }
            Key::Defaults(service) => {
                let entry = self.client.config_entry(service.as_ref(), consistency);
                let entry = sure(entry.await)?;
                Ok(of_defaults(entry, self.from, self.to))
            }
            _ => Ok(Need::Gone),
        }
    }

    /// Moves the entry of a query from one ledger to the other, as one; the query is not touched.
    async fn query(&self, name: &QueryName, shown: Option<u64>) -> anyhow::Result<Fate> {
        let (old, new) = (ledger::key(self.from, name), ledger::key(self.to, name));
        let mut was_sent = false;
        let attempt = async || {
            let there = async { Ok((self.pair(&old).await?, self.pair(&new).await?)) };
            let fate = match there.await {
                // By this very call: both were seen before, and the new owner may have written it since.
                Ok((None, Some(_))) if was_sent => Fate::Handed,
                Ok((None, _)) => Fate::Gone,
                Ok((Some(_), Some(_))) => Fate::Stayed(noted_twice(&old, &new)),
                Ok((Some(pair), None)) if Some(pair.modify_index) == shown => {
                    was_sent = true;
                    return self.move_entry(&pair, (&old, &new)).await;
                }
                Ok((Some(_), None)) => {
                    Fate::Stayed("its entry in the ledger changed meanwhile".to_owned())
                }
                Err(error) => return self.unread(error),
            };
            Ok(Attempt::Ended(fate))
        };
        persist(attempt, "somebody else writes its entry all the time").await
    }

    async fn move_entry(&self, pair: &KvPair, (old, new): (&str, &str)) -> anyhow::Result<Attempt> {
        let mut txn = Txn::new();
        txn.push(&TxnOp::KvDeleteCas {
            key: old,
            index: pair.modify_index,
        })?;
        txn.push(&TxnOp::KvCas {
            key: new,
            value: &pair.value,
            index: 0,
        })?;
        match self.client.apply_fenced(self.fence, &txn).await {
            Ok(TxnOutcome::Applied(_)) => Ok(Attempt::Ended(Fate::Handed)),
            Ok(TxnOutcome::Fenced { what, .. }) => Err(replaced(&what)),
            Ok(TxnOutcome::RolledBack(errors)) => {
                let mut errors = errors.iter();
                let refused = errors.find(|it| it.reason != TxnFailure::StaleIndex);
                refused.map_or(Ok(Attempt::Outdated), |error| Err(self.denied(&error.what)))
            }
            Err(error) => self.failed(error),
        }
    }

    async fn pair(&self, key: &str) -> Result<Option<KvPair>, ReadError> {
        sure(self.client.kv_get(key, Consistency::Consistent).await)
    }

    /// A read failed.
    fn unread(&self, error: ReadError) -> anyhow::Result<Attempt> {
        match error {
            ReadError::Failed(error) if error.class() == ErrorClass::AccessDenied => {
                Err(self.denied(error.text()))
            }
            error => Ok(Attempt::Unsure(error.into())),
        }
    }

    fn denied(&self, what: &str) -> anyhow::Error {
        let (from, to) = (self.from, self.to);
        anyhow::anyhow!(
            "Consul refuses it: {what}; the token needs what lictor acl-policy prints for {from} and for {to}"
        )
    }

    /// A write failed.
    fn failed(&self, error: ConsulError) -> anyhow::Result<Attempt> {
        match error.class() {
            ErrorClass::AccessDenied => Err(self.denied(error.text())),
            ErrorClass::Refused => {
                let why = format!("Consul refuses it: {}", error.text());
                Ok(Attempt::Ended(Fate::Stayed(why)))
            }
            class if class.may_pass() => Ok(Attempt::Unsure(error.into())),
            _ => bail!(error),
        }
    }
}

/// Tries until it is known what became of a thing, a bounded number of times; `contested` says why it stays
/// where others were faster each time.
async fn persist(
    mut attempt: impl AsyncFnMut() -> anyhow::Result<Attempt>,
    contested: &str,
) -> anyhow::Result<Fate> {
    let mut lost: Option<anyhow::Error> = None;
    for _ in 0..ATTEMPTS {
        match attempt().await? {
            Attempt::Ended(fate) => return Ok(fate),
            Attempt::Outdated => {}
            Attempt::Unsure(error) => {
                lost = Some(error);
                sleep(PAUSE).await;
            }
        }
    }
    match lost {
        Some(lost) => Err(lost.context("Consul does not say whether it is done")),
        None => Ok(Fate::Stayed(contested.to_owned())),
    }
}

/// Why a query stays of which both clusters have an entry in their ledgers.
pub(super) fn noted_twice(old: &str, new: &str) -> String {
    format!(
        "there is an entry {new}, too: where the PreparedQuery is Ready under the new name, remove {old} by \
         hand, else {new}"
    )
}

fn of_intentions(entry: Option<ServiceIntentions>, from: &ClusterName, to: &ClusterName) -> Need {
    let Some(entry) = entry else {
        return Need::Gone;
    };
    let holders = [from, to].map(|name| ObservedIntentions::of(name, entry.clone()).holder);
    let (meta, index) = (remarked(&entry.meta, from, to), entry.modify_index());
    need(
        holders,
        Change::PutIntentions(ServiceIntentions { meta, ..entry }, index),
    )
}

fn of_defaults(entry: Option<ServiceDefaults>, from: &ClusterName, to: &ClusterName) -> Need {
    let Some(entry) = entry else {
        return Need::Gone;
    };
    let holders = [from, to].map(|name| {
        let there = ObservedDefaults::of(name, entry.clone());
        there.map_or(Holder::Nobody, |(_, there)| there.holder)
    });
    let (meta, index) = (remarked(&entry.meta, from, to), entry.modify_index());
    need(
        holders,
        Change::PutDefaults(ServiceDefaults { meta, ..entry }, index),
    )
}

/// What is needed of an entry that is so by the one cluster, and so by the other.
fn need([by_from, by_to]: [Holder; 2], change: Change) -> Need {
    match (by_from, by_to) {
        (Holder::Ours, _) => Need::Write(Box::new(change)),
        (_, Holder::Ours) => Need::Nothing,
        (Holder::Another(holder) | Holder::Incomplete(holder), _) => Need::Another(holder),
        (Holder::Nobody, _) => Need::Another("nobody, by its marks,".into()),
    }
}

/// Meta with the name of one cluster in the place of the other's. All else stays.
fn remarked(meta: &Pairs, from: &ClusterName, to: &ClusterName) -> Pairs {
    let is_mark = |key: &Text, value: &Text| **key == *marks::CLUSTER && **value == *from.as_ref();
    let pair = |(key, value): (&Text, &Text)| {
        let value = if is_mark(key, value) {
            to.as_ref().into()
        } else {
            value.clone()
        };
        (key.clone(), value)
    };
    meta.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names() -> (ClusterName, ClusterName) {
        ("old".parse().unwrap(), "new".parse().unwrap())
    }

    fn intentions(cluster: &str) -> ServiceIntentions {
        let entry = json!({
            "Kind": "service-intentions", "Name": "Payment", "ModifyIndex": 7, "CreateIndex": 3,
            "Sources": [
                {"Name": "web", "Action": "allow", "Type": "consul", "NewField": 1},
                {"Name": "hand", "Action": "deny", "Type": "consul"},
            ],
            "JWT": {"Providers": [{"Name": "idp"}]}, "Unknown": {"a": 1},
            "Meta": {
                "external-source": "kubernetes", "lictor-cluster": cluster, "lictor-jwt": "shop/old",
                "lictor-src-0": "shop/old=web", "lictor-later": "old", "team": "old",
            },
        });
        serde_json::from_value(entry).unwrap()
    }

    #[test]
    fn only_the_clusters_name_differs_afterwards() {
        let (old, new) = names();
        let need = of_intentions(Some(intentions("old")), &old, &new);
        assert_eq!(
            need,
            Need::Write(Box::new(Change::PutIntentions(intentions("new"), 7)))
        );
        let defaults = |cluster: &str| -> ServiceDefaults {
            let entry = json!({
                "Kind": "service-defaults", "Name": "payment", "Protocol": "http", "ModifyIndex": 8,
                "MaxInboundConnections": 9, "Meta": {
                    "external-source": "kubernetes", "lictor-cluster": cluster,
                    "lictor-owner": "ServiceRegistration/shop/old", "lictor-later": "old",
                },
            });
            serde_json::from_value(entry).unwrap()
        };
        let need = of_defaults(Some(defaults("old")), &old, &new);
        assert_eq!(
            need,
            Need::Write(Box::new(Change::PutDefaults(defaults("new"), 8)))
        );
        assert_eq!(
            of_defaults(Some(defaults("new")), &old, &new),
            Need::Nothing
        );
    }

    #[test]
    fn what_is_not_the_clusters_is_not_marked() {
        let (old, new) = names();
        assert_eq!(of_intentions(None, &old, &new), Need::Gone);
        let done = of_intentions(Some(intentions("new")), &old, &new);
        assert_eq!(done, Need::Nothing);
        let is_anothers =
            |entry| matches!(of_intentions(Some(entry), &old, &new), Need::Another(_));
        assert!(is_anothers(intentions("other")));
        let mut bare = intentions("old");
        bare.meta = Pairs::default();
        assert!(is_anothers(bare));
        // Which sources are whose is not known any more.
        let mut spoilt = intentions("old");
        let marks = spoilt
            .meta
            .iter()
            .filter(|(key, _)| key.starts_with("lictor-c"));
        spoilt.meta = marks
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        assert!(is_anothers(spoilt));
    }
}
