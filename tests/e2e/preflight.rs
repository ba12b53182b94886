//! `lictor check`, on real servers: what it names is what is wrong.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::faults::{alone, three};
use crate::support::{Annotated as _, BY_LOCK, Installed, RELEASE, Scene, acl_policy, run, until};

/// What `lictor check --output json` found, and its exit code.
struct Checked {
    code: Option<i32>,
    json: Value,
    error: String,
}

impl Checked {
    /// The findings of this status, each as `name subject: message`.
    fn all(&self, status: &str) -> Vec<String> {
        let findings = self.json["findings"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        findings
            .filter(|finding| finding["status"] == status)
            .map(|finding| {
                let (name, subject) = (text(&finding["name"]), text(&finding["subject"]));
                format!("{name} {subject}: {}", text(&finding["message"]))
            })
            .collect()
    }

    /// There are just these errors, of which each begins so.
    fn errors(&self, expected: &[&str]) -> Result<()> {
        let errors = self.all("error");
        let fit = errors.len() == expected.len()
            && errors
                .iter()
                .zip(expected)
                .all(|(seen, start)| seen.starts_with(start));
        let code = i32::from(!expected.is_empty());
        ensure!(
            fit && self.code == Some(code) && self.json["ok"] == expected.is_empty(),
            "{:?}: {errors:#?}\n{}",
            self.code,
            self.json
        );
        Ok(())
    }
}

/// The arguments of `lictor check` for a scene.
fn args(scene: &Scene, more: &[String]) -> Vec<String> {
    let own = scene.args();
    let own = own.iter().filter(|arg| {
        arg.starts_with("--cluster") || arg.starts_with("--kube") || arg.starts_with("--consul")
    });
    let flag = |arg: &str| arg.split_once('=').map(|(flag, _)| flag.to_owned());
    let own = own.filter(|arg| !more.iter().any(|more| flag(more) == flag(arg)));
    let lease = format!("--lease-namespace={RELEASE}");
    let start = ["check".to_owned(), "--output=json".to_owned(), lease];
    start
        .into_iter()
        .chain(own.cloned())
        .chain(more.iter().cloned())
        .collect()
}

async fn check(scene: &Scene, more: &[String]) -> Result<Checked> {
    let args = args(scene, more);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (code, stdout, error) = run(&args).await?;
    let json = serde_json::from_str(&stdout)
        .with_context(|| format!("no JSON: {code:?} {stdout} {error}"))?;
    Ok(Checked { code, json, error })
}

fn token(secret: &str) -> String {
    format!("--consul-http-token={secret}")
}

#[tokio::test]
async fn with_the_rights_of_the_chart_and_of_the_policy_all_is_well() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let secret = scene.token_for(&scene.cluster).await?;
    let before = held(&scene).await?;
    let checked = check(&scene, &[token(&secret)]).await?;
    checked.errors(&[])?;
    assert_eq!(checked.all("warning"), [""; 0], "{}", checked.json);
    assert_eq!(checked.all("skipped"), [""; 0], "{}", checked.json);
    // It only reads.
    assert_eq!(held(&scene).await?, before);
    let ok = checked.all("ok").join("\n");
    for text in [
        "kubernetes.right : all ",
        "consul.right : all 13",
        "consul.version : 1.",
        "consul.datacenter : dc1",
        "is free in this Consul",
        "kubernetes.crd preparedqueries.lictor.io: installed, as of this release",
        "kubernetes.crd registrationpolicies.lictor.io: installed, as of this release",
        "kubernetes.clock : within",
        "consul.clock : within",
    ] {
        ensure!(ok.contains(text), "{text} in {ok}");
    }
    for text in [checked.json.to_string(), checked.error.clone()] {
        ensure!(!text.contains(&secret), "the token is shown");
    }

    // What Lictor makes is known as its own, by the name of whoever wrote.
    let lictor = scene.lictor().await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    let checked = check(&scene, &[token(&secret)]).await?;
    checked.errors(&[])?;
    let ok = checked.all("ok").join("\n");
    ensure!(ok.contains("took the epoch last"), "{ok}");
    ensure!(ok.contains("all 1 under names of this cluster"), "{ok}");
    lictor.stop().await?;

    // For people the same, without colours where no terminal is.
    let mut args = args(&scene, &[token(&secret)]);
    args.retain(|arg| !arg.starts_with("--output"));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (code, text, _) = run(&args).await?;
    ensure!(
        code == Some(0) && text.ends_with("0 errors, 0 warnings, 0 skipped\n"),
        "{text}"
    );
    ensure!(
        !text.contains('\u{1b}') && !text.contains(&secret),
        "{text}"
    );
    Ok(())
}

/// All that Consul holds that Lictor could write, indexes included.
async fn held(scene: &Scene) -> Result<Vec<Value>> {
    let mut held = vec![scene.dump().await?];
    for path in [
        "/v1/catalog/nodes?consistent",
        "/v1/query?consistent",
        "/v1/config/service-intentions?consistent",
        "/v1/session/list?consistent",
    ] {
        held.push(scene.consul.get(path).await?);
    }
    let keys = scene
        .consul
        .find("/v1/kv/lictor/?recurse&consistent")
        .await?;
    held.extend(keys);
    Ok(held)
}

/// Each time one rule is left out of the policy, or narrower.
#[tokio::test]
async fn each_right_that_is_missing_in_consul_is_named() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let policy = acl_policy(&scene.cluster).await?;
    let cluster = &scene.cluster;
    let cases: [(String, &str, Vec<String>); 7] = [
        (
            "node_prefix \"\" { policy = \"read\" }".to_owned(),
            "",
            vec!["consul.right node:read on \"\"".to_owned()],
        ),
        (
            "query_prefix \"\" { policy = \"write\" }".to_owned(),
            "query_prefix \"\" { policy = \"read\" }",
            vec!["consul.right query:write on \"\"".to_owned()],
        ),
        (
            "  intentions = \"write\"\n".to_owned(),
            "",
            vec!["consul.right intention:write on \"\"".to_owned()],
        ),
        (
            format!("session_prefix \"lictor-{cluster}--\" {{ policy = \"write\" }}"),
            "",
            vec![format!(
                "consul.right session:write on \"lictor-{cluster}--\""
            )],
        ),
        (
            format!("node \"lictor-{cluster}-external\" {{ policy = \"write\" }}"),
            "",
            vec![format!(
                "consul.right node:write on \"lictor-{cluster}-external\""
            )],
        ),
        (
            format!("key_prefix \"lictor/v1/{cluster}/\" {{ policy = \"write\" }}"),
            "",
            vec![format!(
                "consul.right key:write on \"lictor/v1/{cluster}/\""
            )],
        ),
        (
            "service_prefix \"\" {\n  policy = \"write\"\n  intentions = \"write\"\n}".to_owned(),
            "service \"consul\" { policy = \"read\" }",
            [
                "service:read",
                "service:write",
                "intention:read",
                "intention:write",
            ]
            .map(|right| format!("consul.right {right} on \"\""))
            .into(),
        ),
    ];
    for (rule, instead, errors) in cases {
        ensure!(policy.contains(&rule), "{rule} in {policy}");
        let narrow = scene
            .consul
            .create_token(&policy.replace(&rule, instead))
            .await?;
        let checked = check(&scene, &[token(&narrow.secret)]).await?;
        let errors: Vec<&str> = errors.iter().map(String::as_str).collect();
        checked.errors(&errors)?;
    }
    // A token that is narrow on purpose.
    let wide = "service_prefix \"\" {\n  policy = \"write\"\n  intentions = \"write\"\n}";
    let narrow = r#"service_prefix "" { policy = "read" }
        service "web" { policy = "write" intentions = "write" }"#;
    let narrow = scene
        .consul
        .create_token(&policy.replace(wide, narrow))
        .await?;
    let checked = check(&scene, &[token(&narrow.secret)]).await?;
    let missing =
        ["service:write", "intention:write"].map(|right| format!("consul.right {right} on \"\""));
    checked.errors(&missing.each_ref().map(String::as_str))?;
    let service = "--service=web".to_owned();
    let checked = check(&scene, &[token(&narrow.secret), service]).await?;
    checked.errors(&[])
}

#[tokio::test]
async fn a_token_that_is_none_is_told() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let checked = check(&scene, &[]).await?;
    checked.errors(&["consul.token : ACLs are on, and no token was given"])?;
    let skipped = checked.all("skipped").join("\n");
    for name in [
        "consul.right",
        "cluster.name",
        "cluster.nodes",
        "consul-k8s",
    ] {
        ensure!(skipped.contains(name), "{name} in {skipped}");
    }
    let secret = "5ec4e75e-0000-4000-8000-5ec4e75ec4e7";
    let checked = check(&scene, &[token(secret)]).await?;
    checked.errors(&["consul.token : Consul does not know it"])?;
    ensure!(
        !checked.json.to_string().contains(secret),
        "the token is shown"
    );
    let checked = check(&scene, &["--consul-auth-method=nobody".to_owned()]).await?;
    checked.errors(&["consul.token : cannot log in to Consul"])
}

/// What the chart's role has, without one verb.
#[tokio::test]
async fn each_right_that_is_missing_in_kubernetes_is_named() -> Result<()> {
    let scene = Scene::new().await?;
    let secret = token(&scene.token_for(&scene.cluster).await?);
    let role = scene
        .bed
        .kubectl(&["get", "clusterrole", "lictor", "-o", "json"])
        .await?;
    let mut role: Value = serde_json::from_str(&role)?;
    let name = format!("narrow-{}", scene.cluster);
    // That of its own Lease is in one namespace.
    let lease = format!("lictor-{}", scene.cluster);
    let own = ["-n", RELEASE, "get", "role", &*lease, "-o", "json"];
    let own: Value = serde_json::from_str(&scene.bed.kubectl(&own).await?)?;
    let rules = role["rules"].as_array_mut().context("no rules")?;
    rules.extend(own["rules"].as_array().into_iter().flatten().cloned());
    let update = format!(
        "kubernetes.right update leases.coordination.k8s.io/{lease} in {RELEASE}: missing: the processes cannot"
    );
    let create = format!("kubernetes.right create leases.coordination.k8s.io in {RELEASE}: ");
    let cases: [(&str, &str, &[&str]); 8] = [
        ("leases", "create", &[&create]),
        ("leases", "update", &[&update]),
        ("nodes", "watch", &["kubernetes.right watch nodes: "]),
        (
            "intentions/status",
            "patch",
            &["kubernetes.right patch intentions/status.lictor.io: "],
        ),
        ("namespaces", "get", &["kubernetes.right get namespaces: "]),
        (
            "registrationpolicies",
            "watch",
            &["kubernetes.right watch registrationpolicies.lictor.io: "],
        ),
        (
            "events",
            "create",
            &["kubernetes.right create events.events.k8s.io: "],
        ),
        (
            "customresourcedefinitions",
            "get",
            &[
                "kubernetes.right get customresourcedefinitions.apiextensions.k8s.io/serviceregistrations.lictor.io: ",
                "kubernetes.right get customresourcedefinitions.apiextensions.k8s.io/intentions.lictor.io: ",
                "kubernetes.right get customresourcedefinitions.apiextensions.k8s.io/preparedqueries.lictor.io: ",
                "kubernetes.right get customresourcedefinitions.apiextensions.k8s.io/registrationpolicies.lictor.io: ",
            ],
        ),
    ];
    for (resource, verb, errors) in cases {
        let account = account(&scene, &name, &without(&role, resource, verb)).await?;
        let account = format!("--kubeconfig={account}");
        // The API server's authorizer hears of a role a moment later.
        until("the right to be named", async || {
            check(&scene, &[secret.clone(), account.clone()])
                .await?
                .errors(errors)
        })
        .await?;
        if resource == "leases" {
            let lock = BY_LOCK.to_owned();
            let checked = check(&scene, &[secret.clone(), account, lock]).await?;
            checked.errors(&[])?;
        }
    }
    let gate = ["--readiness-gate".to_owned(), secret];
    let checked = check(&scene, &gate).await?;
    checked.errors(&["kubernetes.right patch pods/status: missing"])
}

/// The rules of a role without a verb on a resource.
fn without(role: &Value, resource: &str, verb: &str) -> Value {
    let mut rules = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        let mut rest = rule.clone();
        let resources = rule["resources"].as_array().into_iter().flatten();
        if resources.clone().any(|it| it == resource) {
            let verbs = rule["verbs"].as_array().into_iter().flatten();
            let mut narrow = rule.clone();
            narrow["resources"] = json!([resource]);
            narrow["verbs"] = verbs.filter(|it| *it != verb).cloned().collect();
            if narrow["verbs"] != json!([]) {
                rules.push(narrow);
            }
            rest["resources"] = resources.filter(|it| *it != resource).cloned().collect();
        }
        if rest["resources"] != json!([]) {
            rules.push(rest);
        }
    }
    json!(rules)
}

/// A kubeconfig of a `ServiceAccount` with these rules.
async fn account(scene: &Scene, name: &str, rules: &Value) -> Result<String> {
    let rbac = "rbac.authorization.k8s.io/v1";
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ServiceAccount",
         "metadata": {"name": name, "namespace": scene.namespace}},
        {"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules},
        {"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": {"name": name},
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
         "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": scene.namespace}]},
    ]});
    scene.bed.kubectl_apply(&objects.to_string()).await?;
    let kubeconfig = scene
        .bed
        .service_account_kubeconfig(&scene.namespace, name)
        .await?;
    Ok(kubeconfig.display().to_string())
}

#[tokio::test]
async fn a_side_that_is_away_does_not_hide_the_other() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let nobody = "http://127.0.0.1:1";
    let away = format!("--consul-http-addr={nobody}");
    let checked = check(&scene, &[away]).await?;
    checked.errors(&["consul.reachable : GET /v1/status/leader"])?;
    ensure!(
        checked
            .all("ok")
            .join("\n")
            .contains("kubernetes.right : all"),
        "{}",
        checked.json
    );

    let kubeconfig = scene.args();
    let kubeconfig = kubeconfig
        .iter()
        .find_map(|arg| arg.strip_prefix("--kubeconfig="))
        .context("no kubeconfig")?;
    let away = scene
        .bed
        .kubeconfig_through(kubeconfig.as_ref(), "https://127.0.0.1:1")?;
    let away = format!("--kubeconfig={}", away.display());
    let checked = check(&scene, &[away]).await?;
    checked.errors(&["kubernetes.reachable "])?;
    let ok = checked.all("ok").join("\n");
    // ACLs are off on this bed.
    ensure!(ok.contains("consul.token : ACLs are off"), "{ok}");
    ensure!(
        ok.contains("consul.right : ACLs are off: none is needed"),
        "{ok}"
    );

    // Something else answers.
    let neither = format!("--consul-http-addr={}", scene.bed.kube_addr());
    let checked = check(&scene, &[neither]).await?;
    checked.errors(&["consul.reachable "])
}

#[tokio::test]
async fn a_missing_crd_and_one_of_another_release_are_told() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let name = "preparedqueries.lictor.io";
    let crd = scene
        .bed
        .kubectl(&["get", "crd", name, "-o", "json"])
        .await?;
    let crd: Value = serde_json::from_str(&crd)?;
    let mut other = crd.clone();
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/onlyPassing";
    let parent = spec.rsplit_once('/').context("a path")?.0;
    other
        .pointer_mut(parent)
        .and_then(Value::as_object_mut)
        .context("no properties")?
        .remove("onlyPassing")
        .context("no such property")?;
    scene.bed.kubectl_apply(&other.to_string()).await?;
    let checked = check(&scene, &[]).await?;
    let test = async {
        checked.errors(&[])?;
        let warnings = checked.all("warning");
        ensure!(
            warnings.len() == 1
                && warnings[0].starts_with(&format!("kubernetes.crd {name}: not the one")),
            "{warnings:?}"
        );
        scene.bed.kubectl(&["delete", "crd", name]).await?;
        let checked = check(&scene, &[]).await?;
        checked.errors(&[&format!("kubernetes.crd {name}: not installed")])
    };
    let done = test.await;
    // The next test on this bed needs it.
    restore(installed, &crd).await?;
    done
}

async fn restore(installed: &Installed, crd: &Value) -> Result<()> {
    let mut crd = crd.clone();
    let metadata = crd["metadata"].as_object_mut().context("no metadata")?;
    for field in [
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "managedFields",
    ] {
        metadata.remove(field);
    }
    if let Some(crd) = crd.as_object_mut() {
        crd.remove("status");
    }
    installed.bed.kubectl_apply(&crd.to_string()).await?;
    until("the CRD to be served", async || {
        let kinds = "serviceregistrations,intentions,preparedqueries";
        installed
            .bed
            .kubectl(&["get", kinds, "--all-namespaces"])
            .await
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn who_else_is_there_is_told() -> Result<()> {
    let scene = Scene::new().await?;
    let secret = token(&scene.token_for(&scene.cluster).await?);
    let secret = std::slice::from_ref(&secret);
    let key = format!("lictor/v1/{}/epoch", scene.cluster);
    let epoch = json!({"holder": "pod-7/1", "uid": "another", "kind": "run", "term": 3});
    scene.consul.put_text(&key, &epoch.to_string()).await?;
    check(&scene, secret)
        .await?
        .errors(&["cluster.name : ClusterNameTaken: "])?;
    scene.consul.put_text(&key, "{").await?;
    check(&scene, secret)
        .await?
        .errors(&["cluster.name : the key "])?;
    scene.consul.delete(&format!("/v1/kv/{key}")).await?;

    // What an agent's gossip leaves in the catalog.
    let node = scene.consul_node();
    let agent = json!({"Node": node, "Address": "10.9.9.9",
        "Check": {"CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing"}});
    scene.by_hand(&agent).await?;
    let error = format!("cluster.nodes {node}: a Consul agent");
    check(&scene, secret).await?.errors(&[&error])?;
    scene
        .away_by_hand(&json!({"Node": node, "CheckID": "serfHealth"}))
        .await?;
    let checked = check(&scene, secret).await?;
    checked.errors(&[])?;
    ensure!(
        checked
            .all("warning")
            .concat()
            .starts_with(&format!("cluster.nodes {node}: it lacks"))
    );
    scene.away_by_hand(&json!({"Node": node})).await?;

    // consul-k8s syncs a service, beside Lictor and then in its way.
    let sync = format!("k8s-sync-{}", scene.cluster);
    let service = scene.named("synced");
    let synced = json!({"Node": sync, "Address": "127.0.0.1",
        "NodeMeta": {"external-source": "kubernetes"},
        "Service": {"ID": "s", "Service": service, "Tags": ["k8s"]}});
    scene.by_hand(&synced).await?;
    let checked = check(&scene, secret).await?;
    checked.errors(&[])?;
    ensure!(
        checked
            .all("ok")
            .join("\n")
            .contains("none of it is in the way"),
        "{}",
        checked.json
    );
    let lictor = scene.lictor().await?;
    let pod = scene
        .pod("web-0")
        .lictor("service", &service)
        .lictor("tags", "k8s");
    pod.create_ready(&scene.client).await?;
    scene.status(&service, "web-0", "passing").await?;
    let checked = check(&scene, secret).await?;
    lictor.stop().await?;
    checked.errors(&[])?;
    let warnings = checked.all("warning");
    ensure!(
        warnings.len() == 2
            && warnings[0].contains("tag k8s")
            && warnings[1].contains("twice")
            && warnings.iter().all(|warning| warning.contains(&service)),
        "{warnings:#?}"
    );
    scene.away_by_hand(&json!({"Node": sync})).await
}

#[tokio::test]
async fn a_command_line_that_is_not_understood_ends_with_64() -> Result<()> {
    for args in [
        &["check"][..],
        &["check", "--cluster=A"],
        &["check", "--cluster=a", "--output=xml"],
        &["check", "--cluster=a", "--consul-http-addr=ftp://a"],
    ] {
        let (code, stdout, stderr) = run(args).await?;
        ensure!(
            code == Some(64) && stdout.is_empty(),
            "{args:?}: {stdout} {stderr}"
        );
    }
    Ok(())
}
