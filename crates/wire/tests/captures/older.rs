//! Packets that 9.3.3 replaced by newer ones and that we still speak with older peers: their layout is that of the 8.4
//! dialect, so captures of 8.4.11 show it.

use crate::stream::raw;
use crate::uninitialised;
use std::collections::BTreeMap;
use wire::packet::Packet;
use wire::version::feature;
use wire::{Context, Header, HeaderForm, decode, encode};

const CTX: Context =
    Context { features: feature::TRIM | feature::THIN_RESYNC | feature::WSAME, protocol: 118, integrity_digest_len: 0 };

const REPLACED: [Packet; 7] = [
    Packet::RsDataRequest,
    Packet::RsThinReq,
    Packet::RsDeallocated,
    Packet::CsumRsRequest,
    Packet::OvRequest,
    Packet::OvReply,
    Packet::OvResult,
];

/// Frames of one stream: header, bytes of the header, bytes after it.
fn frames(mut bytes: &[u8]) -> Vec<(Header, &[u8], &[u8])> {
    let mut frames = Vec::new();
    while let Some(first) = bytes.first_chunk::<8>() {
        let (head, after) = bytes.split_at(HeaderForm::classify(*first).unwrap().header_bytes());
        let header = Header::decode(head).unwrap();
        let (body, after) = after.split_at(header.len as usize);
        frames.push((header, head, body));
        bytes = after;
    }
    frames
}

#[test]
fn packets_that_newer_peers_replaced() {
    let mut counts: BTreeMap<Packet, usize> = BTreeMap::new();
    for name in ["84-05-thin-resync", "84-08-csums-resync", "84-08-verify"] {
        for bytes in raw(name).1.values() {
            for (header, head, body) in frames(bytes) {
                let Some(packet) = Packet::from_number(header.command).filter(|p| REPLACED.contains(p)) else {
                    continue;
                };
                let message = decode(&CTX, &header, packet.info().socket, body).unwrap();
                let mut expected = [head, body].concat();
                if let Some((offset, len)) = uninitialised(packet) {
                    expected[head.len() + offset..][..len].fill(0);
                }
                let mut out = Vec::new();
                encode(&CTX, header.volume, &message, &mut out);
                assert_eq!(hex::encode(out), hex::encode(expected), "{name}: {message:?}");
                *counts.entry(packet).or_default() += 1;
            }
        }
    }
    assert_eq!(counts.len(), REPLACED.len(), "{counts:?}");
}
