//! How the instances of a `ServiceRegistration` take part in the service mesh.

use crate::api::mesh as api;
use crate::model::entry::{Check, Health, Mesh, Proxy, Service, Upstream};
use crate::model::limits::MAX_NAME_WITH_SIDECAR;
use crate::model::names::{InstanceId, ServiceName};
use crate::model::text::Text;

/// Where the proxy reaches the instance that it is beside.
const LOCAL_ADDRESS: &str = "127.0.0.1";

/// The proxy beside every instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// The service that the proxies are.
    pub service: ServiceName,
    /// The port that they listen on.
    pub port: u16,
    /// What the instances call through them, sorted by local port.
    pub upstreams: Box<[Upstream]>,
}

impl Sidecar {
    /// The entry of the proxy beside an instance, which shares all else with it.
    #[must_use]
    pub fn beside(&self, instance: Service, id: &InstanceId) -> Service {
        let proxy = Proxy {
            destination: instance.name,
            destination_id: id.text().clone(),
            local_address: LOCAL_ADDRESS.into(),
            local_port: instance.port,
            upstreams: self.upstreams.clone(),
        };
        let mut tagged_addresses = instance.tagged_addresses;
        for tagged in &mut tagged_addresses {
            tagged.port = self.port;
        }
        Service {
            name: self.service.text().clone(),
            port: self.port,
            tagged_addresses,
            mesh: Some(Box::new(Mesh::Proxy(proxy))),
            ..instance
        }
    }
}

/// The check of the proxy of an endpoint, which follows the checks of its instance: there are none.
#[must_use]
pub fn alias_of_endpoint() -> Check {
    Check {
        status: Health::Passing,
        output: "the endpoint has no check".into(),
    }
}

/// Whether instances speak the mesh's protocol themselves, or else the proxy that does.
///
/// What the API server's validation lets through is checked again: the resource may have been stored
/// under an older, laxer schema.
pub fn of(
    service: &ServiceName,
    connect: &api::Connect,
) -> Result<(bool, Option<Sidecar>), String> {
    let api::Connect { native, sidecar } = connect;
    let api::Sidecar { port, upstreams } = match (native.unwrap_or_default(), sidecar) {
        (true, None) => return Ok((true, None)),
        (false, Some(sidecar)) => sidecar,
        _ => return Err("exactly one of native and sidecar must be set".to_owned()),
    };
    let Some(service) = service.sidecar() else {
        return Err(format!(
            "with sidecar the service's name has at most {MAX_NAME_WITH_SIDECAR} characters: its proxy is \
             registered as NAME-sidecar-proxy"
        ));
    };
    if *port == 0 {
        return Err("sidecar.port must be 1..65535".to_owned());
    }
    let mut upstreams: Vec<Upstream> = upstreams.iter().map(upstream).collect();
    upstreams.sort_unstable();
    let ports = upstreams.iter().map(|upstream| upstream.local_port);
    let mut pairs = ports.clone().zip(ports.skip(1));
    if let Some((port, _)) = pairs.find(|(port, next)| port == next) {
        return Err(format!(
            "sidecar.upstreams: localPort {port} is given twice: give each its own"
        ));
    }
    let sidecar = Sidecar {
        service,
        port: *port,
        upstreams: upstreams.into(),
    };
    Ok((false, Some(sidecar)))
}

fn upstream(upstream: &api::Upstream) -> Upstream {
    let api::Upstream {
        service,
        local_port,
        datacenter,
        peer,
        namespace,
        partition,
    } = upstream;
    let text = |text: &Option<String>| Text::from(text.as_deref().unwrap_or_default());
    Upstream {
        local_port: *local_port,
        service: service.as_str().into(),
        datacenter: text(datacenter),
        peer: text(peer),
        namespace: text(namespace),
        partition: text(partition),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mesh_that_an_older_schema_let_through_is_judged() {
        let judged = |connect: serde_json::Value| {
            of(
                &"db".parse().unwrap(),
                &serde_json::from_value(connect).unwrap(),
            )
        };
        let native = judged(json!({"native": true}));
        assert_eq!(native, Ok((true, None)));
        let upstream = |service: &str, port: u16| json!({"service": service, "localPort": port});
        let sidecar = |upstreams: &[serde_json::Value]| {
            judged(json!({"sidecar": {"port": 1, "upstreams": upstreams}}))
        };
        let (native, valid) = sidecar(&[upstream("b", 2), upstream("c", 1)]).unwrap();
        let valid = valid.unwrap();
        assert_eq!(
            (native, valid.service.as_ref()),
            (false, "db-sidecar-proxy")
        );
        let ports: Vec<u16> = valid.upstreams.iter().map(|up| up.local_port).collect();
        assert_eq!(ports, [1, 2]);
        assert!(
            sidecar(&[upstream("b", 2), upstream("c", 2)])
                .unwrap_err()
                .contains("twice")
        );
        for wrong in [
            json!({}),
            json!({"native": true, "sidecar": {"port": 1}}),
            json!({"sidecar": {"port": 0}}),
        ] {
            assert!(judged(wrong).is_err());
        }
        let long: ServiceName = "x".repeat(50).parse().unwrap();
        let sidecar = serde_json::from_value(json!({"sidecar": {"port": 1}})).unwrap();
        assert!(of(&long, &sidecar).unwrap_err().contains("at most 49"));
    }
}
