//! A map whose keys are fixed when it is made: the volumes of a resource, its peers. There are few, so they lie sorted
//! in one piece of memory, and one can go through them by position while the engine changes.

use alloc::vec::Vec;
use core::ops::Index;

pub(crate) struct Table<K, V> {
    entries: Vec<(K, V)>,
}

impl<K: Copy + Ord, V> Table<K, V> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys ascend with the position, which is below `len` (asserted).
    pub fn at(&self, position: usize) -> (K, &V) {
        let (key, value) = &self.entries[position];
        (*key, value)
    }

    fn position(&self, key: &K) -> Option<usize> {
        // Almost always there is one, and then no search.
        match &self.entries[..] {
            [(only, _)] => (only == key).then_some(0),
            entries => entries.binary_search_by(|(k, _)| k.cmp(key)).ok(),
        }
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.position(key).is_some()
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.position(key).map(|position| &self.entries[position].1)
    }

    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.position(key).map(|position| &mut self.entries[position].1)
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.iter().map(|(_, value)| value)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.iter_mut().map(|(_, value)| value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }
}

/// The keys differ (asserted).
impl<K: Copy + Ord, V> FromIterator<(K, V)> for Table<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Table<K, V> {
        let mut entries: Vec<(K, V)> = entries.into_iter().collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        assert!(entries.windows(2).all(|pair| pair[0].0 < pair[1].0), "a table with one key twice");
        Table { entries }
    }
}

/// The key is in the table.
impl<K: Copy + Ord, V> Index<&K> for Table<K, V> {
    type Output = V;
    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the key is in the table")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_and_no_other() {
        for count in 0..9u8 {
            let mut table: Table<u8, u8> = (0..count).rev().map(|n| (2 * n, n)).collect();
            assert_eq!(table.len(), usize::from(count));
            for key in 0..20 {
                let value = (key % 2 == 0 && key < 2 * count).then_some(key / 2);
                assert_eq!(table.get(&key).copied(), value, "{key} of {count}");
                assert_eq!(table.get_mut(&key).copied(), value);
                assert_eq!(table.contains_key(&key), value.is_some());
            }
            assert!((0..count).all(|n| table.at(n.into()) == (2 * n, &n) && table[&(2 * n)] == n));
            assert!(table.keys().zip(table.values()).eq(table.iter()));
        }
    }
}
