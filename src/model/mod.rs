//! The domain's own types, parsed once. Pure.

pub mod facts;
pub mod text;
