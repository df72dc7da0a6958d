//! What every disk of the project does alike, whoever carries it out: the store in memory, the ring on a file or a
//! device (both here), the simulated disk (`crates/sim/tests/conformance.rs`) and the daemon's disks
//! (`crates/replicad/src/disks_tests.rs`). What the engine is tested against is what it runs on.
//!
//! Content is told in stamps: a sector is one number, repeated over its 512 bytes; 0 is a sector of zeroes.
//!
//! Contract of the engine that the suite keeps to: operations in flight together do not overlap, but for two writes of
//! one range, which may end in either order, each sector for itself. Left to each disk: whether storage is given back,
//! what a refusal is called beyond "out of range" and "misaligned", and what a power cut keeps of the cache.

use std::collections::BTreeMap;

pub const SECTOR: u64 = 512;
/// Where the suite works; the rest of a device is only touched at its end.
const WINDOW_SECTORS: u64 = 512;
const BATCHES: u64 = 40;

/// Ranges: first sector and number of sectors, unless said otherwise.
#[derive(Clone, Debug)]
pub enum Op {
    Read(u64, u64),
    Write {
        sector: u64,
        stamps: Vec<u64>,
        fua: bool,
    },
    Flush,
    Discard(u64, u64),
    WriteZeroes {
        sector: u64,
        count: u64,
        may_unmap: bool,
        fua: bool,
    },
    /// Whole pages of the metadata, each filled with one byte.
    Metadata {
        pages: Vec<(u64, u8)>,
        preflush: bool,
        fua: bool,
    },
    /// In bytes, for what must be refused.
    ReadBytes(u64, u64),
    WriteBytes(u64, u64),
    DiscardBytes(u64, u64),
    WriteZeroesBytes(u64, u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    OutOfRange,
    Misaligned,
    /// This disk says no more than that the request is wrong.
    Invalid,
}

pub trait Device {
    fn size_bytes(&self) -> u64;
    fn logical_block_bytes(&self) -> u64;
    /// All in flight together. Answers in order of submission, a read's with what it found.
    fn run(&mut self, batch: &[Op]) -> Vec<Result<Vec<u64>, Refused>>;
    /// Loses all that is not durable. `false`: this disk cannot.
    fn lose_power(&mut self) -> bool;
    /// Data and metadata share a cache: a preflush of the one reaches the other.
    fn is_one_device(&self) -> bool {
        true
    }
    /// First byte of each page of the metadata. `None`: this disk takes no metadata writes.
    fn metadata(&mut self) -> Option<Vec<u8>>;
}

/// `sequences`: of arbitrary operations, beside what is laid down.
pub fn conforms(device: &mut dyn Device, sequences: u64) {
    fresh_is_zero(device);
    refuses(device);
    one_sector_and_the_last(device);
    zeroing(device);
    two_writes_of_one_range(device);
    metadata(device);
    for seed in 1..=sequences {
        arbitrary(device, seed);
    }
}

fn one(device: &mut dyn Device, op: Op) -> Vec<u64> {
    let mut answers = device.run(std::slice::from_ref(&op));
    assert_eq!(answers.len(), 1);
    answers.remove(0).unwrap_or_else(|refused| panic!("{op:?} was refused: {refused:?}"))
}

fn write(device: &mut dyn Device, sector: u64, stamps: &[u64], fua: bool) {
    one(device, Op::Write { sector, stamps: stamps.to_vec(), fua });
}

fn fresh_is_zero(device: &mut dyn Device) {
    assert_eq!(one(device, Op::Read(0, WINDOW_SECTORS)), vec![0; WINDOW_SECTORS as usize]);
    let last = device.size_bytes() / SECTOR - 8;
    assert_eq!(one(device, Op::Read(last, 8)), [0; 8]);
}

fn refuses(device: &mut dyn Device) {
    let (end, block) = (device.size_bytes(), device.logical_block_bytes());
    let whole = 4096;
    for (start, len, why) in [
        (end, whole, Refused::OutOfRange),
        (end - whole, 2 * whole, Refused::OutOfRange),
        (end + (1 << 40), whole, Refused::OutOfRange),
        (0, 0, Refused::OutOfRange),
        (block / 2, block, Refused::Misaligned),
        (0, block / 2, Refused::Misaligned),
        (100, whole, Refused::Misaligned),
    ] {
        for op in [
            Op::ReadBytes(start, len),
            Op::WriteBytes(start, len),
            Op::DiscardBytes(start, len),
            Op::WriteZeroesBytes(start, len),
        ] {
            match device.run(std::slice::from_ref(&op)).remove(0) {
                Err(found) if found == why || found == Refused::Invalid => {}
                other => panic!("{op:?} on {end} bytes in blocks of {block} ended with {other:?}, expected {why:?}"),
            }
        }
    }
    fresh_is_zero(device);
}

fn one_sector_and_the_last(device: &mut dyn Device) {
    let unit = device.logical_block_bytes() / SECTOR;
    let last = device.size_bytes() / SECTOR - unit;
    for sector in [0, 3 * unit, last] {
        let stamps: Vec<u64> = (0..unit).map(|i| 1000 + sector + i).collect();
        write(device, sector, &stamps, false);
        assert_eq!(one(device, Op::Read(sector, unit)), stamps, "sector {sector}");
    }
    assert_eq!(one(device, Op::Read(unit, 2 * unit)), vec![0; 2 * unit as usize], "beside what was written");
    for sector in [0, 3 * unit, last] {
        one(device, Op::Discard(sector, unit));
    }
}

fn zeroing(device: &mut dyn Device) {
    let old: Vec<u64> = (0..64).map(|i| 2000 + i).collect();
    let ways = [
        Op::Discard(24, 16),
        Op::WriteZeroes { sector: 24, count: 16, may_unmap: true, fua: false },
        Op::WriteZeroes { sector: 24, count: 16, may_unmap: false, fua: false },
        Op::WriteZeroes { sector: 24, count: 16, may_unmap: true, fua: true },
        Op::WriteZeroes { sector: 24, count: 16, may_unmap: false, fua: true },
    ];
    for way in ways {
        write(device, 0, &old, false);
        one(device, way.clone());
        let mut expected = old.clone();
        expected[24..40].fill(0);
        assert_eq!(one(device, Op::Read(0, 64)), expected, "{way:?}");
        one(device, way.clone());
        assert_eq!(one(device, Op::Read(0, 64)), expected, "{way:?} of zeroes");
    }
    one(device, Op::WriteZeroes { sector: 0, count: 64, may_unmap: true, fua: true });
}

fn two_writes_of_one_range(device: &mut dyn Device) {
    for round in 0..20 {
        let writes =
            [3000 + round, 4000 + round].map(|stamp| Op::Write { sector: 8, stamps: vec![stamp; 16], fua: false });
        assert!(device.run(&writes).iter().all(Result::is_ok));
        let found = one(device, Op::Read(8, 16));
        assert!(found.iter().all(|stamp| [3000 + round, 4000 + round].contains(stamp)), "{found:?}");
        // What was submitted after both had completed wins.
        write(device, 8, &[5000 + round; 16], false);
        assert_eq!(one(device, Op::Read(8, 16)), [5000 + round; 16]);
    }
    one(device, Op::WriteZeroes { sector: 8, count: 16, may_unmap: true, fua: true });
}

/// Pages land where they belong, all of them, and a preflush reaches the data before them.
fn metadata(device: &mut dyn Device) {
    let Some(before) = device.metadata() else { return };
    assert!(before.len() >= 3, "a metadata area of {} pages", before.len());
    for (round, (preflush, fua)) in [(false, false), (true, false), (false, true), (true, true)].into_iter().enumerate()
    {
        let fill = round as u8 + 1;
        one(device, Op::Flush);
        write(device, 16, &[6000 + u64::from(fill); 8], false);
        one(device, Op::Metadata { pages: vec![(2, fill), (0, fill + 100)], preflush, fua });
        let found = device.metadata().expect("it has one");
        assert_eq!((found[0], found[1], found[2]), (fill + 100, before[1], fill), "preflush {preflush} fua {fua}");
        if !device.lose_power() {
            continue;
        }
        let data = one(device, Op::Read(16, 8));
        let reached = preflush && device.is_one_device();
        assert_eq!(data == [6000 + u64::from(fill); 8], reached, "preflush {preflush} fua {fua}: data");
        let found = device.metadata().expect("it has one");
        assert_eq!(found[0] == fill + 100 && found[2] == fill, fua, "preflush {preflush} fua {fua}: metadata");
    }
    one(device, Op::Metadata { pages: vec![(0, before[0]), (2, before[2])], preflush: true, fua: true });
    one(device, Op::WriteZeroes { sector: 16, count: 8, may_unmap: true, fua: true });
}

/// The plain picture: sectors that are not zero, as they are and as a power cut leaves them.
#[derive(Default)]
struct Model {
    visible: BTreeMap<u64, u64>,
    durable: BTreeMap<u64, u64>,
}

impl Model {
    fn put(&mut self, sector: u64, stamp: u64, fua: bool) {
        self.visible.insert(sector, stamp);
        if fua {
            self.durable.insert(sector, stamp);
        }
    }
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Write { sector, stamps, fua } => {
                (*sector..).zip(stamps).for_each(|(s, stamp)| self.put(s, *stamp, *fua))
            }
            Op::Discard(sector, count) => (*sector..sector + count).for_each(|s| self.put(s, 0, false)),
            Op::WriteZeroes { sector, count, fua, .. } => (*sector..sector + count).for_each(|s| self.put(s, 0, *fua)),
            // Alone in its batch: everything before has completed.
            Op::Flush => self.durable = self.visible.clone(),
            _ => {}
        }
    }
    fn at(&self, sector: u64) -> u64 {
        self.visible.get(&sector).copied().unwrap_or(0)
    }
}

/// Batches of operations that do not overlap, flushes, power cuts; from `seed`.
fn arbitrary(device: &mut dyn Device, seed: u64) {
    let unit = device.logical_block_bytes() / SECTOR;
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut model = Model::default();
    one(device, Op::WriteZeroes { sector: 0, count: WINDOW_SECTORS, may_unmap: true, fua: true });
    for batch in 0..BATCHES {
        match dice.below(12) {
            0 => {
                one(device, Op::Flush);
                model.apply(&Op::Flush);
            }
            1 if device.lose_power() => model.visible = model.durable.clone(),
            _ => {
                let ops = draw_batch(&mut dice, unit, batch * 1000 + seed * 1_000_000);
                let answers = device.run(&ops);
                for (op, answer) in ops.iter().zip(answers) {
                    let found = answer.unwrap_or_else(|e| panic!("seed {seed}: {op:?} was refused: {e:?}"));
                    if let Op::Read(sector, count) = op {
                        let expected: Vec<u64> = (*sector..sector + count).map(|s| model.at(s)).collect();
                        assert_eq!(found, expected, "seed {seed}, batch {batch}: {op:?}");
                    }
                    model.apply(op);
                }
            }
        }
    }
    let expected: Vec<u64> = (0..WINDOW_SECTORS).map(|s| model.at(s)).collect();
    assert_eq!(one(device, Op::Read(0, WINDOW_SECTORS)), expected, "seed {seed}: at the end");
}

/// Side by side over the window, with gaps.
fn draw_batch(dice: &mut Dice, unit: u64, stamp: u64) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut sector = dice.below(32) * unit;
    loop {
        let count = (1 + dice.below(24)) * unit;
        if sector + count > WINDOW_SECTORS || ops.len() == 12 {
            return ops;
        }
        let (may_unmap, fua) = (dice.below(2) == 0, dice.below(4) == 0);
        ops.push(match dice.below(8) {
            0..=2 => Op::Read(sector, count),
            3..=5 => Op::Write { sector, stamps: (0..count).map(|i| stamp + sector + i + 1).collect(), fua },
            6 => Op::Discard(sector, count),
            _ => Op::WriteZeroes { sector, count, may_unmap, fua },
        });
        sector += count + dice.below(40) * unit;
    }
}

/// xorshift64*: small, the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % end
    }
}
