//! What to do about what is on no node: defaults of services, intentions, prepared queries. Pure.
//!
//! They are planned like nodes and instances, one key at a time, and pass the same gate; but each is
//! written by a call of its own, since none of them can be in a transaction.

mod defaults;
mod intentions;
mod query;
pub mod refusals;

use super::Rules;
use super::gate::{self, Hold, Why};
use crate::consul::wire;
use crate::desired::claim::{Absence, Freeze};
use crate::desired::index::Index;
use crate::model::key::{Key, Table};
use crate::model::ledger::Ledger;
use crate::model::owner::Owner;
use crate::model::text::Text;
use crate::observed::mirror::Mirror;
use crate::observed::table::Knowledge;
use crate::policy::{Claim, Refusal, Sort};

/// What is found under a key that is on no node, and what is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryFinding {
    /// How each thing under the key stands: the sources of intentions one by one, anything else as a
    /// whole.
    pub parts: Vec<Part>,
    /// How many sources of intentions are of nobody here.
    pub foreign: u32,
    /// What to do.
    pub step: EntryStep,
}

/// How one thing stands for all objects that have to do with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its key: that of a source, or of the whole.
    pub key: Key,
    /// The objects.
    pub stands: Vec<Stand>,
}

/// How a thing stands for one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Stand {
    /// The object.
    pub owner: Owner,
    /// Whether it asks for it.
    pub claimed: bool,
    /// Whether Consul holds it for the object.
    pub there: bool,
    /// What is not as it should be.
    pub state: State,
}

/// What is not as it should be.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Nothing.
    Fine,
    /// It is to be written, or removed.
    Pending,
    /// This object of the cluster holds it.
    Conflict(Owner),
    /// Someone else holds it, who is named for people.
    OwnedByAnother(Text),
    /// It is not allowed; and why what is there is not removed, if it is not.
    NotAllowed(Refusal, Option<Hold>),
    /// It is kept as it is.
    Frozen(Freeze),
    /// It would be removed, and may not be yet.
    Held(Hold),
    /// Consul refuses it, and says this; what it accepted last is kept.
    Refused(String),
    /// The marks of so many sources have no room in the entry.
    TooManySources,
}

/// What to do under a key.
#[derive(Clone, Debug, PartialEq)]
pub enum EntryStep {
    /// Nothing: it is as it should be, or may not be written.
    Settled,
    /// Nothing for now: it is not known what Consul holds.
    Waiting,
    /// Write this.
    Write(Box<EntryWrite>),
}

/// A write of one entry.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryWrite {
    /// The object that it is for, or was.
    pub owner: Owner,
    /// What is done.
    pub change: Change,
    /// For which objects the entry holds other sources afterwards than before, the oldest first: only
    /// where several objects share an entry.
    pub puts: Vec<Put>,
    /// What of ours goes with it.
    pub removed: Vec<Gone>,
    /// What differs, for logs.
    pub fields: Vec<&'static str>,
}

/// An object of which something is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The object.
    pub owner: Owner,
    /// Its `metadata.generation` when this was planned.
    pub generation: i64,
    /// Whether nothing of it was there.
    pub is_new: bool,
}

/// Something of ours that is removed.
#[derive(Clone, Debug, PartialEq)]
pub struct Gone {
    /// Its key.
    pub key: Key,
    /// The object that owned it.
    pub owner: Owner,
    /// How it is known that nothing claims it.
    pub why: Why,
}

/// What is done to an entry. Indexes are the `ModifyIndex` that it must have; 0 to create it.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Write the defaults of a service.
    PutDefaults(wire::ServiceDefaults, u64),
    /// Remove them.
    DeleteDefaults(u64),
    /// Write the intentions of a destination.
    PutIntentions(wire::ServiceIntentions, u64),
    /// Remove them.
    DeleteIntentions(u64),
    /// Write the ledger's entry of a query.
    PutLedger(Ledger, u64),
    /// Remove it.
    DeleteLedger(u64),
    /// Create a query, which the ledger has already.
    CreateQuery(wire::PreparedQuery),
    /// Replace a query, which has its id in it and must have this `ModifyIndex`.
    UpdateQuery(wire::PreparedQuery, u64),
    /// Remove the query of this id, which must have this `ModifyIndex`.
    DeleteQuery(Text, u64),
}

impl Change {
    /// The `ModifyIndex` of what is changed or removed; 0 where nothing is.
    #[must_use]
    pub fn index(&self) -> u64 {
        match self {
            Self::CreateQuery(_) => 0,
            Self::PutDefaults(_, index)
            | Self::DeleteDefaults(index)
            | Self::PutIntentions(_, index)
            | Self::DeleteIntentions(index)
            | Self::PutLedger(_, index)
            | Self::DeleteLedger(index)
            | Self::UpdateQuery(_, index)
            | Self::DeleteQuery(_, index) => *index,
        }
    }
}

impl EntryWrite {
    fn new(owner: &Owner, change: Change) -> Box<Self> {
        Box::new(Self {
            owner: owner.clone(),
            change,
            puts: Vec::new(),
            removed: Vec::new(),
            fields: Vec::new(),
        })
    }

    /// What is done, in a word for metrics.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match &self.change {
            Change::PutDefaults(_, 0) | Change::PutIntentions(_, 0) | Change::CreateQuery(_) => {
                "create"
            }
            Change::DeleteDefaults(_) | Change::DeleteIntentions(_) | Change::DeleteQuery(..) => {
                "delete"
            }
            Change::PutDefaults(..) | Change::PutIntentions(..) | Change::UpdateQuery(..) => {
                "update"
            }
            Change::PutLedger(..) | Change::DeleteLedger(_) => "ledger",
        }
    }

    /// The objects of which something is written, the oldest first.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.puts.iter().map(|put| &put.owner)
    }

    /// Whether more is to be written when this is: the ledger comes before and after its query.
    #[must_use]
    pub fn is_half(&self) -> bool {
        matches!(
            self.change,
            Change::PutLedger(..) | Change::CreateQuery(_) | Change::DeleteQuery(..)
        )
    }

    /// Whether it is but a note of what is done to a query.
    #[must_use]
    pub fn is_note(&self) -> bool {
        matches!(self.change, Change::PutLedger(..) | Change::DeleteLedger(_))
    }
}

impl std::fmt::Display for EntryWrite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.change {
            Change::PutLedger(ledger, _) if ledger.id.is_empty() => {
                f.write_str("note in the ledger whose the query is, before it is created")
            }
            Change::PutLedger(..) => f.write_str("note in the ledger whose the query is"),
            Change::DeleteLedger(_) => f.write_str("strike the query out of the ledger"),
            _ if self.fields.is_empty() => f.write_str(self.verb()),
            _ => write!(f, "{} {}", self.verb(), self.fields.join(", ")),
        }
    }
}

impl EntryFinding {
    fn waiting() -> Self {
        Self {
            parts: Vec::new(),
            foreign: 0,
            step: EntryStep::Waiting,
        }
    }

    /// One thing, which stands so for its object and for those that claim it in vain.
    fn of(key: &Key, stands: Vec<Stand>, step: EntryStep) -> Self {
        let parts = vec![Part {
            key: key.clone(),
            stands,
        }];
        Self {
            parts,
            foreign: 0,
            step,
        }
    }

    /// How the thing of this key stands, which is under the key that was planned.
    #[must_use]
    pub fn part(&self, key: &Key) -> Option<&Part> {
        // Sources are in the order of their keys.
        let at = self.parts.binary_search_by(|part| part.key.cmp(key));
        self.parts.get(at.ok()?)
    }

    /// What may not be removed, and why.
    pub fn held(&self) -> impl Iterator<Item = (&Key, &Hold)> {
        self.parts.iter().flat_map(|part| {
            part.stands.iter().filter_map(|stand| match &stand.state {
                State::Held(hold) | State::NotAllowed(_, Some(hold)) => Some((&part.key, hold)),
                _ => None,
            })
        })
    }

    /// Whether something of this key stays only until it is confirmed that its claim is not allowed.
    #[must_use]
    pub fn withholds(&self, key: &Key) -> bool {
        let refused = |stand: &Stand| matches!(stand.state, State::NotAllowed(_, Some(_)));
        self.part(key)
            .is_some_and(|part| part.stands.iter().any(refused))
    }
}

/// The object that a thing on no node is of, where Consul holds it for one.
#[must_use]
pub fn owner_of(key: &Key, observed: &Mirror) -> Option<Owner> {
    match key {
        Key::Defaults(service) => observed.defaults.get(service)?.owner.clone(),
        Key::Source(source) => {
            let there = observed.intentions.get(&source.destination)?;
            there.owners.get(&source.source).cloned()
        }
        Key::Query(name) => {
            let there = observed.queries.get(name)?;
            there.ours_spelt(name.as_ref()).and(there.owner())
        }
        Key::Node(_) | Key::Instance(_) | Key::Intentions(_) => None,
    }
}

/// Decides what to do under a key that is on no node; nothing for one that is on one.
#[must_use]
pub fn decide(key: &Key, desired: &Index, observed: &Mirror, rules: &Rules) -> EntryFinding {
    if observed.is_unsure(&key.place()) {
        return EntryFinding::waiting();
    }
    let context = Context {
        desired,
        observed,
        rules,
    };
    match key {
        Key::Defaults(service) => defaults::decide(service, context),
        Key::Intentions(destination) => intentions::decide(destination, context),
        Key::Source(source) => intentions::decide(&source.destination, context),
        Key::Query(name) => query::decide(name, context),
        Key::Node(_) | Key::Instance(_) => EntryFinding {
            step: EntryStep::Settled,
            ..EntryFinding::waiting()
        },
    }
}

#[derive(Clone, Copy)]
struct Context<'a> {
    desired: &'a Index,
    observed: &'a Mirror,
    rules: &'a Rules,
}

impl Context<'_> {
    /// Whether a table was read whole, so that what is missing in it is not there.
    fn is_whole(&self, table: Table) -> Result<(), Hold> {
        match self.observed.knowledge(table) {
            Knowledge::Partial(reason) => Err(Hold::Incomplete {
                resource: table.as_str(),
                reason: reason.clone(),
            }),
            Knowledge::Whole | Knowledge::Unknown => Ok(()),
        }
    }

    /// Whether a claim of a namespace is allowed.
    fn admits(
        &self,
        (sort, namespace, name): (Sort, &Text, &Text),
        present: bool,
    ) -> Result<(), Refusal> {
        let claim = claim(sort, namespace, name);
        self.desired.admission.admits(&claim, present)
    }

    /// Whether what nobody owns may be taken over for a claim, which asks for that.
    fn admits_adopt(&self, (sort, namespace, name): (Sort, &Text, &Text)) -> Result<(), Refusal> {
        let claim = claim(sort, namespace, name);
        self.desired.admission.admits_adopt(&claim)
    }

    /// Whether what is claimed under a key and may not be, may be removed now.
    fn may_withdraw(
        &self,
        key: &Key,
        owner: &Owner,
        table: Table,
        refusal: &Refusal,
    ) -> Result<Why, Hold> {
        self.is_whole(table)?;
        let candidate = gate::Candidate {
            key,
            owner,
            absence: Absence::Found,
            watches: &self.desired.watches,
        };
        gate::may_withdraw(&candidate, self.rules, refusal)
    }

    /// Whether what nothing claims under a key may be removed now.
    fn may_remove(&self, key: &Key, owner: &Owner, table: Table) -> Result<Why, Hold> {
        self.is_whole(table)?;
        let candidate = gate::Candidate {
            key,
            owner,
            absence: self.desired.absence_of_entry(key),
            watches: &self.desired.watches,
        };
        gate::may_remove(&candidate, self.rules)
    }
}

fn claim(sort: Sort, namespace: &Text, name: &Text) -> Claim {
    Claim {
        sort,
        namespace: namespace.clone(),
        name: name.clone(),
    }
}

/// Those that claim what this object holds.
fn losers(holder: &Owner, losers: impl Iterator<Item = Owner>) -> impl Iterator<Item = Stand> {
    losers.map(move |owner| Stand {
        owner,
        claimed: true,
        there: false,
        state: State::Conflict(holder.clone()),
    })
}

#[cfg(test)]
mod tests;
