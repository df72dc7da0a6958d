//! Digests of blocks, for a verify or a checksum resync, on the resource's own thread: a block of 64 KiB takes the time of a
//! few requests, and another thread would have to be waited for.

use wire::digest::{Digest, DigestAlgorithm};

/// CRC-32C with the processor's own instruction where there is one; the others find theirs by themselves.
pub fn of(algorithm: DigestAlgorithm, block: &[u8]) -> Digest {
    match algorithm {
        DigestAlgorithm::Crc32c => Digest::of_crc32c(crc32c::crc32c(block)),
        other => other.digest(block),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processors_crc_is_the_tables() {
        for len in [0, 1, 511, 4096, 65536] {
            let block: Vec<u8> = (0..len).map(|i| (i * 7 + i / 256) as u8).collect();
            assert_eq!(of(DigestAlgorithm::Crc32c, &block), DigestAlgorithm::Crc32c.digest(&block), "{len} bytes");
        }
    }
}
