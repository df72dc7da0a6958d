//! Operations on a store and the checks that come before each, the same for every store.

use std::path::Path;
use std::sync::Arc;

use types::{BlockOp, ByteRange};

use crate::backing::Geometry;
use crate::buffers::Span;
use crate::error::{Operation, StoreError, StoreErrorKind};

/// Where a read puts its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Memory(Span),
    Registered(RegisteredSpan),
}

/// Bytes of a fixed buffer of the ring: pages that only the kernel sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegisteredSpan {
    /// Place in the ring's table.
    pub buffer: u16,
    /// From the buffer's start, bytes.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

impl Place {
    pub const fn len(self) -> usize {
        match self {
            Place::Memory(span) => span.len(),
            Place::Registered(span) => span.len,
        }
    }

    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Without the first `done` bytes (asserted to be there).
    #[must_use]
    pub fn advanced(self, done: usize) -> Place {
        match self {
            Place::Memory(span) => Place::Memory(span.advanced(done)),
            Place::Registered(RegisteredSpan { buffer, offset, len }) => {
                assert!(done <= len, "advance by {done} in {len} registered bytes");
                Place::Registered(RegisteredSpan { buffer, offset: offset + done, len: len - done })
            }
        }
    }
}

impl From<Span> for Place {
    fn from(span: Span) -> Place {
        Place::Memory(span)
    }
}

/// One operation, or what is left of it after a part was done.
///
/// `Read` and `Write` point into memory that the caller keeps alive, and unaliased, until the completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreOp {
    Read {
        range: ByteRange,
        into: Place,
    },
    /// `fua`: durable on completion.
    Write {
        range: ByteRange,
        from: Span,
        fua: bool,
    },
    /// Everything completed before is durable on completion.
    Flush,
    /// Reads zeroes afterwards. The storage is given back where the disk can.
    Discard {
        range: ByteRange,
    },
    /// Reads zeroes afterwards. `may_unmap`: the storage may be given back.
    WriteZeroes {
        range: ByteRange,
        may_unmap: bool,
        fua: bool,
    },
}

impl StoreOp {
    pub const fn operation(&self) -> Operation {
        match self {
            StoreOp::Read { .. } => Operation::Read,
            StoreOp::Write { .. } => Operation::Write,
            StoreOp::Flush => Operation::Flush,
            StoreOp::Discard { .. } => Operation::Discard,
            StoreOp::WriteZeroes { .. } => Operation::WriteZeroes,
        }
    }

    /// `None` for a flush.
    pub const fn range(&self) -> Option<ByteRange> {
        match *self {
            StoreOp::Read { range, .. }
            | StoreOp::Write { range, .. }
            | StoreOp::Discard { range }
            | StoreOp::WriteZeroes { range, .. } => Some(range),
            StoreOp::Flush => None,
        }
    }

    pub const fn changes_data(&self) -> bool {
        matches!(self, StoreOp::Write { .. } | StoreOp::Discard { .. } | StoreOp::WriteZeroes { .. })
    }

    /// The operation behind a block request. `span`: the payload, for requests that have one (asserted).
    pub fn from_block(op: BlockOp, range: ByteRange, span: Option<Span>) -> StoreOp {
        let payload = || span.expect("a read or write request without a payload");
        match op {
            BlockOp::Read => StoreOp::Read { range, into: payload().into() },
            BlockOp::Write { fua } => StoreOp::Write { range, from: payload(), fua },
            BlockOp::Flush => StoreOp::Flush,
            BlockOp::Discard => StoreOp::Discard { range },
            BlockOp::WriteZeroes { may_unmap, fua } => StoreOp::WriteZeroes { range, may_unmap, fua },
        }
    }
}

/// Refuses what a disk of this geometry cannot do. Every store calls it before anything else.
pub(crate) fn check(
    geometry: &Geometry,
    read_only: bool,
    operation: Operation,
    range: Option<ByteRange>,
    path: &Arc<Path>,
) -> Result<(), StoreError> {
    let refuse = |kind, detail| Err(StoreError::refused(kind, operation, range, path, detail));
    let changes = matches!(operation, Operation::Write | Operation::Discard | Operation::WriteZeroes);
    if changes && read_only {
        return refuse(StoreErrorKind::ReadOnly, "it was opened read-only".to_owned());
    }
    let Some(bytes) = range else { return Ok(()) };
    if bytes.is_empty() {
        return refuse(StoreErrorKind::OutOfRange, "the range is empty".to_owned());
    }
    if !bytes.is_within(geometry.size_bytes) {
        return refuse(StoreErrorKind::OutOfRange, format!("the disk has {} bytes", geometry.size_bytes));
    }
    let block = u64::from(geometry.logical_block_bytes);
    if !bytes.start().is_multiple_of(block) || !bytes.len().is_multiple_of(block) {
        return refuse(StoreErrorKind::Misaligned, format!("start and length must be multiples of {block}"));
    }
    Ok(())
}
