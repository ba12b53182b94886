//! Without an election: this process leads from its start, for ever.
//!
//! Should two run all the same, the epoch lets the one that started last write, and the other stands by.

use super::{Candidate, Election, Leadership};

/// One that leads.
#[must_use]
pub fn candidate() -> Candidate {
    let leadership = Leadership::Leads {
        term: 1,
        until: None,
    };
    Candidate::fixed(Election::Off, leadership)
}

/// One that never leads, nor campaigns (`--policy dry-run`).
#[must_use]
pub fn onlooker() -> Candidate {
    Candidate::fixed(Election::Off, Leadership::default())
}
