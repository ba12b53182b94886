//! How far an answer can be trusted.

use std::num::NonZeroU64;

/// Which server may answer a read, and from what it knows.
///
/// Source: <https://developer.hashicorp.com/consul/api-docs/features/consistency>
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Consistency {
    /// The leader, from its lease: for a moment after a change of leaders it may be out of date.
    #[default]
    Default,
    /// The leader, which asks its peers first whether it still is one.
    Consistent,
    /// Any server, however far behind.
    Stale,
}

/// How far an answer can be trusted, from best to worst.
///
/// Only [`Quality::Authoritative`] may lead to the conclusion that something is *not* there. Where
/// nothing at all is known there is a [`ConsulError`](super::ConsulError) instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quality {
    /// Confirmed by a leader, complete, and asked with a token that is known to be one.
    Authoritative,
    /// By the leader's lease; complete.
    Leased,
    /// From a server that may be behind, or that knows no leader.
    Stale,
    /// The token is anonymous or was not verified: Consul then leaves entries out without saying so.
    Unverified,
    /// Consul says that it left entries out for want of rights.
    Filtered,
    /// It lacks the headers of a read of Consul's tables, its index and whether there is a leader:
    /// something between, such as a proxy with a page of its own, may have answered.
    Unidentified,
}

/// An answer of Consul and what is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed<T> {
    /// What was read.
    pub value: T,
    /// How far it can be trusted.
    pub quality: Quality,
    /// `X-Consul-Index`; comparable only between answers to one and the same query.
    pub index: Option<NonZeroU64>,
}

impl<T> Observed<T> {
    /// The value, if what is not in it is known not to be in Consul.
    #[must_use]
    pub fn authoritative(self) -> Option<T> {
        (self.quality == Quality::Authoritative).then_some(self.value)
    }

    /// The same observation of something derived from the value.
    #[must_use]
    pub fn map<U>(self, derive: impl FnOnce(T) -> U) -> Observed<U> {
        Observed {
            value: derive(self.value),
            quality: self.quality,
            index: self.index,
        }
    }
}

/// What Consul takes our token for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenStanding {
    /// ACLs are off; everyone sees everything.
    AclsOff,
    /// A token that Consul knows.
    Token {
        /// Its accessor id, which is no secret.
        accessor: Box<str>,
    },
    /// ACLs are on and no token, or the anonymous one, was sent: reads are silently incomplete.
    Anonymous,
    /// ACLs are on and Consul does not know the token.
    Unknown,
}
