use super::*;

/// A machine with a clock, and dice that always show the same.
struct Bench {
    machine: Machine,
    now: Instant,
    dice: f64,
    said: Vec<Say>,
}

impl Bench {
    fn new() -> Self {
        Self {
            machine: Machine::new(),
            now: Instant::now(),
            dice: 0.5,
            said: Vec::new(),
        }
    }

    fn step(&mut self) -> Step {
        let (say, step) = self.machine.step(&mut || self.dice);
        self.said.extend(say);
        step
    }

    /// The next step that is not a pause, and the time spent in pauses.
    fn after_pauses(&mut self) -> (Duration, Step) {
        let before = self.now;
        loop {
            match self.step() {
                Step::Pause(pause) => self.now += pause,
                step => return (self.now - before, step),
            }
        }
    }

    fn page(&mut self, version: &str, token: Option<&str>) {
        let say = self.machine.page(
            &version.into(),
            token.map(str::to_owned),
            self.now,
            &mut || self.dice,
        );
        self.said.extend(say);
    }

    fn seen(&mut self, version: &str) {
        self.said.extend(self.machine.seen(version.into()));
    }

    fn failed(&mut self, failure: Failure) {
        let say = self.machine.failed(failure, self.now, &mut || self.dice);
        self.said.extend(say);
    }

    fn ended(&mut self) {
        let say = self.machine.ended(self.now, &mut || self.dice);
        self.said.extend(say);
    }

    fn open(&mut self) {
        assert!(matches!(self.after_pauses().1, Step::Watch { .. }));
        self.machine.opened(self.now);
    }

    fn said(&mut self) -> Vec<Say> {
        std::mem::take(&mut self.said)
    }

    /// Listed at version 10, and the watch is open and well.
    fn watching() -> Self {
        let mut bench = Self::new();
        bench.step();
        bench.page("10", None);
        bench.open();
        bench.said();
        bench
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

fn broken(kind: BrokenKind, message: &str) -> Broken {
    Broken {
        kind,
        message: message.into(),
    }
}

fn other(kind: BrokenKind) -> Failure {
    Failure::Other {
        why: broken(kind, "x"),
        pause: None,
    }
}

fn says(kind: BrokenKind) -> Say {
    Say::Broken(broken(kind, "x"))
}

fn watch_from(step: &Step) -> &str {
    match step {
        Step::Watch { from, .. } => from,
        other => panic!("no watch: {other:?}"),
    }
}

const FIRST_LIST: Step = Step::List { token: None };

#[test]
fn a_list_is_read_to_its_end_and_watched_from_its_version() {
    let mut bench = Bench::new();
    assert_eq!(bench.step(), FIRST_LIST);
    bench.page("10", Some("next"));
    assert_eq!(
        bench.step(),
        Step::List {
            token: Some("next".into())
        }
    );
    bench.page("10", None);
    let step = bench.step();
    assert_eq!(watch_from(&step), "10");
    assert!(matches!(
        step,
        Step::Watch {
            seconds: 50..=60,
            ..
        }
    ));
    assert_eq!(bench.said(), [Say::Listing, Say::Listed("10".into())]);
}

#[test]
fn the_length_of_a_watch_is_spread() {
    let mut bench = Bench::watching();
    bench.ended();
    for (dice, expected) in [(0.0, 50), (0.999, 60)] {
        bench.dice = dice;
        let (_, step) = bench.after_pauses();
        assert!(
            matches!(step, Step::Watch { seconds, .. } if seconds == expected),
            "{step:?}"
        );
    }
}

#[test]
fn a_watch_that_ends_by_its_timeout_goes_on_without_a_word() {
    let mut bench = Bench::watching();
    bench.seen("12");
    bench.pass(55);
    bench.ended();
    assert_eq!(watch_from(&bench.step()), "12");
    assert_eq!(bench.said(), []);
}

#[test]
fn a_quiet_watch_goes_on_from_the_list() {
    let mut bench = Bench::watching();
    bench.pass(55);
    bench.ended();
    assert_eq!(watch_from(&bench.step()), "10");
}

#[test]
fn a_full_list_is_due_now_and_then() {
    let mut bench = Bench::watching();
    let mut lists = Vec::new();
    for minute in 0..60 {
        bench.pass(60);
        bench.ended();
        if bench.step() == FIRST_LIST {
            lists.push(minute);
            bench.page("20", None);
        } else {
            bench.machine.opened(bench.now);
            continue;
        }
        bench.open();
    }
    assert_eq!(lists, [14, 29, 44, 59]);
}

#[test]
fn too_old_a_version_leads_to_a_list_at_once_and_then_with_pauses() {
    let mut bench = Bench::watching();
    bench.pass(5);
    bench.failed(Failure::Gone);
    assert_eq!(bench.after_pauses(), (Duration::ZERO, FIRST_LIST));
    assert_eq!(bench.said(), [Say::Listing]);
    bench.page("20", None);
    bench.open();
    bench.failed(Failure::Gone);
    let (pause, step) = bench.after_pauses();
    assert!(pause > Duration::ZERO);
    assert_eq!(step, FIRST_LIST);
}

#[test]
fn a_token_that_is_too_old_starts_the_list_over() {
    let mut bench = Bench::new();
    bench.step();
    bench.page("10", Some("next"));
    bench.step();
    bench.failed(Failure::Gone);
    assert_eq!(bench.after_pauses().1, FIRST_LIST);
    assert_eq!(bench.said(), [Say::Listing, Say::Listing]);
}

#[test]
fn a_broken_watch_is_told_once_and_healed_when_it_stays_open() {
    let mut bench = Bench::watching();
    bench.seen("11");
    bench.failed(other(BrokenKind::Unreachable));
    assert_eq!(watch_from(&bench.after_pauses().1), "11");
    bench.failed(other(BrokenKind::Unreachable));
    bench.open();
    assert_eq!(bench.said(), [says(BrokenKind::Unreachable)]);
    assert!(bench.machine.is_broken());
    let say = bench.machine.vouched();
    assert_eq!(say, Some(Say::Healthy));
    assert_eq!(bench.machine.vouched(), None);
}

#[test]
fn an_event_heals_before_it_is_told() {
    let mut bench = Bench::watching();
    bench.failed(other(BrokenKind::Failed));
    bench.open();
    bench.seen("12");
    assert_eq!(bench.said(), [says(BrokenKind::Failed), Say::Healthy]);
}

#[test]
fn a_watch_reopened_at_too_old_a_version_never_counts_as_healthy() {
    let mut bench = Bench::watching();
    bench.failed(other(BrokenKind::Unreachable));
    bench.open();
    bench.failed(Failure::Gone);
    assert_eq!(bench.after_pauses().1, FIRST_LIST);
    bench.page("30", None);
    assert_eq!(
        bench.said(),
        [
            says(BrokenKind::Unreachable),
            Say::Listing,
            Say::Listed("30".into())
        ]
    );
    assert!(!bench.machine.is_broken());
}

#[test]
fn another_reason_is_told_too() {
    let mut bench = Bench::watching();
    for kind in [
        BrokenKind::Unreachable,
        BrokenKind::Denied,
        BrokenKind::Denied,
    ] {
        bench.failed(other(kind));
        bench.after_pauses();
    }
    assert_eq!(
        bench.said(),
        [says(BrokenKind::Unreachable), says(BrokenKind::Denied)]
    );
}

#[test]
fn pauses_grow_to_a_limit_and_start_again_after_health() {
    let mut bench = Bench::watching();
    bench.dice = 1.0;
    let mut pauses = Vec::new();
    for _ in 0..10 {
        bench.failed(other(BrokenKind::Unreachable));
        pauses.push(bench.after_pauses().0.as_millis());
    }
    assert_eq!(
        pauses,
        [200, 400, 800, 1600, 3200, 6400, 10000, 10000, 10000, 10000]
    );
    bench.machine.opened(bench.now);
    bench.pass(2);
    bench.failed(other(BrokenKind::Unreachable));
    assert_eq!(bench.after_pauses().0, FIRST_PAUSE);
}

#[test]
fn the_server_may_ask_for_a_longer_pause_within_the_limit() {
    for (asked, given) in [(5, 5), (500, 30)] {
        let mut bench = Bench::watching();
        let why = broken(BrokenKind::Failed, "busy");
        bench.failed(Failure::Other {
            why,
            pause: Some(Duration::from_secs(asked)),
        });
        assert_eq!(bench.after_pauses().0, Duration::from_secs(given));
    }
}

#[test]
fn a_kind_that_is_not_served_is_looked_for_every_few_seconds_and_then_listed() {
    let mut bench = Bench::watching();
    bench.failed(other(BrokenKind::Missing));
    for _ in 0..5 {
        assert_eq!(bench.after_pauses(), (Duration::from_secs(3), FIRST_LIST));
        bench.failed(other(BrokenKind::Missing));
    }
    bench.after_pauses();
    bench.page("40", None);
    let said = bench.said();
    assert_eq!(said.first(), Some(&says(BrokenKind::Missing)));
    assert_eq!(said.last(), Some(&Say::Listed("40".into())));
    assert_eq!(
        said.iter()
            .filter(|say| matches!(say, Say::Broken(_)))
            .count(),
        1
    );
}

#[test]
fn what_cannot_be_decoded_is_not_asked_for_again() {
    let mut bench = Bench::watching();
    bench.failed(Failure::Undecodable("x".into()));
    assert_eq!(bench.after_pauses().1, FIRST_LIST);
    assert_eq!(bench.said(), [says(BrokenKind::Failed), Say::Listing]);
}

#[test]
fn a_failed_list_starts_over() {
    let mut bench = Bench::new();
    bench.step();
    bench.page("10", Some("next"));
    bench.failed(other(BrokenKind::Unreachable));
    assert_eq!(bench.after_pauses().1, FIRST_LIST);
    assert_eq!(
        bench.said(),
        [Say::Listing, says(BrokenKind::Unreachable), Say::Listing]
    );
}

#[test]
fn watches_that_end_at_once_do_not_spin_and_are_a_failure_in_the_end() {
    let mut bench = Bench::watching();
    let mut paused = Duration::ZERO;
    for _ in 0..STILLBORN {
        assert_eq!(bench.said(), []);
        bench.ended();
        let (pause, step) = bench.after_pauses();
        paused += pause;
        assert_eq!(watch_from(&step), "10");
        bench.machine.opened(bench.now);
    }
    assert!(paused > FIRST_PAUSE);
    assert!(
        matches!(&bench.said()[..], [Say::Broken(broken)] if broken.kind == BrokenKind::Failed)
    );
    bench.pass(2);
    bench.ended();
    assert_eq!(bench.after_pauses().0, Duration::ZERO);
}

#[test]
fn versions_that_go_back_lead_to_a_list() {
    for (version, back) in [("9", true), ("10", false), ("101", false), ("x", false)] {
        let mut bench = Bench::watching();
        bench.failed(other(BrokenKind::Unreachable));
        assert_eq!(bench.machine.went_back(version), back, "{version}");
        let step = bench.after_pauses().1;
        assert_eq!(matches!(step, Step::List { token: None }), back, "{step:?}");
    }
}

#[test]
fn what_goes_with_its_crd_is_told_as_broken_and_listed_again() {
    let mut bench = Bench::watching();
    bench.failed(Failure::Leaving("its CRD is being deleted".into()));
    let said = bench.said();
    assert!(
        matches!(&said[..], [Say::Broken(broken)] if broken.kind == BrokenKind::Leaving),
        "{said:?}"
    );
    assert!(bench.machine.is_broken());
    assert!(matches!(bench.after_pauses().1, Step::List { token: None }));
}
