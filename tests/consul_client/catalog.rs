//! The catalog and the store, one call at a time.

use std::borrow::Cow;

use lictor::consul::wire::{
    Connect, Locality, NodeService, Proxy, ProxyUpstream, ServiceAddress, ServicePort,
};
use lictor::consul::{
    Client, Consistency, ErrorClass, Quality, RegisteredNode, Registration, TokenStanding, TxnOp,
};

use super::{apply, check, create_node, node, service, stored};

pub async fn nodes_are_found_by_name_and_by_meta(client: &Client) {
    create_node(client, "lictor-c9--found").await;
    let filters = [
        r#"Node matches "^lictor-c9--""#,
        r#"Meta["lictor-cluster"] == "c1" and Node == "lictor-c9--found""#,
        r#""lictor-cluster" in Meta and Node == "lictor-c9--found""#,
    ];
    for filter in filters {
        let found = client
            .nodes(Some(filter), Consistency::Consistent)
            .await
            .unwrap();
        let names: Vec<_> = found.value.iter().map(|node| &*node.name).collect();
        assert_eq!(names, ["lictor-c9--found"], "{filter}");
    }
    let none = r#"Meta["lictor-cluster"] == "c2""#;
    let found = client.nodes(Some(none), Consistency::Stale).await.unwrap();
    assert_eq!((found.value.len(), found.index.is_some()), (0, true));
    assert!(
        !client
            .nodes(None, Consistency::Default)
            .await
            .unwrap()
            .value
            .is_empty()
    );
    let missing = client
        .node_services("lictor-c9--no", Consistency::Default)
        .await
        .unwrap();
    assert_eq!(missing.value, None);
    let missing = client
        .node_checks("lictor-c9--no", Consistency::Default)
        .await
        .unwrap();
    assert_eq!(missing.value, []);
}

pub async fn a_registration_keeps_all_fields(client: &Client) {
    const NODE: &str = "lictor-c1--register";
    let address = ServiceAddress {
        address: "10.1.0.1".into(),
        port: 80,
    };
    let native = NodeService {
        address: "10.1.0.1".into(),
        tagged_addresses: [("lan_ipv4".into(), address)].into(),
        port: 80,
        connect: Connect { native: true },
        locality: Some(Locality {
            region: "r".into(),
            zone: "z".into(),
        }),
        ..service("native")
    };
    let ready = check(NODE, "native:ready", "native");
    let mut alive = check(NODE, "lictor-alive", "");
    alive.check_type = "session".into();
    alive.definition = Some(Box::new(serde_json::json!({"SessionName": "alive"})));
    let checks = [ready, alive];
    let written = node(NODE);
    let registration = Registration {
        node: RegisteredNode::Written(&written),
        service: Some(Cow::Borrowed(&native)),
        checks: &checks,
    };
    client.register(&registration).await.unwrap();
    let before = client
        .node_services(NODE, Consistency::Consistent)
        .await
        .unwrap()
        .value
        .unwrap();
    let read = stored(client, NODE, "native").await;
    let mut expected = NodeService {
        create_index: read.create_index,
        modify_index: read.modify_index,
        ..native.clone()
    };
    // Consul assigns a virtual address to a service that is native to the mesh.
    let assigned = read.tagged_addresses.get("consul-virtual").unwrap().clone();
    expected
        .tagged_addresses
        .insert("consul-virtual".into(), assigned);
    assert_eq!(read, expected);
    let found = client
        .node_checks(NODE, Consistency::Consistent)
        .await
        .unwrap()
        .value;
    let alive = found
        .iter()
        .find(|check| &*check.check_id == "lictor-alive")
        .unwrap();
    assert_eq!(alive.definition, checks[1].definition);

    // The node stays as it is, tagged addresses of a service are written all the same.
    let ports = [
        ServicePort {
            name: "http".into(),
            port: 80,
            is_default: true,
        },
        ServicePort {
            name: "metrics".into(),
            port: 81,
            is_default: false,
        },
    ];
    let many = NodeService {
        ports: ports.into(),
        port: 0,
        connect: Connect::default(),
        id: "many".into(),
        ..native
    };
    let registration = Registration {
        node: RegisteredNode::Kept {
            name: NODE,
            address: "10.9.9.9",
        },
        service: Some(Cow::Borrowed(&many)),
        checks: &[],
    };
    client.register(&registration).await.unwrap();
    let read = stored(client, NODE, "many").await;
    assert_eq!((&read.ports, &read.locality), (&many.ports, &many.locality));
    assert_eq!(read.tagged_addresses, many.tagged_addresses);
    let after = client
        .node_services(NODE, Consistency::Consistent)
        .await
        .unwrap()
        .value
        .unwrap();
    assert_eq!(after.0, before.0, "the node was not to be touched");
}

/// What is stored is what was written, the address that Consul assigns aside, and the same once more
/// changes nothing. A transaction leaves out what [`NodeService::needs_register`] says.
pub async fn a_registration_keeps_all_of_a_proxy(client: &Client) {
    const NODE: &str = "lictor-c1--proxy";
    create_node(client, NODE).await;
    let upstream = ProxyUpstream {
        destination_name: "ledger".into(),
        local_bind_port: 9191,
        ..ProxyUpstream::default()
    };
    let peered = ProxyUpstream {
        destination_peer: "p".into(),
        local_bind_port: 9192,
        ..upstream.clone()
    };
    let remote = ProxyUpstream {
        datacenter: "dc2".into(),
        local_bind_port: 9193,
        ..upstream.clone()
    };
    let bare = Proxy {
        destination_service_name: "web".into(),
        destination_service_id: "plain".into(),
        local_service_address: "127.0.0.1".into(),
        local_service_port: 8080,
        ..Proxy::default()
    };
    let mut rest = serde_json::Map::new();
    rest.insert("Mode".to_owned(), "transparent".into());
    rest.insert("Config".to_owned(), serde_json::json!({"protocol": "http"}));
    let proxies = [
        bare.clone(),
        Proxy {
            upstreams: [upstream, peered, remote].into(),
            ..bare.clone()
        },
        Proxy { rest, ..bare },
    ];
    for proxy in proxies {
        let written = NodeService {
            kind: "connect-proxy".into(),
            service: "web-sidecar-proxy".into(),
            port: 20000,
            proxy: Some(Box::new(proxy)),
            ..service("proxy")
        };
        let register = async || {
            let registration = Registration {
                node: RegisteredNode::Kept {
                    name: NODE,
                    address: "10.9.9.9",
                },
                service: Some(Cow::Borrowed(&written)),
                checks: &[],
            };
            client.register(&registration).await.unwrap();
            stored(client, NODE, "proxy").await
        };
        let first = register().await;
        let mut expected = NodeService {
            create_index: first.create_index,
            modify_index: first.modify_index,
            ..written.clone()
        };
        let assigned = first.tagged_addresses.get("consul-virtual").unwrap();
        assert_eq!(assigned.port, 20000);
        expected
            .tagged_addresses
            .insert("consul-virtual".into(), assigned.clone());
        assert_eq!(first, expected);
        assert_eq!(register().await, first);
        let set = TxnOp::ServiceSet {
            node: NODE,
            service: Cow::Borrowed(&written),
        };
        apply(client, &[set]).await;
        let in_txn = stored(client, NODE, "proxy").await;
        assert_eq!(in_txn == first, !written.needs_register());
    }
}

pub async fn a_registration_can_create_a_node_by_mistake(client: &Client) {
    const NODE: &str = "lictor-c1--mistake";
    let registration = Registration {
        node: RegisteredNode::Kept {
            name: NODE,
            address: "10.0.0.9",
        },
        service: None,
        checks: &[],
    };
    client.register(&registration).await.unwrap();
    let found = client
        .node_services(NODE, Consistency::Consistent)
        .await
        .unwrap()
        .value;
    assert_eq!(&*found.unwrap().0.address, "10.0.0.9");
}

pub async fn what_is_gone_can_be_removed_again(client: &Client) {
    const NODE: &str = "lictor-c1--gone";
    let written = node(NODE);
    let checks = [check(NODE, "gone:c", "gone"), check(NODE, "n", "")];
    let registration = Registration {
        node: RegisteredNode::Written(&written),
        service: Some(Cow::Owned(service("gone"))),
        checks: &checks,
    };
    client.register(&registration).await.unwrap();
    // An empty id would stand for the whole node.
    for refused in [
        client.deregister_service(NODE, "").await,
        client.deregister_check(NODE, "").await,
    ] {
        assert_eq!(refused.unwrap_err().class(), ErrorClass::Refused);
    }
    for _ in 0..2 {
        client.deregister_check(NODE, "n").await.unwrap();
    }
    for _ in 0..2 {
        client.deregister_service(NODE, "gone").await.unwrap();
    }
    let (_, services) = client
        .node_services(NODE, Consistency::Consistent)
        .await
        .unwrap()
        .value
        .unwrap();
    assert_eq!(services, []);
    assert_eq!(
        client
            .node_checks(NODE, Consistency::Consistent)
            .await
            .unwrap()
            .value,
        []
    );
    for _ in 0..2 {
        client.deregister_node(NODE).await.unwrap();
    }
    assert_eq!(
        client
            .node_services(NODE, Consistency::Consistent)
            .await
            .unwrap()
            .value,
        None
    );
}

pub async fn keys_are_compared_and_set(client: &Client) {
    const KEY: &str = "lictor/v1/kv/a b?c";
    let get = async || client.kv_get(KEY, Consistency::Consistent).await.unwrap();
    let missing = get().await;
    assert_eq!((missing.value, missing.index.is_some()), (None, true));
    assert!(client.kv_put_cas(KEY, b"one", 0).await.unwrap());
    assert!(!client.kv_put_cas(KEY, b"two", 0).await.unwrap());
    let pair = get().await.value.unwrap();
    assert_eq!((&*pair.key, &*pair.value), (KEY, b"one".as_slice()));
    assert!(
        !client
            .kv_put_cas(KEY, b"two", pair.modify_index + 1)
            .await
            .unwrap()
    );
    assert!(
        client
            .kv_put_cas(KEY, b"", pair.modify_index)
            .await
            .unwrap()
    );
    let pair = get().await.value.unwrap();
    assert!(pair.value.is_empty());
    let list = client
        .kv_list("lictor/v1/kv/", Consistency::Consistent)
        .await
        .unwrap();
    assert_eq!(list.value, std::slice::from_ref(&pair));
    let list = client
        .kv_list("lictor/v1/none/", Consistency::Consistent)
        .await
        .unwrap();
    assert_eq!(list.value, []);
    assert!(
        !client
            .kv_delete_cas(KEY, pair.modify_index + 1)
            .await
            .unwrap()
    );
    assert!(client.kv_delete_cas(KEY, pair.modify_index).await.unwrap());
    // As in a transaction, the removal of a key that is gone succeeds.
    assert!(client.kv_delete_cas(KEY, pair.modify_index).await.unwrap());
    assert_eq!(get().await.value, None);
}

pub async fn the_agent_tells_who_it_is(client: &Client) {
    let agent = client.agent().await.unwrap();
    assert!(agent.version.starts_with("1."), "{agent:?}");
    assert_eq!(&*agent.datacenter, "dc1");
    let leader = client.leader().await.unwrap().unwrap();
    create_node(client, "lictor-c9--impostor").await;
    let service = NodeService {
        service: "consul".into(),
        address: "10.9.9.9".into(),
        // Consul takes what is none.
        port: 70_000,
        ..service("consul-0")
    };
    let put = TxnOp::ServiceSet {
        node: "lictor-c9--impostor",
        service: Cow::Borrowed(&service),
    };
    apply(client, &[put]).await;
    // The one that is there, and nobody who calls himself so.
    let servers = client.servers().await.unwrap();
    assert_eq!(servers, [leader.parse().unwrap()]);
    let nodes = client.nodes(None, Consistency::Consistent).await.unwrap();
    assert_eq!(nodes.quality, Quality::Unverified);
    assert_eq!(client.check_token().await.unwrap(), TokenStanding::AclsOff);
    let qualities = [
        (Consistency::Consistent, Quality::Authoritative),
        (Consistency::Default, Quality::Leased),
        (Consistency::Stale, Quality::Stale),
    ];
    for (consistency, quality) in qualities {
        let found = client.nodes(None, consistency).await.unwrap();
        assert_eq!(found.quality, quality);
        let found = client.kv_list("lictor/", consistency).await.unwrap();
        assert_eq!(found.quality, quality);
    }
}
