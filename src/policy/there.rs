//! What of ours is in Consul, as claims: where the rule only begins, it stays.

use std::collections::BTreeSet;

use super::ledger::Ledger;
use super::names::Moment;
use super::{Claim, Sort};
use crate::desired::index::Index;
use crate::model::key::{Key, Table};
use crate::model::marks::Standing;
use crate::model::text::Text;
use crate::observed::entries::ObservedQuery;
use crate::observed::mirror::Mirror;

/// The tables that hold what is claimed by names.
pub const TABLES: [Table; 2] = [Table::Intentions, Table::Queries];

/// The services that namespaces have instances of.
#[must_use]
pub fn registered(observed: &Mirror) -> BTreeSet<(Text, Text)> {
    let of = |key: Key| {
        let Key::Instance(key) = key else { return None };
        let there = observed.instance(&key)?;
        match observed.standing(&key, there) {
            Standing::Ours(owner) => Some((there.service.name.clone(), owner.namespace)),
            Standing::Foreign(_) => None,
        }
    };
    observed.keys().filter_map(of).collect()
}

/// What is claimed by what of ours is in a table.
#[must_use]
pub fn in_table(table: Table, observed: &Mirror) -> Vec<Claim> {
    match table {
        Table::Defaults => Vec::new(),
        Table::Intentions => {
            let intentions = observed.intentions.iter();
            let claims = intentions.flat_map(|(destination, there)| {
                there.owners.values().map(|owner| Claim {
                    sort: Sort::Destination,
                    namespace: owner.namespace.clone(),
                    name: destination.text().clone(),
                })
            });
            claims.collect()
        }
        Table::Queries => {
            let queries = observed.queries.iter();
            let claims = queries.filter_map(|(name, there)| {
                let is_template = ObservedQuery::ours(there)?.template.is_some();
                Some(Claim {
                    sort: Sort::of_query(is_template),
                    namespace: there.owner()?.namespace,
                    name: name.text().clone(),
                })
            });
            claims.collect()
        }
    }
}

/// Judges all that is claimed, as after a start, where all of Consul is known at once.
pub fn settle(index: &mut Index, observed: &Mirror, ledger: &Ledger, moment: Moment) {
    let Index {
        admission, watches, ..
    } = index;
    admission.settle(Ok(ledger), registered(observed), false, moment, watches);
    if !admission.begins() {
        return;
    }
    for claim in TABLES
        .into_iter()
        .flat_map(|table| in_table(table, observed))
    {
        admission.keep_there(&claim);
    }
    admission.begun();
}
