//! The board: how everything that is claimed stands, and the sums of it for every object.
//!
//! The sums are kept by difference, so that a change costs the same whatever the size of the object.

use std::collections::{BTreeMap, HashMap};

use crate::model::entry::Health;
use crate::model::key::Key;
use crate::model::owner::{Owner, OwnerKind};
use crate::model::source::SourceName;
use crate::model::text::Text;

/// How an instance, a source of an intention or another entry stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether the object claims it; if not, it is still there and waits for its removal.
    pub claimed: bool,
    /// The health of what Consul holds for the object, its node's included; passing for what has none;
    /// `None` where it holds nothing for it.
    pub registered: Option<Health>,
    /// Whether that is as the object claims it, whatever trouble there is beside: with the session of a
    /// check, or a removal that waits.
    pub settled: bool,
    /// What is not as it should be.
    pub trouble: Option<Trouble>,
}

/// What is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// In one word, for conditions and Events.
    pub reason: Reason,
    /// For people: what, where and what to do.
    pub message: String,
}

/// What to do where the token lacks a right.
pub const GRANT: &str = "give the token the right: `lictor check` names what is missing";
/// What to do where Consul refuses something.
pub const CHANGE: &str = "change what it names, here or in Consul: it is tried again now and then";

/// A message with how many others there are beside it.
#[must_use]
pub fn beside(message: &str, others: usize) -> String {
    match others {
        0 => message.to_owned(),
        others => format!("{message} (and {others} more)"),
    }
}

/// Reasons of the condition `Ready`. Ordered by what the user should hear of first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The input is invalid; what was registered last is kept.
    Invalid,
    /// A policy does not allow it.
    NotAllowed,
    /// An older object holds the key.
    Conflict,
    /// Someone else's entry is there.
    OwnedByAnother,
    /// The marks of so many sources have no room in the entry.
    TooManySources,
    /// Consul refuses the entry.
    ConsulRefused,
    /// The token lacks a right.
    AccessDenied,
    /// `lictor.io/paused`.
    Paused,
    /// Another hand keeps changing it.
    DriftContested,
    /// Another hand changed it, and `--drift` is `report`.
    Drifted,
    /// The node that it is to be on cannot be made, for want of an address.
    NoNodeAddress,
    /// A removal waits until it is safe.
    Held,
    /// It was critical for so long that it is not registered until it is no more.
    DeregisteredCritical,
    /// Consul did not take the write yet.
    ConsulUnavailable,
    /// A write is under way.
    Writing,
}

impl Reason {
    /// The reason as conditions have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::NotAllowed => "NotAllowed",
            Self::Conflict => "Conflict",
            Self::OwnedByAnother => "OwnedByAnother",
            Self::TooManySources => "TooManySources",
            Self::ConsulRefused => "ConsulRefused",
            Self::AccessDenied => "AccessDenied",
            Self::Paused => "Paused",
            Self::DriftContested => "DriftContested",
            Self::Drifted => "Drifted",
            Self::NoNodeAddress => "NoNodeAddress",
            Self::Held => "Held",
            Self::DeregisteredCritical => "DeregisteredCritical",
            Self::ConsulUnavailable => "ConsulUnavailable",
            Self::Writing => "Writing",
        }
    }

    /// Whether it passes without anybody doing anything.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::DriftContested
                | Self::NoNodeAddress
                | Self::Held
                | Self::DeregisteredCritical
                | Self::ConsulUnavailable
                | Self::Writing
        )
    }
}

/// The sums of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Instances that it claims.
    pub desired: u32,
    /// Keys of which anything is noted for the object.
    keys: u32,
    /// Sources that it claims.
    pub sources: u32,
    /// Those that Consul holds as claimed.
    pub applied: u32,
    /// Sources of others in the entry that its own are in.
    pub foreign: u32,
    /// The prepared queries that Consul holds for it, and their ids.
    pub queries: BTreeMap<Text, Text>,
    /// Those that Consul holds.
    pub registered: u32,
    /// Registered ones by health.
    pub passing: u32,
    /// Registered ones by health.
    pub warning: u32,
    /// Registered ones by health.
    pub critical: u32,
    /// What is not as it should be, by key.
    pub troubles: BTreeMap<Key, Trouble>,
    /// How many of the troubles are [`Reason::Writing`].
    pub writing: u32,
    /// The greatest `ModifyIndex` of a write for the object.
    pub index: u64,
}

static NOTHING: Tally = Tally {
    desired: 0,
    keys: 0,
    sources: 0,
    applied: 0,
    foreign: 0,
    queries: BTreeMap::new(),
    registered: 0,
    passing: 0,
    warning: 0,
    critical: 0,
    troubles: BTreeMap::new(),
    writing: 0,
    index: 0,
};

/// How every claimed instance stands.
#[derive(Debug, Default)]
pub struct Board {
    standings: HashMap<Key, Vec<(Owner, Standing)>>,
    tallies: HashMap<Owner, Tally>,
    troubles: BTreeMap<Reason, usize>,
}

impl Board {
    /// Notes how an instance stands for each object that claims it. Returns the objects whose sums
    /// changed.
    pub fn set(&mut self, key: &Key, standings: Vec<(Owner, Standing)>) -> Vec<Owner> {
        let before = if standings.is_empty() {
            self.standings.remove(key)
        } else if self.standings.get(key) == Some(&standings) {
            return Vec::new();
        } else {
            self.standings.insert(key.clone(), standings.clone())
        };
        let before = before.unwrap_or_default();
        let mut changed: Vec<Owner> = Vec::new();
        for (owner, standing) in &before {
            self.subtract(key, owner, standing);
            changed.push(owner.clone());
        }
        for (owner, standing) in standings {
            self.add(key, &owner, standing);
            changed.push(owner);
        }
        changed.sort_unstable();
        changed.dedup();
        changed
    }

    /// Notes that a write for an object was acknowledged at a `ModifyIndex`.
    pub fn wrote(&mut self, owner: &Owner, index: u64) {
        if let Some(tally) = self.tallies.get_mut(owner) {
            tally.index = tally.index.max(index);
        }
    }

    /// Notes how many sources of others are in the entry that an object's own are in. Returns whether
    /// that is news.
    pub fn note_foreign(&mut self, owner: &Owner, foreign: u32) -> bool {
        if self.tally(owner).foreign == foreign {
            return false;
        }
        self.tallies.entry(owner.clone()).or_default().foreign = foreign;
        true
    }

    /// Notes the id of the query of this name that Consul holds for an object; `None` where it holds
    /// none. Returns whether that is news.
    pub fn note_query(&mut self, owner: &Owner, name: &Text, id: Option<&Text>) -> bool {
        if self.tally(owner).queries.get(name) == id {
            return false;
        }
        let queries = &mut self.tallies.entry(owner.clone()).or_default().queries;
        match id {
            Some(id) => queries.insert(name.clone(), id.clone()),
            None => queries.remove(name),
        };
        true
    }

    /// The sums of one object.
    #[must_use]
    pub fn tally(&self, owner: &Owner) -> &Tally {
        self.tallies.get(owner).unwrap_or(&NOTHING)
    }

    /// How an instance stands, for each object that claims it.
    #[must_use]
    pub fn standings(&self, key: &Key) -> &[(Owner, Standing)] {
        self.standings.get(key).map_or(&[], Vec::as_slice)
    }

    /// How many instances are in trouble of one sort.
    #[must_use]
    pub fn troubles(&self, reason: Reason) -> usize {
        self.troubles.get(&reason).copied().unwrap_or_default()
    }

    fn add(&mut self, key: &Key, owner: &Owner, standing: Standing) {
        if let Some(trouble) = &standing.trouble {
            *self.troubles.entry(trouble.reason).or_default() += 1;
        }
        // Pods have no status of ours that sums are for.
        if owner.kind == OwnerKind::Pod {
            return;
        }
        let tally = self.tallies.entry(owner.clone()).or_default();
        tally.keys += 1;
        match key {
            Key::Instance(_) => {
                tally.desired += u32::from(standing.claimed);
                if let Some(health) = standing.registered {
                    tally.registered += 1;
                    *tally.of(health) += 1;
                }
            }
            Key::Source(key) if key.source != SourceName::Jwt => {
                tally.sources += u32::from(standing.claimed);
                tally.applied += u32::from(standing.claimed && standing.registered.is_some());
            }
            _ => {}
        }
        if let Some(trouble) = standing.trouble {
            tally.writing += u32::from(trouble.reason == Reason::Writing);
            tally.troubles.insert(key.clone(), trouble);
        }
    }

    fn subtract(&mut self, key: &Key, owner: &Owner, standing: &Standing) {
        if let Some(trouble) = &standing.trouble
            && let Some(count) = self.troubles.get_mut(&trouble.reason)
        {
            *count -= 1;
        }
        let Some(tally) = self.tallies.get_mut(owner) else {
            return;
        };
        tally.keys -= 1;
        match key {
            Key::Instance(_) => {
                tally.desired -= u32::from(standing.claimed);
                if let Some(health) = standing.registered {
                    tally.registered -= 1;
                    *tally.of(health) -= 1;
                }
            }
            Key::Source(key) if key.source != SourceName::Jwt => {
                tally.sources -= u32::from(standing.claimed);
                tally.applied -= u32::from(standing.claimed && standing.registered.is_some());
            }
            _ => {}
        }
        if let Some(trouble) = &standing.trouble {
            tally.writing -= u32::from(trouble.reason == Reason::Writing);
            tally.troubles.remove(key);
        }
    }

    /// Forgets an object that claims nothing and is gone.
    pub fn forget(&mut self, owner: &Owner) {
        if self.tallies.get(owner).is_some_and(|tally| tally.keys == 0) {
            self.tallies.remove(owner);
        }
    }
}

impl Tally {
    fn of(&mut self, health: Health) -> &mut u32 {
        match health {
            Health::Passing => &mut self.passing,
            Health::Warning => &mut self.warning,
            Health::Critical => &mut self.critical,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::key::{InstanceKey, source_key};
    use crate::model::names::{Destination, InstanceId, NodeName};

    fn key(id: &str) -> Key {
        let cluster = "a".parse().unwrap();
        Key::Instance(InstanceKey {
            node: NodeName::for_kubernetes(&cluster, "n1"),
            id: InstanceId::observed(id),
        })
    }

    fn owner(name: &str) -> Owner {
        Owner::registration(&"shop".into(), &name.into())
    }

    fn standing(registered: Option<Health>, reason: Option<Reason>) -> Standing {
        let trouble = reason.map(|reason| Trouble {
            reason,
            message: String::new(),
        });
        Standing {
            claimed: true,
            registered,
            settled: reason.is_none(),
            trouble,
        }
    }

    #[test]
    fn sums_follow_what_is_set_and_taken_back() {
        let mut board = Board::default();
        let good = standing(Some(Health::Passing), None);
        let bad = standing(None, Some(Reason::Conflict));
        board.set(
            &key("1"),
            vec![(owner("a"), good.clone()), (owner("b"), bad)],
        );
        board.set(
            &key("2"),
            vec![(owner("a"), standing(Some(Health::Critical), None))],
        );
        let tally = board.tally(&owner("a"));
        let sums = (
            tally.desired,
            tally.registered,
            tally.passing,
            tally.critical,
        );
        assert_eq!(sums, (2, 2, 1, 1));
        assert_eq!(
            (
                board.tally(&owner("b")).registered,
                board.troubles(Reason::Conflict)
            ),
            (0, 1)
        );

        // The other object takes over.
        let changed = board.set(&key("1"), vec![(owner("b"), good)]);
        assert_eq!(changed, [owner("a"), owner("b")]);
        assert_eq!(
            (
                board.tally(&owner("b")).passing,
                board.troubles(Reason::Conflict)
            ),
            (1, 0)
        );
        board.set(&key("1"), Vec::new());
        board.set(&key("2"), Vec::new());
        assert_eq!(board.tally(&owner("a")), &Tally::default());
        board.forget(&owner("a"));
        assert!(!board.tallies.contains_key(&owner("a")));
    }

    #[test]
    fn what_stays_the_same_changes_nobody() {
        let mut board = Board::default();
        let same = vec![(owner("a"), standing(Some(Health::Passing), None))];
        assert_eq!(board.set(&key("1"), same.clone()).len(), 1);
        assert_eq!(board.set(&key("1"), same).len(), 0);
    }

    #[test]
    fn sources_and_queries_are_summed_apart_from_instances() {
        let mut board = Board::default();
        let intention = Owner::intention(&"shop".into(), &"a".into());
        let source = |name| source_key(&Destination::new("db"), SourceName::parse(name).unwrap());
        let applied = standing(Some(Health::Passing), None);
        board.set(&source("web"), vec![(intention.clone(), applied)]);
        let waiting = standing(None, Some(Reason::Writing));
        board.set(&source("api"), vec![(intention.clone(), waiting)]);
        assert!(board.note_foreign(&intention, 2) && !board.note_foreign(&intention, 2));
        let id = Text::from("1");
        assert!(board.note_query(&owner("a"), &"q".into(), Some(&id)));
        assert!(!board.note_query(&owner("a"), &"q".into(), Some(&id)));
        let tally = board.tally(&intention);
        let sums = (
            tally.sources,
            tally.applied,
            tally.foreign,
            tally.writing,
            tally.desired,
        );
        assert_eq!(sums, (2, 1, 2, 1, 0));
        assert_eq!(board.tally(&owner("a")).queries.len(), 1);
        board.set(&source("web"), Vec::new());
        board.set(&source("api"), Vec::new());
        assert_eq!(
            (
                board.tally(&intention).sources,
                board.tally(&intention).applied
            ),
            (0, 0)
        );
    }
}
