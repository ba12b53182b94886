//! The readiness gate `lictor.io/registered`.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use lictor_testbed::BedOptions;
use lictor_testbed::kubelet::TestPod;
use lictor_testbed::proxy::{Fault, Proxy};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::sleep;

use crate::support::{Annotated as _, Installed, Lictor, OFF, Scene, condition, run, until};

const GATE: &str = "lictor.io/registered";
const ON: &str = "--readiness-gate";

/// On a bed whose chart has the right to write gates, and where Deployments make pods.
async fn scene() -> Result<Scene> {
    static GATED: OnceCell<Installed> = OnceCell::const_new();
    let options = BedOptions {
        workloads: true,
        ..BedOptions::default()
    };
    let values = ["readinessGate=true", "replicas=0"];
    let installed = GATED
        .get_or_try_init(|| Installed::with_values(options, &values))
        .await?;
    Scene::on(installed).await
}

/// A pod of a service that has the gate.
fn gated(scene: &Scene, name: &str, services: &str) -> TestPod {
    let pod = scene.pod(name).readiness_gate(GATE);
    match services {
        "" => pod,
        _ => pod.lictor("service", services),
    }
}

/// Status, reason and message of the gate of a pod, all empty where it has none.
async fn gate(scene: &Scene, pod: &str) -> Result<(String, String, String)> {
    let pod = serde_json::to_value(scene.pods().get(pod).await?)?;
    let (status, reason, message) = condition(&pod["status"], GATE);
    Ok((status.to_owned(), reason.to_owned(), message.to_owned()))
}

/// Waits until the gate is closed for this reason, and returns what it says.
async fn closed(scene: &Scene, pod: &str, why: &str) -> Result<String> {
    until(&format!("the gate of {pod} to say {why}"), async || {
        let (status, reason, message) = gate(scene, pod).await?;
        let is = status == "False" && reason == why;
        ensure!(is, "{status} {reason}: {message}");
        Ok(message)
    })
    .await
}

/// Waits until the pod is let through.
async fn open(scene: &Scene, pod: &str) -> Result<()> {
    until(&format!("the gate of {pod} to open"), async || {
        let (status, reason, message) = gate(scene, pod).await?;
        let is = status == "True" && reason == "Registered";
        ensure!(is, "{status} {reason}: {message}");
        Ok(())
    })
    .await
}

/// Waits until what was to be told of pods until now is told, also what might have passed by itself.
async fn what_passes_was_told(scene: &Scene) -> Result<()> {
    gated(scene, "marker", "web").create(&scene.client).await?;
    closed(scene, "marker", "Pending").await?;
    Ok(())
}

#[tokio::test]
async fn a_pod_is_let_through_once_consul_has_all_its_instances() -> Result<()> {
    let scene = scene().await?;
    let _lictor = scene.lictor_with(&[ON]).await?;
    scene.barrier().await?;
    // Somebody else's entry stands where one of the two is to be.
    let hand = json!({
        "Node": scene.consul_node(), "Address": "192.168.7.1", "SkipNodeUpdate": true,
        "Service": {"ID": scene.id("api", "two"), "Service": "api", "Port": 1},
    });
    scene.by_hand(&hand).await?;
    let pod = gated(&scene, "two", "web,api");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "two", "passing").await?;
    let message = closed(&scene, "two", "OwnedByAnother").await?;
    ensure!(message.contains(&scene.id("api", "two")), "{message}");
    let judged = pod.judge_gates(&scene.client).await?;
    ensure!(ready(&judged) == "False", "{judged:?}");

    let away = json!({"Node": scene.consul_node(), "ServiceID": scene.id("api", "two")});
    scene.away_by_hand(&away).await?;
    open(&scene, "two").await?;
    scene.status("api", "two", "passing").await?;
    let judged = pod.judge_gates(&scene.client).await?;
    ensure!(ready(&judged) == "True", "{judged:?}");
    // What the kubelet wrote is as it was.
    ensure!(
        judged
            .status
            .as_ref()
            .is_some_and(|status| status.pod_ip.is_some())
    );

    // It is for good, whatever becomes of the instances.
    scene.annotate("two", &[("service", None)]).await?;
    scene.gone("web", "two").await?;
    scene.gone("api", "two").await?;
    pod.not_ready(&scene.client, "app").await?;
    what_passes_was_told(&scene).await?;
    assert_eq!(gate(&scene, "two").await?.0, "True");
    Ok(())
}

fn ready(pod: &Pod) -> String {
    let pod = serde_json::to_value(pod).unwrap();
    condition(&pod["status"], "Ready").0.to_owned()
}

#[tokio::test]
async fn the_health_of_a_pod_with_the_gate_is_that_of_its_containers_and_other_gates() -> Result<()>
{
    let scene = scene().await?;
    let lictor = scene.lictor_with(&[ON]).await?;
    let pod = gated(&scene, "web-0", "web").readiness_gate("example.com/lb");
    pod.create(&scene.client).await?;
    pod.not_ready(&scene.client, "app").await?;
    // Consul has it, which is all that the gate is about.
    let seen = scene.status("web", "web-0", "critical").await?;
    ensure!(seen.output.contains("example.com/lb"), "{}", seen.output);
    open(&scene, "web-0").await?;
    pod.running_ready(&scene.client).await?;
    let only_gate = |output: &str| output.contains("example.com/lb") && !output.contains("app");
    scene
        .instance("web", "web-0", |seen| {
            seen.status == "critical" && only_gate(&seen.output)
        })
        .await?;
    // Nothing is Ready yet, and yet it passes.
    let before = pod
        .condition(&scene.client, "example.com/lb", "True")
        .await?;
    ensure!(ready(&before) == "False");
    scene.status("web", "web-0", "passing").await?;
    lictor.idle().await?;
    let shown = scene.dump().await?;
    let judged = pod.judge_gates(&scene.client).await?;
    ensure!(ready(&judged) == "True", "{judged:?}");
    scene.barrier().await?;
    let after = scene.find("web", "web-0").await?.context("it is gone")?;
    ensure!(after.status == "passing");
    ensure!(shown.to_string().contains(&after.modify_index.to_string()));
    pod.condition(&scene.client, "example.com/lb", "False")
        .await?;
    scene.status("web", "web-0", "critical").await?;
    Ok(())
}

#[tokio::test]
async fn a_gate_that_is_closed_says_why() -> Result<()> {
    let scene = scene().await?;
    let lictor = scene.lictor_with(&[ON]).await?;
    gated(&scene, "nobody", "")
        .create_ready(&scene.client)
        .await?;
    let message = closed(&scene, "nobody", "NotClaimed").await?;
    ensure!(message.contains("lictor.io/service"), "{message}");
    let pending = gated(&scene, "pending", "web");
    pending.create(&scene.client).await?;
    let message = closed(&scene, "pending", "Pending").await?;
    ensure!(message.contains("no address"), "{message}");
    let invalid = gated(&scene, "invalid", "web,api").lictor("port.api", "nothing");
    invalid.create_ready(&scene.client).await?;
    let message = closed(&scene, "invalid", "InvalidAnnotation").await?;
    ensure!(message.contains("nothing"), "{message}");
    let paused = gated(&scene, "paused", "web").lictor("paused", "true");
    paused.create_ready(&scene.client).await?;
    closed(&scene, "paused", "Paused").await?;
    let selected = gated(&scene, "selected", "").label("app", "shop");
    selected.create_ready(&scene.client).await?;
    closed(&scene, "selected", "NotClaimed").await?;
    lictor.shows("lictor_gates_waiting", 5.0).await?;

    // What is paused from the start has nothing to show in Consul.
    let paused = json!({
        "apiVersion": "lictor.io/v1alpha1", "kind": "ServiceRegistration",
        "metadata": {"namespace": scene.namespace, "name": "shop",
                     "annotations": {"lictor.io/paused": "true"}},
        "spec": {"selector": {"matchLabels": {"app": "shop"}}, "port": "nothing"},
    });
    scene.bed.kubectl_apply(&paused.to_string()).await?;
    let message = closed(&scene, "selected", "Paused").await?;
    ensure!(message.contains("ServiceRegistration"), "{message}");
    let go_on = json!({"metadata": {"annotations": null}});
    scene.edit("shop", go_on).await?;
    let message = closed(&scene, "selected", "InvalidAnnotation").await?;
    ensure!(message.contains("nothing"), "{message}");
    scene
        .edit("shop", json!({"spec": {"port": "http"}}))
        .await?;
    pending.running_ready(&scene.client).await?;
    scene
        .annotate("nobody", &[("service", Some("web"))])
        .await?;
    scene.annotate("invalid", &[("port.api", None)]).await?;
    scene.annotate("paused", &[("paused", None)]).await?;
    for pod in ["nobody", "pending", "invalid", "paused", "selected"] {
        open(&scene, pod).await?;
    }
    lictor.shows("lictor_gates_waiting", 0.0).await?;

    // One that ends is left alone.
    let ends = gated(&scene, "ends", "").finalizer("example.com/hold");
    ends.create(&scene.client).await?;
    ends.delete(&scene.client).await?;
    what_passes_was_told(&scene).await?;
    assert_eq!(gate(&scene, "ends").await?.0, "");
    ends.finish_deletion(&scene.client).await
}

#[tokio::test]
async fn a_restart_lets_through_what_consul_has_and_writes_nothing_again() -> Result<()> {
    let scene = scene().await?;
    // The end comes between the registration and the condition.
    let lictor = scene.lictor().await?;
    gated(&scene, "web-0", "web")
        .create_ready(&scene.client)
        .await?;
    gated(&scene, "bad", "web")
        .lictor("port", "70000")
        .create_ready(&scene.client)
        .await?;
    scene.status("web", "web-0", "passing").await?;
    lictor.idle().await?;
    lictor.kill();
    assert_eq!(gate(&scene, "web-0").await?.0, "");
    let before = scene.dump().await?;
    let lictor = scene.lictor_with(&[ON]).await?;
    open(&scene, "web-0").await?;
    closed(&scene, "bad", "InvalidAnnotation").await?;
    lictor.idle().await?;
    assert_eq!(scene.dump().await?, before);

    let versions = async || -> Result<Vec<Option<String>>> {
        let mut versions = Vec::new();
        for pod in ["web-0", "bad"] {
            versions.push(scene.pods().get(pod).await?.resource_version());
        }
        Ok(versions)
    };
    let shown = versions().await?;
    lictor.stop().await?;
    let _lictor = scene.lictor_with(&[ON]).await?;
    what_passes_was_told(&scene).await?;
    assert_eq!(versions().await?, shown);
    Ok(())
}

#[tokio::test]
async fn a_pod_that_takes_the_name_of_another_waits_for_itself() -> Result<()> {
    let scene = scene().await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let _lictor = scene
        .lictor_through_with(&kubernetes, &consul, &[ON])
        .await?;
    let pod = gated(&scene, "web-0", "web");
    pod.create_ready(&scene.client).await?;
    open(&scene, "web-0").await?;
    let first = scene.status("web", "web-0", "passing").await?;

    consul.set(Fault::Refuse).await?;
    pod.finish_deletion(&scene.client).await?;
    let pod = pod.ip("10.9.99.9");
    pod.create_ready(&scene.client).await?;
    // Consul has an instance under the name, but not this one.
    closed(&scene, "web-0", "ConsulUnavailable").await?;
    let kept = scene.find("web", "web-0").await?.context("it is gone")?;
    assert_eq!(kept.address, first.address);
    consul.set(Fault::Pass).await?;
    open(&scene, "web-0").await?;
    let seen = scene.find("web", "web-0").await?.context("it is gone")?;
    assert_eq!(seen.meta["lictor-uid"], scene.uid("web-0").await?);
    assert_eq!(seen.address, "10.9.99.9");
    Ok(())
}

#[tokio::test]
async fn only_the_process_that_writes_lets_pods_through() -> Result<()> {
    let scene = scene().await?;
    let dry = scene.lictor_with(&[ON, "--policy=dry-run"]).await?;
    gated(&scene, "web-0", "web")
        .create_ready(&scene.client)
        .await?;
    until("the dry run to see the pod", async || {
        ensure!(dry.log().contains("would register web"), "not yet");
        Ok(())
    })
    .await?;
    let first = scene.lictor().await?;
    scene.status("web", "web-0", "passing").await?;
    first.stop().await?;
    // It knows by then that Consul has the instance, and has gone on to other things.
    for times in 1..3 {
        let tags = times.to_string();
        scene.annotate("web-0", &[("tags", Some(&*tags))]).await?;
        until("the dry run to see the edit", async || {
            let log = dry.log();
            let seen = log.matches("would update tags").count();
            ensure!(seen >= times, "{seen} of {times}");
            Ok(())
        })
        .await?;
    }
    assert_eq!(gate(&scene, "web-0").await?.0, "", "a dry run wrote");

    let replaced = scene.lictor_with(&[ON, OFF]).await?;
    open(&scene, "web-0").await?;
    let last = scene.lictor_with(&[OFF]).await?;
    replaced.not_ready("replaced").await?;
    gated(&scene, "web-1", "web")
        .create_ready(&scene.client)
        .await?;
    gated(&scene, "nobody", "")
        .create_ready(&scene.client)
        .await?;
    scene.status("web", "web-1", "passing").await?;
    last.idle().await?;
    // It follows Consul, where a further one is, made later than those by a barrier.
    for more in 1..3 {
        scene.barrier().await?;
        until("the one that was replaced to know of it", async || {
            let owned = "kind=\"instance\"";
            let owned = replaced.metric("lictor_owned", &[owned]).await?;
            ensure!(owned >= 2.0 + f64::from(more), "{owned}");
            Ok(())
        })
        .await?;
    }
    for pod in ["web-1", "nobody"] {
        assert_eq!(
            gate(&scene, pod).await?.0,
            "",
            "one that was replaced wrote"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_rolling_update_waits_for_consul() -> Result<()> {
    let scene = scene().await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let _lictor = scene
        .lictor_through_with(&kubernetes, &consul, &[ON])
        .await?;
    let example = include_str!("../../examples/cluster/readiness-gate.yaml");
    let mut example: Value = serde_saphyr::from_str(example)?;
    example["metadata"]["namespace"] = json!(scene.namespace);
    let template = &mut example["spec"]["template"];
    template["spec"]["nodeName"] = json!(scene.node);
    let deployments = Api::<Deployment>::namespaced(scene.client.clone(), &scene.namespace);
    let deployment = serde_json::from_value(example)?;
    deployments
        .create(&PostParams::default(), &deployment)
        .await?;

    let kubelet = kubelet(&scene);
    tokio::pin!(kubelet);
    let update = async {
        let first = rolled_out(&scene, &BTreeSet::new()).await?;
        for pod in &first {
            scene.status("cart", pod, "passing").await?;
        }
        consul.set(Fault::Refuse).await?;
        let patch =
            json!({"spec": {"template": {"metadata": {"annotations": {"lictor.io/tags": "v2"}}}}});
        deployments
            .patch("cart", &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        let new = until("a new pod", async || {
            let pods = pods(&scene).await?;
            let new = pods.difference(&first).next().cloned();
            new.context("there is none yet")
        })
        .await?;
        closed(&scene, &new, "ConsulUnavailable").await?;
        // The controllers and the kubelet work off what comes after it.
        marker(&scene).await?;
        let pods = pods(&scene).await?;
        ensure!(pods.is_superset(&first) && pods.len() == 3, "{pods:?}");
        for pod in &first {
            let pod = scene.pods().get(pod).await?;
            ensure!(pod.metadata.deletion_timestamp.is_none() && ready(&pod) == "True");
        }
        consul.set(Fault::Pass).await?;
        let second = rolled_out(&scene, &first).await?;
        for pod in &second {
            let seen = scene.status("cart", pod, "passing").await?;
            ensure!(seen.tags == ["v2"], "{seen:?}");
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = &mut kubelet => ended,
        updated = update => updated,
    }
}

/// Waits until another Deployment, made now, has its pod, which is ready.
async fn marker(scene: &Scene) -> Result<()> {
    let labels = json!({"app": "marker"});
    let deployment = json!({
        "metadata": {"name": "marker"},
        "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"nodeName": scene.node,
                     "containers": [{"name": "app", "image": "example.com/app"}]},
        }},
    });
    let deployments = Api::<Deployment>::namespaced(scene.client.clone(), &scene.namespace);
    let deployment = serde_json::from_value(deployment)?;
    deployments
        .create(&PostParams::default(), &deployment)
        .await?;
    until("the marker to be available", async || {
        let status = deployments.get("marker").await?.status;
        let available = status.and_then(|status| status.available_replicas);
        ensure!(available == Some(1), "{available:?}");
        anyhow::Ok(())
    })
    .await
}

/// The names of the pods of the Deployment.
async fn pods(scene: &Scene) -> Result<BTreeSet<String>> {
    let pods = scene
        .pods()
        .list(&ListParams::default().labels("app=cart"))
        .await?;
    Ok(pods.iter().map(Pod::name_any).collect())
}

/// Waits until the Deployment has two pods, ready and let through, and none of the old ones.
async fn rolled_out(scene: &Scene, old: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    until("the Deployment to be rolled out", async || {
        let found = pods(scene).await?;
        ensure!(found.len() == 2 && found.is_disjoint(old), "{found:?}");
        for pod in &found {
            let gate = gate(scene, pod).await?;
            let ready = ready(&scene.pods().get(pod).await?);
            ensure!(
                gate.0 == "True" && ready == "True",
                "{pod}: {gate:?}, ready {ready}"
            );
        }
        anyhow::Ok(found)
    })
    .await
}

/// Runs the pods of the scene as a kubelet does, without end.
async fn kubelet(scene: &Scene) -> Result<()> {
    let mut number = 0_u8;
    loop {
        for pod in scene.pods().list(&ListParams::default()).await? {
            let handle = TestPod::of(&pod);
            if pod.metadata.deletion_timestamp.is_some() {
                handle.finish_deletion(&scene.client).await?;
                continue;
            }
            let ip = pod
                .status
                .as_ref()
                .and_then(|status| status.pod_ip.as_ref());
            // A pod may go at any time.
            if ip.is_none() {
                number += 1;
                let address = format!("10.8.77.{number}");
                let _ = handle.ip(&address).running_ready(&scene.client).await;
            } else {
                let _ = handle.judge_gates(&scene.client).await;
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn without_the_flag_nobody_writes_gates_and_the_pods_are_told() -> Result<()> {
    let scene = scene().await?;
    let lictor = scene.lictor().await?;
    gated(&scene, "web-0", "web")
        .create_ready(&scene.client)
        .await?;
    scene.status("web", "web-0", "passing").await?;
    scene.event("GateNotWritten", "web-0", ON).await?;
    lictor.shows("lictor_gates_waiting", 1.0).await?;
    // Another one, which comes later, is told of, and passes, as well.
    gated(&scene, "web-1", "web")
        .create_ready(&scene.client)
        .await?;
    scene.status("web", "web-1", "passing").await?;
    scene.event("GateNotWritten", "web-1", ON).await?;
    for pod in ["web-0", "web-1"] {
        assert_eq!(gate(&scene, pod).await?.0, "");
    }
    Ok(())
}

/// The chart of the shared bed has the gate off, and so no right to write it.
#[tokio::test]
async fn a_gate_that_may_not_be_written_is_told_and_harmless() -> Result<()> {
    let scene = Scene::new().await?;
    let mut lictor: Lictor = scene.lictor_with(&[ON]).await?;
    lictor.bears_refusals();
    let pod = gated(&scene, "web-0", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    scene
        .event("GateNotWritten", "web-0", "pods/status")
        .await?;
    pod.not_ready(&scene.client, "app").await?;
    scene.status("web", "web-0", "critical").await?;
    scene.barrier().await?;
    assert_eq!(gate(&scene, "web-0").await?.0, "");
    ensure!(lictor.http("/readyz").await?.0 == 200);
    lictor.idle().await
}

#[tokio::test]
async fn the_chart_gives_the_right_only_with_the_gate_on() -> Result<()> {
    let scene = Scene::new().await?;
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/lictor");
    for (value, on) in [("readinessGate=false", false), ("readinessGate=true", true)] {
        let args = [
            "template",
            "lictor",
            chart,
            "--set",
            "cluster=a",
            "--set",
            value,
        ];
        let rendered = scene.bed.helm(&args).await?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&rendered)?;
        // People's roles have other names.
        let of = |kind: &str| {
            let named = |it: &&Value| it["kind"] == kind && it["metadata"]["name"] == "lictor";
            documents.iter().find(named)
        };
        let rules = of("ClusterRole").context("no ClusterRole")?["rules"].clone();
        let rules = rules.as_array().context("no rules")?;
        let right = json!({"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]});
        assert_eq!(rules.contains(&right), on, "{value}");
        let container = &of("Deployment").context("no Deployment")?["spec"]["template"]["spec"]["containers"]
            [0];
        let flag = json!({"name": "LICTOR_READINESS_GATE", "value": "true"});
        let env = container["env"].as_array().context("no environment")?;
        assert_eq!(env.contains(&flag), on, "{value}");
    }
    let (_, help, _) = run(&["run", "--help"]).await?;
    ensure!(help.contains("[env: LICTOR_READINESS_GATE="), "{help}");
    Ok(())
}
