//! Checks that Lictor runs.

use super::*;
use crate::plan::Asks;
use crate::plan::checks::question;

/// A registration of the service `web` that selects every pod and asks it this.
fn asking(checks: &serde_json::Value) -> Registration {
    let spec = serde_json::json!({"selector": {}, "port": 8080, "health": {"checks": checks},
                                  "connect": {"sidecar": {"port": 20000}}});
    Registration::of(&object("web", spec))
}

/// A registration of the service `web` that selects every pod, with this health and a proxy.
pub(super) fn asking_with(mut bed: Bed, health: &serde_json::Value) -> Bed {
    let spec = serde_json::json!({"selector": {}, "port": 8080, "health": health,
                                  "connect": {"sidecar": {"port": 20000}}});
    let registration = Registration::of(&object("web", spec));
    let touched = &mut Touched::default();
    bed.index.apply_registration(registration, touched);
    bed
}

/// With an instance and its proxy written.
pub(super) fn settled_both(bed: Bed, index: u64) -> Bed {
    bed.settled(index)
}

impl Bed {
    fn asking(mut self, checks: &serde_json::Value) -> Self {
        let touched = &mut Touched::default();
        self.index.apply_registration(asking(checks), touched);
        self
    }

    fn found(self, name: &str, status: Health) -> Self {
        self.found_of("uid-p", name, status)
    }

    /// The same of the pod with this uid.
    fn found_of(mut self, uid: &str, name: &str, status: Health) -> Self {
        let check = Check {
            status,
            output: format!("asked: it is {}", status.as_str()).into(),
        };
        let verdicts = &mut self.rules.verdicts;
        verdicts.found(instance_key("p"), &uid.into(), name.into(), check);
        self
    }

    fn settled(self, index: u64) -> Self {
        let bed = self.carry_out(&key("p"), index);
        let proxy = mesh::proxy_key("p");
        if bed.decide(&proxy).step == Step::Settled {
            bed
        } else {
            bed.carry_out(&proxy, index)
        }
    }
}

fn both() -> serde_json::Value {
    serde_json::json!([{"name": "api", "http": {}}, {"name": "db", "tcp": {"port": 8080}}])
}

fn bed() -> Bed {
    let node = Key::Node(instance_key("p").node);
    let bed = Bed::new().with(pod("p")).asking(&both());
    bed.carry_out(&node, 10).settled(11)
}

fn said(write: &InstanceWrite) -> Vec<(String, Health)> {
    let checks = write.checks.iter();
    checks
        .map(|it| (it.kind.id(&InstanceId::observed("x")), it.check.status))
        .collect()
}

#[test]
fn what_was_not_asked_yet_is_critical_and_then_as_it_was_found() {
    let node = Key::Node(instance_key("p").node);
    let bed = Bed::new().with(pod("p")).asking(&both());
    let bed = bed.carry_out(&node, 10);
    let write = put(bed.decide(&key("p")).step);
    let expected = [
        ("x:ready".to_owned(), Health::Passing),
        ("x:api".to_owned(), Health::Critical),
        ("x:db".to_owned(), Health::Critical),
    ];
    assert_eq!(said(&write), expected);
    let bed = bed.settled(11);
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
    assert_eq!(bed.decide(&mesh::proxy_key("p")).step, Step::Settled);
    let write = put(bed.found("api", Health::Passing).decide(&key("p")).step);
    assert_eq!(said(&write), [("x:api".to_owned(), Health::Passing)]);
    assert_eq!((write.service, write.checks[0].index), (None, 11));
}

#[test]
fn the_proxy_is_as_bad_as_the_worst_of_all() {
    let bed = bed();
    let alias = |bed: &Bed| match bed.decide(&mesh::proxy_key("p")).step {
        Step::Put(write) => Some((
            write.checks[0].check.status,
            write.checks[0].check.output.clone(),
        )),
        _ => None,
    };
    let bed = bed.found("api", Health::Passing);
    let unknown = (Health::Critical, "db: not asked yet".into());
    assert_eq!(alias(&bed), Some(unknown));
    let bed = bed.found("db", Health::Warning);
    assert_eq!(
        alias(&bed),
        Some((Health::Warning, "db: asked: it is warning".into()))
    );
    let bed = bed.found("db", Health::Passing);
    assert_eq!(
        alias(&bed),
        Some((Health::Passing, "the pod is ready".into()))
    );
    let bed = bed.settled(12);
    assert_eq!(alias(&bed), None);
}

#[test]
fn only_a_change_of_the_status_is_written() {
    let bed = bed()
        .found("api", Health::Passing)
        .found("db", Health::Passing);
    let mut bed = bed.settled(12);
    let other = Check {
        status: Health::Passing,
        output: "asked: it took longer".into(),
    };
    let verdicts = &mut bed.rules.verdicts;
    verdicts.found(instance_key("p"), &"uid-p".into(), "api".into(), other);
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
    assert_eq!(bed.decide(&mesh::proxy_key("p")).step, Step::Settled);
    // Whoever ran it before a restart, its status stays until it was run again.
    bed.rules.verdicts.clear();
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
}

#[test]
fn what_is_not_asked_for_any_more_goes_unless_that_is_not_known() {
    let bed = bed().asking(&serde_json::json!([{"name": "api", "http": {}}]));
    let write = put(bed.decide(&key("p")).step);
    let gone = format!("{}:db", instance_key("p").id);
    assert_eq!(write.surplus, [(Text::from(&*gone), 11)]);
    let bed = bed.asking(&serde_json::json!([{"name": "api", "http": {}, "tcp": {}}]));
    let finding = bed.decide(&key("p"));
    assert!(finding.freeze.is_some());
    assert_eq!(finding.step, Step::Settled);
}

#[test]
fn invalid_input_stops_no_check_and_hides_none() {
    let bed = bed()
        .found("api", Health::Passing)
        .found("db", Health::Passing);
    let bed = bed.settled(12).with(pod("p").lictor("weight", "heavy"));
    let finding = bed.decide(&key("p"));
    assert!(finding.freeze.is_some());
    assert!(matches!(finding.asks, Asks::These(_, asked) if asked.len() == 2));
    let bed = bed.found("db", Health::Critical);
    let write = put(bed.decide(&key("p")).step);
    assert_eq!(said(&write), [("x:db".to_owned(), Health::Critical)]);
    let write = put(bed.decide(&mesh::proxy_key("p")).step);
    assert_eq!(write.checks[0].check.status, Health::Critical);
    // One that cannot be asked any more counts for the proxy as it stands.
    let bed = bed.settled(13).found("db", Health::Critical);
    let lost =
        serde_json::json!([{"name": "api", "http": {}}, {"name": "db", "tcp": {"port": 22}}]);
    let bed = bed.asking(&lost);
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
    assert_eq!(bed.decide(&mesh::proxy_key("p")).step, Step::Settled);
}

#[test]
fn another_question_is_answered_anew() {
    let bed = bed().found("api", Health::Passing).settled(12);
    let mut bed = bed;
    let other = Check {
        status: Health::Passing,
        output: "HTTP GET http://10.0.0.1:8080/other: 200 OK (1 ms)".into(),
    };
    let verdicts = &mut bed.rules.verdicts;
    verdicts.found(
        instance_key("p"),
        &"uid-p".into(),
        "api".into(),
        other.clone(),
    );
    let write = put(bed.decide(&key("p")).step);
    assert_eq!(write.checks[0].check, other);
}

#[test]
fn a_check_of_another_kind_under_its_id_is_replaced() {
    let bed = bed()
        .found("api", Health::Critical)
        .asking(&serde_json::json!([
            {"name": "api", "tcp": {}}, {"name": "db", "tcp": {"port": 8080}}
        ]));
    let write = put(bed.decide(&key("p")).step);
    let protocol = crate::model::entry::Protocol::Tcp;
    let name = "api".into();
    let definition = None;
    let kind = CheckKind::Probe {
        name,
        protocol,
        definition,
    };
    assert_eq!(write.checks[0].kind, kind);
}

#[test]
fn an_instance_is_asked_where_it_is_registered() {
    let bed = bed();
    let Asks::These(subject, asked) = bed.decide(&key("p")).asks else {
        panic!("it is not asked");
    };
    assert_eq!(
        (&*subject.host, asked.len(), asked[0].port),
        ("10.0.0.1", 2, 8080)
    );
    assert_eq!(bed.decide(&mesh::proxy_key("p")).asks, Asks::Nothing);
    let bed = bed.with(pod("p").ips(&["10.0.0.9"]));
    let Asks::These(subject, _) = bed.decide(&key("p")).asks else {
        panic!("it is not asked");
    };
    assert_eq!(&*subject.host, "10.0.0.9");
    let mut bed = bed;
    let pod = ("shop".into(), "p".into());
    bed.index
        .remove_pod(&pod.0, &pod.1, &mut Touched::default());
    assert_eq!(bed.decide(&key("p")).asks, Asks::Nothing);
}

#[test]
fn a_port_that_the_pod_does_not_declare_is_invalid_input() {
    let bed = bed().asking(&serde_json::json!([{"name": "api", "tcp": {"port": 22}}]));
    let finding = bed.decide(&key("p"));
    let Some(Freeze::Invalid(problems)) = finding.freeze else {
        panic!("{finding:?}");
    };
    assert!(
        problems[0].contains("health.checks: api: port 22"),
        "{problems:?}"
    );
    assert_eq!(finding.step, Step::Settled);
}

/// A check that follows a session says what its session says, whatever was asked under its name before; and it
/// is written alone, with the entry, since it cannot be in a transaction.
#[test]
fn what_was_asked_before_is_no_sign_of_life() {
    let bed = bed().found("api", Health::Passing).settled(12);
    let bed = bed.asking(&serde_json::json!([
        {"name": "api", "ttl": {"lease": "worker", "ttl": "30s"}}, {"name": "db", "tcp": {"port": 8080}}
    ]));
    let write = put(bed.decide(&key("p")).step);
    assert_eq!(said(&write), [("x:api".to_owned(), Health::Critical)]);
    assert!(write.needs_register() && write.service.is_some());
    let bed = bed.carry_out(&key("p"), 13);
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
}

/// A pod of the same name and address, as of a `StatefulSet` that is on the network of its node.
fn another() -> PodFixture {
    pod("p").change(|pod| pod.uid = "another".into())
}

#[test]
fn what_was_found_of_a_pod_says_nothing_of_the_next_of_its_name() {
    let bed = bed()
        .found("api", Health::Passing)
        .found("db", Health::Passing);
    let bed = bed.settled(12).with(another());
    let write = put(bed.decide(&key("p")).step);
    let critical = ["api", "db"].map(|name| (format!("x:{name}"), Health::Critical));
    assert_eq!(said(&write), critical);
    assert!(write.service.is_some());
    let write = put(bed.decide(&mesh::proxy_key("p")).step);
    assert_eq!(write.checks[0].check.status, Health::Critical);
    // What is found of it counts before it is registered, too.
    let bed = bed.found_of("another", "api", Health::Passing);
    let db = [("x:db".to_owned(), Health::Critical)];
    assert_eq!(said(&put(bed.decide(&key("p")).step)), db);
    let bed = bed.settled(13);
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
    let bed = bed.found_of("another", "db", Health::Passing);
    let db = [("x:db".to_owned(), Health::Passing)];
    assert_eq!(said(&put(bed.decide(&key("p")).step)), db);
}

#[test]
fn an_entry_that_lost_its_marks_keeps_what_was_found() {
    let bed = bed().found("api", Health::Passing).settled(12);
    let bed = bed.change(|instance| instance.service.meta = Pairs::default());
    let write = put(bed.decide(&key("p")).step);
    assert!(
        write.service.is_some() && write.checks.is_empty(),
        "{write:?}"
    );
}

#[test]
fn what_is_kept_at_another_address_is_asked_at_the_ports_of_that() {
    let check = serde_json::json!([{"name": "api", "tcp": {"port": "http"}}]);
    let on_node = || pod("p").port("http", 8080, Some(30080));
    let node = Key::Node(instance_key("p").node);
    let bed = Bed::new().with(on_node().lictor("address", "HostIP"));
    let bed = bed.asking(&check).carry_out(&node, 10).settled(11);
    let asked = |bed: &Bed| match bed.decide(&key("p")).asks {
        Asks::These(subject, asked) => (subject.host.to_string(), asked[0].port),
        asks => panic!("{asks:?}"),
    };
    let at_node = ("192.168.0.1".to_owned(), 30080);
    assert_eq!(asked(&bed), at_node);
    let mut bed = bed;
    for (annotation, value) in [("weight", "heavy"), ("paused", "true")] {
        let changed = on_node().lictor("address", "PodIP");
        bed = bed.with(changed.lictor(annotation, value));
        assert!(bed.decide(&key("p")).freeze.is_some());
        assert_eq!(asked(&bed), at_node, "{annotation}");
    }
}

#[test]
fn what_consul_esm_says_is_no_answer_of_ours() {
    let asked = "HTTP GET http://10.0.0.1:8080/";
    let question_of = |answer: &str| {
        let check = Check {
            status: Health::Passing,
            output: format!("{asked}: {answer}").into(),
        };
        question(&check).map(str::to_owned)
    };
    assert_eq!(question_of("200 OK (3 ms)").as_deref(), Some(asked));
    for answer in ["200 OK Output: ok", "200 OK Output: took (3 ms)", "200 OK"] {
        assert_eq!(question_of(answer), None, "{answer}");
    }
}
