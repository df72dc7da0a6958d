//! Stamps of the suite and bytes of a store.

const SECTOR_BYTES: usize = 512;

/// Stamps as the bytes of a store.
pub fn bytes_of(stamps: &[u64]) -> Vec<u8> {
    stamps.iter().flat_map(|stamp| std::iter::repeat_n(stamp.to_le_bytes(), 64).flatten()).collect()
}

/// And back; a sector that is no stamp is torn.
pub fn stamps_of(bytes: &[u8]) -> Vec<u64> {
    let stamp = |sector: &[u8]| {
        let first = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
        assert!(sector.chunks(8).all(|word| word == first.to_le_bytes()), "a torn sector: {sector:?}");
        first
    };
    bytes.chunks(SECTOR_BYTES).map(stamp).collect()
}
