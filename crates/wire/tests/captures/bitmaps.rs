//! Bitmap transfers of the captures: our receiver takes them, our sender would have sent the same packets.

use crate::stream::{Stream, all};
use std::collections::BTreeSet;
use wire::bitmap_code::{BitmapReceiver, BitmapSender};
use wire::message::BitmapChunk;
use wire::{Message, Socket};

/// Sizes in bits that the bitmaps of this connection may have: the agreed size changes when a volume is resized.
fn candidates(streams: &[Stream], connection: u64, volume: u16) -> BTreeSet<u64> {
    let of_node = |stream: &Stream| -> Vec<u64> {
        let frames = stream.frames.iter().filter(|frame| frame.header.volume.is_some_and(|v| v.get() == volume));
        frames
            .filter_map(|frame| match &frame.message {
                Message::Sizes(sizes) => Some(capped(sizes)),
                _ => None,
            })
            .collect()
    };
    let ends: Vec<Vec<u64>> = streams
        .iter()
        .filter(|stream| stream.connection == connection && stream.socket == Socket::Data)
        .map(of_node)
        .collect();
    let [one, two] = ends.as_slice() else { return BTreeSet::new() };
    one.iter().flat_map(|a| two.iter().map(move |b| a.min(b).div_ceil(4096))).collect()
}

/// The disk, not more than the size asked for.
fn capped(sizes: &wire::message::Sizes) -> u64 {
    if sizes.user_bytes == 0 { sizes.disk_bytes } else { sizes.disk_bytes.min(sizes.user_bytes) }
}

/// The bitmap that these chunks carry up to the end of the first transfer, and how many they are. `None`: not of `bits` bits.
fn receive(bits: u64, chunks: &[BitmapChunk]) -> Option<(Vec<u64>, usize)> {
    let mut words = vec![0; bits.div_ceil(64) as usize];
    let mut receiver = BitmapReceiver::new(bits);
    for (index, chunk) in chunks.iter().enumerate() {
        receiver.apply(chunk, |word, set| words[word as usize] |= set).ok()?;
        if receiver.is_complete() {
            return Some((words, index + 1));
        }
    }
    None
}

fn send(bits: u64, words: &[u64], use_rle: bool) -> Vec<BitmapChunk> {
    let mut sender = BitmapSender::new(bits, use_rle);
    std::iter::from_fn(|| sender.next_chunk(|index| words[index as usize])).collect()
}

#[test]
fn every_transfer_is_understood_and_would_be_sent_alike() {
    let (mut transfers, mut mixed, mut largest) = (0, 0, 0);
    for (name, streams) in all() {
        for stream in streams.iter().filter(|stream| stream.socket == Socket::Data) {
            for volume in 0..2 {
                let of_volume = stream.frames.iter().filter(|f| f.header.volume.is_some_and(|v| v.get() == volume));
                let chunks: Vec<BitmapChunk> = of_volume
                    .filter_map(|frame| match &frame.message {
                        Message::Bitmap(chunk) => Some(chunk.clone()),
                        _ => None,
                    })
                    .collect();
                let candidates = candidates(streams, stream.connection, volume);
                let mut rest = chunks.as_slice();
                while !rest.is_empty() {
                    let place = format!("{name}, connection {} {}", stream.connection, stream.from);
                    let received = candidates.iter().find_map(|bits| Some((*bits, receive(*bits, rest)?)));
                    let Some((bits, (words, taken))) = received else {
                        panic!("{place}: no bitmap of {candidates:?} bits in {} packets", rest.len());
                    };
                    let (transfer, after) = rest.split_at(taken);
                    let use_rle = transfer.iter().any(|chunk| matches!(chunk, BitmapChunk::Compressed(_)));
                    assert_eq!(send(bits, &words, use_rle), transfer, "{place}: {bits} bits");
                    transfers += 1;
                    largest = largest.max(bits);
                    mixed += u32::from(use_rle && transfer.iter().any(|c| matches!(c, BitmapChunk::Plain(_))));
                    rest = after;
                }
            }
        }
    }
    println!("{transfers} transfers, {mixed} mixed, largest {largest} bits");
    assert!(transfers >= 58 && mixed >= 2 && largest > 70_000, "{transfers}, {mixed}, {largest}");
}
