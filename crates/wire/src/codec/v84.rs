//! Layouts that only the 8.4 dialect has.

use super::reader::Reader;
use super::{data, writer};
use crate::error::DecodeError;
use crate::message::{Message, StateWord};
use crate::packet::Packet;
use crate::v84::{Message84, Request84, Uuids84, word_from_wire, word_to_wire};
use alloc::vec::Vec;
use types::Uuid;

/// `None`: a packet that both dialects have in the same layout.
pub(super) fn read(packet: Packet, r: &mut Reader<'_>) -> Result<Option<Message>, DecodeError> {
    Ok(Some(match packet {
        Packet::State => {
            let word = StateWord(r.u32("state")?);
            let named = word_from_wire(word);
            let violated = "a disk state that this dialect does not have";
            Message::State(named.map_err(|_| r.refuse_last(4, "state", word.0.into(), violated))?)
        }
        Packet::Uuids => Message::V84(Message84::Uuids(Uuids84 {
            current: Uuid(r.u64("current")?),
            bitmap: Uuid(r.u64("bitmap")?),
            history: [Uuid(r.u64("history[0]")?), Uuid(r.u64("history[1]")?)],
            dirty_bits: r.u64("dirty_bits")?,
            flags: r.u64("uuid_flags")?,
        })),
        Packet::SyncUuid => Message::V84(Message84::SyncUuid(Uuid(r.u64("uuid")?))),
        Packet::StateChgReq => Message::V84(Message84::VolumeRequest(read_request(r)?)),
        Packet::ConnStChgReq => Message::V84(Message84::ConnectionRequest(read_request(r)?)),
        Packet::StateChgReply => Message::V84(Message84::VolumeReply(r.u32("retcode")?.cast_signed())),
        Packet::ConnStChgReply => Message::V84(Message84::ConnectionReply(r.u32("retcode")?.cast_signed())),
        Packet::Superseded => Message::V84(Message84::Superseded(data::read_ack(r)?)),
        Packet::RetryWrite => Message::V84(Message84::RetryWrite(data::read_ack(r)?)),
        _ => return Ok(None),
    }))
}

fn read_request(r: &mut Reader<'_>) -> Result<Request84, DecodeError> {
    Ok(Request84 { mask: StateWord(r.u32("mask")?), value: StateWord(r.u32("val")?) })
}

pub(super) fn packet_of(message: &Message84) -> Packet {
    match message {
        Message84::Uuids(_) => Packet::Uuids,
        Message84::SyncUuid(_) => Packet::SyncUuid,
        Message84::VolumeRequest(_) => Packet::StateChgReq,
        Message84::VolumeReply(_) => Packet::StateChgReply,
        Message84::ConnectionRequest(_) => Packet::ConnStChgReq,
        Message84::ConnectionReply(_) => Packet::ConnStChgReply,
        Message84::Superseded(_) => Packet::Superseded,
        Message84::RetryWrite(_) => Packet::RetryWrite,
    }
}

pub(super) fn write(message: &Message84, out: &mut Vec<u8>) {
    match message {
        Message84::Uuids(uuids) => {
            let [newer, older] = uuids.history;
            for uuid in [uuids.current, uuids.bitmap, newer, older] {
                writer::u64(out, uuid.0);
            }
            writer::u64(out, uuids.dirty_bits);
            writer::u64(out, uuids.flags);
        }
        Message84::SyncUuid(uuid) => writer::u64(out, uuid.0),
        Message84::VolumeRequest(request) | Message84::ConnectionRequest(request) => {
            writer::u32(out, request.mask.0);
            writer::u32(out, request.value.0);
        }
        Message84::VolumeReply(code) | Message84::ConnectionReply(code) => writer::u32(out, code.cast_unsigned()),
        Message84::Superseded(ack) | Message84::RetryWrite(ack) => data::write_ack(ack, out),
    }
}

pub(super) fn write_state(word: StateWord, out: &mut Vec<u8>) {
    writer::u32(out, word_to_wire(word).0);
}
