//! The out-of-sync bitmap of one volume: one bit per block and slot. The image in memory equals the image on disk, so
//! writing a page is a copy.
//!
//! Words of 32 bits, little endian, of the P slots are interleaved: word `w` of slot `s` is word `w * P + s` of the
//! image, bit `b` of a slot is bit `b % 32` of its word `b / 32`. Every operation on a range goes word by word.
//!
//! Invariants:
//! `counts[s]` = number of set bits of slot `s` below `bits`; `image.len()` is a multiple of 4096 and holds at least
//! `bits` rounded up to 64 for each slot. Bits at `bits` and above have no meaning: no operation shows, counts or
//! changes them, [`Bitmap::set_size`] defines them when they become valid.
//!
//! A set bit promises that nothing gets lost, so its page *must* reach the disk before the activity log stops covering
//! the extent; a cleared bit only saves work, its page *may* be written whenever convenient.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

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
    counts: Vec<u64>,
    must: PageSet,
    may: PageSet,
}

impl core::fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Bitmap").field("bits", &self.bits).field("counts", &self.counts).finish_non_exhaustive()
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
        for slot in bitmap.slots() {
            bitmap.counts[usize::from(slot.0)] = bitmap.count_range(slot, 0..bits);
        }
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
        let counts = vec![0; usize::from(max_peers)];
        Bitmap { image, max_peers, block_bytes, bits, counts, must: PageSet::new(pages), may: PageSet::new(pages) }
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
        self.find(slot, self.clamp(blocks), 0).is_some()
    }
    /// Set bits among these blocks.
    pub fn count_range(&self, slot: Slot, blocks: Range<u64>) -> u64 {
        self.masks(slot, blocks).map(|(index, mask)| u64::from((self.word(index) & mask).count_ones())).sum()
    }
    /// Set bits of the slot; kept up to date, costs nothing.
    pub fn count(&self, slot: Slot) -> u64 {
        self.counts[self.slot_index(slot)]
    }
    /// First set bit at or after `from`.
    pub fn next_set(&self, slot: Slot, from: u64) -> Option<u64> {
        self.find(slot, self.clamp(from..self.bits), 0)
    }
    /// First clear bit at or after `from`, not past the end.
    pub fn next_clear(&self, slot: Slot, from: u64) -> Option<u64> {
        self.find(slot, self.clamp(from..self.bits), u32::MAX)
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
        let low = self.word(self.word_index(slot, index * 2));
        let high = self.word(self.word_index(slot, index * 2 + 1));
        (u64::from(high) << 32 | u64::from(low)) & valid
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
        self.counts[usize::from(slot.0)] += newly;
        newly
    }

    /// `to` gets the bits of `from` besides its own.
    pub fn merge_slot(&mut self, from: Slot, to: Slot) {
        for w in 0..self.bits.div_ceil(64) {
            let bits = self.word64(from, w);
            self.or_word64(to, w, bits);
        }
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
            for slot in self.slots() {
                self.counts[usize::from(slot.0)] -= self.count_range(slot, bits..old);
            }
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
        for slot in self.slots() {
            // Leftovers of an earlier size are neither counted nor trusted.
            self.counts[usize::from(slot.0)] += self.count_range(slot, old..bits);
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
    fn clamp(&self, blocks: Range<u64>) -> Range<u64> {
        blocks.start.min(self.bits)..blocks.end.min(self.bits)
    }
    /// Mask of the valid bits of 32-bit word `w` of any slot.
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

    fn change(&mut self, slot: Slot, blocks: Range<u64>, change: Change) -> u64 {
        let mut changed = 0;
        for (index, mask) in self.masks(slot, blocks) {
            changed += u64::from(self.change_word(index, mask, change));
        }
        let count = &mut self.counts[usize::from(slot.0)];
        match change {
            Change::Set => *count += changed,
            Change::Clear => *count -= changed,
        }
        changed
    }

    /// Returns how many bits changed. Does not touch the counts.
    fn change_word(&mut self, index: usize, mask: u32, change: Change) -> u32 {
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

    /// First bit in the range that differs from `skip` (0 finds set bits, all ones clear ones).
    fn find(&self, slot: Slot, blocks: Range<u64>, skip: u32) -> Option<u64> {
        if skip == 0 && self.count(slot) == 0 {
            return None;
        }
        let first_word = blocks.start / 32;
        let found = |(i, (index, mask)): (u64, (usize, u32))| {
            let hits = (self.word(index) ^ skip) & mask;
            (hits != 0).then(|| (first_word + i) * 32 + u64::from(hits.trailing_zeros()))
        };
        (0..).zip(self.masks(slot, blocks)).find_map(found)
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

fn ones(mut word: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(bit)
    })
}

#[derive(Clone)]
struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    fn new(pages: usize) -> PageSet {
        PageSet { words: vec![0; pages.div_ceil(64)] }
    }
    fn grow(&mut self, pages: usize) {
        self.words.resize(pages.div_ceil(64), 0);
    }
    fn contains(&self, page: u32) -> bool {
        self.words[page as usize / 64] & (1 << (page % 64)) != 0
    }
    fn insert(&mut self, page: u32) {
        self.words[page as usize / 64] |= 1 << (page % 64);
    }
    fn remove(&mut self, page: u32) {
        self.words[page as usize / 64] &= !(1 << (page % 64));
    }
}
