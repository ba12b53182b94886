//! What `/v1/txn` depends on, and how much it takes.

use lictor::consul::{
    Client, ErrorClass, Fence, MAX_BODY_BYTES, MAX_OPS, Request, Txn, TxnFailure, TxnOp,
    TxnOutcome, TxnResult,
};

use super::transactions::{index, set};
use super::{apply, create_node, service};

pub async fn names_have_no_case(client: &Client) {
    const NODE: &str = "lictor-c1--case";
    create_node(client, NODE).await;
    let (lower, upper) = (service("a"), service("A"));
    let created = index(&apply(client, &[set(NODE, &lower)]).await[0]);
    let results = apply(client, &[set(&NODE.to_uppercase(), &upper)]).await;
    let TxnResult::Service(service) = &results[0] else {
        panic!("{results:?}")
    };
    assert_eq!(service.create_index, created, "it is the same instance");
}

pub async fn a_fence_holds(client: &Client) {
    const KEY: &str = "lictor/v1/fence/epoch";
    let write = async |value: &[u8]| {
        let op = TxnOp::KvSet { key: KEY, value };
        index(&apply(client, &[op]).await[0])
    };
    let op = TxnOp::KvSet {
        key: "lictor/v1/fence/written",
        value: b"1",
    };
    let mut txn = Txn::new();
    txn.push(&op).unwrap();
    let fenced = async |index| {
        let fence = Fence { key: KEY, index };
        match client.apply_fenced(fence, &txn).await.unwrap() {
            TxnOutcome::Fenced { reason, .. } => Some(reason),
            TxnOutcome::Applied(results) if results.len() == 1 => None,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(fenced(7).await, Some(TxnFailure::Missing));
    let taken = write(b"ours").await;
    assert_eq!(fenced(taken).await, None);
    assert_eq!(write(b"ours").await, taken, "an equal value is not written");
    assert_eq!(fenced(taken).await, None);
    let current = write(b"another's").await;
    let expected = TxnFailure::FailedIndexCheck {
        current,
        expected: taken,
    };
    assert_eq!(fenced(taken).await, Some(expected));
}

pub async fn it_takes_no_more_than_its_limits(client: &Client) {
    // Beyond the limits of the type, as bytes: the limits are Consul's own.
    let op = r#"{"KV":{"Verb":"set","Key":"lictor/v1/limit","Value":""}}"#;
    let ops = |count: usize| format!("[{}]", vec![op; count].join(",")).into_bytes();
    let padded = |length: usize| {
        let mut body = ops(1);
        body.resize(length, b' ');
        body
    };
    for (body, accepted) in [
        (ops(MAX_OPS), true),
        (ops(MAX_OPS + 1), false),
        (padded(MAX_BODY_BYTES), true),
        (padded(MAX_BODY_BYTES + 1), false),
    ] {
        let answer = client.send(&Request::put("txn").body(body)).await.unwrap();
        assert_eq!(answer.status, if accepted { 200 } else { 413 });
        if let Err(error) = answer.success() {
            assert_eq!(error.class(), ErrorClass::Refused);
        }
    }
}
