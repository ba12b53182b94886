//! What passes from an object of one kind to one of another, each kind being watched on its own.

use super::state::{instance, ready};
use super::*;
use crate::model::key::Key;
use crate::observed::entry::{ObservedInstance, wire_service};
use crate::plan::{self, Step};

fn plain() -> Change {
    let pod = pod("p").label("app", "web").facts();
    Change::Pod(WatchEvent::Applied(pod))
}

fn annotated() -> Change {
    let pod = pod("p").label("app", "web").lictor("service", "web");
    Change::Pod(WatchEvent::Applied(pod.facts()))
}

fn no_pod() -> Change {
    Change::Pod(WatchEvent::Deleted {
        object: web("p", "n1"),
        by_itself: true,
    })
}

/// A registration of the service `web` that selects the pod.
fn registration() -> RegistrationObject {
    let spec = json!({"selector": {"matchLabels": {"app": "web"}}});
    object("web", spec)
}

fn selected() -> Change {
    Change::Registration(WatchEvent::Applied(registration()))
}

fn no_registration() -> Change {
    Change::Registration(WatchEvent::Deleted {
        object: registration(),
        by_itself: true,
    })
}

fn key() -> Key {
    Key::Instance(instance("p"))
}

fn step(engine: &Engine) -> Step {
    plan::decide(&key(), &engine.index, &engine.mirror, &engine.rules).step
}

fn take(engine: &mut Engine, change: Change) {
    engine.take(KubeEvent {
        at: Instant::now(),
        scope: None,
        change,
    });
}

/// An engine whose Consul has the instance as this change asks for it.
fn registered(change: Change) -> Engine {
    let mut engine = ready();
    take(&mut engine, plain());
    take(&mut engine, change);
    let Step::Put(write) = step(&engine) else {
        panic!("not planned")
    };
    let (service, _) = write.service.unwrap();
    let there = ObservedInstance::of(&wire_service(&instance("p"), &service));
    engine.mirror.wrote_instance(&instance("p"), Some(there));
    engine.dirty.take_key(&key());
    engine
}

#[tokio::test]
async fn what_passes_between_kinds_whose_watches_are_apart_stays() {
    let annotation_goes_first = [annotated(), plain(), selected()];
    let registration_goes_first = [selected(), no_registration(), annotated()];
    for [before, lost, found] in [annotation_goes_first, registration_goes_first] {
        let mut engine = registered(before);
        take(&mut engine, lost);
        assert!(matches!(step(&engine), Step::Remove(_)));
        assert!(engine.dirty.is_parked(&key()));
        assert!(engine.dirty.take_key(&key()).is_none());
        take(&mut engine, found);
        assert!(matches!(step(&engine), Step::Put(write) if write.service.is_some()));
        assert!(!engine.dirty.is_parked(&key()));
        assert!(engine.dirty.take_key(&key()).is_some());
    }
}

#[tokio::test]
async fn what_is_gone_itself_waits_for_nothing() {
    let mut engine = registered(annotated());
    take(&mut engine, no_pod());
    assert!(matches!(step(&engine), Step::Remove(_)));
    assert!(engine.dirty.take_key(&key()).is_some());
}

#[tokio::test]
async fn a_pod_that_gives_up_its_annotation_for_nothing_goes() {
    let bed = Bed::start(Consul::default()).await;
    bed.list(Change::Pod, vec![web("p", "n1")]).await;
    bed.until("it is there", |consul| consul.services.len() == 1)
        .await;
    bed.send(plain()).await;
    bed.until("it is gone", |consul| consul.services.is_empty())
        .await;
    bed.end().await;
}
