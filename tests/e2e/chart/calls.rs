//! What the chart allows, compared with what the process does: its calls as the API server noted them, and
//! its connections as the kernel shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use lictor_testbed::BedOptions;
use procfs::net::TcpState;
use procfs::process::{FDTarget, Process};
use serde_json::{Value, json};

use super::running::{Release, pod};
use super::{CHART, allowed, text};
use crate::support::{Annotated as _, Answer, Lictor, RELEASE, Target, condition, until};

const ACCOUNT: &str = "system:serviceaccount:lictor-system:lictor";
const GATE: &str = "lictor.io/registered";

/// A call on a resource, as the API server noted it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    verb: String,
    /// With its subresource and its group, as `allowed` writes it.
    resource: String,
    namespace: String,
    name: String,
}

/// The calls of the account. None of them was refused.
fn calls(release: &Release) -> Result<BTreeSet<Call>> {
    let mut calls = BTreeSet::new();
    for event in release.bed.audit()? {
        if event["user"]["username"] != ACCOUNT {
            continue;
        }
        let decision = &event["annotations"]["authorization.k8s.io/decision"];
        ensure!(decision == "allow", "{event:#}");
        let on = &event["objectRef"];
        // Paths that are no resource, such as /version, are everybody's.
        let Some(resource) = on["resource"].as_str() else {
            continue;
        };
        // By the roles of the release, and not by others that everybody has.
        let why = text(&event["annotations"]["authorization.k8s.io/reason"]);
        ensure!(why.contains("\"lictor"), "{event:#}");
        let part = on["subresource"].as_str().map(|part| format!("/{part}"));
        let group = on["apiGroup"].as_str().map(|group| format!(".{group}"));
        let [part, group] = [part, group].map(Option::unwrap_or_default);
        calls.insert(Call {
            verb: text(&event["verb"]),
            resource: format!("{resource}{part}{group}"),
            namespace: text(&on["namespace"]),
            name: text(&on["name"]),
        });
    }
    Ok(calls)
}

/// The rights that the release has, each as `allowed` writes it, and whether it was used.
async fn uses(release: &Release, calls: &BTreeSet<Call>) -> Result<BTreeMap<String, bool>> {
    let manifest = release.helm(&["get", "manifest", "lictor"]).await?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&manifest)?;
    let bound: Vec<&Value> = documents
        .iter()
        .filter(|it| text(&it["kind"]).ends_with("Binding") && it["roleRef"].is_object())
        .map(|it| &it["roleRef"]["name"])
        .collect();
    let is_role = |it: &&Value| it["kind"] == "Role" || it["kind"] == "ClusterRole";
    let of_it = documents.iter().filter(is_role);
    let of_it = of_it.filter(|it| bound.contains(&&it["metadata"]["name"]));
    let rights = of_it.flat_map(allowed).map(|right| {
        let used = calls.iter().any(|call| {
            let named = format!("/{}", call.name);
            ["", &named].iter().any(|name| {
                [&*call.namespace, "anywhere"].iter().any(|place| {
                    right == format!("{} {}{name} in {place}", call.verb, call.resource)
                })
            })
        });
        (right, used)
    });
    Ok(rights.collect())
}

/// Every right was used, but for these, each for a reason.
fn none_is_too_much(rights: &BTreeMap<String, bool>) {
    let unused: Vec<&String> = rights
        .iter()
        .filter_map(|(right, used)| (!used).then_some(right))
        .collect();
    assert!(rights.len() > unused.len() + 25, "{rights:#?}");
    for right in unused {
        // Whoever may list objects sees each of them: get adds nothing, and the three go together.
        let list = right.replacen("get ", "list ", 1);
        let is_one_of_three = *right != list && rights.get(&list) == Some(&true);
        // For Events about its own pod, when much is held.
        let is_own = right.ends_with(&format!(" events.events.k8s.io in {RELEASE}"));
        assert!(
            is_one_of_three || is_own,
            "{right} is not used: {rights:#?}"
        );
    }
}

/// What makes use of every right, beside pods: checks that look at a Lease and at a server, an intention, a
/// query.
fn objects(namespace: &str, port: u16) -> String {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "beat", "namespace": namespace},
        "spec": {"holderIdentity": "w", "renewTime": "2026-01-01T00:00:00.000000Z"},
    });
    let named = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "lictor.io/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        })
    };
    let object = |kind, spec| named(kind, "all", spec);
    let checks = json!([{"name": "progress", "ttl": {"lease": "beat", "ttl": "10s"}}]);
    let asked = json!({
        "endpoints": [{"name": "here", "address": "127.0.0.1", "port": port}],
        "health": {"checks": [{"name": "page", "http": {"path": "/"}}]},
    });
    let registration = json!({
        "service": format!("{namespace}-all"), "selector": {"matchLabels": {"app": "all"}},
        "health": {"checks": checks},
    });
    let intention = json!({
        "destination": {"name": format!("{namespace}-all")},
        "sources": [{"name": "web", "action": "allow"}],
    });
    let query = json!({"name": format!("{namespace}-q"), "service": "web"});
    let all = [
        lease,
        object("ServiceRegistration", registration),
        named("ServiceRegistration", "asked", asked),
        object("Intention", intention),
        object("PreparedQuery", query),
    ];
    all.map(|it| it.to_string()).join("\n---\n")
}

/// A team, whose pods have these addresses; its check asks this port.
async fn team(
    release: &Release,
    namespace: &str,
    (ip, other): (&str, &str),
    port: u16,
) -> Result<()> {
    let client = release.bed.kube_client()?;
    let selected = pod(namespace, "all-0", ip).label("app", "all");
    selected.readiness_gate(GATE).create_ready(&client).await?;
    let wrong = pod(namespace, "wrong-0", other).readiness_gate(GATE);
    let wrong = wrong.lictor("service", "web").lictor("port", "nope");
    wrong.create_ready(&client).await?;
    until("the kinds to be served", async || {
        release.bed.kubectl_apply(&objects(namespace, port)).await
    })
    .await?;
    let gate = async |pod: &str| -> Result<String> {
        let pod = release
            .json(&["pod", pod, "--namespace", namespace])
            .await?;
        Ok(condition(&pod["status"], GATE).0.to_owned())
    };
    until("the gates", async || {
        let gates = (gate("all-0").await?, gate("wrong-0").await?);
        ensure!((&*gates.0, &*gates.1) == ("True", "False"), "{gates:?}");
        anyhow::Ok(())
    })
    .await?;
    let all = format!("--namespace={namespace}");
    release.all_ready(namespace).await?;
    // What is repaired twice is told twice, by one Event.
    let consul = release.bed.consul()?;
    let service = format!("{namespace}-all");
    let found = async || -> Result<Value> {
        let found = consul.health(&service).await?;
        found.into_iter().next().context("it is not registered")
    };
    let repairs = async || -> Result<i64> {
        let events = release.json(&["events.events.k8s.io", &all]).await?;
        let events = events["items"].as_array().into_iter().flatten();
        let repaired = events.filter(|event| event["reason"] == "DriftRepaired");
        Ok(repaired
            .map(|event| event["series"]["count"].as_i64().unwrap_or(1))
            .sum())
    };
    for count in 1..=2 {
        let mut service = found().await?["Service"].clone();
        let tags = service["Tags"].clone();
        service["Tags"] = json!(["evil"]);
        let entry =
            json!({"Node": "lictor-prod--node-a", "SkipNodeUpdate": true, "Service": service});
        consul.put("/v1/catalog/register", &entry).await?;
        until("the repair to be told", async || {
            let now = found().await?["Service"]["Tags"].clone();
            ensure!(now == tags && repairs().await? >= count, "{now}");
            anyhow::Ok(())
        })
        .await?;
    }
    Ok(())
}

/// One process leads and ends, another one stands by and follows.
async fn scene(release: &Release, teams: &[&str], target: &Target) -> Result<BTreeSet<u16>> {
    let first = release.run("lictor-0").await?;
    let second = release.run("lictor-1").await?;
    let (end, ends) = channel();
    let ids = [&first, &second].map(Lictor::id);
    let looking = thread::spawn(move || connections(&ids, &ends));
    for (number, namespace) in teams.iter().enumerate() {
        let [ip, other] = [1, 2].map(|host| format!("10.1.{number}.{host}"));
        team(release, namespace, (&ip, &other), target.port).await?;
    }
    until("the check to ask", async || {
        ensure!(target.asked() > 0);
        anyhow::Ok(())
    })
    .await?;
    first.stop().await?;
    second.shows("lictor_leader", 1.0).await?;
    second.idle().await?;
    drop(end);
    let ports = looking.join().map_err(|_| anyhow!("it stopped looking"))?;
    second.stop().await?;
    Ok(ports)
}

/// The ports that these processes connect to, until it is said that it is enough.
fn connections(ids: &[u32], ends: &Receiver<()>) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    while let Err(RecvTimeoutError::Timeout) = ends.recv_timeout(Duration::from_millis(5)) {
        let processes = ids
            .iter()
            .filter_map(|id| Process::new((*id).try_into().ok()?).ok());
        // One of them may end meanwhile.
        ports.extend(processes.filter_map(|it| ports_of(&it).ok()).flatten());
    }
    ports
}

fn ports_of(process: &Process) -> Result<BTreeSet<u16>> {
    let files = process.fd()?.flatten().map(|file| file.target);
    let sockets: BTreeSet<u64> = files
        .filter_map(|target| match target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect();
    let mut all = [process.tcp()?, process.tcp6()?].concat();
    all.retain(|it| sockets.contains(&it.inode));
    let of_state = |state: TcpState| all.iter().filter(move |it| it.state == state);
    // Who asks for metrics comes in where it listens.
    let listens = of_state(TcpState::Listen).map(|it| it.local_address.port());
    let listens: BTreeSet<u16> = listens.collect();
    let open = of_state(TcpState::Established).chain(of_state(TcpState::SynSent));
    let out = open.filter(|it| !listens.contains(&it.local_address.port()));
    Ok(out.map(|it| it.remote_address.port()).collect())
}

/// Installs with these values and plays the scene: each call is allowed and no right is too much. Gives the
/// ports that were connected to, that of the server among them which a check asks.
async fn tried(values: Value, teams: &[&str], target: &Target) -> Result<(Release, BTreeSet<u16>)> {
    let options = BedOptions {
        audit: true,
        ..BedOptions::default()
    };
    let release = Release::on_bed(options).await?;
    for team in teams {
        release.create_namespace(team).await?;
    }
    let mut values = values;
    values["readinessGate"] = true.into();
    values["defaultPolicy"] = "shared".into();
    values["extraArgs"] = json!(["--allow-local-checks"]);
    release.install(CHART, values).await?;
    let ports = scene(&release, teams, target).await?;
    let calls = calls(&release)?;
    none_is_too_much(&uses(&release, &calls).await?);
    Ok((release, ports))
}

#[tokio::test]
async fn each_right_in_the_cluster_is_used_and_connections_are_those_that_are_allowed() -> Result<()>
{
    let target = Target::start().await?;
    target.answers(Answer::Hang);
    let to = json!([{"ipBlock": {"cidr": "127.0.0.0/8"}}]);
    let policy = json!({"enabled": true, "apiServerPorts": [1], "checksTo": to});
    let (release, ports) = tried(json!({"networkPolicy": policy}), &["shop"], &target).await?;
    let port = |address: String| -> Result<u16> {
        let (_, port) = address.rsplit_once(':').context("no port")?;
        Ok(port.parse()?)
    };
    let apiserver = port(release.bed.kube_addr())?;
    let consul = port(release.bed.consul_addr())?;
    // Names of servers there are none, and so no DNS.
    assert_eq!(ports, [apiserver, consul, target.port].into());
    // The values name the API server's port; that of Consul is known by its address.
    let file = release.file(
        "ports.json",
        &json!({"networkPolicy": {"apiServerPorts": [apiserver]}}).to_string(),
    )?;
    release
        .helm(&[
            "upgrade",
            "lictor",
            CHART,
            "--reset-then-reuse-values",
            "--values",
            &file,
        ])
        .await?;
    let policy = release
        .json(&["networkpolicy", "lictor", "--namespace", RELEASE])
        .await?;
    let egress = policy["spec"]["egress"].as_array().context("no egress")?;
    let allowed: BTreeSet<u64> = egress
        .iter()
        .filter(|rule| rule["to"].is_null())
        .flat_map(|rule| rule["ports"].as_array().into_iter().flatten())
        .filter_map(|port| port["port"].as_u64())
        .collect();
    assert_eq!(allowed, [53, apiserver.into(), consul.into()].into());
    let checks: Vec<&Value> = egress.iter().filter(|rule| !rule["to"].is_null()).collect();
    assert_eq!(checks, [&json!({"to": to})]);
    Ok(())
}

#[tokio::test]
async fn each_right_in_namespaces_is_used() -> Result<()> {
    let target = Target::start().await?;
    let teams = ["shop", "web"];
    tried(json!({"namespaces": teams}), &teams, &target).await?;
    Ok(())
}
