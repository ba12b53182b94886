//! When all that is claimed is judged, and what Consul keeps of whose names are.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::{Admission, Learnt};
use crate::desired::watches::Watches;
use crate::model::text::Text;
use crate::policy::force::Force;
use crate::policy::ledger::{Ledger, NameRecord};
use crate::policy::names::Moment;
use crate::policy::uses::{Claim, Sort};

/// What it is worth what this process knows of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// No other process can have judged since: it holds.
    Holds,
    /// Another one may have, and Consul lost what that kept: where there is nothing, it is the best there is.
    Outlived,
    /// Another one may have: what Consul keeps decides, and where that is nothing, too.
    Superseded,
}

/// Whether a namespace with this name and uid is there, as far as that is known.
fn is_there(force: &Force, watched: bool) -> impl Fn(&Text, &str) -> bool + '_ {
    move |name, uid| {
        let facts = force.namespace(name);
        !watched || facts.is_some_and(|facts| uid.is_empty() || *facts.uid == *uid)
    }
}

impl Admission {
    /// Whether names belong to namespaces, so that what Consul keeps of that is needed to judge.
    #[must_use]
    pub fn needs_ledger(&self) -> bool {
        self.is_exclusive()
    }

    /// Whether there is a rule at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.rule.is_some()
    }

    /// Whether all that is claimed was judged.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.rule.is_none() || self.settled
    }

    /// Nothing is judged until what Consul keeps is known: another process may have changed it.
    pub fn unsettle(&mut self) {
        self.settled = false;
    }

    /// Judges all that is claimed. `ledger` is what Consul keeps of names, or why it cannot be used;
    /// `registered` are the services that namespaces have instances of in Consul.
    pub fn settle(
        &mut self,
        ledger: Result<&Ledger, &Text>,
        registered: BTreeSet<(Text, Text)>,
        memory: Memory,
        moment: Moment,
        watches: &Watches,
    ) {
        let holds = memory == Memory::Holds;
        if !holds {
            self.uses.forget_judgements();
        }
        let is_read = holds || ledger.is_ok();
        self.unread = ledger.err().cloned();
        if let Ok(ledger) = ledger {
            self.take_up(ledger, memory, moment);
        }
        self.settled = true;
        let was_frozen = self.look(watches);
        self.registered = registered;
        if self.freeze.is_some() {
            let services = self.uses.all().map(|(claim, _)| claim);
            let services: Vec<Claim> = services.filter(|it| it.sort.is_service()).collect();
            for claim in services {
                let keeps = self.names.keeps(&claim.name, &claim.namespace, claim.sort);
                let keeps = is_read && keeps;
                if keeps || self.is_registered(&claim) {
                    self.uses.entry(&claim).admitted.get_or_insert(true);
                }
            }
            return;
        }
        self.force.renew();
        self.free_gone();
        if was_frozen {
            self.thaw();
        } else {
            self.keep_registered();
            self.judge_all();
        }
    }

    /// What Consul keeps was read again, of these names or of all: those of which it is understood by now are
    /// judged by it.
    pub fn reread(&mut self, ledger: &Ledger, of: Option<BTreeSet<Text>>, moment: Moment) {
        let understood = self.names.set_unread(ledger.not_understood().collect());
        self.learn(&understood, ledger, moment);
        if self.settled && self.freeze.is_none() {
            self.judge_names(understood);
        }
        let of = of.unwrap_or_else(|| {
            // What is not there any more, too.
            self.names.all().cloned().chain(ledger.names()).collect()
        });
        self.names.doubt(of);
    }

    /// Goes by what Consul keeps, or by what is known where that is worth more.
    fn take_up(&mut self, ledger: &Ledger, memory: Memory, moment: Moment) {
        // A Consul that lost all is told again, also by who led before.
        let is_best = match memory {
            Memory::Holds => true,
            Memory::Outlived => !ledger.has_rule(),
            Memory::Superseded => false,
        };
        let goes_on = is_best && self.learnt != Learnt::Nothing;
        if self.is_exclusive() && !goes_on {
            let (is_there, hold) = (is_there(&self.force, self.watched), self.hold);
            self.names.load(ledger.records(), moment, hold, is_there);
            self.learnt = if ledger.has_rule() {
                Learnt::Stands
            } else {
                Learnt::Begins
            };
        }
        let understood = self.names.set_unread(ledger.not_understood().collect());
        if self.is_exclusive() && goes_on {
            self.learn(&understood, ledger, moment);
            let all: Vec<Text> = self.names.all().cloned().chain(ledger.names()).collect();
            self.names.doubt(all);
        }
    }

    /// Goes by what Consul keeps of these names.
    fn learn(&mut self, names: &[Text], ledger: &Ledger, moment: Moment) {
        for name in names {
            if let Some(record) = ledger.record(name) {
                let (is_there, hold) = (is_there(&self.force, self.watched), self.hold);
                let (name, record) = (name.clone(), record.clone());
                self.names.load_one(name, record, moment, hold, is_there);
            }
        }
    }

    /// Whether there are names of which what Consul keeps is not understood.
    #[must_use]
    pub fn lacks_names(&self) -> bool {
        self.names.lacks_any()
    }

    fn is_registered(&self, claim: &Claim) -> bool {
        let claim = (claim.name.clone(), claim.namespace.clone());
        self.registered.contains(&claim)
    }

    /// What is in Consul and noted nowhere was there before there was a rule, or before a process died that
    /// had not noted it yet; also where nothing claims it any more: its namespace was first.
    pub(super) fn keep_registered(&mut self) {
        let registered = std::mem::take(&mut self.registered);
        if !self.is_exclusive() {
            return;
        }
        let is_new = |(name, namespace): &(Text, Text)| {
            let chosen = self.policies(namespace);
            chosen.is_some_and(<[_]>::is_empty) && !self.names.knows(name)
        };
        let created = |namespace: &Text| {
            let facts = self.force.namespace(namespace);
            facts.map_or(i64::MAX, |facts| facts.created)
        };
        let kept = registered.into_iter().filter(is_new);
        let kept = kept.map(|(name, namespace)| (created(&namespace), namespace, name));
        for (_, namespace, name) in kept.collect::<BTreeSet<_>>() {
            let claim = Claim {
                sort: Sort::Service,
                namespace,
                name,
            };
            self.note(&claim, true);
            self.names.look_at(&claim.name, &claim.namespace);
        }
    }

    /// Whether the rule only begins, and what Consul holds on no node is to be [kept](Self::keep_there).
    #[must_use]
    pub fn begins(&self) -> bool {
        self.learnt == Learnt::Begins && self.settled && self.freeze.is_none()
    }

    /// What is in Consul when the rule begins, and would not be allowed, stays.
    pub fn keep_there(&mut self, claim: &Claim) {
        let chosen = self.policies(&claim.namespace);
        if chosen.is_some_and(<[_]>::is_empty)
            && self.evaluate(claim).is_err()
            && self.note(claim, false)
        {
            let of_name = self.uses.of(&claim.name).map(|(claim, _)| claim);
            let own = of_name.filter(|other| other.namespace == claim.namespace);
            let own: Vec<Claim> = own.collect();
            self.judge(own);
        }
    }

    /// All that is in Consul when the rule begins is known.
    pub fn begun(&mut self) {
        self.learnt = Learnt::Stands;
    }

    /// Notes how long names have been without a claim, and lets go what was for long enough. `has` says
    /// whether Consul has instances of a namespace under a name.
    pub fn tick(&mut self, moment: Moment, has: impl Fn(&Text, &Text) -> bool) {
        if !self.settled || !self.is_exclusive() {
            return;
        }
        let uses = &self.uses;
        let uses = |name: &str, namespace: &Text| uses.uses(name, namespace);
        let freed = self.names.tick(moment, self.hold, uses, has);
        if self.freeze.is_none() {
            self.judge_names(freed);
        }
    }

    /// When a name is let go, or it is to be noted that it has no claim.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.names.wake_at().filter(|_| self.settled)
    }

    /// Whether the rule stands, so that whatever is claimed anew is judged by it.
    #[must_use]
    pub fn rule_stands(&self) -> bool {
        self.settled && self.learnt == Learnt::Stands && self.unread.is_none()
    }

    /// Whether claims were judged without what Consul keeps of names, which could not be used.
    #[must_use]
    pub fn lacks_ledger(&self) -> bool {
        self.unread.is_some()
    }

    /// What Consul keeps of these names may be other than it was known.
    pub fn doubt_records(&mut self, names: impl IntoIterator<Item = Text>) {
        self.names.doubt(names);
    }

    /// Names whose record in Consul may differ from [`Self::record`].
    pub fn take_dirty(&mut self) -> BTreeSet<Text> {
        self.names.take_dirty()
    }

    /// What Consul is to keep of a name.
    #[must_use]
    pub fn record(&self, name: &str) -> Option<NameRecord> {
        self.names.record(name).filter(|_| self.is_exclusive())
    }
}
