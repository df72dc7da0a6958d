//! Digests of blocks: what a checksum resync and an online verify compare in place of the data. A plain hash over the
//! bytes of the block, without key or header (docs/wire.md "Digests").
//!
//! The algorithm's name travels in SYNC_PARAM89, both nodes must have configured the same one.

use core::fmt;

use crc::{CRC_32_ISCSI, Crc, Table};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::packet::DIGEST_BYTES_MAX;

/// Sixteen bytes a step: it is a sixteenth of what the plain table takes.
const CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// Hash of `verify-alg` and `csums-alg`. CRC-32C finds what a disk or a cable broke, and not what somebody made up; a peer is
/// trusted with the data anyway.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DigestAlgorithm {
    Crc32c,
    Md5,
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl DigestAlgorithm {
    pub const ALL: [DigestAlgorithm; 6] = [
        DigestAlgorithm::Crc32c,
        DigestAlgorithm::Md5,
        DigestAlgorithm::Sha1,
        DigestAlgorithm::Sha256,
        DigestAlgorithm::Sha384,
        DigestAlgorithm::Sha512,
    ];

    /// The name in the configuration and on the wire. `None` for one that we do not have.
    pub fn parse(name: &str) -> Option<DigestAlgorithm> {
        DigestAlgorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    pub const fn name(self) -> &'static str {
        match self {
            DigestAlgorithm::Crc32c => "crc32c",
            DigestAlgorithm::Md5 => "md5",
            DigestAlgorithm::Sha1 => "sha1",
            DigestAlgorithm::Sha256 => "sha256",
            DigestAlgorithm::Sha384 => "sha384",
            DigestAlgorithm::Sha512 => "sha512",
        }
    }

    pub const fn digest_bytes(self) -> usize {
        match self {
            DigestAlgorithm::Crc32c => 4,
            DigestAlgorithm::Md5 => 16,
            DigestAlgorithm::Sha1 => 20,
            DigestAlgorithm::Sha256 => 32,
            DigestAlgorithm::Sha384 => 48,
            DigestAlgorithm::Sha512 => 64,
        }
    }

    pub fn digest(self, block: &[u8]) -> Digest {
        match self {
            DigestAlgorithm::Crc32c => Digest::of_crc32c(CRC32C.checksum(block)),
            DigestAlgorithm::Md5 => Digest::of_hash(&Md5::digest(block)),
            DigestAlgorithm::Sha1 => Digest::of_hash(&Sha1::digest(block)),
            DigestAlgorithm::Sha256 => Digest::of_hash(&Sha256::digest(block)),
            DigestAlgorithm::Sha384 => Digest::of_hash(&Sha384::digest(block)),
            DigestAlgorithm::Sha512 => Digest::of_hash(&Sha512::digest(block)),
        }
    }

    /// What a verify target sends for a block that it cannot read.
    pub fn unreadable(self) -> Digest {
        Digest { len: self.digest_bytes() as u8, bytes: [0; DIGEST_BYTES_MAX as usize] }
    }
}

/// A digest by value: as long as the longest, so that nothing is allocated for a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// At most `DIGEST_BYTES_MAX`; the bytes behind are zero.
    len: u8,
    bytes: [u8; DIGEST_BYTES_MAX as usize],
}

impl Digest {
    /// `None`: longer than any digest.
    pub fn new(digest: &[u8]) -> Option<Digest> {
        let mut bytes = [0; DIGEST_BYTES_MAX as usize];
        bytes.get_mut(..digest.len())?.copy_from_slice(digest);
        Some(Digest { len: digest.len() as u8, bytes })
    }

    /// Least significant byte first: what DRBD nodes on little-endian machines send.
    pub fn of_crc32c(checksum: u32) -> Digest {
        Digest::of_hash(&checksum.to_le_bytes())
    }

    fn of_hash(hash: &[u8]) -> Digest {
        Digest::new(hash).expect("no hash of ours is longer than the longest")
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    /// Values of "123456789": the check value of each algorithm, from its own publications.
    #[test]
    fn check_values() {
        let expected = [
            ("crc32c", "839206e3"),
            ("md5", "25f9e794323b453885f5181f1b624d0b"),
            ("sha1", "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
            ("sha256", "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ];
        for (name, digest) in expected {
            let algorithm = DigestAlgorithm::parse(name).unwrap();
            assert_eq!(format!("{:?}", algorithm.digest(b"123456789")), digest, "{name}");
        }
    }

    #[test]
    fn names_and_lengths() {
        for algorithm in DigestAlgorithm::ALL {
            assert_eq!(DigestAlgorithm::parse(algorithm.name()), Some(algorithm));
            assert_eq!(algorithm.digest(&[7; 4096]).as_bytes().len(), algorithm.digest_bytes());
            assert_ne!(algorithm.digest(&[7; 4096]), algorithm.digest(&[8; 4096]));
            assert_eq!(algorithm.unreadable().as_bytes().len(), algorithm.digest_bytes());
        }
        assert_eq!(DigestAlgorithm::parse("crc32"), None);
        assert_eq!(Digest::new(&[0; 65]), None);
        assert_ne!(Digest::new(&[0; 4]), Digest::new(&[0; 5]), "the length counts");
    }
}
