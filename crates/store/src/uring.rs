//! Operations as io_uring entries, and results as what happens next.
//!
//! The driver's part: `prepare`, tag the entry with `user_data`, push it, keep the [`StoreOp`] until the completion,
//! `interpret`. On [`Completion::Again`] prepare that operation and push it under the same tag. It stands for the
//! rest of a short transfer, for a retry, for the flush behind a zeroing with FUA, and for the next best way of a
//! discard or zeroing that this disk cannot do; the driver needs not know which.
//!
//! Ways, best first: unmap (PUNCH_HOLE, which on a block device also means "and read zeroes"), ZERO_RANGE, writing
//! zeroes. A refused way is remembered in the [`Backing`].

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::slice;

use io_uring::{opcode, squeue, types as ring};
use rustix::io::ReadWriteFlags;
use types::ByteRange;

use crate::backing::Backing;
use crate::error::{StoreError, StoreErrorKind};
use crate::op::{Place, StoreOp};

/// Retries without progress before an operation fails. A signal or a full queue passes; a disk that says "try again"
/// a hundred times does not work.
const RETRIES_MAX: u8 = 100;

/// What is longer is the worker's, while our thread sends the same bytes to the peers.
const AT_ONCE_BYTES_MAX: u64 = 16 << 10;

/// Source of zeroes where neither unmapping nor ZERO_RANGE works. Bytes; larger means fewer rounds and a larger binary.
const ZEROES_BYTES: usize = 64 << 10;
#[repr(align(4096))]
struct Zeroes([u8; ZEROES_BYTES]);
static ZEROES: Zeroes = Zeroes([0; ZEROES_BYTES]);

/// An operation in flight: what the caller asked for and how far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Running {
    op: StoreOp,
    step: Step,
    retries: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Transfer,
    Sync,
    PunchHole,
    ZeroRange,
    WriteZeroes,
}

impl Running {
    pub const fn op(&self) -> StoreOp {
        self.op
    }
}

/// What a result means.
#[derive(Debug)]
pub enum Completion {
    /// All bytes moved; durable if that was asked for.
    Done,
    /// Not finished: prepare and push this.
    Again(Running),
    Failed(StoreError),
}

/// Checks the operation against the disk and decides how to do it. The error is final: nothing was submitted.
pub fn start(backing: &Backing, op: StoreOp) -> Result<Running, StoreError> {
    backing.check(op.operation(), op.range())?;
    let transfer = match op {
        StoreOp::Read { range, into } => Some((range, into.len())),
        StoreOp::Write { range, from, .. } => Some((range, from.len())),
        StoreOp::Flush | StoreOp::Discard { .. } | StoreOp::WriteZeroes { .. } => None,
    };
    if let Some((range, len)) = transfer {
        assert_eq!(range.len(), len as u64, "{op:?}: range and buffer differ");
    }
    let step = match op {
        StoreOp::Read { .. } | StoreOp::Write { .. } => Step::Transfer,
        StoreOp::Flush => Step::Sync,
        StoreOp::Discard { .. } | StoreOp::WriteZeroes { may_unmap: true, .. } => best_way(backing),
        StoreOp::WriteZeroes { .. } if Backing::may(&backing.zero_range) => Step::ZeroRange,
        StoreOp::WriteZeroes { .. } => Step::WriteZeroes,
    };
    Ok(Running { op, step, retries: 0 })
}

/// Carries out a small operation on a file in memory. io_uring gives it to a worker thread, since such files know no
/// NOWAIT: waking that one takes longer than the copy. `None`: it is the ring's.
///
/// # Safety
/// As for pushing an entry, until this returns.
pub unsafe fn at_once(backing: &Backing, mut running: Running) -> Option<Result<(), StoreError>> {
    let small = running.op.range().is_none_or(|range| range.len() <= AT_ONCE_BYTES_MAX);
    if !backing.is_in_memory() || !small {
        return None;
    }
    loop {
        // SAFETY: the caller's promise.
        let result = unsafe { call(backing, &running)? };
        match interpret(backing, &running, result) {
            Completion::Done => return Some(Ok(())),
            Completion::Again(next) => running = next,
            Completion::Failed(error) => return Some(Err(error)),
        }
    }
}

/// The step as a system call, with its result as the ring would have it. `None`: the ring does more.
///
/// # Safety
/// As for [`at_once`].
unsafe fn call(backing: &Backing, running: &Running) -> Option<i32> {
    let start = running.op.range().unwrap_or_default().start();
    let moved = match (running.step, running.op) {
        (Step::Transfer, StoreOp::Read { into: Place::Memory(into), .. }) => {
            // SAFETY: the caller's promise.
            rustix::io::pread(backing, unsafe { slice::from_raw_parts_mut(into.as_ptr(), into.len()) }, start)
        }
        (Step::Transfer, StoreOp::Write { from, fua, .. }) => {
            // SAFETY: the caller's promise.
            let piece = IoSlice::new(unsafe { slice::from_raw_parts(from.as_ptr(), from.len()) });
            let flags = if fua { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
            rustix::io::pwritev2(backing, &[piece], start, flags)
        }
        (Step::Sync, _) => rustix::fs::fdatasync(backing).map(|()| 0),
        _ => return None,
    };
    Some(moved.map_or_else(|error| error.raw_os_error().wrapping_neg(), |bytes| bytes as i32))
}

/// The entry for the next step, without `user_data`.
///
/// Building it is safe; pushing it hands the operation's memory to the kernel until its completion.
pub fn prepare(backing: &Backing, running: &Running) -> squeue::Entry {
    let fd = ring::Fd(backing.as_raw_fd());
    let range = running.op.range().unwrap_or_default();
    match (running.step, running.op) {
        (Step::Transfer, StoreOp::Read { into: Place::Memory(into), .. }) => {
            opcode::Read::new(fd, into.as_ptr(), transfer_len(into.len())).offset(range.start()).build()
        }
        (Step::Transfer, StoreOp::Read { into: Place::Registered(into), .. }) => {
            // Addresses in a buffer of the kernel's count from its start.
            let address = std::ptr::without_provenance_mut(into.offset);
            opcode::ReadFixed::new(fd, address, transfer_len(into.len), into.buffer).offset(range.start()).build()
        }
        (Step::Transfer, StoreOp::Write { from, fua, .. }) => {
            opcode::Write::new(fd, from.as_ptr(), transfer_len(from.len()))
                .offset(range.start())
                .rw_flags(dsync(fua))
                .build()
        }
        (Step::Transfer, op) => unreachable!("{op:?} transfers nothing"),
        (Step::Sync, _) => opcode::Fsync::new(fd).flags(ring::FsyncFlags::DATASYNC).build(),
        (Step::PunchHole, _) => fallocate(fd, range, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
        (Step::ZeroRange, _) => fallocate(fd, range, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
        (Step::WriteZeroes, op) => {
            let len = range.len().min(ZEROES_BYTES as u64) as u32;
            opcode::Write::new(fd, ZEROES.0.as_ptr(), len)
                .offset(range.start())
                .rw_flags(dsync(matches!(op, StoreOp::WriteZeroes { fua: true, .. })))
                .build()
        }
    }
}

/// `result` as the completion queue has it: bytes moved, or a negative error number.
pub fn interpret(backing: &Backing, running: &Running, result: i32) -> Completion {
    let moved = match u32::try_from(result) {
        Ok(moved) => u64::from(moved),
        Err(_) => return refused(backing, running, io::Error::from_raw_os_error(result.wrapping_neg())),
    };
    match running.step {
        Step::Sync => Completion::Done,
        Step::PunchHole | Step::ZeroRange => zeroed(running),
        Step::Transfer | Step::WriteZeroes => progressed(backing, running, moved),
    }
}

/// A fallocate is durable only after a flush: FUA adds one.
fn zeroed(running: &Running) -> Completion {
    match running.op {
        StoreOp::WriteZeroes { fua: true, .. } => {
            Completion::Again(Running { step: Step::Sync, retries: 0, ..*running })
        }
        _ => Completion::Done,
    }
}

fn progressed(backing: &Backing, running: &Running, moved: u64) -> Completion {
    let range = running.op.range().expect("a transfer has a range");
    assert!(moved <= range.len(), "{:?}: the kernel moved {moved} bytes", running.op);
    if moved == range.len() {
        return Completion::Done;
    }
    if moved == 0 {
        let detail = "the disk ends before its size; was it truncated?".to_owned();
        let path = backing.shared_path();
        let operation = running.op.operation();
        return Completion::Failed(StoreError::refused(StoreErrorKind::Io, operation, Some(range), path, detail));
    }
    Completion::Again(Running { op: rest(running.op, moved), step: running.step, retries: 0 })
}

/// What is left after the first `moved` bytes.
fn rest(op: StoreOp, moved: u64) -> StoreOp {
    let cut = |r: ByteRange| ByteRange::new(r.start() + moved, r.len() - moved).expect("a part of a valid range");
    match op {
        StoreOp::Read { range, into } => StoreOp::Read { range: cut(range), into: into.advanced(moved as usize) },
        StoreOp::Write { range, from, fua } => {
            StoreOp::Write { range: cut(range), from: from.advanced(moved as usize), fua }
        }
        StoreOp::Discard { range } => StoreOp::Discard { range: cut(range) },
        StoreOp::WriteZeroes { range, may_unmap, fua } => StoreOp::WriteZeroes { range: cut(range), may_unmap, fua },
        StoreOp::Flush => StoreOp::Flush,
    }
}

fn refused(backing: &Backing, running: &Running, error: io::Error) -> Completion {
    let retry = matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN));
    if retry && running.retries < RETRIES_MAX {
        return Completion::Again(Running { retries: running.retries + 1, ..*running });
    }
    let unsupported = matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS));
    match running.step {
        Step::PunchHole if unsupported => Backing::cannot(&backing.punch_hole),
        Step::ZeroRange if unsupported => Backing::cannot(&backing.zero_range),
        _ => {
            let mut failure =
                StoreError::failed(running.op.operation(), running.op.range(), backing.shared_path(), error);
            if retry {
                // EAGAIN reads as "locked" at open; here the disk is at its end.
                failure.kind = StoreErrorKind::Io;
                failure.detail = format!("gave up after {RETRIES_MAX} attempts");
            }
            return Completion::Failed(failure);
        }
    }
    let step = if running.step == Step::PunchHole && Backing::may(&backing.zero_range) {
        Step::ZeroRange
    } else {
        Step::WriteZeroes
    };
    Completion::Again(Running { step, retries: 0, ..*running })
}

fn best_way(backing: &Backing) -> Step {
    if Backing::may(&backing.punch_hole) {
        return Step::PunchHole;
    }
    if Backing::may(&backing.zero_range) { Step::ZeroRange } else { Step::WriteZeroes }
}

fn fallocate(fd: ring::Fd, range: ByteRange, mode: i32) -> squeue::Entry {
    opcode::Fallocate::new(fd, range.len()).offset(range.start()).mode(mode).build()
}

/// The kernel moves at most 2 GiB less a page per entry; what is longer comes back short and is continued.
fn transfer_len(len: usize) -> u32 {
    len.min(1 << 30) as u32
}

fn dsync(fua: bool) -> i32 {
    if fua { libc::RWF_DSYNC } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, Span};

    fn backing() -> (tempfile::NamedTempFile, Backing) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let backing = Backing::open(file.path(), OpenOptions { direct: false, ..OpenOptions::SERVE }).unwrap();
        (file, backing)
    }
    fn again(completion: Completion) -> Running {
        match completion {
            Completion::Again(running) => running,
            other => panic!("{other:?} instead of Again"),
        }
    }

    #[test]
    fn a_short_read_continues_where_it_stopped() {
        let (_file, backing) = backing();
        let mut memory = [0u8; 4096];
        let into = Place::from(Span::of(&mut memory));
        let op = StoreOp::Read { range: ByteRange::new(8192, 4096).unwrap(), into };
        let first = start(&backing, op).unwrap();
        let next = again(interpret(&backing, &first, 1000));
        assert_eq!(next.op(), StoreOp::Read { range: ByteRange::new(9192, 3096).unwrap(), into: into.advanced(1000) });
        assert!(matches!(interpret(&backing, &next, 3096), Completion::Done));
        let Completion::Failed(end) = interpret(&backing, &next, 0) else { panic!("end of file must fail") };
        assert_eq!(end.kind, StoreErrorKind::Io);
    }

    #[test]
    fn a_file_in_memory_is_written_and_read_at_once() {
        let memory = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, 1 << 20).unwrap();
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        let backing = Backing::open(path, OpenOptions { direct: false, ..OpenOptions::SERVE }).unwrap();
        let range = ByteRange::new(8192, 4096).unwrap();
        let (mut from, mut into) = ([7u8; 4096], [0u8; 4096]);
        let ops = [
            StoreOp::Write { range, from: Span::of(&mut from), fua: true },
            StoreOp::Flush,
            StoreOp::Read { range, into: Span::of(&mut into).into() },
        ];
        for op in ops {
            let running = start(&backing, op).unwrap();
            // SAFETY: both buffers live and nobody else uses them.
            assert!(matches!(unsafe { at_once(&backing, running) }, Some(Ok(()))), "{op:?}");
        }
        assert_eq!(into, from);
        // It has shrunk below our feet: as the ring would say.
        rustix::fs::ftruncate(&memory, 0).unwrap();
        let running = start(&backing, ops[2]).unwrap();
        // SAFETY: as above.
        assert!(matches!(unsafe { at_once(&backing, running) }, Some(Err(_))));
    }

    #[test]
    fn what_may_wait_is_the_rings() {
        let (_file, backing) = backing();
        let running = start(&backing, StoreOp::Flush).unwrap();
        // SAFETY: a flush has no memory.
        let done = unsafe { at_once(&backing, running) };
        assert_eq!(done.is_some(), backing.is_in_memory());
    }

    #[test]
    fn retries_are_bounded() {
        let (_file, backing) = backing();
        let mut running = start(&backing, StoreOp::Flush).unwrap();
        for _ in 0..RETRIES_MAX {
            running = again(interpret(&backing, &running, -libc::EINTR));
        }
        let Completion::Failed(error) = interpret(&backing, &running, -libc::EAGAIN) else { panic!("must give up") };
        assert_eq!(error.kind, StoreErrorKind::Io);
    }

    #[test]
    fn an_unsupported_discard_becomes_written_zeroes_and_is_remembered() {
        let (_file, backing) = backing();
        let op = StoreOp::Discard { range: ByteRange::new(0, 128 << 10).unwrap() };
        let punch = start(&backing, op).unwrap();
        let zero = again(interpret(&backing, &punch, -libc::EOPNOTSUPP));
        assert_eq!(zero.step, Step::ZeroRange);
        let write = again(interpret(&backing, &zero, -libc::EOPNOTSUPP));
        assert_eq!(write.step, Step::WriteZeroes);
        let half = again(interpret(&backing, &write, ZEROES_BYTES as i32));
        assert!(matches!(interpret(&backing, &half, ZEROES_BYTES as i32), Completion::Done));
        assert_eq!(start(&backing, op).unwrap().step, Step::WriteZeroes);
    }

    #[test]
    fn zeroing_with_fua_ends_with_a_flush() {
        let (_file, backing) = backing();
        let range = ByteRange::new(0, 4096).unwrap();
        let running = start(&backing, StoreOp::WriteZeroes { range, may_unmap: false, fua: true }).unwrap();
        let sync = again(interpret(&backing, &running, 0));
        assert_eq!(sync.step, Step::Sync);
        assert!(matches!(interpret(&backing, &sync, 0), Completion::Done));
    }

    #[test]
    fn an_io_error_carries_operation_range_and_path() {
        let (file, backing) = backing();
        let mut memory = [0u8; 512];
        let op = StoreOp::Write { range: ByteRange::new(512, 512).unwrap(), from: Span::of(&mut memory), fua: false };
        let running = start(&backing, op).unwrap();
        let Completion::Failed(error) = interpret(&backing, &running, -libc::EIO) else { panic!("EIO must fail") };
        let text = error.to_string();
        let expected = format!("cannot write {} at byte 512, 512 bytes: ", file.path().display());
        assert!(text.starts_with(&expected), "{text}");
        assert_eq!(error.io_error(), types::IoError::Io);
    }
}
