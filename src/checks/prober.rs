//! The one task that runs all checks.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use rand::Rng as _;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::ask::{Asker, NotRun};
use super::forbidden::Forbidden;
use super::roster::{Ended, Follow, Known, Roster};
use crate::desired::probe::AskedCall;
use crate::metrics::Metrics;
use crate::model::entry::Check;
use crate::model::key::InstanceKey;
use crate::model::text::Text;

/// Runs under way at once. Each has a socket, and may wait for as long as its timeout.
const RUNS: usize = 512;
/// Changes that may wait for the engine; then the next runs wait.
const TOLD: usize = 1024;

/// How often it is logged that checks could not be run.
const COMPLAINTS: Duration = Duration::from_secs(10);

const NAME: &str = "the prober";

/// A check has another status than was told last, or its first one.
#[derive(Clone, Debug)]
pub struct Told {
    /// The instance.
    pub key: InstanceKey,
    /// The name of the check within its registration.
    pub name: Text,
    /// What was found.
    pub check: Check,
    /// The number of the order since which the check is asked like this.
    pub order: u64,
    /// When.
    pub at: Instant,
}

enum Order {
    Follow {
        key: InstanceKey,
        host: Text,
        asked: Box<[AskedCall]>,
        known: Box<[Option<Known>]>,
        number: u64,
    },
    Forget(InstanceKey),
    ForgetAll,
}

/// Where the engine says what to ask.
///
/// It never waits: it says so once for each change of an instance, and the prober does no more than to
/// note it.
#[derive(Clone, Debug)]
pub struct Orders(UnboundedSender<Order>);

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Order")
    }
}

impl Orders {
    /// An instance is to be asked this at this host, and nothing else; of each it is said what is known.
    /// What is told of those that change has this number; of those that stay, the one that it had.
    pub fn follow(
        &self,
        key: InstanceKey,
        host: Text,
        asked: Box<[AskedCall]>,
        known: Box<[Option<Known>]>,
        number: u64,
    ) {
        self.give(Order::Follow {
            key,
            host,
            asked,
            known,
            number,
        });
    }

    /// An instance is not asked any more.
    pub fn forget(&self, key: InstanceKey) {
        self.give(Order::Forget(key));
    }

    /// Nothing is asked any more.
    pub fn forget_all(&self) {
        self.give(Order::ForgetAll);
    }

    fn give(&self, order: Order) {
        // Without the prober the process ends.
        let _ = self.0.send(order);
    }
}

/// Runs checks.
pub struct Prober {
    orders: UnboundedReceiver<Order>,
    told: mpsc::Sender<Told>,
    roster: Roster,
}

/// Both ends of a prober, and what it tells.
#[must_use]
pub fn channel() -> (Orders, Prober, mpsc::Receiver<Told>) {
    let (orders, orders_in) = mpsc::unbounded_channel();
    let (told, told_out) = mpsc::channel(TOLD);
    let prober = Prober {
        orders: orders_in,
        told,
        roster: Roster::default(),
    };
    (Orders(orders), prober, told_out)
}

impl Prober {
    /// Works until the engine is gone, and tells its name then. Connects to nothing that is forbidden.
    pub async fn run(
        mut self,
        mut forbidden: watch::Receiver<Option<Arc<Forbidden>>>,
        metrics: Metrics,
    ) -> anyhow::Result<&'static str> {
        // What Consul shows is worth more than a check that could not be run.
        let known = forbidden.wait_for(Option::is_some).await;
        known.context("where the APIs are is not looked up any more")?;
        let asker = Asker::new(forbidden).context("cannot set up TLS for checks")?;
        let asker = Arc::new(asker);
        let mut runs: JoinSet<(u64, Result<Check, NotRun>)> = JoinSet::new();
        let mut complained = None;
        loop {
            let now = Instant::now();
            while let Some(run) = self.roster.take(now, RUNS, chance) {
                metrics
                    .check_lateness
                    .observe((now - run.due).as_secs_f64());
                let asker = asker.clone();
                runs.spawn(async move {
                    let found = caught(asker.ask(&run.namespace, &run.target));
                    (run.id, found.await)
                });
            }
            let next = self.roster.next();
            tokio::select! {
                order = self.orders.recv() => {
                    let Some(order) = order else { return Ok(NAME) };
                    self.take(order);
                    while let Ok(order) = self.orders.try_recv() {
                        self.take(order);
                    }
                    let checks = i64::try_from(self.roster.len()).unwrap_or(i64::MAX);
                    metrics.checks.set(checks);
                }
                Some(run) = runs.join_next() => {
                    let (id, check) = run.context("the run of a check broke down")?;
                    let check = match check {
                        Ok(check) => check,
                        Err(NotRun(why)) => {
                            metrics.checks_not_run.inc();
                            let now = Instant::now();
                            if complained.is_none_or(|at| now - at >= COMPLAINTS) {
                                complained = Some(now);
                                tracing::warn!("a check was not run, and stays as it is: {why}");
                            }
                            self.roster.not_run(id, now, chance);
                            continue;
                        }
                    };
                    let Some(ended) = self.roster.ended(id, check.status) else {
                        continue;
                    };
                    let Ended { key, name, order } = ended;
                    let at = Instant::now();
                    let told = Told { key, name, check, order, at };
                    if self.told.send(told).await.is_err() {
                        return Ok(NAME);
                    }
                }
                () = sleep(next), if next.is_some() => {}
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Follow {
                key,
                host,
                asked,
                known,
                number,
            } => {
                let now = Instant::now();
                let asked = Follow {
                    host: &host,
                    asked: &asked,
                    known: &known,
                    order: number,
                };
                self.roster.follow(&key, &asked, now, chance);
            }
            Order::Forget(key) => self.roster.forget(&key),
            Order::ForgetAll => self.roster.forget_all(),
        }
    }
}

/// What a run found. One that breaks down breaks no other.
async fn caught(run: impl Future<Output = Result<Check, NotRun>>) -> Result<Check, NotRun> {
    let found = AssertUnwindSafe(run).catch_unwind().await;
    found.unwrap_or_else(|_| {
        let why = "it broke down, which is a fault of Lictor's";
        Err(NotRun(why.to_owned()))
    })
}

async fn sleep(until: Option<Instant>) {
    if let Some(until) = until {
        sleep_until(until).await;
    }
}

fn chance() -> f64 {
    rand::rng().random()
}

#[cfg(test)]
mod tests;
