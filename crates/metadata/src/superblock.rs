//! The v09 superblock: 4096 bytes, big endian, no checksum (see `docs/ondisk.md` "Superblock" for what that costs).
//!
//! Stages: a raw [`Block`], [`Superblock::decode`], [`check`]. `decode` refuses only what has no meaning at all, so
//! that `dump-md` can show the rest; nothing may attach before `check`. [`FIELDS`] is the table in the document.

use alloc::format;
use alloc::string::String;
use core::fmt;

use types::{NodeId, NodeSet, Slot, Uuid};

use crate::bytes::{i32_at, put_i32, put_u32, put_u64, u32_at, u64_at};
use crate::error::{FormatError, Region};
use crate::layout::{Geometry, Layout, MAX_PEERS_MAX, Placement};
use crate::{BLOCK_BYTES, Block};

/// v09, clean or not. At the same place in every format since v07.
pub const MAGIC_V09: u32 = 0x8374_026D;
/// Peer records and history entries, both one per possible node id.
pub const PEERS: usize = 32;
/// `al-extents` that `create-md` and `restore-md` of drbdmeta write. The running writer stores its own.
pub const AL_SLOTS_FRESH: u32 = 257;

const SECTOR: u64 = types::range::SECTOR_BYTES;

pub(crate) mod at {
    pub const LA_SIZE: usize = 0x000;
    pub const CURRENT_UUID: usize = 0x008;
    pub const MEMBERS: usize = 0x010;
    pub const DEVICE_UUID: usize = 0x030;
    pub const FLAGS: usize = 0x038;
    pub const MAGIC: usize = 0x03C;
    pub const MD_SIZE: usize = 0x040;
    pub const AL_OFFSET: usize = 0x044;
    pub const AL_EXTENTS: usize = 0x048;
    pub const BM_OFFSET: usize = 0x04C;
    pub const BM_BYTE_PER_BIT: usize = 0x050;
    pub const PEER_MAX_BIO_SIZE: usize = 0x054;
    pub const MAX_PEERS: usize = 0x058;
    pub const NODE_ID: usize = 0x05C;
    pub const AL_STRIPES: usize = 0x060;
    pub const AL_STRIPE_4K: usize = 0x064;
    pub const PEERS: usize = 0x070;
    pub const HISTORY: usize = 0x470;
    pub const PADDING: usize = 0x570;

    pub const PEER_BYTES: usize = 32;
    pub const PEER_BITMAP_UUID: usize = 0x00;
    pub const PEER_BITMAP_DAGTAG: usize = 0x08;
    pub const PEER_FLAGS: usize = 0x10;
    pub const PEER_BITMAP_INDEX: usize = 0x14;
}
const _: () = assert!(at::PEERS + PEERS * at::PEER_BYTES == at::HISTORY && at::HISTORY + PEERS * 8 == at::PADDING);

/// Offset, width as in the document, DRBD's name. What is not listed is reserved: zero on write, ignored on read.
pub const FIELDS: &[(usize, &str, &str)] = &[
    (at::LA_SIZE, "u64", "la-size-sect"),
    (at::CURRENT_UUID, "u64", "current-uuid"),
    (at::MEMBERS, "u64", "members"),
    (at::DEVICE_UUID, "u64", "device-uuid"),
    (at::FLAGS, "u32", "flags"),
    (at::MAGIC, "u32", "magic"),
    (at::MD_SIZE, "u32", "md-size-sect"),
    (at::AL_OFFSET, "i32", "al-offset"),
    (at::AL_EXTENTS, "u32", "al-extents"),
    (at::BM_OFFSET, "i32", "bm-offset"),
    (at::BM_BYTE_PER_BIT, "u32", "bm-byte-per-bit"),
    (at::PEER_MAX_BIO_SIZE, "u32", "la-peer-max-bio-size"),
    (at::MAX_PEERS, "u32", "max-peers"),
    (at::NODE_ID, "i32", "node-id"),
    (at::AL_STRIPES, "u32", "al-stripes"),
    (at::AL_STRIPE_4K, "u32", "al-stripe-size-4k"),
    (at::PEERS, "32 x 32 B", "peer"),
    (at::HISTORY, "32 x u64", "history-uuids"),
    (at::PADDING, "to FFF", "padding"),
];

/// Fields of one peer record, relative to it.
pub const PEER_FIELDS: &[(usize, &str, &str)] = &[
    (at::PEER_BITMAP_UUID, "u64", "bitmap-uuid"),
    (at::PEER_BITMAP_DAGTAG, "u64", "bitmap-dagtag"),
    (at::PEER_FLAGS, "u32", "flags"),
    (at::PEER_BITMAP_INDEX, "i32", "bitmap-index"),
];

macro_rules! flag_word {
    ($name:ident { $($(#[$doc:meta])* $flag:ident = $bit:expr, $text:literal;)* }) => {
        impl $name {
            $($(#[$doc])* pub const $flag: $name = $name(1 << $bit);)*
            /// Named bits in order of bit number, with the name a person reads.
            pub const NAMED: &'static [($name, &'static str)] = &[$(($name::$flag, $text)),*];

            /// All bits of `other` are set.
            pub const fn contains(self, other: $name) -> bool {
                self.0 & other.0 == other.0
            }
            #[must_use]
            pub const fn with(self, other: $name) -> $name {
                $name(self.0 | other.0)
            }
            #[must_use]
            pub const fn without(self, other: $name) -> $name {
                $name(self.0 & !other.0)
            }
            pub const fn set(&mut self, other: $name, on: bool) {
                self.0 = if on { self.0 | other.0 } else { self.0 & !other.0 };
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#010x}", self.0)?;
                let set = $name::NAMED.iter().filter(|(flag, _)| self.contains(*flag)).map(|(_, name)| name);
                f.debug_set().entries(set).finish()
            }
        }
    };
}

/// Flags of the volume on this node. Unknown bits are kept.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceFlags(pub u32);

flag_word!(DeviceFlags {
    /// Not a half finished sync target.
    CONSISTENT = 0, "consistent";
    /// Some node was Primary, so writes were possible here: the activity log counts after a crash. Durable before
    /// the first write reaches the disk.
    PRIMARY_INDICATOR = 1, "primary-indicator";
    /// The disk was better than Outdated.
    WAS_UP_TO_DATE = 4, "was-up-to-date";
    /// This node was Primary and did not leave that role in an orderly way.
    CRASHED_PRIMARY = 6, "crashed-primary";
    /// The activity log was applied and initialised; DRBD attaches only with this bit.
    AL_CLEAN = 7, "al-clean";
    /// Nobody recorded hot extents, or the layout is being rewritten: neither log nor bitmap says the truth.
    AL_DISABLED = 8, "al-disabled";
    /// This node was Primary when it lost quorum.
    LOST_QUORUM = 9, "lost-quorum";
    /// The partition was quorate at the last update.
    HAVE_QUORUM = 10, "have-quorum";
});

/// What this node remembers of a peer. Unknown bits are kept.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerFlags(pub u32);

flag_word!(PeerFlags {
    /// Replication was established.
    CONNECTED = 0, "connected";
    /// The peer's disk was Outdated or worse.
    OUTDATED = 1, "<=outdated";
    /// A fencing policy is configured for this peer.
    FENCING = 2, "fencing";
    /// All bits of its slot have to be set before use: a crash came between the order and the bits.
    FULL_SYNC = 3, "full-sync";
    /// The peer has had a backing disk at some time.
    DEVICE_SEEN = 4, "seen";
    /// The node is a member although it has no bitmap here.
    NODE_EXISTS = 16, "exists";
});

/// What the superblock knows of one node; the index in [`Superblock::peers`] is its node id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PeerRecord {
    /// Generation since which this peer's slot collects changes; 0 = nothing to sync.
    pub bitmap_uuid: Uuid,
    /// The resource's write counter (sectors) when `bitmap_uuid` was set.
    pub bitmap_dagtag: u64,
    pub flags: PeerFlags,
    /// Its bitmap slot.
    pub slot: Option<Slot>,
}

impl PeerRecord {
    /// Belongs to nobody: carries the day-0 UUID that a new peer inherits together with an unowned slot.
    pub const fn is_day0(&self) -> bool {
        self.slot.is_none() && self.flags.0 == 0
    }
}

/// Every field of a v09 superblock. `encode(decode(x)) == x` where reserved space is zero.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// The size that the cluster agreed on last, 0 = never. A multiple of 512, not always of 4096.
    pub last_agreed_bytes: u64,
    pub current_uuid: Uuid,
    /// Bit n = node n was in the quorate partition. Kept as found; [`Superblock::member_nodes`] reads it.
    pub members: u64,
    pub device_uuid: u64,
    pub flags: DeviceFlags,
    pub md_size_sectors: u32,
    pub al_offset_sectors: i32,
    /// Slots of the log's writer ("al-extents").
    pub al_slots: u32,
    pub bm_offset_sectors: i32,
    pub bitmap_block_bytes: u32,
    pub peer_max_io_bytes: u32,
    /// Bitmap slots, 1..=31.
    pub max_peers: u8,
    /// `None` until the first attach.
    pub node_id: Option<NodeId>,
    pub al_stripes: u32,
    pub al_stripe_4k: u32,
    pub peers: [PeerRecord; PEERS],
    /// Newest first; unused ones are 0 at the end.
    pub history: [Uuid; PEERS],
}

impl Superblock {
    /// What `create-md` writes: never synchronised, log initialised, no peers.
    pub fn fresh(geometry: Geometry, layout: &Layout) -> Superblock {
        Superblock {
            last_agreed_bytes: 0,
            current_uuid: Uuid::JUST_CREATED,
            members: 0,
            device_uuid: 0,
            flags: DeviceFlags::AL_CLEAN,
            md_size_sectors: layout.md_size_sectors,
            al_offset_sectors: layout.al_offset_sectors,
            al_slots: AL_SLOTS_FRESH,
            bm_offset_sectors: layout.bm_offset_sectors,
            bitmap_block_bytes: geometry.bitmap_block_bytes,
            peer_max_io_bytes: 0,
            max_peers: geometry.max_peers,
            node_id: None,
            al_stripes: geometry.al_stripes,
            al_stripe_4k: geometry.al_stripe_4k,
            peers: [PeerRecord::default(); PEERS],
            history: [Uuid::ZERO; PEERS],
        }
    }

    /// Decodes the block found at `offset` of the metadata device (for the messages only).
    pub fn decode(block: &Block, offset: u64) -> Result<Superblock, FormatError> {
        let magic = u32_at(block, at::MAGIC);
        if magic != MAGIC_V09 {
            let rule = format!("not DRBD metadata v09, which has {MAGIC_V09:#010x} here{}", other_format(magic));
            return Err(refuse("magic", offset, at::MAGIC, format!("{magic:#010x}"), rule));
        }
        let la_size = u64_at(block, at::LA_SIZE);
        let last_agreed_bytes = la_size.checked_mul(SECTOR).ok_or_else(|| {
            refuse("la-size-sect", offset, at::LA_SIZE, format!("{la_size}"), "does not fit in 64 bits of bytes".into())
        })?;
        let max_peers = u32_at(block, at::MAX_PEERS);
        let max_peers_ok = u8::try_from(max_peers).ok().filter(|n| (1..=MAX_PEERS_MAX).contains(n));
        let Some(max_peers) = max_peers_ok else {
            let rule = format!("must be 1 to {MAX_PEERS_MAX}");
            return Err(refuse("max-peers", offset, at::MAX_PEERS, format!("{max_peers}"), rule));
        };
        let mut peers = [PeerRecord::default(); PEERS];
        for (node, peer) in peers.iter_mut().enumerate() {
            *peer = decode_peer(block, node, offset)?;
        }
        Ok(Superblock {
            last_agreed_bytes,
            current_uuid: Uuid(u64_at(block, at::CURRENT_UUID)),
            members: u64_at(block, at::MEMBERS),
            device_uuid: u64_at(block, at::DEVICE_UUID),
            flags: DeviceFlags(u32_at(block, at::FLAGS)),
            md_size_sectors: u32_at(block, at::MD_SIZE),
            al_offset_sectors: i32_at(block, at::AL_OFFSET),
            al_slots: u32_at(block, at::AL_EXTENTS),
            bm_offset_sectors: i32_at(block, at::BM_OFFSET),
            bitmap_block_bytes: u32_at(block, at::BM_BYTE_PER_BIT),
            peer_max_io_bytes: u32_at(block, at::PEER_MAX_BIO_SIZE),
            max_peers,
            node_id: decode_node_id(block, offset)?,
            al_stripes: u32_at(block, at::AL_STRIPES),
            al_stripe_4k: u32_at(block, at::AL_STRIPE_4K),
            peers,
            history: core::array::from_fn(|i| Uuid(u64_at(block, at::HISTORY + i * 8))),
        })
    }

    /// The block to write, reserved space zero. To be written as one 4 KiB write with preflush and FUA.
    pub fn encode(&self) -> Block {
        let mut block = [0; BLOCK_BYTES];
        assert!(
            self.last_agreed_bytes.is_multiple_of(SECTOR),
            "agreed size {} is not whole sectors",
            self.last_agreed_bytes
        );
        put_u64(&mut block, at::LA_SIZE, self.last_agreed_bytes / SECTOR);
        put_u64(&mut block, at::CURRENT_UUID, self.current_uuid.0);
        put_u64(&mut block, at::MEMBERS, self.members);
        put_u64(&mut block, at::DEVICE_UUID, self.device_uuid);
        put_u32(&mut block, at::FLAGS, self.flags.0);
        put_u32(&mut block, at::MAGIC, MAGIC_V09);
        put_u32(&mut block, at::MD_SIZE, self.md_size_sectors);
        put_i32(&mut block, at::AL_OFFSET, self.al_offset_sectors);
        put_u32(&mut block, at::AL_EXTENTS, self.al_slots);
        put_i32(&mut block, at::BM_OFFSET, self.bm_offset_sectors);
        put_u32(&mut block, at::BM_BYTE_PER_BIT, self.bitmap_block_bytes);
        put_u32(&mut block, at::PEER_MAX_BIO_SIZE, self.peer_max_io_bytes);
        put_u32(&mut block, at::MAX_PEERS, self.max_peers.into());
        put_i32(&mut block, at::NODE_ID, self.node_id.map_or(-1, |id| id.get().into()));
        put_u32(&mut block, at::AL_STRIPES, self.al_stripes);
        put_u32(&mut block, at::AL_STRIPE_4K, self.al_stripe_4k);
        for (node, peer) in self.peers.iter().enumerate() {
            let record = peer_at(node);
            put_u64(&mut block, record + at::PEER_BITMAP_UUID, peer.bitmap_uuid.0);
            put_u64(&mut block, record + at::PEER_BITMAP_DAGTAG, peer.bitmap_dagtag);
            put_u32(&mut block, record + at::PEER_FLAGS, peer.flags.0);
            put_i32(&mut block, record + at::PEER_BITMAP_INDEX, peer.slot.map_or(-1, |slot| slot.0.into()));
        }
        for (i, uuid) in self.history.iter().enumerate() {
            put_u64(&mut block, at::HISTORY + i * 8, uuid.0);
        }
        block
    }

    /// To be durable before the bitmap is written anew, by whatever crash it ends: neither log nor bits are to be
    /// believed, so whoever attaches sets every bit of every slot. The data is as good as before.
    #[must_use]
    pub fn being_rewritten(&self) -> Superblock {
        let mut marked = self.clone();
        marked.flags.set(DeviceFlags::AL_DISABLED, true);
        for peer in &mut marked.peers {
            peer.flags.set(PeerFlags::FULL_SYNC, true);
        }
        marked
    }

    pub const fn geometry(&self) -> Geometry {
        Geometry {
            max_peers: self.max_peers,
            bitmap_block_bytes: self.bitmap_block_bytes,
            al_stripes: self.al_stripes,
            al_stripe_4k: self.al_stripe_4k,
        }
    }
    pub fn peer(&self, node: NodeId) -> &PeerRecord {
        &self.peers[node.index()]
    }
    pub fn peer_mut(&mut self, node: NodeId) -> &mut PeerRecord {
        &mut self.peers[node.index()]
    }
    pub const fn member_nodes(&self) -> NodeSet {
        NodeSet::from_wire(self.members)
    }
    /// The node that owns a slot. `None`: a day-0 slot, which collects every write for a peer yet to come.
    pub fn slot_owner(&self, slot: Slot) -> Option<NodeId> {
        NodeId::all().find(|node| self.peer(*node).slot == Some(slot))
    }
    /// The slot that a new peer gets. `None`: all are owned.
    pub fn lowest_free_slot(&self) -> Option<Slot> {
        (0..self.max_peers).map(Slot).find(|slot| self.slot_owner(*slot).is_none())
    }
}

const fn peer_at(node: usize) -> usize {
    at::PEERS + node * at::PEER_BYTES
}

fn refuse(field: &'static str, superblock: u64, at: usize, value: String, rule: String) -> FormatError {
    FormatError::new(Region::Superblock, field, superblock.saturating_add(at as u64), value, rule)
}

fn other_format(magic: u32) -> &'static str {
    match magic {
        0x8374_026A => " (this is v07)",
        0x8374_026B => " (this is v08, written by DRBD 8)",
        0x8374_026C => " (this is v08, left unclean by DRBD 8.4)",
        0 => " (the block is empty here)",
        _ => "",
    }
}

fn decode_node_id(block: &Block, offset: u64) -> Result<Option<NodeId>, FormatError> {
    let id = i32_at(block, at::NODE_ID);
    if id == -1 {
        return Ok(None);
    }
    match u8::try_from(id).ok().and_then(NodeId::new) {
        Some(id) => Ok(Some(id)),
        None => Err(refuse("node-id", offset, at::NODE_ID, format!("{id}"), "must be -1 or 0 to 31".into())),
    }
}

fn decode_peer(block: &Block, node: usize, offset: u64) -> Result<PeerRecord, FormatError> {
    let record = peer_at(node);
    let index = i32_at(block, record + at::PEER_BITMAP_INDEX);
    let slot = match u8::try_from(index) {
        _ if index == -1 => None,
        Ok(slot) if slot < PEERS as u8 => Some(Slot(slot)),
        _ => {
            let rule = format!("must be -1 or the number of a bitmap slot (record of node {node})");
            return Err(refuse("bitmap-index", offset, record + at::PEER_BITMAP_INDEX, format!("{index}"), rule));
        }
    };
    Ok(PeerRecord {
        bitmap_uuid: Uuid(u64_at(block, record + at::PEER_BITMAP_UUID)),
        bitmap_dagtag: u64_at(block, record + at::PEER_BITMAP_DAGTAG),
        flags: PeerFlags(u32_at(block, record + at::PEER_FLAGS)),
        slot,
    })
}

/// Does this superblock describe this device? Stricter than drbdmeta, which accepts a slot that does not exist, two
/// owners of one slot and an activity log of length 0.
pub fn check(sb: &Superblock, placement: Placement, meta_device_bytes: u64) -> Result<Layout, FormatError> {
    let offset = crate::layout::superblock_offset(placement, meta_device_bytes)?;
    if let Some((field, value, rule)) = sb.geometry().violation() {
        return Err(refuse(field, offset, field_at(field), format!("{value}"), rule));
    }
    let layout = Layout::compute(placement, meta_device_bytes, sb.geometry())?;
    check_offsets(sb, placement, meta_device_bytes, &layout, offset)?;
    check_size(sb, &layout, offset)?;
    check_slots(sb, offset)?;
    Ok(layout)
}

fn field_at(name: &str) -> usize {
    FIELDS.iter().find(|(_, _, field)| *field == name).map_or(0, |(at, _, _)| *at)
}

fn check_offsets(
    sb: &Superblock,
    placement: Placement,
    meta_device_bytes: u64,
    layout: &Layout,
    offset: u64,
) -> Result<(), FormatError> {
    let expect = |field, at, found: i64, computed: i64| {
        if found == computed {
            return Ok(());
        }
        let rule = format!("must be {computed} for a metadata device of {meta_device_bytes} bytes");
        Err(refuse(field, offset, at, format!("{found}"), rule))
    };
    expect("al-offset", at::AL_OFFSET, sb.al_offset_sectors.into(), layout.al_offset_sectors.into())?;
    expect("bm-offset", at::BM_OFFSET, sb.bm_offset_sectors.into(), layout.bm_offset_sectors.into())?;
    if placement != Placement::External {
        return expect("md-size-sect", at::MD_SIZE, sb.md_size_sectors.into(), layout.md_size_sectors.into());
    }
    // A device that has grown since is fine: DRBD takes the new size at the next attach.
    if sb.md_size_sectors > layout.md_size_sectors {
        let rule = format!("the metadata device has only {} sectors", layout.md_size_sectors);
        return Err(refuse("md-size-sect", offset, at::MD_SIZE, format!("{}", sb.md_size_sectors), rule));
    }
    Ok(())
}

fn check_size(sb: &Superblock, layout: &Layout, offset: u64) -> Result<(), FormatError> {
    if sb.last_agreed_bytes <= layout.usable_bytes {
        return Ok(());
    }
    let rule = format!("at most {} sectors fit beside the metadata", layout.usable_bytes / SECTOR);
    Err(refuse("la-size-sect", offset, at::LA_SIZE, format!("{}", sb.last_agreed_bytes / SECTOR), rule))
}

fn check_slots(sb: &Superblock, offset: u64) -> Result<(), FormatError> {
    let mut owners: [Option<NodeId>; PEERS] = [None; PEERS];
    for node in NodeId::all() {
        let Some(slot) = sb.peer(node).slot else { continue };
        let wrong = |rule| {
            let at = peer_at(node.index()) + at::PEER_BITMAP_INDEX;
            Err(refuse("bitmap-index", offset, at, format!("{}", slot.0), rule))
        };
        if slot.0 >= sb.max_peers {
            return wrong(format!("node {node} has a slot beyond max-peers {}", sb.max_peers));
        }
        if sb.node_id == Some(node) {
            return wrong(format!("node {node} is this node, which has no bitmap slot towards itself"));
        }
        if let Some(other) = owners[usize::from(slot.0)].replace(node) {
            return wrong(format!("node {node} has the same slot as node {other}"));
        }
    }
    Ok(())
}
