//! Two datacenters, one of which has the config entries.

use std::time::{Duration, Instant};

use anyhow::Result;
use lictor::consul::wire::ServiceIntentions;
use lictor::consul::{Client, Consistency, ConsulSettings, Request};
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
