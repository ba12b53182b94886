//! Leases.

use k8s_openapi::api::coordination::v1::Lease;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::lenient::{Obj, Str};
use super::{Meta, Texts, Trim};
use crate::model::facts::LeaseFacts;
use crate::model::text::Text;

/// By this annotation whoever renews a Lease can say that it is not well all the same.
const STATUS: &str = "lictor.io/status";
const CRITICAL: &str = "critical";

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec<'a> {
    #[serde(borrow)]
    renew_time: Str<'a>,
}

impl Trim for LeaseFacts {
    type Resource = Lease;
    type Spec<'de> = Obj<Spec<'de>>;
    type Status<'de> = IgnoredAny;

    fn trim(meta: &Meta<'_>, Obj(spec): Obj<Spec<'_>>, _: IgnoredAny, texts: &mut Texts) -> Self {
        let mut annotations = meta.annotations.0.iter();
        Self {
            namespace: texts.share(&meta.namespace.0),
            name: texts.share(&meta.name.0),
            // Another one each time.
            renewed: Text::from(&*spec.renew_time.0),
            critical: annotations.any(|(key, value)| key == STATUS && value == CRITICAL),
        }
    }
}
