//! Consul's signals that something changed, from a fixed number of blocking queries.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::live;
use crate::consul::wire::{KvPair, ServiceDefaults, ServiceIntentions};
use crate::consul::{Cause, Client, Consistency, ConsulError, Quality, Watch};
use crate::model::epoch;
use crate::model::gc::{self, Exchange};
use crate::model::key::Table;
use crate::model::ledger;
use crate::model::names::ClusterName;
use crate::settings::Reading;

/// How soon it is asked again which datacenter has the config entries.
const LOCATE_AGAIN: Duration = Duration::from_secs(2);

/// What a blocking query tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Nodes.
    Nodes,
    /// Services.
    Services,
    /// Checks.
    Checks,
    /// What is on no node.
    Table(Table),
    /// The ledger of prepared queries.
    Ledger,
}

impl Topic {
    /// Those of what is on nodes.
    pub const OF_NODES: [Self; 3] = [Self::Nodes, Self::Services, Self::Checks];

    /// The table that is to be read, if it is one.
    #[must_use]
    pub fn table(self) -> Option<Table> {
        match self {
            Self::Nodes | Self::Services | Self::Checks => None,
            Self::Table(table) => Some(table),
            Self::Ledger => Some(Table::Queries),
        }
    }
}

/// What a blocking query tells.
#[derive(Clone, Debug)]
pub enum Signal {
    /// Something changed.
    Changed {
        /// What.
        topic: Topic,
        /// The raft index of the last change.
        index: Option<NonZeroU64>,
        /// Whether it is the first of its kind: from then on no change goes unnoticed.
        first: bool,
        /// Whether the view is not continuous: after failures, or after the index went back.
        interrupted: bool,
    },
    /// The key of the epoch was read: the index that it has, if it is there.
    Epoch {
        /// The key's `ModifyIndex`.
        index: Option<u64>,
    },
    /// `lictor gc` asks something.
    Asked {
        /// What.
        exchange: Exchange,
        /// The `ModifyIndex` of the key that it is in.
        index: u64,
        /// Whether it was seen being asked: else it may have stood there for long, and nobody waits
        /// for an answer any more.
        fresh: bool,
    },
    /// The settings in Consul were read.
    Settings(Reading),
    /// They cannot be read; that is tried again with back-off.
    NoSettings(String),
    /// The query failed; it goes on with back-off.
    Failed {
        /// Of what.
        topic: Topic,
        /// Why.
        error: ConsulError,
    },
}

/// Watches all of it with this consistency (nothing is concluded from them but that something is to be
/// read), and the epoch of the cluster, until cancelled.
pub async fn watch(
    client: Client,
    cluster: ClusterName,
    consistency: Consistency,
    signals: mpsc::Sender<Signal>,
    stop: CancellationToken,
) {
    let followed = live::Followed::new(client.clone(), &cluster);
    let epoch = client.watch_kv(&epoch::key(&cluster));
    let epoch = follow_key(epoch, &signals, |pair, _| {
        followed.epoch_seen(pair);
        let index = pair.map(|pair| pair.modify_index);
        Some(Signal::Epoch { index })
    });
    let asked = client.watch_kv(&gc::key(&cluster));
    let asked = follow_key(asked, &signals, |pair, cause| {
        let pair = pair?;
        // Whoever wrote something else there waits in vain, and asks again.
        let exchange = serde_json::from_slice(&pair.value).ok()?;
        let index = pair.modify_index;
        let fresh = cause == Cause::Moved;
        Some(Signal::Asked {
            exchange,
            index,
            fresh,
        })
    });
    let any = [
        (Topic::Nodes, client.watch_any_node(consistency)),
        (Topic::Services, client.watch_any_service(consistency)),
        (Topic::Checks, client.watch_any_check(consistency)),
        (
            Topic::Table(Table::Queries),
            client.watch_any_query(consistency),
        ),
    ];
    let any = any.map(|(topic, watch)| follow(topic, watch, &signals));
    let any = futures::future::join_all(any);
    let ledger = client.watch_kv_list(&ledger::prefix(&cluster));
    let ledger = follow(Topic::Ledger, ledger, &signals);
    let entries = async {
        locate_entries(&client, &signals).await;
        let defaults = client.watch_any_config_entry::<ServiceDefaults>(consistency);
        let intentions = client.watch_any_config_entry::<ServiceIntentions>(consistency);
        futures::future::join(
            follow(Topic::Table(Table::Defaults), defaults, &signals),
            follow(Topic::Table(Table::Intentions), intentions, &signals),
        )
        .await
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = followed.follow(&signals) => {}
        _ = futures::future::join5(any, entries, ledger, epoch, asked) => {}
    }
}

/// Config entries are read in one datacenter, which is to be known before they are watched: until
/// then they are neither read nor written.
async fn locate_entries(client: &Client, signals: &mpsc::Sender<Signal>) {
    while let Err(error) = client.locate_entries().await {
        for table in [Table::Defaults, Table::Intentions] {
            let (topic, error) = (Topic::Table(table), error.clone());
            if signals.send(Signal::Failed { topic, error }).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(LOCATE_AGAIN).await;
    }
}

async fn follow_key(
    mut watch: Watch<Vec<KvPair>>,
    signals: &mpsc::Sender<Signal>,
    tell: impl Fn(Option<&KvPair>, Cause) -> Option<Signal>,
) {
    loop {
        let signal = match watch.next().await {
            // What may not be read is not missing. Nothing is concluded from what is read here
            // without asking once more.
            Ok(change) if change.observed.quality <= Quality::Leased => {
                tell(change.observed.value.first(), change.cause)
            }
            Ok(_) => continue,
            Err(error) => {
                tracing::debug!("cannot watch a key: {error}");
                continue;
            }
        };
        if let Some(signal) = signal
            && signals.send(signal).await.is_err()
        {
            return;
        }
    }
}

async fn follow<T>(topic: Topic, watch: Watch<T>, signals: &mpsc::Sender<Signal>) {
    // Indexes are those of whole tables: our own writes wake the query too.
    let mut watch = watch.pace(Duration::from_secs(1));
    loop {
        let signal = match watch.next().await {
            Ok(change) => Signal::Changed {
                topic,
                index: change.observed.index,
                first: change.cause == Cause::First,
                interrupted: matches!(change.cause, Cause::Recovered | Cause::WentBack),
            },
            Err(error) => Signal::Failed { topic, error },
        };
        if signals.send(signal).await.is_err() {
            return;
        }
    }
}
