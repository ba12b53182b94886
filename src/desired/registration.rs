//! A `ServiceRegistration`, parsed once.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::mesh::{self, Sidecar};
use super::parsed::{self, Asked, Parsed};
use super::probe;
use super::query::{self, QueryClaim};
use super::shape::Endpoint;
use super::spec::{AddressChoice, InstanceSpec, PortChoice, Terminating};
use crate::api::service_registration as api;
use crate::api::{LabelSelector, RegistrationObject, ServiceRegistrationSpec};
use crate::model::entry::{Health, Weights};
use crate::model::limits::MAX_ENDPOINTS;
use crate::model::names::{ServiceName, is_dns_label};
use crate::model::owner::OwnerKind;
use crate::model::text::{Pairs, Text};

/// Longest name of a host.
const MAX_ADDRESS_BYTES: usize = 253;

/// A `ServiceRegistration` as the index holds it.
pub type Registration = Parsed<Claims>;

/// What a `ServiceRegistration` asks for, or why that cannot be told.
pub type Content = parsed::Content<Claims>;

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
    /// The protocol that its `service-defaults` are to have.
    pub protocol: Option<Text>,
    /// Prepared queries that belong to it.
    pub queries: Vec<QueryClaim>,
    /// The proxy beside every instance, if there is to be one.
    pub sidecar: Option<Sidecar>,
}

/// Where the instances come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The pods of the namespace that the selector matches.
    Pods(LabelSelector),
    /// Endpoints outside of the cluster.
    Endpoints(Vec<Endpoint>),
}

impl Asked for Claims {
    const KIND: OwnerKind = OwnerKind::ServiceRegistration;
}

impl Registration {
    /// Reads an object; what cannot be understood becomes [`Content::Invalid`].
    #[must_use]
    pub fn of(object: &RegistrationObject) -> Self {
        Self::read(object, claims)
    }

    /// What it claims for a pod with these labels, if it selects it.
    #[must_use]
    pub fn selects(&self, labels: &Pairs) -> Option<&Claims> {
        self.claims().filter(|claims| claims.select(labels))
    }
}

impl Claims {
    /// The services that it registers: its own, and that of the proxies.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        let sidecar = self.sidecar.iter().map(|sidecar| &sidecar.service);
        std::iter::once(&self.service).chain(sidecar)
    }

    /// The proxy, if that is what it registers under this service.
    #[must_use]
    pub fn proxy_under(&self, service: &str) -> Option<&Sidecar> {
        let sidecar = self.sidecar.as_ref();
        sidecar.filter(|sidecar| *sidecar.service.as_ref() == *service)
    }

    /// Whether a pod with these labels is selected.
    #[must_use]
    pub fn select(&self, labels: &Pairs) -> bool {
        match &self.source {
            Source::Pods(selector) => selector.matches(labels),
            Source::Endpoints(_) => false,
        }
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
        protocol,
        queries,
        connect,
    } = spec;
    let service: ServiceName = match service {
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
    let mut names = BTreeSet::new();
    let queries = queries.iter().map(|listed| {
        let query = query::claim(None, Some(service.text()), listed)
            .map_err(|problem| format!("spec.queries: {problem}"))?;
        if names.insert(query.name.clone()) {
            Ok(query)
        } else {
            let name = &query.name;
            Err(format!(
                "spec.queries: the name {name} is given twice (letters of any case are the same): give each its own"
            ))
        }
    });
    let queries = queries.collect::<Result<_, String>>()?;
    let (native, sidecar) = match connect {
        None => (false, None),
        Some(connect) => {
            mesh::of(&service, connect).map_err(|why| format!("spec.connect: {why}"))?
        }
    };
    let api::Health {
        not_ready,
        terminating,
        checks,
        deregister_critical_service_after,
    } = health.clone().unwrap_or_default();
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
        native,
        not_ready: match not_ready.unwrap_or_default() {
            api::NotReady::Critical => Health::Critical,
            api::NotReady::Warning => Health::Warning,
        },
        terminating: match terminating.unwrap_or_default() {
            api::Terminating::Critical => Terminating::Health(Health::Critical),
            api::Terminating::Warning => Terminating::Health(Health::Warning),
            api::Terminating::Deregister => Terminating::Deregister,
        },
        probes: probe::of(&checks).map_err(|problem| format!("spec.health.checks: {problem}"))?,
        deregister_after: probe::deregister_after(deregister_critical_service_after.as_deref())
            .map_err(|problem| format!("spec.health: {problem}"))?,
    };
    Ok(Claims {
        service,
        spec,
        source,
        adopt: adopt.unwrap_or_default(),
        protocol: protocol.map(|protocol| protocol.as_str().into()),
        queries,
        sidecar,
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
    for api::Endpoint { name, address, .. } in listed {
        if !is_dns_label(name) {
            return Err(format!(
                "spec.endpoints: the name {name:?} must be a lower-case DNS label"
            ));
        }
        if !names.insert(name) {
            return Err(format!(
                "spec.endpoints: the name {name:?} is given twice: give each its own"
            ));
        }
        // It becomes a part of URLs.
        if !is_host(address) {
            return Err(format!(
                "spec.endpoints: {name}: the address {address:?} must be an IP address or a host name, \
                 without scheme, port, path and spaces"
            ));
        }
    }
    Ok(listed.iter().map(endpoint).collect())
}

/// Whether a text is the address of a host, or a name of hosts and of nothing else, as the schema has it: a
/// number at its end makes it an address for some.
fn is_host(text: &str) -> bool {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return !ip.is_unspecified();
    }
    let is_in_label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_part = |byte: u8| is_in_label(byte) || byte == b'.' || byte == b'-';
    let name = text.strip_suffix('.').unwrap_or(text);
    let last = name.rsplit('.').next().unwrap_or_default();
    text.len() <= MAX_ADDRESS_BYTES
        && text.bytes().all(is_part)
        && text.bytes().next().is_some_and(is_in_label)
        && !text.ends_with('-')
        && (last.is_empty() || !last.bytes().all(|byte| byte.is_ascii_digit()))
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

    #[test]
    fn an_address_is_one_of_a_host_whatever_an_older_schema_let_through() {
        for host in [
            "10.0.0.1",
            "fd00::7",
            "db",
            "db-0.example.com.",
            "_a.b",
            "4.example",
        ] {
            assert!(is_host(host), "{host}");
        }
        for text in [
            "",
            ".",
            "0.0.0.0",
            "::",
            "127.1",
            "2130706433",
            "db/..",
            "db@evil",
            "a b",
            "db:80",
            "-a",
            "a-",
            "db#",
        ] {
            assert!(!is_host(text), "{text}");
        }
        let spec = serde_json::json!({"endpoints": [{"name": "a", "address": "db/x?"}]});
        let judged = claims("db", &serde_json::from_value(spec).unwrap()).map(drop);
        assert!(judged.unwrap_err().contains("a: the address \"db/x?\""));
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
