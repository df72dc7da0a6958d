//! Every message of the DRBD 9 dialect as a value, and those that only 8.4 has in one variant ([`v84::Message84`]). One variant a packet; numbers and layouts: docs/wire.md.
//!
//! Sectors of the wire are already bytes here ([`ByteRange`]). Fields that the receiver must echo unchanged
//! (`block_id`, barrier numbers) are opaque numbers: encoding writes the same bytes that decoding read.

use crate::v84;
use alloc::string::String;
use alloc::vec::Vec;
use types::{ByteRange, NodeId, NodeSet, Uuid};

/// The two sockets of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Socket {
    /// Handshake, requests, bulk data, states, bitmaps.
    Data,
    /// Pings, acknowledgements, votes.
    Control,
}

/// Flags of a replicated write (`dp_flags`). Source: docs/wire.md "dp_flags".
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DataFlags(pub u32);

impl DataFlags {
    pub const RW_SYNC: u32 = 2;
    pub const MAY_SET_IN_SYNC: u32 = 4;
    pub const UNPLUG: u32 = 8;
    pub const FUA: u32 = 16;
    pub const FLUSH: u32 = 32;
    pub const DISCARD: u32 = 64;
    pub const SEND_RECEIVE_ACK: u32 = 128;
    pub const SEND_WRITE_ACK: u32 = 256;
    pub const ZEROES: u32 = 1024;

    pub const fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}

/// Head of DATA, TRIM, ZEROES and of the data replies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataHead {
    /// Where it goes; the length is that of the data (DATA, replies) or of the size field (TRIM, ZEROES).
    pub range: ByteRange,
    pub block_id: u64,
    pub seq: u32,
    pub flags: DataFlags,
}

/// The acknowledgement layout (`p_block_ack`): acks, negative acks, cancels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockAck {
    pub range: ByteRange,
    pub block_id: u64,
    pub seq: u32,
}

/// The request layout (`p_block_req`, `p_rs_req`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRequest {
    pub range: ByteRange,
    pub block_id: u64,
    /// Only in the DAGTAG variants: the write that the answering node must have received before it reads, and from
    /// whom. Tag 0: no dependency. Kept raw: DRBD sends node ids outside 0..=31 when there is no dependency.
    pub dagtag: Option<Dagtag>,
}

/// A position in a Primary's stream of writes: sectors written so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dagtag {
    pub node: u32,
    pub tag: u64,
}

/// CONNECTION_FEATURES.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionFeatures {
    pub protocol_min: u32,
    pub protocol_max: u32,
    pub features: u32,
    /// Raw: a node id of 32 or more is the receiver's business to refuse.
    pub sender_node_id: u32,
    pub receiver_node_id: u32,
}

/// PROTOCOL and PROTOCOL_UPDATE. Numbers are the wire's: see docs/wire.md "PROTOCOL".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProtocolOptions {
    /// 1 = A, 2 = B, 3 = C.
    pub protocol: u32,
    pub after_sb_0pri: u32,
    pub after_sb_1pri: u32,
    pub after_sb_2pri: u32,
    /// 1 discard-my-data, 2 dry-run.
    pub connection_flags: u32,
    pub two_primaries: bool,
    /// Empty: none.
    pub integrity_alg: String,
}

/// SYNC_PARAM89, the form of protocol 95 and newer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyncParam {
    pub resync_rate_kib: u32,
    pub verify_alg: String,
    pub csums_alg: String,
    pub plan_ahead: u32,
    pub delay_target: u32,
    pub fill_target_sectors: u32,
    pub max_rate_kib: u32,
}

/// SIZES. Sizes in bytes here, in sectors on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    pub disk_bytes: u64,
    pub user_bytes: u64,
    pub current_bytes: u64,
    pub io_bytes_max: u32,
    pub queue_order: u16,
    pub dds_flags: u16,
    /// Present with feature WSAME.
    pub limits: Option<QueueLimits>,
}

/// The 24 bytes that feature WSAME adds to SIZES.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueLimits {
    pub physical_block_bytes: u32,
    pub logical_block_bytes: u32,
    pub alignment_offset: u32,
    pub io_min: u32,
    pub io_opt: u32,
    pub discard_enabled: u8,
    pub discard_zeroes_data: u8,
    pub write_same_capable: u8,
    /// Bitmap block shift minus 12.
    pub bitmap_block_shift: u8,
}

/// UUIDS110.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uuids {
    pub current: Uuid,
    /// Bits set towards the receiver.
    pub dirty_bits: u64,
    /// See [`uuid_flag`].
    pub flags: u64,
    /// Raw: complements have high bits set and go back out as they came.
    pub node_mask: u64,
    /// Raw for the same reason; bits 0..=31 say whose bitmap UUIDs follow.
    pub bitmap_mask: u64,
    /// One for each of bits 0..=31 set in `bitmap_mask`, lowest node first.
    pub bitmap: Vec<Uuid>,
    pub history: Vec<Uuid>,
}

impl Uuids {
    /// The sender's bitmap UUID for `node`; `None` if the sender says nothing about that node.
    pub fn bitmap_of(&self, node: NodeId) -> Option<Uuid> {
        let below = (self.bitmap_mask as u32) & ((1u32 << node.get()) - 1);
        if self.bitmap_mask & (1 << node.get()) == 0 { None } else { Some(self.bitmap[below.count_ones() as usize]) }
    }
}

/// Flags of [`Uuids::flags`]. Source: docs/wire.md "UUIDS110".
pub mod uuid_flag {
    pub const DISCARD_MY_DATA: u64 = 1;
    pub const CRASHED_PRIMARY: u64 = 2;
    pub const INCONSISTENT: u64 = 4;
    pub const SKIP_INITIAL_SYNC: u64 = 8;
    pub const NEW_DATAGEN: u64 = 16;
    pub const STABLE: u64 = 32;
    pub const GOT_STABLE: u64 = 64;
    pub const RESYNC: u64 = 128;
    pub const RECONNECT: u64 = 256;
    pub const DISKLESS_PRIMARY: u64 = 512;
    pub const PRIMARY_LOST_QUORUM: u64 = 1024;
    pub const SYNC_TARGET: u64 = 2048;
    pub const HAS_UNALLOC: u64 = 4096;
    /// Not DRBD's, only said to a replicad peer: the bits towards it were on disk before this node's last crash or
    /// detach, the activity log did not bring them.
    pub const TRACKED_BITS: u64 = 1 << 40;
}

/// The 32-bit state word of STATE and of two-phase masks and values. Decoding of single fields: `state_word`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StateWord(pub u32);

/// Head of every two-phase packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TwopcHead {
    /// Transaction id, not zero.
    pub tid: u32,
    /// Feature 2PC_V2: raw flag word (0x80000000 always set, see docs/wire.md).
    pub flags: u32,
    pub initiator: NodeId,
    /// `None`: all.
    pub target: Option<NodeId>,
    /// Raw, made with NOT.
    pub nodes_to_reach: u64,
}

/// Body of TWOPC_PREPARE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TwopcPrepare {
    pub head: TwopcHead,
    pub mask: StateWord,
    pub value: StateWord,
}

/// Body of TWOPC_COMMIT and TWOPC_ABORT of a state change. For a resize the two words are the diskful primaries and
/// the new size in sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TwopcDecision {
    pub head: TwopcHead,
    pub primary_nodes: u64,
    pub reachable_nodes: u64,
}

/// TWOPC_PREP_RSZ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TwopcResize {
    pub head: TwopcHead,
    pub user_bytes: u64,
    pub dds_flags: u16,
}

/// TWOPC_YES, NO, RETRY.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TwopcReply {
    pub tid: u32,
    pub initiator: NodeId,
    pub reachable_nodes: u64,
    pub primary_nodes: u64,
    pub weak_nodes: u64,
}

/// One BITMAP or COMPRESSED_BITMAP packet; its position follows from those before it (docs/wire.md "Bitmap").
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BitmapChunk {
    /// Little-endian 64-bit words as bytes; empty: terminator.
    Plain(Vec<u8>),
    /// Head byte, then the code.
    Compressed(Vec<u8>),
}

/// A message. The volume number travels beside it (`None`: the whole connection).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    // Data socket, handshake
    ConnectionFeatures(ConnectionFeatures),
    AuthChallenge(Vec<u8>),
    AuthResponse(Vec<u8>),
    Protocol(ProtocolOptions),
    ProtocolUpdate(ProtocolOptions),
    SyncParam(SyncParam),
    Sizes(Sizes),
    Uuids(Uuids),
    CurrentUuid {
        uuid: Uuid,
        weak_nodes: u64,
    },
    State(StateWord),
    EnableReplicationNext(u8),
    EnableReplication(u8),
    Disconnect,

    // Data socket, writes and reads. DATA and the replies are followed by `range.len()` bytes of payload.
    Data(DataHead),
    Trim(DataHead),
    Zeroes(DataHead),
    DataRequest(BlockRequest),
    DataReply(DataHead),
    Barrier(u32),
    UnplugRemote,
    OutOfSync(ByteRange),
    Dagtag(u64),
    PeerDagtag {
        dagtag: u64,
        node: u32,
    },
    FlushRequests(u64),
    FlushRequestsAck {
        sequence: u64,
        primary: u32,
    },

    // Data socket, resync and verify. `dagtag` set: the RS_*_DAGTAG_REQ / OV_DAGTAG_* form.
    RsDataRequest(BlockRequest),
    RsThinRequest(BlockRequest),
    /// Followed by the digest.
    CsumRsRequest {
        request: BlockRequest,
        digest: Vec<u8>,
    },
    RsDataReply(DataHead),
    RsDeallocated(BlockAck),
    OvRequest(BlockRequest),
    OvReply {
        request: BlockRequest,
        digest: Vec<u8>,
    },
    Bitmap(BitmapChunk),

    // Data socket, two-phase commit
    TwopcPrepare(TwopcPrepare),
    TwopcPrepareResize(TwopcResize),
    TwopcCommit(TwopcDecision),
    TwopcAbort(TwopcDecision),

    // Control socket
    Ping,
    PingAck,
    RecvAck(BlockAck),
    WriteAck(BlockAck),
    WriteAckInSync(BlockAck),
    RsWriteAck(BlockAck),
    NegAck(BlockAck),
    RsNegAck(BlockAck),
    NegDataReply(BlockAck),
    NegRsDataReply(BlockAck),
    RsIsInSync(BlockAck),
    RsCancel(BlockAck),
    RsCancelAhead(BlockAck),
    OvResult {
        ack: BlockAck,
        result: u32,
    },
    BarrierAck {
        barrier: u32,
        set_size: u32,
    },
    ConfirmStable {
        oldest_block_id: u64,
        youngest_block_id: u64,
        set_size: u32,
    },
    PeerAck {
        nodes: u64,
        dagtag: u64,
    },
    PeersInSync {
        range: ByteRange,
        nodes: u64,
    },
    FlushForward {
        sequence: u64,
        initiator: u32,
    },
    TwopcYes(TwopcReply),
    TwopcNo(TwopcReply),
    TwopcRetry(TwopcReply),

    /// What only the 8.4 dialect has.
    V84(v84::Message84),
}

impl Message {
    /// Bytes of bulk data that follow this message on the stream; the driver moves them.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Message::Data(head) | Message::DataReply(head) | Message::RsDataReply(head) => head.range.len(),
            _ => 0,
        }
    }

    /// Nodes of a mask that came off the wire.
    pub fn nodes(mask: u64) -> NodeSet {
        NodeSet::from_wire(mask)
    }
}
