//! The writes of what is on no node: one call each, or a few in a row, since none of it can be in a
//! transaction with the epoch.
//!
//! The epoch is read directly before instead: between that read and the write, a few milliseconds,
//! another process may take it. What is written then has the index that it was planned with, or is
//! read directly before.

use std::collections::BTreeMap;

use super::apply::{ReadError, check_token};
use super::pass::{LAPSED, Pass};
use crate::consul::wire::{self, ConfigEntry};
use crate::consul::{
    Client, Consistency, ConsulError, ErrorClass, Observed, Quality, Txn, TxnError, TxnFailure,
    TxnOp, TxnOutcome, TxnResult,
};
use crate::model::key::{Key, Table};
use crate::model::ledger::{self, Ledger};
use crate::model::names::{ClusterName, Destination, QueryName, ServiceName};
use crate::model::text::Text;
use crate::observed::entries::{
    Elsewhere, ObservedDefaults, ObservedIntentions, ObservedQuery, destination_of, queries,
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
    Done(Box<Row>, u64),
    /// It was done, but what stands there now cannot be read.
    Unseen(ConsulError),
    /// What it was planned with is not what is there.
    Outdated,
    /// Another process took the epoch, or it may not be read, or the leadership is over.
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
    pass: &Pass,
    key: &Key,
    change: &Change,
) -> Result<Carried, ConsulError> {
    if let (Key::Query(name), Change::PutLedger(..) | Change::DeleteLedger(_)) = (key, change) {
        return note(client, pass, &ledger::key(cluster, name), change).await;
    }
    // Before the epoch, so that nothing is between that and the write.
    if let Change::UpdateQuery(wire::PreparedQuery { id, .. }, index)
    | Change::DeleteQuery(id, index) = change
        && !is_still(client, id, *index).await?
    {
        return Ok(Carried::Outdated);
    }
    if let Some(why_not) = check(client, pass).await? {
        return Ok(why_not);
    }
    match change {
        Change::PutDefaults(entry, index) => {
            let row = |entry| {
                let there = ObservedDefaults::of(cluster, entry);
                Row::Defaults(there.map(|(_, there)| there))
            };
            put(client, entry, *index, row, Row::Defaults(None)).await
        }
        Change::PutIntentions(entry, index) => {
            let row = |entry| Row::Intentions(Some(ObservedIntentions::of(cluster, entry)));
            put(client, entry, *index, row, Row::Intentions(None)).await
        }
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
            Ok(read_query(client, &id).await)
        }
        Change::UpdateQuery(query, _) => match client.update_query(query).await {
            Err(error) if error.class() == ErrorClass::NotFound => Ok(Carried::Outdated),
            Err(error) => Err(error),
            Ok(()) => Ok(read_query(client, &query.id).await),
        },
        Change::DeleteQuery(id, _) => match client.delete_query(id).await {
            Err(error) if error.class() != ErrorClass::NotFound => Err(error),
            _ => Ok(Carried::Done(Box::new(Row::Query(None)), 0)),
        },
        Change::PutLedger(..) | Change::DeleteLedger(_) => Ok(Carried::Outdated),
    }
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

/// Why nothing is to be written, if the epoch is not ours or may not be read, or if the leadership is
/// over by then.
pub(super) async fn check(client: &Client, pass: &Pass) -> Result<Option<Carried>, ConsulError> {
    let fence = pass.fence();
    let epoch = match client.kv_get(fence.key, Consistency::Consistent).await {
        Ok(epoch) => epoch,
        Err(error) if error.class() == ErrorClass::AccessDenied => {
            return Ok(Some(Carried::NoEpoch(error.text().to_owned())));
        }
        Err(error) => return Err(error),
    };
    let quality = epoch.quality;
    Ok(match epoch.authoritative() {
        Some(Some(pair)) if pair.modify_index == fence.index => {
            (!pass.leads()).then(|| Carried::Fenced {
                what: LAPSED.to_owned(),
                reason: TxnFailure::Lapsed,
            })
        }
        Some(pair) => Some(replaced(fence.index, pair.map(|pair| pair.modify_index))),
        None => {
            let why = ReadError::NotAuthoritative(quality).to_string();
            Some(Carried::NoEpoch(why))
        }
    })
}

/// Writes an entry with this index, and reads it again: the answer says neither what is stored nor at
/// which index.
async fn put<E: ConfigEntry>(
    client: &Client,
    entry: &E,
    index: u64,
    row: impl FnOnce(E) -> Row,
    nothing: Row,
) -> Result<Carried, ConsulError> {
    if !client.put_config_entry(entry, index).await? {
        return Ok(Carried::Outdated);
    }
    let there = client.config_entry::<E>(entry.name(), Consistency::Consistent);
    Ok(match there.await.map(|there| there.value) {
        Err(error) => Carried::Unseen(error),
        Ok(None) => Carried::Done(Box::new(nothing), 0),
        Ok(Some(there)) => {
            let index = there.modify_index();
            Carried::Done(Box::new(row(there)), index)
        }
    })
}

fn removed(gone: bool, row: Row) -> Carried {
    if gone {
        Carried::Done(Box::new(row), 0)
    } else {
        Carried::Outdated
    }
}

/// Queries know no compare-and-set.
async fn is_still(client: &Client, id: &str, index: u64) -> Result<bool, ConsulError> {
    let there = client.query(id, Consistency::Consistent).await?;
    Ok(there.value.is_some_and(|there| there.modify_index == index))
}

async fn read_query(client: &Client, id: &str) -> Carried {
    match client.query(id, Consistency::Consistent).await {
        Err(error) => Carried::Unseen(error),
        Ok(there) => {
            let index = there.value.as_ref().map_or(0, |there| there.modify_index);
            Carried::Done(Box::new(Row::Query(there.value)), index)
        }
    }
}

async fn note(
    client: &Client,
    pass: &Pass,
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
    match pass.apply(client, &txn).await? {
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
            Ok(Carried::Done(Box::new(Row::Ledger(row)), index))
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
    check_token(client).await?;
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
            let (ledger, noted) = known_with(LEDGER, ledger)?;
            let answer = client.queries(Consistency::Consistent).await?;
            let (found, knowledge) = known(table, answer)?;
            let knowledge = if noted == Knowledge::Whole {
                knowledge
            } else {
                noted
            };
            // Those of others last: whoever created one of these had noted it before.
            let others = ledgers_of_others(client, cluster).await?;
            let rows = queries(cluster, found, ledger, others.as_deref());
            Ok((Rows::Queries(rows), knowledge))
        }
    }
}

/// The ledgers of all other clusters; `None` where the token may not read them all.
async fn ledgers_of_others(
    client: &Client,
    cluster: &ClusterName,
) -> Result<Option<Vec<wire::KvPair>>, ReadError> {
    let read = async {
        let folders = client
            .kv_folders(ledger::CLUSTERS, Consistency::Consistent)
            .await?;
        let mut known = folders.quality;
        let mut pairs = Vec::new();
        let own = ledger::prefix(cluster);
        for folder in folders.value {
            let prefix = format!("{folder}query/");
            if !folder.ends_with('/') || prefix == own {
                continue;
            }
            let answer = client.kv_list(&prefix, Consistency::Consistent).await?;
            known = known.max(answer.quality);
            pairs.extend(answer.value);
        }
        Ok::<_, ConsulError>((known, pairs))
    };
    match read.await {
        Ok((Quality::Authoritative, pairs)) => Ok(Some(pairs)),
        Ok((Quality::Filtered, _)) => Ok(None),
        Ok((quality, _)) => Err(ReadError::NotAuthoritative(quality)),
        Err(error) if error.class() == ErrorClass::AccessDenied => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The ledger, and the rights that it takes to read it.
const LEDGER: (&str, &str) = (
    "entries of the ledger of queries",
    "key_prefix \"lictor/v1/\" read",
);

fn known<T>(table: Table, answer: Observed<T>) -> Result<(T, Knowledge), ReadError> {
    known_with((table.as_str(), rights(table)), answer)
}

/// What was read, and how whole it is by the rights that it takes.
fn known_with<T>(
    (what, rights): (&str, &str),
    answer: Observed<T>,
) -> Result<(T, Knowledge), ReadError> {
    match answer.quality {
        Quality::Authoritative => Ok((answer.value, Knowledge::Whole)),
        Quality::Filtered => {
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
        Row::Ledger(ledger) => {
            // A note that is struck out while there is a query says that it is another's.
            there.known = there.known.filter(|_| ledger.is_some());
            there.ledger = ledger;
            let of = |query: &Option<wire::PreparedQuery>| {
                let query = query.as_ref().filter(|query| there.says(query));
                query.map(|query| query.id.clone())
            };
            if let Some(id) = of(&there.named).or_else(|| of(&there.renamed)) {
                there.knows(&id);
            }
        }
        Row::Query(None) => {
            let ours = there.ours().map(|ours| ours.id.clone());
            let renamed = there.renamed.as_ref().map(|renamed| renamed.id.clone());
            // Where that is removed, whatever has the name stays.
            if renamed.is_none() || there.named.is_some() && ours != renamed {
                there.named = None;
                there.elsewhere = Elsewhere::No;
            } else {
                there.renamed = None;
                there.renamed_elsewhere = Elsewhere::No;
            }
            there.known = None;
        }
        Row::Query(Some(query)) => {
            there.renamed = None;
            there.renamed_elsewhere = Elsewhere::No;
            there.elsewhere = Elsewhere::No;
            there.knows(&query.id);
            there.named = Some(query);
        }
        Row::Defaults(_) | Row::Intentions(_) => {}
    }
    (there != ObservedQuery::default()).then_some(there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::owner::Owner;
    use crate::observed::entries::definition;

    #[test]
    fn a_ledger_that_may_not_be_read_whole_asks_for_rights_on_keys() {
        let answer = || Observed {
            value: (),
            quality: Quality::Filtered,
            index: None,
        };
        let why = |known: Result<((), Knowledge), ReadError>| match known {
            Ok(((), Knowledge::Partial(why))) => why,
            other => panic!("{other:?}"),
        };
        let of_ledger = why(known_with(LEDGER, answer()));
        assert!(
            of_ledger.ends_with("key_prefix \"lictor/v1/\" read"),
            "{of_ledger}"
        );
        let of_queries = why(known(Table::Queries, answer()));
        assert!(of_queries.contains("query:read"), "{of_queries}");
    }

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

    #[test]
    fn what_has_the_name_stays_when_ours_goes_that_had_been_renamed() {
        let named = |id: &str| wire::PreparedQuery {
            id: id.into(),
            ..wire::PreparedQuery::default()
        };
        let owner = Owner::prepared_query(&"shop".into(), &"q".into());
        let ours = Ledger {
            id: "ours".to_owned(),
            ..Ledger::new(&owner, "uid", "h".to_owned())
        };
        let mut before = ObservedQuery {
            ledger: Some((ours.clone(), 7)),
            named: Some(named("theirs")),
            renamed: Some(named("ours")),
            known: Some(ours),
            ..ObservedQuery::default()
        };
        let after = placed(Some(&before), Row::Query(None)).unwrap();
        assert_eq!((&after.named, after.renamed), (&before.named, None));
        // Where it is the other way round, the ledger was spoilt.
        std::mem::swap(&mut before.named, &mut before.renamed);
        if let Some((ledger, _)) = &mut before.ledger {
            ledger.id = "theirs".to_owned();
        }
        let after = placed(Some(&before), Row::Query(None)).unwrap();
        assert_eq!((after.named, after.renamed), (None, before.renamed));
    }
}
