//! Disk operations against a file on a real ring.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use store::OpenOptions;

use super::*;
use stamps::{bytes_of, stamps_of};
use suite::{Device, Op, Refused, SECTOR, conforms};

#[path = "../../store/tests/suite/stamps.rs"]
mod stamps;
#[path = "../../store/tests/suite/mod.rs"]
mod suite;

const BYTES: u64 = 8 << 20;

struct Bench {
    file: tempfile::NamedTempFile,
    ring: Ring,
    payloads: Payloads,
    disks: Disks,
    next_io: u64,
}

fn volume() -> VolumeNumber {
    VolumeNumber::new(0).unwrap()
}

impl Bench {
    fn new() -> Bench {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(BYTES).unwrap();
        let data = Backing::open(file.path(), OpenOptions::SERVE).unwrap();
        let mut disks = Disks::default();
        disks.open(volume(), data, None);
        let (ring, payloads) = (Ring::new(8).unwrap(), Payloads::new(4 << 20).unwrap());
        Bench { file, ring, payloads, disks, next_io: 0 }
    }

    fn start(&mut self, op: DiskOp) -> IoId {
        self.next_io += 1;
        let io = IoId(self.next_io);
        self.disks.start(volume(), io, op, &mut self.ring, &mut self.payloads);
        io
    }

    /// Until something is done.
    fn next(&mut self) -> Done {
        loop {
            if let Some(done) = self.disks.take_done() {
                return done;
            }
            let mut completions = Vec::new();
            self.ring.wait(Some(Duration::from_millis(10)), &mut completions);
            for completion in completions {
                assert_eq!(completion.tag.kind, Kind::Disk);
                self.disks.completed(completion.tag.key, completion.result, &mut self.ring, &mut self.payloads);
            }
        }
    }

    fn on_disk(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.as_file().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

#[test]
fn what_is_written_is_read_and_the_references_come_back() {
    let mut bench = Bench::new();
    let payload = bench.payloads.try_reserve(8192, Share::Application).unwrap();
    bench.payloads.bytes_mut(payload).fill(7);
    let io = bench.start(DiskOp::Write { range: range(4096, 8192), payload, fua: true });
    assert!(!bench.payloads.release(payload), "the disk still needs it");
    assert_eq!(bench.next(), Done { volume: volume(), io, result: Ok(()), payload: None });
    assert_eq!(bench.payloads.allocated_bytes(), 0);

    let io = bench.start(DiskOp::Read { range: range(4096, 8192) });
    let done = bench.next();
    assert_eq!((done.io, done.result), (io, Ok(())));
    let read = done.payload.expect("a read brings its buffer");
    assert!(bench.payloads.bytes_mut(read).iter().all(|byte| *byte == 7));
    bench.start(DiskOp::Discard { range: range(4096, 4096) });
    assert_eq!(bench.next().result, Ok(()));
    assert_eq!(bench.on_disk(4096, 8192), [[0; 4096], [7; 4096]].concat());
}

#[test]
fn a_metadata_write_of_more_blocks_than_go_at_once_is_one_answer() {
    for (count, preflush, fua) in [(1, false, true), (1, true, false), (300, true, true), (0, true, true)] {
        let mut bench = Bench::new();
        let block = |n: u64| MetaBlock { offset: n * 8192, bytes: Box::new([n as u8 ^ 0x55; 4096]) };
        let io = bench.start(DiskOp::MetaWrite { blocks: (0..count).map(block).collect(), preflush, fua });
        assert_eq!(bench.next(), Done { volume: volume(), io, result: Ok(()), payload: None });
        assert!(bench.disks.is_idle() && bench.disks.meta_writes.is_empty());
        for n in 0..count {
            assert_eq!(bench.on_disk(n * 8192, 4096), [n as u8 ^ 0x55; 4096], "block {n} of {count}");
        }
    }
}

#[test]
fn a_failed_block_fails_the_whole_metadata_write_once() {
    let mut bench = Bench::new();
    let bytes = || Box::new([1; 4096]);
    let blocks = vec![MetaBlock { offset: 0, bytes: bytes() }, MetaBlock { offset: BYTES, bytes: bytes() }];
    let io = bench.start(DiskOp::MetaWrite { blocks, preflush: false, fua: true });
    let done = bench.next();
    assert_eq!(done.io, io);
    assert!(done.result.is_err());
    assert!(bench.disks.is_idle() && bench.disks.take_done().is_none());
}

#[test]
fn operations_without_a_disk_and_beyond_its_end_fail_and_bring_no_buffer() {
    let mut bench = Bench::new();
    bench.start(DiskOp::Read { range: range(BYTES, 4096) });
    assert_eq!((bench.next().result, bench.payloads.allocated_bytes()), (Err(IoError::Invalid), 0));
    bench.disks.close(volume());
    for op in [DiskOp::Flush, DiskOp::Read { range: range(0, 4096) }] {
        let io = bench.start(op);
        assert_eq!(bench.next(), Done { volume: volume(), io, result: Err(IoError::Io), payload: None });
    }
}

#[test]
fn reads_wait_for_buffers_in_order() {
    let mut bench = Bench::new();
    // The engine's share of 4 MiB is one buffer of 1 MiB.
    let ios: Vec<IoId> = (0..4).map(|n| bench.start(DiskOp::Read { range: range(n << 20, 1 << 20) })).collect();
    for io in ios {
        let done = bench.next();
        assert_eq!(done.io, io);
        assert!(bench.payloads.release(done.payload.unwrap()));
        bench.disks.retry_waiting(&mut bench.ring, &mut bench.payloads);
    }
    assert!(bench.disks.is_idle());
}

/// Where the suite's metadata lies: behind the data of this size.
const METADATA_AT: u64 = BYTES - (64 << 10);

impl Bench {
    /// With room for all of a batch.
    fn with_large_pool() -> Bench {
        Bench { payloads: Payloads::new(32 << 20).unwrap(), ..Bench::new() }
    }

    fn payload(&mut self, bytes: &[u8]) -> PayloadId {
        // A refused operation may be of no bytes; a buffer never is.
        let payload = self.payloads.try_reserve(bytes.len().max(1), Share::Application).unwrap();
        self.payloads.bytes_mut(payload)[..bytes.len()].copy_from_slice(bytes);
        payload
    }

    fn disk_op(&mut self, op: &Op) -> DiskOp {
        let sectors = |first: u64, count: u64| range(first * SECTOR, count * SECTOR);
        match op {
            Op::Read(sector, count) => DiskOp::Read { range: sectors(*sector, *count) },
            Op::ReadBytes(start, len) => {
                let payload = self.payload(&vec![0; *len as usize]);
                DiskOp::ReadInto { range: range(*start, *len), payload }
            }
            Op::Write { sector, stamps, fua } => {
                let payload = self.payload(&bytes_of(stamps));
                DiskOp::Write { range: sectors(*sector, stamps.len() as u64), payload, fua: *fua }
            }
            Op::WriteBytes(start, len) => {
                let payload = self.payload(&vec![1; *len as usize]);
                DiskOp::Write { range: range(*start, *len), payload, fua: false }
            }
            Op::Flush => DiskOp::Flush,
            Op::Discard(sector, count) => DiskOp::Discard { range: sectors(*sector, *count) },
            Op::DiscardBytes(start, len) => DiskOp::Discard { range: range(*start, *len) },
            Op::WriteZeroes { sector, count, may_unmap, fua } => {
                DiskOp::WriteZeroes { range: sectors(*sector, *count), may_unmap: *may_unmap, fua: *fua }
            }
            Op::WriteZeroesBytes(start, len) => {
                DiskOp::WriteZeroes { range: range(*start, *len), may_unmap: true, fua: false }
            }
            Op::Metadata { pages, preflush, fua } => {
                let block = |(page, fill): &(u64, u8)| MetaBlock {
                    offset: METADATA_AT + page * BLOCK_BYTES as u64,
                    bytes: Box::new([*fill; BLOCK_BYTES]),
                };
                DiskOp::MetaWrite { blocks: pages.iter().map(block).collect(), preflush: *preflush, fua: *fua }
            }
        }
    }

    fn answer(&mut self, done: &Done) -> Result<Vec<u64>, Refused> {
        match done.result {
            Ok(()) => {}
            Err(IoError::Invalid) => return Err(Refused::Invalid),
            Err(error) => panic!("{error}"),
        }
        let Some(payload) = done.payload else { return Ok(Vec::new()) };
        let found = stamps_of(self.payloads.bytes_mut(payload));
        assert!(self.payloads.release(payload), "a read's buffer is the engine's alone");
        Ok(found)
    }
}

impl Device for Bench {
    fn size_bytes(&self) -> u64 {
        BYTES
    }
    fn logical_block_bytes(&self) -> u64 {
        u64::from(self.disks.open[&volume()].data.geometry().logical_block_bytes)
    }
    fn run(&mut self, batch: &[Op]) -> Vec<Result<Vec<u64>, Refused>> {
        let mut ios = Vec::new();
        for op in batch {
            let op = self.disk_op(op);
            let payload = match &op {
                DiskOp::Write { payload, .. } | DiskOp::ReadInto { payload, .. } => Some(*payload),
                _ => None,
            };
            ios.push(self.start(op));
            payload.into_iter().for_each(|payload| {
                self.payloads.release(payload);
            });
        }
        let mut answers: BTreeMap<IoId, _> = BTreeMap::new();
        while answers.len() < batch.len() {
            let done = self.next();
            let answer = self.answer(&done);
            assert!(answers.insert(done.io, answer).is_none(), "{done:?} was answered twice");
        }
        assert_eq!(self.payloads.allocated_bytes(), 0);
        ios.iter().map(|io| answers.remove(io).expect("one answer for each")).collect()
    }
    /// The page cache cannot be told to forget.
    fn lose_power(&mut self) -> bool {
        false
    }
    fn metadata(&mut self) -> Option<Vec<u8>> {
        Some(self.on_disk(METADATA_AT, 4 * BLOCK_BYTES).chunks(BLOCK_BYTES).map(|page| page[0]).collect())
    }
}

#[test]
fn passes_the_suite_of_the_stores() {
    conforms(&mut Bench::with_large_pool(), 3);
}
