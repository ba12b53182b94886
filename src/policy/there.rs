//! What of ours is in Consul, as claims: where the rule only begins, it stays.

use std::collections::BTreeSet;

use super::admission::Memory;
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

/// The names that namespaces use in any way, as Consul shows it: what is paused, held or cannot be
/// understood claims nothing, and keeps what it has.
#[must_use]
pub fn used(observed: &Mirror) -> BTreeSet<(Text, Text)> {
    let in_tables = TABLES
        .into_iter()
        .flat_map(|table| in_table(table, observed));
    let in_tables = in_tables.map(|claim| (claim.name, claim.namespace));
    registered(observed).into_iter().chain(in_tables).collect()
}

/// Judges all that is claimed, as after a start, where all of Consul is known at once.
pub fn settle(index: &mut Index, observed: &Mirror, ledger: &Ledger, moment: Moment) {
    let Index {
        admission, watches, ..
    } = index;
    let memory = Memory::Superseded;
    admission.settle(Ok(ledger), registered(observed), memory, moment, watches);
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::names::Destination;
    use crate::observed::entries::ObservedIntentions;
    use crate::observed::table::Knowledge;

    #[test]
    fn a_name_is_used_as_long_as_consul_has_an_intention_to_it() {
        let cluster = "a".parse().unwrap();
        let entry = json!({
            "Kind": "service-intentions", "Name": "payment", "ModifyIndex": 4,
            "Sources": [{"Name": "web", "Action": "allow"}],
            "Meta": {"external-source": "kubernetes", "lictor-cluster": "a", "lictor-src-0": "shop/one=web"},
        });
        let there = ObservedIntentions::of(&cluster, serde_json::from_value(entry).unwrap());
        let mut mirror = Mirror::new(cluster);
        let rows = [(Destination::new("payment"), there)].into();
        let ticket = mirror.intentions.start_read();
        mirror
            .intentions
            .finish_read(&ticket, rows, Knowledge::Whole, |_| false);
        assert!(registered(&mirror).is_empty());
        assert_eq!(used(&mirror), [("payment".into(), "shop".into())].into());
    }
}
