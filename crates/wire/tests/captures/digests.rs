//! Secrets and digests of the captures, recomputed.

use crate::stream::{Frame, Stream, load};
use wire::auth::{HmacAlgorithm, is_reflection, response, verify};
use wire::{Message, Socket};

const SECRET: &[u8] = b"fixture-secret-1";

fn node_id(name: &str) -> types::NodeId {
    types::NodeId::new(name.as_bytes()[0] - b'a').unwrap()
}

fn find<'a, T>(stream: &'a Stream, pick: impl Fn(&'a Message) -> Option<T>) -> T {
    stream.frames.iter().find_map(|frame| pick(&frame.message)).expect("the capture has this packet")
}

fn challenge(stream: &Stream) -> &Vec<u8> {
    find(stream, |message| if let Message::AuthChallenge(bytes) = message { Some(bytes) } else { None })
}

fn answer(stream: &Stream) -> &Vec<u8> {
    find(stream, |message| if let Message::AuthResponse(bytes) = message { Some(bytes) } else { None })
}

#[test]
fn responses_are_those_of_the_kernel() {
    for (name, algorithm) in [
        ("9-02a-auth-sha256", HmacAlgorithm::Sha256),
        ("9-02d-auth-sha1", HmacAlgorithm::Sha1),
        ("84-02a-auth-sha256", HmacAlgorithm::Sha256),
        ("84-02d-auth-sha1", HmacAlgorithm::Sha1),
    ] {
        let streams: Vec<Stream> = load(name).into_iter().filter(|s| s.socket == Socket::Data).collect();
        let [one, two] = streams.as_slice() else { panic!("{name}: {} data streams", streams.len()) };
        for (sender, receiver) in [(one, two), (two, one)] {
            let node = Some(node_id(&sender.from)).filter(|_| name.starts_with("9-"));
            assert_eq!(&response(algorithm, SECRET, challenge(receiver), node), answer(sender), "{name}: {node:?}");
            assert!(verify(algorithm, SECRET, challenge(receiver), node, answer(sender)));
            assert!(!verify(algorithm, b"other-secret", challenge(receiver), node, answer(sender)));
            assert!(!is_reflection(challenge(sender), challenge(receiver)));
        }
    }
}

#[test]
fn integrity_digests_stand_between_head_and_data() {
    let mut checked = 0;
    for (name, digest) in
        [("9-09-integrity-sha1", sha1_of as fn(&[u8]) -> Vec<u8>), ("9-09-integrity-crc32c", crc32c_of)]
    {
        for stream in load(name) {
            for frame in with_digest(&stream) {
                assert_eq!(frame.digest, digest(&frame.payload), "{name}: {:?}", frame.message);
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 12, "as many packets as the listings of both captures show");
}

fn with_digest(stream: &Stream) -> impl Iterator<Item = &Frame> {
    stream.frames.iter().filter(|frame| !frame.digest.is_empty())
}

fn sha1_of(data: &[u8]) -> Vec<u8> {
    use sha1::Digest;
    sha1::Sha1::digest(data).to_vec()
}

/// Bit by bit: the test needs no speed.
fn crc32c_of(data: &[u8]) -> Vec<u8> {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    (!crc).to_le_bytes().to_vec()
}
