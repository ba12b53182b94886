//! Which Intention is to blame where Consul refuses the entry of a destination, of which it takes all
//! sources or none.
//!
//! Found by leaving out, the youngest first, what would change something: what stands there was
//! accepted once. When the rest is taken, the one that was left out last is to blame, and the others
//! that were left out before it are tried again, one at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::backoff;
use crate::model::names::Destination;
use crate::model::owner::Owner;

/// How long a refusal is believed at first, doubled each time it is repeated: what Consul judges by may
/// change without a change of anything that is watched, as the protocol of all services does with
/// `proxy-defaults`.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// The Intentions that are left out, by their destination.
#[derive(Debug, Default)]
pub struct Refusals {
    destinations: BTreeMap<Destination, Judged>,
}

#[derive(Debug, Default)]
struct Judged {
    left_out: Vec<LeftOut>,
    /// The Intentions that changed something in what was refused last.
    tried: Vec<Owner>,
    /// Whether the next refusal is of what was sent before something changed that Consul judges by.
    outdated: bool,
    /// Whether the last refusal was not believed.
    excused: bool,
    /// How often all were tried.
    trials: u32,
    /// When all are tried once more.
    again: Option<Instant>,
}

#[derive(Debug)]
struct LeftOut {
    owner: Owner,
    /// What Consul said.
    message: String,
    /// Whether it is known to be to blame; else others may be.
    blamed: bool,
}

/// Why an Intention is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Consul refuses it, and says this.
    Blamed(String),
    /// It or another is to blame: that is being found out.
    Suspected,
}

impl Refusals {
    /// Why the Intention is left out, where it is.
    #[must_use]
    pub fn of(&self, destination: &Destination, owner: &Owner) -> Option<Refused> {
        let judged = self.destinations.get(destination)?;
        let mut left_out = judged.left_out.iter();
        let found = left_out.find(|left_out| left_out.owner == *owner)?;
        Some(if found.blamed {
            Refused::Blamed(found.message.clone())
        } else {
            Refused::Suspected
        })
    }

    /// Consul refused the entry. `changing` are the Intentions in it that change something, the oldest
    /// first; `outdated` says whether one of them changed since. Returns whether there is something else
    /// to try.
    ///
    /// A refusal of what nobody asks for any more is not believed, but the next one is: whoever changes
    /// without end does not hold up the others.
    pub fn refused(
        &mut self,
        destination: &Destination,
        changing: &[Owner],
        outdated: bool,
        message: &str,
        now: Instant,
    ) -> bool {
        let Some(youngest) = changing.last() else {
            return false;
        };
        let judged = self.destinations.entry(destination.clone()).or_default();
        let outdated = std::mem::take(&mut judged.outdated) || outdated;
        judged.excused = outdated && !judged.excused;
        if judged.excused {
            return true;
        }
        judged.tried = changing.to_vec();
        judged
            .left_out
            .retain(|left_out| left_out.owner != *youngest);
        judged.left_out.push(LeftOut {
            owner: youngest.clone(),
            message: message.to_owned(),
            // Nobody else can be.
            blamed: changing.len() == 1,
        });
        let pause = backoff::ceiling(FIRST_PAUSE, judged.trials, LONGEST_PAUSE);
        judged.again = Some(now + pause);
        true
    }

    /// Consul took the entry without those that are left out, or there is nothing to write without
    /// them. Returns whether that says something of one of them: it is to blame, or to be tried again.
    pub fn accepted(&mut self, destination: &Destination) -> bool {
        let Some(judged) = self.destinations.get_mut(destination) else {
            return false;
        };
        judged.excused = false;
        let left_out = &mut judged.left_out;
        let found = left_out
            .last_mut()
            .is_some_and(|last| !std::mem::replace(&mut last.blamed, true));
        let suspect = left_out.iter().rposition(|left_out| !left_out.blamed);
        let again = suspect.map(|at| left_out.remove(at)).is_some();
        if left_out.is_empty() {
            // They were taken: what was refused is over.
            self.destinations.remove(destination);
        }
        found || again
    }

    /// An Intention changed, or is gone: it is judged anew, and so are those that are only suspected, for
    /// what it may have been to blame for itself.
    pub fn forget(&mut self, owner: &Owner) {
        self.destinations.retain(|_, judged| {
            let clears = judged.tried.contains(owner);
            judged
                .left_out
                .retain(|it| it.owner != *owner && (it.blamed || !clears));
            !judged.left_out.is_empty() || judged.outdated || judged.excused
        });
    }

    /// What Consul judges by changed: all Intentions of the destination are judged anew. `under_way`: a
    /// write may just be refused for what was. Returns whether any was left out.
    pub fn reconsider(&mut self, destination: &Destination, under_way: bool) -> bool {
        let before = self.destinations.remove(destination);
        if under_way {
            let judged = Judged {
                outdated: true,
                ..Judged::default()
            };
            self.destinations.insert(destination.clone(), judged);
        }
        before.is_some_and(|judged| !judged.left_out.is_empty())
    }

    /// The destinations of which all Intentions are to be tried once more.
    pub fn ripen(&mut self, now: Instant) -> Vec<Destination> {
        let mut ripe = Vec::new();
        for (destination, judged) in &mut self.destinations {
            if judged.again.is_some_and(|at| at <= now) {
                judged.again = None;
                judged.trials += 1;
                judged.left_out.clear();
                ripe.push(destination.clone());
            }
        }
        ripe
    }

    /// When the next are to be tried.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.destinations
            .values()
            .filter_map(|judged| judged.again)
            .min()
    }

    /// Whether any Intention of the destination is left out.
    #[must_use]
    pub fn knows(&self, destination: &Destination) -> bool {
        let judged = self.destinations.get(destination);
        judged.is_some_and(|judged| !judged.left_out.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> Owner {
        Owner::intention(&"shop".into(), &name.into())
    }

    fn destination() -> Destination {
        Destination::new("payment")
    }

    /// Tries until Consul, which refuses what these ask for, takes the rest. Returns how often.
    fn settle(
        refusals: &mut Refusals,
        all: &[&str],
        bad: &[&str],
        applied: &mut Vec<String>,
    ) -> u32 {
        for tries in 1..50 {
            let is_in = |name: &&&str| refusals.of(&destination(), &owner(name)).is_none();
            let included: Vec<&&str> = all.iter().filter(is_in).collect();
            let changes = |name: &&&&str| !applied.contains(&(**name).to_string());
            let changing: Vec<Owner> = included
                .iter()
                .filter(changes)
                .map(|name| owner(name))
                .collect();
            if included.iter().any(|name| bad.contains(name)) {
                assert!(refusals.refused(&destination(), &changing, false, "no", Instant::now()));
            } else {
                *applied = included.iter().map(|name| (**name).to_string()).collect();
                if !refusals.accepted(&destination()) {
                    return tries;
                }
            }
        }
        panic!("no end");
    }

    #[test]
    fn those_to_blame_are_found_and_all_others_are_taken() {
        let all = ["a", "b", "c", "d", "e"];
        for bad in [
            vec!["a"],
            vec!["c"],
            vec!["e"],
            vec!["b", "d"],
            vec!["a", "e"],
            all.to_vec(),
        ] {
            let (mut refusals, mut applied) = (Refusals::default(), Vec::new());
            let tries = settle(&mut refusals, &all, &bad, &mut applied);
            let good: Vec<&str> = all.into_iter().filter(|name| !bad.contains(name)).collect();
            assert_eq!(applied, good, "{bad:?}");
            assert!(tries < 20, "{tries}");
        }
    }

    #[test]
    fn what_stands_there_is_not_suspected() {
        let (mut refusals, mut applied) = (Refusals::default(), Vec::new());
        let old = ["a", "b"];
        settle(&mut refusals, &old, &[], &mut applied);
        assert_eq!(
            settle(&mut refusals, &["a", "b", "c"], &["c"], &mut applied),
            2
        );
        let blamed = Refused::Blamed("no".to_owned());
        assert_eq!(refusals.of(&destination(), &owner("c")), Some(blamed));
        refusals.forget(&owner("c"));
        assert!(!refusals.knows(&destination()));
    }

    /// Nobody is told of a refusal before it is known to be theirs.
    #[test]
    fn who_is_only_left_out_to_find_out_is_suspected() {
        let mut refusals = Refusals::default();
        let (a, b) = (owner("a"), owner("b"));
        let now = Instant::now();
        assert!(refusals.refused(&destination(), &[a.clone(), b.clone()], false, "no", now));
        assert_eq!(refusals.of(&destination(), &b), Some(Refused::Suspected));
        assert!(refusals.refused(&destination(), std::slice::from_ref(&a), false, "no", now));
        assert!(refusals.accepted(&destination()), "b is tried again");
        let blamed = Refused::Blamed("no".to_owned());
        assert_eq!(refusals.of(&destination(), &a), Some(blamed));
        assert_eq!(refusals.of(&destination(), &b), None);
    }

    /// What Consul judged is not what is asked for, or by what it is judged now.
    #[test]
    fn a_refusal_that_is_outdated_is_not_believed_but_once() {
        let mut refusals = Refusals::default();
        let (a, now) = (owner("a"), Instant::now());
        let all = std::slice::from_ref(&a);
        assert!(!refusals.reconsider(&destination(), true));
        assert!(refusals.refused(&destination(), all, false, "no", now));
        assert_eq!(refusals.of(&destination(), &a), None);
        assert!(refusals.refused(&destination(), all, true, "no", now));
        let blamed = Some(Refused::Blamed("no".to_owned()));
        assert_eq!(refusals.of(&destination(), &a), blamed);
        assert!(refusals.reconsider(&destination(), false));
        assert!(refusals.refused(&destination(), all, true, "no", now));
        assert_eq!(refusals.of(&destination(), &a), None);
        assert!(!refusals.accepted(&destination()));
        assert!(!refusals.knows(&destination()));
    }

    #[test]
    fn who_mends_what_was_refused_leaves_nobody_else_to_blame() {
        let mut refusals = Refusals::default();
        let (a, b) = (owner("a"), owner("b"));
        let now = Instant::now();
        assert!(refusals.refused(&destination(), &[a.clone(), b.clone()], false, "no", now));
        assert_eq!(refusals.of(&destination(), &b), Some(Refused::Suspected));
        refusals.forget(&a);
        assert_eq!(refusals.of(&destination(), &b), None);
        assert!(!refusals.accepted(&destination()));
        assert!(!refusals.knows(&destination()));
    }

    #[test]
    fn what_was_refused_is_tried_again_with_growing_pauses() {
        let (mut refusals, mut now) = (Refusals::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(refusals.refused(&destination(), &[owner("a")], false, "no", now));
            let next = refusals.wake_at().unwrap();
            pauses.push((next - now).as_secs());
            now = next;
            assert_eq!(refusals.ripen(now), [destination()]);
            assert!(!refusals.knows(&destination()));
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300, 300]);
        refusals.accepted(&destination());
        assert_eq!(refusals.wake_at(), None);
    }
}
