//! The domain's own types, parsed once. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod backoff;
pub mod critical;
pub mod definition;
pub mod entry;
pub mod epoch;
pub mod facts;
pub mod gc;
pub mod key;
pub mod kind;
pub mod ledger;
pub mod limits;
pub mod marks;
pub mod names;
pub mod owner;
pub mod source;
pub mod text;
