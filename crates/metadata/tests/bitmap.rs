//! The bitmap against a naive model: one `Vec<bool>` per slot, and the address formula of the reference.

use metadata::Bitmap;
use metadata::bitmap::Dirty;
use proptest::prelude::*;
use types::{ExtentIndex, Slot};

#[derive(Clone, Debug)]
enum Op {
    Set(u8, u64, u64),
    Clear(u8, u64, u64),
    SetAll(u8),
    ClearAll(u8),
    Or(u8, u64, u64),
    Merge(u8, u8),
    Resize(u64, bool),
    MarkWritten(u32),
    /// Write and read back: drops the dirty marks, keeps the bits.
    Reopen,
}

fn near_bit() -> BoxedStrategy<u64> {
    prop_oneof![0u64..200, 0u64..5000, 900u64..1100].boxed()
}

/// Bits are counted by 2^12, 2^18 and 2^24 of them: blocks at such edges, and anywhere.
fn far_bit() -> BoxedStrategy<u64> {
    prop_oneof![
        0u64..600_000,
        (0u64..140, 0u64..5).prop_map(|(unit, off)| ((unit << 12) + off).saturating_sub(2)),
        (0u64..3, 0u64..5).prop_map(|(unit, off)| ((unit << 18) + off).saturating_sub(2)),
        (0u64..140).prop_map(|unit| unit << 12),
    ]
    .boxed()
}

fn op(bit: fn() -> BoxedStrategy<u64>) -> impl Strategy<Value = Op> {
    let slot = || 0u8..31;
    prop_oneof![
        6 => (slot(), bit(), bit()).prop_map(|(s, a, n)| Op::Set(s, a, a + n)),
        6 => (slot(), bit(), bit()).prop_map(|(s, a, n)| Op::Clear(s, a, a + n)),
        1 => slot().prop_map(Op::SetAll),
        1 => slot().prop_map(Op::ClearAll),
        4 => (slot(), bit(), any::<u64>()).prop_map(|(s, b, v)| Op::Or(s, b / 64, v)),
        2 => (slot(), slot()).prop_map(|(a, b)| Op::Merge(a, b)),
        2 => (bit(), any::<bool>()).prop_map(|(n, clean)| Op::Resize(n, clean)),
        2 => (0u32..8).prop_map(Op::MarkWritten),
        1 => Just(Op::Reopen),
    ]
}

struct Model {
    slots: Vec<Vec<bool>>,
}

impl Model {
    /// Sets or clears, returns how many changed.
    fn change(&mut self, slot: u8, range: std::ops::Range<u64>, to: bool) -> u64 {
        let bits = &mut self.slots[usize::from(slot)];
        let mut changed = 0;
        for b in range.start..range.end.min(bits.len() as u64) {
            changed += u64::from(bits[b as usize] != to);
            bits[b as usize] = to;
        }
        changed
    }
    fn bits(&self) -> u64 {
        self.slots[0].len() as u64
    }
}

/// Bit of an image by the formula of the reference, section 5.2.
fn image_bit(image: &[u8], peers: u8, slot: u8, bit: u64) -> bool {
    let word = bit / 32 * u64::from(peers) + u64::from(slot);
    let byte = word * 4 + bit % 32 / 8;
    image[byte as usize] & (1 << (bit % 8)) != 0
}

fn compare(bitmap: &Bitmap, model: &Model) {
    assert_eq!(bitmap.bits(), model.bits());
    for slot in bitmap.slots() {
        let bits = &model.slots[usize::from(slot.0)];
        assert_eq!(bitmap.count(slot), bits.iter().filter(|b| **b).count() as u64, "{slot:?}");
        for (n, set) in bits.iter().enumerate() {
            assert_eq!(bitmap.test(slot, n as u64), *set, "{slot:?} bit {n}");
            assert_eq!(image_bit(bitmap.image(), bitmap.max_peers(), slot.0, n as u64), *set, "{slot:?} bit {n}");
        }
        assert!(!bitmap.test(slot, model.bits()));
        for index in 0..bitmap.words64() + 1 {
            let bit = |b: u64| u64::from(bits.get((index * 64 + b) as usize) == Some(&true)) << b;
            assert_eq!(bitmap.word64(slot, index), (0..64).map(bit).sum::<u64>(), "{slot:?} word {index}");
        }
    }
}

fn compare_search(bitmap: &Bitmap, model: &Model, from: u64, len: u64) {
    for slot in bitmap.slots() {
        let bits = &model.slots[usize::from(slot.0)];
        let first = |want: bool| (from..model.bits()).find(|b| bits[*b as usize] == want);
        assert_eq!(bitmap.next_set(slot, from), first(true));
        assert_eq!(bitmap.next_clear(slot, from), first(false));
        let inside = from.min(model.bits())..(from + len).min(model.bits());
        let count = inside.filter(|b| bits[*b as usize]).count() as u64;
        assert_eq!(bitmap.count_range(slot, from..from + len), count);
        assert_eq!(bitmap.any(slot, from..from + len), count > 0);
        for is_set in [false, true] {
            let first = from / 64;
            let word = bitmap.next_word64_unlike(slot, first, is_set);
            assert!(word >= first, "{slot:?} from word {first} back to {word}");
            // Words are compared with the model elsewhere.
            let alike = if is_set { u64::MAX } else { 0 };
            let expected = (first..bitmap.words64()).find(|w| bitmap.word64(slot, *w) != alike);
            assert_eq!((word < bitmap.words64()).then_some(word), expected, "{slot:?} from word {first}, {is_set}");
        }
    }
}

/// A slot taken out is the slot.
fn compare_alone(bitmap: &Bitmap) {
    for slot in bitmap.slots() {
        let alone = bitmap.slot_alone(slot);
        assert_eq!((alone.bits(), alone.count(Slot(0))), (bitmap.bits(), bitmap.count(slot)), "{slot:?}");
        for w in 0..bitmap.words64() {
            assert_eq!(alone.word64(Slot(0), w), bitmap.word64(slot, w), "{slot:?} word {w}");
        }
    }
}

/// What a page held when it was last "written". A clean page must still be equal to it; a page with newly set bits
/// must be `Must`.
fn compare_dirty(bitmap: &Bitmap, disk: &[u8]) {
    for page in 0..bitmap.page_count() {
        let now = bitmap.page(page);
        let start = page as usize * 4096;
        let old = disk.get(start..start + 4096).map_or(vec![0; 4096], <[u8]>::to_vec);
        let newly_set = now.iter().zip(&old).any(|(n, o)| n & !o != 0);
        match bitmap.dirty(page) {
            None => assert!(now == old, "page {page} differs and is not dirty"),
            Some(Dirty::May) => assert!(!newly_set, "page {page} has new bits and is only May"),
            Some(Dirty::Must) => {}
        }
    }
    let all: Vec<u32> = (0..bitmap.page_count()).filter(|p| bitmap.dirty(*p).is_some()).collect();
    let must: Vec<u32> = (0..bitmap.page_count()).filter(|p| bitmap.dirty(*p) == Some(Dirty::Must)).collect();
    assert_eq!(bitmap.dirty_pages(Dirty::May).collect::<Vec<_>>(), all);
    assert_eq!(bitmap.dirty_pages(Dirty::Must).collect::<Vec<_>>(), must);
}

fn apply(bitmap: &mut Bitmap, model: &mut Model, disk: &mut Vec<u8>, op: Op) {
    let peers = bitmap.max_peers();
    match op {
        Op::Set(s, a, b) => assert_eq!(bitmap.set(Slot(s % peers), a..b), model.change(s % peers, a..b, true)),
        Op::Clear(s, a, b) => assert_eq!(bitmap.clear(Slot(s % peers), a..b), model.change(s % peers, a..b, false)),
        Op::SetAll(s) => {
            let all = 0..model.bits();
            assert_eq!(bitmap.set_all(Slot(s % peers)), model.change(s % peers, all, true));
        }
        Op::ClearAll(s) => {
            let all = 0..model.bits();
            assert_eq!(bitmap.clear_all(Slot(s % peers)), model.change(s % peers, all, false));
        }
        Op::Or(s, index, value) => {
            let set = (0..64).filter(|b| value >> b & 1 == 1).map(|b| index * 64 + b);
            let newly: u64 = set.map(|b| model.change(s % peers, b..b + 1, true)).sum();
            assert_eq!(bitmap.or_word64(Slot(s % peers), index, value), newly);
        }
        Op::Merge(a, b) => {
            bitmap.merge_slot(Slot(a % peers), Slot(b % peers));
            let from = model.slots[usize::from(a % peers)].clone();
            model.slots[usize::from(b % peers)].iter_mut().zip(from).for_each(|(bit, more)| *bit |= more);
        }
        Op::Resize(bits, clean) => {
            if clean {
                bitmap.set_size_assume_clean(bits);
            } else {
                bitmap.set_size(bits);
            }
            model.slots.iter_mut().for_each(|slot| slot.resize(bits as usize, !clean));
        }
        Op::MarkWritten(page) => {
            let page = page % bitmap.page_count().max(1);
            if page < bitmap.page_count() {
                disk.resize(bitmap.image().len().max(disk.len()), 0);
                let start = page as usize * 4096;
                disk[start..start + 4096].copy_from_slice(bitmap.page(page));
                bitmap.mark_written(page);
            }
        }
        Op::Reopen => {
            *disk = bitmap.image().to_vec();
            *bitmap = Bitmap::from_image(peers, bitmap.block_bytes(), bitmap.bits(), disk.clone());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_operation_agrees_with_the_model(
        peers in prop_oneof![Just(1u8), Just(2), Just(3), Just(7), Just(31), 1u8..=31],
        bits in 0u64..3000,
        ops in prop::collection::vec(op(near_bit), 1..24),
        from in 0u64..3000,
        len in 0u64..2000,
    ) {
        let mut bitmap = Bitmap::new(peers, 4096, bits);
        let mut model = Model { slots: vec![vec![false; bits as usize]; usize::from(peers)] };
        let mut disk = bitmap.image().to_vec();
        for op in ops {
            apply(&mut bitmap, &mut model, &mut disk, op);
            compare_dirty(&bitmap, &disk);
        }
        compare(&bitmap, &model);
        compare_search(&bitmap, &model, from, len);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The same over many counted units. Each operation is followed by searches, so that a count that is wrong for a
    /// while only is found, too.
    #[test]
    fn operations_across_units_agree_with_the_model(
        peers in prop_oneof![3 => Just(1u8), 1 => Just(2), 1 => Just(3), 1 => Just(7)],
        bits in far_bit(),
        ops in prop::collection::vec((op(far_bit), far_bit(), far_bit()), 1..10),
    ) {
        let mut bitmap = Bitmap::new(peers, 4096, bits);
        let mut model = Model { slots: vec![vec![false; bits as usize]; usize::from(peers)] };
        let mut disk = bitmap.image().to_vec();
        for (op, from, len) in ops {
            apply(&mut bitmap, &mut model, &mut disk, op);
            compare_dirty(&bitmap, &disk);
            compare_search(&bitmap, &model, from, len);
        }
        compare(&bitmap, &model);
        compare_alone(&bitmap);
    }

    /// Few bits that differ from all others, as far apart as in the bitmap of a large disk: the largest units count.
    #[test]
    fn few_bits_far_apart_are_found(
        peers in 1u8..4,
        bits in 1u64..3 << 24,
        places in prop::collection::btree_set(0u64..3 << 24, 0..20),
        inverted: bool,
    ) {
        let places: Vec<u64> = places.into_iter().filter(|place| *place < bits).collect();
        let slot = Slot(peers - 1);
        let mut bitmap = Bitmap::new(peers, 4096, bits);
        if inverted {
            bitmap.set_all(slot);
        }
        for place in &places {
            let changed = if inverted { bitmap.clear(slot, *place..place + 1) } else { bitmap.set(slot, *place..place + 1) };
            assert_eq!(changed, 1, "block {place}");
        }
        let few = places.len() as u64;
        assert_eq!(bitmap.count(slot), if inverted { bits - few } else { few });
        assert_eq!(bitmap.count_range(slot, 0..bits), bitmap.count(slot));
        let next = |from| if inverted { bitmap.next_clear(slot, from) } else { bitmap.next_set(slot, from) };
        let found: Vec<u64> = std::iter::successors(next(0), |at| next(at + 1)).collect();
        assert_eq!(found, places);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever lies past the end on disk is neither shown nor counted.
    #[test]
    fn garbage_past_the_end_is_not_seen(peers in 1u8..=31, bits in 0u64..500, garbage in any::<u8>()) {
        let len = Bitmap::image_bytes(peers, bits).max(4096) as usize;
        let image = vec![garbage; len];
        let bitmap = Bitmap::from_image(peers, 4096, bits, image.clone());
        let slot = |s| (0..bits).map(|b| image_bit(&image, peers, s, b)).collect();
        let model = Model { slots: (0..peers).map(slot).collect() };
        compare(&bitmap, &model);
        compare_search(&bitmap, &model, bits.saturating_sub(5), 100);
    }

    #[test]
    fn pages_of_an_extent_hold_all_its_bits_and_no_page_is_named_in_vain(
        peers in 1u8..=31,
        block_bytes in prop_oneof![Just(4096u32), Just(65536), Just(1 << 20)],
        extent in 0u32..80,
        bits in 1u64..50_000,
    ) {
        let mut bitmap = Bitmap::new(peers, block_bytes, bits);
        let blocks = bitmap.blocks_of_extent(ExtentIndex(extent));
        let per_extent = (4u64 << 20) / u64::from(block_bytes);
        let expected = (u64::from(extent) * per_extent).min(bits)..((u64::from(extent) + 1) * per_extent).min(bits);
        assert_eq!(blocks, expected);
        for slot in bitmap.slots() {
            bitmap.set(slot, blocks.clone());
        }
        let touched: Vec<u32> = bitmap.dirty_pages(Dirty::Must).collect();
        assert_eq!(bitmap.pages_of_extent(ExtentIndex(extent)).collect::<Vec<_>>(), touched);
    }
}

#[test]
fn the_worked_examples_of_the_reference() {
    let mut bitmap = Bitmap::new(3, 4096, 4096);
    bitmap.set(Slot(0), 127..128);
    assert_eq!(bitmap.image()[39], 0x80);
    bitmap.or_word64(Slot(2), 0, 0x1234_5678);
    assert_eq!(bitmap.image()[8..12], [0x78, 0x56, 0x34, 0x12]);
}

#[test]
fn a_bit_that_changes_while_its_page_is_written_makes_it_dirty_again() {
    let mut bitmap = Bitmap::new(1, 4096, 64);
    bitmap.set(Slot(0), 0..1);
    bitmap.mark_written(0);
    assert_eq!(bitmap.dirty(0), None);
    bitmap.clear(Slot(0), 0..1);
    assert_eq!(bitmap.dirty(0), Some(Dirty::May));
    bitmap.set(Slot(0), 5..6);
    assert_eq!(bitmap.dirty(0), Some(Dirty::Must));
}

#[test]
fn growth_beyond_the_image_keeps_the_old_bits() {
    let mut bitmap = Bitmap::new(7, 4096, 1000);
    bitmap.set(Slot(3), 10..20);
    bitmap.set_size(1_000_000);
    assert_eq!(bitmap.count(Slot(3)), 10 + 999_000);
    assert_eq!(bitmap.count(Slot(0)), 999_000);
    assert_eq!(bitmap.next_set(Slot(3), 20), Some(1000));
    assert_eq!(bitmap.next_clear(Slot(3), 10), Some(20));
}
