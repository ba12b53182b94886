//! Proxies and native instances.

use super::*;

/// A registration of the service `web` that selects every pod, with this `connect`.
fn meshed(connect: &serde_json::Value) -> Registration {
    let spec = serde_json::json!({"selector": {}, "port": 8080, "connect": connect});
    Registration::of(&object("web", spec))
}

impl Bed {
    fn meshed(mut self, connect: &serde_json::Value) -> Self {
        self.index
            .apply_registration(meshed(connect), &mut Touched::default());
        self
    }

    /// The same for an instance of which the service alone is written.
    fn carry_out_service(mut self, key: &Key, index: u64) -> Self {
        let (Key::Instance(at), Step::Put(write)) = (key, self.decide(key).step) else {
            panic!("nothing to carry out");
        };
        let mut service = wire_service(at, &write.service.unwrap().0);
        service.modify_index = index;
        let mut observed = ObservedInstance::of(&service);
        let before = self.mirror.instance(at).unwrap();
        observed.checks.clone_from(&before.checks);
        self.mirror.wrote_instance(at, Some(observed));
        self
    }
}

pub(super) fn proxy_key(pod: &str) -> Key {
    let beside = instance_key(pod).counterpart(&"a".parse().unwrap());
    Key::Instance(beside.unwrap())
}

#[test]
fn a_proxy_comes_with_its_instance_and_its_check_follows() {
    let node = Key::Node(instance_key("p").node);
    let bed = Bed::new().with(pod("p"));
    let bed = bed.meshed(&serde_json::json!({"sidecar": {"port": 20000}}));
    let bed = bed.carry_out(&node, 10).carry_out(&key("p"), 11);
    let write = put(bed.decide(&proxy_key("p")).step);
    assert!(write.creates() && !write.needs_register());
    assert_eq!(write.checks[0].kind, CheckKind::Alias);
    let bed = bed.carry_out(&proxy_key("p"), 12);
    assert_eq!(bed.decide(&proxy_key("p")).step, Step::Settled);

    let bed = bed.with(pod("p").not_ready("app", ""));
    for (key, kind) in [
        (key("p"), CheckKind::Readiness),
        (proxy_key("p"), CheckKind::Alias),
    ] {
        let write = put(bed.decide(&key).step);
        assert_eq!((write.service, &write.checks[0].kind), (None, &kind));
        assert_eq!(write.checks[0].check.status, Health::Critical);
    }
    let bed = bed.with(pod("p"));

    let upstream = serde_json::json!({"service": "ledger", "localPort": 9191});
    let sidecar = serde_json::json!({"sidecar": {"port": 20000, "upstreams": [upstream]}});
    let bed = bed.meshed(&sidecar);
    let write = put(bed.decide(&proxy_key("p")).step);
    assert_eq!(
        (&*write.fields, write.checks.clone()),
        (&["proxy"] as &[_], Vec::new())
    );
    assert!(write.needs_register());
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
    // A check alone can be in a transaction.
    let bed = bed.carry_out_service(&proxy_key("p"), 13);
    let bed = bed.with(pod("p").not_ready("app", ""));
    let write = put(bed.decide(&proxy_key("p")).step);
    assert!(!write.needs_register() && !write.checks.is_empty());

    // Where both differ, the check goes first, together with that of the instance.
    let bed = bed.with(pod("p").not_ready("app", "").ips(&["10.0.0.9"]));
    let write = put(bed.decide(&proxy_key("p")).step);
    assert!(write.rest && write.service.is_none());
    assert_eq!(write.fields, ["check"]);

    let bed = bed.with(pod("p")).meshed(&serde_json::Value::Null);
    assert!(matches!(bed.decide(&proxy_key("p")).step, Step::Remove(_)));
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
}

#[test]
fn an_instance_becomes_native_and_plain_again_in_place() {
    let bed = Bed::registered();
    let bed = bed
        .with(pod("p"))
        .meshed(&serde_json::json!({"native": true}));
    let write = put(bed.decide(&key("p")).step);
    assert!(write.needs_register());
    assert!(write.fields.contains(&"connect"), "{:?}", write.fields);
    assert_eq!(write.service.unwrap().1, 10);
    let bed = bed.carry_out_service(&key("p"), 11);
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
    let bed = bed.meshed(&serde_json::Value::Null);
    let write = put(bed.decide(&key("p")).step);
    assert_eq!(
        (&*write.fields, write.needs_register()),
        (&["connect"] as &[_], false)
    );
}
