//! `Registration`s of consul-k8s: one is an instance; those of one service become endpoints of one
//! `ServiceRegistration`.

use std::collections::BTreeMap;

use hyper::Uri;
use serde_json::{Map, Value, json};

use super::text::{label, meta, once, plain, put, texts};
use super::{CONSUL_K8S, Migrated, Options, group, name, ours, what};

/// Fields that an endpoint has nothing of. Each endpoint is on a node of Lictor's.
const LOST: [&str; 12] = [
    "id",
    "taggedAddresses",
    "nodeMeta",
    "datacenter",
    "skipNodeUpdate",
    "partition",
    "service.id",
    "service.socketPath",
    "service.taggedAddresses",
    "service.locality",
    "service.namespace",
    "service.partition",
];
/// Fields of a check's definition that ours has nothing of.
const LOST_OF_CHECK: [&str; 6] = [
    "body",
    "tlsServerName",
    "tcpUseTLS",
    "grpcUseTLS",
    "udp",
    "osService",
];

/// What all endpoints of a service have in common.
#[derive(Default)]
struct Service {
    endpoints: Vec<Value>,
    taken: Vec<String>,
    /// By field, what the first endpoint says.
    common: BTreeMap<&'static str, Value>,
    notes: Vec<String>,
}

pub(super) fn migrate(objects: &[Value], options: &Options) -> Vec<Migrated> {
    let mut services: BTreeMap<&str, Service> = BTreeMap::new();
    let is_one =
        |it: &&Value| group(it) == CONSUL_K8S && it["kind"].as_str() == Some("Registration");
    for object in objects.iter().filter(is_one) {
        let service = object["spec"]["service"]["name"]
            .as_str()
            .unwrap_or_default();
        services.entry(service).or_default().add(object);
    }
    let mut taken = Vec::new();
    let migrated = services.into_iter().map(|(service, found)| {
        let registration = once(&label(service, "service"), &mut taken);
        let mut spec = Map::new();
        if registration != service {
            spec.insert("service".to_owned(), json!(service));
        }
        spec.insert("endpoints".to_owned(), Value::Array(found.endpoints));
        for (field, value) in found.common {
            put(&mut spec, field, value);
        }
        Migrated {
            object: ours(
                "ServiceRegistration",
                &registration,
                &options.namespace,
                &spec,
            ),
            notes: found.notes,
        }
    });
    migrated.collect()
}

impl Service {
    fn add(&mut self, object: &Value) {
        let (spec, of) = (&object["spec"], what(object));
        let service = &spec["service"];
        for field in LOST {
            let mut parts = field.split('.');
            let value = parts.try_fold(spec, |within, part| within.get(part));
            let is_said =
                value.is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)));
            if is_said && value != Some(&json!("")) {
                self.notes.push(format!(
                    "{of}: spec.{field} has no counterpart (docs/migration.md)"
                ));
            }
        }
        let address = [&service["address"], &spec["address"]].into_iter();
        let address = address.filter_map(Value::as_str).find(|it| !it.is_empty());
        let address = address.unwrap_or_else(|| {
            self.notes
                .push(format!("{of}: it has no address: give the endpoint one"));
            ""
        });
        let port = service["port"].as_u64().filter(|port| *port > 0);
        let mut endpoint = Map::new();
        let label = once(&label(name(object), "endpoint"), &mut self.taken);
        endpoint.insert("name".to_owned(), json!(label));
        endpoint.insert("address".to_owned(), json!(address));
        put(
            &mut endpoint,
            "port",
            port.map_or(Value::Null, |port| json!(port)),
        );
        let tags = service["tags"].as_array().into_iter().flatten();
        let tags = tags.filter_map(Value::as_str).map(plain);
        put(&mut endpoint, "tags", tags.collect::<Vec<_>>());
        let pairs = service["meta"].as_object().cloned().unwrap_or_default();
        put(&mut endpoint, "meta", meta(pairs, &of, &mut self.notes));
        let check = &spec["check"];
        let health = if check.is_object() {
            self.health(check, &of, address, port)
        } else {
            Value::Null
        };
        self.agree("health", health, &of);
        self.agree("weights", service["weights"].clone(), &of);
        let is_overridden = service["enableTagOverride"] == true;
        let tags = if is_overridden {
            json!(true)
        } else {
            Value::Null
        };
        self.agree("enableTagOverride", tags, &of);
        self.endpoints.push(Value::Object(endpoint));
    }

    /// What is said of all endpoints at once is that of the first, and others are told.
    fn agree(&mut self, field: &'static str, value: Value, of: &str) {
        if self.endpoints.is_empty() {
            self.common.insert(field, value);
        } else if self.common.get(field) != Some(&value) {
            self.notes.push(format!(
                "{of}: spec.{field} is of all endpoints, and those differ: that of the first is given. Part the \
                 object in two, or make them the same"
            ));
        }
    }

    fn health(&mut self, check: &Value, of: &str, address: &str, port: Option<u64>) -> Value {
        let definition = &check["definition"];
        for field in LOST_OF_CHECK {
            let value = definition.get(field);
            if value.is_some_and(|value| *value != false && *value != "") {
                self.notes.push(format!(
                    "{of}: spec.check.definition.{field} has no counterpart (docs/migration.md)"
                ));
            }
        }
        let fields: BTreeMap<&str, &str> = texts(definition)
            .filter(|(_, text)| !text.is_empty())
            .collect();
        let mut target = Map::new();
        let kind = ["http", "tcp", "grpc"]
            .into_iter()
            .find(|kind| fields.contains_key(kind));
        let Some(kind) = kind else {
            self.notes.push(format!(
                "{of}: its check asks nobody, its status was set from outside: there is none for an endpoint"
            ));
            return Value::Null;
        };
        let url = match kind {
            "http" => fields[kind].to_owned(),
            _ => format!("{kind}://{}", fields[kind]),
        };
        let Ok(url) = url.parse::<Uri>() else {
            self.notes.push(format!(
                "{of}: {url:?} is no address to ask: its check is left out"
            ));
            return Value::Null;
        };
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
        if host != address {
            self.notes.push(format!(
                "{of}: its check asks {host:?}: those of Lictor ask the address of the endpoint"
            ));
        }
        let by_scheme = match url.scheme_str() {
            Some("http") => Some(80),
            Some("https") => Some(443),
            _ => None,
        };
        let asked = url.port_u16().or(by_scheme);
        if let Some(asked) = asked.filter(|asked| Some(u64::from(*asked)) != port) {
            target.insert("port".to_owned(), json!(asked));
        }
        match kind {
            "http" => {
                if url.scheme_str() == Some("https") {
                    target.insert("scheme".to_owned(), json!("https"));
                }
                let path = url.path_and_query().map_or("/", |path| path.as_str());
                if path != "/" {
                    target.insert("path".to_owned(), json!(path));
                }
                put(&mut target, "method", definition["method"].clone());
                put(&mut target, "headers", headers(&definition["header"]));
            }
            "grpc" => put(&mut target, "service", url.path().trim_start_matches('/')),
            _ => {}
        }
        let named = ["checkId", "name"].into_iter();
        let named = named
            .filter_map(|field| check[field].as_str())
            .find(|it| !it.is_empty());
        let mut ours = Map::new();
        ours.insert("name".to_owned(), json!(label(named.unwrap_or(kind), kind)));
        ours.insert(kind.to_owned(), Value::Object(target));
        for (theirs, name) in [
            ("intervalDuration", "interval"),
            ("timeoutDuration", "timeout"),
        ] {
            if let Some(text) = fields.get(theirs) {
                ours.insert(name.to_owned(), json!(text));
            }
        }
        let mut health = json!({"checks": [ours]});
        if let Some(after) = fields.get("deregisterCriticalServiceAfterDuration") {
            health["deregisterCriticalServiceAfter"] = json!(after);
        }
        health
    }
}

/// Header fields, of which ours have one value each.
fn headers(theirs: &Value) -> Map<String, Value> {
    let all = theirs.as_object().into_iter().flatten();
    let one = all.map(|(name, values)| {
        let values = values.as_array().into_iter().flatten();
        let values: Vec<&str> = values.filter_map(Value::as_str).collect();
        (name.clone(), json!(values.join(", ")))
    });
    one.collect()
}
