use super::*;

const HOUR: Duration = Duration::from_hours(1);

fn text(text: &str) -> Text {
    text.into()
}

fn keep(names: &mut Names, name: &str, namespace: &str) -> bool {
    let who = Who {
        name: &text(namespace),
        uid: &text(&format!("uid-{namespace}")),
    };
    names.keep(&text(name), who, Sort::Service, true)
}

fn at(now: Instant, wall: i64) -> Moment {
    Moment { now, wall }
}

/// Consul has nothing of it.
fn gone(_: &Text, _: &Text) -> bool {
    false
}

fn same(namespace: &Text, uid: &str) -> bool {
    *uid == format!("uid-{namespace}")
}

#[test]
fn the_first_holds_a_name_and_that_of_its_proxies() {
    let mut names = Names::default();
    assert!(keep(&mut names, "web", "shop"));
    assert!(!keep(&mut names, "web", "shop"), "that is no news");
    keep(&mut names, "web", "other");
    assert_eq!(names.holder("web"), Some(&text("shop")));
    assert_eq!(
        names.other_holder("web", "other", Sort::Service),
        None,
        "it is shared"
    );
    for name in ["web", "web-sidecar-proxy"] {
        assert_eq!(
            names.other_holder(name, "third", Sort::Service),
            Some(&text("shop")),
            "{name}"
        );
        assert_eq!(
            names.other_holder(name, "shop", Sort::Service),
            None,
            "{name}"
        );
    }
    assert_eq!(
        names.other_holder("-sidecar-proxy", "third", Sort::Service),
        None
    );
}

#[test]
fn who_is_left_holds_it_when_the_holder_loses_it() {
    let mut names = Names::default();
    keep(&mut names, "web", "shop");
    keep(&mut names, "web", "other");
    assert!(names.lose(&text("web"), &text("shop")));
    assert_eq!(names.holder("web"), Some(&text("other")));
    assert_eq!(names.lose_all(&text("other")), [text("web")]);
    assert!(!names.knows("web"));
    assert_eq!(names.take_dirty(), BTreeSet::from([text("web")]));
    assert_eq!(names.record("web"), None);
}

#[test]
fn a_name_is_kept_for_a_while_after_its_last_claim() {
    let (mut names, now) = (Names::default(), Instant::now());
    keep(&mut names, "web", "shop");
    assert!(
        names
            .tick(at(now, 100), HOUR, |_, _| (true, true), gone)
            .is_empty()
    );
    assert_eq!(names.wake_at(), None);
    names.look_at(&text("web"), &text("shop"));
    names.tick(at(now, 200), HOUR, |_, _| (false, true), gone);
    let grace = Duration::from_mins(5);
    assert_eq!(names.wake_at(), Some(now + grace), "no intention holds it");
    names.take_dirty();
    // Most are claimed once more before long: there is nothing to write of that.
    names.look_at(&text("web"), &text("shop"));
    names.tick(at(now, 210), HOUR, |_, _| (true, true), gone);
    assert_eq!((names.wake_at(), names.take_dirty().len()), (None, 0));
    names.look_at(&text("web"), &text("shop"));
    names.tick(at(now, 220), HOUR, |_, _| (false, false), gone);
    assert_eq!(
        names.record("web").unwrap().namespaces["shop"].unclaimed,
        None
    );
    names.tick(at(now + grace, 520), HOUR, |_, _| (false, false), gone);
    assert_eq!(names.take_dirty().len(), 1);
    assert_eq!(names.wake_at(), Some(now + HOUR));
    let kept = names.record("web").unwrap();
    assert_eq!(kept.namespaces["shop"].unclaimed, Some(220));
    assert_eq!(kept.namespaces["shop"].since, 100);
    // Claimed once more.
    names.look_at(&text("web"), &text("shop"));
    names.tick(at(now + grace, 530), HOUR, |_, _| (true, true), gone);
    assert_eq!((names.wake_at(), names.take_dirty().len()), (None, 1));
    names.look_at(&text("web"), &text("shop"));
    names.tick(at(now + grace, 540), HOUR, |_, _| (false, false), gone);
    let later = at(now + grace + HOUR, 4000);
    let freed = names.tick(later, HOUR, |_, _| (false, false), gone);
    assert_eq!((freed, names.knows("web")), (vec![text("web")], false));
}

#[test]
fn what_is_kept_in_consul_says_all_of_it() {
    let (mut names, now) = (Names::default(), Instant::now());
    keep(&mut names, "web", "shop");
    keep(&mut names, "web", "other");
    let used = |_: &str, namespace: &Text| {
        let used = **namespace == *"shop";
        (used, used)
    };
    names.tick(at(now, 100), HOUR, used, gone);
    names.tick(at(now + HOUR / 2, 1900), HOUR, used, gone);
    let record = names.record("web").unwrap();
    let json = serde_json::to_vec(&record).unwrap();
    let again: NameRecord = serde_json::from_slice(&json).unwrap();
    let load = |moment, is_there: fn(&Text, &str) -> bool| {
        let mut loaded = Names::default();
        let records = [(text("web"), again.clone())].into_iter();
        loaded.load(records, moment, HOUR, is_there);
        loaded
    };
    let loaded = load(at(now, 100 + 600), same);
    assert_eq!(loaded.record("web"), Some(record));
    let left = HOUR.saturating_sub(Duration::from_mins(10));
    assert_eq!(loaded.wake_at(), Some(now + left));
    // The clock on the wall jumped.
    assert_eq!(load(at(now, 50), same).wake_at(), Some(now + HOUR));
    assert_eq!(load(at(now, i64::MAX), same).wake_at(), Some(now));
    // A namespace of the same name is another.
    let other = load(at(now, 100), |_, uid| uid == "new");
    assert!(!other.knows("web"));
}

#[test]
fn a_name_is_not_let_go_while_consul_has_instances_of_it() {
    let (mut names, now) = (Names::default(), Instant::now());
    keep(&mut names, "web", "shop");
    names.tick(at(now, 100), HOUR, |_, _| (false, false), gone);
    let later = at(now + HOUR, 3700);
    let freed = names.tick(later, HOUR, |_, _| (false, false), |_, _| true);
    assert!(freed.is_empty() && names.knows("web"));
    assert_eq!(names.wake_at(), Some(now + 2 * HOUR));
    let kept = names.record("web").unwrap();
    assert_eq!(kept.namespaces["shop"].unclaimed, Some(100), "no write");
    let later = at(now + 2 * HOUR, 7300);
    let freed = names.tick(later, HOUR, |_, _| (false, false), gone);
    assert_eq!(freed, [text("web")]);
    assert_eq!(names.wake_at(), None);
}
