//! Three Consul servers, ACLs, snapshots and lost data.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lictor_testbed::{Bed, BedOptions, ConsulApi, wait};
use serde_json::{Value, json};

use crate::{SOON, is_alive};

/// What a controller of the cluster `c1` may do at most.
const RULES: &str = r#"
    node_prefix "lictor-c1--" { policy = "write" }
    node_prefix "" { policy = "read" }
    service_prefix "" { policy = "write" intentions = "write" }
    session_prefix "lictor-c1--" { policy = "write" }
    query_prefix "" { policy = "write" }
    key_prefix "lictor/v1/" { policy = "read" }
    key_prefix "lictor/v1/c1/" { policy = "write" }
"#;

fn registration(node: &str) -> Value {
    json!({
        "Node": node, "Address": "10.0.0.1",
        "Service": {"ID": node, "Service": "web", "Port": 8080},
    })
}

#[tokio::test]
async fn three_servers_survive_what_a_quorum_survives() -> Result<()> {
    let options = BedOptions {
        consul_servers: 3,
        ..BedOptions::default()
    };
    let bed = Bed::start(options).await?;
    let servers = bed.consul_servers();
    ensure!(bed.servers().len() == 6 && servers.len() == 3);
    ensure!(
        servers
            .iter()
            .all(|server| server.pid().is_some_and(is_alive))
    );
    let consul = bed.consul()?;
    consul
        .put("/v1/catalog/register", &registration("n1"))
        .await?;

    the_others_elect_a_leader(&bed, &consul).await?;
    a_frozen_leader_is_replaced(&bed, &consul).await?;
    without_a_quorum_nothing_is_written(&bed, &consul).await?;
    one_wiped_server_is_filled_by_the_others(&bed, &consul).await?;

    bed.wipe_consul().await?;
    bed.consul_leader().await?;
    ensure!(consul.health("web").await?.is_empty(), "it remembers");
    Ok(())
}

async fn the_others_elect_a_leader(bed: &Bed, consul: &ConsulApi) -> Result<()> {
    let leader = bed.consul_leader().await?;
    ensure!(bed.consul_followers().await?.len() == 2);
    leader.kill();
    let next = bed.consul_leader().await?;
    ensure!(!std::ptr::eq(leader, next), "the dead one leads");
    // The first address may be that of the dead one: then another one is asked.
    ensure!(consul.health("web").await?.len() == 1, "an entry is lost");
    write(consul, "n2").await?;
    leader.start().await?;
    sees(bed, leader.addr(), 2).await
}

async fn a_frozen_leader_is_replaced(bed: &Bed, consul: &ConsulApi) -> Result<()> {
    let leader = bed.consul_leader().await?;
    leader.pause()?;
    let next = bed.consul_leader().await?;
    ensure!(!std::ptr::eq(leader, next), "the frozen one leads");
    ensure!(consul.health("web").await?.len() == 2);
    leader.resume()?;
    write(consul, "n3").await?;
    sees(bed, leader.addr(), 3).await
}

async fn without_a_quorum_nothing_is_written(bed: &Bed, consul: &ConsulApi) -> Result<()> {
    let survivor = bed.consul_leader().await?;
    let followers = bed.consul_followers().await?;
    for follower in &followers {
        follower.kill();
    }
    bed.no_consul_leader().await?;
    let alone = ConsulApi::new(survivor.addr())?;
    let stale = alone.get("/v1/catalog/service/web?stale").await?;
    ensure!(
        stale.as_array().is_some_and(|all| all.len() == 3),
        "{stale}"
    );
    let refused = alone.put("/v1/catalog/register", &registration("n4")).await;
    ensure!(
        format!("{refused:?}").contains("500"),
        "written without a quorum: {refused:?}"
    );
    bed.start_consul().await?;
    bed.consul_leader().await?;
    write(consul, "n4").await?;
    for server in bed.consul_servers() {
        sees(bed, server.addr(), 4).await?;
    }
    Ok(())
}

async fn one_wiped_server_is_filled_by_the_others(bed: &Bed, consul: &ConsulApi) -> Result<()> {
    let followers = bed.consul_followers().await?;
    let victim = followers.first().context("no follower")?;
    victim.kill();
    victim.wipe()?;
    victim.start().await?;
    ensure!(consul.health("web").await?.len() == 4);
    sees(bed, victim.addr(), 4).await
}

/// Writes as soon as the servers take it: after an election some know the old leader for a moment.
async fn write(consul: &ConsulApi, node: &str) -> Result<()> {
    let entry = registration(node);
    let put = async || consul.put("/v1/catalog/register", &entry).await;
    wait::until("a write", SOON, put).await.map(drop)
}

/// Waits until a server holds so many instances itself.
async fn sees(bed: &Bed, addr: &str, count: usize) -> Result<()> {
    let consul = bed.consul()?;
    let addrs = bed.consul_addrs();
    let number = addrs.iter().position(|other| other == addr);
    let alone = &consul.each()[number.context("not a server of the bed")?];
    wait::until("a server to catch up", SOON, async || {
        let held = alone.get("/v1/catalog/service/web?stale").await?;
        match held.as_array().map_or(0, Vec::len) {
            held if held == count => Ok(()),
            held => bail!("it holds {held}"),
        }
    })
    .await
}

#[tokio::test]
async fn acls_and_snapshots() -> Result<()> {
    let options = BedOptions {
        consul_acls: true,
        ..BedOptions::default()
    };
    let bed = Bed::start(options).await?;
    let consul = bed.consul()?;
    tokens_may_do_what_their_rules_say(&bed, &consul).await?;
    a_snapshot_takes_consul_back(&consul).await?;

    bed.wipe_consul().await?;
    ensure!(consul.health("web").await?.is_empty(), "Consul remembers");
    kubernetes_is_taken_back_and_wiped(&bed).await
}

async fn kubernetes_is_taken_back_and_wiped(bed: &Bed) -> Result<()> {
    let version = async || -> Result<u64> {
        let list = ["get", "configmaps", "--all-namespaces", "--output=json"];
        let list: Value = serde_json::from_str(&bed.kubectl(&list).await?)?;
        let items = list["items"].as_array().context("no list")?;
        let versions = items
            .iter()
            .map(|item| &item["metadata"]["resourceVersion"]);
        let versions = versions.filter_map(|version| version.as_str()?.parse().ok());
        versions.max().context("no object")
    };
    bed.kubectl(&["create", "configmap", "kept"]).await?;
    let backup = bed.dir().join("backup");
    ensure!(
        bed.etcd.save(&backup).is_err(),
        "a running server was copied"
    );
    bed.save_kubernetes(&backup).await?;
    bed.kubectl(&["create", "configmap", "late"]).await?;
    let before = version().await?;
    bed.restore_kubernetes(&backup).await?;
    let missing = async |name: &str| bed.kubectl(&["get", "configmap", name]).await.is_err();
    ensure!(!missing("kept").await && missing("late").await);
    ensure!(version().await? < before, "no version went back");

    bed.wipe_kubernetes().await?;
    ensure!(missing("kept").await, "Kubernetes remembers");

    bed.apiserver.kill();
    bed.consul_server.pause()?;
    bed.mend().await?;
    ensure!(bed.servers().iter().all(|server| server.pid().is_some()));
    bed.consul()?.health("web").await?;
    bed.kubectl(&["get", "namespaces"]).await.map(drop)
}

async fn tokens_may_do_what_their_rules_say(bed: &Bed, consul: &ConsulApi) -> Result<()> {
    consul
        .put("/v1/catalog/register", &registration("other"))
        .await?;

    let anonymous = bed.consul_as("")?;
    ensure!(anonymous.health("web").await?.is_empty(), "all is shown");
    refuses(
        &anonymous,
        "catalog/register",
        registration("lictor-c1--n1"),
        "403",
    )
    .await?;

    let token = consul.create_token(RULES).await?;
    let ours = bed.consul_as(&token.secret)?;
    ours.put("/v1/catalog/register", &registration("lictor-c1--n1"))
        .await?;
    ensure!(ours.health("web").await?.len() == 2);
    refuses(
        &ours,
        "catalog/register",
        registration("foreign"),
        "node:write",
    )
    .await?;
    ours.put("/v1/kv/lictor/v1/c1/epoch", &json!(1)).await?;
    refuses(&ours, "kv/lictor/v1/c2/epoch", json!(1), "403").await?;

    consul
        .change_rules(&token, r#"service_prefix "" { policy = "read" }"#)
        .await?;
    wait::until("the new rules", SOON, async || {
        refuses(
            &ours,
            "catalog/register",
            registration("lictor-c1--n2"),
            "403",
        )
        .await
    })
    .await?;

    consul.delete_token(&token).await?;
    wait::until("the token to be void", SOON, async || {
        match ours.health("web").await {
            Err(error) if format!("{error:#}").contains("ACL not found") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

async fn refuses(consul: &ConsulApi, path: &str, body: Value, why: &str) -> Result<()> {
    let put = consul.put(&format!("/v1/{path}"), &body).await;
    let refused = put
        .as_ref()
        .is_err_and(|error| format!("{error:#}").contains(why));
    ensure!(refused, "{put:?}");
    Ok(())
}

async fn a_snapshot_takes_consul_back(consul: &ConsulApi) -> Result<()> {
    let before = consul.health("web").await?;
    let snapshot = consul.snapshot().await?;
    consul
        .put("/v1/catalog/register", &registration("late"))
        .await?;
    let gone = json!({"Node": "other", "ServiceID": "other"});
    consul.put("/v1/catalog/deregister", &gone).await?;
    ensure!(consul.health("web").await? != before);
    consul.restore(&snapshot).await?;
    wait::until(
        "what the snapshot holds",
        Duration::from_secs(20),
        async || {
            let now = consul.health("web").await?;
            ensure!(now == before, "{now:?}");
            Ok(())
        },
    )
    .await?;
    ensure!(consul.restore(b"nonsense").await.is_err());
    Ok(())
}
