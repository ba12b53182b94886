//! What was seen.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::clock::Clock;
use crate::consul::rights::Permission;
use crate::consul::{OwnToken, TokenStanding};
use crate::k8s::rights::Right;
use crate::model::epoch::Epoch;
use crate::model::text::Text;

/// What was seen, or why nothing was.
pub type Seen<T> = Result<T, String>;

/// All that was seen.
#[derive(Debug)]
pub struct Facts {
    /// Of the API server; or why it was not reached.
    pub kubernetes: Seen<Box<Kubernetes>>,
    /// Of Consul; or why it was not reached.
    pub consul: Seen<Box<Consul>>,
}

/// What the API server shows.
#[derive(Debug)]
pub struct Kubernetes {
    /// Its version, such as `v1.36.3`.
    pub version: String,
    /// Its clock, where it tells it.
    pub clock: Option<Clock>,
    /// The UID that tells clusters apart.
    pub identity: Seen<Text>,
    /// Our CRDs by name.
    pub crds: Vec<(&'static str, Seen<Crd>)>,
    /// Each right that is needed, and whether we have it.
    pub rights: Vec<(Right, Seen<bool>)>,
    /// The names of its nodes.
    pub nodes: Seen<Vec<Text>>,
    /// Whether kinds of consul-k8s are installed.
    pub consul_k8s: Seen<bool>,
}

/// What is known of a CRD of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Crd {
    /// It is not installed.
    Missing,
    /// It is being deleted.
    Leaving,
    /// Its kind is served; it may not be read itself.
    Served,
    /// It is installed.
    Installed {
        /// Why the API server does not serve it, if it does not.
        unserved: Option<String>,
        /// Whether it serves the version that this build has.
        version: bool,
        /// Whether that version is the same as that of this build.
        same: bool,
    },
}

impl Crd {
    /// Compares what is installed with the CRD of this build.
    pub(super) fn of(
        found: Option<&CustomResourceDefinition>,
        ours: &CustomResourceDefinition,
    ) -> Self {
        let Some(found) = found else {
            return Self::Missing;
        };
        if found.metadata.deletion_timestamp.is_some() {
            return Self::Leaving;
        }
        let conditions = found.status.iter();
        let conditions = conditions.flat_map(|status| status.conditions.iter().flatten());
        let mut established = false;
        let mut why = Vec::new();
        for condition in conditions {
            match (&*condition.type_, &*condition.status) {
                ("Established", "True") => established = true,
                ("Established" | "NamesAccepted", status) if status != "True" => {
                    why.extend(condition.message.clone());
                }
                _ => {}
            }
        }
        let of_build = ours.spec.versions.first();
        let version = found.spec.versions.iter().find(|version| {
            of_build.is_some_and(|ours| ours.name == version.name) && version.served
        });
        let same = version.zip(of_build).is_some_and(|(found, ours)| {
            found.schema == ours.schema && found.subresources == ours.subresources
        });
        Self::Installed {
            unserved: (!established).then(|| why.join("; ")),
            version: version.is_some(),
            same,
        }
    }
}

/// What Consul shows.
#[derive(Debug)]
pub struct Consul {
    /// Whether its servers have a leader.
    pub leader: bool,
    /// The clock of the server that answered, where it tells it.
    pub clock: Option<Clock>,
    /// What it takes our token for.
    pub token: Seen<Token>,
    /// All else; only where there are a leader and a token.
    pub rest: Seen<Box<Rest>>,
}

/// Our token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What Consul takes it for.
    pub standing: TokenStanding,
    /// What it says about itself, where it is one.
    pub own: Option<OwnToken>,
}

/// What is read of Consul with a token.
#[derive(Debug)]
pub struct Rest {
    /// The version of the oldest server, where the catalog tells it.
    pub version: Seen<Option<Text>>,
    /// The datacenter that answers.
    pub datacenter: Seen<Option<Text>>,
    /// The datacenter that has the config entries, if it is another one.
    pub primary: Seen<Option<Text>>,
    /// What was asked about the token, and the answers; nothing where ACLs are off.
    pub rights: Seen<Vec<(Permission, bool)>>,
    /// The epoch of the cluster name.
    pub epoch: Seen<Held>,
    /// Nodes with names that are for this cluster.
    pub nodes: Seen<Vec<ConsulNode>>,
    /// Services of ours and of consul-k8s.
    pub services: Seen<Services>,
}

/// The key of the epoch.
#[derive(Debug)]
pub enum Held {
    /// It is not there.
    Free,
    /// It is this.
    By(Box<Epoch>),
    /// It holds what is no epoch.
    Unreadable(String),
}

/// A node of Consul's catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsulNode {
    /// Its name.
    pub name: Text,
    /// Which cluster its meta names, if any.
    pub cluster: Option<Text>,
    /// Whether a Consul agent runs it, as far as is known.
    pub agent: Seen<bool>,
}

/// Services in Consul, by who registered them.
#[derive(Debug, Default)]
pub struct Services {
    /// With the mark of this cluster, and all their tags.
    pub ours: BTreeMap<String, Vec<String>>,
    /// On nodes of consul-k8s' catalog sync.
    pub synced: BTreeSet<String>,
    /// Of consul-k8s' service mesh.
    pub meshed: BTreeSet<String>,
}
