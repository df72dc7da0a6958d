//! Ranges of bytes on a volume.

use core::fmt;

/// The unit of the kernel's block layer, of the wire and of the metadata. Bytes.
pub const SECTOR_BYTES: u64 = 512;

/// Storage that one activity-log entry covers. Bytes. Source: docs/ondisk.md "Activity log".
pub const EXTENT_BYTES: u64 = 4 << 20;

/// Number of an activity-log extent: `start / EXTENT_BYTES`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct ExtentIndex(pub u32);

impl ExtentIndex {
    /// What it covers of a volume of `volume_bytes`.
    pub const fn range_within(self, volume_bytes: u64) -> ByteRange {
        let start = self.0 as u64 * EXTENT_BYTES;
        let rest = volume_bytes.saturating_sub(start);
        ByteRange { start, len: if rest < EXTENT_BYTES { rest } else { EXTENT_BYTES } }
    }
}

/// `start .. start + len`, bytes from the start of the volume. Never wraps: `new` refuses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "(u64, u64)", into = "(u64, u64)"))]
pub struct ByteRange {
    start: u64,
    len: u64,
}

#[cfg(feature = "serde")]
impl TryFrom<(u64, u64)> for ByteRange {
    type Error = &'static str;
    fn try_from((start, len): (u64, u64)) -> Result<ByteRange, Self::Error> {
        ByteRange::new(start, len).ok_or("the end of a range fits in 64 bits")
    }
}
#[cfg(feature = "serde")]
impl From<ByteRange> for (u64, u64) {
    fn from(range: ByteRange) -> (u64, u64) {
        (range.start, range.len)
    }
}

impl ByteRange {
    /// `None` if the end does not fit in u64.
    pub const fn new(start: u64, len: u64) -> Option<ByteRange> {
        match start.checked_add(len) {
            Some(_) => Some(ByteRange { start, len }),
            None => None,
        }
    }
    /// From 512-byte sectors and a length in bytes, as the wire has it. `None` if it does not fit.
    pub const fn from_sector(sector: u64, len: u64) -> Option<ByteRange> {
        match sector.checked_mul(SECTOR_BYTES) {
            Some(start) => ByteRange::new(start, len),
            None => None,
        }
    }
    pub const fn start(self) -> u64 {
        self.start
    }
    pub const fn len(self) -> u64 {
        self.len
    }
    pub const fn end(self) -> u64 {
        self.start + self.len
    }
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }
    /// First sector. The start is sector aligned in every range that passed a frontend or a decoder.
    pub const fn sector(self) -> u64 {
        self.start / SECTOR_BYTES
    }
    pub const fn sectors(self) -> u64 {
        self.len / SECTOR_BYTES
    }
    pub const fn overlaps(self, other: ByteRange) -> bool {
        self.start < other.end() && other.start < self.end()
    }
    pub const fn is_within(self, size_bytes: u64) -> bool {
        self.end() <= size_bytes
    }
    /// Activity-log extents this range touches, ascending. Empty for an empty range.
    pub fn extents(self) -> impl Iterator<Item = ExtentIndex> {
        let first = self.start / EXTENT_BYTES;
        let end = if self.len == 0 { first } else { (self.end() - 1) / EXTENT_BYTES + 1 };
        (first..end).map(|e| ExtentIndex(u32::try_from(e).expect("volumes are at most 1 PiB")))
    }
    /// Blocks of `block_bytes` that this range touches (`outward`): what *setting* bits covers.
    pub fn blocks_touched(self, block_bytes: u64) -> core::ops::Range<u64> {
        if self.len == 0 {
            return 0..0;
        }
        self.start / block_bytes..(self.end() - 1) / block_bytes + 1
    }
    /// Blocks of `block_bytes` that this range covers completely: what *clearing* bits covers. The last, partial
    /// block of a volume of `volume_bytes` counts as complete when the range reaches the volume's end.
    pub fn blocks_covered(self, block_bytes: u64, volume_bytes: u64) -> core::ops::Range<u64> {
        let first = self.start.div_ceil(block_bytes);
        let end =
            if self.end() >= volume_bytes { volume_bytes.div_ceil(block_bytes) } else { self.end() / block_bytes };
        if first < end { first..end } else { 0..0 }
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.start, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).unwrap()
    }

    #[test]
    fn setting_rounds_outward_and_clearing_inward() {
        let r = range(512, 8192);
        assert_eq!(r.blocks_touched(4096), 0..3);
        assert_eq!(r.blocks_covered(4096, 1 << 20), 1..2);
        assert_eq!(range(512, 512).blocks_covered(4096, 1 << 20), 0..0);
    }

    #[test]
    fn the_last_partial_block_counts_as_covered_at_the_end_of_the_volume() {
        let volume = 4096 * 3 + 512;
        assert_eq!(range(8192, 4096 + 512).blocks_covered(4096, volume), 2..4);
        assert_eq!(range(8192, 4096).blocks_covered(4096, volume), 2..3);
    }

    #[test]
    fn extents_of_a_range() {
        assert_eq!(range(0, 0).extents().count(), 0);
        let touched: Vec<u32> = range(EXTENT_BYTES - 512, 1024).extents().map(|e| e.0).collect();
        assert_eq!(touched, [0, 1]);
    }

    #[test]
    fn a_range_never_wraps() {
        assert_eq!(ByteRange::new(u64::MAX, 1), None);
        assert_eq!(ByteRange::from_sector(u64::MAX, 512), None);
    }
}
