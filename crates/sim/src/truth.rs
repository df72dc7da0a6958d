//! What an application may see: for every sector the set of values that a correct device may return.
//!
//! A *truth* is one line of history of a volume: the writes of one Primary after the other that each had all of it.
//! Two Primaries that know nothing of each other are two truths.
//! - A completed write supersedes what had completed before it was submitted; what was in flight beside it stays
//!   allowed. A write that failed or whose node died may have happened or not, for ever (not narrowed by later reads).
//! - Superseded values come back into question when a node that lost power serves: until a flush after the write.
//! - `complete_on`: nodes that hold every completed write. `durable_on`: nodes that hold every write that was flushed.
//!   Membership is what the engine promises: own disk, and peers that the Primary's status calls Established and
//!   UpToDate when the write completes (not under protocol A, which promises nothing about a peer).
//!
//! Not checked: which of two uncertain writes wins on a later fail-over; loss of unflushed writes is allowed on any
//! node that lost power since, even if the sector was durable by accident.

use std::collections::{BTreeMap, BTreeSet};

use types::{ByteRange, NodeId};

use crate::disk::{Disk, Runs, SECTOR, Stamp};
use crate::few::Few;
use crate::paged::Paged;

#[derive(Clone, Debug)]
struct Entry {
    value: Stamp,
    /// Moment of submission and of completion; `None`: in flight, failed or lost on the way.
    submitted: u64,
    completed: Option<u64>,
    superseded: bool,
}

#[derive(Clone, Default)]
pub struct Truth {
    pub primary: Option<NodeId>,
    pub complete_on: BTreeSet<NodeId>,
    pub durable_on: BTreeSet<NodeId>,
    /// Writes completed / made durable since this truth began.
    pub completed: u64,
    pub flushed: u64,
    sectors: Paged<Few<Entry>>,
    /// Sectors with superseded values: what a flush looks at.
    unflushed: BTreeMap<u64, Vec<(u64, Stamp)>>,
}

impl Entry {
    /// The last known value of a sector when a truth begins.
    fn known(value: Stamp) -> Entry {
        Entry { value, submitted: 0, completed: Some(0), superseded: false }
    }
}

impl Truth {
    pub fn new(members: impl IntoIterator<Item = NodeId>) -> Truth {
        let complete_on: BTreeSet<NodeId> = members.into_iter().collect();
        Truth { durable_on: complete_on.clone(), complete_on, ..Truth::default() }
    }

    /// The truth that begins when `node` serves what is on `disk`, whatever it is.
    pub fn adopt(node: NodeId, disk: &Disk) -> Truth {
        let mut truth = Truth::new([node]);
        truth.primary = Some(node);
        for sector in disk.sectors_written().chain(disk.sectors_cached()).collect::<BTreeSet<u64>>() {
            let older = disk.older_stamps(sector);
            truth.unflushed.entry(0).or_default().extend(older.iter().map(|_| (sector, sector + 1)));
            let older = older.into_iter().map(|value| Entry { superseded: true, ..Entry::known(value) });
            truth.sectors.insert(sector, older.chain([Entry::known(disk.stamp(sector))]).collect());
        }
        truth
    }

    /// A Primary without a disk and without anybody who has one: whatever it reads is an error.
    pub fn unknown(node: NodeId) -> Truth {
        Truth { primary: Some(node), ..Truth::default() }
    }

    fn entries(&mut self, sector: u64) -> &mut Few<Entry> {
        self.sectors.get_or_insert_with(sector, || Few::One(Entry::known(0)))
    }

    pub fn submit(&mut self, range: ByteRange, value: Stamp, at: u64) {
        for sector in range.sector()..range.end() / SECTOR {
            self.entries(sector).push(Entry { value, submitted: at, completed: None, superseded: false });
        }
    }

    /// A write in flight is issued again: what counts is when that one ends.
    pub fn forget_submission(&mut self, range: ByteRange, submitted: u64) {
        for sector in range.sector()..range.end() / SECTOR {
            if let Some(entries) = self.sectors.get_mut(sector) {
                entries.retain(|e| e.submitted != submitted || e.completed.is_some());
            }
        }
    }

    /// The write that was submitted at `submitted` succeeded. `durable`: with FUA.
    pub fn complete(&mut self, range: ByteRange, submitted: u64, at: u64, durable: bool) {
        self.completed += 1;
        for sector in range.sector()..range.end() / SECTOR {
            let entries = self.entries(sector);
            for entry in entries.iter_mut() {
                if entry.submitted == submitted {
                    entry.completed = Some(at);
                } else if entry.completed.is_some_and(|c| c < submitted) {
                    entry.superseded = true;
                }
            }
            if durable {
                entries.retain(|e| !e.superseded);
            }
        }
        if durable {
            self.flushed += 1;
        } else {
            self.unflushed.entry(at).or_default().push((range.sector(), range.end() / SECTOR));
        }
    }

    /// A flush that was submitted at `submitted` succeeded: what had completed before is durable.
    pub fn flush(&mut self, submitted: u64) {
        let later = self.unflushed.split_off(&submitted);
        let durable = std::mem::replace(&mut self.unflushed, later);
        for (first, end) in durable.into_values().flatten() {
            self.flushed += 1;
            for sector in first..end {
                let entries = self.entries(sector);
                // The newest durable one: everything that it superseded is gone for good.
                let Some(newest) =
                    entries.iter().filter(|e| e.completed.is_some_and(|c| c < submitted)).map(|e| e.submitted).max()
                else {
                    continue;
                };
                entries.retain(|e| !(e.superseded && e.completed.is_some_and(|c| c < newest)));
            }
        }
    }

    /// A node without the unflushed writes may serve from now on.
    pub fn lose_unflushed(&mut self) {
        for (first, end) in std::mem::take(&mut self.unflushed).into_values().flatten() {
            for sector in first..end {
                self.entries(sector).iter_mut().for_each(|e| e.superseded = false);
            }
        }
    }

    pub fn allows(&self, sector: u64, value: Stamp) -> bool {
        match self.sectors.get(sector) {
            None => value == 0,
            Some(entries) => entries.iter().any(|e| !e.superseded && e.value == value),
        }
    }
    pub fn values(&self, sector: u64) -> Few<Stamp> {
        match self.sectors.get(sector) {
            None => Few::One(0),
            Some(entries) => entries.iter().filter(|e| !e.superseded).map(|e| e.value).collect(),
        }
    }
    pub fn sectors(&self) -> impl Iterator<Item = u64> + '_ {
        self.sectors.keys()
    }

    /// The first sector of `disk` that holds something older than what this line promises. Newer is what another line
    /// wrote over it; `discards`: zeroes may be that too.
    pub fn first_behind(&self, disk: &Disk, discards: bool) -> Option<(u64, Stamp)> {
        let behind = |sector: u64, entries: &[Entry]| {
            let value = disk.stamp(sector);
            // What failed or was never answered is not promised.
            let newest = entries.iter().filter(|e| e.completed.is_some()).map(|e| e.value).max().unwrap_or(0);
            !self.allows(sector, value) && value < newest && !(discards && value == 0)
        };
        self.sectors.iter().find(|(s, e)| behind(*s, e)).map(|(s, _)| (s, disk.stamp(s)))
    }

    /// The first sector of `disk` that holds what no reader may see.
    pub fn first_violation(&self, disk: &Disk) -> Option<(u64, Stamp)> {
        let here = self.sectors.keys();
        let there = disk.sectors_written().filter(|s| !self.sectors.contains(*s));
        here.chain(there).map(|s| (s, disk.stamp(s))).find(|(s, value)| !self.allows(*s, *value))
    }
}

/// What a read in flight may return: what was allowed when it began and what was written since.
#[derive(Clone, Debug)]
pub struct ReadExpectation {
    first: u64,
    allowed: Vec<Few<Stamp>>,
}

impl ReadExpectation {
    pub fn begin(truth: &Truth, range: ByteRange) -> ReadExpectation {
        let allowed = (range.sector()..range.end() / SECTOR).map(|s| truth.values(s)).collect();
        ReadExpectation { first: range.sector(), allowed }
    }
    pub fn overlapped(&mut self, range: ByteRange, value: Stamp) {
        for sector in range.sector()..range.end() / SECTOR {
            if let Some(allowed) = sector.checked_sub(self.first).and_then(|i| self.allowed.get_mut(i as usize)) {
                allowed.push(value);
            }
        }
    }
    pub fn check(&self, data: &Runs) -> Result<(), String> {
        let mut values = data.iter().flat_map(|(count, stamp)| (0..*count).map(move |_| *stamp));
        for (i, allowed) in self.allowed.iter().enumerate() {
            let sector = self.first + i as u64;
            match values.next() {
                Some(value) if allowed.contains(&value) => {}
                Some(value) => return Err(format!("sector {sector} reads as write {value}, allowed {allowed:?}")),
                None => return Err(format!("the buffer ends before sector {sector}")),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(sector: u64) -> ByteRange {
        ByteRange::new(sector * SECTOR, SECTOR).unwrap()
    }

    #[test]
    fn a_completed_write_supersedes_and_a_flush_seals_it() {
        let mut truth = Truth::new([]);
        truth.submit(range(3), 11, 1);
        assert!(truth.allows(3, 0) && truth.allows(3, 11));
        truth.complete(range(3), 1, 2, false);
        assert!(!truth.allows(3, 0) && truth.allows(3, 11));
        let mut lost = truth.clone();
        lost.lose_unflushed();
        assert!(lost.allows(3, 0));
        truth.flush(3);
        truth.lose_unflushed();
        assert!(!truth.allows(3, 0));
    }

    #[test]
    fn writes_in_flight_together_may_end_in_either_order() {
        let mut truth = Truth::new([]);
        truth.submit(range(3), 11, 1);
        truth.submit(range(3), 12, 2);
        truth.complete(range(3), 1, 3, false);
        truth.complete(range(3), 2, 4, false);
        assert!(truth.allows(3, 11) && truth.allows(3, 12) && !truth.allows(3, 0));
    }

    #[test]
    fn a_stale_read_is_noticed() {
        let mut truth = Truth::new([]);
        truth.submit(range(3), 11, 1);
        truth.complete(range(3), 1, 2, false);
        let mut read = ReadExpectation::begin(&truth, range(3));
        assert!(read.check(&vec![(1, 0)]).is_err());
        assert!(read.check(&vec![(1, 12)]).is_err());
        read.overlapped(range(3), 12);
        assert!(read.check(&vec![(1, 12)]).is_ok());
    }
}
