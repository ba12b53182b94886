//! Which namespace a name belongs to, with `--default-policy exclusive`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::ledger::{KeeperRecord, NameRecord, SERVICE};
use super::uses::Sort;
use crate::model::names::stem_of_sidecar;
use crate::model::text::Text;

/// Longest time that a name is without a claim before that is noted in Consul.
const LONGEST_GRACE: Duration = Duration::from_mins(5);
/// Most namespaces that are noted for one name.
const MOST_KEEPERS: usize = 1000;

/// A name and the namespaces that may use it.
#[derive(Debug, Default)]
struct Name {
    /// The namespace that it belongs to; none where it is only used as it was before there was a rule.
    holder: Option<Text>,
    keepers: BTreeMap<Text, Keeper>,
    /// What a newer release wrote, kept for it.
    other: serde_json::Map<String, serde_json::Value>,
}

/// A namespace that may use a name.
#[derive(Debug, Default)]
struct Keeper {
    /// Its uid: one that takes its place under the same name is another.
    uid: Text,
    /// Since when, in seconds since 1970; 0 until the next tick.
    since: i64,
    idle: Option<Idle>,
    /// As what it may use it, by [`kept_as`]; what a newer release wrote, too.
    sorts: BTreeSet<String>,
    /// What a newer release wrote, kept for it.
    other: serde_json::Map<String, serde_json::Value>,
}

/// How a sort is noted.
fn kept_as(sort: Sort) -> &'static str {
    match sort {
        Sort::Service | Sort::Sidecar => SERVICE,
        Sort::Destination => "destination",
        Sort::Query => "query",
        Sort::Template => "template",
    }
}

impl Keeper {
    /// Whether it may use the name so. Who has the service has what is asked for by its name alone; a
    /// template answers for names of others.
    fn covers(&self, sort: Sort) -> bool {
        let by_service = sort != Sort::Template && self.sorts.contains(SERVICE);
        by_service || self.sorts.contains(kept_as(sort))
    }
}

impl Name {
    /// It has no holder any more: who uses the service for longest is the next. Who may only open it, or
    /// ask for it, is not.
    fn promote(&mut self) {
        let used = self.keepers.iter();
        let used = used.filter(|(_, it)| it.idle.is_none() && it.covers(Sort::Service));
        let used = used.map(|(namespace, it)| (it.since, namespace.clone()));
        self.holder = used.min().map(|(_, namespace)| namespace);
    }
}

/// That it does not use the name any more.
#[derive(Debug)]
struct Idle {
    /// Since when, in seconds since 1970.
    since: i64,
    /// When it is another's to take.
    until: Instant,
    /// When that is noted in Consul, if it is not yet: most come back before.
    noted_at: Option<Instant>,
}

impl Idle {
    /// When something about it is to be done.
    fn due(&self) -> Instant {
        self.noted_at.unwrap_or(self.until)
    }
}

/// How long a name is without a claim before that is noted in Consul, of the time for which it is kept.
fn grace(hold: Duration) -> Duration {
    (hold / 10).min(LONGEST_GRACE)
}

/// A namespace and its uid.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// Its name.
    pub name: &'a Text,
    /// Its uid; empty where that is not known.
    pub uid: &'a Text,
}

/// Times at one moment: of the clock that only goes on, and of the clock on the wall in seconds since
/// 1970.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The clock that only goes on.
    pub now: Instant,
    /// The clock on the wall.
    pub wall: i64,
}

/// All names.
#[derive(Debug, Default)]
pub struct Names {
    all: BTreeMap<Text, Name>,
    /// Names whose record may differ from what is kept in Consul.
    dirty: BTreeSet<Text>,
    /// Names and namespaces of which the next tick is to look whether they are used.
    pending: BTreeSet<(Text, Text)>,
    expiries: BTreeSet<(Instant, Text, Text)>,
    /// Names of which what Consul keeps is not understood.
    unread: BTreeSet<Text>,
}

impl Names {
    /// Whether a namespace may use a name as this.
    #[must_use]
    pub fn keeps(&self, name: &str, namespace: &str, sort: Sort) -> bool {
        self.keeper(name, namespace)
            .is_some_and(|keeper| keeper.covers(sort))
    }

    fn keeper(&self, name: &str, namespace: &str) -> Option<&Keeper> {
        self.all.get(name)?.keepers.get(namespace)
    }

    /// Whether anything is noted of a name.
    #[must_use]
    pub fn knows(&self, name: &str) -> bool {
        self.all.contains_key(name)
    }

    /// The namespace that a name belongs to.
    #[must_use]
    pub fn holder(&self, name: &str) -> Option<&Text> {
        self.all.get(name)?.holder.as_ref()
    }

    /// Another namespace that the name belongs to, or of which it is the name of a service's proxies.
    #[must_use]
    pub fn other_holder(&self, name: &str, namespace: &str, sort: Sort) -> Option<&Text> {
        if self.keeps(name, namespace, sort) {
            return None;
        }
        let stem = || {
            let stem = stem_of_sidecar(name)?;
            let holder = self.holder(stem);
            holder.filter(|_| !self.keeps(stem, namespace, sort))
        };
        self.holder(name).or_else(stem)
    }

    /// A namespace may use a name as this from now on; `as_holder` where it belongs to it if it is no other's.
    /// Returns whether that is news.
    pub fn keep(&mut self, name: &Text, who: Who<'_>, sort: Sort, as_holder: bool) -> bool {
        let found = self.all.entry(name.clone()).or_default();
        let keeper = found.keepers.entry(who.name.clone());
        let keeper = keeper.or_insert_with(|| Keeper {
            uid: who.uid.clone(),
            ..Keeper::default()
        });
        let mut news = !keeper.covers(sort);
        if news {
            keeper.sorts.insert(kept_as(sort).to_owned());
        }
        if as_holder && found.holder.is_none() {
            found.holder = Some(who.name.clone());
            news = true;
        }
        if news {
            self.dirty.insert(name.clone());
            self.pending.insert((name.clone(), who.name.clone()));
        }
        news
    }

    /// A namespace may not use a name as a service any more. Returns whether it could.
    pub fn lose_service(&mut self, name: &Text, namespace: &Text) -> bool {
        let found = self.all.get_mut(name);
        let Some(keeper) = found.and_then(|found| found.keepers.get_mut(namespace)) else {
            return false;
        };
        if !keeper.sorts.remove(SERVICE) {
            return false;
        }
        if keeper.sorts.is_empty() {
            return self.lose(name, namespace);
        }
        self.dirty.insert(name.clone());
        self.pass_on(name, namespace);
        true
    }

    /// If this was the holder of a name, another one is.
    fn pass_on(&mut self, name: &Text, namespace: &Text) {
        let Some(found) = self.all.get_mut(name) else {
            return;
        };
        if found.holder.as_ref() == Some(namespace) {
            found.promote();
            if let Some(holder) = found.holder.clone() {
                // Other uses count of a holder.
                self.pending.insert((name.clone(), holder));
            }
        }
    }

    /// A namespace may not use a name any more. Returns whether it could.
    pub fn lose(&mut self, name: &Text, namespace: &Text) -> bool {
        let Some(found) = self.all.get_mut(name) else {
            return false;
        };
        let Some(keeper) = found.keepers.remove(namespace) else {
            return false;
        };
        if let Some(idle) = keeper.idle {
            let expiry = (idle.due(), name.clone(), namespace.clone());
            self.expiries.remove(&expiry);
        }
        if found.keepers.is_empty() {
            self.all.remove(name);
        }
        self.dirty.insert(name.clone());
        self.pass_on(name, namespace);
        true
    }

    /// A namespace is gone, and with it all that it could use. Returns these names.
    pub fn lose_all(&mut self, namespace: &Text) -> Vec<Text> {
        let of = |(name, found): (&Text, &Name)| {
            let keeps = found.keepers.contains_key(namespace);
            keeps.then(|| name.clone())
        };
        let lost: Vec<Text> = self.all.iter().filter_map(of).collect();
        for name in &lost {
            self.lose(name, namespace);
        }
        lost
    }

    /// How a namespace uses a name may have changed.
    pub fn look_at(&mut self, name: &Text, namespace: &Text) {
        if self.keeper(name, namespace).is_some() {
            self.pending.insert((name.clone(), namespace.clone()));
        }
    }

    /// Notes the times of what is used no more, or again, and lets go what was not used for `hold`.
    /// `uses` says whether a namespace uses a name as a service, and whether in any way; `has` whether Consul
    /// still has instances of it under that name: what is invalid, paused or held claims none and keeps
    /// them, and the name with them. Returns the names that were let go.
    pub fn tick(
        &mut self,
        moment: Moment,
        hold: Duration,
        uses: impl Fn(&str, &Text) -> (bool, bool),
        has: impl Fn(&Text, &Text) -> bool,
    ) -> Vec<Text> {
        for (name, namespace) in std::mem::take(&mut self.pending) {
            let Some(found) = self.all.get_mut(&name) else {
                continue;
            };
            let (service, any) = uses(&name, &namespace);
            let holds = found.holder.as_ref() == Some(&namespace);
            let is_used = service || (any && !holds);
            let Some(keeper) = found.keepers.get_mut(&namespace) else {
                continue;
            };
            if keeper.since == 0 {
                keeper.since = moment.wall;
                self.dirty.insert(name.clone());
            }
            match (is_used, &keeper.idle) {
                (true, Some(idle)) => {
                    let expiry = (idle.due(), name.clone(), namespace.clone());
                    self.expiries.remove(&expiry);
                    if idle.noted_at.is_none() {
                        self.dirty.insert(name);
                    }
                    keeper.idle = None;
                }
                (false, None) => {
                    let idle = Idle {
                        since: moment.wall,
                        until: moment.now + hold,
                        noted_at: Some(moment.now + grace(hold)),
                    };
                    self.expiries.insert((idle.due(), name, namespace));
                    keeper.idle = Some(idle);
                }
                _ => {}
            }
        }
        let mut freed = Vec::new();
        while let Some((until, name, namespace)) = self.expiries.first().cloned() {
            if until > moment.now {
                break;
            }
            self.expiries.pop_first();
            if self.note_idle(&name, &namespace) {
                self.dirty.insert(name);
            } else if has(&name, &namespace) {
                self.put_off(moment.now + hold, name, namespace);
            } else if self.lose(&name, &namespace) {
                freed.push(name);
            }
        }
        freed
    }

    /// It is to be noted in Consul from now on that a name has no claim. Returns whether that is news.
    fn note_idle(&mut self, name: &Text, namespace: &Text) -> bool {
        let found = self.all.get_mut(name);
        let keeper = found.and_then(|found| found.keepers.get_mut(namespace));
        let Some(idle) = keeper.and_then(|keeper| keeper.idle.as_mut()) else {
            return false;
        };
        let is_news = idle.noted_at.take().is_some();
        if is_news {
            let expiry = (idle.until, name.clone(), namespace.clone());
            self.expiries.insert(expiry);
        }
        is_news
    }

    /// A name is not let go before this time.
    fn put_off(&mut self, until: Instant, name: Text, namespace: Text) {
        let found = self.all.get_mut(&name);
        let keeper = found.and_then(|found| found.keepers.get_mut(&namespace));
        if let Some(idle) = keeper.and_then(|keeper| keeper.idle.as_mut()) {
            idle.until = until;
            self.expiries.insert((until, name, namespace));
        }
    }

    /// When something is let go, or to be noted.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.expiries.first().map(|(due, _, _)| *due)
    }

    // === what Consul keeps ===

    /// The name, or that of the service whose proxies bear it, of which what Consul keeps is not understood.
    #[must_use]
    pub fn unread<'a>(&self, name: &'a str) -> Option<&'a str> {
        let mut names = [Some(name), stem_of_sidecar(name)].into_iter().flatten();
        names.find(|name| self.unread.contains(*name))
    }

    /// Whether there are such names.
    #[must_use]
    pub fn lacks_any(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Of these names what Consul keeps is not understood. Returns of which it is by now.
    pub fn set_unread(&mut self, names: BTreeSet<Text>) -> Vec<Text> {
        let before = std::mem::replace(&mut self.unread, names);
        before.difference(&self.unread).cloned().collect()
    }

    /// Takes over what Consul keeps in the place of what is known. `is_there` says whether a namespace with
    /// this name and uid is there (one whose uid was not known when it was noted has an empty one): what
    /// belongs to one that is gone, or is another by now, is free.
    pub fn load(
        &mut self,
        records: impl Iterator<Item = (Text, NameRecord)>,
        moment: Moment,
        hold: Duration,
        is_there: impl Fn(&Text, &str) -> bool,
    ) {
        *self = Self::default();
        for (name, record) in records {
            self.load_one(name, record, moment, hold, &is_there);
        }
    }

    /// The same for one name.
    pub fn load_one(
        &mut self,
        name: Text,
        record: NameRecord,
        moment: Moment,
        hold: Duration,
        is_there: impl Fn(&Text, &str) -> bool,
    ) {
        self.expiries.retain(|(_, of, _)| *of != name);
        self.all.remove(&name);
        let mut found = Name {
            holder: record.holder.as_deref().map(Text::from),
            keepers: BTreeMap::new(),
            other: record.other,
        };
        for (namespace, keeper) in record.namespaces {
            let namespace = Text::from(namespace);
            if !is_there(&namespace, &keeper.uid) {
                self.dirty.insert(name.clone());
                continue;
            }
            let idle = keeper.unclaimed.map(|since| {
                let ago = moment.wall.saturating_sub(since).max(0).unsigned_abs();
                let left = hold.saturating_sub(Duration::from_secs(ago));
                let until = moment.now + left;
                let expiry = (until, name.clone(), namespace.clone());
                self.expiries.insert(expiry);
                Idle {
                    since,
                    until,
                    noted_at: None,
                }
            });
            self.pending.insert((name.clone(), namespace.clone()));
            let keeper = Keeper {
                uid: keeper.uid.into(),
                since: keeper.since,
                idle,
                sorts: keeper.sorts,
                other: keeper.other,
            };
            found.keepers.insert(namespace, keeper);
        }
        let holder = found.holder.take();
        found.holder = holder.filter(|holder| found.keepers.contains_key(holder));
        if found.keepers.is_empty() {
            self.dirty.insert(name);
        } else {
            self.all.insert(name, found);
        }
    }

    /// What Consul is to keep of a name; nothing where nobody keeps it.
    #[must_use]
    pub fn record(&self, name: &str) -> Option<NameRecord> {
        let found = self.all.get(name)?;
        let mut keepers: Vec<(&Text, &Keeper)> = found.keepers.iter().collect();
        keepers.sort_by_key(|(namespace, keeper)| {
            (found.holder.as_ref() != Some(*namespace), keeper.since)
        });
        let record = |(namespace, keeper): (&Text, &Keeper)| {
            let noted = keeper.idle.as_ref().filter(|it| it.noted_at.is_none());
            let record = KeeperRecord {
                uid: keeper.uid.to_string(),
                since: keeper.since,
                unclaimed: noted.map(|idle| idle.since),
                sorts: keeper.sorts.clone(),
                other: keeper.other.clone(),
            };
            (namespace.to_string(), record)
        };
        Some(NameRecord {
            holder: found.holder.as_ref().map(ToString::to_string),
            namespaces: keepers.into_iter().take(MOST_KEEPERS).map(record).collect(),
            other: found.other.clone(),
        })
    }

    /// All names of which something is noted.
    pub fn all(&self) -> impl Iterator<Item = &Text> {
        self.all.keys()
    }

    /// The record of each of these may differ from what is kept.
    pub fn doubt(&mut self, names: impl IntoIterator<Item = Text>) {
        self.dirty.extend(names);
    }

    /// Names whose record may differ from what is kept.
    pub fn take_dirty(&mut self) -> BTreeSet<Text> {
        std::mem::take(&mut self.dirty)
    }
}

#[cfg(test)]
mod tests;
