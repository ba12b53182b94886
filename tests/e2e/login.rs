//! A token from a login: Consul's auth method for Kubernetes, which asks the real API server whose the
//! `ServiceAccount` is.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::wait;
use serde_json::{Value, json};

use crate::leader::{AFTER_STOP, follows, stands_by};
use crate::support::{Annotated as _, BY_LOCK, Lictor, Oracle, RELEASE, Scene, acl_policy, run};

/// The auth method of a scene, and what a process there is started with.
struct Method {
    name: String,
    args: Vec<String>,
}

impl Method {
    /// With a role that allows just what `lictor acl-policy` prints; nobody has it yet.
    async fn new(scene: &Scene) -> Result<Self> {
        let name = scene.named("k8s");
        let method = scene.bed.kubernetes_auth_method(&name, "1m").await?;
        scene.consul.put("/v1/acl/auth-method", &method).await?;
        let rules = acl_policy(&scene.cluster).await?;
        let policy = json!({"Name": name, "Rules": rules});
        scene.consul.put("/v1/acl/policy", &policy).await?;
        let role = json!({"Name": name, "Policies": [{"Name": name}]});
        scene.consul.put("/v1/acl/role", &role).await?;
        let file = scene.bed.dir().join(format!("bearer-{}", scene.cluster));
        std::fs::write(
            &file,
            scene.bed.service_account_token(RELEASE, "lictor").await?,
        )?;
        let args = [
            format!("--consul-auth-method={name}"),
            format!("--consul-bearer-token-file={}", file.display()),
        ];
        let args = args.into();
        Ok(Self { name, args })
    }

    async fn bind(&self, scene: &Scene) -> Result<()> {
        let selector =
            r#"serviceaccount.namespace == "lictor-system" and serviceaccount.name == "lictor""#;
        let rule = json!({
            "AuthMethod": self.name, "BindType": "role", "BindName": self.name, "Selector": selector,
        });
        scene.consul.put("/v1/acl/binding-rule", &rule).await?;
        Ok(())
    }

    async fn start(&self, scene: &Scene) -> Result<Lictor> {
        self.start_as(scene, "lictor-0", &[]).await
    }

    async fn start_as(&self, scene: &Scene, name: &str, more: &[&str]) -> Result<Lictor> {
        let args = self.args.iter().map(String::as_str);
        let args: Vec<&str> = args.chain(more.iter().copied()).collect();
        let pod = [("POD_NAMESPACE", RELEASE), ("POD_NAME", name)];
        scene.spawn_lictor(&args, &pod).await
    }

    /// The tokens that logins with it gave.
    async fn tokens(&self, scene: &Scene) -> Result<Vec<Value>> {
        let path = format!("/v1/acl/tokens?authmethod={}", self.name);
        let tokens = scene.consul.get(&path).await?;
        tokens.as_array().cloned().context("no list of tokens")
    }

    /// Waits until there is just one, which is not this.
    async fn one_but(&self, scene: &Scene, accessor: &Value, deadline: Duration) -> Result<Value> {
        wait::until("one other token", deadline, async || {
            let tokens = self.tokens(scene).await?;
            ensure!(
                tokens.len() == 1 && tokens[0]["AccessorID"] != *accessor,
                "{tokens:?}"
            );
            Ok(tokens[0].clone())
        })
        .await
    }
}

async fn registers(scene: &Scene, name: &str) -> Result<()> {
    let pod = scene.pod(name).lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", name, "passing").await?;
    Ok(())
}

#[tokio::test]
async fn it_logs_in_again_when_the_token_is_revoked_and_out_at_the_end() -> Result<()> {
    let scene = Scene::new().await?;
    let method = Method::new(&scene).await?;
    let mut lictor = method.start(&scene).await?;
    lictor.not_ready(&method.name).await?;
    method.bind(&scene).await?;
    lictor.ready().await?;
    registers(&scene, "web-0").await?;
    let tokens = method.tokens(&scene).await?;
    ensure!(tokens.len() == 1, "{tokens:?}");
    let told = tokens[0]["Description"].as_str().unwrap_or_default();
    ensure!(told.contains("lictor-system/lictor-0"), "{told}");

    let first = &tokens[0]["AccessorID"];
    let path = format!("/v1/acl/token/{}", first.as_str().unwrap_or_default());
    scene.consul.delete(&path).await?;
    registers(&scene, "web-1").await?;
    let second = method
        .one_but(&scene, first, Duration::from_secs(30))
        .await?;
    lictor.ready().await?;
    for secret in [&tokens[0]["SecretID"], &second["SecretID"]] {
        let secret = secret.as_str().context("no secret")?;
        ensure!(!lictor.log().contains(secret), "the log has a token");
    }
    let status = lictor.stop().await?;
    ensure!(status.success(), "{status}");
    ensure!(method.tokens(&scene).await?.is_empty(), "a token is left");
    Ok(())
}

#[tokio::test]
async fn it_logs_in_again_before_the_token_ends() -> Result<()> {
    let scene = Scene::new().await?;
    let method = Method::new(&scene).await?;
    method.bind(&scene).await?;
    let mut lictor = method.start(&scene).await?;
    lictor.ready().await?;
    registers(&scene, "web-0").await?;
    let first = method.tokens(&scene).await?[0]["AccessorID"].clone();
    let ids = [scene.id("web", "web-0")];
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &[]).await?;
    // Two thirds of its minute, and then as long as calls may take that were sent with it.
    let second = method
        .one_but(&scene, &first, Duration::from_secs(90))
        .await?;
    registers(&scene, "web-1").await?;
    ensure!(lictor.http("/readyz").await?.0 == 200, "not ready");
    // Blocking queries that began with the first may end with it; no write is refused.
    let refused = lictor
        .metric(
            "lictor_consul_requests_total",
            &["code=\"403\"", "endpoint=\"txn\""],
        )
        .await?;
    assert!(refused == 0.0, "{refused} writes were refused");
    let now = method.tokens(&scene).await?;
    ensure!(
        now.iter()
            .any(|token| token["AccessorID"] == second["AccessorID"]),
        "{now:?}"
    );
    oracle.verdict().await
}

/// The lock is had, and given back, with the token of the login.
#[tokio::test]
async fn by_a_lock_one_that_logged_in_is_followed_by_another_one() -> Result<()> {
    let scene = Scene::new().await?;
    let method = Method::new(&scene).await?;
    method.bind(&scene).await?;
    let mut first = method.start_as(&scene, "first", &[BY_LOCK]).await?;
    first.ready().await?;
    first.shows("lictor_leader", 1.0).await?;
    let mut second = method.start_as(&scene, "second", &[BY_LOCK]).await?;
    second.ready().await?;
    stands_by(&second, "first").await?;
    registers(&scene, "web-0").await?;
    first.stop().await?;
    follows(&scene, "second", AFTER_STOP).await?;
    registers(&scene, "web-1").await?;
    second.stop().await?;
    ensure!(method.tokens(&scene).await?.is_empty(), "a token is left");
    let node = format!("/v1/session/node/lictor-{}-external", scene.cluster);
    assert_eq!(
        scene.consul.get(&node).await?,
        json!([]),
        "a session is left"
    );
    Ok(())
}

#[tokio::test]
async fn a_token_and_a_login_are_not_given_together() -> Result<()> {
    let args = [
        "run",
        "--cluster=a",
        "--consul-auth-method=k8s",
        "--consul-http-token=x",
    ];
    let (code, _, error) = run(&args).await?;
    ensure!(
        code == Some(64) && error.contains("give one or the other"),
        "{code:?}: {error}"
    );
    Ok(())
}
