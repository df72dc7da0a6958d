//! Big-endian fields of a block. Offsets are constants of this crate, so a wrong one is a bug here and may panic.

use crate::Block;

pub fn u16_at(block: &Block, at: usize) -> u16 {
    u16::from_be_bytes([block[at], block[at + 1]])
}
pub fn u32_at(block: &Block, at: usize) -> u32 {
    u32::from_be_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}
pub fn i32_at(block: &Block, at: usize) -> i32 {
    u32_at(block, at) as i32
}
pub fn u64_at(block: &Block, at: usize) -> u64 {
    (u64::from(u32_at(block, at)) << 32) | u64::from(u32_at(block, at + 4))
}
pub fn put_u16(block: &mut Block, at: usize, value: u16) {
    block[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
pub fn put_u32(block: &mut Block, at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
pub fn put_i32(block: &mut Block, at: usize, value: i32) {
    put_u32(block, at, value as u32);
}
pub fn put_u64(block: &mut Block, at: usize, value: u64) {
    block[at..at + 8].copy_from_slice(&value.to_be_bytes());
}
