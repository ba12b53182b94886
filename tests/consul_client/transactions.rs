//! What `/v1/txn` keeps, drops, reports and refuses.

use std::borrow::Cow;

use lictor::consul::wire::{Connect, Locality, NodeService, ServiceAddress, ServicePort, Weights};
use lictor::consul::{Client, Consistency, TxnFailure, TxnOp, TxnOutcome, TxnResult};

use super::{apply, check, create_node, node, outcome, pairs, service, stored};

fn all_fields() -> NodeService {
    let address = |address: &str| ServiceAddress {
        address: address.into(),
        port: 80,
    };
    NodeService {
        kind: "terminating-gateway".into(),
        tags: ["a".into(), "b".into()].into(),
        address: "10.1.0.1".into(),
        tagged_addresses: [
            ("lan_ipv4".into(), address("10.1.0.1")),
            ("lan_ipv6".into(), address("fd00::1")),
        ]
        .into(),
        port: 80,
        meta: pairs(&[("lictor-cluster", "c1"), ("version", "1")]),
        weights: Weights {
            passing: 7,
            warning: 0,
        },
        enable_tag_override: true,
        ..service("all")
    }
}

pub fn set<'a>(node: &'a str, service: &'a NodeService) -> TxnOp<'a> {
    TxnOp::ServiceSet {
        node,
        service: Cow::Borrowed(service),
    }
}

/// The service in a result, without its indexes.
fn plain(result: &TxnResult) -> NodeService {
    let TxnResult::Service(service) = result else {
        panic!("{result:?}")
    };
    NodeService {
        create_index: 0,
        modify_index: 0,
        ..(**service).clone()
    }
}

pub fn index(result: &TxnResult) -> u64 {
    match result {
        TxnResult::Node(node) => node.modify_index,
        TxnResult::Service(service) => service.modify_index,
        TxnResult::Check(check) => check.modify_index,
        TxnResult::Kv(pair) => pair.modify_index,
        TxnResult::Nothing | TxnResult::Dropped => panic!("{result:?}"),
    }
}

pub fn reasons(outcome: TxnOutcome) -> Vec<(usize, TxnFailure)> {
    let TxnOutcome::RolledBack(errors) = outcome else {
        panic!("{outcome:?}")
    };
    errors
        .into_iter()
        .map(|error| (error.op_index, error.reason))
        .collect()
}

pub async fn all_fields_that_it_keeps_come_back(client: &Client) {
    const NODE: &str = "lictor-c1--fields";
    let (node, service) = (node(NODE), all_fields());
    let mut check = check(NODE, "all:ready", "all");
    check.notes = "for people".into();
    check.output = "all is well".into();
    let ops = [
        TxnOp::NodeCas {
            node: Cow::Borrowed(&node),
            index: 0,
        },
        TxnOp::ServiceCas {
            node: NODE,
            service: Cow::Borrowed(&service),
            index: 0,
        },
        TxnOp::CheckCas {
            check: Cow::Borrowed(&check),
            index: 0,
        },
        TxnOp::KvSet {
            key: "lictor/v1/fields",
            value: b"{}",
        },
    ];
    let first = apply(client, &ops).await;
    assert_eq!(plain(&first[1]), service);
    // All of it has one index.
    assert!(
        first.iter().all(|result| index(result) == index(&first[0])),
        "{first:?}"
    );

    let [
        TxnResult::Node(node),
        TxnResult::Service(_),
        TxnResult::Check(check),
        _,
    ] = &first[..]
    else {
        panic!("{first:?}");
    };
    let (read, services) = client
        .node_services(NODE, Consistency::Consistent)
        .await
        .unwrap()
        .value
        .unwrap();
    assert_eq!(
        (&read, &services[..]),
        (&**node, &[stored(client, NODE, "all").await][..])
    );
    let checks = client
        .node_checks(NODE, Consistency::Consistent)
        .await
        .unwrap()
        .value;
    assert_eq!(checks, [(**check).clone()]);

    // What is written again as it is keeps its index, so nobody is woken.
    let same = [
        TxnOp::NodeSet {
            node: Cow::Borrowed(&read),
        },
        set(NODE, &services[0]),
        TxnOp::CheckSet {
            check: Cow::Borrowed(check),
        },
    ];
    let second = apply(client, &same).await;
    assert!(
        second
            .iter()
            .all(|result| index(result) == index(&first[0])),
        "{second:?}"
    );
}

pub async fn some_fields_it_drops(client: &Client) {
    const NODE: &str = "lictor-c1--dropped";
    create_node(client, NODE).await;
    let whole = NodeService {
        ports: [ServicePort {
            name: "http".into(),
            port: 80,
            is_default: true,
        }]
        .into(),
        connect: Connect { native: true },
        locality: Some(Locality {
            region: "r".into(),
            zone: "z".into(),
        }),
        ..service("dropped")
    };
    assert!(whole.needs_register());
    let results = apply(client, &[set(NODE, &whole)]).await;
    assert_eq!(plain(&results[0]), service("dropped"));
}

pub async fn it_mends_weights(client: &Client) {
    const NODE: &str = "lictor-c1--weights";
    create_node(client, NODE).await;
    for (passing, warning, kept) in [
        (65535, 1, true),
        (5, 0, true),
        (65536, 1, false),
        (1, 65536, false),
        (0, 5, false),
        (-1, 1, false),
    ] {
        let weights = Weights { passing, warning };
        let service = NodeService {
            weights,
            ..service("weights")
        };
        let results = apply(client, &[set(NODE, &service)]).await;
        let expected = if kept { weights } else { Weights::default() };
        assert_eq!(plain(&results[0]).weights, expected, "{weights:?}");
    }
}

pub async fn compare_and_set_creates_once(client: &Client) {
    const NODE: &str = "lictor-c1--once";
    let (node, service, check) = (node(NODE), service("once"), check(NODE, "once:c", "once"));
    let ops = |index| {
        [
            TxnOp::NodeCas {
                node: Cow::Borrowed(&node),
                index,
            },
            TxnOp::ServiceCas {
                node: NODE,
                service: Cow::Borrowed(&service),
                index,
            },
            TxnOp::CheckCas {
                check: Cow::Borrowed(&check),
                index,
            },
            TxnOp::KvCas {
                key: "lictor/v1/once",
                value: b"x",
                index,
            },
        ]
    };
    let stale = [0, 1, 2, 3].map(|position| (position, TxnFailure::StaleIndex));
    assert_eq!(
        reasons(outcome(client, &ops(7)).await),
        stale,
        "nothing is there yet"
    );
    let created = index(&apply(client, &ops(0)).await[0]);
    assert_eq!(
        reasons(outcome(client, &ops(0)).await),
        stale,
        "all is there"
    );
    assert_eq!(reasons(outcome(client, &ops(created - 1)).await), stale);
    apply(client, &ops(created)).await;

    let removals = |index| {
        [
            TxnOp::KvDeleteCas {
                key: "lictor/v1/once",
                index,
            },
            TxnOp::CheckDeleteCas {
                node: NODE,
                check_id: "once:c",
                service_id: "once",
                service: "web",
                index,
            },
            TxnOp::ServiceDeleteCas {
                node: NODE,
                id: "once",
                service: "web",
                index,
            },
            TxnOp::NodeDeleteCas { name: NODE, index },
        ]
    };
    assert_eq!(
        reasons(outcome(client, &removals(created - 1)).await).len(),
        4
    );
    // A key that was written since keeps its value where a service that is equal keeps its index.
    let key = client
        .kv_get("lictor/v1/once", Consistency::Default)
        .await
        .unwrap();
    assert_eq!(key.value.unwrap().modify_index, created);
    assert_eq!(
        apply(client, &removals(created)).await,
        [const { TxnResult::Nothing }; 4]
    );
    // What is gone is stale, except for a key.
    let gone = reasons(outcome(client, &removals(created)).await);
    assert_eq!(
        gone,
        [1, 2, 3].map(|position| (position, TxnFailure::StaleIndex))
    );
}

pub async fn every_failure_is_reported(client: &Client) {
    const NODE: &str = "lictor-c1--failures";
    create_node(client, NODE).await;
    apply(
        client,
        &[TxnOp::KvSet {
            key: "lictor/v1/here",
            value: b"",
        }],
    )
    .await;
    let (orphan, nameless) = (
        service("orphan"),
        NodeService {
            service: "".into(),
            ..service("n")
        },
    );
    let session = "adf4238a-882b-9ddc-4a9d-5b6758e4159e";
    let ops = [
        TxnOp::KvCheckIndex {
            key: "lictor/v1/missing",
            index: 7,
        },
        TxnOp::KvCheckNotExists {
            key: "lictor/v1/here",
        },
        TxnOp::KvCheckSession {
            key: "lictor/v1/here",
            session,
        },
        TxnOp::KvGet {
            key: "lictor/v1/missing",
        },
        TxnOp::NodeGet {
            name: "lictor-c1--missing",
        },
        TxnOp::ServiceGet {
            node: NODE,
            id: "missing",
            service: "web",
        },
        set("lictor-c1--missing", &orphan),
        TxnOp::CheckSet {
            check: Cow::Owned(check("lictor-c1--missing", "c", "")),
        },
        TxnOp::CheckSet {
            check: Cow::Owned(check(NODE, "c", "missing")),
        },
        set(NODE, &nameless),
    ];
    let expected = [
        TxnFailure::Missing,
        TxnFailure::KeyExists,
        TxnFailure::FailedSessionCheck,
        TxnFailure::Missing,
        TxnFailure::Missing,
        TxnFailure::Missing,
        TxnFailure::MissingNode,
        TxnFailure::MissingNode,
        TxnFailure::MissingService,
    ];
    let found = reasons(outcome(client, &ops[..9]).await);
    assert_eq!(found, expected.into_iter().enumerate().collect::<Vec<_>>());
    // What is wrong in itself is found before anything is looked up, and then nothing else is.
    let found = reasons(outcome(client, &ops).await);
    assert_eq!(found, [(9, TxnFailure::Refused)]);
}

pub async fn a_check_without_its_service_is_dropped(client: &Client) {
    const NODE: &str = "lictor-c1--silent";
    create_node(client, NODE).await;
    let cas = |check, index| TxnOp::CheckCas {
        check: Cow::Owned(check),
        index,
    };
    let ops = [
        cas(check(NODE, "a", "missing"), 0),
        cas(check(NODE, "b", ""), 0),
        cas(check("lictor-c1--missing", "c", ""), 0),
    ];
    let results = apply(client, &ops).await;
    assert!(
        matches!(
            &results[..],
            [TxnResult::Dropped, TxnResult::Check(_), TxnResult::Dropped]
        ),
        "{results:?}"
    );
    // What was there before is returned as if it had been written.
    let index = index(&results[1]);
    let results = apply(client, &[cas(check(NODE, "b", "missing"), index)]).await;
    assert_eq!(results, [TxnResult::Dropped]);
    let checks = client
        .node_checks(NODE, Consistency::Consistent)
        .await
        .unwrap()
        .value;
    assert_eq!(checks.len(), 1, "{checks:?}");
    assert_eq!(
        (&*checks[0].service_id, checks[0].modify_index),
        ("", index)
    );
}

pub async fn checks_live_and_die_with_their_service(client: &Client) {
    const NODE: &str = "lictor-c1--checks";
    create_node(client, NODE).await;
    let old = service("s");
    let check = TxnOp::CheckSet {
        check: Cow::Owned(check(NODE, "s:c", "s")),
    };
    let first = index(&apply(client, &[set(NODE, &old), check]).await[1]);
    let new = NodeService { port: 81, ..old };
    assert!(index(&apply(client, &[set(NODE, &new)]).await[0]) > first);
    let checks = client
        .node_checks(NODE, Consistency::Consistent)
        .await
        .unwrap()
        .value;
    assert_eq!(
        checks[0].modify_index, first,
        "a new service does not touch its checks"
    );

    let modify_index = stored(client, NODE, "s").await.modify_index;
    let remove = TxnOp::ServiceDeleteCas {
        node: NODE,
        id: "s",
        service: "web",
        index: modify_index,
    };
    apply(client, &[remove]).await;
    let checks = client
        .node_checks(NODE, Consistency::Consistent)
        .await
        .unwrap()
        .value;
    assert_eq!(checks, []);
}
