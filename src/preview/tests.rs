use serde_json::json;

use super::show::Text;
use super::{Action, Field, Item, Outcome, Preview, manifests};
use crate::desired::index::Index;
use crate::observed::mirror::Mirror;
use crate::plan::Rules;

fn try_manifests(text: &str) -> anyhow::Result<Preview> {
    try_in(text, &[])
}

/// Where only these namespaces are watched, or all if there is none.
fn try_in(text: &str, namespaces: &[&str]) -> anyhow::Result<Preview> {
    let namespaces = namespaces.iter().map(|name| (*name).into()).collect();
    let index = Index::new("prod".parse().unwrap(), globset::GlobSet::empty());
    let index = index.in_namespaces(namespaces);
    let mut mirror = Mirror::new("prod".parse().unwrap());
    mirror.complete();
    let objects = manifests::parse(text, "a file")?;
    let now = tokio::time::Instant::now();
    manifests::preview_of(&objects, index, &mirror, Rules::default(), now)
}

fn of_manifests(text: &str) -> Preview {
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
    let all = try_in(&text, &[]).unwrap();
    let keys = all.items.iter().filter(|item| item.key.contains("web"));
    assert_eq!(keys.count(), 2, "{:?}", shown(&all));
    assert_eq!(all.notes, [""; 0]);
    let some = try_in(&text, &["shop"]).unwrap();
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
