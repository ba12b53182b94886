//! Instances that are critical for long.

use std::time::Duration;

use tokio::time::Instant;

use super::checks::{asking_with, settled_both};
use super::*;
use crate::consul::wire::KvPair;

use crate::plan::critical::OwnHealth;
use crate::plan::critical::kept::Kept;

const AFTER: Duration = Duration::from_secs(90);

fn spec(more: &serde_json::Value) -> serde_json::Value {
    let mut health = serde_json::json!({"deregisterCriticalServiceAfter": "90s"});
    for (field, value) in more.as_object().unwrap() {
        health[field] = value.clone();
    }
    health
}

/// A pod that is not ready, with a proxy beside it, and both are registered.
fn unready(more: &serde_json::Value) -> Bed {
    let node = Key::Node(instance_key("p").node);
    let bed = Bed::new().with(pod("p").not_ready("app", ""));
    let mut bed = asking_with(bed, &spec(more));
    bed.read(&[]);
    settled_both(bed.carry_out(&node, 10), 11)
}

impl Bed {
    /// This is what Consul keeps, at 1000 seconds after 1970.
    fn read(&mut self, pairs: &[KvPair]) {
        let (cluster, now) = ("a".parse().unwrap(), Instant::now());
        let (kept, _) = Kept::of(&cluster, pairs, now, 1000);
        let mirror = &self.mirror;
        let is_there = |key: &InstanceKey| mirror.instance(key).is_some();
        let _ = self.rules.criticals.read(kept, is_there, now);
    }

    /// It was critical for so long as this process and Consul know.
    fn critical_for(mut self, time: Duration) -> Self {
        let began = Instant::now();
        let node = instance_key("p").node;
        for passed in 0..=time.as_secs() {
            let now = began + Duration::from_secs(passed);
            let watched = self.decide(&key("p")).critical;
            let criticals = &mut self.rules.criticals;
            criticals.observe(&instance_key("p"), watched.as_ref(), now);
            let wall = 1000 + i64::try_from(passed).unwrap();
            let _ = criticals.ripen(|_| true, now, wall);
            while let Some(write) = criticals.next_write() {
                assert_eq!(write.node, node);
                let index = (!write.times.instances.is_empty()).then_some(7);
                criticals.kept.written(write, index);
            }
        }
        self
    }

    /// The guard lets all of it go.
    fn let_go(mut self) -> Self {
        for key in [key("p"), mesh::proxy_key("p")] {
            if self.decide(&key).held().is_some_and(Hold::is_guards) {
                self.rules.guard.found(&key);
            }
        }
        self.rules.guard.release();
        self.looked(true)
    }

    /// The API server was asked for what would go.
    fn looked(mut self, agrees: bool) -> Self {
        let now = Instant::now();
        let finding = self.decide(&key("p"));
        if finding.hold == Some(Hold::Unseen) {
            let watched = finding.critical.unwrap();
            let (criticals, pod) = (&mut self.rules.criticals, watched.pod.unwrap());
            criticals.looks.want(&watched.instance, &pod, now);
            let look = criticals.next_look(now).unwrap();
            assert_eq!(
                (look.pod.namespace, look.pod.name),
                ("shop".into(), "p".into())
            );
            let may_go = criticals.looks.answered(look.id, agrees, now, 1.0);
            assert_eq!(may_go.is_some(), agrees);
        }
        self
    }

    fn gone(mut self) -> Self {
        for key in [instance_key("p"), proxy()] {
            self.mirror.wrote_instance(&key, None);
        }
        self
    }

    fn node_is(mut self, ready: Tristate) -> Self {
        let facts = NodeFacts {
            ready,
            ..node("n1")
        };
        self.index.apply_node(facts, &mut Touched::default());
        self
    }
}

fn proxy() -> InstanceKey {
    let Key::Instance(key) = mesh::proxy_key("p") else {
        panic!("no instance");
    };
    key
}

fn none() -> serde_json::Value {
    serde_json::json!({})
}

fn keys() -> [Key; 2] {
    [key("p"), mesh::proxy_key("p")]
}

#[test]
fn it_goes_with_its_proxy_and_comes_back_with_it() {
    let bed = unready(&none()).critical_for(Duration::from_secs(89));
    for key in keys() {
        assert_eq!(bed.decide(&key).step, Step::Settled);
    }
    let bed = bed.critical_for(AFTER);
    for key in keys() {
        let finding = bed.decide(&key);
        // Much of it at once could be a view that is wrong.
        assert_eq!(
            (finding.hold, finding.step),
            (Some(Hold::Unjudged), Step::Settled)
        );
    }
    let bed = bed.let_go();
    for key in keys() {
        let Step::Remove(removal) = bed.decide(&key).step else {
            panic!("{key} stays");
        };
        assert_eq!(
            (removal.why, removal.index),
            (gate::Why::Critical(AFTER), 11)
        );
    }
    let bed = bed.gone();
    for key in keys() {
        assert_eq!(bed.decide(&key).step, Step::KeptOut(AFTER));
    }
    let bed = bed.with(pod("p"));
    for key in keys() {
        assert!(put(bed.decide(&key).step).creates());
    }
}

/// The watch of pods may hang, which nobody knows yet.
#[test]
fn a_pods_goes_only_once_the_api_server_was_asked_and_while_that_is_young() {
    let mut bed = unready(&none()).critical_for(AFTER);
    for key in keys() {
        bed.rules.guard.found(&key);
    }
    bed.rules.guard.release();
    let stays = |bed: &Bed| {
        for key in keys() {
            let finding = bed.decide(&key);
            let unseen = (Some(Hold::Unseen), Step::Settled);
            assert_eq!((finding.hold, finding.step), unseen);
        }
    };
    stays(&bed);
    let bed = bed.looked(false);
    stays(&bed);
    let mut bed = unready(&none()).critical_for(AFTER).let_go();
    for key in keys() {
        assert!(matches!(bed.decide(&key).step, Step::Remove(_)));
    }
    let later = Instant::now() + Duration::from_secs(11);
    let _ = bed.rules.criticals.ripen(|_| true, later, 1200);
    stays(&bed);
    // The answer was for what was critical then.
    let bed = unready(&none()).critical_for(AFTER).let_go();
    let well = bed.with(pod("p"));
    let mut well = well.critical_for(Duration::ZERO);
    assert!(!well.rules.criticals.looks.shows(&instance_key("p")));
    assert_eq!(well.rules.criticals.next_look(later), None);
}

#[test]
fn one_that_stays_away_is_asked_and_comes_back_when_all_is_well() {
    let checks = serde_json::json!({"checks": [{"name": "api", "tcp": {}}]});
    let mut bed = unready(&checks).with(pod("p"));
    let say = |bed: &mut Bed, status| {
        let output = "TCP: it is so".into();
        let check = Check { status, output };
        bed.rules
            .verdicts
            .found(instance_key("p"), &"uid-p".into(), "api".into(), check);
    };
    // Before it was asked nothing is known of it.
    assert_eq!(
        bed.decide(&key("p")).critical.unwrap().health,
        OwnHealth::Unknown
    );
    say(&mut bed, Health::Critical);
    let mut bed = settled_both(bed, 12).critical_for(AFTER).let_go();
    assert!(matches!(bed.decide(&key("p")).step, Step::Remove(_)));
    bed = bed.gone();
    let finding = bed.decide(&key("p"));
    assert_eq!(finding.step, Step::KeptOut(AFTER));
    assert!(matches!(finding.asks, Asks::These(_, asked) if asked.len() == 1));
    say(&mut bed, Health::Warning);
    assert!(put(bed.decide(&key("p")).step).creates());
}

#[test]
fn what_another_says_of_it_is_no_reason_and_keeps_it_there() {
    let maintenance = |bed: Bed| {
        bed.change(|there| {
            let id = "_service_maintenance:a.shop.web.p".into();
            there.checks.push(ObservedCheck {
                id,
                check: Check {
                    status: Health::Critical,
                    output: Text::default(),
                },
                well_formed: true,
                protocol: None,
                definition: None,
                modify_index: 30,
            });
        })
    };
    let ready = settled_both(unready(&none()).with(pod("p")), 12);
    let bed = maintenance(ready).critical_for(AFTER * 2).let_go();
    for key in keys() {
        assert_eq!(bed.decide(&key).step, Step::Settled);
    }
    let bed = maintenance(unready(&none()))
        .critical_for(AFTER * 2)
        .let_go();
    for key in keys() {
        let finding = bed.decide(&key);
        assert_eq!((finding.hold, finding.step), (None, Step::Settled));
    }
}

#[test]
fn nothing_goes_while_its_node_or_the_view_is_lost() {
    let bed = || unready(&none()).critical_for(AFTER).let_go();
    assert!(matches!(bed().decide(&key("p")).step, Step::Remove(_)));
    let stays = |bed: &Bed| {
        let finding = bed.decide(&key("p"));
        assert_eq!(
            (finding.hold.clone(), &finding.step),
            (None, &Step::Settled)
        );
        assert_eq!(finding.critical.unwrap().health, OwnHealth::Doubted);
    };
    for ready in [Tristate::False, Tristate::Unknown] {
        stays(&bed().node_is(ready));
    }
    let mut gone = bed();
    gone.index
        .remove_node(&"n1".into(), &mut Touched::default());
    stays(&gone);
    for kind in [Kind::Pod, Kind::Node, Kind::Registration] {
        let mut bed = bed();
        bed.index.watches.broken(kind, "timeout".to_owned());
        stays(&bed);
        // Nor does what went before come back for that.
        assert_eq!(bed.gone().decide(&key("p")).step, Step::KeptOut(AFTER));
    }
    let mut panics = bed();
    for number in 0..5 {
        let name = format!("m{number}").into();
        panics.rules.nodes.observe(&name, false, Instant::now());
    }
    panics.rules.nodes.judge(Instant::now());
    stays(&panics);
    // While pods are listed anew, it waits.
    let mut listing = bed();
    listing.index.watches.listing(Kind::Pod);
    let finding = listing.decide(&key("p"));
    assert!(matches!(finding.hold, Some(Hold::Incomplete { .. })));
}

#[test]
fn what_could_not_come_back_does_not_go() {
    let bed = || unready(&none()).critical_for(AFTER).let_go();
    for (annotation, value) in [("paused", "true"), ("weight", "heavy")] {
        let pod = pod("p").not_ready("app", "").lictor(annotation, value);
        let finding = bed().with(pod).decide(&key("p"));
        assert!(finding.freeze.is_some(), "{annotation}");
        assert!(!matches!(finding.step, Step::Remove(_)), "{annotation}");
    }
}

#[test]
fn where_a_warning_is_asked_for_nothing_is_ever_critical() {
    let bed = unready(&serde_json::json!({"notReady": "Warning"}));
    let bed = bed.critical_for(AFTER * 2).let_go();
    assert_eq!(bed.decide(&key("p")).step, Step::Settled);
}

#[test]
fn the_shorter_of_both_times_counts_and_without_any_nothing_does() {
    let bed = |after: Option<u64>| {
        let mut bed = Bed::new().with(web("p").not_ready("app", ""));
        let after = after.map(Duration::from_secs);
        bed.rules.criticals = Criticals::new(after);
        bed
    };
    assert_eq!(bed(None).decide(&key("p")).critical, None);
    let after = |bed: &Bed| bed.decide(&key("p")).critical.unwrap().after;
    assert_eq!(after(&bed(Some(40))), Duration::from_secs(40));
    for (flag, counts) in [(40, 40), (3600, 90)] {
        let bed = asking_with(bed(Some(flag)), &spec(&none()));
        assert_eq!(after(&bed), Duration::from_secs(counts));
    }
}

#[test]
fn nothing_goes_under_a_policy_without_removals_and_the_guard_is_asked() {
    let mut bed = unready(&none()).critical_for(AFTER).let_go();
    bed.rules.mode = Mode::UpsertOnly;
    let finding = bed.decide(&key("p"));
    assert_eq!(finding.hold, Some(Hold::Policy(Mode::UpsertOnly)));
    assert_eq!(finding.step, Step::Settled);
}

#[test]
fn what_is_held_is_written_all_the_same() {
    let bed = unready(&none()).critical_for(AFTER);
    let pod = pod("p").not_ready("app", "").ips(&["10.0.0.9"]);
    let finding = bed.with(pod).decide(&key("p"));
    assert_eq!(finding.hold, Some(Hold::Unjudged));
    assert_eq!(
        put(finding.step).service.unwrap().0.address,
        "10.0.0.9".into()
    );
}

/// Before what is kept was read, nobody knows whether something was deregistered before.
#[test]
fn what_may_have_been_deregistered_before_waits_until_that_is_known() {
    let mut bed = unready(&none()).gone();
    bed.rules.criticals.kept.doubt();
    let uid = bed.decide(&key("p")).critical.unwrap().uid;
    assert_eq!(bed.decide(&key("p")).step, Step::Waiting);
    assert!(put(bed.with(pod("p")).decide(&key("p")).step).creates());

    let read = |since: i64| {
        let InstanceKey { node, id } = instance_key("p");
        let value = format!(r#"{{"instances":{{"{id}":{{"since":{since},"uid":"{uid}"}}}}}}"#);
        let mut bed = unready(&none()).gone();
        bed.read(&[KvPair {
            key: crate::model::critical::key(&"a".parse().unwrap(), &node).into(),
            value: value.into_bytes().into(),
            ..KvPair::default()
        }]);
        bed.decide(&key("p")).step
    };
    assert_eq!(read(910), Step::KeptOut(AFTER));
    assert!(put(read(911)).creates());
    // Where it cannot be read, it is registered.
    let mut bed = unready(&none()).gone();
    bed.rules.criticals.kept.failed();
    assert!(put(bed.decide(&key("p")).step).creates());
}

#[test]
fn what_is_anothers_never_goes() {
    let bed = unready(&none()).critical_for(AFTER).let_go();
    let bed = bed.change(|there| {
        let another = (Text::from(marks::CLUSTER), Text::from("b"));
        there.service.meta = [another].into_iter().collect();
    });
    let finding = bed.decide(&key("p"));
    assert!(matches!(finding.step, Step::OwnedByAnother { .. }));
    assert_eq!(finding.critical, None);
    // What another hand took the marks from is put right first.
    let bed = unready(&none()).critical_for(AFTER).let_go();
    let bed = bed.change(|there| there.service.meta = Pairs::default());
    assert!(put(bed.decide(&key("p")).step).service.is_some());
}
