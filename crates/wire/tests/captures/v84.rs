//! The captures of 8.4.11, packet by packet, against the listings that an independent decoder made of them.

use crate::meaning::render;
use crate::stream::{all_84, listing};
use std::collections::BTreeMap;
use wire::Message;
use wire::Socket;
use wire::message::{BitmapChunk, StateWord};
use wire::v84::{Message84, Request84, disk_to_wire};

/// In the words of the listing; what it adds behind is not compared.
fn text(message: &Message) -> String {
    match message {
        Message::State(word) => state(*word),
        Message::V84(message) => only_84(message),
        Message::AuthChallenge(_) => render(message),
        Message::OvResult { ack, result } => {
            let (range, id) = (ack.range, 4710 + u64::from(*result));
            format!("sector={} block_id={id:#x} blksize={} seq={}", range.sector(), range.len(), ack.seq)
        }
        Message::RsDeallocated(ack) => format!("sector={} blksize={}", ack.range.sector(), ack.range.len()),
        Message::Bitmap(BitmapChunk::Plain(bytes)) if bytes.is_empty() => "terminator;".to_owned(),
        Message::Bitmap(BitmapChunk::Plain(bytes)) => format!("{} words", bytes.len() / 8),
        Message::Bitmap(BitmapChunk::Compressed(bytes)) => format!("head={:#04x}", bytes[0]),
        other => render(other),
    }
}

fn state(word: StateWord) -> String {
    let (disk, peer_disk) = (word.disk().unwrap(), word.peer_disk().unwrap());
    format!(
        "role={} peer={} conn={} disk={}:{disk} pdsk={}:{peer_disk}",
        word.role().unwrap(),
        word.peer_role().unwrap(),
        word.conn(),
        disk_to_wire(disk),
        disk_to_wire(peer_disk),
    )
}

fn only_84(message: &Message84) -> String {
    match message {
        Message84::Uuids(u) => format!(
            "current={:016x} bitmap={:016x} history={:016x},{:016x} dirty_bits={} flags={}",
            u.current.0,
            u.bitmap.0,
            u.history[0].0,
            u.history[1].0,
            u.dirty_bits,
            if u.flags == 0 { "0".to_owned() } else { format!("{:#x}", u.flags) }
        ),
        Message84::SyncUuid(uuid) => format!("uuid={:016x}", uuid.0),
        Message84::VolumeRequest(Request84 { mask, value })
        | Message84::ConnectionRequest(Request84 { mask, value }) => format!("mask={:#x} val={:#x}", mask.0, value.0),
        Message84::VolumeReply(code) | Message84::ConnectionReply(code) => format!("retcode={code}"),
        Message84::Superseded(ack) | Message84::RetryWrite(ack) => format!(
            "sector={} block_id={:#x} blksize={} seq={}",
            ack.range.sector(),
            ack.block_id,
            ack.range.len(),
            ack.seq
        ),
    }
}

/// Numbers without the names that the listing has behind them, none of the padding and no whole state words.
fn comparable(fields: &str) -> String {
    let mut text = String::new();
    let mut depth = 0;
    for c in fields.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 => text.push(c),
            _ => {}
        }
    }
    // Digests of data are recomputed in `digests`.
    let other = ["pad=", "0x", "crc32c=", "sha1="];
    let words = text.split(' ').filter(|word| !other.iter().any(|o| word.starts_with(o)) && !["", "ok"].contains(word));
    let words = words.map(|word| if word.starts_with("conn=") { word.split(':').next().unwrap() } else { word });
    words.collect::<Vec<_>>().join(" ").replace("block_id=ID_SYNCER", "block_id=0xffffffffffffffff")
}

/// Lines of one direction and socket, in order: name and fields. A listing is in order of time, so of connections too.
fn lines(name: &str) -> BTreeMap<(String, Socket), Vec<(String, String)>> {
    let mut lines: BTreeMap<(String, Socket), Vec<(String, String)>> = BTreeMap::new();
    for line in listing(name).lines() {
        let mut words = line.split_whitespace();
        let Some(direction) = words.nth(1) else { continue };
        let Some((from, socket)) =
            ["->", "=>"].iter().zip([Socket::Data, Socket::Control]).find_map(|(arrow, socket)| {
                let (from, to) = direction.split_once(arrow)?;
                (["a", "b"].contains(&from) && ["a", "b"].contains(&to)).then_some((from, socket))
            })
        else {
            continue;
        };
        let form = words.next().expect("a form");
        let mut packet = words.next().expect("a name");
        if form == "h100" {
            packet = words.next().expect("a name behind the volume");
        }
        if packet.starts_with("INITIAL_") {
            continue;
        }
        let fields = words.collect::<Vec<_>>().join(" ");
        lines.entry((from.to_owned(), socket)).or_default().push((packet.to_owned(), fields));
    }
    lines
}

#[test]
fn every_packet_means_what_the_listing_says() {
    let mut compared = 0;
    for (name, streams) in all_84() {
        let mut listed = lines(name);
        let mut ours: BTreeMap<(String, Socket), Vec<_>> = BTreeMap::new();
        for stream in streams {
            ours.entry((stream.from.clone(), stream.socket)).or_default().extend(&stream.frames);
        }
        for (whose, frames) in ours {
            let lines = listed.remove(&whose).unwrap_or_default();
            assert_eq!(frames.len(), lines.len(), "{name}: packets of {whose:?}");
            for (frame, (packet, fields)) in frames.iter().zip(&lines) {
                let (ours, theirs) = (text(&frame.message), comparable(fields));
                let place = || format!("{name}, {whose:?}: {packet}\nours    {ours}\nlisting {theirs}");
                assert_eq!(frame.packet.name(), packet, "{}", place());
                let ours = comparable(&ours.replace("digest=", &format!("digest({})=", 0)));
                let rest = theirs.strip_prefix(&ours).unwrap_or_else(|| panic!("{}", place()));
                assert!(rest.is_empty() || rest.starts_with(' '), "{}", place());
                compared += 1;
            }
        }
        assert!(listed.is_empty(), "{name}: {listed:?}");
    }
    assert!(compared > 12_000, "{compared} packets");
}
