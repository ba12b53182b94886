//! What Consul is known to hold. Pure.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

pub mod content;
pub mod entries;
pub mod entry;
pub mod mirror;
pub mod table;
