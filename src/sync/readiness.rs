//! How far the engine is, for `/readyz` and for metrics.

use std::collections::BTreeMap;

use super::engine::Engine;
use crate::desired::watches::Watch;
use crate::metrics::KindLabel;
use crate::model::key::Place;
use crate::model::kind::Kind;
use crate::observed::mirror::Completeness;
use crate::plan::Mode;

/// Whether the engine knows enough to work, for `/readyz`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Whether all watches and Consul's snapshot have been complete once, and no CRD is missing.
    pub ready: bool,
    /// What is missing or broken at this moment, for people.
    pub remarks: Vec<String>,
    /// The settings in force that may change, one line each.
    pub settings: Vec<String>,
}

impl Engine {
    /// Tells how far it is, and the metrics of how it stands.
    pub(super) fn tell_readiness(&mut self) {
        let mut remarks: Vec<String> = Vec::new();
        for kind in Kind::ALL {
            match self.index.watches.state(kind) {
                Watch::Complete => {}
                Watch::Listing => remarks.push(format!("{}: being listed", kind.resource())),
                Watch::Broken(why) => remarks.push(format!("{}: {why}", kind.resource())),
            }
        }
        if let Some(why) = self.why_not() {
            remarks.push(format!("consul: {why}"));
        } else if self.mirror.completeness() == Completeness::Unknown {
            remarks.push("consul: being read".to_owned());
        }
        remarks.extend(self.own_denied());
        let mut tables_known = true;
        for (table, state) in &self.tables {
            let known = !self.mirror.is_unsure(&Place::Table(*table));
            tables_known &= known;
            let what = table.as_str();
            match state.trouble() {
                Some(why) => remarks.push(format!("consul: {why}")),
                None if !known => remarks.push(format!("consul: {what}: being read")),
                None => {
                    let partial = self.told_partial.get(table);
                    remarks.extend(partial.map(|why| format!("consul: {why}")));
                }
            }
        }
        let refusal = self.fence.refusal().or(self.no_epoch.as_deref());
        if let Some(why) = refusal {
            remarks.push(why.to_owned());
        } else if self.rules.mode == Mode::DryRun {
            let flag = self.settings.flags().policy == Mode::DryRun;
            let whose = if flag { "--policy" } else { "policy in Consul" };
            remarks.push(format!("nothing is written: {whose} is dry-run"));
            remarks.extend(self.lead.remark().filter(|_| !flag));
        } else if !self.settings.is_known() {
            let why = self.unread_settings.as_deref().unwrap_or("being read");
            remarks.push(format!("consul: {}: {why}", self.settings.folder()));
        } else if let Some(remark) = self.lead.remark() {
            remarks.push(remark);
        } else if self.fence.index().is_none() {
            remarks.push("consul: the epoch is not taken yet".to_owned());
        }
        remarks.extend(self.settings.complaints());
        let rehearses = self.rules.mode == Mode::DryRun;
        let follows = self.lead.follows();
        self.known_once |= self.is_ready()
            && tables_known
            && (rehearses || follows || self.fence.index().is_some());
        let refused = refusal.is_some();
        let leads = self.fence.index().is_some();
        self.report.metrics.leader.set(leads.into());
        let ready = self.known_once && self.missing.is_empty() && !refused;
        self.readiness.send_if_modified(|known| {
            let changed = known.ready != ready || known.remarks != remarks;
            known.ready = ready;
            known.remarks = remarks;
            changed
        });
        let nodes = &self.rules.nodes;
        let held = if nodes.holds() { nodes.share().0 } else { 0 };
        let held = i64::try_from(held).unwrap_or(i64::MAX);
        self.report.metrics.held_nodes.set(held);
        let owned = |kind: &'static str, count: usize| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.report
                .metrics
                .owned
                .get_or_create(&KindLabel { kind })
                .set(count);
        };
        if follows {
            // The leader tells, and two that tell would count everything twice.
            for kind in ["instance", "node", "intention", "service-defaults", "query"] {
                owned(kind, 0);
            }
            self.report.count_nothing();
            return;
        }
        let waiting: usize = self.waiting.values().map(BTreeMap::len).sum();
        let pending = i64::try_from(self.dirty.pending() + waiting).unwrap_or(i64::MAX);
        self.report.metrics.pending.set(pending);
        let held = i64::try_from(self.held.len()).unwrap_or(i64::MAX);
        self.report.metrics.held_deletes.set(held);
        owned("instance", self.mirror.owned_instances());
        owned("node", self.mirror.owned_nodes());
        owned("intention", self.mirror.intentions.owned());
        owned("service-defaults", self.mirror.defaults.owned());
        owned("query", self.mirror.queries.owned());
    }
}
