//! How complete the view of Kubernetes is.

use std::collections::BTreeSet;

use crate::model::kind::Kind;
use crate::model::text::Text;

/// The state of one watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Watch {
    /// No list was complete yet, or a new one is under way.
    #[default]
    Listing,
    /// The last list was complete and the watch after it is healthy.
    Complete,
    /// The watch failed, for this reason; what is known may be old.
    Broken(String),
}

/// A moment in the order in which lists begin and are complete; the later, the greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

const KINDS: usize = Kind::ALL.len();

/// The states of all watches.
#[derive(Debug, Default)]
pub struct Watches {
    states: [Watch; KINDS],
    /// Whether a list is under way, also while it cannot go on.
    listing: [bool; KINDS],
    listed: [bool; KINDS],
    /// The last beginning or end of a list of any kind.
    now: Moment,
    /// When the list that is under way, or was the last one, began.
    begun: [Moment; KINDS],
    /// When the last list that is complete began.
    complete_begun: [Moment; KINDS],
    /// The namespaces that alone are watched; empty for all.
    namespaces: BTreeSet<Text>,
}

impl Watches {
    /// Those of these namespaces alone, or of all if there is none. What is in no namespace is then not
    /// watched: nothing is claimed by it, and what is known of it is all that will be.
    #[must_use]
    pub fn of(namespaces: BTreeSet<Text>) -> Self {
        let mut this = Self {
            namespaces,
            ..Self::default()
        };
        for kind in Kind::ALL {
            if !this.watches(kind) {
                this.complete(kind);
            }
        }
        this
    }

    /// The namespaces that alone are watched; empty for all.
    #[must_use]
    pub fn namespaces(&self) -> &BTreeSet<Text> {
        &self.namespaces
    }

    /// Whether there is a watch of the kind.
    #[must_use]
    pub fn watches(&self, kind: Kind) -> bool {
        kind.is_namespaced() || self.namespaces.is_empty()
    }

    /// Whether objects of the namespace are watched.
    #[must_use]
    pub fn covers(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(namespace)
    }

    /// A list of the kind begins. After a failure, why the last one failed is still what is known.
    pub fn listing(&mut self, kind: Kind) {
        if !matches!(self.states[kind as usize], Watch::Broken(_)) {
            self.states[kind as usize] = Watch::Listing;
        }
        self.listing[kind as usize] = true;
        self.begun[kind as usize] = self.tick();
    }

    /// A list of the kind is complete.
    pub fn complete(&mut self, kind: Kind) {
        self.states[kind as usize] = Watch::Complete;
        self.listing[kind as usize] = false;
        self.listed[kind as usize] = true;
        self.complete_begun[kind as usize] = self.begun[kind as usize];
        self.tick();
    }

    fn tick(&mut self) -> Moment {
        self.now.0 += 1;
        self.now
    }

    /// The last beginning or end of a list of any kind.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Whether the kind was listed completely by a list that began after this moment: only such a one
    /// can tell of the same world as what was learnt then. Each kind is watched on its own, and one may
    /// still show what another shows no more.
    #[must_use]
    pub fn was_listed_after(&self, kind: Kind, moment: Moment) -> bool {
        self.complete_begun[kind as usize] > moment
    }

    /// The watch of the kind failed.
    pub fn broken(&mut self, kind: Kind, reason: String) {
        self.states[kind as usize] = Watch::Broken(reason);
    }

    /// A broken watch goes on where it stopped. While a list is under way, only its end completes it.
    pub fn healthy(&mut self, kind: Kind) {
        if self.listed[kind as usize] && !self.listing[kind as usize] {
            self.states[kind as usize] = Watch::Complete;
        }
    }

    /// The state of one watch.
    #[must_use]
    pub fn state(&self, kind: Kind) -> &Watch {
        &self.states[kind as usize]
    }

    /// Whether every kind is known completely at this moment: the condition of every removal.
    #[must_use]
    pub fn all_complete(&self) -> bool {
        self.states.iter().all(|state| *state == Watch::Complete)
    }

    /// Whether the kind was listed completely since the start.
    #[must_use]
    pub fn was_listed(&self, kind: Kind) -> bool {
        self.listed[kind as usize]
    }

    /// Whether every kind was listed completely since the start: the condition of every write.
    #[must_use]
    pub fn all_listed(&self) -> bool {
        self.listed.iter().all(|listed| *listed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_in_no_namespace() {
        let mut watches = Watches::of(["shop".into()].into());
        assert!(watches.covers("shop") && !watches.covers("web"));
        assert!(!watches.watches(Kind::Node) && !watches.all_listed());
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_namespaced()) {
            watches.listing(kind);
            watches.complete(kind);
        }
        assert!(watches.all_complete() && watches.all_listed());
        assert!(Watches::default().covers("any") && Watches::default().watches(Kind::Node));
    }

    #[test]
    fn only_a_list_that_began_later_was_later() {
        let mut watches = Watches::default();
        watches.listing(Kind::Pod);
        watches.listing(Kind::Node);
        watches.complete(Kind::Node);
        let nodes = watches.now();
        watches.complete(Kind::Pod);
        assert!(!watches.was_listed_after(Kind::Pod, nodes), "it overlaps");
        watches.listing(Kind::Pod);
        assert!(!watches.was_listed_after(Kind::Pod, nodes), "it is no end");
        watches.complete(Kind::Pod);
        assert!(watches.was_listed_after(Kind::Pod, nodes));
        // The one after it is not complete, and takes nothing back.
        watches.listing(Kind::Pod);
        assert!(watches.was_listed_after(Kind::Pod, nodes));
    }
}
