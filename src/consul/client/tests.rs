//! What a real Consul cannot be made to answer.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, Respond, ResponseTemplate};

use super::super::wire::Node;
use super::super::{Cause, Consistency, ConsulSettings, Quality, Txn, TxnOp, Watch};
use super::*;

fn client(addresses: &[String]) -> Client {
    let settings = ConsulSettings {
        addresses: addresses.join(","),
        ..Default::default()
    };
    Client::new(ConsulConfig::new(settings).unwrap()).unwrap()
}

async fn server(response: impl Respond + 'static) -> (MockServer, Client) {
    let server = MockServer::start().await;
    Mock::given(wiremock::matchers::any())
        .respond_with(response)
        .mount(&server)
        .await;
    let client = client(&[server.uri()]);
    (server, client)
}

/// Takes connections, reads one request from each, answers with these bytes and closes. Gives its
/// address and how many requests it took.
async fn raw_server(answer: &'static [u8]) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            if stream.read(&mut head).await.is_ok_and(|length| length > 0) {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(answer).await;
            }
        }
    });
    (format!("http://{address}"), taken)
}

/// An address where nobody listens.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    format!("http://{address}")
}

fn read() -> Request<'static> {
    Request::get("catalog/nodes").consistency(Consistency::Consistent)
}

fn write() -> Request<'static> {
    Request::put("txn").body(b"[]".to_vec())
}

#[tokio::test]
async fn the_index_of_an_error_is_not_one() {
    let error = ResponseTemplate::new(429).insert_header("X-Consul-Index", "1");
    let (_server, client) = server(error.set_body_string("rate limit exceeded")).await;
    let answer = client.send(&read()).await.unwrap();
    assert_eq!((answer.status, answer.index), (429, None));
    assert_eq!(answer.success().unwrap_err().class(), ErrorClass::SlowDown);
}

#[tokio::test]
async fn an_answer_is_authoritative_only_if_nothing_speaks_against_it() {
    let headers = |more: &[(&str, &str)]| {
        let mut answer = ResponseTemplate::new(200)
            .insert_header("X-Consul-Index", "7")
            .insert_header("X-Consul-KnownLeader", "true")
            .insert_header("X-Consul-Effective-Consistency", "consistent")
            .insert_header("X-Consul-Default-ACL-Policy", "allow");
        for (name, value) in more {
            answer = answer.insert_header(*name, *value);
        }
        answer.set_body_string("[]")
    };
    let cases = [
        (
            headers(&[]),
            Consistency::Consistent,
            Quality::Authoritative,
        ),
        (headers(&[]), Consistency::Default, Quality::Leased),
        (headers(&[]), Consistency::Stale, Quality::Stale),
        (
            headers(&[("X-Consul-KnownLeader", "false")]),
            Consistency::Consistent,
            Quality::Stale,
        ),
        (
            headers(&[("X-Consul-Effective-Consistency", "stale")]),
            Consistency::Default,
            Quality::Stale,
        ),
        (
            headers(&[("X-Consul-Results-Filtered-By-ACLs", "true")]),
            Consistency::Consistent,
            Quality::Filtered,
        ),
        // ACLs were turned on since the token was looked at.
        (
            headers(&[("X-Consul-Default-ACL-Policy", "deny")]),
            Consistency::Consistent,
            Quality::Unverified,
        ),
    ];
    for (answer, consistency, quality) in cases {
        let server = MockServer::start().await;
        let off = ResponseTemplate::new(401).set_body_string("ACL support disabled");
        Mock::given(path("/v1/acl/token/self"))
            .respond_with(off)
            .mount(&server)
            .await;
        Mock::given(path("/v1/catalog/nodes"))
            .respond_with(answer)
            .mount(&server)
            .await;
        let client = client(&[server.uri()]);
        let before = client.nodes(None, consistency).await.unwrap();
        assert!(
            before.quality >= Quality::Unverified,
            "nobody looked at the token yet"
        );
        assert_eq!(client.check_token().await.unwrap(), TokenStanding::AclsOff);
        let observed = client.nodes(None, consistency).await.unwrap();
        assert_eq!(observed.quality, quality);
        let authoritative = quality == Quality::Authoritative;
        assert_eq!(observed.authoritative().is_some(), authoritative);
        client.set_token(&SecretString::from("another")).unwrap();
        let after = client.nodes(None, consistency).await.unwrap();
        assert!(
            after.quality >= Quality::Unverified,
            "nobody looked at this token yet"
        );
    }
}

/// As a proxy answers that has no Consul behind it.
#[tokio::test]
async fn what_lacks_consuls_headers_is_no_absence() {
    const INDEX: (&str, &str) = ("X-Consul-Index", "7");
    const LEADER: (&str, &str) = ("X-Consul-KnownLeader", "true");
    let lacking: [&[(&str, &str)]; 5] = [
        &[],
        &[INDEX],
        &[LEADER],
        &[LEADER, ("X-Consul-Index", "0")],
        &[LEADER, ("X-Consul-Index", "soon")],
    ];
    let cases = lacking.map(|headers| (headers, false));
    for (headers, known) in cases.into_iter().chain([(&[INDEX, LEADER][..], true)]) {
        let answer = |status: u16, body: &str| {
            let answer = ResponseTemplate::new(status).set_body_string(body);
            let add = |answer: ResponseTemplate, (name, value): &(&'static str, &str)| {
                answer.insert_header(*name, *value)
            };
            headers.iter().fold(answer, add)
        };
        let server = MockServer::start().await;
        let off = ResponseTemplate::new(401).set_body_string("ACL support disabled");
        for (at, answer) in [
            ("/v1/acl/token/self", off),
            ("/v1/catalog/nodes", answer(200, "[]")),
            (
                "/v1/catalog/node-services/n",
                answer(200, r#"{"Node":null,"Services":null}"#),
            ),
            ("/v1/health/node/n", answer(200, "[]")),
            ("/v1/kv/k", answer(404, "")),
            ("/v1/kv/l", answer(200, "[]")),
        ] {
            Mock::given(path(at))
                .respond_with(answer)
                .mount(&server)
                .await;
        }
        let client = client(&[server.uri()]);
        client.check_token().await.unwrap();
        for consistency in [Consistency::Consistent, Consistency::Default] {
            let right = match consistency {
                _ if !known => Quality::Unidentified,
                Consistency::Consistent => Quality::Authoritative,
                _ => Quality::Leased,
            };
            let qualities = [
                client.nodes(None, consistency).await.unwrap().quality,
                client
                    .node_services("n", consistency)
                    .await
                    .unwrap()
                    .quality,
                client.node_checks("n", consistency).await.unwrap().quality,
                client.kv_get("l", consistency).await.unwrap().quality,
            ];
            assert_eq!(qualities, [right; 4], "{headers:?}");
            let key = client.kv_get("k", consistency).await;
            assert_eq!(
                key.ok().map(|found| (found.value, found.quality)),
                known.then_some((None, right)),
                "{headers:?}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_no_answer_to_the_question_is_malformed() {
    let bodies = [
        "{}",
        "[]",
        "null",
        r#"{"Node":null}"#,
        r#"{"Services":null}"#,
        r#"{"Node":{"Node":"n"}}"#,
    ];
    for body in bodies {
        let answer = ResponseTemplate::new(200).set_body_string(body);
        let (_server, client) = server(answer).await;
        let services = client.node_services("n", Consistency::Consistent).await;
        let error = services.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Malformed, "{body}");
        if body != "[]" {
            let checks = client.node_checks("n", Consistency::Consistent).await;
            assert_eq!(checks.unwrap_err().class(), ErrorClass::Malformed, "{body}");
        }
    }
    // As Consul shows a node that is missing, and one without services.
    for (body, there) in [
        (r#"{"Node":null,"Services":null}"#, false),
        (r#"{"Node":{"Node":"n"},"Services":null}"#, true),
    ] {
        let answer = ResponseTemplate::new(200).set_body_string(body);
        let (_server, client) = server(answer).await;
        let services = client.node_services("n", Consistency::Consistent).await;
        assert_eq!(services.unwrap().value.is_some(), there, "{body}");
    }
}

/// Servers as the catalog has them, with headers of Consul's.
fn servers(body: &str) -> ResponseTemplate {
    ResponseTemplate::new(200)
        .insert_header("X-Consul-Index", "7")
        .insert_header("X-Consul-KnownLeader", "true")
        .set_body_string(body)
}

const ONE_SERVER: &str = r#"{"Node":{"Address":"10.0.0.7","Datacenter":"dc1"},
    "Service":{"ID":"consul","Address":"","Port":8300,"Meta":{"version":"1.22.7"}}}"#;

#[tokio::test]
async fn an_odd_entry_of_their_name_hides_no_server() {
    for odd in [
        r#"{"Node":null,"Service":null}"#,
        r#"{"Node":{"Address":null,"Datacenter":null},"Service":{"ID":null,"Address":null,"Port":null,"Meta":null}}"#,
        r#"{"Service":{"ID":"consul-0","Port":70000,"Meta":{"version":null}}}"#,
        r#"{"Service":{"ID":"consul","Address":"10.0.0.9","Port":-1}}"#,
    ] {
        let body = format!("[{odd},{ONE_SERVER}]");
        let (_server, client) = server(servers(&body)).await;
        let at: Vec<SocketAddr> = vec!["10.0.0.7:8300".parse().unwrap()];
        assert_eq!(client.servers().await.unwrap(), at, "{odd}");
        assert_eq!(client.datacenter().await.unwrap(), Some("dc1".into()));
        let oldest = client.oldest_server().await.unwrap();
        assert_eq!(oldest, Some("1.22.7".into()), "{odd}");
    }
}

#[tokio::test]
async fn what_may_be_only_some_of_the_servers_are_none() {
    let body = format!("[{ONE_SERVER}]");
    let whole = servers(&body);
    let filtered = whole
        .clone()
        .insert_header("X-Consul-Results-Filtered-By-ACLs", "true");
    let unidentified = ResponseTemplate::new(200).set_body_string(body);
    for (answer, count) in [(whole, 1), (filtered, 0), (unidentified, 0)] {
        let (_server, client) = server(answer).await;
        assert_eq!(client.servers().await.unwrap().len(), count);
    }
}

#[tokio::test]
async fn the_next_address_is_tried_and_kept() {
    let (first, second) = (nobody().await, MockServer::start().await);
    let answer = ResponseTemplate::new(200).set_body_string("[]");
    Mock::given(wiremock::matchers::any())
        .respond_with(answer)
        .mount(&second)
        .await;
    let client = client(&[first, second.uri()]);
    for request in [write(), read(), write()] {
        assert_eq!(client.send(&request).await.unwrap().status, 200);
    }
    assert_eq!(client.transport().order().next(), Some(1));
    assert!(client.last_contact().is_some());
}

#[tokio::test]
async fn a_write_that_may_have_been_applied_is_not_repeated_elsewhere() {
    let (first, taken_first) = raw_server(b"").await;
    let (second, taken_second) =
        raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]").await;
    let two = client(&[first, second]);
    let error = two.send(&write()).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Ambiguous, "{error}");
    assert!(error.class().may_be_applied());
    assert_eq!(taken_second.load(Ordering::SeqCst), 0);
    // The next request starts at the other address.
    assert_eq!(two.send(&write()).await.unwrap().status, 200);
    assert_eq!(taken_first.load(Ordering::SeqCst), 1);
    two.transport().prefer(0);
    assert_eq!(
        two.send(&read()).await.unwrap().status,
        200,
        "a read may be repeated"
    );
    assert_eq!(taken_first.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_next_request_goes_elsewhere_after_a_failure_of_the_server() {
    let (first, second) = (MockServer::start().await, MockServer::start().await);
    let no_leader = ResponseTemplate::new(500).set_body_string("No cluster leader");
    for (server, answer) in [(&first, no_leader), (&second, ResponseTemplate::new(403))] {
        Mock::given(wiremock::matchers::any())
            .respond_with(answer)
            .mount(server)
            .await;
    }
    let client = client(&[first.uri(), second.uri()]);
    let statuses = [client.send(&read()).await, client.send(&read()).await];
    let statuses = statuses.map(|answer| answer.unwrap().status);
    assert_eq!(statuses, [500, 403]);
    assert_eq!(
        client.transport().order().next(),
        Some(1),
        "a refusal is no failure"
    );
}

#[tokio::test]
async fn nobody_there_means_that_nothing_was_applied() {
    let client = client(&[nobody().await, nobody().await]);
    let mut txn = Txn::new();
    txn.push(&TxnOp::KvGet { key: "k" }).unwrap();
    let error = client.apply(&txn).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unreachable, "{error}");
    assert!(error.to_string().starts_with("PUT /v1/txn: "), "{error}");
    assert_eq!((error.status(), client.last_contact()), (None, None));
}

#[tokio::test]
async fn broken_answers_are_errors() {
    let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{\"Node\":";
    let (address, _) = raw_server(cut).await;
    let error = client(&[address])
        .nodes(None, Consistency::Default)
        .await
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Ambiguous, "{error}");

    let (address, _) = raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 67108865\r\n\r\n").await;
    let error = client(&[address])
        .nodes(None, Consistency::Default)
        .await
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Malformed, "{error}");

    let html = ResponseTemplate::new(200).set_body_string("<html>welcome</html>");
    let (_server, client) = server(html).await;
    let error = client.nodes(None, Consistency::Default).await.unwrap_err();
    assert_eq!(
        (error.class(), error.status()),
        (ErrorClass::Malformed, Some(200)),
        "{error}"
    );
    let mut txn = Txn::new();
    txn.push(&TxnOp::KvGet { key: "k" }).unwrap();
    let error = client.apply(&txn).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Malformed, "{error}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let away = ResponseTemplate::new(301).insert_header("Location", "http://127.0.0.1:1/");
    let (_server, client) = server(away).await;
    let error = client.nodes(None, Consistency::Default).await.unwrap_err();
    assert_eq!(
        (error.class(), error.status()),
        (ErrorClass::Malformed, Some(301)),
        "{error}"
    );
}

#[tokio::test]
async fn no_request_outlives_its_deadline() {
    let late = ResponseTemplate::new(200).set_delay(Duration::from_secs(20));
    let (_server, client) = server(late).await;
    let began = Instant::now();
    let request = write().within(Duration::from_millis(200));
    let error = client.send(&request).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Ambiguous, "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
    let hurried = client.within(Duration::from_millis(200));
    let error = hurried.send(&read()).await.unwrap_err();
    assert!(error.to_string().contains("within 200ms"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn the_token_is_sent_and_never_shown() {
    let ok = ResponseTemplate::new(200).set_body_string("[]");
    let (server, client) = server(ok).await;
    let secret = || SecretString::from("very-secret");
    client.send(&read()).await.unwrap();
    client.set_token(&secret()).unwrap();
    let answer = client.send(&read()).await.unwrap();
    client.send(&read().without_token()).await.unwrap();
    client
        .send(&read().token(SecretString::from("other")))
        .await
        .unwrap();
    client.set_token(&SecretString::from("")).unwrap();
    client.send(&read()).await.unwrap();
    let sent: Vec<_> = server.received_requests().await.unwrap();
    let tokens: Vec<_> = sent
        .iter()
        .map(|request| {
            request
                .headers
                .get(TOKEN)
                .map(|token| token.to_str().unwrap().to_owned())
        })
        .collect();
    let token = |token: &str| Some(token.to_owned());
    assert_eq!(
        tokens,
        [None, token("very-secret"), None, token("other"), None]
    );
    let request = read().token(secret()).body(b"very-secret".to_vec());
    assert_eq!(format!("{request:?}"), "GET /v1/catalog/nodes");
    assert!(!format!("{answer:?}").contains("very-secret"));
}

#[tokio::test]
async fn the_observer_is_told_of_every_request() {
    struct Seen(Mutex<Vec<(&'static str, Option<u16>)>>);
    impl Observer for Seen {
        fn observed(
            &self,
            endpoint: &'static str,
            code: Option<u16>,
            _elapsed: Duration,
            _blocking: bool,
        ) {
            lock(&self.0).push((endpoint, code));
        }
    }
    let server = MockServer::start().await;
    let seen = Arc::new(Seen(Mutex::default()));
    for (addresses, node) in [(server.uri(), "a"), (nobody().await, "b")] {
        let settings = ConsulSettings {
            addresses,
            ..Default::default()
        };
        let config = ConsulConfig::new(settings).unwrap();
        let client = Client::with_observer(config, seen.clone()).unwrap();
        client
            .node_checks(node, Consistency::Default)
            .await
            .unwrap_err();
    }
    assert_eq!(
        *lock(&seen.0),
        [("health/node", Some(404)), ("health/node", None)]
    );
}

/// Answers one after the other, the last one again and again.
struct Script(Mutex<Vec<ResponseTemplate>>);

impl Respond for Script {
    fn respond(&self, _request: &wiremock::Request) -> ResponseTemplate {
        let mut answers = lock(&self.0);
        if answers.len() > 1 {
            answers.remove(0)
        } else {
            answers[0].clone()
        }
    }
}

#[tokio::test]
async fn a_watch_gives_changes_and_failures_and_starts_again_when_the_index_goes_back() {
    let at = nodes_at;
    let answers = vec![
        at("7"),
        at("7"),
        at("9"),
        ResponseTemplate::new(500).set_body_string("No cluster leader"),
        at("9"),
        at("3"),
        at("3"),
        at("4"),
        at("4").set_delay(Duration::from_mins(1)),
    ];
    let server = MockServer::start().await;
    let script = Script(Mutex::new(answers));
    Mock::given(method("GET"))
        .respond_with(script)
        .mount(&server)
        .await;
    let client = client(&[server.uri()]);
    let nodes = client.watch_nodes(r#"Node == "n""#, Consistency::Default);
    let mut watch: Watch<_> = nodes
        .pace(Duration::from_millis(1))
        .wait(Duration::from_secs(2));

    let mut causes = Vec::new();
    for _ in 0..6 {
        causes.push(
            watch
                .next()
                .await
                .map(|change| change.cause)
                .map_err(|error| error.class()),
        );
    }
    let expected = [
        Ok(Cause::First),
        Ok(Cause::Moved),
        Err(ErrorClass::NoLeader),
        Ok(Cause::Recovered),
        Ok(Cause::WentBack),
        Ok(Cause::Moved),
    ];
    assert_eq!(causes, expected);
    // A call that is dropped loses nothing.
    let dropped = tokio::time::timeout(Duration::from_millis(100), watch.next()).await;
    assert!(dropped.is_err());

    let requests = server.received_requests().await.unwrap();
    let asked: Vec<_> = requests
        .iter()
        .map(|request| {
            let index = request.url.query_pairs().find(|(name, _)| name == "index");
            index
                .map(|(_, value)| value.into_owned())
                .unwrap_or_default()
        })
        .collect();
    assert_eq!(asked, ["", "7", "", "9", "", "9", "", "3", "4"]);
}

/// Nodes at this index.
fn nodes_at(index: &str) -> ResponseTemplate {
    ResponseTemplate::new(200)
        .insert_header("X-Consul-Index", index)
        .set_body_string("[]")
}

/// A watch with a server that gives these answers one after the other.
async fn watched(answers: Vec<ResponseTemplate>) -> (MockServer, Watch<Vec<Node>>) {
    let (server, client) = server(Script(Mutex::new(answers))).await;
    let watch = client.watch_nodes(r#"Node == "n""#, Consistency::Default);
    (server, watch.pace(Duration::from_millis(1)))
}

#[tokio::test]
async fn a_wait_that_is_cut_short_by_a_restore_does_not_begin_anew_with_its_index() {
    let never = nodes_at("33").set_delay(Duration::from_mins(1));
    let answers = vec![nodes_at("73"), nodes_at("73"), nodes_at("33"), never];
    let (server, mut watch) = watched(answers).await;
    for cause in [Cause::First, Cause::WentBack] {
        assert_eq!(watch.next().await.unwrap().cause, cause);
    }
    let dropped = tokio::time::timeout(Duration::from_millis(100), watch.next()).await;
    assert!(dropped.is_err());
    let requests = server.received_requests().await.unwrap();
    let last = requests.last().unwrap().url.query().unwrap();
    assert!(requests.len() == 4 && last.contains("index=33"), "{last}");
}

#[tokio::test]
async fn waits_that_are_always_cut_short_are_no_change_and_no_flood() {
    let (server, mut watch) = watched(vec![nodes_at("7")]).await;
    assert_eq!(watch.next().await.unwrap().cause, Cause::First);
    let dropped = tokio::time::timeout(Duration::from_secs(2), watch.next()).await;
    assert!(dropped.is_err(), "{dropped:?}");
    let requests = server.received_requests().await.unwrap().len();
    assert!((4..60).contains(&requests), "{requests}");
}

#[tokio::test]
async fn a_token_that_is_refused_as_unknown_is_no_longer_verified() {
    let server = MockServer::start().await;
    let token = ResponseTemplate::new(200).set_body_string(r#"{"AccessorID": "a"}"#);
    let unknown =
        ResponseTemplate::new(403).set_body_string("rpc error making call: ACL not found");
    let denied = ResponseTemplate::new(403).set_body_string("Permission denied: token with ...");
    for (at, answer) in [
        ("/v1/acl/token/self", token),
        ("/v1/catalog/nodes", unknown),
        ("/v1/txn", denied),
    ] {
        Mock::given(path(at))
            .respond_with(answer)
            .mount(&server)
            .await;
    }
    let client = client(&[server.uri()]);
    client.check_token().await.unwrap();
    assert!(client.is_token_verified());
    client.send(&Request::put("txn")).await.unwrap();
    assert!(client.is_token_verified());
    client.send(&read()).await.unwrap();
    assert!(!client.is_token_verified());
}
