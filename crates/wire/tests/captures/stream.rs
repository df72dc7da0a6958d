//! Captures of real kernels as byte streams, and a walk over their frames with our codec.
//!
//! The files are those of the protocol reference: `connections` (which socket, who connected) and time-ordered
//! `chunks`; the chunks of one connection and direction, joined, are exactly the byte stream.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::OnceLock;
use wire::message::ConnectionFeatures;
use wire::packet::Packet;
use wire::version::{Agreed, negotiate};
use wire::{Context, Header, HeaderForm, Message, Socket, decode, frame_parts, parse_first_packet};

/// One frame of a capture.
pub struct Frame {
    pub ctx: Context,
    pub header: Header,
    /// Header and fixed part, without the integrity digest.
    pub head: Vec<u8>,
    pub digest: Vec<u8>,
    pub payload: Vec<u8>,
    pub packet: Packet,
    pub message: Message,
}

/// What one node sent on one socket.
pub struct Stream {
    pub connection: u64,
    pub from: String,
    pub to: String,
    pub socket: Socket,
    pub frames: Vec<Frame>,
}

/// All captures of DRBD 9 with their names, loaded once for all tests.
pub fn all() -> &'static [(String, Vec<Stream>)] {
    static ALL: OnceLock<Vec<(String, Vec<Stream>)>> = OnceLock::new();
    ALL.get_or_init(|| load_all("9-"))
}

/// All captures of DRBD 8.4.
pub fn all_84() -> &'static [(String, Vec<Stream>)] {
    static ALL: OnceLock<Vec<(String, Vec<Stream>)>> = OnceLock::new();
    ALL.get_or_init(|| load_all("84-"))
}

fn load_all(prefix: &str) -> Vec<(String, Vec<Stream>)> {
    names(prefix).into_iter().map(|name| (name.clone(), load(&name))).collect()
}

fn names(prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory())
        .expect("tests/fixtures is part of the repository")
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|file| file.strip_suffix(".streams.json.gz").map(str::to_owned))
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// The listing that an independent decoder made of a capture.
pub fn listing(name: &str) -> String {
    let file = std::fs::File::open(directory().join(format!("{name}.listing.gz"))).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The bytes of each connection and direction, and the description of the connections.
pub fn raw(name: &str) -> (Value, BTreeMap<(u64, String), Vec<u8>>) {
    let file = std::fs::File::open(directory().join(format!("{name}.streams.json.gz"))).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let capture: Value = serde_json::from_str(&text).unwrap();
    let mut bytes: BTreeMap<(u64, String), Vec<u8>> = BTreeMap::new();
    for chunk in capture["chunks"].as_array().unwrap() {
        let key = (chunk[1].as_u64().unwrap(), chunk[2].as_str().unwrap().to_owned());
        bytes.entry(key).or_default().extend(hex::decode(chunk[3].as_str().unwrap()).unwrap());
    }
    (capture, bytes)
}

/// All streams of one capture, decoded. Panics with the place where a byte does not fit.
pub fn load(name: &str) -> Vec<Stream> {
    let (capture, bytes) = raw(name);
    let connections = capture["connections"].as_array().unwrap();
    let mut streams = Vec::new();
    for ((id, direction), sent) in &bytes {
        let connection = connections.iter().find(|c| c["id"].as_u64() == Some(*id)).unwrap();
        let (from, to) = direction.split_once('>').unwrap();
        let socket = match connection["socket"].as_str().unwrap() {
            "data" => Socket::Data,
            "control" => Socket::Control,
            _ => continue,
        };
        let place = format!("{name}, connection {id} {direction}");
        let rest = match connection["connector"].as_str() == Some(from) {
            true => without_first_packet(sent, socket, &place),
            false => sent,
        };
        let everything = match name.starts_with("84-") {
            true => Agreed { protocol: 101, features: 0x00f },
            false => Agreed { protocol: 124, features: 0x3ff },
        };
        let agreed = agree(&bytes, *id).unwrap_or(everything);
        let frames = walk(rest, socket, agreed, &place);
        streams.push(Stream { connection: *id, from: from.to_owned(), to: to.to_owned(), socket, frames });
    }
    streams
}

fn without_first_packet<'a>(bytes: &'a [u8], socket: Socket, place: &str) -> &'a [u8] {
    let (first, rest) = bytes.split_first_chunk::<8>().unwrap_or_else(|| panic!("{place}: no first packet"));
    assert_eq!(parse_first_packet(*first), Ok(socket), "{place}");
    assert_eq!(wire::first_packet(socket), *first, "{place}");
    rest
}

/// What both sides' features packets come to. A socket without them (`None`) belongs to a pair that agreed on everything
/// that its release has.
fn agree(bytes: &BTreeMap<(u64, String), Vec<u8>>, connection: u64) -> Option<Agreed> {
    let offers: Vec<_> =
        bytes.iter().filter(|((id, _), _)| *id == connection).filter_map(|(_, bytes)| features_of(bytes)).collect();
    match offers.as_slice() {
        [one, two] => Some(negotiate(one, two).unwrap()),
        _ => None,
    }
}

fn features_of(bytes: &[u8]) -> Option<ConnectionFeatures> {
    let starts_socket = bytes.first_chunk().is_some_and(|first| parse_first_packet(*first).is_ok());
    let frame = bytes.get(if starts_socket { 8 } else { 0 }..)?;
    let header = Header::decode(frame.get(..8)?).ok()?;
    match decode(&Context::UNAGREED, &header, Socket::Data, frame.get(8..80)?).ok()? {
        Message::ConnectionFeatures(features) => Some(features),
        _ => None,
    }
}

fn walk(mut bytes: &[u8], socket: Socket, agreed: Agreed, place: &str) -> Vec<Frame> {
    let mut ctx = Context::new(agreed);
    let mut frames = Vec::new();
    while let Some(first) = bytes.first_chunk::<8>() {
        let place = || format!("{place}, frame {}", frames.len());
        let form = HeaderForm::classify(*first).unwrap_or_else(|e| panic!("{}: {e}", place()));
        let (head, after) = bytes.split_at(form.header_bytes());
        let header = Header::decode(head).unwrap_or_else(|e| panic!("{}: {e}", place()));
        let parts = frame_parts(&ctx, &header, socket).unwrap_or_else(|e| panic!("{}: {e}", place()));
        assert_eq!(parts.fixed_bytes + parts.payload_bytes as usize, header.len as usize, "{}", place());
        let (fixed, after) = after.split_at(parts.fixed_bytes);
        let (payload, after) = after.split_at(parts.payload_bytes as usize);
        let message = decode(&ctx, &header, socket, fixed).unwrap_or_else(|e| panic!("{}: {e}", place()));
        assert_eq!(message.payload_bytes(), u64::from(parts.payload_bytes), "{}", place());
        let has_digest = matches!(message, Message::Data(_) | Message::DataReply(_) | Message::RsDataReply(_));
        let digest = if has_digest { wire::codec::integrity_digest(fixed) } else { &[] };
        let mut shown = head.to_vec();
        shown.extend_from_slice(&fixed[..fixed.len() - digest.len()]);
        let frame = Frame {
            ctx,
            header,
            head: shown,
            digest: digest.to_vec(),
            payload: payload.to_vec(),
            packet: ctx.packet_info(header.command).unwrap().packet,
            message,
        };
        if let Message::Protocol(options) | Message::ProtocolUpdate(options) = &frame.message {
            ctx.integrity_digest_len = digest_len(&options.integrity_alg);
        }
        frames.push(frame);
        bytes = after;
    }
    assert!(bytes.is_empty(), "{place}: {} bytes left over", bytes.len());
    frames
}

fn digest_len(algorithm: &str) -> usize {
    match algorithm {
        "" => 0,
        "crc32c" => 4,
        "sha1" => 20,
        other => panic!("no capture should use {other}"),
    }
}
