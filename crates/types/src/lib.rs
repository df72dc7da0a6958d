//! Vocabulary of replicad: identifiers, ranges, states, generations, block requests. No I/O, no policy.
//!
//! A word lives here when two crates share it. Units: bytes everywhere; 512-byte sectors exist only where a
//! format or the kernel speaks them (`wire`, `metadata`, `ublk-frontend`).
#![no_std]

extern crate alloc;

pub mod generation;
pub mod id;
pub mod range;
pub mod request;
pub mod state;
pub mod time;

pub use generation::Uuid;
pub use id::{IoId, LinkId, NodeId, NodeSet, PayloadId, RequestId, Slot, VolumeNumber};
pub use range::{ByteRange, ExtentIndex};
pub use request::{BlockLimits, BlockOp, IoError};
pub use state::{ConnectionState, DiskState, ReplicationState, Role};
pub use time::Time;
