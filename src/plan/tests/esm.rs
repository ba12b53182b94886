//! Checks that consul-esm runs.

use super::*;
use crate::desired::esm::Runner;
use crate::plan::Asks;
use crate::plan::checks::NOT_ASKED;

fn asking(checks: &serde_json::Value) -> Registration {
    let spec = serde_json::json!({"selector": {}, "port": 8080, "health": {"checks": checks},
                                  "connect": {"sidecar": {"port": 20000}}});
    Registration::of(&object("web", spec))
}

fn both() -> serde_json::Value {
    serde_json::json!([
        {"name": "api", "http": {"headers": {"host": "db"}}}, {"name": "db", "tcp": {"port": 8080}}
    ])
}

/// What is planned by this runner where Consul holds that.
fn bed_by(runner: Runner, mirror: Option<Mirror>, checks: &serde_json::Value) -> Bed {
    let mut bed = Bed::new();
    bed.index = bed.index.with_runner(runner);
    bed.rules.forbidden = Some(Arc::new(Forbidden::new(false, [])));
    if let Some(mirror) = mirror {
        bed.mirror = mirror;
    }
    let touched = &mut Touched::default();
    bed.index.apply_registration(asking(checks), touched);
    bed.with(pod("p").port("http", 8080, None))
}

fn node_key() -> Key {
    Key::Node(instance_key("p").node)
}

fn bed() -> Bed {
    let bed = bed_by(Runner::Esm, None, &both());
    let bed = bed.carry_out(&node_key(), 10).carry_out(&key("p"), 11);
    bed.carry_out(&mesh::proxy_key("p"), 11)
}

fn says(bed: Bed, name: &str, status: Health) -> Bed {
    let id = format!("{}:{name}", instance_key("p").id);
    bed.change(|instance| {
        let found = instance.checks.iter_mut().find(|check| *check.id == *id);
        let check = found.unwrap();
        check.modify_index += 1;
        check.check = Check {
            status,
            output: "HTTP GET http://10.0.0.1:8080/: 200 OK Output: secret".into(),
        };
    })
}

fn is_external(bed: &Bed) -> bool {
    let node = bed.mirror.node(&instance_key("p").node).unwrap();
    node.node.meta.get("external-node").map(|it| &**it) == Some("true")
}

fn settled(bed: &Bed) {
    for key in [node_key(), key("p"), mesh::proxy_key("p")] {
        assert_eq!(bed.decide(&key).step, Step::Settled, "{key}");
    }
}

#[test]
fn checks_are_written_with_their_definition_once_and_nothing_is_asked() {
    let fresh = bed_by(Runner::Esm, None, &both()).carry_out(&node_key(), 10);
    let write = put(fresh.decide(&key("p")).step);
    let [_, api, db] = &write.checks[..] else {
        panic!("{write:?}")
    };
    for check in [api, db] {
        assert_eq!(
            (check.check.status, &*check.check.output),
            (Health::Critical, NOT_ASKED)
        );
    }
    let api = api.kind.definition().unwrap().to_json();
    assert_eq!(api["HTTP"], "http://10.0.0.1:8080/");
    assert_eq!(
        db.kind.definition().unwrap().to_json()["TCP"],
        "10.0.0.1:8080"
    );
    let bed = bed();
    settled(&bed);
    assert!(is_external(&bed));
    assert_eq!(bed.decide(&key("p")).asks, Asks::Nothing);
}

#[test]
fn what_consul_esm_finds_is_left_and_the_proxy_follows() {
    let bed = says(bed(), "api", Health::Passing);
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
    let bed = says(bed, "db", Health::Warning);
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
    let write = put(bed.decide(&mesh::proxy_key("p")).step);
    let alias = &write.checks[0].check;
    assert_eq!(
        (alias.status, &*alias.output),
        (Health::Warning, "db is warning")
    );
    let bed = says(
        bed.carry_out(&mesh::proxy_key("p"), 20),
        "db",
        Health::Passing,
    );
    let bed = bed.carry_out(&mesh::proxy_key("p"), 21);
    settled(&bed);
    // Nor is it touched where the engine heard of a run of its own, before it was started otherwise.
    let mut bed = bed;
    let found = Check {
        status: Health::Critical,
        output: "asked: no".into(),
    };
    let verdicts = &mut bed.rules.verdicts;
    verdicts.found(instance_key("p"), &"uid-p".into(), "api".into(), found);
    settled(&bed);
}

#[test]
fn a_definition_that_differs_is_repaired_with_the_status_as_it_is() {
    let bed = says(bed(), "api", Health::Passing);
    let there = bed.mirror.instance(&instance_key("p")).unwrap().clone();
    let other = serde_json::json!({"HTTP": "http://10.9.9.9/", "Interval": "10s"});
    for definition in [None, crate::model::definition::Definition::read(&other)] {
        let bed = bed_by(Runner::Esm, Some(clone(&bed)), &both());
        let bed = bed.change(|instance| {
            *instance = there.clone();
            instance.checks[1].definition.clone_from(&definition);
        });
        let write = put(bed.decide(&key("p")).step);
        assert_eq!(
            (write.checks.len(), &*write.fields),
            (1, &["check"] as &[_])
        );
        assert_eq!(write.checks[0].check, there.checks[1].check);
        assert_eq!(write.checks[0].index, there.checks[1].modify_index);
    }
    // Another protocol under its name is another definition.
    let tcp =
        serde_json::json!([{"name": "api", "tcp": {}}, {"name": "db", "tcp": {"port": 8080}}]);
    let write = put(bed_by(Runner::Esm, Some(bed.mirror), &tcp)
        .decide(&key("p"))
        .step);
    assert_eq!(write.checks[0].check.status, Health::Passing);
}

fn clone(bed: &Bed) -> Mirror {
    let mut mirror = Mirror::new("a".parse().unwrap());
    mirror.complete();
    for key in [
        instance_key("p"),
        match mesh::proxy_key("p") {
            Key::Instance(key) => key,
            _ => panic!("it is one"),
        },
    ] {
        mirror.wrote_instance(&key, bed.mirror.instance(&key).cloned());
    }
    let node = &instance_key("p").node;
    mirror.wrote_node(node, bed.mirror.node(node).unwrap().clone());
    mirror
}

#[test]
fn switched_to_and_fro_no_status_changes() {
    let checks = both();
    let bed = bed_by(Runner::Lictor, None, &checks);
    let bed = bed.carry_out(&node_key(), 10).carry_out(&key("p"), 11);
    let bed = says(says(bed, "api", Health::Passing), "db", Health::Passing);
    let bed = bed.carry_out(&mesh::proxy_key("p"), 12);
    settled(&bed);
    assert!(!is_external(&bed));
    let mut bed = bed;
    for runner in [Runner::Esm, Runner::Lictor] {
        bed = bed_by(runner, Some(bed.mirror), &checks);
        let write = put(bed.decide(&key("p")).step);
        assert_eq!((write.service.is_none(), write.checks.len()), (true, 2));
        for check in &write.checks {
            assert_eq!(check.check.status, Health::Passing);
            assert_eq!(check.kind.definition().is_some(), runner == Runner::Esm);
        }
        assert_eq!(bed.decide(&mesh::proxy_key("p")).step, Step::Settled);
        bed = carry_out_node(bed, 20).carry_out(&key("p"), 20);
        settled(&bed);
        assert_eq!(is_external(&bed), runner == Runner::Esm);
    }
}

/// The node alone differs, its check does not.
fn carry_out_node(mut bed: Bed, index: u64) -> Bed {
    let node = instance_key("p").node;
    let Step::PutNode(write) = bed.decide(&node_key()).step else {
        panic!("the node is not written");
    };
    let mut there = bed.mirror.node(&node).unwrap().clone();
    there.node = write.node.unwrap().0;
    there.modify_index = index;
    assert_eq!(write.check, None);
    bed.mirror.wrote_node(&node, there);
    bed
}

#[test]
fn where_consul_esm_may_not_be_sent_it_is_not_sent() {
    let bed = says(says(bed(), "api", Health::Passing), "db", Health::Passing);
    let bed = bed.with(pod("p").ips(&["169.254.169.254"]).port("http", 8080, None));
    let write = put(bed.decide(&key("p")).step);
    assert_eq!(write.checks.len(), 2);
    for check in &write.checks {
        assert_eq!(
            (check.check.status, check.kind.definition()),
            (Health::Critical, None)
        );
        assert!(
            check.check.output.contains("link-local"),
            "{}",
            check.check.output
        );
    }
    let mut bed = bed;
    // Before it is known where that is, what is there stays and nothing is given.
    bed.rules.forbidden = None;
    let write = put(bed.decide(&key("p")).step);
    assert!(write.checks.is_empty(), "{write:?}");
    let mut fresh = bed_by(Runner::Esm, None, &both()).carry_out(&node_key(), 10);
    fresh.rules.forbidden = None;
    let write = put(fresh.decide(&key("p")).step);
    assert!(
        write
            .checks
            .iter()
            .all(|check| check.kind.definition().is_none())
    );
}

#[test]
fn what_consul_esm_cannot_run_registers_nothing_and_keeps_what_is_there() {
    let with_grpc =
        serde_json::json!([{"name": "api", "http": {}}, {"name": "db", "grpc": {"port": 8080}}]);
    let fresh = bed_by(Runner::Esm, None, &with_grpc);
    let finding = fresh.decide(&key("p"));
    let Some(Freeze::Invalid(problems)) = finding.freeze else {
        panic!("{finding:?}");
    };
    assert!(problems[0].contains("db: grpc"), "{problems:?}");
    assert_eq!(finding.step, Step::Settled);
    assert_eq!(
        fresh
            .index
            .at_fault(&instance_key("p"), &finding.owner.unwrap())
            .name,
        "web".into()
    );

    let bed = bed_by(Runner::Lictor, None, &with_grpc);
    let bed = bed.carry_out(&node_key(), 10).carry_out(&key("p"), 11);
    let bed = says(says(bed, "api", Health::Passing), "db", Health::Passing);
    let bed = bed_by(Runner::Esm, Some(bed.mirror), &with_grpc);
    let write = put(bed.decide(&key("p")).step);
    let [api] = &write.checks[..] else {
        panic!("{write:?}")
    };
    assert_eq!(
        (api.check.status, api.kind.definition().is_some()),
        (Health::Passing, true)
    );
}

#[test]
fn a_definition_on_a_check_that_is_not_asked_is_drift() {
    let other = serde_json::json!({"HTTP": "http://10.9.9.9/", "Interval": "10s"});
    let id = CheckKind::Readiness.id(&instance_key("p").id);
    let bed = bed().change(|instance| {
        let wire = wire::HealthCheck {
            check_id: id.as_str().into(),
            name: CheckKind::Readiness.name(),
            check_type: CheckKind::Readiness.check_type().into(),
            service_id: instance_key("p").id.text().clone(),
            status: "passing".into(),
            output: "the pod is ready".into(),
            definition: Some(Box::new(other)),
            modify_index: 12,
            ..wire::HealthCheck::default()
        };
        instance.checks[0] = ObservedCheck::of(&wire, Some(&instance_key("p").id));
    });
    let write = put(bed.decide(&key("p")).step);
    assert_eq!((write.checks.len(), write.checks[0].index), (1, 12));
    assert_eq!(write.checks[0].kind, CheckKind::Readiness);
}

#[test]
fn a_node_that_is_gone_is_given_back_too() {
    let bed = bed();
    assert!(is_external(&bed));
    let mut bed = bed_by(Runner::Lictor, Some(bed.mirror), &both());
    let touched = &mut Touched::default();
    bed.index.remove_node(&"n1".into(), touched);
    let Step::PutNode(write) = bed.decide(&node_key()).step else {
        panic!("the node is not written");
    };
    let (node, _) = write.node.unwrap();
    assert_eq!(node.meta.get("external-node"), None);
    assert!(node.meta.get("k8s-node").is_some());
}

#[test]
fn what_consul_esm_found_of_a_pod_says_nothing_of_the_next_of_its_name() {
    let bed = says(says(bed(), "api", Health::Passing), "db", Health::Passing);
    let bed = bed.carry_out(&mesh::proxy_key("p"), 12);
    let another = pod("p").port("http", 8080, None);
    let bed = bed.with(another.change(|pod| pod.uid = "another".into()));
    let write = put(bed.decide(&key("p")).step);
    assert_eq!(write.checks.len(), 2);
    for check in &write.checks {
        let says = (check.check.status, &*check.check.output);
        assert_eq!(says, (Health::Critical, NOT_ASKED));
        assert!(check.kind.definition().is_some());
    }
    let write = put(bed.decide(&mesh::proxy_key("p")).step);
    assert_eq!(write.checks[0].check.status, Health::Critical);
}
