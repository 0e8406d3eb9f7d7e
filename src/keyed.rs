//! Hash tables of records that hold their own key: what most of the daemon's memory goes into.
//!
//! A record is one allocation, and its place in the table one pointer. So a table that is half empty, as hash tables
//! are after they have grown, costs little; and when it grows only pointers are moved. (A `BTreeMap` filled in order is
//! half empty too, and a `HashMap` with its values in place wastes half of all values.)

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hash};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// What can be kept in [`KeyedTable`].
pub trait Keyed {
    /// What a record is found by; at most one record of a table has it.
    type Key: Eq + Hash;

    /// The record's key. It never changes while the record is in a table.
    fn key(&self) -> &Self::Key;
}

/// Records by their keys, in no order. The hash function is keyed at random, so that nobody can choose names that
/// collide.
pub struct KeyedTable<T> {
    table: HashTable<Box<T>>,
    hasher: RandomState,
}

impl<T: Keyed> KeyedTable<T> {
    /// A table that has room for so many records.
    pub fn with_capacity(capacity: usize) -> Self {
        KeyedTable { table: HashTable::with_capacity(capacity), hasher: RandomState::new() }
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The record with this key.
    pub fn get(&self, key: &T::Key) -> Option<&T> {
        self.table.find(self.hasher.hash_one(key), |record| record.key() == key).map(|record| &**record)
    }

    /// The record with this key. Its key must stay what it is.
    pub fn get_mut(&mut self, key: &T::Key) -> Option<&mut T> {
        self.table.find_mut(self.hasher.hash_one(key), |record| record.key() == key).map(|record| &mut **record)
    }

    /// The record with this key; if there is none, the one that `make` makes is put in. Its key must stay what it is.
    pub fn get_or_insert_with(&mut self, key: &T::Key, make: impl FnOnce() -> T) -> &mut T {
        match self.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let record = Box::new(make());
                debug_assert!(record.key() == key, "the record is for another key");
                entry.insert(record).into_mut()
            }
        }
    }

    /// Puts a record in, in place of one with the same key, which is returned.
    pub fn insert(&mut self, record: T) -> Option<T> {
        match self.entry(record.key()) {
            Entry::Occupied(mut entry) => Some(std::mem::replace(&mut **entry.get_mut(), record)),
            Entry::Vacant(entry) => {
                entry.insert(Box::new(record));
                None
            }
        }
    }

    /// Takes a record out.
    pub fn remove(&mut self, key: &T::Key) -> Option<T> {
        match self.entry(key) {
            Entry::Occupied(entry) => Some(*entry.remove().0),
            Entry::Vacant(_) => None,
        }
    }

    /// All records, in no order: none that may reach a ruleset, a log line or a metric.
    pub fn iter_unordered(&self) -> impl Iterator<Item = &T> {
        self.table.iter().map(|record| &**record)
    }

    fn entry(&mut self, key: &T::Key) -> Entry<'_, Box<T>> {
        let hasher = &self.hasher;
        let hash = hasher.hash_one(key);
        self.table.entry(hash, |record| record.key() == key, |record| hasher.hash_one(record.key()))
    }
}

impl<T: Keyed> Default for KeyedTable<T> {
    fn default() -> Self {
        KeyedTable::with_capacity(0)
    }
}

impl<T: Keyed> FromIterator<T> for KeyedTable<T> {
    /// Of records with the same key the last one stays.
    fn from_iter<I: IntoIterator<Item = T>>(records: I) -> Self {
        let mut all = KeyedTable::default();
        for record in records {
            all.insert(record);
        }
        all
    }
}

impl<T: Keyed + Clone> Clone for KeyedTable<T> {
    fn clone(&self) -> Self {
        KeyedTable { table: self.table.clone(), hasher: self.hasher.clone() }
    }
}

impl<T: Keyed + PartialEq> PartialEq for KeyedTable<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter_unordered().all(|record| other.get(record.key()) == Some(record))
    }
}

impl<T: Keyed + Eq> Eq for KeyedTable<T> {}

impl<T: fmt::Debug> fmt::Debug for KeyedTable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.table).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl Keyed for (u8, u16) {
        type Key = u8;

        fn key(&self) -> &u8 {
            &self.0
        }
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((0..4u8, 0..20u8, any::<u16>()), 0..200)) {
            let mut records = KeyedTable::<(u8, u16)>::default();
            let mut map = BTreeMap::new();
            for (step, key, value) in steps {
                match step {
                    0 => prop_assert_eq!(records.insert((key, value)), map.insert(key, value).map(|old| (key, old))),
                    1 => prop_assert_eq!(records.remove(&key), map.remove(&key).map(|old| (key, old))),
                    2 => prop_assert_eq!(records.get_or_insert_with(&key, || (key, value)).1, *map.entry(key).or_insert(value)),
                    _ => {
                        if let Some(record) = records.get_mut(&key) {
                            record.1 = value;
                        }
                        map.entry(key).and_modify(|old| *old = value);
                    }
                }
                prop_assert_eq!(records.get(&key).map(|record| record.1), map.get(&key).copied());
                prop_assert_eq!(records.len(), map.len());
                prop_assert_eq!(records.is_empty(), map.is_empty());
            }
            prop_assert_eq!(&records.iter_unordered().copied().collect::<BTreeMap<_, _>>(), &map);
            let again: KeyedTable<(u8, u16)> = map.into_iter().rev().collect();
            prop_assert_eq!(&again, &records.clone());
            if let Some((key, value)) = records.iter_unordered().next().copied() {
                let mut other = records.clone();
                other.insert((key, value.wrapping_add(1)));
                prop_assert_ne!(&other, &records);
                other.remove(&key);
                prop_assert_ne!(&other, &records);
            }
        }
    }
}
