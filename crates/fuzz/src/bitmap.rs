//! A peer's bitmap. Promises: no bit behind the end; words in order; what was received goes out and comes back the same.
//!
//! An input is three bytes of length in bits, then chunks: a byte for the kind, two of length, bytes.

use std::collections::BTreeMap;

use wire::bitmap_code::{BitmapReceiver, BitmapSender};
use wire::message::BitmapChunk;

/// Larger bitmaps have nothing new but more packets, and take long.
const BITS_MASK: u32 = 0x3_ffff;

pub fn run(input: &[u8]) {
    let Some((head, mut rest)) = input.split_first_chunk::<3>() else { return };
    let bits = u64::from(u32::from_le_bytes([head[0], head[1], head[2], 0]) & BITS_MASK);
    let mut receiver = BitmapReceiver::new(bits);
    let mut words = BTreeMap::new();
    while let Some(([kind, low, high], bytes)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(bytes.len());
        let (chunk, behind) = bytes.split_at(len);
        rest = behind;
        let chunk =
            if kind & 1 == 0 { BitmapChunk::Plain(chunk.to_vec()) } else { BitmapChunk::Compressed(chunk.to_vec()) };
        let mut last = None;
        let taken = receiver.apply(&chunk, |index, set| {
            assert!(set != 0 && last.is_none_or(|last| index >= last), "word {index} after {last:?}: {set:#x}");
            assert!(index * 64 + 63 - u64::from(set.leading_zeros()) < bits, "word {index}: {set:#x} of {bits} bits");
            last = Some(index);
            *words.entry(index).or_insert(0) |= set;
        });
        if taken.is_err() {
            return;
        }
    }
    if receiver.is_complete() {
        let plain = head[0] & 1 == 0;
        sent_and_received(bits, &words, plain);
    }
}

fn sent_and_received(bits: u64, words: &BTreeMap<u64, u64>, plain: bool) {
    let mut sender = BitmapSender::new(bits, !plain);
    let mut receiver = BitmapReceiver::new(bits);
    let mut received = BTreeMap::new();
    while let Some(chunk) = sender.next_chunk(|index| words.get(&index).copied().unwrap_or(0)) {
        receiver.apply(&chunk, |index, set| *received.entry(index).or_insert(0) |= set).expect("our own chunk");
    }
    assert!(receiver.is_complete() && received == *words, "{bits} bits: {words:?} came as {received:?}");
}

pub fn seeds() -> Vec<Vec<u8>> {
    let patterns: [fn(u64) -> u64; 4] =
        [|_| 0, |_| u64::MAX, |at| u64::from(at % 5 == 0), |at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15)];
    let sizes = [0u32, 1, 64, 1000 * 64, 3000 * 64 + 1];
    let mut seeds = Vec::new();
    for (pattern, bits, use_rle) in
        patterns.iter().flat_map(|p| sizes.iter().flat_map(move |b| [(p, *b, false), (p, *b, true)]))
    {
        let mut seed = bits.to_le_bytes()[..3].to_vec();
        let mut sender = BitmapSender::new(bits.into(), use_rle);
        let within = |index: u64| match u64::from(bits).saturating_sub(index * 64) {
            0 => 0,
            left if left < 64 => u64::MAX >> (64 - left),
            _ => u64::MAX,
        };
        while let Some(chunk) = sender.next_chunk(|index| pattern(index) & within(index)) {
            let (kind, bytes) = match chunk {
                BitmapChunk::Plain(bytes) => (0, bytes),
                BitmapChunk::Compressed(bytes) => (1, bytes),
            };
            seed.push(kind);
            seed.extend((bytes.len() as u16).to_le_bytes());
            seed.extend(bytes);
        }
        seeds.push(seed);
    }
    seeds
}
