//! Consul's signals that something changed, from a fixed number of blocking queries.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::consul::{Cause, Client, ConsulError, Watch};

/// A table of Consul's that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Nodes.
    Nodes,
    /// Services.
    Services,
    /// Checks.
    Checks,
}

impl Table {
    /// All that are watched.
    pub const ALL: [Self; 3] = [Self::Nodes, Self::Services, Self::Checks];
}

/// What a blocking query tells.
#[derive(Clone, Debug)]
pub enum Signal {
    /// Something in the table changed.
    Changed {
        /// Which table.
        table: Table,
        /// The raft index of the last change.
        index: Option<NonZeroU64>,
        /// Whether it is the first of the table: from then on no change goes unnoticed.
        first: bool,
        /// Whether the view is not continuous: after failures, or after the index went back.
        interrupted: bool,
    },
    /// The query failed; it goes on with back-off.
    Failed {
        /// Which table.
        table: Table,
        /// Why.
        error: ConsulError,
    },
}

/// Watches the tables until cancelled.
pub async fn watch(client: Client, signals: mpsc::Sender<Signal>, stop: CancellationToken) {
    let nodes = follow(Table::Nodes, client.watch_any_node(), &signals);
    let services = follow(Table::Services, client.watch_any_service(), &signals);
    let checks = follow(Table::Checks, client.watch_any_check(), &signals);
    tokio::select! {
        () = stop.cancelled() => {}
        _ = futures::future::join3(nodes, services, checks) => {}
    }
}

async fn follow(table: Table, watch: Watch<()>, signals: &mpsc::Sender<Signal>) {
    // Indexes are those of whole tables: our own writes wake the query too.
    let mut watch = watch.pace(Duration::from_secs(1));
    loop {
        let signal = match watch.next().await {
            Ok(change) => Signal::Changed {
                table,
                index: change.observed.index,
                first: change.cause == Cause::First,
                interrupted: matches!(change.cause, Cause::Recovered | Cause::WentBack),
            },
            Err(error) => Signal::Failed { table, error },
        };
        if signals.send(signal).await.is_err() {
            return;
        }
    }
}
