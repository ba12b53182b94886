//! ACLs and TLS.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use lictor::consul::{
    Client, Consistency, ConsulConfig, ConsulSettings, ErrorClass, Fence, Quality, Request,
    TokenStanding, Txn, TxnFailure, TxnOp, TxnOutcome,
};
use lictor_testbed::{Bed, BedOptions};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

use super::{client, outcome, rights};

const MANAGEMENT: &str = "11111111-2222-3333-4444-555555555555";
const RULES: &str = r#"
    key_prefix "lictor/v1/c1/" { policy = "write" }
    node_prefix "lictor-c1--" { policy = "write" }
    service_prefix "" { policy = "read" }
"#;

/// Accounts that log in.
const ACCOUNTS: &str = r#"
{"apiVersion": "v1", "kind": "List", "items": [
  {"apiVersion": "v1", "kind": "ServiceAccount",
   "metadata": {"name": "other", "namespace": "default"}},
  {"apiVersion": "v1", "kind": "ServiceAccount",
   "metadata": {"name": "lictor", "namespace": "default"}}
]}"#;

#[tokio::test]
async fn with_acls_and_tls() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pki = folder.path().join("pki");
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let socket = folder.path().join("consul.sock");
    let options = BedOptions {
        dir: Some(folder.path().to_owned()),
        consul_config: json!({
            "acl": {
                "enabled": true,
                "default_policy": "deny",
                // The bed asks without a token whether Consul is ready.
                "tokens": { "initial_management": MANAGEMENT, "default": MANAGEMENT },
            },
            "ports": { "https": port },
            "addresses": { "http": format!("127.0.0.1 unix://{}", socket.display()) },
            "tls": { "https": {
                "ca_file": pki.join("ca.crt"),
                "cert_file": pki.join("server.crt"),
                "key_file": pki.join("server.key"),
                "verify_incoming": true,
            }},
        }),
        ..BedOptions::default()
    };
    let bed = Bed::start(options).await?;
    let settings = ConsulSettings {
        addresses: bed.consul_addr(),
        ..Default::default()
    };
    let manager = with_token(&settings, MANAGEMENT);
    let request = Request::put("agent/token/default").json(&json!({"Token": ""}))?;
    manager.send(&request).await?.success()?;

    tokens_are_told_apart(&settings).await?;
    rights_are_missed_by_name(&manager, &settings).await?;
    rights::intentions_need_theirs(&manager, &settings).await?;
    rights::defaults_need_those_of_the_service(&manager, &settings).await?;
    rights::queries_need_theirs(&manager, &settings).await?;
    a_token_file_is_followed(&settings, folder.path()).await?;
    tls_checks_both_sides(port, &pki).await?;
    tls_files_are_followed(port, &pki).await?;
    a_socket_is_an_address_like_others(&socket).await?;
    a_service_account_logs_in(&bed, &manager).await?;
    Ok(())
}

pub fn with_token(settings: &ConsulSettings, token: &str) -> Client {
    client(ConsulSettings {
        token: Some(SecretString::from(token)),
        ..settings.clone()
    })
}

/// A client that may do what a new policy of this name allows.
pub async fn with_rules(
    manager: &Client,
    settings: &ConsulSettings,
    policy: &str,
    rules: &str,
) -> Result<Client> {
    let body = json!({"Name": policy, "Rules": rules});
    let request = Request::put("acl/policy").json(&body)?;
    manager.send(&request).await?.success()?;
    let token = Request::put("acl/token").json(&json!({"Policies": [{"Name": policy}]}))?;
    let token: Value = manager.send(&token).await?.json()?.value;
    let client = with_token(settings, token["SecretID"].as_str().unwrap_or_default());
    client.check_token().await?;
    Ok(client)
}

async fn tokens_are_told_apart(settings: &ConsulSettings) -> Result<()> {
    let manager = with_token(settings, MANAGEMENT);
    let standing = manager.check_token().await?;
    assert!(matches!(&standing, TokenStanding::Token { accessor } if !accessor.is_empty()));
    let nodes = manager.nodes(None, Consistency::Consistent).await?;
    assert_eq!(
        (nodes.quality, nodes.value.len()),
        (Quality::Authoritative, 1)
    );

    // Nothing but the token tells that there is more than this.
    let anonymous = client(settings.clone());
    assert_eq!(anonymous.check_token().await?, TokenStanding::Anonymous);
    let nodes = anonymous.nodes(None, Consistency::Consistent).await?;
    assert_eq!((nodes.quality, nodes.value.len()), (Quality::Unverified, 0));
    let agent = anonymous.agent().await.unwrap_err();
    assert_eq!(agent.class(), ErrorClass::AccessDenied, "{agent}");

    let unknown = with_token(settings, "adf4238a-882b-9ddc-4a9d-5b6758e4159e");
    assert_eq!(unknown.check_token().await?, TokenStanding::Unknown);
    let nodes = unknown
        .nodes(None, Consistency::Consistent)
        .await
        .unwrap_err();
    assert_eq!(nodes.class(), ErrorClass::TokenUnknown, "{nodes}");
    let mut txn = Txn::new();
    txn.push(&TxnOp::KvGet { key: "k" })?;
    let error = unknown.apply(&txn).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::TokenUnknown, "{error}");
    Ok(())
}

async fn rights_are_missed_by_name(manager: &Client, settings: &ConsulSettings) -> Result<()> {
    let narrow = with_rules(manager, settings, "narrow", RULES).await?;

    let nodes = narrow.nodes(None, Consistency::Consistent).await?;
    assert_eq!((nodes.quality, nodes.value.len()), (Quality::Filtered, 0));
    let error = narrow.kv_put_cas("other", b"", 0).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::AccessDenied, "{error}");
    assert!(
        error
            .text()
            .contains(r#"lacks permission 'key:write' on "other""#),
        "{error}"
    );

    let ops = [
        TxnOp::KvSet {
            key: "lictor/v1/c1/mine",
            value: b"",
        },
        TxnOp::KvSet {
            key: "other",
            value: b"",
        },
        TxnOp::NodeGet {
            name: "consul-server",
        },
    ];
    let TxnOutcome::RolledBack(errors) = outcome(&narrow, &ops).await else {
        panic!("it must not be applied");
    };
    let reasons: Vec<_> = errors
        .iter()
        .map(|error| (error.op_index, error.reason))
        .collect();
    assert_eq!(reasons[0], (1, TxnFailure::PermissionDenied), "{errors:?}");

    let mut txn = Txn::new();
    txn.push(&ops[0])?;
    let fenced = narrow
        .apply_fenced(
            Fence {
                key: "other",
                index: 1,
            },
            &txn,
        )
        .await?;
    let denied = TxnFailure::PermissionDenied;
    assert!(matches!(&fenced, TxnOutcome::Fenced { reason, .. } if *reason == denied));
    Ok(())
}

async fn a_token_file_is_followed(settings: &ConsulSettings, folder: &Path) -> Result<()> {
    let token_file = folder.join("token");
    std::fs::write(&token_file, "adf4238a-882b-9ddc-4a9d-5b6758e4159e\n")?;
    let settings = ConsulSettings {
        token_file: Some(token_file.clone()),
        ..settings.clone()
    };
    let client = client(settings);
    assert_eq!(client.check_token().await?, TokenStanding::Unknown);
    std::fs::write(&token_file, format!("{MANAGEMENT}\n"))?;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let nodes = client.nodes(None, Consistency::Consistent).await?;
    assert_eq!(
        nodes.quality,
        Quality::Unverified,
        "nobody looked at this token yet"
    );
    assert!(matches!(
        client.check_token().await?,
        TokenStanding::Token { .. }
    ));
    let nodes = client.nodes(None, Consistency::Consistent).await?;
    assert_eq!(nodes.quality, Quality::Authoritative);
    Ok(())
}

async fn tls_checks_both_sides(port: u16, pki: &Path) -> Result<()> {
    let good = ConsulSettings {
        addresses: format!("127.0.0.1:{port}"),
        ssl: true,
        ca_cert: Some(pki.join("ca.crt")),
        client_cert: Some(pki.join("server.crt")),
        client_key: Some(pki.join("server.key")),
        ..ConsulSettings::default()
    };
    assert!(client(good.clone()).leader().await?.is_some());

    let named = |name: &str| ConsulSettings {
        tls_server_name: Some(name.to_owned()),
        ..good.clone()
    };
    assert!(
        client(named("kubernetes.default.svc"))
            .leader()
            .await?
            .is_some()
    );
    let by_name = ConsulSettings {
        addresses: format!("https://localhost:{port}"),
        ..named("LOCALHOST")
    };
    assert!(client(by_name).leader().await?.is_some());
    let wrong = client(named("server.dc1.consul"))
        .leader()
        .await
        .unwrap_err();
    assert_eq!(wrong.class(), ErrorClass::Unreachable, "{wrong}");
    assert!(wrong.text().contains("server.dc1.consul"), "{wrong}");

    let stranger = ConsulSettings {
        client_cert: None,
        client_key: None,
        ..good.clone()
    };
    let refused = client(stranger).leader().await.unwrap_err();
    assert!(refused.status().is_none(), "{refused}");
    let plain = ConsulSettings {
        addresses: format!("127.0.0.1:{port}"),
        ..Default::default()
    };
    let refused = client(plain).leader().await.unwrap_err();
    assert_eq!(refused.class(), ErrorClass::Refused, "{refused}");

    let garbage = pki.join("garbage");
    std::fs::write(&garbage, "no certificate")?;
    let variables = [
        (
            ConsulSettings {
                ca_cert: Some(garbage.clone()),
                ..good.clone()
            },
            "CONSUL_CACERT",
        ),
        (
            ConsulSettings {
                ca_cert: Some(pki.join("none")),
                ..good.clone()
            },
            "CONSUL_CACERT",
        ),
        (
            ConsulSettings {
                client_cert: Some(garbage.clone()),
                ..good.clone()
            },
            "CONSUL_CLIENT_CERT",
        ),
        (
            ConsulSettings {
                client_key: Some(pki.join("none")),
                ..good
            },
            "CONSUL_CLIENT_KEY",
        ),
    ];
    for (settings, variable) in variables {
        let error = Client::new(ConsulConfig::new(settings)?)
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.variable(), variable, "{error}");
    }
    Ok(())
}

async fn tls_files_are_followed(port: u16, pki: &Path) -> Result<()> {
    let ca_cert = pki.join("followed.crt");
    // A certificate, but not of the authority.
    std::fs::copy(pki.join("server.crt"), &ca_cert)?;
    let settings = ConsulSettings {
        addresses: format!("https://127.0.0.1:{port}"),
        ca_cert: Some(ca_cert.clone()),
        client_cert: Some(pki.join("server.crt")),
        client_key: Some(pki.join("server.key")),
        ..ConsulSettings::default()
    };
    let client = client(settings);
    let until_seen = || tokio::time::sleep(Duration::from_millis(1100));
    assert!(client.leader().await.is_err());
    std::fs::copy(pki.join("ca.crt"), &ca_cert)?;
    until_seen().await;
    assert!(client.leader().await?.is_some());
    std::fs::write(&ca_cert, "half of a certifi")?;
    until_seen().await;
    assert!(
        client.leader().await?.is_some(),
        "the last usable files stay in use"
    );
    Ok(())
}

async fn a_socket_is_an_address_like_others(socket: &Path) -> Result<()> {
    let settings = |addresses: String| ConsulSettings {
        addresses,
        token: Some(SecretString::from(MANAGEMENT)),
        ..ConsulSettings::default()
    };
    let there = format!("unix://{}", socket.display());
    for addresses in [
        there.clone(),
        format!("unix:///nowhere/consul.sock,{there}"),
    ] {
        let client = client(settings(addresses));
        assert!(client.leader().await?.is_some());
        let read = client.kv_get("lictor/v1/c1/socket", Consistency::Consistent);
        assert_eq!(read.await?.value, None);
    }
    let nowhere = client(settings("unix:///nowhere/consul.sock".to_owned()));
    let error = nowhere.leader().await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unreachable, "{error}");
    Ok(())
}

async fn a_service_account_logs_in(bed: &Bed, manager: &Client) -> Result<()> {
    bed.kubectl_apply(ACCOUNTS).await?;
    let bearer = async |account: &str| -> Result<SecretString> {
        let token = bed.service_account_token("default", account).await?;
        Ok(SecretString::from(token))
    };
    let create = async |endpoint: &'static str, body: Value| -> Result<()> {
        manager
            .send(&Request::put(endpoint).json(&body)?)
            .await?
            .success()?;
        Ok(())
    };
    let method = bed.kubernetes_auth_method("k8s", "10m").await?;
    create("acl/auth-method", method).await?;
    create(
        "acl/role",
        json!({"Name": "lictor", "Policies": [{"Name": "narrow"}]}),
    )
    .await?;
    let selector = r#"serviceaccount.namespace == "default" and serviceaccount.name == "lictor""#;
    let rule = json!({
        "AuthMethod": "k8s", "BindType": "role", "BindName": "lictor", "Selector": selector,
    });
    create("acl/binding-rule", rule).await?;

    let client = client(ConsulSettings {
        addresses: bed.consul_addr(),
        ..Default::default()
    });
    // Whatever token the client has does not matter to a login.
    client.set_token(&SecretString::from("adf4238a-882b-9ddc-4a9d-5b6758e4159e"))?;
    let login = client
        .login("k8s", &bearer("lictor").await?, Some("default/lictor-0"))
        .await?;
    assert!(
        login
            .lifetime
            .is_some_and(|lifetime| lifetime > Duration::from_mins(1)),
        "{login:?}"
    );
    assert!(!format!("{login:?}").contains(login.token.expose_secret()));
    client.set_token(&login.token)?;
    let accessor = login.accessor;
    assert_eq!(
        client.check_token().await?,
        TokenStanding::Token { accessor }
    );
    assert!(client.kv_put_cas("lictor/v1/c1/login", b"", 0).await?);
    client.logout(login.token).await?;
    assert_eq!(client.check_token().await?, TokenStanding::Unknown);

    for (method, account, class) in [
        ("k8s", "other", ErrorClass::AccessDenied),
        ("missing", "lictor", ErrorClass::TokenUnknown),
    ] {
        let error = client
            .login(method, &bearer(account).await?, None)
            .await
            .unwrap_err();
        assert_eq!(error.class(), class, "{error}");
    }
    let mut forged = bearer("lictor").await?.expose_secret().to_owned();
    forged.truncate(forged.len() - 4);
    forged.push_str("AAAA");
    for (token, class) in [
        ("garbage".to_owned(), ErrorClass::Refused),
        (forged, ErrorClass::AccessDenied),
    ] {
        let error = client
            .login("k8s", &SecretString::from(token), None)
            .await
            .unwrap_err();
        assert_eq!(error.class(), class, "{error}");
    }
    Ok(())
}
