//! What may not be claimed.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::desired::fixtures::judge;
use crate::policy::DefaultPolicy;

impl Bed {
    /// With `--default-policy deny`, and a policy for the namespace of all objects here.
    fn judged(policy: Value) -> Self {
        let mut bed = Self::new();
        judge(&mut bed.index, DefaultPolicy::Deny, Instant::now());
        bed.policy(policy)
    }

    fn policy(mut self, spec: Value) -> Self {
        let mut whole = json!({"namespaceSelector": {}});
        with(&mut whole, spec);
        let touched = &mut Touched::default();
        assert_eq!(self.index.apply_policy(&object("p", whole)), None);
        self.index.renew_admission(Kind::Policy, touched);
        self
    }

    /// Whether the change of a policy touches the instance of `p`.
    fn touches(&mut self, spec: Value) -> bool {
        let mut touched = Touched::default();
        let mut whole = json!({"namespaceSelector": {}});
        with(&mut whole, spec);
        self.index.apply_policy(&object("p", whole));
        self.index.renew_admission(Kind::Policy, &mut touched);
        touched.keys.contains(&key("p"))
    }

    fn refusal(&self) -> String {
        let refused = self.decide(&key("p")).refused.unwrap();
        refused.refusal.message
    }
}

/// Puts the fields of an object into another.
fn with(whole: &mut Value, fields: Value) {
    let Value::Object(fields) = fields else {
        panic!("{fields}")
    };
    for (field, value) in fields {
        whole[field] = value;
    }
}

fn services(names: &[&str]) -> Value {
    json!({"services": names})
}

fn registered() -> Bed {
    let node = Key::Node(instance_key("p").node);
    let bed = Bed::judged(services(&["web"])).with(web("p"));
    bed.carry_out(&node, 10).carry_out(&key("p"), 10)
}

#[test]
fn what_is_not_allowed_is_not_written_and_neither_is_its_node() {
    let bed = Bed::judged(services(&["other"])).with(web("p"));
    let finding = bed.decide(&key("p"));
    assert_eq!(finding.step, Step::Settled);
    assert!(bed.refusal().contains("\"web\""));
    let node = Key::Node(instance_key("p").node);
    assert_eq!(bed.decide(&node).step, Step::Settled);
    let bed = bed.policy(services(&["web"]));
    assert!(matches!(bed.decide(&node).step, Step::PutNode(_)));
    assert!(put(bed.decide(&key("p")).step).creates());
    // Nor where its name is allowed, and it is not.
    let spec = json!({"services": ["web"], "requireServiceAccountName": true});
    let bed = Bed::judged(spec).with(web("p"));
    assert_eq!(bed.decide(&node).step, Step::Settled);
}

#[test]
fn what_it_held_goes_as_what_is_found_missing() {
    let mut bed = registered();
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
    assert!(bed.touches(services(&["other"])));
    let finding = bed.decide(&key("p"));
    assert_eq!(finding.step, Step::Held(Hold::Unjudged));
    assert_eq!(finding.owner, None, "it is no return of what was missing");
    bed.rules.guard.found(&key("p"));
    bed.rules.guard.release();
    let Step::Remove(removal) = bed.decide(&key("p")).step else {
        panic!("{:?}", bed.decide(&key("p")).step)
    };
    assert!(removal.why.is_found());
    assert_eq!(removal.why, gate::Why::NotAllowed);
    // Nor goes anything that a broken watch may hide.
    bed.index.watches.broken(Kind::Pod, "503".to_owned());
    let step = bed.decide(&key("p")).step;
    assert!(
        matches!(step, Step::Held(Hold::Incomplete { .. })),
        "{step:?}"
    );
}

#[test]
fn what_was_refused_stays_while_policies_are_not_known() {
    let mut bed = registered().policy(services(&["other"]));
    bed.rules.guard.found(&key("p"));
    bed.rules.guard.release();
    bed.index.watches.broken(Kind::Policy, "503".to_owned());
    bed.index
        .renew_admission(Kind::Policy, &mut Touched::default());
    let step = bed.decide(&key("p")).step;
    assert!(matches!(step, Step::Held(Hold::Unsure(_))), "{step:?}");
    bed.index.watches.healthy(Kind::Policy);
    let mut touched = Touched::default();
    bed.index.renew_admission(Kind::Policy, &mut touched);
    assert!(touched.keys.contains(&key("p")));
    assert!(matches!(bed.decide(&key("p")).step, Step::Remove(_)));
}

#[test]
fn what_was_allowed_goes_on_while_policies_are_not_known() {
    let mut bed = registered();
    bed.index.watches.broken(Kind::Policy, "503".to_owned());
    bed.index
        .renew_admission(Kind::Policy, &mut Touched::default());
    let bed = bed.with(web("p").not_ready("app", ""));
    let write = put(bed.decide(&key("p")).step);
    assert_eq!(write.checks[0].check.status, Health::Critical);
}

#[test]
fn tags_and_accounts_are_judged_as_they_come_out() {
    let policy = json!({
        "services": ["web"], "tags": ["v?"], "requireServiceAccountName": true,
    });
    let bed = Bed::judged(policy.clone()).with(web("p"));
    assert!(bed.refusal().contains("\"default\" and not \"web\""));
    let named = |pod: PodFixture| pod.change(|pod| pod.service_account = Some("web".into()));
    let bed = Bed::judged(policy).with(named(
        web("p")
            .label("version", "canary")
            .lictor("tags", "${pod.labels['version']}"),
    ));
    assert!(bed.refusal().contains("canary"));
    let bed = bed.with(named(
        web("p")
            .label("version", "v1")
            .lictor("tags", "${pod.labels['version']}"),
    ));
    assert!(put(bed.decide(&key("p")).step).creates());
}

#[test]
fn what_is_paused_is_judged_too() {
    let bed = registered().with(web("p").lictor("paused", "true"));
    assert!(bed.decide(&key("p")).refused.is_none());
    let bed = bed.policy(services(&["other"]));
    assert!(bed.refusal().contains("\"web\""));
    assert_eq!(bed.decide(&key("p")).step, Step::Held(Hold::Unjudged));
}

#[test]
fn nothing_is_taken_over_unless_that_is_allowed() {
    let node = Key::Node(instance_key("p").node);
    let spec = json!({"service": "web", "selector": {}, "port": 8080, "adopt": true});
    let adopts = |allowed: &str| {
        let mut bed = Bed::judged(json!({"services": ["web"], "adopt": allowed})).with(pod("p"));
        bed.index.apply_registration(
            Registration::of(&object("web", spec.clone())),
            &mut Touched::default(),
        );
        let bed = bed.carry_out(&node, 10).carry_out(&key("p"), 10);
        // By another hand, which nobody saw marked.
        let key = instance_key("p");
        let there = bed.mirror.instance(&key).unwrap().service.clone();
        let bare = crate::model::entry::Service {
            meta: Pairs::default(),
            ..there
        };
        let mut service = wire_service(&key, &bare);
        service.modify_index = 20;
        let mut mirror = Mirror::new("a".parse().unwrap());
        mirror.complete();
        mirror.wrote_node(&key.node, bed.mirror.node(&key.node).unwrap().clone());
        mirror.wrote_instance(&key, Some(ObservedInstance::of(&service)));
        Bed { mirror, ..bed }
    };
    let finding = adopts("Deny").decide(&key("p"));
    assert!(matches!(finding.step, Step::OwnedByAnother { .. }));
    assert!(finding.refused.unwrap().refusal.message.contains("adopt"));
    let finding = adopts("Allow").decide(&key("p"));
    assert!(matches!(finding.step, Step::Put(_)) && finding.refused.is_none());
}
