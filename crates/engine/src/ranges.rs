//! Overlap between application writes, writes of peers and resync on one volume: who goes, who waits for whom.
//!
//! Rules (RG-1) no two active ranges overlap, whatever their kinds; (RG-2) whoever overlaps an earlier waiter waits
//! too, so overlapping ranges become active in the order they came; (RG-3) a waiter becomes active in the very call
//! that removed the last thing before it.
//!
//! Active ranges lie sorted in one piece of memory: a search and a move of some entries, where a tree would allocate.
//! With the deepest queue (`io_depth_max`, 8000) an insertion moves 160 KiB at most, with 32 requests about half a KiB.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use types::ByteRange;

/// Chosen by the caller, unique among what is active or waits.
pub type RangeId = u64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeKind {
    /// A write of this node's application.
    Application,
    /// A write that a peer sent.
    Peer,
    /// A resync or verify block.
    Resync,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: RangeId,
    range: ByteRange,
    kind: RangeKind,
}

/// Bounded by what the caller admits.
#[derive(Debug, Default)]
pub struct RangeSet {
    /// By start, then id. None overlap (RG-1), so their ends ascend too, but for empty ones.
    active: Vec<Entry>,
    /// In order of arrival.
    waiters: VecDeque<Entry>,
}

impl RangeSet {
    pub fn new() -> RangeSet {
        RangeSet::default()
    }

    /// Active and waiting.
    pub fn len(&self) -> usize {
        self.active.len() + self.waiters.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `range` overlaps something active or waiting: it may not go now. An empty range overlaps nothing.
    pub fn conflicts(&self, range: ByteRange) -> bool {
        self.first_conflict(range).is_some()
    }

    /// The active range lowest on the volume that overlaps, else the first such waiter.
    pub fn first_conflict(&self, range: ByteRange) -> Option<(RangeId, RangeKind)> {
        self.active_conflict(range)
            .or_else(|| self.waiters.iter().find(|w| overlaps(w.range, range)))
            .map(|e| (e.id, e.kind))
    }

    /// Makes a range active that conflicts with nothing (asserted).
    pub fn insert(&mut self, id: RangeId, range: ByteRange, kind: RangeKind) {
        if let Some((other, other_kind)) = self.first_conflict(range) {
            panic!("range {range:?} of {kind:?} {id} would overlap that of {other_kind:?} {other}");
        }
        self.assert_new(id);
        self.activate(Entry { id, range, kind });
    }

    /// Queues a range; [`Self::remove`] of another one returns it once it is active. It conflicts now (asserted:
    /// otherwise nothing would ever wake it).
    pub fn wait(&mut self, id: RangeId, range: ByteRange, kind: RangeKind) {
        assert!(self.conflicts(range), "range {range:?} of {kind:?} {id} waits for nothing");
        self.assert_new(id);
        self.waiters.push_back(Entry { id, range, kind });
    }

    /// [`Self::insert`] or [`Self::wait`]; returns whether the range is active now.
    pub fn insert_or_wait(&mut self, id: RangeId, range: ByteRange, kind: RangeKind) -> bool {
        self.assert_new(id);
        let free = !self.conflicts(range);
        if free {
            self.activate(Entry { id, range, kind });
        } else {
            self.waiters.push_back(Entry { id, range, kind });
        }
        free
    }

    /// Takes out an active or a waiting range, which the caller says again. Returns the waiters that are active from
    /// now on, in order of arrival.
    pub fn remove(&mut self, id: RangeId, range: ByteRange) -> Vec<RangeId> {
        let removed = match self.position(id, range) {
            Ok(at) => self.active.remove(at).range,
            Err(_) => {
                let Some(at) = self.waiters.iter().position(|w| w.id == id) else {
                    panic!("range {id} was removed and is neither active nor waiting")
                };
                self.waiters.remove(at).expect("found just now").range
            }
        };
        assert_eq!(removed, range, "range {id} was removed as another one");
        self.wake(removed)
    }

    /// Only who overlaps `removed` can have waited for it.
    fn wake(&mut self, removed: ByteRange) -> Vec<RangeId> {
        let mut awake = Vec::new();
        let mut at = 0;
        while at < self.waiters.len() {
            let waiter = self.waiters[at];
            let free = overlaps(waiter.range, removed)
                && self.active_conflict(waiter.range).is_none()
                && !self.waiters.iter().take(at).any(|earlier| overlaps(earlier.range, waiter.range));
            if !free {
                at += 1;
                continue;
            }
            self.waiters.remove(at);
            self.activate(waiter);
            awake.push(waiter.id);
        }
        awake
    }

    fn activate(&mut self, entry: Entry) {
        match self.position(entry.id, entry.range) {
            Ok(_) => panic!("range {} is active already", entry.id),
            Err(at) => self.active.insert(at, entry),
        }
    }

    /// Where an active range is, or would be.
    fn position(&self, id: RangeId, range: ByteRange) -> Result<usize, usize> {
        self.active.binary_search_by(|e| (e.range.start(), e.id).cmp(&(range.start(), id)))
    }

    /// The lowest that overlaps: the last one that begins before `range`, or one of those that begin in it.
    fn active_conflict(&self, range: ByteRange) -> Option<&Entry> {
        let at = self.active.partition_point(|e| e.range.start() < range.start());
        let before = self.active[..at].iter().rev().find(|e| !e.range.is_empty());
        let inside = self.active[at..].iter().take_while(|e| e.range.start() < range.end());
        before.into_iter().chain(inside).find(|e| overlaps(e.range, range))
    }

    fn assert_new(&self, id: RangeId) {
        let known = |mut entries: core::slice::Iter<'_, Entry>| entries.any(|e| e.id == id);
        debug_assert!(!known(self.active.iter()), "range {id} is active already");
        assert!(!self.waiters.iter().any(|w| w.id == id), "range {id} waits already");
    }
}

fn overlaps(a: ByteRange, b: ByteRange) -> bool {
    !a.is_empty() && !b.is_empty() && a.overlaps(b)
}

#[cfg(test)]
#[path = "ranges_tests.rs"]
mod tests;
