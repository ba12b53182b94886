use serde_json::{Value, json};
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::consul::{ConsulConfig, ConsulSettings};
use crate::model::key::InstanceKey;
use crate::model::owner::Owner;
use crate::test_log::Log;

fn lost() -> ResponseTemplate {
    ResponseTemplate::new(502).set_body_string("the way back is broken")
}

fn found(body: &Value) -> ResponseTemplate {
    ResponseTemplate::new(200)
        .insert_header("X-Consul-Index", "7")
        .insert_header("X-Consul-KnownLeader", "true")
        .insert_header("X-Consul-LastContact", "0")
        .insert_header("X-Consul-Effective-Consistency", "consistent")
        .set_body_string(body.to_string())
}

fn node(services: &Value) -> ResponseTemplate {
    found(&json!({"Node": {"Node": "lictor-a--n1", "CreateIndex": 3}, "Services": services}))
}

/// Answers in turn; the last one for good.
async fn answers(server: &MockServer, at: &str, answers: Vec<ResponseTemplate>) {
    let last = answers.len();
    for (number, answer) in answers.into_iter().enumerate() {
        let mock = Mock::given(path(at)).respond_with(answer);
        let mock = if number + 1 == last {
            mock
        } else {
            mock.up_to_n_times(1)
        };
        mock.mount(server).await;
    }
}

async fn consul() -> (MockServer, Client) {
    let server = MockServer::start().await;
    let off = ResponseTemplate::new(401).set_body_string("ACL support disabled");
    answers(&server, "/v1/acl/token/self", vec![off]).await;
    let settings = ConsulSettings {
        addresses: server.uri(),
        ..ConsulSettings::default()
    };
    let client = Client::new(ConsulConfig::new(settings).unwrap()).unwrap();
    client.check_token().await.unwrap();
    (server, client)
}

fn doomed() -> Doomed {
    let cluster = "a".parse().unwrap();
    Doomed {
        key: InstanceKey {
            node: NodeName::for_kubernetes(&cluster, "n1"),
            id: InstanceId::observed("a.shop.web.web-0"),
        },
        owner: Owner::parse("Pod/shop/web-0").unwrap(),
        service: "web".to_owned(),
        index: 5,
    }
}

const FENCE: Fence<'_> = Fence {
    key: "lictor/v1/a/epoch",
    index: 9,
};

const INSTANCES: &str = "/v1/catalog/node-services/lictor-a--n1";

fn applied() -> ResponseTemplate {
    let epoch = json!({"KV": {"Key": FENCE.key, "ModifyIndex": 9}});
    found(&json!({"Results": [epoch], "Errors": null}))
}

fn stale() -> ResponseTemplate {
    let error = json!({"OpIndex": 1, "What": "failed to delete service: index is stale"});
    let body = json!({"Results": null, "Errors": [error]});
    ResponseTemplate::new(409).set_body_string(body.to_string())
}

#[tokio::test]
async fn a_removal_whose_answer_was_lost_is_read_again_and_told() {
    let (log, _guard) = Log::begin();
    let (server, client) = consul().await;
    answers(&server, "/v1/txn", vec![lost()]).await;
    answers(&server, INSTANCES, vec![node(&json!([]))]).await;
    answers(
        &server,
        "/v1/kv/lictor/v1/a/gc",
        vec![
            ResponseTemplate::new(404)
                .insert_header("X-Consul-KnownLeader", "true")
                .insert_header("X-Consul-Effective-Consistency", "consistent")
                .insert_header("X-Consul-Index", "7"),
        ],
    )
    .await;
    let mut remover = Remover::new(&client, FENCE, "its cluster is dead");
    remover.instances(&[doomed()]).await.unwrap();
    let key = "lictor/v1/a/gc";
    remover.one(Thing::Key { key, index: 6 }).await.unwrap();
    assert_eq!(remover.stayed, Vec::<String>::new());
    let all = Removed {
        instances: 1,
        keys: 1,
        ..Removed::default()
    };
    assert_eq!(remover.removed, all);
    let told = log.removals();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("a.shop.web.web-0") && told[0].contains("epoch=9"));
    assert!(told[1].contains("kind=\"key\"") && told[1].contains(key));
}

#[tokio::test]
async fn one_that_was_not_carried_out_is_asked_for_again_and_told_once() {
    let (log, _guard) = Log::begin();
    let (server, client) = consul().await;
    let there =
        json!([{"ID": "a.shop.web.web-0", "Service": "web", "CreateIndex": 4, "ModifyIndex": 5}]);
    answers(&server, "/v1/txn", vec![lost(), applied()]).await;
    answers(&server, INSTANCES, vec![node(&there)]).await;
    let mut remover = Remover::new(&client, FENCE, "");
    remover.instances(&[doomed()]).await.unwrap();
    assert_eq!((remover.removed.instances, log.removals().len()), (1, 1));
}

#[tokio::test]
async fn one_that_was_carried_out_late_is_told_too_and_one_that_changed_stays() {
    let (log, _guard) = Log::begin();
    let there = |created: u64| json!([{"ID": "A.shop.web.web-0", "Service": "web", "CreateIndex": created, "ModifyIndex": 12}]);
    let (server, client) = consul().await;
    answers(&server, "/v1/txn", vec![lost(), stale()]).await;
    // Someone made another one in its place.
    answers(&server, INSTANCES, vec![node(&there(4)), node(&there(12))]).await;
    let mut remover = Remover::new(&client, FENCE, "");
    remover.instances(&[doomed()]).await.unwrap();
    assert_eq!((remover.removed.instances, log.removals().len()), (1, 1));

    let (server, client) = consul().await;
    answers(&server, "/v1/txn", vec![lost(), stale()]).await;
    answers(&server, INSTANCES, vec![node(&there(4))]).await;
    let mut remover = Remover::new(&client, FENCE, "");
    remover.instances(&[doomed()]).await.unwrap();
    assert_eq!((remover.removed.instances, log.removals().len()), (0, 1));
    assert_eq!(remover.stayed.len(), 1);
}

fn source() -> DoomedEntry {
    let destination = crate::model::names::Destination::new("payment");
    let name = crate::model::source::SourceName::parse("web").unwrap();
    let gone = crate::model::key::source_key(&destination, name);
    let owner = Owner::intention(&"shop".into(), &"one".into());
    DoomedEntry {
        key: Key::Intentions(destination),
        gone: vec![(gone, owner)],
        changes: vec![Change::DeleteIntentions(5)],
    }
}

async fn config_entries(removals: Vec<ResponseTemplate>, there: &Value) -> (MockServer, Client) {
    let (server, client) = consul().await;
    let epoch = found(&json!([{"Key": FENCE.key, "ModifyIndex": 9}]));
    answers(&server, "/v1/kv/lictor/v1/a/epoch", vec![epoch]).await;
    let at = "/v1/config/service-intentions/payment";
    answers(&server, at, removals).await;
    let all = vec![found(there)];
    answers(&server, "/v1/config/service-intentions", all).await;
    (server, client)
}

#[tokio::test]
async fn an_intention_whose_removal_was_answered_by_nobody_is_told_once() {
    let cluster: ClusterName = "a".parse().unwrap();
    let there = json!([{
        "Kind": "service-intentions", "Name": "payment", "ModifyIndex": 5,
        "Sources": [{"Name": "web", "Action": "allow"}],
        "Meta": {"external-source": "kubernetes", "lictor-cluster": "a", "lictor-src-0": "shop/one=web"},
    }]);
    let yes = || ResponseTemplate::new(200).set_body_string("true");
    let no = || ResponseTemplate::new(200).set_body_string("false");
    for (removals, there, (removed, stayed)) in [
        (vec![lost(), no()], json!([]), (1, 0)),
        (vec![lost(), yes()], there.clone(), (1, 0)),
        (vec![lost(), no()], there.clone(), (0, 1)),
    ] {
        let (log, _guard) = Log::begin();
        let (_server, client) = config_entries(removals, &there).await;
        let mut remover = Remover::new(&client, FENCE, "");
        remover.entries(&cluster, &[source()]).await.unwrap();
        assert_eq!(remover.removed.intentions, removed, "{there}");
        assert_eq!(remover.stayed.len(), stayed, "{there}");
        let told = log.removals();
        assert_eq!(told.len(), removed, "{told:?}");
        assert!(told.iter().all(|line| line.contains("index=5")), "{told:?}");
    }
}
