//! Whose turn it is where more runs are due than may be under way. Pure.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

use std::collections::{BTreeSet, HashMap, VecDeque};

use tokio::time::Instant;

use crate::model::text::Text;

/// A check, as the roster numbers them.
pub(super) type Id = u64;

/// Runs that are due and wait, and runs under way, by namespace.
///
/// A namespace may begin a run while fewer of its own are under way than there are places free. So what
/// hangs in one namespace holds half of the places at most, in two a third each, and there is always a
/// place for a namespace of which less is under way; nothing is set aside while it is not needed. Of those
/// that wait, the namespace of which the least is under way has its turn, then what is due longest. Each step costs the logarithm of
/// the number of namespaces that wait.
#[derive(Debug, Default)]
pub(super) struct Shares {
    of: HashMap<Text, Share>,
    /// Namespaces of which something waits, in the order of their turns.
    turns: BTreeSet<Turn>,
    /// The namespaces of runs under way.
    under_way: HashMap<Id, Text>,
}

type Turn = (usize, Instant, Text);

#[derive(Debug, Default)]
struct Share {
    under_way: usize,
    waiting: VecDeque<(Instant, Id)>,
}

impl Share {
    fn turn(&self, namespace: &Text) -> Option<Turn> {
        let (due, _) = self.waiting.front()?;
        Some((self.under_way, *due, namespace.clone()))
    }
}

impl Shares {
    /// A run is due.
    pub fn wait(&mut self, namespace: &Text, due: Instant, id: Id) {
        self.change(namespace, |share| share.waiting.push_back((due, id)));
    }

    /// The next run that may begin where there is room for so many in all, and when it was due: it is under
    /// way from now on.
    pub fn begin(&mut self, room: usize) -> Option<(Instant, Id)> {
        let (own, _, namespace) = self.turns.first()?;
        let free = room.saturating_sub(self.under_way.len());
        if *own >= free {
            return None;
        }
        let namespace = namespace.clone();
        let mut begun = None;
        self.change(&namespace, |share| {
            begun = share.waiting.pop_front();
            share.under_way += 1;
        });
        let (due, id) = begun?;
        self.under_way.insert(id, namespace);
        Some((due, id))
    }

    /// A run ended, or did not begin after all.
    pub fn end(&mut self, id: Id) {
        if let Some(namespace) = self.under_way.remove(&id) {
            self.change(&namespace, |share| share.under_way -= 1);
        }
    }

    /// Nothing waits any more; what is under way stays so.
    pub fn forget_waiting(&mut self) {
        self.turns.clear();
        self.of.retain(|_, share| {
            share.waiting.clear();
            share.under_way > 0
        });
    }

    fn change(&mut self, namespace: &Text, change: impl FnOnce(&mut Share)) {
        let share = self.of.entry(namespace.clone()).or_default();
        if let Some(turn) = share.turn(namespace) {
            self.turns.remove(&turn);
        }
        change(share);
        match share.turn(namespace) {
            Some(turn) => {
                self.turns.insert(turn);
            }
            None if share.under_way == 0 => {
                self.of.remove(namespace);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 512;

    fn wait(shares: &mut Shares, namespace: &str, ids: std::ops::Range<Id>) {
        for id in ids {
            shares.wait(&namespace.into(), Instant::now(), id);
        }
    }

    fn begin_all(shares: &mut Shares) -> Vec<Id> {
        let begin = || shares.begin(ROOM).map(|(_, id)| id);
        std::iter::from_fn(begin).collect()
    }

    fn count(shares: &Shares, namespace: &str) -> usize {
        shares.of.get(namespace).map_or(0, |share| share.under_way)
    }

    #[test]
    fn one_namespace_holds_half_of_the_places_and_leaves_room_for_the_others() {
        let mut shares = Shares::default();
        wait(&mut shares, "hanging", 0..1_000);
        assert_eq!(begin_all(&mut shares).len(), ROOM / 2);
        wait(&mut shares, "b", 2_000..2_010);
        wait(&mut shares, "c", 3_000..3_010);
        let begun = begin_all(&mut shares);
        assert_eq!(begun.len(), 20, "{begun:?}");
        assert!(begun.iter().all(|id| *id >= 2_000));
        // Where several hang, each has as much, and there is as much left again.
        for (namespace, from) in [("d", 10_000), ("e", 20_000)] {
            wait(&mut shares, namespace, from..from + 1_000);
        }
        begin_all(&mut shares);
        for id in (0..1_000).chain(10_000..11_000).chain(20_000..21_000) {
            shares.end(id);
            begin_all(&mut shares);
        }
        wait(&mut shares, "new", 40_000..40_001);
        assert_eq!(begin_all(&mut shares), [40_000]);
    }

    #[test]
    fn places_that_are_free_again_go_to_whoever_has_the_least() {
        let mut shares = Shares::default();
        wait(&mut shares, "a", 0..1_000);
        begin_all(&mut shares);
        wait(&mut shares, "b", 1_000..2_000);
        begin_all(&mut shares);
        let all = || (0..1_000_u64).chain(1_000..2_000);
        // Each run that ends gives its place away: in the end both have as much.
        for id in all() {
            shares.end(id);
            begin_all(&mut shares);
            let (a, b) = (count(&shares, "a"), count(&shares, "b"));
            assert!(a + b <= ROOM, "{a} and {b}");
            if (300..700).contains(&id) {
                assert!(a.abs_diff(b) <= 1, "{a} and {b} after {id}");
            }
        }
        assert!(shares.under_way.is_empty() && shares.of.is_empty() && shares.turns.is_empty());
    }

    #[test]
    fn what_is_due_longest_is_first_among_equals() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        let later = now + std::time::Duration::from_secs(1);
        shares.wait(&"a".into(), later, 1);
        shares.wait(&"b".into(), now, 2);
        assert_eq!(shares.begin(ROOM), Some((now, 2)));
        shares.wait(&"b".into(), now, 3);
        assert_eq!(shares.begin(ROOM), Some((later, 1)));
        assert_eq!(shares.begin(ROOM), Some((now, 3)));
    }

    #[test]
    fn what_is_forgotten_while_it_is_under_way_keeps_its_place_until_it_ends() {
        let mut shares = Shares::default();
        wait(&mut shares, "a", 0..300);
        assert_eq!(begin_all(&mut shares).len(), 256);
        shares.forget_waiting();
        wait(&mut shares, "a", 300..301);
        assert_eq!(shares.begin(ROOM), None);
        shares.end(7);
        assert!(shares.begin(ROOM).is_some());
        shares.end(7);
        assert_eq!(count(&shares, "a"), 256, "it ends once");
    }
}
