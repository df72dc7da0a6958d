//! The 8.4 dialect (protocol 100 and 101): its table of packets, the messages that DRBD 9 does not have any more, and
//! its own numbers of disk states. Layouts: `codec::v84`; document: docs/wire.md "The 8.4 dialect".
//!
//! What both dialects share is the same [`crate::Message`] in both, in the same layout, with two exceptions that the
//! codec hides: the volume of a packet for the whole connection is 0 instead of 65535, and STATE has other numbers for
//! the disk. The masks and values of state requests stay as they are on the wire: DRBD 9 puts its own numbers there.

use crate::message::{BlockAck, StateWord};
use crate::packet::{
    BITMAP_BYTES_MAX, Body, CHALLENGE_BYTES, DIGEST_BYTES_MAX, Lines, NAME_TAIL, Packet, PacketInfo, Scope, c, d,
    digest_after,
};
use crate::state_word::{DISK, Field, PEER_DISK};
use crate::version::{V84_MAX, V84_MIN, feature};
use types::{DiskState, Uuid};

/// Added to a source's bitmap UUID when a resync starts; the target carries the sum as its current UUID meanwhile.
pub const SYNC_UUID_OFFSET: u64 = 1 << 48;

/// History entries in UUIDS.
pub const HISTORY_LEN: usize = 2;

/// The only [`crate::message::uuid_flag`]s that this dialect has.
pub const UUID_FLAGS: u64 = 0xf;

/// UUIDS. A node without a disk sends none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uuids84 {
    pub current: Uuid,
    pub bitmap: Uuid,
    pub history: [Uuid; HISTORY_LEN],
    pub dirty_bits: u64,
    pub flags: u64,
}

/// A change that the sender asks its peer for, from the sender's point of view. Numbers as on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request84 {
    pub mask: StateWord,
    pub value: StateWord,
}

/// What only this dialect has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message84 {
    Uuids(Uuids84),
    /// The resync starts; the target's current UUID until it ends.
    SyncUuid(Uuid),
    /// STATE_CHG_REQ, of one volume.
    VolumeRequest(Request84),
    /// A code of [`reply`].
    VolumeReply(i32),
    /// CONN_ST_CHG_REQ, of the connection.
    ConnectionRequest(Request84),
    /// A code of [`reply`].
    ConnectionReply(i32),
    /// Two Primaries: the peer's write to the same block counts.
    Superseded(BlockAck),
    /// Two Primaries: send the write again later.
    RetryWrite(BlockAck),
}

/// Codes in the replies. 1 and more: agreed.
pub mod reply {
    pub const SUCCESS: i32 = 1;
    pub const TWO_PRIMARIES: i32 = -1;
    pub const NO_UP_TO_DATE_DISK: i32 = -2;
    pub const PRIMARY_NOP: i32 = -7;
    pub const RESYNC_RUNNING: i32 = -8;
    pub const NEED_CONNECTION: i32 = -15;
    pub const NOT_SUPPORTED: i32 = -17;
    pub const IN_TRANSIENT_STATE: i32 = -18;
    pub const CONCURRENT_CHANGE: i32 = -19;
}

/// This dialect's number of a disk state. Detaching came with DRBD 9; 8.4 says Failed meanwhile.
pub const fn disk_to_wire(disk: DiskState) -> u8 {
    match disk {
        DiskState::Diskless => 0,
        DiskState::Attaching => 1,
        DiskState::Detaching | DiskState::Failed => 2,
        DiskState::Negotiating => 3,
        DiskState::Inconsistent => 4,
        DiskState::Outdated => 5,
        DiskState::DUnknown => 6,
        DiskState::Consistent => 7,
        DiskState::UpToDate => 8,
    }
}

/// `None` for a number that names no state.
pub const fn disk_from_wire(number: u8) -> Option<DiskState> {
    Some(match number {
        0 => DiskState::Diskless,
        1 => DiskState::Attaching,
        2 => DiskState::Failed,
        3 => DiskState::Negotiating,
        4 => DiskState::Inconsistent,
        5 => DiskState::Outdated,
        6 => DiskState::DUnknown,
        7 => DiskState::Consistent,
        8 => DiskState::UpToDate,
        _ => return None,
    })
}

/// A word off this dialect's wire, in the numbers of DRBD 9. `Err`: the number that names no disk state.
pub fn word_from_wire(word: StateWord) -> Result<StateWord, u8> {
    let named = |field: Field| {
        let number = word.get(field);
        disk_from_wire(number).ok_or(number)
    };
    Ok(word.with_disk(named(DISK)?).with_peer_disk(named(PEER_DISK)?))
}

/// The reverse; numbers that name no state are a bug of the caller (asserted).
pub fn word_to_wire(word: StateWord) -> StateWord {
    let number = |disk: Result<DiskState, u8>| match disk {
        Ok(disk) => disk_to_wire(disk),
        Err(number) => panic!("state word {:#010x}: {number} names no disk state", word.0),
    };
    word.with(DISK, number(word.disk())).with(PEER_DISK, number(word.peer_disk()))
}

/// The whole table of the dialect, ascending by number.
pub fn packets() -> &'static [PacketInfo] {
    TABLE
}

#[inline]
pub fn packet_info(number: u16) -> Option<&'static PacketInfo> {
    static LINES: Lines = Lines::of(TABLE);
    LINES.get(number)
}

use Body::{Bulk, Exact, Tail};
use Packet as P;
use Scope::{Connection, Either, Volume};

// One packet a line: this is a table.
#[rustfmt::skip]
static TABLE: &[PacketInfo] = &[
    on(d(P::Data, "DATA", Volume, Bulk, "Primary to the other", "by dp_flags: RECV_ACK, WRITE_ACK, RS_WRITE_ACK, NEG_ACK")),
    on(d(P::DataReply, "DATA_REPLY", Volume, Bulk, "answer", "")),
    on(d(P::RsDataReply, "RS_DATA_REPLY", Volume, Bulk, "source to target", "RS_WRITE_ACK, NEG_ACK")),
    on(d(P::Barrier, "BARRIER", Connection, Exact(8), "Primary to the other", "BARRIER_ACK")),
    on(d(P::Bitmap, "BITMAP", Volume, Tail { fixed: 0, min: 0, max: BITMAP_BYTES_MAX, step: 8 }, "both, source first", "the other's bitmap")),
    on(d(P::UnplugRemote, "UNPLUG_REMOTE", Either, Exact(0), "any", "")),
    on(d(P::DataRequest, "DATA_REQUEST", Volume, Exact(24), "Primary without data to the other", "DATA_REPLY, NEG_DREPLY")),
    on(d(P::RsDataRequest, "RS_DATA_REQUEST", Volume, Exact(24), "target to source", "RS_DATA_REPLY, NEG_RS_DREPLY, RS_CANCEL")),
    on(d(P::Protocol, "PROTOCOL", Connection, NAME_TAIL, "both", "")),
    on(d(P::Uuids, "UUIDS", Volume, Exact(48), "any", "")),
    on(d(P::Sizes, "SIZES", Volume, Body::Sizes, "any", "")),
    on(d(P::State, "STATE", Either, Exact(4), "any", "")),
    on(d(P::SyncUuid, "SYNC_UUID", Volume, Exact(8), "source to target", "resync requests")),
    on(d(P::AuthChallenge, "AUTH_CHALLENGE", Connection, Exact(CHALLENGE_BYTES), "both", "AUTH_RESPONSE")),
    on(d(P::AuthResponse, "AUTH_RESPONSE", Connection, Tail { fixed: 0, min: 1, max: DIGEST_BYTES_MAX, step: 1 }, "both", "")),
    on(d(P::StateChgReq, "STATE_CHG_REQ", Volume, Exact(8), "any", "STATE_CHG_REPLY")),
    on(c(P::Ping, "PING", Connection, Exact(0), "any", "PING_ACK")),
    on(c(P::PingAck, "PING_ACK", Connection, Exact(0), "answer", "")),
    on(c(P::RecvAck, "RECV_ACK", Volume, Exact(24), "answer", "")),
    on(c(P::WriteAck, "WRITE_ACK", Volume, Exact(24), "answer", "")),
    on(c(P::RsWriteAck, "RS_WRITE_ACK", Volume, Exact(24), "answer", "")),
    on(c(P::Superseded, "SUPERSEDED", Volume, Exact(24), "answer, two Primaries", "")),
    on(c(P::NegAck, "NEG_ACK", Volume, Exact(24), "answer", "")),
    on(c(P::NegDreply, "NEG_DREPLY", Volume, Exact(24), "answer", "")),
    on(c(P::NegRsDreply, "NEG_RS_DREPLY", Volume, Exact(24), "answer", "")),
    on(c(P::BarrierAck, "BARRIER_ACK", Connection, Exact(8), "answer", "")),
    on(c(P::StateChgReply, "STATE_CHG_REPLY", Volume, Exact(4), "answer", "")),
    on(d(P::OvRequest, "OV_REQUEST", Volume, Exact(24), "verify source to target", "OV_REPLY, NEG_RS_DREPLY")),
    on(d(P::OvReply, "OV_REPLY", Volume, digest_after(24), "answer", "OV_RESULT")),
    on(c(P::OvResult, "OV_RESULT", Volume, Exact(24), "verify source to target", "")),
    on(d(P::CsumRsRequest, "CSUM_RS_REQUEST", Volume, digest_after(24), "target to source", "RS_IS_IN_SYNC, RS_DATA_REPLY")),
    on(c(P::RsIsInSync, "RS_IS_IN_SYNC", Volume, Exact(24), "answer", "")),
    on(d(P::SyncParam89, "SYNC_PARAM89", Volume, Exact(148), "both", "")),
    on(d(P::CompressedBitmap, "COMPRESSED_BITMAP", Volume, Tail { fixed: 0, min: 2, max: BITMAP_BYTES_MAX, step: 1 }, "both, source first", "the other's bitmap")),
    on(d(P::OutOfSync, "OUT_OF_SYNC", Volume, Exact(16), "source to target", "")),
    on(c(P::RsCancel, "RS_CANCEL", Volume, Exact(24), "answer", "")),
    on(d(P::ConnStChgReq, "CONN_ST_CHG_REQ", Connection, Exact(8), "any", "CONN_ST_CHG_REPLY")),
    on(c(P::ConnStChgReply, "CONN_ST_CHG_REPLY", Connection, Exact(4), "answer", "")),
    on(c(P::RetryWrite, "RETRY_WRITE", Volume, Exact(24), "answer, two Primaries", "")),
    on(d(P::ProtocolUpdate, "PROTOCOL_UPDATE", Connection, NAME_TAIL, "any", "")),
    on(d(P::Trim, "TRIM", Volume, Exact(28), "Primary to the other", "as DATA")).needs(feature::TRIM),
    on(d(P::RsThinReq, "RS_THIN_REQ", Volume, Exact(24), "target to source", "RS_DATA_REPLY, RS_DEALLOCATED")).needs(feature::THIN_RESYNC),
    on(d(P::RsDeallocated, "RS_DEALLOCATED", Volume, Exact(16), "source to target", "RS_WRITE_ACK, NEG_ACK")).needs(feature::THIN_RESYNC),
    on(d(P::Zeroes, "ZEROES", Volume, Exact(28), "Primary to the other", "as DATA")).needs(feature::WZEROES),
    // DRBD 9.3.3 sends it as target whatever was agreed.
    on(d(P::EnableReplication, "ENABLE_REPLICATION", Volume, Exact(4), "target to source, 9.3 only", "")),
    on(d(P::ConnectionFeatures, "CONNECTION_FEATURES", Connection, Exact(72), "both", "")),
];

/// A line for the versions of this dialect.
const fn on(info: PacketInfo) -> PacketInfo {
    info.since(V84_MIN).until(V84_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_ascending_so_that_lookups_find_every_line() {
        assert!(TABLE.is_sorted_by(|a, b| a.packet < b.packet));
        for info in TABLE {
            assert_eq!(packet_info(info.packet.number()).map(|i| i.packet), Some(info.packet), "{}", info.name);
        }
        assert_eq!(packet_info(Packet::TwopcPrepare.number()), None);
        assert_eq!(packet_info(0x34), None, "WSAME is never agreed on");
    }

    #[test]
    fn what_both_dialects_have_has_one_name_and_one_layout() {
        for info in TABLE {
            let Some(nine) = PacketInfo::of_number(info.packet.number()) else { continue };
            assert_eq!((info.name, info.socket), (nine.name, nine.socket));
            // Version 9's longer forms of these are packets of their own.
            assert_eq!(info.body, nine.body, "{}", info.name);
        }
    }

    #[test]
    fn disk_states_keep_their_meaning() {
        for number in 0..=8 {
            assert_eq!(disk_to_wire(disk_from_wire(number).unwrap()), number);
        }
        assert_eq!(disk_from_wire(9), None);
        // Words of 84-01-first-connect, with what the kernel's log says they mean.
        let word = word_from_wire(StateWord(0x0000_c882)).unwrap();
        assert_eq!((word.disk(), word.peer_disk()), (Ok(DiskState::Inconsistent), Ok(DiskState::DUnknown)));
        assert_eq!((word.conn(), word_to_wire(word)), (8, StateWord(0x0000_c882)));
        assert_eq!(word_from_wire(StateWord(9 << 9)), Err(9));
    }
}
