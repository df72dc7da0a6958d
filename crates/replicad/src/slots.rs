//! A table whose keys say when they are stale: what io_uring brings back late never hits the wrong entry.

/// Where an entry lies, and which of those that lay there it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Key {
    /// Below [`Slots::SLOTS_MAX`].
    pub slot: u32,
    pub generation: u32,
}

struct Slot<T> {
    /// Of the entry that lies here, or of the next one.
    generation: u32,
    entry: Option<T>,
}

pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// A key's slot fits in 24 bits of a tag (`ring.rs`).
    pub const SLOTS_MAX: usize = 1 << 24;

    pub fn insert(&mut self, entry: T) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            assert!(self.slots.len() < Self::SLOTS_MAX, "{} entries, none free", self.slots.len());
            self.slots.push(Slot { generation: 0, entry: None });
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[slot as usize];
        assert!(place.entry.is_none(), "slot {slot} was on the free list and is in use");
        place.entry = Some(entry);
        Key { slot, generation: place.generation }
    }

    pub fn get(&self, key: Key) -> Option<&T> {
        let place = self.slots.get(key.slot as usize)?;
        if place.generation == key.generation { place.entry.as_ref() } else { None }
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.slots.get_mut(key.slot as usize)?;
        if place.generation == key.generation { place.entry.as_mut() } else { None }
    }

    pub fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.slots.get_mut(key.slot as usize)?;
        if place.generation != key.generation {
            return None;
        }
        let entry = place.entry.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(key.slot);
        Some(entry)
    }

    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, place)| place.entry.is_some())
            .map(|(slot, place)| Key { slot: slot as u32, generation: place.generation })
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_outlives_its_entry_without_reaching_the_next() {
        let mut slots = Slots::default();
        let old = slots.insert("old");
        assert_eq!(slots.remove(old), Some("old"));
        let new = slots.insert("new");
        assert_eq!(new.slot, old.slot);
        assert_eq!(slots.get(old), None);
        assert_eq!(slots.remove(old), None);
        assert_eq!(slots.get(new), Some(&"new"));
        assert_eq!(slots.len(), 1);
        assert_eq!(slots.keys().collect::<Vec<_>>(), [new]);
    }
}
