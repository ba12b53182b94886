//! The bed, on real servers.

mod consul;
mod datacenters;
mod mesh;
mod proxy;

use std::{net::Ipv4Addr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use lictor_testbed::{
    Bed, BedOptions, ConsulApi, DnsRecord, DnsType,
    kubelet::{self, TestNode, TestPod},
    wait,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// One test, since a bed costs seconds: each part leaves the bed running.
#[tokio::test]
async fn a_bed_from_start_to_end() -> Result<()> {
    let bed = Bed::start(BedOptions::default()).await?;
    let client = bed.kube_client()?;
    let consul = bed.consul()?;

    Box::pin(pods_live_and_die_as_with_a_kubelet(&client)).await?;
    nodes_have_addresses_and_readiness(&client).await?;
    many_pods_are_made_at_once(&client).await?;
    a_service_account_may_do_what_rbac_grants(&bed).await?;
    crds_and_namespaces_work(&bed, &client).await?;
    helm_installs_and_removes(&bed).await?;
    consul_takes_writes(&bed, &consul).await?;
    servers_survive_faults(&bed, &client, &consul).await?;
    two_beds_live_side_by_side(&bed).await?;

    let pids: Vec<_> = bed
        .servers()
        .iter()
        .filter_map(|server| server.pid())
        .collect();
    let dir = bed.dir().to_owned();
    ensure!(
        pids.len() == 4 && pids.iter().all(|pid| is_alive(*pid)),
        "not all run: {pids:?}"
    );
    drop(bed);
    ensure!(
        !pids.iter().any(|pid| is_alive(*pid)),
        "some of {pids:?} outlive the bed"
    );
    ensure!(!dir.exists(), "{} outlives the bed", dir.display());
    Ok(())
}

async fn pods_live_and_die_as_with_a_kubelet(client: &Client) -> Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), "default");
    let pod = TestPod::new("default", "web-0")
        .node("n1")
        .label("app", "web")
        .annotation("note", "first")
        .port("http", 8080)
        .host_port("admin", 9090, 19090)
        .sidecar("proxy")
        .port("metrics", 9100)
        .ips(["10.1.2.3", "fd00::3"]);
    let created = pod.create(client).await?;
    ensure!(
        phase(&created) == "Pending" && ip(&created).is_none(),
        "{created:?}"
    );

    let ready = pod.running_ready(client).await?;
    ensure!(
        phase(&ready) == "Running" && condition(&ready, "Ready") == "True",
        "{ready:?}"
    );
    ensure!(ip(&ready) == Some("10.1.2.3"), "{ready:?}");

    let unready = pod.not_ready(client, "app").await?;
    ensure!(condition(&unready, "Ready") == "False", "{unready:?}");
    let waiting = pod.waiting(client, "app", "CrashLoopBackOff").await?;
    let state = serde_json::to_string(&waiting.status)?;
    ensure!(state.contains("CrashLoopBackOff"), "{state}");

    let moved = pod.set_ips(client, &["10.1.2.4"]).await?;
    ensure!(ip(&moved) == Some("10.1.2.4"), "{moved:?}");
    let bare = pod.set_ips(client, &[]).await?;
    ensure!(ip(&bare).is_none(), "{bare:?}");
    let pending = pod.pending(client).await?;
    ensure!(
        phase(&pending) == "Pending" && ip(&pending).is_none(),
        "{pending:?}"
    );

    pod.running_ready(client).await?;
    pod.delete(client).await?;
    let terminating = pods.get("web-0").await?;
    ensure!(
        terminating.metadata.deletion_timestamp.is_some(),
        "{terminating:?}"
    );
    // A pod that terminates still has a status.
    pod.not_ready(client, "app").await?;
    pod.finish_deletion(client).await?;
    ensure!(pods.get_opt("web-0").await?.is_none(), "it is still there");

    for phase_name in ["Succeeded", "Failed", "Unknown"] {
        let pod = TestPod::new("default", "job").node("n1").ip("10.1.2.5");
        pod.create_ready(client).await?;
        let ended = pod.phase(client, phase_name).await?;
        ensure!(
            phase(&ended) == phase_name && ip(&ended) == Some("10.1.2.5"),
            "{ended:?}"
        );
        pod.finish_deletion(client).await?;
    }

    let pod = TestPod::new("default", "held")
        .node("n1")
        .finalizer("example.com/hold");
    pod.create(client).await?;
    pod.delete(client).await?;
    ensure!(
        pods.get("held")
            .await?
            .metadata
            .deletion_timestamp
            .is_some()
    );
    pod.finish_deletion(client).await?;
    ensure!(pods.get_opt("held").await?.is_none(), "it is still there");

    let pod = TestPod::new("default", "gated")
        .node("n1")
        .host_network()
        .host_ips(["192.168.1.7"])
        .readiness_gate("example.com/gate");
    let gated = pod.create_ready(client).await?;
    ensure!(condition(&gated, "Ready") == "False" && ip(&gated) == Some("192.168.1.7"));
    pod.condition(client, "example.com/gate", "True").await?;
    let open = pod.condition(client, "Ready", "True").await?;
    ensure!(condition(&open, "Ready") == "True", "{open:?}");
    ensure!(condition(&open, "ContainersReady") == "True", "{open:?}");
    let pod = TestPod::of(&open).host_ips(["192.168.1.7"]);
    let unready = pod.not_ready(client, "app").await?;
    ensure!(
        condition(&unready, "example.com/gate") == "True",
        "{unready:?}"
    );
    pod.running_ready(client).await?;
    let judged = pod.judge_gates(client).await?;
    ensure!(condition(&judged, "Ready") == "True", "{judged:?}");
    ensure!(ip(&judged) == Some("192.168.1.7"), "{judged:?}");
    pod.condition(client, "example.com/gate", "False").await?;
    let judged = pod.judge_gates(client).await?;
    ensure!(condition(&judged, "Ready") == "False", "{judged:?}");
    pod.finish_deletion(client).await
}

async fn nodes_have_addresses_and_readiness(client: &Client) -> Result<()> {
    let node = TestNode::new("n1")
        .label("topology.kubernetes.io/zone", "a")
        .address("InternalIP", "192.168.1.7");
    let created = serde_json::to_value(node.create(client).await?)?;
    ensure!(
        created["status"]["addresses"][0]["address"] == "192.168.1.7",
        "{created}"
    );
    for status in ["False", "Unknown", "True"] {
        let node = serde_json::to_value(node.ready(client, status).await?)?;
        ensure!(
            node["status"]["conditions"][0]["status"] == status,
            "{node}"
        );
    }
    let moved = node.set_addresses(client, &[("Hostname", "n1")]).await?;
    let moved = serde_json::to_value(moved)?;
    ensure!(
        moved["status"]["addresses"][0]["type"] == "Hostname",
        "{moved}"
    );
    node.delete(client).await
}

async fn many_pods_are_made_at_once(client: &Client) -> Result<()> {
    let pods = |n: usize| {
        let pod = TestPod::new("default", &format!("bulk-{n}")).node("n1");
        pod.ip(&format!("10.9.0.{n}"))
    };
    kubelet::create_all(client, (1..=50).map(pods), 8).await?;
    let listed = Api::<Pod>::namespaced(client.clone(), "default")
        .list(&ListParams::default())
        .await?;
    ensure!(
        listed
            .items
            .iter()
            .filter(|pod| condition(pod, "Ready") == "True")
            .count()
            == 50
    );
    kubelet::for_each((1..=50).map(pods), 8, async |pod| {
        pod.finish_deletion(client).await
    })
    .await
}

async fn a_service_account_may_do_what_rbac_grants(bed: &Bed) -> Result<()> {
    bed.kubectl(&["create", "serviceaccount", "reader", "--namespace=default"])
        .await?;
    bed.kubectl(&[
        "create",
        "role",
        "reader",
        "--verb=get,list",
        "--resource=pods",
    ])
    .await?;
    let binding = ["create", "rolebinding", "reader", "--role=reader"];
    bed.kubectl(&[&binding[..], &["--serviceaccount=default:reader"]].concat())
        .await?;

    let client = bed.service_account_client("default", "reader").await?;
    Api::<Pod>::namespaced(client.clone(), "default")
        .list(&ListParams::default())
        .await?;
    let refused = Api::<Pod>::all(client).list(&ListParams::default()).await;
    ensure!(
        matches!(&refused, Err(kube::Error::Api(status)) if status.is_forbidden()),
        "{refused:?}"
    );

    let kubeconfig = bed.service_account_kubeconfig("default", "reader").await?;
    ensure!(kubectl_as(bed, &kubeconfig, &["get", "pods"]).await?.0);
    let (done, text) = kubectl_as(bed, &kubeconfig, &["create", "serviceaccount", "other"]).await?;
    ensure!(
        !done && text.contains("system:serviceaccount:default:reader"),
        "{text}"
    );

    let anonymous = reqwest_status(bed, "/api").await?;
    ensure!(anonymous == 401, "an anonymous caller gets {anonymous}");
    let health = reqwest_status(bed, "/readyz").await?;
    ensure!(
        health == 200,
        "an anonymous caller gets {health} for health"
    );
    Ok(())
}

async fn crds_and_namespaces_work(bed: &Bed, client: &Client) -> Result<()> {
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"kind": "Thing", "plural": "things"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "properties": {"spec": {
                        "type": "object",
                        "properties": {"size": {"type": "integer"}},
                        "x-kubernetes-validations": [
                            {"rule": "self.size < 10", "message": "size is below ten"},
                        ],
                    }},
                }},
            }],
        },
    });
    bed.kubectl_apply(&crd.to_string()).await?;
    bed.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/things.example.com",
    ])
    .await?;

    let namespaces = Api::<Namespace>::all(client.clone());
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}}))?;
    namespaces
        .create(&PostParams::default(), &namespace)
        .await?;
    let thing = |size: u32| {
        json!({
            "apiVersion": "example.com/v1", "kind": "Thing",
            "metadata": {"name": "one", "namespace": "shop"}, "spec": {"size": size},
        })
        .to_string()
    };
    bed.kubectl_apply(&thing(1)).await?;
    let refused = bed.kubectl_apply(&thing(11)).await;
    ensure!(
        format!("{refused:?}").contains("size is below ten"),
        "{refused:?}"
    );

    // Without a node the pod needs no grace, so the namespace may go.
    TestPod::new("shop", "web-0").create(client).await?;
    bed.kubectl(&["delete", "namespace", "shop", "--wait=false"])
        .await?;
    wait::until(
        "the namespace to be gone",
        SOON,
        async || match namespaces.get_opt("shop").await? {
            None => Ok(()),
            Some(left) => Err(anyhow::anyhow!("{:?}", left.status)),
        },
    )
    .await?;
    bed.kubectl(&["delete", "crd", "things.example.com"])
        .await?;
    Ok(())
}

async fn helm_installs_and_removes(bed: &Bed) -> Result<()> {
    let chart = bed.dir().join("chart");
    std::fs::create_dir_all(chart.join("templates"))?;
    let about = "apiVersion: v2\nname: tiny\nversion: 0.1.0\nkubeVersion: '>=1.33.0-0'\n";
    std::fs::write(chart.join("Chart.yaml"), about)?;
    let template = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: tiny}\ndata: {a: b}\n";
    std::fs::write(chart.join("templates/map.yaml"), template)?;
    let chart = chart.to_string_lossy();
    bed.helm(&["install", "tiny", &chart]).await?;
    let map = bed
        .kubectl(&["get", "configmap", "tiny", "--output=json"])
        .await?;
    ensure!(
        serde_json::from_str::<Value>(&map)?["data"]["a"] == "b",
        "{map}"
    );
    bed.helm(&["uninstall", "tiny"]).await?;
    Ok(())
}

async fn consul_takes_writes(bed: &Bed, consul: &ConsulApi) -> Result<()> {
    let node = json!({
        "Node": "n1", "Address": "10.0.0.1",
        "Service": {"ID": "web-0", "Service": "web", "Port": 8080},
        "Check": {"CheckID": "web-0", "ServiceID": "web-0", "Name": "ready", "Status": "passing"},
    });
    consul.put("/v1/catalog/register", &node).await?;
    let instances = consul.health("web").await?;
    ensure!(
        instances.len() == 1 && instances[0]["Service"]["Port"] == 8080,
        "{instances:?}"
    );
    let told = bed.dns_lookup("web.service.consul", DnsType::Srv).await?;
    let target = "n1.node.dc1.consul".to_owned();
    let want = DnsRecord::Srv {
        target,
        address: Some(Ipv4Addr::new(10, 0, 0, 1)),
        port: 8080,
        weight: 1,
        ttl: Duration::ZERO,
    };
    ensure!(told == [want], "{told:?}");
    ensure!(consul.find("/v1/kv/nothing").await?.is_none());
    consul.put("/v1/kv/a", &json!({"b": 1})).await?;
    ensure!(consul.find("/v1/kv/a").await?.is_some());
    consul.delete("/v1/kv/a").await?;
    ensure!(
        consul.get("/v1/kv/a").await.is_err(),
        "a deleted key is an error to get"
    );
    Ok(())
}

async fn servers_survive_faults(bed: &Bed, client: &Client, consul: &ConsulApi) -> Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), "default");
    TestPod::new("default", "stays").create(client).await?;

    for server in bed.servers() {
        let before = server.pid();
        server.restart().await?;
        ensure!(
            server.pid() != before && server.pid().is_some_and(is_alive),
            "{}",
            server.name()
        );
    }
    // The API server has just lost its store, and may take a moment to notice that it is back.
    let look = async || pods.get("stays").await;
    wait::until("the pod after all restarts", SOON, look).await?;
    ensure!(
        consul.health("web").await?.len() == 1,
        "Consul lost a service in a restart"
    );

    bed.apiserver.kill();
    ensure!(bed.apiserver.pid().is_none());
    ensure!(pods.get("stays").await.is_err(), "a dead server answers");
    bed.apiserver.start().await?;
    wait::until("the pod after the kill", SOON, look).await?;
    ensure!(bed.apiserver.start().await.is_err(), "it was started twice");

    bed.consul_server.pause()?;
    let silent = tokio::time::timeout(Duration::from_millis(300), consul.health("web")).await;
    ensure!(silent.is_err(), "a paused server answers: {silent:?}");
    bed.consul_server.resume()?;
    let look = async || consul.health("web").await;
    wait::until("Consul after the pause", SOON, look).await?;

    // A paused server can be stopped as well.
    bed.consul_server.pause()?;
    bed.consul_server.stop().await?;
    ensure!(bed.consul_server.pid().is_none());
    bed.consul_server.wipe()?;
    bed.consul_server.start().await?;
    ensure!(
        consul.health("web").await?.is_empty(),
        "Consul remembers what was wiped"
    );
    ensure!(
        bed.consul_server.wipe().is_err(),
        "a running server was wiped"
    );
    Ok(())
}

async fn two_beds_live_side_by_side(first: &Bed) -> Result<()> {
    let second = Bed::start(BedOptions::default()).await?;
    ensure!(second.kube_addr() != first.kube_addr());
    ensure!(
        second.consul()?.health("web").await?.is_empty(),
        "the beds share a Consul"
    );
    first.kube_client()?.apiserver_version().await?;
    let version = second.kube_client()?.apiserver_version().await?;
    ensure!(version.minor == "36", "{version:?}");
    Ok(())
}

async fn kubectl_as(bed: &Bed, kubeconfig: &Path, args: &[&str]) -> Result<(bool, String)> {
    let mut command = bed.kubectl_command();
    let output = command
        .env("KUBECONFIG", kubeconfig)
        .args(args)
        .output()
        .await?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(text)?))
}

async fn reqwest_status(bed: &Bed, path: &str) -> Result<u16> {
    let ca = std::fs::read(bed.dir().join("pki/ca.crt"))?;
    let client = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(&ca)?])
        .no_proxy()
        .build()?;
    let url = format!("{}{path}", bed.kube_addr());
    Ok(client
        .get(url)
        .send()
        .await
        .context("no answer")?
        .status()
        .as_u16())
}

fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

fn ip(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref()
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> &'a str {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .filter(|c| c.type_ == kind)
        .map(|c| c.status.as_str())
        .next()
        .unwrap_or_default()
}

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}
