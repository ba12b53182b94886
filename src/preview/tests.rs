use std::collections::BTreeMap;

use serde_json::json;

use super::show::Text;
use super::{Action, Field, Item, Outcome, Preview, manifests};
use crate::desired::index::Index;
use crate::observed::mirror::Mirror;
use crate::observed::table::Knowledge;
use crate::plan::Rules;
use crate::policy::ledger::Ledger;
use crate::policy::names::Moment;
use crate::policy::{Admission, DefaultPolicy};

fn try_manifests(text: &str) -> anyhow::Result<Preview> {
    judged(text, Admission::default(), &Ledger::default())
}

fn judged(text: &str, admission: Admission, ledger: &Ledger) -> anyhow::Result<Preview> {
    judged_in(text, &[], admission, ledger)
}

/// Where only these namespaces are watched, or all if there is none.
fn judged_in(
    text: &str,
    namespaces: &[&str],
    admission: Admission,
    ledger: &Ledger,
) -> anyhow::Result<Preview> {
    let namespaces = namespaces.iter().map(|name| (*name).into()).collect();
    let index = Index::new("prod".parse().unwrap(), globset::GlobSet::empty());
    let index = index.in_namespaces(namespaces).with_admission(admission);
    let mut mirror = Mirror::new("prod".parse().unwrap());
    let ticket = mirror.intentions.start_read();
    mirror
        .intentions
        .finish_read(&ticket, BTreeMap::new(), Knowledge::Whole, |_| false);
    mirror.complete();
    let objects = manifests::parse(text, "a file")?;
    let moment = Moment {
        now: tokio::time::Instant::now(),
        wall: 1,
    };
    manifests::preview_of(&objects, index, &mirror, ledger, Rules::default(), moment)
}

pub(super) fn of_manifests(text: &str) -> Preview {
    try_manifests(text).unwrap()
}

fn shown(preview: &Preview) -> Vec<(Action, &str)> {
    let items = preview.items.iter();
    items.map(|item| (item.action, &*item.key)).collect()
}

fn workload(kind: &str, version: &str, port: &str) -> String {
    let pod = json!({"metadata": {"annotations": {"lictor.io/service": "web", "lictor.io/port": port}},
                     "spec": {"containers": [{"name": "web", "ports": [{"name": "http", "containerPort": 80}]}]}});
    let spec = match kind {
        "CronJob" => json!({"jobTemplate": {"spec": {"template": pod}}}),
        _ => json!({"template": pod}),
    };
    let mut object = json!({"apiVersion": version, "kind": kind, "spec": spec});
    if kind == "Pod" {
        object = pod;
        object["apiVersion"] = json!("v1");
        object["kind"] = json!("Pod");
    }
    object["metadata"]["name"] = json!("it");
    object["metadata"]["namespace"] = json!("shop");
    object.to_string()
}

#[test]
fn pods_of_every_workload_are_judged_and_make_no_instance() {
    for (kind, version) in [
        ("Pod", "v1"),
        ("ReplicationController", "v1"),
        ("Deployment", "apps/v1"),
        ("StatefulSet", "apps/v1"),
        ("DaemonSet", "apps/v1"),
        ("ReplicaSet", "apps/v1"),
        ("Job", "batch/v1"),
        ("CronJob", "batch/v1"),
    ] {
        let good = of_manifests(&workload(kind, version, "http"));
        assert_eq!(shown(&good), [], "{kind}");
        assert_eq!(good.outcome(), Outcome::Settled);
        let bad = of_manifests(&workload(kind, version, "nowhere"));
        let key = format!("{kind}/shop/it");
        assert_eq!(shown(&bad), [(Action::Rejected, &*key)], "{kind}");
        let message = bad.items[0].message.as_deref().unwrap();
        assert!(message.contains("nowhere"), "{message}");
        assert_eq!(bad.outcome(), Outcome::Refused);
    }
    // One of another group is none of these.
    let other = of_manifests(&workload("Deployment", "example.com/v1", "nowhere"));
    assert_eq!(shown(&other), []);
}

#[test]
fn a_pod_may_have_settings_of_a_service_that_a_registration_gives_it() {
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "it", "namespace": "NS",
        "labels": {"app": "web"}, "annotations": {"lictor.io/tags.web": "v1"}},
        "spec": {"containers": []}}"#;
    let registration = r#"{"apiVersion": "lictor.io/v1alpha1", "kind": "ServiceRegistration",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}}}"#;
    let there = of_manifests(&format!(
        "{registration}\n---\n{}",
        pod.replace("NS", "shop")
    ));
    assert_eq!(shown(&there), []);
    let elsewhere = of_manifests(&format!(
        "{registration}\n---\n{}",
        pod.replace("NS", "bank")
    ));
    assert_eq!(shown(&elsewhere), [(Action::Rejected, "Pod/bank/it")]);
}

#[test]
fn what_is_wrong_with_a_registration_is_no_fault_of_the_pods_beside_it() {
    let registration = r#"{"apiVersion": "lictor.io/v1alpha1", "kind": "ServiceRegistration",
        "metadata": {"name": "db", "namespace": "shop"},
        "spec": {"endpoints": [{"name": "one", "address": "10.0.0.1", "port": 1, "tags": ["BAD"]}]}}"#;
    let registration = registration.replace("BAD", &"x".repeat(300));
    let both = format!(
        "{registration}\n---\n{}",
        workload("Deployment", "apps/v1", "http")
    );
    let preview = of_manifests(&both);
    assert_eq!(preview.count(Action::Rejected), 1, "{:#?}", preview.items);
    let owners = &preview.items.last().unwrap().owners;
    assert_eq!(
        owners,
        &["ServiceRegistration/shop/db"],
        "{:#?}",
        preview.items
    );
}

#[test]
fn an_object_that_is_there_twice_is_an_error() {
    let query = r#"{"apiVersion": "lictor.io/v1alpha1", "kind": "PreparedQuery",
        "metadata": {"name": "web", "namespace": "shop"}, "spec": {"service": {"service": "web"}}}"#;
    let error = try_manifests(&format!("{query}\n---\n{query}")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("PreparedQuery/shop/web is there twice"),
        "{error}"
    );
}

#[test]
fn text_shows_each_change_and_no_command_of_a_terminal() {
    let mut preview = Preview::new("prod".to_owned(), Vec::new());
    preview.add(vec![Item {
        action: Action::Update,
        kind: "instance",
        key: "node/id\u{1b}[2J".to_owned(),
        service: None,
        owners: vec!["Pod/shop/web".to_owned()],
        fields: vec![
            Field {
                name: "Port".to_owned(),
                before: Some(json!(80)),
                after: Some(json!(81)),
            },
            Field {
                name: "Meta.old".to_owned(),
                before: Some(json!("x".repeat(500))),
                after: None,
            },
        ],
        message: Some("because\u{7}".to_owned()),
    }]);
    let text = anstream::adapter::strip_str(&Text(&preview).to_string()).to_string();
    let cut = format!("    Meta.old: \"{}… -> nothing", "x".repeat(119));
    let expected = [
        "~ update instance node/id\u{fffd}[2J  (Pod/shop/web)",
        "    because\u{fffd}",
        "    Port: 80 -> 81",
        &cut,
        "",
        "prod: 0 to create, 1 to update, 0 to delete, 0 held, 0 in conflict, 0 rejected",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

pub(super) fn of_policies(text: &str, ledger: &Ledger) -> Preview {
    let hold = std::time::Duration::from_hours(24);
    judged(text, Admission::new(DefaultPolicy::Exclusive, hold), ledger).unwrap()
}

/// Consul keeps that these names belong to the namespace shop.
pub(super) fn names_of_shop(names: &[&str]) -> Ledger {
    let cluster = "prod".parse().unwrap();
    let value = r#"{"holder":"shop","namespaces":{"shop":{"uid":"uid-shop","since":1}}}"#;
    let pair = |key: String, value: &str| crate::consul::wire::KvPair {
        key: key.as_str().into(),
        value: value.as_bytes().into(),
        modify_index: 7,
        ..Default::default()
    };
    let rule = pair(crate::policy::ledger::rule_key(&cluster), "{}");
    let names = names.iter().map(|name| {
        let key = crate::policy::ledger::key(&cluster, name);
        pair(key, value)
    });
    let pairs: Vec<_> = names.chain([rule]).collect();
    let (ledger, garbled) = Ledger::of(&cluster, &pairs);
    assert_eq!(garbled, Vec::<String>::new());
    ledger
}

fn registration(namespace: &str, service: &str) -> String {
    json!({"apiVersion": "lictor.io/v1alpha1", "kind": "ServiceRegistration",
           "metadata": {"name": service, "namespace": namespace},
           "spec": {"selector": {"matchLabels": {"app": service}}}})
    .to_string()
}

#[test]
fn names_that_consul_keeps_for_another_namespace_are_refused_before_they_are_applied() {
    let ledger = names_of_shop(&["web"]);
    let mine = of_policies(&registration("shop", "web"), &ledger);
    assert_eq!(shown(&mine), []);
    let other = of_policies(&registration("evil", "web"), &ledger);
    let rejected = [(Action::Rejected, "ServiceRegistration/evil/web")];
    assert_eq!(shown(&other), rejected);
    let message = other.items[0].message.as_deref().unwrap();
    assert!(message.contains("namespace shop"), "{message}");
    assert!(
        other.notes[0].contains("--default-policy"),
        "{:?}",
        other.notes
    );
    assert_eq!(
        shown(&of_policies(&registration("evil", "api"), &ledger)),
        []
    );
    // Pods, intentions and queries as well.
    let pod = workload("Deployment", "apps/v1", "http").replace("\"shop\"", "\"evil\"");
    let pod = of_policies(&pod, &ledger);
    assert_eq!(shown(&pod), [(Action::Rejected, "Deployment/evil/it")]);
    let intention = |namespace: &str, to: &str| {
        json!({"apiVersion": "lictor.io/v1alpha1", "kind": "Intention",
               "metadata": {"name": "it", "namespace": namespace},
               "spec": {"destination": {"name": to},
                        "sources": [{"name": "api", "action": "allow"}]}})
        .to_string()
    };
    let action = |preview: &Preview| preview.items[0].action;
    let shop = of_policies(&intention("shop", "web"), &ledger);
    assert_eq!(action(&shop), Action::Create);
    for to in ["web", "*"] {
        let evil = of_policies(&intention("evil", to), &ledger);
        assert_eq!(action(&evil), Action::Rejected, "{to}");
    }
}

#[test]
fn policies_among_the_manifests_judge_them() {
    let policy = json!({"apiVersion": "lictor.io/v1alpha1", "kind": "RegistrationPolicy",
        "metadata": {"name": "evil"},
        "spec": {"namespaceSelector": {"matchLabels": {"team": "evil"}}, "services": ["{namespace}-*"]}});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "evil", "labels": {"team": "evil"}}});
    let all = |service: &str| {
        let registration = registration("evil", service);
        format!("{registration}\n---\n{policy}\n---\n{namespace}")
    };
    let ledger = names_of_shop(&["evil-web"]);
    let good = of_policies(&all("evil-web"), &ledger);
    assert_eq!(shown(&good), []);
    assert_eq!(good.notes, Vec::<String>::new());
    let bad = of_policies(&all("web"), &ledger);
    let rejected = [(Action::Rejected, "ServiceRegistration/evil/web")];
    assert_eq!(shown(&bad), rejected);
    // Without the namespace nobody knows whether the policy chooses it.
    let unsure = format!("{}\n---\n{policy}", registration("evil", "web"));
    let unsure = of_policies(&unsure, &ledger);
    assert_eq!(shown(&unsure), []);
    assert!(unsure.notes[0].contains("evil"), "{:?}", unsure.notes);
    // One that names the namespace chooses it all the same.
    let named = policy.to_string().replace(
        r#""team":"evil""#,
        r#""kubernetes.io/metadata.name":"evil""#,
    );
    let named = of_policies(
        &format!("{}\n---\n{named}", registration("evil", "web")),
        &ledger,
    );
    assert_eq!(shown(&named), rejected);
    // A policy that is not understood judges nothing.
    let broken = policy.to_string().replace("{namespace}-*", "{ns}");
    assert!(try_manifests(&broken).is_err());
}

#[test]
fn what_run_does_not_watch_is_not_judged() {
    let object = |namespace: &str| {
        let spec = json!({"endpoints": [{"name": "a", "address": "10.1.1.1"}]});
        let metadata = json!({"name": "db", "namespace": namespace});
        json!({"apiVersion": "lictor.io/v1alpha1", "kind": "ServiceRegistration",
               "metadata": metadata, "spec": spec})
    };
    let text = format!(
        "{}\n---\n{}\n---\n{}",
        object("shop"),
        object("web"),
        workload("Deployment", "apps/v1", "nowhere").replace("shop", "web")
    );
    let all = judged_in(&text, &[], Admission::default(), &Ledger::default()).unwrap();
    let keys = all.items.iter().filter(|item| item.key.contains("web"));
    assert_eq!(keys.count(), 2, "{:?}", shown(&all));
    assert_eq!(all.notes, [""; 0]);
    let some = judged_in(&text, &["shop"], Admission::default(), &Ledger::default()).unwrap();
    assert!(some.items.iter().any(|item| item.key.contains("shop")));
    let of_web = |item: &&Item| item.key.contains("web");
    assert_eq!(
        some.items.iter().filter(of_web).count(),
        0,
        "{:?}",
        shown(&some)
    );
    assert!(some.notes[0].starts_with("2 objects "), "{:?}", some.notes);
}
