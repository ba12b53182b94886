use std::borrow::Cow;

use serde_json::{Value, json};

use super::outcome::RawError;
use super::*;
use crate::consul::wire::HealthCheck;

fn set(key: &str) -> TxnOp<'_> {
    TxnOp::KvSet { key, value: b"x" }
}

fn check_cas(node: &str, check_id: &str, service_id: &str) -> TxnOp<'static> {
    let check = HealthCheck {
        node: node.into(),
        check_id: check_id.into(),
        service_id: service_id.into(),
        ..HealthCheck::default()
    };
    TxnOp::CheckCas {
        check: Cow::Owned(check),
        index: 0,
    }
}

fn results(ops: &[TxnOp<'_>], results: Value) -> Option<Vec<TxnResult>> {
    let body = Value::from_iter([("Results", results)]);
    let expected: Vec<_> = ops.iter().map(TxnOp::expected).collect();
    let Answer { results, .. } = serde_json::from_value(body).unwrap();
    assign(&expected, results)
}

fn failure(op_index: usize, what: &str) -> RawError {
    serde_json::from_value(json!({"OpIndex": op_index, "What": what})).unwrap()
}

#[test]
fn no_more_operations_than_consul_takes() {
    let mut txn = Txn::new();
    for position in 0..MAX_OPS - 1 {
        assert_eq!(txn.push(&set("k")), Ok(position));
    }
    assert_eq!(txn.push_all(&[set("a"), set("b")]), Err(TxnFull::Ops));
    assert_eq!(txn.len(), MAX_OPS - 1);
    assert_eq!(txn.push(&set("k")), Ok(MAX_OPS - 1));
    assert_eq!(txn.push(&set("k")), Err(TxnFull::Ops));
    let too_many: Vec<_> = (0..=MAX_OPS).map(|_| set("k")).collect();
    assert_eq!(Txn::new().push_all(&too_many), Err(TxnFull::TooLarge));
}

#[test]
fn no_longer_body_than_consul_takes_whatever_is_added_at_the_end() {
    let value = vec![0_u8; 100 * 1024];
    let op = TxnOp::KvSet {
        key: "k",
        value: &value,
    };
    let mut txn = Txn::new();
    while txn.push(&op).is_ok() {}
    assert_eq!(txn.len(), 3);
    assert_eq!(txn.push(&op), Err(TxnFull::Bytes));
    assert_eq!(txn.push_all(&[set("k"), op]), Err(TxnFull::Bytes));
    assert_eq!(txn.push(&set("k")), Ok(3));
    let huge = vec![0_u8; MAX_BODY_BYTES];
    let huge = TxnOp::KvSet {
        key: "k",
        value: &huge,
    };
    assert_eq!(Txn::new().push(&huge), Err(TxnFull::TooLarge));
    assert_eq!(txn.push(&huge), Err(TxnFull::TooLarge));

    let long = "n".repeat(64);
    let tenancy = Tenancy {
        namespace: Some(long.clone()),
        partition: Some(long),
    };
    let many: Vec<_> = (0..MAX_OPS - 1).map(|_| set("k")).collect();
    let mut txn = Txn::new();
    txn.push_all(&many).unwrap();
    let added = txn
        .to_body(
            Some(Fence {
                key: "epoch",
                index: 7,
            }),
            &tenancy,
        )
        .unwrap()
        .len();
    assert!(added - txn.body.len() < RESERVED_BYTES);
}

#[test]
fn the_body_is_a_list_with_the_fence_first() {
    let body = |txn: &Txn, fence| -> Value {
        serde_json::from_slice(&txn.to_body(fence, &Tenancy::default()).unwrap()).unwrap()
    };
    let fence = Some(Fence {
        key: "epoch",
        index: 7,
    });
    let epoch = json!({"KV": {"Verb": "check-index", "Key": "epoch", "Index": 7}});
    assert_eq!(body(&Txn::new(), fence), json!([epoch]));
    let mut txn = Txn::new();
    txn.push_all(&[set("a"), set("b")]).unwrap();
    let with = body(&txn, fence);
    assert_eq!((with.as_array().unwrap().len(), &with[0]), (3, &epoch));
    assert_eq!(with[2]["KV"]["Key"], "b");
    assert_eq!(body(&txn, None).as_array().unwrap().len(), 2);
}

#[test]
fn results_are_given_to_the_operations_that_have_one() {
    let remove = TxnOp::ServiceDeleteCas {
        node: "n",
        id: "i",
        service: "s",
        index: 1,
    };
    let ops = [remove, set("a"), TxnOp::NodeGet { name: "n" }];
    let found = results(&ops, json!([{"KV": {"Key": "a"}}, {"Node": {"Node": "n"}}])).unwrap();
    assert!(matches!(
        found[..],
        [TxnResult::Nothing, TxnResult::Kv(_), TxnResult::Node(_)]
    ));
    assert_eq!(results(&ops, json!([{"KV": {"Key": "a"}}])), None);
    assert_eq!(
        results(&ops, json!([{"Node": {"Node": "n"}}, {"KV": {"Key": "a"}}])),
        None
    );
    let one_more = json!([{"KV": {}}, {"Node": {}}, {"KV": {}}]);
    assert_eq!(results(&ops, one_more), None);
}

#[test]
fn a_check_that_was_dropped_is_told_from_one_that_was_written() {
    let stored = |id: &str, service: &str| json!({"Check": {"Node": "N", "CheckID": id, "ServiceID": service}});
    let ops = [check_cas("n", "a:c", "a"), check_cas("n", "b:c", "b")];
    let both = results(&ops, json!([stored("a:c", "a"), stored("B:c", "B")])).unwrap();
    assert!(matches!(
        both[..],
        [TxnResult::Check(_), TxnResult::Check(_)]
    ));
    // Nothing was there before.
    let second = results(&ops, json!([stored("b:c", "b")])).unwrap();
    assert!(matches!(
        second[..],
        [TxnResult::Dropped, TxnResult::Check(_)]
    ));
    let none = results(&ops, json!([])).unwrap();
    assert_eq!(none, [TxnResult::Dropped, TxnResult::Dropped]);
    // A check of the node with the same id was there and stays.
    let old = results(&ops, json!([stored("a:c", ""), stored("b:c", "b")])).unwrap();
    assert!(matches!(old[..], [TxnResult::Dropped, TxnResult::Check(_)]));
}

#[test]
fn texts_of_consul_have_a_meaning() {
    use TxnFailure as F;
    let cases = [
        (
            r#"failed to set service "a" on node "n", index is stale"#,
            F::StaleIndex,
        ),
        (
            r#"failed to delete node "n", index is stale"#,
            F::StaleIndex,
        ),
        (
            r#"failed index check for key "k", current modify index 21 != 19"#,
            F::FailedIndexCheck {
                current: 21,
                expected: 19,
            },
        ),
        (
            r#"failed to check index, key "k" doesn't exist"#,
            F::Missing,
        ),
        (
            r#"failed to check session, key "k" doesn't exist"#,
            F::Missing,
        ),
        (r#"service "a" on node "n" doesn't exist"#, F::Missing),
        (r#"key "k" exists"#, F::KeyExists),
        (
            r#"failed session check for key "k", current session "" != "x""#,
            F::FailedSessionCheck,
        ),
        ("Missing node registration", F::MissingNode),
        ("Missing service registration", F::MissingService),
        (
            "Permission denied: token with AccessorID 'x' lacks permission",
            F::PermissionDenied,
        ),
        (
            "Invalid Service Meta for node n: ('index is stale', '1'): too long",
            F::Refused,
        ),
        ("Must provide service name (Service.Service)", F::Refused),
    ];
    for (what, reason) in cases {
        let error = TxnError::from(failure(3, what));
        assert_eq!((error.op_index, error.reason), (3, reason), "{what}");
    }
}

#[test]
fn the_fence_is_not_counted_and_goes_before_all_other_failures() {
    let stale = || failure(2, r#"failed to delete node "n", index is stale"#);
    let down = || {
        failure(
            0,
            r#"failed index check for key "k", current modify index 8 != 7"#,
        )
    };
    let outcome = TxnOutcome::failed(vec![stale()], true).unwrap();
    let TxnOutcome::RolledBack(errors) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(errors[0].op_index, 1);
    let outcome = TxnOutcome::failed(vec![stale(), down()], true).unwrap();
    let expected = TxnFailure::FailedIndexCheck {
        current: 8,
        expected: 7,
    };
    assert!(matches!(outcome, TxnOutcome::Fenced { reason, .. } if reason == expected));
    let outcome = TxnOutcome::failed(vec![down()], false).unwrap();
    assert!(matches!(outcome, TxnOutcome::RolledBack(_)));
    assert_eq!(TxnOutcome::failed(Vec::new(), true), None);
}
