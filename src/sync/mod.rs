//! The engine that carries plans out: the imperative shell around `desired`, `observed` and `plan`.

mod absorb;
pub mod apply;
pub mod dirty;
pub mod engine;
mod heed;
pub mod outage;
pub mod own;
pub mod report;
pub mod signals;
pub mod sweep;
mod tell;
mod wrote;
