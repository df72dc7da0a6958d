//! Writes of one volume's metadata, one after the other: superblock, activity-log transactions, bitmap pages.
//!
//! Order (rule MD-1, docs/protocol.md): the pages of extents that a transaction pushes out of the log complete before
//! the transaction, whose preflush makes them durable before it; a superblock has a preflush too, so what the bitmap
//! got before is on disk when the superblock says so. With external metadata the data device is flushed before a
//! transaction that evicts, before the log is emptied and before a superblock that calls resynced data good, because the
//! preflush does not reach it. One write is on its way at a time; a failed one fails the disk and nothing more is
//! acknowledged from it.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use metadata::activity_log::{self, AlTransaction};
use metadata::bitmap::Dirty;
use metadata::superblock::{DeviceFlags, PeerFlags};
use types::{ExtentIndex, IoError, VolumeNumber};

use crate::activity::Transaction;
use crate::api::{DiskOp, MetaBlock};
use crate::planted::{Bug, planted};
use crate::volume::Backing;
use crate::{Engine, IoKind};

/// Bitmap pages of one write. 128 pages are 512 KiB: large enough to stream, small enough not to hold up the log.
const PAGES_PER_WRITE: usize = 128;

pub(crate) struct MetaWriter {
    step: Step,
    /// Changed pages should go to disk, now rather than when an eviction needs them.
    bitmap_wanted: bool,
    /// The ring still has to be initialised (attach, clean detach).
    ring_wanted: bool,
    /// Bits changed that something else covers for now (a hot extent, the peer's own bits).
    stale: bool,
    /// The log is not kept from now on: what it holds goes when nobody needs it any more.
    empty_log_wanted: bool,
    /// Nothing covers bits that were set: the next superblock makes them durable, so it goes behind their pages.
    pages_first: bool,
    /// The next superblock says something of data that may be in the disk's cache.
    data_first: bool,
}

enum Step {
    Idle,
    Superblock {
        version: u64,
    },
    /// Pages of evicted extents; the transaction follows.
    EvictedPages(Transaction),
    /// External metadata: data of evicted extents; the transaction follows.
    EvictedData(Transaction),
    Transaction,
    /// External metadata: what the superblock that follows says of the data is true after a loss of power.
    Data,
    /// External metadata: data of all that was hot; the empty ring follows.
    RingData,
    Ring,
    Pages,
}

impl MetaWriter {
    /// Of a disk that was just attached: all changed pages and an initialised ring come first.
    pub fn new() -> MetaWriter {
        MetaWriter {
            step: Step::Idle,
            bitmap_wanted: true,
            ring_wanted: true,
            stale: false,
            empty_log_wanted: false,
            pages_first: false,
            data_first: false,
        }
    }
    /// Changed pages go to disk as soon as nothing more urgent does.
    pub fn want_bitmap(&mut self) {
        self.bitmap_wanted = true;
        self.stale = false;
    }
    /// Changed pages may wait a little, to go together.
    pub fn want_bitmap_soon(&mut self) {
        self.stale = true;
    }
    /// Changed pages are durable when the superblock as it is now is. The caller touches the superblock.
    pub fn want_pages_first(&mut self) {
        self.pages_first = true;
    }
    /// Data that was written so far is durable when the superblock as it is now is. The caller touches the superblock.
    pub fn want_data_first(&mut self) {
        self.data_first = true;
    }
    pub fn is_stale(&self) -> bool {
        self.stale && !self.bitmap_wanted
    }
    pub fn want_empty_log(&mut self) {
        self.empty_log_wanted = true;
    }
    pub fn want_ring(&mut self) {
        self.ring_wanted = true;
        self.bitmap_wanted = true;
    }
    /// Besides a superblock and the log's changes, which it does not know.
    pub fn wants_something(&self) -> bool {
        self.bitmap_wanted || self.ring_wanted || self.empty_log_wanted
    }
    pub fn is_idle(&self) -> bool {
        matches!(self.step, Step::Idle)
    }
    /// Nothing on its way and nothing wanted.
    pub fn is_quiet(&self) -> bool {
        self.is_idle() && !self.bitmap_wanted && !self.ring_wanted
    }
}

impl Engine {
    /// Starts the next metadata write of a volume if none is on its way. Returns whether it started one.
    pub(crate) fn kick_metadata(&mut self, number: VolumeNumber) -> bool {
        let Some(backing) = self.volumes.get_mut(&number).and_then(|v| v.backing.as_mut()) else { return false };
        if !backing.writer.is_idle() {
            return false;
        }
        let (step, op) = match backing.next_step() {
            Some(next) => next,
            None => return false,
        };
        backing.writer.step = step;
        self.disk(number, IoKind::Metadata, op);
        true
    }

    pub(crate) fn metadata_done(&mut self, number: VolumeNumber, result: Result<(), IoError>) {
        let Some(backing) = self.volumes.get_mut(&number).and_then(|v| v.backing.as_mut()) else { return };
        let step = core::mem::replace(&mut backing.writer.step, Step::Idle);
        if result.is_err() {
            self.disk_failed(number, "metadata write failed");
            return;
        }
        match step {
            Step::Idle => unreachable!("a metadata write of {number:?} completed and none was on its way"),
            Step::Superblock { version } => {
                assert!(version <= backing.changed && version >= backing.durable);
                backing.durable = version;
            }
            Step::EvictedPages(transaction) => {
                let (step, op) = backing.after_pages(transaction);
                backing.writer.step = step;
                return self.disk(number, IoKind::Metadata, op);
            }
            Step::EvictedData(transaction) => {
                let (step, op) = backing.transaction_write(transaction);
                backing.writer.step = step;
                return self.disk(number, IoKind::Metadata, op);
            }
            Step::Transaction => {
                let covered = backing.log.transaction_written();
                self.log_covered(number, covered);
            }
            Step::RingData => {
                backing.writer.step = Step::Ring;
                let op = backing.ring_write();
                return self.disk(number, IoKind::Metadata, op);
            }
            Step::Ring | Step::Pages | Step::Data => {}
        }
        self.volume_mut(number).pump = true;
        self.metadata_progress();
    }
}

impl Backing {
    /// What to write next: a ring and its bitmap at attach, then the superblock, then the log (requests wait for
    /// it), then pages.
    fn next_step(&mut self) -> Option<(Step, DiskOp)> {
        if self.writer.empty_log_wanted && self.log.is_unused() {
            self.writer.empty_log_wanted = false;
            // A log that is in use again (by this node as Primary) is not emptied under it.
            if self.superblock.flags.contains(DeviceFlags::AL_DISABLED) && self.log.hot_extents().next().is_some() {
                self.log.forget_all();
                self.writer.want_ring();
            }
        }
        if self.writer.ring_wanted {
            return Some(self.pages_step().unwrap_or_else(|| {
                self.writer.ring_wanted = false;
                match self.external_metadata {
                    true => (Step::RingData, DiskOp::Flush),
                    false => (Step::Ring, self.ring_write()),
                }
            }));
        }
        if !self.is_settled() {
            let data_first = core::mem::take(&mut self.writer.data_first) && self.external_metadata;
            if data_first && !planted(Bug::CsumNotFlushed) {
                return Some((Step::Data, DiskOp::Flush));
            }
            // Without the indicator a restart ignores the log: what it covers so far has to be in the bitmap first.
            let drops_log = !self.superblock.flags.contains(DeviceFlags::PRIMARY_INDICATOR);
            if drops_log && self.bitmap.dirty_pages(Dirty::Must).next().is_some() {
                return self.pages_step();
            }
            if self.writer.pages_first {
                if let Some(step) = self.pages_step() {
                    return Some(step);
                }
                self.writer.pages_first = false;
            }
            let block = MetaBlock { offset: self.layout.superblock, bytes: Box::new(self.superblock.encode()) };
            let op = DiskOp::MetaWrite { blocks: vec![block], preflush: true, fua: true };
            return Some((Step::Superblock { version: self.changed }, op));
        }
        if let Some(transaction) = self.log.start_transaction() {
            let evicted: &[ExtentIndex] = if planted(Bug::LogWithoutEvictedPages) { &[] } else { &transaction.evicted };
            let blocks = self.take_pages_of(evicted);
            if !blocks.is_empty() {
                return Some((
                    Step::EvictedPages(transaction),
                    DiskOp::MetaWrite { blocks, preflush: false, fua: false },
                ));
            }
            return Some(self.after_pages(transaction));
        }
        if self.writer.bitmap_wanted {
            if let Some(step) = self.pages_step() {
                return Some(step);
            }
            self.writer.bitmap_wanted = false;
            if self.end_full_sync_marks() {
                return self.next_step();
            }
        }
        None
    }

    fn after_pages(&self, transaction: Transaction) -> (Step, DiskOp) {
        // Without this, data of an evicted extent could sit in a cache that no flush of ours reached.
        if self.external_metadata && !transaction.evicted.is_empty() {
            return (Step::EvictedData(transaction), DiskOp::Flush);
        }
        self.transaction_write(transaction)
    }

    fn transaction_write(&self, transaction: Transaction) -> (Step, DiskOp) {
        let position =
            activity_log::block_index(transaction.number, self.superblock.al_stripes, self.superblock.al_stripe_4k);
        let block = MetaBlock {
            offset: self.layout.activity_log + u64::from(position) * 4096,
            bytes: Box::new(encode_transaction(&transaction, self.log.slots())),
        };
        (Step::Transaction, DiskOp::MetaWrite { blocks: vec![block], preflush: true, fua: true })
    }

    fn take_pages_of(&mut self, evicted: &[ExtentIndex]) -> Vec<MetaBlock> {
        let mut pages: Vec<u32> = Vec::new();
        for extent in evicted {
            pages.extend(self.bitmap.pages_of_extent(*extent).filter(|p| self.bitmap.dirty(*p) == Some(Dirty::Must)));
        }
        pages.sort_unstable();
        pages.dedup();
        pages.into_iter().map(|p| self.take_page(p)).collect()
    }

    fn pages_step(&mut self) -> Option<(Step, DiskOp)> {
        let pages: Vec<u32> = self.bitmap.dirty_pages(Dirty::May).take(PAGES_PER_WRITE).collect();
        if pages.is_empty() {
            return None;
        }
        let blocks = pages.into_iter().map(|p| self.take_page(p)).collect();
        Some((Step::Pages, DiskOp::MetaWrite { blocks, preflush: false, fua: false }))
    }

    fn take_page(&mut self, page: u32) -> MetaBlock {
        let mut bytes = Box::new([0u8; 4096]);
        bytes.copy_from_slice(self.bitmap.page(page));
        self.bitmap.mark_written(page);
        MetaBlock { offset: self.layout.bitmap + u64::from(page) * 4096, bytes }
    }

    fn ring_write(&self) -> DiskOp {
        let blocks = (0..u64::from(self.layout.al_blocks))
            .map(|i| MetaBlock {
                offset: self.layout.activity_log + i * 4096,
                bytes: Box::new(activity_log::INITIALISED),
            })
            .collect();
        DiskOp::MetaWrite { blocks, preflush: true, fua: true }
    }

    /// All bits of full-sync marks are written: the marks may go. The superblock's preflush makes the bits durable
    /// before the marks disappear.
    fn end_full_sync_marks(&mut self) -> bool {
        let mut any = false;
        for record in &mut self.superblock.peers {
            if record.slot.is_some() && record.flags.contains(PeerFlags::FULL_SYNC) {
                record.flags.set(PeerFlags::FULL_SYNC, false);
                any = true;
            }
        }
        if any {
            self.touch();
        }
        any
    }
}

fn encode_transaction(transaction: &Transaction, slots: u16) -> [u8; 4096] {
    AlTransaction {
        number: transaction.number,
        slot_count: slots,
        context_first: transaction.context_first,
        context: transaction.context.clone(),
        updates: transaction.updates.iter().map(|(slot, extent)| (*slot, Some(*extent))).collect(),
    }
    .encode()
}
