//! A disk in memory for tests: the semantics of [`crate::uring`] with a volatile cache that can be lost, and errors
//! on any range.
//!
//! Model: each write lands in the cache, sector by sector. A flush makes the whole cache durable, FUA the sectors it
//! writes (and nothing else). A power cut keeps an arbitrary subset of the cached sectors, the caller's choice;
//! of several cached writes to one sector only the newest can survive. Not modelled: tearing inside a sector, hangs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use types::ByteRange;
use types::range::SECTOR_BYTES;

use crate::backing::Geometry;
use crate::error::{Operation, StoreError, StoreErrorKind};
use crate::op;

type Sector = [u8; SECTOR_BYTES as usize];

/// An injected failure: operations of this kind that touch the range fail and change nothing. A flush has no range:
/// it fails for any fault on `Operation::Flush`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    pub operation: Operation,
    pub range: ByteRange,
    pub kind: StoreErrorKind,
}

/// Sparse: a sector that is nowhere reads as zeroes.
pub struct MemStore {
    geometry: Geometry,
    path: Arc<Path>,
    durable: BTreeMap<u64, Sector>,
    cache: BTreeMap<u64, Sector>,
    faults: Vec<Fault>,
}

impl MemStore {
    /// A disk of `size_bytes`, which is a multiple of `logical_block_bytes` (asserted).
    pub fn new(size_bytes: u64, logical_block_bytes: u32) -> MemStore {
        assert!(size_bytes.is_multiple_of(u64::from(logical_block_bytes)), "{size_bytes} / {logical_block_bytes}");
        let geometry = Geometry {
            size_bytes,
            logical_block_bytes,
            physical_block_bytes: logical_block_bytes.max(4096),
            discard: true,
            discard_granularity_bytes: logical_block_bytes,
            discard_bytes_max: size_bytes,
            volatile_cache: true,
        };
        let path = Arc::from(Path::new("memory"));
        MemStore { geometry, path, durable: BTreeMap::new(), cache: BTreeMap::new(), faults: Vec::new() }
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub fn read(&self, range: ByteRange, into: &mut [u8]) -> Result<(), StoreError> {
        assert_eq!(range.len(), into.len() as u64, "read {range:?}: range and buffer differ");
        self.allowed(Operation::Read, Some(range))?;
        for (sector, bytes) in sectors(range).zip(into.chunks_mut(SECTOR_BYTES as usize)) {
            match self.cache.get(&sector).or_else(|| self.durable.get(&sector)) {
                Some(content) => bytes.copy_from_slice(content),
                None => bytes.fill(0),
            }
        }
        Ok(())
    }

    pub fn write(&mut self, range: ByteRange, from: &[u8], fua: bool) -> Result<(), StoreError> {
        assert_eq!(range.len(), from.len() as u64, "write {range:?}: range and buffer differ");
        self.allowed(Operation::Write, Some(range))?;
        for (sector, bytes) in sectors(range).zip(from.chunks(SECTOR_BYTES as usize)) {
            self.put(sector, bytes.try_into().expect("ranges are whole sectors"), fua);
        }
        Ok(())
    }

    pub fn flush(&mut self) -> Result<(), StoreError> {
        self.allowed(Operation::Flush, None)?;
        self.durable.append(&mut self.cache);
        Ok(())
    }

    pub fn discard(&mut self, range: ByteRange) -> Result<(), StoreError> {
        self.zero(Operation::Discard, range, false)
    }

    /// Whether storage is given back cannot be seen here: `may_unmap` of the other stores has no counterpart.
    pub fn write_zeroes(&mut self, range: ByteRange, fua: bool) -> Result<(), StoreError> {
        self.zero(Operation::WriteZeroes, range, fua)
    }

    /// From here on the fault strikes, until `heal`.
    pub fn inject(&mut self, fault: Fault) {
        self.faults.push(fault);
    }
    pub fn heal(&mut self) {
        self.faults.clear();
    }

    /// Loses the cache but for the sectors that `survives` picks (by number, ascending).
    pub fn power_cut(&mut self, mut survives: impl FnMut(u64) -> bool) {
        for (sector, content) in std::mem::take(&mut self.cache) {
            if survives(sector) {
                self.durable.insert(sector, content);
            }
        }
    }

    /// Sectors that a power cut could lose.
    pub fn volatile_sectors(&self) -> usize {
        self.cache.len()
    }

    fn zero(&mut self, operation: Operation, range: ByteRange, fua: bool) -> Result<(), StoreError> {
        self.allowed(operation, Some(range))?;
        sectors(range).for_each(|sector| self.put(sector, [0; SECTOR_BYTES as usize], fua));
        Ok(())
    }

    fn put(&mut self, sector: u64, content: Sector, fua: bool) {
        if fua {
            self.cache.remove(&sector);
            self.durable.insert(sector, content);
        } else {
            self.cache.insert(sector, content);
        }
    }

    fn allowed(&self, operation: Operation, range: Option<ByteRange>) -> Result<(), StoreError> {
        op::check(&self.geometry, false, operation, range, &self.path)?;
        let strikes = |f: &&Fault| f.operation == operation && range.is_none_or(|r| r.overlaps(f.range));
        let Some(fault) = self.faults.iter().find(strikes) else { return Ok(()) };
        Err(StoreError::refused(fault.kind, operation, range, &self.path, "injected by the test".to_owned()))
    }
}

fn sectors(range: ByteRange) -> impl Iterator<Item = u64> {
    range.sector()..range.sector() + range.sectors()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).unwrap()
    }
    fn first_byte(store: &MemStore, sector: u64) -> u8 {
        let mut bytes = [0; 512];
        store.read(range(sector * 512, 512), &mut bytes).unwrap();
        bytes[0]
    }

    #[test]
    fn a_power_cut_loses_what_was_neither_flushed_nor_fua() {
        let mut store = MemStore::new(1 << 20, 512);
        store.write(range(0, 512), &[1; 512], false).unwrap();
        store.flush().unwrap();
        store.write(range(0, 512), &[2; 512], false).unwrap();
        store.write(range(512, 512), &[3; 512], true).unwrap();
        store.write(range(1024, 1024), &[4; 1024], false).unwrap();
        assert_eq!(store.volatile_sectors(), 3);
        store.power_cut(|sector| sector == 3);
        assert_eq!([0, 1, 2, 3].map(|s| first_byte(&store, s)), [1, 3, 0, 4]);
    }

    #[test]
    fn a_fault_strikes_its_operation_on_its_range_and_changes_nothing() {
        let mut store = MemStore::new(1 << 20, 512);
        let kind = StoreErrorKind::Io;
        store.inject(Fault { operation: Operation::Write, range: range(512, 512), kind });
        assert_eq!(store.write(range(0, 1024), &[1; 1024], false).unwrap_err().kind, kind);
        assert_eq!(first_byte(&store, 0), 0);
        store.write(range(0, 512), &[1; 512], false).unwrap();
        store.heal();
        store.write(range(0, 1024), &[2; 1024], false).unwrap();
        assert_eq!(first_byte(&store, 1), 2);
        store.inject(Fault { operation: Operation::Flush, range: range(0, 0), kind });
        assert!(store.flush().is_err());
    }
}
