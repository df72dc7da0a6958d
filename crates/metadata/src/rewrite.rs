//! Metadata written anew over metadata that is worth something: which writes, in which order, and what a crash between
//! any two leaves behind. Pure: whoever has the device writes one [`Batch`] after the other, each flushed.
//!
//! Rule MD-1: a bitmap that somebody may still find is not touched before a superblock that says so is durable
//! ([`Superblock::being_rewritten`]). So at every moment the device carries the old metadata, or the new, or a superblock
//! whose owner resyncs in full.

use alloc::vec;
use alloc::vec::Vec;

use crate::bitmap::Bitmap;
use crate::layout::Layout;
use crate::superblock::Superblock;
use crate::v08::SuperblockV08;
use crate::{BLOCK_BYTES, Block};

/// Bytes for the metadata device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// Absolute; a multiple of 4096.
    pub offset: u64,
    pub bytes: Vec<u8>,
    /// Of zeroes, behind `bytes`: the part of a bitmap's area that no block of the volume has yet.
    pub zeroes: u64,
}

/// Writes that may reach the device in any order, in part or not at all until the flush after them returned.
pub type Batch = Vec<Write>;

fn block(offset: u64, bytes: &Block) -> Write {
    Write { offset, bytes: bytes.to_vec(), zeroes: 0 }
}

fn bitmap_area(layout: &Layout, image: &[u8]) -> Write {
    // The last page of external metadata may be cut off.
    let bytes = image[..image.len().min(layout.bitmap_bytes as usize)].to_vec();
    Write { offset: layout.bitmap, zeroes: layout.bitmap_bytes - bytes.len() as u64, bytes }
}

/// v09 becomes v08: superblock and log lie at the same places, the bitmap may not (`bitmap`: then, what goes there).
///
/// | crash in batch | found |
/// |---|---|
/// | the marked `old` (only with `bitmap`) | the old or the marked one |
/// | the bitmap | the marked one: v09 with a full sync |
/// | the new superblock | the marked one (without `bitmap`: the old one) or v08 |
pub fn to_v08(old: &Superblock, new: &SuperblockV08, layout: &Layout, bitmap: Option<&Bitmap>) -> Vec<Batch> {
    let mut batches = Vec::new();
    if let Some(bitmap) = bitmap {
        batches.push(vec![block(layout.superblock, &old.being_rewritten().encode())]);
        batches.push(vec![bitmap_area(layout, bitmap.image())]);
    }
    batches.push(vec![block(layout.superblock, &new.encode())]);
    batches
}

/// Internal metadata moves to the end of a device that has grown. `sb`, `ring` and `bitmap`: as they are at `old`; the
/// superblock changes only in what says where the rest lies, the log stays as applied or not as it is. The agreed size
/// fits before `new` (asserted): growth by a few sectors can make the bitmap a page longer and move nothing else.
///
/// Where the new area begins behind the old one, the old metadata is whole until the new one is:
///
/// | crash in batch | found |
/// |---|---|
/// | log and bitmap | nothing at the end of the device; the old metadata where the old end was |
/// | the new superblock | that, or the new metadata |
/// | the old superblock erased | the new metadata |
///
/// Where they overlap, a marked superblock at the new place comes first, and a crash costs a full sync:
///
/// | crash in batch | found |
/// |---|---|
/// | the marked superblock | the old metadata where the old end was, or the marked one |
/// | log and bitmap | the marked one |
/// | the new superblock | the marked one or the new metadata |
/// | the old superblock erased | the new metadata |
pub fn grow(sb: &Superblock, old: &Layout, new: &Layout, ring: &[Block], bitmap: &Bitmap) -> Vec<Batch> {
    assert!(old.superblock <= new.superblock && old.al_blocks == new.al_blocks, "{old:?} does not grow to {new:?}");
    assert!(sb.last_agreed_bytes <= new.usable_bytes, "{} bytes of data do not fit {new:?}", sb.last_agreed_bytes);
    let moved = Superblock {
        md_size_sectors: new.md_size_sectors,
        al_offset_sectors: new.al_offset_sectors,
        bm_offset_sectors: new.bm_offset_sectors,
        ..sb.clone()
    };
    let log = Write { offset: new.activity_log, bytes: ring.as_flattened().to_vec(), zeroes: 0 };
    let mut batches = Vec::new();
    let old_end = old.superblock + BLOCK_BYTES as u64;
    if new.bitmap < old_end {
        batches.push(vec![block(new.superblock, &moved.being_rewritten().encode())]);
    }
    batches.push(vec![bitmap_area(new, bitmap.image()), log]);
    batches.push(vec![block(new.superblock, &moved.encode())]);
    if old_end <= new.bitmap {
        batches.push(vec![block(old.superblock, &[0; BLOCK_BYTES])]);
    }
    batches
}
