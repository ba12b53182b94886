//! Checks that Lictor runs itself: instances are asked over HTTP, TCP or gRPC how they are.
//!
//! [`prober`] is one task that owns a [`roster`] of all checks and starts a bounded number of runs at
//! once; a check that waits for its next run is a row and no task. It hears from the engine what to ask,
//! and tells it of every change. What is connected to is judged by [`forbidden`] first, each time, after
//! its name was looked up: whoever may write a `ServiceRegistration`, or the status of a pod, shall not
//! have this process talk to what is local to it, to the API server, to Consul or to a cloud's metadata.

pub mod apis;
mod ask;
mod connect;
pub mod forbidden;
pub mod prober;
mod resolver;
mod roster;
mod shares;
mod tally;
mod tls;

pub use ask::{Target, question};
pub use prober::{Orders, Prober, Told, channel};
pub use roster::Known;
