//! What Consul returned, in the canonical form in which it is compared.

use crate::consul::wire;
use crate::model::definition::Definition;
use crate::model::entry::{
    ALIVE_CHECK_ID, ALIVE_CHECK_NAME, CONNECT_PROXY, Check, CheckKind, Health, Mesh, NODE_CHECK_ID,
    NODE_CHECK_NAME, NODE_CHECK_TYPE, Node, Protocol, Proxy, Service, TaggedAddress, Upstream,
    VIRTUAL_ADDRESS, Weights,
};
use crate::model::key::InstanceKey;
use crate::model::names::InstanceId;
use crate::model::text::Text;

/// A check, of ours or of anyone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedCheck {
    /// Its id.
    pub id: Text,
    /// Status and output.
    pub check: Check,
    /// Whether name, type and service are those that Lictor gives to a check of this id.
    pub well_formed: bool,
    /// How it is asked for, if it is one of those that are run.
    pub protocol: Option<Protocol>,
    /// How somebody else is to run it.
    pub definition: Option<Definition>,
    /// `ModifyIndex`, for compare-and-set.
    pub modify_index: u64,
}

/// A service instance with its checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedInstance {
    /// The entry.
    pub service: Service,
    /// `CreateIndex`: the same for as long as the entry was not removed.
    pub create_index: u64,
    /// Whether this very entry was seen with our marks by this process, then or now.
    pub was_ours: bool,
    /// Whether it has something that Lictor never gives to an instance.
    pub embellished: bool,
    /// `ModifyIndex`, for compare-and-set.
    pub modify_index: u64,
    /// All its checks.
    pub checks: Vec<ObservedCheck>,
}

/// A node with its own checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedNode {
    /// The node.
    pub node: Node,
    /// `CreateIndex`: the same for as long as the node was not removed.
    pub create_index: u64,
    /// Whether it has something that Lictor never gives to a node.
    pub embellished: bool,
    /// `ModifyIndex`, for compare-and-set.
    pub modify_index: u64,
    /// The checks of the node itself.
    pub checks: Vec<ObservedCheck>,
}

impl ObservedInstance {
    /// Reads an entry; its checks are added with [`Self::checks`].
    #[must_use]
    pub fn of(service: &wire::NodeService) -> Self {
        let mesh = mesh_of(service);
        let embellished = mesh.is_err() || !service.ports.is_empty() || service.locality.is_some();
        Self {
            service: service_of(service, mesh.unwrap_or_else(|what| what)),
            create_index: service.create_index,
            was_ours: false,
            embellished,
            modify_index: service.modify_index,
            checks: Vec::new(),
        }
    }

    /// The check of ours that carries its readiness.
    #[must_use]
    pub fn readiness(&self, key: &InstanceKey) -> Option<&ObservedCheck> {
        self.check(&self.service.check_kind().id(&key.id))
    }

    /// The check of this id.
    #[must_use]
    pub fn check(&self, id: &str) -> Option<&ObservedCheck> {
        self.checks.iter().find(|check| *check.id == *id)
    }

    /// Its check of this kind, if there is one that is made as such.
    #[must_use]
    pub fn check_of(&self, key: &InstanceKey, kind: &CheckKind) -> Option<&ObservedCheck> {
        self.check(&kind.id(&key.id))
            .filter(|check| check.is_of(kind))
    }

    /// The worst status of its checks; an instance without checks passes.
    #[must_use]
    pub fn health(&self) -> Health {
        worst(&self.checks)
    }
}

impl ObservedNode {
    /// Reads a node; its checks are added with [`Self::checks`].
    #[must_use]
    pub fn of(node: &wire::Node) -> Self {
        Self {
            node: Node {
                address: node.address.clone(),
                meta: node.meta.clone(),
            },
            create_index: node.create_index,
            embellished: !node.id.is_empty() || !node.tagged_addresses.is_empty(),
            modify_index: node.modify_index,
            checks: Vec::new(),
        }
    }

    /// The check `lictor-node`.
    #[must_use]
    pub fn own_check(&self) -> Option<&ObservedCheck> {
        self.checks.iter().find(|check| *check.id == *NODE_CHECK_ID)
    }

    /// The check `lictor-alive`.
    #[must_use]
    pub fn alive_check(&self) -> Option<&ObservedCheck> {
        self.checks
            .iter()
            .find(|check| *check.id == *ALIVE_CHECK_ID)
    }

    /// The worst status of its checks, which counts for every instance on it.
    #[must_use]
    pub fn health(&self) -> Health {
        worst(&self.checks)
    }
}

impl ObservedCheck {
    /// Reads a check of the instance, or of the node where there is none.
    #[must_use]
    pub fn of(check: &wire::HealthCheck, instance: Option<&InstanceId>) -> Self {
        let shaped = |name: &str, kind: &str| *check.name == *name && *check.check_type == *kind;
        let suffix = instance.and_then(|id| {
            let parts = check.check_id.rsplit_once(':');
            parts.filter(|(of, _)| InstanceId::observed(of) == *id)
        });
        let protocol = suffix.and_then(|_| Protocol::parse(&check.check_type));
        let follows_itself = session_name(check) == Some(&*check.check_id);
        let definition = check.definition.as_deref().and_then(Definition::read);
        let (is_ours, well_formed) = match (instance, suffix) {
            (Some(id), Some((_, suffix))) => {
                let named = InstanceId::observed(&check.service_id) == *id;
                let is_session = protocol == Some(Protocol::Session);
                let shaped = match CheckKind::fixed(suffix) {
                    Some(kind) => shaped(&kind.name(), kind.check_type()) && definition.is_none(),
                    None if is_session => *check.name == *suffix && follows_itself,
                    None => *check.name == *suffix && protocol.is_some(),
                };
                (true, named && shaped)
            }
            (None, _) if *check.check_id == *NODE_CHECK_ID => {
                let shaped = shaped(NODE_CHECK_NAME, NODE_CHECK_TYPE);
                let shaped = shaped && definition.is_none();
                (true, check.service_id.is_empty() && shaped)
            }
            (None, _) if *check.check_id == *ALIVE_CHECK_ID => {
                let shaped = shaped(ALIVE_CHECK_NAME, Protocol::Session.as_str());
                (
                    true,
                    check.service_id.is_empty() && shaped && follows_itself,
                )
            }
            _ => (false, true),
        };
        // Nothing depends on what the checks of others say, and it may be long.
        let output = if is_ours {
            check.output.clone()
        } else {
            Text::default()
        };
        Self {
            id: check.check_id.clone(),
            check: Check {
                status: Health::parse(&check.status),
                output,
            },
            well_formed,
            protocol,
            // That of a session is judged above.
            definition: definition.filter(|_| is_ours && !follows_itself),
            modify_index: check.modify_index,
        }
    }

    /// Whether it follows a session of its own name.
    #[must_use]
    pub fn follows_session(&self) -> bool {
        self.well_formed && self.protocol == Some(Protocol::Session)
    }

    /// Whether it is made as one of this kind is, whatever it says.
    #[must_use]
    pub fn is_of(&self, kind: &CheckKind) -> bool {
        let protocol = match kind {
            CheckKind::Readiness | CheckKind::Alias => None,
            CheckKind::Probe { protocol, .. } => Some(*protocol),
        };
        self.well_formed && self.protocol == protocol
    }
}

/// The name of the sessions that a check follows.
fn session_name(check: &wire::HealthCheck) -> Option<&str> {
    check.definition.as_ref()?.get(SESSION_NAME)?.as_str()
}

const SESSION_NAME: &str = "SessionName";

fn worst(checks: &[ObservedCheck]) -> Health {
    checks
        .iter()
        .map(|check| check.check.status)
        .max()
        .unwrap_or(Health::Passing)
}

/// How an entry takes part in the mesh; as an error where there is more to it than Lictor ever writes.
fn mesh_of(service: &wire::NodeService) -> Result<Option<Box<Mesh>>, Option<Box<Mesh>>> {
    let wire::Connect { native } = service.connect;
    match (&*service.kind, native, service.proxy.as_deref()) {
        ("", false, None) => Ok(None),
        ("", true, None) => Ok(Some(Box::new(Mesh::Native))),
        (CONNECT_PROXY, native, Some(proxy)) => {
            let (proxy, whole) = proxy_of(proxy);
            let mesh = Some(Box::new(Mesh::Proxy(proxy)));
            if whole && !native {
                Ok(mesh)
            } else {
                Err(mesh)
            }
        }
        (_, true, _) => Err(Some(Box::new(Mesh::Native))),
        _ => Err(None),
    }
}

/// A proxy, and whether that is all that is said of it.
fn proxy_of(proxy: &wire::Proxy) -> (Proxy, bool) {
    // Taken apart without `..`, so that a new field cannot be forgotten here.
    let wire::Proxy {
        destination_service_name,
        destination_service_id,
        local_service_address,
        local_service_port,
        upstreams: listed,
        rest,
    } = proxy;
    let mut whole = rest.is_empty();
    let mut upstreams: Vec<Upstream> = Vec::with_capacity(listed.len());
    for upstream in listed {
        let wire::ProxyUpstream {
            destination_name,
            destination_namespace,
            destination_partition,
            destination_peer,
            datacenter,
            local_bind_port,
            rest,
        } = upstream;
        whole &= rest.is_empty();
        upstreams.push(Upstream {
            local_port: number(*local_bind_port),
            service: destination_name.clone(),
            datacenter: datacenter.clone(),
            peer: destination_peer.clone(),
            namespace: destination_namespace.clone(),
            partition: destination_partition.clone(),
        });
    }
    upstreams.sort_unstable();
    let proxy = Proxy {
        destination: destination_service_name.clone(),
        destination_id: destination_service_id.clone(),
        local_address: local_service_address.clone(),
        local_port: number(*local_service_port),
        upstreams: upstreams.into(),
    };
    (proxy, whole)
}

fn service_of(service: &wire::NodeService, mesh: Option<Box<Mesh>>) -> Service {
    let mut tags = service.tags.to_vec();
    tags.sort_unstable();
    tags.dedup();
    let tagged = |(tag, address): (&Text, &wire::ServiceAddress)| TaggedAddress {
        tag: tag.clone(),
        address: address.address.clone(),
        port: number(address.port),
    };
    // Consul's own, in the mesh.
    let given = |(tag, _): &(&Text, _)| mesh.is_none() || *tag.as_ref() != *VIRTUAL_ADDRESS;
    let tagged_addresses = service.tagged_addresses.iter();
    let tagged_addresses = tagged_addresses.filter(given).map(tagged).collect();
    Service {
        name: service.service.clone(),
        address: service.address.clone(),
        port: number(service.port),
        tagged_addresses,
        tags: tags.into(),
        meta: service.meta.clone(),
        weights: Weights {
            passing: number(service.weights.passing),
            warning: number(service.weights.warning),
        },
        enable_tag_override: service.enable_tag_override,
        mesh,
    }
}

/// Consul's catalog takes any number for a port or a weight. Nothing that Lictor wants is out of
/// range, so that a cut one is still seen to differ from it, unless it is the bound itself.
fn number(number: i64) -> u16 {
    u16::try_from(number).unwrap_or(if number < 0 { 0 } else { u16::MAX })
}

/// The entry as Consul takes it.
#[must_use]
pub fn wire_service(key: &InstanceKey, service: &Service) -> wire::NodeService {
    let tagged = |tagged: &TaggedAddress| {
        let address = wire::ServiceAddress {
            address: tagged.address.clone(),
            port: tagged.port.into(),
        };
        (tagged.tag.clone(), address)
    };
    let (kind, native, proxy) = match service.mesh.as_deref() {
        None => (Text::default(), false, None),
        Some(Mesh::Native) => (Text::default(), true, None),
        Some(Mesh::Proxy(proxy)) => (CONNECT_PROXY.into(), false, Some(wire_proxy(proxy))),
    };
    wire::NodeService {
        kind,
        connect: wire::Connect { native },
        proxy: proxy.map(Box::new),
        id: key.id.text().clone(),
        service: service.name.clone(),
        tags: service.tags.clone(),
        address: service.address.clone(),
        tagged_addresses: service.tagged_addresses.iter().map(tagged).collect(),
        port: service.port.into(),
        meta: service.meta.clone(),
        weights: wire::Weights {
            passing: service.weights.passing.into(),
            warning: service.weights.warning.into(),
        },
        enable_tag_override: service.enable_tag_override,
        ..wire::NodeService::default()
    }
}

fn wire_proxy(proxy: &Proxy) -> wire::Proxy {
    let upstream = |upstream: &Upstream| wire::ProxyUpstream {
        destination_name: upstream.service.clone(),
        destination_namespace: upstream.namespace.clone(),
        destination_partition: upstream.partition.clone(),
        destination_peer: upstream.peer.clone(),
        datacenter: upstream.datacenter.clone(),
        local_bind_port: upstream.local_port.into(),
        ..wire::ProxyUpstream::default()
    };
    wire::Proxy {
        destination_service_name: proxy.destination.clone(),
        destination_service_id: proxy.destination_id.clone(),
        local_service_address: proxy.local_address.clone(),
        local_service_port: proxy.local_port.into(),
        upstreams: proxy.upstreams.iter().map(upstream).collect(),
        ..wire::Proxy::default()
    }
}

/// A check of an instance as Consul takes it.
#[must_use]
pub fn wire_check(
    key: &InstanceKey,
    service: &Text,
    kind: &CheckKind,
    check: &Check,
) -> wire::HealthCheck {
    let session = kind.follows_session().then(|| kind.id(&key.id));
    wire::HealthCheck {
        node: key.node.text().clone(),
        check_id: kind.id(&key.id).into(),
        name: kind.name(),
        status: check.status.as_str().into(),
        output: check.output.clone(),
        service_id: key.id.text().clone(),
        service_name: service.clone(),
        check_type: kind.check_type().into(),
        definition: kind
            .definition()
            .map(|definition| Box::new(definition.to_json()))
            .or_else(|| session.map(|session| Box::new(follows(&session)))),
        ..wire::HealthCheck::default()
    }
}

fn follows(session: &str) -> serde_json::Value {
    serde_json::json!({ SESSION_NAME: session })
}

/// The check by which Consul notices that Lictor is dead, as Consul takes it.
#[must_use]
pub fn wire_alive_check(node: &Text, status: Health) -> wire::HealthCheck {
    wire::HealthCheck {
        node: node.clone(),
        check_id: ALIVE_CHECK_ID.into(),
        name: ALIVE_CHECK_NAME.into(),
        status: status.as_str().into(),
        check_type: Protocol::Session.as_str().into(),
        definition: Some(Box::new(follows(ALIVE_CHECK_ID))),
        ..wire::HealthCheck::default()
    }
}

/// The check of a node as Consul takes it.
#[must_use]
pub fn wire_node_check(node: &Text, check: &Check) -> wire::HealthCheck {
    wire::HealthCheck {
        node: node.clone(),
        check_id: NODE_CHECK_ID.into(),
        name: NODE_CHECK_NAME.into(),
        status: check.status.as_str().into(),
        output: check.output.clone(),
        check_type: NODE_CHECK_TYPE.into(),
        ..wire::HealthCheck::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(mesh: &serde_json::Value) -> ObservedInstance {
        let mut service = json!({
            "ID": "a.shop.web.p", "Service": "web", "Port": 80,
            "TaggedAddresses": {"consul-virtual": {"Address": "240.0.0.1", "Port": 80}},
        });
        for (field, value) in mesh.as_object().unwrap() {
            service[field] = value.clone();
        }
        ObservedInstance::of(&serde_json::from_value(service).unwrap())
    }

    #[test]
    fn the_address_that_consul_gives_is_none_of_an_instance_in_the_mesh() {
        let proxy = json!({"Kind": "connect-proxy", "Proxy": {"DestinationServiceName": "web"}});
        for (mesh, tagged) in [
            (json!({"Connect": {"Native": true}}), 0),
            (proxy, 0),
            (json!({}), 1),
        ] {
            let there = read(&mesh);
            assert_eq!(there.service.tagged_addresses.len(), tagged, "{mesh}");
            assert!(!there.embellished);
        }
    }

    #[test]
    fn what_is_written_for_the_mesh_is_read_back_as_it_was() {
        let key = InstanceKey {
            node: crate::model::names::NodeName::external(&"a".parse().unwrap()),
            id: InstanceId::observed("a.shop.web.p"),
        };
        let upstream = json!({"DestinationName": "b", "LocalBindPort": 2, "Datacenter": "dc2"});
        let peered = json!({"DestinationName": "c", "LocalBindPort": 1, "DestinationPeer": "p"});
        let proxy = json!({"DestinationServiceName": "web", "DestinationServiceID": "i",
                           "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 80,
                           "Upstreams": [upstream, peered]});
        let there = read(&json!({"Kind": "connect-proxy", "Proxy": proxy}));
        let Some(Mesh::Proxy(proxy)) = there.service.mesh.as_deref() else {
            panic!("{there:?}");
        };
        let ports: Vec<u16> = proxy.upstreams.iter().map(|up| up.local_port).collect();
        assert_eq!(ports, [1, 2]);
        let again = ObservedInstance::of(&wire_service(&key, &there.service));
        assert_eq!((again.service, again.embellished), (there.service, false));
    }

    #[test]
    fn what_lictor_never_writes_for_the_mesh_is_seen() {
        let proxy = |more: serde_json::Value| {
            let mut proxy = json!({"DestinationServiceName": "web"});
            for (field, value) in more.as_object().unwrap() {
                proxy[field] = value.clone();
            }
            json!({"Kind": "connect-proxy", "Proxy": proxy})
        };
        let upstream = json!({"DestinationName": "b", "LocalBindPort": 2, "Config": {"a": 1}});
        let mut native = proxy(json!({}));
        native["Connect"] = json!({"Native": true});
        for foreign in [
            proxy(json!({"Config": {"protocol": "http"}})),
            proxy(json!({"MeshGateway": {"Mode": "local"}})),
            proxy(json!({"Upstreams": [upstream]})),
            native,
            json!({"Kind": "mesh-gateway"}),
            json!({"Kind": "connect-proxy"}),
            json!({"Proxy": {"DestinationServiceName": "web"}}),
            json!({"Connect": {"Native": true}, "Proxy": {"Mode": "direct"}}),
        ] {
            assert!(read(&foreign).embellished, "{foreign}");
        }
        let nothing = json!({"Mode": "", "MeshGateway": {}, "Expose": {}});
        assert!(!read(&proxy(nothing)).embellished);
    }

    #[test]
    fn a_definition_on_a_check_that_nobody_runs_is_seen() {
        let check = Check {
            status: Health::Passing,
            output: "it is ready".into(),
        };
        let plain = wire_node_check(&"n1".into(), &check);
        assert!(ObservedCheck::of(&plain, None).well_formed);
        let definition = json!({"HTTP": "http://10.0.0.1/", "Interval": "10s"});
        let defined = wire::HealthCheck {
            definition: Some(Box::new(definition)),
            ..plain
        };
        assert!(!ObservedCheck::of(&defined, None).well_formed);
    }
}
