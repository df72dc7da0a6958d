//! The table of packets of the DRBD 9 dialect (that of 8.4: `v84`): number, name, socket, whose they are, length, since when, who sends them.
//!
//! docs/wire.md "Packets" is printed from this table; a test keeps the two equal. A new packet needs a line here, a
//! variant of `Message` and its place in `codec`.

use crate::message::Socket;
use crate::v84;
use crate::version::{PROTOCOL_MAX, PROTOCOL_MIN, feature};

/// Largest data of one DATA, DATA_REPLY or RS_DATA_REPLY, and of one read or resync request. Bytes.
/// Source: protocol 100 and newer.
pub const BULK_BYTES_MAX: u32 = 1 << 20;

/// Largest TRIM or ZEROES. Bytes. Source: what feature WSAME allows; without it peers stay below 4 MiB themselves.
pub const DISCARD_BYTES_MAX: u32 = 128 << 20;

/// Largest integrity, verify or checksum digest. Bytes: sha512.
pub const DIGEST_BYTES_MAX: u32 = 64;

/// Size of an algorithm name with its NUL.
pub const NAME_BYTES_MAX: u32 = 64;

/// CRAM-HMAC challenge. Bytes. DRBD 9 takes no other size.
pub const CHALLENGE_BYTES: u32 = 64;

/// Payload of a bitmap packet: the frame has at most 4096 bytes with its h100 header.
pub const BITMAP_BYTES_MAX: u32 = 4096 - 16;

/// Bitmap UUIDs (one for each node id) and history entries that UUIDS110 may carry. DRBD sends 32 history entries.
const UUID_ENTRIES_MAX: u32 = 32 + 64;

/// Numbers on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u16)]
pub enum Packet {
    Data = 0x00,
    DataReply = 0x01,
    RsDataReply = 0x02,
    Barrier = 0x03,
    Bitmap = 0x04,
    UnplugRemote = 0x07,
    DataRequest = 0x08,
    RsDataRequest = 0x09,
    Protocol = 0x0b,
    /// Only in the 8.4 dialect.
    Uuids = 0x0c,
    Sizes = 0x0d,
    State = 0x0e,
    /// Only in the 8.4 dialect.
    SyncUuid = 0x0f,
    AuthChallenge = 0x10,
    AuthResponse = 0x11,
    /// Only in the 8.4 dialect.
    StateChgReq = 0x12,
    Ping = 0x13,
    PingAck = 0x14,
    RecvAck = 0x15,
    WriteAck = 0x16,
    RsWriteAck = 0x17,
    /// Only in the 8.4 dialect.
    Superseded = 0x18,
    NegAck = 0x19,
    NegDreply = 0x1a,
    NegRsDreply = 0x1b,
    BarrierAck = 0x1c,
    /// Only in the 8.4 dialect.
    StateChgReply = 0x1d,
    OvRequest = 0x1e,
    OvReply = 0x1f,
    OvResult = 0x20,
    CsumRsRequest = 0x21,
    RsIsInSync = 0x22,
    SyncParam89 = 0x23,
    CompressedBitmap = 0x24,
    OutOfSync = 0x28,
    RsCancel = 0x29,
    /// Only in the 8.4 dialect.
    ConnStChgReq = 0x2a,
    /// Only in the 8.4 dialect.
    ConnStChgReply = 0x2b,
    /// Only in the 8.4 dialect.
    RetryWrite = 0x2c,
    ProtocolUpdate = 0x2d,
    TwopcPrepare = 0x2e,
    TwopcAbort = 0x2f,
    Dagtag = 0x30,
    Trim = 0x31,
    RsThinReq = 0x32,
    RsDeallocated = 0x33,
    TwopcPrepRsz = 0x35,
    Zeroes = 0x36,
    PeerAck = 0x40,
    PeersInSync = 0x41,
    Uuids110 = 0x42,
    PeerDagtag = 0x43,
    CurrentUuid = 0x44,
    TwopcYes = 0x45,
    TwopcNo = 0x46,
    TwopcCommit = 0x47,
    TwopcRetry = 0x48,
    ConfirmStable = 0x49,
    RsCancelAhead = 0x4a,
    Disconnect = 0x4b,
    RsDagtagReq = 0x4c,
    RsCsumDagtagReq = 0x4d,
    RsThinDagtagReq = 0x4e,
    OvDagtagReq = 0x4f,
    OvDagtagReply = 0x50,
    WriteAckInSync = 0x51,
    RsNegAck = 0x52,
    OvResultId = 0x53,
    RsDeallocatedId = 0x54,
    FlushRequests = 0x55,
    FlushForward = 0x56,
    FlushRequestsAck = 0x57,
    EnableReplicationNext = 0x58,
    EnableReplication = 0x59,
    InitialMeta = 0xfff1,
    InitialData = 0xfff2,
    ConnectionFeatures = 0xfffe,
}

impl Packet {
    /// `None` for numbers that the DRBD 9 dialect does not have, those of the 8.4 dialect included.
    pub fn from_number(number: u16) -> Option<Packet> {
        PacketInfo::of_number(number).map(|info| info.packet)
    }

    pub const fn number(self) -> u16 {
        self as u16
    }

    pub fn info(self) -> &'static PacketInfo {
        let number = self.number();
        let info = PacketInfo::of_number(number).or_else(|| v84::packet_info(number));
        info.unwrap_or_else(|| panic!("{self:?} has no line in a packet table"))
    }

    /// DRBD's name, without its `P_`.
    pub fn name(self) -> &'static str {
        self.info().name
    }
}

/// What the volume field of the header means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    Volume,
    /// The field says 65535 (8.4: 0) and is not looked at.
    Connection,
    Either,
}

/// Length of a frame after its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    Exact(u32),
    /// 32 bytes, 56 with feature WSAME.
    Sizes,
    /// A fixed part, then `min..=max` bytes, a multiple of `step`, that are part of the message.
    Tail {
        fixed: u32,
        min: u32,
        max: u32,
        step: u32,
    },
    /// 24 bytes, the integrity digest, then bulk data up to [`BULK_BYTES_MAX`].
    Bulk,
}

/// A line of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketInfo {
    pub packet: Packet,
    pub name: &'static str,
    pub socket: Socket,
    pub scope: Scope,
    pub body: Body,
    /// Who sends it to whom; for the document.
    pub direction: &'static str,
    /// What it is answered with; for the document. Empty: nothing.
    pub answer: &'static str,
    /// First and last protocol version that has it, as far as we offer them.
    pub since: u32,
    pub until: u32,
    /// Feature bit it needs, 0: none.
    pub feature: u32,
}

impl PacketInfo {
    /// The whole table, ascending by number.
    pub fn all() -> &'static [PacketInfo] {
        TABLE
    }

    #[inline]
    pub fn of_number(number: u16) -> Option<&'static PacketInfo> {
        static LINES: Lines = Lines::of(TABLE);
        LINES.get(number)
    }

    /// May be sent on a connection that agreed on this. Never send a packet that was not agreed on: a kernel drops
    /// the connection. Receiving is laxer: DRBD 9.3.3 sends ENABLE_REPLICATION without agreement.
    pub const fn is_agreed(&self, protocol: u32, features: u32) -> bool {
        self.since <= protocol && protocol <= self.until && features & self.feature == self.feature
    }

    pub(crate) const fn since(self, since: u32) -> PacketInfo {
        PacketInfo { since, ..self }
    }
    pub(crate) const fn until(self, until: u32) -> PacketInfo {
        PacketInfo { until, ..self }
    }
    pub(crate) const fn needs(self, feature: u32) -> PacketInfo {
        PacketInfo { feature, ..self }
    }
}

/// A table by number, for one look-up a message: a search in the table costs as much as reading a small message.
pub(crate) struct Lines([Option<&'static PacketInfo>; Lines::SLOTS]);

impl Lines {
    /// Numbers from 0 to 0x6f have slots of their own, and so have the last sixteen.
    const SLOTS: usize = 0x80;
    const LAST: u16 = 0xfff0;

    /// A number without a slot does not compile, the initializers being statics.
    pub(crate) const fn of(table: &'static [PacketInfo]) -> Lines {
        let mut lines = [None; Lines::SLOTS];
        let mut at = 0;
        while at < table.len() {
            let Some(slot) = Lines::slot(table[at].packet.number()) else { panic!("a packet's number has no slot") };
            lines[slot] = Some(&table[at]);
            at += 1;
        }
        Lines(lines)
    }

    const fn slot(number: u16) -> Option<usize> {
        match number {
            0..0x70 => Some(number as usize),
            Lines::LAST.. => Some(0x70 + (number - Lines::LAST) as usize),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn get(&self, number: u16) -> Option<&'static PacketInfo> {
        self.0[Lines::slot(number)?]
    }
}

/// A line for a packet on the data socket.
pub(crate) const fn d(
    packet: Packet,
    name: &'static str,
    scope: Scope,
    body: Body,
    direction: &'static str,
    answer: &'static str,
) -> PacketInfo {
    let (since, until) = (PROTOCOL_MIN, PROTOCOL_MAX);
    PacketInfo { packet, name, socket: Socket::Data, scope, body, direction, answer, since, until, feature: 0 }
}

/// A line for a packet on the control socket.
pub(crate) const fn c(
    packet: Packet,
    name: &'static str,
    scope: Scope,
    body: Body,
    direction: &'static str,
    answer: &'static str,
) -> PacketInfo {
    PacketInfo { socket: Socket::Control, ..d(packet, name, scope, body, direction, answer) }
}

pub(crate) const fn digest_after(fixed: u32) -> Body {
    Body::Tail { fixed, min: 1, max: DIGEST_BYTES_MAX, step: 1 }
}

use Body::{Bulk, Exact, Tail};
use Packet as P;
use Scope::{Connection, Either, Volume};

pub(crate) const NAME_TAIL: Body = Tail { fixed: 24, min: 1, max: NAME_BYTES_MAX, step: 1 };

// One packet a line: this is a table.
#[rustfmt::skip]
static TABLE: &[PacketInfo] = &[
    d(P::Data, "DATA", Volume, Bulk, "Primary to others", "by dp_flags: RECV_ACK, WRITE_ACK, WRITE_ACK_IN_SYNC (until 121: RS_WRITE_ACK), NEG_ACK"),
    d(P::DataReply, "DATA_REPLY", Volume, Bulk, "answer", ""),
    d(P::RsDataReply, "RS_DATA_REPLY", Volume, Bulk, "source to target", "RS_WRITE_ACK, RS_NEG_ACK (until 121: NEG_ACK)"),
    d(P::Barrier, "BARRIER", Connection, Exact(8), "Primary to others", "BARRIER_ACK"),
    d(P::Bitmap, "BITMAP", Volume, Tail { fixed: 0, min: 0, max: BITMAP_BYTES_MAX, step: 8 }, "both, source first", "the other's bitmap"),
    d(P::UnplugRemote, "UNPLUG_REMOTE", Connection, Exact(0), "any", ""),
    d(P::DataRequest, "DATA_REQUEST", Volume, Exact(24), "Primary without data to others", "DATA_REPLY, NEG_DREPLY"),
    d(P::RsDataRequest, "RS_DATA_REQUEST", Volume, Exact(24), "target to source", "RS_DATA_REPLY, NEG_RS_DREPLY, RS_CANCEL"),
    d(P::Protocol, "PROTOCOL", Connection, NAME_TAIL, "both", ""),
    d(P::Sizes, "SIZES", Volume, Body::Sizes, "any", ""),
    d(P::State, "STATE", Either, Exact(4), "any", ""),
    d(P::AuthChallenge, "AUTH_CHALLENGE", Connection, Exact(CHALLENGE_BYTES), "both", "AUTH_RESPONSE"),
    d(P::AuthResponse, "AUTH_RESPONSE", Connection, Tail { fixed: 0, min: 1, max: DIGEST_BYTES_MAX, step: 1 }, "both", ""),
    c(P::Ping, "PING", Connection, Exact(0), "any", "PING_ACK"),
    c(P::PingAck, "PING_ACK", Connection, Exact(0), "answer", ""),
    c(P::RecvAck, "RECV_ACK", Volume, Exact(24), "answer", ""),
    c(P::WriteAck, "WRITE_ACK", Volume, Exact(24), "answer", ""),
    c(P::RsWriteAck, "RS_WRITE_ACK", Volume, Exact(24), "answer", ""),
    c(P::NegAck, "NEG_ACK", Volume, Exact(24), "answer", ""),
    c(P::NegDreply, "NEG_DREPLY", Volume, Exact(24), "answer", ""),
    c(P::NegRsDreply, "NEG_RS_DREPLY", Volume, Exact(24), "answer", ""),
    c(P::BarrierAck, "BARRIER_ACK", Connection, Exact(8), "answer", ""),
    d(P::OvRequest, "OV_REQUEST", Volume, Exact(24), "verify source to target", "OV_REPLY, NEG_RS_DREPLY, RS_CANCEL"),
    d(P::OvReply, "OV_REPLY", Volume, digest_after(24), "answer", "OV_RESULT, OV_RESULT_ID"),
    c(P::OvResult, "OV_RESULT", Volume, Exact(24), "verify source to target", "").until(121),
    d(P::CsumRsRequest, "CSUM_RS_REQUEST", Volume, digest_after(24), "target to source", "RS_IS_IN_SYNC, RS_DATA_REPLY"),
    c(P::RsIsInSync, "RS_IS_IN_SYNC", Volume, Exact(24), "answer", ""),
    d(P::SyncParam89, "SYNC_PARAM89", Volume, Exact(148), "both", ""),
    d(P::CompressedBitmap, "COMPRESSED_BITMAP", Volume, Tail { fixed: 0, min: 2, max: BITMAP_BYTES_MAX, step: 1 }, "both, source first", "the other's bitmap"),
    d(P::OutOfSync, "OUT_OF_SYNC", Volume, Exact(16), "any", ""),
    c(P::RsCancel, "RS_CANCEL", Volume, Exact(24), "answer", ""),
    d(P::ProtocolUpdate, "PROTOCOL_UPDATE", Connection, NAME_TAIL, "any", ""),
    d(P::TwopcPrepare, "TWOPC_PREPARE", Either, Exact(36), "initiator to others", "TWOPC_YES, TWOPC_NO, TWOPC_RETRY").needs(feature::TWOPC_V2),
    d(P::TwopcAbort, "TWOPC_ABORT", Either, Exact(36), "initiator to others", "").needs(feature::TWOPC_V2),
    d(P::Dagtag, "DAGTAG", Connection, Exact(8), "any", ""),
    d(P::Trim, "TRIM", Volume, Exact(28), "Primary to others", "as DATA").needs(feature::TRIM),
    d(P::RsThinReq, "RS_THIN_REQ", Volume, Exact(24), "target to source", "RS_DATA_REPLY, RS_DEALLOCATED[_ID]").needs(feature::THIN_RESYNC),
    d(P::RsDeallocated, "RS_DEALLOCATED", Volume, Exact(16), "source to target", "RS_WRITE_ACK, NEG_ACK").until(121).needs(feature::THIN_RESYNC),
    d(P::TwopcPrepRsz, "TWOPC_PREP_RSZ", Volume, Exact(36), "initiator to others", "TWOPC_YES, TWOPC_NO, TWOPC_RETRY").needs(feature::TWOPC_V2),
    d(P::Zeroes, "ZEROES", Volume, Exact(28), "Primary to others", "as DATA").needs(feature::WZEROES),
    c(P::PeerAck, "PEER_ACK", Connection, Exact(16), "Primary to others", ""),
    c(P::PeersInSync, "PEERS_IN_SYNC", Volume, Exact(24), "any", ""),
    d(P::Uuids110, "UUIDS110", Volume, Tail { fixed: 40, min: 0, max: 8 * UUID_ENTRIES_MAX, step: 8 }, "any", ""),
    d(P::PeerDagtag, "PEER_DAGTAG", Connection, Exact(12), "any, three nodes or more", ""),
    d(P::CurrentUuid, "CURRENT_UUID", Volume, Exact(16), "diskless to others", ""),
    c(P::TwopcYes, "TWOPC_YES", Either, Exact(32), "answer", ""),
    c(P::TwopcNo, "TWOPC_NO", Either, Exact(32), "answer", ""),
    d(P::TwopcCommit, "TWOPC_COMMIT", Either, Exact(36), "initiator to others", "").needs(feature::TWOPC_V2),
    c(P::TwopcRetry, "TWOPC_RETRY", Either, Exact(32), "answer", ""),
    c(P::ConfirmStable, "CONFIRM_STABLE", Connection, Exact(24), "others to Primary", "PEER_ACK, soon"),
    c(P::RsCancelAhead, "RS_CANCEL_AHEAD", Volume, Exact(24), "answer", ""),
    d(P::Disconnect, "DISCONNECT", Connection, Exact(0), "any", ""),
    d(P::RsDagtagReq, "RS_DAGTAG_REQ", Volume, Exact(32), "target to source", "as RS_DATA_REQUEST").needs(feature::RESYNC_DAGTAG),
    d(P::RsCsumDagtagReq, "RS_CSUM_DAGTAG_REQ", Volume, digest_after(32), "target to source", "as CSUM_RS_REQUEST").needs(feature::RESYNC_DAGTAG),
    d(P::RsThinDagtagReq, "RS_THIN_DAGTAG_REQ", Volume, Exact(32), "target to source", "as RS_THIN_REQ").needs(feature::RESYNC_DAGTAG | feature::THIN_RESYNC),
    d(P::OvDagtagReq, "OV_DAGTAG_REQ", Volume, Exact(32), "verify source to target", "OV_DAGTAG_REPLY, RS_CANCEL").needs(feature::RESYNC_DAGTAG),
    d(P::OvDagtagReply, "OV_DAGTAG_REPLY", Volume, digest_after(32), "answer", "OV_RESULT, OV_RESULT_ID").needs(feature::RESYNC_DAGTAG),
    c(P::WriteAckInSync, "WRITE_ACK_IN_SYNC", Volume, Exact(24), "answer", "").since(122),
    c(P::RsNegAck, "RS_NEG_ACK", Volume, Exact(24), "answer", "").since(122),
    c(P::OvResultId, "OV_RESULT_ID", Volume, Exact(32), "verify source to target", "").since(122),
    d(P::RsDeallocatedId, "RS_DEALLOCATED_ID", Volume, Exact(24), "source to target", "RS_WRITE_ACK, RS_NEG_ACK").since(122).needs(feature::THIN_RESYNC),
    d(P::FlushRequests, "FLUSH_REQUESTS", Connection, Exact(8), "target to Primary", "FLUSH_REQUESTS_ACK").since(123),
    c(P::FlushForward, "FLUSH_FORWARD", Connection, Exact(12), "Primary to others", "FLUSH_REQUESTS_ACK to the initiator").since(123),
    d(P::FlushRequestsAck, "FLUSH_REQUESTS_ACK", Connection, Exact(12), "answer", "").since(123),
    d(P::EnableReplicationNext, "ENABLE_REPLICATION_NEXT", Volume, Exact(4), "any", "").needs(feature::RESYNC_WITHOUT_REPLICATION),
    d(P::EnableReplication, "ENABLE_REPLICATION", Volume, Exact(4), "target to source", "").needs(feature::RESYNC_WITHOUT_REPLICATION),
    c(P::InitialMeta, "INITIAL_META", Connection, Exact(0), "connecting side", ""),
    d(P::InitialData, "INITIAL_DATA", Connection, Exact(0), "connecting side", ""),
    d(P::ConnectionFeatures, "CONNECTION_FEATURES", Connection, Exact(72), "both", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_ascending_so_that_lookups_find_every_line() {
        assert!(TABLE.is_sorted_by(|a, b| a.packet < b.packet));
        for info in TABLE {
            assert_eq!(Packet::from_number(info.packet.number()), Some(info.packet), "{}", info.name);
        }
        let found = (0..=u16::MAX).filter_map(PacketInfo::of_number).map(|info| info.packet);
        assert!(found.eq(TABLE.iter().map(|info| info.packet)), "a line under another number, or twice");
    }
}
