//! A `ServiceRegistration`, parsed once.

use std::collections::BTreeSet;

use super::annotations::{DOMAIN, PAUSED};
use super::shape::Endpoint;
use super::spec::{AddressChoice, InstanceSpec, PortChoice, Terminating};
use crate::api::service_registration as api;
use crate::api::{LabelSelector, RegistrationObject, ServiceRegistrationSpec};
use crate::model::entry::{Health, Weights};
use crate::model::limits::MAX_ENDPOINTS;
use crate::model::names::{ServiceName, is_dns_label};
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
    Paused {
        /// What it says, where that is understood: the health of its pods goes on.
        claims: Option<Claims>,
        /// What is wrong with the annotation: a value that is not understood pauses too.
        problem: Option<String>,
    },
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
    /// Whether entries without an owner that stand there are taken over.
    pub adopt: bool,
}

/// Where the instances come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The pods of the namespace that the selector matches.
    Pods(LabelSelector),
    /// Endpoints outside of the cluster.
    Endpoints(Vec<Endpoint>),
}

impl Registration {
    /// Reads an object; what cannot be understood becomes [`Content::Invalid`].
    #[must_use]
    pub fn of(object: &RegistrationObject) -> Self {
        let claims = match &object.spec {
            Ok(spec) => claims(&object.name, spec),
            Err(problem) => Err(format!("the object cannot be decoded: {problem}")),
        };
        let content = match paused(object) {
            Ok(false) => claims.map_or_else(Content::Invalid, Content::Valid),
            paused => Content::Paused {
                claims: claims.ok(),
                problem: paused.err(),
            },
        };
        Self {
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            uid: object.uid.clone(),
            created: object.created,
            generation: object.generation,
            content,
        }
    }

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
            Content::Paused { .. } | Content::Invalid(_) => None,
        }
    }

    /// What it says, also while it is paused and claims nothing.
    #[must_use]
    pub fn understood(&self) -> Option<&Claims> {
        match &self.content {
            Content::Valid(claims) => Some(claims),
            Content::Paused { claims, .. } => claims.as_ref(),
            Content::Invalid(_) => None,
        }
    }

    /// What is wrong with it as such.
    #[must_use]
    pub fn problem(&self) -> Option<&String> {
        match &self.content {
            Content::Valid(_) => None,
            Content::Paused { problem, .. } => problem.as_ref(),
            Content::Invalid(problem) => Some(problem),
        }
    }

    /// What it claims for a pod with these labels, if it selects it.
    #[must_use]
    pub fn selects(&self, labels: &Pairs) -> Option<&Claims> {
        self.claims().filter(|claims| claims.select(labels))
    }
}

impl Claims {
    /// Whether a pod with these labels is selected.
    #[must_use]
    pub fn select(&self, labels: &Pairs) -> bool {
        match &self.source {
            Source::Pods(selector) => selector.matches(labels),
            Source::Endpoints(_) => false,
        }
    }
}

fn paused(object: &RegistrationObject) -> Result<bool, String> {
    let value = object.annotations.get(&format!("{DOMAIN}{PAUSED}"));
    match value.map(|value| value.trim()) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(format!(
            "{DOMAIN}{PAUSED}: {other:?} is neither \"true\" nor \"false\"; the object is held as if \
             paused"
        )),
    }
}

/// What the API server's validation lets through is checked again where a wrong entry could come of
/// it: the resource may have been stored under an older, laxer schema.
fn claims(name: &str, spec: &ServiceRegistrationSpec) -> Result<Claims, String> {
    let ServiceRegistrationSpec {
        service,
        selector,
        endpoints,
        port,
        address,
        tags,
        meta,
        weights,
        enable_tag_override,
        adopt,
        health,
        protocol: _,
        queries: _,
        connect: _,
    } = spec;
    let service = match service {
        Some(service) => service
            .parse()
            .map_err(|error| format!("spec.service: {error}"))?,
        None => name.parse().map_err(|error| {
            format!("metadata.name serves as spec.service, which is not set: {error}")
        })?,
    };
    let source = match (selector, endpoints) {
        (Some(selector), None) => Source::Pods(selector.clone()),
        (None, Some(listed)) => Source::Endpoints(endpoints_of(listed)?),
        _ => return Err("spec: exactly one of selector and endpoints must be set".to_owned()),
    };
    let health = health.unwrap_or_default();
    let spec = InstanceSpec {
        port: match port {
            None => PortChoice::Default,
            Some(api::Port::Number(0)) => return Err("spec.port: must be 1..65535".to_owned()),
            Some(api::Port::Number(number)) => PortChoice::Number(*number),
            Some(api::Port::Name(name)) => PortChoice::Name(name.as_str().into()),
        },
        address: match address.unwrap_or_default() {
            api::AddressFrom::PodIP => AddressChoice::PodIp,
            api::AddressFrom::HostIP => AddressChoice::HostIp,
        },
        tags: texts(tags),
        meta: pairs(meta),
        weights: weights.map_or_else(Weights::default, |weights| Weights {
            passing: weights.passing.unwrap_or(1).max(1),
            warning: weights.warning.unwrap_or(1).max(1),
        }),
        enable_tag_override: enable_tag_override.unwrap_or_default(),
        not_ready: match health.not_ready.unwrap_or_default() {
            api::NotReady::Critical => Health::Critical,
            api::NotReady::Warning => Health::Warning,
        },
        terminating: match health.terminating.unwrap_or_default() {
            api::Terminating::Critical => Terminating::Health(Health::Critical),
            api::Terminating::Warning => Terminating::Health(Health::Warning),
            api::Terminating::Deregister => Terminating::Deregister,
        },
    };
    Ok(Claims {
        service,
        spec,
        source,
        adopt: adopt.unwrap_or_default(),
    })
}

fn endpoints_of(listed: &[api::Endpoint]) -> Result<Vec<Endpoint>, String> {
    if listed.len() > MAX_ENDPOINTS {
        let count = listed.len();
        return Err(format!(
            "spec.endpoints: {count} are given, at most {MAX_ENDPOINTS} allowed"
        ));
    }
    let mut names = BTreeSet::new();
    for api::Endpoint { name, .. } in listed {
        if !is_dns_label(name) {
            return Err(format!(
                "spec.endpoints: the name {name:?} must be a lower-case DNS label"
            ));
        }
        if !names.insert(name) {
            return Err(format!("spec.endpoints: the name {name:?} is given twice"));
        }
    }
    Ok(listed.iter().map(endpoint).collect())
}

fn endpoint(endpoint: &api::Endpoint) -> Endpoint {
    let api::Endpoint {
        name,
        address,
        port,
        tags,
        meta,
    } = endpoint;
    Endpoint {
        name: name.as_str().into(),
        address: address.as_str().into(),
        port: port.unwrap_or_default(),
        tags: texts(tags),
        meta: pairs(meta),
    }
}

fn texts(texts: &[String]) -> Vec<Text> {
    texts.iter().map(|text| Text::from(text.as_str())).collect()
}

fn pairs(pairs: &std::collections::BTreeMap<String, String>) -> Vec<(Text, Text)> {
    pairs
        .iter()
        .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_an_older_schema_let_through_are_judged() {
        let judged = |names: &[&str]| {
            let endpoint = |name: &&str| serde_json::json!({"name": name, "address": "10.0.0.1"});
            let spec =
                serde_json::json!({"endpoints": names.iter().map(endpoint).collect::<Vec<_>>()});
            claims("db", &serde_json::from_value(spec).unwrap()).map(drop)
        };
        assert_eq!(judged(&["a", "b"]), Ok(()));
        assert!(judged(&["E.."]).unwrap_err().contains("\"E..\""));
        assert!(judged(&["a", "a"]).unwrap_err().contains("twice"));
        assert!(judged(&["a"; 257]).unwrap_err().contains("at most 256"));
    }

    fn object(annotations: &[(&str, &str)]) -> RegistrationObject {
        let spec = serde_json::json!({
            "selector": {"matchLabels": {"app": "web"}},
            "address": "HostIP",
            "health": {"notReady": "Warning"},
        });
        let pair = |(key, value): &(&str, &str)| (Text::from(*key), Text::from(*value));
        RegistrationObject {
            namespace: "shop".into(),
            name: "web".into(),
            uid: "uid".into(),
            created: 100,
            generation: 1,
            annotations: annotations.iter().map(pair).collect(),
            spec: Ok(serde_json::from_value(spec).unwrap()),
            status: None,
        }
    }

    #[test]
    fn a_paused_one_claims_nothing_and_says_how_health_goes_on() {
        for (value, is_wrong) in [("true", false), ("yes", true)] {
            let paused = Registration::of(&object(&[("lictor.io/paused", value)]));
            assert!(paused.claims().is_none());
            let settings = &paused.understood().unwrap().spec;
            assert_eq!(settings.not_ready, Health::Warning);
            assert_eq!(settings.address, AddressChoice::HostIp);
            assert_eq!(paused.problem().is_some(), is_wrong, "{value}");
        }
        let valid = Registration::of(&object(&[]));
        assert_eq!(valid.understood(), valid.claims());
    }
}
