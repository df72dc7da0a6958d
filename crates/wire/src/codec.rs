//! Frames to messages and back: [`JudgedFrame::judge`] judges a header, [`JudgedFrame::decode`] reads what stands before
//! the bulk data, [`encode`] writes the same; [`frame_parts`] and [`decode()`] are for who does not keep the value between.
//! The layouts are in the modules below, one for each family of packets; lengths, sockets and numbers come from the
//! table in `packet`. Decoding never panics; encoding asserts what only a bug breaks.

mod data;
mod handshake;
mod reader;
mod twopc;
mod v84;
mod writer;

use crate::error::DecodeError;
use crate::frame::{Header, HeaderForm};
use crate::message::{BitmapChunk, Message, Socket};
use crate::packet::{BULK_BYTES_MAX, Body, Packet, PacketInfo, Scope};
use crate::version::{self, Agreed, PROTOCOL_MAX, PROTOCOL_MIN, feature};
use alloc::vec::Vec;
pub use data::{ID_SYNCER, ov_result};
use reader::Reader;
use types::VolumeNumber;
use types::range::SECTOR_BYTES;

/// First version whose resync and verify packets all carry a block id of their own.
const PROTOCOL_WITH_RESYNC_IDS: u32 = 122;
const _: () = assert!(PROTOCOL_MIN < PROTOCOL_WITH_RESYNC_IDS && PROTOCOL_WITH_RESYNC_IDS <= PROTOCOL_MAX);

/// What the layouts depend on. One for each direction of a connection: PROTOCOL and PROTOCOL_UPDATE choose the
/// integrity algorithm of their sender's direction only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// Agreed features.
    pub features: u32,
    /// Agreed protocol version.
    pub protocol: u32,
    /// Bytes of the digest between head and data of DATA, DATA_REPLY and RS_DATA_REPLY. 0: no integrity algorithm.
    pub integrity_digest_len: usize,
}

impl Context {
    /// Before features are agreed on: enough for CONNECTION_FEATURES, INITIAL_* and pings.
    pub const UNAGREED: Context = Context { features: 0, protocol: 0, integrity_digest_len: 0 };

    /// After the agreement, until PROTOCOL names an integrity algorithm.
    pub const fn new(agreed: Agreed) -> Context {
        Context { features: agreed.features, protocol: agreed.protocol, integrity_digest_len: 0 }
    }

    pub const fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }

    /// The 8.4 dialect was agreed on.
    pub const fn is_v84(&self) -> bool {
        version::is_v84(self.protocol)
    }

    /// The line of a packet in the table of the dialect.
    #[inline]
    pub fn packet_info(&self, number: u16) -> Option<&'static PacketInfo> {
        if self.is_v84() { crate::v84::packet_info(number) } else { PacketInfo::of_number(number) }
    }

    const fn has_resync_ids(&self) -> bool {
        self.protocol >= PROTOCOL_WITH_RESYNC_IDS
    }
}

/// Bytes of the head of DATA and the data replies; the integrity digest follows it.
pub const DATA_HEAD_BYTES: usize = 24;

/// How to read the rest of a frame after its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameParts {
    /// To be read into memory and given to [`JudgedFrame::decode`]. At most 4 KiB.
    pub fixed_bytes: usize,
    /// Bulk data after that, at most 1 MiB: [`Message::payload_bytes`] of the message.
    pub payload_bytes: u32,
}

/// A frame whose header was found good; there is no other way to this value. It keeps what the judgement was made with,
/// so the rest of the frame is read by the same rules.
#[derive(Clone, Copy, Debug)]
pub struct JudgedFrame<'c> {
    ctx: &'c Context,
    info: &'static PacketInfo,
    volume: Option<VolumeNumber>,
    parts: FrameParts,
}

impl<'c> JudgedFrame<'c> {
    /// Judges a frame by its header, before memory is reserved for it: known packet, right socket, right volume, a
    /// length that the packet can have.
    #[inline]
    pub fn judge(ctx: &'c Context, header: &Header, socket: Socket) -> Result<JudgedFrame<'c>, DecodeError> {
        let info = judge_head(ctx, header, socket)?;
        let parts = judge_length(ctx, header, info)?;
        let volume = if ctx.is_v84() && info.scope == Scope::Connection { None } else { header.volume };
        Ok(JudgedFrame { ctx, info, volume, parts })
    }

    pub fn parts(&self) -> FrameParts {
        self.parts
    }

    /// As [`volume_of`] says.
    pub fn volume(&self) -> Option<VolumeNumber> {
        self.volume
    }

    /// Reads the message. `fixed`: the [`FrameParts::fixed_bytes`] bytes after the header. The integrity digest in them
    /// is skipped, see [`integrity_digest`].
    pub fn decode(&self, fixed: &[u8]) -> Result<Message, DecodeError> {
        let mut reader = Reader::new(self.info.name, fixed);
        if fixed.len() != self.parts.fixed_bytes {
            return Err(reader.refuse_start("size", fixed.len() as u64, "is not what the header announced"));
        }
        match self.info.packet {
            // What every write consists of. Inside the match over all packets the compiler joins dozens of layouts into
            // one value, for 50 to 90 instructions more. Behind DATA's head the digest is left over.
            Packet::Data => data::read_write(&mut reader, self.parts.payload_bytes).map(Message::Data),
            Packet::Barrier => reader.whole(data::read_barrier),
            Packet::RecvAck => reader.whole(data::read_ack).map(Message::RecvAck),
            Packet::WriteAck => reader.whole(data::read_ack).map(Message::WriteAck),
            Packet::BarrierAck => reader.whole(data::read_barrier_ack),
            _ => self.decode_other(reader),
        }
    }

    #[inline(never)]
    fn decode_other(&self, mut reader: Reader<'_>) -> Result<Message, DecodeError> {
        let message = decode_body(self.ctx, self.info.packet, self.parts, &mut reader)?;
        if self.info.body != Body::Bulk {
            reader.finish()?;
        }
        Ok(message)
    }
}

/// [`JudgedFrame::judge`], for who only wants to know how to read on.
pub fn frame_parts(ctx: &Context, header: &Header, socket: Socket) -> Result<FrameParts, DecodeError> {
    JudgedFrame::judge(ctx, header, socket).map(|frame| frame.parts)
}

/// The volume that a frame concerns. 8.4 says 0 for the whole connection, and does not look at it.
pub fn volume_of(ctx: &Context, header: &Header) -> Option<VolumeNumber> {
    let whole = ctx.packet_info(header.command).is_some_and(|info| info.scope == Scope::Connection);
    header.volume.filter(|_| !(ctx.is_v84() && whole))
}

#[inline]
fn judge_length(ctx: &Context, header: &Header, info: &PacketInfo) -> Result<FrameParts, DecodeError> {
    let fail = |violated| Err(header_error(info.name, "length", 8, header.len.into(), violated));
    let exactly = |expected: u32| match header.len == expected {
        true => Ok(FrameParts { fixed_bytes: expected as usize, payload_bytes: 0 }),
        false => fail("is not the length of this packet"),
    };
    match info.body {
        Body::Exact(expected) => exactly(expected),
        Body::Sizes => exactly(if ctx.has(feature::WSAME) { 56 } else { 32 }),
        Body::Tail { fixed, min, max, step } => {
            if header.len < fixed + min {
                return fail("is too short for this packet");
            }
            if header.len > fixed + max {
                return fail("is too long for this packet");
            }
            if !(header.len - fixed).is_multiple_of(step) {
                return fail("must hold whole 64-bit words");
            }
            Ok(FrameParts { fixed_bytes: header.len as usize, payload_bytes: 0 })
        }
        Body::Bulk => {
            let fixed_bytes = DATA_HEAD_BYTES + ctx.integrity_digest_len;
            let Some(payload_bytes) = u32::try_from(fixed_bytes).ok().and_then(|fixed| header.len.checked_sub(fixed))
            else {
                return fail("is too short for the head and the integrity digest");
            };
            if payload_bytes > BULK_BYTES_MAX {
                return fail("more than 1 MiB of data");
            }
            if !u64::from(payload_bytes).is_multiple_of(SECTOR_BYTES) {
                return fail("the data is not a whole number of 512-byte sectors");
            }
            Ok(FrameParts { fixed_bytes, payload_bytes })
        }
    }
}

#[inline]
fn judge_head(ctx: &Context, header: &Header, socket: Socket) -> Result<&'static PacketInfo, DecodeError> {
    let command = u64::from(header.command);
    let Some(info) = ctx.packet_info(header.command) else {
        return Err(header_error("unknown packet", "command", 6, command, "no packet of this dialect has this number"));
    };
    if matches!(info.packet, Packet::InitialData | Packet::InitialMeta) {
        return Err(header_error(info.name, "command", 6, command, "only opens a socket, must not come later"));
    }
    if info.socket != socket {
        let violated = match socket {
            Socket::Data => "came on the data socket, belongs on the control socket",
            Socket::Control => "came on the control socket, belongs on the data socket",
        };
        return Err(header_error(info.name, "command", 6, command, violated));
    }
    // A ping may overtake the agreement on the header form, features always come before it.
    let form_is_free = socket == Socket::Control || info.packet == Packet::ConnectionFeatures;
    if !form_is_free && header.form != HeaderForm::H100 {
        return Err(header_error(info.name, "magic", 0, command, "needs the 16-byte header"));
    }
    if info.scope == Scope::Volume && header.volume.is_none() {
        return Err(header_error(info.name, "volume", 4, u16::MAX.into(), "this packet concerns one volume"));
    }
    Ok(info)
}

#[cold]
fn header_error(
    packet: &'static str,
    field: &'static str,
    offset: usize,
    value: u64,
    violated: &'static str,
) -> DecodeError {
    DecodeError { packet, field, offset, value, violated }
}

/// [`JudgedFrame::judge`] and [`JudgedFrame::decode`] in one.
pub fn decode(ctx: &Context, header: &Header, socket: Socket, fixed: &[u8]) -> Result<Message, DecodeError> {
    JudgedFrame::judge(ctx, header, socket)?.decode(fixed)
}

/// The integrity digest of a DATA, DATA_REPLY or RS_DATA_REPLY, out of the bytes that [`decode()`] took. Empty if the
/// connection has no integrity algorithm.
pub fn integrity_digest(fixed: &[u8]) -> &[u8] {
    fixed.get(DATA_HEAD_BYTES..).unwrap_or(&[])
}

fn decode_body(ctx: &Context, packet: Packet, parts: FrameParts, r: &mut Reader<'_>) -> Result<Message, DecodeError> {
    if ctx.is_v84()
        && let Some(message) = v84::read(packet, r)?
    {
        return Ok(message);
    }
    Ok(match packet {
        Packet::ConnectionFeatures => Message::ConnectionFeatures(handshake::read_features(r)?),
        Packet::AuthChallenge => Message::AuthChallenge(r.rest().to_vec()),
        Packet::AuthResponse => Message::AuthResponse(r.rest().to_vec()),
        Packet::Protocol => Message::Protocol(handshake::read_protocol(r)?),
        Packet::ProtocolUpdate => Message::ProtocolUpdate(handshake::read_protocol(r)?),
        Packet::SyncParam89 => Message::SyncParam(handshake::read_sync_param(r)?),
        Packet::Sizes => Message::Sizes(handshake::read_sizes(r, ctx.has(feature::WSAME))?),
        Packet::Uuids110 => Message::Uuids(handshake::read_uuids(r)?),
        Packet::CurrentUuid => handshake::read_current_uuid(r)?,
        Packet::State => Message::State(crate::message::StateWord(r.u32("state")?)),
        Packet::EnableReplicationNext => Message::EnableReplicationNext(handshake::read_enable(r)?),
        Packet::EnableReplication => Message::EnableReplication(handshake::read_enable(r)?),
        Packet::Disconnect => Message::Disconnect,
        Packet::DataReply => Message::DataReply(data::read_reply(r, parts.payload_bytes)?),
        Packet::RsDataReply => Message::RsDataReply(data::read_reply(r, parts.payload_bytes)?),
        Packet::Trim => Message::Trim(data::read_trim(r)?),
        Packet::Zeroes => Message::Zeroes(data::read_trim(r)?),
        Packet::DataRequest => Message::DataRequest(data::read_request(r, false)?),
        Packet::UnplugRemote => Message::UnplugRemote,
        Packet::OutOfSync => Message::OutOfSync(data::read_block_desc(r)?),
        Packet::Dagtag => Message::Dagtag(r.u64("dagtag")?),
        Packet::PeerDagtag => Message::PeerDagtag { dagtag: r.u64("dagtag")?, node: r.u32("node_id")? },
        Packet::FlushRequests => Message::FlushRequests(r.u64("sequence")?),
        Packet::FlushRequestsAck => {
            Message::FlushRequestsAck { sequence: r.u64("sequence")?, primary: r.u32("primary_node_id")? }
        }
        Packet::RsDataRequest => Message::RsDataRequest(data::read_request(r, false)?),
        Packet::RsDagtagReq => Message::RsDataRequest(data::read_request(r, true)?),
        Packet::RsThinReq => Message::RsThinRequest(data::read_request(r, false)?),
        Packet::RsThinDagtagReq => Message::RsThinRequest(data::read_request(r, true)?),
        Packet::CsumRsRequest | Packet::RsCsumDagtagReq => {
            let request = data::read_request(r, packet == Packet::RsCsumDagtagReq)?;
            Message::CsumRsRequest { request, digest: r.rest().to_vec() }
        }
        Packet::OvRequest => Message::OvRequest(data::read_request(r, false)?),
        Packet::OvDagtagReq => Message::OvRequest(data::read_request(r, true)?),
        Packet::OvReply | Packet::OvDagtagReply => {
            let request = data::read_request(r, packet == Packet::OvDagtagReply)?;
            Message::OvReply { request, digest: r.rest().to_vec() }
        }
        Packet::RsDeallocated => Message::RsDeallocated(data::read_deallocated(r)?),
        Packet::RsDeallocatedId => Message::RsDeallocated(data::read_ack(r)?),
        Packet::Bitmap => Message::Bitmap(BitmapChunk::Plain(r.rest().to_vec())),
        Packet::CompressedBitmap => Message::Bitmap(BitmapChunk::Compressed(r.rest().to_vec())),
        Packet::TwopcPrepare | Packet::TwopcPrepRsz | Packet::TwopcCommit | Packet::TwopcAbort
            if !ctx.has(feature::TWOPC_V2) =>
        {
            return Err(r.refuse_start("flags", ctx.features.into(), "feature 2PC_V2 was not agreed: unknown layout"));
        }
        Packet::TwopcPrepare => Message::TwopcPrepare(twopc::read_prepare(r)?),
        Packet::TwopcPrepRsz => Message::TwopcPrepareResize(twopc::read_resize(r)?),
        Packet::TwopcCommit => Message::TwopcCommit(twopc::read_decision(r)?),
        Packet::TwopcAbort => Message::TwopcAbort(twopc::read_decision(r)?),
        Packet::TwopcYes => Message::TwopcYes(twopc::read_reply(r)?),
        Packet::TwopcNo => Message::TwopcNo(twopc::read_reply(r)?),
        Packet::TwopcRetry => Message::TwopcRetry(twopc::read_reply(r)?),
        Packet::Ping => Message::Ping,
        Packet::PingAck => Message::PingAck,
        Packet::WriteAckInSync => Message::WriteAckInSync(data::read_ack(r)?),
        Packet::RsWriteAck => Message::RsWriteAck(data::read_ack(r)?),
        Packet::NegAck => Message::NegAck(data::read_ack(r)?),
        Packet::RsNegAck => Message::RsNegAck(data::read_ack(r)?),
        Packet::NegDreply => Message::NegDataReply(data::read_ack(r)?),
        Packet::NegRsDreply => Message::NegRsDataReply(data::read_ack(r)?),
        Packet::RsIsInSync => Message::RsIsInSync(data::read_ack(r)?),
        Packet::RsCancel => Message::RsCancel(data::read_ack(r)?),
        Packet::RsCancelAhead => Message::RsCancelAhead(data::read_ack(r)?),
        Packet::OvResult => data::read_ov_result(r)?,
        Packet::OvResultId => data::read_ov_result_id(r)?,
        Packet::ConfirmStable => data::read_confirm_stable(r)?,
        Packet::PeerAck => Message::PeerAck { nodes: r.u64("mask")?, dagtag: r.u64("dagtag")? },
        Packet::PeersInSync => data::read_peers_in_sync(r)?,
        Packet::FlushForward => {
            Message::FlushForward { sequence: r.u64("sequence")?, initiator: r.u32("initiator_node_id")? }
        }
        Packet::InitialData | Packet::InitialMeta => unreachable!("refused by judge_head"),
        Packet::Data | Packet::Barrier | Packet::RecvAck | Packet::WriteAck | Packet::BarrierAck => {
            unreachable!("read by JudgedFrame::decode")
        }
        Packet::Uuids
        | Packet::SyncUuid
        | Packet::StateChgReq
        | Packet::StateChgReply
        | Packet::ConnStChgReq
        | Packet::ConnStChgReply
        | Packet::Superseded
        | Packet::RetryWrite => unreachable!("not in the table of this dialect"),
    })
}

/// The packet that carries `message` on such a connection.
pub fn packet_of(ctx: &Context, message: &Message) -> Packet {
    let has_tag = |request: &crate::message::BlockRequest| request.dagtag.is_some();
    match message {
        Message::ConnectionFeatures(_) => Packet::ConnectionFeatures,
        Message::AuthChallenge(_) => Packet::AuthChallenge,
        Message::AuthResponse(_) => Packet::AuthResponse,
        Message::Protocol(_) => Packet::Protocol,
        Message::ProtocolUpdate(_) => Packet::ProtocolUpdate,
        Message::SyncParam(_) => Packet::SyncParam89,
        Message::Sizes(_) => Packet::Sizes,
        Message::Uuids(_) => Packet::Uuids110,
        Message::CurrentUuid { .. } => Packet::CurrentUuid,
        Message::State(_) => Packet::State,
        Message::EnableReplicationNext(_) => Packet::EnableReplicationNext,
        Message::EnableReplication(_) => Packet::EnableReplication,
        Message::Disconnect => Packet::Disconnect,
        Message::Data(_) => Packet::Data,
        Message::Trim(_) => Packet::Trim,
        Message::Zeroes(_) => Packet::Zeroes,
        Message::DataRequest(_) => Packet::DataRequest,
        Message::DataReply(_) => Packet::DataReply,
        Message::Barrier(_) => Packet::Barrier,
        Message::UnplugRemote => Packet::UnplugRemote,
        Message::OutOfSync(_) => Packet::OutOfSync,
        Message::Dagtag(_) => Packet::Dagtag,
        Message::PeerDagtag { .. } => Packet::PeerDagtag,
        Message::FlushRequests(_) => Packet::FlushRequests,
        Message::FlushRequestsAck { .. } => Packet::FlushRequestsAck,
        Message::RsDataRequest(request) if has_tag(request) => Packet::RsDagtagReq,
        Message::RsDataRequest(_) => Packet::RsDataRequest,
        Message::RsThinRequest(request) if has_tag(request) => Packet::RsThinDagtagReq,
        Message::RsThinRequest(_) => Packet::RsThinReq,
        Message::CsumRsRequest { request, .. } if has_tag(request) => Packet::RsCsumDagtagReq,
        Message::CsumRsRequest { .. } => Packet::CsumRsRequest,
        Message::RsDataReply(_) => Packet::RsDataReply,
        Message::RsDeallocated(_) if ctx.has_resync_ids() => Packet::RsDeallocatedId,
        Message::RsDeallocated(_) => Packet::RsDeallocated,
        Message::OvRequest(request) if has_tag(request) => Packet::OvDagtagReq,
        Message::OvRequest(_) => Packet::OvRequest,
        Message::OvReply { request, .. } if has_tag(request) => Packet::OvDagtagReply,
        Message::OvReply { .. } => Packet::OvReply,
        Message::Bitmap(BitmapChunk::Plain(_)) => Packet::Bitmap,
        Message::Bitmap(BitmapChunk::Compressed(_)) => Packet::CompressedBitmap,
        Message::TwopcPrepare(_) => Packet::TwopcPrepare,
        Message::TwopcPrepareResize(_) => Packet::TwopcPrepRsz,
        Message::TwopcCommit(_) => Packet::TwopcCommit,
        Message::TwopcAbort(_) => Packet::TwopcAbort,
        Message::Ping => Packet::Ping,
        Message::PingAck => Packet::PingAck,
        Message::RecvAck(_) => Packet::RecvAck,
        Message::WriteAck(_) => Packet::WriteAck,
        Message::WriteAckInSync(_) => Packet::WriteAckInSync,
        Message::RsWriteAck(_) => Packet::RsWriteAck,
        Message::NegAck(_) => Packet::NegAck,
        Message::RsNegAck(_) => Packet::RsNegAck,
        Message::NegDataReply(_) => Packet::NegDreply,
        Message::NegRsDataReply(_) => Packet::NegRsDreply,
        Message::RsIsInSync(_) => Packet::RsIsInSync,
        Message::RsCancel(_) => Packet::RsCancel,
        Message::RsCancelAhead(_) => Packet::RsCancelAhead,
        Message::OvResult { .. } if ctx.has_resync_ids() => Packet::OvResultId,
        Message::OvResult { .. } => Packet::OvResult,
        Message::BarrierAck { .. } => Packet::BarrierAck,
        Message::ConfirmStable { .. } => Packet::ConfirmStable,
        Message::PeerAck { .. } => Packet::PeerAck,
        Message::PeersInSync { .. } => Packet::PeersInSync,
        Message::FlushForward { .. } => Packet::FlushForward,
        Message::TwopcYes(_) => Packet::TwopcYes,
        Message::TwopcNo(_) => Packet::TwopcNo,
        Message::TwopcRetry(_) => Packet::TwopcRetry,
        Message::V84(message) => v84::packet_of(message),
    }
}

/// Appends the frame of `message` to `out`: header and everything before the bulk data. The header's length counts
/// what the driver appends behind it: for DATA, DATA_REPLY and RS_DATA_REPLY first `ctx.integrity_digest_len` bytes of
/// digest, then [`Message::payload_bytes`] bytes of data.
///
/// `volume` is `None` exactly for what concerns the whole connection (asserted, as is every length limit). Allocates
/// only for an `out` without room.
pub fn encode(ctx: &Context, volume: Option<VolumeNumber>, message: &Message, out: &mut Vec<u8>) {
    let packet = packet_of(ctx, message);
    let Some(info) = ctx.packet_info(packet.number()) else {
        panic!("{} is no packet of protocol {}", packet.name(), ctx.protocol);
    };
    match info.scope {
        Scope::Volume => assert!(volume.is_some(), "{} concerns one volume", info.name),
        Scope::Connection => assert!(volume.is_none(), "{} concerns the connection, not {volume:?}", info.name),
        Scope::Either => {}
    }
    // The receiver does not know our header form before it has read our features.
    let form = if packet == Packet::ConnectionFeatures { HeaderForm::H80 } else { HeaderForm::H100 };
    let start = out.len();
    let volume = if ctx.is_v84() && info.scope == Scope::Connection && form == HeaderForm::H100 {
        VolumeNumber::new(0)
    } else {
        volume
    };
    let mut header = Header { command: packet.number(), volume, len: 0, form };
    header.encode(out);
    let body = start + form.header_bytes();
    encode_body(ctx, message, out);
    let appended = match info.body {
        Body::Bulk => ctx.integrity_digest_len as u64 + message.payload_bytes(),
        _ => 0,
    };
    let len = (out.len() - body) as u64 + appended;
    header.len = u32::try_from(len).unwrap_or_else(|_| panic!("{}: frame of {len} bytes", info.name));
    if let Err(error) = JudgedFrame::judge(ctx, &header, info.socket) {
        panic!("refusing to send what a peer would refuse: {error}");
    }
    header.amend_len(&mut out[start..body]);
}

fn encode_body(ctx: &Context, message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::Ping | Message::PingAck | Message::UnplugRemote | Message::Disconnect => {}
        Message::ConnectionFeatures(features) => handshake::write_features(features, out),
        Message::AuthChallenge(bytes) | Message::AuthResponse(bytes) => out.extend_from_slice(bytes),
        Message::Protocol(options) | Message::ProtocolUpdate(options) => handshake::write_protocol(options, out),
        Message::SyncParam(param) => handshake::write_sync_param(param, out),
        Message::Sizes(sizes) => handshake::write_sizes(sizes, ctx.has(feature::WSAME), out),
        Message::Uuids(uuids) => handshake::write_uuids(uuids, out),
        Message::CurrentUuid { uuid, weak_nodes } => {
            writer::u64(out, uuid.0);
            writer::u64(out, *weak_nodes);
        }
        Message::State(word) if ctx.is_v84() => v84::write_state(*word, out),
        Message::State(word) => writer::u32(out, word.0),
        Message::V84(message) => v84::write(message, out),
        Message::EnableReplicationNext(enable) | Message::EnableReplication(enable) => {
            out.extend_from_slice(&[*enable, 0, 0, 0]);
        }
        Message::Data(head) | Message::DataReply(head) | Message::RsDataReply(head) => data::write_head(head, out),
        Message::Trim(head) | Message::Zeroes(head) => data::write_trim(head, out),
        Message::DataRequest(request) => {
            assert!(request.dagtag.is_none(), "DATA_REQUEST has no form with a dagtag: {request:?}");
            data::write_request(request, out);
        }
        Message::RsDataRequest(request) | Message::RsThinRequest(request) | Message::OvRequest(request) => {
            data::write_request(request, out);
        }
        Message::CsumRsRequest { request, digest } | Message::OvReply { request, digest } => {
            data::write_request(request, out);
            out.extend_from_slice(digest);
        }
        Message::Barrier(number) => {
            writer::u32(out, *number);
            writer::u32(out, 0);
        }
        Message::OutOfSync(range) => data::write_block_desc(*range, out),
        Message::RsDeallocated(ack) if !ctx.has_resync_ids() => data::write_block_desc(ack.range, out),
        Message::Dagtag(dagtag) => writer::u64(out, *dagtag),
        Message::FlushRequests(sequence) => writer::u64(out, *sequence),
        Message::PeerDagtag { dagtag: number, node }
        | Message::FlushRequestsAck { sequence: number, primary: node }
        | Message::FlushForward { sequence: number, initiator: node } => {
            writer::u64(out, *number);
            writer::u32(out, *node);
        }
        Message::Bitmap(BitmapChunk::Plain(bytes) | BitmapChunk::Compressed(bytes)) => out.extend_from_slice(bytes),
        Message::TwopcPrepare(prepare) => twopc::write_prepare(prepare, require_v2(ctx), out),
        Message::TwopcPrepareResize(resize) => twopc::write_resize(resize, require_v2(ctx), out),
        Message::TwopcCommit(decision) | Message::TwopcAbort(decision) => {
            twopc::write_decision(decision, require_v2(ctx), out);
        }
        Message::TwopcYes(reply) | Message::TwopcNo(reply) | Message::TwopcRetry(reply) => {
            twopc::write_reply(reply, out)
        }
        Message::RecvAck(ack)
        | Message::WriteAck(ack)
        | Message::WriteAckInSync(ack)
        | Message::RsWriteAck(ack)
        | Message::NegAck(ack)
        | Message::RsNegAck(ack)
        | Message::NegDataReply(ack)
        | Message::NegRsDataReply(ack)
        | Message::RsIsInSync(ack)
        | Message::RsCancel(ack)
        | Message::RsCancelAhead(ack)
        | Message::RsDeallocated(ack) => data::write_ack(ack, out),
        Message::OvResult { ack, result } => data::write_ov_result(ack, *result, ctx.has_resync_ids(), out),
        Message::BarrierAck { barrier, set_size } => {
            writer::u32(out, *barrier);
            writer::u32(out, *set_size);
        }
        Message::ConfirmStable { oldest_block_id, youngest_block_id, set_size } => {
            writer::u64(out, *oldest_block_id);
            writer::u64(out, *youngest_block_id);
            writer::u32(out, *set_size);
            writer::u32(out, 0);
        }
        Message::PeerAck { nodes, dagtag } => {
            writer::u64(out, *nodes);
            writer::u64(out, *dagtag);
        }
        Message::PeersInSync { range, nodes } => data::write_peers_in_sync(*range, *nodes, out),
    }
}

/// Proof that the two-phase packets have the layout we know.
#[derive(Clone, Copy)]
struct LayoutV2(());

fn require_v2(ctx: &Context) -> LayoutV2 {
    assert!(ctx.has(feature::TWOPC_V2), "2PC_V2 was not agreed, features {:#x}", ctx.features);
    LayoutV2(())
}
