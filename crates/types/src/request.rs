//! What an application asks of a block device, and how it can fail.

use core::fmt;

/// Operation of a block request. Which bytes it moves is a range; the data is a payload that the driver holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum BlockOp {
    Read,
    /// `fua`: durable on completion.
    Write {
        fua: bool,
    },
    /// Everything completed before is durable on completion. Has an empty range.
    Flush,
    /// The content becomes undefined, but the same on all replicas: replicad reads zeroes back.
    Discard,
    /// The content becomes zero. `may_unmap`: the storage may be given back.
    WriteZeroes {
        may_unmap: bool,
        fua: bool,
    },
}

impl BlockOp {
    /// Changes data: is replicated, needs the activity log.
    pub const fn is_write(self) -> bool {
        matches!(self, BlockOp::Write { .. } | BlockOp::Discard | BlockOp::WriteZeroes { .. })
    }
    /// Carries bytes from or to the application.
    pub const fn has_payload(self) -> bool {
        matches!(self, BlockOp::Read | BlockOp::Write { .. })
    }
}

/// Why a block request failed. errno appears only in the frontends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum IoError {
    /// The device or every path to the data failed.
    Io,
    /// The device is not writable here (Secondary).
    ReadOnly,
    /// Beyond the end, misaligned, or empty where it must not be.
    Invalid,
    /// No space on the backing store.
    NoSpace,
    /// The operation is not supported by the backing device.
    Unsupported,
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IoError::Io => "input/output error",
            IoError::ReadOnly => "device is read-only here",
            IoError::Invalid => "invalid request",
            IoError::NoSpace => "no space left on the backing device",
            IoError::Unsupported => "operation not supported by the backing device",
        })
    }
}

/// What a frontend may ask of a volume: agreed over all nodes that have a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockLimits {
    /// Smallest addressable unit. Bytes, power of two, 512..=4096.
    pub logical_block_bytes: u32,
    /// Unit that the disk writes without read-modify-write. Bytes, power of two, >= logical.
    pub physical_block_bytes: u32,
    /// Largest read or write. Bytes, multiple of 4096.
    pub io_bytes_max: u32,
    /// Discards reach the disks. Off: a discard is answered as unsupported.
    pub discard: bool,
    /// Largest discard or write-zeroes. Bytes.
    pub discard_bytes_max: u32,
    /// Discard granularity. Bytes, 0 if discard is off.
    pub discard_granularity_bytes: u32,
    /// Completed writes may be lost at a power cut until flushed.
    pub volatile_cache: bool,
}

impl Default for BlockLimits {
    fn default() -> BlockLimits {
        BlockLimits {
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            io_bytes_max: 1 << 20,
            discard: true,
            discard_bytes_max: 128 << 20,
            discard_granularity_bytes: 4096,
            volatile_cache: true,
        }
    }
}
