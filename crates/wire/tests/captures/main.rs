//! Our codec against traffic of real kernels, DRBD 9.3.3 and 8.4.11: everything decodes, and encodes to the same bytes.

mod bitmaps;
mod digests;
mod meaning;
mod stream;
mod v84;

use std::collections::BTreeMap;
use stream::{Frame, Stream, all, all_84};
use wire::packet::Packet;
use wire::{encode, volume_of};

/// Padding that kernels fill with old memory: offset in the payload and length. Everything else must be equal.
pub fn uninitialised(packet: Packet) -> Option<(usize, usize)> {
    match packet {
        Packet::OutOfSync => Some((12, 4)),
        Packet::DataRequest
        | Packet::RsDataRequest
        | Packet::RsThinReq
        | Packet::CsumRsRequest
        | Packet::OvRequest
        | Packet::OvReply => Some((20, 4)),
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

/// Packets by name and how many of them were compared.
fn reencode(captures: &[(String, Vec<Stream>)]) -> BTreeMap<&'static str, usize> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, streams) in captures {
        for stream in streams {
            for (index, frame) in stream.frames.iter().enumerate() {
                let mut out = Vec::new();
                encode(&frame.ctx, volume_of(&frame.ctx, &frame.header), &frame.message, &mut out);
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
                let info = frame.ctx.packet_info(frame.header.command).unwrap();
                assert_eq!(info.socket, stream.socket);
                let unagreed = frame.packet == Packet::ConnectionFeatures;
                assert!(unagreed || info.is_agreed(frame.ctx.protocol, frame.ctx.features), "{name}: {}", info.name);
                *counts.entry(frame.packet.name()).or_default() += 1;
            }
        }
    }
    println!("{} packets: {counts:?}", counts.values().sum::<usize>());
    counts
}

#[test]
fn every_packet_decodes_and_encodes_to_the_same_bytes() {
    let counts = reencode(all());
    // As many as an independent decoder counts in these captures, without the first packets of the sockets.
    assert_eq!(counts.values().sum::<usize>(), 33_720, "{counts:?}");
    assert!(counts.len() >= 58, "only {} kinds of packets: {counts:?}", counts.len());
}

#[test]
fn so_does_every_packet_of_the_8_4_dialect() {
    let counts = reencode(all_84());
    // Those of section 10.4 of the protocol reference, without the first packets of the sockets.
    assert_eq!(counts.len(), 43, "{counts:?}");
}
