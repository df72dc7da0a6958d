//! A capture as a list of events in the order of its clock, seen from the node whose place the engine takes.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use types::VolumeNumber;
use wire::version::Agreed;
use wire::{Context, Header, HeaderForm, Message, Socket, decode, frame_parts};

/// What two 9.3.3 kernels agree on; everything they said decodes with it.
const KERNELS: Agreed = Agreed { protocol: 124, features: 0x3ff };

#[derive(Clone, Debug)]
pub struct Frame {
    /// Two TCP connections, counted from 0.
    pub link: usize,
    pub socket: Socket,
    pub volume: Option<VolumeNumber>,
    pub message: Message,
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Event {
    /// Both sockets are there. `arbiter`: the replaced node accepted the control socket.
    LinkUp { link: usize, arbiter: bool },
    /// The other kernel closed the data socket.
    LinkDown { link: usize },
    /// What the replaced kernel sent: to be sent by the engine.
    Expected(Frame),
    /// What the other kernel sent: to be fed.
    Peer(Frame),
}

fn open(name: &str) -> Value {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../wire/tests/fixtures");
    let file = std::fs::File::open(file.join(format!("{name}.streams.json.gz"))).expect("a fixture of crate wire");
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
    serde_json::from_str(&text).expect("json")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect("a string")
}

/// Seconds from `zero` and what happened then, in order. `me`: "a" or "b".
pub fn load(name: &str, zero: f64, me: &str) -> Vec<(f64, Event)> {
    let capture = open(name);
    let connections = capture["connections"].as_array().expect("connections");
    let syn = |c: &Value| c["syn"].as_f64().expect("a time");
    let find = |id: u64| connections.iter().find(|c| c["id"].as_u64() == Some(id)).expect("a described connection");

    let mut links: Vec<(u64, u64)> = Vec::new();
    for data in connections.iter().filter(|c| c["socket"] == "data") {
        let apart = |c: &&Value| ((syn(c) - syn(data)).abs() * 1e6) as u64;
        let control =
            connections.iter().filter(|c| c["socket"] == "control").min_by_key(apart).expect("a control socket");
        links.push((data["id"].as_u64().expect("an id"), control["id"].as_u64().expect("an id")));
    }

    let mut events: Vec<(f64, Event)> = Vec::new();
    let mut left: BTreeMap<(u64, String), Vec<u8>> = BTreeMap::new();
    let mut up = vec![false; links.len()];
    for chunk in capture["chunks"].as_array().expect("chunks") {
        let (at, id) = (chunk[0].as_f64().expect("a time") - zero, chunk[1].as_u64().expect("an id"));
        let from_to = chunk[2].as_str().expect("a direction");
        let from = from_to.split_once('>').expect("from>to").0;
        let Some(link) = links.iter().position(|(d, c)| *d == id || *c == id) else { continue };
        let connection = find(id);
        let socket = if links[link].0 == id { Socket::Data } else { Socket::Control };
        let key = (id, from_to.to_owned());
        let is_first = text(connection, "connector") == from && !left.contains_key(&key);
        let bytes = left.entry(key).or_default();
        bytes.extend(hex::decode(chunk[3].as_str().expect("hex")).expect("hex"));
        if is_first {
            bytes.drain(..8);
        }
        while let Some(frame) = next_frame(bytes, link, socket) {
            if !std::mem::replace(&mut up[link], true) {
                let arbiter = text(find(links[link].1), "acceptor") == me;
                events.push((at, Event::LinkUp { link, arbiter }));
            }
            events.push((at, if from == me { Event::Expected(frame) } else { Event::Peer(frame) }));
        }
    }
    for (link, (data, _)) in links.iter().enumerate().filter(|(link, _)| up[*link]) {
        let connection = find(*data);
        let end = if text(connection, "connector") == me { "end_acceptor" } else { "end_connector" };
        if let Some(at) = connection[end].as_f64() {
            events.push((at - zero, Event::LinkDown { link }));
        }
    }
    events.sort_by(|a, b| a.0.total_cmp(&b.0));
    events
}

fn next_frame(bytes: &mut Vec<u8>, link: usize, socket: Socket) -> Option<Frame> {
    let ctx = Context::new(KERNELS);
    let form = HeaderForm::classify(*bytes.first_chunk::<8>()?).expect("a header form");
    let header = Header::decode(bytes.get(..form.header_bytes())?).expect("a header");
    let total = form.header_bytes() + header.len as usize;
    let frame: Vec<u8> = bytes.get(..total)?.to_vec();
    bytes.drain(..total);
    let parts = frame_parts(&ctx, &header, socket).expect("a known frame");
    let (fixed, payload) = frame[form.header_bytes()..].split_at(parts.fixed_bytes);
    let message = decode(&ctx, &header, socket, fixed).expect("a message");
    Some(Frame { link, socket, volume: wire::volume_of(&ctx, &header), message, payload: payload.to_vec() })
}
