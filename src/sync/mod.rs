//! The engine that carries plans out: the imperative shell around `desired`, `observed` and `plan`.

mod absorb;
pub mod apply;
mod asking;
mod beats;
pub mod carry;
pub mod claim;
mod complaints;
pub mod contest;
mod critical;
pub mod dirty;
mod drift;
pub mod engine;
pub mod entries;
pub mod feed;
pub mod fence;
pub mod gates;
mod gc;
mod heed;
mod lead;
mod ledgers;
pub mod live;
pub mod names;
mod nodes;
pub mod outage;
pub mod own;
pub mod pace;
pub mod pass;
mod planning;
pub mod readiness;
mod register;
pub mod report;
pub mod rounds;
mod sessions;
pub mod signals;
pub mod sweep;
mod tell;
mod wrote;

#[cfg(test)]
mod tests;
