//! Metadata as text: what `dump-md` prints and `restore-md` reads, byte for byte as drbdmeta 9.22 does.
//!
//! A dump is portable: it carries everything but the geometry of the device. `write` prints, `parse` reads the
//! text into a [`Dump`], `restore` fits it to a device. Bitmaps are printed from the image and kept as runs, so that
//! neither direction holds a second copy.

mod parse;
mod restore;
mod write;

use alloc::boxed::Box;
use alloc::vec::Vec;

use types::{NodeId, Uuid};

use crate::layout::Geometry;
use crate::superblock::{DeviceFlags, PEERS, PeerRecord, Superblock};

pub use parse::{DumpError, parse_any_dump, parse_dump};
pub use restore::{Restored, RestoredV08, restore, restore_v08};
pub use write::{DumpOptions, write_dump, write_dump_v08};

/// A dump of either format.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AnyDump {
    V08(DumpV08),
    V09(Box<Dump>),
}

/// What a dump of v09 says, not yet fitted to a device.
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

/// What a dump of DRBD 8's metadata says, not yet fitted to a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DumpV08 {
    pub geometry: Geometry,
    pub current_uuid: Uuid,
    pub bitmap_uuid: Uuid,
    pub history: [Uuid; 2],
    /// 0 in every dump by drbdmeta 9.22.
    pub flags: DeviceFlags,
    pub last_agreed_bytes: u64,
    pub device_uuid: u64,
    pub peer_max_io_bytes: u32,
    pub bitmap: Vec<Run>,
}

/// Lines that both formats have.
struct Common {
    /// A comment; not read back.
    al_slots: u32,
    last_agreed_bytes: u64,
    bitmap_block_bytes: u32,
    device_uuid: u64,
    peer_max_io_bytes: u32,
    al_stripes: u32,
    al_stripe_4k: u32,
}

impl Common {
    fn of(sb: &Superblock) -> Common {
        Common {
            al_slots: sb.al_slots,
            last_agreed_bytes: sb.last_agreed_bytes,
            bitmap_block_bytes: sb.bitmap_block_bytes,
            device_uuid: sb.device_uuid,
            peer_max_io_bytes: sb.peer_max_io_bytes,
            al_stripes: sb.al_stripes,
            al_stripe_4k: sb.al_stripe_4k,
        }
    }
    fn geometry(&self, max_peers: u8) -> Geometry {
        Geometry {
            max_peers,
            bitmap_block_bytes: self.bitmap_block_bytes,
            al_stripes: self.al_stripes,
            al_stripe_4k: self.al_stripe_4k,
        }
    }
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
