//! The policy is never stricter than Lictor: what Lictor's own code takes, the API server admits.

use std::fmt::Write as _;

use anyhow::{Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lictor::desired::annotations::Annotations;
use lictor::desired::shape::{self, Context};
use lictor::desired::spec::InstanceSpec;
use lictor::model::facts::{ContainerPort, Phase, PodFacts, Tristate};
use lictor::model::key::InstanceKey;
use lictor::model::names::{InstanceId, NodeName};
use lictor::model::owner::Owner;
use lictor::model::text::{Pairs, Text};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::{Given, given, install, verdict};
use crate::support::Scene;

/// Whether Lictor would register a pod with these annotations as all of them say.
pub fn lictor_takes(given: &Given) -> bool {
    let text = |text: &str| Text::from(text);
    let ports = given.values().map(|value| ContainerPort {
        name: Some(text(value.trim())),
        port: 8080,
        host_port: Some(8080),
    });
    let pairs = given
        .iter()
        .map(|(key, value)| (Text::from(format!("lictor.io/{key}")), text(value)));
    let facts = PodFacts {
        namespace: text("shop"),
        name: text("p"),
        uid: text("u"),
        created: 1,
        deleting: false,
        labels: Pairs::default(),
        annotations: pairs.collect(),
        node: Some(text("n")),
        service_account: None,
        host_network: false,
        ports: ports.collect(),
        phase: Phase::Running,
        ips: Box::new([text("10.0.0.1")]),
        host_ip: Some(text("192.168.0.1")),
        ready: Tristate::True,
        ready_reason: text(""),
        gate: None,
        unready: Box::default(),
    };
    let found = Annotations::of(&facts);
    if found.list_problem.is_some()
        || !found.remarks.is_empty()
        || found.mentioned().next().is_some()
    {
        return false;
    }
    let cluster = "a".parse().unwrap();
    let owner = Owner::pod(&facts.namespace, &facts.name);
    found.services.iter().all(|service| {
        let key = InstanceKey {
            node: NodeName::for_kubernetes(&cluster, "n"),
            id: InstanceId::of_pod(&cluster, "shop", service, "p"),
        };
        let context = Context {
            cluster: &cluster,
            key: &key,
            service,
            owner: &owner,
        };
        let spec = found.overlay(service, InstanceSpec::default());
        spec.is_ok_and(|spec| shape::of_pod(context, &facts, &spec).is_ok())
    })
}

/// Annotations of which many are right in a way that a rule could forget, and some are wrong.
fn any_given() -> impl Strategy<Value = Given> {
    let blank = || prop_oneof![4 => Just(""), 1 => Just(" "), 1 => Just("\u{a0}\t"), 1 => Just("\u{2003}\n")];
    let padded = move |values: &'static [&'static str]| {
        (blank(), prop::sample::select(values), blank())
            .prop_map(|(a, value, b)| format!("{a}{value}{b}"))
    };
    let list = |item: BoxedStrategy<String>| {
        prop::collection::vec(item, 0..4).prop_map(|items| items.join(","))
    };
    let number = || {
        prop_oneof![
            2 => padded(&["1", "0080", "65535", "00000000000000000000000000007", "0", "65536", "+5", "٣"]),
            1 => "[0-9]{1,6}",
        ]
        .boxed()
    };
    let port = prop_oneof![
        number(),
        padded(&["http", "HTTP", "a", "80a", "--", "1-", "ü"]),
        "[a-zA-Z-]{1,17}"
    ];
    let template = || {
        padded(&[
            "",
            "a",
            "ä",
            "$$",
            "$$${pod.name}",
            "${pod.node}",
            "v-${pod.labels['a}b']}",
            "${pod.ip}$$",
            "${pod.annotations['x/y.z']}",
            "${pod.labels['a\"\\b']}",
            "${pod.namespace}x{}",
            "$",
            "${pod.uid}",
            "${pod.labels['']}",
            "${pod.name",
            "a b",
            "a\u{85}b",
        ])
    };
    let tags = list(template().boxed());
    let keys = padded(&[
        "k",
        "K_1-",
        "owner",
        "lictor",
        "managed-by",
        "lictor-x",
        "a.b",
        "",
        "ü",
    ]);
    let pair = (keys, template()).prop_map(|(key, value)| format!("{key}={value}"));
    let meta = list(
        prop_oneof![8 => pair, 1 => Just("k=a=b".to_owned()), 1 => Just("k".to_owned())].boxed(),
    );
    let of = |key: &'static str, values: BoxedStrategy<String>| {
        let service = prop_oneof![4 => Just(""), 3 => Just(".web"), 2 => Just(".api"), 1 => Just(".0"), 1 => Just(".Web")];
        (service, values)
            .prop_map(move |(service, value)| (format!("{key}{service}"), value))
            .boxed()
    };
    let one = prop_oneof![
        3 => of("port", port.boxed()),
        3 => of("tags", tags.boxed()),
        4 => of("meta", meta.boxed()),
        1 => of("address", padded(&["PodIP", "HostIP", "podIP"]).boxed()),
        2 => of("weight", number()),
        1 => of("weight-warning", number()),
        1 => of("not-ready", padded(&["Critical", "Warning", "Deregister"]).boxed()),
        1 => of("terminating", padded(&["Critical", "Warning", "Deregister", "Passing"]).boxed()),
        1 => padded(&["true", "false", "TRUE"]).prop_map(|value| ("paused".to_owned(), value)),
    ];
    let services = list(padded(&["web", "api", "0", "a--b", "", "Web"]).boxed())
        .prop_map(|names| format!("web,{names}"));
    (services, prop::collection::vec(one, 0..4)).prop_map(|(services, more)| {
        let mut given: Given = more.into_iter().collect();
        given.insert("service".to_owned(), services);
        given
    })
}

/// The policy may know less than Lictor, and must not be stricter: what Lictor takes is admitted.
#[tokio::test]
async fn nothing_that_lictor_takes_is_refused() -> Result<()> {
    const CASES: usize = 600;
    let scene = Scene::new().await?;
    install(&scene).await?;
    let mut cases = vec![
        // What each service has of its own goes before what is for all.
        given([
            ("service", "web,api"),
            ("port", "0"),
            ("port.web", "1"),
            ("port.api", "2"),
        ]),
        // Of two pairs the last one counts.
        given([("service", "web"), ("meta", "a=$,a=b")]),
        given([("service", &vec!["web"; 1000].join(","))]),
        given([(
            "service",
            &(0..64)
                .map(|n| format!("s{n}"))
                .collect::<Vec<_>>()
                .join(","),
        )]),
        given([("service", "web"), ("tags", &"a,".repeat(16 * 1024 - 1))]),
        given([
            ("service", "web"),
            ("meta", &format!("a={}", "x".repeat(512))),
        ]),
    ];
    let (strategy, mut runner) = (any_given(), TestRunner::deterministic());
    while cases.len() < CASES {
        let case = strategy.new_tree(&mut runner);
        cases.push(
            case.map_err(|reason| anyhow::anyhow!("{reason}"))?
                .current(),
        );
    }
    let pods = scene.pods();
    let judged: Vec<(bool, bool)> = stream::iter(&cases)
        .map(async |given| -> Result<(bool, bool)> {
            let takes = lictor_takes(given);
            let denied = verdict(&pods, given).await?;
            if let (true, Some(denied)) = (takes, &denied) {
                let mut shown = String::new();
                for (key, value) in given {
                    let value: String = value.chars().take(200).collect();
                    write!(shown, "{key}: {value:?} ")?;
                }
                bail!("Lictor takes {shown}: {denied}");
            }
            Ok((takes, denied.is_some()))
        })
        .buffer_unordered(8)
        .try_collect()
        .await?;
    let taken = judged.iter().filter(|(takes, _)| *takes).count();
    let refused = judged.iter().filter(|(takes, _)| !takes).count();
    let denied = judged.iter().filter(|(_, denied)| *denied).count();
    // Neither is the one that is rare.
    ensure!(
        taken > CASES / 4 && refused > CASES / 4,
        "{taken} taken, {refused} not"
    );
    // It knows most of what is wrong.
    ensure!(denied * 4 > refused * 3, "{denied} of {refused} denied");
    println!("{taken} taken, {denied} of {refused} others denied");
    Ok(())
}
