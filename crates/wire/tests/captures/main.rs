//! Our codec against traffic of real DRBD 9.3.3 kernels: everything decodes, and encodes to the same bytes.

mod bitmaps;
mod digests;
mod meaning;
mod older;
mod stream;

use std::collections::BTreeMap;
use stream::{Frame, all};
use wire::encode;
use wire::packet::Packet;

/// Padding that kernels fill with old memory: offset in the payload and length. Everything else must be equal.
pub fn uninitialised(packet: Packet) -> Option<(usize, usize)> {
    match packet {
        Packet::OutOfSync => Some((12, 4)),
        Packet::OvRequest | Packet::OvReply => Some((20, 4)),
        _ => None,
    }
}

fn expected_bytes(frame: &Frame) -> Vec<u8> {
    let mut expected = frame.head.clone();
    if let Some((offset, len)) = uninitialised(frame.packet) {
        let start = frame.header.form.header_bytes() + offset;
        expected[start..start + len].fill(0);
    }
    expected
}

#[test]
fn every_packet_decodes_and_encodes_to_the_same_bytes() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, streams) in all() {
        for stream in streams {
            for (index, frame) in stream.frames.iter().enumerate() {
                let mut out = Vec::new();
                encode(&frame.ctx, frame.header.volume, &frame.message, &mut out);
                let expected = expected_bytes(frame);
                assert!(
                    out == expected,
                    "{name}, connection {} {}>{}, frame {index}: {:?}\nours    {}\nkernel's {}",
                    stream.connection,
                    stream.from,
                    stream.to,
                    frame.message,
                    hex::encode(&out),
                    hex::encode(&expected)
                );
                let info = frame.packet.info();
                assert_eq!(info.socket, stream.socket);
                assert!(info.is_agreed(frame.ctx.protocol, frame.ctx.features), "{name}: {}", info.name);
                *counts.entry(frame.packet.name()).or_default() += 1;
            }
        }
    }
    let total: usize = counts.values().sum();
    println!("{total} packets: {counts:?}");
    // As many as an independent decoder counts in these captures, without the first packets of the sockets.
    assert_eq!(total, 33_720, "{counts:?}");
    assert!(counts.len() >= 58, "only {} kinds of packets: {counts:?}", counts.len());
}
