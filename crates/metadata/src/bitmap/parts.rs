//! Looking at blocks and changing them, in parts of at most one unit that the tally counts for; this keeps the tally, and
//! which pages are dirty, true.

use core::ops::Range;

use types::Slot;

use super::tally::{Seek, UNIT_BITS};
use super::{Bitmap, Change, WORDS_PER_PAGE, words64_of};
use crate::BLOCK_BYTES;

/// A unit of one slot, were its words not interleaved.
const UNIT_BYTES: usize = UNIT_BITS as usize / 8;
const _: () = assert!(BLOCK_BYTES.is_multiple_of(UNIT_BYTES), "a unit of the only slot lies in one page");

static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

impl Bitmap {
    /// The next of these blocks that may have bits of that kind: at most one unit, never empty.
    pub(super) fn next_part(&self, slot: Slot, blocks: Range<u64>, seek: Seek) -> Option<Range<u64>> {
        let (tally, blocks) = (self.tally(slot), self.clamp(blocks));
        if blocks.is_empty() {
            return None;
        }
        let unit = tally.next_unit(blocks.start / UNIT_BITS..blocks.end.div_ceil(UNIT_BITS), seek)?;
        let start = unit * UNIT_BITS;
        Some(blocks.start.max(start)..blocks.end.min(start + UNIT_BITS))
    }

    /// Counts what the image holds among these blocks of all slots, which no tally knows of yet.
    pub(super) fn take_stock(&mut self, blocks: Range<u64>) {
        let mut start = blocks.start;
        while start < blocks.end {
            let end = (start / UNIT_BITS * UNIT_BITS + UNIT_BITS).min(blocks.end);
            if !self.all_clear(&(start..end)) {
                for slot in self.slots() {
                    let count = self.look_and_count(slot, start..end);
                    self.tallies[usize::from(slot.0)].add(start / UNIT_BITS, count);
                }
            }
            start = end;
        }
    }
    /// These blocks stop being valid.
    pub(super) fn forget(&mut self, slot: Slot, blocks: Range<u64>) {
        let mut at = blocks.start;
        while let Some(part) = self.next_part(slot, at..blocks.end, Seek::Set) {
            at = part.end;
            let count = self.count_range(slot, part.clone());
            self.tallies[usize::from(slot.0)].remove(part.start / UNIT_BITS, count);
        }
    }
    /// No bit is set in the words that hold these blocks, of any slot. At the speed of a comparison of memory.
    fn all_clear(&self, blocks: &Range<u64>) -> bool {
        let words = words64_of(blocks);
        let bytes_per_word = 8 * usize::from(self.max_peers);
        let bytes = &self.image[words.start as usize * bytes_per_word..words.end as usize * bytes_per_word];
        bytes.chunks(BLOCK_BYTES).all(|piece| *piece == ZEROES[..piece.len()])
    }
    /// Set bits among these valid blocks, from the image and not from the tally. For at most a unit or two.
    pub(super) fn look_and_count(&self, slot: Slot, blocks: Range<u64>) -> u64 {
        if self.max_peers == 1 && is_whole_unit(&blocks) {
            let (words, _) = self.image[unit_bytes(blocks.start / UNIT_BITS)].as_chunks::<8>();
            return words.iter().map(|word| u64::from(u64::from_le_bytes(*word).count_ones())).sum();
        }
        self.masks(slot, blocks).map(|(index, mask)| u64::from((self.word(index) & mask).count_ones())).sum()
    }

    pub(super) fn change(&mut self, slot: Slot, blocks: Range<u64>, change: Change) -> u64 {
        let seek = match change {
            Change::Set => Seek::Clear,
            Change::Clear => Seek::Set,
        };
        let blocks = self.clamp(blocks);
        if !blocks.is_empty() && blocks.start / 32 == (blocks.end - 1) / 32 {
            return self.change_in_word(slot, blocks, change);
        }
        let mut changed = 0;
        let mut at = blocks.start;
        while let Some(part) = self.next_part(slot, at..blocks.end, seek) {
            at = part.end;
            changed += self.change_part(slot, part, change);
        }
        changed
    }
    /// Of one unit.
    fn change_part(&mut self, slot: Slot, part: Range<u64>, change: Change) -> u64 {
        let unit = part.start / UNIT_BITS;
        let changed = if self.max_peers == 1 && is_whole_unit(&part) {
            self.fill_unit(unit, change)
        } else {
            let masks = self.masks(slot, part);
            masks.map(|(index, mask)| u64::from(self.change_word(index, mask, change))).sum()
        };
        self.note(slot, unit, changed, change);
        changed
    }
    /// What a small write changes: valid blocks of one 32-bit word, for which no part need be sought.
    fn change_in_word(&mut self, slot: Slot, blocks: Range<u64>, change: Change) -> u64 {
        let (first, last) = (blocks.start % 32, (blocks.end - 1) % 32);
        let mask = u32::MAX << first & u32::MAX >> (31 - last);
        let changed = self.change_word(self.word_index(slot, blocks.start / 32), mask, change).into();
        self.note(slot, blocks.start / UNIT_BITS, changed, change);
        changed
    }
    fn note(&mut self, slot: Slot, unit: u64, changed: u64, change: Change) {
        let tally = &mut self.tallies[usize::from(slot.0)];
        match change {
            _ if changed == 0 => {}
            Change::Set => tally.add(unit, changed),
            Change::Clear => tally.remove(unit, changed),
        }
    }
    /// A whole unit of the only slot, in which at least one bit changes. Returns how many; does not touch the tally.
    fn fill_unit(&mut self, unit: u64, change: Change) -> u64 {
        let bytes = unit_bytes(unit);
        let set_before = self.tallies[0].unit(unit);
        let (page_set, value, changed) = match change {
            Change::Set => (&mut self.must, 0xff, UNIT_BITS - set_before),
            Change::Clear => (&mut self.may, 0, set_before),
        };
        assert!(changed > 0, "unit {unit} with {set_before} bits set has nothing to change");
        page_set.insert((bytes.start / BLOCK_BYTES) as u32);
        self.image[bytes].fill(value);
        changed
    }

    /// Returns how many bits changed. Does not touch the tally.
    pub(super) fn change_word(&mut self, index: usize, mask: u32, change: Change) -> u32 {
        let old = self.word(index);
        let (new, page_set) = match change {
            Change::Set => (old | mask, &mut self.must),
            Change::Clear => (old & !mask, &mut self.may),
        };
        if new == old {
            return 0;
        }
        page_set.insert((index as u64 / WORDS_PER_PAGE) as u32);
        self.image[index * 4..index * 4 + 4].copy_from_slice(&new.to_le_bytes());
        (new ^ old).count_ones()
    }

    /// First bit of that kind among these blocks.
    pub(super) fn find(&self, slot: Slot, blocks: Range<u64>, seek: Seek) -> Option<u64> {
        let mut at = blocks.start;
        while let Some(part) = self.next_part(slot, at..blocks.end, seek) {
            at = part.end;
            let found = self.find_in_part(slot, part, seek);
            if found.is_some() {
                return found;
            }
        }
        None
    }
    /// The same, word by word.
    fn find_in_part(&self, slot: Slot, part: Range<u64>, seek: Seek) -> Option<u64> {
        let skip = if seek == Seek::Set { 0 } else { u64::MAX };
        let mut mask = u64::MAX << (part.start % 64);
        for index in words64_of(&part) {
            let hits = (self.raw64(slot, index) ^ skip) & mask;
            if hits != 0 {
                let bit = index * 64 + u64::from(hits.trailing_zeros());
                return (bit < part.end).then_some(bit);
            }
            mask = u64::MAX;
        }
        None
    }
}

fn is_whole_unit(blocks: &Range<u64>) -> bool {
    blocks.start.is_multiple_of(UNIT_BITS) && blocks.end - blocks.start == UNIT_BITS
}

/// Where a unit of the only slot lies in the image.
fn unit_bytes(unit: u64) -> Range<usize> {
    let start = unit as usize * UNIT_BYTES;
    start..start + UNIT_BYTES
}
