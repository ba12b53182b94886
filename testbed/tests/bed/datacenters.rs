//! Two Consul datacenters, joined over the WAN, and what DNS says of them.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::{Bed, BedOptions, ConsulApi, DnsRecord, DnsType, dns_lookup, wait};
use serde_json::{Value, json};

use crate::SOON;

const QUERY: &str = "nearest-web";
const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const TTL: Duration = Duration::from_secs(7);

#[tokio::test]
async fn a_second_datacenter_answers_for_the_first() -> Result<()> {
    let options = BedOptions {
        second_datacenter: true,
        // So that an answer which is too long for UDP says so.
        consul_config: json!({"dns_config": {"enable_truncate": true}}),
        ..BedOptions::default()
    };
    let bed = Bed::start(options).await?;
    let (consul, dc2) = (bed.consul()?, bed.dc2_consul()?);
    ensure!(bed.servers().len() == 5 && bed.consul_servers().len() == 1);
    ensure!(consul.get("/v1/catalog/datacenters").await? == json!(["dc1", "dc2"]));

    put_web(&consul, HERE, "passing").await?;
    put_web(&dc2, THERE, "passing").await?;
    let held = consul.get("/v1/catalog/service/web?dc=dc2").await?;
    ensure!(held[0]["Address"] == THERE.to_string(), "{held}");
    let query = json!({
        "Name": QUERY,
        "Service": {
            "Service": "web",
            "OnlyPassing": false,
            "Failover": {"Datacenters": ["dc2"]},
        },
        "DNS": {"TTL": "7s"},
    });
    let id = consul.post("/v1/query", &query).await?;
    let id = id["ID"].as_str().context("no id")?;

    queries_fail_over_and_back(&bed, &consul).await?;
    only_passing_instances_are_enough(&bed, &consul, &query, id).await?;
    a_datacenter_is_taken_away(&bed, &consul).await?;
    dns_answers_in_full(&bed, &consul).await?;

    bed.wipe_consul().await?;
    bed.datacenters_joined().await?;
    ensure!(consul.health("web").await?.is_empty() && dc2.health("web").await?.len() == 1);
    bed.dc2_server()?.pause()?;
    bed.mend().await?;
    dc2.health("web").await.map(drop)
}

async fn put_web(consul: &ConsulApi, address: Ipv4Addr, status: &str) -> Result<()> {
    let id = format!("web-{address}");
    let entry = json!({
        "Node": format!("n-{address}"), "Address": address,
        "Service": {"ID": id, "Service": "web", "Port": 8080},
        "Check": {"CheckID": id, "ServiceID": id, "Name": "ready", "Status": status},
    });
    consul.put("/v1/catalog/register", &entry).await.map(drop)
}

/// Both ways to run the query give one address, and tell which datacenter it is from.
async fn answers_from(bed: &Bed, consul: &ConsulApi, from: &str, with: Ipv4Addr) -> Result<()> {
    let path = format!("/v1/query/{QUERY}/execute");
    let answer = consul.get(&path).await?;
    let nodes = answer["Nodes"].as_array().context("no list")?;
    ensure!(answer["Datacenter"] == from, "{answer}");
    ensure!(nodes.len() == 1, "{answer}");
    ensure!(nodes[0]["Node"]["Address"] == with.to_string(), "{answer}");

    let name = format!("{QUERY}.query.consul");
    let host = DnsRecord::A {
        address: with,
        ttl: TTL,
    };
    let hosts = bed.dns_lookup(&name, DnsType::A).await?;
    ensure!(hosts == [host], "{hosts:?}");
    let ports = bed.dns_lookup(&name, DnsType::Srv).await?;
    let [DnsRecord::Srv { port, .. }] = ports[..] else {
        anyhow::bail!("{ports:?}");
    };
    ensure!(port == 8080 && ports[0].ttl() == TTL, "{ports:?}");
    ensure!(ports[0].address() == Some(with), "{ports:?}");
    Ok(())
}

async fn queries_fail_over_and_back(bed: &Bed, consul: &ConsulApi) -> Result<()> {
    answers_from(bed, consul, "dc1", HERE).await?;
    put_web(consul, HERE, "critical").await?;
    answers_from(bed, consul, "dc2", THERE).await?;
    put_web(consul, HERE, "passing").await?;
    answers_from(bed, consul, "dc1", HERE).await
}

async fn only_passing_instances_are_enough(
    bed: &Bed,
    consul: &ConsulApi,
    query: &Value,
    id: &str,
) -> Result<()> {
    put_web(consul, HERE, "warning").await?;
    answers_from(bed, consul, "dc1", HERE).await?;
    let path = format!("/v1/query/{id}");
    let mut strict = query.clone();
    strict["Service"]["OnlyPassing"] = json!(true);
    consul.put(&path, &strict).await?;
    answers_from(bed, consul, "dc2", THERE).await?;
    consul.put(&path, query).await?;
    answers_from(bed, consul, "dc1", HERE).await
}

async fn a_datacenter_is_taken_away(bed: &Bed, consul: &ConsulApi) -> Result<()> {
    put_web(consul, HERE, "critical").await?;
    bed.dc2_server()?.kill();
    let path = format!("/v1/query/{QUERY}/execute");
    let answer = consul.get(&path).await?;
    ensure!(answer["Nodes"] == json!([]), "{answer}");
    let name = format!("{QUERY}.query.consul");
    ensure!(bed.dns_lookup(&name, DnsType::A).await?.is_empty());
    let read = consul.get("/v1/catalog/service/web?dc=dc2").await;
    ensure!(format!("{read:?}").contains("500"), "{read:?}");

    bed.start_dc2().await?;
    answers_from(bed, consul, "dc2", THERE).await?;
    put_web(consul, HERE, "passing").await?;
    answers_from(bed, consul, "dc1", HERE).await
}

async fn dns_answers_in_full(bed: &Bed, consul: &ConsulApi) -> Result<()> {
    let name = "web.service.consul";
    let there = dns_lookup(&bed.dc2_dns_addr()?, name, DnsType::A).await?;
    ensure!(
        there.len() == 1 && there[0].address() == Some(THERE),
        "{there:?}"
    );
    let unknown = bed.dns_lookup("nobody.service.consul", DnsType::Srv);
    ensure!(unknown.await?.is_empty());
    ensure!(
        dns_lookup("127.0.0.1", name, DnsType::A).await.is_err(),
        "an address without a port is asked"
    );
    for last in 2..=40 {
        put_web(consul, Ipv4Addr::new(10, 0, 0, last), "passing").await?;
    }
    let all = bed.dns_lookup(name, DnsType::A).await?;
    ensure!(all.len() == 40, "{} of 40 over TCP", all.len());
    Ok(())
}

#[tokio::test]
async fn a_second_datacenter_knows_the_tokens_of_the_first() -> Result<()> {
    let options = BedOptions {
        second_datacenter: true,
        consul_servers: 3,
        consul_acls: true,
        ..BedOptions::default()
    };
    let bed = Bed::start(options).await?;
    let consul = bed.consul()?;
    let dc2 = bed.dc2_consul()?;
    put_web(&dc2, THERE, "passing").await?;
    let rules = r#"service "web" { policy = "read" } node_prefix "" { policy = "read" }"#;
    let token = consul.create_token(rules).await?;
    let stranger = dc2.clone().with_token("");
    ensure!(stranger.health("web").await?.is_empty(), "all is shown");
    let reader = dc2.clone().with_token(&token.secret);
    wait::until("the token in dc2", SOON, async || {
        reader.health("web").await
    })
    .await?;
    ensure!(reader.health("web").await?.len() == 1);

    // The leader of dc1 may be any of its servers.
    bed.consul_leader().await?.kill();
    bed.consul_leader().await?;
    let across = bed.consul_as(&token.secret)?;
    let path = "/v1/health/service/web?dc=dc2";
    wait::until("dc2 through another server", SOON, async || {
        let held = across.get(path).await?;
        ensure!(held.as_array().is_some_and(|held| held.len() == 1));
        Ok(())
    })
    .await
}
