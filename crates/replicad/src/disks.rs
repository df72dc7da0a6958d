//! Disk operations of the engine on the ring.
//!
//! Every operation is answered exactly once, with [`Done`]. An operation in the table holds its disk, so a disk that
//! the engine closed is closed only after the kernel gave back everything. Metadata writes copy their blocks into
//! aligned pages (O_DIRECT); the pages are kept for the next ones.
//!
//! A metadata write is up to three steps, each after the one before: flush what was there, write the blocks (at most
//! [`BLOCKS_AT_ONCE`] together), flush them. A single durable block is written with DSYNC instead of the last step.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use engine::{DiskOp, MetaBlock};
use metadata::BLOCK_BYTES;
use store::sync::Aligned;
use store::uring::{self, Completion, Running};
use store::{Backing, Place, Span, StoreError, StoreOp};
use types::{ByteRange, IoError, IoId, PayloadId, VolumeNumber};

use crate::payloads::{Payloads, Share};
use crate::ring::{Kind, Ring, Tag};
use crate::slots::{Key, Slots};

/// Blocks of one metadata write that are with the kernel together. Writing back a whole bitmap has thousands.
const BLOCKS_AT_ONCE: usize = 64;
/// Aligned pages kept for reuse.
const PAGES_KEPT: usize = 256;

/// The answer to one `Effect::Disk`.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    pub volume: VolumeNumber,
    pub io: IoId,
    pub result: Result<(), IoError>,
    /// Filled by `DiskOp::Read`, held for the engine.
    pub payload: Option<PayloadId>,
}

struct Disk {
    data: Backing,
    /// `None`: on `data`.
    metadata: Option<Backing>,
    /// It reads into registered pages, as far as is known.
    takes_pages: Cell<bool>,
}

impl Disk {
    fn metadata(&self) -> &Backing {
        self.metadata.as_ref().unwrap_or(&self.data)
    }
}

/// What an entry of the ring does.
enum Job {
    /// The whole of a `DiskOp` on the data device.
    Data { volume: VolumeNumber, io: IoId, payload: Option<DataPayload> },
    /// One block of a metadata write, in this page.
    Block { write: Key, page: Aligned },
    /// A flush before or behind the blocks.
    MetaFlush { write: Key },
}

#[derive(Clone, Copy)]
enum DataPayload {
    /// The engine's: one use is open.
    Used(PayloadId),
    /// The engine's, to be filled with all of this: one use is open.
    Filled(PayloadId, ByteRange),
    /// Brought by us, given to the engine if the read succeeds.
    Brought(PayloadId),
}

struct Operation {
    disk: Rc<Disk>,
    running: Running,
    job: Job,
}

/// A metadata write on its way.
struct MetaWrite {
    volume: VolumeNumber,
    io: IoId,
    disk: Rc<Disk>,
    /// Not started yet; taken from the end.
    blocks: Vec<MetaBlock>,
    /// With the kernel.
    under_way: usize,
    /// Every block by itself is durable.
    dsync: bool,
    /// One flush behind all blocks.
    flush_behind: bool,
    failed: Option<IoError>,
}

impl MetaWrite {
    /// `fua`: durable when it is through.
    fn new(volume: VolumeNumber, io: IoId, disk: Rc<Disk>, blocks: Vec<MetaBlock>, fua: bool) -> MetaWrite {
        let dsync = fua && blocks.len() == 1;
        MetaWrite { volume, io, disk, blocks, under_way: 0, dsync, flush_behind: fua && !dsync, failed: None }
    }
}

#[derive(Default)]
pub struct Disks {
    open: BTreeMap<VolumeNumber, Rc<Disk>>,
    operations: Slots<Operation>,
    meta_writes: Slots<MetaWrite>,
    /// Reads for which no buffer was free.
    waiting: VecDeque<(VolumeNumber, IoId, ByteRange)>,
    pages: Vec<Aligned>,
    done: VecDeque<Done>,
}

impl Disks {
    /// `metadata`: `None` if it lies on `data`.
    pub fn open(&mut self, volume: VolumeNumber, data: Backing, metadata: Option<Backing>) {
        let disk = Rc::new(Disk { data, metadata, takes_pages: Cell::new(true) });
        let old = self.open.insert(volume, disk);
        assert!(old.is_none(), "{volume:?} got a second disk while it had one");
    }

    pub fn is_open(&self, volume: VolumeNumber) -> bool {
        self.open.contains_key(&volume)
    }

    pub fn close(&mut self, volume: VolumeNumber) {
        self.open.remove(&volume);
    }

    /// Takes one finished operation.
    pub fn take_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    pub fn start(&mut self, volume: VolumeNumber, io: IoId, op: DiskOp, ring: &mut Ring, payloads: &mut Payloads) {
        let Some(disk) = self.open.get(&volume).cloned() else {
            self.done.push_back(Done { volume, io, result: Err(IoError::Io), payload: None });
            return;
        };
        let (op, payload) = match op {
            DiskOp::MetaWrite { blocks, preflush, fua } => {
                return self.start_meta_write(MetaWrite::new(volume, io, disk, blocks, fua), preflush, ring);
            }
            DiskOp::Read { range } => match payloads.try_reserve(len_of(range), Share::Engine) {
                None => return self.waiting.push_back((volume, io, range)),
                Some(id) => (StoreOp::Read { range, into: payloads.span(id).into() }, Some(DataPayload::Brought(id))),
            },
            DiskOp::ReadInto { range, payload } => {
                let mut into = payloads.begin_read(payload, len_of(range));
                if matches!(into, Place::Registered(_)) && !disk.takes_pages.get() {
                    into = payloads.read_into_pool(payload);
                }
                (StoreOp::Read { range, into }, Some(DataPayload::Filled(payload, range)))
            }
            DiskOp::Write { range, payload, fua } => {
                payloads.open_use(payload);
                let from = payloads.span(payload).first(len_of(range));
                (StoreOp::Write { range, from, fua }, Some(DataPayload::Used(payload)))
            }
            DiskOp::Flush => (StoreOp::Flush, None),
            DiskOp::Discard { range } => (StoreOp::Discard { range }, None),
            DiskOp::WriteZeroes { range, may_unmap, fua } => (StoreOp::WriteZeroes { range, may_unmap, fua }, None),
        };
        match uring::start(&disk.data, op) {
            // SAFETY: the payload has an open use until `finish_data`.
            Ok(running) => match unsafe { uring::at_once(&disk.data, running) } {
                Some(outcome) => self.finish_data(volume, io, payload, outcome.as_ref().copied(), payloads),
                None => self.push(Operation { disk, running, job: Job::Data { volume, io, payload } }, ring),
            },
            Err(error) => self.finish_data(volume, io, payload, Err(&error), payloads),
        }
    }

    /// Reads that waited for a buffer. Call when one came back.
    pub fn retry_waiting(&mut self, ring: &mut Ring, payloads: &mut Payloads) {
        for _ in 0..self.waiting.len() {
            let Some((volume, io, range)) = self.waiting.pop_front() else { return };
            let before = self.waiting.len();
            self.start(volume, io, DiskOp::Read { range }, ring, payloads);
            if self.waiting.len() > before {
                // Still none: keep the order.
                self.waiting.rotate_right(1);
                return;
            }
        }
    }

    /// `result`: what the ring said.
    pub fn completed(&mut self, key: Key, result: i32, ring: &mut Ring, payloads: &mut Payloads) {
        let Some(operation) = self.operations.get_mut(key) else { panic!("disk operation {key:?} came back twice") };
        let backing = match operation.job {
            Job::Data { .. } => &operation.disk.data,
            Job::Block { .. } | Job::MetaFlush { .. } => operation.disk.metadata(),
        };
        let outcome = match uring::interpret(backing, &operation.running, result) {
            Completion::Again(running) => {
                operation.running = running;
                let entry = uring::prepare(backing, &running);
                // SAFETY: the operation stays in the table with its memory and its descriptor.
                unsafe { ring.push(entry, Tag::new(Kind::Disk, key)) };
                return;
            }
            Completion::Done => Ok(()),
            Completion::Failed(error) => Err(error),
        };
        if let (Err(error), Some((range, id))) = (&outcome, reads_into_pages(operation))
            && error.is_about_the_buffer()
        {
            // All of it: what was read before is in the application's pages.
            tracing::info!("{error}; reading into memory of its own from now on");
            operation.disk.takes_pages.set(false);
            let op = StoreOp::Read { range, into: payloads.read_into_pool(id) };
            operation.running = uring::start(backing, op).expect("the same range was accepted before");
            let entry = uring::prepare(backing, &operation.running);
            // SAFETY: as above.
            unsafe { ring.push(entry, Tag::new(Kind::Disk, key)) };
            return;
        }
        let operation = self.operations.remove(key).expect("found above");
        match operation.job {
            Job::Data { volume, io, payload } => {
                self.finish_data(volume, io, payload, outcome.as_ref().copied(), payloads)
            }
            Job::Block { write, page } => {
                if self.pages.len() < PAGES_KEPT {
                    self.pages.push(page);
                }
                self.meta_step_done(write, outcome, ring);
            }
            Job::MetaFlush { write } => self.meta_step_done(write, outcome, ring),
        }
    }

    fn finish_data(
        &mut self,
        volume: VolumeNumber,
        io: IoId,
        payload: Option<DataPayload>,
        outcome: Result<(), &StoreError>,
        payloads: &mut Payloads,
    ) {
        let result = outcome.map_err(|error| {
            tracing::error!("volume {volume}: {error}");
            error.io_error()
        });
        let payload = match payload {
            Some(DataPayload::Used(id)) => {
                payloads.close_use(id);
                None
            }
            Some(DataPayload::Filled(id, _)) => {
                payloads.end_read(id, result.is_ok());
                None
            }
            Some(DataPayload::Brought(id)) if result.is_err() => {
                payloads.release(id);
                None
            }
            Some(DataPayload::Brought(id)) => Some(id),
            None => None,
        };
        self.done.push_back(Done { volume, io, result, payload });
    }

    fn push(&mut self, operation: Operation, ring: &mut Ring) {
        let backing = match operation.job {
            Job::Data { .. } => &operation.disk.data,
            Job::Block { .. } | Job::MetaFlush { .. } => operation.disk.metadata(),
        };
        let entry = uring::prepare(backing, &operation.running);
        let key = self.operations.insert(operation);
        // SAFETY: the entry's memory is a payload with an open use or a page that lies in the table with the
        // operation until `completed`; so does the descriptor.
        unsafe { ring.push(entry, Tag::new(Kind::Disk, key)) };
    }

    // ------------------------------------------------------------------------------------------ metadata writes

    fn start_meta_write(&mut self, write: MetaWrite, preflush: bool, ring: &mut Ring) {
        let key = self.meta_writes.insert(write);
        if preflush {
            self.push_meta_flush(key, ring);
        } else {
            self.meta_continue(key, ring);
        }
    }

    fn meta_step_done(&mut self, key: Key, outcome: Result<(), StoreError>, ring: &mut Ring) {
        let write = self.meta_writes.get_mut(key).expect("a metadata write stays until its steps are through");
        write.under_way -= 1;
        if let Err(error) = outcome {
            tracing::error!("volume {}: metadata: {error}", write.volume);
            write.failed.get_or_insert(error.io_error());
            // What was not started need not be: the write has failed as a whole.
            write.blocks.clear();
            write.flush_behind = false;
        }
        self.meta_continue(key, ring);
    }

    /// Starts what may start now; finishes the write when nothing is left.
    fn meta_continue(&mut self, key: Key, ring: &mut Ring) {
        loop {
            let write = self.meta_writes.get_mut(key).expect("called with a live key");
            if write.under_way == BLOCKS_AT_ONCE {
                return;
            }
            let Some(block) = write.blocks.pop() else { break };
            let (disk, dsync) = (write.disk.clone(), write.dsync);
            match self.start_block(key, disk, &block, dsync, ring) {
                Ok(()) => {}
                Err(error) => {
                    let write = self.meta_writes.get_mut(key).expect("still there");
                    tracing::error!("volume {}: metadata: {error}", write.volume);
                    write.failed.get_or_insert(error.io_error());
                    write.blocks.clear();
                    write.flush_behind = false;
                }
            }
        }
        let write = self.meta_writes.get_mut(key).expect("called with a live key");
        if write.under_way > 0 {
            return;
        }
        if std::mem::take(&mut write.flush_behind) {
            return self.push_meta_flush(key, ring);
        }
        let write = self.meta_writes.remove(key).expect("found above");
        let result = write.failed.map_or(Ok(()), Err);
        self.done.push_back(Done { volume: write.volume, io: write.io, result, payload: None });
    }

    fn start_block(
        &mut self,
        write: Key,
        disk: Rc<Disk>,
        block: &MetaBlock,
        fua: bool,
        ring: &mut Ring,
    ) -> Result<(), StoreError> {
        let mut page = self.pages.pop().unwrap_or_else(|| Aligned::zeroed(BLOCK_BYTES));
        page.copy_from_slice(&block.bytes[..]);
        // The last page of an external bitmap may be cut off by the end of the device.
        let room = disk.metadata().size_bytes().saturating_sub(block.offset).min(BLOCK_BYTES as u64);
        let range = ByteRange::new(block.offset, room).expect("inside a device");
        let op = StoreOp::Write { range, from: Span::of(&mut page[..room as usize]), fua };
        let running = uring::start(disk.metadata(), op)?;
        self.meta_writes.get_mut(write).expect("still there").under_way += 1;
        self.push(Operation { disk, running, job: Job::Block { write, page } }, ring);
        Ok(())
    }

    fn push_meta_flush(&mut self, write: Key, ring: &mut Ring) {
        let entry = self.meta_writes.get_mut(write).expect("called with a live key");
        entry.under_way += 1;
        let disk = entry.disk.clone();
        let running = uring::start(disk.metadata(), StoreOp::Flush).expect("a flush has no range to refuse");
        self.push(Operation { disk, running, job: Job::MetaFlush { write } }, ring);
    }

    /// Nothing is with the kernel and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.operations.is_empty() && self.waiting.is_empty()
    }
}

/// A read into pages of the application: all of it, and for which payload.
fn reads_into_pages(operation: &Operation) -> Option<(ByteRange, PayloadId)> {
    match (operation.running.op(), &operation.job) {
        (
            StoreOp::Read { into: Place::Registered(_), .. },
            Job::Data { payload: Some(DataPayload::Filled(id, range)), .. },
        ) => Some((*range, *id)),
        _ => None,
    }
}

fn len_of(range: ByteRange) -> usize {
    usize::try_from(range.len()).expect("lengths were checked against 1 MiB before")
}

#[cfg(test)]
#[path = "disks_tests.rs"]
mod tests;
