//! The domain's own types, parsed once. Pure.

pub mod entry;
pub mod facts;
pub mod key;
pub mod marks;
pub mod names;
pub mod owner;
pub mod text;
