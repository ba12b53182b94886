//! A model of the parts of Consul's catalog that Lictor uses: indexes, and transactions by
//! compare-and-set, as `src/consul/txn` describes them and `tests/consul_client` tries on a real
//! one.

use std::collections::BTreeMap;

use lictor::consul::wire;
use lictor::model::key::Key;
use lictor::model::names::{ClusterName, NodeName};
use lictor::model::text::{Pairs, Text};
use lictor::observed::content::NodeContent;
use lictor::observed::entry::{wire_check, wire_node_check, wire_service};
use lictor::plan::Step;
use lictor::plan::batch::BatchedStep;

use super::objects::{Instance, Place};

/// What one operation of a step left.
#[derive(Clone, Debug)]
pub enum Left {
    Node(wire::Node),
    Service(wire::NodeService),
    Check(wire::HealthCheck),
    /// Not the check of this id any more.
    NoCheck(Text),
    Nothing,
    Dropped,
}

/// A transaction failed because of these steps.
pub type AtFault = Vec<usize>;

#[derive(Clone, Debug, Default)]
pub struct Consul {
    pub index: u64,
    pub nodes: BTreeMap<String, wire::Node>,
    pub services: BTreeMap<Place, wire::NodeService>,
    /// By node and check id.
    pub checks: BTreeMap<Place, wire::HealthCheck>,
}

/// Everything that is not Lictor's, to be compared byte by byte.
pub type Foreign = (
    BTreeMap<String, wire::Node>,
    BTreeMap<Place, wire::NodeService>,
    BTreeMap<Place, wire::HealthCheck>,
);

impl Consul {
    /// Carries out the steps, all or none. What each left; or which are at fault.
    pub fn apply(&mut self, steps: &[BatchedStep<()>]) -> Result<Vec<Vec<Left>>, AtFault> {
        let mut next = self.clone();
        next.index += 1;
        let mut at_fault = Vec::new();
        let mut left = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            match next.carry_out(&step.key, &step.step) {
                Some(results) => left.push(results),
                None => at_fault.push(at),
            }
        }
        if !at_fault.is_empty() {
            return Err(at_fault);
        }
        *self = next;
        Ok(left)
    }

    fn carry_out(&mut self, key: &Key, step: &Step) -> Option<Vec<Left>> {
        let mut left = Vec::new();
        match (key, step) {
            (Key::Node(name), Step::PutNode(write)) => {
                if let Some((node, cas)) = &write.node {
                    let node = wire::Node {
                        name: name.text().clone(),
                        address: node.address.clone(),
                        meta: node.meta.clone(),
                        ..wire::Node::default()
                    };
                    left.push(Left::Node(self.node_cas(node, *cas)?));
                }
                if let Some((check, cas)) = &write.check {
                    left.push(self.check_cas(wire_node_check(name.text(), check), *cas)?);
                }
                assert!(write.surplus.is_empty(), "nobody makes one here");
            }
            (Key::Instance(key), Step::Put(write)) => {
                if let Some((service, cas)) = &write.service {
                    let service = wire_service(key, service);
                    let stored = self.service_cas(key.node.as_ref(), service, *cas)?;
                    left.push(Left::Service(stored));
                }
                for it in &write.checks {
                    let check = wire_check(key, &write.name, &it.kind, &it.check);
                    left.push(self.check_cas(check, it.index)?);
                }
                for (id, cas) in &write.surplus {
                    let place = (key.node.to_string(), id.to_string());
                    if self.checks.get(&place)?.modify_index != *cas {
                        return None;
                    }
                    self.checks.remove(&place);
                    left.push(Left::NoCheck(id.clone()));
                }
            }
            (Key::Instance(key), Step::Remove(removal)) => {
                let place = (key.node.to_string(), key.id.to_string());
                let there = self.services.get(&place)?;
                if there.modify_index != removal.index {
                    return None;
                }
                self.remove_service(&place);
                left.push(Left::Nothing);
            }
            other => panic!("no step to carry out: {other:?}"),
        }
        Some(left)
    }

    fn node_cas(&mut self, mut node: wire::Node, cas: u64) -> Option<wire::Node> {
        let there = self.nodes.get(&*node.name);
        if there.map_or(0, |there| there.modify_index) != cas {
            return None;
        }
        node.create_index = there.map_or(self.index, |there| there.create_index);
        node.modify_index = cas;
        if there != Some(&node) {
            node.modify_index = self.index;
        }
        self.nodes.insert(node.name.to_string(), node.clone());
        Some(node)
    }

    fn service_cas(
        &mut self,
        node: &str,
        mut service: wire::NodeService,
        cas: u64,
    ) -> Option<wire::NodeService> {
        self.nodes.get(node)?;
        let place = (node.to_owned(), service.id.to_string());
        let there = self.services.get(&place);
        if there.map_or(0, |there| there.modify_index) != cas {
            return None;
        }
        service.create_index = there.map_or(self.index, |there| there.create_index);
        service.modify_index = cas;
        if there != Some(&service) {
            service.modify_index = self.index;
        }
        self.services.insert(place, service.clone());
        Some(service)
    }

    fn check_cas(&mut self, mut check: wire::HealthCheck, cas: u64) -> Option<Left> {
        let service = (check.node.to_string(), check.service_id.to_string());
        let place = (check.node.to_string(), check.check_id.to_string());
        let orphan = !check.service_id.is_empty() && !self.services.contains_key(&service);
        if orphan || !self.nodes.contains_key(&*check.node) {
            return Some(Left::Dropped);
        }
        let there = self.checks.get(&place);
        if there.map_or(0, |there| there.modify_index) != cas {
            return None;
        }
        check.create_index = there.map_or(self.index, |there| there.create_index);
        check.modify_index = cas;
        if there != Some(&check) {
            check.modify_index = self.index;
        }
        self.checks.insert(place, check.clone());
        Some(Left::Check(check))
    }

    // === other hands ===

    pub fn remove_service(&mut self, place: &Place) {
        self.services.remove(place);
        self.checks
            .retain(|(node, _), check| *node != place.0 || *check.service_id != *place.1);
    }

    pub fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
        self.services.retain(|(node, _), _| node != name);
        self.checks.retain(|(node, _), _| node != name);
    }

    /// Another hand puts or alters a node.
    pub fn put_node(&mut self, name: &str, meta: &[(&str, &str)]) {
        self.index += 1;
        let create_index = self.nodes.get(name).map_or(self.index, |n| n.create_index);
        let node = wire::Node {
            name: name.into(),
            address: "172.16.0.1".into(),
            meta: meta
                .iter()
                .map(|(k, v)| (Text::from(*k), Text::from(*v)))
                .collect(),
            create_index,
            modify_index: self.index,
            ..wire::Node::default()
        };
        self.nodes.insert(name.into(), node);
    }

    /// Another hand puts or alters a service.
    pub fn put_service(&mut self, node: &str, mut service: wire::NodeService) {
        self.index += 1;
        let place = (node.to_owned(), service.id.to_string());
        let there = self.services.get(&place);
        service.create_index = there.map_or(self.index, |there| there.create_index);
        service.modify_index = self.index;
        self.services.insert(place, service);
    }

    /// Another hand puts or alters a check.
    pub fn put_check(&mut self, mut check: wire::HealthCheck) {
        self.index += 1;
        check.modify_index = self.index;
        let place = (check.node.to_string(), check.check_id.to_string());
        self.checks.insert(place, check);
    }

    // === reading ===

    pub fn content(&self, name: &NodeName) -> NodeContent {
        let on = |place: &Place| place.0 == name.as_ref();
        NodeContent {
            node: self.nodes.get(name.as_ref()).cloned(),
            services: self
                .services
                .iter()
                .filter(|(at, _)| on(at))
                .map(|(_, s)| s.clone())
                .collect(),
            checks: self
                .checks
                .iter()
                .filter(|(at, _)| on(at))
                .map(|(_, c)| c.clone())
                .collect(),
        }
    }

    pub fn names(&self, cluster: &ClusterName) -> std::collections::BTreeSet<NodeName> {
        self.nodes
            .keys()
            .filter_map(|name| NodeName::parse(cluster, name))
            .collect()
    }

    /// The instances that carry all marks of cluster `a`.
    pub fn ours(&self) -> BTreeMap<Place, Instance> {
        let ours = self
            .services
            .iter()
            .filter(|(place, service)| is_ours(place, service));
        ours.map(|(place, service)| (place.clone(), self.instance(place, service)))
            .collect()
    }

    fn instance(&self, place: &Place, service: &wire::NodeService) -> Instance {
        let id = |kind| (place.0.clone(), format!("{}:{kind}", place.1));
        let mut ids = ["ready", "alias"].map(id).into_iter();
        let check = ids.find_map(|id| self.checks.get(&id));
        Instance {
            service: service.service.to_string(),
            address: service.address.to_string(),
            port: service.port,
            tags: service.tags.iter().map(ToString::to_string).collect(),
            meta: texts(&service.meta),
            mesh: mesh(service),
            status: check.map(|check| check.status.to_string()),
        }
    }

    /// All that Lictor must leave as it is. `erased` are nodes of ours whose meta was erased.
    pub fn foreign(&self, erased: &std::collections::BTreeSet<String>) -> Foreign {
        let node = |name: &String, node: &wire::Node| {
            node.meta.get("lictor-cluster").is_none_or(|c| **c != *"a") && !erased.contains(name)
        };
        let check = |at: &Place, check: &wire::HealthCheck| {
            let own = *at.1 == *"lictor-node"
                || [":ready", ":alias"].iter().any(|kind| at.1.ends_with(kind));
            let place = (at.0.clone(), check.service_id.to_string());
            let on_ours = self
                .services
                .get(&place)
                .is_some_and(|s| is_ours(&place, s));
            let on_our_node = self.nodes.get(&at.0).is_some_and(|n| !node(&at.0, n));
            let service = !check.service_id.is_empty();
            !(own && (if service { on_ours } else { on_our_node }))
        };
        // What goes with an instance of ours goes with it.
        let stays = |at: &Place, check: &wire::HealthCheck| {
            let place = (at.0.clone(), check.service_id.to_string());
            self.services
                .get(&place)
                .is_none_or(|s| !is_ours(&place, s))
        };
        (
            filtered(&self.nodes, node),
            filtered(&self.services, |at, s| !is_ours(at, s)),
            filtered(&self.checks, |at, c| check(at, c) && stays(at, c)),
        )
    }
}

pub fn is_ours(place: &Place, service: &wire::NodeService) -> bool {
    let mark = |key: &str| service.meta.get(key).map(|value| &**value);
    let space = mark("lictor-owner").and_then(|owner| owner.split('/').nth(1));
    mark("lictor-cluster") == Some("a")
        && mark("lictor-node") == Some(&place.0)
        && space.is_some_and(|ns| place.1.starts_with(&format!("a.{ns}.{}.", service.service)))
}

fn filtered<K: Clone + Ord, V: Clone>(
    map: &BTreeMap<K, V>,
    keep: impl Fn(&K, &V) -> bool,
) -> BTreeMap<K, V> {
    map.iter()
        .filter(|(key, value)| keep(key, value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn texts(pairs: &Pairs) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

fn mesh(service: &wire::NodeService) -> String {
    match &service.proxy {
        Some(proxy) => format!(
            "{} {} {} {}",
            service.kind,
            proxy.destination_service_id,
            proxy.local_service_port,
            proxy.upstreams.len()
        ),
        None if service.connect.native => "native".to_owned(),
        None => String::new(),
    }
}
