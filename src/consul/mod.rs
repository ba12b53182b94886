//! A thin typed client of Consul's HTTP API.
//!
//! Everything here speaks Consul's own terms and decides nothing: what to write is the planner's
//! business, when to try again is the engine's. What this module does promise is to say exactly
//! what is known afterwards: every call has a deadline, every answer carries its [`Quality`], and
//! every failure its [`ErrorClass`], above all whether a write may have been applied.

mod acl;
mod agent;
mod blocking;
mod catalog;
mod client;
mod config;
mod config_entry;
mod consistency;
mod error;
mod kv;
mod query;
mod request;
mod response;
pub mod rights;
mod session;
mod token;
mod transport;
mod txn;
pub mod wire;

pub use acl::{Login, OwnToken};
pub use agent::AgentInfo;
pub use blocking::{Backoff, Cause, Change, IndexTracker, Step, Watch};
pub use catalog::{RegisteredNode, Registration, ServiceHealth};
pub use client::{Client, Observer};
pub use config::{ConfigError, ConsulConfig, ConsulSettings, TlsConfig};
pub use consistency::{Consistency, Observed, Quality, TokenStanding};
pub use error::{ConsulError, ErrorClass};
pub use request::Request;
pub use response::Response;
pub use session::Session;
pub use txn::{
    Fence, MAX_BODY_BYTES, MAX_OPS, Txn, TxnError, TxnFailure, TxnFull, TxnOp, TxnOutcome,
    TxnResult,
};
