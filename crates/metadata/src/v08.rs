//! The metadata of DRBD 8: its superblock, its activity log, and how it becomes v09. The layout is that of v09 with one
//! slot and 4096 bytes per bit, so bitmap and positions come from [`crate::Layout`]; docs/ondisk.md "v08".

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use types::{ExtentIndex, NodeId, Slot, Uuid};

use crate::activity_log::{self, Recovery, SlotTable};
use crate::bytes::{i32_at, put_u32, u32_at, u64_at};
use crate::error::{FormatError, Region};
use crate::layout::Geometry;
use crate::superblock::{DeviceFlags, PEERS, PeerFlags, PeerRecord, Superblock};
use crate::{BLOCK_BYTES, Block};

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
    pub const FLAGS: usize = 0x38;
    pub const MAGIC: usize = 0x3C;
    pub const AL_STRIPES: usize = 0x58;
    pub const AL_STRIPE_4K: usize = 0x5C;
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
            last_agreed_sectors: u64_at(block, 0x00),
            current_uuid: Uuid(u64_at(block, 0x08)),
            bitmap_uuid: Uuid(u64_at(block, 0x10)),
            history: [Uuid(u64_at(block, 0x18)), Uuid(u64_at(block, 0x20))],
            device_uuid: u64_at(block, 0x28),
            flags: DeviceFlags(u32_at(block, at::FLAGS)),
            md_size_sectors: u32_at(block, 0x40),
            al_offset_sectors: i32_at(block, 0x44),
            al_slots: u32_at(block, 0x48),
            bm_offset_sectors: i32_at(block, 0x4C),
            bitmap_block_bytes: u32_at(block, 0x50),
            peer_max_io_bytes: u32_at(block, 0x54),
            al_stripes: u32_at(block, at::AL_STRIPES),
            al_stripe_4k: u32_at(block, at::AL_STRIPE_4K),
        })
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
    pub fn convert(&self, owner: Option<(NodeId, NodeId)>) -> Superblock {
        let geometry = self.geometry();
        let mut flags = self.flags;
        let mut record = PeerRecord::default();
        for (device, peer) in PEER_FLAGS {
            record.flags.set(peer, flags.contains(device));
            flags.set(device, false);
        }
        if owner.is_some() {
            record.bitmap_uuid = self.bitmap_uuid;
            record.slot = Some(Slot(0));
        }
        let mut peers = [PeerRecord::default(); PEERS];
        peers[owner.map_or(0, |(_, peer)| peer.index())] = record;
        let mut history = [Uuid::ZERO; PEERS];
        history[..self.history.len()].copy_from_slice(&self.history);
        Superblock {
            last_agreed_bytes: self.last_agreed_sectors.saturating_mul(512),
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

/// Says in the superblock `sb`, which is `block`, that the log was applied; the caller initialises the log before, as one
/// of DRBD 8.4.
pub fn mark_applied(block: &mut Block, sb: &SuperblockV08) {
    let geometry = sb.geometry();
    put_u32(block, at::FLAGS, sb.flags.with(DeviceFlags::AL_CLEAN).0);
    put_u32(block, at::MAGIC, MAGIC_V08);
    put_u32(block, at::AL_STRIPES, geometry.al_stripes);
    put_u32(block, at::AL_STRIPE_4K, geometry.al_stripe_4k);
}

// ---------------------------------------------------------------------------------------------- the log of DRBD 8.3

const SECTOR_BYTES: usize = 512;
const MAGIC_83: u32 = 0x8374_0267;
/// Pairs of slot and extent: the change, then slots as they were before it.
const PAIRS_83: usize = 62;
const PAIRS_AT_83: usize = 8;
const XOR_AT_83: usize = 0x1F8;
const NONE_83: u32 = u32::MAX;

/// One sector of that log: its number and its pairs, the change first.
type Transaction83 = (u32, Vec<(u32, u32)>);

/// A ring of sectors; as there are always more sectors than the table needs, a torn newest one loses nothing.
fn recover_83(log: &[u8], al_slots: u32) -> Recovery {
    let context = PAIRS_83 as u32 - 1;
    let len = (1 + al_slots.div_ceil(context) as usize).min(log.len() / SECTOR_BYTES);
    let sectors: Vec<&[u8]> = log.chunks_exact(SECTOR_BYTES).take(len).collect();
    let decoded: Vec<Option<Transaction83>> = sectors.iter().map(|sector| decode_83(sector)).collect();
    let mut order: Vec<usize> = (0..len).filter(|i| decoded[*i].is_some()).collect();
    let number = |i: usize| decoded[i].as_ref().map_or(0, |(number, _)| *number);
    let base = order.first().map_or(0, |first| number(*first));
    order.sort_by_key(|i| number(*i).wrapping_sub(base) as i32);
    let next = order.last().map(|newest| (newest + 1) % len);
    let written = |i: &usize| sectors[*i].iter().any(|byte| *byte != 0);
    if (0..len).filter(written).any(|i| decoded[i].is_none() && Some(i) != next) {
        return Recovery::MarkEverything { reason: "a sector of the activity log is damaged".to_string() };
    }
    if order.is_empty() {
        return Recovery::Nothing;
    }
    let mut table = SlotTable::default();
    for (_, pairs) in order.iter().filter_map(|i| decoded[*i].as_ref()) {
        let (change, context) = pairs.split_first().expect("the change is always there");
        for (slot, extent) in context.iter().chain([change]).filter(|(slot, _)| *slot != NONE_83) {
            table.put(*slot as usize, Some(*extent).filter(|e| *e != NONE_83).map(ExtentIndex));
        }
    }
    Recovery::Hot { extents: table.hot(), damaged: 0 }
}

fn decode_83(sector: &[u8]) -> Option<Transaction83> {
    let mut block = [0; BLOCK_BYTES];
    block[..SECTOR_BYTES].copy_from_slice(sector);
    let word = |at| u32_at(&block, at);
    let pair = |i: usize| (word(PAIRS_AT_83 + i * 8), word(PAIRS_AT_83 + i * 8 + 4));
    let pairs: Vec<(u32, u32)> = (0..PAIRS_83).map(pair).collect();
    let xor = pairs.iter().fold(0, |xor, (_, extent)| xor ^ extent);
    (word(0) == MAGIC_83 && word(XOR_AT_83) == xor).then(|| (word(4), pairs))
}
