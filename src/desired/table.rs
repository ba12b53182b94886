//! A store of objects that knows which of them a re-list did not bring back.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::model::text::Text;

/// Namespace and name; cluster-scoped objects have an empty namespace.
pub type ObjectName = (Text, Text);

/// Objects of one kind by name.
#[derive(Debug)]
pub struct Table<T> {
    rows: BTreeMap<ObjectName, Row<T>>,
    /// The number of the list that is under way or was the last one.
    list: u32,
}

#[derive(Debug)]
struct Row<T> {
    value: T,
    /// The list, or the watch after it, that last brought the object.
    seen_in: u32,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            list: 0,
        }
    }
}

impl<T> Table<T> {
    /// A list begins: objects that neither it nor a later event brings are gone at its end.
    pub fn begin_list(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    /// A list is complete: the names that it did not bring, which stay until they are removed.
    #[must_use]
    pub fn end_list(&self) -> Vec<ObjectName> {
        let gone = |row: &Row<T>| row.seen_in != self.list;
        self.rows
            .iter()
            .filter(|(_, row)| gone(row))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Puts an object in; the one that was there, if any.
    pub fn put(&mut self, name: ObjectName, value: T) -> Option<T> {
        let row = Row {
            value,
            seen_in: self.list,
        };
        self.rows.insert(name, row).map(|before| before.value)
    }

    /// Notes that an object is still there and unchanged.
    pub fn confirm(&mut self, name: &ObjectName) {
        if let Some(row) = self.rows.get_mut(name) {
            row.seen_in = self.list;
        }
    }

    /// Takes an object out.
    pub fn remove(&mut self, name: &ObjectName) -> Option<T> {
        self.rows.remove(name).map(|row| row.value)
    }

    /// The object of this name.
    #[must_use]
    pub fn get(&self, name: &ObjectName) -> Option<&T> {
        self.rows.get(name).map(|row| &row.value)
    }

    /// The object of this name, to be changed.
    pub fn get_mut(&mut self, name: &ObjectName) -> Option<&mut T> {
        self.rows.get_mut(name).map(|row| &mut row.value)
    }

    /// All objects, by namespace and name.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.rows.values().map(|row| &row.value)
    }

    /// The name of the first object that is so.
    pub fn named(&self, is: impl Fn(&T) -> bool) -> Option<&Text> {
        let found = self.rows.iter().find(|(_, row)| is(&row.value));
        found.map(|((_, name), _)| name)
    }

    /// The objects of one namespace, by name.
    pub fn in_namespace(&self, namespace: &Text) -> impl Iterator<Item = &T> {
        let from = (namespace.clone(), Text::from(""));
        self.rows
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(move |((of, _), _)| of == namespace)
            .map(|(_, row)| &row.value)
    }
}
