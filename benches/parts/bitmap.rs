//! The out-of-sync bitmap of a disk of 1 TiB (2^28 blocks of 4 KiB), and its code on the wire. Sending and receiving
//! count a piece of 32 KiB, which stands for 1 GiB of disk.

use super::{Operation, scattered};
use metadata::Bitmap;
use std::hint::black_box;
use types::Slot;
use wire::bitmap_code::{BitmapReceiver, BitmapSender};
use wire::message::BitmapChunk;

const BLOCKS: u64 = 1 << 28;
/// Of 1 GiB: a bitmap of 32 KiB.
const PIECE_BLOCKS: u64 = 1 << 18;

fn fresh(blocks: u64) -> (Bitmap, Slot) {
    let bitmap = Bitmap::new(1, 4096, blocks);
    let slot = bitmap.slots().next().expect("of one peer");
    (bitmap, slot)
}

/// Every so manieth block, about.
fn with_one_in(blocks: u64, stride: u64) -> (Bitmap, Slot) {
    let (mut bitmap, slot) = fresh(blocks);
    for at in 0..blocks / stride {
        let block = at * stride + at % stride.min(97);
        bitmap.set(slot, block..block + 1);
    }
    (bitmap, slot)
}

pub fn set() -> Operation {
    let (mut bitmap, slot) = fresh(BLOCKS);
    Box::new(move |number| {
        let block = scattered(number, BLOCKS);
        black_box(bitmap.set(slot, block..block + 1));
    })
}

/// The usual case of a peer that is away: the block was written before.
pub fn set_again() -> Operation {
    let (mut bitmap, slot) = fresh(BLOCKS);
    Box::new(move |number| {
        let block = scattered(number, 1 << 16) << 12;
        black_box(bitmap.set(slot, block..block + 1));
    })
}

pub fn clear() -> Operation {
    let (mut bitmap, slot) = fresh(BLOCKS);
    bitmap.set_all(slot);
    Box::new(move |number| {
        let block = scattered(number, BLOCKS);
        black_box(bitmap.clear(slot, block..block + 1));
    })
}

pub fn next_of_few() -> Operation {
    next(1000)
}

pub fn next_of_fewer() -> Operation {
    next(1_000_000)
}

/// What a resync does for each block that it finds.
fn next(stride: u64) -> Operation {
    let (bitmap, slot) = with_one_in(BLOCKS, stride);
    let mut at = 0;
    Box::new(move |_| {
        let found = bitmap.next_set(slot, at);
        at = found.map_or(0, |block| block + 1);
        black_box(found);
    })
}

pub fn send_empty() -> Operation {
    send(fresh(PIECE_BLOCKS))
}

pub fn send_scattered() -> Operation {
    send(with_one_in(PIECE_BLOCKS, 100))
}

fn send((bitmap, slot): (Bitmap, Slot)) -> Operation {
    Box::new(move |_| {
        let mut sender = BitmapSender::new(bitmap.bits(), true);
        let word = |index| bitmap.word64(slot, index);
        let skip = |from, of| bitmap.next_word64_unlike(slot, from, of);
        while let Some(chunk) = sender.next_chunk_skipping(word, skip) {
            black_box(chunk);
        }
    })
}

pub fn receive_scattered() -> Operation {
    let (bitmap, slot) = with_one_in(PIECE_BLOCKS, 100);
    let mut sender = BitmapSender::new(bitmap.bits(), true);
    let mut chunks: Vec<BitmapChunk> = Vec::new();
    while let Some(chunk) = sender.next_chunk(|index| bitmap.word64(slot, index)) {
        chunks.push(chunk);
    }
    let (mut bitmap, slot) = fresh(PIECE_BLOCKS);
    Box::new(move |_| {
        let mut receiver = BitmapReceiver::new(PIECE_BLOCKS);
        for chunk in &chunks {
            receiver
                .apply(chunk, |index, bits| {
                    bitmap.or_word64(slot, index, bits);
                })
                .expect("encoded above");
        }
        assert!(receiver.is_complete());
    })
}
