//! Real servers on loopback, for tests, demos and benchmarks.
//!
//! A [`Bed`] is an etcd, a kube-apiserver (RBAC on), a kube-controller-manager (only the namespace
//! and garbage-collector controllers, and those of Deployments where a test asks for them) and a Consul, one server or three, each on free ports of
//! 127.0.0.1 with its state in a temporary folder. A second Consul datacenter joins it where a test
//! asks for one. Nothing of it outlives the [`Bed`], nor the process that holds it.
//!
//! ```text
//!  tools::ensure ──▶ binaries (built once, cached)
//!                       │
//!  Bed::start ──▶ etcd ─▶ kube-apiserver ─▶ kube-controller-manager     Consul
//!                       ▲                                                 ▲
//!          kubelet::TestPod, TestNode (play the kubelet)         ConsulApi (looks on)
//! ```
//!
//! There is no kubelet and no scheduler: a pod is an object whose status [`kubelet::TestPod`]
//! writes. Faults are made in two ways: each server is a [`Server`] that can be stopped, killed,
//! paused and restarted on the same ports, with its data, without it or with older data; and a
//! [`proxy::Proxy`] before a server does to connections what networks do. Of what Consul is for,
//! lookups are made by [`Bed::dns_lookup`], and the traffic of its mesh goes through
//! [`Bed::mesh_proxy`].
//!
//! Environment: `LICTOR_TESTBED_BIN`, a folder with all binaries, which skips their build;
//! `LICTOR_TESTBED_CACHE`, where they are built ([`tools`]); `LICTOR_TESTBED_KEEP`, set to anything,
//! keeps the folders of beds with their logs.

#![allow(
    clippy::must_use_candidate,
    reason = "a getter whose answer is dropped does no harm"
)]

mod bed;
#[cfg(target_os = "linux")]
mod clock;
mod consul_acl;
mod consul_api;
mod dns;
pub mod kubelet;
mod mesh;
mod pki;
mod ports;
pub mod proxy;
mod server;
mod servers;
pub mod tools;
pub mod wait;

pub use bed::{Bed, BedOptions};
#[cfg(target_os = "linux")]
pub use clock::WallClock;
pub use consul_acl::{CONSUL_MANAGEMENT_TOKEN, ConsulToken};
pub use consul_api::ConsulApi;
pub use dns::{DnsRecord, DnsType, dns_lookup};
pub use mesh::{MeshProxy, MeshProxyOptions};
pub use server::Server;
