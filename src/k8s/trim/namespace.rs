//! Namespaces.

use k8s_openapi::api::core::v1::Namespace;
use serde::de::IgnoredAny;

use super::{Meta, Texts, Trim};
use crate::model::facts::NamespaceFacts;

impl Trim for NamespaceFacts {
    type Resource = Namespace;
    type Spec<'de> = IgnoredAny;
    type Status<'de> = IgnoredAny;

    fn trim(meta: &Meta<'_>, _: IgnoredAny, _: IgnoredAny, texts: &mut Texts) -> Self {
        Self {
            name: texts.share(&meta.name.0),
            uid: texts.share(&meta.uid.0),
            created: meta.created(),
            labels: meta
                .labels
                .0
                .iter()
                .map(|(key, value)| (texts.share(key), texts.share(value)))
                .collect(),
        }
    }
}
