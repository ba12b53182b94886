//! Entries that stand on no node: all of a kind are read together.

use std::collections::{BTreeMap, BTreeSet};

/// A read that is under way.
#[derive(Debug)]
#[must_use]
pub struct TableTicket(u64);

/// How far it is known what a table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Knowledge {
    /// It was not read yet, or what was written since may or may not have arrived: nothing is planned.
    #[default]
    Unknown,
    /// It was read, but not whole, for this reason. What is there may be written, since every write
    /// names the index that it must have; what is missing may be there all the same, so that nothing
    /// is removed.
    Partial(String),
    /// It was read whole.
    Whole,
}

/// An entry, of which some may be ours.
pub trait Owned {
    /// How many things of ours it is.
    fn owned(&self) -> usize;
}

/// All entries of one kind, as far as they are known.
#[derive(Debug)]
pub struct Entries<K, V> {
    rows: BTreeMap<K, V>,
    /// How many things in them are ours.
    owned: usize,
    knowledge: Knowledge,
    /// Reads of earlier generations are void.
    generation: u64,
    /// Rows that were written since the read that is under way began: it may be older.
    written: Option<BTreeSet<K>>,
}

impl<K, V> Default for Entries<K, V> {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            owned: 0,
            knowledge: Knowledge::default(),
            generation: 0,
            written: None,
        }
    }
}

impl<K: Ord + Clone, V: Owned + PartialEq> Entries<K, V> {
    /// How far it is known what is there.
    #[must_use]
    pub fn knowledge(&self) -> &Knowledge {
        &self.knowledge
    }

    /// An entry.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key)
    }

    /// All entries, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter()
    }

    /// How many things in them are ours.
    #[must_use]
    pub fn owned(&self) -> usize {
        self.owned
    }

    /// It is not known any more what is there, until a read that begins from now on.
    pub fn doubt(&mut self) {
        self.generation += 1;
        self.knowledge = Knowledge::Unknown;
    }

    /// Consul lost what it held, or was given other contents: all that is known is void.
    pub fn start_over(&mut self) {
        self.doubt();
        self.rows.clear();
        self.owned = 0;
    }

    /// A read begins. There is one at a time: what an earlier one brings is void.
    pub fn start_read(&mut self) -> TableTicket {
        self.generation += 1;
        self.written = Some(BTreeSet::new());
        TableTicket(self.generation)
    }

    /// Whether a read that began with this ticket is void.
    #[must_use]
    pub fn is_void(&self, TableTicket(began): &TableTicket) -> bool {
        *began != self.generation
    }

    /// A read is complete. Rows that are being written (`busy`), or were written since it began, stay
    /// as they are known. Returns the keys of which something changed; nothing where the read is void.
    pub fn finish_read(
        &mut self,
        ticket: &TableTicket,
        mut found: BTreeMap<K, V>,
        knowledge: Knowledge,
        busy: impl Fn(&K) -> bool,
    ) -> Vec<K> {
        if self.is_void(ticket) {
            return Vec::new();
        }
        let written = self.written.take().unwrap_or_default();
        let current = |key: &K| busy(key) || written.contains(key);
        let mut changed = Vec::new();
        self.rows.retain(|key, row| {
            if current(key) {
                found.remove(key);
                return true;
            }
            match found.remove(key) {
                Some(new) if new == *row => true,
                Some(new) => {
                    *row = new;
                    changed.push(key.clone());
                    true
                }
                None => {
                    changed.push(key.clone());
                    false
                }
            }
        });
        for (key, row) in found {
            if !current(&key) {
                changed.push(key.clone());
                self.rows.insert(key, row);
            }
        }
        self.owned = self.rows.values().map(Owned::owned).sum();
        self.knowledge = knowledge;
        changed
    }

    /// What stands under a key is known: it was written, or read by itself. `None` for nothing.
    pub fn set(&mut self, key: &K, row: Option<V>) {
        if let Some(written) = &mut self.written {
            written.insert(key.clone());
        }
        self.owned += row.as_ref().map_or(0, Owned::owned);
        let before = match row {
            Some(row) => self.rows.insert(key.clone(), row),
            None => self.rows.remove(key),
        };
        self.owned -= before.as_ref().map_or(0, Owned::owned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Numbers = Entries<&'static str, u32>;

    impl Owned for u32 {
        fn owned(&self) -> usize {
            usize::try_from(*self).unwrap()
        }
    }

    fn read(entries: &mut Numbers, rows: &[(&'static str, u32)]) -> Vec<&'static str> {
        let ticket = entries.start_read();
        let found = rows.iter().copied().collect();
        entries.finish_read(&ticket, found, Knowledge::Whole, |_| false)
    }

    #[test]
    fn a_read_tells_what_differs() {
        let mut entries = Numbers::default();
        assert_eq!(read(&mut entries, &[("a", 1), ("b", 1)]), ["a", "b"]);
        assert_eq!(read(&mut entries, &[("b", 2), ("c", 1)]), ["a", "b", "c"]);
        assert_eq!(entries.get(&"a"), None);
        assert_eq!(read(&mut entries, &[("b", 2), ("c", 1)]), [""; 0]);
    }

    #[test]
    fn what_was_written_since_a_read_began_is_not_taken_from_it() {
        let mut entries = Numbers::default();
        let _ = read(&mut entries, &[("a", 1), ("b", 1), ("c", 1)]);
        let ticket = entries.start_read();
        entries.set(&"a", Some(2));
        entries.set(&"b", None);
        let old = BTreeMap::from([("a", 1), ("b", 1), ("c", 1)]);
        let busy = |key: &&str| *key == "c";
        let mut changed = entries.finish_read(&ticket, old, Knowledge::Whole, busy);
        assert_eq!(changed, [""; 0]);
        assert_eq!((entries.get(&"a"), entries.get(&"b")), (Some(&2), None));
        assert_eq!(entries.owned(), 3);
        changed = read(&mut entries, &[("a", 1), ("c", 1)]);
        assert_eq!(changed, ["a"]);
    }

    #[test]
    fn a_doubt_is_settled_by_a_read_that_began_after_it() {
        let mut entries = Numbers::default();
        let ticket = entries.start_read();
        entries.doubt();
        let found = BTreeMap::from([("a", 1)]);
        let changed = entries.finish_read(&ticket, found, Knowledge::Whole, |_| false);
        assert_eq!(
            (changed.len(), entries.knowledge()),
            (0, &Knowledge::Unknown)
        );
        let _ = read(&mut entries, &[("a", 1)]);
        assert_eq!(entries.knowledge(), &Knowledge::Whole);
        entries.start_over();
        assert_eq!(entries.iter().count(), 0);
    }
}
