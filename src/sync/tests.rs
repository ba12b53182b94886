//! The engine against a Consul that is a few lines long and fails as it is told to.

mod asking;
mod beats;
mod critical;
mod hand_over;
mod lead;
mod settings;
mod state;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use globset::GlobSet;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::engine::{Engine, Inputs, Options};
use super::report::Report;
use super::signals;
use crate::api::RegistrationObject;
use crate::consul::{Client, ConsulConfig, ConsulSettings};
use crate::desired::fixtures::{node, object, pod};
use crate::desired::index::Index;
use crate::k8s::events::EventWriter;
use crate::k8s::status::StatusWriter;
use crate::k8s::{Change, KubeEvent, Relist, WatchEvent};
use crate::leader::Candidate;
use crate::metrics::Metrics;
use crate::model::facts::PodFacts;
use crate::plan::guard::Limits;
use crate::plan::{DriftMode, Mode, Rules};
use crate::settings::Values;
use crate::test_log::Log;

/// How it fails, and what it was asked.
#[derive(Default)]
struct Consul {
    /// The answer to every transaction, if it is not applied.
    refusal: Option<(StatusCode, &'static str)>,
    /// Whether a transaction is applied all the same.
    applies: bool,
    /// The node that cannot be read.
    garbled: Option<&'static str>,
    index: u64,
    nodes: BTreeMap<String, Value>,
    services: BTreeMap<(String, String), Value>,
    checks: BTreeMap<(String, String), Value>,
    /// The epoch.
    epoch: Option<Value>,
    /// Whether the folder of the settings may not be read.
    hides_settings: bool,
    /// The policy in that folder, in base64.
    policy: Option<&'static str>,
    asked: Vec<(Instant, String)>,
}

impl Consul {
    fn asked(&self, path: &str) -> usize {
        let asked = self.asked.iter();
        asked.filter(|(_, asked)| asked.starts_with(path)).count()
    }

    fn apply(&mut self, ops: &[Value]) -> Value {
        self.index += 1;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut results = Vec::new();
        for op in ops {
            let (kind, op) = op.as_object().unwrap().iter().next().unwrap();
            let mut object = op[kind].clone();
            object["CreateIndex"] = json!(1);
            object["ModifyIndex"] = json!(self.index);
            let node = text(match kind.as_str() {
                "Service" => &op["Node"],
                _ => &object["Node"],
            });
            let removed = op["Verb"] == "delete-cas";
            match kind.as_str() {
                "KV" if op["Verb"] == "cas" => self.epoch = Some(object.clone()),
                "KV" => {}
                "Node" => drop(self.nodes.insert(node, object.clone())),
                "Service" if removed => {
                    self.services.remove(&(node, text(&object["ID"])));
                }
                "Service" => {
                    let key = (node, text(&object["ID"]));
                    self.services.insert(key, object.clone());
                }
                _ => {
                    let key = (node, text(&object["CheckID"]));
                    self.checks.insert(key, object.clone());
                }
            }
            if !removed {
                results.push(json!({kind: object}));
            }
        }
        json!({"Results": results, "Errors": null})
    }

    fn on(of: &BTreeMap<(String, String), Value>, node: &str) -> Vec<Value> {
        let on = of.iter().filter(|((name, _), _)| name == node);
        on.map(|(_, value)| value.clone()).collect()
    }

    fn answer(&mut self, path: &str, body: &[u8]) -> Response {
        if path == "/v1/txn" {
            let ops: Vec<Value> = serde_json::from_slice(body).unwrap();
            let applied = (self.refusal.is_none() || self.applies).then(|| self.apply(&ops));
            return match (self.refusal, applied) {
                (Some(refusal), _) => refusal.into_response(),
                (None, applied) => applied.unwrap().to_string().into_response(),
            };
        }
        let named = |start: &str| path.strip_prefix(start).map(str::to_owned);
        let found = if path == "/v1/catalog/nodes" {
            json!(self.nodes.values().collect::<Vec<_>>())
        } else if let Some(node) = named("/v1/catalog/node-services/") {
            if self.garbled == Some(&*node) {
                return "<html>".into_response();
            }
            let services = Self::on(&self.services, &node);
            match self.nodes.get(&node) {
                Some(node) => json!({"Node": node, "Services": services}),
                None => json!({"Node": null, "Services": null}),
            }
        } else if let Some(node) = named("/v1/health/node/") {
            json!(Self::on(&self.checks, &node))
        } else if path == "/v1/acl/token/self" {
            return (StatusCode::UNAUTHORIZED, "ACL support disabled").into_response();
        } else if path == "/v1/agent/self" {
            json!({"Config": {"Version": "1.22.7", "Datacenter": "dc1", "NodeName": "a"}})
        } else if path == "/v1/kv/lictor/v1/a/config/" {
            if self.hides_settings {
                return (StatusCode::FORBIDDEN, "Permission denied").into_response();
            }
            let pair = |value| json!({"Key": "lictor/v1/a/config/policy", "Value": value});
            json!(self.policy.map(pair).into_iter().collect::<Vec<_>>())
        } else if path.starts_with("/v1/kv/") {
            json!(self.epoch.iter().collect::<Vec<_>>())
        } else {
            json!([])
        };
        let index = self.index.max(1).to_string();
        let headers = [
            ("X-Consul-Index", &*index),
            ("X-Consul-KnownLeader", "true"),
        ];
        (headers, found.to_string()).into_response()
    }
}

type Shared = Arc<Mutex<Consul>>;

async fn serve(State(consul): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if parts
        .uri
        .query()
        .is_some_and(|query| query.contains("index="))
    {
        // Nothing is ever signalled.
        sleep(Duration::from_mins(1)).await;
    }
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let mut consul = consul.lock().unwrap();
    let asked = (Instant::now(), parts.uri.path().to_owned());
    consul.asked.push(asked);
    consul.answer(parts.uri.path(), &body)
}

fn client(addresses: String) -> Client {
    let config = ConsulConfig::new(ConsulSettings {
        addresses,
        ..ConsulSettings::default()
    });
    Client::new(config.unwrap()).unwrap()
}

/// An engine that knows nothing yet, and tells nobody.
fn engine(client: Client) -> Engine {
    engine_of(client, crate::leader::off::candidate())
}

/// The same, that takes part in this election.
fn engine_of(client: Client, candidate: Candidate) -> Engine {
    let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let kube = kube::Client::try_from(nowhere).unwrap();
    let (told, _) = EventWriter::new(kube.clone(), "");
    let (statuses, _) = StatusWriter::new(kube);
    let metrics = Metrics::new(&mut Registry::default());
    let report = Report::new(told, statuses, metrics);
    let index = Index::new("a".parse().unwrap(), GlobSet::empty());
    let options = Options {
        settings: Values {
            log_level: "info".to_owned(),
            policy: Mode::Sync,
            drift: DriftMode::Repair,
            drift_interval: Duration::from_secs(1),
            limits: Limits::default(),
            sweep_critical_after: None,
            consul_write_rate: None,
        },
        log_level: None,
        take_over: None,
        rules: Rules::default(),
    };
    let (questions, _) = mpsc::channel(1);
    Engine::new(
        client,
        index,
        report,
        (crate::checks::channel().0, questions),
        candidate,
        options,
    )
    .0
}

struct Bed {
    consul: Shared,
    events: mpsc::Sender<KubeEvent>,
    /// Hears when everything is to be listed anew.
    relist: Relist,
    stop: CancellationToken,
    engine: JoinHandle<()>,
}

impl Bed {
    async fn start(consul: Consul) -> Self {
        let this = Self::begin(consul).await;
        this.list(Change::Registration, Vec::new()).await;
        this.list(Change::Intention, Vec::new()).await;
        this.list(Change::PreparedQuery, Vec::new()).await;
        this.list(Change::Node, vec![node("n1"), node("n2")]).await;
        this
    }

    /// Without any list yet.
    async fn begin(consul: Consul) -> Self {
        let consul = Arc::new(Mutex::new(consul));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = listener.local_addr().unwrap().to_string();
        let routes = Router::new().fallback(serve).with_state(consul.clone());
        tokio::spawn(async { axum::serve(listener, routes).await });
        let client = client(addresses);
        client.check_token().await.unwrap();
        let engine = engine(client.clone());
        let relist = engine.relists();
        let (introduce, introduced) = oneshot::channel();
        let epoch = json!({"holder": "h", "uid": "u", "kind": "run"});
        introduce
            .send(serde_json::from_value(epoch).unwrap())
            .unwrap();
        let (events, events_in) = mpsc::channel(64);
        let (signals, signals_in) = mpsc::channel(16);
        let stop = CancellationToken::new();
        tokio::spawn(signals::watch(
            client,
            "a".parse().unwrap(),
            crate::consul::Consistency::Default,
            signals,
            stop.clone(),
        ));
        let stopped = stop.clone();
        let engine = tokio::spawn(async move {
            let inputs = Inputs {
                kubernetes: events_in,
                signals: signals_in,
                told: crate::checks::channel().2,
                forbidden: tokio::sync::watch::channel(None).1,
                looked: mpsc::channel(1).1,
                epoch: introduced,
            };
            engine.run(inputs, stopped).await.unwrap();
        });
        Self {
            consul,
            events,
            relist,
            stop,
            engine,
        }
    }

    async fn list<T>(&self, change: impl Fn(WatchEvent<T>) -> Change, all: Vec<T>) {
        let resource_version = "1".into();
        self.send(change(WatchEvent::Listing)).await;
        self.send(change(WatchEvent::Page(all))).await;
        self.send(change(WatchEvent::Listed { resource_version }))
            .await;
    }

    async fn send(&self, change: Change) {
        let event = KubeEvent {
            at: Instant::now(),
            scope: None,
            change,
        };
        self.events.send(event).await.unwrap();
    }

    fn consul(&self) -> MutexGuard<'_, Consul> {
        self.consul.lock().unwrap()
    }

    /// What the node's check says in Consul, if there is one.
    fn node_check(&self, node: &str) -> Option<String> {
        let at = (format!("lictor-a--{node}"), "lictor-node".to_owned());
        let consul = self.consul();
        let status = consul.checks.get(&at)?["Status"].as_str();
        status.map(str::to_owned)
    }

    async fn node_is(&self, node: &str, status: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.node_check(node).as_deref() != Some(status) {
            assert!(Instant::now() < deadline, "{node} is not {status}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits for something that Consul holds or was asked.
    async fn until(&self, what: &str, is: impl Fn(&Consul) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is(&self.consul()) {
            assert!(Instant::now() < deadline, "{what}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.engine.await.unwrap();
    }
}

fn web(name: &str, on: &str) -> PodFacts {
    let on = on.into();
    let pod = pod(name).lictor("service", "web");
    pod.change(|pod| pod.node = Some(on)).facts()
}

#[tokio::test]
async fn a_consul_that_reads_and_does_not_write_is_left_alone_more_and_more() {
    let bed = Bed::start(Consul {
        refusal: Some((StatusCode::INTERNAL_SERVER_ERROR, "no space left on device")),
        ..Consul::default()
    })
    .await;
    bed.list(Change::Pod, vec![web("p", "n1")]).await;
    sleep(Duration::from_secs(3)).await;
    let tried = bed.consul().asked("/v1/txn");
    assert!((2..=16).contains(&tried), "{tried} transactions in 3 s");
    bed.consul().refusal = None;
    bed.until("it is written in the end", |consul| {
        !consul.services.is_empty()
    })
    .await;
    bed.end().await;
}

#[tokio::test]
async fn a_node_that_cannot_be_read_holds_no_other_up() {
    let bed = Bed::start(Consul::default()).await;
    bed.list(Change::Pod, vec![web("p", "n1"), web("q", "n2")])
        .await;
    bed.until("both are there", |consul| consul.services.len() == 2)
        .await;
    bed.consul().garbled = Some("lictor-a--n2");
    bed.consul().asked.clear();
    let began = Instant::now();
    let mut ready = true;
    while began.elapsed() < Duration::from_secs(4) {
        // Each write that is answered is a chance to think that all is well again.
        ready = !ready;
        let pod = pod("p").lictor("service", "web");
        let pod = if ready { pod } else { pod.not_ready("app", "") };
        let before = bed.consul().asked("/v1/txn");
        bed.send(Change::Pod(WatchEvent::Applied(pod.facts())))
            .await;
        bed.until("it is written", |consul| consul.asked("/v1/txn") > before)
            .await;
    }
    let read = bed.consul().asked("/v1/catalog/node-services/lictor-a--n2");
    assert!((1..=20).contains(&read), "{read} reads in 4 s");
    bed.consul().garbled = None;
    bed.end().await;
}

/// Longer than anything takes that is to be written.
const WHILE: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_node_that_is_found_missing_is_so_once_pods_were_listed_anew() {
    let mut bed = Bed::start(Consul::default()).await;
    let pods = || vec![web("p", "n1"), web("q", "n2")];
    bed.list(Change::Pod, pods()).await;
    bed.node_is("n1", "passing").await;
    bed.node_is("n2", "passing").await;
    assert!(!bed.relist.has_changed().unwrap());
    // Another API server may be behind the address, which pods are not watched at yet.
    bed.list(Change::Node, vec![node("n2")]).await;
    sleep(WHILE).await;
    assert_eq!(bed.node_check("n1").as_deref(), Some("passing"));
    assert!(bed.relist.has_changed().unwrap(), "nobody asks for lists");
    bed.relist.mark_unchanged();
    bed.list(Change::Pod, pods()).await;
    bed.node_is("n1", "critical").await;
    bed.node_is("n2", "passing").await;
    sleep(WHILE).await;
    assert!(!bed.relist.has_changed().unwrap(), "it asks without end");
    bed.end().await;
}

#[tokio::test]
async fn most_nodes_missing_at_once_are_held() {
    let bed = Bed::start(Consul::default()).await;
    let on = ["n1", "n2", "n3", "n4"];
    let nodes = || on.map(node).to_vec();
    let pods = || on.map(|on| web(&format!("p-{on}"), on)).to_vec();
    bed.list(Change::Node, nodes()).await;
    bed.list(Change::Pod, pods()).await;
    for name in on {
        bed.node_is(name, "passing").await;
    }
    // Two views of one cluster, of which one is empty.
    bed.list(Change::Node, Vec::new()).await;
    bed.list(Change::Pod, pods()).await;
    sleep(WHILE).await;
    for name in on {
        assert_eq!(bed.node_check(name).as_deref(), Some("passing"), "{name}");
    }
    // Of those that stay away once the others are back, the pods may be gone, too ...
    bed.list(Change::Pod, pods()[..3].to_vec()).await;
    bed.list(Change::Node, nodes()[..2].to_vec()).await;
    bed.node_is("n3", "critical").await;
    assert_eq!(bed.node_check("n4").as_deref(), Some("passing"));
    // ... and what is back is well again.
    bed.send(Change::Node(WatchEvent::Applied(node("n3"))))
        .await;
    bed.node_is("n3", "passing").await;
    bed.end().await;
}

#[tokio::test]
async fn a_removal_whose_answer_was_lost_is_in_the_audit_log_once() {
    let (log, _guard) = Log::begin();
    let bed = Bed::start(Consul::default()).await;
    bed.list(Change::Pod, vec![web("p", "n1")]).await;
    bed.until("it is there", |consul| consul.services.len() == 1)
        .await;
    bed.consul().refusal = Some((StatusCode::BAD_GATEWAY, "the way back is broken"));
    bed.consul().applies = true;
    bed.send(Change::Pod(WatchEvent::Deleted {
        object: web("p", "n1"),
        by_itself: true,
    }))
    .await;
    bed.until("it is gone", |consul| consul.services.is_empty())
        .await;
    bed.consul().refusal = None;
    sleep(Duration::from_secs(1)).await;
    bed.end().await;
    let told = log.removals();
    assert_eq!(told.len(), 1, "{told:?}");
}

#[tokio::test]
async fn nothing_is_told_of_pods_before_everything_is_listed() {
    let (log, _guard) = Log::begin();
    let bed = Bed::begin(Consul::default()).await;
    let annotated = |name: &str, app: &str| {
        let pod = pod(name).label("app", app);
        pod.lictor("tags.payment", "a").facts()
    };
    let pods = vec![annotated("right", "payment"), annotated("wrong", "other")];
    bed.list(Change::Pod, pods).await;
    bed.list(Change::Node, vec![node("n1")]).await;
    let spec = json!({"selector": {"matchLabels": {"app": "payment"}}});
    let payment: RegistrationObject = object("payment", spec);
    bed.list(Change::Intention, Vec::new()).await;
    bed.list(Change::PreparedQuery, Vec::new()).await;
    bed.list(Change::Registration, vec![payment]).await;
    bed.until("it is registered", |consul| consul.services.len() == 1)
        .await;
    let told = |pod: &str| log.count(&format!("object=Pod/shop/{pod}"));
    let both = (told("right"), told("wrong"));
    assert_eq!(both, (0, 1), "{}", log.text());
    bed.end().await;
}
