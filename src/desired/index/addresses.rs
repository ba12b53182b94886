//! Which pod has which address.

use std::collections::HashMap;

use super::Touched;
use crate::desired::health;
use crate::desired::table::ObjectName;
use crate::model::facts::PodFacts;
use crate::model::text::Text;

/// The addresses of live pods that have a network of their own.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// For a moment two pods can show one address.
    pods: HashMap<Text, Vec<ObjectName>>,
}

impl Addresses {
    /// A pod changed, came or went.
    pub(super) fn moved(
        &mut self,
        name: &ObjectName,
        before: Option<&PodFacts>,
        after: Option<&PodFacts>,
        touched: &mut Touched,
    ) {
        let (before, after) = (own(before), own(after));
        for address in before.iter().filter(|address| !after.contains(address)) {
            if let Some(pods) = self.pods.get_mut(address) {
                pods.retain(|pod| pod != name);
                if pods.is_empty() {
                    self.pods.remove(address);
                }
            }
        }
        for address in after.iter().filter(|address| !before.contains(address)) {
            let pods = self.pods.entry(address.clone()).or_default();
            pods.push(name.clone());
            touched.addresses.push(address.clone());
        }
    }

    /// The pod that got the address last.
    pub(super) fn holder(&self, address: &Text) -> Option<&ObjectName> {
        self.pods.get(address)?.last()
    }
}

fn own(pod: Option<&PodFacts>) -> &[Text] {
    match pod {
        Some(pod) if !pod.host_network && health::is_registrable(pod) => &pod.ips,
        _ => &[],
    }
}
