//! What would be asked for if objects were deleted.

use std::fmt;
use std::str::FromStr;

use super::{Index, Touched};
use crate::desired::parsed::Parsed;
use crate::model::kind::Kind;
use crate::model::names::is_object_name;
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::Text;

/// What is taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TakenOut {
    /// A namespace with all that is in it.
    Namespace(Text),
    /// A pod, or an object of ours.
    Object(Owner),
}

/// Why a text names nothing that can be taken out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be namespace/NAME, pod/NAMESPACE/NAME, serviceregistration/NAMESPACE/NAME, \
     intention/NAMESPACE/NAME or preparedquery/NAMESPACE/NAME"
)]
pub struct NotTakenOut;

impl FromStr for TakenOut {
    type Err = NotTakenOut;

    /// Kinds are understood as kubectl understands them: in any case, and by their short names.
    fn from_str(text: &str) -> Result<Self, NotTakenOut> {
        let (kind, names) = text.split_once('/').ok_or(NotTakenOut)?;
        let kind = match &*kind.to_ascii_lowercase() {
            "namespace" | "namespaces" | "ns" if is_object_name(names) => {
                return Ok(Self::Namespace(names.into()));
            }
            "pod" | "pods" | "po" => OwnerKind::Pod,
            "serviceregistration" | "serviceregistrations" | "sreg" => {
                OwnerKind::ServiceRegistration
            }
            "intention" | "intentions" | "intent" => OwnerKind::Intention,
            "preparedquery" | "preparedqueries" | "pq" => OwnerKind::PreparedQuery,
            _ => return Err(NotTakenOut),
        };
        let owner = Owner::parse(&format!("{}/{names}", kind.as_str()));
        owner.map(Self::Object).ok_or(NotTakenOut)
    }
}

impl fmt::Display for TakenOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) => write!(f, "Namespace/{name}"),
            Self::Object(owner) => owner.fmt(f),
        }
    }
}

impl TakenOut {
    /// The namespace, or that of the object.
    #[must_use]
    pub fn namespace(&self) -> &Text {
        match self {
            Self::Namespace(name) => name,
            Self::Object(owner) => &owner.namespace,
        }
    }
}

impl Index {
    /// Takes objects out as if they were deleted, and that was seen. Returns whether there was anything to take
    /// out.
    pub fn take_out(&mut self, what: &TakenOut, touched: &mut Touched) -> bool {
        match what {
            TakenOut::Namespace(name) => self.take_out_namespace(name, touched),
            TakenOut::Object(owner) => self.take_out_object(owner, touched),
        }
    }

    fn take_out_namespace(&mut self, name: &Text, touched: &mut Touched) -> bool {
        let pods = self.pods.in_namespace(name);
        let pods = pods.map(|row| Owner::pod(name, &row.facts.name));
        let registrations = self.registrations.in_namespace(name);
        let registrations = registrations.map(|row| row.registration.owner());
        let intentions = self.entries.intentions.in_namespace(name);
        let queries = self.entries.queries.in_namespace(name);
        let objects: Vec<Owner> = pods
            .chain(registrations)
            .chain(intentions.map(Parsed::owner))
            .chain(queries.map(Parsed::owner))
            .collect();
        for owner in &objects {
            self.take_out_object(owner, touched);
        }
        let is_known = self.admission.knows_namespace(name);
        self.remove_namespace(name);
        self.renew_admission(Kind::Namespace, touched);
        // Where only some are watched, nobody may have been told that there are any.
        is_known || !objects.is_empty() || !self.watches.watches(Kind::Namespace)
    }

    fn take_out_object(&mut self, owner: &Owner, touched: &mut Touched) -> bool {
        let is_there = self.uid(owner).is_some();
        let (namespace, name) = (&owner.namespace, &owner.name);
        // Without their CRDs nobody can tell a deletion from the end of a CRD.
        let by_itself = self.watches.namespaces().is_empty();
        match owner.kind {
            OwnerKind::Pod => self.remove_pod(namespace, name, touched),
            OwnerKind::ServiceRegistration => {
                self.remove_registration(namespace, name, by_itself, touched);
            }
            OwnerKind::Intention => self.remove_intention(namespace, name, by_itself, touched),
            OwnerKind::PreparedQuery => self.remove_query(namespace, name, by_itself, touched),
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_is_named_as_kubectl_names_it() {
        for (given, meant) in [
            ("namespace/shop", "Namespace/shop"),
            ("ns/shop", "Namespace/shop"),
            ("Namespace/shop", "Namespace/shop"),
            ("pod/shop/web-0", "Pod/shop/web-0"),
            ("sreg/shop/api", "ServiceRegistration/shop/api"),
            (
                "ServiceRegistration/shop/api",
                "ServiceRegistration/shop/api",
            ),
            ("intentions/shop/to-db", "Intention/shop/to-db"),
            ("PQ/shop/find.web", "PreparedQuery/shop/find.web"),
        ] {
            let parsed: TakenOut = given.parse().unwrap();
            assert_eq!(parsed.to_string(), meant, "{given}");
            assert_eq!(meant.parse(), Ok(parsed), "{meant}");
        }
        for bad in [
            "",
            "shop",
            "ns/",
            "ns/a/b",
            "pod/web-0",
            "pod/shop/",
            "pod/shop/a/b",
            "node/n1",
            "ns/Shop",
            "pod/shop/a b",
        ] {
            assert_eq!(bad.parse::<TakenOut>(), Err(NotTakenOut), "{bad:?}");
        }
    }
}
