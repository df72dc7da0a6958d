//! Rules that no golden image shows, and arbitrary bytes.

use metadata::activity_log::{INITIALISED, al_extents_max, block_index};
use metadata::{
    AlBlock, AlTransaction, Bitmap, Block, DeviceFlags, Geometry, Layout, Placement, Recovery, Superblock, apply_al,
    check, recover,
};
use proptest::prelude::*;
use types::{ExtentIndex, NodeId, Slot, Uuid};

const SIZE: u64 = 64 << 20;

fn fresh() -> Superblock {
    let geometry = Geometry::new(3);
    Superblock::fresh(geometry, &Layout::compute(Placement::Internal, SIZE, geometry).unwrap())
}

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

#[test]
fn every_field_that_does_not_fit_the_device_is_named_with_its_offset() {
    type Damage = fn(&mut Superblock);
    let cases: [(&str, u64, Damage); 10] = [
        ("al-offset", 0x44, |sb| sb.al_offset_sectors += 8),
        ("bm-offset", 0x4C, |sb| sb.bm_offset_sectors -= 8),
        ("md-size-sect", 0x40, |sb| sb.md_size_sectors += 8),
        ("bm-byte-per-bit", 0x50, |sb| sb.bitmap_block_bytes = 5000),
        ("al-stripes", 0x60, |sb| sb.al_stripes = 0),
        ("al-stripe-size-4k", 0x64, |sb| sb.al_stripe_4k = 7),
        ("al-stripe-size-4k", 0x64, |sb| sb.al_stripe_4k = u32::MAX),
        ("la-size-sect", 0, |sb| sb.last_agreed_bytes = SIZE),
        ("bitmap-index", 0x70 + 64 + 0x14, |sb| {
            sb.peers[1].slot = Some(Slot(2));
            sb.peers[2].slot = Some(Slot(2));
        }),
        ("bitmap-index", 0x70 + 5 * 32 + 0x14, |sb| {
            sb.node_id = NodeId::new(5);
            sb.peers[5].slot = Some(Slot(0));
        }),
    ];
    for (field, at, damage) in cases {
        let mut sb = fresh();
        damage(&mut sb);
        let again = Superblock::decode(&sb.encode(), SIZE - 4096).unwrap();
        assert_eq!(again, sb);
        let error = check(&again, Placement::Internal, SIZE).expect_err(field);
        assert_eq!((error.field, error.offset), (field, SIZE - 4096 + at), "{error}");
    }
    assert!(check(&fresh(), Placement::Internal, SIZE).is_ok());
    assert!(check(&fresh(), Placement::External, SIZE).is_err());
}

#[test]
fn external_metadata_may_have_grown_but_not_shrunk() {
    let geometry = Geometry::new(3);
    let sb = Superblock::fresh(geometry, &Layout::compute(Placement::External, 2 << 20, geometry).unwrap());
    assert!(check(&sb, Placement::External, 4 << 20).is_ok());
    assert_eq!(check(&sb, Placement::External, 1 << 20).unwrap_err().field, "md-size-sect");
}

#[test]
fn devices_that_cannot_carry_the_metadata_are_refused() {
    let refused = |placement, bytes, peers| Layout::compute(placement, bytes, Geometry::new(peers)).unwrap_err();
    assert_eq!(refused(Placement::Internal, 40960, 1).field, "size");
    assert_eq!(refused(Placement::Internal, (1 << 50) + 4096, 1).field, "size");
    assert_eq!(refused(Placement::External, 3 << 40, 1).field, "size");
    assert_eq!(refused(Placement::Indexed(1), 200 << 20, 1).field, "size");
    assert_eq!(refused(Placement::Internal, SIZE, 0).field, "max-peers");
    assert_eq!(refused(Placement::Internal, SIZE, 32).field, "max-peers");
    let long_log = Geometry { al_stripe_4k: 1 << 20, ..Geometry::new(1) };
    assert_eq!(Layout::compute(Placement::Internal, SIZE, long_log).unwrap_err().field, "size");
    let largest = Layout::compute(Placement::Internal, 1 << 50, Geometry::new(31)).unwrap();
    assert!(largest.bm_offset_sectors < -2_000_000_000, "{largest:?}");
}

#[test]
fn slots_are_given_lowest_first() {
    let mut sb = fresh();
    sb.peers[7].slot = Some(Slot(0));
    sb.peers[2].slot = Some(Slot(2));
    assert_eq!(sb.lowest_free_slot(), Some(Slot(1)));
    assert_eq!(sb.slot_owner(Slot(2)), Some(node(2)));
    sb.peers[3].slot = Some(Slot(1));
    assert_eq!(sb.lowest_free_slot(), None);
}

#[test]
fn history_keeps_what_a_handshake_may_still_ask_for() {
    let mut sb = fresh();
    sb.current_uuid = Uuid(0x101);
    for old in [0, 1, 4, 5, 0x100, 0x101] {
        sb.push_history(Uuid(old));
    }
    assert_eq!(sb.history[0], Uuid::ZERO, "never synchronised, or current");
    sb.peers[3].bitmap_uuid = Uuid(0x301);
    sb.push_history(Uuid(0x300));
    assert_eq!(sb.history[0], Uuid(0x300), "the first one is stored even while a peer has it");
    sb.push_history(Uuid(0x201));
    assert_eq!(sb.history[..3], [Uuid(0x200), Uuid(0x300), Uuid::ZERO], "newest first, bit 0 cleared");
    sb.push_history(Uuid(0x300));
    sb.push_history(Uuid(0x201));
    assert_eq!(sb.history[..3], [Uuid(0x200), Uuid(0x300), Uuid::ZERO], "known already, or in use");
    sb.peers[5].bitmap_uuid = Uuid(0x401);
    sb.push_history(Uuid(0x400));
    assert_eq!(sb.history[0], Uuid(0x400), "a record without a slot is told to nobody");
    sb.peers[6].bitmap_uuid = Uuid(0x501);
    sb.peers[6].slot = Some(Slot(0));
    sb.push_history(Uuid(0x500));
    assert_eq!(sb.history[0], Uuid(0x400), "in use as the bitmap UUID of a slot");
    (0..40).for_each(|n| sb.push_history(Uuid(0x1000 + n * 2)));
    assert_eq!((sb.history[0], sb.history[31]), (Uuid(0x104E), Uuid(0x1010)), "the oldest drop out");
}

#[test]
fn the_ring_position_is_that_of_the_reference() {
    let striped: Vec<u32> = (0..6).map(|t| block_index(t, 4, 16)).collect();
    assert_eq!(striped, [0, 16, 32, 48, 1, 17]);
    assert_eq!(block_index(u32::MAX, 1, 8), 7);
    assert_eq!((al_extents_max(8), al_extents_max(72), al_extents_max(73)), (6433, 65249, 65534));
}

/// Without context: one that starts behind the last slot shows none.
fn transaction(number: u32, slots: u16, updates: &[(u16, u32)]) -> Block {
    let updates = updates.iter().map(|(slot, extent)| (*slot, Some(ExtentIndex(*extent)))).collect();
    AlTransaction { number, slot_count: slots, context_first: slots, updates, ..AlTransaction::default() }.encode()
}

fn ring_of(blocks: &[(usize, Block)]) -> [Block; 8] {
    let mut ring = [INITIALISED; 8];
    blocks.iter().for_each(|(at, block)| ring[*at] = *block);
    ring
}

#[test]
fn a_lost_older_transaction_whose_slots_nothing_later_shows_marks_everything() {
    let damaged = [0x55; 4096];
    let lost = ring_of(&[(0, transaction(0, 2, &[(0, 1)])), (1, damaged), (2, transaction(2, 2, &[(0, 3)]))]);
    let Recovery::MarkEverything { reason } = recover(&lost, 1, 8, 257, true) else { panic!("slot 1 is not known") };
    assert!(reason.contains("slot 1"), "{reason}");
    let shown = ring_of(&[(0, transaction(0, 2, &[(0, 1)])), (1, damaged), (2, transaction(2, 2, &[(0, 3), (1, 4)]))]);
    let hot = Recovery::Hot { extents: vec![ExtentIndex(3), ExtentIndex(4)], damaged: 1 };
    assert_eq!(recover(&shown, 1, 8, 257, true), hot);
    let newest = ring_of(&[(0, transaction(0, 2, &[(0, 1)])), (1, damaged)]);
    assert_eq!(recover(&newest, 1, 8, 257, true), Recovery::Hot { extents: vec![ExtentIndex(1)], damaged: 1 });
    let two = ring_of(&[(0, transaction(0, 2, &[(0, 1)])), (1, damaged), (5, damaged)]);
    assert!(matches!(recover(&two, 1, 8, 257, true), Recovery::MarkEverything { .. }));
    assert_eq!(recover(&two, 1, 8, 257, false), Recovery::Clean);
}

#[test]
fn a_log_that_was_switched_off_on_a_crashed_primary_marks_everything() {
    let mut bitmap = Bitmap::new(3, 4096, 1000);
    let mut sb = fresh();
    sb.flags = DeviceFlags(0x103);
    apply_al(&mut sb, &mut bitmap, &Recovery::Nothing);
    assert_eq!(bitmap.count(Slot(0)), 0, "a crashed secondary");
    sb.flags = DeviceFlags(0x143);
    apply_al(&mut sb, &mut bitmap, &Recovery::Nothing);
    assert!(bitmap.slots().all(|slot| bitmap.count(slot) == 1000));
    assert!(sb.flags.contains(DeviceFlags::AL_CLEAN.with(DeviceFlags::PRIMARY_INDICATOR)));
}

#[test]
fn messages_name_place_cause_and_next_step() {
    let mut sb = fresh();
    sb.bm_offset_sectors -= 8;
    let error = check(&sb, Placement::Internal, SIZE).unwrap_err();
    assert_eq!(
        error.to_string(),
        "superblock bm-offset at byte 67104844 is -88: must be -80 for a metadata device of 67108864 bytes; \
         check that this is the right device and meta-disk setting; else restore-md from a dump, or create-md anew"
    );
}

/// Random bytes with the magic in place, so that decoding gets beyond it.
fn block_with(magic_at: usize, magic: u32) -> impl Strategy<Value = Block> {
    (prop::collection::vec(any::<u8>(), 64..4096), any::<bool>()).prop_map(move |(bytes, with_magic)| {
        let mut block = [0; 4096];
        block[..bytes.len()].copy_from_slice(&bytes);
        if with_magic {
            block[magic_at..magic_at + 4].copy_from_slice(&magic.to_be_bytes());
        }
        block
    })
}

proptest! {
    #[test]
    fn no_superblock_makes_us_panic(
        mut block in block_with(0x3C, 0x8374_026D),
        tame in any::<bool>(),
        offset in any::<u64>(),
        size in any::<u64>(),
        index in any::<u8>(),
    ) {
        if tame {
            block[0x58..0x60].copy_from_slice(&[0, 0, 0, 3, 0xFF, 0xFF, 0xFF, 0xFF]);
            (0..32).for_each(|n| block[0x84 + n * 32..][..4].fill(0xFF));
            block[0] = 0;
        }
        if let Ok(sb) = Superblock::decode(&block, offset) {
            assert_eq!(Superblock::decode(&sb.encode(), offset).as_ref(), Ok(&sb));
            for size in [size, size % (1 << 52), SIZE] {
                for placement in [Placement::Internal, Placement::External, Placement::Indexed(index)] {
                    let _ = check(&sb, placement, size);
                }
            }
        }
    }

    #[test]
    fn no_activity_log_makes_us_panic(
        blocks in prop::collection::vec((0usize..8, block_with(0, 0x69CB_65A2), any::<bool>()), 0..8),
        al_slots in any::<u32>(),
    ) {
        let mut ring = [INITIALISED; 8];
        for (at, mut block, fix) in blocks {
            if fix {
                // A fitting checksum over arbitrary content.
                block[8..12].fill(0);
                let crc = crc::Crc::<u32>::new(&RAW).checksum(&block);
                block[8..12].copy_from_slice(&crc.to_be_bytes());
            }
            ring[at] = block;
        }
        let recovery = recover(&ring, 2, 4, al_slots, true);
        let mut bitmap = Bitmap::new(3, 4096, 5000);
        apply_al(&mut fresh(), &mut bitmap, &recovery);
        ring[0][..4].copy_from_slice(&0x6AA6_67A6_u32.to_be_bytes());
        recover(&ring, 2, 4, al_slots, true);
    }

    #[test]
    fn transactions_survive_the_disk(
        number in any::<u32>(),
        slot_count in 0u16..2000,
        context_first in 0u16..2000,
        updates in prop::collection::vec((0u16..65534, prop::option::of((0u32..u32::MAX).prop_map(ExtentIndex))), 0..=64),
        seed in any::<u32>(),
    ) {
        let shown = usize::from(slot_count.saturating_sub(context_first)).min(919) as u32;
        let context = (0..shown).map(|i| (i % 3 != 0).then_some(ExtentIndex(seed / 2 + i))).collect();
        let t = AlTransaction { number, slot_count, context_first, context, updates };
        assert_eq!(AlBlock::decode(&t.encode()), AlBlock::Transaction(t.clone()));
        let mut torn = t.encode();
        torn[seed as usize % 4096] ^= 1 << (seed % 8);
        assert_eq!(AlBlock::decode(&torn), AlBlock::Invalid);
    }
}

/// DRBD's CRC-32C, written down a second time on purpose.
const RAW: crc::Algorithm<u32> = crc::Algorithm { init: 0, xorout: 0, check: 0x58E3_FA20, ..crc::CRC_32_ISCSI };

#[test]
fn the_checksum_is_the_uninverted_one() {
    assert_eq!(crc::Crc::<u32>::new(&RAW).checksum(b"123456789"), 0x58E3_FA20);
    assert_eq!(AlBlock::decode(&INITIALISED), AlBlock::Initialised);
}
