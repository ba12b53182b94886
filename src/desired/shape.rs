//! A spec applied to a pod or an endpoint: the service entry that Consul is to hold.

use std::collections::BTreeSet;

use super::problems::Problems;
use super::spec::{AddressChoice, InstanceSpec, PortChoice};
use super::template;
use crate::model::entry::{Mesh, Service, TaggedAddress};
use crate::model::facts::PodFacts;
use crate::model::key::InstanceKey;
use crate::model::limits::{
    MAX_META_KEY_BYTES, MAX_META_PAIRS, MAX_META_VALUE_BYTES, MAX_TAG_BYTES, MAX_TAGS,
};
use crate::model::marks;
use crate::model::names::{ClusterName, ServiceName};
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::{Pairs, Text};

/// What every shape is built from.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The cluster that writes.
    pub cluster: &'a ClusterName,
    /// Where the entry stands.
    pub key: &'a InstanceKey,
    /// The service's name.
    pub service: &'a ServiceName,
    /// The object that owns the entry.
    pub owner: &'a Owner,
}

/// The entry of a pod, or all that stands in its way, for people.
pub fn of_pod(
    context: Context<'_>,
    pod: &PodFacts,
    spec: &InstanceSpec,
) -> Result<Service, Vec<String>> {
    let mut problems = Problems::default();
    if context.key.node.is_like_consul_k8s() {
        problems.push(format!(
            "node: pods of the Kubernetes node {:?} cannot be registered: the Consul node would be {}, \
             and consul-k8s removes nodes whose names end in \"-virtual\"; give the node another name",
            pod.node.as_deref().unwrap_or_default(),
            context.key.node
        ));
    }
    let port = noted(port_of(pod, spec), &mut problems).unwrap_or_default();
    let address = noted(address_of(pod, spec.address), &mut problems).unwrap_or_default();
    let tags = tags(&spec.tags, Some(pod), &mut problems);
    let identity = Identity {
        kind: OwnerKind::Pod.as_str(),
        name: &pod.name,
        node: pod.node.as_ref(),
        uid: &pod.uid,
    };
    let meta = meta(context, identity, &spec.meta, Some(pod), &mut problems);
    if !problems.is_empty() {
        return Err(problems.into_vec());
    }
    Ok(Service {
        name: context.service.text().clone(),
        tagged_addresses: tagged_addresses(pod, spec.address, port),
        address,
        port,
        tags,
        meta,
        weights: spec.weights,
        enable_tag_override: spec.enable_tag_override,
        mesh: mesh(spec),
    })
}

/// An endpoint outside of the cluster, as a `ServiceRegistration` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name, unique in the registration.
    pub name: Text,
    /// Host name or IP address.
    pub address: Text,
    /// Port, 0 for none.
    pub port: u16,
    /// Tags beside those of the registration.
    pub tags: Vec<Text>,
    /// Meta that goes over that of the registration, key by key.
    pub meta: Vec<(Text, Text)>,
}

/// The entry of an endpoint, or all that stands in its way, for people.
pub fn of_endpoint(
    context: Context<'_>,
    uid: &Text,
    endpoint: &Endpoint,
    spec: &InstanceSpec,
) -> Result<Service, Vec<String>> {
    let mut problems = Problems::default();
    let all_tags: Vec<Text> = spec.tags.iter().chain(&endpoint.tags).cloned().collect();
    let tags = tags(&all_tags, None, &mut problems);
    let over = |(key, _): &&(Text, Text)| !endpoint.meta.iter().any(|(own, _)| own == key);
    let all_meta: Vec<_> = spec
        .meta
        .iter()
        .filter(over)
        .chain(&endpoint.meta)
        .cloned()
        .collect();
    let identity = Identity {
        kind: OwnerKind::ServiceRegistration.as_str(),
        name: &context.owner.name,
        node: None,
        uid,
    };
    let meta = meta(context, identity, &all_meta, None, &mut problems);
    if !problems.is_empty() {
        let named = |problem| format!("endpoint {}: {problem}", endpoint.name);
        return Err(problems.into_vec().into_iter().map(named).collect());
    }
    Ok(Service {
        name: context.service.text().clone(),
        address: endpoint.address.clone(),
        port: endpoint.port,
        tagged_addresses: Box::default(),
        tags,
        meta,
        weights: spec.weights,
        enable_tag_override: spec.enable_tag_override,
        mesh: mesh(spec),
    })
}

/// The address that an instance of the pod has, which also a frozen shape follows.
pub fn address_of(pod: &PodFacts, choice: AddressChoice) -> Result<Text, String> {
    let address = match choice {
        AddressChoice::PodIp => pod.ips.first(),
        AddressChoice::HostIp => pod.host_ip.as_ref(),
    };
    address
        .cloned()
        .ok_or_else(|| "address: the pod has no host IP yet".to_owned())
}

fn mesh(spec: &InstanceSpec) -> Option<Box<Mesh>> {
    spec.native.then(|| Box::new(Mesh::Native))
}

fn noted<T>(result: Result<T, String>, problems: &mut Problems) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
}

fn port_of(pod: &PodFacts, spec: &InstanceSpec) -> Result<u16, String> {
    let declared = match &spec.port {
        PortChoice::Number(number) => return Ok(*number),
        PortChoice::Default => match pod.ports.first() {
            Some(port) => port,
            None => return Ok(0),
        },
        PortChoice::Name(name) => {
            let named = pod
                .ports
                .iter()
                .find(|port| port.name.as_ref() == Some(name));
            named.ok_or_else(|| no_such_port(pod, name))?
        }
    };
    if spec.address == AddressChoice::PodIp || pod.host_network {
        return Ok(declared.port);
    }
    declared.host_port.ok_or_else(|| {
        let name = declared.name.as_deref().unwrap_or("without name");
        format!(
            "port: container port {} ({name}) has no hostPort, which address HostIP needs: give \
             it one, name the port by number, or use PodIP",
            declared.port
        )
    })
}

fn no_such_port(pod: &PodFacts, name: &str) -> String {
    let declared: Vec<_> = pod
        .ports
        .iter()
        .filter_map(|port| port.name.as_deref())
        .collect();
    let declared = if declared.is_empty() {
        "none".to_owned()
    } else {
        declared.join(", ")
    };
    format!(
        "port: no container port is called {name:?}; named ports of the pod: {declared}: name one that \
         there is, or give a number"
    )
}

/// Both addresses of a dual-stack pod, as agents tag them.
#[must_use]
pub fn tagged_addresses(pod: &PodFacts, choice: AddressChoice, port: u16) -> Box<[TaggedAddress]> {
    if choice == AddressChoice::HostIp || pod.ips.len() < 2 {
        return Box::default();
    }
    let of = |tag: &str, v6: bool| {
        let address = pod.ips.iter().find(|ip| ip.contains(':') == v6)?;
        Some(TaggedAddress {
            tag: tag.into(),
            address: address.clone(),
            port,
        })
    };
    [of("lan_ipv4", false), of("lan_ipv6", true)]
        .into_iter()
        .flatten()
        .collect()
}

fn tags(templates: &[Text], pod: Option<&PodFacts>, problems: &mut Problems) -> Box<[Text]> {
    if templates.len() > MAX_TAGS {
        problems.push(format!(
            "tags: {} are given, at most {MAX_TAGS} allowed",
            templates.len()
        ));
    }
    let mut rendered = BTreeSet::new();
    for template in templates {
        match template::render(template, pod) {
            Ok(Some(tag)) if tag.is_empty() => {}
            Ok(Some(tag)) => match tag_problem(&tag) {
                Some(problem) => problems.push(problem),
                None => {
                    rendered.insert(Text::from(tag));
                }
            },
            Ok(None) => {}
            Err(error) => problems.push(format!("tags: {error}")),
        }
    }
    rendered.into_iter().collect()
}

fn tag_problem(tag: &str) -> Option<String> {
    if tag.len() > MAX_TAG_BYTES {
        return Some(format!(
            "tags: a tag of {} bytes, at most {MAX_TAG_BYTES} allowed",
            tag.len()
        ));
    }
    let refused = |character: char| character == ',' || character.is_control();
    tag.contains(refused).then(|| {
        format!(
            "tags: \"{}\" has a comma or a control character: leave it out",
            tag.escape_debug()
        )
    })
}

/// The object that an instance stands for.
#[derive(Clone, Copy)]
struct Identity<'a> {
    kind: &'static str,
    name: &'a Text,
    node: Option<&'a Text>,
    uid: &'a Text,
}

fn meta(
    context: Context<'_>,
    identity: Identity<'_>,
    given: &[(Text, Text)],
    pod: Option<&PodFacts>,
    problems: &mut Problems,
) -> Pairs {
    if given.len() > MAX_META_PAIRS {
        let count = given.len();
        problems.push(format!(
            "meta: {count} pairs are given, at most {MAX_META_PAIRS} allowed"
        ));
    }
    let mut all = Vec::with_capacity(given.len() + 9);
    for (key, template) in given {
        match meta_value(key, template, pod) {
            Ok(Some(value)) => all.push((key.clone(), Text::from(value))),
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
    }
    let mut mark = |key: &str, value: Text| all.push((Text::from(key), value));
    mark(marks::EXTERNAL_SOURCE, marks::KUBERNETES.into());
    mark(marks::K8S_NAMESPACE, context.owner.namespace.clone());
    mark(marks::K8S_REF_KIND, identity.kind.into());
    mark(marks::K8S_REF_NAME, identity.name.clone());
    if let Some(node) = identity.node {
        mark(marks::K8S_NODE_NAME, node.clone());
    }
    mark(marks::CLUSTER, context.cluster.as_ref().into());
    mark(marks::NODE, context.key.node.text().clone());
    mark(marks::OWNER, context.owner.to_string().into());
    mark(marks::UID, identity.uid.clone());
    all.into_iter().collect()
}

fn meta_value(key: &str, template: &str, pod: Option<&PodFacts>) -> Result<Option<String>, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if key.is_empty() || key.len() > MAX_META_KEY_BYTES || !key.bytes().all(allowed) {
        return Err(format!(
            "meta: key \"{}\" must be 1 to {MAX_META_KEY_BYTES} of A-Z, a-z, 0-9, \"_\" and \"-\"",
            key.escape_debug()
        ));
    }
    if marks::is_reserved(key) {
        return Err(format!(
            "meta: key {key:?} is reserved: choose another name"
        ));
    }
    let value = template::render(template, pod).map_err(|error| format!("meta {key}: {error}"))?;
    match value {
        Some(value) if value.len() > MAX_META_VALUE_BYTES => Err(format!(
            "meta {key}: the value has {} bytes, at most {MAX_META_VALUE_BYTES} allowed",
            value.len()
        )),
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::fixtures::pod;
    use crate::model::names::{InstanceId, NodeName};

    fn build(pod: &PodFacts, spec: &InstanceSpec) -> Result<Service, Vec<String>> {
        let cluster: ClusterName = "a".parse().unwrap();
        let service: ServiceName = "web".parse().unwrap();
        let key = InstanceKey {
            node: NodeName::for_kubernetes(&cluster, "n1"),
            id: InstanceId::of_pod(&cluster, "shop", &service, &pod.name),
        };
        let owner = Owner::pod(&pod.namespace, &pod.name);
        of_pod(
            Context {
                cluster: &cluster,
                key: &key,
                service: &service,
                owner: &owner,
            },
            pod,
            spec,
        )
    }

    fn problem(pod: &PodFacts, spec: &InstanceSpec) -> String {
        build(pod, spec).unwrap_err().join("\n")
    }

    #[test]
    fn the_default_port_is_the_first_declared_or_none() {
        let spec = InstanceSpec::default();
        assert_eq!(build(&pod("p").facts(), &spec).unwrap().port, 0);
        let two = pod("p")
            .port("http", 8080, None)
            .port("admin", 9090, None)
            .facts();
        assert_eq!(build(&two, &spec).unwrap().port, 8080);
    }

    #[test]
    fn a_port_by_name_must_exist_and_a_number_need_not() {
        let facts = pod("p").port("http", 8080, None).facts();
        let named = |name: &str| InstanceSpec {
            port: PortChoice::Name(name.into()),
            ..InstanceSpec::default()
        };
        assert_eq!(build(&facts, &named("http")).unwrap().port, 8080);
        assert!(problem(&facts, &named("grpc")).contains("\"grpc\"; named ports of the pod: http"));
        let number = InstanceSpec {
            port: PortChoice::Number(1),
            ..InstanceSpec::default()
        };
        assert_eq!(build(&facts, &number).unwrap().port, 1);
    }

    #[test]
    fn host_ip_takes_the_host_port() {
        let spec = InstanceSpec {
            address: AddressChoice::HostIp,
            ..InstanceSpec::default()
        };
        let mapped = build(&pod("p").port("http", 8080, Some(30080)).facts(), &spec).unwrap();
        assert_eq!((&*mapped.address, mapped.port), ("192.168.0.1", 30080));
        assert!(problem(&pod("p").port("http", 8080, None).facts(), &spec).contains("hostPort"));
        let host_network = pod("p")
            .port("http", 8080, None)
            .change(|pod| pod.host_network = true)
            .facts();
        assert_eq!(build(&host_network, &spec).unwrap().port, 8080);
    }

    #[test]
    fn both_addresses_of_a_dual_stack_pod_are_tagged() {
        let facts = pod("p")
            .ips(&["fd00::1", "10.0.0.1"])
            .port("http", 80, None)
            .facts();
        let service = build(&facts, &InstanceSpec::default()).unwrap();
        assert_eq!(&*service.address, "fd00::1");
        let tagged: Vec<_> = service
            .tagged_addresses
            .iter()
            .map(|a| (&*a.tag, &*a.address, a.port))
            .collect();
        assert_eq!(
            tagged,
            [("lan_ipv4", "10.0.0.1", 80), ("lan_ipv6", "fd00::1", 80)]
        );
    }

    #[test]
    fn tags_are_sorted_without_repeats_and_dropped_where_the_pod_lacks_a_label() {
        let spec = InstanceSpec {
            tags: ["b", "a", "b", "v-${pod.labels['x']}"]
                .map(Text::from)
                .into(),
            ..InstanceSpec::default()
        };
        let service = build(&pod("p").facts(), &spec).unwrap();
        assert_eq!(
            service.tags.iter().map(|tag| &**tag).collect::<Vec<_>>(),
            ["a", "b"]
        );
    }

    #[test]
    fn limits_of_tags_and_meta_are_named() {
        let spec = |tags: Vec<Text>, meta: Vec<(Text, Text)>| InstanceSpec {
            tags,
            meta,
            ..InstanceSpec::default()
        };
        let facts = pod("p").label("csv", "a,b").facts();
        let many = (0..65).map(|n| Text::from(format!("t{n}"))).collect();
        assert!(problem(&facts, &spec(many, vec![])).contains("65"));
        let long = vec![Text::from("x".repeat(256))];
        assert!(problem(&facts, &spec(long, vec![])).contains("256 bytes"));
        let comma = vec![Text::from("${pod.labels['csv']}")];
        assert!(problem(&facts, &spec(comma, vec![])).contains("comma"));
        let pairs = (0..49)
            .map(|n| (Text::from(format!("k{n}")), Text::from("v")))
            .collect();
        assert!(problem(&facts, &spec(vec![], pairs)).contains("49 pairs"));
        for (key, value, expected) in [
            ("lictor-cluster", "x", "reserved"),
            ("managed-by", "x", "reserved"),
            ("consul-x", "x", "reserved"),
            ("a/b", "x", "must be 1 to 128"),
            ("a", "${pod.nope}", "unknown variable"),
        ] {
            let meta = vec![(Text::from(key), Text::from(value))];
            assert!(
                problem(&facts, &spec(vec![], meta)).contains(expected),
                "{key}={value}"
            );
        }
        let long = vec![(Text::from("a"), Text::from("x".repeat(513)))];
        assert!(problem(&facts, &spec(vec![], long)).contains("513 bytes"));
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let spec = InstanceSpec {
            port: PortChoice::Name("no".into()),
            tags: vec!["${pod.x}".into()],
            meta: vec![("managed-by".into(), "me".into())],
            ..InstanceSpec::default()
        };
        assert_eq!(build(&pod("p").facts(), &spec).unwrap_err().len(), 3);
    }

    #[test]
    fn the_marks_say_whose_it_is() {
        let service = build(&pod("p").facts(), &InstanceSpec::default()).unwrap();
        let marks: Vec<_> = service.meta.iter().map(|(k, v)| (&**k, &**v)).collect();
        let expected = [
            ("external-k8s-node-name", "n1"),
            ("external-k8s-ns", "shop"),
            ("external-k8s-ref-kind", "Pod"),
            ("external-k8s-ref-name", "p"),
            ("external-source", "kubernetes"),
            ("lictor-cluster", "a"),
            ("lictor-node", "lictor-a--n1"),
            ("lictor-owner", "Pod/shop/p"),
            ("lictor-uid", "uid-p"),
        ];
        assert_eq!(marks, expected);
    }
}
