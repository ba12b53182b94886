use super::*;
use crate::consul::wire;
use crate::model::names::ServiceName;
use crate::model::text::{Pairs, Text};

fn cluster() -> ClusterName {
    "a".parse().unwrap()
}

fn mirror() -> Mirror {
    Mirror::new(cluster())
}

fn name(node: &str) -> NodeName {
    NodeName::for_kubernetes(&cluster(), node)
}

fn key(pod: &str) -> InstanceKey {
    let service: ServiceName = "web".parse().unwrap();
    InstanceKey {
        node: name("n"),
        id: InstanceId::of_pod(&cluster(), "shop", &service, pod),
    }
}

fn meta(pairs: &[(&str, &str)]) -> Pairs {
    let shared = |(key, value): &(&str, &str)| (Text::from(*key), Text::from(*value));
    pairs.iter().map(shared).collect()
}

fn node(mark: Option<&str>, create_index: u64) -> wire::Node {
    wire::Node {
        name: name("n").text().clone(),
        meta: mark.map_or_else(Pairs::default, |mark| meta(&[(marks::CLUSTER, mark)])),
        create_index,
        ..wire::Node::default()
    }
}

fn service(pod: &str, owner: &str, modify_index: u64) -> wire::NodeService {
    let marked = meta(&[
        (marks::CLUSTER, "a"),
        (marks::NODE, name("n").as_ref()),
        (marks::OWNER, owner),
        (marks::K8S_REF_KIND, "Pod"),
        (marks::K8S_REF_NAME, pod),
    ]);
    wire::NodeService {
        id: key(pod).id.text().clone(),
        service: "web".into(),
        meta: marked,
        modify_index,
        ..wire::NodeService::default()
    }
}

fn ours(pod: &str, modify_index: u64) -> wire::NodeService {
    service(pod, &format!("Pod/shop/{pod}"), modify_index)
}

fn content(services: Vec<wire::NodeService>) -> NodeContent {
    NodeContent {
        node: Some(node(Some("a"), 1)),
        services,
        checks: Vec::new(),
    }
}

fn read(mirror: &mut Mirror, content: &NodeContent) -> Vec<Key> {
    let ticket = mirror.start_read();
    mirror.finish_read(ticket, &name("n"), content, &HashSet::new())
}

fn write(mirror: &mut Mirror, pod: &str, index: u64) {
    let written = ObservedInstance::of(&ours(pod, index));
    mirror.wrote_instance(&key(pod), Some(written));
}

fn index_of(mirror: &Mirror, pod: &str) -> Option<u64> {
    Some(mirror.instance(&key(pod))?.modify_index)
}

// === reads and writes ===

#[test]
fn a_read_brings_what_changed_and_tells_of_it_once() {
    let mut mirror = mirror();
    let changed = read(&mut mirror, &content(vec![ours("p", 5)]));
    assert_eq!(changed, [Key::Instance(key("p")), Key::Node(name("n"))]);
    assert_eq!(read(&mut mirror, &content(vec![ours("p", 5)])), []);
    assert_eq!(
        read(&mut mirror, &content(Vec::new())),
        [Key::Instance(key("p"))]
    );
    assert_eq!(index_of(&mirror, "p"), None);
}

#[test]
fn what_was_written_since_a_read_began_is_not_taken_from_it() {
    let mut mirror = mirror();
    read(&mut mirror, &content(vec![ours("p", 5), ours("q", 5)]));
    let ticket = mirror.start_read();
    write(&mut mirror, "p", 6);
    write(&mut mirror, "new", 6);
    mirror.wrote_instance(&key("q"), None);
    let old = content(vec![ours("p", 5), ours("q", 5)]);
    let changed = mirror.finish_read(ticket, &name("n"), &old, &HashSet::new());
    assert_eq!(changed, []);
    let indexes = ["p", "q", "new"].map(|pod| index_of(&mirror, pod));
    assert_eq!(indexes, [Some(6), None, Some(6)]);
    // A read that begins later counts again, and nothing is remembered.
    assert!(mirror.written.is_empty() && mirror.read.is_empty());
    let changed = read(&mut mirror, &content(vec![ours("p", 7)]));
    assert_eq!(changed.len(), 2);
}

#[test]
fn a_write_before_a_read_began_does_not_hide_what_it_brings() {
    let mut mirror = mirror();
    let older = mirror.start_read();
    write(&mut mirror, "p", 6);
    let ticket = mirror.start_read();
    let changed = content(vec![ours("p", 9)]);
    let _ = mirror.finish_read(ticket, &name("n"), &changed, &HashSet::new());
    assert_eq!(index_of(&mirror, "p"), Some(9));
    mirror.abandon_read(older);
    assert!(mirror.written.is_empty() && mirror.read.is_empty());
}

#[test]
fn a_key_that_is_being_written_stays_as_it_is_known() {
    let mut mirror = mirror();
    read(&mut mirror, &content(vec![ours("p", 5)]));
    let ticket = mirror.start_read();
    let busy = HashSet::from([Key::Instance(key("p"))]);
    let changed = mirror.finish_read(ticket, &name("n"), &content(vec![ours("p", 9)]), &busy);
    assert_eq!((changed, index_of(&mirror, "p")), (vec![], Some(5)));
}

#[test]
fn an_older_read_that_ends_later_brings_nothing() {
    let mut mirror = mirror();
    let older = mirror.start_read();
    let before = content(vec![ours("p", 5)]);
    assert_eq!(read(&mut mirror, &content(Vec::new())).len(), 1);
    let changed = mirror.finish_read(older, &name("n"), &before, &HashSet::new());
    assert_eq!((changed, index_of(&mirror, "p")), (vec![], None));
    assert!(mirror.read.is_empty());
}

// === lists ===

#[test]
fn a_node_that_a_list_lacks_is_gone_with_all_on_it() {
    let mut mirror = mirror();
    read(&mut mirror, &content(vec![ours("p", 5)]));
    let ticket = mirror.start_read();
    let changed = mirror.finish_list(ticket, &BTreeSet::new(), &HashSet::new());
    assert_eq!(changed, [Key::Instance(key("p")), Key::Node(name("n"))]);
    assert_eq!(
        (mirror.node_names().count(), mirror.owned_instances()),
        (0, 0)
    );
}

#[test]
fn a_node_that_was_written_or_read_since_a_list_began_is_not_gone() {
    let none = BTreeSet::new();
    let mut mirror = mirror();
    let ticket = mirror.start_read();
    mirror.wrote_node(&name("n"), ObservedNode::of(&node(Some("a"), 1)));
    assert_eq!(mirror.finish_list(ticket, &none, &HashSet::new()), []);
    assert_eq!(mirror.node_names().count(), 1);

    let ticket = mirror.start_read();
    read(&mut mirror, &content(Vec::new()));
    assert_eq!(mirror.finish_list(ticket, &none, &HashSet::new()), []);

    let ticket = mirror.start_read();
    let busy = HashSet::from([Key::Node(name("n"))]);
    assert_eq!(mirror.finish_list(ticket, &none, &busy), []);
    assert_eq!(mirror.node_names().count(), 1);
}

// === sureness ===

#[test]
fn a_doubt_is_settled_by_a_read_that_began_after_it() {
    let mut mirror = mirror();
    mirror.complete();
    let before = mirror.start_read();
    let listed = mirror.start_read();
    mirror.doubt(&name("n"));
    let _ = mirror.finish_read(before, &name("n"), &content(Vec::new()), &HashSet::new());
    assert!(mirror.is_unsure(&Place::Node(name("n"))));
    let _ = mirror.finish_list(listed, &BTreeSet::new(), &HashSet::new());
    assert!(mirror.is_unsure(&Place::Node(name("n"))));
    read(&mut mirror, &content(Vec::new()));
    assert!(!mirror.is_unsure(&Place::Node(name("n"))));
}

#[test]
fn a_failed_read_settles_nothing() {
    let mut mirror = mirror();
    mirror.doubt(&name("n"));
    let ticket = mirror.start_read();
    mirror.abandon_read(ticket);
    assert!(mirror.is_unsure(&Place::Node(name("n"))));
}

// === whose ===

#[test]
fn a_node_stays_ours_when_its_mark_is_erased() {
    let is_ours = |mirror: &Mirror| {
        let node = mirror.node(&name("n")).unwrap();
        mirror.is_our_node(&name("n"), node)
    };
    let erased = |index| NodeContent {
        node: Some(node(None, index)),
        ..NodeContent::default()
    };
    // One that was never marked, or that came anew, is not.
    let mut fresh = mirror();
    read(&mut fresh, &erased(1));
    assert!(!is_ours(&fresh));
    let mut known = mirror();
    read(&mut known, &content(Vec::new()));
    read(&mut known, &erased(1));
    assert!(is_ours(&known));
    read(&mut known, &erased(2));
    assert!(!is_ours(&known));
    // An instance of ours on it speaks for it, but not against another's mark.
    let mut held = mirror();
    let with = |mark| NodeContent {
        node: Some(node(mark, 1)),
        services: vec![ours("p", 1)],
        checks: Vec::new(),
    };
    read(&mut held, &with(None));
    assert!(is_ours(&held));
    read(&mut held, &with(Some("b")));
    assert!(!is_ours(&held));
}

#[test]
fn a_mark_is_remembered_as_long_as_its_node_is_there() {
    let mut mirror = mirror();
    read(&mut mirror, &content(Vec::new()));
    mirror.forget_node(&name("n"));
    assert!(mirror.marked.is_empty());
}

#[test]
fn an_object_holds_what_it_owns_and_what_stands_for_it() {
    let mut mirror = mirror();
    let services = vec![
        ours("p", 1),
        service("q", "ServiceRegistration/shop/r", 1),
        service("s", "ServiceRegistration/bank/r", 1),
        wire::NodeService {
            meta: Pairs::default(),
            ..ours("t", 1)
        },
    ];
    read(&mut mirror, &content(services));
    let held = |owner: Owner| mirror.held_by(&owner, None);
    let shop = Text::from("shop");
    let instance = |pod| vec![Key::Instance(key(pod))];
    assert_eq!(held(Owner::pod(&shop, &"p".into())), instance("p"));
    assert_eq!(held(Owner::pod(&shop, &"q".into())), instance("q"));
    assert_eq!(held(Owner::registration(&shop, &"r".into())), instance("q"));
    for nobodys in ["s", "t"] {
        assert_eq!(held(Owner::pod(&shop, &nobodys.into())), []);
    }
    // Of bank's entry the id names another namespace, so that it is a copy.
    assert_eq!(mirror.owned_instances(), 2);
}

#[test]
fn imported_services_are_not_looked_at() {
    let mut mirror = mirror();
    let imported = wire::NodeService {
        peer_name: "other".into(),
        ..ours("p", 1)
    };
    read(&mut mirror, &content(vec![imported]));
    assert_eq!(index_of(&mirror, "p"), None);
}
