//! The writes of what is on no node: one call each, or a few in a row, since none of it can be in a
//! transaction with the epoch.
//!
//! The epoch is read directly before instead: between that read and the write, a few milliseconds,
//! another process may take it. What is written then has the index that it was planned with, or is
//! read directly before.

use std::collections::BTreeMap;

use super::apply::ReadError;
use crate::consul::wire::{self, ConfigEntry};
use crate::consul::{
    Client, Consistency, ConsulError, ErrorClass, Fence, Observed, Quality, Txn, TxnError,
    TxnFailure, TxnOp, TxnOutcome, TxnResult,
};
use crate::model::key::{Key, Table};
use crate::model::ledger::{self, Ledger};
use crate::model::names::{ClusterName, Destination, QueryName, ServiceName};
use crate::model::text::Text;
use crate::observed::entries::{
    ObservedDefaults, ObservedIntentions, ObservedQuery, destination_of, queries,
};
use crate::observed::table::Knowledge;
use crate::plan::entries::Change;

/// All entries of one table.
#[derive(Debug)]
pub enum Rows {
    /// Defaults of services.
    Defaults(BTreeMap<ServiceName, ObservedDefaults>),
    /// Intentions of destinations.
    Intentions(BTreeMap<Destination, ObservedIntentions>),
    /// Prepared queries and their ledger.
    Queries(BTreeMap<QueryName, ObservedQuery>),
}

/// What became of a write that Consul answered.
#[derive(Debug)]
pub enum Carried {
    /// It was done: what stands there now, and the raft index of that.
    Done(Row, u64),
    /// What it was planned with is not what is there.
    Outdated,
    /// Another process took the epoch, or it may not be read.
    Fenced {
        /// What Consul said.
        what: String,
        /// What that means.
        reason: TxnFailure,
    },
    /// The token may not write it.
    Denied(String),
    /// Whether the epoch still holds cannot be read.
    NoEpoch(String),
}

/// What stands under a key after a write.
#[derive(Debug)]
pub enum Row {
    /// Defaults of a service.
    Defaults(Option<ObservedDefaults>),
    /// Intentions of a destination.
    Intentions(Option<ObservedIntentions>),
    /// An entry of the ledger, with its index.
    Ledger(Option<(Ledger, u64)>),
    /// A query.
    Query(Option<wire::PreparedQuery>),
}

/// Carries out a change behind the epoch with this index.
pub async fn carry_out(
    client: &Client,
    cluster: &ClusterName,
    fence: Fence<'_>,
    key: &Key,
    change: &Change,
) -> Result<Carried, ConsulError> {
    if let (Key::Query(name), Change::PutLedger(..) | Change::DeleteLedger(_)) = (key, change) {
        return note(client, fence, &ledger::key(cluster, name), change).await;
    }
    if let Some(fenced) = fenced(client, fence).await? {
        return Ok(fenced);
    }
    match change {
        Change::PutDefaults(entry, index) => put(client, entry, *index).await.map(|there| {
            done(there, |entry| {
                let entry = entry.and_then(|entry| ObservedDefaults::of(cluster, entry));
                Row::Defaults(entry.map(|(_, there)| there))
            })
        }),
        Change::PutIntentions(entry, index) => put(client, entry, *index).await.map(|there| {
            done(there, |entry| {
                Row::Intentions(entry.map(|entry| ObservedIntentions::of(cluster, entry)))
            })
        }),
        Change::DeleteDefaults(index) => {
            let name = name_of(key);
            let gone = client.delete_config_entry::<wire::ServiceDefaults>(&name, *index);
            Ok(removed(gone.await?, Row::Defaults(None)))
        }
        Change::DeleteIntentions(index) => {
            let name = name_of(key);
            let gone = client.delete_config_entry::<wire::ServiceIntentions>(&name, *index);
            Ok(removed(gone.await?, Row::Intentions(None)))
        }
        Change::CreateQuery(query) => {
            let id = client.create_query(query).await?;
            read_query(client, &id).await
        }
        Change::UpdateQuery(query, index) => {
            if !is_still(client, &query.id, *index).await? {
                return Ok(Carried::Outdated);
            }
            match client.update_query(query).await {
                Err(error) if error.class() == ErrorClass::NotFound => Ok(Carried::Outdated),
                Err(error) => Err(error),
                Ok(()) => read_query(client, &query.id).await,
            }
        }
        Change::DeleteQuery(id, index) => {
            if !is_still(client, id, *index).await? {
                return Ok(Carried::Outdated);
            }
            match client.delete_query(id).await {
                Err(error) if error.class() != ErrorClass::NotFound => Err(error),
                _ => Ok(Carried::Done(Row::Query(None), 0)),
            }
        }
        Change::PutLedger(..) | Change::DeleteLedger(_) => Ok(Carried::Outdated),
    }
}

/// Reads the epoch directly before a write; gives what becomes of the write where it does not hold.
pub async fn fenced(client: &Client, fence: Fence<'_>) -> Result<Option<Carried>, ConsulError> {
    let epoch = client.kv_get(fence.key, Consistency::Consistent).await?;
    let quality = epoch.quality;
    Ok(match epoch.authoritative() {
        Some(Some(pair)) if pair.modify_index == fence.index => None,
        Some(pair) => Some(replaced(fence.index, pair.map(|pair| pair.modify_index))),
        None => Some(Carried::NoEpoch(
            ReadError::NotAuthoritative(quality).to_string(),
        )),
    })
}

fn name_of(key: &Key) -> Text {
    match key {
        Key::Defaults(service) => service.text().clone(),
        Key::Intentions(destination) => destination.text().clone(),
        Key::Query(name) => name.text().clone(),
        Key::Source(source) => source.destination.text().clone(),
        Key::Node(node) => node.text().clone(),
        Key::Instance(instance) => instance.id.text().clone(),
    }
}

/// What was written, as it is now; `None` where the index was another.
async fn put<E: ConfigEntry>(
    client: &Client,
    entry: &E,
    index: u64,
) -> Result<Option<Option<E>>, ConsulError> {
    if !client.put_config_entry(entry, index).await? {
        return Ok(None);
    }
    // The answer says neither what is stored nor at which index.
    let there = client
        .config_entry::<E>(entry.name(), Consistency::Consistent)
        .await?;
    Ok(Some(there.value))
}

fn done<E: ConfigEntry>(there: Option<Option<E>>, row: impl FnOnce(Option<E>) -> Row) -> Carried {
    let Some(there) = there else {
        return Carried::Outdated;
    };
    let index = there.as_ref().map_or(0, ConfigEntry::modify_index);
    Carried::Done(row(there), index)
}

fn removed(gone: bool, row: Row) -> Carried {
    if gone {
        Carried::Done(row, 0)
    } else {
        Carried::Outdated
    }
}

/// Queries know no compare-and-set.
async fn is_still(client: &Client, id: &str, index: u64) -> Result<bool, ConsulError> {
    let there = client.query(id, Consistency::Consistent).await?;
    Ok(there.value.is_some_and(|there| there.modify_index == index))
}

async fn read_query(client: &Client, id: &str) -> Result<Carried, ConsulError> {
    let there = client.query(id, Consistency::Consistent).await?.value;
    let index = there.as_ref().map_or(0, |there| there.modify_index);
    Ok(Carried::Done(Row::Query(there), index))
}

async fn note(
    client: &Client,
    fence: Fence<'_>,
    key: &str,
    change: &Change,
) -> Result<Carried, ConsulError> {
    let mut txn = Txn::new();
    let value;
    let op = match change {
        Change::PutLedger(entry, index) => {
            value = serde_json::to_vec(entry).unwrap_or_default();
            TxnOp::KvCas {
                key,
                value: &value,
                index: *index,
            }
        }
        Change::DeleteLedger(index) => TxnOp::KvDeleteCas { key, index: *index },
        _ => return Ok(Carried::Outdated),
    };
    if txn.push(&op).is_err() {
        return Ok(Carried::Outdated);
    }
    match client.apply_fenced(fence, &txn).await? {
        TxnOutcome::Applied(results) => {
            let index = results.iter().find_map(|result| match result {
                TxnResult::Kv(pair) => Some(pair.modify_index),
                _ => None,
            });
            let index = index.unwrap_or_default();
            let row = match change {
                Change::PutLedger(entry, _) => Some((entry.clone(), index)),
                _ => None,
            };
            Ok(Carried::Done(Row::Ledger(row), index))
        }
        TxnOutcome::RolledBack(errors) => {
            let is_denied = |error: &&TxnError| error.reason == TxnFailure::PermissionDenied;
            let denied = errors.iter().find(is_denied);
            Ok(denied.map_or(Carried::Outdated, |error| {
                Carried::Denied(error.what.to_string())
            }))
        }
        TxnOutcome::Fenced { what, reason } => Ok(Carried::Fenced {
            what: what.into(),
            reason,
        }),
    }
}

fn replaced(expected: u64, current: Option<u64>) -> Carried {
    match current {
        None => Carried::Fenced {
            what: "the epoch is not there".to_owned(),
            reason: TxnFailure::Missing,
        },
        Some(current) => Carried::Fenced {
            what: format!("the epoch has the index {current} and not {expected}"),
            reason: TxnFailure::FailedIndexCheck { current, expected },
        },
    }
}

/// Reads a whole table, and how whole it is.
pub async fn read_table(
    client: &Client,
    cluster: &ClusterName,
    table: Table,
) -> Result<(Rows, Knowledge), ReadError> {
    // Whoever looks at the token may not have come to it yet: without that a read says nothing.
    if !client.is_token_verified() {
        client.check_token().await?;
    }
    match table {
        Table::Defaults => {
            let answer = client
                .config_entries::<wire::ServiceDefaults>(Consistency::Consistent)
                .await?;
            let (entries, knowledge) = known(table, answer)?;
            let rows = entries.into_iter();
            let rows = rows.filter_map(|entry| ObservedDefaults::of(cluster, entry));
            Ok((Rows::Defaults(rows.collect()), knowledge))
        }
        Table::Intentions => {
            let answer = client
                .config_entries::<wire::ServiceIntentions>(Consistency::Consistent)
                .await?;
            let (entries, knowledge) = known(table, answer)?;
            let rows = entries.into_iter().map(|entry| {
                (
                    destination_of(&entry),
                    ObservedIntentions::of(cluster, entry),
                )
            });
            Ok((Rows::Intentions(rows.collect()), knowledge))
        }
        Table::Queries => {
            // The ledger first: a query that is created meanwhile is then at worst nobody's, and its
            // note is read the next time.
            let prefix = ledger::prefix(cluster);
            let ledger = client.kv_list(&prefix, Consistency::Consistent).await?;
            let (ledger, noted) = known(table, ledger)?;
            let answer = client.queries(Consistency::Consistent).await?;
            let (found, knowledge) = known(table, answer)?;
            let knowledge = if noted == Knowledge::Whole {
                knowledge
            } else {
                noted
            };
            Ok((Rows::Queries(queries(cluster, found, ledger)), knowledge))
        }
    }
}

fn known<T>(table: Table, answer: Observed<T>) -> Result<(T, Knowledge), ReadError> {
    match answer.quality {
        Quality::Authoritative => Ok((answer.value, Knowledge::Whole)),
        Quality::Filtered => {
            let (what, rights) = (table.as_str(), rights(table));
            let why = format!("Consul left {what} out for want of rights: give the token {rights}");
            Ok((answer.value, Knowledge::Partial(why)))
        }
        quality => Err(ReadError::NotAuthoritative(quality)),
    }
}

fn rights(table: Table) -> &'static str {
    match table {
        Table::Defaults => "service:read on all services",
        Table::Intentions => "intentions:read on all services",
        Table::Queries => "query:read on all queries",
    }
}

/// The rows of a query after a write, put into what was known of its name.
#[must_use]
pub fn placed(before: Option<&ObservedQuery>, row: Row) -> Option<ObservedQuery> {
    let mut there = before.cloned().unwrap_or_default();
    match row {
        Row::Ledger(ledger) => there.ledger = ledger,
        Row::Query(query) => {
            if there.renamed.is_some() {
                there.renamed = None;
            }
            there.named = query;
        }
        Row::Defaults(_) | Row::Intentions(_) => {}
    }
    (there != ObservedQuery::default()).then_some(there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::entries::definition;

    #[test]
    fn a_query_and_its_note_stand_under_one_name() {
        let query = wire::PreparedQuery {
            id: "1".into(),
            name: "Q".into(),
            ..wire::PreparedQuery::default()
        };
        let noted = placed(None, Row::Ledger(Some((Ledger::default(), 7))));
        let created = placed(noted.as_ref(), Row::Query(Some(query.clone()))).unwrap();
        assert_eq!(created.ledger.as_ref().map(|(_, index)| *index), Some(7));
        assert_eq!(
            created.named.as_ref().map(definition),
            Some(definition(&query))
        );
        let removed = placed(Some(&created), Row::Query(None)).unwrap();
        assert_eq!((&removed.named, removed.ledger.is_some()), (&None, true));
        assert_eq!(placed(Some(&removed), Row::Ledger(None)), None);
    }
}
