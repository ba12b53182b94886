//! A look at one pod and its node, past all watches.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::poll_fn;
use kube::Resource as _;
use kube::core::params::ListParams;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::failures::{overdue, undecodable};
use super::home::Home;
use super::machine::Failure;
use super::trim::{self, Texts, Trim};
use super::watch::{LIMITS, at_home, body};
use crate::model::facts::{NodeFacts, PodFacts};
use crate::model::text::Text;

/// How long a look may take, all of it.
const DEADLINE: Duration = Duration::from_secs(5);

/// Asks how a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Of whoever asks, to know the answer by.
    pub id: u64,
    /// The pod's namespace.
    pub namespace: Text,
    /// The pod's name.
    pub name: Text,
}

/// What the API server shows; `None` for what is not there.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The pod.
    pub pod: Option<PodFacts>,
    /// The node that it is on; `None` too where only namespaces may be read.
    pub node: Option<NodeFacts>,
}

/// What became of a look.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What was asked.
    pub question: Question,
    /// What was seen, or why nothing was.
    pub seen: Result<Seen, Text>,
}

/// Answers questions, so many at once, until nobody asks any more. Each is answered in seconds.
pub async fn look(
    home: Home,
    questions: mpsc::Receiver<Question>,
    answers: mpsc::Sender<Answer>,
    at_once: usize,
) {
    look_within(home, questions, answers, (at_once, DEADLINE)).await;
}

async fn look_within(
    home: Home,
    mut questions: mpsc::Receiver<Question>,
    answers: mpsc::Sender<Answer>,
    (at_once, deadline): (usize, Duration),
) {
    let questions = poll_fn(|context| questions.poll_recv(context));
    let answer = async |question: Question| {
        let seen = timeout(deadline, see(&home, &question))
            .await
            .unwrap_or_else(|_| Err(overdue("a look at a pod", deadline)));
        let seen = seen.map_err(Failure::message);
        // Whoever asked may have ended.
        let _ = answers.send(Answer { question, seen }).await;
    };
    questions.for_each_concurrent(at_once, answer).await;
}

/// Whose the API server is, is looked at before and after: what another one shows is worth nothing.
async fn see(home: &Home, question: &Question) -> Result<Seen, Failure> {
    let Question {
        namespace, name, ..
    } = question;
    at_home(home).await?;
    let pod = one::<PodFacts>(home, Some(namespace), name).await?;
    let pod = pod.filter(|pod| pod.namespace == *namespace && pod.name == *name);
    let node = match pod.as_ref().and_then(|pod| pod.node.as_ref()) {
        // No Role lets them be read.
        Some(_) if !home.namespaces().is_empty() => None,
        Some(node) => one::<NodeFacts>(home, None, node)
            .await?
            .filter(|found| found.name == *node),
        None => None,
    };
    at_home(home).await?;
    Ok(Seen { pod, node })
}

/// One object as a quorum of etcd holds it: by a list without a resourceVersion, as the watches begin with,
/// and not by a get, which may need another right.
async fn one<T: Trim>(
    home: &Home,
    namespace: Option<&str>,
    name: &str,
) -> Result<Option<T>, Failure> {
    let path = T::Resource::url_path(&(), namespace);
    let params = ListParams::default().fields(&format!("metadata.name={name}"));
    let body = body(home, &path, &params, LIMITS).await?;
    let page = trim::page::<T>(&body, &mut Texts::default());
    let page = page.map_err(|error| undecodable(&error))?;
    Ok(page.items.into_iter().next())
}

#[cfg(test)]
mod tests {
    use kube::Client;
    use wiremock::matchers::{path, query_param, query_param_is_missing};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;
    use crate::model::facts::Tristate;

    async fn server() -> (MockServer, Home) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let server = MockServer::start().await;
        let client = Client::try_from(kube::Config::new(server.uri().parse().unwrap())).unwrap();
        (server, Home::new(client))
    }

    fn json(body: &str) -> ResponseTemplate {
        ResponseTemplate::new(200).set_body_raw(body.as_bytes().to_vec(), "application/json")
    }

    async fn is_of(server: &MockServer, uid: &str, times: u64) {
        let body = format!(r#"{{"metadata":{{"name":"kube-system","uid":"{uid}"}}}}"#);
        Mock::given(path("/api/v1/namespaces/kube-system"))
            .respond_with(json(&body))
            .up_to_n_times(times)
            .mount(server)
            .await;
    }

    async fn has(server: &MockServer, resource: &str, name: &str, answer: ResponseTemplate) {
        Mock::given(path(resource))
            .and(query_param(
                "fieldSelector",
                format!("metadata.name={name}"),
            ))
            .and(query_param_is_missing("resourceVersion"))
            .respond_with(answer)
            .mount(server)
            .await;
    }

    async fn answer(home: Home) -> Answer {
        answer_within(home, DEADLINE).await
    }

    async fn answer_within(home: Home, deadline: Duration) -> Answer {
        let (asks, questions) = mpsc::channel(1);
        let (answers, mut answered) = mpsc::channel(1);
        tokio::spawn(look_within(home, questions, answers, (4, deadline)));
        let question = Question {
            id: 7,
            namespace: "shop".into(),
            name: "p".into(),
        };
        asks.send(question.clone()).await.unwrap();
        let answer = answered.recv().await.unwrap();
        assert_eq!(answer.question, question);
        answer
    }

    const POD: &str = r#"{"metadata":{"resourceVersion":"10"},"items":[
        {"metadata":{"namespace":"shop","name":"p","uid":"u","resourceVersion":"9"},
         "spec":{"nodeName":"n1"},
         "status":{"conditions":[{"type":"Ready","status":"True"}]}}]}"#;
    const NODE: &str = r#"{"metadata":{"resourceVersion":"10"},"items":[
        {"metadata":{"name":"n1","uid":"v","resourceVersion":"8"},
         "status":{"conditions":[{"type":"Ready","status":"False"}]}}]}"#;
    const NONE: &str = r#"{"metadata":{"resourceVersion":"10"},"items":[]}"#;

    #[tokio::test]
    async fn a_pod_is_seen_with_its_node() {
        let (server, home) = server().await;
        is_of(&server, "ours", u64::MAX).await;
        has(&server, "/api/v1/namespaces/shop/pods", "p", json(POD)).await;
        has(&server, "/api/v1/nodes", "n1", json(NODE)).await;
        let seen = answer(home).await.seen.unwrap();
        assert_eq!(seen.pod.map(|pod| pod.ready), Some(Tristate::True));
        assert_eq!(seen.node.map(|node| node.ready), Some(Tristate::False));
    }

    #[tokio::test]
    async fn what_is_not_there_is_seen_to_be_gone_and_what_cannot_be_read_is_not() {
        let (server, home) = server().await;
        is_of(&server, "ours", u64::MAX).await;
        has(&server, "/api/v1/namespaces/shop/pods", "p", json(NONE)).await;
        let seen = answer(home.clone()).await.seen.unwrap();
        assert_eq!((seen.pod, seen.node), (None, None));
        server.reset().await;
        is_of(&server, "ours", u64::MAX).await;
        let forbidden = ResponseTemplate::new(403).set_body_string(
            r#"{"kind":"Status","code":403,"reason":"Forbidden","message":"no pods"}"#,
        );
        has(&server, "/api/v1/namespaces/shop/pods", "p", forbidden).await;
        let why = answer(home).await.seen.unwrap_err();
        assert!(why.contains("no pods"), "{why}");
    }

    #[tokio::test]
    async fn what_another_cluster_shows_counts_for_nothing() {
        let (server, home) = server().await;
        is_of(&server, "ours", 1).await;
        is_of(&server, "theirs", u64::MAX).await;
        has(&server, "/api/v1/namespaces/shop/pods", "p", json(NONE)).await;
        let why = answer(home).await.seen.unwrap_err();
        assert!(why.contains("ClusterNameTaken"), "{why}");
    }

    #[tokio::test]
    async fn an_api_server_that_is_silent_is_not_waited_for_without_end() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let answer = answer_within(Home::new(client), Duration::from_millis(50)).await;
        let why = answer.seen.unwrap_err();
        assert!(why.contains("within 50ms"), "{why}");
    }
}
