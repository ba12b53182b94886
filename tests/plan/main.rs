//! Properties of the pure core: on random histories of objects, watches and other hands, what is
//! planned brings a model of Consul to what the objects ask for, and harms nothing on the way.
//!
//! A failure is kept in `tests/plan/main.proptest-regressions`, which is committed with its mend.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod consul;
mod generate;
mod names;
mod objects;
mod world;

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use generate::Faults;
use lictor::model::kind::Kind;
use names::Names;
use objects::{Fault, Instance, Objects, Place, Pod, Reg, SERVICES};
use world::{Fate, Op, World};

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        max_shrink_iters: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource(
            "proptest-regressions",
        ))),
        ..ProptestConfig::default()
    }
}

fn after(history: impl IntoIterator<Item = Op>) -> World {
    let mut world = World::new();
    for op in history {
        world.apply(op);
    }
    world
}

/// The world of a process that starts when all has happened already.
fn afresh(objects: &Objects) -> World {
    let mut world = World::new();
    world.objects = objects.clone();
    world.crash();
    world.settle();
    world
}

proptest! {
    #![proptest_config(config(600))]

    /// Whatever happens on the way, in the end Consul is what the objects ask for; a second plan is
    /// empty. What [`World`] asserts on the way: nothing foreign is touched, nothing is removed on
    /// an incomplete view or while it is wanted, no key is twice in a transaction.
    #[test]
    fn every_history_ends_in_what_is_asked_for(
        history in vec(generate::op(Faults::None), 1..80)
    ) {
        let mut world = after(history);
        world.settle();
        world.judge_consul();
    }

    /// The same with objects that are paused or invalid for a time.
    #[test]
    fn faults_leave_nothing_behind_once_they_are_mended(
        history in vec(generate::op(Faults::Some), 1..80)
    ) {
        let mut world = after(history);
        world.settle();
        world.mend();
        world.settle();
        world.judge_consul();
    }
}

proptest! {
    #![proptest_config(config(200))]

    /// How the objects came to be what they are does not matter.
    #[test]
    fn the_order_of_events_does_not_matter(
        history in vec(generate::change(Faults::None), 1..40)
    ) {
        let mut at_once = after(history.clone());
        at_once.settle();
        let mut one_by_one = after(history.into_iter().flat_map(generate::smooth));
        one_by_one.settle();
        let objects = &one_by_one.objects;
        prop_assert_eq!(at_once.picture(), one_by_one.picture());
        prop_assert_eq!(afresh(objects).picture(), one_by_one.picture());
    }

    /// An object that becomes invalid, or is paused, keeps what Consul holds of it: names, port,
    /// tags, meta and weights, also across a crash; address, health and end follow the pod.
    #[test]
    fn a_fault_keeps_the_last_good_shape(
        history in vec(generate::change(Faults::None), 1..30),
        edits in vec(generate::change(Faults::Some), 1..12),
        crash in any::<bool>(),
    ) {
        let mut world = after(history);
        world.settle();
        let (objects, before) = (world.objects.clone(), world.picture());
        for edit in edits {
            let edit = into_fault(&world.objects, edit);
            world.apply(edit);
        }
        let edited = world.objects.clone();
        if crash {
            world.crash();
        }
        world.settle();
        judge_frozen(&objects, &edited, &before, &world.picture());
        let picture = world.picture();
        world.crash();
        world.settle();
        prop_assert_eq!(world.picture(), picture, "a crash changes nothing");
        world.mend();
        world.settle();
        world.judge_consul();
    }

    /// Not even under a storm of breaking watches does an instance go whose pod is there and ready.
    #[test]
    fn broken_watches_cost_nothing(
        start in vec(generate::change(Faults::None), 10..30),
        storm in vec(storm(), 1..40),
    ) {
        let mut world = after(start);
        world.settle();
        let before = world.picture();
        for op in storm {
            world.apply(op);
            world.apply(Op::Write(usize::MAX, Fate::Answered));
            for place in before.keys() {
                prop_assert!(world.picture().contains_key(place), "{:?} is gone", place);
            }
        }
        world.settle();
        prop_assert_eq!(world.picture(), before);
    }
}

proptest! {
    #![proptest_config(config(200))]

    /// A service name is one namespace's: what it claims is there, what others claim is not, and what was
    /// let in stays, whatever breaks and whenever the process dies.
    #[test]
    fn a_name_is_of_one_namespace_and_nothing_that_was_let_in_goes(
        history in vec(generate::op_of_names(), 1..80),
        storm in vec(storm_of(world::any_kind), 1..30),
    ) {
        let mut world = World::judging(Names::exclusive());
        for op in history {
            world.apply(op);
        }
        world.settle();
        world.names.judge(&world.objects, &world.picture());
        let before = world.picture();
        for op in storm {
            world.apply(op);
            world.apply(Op::Write(usize::MAX, Fate::Answered));
            for place in before.keys() {
                prop_assert!(world.picture().contains_key(place), "{:?} is gone", place);
            }
        }
        world.settle();
        prop_assert_eq!(world.picture(), before);
    }
}

fn storm() -> impl Strategy<Value = Op> {
    storm_of(world::kind)
}

fn storm_of<S: Strategy<Value = Kind> + 'static>(kind: fn() -> S) -> impl Strategy<Value = Op> {
    prop_oneof![
        kind().prop_map(Op::Break),
        kind().prop_map(Op::Heal),
        kind().prop_map(Op::BeginList),
        kind().prop_map(Op::EndList),
        Just(Op::Crash),
        (0..objects::NODES).prop_map(Op::BeginRead),
        Just(Op::EndRead),
        Just(Op::BeginNodeList),
        Just(Op::EndNodeList),
    ]
}

/// An edit that spoils an object; objects stay where and who they are, and are not deleted.
fn into_fault(objects: &Objects, edit: Op) -> Op {
    match edit {
        Op::PutPod(slot, pod) => match objects.pods.get(&slot) {
            Some(known) if pod.fault != Fault::None => {
                let (node, life) = (known.node, known.life);
                Op::PutPod(slot, Pod { node, life, ..pod })
            }
            _ => Op::Acknowledge,
        },
        Op::PutReg(slot, reg) => match objects.regs.get(&slot) {
            Some(known) if reg.fault != Fault::None => {
                let (created, life) = (known.created, known.life);
                Op::PutReg(
                    slot,
                    Reg {
                        created,
                        life,
                        ..reg
                    },
                )
            }
            _ => Op::Acknowledge,
        },
        Op::PutNode(..) => edit,
        _ => Op::Acknowledge,
    }
}

/// What is not an object's health or address.
fn shape(instance: &Instance) -> (&str, i64, &[String], BTreeMap<&String, &String>) {
    let user = |(key, _): &(&String, &String)| *key == "reg";
    let meta = instance.meta.iter().filter(user).collect();
    (&instance.service, instance.port, &instance.tags, meta)
}

fn judge_frozen(
    objects: &Objects,
    edited: &Objects,
    before: &BTreeMap<Place, Instance>,
    now: &BTreeMap<Place, Instance>,
) {
    for (place, was) in before {
        let (kind, _, name) = parts(&was.meta["lictor-owner"]);
        let owner_spoilt = kind == "ServiceRegistration" && {
            let slot: usize = name[1..].parse().unwrap();
            edited.regs[&slot].fault != Fault::None
        };
        let of_pod = was.meta["external-k8s-ref-kind"] == "Pod";
        if !of_pod {
            if owner_spoilt {
                assert_eq!(now.get(place), Some(was), "{place:?}");
            }
            continue;
        }
        let slot: usize = was.meta["external-k8s-ref-name"][1..].parse().unwrap();
        let pod = &edited.pods[&slot];
        let spoilt = owner_spoilt || pod.fault != Fault::None;
        if !spoilt {
            continue;
        }
        if !pod.runs() {
            assert_eq!(now.get(place), None, "the pod of {place:?} ended");
            continue;
        }
        // What happens at its termination depends on settings that may be lost with the fault.
        let unsettled = pod.state == objects::State::Terminating;
        let moved = objects.pods[&slot].app != pod.app && !owner_spoilt;
        let follows = pod.fault == Fault::None && !owner_spoilt;
        if unsettled || moved || follows {
            continue;
        }
        // A bad list spoils what it alone may name.
        let listed = SERVICES
            .iter()
            .position(|service| *service == was.service)
            .is_some_and(|number| pod.services.contains(&number));
        if pod.fault == Fault::Invalid && kind == "Pod" && !listed && !owner_spoilt {
            // It keeps its name only while it asks for another one.
            let alone = pod.app.is_none() && !pod.services.is_empty();
            assert!(
                !alone || now.contains_key(place),
                "{place:?} is gone: {pod:?}"
            );
            continue;
        }
        let untouched = pod.fault == Fault::BadList
            && !owner_spoilt
            && (kind == "ServiceRegistration" || listed);
        let Some(is) = now.get(place) else {
            panic!("{place:?} is gone: {pod:?}");
        };
        if untouched {
            continue;
        }
        assert_eq!(shape(is), shape(was), "{place:?}");
        let unready = pod.state == objects::State::Unready;
        assert_eq!(is.status.as_deref() == Some("passing"), !unready);
    }
}

fn parts(owner: &str) -> (&str, &str, &str) {
    let mut parts = owner.split('/');
    let mut next = || parts.next().unwrap();
    (next(), next(), next())
}
