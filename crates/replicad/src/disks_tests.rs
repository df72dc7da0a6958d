//! Disk operations against a file on a real ring.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use store::OpenOptions;

use super::*;

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
