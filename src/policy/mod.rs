//! Who may claim which name in Consul. Pure.
//!
//! [`Admission`] judges what the index holds: by the `RegistrationPolicy` objects that choose the
//! namespace of a claim, and where none does by `--default-policy`. With `exclusive` a service name
//! belongs to one namespace; who that is, is kept by [`names`] and in Consul's KV ([`ledger`]).
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

pub mod admission;
pub mod compiled;
mod force;
pub mod ledger;
pub mod names;
pub mod pattern;
pub mod there;
mod uses;

use std::fmt;

pub use admission::{Admission, InstanceClaim, Refusal};
pub use uses::{Claim, Sort};

/// What holds in namespaces that no `RegistrationPolicy` chooses (`--default-policy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DefaultPolicy {
    /// A service name belongs to the namespace that claimed it first.
    #[default]
    Exclusive,
    /// Everything is allowed.
    Shared,
    /// Nothing is.
    Deny,
}

impl fmt::Display for DefaultPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
            Self::Deny => "deny",
        })
    }
}
