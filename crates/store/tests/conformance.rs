//! The suite (`suite/mod.rs`) on the stores of this crate: in memory, io_uring on a file (direct and buffered), io_uring
//! on a loop device; and what only files and devices have: being opened, held and refused.
//!
//! The loop device needs root and losetup; without them its test says SKIPPED on stderr.

#[path = "suite/stamps.rs"]
mod stamps;
mod suite;

use std::path::Path;
use std::process::Command;

use io_uring::IoUring;
use stamps::{bytes_of, stamps_of};
use store::mem::MemStore;
use store::uring::{Completion, Running, interpret, prepare, start};
use store::{Backing, BufferPool, Kind, OpenOptions, StoreError, StoreErrorKind, StoreOp, sync};
use suite::{Device, Op, Refused, SECTOR, conforms};
use types::{ByteRange, PayloadId};

const DISK_BYTES: u64 = 8 << 20;
/// Of arbitrary operations. Each has some flushes, which cost milliseconds on a real disk.
const SEQUENCES: u64 = 3;

fn sectors(first: u64, count: u64) -> ByteRange {
    range(first * SECTOR, count * SECTOR)
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

fn refused(error: StoreError) -> Refused {
    match error.kind {
        StoreErrorKind::OutOfRange => Refused::OutOfRange,
        StoreErrorKind::Misaligned => Refused::Misaligned,
        _ => panic!("{error}"),
    }
}

struct Memory(MemStore);

impl Memory {
    fn run_one(&mut self, op: &Op) -> Result<Vec<u64>, StoreError> {
        let store = &mut self.0;
        let read = |store: &MemStore, range: ByteRange| {
            let mut bytes = vec![0xee; range.len() as usize];
            store.read(range, &mut bytes).map(|()| bytes)
        };
        let changed = match op {
            Op::Read(sector, count) => return read(store, sectors(*sector, *count)).map(|bytes| stamps_of(&bytes)),
            Op::ReadBytes(start, len) => return read(store, range(*start, *len)).map(|_| Vec::new()),
            Op::Write { sector, stamps, fua } => {
                store.write(sectors(*sector, stamps.len() as u64), &bytes_of(stamps), *fua)
            }
            Op::WriteBytes(start, len) => store.write(range(*start, *len), &vec![1; *len as usize], false),
            Op::Flush => store.flush(),
            Op::Discard(sector, count) => store.discard(sectors(*sector, *count)),
            Op::DiscardBytes(start, len) => store.discard(range(*start, *len)),
            Op::WriteZeroes { sector, count, fua, .. } => store.write_zeroes(sectors(*sector, *count), *fua),
            Op::WriteZeroesBytes(start, len) => store.write_zeroes(range(*start, *len), false),
            Op::Metadata { pages, preflush, fua } => unreachable!("no metadata here: {pages:?} {preflush} {fua}"),
        };
        changed.map(|()| Vec::new())
    }
}

impl Device for Memory {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES
    }
    fn logical_block_bytes(&self) -> u64 {
        u64::from(self.0.geometry().logical_block_bytes)
    }
    /// It has no way to be in flight: one after the other.
    fn run(&mut self, batch: &[Op]) -> Vec<Result<Vec<u64>, Refused>> {
        batch.iter().map(|op| self.run_one(op).map_err(refused)).collect()
    }
    fn lose_power(&mut self) -> bool {
        self.0.power_cut(|_| false);
        true
    }
    fn metadata(&mut self) -> Option<Vec<u8>> {
        None
    }
}

/// A ring as the daemon's loop drives it: all of a batch is with the kernel together.
struct RingDisk {
    backing: Backing,
    ring: IoUring,
    pool: BufferPool,
}

impl RingDisk {
    fn new(path: &Path, direct: bool) -> RingDisk {
        let backing = Backing::open(path, OpenOptions { direct, ..OpenOptions::SERVE }).unwrap();
        assert_eq!(backing.size_bytes(), DISK_BYTES);
        RingDisk { backing, ring: IoUring::new(32).unwrap(), pool: BufferPool::new(4 << 20).unwrap() }
    }

    /// The operation and its buffer, filled with what is to be written.
    fn store_op(&mut self, op: &Op) -> (StoreOp, Option<PayloadId>) {
        let mut buffer = |bytes: &[u8]| {
            // A refused operation may be of no bytes; a buffer never is.
            let payload = self.pool.try_alloc(bytes.len().max(1)).unwrap();
            self.pool.bytes_mut(payload)[..bytes.len()].copy_from_slice(bytes);
            (self.pool.span(payload).first(bytes.len()), Some(payload))
        };
        match op {
            Op::Read(sector, count) => {
                let (into, payload) = buffer(&vec![0xee; (count * SECTOR) as usize]);
                (StoreOp::Read { range: sectors(*sector, *count), into: into.into() }, payload)
            }
            Op::ReadBytes(start, len) => {
                let (into, payload) = buffer(&vec![0xee; *len as usize]);
                (StoreOp::Read { range: range(*start, *len), into: into.into() }, payload)
            }
            Op::Write { sector, stamps, fua } => {
                let (from, payload) = buffer(&bytes_of(stamps));
                (StoreOp::Write { range: sectors(*sector, stamps.len() as u64), from, fua: *fua }, payload)
            }
            Op::WriteBytes(start, len) => {
                let (from, payload) = buffer(&vec![1; *len as usize]);
                (StoreOp::Write { range: range(*start, *len), from, fua: false }, payload)
            }
            Op::Flush => (StoreOp::Flush, None),
            Op::Discard(sector, count) => (StoreOp::Discard { range: sectors(*sector, *count) }, None),
            Op::DiscardBytes(start, len) => (StoreOp::Discard { range: range(*start, *len) }, None),
            Op::WriteZeroes { sector, count, may_unmap, fua } => {
                let range = sectors(*sector, *count);
                (StoreOp::WriteZeroes { range, may_unmap: *may_unmap, fua: *fua }, None)
            }
            Op::WriteZeroesBytes(start, len) => {
                (StoreOp::WriteZeroes { range: range(*start, *len), may_unmap: true, fua: false }, None)
            }
            Op::Metadata { pages, preflush, fua } => unreachable!("no metadata here: {pages:?} {preflush} {fua}"),
        }
    }

    fn push(&mut self, running: &Running, tag: usize) {
        let entry = prepare(&self.backing, running).user_data(tag as u64);
        // SAFETY: the payload lives in `self.pool` and is not looked at before the completion of this tag.
        unsafe { self.ring.submission().push(&entry).unwrap() };
    }

    /// Until all of `running` are through.
    fn complete(&mut self, mut running: Vec<Option<Running>>) -> Vec<Result<(), StoreError>> {
        let mut results: Vec<_> = running.iter().map(|_| Ok(())).collect();
        while running.iter().any(Option::is_some) {
            self.ring.submit_and_wait(1).unwrap();
            let done: Vec<_> = self.ring.completion().map(|c| (c.user_data() as usize, c.result())).collect();
            for (tag, result) in done {
                let was = running[tag].take().expect("in flight");
                match interpret(&self.backing, &was, result) {
                    Completion::Done => {}
                    Completion::Again(next) => {
                        self.push(&next, tag);
                        running[tag] = Some(next);
                    }
                    Completion::Failed(error) => results[tag] = Err(error),
                }
            }
        }
        results
    }
}

impl Device for RingDisk {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES
    }
    fn logical_block_bytes(&self) -> u64 {
        u64::from(self.backing.geometry().logical_block_bytes)
    }
    fn run(&mut self, batch: &[Op]) -> Vec<Result<Vec<u64>, Refused>> {
        let (mut running, mut payloads, mut refusals) = (Vec::new(), Vec::new(), Vec::new());
        for (tag, op) in batch.iter().enumerate() {
            let (store_op, payload) = self.store_op(op);
            let started = start(&self.backing, store_op);
            if let Ok(first) = &started {
                self.push(first, tag);
            }
            let (first, refusal) = started.map_or_else(|e| (None, Some(e)), |first| (Some(first), None));
            running.push(first);
            refusals.push(refusal);
            payloads.push(payload);
        }
        let results = self.complete(running);
        let mut answers = Vec::new();
        for ((op, result), (payload, refusal)) in batch.iter().zip(results).zip(payloads.into_iter().zip(refusals)) {
            let found = match (op, payload) {
                (Op::Read(_, count), Some(payload)) => self.pool.bytes(payload)[..(count * SECTOR) as usize].to_vec(),
                _ => Vec::new(),
            };
            payload.into_iter().for_each(|payload| self.pool.free(payload));
            let result = refusal.map_or(result, Err);
            answers.push(result.map(|()| stamps_of(&found)).map_err(refused));
        }
        answers
    }
    /// The page cache cannot be told to forget.
    fn lose_power(&mut self) -> bool {
        false
    }
    fn metadata(&mut self) -> Option<Vec<u8>> {
        None
    }
}

fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(DISK_BYTES).unwrap();
    file
}

#[test]
fn memory() {
    conforms(&mut Memory(MemStore::new(DISK_BYTES, 512)), 40);
    conforms(&mut Memory(MemStore::new(DISK_BYTES, 4096)), 40);
}

#[test]
fn file_direct() {
    let file = image();
    let mut disk = RingDisk::new(file.path(), true);
    eprintln!("direct I/O on {}: {}", file.path().display(), disk.backing.is_direct());
    conforms(&mut disk, SEQUENCES);
}

#[test]
fn file_buffered() {
    let file = image();
    let mut disk = RingDisk::new(file.path(), false);
    assert!(!disk.backing.is_direct());
    conforms(&mut disk, SEQUENCES);
}

/// tmpfs knows PUNCH_HOLE but not ZERO_RANGE: the way down to written zeroes is walked for real.
#[test]
fn file_on_tmpfs() {
    let Ok(file) = tempfile::NamedTempFile::new_in("/dev/shm") else {
        eprintln!("SKIPPED file_on_tmpfs: /dev/shm is not writable");
        return;
    };
    file.as_file().set_len(DISK_BYTES).unwrap();
    conforms(&mut RingDisk::new(file.path(), true), SEQUENCES);
}

/// A loop device over `file`, detached on drop.
struct Loop(String);

impl Loop {
    /// `None`, loudly, where the machine cannot.
    fn over(file: &Path, test: &str) -> Option<Loop> {
        let out = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match out {
            Ok(out) if out.status.success() => Some(Loop(String::from_utf8(out.stdout).unwrap().trim().to_owned())),
            Ok(out) => {
                eprintln!("SKIPPED {test}: losetup: {}", String::from_utf8_lossy(&out.stderr).trim());
                None
            }
            Err(e) => {
                eprintln!("SKIPPED {test}: losetup: {e} (Debian package: mount)");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(detached.is_ok_and(|s| s.success()), "losetup --detach {} failed", self.0);
    }
}

#[test]
fn loop_device() {
    let file = image();
    let Some(device) = Loop::over(file.path(), "loop_device") else { return };
    let mut disk = RingDisk::new(Path::new(&device.0), true);
    assert_eq!(disk.backing.kind(), Kind::BlockDevice);
    assert!(disk.backing.is_direct());
    conforms(&mut disk, SEQUENCES);
}

#[test]
fn a_held_block_device_is_refused_with_its_holder() {
    let name = "a_held_block_device_is_refused_with_its_holder";
    let file = image();
    let Some(device) = Loop::over(file.path(), name) else { return };
    let path = Path::new(&device.0);
    let first = Backing::open(path, OpenOptions::SERVE).unwrap();
    let second = Backing::open(path, OpenOptions::SERVE).unwrap_err();
    assert_eq!(second.kind, StoreErrorKind::InUse, "{second}");
    Backing::open(path, OpenOptions::INSPECT).expect("a look does not need exclusive use");
    drop(first);

    let made = Command::new("mkfs.ext4").args(["-q", "-F", &device.0]).output();
    let place = tempfile::tempdir().unwrap();
    let mounted = made.is_ok_and(|o| o.status.success())
        && Command::new("mount").arg(&device.0).arg(place.path()).status().is_ok_and(|s| s.success());
    if !mounted {
        eprintln!("SKIPPED the mounted half of {name}: mkfs.ext4 or mount does not work (Debian: e2fsprogs, mount)");
        return;
    }
    let refused = Backing::open(path, OpenOptions::SERVE);
    let unmounted = Command::new("umount").arg(place.path()).status();
    assert!(unmounted.is_ok_and(|s| s.success()), "umount {}", place.path().display());
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::InUse);
    let expected = format!("mounted on {}", place.path().display());
    assert!(refused.to_string().contains(&expected), "{refused}");
}

#[test]
fn a_locked_file_is_refused_with_its_owner() {
    let file = image();
    let first = Backing::open(file.path(), OpenOptions::SERVE).unwrap();
    let second = Backing::open(file.path(), OpenOptions::SERVE).unwrap_err();
    assert_eq!(second.kind, StoreErrorKind::InUse);
    assert!(second.to_string().contains(&format!("process {}", std::process::id())), "{second}");
    drop(first);
    Backing::open(file.path(), OpenOptions::SERVE).unwrap();
}

#[test]
fn what_cannot_be_opened_is_refused_by_kind() {
    let folder = tempfile::tempdir().unwrap();
    let kind = |path: &Path| Backing::open(path, OpenOptions::SERVE).unwrap_err().kind;
    assert_eq!(kind(&folder.path().join("missing")), StoreErrorKind::NotFound);
    assert_eq!(kind(folder.path()), StoreErrorKind::NotADisk);
    assert_eq!(kind(Path::new("/dev/null")), StoreErrorKind::NotADisk);
}

#[test]
fn blocking_helpers_move_all_bytes_or_fail() {
    let file = image();
    let disk = Backing::open(file.path(), OpenOptions::SERVE).unwrap();
    let mut block = sync::Aligned::zeroed(8192);
    block.copy_from_slice(&bytes_of(&(1..=16).collect::<Vec<u64>>()));
    sync::write_all_at(&disk, 4096, &block).unwrap();
    sync::flush(&disk).unwrap();
    let mut back = sync::Aligned::zeroed(8192);
    sync::read_exact_at(&disk, 4096, &mut back).unwrap();
    assert_eq!(back[..], block[..]);
    let beyond = sync::read_exact_at(&disk, u64::MAX - 10, &mut back).unwrap_err();
    assert_eq!(beyond.kind, StoreErrorKind::OutOfRange);
    drop(disk);
    let looked = Backing::open(file.path(), OpenOptions::INSPECT).unwrap();
    assert_eq!(sync::write_all_at(&looked, 0, &block).unwrap_err().kind, StoreErrorKind::ReadOnly);
}
