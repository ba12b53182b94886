//! The loop against a server that answers what the test says, over a real socket.

use std::time::Duration;

use kube::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::super::home::Home;
use super::super::kinds::{Broken, BrokenKind, Change, KubeEvent, WatchEvent};
use super::{LIMITS, Limits, watch_within};
use crate::model::facts::PodFacts;
use crate::model::kind::Kind;

/// The server and the receiver.
struct Bench {
    calls: mpsc::Receiver<Call>,
    /// What is answered when it is asked whose the API server is.
    whose: watch::Sender<(&'static str, String)>,
    events: mpsc::Receiver<KubeEvent>,
    relist: watch::Sender<()>,
}

/// A request that waits for its answer. Each comes on a connection of its own.
struct Call {
    target: String,
    stream: TcpStream,
}

impl Bench {
    async fn start() -> Self {
        Self::start_within(LIMITS).await
    }

    async fn start_within(limits: Limits) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let (whose, answer) = watch::channel(("200 OK", kube_system("ours")));
        let (forward, calls) = mpsc::channel(16);
        tokio::spawn(serve(listener, answer, forward));
        let (sender, events) = mpsc::channel(16);
        let (relist, asked) = watch::channel(());
        tokio::spawn(watch_within::<PodFacts>(
            Home::new(client),
            Some("shop".into()),
            sender,
            asked,
            limits,
        ));
        Self {
            calls,
            whose,
            events,
            relist,
        }
    }

    /// Listed at version 10 with one pod; the call that opens the watch is next.
    async fn listed() -> Self {
        Self::listed_within(LIMITS).await
    }

    async fn listed_within(limits: Limits) -> Self {
        let mut bench = Self::start_within(limits).await;
        let list = format!(
            r#"{{"metadata":{{"resourceVersion":"10"}},"items":[{}]}}"#,
            pod("a", "9")
        );
        bench.call().await.answer("200 OK", &list).await;
        assert_eq!(bench.event().await, WatchEvent::Listing);
        assert_eq!(names(&bench.event().await), ["a"]);
        assert_eq!(
            bench.event().await,
            WatchEvent::Listed {
                resource_version: "10".into()
            }
        );
        bench
    }

    /// The next call but for the looks at the version of the store, which is the same or later.
    async fn call(&mut self) -> Call {
        loop {
            let call = self.any_call().await;
            if !call.is_look() {
                return call;
            }
            call.answer("200 OK", &store_at("99")).await;
        }
    }

    async fn any_call(&mut self) -> Call {
        self.calls.recv().await.unwrap()
    }

    /// Another cluster answers from now on.
    fn lead_away(&self) {
        self.whose.send_replace(("200 OK", kube_system("theirs")));
    }

    fn lead_back(&self) {
        self.whose.send_replace(("200 OK", kube_system("ours")));
    }

    async fn event(&mut self) -> WatchEvent<PodFacts> {
        let event = self.events.recv().await.unwrap();
        assert_eq!(event.scope.as_deref(), Some("shop"));
        match event.change {
            Change::Pod(event) => event,
            other => panic!("{other:?}"),
        }
    }

    async fn broken(&mut self) -> Broken {
        match self.event().await {
            WatchEvent::Broken(broken) => broken,
            other => panic!("{other:?}"),
        }
    }
}

/// Passes all calls on but those that ask whose the API server is.
async fn serve(
    listener: TcpListener,
    whose: watch::Receiver<(&'static str, String)>,
    calls: mpsc::Sender<Call>,
) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else {
                break;
            };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap();
        let Some(target) = head.split(' ').nth(1) else {
            continue;
        };
        let target = target.to_owned();
        let call = Call { target, stream };
        if call.target == "/api/v1/namespaces/kube-system" {
            let (status, body) = whose.borrow().clone();
            call.answer(status, &body).await;
        } else if calls.send(call).await.is_err() {
            return;
        }
    }
}

impl Call {
    fn is_look(&self) -> bool {
        self.target.ends_with("limit=1")
    }

    async fn answer(mut self, status: &str, body: &str) {
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.stream.write_all(answer.as_bytes()).await.unwrap();
    }

    /// Opens the watch that the call asks for.
    async fn open(&mut self) {
        assert!(self.target.contains("watch=true"), "{}", self.target);
        let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
        self.stream.write_all(head.as_bytes()).await.unwrap();
    }

    async fn chunk(&mut self, text: &str) {
        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
        self.stream.write_all(chunk.as_bytes()).await.unwrap();
    }

    async fn line(&mut self, event: &str, object: &str) {
        self.chunk(&format!("{{\"type\":\"{event}\",\"object\":{object}}}\n"))
            .await;
    }

    async fn end(mut self) {
        self.stream.write_all(b"0\r\n\r\n").await.unwrap();
    }
}

fn pod(name: &str, version: &str) -> String {
    format!(
        r#"{{"metadata":{{"namespace":"shop","name":"{name}","uid":"{name}-uid","resourceVersion":"{version}"}}}}"#
    )
}

fn kube_system(uid: &str) -> String {
    format!(r#"{{"metadata":{{"name":"kube-system","uid":"{uid}"}}}}"#)
}

/// A page of a list of a store at this version.
fn store_at(version: &str) -> String {
    format!(
        r#"{{"metadata":{{"resourceVersion":"{version}"}},"items":[{}]}}"#,
        pod("a", version)
    )
}

fn names(event: &WatchEvent<PodFacts>) -> Vec<&str> {
    match event {
        WatchEvent::Page(pods) => pods.iter().map(|pod| &*pod.name).collect(),
        WatchEvent::Applied(pod) => vec!["applied", &pod.name],
        WatchEvent::Deleted { object: pod, .. } => vec!["deleted", &pod.name],
        other => panic!("{other:?}"),
    }
}

const GONE: &str =
    r#"{"kind":"Status","code":410,"reason":"Expired","message":"too old resource version"}"#;

#[tokio::test]
async fn lists_pages_with_a_quorum_and_watches_from_there() {
    let mut bench = Bench::start().await;
    let call = bench.call().await;
    assert_eq!(call.target, "/api/v1/namespaces/shop/pods?&limit=500");
    call.answer(
        "200 OK",
        r#"{"metadata":{"resourceVersion":"10","continue":"c d"},"items":[]}"#,
    )
    .await;
    let call = bench.call().await;
    assert_eq!(
        call.target,
        "/api/v1/namespaces/shop/pods?&limit=500&continue=c+d"
    );
    call.answer(
        "200 OK",
        r#"{"metadata":{"resourceVersion":"10"},"items":[]}"#,
    )
    .await;
    let call = bench.call().await;
    for part in [
        "resourceVersion=10",
        "watch=true",
        "allowWatchBookmarks=true",
        "timeoutSeconds=",
    ] {
        assert!(
            call.target.contains(part),
            "{part} is not in {}",
            call.target
        );
    }
    assert!(
        !call.target.contains("resourceVersionMatch"),
        "{}",
        call.target
    );
}

#[tokio::test]
async fn events_come_at_once_and_the_end_is_no_event() {
    let mut bench = Bench::listed().await;
    let mut watch = bench.call().await;
    watch.open().await;
    watch.line("ADDED", &pod("b", "11")).await;
    assert_eq!(names(&bench.event().await), ["applied", "b"]);
    watch
        .line(
            "BOOKMARK",
            r#"{"kind":"Pod","metadata":{"resourceVersion":"15"}}"#,
        )
        .await;
    watch.line("DELETED", &pod("a", "16")).await;
    assert_eq!(names(&bench.event().await), ["deleted", "a"]);
    watch
        .line(
            "BOOKMARK",
            r#"{"kind":"Pod","metadata":{"resourceVersion":"18"}}"#,
        )
        .await;
    watch.end().await;
    let mut watch = bench.call().await;
    assert!(
        watch.target.contains("resourceVersion=18"),
        "{}",
        watch.target
    );
    watch.open().await;
    watch.line("MODIFIED", &pod("b", "19")).await;
    assert_eq!(names(&bench.event().await), ["applied", "b"]);
}

#[tokio::test]
async fn a_line_that_was_cut_is_asked_for_again() {
    let mut bench = Bench::listed().await;
    let mut watch = bench.call().await;
    watch.open().await;
    watch.line("ADDED", &pod("b", "11")).await;
    assert_eq!(names(&bench.event().await), ["applied", "b"]);
    watch.chunk(r#"{"type":"ADDED","object":{"meta"#).await;
    watch.end().await;
    let watch = bench.call().await;
    assert!(
        watch.target.contains("resourceVersion=11"),
        "{}",
        watch.target
    );
}

#[tokio::test]
async fn a_connection_that_breaks_is_told_and_healed_after_probation() {
    let mut bench = Bench::listed().await;
    let mut watch = bench.call().await;
    watch.open().await;
    watch.line("ADDED", &pod("b", "11")).await;
    assert_eq!(names(&bench.event().await), ["applied", "b"]);
    drop(watch);
    assert_eq!(bench.broken().await.kind, BrokenKind::Unreachable);
    let mut watch = bench.call().await;
    assert!(
        watch.target.contains("resourceVersion=11"),
        "{}",
        watch.target
    );
    watch.open().await;
    assert_eq!(bench.event().await, WatchEvent::Healthy);
    // The line that was being read when probation ended is not lost.
    watch.line("MODIFIED", &pod("b", "12")).await;
    assert_eq!(names(&bench.event().await), ["applied", "b"]);
}

#[tokio::test]
async fn a_store_that_was_taken_back_is_listed_anew() {
    let mut bench = Bench::listed().await;
    drop(bench.call().await);
    assert_eq!(bench.broken().await.kind, BrokenKind::Unreachable);
    let look = bench.any_call().await;
    assert!(look.is_look(), "{}", look.target);
    assert!(!look.target.contains("resourceVersion"), "{}", look.target);
    look.answer("200 OK", &store_at("9")).await;
    assert_eq!(bench.event().await, WatchEvent::Listing);
    let list = bench.any_call().await;
    assert!(list.target.contains("limit=500"), "{}", list.target);
    list.answer("200 OK", &store_at("9")).await;
    assert_eq!(names(&bench.event().await), ["a"]);
    assert_eq!(
        bench.event().await,
        WatchEvent::Listed {
            resource_version: "9".into()
        }
    );
}

#[tokio::test]
async fn an_event_ends_probation() {
    let mut bench = Bench::listed().await;
    bench
        .call()
        .await
        .answer("500 Internal Server Error", "no leader")
        .await;
    assert_eq!(bench.broken().await.kind, BrokenKind::Failed);
    let mut watch = bench.call().await;
    watch.open().await;
    watch.line("ADDED", &pod("b", "11")).await;
    assert_eq!(bench.event().await, WatchEvent::Healthy);
    assert_eq!(names(&bench.event().await), ["applied", "b"]);
}

#[tokio::test]
async fn too_old_a_version_in_the_stream_is_a_list_and_never_healthy() {
    let mut bench = Bench::listed().await;
    drop(bench.call().await);
    assert_eq!(bench.broken().await.kind, BrokenKind::Unreachable);
    let mut watch = bench.call().await;
    watch.open().await;
    watch.line("ERROR", GONE).await;
    watch.end().await;
    assert_eq!(bench.event().await, WatchEvent::Listing);
    let list = bench.call().await;
    assert!(!list.target.contains("resourceVersion"), "{}", list.target);
}

#[tokio::test]
async fn too_old_a_version_as_an_answer_is_a_list() {
    let mut bench = Bench::listed().await;
    bench.call().await.answer("410 Gone", GONE).await;
    assert_eq!(bench.event().await, WatchEvent::Listing);
}

#[tokio::test]
async fn a_kind_that_is_not_served_is_named_as_such() {
    let mut bench = Bench::start().await;
    bench
        .call()
        .await
        .answer("404 Not Found", "404 page not found\n")
        .await;
    assert_eq!(bench.event().await, WatchEvent::Listing);
    let broken = bench.broken().await;
    assert_eq!(broken.kind, BrokenKind::Missing);
    assert!(broken.message.contains("CRD"), "{}", broken.message);
}

#[tokio::test]
async fn what_cannot_be_understood_is_told_and_listed_again() {
    for bad in [
        "{}",
        "not json",
        r#"{"type":"ADDED","object":{"metadata":{"name":"b"}}}"#,
    ] {
        let mut bench = Bench::listed().await;
        let mut watch = bench.call().await;
        watch.open().await;
        watch.chunk(&format!("{bad}\n")).await;
        let broken = bench.broken().await;
        assert_eq!(broken.kind, BrokenKind::Failed, "{bad}");
        assert!(
            broken.message.contains("cannot be understood"),
            "{}",
            broken.message
        );
        assert_eq!(bench.event().await, WatchEvent::Listing);
    }
}

const SOON: Duration = Duration::from_millis(200);

#[tokio::test]
async fn what_another_cluster_shows_is_not_heard() {
    // It answers when a watch has ended, and its stream would be taken for a change.
    let mut bench = Bench::listed().await;
    let mut watch = bench.call().await;
    watch.open().await;
    watch.line("ADDED", &pod("b", "11")).await;
    assert_eq!(names(&bench.event().await), ["applied", "b"]);
    bench.lead_away();
    watch.end().await;
    let mut watch = bench.call().await;
    watch.open().await;
    watch.line("DELETED", &pod("a", "12")).await;
    let broken = bench.broken().await;
    assert_eq!(broken.kind, BrokenKind::Stranger);
    for part in ["ClusterNameTaken", "UID theirs", "not ours"] {
        assert!(broken.message.contains(part), "{}", broken.message);
    }
    // A list that is asked for is not made.
    bench.relist.send_replace(());
    assert_eq!(bench.event().await, WatchEvent::Listing);
    assert_eq!(bench.event().await, WatchEvent::Listing, "once more");
    assert!(bench.calls.is_empty(), "it lists what is not ours");

    // The address leads back, and away again while the list is under way.
    bench.lead_back();
    let list = bench.call().await;
    assert!(list.target.contains("limit=500"), "{}", list.target);
    bench.lead_away();
    list.answer("200 OK", &store_at("20")).await;
    let mut event = bench.event().await;
    while event == WatchEvent::Listing {
        if *bench.whose.borrow() != ("200 OK", kube_system("ours")) {
            bench.lead_back();
            bench.call().await.answer("200 OK", &store_at("21")).await;
        }
        event = bench.event().await;
    }
    assert_eq!(names(&event), ["a"]);
    let listed = WatchEvent::Listed {
        resource_version: "21".into(),
    };
    assert_eq!(bench.event().await, listed);
}

#[tokio::test]
async fn who_cannot_say_whose_it_is_is_not_believed() {
    let mut bench = Bench::start().await;
    let forbidden = r#"{"kind":"Status","code":403,"reason":"Forbidden","message":"forbidden"}"#;
    bench
        .whose
        .send_replace(("403 Forbidden", forbidden.to_owned()));
    assert_eq!(bench.event().await, WatchEvent::Listing);
    let broken = bench.broken().await;
    assert_eq!(broken.kind, BrokenKind::Denied);
    for part in ["namespace kube-system", "forbidden"] {
        assert!(broken.message.contains(part), "{}", broken.message);
    }
    assert!(bench.calls.is_empty(), "it lists");
}

#[tokio::test]
async fn silence_is_a_failure() {
    let mut bench = Bench::listed_within(Limits {
        line: SOON,
        ..LIMITS
    })
    .await;
    let mut watch = bench.call().await;
    watch.open().await;
    watch.line("ADDED", &pod("b", "11")).await;
    assert_eq!(names(&bench.event().await), ["applied", "b"]);
    let broken = bench.broken().await;
    assert_eq!(broken.kind, BrokenKind::Unreachable);
    assert!(broken.message.contains("silent"), "{}", broken.message);
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_a_failure() {
    let mut bench = Bench::listed_within(Limits {
        open: SOON,
        ..LIMITS
    })
    .await;
    let _watch = bench.call().await;
    assert_eq!(
        &*bench.broken().await.message,
        "no answer to a watch within 200ms"
    );

    let mut bench = Bench::start_within(Limits {
        page: SOON,
        ..LIMITS
    })
    .await;
    let _list = bench.call().await;
    assert_eq!(bench.event().await, WatchEvent::Listing);
    assert_eq!(
        &*bench.broken().await.message,
        "no answer to a list within 200ms"
    );
}

#[tokio::test]
async fn a_list_that_is_asked_for_is_made_at_once() {
    let mut bench = Bench::listed().await;
    let mut watch = bench.call().await;
    watch.open().await;
    bench.relist.send_replace(());
    let list = r#"{"metadata":{"resourceVersion":"20"},"items":[]}"#;
    let call = bench.call().await;
    assert!(!call.target.contains("watch=true"), "{}", call.target);
    call.answer("200 OK", list).await;
    assert_eq!(bench.event().await, WatchEvent::Listing);
    assert_eq!(names(&bench.event().await), [""; 0]);
    let listed = WatchEvent::Listed {
        resource_version: "20".into(),
    };
    assert_eq!(bench.event().await, listed);
}

#[tokio::test]
async fn an_answer_without_end_is_a_failure() {
    let limits = Limits {
        page_bytes: 1000,
        line_bytes: 200,
        ..LIMITS
    };
    let mut bench = Bench::listed_within(limits).await;
    let mut watch = bench.call().await;
    watch.open().await;
    watch.line("ADDED", &pod(&"b".repeat(200), "11")).await;
    let broken = bench.broken().await;
    assert_eq!(broken.kind, BrokenKind::Failed);
    assert!(broken.message.contains("a watch"), "{}", broken.message);

    let mut bench = Bench::start_within(limits).await;
    let list = format!("{{\"items\":[{}", " ".repeat(1000));
    bench.call().await.answer("200 OK", &list).await;
    assert_eq!(bench.event().await, WatchEvent::Listing);
    let broken = bench.broken().await;
    assert_eq!(broken.kind, BrokenKind::Failed);
    assert!(broken.message.contains("a list"), "{}", broken.message);
}

#[tokio::test]
async fn it_ends_with_its_receiver() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client =
        Client::try_from(kube::Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
    let (sender, events) = mpsc::channel(1);
    let (_asks, relist) = watch::channel(());
    let watch = tokio::spawn(super::super::kinds::watch(
        Kind::Node,
        Home::new(client),
        None,
        sender,
        relist,
    ));
    drop(events);
    watch.await.unwrap();
}
