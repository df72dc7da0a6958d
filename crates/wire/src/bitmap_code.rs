//! The bitmap exchange: a whole out-of-sync bitmap as a run of packets, sent and received. Code words and rules:
//! docs/wire.md "Bitmap".
//!
//! Bits lie in 64-bit words, bit 0 of word 0 first; neither side keeps the bitmap here, both reach it through a
//! closure. Positions, in bits, with `bits` the size of the bitmap:
//! `0 <= position <= bits`, and only grows; a plain chunk starts at the word that holds `position`.

use crate::error::DecodeError;
use crate::message::BitmapChunk;
use crate::packet::BITMAP_BYTES_MAX;
use alloc::vec::Vec;

/// Bits of a bitmap word, on the wire and here.
const WORD_BITS: u64 = 64;

/// Words of a full plain chunk: what fits in 4096 bytes with the 16-byte header.
const PLAIN_WORDS_MAX: u64 = BITMAP_BYTES_MAX as u64 / 8;
const _: () = assert!(PLAIN_WORDS_MAX == 510);

/// Bytes of code after the head byte.
const CODE_BYTES_MAX: usize = BITMAP_BYTES_MAX as usize - 1;

/// The one encoding there is, in bits 0..=3 of the head byte.
const ENCODING: u8 = 2;

/// So many words are looked at one by one before the bitmap is asked where a run ends: asking costs about as much, and
/// most runs are short where there are many.
const WORDS_BEFORE_SKIP: u32 = 4;

/// Bitmaps beyond this do not exist: 4 EiB at one bit for 4 KiB. Keeps every run inside the longest code word.
const BITS_MAX: u64 = 1 << 50;

/// One kind of code word: `prefix_bits` low bits that are `prefix`, then the run length minus `first`.
struct Level {
    total_bits: u32,
    prefix_bits: u32,
    prefix: u8,
    /// Shortest run of this level.
    first: u64,
}

/// Ascending by run length. Source: docs/wire.md "Bitmap".
const LEVELS: [Level; 10] = {
    let shapes: [(u32, u32, u8); 10] = [
        (2, 1, 0x00),
        (3, 2, 0x01),
        (5, 3, 0x03),
        (7, 4, 0x07),
        (10, 5, 0x0f),
        (14, 6, 0x1f),
        (21, 8, 0x3f),
        (29, 8, 0x7f),
        (42, 8, 0xbf),
        (64, 8, 0xff),
    ];
    let mut levels = [const { Level { total_bits: 0, prefix_bits: 0, prefix: 0, first: 0 } }; 10];
    let mut first = 1;
    let mut i = 0;
    while i < shapes.len() {
        let (total_bits, prefix_bits, prefix) = shapes[i];
        levels[i] = Level { total_bits, prefix_bits, prefix, first };
        first += 1 << (total_bits - prefix_bits);
        i += 1;
    }
    levels
};
const _: () = assert!(LEVELS[9].first == 17_181_974_833);

impl Level {
    fn of_run(run: u64) -> &'static Level {
        LEVELS.iter().rfind(|level| level.first <= run).unwrap_or_else(|| panic!("runs are not empty: {run}"))
    }
    /// The level whose prefix stands in the low bits of `code`. The prefixes cover all values.
    fn of_code(code: u64) -> &'static Level {
        LEVELS
            .iter()
            .find(|level| code & ((1 << level.prefix_bits) - 1) == u64::from(level.prefix))
            .unwrap_or_else(|| panic!("no code word starts like {code:#x}"))
    }
}

/// Bits, least significant first, into bytes.
#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    /// Bits written.
    len: usize,
}

impl BitWriter {
    /// `false`: the code word does not fit in the packet; nothing is written.
    fn push_run(&mut self, run: u64) -> bool {
        let level = Level::of_run(run);
        let end = self.len + level.total_bits as usize;
        if end > CODE_BYTES_MAX * 8 {
            return false;
        }
        let code = u128::from((run - level.first) << level.prefix_bits | u64::from(level.prefix));
        self.bytes.resize(end.div_ceil(8), 0);
        let first_byte = self.len / 8;
        let shifted = (code << (self.len % 8)).to_le_bytes();
        for (byte, bits) in self.bytes[first_byte..].iter_mut().zip(shifted) {
            *byte |= bits;
        }
        self.len = end;
        true
    }

    /// Unused high bits of the last byte.
    fn pad_bits(&self) -> u8 {
        (self.bytes.len() * 8 - self.len) as u8
    }
}

/// Sends one bitmap: ask for chunks until there are none. Nothing else may go onto the data socket in between.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BitmapSender {
    bits: u64,
    position: u64,
    use_rle: bool,
    /// The chunk before was plain: after the last bit the receiver waits for an empty one.
    needs_terminator: bool,
}

impl BitmapSender {
    /// `bits`: size of the bitmap, one for each 4 KiB of the agreed size of the volume, at most 2^50 (asserted).
    /// `use_rle`: compress where that is shorter.
    pub fn new(bits: u64, use_rle: bool) -> BitmapSender {
        assert!(bits <= BITS_MAX, "a bitmap of {bits} bits");
        // An empty bitmap is just the terminator.
        BitmapSender { bits, position: 0, use_rle, needs_terminator: bits == 0 }
    }

    /// The next packet; `None` when all have been given out. `word(i)` gives bits `64 * i ..` of the bitmap; those
    /// behind the last bit of the bitmap are not looked at. The bitmap must not change between the calls.
    pub fn next_chunk(&mut self, word: impl FnMut(u64) -> u64) -> Option<BitmapChunk> {
        self.next_chunk_skipping(word, |from, _| from)
    }

    /// The same packets, for a bitmap that knows where it is all alike: `skip(from, is_set)` gives a word at or after
    /// `from` (asserted), behind the end too, such that all bits of the words before it, from `from` on, are `is_set`.
    pub fn next_chunk_skipping(
        &mut self,
        word: impl FnMut(u64) -> u64,
        skip: impl FnMut(u64, bool) -> u64,
    ) -> Option<BitmapChunk> {
        let mut words = Words { bits: self.bits, word, skip };
        if self.position >= self.bits {
            let terminator = core::mem::take(&mut self.needs_terminator);
            return terminator.then(|| BitmapChunk::Plain(Vec::new()));
        }
        if self.use_rle
            && let Some(chunk) = self.compressed(&mut words)
        {
            self.needs_terminator = false;
            return Some(chunk);
        }
        self.needs_terminator = true;
        Some(self.plain(&mut words.word))
    }

    fn plain(&mut self, word: &mut impl FnMut(u64) -> u64) -> BitmapChunk {
        let first = self.position / WORD_BITS;
        let count = plain_words(self.bits, self.position);
        let mut bytes = Vec::with_capacity(count as usize * 8);
        for index in first..first + count {
            bytes.extend_from_slice(&(word(index) & valid_bits(self.bits, index)).to_le_bytes());
        }
        self.position = ((first + count) * WORD_BITS).min(self.bits);
        BitmapChunk::Plain(bytes)
    }

    /// `None`, and nothing is taken, where the code is not shorter than the bits it stands for.
    fn compressed(
        &mut self,
        words: &mut Words<impl FnMut(u64) -> u64, impl FnMut(u64, bool) -> u64>,
    ) -> Option<BitmapChunk> {
        let first_is_set = (words.word)(self.position / WORD_BITS) >> (self.position % WORD_BITS) & 1 == 1;
        let mut code = BitWriter::default();
        let mut position = self.position;
        let mut is_set = first_is_set;
        while position < self.bits {
            let run_end = words.run_end(position, is_set);
            if !code.push_run(run_end - position) {
                break;
            }
            position = run_end;
            is_set = !is_set;
        }
        if code.bytes.len() as u64 * 8 >= position - self.position {
            return None;
        }
        self.position = position;
        let head = ENCODING | code.pad_bits() << 4 | u8::from(first_is_set) << 7;
        let mut bytes = Vec::with_capacity(1 + code.bytes.len());
        bytes.push(head);
        bytes.extend_from_slice(&code.bytes);
        Some(BitmapChunk::Compressed(bytes))
    }
}

/// The bitmap as the sender sees it.
struct Words<W, S> {
    bits: u64,
    word: W,
    skip: S,
}

impl<W: FnMut(u64) -> u64, S: FnMut(u64, bool) -> u64> Words<W, S> {
    /// First bit from `position` on that is not `is_set`, or `bits`.
    fn run_end(&mut self, position: u64, is_set: bool) -> u64 {
        let mut index = position / WORD_BITS;
        let mut from = low_bits(position % WORD_BITS);
        let mut alike = 0;
        while index * WORD_BITS < self.bits {
            let value = (self.word)(index);
            let differs = if is_set { !value } else { value } & !from;
            if differs != 0 {
                return (index * WORD_BITS + u64::from(differs.trailing_zeros())).min(self.bits);
            }
            from = 0;
            index += 1;
            alike += 1;
            if alike >= WORDS_BEFORE_SKIP {
                index = self.skipped(index, is_set);
            }
        }
        self.bits
    }

    /// Not behind the end of the bitmap, so that no multiple of it overflows.
    fn skipped(&mut self, index: u64, is_set: bool) -> u64 {
        let next = (self.skip)(index, is_set);
        assert!(next >= index, "skipped from word {index} back to {next}");
        next.min(self.bits.div_ceil(WORD_BITS).max(index))
    }
}

/// Words of the plain chunk that starts at the word of `position`.
fn plain_words(bits: u64, position: u64) -> u64 {
    (bits.div_ceil(WORD_BITS) - position / WORD_BITS).min(PLAIN_WORDS_MAX)
}

/// Those bits of word `index` that belong to the bitmap.
fn valid_bits(bits: u64, index: u64) -> u64 {
    low_bits(bits.saturating_sub(index * WORD_BITS))
}

/// `count` low bits set, all from 64 on.
fn low_bits(count: u64) -> u64 {
    if count >= WORD_BITS { u64::MAX } else { (1 << count) - 1 }
}

/// Receives one bitmap. A peer that breaks a rule gets an error and the connection ends; what was merged until then
/// only marks more blocks out of sync, which is safe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BitmapReceiver {
    bits: u64,
    position: u64,
    needs_terminator: bool,
}

impl BitmapReceiver {
    /// `bits` as for [`BitmapSender::new`]; both nodes compute it from the agreed size.
    pub fn new(bits: u64) -> BitmapReceiver {
        assert!(bits <= BITS_MAX, "a bitmap of {bits} bits");
        BitmapReceiver { bits, position: 0, needs_terminator: bits == 0 }
    }

    /// All bits came, and the terminator where one is due.
    pub fn is_complete(&self) -> bool {
        self.position == self.bits && !self.needs_terminator
    }

    /// Takes the next packet. Calls `or(index, bits)` for each word that gets bits set, ascending.
    pub fn apply(&mut self, chunk: &BitmapChunk, mut or: impl FnMut(u64, u64)) -> Result<(), DecodeError> {
        match chunk {
            BitmapChunk::Plain(bytes) => self.apply_plain(bytes, &mut or),
            BitmapChunk::Compressed(bytes) => self.apply_compressed(bytes, &mut or),
        }
    }

    fn apply_plain(&mut self, bytes: &[u8], or: &mut impl FnMut(u64, u64)) -> Result<(), DecodeError> {
        let fail =
            |offset, field, value, violated| Err(DecodeError { packet: "BITMAP", field, offset, value, violated });
        if self.is_complete() {
            return fail(0, "length", bytes.len() as u64, "the bitmap was already complete");
        }
        let first = self.position / WORD_BITS;
        let expected = if self.position == self.bits { 0 } else { plain_words(self.bits, self.position) };
        if bytes.len() as u64 != expected * 8 {
            return fail(0, "length", bytes.len() as u64, "must be 510 words, or exactly those that are left");
        }
        if expected == 0 {
            self.needs_terminator = false;
            return Ok(());
        }
        let (words, _) = bytes.as_chunks::<8>();
        for (index, word) in (first..).zip(words) {
            let word = u64::from_le_bytes(*word);
            if word & !valid_bits(self.bits, index) != 0 {
                let offset = (index - first) as usize * 8;
                return fail(offset, "word", word, "has bits set behind the end of the bitmap");
            }
            if word != 0 {
                or(index, word);
            }
        }
        self.position = ((first + expected) * WORD_BITS).min(self.bits);
        self.needs_terminator = true;
        Ok(())
    }

    fn apply_compressed(&mut self, bytes: &[u8], or: &mut impl FnMut(u64, u64)) -> Result<(), DecodeError> {
        let fail = |offset, field, value, violated| {
            Err(DecodeError { packet: "COMPRESSED_BITMAP", field, offset, value, violated })
        };
        if self.position == self.bits {
            return fail(0, "length", bytes.len() as u64, "all bits of the bitmap had already come");
        }
        let (Some((&head, code)), true) = (bytes.split_first(), bytes.len() <= 1 + CODE_BYTES_MAX) else {
            return fail(0, "length", bytes.len() as u64, "must be a head byte and at most 4079 bytes of code");
        };
        if head & 0x0f != ENCODING {
            return fail(0, "encoding", (head & 0x0f).into(), "must be 2");
        }
        let Some(code_bits) = (code.len() * 8).checked_sub((head >> 4 & 7).into()).filter(|bits| *bits > 0) else {
            return fail(0, "pad_bits", (head >> 4 & 7).into(), "leave no code");
        };
        let mut is_set = head >> 7 == 1;
        let mut at = 0;
        while at < code_bits {
            let value = bits_at(code, at);
            let level = Level::of_code(value);
            let next = at + level.total_bits as usize;
            if next > code_bits {
                return fail(1 + at / 8, "code", value, "the last code word is cut off");
            }
            // total_bits is at most 64, so the shifted value has exactly the data bits left after the mask.
            let run = level.first + ((value & low_bits(level.total_bits.into())) >> level.prefix_bits);
            if run > self.bits - self.position {
                return fail(1 + at / 8, "run", run, "reaches behind the end of the bitmap");
            }
            if is_set {
                set_run(self.position, run, or);
            }
            self.position += run;
            is_set = !is_set;
            at = next;
        }
        self.needs_terminator = false;
        Ok(())
    }
}

/// The 64 bits of `code` from bit `at` on, zeroes behind its end.
fn bits_at(code: &[u8], at: usize) -> u64 {
    let mut window = [0; 16];
    let bytes = code.get(at / 8..).unwrap_or(&[]);
    let len = bytes.len().min(9);
    window[..len].copy_from_slice(&bytes[..len]);
    (u128::from_le_bytes(window) >> (at % 8)) as u64
}

fn set_run(start: u64, len: u64, or: &mut impl FnMut(u64, u64)) {
    let end = start + len;
    let mut position = start;
    while position < end {
        let index = position / WORD_BITS;
        let word_end = ((index + 1) * WORD_BITS).min(end);
        or(index, low_bits(word_end - position) << (position % WORD_BITS));
        position = word_end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn words_of(bits: u64, runs: &[core::ops::RangeInclusive<u64>]) -> Vec<u64> {
        let mut words = vec![0; bits.div_ceil(64) as usize];
        for bit in runs.iter().cloned().flatten() {
            words[(bit / 64) as usize] |= 1 << (bit % 64);
        }
        words
    }

    fn send(bits: u64, words: &[u64], use_rle: bool) -> Vec<BitmapChunk> {
        let mut sender = BitmapSender::new(bits, use_rle);
        core::iter::from_fn(|| sender.next_chunk(|index| words[index as usize])).collect()
    }

    /// First word at or after `from` that is not all `is_set`.
    fn exact_skip(words: &[u64], from: u64, is_set: bool) -> u64 {
        let alike = if is_set { u64::MAX } else { 0 };
        let rest = words.iter().skip(from as usize);
        from + rest.take_while(|word| **word == alike).count() as u64
    }

    /// Not as far as it could: `doubt` words less, but never back.
    fn send_skipping(bits: u64, words: &[u64], use_rle: bool, doubt: u64) -> Vec<BitmapChunk> {
        let mut sender = BitmapSender::new(bits, use_rle);
        let skip = |from, is_set| exact_skip(words, from, is_set).saturating_sub(doubt).max(from);
        core::iter::from_fn(|| sender.next_chunk_skipping(|index| words[index as usize], skip)).collect()
    }

    /// The model: how packets are cut and coded, word by word and run by run, with nothing of the sender.
    fn send_word_by_word(bits: u64, words: &[u64], use_rle: bool) -> Vec<BitmapChunk> {
        let (mut chunks, mut position) = (vec![], 0);
        while position < bits {
            let code = if use_rle { code_word_by_word(bits, words, position) } else { None };
            let (chunk, next) = code.unwrap_or_else(|| {
                let first = (position / 64) as usize;
                let last = words.len().min(first + 510);
                let bytes = words[first..last].iter().flat_map(|word| word.to_le_bytes()).collect();
                (BitmapChunk::Plain(bytes), (last as u64 * 64).min(bits))
            });
            chunks.push(chunk);
            position = next;
        }
        if matches!(chunks.last(), None | Some(BitmapChunk::Plain(_))) {
            chunks.push(BitmapChunk::Plain(vec![]));
        }
        chunks
    }

    /// One packet of code from `start` on and where it ends, if it is shorter than the bits.
    fn code_word_by_word(bits: u64, words: &[u64], start: u64) -> Option<(BitmapChunk, u64)> {
        let bit = |position: u64| words[(position / 64) as usize] >> (position % 64) & 1 == 1;
        let (mut code, mut position) = (BitWriter::default(), start);
        while position < bits {
            let is_set = bit(position);
            let mut end = position + 1;
            while end < bits && (bit(end) == is_set) {
                let whole = if is_set { u64::MAX } else { 0 };
                let word_is_alike = end.is_multiple_of(64) && words[(end / 64) as usize] == whole;
                end = if word_is_alike { (end + 64).min(bits) } else { end + 1 };
            }
            if !code.push_run(end - position) {
                break;
            }
            position = end;
        }
        let head = ENCODING | code.pad_bits() << 4 | u8::from(bit(start)) << 7;
        let shorter = (code.bytes.len() as u64) * 8 < position - start;
        shorter.then(|| (BitmapChunk::Compressed([&[head], &code.bytes[..]].concat()), position))
    }

    fn receive(bits: u64, chunks: &[BitmapChunk]) -> Result<Vec<u64>, DecodeError> {
        let mut words = vec![0; bits.div_ceil(64) as usize];
        let mut receiver = BitmapReceiver::new(bits);
        for chunk in chunks {
            assert!(!receiver.is_complete(), "complete before {chunk:?}");
            receiver.apply(chunk, |index, set| words[index as usize] |= set)?;
        }
        assert!(receiver.is_complete(), "{receiver:?}");
        Ok(words)
    }

    fn compressed(hex_bytes: &str) -> BitmapChunk {
        BitmapChunk::Compressed(hex::decode(hex_bytes).unwrap())
    }

    /// The reference's vectors: from an independent encoder, checked against the kernel's, or captured.
    #[test]
    fn test_vectors() {
        let cases: [(u64, &[core::ops::RangeInclusive<u64>], &str); 6] = [
            (1_000_000, &[5..=6, 1000..=1999], "22c31f58f1732bfe7e321e"),
            (64, &[0..=0, 2..=4, 6..=63], "9210be04"),
            (4086, &[0..=0, 64..=127, 192..=223], "d27c0edfc3f7f0de4f7903"),
            (1024, &[0..=1023], "b23fcf02"),
            (4086, &[], "323fc50e"),
            (76788, &[3..=4, 32639..=32641, 65279..=65280, 70000..=70000], "02f12fc90be48fc90bf8e313f991ca"),
        ];
        for (bits, set, expected) in cases {
            let words = words_of(bits, set);
            let chunks = send(bits, &words, true);
            assert_eq!(chunks, [compressed(expected)], "{bits} bits, set {set:?}");
            assert_eq!(receive(bits, &chunks), Ok(words));
        }
    }

    #[test]
    fn the_levels_cover_the_lengths_of_the_document() {
        let firsts: Vec<u64> = LEVELS.iter().map(|level| level.first).collect();
        assert_eq!(firsts, [1, 3, 5, 9, 17, 49, 305, 8497, 2_105_649, 17_181_974_833]);
        for code in 0..=0xff {
            Level::of_code(code);
        }
    }

    #[test]
    fn plain_chunks_are_510_words_and_end_with_an_empty_one() {
        let bits = 1200 * 64 - 12;
        let chunks = send(bits, &vec![0; 1200], false);
        let lengths: Vec<usize> = chunks
            .iter()
            .map(|chunk| match chunk {
                BitmapChunk::Plain(bytes) => bytes.len() / 8,
                BitmapChunk::Compressed(_) => panic!("use_rle is off"),
            })
            .collect();
        assert_eq!(lengths, [510, 510, 180, 0]);
    }

    /// 100 TiB. The words that are looked at are those around the ends of runs.
    #[test]
    fn an_empty_bitmap_is_one_packet_and_its_words_are_not_visited() {
        for is_set in [false, true] {
            let bits = 100 << 28;
            let mut sender = BitmapSender::new(bits, true);
            let mut visited = 0;
            let mut next = || {
                let word = |_| {
                    visited += 1;
                    if is_set { u64::MAX } else { 0 }
                };
                sender.next_chunk_skipping(word, |from, asked| if asked == is_set { u64::MAX } else { from })
            };
            let mut code = BitWriter::default();
            assert!(code.push_run(bits));
            let head = ENCODING | code.pad_bits() << 4 | u8::from(is_set) << 7;
            assert_eq!(next(), Some(BitmapChunk::Compressed([&[head], &code.bytes[..]].concat())));
            assert_eq!(next(), None);
            assert!(visited < 10, "{visited} words visited");
        }
    }

    #[test]
    fn falling_back_to_plain_is_decided_chunk_by_chunk() {
        // Every second bit set costs two bits of code each.
        let mut words = vec![0x5555_5555_5555_5555; 510];
        words.extend(vec![0; 1000]);
        let bits = 1510 * 64;
        let chunks = send(bits, &words, true);
        assert_eq!(chunks.len(), 2);
        assert!(matches!(&chunks[0], BitmapChunk::Plain(bytes) if bytes.len() == 4080));
        assert!(matches!(&chunks[1], BitmapChunk::Compressed(bytes) if bytes.len() < 10));
        assert_eq!(receive(bits, &chunks), Ok(words));
    }

    #[test]
    fn code_is_sent_only_where_it_is_shorter() {
        // Bits 0 and 2, then a run of 9..=16: 13 bits of code, two bytes.
        let is_plain = |bits| matches!(send(bits, &[0b101], true)[0], BitmapChunk::Plain(_));
        assert!(is_plain(16), "as long as the bits");
        assert!(!is_plain(17), "one bit shorter");
    }

    #[test]
    fn a_plain_chunk_after_a_compressed_one_starts_at_the_word_that_was_begun() {
        // 70 zero bits compressed, then plain from word 1 on.
        let mut receiver = BitmapReceiver::new(256);
        let mut code = BitWriter::default();
        assert!(code.push_run(70));
        let mut bytes = vec![ENCODING | code.pad_bits() << 4];
        bytes.extend(&code.bytes);
        receiver.apply(&BitmapChunk::Compressed(bytes), |_, _| panic!("no bit is set")).unwrap();
        let mut plain = vec![0; 24];
        plain[1] = 1;
        let mut seen = vec![];
        receiver.apply(&BitmapChunk::Plain(plain), |index, set| seen.push((index, set))).unwrap();
        assert_eq!(seen, [(1, 0x100)]);
        assert!(!receiver.is_complete());
        receiver.apply(&BitmapChunk::Plain(vec![]), |_, _| ()).unwrap();
        assert!(receiver.is_complete());
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let refusal = |bits, chunk: BitmapChunk| {
            BitmapReceiver::new(bits).apply(&chunk, |_, _| ()).expect_err("must be refused").field
        };
        let plain = |len| BitmapChunk::Plain(vec![0; len]);
        assert_eq!(refusal(64, plain(0)), "length", "a terminator too early");
        assert_eq!(refusal(64, plain(16)), "length", "too many words");
        assert_eq!(refusal(64 * 600, plain(511 * 8)), "length", "the size of another header form");
        assert_eq!(refusal(64 * 600, plain(90 * 8)), "length", "not full and not the last");
        assert_eq!(refusal(60, BitmapChunk::Plain(vec![0xff; 8])), "word", "behind the end");
        assert_eq!(refusal(64, compressed("9110be04")), "encoding");
        assert_eq!(refusal(63, compressed("9210be04")), "run", "too long by one");
        assert_eq!(refusal(1 << 20, compressed("02ff")), "code", "cut off");
        assert_eq!(refusal(64, compressed("02")), "pad_bits", "no code");
        assert_eq!(refusal(64, compressed("")), "length");
        assert_eq!(refusal(1 << 40, BitmapChunk::Compressed(vec![2; 4081])), "length");
        let mut receiver = BitmapReceiver::new(1024);
        receiver.apply(&compressed("b23fcf02"), |_, _| ()).unwrap();
        assert!(receiver.is_complete());
        assert!(receiver.apply(&compressed("b23fcf02"), |_, _| ()).is_err());
        assert!(receiver.apply(&plain(0), |_, _| ()).is_err());
    }

    #[test]
    fn a_bitmap_of_no_bits_is_one_terminator() {
        let chunks = send(0, &[], true);
        assert_eq!(chunks, [BitmapChunk::Plain(vec![])]);
        assert_eq!(receive(0, &chunks), Ok(vec![]));
    }

    #[test]
    fn the_longest_code_words() {
        let bits = BITS_MAX;
        let mut receiver = BitmapReceiver::new(bits);
        let mut code = BitWriter::default();
        assert!(code.push_run(3) && code.push_run(bits - 3 - 1) && code.push_run(1));
        let mut bytes = vec![ENCODING | code.pad_bits() << 4 | 0x80];
        bytes.extend(&code.bytes);
        let mut seen = vec![];
        receiver.apply(&BitmapChunk::Compressed(bytes), |index, set| seen.push((index, set))).unwrap();
        assert_eq!(seen, [(0, 7), (bits / 64 - 1, 1 << 63)]);
        assert!(receiver.is_complete());
    }

    /// Random words, words of long runs, and single bits far apart; sizes that are no multiple of 64 included.
    fn bitmaps() -> impl Strategy<Value = (u64, Vec<u64>)> {
        let word = prop_oneof![
            4 => Just(0u64),
            4 => Just(u64::MAX),
            2 => any::<u64>(),
            2 => (0..64u32).prop_map(|bit| 1 << bit),
            1 => Just(0x5555_5555_5555_5555),
        ];
        let stretch = (word, 1..400usize).prop_map(|(word, len)| vec![word; len]);
        let mixed = proptest::collection::vec(stretch, 1..12).prop_map(|parts| parts.concat());
        let dense = proptest::collection::vec(any::<u64>(), 1..1300);
        (prop_oneof![mixed, dense], 0..64u64).prop_map(|(mut words, missing)| {
            let bits = words.len() as u64 * 64 - missing;
            *words.last_mut().expect("never empty") &= u64::MAX >> missing;
            (bits, words)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

        #[test]
        fn what_is_sent_is_received((bits, words) in bitmaps(), use_rle: bool) {
            let chunks = send(bits, &words, use_rle);
            prop_assert_eq!(receive(bits, &chunks), Ok(words));
        }

        #[test]
        fn all_ways_to_send_give_the_same_bytes((bits, words) in bitmaps(), use_rle: bool, doubt in 0..9u64) {
            let expected = send_word_by_word(bits, &words, use_rle);
            prop_assert_eq!(&send(bits, &words, use_rle), &expected);
            prop_assert_eq!(&send_skipping(bits, &words, use_rle, 0), &expected);
            prop_assert_eq!(&send_skipping(bits, &words, use_rle, doubt), &expected);
        }

        #[test]
        fn few_bits_far_apart_give_the_same_bytes(
            bits in 1u64..1 << 22,
            places in proptest::collection::vec((any::<u64>(), 1..200u64), 0..40),
            inverted: bool,
        ) {
            let runs: Vec<_> = places.iter().map(|(at, len)| at % bits..=(at % bits + len - 1).min(bits - 1)).collect();
            let mut words = words_of(bits, &runs);
            if inverted {
                words.iter_mut().for_each(|word| *word = !*word);
                *words.last_mut().expect("never empty") &= valid_bits(bits, bits.div_ceil(64) - 1);
            }
            let expected = send_word_by_word(bits, &words, true);
            prop_assert_eq!(&send_skipping(bits, &words, true, 0), &expected);
            prop_assert_eq!(receive(bits, &expected), Ok(words));
        }

        #[test]
        fn no_chunk_is_larger_than_a_frame((bits, words) in bitmaps(), use_rle: bool) {
            for chunk in send(bits, &words, use_rle) {
                let (BitmapChunk::Plain(bytes) | BitmapChunk::Compressed(bytes)) = chunk;
                prop_assert!(bytes.len() <= BITMAP_BYTES_MAX as usize);
            }
        }

        #[test]
        fn random_code_never_panics_and_never_leaves_the_bitmap(
            bits in 1u64..200_000,
            chunks in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300)), 1..6),
        ) {
            let mut receiver = BitmapReceiver::new(bits);
            for (plain, mut bytes) in chunks {
                if let (false, Some(head)) = (plain, bytes.first_mut()) {
                    *head = *head & 0xf0 | ENCODING;
                }
                let chunk = if plain { BitmapChunk::Plain(bytes) } else { BitmapChunk::Compressed(bytes) };
                let mut highest = None;
                let result = receiver.apply(&chunk, |index, set| {
                    assert!(set != 0);
                    highest = Some(index * 64 + 63 - u64::from(set.leading_zeros()));
                });
                prop_assert!(highest.is_none_or(|bit| bit < bits));
                if result.is_err() {
                    break;
                }
            }
        }
    }
}
