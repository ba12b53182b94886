//! The engine's side of `lictor gc`: it shows what the guard holds, and releases what it showed.
//!
//! Questions are left behind, where Consul or the asker goes away, and are read again when a watch begins
//! anew. So a question releases nothing but what this process showed to the same asker a moment before,
//! once, under the same epoch, and only if it was seen being asked.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::apply::{self, Answered};
use super::dirty::{Cause, Due};
use super::engine::Engine;
use crate::model::gc::{Answer, Exchange, HeldEntry, Page, Release, Request};
use crate::model::key::Key;
use crate::model::marks::Standing;
use crate::plan;

/// How long what was shown may be released: `lictor gc --yes` asks for it at once.
const SHOWN_FOR: Duration = Duration::from_mins(1);

/// What `lictor gc` was shown last.
#[derive(Debug)]
pub(super) struct Shown {
    /// The question that was answered last with it.
    id: String,
    keys: BTreeSet<Key>,
    at: Instant,
}

/// Why nothing is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("the question was not seen being asked, and may be an old one")]
    NotFresh,
    #[error("it was shown by another process, or under another epoch of this one")]
    OtherEpoch,
    #[error("it is not what was shown last, was released before, or was shown too long ago")]
    NotShown,
}

impl Shown {
    /// Shows what waits, without what was shown to the question that this one goes on from.
    fn next<'a>(
        before: Option<Self>,
        request: &Request,
        waiting: impl Iterator<Item = &'a Key>,
        entry: impl Fn(&Key) -> Option<HeldEntry>,
        now: Instant,
    ) -> (Self, Page) {
        let goes_on = |shown: &Self| request.after.as_ref() == Some(&shown.id);
        let before = before.filter(goes_on);
        let mut keys = before.map(|shown| shown.keys).unwrap_or_default();
        let mut page = Page::default();
        let mut named = Vec::new();
        for key in waiting {
            if !keys.contains(key)
                && let Some(entry) = entry(key)
                && page.add(entry)
            {
                named.push(key.clone());
            }
        }
        keys.extend(named);
        let id = request.id.clone();
        (Self { id, keys, at: now }, page)
    }

    /// What may be released, of what was shown.
    fn released_by(
        shown: Option<Self>,
        release: &Release,
        fresh: bool,
        (holder, epoch): (&str, u64),
        now: Instant,
    ) -> Result<BTreeSet<Key>, Refusal> {
        if !fresh {
            return Err(Refusal::NotFresh);
        }
        if release.holder != holder || release.epoch != epoch {
            return Err(Refusal::OtherEpoch);
        }
        let is_it =
            |shown: &Self| shown.id == release.shown && now.duration_since(shown.at) <= SHOWN_FOR;
        let shown = shown.filter(is_it).ok_or(Refusal::NotShown)?;
        Ok(shown.keys)
    }
}

impl Engine {
    /// Answers a question, if this process is the one that writes.
    pub(super) fn asked(&mut self, exchange: &Exchange, index: u64, fresh: bool, now: Instant) {
        let (Some(pass), Some(claimant)) = (self.pass(), &self.claimant) else {
            return;
        };
        let epoch = pass.epoch();
        if !exchange.is_open() {
            return;
        }
        let holder = claimant.epoch.holder.clone();
        let request = &exchange.request;
        let mut answer = Answer {
            id: request.id.clone(),
            holder: holder.clone(),
            epoch,
            held: Vec::new(),
            more: 0,
            released: 0,
            refused: None,
        };
        let mut release = BTreeSet::new();
        if let Some(wanted) = &request.release {
            // Whatever becomes of it, the same is not released a second time.
            let shown = self.shown.take();
            let waiting: BTreeSet<Key> = self.rules.guard.waiting().cloned().collect();
            match Shown::released_by(shown, wanted, fresh, (&holder, epoch), now) {
                Ok(keys) => release = keys.intersection(&waiting).cloned().collect(),
                Err(why) => answer.refused = Some(why.to_string()),
            }
            answer.released = release.len();
            answer.more = waiting.len() - release.len();
        } else {
            let page = self.show(request, now);
            (answer.held, answer.more) = (page.held, page.more);
        }
        let exchange = Exchange {
            request: request.clone(),
            answer: Some(answer),
        };
        let cluster = self.index.cluster().clone();
        let job = apply::answer(self.consul.clone(), pass, cluster, exchange, index, release);
        self.jobs.spawn(job);
    }

    /// Shows what the guard holds, from where the question before left off, and remembers it.
    fn show(&mut self, request: &Request, now: Instant) -> Page {
        let (before, waiting) = (self.shown.take(), self.rules.guard.waiting());
        let entry = |key: &Key| self.held_entry(key, now);
        let (shown, page) = Shown::next(before, request, waiting, entry, now);
        self.shown = Some(shown);
        page
    }

    /// Releases what was said to be released, now that this is known to be said: else it was asked by
    /// someone who gave up, or under an epoch that is over.
    pub(super) fn absorb_answer(&mut self, answered: Answered) {
        let Answered {
            epoch,
            release,
            given,
        } = answered;
        if release.is_empty() {
            return;
        }
        if !given || self.fence.index() != Some(epoch) {
            tracing::warn!("nothing is released: lictor gc is to ask again");
            return;
        }
        let released = self.rules.guard.release_these(&release);
        tracing::warn!(count = released.len(), "released by lictor gc");
        let due = Due {
            cause: Cause::Read,
            since: Instant::now(),
        };
        for key in released {
            self.dirty.touch(key, due);
        }
    }

    fn held_entry(&self, key: &Key, now: Instant) -> Option<HeldEntry> {
        let owner = match key {
            Key::Instance(instance) => {
                let there = self.mirror.instance(instance)?;
                match self.mirror.standing(instance, there) {
                    Standing::Ours(owner) => owner,
                    Standing::Foreign(_) => return None,
                }
            }
            key => plan::entries::owner_of(key, &self.mirror)?,
        };
        let why = self.rules.guard.admits(key).err()?;
        let since = self.rules.guard.waits_since(key);
        Some(HeldEntry {
            kind: key.kind().to_owned(),
            key: key.to_string(),
            owner: owner.to_string(),
            why: why.to_string(),
            seconds: since.map(|since| now.saturating_duration_since(since).as_secs()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::NodeName;

    fn released(
        change: impl FnOnce(&mut Shown, &mut Release, &mut bool),
    ) -> Result<usize, Refusal> {
        let now = Instant::now();
        let mut shown = Shown {
            id: "1".to_owned(),
            keys: [Key::Node(NodeName::external(&"a".parse().unwrap()))].into(),
            at: now,
        };
        let mut release = Release {
            shown: "1".to_owned(),
            holder: "h".to_owned(),
            epoch: 9,
        };
        let mut fresh = true;
        change(&mut shown, &mut release, &mut fresh);
        let keys = Shown::released_by(Some(shown), &release, fresh, ("h", 9), now);
        keys.map(|keys| keys.len())
    }

    #[test]
    fn what_was_shown_just_now_under_this_epoch_is_released() {
        assert_eq!(released(|_, _, _| {}), Ok(1));
        let other = |change: fn(&mut Release)| released(|_, release, _| change(release));
        for (refused, why) in [
            (released(|_, _, fresh| *fresh = false), Refusal::NotFresh),
            (other(|release| release.epoch = 8), Refusal::OtherEpoch),
            (
                other(|release| release.holder.push('2')),
                Refusal::OtherEpoch,
            ),
            (other(|release| release.shown.push('2')), Refusal::NotShown),
            (
                released(|shown, _, _| shown.at -= SHOWN_FOR + Duration::from_secs(1)),
                Refusal::NotShown,
            ),
        ] {
            assert_eq!(refused, Err(why));
        }
    }

    #[test]
    fn what_one_answer_has_no_room_for_is_in_the_next_and_goes_with_it() {
        let (cluster, now) = ("a".parse().unwrap(), Instant::now());
        let node = |number: usize| NodeName::for_kubernetes(&cluster, &format!("{number:04}"));
        let waiting: Vec<Key> = (0..2000).map(|number| Key::Node(node(number))).collect();
        let entry = |key: &Key| {
            // One that is not to be shown.
            (*key != waiting[7]).then(|| HeldEntry {
                kind: String::new(),
                key: key.to_string(),
                owner: String::new(),
                why: "w".repeat(300),
                seconds: None,
            })
        };
        let ask = |before: Option<Shown>, id: &str, after: Option<&str>| {
            let request = Request {
                id: id.to_owned(),
                after: after.map(str::to_owned),
                release: None,
            };
            Shown::next(before, &request, waiting.iter(), entry, now)
        };
        let (mut shown, mut page) = ask(None, "0", None);
        let (first, mut named, mut pages) = (page.held.len(), page.held.len(), 1);
        while page.more > 0 {
            assert_eq!((shown.keys.len(), page.more), (named, 1999 - named));
            let (id, last) = (pages.to_string(), shown.id.clone());
            (shown, page) = ask(Some(shown), &id, Some(&last));
            (named, pages) = (named + page.held.len(), pages + 1);
        }
        assert!(pages > 2, "{pages}");
        assert_eq!((named, shown.keys.len()), (1999, 1999));
        assert!(!shown.keys.contains(&waiting[7]));
        // Who goes on from what another question was shown begins anew.
        let (shown, _) = ask(Some(shown), "x", Some("0"));
        assert_eq!(shown.keys.len(), first);
    }

    #[test]
    fn without_having_shown_anything_nothing_is_released() {
        let release = Release {
            shown: "1".to_owned(),
            holder: "h".to_owned(),
            epoch: 9,
        };
        let keys = Shown::released_by(None, &release, true, ("h", 9), Instant::now());
        assert_eq!(keys, Err(Refusal::NotShown));
    }
}
