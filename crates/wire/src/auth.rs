//! Challenge and response (CRAM-HMAC). Both sides send a challenge, both answer; order: docs/wire.md "Authentication".
//!
//! The algorithm's name is not transmitted: both nodes must have configured the same.

use alloc::vec::Vec;
use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use types::NodeId;

/// Longest shared secret. Bytes, without a terminator.
pub const SECRET_BYTES_MAX: usize = 64;

/// Hash of `cram-hmac-alg`. Listed from weak to strong; the weak ones exist for configurations that have them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HmacAlgorithm {
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

impl HmacAlgorithm {
    /// The name in the configuration, without "hmac()". `None` for one that we do not have.
    pub fn parse(name: &str) -> Option<HmacAlgorithm> {
        Some(match name {
            "md5" => HmacAlgorithm::Md5,
            "sha1" => HmacAlgorithm::Sha1,
            "sha256" => HmacAlgorithm::Sha256,
            "sha512" => HmacAlgorithm::Sha512,
            _ => return None,
        })
    }

    pub const fn name(self) -> &'static str {
        match self {
            HmacAlgorithm::Md5 => "md5",
            HmacAlgorithm::Sha1 => "sha1",
            HmacAlgorithm::Sha256 => "sha256",
            HmacAlgorithm::Sha512 => "sha512",
        }
    }

    /// Length of a response.
    pub const fn digest_bytes(self) -> usize {
        match self {
            HmacAlgorithm::Md5 => 16,
            HmacAlgorithm::Sha1 => 20,
            HmacAlgorithm::Sha256 => 32,
            HmacAlgorithm::Sha512 => 64,
        }
    }
}

/// What `node` answers to `challenge`. Both our own answer (the peer's challenge, our id) and what we expect of the
/// peer (our challenge, its id). `None` in the 8.4 dialect, which has no node ids.
pub fn response(algorithm: HmacAlgorithm, secret: &[u8], challenge: &[u8], node: Option<NodeId>) -> Vec<u8> {
    match algorithm {
        HmacAlgorithm::Md5 => finish(mac::<Hmac<Md5>>(secret, challenge, node)),
        HmacAlgorithm::Sha1 => finish(mac::<Hmac<Sha1>>(secret, challenge, node)),
        HmacAlgorithm::Sha256 => finish(mac::<Hmac<Sha256>>(secret, challenge, node)),
        HmacAlgorithm::Sha512 => finish(mac::<Hmac<Sha512>>(secret, challenge, node)),
    }
}

/// Whether `received` is the answer of `peer` to our `challenge`. Takes the same time wherever the bytes differ.
pub fn verify(
    algorithm: HmacAlgorithm,
    secret: &[u8],
    challenge: &[u8],
    peer: Option<NodeId>,
    received: &[u8],
) -> bool {
    match algorithm {
        HmacAlgorithm::Md5 => matches(mac::<Hmac<Md5>>(secret, challenge, peer), received),
        HmacAlgorithm::Sha1 => matches(mac::<Hmac<Sha1>>(secret, challenge, peer), received),
        HmacAlgorithm::Sha256 => matches(mac::<Hmac<Sha256>>(secret, challenge, peer), received),
        HmacAlgorithm::Sha512 => matches(mac::<Hmac<Sha512>>(secret, challenge, peer), received),
    }
}

/// A peer that sends our own challenge back wants us to compute its answer: refuse it.
pub fn is_reflection(own_challenge: &[u8], received_challenge: &[u8]) -> bool {
    own_challenge == received_challenge
}

fn mac<M: Mac + KeyInit>(secret: &[u8], challenge: &[u8], node: Option<NodeId>) -> M {
    assert!(secret.len() <= SECRET_BYTES_MAX, "the shared secret has {} bytes", secret.len());
    let mut mac = <M as KeyInit>::new_from_slice(secret).expect("HMAC takes a key of any length");
    mac.update(challenge);
    if let Some(node) = node {
        mac.update(&u32::from(node.get()).to_be_bytes());
    }
    mac
}

fn finish(mac: impl Mac) -> Vec<u8> {
    mac.finalize().into_bytes().to_vec()
}

fn matches(mac: impl Mac, received: &[u8]) -> bool {
    mac.verify_slice(received).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [HmacAlgorithm; 4] =
        [HmacAlgorithm::Md5, HmacAlgorithm::Sha1, HmacAlgorithm::Sha256, HmacAlgorithm::Sha512];

    #[test]
    fn names_and_lengths() {
        for algorithm in ALL {
            assert_eq!(HmacAlgorithm::parse(algorithm.name()), Some(algorithm));
            let answer = response(algorithm, b"secret", &[7; 64], NodeId::new(3));
            assert_eq!(answer.len(), algorithm.digest_bytes());
        }
        assert_eq!(HmacAlgorithm::parse("crc32c"), None);
    }

    #[test]
    fn every_input_counts() {
        let (node, other) = (NodeId::new(1), NodeId::new(2));
        for algorithm in ALL {
            let answer = response(algorithm, b"secret", &[7; 64], node);
            assert!(verify(algorithm, b"secret", &[7; 64], node, &answer));
            assert!(!verify(algorithm, b"secret", &[7; 64], other, &answer), "{algorithm:?}: node id");
            assert!(!verify(algorithm, b"secret", &[7; 64], None, &answer), "{algorithm:?}: no node id");
            assert!(!verify(algorithm, b"Secret", &[7; 64], node, &answer), "{algorithm:?}: secret");
            assert!(!verify(algorithm, b"secret", &[8; 64], node, &answer), "{algorithm:?}: challenge");
            assert!(!verify(algorithm, b"secret", &[7; 64], node, &answer[1..]), "{algorithm:?}: cut");
            let mut bent = answer.clone();
            bent[0] ^= 1;
            assert!(!verify(algorithm, b"secret", &[7; 64], node, &bent), "{algorithm:?}: bent");
        }
    }
}
