//! Who an entry in Consul belongs to.

use std::fmt;

use super::names::is_object_name;
use super::text::Text;

/// The kinds of Kubernetes objects that can own an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnerKind {
    /// A pod, by its annotations.
    Pod,
    /// A `ServiceRegistration`, by its selector or its endpoints.
    ServiceRegistration,
    /// An `Intention`.
    Intention,
    /// A `PreparedQuery`.
    PreparedQuery,
}

impl OwnerKind {
    /// The kind as Kubernetes writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::ServiceRegistration => "ServiceRegistration",
            Self::Intention => "Intention",
            Self::PreparedQuery => "PreparedQuery",
        }
    }
}

/// The object that an entry is for; the service meta `lictor-owner`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Its kind.
    pub kind: OwnerKind,
    /// Its namespace.
    pub namespace: Text,
    /// Its name.
    pub name: Text,
}

impl Owner {
    /// The pod `namespace/name`.
    #[must_use]
    pub fn pod(namespace: &Text, name: &Text) -> Self {
        Self {
            kind: OwnerKind::Pod,
            namespace: namespace.clone(),
            name: name.clone(),
        }
    }

    /// The `ServiceRegistration` `namespace/name`.
    #[must_use]
    pub fn registration(namespace: &Text, name: &Text) -> Self {
        Self {
            kind: OwnerKind::ServiceRegistration,
            namespace: namespace.clone(),
            name: name.clone(),
        }
    }

    /// The `Intention` `namespace/name`.
    #[must_use]
    pub fn intention(namespace: &Text, name: &Text) -> Self {
        Self {
            kind: OwnerKind::Intention,
            namespace: namespace.clone(),
            name: name.clone(),
        }
    }

    /// The `PreparedQuery` `namespace/name`.
    #[must_use]
    pub fn prepared_query(namespace: &Text, name: &Text) -> Self {
        Self {
            kind: OwnerKind::PreparedQuery,
            namespace: namespace.clone(),
            name: name.clone(),
        }
    }

    /// Reads `<kind>/<namespace>/<name>`; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let kind = match parts.next()? {
            "Pod" => OwnerKind::Pod,
            "ServiceRegistration" => OwnerKind::ServiceRegistration,
            "Intention" => OwnerKind::Intention,
            "PreparedQuery" => OwnerKind::PreparedQuery,
            _ => return None,
        };
        let (namespace, name) = (parts.next()?, parts.next()?);
        let whole = parts.next().is_none() && is_object_name(namespace) && is_object_name(name);
        whole.then(|| Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_names_no_object_is_none() {
        let owner = Owner::pod(&"shop".into(), &"web.0".into());
        assert_eq!(Owner::parse(&owner.to_string()), Some(owner));
        for bad in [
            "Pod/shop",
            "Pod/shop/a/b",
            "Pod//a",
            "Pod/shop/",
            "Job/shop/a",
            "Pod/shop/a\nINFO audit: removed",
            "Pod/shop/\u{1b}[2J",
        ] {
            assert_eq!(Owner::parse(bad), None, "{bad:?}");
        }
    }
}
