//! What events of Kubernetes do to the index.

use crate::desired::index::{Index, Touched};
use crate::desired::intention::Intention;
use crate::desired::query::PreparedQuery;
use crate::desired::registration::Registration;
use crate::k8s::{Change, WatchEvent};
use crate::model::kind::Kind;

/// Puts an event into the index.
pub fn feed(index: &mut Index, change: Change, touched: &mut Touched) {
    match change {
        Change::Pod(event) => put(
            index,
            Kind::Pod,
            event,
            touched,
            |index, object, touched| match object {
                Object::Applied(pod) => index.apply_pod(pod, touched),
                Object::Deleted(pod, _) => index.remove_pod(&pod.namespace, &pod.name, touched),
            },
        ),
        Change::Node(event) => put(
            index,
            Kind::Node,
            event,
            touched,
            |index, object, touched| match object {
                Object::Applied(node) => index.apply_node(node, touched),
                Object::Deleted(node, _) => index.remove_node(&node.name, touched),
            },
        ),
        Change::Registration(event) => put(
            index,
            Kind::Registration,
            event,
            touched,
            |index, object, touched| match object {
                Object::Applied(object) => {
                    index.apply_registration(Registration::of(&object), touched);
                }
                Object::Deleted(object, by_itself) => {
                    let (namespace, name) = (&object.namespace, &object.name);
                    index.remove_registration(namespace, name, by_itself, touched);
                }
            },
        ),
        Change::Intention(event) => put(
            index,
            Kind::Intention,
            event,
            touched,
            |index, object, touched| match object {
                Object::Applied(object) => {
                    index.apply_intention(Intention::of(&object), touched);
                }
                Object::Deleted(object, by_itself) => {
                    let (namespace, name) = (&object.namespace, &object.name);
                    index.remove_intention(namespace, name, by_itself, touched);
                }
            },
        ),
        Change::PreparedQuery(event) => put(
            index,
            Kind::PreparedQuery,
            event,
            touched,
            |index, object, touched| match object {
                Object::Applied(object) => index.apply_query(PreparedQuery::of(&object), touched),
                Object::Deleted(object, by_itself) => {
                    let (namespace, name) = (&object.namespace, &object.name);
                    index.remove_query(namespace, name, by_itself, touched);
                }
            },
        ),
        Change::Namespace(event) => {
            put(
                index,
                Kind::Namespace,
                event,
                touched,
                |index, object, _| match object {
                    Object::Applied(facts) => index.apply_namespace(facts),
                    Object::Deleted(facts, _) => index.remove_namespace(&facts.name),
                },
            );
            index.renew_admission(Kind::Namespace, touched);
        }
        Change::Policy(event) => {
            put(
                index,
                Kind::Policy,
                event,
                touched,
                |index, object, _| match object {
                    Object::Applied(object) => {
                        if let Some(why) = index.apply_policy(&object) {
                            tracing::error!(policy = &*object.name, "not understood: {why}");
                        }
                    }
                    Object::Deleted(object, _) => index.remove_policy(&object.name),
                },
            );
            index.renew_admission(Kind::Policy, touched);
        }
        // It claims nothing.
        Change::Lease(_) => {}
    }
}

/// A change of one object.
enum Object<T> {
    Applied(T),
    /// Whether by itself, too.
    Deleted(T, bool),
}

fn put<T>(
    index: &mut Index,
    kind: Kind,
    event: WatchEvent<T>,
    touched: &mut Touched,
    change: impl Fn(&mut Index, Object<T>, &mut Touched),
) {
    match event {
        WatchEvent::Listing => index.begin_list(kind),
        WatchEvent::Page(page) => {
            for object in page {
                change(index, Object::Applied(object), touched);
            }
        }
        WatchEvent::Listed { .. } => index.end_list(kind, touched),
        WatchEvent::Applied(object) => change(index, Object::Applied(object), touched),
        WatchEvent::Deleted { object, by_itself } => {
            change(index, Object::Deleted(object, by_itself), touched);
        }
        WatchEvent::Broken(broken) => index.watches.broken(kind, broken.message.to_string()),
        WatchEvent::Healthy => index.watches.healthy(kind),
    }
}
