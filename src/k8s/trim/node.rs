//! Nodes.

use k8s_openapi::api::core::v1::Node;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::lenient::{Obj, Seq, Str};
use super::pod::{Condition, ready};
use super::{Meta, Texts, Trim};
use crate::model::facts::NodeFacts;

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Status<'a> {
    #[serde(borrow)]
    addresses: Seq<Obj<Address<'a>>>,
    #[serde(borrow)]
    conditions: Seq<Obj<Condition<'a>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Address<'a> {
    #[serde(borrow)]
    r#type: Str<'a>,
    #[serde(borrow)]
    address: Str<'a>,
}

impl Trim for NodeFacts {
    type Resource = Node;
    type Spec<'de> = IgnoredAny;
    type Status<'de> = Obj<Status<'de>>;

    fn trim(
        meta: &Meta<'_>,
        _: IgnoredAny,
        Obj(status): Obj<Status<'_>>,
        texts: &mut Texts,
    ) -> Self {
        let internal = status
            .addresses
            .0
            .iter()
            .find(|Obj(address)| address.r#type.0 == "InternalIP");
        let label = |wanted: &str| {
            let found = meta
                .labels
                .0
                .iter()
                .find(|(key, value)| key == wanted && !value.is_empty());
            found.map(|(_, value)| &**value)
        };
        let (ready, ready_reason) = ready(&status.conditions);
        Self {
            name: texts.share(&meta.name.0),
            internal_ip: internal
                .and_then(|Obj(found)| found.address.some())
                .map(|ip| texts.share(ip)),
            ready,
            ready_reason: texts.share(ready_reason),
            region: label(REGION).map(|region| texts.share(region)),
            zone: label(ZONE).map(|zone| texts.share(zone)),
        }
    }
}
