//! Blocking queries, and servers that misbehave.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use anyhow::Result;
use lictor::consul::{Cause, Client, Consistency, ErrorClass, Request, TxnOp, TxnResult, Watch};
use lictor_testbed::Bed;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{apply, check, create_node, node, service};

const SOON: Duration = Duration::from_secs(20);

pub fn quick<T>(watch: Watch<T>) -> Watch<T> {
    watch.pace(Duration::from_millis(1))
}

/// The index of the next change.
pub async fn next<T>(watch: &mut Watch<T>) -> u64 {
    let change = timeout(SOON, watch.next()).await.unwrap().unwrap();
    change.observed.index.unwrap().get()
}

/// Whether the watch gives nothing for a while.
pub async fn is_quiet<T>(watch: &mut Watch<T>) -> bool {
    timeout(Duration::from_millis(300), watch.next())
        .await
        .is_err()
}

pub async fn signals_are_woken_by_their_own_table(client: &Client) {
    const NODE: &str = "lictor-c1--signals";
    create_node(client, NODE).await;
    let mut nodes = quick(client.watch_any_node(Consistency::Default));
    let mut services = quick(client.watch_any_service(Consistency::Default));
    let mut checks = quick(client.watch_any_check(Consistency::Default));
    for first in [
        next(&mut nodes).await,
        next(&mut services).await,
        next(&mut checks).await,
    ] {
        assert!(first > 0);
    }
    // A value that is there already would not be written, and the key would keep its index.
    let mark = |value| TxnOp::KvSet {
        key: "lictor/v1/signals",
        value,
    };
    let mark_index = |results: &[TxnResult]| match results.last() {
        Some(TxnResult::Kv(pair)) => pair.modify_index,
        other => panic!("{other:?}"),
    };

    let set = TxnOp::ServiceSet {
        node: NODE,
        service: Cow::Owned(service("s")),
    };
    let written = mark_index(&apply(client, &[set, mark(b"1")]).await);
    assert_eq!(next(&mut services).await, written);
    assert!(is_quiet(&mut checks).await);
    // Asked after a service was written, the nodes have its index, too.
    assert_eq!(next(&mut nodes).await, written);

    let set = TxnOp::CheckSet {
        check: Cow::Owned(check(NODE, "s:c", "s")),
    };
    let written = mark_index(&apply(client, &[set, mark(b"2")]).await);
    assert_eq!(next(&mut checks).await, written);
    assert!(is_quiet(&mut services).await && is_quiet(&mut nodes).await);

    let mut moved = node(NODE);
    moved.address = "10.0.0.2".into();
    let set = TxnOp::NodeSet {
        node: Cow::Owned(moved),
    };
    let written = mark_index(&apply(client, &[set, mark(b"3")]).await);
    assert_eq!(next(&mut nodes).await, written);
    assert!(is_quiet(&mut services).await && is_quiet(&mut checks).await);

    // A removal has no result of its own; the key beside it tells its index.
    let index = super::stored(client, NODE, "s").await.modify_index;
    let remove = TxnOp::ServiceDeleteCas {
        node: NODE,
        id: "s",
        service: "web",
        index,
    };
    let written = mark_index(&apply(client, &[remove, mark(b"4")]).await);
    assert_eq!(
        (next(&mut services).await, next(&mut checks).await),
        (written, written)
    );
    assert_eq!(next(&mut nodes).await, written);

    // What is only written again, and what is written elsewhere, wakes nobody.
    apply(client, &[mark(b"5")]).await;
    assert!(is_quiet(&mut services).await && is_quiet(&mut checks).await);
    assert!(is_quiet(&mut nodes).await);
}

pub async fn a_watched_key_comes_and_goes(client: &Client) {
    const KEY: &str = "lictor/v1/watched/key";
    let mut key = quick(client.watch_kv(KEY));
    let mut all = quick(client.watch_kv_list("lictor/v1/watched/"));
    let first = timeout(SOON, key.next()).await.unwrap().unwrap();
    assert_eq!(
        (first.cause, first.observed.value),
        (Cause::First, Vec::new())
    );
    next(&mut all).await;
    assert!(client.kv_put_cas(KEY, b"1", 0).await.unwrap());
    loop {
        // The index of a missing key is that of the store, which others move as well.
        let change = timeout(SOON, key.next()).await.unwrap().unwrap();
        assert_eq!(change.cause, Cause::Moved);
        if let [pair] = &change.observed.value[..] {
            assert_eq!(&*pair.value, b"1");
            assert_eq!(next(&mut all).await, pair.modify_index);
            break;
        }
    }
}

pub async fn a_paused_server_costs_a_deadline(bed: &Bed, client: &Client) -> Result<()> {
    bed.consul_server.pause()?;
    let began = Instant::now();
    let limit = Duration::from_millis(500);
    let request = Request::put("kv").path("lictor/v1/paused").within(limit);
    let result = client.send(&request).await;
    bed.consul_server.resume()?;
    assert_eq!(result.unwrap_err().class(), ErrorClass::Ambiguous);
    assert!(began.elapsed() < SOON);
    // It was applied indeed, once the server went on.
    let found = async || {
        client
            .kv_get("lictor/v1/paused", Consistency::Consistent)
            .await
    };
    let until = Instant::now() + SOON;
    while found().await?.value.is_none() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

pub async fn too_many_connections_are_slowed_down(bed: &Bed, client: &Client) -> Result<()> {
    let addresses = bed.consul_addr();
    let address = addresses.trim_start_matches("http://");
    // The default of `limits.http_max_conns_per_client`.
    let mut connections = Vec::new();
    for _ in 0..210 {
        connections.push(TcpStream::connect(address).await?);
    }
    let settings = lictor::consul::ConsulSettings {
        addresses,
        ..Default::default()
    };
    let another = super::client(settings);
    let error = another.leader().await.unwrap_err();
    // It answers before it is asked, which looks like a broken connection if it comes too early.
    let slowed = error.class() == ErrorClass::SlowDown && error.status() == Some(429);
    assert!(slowed || error.class() == ErrorClass::Ambiguous, "{error}");
    drop(connections);
    let until = Instant::now() + SOON;
    while another.leader().await.is_err() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    client.leader().await?;
    Ok(())
}

pub async fn a_wiped_server_is_noticed(bed: &Bed, client: &Client) -> Result<()> {
    create_node(client, "lictor-c1--wiped").await;
    let mut nodes = client.watch_nodes(r#"Node matches "^lictor-c1--""#, Consistency::Default);
    let first = timeout(SOON, nodes.next()).await??;
    assert!((first.cause == Cause::First) && !first.observed.value.is_empty());

    bed.consul_server.kill();
    let error = timeout(SOON, nodes.next()).await?.unwrap_err();
    assert!(
        matches!(
            error.class(),
            ErrorClass::Unreachable | ErrorClass::Ambiguous
        ),
        "{error}"
    );
    bed.consul_server.wipe()?;
    bed.consul_server.start().await?;
    let began = Instant::now();
    let change = loop {
        if let Ok(change) = timeout(SOON, nodes.next()).await? {
            break change;
        }
    };
    assert_eq!(
        (change.cause, change.observed.value.len()),
        (Cause::WentBack, 0)
    );
    assert!(
        began.elapsed() < SOON,
        "long before the wait of a blocking query ends"
    );
    Ok(())
}
