//! What people hear of what is on no node.

use std::collections::BTreeSet;

use crate::audit::{self, Removed};
use crate::desired::claim::Freeze;
use crate::k8s::EventReason;
use crate::model::entry::Health;
use crate::model::key::{Key, source_key};
use crate::model::owner::Owner;
use crate::model::text::Text;
use crate::observed::entries::ObservedQuery;
use crate::plan::entries::{EntryFinding, EntryStep, EntryWrite, Gone, Stand, State};
use crate::status::board::{CHANGE, Reason, Standing, Trouble};
use crate::sync::engine::Engine;
use crate::sync::tell::not_allowed;

impl Engine {
    /// Notes what was found, for status and Events, and for the guard.
    pub(super) fn note_entry(&mut self, key: &Key, finding: &EntryFinding) {
        let known = self.judge_parts(key, finding);
        if finding.step == EntryStep::Settled {
            self.dirty.absolve(key);
            self.drifted.remove(key);
        }
        self.tell_entry_stands(key, finding, known);
    }

    /// Tells the guard what is missing and what is not. Returns all things that are, or were, under
    /// the key.
    pub(super) fn judge_parts(&mut self, key: &Key, finding: &EntryFinding) -> BTreeSet<Key> {
        let mut missing: BTreeSet<Key> = BTreeSet::new();
        for (key, hold) in finding.held() {
            missing.insert(key.clone());
            self.held.insert(key.clone());
            if hold.is_guards() {
                self.guard_finds(key, finding.withholds(key));
            }
        }
        let leaving: BTreeSet<&Key> = match &finding.step {
            EntryStep::Write(write) => write.removed.iter().map(|gone| &gone.key).collect(),
            _ => BTreeSet::new(),
        };
        let known = self.parts_of(key, finding);
        for part in &known {
            if missing.contains(part) {
                continue;
            }
            self.held.remove(part);
            if leaving.contains(part) {
                continue;
            }
            let stands = finding.part(part);
            if stands.is_none() && matches!(part, Key::Source(_)) {
                // How its claim went is of no use any more: nothing of it is there, of ours or not.
                self.index.forget_entry(part);
            }
            // It may go, and waits for something else to go first.
            let goes = |stand: &Stand| {
                let unclaimed = !stand.claimed && stand.state == State::Pending;
                stand.there && (unclaimed || matches!(stand.state, State::NotAllowed(_, None)))
            };
            if stands.is_some_and(|part| part.stands.iter().any(goes)) {
                continue;
            }
            let claims =
                |stand: &Stand| stand.claimed && !matches!(stand.state, State::NotAllowed(..));
            let claimed = stands.is_some_and(|part| part.stands.iter().any(claims));
            if claimed {
                self.rules.guard.returned(part);
            } else {
                self.rules.guard.lapsed(part);
            }
        }
        known
    }

    /// The things under a key: those that are found now, and those that were known before.
    pub(super) fn parts_of(&mut self, key: &Key, finding: &EntryFinding) -> BTreeSet<Key> {
        let now: BTreeSet<Key> = finding.parts.iter().map(|part| part.key.clone()).collect();
        let before = if now.is_empty() {
            self.parts.remove(key)
        } else {
            self.parts.insert(key.clone(), now.clone())
        };
        now.into_iter().chain(before.unwrap_or_default()).collect()
    }

    /// A key was touched by Kubernetes: until it is planned, nobody is told that all is well.
    pub(in crate::sync) fn expect_entry(&mut self, key: &Key) {
        let key = key.clone().planned();
        let mut parts = self.parts.get(&key).cloned().unwrap_or_default();
        match &key {
            Key::Intentions(destination) => {
                let claims = self.index.intentions_of(destination);
                let names = claims.flat_map(|(_, claims)| claims.names().collect::<Vec<_>>());
                parts.extend(names.map(|name| source_key(destination, name)));
            }
            key => drop(parts.insert(key.clone())),
        }
        for part in &parts {
            self.report.expect(part, &self.index);
        }
        self.parts.insert(key, parts);
    }

    /// Tells how everything under a key stands.
    pub(super) fn tell_entry_stands(
        &mut self,
        key: &Key,
        finding: &EntryFinding,
        known: BTreeSet<Key>,
    ) {
        for part in known {
            let stands = finding.part(&part).map_or(&[][..], |part| &part.stands);
            let standing = |stand: &Stand| {
                let standing = Standing {
                    claimed: stand.claimed,
                    registered: stand.there.then_some(Health::Passing),
                    settled: trouble_of(&part, stand).is_none(),
                    trouble: trouble_of(&part, stand),
                };
                (stand.owner.clone(), standing)
            };
            let standings = stands.iter().map(standing).collect();
            self.report.stand(&part, standings, &self.index);
        }
        match key {
            Key::Intentions(destination) => {
                let owners = self.index.intentions_of(destination);
                let owners: Vec<Owner> = owners.map(|(it, _)| it.owner()).collect();
                for owner in owners {
                    self.report.note_foreign(&owner, finding.foreign);
                }
            }
            Key::Query(name) => {
                let there = self.mirror.queries.get(name);
                let note = there.and_then(ObservedQuery::note);
                let stands = finding.parts.iter().flat_map(|part| &part.stands);
                for stand in stands {
                    let id = note.map(|note| Text::from(note.id.as_str()));
                    let id = id.filter(|id| stand.there && !id.is_empty());
                    self.report
                        .note_query(&stand.owner, name.text(), id.as_ref());
                }
            }
            _ => {}
        }
    }

    /// Tells of a removal.
    pub(super) fn tell_gone(&mut self, Gone { key, owner, why }: &Gone, index: u64, epoch: u64) {
        audit::removed(&Removed {
            kind: key.kind(),
            key: &key.to_string(),
            owner: &owner.to_string(),
            why: &why.to_string(),
            seen: !why.is_found(),
            epoch,
            index,
        });
        let note = format!("{key} is removed from Consul: {why}");
        let uid = self.index.uid(owner);
        self.report
            .event(owner, uid, EventReason::Deregistered, note);
    }

    pub(super) fn tell_entry(&mut self, key: &Key, write: &EntryWrite, drift: bool, index: u64) {
        let owner = &write.owner;
        self.report.wrote(owner, index);
        let fields = write.fields.join(", ");
        tracing::info!(key = %key, owner = %owner, index, fields = &*fields, drift, "{write}");
        let reason = if drift && !write.is_note() {
            EventReason::DriftRepaired
        } else {
            EventReason::Registered
        };
        let note = match reason {
            EventReason::DriftRepaired if fields.is_empty() => {
                format!("{key} was removed in Consul by another hand and is written again")
            }
            EventReason::DriftRepaired => {
                format!("{key} was changed in Consul by another hand and is repaired ({fields})")
            }
            _ => format!("{key} is written to Consul"),
        };
        let told: Vec<Owner> = match (reason, write.puts.is_empty()) {
            (EventReason::DriftRepaired, false) => write.owners().cloned().collect(),
            (EventReason::DriftRepaired, true) => vec![owner.clone()],
            (_, false) => {
                let new = write.puts.iter().filter(|put| put.is_new);
                new.map(|put| put.owner.clone()).collect()
            }
            (_, true) if write.verb() == "create" => vec![owner.clone()],
            (_, true) => Vec::new(),
        };
        for owner in told {
            let uid = self.index.uid(&owner);
            self.report.event(&owner, uid, reason, note.clone());
        }
    }
}

/// What is not as it should be, for people.
fn trouble_of(key: &Key, stand: &Stand) -> Option<Trouble> {
    let trouble = |reason, message| Some(Trouble { reason, message });
    match &stand.state {
        State::Fine => None,
        State::Pending if !stand.claimed => trouble(
            Reason::Writing,
            format!("{key} is being removed from Consul"),
        ),
        State::Pending => trouble(Reason::Writing, format!("{key} is being written to Consul")),
        State::Conflict(holder) => trouble(
            Reason::Conflict,
            format!(
                "{holder}, which is older or keeps what it has, holds {key}: let one of the two go"
            ),
        ),
        State::OwnedByAnother(holder) => trouble(
            Reason::OwnedByAnother,
            format!(
                "{key} is not written: it is held by {holder}; remove what is there, choose another \
                 name, or take over with spec.adopt what nobody owns"
            ),
        ),
        State::NotAllowed(refusal, hold) => Some(not_allowed(key, refusal, hold.as_ref())),
        State::Frozen(Freeze::Paused) => trouble(
            Reason::Paused,
            format!(
                "{key} is held as it is by the annotation lictor.io/paused: remove it to go on"
            ),
        ),
        State::Frozen(Freeze::Invalid(problems)) => {
            let problems = problems.join("; ");
            trouble(
                Reason::Invalid,
                format!("{key} is kept as it was: {problems}"),
            )
        }
        State::Frozen(Freeze::NotWatched) => trouble(
            Reason::Held,
            format!(
                "{key} is kept as it is: its namespace is not among those of --namespace, add it there"
            ),
        ),
        State::Held(hold) => trouble(Reason::Held, format!("{key}: {hold}")),
        State::Refused(message) => {
            let state = if stand.there {
                "is kept as it was"
            } else {
                "is not written"
            };
            let message = format!("{key} {state}: Consul refuses it: {message}; {CHANGE}");
            trouble(Reason::ConsulRefused, message)
        }
        State::TooManySources => trouble(
            Reason::TooManySources,
            format!(
                "{key} is not written: the marks of its source have no room in the entry, which has 60 \
                 pairs of meta of 512 bytes, of which each Intention takes one at least; give this \
                 destination fewer Intentions or sources, or shorter names"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::gate::Hold;
    use crate::policy::Refusal;
    use crate::test_words::is_whole;

    #[test]
    fn whatever_is_the_matter_with_an_entry_is_told_with_what_to_do() {
        let key = Key::Query(crate::model::names::QueryName::new("near"));
        let owner = Owner::intention(&"shop".into(), &"it".into());
        let refusal = Refusal {
            message: "near belongs to the namespace bank: choose another name".to_owned(),
            unsure: None,
            waits: false,
        };
        let mut states = vec![
            State::Pending,
            State::Conflict(owner.clone()),
            State::OwnedByAnother("somebody".into()),
            State::NotAllowed(refusal, None),
            State::Frozen(Freeze::Paused),
            State::Frozen(Freeze::NotWatched),
            State::Refused("invalid failover".to_owned()),
            State::TooManySources,
        ];
        states.extend(Hold::each().into_iter().map(State::Held));
        for state in states {
            let stand = Stand {
                owner: owner.clone(),
                claimed: true,
                there: true,
                state,
            };
            let trouble = trouble_of(&key, &stand);
            let trouble = trouble.unwrap_or_else(|| panic!("nothing is told of {stand:?}"));
            is_whole(&trouble.message, &key.to_string());
        }
    }
}
