//! How fresh Leases are, by when they were seen to be renewed.
//!
//! Whoever renews a Lease has a clock of its own. So its times are only compared with each other: what
//! counts is when this process saw `renewTime` change, and for how long it could have seen it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::facts::LeaseFacts;
use crate::model::text::Text;

/// What a Lease says about whoever renews it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beat {
    /// It makes progress; without a further renewal not after this moment.
    Fresh(Instant),
    /// It was to do so by now, as far as was seen: whether it did is to be read, since a watch can be
    /// silent because nothing reaches it.
    Overdue(Text),
    /// It does not, for this reason.
    Lapsed(Text),
    /// It cannot be told, for this reason.
    Unknown(Text),
}

/// What happened to a Lease, or to the view of those of its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// To this one.
    Of(Text),
    /// To any of them.
    OfAll,
}

/// The Leases of the namespaces in which a check looks at one.
#[derive(Debug, Default)]
pub struct Leases(HashMap<Text, Scope>);

#[derive(Debug)]
struct Scope {
    view: View,
    leases: HashMap<Text, Seen>,
    /// When the list that is under way began, and what it has shown so far.
    listed: Option<(Instant, BTreeSet<Text>)>,
    /// When the last list that was complete began.
    read_at: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum View {
    Listing,
    Complete,
    /// Why, and whether it is for want of a right.
    Broken(Text, bool),
}

#[derive(Debug)]
struct Seen {
    renewed: Text,
    /// Since when this renewal is known. Whether it was seen to happen, or is as old as the view.
    since: Instant,
    witnessed: bool,
    critical: bool,
}

impl Leases {
    /// From now on the Leases of these namespaces are looked at, and no others.
    pub fn look_at(&mut self, namespaces: &BTreeSet<&Text>) {
        self.0.retain(|namespace, _| namespaces.contains(namespace));
        for namespace in namespaces {
            self.0.entry((*namespace).clone()).or_insert_with(|| Scope {
                view: View::Listing,
                leases: HashMap::new(),
                listed: None,
                read_at: None,
            });
        }
    }

    /// What the Lease says. Where this process has not seen it renewed yet, one that `was_alive` is given
    /// the time that it has between renewals.
    #[must_use]
    pub fn beat(
        &self,
        namespace: &str,
        name: &str,
        ttl: Duration,
        now: Instant,
        was_alive: bool,
    ) -> Beat {
        let Some(scope) = self.0.get(namespace) else {
            return Beat::Unknown("the Leases of the namespace are not watched yet".into());
        };
        match &scope.view {
            View::Listing => {
                return Beat::Unknown("the Leases of the namespace are being listed".into());
            }
            View::Broken(why, _) => {
                return Beat::Unknown(
                    format!("the Leases of the namespace cannot be watched: {why}").into(),
                );
            }
            View::Complete => {}
        }
        let Some(seen) = scope.leases.get(name) else {
            return Beat::Lapsed(format!("there is no Lease {name}").into());
        };
        if seen.critical {
            return Beat::Lapsed(format!("the Lease {name} says that it is critical").into());
        }
        if !seen.witnessed && !was_alive {
            return Beat::Lapsed(format!("the Lease {name} was not seen to be renewed yet").into());
        }
        let until = seen.since + ttl;
        if now < until {
            return Beat::Fresh(until);
        }
        let why = format!("the Lease {name} was not renewed for {ttl:?}").into();
        if scope.read_at.is_some_and(|read_at| until <= read_at) {
            Beat::Lapsed(why)
        } else {
            Beat::Overdue(why)
        }
    }

    /// Whether a list is under way.
    #[must_use]
    pub fn is_listing(&self, namespace: &str) -> bool {
        let scope = self.0.get(namespace);
        scope.is_some_and(|scope| scope.listed.is_some())
    }

    /// Whether the Leases of a namespace were listed, by a list that began at this moment or after it.
    #[must_use]
    pub fn was_listed_since(&self, namespace: &str, since: Instant) -> bool {
        let read_at = self.0.get(namespace).and_then(|scope| scope.read_at);
        read_at.is_some_and(|read_at| read_at >= since)
    }

    /// A list begins. Until it is there what was known counts, and so does why nothing is: a failure that comes
    /// again is told once.
    pub fn listing(&mut self, namespace: &str, at: Instant) {
        if let Some(scope) = self.0.get_mut(namespace) {
            scope.listed = Some((at, BTreeSet::new()));
        }
    }

    /// A Lease is there, or was changed.
    pub fn applied(&mut self, lease: &LeaseFacts, at: Instant) -> Option<News> {
        let scope = self.0.get_mut(&lease.namespace)?;
        if let Some((_, listed)) = &mut scope.listed {
            listed.insert(lease.name.clone());
        }
        let complete = scope.view == View::Complete;
        match scope.leases.get_mut(&lease.name) {
            None => {
                // One that comes while somebody looks is renewed by coming.
                let seen = Seen {
                    renewed: lease.renewed.clone(),
                    since: at,
                    witnessed: complete && scope.listed.is_none(),
                    critical: lease.critical,
                };
                scope.leases.insert(lease.name.clone(), seen);
            }
            Some(seen) => {
                if seen.renewed != lease.renewed {
                    seen.renewed = lease.renewed.clone();
                    seen.since = at;
                    seen.witnessed = true;
                } else if seen.critical == lease.critical {
                    return None;
                }
                seen.critical = lease.critical;
            }
        }
        complete.then(|| News::Of(lease.name.clone()))
    }

    /// A Lease was deleted.
    pub fn deleted(&mut self, lease: &LeaseFacts) -> Option<News> {
        let scope = self.0.get_mut(&lease.namespace)?;
        scope.leases.remove(&lease.name);
        (scope.view == View::Complete).then(|| News::Of(lease.name.clone()))
    }

    /// The list is complete.
    pub fn listed(&mut self, namespace: &str, at: Instant) -> Option<News> {
        let scope = self.0.get_mut(namespace)?;
        if let Some((began, listed)) = scope.listed.take() {
            scope.read_at = Some(began);
            scope.leases.retain(|name, _| listed.contains(name));
        }
        scope.complete(at);
        Some(News::OfAll)
    }

    /// The watch cannot go on; `denied` is whether for want of a right.
    pub fn broken(&mut self, namespace: &str, why: &Text, denied: bool) -> Option<News> {
        let scope = self.0.get_mut(namespace)?;
        scope.view = View::Broken(why.clone(), denied);
        Some(News::OfAll)
    }

    /// The watch goes on where it stopped.
    pub fn healthy(&mut self, namespace: &str, at: Instant) -> Option<News> {
        let scope = self.0.get_mut(namespace)?;
        if scope.listed.is_some() {
            return None;
        }
        scope.complete(at);
        Some(News::OfAll)
    }

    /// This process stood still: what it could not see meanwhile is held against nobody.
    pub fn forgive(&mut self, at: Instant) {
        for scope in self.0.values_mut() {
            for seen in scope.leases.values_mut() {
                seen.since = at;
            }
        }
    }

    /// Why the Leases of a namespace may not be watched, if they may not.
    #[must_use]
    pub fn denied(&self, namespace: &str) -> Option<&Text> {
        match &self.0.get(namespace)?.view {
            View::Broken(why, true) => Some(why),
            View::Broken(_, false) | View::Listing | View::Complete => None,
        }
    }
}

impl Scope {
    /// All is known. What could not be seen being renewed for a while is not held against anyone.
    fn complete(&mut self, at: Instant) {
        if matches!(self.view, View::Broken(..)) {
            for seen in self.leases.values_mut() {
                seen.since = at;
            }
        }
        self.view = View::Complete;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    struct Bench {
        leases: Leases,
        start: Instant,
    }

    fn lease(renewed: &str) -> LeaseFacts {
        LeaseFacts {
            namespace: "shop".into(),
            name: "worker".into(),
            renewed: renewed.into(),
            critical: false,
        }
    }

    impl Bench {
        /// The Lease is there, as it was left by somebody.
        fn new() -> Self {
            let mut leases = Leases::default();
            leases.look_at(&[&"shop".into()].into());
            let start = Instant::now();
            leases.listing("shop", start);
            leases.applied(&lease("1"), start);
            assert_eq!(leases.listed("shop", start), Some(News::OfAll));
            Self { leases, start }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn renewed(&mut self, renewed: &str, seconds: u64) -> Option<News> {
            let at = self.at(seconds);
            self.leases.applied(&lease(renewed), at)
        }

        fn beat(&self, seconds: u64, was_alive: bool) -> Beat {
            let at = self.at(seconds);
            self.leases.beat("shop", "worker", TTL, at, was_alive)
        }

        /// All are listed anew; `renewed` is what is found.
        fn list(&mut self, renewed: &str, seconds: u64) {
            let at = self.at(seconds);
            self.leases.listing("shop", at);
            self.leases.applied(&lease(renewed), at);
            self.leases.listed("shop", at);
        }

        fn is_fresh(&self, seconds: u64, was_alive: bool) -> bool {
            matches!(self.beat(seconds, was_alive), Beat::Fresh(_))
        }
    }

    #[test]
    fn age_counts_from_the_renewal_that_was_seen() {
        let mut bench = Bench::new();
        assert!(!bench.is_fresh(1, false), "it may be years old");
        assert_eq!(bench.renewed("2", 5), Some(News::Of("worker".into())));
        assert_eq!(bench.beat(6, false), Beat::Fresh(bench.at(35)));
        assert!(bench.is_fresh(34, false));
        assert!(matches!(bench.beat(35, false), Beat::Overdue(_)));
        assert_eq!(bench.renewed("2", 36), None, "that is no renewal");
        assert!(!bench.is_fresh(36, false));
        bench.renewed("3", 40);
        assert!(bench.is_fresh(40, false));
    }

    #[test]
    fn what_was_not_renewed_as_far_as_a_watch_shows_is_read_before_it_lapses() {
        let mut bench = Bench::new();
        bench.renewed("2", 5);
        let before = bench.at(34);
        bench.leases.listing("shop", before);
        assert!(bench.leases.is_listing("shop"));
        bench.leases.applied(&lease("2"), before);
        let at = bench.at(36);
        bench.leases.listed("shop", at);
        assert!(!bench.leases.is_listing("shop"));
        let beat = bench.beat(36, true);
        assert!(matches!(beat, Beat::Overdue(_)), "the list began before");
        bench.list("2", 36);
        assert!(matches!(bench.beat(36, true), Beat::Lapsed(_)));
        bench.list("3", 40);
        assert_eq!(bench.beat(40, false), Beat::Fresh(bench.at(70)));
    }

    #[test]
    fn who_was_alive_at_the_start_has_the_time_of_one_renewal() {
        let bench = Bench::new();
        assert!(bench.is_fresh(29, true));
        assert!(!bench.is_fresh(30, true));
    }

    #[test]
    fn a_lease_that_is_not_there_or_says_so_is_critical() {
        let mut bench = Bench::new();
        bench.renewed("2", 1);
        let at = bench.at(2);
        let critical = LeaseFacts {
            critical: true,
            ..lease("2")
        };
        assert!(bench.leases.applied(&critical, at).is_some());
        let Beat::Lapsed(why) = bench.beat(2, true) else {
            panic!()
        };
        assert!(why.contains("says"), "{why}");
        bench.renewed("2", 3);
        assert!(bench.is_fresh(3, false));
        bench.leases.deleted(&lease("2"));
        let Beat::Lapsed(why) = bench.beat(3, true) else {
            panic!()
        };
        assert!(why.contains("no Lease"), "{why}");
        bench.renewed("2", 4);
        assert!(bench.is_fresh(4, false), "it came while it was looked at");
    }

    #[test]
    fn what_cannot_be_seen_is_held_against_nobody() {
        let mut bench = Bench::new();
        bench.renewed("2", 1);
        bench.leases.broken("shop", &"refused".into(), false);
        let Beat::Unknown(why) = bench.beat(100, true) else {
            panic!()
        };
        assert!(why.contains("refused"), "{why}");
        let at = bench.at(100);
        bench.leases.healthy("shop", at);
        assert!(bench.is_fresh(129, false));
        assert!(!bench.is_fresh(130, false));

        // The same where everything has to be listed anew.
        bench.leases.broken("shop", &"refused".into(), false);
        bench.leases.listing("shop", at);
        assert!(matches!(bench.beat(200, true), Beat::Unknown(_)));
        assert_eq!(bench.leases.healthy("shop", bench.start), None, "it lists");
        bench.renewed("2", 200);
        let at = bench.at(201);
        bench.leases.listed("shop", at);
        assert!(bench.is_fresh(230, false));
    }

    #[test]
    fn what_is_denied_is_denied_until_a_list_is_there() {
        let mut leases = Leases::default();
        let at = Instant::now();
        leases.look_at(&[&"shop".into()].into());
        leases.listing("shop", at);
        leases.broken("shop", &"403".into(), true);
        leases.listing("shop", at);
        assert_eq!(leases.denied("shop"), Some(&"403".into()));
        leases.listed("shop", at);
        assert_eq!(leases.denied("shop"), None);
    }

    #[test]
    fn a_process_that_stood_still_begins_anew() {
        let mut bench = Bench::new();
        bench.renewed("2", 1);
        let at = bench.at(60);
        bench.leases.forgive(at);
        assert!(bench.is_fresh(60, false));
        assert!(!bench.is_fresh(90, false));
    }

    #[test]
    fn what_a_list_lacks_is_gone() {
        let mut bench = Bench::new();
        bench.renewed("2", 1);
        bench.leases.listing("shop", bench.start);
        assert!(bench.is_fresh(2, false), "until it is complete");
        let at = bench.at(3);
        bench.leases.listed("shop", at);
        assert!(matches!(bench.beat(3, true), Beat::Lapsed(_)));
    }

    #[test]
    fn that_there_is_none_is_known_while_they_are_listed_anew() {
        let mut bench = Bench::new();
        bench.leases.deleted(&lease("1"));
        let at = bench.at(5);
        bench.leases.listing("shop", at);
        let Beat::Lapsed(why) = bench.beat(5, true) else {
            panic!()
        };
        assert!(why.contains("no Lease"), "{why}");
        // Unless that could not be seen.
        bench.leases.broken("shop", &"refused".into(), false);
        bench.leases.listing("shop", at);
        assert!(matches!(bench.beat(5, true), Beat::Unknown(_)));
    }

    #[test]
    fn other_namespaces_are_not_known() {
        let mut bench = Bench::new();
        assert!(matches!(
            bench.leases.beat("other", "worker", TTL, bench.start, true),
            Beat::Unknown(_)
        ));
        bench.leases.look_at(&BTreeSet::new());
        assert!(matches!(bench.beat(1, true), Beat::Unknown(_)));
    }
}
