//! Checks that consul-esm runs (`--checks esm`): what it is given, and what it cannot do.
//!
//! Source: <https://github.com/hashicorp/consul-esm>, as of its release 0.10. It runs the checks of all nodes
//! with `external-node=true` that have a definition with `HTTP` or `TCP`, and no other; how many runs it takes
//! to change a status is a setting of its own, for all checks.

use super::probe::{Asked, Call, HttpQuestion, Probe, Question};
use super::registration::Claims;
use crate::model::definition::{Definition, HttpDefinition};

/// Who runs the checks of `ServiceRegistration`s (`--checks`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Runner {
    /// Lictor itself: the process that writes.
    #[default]
    Lictor,
    /// consul-esm: checks are written with their definition, and their status is left to it.
    Esm,
}

impl std::fmt::Display for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lictor => "lictor",
            Self::Esm => "esm",
        })
    }
}

impl Runner {
    /// Why checks cannot be run, if some cannot.
    pub fn accepts(self, probes: &[std::sync::Arc<Probe>]) -> Result<(), Vec<String>> {
        if self == Self::Lictor {
            return Ok(());
        }
        let refused = |probe: &std::sync::Arc<Probe>| {
            // A Lease is looked at by Lictor, whoever runs checks.
            let Question::Call(call) = &probe.question else {
                return None;
            };
            match **call {
                Call::Http(_) | Call::Tcp => None,
                Call::Grpc(_) => Some(format!(
                    "health.checks: {}: grpc: consul-esm, which runs the checks here (--checks esm), knows \
                     http and tcp only: use one of these, or leave it out",
                    probe.name
                )),
            }
        };
        let refused: Vec<String> = probes.iter().filter_map(refused).collect();
        if refused.is_empty() {
            Ok(())
        } else {
            Err(refused)
        }
    }

    /// What of a registration's checks does not count here, for people.
    #[must_use]
    pub fn remark(self, claims: &Claims) -> Option<String> {
        if self == Self::Lictor {
            return None;
        }
        let counts = |probe: &&std::sync::Arc<Probe>| (probe.failures, probe.successes) != (1, 1);
        let ignored = claims.spec.probes.iter().filter(counts);
        let ignored: Vec<&str> = ignored.map(|probe| &*probe.name).collect();
        (!ignored.is_empty()).then(|| {
            format!(
                "spec.health.checks: {}: failuresBeforeCritical and successesBeforePassing do not count: \
                 consul-esm, which runs the checks here (--checks esm), has critical_threshold and \
                 passing_threshold for all of them; leave them out",
                ignored.join(", ")
            )
        })
    }
}

/// What consul-esm is to do for a check of an instance at this host; `None` for what it cannot do.
#[must_use]
pub fn definition(asked: &Asked, host: &str) -> Option<Definition> {
    let Asked { probe, port, .. } = asked;
    let (interval, timeout) = (probe.interval, probe.timeout);
    let authority = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let Question::Call(call) = &probe.question else {
        return None;
    };
    match &**call {
        Call::Http(HttpQuestion {
            tls,
            method,
            path,
            headers,
        }) => {
            let scheme = if *tls { "https" } else { "http" };
            let http = HttpDefinition {
                url: &format!("{scheme}://{authority}{path}"),
                method,
                headers,
                skips_verification: *tls,
            };
            Some(Definition::http(&http, interval, timeout))
        }
        Call::Tcp => Some(Definition::tcp(&authority, interval, timeout)),
        Call::Grpc(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::desired::fixtures::object;
    use crate::desired::registration::Registration;

    fn claims(checks: &Value) -> Claims {
        let spec = json!({"selector": {}, "health": {"checks": checks}});
        let registration = Registration::of(&object("web", spec));
        registration.claims().unwrap().clone()
    }

    fn defined(check: &Value, host: &str) -> Option<Value> {
        let probe = claims(&json!([check])).spec.probes[0].clone();
        let definition = definition(
            &Asked {
                probe,
                port: 80,
                lease: "".into(),
            },
            host,
        );
        definition.map(|definition| definition.to_json())
    }

    #[test]
    fn a_check_becomes_what_consul_esm_runs() {
        let http = json!({"path": "/health?deep=1", "method": "HEAD", "headers": {"x-who": "me"}});
        let check = json!({"name": "api", "http": http, "interval": "90s", "timeout": "100ms"});
        assert_eq!(
            defined(&check, "10.0.0.1"),
            Some(json!({
                "HTTP": "http://10.0.0.1:80/health?deep=1", "Method": "HEAD", "Header": {"X-Who": ["me"]},
                "Interval": "1m30s", "Timeout": "100ms",
            }))
        );
        let check = json!({"name": "api", "http": {"scheme": "https"}});
        assert_eq!(
            defined(&check, "fd00::7"),
            Some(json!({
                "HTTP": "https://[fd00::7]:80/", "Method": "GET", "TLSSkipVerify": true,
                "Interval": "10s", "Timeout": "3s",
            }))
        );
        assert_eq!(
            defined(&json!({"name": "db", "tcp": {}}), "db.example.com"),
            Some(json!({"TCP": "db.example.com:80", "Interval": "10s", "Timeout": "3s"}))
        );
        assert_eq!(
            defined(&json!({"name": "rpc", "grpc": {}}), "10.0.0.1"),
            None
        );
    }

    #[test]
    fn what_consul_esm_cannot_do_is_said_by_name() {
        let claims = claims(&json!([
            {"name": "api", "http": {}, "failuresBeforeCritical": 3},
            {"name": "db", "tcp": {}},
            {"name": "rpc", "grpc": {}, "successesBeforePassing": 2},
        ]));
        let probes = &claims.spec.probes;
        assert_eq!(Runner::Lictor.accepts(probes), Ok(()));
        let refused = Runner::Esm.accepts(probes).unwrap_err();
        assert!(
            refused.len() == 1 && refused[0].contains("rpc: grpc"),
            "{refused:?}"
        );
        assert_eq!(Runner::Esm.accepts(&probes[..2]), Ok(()));
        assert_eq!(Runner::Lictor.remark(&claims), None);
        let remark = Runner::Esm.remark(&claims).unwrap();
        assert!(
            remark.contains("api, rpc: failuresBeforeCritical"),
            "{remark}"
        );
    }
}
