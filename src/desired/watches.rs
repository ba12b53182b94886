//! How complete the view of Kubernetes is.

use crate::model::kind::Kind;

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

/// The states of all watches.
#[derive(Debug, Default)]
pub struct Watches {
    states: [Watch; 3],
    /// Whether a list is under way, also while it cannot go on.
    listing: [bool; 3],
    listed: [bool; 3],
}

impl Watches {
    /// A list of the kind begins. After a failure, why the last one failed is still what is known.
    pub fn listing(&mut self, kind: Kind) {
        if !matches!(self.states[kind as usize], Watch::Broken(_)) {
            self.states[kind as usize] = Watch::Listing;
        }
        self.listing[kind as usize] = true;
    }

    /// A list of the kind is complete.
    pub fn complete(&mut self, kind: Kind) {
        self.states[kind as usize] = Watch::Complete;
        self.listing[kind as usize] = false;
        self.listed[kind as usize] = true;
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
