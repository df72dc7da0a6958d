//! Values under keys that are never reused: a late answer finds nothing instead of somebody else's value. Grows to
//! the largest number of values held at once and allocates no more after that.

use alloc::vec::Vec;

/// Index in the low half, generation in the high half. Never zero.
pub(crate) type Key = u64;

/// End of the list of free entries.
const NONE: u32 = u32::MAX;

pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    len: usize,
    /// The entry that became free last; each free one names the one before it.
    free: u32,
}

struct Entry<T> {
    generation: u32,
    /// While free.
    next: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub fn new() -> Slab<T> {
        Slab { entries: Vec::new(), len: 0, free: NONE }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn insert(&mut self, value: T) -> Key {
        self.len += 1;
        if self.free == NONE {
            self.free = self.entries.len() as u32;
            self.entries.push(Entry { generation: 0, next: NONE, value: None });
        }
        let index = self.free;
        let entry = &mut self.entries[index as usize];
        self.free = entry.next;
        // Begins again after four billion values in one place: no answer is so late. Zero is left out, so no key is zero.
        entry.generation = entry.generation.checked_add(1).unwrap_or(1);
        entry.value = Some(value);
        (u64::from(entry.generation) << 32) | u64::from(index)
    }

    fn entry(&self, key: Key) -> Option<&Entry<T>> {
        self.entries.get(key as u32 as usize).filter(|e| e.generation == (key >> 32) as u32)
    }

    pub fn get(&self, key: Key) -> Option<&T> {
        self.entry(key)?.value.as_ref()
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key as u32 as usize)?;
        if entry.generation != (key >> 32) as u32 {
            return None;
        }
        entry.value.as_mut()
    }

    pub fn remove(&mut self, key: Key) -> Option<T> {
        let index = key as u32;
        let entry = self.entries.get_mut(index as usize).filter(|e| e.generation == (key >> 32) as u32)?;
        let value = entry.value.take()?;
        entry.next = core::mem::replace(&mut self.free, index);
        self.len -= 1;
        Some(value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.used().iter().enumerate().filter_map(|(i, e)| {
            let value = e.value.as_ref()?;
            Some(((u64::from(e.generation) << 32) | i as u64, value))
        })
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let used = if self.is_empty() { 0 } else { self.entries.len() };
        self.entries[..used].iter_mut().filter_map(|e| e.value.as_mut())
    }

    /// Nobody has to look at places where once was something.
    fn used(&self) -> &[Entry<T>] {
        if self.is_empty() { &[] } else { &self.entries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_reused() {
        let mut slab = Slab::new();
        let a = slab.insert('a');
        assert_eq!(slab.remove(a), Some('a'));
        let b = slab.insert('b');
        assert_ne!(a, b);
        assert_eq!(slab.get(a), None);
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.get(b), Some(&'b'));
        assert_eq!(slab.len(), 1);
    }

    /// A node at depth 1 puts all its requests into one place.
    #[test]
    fn generations_begin_again() {
        let mut slab = Slab::new();
        let first = slab.insert(0);
        slab.remove(first);
        slab.entries[0].generation = u32::MAX - 1;
        let last = slab.insert(1);
        assert_eq!(last >> 32, u64::from(u32::MAX));
        slab.remove(last);
        let next = slab.insert(2);
        assert_eq!((next >> 32, slab.get(last), slab.get(next)), (1, None, Some(&2)));
    }

    #[test]
    fn places_are_used_again_the_last_one_first() {
        let mut slab = Slab::new();
        let keys: Vec<Key> = (0..4).map(|n| slab.insert(n)).collect();
        assert_eq!(keys.iter().map(|key| slab.remove(*key)).collect::<Option<Vec<i32>>>(), Some([0, 1, 2, 3].into()));
        assert!(slab.is_empty() && slab.iter().next().is_none());
        let places: Vec<u32> = (4..9).map(|n| slab.insert(n) as u32).collect();
        assert_eq!(places, [3, 2, 1, 0, 4]);
        assert_eq!(slab.iter().map(|(_, n)| *n).collect::<Vec<i32>>(), [7, 6, 5, 4, 8]);
    }
}
