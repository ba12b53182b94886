//! The checks of a `ServiceRegistration` that Lictor runs, parsed once, and what they are run against.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;

use super::shape::Endpoint;
use super::spec::{AddressChoice, InstanceSpec, PortChoice};
use super::template;
use crate::api::health as api;
use crate::api::service_registration::Port;
use crate::model::entry::{CheckKind, Protocol};
use crate::model::facts::PodFacts;
use crate::model::limits::MAX_CHECKS;
use crate::model::names::{is_dns_label, is_dns_subdomain};
use crate::model::text::Text;

/// From one run to the next, where nothing is said.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// How long a run may take, where nothing is said.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);
const INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(24);
const TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_mins(1);
/// The least time after which anything is deregistered for being critical.
pub const LEAST_CRITICAL: Duration = Duration::from_secs(30);
const CRITICAL_TIMES: std::ops::RangeInclusive<Duration> =
    LEAST_CRITICAL..=Duration::from_hours(8760);

/// The least and the longest `TTL` of a session that Consul takes (`SessionTTLMin`, `SessionTTLMax`).
const TTLS: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_hours(24);

/// A check of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its name within the registration.
    pub name: Text,
    /// What is asked.
    pub question: Question,
    /// The port that it is asked at.
    pub port: PortChoice,
    /// From one run to the next.
    pub interval: Duration,
    /// How long a run may take.
    pub timeout: Duration,
    /// Runs in a row that must fail before it is critical.
    pub failures: u32,
    /// Runs in a row that must succeed before it passes or warns.
    pub successes: u32,
}

/// What a check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The instance itself, by a call.
    Call(Arc<Call>),
    /// Nothing: whether a Lease was renewed.
    Lease(Heartbeat),
}

/// What an instance is called with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A request over HTTP.
    Http(HttpQuestion),
    /// Whether a TCP connection is taken.
    Tcp,
    /// The health service of gRPC, about this service; empty for the server as a whole.
    Grpc(Text),
}

/// A Lease that is renewed while a workload makes progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The name of the Lease, as a template.
    pub lease: Text,
    /// How long a renewal is good for.
    pub ttl: Duration,
}

/// A request over HTTP.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpQuestion {
    /// Whether it goes over TLS.
    pub tls: bool,
    /// The method, in capitals.
    pub method: &'static str,
    /// Path and query.
    pub path: Text,
    /// Header fields.
    pub headers: Vec<(Text, Text)>,
}

// By hand: people put tokens into headers.
impl fmt::Debug for HttpQuestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&Text> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("HttpQuestion")
            .field("tls", &self.tls)
            .field("method", &self.method)
            .field("path", &self.path)
            .field("headers", &names)
            .finish()
    }
}

/// The checks of a registration, shared by its instances.
pub type Probes = Arc<[Arc<Probe>]>;

/// A check for one of the instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What is asked.
    pub probe: Arc<Probe>,
    /// The port of the instance that it is asked at; 0 where nothing is asked.
    pub port: u16,
    /// The name of the Lease that is looked at, for a [`Question::Lease`]; else empty.
    pub lease: Text,
}

/// A check for one of the instances, that is run: by a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedCall {
    /// The check.
    pub probe: Arc<Probe>,
    /// What the instance is called with.
    pub call: Arc<Call>,
    /// The port of the instance that it is called at.
    pub port: u16,
}

impl Asked {
    /// What is looked at, where that is a Lease.
    #[must_use]
    pub fn heartbeat(&self) -> Option<&Heartbeat> {
        match &self.probe.question {
            Question::Lease(heartbeat) => Some(heartbeat),
            Question::Call(_) => None,
        }
    }

    /// What is run, where that is a call.
    #[must_use]
    pub fn call(&self) -> Option<AskedCall> {
        match &self.probe.question {
            Question::Call(call) => Some(AskedCall {
                probe: self.probe.clone(),
                call: call.clone(),
                port: self.port,
            }),
            Question::Lease(_) => None,
        }
    }
}

/// The checks of an instance of a pod; `own` is the instance's port. As an error all that is wrong.
pub fn of_pod(spec: &InstanceSpec, pod: &PodFacts, own: u16) -> Result<Box<[Asked]>, Vec<String>> {
    asked(spec, |probe| probe.on_pod(pod, spec.address, own))
}

/// The checks of an instance of an endpoint.
pub fn of_endpoint(spec: &InstanceSpec, endpoint: &Endpoint) -> Result<Box<[Asked]>, Vec<String>> {
    let name = &endpoint.name;
    let place = |probe: &Probe| probe.on_endpoint(endpoint.port);
    asked(spec, |probe| {
        place(probe).map_err(|problem| format!("endpoint {name}: {problem}"))
    })
}

/// The checks of an instance that is kept as it is, of those whose port can be told: `own` is the port that
/// Consul has, at the address of this choice.
#[must_use]
pub fn of_kept_pod(
    spec: &InstanceSpec,
    pod: &PodFacts,
    address: AddressChoice,
    own: u16,
) -> Box<[Asked]> {
    kept(spec, |probe| probe.on_pod(pod, address, own))
}

/// The same of an endpoint.
#[must_use]
pub fn of_kept_endpoint(spec: &InstanceSpec, own: u16) -> Box<[Asked]> {
    kept(spec, |probe| probe.on_endpoint(own))
}

/// The port that is asked at, or else the Lease that is looked at.
type Place = Result<(u16, Text), String>;

fn kept(spec: &InstanceSpec, place: impl Fn(&Probe) -> Place) -> Box<[Asked]> {
    let asked = |probe: &Arc<Probe>| {
        let (port, lease) = place(probe).ok()?;
        let probe = probe.clone();
        Some(Asked { probe, port, lease })
    };
    spec.probes.iter().filter_map(asked).collect()
}

fn asked(
    spec: &InstanceSpec,
    place: impl Fn(&Probe) -> Place,
) -> Result<Box<[Asked]>, Vec<String>> {
    let (mut asked, mut problems) = (Vec::new(), Vec::new());
    for probe in spec.probes.iter() {
        match place(probe) {
            Ok((port, lease)) => asked.push(Asked {
                probe: probe.clone(),
                port,
                lease,
            }),
            Err(problem) => problems.push(format!("health.checks: {}: {problem}", probe.name)),
        }
    }
    if problems.is_empty() {
        Ok(asked.into())
    } else {
        Err(problems)
    }
}

impl Probe {
    /// What its check in Consul is of.
    #[must_use]
    pub fn kind(&self) -> CheckKind {
        CheckKind::Probe {
            name: self.name.clone(),
            protocol: match &self.question {
                Question::Call(call) => match **call {
                    Call::Http(_) => Protocol::Http,
                    Call::Tcp => Protocol::Tcp,
                    Call::Grpc(_) => Protocol::Grpc,
                },
                Question::Lease(_) => Protocol::Session,
            },
            definition: None,
        }
    }

    fn on_pod(&self, pod: &PodFacts, address: AddressChoice, own: u16) -> Place {
        if let Question::Lease(heartbeat) = &self.question {
            return Ok((0, heartbeat.lease_of(Some(pod))?));
        }
        Ok((self.port_of_pod(pod, address, own)?, Text::default()))
    }

    fn on_endpoint(&self, own: u16) -> Place {
        if let Question::Lease(heartbeat) = &self.question {
            return Ok((0, heartbeat.lease_of(None)?));
        }
        Ok((self.port_of_endpoint(own)?, Text::default()))
    }

    /// The port of a pod that it is asked at; `own` is that of the instance. Nothing is asked at a port
    /// that the pod does not declare: else whoever may write a registration could search the network
    /// for open ports of whatever has the address by then.
    pub fn port_of_pod(
        &self,
        pod: &PodFacts,
        address: AddressChoice,
        own: u16,
    ) -> Result<u16, String> {
        let on_node = address == AddressChoice::HostIp && !pod.host_network;
        let reached = |declared: &crate::model::facts::ContainerPort| {
            if on_node {
                declared.host_port
            } else {
                Some(declared.port)
            }
        };
        let declared = |port: u16| pod.ports.iter().filter_map(reached).any(|it| it == port);
        // A node's address is that of everything on it: there the pod must say that a port is its own.
        let owns_address = address == AddressChoice::PodIp && !pod.host_network;
        let allowed = |port: u16| {
            if declared(port) || (port == own && owns_address) {
                return Ok(port);
            }
            Err(format!(
                "port {port} is declared by no container of the pod, nor its own at its own address: declare it"
            ))
        };
        match &self.port {
            PortChoice::Default => own_port(own).and_then(allowed),
            PortChoice::Number(number) => allowed(*number),
            PortChoice::Name(name) => {
                let mut ports = pod.ports.iter();
                let named = ports.find(|port| port.name.as_ref() == Some(name));
                let named = named.ok_or_else(|| {
                    format!("no container port is called {name:?}: name one that there is, or give a number")
                })?;
                reached(named).ok_or_else(|| {
                    format!(
                        "the container port {name:?} has no hostPort, which address HostIP needs: give it one"
                    )
                })
            }
        }
    }

    /// The port of an endpoint that it is asked at; `own` is that of the instance.
    pub fn port_of_endpoint(&self, own: u16) -> Result<u16, String> {
        match &self.port {
            PortChoice::Default => own_port(own),
            PortChoice::Number(number) => Ok(*number),
            PortChoice::Name(name) => Err(format!(
                "endpoints have no named ports such as {name:?}: give the number"
            )),
        }
    }
}

impl Heartbeat {
    fn lease_of(&self, pod: Option<&PodFacts>) -> Result<Text, String> {
        let template = &self.lease;
        let name =
            template::render(template, pod).map_err(|problem| format!("ttl.lease: {problem}"))?;
        match name {
            Some(name) if is_dns_subdomain(&name) => Ok(name.into()),
            Some(name) => Err(format!(
                "ttl.lease: {name:?} cannot be the name of a Lease: use lower-case letters, digits, '-' and '.'"
            )),
            None => Err(format!(
                "ttl.lease: {template:?} names a label or an annotation that the pod lacks: give it to the pod"
            )),
        }
    }
}

fn own_port(own: u16) -> Result<u16, String> {
    if own == 0 {
        return Err("the instance has no port: give the check one".to_owned());
    }
    Ok(own)
}

/// Reads the checks of a registration.
///
/// What the API server's validation lets through is checked again: the resource may have been stored
/// under an older, laxer schema.
pub fn of(checks: &[api::Check]) -> Result<Probes, String> {
    if checks.len() > MAX_CHECKS {
        return Err(format!(
            "{} are given, at most {MAX_CHECKS} allowed",
            checks.len()
        ));
    }
    let mut names = BTreeSet::new();
    let probes = checks.iter().map(|check| {
        let name = &check.name;
        if !is_dns_label(name) || CheckKind::is_reserved(name) {
            return Err(format!(
                "the name {name:?} must be a lower-case DNS label other than ready and alias"
            ));
        }
        if !names.insert(name) {
            return Err(format!(
                "the name {name:?} is given twice: give each its own"
            ));
        }
        let probe = probe(check).map_err(|problem| format!("{name}: {problem}"))?;
        Ok(Arc::new(probe))
    });
    let probes = probes.collect::<Result<Vec<_>, String>>()?;
    Ok(probes.into())
}

fn probe(check: &api::Check) -> Result<Probe, String> {
    let api::Check {
        name,
        http,
        tcp,
        grpc,
        ttl,
        interval,
        timeout,
        failures_before_critical,
        successes_before_passing,
    } = check;
    let called = |call| Question::Call(Arc::new(call));
    let (question, port) = match (http, tcp, grpc, ttl) {
        (Some(http), None, None, None) => (called(Call::Http(request(http)?)), &http.port),
        (None, Some(tcp), None, None) => (called(Call::Tcp), &tcp.port),
        (None, None, Some(grpc), None) => {
            let service = grpc.service.as_deref().unwrap_or_default();
            (called(Call::Grpc(service.into())), &grpc.port)
        }
        (None, None, None, Some(ttl)) => (Question::Lease(heartbeat(ttl)?), &None),
        _ => return Err("exactly one of http, tcp, grpc and ttl must be set".to_owned()),
    };
    let port = match port {
        None => PortChoice::Default,
        Some(Port::Number(0)) => return Err("port must be 1..65535".to_owned()),
        Some(Port::Number(number)) => PortChoice::Number(*number),
        Some(Port::Name(name)) => PortChoice::Name(name.as_str().into()),
    };
    Ok(Probe {
        name: name.as_str().into(),
        question,
        port,
        interval: duration("interval", interval.as_deref(), DEFAULT_INTERVAL, INTERVALS)?,
        timeout: duration("timeout", timeout.as_deref(), DEFAULT_TIMEOUT, TIMEOUTS)?,
        failures: failures_before_critical.unwrap_or(1).max(1),
        successes: successes_before_passing.unwrap_or(1).max(1),
    })
}

fn heartbeat(ttl: &api::TtlCheck) -> Result<Heartbeat, String> {
    let api::TtlCheck { lease, ttl } = ttl;
    let ttl = duration("ttl", Some(ttl), *TTLS.start(), TTLS)?;
    if ttl.subsec_nanos() != 0 {
        return Err("ttl must be a number of whole seconds".to_owned());
    }
    Ok(Heartbeat {
        lease: lease.as_str().into(),
        ttl,
    })
}

fn request(http: &api::HttpCheck) -> Result<HttpQuestion, String> {
    let path = http.path.as_deref().unwrap_or("/");
    let printable = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    if !path.starts_with('/') || !path.bytes().all(printable) {
        return Err(format!(
            "http.path {path:?} must start with / and hold neither spaces nor '#'"
        ));
    }
    let headers = http.headers.iter();
    Ok(HttpQuestion {
        tls: http.scheme.unwrap_or_default() == api::Scheme::Https,
        method: http.method.unwrap_or_default().as_str(),
        path: path.into(),
        headers: headers
            .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
            .collect(),
    })
}

/// Reads for how long the checks of an instance must be critical before it is deregistered.
pub fn deregister_after(given: Option<&str>) -> Result<Option<Duration>, String> {
    let read = |given| {
        let name = "deregisterCriticalServiceAfter";
        duration(name, Some(given), LEAST_CRITICAL, CRITICAL_TIMES)
    };
    given.map(read).transpose()
}

fn duration(
    what: &str,
    given: Option<&str>,
    default: Duration,
    bounds: std::ops::RangeInclusive<Duration>,
) -> Result<Duration, String> {
    let Some(given) = given else {
        return Ok(default);
    };
    let parsed = given.parse::<SignedDuration>().ok();
    parsed
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| bounds.contains(duration))
        .ok_or_else(|| {
            let (least, most) = (bounds.start(), bounds.end());
            format!("{what} {given:?} must be a duration from {least:?} to {most:?}, such as 10s")
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::AddressChoice::{HostIp, PodIp};
    use super::*;
    use crate::desired::fixtures::pod;

    fn read(checks: &Value) -> Result<Probes, String> {
        of(&serde_json::from_value::<Vec<api::Check>>(checks.clone()).unwrap())
    }

    fn one(check: &Value) -> Probe {
        (*read(&json!([check])).unwrap()[0]).clone()
    }

    #[test]
    fn what_is_not_said_has_the_defaults_of_the_contract() {
        let probe = one(&json!({"name": "api", "http": {}}));
        assert_eq!(probe.interval, Duration::from_secs(10));
        assert_eq!(probe.timeout, Duration::from_secs(3));
        assert_eq!((probe.failures, probe.successes), (1, 1));
        let Question::Call(call) = &probe.question else {
            panic!("{probe:?}")
        };
        let Call::Http(http) = &**call else {
            panic!("{call:?}")
        };
        assert_eq!((http.tls, http.method, &*http.path), (false, "GET", "/"));
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, seconds) in [("90s", 90), ("1m30s", 90), ("1h", 3600)] {
            let probe = one(&json!({"name": "api", "tcp": {}, "interval": text}));
            assert_eq!(probe.interval, Duration::from_secs(seconds), "{text}");
        }
        let probe = one(&json!({"name": "api", "tcp": {}, "timeout": "1.5s"}));
        assert_eq!(probe.timeout, Duration::from_millis(1500));
    }

    #[test]
    fn what_an_older_schema_let_through_is_judged() {
        for (check, says) in [
            (json!({"name": "ready", "tcp": {}}), "ready"),
            (json!({"name": "A", "tcp": {}}), "\"A\""),
            (json!({"name": "a"}), "exactly one"),
            (json!({"name": "a", "tcp": {}, "grpc": {}}), "exactly one"),
            (
                json!({"name": "a", "tcp": {}, "interval": "10ms"}),
                "interval",
            ),
            (json!({"name": "a", "tcp": {}, "timeout": "-3s"}), "timeout"),
            (
                json!({"name": "a", "tcp": {}, "timeout": "soon"}),
                "timeout",
            ),
            (json!({"name": "a", "http": {"path": "@evil"}}), "path"),
            (json!({"name": "a", "http": {"path": "/a\r\nb"}}), "path"),
        ] {
            let problem = read(&json!([check])).unwrap_err();
            assert!(problem.contains(says), "{check}: {problem}");
        }
        let twice = json!([{"name": "a", "tcp": {}}, {"name": "a", "grpc": {}}]);
        assert!(read(&twice).unwrap_err().contains("twice"));
    }

    #[test]
    fn an_instance_is_not_deregistered_too_soon() {
        assert_eq!(deregister_after(None), Ok(None));
        let minute = Duration::from_secs(90);
        assert_eq!(deregister_after(Some("1m30s")), Ok(Some(minute)));
        for text in ["29s", "0s", "-90s", "soon", "8761h"] {
            let problem = deregister_after(Some(text)).unwrap_err();
            assert!(
                problem.contains("deregisterCriticalServiceAfter"),
                "{problem}"
            );
        }
    }

    #[test]
    fn nothing_is_asked_at_a_port_that_the_pod_does_not_declare() {
        let pod = pod("p").port("http", 8080, Some(80)).facts();
        let at = |port: Value, address| {
            one(&json!({"name": "a", "tcp": {"port": port}})).port_of_pod(&pod, address, 9000)
        };
        assert_eq!(at(json!("http"), PodIp), Ok(8080));
        assert_eq!(at(json!("http"), HostIp), Ok(80));
        assert_eq!(at(json!(8080), PodIp), Ok(8080));
        assert_eq!(at(json!(9000), PodIp), Ok(9000), "it is the instance's own");
        assert!(at(json!(22), PodIp).unwrap_err().contains("declare"));
        assert!(at(json!(8080), HostIp).is_err());
        assert!(at(json!("admin"), PodIp).unwrap_err().contains("admin"));
        let own = one(&json!({"name": "a", "tcp": {}}));
        assert_eq!(own.port_of_pod(&pod, PodIp, 9000), Ok(9000));
        assert!(own.port_of_pod(&pod, PodIp, 0).is_err());
    }

    #[test]
    fn a_lease_is_named_by_its_pod_and_asked_nothing() {
        let check = json!({"name": "a", "ttl": {"lease": "${pod.name}.beat", "ttl": "30s"}});
        let probe = one(&check);
        let facts = pod("web-0").facts();
        assert_eq!(probe.on_pod(&facts, PodIp, 0), Ok((0, "web-0.beat".into())));
        assert!(probe.on_endpoint(1).unwrap_err().contains("needs a pod"));
        assert!(probe.kind().follows_session());
        for (ttl, says) in [
            (json!({"lease": "A", "ttl": "30s"}), "lower-case"),
            (
                json!({"lease": "${pod.labels['x']}", "ttl": "30s"}),
                "lacks",
            ),
            (json!({"lease": "${pod.uid}", "ttl": "30s"}), "pod.uid"),
        ] {
            let probe = one(&json!({"name": "a", "ttl": ttl}));
            let problem = probe.on_pod(&facts, PodIp, 0).unwrap_err();
            assert!(problem.contains(says), "{problem}");
        }
        for (ttl, says) in [("9s", "10s"), ("25h", "86400s"), ("10.5s", "whole")] {
            let check = json!([{"name": "a", "ttl": {"lease": "x", "ttl": ttl}}]);
            let problem = read(&check).unwrap_err();
            assert!(problem.contains(says), "{problem}");
        }
    }

    #[test]
    fn values_of_headers_are_not_shown() {
        let check = json!({"name": "a", "http": {"headers": {"authorization": "secret"}}});
        let probe = one(&check);
        assert!(!format!("{probe:?}").contains("secret"));
        let check: api::Check = serde_json::from_value(check).unwrap();
        assert!(!format!("{check:?}").contains("secret"));
    }
}
