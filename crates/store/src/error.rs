//! The one error of this crate: a small kind to match on, and the context a person needs.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use types::{ByteRange, IoError};

/// What went wrong, for code that decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum StoreErrorKind {
    /// No such file or device.
    NotFound,
    /// The process may not open it.
    PermissionDenied,
    /// Mounted, held by another device, or locked by another user of replicad.
    InUse,
    /// Neither a block device nor a regular file.
    NotADisk,
    /// A change was asked of a disk that is, or was opened, read-only.
    ReadOnly,
    /// The range ends beyond the disk, or is empty where bytes must move.
    OutOfRange,
    /// Start or length is not a multiple of the logical block.
    Misaligned,
    /// The file system below is full.
    NoSpace,
    /// Neither disk nor file system can do this.
    Unsupported,
    /// The medium or the way to it failed.
    Io,
}

/// What was being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Operation {
    Open,
    Inspect,
    Lock,
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Open => "open",
            Operation::Inspect => "inspect",
            Operation::Lock => "lock",
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::Discard => "discard",
            Operation::WriteZeroes => "write zeroes to",
        })
    }
}

/// An operation on a file or device that failed.
#[derive(Debug)]
pub struct StoreError {
    pub kind: StoreErrorKind,
    pub operation: Operation,
    /// The bytes concerned, where the operation has a range.
    pub range: Option<ByteRange>,
    pub path: Arc<Path>,
    /// Who holds the disk, or which rule refused. Empty where the source says it all.
    pub detail: String,
    pub source: Option<io::Error>,
}

impl StoreError {
    /// A refusal of our own, before the kernel was asked.
    pub(crate) fn refused(
        kind: StoreErrorKind,
        operation: Operation,
        range: Option<ByteRange>,
        path: &Arc<Path>,
        detail: String,
    ) -> StoreError {
        StoreError { kind, operation, range, path: path.clone(), detail, source: None }
    }

    /// A failure that the kernel reported.
    pub(crate) fn failed(
        operation: Operation,
        range: Option<ByteRange>,
        path: &Arc<Path>,
        source: io::Error,
    ) -> StoreError {
        let kind = kind_of(&source);
        StoreError { kind, operation, range, path: path.clone(), detail: String::new(), source: Some(source) }
    }

    /// The way was refused, not the bytes: with another kind of buffer the same may work.
    pub fn is_about_the_buffer(&self) -> bool {
        let code = self.source.as_ref().and_then(io::Error::raw_os_error);
        matches!(code, Some(libc::EINVAL | libc::EFAULT | libc::EOPNOTSUPP | libc::ENOSYS))
    }

    /// What the engine and the frontends are told.
    pub fn io_error(&self) -> IoError {
        match self.kind {
            StoreErrorKind::ReadOnly => IoError::ReadOnly,
            StoreErrorKind::OutOfRange | StoreErrorKind::Misaligned => IoError::Invalid,
            StoreErrorKind::NoSpace => IoError::NoSpace,
            StoreErrorKind::Unsupported => IoError::Unsupported,
            StoreErrorKind::NotFound
            | StoreErrorKind::PermissionDenied
            | StoreErrorKind::InUse
            | StoreErrorKind::NotADisk
            | StoreErrorKind::Io => IoError::Io,
        }
    }
}

/// Maps what the kernel says to a kind. A device that vanished (ENODEV, ENXIO) counts as failed medium.
fn kind_of(source: &io::Error) -> StoreErrorKind {
    match source.raw_os_error() {
        Some(libc::ENOENT) => StoreErrorKind::NotFound,
        Some(libc::EACCES | libc::EPERM) => StoreErrorKind::PermissionDenied,
        Some(libc::EBUSY | libc::ETXTBSY | libc::EWOULDBLOCK) => StoreErrorKind::InUse,
        Some(libc::EROFS) => StoreErrorKind::ReadOnly,
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => StoreErrorKind::NoSpace,
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => StoreErrorKind::Unsupported,
        Some(libc::EINVAL) => StoreErrorKind::Misaligned,
        Some(libc::EISDIR) => StoreErrorKind::NotADisk,
        _ => StoreErrorKind::Io,
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}", self.operation, self.path.display())?;
        if let Some(range) = self.range {
            write!(f, " at byte {}, {} bytes", range.start(), range.len())?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s as &(dyn std::error::Error + 'static))
    }
}
