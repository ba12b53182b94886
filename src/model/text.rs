//! Small shared strings: the same namespace, node and label texts recur thousands of times.

use std::sync::Arc;

/// An immutable string that is cheap to clone and to share.
pub type Text = Arc<str>;

/// A small immutable map of texts, sorted by key: a tenth of a `BTreeMap`'s memory for a handful of pairs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs(Box<[(Text, Text)]>);

impl Pairs {
    /// The value under `key`, if there is one.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Text> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    /// The pairs in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Text, &Text)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// Whether there is no pair.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(Text, Text)> for Pairs {
    /// The last of several pairs with one key wins, as in a map.
    fn from_iter<I: IntoIterator<Item = (Text, Text)>>(pairs: I) -> Self {
        let map: std::collections::BTreeMap<Text, Text> = pairs.into_iter().collect();
        Self(map.into_iter().collect())
    }
}
