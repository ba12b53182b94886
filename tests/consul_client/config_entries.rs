//! Intentions and service defaults: what Consul makes of each field, compare-and-set, watches.

use std::time::{Duration, Instant};

use lictor::consul::wire::{
    ConfigEntry, IntentionHeader, IntentionHttpPermission, IntentionJwt, IntentionJwtClaim,
    IntentionJwtProvider, IntentionPermission, ServiceDefaults, ServiceIntentions, SourceIntention,
};
use lictor::consul::{Cause, Client, Consistency, ErrorClass, Quality, Request, Watch};
use serde_json::{Value, json};

use super::pairs;
use super::watches::{is_quiet, next, quick};

/// An index that nothing has.
const WRONG: u64 = u64::MAX;

/// Writes an entry of any kind as JSON.
pub async fn put_raw(client: &Client, entry: &Value) {
    let request = Request::put("config").json(entry).unwrap();
    client.send(&request).await.unwrap().success().unwrap();
}

async fn put_provider(client: &Client) {
    // An empty set of keys, in base64.
    let keys = json!({"Local": {"JWKS": "eyJrZXlzIjpbXX0="}});
    put_raw(
        client,
        &json!({"Kind": "jwt-provider", "Name": "okta", "Issuer": "i", "JSONWebKeySet": keys}),
    )
    .await;
}

async fn put_defaults(client: &Client, name: &str, protocol: &str) {
    put_raw(
        client,
        &json!({"Kind": "service-defaults", "Name": name, "Protocol": protocol}),
    )
    .await;
}

async fn get<E: ConfigEntry>(client: &Client, name: &str) -> Option<E> {
    let found = client.config_entry(name, Consistency::Consistent).await;
    let found = found.unwrap();
    assert_eq!(found.quality, Quality::Authoritative);
    assert!(found.index.is_some());
    found.value
}

pub fn source(name: &str, action: &str) -> SourceIntention {
    SourceIntention {
        name: name.into(),
        action: action.into(),
        ..SourceIntention::default()
    }
}

pub fn intentions(name: &str, sources: &[SourceIntention]) -> ServiceIntentions {
    ServiceIntentions {
        name: name.into(),
        sources: sources.to_vec(),
        ..ServiceIntentions::default()
    }
}

/// What Consul makes of sources that leave it something to fill in.
fn filled(sources: Vec<(SourceIntention, i64)>) -> Vec<SourceIntention> {
    let fill = |(source, precedence)| SourceIntention {
        precedence,
        source_type: "consul".into(),
        ..source
    };
    sources.into_iter().map(fill).collect()
}

fn jwt(claims: &[IntentionJwtClaim]) -> IntentionJwt {
    let provider = IntentionJwtProvider {
        name: "okta".into(),
        verify_claims: claims.to_vec(),
        ..IntentionJwtProvider::default()
    };
    IntentionJwt {
        providers: vec![provider],
        ..IntentionJwt::default()
    }
}

fn claim(path: &[&str], value: &str) -> IntentionJwtClaim {
    IntentionJwtClaim {
        path: path.iter().map(|&part| part.into()).collect(),
        value: value.into(),
        ..IntentionJwtClaim::default()
    }
}

fn headers() -> Vec<IntentionHeader> {
    let named = |name: &str| IntentionHeader {
        name: name.into(),
        ..IntentionHeader::default()
    };
    vec![
        IntentionHeader {
            present: true,
            invert: true,
            ..named("z")
        },
        IntentionHeader {
            exact: "E".into(),
            ignore_case: true,
            ..named("a")
        },
        IntentionHeader {
            prefix: "p".into(),
            ..named("p")
        },
        IntentionHeader {
            suffix: "s".into(),
            ..named("s")
        },
        IntentionHeader {
            contains: "c".into(),
            ..named("c")
        },
        IntentionHeader {
            regex: "(".into(),
            ..named("r")
        },
    ]
}

fn permissions() -> Vec<IntentionPermission> {
    let permission = |action: &str, http| IntentionPermission {
        action: action.into(),
        http: Some(http),
        ..IntentionPermission::default()
    };
    vec![
        permission(
            "deny",
            IntentionHttpPermission {
                path_regex: "/z.*".into(),
                header: headers(),
                methods: vec!["PUT".into(), "GET".into()],
                ..IntentionHttpPermission::default()
            },
        ),
        IntentionPermission {
            jwt: Some(jwt(&[claim(&["b"], "1"), claim(&["a", "x"], "2")])),
            ..permission(
                "allow",
                IntentionHttpPermission {
                    path_prefix: "/v1".into(),
                    ..IntentionHttpPermission::default()
                },
            )
        },
        IntentionPermission {
            jwt: Some(IntentionJwt::default()),
            ..permission(
                "allow",
                IntentionHttpPermission {
                    path_exact: "/".into(),
                    ..IntentionHttpPermission::default()
                },
            )
        },
    ]
}

pub async fn all_fields_of_intentions_come_back(client: &Client) {
    put_provider(client).await;
    put_defaults(client, "ixn-full", "http").await;
    let reports = SourceIntention {
        permissions: permissions(),
        description: "d\u{e9}".into(),
        ..source("reports", "")
    };
    let peered = SourceIntention {
        peer: "p1".into(),
        ..source("web", "deny")
    };
    // The case of a source counts, that of a destination does not.
    let written = ServiceIntentions {
        jwt: Some(jwt(&[claim(&["aud"], "shop")])),
        meta: pairs(&[("k/e.y", "v"), ("empty", "")]),
        ..intentions(
            "ixn-full",
            &[
                source("*", "deny"),
                source("web", "allow"),
                reports.clone(),
                peered.clone(),
                source("Web", "allow"),
            ],
        )
    };
    assert!(client.put_config_entry(&written, 0).await.unwrap());
    let read: ServiceIntentions = get(client, "ixn-full").await.unwrap();
    let sources = filled(vec![
        (source("web", "allow"), 9),
        (reports, 9),
        (peered, 9),
        (source("Web", "allow"), 9),
        (source("*", "deny"), 8),
    ]);
    assert!(read.create_index > 0 && read.create_index == read.modify_index);
    let expected = ServiceIntentions {
        sources,
        create_index: read.create_index,
        modify_index: read.modify_index,
        ..written.clone()
    };
    assert_eq!(read, expected);

    // Whether written as it was or as it was read, it is the same to Consul: a wrong index is no
    // matter then, and nothing is written.
    for same in [&written, &read] {
        assert!(client.put_config_entry(same, WRONG).await.unwrap());
    }
    let again: ServiceIntentions = get(client, "IXN-FULL").await.unwrap();
    assert_eq!(again, read);

    let any = intentions("*", &[source("*", "allow"), source("web", "deny")]);
    assert!(client.put_config_entry(&any, 0).await.unwrap());
    let read: ServiceIntentions = get(client, "*").await.unwrap();
    let sources = vec![(source("web", "deny"), 6), (source("*", "allow"), 5)];
    assert_eq!(read.sources, filled(sources));
    let all = client
        .config_entries::<ServiceIntentions>(Consistency::Consistent)
        .await
        .unwrap();
    assert_eq!(all.quality, Quality::Authoritative);
    assert!(all.value.contains(&again) && all.value.contains(&read));
}

pub async fn consul_normalises_intentions(client: &Client) {
    put_defaults(client, "ixn-norm", "grpc").await;
    let raw = json!({
        "Kind": "service-intentions", "Name": "ixn-norm", "Meta": {}, "JWT": {"Providers": []},
        "Sources": [{"Name": "a", "Description": "", "Permissions": [{"Action": "allow",
            "HTTP": {"Methods": ["get", "Put"], "Header": []}}]}],
    });
    put_raw(client, &raw).await;
    let read: ServiceIntentions = get(client, "ixn-norm").await.unwrap();
    let http = IntentionHttpPermission {
        methods: vec!["GET".into(), "PUT".into()],
        ..IntentionHttpPermission::default()
    };
    let permission = IntentionPermission {
        action: "allow".into(),
        http: Some(http),
        ..IntentionPermission::default()
    };
    let a = SourceIntention {
        permissions: vec![permission],
        ..source("a", "")
    };
    assert_eq!(read.sources, filled(vec![(a, 9)]));
    assert_eq!(read.jwt, Some(IntentionJwt::default()));
    assert!(read.meta.is_empty());
    // To Consul what its writer spelt out is another entry, once.
    assert!(!client.put_config_entry(&read, WRONG).await.unwrap());
    assert!(
        client
            .put_config_entry(&read, read.modify_index)
            .await
            .unwrap()
    );
    assert!(client.put_config_entry(&read, WRONG).await.unwrap());
    let read: ServiceIntentions = get(client, "ixn-norm").await.unwrap();
    let without = ServiceIntentions {
        jwt: None,
        ..read.clone()
    };
    assert!(!client.put_config_entry(&without, WRONG).await.unwrap());

    // One `null` of a stranger does not make the list unreadable.
    let raw = json!({
        "Kind": "service-intentions", "Name": "ixn-null", "Sources": [source("a", "allow")],
        "JWT": {"Providers": [{"Name": "okta", "VerifyClaims": [null]}]},
    });
    put_raw(client, &raw).await;
    let read: ServiceIntentions = get(client, "ixn-null").await.unwrap();
    assert_eq!(read.jwt, Some(jwt(&[IntentionJwtClaim::default()])));
}

pub async fn legacy_intentions_are_written_back_without_their_legacy(client: &Client) {
    let legacy = json!({"SourceName": "old", "DestinationName": "ixn-legacy", "Action": "allow",
                        "Description": "d", "Meta": {"k": "v"}});
    let create = || Request::post("connect/intentions").json(&legacy).unwrap();
    client.send(&create()).await.unwrap().success().unwrap();
    let read: ServiceIntentions = get(client, "ixn-legacy").await.unwrap();
    assert!(read.meta.is_empty());
    let other = &read.sources[0].other;
    let fields: Vec<_> = other.keys().map(String::as_str).collect();
    assert_eq!(
        fields,
        [
            "LegacyCreateTime",
            "LegacyID",
            "LegacyMeta",
            "LegacyUpdateTime"
        ]
    );
    assert_eq!(other["LegacyMeta"], json!({"k": "v"}));

    // `LegacyMeta` is what Consul refuses, the others it clears.
    let raw = |fields: &[&str]| {
        let mut raw = serde_json::to_value(&read).unwrap();
        for &field in fields {
            raw["Sources"][0][field] = other[field].clone();
        }
        Request::put("config").json(&raw).unwrap()
    };
    let refused = client.send(&raw(&["LegacyMeta"])).await.unwrap();
    let refused = refused.success().unwrap_err();
    assert_eq!(refused.text(), "Sources[0].LegacyMeta must be omitted");
    let cleared = raw(&["LegacyCreateTime", "LegacyID", "LegacyUpdateTime"]);
    client.send(&cleared).await.unwrap().success().unwrap();
    let mut expected = read.clone();
    expected.sources[0].other.clear();
    let stored: ServiceIntentions = get(client, "ixn-legacy").await.unwrap();
    expected.modify_index = stored.modify_index;
    assert_eq!(stored, expected);
    assert!(client.put_config_entry(&read, WRONG).await.unwrap());

    // From then on the old API is shut for that destination.
    let error = client.send(&create()).await.unwrap().success().unwrap_err();
    assert!(
        error.text().contains("cannot use legacy intention API"),
        "{error}"
    );
}

pub async fn all_fields_of_defaults_come_back(client: &Client) {
    let bare = ServiceDefaults {
        name: "def-bare".into(),
        ..ServiceDefaults::default()
    };
    assert!(client.put_config_entry(&bare, 0).await.unwrap());
    let read: ServiceDefaults = get(client, "def-bare").await.unwrap();
    let expected = ServiceDefaults {
        create_index: read.create_index,
        modify_index: read.modify_index,
        ..bare
    };
    assert_eq!(read, expected);

    let written = ServiceDefaults {
        name: "def-full".into(),
        protocol: "HTTP".into(),
        meta: pairs(&[("a", "b")]),
        ..ServiceDefaults::default()
    };
    assert!(client.put_config_entry(&written, 0).await.unwrap());
    let read: ServiceDefaults = get(client, "def-full").await.unwrap();
    let expected = ServiceDefaults {
        protocol: "http".into(),
        create_index: read.create_index,
        modify_index: read.modify_index,
        ..written.clone()
    };
    assert_eq!(read, expected);
    assert!(client.put_config_entry(&written, WRONG).await.unwrap());

    // All that others can set is written back as it was.
    let raw = json!({
        "Kind": "service-defaults", "Name": "def-other", "Protocol": "http", "Mode": "transparent",
        "TransparentProxy": {"OutboundListenerPort": 1, "DialedDirectly": true},
        "MutualTLSMode": "strict", "MeshGateway": {"Mode": "local"},
        "Expose": {"Checks": true, "Paths": [{"ListenerPort": 1, "Path": "/a", "LocalPathPort": 2,
            "Protocol": "http"}]},
        "ExternalSNI": "e", "MaxInboundConnections": 5, "LocalConnectTimeoutMs": 6,
        "LocalRequestTimeoutMs": 7, "BalanceInboundConnections": "exact_balance",
        "UpstreamConfig": {"Defaults": {"ConnectTimeoutMs": 5, "Limits": {"MaxConnections": 3}},
            "Overrides": [{"Name": "o", "Protocol": "http"}]},
        "EnvoyExtensions": [{"Name": "builtin/ext-authz", "Arguments": {"ProxyType":
            "connect-proxy", "Config": {"GrpcService": {"Target": {"URI": "127.0.0.1:5"}}}}}],
        "MaxRequestHeadersKB": 60, "Meta": {"k": "v"},
    });
    put_raw(client, &raw).await;
    let read: ServiceDefaults = get(client, "def-other").await.unwrap();
    assert_eq!(read.other.len(), 13, "{:?}", read.other);
    assert!(client.put_config_entry(&read, WRONG).await.unwrap());
    let all = client
        .config_entries::<ServiceDefaults>(Consistency::Default)
        .await
        .unwrap();
    assert_eq!(all.quality, Quality::Leased);
    assert!(all.value.contains(&read));
}

pub async fn entries_are_compared_and_set(client: &Client) {
    const NAME: &str = "ixn-cas";
    let missing = client
        .config_entry::<ServiceIntentions>(NAME, Consistency::Default)
        .await
        .unwrap();
    assert_eq!((missing.value, missing.quality), (None, Quality::Leased));
    let delete = async |name: &str, cas| {
        client
            .delete_config_entry::<ServiceIntentions>(name, cas)
            .await
            .unwrap()
    };
    let put =
        async |entry: &ServiceIntentions, cas| client.put_config_entry(entry, cas).await.unwrap();
    assert!(delete(NAME, 0).await && delete(NAME, WRONG).await);

    let one = intentions(NAME, &[source("a", "allow")]);
    let two = intentions(NAME, &[source("a", "deny")]);
    assert!(!put(&one, WRONG).await && get::<ServiceIntentions>(client, NAME).await.is_none());
    assert!(put(&one, 0).await);
    let stored: ServiceIntentions = get(client, NAME).await.unwrap();
    // A lost race is no error; and it is not lost, though it came second, if both say the same.
    assert!(!put(&two, 0).await && !put(&two, stored.modify_index + 1).await);
    assert!(put(&one, 0).await && put(&one, stored.modify_index + 1).await);
    assert_eq!(
        get::<ServiceIntentions>(client, NAME).await.as_ref(),
        Some(&stored)
    );
    assert!(put(&two, stored.modify_index).await);
    let stored: ServiceIntentions = get(client, NAME).await.unwrap();
    assert!(stored.modify_index > stored.create_index);

    // A name in another case is the same entry, under another name.
    let renamed = ServiceIntentions {
        name: "Ixn-Cas".into(),
        ..two
    };
    assert!(!put(&renamed, 0).await && put(&renamed, stored.modify_index).await);
    let renamed: ServiceIntentions = get(client, NAME).await.unwrap();
    assert_eq!(
        (&*renamed.name, renamed.create_index),
        ("Ixn-Cas", stored.create_index)
    );
    assert!(!delete(NAME, 0).await && !delete(NAME, stored.modify_index).await);
    assert!(delete(NAME, renamed.modify_index).await);
    assert!(get::<ServiceIntentions>(client, NAME).await.is_none());

    // Any name can be told in a path.
    let odd = "ixn/a//b c?d#\u{e9}%2F";
    assert!(put(&intentions(odd, &[source("a", "allow")]), 0).await);
    let read: ServiceIntentions = get(client, odd).await.unwrap();
    assert_eq!(&*read.name, odd);
    assert!(delete(odd, read.modify_index).await);
    let refused = client
        .delete_config_entry::<ServiceIntentions>("", 0)
        .await
        .unwrap_err();
    assert_eq!(refused.class(), ErrorClass::Refused);
}

pub async fn entries_are_read_where_they_are_written(client: &Client) {
    let read = || client.config_entries::<ServiceDefaults>(Consistency::Consistent);
    let local = read().await.unwrap();
    let agent = client.agent().await.unwrap();
    assert_eq!(&*agent.primary_datacenter, "dc1");
    client.read_entries_from(&agent.primary_datacenter);
    assert_eq!(read().await.unwrap(), local);
    client.read_entries_from("nowhere");
    let error = read().await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::NoLeader, "{error}");
    let mut watch = client.watch_any_config_entry::<ServiceDefaults>(Consistency::Default);
    assert_eq!(
        watch.next().await.unwrap_err().class(),
        ErrorClass::NoLeader
    );
    client.read_entries_from("");
    assert_eq!(read().await.unwrap(), local);
}

/// Runs first, while there is no entry of the kind.
pub async fn signals_of_entries_are_woken_by_their_own_kind(client: &Client) {
    let mut watch = quick(client.watch_any_config_entry::<ServiceIntentions>(Consistency::Default));
    let began = Instant::now();
    let first = watch.next().await.unwrap();
    assert_eq!(first.cause, Cause::First);
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "an empty list does not block"
    );
    assert!(is_quiet(&mut watch).await);
    // Another kind does not wake it, although the index is that of all kinds, which the answer to
    // the next query tells.
    let asleep = async |watch: &mut Watch<()>, protocol| {
        let write = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            put_defaults(client, "ixn-signal", protocol).await;
        };
        let (quiet, ()) = tokio::join!(is_quiet(watch), write);
        assert!(quiet);
        let written: ServiceDefaults = get(client, "ixn-signal").await.unwrap();
        assert_eq!(next(watch).await, written.modify_index);
    };
    asleep(&mut watch, "http").await;

    let stored = async || {
        get::<ServiceIntentions>(client, "ixn-signal")
            .await
            .unwrap()
    };
    let one = intentions("ixn-signal", &[source("a", "allow")]);
    assert!(client.put_config_entry(&one, 0).await.unwrap());
    // An index beyond the first one: what ended the wait was this.
    assert_eq!(next(&mut watch).await, stored().await.modify_index);
    assert!(is_quiet(&mut watch).await);
    let marked = ServiceIntentions {
        meta: pairs(&[("k", "v")]),
        ..one
    };
    let index = stored().await.modify_index;
    assert!(client.put_config_entry(&marked, index).await.unwrap());
    assert_eq!(next(&mut watch).await, stored().await.modify_index);
    asleep(&mut watch, "grpc").await;

    // The last one goes.
    let index = stored().await.modify_index;
    assert!(
        client
            .delete_config_entry::<ServiceIntentions>("ixn-signal", index)
            .await
            .unwrap()
    );
    assert!(next(&mut watch).await > index);
    assert!(is_quiet(&mut watch).await);
    assert!(client.put_config_entry(&marked, 0).await.unwrap());
    assert_eq!(next(&mut watch).await, stored().await.modify_index);

    let mut defaults = quick(client.watch_any_config_entry::<ServiceDefaults>(Consistency::Stale));
    assert!(next(&mut defaults).await > 0);
    put_defaults(client, "ixn-signal", "tcp").await;
    let written: ServiceDefaults = get(client, "ixn-signal").await.unwrap();
    assert_eq!(next(&mut defaults).await, written.modify_index);
}
