//! The activity log of one volume: which extents are hot, and what its next transaction on disk says.
//!
//! Rule AL-1: a write is submitted only when every extent it touches is hot on disk. Rule AL-2: an extent with
//! references keeps its slot. A slot goes Free -> Queued -> InFlight -> Hot, and from Hot without references (least
//! recently used first) to Queued for another extent.
//!
//! Invariants:
//! - references of a Free slot = 0; only Hot slots without references are in the LRU list;
//! - `logged` is the table as the transactions started so far leave it on disk: the context of the next one;
//! - Queued slots leave the queue in order, `UPDATES_MAX` per transaction, so a ticket is known when it is given;
//! - slots <= (ring blocks - 1) * `CONTEXT_MAX`: any ring without its newest block still holds the whole table.
//!
//! All tables are made once; only a transaction allocates.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use types::ExtentIndex;

/// Changes that one transaction block has room for. Source: docs/ondisk.md "Activity log".
pub const UPDATES_MAX: usize = 64;
/// Slots of the table that one transaction block repeats. Source: docs/ondisk.md "Activity log".
pub const CONTEXT_MAX: usize = 919;
/// Slot numbers from here on are not valid on disk.
pub const SLOTS_MAX: u16 = 65534;

const NONE: u16 = u16::MAX;
const NO_EXTENT: u32 = u32::MAX;

/// Number of a transaction in the life of this log, from 1 on. Not the number on disk, which wraps.
pub type TransactionTicket = u64;

/// Answer to [`ActivityLog::hold`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// References taken, everything is hot on disk.
    Hot,
    /// References taken; hot once [`ActivityLog::transaction_written`] answers this ticket or a later one.
    Pending(TransactionTicket),
    /// References hold too many slots. Nothing changed; try again after a release.
    Full,
}

/// One block for the ring. Position and encoding are the caller's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    pub number: u32,
    pub context_first: u16,
    /// Slots from `context_first` on, as they were before `updates`; `None`: free.
    pub context: Vec<Option<ExtentIndex>>,
    pub updates: Vec<(u16, ExtentIndex)>,
    /// Extents that leave the log with this transaction: their bitmap pages must be on disk before it.
    pub evicted: Vec<ExtentIndex>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    Queued(TransactionTicket),
    InFlight,
    Hot,
}

#[derive(Clone, Debug)]
struct SlotEntry {
    extent: u32,
    references: u32,
    state: State,
    /// Neighbours in the LRU list, towards older and towards newer.
    older: u16,
    newer: u16,
}

#[derive(Debug)]
pub struct ActivityLog {
    entries: Vec<SlotEntry>,
    /// Extents in the table of the disk, by slot.
    logged: Vec<u32>,
    index: Index,
    /// Free slots, lowest on top.
    free: Vec<u16>,
    oldest: u16,
    newest: u16,
    lru_len: usize,
    queue: VecDeque<u16>,
    in_flight: Vec<u16>,
    on_its_way: bool,
    /// Ticket of the transaction that is started next.
    next_ticket: TransactionTicket,
    next_number: u32,
    context_first: u16,
    wants_slots: bool,
    scratch: Vec<ExtentIndex>,
}

impl ActivityLog {
    /// An empty log over an initialised ring. `slots` is bounded by the ring (asserted, see the head of the file).
    pub fn new(slots: u16, ring_blocks: u32, first_transaction: u32) -> ActivityLog {
        let bound = u64::from(ring_blocks.saturating_sub(1)) * CONTEXT_MAX as u64;
        assert!(
            (1..=SLOTS_MAX).contains(&slots) && u64::from(slots) <= bound,
            "activity log with {slots} slots in a ring of {ring_blocks} blocks: 1..={} allowed",
            bound.min(u64::from(SLOTS_MAX))
        );
        let n = usize::from(slots);
        let empty = SlotEntry { extent: NO_EXTENT, references: 0, state: State::Free, older: NONE, newer: NONE };
        ActivityLog {
            entries: vec![empty; n],
            logged: vec![NO_EXTENT; n],
            index: Index::new(n),
            free: (0..slots).rev().collect(),
            oldest: NONE,
            newest: NONE,
            lru_len: 0,
            queue: VecDeque::with_capacity(n),
            in_flight: Vec::with_capacity(UPDATES_MAX),
            on_its_way: false,
            next_ticket: 1,
            next_number: first_transaction,
            context_first: 0,
            wants_slots: false,
            scratch: Vec::with_capacity(n.min(1024)),
        }
    }

    pub fn slots(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Takes a reference on each extent; all or none. More extents than slots are `Full` for ever: the caller splits.
    /// While [`Self::wants_slots`], the caller lets holds of cold extents queue behind the one that was refused.
    pub fn hold(&mut self, extents: impl IntoIterator<Item = ExtentIndex>) -> Hold {
        let mut wanted = core::mem::take(&mut self.scratch);
        wanted.clear();
        // One more than there are slots is enough to know that it cannot fit.
        wanted.extend(extents.into_iter().take(self.entries.len() + 1));
        let answer = match wanted[..] {
            [only] if self.hold_hot(only) => Hold::Hot,
            _ => self.hold_all(&wanted),
        };
        self.scratch = wanted;
        answer
    }

    /// The usual case: one extent, and it is hot.
    fn hold_hot(&mut self, extent: ExtentIndex) -> bool {
        let Some(slot) = self.find(extent) else { return false };
        let entry = &self.entries[usize::from(slot)];
        if entry.state != State::Hot {
            return false;
        }
        if entry.references == 0 {
            self.unlink(slot);
        }
        self.entry(slot).references += 1;
        true
    }

    fn hold_all(&mut self, wanted: &[ExtentIndex]) -> Hold {
        let (mut cold, mut idle) = (0, 0);
        for extent in wanted {
            match self.find(*extent) {
                None => cold += 1,
                Some(slot) => idle += usize::from(self.is_idle(slot)),
            }
        }
        if cold > self.free.len() + self.lru_len.saturating_sub(idle) {
            self.wants_slots = true;
            return Hold::Full;
        }
        // First what is there, so that making room for the rest does not push it out.
        for extent in wanted {
            if let Some(slot) = self.find(*extent) {
                if self.is_idle(slot) {
                    self.unlink(slot);
                }
                self.entry(slot).references += 1;
            }
        }
        if cold > 0 {
            self.wants_slots = false;
        }
        let mut ticket = None;
        for extent in wanted {
            let slot = self.find(*extent).unwrap_or_else(|| self.assign(*extent));
            let needed = match self.entries[usize::from(slot)].state {
                State::Hot => continue,
                State::Queued(ticket) => ticket,
                State::InFlight => self.next_ticket - 1,
                State::Free => unreachable!("extent {} is indexed at the free slot {slot}", extent.0),
            };
            ticket = ticket.max(Some(needed));
        }
        ticket.map_or(Hold::Hot, Hold::Pending)
    }

    /// A slot for a cold extent, with one reference, queued. There is one (counted by the caller).
    fn assign(&mut self, extent: ExtentIndex) -> u16 {
        assert!(extent.0 != NO_EXTENT, "extent {} is the on-disk mark of a free slot", extent.0);
        let slot = self.free.pop().unwrap_or_else(|| self.take_oldest());
        let ticket = self.next_ticket + (self.queue.len() / UPDATES_MAX) as u64;
        let entry = self.entry(slot);
        entry.extent = extent.0;
        entry.references = 1;
        entry.state = State::Queued(ticket);
        self.index.insert(extent.0, slot, &self.entries);
        self.queue.push_back(slot);
        slot
    }

    fn take_oldest(&mut self) -> u16 {
        let slot = self.oldest;
        assert!(slot != NONE, "no slot to evict: {} slots, {} in the LRU list", self.entries.len(), self.lru_len);
        self.unlink(slot);
        self.index.remove(self.entries[usize::from(slot)].extent, &self.entries);
        slot
    }

    /// Drops one reference of each extent. Returns whether a refused hold is worth another try.
    pub fn release(&mut self, extents: impl IntoIterator<Item = ExtentIndex>) -> bool {
        let before = self.lru_len;
        for extent in extents {
            let Some(slot) = self.find(extent) else { panic!("released extent {}, which has no slot", extent.0) };
            let entry = self.entry(slot);
            assert!(entry.references > 0, "released extent {} in slot {slot}, which has no references", extent.0);
            entry.references -= 1;
            if self.is_idle(slot) {
                self.link_newest(slot);
            }
        }
        self.wants_slots && self.lru_len > before
    }

    /// Something waits for a transaction.
    pub fn has_changes(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The next transaction, with as many waiting changes as fit. `None`: nothing waits, or one is on its way.
    pub fn start_transaction(&mut self) -> Option<Transaction> {
        if self.on_its_way || self.queue.is_empty() {
            return None;
        }
        let first = usize::from(self.context_first);
        let end = self.logged.len().min(first + CONTEXT_MAX);
        let context = self.logged[first..end].iter().map(|e| (*e != NO_EXTENT).then_some(ExtentIndex(*e))).collect();
        let mut transaction = Transaction {
            number: self.next_number,
            context_first: self.context_first,
            context,
            updates: Vec::with_capacity(self.queue.len().min(UPDATES_MAX)),
            evicted: Vec::new(),
        };
        for slot in self.queue.drain(..self.queue.len().min(UPDATES_MAX)) {
            let entry = &mut self.entries[usize::from(slot)];
            assert_eq!(entry.state, State::Queued(self.next_ticket), "slot {slot} is in the queue at another place");
            entry.state = State::InFlight;
            let before = core::mem::replace(&mut self.logged[usize::from(slot)], entry.extent);
            if before != NO_EXTENT {
                transaction.evicted.push(ExtentIndex(before));
            }
            transaction.updates.push((slot, ExtentIndex(entry.extent)));
            self.in_flight.push(slot);
        }
        self.context_first = if end == self.logged.len() { 0 } else { end as u16 };
        self.next_number = self.next_number.wrapping_add(1);
        self.next_ticket += 1;
        self.on_its_way = true;
        Some(transaction)
    }

    /// The transaction on its way is durable. Returns the ticket up to which holds are covered now.
    pub fn transaction_written(&mut self) -> TransactionTicket {
        assert!(self.on_its_way, "a log transaction completed and none was on its way");
        self.on_its_way = false;
        while let Some(slot) = self.in_flight.pop() {
            self.entry(slot).state = State::Hot;
            if self.is_idle(slot) {
                self.link_newest(slot);
            }
        }
        self.next_ticket - 1
    }

    /// A hold was refused and none of cold extents succeeded since.
    pub fn wants_slots(&self) -> bool {
        self.wants_slots
    }

    /// Durably in the log, and keeps its slot as long as it is referenced.
    pub fn is_hot(&self, extent: ExtentIndex) -> bool {
        self.find(extent).is_some_and(|slot| self.entries[usize::from(slot)].state == State::Hot)
    }

    /// All hot extents, in order of slots.
    /// Nobody holds an extent or waits for one.
    pub fn is_unused(&self) -> bool {
        self.queue.is_empty() && !self.on_its_way && self.entries.iter().all(|entry| entry.references == 0)
    }

    pub fn hot_extents(&self) -> impl Iterator<Item = ExtentIndex> {
        self.entries.iter().filter(|e| e.state == State::Hot).map(|e| ExtentIndex(e.extent))
    }

    /// The caller initialised the ring on disk: nothing is hot. Nothing is referenced, no transaction waits or is on
    /// its way (asserted). Numbers go on, so that blocks of before are older.
    pub fn forget_all(&mut self) {
        assert!(!self.on_its_way && self.queue.is_empty(), "the log was emptied with {} changes due", self.queue.len());
        let held = self.entries.iter().filter(|e| e.references > 0).count();
        assert!(held == 0, "the log was emptied with {held} extents referenced");
        for slot in 0..self.slots() {
            if self.entries[usize::from(slot)].state == State::Hot {
                self.unlink(slot);
                self.entry(slot).state = State::Free;
                self.entry(slot).extent = NO_EXTENT;
            }
        }
        self.index.table.fill(NONE);
        self.logged.fill(NO_EXTENT);
        self.free.clear();
        self.free.extend((0..self.entries.len() as u16).rev());
        self.context_first = 0;
        self.wants_slots = false;
    }

    fn find(&self, extent: ExtentIndex) -> Option<u16> {
        self.index.find(extent.0, &self.entries).map(|position| self.index.table[position])
    }

    fn entry(&mut self, slot: u16) -> &mut SlotEntry {
        &mut self.entries[usize::from(slot)]
    }

    fn is_idle(&self, slot: u16) -> bool {
        let entry = &self.entries[usize::from(slot)];
        entry.state == State::Hot && entry.references == 0
    }

    fn link_newest(&mut self, slot: u16) {
        let newest = self.newest;
        let entry = self.entry(slot);
        (entry.older, entry.newer) = (newest, NONE);
        match newest {
            NONE => self.oldest = slot,
            _ => self.entry(newest).newer = slot,
        }
        self.newest = slot;
        self.lru_len += 1;
    }

    fn unlink(&mut self, slot: u16) {
        let (older, newer) = (self.entries[usize::from(slot)].older, self.entries[usize::from(slot)].newer);
        match older {
            NONE => self.oldest = newer,
            _ => self.entry(older).newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            _ => self.entry(newer).older = older,
        }
        self.lru_len -= 1;
    }
}

/// Extent -> slot: linear probing with a fixed hash, at most half full, without tombstones. The extents themselves are
/// in the slot entries.
#[derive(Debug)]
struct Index {
    table: Vec<u16>,
    shift: u32,
}

impl Index {
    fn new(slots: usize) -> Index {
        let len = (slots * 2).next_power_of_two();
        Index { table: vec![NONE; len], shift: 32 - len.trailing_zeros() }
    }

    /// Knuth's multiplicative hash: neighbouring extents, the usual case, spread.
    fn home(&self, extent: u32) -> usize {
        (extent.wrapping_mul(0x9E37_79B1) >> self.shift) as usize
    }

    fn next(&self, position: usize) -> usize {
        (position + 1) & (self.table.len() - 1)
    }

    fn find(&self, extent: u32, entries: &[SlotEntry]) -> Option<usize> {
        let mut position = self.home(extent);
        loop {
            match self.table[position] {
                NONE => return None,
                slot if entries[usize::from(slot)].extent == extent => return Some(position),
                _ => position = self.next(position),
            }
        }
    }

    /// `extent` is not in the table.
    fn insert(&mut self, extent: u32, slot: u16, entries: &[SlotEntry]) {
        let mut position = self.home(extent);
        while self.table[position] != NONE {
            debug_assert!(entries[usize::from(self.table[position])].extent != extent);
            position = self.next(position);
        }
        self.table[position] = slot;
    }

    /// Moves back what would not be found any more behind the hole. Its entry still has the extent.
    fn remove(&mut self, extent: u32, entries: &[SlotEntry]) {
        let Some(mut hole) = self.find(extent, entries) else { panic!("extent {extent} is not indexed") };
        let mask = self.table.len() - 1;
        let mut position = hole;
        loop {
            self.table[hole] = NONE;
            loop {
                position = self.next(position);
                let slot = self.table[position];
                if slot == NONE {
                    return;
                }
                let home = self.home(entries[usize::from(slot)].extent);
                let (to_home, to_hole) = (position.wrapping_sub(home) & mask, position.wrapping_sub(hole) & mask);
                if to_home >= to_hole {
                    self.table[hole] = slot;
                    hole = position;
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "test_random.rs"]
pub(crate) mod test_random;

#[cfg(test)]
#[path = "activity_tests.rs"]
mod tests;
