//! How long instances have been critical, without anything around it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tokio::time::Instant;

use super::clock::PROOF;
use super::kept::Kept;
use super::*;
use crate::consul::wire::KvPair;
use crate::model::critical;
use crate::model::names::{ClusterName, InstanceId, NodeName};

const AFTER: Duration = Duration::from_secs(90);
const JUST_BEFORE: Duration = Duration::from_secs(89);

fn cluster() -> ClusterName {
    "a".parse().unwrap()
}

fn node(name: &str) -> NodeName {
    NodeName::for_kubernetes(&cluster(), name)
}

fn key(name: &str) -> InstanceKey {
    InstanceKey {
        node: node("n1"),
        id: InstanceId::observed(&format!("a.shop.web.{name}")),
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A process, what Consul keeps of what it writes, and time.
struct Process {
    criticals: Criticals,
    /// Keys by name, with their `ModifyIndex`.
    kv: BTreeMap<String, (Vec<u8>, u64)>,
    writes: usize,
    now: Instant,
    wall: i64,
    /// Instances that Consul does not have.
    out: Vec<InstanceKey>,
    uid: &'static str,
    after: Duration,
}

impl Process {
    fn new() -> Self {
        let mut process = Self {
            criticals: Criticals::default(),
            kv: BTreeMap::new(),
            writes: 0,
            now: Instant::now(),
            wall: 1_000_000,
            out: Vec::new(),
            uid: "u",
            after: AFTER,
        };
        process.read();
        process
    }

    /// Another process takes its place.
    fn restart(&mut self) {
        self.criticals = Criticals::default();
        self.read();
    }

    fn read(&mut self) {
        let pairs = self.kv.iter().map(|(key, (value, index))| KvPair {
            key: key.as_str().into(),
            value: value.as_slice().into(),
            modify_index: *index,
            ..KvPair::default()
        });
        let pairs: Vec<KvPair> = pairs.collect();
        let (kept, garbled) = Kept::of(&cluster(), &pairs, self.now, self.wall);
        assert!(garbled.len() <= 1, "{garbled:?}");
        let out = self.out.clone();
        let is_there = |key: &InstanceKey| !out.contains(key);
        let _ = self.criticals.read(kept, is_there, self.now);
        self.write();
    }

    fn write(&mut self) {
        while let Some(write) = self.criticals.next_write() {
            self.writes += 1;
            let name = critical::key(&cluster(), &write.node);
            let there = self.kv.get(&name).map_or(0, |(_, index)| *index);
            assert_eq!(there, write.index);
            let index = u64::try_from(self.writes).unwrap();
            if write.times.instances.is_empty() {
                self.kv.remove(&name);
                self.criticals.kept.written(write, None);
            } else {
                let value = serde_json::to_vec(&write.times).unwrap();
                self.kv.insert(name, (value, index));
                self.criticals.kept.written(write, Some(index));
            }
        }
    }

    fn is(&mut self, health: OwnHealth) {
        self.is_for(&key("p"), health);
    }

    fn is_for(&mut self, key: &InstanceKey, health: OwnHealth) {
        let watched = Watched {
            instance: key.clone(),
            uid: self.uid.into(),
            after: self.after,
            health,
            there: !self.out.contains(key),
            pod: None,
        };
        self.criticals.observe(key, Some(&watched), self.now);
        self.write();
    }

    /// Time passes in which the process does what falls due; all that is critical stays so.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let wake = self.criticals.wake_at().filter(|wake| *wake <= end);
            let to = wake.unwrap_or(end).max(self.now);
            self.wall += i64::try_from((to - self.now).as_secs()).unwrap();
            self.now = to;
            let out = self.out.clone();
            let is_there = |key: &InstanceKey| !out.contains(key);
            for key in self.criticals.ripen(is_there, self.now, self.wall) {
                self.is_for(&key, OwnHealth::Critical);
            }
            self.write();
            if wake.is_none() {
                return;
            }
        }
    }

    fn interrupt(&mut self) {
        let out = self.out.clone();
        let is_there = |key: &InstanceKey| !out.contains(key);
        self.criticals.interrupt(None, is_there, self.now);
        self.write();
    }

    fn goes(&self) -> bool {
        self.criticals.may_go(&key("p"), &self.uid.into(), AFTER)
    }

    fn stays_away(&self) -> Out {
        self.criticals.out(&key("p"), &self.uid.into(), AFTER)
    }

    fn kept(&self) -> Option<i64> {
        let (value, _) = self.kv.get(&critical::key(&cluster(), &node("n1")))?;
        let times: critical::CriticalTimes = serde_json::from_slice(value).unwrap();
        times
            .instances
            .get(key("p").id.as_ref())
            .map(|time| time.since)
    }
}

#[test]
fn it_goes_after_its_time_and_not_a_second_before() {
    let mut process = Process::new();
    process.is(OwnHealth::Critical);
    process.pass(JUST_BEFORE);
    assert!(!process.goes());
    process.pass(seconds(1));
    assert!(process.goes());
    assert_eq!(process.kept(), Some(1_000_000));
    assert_eq!(process.writes, 1);
}

#[test]
fn what_recovers_begins_anew_and_what_does_so_soon_is_never_kept() {
    let mut process = Process::new();
    for _ in 0..20 {
        process.is(OwnHealth::Critical);
        process.pass(seconds(9));
        process.is(OwnHealth::Well);
    }
    assert_eq!((process.goes(), process.writes), (false, 0));
    process.is(OwnHealth::Critical);
    process.pass(JUST_BEFORE);
    process.is(OwnHealth::Well);
    assert_eq!((process.kept(), process.writes), (None, 2));
    process.is(OwnHealth::Critical);
    process.pass(JUST_BEFORE);
    assert!(!process.goes());
}

#[test]
fn a_restart_goes_on_from_what_is_kept_and_writes_nothing() {
    let mut process = Process::new();
    process.is(OwnHealth::Critical);
    process.pass(seconds(50));
    let (writes, since) = (process.writes, process.kept());
    process.restart();
    // Nobody asked it for 15 seconds.
    process.pass(seconds(15));
    process.is(OwnHealth::Unknown);
    process.pass(seconds(5));
    process.is(OwnHealth::Critical);
    process.pass(seconds(19));
    assert!(!process.goes());
    process.pass(seconds(1));
    assert!(process.goes());
    assert_eq!((process.writes, process.kept()), (writes, since));
}

#[test]
fn what_was_critical_for_long_is_seen_to_be_so_first() {
    let mut process = Process::new();
    process.is(OwnHealth::Critical);
    process.pass(seconds(80));
    process.restart();
    process.is(OwnHealth::Critical);
    process.pass(seconds(9));
    assert!(!process.goes());
    process.pass(seconds(1));
    assert!(process.goes());
}

#[test]
fn a_clock_that_jumps_sweeps_nothing_at_once_and_stops_nothing_for_good() {
    let mut process = Process::new();
    process.is(OwnHealth::Critical);
    process.pass(seconds(20));
    // While it runs, the clock on the wall says nothing.
    process.wall += 1_000_000;
    process.pass(seconds(69));
    assert!(!process.goes());
    // To a start a month later it may have been critical for as long.
    process.restart();
    process.is(OwnHealth::Critical);
    assert!(!process.goes());
    process.pass(PROOF);
    assert!(process.goes());
    // A time in the future is none: it begins anew, and is kept anew.
    process.wall -= 2_000_000;
    process.restart();
    process.is(OwnHealth::Critical);
    process.pass(JUST_BEFORE);
    assert!(!process.goes());
    process.pass(seconds(1));
    assert!(process.goes());
    assert_eq!(process.kept(), Some(process.wall - 90));
}

#[test]
fn where_the_view_was_lost_it_begins_anew() {
    let mut process = Process::new();
    process.is(OwnHealth::Critical);
    process.pass(seconds(80));
    process.interrupt();
    assert_eq!(process.kept(), None);
    process.pass(JUST_BEFORE);
    assert!(!process.goes());
    process.pass(seconds(1));
    assert!(process.goes());
    // Also to one that started meanwhile, and read what is kept after.
    process.criticals = Criticals::default();
    process.interrupt();
    process.pass(seconds(1));
    process.read();
    process.is(OwnHealth::Critical);
    process.pass(JUST_BEFORE);
    assert!(!process.goes());
    // Long after, it is as ever: kubelets had their time.
    process.pass(seconds(1));
    process.criticals = Criticals::default();
    process.interrupt();
    process.pass(seconds(120));
    process.read();
    process.is(OwnHealth::Critical);
    process.pass(PROOF);
    assert!(process.goes());
}

/// After a restore of Consul the write that takes a time out has an index that is not valid any more.
#[test]
fn what_is_read_again_before_a_time_was_taken_out_does_not_bring_it_back() {
    let mut process = Process::new();
    process.is(OwnHealth::Critical);
    process.pass(seconds(80));
    let (before, since) = (process.kv.clone(), process.kept());
    process.interrupt();
    assert_eq!(process.kept(), None);
    for _ in 0..2 {
        process.pass(seconds(5));
        process.kv.clone_from(&before);
        assert_eq!(process.kept(), since);
        process.criticals.kept.doubt();
        process.read();
        process.is(OwnHealth::Critical);
    }
    process.pass(seconds(79));
    assert!(!process.goes());
    process.pass(seconds(1));
    assert!(process.goes());
}

#[test]
fn while_its_node_is_lost_it_does_not_count() {
    let mut process = Process::new();
    process.is(OwnHealth::Critical);
    process.pass(seconds(80));
    process.is(OwnHealth::Doubted);
    assert_eq!(process.kept(), None);
    process.now += seconds(1);
    process.is(OwnHealth::Critical);
    process.pass(JUST_BEFORE);
    assert!(!process.goes());
    process.pass(seconds(1));
    assert!(process.goes());
}

#[test]
fn a_node_that_is_lost_is_looked_at_again_where_nobody_tells_of_its_instances() {
    let mut process = Process::new();
    process.is(OwnHealth::Doubted);
    let wake = process.criticals.wake_at().unwrap();
    assert_eq!(wake - process.now, AFTER);
    process.pass(AFTER * 2);
    assert!(
        process.goes(),
        "it was seen at {AFTER:?} and is critical since"
    );
}

#[test]
fn a_process_that_stood_still_begins_anew() {
    let mut process = Process::new();
    process.is(OwnHealth::Critical);
    process.pass(seconds(50));
    process.now += seconds(60);
    process.wall += 60;
    let _ = process.criticals.ripen(|_| true, process.now, process.wall);
    assert!(!process.goes());
    process.is(OwnHealth::Critical);
    process.pass(JUST_BEFORE);
    assert!(!process.goes());
    process.pass(seconds(1));
    assert!(process.goes());
}

#[test]
fn what_was_deregistered_stays_away_until_it_is_well() {
    let mut process = Process::new();
    process.is(OwnHealth::Critical);
    process.pass(AFTER);
    process.out.push(key("p"));
    assert_eq!(process.stays_away(), Out::Yes);
    // Whatever becomes of the view, the process, or how it is asked.
    process.interrupt();
    process.is(OwnHealth::Doubted);
    process.is(OwnHealth::Unknown);
    process.pass(AFTER * 2);
    assert_eq!(process.stays_away(), Out::Yes);
    process.criticals = Criticals::default();
    assert_eq!(process.stays_away(), Out::Unread);
    process.read();
    assert_eq!(process.stays_away(), Out::Yes);
    process.is(OwnHealth::Critical);
    assert_eq!(process.stays_away(), Out::Yes);
    process.is(OwnHealth::Well);
    assert_eq!((process.stays_away(), process.kept()), (Out::No, None));
}

#[test]
fn another_of_its_name_begins_anew() {
    let mut process = Process::new();
    process.is(OwnHealth::Critical);
    process.pass(AFTER);
    process.out.push(key("p"));
    process.uid = "v";
    assert_eq!(process.stays_away(), Out::No);
    process.is(OwnHealth::Critical);
    assert_eq!((process.stays_away(), process.kept()), (Out::No, None));
    process.restart();
    assert_eq!(process.stays_away(), Out::No);
    // Also where the one before was seen by another process alone.
    let mut process = Process::new();
    process.is(OwnHealth::Critical);
    process.pass(AFTER);
    process.uid = "v";
    process.restart();
    process.is(OwnHealth::Critical);
    process.pass(PROOF);
    assert!(!process.goes());
    assert_eq!(process.kept(), Some(process.wall - 10));
}

#[test]
fn by_a_key_that_is_not_understood_nothing_goes_and_it_stays_as_it_is() {
    let mut process = Process::new();
    let name = critical::key(&cluster(), &node("n1"));
    process.kv.insert(name.clone(), (b"v2".to_vec(), 1));
    process.restart();
    process.is(OwnHealth::Critical);
    process.pass(AFTER * 2);
    assert!(!process.goes());
    assert_eq!(process.kv[&name], (b"v2".to_vec(), 1));
    let elsewhere = InstanceKey {
        node: node("n2"),
        ..key("p")
    };
    process.is_for(&elsewhere, OwnHealth::Critical);
    process.pass(AFTER);
    let uid = process.uid.into();
    assert!(process.criticals.may_go(&elsewhere, &uid, AFTER));
    process.kv.remove(&name);
    process.read();
    assert!(process.goes());
}

#[test]
fn nothing_goes_while_it_cannot_be_kept() {
    let mut process = Process::new();
    process.criticals.kept.failed();
    process.is(OwnHealth::Critical);
    process.pass(AFTER * 2);
    assert_eq!((process.goes(), process.writes), (false, 0));
    process.read();
    assert!(process.goes());
}

#[test]
fn what_nothing_claims_any_more_is_kept_no_longer_and_fields_of_a_newer_release_are() {
    let mut process = Process::new();
    process.is(OwnHealth::Critical);
    process.pass(PROOF);
    let name = critical::key(&cluster(), &node("n1"));
    let (value, _) = process.kv.get_mut(&name).unwrap();
    let mut times: serde_json::Value = serde_json::from_slice(value).unwrap();
    times["format"] = 2.into();
    times["instances"][key("p").id.as_ref()]["by"] = "x".into();
    *value = times.to_string().into_bytes();
    process.restart();
    let other = key("q");
    process.is(OwnHealth::Critical);
    process.is_for(&other, OwnHealth::Critical);
    process.pass(PROOF);
    let (value, _) = &process.kv[&name];
    let times: serde_json::Value = serde_json::from_slice(value).unwrap();
    assert_eq!(times["format"], 2);
    assert_eq!(times["instances"][key("p").id.as_ref()]["by"], "x");
    assert!(times["instances"][other.id.as_ref()]["by"].is_null());
    for key in [key("p"), other] {
        process.criticals.observe(&key, None, process.now);
    }
    process.write();
    assert!(process.kv.is_empty());
}

/// What is critical for a day does not keep from its end what is critical for a minute.
#[test]
fn only_what_is_due_within_the_window_of_the_guard_is_on_its_way() {
    let mut process = Process::new();
    process.after = seconds(24 * 60 * 60);
    for number in 0..35 {
        process.is_for(&key(&format!("slow-{number}")), OwnHealth::Critical);
    }
    process.after = AFTER;
    process.is_for(&key("fast"), OwnHealth::Critical);
    let mut now = process.now + PROOF;
    let _ = process.criticals.ripen(|_| true, now, process.wall);
    assert_eq!(process.criticals.soon(now), 1);
    now = process.now + seconds(24 * 60 * 60 - 10 * 60 - 1);
    assert_eq!(process.criticals.soon(now), 1);
    now += seconds(1);
    assert_eq!(process.criticals.soon(now), 36);
}

#[test]
fn a_key_without_instances_goes() {
    let mut process = Process::new();
    let name = critical::key(&cluster(), &node("n1"));
    process
        .kv
        .insert(name.clone(), (br#"{"instances":{}}"#.to_vec(), 7));
    process.restart();
    assert!(process.kv.is_empty());
    // Not one that is not understood, or that a newer release filled.
    let long = format!(
        r#"{{"instances":{{}},"more":"{}"}}"#,
        "x".repeat(300 * 1024)
    );
    for value in ["v2".to_owned(), long] {
        process.kv.insert(name.clone(), (value.into_bytes(), 8));
        process.restart();
        process.is(OwnHealth::Critical);
        process.pass(AFTER);
        assert!(!process.goes());
        assert_eq!(process.kv[&name].1, 8);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Is(OwnHealth),
    Pass(u64),
    Interrupt,
    Restart,
    /// The clock on the wall jumps, and a restart later.
    Jump(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Is(OwnHealth::Critical)),
        1 => Just(Step::Is(OwnHealth::Well)),
        1 => Just(Step::Is(OwnHealth::Unknown)),
        1 => Just(Step::Is(OwnHealth::Doubted)),
        8 => (1..60_u64).prop_map(Step::Pass),
        1 => Just(Step::Interrupt),
        2 => Just(Step::Restart),
        1 => (-1000..1000_i64).prop_map(Step::Jump),
    ]
}

proptest! {
    /// Whatever happens, it goes only after this process has seen it critical for [`PROOF`], and, without
    /// a jump of the clock, only when it was critical for the whole time.
    #[test]
    fn nothing_goes_early(steps in prop::collection::vec(step(), 1..60)) {
        let mut process = Process::new();
        let (mut health, mut seen, mut critical) = (OwnHealth::Well, seconds(0), seconds(0));
        let mut jumped = false;
        for step in steps {
            match step {
                Step::Is(now) => {
                    health = now;
                    process.is(now);
                    match now {
                        OwnHealth::Critical => {}
                        OwnHealth::Unknown => seen = seconds(0),
                        OwnHealth::Well | OwnHealth::Doubted => {
                            (seen, critical, jumped) = (seconds(0), seconds(0), false);
                        }
                    }
                }
                Step::Pass(time) => {
                    if health == OwnHealth::Critical {
                        process.pass(seconds(time));
                        seen += seconds(time);
                        critical += seconds(time);
                    } else {
                        process.now += seconds(time);
                        process.wall += i64::try_from(time).unwrap();
                        if health == OwnHealth::Unknown {
                            critical += seconds(time);
                        }
                    }
                }
                Step::Interrupt => {
                    process.interrupt();
                    if health == OwnHealth::Critical {
                        process.is(health);
                    }
                    (seen, critical, jumped) = (seconds(0), seconds(0), false);
                }
                Step::Restart | Step::Jump(_) => {
                    if let Step::Jump(by) = step {
                        process.wall += by;
                        jumped = true;
                    }
                    process.restart();
                    process.is(health);
                    seen = seconds(0);
                }
            }
            if process.goes() {
                prop_assert!(health == OwnHealth::Critical || health == OwnHealth::Doubted);
                prop_assert!(seen >= PROOF, "seen for {seen:?}");
                prop_assert!(jumped || critical >= AFTER, "critical for {critical:?}");
            }
        }
    }
}
