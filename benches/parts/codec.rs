//! The messages of a replicated write, as the daemon handles their bytes.

use super::Operation;
use std::hint::black_box;
use types::{ByteRange, VolumeNumber};
use wire::message::{BlockAck, DataFlags, DataHead};
use wire::version::PROTOCOL_MAX;
use wire::{Context, Header, JudgedFrame, Message, Socket};

const CONTEXT: Context = Context { features: 0x3d, protocol: PROTOCOL_MAX, integrity_digest_len: 0 };

fn range(number: u64) -> ByteRange {
    ByteRange::new(number % (1 << 20) * 4096, 4096).expect("small")
}

fn data(number: u64) -> Message {
    let flags = DataFlags(DataFlags::SEND_WRITE_ACK);
    Message::Data(DataHead { range: range(number), block_id: number, seq: number as u32, flags })
}

fn ack(number: u64) -> Message {
    Message::WriteAck(BlockAck { range: range(number), block_id: number, seq: number as u32 })
}

/// Head only: the payload goes from its own buffer.
pub fn encode_data() -> Operation {
    encode(data)
}

pub fn encode_ack() -> Operation {
    encode(ack)
}

pub fn decode_data() -> Operation {
    decode(data, Socket::Data)
}

pub fn decode_ack() -> Operation {
    decode(ack, Socket::Control)
}

fn encode(message: fn(u64) -> Message) -> Operation {
    let mut out = Vec::with_capacity(4096);
    Box::new(move |number| {
        out.clear();
        wire::encode(&CONTEXT, VolumeNumber::new(0), &message(number), &mut out);
        black_box(&out);
    })
}

/// Header, parts of the frame, message: what a receiver does once the bytes are there.
fn decode(message: fn(u64) -> Message, socket: Socket) -> Operation {
    let mut bytes = Vec::new();
    wire::encode(&CONTEXT, VolumeNumber::new(0), &message(7), &mut bytes);
    Box::new(move |_| {
        let form = wire::HeaderForm::classify(*bytes.first_chunk().expect("a header")).expect("encoded above");
        let (head, body) = black_box(&bytes).split_at(form.header_bytes());
        let header = Header::decode(head).expect("encoded above");
        let frame = JudgedFrame::judge(&CONTEXT, &header, socket).expect("encoded above");
        black_box(frame.decode(body).expect("encoded above"));
    })
}
