//! A peer's byte stream. Promises: a frame is refused or read; memory for it is bounded before it is reserved; what was
//! read is written as bytes that are read the same.
//!
//! An input is one byte for the socket and what was agreed on, then the stream.

use wire::codec::packet_of;
use wire::message::Message;
use wire::packet::{Body, PacketInfo, Scope};
use wire::{Context, Header, HeaderForm, Socket, decode, encode, frame_parts, volume_of};

use crate::captures;

/// A frame's fixed part and its payload take at most this. Bytes; contract of `FrameParts`.
const FIXED_BYTES_MAX: usize = 4096;
const PAYLOAD_BYTES_MAX: u32 = 1 << 20;

const EVERYTHING_9: u32 = 0x3ff;
const EVERYTHING_84: u32 = 0x00f;

pub fn run_9(input: &[u8]) {
    let Some((&choice, stream)) = input.split_first() else { return };
    // Of the range that is offered: the ends, and both sides of the change of resync ids.
    let protocol = [118, 121, 122, 124][usize::from(choice >> 1 & 3)];
    let features = [EVERYTHING_9, 0, 0x155, 0x2aa][usize::from(choice >> 3 & 3)];
    let integrity_digest_len = [0, 4, 20, 0][usize::from(choice >> 5 & 3)];
    read(&Context { protocol, features, integrity_digest_len }, socket(choice), stream);
}

pub fn run_84(input: &[u8]) {
    let Some((&choice, stream)) = input.split_first() else { return };
    let protocol = [100, 101][usize::from(choice >> 1 & 1)];
    let features = [EVERYTHING_84, 0][usize::from(choice >> 2 & 1)];
    let integrity_digest_len = [0, 4, 20, 0][usize::from(choice >> 5 & 3)];
    read(&Context { protocol, features, integrity_digest_len }, socket(choice), stream);
}

fn socket(choice: u8) -> Socket {
    if choice & 1 == 0 { Socket::Data } else { Socket::Control }
}

pub fn seeds_9() -> Vec<Vec<u8>> {
    seeds("9-", 0b110)
}

pub fn seeds_84() -> Vec<Vec<u8>> {
    seeds("84-", 0b010)
}

/// One input for each kind of packet on each socket and each length, so that none is longer than it has to be.
fn seeds(prefix: &str, choice: u8) -> Vec<Vec<u8>> {
    let mut seen = std::collections::BTreeSet::new();
    let mut seeds = Vec::new();
    for (socket, stream) in captures::streams(prefix) {
        let choice = choice | u8::from(socket == Socket::Control);
        let mut rest = &stream[..];
        while let Some((header, frame, after)) = split(rest) {
            let shown = &frame[..frame.len().min(FIXED_BYTES_MAX + 16)];
            if seen.insert((choice, header.command, header.len)) {
                seeds.push([&[choice], shown].concat());
            }
            rest = after;
        }
    }
    seeds
}

/// The next frame, as long as its header says.
fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let form = HeaderForm::classify(*bytes.first_chunk()?).ok()?;
    let header = Header::decode(bytes.get(..form.header_bytes())?).ok()?;
    let (frame, rest) = bytes.split_at_checked(form.header_bytes() + header.len as usize)?;
    Some((header, frame, rest))
}

fn read(ctx: &Context, socket: Socket, mut stream: &[u8]) {
    while let Some(first) = stream.first_chunk::<{ HeaderForm::BYTES_MIN }>() {
        let Ok(form) = HeaderForm::classify(*first) else { return };
        let Some((header, rest)) = stream.split_at_checked(form.header_bytes()) else { return };
        let Ok(header) = Header::decode(header) else { return };
        let Ok(parts) = frame_parts(ctx, &header, socket) else { return };
        assert!(
            parts.fixed_bytes <= FIXED_BYTES_MAX && parts.payload_bytes <= PAYLOAD_BYTES_MAX,
            "{header:?}: {parts:?}"
        );
        let Some((fixed, rest)) = rest.split_at_checked(parts.fixed_bytes) else { return };
        let Ok(message) = decode(ctx, &header, socket, fixed) else { return };
        assert_eq!(message.payload_bytes(), u64::from(parts.payload_bytes), "{message:?} of {header:?}");
        let info = ctx.packet_info(header.command).expect("it was just read");
        same_again(ctx, socket, &header, info, &message);
        stream = &rest[rest.len().min(parts.payload_bytes as usize)..];
    }
}

fn same_again(ctx: &Context, socket: Socket, header: &Header, info: &PacketInfo, message: &Message) {
    if packet_of(ctx, message) != info.packet {
        // In the form of another version, which this one takes as well.
        return;
    }
    let volume = if info.scope == Scope::Connection { None } else { volume_of(ctx, header) };
    let mut out = Vec::new();
    encode(ctx, volume, message, &mut out);
    let form = HeaderForm::classify(*out.first_chunk().expect("a header")).expect("our own");
    let again = Header::decode(&out[..form.header_bytes()]).expect("our own");
    let mut fixed = out[form.header_bytes()..].to_vec();
    if info.body == Body::Bulk {
        fixed.resize(fixed.len() + ctx.integrity_digest_len, 0);
    }
    let read_again = decode(ctx, &again, socket, &fixed);
    assert_eq!(read_again.as_ref(), Ok(message), "written as {}", hex::encode(&out));
}
