//! Golden translation: Kubernetes objects in, Consul's entries out.
//!
//! A case is a file of YAML documents under `cases/`, decoded as what the API server sends is. The
//! objects of one step are taken in, what is planned is carried out, and the snapshot beside the
//! case shows what Consul then holds and what people are told. `then: <what happens>` begins
//! another step, in which an object replaces the one of its name; `deleted: <kind> <namespace>/<name>`
//! takes one away, `byHand: {…}` sets fields of all our service entries as another hand would,
//! `found: <status>` sets the status of all checks with a definition, as consul-esm would, and
//! `excludeNamespaces: […]` and `checks: esm` are the options of these names.
//!
//! `INSTA_UPDATE=always cargo test --test golden` writes the snapshots anew; look at what changed.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use globset::{Glob, GlobSet, GlobSetBuilder};
use lictor::api::RegistrationObject;
use lictor::checks::forbidden::Forbidden;
use lictor::consul::wire;
use lictor::desired::claim::Freeze;
use lictor::desired::esm::Runner;
use lictor::desired::index::{Index, Touched};
use lictor::desired::registration::{Content, Registration};
use lictor::k8s::trim::{self, Texts, Trim};
use lictor::model::entry::{Health, Mesh};
use lictor::model::facts::{NodeFacts, PodFacts};
use lictor::model::key::Key;
use lictor::model::kind::Kind;
use lictor::model::names::ClusterName;
use lictor::model::owner::Owner;
use lictor::model::text::{Pairs, Text};
use lictor::observed::entry::{
    ObservedCheck, ObservedInstance, ObservedNode, wire_check, wire_node_check, wire_service,
};
use lictor::observed::mirror::Mirror;
use lictor::plan::{self, Rules, Step};
use serde_json::{Value, json};

#[test]
fn objects_become_entries() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        insta::glob!("cases/*.yaml", |path| {
            let text = std::fs::read_to_string(path).unwrap();
            insta::assert_snapshot!(translated(&text));
        });
    });
}

fn translated(text: &str) -> String {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    let excluded = documents.iter().find_map(|d| d.get("excludeNamespaces"));
    let by_esm = documents
        .iter()
        .any(|d| d.get("checks") == Some(&json!("esm")));
    let mut bed = Bed::new(&globs(excluded), by_esm);
    for document in &documents {
        if let Some(what) = document.get("then") {
            bed.settle();
            bed.show();
            writeln!(bed.shown, "\n--- then {}\n", what.as_str().unwrap()).unwrap();
        } else if let Some(deleted) = document.get("deleted") {
            bed.delete(deleted.as_str().unwrap());
        } else if let Some(fields) = document.get("byHand") {
            bed.by_hand(fields);
        } else if let Some(status) = document.get("found") {
            bed.found(status.as_str().unwrap());
        } else if document.get("kind").is_some() {
            bed.take(document);
        } else {
            let options = ["excludeNamespaces", "checks"];
            let is_option = options.iter().any(|option| document.get(option).is_some());
            assert!(is_option, "{document}");
        }
    }
    bed.settle();
    bed.show();
    bed.shown
}

fn globs(excluded: Option<&Value>) -> GlobSet {
    let mut globs = GlobSetBuilder::new();
    for glob in excluded.and_then(Value::as_array).into_iter().flatten() {
        globs.add(Glob::new(glob.as_str().unwrap()).unwrap());
    }
    globs.build().unwrap()
}

/// The decode path of a watch: a list of this one object.
fn decoded<T: Trim>(object: &Value) -> T {
    let list = json!({"kind": "List", "metadata": {"resourceVersion": "7"}, "items": [object]});
    let page = trim::page(list.to_string().as_bytes(), &mut Texts::default()).unwrap();
    page.items.into_iter().next().unwrap()
}

struct Bed {
    index: Index,
    mirror: Mirror,
    rules: Rules,
    raft: u64,
    owners: BTreeSet<Owner>,
    shown: String,
}

impl Bed {
    fn new(excluded: &GlobSet, by_esm: bool) -> Self {
        let cluster: ClusterName = "a".parse().unwrap();
        let runner = if by_esm { Runner::Esm } else { Runner::Lictor };
        let mut bed = Self {
            index: Index::new(cluster.clone(), excluded.clone()).with_runner(runner),
            mirror: Mirror::new(cluster),
            rules: Rules {
                forbidden: Some(Arc::new(Forbidden::default())),
                ..Rules::default()
            },
            raft: 0,
            owners: BTreeSet::new(),
            shown: String::new(),
        };
        bed.mirror.complete();
        // Pods once more: the node of one that is not there is gone only by a list after that of nodes.
        for kind in Kind::ALL.into_iter().chain([Kind::Pod]) {
            bed.index.begin_list(kind);
            bed.index.end_list(kind, &mut Touched::default());
        }
        bed
    }

    // === events ===

    fn take(&mut self, object: &Value) {
        let touched = &mut Touched::default();
        match object["kind"].as_str().unwrap() {
            "Pod" => {
                let pod: PodFacts = decoded(object);
                self.owners.insert(Owner::pod(&pod.namespace, &pod.name));
                self.index.apply_pod(pod, touched);
            }
            "Node" => self.index.apply_node(decoded::<NodeFacts>(object), touched),
            "ServiceRegistration" => {
                let registration = Registration::of(&decoded::<RegistrationObject>(object));
                self.owners.insert(registration.owner());
                self.index.apply_registration(registration, touched);
            }
            other => panic!("no object of ours: {other}"),
        }
    }

    fn delete(&mut self, what: &str) {
        let (kind, name) = what.split_once(' ').unwrap();
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let (namespace, name) = (namespace.into(), name.into());
        let touched = &mut Touched::default();
        match kind {
            "Pod" => self.index.remove_pod(&namespace, &name, touched),
            "Node" => self.index.remove_node(&name, touched),
            _ => self
                .index
                .remove_registration(&namespace, &name, true, touched),
        }
    }

    fn by_hand(&mut self, fields: &Value) {
        self.settle();
        for key in self.mirror.keys().collect::<Vec<_>>() {
            let Key::Instance(key) = key else { continue };
            let mut instance = self.mirror.instance(&key).unwrap().clone();
            let mut service = serde_json::to_value(wire_service(&key, &instance.service)).unwrap();
            for (field, value) in fields.as_object().unwrap() {
                service[field] = value.clone();
            }
            let service: wire::NodeService = serde_json::from_value(service).unwrap();
            let observed = ObservedInstance::of(&service);
            instance.service = observed.service;
            instance.embellished = observed.embellished;
            self.mirror.wrote_instance(&key, Some(instance));
        }
    }

    fn found(&mut self, status: &str) {
        self.settle();
        for key in self.mirror.keys().collect::<Vec<_>>() {
            let Key::Instance(key) = key else { continue };
            let mut instance = self.mirror.instance(&key).unwrap().clone();
            for there in &mut instance.checks {
                if there.definition.is_some() {
                    there.check.status = Health::parse(status);
                    there.check.output = "as consul-esm says it".into();
                }
            }
            self.mirror.wrote_instance(&key, Some(instance));
        }
    }

    // === what comes of them ===

    fn keys(&self) -> BTreeSet<Key> {
        self.index
            .claimed_keys()
            .chain(self.mirror.keys())
            .collect()
    }

    fn settle(&mut self) {
        // Twice, since what is found missing is judged when all of it is known.
        for _ in 0..2 {
            for key in self.keys() {
                let step = plan::decide(&key, &self.index, &self.mirror, &self.rules).step;
                if matches!(&step, Step::Held(hold) if hold.is_guards()) {
                    self.rules.guard.found(&key);
                }
                self.carry_out(&key, step);
            }
            self.rules.guard.release();
        }
        for key in self.keys() {
            let step = plan::decide(&key, &self.index, &self.mirror, &self.rules).step;
            let done = matches!(
                step,
                Step::Settled | Step::OwnedByAnother { .. } | Step::Lingering
            );
            assert!(done, "left to do under {key}: {step:?}");
        }
    }

    fn carry_out(&mut self, key: &Key, step: Step) {
        self.raft += 1;
        match (key, step) {
            (
                _,
                Step::Settled
                | Step::OwnedByAnother { .. }
                | Step::Held(_)
                | Step::KeptOut(_)
                | Step::NoNodeAddress { .. }
                | Step::Lingering,
            ) => {}
            (Key::Node(name), Step::PutNode(write)) => {
                let before = self.mirror.node(name).cloned();
                let wire = write.node.map(|(node, _)| wire::Node {
                    name: name.text().clone(),
                    address: node.address,
                    meta: node.meta,
                    modify_index: self.raft,
                    ..wire::Node::default()
                });
                let mut node = wire.as_ref().map(ObservedNode::of).or(before).unwrap();
                if let Some((check, _)) = write.check {
                    let check = wire_node_check(name.text(), &check);
                    node.checks = vec![ObservedCheck::of(&check, None)];
                }
                self.mirror.wrote_node(name, node);
            }
            (Key::Instance(key), Step::Put(write)) => {
                let before = self.mirror.instance(key).cloned();
                let checks = before.as_ref().map_or(Vec::new(), |i| i.checks.clone());
                let service = write.service.as_ref();
                let service = service.map(|(service, _)| wire::NodeService {
                    modify_index: self.raft,
                    ..wire_service(key, service)
                });
                let after = service.as_ref().map(ObservedInstance::of);
                let mut instance = after.or(before).unwrap();
                instance.checks = checks;
                for it in &write.checks {
                    let check = wire_check(key, &write.name, &it.kind, &it.check);
                    let check = ObservedCheck::of(&check, Some(&key.id));
                    instance.checks.retain(|known| known.id != check.id);
                    instance.checks.push(check);
                }
                let gone = |id: &Text| write.surplus.iter().any(|(surplus, _)| surplus == id);
                instance.checks.retain(|check| !gone(&check.id));
                self.mirror.wrote_instance(key, Some(instance));
            }
            (Key::Instance(key), Step::Remove(_)) => self.mirror.wrote_instance(key, None),
            (key, step) => panic!("nothing to carry out under {key}: {step:?}"),
        }
    }

    // === the snapshot ===

    fn show(&mut self) {
        let mut out = std::mem::take(&mut self.shown);
        let keys = self.keys();
        for name in keys.iter().filter_map(|key| match key {
            Key::Node(name) => Some(name),
            _ => None,
        }) {
            let Some(node) = self.mirror.node(name) else {
                continue;
            };
            writeln!(out, "node {name}").unwrap();
            writeln!(out, "  address: {}", node.node.address).unwrap();
            meta(&mut out, &node.node.meta);
            checks(&mut out, &node.checks);
        }
        for key in &keys {
            self.show_instance(&mut out, key);
        }
        for owner in &self.owners {
            for problem in self.index.problems(owner) {
                writeln!(out, "problem of {owner}: {problem}").unwrap();
            }
            let content = self.index.registration(owner).map(|found| &found.content);
            if matches!(content, Some(Content::Paused { .. })) {
                writeln!(out, "{owner} is paused").unwrap();
            }
        }
        if out.is_empty() || out.ends_with("\n\n") {
            out.push_str("nothing\n");
        }
        self.shown = out;
    }

    fn show_instance(&self, out: &mut String, full_key: &Key) {
        let Key::Instance(key) = full_key else { return };
        writeln!(out, "instance {key}").unwrap();
        if let Some(ObservedInstance {
            service,
            checks: with,
            ..
        }) = self.mirror.instance(key)
        {
            writeln!(out, "  service: {}", service.name).unwrap();
            writeln!(out, "  address: {} port {}", service.address, service.port).unwrap();
            for tagged in &service.tagged_addresses {
                let (tag, address, port) = (&tagged.tag, &tagged.address, tagged.port);
                writeln!(out, "  {tag}: {address} port {port}").unwrap();
            }
            for tag in &service.tags {
                writeln!(out, "  tag: {tag}").unwrap();
            }
            let (passing, warning) = (service.weights.passing, service.weights.warning);
            if (passing, warning) != (1, 1) {
                writeln!(out, "  weights: {passing}, warning {warning}").unwrap();
            }
            if service.enable_tag_override {
                writeln!(out, "  enableTagOverride").unwrap();
            }
            mesh(out, service.mesh.as_deref());
            meta(out, &service.meta);
            checks(out, with);
        } else {
            writeln!(out, "  is not registered").unwrap();
        }
        let finding = plan::decide(full_key, &self.index, &self.mirror, &self.rules);
        for loser in &finding.losers {
            writeln!(out, "  claimed too by {loser}").unwrap();
        }
        match &finding.freeze {
            None => {}
            Some(Freeze::Paused) => writeln!(out, "  held: paused").unwrap(),
            Some(Freeze::NotWatched) => writeln!(out, "  held: not watched").unwrap(),
            Some(Freeze::Invalid(problems)) => {
                for problem in problems {
                    writeln!(out, "  held: {problem}").unwrap();
                }
            }
        }
    }
}

fn mesh(out: &mut String, mesh: Option<&Mesh>) {
    let proxy = match mesh {
        None => return,
        Some(Mesh::Native) => return writeln!(out, "  connect: native").unwrap(),
        Some(Mesh::Proxy(proxy)) => proxy,
    };
    writeln!(
        out,
        "  connect-proxy of {} ({}) at {}:{}",
        proxy.destination, proxy.destination_id, proxy.local_address, proxy.local_port
    )
    .unwrap();
    for upstream in &proxy.upstreams {
        write!(
            out,
            "  upstream {}: {}",
            upstream.local_port, upstream.service
        )
        .unwrap();
        for (name, value) in [
            ("datacenter", &upstream.datacenter),
            ("peer", &upstream.peer),
            ("namespace", &upstream.namespace),
            ("partition", &upstream.partition),
        ] {
            if !value.is_empty() {
                write!(out, " {name}={value}").unwrap();
            }
        }
        writeln!(out).unwrap();
    }
}

fn meta(out: &mut String, meta: &Pairs) {
    let pairs: Vec<_> = meta.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let marks = |pair: &&String| pair.starts_with("external-") || pair.starts_with("lictor-");
    for pair in pairs.iter().filter(|pair| !marks(pair)) {
        writeln!(out, "  meta: {pair}").unwrap();
    }
    let marks: Vec<_> = pairs.iter().filter(marks).map(|s| &**s).collect();
    writeln!(out, "  marks: {}", marks.join(" ")).unwrap();
}

fn checks(out: &mut String, checks: &[ObservedCheck]) {
    for there in checks {
        let ObservedCheck { id, check, .. } = there;
        let (status, output) = (check.status.as_str(), &check.output);
        writeln!(out, "  check {id}: {status}: {output}").unwrap();
        if let Some(definition) = &there.definition {
            writeln!(out, "    {}", definition.to_json()).unwrap();
        }
    }
}
