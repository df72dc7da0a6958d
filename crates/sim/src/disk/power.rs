//! Power cuts at a chosen moment with a chosen outcome, for tests that go through all of them.
//!
//! A *durable point* is the completion of an operation that changes what a power cut leaves behind: write, discard,
//! zeroes, flush, metadata write. Power can be told to go at one: its operation is then in flight for ever, and so is
//! everything else. Chance has no part in a cut whose [`Survival`] was chosen.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::*;

/// What a power cut leaves of that which no flush and no FUA made durable: the cache and the operations in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Survival {
    Nothing,
    Everything,
    /// All data, no metadata: a device may write its cache back in any order.
    Data,
    /// All metadata, no data.
    Metadata,
    /// Only the first so many sectors of the operation at which power went.
    First(u32),
    /// Only what lies behind its first so many sectors.
    AllBut(u32),
    /// Each sector for itself, by this seed, as [`Disk::crash`] draws.
    Mixture(u64),
}

impl Survival {
    fn keeps_data(self) -> bool {
        matches!(self, Survival::Everything | Survival::Data)
    }
    fn keeps_metadata(self) -> bool {
        matches!(self, Survival::Everything | Survival::Metadata)
    }
    /// Of the operation at which power went.
    fn keeps_part(self, sector: u64) -> bool {
        match self {
            Survival::First(n) => sector < u64::from(n),
            Survival::AllBut(n) => sector >= u64::from(n),
            _ => false,
        }
    }
}

#[derive(Clone, Default)]
pub(super) struct Power {
    points: u64,
    goes_at: Option<u64>,
    gone_at: Option<IoId>,
    survival: Option<Survival>,
}

impl Disk {
    /// Durable points so far.
    pub fn durable_points(&self) -> u64 {
        self.power.points
    }
    /// Power goes when this durable point would come; `None`: it stays. The caller notices ([`Disk::cut_operation`])
    /// and crashes the node.
    pub fn cut_power_at(&mut self, point: Option<u64>) {
        self.power.goes_at = point;
    }
    /// The operation that was about to complete when power went.
    pub fn cut_operation(&self) -> Option<&DiskOp> {
        self.power.gone_at.and_then(|io| self.in_flight.get(&io)).map(|flight| &flight.op)
    }
    /// The outcome of the next crash.
    pub fn survive(&mut self, survival: Survival) {
        self.power.survival = Some(survival);
    }
    pub fn operations(&self) -> impl Iterator<Item = (IoId, &DiskOp)> {
        self.in_flight.iter().map(|(io, flight)| (*io, &flight.op))
    }

    /// A number for what this outcome would leave: equal for equal content.
    pub fn remains(&self, survival: Survival) -> u64 {
        let mut disk = self.clone();
        disk.survive(survival);
        // Every outcome brings its own seed.
        disk.crash(&mut Rng::new(0));
        disk.fingerprint()
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (sector, stamp) in self.data.visible.iter() {
            (sector, stamp).hash(&mut hasher);
        }
        for (block, page) in self.meta.visible.iter() {
            (block, &page.bytes[..]).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Whether the operation may not complete because there is no power. Counts.
    pub(super) fn power_is_gone(&mut self, io: IoId) -> bool {
        if self.power.gone_at.is_some() {
            return true;
        }
        let changes = |flight: &InFlight| !matches!(flight.op, DiskOp::Read { .. } | DiskOp::ReadInto { .. });
        if !self.in_flight.get(&io).is_some_and(changes) {
            return false;
        }
        self.power.points += 1;
        if self.power.goes_at == Some(self.power.points) {
            self.power.gone_at = Some(io);
        }
        self.power.gone_at.is_some()
    }

    /// The outcome if it was chosen; power is back afterwards.
    pub(super) fn chosen_survival(&mut self) -> Option<(Survival, Option<IoId>)> {
        let survival = self.power.survival.take();
        let at = self.power.gone_at.take();
        survival.map(|survival| (survival, at))
    }

    /// Returns the sectors whose content may have changed.
    pub(super) fn crash_as_chosen(&mut self, survival: Survival, cut: Option<IoId>) -> Vec<u64> {
        for (io, flight) in std::mem::take(&mut self.in_flight) {
            self.completions += 1;
            match survival {
                Survival::First(_) | Survival::AllBut(_) if cut == Some(io) => self.apply_sectors(flight, survival),
                _ => self.apply_whole(flight, survival),
            }
        }
        let mut touched = Vec::new();
        for (sector, cell) in std::mem::take(&mut self.data.cache).iter() {
            self.data.put(sector, cell.survivor(survival.keeps_data()));
            touched.push(sector);
        }
        for (block, cell) in std::mem::take(&mut self.meta.cache).iter() {
            self.meta.put(block, cell.survivor(survival.keeps_metadata()));
        }
        touched
    }

    /// Into the cache, as far as anything of its kind survives.
    fn apply_whole(&mut self, flight: InFlight, survival: Survival) {
        match flight.op {
            DiskOp::Read { .. } | DiskOp::ReadInto { .. } => {}
            DiskOp::Flush if survival == Survival::Everything => self.flush_data(flight.number),
            DiskOp::Flush => {}
            DiskOp::Write { range, .. } if survival.keeps_data() => {
                self.put_runs(range, flight.data.as_deref().expect("judged at submission"), false);
            }
            DiskOp::Discard { range } | DiskOp::WriteZeroes { range, .. } if survival.keeps_data() => {
                self.put_zeroes(range, false);
            }
            DiskOp::MetaWrite { blocks, preflush, .. } if survival.keeps_metadata() => {
                if preflush {
                    self.flush_metadata(flight.number);
                }
                for block in blocks {
                    self.put_block(&block, false);
                }
            }
            _ => {}
        }
    }

    /// Some sectors of one operation, straight to where they are durable.
    fn apply_sectors(&mut self, flight: InFlight, survival: Survival) {
        match flight.op {
            DiskOp::Write { range, .. } => {
                let runs = flight.data.expect("judged at submission");
                let stamps = runs.iter().flat_map(|(count, stamp)| (0..*count).map(move |_| *stamp));
                for (i, stamp) in stamps.enumerate().filter(|(i, _)| survival.keeps_part(*i as u64)) {
                    let value = NonZeroU64::new(stamp);
                    self.data.write(range.sector() + i as u64, value, self.completions, true);
                }
            }
            DiskOp::Discard { range } | DiskOp::WriteZeroes { range, .. } => {
                for i in (0..range.sectors()).filter(|i| survival.keeps_part(*i)) {
                    self.data.write(range.sector() + i, None, self.completions, true);
                }
            }
            DiskOp::MetaWrite { blocks, preflush, .. } => {
                if preflush {
                    self.flush_metadata(flight.number);
                }
                for (i, block) in blocks.iter().enumerate() {
                    self.apply_page_sectors(block, |sector| survival.keeps_part(i as u64 * 8 + sector));
                }
            }
            DiskOp::Read { .. } | DiskOp::ReadInto { .. } | DiskOp::Flush => {}
        }
    }

    /// A superblock is written as a whole or not at all (the fault model at the head of `disk`).
    fn apply_page_sectors(&mut self, block: &MetaBlock, kept: impl Fn(u64) -> bool) {
        let atomic = block.offset == self.superblock_at;
        let mut page = self.block(block.offset, View::Durable);
        for sector in 0..8 {
            if kept(if atomic { 7 } else { sector }) {
                let part = sector as usize * 512..(sector as usize + 1) * 512;
                page[part.clone()].copy_from_slice(&block.bytes[part]);
            }
        }
        if page != self.block(block.offset, View::Durable) {
            self.meta.write(block.offset / META_BLOCK, Some(MetaPage::new(page)), self.completions, true);
        }
    }
}

impl<V: Clone> Cell<V> {
    fn survivor(&self, keeps: bool) -> Option<V> {
        match self.versions.last() {
            Some((_, newest)) if keeps => newest.clone(),
            _ => self.durable.clone(),
        }
    }
}
