//! What the engine makes of single outcomes, without any Consul.

use super::*;
use crate::consul::{TxnOutcome, TxnResult};
use crate::desired::claim::Absence;
use crate::desired::fixtures::PodFixture;
use crate::desired::index::Touched;
use crate::desired::intention::Intention;
use crate::desired::registration::Registration;
use crate::k8s::{Broken, BrokenKind};
use crate::model::entry::{CheckKind, Node};
use crate::model::key::{InstanceKey, Key, Place, Table, source_key};
use crate::model::kind::Kind;
use crate::model::names::{Destination, InstanceId, NodeName, QueryName};
use crate::model::owner::Owner;
use crate::model::source::SourceName;
use crate::observed::entries::ObservedIntentions;
use crate::observed::entry::{ObservedCheck, ObservedInstance, ObservedNode, wire_service};
use crate::observed::table::Knowledge;
use crate::plan::batch::BatchedStep;
use crate::plan::entries::Gone;
use crate::plan::gate::Why;
use crate::plan::{self, Removal, Step};
use crate::policy::admission::Memory;
use crate::sync::apply::Done;
use crate::sync::carry::Rows;
use crate::sync::claim::{Before, Claimed};
use crate::sync::dirty::{Cause, Due};
use crate::sync::engine::LostRemoval;
use crate::sync::entries::TableRead;

pub(super) fn n1() -> NodeName {
    NodeName::for_kubernetes(&"a".parse().unwrap(), "n1")
}

pub(super) fn instance(pod: &str) -> InstanceKey {
    let (cluster, service) = ("a".parse().unwrap(), "web".parse().unwrap());
    InstanceKey {
        node: n1(),
        id: InstanceId::of_pod(&cluster, "shop", &service, pod),
    }
}

fn due() -> Due {
    Due {
        cause: Cause::Kubernetes,
        since: Instant::now(),
    }
}

/// An engine that may write, with the pod `p` on the node `n1`, which Consul has and which is empty.
pub(super) fn ready() -> Engine {
    ready_with(client("127.0.0.1:1".to_owned()))
}

/// The same, with this client.
pub(super) fn ready_with(client: Client) -> Engine {
    informed(engine(client))
}

/// This engine, once it knows what [`ready`] knows.
pub(super) fn informed(mut engine: Engine) -> Engine {
    let mut touched = Touched::default();
    for kind in Kind::ALL {
        engine.index.begin_list(kind);
        engine.index.end_list(kind, &mut touched);
    }
    engine.index.apply_node(node("n1"), &mut touched);
    engine.index.apply_pod(web("p", "n1"), &mut touched);
    engine.mirror.complete();
    engine.fence.begin(Instant::now());
    engine.fence.claimed(5);
    let step = plan::decide(
        &Key::Node(n1()),
        &engine.index,
        &engine.mirror,
        &engine.rules,
    )
    .step;
    let Step::PutNode(write) = step else {
        panic!("{step:?}")
    };
    let Node { address, meta } = write.node.unwrap().0;
    let there = ObservedNode::of(&crate::consul::wire::Node {
        address,
        meta,
        ..crate::consul::wire::Node::default()
    });
    engine.mirror.wrote_node(&n1(), there);
    engine
}

#[tokio::test]
async fn nothing_is_created_on_a_node_that_is_being_written() {
    for busy in [true, false] {
        let mut engine = ready();
        if busy {
            // Perhaps it is being removed, with all that comes onto it.
            engine.dirty.start(Key::Node(n1()));
        }
        let key = Key::Instance(instance("p"));
        engine.dirty.touch(key.clone(), due());
        engine.start_writes(Instant::now());
        assert_eq!(engine.dirty.busy().contains(&key), !busy);
        let waits = engine.waiting.get(&Place::Node(n1()));
        assert_eq!(waits.is_some_and(|keys| keys.contains_key(&key)), busy);
    }
}

/// A pod on `n2`, which has no address, and whose address it does not tell.
fn bare(name: &str) -> PodFixture {
    pod(name).change(|pod| {
        pod.node = Some("n2".into());
        pod.host_ip = None;
    })
}

fn take_pod(engine: &mut Engine, event: WatchEvent<PodFacts>) {
    engine.take(KubeEvent {
        at: Instant::now(),
        scope: None,
        change: Change::Pod(event),
    });
    engine.start_writes(Instant::now());
}

/// An engine in which an instance waits for the address of `n2`, and its key.
fn waiting() -> (Engine, Key) {
    let mut engine = ready();
    let node = NodeName::for_kubernetes(&"a".parse().unwrap(), "n2");
    let waits = bare("waits").lictor("service", "web").facts();
    take_pod(&mut engine, WatchEvent::Applied(waits));
    let id = instance("waits").id;
    let key = Key::Instance(InstanceKey { node, id });
    assert!(engine.waiting[&key.place()].contains_key(&key));
    (engine, key)
}

#[tokio::test]
async fn the_address_that_a_pod_tells_serves_others_though_it_is_not_created_itself() {
    let invalid = |pod: PodFixture| pod.lictor("service", "web").lictor("port", "none");
    let tells = |pod: PodFixture| pod.change(|pod| pod.host_ip = Some("192.168.0.2".into()));
    for (before, after) in [
        (invalid(bare("q")), invalid(tells(bare("q")))),
        (tells(bare("q")), invalid(tells(bare("q")))),
    ] {
        let (mut engine, key) = waiting();
        take_pod(&mut engine, WatchEvent::Applied(before.facts()));
        assert!(!engine.dirty.busy().contains(&key));
        take_pod(&mut engine, WatchEvent::Applied(after.facts()));
        assert!(engine.dirty.busy().contains(&key), "it goes on waiting");
    }
}

#[tokio::test]
async fn what_waits_no_more_leaves_nothing_behind() {
    let (mut engine, _) = waiting();
    let gone = WatchEvent::Deleted {
        object: bare("waits").lictor("service", "web").facts(),
        by_itself: true,
    };
    take_pod(&mut engine, gone);
    assert!(engine.waiting.is_empty());
}

#[tokio::test]
async fn what_comes_onto_an_empty_node_puts_off_its_end() {
    let mut engine = ready();
    engine.rules.vacancies.found(&n1(), Instant::now());
    let strangers = InstanceKey {
        node: n1(),
        id: InstanceId::observed("strangers"),
    };
    let service = crate::consul::wire::NodeService::default();
    let there = ObservedInstance::of(&service);
    engine.mirror.wrote_instance(&strangers, Some(there));
    engine.changed(vec![Key::Instance(strangers)]);
    assert!(engine.dirty.take_key(&Key::Node(n1())).is_some());
}

#[tokio::test]
async fn an_epoch_that_was_taken_casts_doubt_and_one_that_was_lost_ends_all_knowledge() {
    for (before, lost) in [(Before::Taken, false), (Before::Lost, true)] {
        let mut engine = ready();
        engine.drifted.insert(Key::Instance(instance("p")));
        let index = 9;
        engine.absorb(Done::Claimed(Ok(Claimed {
            index,
            before,
            retaken: false,
        })));
        assert_eq!(engine.fence.index(), Some(9));
        assert_eq!(engine.drifted.is_empty(), lost);
        assert_eq!(engine.mirror.node(&n1()).is_none(), lost);
        assert!(lost || engine.mirror.is_unsure(&Place::Node(n1())));
        assert!(lost || engine.unread.contains(&n1()));
    }
}

#[tokio::test]
async fn what_is_known_of_names_holds_until_another_process_has_written() {
    for (claims, memory) in [
        (&[Before::Lapsed] as &[Before], Memory::Holds),
        // Nobody else led: who was first is known here alone.
        (&[Before::Lost, Before::Lapsed], Memory::Holds),
        (&[Before::Taken], Memory::Superseded),
        (&[Before::Taken, Before::Lost], Memory::Outlived),
        (&[Before::Lost, Before::Taken], Memory::Superseded),
    ] {
        let mut engine = ready();
        for (index, before) in (9..).zip(claims) {
            engine.fence.begin(Instant::now());
            engine.absorb(Done::Claimed(Ok(Claimed {
                index,
                before: *before,
                retaken: false,
            })));
        }
        assert_eq!(engine.memory_of_names(), memory, "{claims:?}");
    }
}

#[tokio::test]
async fn one_write_that_is_allowed_again_lets_all_that_were_denied_go_on() {
    let mut engine = ready();
    let now = Instant::now();
    let keys = ["p", "q"].map(|pod| Key::Instance(instance(pod)));
    for key in &keys {
        engine.dirty.penalise(key, due(), now, 1.0);
        engine.denied.insert(key.clone());
    }
    engine.allowed(&keys[0], now);
    assert!(engine.dirty.take_key(&keys[1]).is_some());
    assert!(engine.denied.is_empty());
}

#[tokio::test]
async fn removals_whose_answer_was_lost_are_told_and_count_for_the_guard() {
    let (log, _guard) = Log::begin();
    let mut engine = ready();
    let epoch = 7;
    for number in 0..11 {
        let key = Key::Instance(instance(&format!("gone-{number}")));
        let removal = Removal {
            owner: Owner::pod(&"shop".into(), &"gone".into()),
            name: "web".into(),
            index: 3,
            why: Why::Found,
        };
        engine
            .lost_removals
            .insert(key, LostRemoval::Instance(removal, epoch));
    }
    let n2 = Key::Node(NodeName::for_kubernetes(&"a".parse().unwrap(), "n2"));
    engine.lost_removals.insert(n2, LostRemoval::Node(4, epoch));
    let keys: Vec<Key> = engine.lost_removals.keys().cloned().collect();
    for key in keys {
        let finding = plan::decide(&key, &engine.index, &engine.mirror, &engine.rules);
        engine.note(&key, &finding);
    }
    let told = log.removals();
    assert_eq!(told.len(), 12, "{told:?}");
    assert!(told.iter().all(|line| line.contains("epoch=7")), "{told:?}");
    engine.rules.guard.found(&Key::Instance(instance("next")));
    let now = Instant::now();
    assert!(engine.rules.guard.judge(5, now).is_empty());
    assert_eq!(engine.rules.guard.held(), Some((12, 16)));
}

#[tokio::test]
async fn a_check_that_was_removed_is_known_to_be_gone() {
    let mut engine = ready();
    let key = Key::Instance(instance("p"));
    let wanted = key.clone();
    let decide =
        |engine: &Engine| plan::decide(&wanted, &engine.index, &engine.mirror, &engine.rules).step;
    let Step::Put(write) = decide(&engine) else {
        panic!("not planned")
    };
    let (service, check) = (write.service.unwrap().0, write.checks[0].check.clone());
    let mut there = ObservedInstance::of(&wire_service(&instance("p"), &service));
    for id in [CheckKind::Readiness.id(&instance("p").id), surplus_id()] {
        there.checks.push(ObservedCheck {
            id: id.into(),
            check: check.clone(),
            well_formed: true,
            protocol: None,
            definition: None,
            modify_index: 3,
        });
    }
    engine.mirror.wrote_instance(&instance("p"), Some(there));
    let step = decide(&engine);
    assert!(matches!(&step, Step::Put(write) if write.fields == ["other checks"]));
    let (ops, tag) = (0..1, due());
    let id = engine.own.start();
    engine.absorb(Done::Wrote {
        id,
        epoch: 5,
        steps: vec![BatchedStep {
            key,
            step,
            ops,
            tag,
        }],
        outcome: Ok(TxnOutcome::Applied(vec![TxnResult::Nothing])),
        at: Instant::now(),
    });
    assert_eq!(decide(&engine), Step::Settled);
}

fn surplus_id() -> String {
    format!("{}:api", instance("p").id)
}

fn source(name: &str) -> Key {
    let name = SourceName::parse(name).unwrap();
    source_key(&Destination::new("payment"), name)
}

/// The intentions of `payment`, of which `web` is ours.
fn payment() -> ObservedIntentions {
    let entry = json!({
        "Kind": "service-intentions", "Name": "payment", "ModifyIndex": 4,
        "Sources": [{"Name": "web", "Action": "allow"}],
        "Meta": {"external-source": "kubernetes", "lictor-cluster": "a", "lictor-src-0": "shop/one=web"},
    });
    let entry = serde_json::from_value(entry).unwrap();
    ObservedIntentions::of(&"a".parse().unwrap(), entry)
}

fn know(engine: &mut Engine, there: Option<ObservedIntentions>, knowledge: Knowledge) {
    let rows = there.map(|there| (Destination::new("payment"), there));
    let ticket = engine.mirror.intentions.start_read();
    let rows = rows.into_iter().collect();
    engine
        .mirror
        .intentions
        .finish_read(&ticket, rows, knowledge, |_| false);
}

#[tokio::test]
async fn an_intention_whose_removal_was_answered_by_nobody_is_told_of_once() {
    let (log, _guard) = Log::begin();
    let mut engine = ready();
    let key = Key::Intentions(Destination::new("payment"));
    let gone = Gone {
        key: source("web"),
        owner: Owner::intention(&"shop".into(), &"one".into()),
        why: Why::Found,
    };
    let none = Vec::<String>::new();
    let mut plan = |there: Option<ObservedIntentions>, whole: bool| {
        let why = (Table::Intentions, "no rights".to_owned());
        engine.told_partial = (!whole).then_some(why).into_iter().collect();
        let lost = (vec![gone.clone()], 4, 7);
        engine.lost_entries.insert(key.clone(), lost);
        know(&mut engine, there, Knowledge::Whole);
        engine.plan_entry(key.clone(), due(), Instant::now());
        engine.plan_entry(key.clone(), due(), Instant::now());
        log.removals()
    };
    assert_eq!(plan(Some(payment()), true), none, "it is there");
    assert_eq!(plan(None, false), none, "it may only be hidden");
    let told = plan(None, true);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("epoch=7") && told[0].contains("index=4"),
        "{told:?}"
    );
}

#[tokio::test]
async fn what_was_known_in_part_is_planned_once_it_is_known_whole() {
    let mut engine = ready();
    let read = |engine: &mut Engine, knowledge: Knowledge| {
        let ticket = engine.mirror.intentions.start_read();
        engine.reads += 1;
        let rows = [(Destination::new("payment"), payment())].into();
        let rows = Ok((Rows::Intentions(rows), knowledge));
        engine.absorb_table(TableRead::of(Table::Intentions, ticket, rows));
        std::iter::from_fn(|| engine.dirty.take()).count()
    };
    let partial = || Knowledge::Partial("no rights".to_owned());
    read(&mut engine, partial());
    assert_eq!(read(&mut engine, partial()), 0);
    engine.tell_readiness();
    let said = engine.readiness.borrow().remarks.join(" ");
    assert!(said.contains("consul: no rights"), "{said}");
    let again = engine.tables[&Table::Intentions].sweeper.wake_at();
    assert!(again.is_some(), "it is never read again");
    assert_eq!(read(&mut engine, Knowledge::Whole), 1);
    assert_eq!(read(&mut engine, Knowledge::Whole), 0);
}

/// What is held for want of one kind waits for no other.
#[tokio::test]
async fn a_kind_that_is_missing_holds_up_only_what_it_could_claim() {
    let mut engine = ready();
    know(&mut engine, Some(payment()), Knowledge::Whole);
    let broken = || Broken {
        kind: BrokenKind::Missing,
        message: "no CRD".into(),
    };
    let take = |engine: &mut Engine, change: Change| {
        engine.take(KubeEvent {
            at: Instant::now(),
            scope: None,
            change,
        });
    };
    take(&mut engine, Change::Intention(WatchEvent::Broken(broken())));
    take(&mut engine, Change::Pod(WatchEvent::Broken(broken())));
    let held = Key::Instance(instance("gone"));
    engine.held = [held.clone(), source("web")].into();
    while engine.dirty.take().is_some() {}
    take(&mut engine, Change::Pod(WatchEvent::Healthy));
    let touched: Vec<Key> = std::iter::from_fn(|| engine.dirty.take())
        .map(|(key, _)| key)
        .collect();
    assert!(touched.contains(&held), "{touched:?}");
    assert!(!touched.contains(&source("web").planned()), "{touched:?}");
    assert_eq!(engine.held, [source("web")].into());
    take(&mut engine, Change::Intention(WatchEvent::Healthy));
    assert!(engine.held.is_empty());
}

/// Consul takes rules for requests only after the protocol, and both may be asked for at once.
#[tokio::test]
async fn rules_are_written_after_the_protocol_that_is_due_too() {
    let mut engine = ready();
    know(&mut engine, None, Knowledge::Whole);
    let ticket = engine.mirror.defaults.start_read();
    let none = std::collections::BTreeMap::new();
    let read = |engine: &mut Engine| {
        let defaults = &mut engine.mirror.defaults;
        defaults.finish_read(&ticket, none, Knowledge::Whole, |_| false);
    };
    read(&mut engine);
    let touched = &mut Touched::default();
    let speaks = json!({"service": "payment", "endpoints": [], "protocol": "http"});
    let registration = Registration::of(&object("payment", speaks));
    let rules = json!([{"name": "web", "permissions": [
        {"action": "allow", "http": {"pathExact": "/"}}]}]);
    let rules = json!({"destination": {"name": "payment"}, "sources": rules});
    engine
        .index
        .apply_intention(Intention::of(&object("rules", rules)), touched);
    engine.index.apply_registration(registration, touched);
    let (first, then) = (
        Key::Defaults("payment".parse().unwrap()),
        Key::Intentions(Destination::new("payment")),
    );
    engine.dirty.touch(first.clone(), due());
    // Whichever of the two has its turn first.
    engine.plan_entry(then.clone(), due(), Instant::now());
    assert!(engine.dirty.busy().contains(&first));
    assert!(!engine.dirty.busy().contains(&then));
    engine.plan_entry(then.clone(), due(), Instant::now());
    assert!(!engine.dirty.busy().contains(&then));
    while engine.dirty.take().is_some() {}
    // Whatever becomes of the first.
    let done = engine.jobs.join_next().await.unwrap().unwrap();
    engine.absorb(done);
    let due: Vec<Key> = std::iter::from_fn(|| engine.dirty.take())
        .map(|(key, _)| key)
        .collect();
    assert!(due.contains(&then), "{due:?}");
}

#[tokio::test]
async fn what_is_not_there_and_not_asked_for_is_forgotten() {
    let mut engine = ready();
    know(&mut engine, Some(payment()), Knowledge::Whole);
    let touch = |engine: &mut Engine, touched: Touched| {
        engine.touch(touched, Instant::now());
        let key = Key::Intentions(Destination::new("payment"));
        engine.dirty.take_key(&key);
        engine.plan_entry(key, due(), Instant::now());
    };
    let mut touched = Touched::default();
    let api = json!([{"name": "api", "action": "allow"}]);
    let api = json!({"destination": {"name": "payment"}, "sources": api});
    let vain = Intention::of(&object("vain", api));
    engine.index.apply_intention(vain, &mut touched);
    // Nothing can be written.
    engine.strange.insert(Kind::Pod);
    touch(&mut engine, touched);
    let mut touched = Touched::default();
    engine
        .index
        .remove_intention(&"shop".into(), &"vain".into(), true, &mut touched);
    let seen = engine.index.absence_of_entry(&source("api"));
    assert_eq!(seen, Absence::Seen);
    touch(&mut engine, touched);
    let seen = engine.index.absence_of_entry(&source("api"));
    assert_eq!(seen, Absence::Found);
}

/// Who deletes a CRD and applies it again has the objects to apply still.
#[tokio::test]
async fn what_is_missing_once_its_crd_is_back_waits_for_three_lists() {
    let say = |change: WatchEvent<_>| KubeEvent {
        at: Instant::now(),
        scope: None,
        change: Change::PreparedQuery(change),
    };
    for kind in [BrokenKind::Missing, BrokenKind::Leaving, BrokenKind::Failed] {
        let mut engine = ready();
        engine.take(say(WatchEvent::Broken(Broken {
            kind,
            message: "no CRD".into(),
        })));
        engine.take(say(WatchEvent::Listing));
        engine.take(say(WatchEvent::Listed {
            resource_version: "7".into(),
        }));
        let key = Key::Query(QueryName::new("nearest"));
        engine.rules.guard.found(&key);
        let passed = engine.rules.guard.judge(60, Instant::now());
        assert_eq!(passed.len(), usize::from(kind == BrokenKind::Failed));
    }
}
