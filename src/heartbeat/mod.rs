//! Heartbeats: checks that Consul itself turns critical when nobody vouches for them any more.
//!
//! Such a check follows a session of its own name on its node: it passes while the session lives, and is
//! critical once it ended or was not renewed. Behind a `ttl` check is a workload that renews a Lease
//! ([`leases`]), behind `lictor-alive` is Lictor itself. [`pulses`] says when which session is created,
//! renewed and ended.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

pub mod leases;
pub mod pulses;
