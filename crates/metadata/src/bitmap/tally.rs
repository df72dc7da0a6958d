//! How many bits of one slot are set: in all, and in each unit of three sizes, so that a search steps over what is all
//! clear or all set. Who changes bits says so here; this room never looks at them. Why these sizes:
//! docs/decisions/0012-counts-above-the-bitmap.md.
//!
//! Invariants, for a bitmap of `bits` bits:
//! `levels[k][i]` = set bits among `i << shift(k) .. (i + 1) << shift(k)`, below `bits`; `<= 1 << shift(k)`;
//! `levels[0].len() >= bits / UNIT_BITS` rounded up, and the same for the others; `total` = sum of any level.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// Bits of a slot in the smallest unit: 512 bytes of bitmap, 16 MiB of disk at 4 KiB a bit. Half of it makes searches of
/// bits that lie a million apart no shorter and doubles the memory, which is 1/128 of the bitmap.
pub(super) const UNIT_BITS: u64 = 1 << UNIT_SHIFT;
const UNIT_SHIFT: u32 = 12;

/// A unit of the next level holds this many of the one below, as a power of two.
const FAN_SHIFT: u32 = 6;

/// 100 TiB have 1600 units on top.
const LEVELS: usize = 3;

const _: () = assert!(shift(LEVELS - 1) < 32, "a count of the top level fits in 32 bits");

/// Bits of one unit of this level, as a power of two.
const fn shift(level: usize) -> u32 {
    UNIT_SHIFT + FAN_SHIFT * level as u32
}

/// What a search is after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seek {
    Set,
    Clear,
}

#[derive(Clone)]
pub(super) struct Tally {
    total: u64,
    levels: [Vec<u32>; LEVELS],
}

impl Tally {
    /// No bit is set.
    pub fn new(bits: u64) -> Tally {
        Tally { total: 0, levels: core::array::from_fn(|level| vec![0; units(bits, level)]) }
    }

    /// More bits become valid, all clear. With fewer the units stay.
    pub fn grow(&mut self, bits: u64) {
        for (level, counts) in self.levels.iter_mut().enumerate() {
            counts.resize(units(bits, level).max(counts.len()), 0);
        }
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// Set bits of this smallest unit.
    pub fn unit(&self, unit: u64) -> u64 {
        self.levels[0][unit as usize].into()
    }

    /// `count` bits of this smallest unit were clear and are set now.
    pub fn add(&mut self, unit: u64, count: u64) {
        let before = self.unit(unit);
        assert!(before + count <= UNIT_BITS, "{count} bits more in unit {unit} that has {before} set");
        self.total += count;
        for (level, counts) in self.levels.iter_mut().enumerate() {
            counts[(unit >> (FAN_SHIFT * level as u32)) as usize] += count as u32;
        }
    }

    /// `count` bits of this smallest unit were set and are clear now, or not valid any more.
    pub fn remove(&mut self, unit: u64, count: u64) {
        let before = self.unit(unit);
        assert!(count <= before, "{count} bits fewer in unit {unit} that has {before} set");
        self.total -= count;
        for (level, counts) in self.levels.iter_mut().enumerate() {
            counts[(unit >> (FAN_SHIFT * level as u32)) as usize] -= count as u32;
        }
    }

    /// Set bits of these smallest units.
    pub fn sum(&self, units: Range<u64>) -> u64 {
        let mut sum = 0;
        let mut at = units.start;
        while at < units.end {
            let level = self.levels_at(at).find(|level| at + width(*level) <= units.end).unwrap_or(0);
            sum += u64::from(self.count(level, at));
            at += width(level);
        }
        sum
    }

    /// First of these smallest units that has bits of that kind. The unit that the volume ends in always has clear ones.
    pub fn next_unit(&self, units: Range<u64>, seek: Seek) -> Option<u64> {
        if seek == Seek::Set && self.total == 0 {
            return None;
        }
        let mut at = units.start;
        while at < units.end {
            if !self.has_none(0, at, seek) {
                return Some(at);
            }
            let level = self.levels_at(at).find(|level| self.has_none(*level, at, seek));
            at += width(level.unwrap_or(0));
        }
        None
    }

    /// Levels with a unit that begins where smallest unit `at` does, the largest first.
    fn levels_at(&self, at: u64) -> impl Iterator<Item = usize> + use<> {
        (0..LEVELS).rev().filter(move |level| at.is_multiple_of(width(*level)))
    }

    fn count(&self, level: usize, at: u64) -> u32 {
        self.levels[level][(at >> (FAN_SHIFT * level as u32)) as usize]
    }

    fn has_none(&self, level: usize, at: u64, seek: Seek) -> bool {
        self.count(level, at) == if seek == Seek::Set { 0 } else { 1 << shift(level) }
    }
}

/// Smallest units in one of this level.
const fn width(level: usize) -> u64 {
    1 << (FAN_SHIFT * level as u32)
}

fn units(bits: u64, level: usize) -> usize {
    usize::try_from(bits.div_ceil(1 << shift(level))).expect("a bitmap fits in memory")
}
