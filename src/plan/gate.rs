//! The one gate that every removal passes.
//!
//! That the entry is ours, that no object claims it and that no frozen object holds it was found out
//! before; here it is judged whether that finding can be relied on. Consul's own side of it (the node
//! was read whole, with a token that sees everything) is the condition for the mirror to be complete.

use std::fmt;
use std::time::Duration;

use super::critical::Watched;
use super::{Mode, Rules};
use crate::desired::claim::Absence;
use crate::desired::watches::{Watch, Watches};
use crate::model::key::Key;
use crate::model::owner::Owner;
use crate::model::text::Text;
use crate::policy::Refusal;

/// An entry of ours that nothing claims.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its key.
    pub key: &'a Key,
    /// Whose it was.
    pub owner: &'a Owner,
    /// How it is known that nothing does.
    pub absence: Absence,
    /// How complete the view of Kubernetes is.
    pub watches: &'a Watches,
}

/// Why an entry may be removed, for the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// This process saw the claim go.
    Seen,
    /// No object in the complete lists claims it.
    Found,
    /// What claims it may not.
    NotAllowed,
    /// Its checks were critical for so long.
    Critical(Duration),
}

impl Why {
    /// Whether it counts for the guard: nobody was seen letting it go.
    #[must_use]
    pub fn is_found(self) -> bool {
        match self {
            Self::Seen => false,
            Self::Found | Self::NotAllowed | Self::Critical(_) => true,
        }
    }

    /// Whether something claims it, and only its health speaks against it.
    #[must_use]
    pub fn is_critical(self) -> bool {
        matches!(self, Self::Critical(_))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seen => f.write_str("its claim was seen going"),
            Self::Found => f.write_str("no object claims it"),
            Self::NotAllowed => f.write_str("what claims it is not allowed to"),
            Self::Critical(after) => write!(f, "its checks were critical for {after:?}"),
        }
    }
}

/// Why an entry may not be removed yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hold {
    /// A kind of object that could claim it is not known completely.
    #[error("kept while {resource} are not known completely: {reason}")]
    Incomplete {
        /// The resource.
        resource: &'static str,
        /// What is wrong with its watch.
        reason: String,
    },
    /// Whether what claims it may is not known.
    #[error("kept while it is not known whether its claim is allowed: {0}")]
    Unsure(Text),
    /// Objects of its owner's namespace are not watched.
    #[error(
        "kept, because the namespace {0} is not among those of --namespace: add it there, or remove the \
         entry by hand"
    )]
    NotWatched(Text),
    /// `--policy` lets nothing be removed.
    #[error("kept, because --policy is {0}: with sync it is removed")]
    Policy(Mode),
    /// Whether it may go is judged together with what else is found missing.
    #[error("kept until all that nothing claims is known")]
    Unjudged,
    /// The API server was not asked for its pod yet, or shows another state of it than is known.
    #[error("kept until the API server, asked for its pod, shows it as it is known")]
    Unseen,
    /// Not enough lists agree yet.
    #[error("kept until {needed} lists agree that nothing claims it; {lists} did")]
    Unconfirmed {
        /// Lists that agree.
        lists: u32,
        /// Lists that must.
        needed: u32,
    },
    /// Too much would go at once.
    #[error(
        "kept, because {would_go} of {of} entries would go that nobody was seen deleting, which is \
         more than --max-delete-percent and --max-delete-floor allow: if that is right, release them \
         with: lictor gc --yes"
    )]
    TooMany {
        /// How many would have gone within ten minutes.
        would_go: usize,
        /// Of how many.
        of: usize,
    },
}

impl Hold {
    /// Whether the guard holds it.
    #[must_use]
    pub fn is_guards(&self) -> bool {
        matches!(
            self,
            Self::Unjudged | Self::Unconfirmed { .. } | Self::TooMany { .. }
        )
    }
}

/// Whether an entry of ours that nothing claims may be removed now.
pub fn may_remove(candidate: &Candidate<'_>, rules: &Rules) -> Result<Why, Hold> {
    let Candidate {
        key,
        owner,
        absence,
        watches,
    } = *candidate;
    if !watches.covers(&owner.namespace) {
        return Err(Hold::NotWatched(owner.namespace.clone()));
    }
    is_known(key, absence, watches)?;
    if rules.mode == Mode::UpsertOnly {
        return Err(Hold::Policy(rules.mode));
    }
    match absence {
        Absence::Seen => Ok(Why::Seen),
        Absence::Found => rules.guard.admits(key).map(|()| Why::Found),
    }
}

/// Whether an entry of ours whose claim is not allowed may be removed now.
pub fn may_withdraw(
    candidate: &Candidate<'_>,
    rules: &Rules,
    refusal: &Refusal,
) -> Result<Why, Hold> {
    if let Some(why) = &refusal.unsure {
        return Err(Hold::Unsure(why.clone()));
    }
    let found = Candidate {
        absence: Absence::Found,
        ..*candidate
    };
    may_remove(&found, rules).map(|_| Why::NotAllowed)
}

/// Whether an instance of ours whose checks were critical for so long may be deregistered now. Much of that
/// at once looks as much like a view that is wrong as much that is missing, and is judged with it.
pub fn may_deregister(
    key: &Key,
    watches: &Watches,
    rules: &Rules,
    instance: &Watched,
) -> Result<Why, Hold> {
    is_known(key, Absence::Found, watches)?;
    if rules.mode == Mode::UpsertOnly {
        return Err(Hold::Policy(rules.mode));
    }
    rules.guard.admits(key)?;
    // Last: it is known for seconds only.
    let looks = &rules.criticals.looks;
    if instance.pod.is_some() && !looks.shows(&instance.instance) {
        return Err(Hold::Unseen);
    }
    Ok(Why::Critical(instance.after))
}

/// Whether all that could claim it is known.
fn is_known(key: &Key, absence: Absence, watches: &Watches) -> Result<(), Hold> {
    for kind in key.claimed_by() {
        let reason = match watches.state(*kind) {
            Watch::Complete => continue,
            // What was seen going is gone, whatever a further list will show.
            Watch::Listing if absence == Absence::Seen && watches.was_listed(*kind) => {
                continue;
            }
            Watch::Listing => "the list is under way".to_owned(),
            Watch::Broken(reason) => reason.clone(),
        };
        let resource = kind.resource();
        return Err(Hold::Incomplete { resource, reason });
    }
    Ok(())
}

#[cfg(test)]
impl Hold {
    /// One of each sort.
    pub(crate) fn each() -> Vec<Self> {
        let (would_go, of) = (12, 14);
        let each = vec![
            Self::Incomplete {
                resource: "pods",
                reason: "403 pods is forbidden".to_owned(),
            },
            Self::Unsure("the policies are not known".into()),
            Self::NotWatched("shop".into()),
            Self::Policy(Mode::UpsertOnly),
            Self::Unjudged,
            Self::Unseen,
            Self::Unconfirmed {
                lists: 1,
                needed: 3,
            },
            Self::TooMany { would_go, of },
        ];
        for hold in &each {
            // A new one is to be added above.
            match hold {
                Self::Incomplete { .. }
                | Self::Unsure(_)
                | Self::NotWatched(_)
                | Self::Policy(_)
                | Self::Unjudged
                | Self::Unseen
                | Self::Unconfirmed { .. }
                | Self::TooMany { .. } => {}
            }
        }
        each
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kind::Kind;
    use crate::model::names::NodeName;

    fn complete() -> Watches {
        let mut watches = Watches::default();
        for kind in Kind::ALL {
            watches.listing(kind);
            watches.complete(kind);
        }
        watches
    }

    fn key() -> Key {
        Key::Node(NodeName::external(&"a".parse().unwrap()))
    }

    /// With a guard that lets everything go.
    fn judged(absence: Absence, watches: &Watches) -> Result<Why, Hold> {
        let mut rules = Rules::default();
        rules.guard.found(&key());
        rules.guard.release();
        judged_by(&rules, absence, watches)
    }

    fn judged_by(rules: &Rules, absence: Absence, watches: &Watches) -> Result<Why, Hold> {
        let candidate = Candidate {
            key: &key(),
            owner: &Owner::pod(&"shop".into(), &"web-0".into()),
            absence,
            watches,
        };
        may_remove(&candidate, rules)
    }

    #[test]
    fn only_what_is_found_asks_the_guard() {
        let rules = Rules::default();
        let watches = complete();
        let seen = judged_by(&rules, Absence::Seen, &watches);
        assert_eq!(seen, Ok(Why::Seen));
        let found = judged_by(&rules, Absence::Found, &watches);
        assert_eq!(found, Err(Hold::Unjudged));
    }

    #[test]
    fn a_policy_without_removals_lets_none_through() {
        let mode = Mode::UpsertOnly;
        let rules = Rules {
            mode,
            ..Rules::default()
        };
        let seen = judged_by(&rules, Absence::Seen, &complete());
        assert_eq!(seen, Err(Hold::Policy(mode)));
    }

    #[test]
    fn with_everything_known_a_removal_passes() {
        assert_eq!(judged(Absence::Seen, &complete()), Ok(Why::Seen));
        assert_eq!(judged(Absence::Found, &complete()), Ok(Why::Found));
    }

    #[test]
    fn what_is_of_a_namespace_that_is_not_watched_stays() {
        for (watched, passes) in [("shop", true), ("other", false)] {
            let mut watches = Watches::of([Text::from(watched)].into());
            for kind in Kind::ALL.into_iter().filter(|kind| kind.is_namespaced()) {
                watches.listing(kind);
                watches.complete(kind);
            }
            for absence in [Absence::Seen, Absence::Found] {
                let judged = judged(absence, &watches);
                assert_eq!(judged.is_ok(), passes, "{judged:?}");
                let held = Err(Hold::NotWatched("shop".into()));
                assert!(passes || judged == held, "{judged:?}");
            }
        }
    }

    #[test]
    fn any_kind_that_is_broken_or_was_never_listed_holds_every_removal() {
        for kind in key().claimed_by().iter().copied() {
            let mut unlisted = Watches::default();
            for other in Kind::ALL.into_iter().filter(|other| *other != kind) {
                unlisted.complete(other);
            }
            let mut broken = complete();
            broken.broken(kind, "403 Forbidden".to_owned());
            for watches in [unlisted, broken] {
                for absence in [Absence::Seen, Absence::Found] {
                    let Err(Hold::Incomplete { resource, .. }) = judged(absence, &watches) else {
                        panic!("{kind:?} {absence:?} was let through");
                    };
                    assert_eq!(resource, kind.resource());
                }
            }
        }
    }

    #[test]
    fn a_further_list_holds_what_is_found_and_not_what_was_seen() {
        for kind in key().claimed_by().iter().copied() {
            let mut watches = complete();
            watches.listing(kind);
            assert_eq!(judged(Absence::Seen, &watches), Ok(Why::Seen));
            assert!(judged(Absence::Found, &watches).is_err());
        }
    }

    #[test]
    fn a_watch_that_recovers_lets_removals_through_again() {
        let mut watches = complete();
        watches.broken(Kind::Pod, "timeout".to_owned());
        watches.healthy(Kind::Pod);
        assert_eq!(judged(Absence::Found, &watches), Ok(Why::Found));
    }

    #[test]
    fn a_failed_re_list_is_completed_by_a_list_only() {
        let mut watches = complete();
        watches.listing(Kind::Pod);
        watches.broken(Kind::Pod, "timeout".to_owned());
        watches.healthy(Kind::Pod);
        assert!(judged(Absence::Found, &watches).is_err());
        watches.complete(Kind::Pod);
        assert!(judged(Absence::Found, &watches).is_ok());
    }
}
