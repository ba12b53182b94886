//! What is claimed, by which namespaces.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::model::text::Text;

/// Sorts of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sort {
    /// A service.
    Service,
    /// The service of the proxies beside a service.
    Sidecar,
    /// The destination of intentions.
    Destination,
    /// A prepared query.
    Query,
    /// A prepared query that answers every name that begins with its own.
    Template,
}

impl Sort {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Service,
        Self::Sidecar,
        Self::Destination,
        Self::Query,
        Self::Template,
    ];

    /// What a query is claimed as.
    #[must_use]
    pub fn of_query(is_template: bool) -> Self {
        if is_template {
            Self::Template
        } else {
            Self::Query
        }
    }

    /// Whether instances are registered under it.
    #[must_use]
    pub fn is_service(self) -> bool {
        matches!(self, Self::Service | Self::Sidecar)
    }

    /// The field of a policy that allows it.
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            Self::Service | Self::Sidecar => "spec.services",
            Self::Destination => "spec.destinations",
            Self::Query | Self::Template => "spec.queries",
        }
    }
}

impl fmt::Display for Sort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "service",
            Self::Sidecar => "proxy service",
            Self::Destination => "destination",
            Self::Query => "query",
            Self::Template => "query template",
        })
    }
}

/// A claim of a namespace on a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// The sort of name.
    pub sort: Sort,
    /// The namespace.
    pub namespace: Text,
    /// The name, in lower case.
    pub name: Text,
}

/// How often a namespace claims a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Use {
    /// How many objects do.
    pub count: u32,
    /// Whether that was allowed when it was judged last; `None` before.
    pub admitted: Option<bool>,
}

/// All that is claimed.
#[derive(Debug, Default)]
pub(super) struct Uses(HashMap<Text, BTreeMap<(Text, Sort), Use>>);

impl Uses {
    pub fn get(&self, claim: &Claim) -> Option<&Use> {
        let of = self.0.get(&claim.name)?;
        of.get(&(claim.namespace.clone(), claim.sort))
    }

    /// One that is there is changed, or one is put there.
    pub fn entry(&mut self, claim: &Claim) -> &mut Use {
        let of = self.0.entry(claim.name.clone()).or_default();
        of.entry((claim.namespace.clone(), claim.sort)).or_default()
    }

    pub fn get_mut(&mut self, claim: &Claim) -> Option<&mut Use> {
        let of = self.0.get_mut(&claim.name)?;
        of.get_mut(&(claim.namespace.clone(), claim.sort))
    }

    /// Forgets how all was judged, and what is claimed no more.
    pub fn forget_judgements(&mut self) {
        self.0.retain(|_, of| {
            of.retain(|_, of| of.count > 0);
            for of in of.values_mut() {
                of.admitted = None;
            }
            !of.is_empty()
        });
    }

    pub fn remove(&mut self, claim: &Claim) {
        if let Some(of) = self.0.get_mut(&claim.name) {
            of.remove(&(claim.namespace.clone(), claim.sort));
            if of.is_empty() {
                self.0.remove(&claim.name);
            }
        }
    }

    /// The claims on a name.
    pub fn of<'a>(&'a self, name: &'a Text) -> impl Iterator<Item = (Claim, &'a Use)> {
        let of = self.0.get(name).into_iter().flatten();
        of.map(|((namespace, sort), of)| (claim(*sort, namespace, name), of))
    }

    /// All claims.
    pub fn all(&self) -> impl Iterator<Item = (Claim, &Use)> {
        self.0.iter().flat_map(|(name, of)| {
            of.iter()
                .map(move |((namespace, sort), of)| (claim(*sort, namespace, name), of))
        })
    }

    /// Whether a namespace claims a name: as a service, or in any way.
    pub fn uses(&self, name: &str, namespace: &Text) -> (bool, bool) {
        let of = self.0.get(name);
        let count = |sort: Sort| {
            let at = (namespace.clone(), sort);
            of.and_then(|of| of.get(&at)).is_some_and(|of| of.count > 0)
        };
        let service = count(Sort::Service) || count(Sort::Sidecar);
        (service, service || Sort::ALL.into_iter().any(count))
    }
}

fn claim(sort: Sort, namespace: &Text, name: &Text) -> Claim {
    Claim {
        sort,
        namespace: namespace.clone(),
        name: name.clone(),
    }
}
