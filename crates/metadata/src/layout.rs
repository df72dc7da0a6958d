//! Where superblock, activity log and bitmap lie on the metadata device.
//!
//! Pure arithmetic over device size and [`Geometry`]; the formulas and their worked examples are in
//! `docs/ondisk.md` "Where the metadata lives". Invariants of a [`Layout`]:
//! all three regions start on a 4 KiB boundary, do not overlap, and end within the device;
//! internal: `usable_bytes == bitmap` and `bitmap < activity_log < superblock`;
//! external: `superblock < activity_log < bitmap`.

use alloc::format;

use crate::BLOCK_BYTES;
use crate::error::{FormatError, Region};

const SECTOR: u64 = types::range::SECTOR_BYTES;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Largest number of bitmap slots: a node is never its own peer.
pub const MAX_PEERS_MAX: u8 = 31;
/// Storage that one bitmap bit stands for. Bytes. At 4 KiB: 32 MiB of bitmap per TiB and peer; larger resyncs more
/// than changed.
pub const BITMAP_BLOCK_BYTES_DEFAULT: u32 = 4096;
/// Upper end of what DRBD allows per bit. Bytes.
pub const BITMAP_BLOCK_BYTES_MAX: u32 = 1 << 20;
/// Blocks of the activity log: DRBD's kernel accepts this range, drbdmeta only up to 8192.
pub const AL_BLOCKS_MIN: u32 = 8;
pub const AL_BLOCKS_MAX: u32 = 4 << 20;
/// Area of one index of a shared metadata device. Bytes.
pub const INDEXED_AREA_BYTES: u64 = 128 << 20;
/// Below this drbdmeta does not look for metadata. Bytes.
pub const DEVICE_BYTES_MIN: u64 = 68 << 10;
/// Largest volume that DRBD supports. Bytes (1 PiB).
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;

/// Which part of which device carries the metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// At the end of the data device.
    Internal,
    /// A whole device of its own ("flexible external").
    External,
    /// The n-th 128 MiB of a device that several volumes share.
    Indexed(u8),
}

/// What `create-md` chooses and the superblock records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bitmap slots, 1..=31.
    pub max_peers: u8,
    /// Storage per bitmap bit: a power of two, 4096..=1 MiB.
    pub bitmap_block_bytes: u32,
    pub al_stripes: u32,
    /// Length of one stripe in 4 KiB blocks.
    pub al_stripe_4k: u32,
}

impl Geometry {
    /// Defaults of DRBD: 4 KiB per bit, activity log of one stripe of 32 KiB.
    pub const fn new(max_peers: u8) -> Geometry {
        Geometry { max_peers, bitmap_block_bytes: BITMAP_BLOCK_BYTES_DEFAULT, al_stripes: 1, al_stripe_4k: 8 }
    }
    /// Bitmap bits per slot for a volume of this size.
    pub const fn bits(&self, volume_bytes: u64) -> u64 {
        volume_bytes.div_ceil(self.bitmap_block_bytes as u64)
    }
    /// Bytes of bitmap, all slots, whole 4 KiB pages, for a volume of this size.
    /// `None` if it does not fit in 64 bits.
    pub fn bitmap_bytes(&self, volume_bytes: u64) -> Option<u64> {
        let per_slot = self.bits(volume_bytes).checked_next_multiple_of(64)? / 8;
        per_slot.checked_mul(u64::from(self.max_peers))?.checked_next_multiple_of(BLOCK)
    }
    /// Blocks of the activity-log ring, if that number is allowed.
    pub fn al_blocks(&self) -> Option<u32> {
        let blocks = self.al_stripes.checked_mul(self.al_stripe_4k)?;
        (AL_BLOCKS_MIN..=AL_BLOCKS_MAX).contains(&blocks).then_some(blocks)
    }
    /// The first rule that this geometry breaks: field, its value, the rule.
    pub(crate) fn violation(&self) -> Option<(&'static str, u64, alloc::string::String)> {
        if !(1..=MAX_PEERS_MAX).contains(&self.max_peers) {
            return Some(("max-peers", self.max_peers.into(), format!("must be 1 to {MAX_PEERS_MAX}")));
        }
        let per_bit = self.bitmap_block_bytes;
        if !per_bit.is_power_of_two() || !(BITMAP_BLOCK_BYTES_DEFAULT..=BITMAP_BLOCK_BYTES_MAX).contains(&per_bit) {
            let rule = format!("must be a power of two, {BITMAP_BLOCK_BYTES_DEFAULT} to {BITMAP_BLOCK_BYTES_MAX}");
            return Some(("bm-byte-per-bit", per_bit.into(), rule));
        }
        if self.al_stripes == 0 {
            return Some(("al-stripes", 0, "must not be 0".into()));
        }
        if self.al_blocks().is_none() {
            let rule = format!(
                "times al-stripes {} must give {AL_BLOCKS_MIN} to {AL_BLOCKS_MAX} blocks of activity log",
                self.al_stripes
            );
            return Some(("al-stripe-size-4k", self.al_stripe_4k.into(), rule));
        }
        None
    }
}

/// Regions as absolute byte offsets on the metadata device, and the superblock fields that say the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    pub superblock: u64,
    pub activity_log: u64,
    pub bitmap: u64,
    /// From `bitmap` to the end of the region, all slots. Internal: whole pages, dimensioned for the whole device.
    /// External: to the end of the area, a multiple of 512; a volume needs only [`Geometry::bitmap_bytes`] of it,
    /// whose last page may be cut off by the end of the area.
    pub bitmap_bytes: u64,
    pub al_blocks: u32,
    /// Upper limit of the volume's size; with external metadata the data device may be smaller.
    pub usable_bytes: u64,
    pub md_size_sectors: u32,
    /// Signed, relative to the superblock.
    pub al_offset_sectors: i32,
    /// Signed, relative to the superblock.
    pub bm_offset_sectors: i32,
}

impl Layout {
    pub fn compute(placement: Placement, meta_device_bytes: u64, geometry: Geometry) -> Result<Layout, FormatError> {
        if let Some((field, value, rule)) = geometry.violation() {
            return Err(FormatError::new(Region::Device, field, 0, value, rule));
        }
        match placement {
            Placement::Internal => internal(meta_device_bytes, geometry),
            Placement::External => {
                let sectors = meta_device_bytes / SECTOR;
                let md_size = u32::try_from(sectors).map_err(|_| {
                    let rule = "external metadata is limited to 2 TiB (its size in sectors has 32 bits)";
                    FormatError::new(Region::Device, "size", 0, meta_device_bytes, rule)
                })?;
                external(superblock_offset(placement, meta_device_bytes)?, md_size, geometry)
            }
            Placement::Indexed(_) => {
                let default = Geometry::new(geometry.max_peers);
                if geometry != default {
                    let rule = "indexed metadata has one 32 KiB activity log and 4096 bytes per bit";
                    return Err(FormatError::new(Region::Device, "geometry", 0, format!("{geometry:?}"), rule));
                }
                let md_size = (INDEXED_AREA_BYTES / SECTOR) as u32;
                external(superblock_offset(placement, meta_device_bytes)?, md_size, geometry)
            }
        }
    }

    /// Absolute position of a bitmap page and how much of it lies inside the region (less than 4096 only for the
    /// last page of external metadata on a device of odd size). `None`: not in the region.
    pub fn bitmap_page(&self, page: u32) -> Option<(u64, usize)> {
        let start = u64::from(page) * BLOCK;
        let left = self.bitmap_bytes.checked_sub(start).filter(|left| *left > 0)?;
        Some((self.bitmap + start, left.min(BLOCK) as usize))
    }
    /// Absolute position of a block of the activity log.
    pub fn al_block(&self, block: u32) -> u64 {
        assert!(block < self.al_blocks, "activity-log block {block} of {}", self.al_blocks);
        self.activity_log + u64::from(block) * BLOCK
    }
}

/// Where the superblock is, which is known before anything was read.
pub fn superblock_offset(placement: Placement, meta_device_bytes: u64) -> Result<u64, FormatError> {
    let too_small = |need: u64| {
        let rule = format!("metadata needs at least {need} bytes here");
        FormatError::new(Region::Device, "size", 0, meta_device_bytes, rule)
    };
    if meta_device_bytes < DEVICE_BYTES_MIN {
        return Err(too_small(DEVICE_BYTES_MIN));
    }
    match placement {
        Placement::Internal => Ok((meta_device_bytes - BLOCK) / BLOCK * BLOCK),
        Placement::External => Ok(0),
        Placement::Indexed(index) => {
            let start = u64::from(index) * INDEXED_AREA_BYTES;
            let end = start + INDEXED_AREA_BYTES;
            if meta_device_bytes < end { Err(too_small(end)) } else { Ok(start) }
        }
    }
}

fn internal(device_bytes: u64, geometry: Geometry) -> Result<Layout, FormatError> {
    let superblock = superblock_offset(Placement::Internal, device_bytes)?;
    let refuse = |rule| FormatError::new(Region::Device, "size", 0, device_bytes, rule);
    if device_bytes > VOLUME_BYTES_MAX {
        return Err(refuse(format!("volumes are limited to {VOLUME_BYTES_MAX} bytes (1 PiB)")));
    }
    let al_blocks = geometry.al_blocks().expect("checked by the caller");
    let al_bytes = u64::from(al_blocks) * BLOCK;
    // Dimensioned for whole sectors of the whole device, the metadata itself included.
    let bitmap_bytes = geometry.bitmap_bytes(device_bytes / SECTOR * SECTOR).expect("at most 31 * 32 GiB");
    let bitmap = superblock.checked_sub(al_bytes + bitmap_bytes).filter(|usable| *usable > 0);
    let Some(bitmap) = bitmap else {
        let need = al_bytes + bitmap_bytes + BLOCK;
        return Err(refuse(format!("the metadata alone takes {need} bytes and leaves no room for data")));
    };
    Ok(Layout {
        superblock,
        activity_log: superblock - al_bytes,
        bitmap,
        bitmap_bytes,
        al_blocks,
        usable_bytes: bitmap,
        // 1 PiB with 31 slots and the longest log stays below 2^31 sectors.
        md_size_sectors: ((bitmap_bytes + al_bytes + BLOCK) / SECTOR) as u32,
        al_offset_sectors: -((al_bytes / SECTOR) as i32),
        bm_offset_sectors: -(((al_bytes + bitmap_bytes) / SECTOR) as i32),
    })
}

fn external(superblock: u64, md_size_sectors: u32, geometry: Geometry) -> Result<Layout, FormatError> {
    let al_blocks = geometry.al_blocks().expect("checked by the caller");
    let al_bytes = u64::from(al_blocks) * BLOCK;
    let area_bytes = u64::from(md_size_sectors) * SECTOR;
    let bitmap_at = BLOCK + al_bytes;
    let bitmap_bytes = area_bytes.saturating_sub(bitmap_at);
    // Whole 64-bit words per slot, as the bitmap is allocated: the kernel's own capacity formula is up to 7 bytes per
    // slot larger and an attach at that size would fail.
    let words_per_slot = bitmap_bytes / 8 / u64::from(geometry.max_peers);
    let usable_bytes = (words_per_slot * 64 * u64::from(geometry.bitmap_block_bytes)).min(VOLUME_BYTES_MAX);
    if usable_bytes == 0 {
        let rule = format!("superblock and activity log take {bitmap_at} bytes and leave no room for a bitmap");
        return Err(FormatError::new(Region::Device, "size", superblock, area_bytes, rule));
    }
    Ok(Layout {
        superblock,
        activity_log: superblock + BLOCK,
        bitmap: superblock + bitmap_at,
        bitmap_bytes,
        al_blocks,
        usable_bytes,
        md_size_sectors,
        al_offset_sectors: (BLOCK / SECTOR) as i32,
        bm_offset_sectors: (bitmap_at / SECTOR) as i32,
    })
}
