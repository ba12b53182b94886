//! Outcomes turned into what people see. Pure.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

pub mod board;
pub mod derive;
pub mod gate;
