//! The v08 superblock of DRBD 8, read only: enough to recognise it, show it and refuse it. The layout is that of v09
//! with one slot and 4096 bytes per bit, so bitmap and positions come from [`crate::Layout`].

use alloc::format;

use types::Uuid;

use crate::Block;
use crate::bytes::{i32_at, u32_at, u64_at};
use crate::error::{FormatError, Region};
use crate::layout::Geometry;

/// Clean, or written by DRBD 8.3 and older.
pub const MAGIC_V08: u32 = 0x8374_026B;
/// Written by a running DRBD 8.4: the activity log was not applied since.
pub const MAGIC_V08_UNCLEAN: u32 = 0x8374_026C;

const AL_CLEAN: u32 = 0x80;

/// Fields as in [`crate::Superblock`]; there is one peer only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SuperblockV08 {
    pub magic: u32,
    pub last_agreed_sectors: u64,
    pub current_uuid: Uuid,
    pub bitmap_uuid: Uuid,
    pub history: [Uuid; 2],
    pub device_uuid: u64,
    /// Bits 2 (connected), 3 (full sync) and 5 (peer outdated) are in the peer record in v09.
    pub flags: u32,
    pub md_size_sectors: u32,
    pub al_offset_sectors: i32,
    pub al_slots: u32,
    pub bm_offset_sectors: i32,
    pub bitmap_block_bytes: u32,
    pub peer_max_io_bytes: u32,
    /// As on disk: 0 in both before DRBD 8.4.
    pub al_stripes: u32,
    pub al_stripe_4k: u32,
}

impl SuperblockV08 {
    /// Decodes the block found at `offset` of the metadata device (for the message only).
    pub fn decode(block: &Block, offset: u64) -> Result<SuperblockV08, FormatError> {
        let magic = u32_at(block, 0x3C);
        if magic != MAGIC_V08 && magic != MAGIC_V08_UNCLEAN {
            let rule = format!("not DRBD metadata v08, which has {MAGIC_V08:#010x} or {MAGIC_V08_UNCLEAN:#010x} here");
            let at = offset.saturating_add(0x3C);
            return Err(FormatError::new(Region::Superblock, "magic", at, format!("{magic:#010x}"), rule));
        }
        Ok(SuperblockV08 {
            magic,
            last_agreed_sectors: u64_at(block, 0x00),
            current_uuid: Uuid(u64_at(block, 0x08)),
            bitmap_uuid: Uuid(u64_at(block, 0x10)),
            history: [Uuid(u64_at(block, 0x18)), Uuid(u64_at(block, 0x20))],
            device_uuid: u64_at(block, 0x28),
            flags: u32_at(block, 0x38),
            md_size_sectors: u32_at(block, 0x40),
            al_offset_sectors: i32_at(block, 0x44),
            al_slots: u32_at(block, 0x48),
            bm_offset_sectors: i32_at(block, 0x4C),
            bitmap_block_bytes: u32_at(block, 0x50),
            peer_max_io_bytes: u32_at(block, 0x54),
            al_stripes: u32_at(block, 0x58),
            al_stripe_4k: u32_at(block, 0x5C),
        })
    }

    /// The activity log was not applied since the last crash or stop. Always so for DRBD 8.3.
    pub const fn unclean(&self) -> bool {
        self.magic == MAGIC_V08_UNCLEAN || self.flags & AL_CLEAN == 0
    }
    /// As v09 would have it; DRBD 8.3 leaves the stripes 0 and means 1 of 32 KiB.
    pub const fn geometry(&self) -> Geometry {
        let (al_stripes, al_stripe_4k) =
            if self.al_stripes == 0 && self.al_stripe_4k == 0 { (1, 8) } else { (self.al_stripes, self.al_stripe_4k) };
        Geometry { max_peers: 1, bitmap_block_bytes: self.bitmap_block_bytes, al_stripes, al_stripe_4k }
    }
}
