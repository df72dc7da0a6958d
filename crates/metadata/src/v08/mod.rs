//! The metadata of DRBD 8: its superblock, its activity log, and how it becomes v09. The layout is that of v09 with one
//! slot and 4096 bytes per bit, so bitmap and positions come from [`crate::Layout`]; docs/ondisk.md "v08".

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use types::{NodeId, Slot, Uuid};

use crate::activity_log::{self, Recovery};
use crate::bytes::{i32_at, put_i32, put_u32, put_u64, u32_at, u64_at};
use crate::error::{FormatError, Region};
use crate::layout::{BITMAP_BLOCK_BYTES_DEFAULT, Geometry, Layout, Placement};
use crate::superblock::{DeviceFlags, PEERS, PeerFlags, PeerRecord, Superblock, check};
use crate::{BLOCK_BYTES, Block};

mod log83;

use log83::recover_83;

/// Clean, or written by DRBD 8.3 and older.
pub const MAGIC_V08: u32 = 0x8374_026B;
/// Written by a running DRBD 8.4: the activity log was not applied since.
pub const MAGIC_V08_UNCLEAN: u32 = 0x8374_026C;

/// Flags that v09 keeps in the record of the peer: in v08 there is one.
const PEER_FLAGS: [(DeviceFlags, PeerFlags); 3] = [
    (DeviceFlags(1 << 2), PeerFlags::CONNECTED),
    (DeviceFlags(1 << 3), PeerFlags::FULL_SYNC),
    (DeviceFlags(1 << 5), PeerFlags::OUTDATED),
];

mod at {
    pub const LA_SIZE: usize = 0x00;
    pub const CURRENT_UUID: usize = 0x08;
    pub const BITMAP_UUID: usize = 0x10;
    pub const HISTORY: usize = 0x18;
    pub const DEVICE_UUID: usize = 0x28;
    pub const FLAGS: usize = 0x38;
    pub const MAGIC: usize = 0x3C;
    pub const MD_SIZE: usize = 0x40;
    pub const AL_OFFSET: usize = 0x44;
    pub const AL_EXTENTS: usize = 0x48;
    pub const BM_OFFSET: usize = 0x4C;
    pub const BM_BYTE_PER_BIT: usize = 0x50;
    pub const PEER_MAX_BIO_SIZE: usize = 0x54;
    pub const AL_STRIPES: usize = 0x58;
    pub const AL_STRIPE_4K: usize = 0x5C;
}

/// Flags of the device with one meaning in both formats: bits 0, 1, 4, 6, 7 and 8.
const FLAGS_BOTH: u32 = 0x1D3;

/// Why a v09 disk cannot become v08 without losing what it knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Inexpressible {
    LogNotApplied,
    BitmapBlock {
        bytes: u32,
    },
    /// It was the disk of this node.
    OtherNode {
        found: NodeId,
    },
    /// These have bitmap slots besides the one peer.
    OtherPeers {
        others: Vec<NodeId>,
    },
    /// The peer has no slot, and is known in a way that forbids to take an unowned one.
    NoSlot,
}

impl fmt::Display for Inexpressible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Inexpressible::LogNotApplied => write!(f, "its activity log is not applied"),
            Inexpressible::BitmapBlock { bytes } => {
                write!(f, "one bit of its bitmap stands for {bytes} bytes, in v08 always for 4096")
            }
            Inexpressible::OtherNode { found } => write!(f, "it is the disk of the node with id {found}"),
            Inexpressible::OtherPeers { others } => {
                let ids: Vec<String> = others.iter().map(ToString::to_string).collect();
                write!(f, "v08 has one peer, and this has bitmaps for other nodes, too: {}", ids.join(", "))
            }
            Inexpressible::NoSlot => write!(f, "it has no bitmap for the other node"),
        }
    }
}

/// Fields as in [`crate::Superblock`]; there is one peer only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SuperblockV08 {
    pub magic: u32,
    pub last_agreed_sectors: u64,
    pub current_uuid: Uuid,
    pub bitmap_uuid: Uuid,
    pub history: [Uuid; 2],
    pub device_uuid: u64,
    /// With bits 2 (connected), 3 (full sync) and 5 (peer outdated), which are in the peer record in v09.
    pub flags: DeviceFlags,
    pub md_size_sectors: u32,
    pub al_offset_sectors: i32,
    pub al_slots: u32,
    pub bm_offset_sectors: i32,
    pub bitmap_block_bytes: u32,
    pub peer_max_io_bytes: u32,
    /// As on disk: 0 in both before DRBD 8.4.
    pub al_stripes: u32,
    pub al_stripe_4k: u32,
}

impl SuperblockV08 {
    /// Decodes the block found at `offset` of the metadata device (for the message only).
    pub fn decode(block: &Block, offset: u64) -> Result<SuperblockV08, FormatError> {
        let magic = u32_at(block, at::MAGIC);
        if magic != MAGIC_V08 && magic != MAGIC_V08_UNCLEAN {
            let rule = format!("not DRBD metadata v08, which has {MAGIC_V08:#010x} or {MAGIC_V08_UNCLEAN:#010x} here");
            let at = offset.saturating_add(at::MAGIC as u64);
            return Err(FormatError::new(Region::Superblock, "magic", at, format!("{magic:#010x}"), rule));
        }
        Ok(SuperblockV08 {
            magic,
            last_agreed_sectors: u64_at(block, at::LA_SIZE),
            current_uuid: Uuid(u64_at(block, at::CURRENT_UUID)),
            bitmap_uuid: Uuid(u64_at(block, at::BITMAP_UUID)),
            history: [Uuid(u64_at(block, at::HISTORY)), Uuid(u64_at(block, at::HISTORY + 8))],
            device_uuid: u64_at(block, at::DEVICE_UUID),
            flags: DeviceFlags(u32_at(block, at::FLAGS)),
            md_size_sectors: u32_at(block, at::MD_SIZE),
            al_offset_sectors: i32_at(block, at::AL_OFFSET),
            al_slots: u32_at(block, at::AL_EXTENTS),
            bm_offset_sectors: i32_at(block, at::BM_OFFSET),
            bitmap_block_bytes: u32_at(block, at::BM_BYTE_PER_BIT),
            peer_max_io_bytes: u32_at(block, at::PEER_MAX_BIO_SIZE),
            al_stripes: u32_at(block, at::AL_STRIPES),
            al_stripe_4k: u32_at(block, at::AL_STRIPE_4K),
        })
    }

    /// The block to write, reserved space zero, as drbdmeta writes it. One 4 KiB write with preflush and FUA.
    pub fn encode(&self) -> Block {
        let mut block = [0; BLOCK_BYTES];
        put_u64(&mut block, at::LA_SIZE, self.last_agreed_sectors);
        put_u64(&mut block, at::CURRENT_UUID, self.current_uuid.0);
        put_u64(&mut block, at::BITMAP_UUID, self.bitmap_uuid.0);
        put_u64(&mut block, at::HISTORY, self.history[0].0);
        put_u64(&mut block, at::HISTORY + 8, self.history[1].0);
        put_u64(&mut block, at::DEVICE_UUID, self.device_uuid);
        put_u32(&mut block, at::FLAGS, self.flags.0);
        put_u32(&mut block, at::MAGIC, self.magic);
        put_u32(&mut block, at::MD_SIZE, self.md_size_sectors);
        put_i32(&mut block, at::AL_OFFSET, self.al_offset_sectors);
        put_u32(&mut block, at::AL_EXTENTS, self.al_slots);
        put_i32(&mut block, at::BM_OFFSET, self.bm_offset_sectors);
        put_u32(&mut block, at::BM_BYTE_PER_BIT, self.bitmap_block_bytes);
        put_u32(&mut block, at::PEER_MAX_BIO_SIZE, self.peer_max_io_bytes);
        put_u32(&mut block, at::AL_STRIPES, self.al_stripes);
        put_u32(&mut block, at::AL_STRIPE_4K, self.al_stripe_4k);
        block
    }

    /// Does it describe this device? By the rules of v09, with one slot.
    pub fn check(&self, placement: Placement, meta_device_bytes: u64) -> Result<Layout, FormatError> {
        check(&self.convert(None), placement, meta_device_bytes)
    }

    /// After the log was applied; the caller initialises it before this is written, as one of DRBD 8.4.
    #[must_use]
    pub fn applied(mut self) -> SuperblockV08 {
        let geometry = self.geometry();
        self.magic = MAGIC_V08;
        self.flags.set(DeviceFlags::AL_CLEAN, true);
        (self.al_stripes, self.al_stripe_4k) = (geometry.al_stripes, geometry.al_stripe_4k);
        self
    }

    /// The activity log was not applied since the last crash or stop. Always so for DRBD 8.3.
    pub const fn unclean(&self) -> bool {
        self.magic == MAGIC_V08_UNCLEAN || self.flags.0 & DeviceFlags::AL_CLEAN.0 == 0
    }
    /// As v09 would have it; DRBD 8.3 leaves the stripes 0 and means 1 of 32 KiB.
    pub const fn geometry(&self) -> Geometry {
        let (al_stripes, al_stripe_4k) =
            if self.al_stripes == 0 && self.al_stripe_4k == 0 { (1, 8) } else { (self.al_stripes, self.al_stripe_4k) };
        Geometry { max_peers: 1, bitmap_block_bytes: self.bitmap_block_bytes, al_stripes, al_stripe_4k }
    }

    /// The same volume as v09 would have it: bitmap and positions stay. `owner`: this node, and the peer whose slot the
    /// bitmap becomes; without them nobody owns it, as after drbdmeta's conversion, which loses the bitmap UUID.
    ///
    /// A running 8.4 Primary has the primary indicator on disk, and not crashed-primary: an indicator that is found on
    /// attaching is its sign of a crash. v09 keeps the two apart (a Secondary of a Primary has the indicator, too), and only
    /// crashed-primary makes a node the source of its hot extents.
    pub fn convert(&self, owner: Option<(NodeId, NodeId)>) -> Superblock {
        let geometry = self.geometry();
        let mut flags = self.flags;
        let mut record = PeerRecord::default();
        for (device, peer) in PEER_FLAGS {
            record.flags.set(peer, flags.contains(device));
            flags.set(device, false);
        }
        if owner.is_some() {
            if flags.contains(DeviceFlags::PRIMARY_INDICATOR) {
                flags.set(DeviceFlags::CRASHED_PRIMARY, true);
            }
            record.bitmap_uuid = self.bitmap_uuid;
            record.slot = Some(Slot(0));
        }
        let mut peers = [PeerRecord::default(); PEERS];
        peers[owner.map_or(0, |(_, peer)| peer.index())] = record;
        let mut history = [Uuid::ZERO; PEERS];
        history[..self.history.len()].copy_from_slice(&self.history);
        Superblock {
            // Whole sectors: a size that no device has is refused by `check`, not here.
            last_agreed_bytes: self.last_agreed_sectors.min(u64::MAX / 512) * 512,
            current_uuid: self.current_uuid,
            members: 0,
            device_uuid: self.device_uuid,
            flags,
            md_size_sectors: self.md_size_sectors,
            al_offset_sectors: self.al_offset_sectors,
            al_slots: self.al_slots,
            bm_offset_sectors: self.bm_offset_sectors,
            bitmap_block_bytes: self.bitmap_block_bytes,
            peer_max_io_bytes: self.peer_max_io_bytes,
            max_peers: geometry.max_peers,
            node_id: owner.map(|(me, _)| me),
            al_stripes: geometry.al_stripes,
            al_stripe_4k: geometry.al_stripe_4k,
            peers,
            history,
        }
    }

    /// The way back: what DRBD 8.4 has to know of a v09 disk that `me` shared with `peer`, and the slot that becomes its
    /// one bitmap. `layout`: of the same device with one slot. Identifiers, flags and bits keep their meaning, so 8.4
    /// resyncs by bitmap. Left behind is what only DRBD 9 has: quorum, fencing, dagtag, the older history.
    ///
    /// The primary indicator is a crashed Primary's sign in 8.4; in v09 a Secondary that was written to has it, too, and
    /// would be the source of what it lacks.
    pub fn from_v09(
        sb: &Superblock,
        (me, peer): (NodeId, NodeId),
        layout: &Layout,
    ) -> Result<(SuperblockV08, Slot), Inexpressible> {
        if !sb.flags.contains(DeviceFlags::AL_CLEAN) {
            return Err(Inexpressible::LogNotApplied);
        }
        if sb.bitmap_block_bytes != BITMAP_BLOCK_BYTES_DEFAULT {
            return Err(Inexpressible::BitmapBlock { bytes: sb.bitmap_block_bytes });
        }
        if let Some(found) = sb.node_id.filter(|found| *found != me) {
            return Err(Inexpressible::OtherNode { found });
        }
        let others: Vec<NodeId> = NodeId::all().filter(|n| *n != peer && sb.peer(*n).slot.is_some()).collect();
        if !others.is_empty() {
            return Err(Inexpressible::OtherPeers { others });
        }
        let record = sb.peer(peer);
        // A peer that never had a slot would get a free one, with what was collected in it since day 0.
        let day0 = || sb.lowest_free_slot().filter(|_| record.is_day0());
        let slot = record.slot.or_else(day0).ok_or(Inexpressible::NoSlot)?;
        let mut flags = DeviceFlags(sb.flags.0 & FLAGS_BOTH);
        for (device, flag) in PEER_FLAGS {
            flags.set(device, record.flags.contains(flag));
        }
        flags.set(DeviceFlags::PRIMARY_INDICATOR, sb.flags.contains(DeviceFlags::CRASHED_PRIMARY));
        let superblock = SuperblockV08 {
            magic: MAGIC_V08,
            last_agreed_sectors: sb.last_agreed_bytes / types::range::SECTOR_BYTES,
            current_uuid: sb.current_uuid,
            bitmap_uuid: record.bitmap_uuid,
            history: [sb.history[0], sb.history[1]],
            device_uuid: sb.device_uuid,
            flags,
            md_size_sectors: layout.md_size_sectors,
            al_offset_sectors: layout.al_offset_sectors,
            al_slots: sb.al_slots,
            bm_offset_sectors: layout.bm_offset_sectors,
            bitmap_block_bytes: sb.bitmap_block_bytes,
            peer_max_io_bytes: sb.peer_max_io_bytes,
            al_stripes: sb.al_stripes,
            al_stripe_4k: sb.al_stripe_4k,
        };
        Ok((superblock, slot))
    }

    /// What the log says after a crash. `ring`: as for [`activity_log::recover`].
    pub fn recover(&self, ring: &[Block]) -> Recovery {
        let geometry = self.geometry();
        let primary = self.flags.contains(DeviceFlags::PRIMARY_INDICATOR);
        let blocks_of_84 = || ring.iter().take(2).any(|block| u32_at(block, 0) == activity_log::MAGIC);
        let ring_of_83 = (geometry.al_stripes, geometry.al_stripe_4k) == (1, 8);
        if !primary || self.magic == MAGIC_V08_UNCLEAN || !ring_of_83 || blocks_of_84() {
            return activity_log::recover(ring, geometry.al_stripes, geometry.al_stripe_4k, self.al_slots, primary);
        }
        recover_83(ring.as_flattened(), self.al_slots)
    }
}
