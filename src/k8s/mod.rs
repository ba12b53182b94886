//! The Kubernetes edge: what is watched comes in through one channel of [`KubeEvent`]s, what is told
//! goes out through a [`StatusSender`] and an [`EventSender`]. Nothing is decided here.

pub mod client;
pub mod crd;
pub mod events;
mod failures;
pub mod home;
pub mod kinds;
mod lease;
mod leases;
mod look;
mod machine;
mod merge;
pub mod rights;
mod seldom;
pub mod status;
pub mod trim;
mod watch;

pub use events::{EventReason, EventRecord, EventSender, Regarding};
pub use home::Home;
pub use kinds::{Broken, BrokenKind, Change, KubeEvent, Relist, WatchEvent, watch};
pub use lease::{LeaseAccess, LeaseName, LeaseNews, LeaseWrite};
pub use leases::{LeaseNamespaces, watch_leases};
pub use look::{Answer, Question, Seen, look};
pub use merge::watch_in;
pub use status::{ObjectStatus, StatusSender, StatusUpdate};
