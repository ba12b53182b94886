//! The texts of Consul's refusals, each from Consul itself.

use lictor::consul::{Client, ErrorClass, Request};
use serde_json::json;

use super::create_node;

#[allow(clippy::too_many_lines, reason = "a table")]
pub async fn texts_have_the_class_that_the_table_says(client: &Client) {
    use ErrorClass as C;
    const NODE: &str = "lictor-c1--refusals";
    create_node(client, NODE).await;
    let register = |body: serde_json::Value| {
        let mut whole = json!({"Node": NODE, "Address": "10.0.0.1", "SkipNodeUpdate": true});
        whole
            .as_object_mut()
            .unwrap()
            .extend(body.as_object().unwrap().clone());
        Request::put("catalog/register").json(&whole).unwrap()
    };
    let service = |fields: serde_json::Value| {
        let mut service = json!({"ID": "a", "Service": "a"});
        service
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        register(json!({"Service": service}))
    };
    let session = "adf4238a-882b-9ddc-4a9d-5b6758e4159e";
    let create_session =
        |body: serde_json::Value| Request::put("session/create").json(&body).unwrap();
    let filter = |filter: &'static str| Request::get("catalog/nodes").query("filter", filter);
    let port = json!({"Port": 1, "Ports": [{"Name": "a", "Port": 2, "Default": true}]});
    let cases = [
        (
            register(json!({"Invented": 1})),
            C::Refused,
            "unknown field",
        ),
        (
            Request::put("catalog/register").body(b"x".to_vec()),
            C::Refused,
            "decode failed",
        ),
        (
            register(json!({})).query("ns", "a"),
            C::Refused,
            "Enterprise feature",
        ),
        (
            register(json!({"Address": "", "SkipNodeUpdate": false})),
            C::Refused,
            "Must provide",
        ),
        (
            service(json!({"Address": "::"})),
            C::Refused,
            "Invalid service address",
        ),
        (
            service(json!({"Meta": {"a b": ""}})),
            C::Refused,
            "Invalid Service Meta",
        ),
        (service(port), C::Refused, "1 error occurred:"),
        (
            service(json!({"PeerName": "p"})),
            C::Refused,
            "cannot register requests with PeerName",
        ),
        (
            register(json!({"Check": {"Node": "other", "CheckID": "c"}})),
            C::Refused,
            "doesn't match register request node",
        ),
        (
            register(json!({"Check": {"CheckID": "c", "ServiceID": "missing"}})),
            C::Conflict,
            "Unknown service ID",
        ),
        (
            filter("a ==="),
            C::Refused,
            "Failed to create boolean expression evaluator",
        ),
        (
            filter(r#"Invented == """#),
            C::Refused,
            "Failed to create boolean expression evaluator",
        ),
        (
            Request::get("config")
                .segment("service-intentions")
                .query("filter", "a"),
            C::Refused,
            "filtering not supported",
        ),
        (
            Request::get("catalog/nodes").query("index", "x"),
            C::Refused,
            "Invalid index",
        ),
        (
            Request::get("catalog/nodes").query("dc", "x"),
            C::NoLeader,
            "No path to datacenter",
        ),
        (
            Request::put("kv")
                .path("lictor/v1/refused")
                .query("cas", "x"),
            C::Refused,
            "strconv.ParseUint",
        ),
        (
            Request::put("kv")
                .path("lictor/v1/refused")
                .body(vec![b'x'; 512 * 1024 + 1]),
            C::Refused,
            "too large",
        ),
        (
            Request::put("kv")
                .path("lictor/v1/refused")
                .query("acquire", session),
            C::NotFound,
            "invalid session",
        ),
        (
            Request::put("session/renew").segment(session),
            C::NotFound,
            "not found",
        ),
        (
            create_session(json!({"TTL": "1s"})),
            C::Refused,
            "Session TTL",
        ),
        (
            create_session(json!({"Node": NODE})),
            C::Refused,
            "Missing check 'serfHealth'",
        ),
        (
            create_session(json!({"Node": "missing"})),
            C::Conflict,
            "Missing node registration",
        ),
        (
            Request::get("config")
                .segment("service-defaults")
                .segment("missing"),
            C::NotFound,
            "",
        ),
        (
            Request::get("query").segment(session),
            C::NotFound,
            "Query not found",
        ),
        (
            Request::put("query")
                .segment(session)
                .body(br#"{"Service":{"Service":"a"}}"#.to_vec()),
            C::NotFound,
            "Cannot modify non-existent prepared query",
        ),
        (Request::get("invented"), C::Malformed, ""),
        (Request::get("txn"), C::Malformed, "not allowed"),
    ];
    for (request, class, fragment) in cases {
        refused(client, &request, class, fragment).await;
    }
}

pub async fn refused(client: &Client, request: &Request<'_>, class: ErrorClass, fragment: &str) {
    let answer = client.send(request).await.unwrap();
    let error = match answer.success() {
        Ok(answer) => panic!("{answer:?} to {request:?}, not {fragment}"),
        Err(error) => error,
    };
    assert_eq!(error.class(), class, "{error}");
    assert!(error.text().contains(fragment), "{error}, not {fragment}");
}
