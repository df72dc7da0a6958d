//! Blocking helpers for tools and for reading metadata before a ring exists. Exact: all bytes move, or an error.
//!
//! They take the alignment of the disk as the ring does; with a direct `Backing` the memory must be aligned too, so
//! tools open without `direct`, or use [`Aligned`].

use std::os::unix::fs::FileExt;

use types::ByteRange;

use crate::backing::Backing;
use crate::error::{Operation, StoreError};

/// Fills `into` from `offset_bytes` on.
pub fn read_exact_at(backing: &Backing, offset_bytes: u64, into: &mut [u8]) -> Result<(), StoreError> {
    let range = checked(backing, Operation::Read, offset_bytes, into.len())?;
    let done = backing.file().read_exact_at(into, offset_bytes);
    done.map_err(|e| StoreError::failed(Operation::Read, Some(range), backing.shared_path(), e))
}

/// Writes all of `from` at `offset_bytes`. Durable only after [`flush`].
pub fn write_all_at(backing: &Backing, offset_bytes: u64, from: &[u8]) -> Result<(), StoreError> {
    let range = checked(backing, Operation::Write, offset_bytes, from.len())?;
    let done = backing.file().write_all_at(from, offset_bytes);
    done.map_err(|e| StoreError::failed(Operation::Write, Some(range), backing.shared_path(), e))
}

/// Everything written before is durable on return.
pub fn flush(backing: &Backing) -> Result<(), StoreError> {
    backing.file().sync_data().map_err(|e| StoreError::failed(Operation::Flush, None, backing.shared_path(), e))
}

fn checked(backing: &Backing, operation: Operation, offset_bytes: u64, len: usize) -> Result<ByteRange, StoreError> {
    // A range that wraps ends beyond every disk: the check refuses it as such.
    let range = ByteRange::new(offset_bytes, len as u64)
        .unwrap_or_else(|| ByteRange::new(u64::MAX - len as u64, len as u64).expect("ends at the largest number"));
    backing.check(operation, Some(range))?;
    Ok(range)
}

/// Zeroed memory that O_DIRECT takes, for metadata that is read and written outside a pool.
pub struct Aligned {
    memory: Vec<Page>,
    len: usize,
}

#[derive(Clone)]
#[repr(align(4096))]
struct Page {
    _bytes: [u8; 4096],
}

impl Aligned {
    pub fn zeroed(len: usize) -> Aligned {
        Aligned { memory: vec![Page { _bytes: [0; 4096] }; len.div_ceil(4096)], len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: pages lie side by side (size equals alignment) and hold at least `len` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }
}
impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, exclusive by `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), self.len) }
    }
}
