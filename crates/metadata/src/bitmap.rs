//! The out-of-sync bitmap of one volume: one bit per block and slot. The image in memory equals the image on disk, so
//! writing a page is a copy.
//!
//! Words of 32 bits, little endian, of the P slots are interleaved: word `w` of slot `s` is word `w * P + s` of the
//! image, bit `b` of a slot is bit `b % 32` of its word `b / 32`. What a range covers is taken in parts, none of them
//! larger than a unit that set bits are counted for; parts that cannot matter are not looked at.
//!
//! Invariants:
//! `tallies[s]` counts the set bits of slot `s` below `bits`, in all and by unit; `image.len()` is a multiple of 4096 and
//! holds at least `bits` rounded up to 64 for each slot. Bits at `bits` and above have no meaning: no operation shows,
//! counts or changes them, [`Bitmap::set_size`] defines them when they become valid.
//!
//! A set bit promises that nothing gets lost, so its page *must* reach the disk before the activity log stops covering
//! the extent; a cleared bit only saves work, its page *may* be written whenever convenient.

mod pages;
mod parts;
mod tally;

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use self::pages::{PageSet, ones};
use self::tally::{Seek, Tally, UNIT_BITS};
use types::{ExtentIndex, Slot};

use crate::BLOCK_BYTES;
use crate::layout::{BITMAP_BLOCK_BYTES_DEFAULT, BITMAP_BLOCK_BYTES_MAX, MAX_PEERS_MAX};

const WORDS_PER_PAGE: u64 = BLOCK_BYTES as u64 / 4;

/// How urgent the writing of a page is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Dirty {
    /// Bits were only cleared: writing it saves a resync of blocks that are equal.
    May,
    /// Bits were set: it must be durable before the log drops the extent.
    Must,
}

#[derive(Clone)]
pub struct Bitmap {
    image: Vec<u8>,
    max_peers: u8,
    block_bytes: u32,
    /// Valid bits per slot.
    bits: u64,
    tallies: Vec<Tally>,
    must: PageSet,
    may: PageSet,
}

impl core::fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let counts: Vec<u64> = self.tallies.iter().map(Tally::total).collect();
        f.debug_struct("Bitmap").field("bits", &self.bits).field("counts", &counts).finish_non_exhaustive()
    }
}

impl Bitmap {
    /// All bits clear, no page dirty. `bits` = blocks of the volume ([`crate::Geometry::bits`]).
    pub fn new(max_peers: u8, block_bytes: u32, bits: u64) -> Bitmap {
        let len = usize::try_from(image_bytes(max_peers, bits)).expect("a bitmap fits in memory");
        Bitmap::assemble(max_peers, block_bytes, bits, vec![0; len])
    }

    /// From the bytes on disk: whole pages, at least [`Bitmap::image_bytes`] of them (asserted: the caller read them
    /// after the superblock was checked). Bits past the end of the volume are ignored. No page is dirty.
    pub fn from_image(max_peers: u8, block_bytes: u32, bits: u64, image: Vec<u8>) -> Bitmap {
        let mut bitmap = Bitmap::assemble(max_peers, block_bytes, bits, image);
        bitmap.take_stock(0..bits);
        bitmap
    }

    fn assemble(max_peers: u8, block_bytes: u32, bits: u64, image: Vec<u8>) -> Bitmap {
        assert!((1..=MAX_PEERS_MAX).contains(&max_peers), "bitmap for {max_peers} peers");
        let block_bytes_ok = (BITMAP_BLOCK_BYTES_DEFAULT..=BITMAP_BLOCK_BYTES_MAX).contains(&block_bytes);
        assert!(block_bytes_ok && block_bytes.is_power_of_two(), "bitmap blocks of {block_bytes} bytes");
        let need = image_bytes(max_peers, bits);
        assert!(
            image.len() as u64 >= need && image.len().is_multiple_of(BLOCK_BYTES),
            "bitmap image of {} bytes, {need} needed for {bits} bits",
            image.len()
        );
        let pages = image.len() / BLOCK_BYTES;
        let tallies = (0..max_peers).map(|_| Tally::new(bits)).collect();
        Bitmap { image, max_peers, block_bytes, bits, tallies, must: PageSet::new(pages), may: PageSet::new(pages) }
    }

    /// Bytes of the image for this many bits per slot: whole pages, all slots.
    pub fn image_bytes(max_peers: u8, bits: u64) -> u64 {
        image_bytes(max_peers, bits)
    }

    pub const fn max_peers(&self) -> u8 {
        self.max_peers
    }
    pub const fn block_bytes(&self) -> u32 {
        self.block_bytes
    }
    /// Valid bits per slot.
    pub const fn bits(&self) -> u64 {
        self.bits
    }
    pub fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        (0..self.max_peers).map(Slot)
    }
    /// The whole image, as on disk.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// Sets the bits of these blocks. What lies past the end is ignored. Returns how many were clear before.
    pub fn set(&mut self, slot: Slot, blocks: Range<u64>) -> u64 {
        self.change(slot, blocks, Change::Set)
    }
    /// Clears the bits of these blocks. Returns how many were set before.
    pub fn clear(&mut self, slot: Slot, blocks: Range<u64>) -> u64 {
        self.change(slot, blocks, Change::Clear)
    }
    pub fn set_all(&mut self, slot: Slot) -> u64 {
        self.set(slot, 0..self.bits)
    }
    pub fn clear_all(&mut self, slot: Slot) -> u64 {
        self.clear(slot, 0..self.bits)
    }

    /// `false` past the end.
    pub fn test(&self, slot: Slot, block: u64) -> bool {
        block < self.bits && self.word(self.word_index(slot, block / 32)) & (1 << (block % 32)) != 0
    }
    /// A bit of these blocks is set.
    pub fn any(&self, slot: Slot, blocks: Range<u64>) -> bool {
        self.find(slot, blocks, Seek::Set).is_some()
    }
    /// Set bits among these blocks.
    pub fn count_range(&self, slot: Slot, blocks: Range<u64>) -> u64 {
        let blocks = self.clamp(blocks);
        let whole = blocks.start.div_ceil(UNIT_BITS)..blocks.end / UNIT_BITS;
        if whole.is_empty() {
            return self.look_and_count(slot, blocks);
        }
        let (before, after) = (blocks.start..whole.start * UNIT_BITS, whole.end * UNIT_BITS..blocks.end);
        self.look_and_count(slot, before) + self.tally(slot).sum(whole) + self.look_and_count(slot, after)
    }
    /// Set bits of the slot; kept up to date, costs nothing.
    pub fn count(&self, slot: Slot) -> u64 {
        self.tally(slot).total()
    }
    /// First set bit at or after `from`.
    pub fn next_set(&self, slot: Slot, from: u64) -> Option<u64> {
        self.find(slot, from..self.bits, Seek::Set)
    }
    /// First clear bit at or after `from`, not past the end.
    pub fn next_clear(&self, slot: Slot, from: u64) -> Option<u64> {
        self.find(slot, from..self.bits, Seek::Clear)
    }

    /// Number of 64-bit words of a slot that hold valid bits: how the bitmap travels on the wire.
    pub const fn words64(&self) -> u64 {
        self.bits.div_ceil(64)
    }
    /// Bits `64 * index ..` of a slot, bit 0 first. Past the end: 0.
    pub fn word64(&self, slot: Slot, index: u64) -> u64 {
        let valid = self.valid64(index);
        if valid == 0 {
            return 0;
        }
        self.raw64(slot, index) & valid
    }
    /// First word at or after `from` in which a bit is not `is_set`; larger than any there is if no bit is. Words past
    /// the end are clear, as [`Bitmap::word64`] shows them. For a sender that steps over long runs.
    pub fn next_word64_unlike(&self, slot: Slot, from: u64, is_set: bool) -> u64 {
        let start = from.saturating_mul(64);
        if is_set {
            return (self.next_clear(slot, start).unwrap_or(self.bits) / 64).max(from);
        }
        self.next_set(slot, start).map_or(u64::MAX, |bit| bit / 64)
    }
    /// Sets the bits of `bits` in that word. Returns how many were clear before.
    pub fn or_word64(&mut self, slot: Slot, index: u64, bits: u64) -> u64 {
        let bits = bits & self.valid64(index);
        if bits == 0 {
            return 0;
        }
        let low = self.change_word(self.word_index(slot, index * 2), bits as u32, Change::Set);
        let high = self.change_word(self.word_index(slot, index * 2 + 1), (bits >> 32) as u32, Change::Set);
        let newly = u64::from(low + high);
        if newly > 0 {
            self.tallies[usize::from(slot.0)].add(index * 64 / UNIT_BITS, newly);
        }
        newly
    }

    /// `to` gets the bits of `from` besides its own.
    pub fn merge_slot(&mut self, from: Slot, to: Slot) {
        let mut at = 0;
        while let Some(part) = self.next_part(from, at..self.bits, Seek::Set) {
            at = part.end;
            for w in words64_of(&part) {
                let bits = self.word64(from, w);
                self.or_word64(to, w, bits);
            }
        }
    }

    /// The bits of one slot as a bitmap of its own.
    pub fn slot_alone(&self, slot: Slot) -> Bitmap {
        let mut alone = Bitmap::new(1, self.block_bytes, self.bits);
        let mut at = 0;
        while let Some(part) = self.next_part(slot, at..self.bits, Seek::Set) {
            at = part.end;
            for w in words64_of(&part) {
                alone.or_word64(Slot(0), w, self.word64(slot, w));
            }
        }
        alone
    }

    /// Changes the number of valid bits. Newly valid ones are **set** in every slot: nobody knows yet that they are
    /// equal. With fewer bits the image keeps its length.
    pub fn set_size(&mut self, bits: u64) {
        self.resize(bits, Change::Set);
    }
    /// The same where the new space is known to be equal everywhere (`--assume-clean`): newly valid bits are clear.
    pub fn set_size_assume_clean(&mut self, bits: u64) {
        self.resize(bits, Change::Clear);
    }

    fn resize(&mut self, bits: u64, new_bits: Change) {
        let old = self.bits;
        if bits < old {
            self.slots().for_each(|slot| self.forget(slot, bits..old));
            self.bits = bits;
            return;
        }
        let need = usize::try_from(image_bytes(self.max_peers, bits)).expect("a bitmap fits in memory");
        if need > self.image.len() {
            let known = self.page_count();
            self.image.resize(need, 0);
            self.must.grow(need / BLOCK_BYTES);
            self.may.grow(need / BLOCK_BYTES);
            // What the disk holds there is not known, so it has to be written even where all bits are clear.
            (known..self.page_count()).for_each(|page| self.must.insert(page));
        }
        self.bits = bits;
        self.tallies.iter_mut().for_each(|tally| tally.grow(bits));
        // Leftovers of an earlier size were not counted, and are not trusted.
        self.take_stock(old..bits);
        for slot in self.slots() {
            self.change(slot, old..bits, new_bits);
        }
    }

    /// Blocks that an activity-log extent covers, as far as the volume reaches.
    pub fn blocks_of_extent(&self, extent: ExtentIndex) -> Range<u64> {
        let per_extent = types::range::EXTENT_BYTES / u64::from(self.block_bytes);
        let first = u64::from(extent.0) * per_extent;
        self.clamp(first..first + per_extent)
    }
    /// Pages that hold the bits of an extent, of all slots. Empty for an extent outside the volume.
    pub fn pages_of_extent(&self, extent: ExtentIndex) -> Range<u32> {
        let blocks = self.blocks_of_extent(extent);
        if blocks.is_empty() {
            return 0..0;
        }
        let peers = u64::from(self.max_peers);
        let first = blocks.start / 32 * peers / WORDS_PER_PAGE;
        let last = ((blocks.end - 1) / 32 * peers + peers - 1) / WORDS_PER_PAGE;
        first as u32..last as u32 + 1
    }

    pub fn page_count(&self) -> u32 {
        (self.image.len() / BLOCK_BYTES) as u32
    }
    /// One page as it belongs on disk.
    pub fn page(&self, page: u32) -> &[u8] {
        let start = page as usize * BLOCK_BYTES;
        &self.image[start..start + BLOCK_BYTES]
    }
    /// `None`: as on disk, provided all writes that were started have succeeded.
    pub fn dirty(&self, page: u32) -> Option<Dirty> {
        if self.must.contains(page) {
            return Some(Dirty::Must);
        }
        self.may.contains(page).then_some(Dirty::May)
    }
    /// Pages with changes, ascending; `least` = `May` for all of them, `Must` for those with newly set bits.
    pub fn dirty_pages(&self, least: Dirty) -> impl Iterator<Item = u32> + '_ {
        let words = 0..self.must.words.len();
        words.flat_map(move |w| {
            let may = if least == Dirty::May { self.may.words[w] } else { 0 };
            ones(self.must.words[w] | may).map(move |bit| w as u32 * 64 + bit)
        })
    }
    /// To be called when the copy that goes to disk is taken, not when the write is done: a bit that changes in
    /// between makes the page dirty again. If the write fails, the disk is no longer used.
    pub fn mark_written(&mut self, page: u32) {
        self.must.remove(page);
        self.may.remove(page);
    }
    /// Everything has to be written: a bitmap that was just created or moved.
    pub fn mark_all_dirty(&mut self) {
        for page in 0..self.page_count() {
            self.must.insert(page);
        }
    }

    fn slot_index(&self, slot: Slot) -> usize {
        assert!(slot.0 < self.max_peers, "bitmap slot {} of {}", slot.0, self.max_peers);
        usize::from(slot.0)
    }
    /// Index of word `w` of a slot in the image.
    fn word_index(&self, slot: Slot, w: u64) -> usize {
        w as usize * usize::from(self.max_peers) + self.slot_index(slot)
    }
    fn word(&self, index: usize) -> u32 {
        let at = index * 4;
        u32::from_le_bytes(self.image[at..at + 4].try_into().expect("four bytes"))
    }
    /// Bits `64 * index ..` of a slot, those past the end as they are.
    fn raw64(&self, slot: Slot, index: u64) -> u64 {
        if self.max_peers == 1 {
            let at = index as usize * 8;
            return u64::from_le_bytes(self.image[at..at + 8].try_into().expect("eight bytes"));
        }
        let low = self.word(self.word_index(slot, index * 2));
        let high = self.word(self.word_index(slot, index * 2 + 1));
        u64::from(high) << 32 | u64::from(low)
    }
    fn clamp(&self, blocks: Range<u64>) -> Range<u64> {
        blocks.start.min(self.bits)..blocks.end.min(self.bits)
    }
    /// Mask of the valid bits of 64-bit word `index` of any slot.
    fn valid64(&self, index: u64) -> u64 {
        let before = index.saturating_mul(64);
        match self.bits.saturating_sub(before) {
            0 => 0,
            n if n >= 64 => u64::MAX,
            n => (1 << n) - 1,
        }
    }

    /// Words of the image that hold these blocks of a slot, each with the mask of the bits meant.
    fn masks(&self, slot: Slot, blocks: Range<u64>) -> impl Iterator<Item = (usize, u32)> + use<> {
        let blocks = self.clamp(blocks);
        let (stride, slot) = (usize::from(self.max_peers), self.slot_index(slot));
        let words = if blocks.is_empty() { 0..0 } else { blocks.start / 32..(blocks.end - 1) / 32 + 1 };
        words.map(move |w| {
            let first = if w == blocks.start / 32 { u32::MAX << (blocks.start % 32) } else { u32::MAX };
            let last = if w == (blocks.end - 1) / 32 { u32::MAX >> (31 - (blocks.end - 1) % 32) } else { u32::MAX };
            (w as usize * stride + slot, first & last)
        })
    }

    fn tally(&self, slot: Slot) -> &Tally {
        &self.tallies[self.slot_index(slot)]
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Set,
    Clear,
}

fn image_bytes(max_peers: u8, bits: u64) -> u64 {
    let words = bits.div_ceil(64) * 2;
    (words * 4 * u64::from(max_peers)).next_multiple_of(BLOCK_BYTES as u64)
}

/// 64-bit words that hold these blocks.
fn words64_of(blocks: &Range<u64>) -> Range<u64> {
    blocks.start / 64..blocks.end.div_ceil(64)
}
