//! Metadata as text: what `dump-md` prints and `restore-md` reads, byte for byte as drbdmeta 9.22 does.
//!
//! A dump is portable: it carries everything but the geometry of the device. `write` prints, `parse` reads the
//! text into a [`Dump`], `restore` fits it to a device. Bitmaps are printed from the image and kept as runs, so that
//! neither direction holds a second copy.

mod parse;
mod restore;
mod write;

use alloc::vec::Vec;

use types::{NodeId, Uuid};

use crate::layout::Geometry;
use crate::superblock::{DeviceFlags, PEERS, PeerRecord};

pub use parse::{DumpError, parse_dump};
pub use restore::{Restored, restore};
pub use write::{DumpOptions, write_dump};

/// What a dump says, not yet fitted to a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dump {
    pub geometry: Geometry,
    pub node_id: Option<NodeId>,
    pub current_uuid: Uuid,
    pub flags: DeviceFlags,
    /// Only in dumps of drbd-utils 9.27 and later.
    pub members: Option<u64>,
    pub peers: [PeerRecord; PEERS],
    pub history: [Uuid; PEERS],
    pub last_agreed_bytes: u64,
    pub device_uuid: u64,
    pub peer_max_io_bytes: u32,
    /// Per slot.
    pub bitmaps: Vec<Vec<Run>>,
}

/// `count` times 64 bits of one slot, bit 0 first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    pub count: u64,
    pub value: u64,
}

/// Words of 32 bits that a slot owns in an image of `image_bytes`, and so the length of its list: half of it. An odd
/// last word is padding and not printed.
fn slot_words(image_bytes: u64, max_peers: u8, slot: u8) -> u64 {
    (image_bytes / 4).saturating_sub(u64::from(slot)).div_ceil(u64::from(max_peers))
}
