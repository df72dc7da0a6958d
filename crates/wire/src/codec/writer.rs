//! Big-endian numbers and sectors, appended to a buffer. Padding is written as zeroes.

use alloc::vec::Vec;
use types::ByteRange;
use types::range::SECTOR_BYTES;

pub(super) fn u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}
pub(super) fn u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}
pub(super) fn u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// A size in bytes, as sectors.
pub(super) fn sectors(out: &mut Vec<u8>, bytes: u64) {
    assert!(bytes.is_multiple_of(SECTOR_BYTES), "size {bytes} is not a whole number of sectors");
    u64(out, bytes / SECTOR_BYTES);
}

/// First sector of a range.
pub(super) fn sector(out: &mut Vec<u8>, range: ByteRange) {
    assert!(range.start().is_multiple_of(SECTOR_BYTES), "{range:?} does not start at a sector");
    u64(out, range.sector());
}

/// Length of a range in bytes.
pub(super) fn len(out: &mut Vec<u8>, range: ByteRange) {
    assert!(range.len().is_multiple_of(SECTOR_BYTES), "{range:?} is not a whole number of sectors");
    u32(out, u32::try_from(range.len()).unwrap_or_else(|_| panic!("{range:?} is too long for one packet")));
}
