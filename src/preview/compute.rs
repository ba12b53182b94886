//! From the decisions to what is shown of them.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::fields::{differing, intentions, node, service, value};
use super::{Action, Field, Item, Preview};
use crate::desired::claim::{Freeze, Refused};
use crate::desired::index::Index;
use crate::model::entry::{ALIVE_CHECK_NAME, Check, NODE_CHECK_NAME};
use crate::model::key::{InstanceKey, Key};
use crate::model::owner::Owner;
use crate::observed::entries::{ObservedIntentions, definition};
use crate::observed::entry::ObservedCheck;
use crate::observed::mirror::Mirror;
use crate::plan::checks::CheckWrite;
use crate::plan::entries::{self, Change, EntryFinding, EntryStep, EntryWrite, State};
use crate::plan::gate::{self, Hold};
use crate::plan::{self, Finding, InstanceWrite, NodeWrite, Rules, Step};
use crate::status::board::CHANGE;

/// What is planned.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// All keys that are claimed, or that Consul has of this cluster's.
    All,
    /// Only what these objects claim, and what Consul shows as theirs. What stands for a pod is left
    /// out: its pod is not among the manifests.
    Of(&'a BTreeSet<Owner>),
}

/// Shows what would be done. `rules` are as after a start; the guard judges what is missing, as it
/// would once the lists have confirmed it.
#[must_use]
pub fn preview(
    desired: &Index,
    observed: &Mirror,
    rules: &mut Rules,
    scope: Scope<'_>,
    now: Instant,
) -> Preview {
    let mut items = Vec::new();
    let (mut missing, mut again) = (Vec::new(), Vec::new());
    let view = View {
        desired,
        observed,
        rules,
        scope,
    };
    for key in keys(desired, observed, scope) {
        let decided = view.decide(&key);
        let guarded = decided.guarded(&key);
        if guarded.is_empty() {
            view.tell(&key, &decided, &mut items);
        } else {
            missing.extend(guarded);
            again.push(key);
        }
    }
    judge(&missing, observed, rules, now);
    let view = View {
        desired,
        observed,
        rules,
        scope,
    };
    for key in again {
        view.tell(&key, &view.decide(&key), &mut items);
    }
    for owner in desired.all_problems().filter(|owner| scope.has(owner)) {
        let problems = desired.problems(owner).join("; ");
        items.push(rejected("object", owner.to_string(), owner, problems));
    }
    Preview::new(desired.cluster().to_string(), items)
}

impl Scope<'_> {
    fn has(self, owner: &Owner) -> bool {
        match self {
            Self::All => true,
            Self::Of(owners) => owners.contains(owner),
        }
    }
}

fn keys(desired: &Index, observed: &Mirror, scope: Scope<'_>) -> BTreeSet<Key> {
    match scope {
        Scope::All => {
            let on_nodes = desired.claimed_keys().chain(observed.keys());
            let nodes = observed.node_names().cloned().map(Key::Node);
            let entries = desired.claimed_entries().chain(observed.entry_keys());
            on_nodes.chain(nodes).chain(entries).collect()
        }
        Scope::Of(owners) => {
            let claimed = desired.claimed_keys().chain(desired.claimed_entries());
            let is_claimed = |key: &Key| {
                matches!(key, Key::Node(_))
                    || desired.owners_of(key).iter().any(|it| owners.contains(it))
            };
            let claimed = claimed.filter(is_claimed);
            let held = owners.iter().flat_map(|owner| {
                let on_nodes = observed.held_by(owner, None).into_iter();
                let on_nodes = on_nodes.filter(|key| !stands_for_pod(key, observed));
                on_nodes.chain(observed.entries_held_by(owner))
            });
            claimed.chain(held.map(Key::planned)).collect()
        }
    }
}

/// Whether what Consul has under a key stands for a pod.
pub(super) fn stands_for_pod(key: &Key, observed: &Mirror) -> bool {
    let Key::Instance(key) = key else {
        return false;
    };
    plan::held_under(key, observed).is_some_and(|held| held.pod.is_some())
}

/// Lets the guard say what of all that is missing may go.
fn judge(missing: &[Key], observed: &Mirror, rules: &mut Rules, now: Instant) {
    for key in missing {
        rules.guard.found(key);
    }
    let owned = observed.owned_instances() + observed.owned_entries();
    rules.guard.judge(owned, now);
    if rules.guard.held().is_none() {
        // So it is once the lists agree.
        rules.guard.release();
    }
}

/// What is found under a key.
enum Decided {
    OnNode(Box<Finding>),
    Entry(EntryFinding),
}

impl Decided {
    /// What of it is missing, so that the guard is to judge it.
    fn guarded(&self, key: &Key) -> Vec<Key> {
        match self {
            Self::OnNode(finding) => {
                let guarded = finding.held().is_some_and(Hold::is_guards);
                guarded.then(|| key.clone()).into_iter().collect()
            }
            Self::Entry(finding) => {
                let held = finding.held().filter(|(_, hold)| hold.is_guards());
                held.map(|(key, _)| key.clone()).collect()
            }
        }
    }
}

struct View<'a> {
    desired: &'a Index,
    observed: &'a Mirror,
    rules: &'a Rules,
    scope: Scope<'a>,
}

impl View<'_> {
    fn decide(&self, key: &Key) -> Decided {
        let (desired, observed, rules) = (self.desired, self.observed, self.rules);
        match key {
            Key::Node(_) | Key::Instance(_) => {
                Decided::OnNode(Box::new(plan::decide(key, desired, observed, rules)))
            }
            Key::Defaults(_) | Key::Intentions(_) | Key::Source(_) | Key::Query(_) => {
                Decided::Entry(entries::decide(key, desired, observed, rules))
            }
        }
    }

    fn tell(&self, key: &Key, decided: &Decided, items: &mut Vec<Item>) {
        let before = items.len();
        match decided {
            Decided::OnNode(finding) => self.on_node(key, finding, items),
            Decided::Entry(finding) => self.entry(key, finding, items),
        }
        if let Key::Instance(key) = key {
            let service = self.service_of(key);
            for item in &mut items[before..] {
                item.service.clone_from(&service);
            }
        }
    }

    /// The service of an instance, as it is to be, or as it is.
    fn service_of(&self, key: &InstanceKey) -> Option<String> {
        let wanted = self.desired.claimants(key).first();
        let wanted = wanted.map(|claimant| claimant.service.to_string());
        let there = || plan::held_under(key, self.observed);
        wanted.or_else(|| there().map(|held| held.service.to_owned()))
    }

    /// Whose a key is, where that is an object which is not among the manifests: whether it still asks
    /// for it only the cluster knows.
    fn held_by_unknown(&self, owner: Option<Owner>) -> Option<Owner> {
        owner.filter(|owner| !self.scope.has(owner))
    }

    fn on_node(&self, key: &Key, finding: &Finding, items: &mut Vec<Item>) {
        if let Key::Instance(instance) = key
            && let held = plan::held_under(instance, self.observed)
            && let Some(holder) = self.held_by_unknown(held.map(|held| held.owner))
        {
            self.is_unknowns(key, &holder, items);
            return;
        }
        let owners: Vec<&Owner> = match (&finding.owner, &finding.step) {
            (Some(owner), _) => vec![owner],
            (None, Step::Remove(removal)) => vec![&removal.owner],
            (None, _) => Vec::new(),
        };
        let mut tell = |action: Action, fields: Vec<Field>, message: Option<String>| {
            items.push(item(action, key, &owners, fields, message));
        };
        match &finding.step {
            Step::Settled | Step::Waiting => {}
            // What is said of the refusal says more.
            Step::OwnedByAnother { .. } if finding.refused.is_some() => {}
            Step::OwnedByAnother { holder } => {
                tell(Action::Conflict, Vec::new(), Some(held_by(holder)));
            }
            Step::Held(hold) => tell(Action::Held, Vec::new(), Some(hold.to_string())),
            step @ (Step::KeptOut(_) | Step::NoNodeAddress { .. }) => {
                tell(Action::Held, Vec::new(), Some(step.to_string()));
            }
            Step::PutNode(write) => {
                let (action, fields) = self.node(key, write);
                tell(action, fields, None);
            }
            Step::Put(write) => {
                let Key::Instance(instance) = key else { return };
                let (action, fields) = self.instance(instance, write);
                let held = finding.hold.as_ref().map(ToString::to_string);
                tell(action, fields, held);
            }
            Step::Remove(removal) => {
                let why = match &removal.why {
                    why if why.is_critical() || *why == gate::Why::NotAllowed => why.to_string(),
                    _ => "nothing claims it".to_owned(),
                };
                tell(
                    Action::Delete,
                    Vec::new(),
                    Some(format!("{}: {why}", removal.name)),
                );
            }
            Step::Lingering | Step::RemoveNode(_) => {
                let why = "it is empty, and its Kubernetes node is gone";
                tell(Action::Delete, Vec::new(), Some(why.to_owned()));
            }
        }
        if matches!(finding.step, Step::Settled)
            && let Some(hold) = &finding.hold
        {
            tell(Action::Held, Vec::new(), Some(hold.to_string()));
        }
        self.about(key, finding, items);
    }

    /// What is to be told of the objects that have to do with a key.
    fn about(&self, key: &Key, finding: &Finding, items: &mut Vec<Item>) {
        if let (Some(Freeze::Invalid(problems)), Some(owner)) = (&finding.freeze, &finding.owner) {
            let at_fault = match key {
                Key::Instance(key) => self.desired.at_fault(key, owner),
                _ => owner.clone(),
            };
            let problems = problems.join("; ");
            items.push(rejected(key.kind(), key.to_string(), &at_fault, problems));
        }
        if let Some(Refused { owners, refusal }) = &finding.refused {
            for owner in owners {
                let message = refusal.message.clone();
                items.push(rejected(key.kind(), key.to_string(), owner, message));
            }
        }
        let Some(holder) = &finding.owner else { return };
        for loser in &finding.losers {
            let message = older(holder);
            let conflict = Action::Conflict;
            items.push(item(conflict, key, &[loser], Vec::new(), Some(message)));
        }
    }

    fn node(&self, key: &Key, write: &NodeWrite) -> (Action, Vec<Field>) {
        let Key::Node(name) = key else {
            return (Action::Update, Vec::new());
        };
        let there = self.observed.node(name);
        let before = there.map(|there| node(&there.node));
        let after = write.node.as_ref().map(|(wanted, _)| node(wanted));
        let mut fields = match (&before, &after) {
            (_, Some(after)) => differing(before.as_ref(), Some(after)),
            (_, None) => Vec::new(),
        };
        if let Some((wanted, _)) = &write.check {
            let known = there.and_then(|there| there.own_check());
            fields.extend(check(NODE_CHECK_NAME, known, Some(wanted)));
        }
        if write.alive.is_some() || write.rest {
            fields.push(of_check(ALIVE_CHECK_NAME, None, Some("passing")));
        }
        let surplus = write.surplus.iter();
        fields.extend(surplus.map(|(id, _)| of_check(id, Some("there"), None)));
        let action = if there.is_none() {
            Action::Create
        } else {
            Action::Update
        };
        (action, fields)
    }

    fn instance(&self, key: &InstanceKey, write: &InstanceWrite) -> (Action, Vec<Field>) {
        if let (true, Some((wanted, _))) = (write.creates(), &write.service) {
            let mut fields = differing(None, Some(&service(key, wanted)));
            fields.extend(self.checks(key, &write.checks));
            return (Action::Create, fields);
        }
        let all = plan::differences(key, self.desired, self.observed, self.rules);
        let there = self.observed.instance(key);
        let (Some(all), Some(there)) = (all, there) else {
            // What nothing claims is but taken out of service.
            return (Action::Update, self.checks(key, &write.checks));
        };
        let (before, after) = (service(key, &there.service), service(key, &all.service));
        let mut fields = differing(Some(&before), Some(&after));
        if there.embellished && all.fields.contains(&"kind") {
            let more = Value::from("settings that Lictor never writes");
            fields.push(Field {
                name: "others".to_owned(),
                before: Some(more),
                after: None,
            });
        }
        fields.extend(self.checks(key, &all.checks));
        let surplus = all.surplus.iter();
        fields.extend(surplus.map(|(id, _)| of_check(id, Some("there"), None)));
        (Action::Update, fields)
    }

    fn checks(&self, key: &InstanceKey, checks: &[CheckWrite]) -> Vec<Field> {
        let there = self.observed.instance(key);
        let of = |write: &CheckWrite| {
            let known = there.and_then(|there| there.check(&write.kind.id(&key.id)));
            let mut fields = check(&write.kind.name(), known, Some(&write.check));
            if fields.is_empty() {
                // A definition may have a token in it.
                let name = format!("Checks.{}.Definition", write.kind.name());
                fields.push(Field {
                    name,
                    before: known.map(|_| "another".into()),
                    after: Some("not shown".into()),
                });
            }
            fields
        };
        checks.iter().flat_map(of).collect()
    }

    fn is_unknowns(&self, key: &Key, holder: &Owner, items: &mut Vec<Item>) {
        let message = format!(
            "Consul has it for {holder}, which is not among the manifests: whether that still asks for it \
             only the cluster knows; add it to them, or plan from the cluster"
        );
        let claimants = self.desired.owners_of(key);
        let owners: Vec<&Owner> = claimants.iter().collect();
        items.push(item(
            Action::Conflict,
            key,
            &owners,
            Vec::new(),
            Some(message),
        ));
    }

    fn entry(&self, key: &Key, finding: &EntryFinding, items: &mut Vec<Item>) {
        for part in &finding.parts {
            let holder = entries::owner_of(&part.key, self.observed);
            if let Some(holder) = self.held_by_unknown(holder)
                && !self.desired.owners_of(&part.key).is_empty()
            {
                self.is_unknowns(&part.key, &holder, items);
                if part.key == *key {
                    return;
                }
            }
        }
        if let EntryStep::Write(write) = &finding.step {
            let (action, fields, message) = self.change(key, write, finding);
            let mut owners: Vec<&Owner> = write.owners().collect();
            let gone = write.removed.iter().map(|gone| &gone.owner);
            owners.extend(gone);
            if owners.is_empty() {
                owners.push(&write.owner);
            }
            owners.sort_unstable();
            owners.dedup();
            items.push(item(action, key, &owners, fields, message));
        }
        states(finding, items);
    }

    fn change(
        &self,
        key: &Key,
        EntryWrite { owner, change, .. }: &EntryWrite,
        finding: &EntryFinding,
    ) -> (Action, Vec<Field>, Option<String>) {
        let observed = self.observed;
        let (before, after, message) = match (key, change) {
            (Key::Defaults(of), Change::PutDefaults(..) | Change::DeleteDefaults(_)) => {
                let there = observed.defaults.get(of).map(|there| value(&there.entry));
                let after = match change {
                    Change::PutDefaults(wanted, _) => Some(value(wanted)),
                    _ => None,
                };
                (there, after, None)
            }
            (Key::Intentions(of), _) => {
                let there = observed.intentions.get(of).map(intentions);
                let after = match change {
                    Change::PutIntentions(wanted, _) => {
                        let cluster = self.desired.cluster();
                        Some(intentions(&ObservedIntentions::of(cluster, wanted.clone())))
                    }
                    _ => None,
                };
                (there, after, None)
            }
            (Key::Query(name), _) => {
                let there = observed.queries.get(name);
                let ours = there.and_then(|there| there.ours());
                let before = ours.map(|query| value(&definition(query)));
                let mut claimants = self.desired.queries_of(name);
                let claimed = claimants.find(|it| it.owner == *owner && may_claim(finding, owner));
                let after = claimed.map(|claimant| value(&claimant.query));
                let note = matches!(change, Change::PutLedger(..) | Change::DeleteLedger(_));
                let note = note && before == after;
                let note = note.then(|| "the ledger is to note whose it is".to_owned());
                (before, after, note)
            }
            _ => (None, None, None),
        };
        let action = match (&before, &after) {
            (None, Some(_)) => Action::Create,
            (_, None) => Action::Delete,
            (Some(_), Some(_)) => Action::Update,
        };
        let fields = match action {
            Action::Delete => Vec::new(),
            _ => differing(before.as_ref(), after.as_ref()),
        };
        (action, fields, message)
    }
}

fn may_claim(finding: &EntryFinding, owner: &Owner) -> bool {
    let mut stands = finding.parts.iter().flat_map(|part| &part.stands);
    !stands.any(|stand| stand.owner == *owner && matches!(stand.state, State::NotAllowed(..)))
}

/// How what is on no node stands for each object.
fn states(finding: &EntryFinding, items: &mut Vec<Item>) {
    for part in &finding.parts {
        for stand in &part.stands {
            let (action, message) = match &stand.state {
                State::Fine | State::Pending | State::Frozen(_) => continue,
                State::Conflict(holder) => (Action::Conflict, older(holder)),
                State::OwnedByAnother(holder) => (Action::Conflict, held_by(holder)),
                State::NotAllowed(refusal, _) => (Action::Rejected, refusal.message.clone()),
                State::Held(hold) => (Action::Held, hold.to_string()),
                State::Refused(why) => (Action::Rejected, format!("Consul refuses it: {why}; {CHANGE}")),
                State::TooManySources => (
                    Action::Rejected,
                    "the entry of its destination has no room for more sources: give it fewer Intentions, or \
                     shorter names"
                        .to_owned(),
                ),
            };
            items.push(item(
                action,
                &part.key,
                &[&stand.owner],
                Vec::new(),
                Some(message),
            ));
        }
    }
}

fn item(
    action: Action,
    key: &Key,
    owners: &[&Owner],
    fields: Vec<Field>,
    message: Option<String>,
) -> Item {
    Item {
        action,
        kind: key.kind(),
        key: key.to_string(),
        service: None,
        owners: owners.iter().map(ToString::to_string).collect(),
        fields,
        message,
    }
}

fn older(holder: &Owner) -> String {
    format!("{holder}, which is older, claims it too and holds it: let one of the two go")
}

fn held_by(holder: &str) -> String {
    format!("held by {holder}: remove what is there, or choose another name")
}

fn rejected(kind: &'static str, key: String, owner: &Owner, message: String) -> Item {
    Item {
        action: Action::Rejected,
        kind,
        key,
        service: None,
        owners: vec![owner.to_string()],
        fields: Vec::new(),
        message: Some(message),
    }
}

fn check(name: &str, before: Option<&ObservedCheck>, after: Option<&Check>) -> Vec<Field> {
    let of = |check: &Check| json!({"Status": check.status.as_str(), "Output": check.output});
    let before = before.map(|there| of(&there.check));
    let after = after.map(of);
    let mut fields = differing(before.as_ref(), after.as_ref());
    for field in &mut fields {
        field.name = format!("Checks.{name}.{}", field.name);
    }
    fields
}

fn of_check(name: &str, before: Option<&str>, after: Option<&str>) -> Field {
    Field {
        name: format!("Checks.{name}"),
        before: before.map(Value::from),
        after: after.map(Value::from),
    }
}
