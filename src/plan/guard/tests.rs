use super::*;
use crate::model::names::NodeName;

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

fn all() -> BTreeSet<Kind> {
    Kind::ALL.into()
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
        guard.listed(&all());
        let later = now + WINDOW * round;
        assert_eq!(guard.judge(4000, later), []);
        assert!(!guard.wants_lists(&all()));
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
        guard.listed(&all());
        assert_eq!(guard.judge(40, now), [], "while more come back");
    }
    assert_eq!(guard.held(), None);
    assert!(guard.wants_lists(&all()));
    guard.listed(&all());
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
        assert!(guard.wants_lists(&all()));
        assert_eq!(guard.held(), None);
        guard.listed(&all());
        let passed = guard.judge(10, now).len();
        assert_eq!(passed, if lists == 2 { 10 } else { 0 });
    }
    assert!(!guard.wants_lists(&all()));
}

#[test]
fn as_many_lists_as_asked_for_must_agree() {
    let mut guard = Guard::new(Limits {
        confirm: 2,
        ..Limits::default()
    });
    let now = begin();
    assert_eq!(passed(&mut guard, 0..1, 10, now), 0);
    guard.listed(&all());
    // What is found later needs lists of its own.
    guard.found(&key(1));
    assert_eq!(guard.judge(10, now), [key(0)]);
    assert!(guard.wants_lists(&all()));
    guard.listed(&all());
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

/// As an instance that is critical, deregistered and well again every minute.
#[test]
fn what_comes_and_goes_is_missing_once_however_often_it_went() {
    let (mut guard, begin) = (guard(), begin());
    let mut now = begin;
    for _ in 0..14 {
        now += Duration::from_secs(40);
        assert_eq!(passed(&mut guard, 0..1, 20, now), 1);
        guard.removed(&key(0), now);
        guard.restored(&key(0));
    }
    assert_eq!(passed(&mut guard, 1..11, 20, now), 10);
    // Also where nobody saw it come back.
    let mut guard = self::guard();
    for _ in 0..14 {
        assert_eq!(passed(&mut guard, 0..1, 20, now), 1);
        guard.removed(&key(0), now);
    }
    assert_eq!(passed(&mut guard, 0..10, 20, now), 10);
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
        assert!(!guard.wants_lists(&all()));
        guard.listed(&all());
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
    guard.listed(&all());
    assert_eq!(guard.judge(21, now + WINDOW), [], "what is held stays held");
    assert_eq!(guard.release_these(&shown), []);
    assert!(guard.held().is_some());
    assert_eq!(guard.release_these(&(20..22).map(key).collect()).len(), 2);
    assert_eq!(guard.held(), None);
}

#[test]
fn a_kind_that_cannot_be_listed_holds_up_only_what_it_could_claim() {
    let (mut guard, now) = (guard(), begin());
    let source = Key::Intentions(crate::model::names::Destination::new("payment"));
    guard.found(&source);
    for number in 0..2 {
        guard.found(&key(number));
    }
    assert_eq!(guard.judge(3, now), [], "all that is owned");
    let mut kinds = all();
    kinds.remove(&Kind::Intention);
    for _ in 0..2 {
        assert!(guard.wants_lists(&kinds));
        guard.listed(&kinds);
    }
    assert_eq!(guard.judge(3, now), [key(0), key(1)]);
    assert!(!guard.wants_lists(&kinds), "they do not help");
    let why = Hold::Unconfirmed {
        lists: 1,
        needed: 3,
    };
    assert_eq!(guard.admits(&source), Err(why));
    for _ in 0..2 {
        assert!(guard.wants_lists(&all()));
        guard.listed(&all());
    }
    assert_eq!(guard.judge(3, now), [source]);
}

#[test]
fn what_is_found_missing_after_its_crd_was_goes_when_three_lists_agree() {
    let query = |number: usize| {
        let name = format!("q{number}");
        Key::Query(crate::model::names::QueryName::new(&name))
    };
    let (mut guard, now) = (guard(), begin());
    guard.doubt(Kind::PreparedQuery);
    for number in 0..5 {
        guard.found(&query(number));
    }
    // Nothing of that kind could claim this one.
    guard.found(&key(0));
    assert_eq!(guard.judge(60, now), [key(0)]);
    for lists in 1..3 {
        assert_eq!(guard.judge(60, now), []);
        let why = Hold::Unconfirmed { lists, needed: 3 };
        assert_eq!(guard.admits(&query(1)), Err(why));
        assert!(guard.wants_lists(&all()));
        guard.returned(&query(lists as usize + 2));
        assert_eq!(guard.judge(60, now), []);
        guard.listed(&all());
    }
    assert_eq!(guard.judge(60, now), [query(0), query(1), query(2)]);
    // What is found after those lists is as ever, until it is missing once more.
    guard.found(&query(7));
    assert_eq!(guard.judge(60, now), [query(7)]);
    guard.doubt(Kind::PreparedQuery);
    guard.found(&query(8));
    assert_eq!(guard.judge(60, now), []);
}

#[test]
fn lists_from_before_a_crd_was_missing_confirm_nothing() {
    let (mut guard, now) = (
        Guard::new(Limits {
            confirm: 3,
            ..Limits::default()
        }),
        begin(),
    );
    assert_eq!(passed(&mut guard, 0..1, 60, now), 0);
    guard.listed(&all());
    guard.doubt(Kind::Registration);
    guard.listed(&all());
    assert_eq!(guard.judge(60, now), []);
    guard.listed(&all());
    assert_eq!(guard.judge(60, now), [key(0)]);
}

/// What fails together does not fail in the same moment.
#[test]
fn what_is_about_to_follow_is_judged_with_what_waits() {
    let (mut guard, now) = (guard(), begin());
    guard.found(&key(0));
    guard.expect(11, |_| true);
    assert_eq!(guard.judge(16, now), []);
    assert_eq!(guard.held(), Some((12, 16)));
    // One after the other arrives: it is still as much.
    guard.expect(10, |_| true);
    assert_eq!(passed(&mut guard, 1..2, 16, now), 0);
    assert_eq!(guard.held(), Some((12, 16)));
    // That fewer follow releases the rest by further lists, if it tells of the rest.
    guard.expect(2, |_| false);
    assert_eq!(guard.judge(16, now), []);
    assert!(guard.held().is_some());
    guard.expect(1, |_| true);
    assert_eq!(guard.judge(16, now), []);
    assert_eq!((guard.held(), guard.wants_lists(&all())), (None, true));
    for _ in 0..2 {
        guard.listed(&all());
    }
    assert_eq!(guard.judge(16, now).len(), 2);
}

#[test]
fn what_is_refused_goes_when_lists_that_began_afterwards_confirm_it() {
    let (mut guard, now) = (guard(), begin());
    guard.refused(&key(0));
    assert_eq!(guard.judge(60, now), [], "no list showed it yet");
    let why = Hold::Unconfirmed {
        lists: 0,
        needed: 1,
    };
    assert_eq!(guard.admits(&key(0)), Err(why));
    assert!(guard.wants_lists(&all()));
    guard.listing();
    // The policies of this round may have been listed before.
    guard.refused(&key(1));
    guard.listed(&all());
    assert_eq!(guard.judge(60, now), [key(0)]);
    guard.listing();
    guard.listed(&all());
    assert_eq!(guard.judge(60, now), [key(1)]);
    // What was missing and is claimed by what may not is judged anew.
    let mut guard = Guard::new(Limits {
        confirm: 2,
        ..Limits::default()
    });
    assert_eq!(passed(&mut guard, 0..1, 60, now), 0);
    guard.refused(&key(0));
    guard.listed(&all());
    assert_eq!(guard.judge(60, now), []);
    guard.listed(&all());
    assert_eq!(guard.judge(60, now), [key(0)]);
    guard.take_back();
    guard.listed(&all());
    assert_eq!(guard.judge(60, now), [], "it is still refused");
}

#[test]
fn lists_without_policies_or_namespaces_confirm_no_refusal() {
    for kind in [Kind::Policy, Kind::Namespace] {
        let (mut guard, now) = (guard(), begin());
        guard.refused(&key(0));
        let mut kinds = all();
        kinds.remove(&kind);
        assert!(!guard.wants_lists(&kinds), "they do not help");
        guard.listed(&kinds);
        assert_eq!(guard.judge(60, now), [], "{kind:?}");
        guard.listed(&all());
        assert_eq!(guard.judge(60, now), [key(0)]);
    }
}

#[test]
fn what_is_refused_after_the_crd_of_policies_was_missing_goes_when_three_lists_agree() {
    let (mut guard, now) = (guard(), begin());
    guard.doubt(Kind::Policy);
    guard.refused(&key(0));
    guard.found(&key(1));
    assert_eq!(guard.judge(60, now), [key(1)], "policies have no say in it");
    for _ in 0..2 {
        guard.listed(&all());
        assert_eq!(guard.judge(60, now), []);
    }
    guard.listed(&all());
    assert_eq!(guard.judge(60, now), [key(0)]);
}
