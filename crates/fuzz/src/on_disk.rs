//! Metadata that lies on a disk. Promises: a superblock is refused or is written as it was read; what it describes lies
//! inside its device; a log of any bytes gives an answer, and applying it only sets bits; looking at a device reads inside
//! it only.

use metadata::activity_log::{AlBlock, Recovery, apply_al, recover};
use metadata::{BLOCK_BYTES, Bitmap, Block, Geometry, Layout, Placement, Superblock, SuperblockV08, check, recognise};

/// Sizes of a device to try a superblock on.
const DEVICE_BYTES: [u64; 4] = [64 << 20, (64 << 20) + 512 * 7, 1 << 30, 1 << 40];
const PLACEMENTS: [Placement; 3] = [Placement::Internal, Placement::External, Placement::Indexed(1)];
/// Places of the magic and the checksum in a transaction of the log (docs/ondisk.md).
const LOG_MAGIC: std::ops::Range<usize> = 0..4;
const LOG_CRC: std::ops::Range<usize> = 8..12;
const CRC32C_RAW: crc::Algorithm<u32> = crc::Algorithm { init: 0, xorout: 0, ..crc::CRC_32_ISCSI };
static CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&CRC32C_RAW);

/// Larger metadata areas have more bitmap, and nothing else that the others lack.
const FIXTURE_BLOCKS_MAX: usize = 256;

/// Blocks of the fixtures' metadata areas.
fn blocks_of_fixtures() -> Vec<Vec<Block>> {
    let regions = crate::files(crate::fixtures("metadata"), ".region.gz");
    let blocks = regions.iter().map(|path| crate::unzipped(path).as_chunks::<BLOCK_BYTES>().0.to_vec());
    blocks.filter(|blocks| blocks.len() <= FIXTURE_BLOCKS_MAX).collect()
}

fn padded(bytes: &[u8]) -> Block {
    let mut block = [0; BLOCK_BYTES];
    let len = bytes.len().min(BLOCK_BYTES);
    block[..len].copy_from_slice(&bytes[..len]);
    block
}

/// Without the zeroes at its end.
fn shortened(block: &[u8]) -> &[u8] {
    let len = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &block[..len]
}

pub fn superblocks() -> Vec<Vec<u8>> {
    let all = blocks_of_fixtures().into_iter().flatten();
    let known = all.filter(|block| Superblock::decode(block, 0).is_ok() || SuperblockV08::decode(block, 0).is_ok());
    let seeds: Vec<Vec<u8>> = known.map(|block| shortened(&block).to_vec()).collect();
    assert!(seeds.len() > 20, "only {} superblocks in the fixtures", seeds.len());
    seeds
}

pub fn run_superblock(input: &[u8]) {
    let block = padded(input);
    if let Ok(superblock) = Superblock::decode(&block, 0) {
        let again = Superblock::decode(&superblock.encode(), 0);
        assert_eq!(again.as_ref(), Ok(&superblock));
        for (placement, bytes) in PLACEMENTS.iter().flat_map(|p| DEVICE_BYTES.map(|bytes| (*p, bytes))) {
            if let Ok(layout) = check(&superblock, placement, bytes) {
                is_inside(&layout, placement, bytes);
                assert!(superblock.last_agreed_bytes <= layout.usable_bytes, "{superblock:?} in {layout:?}");
            }
        }
    }
    if let Ok(old) = SuperblockV08::decode(&block, 0) {
        let new = old.convert(None);
        assert_eq!(Superblock::decode(&new.encode(), 0).as_ref(), Ok(&new));
    }
}

fn is_inside(layout: &Layout, placement: Placement, device_bytes: u64) {
    let log_bytes = u64::from(layout.al_blocks) * BLOCK_BYTES as u64;
    let mut parts = [
        (layout.superblock, BLOCK_BYTES as u64),
        (layout.activity_log, log_bytes),
        (layout.bitmap, layout.bitmap_bytes),
    ];
    parts.sort_unstable();
    for pair in parts.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "parts overlap: {layout:?}");
    }
    assert!(parts[2].0 + parts[2].1 <= device_bytes, "{layout:?} of a device of {device_bytes} bytes");
    if placement == Placement::Internal {
        assert!(layout.usable_bytes <= parts[0].0, "data and metadata overlap: {layout:?}");
    }
}

/// Rings: a byte for the geometry and what the flags say, then transactions of which the magic and the checksum are put
/// right unless the block's first byte says otherwise.
pub fn run_log(input: &[u8]) {
    let Some((&choice, rest)) = input.split_first() else { return };
    let (stripes, stripe_4k) = [(1, 8), (2, 4), (4, 8), (1, 32)][usize::from(choice & 3)];
    let primary = choice & 4 == 0;
    let al_slots = [67, 1237, 65534, 8][usize::from(choice >> 3 & 3)];
    let mut ring = vec![[0; BLOCK_BYTES]; (stripes * stripe_4k) as usize];
    for (block, bytes) in ring.iter_mut().zip(rest.chunks(BLOCK_BYTES)) {
        *block = padded(bytes);
        if block[0] & 1 == 0 {
            block[LOG_MAGIC].copy_from_slice(&metadata::activity_log::MAGIC.to_be_bytes());
            block[LOG_CRC].fill(0);
            let crc = CRC.checksum(block);
            block[LOG_CRC].copy_from_slice(&crc.to_be_bytes());
            assert!(AlBlock::decode(block) != AlBlock::Invalid, "the checksum was just put right");
        }
    }
    let recovery = recover(&ring, stripes, stripe_4k, al_slots, primary);
    assert_eq!(recovery == Recovery::Clean, !primary);
    let geometry = Geometry { max_peers: 2, bitmap_block_bytes: 4096, al_stripes: stripes, al_stripe_4k: stripe_4k };
    let layout = Layout::compute(Placement::Internal, 64 << 20, geometry).expect("a device of 64 MiB");
    let mut superblock = Superblock::fresh(geometry, &layout);
    let mut bitmap = Bitmap::new(2, 4096, (64 << 20) / 4096 - 5);
    apply_al(&mut superblock, &mut bitmap, &recovery);
    for slot in bitmap.slots() {
        assert!(bitmap.count(slot) <= bitmap.bits(), "bits behind the end of the volume");
        if matches!(recovery, Recovery::MarkEverything { .. }) {
            assert_eq!(bitmap.count(slot), bitmap.bits());
        }
    }
}

pub fn logs() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for blocks in blocks_of_fixtures() {
        let in_log = |block: &&Block| AlBlock::decode(block) != AlBlock::Invalid;
        let ring: Vec<&Block> = blocks.iter().filter(in_log).take(8).collect();
        if !ring.is_empty() {
            seeds.push(std::iter::once(0).chain(ring.into_iter().flatten().copied()).collect());
        }
    }
    assert!(seeds.len() > 10, "only {} logs in the fixtures", seeds.len());
    seeds
}

/// The input is what lies at each place where something is looked for.
pub fn run_recognise(input: &[u8]) {
    for (placement, device_bytes) in PLACEMENTS.iter().flat_map(|p| DEVICE_BYTES.map(|bytes| (*p, bytes))) {
        let read = |offset: u64, buffer: &mut [u8]| {
            assert!(
                offset + buffer.len() as u64 <= device_bytes,
                "{} bytes at {offset} of {device_bytes}",
                buffer.len()
            );
            let shown = input.len().min(buffer.len());
            buffer[..shown].copy_from_slice(&input[..shown]);
            Ok::<(), ()>(())
        };
        for found in recognise(placement, device_bytes, read).expect("reading never fails here") {
            assert!(!found.to_string().is_empty());
        }
    }
}
