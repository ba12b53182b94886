use super::*;
use crate::api::selector::LabelSelector;
use crate::desired::claim::{Freeze, Held, Resolved, Shape};
use crate::desired::fixtures::{node, pod};
use crate::desired::registration::{Content, Source};
use crate::desired::shape::Endpoint;
use crate::desired::spec::{InstanceSpec, Terminating};
use crate::model::entry::{Health, Node};
use crate::model::facts::{Phase, Tristate};
use crate::model::marks;
use crate::model::names::InstanceId;
use crate::model::text::Pairs;

fn index() -> Index {
    let mut index = Index::new("a".parse().unwrap(), GlobSet::empty());
    for kind in Kind::ALL {
        index.begin_list(kind);
        index.end_list(kind, &mut Touched::default());
    }
    index
}

fn key_on(node: &str, service: &str, pod: &str) -> InstanceKey {
    let cluster = "a".parse().unwrap();
    InstanceKey {
        node: NodeName::for_kubernetes(&cluster, node),
        id: InstanceId::of_pod(&cluster, "shop", &service.parse().unwrap(), pod),
    }
}

fn key(service: &str, pod: &str) -> InstanceKey {
    key_on("n1", service, pod)
}

/// Selects the label `app: web`.
fn registration(name: &str, service: &str) -> Registration {
    let selector = LabelSelector {
        match_labels: [("app".to_owned(), "web".to_owned())].into(),
        ..LabelSelector::default()
    };
    Registration {
        namespace: "shop".into(),
        name: name.into(),
        uid: format!("uid-{name}").into(),
        created: 100,
        generation: 1,
        content: Content::Valid(Claims {
            service: service.parse().unwrap(),
            spec: InstanceSpec::default(),
            source: Source::Pods(selector),
            adopt: false,
            protocol: None,
            queries: Vec::new(),
            sidecar: None,
        }),
    }
}

fn with_content(content: Content, registration: Registration) -> Registration {
    Registration {
        content,
        ..registration
    }
}

fn paused(claims: Option<Claims>) -> Content {
    Content::Paused {
        claims,
        problem: None,
    }
}

/// Selects the label `app: web`, and has these settings.
fn claims(service: &str, change: impl FnOnce(&mut InstanceSpec)) -> Claims {
    let Content::Valid(mut claims) = registration("r", service).content else {
        panic!("it is valid");
    };
    change(&mut claims.spec);
    claims
}

fn web(name: &str) -> crate::desired::fixtures::PodFixture {
    pod(name).label("app", "web")
}

fn apply(index: &mut Index, facts: PodFacts) -> Touched {
    let mut touched = Touched::default();
    index.apply_pod(facts, &mut touched);
    touched
}

fn register(index: &mut Index, registration: Registration) -> Touched {
    let mut touched = Touched::default();
    index.apply_registration(registration, &mut touched);
    touched
}

fn remove(index: &mut Index, pod: &str) -> Touched {
    let mut touched = Touched::default();
    index.remove_pod(&"shop".into(), &pod.into(), &mut touched);
    touched
}

/// A list of pods that brings these.
fn relist(index: &mut Index, pods: Vec<PodFacts>) -> Touched {
    let mut touched = Touched::default();
    index.begin_list(Kind::Pod);
    for pod in pods {
        index.apply_pod(pod, &mut touched);
    }
    index.end_list(Kind::Pod, &mut touched);
    touched
}

fn held<'a>(owner: &Owner, service: &'a str, pod: Option<&'a Text>) -> Held<'a> {
    Held {
        owner: owner.clone(),
        service,
        address: "",
        port: 0,
        pod,
        readiness: None,
    }
}

fn pod_owner(name: &str) -> Owner {
    Owner::pod(&"shop".into(), &name.into())
}

fn holder(index: &Index, key: &InstanceKey) -> Option<String> {
    let first = index.claimants(key).first()?;
    Some(first.owner.name.to_string())
}

/// Whether all that Consul shows as the object's is to be planned again.
fn holds(touched: &Touched, owner: &Owner) -> bool {
    touched
        .holdings
        .iter()
        .any(|holding| holding.owner == *owner)
}

/// What the engine does with what Consul shows as the objects'.
fn withdraw(index: &mut Index, touched: &Touched, key: &InstanceKey, held: &Held<'_>) {
    for let_go in &touched.let_go {
        index.withdraw(key, held, let_go);
    }
}

fn absence(resolved: &Resolved) -> Option<Absence> {
    match resolved {
        Resolved::Unclaimed(absence) => Some(*absence),
        Resolved::Claimed(_) | Resolved::Refused(_) => None,
    }
}

fn freeze(resolved: Resolved) -> Option<Freeze> {
    match resolved {
        Resolved::Claimed(claim) => match claim.shape {
            Shape::Frozen(freeze) => Some(freeze),
            Shape::Valid(_) => None,
        },
        Resolved::Unclaimed(_) | Resolved::Refused(_) => None,
    }
}

// === seen and found ===

#[test]
fn a_delete_event_is_seen_and_a_list_without_the_pod_is_found() {
    let mut index = index();
    apply(&mut index, pod("p").lictor("service", "web").facts());
    let touched = remove(&mut index, "p");
    assert!(touched.keys.contains(&Key::Instance(key("web", "p"))));
    let resolved = index.resolve(&key("web", "p"), None);
    assert_eq!(absence(&resolved), Some(Absence::Seen));

    apply(&mut index, pod("q").lictor("service", "web").facts());
    let touched = relist(&mut index, Vec::new());
    assert!(touched.keys.contains(&Key::Instance(key("web", "q"))));
    let resolved = index.resolve(&key("web", "q"), None);
    assert_eq!(absence(&resolved), Some(Absence::Found));
}

#[test]
fn an_edit_or_an_end_is_seen() {
    let mut index = index();
    apply(&mut index, pod("p").lictor("service", "web,api").facts());
    apply(&mut index, pod("p").lictor("service", "api").facts());
    let resolved = index.resolve(&key("web", "p"), None);
    assert_eq!(absence(&resolved), Some(Absence::Seen));
    let ended = pod("p").lictor("service", "api").phase(Phase::Failed);
    apply(&mut index, ended.facts());
    let resolved = index.resolve(&key("api", "p"), None);
    assert_eq!(absence(&resolved), Some(Absence::Seen));
}

#[test]
fn what_a_broken_watch_tells_is_not_seen_and_other_watches_do_not_matter() {
    for (kind, expected) in [
        (Kind::Pod, Absence::Found),
        (Kind::Node, Absence::Seen),
        (Kind::Registration, Absence::Seen),
    ] {
        let mut index = index();
        apply(&mut index, pod("p").lictor("service", "web").facts());
        index.watches.broken(kind, "timeout".to_owned());
        remove(&mut index, "p");
        let resolved = index.resolve(&key("web", "p"), None);
        assert_eq!(absence(&resolved), Some(expected), "{kind:?}");
    }
}

#[test]
fn an_absence_is_remembered_until_it_is_forgotten() {
    let mut index = index();
    apply(&mut index, pod("p").lictor("service", "web").facts());
    remove(&mut index, "p");
    index.forget_absence(&key("web", "p"));
    let resolved = index.resolve(&key("web", "p"), None);
    assert_eq!(absence(&resolved), Some(Absence::Found));
    assert!(index.withdrawn.is_empty());
}

#[test]
fn a_claim_that_comes_back_was_not_withdrawn() {
    let mut index = index();
    let facts = || pod("p").lictor("service", "web").facts();
    apply(&mut index, facts());
    remove(&mut index, "p");
    apply(&mut index, facts());
    relist(&mut index, Vec::new());
    let resolved = index.resolve(&key("web", "p"), None);
    assert_eq!(absence(&resolved), Some(Absence::Found));
}

#[test]
fn what_a_pod_keeps_frozen_was_not_withdrawn() {
    let mut index = index();
    apply(&mut index, pod("p").lictor("service", "web").facts());
    let paused = pod("p").lictor("service", "web").lictor("paused", "true");
    apply(&mut index, paused.facts());
    let (owner, name) = (pod_owner("p"), Text::from("p"));
    let held = held(&owner, "web", Some(&name));
    let resolved = index.resolve(&key("web", "p"), Some(&held));
    assert_eq!(freeze(resolved), Some(Freeze::Paused));
    // Then a list does not bring it: that is found, although its claim went before our eyes.
    let touched = relist(&mut index, Vec::new());
    assert!(holds(&touched, &owner));
    let resolved = index.resolve(&key("web", "p"), Some(&held));
    assert_eq!(absence(&resolved), Some(Absence::Found));
}

#[test]
fn what_a_registration_keeps_frozen_was_not_withdrawn() {
    let mut index = index();
    apply(&mut index, web("p").facts());
    register(&mut index, registration("r", "web"));
    let touched = register(
        &mut index,
        with_content(paused(None), registration("r", "web")),
    );
    assert!(touched.keys.contains(&Key::Instance(key("web", "p"))));
    let (owner, name) = (registration("r", "web").owner(), Text::from("p"));
    let held = held(&owner, "web", Some(&name));
    let resolved = index.resolve(&key("web", "p"), Some(&held));
    assert_eq!(freeze(resolved), Some(Freeze::Paused));
    let mut touched = Touched::default();
    index.begin_list(Kind::Registration);
    index.end_list(Kind::Registration, &mut touched);
    assert!(holds(&touched, &owner));
    let resolved = index.resolve(&key("web", "p"), Some(&held));
    assert_eq!(absence(&resolved), Some(Absence::Found));
}

#[test]
fn a_frozen_object_that_is_deleted_is_seen_going() {
    let (owner, name) = (pod_owner("p"), Text::from("p"));
    for spoilt in [
        ("paused", "true"),
        ("service", "web,No_Name"),
        ("port.x", "1"),
    ] {
        let mut index = index();
        apply(&mut index, pod("p").lictor(spoilt.0, spoilt.1).facts());
        let touched = remove(&mut index, "p");
        assert!(holds(&touched, &owner), "{spoilt:?}");
        let held = held(&owner, "old", Some(&name));
        withdraw(&mut index, &touched, &key("old", "p"), &held);
        let resolved = index.resolve(&key("old", "p"), Some(&held));
        assert_eq!(absence(&resolved), Some(Absence::Seen), "{spoilt:?}");
    }

    for content in [paused(None), Content::Invalid("?".to_owned())] {
        let mut index = index();
        apply(&mut index, web("p").facts());
        register(&mut index, with_content(content, registration("r", "web")));
        let owner = registration("r", "web").owner();
        let mut touched = Touched::default();
        index.remove_registration(&"shop".into(), &"r".into(), true, &mut touched);
        assert!(holds(&touched, &owner));
        let held = held(&owner, "web", Some(&name));
        withdraw(&mut index, &touched, &key("web", "p"), &held);
        let resolved = index.resolve(&key("web", "p"), Some(&held));
        assert_eq!(absence(&resolved), Some(Absence::Seen));
    }
}

#[test]
fn the_end_of_a_pod_of_a_frozen_registration_is_seen() {
    let mut index = index();
    apply(&mut index, web("p").facts());
    register(
        &mut index,
        with_content(paused(None), registration("r", "web")),
    );
    let touched = remove(&mut index, "p");
    assert!(holds(&touched, &pod_owner("p")));
    let (owner, name) = (registration("r", "web").owner(), Text::from("p"));
    let held = held(&owner, "web", Some(&name));
    withdraw(&mut index, &touched, &key("web", "p"), &held);
    let resolved = index.resolve(&key("web", "p"), Some(&held));
    assert_eq!(absence(&resolved), Some(Absence::Seen));
}

/// The health under a key, and whether what is there is kept.
fn health(index: &Index, key: &InstanceKey, held: &Held<'_>) -> Option<(Health, bool)> {
    let Resolved::Claimed(claim) = index.resolve(key, Some(held)) else {
        return None;
    };
    let frozen = matches!(claim.shape, Shape::Frozen(_));
    Some((claim.live.readiness?.status, frozen))
}

#[test]
fn a_registration_that_turns_invalid_leaves_the_health_of_its_pods_as_it_was_set() {
    let warns = |spec: &mut InstanceSpec| spec.not_ready = Health::Warning;
    let (owner, name) = (registration("r", "web").owner(), Text::from("p"));
    let held = held(&owner, "web", Some(&name));
    let spoilt = || [Content::Invalid("?".to_owned()), paused(None)];
    for content in spoilt() {
        let mut index = index();
        apply(&mut index, web("p").not_ready("app", "").facts());
        let valid = with_content(
            Content::Valid(claims("web", warns)),
            registration("r", "web"),
        );
        register(&mut index, valid);
        register(&mut index, with_content(content, registration("r", "web")));
        // However often it changes meanwhile.
        for (number, content) in spoilt().into_iter().enumerate() {
            let later = Registration {
                generation: i64::try_from(number).unwrap() + 2,
                ..registration("r", "web")
            };
            register(&mut index, with_content(content, later));
            let seen = health(&index, &key("web", "p"), &held);
            assert_eq!(seen, Some((Health::Warning, true)));
        }
        // Another object of the name never said so.
        let other = Registration {
            uid: "other".into(),
            ..registration("r", "web")
        };
        register(
            &mut index,
            with_content(Content::Invalid("?".to_owned()), other),
        );
        let seen = health(&index, &key("web", "p"), &held);
        assert_eq!(seen, Some((Health::Critical, true)));
    }
}

#[test]
fn a_registration_that_was_never_understood_leaves_a_warning() {
    let mut index = index();
    let invalid = Content::Invalid("?".to_owned());
    register(&mut index, with_content(invalid, registration("r", "web")));
    let (owner, name) = (registration("r", "web").owner(), Text::from("p"));
    for (there, unready, ready) in [
        (Health::Warning, Health::Warning, Health::Passing),
        (Health::Passing, Health::Critical, Health::Passing),
        (Health::Critical, Health::Critical, Health::Passing),
    ] {
        let held = Held {
            readiness: Some(there),
            ..held(&owner, "web", Some(&name))
        };
        apply(&mut index, web("p").not_ready("app", "").facts());
        let seen = health(&index, &key("web", "p"), &held);
        assert_eq!(seen, Some((unready, true)));
        apply(&mut index, web("p").facts());
        let seen = health(&index, &key("web", "p"), &held);
        assert_eq!(seen, Some((ready, true)));
    }
}

/// What becomes of what an entry of the pod `p` holds under `web`, when the pod changes so.
fn after_change(
    index: &mut Index,
    owner: &Owner,
    before: PodFacts,
    after: PodFacts,
) -> Option<Absence> {
    let name = Text::from("p");
    let held = held(owner, "web", Some(&name));
    apply(index, before);
    let touched = apply(index, after);
    withdraw(index, &touched, &key("web", "p"), &held);
    absence(&index.resolve(&key("web", "p"), Some(&held)))
}

#[test]
fn the_end_of_a_frozen_pod_is_seen() {
    let ends: [fn(&mut PodFacts); 4] = [
        |pod| pod.phase = Phase::Succeeded,
        |pod| pod.phase = Phase::Failed,
        |pod| pod.deleting = true,
        |pod| pod.ips = Box::default(),
    ];
    for spoilt in [
        ("paused", "true"),
        ("paused", "what"),
        ("service", "api,No_Name"),
        ("port.web", "1"),
    ] {
        for end in ends {
            let facts = || {
                let pod = pod("p").lictor(spoilt.0, spoilt.1);
                pod.lictor("terminating", "Deregister")
            };
            let owner = pod_owner("p");
            let gone = after_change(
                &mut index(),
                &owner,
                facts().facts(),
                facts().change(end).facts(),
            );
            assert_eq!(gone, Some(Absence::Seen), "{spoilt:?}");
            let mut index = index();
            index.watches.broken(Kind::Pod, "timeout".to_owned());
            let gone = after_change(
                &mut index,
                &owner,
                facts().facts(),
                facts().change(end).facts(),
            );
            assert_eq!(gone, Some(Absence::Found), "{spoilt:?}");
        }
    }
    // Frozen by its registration.
    for end in ends {
        let deregister = |spec: &mut InstanceSpec| spec.terminating = Terminating::Deregister;
        let mut index = index();
        let content = paused(Some(claims("web", deregister)));
        register(&mut index, with_content(content, registration("r", "web")));
        let owner = registration("r", "web").owner();
        let gone = after_change(
            &mut index,
            &owner,
            web("p").facts(),
            web("p").change(end).facts(),
        );
        assert_eq!(gone, Some(Absence::Seen));
    }
}

#[test]
fn what_a_mended_pod_lets_go_is_seen() {
    let owner = pod_owner("p");
    for spoilt in [
        ("paused", "true"),
        ("service", "api,No_Name"),
        ("port.web", "1"),
    ] {
        let facts = pod("p").lictor(spoilt.0, spoilt.1).facts();
        let mended = pod("p").lictor("service", "api").facts();
        let gone = after_change(&mut index(), &owner, facts, mended);
        assert_eq!(gone, Some(Absence::Seen), "{spoilt:?}");
    }
    // What it held for an owner that no list has brought may only be missing from view.
    let of_registration = registration("r", "web").owner();
    let mended = || (web("p").lictor("paused", "true").facts(), web("p").facts());
    let (before, after) = mended();
    let gone = after_change(&mut index(), &of_registration, before, after);
    assert_eq!(gone, Some(Absence::Found));
    let mut index = index();
    register(&mut index, registration("r", "other"));
    let (before, after) = mended();
    let gone = after_change(&mut index, &of_registration, before, after);
    assert_eq!(gone, Some(Absence::Seen));
}

#[test]
fn what_a_registration_lets_go_once_it_is_not_frozen_is_seen() {
    for content in [paused(None), Content::Invalid("?".to_owned())] {
        let mut index = index();
        apply(&mut index, web("p").facts());
        register(&mut index, with_content(content, registration("r", "web")));
        let touched = register(&mut index, registration("r", "other"));
        let (owner, name) = (registration("r", "web").owner(), Text::from("p"));
        let held = held(&owner, "web", Some(&name));
        withdraw(&mut index, &touched, &key("web", "p"), &held);
        let resolved = index.resolve(&key("web", "p"), Some(&held));
        assert_eq!(absence(&resolved), Some(Absence::Seen));
    }
}

#[test]
fn what_waits_for_another_reason_or_is_kept_is_not_withdrawn() {
    // Found missing: the list of services is spoilt, and the entry is of no object that is known.
    let owner = registration("r", "web").owner();
    let facts = || pod("p").lictor("service", "api,No_Name");
    let changes: [fn(&mut PodFacts); 2] =
        [|pod| pod.deleting = true, |pod| pod.ready = Tristate::False];
    for change in changes {
        let after = facts()
            .lictor("terminating", "Deregister")
            .change(change)
            .facts();
        let gone = after_change(&mut index(), &owner, facts().facts(), after);
        assert_eq!(gone, Some(Absence::Found));
    }
    // Kept still: and so a list that does not bring the pod finds that.
    let owner = pod_owner("p");
    let facts = || pod("p").lictor("paused", "true");
    for change in changes {
        let mut index = index();
        let after = facts().change(change).facts();
        let gone = after_change(&mut index, &owner, facts().facts(), after);
        assert_eq!(gone, None);
        assert!(index.withdrawn.is_empty());
        relist(&mut index, Vec::new());
        let resolved = index.resolve(&key("web", "p"), None);
        assert_eq!(absence(&resolved), Some(Absence::Found));
    }
}

// === lists ===

#[test]
fn a_list_that_brings_the_same_touches_nothing() {
    let mut index = index();
    let facts = || pod("p").lictor("service", "web").facts();
    apply(&mut index, facts());
    let touched = relist(&mut index, vec![facts()]);
    assert!(touched.keys.is_empty() && touched.holdings.is_empty());
    assert_eq!(
        holder(&index, &key("web", "p")).as_deref(),
        Some("p"),
        "it is there still"
    );
}

#[test]
fn a_list_that_begins_anew_forgets_what_the_broken_one_brought() {
    let mut index = index();
    let mut touched = Touched::default();
    index.begin_list(Kind::Pod);
    index.apply_pod(pod("p").lictor("service", "web").facts(), &mut touched);
    relist(&mut index, Vec::new());
    assert_eq!(holder(&index, &key("web", "p")), None);
}

/// Two pods on two nodes; nodes are listed anew, and `n1` is not among them.
fn lost() -> (Index, NodeName) {
    let mut index = index();
    let mut touched = Touched::default();
    for name in ["n1", "n2"] {
        index.apply_node(node(name), &mut touched);
    }
    apply(&mut index, pod("p").lictor("service", "web").facts());
    index.begin_list(Kind::Node);
    index.apply_node(node("n2"), &mut touched);
    let mut touched = Touched::default();
    index.end_list(Kind::Node, &mut touched);
    let name = key("web", "p").node;
    assert!(touched.keys.contains(&Key::Node(name.clone())));
    (index, name)
}

fn node_check(index: &Index, name: &NodeName) -> Option<Health> {
    let node = index.resolve_node(name, None)?;
    node.check.map(|check| check.status)
}

#[test]
fn a_node_that_a_list_does_not_bring_is_gone_once_pods_were_listed_after_it() {
    let (mut index, name) = lost();
    let there = || vec![pod("p").lictor("service", "web").facts()];
    assert!(index.misses_node(&"n1".into()) && !index.is_loss_confirmed(&"n1".into()));
    assert_eq!(node_check(&index, &name), None, "pods may be another's");
    relist(&mut index, there());
    let check = index.resolve_node(&name, None).unwrap().check.unwrap();
    assert_eq!(check.status, Health::Critical);
    assert!(check.output.contains("does not exist"));
    // It stays so, whatever is listed when.
    index.begin_list(Kind::Node);
    assert_eq!(node_check(&index, &name), None);
    index.end_list(Kind::Node, &mut Touched::default());
    assert_eq!(node_check(&index, &name), Some(Health::Critical));
    // And ends with its return.
    index.apply_node(node("n1"), &mut Touched::default());
    assert!(!index.misses_node(&"n1".into()));
    assert_eq!(node_check(&index, &name), Some(Health::Passing));
}

#[test]
fn pods_that_go_with_their_nodes_leave_no_node_gone() {
    let (mut index, name) = lost();
    relist(&mut index, Vec::new());
    assert!(!index.misses_node(&"n1".into()));
    assert_eq!(index.missed_nodes().count(), 0);
    let observed = Node {
        address: "192.168.0.9".into(),
        meta: Pairs::default(),
    };
    let wanted = index.resolve_node(&name, Some(&observed)).unwrap();
    assert_eq!(wanted.check, None);
}

#[test]
fn a_list_of_pods_that_began_before_the_nodes_were_listed_tells_nothing() {
    let mut index = index();
    let mut touched = Touched::default();
    index.apply_node(node("n1"), &mut touched);
    apply(&mut index, pod("p").lictor("service", "web").facts());
    let name = key("web", "p").node;
    index.begin_list(Kind::Node);
    index.begin_list(Kind::Pod);
    index.end_list(Kind::Node, &mut touched);
    index.apply_pod(pod("p").lictor("service", "web").facts(), &mut touched);
    index.end_list(Kind::Pod, &mut touched);
    assert_eq!(node_check(&index, &name), None);
    assert_eq!(index.missed_nodes().collect::<Vec<_>>(), [Text::from("n1")]);
}

#[test]
fn a_node_that_was_never_there_is_gone_once_pods_were_listed_again() {
    let mut index = Index::new("a".parse().unwrap(), GlobSet::empty());
    let there = || pod("p").lictor("service", "web").facts();
    for kind in Kind::ALL {
        index.begin_list(kind);
    }
    apply(&mut index, there());
    for kind in Kind::ALL {
        index.end_list(kind, &mut Touched::default());
    }
    let name = key("web", "p").node;
    assert_eq!(node_check(&index, &name), None);
    relist(&mut index, vec![there()]);
    assert_eq!(node_check(&index, &name), Some(Health::Critical));
}

#[test]
fn a_node_that_was_seen_going_is_gone_at_once_and_stays_so() {
    let mut index = index();
    let mut touched = Touched::default();
    index.apply_node(node("n1"), &mut touched);
    apply(&mut index, pod("p").lictor("service", "web").facts());
    let name = key("web", "p").node;
    index.remove_node(&"n1".into(), &mut touched);
    assert!(!index.misses_node(&"n1".into()), "it is not missed");
    assert_eq!(node_check(&index, &name), Some(Health::Critical));
    index.begin_list(Kind::Node);
    index.end_list(Kind::Node, &mut touched);
    assert_eq!(node_check(&index, &name), Some(Health::Critical));
}

// === moves and names ===

#[test]
fn a_pod_of_the_same_name_elsewhere_leaves_its_old_key() {
    let mut index = index();
    apply(&mut index, pod("p").lictor("service", "web").facts());
    let moved = pod("p")
        .lictor("service", "web")
        .change(|pod| pod.node = Some("n2".into()));
    let touched = apply(&mut index, moved.facts());
    for key in [key("web", "p"), key_on("n2", "web", "p")] {
        assert!(touched.keys.contains(&Key::Instance(key)));
    }
    let resolved = index.resolve(&key("web", "p"), None);
    assert_eq!(absence(&resolved), Some(Absence::Seen));
    assert!(!index.claimants(&key_on("n2", "web", "p")).is_empty());
}

#[test]
fn a_paused_pod_that_moved_keeps_nothing_where_it_was() {
    let mut index = index();
    apply(&mut index, pod("p").lictor("service", "web").facts());
    let moved = pod("p")
        .lictor("paused", "true")
        .change(|pod| pod.node = Some("n2".into()));
    apply(&mut index, moved.facts());
    let (owner, name) = (pod_owner("p"), Text::from("p"));
    let held = held(&owner, "web", Some(&name));
    let resolved = index.resolve(&key("web", "p"), Some(&held));
    assert_eq!(absence(&resolved), Some(Absence::Seen));
}

#[test]
fn a_selector_that_changes_moves_its_claims() {
    let mut index = index();
    apply(&mut index, web("p").facts());
    apply(&mut index, pod("q").label("app", "www").facts());
    register(&mut index, registration("r", "web"));
    let mut changed = registration("r", "web");
    if let Content::Valid(claims) = &mut changed.content {
        let label = ("app".to_owned(), "www".to_owned());
        claims.source = Source::Pods(LabelSelector {
            match_labels: [label].into(),
            ..LabelSelector::default()
        });
    }
    let touched = register(&mut index, changed);
    assert!(
        touched
            .registrations
            .contains(&registration("r", "web").owner())
    );
    assert_eq!(holder(&index, &key("web", "p")), None);
    assert_eq!(holder(&index, &key("web", "q")).as_deref(), Some("r"));
}

#[test]
fn a_service_that_is_renamed_while_a_pod_is_invalid_keeps_that_pods_name() {
    let mut index = index();
    register(&mut index, registration("r", "old"));
    apply(&mut index, web("p").lictor("port", "70000").facts());
    register(&mut index, registration("r", "new"));
    let (owner, name) = (registration("r", "new").owner(), Text::from("p"));
    let held = held(&owner, "old", Some(&name));
    let resolved = index.resolve(&key("old", "p"), Some(&held));
    assert!(matches!(freeze(resolved), Some(Freeze::Invalid(_))));
    // Mended, the old name is let go, and what Consul holds under it is looked at.
    let touched = apply(&mut index, web("p").facts());
    assert!(holds(&touched, &pod_owner("p")));
    let resolved = index.resolve(&key("old", "p"), Some(&held));
    assert!(absence(&resolved).is_some());
}

#[test]
fn a_pod_that_kept_an_old_name_and_moved_is_looked_at_where_it_was() {
    let mut index = index();
    apply(
        &mut index,
        pod("p")
            .lictor("service", "web")
            .lictor("port", "0")
            .facts(),
    );
    let moved = pod("p")
        .lictor("service", "web")
        .change(|pod| pod.node = Some("n2".into()));
    let touched = apply(&mut index, moved.facts());
    let old = key("web", "p").node;
    assert!(
        touched
            .holdings
            .iter()
            .any(|held| held.node.as_ref() == Some(&old))
    );
}

#[test]
fn an_endpoint_is_claimed_on_the_external_node() {
    let mut index = index();
    let endpoint = |name: &str| Endpoint {
        name: name.into(),
        address: "db.example".into(),
        port: 5432,
        tags: Vec::new(),
        meta: Vec::new(),
    };
    let with = |endpoints: &[&str]| {
        let claims = Claims {
            service: "db".parse().unwrap(),
            spec: InstanceSpec::default(),
            source: Source::Endpoints(endpoints.iter().map(|name| endpoint(name)).collect()),
            adopt: false,
            protocol: None,
            queries: Vec::new(),
            sidecar: None,
        };
        with_content(Content::Valid(claims), registration("r", "db"))
    };
    register(&mut index, with(&["one", "two"]));
    register(&mut index, with(&["two"]));
    let keys: Vec<String> = index.claimed_keys().map(|key| key.to_string()).collect();
    assert_eq!(
        keys,
        ["lictor-a-external", "lictor-a-external/a.shop.db.r.two"]
    );
    let cluster = "a".parse().unwrap();
    let gone = InstanceKey {
        node: NodeName::external(&cluster),
        id: InstanceId::of_endpoint(&cluster, "shop", &"db".parse().unwrap(), "r", "one"),
    };
    assert_eq!(absence(&index.resolve(&gone, None)), Some(Absence::Seen));
}

// === seniority ===

#[test]
fn the_older_holds_and_of_one_age_the_lesser_uid() {
    let mut index = index();
    apply(&mut index, web("p").facts());
    let of = |name: &str, created, uid: &str| Registration {
        created,
        uid: uid.into(),
        ..registration(name, "web")
    };
    register(&mut index, of("young", 300, "a"));
    register(&mut index, of("old", 200, "c"));
    assert_eq!(holder(&index, &key("web", "p")).as_deref(), Some("old"));
    register(&mut index, of("twin", 200, "b"));
    assert_eq!(holder(&index, &key("web", "p")).as_deref(), Some("twin"));
    let Resolved::Claimed(claim) = index.resolve(&key("web", "p"), None) else {
        panic!("nobody claims it");
    };
    let losers: Vec<_> = claim.losers.iter().map(|loser| &*loser.name).collect();
    assert_eq!(losers, ["old", "young"]);
    let mut touched = Touched::default();
    index.remove_registration(&"shop".into(), &"twin".into(), true, &mut touched);
    assert!(touched.keys.contains(&Key::Instance(key("web", "p"))));
    assert_eq!(holder(&index, &key("web", "p")).as_deref(), Some("old"));
}

#[test]
fn a_registration_goes_before_an_annotation_even_an_older_one() {
    let mut index = index();
    let annotated = web("p").lictor("service", "web").lictor("port.web", "9000");
    apply(&mut index, annotated.facts());
    register(
        &mut index,
        Registration {
            created: 900,
            ..registration("r", "web")
        },
    );
    let (owner, name) = (pod_owner("p"), Text::from("p"));
    let held = held(&owner, "web", Some(&name));
    let Resolved::Claimed(claim) = index.resolve(&key("web", "p"), Some(&held)) else {
        panic!("nobody claims it");
    };
    // In place, although the annotation for this service is the pod's own.
    assert_eq!(&*claim.owner.name, "r");
    assert!(claim.losers.is_empty());
    assert!(matches!(claim.shape, Shape::Valid(_)));
}

#[test]
fn nobody_takes_over_what_the_holder_removes_at_the_end() {
    let mut index = index();
    let mut older = registration("r", "web");
    older.created = 1;
    if let Content::Valid(claims) = &mut older.content {
        claims.spec.terminating = Terminating::Deregister;
    }
    register(&mut index, older);
    register(&mut index, registration("s", "web"));
    apply(&mut index, web("p").facts());
    apply(
        &mut index,
        web("p").change(|pod| pod.deleting = true).facts(),
    );
    let resolved = index.resolve(&key("web", "p"), None);
    assert_eq!(absence(&resolved), Some(Absence::Seen));
}

#[test]
fn a_frozen_holder_keeps_its_entry_from_a_valid_claimant() {
    let mut index = index();
    apply(&mut index, web("p").facts());
    register(
        &mut index,
        with_content(Content::Invalid("?".to_owned()), registration("r", "web")),
    );
    register(&mut index, registration("s", "web"));
    let (owner, name) = (registration("r", "web").owner(), Text::from("p"));
    let held = held(&owner, "web", Some(&name));
    let Resolved::Claimed(claim) = index.resolve(&key("web", "p"), Some(&held)) else {
        panic!("nobody claims it");
    };
    assert_eq!((&*claim.owner.name, claim.losers.len()), ("r", 1));
    // Where Consul holds nothing of the frozen one, the valid one gets it.
    let resolved = index.resolve(&key("web", "p"), None);
    assert_eq!(freeze(resolved), None);
}

// === namespaces, nodes, problems ===

#[test]
fn an_excluded_namespace_claims_and_keeps_nothing() {
    let mut globs = globset::GlobSetBuilder::new();
    globs.add(globset::Glob::new("sh*").unwrap());
    let mut index = Index::new("a".parse().unwrap(), globs.build().unwrap());
    apply(&mut index, pod("p").lictor("service", "web,No").facts());
    register(
        &mut index,
        with_content(paused(None), registration("r", "web")),
    );
    assert_eq!(index.claimed_keys().count(), 0);
    assert_eq!(index.problems(&pod_owner("p")), &[] as &[String]);
    let (owner, name) = (registration("r", "web").owner(), Text::from("p"));
    let held = held(&owner, "web", Some(&name));
    assert!(absence(&index.resolve(&key("web", "p"), Some(&held))).is_some());
}

#[test]
fn a_node_that_is_gone_keeps_its_address_and_gets_its_marks_back() {
    let mut index = index();
    apply(&mut index, pod("p").lictor("service", "web").facts());
    let erased = Node {
        address: "192.168.0.9".into(),
        meta: [(Text::from(marks::NODE_ZONE), Text::from("z1"))]
            .into_iter()
            .collect(),
    };
    let name = key("web", "p").node;
    let wanted = index.resolve_node(&name, Some(&erased)).unwrap().node;
    assert_eq!(&*wanted.address, "192.168.0.9");
    for (mark, value) in [(marks::CLUSTER, "a"), (marks::NODE_ZONE, "z1")] {
        assert_eq!(wanted.meta.get(mark).map(|found| &**found), Some(value));
    }
    // And then it stays as it is.
    let again = index.resolve_node(&name, Some(&wanted)).unwrap().node;
    assert_eq!(again, wanted);
}

#[test]
fn problems_come_and_go_with_what_causes_them() {
    let mut index = index();
    let touched = apply(&mut index, web("p").lictor("port.web", "9000").facts());
    assert!(touched.problems.contains(&pod_owner("p")));
    assert!(index.problems(&pod_owner("p"))[0].contains("no service \"web\""));
    let touched = register(&mut index, registration("r", "web"));
    assert!(touched.problems.contains(&pod_owner("p")));
    assert_eq!(index.problem_count(), 0);
    remove(&mut index, "p");
    assert_eq!(index.problem_count(), 0);
}

#[test]
fn a_frozen_registration_still_has_its_service() {
    let mut index = index();
    apply(&mut index, web("p").lictor("port.web", "9000").facts());
    let unknown = Content::Invalid("?".to_owned());
    for content in [paused(Some(claims("web", |_| {}))), paused(None), unknown] {
        assert_eq!(index.problems(&pod_owner("p")).len(), 1);
        register(&mut index, with_content(content, registration("r", "web")));
        assert_eq!(index.problems(&pod_owner("p")), &[] as &[String]);
        let mut touched = Touched::default();
        index.remove_registration(&"shop".into(), &"r".into(), true, &mut touched);
    }
    // Another service is none of its.
    let other = paused(Some(claims("other", |_| {})));
    register(&mut index, with_content(other, registration("r", "web")));
    assert_eq!(index.problems(&pod_owner("p")).len(), 1);
}

#[test]
fn the_annotation_of_a_pod_does_not_contest_its_frozen_registration() {
    for content in [paused(None), Content::Invalid("?".to_owned())] {
        let mut index = index();
        apply(&mut index, web("p").lictor("service", "web").facts());
        register(&mut index, with_content(content, registration("r", "web")));
        register(&mut index, registration("s", "other"));
        let (owner, name) = (registration("r", "web").owner(), Text::from("p"));
        let held = held(&owner, "web", Some(&name));
        let Resolved::Claimed(claim) = index.resolve(&key("web", "p"), Some(&held)) else {
            panic!("nobody claims it");
        };
        assert_eq!((claim.owner, claim.losers), (owner, Vec::new()));
    }
}

#[test]
fn who_is_to_mend_an_instance_is_whose_words_are_wrong() {
    let mut index = index();
    let mistake = |spec: &mut InstanceSpec| spec.tags = vec!["${pod.nope}".into()];
    let content = Content::Valid(claims("web", mistake));
    register(&mut index, with_content(content, registration("r", "web")));
    let owner = registration("r", "web").owner();
    for (annotation, at_fault) in [
        (("weight", "5"), owner.clone()),
        (("weight", "0"), pod_owner("p")),
        (("meta", "a=${pod.nope}"), pod_owner("p")),
        (("port.other", "5"), owner.clone()),
    ] {
        let (annotation, value) = annotation;
        apply(&mut index, web("p").lictor(annotation, value).facts());
        let found = index.at_fault(&key("web", "p"), &owner);
        assert_eq!(found, at_fault, "{annotation}={value}");
    }
    assert_eq!(
        index.at_fault(&key("web", "p"), &pod_owner("p")),
        pod_owner("p")
    );
}

#[test]
fn a_node_whose_name_is_like_one_of_consul_k8s_gets_nothing() {
    let mut index = index();
    let facts = pod("p")
        .lictor("service", "web")
        .change(|pod| pod.node = Some("edge-virtual".into()));
    apply(&mut index, facts.facts());
    let key = key_on("edge-virtual", "web", "p");
    let Some(Freeze::Invalid(problems)) = freeze(index.resolve(&key, None)) else {
        panic!("it would be registered");
    };
    assert!(problems[0].contains("\"edge-virtual\""), "{problems:?}");
    assert_eq!(index.resolve_node(&key.node, None), None);
}

#[test]
fn a_registration_that_changes_touches_its_own_service_only() {
    let mut index = index();
    index.apply_node(node("n1"), &mut Touched::default());
    index.apply_pod(web("p").facts(), &mut Touched::default());
    for service in ["a", "b"] {
        register(&mut index, registration(service, service));
    }
    let mut touched = Touched::default();
    index.apply_registration(registration("b", "c"), &mut touched);
    let keys: Vec<Key> = touched.keys.into_iter().collect();
    let expected = ["b", "c"].map(|service| Key::Instance(key(service, "p")));
    assert_eq!(keys, expected);
}

#[test]
fn a_pod_is_known_as_it_was_seen_only_with_its_node() {
    let mut index = index();
    let touched = &mut Touched::default();
    let (known, n1) = (pod("p").facts(), node("n1"));
    index.apply_pod(known.clone(), touched);
    let owner = Owner::pod(&"shop".into(), &"p".into());
    assert!(index.agrees(&owner, Some(&known), None));
    assert!(!index.agrees(&owner, Some(&known), Some(&n1)));
    index.apply_node(n1.clone(), touched);
    assert!(index.agrees(&owner, Some(&known), Some(&n1)));
    let unready = pod("p").not_ready("app", "").facts();
    let lost = NodeFacts {
        ready: Tristate::Unknown,
        ..n1.clone()
    };
    for (pod, node) in [
        (None, None),
        (Some(&unready), Some(&n1)),
        (Some(&known), Some(&lost)),
        (Some(&known), None),
    ] {
        assert!(!index.agrees(&owner, pod, node));
    }
    let gone = Owner::pod(&"shop".into(), &"q".into());
    assert!(!index.agrees(&gone, None, None));
}

/// Where only namespaces are watched, pods alone say where a node is.
#[test]
fn a_node_is_where_its_pods_say_where_nodes_are_not_watched() {
    let mut index =
        Index::new("a".parse().unwrap(), GlobSet::empty()).in_namespaces(["shop".into()].into());
    let name = key("web", "web-0").node;
    let mut facts = pod("web-0").lictor("service", "web").facts();
    facts.host_ip = None;
    let mut touched = Touched::default();
    index.apply_pod(facts.clone(), &mut touched);
    assert_eq!(index.resolve_node(&name, None), None);
    assert!(!index.has_address(&name));

    for address in ["fd00::7", "192.168.0.9"] {
        facts.host_ip = Some(address.into());
        let mut touched = Touched::default();
        index.apply_pod(facts.clone(), &mut touched);
        assert!(touched.keys.contains(&Key::Node(name.clone())));
        let wanted = index.resolve_node(&name, None).unwrap();
        assert_eq!((&*wanted.node.address, &wanted.check), (address, &None));
        // What nodes had said before is no part of it.
        let zone = (Text::from(marks::NODE_ZONE), Text::from("north-1"));
        let meta = wanted.node.meta.iter();
        let meta = meta.map(|(key, value)| (key.clone(), value.clone()));
        let before = Node {
            address: "192.168.7.1".into(),
            meta: meta.chain([zone]).collect(),
        };
        assert_eq!(index.resolve_node(&name, Some(&before)), Some(wanted));
    }
    // One that cannot tell any more says nothing else.
    facts.host_ip = None;
    let there = index.resolve_node(&name, None).unwrap().node;
    index.apply_pod(facts, &mut Touched::default());
    let kept = index.resolve_node(&name, Some(&there)).unwrap();
    assert_eq!(kept.node, there);
}

/// What holds something in a namespace that is not watched may still ask for it: nothing takes it over.
#[test]
fn what_is_not_watched_keeps_what_it_holds() {
    let index =
        Index::new("a".parse().unwrap(), GlobSet::empty()).in_namespaces(["shop".into()].into());
    for kind in [
        OwnerKind::ServiceRegistration,
        OwnerKind::Intention,
        OwnerKind::PreparedQuery,
    ] {
        let of = |namespace: &str| Owner {
            kind,
            namespace: namespace.into(),
            name: "it".into(),
        };
        assert_eq!(index.freeze_of(&of("web")), Some(Freeze::NotWatched));
        assert_eq!(index.freeze_of(&of("shop")), None);
    }
}
