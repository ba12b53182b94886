//! The keys of one object.

use crate::model::key::InstanceKey;

/// A set of keys. Most objects have one key or none, and there are many objects: a tree would take
/// ten times the room.
#[derive(Debug, Default)]
pub(super) struct Keys(Vec<InstanceKey>);

impl Keys {
    pub(super) fn contains(&self, key: &InstanceKey) -> bool {
        self.0.binary_search(key).is_ok()
    }

    /// Puts a key in, if it is not.
    pub(super) fn insert(&mut self, key: InstanceKey) {
        if let Err(at) = self.0.binary_search(&key) {
            self.0.insert(at, key);
        }
    }

    /// Takes a key out. Returns whether it was in.
    pub(super) fn remove(&mut self, key: &InstanceKey) -> bool {
        let found = self.0.binary_search(key);
        found.map(|at| self.0.remove(at)).is_ok()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &InstanceKey> {
        self.0.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_vec(self) -> Vec<InstanceKey> {
        self.0
    }
}

impl Extend<InstanceKey> for Keys {
    fn extend<T: IntoIterator<Item = InstanceKey>>(&mut self, keys: T) {
        keys.into_iter().for_each(|key| self.insert(key));
    }
}
