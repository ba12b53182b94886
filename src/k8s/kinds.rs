//! What is watched, and how it is told.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::home::Home;
use super::trim::Trim;
use crate::api::{IntentionObject, PolicyObject, PreparedQueryObject, RegistrationObject};
use crate::model::facts::{LeaseFacts, NamespaceFacts, NodeFacts, PodFacts};
use crate::model::kind::Kind;
use crate::model::text::Text;

/// What one watch has to say, in order.
///
/// A kind is *complete* from `Listed` on, until `Listing` or `Broken`; after `Broken` it is complete
/// again from `Healthy`, if it was before, or else from the next `Listed`. No deletes are sent for
/// what vanished before a re-list: what was in no `Page` between `Listing` and `Listed` is gone.
/// A `Listing` before `Listed` starts over: the pages sent since the last one are void.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent<T> {
    /// A full quorum list begins.
    Listing,
    /// A part of that list.
    Page(Vec<T>),
    /// The list is complete; the watch goes on from `resource_version`.
    Listed {
        /// The version of the whole list.
        resource_version: Text,
    },
    /// An object was added or changed.
    Applied(T),
    /// An object was deleted; its last state.
    Deleted {
        /// The object.
        object: T,
        /// Whether it was deleted itself. Not so, as far as is known, where its CRD is being deleted
        /// or was made anew, which the API server shows as a deletion of each object.
        by_itself: bool,
    },
    /// The API server cannot be read: what is known may be old. Sent once for each reason.
    Broken(Broken),
    /// The API server can be read again, and nothing was missed.
    Healthy,
}

/// Why a watch is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The sort of failure.
    pub kind: BrokenKind,
    /// A sentence for people.
    pub message: Text,
}

/// Sorts of failure of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BrokenKind {
    /// The API server does not serve the kind: its CRD is not installed.
    Missing,
    /// Its CRD is being deleted, or was made anew: its objects go with that, and nobody meant these.
    Leaving,
    /// Another Kubernetes cluster than at the start answers: what it shows is not ours.
    Stranger,
    /// The API server refuses our identity, or what it may do.
    Denied,
    /// No connection, or no answer in time.
    Unreachable,
    /// The API server answers with an error, or with what cannot be understood.
    Failed,
}

/// One event of one of the watches.
#[derive(Clone, Debug, PartialEq)]
pub struct KubeEvent {
    /// When it was decoded.
    pub at: Instant,
    /// The namespace that the watch is limited to; `None` is the whole cluster. Each scope of a kind
    /// is listed, broken and healed on its own.
    pub scope: Option<Text>,
    /// What happened.
    pub change: Change,
}

/// What an event is, whatever it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// A list begins.
    Listing,
    /// A part of it.
    Page,
    /// It is complete.
    Listed,
    /// The watch is broken.
    Broken,
    /// It is healthy again.
    Healthy,
    /// An object came or changed.
    Applied,
    /// An object went.
    Deleted,
}

impl<T> WatchEvent<T> {
    fn turn(&self) -> Turn {
        match self {
            Self::Listing => Turn::Listing,
            Self::Page(_) => Turn::Page,
            Self::Listed { .. } => Turn::Listed,
            Self::Broken(_) => Turn::Broken,
            Self::Healthy => Turn::Healthy,
            Self::Applied(_) => Turn::Applied,
            Self::Deleted { .. } => Turn::Deleted,
        }
    }
}

/// Asks a watch to list everything anew.
pub type Relist = tokio::sync::watch::Receiver<()>;

/// A kind that is watched.
pub(super) trait Watched: Trim {
    /// Its name.
    const KIND: Kind;

    /// The name of its CRD, if it is ours.
    const CRD: Option<&'static str> = Self::KIND.crd();

    /// Its event among those of all kinds.
    fn change(event: WatchEvent<Self>) -> Change;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident($object:ty)),+ $(,)?) => {
        /// Watches a kind, in the whole cluster or in the namespace `scope`, until the receiver is
        /// gone. A full channel slows the watch down, and loses nothing. Each value that `relist` gets
        /// makes it list everything anew.
        #[must_use]
        pub fn watch(
            kind: Kind,
            home: Home,
            scope: Option<Text>,
            events: mpsc::Sender<KubeEvent>,
            relist: Relist,
        ) -> BoxFuture<'static, ()> {
            match kind {
                $(Kind::$kind => super::watch::watch::<$object>(home, scope, events, relist).boxed(),)+
            }
        }

        $(impl Watched for $object {
            const KIND: Kind = Kind::$kind;

            fn change(event: WatchEvent<Self>) -> Change {
                Change::$kind(event)
            }
        })+

        /// What happened to which kind.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Change {
            $($(#[$doc])* $kind(WatchEvent<$object>),)+
        }

        impl Change {
            /// What the event is, whatever it is about.
            pub(super) fn turn(&self) -> Turn {
                match self {
                    $(Self::$kind(event) => event.turn(),)+
                }
            }
        }
    };
}

kinds! {
    /// To a pod.
    Pod(PodFacts),
    /// To a node.
    Node(NodeFacts),
    /// To a `ServiceRegistration`.
    Registration(RegistrationObject),
    /// To an `Intention`.
    Intention(IntentionObject),
    /// To a `PreparedQuery`.
    PreparedQuery(PreparedQueryObject),
    /// To a namespace.
    Namespace(NamespaceFacts),
    /// To a `RegistrationPolicy`.
    Policy(PolicyObject),
    /// To a Lease.
    Lease(LeaseFacts),
}
