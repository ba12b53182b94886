//! `ServiceRegistrations`.

use serde_json::Value;

use super::{Meta, Texts, Trim};
use crate::api::{RegistrationObject, ServiceRegistration, ServiceRegistrationSpec};
use crate::desired::annotations::DOMAIN;
use crate::model::facts::PodFacts;
use crate::model::text::Text;

impl Trim for RegistrationObject {
    type Resource = ServiceRegistration;
    // The API server judges what is written now, not what it stored under another schema: what
    // cannot be decoded must show as such, and must not hide the others. There are few of these
    // objects, so the detour over a tree of values costs nothing.
    type Spec<'de> = Value;
    type Status<'de> = Value;

    fn trim(meta: &Meta<'_>, spec: Value, status: Value, texts: &mut Texts) -> Self {
        let own = |key: &str, _: &str| {
            key.starts_with(DOMAIN)
                .then_some(PodFacts::ANNOTATION_BYTES)
        };
        Self {
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
}

fn decoded(spec: Value) -> Result<Box<ServiceRegistrationSpec>, String> {
    // serde would take a list for the fields in their order.
    if !spec.is_object() {
        return Err("spec: not an object".to_owned());
    }
    serde_json::from_value(spec).map_err(|error| format!("spec: {error}"))
}
