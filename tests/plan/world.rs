//! A small world: Kubernetes, watches that lag and break, a Consul that other hands touch too, and
//! between them the index, the mirror and the plan, driven as the engine drives them.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use lictor::consul::wire;
use lictor::desired::index::{Holding, Index, Touched};
use lictor::desired::watches::Watch;
use lictor::model::key::Key;
use lictor::model::kind::Kind;
use lictor::model::names::{ClusterName, NodeName};
use lictor::model::text::Text;
use lictor::observed::content::NodeContent;
use lictor::observed::entry::{ObservedCheck, ObservedInstance, ObservedNode};
use lictor::observed::mirror::{Completeness, Mirror, Ticket};
use lictor::plan::batch::{Batch, BatchedStep, MAX_STEP_OPS};
use lictor::plan::gate::Why;
use lictor::plan::{self, Rules, Step};
use proptest::prelude::*;

use super::consul::{Consul, Left, is_ours};
use super::names::Names;
use super::objects::{Fault, Instance, Node, Objects, Place, Pod, Reg, namespace};

/// What may happen.
#[derive(Clone, Debug)]
pub enum Op {
    PutPod(usize, Pod),
    DeletePod(usize),
    PutReg(usize, Reg),
    DeleteReg(usize),
    PutNode(usize, Node),
    DeleteNode(usize),
    /// Events of a kind arrive.
    Deliver(Kind, usize),
    Break(Kind),
    /// A broken watch goes on without loss.
    Heal(Kind),
    BeginList(Kind),
    EndList(Kind),
    /// So many keys are planned, and what comes of it written.
    Write(usize, Fate),
    Acknowledge,
    /// What was on its way arrives at last.
    Arrive,
    BeginRead(usize),
    EndRead,
    BeginNodeList,
    EndNodeList,
    Hand(Hand),
    Crash,
}

/// What becomes of a transaction.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    Answered,
    /// Carried out at once, answered later.
    Slow,
    /// Carried out, and the answer is lost.
    AnswerLost,
    /// Neither.
    Lost,
    /// The answer is lost, and it is carried out later.
    Late,
}

/// What another hand does in Consul, by number of the entry.
#[derive(Clone, Debug)]
pub enum Hand {
    /// Adds an entry of its own at a key that a pod may claim.
    Squat(usize, usize),
    /// Adds an entry of its own on one of our nodes.
    AddBeside(usize),
    /// Takes the name of a node for another cluster.
    SquatNode(usize),
    /// Gives it back.
    LeaveNode(usize),
    Retag(usize),
    Fail(usize),
    RemoveCheck(usize),
    RemoveInstance(usize),
    RemoveNode(usize),
    /// Registers the node without meta.
    EraseNode(usize),
    /// Puts an instance into maintenance.
    Maintain(usize),
    /// A check by our own name that Lictor does not write.
    Stray(usize),
    /// Takes away what others have added.
    Leave,
}

enum Event {
    Pod(usize, Option<Pod>),
    Reg(usize, Option<Reg>),
    Node(usize, Option<Node>),
}

struct Flight {
    steps: Vec<BatchedStep<()>>,
    outcome: Result<Vec<Vec<Left>>, Vec<usize>>,
}

pub struct World {
    pub objects: Objects,
    pub consul: Consul,
    pub index: Index,
    pub mirror: Mirror,
    rules: Rules,
    pub names: Names,
    queues: BTreeMap<usize, VecDeque<Event>>,
    /// The objects as they were when a list began: all pages are of one version.
    snapshots: BTreeMap<usize, Objects>,
    /// The kinds of which this process has had a whole list.
    listed: BTreeSet<usize>,
    dirty: BTreeSet<Key>,
    on_node: BTreeMap<NodeName, BTreeSet<Key>>,
    unread: BTreeSet<NodeName>,
    busy: HashSet<Key>,
    flights: VecDeque<Flight>,
    late: VecDeque<Vec<BatchedStep<()>>>,
    reads: VecDeque<(Ticket, NodeName, NodeContent)>,
    lists: VecDeque<(Ticket, BTreeSet<NodeName>)>,
    /// Our nodes whose meta another hand erased.
    erased: BTreeSet<String>,
    /// Since which step the objects ask for a place without a break, and which one does. Each kind is
    /// watched on its own, so that the end of one claim may arrive before another that is older.
    wanted_since: BTreeMap<Place, (Option<String>, usize)>,
    /// When all that happened in Kubernetes had arrived last.
    arrived_at: usize,
    step: usize,
}

fn cluster() -> ClusterName {
    "a".parse().unwrap()
}

/// In this world there is nothing that is on no node.
fn node_of(key: &Key) -> &NodeName {
    match key {
        Key::Node(node) => node,
        Key::Instance(instance) => &instance.node,
        other => panic!("{other} is on no node"),
    }
}

fn node_name(slot: usize) -> NodeName {
    NodeName::for_kubernetes(&cluster(), &format!("n{slot}.example"))
}

impl World {
    /// Everything is listed and read; there is nothing yet.
    pub fn new() -> Self {
        Self::judging(Names::default())
    }

    /// The same where names are judged.
    pub fn judging(names: Names) -> Self {
        let mut world = Self {
            objects: Objects::default(),
            consul: Consul::default(),
            index: names.index(),
            mirror: Mirror::new(cluster()),
            rules: Rules::default(),
            names,
            queues: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            listed: BTreeSet::new(),
            dirty: BTreeSet::new(),
            on_node: BTreeMap::new(),
            unread: BTreeSet::new(),
            busy: HashSet::new(),
            flights: VecDeque::new(),
            late: VecDeque::new(),
            reads: VecDeque::new(),
            lists: VecDeque::new(),
            erased: BTreeSet::new(),
            wanted_since: BTreeMap::new(),
            arrived_at: 0,
            step: 0,
        };
        world.list_and_read();
        world
    }

    pub fn apply(&mut self, op: Op) {
        self.step += 1;
        match op {
            Op::PutPod(slot, pod) => {
                // A pod neither moves nor comes back to life: what does is another one.
                if let Some(before) = self.objects.pods.get(&slot)
                    && (before.life, before.node) != (pod.life, pod.node)
                {
                    self.objects.pods.remove(&slot);
                    self.changed();
                    self.tell(Kind::Pod, Event::Pod(slot, None));
                }
                self.objects.pods.insert(slot, pod.clone());
                self.changed();
                self.tell(Kind::Pod, Event::Pod(slot, Some(pod)));
            }
            Op::DeletePod(slot) => {
                if self.objects.pods.remove(&slot).is_some() {
                    self.changed();
                    self.tell(Kind::Pod, Event::Pod(slot, None));
                }
            }
            Op::PutReg(slot, reg) => {
                if let Some(before) = self.objects.regs.get(&slot)
                    && (before.life, before.created) != (reg.life, reg.created)
                {
                    self.objects.regs.remove(&slot);
                    self.changed();
                    self.tell(Kind::Registration, Event::Reg(slot, None));
                }
                self.objects.regs.insert(slot, reg.clone());
                self.changed();
                self.tell(Kind::Registration, Event::Reg(slot, Some(reg)));
            }
            Op::DeleteReg(slot) => {
                if self.objects.regs.remove(&slot).is_some() {
                    self.changed();
                    self.tell(Kind::Registration, Event::Reg(slot, None));
                }
            }
            Op::PutNode(slot, node) => {
                self.objects.nodes.insert(slot, node);
                self.tell(Kind::Node, Event::Node(slot, Some(node)));
            }
            Op::DeleteNode(slot) => {
                if self.objects.nodes.remove(&slot).is_some() {
                    self.tell(Kind::Node, Event::Node(slot, None));
                }
            }
            Op::Deliver(kind, count) => self.deliver(kind, count),
            Op::Break(kind) => {
                self.index.watches.broken(kind, "timeout".to_owned());
                self.renew(kind);
            }
            Op::Heal(kind) => {
                self.index.watches.healthy(kind);
                self.renew(kind);
                self.complete_again();
            }
            Op::BeginList(kind) => self.begin_list(kind),
            Op::EndList(kind) => self.end_list(kind),
            Op::Write(count, fate) => self.write(count, fate),
            Op::Acknowledge => {
                self.names.keep(&mut self.index);
                self.acknowledge();
            }
            Op::Arrive => self.arrive(),
            Op::BeginRead(slot) => self.begin_read(&node_name(slot)),
            Op::EndRead => self.end_read(),
            Op::BeginNodeList => self.begin_node_list(),
            Op::EndNodeList => self.end_node_list(),
            Op::Hand(hand) => self.hand(&hand),
            Op::Crash => self.crash(),
        }
        if self.queues.values().all(VecDeque::is_empty) && self.index.watches.all_complete() {
            self.arrived_at = self.step;
        }
    }

    /// The objects changed: what they ask for without a break is kept in mind.
    fn changed(&mut self) {
        let wanted = self.objects.wanted();
        let owner = |place: &Place| {
            wanted
                .get(place)
                .map(|it| it.meta.get("lictor-owner").cloned())
        };
        self.wanted_since
            .retain(|place, (by, _)| owner(place).as_ref() == Some(by));
        for (place, instance) in &wanted {
            let by = instance.meta.get("lictor-owner").cloned();
            let since = (by, self.step);
            self.wanted_since.entry(place.clone()).or_insert(since);
        }
    }

    // === Kubernetes ===

    fn tell(&mut self, kind: Kind, event: Event) {
        self.queues
            .entry(kind as usize)
            .or_default()
            .push_back(event);
    }

    fn deliver(&mut self, kind: Kind, count: usize) {
        if *self.index.watches.state(kind) != Watch::Complete {
            return;
        }
        for _ in 0..count {
            let queue = self.queues.entry(kind as usize).or_default();
            let Some(event) = queue.pop_front() else {
                return;
            };
            let mut touched = Touched::default();
            match event {
                Event::Pod(slot, Some(pod)) => self.index.apply_pod(pod.facts(slot), &mut touched),
                Event::Pod(slot, None) => {
                    let name = format!("p{slot}").into();
                    self.index
                        .remove_pod(&namespace(slot).into(), &name, &mut touched);
                }
                Event::Reg(slot, Some(reg)) => {
                    self.index
                        .apply_registration(reg.registration(slot), &mut touched);
                }
                Event::Reg(slot, None) => {
                    let name = format!("r{slot}").into();
                    self.index.remove_registration(
                        &namespace(slot).into(),
                        &name,
                        true,
                        &mut touched,
                    );
                }
                Event::Node(slot, Some(node)) => {
                    self.index.apply_node(node.facts(slot), &mut touched);
                }
                Event::Node(slot, None) => {
                    let name = format!("n{slot}.example").into();
                    self.index.remove_node(&name, &mut touched);
                }
            }
            self.touch(touched);
        }
    }

    /// A list begins, and brings what the watch had not told yet.
    fn begin_list(&mut self, kind: Kind) {
        self.index.begin_list(kind);
        self.renew(kind);
        self.snapshots.insert(kind as usize, self.objects.clone());
        self.queues.remove(&(kind as usize));
        self.list(kind, true);
    }

    /// Pages of a list: the first half of the objects, or all.
    fn list(&mut self, kind: Kind, half: bool) {
        let mut touched = Touched::default();
        let shown = |slot: &usize| !half || slot.is_multiple_of(2);
        let objects = self.snapshots[&(kind as usize)].clone();
        match kind {
            Kind::Pod => {
                for (slot, pod) in objects.pods.iter().filter(|(slot, _)| shown(slot)) {
                    self.index.apply_pod(pod.facts(*slot), &mut touched);
                }
            }
            Kind::Registration => {
                for (slot, reg) in objects.regs.iter().filter(|(slot, _)| shown(slot)) {
                    self.index
                        .apply_registration(reg.registration(*slot), &mut touched);
                }
            }
            Kind::Node => {
                for (slot, node) in objects.nodes.iter().filter(|(slot, _)| shown(slot)) {
                    self.index.apply_node(node.facts(*slot), &mut touched);
                }
            }
            Kind::Namespace => Names::list(&mut self.index),
            // There are none in this world.
            Kind::Intention | Kind::PreparedQuery | Kind::Policy | Kind::Lease => {}
        }
        self.touch(touched);
    }

    fn end_list(&mut self, kind: Kind) {
        if !self.snapshots.contains_key(&(kind as usize)) {
            return;
        }
        self.list(kind, false);
        self.snapshots.remove(&(kind as usize));
        self.listed.insert(kind as usize);
        let mut touched = Touched::default();
        self.index.end_list(kind, &mut touched);
        self.touch(touched);
        self.renew(kind);
        self.complete_again();
    }

    /// How well policies and namespaces are known may have changed.
    fn renew(&mut self, kind: Kind) {
        let mut touched = Touched::default();
        self.index.renew_admission(kind, &mut touched);
        self.touch(touched);
    }

    fn complete_again(&mut self) {
        if self.index.watches.all_complete() {
            self.dirty.extend(self.all_keys());
        }
    }

    fn touch(&mut self, touched: Touched) {
        for let_go in &touched.let_go {
            let Holding { owner, node } = &let_go.holding;
            for key in self.mirror.held_by(owner, node.as_ref()) {
                if let Key::Instance(key) = &key
                    && let Some(held) = plan::held_under(key, &self.mirror)
                {
                    self.index.withdraw(key, &held, let_go);
                }
            }
        }
        for Holding { owner, node } in &touched.holdings {
            let held = self.mirror.held_by(owner, node.as_ref());
            self.dirty.extend(held);
        }
        for key in &touched.keys {
            if let Key::Node(node) = key {
                self.go_on(node);
            }
        }
        // What is on no node is not of this world.
        let on_node = |key: &Key| matches!(key, Key::Node(_) | Key::Instance(_));
        self.dirty.extend(touched.keys.into_iter().filter(on_node));
    }

    fn all_keys(&self) -> Vec<Key> {
        self.index
            .claimed_keys()
            .chain(self.mirror.keys())
            .collect()
    }

    // === writes ===

    fn may_write(&self) -> bool {
        self.index.watches.all_listed()
            && self.mirror.completeness() == Completeness::Complete
            && self.index.admission.is_settled()
    }

    fn write(&mut self, count: usize, fate: Fate) {
        if !self.may_write() {
            return;
        }
        let mut batch = Batch::default();
        let mut again = Vec::new();
        for _ in 0..count {
            let Some(key) = self.dirty.pop_first() else {
                break;
            };
            if self.busy.contains(&key) {
                again.push(key);
            } else if !self.plan(key, &mut batch) {
                break;
            }
        }
        self.dirty.extend(again);
        if !batch.is_empty() {
            self.carry_out(batch, fate);
        }
    }

    /// Plans a key; whether the batch has room for more.
    fn plan(&mut self, key: Key, batch: &mut Batch<()>) -> bool {
        let finding = plan::decide(&key, &self.index, &self.mirror, &self.rules);
        match &finding.step {
            // How many go together is the guard's affair: here all that may go goes.
            Step::Held(hold) if hold.is_guards() => {
                self.rules.guard.found(&key);
                self.dirty.extend(self.rules.guard.release());
                return true;
            }
            Step::Settled
            | Step::OwnedByAnother { .. }
            | Step::Held(_)
            | Step::KeptOut(_)
            | Step::Lingering => {
                self.rules.guard.lapsed(&key);
                if let (Key::Instance(key), Step::Settled, None) =
                    (&key, &finding.step, &finding.owner)
                {
                    self.index.forget_absence(key);
                }
                return true;
            }
            Step::Waiting | Step::NoNodeAddress { .. } => {
                self.wait(key);
                return true;
            }
            Step::Put(write) if write.creates() && self.mirror.node(node_of(&key)).is_none() => {
                let node = Key::Node(node_of(&key).clone());
                if self.busy.contains(&node) {
                    self.wait(key);
                    return true;
                }
                if !batch.contains(&node) {
                    let first = plan::decide(&node, &self.index, &self.mirror, &self.rules);
                    assert!(matches!(first.step, Step::PutNode(_)), "{first:?}");
                    self.dirty.remove(&node);
                    if batch.push(node.clone(), first.step, ()).is_err() {
                        self.dirty.extend([node, key]);
                        return false;
                    }
                }
            }
            Step::Put(_) | Step::PutNode(_) => {}
            Step::Remove(removal) => self.judge_removal(&key, removal.why),
            Step::RemoveNode(_) => panic!("{key} was not empty long enough"),
        }
        let kept = key.clone();
        if batch.push(key, finding.step, ()).is_err() {
            self.dirty.insert(kept);
            return false;
        }
        true
    }

    fn wait(&mut self, key: Key) {
        let node = node_of(&key).clone();
        self.on_node.entry(node).or_default().insert(key);
    }

    /// Removals are judged by what the plan cannot know: the truth.
    fn judge_removal(&self, key: &Key, why: Why) {
        // What says who may claim what claims nothing itself.
        let claims = |kind: &Kind| !matches!(kind, Kind::Namespace | Kind::Policy);
        for kind in Kind::ALL.into_iter().filter(claims) {
            let reliable = match self.index.watches.state(kind) {
                Watch::Complete => true,
                // What was seen going is gone, whatever a further list will show.
                Watch::Listing => why == Why::Seen && self.listed.contains(&(kind as usize)),
                Watch::Broken(_) => false,
            };
            assert!(
                reliable,
                "{key} is removed ({why:?}) with {kind:?} incomplete"
            );
        }
        assert_eq!(self.mirror.completeness(), Completeness::Complete);
        // Here no policy changes, and no name is let go.
        assert_ne!(why, Why::NotAllowed, "{key} was let in and goes");
        let Key::Instance(key) = key else {
            panic!("a node is removed: {key}");
        };
        let place = (key.node.to_string(), key.id.to_string());
        if let Some((_, since)) = self.wanted_since.get(&place) {
            assert!(
                *since > self.arrived_at,
                "{place:?} is removed and was wanted all the time"
            );
        }
    }

    fn carry_out(&mut self, batch: Batch<()>, fate: Fate) {
        let (txn, steps) = batch.into_parts();
        assert!(txn.len() <= MAX_STEP_OPS);
        let keys: BTreeSet<&Key> = steps.iter().map(|step| &step.key).collect();
        assert_eq!(keys.len(), steps.len(), "a key twice in one transaction");
        self.busy.extend(steps.iter().map(|step| step.key.clone()));
        let outcome = match fate {
            Fate::Answered | Fate::Slow | Fate::AnswerLost => self.execute(&steps),
            Fate::Lost | Fate::Late => Ok(Vec::new()),
        };
        match fate {
            Fate::Answered => self.answer(Flight { steps, outcome }),
            Fate::Slow => self.flights.push_back(Flight { steps, outcome }),
            Fate::AnswerLost | Fate::Lost => self.doubt(&steps),
            Fate::Late => {
                self.doubt(&steps);
                self.late.push_back(steps);
            }
        }
    }

    /// Consul carries out a transaction, which must leave alone what is not ours.
    fn execute(&mut self, steps: &[BatchedStep<()>]) -> Result<Vec<Vec<Left>>, Vec<usize>> {
        let before = self.consul.foreign(&self.erased);
        let outcome = self.consul.apply(steps);
        let repaired = |name: &String| {
            let node = self.consul.nodes.get(name);
            node.is_none_or(|node| node.meta.get("lictor-cluster").is_some())
        };
        let erased = self.erased.clone();
        self.erased.retain(|name| !repaired(name));
        assert_eq!(before, self.consul.foreign(&erased), "not ours: {steps:?}");
        outcome
    }

    fn doubt(&mut self, steps: &[BatchedStep<()>]) {
        for step in steps {
            self.busy.remove(&step.key);
            self.mirror.doubt(node_of(&step.key));
            self.unread.insert(node_of(&step.key).clone());
            self.dirty.insert(step.key.clone());
            self.go_on(node_of(&step.key));
        }
    }

    fn answer(&mut self, Flight { steps, outcome }: Flight) {
        for step in &steps {
            self.busy.remove(&step.key);
        }
        match outcome {
            Ok(left) => {
                for (step, left) in steps.iter().zip(left) {
                    self.applied(&step.key, left);
                }
            }
            Err(at_fault) => {
                for (at, step) in steps.iter().enumerate() {
                    if at_fault.contains(&at) {
                        self.mirror.doubt(node_of(&step.key));
                        self.unread.insert(node_of(&step.key).clone());
                    }
                }
            }
        }
        for step in steps {
            self.go_on(node_of(&step.key));
            self.dirty.insert(step.key);
        }
    }

    fn applied(&mut self, key: &Key, left: Vec<Left>) {
        if left.iter().any(|left| matches!(left, Left::Dropped)) {
            self.mirror.doubt(node_of(key));
            self.unread.insert(node_of(key).clone());
            return;
        }
        match key {
            Key::Node(name) => {
                let before = self.mirror.node(name).cloned();
                let mut checks = before.as_ref().map_or(Vec::new(), |n| n.checks.clone());
                let mut node = before;
                for left in left {
                    match left {
                        Left::Node(written) => node = Some(ObservedNode::of(&written)),
                        Left::Check(check) => {
                            replace(&mut checks, ObservedCheck::of(&check, None));
                        }
                        _ => {}
                    }
                }
                if let Some(mut node) = node {
                    node.checks = checks;
                    self.mirror.wrote_node(name, node);
                }
            }
            Key::Instance(key) => {
                let before = self.mirror.instance(key).cloned();
                let mut checks = before.as_ref().map_or(Vec::new(), |i| i.checks.clone());
                let mut instance = before;
                for left in left {
                    match left {
                        Left::Service(written) => instance = Some(ObservedInstance::of(&written)),
                        Left::Check(check) => {
                            replace(&mut checks, ObservedCheck::of(&check, Some(&key.id)));
                        }
                        Left::NoCheck(id) => checks.retain(|check| check.id != id),
                        Left::Nothing => {
                            self.mirror.wrote_instance(key, None);
                            self.index.forget_absence(key);
                            return;
                        }
                        _ => {}
                    }
                }
                if let Some(mut instance) = instance {
                    instance.checks = checks;
                    self.mirror.wrote_instance(key, Some(instance));
                }
            }
            other => panic!("{other} is on no node"),
        }
    }

    fn go_on(&mut self, node: &NodeName) {
        self.dirty
            .extend(self.on_node.remove(node).unwrap_or_default());
    }

    fn acknowledge(&mut self) {
        if let Some(flight) = self.flights.pop_front() {
            self.answer(flight);
        }
    }

    fn arrive(&mut self) {
        if let Some(steps) = self.late.pop_front() {
            // Whatever comes of it, nobody is told.
            let _ = self.execute(&steps);
        }
    }

    // === reads ===

    fn begin_read(&mut self, name: &NodeName) {
        let ticket = self.mirror.start_read();
        let content = self.consul.content(name);
        self.reads.push_back((ticket, name.clone(), content));
    }

    fn end_read(&mut self) {
        let Some((ticket, name, content)) = self.reads.pop_front() else {
            return;
        };
        let changed = self.mirror.finish_read(ticket, &name, &content, &self.busy);
        self.found(changed);
        self.go_on(&name);
    }

    fn begin_node_list(&mut self) {
        let ticket = self.mirror.start_read();
        let names = self.consul.names(&cluster());
        self.lists.push_back((ticket, names));
    }

    fn end_node_list(&mut self) {
        let Some((ticket, names)) = self.lists.pop_front() else {
            return;
        };
        let changed = self.mirror.finish_list(ticket, &names, &self.busy);
        self.found(changed);
        let unknown = names
            .into_iter()
            .filter(|name| self.mirror.node(name).is_none());
        self.unread.extend(unknown);
    }

    fn found(&mut self, changed: Vec<Key>) {
        for key in changed {
            if let Key::Node(node) = &key {
                let on_it = self.all_keys().into_iter();
                let on_it: Vec<Key> = on_it.filter(|key| node_of(key) == node).collect();
                self.dirty.extend(on_it);
            }
            self.dirty.insert(key);
        }
    }

    fn list_and_read(&mut self) {
        for kind in Kind::ALL {
            self.begin_list(kind);
            self.end_list(kind);
        }
        self.read_all();
        self.mirror.complete();
        self.names.settle(&mut self.index, &self.mirror);
        self.dirty.extend(self.all_keys());
        self.arrived_at = self.step;
    }

    /// Reads our nodes anew, after what is under way.
    fn read_all(&mut self) {
        while !self.reads.is_empty() {
            self.end_read();
        }
        while !self.lists.is_empty() {
            self.end_node_list();
        }
        self.begin_node_list();
        self.end_node_list();
        let known = self.mirror.node_names().cloned();
        let names: BTreeSet<_> = known.chain(self.consul.names(&cluster())).collect();
        for name in names {
            self.begin_read(&name);
            self.end_read();
        }
    }

    /// The process dies, and another one starts.
    pub fn crash(&mut self) {
        // What only the process that died knew to be ours is nobody's now.
        for name in std::mem::take(&mut self.erased) {
            let ours = |(place, service): (&Place, &wire::NodeService)| {
                place.0 == name && is_ours(place, service)
            };
            if self.consul.services.iter().any(ours) {
                self.erased.insert(name);
            } else {
                self.consul.remove_node(&name);
            }
        }
        self.index = self.names.index();
        self.mirror = Mirror::new(cluster());
        self.queues.clear();
        self.snapshots.clear();
        self.listed.clear();
        self.dirty.clear();
        self.on_node.clear();
        self.unread.clear();
        self.busy.clear();
        self.flights.clear();
        self.reads.clear();
        self.lists.clear();
        self.list_and_read();
    }

    // === other hands ===

    fn hand(&mut self, hand: &Hand) {
        let ours: Vec<Place> = self.consul.ours().into_keys().collect();
        let chosen = |number: usize| ours.get(number % ours.len().max(1)).cloned();
        match *hand {
            Hand::Squat(node, pod) => {
                let node = node_name(node).to_string();
                let id = format!("a.{}.web.p{pod}", namespace(pod));
                let free = !self
                    .consul
                    .services
                    .contains_key(&(node.clone(), id.clone()));
                if free && self.consul.nodes.contains_key(&node) {
                    self.consul.put_service(&node, stranger(&id));
                }
            }
            Hand::AddBeside(node) => {
                let node = node_name(node).to_string();
                if self.consul.nodes.contains_key(&node) {
                    self.consul.put_service(&node, stranger("by-hand"));
                }
            }
            Hand::SquatNode(node) => {
                let name = node_name(node);
                // Nothing binds a write to the node that it is on: one that was planned before another
                // cluster took a node that went a moment before comes onto it (docs/reliability.md).
                let is_known = self.mirror.node(&name).is_some();
                let node = name.to_string();
                if !is_known && !self.consul.nodes.contains_key(&node) {
                    self.consul.put_node(&node, &[("lictor-cluster", "b")]);
                }
            }
            Hand::LeaveNode(node) => self.leave_node(node_name(node).as_ref()),
            Hand::Retag(number) => {
                if let Some(place) = chosen(number) {
                    let mut service = self.consul.services[&place].clone();
                    service.tags = Box::new(["by-hand".into()]);
                    service.port += 1;
                    self.consul.put_service(&place.0, service);
                }
            }
            Hand::Fail(number) => {
                if let Some(mut check) = chosen(number).and_then(|place| self.check_of(&place)) {
                    check.status = "critical".into();
                    check.name = "by hand".into();
                    self.consul.put_check(check);
                }
            }
            Hand::RemoveCheck(number) => {
                if let Some((node, id)) = chosen(number) {
                    self.consul.checks.remove(&(node, format!("{id}:ready")));
                }
            }
            Hand::RemoveInstance(number) => {
                // On a node without our mark the instances alone may tell that it is ours.
                let marked = |place: &Place| {
                    let node = self.consul.nodes.get(&place.0);
                    node.is_some_and(|node| node.meta.get("lictor-cluster").is_some())
                };
                if let Some(place) = chosen(number).filter(marked) {
                    self.consul.remove_service(&place);
                }
            }
            Hand::RemoveNode(node) => {
                let node = node_name(node).to_string();
                // Not with what others put on it, which is no matter of ours.
                let foreign =
                    |(at, s): (&Place, &wire::NodeService)| at.0 == node && !is_ours(at, s);
                if !self.consul.services.iter().any(foreign) {
                    self.erased.remove(&node);
                    self.consul.remove_node(&node);
                }
            }
            Hand::EraseNode(node) => {
                let name = node_name(node);
                let index = self.consul.nodes.get(name.as_ref()).map(|n| n.create_index);
                let known = self.mirror.node(&name);
                let marked = known.is_some_and(|node| {
                    let mark = node.node.meta.get("lictor-cluster");
                    mark.is_some_and(|mark| **mark == *"a") && Some(node.create_index) == index
                });
                if marked {
                    self.consul.put_node(name.as_ref(), &[]);
                    self.erased.insert(name.to_string());
                }
            }
            Hand::Maintain(number) => {
                if let Some(place) = chosen(number) {
                    let id = format!("_service_maintenance:{}", place.1);
                    self.put_critical(place, &id);
                }
            }
            Hand::Stray(number) => {
                if let Some(place) = chosen(number) {
                    let id = format!("{}:stray", place.1);
                    self.put_critical(place, &id);
                }
            }
            Hand::Leave => self.strangers_leave(),
        }
    }

    fn put_critical(&mut self, (node, id): Place, check_id: &str) {
        let check = wire::HealthCheck {
            node: Text::from(node),
            check_id: check_id.into(),
            status: "critical".into(),
            service_id: id.into(),
            ..wire::HealthCheck::default()
        };
        self.consul.put_check(check);
    }

    fn check_of(&self, (node, id): &Place) -> Option<wire::HealthCheck> {
        let check = (node.clone(), format!("{id}:ready"));
        self.consul.checks.get(&check).cloned()
    }

    fn leave_node(&mut self, name: &str) {
        let mark = |node: &wire::Node| node.meta.get("lictor-cluster").cloned();
        if self.consul.nodes.get(name).and_then(mark).as_deref() == Some("b") {
            self.consul.remove_node(name);
        }
    }

    fn strangers_leave(&mut self) {
        let strangers = self.consul.services.iter();
        let strangers: Vec<Place> = strangers
            .filter(|(place, service)| !is_ours(place, service))
            .map(|(place, _)| place.clone())
            .collect();
        for place in strangers {
            self.consul.remove_service(&place);
        }
        let names: Vec<String> = self.consul.nodes.keys().cloned().collect();
        for name in names {
            self.leave_node(&name);
        }
    }

    // === the end ===

    /// All that is under way comes to an end, and nothing more happens.
    pub fn settle(&mut self) {
        self.step += 1;
        while !self.flights.is_empty() {
            self.acknowledge();
        }
        while !self.late.is_empty() {
            self.arrive();
        }
        for kind in Kind::ALL {
            self.end_list(kind);
            self.index.watches.healthy(kind);
            self.renew(kind);
            if *self.index.watches.state(kind) != Watch::Complete {
                self.begin_list(kind);
                self.end_list(kind);
            }
            self.deliver(kind, usize::MAX);
        }
        self.confirm_missing_nodes();
        self.complete_again();
        self.arrived_at = self.step;
        self.read_all();
        for _ in 0..50 {
            while let Some(node) = self.unread.pop_first() {
                self.begin_read(&node);
                self.end_read();
            }
            self.write(usize::MAX, Fate::Answered);
            if self.dirty.is_empty() && self.unread.is_empty() {
                self.names.keep(&mut self.index);
                self.judge_the_end();
                return;
            }
        }
        panic!("does not settle: {:?} {:?}", self.dirty, self.unread);
    }

    /// Lists pods anew where a node is missing that was not seen going, as the engine asks for it.
    fn confirm_missing_nodes(&mut self) {
        let mut missed = self.index.missed_nodes();
        if missed.any(|node| !self.index.is_loss_confirmed(&node)) {
            drop(missed);
            self.begin_list(Kind::Pod);
            self.end_list(Kind::Pod);
        }
    }

    fn judge_the_end(&self) {
        assert!(self.on_node.is_empty(), "forgotten: {:?}", self.on_node);
        // What one write at a time came to, a total pass does not find wanting.
        for key in self.all_keys() {
            let finding = plan::decide(&key, &self.index, &self.mirror, &self.rules);
            let done = matches!(
                finding.step,
                Step::Settled | Step::OwnedByAnother { .. } | Step::Lingering
            );
            assert!(done, "{key} is left: {finding:?}");
        }
        // The mirror shows Consul as it is.
        let mut fresh = Mirror::new(cluster());
        for name in self.consul.names(&cluster()) {
            let ticket = fresh.start_read();
            let content = self.consul.content(&name);
            let _ = fresh.finish_read(ticket, &name, &content, &HashSet::new());
        }
        assert_eq!(
            fresh.keys().collect::<Vec<_>>(),
            self.mirror.keys().collect::<Vec<_>>()
        );
        assert_eq!(fresh.owned_instances(), self.mirror.owned_instances());
    }

    /// Consul is what objects without a fault ask for, but where others hold a key or a node.
    pub fn judge_consul(&self) {
        let mut wanted = self.objects.wanted();
        // What was under way when another cluster took the node came onto it all the same, and is then
        // left alone there for as long as something asks for it.
        let mut stranded = BTreeSet::new();
        wanted.retain(|place, _| {
            let stranger = self.consul.services.get(place);
            let squatted = stranger.is_some_and(|service| !is_ours(place, service));
            let node = self.consul.nodes.get(&place.0);
            let mark = node.and_then(|node| node.meta.get("lictor-cluster"));
            let is_our_node = mark.is_none_or(|mark| **mark == *"a");
            if !is_our_node {
                stranded.insert(place.clone());
            }
            !squatted && is_our_node
        });
        let ours = self.consul.ours();
        for (place, instance) in &wanted {
            assert_eq!(ours.get(place), Some(instance), "{place:?}");
        }
        let is_surplus = |at: &&Place| !wanted.contains_key(*at) && !stranded.contains(*at);
        let surplus: Vec<_> = ours.keys().filter(is_surplus).collect();
        assert!(surplus.is_empty(), "left over: {surplus:?}");
        self.judge_nodes(wanted.keys());
    }

    fn judge_nodes<'a>(&self, used: impl Iterator<Item = &'a Place>) {
        for name in used.map(|place| &place.0).collect::<BTreeSet<_>>() {
            let node = &self.consul.nodes[name];
            let mark = node.meta.get("lictor-cluster").map(|mark| &**mark);
            assert_eq!(mark, Some("a"), "{name}");
            let Some(slot) = name.strip_prefix("lictor-a--n") else {
                assert_eq!(&*node.address, "127.0.0.1");
                continue;
            };
            let slot: usize = slot.strip_suffix(".example").unwrap().parse().unwrap();
            let known = self.objects.nodes.get(&slot);
            let check = &self.consul.checks[&(name.clone(), "lictor-node".to_owned())];
            let ready = known.is_some_and(|node| node.ready);
            assert_eq!(&*check.status, if ready { "passing" } else { "critical" });
            if let Some(known) = known {
                let zone = node.meta.get("topology-zone").map(ToString::to_string);
                assert_eq!(zone, known.zone.map(|zone| format!("z{zone}")));
                assert_eq!(*node.address, *format!("192.168.0.{slot}"));
            }
        }
    }

    /// Removes every fault, so that what is wanted is known again.
    pub fn mend(&mut self) {
        let pods: Vec<_> = self.objects.pods.clone().into_iter().collect();
        for (slot, pod) in pods {
            let fault = Fault::None;
            self.apply(Op::PutPod(slot, Pod { fault, ..pod }));
        }
        let regs: Vec<_> = self.objects.regs.clone().into_iter().collect();
        for (slot, reg) in regs {
            let fault = Fault::None;
            self.apply(Op::PutReg(slot, Reg { fault, ..reg }));
        }
    }

    /// The service entries of ours, and everything else, without indexes.
    pub fn picture(&self) -> BTreeMap<Place, Instance> {
        self.consul.ours()
    }
}

fn stranger(id: &str) -> wire::NodeService {
    wire::NodeService {
        id: id.into(),
        service: "web".into(),
        port: 1,
        meta: [(Text::from("owner"), Text::from("somebody"))]
            .into_iter()
            .collect(),
        ..wire::NodeService::default()
    }
}

fn replace(checks: &mut Vec<ObservedCheck>, check: ObservedCheck) {
    checks.retain(|known| known.id != check.id);
    checks.push(check);
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("objects", &self.objects)
            .finish_non_exhaustive()
    }
}

// === what may happen ===

pub fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::Pod),
        2 => Just(Kind::Registration),
        1 => Just(Kind::Node),
    ]
}

/// Those that say who may claim what, too.
pub fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => kind(),
        1 => Just(Kind::Namespace),
        1 => Just(Kind::Policy),
    ]
}

pub fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        5 => Just(Fate::Answered),
        3 => Just(Fate::Slow),
        1 => Just(Fate::AnswerLost),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Late),
    ]
}
