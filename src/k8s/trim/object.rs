//! Objects of our own kinds.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Meta, Texts, Trim};
use crate::api::object::Object;
use crate::api::{
    Intention, IntentionObject, PolicyObject, PreparedQuery, PreparedQueryObject,
    RegistrationObject, RegistrationPolicy, ServiceRegistration,
};
use crate::desired::annotations::DOMAIN;
use crate::model::facts::PodFacts;
use crate::model::text::Text;

macro_rules! ours {
    ($($object:ty: $resource:ty),+ $(,)?) => {
        $(impl Trim for $object {
            type Resource = $resource;
            // The API server judges what is written now, not what it stored under another schema:
            // what cannot be decoded must show as such, and must not hide the others. There are few
            // of these objects, so the detour over a tree of values costs nothing.
            type Spec<'de> = Value;
            type Status<'de> = Value;

            fn trim(meta: &Meta<'_>, spec: Value, status: Value, texts: &mut Texts) -> Self {
                object(meta, spec, status, texts)
            }
        })+
    };
}

ours! {
    RegistrationObject: ServiceRegistration,
    IntentionObject: Intention,
    PreparedQueryObject: PreparedQuery,
    PolicyObject: RegistrationPolicy,
}

fn object<S: DeserializeOwned, T: DeserializeOwned>(
    meta: &Meta<'_>,
    spec: Value,
    status: Value,
    texts: &mut Texts,
) -> Object<S, T> {
    let own = |key: &str, _: &str| {
        key.starts_with(DOMAIN)
            .then_some(PodFacts::ANNOTATION_BYTES)
    };
    Object {
        namespace: texts.share(&meta.namespace.0),
        name: Text::from(&*meta.name.0),
        uid: Text::from(&*meta.uid.0),
        created: meta.created(),
        generation: meta.generation.0,
        annotations: meta.annotations(own, texts),
        spec: decoded(spec).map_err(Text::from),
        status: serde_json::from_value(status).ok(),
    }
}

fn decoded<S: DeserializeOwned>(spec: Value) -> Result<Box<S>, String> {
    // serde would take a list for the fields in their order.
    if !spec.is_object() {
        return Err("spec: not an object".to_owned());
    }
    serde_path_to_error::deserialize(spec).map_err(|error| match error.path().iter().next() {
        Some(_) => format!("spec.{}: {}", error.path(), error.inner()),
        None => format!("spec: {}", error.inner()),
    })
}
