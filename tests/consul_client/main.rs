//! The client against a real Consul: what its module documentation says of Consul is tried here.
//!
//! One test a bed, since a bed costs seconds; each part works on nodes and keys of its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod access;
mod catalog;
mod config_entries;
mod datacenters;
mod entry_refusals;
mod limits;
mod queries;
mod refusals;
mod rights;
mod transactions;
mod watches;

use anyhow::Result;
use lictor::consul::wire::{HealthCheck, Node, NodeService};
use lictor::consul::{Client, ConsulConfig, ConsulSettings, Txn, TxnOp, TxnOutcome, TxnResult};
use lictor::model::text::{Pairs, Text};
use lictor_testbed::{Bed, BedOptions};
use serde_json::json;

#[tokio::test]
async fn without_acls() -> Result<()> {
    // As Consul has it by itself.
    let limits = json!({"limits": {"http_max_conns_per_client": 200}});
    let bed = Bed::start(BedOptions {
        consul_config: limits,
        ..BedOptions::default()
    })
    .await?;
    let settings = ConsulSettings {
        addresses: bed.consul_addr(),
        ..Default::default()
    };
    let verified = client(settings.clone());
    verified.check_token().await?;
    let client = client(settings);

    config_entries::signals_of_entries_are_woken_by_their_own_kind(&verified).await;
    queries::signals_of_queries_are_woken_by_their_own_table(&verified).await;
    transactions::all_fields_that_it_keeps_come_back(&client).await;
    transactions::some_fields_it_drops(&client).await;
    transactions::it_mends_weights(&client).await;
    transactions::compare_and_set_creates_once(&client).await;
    transactions::every_failure_is_reported(&client).await;
    transactions::a_check_without_its_service_is_dropped(&client).await;
    transactions::checks_live_and_die_with_their_service(&client).await;
    limits::names_have_no_case(&client).await;
    limits::a_fence_holds(&client).await;
    limits::it_takes_no_more_than_its_limits(&client).await;
    catalog::nodes_are_found_by_name_and_by_meta(&client).await;
    catalog::a_registration_keeps_all_fields(&client).await;
    catalog::a_registration_keeps_all_of_a_proxy(&client).await;
    catalog::a_registration_can_create_a_node_by_mistake(&client).await;
    catalog::what_is_gone_can_be_removed_again(&client).await;
    catalog::keys_are_compared_and_set(&client).await;
    catalog::the_agent_tells_who_it_is(&client).await;
    config_entries::all_fields_of_intentions_come_back(&verified).await;
    config_entries::consul_normalises_intentions(&verified).await;
    config_entries::legacy_intentions_are_written_back_without_their_legacy(&verified).await;
    config_entries::all_fields_of_defaults_come_back(&verified).await;
    config_entries::entries_are_compared_and_set(&verified).await;
    config_entries::entries_are_read_where_they_are_written(&verified).await;
    entry_refusals::of_intentions(&verified).await;
    entry_refusals::of_defaults(&verified).await;
    queries::all_fields_of_queries_come_back(&verified).await;
    queries::a_query_is_found_by_its_id_alone(&verified).await;
    queries::refusals_of_queries_have_their_class(&verified).await;
    refusals::texts_have_the_class_that_the_table_says(&client).await;
    watches::signals_are_woken_by_their_own_table(&client).await;
    watches::a_watched_key_comes_and_goes(&client).await;
    watches::a_paused_server_costs_a_deadline(&bed, &client).await?;
    watches::too_many_connections_are_slowed_down(&bed, &client).await?;
    watches::a_wiped_server_is_noticed(&bed, &client).await?;
    Ok(())
}

fn client(settings: ConsulSettings) -> Client {
    Client::new(ConsulConfig::new(settings).unwrap()).unwrap()
}

fn pairs(pairs: &[(&str, &str)]) -> Pairs {
    pairs
        .iter()
        .map(|(key, value)| (Text::from(*key), Text::from(*value)))
        .collect()
}

fn node(name: &str) -> Node {
    let meta = pairs(&[("external-source", "kubernetes"), ("lictor-cluster", "c1")]);
    Node {
        name: name.into(),
        address: "10.0.0.1".into(),
        meta,
        ..Node::default()
    }
}

fn service(id: &str) -> NodeService {
    NodeService {
        id: id.into(),
        service: "web".into(),
        ..NodeService::default()
    }
}

fn check(node: &str, check_id: &str, service_id: &str) -> HealthCheck {
    HealthCheck {
        node: node.into(),
        check_id: check_id.into(),
        name: "Kubernetes readiness".into(),
        status: "passing".into(),
        service_id: service_id.into(),
        service_name: if service_id.is_empty() {
            "".into()
        } else {
            "web".into()
        },
        check_type: "kubernetes-readiness".into(),
        ..HealthCheck::default()
    }
}

async fn outcome(client: &Client, ops: &[TxnOp<'_>]) -> TxnOutcome {
    let mut txn = Txn::new();
    txn.push_all(ops).unwrap();
    client.apply(&txn).await.unwrap()
}

/// Carries out operations that must succeed.
async fn apply(client: &Client, ops: &[TxnOp<'_>]) -> Vec<TxnResult> {
    match outcome(client, ops).await {
        TxnOutcome::Applied(results) => results,
        other => panic!("{other:?}"),
    }
}

/// Creates a node as a part of the test needs it.
async fn create_node(client: &Client, name: &str) -> Node {
    let op = TxnOp::NodeSet {
        node: std::borrow::Cow::Owned(node(name)),
    };
    match apply(client, &[op]).await.remove(0) {
        TxnResult::Node(node) => *node,
        other => panic!("{other:?}"),
    }
}

/// What is stored of a service.
async fn stored(client: &Client, node: &str, id: &str) -> NodeService {
    let consistency = lictor::consul::Consistency::Consistent;
    let (_, services) = client
        .node_services(node, consistency)
        .await
        .unwrap()
        .value
        .unwrap();
    services
        .into_iter()
        .find(|service| &*service.id == id)
        .unwrap()
}
