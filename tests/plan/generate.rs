//! Random objects and histories.

use lictor::model::kind::Kind;
use proptest::collection::btree_set;
use proptest::option;
use proptest::prelude::*;

use super::objects::{
    APPS, Fault, Mesh, NODES, Node, PODS, Pod, REGISTRATIONS, Reg, SERVICES, Source, State,
};
use super::world::{Hand, Op, any_kind, fate, kind};

/// How often objects have a fault.
#[derive(Clone, Copy, Debug)]
pub enum Faults {
    None,
    Some,
}

fn fault(faults: Faults) -> BoxedStrategy<Fault> {
    match faults {
        Faults::None => Just(Fault::None).boxed(),
        Faults::Some => prop_oneof![
            6 => Just(Fault::None),
            1 => Just(Fault::Paused),
            1 => Just(Fault::Invalid),
            1 => Just(Fault::BadList),
        ]
        .boxed(),
    }
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        1 => Just(State::Pending),
        6 => Just(State::Ready),
        2 => Just(State::Unready),
        2 => Just(State::Terminating),
        1 => Just(State::Failed),
    ]
}

pub fn pod(faults: Faults) -> impl Strategy<Value = Pod> {
    let place = (0..NODES, state(), 1..3_u32);
    let names = (
        option::weighted(0.7, 0..APPS.len()),
        btree_set(0..SERVICES.len(), 0..3),
        option::of(1..3_u8),
    );
    let look = (
        option::weighted(0.3, 1..4_u16),
        option::weighted(0.3, 1..4_u8),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
    );
    (place, names, look, fault(faults)).prop_map(|(place, names, look, fault)| {
        let (node, state, life) = place;
        let (app, services, version) = names;
        let (port, tag, warning, deregister) = look;
        Pod {
            node,
            state,
            app,
            version,
            services,
            port,
            tag,
            warning,
            deregister,
            fault,
            life,
        }
    })
}

pub fn reg(faults: Faults) -> impl Strategy<Value = Reg> {
    let source = prop_oneof![
        4 => (0..APPS.len()).prop_map(Source::Select),
        1 => (0..3_u8).prop_map(Source::Endpoints),
    ];
    let identity = (0..2_i64, 1..3_u32, 0..SERVICES.len());
    let look = (
        option::weighted(0.5, 1..4_u8),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        mesh(),
    );
    (identity, source, look, fault(faults)).prop_map(|(identity, source, look, fault)| {
        let (created, life, service) = identity;
        let (tag, warning, deregister, mesh) = look;
        Reg {
            created,
            service,
            source,
            tag,
            warning,
            deregister,
            mesh,
            fault,
            life,
        }
    })
}

fn mesh() -> impl Strategy<Value = Mesh> {
    prop_oneof![
        3 => Just(Mesh::None),
        1 => Just(Mesh::Native),
        2 => (0..3_u16).prop_map(Mesh::Sidecar),
    ]
}

pub fn node() -> impl Strategy<Value = Node> {
    (prop::bool::weighted(0.8), option::of(1..3_u8)).prop_map(|(ready, zone)| Node { ready, zone })
}

fn hand() -> impl Strategy<Value = Hand> {
    prop_oneof![
        2 => (0..NODES, 0..PODS).prop_map(|(node, pod)| Hand::Squat(node, pod)),
        1 => (0..NODES).prop_map(Hand::AddBeside),
        1 => (0..NODES).prop_map(Hand::SquatNode),
        1 => (0..NODES).prop_map(Hand::LeaveNode),
        2 => any::<usize>().prop_map(Hand::Retag),
        2 => any::<usize>().prop_map(Hand::Fail),
        2 => any::<usize>().prop_map(Hand::RemoveCheck),
        2 => any::<usize>().prop_map(Hand::RemoveInstance),
        1 => (0..NODES).prop_map(Hand::RemoveNode),
        1 => (0..NODES).prop_map(Hand::EraseNode),
        1 => any::<usize>().prop_map(Hand::Maintain),
        1 => any::<usize>().prop_map(Hand::Stray),
        1 => Just(Hand::Leave),
    ]
}

/// A change in Kubernetes.
pub fn change(faults: Faults) -> BoxedStrategy<Op> {
    prop_oneof![
        8 => (0..PODS, pod(faults)).prop_map(|(slot, pod)| Op::PutPod(slot, pod)),
        2 => (0..PODS).prop_map(Op::DeletePod),
        4 => (0..REGISTRATIONS, reg(faults)).prop_map(|(slot, reg)| Op::PutReg(slot, reg)),
        1 => (0..REGISTRATIONS).prop_map(Op::DeleteReg),
        2 => (0..NODES, node()).prop_map(|(slot, node)| Op::PutNode(slot, node)),
        1 => (0..NODES).prop_map(Op::DeleteNode),
    ]
    .boxed()
}

/// Anything.
pub fn op(faults: Faults) -> BoxedStrategy<Op> {
    prop_oneof![
        30 => change(faults),
        14 => (kind(), 1..6_usize).prop_map(|(kind, count)| Op::Deliver(kind, count)),
        2 => kind().prop_map(Op::Break),
        2 => kind().prop_map(Op::Heal),
        2 => kind().prop_map(Op::BeginList),
        3 => kind().prop_map(Op::EndList),
        16 => (1..12_usize, fate()).prop_map(|(count, fate)| Op::Write(count, fate)),
        4 => Just(Op::Acknowledge),
        1 => Just(Op::Arrive),
        4 => (0..NODES).prop_map(Op::BeginRead),
        4 => Just(Op::EndRead),
        1 => Just(Op::BeginNodeList),
        1 => Just(Op::EndNodeList),
        8 => hand().prop_map(Op::Hand),
        1 => Just(Op::Crash),
    ]
    .boxed()
}

/// What may happen where names are judged. All that is written is answered: what a process that died wrote,
/// and arrives later, is the fence's affair.
pub fn op_of_names() -> BoxedStrategy<Op> {
    let answered = super::world::Fate::Answered;
    prop_oneof![
        30 => change(Faults::None),
        14 => (any_kind(), 1..6_usize).prop_map(|(kind, count)| Op::Deliver(kind, count)),
        2 => any_kind().prop_map(Op::Break),
        3 => any_kind().prop_map(Op::Heal),
        2 => any_kind().prop_map(Op::BeginList),
        3 => any_kind().prop_map(Op::EndList),
        16 => (1..12_usize).prop_map(move |count| Op::Write(count, answered)),
        // So often what is known of names is kept.
        6 => Just(Op::Acknowledge),
        2 => Just(Op::Crash),
    ]
    .boxed()
}

/// A history in which all arrives and is written as it happens.
pub fn smooth(change: Op) -> Vec<Op> {
    let mut ops = vec![change];
    ops.extend(Kind::ALL.map(|kind| Op::Deliver(kind, usize::MAX)));
    ops.push(Op::Write(usize::MAX, super::world::Fate::Answered));
    ops
}
