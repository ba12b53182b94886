//! What of a cluster's gets another owner where it stands, and how much that is.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use super::entries::DoomedEntry;
use crate::model::key::Key;
use crate::model::owner::Owner;
use crate::plan::entries::Change;

/// Something on no node that gets another owner where it stands.
#[derive(Clone, Debug)]
pub struct Handed {
    /// The key that is written.
    pub key: Key,
    /// What of it is the cluster's, and whose.
    pub parts: Vec<(Key, Owner)>,
    /// The `ModifyIndex` of the entry in the ledger, of a query.
    pub(super) ledger: Option<u64>,
}

/// How much was handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct HandedOver {
    /// Sources of intentions.
    pub intentions: usize,
    /// Prepared queries.
    pub queries: usize,
    /// Defaults of services.
    pub defaults: usize,
}

impl HandedOver {
    pub(super) fn add(&mut self, handed: &Handed) {
        match &handed.key {
            Key::Query(_) => self.queries += 1,
            Key::Defaults(_) => self.defaults += 1,
            // One that has only the mark is one all the same.
            _ => self.intentions += handed.parts.len().max(1),
        }
    }
}

impl fmt::Display for HandedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            intentions,
            queries,
            defaults,
        } = self;
        write!(
            f,
            "{intentions} intentions, {queries} queries and {defaults} service-defaults"
        )
    }
}

impl From<DoomedEntry> for Handed {
    fn from(doomed: DoomedEntry) -> Self {
        let ledger = doomed.changes.iter().find_map(|change| match change {
            Change::DeleteLedger(index) => Some(*index),
            _ => None,
        });
        Self {
            key: doomed.key,
            parts: doomed.gone,
            ledger,
        }
    }
}

impl Handed {
    /// A config entry with the cluster's mark and nothing else of it.
    pub(super) fn bare(key: Key) -> Self {
        Self {
            key,
            parts: Vec::new(),
            ledger: None,
        }
    }
}
