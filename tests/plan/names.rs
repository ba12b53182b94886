//! Whose names are: what the engine keeps of it in Consul, and judges by.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use globset::GlobSet;
use lictor::desired::index::Index;
use lictor::model::facts::NamespaceFacts;
use lictor::model::text::Pairs;
use lictor::observed::mirror::Mirror;
use lictor::policy::ledger::Ledger;
use lictor::policy::names::Moment;
use lictor::policy::{Admission, DefaultPolicy, there};
use tokio::time::Instant;

use super::objects::{Instance, Objects, Place};

/// The default policy, and what Consul keeps of names; by default all is allowed.
#[derive(Debug, Default)]
pub struct Names {
    rule: Option<DefaultPolicy>,
    ledger: Ledger,
}

fn moment() -> Moment {
    Moment {
        now: Instant::now(),
        wall: 1,
    }
}

impl Names {
    pub fn exclusive() -> Self {
        Self {
            rule: Some(DefaultPolicy::Exclusive),
            ledger: Ledger::default(),
        }
    }

    pub fn index(&self) -> Index {
        let index = Index::new("a".parse().unwrap(), GlobSet::empty());
        match self.rule {
            // No name is let go for its age.
            Some(rule) => index.with_admission(Admission::new(rule, Duration::from_hours(24))),
            None => index,
        }
    }

    /// Shows the namespaces, of which bank is the younger.
    pub fn list(index: &mut Index) {
        for (created, name) in ["shop", "bank"].into_iter().enumerate() {
            index.apply_namespace(NamespaceFacts {
                name: name.into(),
                uid: format!("uid-{name}").into(),
                created: i64::try_from(created).unwrap(),
                labels: Pairs::default(),
            });
        }
    }

    /// A process that starts judges by what was kept.
    pub fn settle(&self, index: &mut Index, mirror: &Mirror) {
        if self.rule.is_some() {
            there::settle(index, mirror, &self.ledger, moment());
        }
    }

    /// Keeps what changed.
    pub fn keep(&mut self, index: &mut Index) {
        if self.rule.is_none() {
            return;
        }
        index.admission.tick(moment(), |_, _| false);
        self.ledger.want(index.admission.take_dirty());
        self.ledger.want_rule(index.admission.rule_stands());
        loop {
            let admission = &index.admission;
            let writes = self.ledger.next_writes(1, |name| admission.record(name));
            if writes.is_empty() {
                return;
            }
            for write in writes {
                self.ledger.written(&write, 7);
            }
        }
    }

    fn holder(&self, service: &str) -> Option<&str> {
        self.ledger.record(service)?.holder.as_deref()
    }

    /// Each name has instances of the namespace that holds it, all of them, and of no other.
    pub fn judge(&self, objects: &Objects, there: &BTreeMap<Place, Instance>) {
        let mut of: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for instance in there.values() {
            let namespace = &*instance.meta["external-k8s-ns"];
            of.entry(&instance.service).or_default().insert(namespace);
        }
        for (service, namespaces) in of {
            assert_eq!(namespaces.len(), 1, "{service} of {namespaces:?}");
            assert_eq!(
                self.holder(service),
                namespaces.first().copied(),
                "{service}"
            );
        }
        for (place, instance) in objects.wanted() {
            let namespace = &*instance.meta["external-k8s-ns"];
            let stem = instance.service.strip_suffix("-sidecar-proxy");
            let mut names = [Some(&*instance.service), stem].into_iter().flatten();
            let is_held = names.any(|name| self.holder(name) == Some(namespace));
            let expected = is_held.then_some(&instance);
            assert_eq!(there.get(&place), expected, "{place:?} of {namespace}");
        }
    }
}
