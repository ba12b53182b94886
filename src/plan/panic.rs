//! Most nodes not Ready or missing at once: then it is more likely the view that is broken, such as the
//! API server cut off from all kubelets, or another one behind its address, than the nodes. Their checks
//! stay as they are for as long.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::text::Text;

/// The time in which the nodes that turned not Ready are counted together.
const WINDOW: Duration = Duration::from_mins(1);
/// So few nodes may fail together, whatever their share.
const FEW: usize = 3;
/// The default of `--node-panic`.
pub const DEFAULT_PERCENT: u8 = 55;

/// How many nodes are not Ready or missing, and since when.
#[derive(Debug)]
pub struct NodePanic {
    /// `--node-panic`: the share in percent above which checks are held; 100 is off.
    percent: u8,
    /// When a node turned not Ready or was missed; `None` for one that is Ready.
    nodes: HashMap<Text, Option<Instant>>,
    /// Those that are missing.
    missing: HashSet<Text>,
    /// The nodes that turned, in order.
    turned: BTreeSet<(Instant, Text)>,
    down: usize,
    holds: bool,
}

impl Default for NodePanic {
    fn default() -> Self {
        Self::new(DEFAULT_PERCENT)
    }
}

impl NodePanic {
    /// One that knows no nodes yet.
    #[must_use]
    pub fn new(percent: u8) -> Self {
        Self {
            percent,
            nodes: HashMap::new(),
            missing: HashSet::new(),
            turned: BTreeSet::new(),
            down: 0,
            holds: false,
        }
    }

    /// A node is Ready, or not. One that is first seen not Ready turned so now.
    pub fn observe(&mut self, node: &Text, ready: bool, now: Instant) {
        self.missing.remove(node);
        self.turn(node, ready, now);
    }

    /// A node is missing although nobody saw it go, and pods are on it.
    pub fn miss(&mut self, node: &Text, now: Instant) {
        self.turn(node, false, now);
        self.missing.insert(node.clone());
    }

    /// Whether any node is missing.
    #[must_use]
    pub fn misses_any(&self) -> bool {
        !self.missing.is_empty()
    }

    /// The nodes that are missing.
    pub fn missing(&self) -> impl Iterator<Item = &Text> {
        self.missing.iter()
    }

    fn turn(&mut self, node: &Text, ready: bool, now: Instant) {
        let before = self.nodes.get(node).copied();
        let after = match (ready, before) {
            (true, _) => None,
            (false, Some(Some(since))) => Some(since),
            (false, _) => {
                self.turned.insert((now, node.clone()));
                Some(now)
            }
        };
        self.down += usize::from(after.is_some());
        self.down -= usize::from(before.is_some_and(|before| before.is_some()));
        self.nodes.insert(node.clone(), after);
    }

    /// A node was seen going: it does not count.
    pub fn remove(&mut self, node: &Text) {
        self.missing.remove(node);
        if let Some(before) = self.nodes.remove(node) {
            self.down -= usize::from(before.is_some());
        }
    }

    /// Only these nodes exist, or are missed.
    pub fn retain(&mut self, counts: impl Fn(&Text) -> bool) {
        self.nodes.retain(|node, _| counts(node));
        self.missing.retain(|node| self.nodes.contains_key(node));
        self.down = self.nodes.values().filter(|since| since.is_some()).count();
    }

    /// Judges what was told since. Returns whether the panic begins or ends.
    pub fn judge(&mut self, now: Instant) -> bool {
        while self
            .turned
            .first()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW)
        {
            self.turned.pop_first();
        }
        let exceeds = |count: usize| count * 100 > usize::from(self.percent) * self.nodes.len();
        let holds = if self.holds {
            exceeds(self.down)
        } else {
            let nodes = &self.nodes;
            let still = |(at, node): &&(Instant, Text)| nodes.get(node) == Some(&Some(*at));
            let together = self.turned.iter().filter(still).count();
            self.percent < 100 && together >= FEW && exceeds(together)
        };
        std::mem::replace(&mut self.holds, holds) != holds
    }

    /// Whether checks of nodes are held.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.holds
    }

    /// How many nodes are not Ready or missing, of how many.
    #[must_use]
    pub fn share(&self) -> (usize, usize) {
        (self.down, self.nodes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> Text {
        format!("n{number}").into()
    }

    /// So many nodes, all Ready.
    fn ready(count: usize, percent: u8, now: Instant) -> NodePanic {
        let mut panic = NodePanic::new(percent);
        for number in 0..count {
            panic.observe(&name(number), true, now);
        }
        panic
    }

    /// Whether the panic begins or ends with that.
    fn turns(panic: &mut NodePanic, number: usize, ready: bool, now: Instant) -> bool {
        panic.observe(&name(number), ready, now);
        panic.judge(now)
    }

    /// At which of the nodes that fail one after the other the panic begins.
    fn begins(panic: &mut NodePanic, count: usize, apart: Duration, now: Instant) -> Option<usize> {
        let at = |number| now + apart * u32::try_from(number).unwrap();
        (0..count).find(|number| turns(panic, *number, false, at(*number)))
    }

    #[test]
    fn it_begins_above_the_share_and_ends_below_it() {
        let now = Instant::now();
        let mut panic = ready(10, 55, now);
        assert_eq!(begins(&mut panic, 10, Duration::ZERO, now), Some(5));
        assert!(panic.holds());
        assert_eq!(panic.share(), (6, 10));
        // However long it takes.
        assert!(turns(&mut panic, 0, true, now + WINDOW * 10));
        assert!(!panic.holds());
    }

    #[test]
    fn nodes_that_fail_one_by_one_are_none() {
        let now = Instant::now();
        let mut panic = ready(10, 55, now);
        let apart = Duration::from_secs(15);
        assert_eq!(begins(&mut panic, 10, apart, now), None);
    }

    #[test]
    fn a_few_nodes_or_a_share_of_100_are_none() {
        let now = Instant::now();
        assert_eq!(begins(&mut ready(2, 55, now), 2, Duration::ZERO, now), None);
        let mut off = ready(10, 100, now);
        assert_eq!(begins(&mut off, 10, Duration::ZERO, now), None);
    }

    #[test]
    fn a_node_that_flaps_counts_once_and_a_deleted_one_not_at_all() {
        let now = Instant::now();
        let mut panic = ready(4, 55, now);
        for _ in 0..5 {
            assert!(!turns(&mut panic, 0, false, now));
            assert!(!turns(&mut panic, 0, true, now));
        }
        assert!(!turns(&mut panic, 0, false, now));
        assert!(!turns(&mut panic, 1, false, now));
        assert!(turns(&mut panic, 2, false, now));
        panic.remove(&name(2));
        assert!(!panic.judge(now));
        panic.remove(&name(1));
        assert!(panic.judge(now), "one of two is not too much");
        panic.retain(|_| false);
        assert!(!panic.judge(now));
    }

    #[test]
    fn nodes_that_are_missing_count_as_those_that_are_not_ready() {
        let now = Instant::now();
        let mut panic = ready(6, 55, now);
        for number in 0..4 {
            panic.miss(&name(number), now);
        }
        assert!(panic.judge(now));
        assert_eq!(panic.share(), (4, 6));
        // Missed once more, much later, they turned when they were missed first.
        let later = now + WINDOW * 2;
        for number in 0..4 {
            panic.miss(&name(number), later);
        }
        panic.retain(|node| *node != name(0));
        assert_eq!(panic.share(), (3, 5));
        assert!(!panic.judge(later), "three of five are still too many");
        // One is back, and of another nothing is left that could be lost.
        panic.observe(&name(1), true, later);
        assert!(panic.judge(later) && !panic.holds());
        assert_eq!(panic.missing().count(), 2);
        panic.miss(&name(1), later);
        assert!(!panic.judge(later), "it turned alone");
    }

    #[test]
    fn after_a_start_nodes_that_are_down_turned_just_now() {
        let (mut panic, now) = (NodePanic::default(), Instant::now());
        for number in 0..6 {
            panic.observe(&name(number), number >= 3, now);
        }
        assert!(!panic.judge(now), "a half is not too much");
        assert!(turns(&mut panic, 3, false, now));
    }
}
