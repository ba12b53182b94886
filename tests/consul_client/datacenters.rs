//! Two datacenters, one of which has the config entries.

use std::time::{Duration, Instant};

use anyhow::Result;
use lictor::consul::wire::ServiceIntentions;
use lictor::consul::{Client, Consistency, ConsulSettings, ErrorClass, Quality, Request};
use lictor_testbed::{Bed, BedOptions};
use serde_json::{Value, json};

use super::client;
use super::config_entries::{intentions, source};

const NAME: &str = "federated";

async fn read(client: &Client) -> Result<Option<ServiceIntentions>> {
    let found = client.config_entry(NAME, Consistency::Consistent).await?;
    Ok(found.value)
}

#[tokio::test]
async fn entries_are_compared_with_those_of_the_primary() -> Result<()> {
    let client_of = |bed: &Bed| {
        client(ConsulSettings {
            addresses: bed.consul_addr(),
            ..ConsulSettings::default()
        })
    };
    let primary = Bed::start(BedOptions::default()).await?;
    let first = client_of(&primary);
    // So that no index there is by chance one of the other's.
    for number in 0..300 {
        let key = format!("lictor/v1/ahead/{number}");
        assert!(first.kv_put_cas(&key, b"", 0).await?);
    }
    let members = Request::get("agent/members").query("wan", "1");
    let members: Value = first.send(&members).await?.json()?.value;
    let options = BedOptions {
        consul_config: json!({
            "datacenter": "dc2",
            "primary_datacenter": "dc1",
            "retry_join_wan": [format!("127.0.0.1:{}", members[0]["Port"])],
            "retry_interval_wan": "500ms",
        }),
        ..BedOptions::default()
    };
    let secondary = Bed::start(options).await?;
    let second = client_of(&secondary);

    let agent = second.agent().await?;
    let datacenters = (&*agent.datacenter, &*agent.primary_datacenter);
    assert_eq!(datacenters, ("dc2", "dc1"));
    let until = Instant::now() + Duration::from_mins(1);
    let entry = intentions(NAME, &[source("a", "allow")]);
    while second.put_config_entry(&entry, 0).await.is_err() {
        assert!(Instant::now() < until, "no path to the primary");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Whoever is asked, it is written in the primary, from where it is copied.
    let stored = read(&first).await?.unwrap();
    let copy = loop {
        if let Some(copy) = read(&second).await? {
            break copy;
        }
        assert!(Instant::now() < until, "no copy");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(copy.sources, stored.sources);
    assert_ne!(copy.modify_index, stored.modify_index);
    let changed = intentions(NAME, &[source("a", "deny")]);
    assert!(!second.put_config_entry(&changed, copy.modify_index).await?);

    second.read_entries_from(&agent.primary_datacenter);
    let read = read(&second).await?.unwrap();
    assert_eq!(read, stored);
    let mut watch = second.watch_any_config_entry::<ServiceIntentions>(Consistency::Default);
    let began = watch.next().await?.observed.index;
    assert!(second.put_config_entry(&changed, read.modify_index).await?);
    assert!(watch.next().await?.observed.index > began);
    Ok(())
}

/// Without the right to ask the agent the primary datacenter is found all the same.
#[tokio::test]
async fn the_primary_is_found_without_rights_on_the_agent() -> Result<()> {
    let bed = Bed::start(BedOptions {
        second_datacenter: true,
        consul_acls: true,
        ..BedOptions::default()
    })
    .await?;
    for number in 0..100 {
        let key = format!("/v1/kv/lictor/v1/b/query/{number}");
        bed.consul()?.put(&key, &json!(number)).await?;
    }
    let rules = r#"service_prefix "" { policy = "write" intentions = "write" }
                   key_prefix "lictor/v1/a/" { policy = "write" }"#;
    let token = bed.consul()?.create_token(rules).await?;
    let client_of = |addresses: String| {
        client(ConsulSettings {
            addresses,
            token: Some(token.secret.clone().into()),
            ..ConsulSettings::default()
        })
    };
    let (first, second) = (client_of(bed.consul_addr()), client_of(bed.dc2_addr()?));
    let until = Instant::now() + Duration::from_mins(1);
    while second.check_token().await.is_err()
        || second.agent().await.unwrap_err().class() != ErrorClass::AccessDenied
    {
        assert!(Instant::now() < until, "the token is not copied");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for client in [&first, &second] {
        client.locate_entries().await?;
    }
    let entry = intentions(NAME, &[source("a", "allow")]);
    assert!(second.put_config_entry(&entry, 0).await?);
    let stored = read(&first).await?.unwrap();
    assert_eq!(read(&second).await?, Some(stored.clone()));
    let changed = intentions(NAME, &[source("a", "deny")]);
    assert!(
        second
            .put_config_entry(&changed, stored.modify_index)
            .await?
    );

    // Folders that the token may not read are left out, which is told.
    let key = "lictor/v1/a/query/x";
    assert!(first.kv_put_cas(key, b"{}", 0).await?);
    first.check_token().await?;
    let folders = first
        .kv_folders("lictor/v1/", Consistency::Consistent)
        .await?;
    let names: Vec<&str> = folders.value.iter().map(|name| &**name).collect();
    assert_eq!(
        (names, folders.quality),
        (vec!["lictor/v1/a/"], Quality::Filtered)
    );
    let none = first
        .kv_folders("lictor/v2/", Consistency::Consistent)
        .await?;
    assert!(none.value.is_empty());
    Ok(())
}
