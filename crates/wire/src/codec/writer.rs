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
    u64(out, sector_of(range));
}

/// Length of a range in bytes.
pub(super) fn len(out: &mut Vec<u8>, range: ByteRange) {
    u32(out, len_of(range));
}

/// What writes, requests and acks begin with: sector, block id, two numbers. In one piece, for there is one of these
/// in nearly every frame and each append asks for room.
pub(super) fn block(out: &mut Vec<u8>, range: ByteRange, block_id: u64, first: u32, second: u32) {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&sector_of(range).to_be_bytes());
    bytes[8..16].copy_from_slice(&block_id.to_be_bytes());
    bytes[16..20].copy_from_slice(&first.to_be_bytes());
    bytes[20..].copy_from_slice(&second.to_be_bytes());
    out.extend_from_slice(&bytes);
}

fn sector_of(range: ByteRange) -> u64 {
    assert!(range.start().is_multiple_of(SECTOR_BYTES), "{range:?} does not start at a sector");
    range.sector()
}

/// Bytes, as the wire has it.
pub(super) fn len_of(range: ByteRange) -> u32 {
    assert!(range.len().is_multiple_of(SECTOR_BYTES), "{range:?} is not a whole number of sectors");
    u32::try_from(range.len()).unwrap_or_else(|_| panic!("{range:?} is too long for one packet"))
}
