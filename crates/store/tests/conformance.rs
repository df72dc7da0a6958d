//! One suite that every store passes: in memory, io_uring on a file (direct and buffered), io_uring on a loop device.
//!
//! The loop device needs root and losetup; without them its test says SKIPPED on stderr.

use std::path::Path;
use std::process::Command;

use io_uring::IoUring;
use store::mem::MemStore;
use store::uring::{Completion, interpret, prepare, start};
use store::{Backing, BufferPool, Kind, OpenOptions, StoreError, StoreErrorKind, StoreOp, sync};
use types::ByteRange;

const DISK_BYTES: u64 = 8 << 20;
/// Every store here takes this unit, whatever its logical block.
const BLOCK: u64 = 4096;

trait Disk {
    fn read(&mut self, range: ByteRange) -> Result<Vec<u8>, StoreError>;
    fn write(&mut self, range: ByteRange, bytes: &[u8], fua: bool) -> Result<(), StoreError>;
    fn flush(&mut self) -> Result<(), StoreError>;
    fn discard(&mut self, range: ByteRange) -> Result<(), StoreError>;
    fn write_zeroes(&mut self, range: ByteRange, may_unmap: bool, fua: bool) -> Result<(), StoreError>;
    fn logical_block_bytes(&self) -> u64;
}

impl Disk for MemStore {
    fn read(&mut self, range: ByteRange) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0xee; range.len() as usize];
        MemStore::read(self, range, &mut bytes).map(|()| bytes)
    }
    fn write(&mut self, range: ByteRange, bytes: &[u8], fua: bool) -> Result<(), StoreError> {
        MemStore::write(self, range, bytes, fua)
    }
    fn flush(&mut self) -> Result<(), StoreError> {
        MemStore::flush(self)
    }
    fn discard(&mut self, range: ByteRange) -> Result<(), StoreError> {
        MemStore::discard(self, range)
    }
    fn write_zeroes(&mut self, range: ByteRange, _may_unmap: bool, fua: bool) -> Result<(), StoreError> {
        MemStore::write_zeroes(self, range, fua)
    }
    fn logical_block_bytes(&self) -> u64 {
        u64::from(self.geometry().logical_block_bytes)
    }
}

/// A ring that waits for each operation: what the daemon's loop does, one at a time.
struct RingDisk {
    backing: Backing,
    ring: IoUring,
    pool: BufferPool,
}

impl RingDisk {
    fn new(path: &Path, direct: bool) -> RingDisk {
        let backing = Backing::open(path, OpenOptions { direct, ..OpenOptions::SERVE }).unwrap();
        assert_eq!(backing.size_bytes(), DISK_BYTES);
        RingDisk { backing, ring: IoUring::new(4).unwrap(), pool: BufferPool::new(1 << 20).unwrap() }
    }

    fn run(&mut self, op: StoreOp) -> Result<(), StoreError> {
        let mut running = start(&self.backing, op)?;
        loop {
            let entry = prepare(&self.backing, &running).user_data(7);
            // SAFETY: the payload lives in `self.pool`, untouched until the completion below.
            unsafe { self.ring.submission().push(&entry).unwrap() };
            self.ring.submit_and_wait(1).unwrap();
            let done = self.ring.completion().next().unwrap();
            assert_eq!(done.user_data(), 7);
            match interpret(&self.backing, &running, done.result()) {
                Completion::Done => return Ok(()),
                Completion::Again(next) => running = next,
                Completion::Failed(error) => return Err(error),
            }
        }
    }
}

impl Disk for RingDisk {
    fn read(&mut self, range: ByteRange) -> Result<Vec<u8>, StoreError> {
        let payload = self.pool.try_alloc(range.len() as usize).unwrap();
        self.pool.bytes_mut(payload).fill(0xee);
        let result = self.run(StoreOp::Read { range, into: self.pool.span(payload) });
        let bytes = self.pool.bytes(payload).to_vec();
        self.pool.free(payload);
        result.map(|()| bytes)
    }
    fn write(&mut self, range: ByteRange, bytes: &[u8], fua: bool) -> Result<(), StoreError> {
        let payload = self.pool.try_alloc(bytes.len()).unwrap();
        self.pool.bytes_mut(payload).copy_from_slice(bytes);
        let result = self.run(StoreOp::Write { range, from: self.pool.span(payload), fua });
        self.pool.free(payload);
        result
    }
    fn flush(&mut self) -> Result<(), StoreError> {
        self.run(StoreOp::Flush)
    }
    fn discard(&mut self, range: ByteRange) -> Result<(), StoreError> {
        self.run(StoreOp::Discard { range })
    }
    fn write_zeroes(&mut self, range: ByteRange, may_unmap: bool, fua: bool) -> Result<(), StoreError> {
        self.run(StoreOp::WriteZeroes { range, may_unmap, fua })
    }
    fn logical_block_bytes(&self) -> u64 {
        u64::from(self.backing.geometry().logical_block_bytes)
    }
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

/// Bytes that differ from block to block and from `seed` to `seed`.
fn pattern(seed: u8, len: u64) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_add((i / 512) as u8).wrapping_mul(31) ^ i as u8).collect()
}

fn conforms(disk: &mut dyn Disk) {
    content(disk);
    zeroes(disk);
    refusals(disk);
}

fn content(disk: &mut dyn Disk) {
    assert_eq!(disk.read(range(0, BLOCK)).unwrap(), vec![0; BLOCK as usize], "a fresh disk");
    let large = pattern(1, 1 << 20);
    disk.write(range(BLOCK, 1 << 20), &large, false).unwrap();
    assert_eq!(disk.read(range(BLOCK, 1 << 20)).unwrap(), large);
    let small = pattern(2, BLOCK);
    disk.write(range(3 * BLOCK, BLOCK), &small, true).unwrap();
    disk.flush().unwrap();
    assert_eq!(disk.read(range(3 * BLOCK, BLOCK)).unwrap(), small, "overwritten");
    assert_eq!(disk.read(range(2 * BLOCK, BLOCK)).unwrap(), large[BLOCK as usize..2 * BLOCK as usize], "before");
    assert_eq!(disk.read(range(4 * BLOCK, BLOCK)).unwrap(), large[3 * BLOCK as usize..4 * BLOCK as usize], "after");
    let unit = disk.logical_block_bytes();
    let tiny = pattern(3, unit);
    disk.write(range(DISK_BYTES - unit, unit), &tiny, false).unwrap();
    assert_eq!(disk.read(range(DISK_BYTES - unit, unit)).unwrap(), tiny, "the last block");
}

fn zeroes(disk: &mut dyn Disk) {
    let old = pattern(9, 16 * BLOCK);
    let zero = vec![0; 4 * BLOCK as usize];
    type Zeroing = fn(&mut dyn Disk, ByteRange) -> Result<(), StoreError>;
    let ways: [(&str, Zeroing); 4] = [
        ("discard", |d, r| d.discard(r)),
        ("write zeroes, unmap", |d, r| d.write_zeroes(r, true, false)),
        ("write zeroes, keep", |d, r| d.write_zeroes(r, false, false)),
        ("write zeroes, fua", |d, r| d.write_zeroes(r, true, true)),
    ];
    for (name, way) in ways {
        disk.write(range(2 << 20, 16 * BLOCK), &old, false).unwrap();
        let middle = range((2 << 20) + 4 * BLOCK, 4 * BLOCK);
        way(disk, middle).unwrap();
        assert_eq!(disk.read(middle).unwrap(), zero, "{name}");
        let before = disk.read(range(2 << 20, 4 * BLOCK)).unwrap();
        assert_eq!(before, old[..4 * BLOCK as usize], "{name}: the range before");
        let after = disk.read(range((2 << 20) + 8 * BLOCK, 8 * BLOCK)).unwrap();
        assert_eq!(after, old[8 * BLOCK as usize..], "{name}: the range after");
    }
}

fn refusals(disk: &mut dyn Disk) {
    let bytes = pattern(5, BLOCK);
    let beyond = [range(DISK_BYTES, BLOCK), range(DISK_BYTES + (1 << 40), BLOCK)];
    for r in beyond {
        assert_eq!(disk.write(r, &bytes, false).unwrap_err().kind, StoreErrorKind::OutOfRange);
        assert_eq!(disk.read(r).unwrap_err().kind, StoreErrorKind::OutOfRange);
        assert_eq!(disk.discard(r).unwrap_err().kind, StoreErrorKind::OutOfRange);
        assert_eq!(disk.write_zeroes(r, true, false).unwrap_err().kind, StoreErrorKind::OutOfRange);
    }
    assert_eq!(disk.discard(range(DISK_BYTES - BLOCK, 2 * BLOCK)).unwrap_err().kind, StoreErrorKind::OutOfRange);
    assert_eq!(disk.discard(range(0, 0)).unwrap_err().kind, StoreErrorKind::OutOfRange);
    assert_eq!(disk.write(range(100, BLOCK), &bytes, false).unwrap_err().kind, StoreErrorKind::Misaligned);
    assert_eq!(disk.read(range(0, 100)).unwrap_err().kind, StoreErrorKind::Misaligned);
    assert_eq!(disk.write_zeroes(range(256, 512), true, false).unwrap_err().kind, StoreErrorKind::Misaligned);
}

fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(DISK_BYTES).unwrap();
    file
}

#[test]
fn memory() {
    conforms(&mut MemStore::new(DISK_BYTES, 512));
    conforms(&mut MemStore::new(DISK_BYTES, 4096));
}

#[test]
fn file_direct() {
    let file = image();
    let mut disk = RingDisk::new(file.path(), true);
    eprintln!("direct I/O on {}: {}", file.path().display(), disk.backing.is_direct());
    conforms(&mut disk);
}

#[test]
fn file_buffered() {
    let file = image();
    let mut disk = RingDisk::new(file.path(), false);
    assert!(!disk.backing.is_direct());
    conforms(&mut disk);
}

/// tmpfs knows PUNCH_HOLE but not ZERO_RANGE: the way down to written zeroes is walked for real.
#[test]
fn file_on_tmpfs() {
    let Ok(file) = tempfile::NamedTempFile::new_in("/dev/shm") else {
        eprintln!("SKIPPED file_on_tmpfs: /dev/shm is not writable");
        return;
    };
    file.as_file().set_len(DISK_BYTES).unwrap();
    conforms(&mut RingDisk::new(file.path(), true));
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
    conforms(&mut disk);
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
    block.copy_from_slice(&pattern(4, 8192));
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
