mod checks;
mod critical;
mod esm;
mod mesh;
mod policy;

use globset::GlobSet;

use super::*;
use crate::api::LabelSelector;
use crate::consul::wire;
use crate::desired::claim::Freeze;
use crate::desired::fixtures::{PodFixture, node, object, pod};
use crate::desired::index::Touched;
use crate::desired::registration::{Claims, Content, Registration, Source};
use crate::desired::spec::InstanceSpec;
use crate::model::entry::CheckKind;
use crate::model::facts::{NodeFacts, Tristate};
use crate::model::kind::Kind;
use crate::model::names::{InstanceId, NodeName};
use crate::model::text::Pairs;
use crate::observed::entry::{
    ObservedCheck, ObservedNode, wire_check, wire_node_check, wire_service,
};
use crate::plan::batch::{Batch, MAX_STEP_OPS, Overflow};
use crate::plan::gate::Hold;

struct Bed {
    index: Index,
    mirror: Mirror,
    rules: Rules,
}

fn instance_key(pod: &str) -> InstanceKey {
    let cluster = "a".parse().unwrap();
    InstanceKey {
        node: NodeName::for_kubernetes(&cluster, "n1"),
        id: InstanceId::of_pod(&cluster, "shop", &"web".parse().unwrap(), pod),
    }
}

fn key(pod: &str) -> Key {
    Key::Instance(instance_key(pod))
}

fn web(name: &str) -> PodFixture {
    pod(name).lictor("service", "web")
}

impl Bed {
    fn new() -> Self {
        let mut index = Index::new("a".parse().unwrap(), GlobSet::empty());
        for kind in Kind::ALL {
            index.begin_list(kind);
            index.end_list(kind, &mut Touched::default());
        }
        index.apply_node(node("n1"), &mut Touched::default());
        let mut mirror = Mirror::new("a".parse().unwrap());
        mirror.complete();
        Self {
            index,
            mirror,
            rules: Rules::default(),
        }
    }

    fn with(mut self, pod: PodFixture) -> Self {
        self.index.apply_pod(pod.facts(), &mut Touched::default());
        self
    }

    fn decide(&self, key: &Key) -> Finding {
        decide(key, &self.index, &self.mirror, &self.rules)
    }

    /// Carries out what is planned under a key, at this index.
    fn carry_out(mut self, key: &Key, index: u64) -> Self {
        match (key, self.decide(key).step) {
            (Key::Node(name), Step::PutNode(write)) => {
                let before = self.mirror.node(name).cloned();
                let written = write.node.map(|(node, _)| {
                    ObservedNode::of(&wire::Node {
                        address: node.address,
                        meta: node.meta,
                        modify_index: index,
                        ..wire::Node::default()
                    })
                });
                let mut observed = written.or(before).unwrap();
                observed.modify_index = index;
                let check = wire_node_check(name.text(), &write.check.unwrap().0);
                observed.checks = vec![ObservedCheck::of(&at(check, index), None)];
                self.mirror.wrote_node(name, observed);
            }
            (Key::Instance(key), Step::Put(write)) => {
                let before = self.mirror.instance(key).cloned();
                let written = write.service.as_ref().map(|(service, _)| {
                    let mut service = wire_service(key, service);
                    service.modify_index = index;
                    ObservedInstance::of(&service)
                });
                let mut observed = written.or(before.clone()).unwrap();
                let kept = before.map(|before| before.checks).unwrap_or_default();
                let checks = write.checks.iter().map(|it| {
                    let check = wire_check(key, &write.name, &it.kind, &it.check);
                    ObservedCheck::of(&at(check, index), Some(&key.id))
                });
                observed.checks = checks.collect();
                let written = |check: &ObservedCheck| {
                    let mut ids = write.checks.iter().map(|it| it.kind.id(&key.id));
                    ids.any(|id| *id == *check.id)
                };
                let kept = kept.into_iter().filter(|check| !written(check));
                observed.checks.extend(kept);
                self.mirror.wrote_instance(key, Some(observed));
            }
            (_, step) => panic!("nothing to carry out: {step:?}"),
        }
        self
    }

    fn change(mut self, change: impl FnOnce(&mut ObservedInstance)) -> Self {
        let key = instance_key("p");
        let mut instance = self.mirror.instance(&key).unwrap().clone();
        change(&mut instance);
        self.mirror.wrote_instance(&key, Some(instance));
        self
    }

    fn registered() -> Self {
        let node = Key::Node(instance_key("p").node);
        let bed = Self::new().with(web("p"));
        bed.carry_out(&node, 10).carry_out(&key("p"), 10)
    }
}

fn at(check: wire::HealthCheck, modify_index: u64) -> wire::HealthCheck {
    wire::HealthCheck {
        modify_index,
        ..check
    }
}

fn put(step: Step) -> InstanceWrite {
    match step {
        Step::Put(write) => write,
        other => panic!("not a write: {other:?}"),
    }
}

#[test]
fn nothing_is_planned_before_consul_is_known() {
    let mut bed = Bed::new().with(web("p"));
    bed.mirror = Mirror::new("a".parse().unwrap());
    assert_eq!(bed.decide(&key("p")).step, Step::Waiting);
    bed.mirror.complete();
    bed.mirror.doubt(&instance_key("p").node);
    for key in [key("p"), Key::Node(instance_key("p").node)] {
        assert_eq!(bed.decide(&key).step, Step::Waiting);
    }
}

#[test]
fn what_is_to_be_on_a_node_without_an_address_waits_for_one() {
    let without = |pod: PodFixture| pod.change(|pod| pod.host_ip = None);
    let mut bed = Bed::new().with(without(web("p")));
    let nothing = NodeFacts {
        internal_ip: None,
        ..node("n1")
    };
    bed.index.apply_node(nothing, &mut Touched::default());
    let finding = bed.decide(&key("p"));
    let (node, pod) = ("n1".into(), "shop/p".into());
    assert_eq!(finding.step, Step::NoNodeAddress { node, pod });
    assert_eq!(finding.owner, Some(Owner::pod(&"shop".into(), &"p".into())));
    let name = Key::Node(instance_key("p").node);
    assert_eq!(bed.decide(&name).step, Step::Settled);

    // The host IP of any pod there serves, and so does the node's own address.
    let bed = bed.with(web("q"));
    assert!(put(bed.decide(&key("p")).step).creates());
    let bed = Bed::new().with(without(web("p")));
    assert!(put(bed.decide(&key("p")).step).creates());
}

#[test]
fn a_node_that_is_there_needs_no_address() {
    let mut bed = Bed::registered().with(web("p").change(|pod| pod.host_ip = None));
    bed.index.remove_node(&"n1".into(), &mut Touched::default());
    bed.mirror.wrote_instance(&instance_key("p"), None);
    assert!(put(bed.decide(&key("p")).step).creates());
}

#[test]
fn a_claim_is_created_whole_and_then_settled() {
    let bed = Bed::new().with(web("p"));
    let write = put(bed.decide(&key("p")).step);
    assert!(write.creates());
    assert_eq!(write.checks[0].index, 0);
    let bed = Bed::registered();
    for key in [key("p"), Key::Node(instance_key("p").node)] {
        assert_eq!(bed.decide(&key).step, Step::Settled);
    }
}

#[test]
fn only_what_differs_is_written_at_the_index_that_is_known() {
    let bed = Bed::registered().with(web("p").not_ready("app", ""));
    let write = put(bed.decide(&key("p")).step);
    assert_eq!((write.service, write.fields), (None, vec!["check"]));
    assert_eq!(write.checks[0].index, 10);

    let bed = Bed::registered().with(web("p").lictor("tags", "v2"));
    let write = put(bed.decide(&key("p")).step);
    assert_eq!(
        (write.checks, &*write.fields),
        (Vec::new(), &["tags"] as &[_])
    );
    assert_eq!(write.service.unwrap().1, 10);
}

#[test]
fn a_check_or_a_kind_by_another_hand_is_drift() {
    let bed = Bed::registered().change(|instance| instance.checks.clear());
    let write = put(bed.decide(&key("p")).step);
    assert_eq!((write.service, write.checks[0].index), (None, 0));
    let bed = Bed::registered().change(|instance| instance.checks[0].well_formed = false);
    assert_eq!(put(bed.decide(&key("p")).step).fields, ["check"]);
    let bed = Bed::registered().change(|instance| instance.embellished = true);
    let write = put(bed.decide(&key("p")).step);
    assert_eq!(write.fields, ["kind"]);
    assert!(write.service.is_some());
}

#[test]
fn checks_of_ours_that_nobody_asks_for_go_and_those_of_others_stay() {
    let with = |id: &str| {
        let id = Text::from(id);
        Bed::registered().change(|instance| {
            let mut check = instance.checks[0].clone();
            (check.id, check.modify_index) = (id, 12);
            instance.checks.push(check);
        })
    };
    let ours = format!("{}:api", instance_key("p").id);
    let mut bed = with(&ours);
    let write = put(bed.decide(&key("p")).step);
    assert_eq!((write.service, write.checks), (None, Vec::new()));
    assert_eq!(write.surplus, [(Text::from(&*ours), 12)]);
    bed.rules.mode = Mode::UpsertOnly;
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
    let bed = with("_service_maintenance:a.shop.web.p");
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
    let bed = with(&ours).with(web("p").lictor("paused", "true"));
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
}

#[test]
fn marks_of_a_newer_release_are_no_drift_and_stay() {
    let later = |meta: &Pairs| -> Pairs {
        let more = [("lictor-later".into(), "1".into())];
        let there = meta.iter().map(|(k, v)| (k.clone(), v.clone()));
        there.chain(more).collect()
    };
    let name = instance_key("p").node;
    let mut bed =
        Bed::registered().change(|instance| instance.service.meta = later(&instance.service.meta));
    let mut node = bed.mirror.node(&name).unwrap().clone();
    node.node.meta = later(&node.node.meta);
    bed.mirror.wrote_node(&name, node);
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
    assert_eq!(bed.decide(&Key::Node(name)).step, Step::Settled);

    let bed = bed.with(web("p").lictor("meta", "a=b"));
    let (service, _) = put(bed.decide(&key("p")).step).service.unwrap();
    assert_eq!(service.meta.get("lictor-later").unwrap().as_ref(), "1");
    assert_eq!(service.meta.get("a").unwrap().as_ref(), "b");
}

#[test]
fn another_hands_entry_is_left_alone() {
    let bed = Bed::registered().change(|instance| {
        instance.service.meta = Pairs::default();
        // It was removed and made anew.
        instance.create_index = 77;
    });
    let finding = bed.decide(&key("p"));
    assert!(matches!(finding.step, Step::OwnedByAnother { .. }));
    assert!(finding.owner.is_some(), "whom to tell");
    // With nobody who claims it there is nobody to tell.
    let mut bed = bed;
    let mut touched = Touched::default();
    bed.index
        .remove_pod(&"shop".into(), &"p".into(), &mut touched);
    assert_eq!(bed.decide(&key("p")), Finding::nothing(Step::Settled));
}

#[test]
fn an_entry_that_lost_its_marks_is_repaired() {
    let unmarked = |instance: &mut ObservedInstance| instance.service.meta = Pairs::default();
    let bed = Bed::registered().change(unmarked);
    assert_eq!(put(bed.decide(&key("p")).step).fields, ["meta"]);
    // Nor does one that is left make it another's.
    let bed = bed.change(|instance| {
        let left = [("lictor-cluster", "a"), ("external-source", "kubernetes")];
        let left = left.map(|(key, value)| (Text::from(key), Text::from(value)));
        instance.service.meta = left.into_iter().collect();
    });
    assert_eq!(put(bed.decide(&key("p")).step).fields, ["meta"]);
    // Another owner's mark is no loss.
    let bed = bed.change(|instance| {
        let mark = (Text::from("managed-by"), Text::from("nomad"));
        instance.service.meta = [mark].into_iter().collect();
    });
    let step = bed.decide(&key("p")).step;
    assert!(matches!(step, Step::OwnedByAnother { .. }));
}

#[test]
fn an_entry_without_an_owner_is_adopted_where_that_is_asked_for() {
    let registration = |adopt| Registration {
        namespace: "shop".into(),
        name: "web".into(),
        uid: "uid".into(),
        created: 1,
        generation: 1,
        content: Content::Valid(Claims {
            service: "web".parse().unwrap(),
            spec: InstanceSpec::default(),
            source: Source::Pods(LabelSelector::default()),
            adopt,
            protocol: None,
            queries: Vec::new(),
            sidecar: None,
        }),
    };
    let mut bed = Bed::registered().change(|instance| {
        instance.service.meta = Pairs::default();
        instance.create_index = 77;
    });
    for (adopt, adopted) in [(false, false), (true, true)] {
        let registration = registration(adopt);
        bed.index
            .apply_registration(registration, &mut Touched::default());
        let step = bed.decide(&key("p")).step;
        assert_eq!(matches!(step, Step::Put(_)), adopted, "{step:?}");
    }
    let bed = bed.change(|instance| {
        let mark = (Text::from("external-source"), Text::from("nomad"));
        instance.service.meta = [mark].into_iter().collect();
    });
    let step = bed.decide(&key("p")).step;
    assert!(matches!(step, Step::OwnedByAnother { .. }));
}

#[test]
fn what_may_not_go_is_taken_out_of_service_when_its_address_is_anothers() {
    let mut bed = Bed::registered();
    bed.index
        .remove_pod(&"shop".into(), &"p".into(), &mut Touched::default());
    bed.index.watches.broken(Kind::Node, "timeout".to_owned());
    assert!(matches!(bed.decide(&key("p")).step, Step::Held(_)));
    let bed = bed.with(pod("other"));
    let finding = bed.decide(&key("p"));
    assert!(finding.held().is_some(), "it is still held");
    let write = put(finding.step);
    let check = &write.checks[0].check;
    assert_eq!((check.status, &write.service), (Health::Critical, &None));
    assert!(check.output.contains("Pod/shop/other"), "{}", check.output);
    let bed = bed.change(|instance| instance.checks[0].check.status = Health::Critical);
    assert!(matches!(bed.decide(&key("p")).step, Step::Held(_)));
}

#[test]
fn while_most_nodes_seem_lost_no_node_turns_critical() {
    let name = Key::Node(instance_key("p").node);
    let ready = |ready| NodeFacts {
        ready,
        ..node("n1")
    };
    let mut bed = Bed::registered();
    let now = tokio::time::Instant::now();
    for n in 0..3 {
        bed.rules.nodes.observe(&format!("n{n}").into(), false, now);
    }
    assert!(bed.rules.nodes.judge(now));
    let mut touched = Touched::default();
    bed.index.apply_node(ready(Tristate::Unknown), &mut touched);
    assert_eq!(bed.decide(&name).step, Step::Settled);
    bed.rules.nodes.retain(|_| false);
    assert!(bed.rules.nodes.judge(now));
    let Step::PutNode(write) = bed.decide(&name).step else {
        panic!("it stays");
    };
    assert_eq!(write.check.unwrap().0.status, Health::Critical);
}

#[test]
fn an_empty_node_goes_some_time_after_its_kubernetes_node() {
    let mut bed = Bed::registered();
    let name = instance_key("p").node;
    let node = Key::Node(name.clone());
    let mut touched = Touched::default();
    bed.index.remove_node(&"n1".into(), &mut touched);
    let mut bed = bed.carry_out(&node, 20);
    // A pod that is claimed, or anybody's entry, keeps it.
    assert_eq!(bed.decide(&node).step, Step::Settled);
    bed.index
        .remove_pod(&"shop".into(), &"p".into(), &mut touched);
    assert_eq!(bed.decide(&node).step, Step::Settled);
    bed.mirror.wrote_instance(&instance_key("p"), None);
    assert_eq!(bed.decide(&node).step, Step::Lingering);
    bed.index.watches.broken(Kind::Pod, "timeout".to_owned());
    assert_eq!(bed.decide(&node).step, Step::Settled);
    bed.index.watches.healthy(Kind::Pod);

    let now = tokio::time::Instant::now();
    bed.rules.vacancies.found(&name, now);
    bed.rules.vacancies.ripen(now + vacancy::DEFAULT_GRACE);
    assert_eq!(bed.decide(&node).step, Step::RemoveNode(20));
    bed.index
        .apply_node(crate::desired::fixtures::node("n1"), &mut touched);
    assert!(matches!(bed.decide(&node).step, Step::PutNode(_)));
}

#[test]
fn nothing_is_created_on_another_clusters_node() {
    let mut bed = Bed::new().with(web("p"));
    let meta = [(Text::from(marks::CLUSTER), Text::from("b"))];
    let node = wire::Node {
        meta: meta.into_iter().collect(),
        ..wire::Node::default()
    };
    let name = instance_key("p").node;
    bed.mirror.wrote_node(&name, ObservedNode::of(&node));
    for key in [key("p"), Key::Node(name)] {
        let Step::OwnedByAnother { holder } = bed.decide(&key).step else {
            panic!("{key} is written");
        };
        assert!(holder.contains("cluster \"b\""), "{holder}");
    }
}

#[test]
fn what_nobody_claims_goes_once_all_is_known() {
    let mut bed = Bed::registered();
    let mut touched = Touched::default();
    bed.index
        .remove_pod(&"shop".into(), &"p".into(), &mut touched);
    bed.index.watches.broken(Kind::Node, "timeout".to_owned());
    assert!(matches!(bed.decide(&key("p")).step, Step::Held(_)));
    bed.index.watches.healthy(Kind::Node);
    let Step::Remove(removal) = bed.decide(&key("p")).step else {
        panic!("it stays");
    };
    assert_eq!((removal.index, removal.why), (10, gate::Why::Seen));
    assert_eq!(removal.owner.to_string(), "Pod/shop/p");
}

#[test]
fn a_claim_that_goes_while_another_list_is_under_way_waits_for_it() {
    for kind in [Kind::Pod, Kind::Registration] {
        // The pod lives on, and what claims it from now on may be in the list.
        let mut bed = Bed::registered().with(pod("p"));
        bed.index.begin_list(kind);
        assert!(
            matches!(bed.decide(&key("p")).step, Step::Held(_)),
            "{kind:?}"
        );
        let mut back = Touched::default();
        bed.index.apply_pod(web("p").facts(), &mut back);
        assert_eq!(bed.decide(&key("p")).step, Step::Settled, "{kind:?}");

        let mut bed = Bed::registered().with(pod("p"));
        bed.index.begin_list(kind);
        if kind == Kind::Pod {
            bed.index.apply_pod(pod("p").facts(), &mut back);
        }
        bed.index.end_list(kind, &mut back);
        let Step::Remove(removal) = bed.decide(&key("p")).step else {
            panic!("it stays after the list of {kind:?}");
        };
        assert_eq!(removal.why, gate::Why::Seen);
    }
}

#[test]
fn what_ended_goes_whatever_list_is_under_way() {
    let ended = |pod: PodFixture| pod.phase(crate::model::facts::Phase::Failed);
    let leaves = |pod: PodFixture| {
        pod.lictor("terminating", "Deregister")
            .change(|pod| pod.deleting = true)
    };
    for kind in Kind::ALL {
        let mut gone = Bed::registered();
        let mut touched = Touched::default();
        gone.index
            .remove_pod(&"shop".into(), &"p".into(), &mut touched);
        let beds = [
            gone,
            Bed::registered().with(ended(web("p"))),
            Bed::registered().with(leaves(web("p"))),
        ];
        for mut bed in beds {
            bed.index.begin_list(kind);
            assert!(
                matches!(bed.decide(&key("p")).step, Step::Remove(_)),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn a_node_is_written_where_it_or_its_check_differs() {
    let mut bed = Bed::registered();
    let name = Key::Node(instance_key("p").node);
    let mut facts = node("n1");
    facts.ready = crate::model::facts::Tristate::False;
    bed.index.apply_node(facts, &mut Touched::default());
    let Step::PutNode(write) = bed.decide(&name).step else {
        panic!("nothing to write");
    };
    assert_eq!((write.node, write.check.unwrap().1), (None, 10));
    let mut facts = node("n1");
    facts.zone = Some("z1".into());
    bed.index.apply_node(facts, &mut Touched::default());
    let Step::PutNode(write) = bed.decide(&name).step else {
        panic!("nothing to write");
    };
    assert_eq!((write.node.unwrap().1, write.check), (10, None));
}

// === batches ===

#[test]
fn a_batch_leaves_room_for_the_fence_and_takes_steps_whole() {
    let step = Bed::new().with(web("p")).decide(&key("p")).step;
    let mut batch = Batch::default();
    let mut pushed = 0;
    let full = loop {
        match batch.push(key(&format!("p{pushed}")), step.clone(), ()) {
            Ok(()) => pushed += 1,
            Err(full) => break full,
        }
    };
    // Two operations a step; the odd one out stays free.
    assert_eq!((full, pushed), (Overflow::Full, MAX_STEP_OPS / 2));
    let removal = Step::Remove(Removal {
        owner: Owner::pod(&"shop".into(), &"p".into()),
        name: "web".into(),
        index: 1,
        why: gate::Why::Seen,
    });
    assert_eq!(batch.push(key("last"), removal, ()), Ok(()));
    let (txn, steps) = batch.into_parts();
    assert_eq!((txn.len(), steps.len()), (MAX_STEP_OPS, pushed + 1));
    let mut next = 0;
    for step in &steps {
        assert_eq!(step.ops.start, next);
        next = step.ops.end;
    }
    assert_eq!(next, txn.len());
}

#[test]
fn a_step_that_no_transaction_holds_is_told_from_a_full_batch() {
    let mut write = put(Bed::new().with(web("p")).decide(&key("p")).step);
    let large = |bytes: usize, write: &mut InstanceWrite| {
        let (service, _) = write.service.as_mut().unwrap();
        service.tags = Box::new(["x".repeat(bytes).into()]);
    };
    let mut batch = Batch::default();
    large(300_000, &mut write);
    assert_eq!(batch.push(key("p"), Step::Put(write.clone()), ()), Ok(()));
    let second = batch.push(key("q"), Step::Put(write.clone()), ());
    assert_eq!(second, Err(Overflow::Full));
    assert!(!batch.contains(&key("q")));
    large(600_000, &mut write);
    let third = batch.push(key("q"), Step::Put(write), ());
    assert_eq!(third, Err(Overflow::TooLarge));
    assert_eq!(batch.into_parts().1.len(), 1);
}

#[test]
fn steps_without_writes_take_no_room() {
    let mut batch = Batch::default();
    for step in [Step::Settled, Step::Waiting] {
        assert_eq!(batch.push(key("p"), step, ()), Ok(()));
    }
    assert!(batch.is_empty());
}
