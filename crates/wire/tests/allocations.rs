//! Encoding into a vector with room allocates nothing, nor does decoding what has no variable part: writes and their
//! acks go through here, each more than once a request.

#[path = "../../engine/tests/harness/counting.rs"]
mod counting;

use counting::allocations;
use types::{ByteRange, VolumeNumber};
use wire::codec::packet_of;
use wire::message::{BlockAck, BlockRequest, DataFlags, DataHead};
use wire::packet::Scope;
use wire::version::PROTOCOL_MAX;
use wire::{Context, Header, HeaderForm, JudgedFrame, Message, encode};

fn allocations_in<T>(run: impl FnOnce() -> T) -> (u64, T) {
    let before = allocations();
    let result = run();
    (allocations() - before, result)
}

const CONTEXT: Context = Context { features: 0x3d, protocol: PROTOCOL_MAX, integrity_digest_len: 0 };

/// What a replicated write, its epoch and a resync without digests are made of.
fn messages() -> Vec<Message> {
    let range = ByteRange::new(4096, 4096).unwrap();
    let ack = BlockAck { range, block_id: 7, seq: 8 };
    let request = BlockRequest { range, block_id: 7, dagtag: None };
    let head = DataHead { range, block_id: 7, seq: 8, flags: DataFlags(DataFlags::SEND_WRITE_ACK) };
    vec![
        Message::Data(head),
        Message::Trim(head),
        Message::Zeroes(head),
        Message::DataReply(head),
        Message::RsDataReply(head),
        Message::DataRequest(request),
        Message::RsDataRequest(request),
        Message::Barrier(9),
        Message::UnplugRemote,
        Message::OutOfSync(range),
        Message::Dagtag(10),
        Message::Ping,
        Message::PingAck,
        Message::RecvAck(ack),
        Message::WriteAck(ack),
        Message::WriteAckInSync(ack),
        Message::RsWriteAck(ack),
        Message::NegAck(ack),
        Message::RsIsInSync(ack),
        Message::BarrierAck { barrier: 9, set_size: 1 },
        Message::PeerAck { nodes: 3, dagtag: 10 },
        Message::PeersInSync { range, nodes: 3 },
    ]
}

#[test]
fn a_message_without_variable_parts_is_written_and_read_in_place() {
    // The counter counts.
    assert_eq!(allocations_in(|| vec![0_u8; 64]).0, 1);
    let mut out = Vec::with_capacity(64);
    for message in messages() {
        let info = packet_of(&CONTEXT, &message).info();
        let volume = if info.scope == Scope::Volume { VolumeNumber::new(0) } else { None };
        out.clear();
        let (made, ()) = allocations_in(|| encode(&CONTEXT, volume, &message, &mut out));
        assert_eq!(made, 0, "encoding {}", info.name);

        let (head, fixed) = out.split_at(HeaderForm::H100.header_bytes());
        let (made, read) = allocations_in(|| {
            let header = Header::decode(head)?;
            JudgedFrame::judge(&CONTEXT, &header, info.socket)?.decode(fixed)
        });
        assert_eq!((made, read), (0, Ok(message)), "decoding {}", info.name);
    }
}

#[test]
fn a_vector_without_room_grows_once_for_its_header() {
    let (made, _) = allocations_in(|| {
        let mut out = Vec::new();
        encode(&CONTEXT, None, &Message::Ping, &mut out);
        out
    });
    assert_eq!(made, 1);
}
