use super::*;
use crate::model::key::source_key;
use crate::model::names::{Destination, NodeName};
use crate::model::source::SourceName;

fn key(number: usize) -> Key {
    let cluster = "a".parse().unwrap();
    Key::Node(NodeName::for_kubernetes(&cluster, &format!("n{number:04}")))
}

fn guard() -> Guard {
    Guard::new(Limits::default())
}

/// How many of so many found absences may go at once.
fn passed(guard: &mut Guard, found: std::ops::Range<usize>, owned: usize, now: Instant) -> usize {
    for number in found {
        guard.found(&key(number));
    }
    guard.judge(owned, now).len()
}

/// All kinds were listed.
fn listed(guard: &mut Guard) {
    for kind in Kind::ALL {
        guard.listed(kind);
    }
}

fn begin() -> Instant {
    Instant::now()
}

#[test]
fn a_few_may_go_whatever_their_share() {
    assert_eq!(passed(&mut guard(), 0..10, 11, begin()), 10);
    assert_eq!(passed(&mut guard(), 0..1, 1, begin()), 1);
}

#[test]
fn a_share_above_the_limit_is_held_whole() {
    assert_eq!(passed(&mut guard(), 0..30, 100, begin()), 30);
    let mut guard = guard();
    assert_eq!(passed(&mut guard, 0..31, 100, begin()), 0);
    assert_eq!(guard.held(), Some((31, 100)));
    let why = Hold::TooMany {
        would_go: 31,
        of: 100,
    };
    assert_eq!(guard.admits(&key(3)), Err(why));
    assert_eq!(passed(&mut self::guard(), 0..11, 11, begin()), 0);
}

#[test]
fn neither_time_nor_lists_release_what_is_held() {
    let (mut guard, now) = (guard(), begin());
    assert_eq!(passed(&mut guard, 0..20, 40, now), 0);
    for round in 1..20 {
        listed(&mut guard);
        let later = now + WINDOW * round;
        assert_eq!(guard.judge(4000, later), []);
        assert!(guard.wants_lists().is_empty());
    }
    assert_eq!(guard.release().len(), 20);
    assert_eq!(guard.admits(&key(3)), Ok(()));
    assert_eq!(guard.held(), None);
}

#[test]
fn what_comes_back_releases_the_few_that_do_not_after_three_lists() {
    let (mut guard, now) = (guard(), begin());
    assert_eq!(passed(&mut guard, 0..20, 40, now), 0);
    // One by one, with lists in between.
    for number in 5..20 {
        guard.returned(&key(number));
        assert_eq!(guard.judge(40, now), [], "while more come back");
        listed(&mut guard);
        assert_eq!(guard.judge(40, now), [], "while more come back");
    }
    assert_eq!(guard.held(), None);
    assert!(!guard.wants_lists().is_empty());
    listed(&mut guard);
    assert_eq!(guard.judge(40, now).len(), 5);
    // What is found later has nothing to do with it.
    assert_eq!(passed(&mut guard, 30..31, 40, now), 1);
}

#[test]
fn the_last_few_go_when_three_lists_agree() {
    let (mut guard, now) = (guard(), begin());
    assert_eq!(passed(&mut guard, 0..10, 10, now), 0);
    for lists in 1..3 {
        let why = Hold::Unconfirmed { lists, needed: 3 };
        assert_eq!(guard.admits(&key(1)), Err(why));
        assert!(!guard.wants_lists().is_empty());
        assert_eq!(guard.held(), None);
        listed(&mut guard);
        let passed = guard.judge(10, now).len();
        assert_eq!(passed, if lists == 2 { 10 } else { 0 });
    }
    assert!(guard.wants_lists().is_empty());
}

#[test]
fn as_many_lists_as_asked_for_must_agree() {
    let mut guard = Guard::new(Limits {
        confirm: 2,
        ..Limits::default()
    });
    let now = begin();
    assert_eq!(passed(&mut guard, 0..1, 10, now), 0);
    listed(&mut guard);
    // What is found later needs lists of its own.
    guard.found(&key(1));
    assert_eq!(guard.judge(10, now), [key(0)]);
    assert!(!guard.wants_lists().is_empty());
    listed(&mut guard);
    assert_eq!(guard.judge(10, now), [key(1)]);
}

#[test]
fn small_steps_add_up_over_the_window() {
    let (mut guard, begin) = (guard(), begin());
    let mut owned = 100;
    for step in 0..3 {
        let now = begin + Duration::from_mins(1) * u32::try_from(step).unwrap();
        assert_eq!(
            passed(&mut guard, step * 10..step * 10 + 10, owned, now),
            10
        );
        for number in step * 10..step * 10 + 10 {
            guard.removed(&key(number), now);
        }
        owned -= 10;
    }
    let now = begin + Duration::from_mins(4);
    assert_eq!(passed(&mut guard, 30..40, owned, now), 0);
    assert_eq!(guard.held(), Some((40, 100)));

    let mut fresh = self::guard();
    for number in 0..30 {
        fresh.removed(&key(number), begin);
    }
    assert_eq!(passed(&mut fresh, 30..40, 70, begin + WINDOW), 10);
}

#[test]
fn what_was_released_and_came_back_is_judged_anew() {
    let (mut guard, now) = (guard(), begin());
    assert_eq!(passed(&mut guard, 0..1, 10, now), 1);
    guard.returned(&key(0));
    assert_eq!(guard.admits(&key(0)), Err(Hold::Unjudged));
}

#[test]
fn what_goes_by_another_hand_releases_nothing_of_the_rest() {
    let (mut guard, now) = (guard(), begin());
    assert_eq!(passed(&mut guard, 0..12, 14, now), 0);
    guard.lapsed(&key(0));
    guard.lapsed(&key(1));
    for _ in 0..5 {
        assert_eq!(guard.judge(12, now), []);
        assert!(guard.wants_lists().is_empty());
        listed(&mut guard);
    }
    assert!(guard.admits(&key(2)).is_err());
    for number in 2..12 {
        guard.lapsed(&key(number));
    }
    assert_eq!(guard.held(), None);
    assert_eq!(passed(&mut guard, 20..21, 14, now), 1, "a new case");
}

#[test]
fn all_that_we_own_is_held_whatever_the_share_that_is_allowed() {
    let limits = Limits {
        percent: 100,
        ..Limits::default()
    };
    let mut guard = Guard::new(limits);
    assert_eq!(passed(&mut guard, 0..11, 11, begin()), 0);
    assert_eq!(guard.held(), Some((11, 11)));
    assert_eq!(passed(&mut Guard::new(limits), 0..11, 12, begin()), 11);
}

#[test]
fn what_is_released_by_name_is_no_more_than_that() {
    let (mut guard, now) = (guard(), begin());
    assert_eq!(passed(&mut guard, 0..20, 40, now), 0);
    // Found after it was shown.
    assert_eq!(passed(&mut guard, 20..22, 40, now), 0);
    guard.returned(&key(19));
    assert_eq!(guard.judge(40, now), []);
    let shown = (0..20).map(key).collect();
    assert_eq!(guard.release_these(&shown).len(), 19);
    assert_eq!(guard.admits(&key(3)), Ok(()));
    for late in 20..22 {
        assert!(guard.admits(&key(late)).is_err());
    }
    for number in 0..19 {
        guard.removed(&key(number), now);
    }
    listed(&mut guard);
    assert_eq!(guard.judge(21, now + WINDOW), [], "what is held stays held");
    assert_eq!(guard.release_these(&shown), []);
    assert!(guard.held().is_some());
    assert_eq!(guard.release_these(&(20..22).map(key).collect()).len(), 2);
    assert_eq!(guard.held(), None);
}

/// The lists of a kind that cannot claim it, such as one whose CRD is missing, are not waited for.
#[test]
fn only_the_lists_of_kinds_that_can_claim_it_count() {
    let (mut guard, now) = (guard(), begin());
    let destination = Destination::new("payment");
    let source = source_key(&destination, SourceName::new("web", [""; 4]));
    guard.found(&source);
    assert_eq!(guard.judge(10, now), []);
    assert_eq!(guard.wants_lists(), [Kind::Intention].into());
    for kind in [
        Kind::Pod,
        Kind::Node,
        Kind::Registration,
        Kind::PreparedQuery,
    ] {
        for _ in 0..3 {
            guard.listed(kind);
        }
    }
    assert_eq!(guard.judge(10, now), []);
    assert_eq!(passed(&mut guard, 0..2, 2, now), 0, "all that we own");
    assert_eq!(guard.wants_lists().len(), 4);
    for _ in 0..2 {
        for kind in [Kind::Pod, Kind::Node, Kind::Registration] {
            guard.listed(kind);
        }
    }
    assert_eq!(guard.judge(2, now), [key(0), key(1)]);
    assert_eq!(guard.wants_lists(), [Kind::Intention].into());
    guard.listed(Kind::Intention);
    assert_eq!(guard.judge(10, now), []);
    guard.listed(Kind::Intention);
    assert_eq!(guard.judge(10, now), [source]);
}
