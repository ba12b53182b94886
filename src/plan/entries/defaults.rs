//! The defaults of a service: only its protocol, for objects that ask for one.

use super::{Change, Context, EntryFinding, EntryStep, EntryWrite, Gone, Stand, State, losers};
use crate::consul::wire;
use crate::desired::claim::Freeze;
use crate::desired::index::entries::DefaultsClaimant;
use crate::model::key::{Key, Table, source_key};
use crate::model::marks;
use crate::model::names::{Destination, ServiceName};
use crate::model::owner::Owner;
use crate::model::source::{self, SourceName};
use crate::model::text::{Pairs, Text};
use crate::observed::entries::{Holder, ObservedDefaults};
use crate::policy::{Refusal, Sort};

pub(super) fn decide(service: &ServiceName, context: Context<'_>) -> EntryFinding {
    let key = Key::Defaults(service.clone());
    let there = context.observed.defaults.get(service);
    let not_allowed = |owner: &Owner| {
        let of = there.and_then(|there| there.owner.as_ref());
        let present = of.is_some_and(|of| of.namespace == owner.namespace);
        let asked = (Sort::Service, &owner.namespace, service.text());
        context.admits(asked, present).err()
    };
    let (mut claimants, mut refused) = (Vec::<&DefaultsClaimant>::new(), Vec::new());
    for claimant in context.desired.defaults_of(service) {
        match not_allowed(&claimant.owner) {
            None => claimants.push(claimant),
            Some(refusal) => refused.push((claimant.owner.clone(), refusal)),
        }
    }
    let owner = there.and_then(|there| there.owner.as_ref());
    let freeze = owner.and_then(|owner| context.desired.freeze_of(owner));
    if let (Some(owner), Some(_)) = (owner, &freeze)
        && let Some(refusal) = not_allowed(owner)
    {
        refused.push((owner.clone(), refusal));
    }
    let of_owner = refused.iter().find(|(of, _)| Some(of) == owner);
    let refusal = of_owner.map(|(_, refusal)| refusal);
    let mut told = None;
    let mut finding = match (claimants.first(), there, owner, freeze) {
        (_, Some(there), Some(owner), Some(freeze)) if refusal.is_none() => {
            frozen(&key, owner, &freeze, &claimants, there)
        }
        (Some(holder), ..) => claimed(&key, service, holder, &claimants, there, context),
        (None, ..) => {
            told = owner.filter(|_| refusal.is_some());
            unclaimed(&key, service, there, refusal, context)
        }
    };
    let others = refused.iter().filter(|(owner, _)| Some(owner) != told);
    for part in &mut finding.parts {
        part.stands
            .extend(others.clone().map(|(owner, refusal)| Stand {
                owner: owner.clone(),
                claimed: true,
                there: false,
                state: State::NotAllowed(refusal.clone(), None),
            }));
    }
    finding
}

/// What a paused or invalid object wrote stays as it is, and serves those that ask for the same.
fn frozen(
    key: &Key,
    owner: &Owner,
    freeze: &Freeze,
    claimants: &[&DefaultsClaimant],
    there: &ObservedDefaults,
) -> EntryFinding {
    let keeps = Stand {
        owner: owner.clone(),
        claimed: true,
        there: true,
        state: State::Frozen(freeze.clone()),
    };
    let (agree, differ): (Vec<&DefaultsClaimant>, Vec<&DefaultsClaimant>) = claimants
        .iter()
        .partition(|claimant| claimant.protocol == there.entry.protocol);
    let agreeing = agree.into_iter().map(|claimant| Stand {
        owner: claimant.owner.clone(),
        claimed: true,
        there: true,
        state: State::Fine,
    });
    let others = differ.into_iter().map(|claimant| claimant.owner.clone());
    let stands = std::iter::once(keeps).chain(agreeing);
    let stands = stands.chain(losers(owner, others)).collect();
    EntryFinding::of(key, stands, EntryStep::Settled)
}

fn claimed(
    key: &Key,
    service: &ServiceName,
    holder: &DefaultsClaimant,
    claimants: &[&DefaultsClaimant],
    there: Option<&ObservedDefaults>,
    context: Context<'_>,
) -> EntryFinding {
    let (agree, differ): (Vec<&DefaultsClaimant>, Vec<&DefaultsClaimant>) = claimants
        .iter()
        .copied()
        .partition(|claimant| claimant.protocol == holder.protocol);
    let finding = |state: State, is_there: bool, step: EntryStep| {
        let agreeing = agree.iter().map(|claimant| Stand {
            owner: claimant.owner.clone(),
            claimed: true,
            there: is_there,
            state: state.clone(),
        });
        let others = differ.iter().map(|claimant| claimant.owner.clone());
        let stands = agreeing.chain(losers(&holder.owner, others)).collect();
        EntryFinding::of(key, stands, step)
    };
    let equal = there.is_some_and(|there| there.entry.protocol == holder.protocol);
    let ours = match there {
        None => true,
        Some(there) => match &there.holder {
            Holder::Ours => true,
            Holder::Nobody | Holder::Incomplete(_) if there.was_ours => true,
            // What others wrote serves as well.
            _ if equal => return finding(State::Fine, true, EntryStep::Settled),
            Holder::Nobody => agree.iter().any(|claimant| {
                let asked = (Sort::Service, &claimant.owner.namespace, service.text());
                claimant.adopt && context.admits_adopt(asked).is_ok()
            }),
            Holder::Incomplete(_) | Holder::Another(_) => false,
        },
    };
    if !ours {
        let nobodys = there.is_some_and(|there| there.holder == Holder::Nobody);
        let adopt = agree.iter().find(|it| it.adopt && nobodys).and_then(|it| {
            let asked = (Sort::Service, &it.owner.namespace, service.text());
            context.admits_adopt(asked).err()
        });
        if let Some(refusal) = adopt {
            return finding(State::NotAllowed(refusal, None), false, EntryStep::Settled);
        }
        let by = there.map(|there| match &there.holder {
            Holder::Incomplete(by) | Holder::Another(by) => by.clone(),
            Holder::Ours | Holder::Nobody => {
                marks::holder(context.desired.cluster(), &Pairs::default())
            }
        });
        let protocol = there.map_or_else(Text::default, |there| there.entry.protocol.clone());
        let by = format!("{}, with the protocol {protocol:?}", by.unwrap_or_default());
        return finding(State::OwnedByAnother(by.into()), false, EntryStep::Settled);
    }
    let before = there.map(|there| there.entry.clone()).unwrap_or_default();
    let meta = meta(context, &holder.owner, &before.meta);
    if equal && before.meta == meta {
        return finding(State::Fine, true, EntryStep::Settled);
    }
    let index = before.modify_index;
    let name = if before.name.is_empty() {
        service.text().clone()
    } else {
        before.name.clone()
    };
    let mut fields = Vec::new();
    if !equal && there.is_some() {
        fields.push("protocol");
    }
    if before.meta != meta && there.is_some() {
        fields.push("meta");
    }
    let entry = wire::ServiceDefaults {
        name,
        protocol: holder.protocol.clone(),
        meta,
        ..before
    };
    let mut write = EntryWrite::new(&holder.owner, Change::PutDefaults(entry, index));
    write.fields = fields;
    finding(State::Pending, equal, EntryStep::Write(write))
}

fn unclaimed(
    key: &Key,
    service: &ServiceName,
    there: Option<&ObservedDefaults>,
    refusal: Option<&Refusal>,
    context: Context<'_>,
) -> EntryFinding {
    let settled = || EntryFinding::of(key, Vec::new(), EntryStep::Settled);
    let Some(there) = there.filter(|there| there.holder == Holder::Ours) else {
        return settled();
    };
    let Some(owner) = &there.owner else {
        return settled();
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
            there: true,
            state,
        };
        EntryFinding::of(key, vec![stand], step)
    };
    let may = match refusal {
        Some(refusal) => context.may_withdraw(key, owner, Table::Defaults, refusal),
        None => context.may_remove(key, owner, Table::Defaults),
    };
    let why = match may {
        Ok(why) => why,
        Err(hold) => return finding(State::Held(hold), EntryStep::Settled),
    };
    if rules_go_too(service, context) {
        return finding(State::Pending, EntryStep::Settled);
    }
    let index = there.entry.modify_index;
    // What somebody added to it stays.
    let rest = wire::ServiceDefaults {
        protocol: Text::default(),
        meta: source::without_marks(&there.entry.meta),
        ..there.entry.clone()
    };
    let change = if rest.other.is_empty() && rest.meta.is_empty() {
        Change::DeleteDefaults(index)
    } else {
        Change::PutDefaults(rest, index)
    };
    let mut write = EntryWrite::new(owner, change);
    write.removed.push(Gone {
        key: key.clone(),
        owner: owner.clone(),
        why,
    });
    finding(State::Pending, EntryStep::Write(write))
}

/// Whether intentions with rules for requests, for which Consul keeps the protocol, are to go as well. Of
/// those that stay only Consul knows whether they need it: `proxy-defaults` may give them another.
fn rules_go_too(service: &ServiceName, context: Context<'_>) -> bool {
    let destination = Destination::new(service.as_ref());
    let Some(there) = context.observed.intentions.get(&destination) else {
        return false;
    };
    let is_claimed = |name: &SourceName| {
        let key = source_key(&destination, name.clone());
        !context.desired.owners_of(&key).is_empty()
    };
    there.sources.iter().any(|(name, source)| {
        let owner = there.owners.get(name);
        let is_kept = |owner| context.desired.freeze_of(owner).is_some();
        !source.permissions.is_empty() && owner.is_some_and(|it| !is_kept(it)) && !is_claimed(name)
    })
}

fn meta(context: Context<'_>, owner: &Owner, there: &Pairs) -> Pairs {
    let kept = source::without_marks(there);
    let kept = kept.iter().map(|(key, value)| (key.clone(), value.clone()));
    let ours = [
        (marks::EXTERNAL_SOURCE, marks::KUBERNETES.into()),
        (marks::CLUSTER, context.desired.cluster().as_ref().into()),
        (marks::OWNER, Text::from(owner.to_string())),
    ];
    let ours = ours.map(|(key, value): (&str, Text)| (key.into(), value));
    kept.chain(ours).collect()
}
