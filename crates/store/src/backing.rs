//! One open file or block device: its geometry, and the proof that nobody else uses it.
//!
//! Exclusive use is O_EXCL on a block device (the kernel refuses what is mounted or held by another device) and
//! `flock` on a regular file. Both end when the `Backing` is dropped or the process dies.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{AtFlags, FlockOperation, StatxFlags};
use types::{BlockLimits, ByteRange};

use crate::buffers::PAYLOAD_BYTES_MAX;
use crate::device::{self, DeviceNumber};
use crate::error::{Operation, StoreError, StoreErrorKind};
use crate::op;

/// Smallest unit for a regular file that takes buffered I/O. Bytes; the unit of the block layer.
const FILE_BLOCK_BYTES: u32 = 512;

/// File systems in memory, from linux/magic.h.
const MEMORY_FILE_SYSTEMS: [i64; 2] = [libc::TMPFS_MAGIC, 0x8584_58f6];

/// How to open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenOptions {
    pub read_only: bool,
    /// Refuse a disk that somebody else uses, and keep others from using it. A read-only exclusive user of a regular
    /// file tolerates other readers.
    pub exclusive: bool,
    /// Bypass the page cache where the file system can; [`Backing::is_direct`] tells the outcome. Offsets, lengths
    /// and addresses must then be multiples of the logical block.
    pub direct: bool,
}

impl OpenOptions {
    /// As the daemon opens a backing disk.
    pub const SERVE: OpenOptions = OpenOptions { read_only: false, exclusive: true, direct: true };
    /// As a tool looks at a disk that may be in use.
    pub const INSPECT: OpenOptions = OpenOptions { read_only: true, exclusive: false, direct: false };
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    BlockDevice,
    RegularFile,
}

/// What the disk can do and in which units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    pub size_bytes: u64,
    /// Unit of every start and length. Bytes, power of two.
    pub logical_block_bytes: u32,
    /// Unit that is written without read-modify-write. Bytes, power of two, >= logical.
    pub physical_block_bytes: u32,
    /// Discards give storage back.
    pub discard: bool,
    /// Bytes, 0 if discard is off.
    pub discard_granularity_bytes: u32,
    /// Bytes, 0 if discard is off.
    pub discard_bytes_max: u64,
    /// Completed writes may be lost at a power cut until flushed.
    pub volatile_cache: bool,
}

impl Geometry {
    /// What a frontend may ask of a volume on this disk alone. A discard that the disk cannot do is written as zeroes,
    /// which costs more than it gives back: it is offered only where the disk discards. Zeroes can always be written.
    pub fn limits(&self) -> BlockLimits {
        let most = BlockLimits::default().discard_bytes_max;
        let discard_bytes_max = u32::try_from(self.discard_bytes_max).unwrap_or(most).min(most);
        BlockLimits {
            logical_block_bytes: self.logical_block_bytes,
            physical_block_bytes: self.physical_block_bytes,
            io_bytes_max: PAYLOAD_BYTES_MAX as u32,
            discard: self.discard,
            discard_bytes_max: if self.discard { discard_bytes_max } else { most },
            discard_granularity_bytes: self.discard_granularity_bytes,
            volatile_cache: self.volatile_cache,
        }
    }
}

/// An open disk.
#[derive(Debug)]
pub struct Backing {
    file: File,
    path: Arc<Path>,
    kind: Kind,
    geometry: Geometry,
    read_only: bool,
    direct: bool,
    in_memory: bool,
    /// Learned from refusals: saves one failing system call per operation on disks that cannot.
    pub(crate) punch_hole: AtomicBool,
    pub(crate) zero_range: AtomicBool,
}

impl Backing {
    /// Opens `path`. Errors: `NotFound`, `PermissionDenied`, `NotADisk`, `ReadOnly`, `InUse` (naming who), `Io`.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Backing, StoreError> {
        let path: Arc<Path> = Arc::from(path.as_ref());
        let kind = kind_of(&path)?;
        let (file, mut direct) = open_file(&path, kind, options)?;
        if options.exclusive && kind == Kind::RegularFile {
            lock(&file, &path, options.read_only)?;
        }
        let inspect = |e: io::Error| StoreError::failed(Operation::Inspect, None, &path, e);
        let geometry = match kind {
            Kind::BlockDevice => device_geometry(&file).map_err(inspect)?,
            Kind::RegularFile => file_geometry(&file, &mut direct).map_err(inspect)?,
        };
        let in_memory = kind == Kind::RegularFile && is_in_memory(&file).map_err(inspect)?;
        let (punch_hole, zero_range) = (AtomicBool::new(true), AtomicBool::new(true));
        let read_only = options.read_only;
        Ok(Backing { file, path, kind, geometry, read_only, direct, in_memory, punch_hole, zero_range })
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }
    pub fn size_bytes(&self) -> u64 {
        self.geometry.size_bytes
    }
    pub fn kind(&self) -> Kind {
        self.kind
    }
    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }
    /// A file of tmpfs or ramfs: nothing waits for a disk.
    pub fn is_in_memory(&self) -> bool {
        self.in_memory
    }
    /// The page cache is bypassed. `false` also where it was asked for but the file system cannot.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Looks at the size again, after the disk below was resized. Operations are checked against the new size from
    /// here on.
    pub fn refresh_size(&mut self) -> Result<u64, StoreError> {
        let size = size_of(&self.file).map_err(|e| StoreError::failed(Operation::Inspect, None, &self.path, e))?;
        self.geometry.size_bytes = size;
        Ok(size)
    }

    pub(crate) fn check(&self, operation: Operation, range: Option<ByteRange>) -> Result<(), StoreError> {
        op::check(&self.geometry, self.read_only, operation, range, &self.path)
    }
    pub(crate) fn shared_path(&self) -> &Arc<Path> {
        &self.path
    }
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
    pub(crate) fn may(flag: &AtomicBool) -> bool {
        flag.load(Relaxed)
    }
    pub(crate) fn cannot(flag: &AtomicBool) {
        flag.store(false, Relaxed);
    }
}

impl Drop for Backing {
    /// Closing is not enough to give up a lock: a child between fork and exec still shares the open file.
    fn drop(&mut self) {
        if self.kind == Kind::RegularFile {
            // A file that was never locked is no error here, and there is nobody to tell.
            let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
        }
    }
}

impl AsFd for Backing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
impl AsRawFd for Backing {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn kind_of(path: &Arc<Path>) -> Result<Kind, StoreError> {
    let meta = std::fs::metadata(path).map_err(|e| StoreError::failed(Operation::Open, None, path, e))?;
    if meta.file_type().is_block_device() {
        return Ok(Kind::BlockDevice);
    }
    if meta.file_type().is_file() {
        return Ok(Kind::RegularFile);
    }
    let detail = "it is neither a block device nor a regular file; check the path".to_owned();
    Err(StoreError::refused(StoreErrorKind::NotADisk, Operation::Open, None, path, detail))
}

/// Opens with O_DIRECT first if asked for, without where the file system refuses (EINVAL).
fn open_file(path: &Arc<Path>, kind: Kind, options: OpenOptions) -> Result<(File, bool), StoreError> {
    // O_NONBLOCK would matter for tapes and FIFOs only: `kind_of` refused them.
    let exclusive = if options.exclusive && kind == Kind::BlockDevice { libc::O_EXCL } else { 0 };
    let attempt = |flags| {
        std::fs::OpenOptions::new().read(true).write(!options.read_only).custom_flags(flags | exclusive).open(path)
    };
    let opened = match options.direct {
        true => match attempt(libc::O_DIRECT) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => attempt(0).map(|f| (f, false)),
            other => other.map(|f| (f, true)),
        },
        false => attempt(0).map(|f| (f, false)),
    };
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => {
            let holder = std::fs::metadata(path).ok().and_then(|m| device::holder(DeviceNumber::from_raw(m.rdev())));
            let detail = holder.unwrap_or_else(|| "another process has opened it exclusively".to_owned());
            StoreError::refused(StoreErrorKind::InUse, Operation::Open, None, path, detail)
        }
        _ => StoreError::failed(Operation::Open, None, path, source),
    })
}

fn lock(file: &File, path: &Arc<Path>, shared: bool) -> Result<(), StoreError> {
    let how = if shared { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
    let Err(error) = rustix::fs::flock(file, how) else { return Ok(()) };
    if error != rustix::io::Errno::WOULDBLOCK {
        return Err(StoreError::failed(Operation::Lock, None, path, error.into()));
    }
    let owner = file.metadata().ok().and_then(|m| device::lock_owner(DeviceNumber::from_raw(m.dev()), m.ino()));
    let detail = owner.unwrap_or_else(|| "another process has locked it".to_owned());
    Err(StoreError::refused(StoreErrorKind::InUse, Operation::Lock, None, path, detail))
}

fn is_in_memory(file: &File) -> io::Result<bool> {
    Ok(MEMORY_FILE_SYSTEMS.contains(&rustix::fs::fstatfs(file)?.f_type))
}

/// Works for both kinds: the end of a block device is its size.
fn size_of(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?)
}

fn device_geometry(file: &File) -> io::Result<Geometry> {
    let logical = rustix::fs::ioctl_blksszget(file)?;
    let physical = rustix::fs::ioctl_blkpbszget(file)?;
    let queue = device::queue_of(DeviceNumber::from_raw(file.metadata()?.rdev()));
    let discard_bytes_max = queue.number("discard_max_bytes").unwrap_or(0);
    let discard = discard_bytes_max > 0;
    let granularity = queue.number("discard_granularity").and_then(|g| u32::try_from(g).ok()).unwrap_or(logical);
    // A device that does not say counts as volatile: a flush too many is slow, one too few loses data.
    let volatile_cache = queue.text("write_cache").is_none_or(|w| w != "write through");
    Ok(Geometry {
        size_bytes: size_of(file)?,
        logical_block_bytes: logical,
        physical_block_bytes: physical.max(logical),
        discard,
        discard_granularity_bytes: if discard { granularity.max(logical) } else { 0 },
        discard_bytes_max,
        volatile_cache,
    })
}

/// A file system may take O_DIRECT at open and refuse it at the first read: `direct` is corrected from statx.
fn file_geometry(file: &File, direct: &mut bool) -> io::Result<Geometry> {
    let statx = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN)?;
    let told = statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    let align = match (told, statx.stx_dio_offset_align.max(statx.stx_dio_mem_align)) {
        (true, 0) => {
            drop_direct(file, direct)?;
            FILE_BLOCK_BYTES
        }
        (true, align) if *direct => align.max(FILE_BLOCK_BYTES),
        // Kernels before 6.1 do not tell: the file system's block is aligned enough for every disk below it.
        (false, _) if *direct => statx.stx_blksize.clamp(FILE_BLOCK_BYTES, 4096),
        _ => FILE_BLOCK_BYTES,
    };
    Ok(Geometry {
        size_bytes: statx.stx_size,
        logical_block_bytes: align,
        physical_block_bytes: align.max(4096),
        discard: true,
        discard_granularity_bytes: statx.stx_blksize.next_power_of_two().max(4096),
        discard_bytes_max: u64::MAX,
        volatile_cache: true,
    })
}

fn drop_direct(file: &File, direct: &mut bool) -> io::Result<()> {
    if *direct {
        let flags = rustix::fs::fcntl_getfl(file)?;
        rustix::fs::fcntl_setfl(file, flags - rustix::fs::OFlags::DIRECT)?;
        *direct = false;
    }
    Ok(())
}

/// Both paths lead to one disk: through links, or by two names of one device number.
pub fn same_disk(a: &Path, b: &Path) -> bool {
    let identity = |p: &Path| -> Option<(bool, u64, u64)> {
        let m = std::fs::metadata(p).ok()?;
        let block = m.file_type().is_block_device();
        Some(if block { (true, m.rdev(), 0) } else { (false, m.dev(), m.ino()) })
    };
    match (identity(a), identity(b)) {
        (Some(x), Some(y)) => x == y,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_disk_has_many_names() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, link, other) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
        std::fs::write(&disk, [0; 512]).unwrap();
        std::fs::write(&other, [0; 512]).unwrap();
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        assert!(same_disk(&disk, &link));
        assert!(!same_disk(&disk, &other));
        assert!(!same_disk(&disk, &folder.path().join("missing")));
    }

    #[test]
    fn a_file_offers_discard_and_needs_flushes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let mut backing = Backing::open(file.path(), OpenOptions { direct: false, ..OpenOptions::SERVE }).unwrap();
        let limits = backing.geometry().limits();
        assert_eq!((limits.logical_block_bytes, limits.physical_block_bytes), (512, 4096));
        assert!(limits.discard && limits.volatile_cache && limits.discard_bytes_max > 0);
        file.as_file().set_len(2 << 20).unwrap();
        assert_eq!(backing.size_bytes(), 1 << 20);
        assert_eq!(backing.refresh_size().unwrap(), 2 << 20);
        assert_eq!(backing.size_bytes(), 2 << 20);
    }

    #[test]
    fn a_disk_that_cannot_discard_still_takes_zeroes() {
        let geometry = Geometry {
            size_bytes: 1 << 30,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            discard: false,
            discard_granularity_bytes: 0,
            discard_bytes_max: 0,
            volatile_cache: true,
        };
        let limits = geometry.limits();
        assert!(!limits.discard);
        assert_eq!(limits.discard_bytes_max, BlockLimits::default().discard_bytes_max, "bounds write-zeroes, too");
        let small = Geometry { discard: true, discard_bytes_max: 1 << 20, ..geometry };
        assert_eq!(small.limits().discard_bytes_max, 1 << 20);
    }
}
