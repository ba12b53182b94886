use super::*;
use crate::leader::TENURE;

const SECOND: Duration = Duration::from_secs(1);

/// An API server that holds one Lease, as real ones do.
#[derive(Default)]
struct Server {
    lease: Option<Box<Lease>>,
    version: u64,
}

impl Server {
    fn store(&mut self, mut lease: Lease) -> Box<Lease> {
        self.version += 1;
        lease.metadata.resource_version = Some(self.version.to_string());
        lease
            .metadata
            .uid
            .get_or_insert_with(|| self.version.to_string());
        let lease = Box::new(lease);
        self.lease = Some(lease.clone());
        lease
    }

    fn write(&mut self, lease: Lease) -> Wrote {
        let version = |lease: &Lease| lease.metadata.resource_version.clone();
        let there = self.lease.as_deref().map(version);
        if there
            != lease
                .metadata
                .resource_version
                .as_ref()
                .map(|it| Some(it.clone()))
        {
            return Wrote::Conflict;
        }
        Wrote::Done(self.store(lease))
    }

    fn spec(&self) -> &LeaseSpec {
        self.lease.as_ref().unwrap().spec.as_ref().unwrap()
    }

    fn holder(&self) -> &str {
        self.spec().holder_identity.as_deref().unwrap()
    }
}

fn rules(identity: &str) -> Rules {
    Rules::new(identity.to_owned(), "the Lease".to_owned())
}

/// A clock of people that is far off, and goes backwards.
fn wall(now: Instant, start: Instant) -> Timestamp {
    let passed = i64::try_from((now - start).as_millis()).unwrap();
    Timestamp::from_millisecond(1_000_000_000_000 - passed * 7).unwrap()
}

struct Play {
    server: Server,
    start: Instant,
}

impl Play {
    fn new() -> Self {
        Self {
            server: Server::default(),
            start: Instant::now(),
        }
    }

    fn at(&self, seconds: f64) -> Instant {
        self.start + Duration::from_secs_f64(seconds)
    }

    /// Does all that is due. Returns when to come back, and the leadership that it has then.
    fn act(
        &mut self,
        rules: &mut Rules,
        now: Instant,
    ) -> Result<(Option<Instant>, Option<u64>), IdentityTaken> {
        for _ in 0..10 {
            match rules.next(now, wall(now, self.start)) {
                Act::Read => rules.see(self.server.lease.clone(), now)?,
                Act::Create(lease) | Act::Replace(lease) => {
                    let wrote = self.server.write(*lease);
                    rules.wrote(wrote, now)?;
                }
                Act::Wait(until) => return Ok((until, rules.leadership(now).term(now))),
            }
        }
        panic!("it does not come to rest");
    }

    fn leads(&mut self, rules: &mut Rules, seconds: f64) -> Option<u64> {
        let now = self.at(seconds);
        self.act(rules, now).unwrap().1
    }

    fn show(&self, rules: &mut Rules, seconds: f64) {
        rules
            .see(self.server.lease.clone(), self.at(seconds))
            .unwrap();
    }
}

#[test]
fn the_first_one_leads_and_renews_and_the_other_waits() {
    let mut play = Play::new();
    let (mut a, mut b) = (rules("a"), rules("b"));
    assert_eq!(play.leads(&mut a, 0.0), Some(1));
    assert_eq!(play.leads(&mut b, 0.1), None);
    assert_eq!(
        b.leadership(play.at(0.1)),
        Leadership::StandsBy {
            leader: Some("a".to_owned())
        }
    );
    let mut now = 0.0;
    while now < 60.0 {
        now += RENEWAL.as_secs_f64();
        assert_eq!(play.leads(&mut a, now), Some(1));
        play.show(&mut b, now);
        assert_eq!(play.leads(&mut b, now), None);
    }
    assert_eq!(play.server.version, 16, "one write each renewal");
    assert_eq!(play.server.spec().lease_transitions, Some(0));
    assert_eq!(play.server.spec().lease_duration_seconds, Some(15));
}

#[test]
fn another_ones_lease_ends_when_it_was_not_seen_to_change_for_as_long_as_it_lasts() {
    let mut play = Play::new();
    let (mut a, mut b) = (rules("a"), rules("b"));
    play.leads(&mut a, 0.0);
    play.leads(&mut b, 3.0);
    play.leads(&mut a, 4.0);
    play.show(&mut b, 5.0);
    // What does not renew it does not prolong it.
    let mut touched = play.server.lease.clone().unwrap();
    touched.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    play.server.store(*touched);
    play.show(&mut b, 12.0);
    let (until, term) = play.act(&mut b, play.at(19.9)).unwrap();
    assert_eq!((until, term), (Some(play.at(20.0)), None));
    assert_eq!(play.leads(&mut b, 20.0), Some(1));
    assert_eq!(
        (play.server.holder(), play.server.spec().lease_transitions),
        ("b", Some(1))
    );
    assert!(
        play.server
            .lease
            .as_ref()
            .unwrap()
            .metadata
            .labels
            .is_some()
    );
    // The old one stopped before that, and hears of it when it comes back.
    assert_eq!(a.leadership(play.at(14.0)).term(play.at(14.0)), None);
    assert_eq!(play.leads(&mut a, 21.0), None);
    assert_eq!(
        a.leadership(play.at(21.0)),
        Leadership::StandsBy {
            leader: Some("b".to_owned())
        }
    );
}

#[test]
fn a_renewal_that_the_other_did_not_see_keeps_it_out() {
    let mut play = Play::new();
    let (mut a, mut b) = (rules("a"), rules("b"));
    play.leads(&mut a, 0.0);
    play.leads(&mut b, 0.0);
    play.leads(&mut a, 10.0);
    // Its watch is silent: it tries, fails and looks.
    assert_eq!(play.leads(&mut b, 15.0), None);
    assert_eq!(play.server.holder(), "a");
    let (until, _) = play.act(&mut b, play.at(15.0)).unwrap();
    assert_eq!(until, Some(play.at(30.0)));
}

#[test]
fn what_is_released_is_taken_at_once() {
    let mut play = Play::new();
    let (mut a, mut b) = (rules("a"), rules("b"));
    play.leads(&mut a, 0.0);
    play.leads(&mut b, 0.0);
    let lease = a.release(wall(play.at(1.0), play.start)).unwrap();
    assert!(matches!(play.server.write(lease), Wrote::Done(_)));
    assert_eq!(play.server.holder(), "");
    assert_eq!(a.leadership(play.at(1.0)).term(play.at(1.0)), None);
    play.show(&mut b, 1.0);
    assert_eq!(play.leads(&mut b, 1.0), Some(1));
    // Who never had it has nothing to give up.
    assert!(
        a.release(wall(play.at(2.0), play.start)).is_some(),
        "as far as it knows"
    );
    play.show(&mut a, 2.0);
    assert!(a.release(wall(play.at(2.0), play.start)).is_none());
    assert!(rules("c").release(wall(play.at(2.0), play.start)).is_none());
}

#[test]
fn a_leader_whose_renewals_fail_steps_down_before_the_lease_ends() {
    let mut play = Play::new();
    let mut a = rules("a");
    play.leads(&mut a, 0.0);
    let mut now = play.at(4.0);
    while now < play.at(30.0) {
        match a.next(now, wall(now, play.start)) {
            Act::Wait(until) => now = until.unwrap(),
            Act::Read => {
                a.failed(now, 1.0);
            }
            _ => a.failed(now, 1.0),
        }
        let leads = a.leadership(now).term(now).is_some();
        assert_eq!(leads, now < play.start + TENURE, "{:?}", now - play.start);
    }
}

#[test]
fn who_only_asks_what_is_next_has_done_nothing() {
    let mut play = Play::new();
    let mut a = rules("a");
    play.leads(&mut a, 0.0);
    assert_eq!(a.due(play.at(0.0)), Due::Wait(Some(play.at(4.0))));
    assert_eq!(a.due(play.at(4.0)), Due::Write);
    assert!(!a.is_unsure());
}

#[test]
fn what_failed_is_forgotten_once_all_succeeded_and_not_before() {
    let mut play = Play::new();
    let mut a = rules("a");
    a.failed(play.at(0.0), 1.0);
    assert_eq!(a.due(play.at(0.5)), Due::Wait(Some(play.at(1.0))));
    // It can be read, and not written.
    play.show(&mut a, 1.0);
    let Act::Create(_) = a.next(play.at(1.0), wall(play.at(1.0), play.start)) else {
        panic!("not created");
    };
    a.failed(play.at(1.0), 1.0);
    assert!(!a.is_well());
    assert_eq!(a.due(play.at(1.0)), Due::Wait(Some(play.at(3.0))));
    assert_eq!(play.leads(&mut a, 3.0), Some(1));
    assert!(a.is_well());
}

#[test]
fn a_write_whose_answer_was_lost_is_known_for_ours_and_counts_from_when_it_was_sent() {
    let mut play = Play::new();
    let mut a = rules("a");
    play.leads(&mut a, 0.0);
    let now = play.at(4.0);
    let Act::Replace(lease) = a.next(now, wall(now, play.start)) else {
        panic!("no renewal");
    };
    play.server.write(*lease);
    assert!(a.is_unsure());
    a.failed(play.at(7.0), 1.0);
    let (until, term) = play.act(&mut a, play.at(8.0)).unwrap();
    assert_eq!((until, term), (Some(play.at(8.0) + RENEWAL), Some(1)));
    // Both of two attempts in flight are.
    let now = play.at(12.0);
    let Act::Replace(first) = a.next(now, wall(now, play.start)) else {
        panic!("no renewal");
    };
    a.failed(now + SECOND, 1.0);
    let now = play.at(14.0);
    let Act::Read = a.next(now, wall(now, play.start)) else {
        panic!("no read");
    };
    play.show(&mut a, 14.0);
    let Act::Replace(second) = a.next(now, wall(now, play.start)) else {
        panic!("no renewal");
    };
    play.server.write(*first);
    let wrote = play.server.write(*second);
    assert!(matches!(wrote, Wrote::Conflict));
    a.wrote(wrote, now).unwrap();
    assert_eq!(play.leads(&mut a, 14.0), Some(1));
}

#[test]
fn after_a_pause_beyond_its_time_it_is_another_leadership() {
    let mut play = Play::new();
    let mut a = rules("a");
    assert_eq!(play.leads(&mut a, 0.0), Some(1));
    // Nobody else wanted it.
    assert_eq!(a.leadership(play.at(12.0)).term(play.at(12.0)), None);
    assert_eq!(play.leads(&mut a, 12.0), Some(2));
}

#[test]
fn a_restarted_process_takes_its_own_lease_back_at_once() {
    let mut play = Play::new();
    let (mut before, mut after) = (rules("a"), rules("a"));
    play.leads(&mut before, 0.0);
    assert_eq!(play.leads(&mut after, 0.5), Some(1));
    assert_eq!(play.server.spec().lease_transitions, Some(0));
    // Were the other one still there, it would see that its identity is used by another.
    let taken = play.act(&mut before, play.at(4.0)).unwrap_err();
    assert!(taken.to_string().contains("\"a\""), "{taken}");
    assert_eq!(play.leads(&mut after, 4.5), Some(1));
}

#[test]
fn one_that_sees_its_identity_renew_what_it_did_not_write_ends() {
    let mut play = Play::new();
    let (mut first, mut second) = (rules("a"), rules("a"));
    play.leads(&mut first, 0.0);
    play.show(&mut second, 1.0);
    play.leads(&mut first, 4.0);
    // Also before it ever wrote.
    assert!(second.see(play.server.lease.clone(), play.at(4.0)).is_err());
    // And where it led once and stands by now.
    let mut other = rules("b");
    play.leads(&mut other, 4.0);
    assert_eq!(play.leads(&mut other, 30.0), Some(1));
    play.show(&mut first, 30.0);
    let mut third = rules("a");
    play.leads(&mut third, 31.0);
    assert_eq!(play.leads(&mut third, 60.0), Some(1));
    assert!(first.see(play.server.lease.clone(), play.at(60.0)).is_err());
}

#[test]
fn a_lease_that_is_deleted_by_hand_is_made_anew_by_its_holder() {
    let mut play = Play::new();
    let (mut a, mut b) = (rules("a"), rules("b"));
    play.leads(&mut a, 0.0);
    play.leads(&mut b, 1.0);
    play.server.lease = None;
    play.show(&mut b, 2.0);
    // Its holder may lead: it keeps the others away for as long as it did before.
    assert_eq!(play.leads(&mut b, 2.0), None);
    // It cannot know who led meanwhile.
    assert_eq!(play.leads(&mut a, 4.0), Some(2));
    play.show(&mut b, 4.0);
    assert_eq!(play.leads(&mut b, 16.0), None);
    // Where the holder is dead as well, another one makes it.
    play.server.lease = None;
    play.show(&mut b, 5.0);
    assert_eq!(play.leads(&mut b, 18.9), None);
    assert_eq!(play.leads(&mut b, 19.0), Some(1));
    assert_eq!(play.server.holder(), "b");
}

#[test]
fn what_a_lease_asks_for_is_within_bounds() {
    let lasting = |seconds| {
        let spec = LeaseSpec {
            lease_duration_seconds: seconds,
            ..LeaseSpec::default()
        };
        duration(&Lease {
            spec: Some(spec),
            ..Lease::default()
        })
    };
    for (seconds, lasts) in [
        (None, 15),
        (Some(0), 15),
        (Some(-1), 15),
        (Some(30), 30),
        (Some(99_999), 60),
    ] {
        assert_eq!(lasting(seconds), Duration::from_secs(lasts), "{seconds:?}");
    }
}
