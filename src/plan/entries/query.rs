//! Prepared queries and their ledger, one step at a time.
//!
//! The ledger says whose a query is, and is written before the query is: so a process may die between
//! any two steps, and the next one finds out from what it reads where to go on.

use super::{Change, Context, EntryFinding, EntryStep, EntryWrite, Gone, Stand, State, losers};
use crate::consul::wire;
use crate::desired::index::entries::QueryClaimant;
use crate::model::key::{Key, Table};
use crate::model::ledger::Ledger;
use crate::model::names::QueryName;
use crate::model::text::Text;
use crate::observed::entries::{ObservedQuery, definition, hash};
use crate::observed::table::Knowledge;
use crate::plan::gate::Hold;

pub(super) fn decide(name: &QueryName, context: Context<'_>) -> EntryFinding {
    let key = Key::Query(name.clone());
    let nothing = ObservedQuery::default();
    let there = context.observed.queries.get(name).unwrap_or(&nothing);
    let mut claimants = context.desired.queries_of(name);
    let holder = claimants.next();
    let losing = claimants.map(|claimant| claimant.owner.clone());
    // What a frozen object holds stays its own, whoever claims it.
    if let Some(keeper) = there.ledger.as_ref().and_then(|(ledger, _)| ledger.owner())
        && holder.is_none_or(|holder| holder.owner != keeper)
        && let Some(freeze) = context.desired.freeze_of(&keeper)
    {
        let stand = Stand {
            owner: keeper.clone(),
            claimed: true,
            there: ours(there).is_some(),
            state: State::Frozen(freeze),
        };
        let all = holder
            .map(|holder| holder.owner.clone())
            .into_iter()
            .chain(losing);
        let stands = [stand].into_iter().chain(losers(&keeper, all)).collect();
        return EntryFinding::of(&key, stands, EntryStep::Settled);
    }
    let Some(holder) = holder else {
        return unclaimed(&key, there, context);
    };
    let (state, step) = claimed(holder, there, context.observed.queries.knowledge());
    let stand = Stand {
        owner: holder.owner.clone(),
        claimed: true,
        there: ours(there).is_some(),
        state,
    };
    let stands = [stand]
        .into_iter()
        .chain(losers(&holder.owner, losing))
        .collect();
    EntryFinding::of(&key, stands, step)
}

/// The query that is ours, as far as the ledger tells.
#[must_use]
pub fn ours(there: &ObservedQuery) -> Option<&wire::PreparedQuery> {
    let (ledger, _) = there.ledger.as_ref()?;
    if ledger.id.is_empty() {
        let named = there.named.as_ref();
        return named.filter(|named| hash(&definition(named)) == ledger.hash);
    }
    let is_it = |query: &&wire::PreparedQuery| *query.id == *ledger.id;
    let named = there.named.as_ref().filter(is_it);
    named.or_else(|| there.renamed.as_ref().filter(is_it))
}

fn claimed(
    holder: &QueryClaimant,
    there: &ObservedQuery,
    knowledge: &Knowledge,
) -> (State, EntryStep) {
    let wanted = &holder.query;
    let write = |change: Change| {
        (
            State::Pending,
            EntryStep::Write(EntryWrite::new(&holder.owner, change)),
        )
    };
    let noted = |id: &Text, before: Option<&Ledger>| Ledger {
        id: id.to_string(),
        other: before
            .map(|before| before.other.clone())
            .unwrap_or_default(),
        ..Ledger::new(&holder.owner, &holder.uid, hash(wanted))
    };
    let another = |who: String| (State::OwnedByAnother(who.into()), EntryStep::Settled);
    let Some((ledger, index)) = &there.ledger else {
        return match &there.named {
            None => write(Change::PutLedger(noted(&Text::default(), None), 0)),
            Some(named) if holder.adopt => write(Change::PutLedger(noted(&named.id, None), 0)),
            Some(named) => another(of_nobody(named)),
        };
    };
    if ledger.owner().is_none() {
        return another("an entry of the ledger that cannot be understood".to_owned());
    }
    let Some(ours) = ours(there) else {
        // It may only be hidden: what the ledger says of it is all that makes it ours.
        if let Knowledge::Partial(reason) = knowledge
            && (!ledger.id.is_empty() || ledger.hash != hash(wanted))
        {
            let resource = Table::Queries.as_str();
            let reason = reason.clone();
            let hold = Hold::Incomplete { resource, reason };
            return (State::Held(hold), EntryStep::Settled);
        }
        if there.named.is_some() {
            // Somebody took the name: between our note and our query, or after ours was removed.
            return write(Change::DeleteLedger(*index));
        }
        let note = noted(&Text::default(), Some(ledger));
        return if *ledger == note {
            write(Change::CreateQuery(wanted.clone()))
        } else {
            write(Change::PutLedger(note, *index))
        };
    };
    if ledger.id.is_empty() {
        // Before it is changed: from then on only its id tells that it is ours.
        let noted = Ledger {
            id: ours.id.to_string(),
            ..ledger.clone()
        };
        return write(Change::PutLedger(noted, *index));
    }
    if let Some(named) = there.named.as_ref().filter(|named| named.id != ours.id) {
        return another(of_nobody(named));
    }
    if definition(ours) != *wanted {
        let query = wire::PreparedQuery {
            id: ours.id.clone(),
            ..wanted.clone()
        };
        return write(Change::UpdateQuery(query, ours.modify_index));
    }
    let note = noted(&ours.id, Some(ledger));
    if *ledger != note {
        return write(Change::PutLedger(note, *index));
    }
    (State::Fine, EntryStep::Settled)
}

fn of_nobody(query: &wire::PreparedQuery) -> String {
    format!(
        "a query that Lictor of this cluster did not create (id {}), of another cluster, another tool or \
         by hand",
        query.id
    )
}

fn unclaimed(key: &Key, there: &ObservedQuery, context: Context<'_>) -> EntryFinding {
    let noted = there.ledger.as_ref();
    let Some((index, owner)) = noted.and_then(|(ledger, index)| Some((index, ledger.owner()?)))
    else {
        return EntryFinding::of(key, Vec::new(), EntryStep::Settled);
    };
    let finding = |state: State, step: EntryStep| {
        let stand = Stand {
            owner: owner.clone(),
            claimed: false,
            there: ours(there).is_some(),
            state,
        };
        EntryFinding::of(key, vec![stand], step)
    };
    let Some(query) = ours(there) else {
        // A note of what is not there protects nothing, unless it may only be hidden.
        let whole = *context.observed.queries.knowledge() == Knowledge::Whole;
        let write = EntryWrite::new(&owner, Change::DeleteLedger(*index));
        let step = if whole {
            EntryStep::Write(write)
        } else {
            EntryStep::Settled
        };
        return finding(State::Pending, step);
    };
    let why = match context.may_remove(key, Table::Queries) {
        Ok(why) => why,
        Err(hold) => return finding(State::Held(hold), EntryStep::Settled),
    };
    let change = Change::DeleteQuery(query.id.clone(), query.modify_index);
    let mut write = EntryWrite::new(&owner, change);
    write.removed.push(Gone {
        key: key.clone(),
        owner: owner.clone(),
        why,
    });
    finding(State::Pending, EntryStep::Write(write))
}
