use super::*;
use crate::model::names::ClusterName;

const TTL: Duration = Duration::from_secs(30);

fn place(name: &str) -> Place {
    let cluster: ClusterName = "a".parse().unwrap();
    Place {
        node: NodeName::external(&cluster),
        check: name.into(),
    }
}

fn found(name: &str, id: Text) -> Found {
    Found {
        place: place(name),
        id,
        ttl: Some(TTL),
    }
}

struct Bench {
    pulses: Pulses,
    now: Instant,
    next_id: u32,
    /// The sessions that Consul has.
    sessions: Vec<Found>,
    made: usize,
    ended: usize,
    renewed: usize,
}

impl Bench {
    fn new() -> Self {
        Self {
            pulses: Pulses::default(),
            now: Instant::now(),
            next_id: 0,
            sessions: Vec::new(),
            made: 0,
            ended: 0,
            renewed: 0,
        }
    }

    fn follow(&mut self, want: Want, check: Option<Health>) {
        self.pulses
            .follow(&place("x"), (TTL, want), check, self.now);
    }

    fn list(&mut self) -> Vec<Found> {
        let now = self.now;
        self.pulses.listed(self.sessions.clone(), now, now, || 0.5)
    }

    fn add(&mut self) {
        let id = Text::from(self.next_id.to_string());
        self.next_id += 1;
        self.sessions.push(found("x", id));
    }

    /// Does what is due, as Consul does.
    fn work(&mut self, leads: bool) {
        while let Some(begun) = self.pulses.next(leads.then_some(self.now), self.now) {
            let outcome = match &begun.act {
                Act::Create(..) => {
                    self.made += 1;
                    self.add();
                    Outcome::Created(self.sessions.last().unwrap().id.clone())
                }
                Act::Renew(_, id) => {
                    self.renewed += 1;
                    let there = self.sessions.iter().any(|there| there.id == *id);
                    if there {
                        Outcome::Renewed
                    } else {
                        Outcome::Gone
                    }
                }
                Act::End(_, id) => {
                    self.ended += 1;
                    self.sessions.retain(|there| there.id != *id);
                    Outcome::Gone
                }
            };
            self.pulses.done(&begun, outcome, self.now, || 0.5);
        }
    }

    /// How many are counted, which are as many as there are.
    fn alive(&self) -> usize {
        let rows = self.pulses.rows.values();
        let alive = rows.filter(|row| !row.sessions.is_empty()).count();
        assert_eq!(self.pulses.alive(), alive);
        alive
    }

    fn pass(&mut self, seconds: u64, leads: bool) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            self.work(leads);
        }
    }

    fn counts(&self) -> (usize, usize, usize) {
        (self.made, self.renewed, self.ended)
    }
}

use Health::{Critical, Passing};

#[test]
fn one_session_is_made_once_it_is_known_that_there_is_none() {
    let mut bench = Bench::new();
    bench.follow(Want::Alive, Some(Critical));
    bench.work(true);
    assert!(bench.pulses.wants_list());
    assert_eq!(bench.counts(), (0, 0, 0));
    bench.list();
    bench.work(true);
    assert_eq!(bench.counts(), (1, 0, 0));
    bench.follow(Want::Alive, Some(Passing));
    bench.pass(300, true);
    assert_eq!((bench.made, bench.ended), (1, 0));
    assert!((28..=34).contains(&bench.renewed), "{}", bench.renewed);
}

#[test]
fn a_session_that_is_there_is_kept() {
    let mut bench = Bench::new();
    bench.add();
    bench.follow(Want::Alive, Some(Passing));
    bench.list();
    bench.pass(60, true);
    assert_eq!((bench.made, bench.ended), (0, 0));
    assert!(bench.renewed > 4);
}

#[test]
fn none_is_made_before_its_check_is_there() {
    let mut bench = Bench::new();
    bench.follow(Want::Alive, None);
    bench.list();
    bench.work(true);
    assert_eq!(bench.counts(), (0, 0, 0));
    bench.follow(Want::Alive, Some(Critical));
    bench.work(true);
    assert_eq!(bench.counts(), (1, 0, 0));
}

#[test]
fn what_lapses_ends_at_once_and_begins_again() {
    let mut bench = Bench::new();
    bench.follow(Want::Alive, Some(Critical));
    bench.list();
    bench.work(true);
    bench.follow(Want::Ended, Some(Passing));
    bench.work(true);
    assert_eq!((bench.made, bench.ended), (1, 1));
    bench.follow(Want::Ended, Some(Critical));
    bench.pass(100, true);
    assert_eq!((bench.made, bench.ended), (1, 1));
    bench.follow(Want::Alive, Some(Critical));
    bench.work(true);
    assert_eq!((bench.made, bench.ended), (2, 1));
}

#[test]
fn what_is_not_known_is_renewed_and_nothing_else() {
    let mut bench = Bench::new();
    bench.add();
    bench.follow(Want::Kept, Some(Passing));
    bench.list();
    bench.pass(30, true);
    assert_eq!((bench.made, bench.ended), (0, 0));
    assert!(bench.renewed > 1);
    bench.sessions.clear();
    bench.pass(60, true);
    assert_eq!((bench.made, bench.ended), (0, 0), "it expired meanwhile");
}

#[test]
fn who_does_not_lead_renews_only() {
    let mut bench = Bench::new();
    bench.follow(Want::Alive, Some(Critical));
    bench.list();
    bench.pass(60, false);
    assert_eq!(bench.counts(), (0, 0, 0));
    bench.add();
    bench.pulses.doubt(bench.now);
    bench.now += Duration::from_secs(1);
    bench.list();
    bench.pass(60, false);
    assert_eq!((bench.made, bench.ended), (0, 0));
    assert!(bench.renewed > 4);
    bench.follow(Want::Ended, Some(Passing));
    let renewed = bench.renewed;
    bench.pass(60, false);
    assert_eq!(bench.counts(), (0, renewed, 0));
    bench.pulses.reconsider(bench.now);
    bench.work(true);
    assert_eq!(bench.ended, 1);
}

#[test]
fn one_that_is_gone_is_made_anew_when_the_check_shows_it() {
    let mut bench = Bench::new();
    bench.follow(Want::Alive, Some(Critical));
    bench.list();
    bench.work(true);
    bench.follow(Want::Alive, Some(Passing));
    bench.sessions.clear();
    bench.follow(Want::Alive, Some(Critical));
    bench.work(true);
    assert_eq!((bench.made, bench.ended), (1, 0), "another may be there");
    bench.now += Duration::from_secs(1);
    bench.list();
    bench.work(true);
    assert_eq!((bench.made, bench.ended), (2, 0));
}

#[test]
fn a_check_that_does_not_follow_its_session_gets_another() {
    let mut bench = Bench::new();
    bench.follow(Want::Alive, Some(Critical));
    bench.list();
    bench.work(true);
    bench.follow(Want::Alive, Some(Passing));
    // It was registered anew, and the session is older than that.
    bench.now += Duration::from_secs(1);
    bench.follow(Want::Alive, Some(Critical));
    bench.now += Duration::from_millis(1);
    bench.work(true);
    bench.now += Duration::from_millis(1);
    bench.pass(1, true);
    bench.follow(Want::Alive, Some(Passing));
    bench.pass(2, true);
    assert_eq!((bench.made, bench.ended), (2, 1));
    assert_eq!(bench.sessions.len(), 1);
}

#[test]
fn a_check_that_never_follows_is_not_tried_all_the_time() {
    let mut bench = Bench::new();
    bench.follow(Want::Alive, Some(Critical));
    bench.list();
    for _ in 0..600 {
        bench.pass(1, true);
        bench.follow(Want::Alive, Some(Critical));
    }
    assert!(bench.pulses.is_deaf(&place("x")));
    assert!(bench.made < 20, "{}", bench.made);
    assert!(bench.sessions.len() <= 1);
}

#[test]
fn of_two_both_make_room_for_one() {
    let mut bench = Bench::new();
    bench.add();
    bench.add();
    bench.follow(Want::Alive, Some(Passing));
    bench.list();
    bench.work(true);
    assert_eq!((bench.made, bench.ended), (1, 2));
    assert_eq!(bench.sessions.len(), 1);
}

#[test]
fn whether_one_was_made_is_looked_up_and_not_guessed() {
    let mut bench = Bench::new();
    bench.follow(Want::Alive, Some(Critical));
    bench.list();
    let act = bench.pulses.next(Some(bench.now), bench.now).unwrap();
    bench.add();
    bench.pulses.done(&act, Outcome::Lost, bench.now, || 0.5);
    bench.pass(5, true);
    assert_eq!(bench.counts(), (0, 0, 0));
    assert!(bench.pulses.wants_list());
    bench.follow(Want::Alive, Some(Passing));
    bench.list();
    bench.pass(5, true);
    assert_eq!((bench.made, bench.ended), (0, 0));
    assert_eq!(bench.sessions.len(), 1);
}

#[test]
fn an_older_list_does_not_hide_what_was_made_since() {
    let mut bench = Bench::new();
    bench.follow(Want::Alive, Some(Critical));
    bench.list();
    let asked = bench.now;
    bench.now += Duration::from_secs(1);
    bench.work(true);
    bench.pulses.listed(Vec::new(), asked, bench.now, || 0.5);
    bench.pass(20, true);
    assert_eq!(bench.made, 1);
}

#[test]
fn what_nobody_asks_for_ends_and_is_forgotten() {
    let mut bench = Bench::new();
    bench.follow(Want::Alive, Some(Critical));
    bench.list();
    bench.work(true);
    bench.pulses.forget(&place("x"), Some(Passing), bench.now);
    bench.work(true);
    assert_eq!(bench.ended, 0, "the check would turn critical");
    bench.pulses.forget(&place("x"), None, bench.now);
    bench.work(true);
    assert_eq!((bench.made, bench.ended), (1, 1));
    assert_eq!(bench.pulses.places().count(), 0);
    assert_eq!(bench.pulses.wake_at(), None);
}

#[test]
fn sessions_that_nothing_follows_are_told() {
    let mut bench = Bench::new();
    bench.add();
    assert_eq!(bench.list(), bench.sessions);
}

/// One that only makes sessions itself, and has heard of these that nothing follows.
fn relying_on(strays: &[Found]) -> Bench {
    let mut bench = Bench::new();
    bench.sessions.extend_from_slice(strays);
    let strays = bench.list();
    bench.pulses.rely_on(&strays, bench.now);
    bench
}

#[test]
fn for_what_is_followed_later_no_list_is_read_again() {
    let mut bench = relying_on(&[]);
    for number in 0..100 {
        let place = place(&number.to_string());
        assert_eq!(bench.pulses.is_alive(&place), Some(false));
        bench
            .pulses
            .follow(&place, (TTL, Want::Alive), Some(Passing), bench.now);
        bench.work(true);
        bench.pass(1, true);
        assert!(!bench.pulses.wants_list(), "after {number}");
    }
    assert_eq!((bench.made, bench.ended), (100, 0));
    assert!(bench.renewed > 300, "{}", bench.renewed);
}

#[test]
fn what_may_have_sessions_that_were_not_followed_wants_a_list() {
    let mut bench = relying_on(&[found("x", "other".into())]);
    assert_eq!(bench.pulses.is_alive(&place("x")), None);
    bench.follow(Want::Alive, Some(Passing));
    assert!(bench.pulses.wants_list());
    bench.pass(60, true);
    assert_eq!(bench.made, 0);

    // Its node was somebody else's for a while.
    let mut bench = relying_on(&[]);
    bench.follow(Want::Alive, Some(Passing));
    bench.work(true);
    bench.pulses.leave(&place("x"), bench.now);
    assert_eq!(bench.pulses.is_alive(&place("x")), None);
    bench.follow(Want::Alive, Some(Passing));
    assert!(bench.pulses.wants_list());
    // With its node they would have gone.
    bench.list();
    bench.pulses.drop(&place("x"));
    assert_eq!(bench.pulses.is_alive(&place("x")), Some(false));

    // One was made, or may have been, for what is followed no more.
    for outcome in [Outcome::Created("new".into()), Outcome::Lost] {
        let mut bench = relying_on(&[]);
        bench.follow(Want::Alive, Some(Passing));
        let act = bench.pulses.next(Some(bench.now), bench.now).unwrap();
        bench.pulses.drop(&place("x"));
        bench.pulses.done(&act, outcome, bench.now, || 0.5);
        assert_eq!(bench.pulses.is_alive(&place("x")), None);
    }
}

#[test]
fn what_is_under_way_when_its_node_goes_is_waited_for() {
    let mut bench = relying_on(&[]);
    bench.follow(Want::Alive, Some(Critical));
    let begun = bench.pulses.next(Some(bench.now), bench.now).unwrap();
    bench.pulses.drop(&place("x"));
    bench.now += Duration::from_secs(1);
    // No list shows what comes after it.
    bench.pulses.rely_on(&[], bench.now);
    assert_eq!(bench.pulses.is_alive(&place("x")), None);
    bench.follow(Want::Alive, Some(Critical));
    bench.list();
    bench.work(true);
    assert_eq!(bench.counts(), (0, 0, 0));
    bench.add();
    let created = Outcome::Created(bench.sessions[0].id.clone());
    bench.pulses.done(&begun, created, bench.now, || 0.5);
    bench.follow(Want::Alive, Some(Passing));
    assert!(bench.pulses.wants_list(), "it may have gone with the node");
    bench.pass(1, true);
    bench.list();
    bench.pass(20, true);
    assert_eq!((bench.made, bench.ended), (0, 0));
    assert!(bench.renewed > 0);
}

#[test]
fn an_answer_for_what_was_there_before_is_none_for_what_took_its_place() {
    let mut bench = Bench::new();
    bench.add();
    bench.follow(Want::Alive, Some(Passing));
    bench.list();
    bench.now += TTL;
    let renewal = bench.pulses.next(Some(bench.now), bench.now).unwrap();
    bench.pulses.drop(&place("x"));
    bench.sessions.clear();
    bench.follow(Want::Alive, Some(Critical));
    bench.list();
    let creation = bench.pulses.next(Some(bench.now), bench.now).unwrap();
    assert!(matches!(creation.act, Act::Create(..)), "{creation:?}");
    for outcome in [Outcome::Renewed, Outcome::Gone] {
        bench.pulses.done(&renewal, outcome, bench.now, || 0.5);
        assert_eq!(bench.pulses.next(Some(bench.now), bench.now), None);
        assert!(!bench.pulses.wants_list());
    }
    let created = Outcome::Created("new".into());
    bench.pulses.done(&creation, created, bench.now, || 0.5);
    assert_eq!(bench.pulses.is_alive(&place("x")), Some(true));
}

#[test]
fn a_list_says_nothing_of_what_was_left_since_it_was_asked_for() {
    let mut bench = relying_on(&[]);
    bench.follow(Want::Alive, Some(Passing));
    bench.work(true);
    let asked = bench.now;
    bench.now += Duration::from_secs(1);
    bench.pulses.leave(&place("x"), bench.now);
    bench.pulses.rely_on(&[], asked);
    assert_eq!(bench.pulses.is_alive(&place("x")), None);
    bench.now += Duration::from_secs(1);
    bench.pulses.rely_on(&[], bench.now);
    assert_eq!(bench.pulses.is_alive(&place("x")), Some(false));
}

#[test]
fn what_was_doubted_is_listed_before_anything_is_made() {
    let mut bench = relying_on(&[]);
    let asked = bench.now;
    bench.now += Duration::from_secs(1);
    bench.pulses.doubt(bench.now);
    // That list is older than the doubt.
    bench.pulses.rely_on(&[], asked);
    assert_eq!(bench.pulses.is_alive(&place("x")), None);
    bench.follow(Want::Alive, Some(Passing));
    assert!(bench.pulses.wants_list());
    bench.work(true);
    assert_eq!(bench.made, 0);
}

#[test]
fn a_list_counts_for_what_is_renewed_meanwhile() {
    for answered in [true, false] {
        let mut bench = Bench::new();
        bench.add();
        bench.follow(Want::Alive, Some(Passing));
        bench.list();
        bench.pulses.doubt(bench.now);
        let asked = bench.now + TTL / 2;
        let begun = bench.pulses.next(Some(asked), asked).unwrap();
        assert!(matches!(begun.act, Act::Renew(..)), "{begun:?}");
        bench.now = asked + Duration::from_secs(1);
        if answered {
            let outcome = Outcome::Renewed;
            bench.pulses.done(&begun, outcome, bench.now, || 0.5);
        }
        let sessions = bench.sessions.clone();
        bench.pulses.listed(sessions, asked, bench.now, || 0.5);
        assert!(!bench.pulses.wants_list());
    }
}

#[test]
fn those_that_live_are_counted() {
    let mut bench = Bench::new();
    bench.add();
    bench.add();
    bench.follow(Want::Kept, Some(Passing));
    assert_eq!(bench.alive(), 0, "none is known of");
    bench.list();
    assert_eq!(bench.alive(), 1, "two of one check count once");
    bench.follow(Want::Ended, Some(Passing));
    let begun = bench.pulses.next(Some(bench.now), bench.now).unwrap();
    bench.pulses.done(&begun, Outcome::Gone, bench.now, || 0.5);
    assert_eq!(bench.alive(), 1);
    bench.work(true);
    assert_eq!(bench.alive(), 0);
    bench.follow(Want::Alive, Some(Critical));
    bench.work(true);
    bench.follow(Want::Alive, Some(Passing));
    assert_eq!(bench.alive(), 1);
    bench.sessions.clear();
    bench.pulses.doubt(bench.now);
    bench.now += Duration::from_secs(1);
    bench.list();
    assert_eq!(bench.alive(), 0, "somebody ended it");
    bench.work(true);
    assert_eq!(bench.alive(), 1);
    bench.pulses.drop(&place("x"));
    assert_eq!(bench.alive(), 0);
}

#[test]
fn renewals_of_a_thousand_are_spread() {
    let mut pulses = Pulses::default();
    let start = Instant::now();
    let mut sessions = Vec::new();
    for number in 0..1000 {
        let place = place(&number.to_string());
        pulses.follow(&place, (TTL, Want::Alive), Some(Passing), start);
        sessions.push(found(&number.to_string(), number.to_string().into()));
    }
    let mut dice = 0_u32;
    let mut chance = move || {
        dice = (dice + 617) % 1000;
        f64::from(dice) / 1000.0
    };
    pulses.listed(sessions, start, start, &mut chance);
    let mut last = HashMap::new();
    for tenth in 0..600_u32 {
        let now = start + Duration::from_millis(100) * tenth;
        let mut at_once = 0;
        while let Some(begun) = pulses.next(Some(now), now) {
            at_once += 1;
            let before = last.insert(begun.act.place().clone(), now);
            let age = now - before.unwrap_or(start);
            assert!(age < TTL / 2, "one was missed for {age:?}");
            pulses.done(&begun, Outcome::Renewed, now, &mut chance);
        }
        assert!(at_once <= 40, "{at_once} at once");
    }
    assert_eq!(last.len(), 1000);
}

#[test]
fn a_session_of_another_time_to_live_is_made_anew_and_renewed_in_time_until_then() {
    let mut bench = Bench::new();
    bench.sessions.push(Found {
        ttl: Some(TTL * 10),
        ..found("x", "long".into())
    });
    bench.follow(Want::Alive, Some(Passing));
    bench.list();
    bench.work(true);
    assert_eq!((bench.made, bench.ended), (1, 1));

    let mut bench = Bench::new();
    bench.sessions.push(Found {
        ttl: Some(TTL / 3),
        ..found("x", "short".into())
    });
    bench.follow(Want::Kept, Some(Passing));
    bench.list();
    bench.pass(30, false);
    assert!(bench.renewed > 6, "{}", bench.renewed);
}

#[test]
fn what_nobody_asks_for_lives_as_long_as_its_check() {
    let mut bench = Bench::new();
    bench.add();
    bench.follow(Want::Alive, Some(Passing));
    bench.list();
    bench.pulses.forget(&place("x"), Some(Passing), bench.now);
    bench.pass(60, true);
    assert!(
        bench.renewed > 4 && bench.ended == 0,
        "{:?}",
        bench.counts()
    );
}

#[test]
fn the_first_list_counts_also_for_what_is_followed_since_it_was_asked_for() {
    let mut bench = Bench::new();
    bench.add();
    let asked = bench.now;
    bench.now += Duration::from_secs(1);
    bench.follow(Want::Alive, Some(Passing));
    bench
        .pulses
        .listed(bench.sessions.clone(), asked, bench.now, || 0.5);
    bench.pass(20, true);
    assert!(bench.renewed > 0 && bench.made == 0, "{:?}", bench.counts());
}

#[test]
fn a_check_that_another_hand_turned_follows_the_end_of_a_session() {
    let mut bench = Bench::new();
    bench.follow(Want::Ended, Some(Critical));
    bench.list();
    bench.pass(10, true);
    assert_eq!(bench.counts(), (0, 0, 0));
    bench.follow(Want::Ended, Some(Passing));
    bench.work(false);
    assert_eq!(bench.counts(), (0, 0, 0), "it does not write");
    bench.pulses.reconsider(bench.now);
    bench.work(true);
    assert_eq!(bench.counts(), (1, 0, 1));
    // As long as it is not seen that it was turned it is waited, each time for longer.
    bench.pass(15, true);
    assert_eq!((bench.made, bench.ended), (4, 4));
    bench.follow(Want::Ended, Some(Critical));
    bench.pass(100, true);
    assert_eq!((bench.made, bench.ended), (4, 4));
}

#[test]
fn what_may_be_changed_later_only_is_renewed_meanwhile() {
    let mut bench = Bench::new();
    bench.add();
    bench.follow(Want::Ended, Some(Passing));
    bench.list();
    let later = bench.now + Duration::from_secs(3);
    assert_eq!(bench.pulses.next(Some(later), bench.now), None);
    assert_eq!(bench.pulses.wake_at(), Some(later));
    let begun = bench.pulses.next(Some(later), later).unwrap();
    assert!(matches!(begun.act, Act::End(..)), "{begun:?}");

    let mut bench = Bench::new();
    bench.add();
    bench.follow(Want::Alive, Some(Passing));
    bench.list();
    let later = bench.now + Duration::from_mins(1);
    let soon = bench.now + Duration::from_secs(10);
    let begun = bench.pulses.next(Some(later), soon).unwrap();
    assert!(matches!(begun.act, Act::Renew(..)), "{begun:?}");
}
