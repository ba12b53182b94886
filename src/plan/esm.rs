//! Checks that consul-esm runs: they are written with their definition, and what they say is its own. Pure.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

use super::Scope;
use super::checks::{NOT_ASKED, is_of_another};
use crate::desired::esm;
use crate::desired::probe::Asked;
use crate::model::entry::{Check, CheckKind, Health, Service};
use crate::model::key::InstanceKey;

/// A check of an instance which, or whose proxy, is registered like this: status and output are those that
/// Consul holds, until there are some critical.
///
/// One that may not be asked there has no definition and is critical: consul-esm would ask for whoever may
/// write a `ServiceRegistration`, or a pod's status. While it is not known what may, it stays as it is.
pub(super) fn handed(
    key: &InstanceKey,
    service: &Service,
    asked: &Asked,
    scope: &Scope<'_>,
) -> (CheckKind, Check) {
    let kind = asked.probe.kind();
    let host = &*service.address;
    let there = scope.observed.instance(key);
    let is_new = there.is_some_and(|there| is_of_another(there, service));
    let there = there.and_then(|there| there.check(&kind.id(&key.id)));
    let definition = match &scope.rules.forbidden {
        None => there.and_then(|there| there.definition.clone()),
        Some(forbidden) => match forbidden.why_not_by_name(host, asked.port) {
            None => esm::definition(asked, host),
            Some(why) => {
                let output = format!("not asked at {host} port {}: {why}", asked.port);
                let (status, output) = (Health::Critical, output.into());
                return (kind, Check { status, output });
            }
        },
    };
    let check = there.filter(|_| !is_new).map(|there| there.check.clone());
    let check = check.unwrap_or_else(|| Check {
        status: Health::Critical,
        output: NOT_ASKED.into(),
    });
    (kind.defined(definition), check)
}
