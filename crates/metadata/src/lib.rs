//! Bytes <-> values of DRBD's metadata on disk, format v09. No I/O: callers read and write, this crate says what
//! the bytes mean and where they belong. `docs/ondisk.md` has the pictures and the reasons.
//!
//! Bytes gain trust in stages: a raw block, [`Superblock::decode`] (every field has its meaning, nothing is known
//! about the device), [`check`] (fits this device; gives the [`Layout`]).
//!
//! On disk a size is in 512-byte sectors; here every size is in bytes, unless the name says `_sectors`.
#![no_std]

extern crate alloc;

pub mod activity_log;
pub mod bitmap;
mod bytes;
pub mod dump;

pub mod error;
pub mod generation;
pub mod layout;
pub mod recognise;
pub mod rewrite;
pub mod superblock;
pub mod v08;

pub use activity_log::{AlBlock, AlTransaction, Recovery, apply_al, recover, recover_decoded};
pub use bitmap::Bitmap;
pub use dump::{
    AnyDump, Dump, DumpError, DumpOptions, DumpV08, Restored, RestoredV08, parse_any_dump, parse_dump, restore,
    restore_v08, write_dump, write_dump_v08,
};
pub use error::{FormatError, Region};
pub use layout::{Geometry, Layout, Placement};
pub use recognise::{Found, Version, recognise};
pub use superblock::{DeviceFlags, PeerFlags, PeerRecord, Superblock, check};

pub use v08::{Inexpressible, SuperblockV08};

/// Unit of everything on disk: superblock, activity-log transaction, bitmap page. All regions start on it.
pub const BLOCK_BYTES: usize = 4096;

/// One 4 KiB block as it lies on disk.
pub type Block = [u8; BLOCK_BYTES];
