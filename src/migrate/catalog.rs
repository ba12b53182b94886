//! Services that the catalog sync of consul-k8s registers: a registration that selects the same pods.

use serde_json::{Map, Value, json};

use super::text::{items, label, meta, plain, put, texts};
use super::{CONSUL_K8S, Migrated, Options, name, namespace, ours, what};

/// The tag by which the sync knows its own.
const ITS_TAG: &str = "k8s";

/// Namespaces that it leaves out by default (`syncCatalog.k8sDenyNamespaces`).
const DENIED: [&str; 2] = ["kube-system", "kube-public"];

/// An annotation of the sync on a Service.
fn annotation<'a>(service: &'a Value, name: &str) -> Option<&'a str> {
    service["metadata"]["annotations"][format!("{CONSUL_K8S}/{name}")].as_str()
}

/// What the sync registers of a Service, if it does.
pub(super) fn migrate(service: &Value, options: &Options) -> Option<Migrated> {
    let is_asked = match annotation(service, "service-sync") {
        Some("true" | "1" | "t" | "T" | "TRUE" | "True") => true,
        Some("false" | "0" | "f" | "F" | "FALSE" | "False") => false,
        // What it cannot read does not count.
        _ => options.all_services && !DENIED.contains(&namespace(service)),
    };
    if !is_asked {
        return None;
    }
    let mut notes = Vec::new();
    let named = annotation(service, "service-name").map(str::to_owned);
    let named = named.unwrap_or_else(|| {
        let suffix = options.suffix.then(|| format!("-{}", namespace(service)));
        let suffix = suffix.unwrap_or_default();
        format!("{}{}{suffix}", options.prefix, name(service))
    });
    let mut spec = Map::new();
    if named != name(service) {
        spec.insert("service".to_owned(), json!(named));
    }
    let selector = &service["spec"]["selector"];
    let external = addresses(service);
    let selects = selector.as_object().is_some_and(|it| !it.is_empty());
    if service["spec"]["type"] == "LoadBalancer" && external.is_empty() {
        notes.push(format!(
            "{}: type LoadBalancer: the sync registers the address of the load balancer, which the manifest does \
             not say: give it in spec.endpoints in the place of spec.selector, or let the pods be registered",
            what(service)
        ));
    }
    if selects && external.is_empty() {
        spec.insert("selector".to_owned(), json!({"matchLabels": selector}));
        put(&mut spec, "port", port(service, &mut notes));
    } else {
        endpoints(service, &external, &mut spec, &mut notes);
    }
    if service["spec"]["type"] == "NodePort" {
        spec.insert("address".to_owned(), json!("HostIP"));
        notes.push(format!(
            "{}: type NodePort: address: HostIP registers the node's address, which needs a hostPort in the \
             pods; without it take that line out, and the pod's own address is registered",
            what(service)
        ));
    }
    let tags = items(annotation(service, "service-tags").unwrap_or_default());
    let tags = tags.iter().filter(|tag| *tag != ITS_TAG);
    let tags: Vec<String> = tags.map(|tag| plain(tag)).collect();
    put(&mut spec, "tags", tags);
    let start = format!("{CONSUL_K8S}/service-meta-");
    let pairs = texts(&service["metadata"]["annotations"]).filter_map(|(key, value)| {
        let key = key.strip_prefix(&start)?;
        Some((key.to_owned(), json!(value)))
    });
    put(&mut spec, "meta", meta(pairs, &what(service), &mut notes));
    if let Some(weight) = annotation(service, "service-weight") {
        match weight.parse::<u16>() {
            Ok(weight) => put(&mut spec, "weights", json!({"passing": weight})),
            Err(_) => notes.push(format!(
                "{}: service-weight {weight:?} is no weight",
                what(service)
            )),
        }
    }
    let registration = label(name(service), "service");
    Some(Migrated {
        object: ours(
            "ServiceRegistration",
            &registration,
            namespace(service),
            &spec,
        ),
        notes,
    })
}

/// The container port that the Service leads to, which is what instances are registered with.
fn port(service: &Value, notes: &mut Vec<String>) -> Value {
    let asked = annotation(service, "service-port");
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports: Vec<&Value> = ports.collect();
    let is_asked = |port: &&&Value| {
        asked.is_none_or(|asked| {
            port["name"] == asked
                || port["port"]
                    .as_u64()
                    .is_some_and(|it| asked.parse() == Ok(it))
        })
    };
    if ports.len() > 1 {
        let all = ports.iter().filter_map(|port| port["name"].as_str());
        let all: Vec<&str> = all.collect();
        notes.push(format!(
            "{}: an instance has one port: a further one of {} needs a ServiceRegistration and a service name \
             of its own, or a pair of meta",
            what(service),
            all.join(", ")
        ));
    }
    match (ports.iter().find(is_asked), asked) {
        (Some(port), _) if !port["targetPort"].is_null() => port["targetPort"].clone(),
        (Some(port), _) => port["port"].clone(),
        // One of the pods that the Service does not show.
        (None, Some(asked)) => asked
            .parse::<u16>()
            .map_or_else(|_| json!(asked), |it| json!(it)),
        (None, None) => Value::Null,
    }
}

/// The addresses outside of the cluster that a Service leads to, which the sync registers in the place of pods.
fn addresses(service: &Value) -> Vec<&str> {
    let given = service["spec"]["externalIPs"].as_array();
    let given = given.into_iter().flatten().filter_map(Value::as_str);
    let balanced = service["status"]["loadBalancer"]["ingress"].as_array();
    let is_balanced = service["spec"]["type"] == "LoadBalancer";
    let balanced = balanced.into_iter().flatten().filter(|_| is_balanced);
    let balanced = balanced.filter_map(|it| it["ip"].as_str().or_else(|| it["hostname"].as_str()));
    let given: Vec<&str> = given.collect();
    if given.is_empty() {
        balanced.collect()
    } else {
        given
    }
}

/// A Service leads to addresses that it names, or that somebody else does.
fn endpoints(
    service: &Value,
    addresses: &[&str],
    spec: &mut Map<String, Value>,
    notes: &mut Vec<String>,
) {
    let external = service["spec"]["externalName"].as_str();
    if external.is_some() && addresses.is_empty() {
        notes.push(format!(
            "{}: the sync registers no Service of type ExternalName: leave this out, unless you want it",
            what(service)
        ));
    }
    let addresses = addresses.iter().copied().chain(external);
    let port = &service["spec"]["ports"][0]["port"];
    let endpoint = |(number, address): (usize, &str)| {
        let mut endpoint = Map::new();
        endpoint.insert("name".to_owned(), json!(format!("e{number}")));
        endpoint.insert("address".to_owned(), json!(address));
        put(&mut endpoint, "port", port.clone());
        Value::Object(endpoint)
    };
    let endpoints: Vec<Value> = addresses.enumerate().map(endpoint).collect();
    let what = what(service);
    notes.push(if endpoints.is_empty() {
        format!(
            "{what}: it selects no pods: name its addresses in spec.endpoints, without which the API server \
             refuses this"
        )
    } else {
        format!("{what}: nobody looks how its addresses are, unless spec.health.checks say so")
    });
    spec.insert("endpoints".to_owned(), Value::Array(endpoints));
}
