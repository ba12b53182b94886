//! Who claims what.

use std::collections::BTreeMap;

use crate::model::text::Text;

/// The older holds a key: `metadata.creationTimestamp`, then the uid.
pub(super) type Seniority = (i64, Text);

/// The claims on each key, that of who holds it first.
#[derive(Debug)]
pub(super) struct Claims<K, V>(BTreeMap<K, BTreeMap<Seniority, V>>);

impl<K, V> Default for Claims<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, V> Claims<K, V> {
    /// Puts a claim on a key, in the place of one of the same seniority.
    pub fn insert(&mut self, key: K, seniority: Seniority, claim: V) {
        self.0.entry(key).or_default().insert(seniority, claim);
    }

    /// Takes a claim away. Returns whether it was the last one on the key.
    pub fn remove(&mut self, key: &K, seniority: &Seniority) -> bool {
        let Some(claims) = self.0.get_mut(key) else {
            return false;
        };
        claims.remove(seniority);
        claims.is_empty() && self.0.remove(key).is_some()
    }

    /// The claims on a key, that of who holds it first.
    pub fn of(&self, key: &K) -> impl Iterator<Item = &V> {
        self.0.get(key).into_iter().flat_map(BTreeMap::values)
    }

    /// All keys that are claimed.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_first_and_the_last_that_goes_is_told() {
        let at = |created: i64| (created, Text::from("uid"));
        let mut claims = Claims::default();
        claims.insert("a", at(2), "younger");
        claims.insert("a", at(1), "older");
        let of = |claims: &Claims<_, &'static str>| claims.of(&"a").copied().collect::<Vec<_>>();
        assert_eq!(of(&claims), ["older", "younger"]);
        assert!(!claims.remove(&"a", &at(1)));
        assert_eq!(of(&claims), ["younger"]);
        assert!(claims.remove(&"a", &at(2)));
        assert!(!claims.remove(&"a", &at(2)));
        assert_eq!(claims.keys().count(), 0);
    }
}
