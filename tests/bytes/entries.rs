//! Config entries and prepared queries.

use lictor::consul::wire;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::body;

/// Config entries and prepared queries, alone and in lists.
pub fn samples() -> impl Strategy<Value = Vec<u8>> {
    let jwt = json!({"Providers": [{"Name": "okta", "VerifyClaims": [{"Path": ["a"], "Value": "v"},
        null]}]});
    let http = json!({"PathPrefix": "/v1", "Methods": ["GET"], "Header": [{"Name": "h",
        "Exact": "e", "Invert": true, "IgnoreCase": true}, {"Name": "i", "Present": true}]});
    let legacy = json!({"Name": "old", "Action": "deny", "Precedence": 9, "Type": "consul",
        "LegacyID": "x", "LegacyMeta": {"k": "v"}, "LegacyCreateTime": "2026-01-01T00:00:00Z"});
    let intentions = json!({"Kind": "service-intentions", "Name": "web", "JWT": jwt,
        "Sources": [{"Name": "a", "Permissions": [{"Action": "allow", "HTTP": http, "JWT": jwt}],
            "Description": "d", "Precedence": 9, "Type": "consul", "Peer": "p"}, legacy],
        "Meta": {"lictor-cluster": "a"}, "Hash": 11_723_377_497_489_195_248_u64, "CreateIndex": 21,
        "ModifyIndex": 22});
    let defaults = json!({"Kind": "service-defaults", "Name": "web", "Protocol": "http",
        "TransparentProxy": {}, "MeshGateway": {"Mode": "local"}, "Expose": {}, "Meta": null,
        "UpstreamConfig": {"Defaults": {"ConnectTimeoutMs": 5}}, "Hash": 7, "ModifyIndex": 23});
    let query = json!({"ID": "94685ac5-e9ad-fd3c-0879-1e32c10106a4", "Name": "q", "Session": "",
        "Token": "s3cret", "Template": {"Type": "name_prefix_match", "Regexp": "^q(.*)$"},
        "Service": {"Service": "web", "Failover": {"NearestN": 2, "Datacenters": ["dc2"],
            "Targets": [{"Peer": "p", "Datacenter": ""}]}, "OnlyPassing": true, "Tags": ["!a"],
            "IgnoreCheckIDs": null, "NodeMeta": {"a": "b"}, "ServiceMeta": null, "Connect": true},
        "DNS": {"TTL": "10s"}, "CreateIndex": 65, "ModifyIndex": 66});
    body(vec![
        json!([intentions]),
        json!([defaults]),
        json!([query]),
        intentions,
        defaults,
        query,
        json!({"ID": "94685ac5-e9ad-fd3c-0879-1e32c10106a4"}),
        json!("Config entry not found for"),
        json!(true),
    ])
}

/// The same with whole numbers only: of others `serde_json` reads the last digits by guess.
fn whole(bytes: Vec<u8>) -> Vec<u8> {
    fn round(value: &mut Value) -> usize {
        match value {
            Value::Number(number) if number.is_f64() => {
                *value = 1.into();
                1
            }
            Value::Array(list) => list.iter_mut().map(round).sum(),
            Value::Object(map) => map.values_mut().map(round).sum(),
            _ => 0,
        }
    }
    let Ok(mut value) = serde_json::from_slice::<Value>(&bytes) else {
        return bytes;
    };
    if round(&mut value) > 0 {
        return value.to_string().into_bytes();
    }
    bytes
}

/// What is decoded and written reads again as the same, without what is never written.
fn reads_again<T>(bytes: &[u8], strip: fn(&mut T)) -> Result<(), TestCaseError>
where
    T: Clone + std::fmt::Debug + PartialEq + serde::Serialize + serde::de::DeserializeOwned,
{
    let list = serde_json::from_slice::<Vec<T>>(bytes).unwrap_or_default();
    for mut read in list.into_iter().chain(serde_json::from_slice(bytes)) {
        let written = serde_json::to_string(&read).unwrap();
        let again: T = serde_json::from_str(&written).unwrap();
        strip(&mut read);
        prop_assert_eq!(again, read);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn config_entries_and_queries_are_decoded_or_refused(bytes in samples().prop_map(whole)) {
        reads_again::<wire::ServiceIntentions>(&bytes, |entry| {
            (entry.create_index, entry.modify_index) = (0, 0);
            let legacy = ["LegacyID", "LegacyMeta", "LegacyCreateTime", "LegacyUpdateTime"];
            for source in &mut entry.sources {
                source.precedence = 0;
                source.other.retain(|name, _| !legacy.contains(&&**name));
            }
        })?;
        reads_again::<wire::ServiceDefaults>(&bytes, |entry| {
            (entry.create_index, entry.modify_index) = (0, 0);
        })?;
        reads_again::<wire::PreparedQuery>(&bytes, |query| {
            (query.create_index, query.modify_index) = (0, 0);
            (query.id, query.token) = ("".into(), false);
        })?;
    }
}
