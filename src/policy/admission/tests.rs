use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::consul::wire::KvPair;
use crate::desired::fixtures::object;
use crate::model::text::Pairs;
use crate::policy::ledger::Ledger;
use crate::policy::names::Moment;

const HOLD: Duration = Duration::from_hours(24);

/// Namespaces by age: shop is the oldest.
const NAMESPACES: [(&str, i64); 3] = [("shop", 1), ("evil", 2), ("aaa", 3)];

struct Bed {
    admission: Admission,
    watches: Watches,
    now: Instant,
    wall: i64,
    /// What Consul keeps.
    ledger: Ledger,
    registered: BTreeSet<(Text, Text)>,
}

fn text(text: &str) -> Text {
    text.into()
}

fn namespace(name: &str, created: i64) -> NamespaceFacts {
    let label = |key: &str, value: &str| (text(key), text(value));
    NamespaceFacts {
        name: text(name),
        uid: text(&format!("uid-{name}")),
        created,
        labels: Pairs::from_iter([
            label("kubernetes.io/metadata.name", name),
            label("team", name),
        ]),
    }
}

fn of(sort: Sort, namespace: &str, name: &str) -> Claim {
    Claim {
        sort,
        namespace: text(namespace),
        name: text(name),
    }
}

fn service(namespace: &str, name: &str) -> Claim {
    of(Sort::Service, namespace, name)
}

fn chooses(namespace: &str, more: Value) -> Value {
    let mut spec = json!({"namespaceSelector": {"matchLabels": {"team": namespace}}});
    let Value::Object(more) = more else {
        panic!("{more}")
    };
    for (key, value) in more {
        spec[key] = value;
    }
    spec
}

impl Bed {
    /// All is listed, and nothing claimed or judged.
    fn new(rule: DefaultPolicy) -> Self {
        let mut watches = Watches::default();
        let mut admission = Admission::new(rule, HOLD);
        for kind in [Kind::Namespace, Kind::Policy] {
            watches.listing(kind);
            admission.begin_list(kind);
        }
        for (name, created) in NAMESPACES {
            admission.apply_namespace(namespace(name, created));
        }
        for kind in [Kind::Namespace, Kind::Policy] {
            admission.end_list(kind);
            watches.complete(kind);
        }
        Self {
            admission,
            watches,
            now: Instant::now(),
            wall: 1_000_000,
            ledger: Ledger::default(),
            registered: BTreeSet::new(),
        }
    }

    fn moment(&self) -> Moment {
        Moment {
            now: self.now,
            wall: self.wall,
        }
    }

    fn settle(&mut self) {
        self.settle_by(Memory::Superseded);
    }

    fn settle_by(&mut self, memory: Memory) {
        let moment = self.moment();
        self.admission.settle(
            Ok(&self.ledger),
            self.registered.clone(),
            memory,
            moment,
            &self.watches,
        );
        self.write();
    }

    fn settled(rule: DefaultPolicy) -> Self {
        let mut bed = Self::new(rule);
        bed.settle();
        bed.admission.begun();
        bed.write();
        bed
    }

    /// Writes what is to be kept. Returns how many keys that were.
    fn write(&mut self) -> usize {
        let registered = self.registered.clone();
        let has =
            |name: &Text, namespace: &Text| registered.contains(&(name.clone(), namespace.clone()));
        let moment = self.moment();
        self.admission.tick(moment, has);
        self.ledger.want(self.admission.take_dirty());
        self.ledger.want_rule(self.admission.rule_stands());
        let mut written = 0;
        loop {
            let admission = &self.admission;
            let writes = self.ledger.next_writes(1, |name| admission.record(name));
            if writes.is_empty() {
                return written;
            }
            for write in writes {
                self.ledger.written(&write, 7);
                written += 1;
            }
        }
    }

    /// A process that starts with what Consul keeps, and the same objects.
    fn restart(&self, claims: &[Claim]) -> Self {
        let mut bed = Self::new(self.admission.rule.unwrap());
        let pairs: Vec<KvPair> = self
            .ledger
            .records()
            .map(|(name, record)| KvPair {
                key: ledger_key(&name).into(),
                value: serde_json::to_vec(&record).unwrap().into(),
                modify_index: 7,
                ..KvPair::default()
            })
            .chain(self.ledger.has_rule().then(|| KvPair {
                key: "lictor/v1/a/names".into(),
                modify_index: 7,
                ..KvPair::default()
            }))
            .collect();
        bed.ledger = Ledger::of(&"a".parse().unwrap(), &pairs).0;
        bed.registered.clone_from(&self.registered);
        bed.wall = self.wall;
        for claim in claims {
            bed.admission.claim(claim);
        }
        bed
    }

    fn policy(&mut self, name: &str, spec: Value) {
        assert_eq!(self.admission.apply_policy(&object(name, spec)), None);
        self.admission.renew(&self.watches);
    }

    fn no_policy(&mut self, name: &str) {
        self.admission.remove_policy(&text(name));
        self.admission.renew(&self.watches);
    }

    /// Claims, and says whether that is allowed.
    fn claim(&mut self, claim: &Claim) -> bool {
        self.admission.claim(claim);
        self.allows(claim)
    }

    fn allows(&self, claim: &Claim) -> bool {
        self.admission.admits(claim, false).is_ok()
    }

    fn why(&self, claim: &Claim) -> String {
        self.admission.admits(claim, false).unwrap_err().message
    }
}

fn ledger_key(name: &str) -> String {
    super::super::ledger::key(&"a".parse().unwrap(), name)
}

#[test]
fn without_a_rule_everything_is_allowed() {
    let mut admission = Admission::default();
    admission.claim(&service("shop", "web"));
    assert!(admission.admits(&service("evil", "web"), false).is_ok());
    assert!(admission.is_settled() && admission.freeze().is_none());
}

#[test]
fn with_exclusive_the_first_that_claims_a_name_holds_it() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    assert!(bed.claim(&service("evil", "web")));
    assert!(!bed.claim(&service("shop", "web")), "although it is older");
    assert!(bed.why(&service("shop", "web")).contains("namespace evil"));
    assert!(bed.claim(&service("shop", "api")));
    for sort in [Sort::Destination, Sort::Query] {
        assert!(!bed.claim(&of(sort, "evil", "api")), "{sort:?}");
        assert!(bed.claim(&of(sort, "shop", "api")), "{sort:?}");
        assert!(bed.claim(&of(sort, "evil", "nobodys")), "{sort:?}");
    }
    for proxy in [Sort::Service, Sort::Sidecar] {
        assert!(!bed.claim(&of(proxy, "evil", "api-sidecar-proxy")));
    }
    assert!(bed.claim(&of(Sort::Sidecar, "shop", "api-sidecar-proxy")));
    assert!(!bed.claim(&of(Sort::Destination, "shop", "*")));
    assert!(!bed.claim(&of(Sort::Template, "shop", "shop-")));
    assert!(bed.admission.admits_adopt(&service("shop", "api")).is_err());
}

#[test]
fn what_is_claimed_before_its_name_is_held_is_refused_when_it_is() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    let early = of(Sort::Destination, "evil", "web");
    let proxy = service("evil", "web-sidecar-proxy");
    assert!(bed.claim(&early) && bed.claim(&proxy));
    bed.admission.take_news();
    assert!(bed.claim(&service("shop", "web")));
    assert!(!bed.allows(&early));
    assert!(bed.allows(&proxy), "that it has by now");
    assert!(bed.admission.take_news().claims.contains(&early));
}

#[test]
fn at_the_start_the_oldest_namespace_holds_what_nobody_is_known_to_hold() {
    let mut bed = Bed::new(DefaultPolicy::Exclusive);
    for namespace in ["aaa", "evil", "shop"] {
        bed.admission.claim(&service(namespace, "web"));
    }
    bed.settle();
    assert!(bed.allows(&service("shop", "web")));
    assert!(!bed.allows(&service("aaa", "web")) && !bed.allows(&service("evil", "web")));
}

#[test]
fn what_consul_has_of_several_when_the_rule_begins_stays_shared() {
    let mut bed = Bed::new(DefaultPolicy::Exclusive);
    let destination = of(Sort::Destination, "evil", "*");
    for namespace in ["evil", "aaa", "shop"] {
        bed.admission.claim(&service(namespace, "web"));
    }
    bed.admission.claim(&destination);
    bed.admission.claim(&of(Sort::Destination, "aaa", "web"));
    bed.registered = [("web", "evil"), ("web", "aaa")]
        .map(|(name, namespace)| (text(name), text(namespace)))
        .into();
    bed.settle();
    assert!(bed.admission.begins());
    bed.admission.keep_there(&destination);
    bed.admission.begun();
    bed.write();
    let claims = [
        service("aaa", "web"),
        service("evil", "web"),
        service("shop", "web"),
        destination.clone(),
    ];
    let mut again = bed.restart(&claims);
    again.settle();
    for bed in [&bed, &again] {
        assert!(bed.allows(&service("evil", "web")) && bed.allows(&service("aaa", "web")));
        assert!(!bed.allows(&service("shop", "web")), "that is new");
        assert!(bed.allows(&destination));
        assert!(!bed.allows(&of(Sort::Destination, "shop", "*")));
    }
    assert_eq!(again.write(), 0, "nothing is other than it was");
    assert!(!again.admission.begins());
}

#[test]
fn what_is_shared_stays_also_where_policies_are_not_understood_when_the_rule_begins() {
    let mut bed = Bed::new(DefaultPolicy::Exclusive);
    let bad = json!({"namespaceSelector": {}, "services": ["{x}"]});
    bed.admission.apply_policy(&object("bad", bad));
    for namespace in ["shop", "evil"] {
        bed.admission.claim(&service(namespace, "web"));
        bed.registered.insert((text("web"), text(namespace)));
    }
    bed.settle();
    bed.policy("bad", chooses("aaa", json!({})));
    assert!(bed.allows(&service("shop", "web")) && bed.allows(&service("evil", "web")));
    assert!(!bed.allows(&service("aaa", "web")));
}

#[test]
fn after_the_rule_began_what_consul_has_on_no_node_does_not_stay() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    bed.claim(&service("shop", "web"));
    bed.write();
    let early = of(Sort::Destination, "evil", "web");
    let mut again = bed.restart(&[service("shop", "web"), early.clone()]);
    again.settle();
    assert!(!again.admission.begins() && !again.allows(&early));
}

#[test]
fn the_order_of_claims_survives_a_restart_and_costs_no_write() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    bed.claim(&service("evil", "web"));
    bed.claim(&service("shop", "web"));
    assert_eq!(bed.write(), 1);
    assert_eq!(bed.write(), 0);
    let mut again = bed.restart(&[service("shop", "web"), service("evil", "web")]);
    again.settle();
    assert!(again.allows(&service("evil", "web")) && !again.allows(&service("shop", "web")));
    assert_eq!(again.write(), 0);
}

#[test]
fn a_name_is_free_when_its_namespace_is_gone_or_it_was_not_claimed_for_long() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    let (first, second) = (service("shop", "web"), service("evil", "web"));
    bed.claim(&first);
    bed.claim(&second);
    bed.admission.remove_namespace(&text("shop"));
    bed.admission.release(&first);
    bed.admission.take_news();
    bed.admission.renew(&bed.watches);
    assert!(bed.allows(&second));
    assert!(bed.admission.take_news().claims.contains(&second));

    let third = service("aaa", "web");
    assert!(!bed.claim(&third));
    bed.admission.release(&second);
    bed.write();
    bed.now += HOLD.saturating_sub(Duration::from_secs(1));
    bed.write();
    assert!(!bed.allows(&third));
    assert_eq!(
        bed.admission.wake_at(),
        Some(bed.now + Duration::from_secs(1))
    );
    bed.now += Duration::from_secs(1);
    assert!(bed.write() > 0);
    assert!(bed.allows(&third));
}

#[test]
fn a_namespace_that_was_made_anew_is_another() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    bed.claim(&service("shop", "web"));
    bed.claim(&service("evil", "web"));
    bed.write();
    let other = NamespaceFacts {
        uid: text("new"),
        ..namespace("shop", 9)
    };
    bed.admission.apply_namespace(other.clone());
    bed.admission.renew(&bed.watches);
    assert!(bed.allows(&service("evil", "web")), "evil is older now");
    assert!(!bed.allows(&service("shop", "web")));
}

#[test]
fn in_a_namespace_that_a_policy_chooses_policies_alone_decide() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    bed.claim(&service("shop", "web"));
    let held = service("evil", "web");
    assert!(!bed.claim(&held) && bed.claim(&service("evil", "own")));
    let spec = chooses("evil", json!({"services": ["web"], "adopt": "Allow"}));
    bed.policy("p", spec);
    assert!(bed.allows(&held) && !bed.allows(&service("evil", "own")));
    assert!(bed.why(&service("evil", "own")).contains("(p)"));
    assert!(bed.admission.admits_adopt(&held).is_ok());
    let news = bed.admission.take_news();
    assert!(news.namespaces.contains(&text("evil")) && !news.namespaces.contains(&text("shop")));
    // The other one holds it all the same, and what is shared by now stays.
    bed.policy("q", chooses("aaa", json!({"services": ["q"]})));
    bed.no_policy("p");
    assert!(bed.allows(&held) && bed.allows(&service("shop", "web")));
    assert_eq!(bed.admission.names.holder("web"), Some(&text("shop")));
}

#[test]
fn one_policy_must_allow_the_whole_of_a_claim() {
    let mut bed = Bed::settled(DefaultPolicy::Deny);
    bed.policy(
        "a",
        chooses("shop", json!({"services": ["web"], "checks": "Deny"})),
    );
    bed.policy("b", chooses("shop", json!({"services": ["other"]})));
    let claim = service("shop", "web");
    bed.claim(&claim);
    let asks = |bed: &Bed, checks: bool| {
        let features = Features {
            service: "web",
            account: Some("web"),
            tags: &[],
            checks,
        };
        let asked = InstanceClaim {
            claim: &claim,
            features: Some(features),
        };
        bed.admission.admits_instance(&asked, false)
    };
    assert!(asks(&bed, false).is_ok());
    let refusal = asks(&bed, true).unwrap_err();
    assert!(refusal.message.contains("RegistrationPolicy a") && refusal.unsure.is_none());
    bed.policy("b", chooses("shop", json!({"services": ["*"]})));
    assert!(asks(&bed, true).is_ok());
    assert!(!bed.allows(&service("evil", "x")), "nothing is, by default");
    assert!(bed.why(&service("evil", "x")).contains("deny"));
}

/// Whatever makes it unsure: what is allowed stays, what is new is not, and what was refused is not
/// removed for that.
#[test]
fn while_policies_are_not_known_nothing_new_is_allowed_and_nothing_withdrawn() {
    type Disturb = fn(&mut Bed);
    let disturbances: [(&str, Disturb, Disturb); 3] = [
        (
            "a watch breaks",
            |bed| bed.watches.broken(Kind::Policy, "503".to_owned()),
            |bed| bed.watches.healthy(Kind::Policy),
        ),
        (
            "one is not understood",
            |bed| {
                let bad = json!({"namespaceSelector": {}, "services": ["{x}"]});
                assert!(bed.admission.apply_policy(&object("bad", bad)).is_some());
            },
            |bed| bed.admission.remove_policy(&text("bad")),
        ),
        (
            "they vanish",
            |bed| bed.admission.remove_policy(&text("p")),
            |bed| {
                let spec = chooses("shop", json!({"services": ["web"]}));
                bed.admission.apply_policy(&object("p", spec));
            },
        ),
    ];
    for rule in [DefaultPolicy::Exclusive, DefaultPolicy::Deny] {
        for (what, disturb, mend) in disturbances {
            let mut bed = Bed::settled(rule);
            bed.policy("p", chooses("shop", json!({"services": ["web"]})));
            let (held, bad, new) = (
                service("shop", "web"),
                service("shop", "bad"),
                service("shop", "new"),
            );
            bed.claim(&held);
            bed.claim(&bad);
            disturb(&mut bed);
            bed.admission.renew(&bed.watches);
            assert!(bed.admission.freeze().is_some(), "{what}");
            assert!(bed.allows(&held), "{what}");
            let refusal = bed.admission.admits(&bad, true).unwrap_err();
            assert!(refusal.unsure.is_some(), "{what}");
            assert!(!bed.claim(&new), "{what}");
            // All its pods are replaced at once.
            bed.admission.release(&held);
            assert!(bed.claim(&held), "{what}");
            bed.admission.take_news();
            mend(&mut bed);
            bed.admission.renew(&bed.watches);
            assert!(bed.admission.freeze().is_none(), "{what}");
            assert!(bed.allows(&held) && !bed.allows(&bad), "{what}");
            let refusal = bed.admission.admits(&bad, true).unwrap_err();
            assert!(refusal.unsure.is_none(), "{what}");
            let news = bed.admission.take_news();
            assert!(news.claims.contains(&bad), "{what}: it is to be planned");
        }
    }
}

#[test]
fn who_holds_a_service_needs_a_policy_for_its_template() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    assert!(bed.claim(&service("evil", "p")));
    for sort in [Sort::Destination, Sort::Query, Sort::Sidecar] {
        assert!(bed.claim(&of(sort, "evil", "p")), "{sort}");
    }
    assert!(!bed.claim(&of(Sort::Template, "evil", "p")));
}

#[test]
fn a_shared_intention_gives_its_namespace_no_more_than_that() {
    for sort in [Sort::Destination, Sort::Query] {
        let mut bed = Bed::new(DefaultPolicy::Exclusive);
        let (first, shared) = (service("shop", "web"), of(sort, "evil", "web"));
        bed.admission.claim(&first);
        bed.admission.claim(&shared);
        bed.settle();
        bed.admission.keep_there(&shared);
        bed.admission.begun();
        bed.write();
        assert!(bed.allows(&first) && bed.allows(&shared), "{sort}");
        let mut bed = bed.restart(&[first, shared.clone()]);
        bed.settle();
        assert!(bed.allows(&shared), "{sort}: it is kept");
        assert!(!bed.claim(&service("evil", "web")), "{sort}");
        assert!(bed.allows(&shared), "{sort}: that takes nothing from it");
        bed.admission.release(&service("evil", "web"));
        bed.admission.remove_namespace(&text("shop"));
        bed.admission.renew(&bed.watches);
        assert!(bed.allows(&shared), "{sort}");
        assert!(bed.claim(&service("aaa", "web")), "{sort}: it is free");
    }
}

#[test]
fn policies_that_all_went_are_back_when_the_last_one_is() {
    let mut bed = Bed::settled(DefaultPolicy::Deny);
    let spec = |name: &str| chooses(name, json!({"services": ["web"]}));
    bed.policy("p", spec("shop"));
    bed.policy("q", spec("evil"));
    bed.policy("old", spec("aaa"));
    // One that an administrator let go before, as a list showed, is not waited for.
    bed.no_policy("old");
    bed.admission.begin_list(Kind::Policy);
    for (name, of) in [("p", "shop"), ("q", "evil")] {
        bed.policy(name, spec(of));
    }
    bed.admission.end_list(Kind::Policy);
    let (first, second) = (service("shop", "web"), service("evil", "web"));
    assert!(bed.claim(&first) && bed.claim(&second));
    for name in ["q", "p"] {
        bed.admission.remove_policy(&text(name));
    }
    bed.admission.renew(&bed.watches);
    assert!(bed.allows(&first) && bed.allows(&second));
    bed.policy("p", spec("shop"));
    let why = bed.admission.freeze().unwrap();
    assert!(
        why.contains(" q are not back") && !why.contains("old"),
        "{why}"
    );
    assert!(bed.allows(&second), "its policy is not back");
    bed.policy("q", spec("evil"));
    assert!(bed.admission.freeze().is_none() && bed.allows(&second));
}

#[test]
fn a_start_with_policies_that_are_not_understood_keeps_what_consul_has() {
    let mut bed = Bed::new(DefaultPolicy::Exclusive);
    let bad = json!({"namespaceSelector": {}, "services": ["{x}"]});
    bed.admission.apply_policy(&object("bad", bad));
    let (old, new) = (service("shop", "web"), service("shop", "api"));
    bed.admission.claim(&old);
    bed.admission.claim(&new);
    bed.registered.insert((text("web"), text("shop")));
    bed.settle();
    assert!(bed.allows(&old) && !bed.allows(&new));
    let there = of(Sort::Destination, "shop", "web");
    bed.admission.claim(&there);
    assert!(bed.admission.admits(&there, true).is_ok());
    assert!(bed.admission.admits(&there, false).is_err());
    bed.admission.remove_policy(&text("bad"));
    bed.admission.renew(&bed.watches);
    // It was the only one.
    assert!(!bed.allows(&new));
    let mut again = bed.restart(&[old.clone(), new.clone()]);
    again.settle();
    assert!(
        again.allows(&old) && again.allows(&new),
        "a restart confirms it"
    );
}

#[test]
fn without_what_consul_keeps_nothing_new_is_allowed() {
    let mut bed = Bed::new(DefaultPolicy::Exclusive);
    let (old, new) = (service("shop", "web"), service("evil", "web"));
    bed.admission.claim(&old);
    bed.admission.claim(&new);
    bed.registered.insert((text("web"), text("shop")));
    let why = text("403");
    let moment = bed.moment();
    bed.admission.settle(
        Err(&why),
        bed.registered.clone(),
        Memory::Superseded,
        moment,
        &bed.watches,
    );
    assert!(bed.admission.lacks_ledger() && !bed.admission.rule_stands());
    assert!(bed.allows(&old) && !bed.allows(&new));
    bed.settle();
    assert!(bed.allows(&old) && !bed.allows(&new));
    assert!(bed.why(&new).contains("shop"));
}

#[test]
fn an_object_of_a_namespace_that_is_not_known_yet_waits() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    let early = service("new", "web");
    bed.admission.claim(&early);
    assert!(bed.admission.admits(&early, false).unwrap_err().waits);
    bed.admission.take_news();
    bed.admission.apply_namespace(namespace("new", 9));
    bed.admission.renew(&bed.watches);
    assert!(bed.allows(&early));
    assert!(bed.admission.take_news().claims.contains(&early));
}

#[test]
fn a_consul_that_lost_all_is_told_again_what_is_known() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    bed.claim(&service("evil", "web"));
    bed.claim(&service("shop", "web"));
    bed.write();
    bed.ledger = Ledger::default();
    bed.admission.unsettle();
    bed.settle_by(Memory::Holds);
    assert!(bed.allows(&service("evil", "web")) && !bed.allows(&service("shop", "web")));
    assert!(bed.ledger.has_rule() && bed.ledger.record("web").is_some());
}

/// Another process led since this one judged, and these are what it kept.
fn follow(bed: &mut Bed, ledger: Ledger, memory: Memory) {
    bed.ledger = ledger;
    bed.admission.unsettle();
    bed.settle_by(memory);
}

#[test]
fn who_follows_another_process_forgets_what_it_knew_for_what_that_kept() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    let (old, new) = (service("shop", "web"), service("evil", "web"));
    bed.claim(&old);
    bed.claim(&new);
    bed.write();
    assert!(bed.allows(&old) && !bed.allows(&new));
    // The other one saw the claim go, and gave the name to the other namespace.
    let mut other = Bed::settled(DefaultPolicy::Exclusive);
    other.claim(&new);
    other.claim(&old);
    other.write();
    let kept = std::mem::take(&mut other.ledger);
    follow(&mut bed, kept, Memory::Superseded);
    assert!(!bed.allows(&old) && bed.allows(&new));
    assert_eq!(bed.write(), 0, "what the other one kept stays");
    // Where Consul lost all, what it knew is more than nothing.
    follow(&mut bed, Ledger::default(), Memory::Outlived);
    assert!(!bed.allows(&old) && bed.allows(&new));
    // Where it is the other one that keeps nothing of names, the rule begins anew: the older is the first.
    follow(&mut bed, Ledger::default(), Memory::Superseded);
    assert!(bed.allows(&old) && !bed.allows(&new));
}

#[test]
fn who_follows_another_process_forgets_how_it_judged() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    let (ours, theirs) = (service("shop", "web"), service("evil", "api"));
    bed.policy("strict", chooses("evil", json!({})));
    bed.claim(&ours);
    assert!(!bed.claim(&theirs));
    // Policies changed and broke meanwhile: what Consul has stays, and only that.
    bed.admission.unsettle();
    bed.admission.release(&ours);
    let bad = json!({"namespaceSelector": {}, "services": ["{x}"]});
    bed.admission.apply_policy(&object("strict", bad));
    bed.registered = [(text("api"), text("evil"))].into();
    let mut other = Bed::settled(DefaultPolicy::Exclusive);
    let kept = std::mem::take(&mut other.ledger);
    follow(&mut bed, kept, Memory::Superseded);
    assert!(bed.admission.freeze().is_some());
    assert!(bed.allows(&theirs), "it was refused before");
    assert!(!bed.claim(&ours), "it was allowed before");
}

#[test]
fn a_record_that_is_not_understood_withdraws_nothing_and_allows_nothing_new() {
    let mut bed = Bed::new(DefaultPolicy::Exclusive);
    let (old, new) = (service("evil", "web"), service("shop", "web"));
    let there = of(Sort::Destination, "aaa", "web");
    let proxy = of(Sort::Sidecar, "shop", "web-sidecar-proxy");
    for claim in [&old, &new, &there, &proxy] {
        bed.admission.claim(claim);
    }
    bed.registered.insert((text("web"), text("evil")));
    let pair = |key: &str, value: &str| KvPair {
        key: key.into(),
        value: value.as_bytes().into(),
        modify_index: 7,
        ..KvPair::default()
    };
    let (key, rule) = (ledger_key("web"), pair("lictor/v1/a/names", "{}"));
    let cluster = "a".parse().unwrap();
    let (ledger, garbled) = Ledger::of(&cluster, &[pair(&key, "what?"), rule.clone()]);
    assert!(garbled[0].contains(&key), "{garbled:?}");
    bed.ledger = ledger;
    bed.settle();
    bed.admission.take_news();
    assert!(bed.admission.lacks_names());
    assert!(bed.allows(&old), "what Consul has stays");
    for claim in [&new, &proxy] {
        let refusal = bed.admission.admits(claim, false).unwrap_err();
        assert!(refusal.unsure.is_some() && refusal.message.contains("not understood"));
    }
    assert!(bed.admission.admits(&there, true).is_ok(), "that too");
    assert!(bed.claim(&service("shop", "api")), "other names go on");
    bed.write();

    // Somebody puts it right: it counts from then on.
    let value = r#"{"holder":"shop","namespaces":{"shop":{"uid":"uid-shop","since":1}}}"#;
    let (mended, _) = Ledger::of(&cluster, &[pair(&key, value), rule.clone()]);
    let moment = bed.moment();
    bed.admission
        .reread(&mended, Some([text("web")].into()), moment);
    assert!(!bed.admission.lacks_names());
    assert!(bed.allows(&new) && bed.allows(&proxy) && !bed.allows(&old));
    let news = bed.admission.take_news().claims;
    assert!(news.contains(&old) && news.contains(&new), "{news:?}");

    // Or removes it: it belongs to whom Consul has it of.
    let (garbled, _) = Ledger::of(&cluster, &[pair(&key, "what?"), rule.clone()]);
    let mut again = Bed::new(DefaultPolicy::Exclusive);
    again.registered.insert((text("web"), text("evil")));
    again.ledger = garbled;
    again.admission.claim(&old);
    again.admission.claim(&new);
    again.settle();
    let (none, _) = Ledger::of(&cluster, &[rule]);
    again.admission.reread(&none, None, moment);
    assert!(again.allows(&old) && again.why(&new).contains("evil"));
    again.ledger = none;
    assert_eq!(again.write(), 1, "it is kept from now on");
}

#[test]
fn other_labels_of_a_namespace_are_other_policies() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    bed.policy("evil", chooses("evil", json!({"services": ["evil-*"]})));
    let claim = service("evil", "web");
    assert!(!bed.claim(&claim));
    bed.admission.take_news();
    let relabel = |bed: &mut Bed, team: &str| {
        let mut facts = namespace("evil", 2);
        facts.labels = Pairs::from_iter([(text("team"), text(team))]);
        bed.admission.apply_namespace(facts);
        bed.admission.renew(&bed.watches);
    };
    relabel(&mut bed, "other");
    assert!(bed.allows(&claim), "the default decides");
    let news = bed.admission.take_news();
    assert!(news.namespaces.contains("evil") && news.claims.contains(&claim));
    relabel(&mut bed, "evil");
    assert!(!bed.allows(&claim));
    assert!(bed.admission.take_news().claims.contains(&claim));
}

#[test]
fn a_namespace_that_was_made_anew_while_nothing_was_known_is_another() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    let (old, new) = (service("shop", "web"), service("evil", "web"));
    bed.claim(&old);
    assert!(!bed.claim(&new));
    bed.watches.broken(Kind::Policy, "timeout".to_owned());
    bed.admission.renew(&bed.watches);
    bed.admission.release(&old);
    bed.admission.remove_namespace(&text("shop"));
    bed.admission.renew(&bed.watches);
    let mut again = namespace("shop", 9);
    again.uid = text("another");
    bed.admission.apply_namespace(again);
    bed.admission.renew(&bed.watches);
    bed.admission.claim(&old);
    assert!(!bed.allows(&new), "nothing new is allowed");
    bed.watches.healthy(Kind::Policy);
    bed.admission.renew(&bed.watches);
    assert!(
        bed.allows(&new) && !bed.allows(&old),
        "the other one is older"
    );
    bed.write();
    let record = bed.admission.record("web").unwrap();
    assert_eq!(record.holder.as_deref(), Some("evil"));
}

#[test]
fn by_default_alone_neither_policies_nor_namespaces_are_asked_for() {
    let watches = Watches::default();
    let mut admission = Admission::by_default_alone(DefaultPolicy::Exclusive, HOLD);
    let (first, second) = (service("shop", "web"), service("evil", "web"));
    admission.claim(&first);
    let now = Instant::now();
    let settle = |admission: &mut Admission, ledger: &Ledger, wall: i64| {
        let moment = Moment { now, wall };
        let memory = Memory::Superseded;
        admission.settle(Ok(ledger), BTreeSet::new(), memory, moment, &watches);
        admission.begun();
        admission.tick(moment, |_, _| false);
    };
    settle(&mut admission, &Ledger::default(), 5);
    admission.claim(&second);
    assert!(admission.freeze().is_none());
    assert!(admission.admits(&first, false).is_ok());
    assert!(admission.admits(&second, false).is_err());
    assert!(
        admission.admits_adopt(&first).is_err(),
        "that needs a policy"
    );
    // It holds over a restart, and nothing about the namespace is known.
    let record = admission.record("web").unwrap();
    assert_eq!(record.namespaces["shop"].uid, "");
    let pair = KvPair {
        key: ledger_key("web").into(),
        value: serde_json::to_vec(&record).unwrap().into(),
        modify_index: 7,
        ..KvPair::default()
    };
    let (ledger, _) = Ledger::of(&"a".parse().unwrap(), &[pair]);
    let mut again = Admission::by_default_alone(DefaultPolicy::Exclusive, HOLD);
    again.claim(&second);
    again.claim(&first);
    settle(&mut again, &ledger, 9);
    assert!(again.admits(&first, false).is_ok() && again.admits(&second, false).is_err());
    assert_eq!(
        again.record("web"),
        Some(record),
        "there is nothing to write"
    );
}

/// What is paused or invalid claims nothing that is counted, and keeps what Consul has.
#[test]
fn a_name_is_not_anothers_while_consul_has_instances_of_the_first() {
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    let (first, second) = (service("shop", "web"), service("evil", "web"));
    bed.claim(&first);
    assert!(!bed.claim(&second));
    bed.registered.insert((text("web"), text("shop")));
    bed.admission.release(&first);
    bed.write();
    bed.now += HOLD;
    bed.write();
    assert!(!bed.allows(&second));
    bed.registered.clear();
    bed.now += HOLD;
    bed.write();
    assert!(bed.allows(&second));
}

#[test]
fn a_record_that_is_understood_once_consul_went_back_counts() {
    let pair = |key: &str, value: &str| KvPair {
        key: key.into(),
        value: value.as_bytes().into(),
        modify_index: 7,
        ..KvPair::default()
    };
    let (key, rule) = (ledger_key("web"), pair("lictor/v1/a/names", "{}"));
    let kept = r#"{"holder":"shop","namespaces":{"shop":{"uid":"uid-shop","since":1}}}"#;
    let mut bed = Bed::settled(DefaultPolicy::Exclusive);
    for (value, memory) in [("what?", Memory::Superseded), (kept, Memory::Holds)] {
        let pairs = [pair(&key, value), rule.clone()];
        bed.ledger = Ledger::of(&"a".parse().unwrap(), &pairs).0;
        bed.admission.unsettle();
        bed.settle_by(memory);
    }
    assert!(!bed.claim(&service("evil", "web")));
    bed.write();
    assert!(bed.ledger.record("web").is_some(), "it is kept");
}
