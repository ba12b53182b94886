//! A `ServiceRegistration`, parsed once.

use kube::core::{Expression, Selector};

use super::shape::Endpoint;
use super::spec::InstanceSpec;
use crate::model::names::ServiceName;
use crate::model::owner::Owner;
use crate::model::text::{Pairs, Text};

/// A `ServiceRegistration` as the index holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// Its namespace.
    pub namespace: Text,
    /// Its name.
    pub name: Text,
    /// Its uid.
    pub uid: Text,
    /// `metadata.creationTimestamp`, seconds since the epoch: the older of two holds a key.
    pub created: i64,
    /// `metadata.generation`, told back in the status.
    pub generation: i64,
    /// What it asks for.
    pub content: Content,
}

/// What a `ServiceRegistration` asks for, or why that cannot be told.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// It was understood.
    Valid(Claims),
    /// `lictor.io/paused` holds it.
    Paused,
    /// It could not be decoded, or says what no registration can be made of: what it held is kept.
    Invalid(String),
}

/// What a valid `ServiceRegistration` asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// The service.
    pub service: ServiceName,
    /// The shape of its instances.
    pub spec: InstanceSpec,
    /// What is registered.
    pub source: Source,
}

/// Where the instances come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The pods of the namespace that the selector matches.
    Pods(PodSelector),
    /// Endpoints outside of the cluster.
    Endpoints(Vec<Endpoint>),
}

impl Registration {
    /// The registration as an owner of entries.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner::registration(&self.namespace, &self.name)
    }

    /// What it claims, unless it is paused or invalid.
    #[must_use]
    pub fn claims(&self) -> Option<&Claims> {
        match &self.content {
            Content::Valid(claims) => Some(claims),
            Content::Paused | Content::Invalid(_) => None,
        }
    }

    /// Whether it selects a pod with these labels.
    #[must_use]
    pub fn selects(&self, labels: &Pairs) -> Option<&Claims> {
        let claims = self.claims()?;
        match &claims.source {
            Source::Pods(selector) => selector.matches(labels).then_some(claims),
            Source::Endpoints(_) => None,
        }
    }
}

/// A label selector; an empty one selects every pod, as everywhere in Kubernetes.
#[derive(Clone, Debug, PartialEq)]
pub struct PodSelector(Vec<Expression>);

impl From<Selector> for PodSelector {
    fn from(selector: Selector) -> Self {
        Self(selector.into_iter().collect())
    }
}

impl PodSelector {
    /// Whether a pod with these labels is selected.
    #[must_use]
    pub fn matches(&self, labels: &Pairs) -> bool {
        self.0.iter().all(|expression| match expression {
            Expression::In(key, values) => {
                labels.get(key).is_some_and(|value| values.contains(&**value))
            }
            Expression::NotIn(key, values) => {
                !labels.get(key).is_some_and(|value| values.contains(&**value))
            }
            Expression::Equal(key, value) => labels.get(key).is_some_and(|own| **own == **value),
            Expression::NotEqual(key, value) => {
                !labels.get(key).is_some_and(|own| **own == **value)
            }
            Expression::Exists(key) => labels.get(key).is_some(),
            Expression::DoesNotExist(key) => labels.get(key).is_none(),
        })
    }
}
