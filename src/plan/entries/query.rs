//! Prepared queries and their ledger, one step at a time.
//!
//! The ledger says whose a query is, and is written before the query is: so a process may die between
//! any two steps, and the next one finds out from what it reads where to go on.

use super::{Change, Context, EntryFinding, EntryStep, EntryWrite, Gone, Stand, State, losers};
use crate::consul::wire;
use crate::desired::index::entries::QueryClaimant;
use crate::model::key::{Key, Table};
use crate::model::ledger::{self, Ledger};
use crate::model::names::QueryName;
use crate::model::owner::Owner;
use crate::model::text::Text;
use crate::observed::entries::{Elsewhere, ObservedQuery, definition, hash};
use crate::policy::{Refusal, Sort};

pub(super) fn decide(name: &QueryName, context: Context<'_>) -> EntryFinding {
    let key = Key::Query(name.clone());
    let nothing = ObservedQuery::default();
    let there = context.observed.queries.get(name).unwrap_or(&nothing);
    let mut refused = Vec::new();
    let mut claimants = Vec::new();
    for claimant in context.desired.queries_of(name) {
        match not_allowed(name, claimant, there, context) {
            None => claimants.push(claimant),
            Some(refusal) => refused.push((claimant.owner.clone(), refusal)),
        }
    }
    let mut claimants = claimants.into_iter();
    let holder = claimants.next();
    let losing = claimants.map(|claimant| claimant.owner.clone());
    let kept = there.owner().filter(|keeper| {
        let paused = context.desired.freeze_of(keeper).is_some();
        paused && holder.is_none_or(|holder| holder.owner != *keeper)
    });
    if let Some(keeper) = kept
        && let Some(refusal) = not_allowed_to_keep(name, &keeper, there, context)
    {
        refused.push((keeper, refusal));
    }
    let is_refused = |owner: &Owner| refused.iter().any(|(of, _)| of == owner);
    // What a frozen object holds stays its own, whoever claims it.
    if let Some(keeper) = there.owner()
        && holder.is_none_or(|holder| holder.owner != keeper)
        && !is_refused(&keeper)
        && let Some(freeze) = context.desired.freeze_of(&keeper)
    {
        let stand = Stand {
            owner: keeper.clone(),
            claimed: true,
            there: there.ours().is_some(),
            state: State::Frozen(freeze),
        };
        let all = holder
            .map(|holder| holder.owner.clone())
            .into_iter()
            .chain(losing);
        let stands = [stand].into_iter().chain(losers(&keeper, all));
        let stands = stands.chain(stands_of(&refused, None)).collect();
        return EntryFinding::of(&key, stands, EntryStep::Settled);
    }
    let Some(holder) = holder else {
        let owner = there.owner();
        let of_owner = refused.iter().find(|(of, _)| owner.as_ref() == Some(of));
        let refusal = of_owner.map(|(_, refusal)| refusal);
        let mut finding = unclaimed(name, there, refusal, context);
        let told = owner.filter(|_| refusal.is_some());
        for part in &mut finding.parts {
            part.stands.extend(stands_of(&refused, told.as_ref()));
        }
        return finding;
    };
    let (state, step) = claimed(name, holder, there, context);
    let stand = Stand {
        owner: holder.owner.clone(),
        claimed: true,
        there: there.ours_spelt(&holder.query.name).is_some(),
        state,
    };
    let stands = [stand]
        .into_iter()
        .chain(losers(&holder.owner, losing))
        .chain(stands_of(&refused, None))
        .collect();
    EntryFinding::of(&key, stands, step)
}

/// Why the namespace of an object may not claim a query, if it may not.
fn not_allowed(
    name: &QueryName,
    claimant: &QueryClaimant,
    there: &ObservedQuery,
    context: Context<'_>,
) -> Option<Refusal> {
    let sort = Sort::of_query(claimant.query.template.is_some());
    let namespace = &claimant.owner.namespace;
    let present = there.owner().is_some_and(|of| of.namespace == *namespace);
    context
        .admits((sort, namespace, name.text()), present)
        .err()
}

/// Why a paused or invalid object may not keep a query, if it may not.
fn not_allowed_to_keep(
    name: &QueryName,
    keeper: &Owner,
    there: &ObservedQuery,
    context: Context<'_>,
) -> Option<Refusal> {
    let sort = Sort::of_query(there.ours().is_some_and(|query| query.template.is_some()));
    context
        .admits((sort, &keeper.namespace, name.text()), true)
        .err()
}

/// How a query stands for those that may not claim it, but for one of them.
fn stands_of(refused: &[(Owner, Refusal)], but: Option<&Owner>) -> Vec<Stand> {
    let others = refused.iter().filter(|(owner, _)| Some(owner) != but);
    let stand = |(owner, refusal): &(Owner, Refusal)| Stand {
        owner: owner.clone(),
        claimed: true,
        there: false,
        state: State::NotAllowed(refusal.clone(), None),
    };
    others.map(stand).collect()
}

fn claimed(
    name: &QueryName,
    holder: &QueryClaimant,
    there: &ObservedQuery,
    context: Context<'_>,
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
            Some(named) if there.ours().is_some() => {
                write(Change::PutLedger(noted(&named.id, None), 0))
            }
            Some(named) if is_adopted(holder, there) => {
                let sort = Sort::of_query(wanted.template.is_some());
                match context.admits_adopt((sort, &holder.owner.namespace, name.text())) {
                    Ok(()) => write(Change::PutLedger(noted(&named.id, None), 0)),
                    Err(refusal) => (State::NotAllowed(refusal, None), EntryStep::Settled),
                }
            }
            Some(named) => another(of_another(named, &there.elsewhere)),
        };
    };
    if ledger.owner().is_none() && !there.is_spoilt() {
        let at = ledger::key(context.desired.cluster(), name);
        return another(format!(
            "the entry {at} of Consul's KV, which is not understood"
        ));
    }
    let Some(ours) = there.ours_spelt(&wanted.name) else {
        // It may only be hidden: what the ledger says of it is all that makes it ours.
        if there.named.is_none()
            && (!ledger.id.is_empty() || ledger.hash != hash(wanted))
            && let Err(hold) = context.is_whole(Table::Queries)
        {
            return (State::Held(hold), EntryStep::Settled);
        }
        return match &there.named {
            // Two clusters note it, and which of the two notes is true is not to be told from here: it
            // may be the other's that was spoilt, and is put right.
            Some(named) if there.says(named) => another(of_another(named, &there.elsewhere)),
            // Somebody took the name: between our note and our query, or after ours was removed.
            Some(_) if context.is_whole(Table::Queries).is_ok() => {
                write(Change::DeleteLedger(*index))
            }
            Some(named) => another(of_another(named, &there.elsewhere)),
            None => {
                let note = noted(&Text::default(), Some(ledger));
                if *ledger == note {
                    write(Change::CreateQuery(wanted.clone()))
                } else {
                    write(Change::PutLedger(note, *index))
                }
            }
        };
    };
    if let Some(named) = there.named.as_ref().filter(|named| named.id != ours.id) {
        return another(of_another(named, &there.elsewhere));
    }
    // The ledger first: were the query changed before its id is noted, its hash would not be the
    // noted one any more, and a process that starts after a crash would not know it.
    let note = noted(&ours.id, Some(ledger));
    if *ledger != note {
        return write(Change::PutLedger(note, *index));
    }
    let fields = differing(&definition(ours), wanted);
    if fields.is_empty() {
        return (State::Fine, EntryStep::Settled);
    }
    let query = wire::PreparedQuery {
        id: ours.id.clone(),
        ..wanted.clone()
    };
    let mut write = EntryWrite::new(&holder.owner, Change::UpdateQuery(query, ours.modify_index));
    write.fields = fields;
    (State::Pending, EntryStep::Write(write))
}

/// Whether a query that nobody's ledger has is taken over. Where other ledgers cannot be read it may
/// be another cluster's.
fn is_adopted(holder: &QueryClaimant, there: &ObservedQuery) -> bool {
    holder.adopt && there.elsewhere == Elsewhere::No
}

/// The fields in which a query is another than wanted.
fn differing(there: &wire::PreparedQuery, wanted: &wire::PreparedQuery) -> Vec<&'static str> {
    let wire::PreparedQuery {
        id: _,
        name,
        session,
        token,
        template,
        service,
        dns,
        create_index: _,
        modify_index: _,
    } = there;
    let parts = [
        ("name", *name != wanted.name),
        ("session", *session != wanted.session),
        ("token", *token != wanted.token),
        ("template", *template != wanted.template),
        ("dns", *dns != wanted.dns),
    ];
    let wire::QueryService {
        service,
        sameness_group,
        failover,
        only_passing,
        ignore_check_ids,
        near,
        tags,
        node_meta,
        service_meta,
        connect,
        peer,
    } = service;
    let of = &wanted.service;
    let of_service = [
        ("service", *service != of.service),
        ("sameness group", *sameness_group != of.sameness_group),
        ("failover", *failover != of.failover),
        ("only passing", *only_passing != of.only_passing),
        ("ignored checks", *ignore_check_ids != of.ignore_check_ids),
        ("near", *near != of.near),
        ("tags", *tags != of.tags),
        ("node meta", *node_meta != of.node_meta),
        ("service meta", *service_meta != of.service_meta),
        ("connect", *connect != of.connect),
        ("peer", *peer != of.peer),
    ];
    let all = parts.into_iter().chain(of_service);
    all.filter_map(|(name, differs)| differs.then_some(name))
        .collect()
}

fn of_another(query: &wire::PreparedQuery, elsewhere: &Elsewhere) -> String {
    let id = &query.id;
    match elsewhere {
        Elsewhere::Noted(whose) | Elsewhere::Here(whose) => format!("{whose} (id {id})"),
        Elsewhere::No => format!("a query of nobody's, made by hand or by another tool (id {id})"),
        Elsewhere::Unknown => format!(
            "a query that may be another cluster's, whose ledgers cannot be read: give the token \
             key_prefix \"lictor/v1/\" read (id {id})"
        ),
    }
}

/// What becomes of a query that nothing claims, or that its owner may not claim.
fn unclaimed(
    name: &QueryName,
    there: &ObservedQuery,
    refusal: Option<&Refusal>,
    context: Context<'_>,
) -> EntryFinding {
    let key = &Key::Query(name.clone());
    let name = name.as_ref();
    let Some(owner) = there.owner() else {
        return EntryFinding::of(key, Vec::new(), EntryStep::Settled);
    };
    let finding = |state: State, step: EntryStep| {
        let state = match (refusal, state) {
            (Some(refusal), State::Held(hold)) => State::NotAllowed(refusal.clone(), Some(hold)),
            (Some(refusal), _) => State::NotAllowed(refusal.clone(), None),
            (None, state) => state,
        };
        let stand = Stand {
            owner: owner.clone(),
            claimed: refusal.is_some(),
            there: there.ours_spelt(name).is_some(),
            state,
        };
        EntryFinding::of(key, vec![stand], step)
    };
    let Some(query) = there.ours_spelt(name) else {
        // A note of what is not there protects nothing, unless it may only be hidden.
        if let Err(hold) = context.is_whole(Table::Queries) {
            return finding(State::Held(hold), EntryStep::Settled);
        }
        let Some((_, index)) = &there.ledger else {
            return EntryFinding::of(key, Vec::new(), EntryStep::Settled);
        };
        let write = EntryWrite::new(&owner, Change::DeleteLedger(*index));
        return finding(State::Pending, EntryStep::Write(write));
    };
    let may = match refusal {
        Some(refusal) => context.may_withdraw(key, &owner, Table::Queries, refusal),
        None => context.may_remove(key, &owner, Table::Queries),
    };
    let why = match may {
        Ok(why) => why,
        Err(hold) => return finding(State::Held(hold), EntryStep::Settled),
    };
    // A spoilt entry is put right first: it is struck out by what it says.
    if let Some((ledger, index)) = &there.ledger
        && let Some(note) = there.note()
        && (ledger.owner().is_none() || !(ledger.id.is_empty() || there.says(query)))
    {
        let write = EntryWrite::new(&owner, Change::PutLedger(note.clone(), *index));
        return finding(State::Pending, EntryStep::Write(write));
    }
    let change = Change::DeleteQuery(query.id.clone(), query.modify_index);
    let mut write = EntryWrite::new(&owner, change);
    write.removed.push(Gone {
        key: key.clone(),
        owner: owner.clone(),
        why,
    });
    finding(State::Pending, EntryStep::Write(write))
}
