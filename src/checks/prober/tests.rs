use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::desired::probe::{self, Asked};
use crate::model::entry::Health;
use crate::model::names::{InstanceId, NodeName};

const SOON: Duration = Duration::from_secs(20);

fn key(id: &str) -> InstanceKey {
    InstanceKey {
        node: NodeName::external(&"c".parse().unwrap()),
        id: InstanceId::observed(id),
    }
}

fn asked(check: &Value, port: u16) -> Box<[AskedCall]> {
    let checks = serde_json::from_value::<Vec<_>>(json!([check])).unwrap();
    let probe = probe::of(&checks).unwrap()[0].clone();
    let lease = Text::default();
    let asked = Asked { probe, port, lease };
    Box::new([asked.call().unwrap()])
}

/// A server that takes connections and says nothing, until it is dropped.
struct Silent {
    port: u16,
    taken: Arc<AtomicUsize>,
    serves: JoinHandle<()>,
}

impl Silent {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let taken = Arc::new(AtomicUsize::new(0));
        let count = taken.clone();
        let serves = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.push(stream);
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            port,
            taken,
            serves,
        }
    }

    /// Waits until so many connections were taken.
    async fn has_taken(&self, count: usize) {
        let taken = async {
            while self.taken.load(Ordering::Relaxed) < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let taken = timeout(SOON, taken).await;
        taken.unwrap_or_else(|_| panic!("{} were taken", self.taken.load(Ordering::Relaxed)));
    }

    /// Closes all connections: what hangs ends.
    async fn close(self) {
        self.serves.abort();
        let _ = self.serves.await;
    }
}

struct Bed {
    orders: Orders,
    told: mpsc::Receiver<Told>,
    _prober: AbortOnDropHandle<anyhow::Result<&'static str>>,
}

impl Bed {
    fn start() -> Self {
        let (orders, prober, told) = channel();
        let forbidden = Some(Arc::new(Forbidden::new(true, [])));
        let metrics = Metrics::new(&mut Registry::default());
        let run = prober.run(watch::channel(forbidden).1, metrics);
        let prober = AbortOnDropHandle::new(tokio::spawn(run));
        Self {
            orders,
            told,
            _prober: prober,
        }
    }

    fn follow(&self, id: &str, check: &Value, port: u16, number: u64) {
        let asked = asked(check, port);
        self.orders
            .follow(key(id), "127.0.0.1".into(), asked, Box::new([None]), number);
    }

    async fn told(&mut self) -> Told {
        let told = timeout(SOON, self.told.recv()).await;
        told.expect("something is told").expect("it runs")
    }
}

fn hanging() -> Value {
    json!({"name": "api", "http": {}, "interval": "1m", "timeout": "1m"})
}

fn connecting() -> Value {
    json!({"name": "api", "tcp": {}, "interval": "1m"})
}

#[tokio::test]
async fn what_hangs_in_one_namespace_is_bounded_and_holds_up_no_other() {
    let (silent, open) = (Silent::start().await, Silent::start().await);
    let mut bed = Bed::start();
    for number in 0..600 {
        bed.follow(&format!("c.slow.web.{number}"), &hanging(), silent.port, 1);
    }
    silent.has_taken(RUNS / 2).await;
    bed.follow("c.shop.web.p", &connecting(), open.port, 1);
    let told = bed.told().await;
    assert_eq!(
        (told.key, told.check.status),
        (key("c.shop.web.p"), Health::Passing)
    );
    assert_eq!(silent.taken.load(Ordering::Relaxed), RUNS / 2);
    // All of them get their turn in the end.
    let taken = silent.taken.clone();
    silent.close().await;
    for _ in 0..600 {
        assert_eq!(bed.told().await.check.status, Health::Critical);
    }
    assert_eq!(taken.load(Ordering::Relaxed), RUNS / 2);
}

#[tokio::test]
async fn of_an_instance_that_is_forgotten_nothing_is_told() {
    let (silent, open) = (Silent::start().await, Silent::start().await);
    let mut bed = Bed::start();
    bed.follow("c.shop.web.old", &hanging(), silent.port, 1);
    silent.has_taken(1).await;
    bed.orders.forget(key("c.shop.web.old"));
    // It is forgotten before the next is asked: orders are taken in their order.
    bed.follow("c.shop.web.p", &connecting(), open.port, 2);
    assert_eq!(bed.told().await.key, key("c.shop.web.p"));
    silent.close().await;
    bed.follow("c.shop.web.q", &connecting(), open.port, 3);
    assert_eq!(bed.told().await.key, key("c.shop.web.q"));
}

/// Something else is asked by now: of the run under way nothing is heard when it ends.
async fn the_older_run_tells_nothing(mut bed: Bed, silent: Silent, open: u16) {
    bed.follow("c.shop.web.p", &connecting(), open, 2);
    let told = bed.told().await;
    assert_eq!((told.order, told.check.status), (2, Health::Passing));
    silent.close().await;
    bed.follow("c.shop.web.q", &connecting(), open, 3);
    let told = bed.told().await;
    assert_eq!((told.key, told.order), (key("c.shop.web.q"), 3));
}

#[tokio::test]
async fn what_is_under_way_when_all_is_forgotten_counts_for_nothing_new() {
    let (silent, open) = (Silent::start().await, Silent::start().await);
    let bed = Bed::start();
    bed.follow("c.shop.web.p", &hanging(), silent.port, 1);
    silent.has_taken(1).await;
    bed.orders.forget_all();
    the_older_run_tells_nothing(bed, silent, open.port).await;
}

#[tokio::test]
async fn what_was_asked_before_a_change_is_not_told_after_it() {
    let (silent, open) = (Silent::start().await, Silent::start().await);
    let bed = Bed::start();
    bed.follow("c.shop.web.p", &hanging(), silent.port, 1);
    silent.has_taken(1).await;
    the_older_run_tells_nothing(bed, silent, open.port).await;
}

#[tokio::test]
async fn a_run_that_breaks_down_found_nothing_and_breaks_no_other() {
    let found = caught(async { panic!("it breaks down, for this test") }).await;
    assert!(found.is_err());
}
