//! The `ValidatingAdmissionPolicy` of the chart, judged by the real API server: it refuses what Lictor could
//! not use, and nothing that Lictor takes.

mod laxity;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use crate::support::{Scene, until};
use laxity::lictor_takes;

/// Annotations of Lictor, without `lictor.io/`.
type Given = BTreeMap<String, String>;

fn given<const N: usize>(pairs: [(&str, &str); N]) -> Given {
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn annotations(given: &Given) -> Value {
    given
        .iter()
        .map(|(key, value)| (format!("lictor.io/{key}"), Value::from(value.as_str())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn pod(name: &str, given: &Given) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations(given)},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    })
}

/// An object with a template of pods.
fn workload(kind: &str, name: &str, given: &Given) -> Value {
    let labels = json!({"app": name});
    let pod = pod(name, given);
    let mut template = json!({
        "metadata": {"labels": labels, "annotations": pod["metadata"]["annotations"]},
        "spec": pod["spec"],
    });
    let selector = json!({"matchLabels": labels});
    let (version, spec) = match kind {
        "Job" | "CronJob" => {
            template["spec"]["restartPolicy"] = "Never".into();
            let job = json!({"template": template});
            let cron = json!({"schedule": "0 0 * * *", "jobTemplate": {"spec": job}});
            ("batch/v1", if kind == "Job" { job } else { cron })
        }
        _ => (
            "apps/v1",
            json!({"selector": selector, "template": template}),
        ),
    };
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// What the API server says to `kubectl apply`.
enum Said {
    /// With the warnings.
    Admitted(String),
    Denied(String),
}

impl Said {
    fn denied(self, of: &str) -> Result<String> {
        match self {
            Self::Denied(said) => Ok(said),
            Self::Admitted(_) => bail!("{of} is admitted"),
        }
    }

    fn admitted(self, of: &str) -> Result<String> {
        match self {
            Self::Admitted(warnings) => Ok(warnings),
            Self::Denied(said) => bail!("{of}: {said}"),
        }
    }
}

async fn kubectl(scene: &Scene, args: &[&str]) -> Result<Said> {
    let mut kubectl = scene.bed.kubectl_command();
    let kubectl = kubectl.args(args).args(["--namespace", &scene.namespace]);
    let output = kubectl.output().await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(Said::Admitted(said));
    }
    ensure!(
        said.contains("ValidatingAdmissionPolicy"),
        "{args:?}: {said}"
    );
    Ok(Said::Denied(said))
}

async fn apply(scene: &Scene, object: &Value) -> Result<Said> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), object.to_string())?;
    let file = file.path().display().to_string();
    kubectl(scene, &["apply", "--filename", &file]).await
}

/// Why a pod with these annotations is denied, if it is; it is not made in any case.
async fn verdict(pods: &Api<Pod>, given: &Given) -> Result<Option<String>> {
    let object = serde_json::from_value(pod("judged", given))?;
    let only_asked = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match pods.create(&only_asked, &object).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) if status.message.contains("ValidatingAdmissionPolicy") => {
            Ok(Some(status.message.clone()))
        }
        Err(error) => Err(error).with_context(|| format!("{given:?}")),
    }
}

/// Installs the policy for the namespace of the scene, where it refuses; it is in force when this returns.
async fn install(scene: &Scene) -> Result<()> {
    let values = json!({
        "cluster": "a", "namespaces": [scene.namespace],
        "admissionPolicy": {"enabled": true, "validationActions": ["Deny"]},
    });
    install_with(scene, &values).await?;
    let wrong = given([("paused", "?")]);
    until("the policy to be in force", async || {
        let verdict = verdict(&scene.pods(), &wrong).await?;
        verdict.context("it is admitted")
    })
    .await?;
    Ok(())
}

async fn install_with(scene: &Scene, values: &Value) -> Result<()> {
    let release = format!("--name-template={}", scene.cluster);
    let only = "--show-only=templates/admissionpolicy.yaml";
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), values.to_string())?;
    let file = file.path().display().to_string();
    let args = [
        "template",
        crate::chart::CHART,
        &release,
        only,
        "--values",
        &file,
    ];
    let rendered = scene.bed.helm(&args).await?;
    scene.bed.kubectl_apply(&rendered).await?;
    Ok(())
}

/// What is wrong, and how the answer begins to say so.
fn wrong() -> Vec<(&'static str, String, &'static str)> {
    let port = "lictor.io/port must be the name of a port or a number";
    let weight = "lictor.io/weight and lictor.io/weight-warning must be numbers";
    let service = "lictor.io/service must be one or several names";
    let name = "SERVICE must be the name of a service";
    let unknown = "Lictor knows service, paused, port";
    let meta = "lictor.io/meta must be KEY=VALUE";
    let reserved = "lictor.io/meta has a reserved key";
    let template = "in lictor.io/tags and lictor.io/meta there are";
    let long_name = format!("web,{}", "a".repeat(64));
    let long = "a,".repeat(16 * 1024);
    let long_key = format!("{}=a", "k".repeat(129));
    let rows = [
        ("tag", "v1", unknown),
        ("Port", "80", unknown),
        ("service.web", "web", unknown),
        ("paused.web", "true", unknown),
        ("port.Web", "80", name),
        ("port.web.shop", "80", name),
        ("weight.-web", "1", name),
        ("tags", &long, "longer than 32767 bytes"),
        ("service", "", service),
        ("service", " , ", service),
        ("service", "web,Not_A_Label", service),
        ("service", "web.shop", service),
        ("service", "-web", service),
        ("service", &long_name, service),
        ("port", "", port),
        ("port", "0", port),
        ("port", "000", port),
        ("port", "65536", port),
        ("port", "70000", port),
        ("port", "999999999999999999999999", port),
        ("port", "80/tcp", port),
        ("port", "http_1", port),
        ("port", "a-name-of-16-chr", port),
        ("port.web", "no such port", port),
        ("weight", "0", weight),
        ("weight", "+5", weight),
        ("weight", "1.5", weight),
        ("weight-warning", "NaN", weight),
        ("weight.web", "65536", weight),
        ("address", "podip", "lictor.io/address must be"),
        ("not-ready", "Deregister", "lictor.io/not-ready must be"),
        ("terminating", "Passing", "lictor.io/terminating must be"),
        ("paused", "yes", "lictor.io/paused must be"),
        ("paused", "", "lictor.io/paused must be"),
        ("meta", "novalue", meta),
        ("meta", "a=b,=c", meta),
        ("meta", "a/b=c", meta),
        ("meta", "${pod.name}=c", meta),
        ("meta", &long_key, meta),
        ("meta", "lictor-owner=me", reserved),
        ("meta", "consul-x=me", reserved),
        ("meta.web", " managed-by = me", reserved),
        ("meta", "external-k8s-ns=me", reserved),
        ("meta", "price=5$", template),
        ("meta", "a=${pod.uid}", template),
        ("tags", "a,${pod.nope}", template),
        ("tags", "${pod.labels[app]}", template),
        ("tags", "${pod.labels['a,b']}", template),
        ("tags.web", "$$$", template),
    ];
    let row =
        |(key, value, told): (&'static str, &str, &'static str)| (key, value.to_owned(), told);
    rows.map(row).into()
}

#[tokio::test]
async fn what_lictor_cannot_use_is_refused_with_what_is_allowed() -> Result<()> {
    let scene = Scene::new().await?;
    install(&scene).await?;
    for (key, value, told) in wrong() {
        let mut wrong = given([("service", "web")]);
        wrong.insert(key.to_owned(), value.clone());
        let shown: String = value.chars().take(40).collect();
        let denied = verdict(&scene.pods(), &wrong).await?;
        let denied = denied.with_context(|| format!("{key}: {shown:?} is admitted"))?;
        ensure!(denied.contains(told), "{key}: {shown:?}: {denied}");
        // By itself as well, whatever Lictor would think of the rest.
        ensure!(!lictor_takes(&wrong), "Lictor takes {key}: {shown:?}");
    }
    let unknown = given([("tag", "a"), ("tagz.web", "b")]);
    let denied = verdict(&scene.pods(), &unknown).await?;
    let denied = denied.context("unknown annotations are admitted")?;
    ensure!(
        // In the order of the map that they are in, which has none.
        ["lictor.io/tag", "lictor.io/tagz.web", ": Lictor knows"]
            .iter()
            .all(|part| denied.contains(part)),
        "{denied}"
    );
    Ok(())
}

#[tokio::test]
async fn templates_of_pods_are_judged_in_every_kind_of_workload() -> Result<()> {
    let scene = Scene::new().await?;
    install(&scene).await?;
    let right = given([("service", "web"), ("port", "http")]);
    let wrong = given([("service", "web"), ("port", "70000")]);
    for kind in [
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicaSet",
        "Job",
        "CronJob",
    ] {
        let name = kind.to_lowercase();
        let denied = apply(&scene, &workload(kind, &name, &wrong)).await?;
        let denied = denied.denied(kind)?;
        ensure!(
            denied.contains("lictor.io/port must be"),
            "{kind}: {denied}"
        );
        for given in [&Given::new(), &right] {
            // The template of a Job cannot be changed.
            let name = format!("{name}-{}", given.len());
            apply(&scene, &workload(kind, &name, given))
                .await?
                .admitted(kind)?;
        }
    }
    // Annotations of the workload itself are not Lictor's.
    let mut outside = workload("Deployment", "outside", &Given::new());
    outside["metadata"]["annotations"] = json!({"lictor.io/service": "No Name"});
    apply(&scene, &outside).await?.admitted("the Deployment")?;
    Ok(())
}

/// A workload that was there before the policy goes on: it scales, changes and has pods. What is wrong cannot
/// be written anew.
#[tokio::test]
async fn what_was_there_before_goes_on() -> Result<()> {
    let scene = Scene::new().await?;
    let wrong = given([("service", "web"), ("weight", "0"), ("old", "")]);
    let deployment = workload("Deployment", "before", &wrong);
    apply(&scene, &deployment)
        .await?
        .admitted("before the policy")?;
    apply(&scene, &pod("before", &wrong))
        .await?
        .admitted("before the policy")?;
    install(&scene).await?;

    for args in [
        &["scale", "deployment", "before", "--replicas=3"][..],
        &["label", "deployment", "before", "a=b"],
        &["set", "image", "deployment/before", "app=other"],
        &["label", "pod", "before", "a=b"],
        &["annotate", "pod", "before", "example.com/a=b"],
        &["annotate", "pod", "before", "lictor.io/port=http"],
        &["annotate", "pod", "before", "lictor.io/old-"],
    ] {
        kubectl(&scene, args).await?.admitted(&args.join(" "))?;
    }
    for args in [
        &[
            "annotate",
            "pod",
            "before",
            "--overwrite",
            "lictor.io/weight=70000",
        ][..],
        &["annotate", "pod", "before", "lictor.io/old=again"],
        &[
            "annotate",
            "pod",
            "before",
            "--overwrite",
            "lictor.io/service=web,Web",
        ],
    ] {
        kubectl(&scene, args).await?.denied(&args.join(" "))?;
    }

    // A controller makes pods of a template that is there.
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "uid": "b"});
    // Each a pod of its own: the garbage collector takes away what is owned by nothing.
    for (name, controller, admitted) in [
        ("made", json!(true), true),
        ("owned", json!(false), false),
        ("other", Value::Null, false),
    ] {
        let mut made = pod(name, &wrong);
        let mut owner = owner.clone();
        if !controller.is_null() {
            owner["controller"] = controller.clone();
        }
        made["metadata"]["ownerReferences"] = json!([owner]);
        let said = apply(&scene, &made).await?;
        match said {
            Said::Admitted(_) => ensure!(admitted, "controller: {controller}"),
            Said::Denied(said) => ensure!(!admitted, "controller: {controller}: {said}"),
        }
    }
    Ok(())
}

/// As the chart installs it by default, and not where namespaces are left alone.
#[tokio::test]
async fn by_default_it_warns_and_refuses_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let wrong = pod("wrong", &given([("service", "web"), ("port", "70000")]));
    let told = "Validation failed for ValidatingAdmissionPolicy 'lictor' with binding 'lictor': \
                lictor.io/port must be the name of a port or a number within 1..65535";
    until("the warning", async || {
        kubectl(
            &scene,
            &["delete", "pod", "wrong", "--ignore-not-found", "--now"],
        )
        .await?
        .admitted("a deletion")?;
        let warnings = apply(&scene, &wrong).await?.admitted("the pod")?;
        ensure!(warnings.contains(told), "{warnings}");
        Ok(())
    })
    .await?;
    let seen = scene.pods().get("wrong").await?;
    assert_eq!(seen.metadata.name.as_deref(), Some("wrong"));

    let code = scene.namespace.trim_start_matches("t-").to_owned();
    let policy = format!("ValidatingAdmissionPolicy '{}-lictor'", scene.cluster);
    for (globs, warns) in [
        (
            json!([
                format!("?-[!{}]*", &code[..1]),
                "kube-*",
                format!("t-{code}")
            ]),
            false,
        ),
        (
            json!([
                format!("t-{}", &code[..1]),
                format!("x*{code}"),
                "t-[!a-z]?"
            ]),
            true,
        ),
    ] {
        install_with(&scene, &json!({"cluster": "a", "excludeNamespaces": globs})).await?;
        let mut number = 0;
        until(&format!("{globs} to be in force: {warns}"), async || {
            number += 1;
            let mut wrong = wrong.clone();
            wrong["metadata"]["name"] = format!("wrong-{warns}-{number}").into();
            let warnings = apply(&scene, &wrong).await?.admitted("the pod")?;
            ensure!(warnings.contains("'lictor'"), "{warnings}");
            ensure!(warnings.contains(&policy) == warns, "{warnings}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
