//! The intentions of a destination: one entry, put together from what many objects ask for and what
//! others wrote.

mod allowed;

use std::collections::{BTreeMap, BTreeSet};

use self::allowed::not_allowed;
use super::refusals::Refused;
use super::{Change, Context, EntryFinding, EntryStep, EntryWrite, Gone, Part, Put, Stand, State};
use crate::consul::wire;
use crate::desired::intention::IntentionClaims;
use crate::model::key::{Table, source_key};
use crate::model::marks;
use crate::model::names::Destination;
use crate::model::owner::Owner;
use crate::model::source::{self, Owners, SourceName, TooManySources};
use crate::model::text::{Pairs, Text};
use crate::observed::entries::{Holder, ObservedIntentions};
use crate::policy::{Refusal, Sort};

/// A source, or the requirement of a token.
#[derive(Clone, Debug, PartialEq)]
enum Content {
    Source(wire::SourceIntention),
    Jwt(wire::IntentionJwt),
}

/// An Intention that claims something of the destination.
struct Claimant<'a> {
    owner: Owner,
    generation: i64,
    claims: &'a IntentionClaims,
    /// Why it is left out, if it is.
    refused: Option<Refused>,
    /// Why it is not allowed, if it is not.
    not_allowed: Option<Refusal>,
    /// Whether it takes over what nobody owns.
    adopts: bool,
    /// Why it does not, although it asks for that.
    adopt_refused: Option<Refusal>,
}

pub(super) fn decide(destination: &Destination, context: Context<'_>) -> EntryFinding {
    let there = context.observed.intentions.get(destination);
    let claimants = context.desired.intentions_of(destination);
    let claimants: Vec<Claimant<'_>> = claimants
        .map(|(intention, claims)| {
            let owner = intention.owner();
            let refused = context.rules.refusals.of(destination, &owner);
            let not_allowed = not_allowed(destination, &owner, there, context);
            let asks = claims.adopt;
            let asked = (Sort::Destination, &owner.namespace, destination.text());
            let adopt_refused = asks.then(|| context.admits_adopt(asked).err()).flatten();
            Claimant {
                generation: intention.generation,
                claims,
                refused,
                adopts: asks && adopt_refused.is_none() && not_allowed.is_none(),
                adopt_refused,
                not_allowed,
                owner,
            }
        })
        .collect();
    if let Some(there) = there
        && let Some(holder) = foreign_holder(there, &claimants, context)
    {
        return of_another(destination, &claimants, &holder, there);
    }
    let mut left_out = BTreeSet::new();
    loop {
        let mut merge = Merge::new(destination, there, &left_out);
        merge.keep(&claimants, context);
        for claimant in &claimants {
            merge.claim(claimant);
        }
        merge.let_go(&claimants, context);
        let waits = match merge.marks(context) {
            Ok(meta) => return merge.finish(&claimants, meta),
            Err(excess) => merge.who_waits(&claimants, &excess),
        };
        if waits.is_empty() {
            // All of it stands there already: what can be written could be kept.
            let meta = there.map(|there| there.meta.clone());
            return merge.finish(&claimants, meta.unwrap_or_default());
        }
        left_out.extend(waits);
    }
}

/// Who holds the entry, if it is not for us to write.
fn foreign_holder(
    there: &ObservedIntentions,
    claimants: &[Claimant<'_>],
    context: Context<'_>,
) -> Option<Text> {
    match &there.holder {
        Holder::Ours => None,
        Holder::Nobody | Holder::Incomplete(_) if there.was_ours => None,
        Holder::Nobody if claimants.iter().any(|it| it.adopts) => None,
        Holder::Nobody => Some(marks::holder(context.desired.cluster(), &Pairs::default())),
        Holder::Incomplete(holder) | Holder::Another(holder) => Some(holder.clone()),
    }
}

fn of_another(
    destination: &Destination,
    claimants: &[Claimant<'_>],
    holder: &Text,
    there: &ObservedIntentions,
) -> EntryFinding {
    let mut parts: BTreeMap<SourceName, Vec<Stand>> = BTreeMap::new();
    for claimant in claimants {
        let refusal = claimant.not_allowed.as_ref();
        // Where it is nobody's, taking it over may be all that is lacking.
        let adopt = claimant.adopt_refused.as_ref();
        let adopt = adopt.filter(|_| there.holder == Holder::Nobody);
        let state = match refusal.or(adopt) {
            Some(refusal) => State::NotAllowed(refusal.clone(), None),
            None => State::OwnedByAnother(holder.clone()),
        };
        for name in claimant.claims.names() {
            parts.entry(name).or_default().push(Stand {
                owner: claimant.owner.clone(),
                claimed: true,
                there: false,
                state: state.clone(),
            });
        }
    }
    EntryFinding {
        parts: parts_of(destination, parts),
        foreign: count(there.sources.len()),
        step: EntryStep::Settled,
    }
}

fn state_of(refused: &Refused) -> State {
    match refused {
        Refused::Blamed(message) => State::Refused(message.clone()),
        Refused::Suspected => State::Pending,
    }
}

fn parts_of(destination: &Destination, parts: BTreeMap<SourceName, Vec<Stand>>) -> Vec<Part> {
    let part = |(name, stands)| Part {
        key: source_key(destination, name),
        stands,
    };
    parts.into_iter().map(part).collect()
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

struct Merge<'a> {
    destination: &'a Destination,
    there: Option<&'a ObservedIntentions>,
    parts: BTreeMap<SourceName, Vec<Stand>>,
    /// What the entry is to hold of ours.
    assigned: BTreeMap<SourceName, (Content, Owner)>,
    /// What an Intention asks for that is left out while it is found out whether it is to blame.
    open: BTreeSet<SourceName>,
    /// The objects that get nothing which they do not have: the marks have no room for it.
    left_out: &'a BTreeSet<Owner>,
    /// What they ask for in vain.
    waiting: BTreeSet<SourceName>,
    removed: Vec<Gone>,
}

impl<'a> Merge<'a> {
    fn new(
        destination: &'a Destination,
        there: Option<&'a ObservedIntentions>,
        left_out: &'a BTreeSet<Owner>,
    ) -> Self {
        Self {
            destination,
            there,
            parts: BTreeMap::new(),
            assigned: BTreeMap::new(),
            open: BTreeSet::new(),
            left_out,
            waiting: BTreeSet::new(),
            removed: Vec::new(),
        }
    }

    /// What stands under a name, whoever's.
    fn found(&self, name: &SourceName) -> Option<Content> {
        let there = self.there?;
        match name {
            SourceName::Jwt => there.jwt.clone().map(Content::Jwt),
            SourceName::Source { .. } => there.sources.get(name).cloned().map(Content::Source),
        }
    }

    /// Whose it is, if it is ours.
    fn owner(&self, name: &SourceName) -> Option<&Owner> {
        self.there?.owners.get(name)
    }

    fn stand(
        &mut self,
        name: &SourceName,
        owner: &Owner,
        claimed: bool,
        there: bool,
        state: State,
    ) {
        self.parts.entry(name.clone()).or_default().push(Stand {
            owner: owner.clone(),
            claimed,
            there,
            state,
        });
    }

    /// What stands there stays as it is.
    fn keep_one(&mut self, name: &SourceName, owner: &Owner, claimed: bool, state: State) {
        if let Some(content) = self.found(name) {
            self.stand(name, owner, claimed, true, state);
            self.assigned.insert(name.clone(), (content, owner.clone()));
        }
    }

    /// What paused, invalid and refused objects hold stays as it is.
    fn keep(&mut self, claimants: &[Claimant<'_>], context: Context<'_>) {
        let marked = self.there.map(|there| there.owners.clone());
        let lost = self.there.map(|there| there.lost.clone());
        for (name, owner) in marked.iter().flatten().chain(lost.iter().flatten()) {
            let refused = claimants.iter().find(|it| it.owner == *owner);
            let refused = refused.and_then(|it| it.refused.clone());
            if not_allowed(self.destination, owner, self.there, context).is_some() {
                continue;
            }
            if let Some(freeze) = context.desired.freeze_of(owner) {
                self.keep_one(name, owner, true, State::Frozen(freeze));
            } else if let Some(refused) = refused {
                self.keep_one(name, owner, true, state_of(&refused));
            }
        }
    }

    fn claim(&mut self, claimant: &Claimant<'_>) {
        let IntentionClaims { sources, jwt, .. } = claimant.claims;
        let owner = &claimant.owner;
        let sources = sources.iter();
        let sources = sources.map(|(name, source)| (name.clone(), Content::Source(source.clone())));
        let jwt = jwt
            .iter()
            .map(|jwt| (SourceName::Jwt, Content::Jwt(jwt.clone())));
        for (name, content) in sources.chain(jwt) {
            if let Some(refusal) = &claimant.not_allowed {
                // What is there of its own is told of where it is let go.
                if self.owner(&name) != Some(owner) {
                    let state = State::NotAllowed(refusal.clone(), None);
                    self.stand(&name, owner, true, false, state);
                }
                continue;
            }
            if let Some((held, holder)) = self.assigned.get(&name) {
                // Two that ask for the same token ask for one thing.
                let shared = name == SourceName::Jwt && *held == content;
                if *holder != *owner && !shared {
                    let conflict = State::Conflict(holder.clone());
                    self.stand(&name, owner, true, false, conflict);
                }
                continue;
            }
            if let Some(refused) = &claimant.refused {
                self.stand(&name, owner, true, false, state_of(refused));
                if *refused == Refused::Suspected {
                    self.open.insert(name);
                }
                continue;
            }
            // An older one may get it yet.
            if self.open.contains(&name) && self.owner(&name) != Some(owner) {
                self.stand(&name, owner, true, false, State::Pending);
                continue;
            }
            let waits = self.left_out.contains(owner) && self.owner(&name) != Some(owner);
            if waits || !source::has_room(owner, &name) {
                self.waiting.insert(name.clone());
                self.stand(&name, owner, true, false, State::TooManySources);
                continue;
            }
            let found = self.found(&name);
            let is_foreign = found.is_some() && self.owner(&name).is_none();
            let lost_mark = self
                .there
                .is_some_and(|there| there.lost.contains_key(&name));
            if is_foreign && !claimant.adopts && !lost_mark {
                if let Some(refusal) = &claimant.adopt_refused {
                    let state = State::NotAllowed(refusal.clone(), None);
                    self.stand(&name, owner, true, false, state);
                    continue;
                }
                let other = "another, who wrote it into the entry".into();
                self.stand(&name, owner, true, false, State::OwnedByAnother(other));
                continue;
            }
            let same = found.as_ref() == Some(&content) && self.owner(&name) == Some(owner);
            let state = if same { State::Fine } else { State::Pending };
            self.stand(&name, owner, true, same, state);
            self.assigned.insert(name, (content, owner.clone()));
        }
    }

    /// What is ours and nothing claims goes, where it may.
    fn let_go(&mut self, claimants: &[Claimant<'_>], context: Context<'_>) {
        let owners = self
            .there
            .map(|there| there.owners.clone())
            .unwrap_or_default();
        for (name, owner) in &owners {
            if let Some((_, holder)) = self.assigned.get(name) {
                let lost = claimants
                    .iter()
                    .find(|it| it.owner == *owner && *holder != *owner);
                if let Some(refusal) = lost.and_then(|it| it.not_allowed.clone()) {
                    let state = State::NotAllowed(refusal, None);
                    self.stand(name, owner, true, false, state);
                }
                continue;
            }
            if self.waiting.contains(name)
                && let Some(content) = self.found(name)
            {
                // Somebody asks for it, and could not have it marked as theirs.
                self.assigned.insert(name.clone(), (content, owner.clone()));
                continue;
            }
            let key = source_key(self.destination, name.clone());
            let asks = |it: &&Claimant<'_>| {
                it.owner == *owner && it.claims.names().any(|asked| asked == *name)
            };
            let claimant = claimants.iter().find(asks);
            let kept = context.desired.freeze_of(owner).is_some();
            if let Some(refusal) = not_allowed(self.destination, owner, self.there, context)
                && (kept || claimant.is_some())
            {
                self.withdraw(name, owner, key, &refusal, context);
                continue;
            }
            match context.may_remove(&key, owner, Table::Intentions) {
                Ok(why) => {
                    self.stand(name, owner, false, true, State::Pending);
                    self.removed.push(Gone {
                        key,
                        owner: owner.clone(),
                        why,
                    });
                }
                Err(hold) => self.keep_one(name, owner, false, State::Held(hold)),
            }
        }
    }

    fn finish(self, claimants: &[Claimant<'_>], meta: Pairs) -> EntryFinding {
        let foreign = self.foreign();
        let foreign_count = foreign
            .keys()
            .filter(|name| **name != SourceName::Jwt)
            .count();
        let (mut sources, mut jwt) = (BTreeMap::new(), None);
        let ours = self
            .assigned
            .iter()
            .map(|(name, (content, _))| (name, content));
        for (name, content) in foreign.iter().chain(ours) {
            match content {
                Content::Source(source) => drop(sources.insert(name.clone(), source.clone())),
                Content::Jwt(required) => jwt = Some(required.clone()),
            }
        }
        let step = self.step(sources, jwt, meta, self.puts(claimants));
        EntryFinding {
            parts: parts_of(self.destination, self.parts),
            foreign: count(foreign_count),
            step,
        }
    }

    /// What others wrote into the entry, and is not taken over.
    fn foreign(&self) -> BTreeMap<SourceName, Content> {
        let names = self.there.into_iter().flat_map(ObservedIntentions::names);
        let theirs =
            names.filter(|name| self.owner(name).is_none() && !self.assigned.contains_key(name));
        theirs
            .filter_map(|name| Some((name.clone(), self.found(&name)?)))
            .collect()
    }

    /// The Meta that says whose what is.
    fn marks(&self, context: Context<'_>) -> Result<Pairs, TooManySources> {
        let none = Pairs::default();
        let there = self.there.map_or(&none, |there| &there.meta);
        if self.assigned.is_empty() {
            return Ok(source::without_marks(there));
        }
        source::meta(context.desired.cluster(), &self.owners(|_, _| true), there)
    }

    /// Whose what is to be, of that to which `of` applies.
    fn owners(&self, of: impl Fn(&SourceName, &Owner) -> bool) -> Owners {
        let assigned = self.assigned.iter();
        let assigned = assigned.filter(|(name, (_, owner))| of(name, owner));
        assigned
            .map(|(name, (_, owner))| (name.clone(), owner.clone()))
            .collect()
    }

    /// The objects that have to do without what they do not have, where the marks have no room for all.
    ///
    /// Whoever has a place keeps it, whoever is older: first the youngest of those wait that have none,
    /// then the youngest that ask for more than their place has room for.
    fn who_waits(&self, claimants: &[Claimant<'_>], excess: &TooManySources) -> BTreeSet<Owner> {
        let new = self.owners(|name, owner| self.owner(name) != Some(owner));
        let new: BTreeSet<&Owner> = new.values().collect();
        let kept = self.owners(|name, owner| self.owner(name) == Some(owner));
        let kept = source::pairs(&kept);
        let there = self.there.iter();
        let settled: BTreeSet<&Owner> = there
            .flat_map(|there| there.owners.values().chain(there.lost.values()))
            .collect();
        let youngest = || {
            let youngest = claimants.iter().rev().map(|it| &it.owner);
            youngest.filter(|owner| new.contains(owner) && !self.left_out.contains(*owner))
        };
        let homeless = youngest().filter(|owner| !settled.contains(owner));
        let growing = youngest().filter(|owner| settled.contains(owner));
        let (mut freed, mut waits) = (0, BTreeSet::new());
        for owner in homeless.chain(growing) {
            if freed >= excess.surplus {
                break;
            }
            let pairs = |of: &BTreeMap<Owner, usize>| of.get(owner).copied().unwrap_or_default();
            let gain = pairs(&excess.pairs).saturating_sub(pairs(&kept));
            if gain > 0 {
                freed += gain;
                waits.insert(owner.clone());
            }
        }
        if waits.is_empty() {
            // Only the pair of a token is too much then.
            waits.extend(youngest().next().cloned());
        }
        waits
    }

    fn step(
        &self,
        sources: BTreeMap<SourceName, wire::SourceIntention>,
        jwt: Option<wire::IntentionJwt>,
        meta: Pairs,
        puts: Vec<Put>,
    ) -> EntryStep {
        let index = self.there.map_or(0, |there| there.modify_index);
        let Some(owner) = self.concerned(&puts) else {
            return EntryStep::Settled;
        };
        if sources.is_empty() {
            if self.there.is_none() {
                return EntryStep::Settled;
            }
            let mut write = EntryWrite::new(owner, Change::DeleteIntentions(index));
            write.removed.clone_from(&self.removed);
            return EntryStep::Write(write);
        }
        let mut fields = Vec::new();
        if let Some(there) = self.there {
            for (field, differs) in [
                ("sources", there.sources != sources),
                ("jwt", there.jwt != jwt),
                ("meta", there.meta != meta),
            ] {
                if differs {
                    fields.push(field);
                }
            }
            if fields.is_empty() {
                return EntryStep::Settled;
            }
        }
        let name = self.there.map(|there| there.name.clone());
        let other = self.there.map(|there| there.other.clone());
        let entry = wire::ServiceIntentions {
            name: name.unwrap_or_else(|| self.destination.text().clone()),
            jwt,
            sources: sources.into_values().collect(),
            meta,
            other: other.unwrap_or_default(),
            ..wire::ServiceIntentions::default()
        };
        let mut write = EntryWrite::new(owner, Change::PutIntentions(entry, index));
        write.fields = fields;
        write.puts = puts;
        write.removed.clone_from(&self.removed);
        EntryStep::Write(write)
    }

    /// The objects of which something is other than it stands there, the oldest first.
    fn puts(&self, claimants: &[Claimant<'_>]) -> Vec<Put> {
        let differs = |owner: &Owner| {
            let mut of = self.assigned.iter().filter(|(_, (_, of))| of == owner);
            of.any(|(name, (content, _))| self.found(name).as_ref() != Some(content))
        };
        let had = |owner: &Owner| {
            let owners = self.there.map(|there| there.owners.values());
            owners.into_iter().flatten().any(|of| of == owner)
        };
        let changed = claimants.iter().filter(|it| differs(&it.owner));
        changed
            .map(|it| Put {
                owner: it.owner.clone(),
                generation: it.generation,
                is_new: !had(&it.owner),
            })
            .collect()
    }

    /// The object that a write is for: one whose source changes, or goes, else one whose source is
    /// there.
    fn concerned<'b>(&'b self, puts: &'b [Put]) -> Option<&'b Owner> {
        let mut assigned = self.assigned.iter();
        let taken = assigned.find(|(name, (_, owner))| self.owner(name) != Some(owner));
        let changed = puts.first().map(|put| &put.owner);
        let removed = self.removed.first().map(|gone| &gone.owner);
        let any = self.assigned.values().next();
        changed
            .or(taken.map(|(_, (_, owner))| owner))
            .or(removed)
            .or(any.map(|(_, owner)| owner))
    }
}
