//! Write epochs of one connection, seen by the node that receives the writes.
//!
//! Rule EP-2: a write of a later epoch is submitted only when every earlier epoch is flushed, so only writes of the
//! oldest epoch are on their way to the disk. Rule EP-3: an epoch is acknowledged, in order, when its barrier came, its
//! writes are on disk and the disks are flushed; with the number of its writes that no CONFIRM_STABLE covered.
//!
//! Invariant of each epoch: confirmed <= done <= received. All but the newest epoch have their barrier.

use crate::planted::{Bug, planted};
use alloc::collections::VecDeque;
use core::fmt;

/// Epochs that wait at once. A sender closes an epoch with every burst; one that runs this far ahead without an
/// acknowledgement ignores them.
pub const EPOCHS_MAX: usize = 4096;

/// Number of an epoch on this node, unrelated to barrier numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct EpochId(u64);

/// Every write of the oldest, closed epoch is on disk: the caller flushes and calls [`Epochs::flushed`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct NeedFlush(pub EpochId);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    pub epoch: EpochId,
    /// Otherwise the caller parks the write until [`Flushed::submit`] names its epoch.
    pub may_submit_now: bool,
}

/// What follows from a flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flushed {
    /// For BARRIER_ACK.
    pub barrier: u32,
    /// For BARRIER_ACK: writes of the epoch that no CONFIRM_STABLE covered.
    pub set_size: u32,
    /// Parked writes of this epoch may be submitted.
    pub submit: EpochId,
    /// The next epoch is closed and has no writes.
    pub next: Option<NeedFlush>,
}

/// The peer broke the protocol; the connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EpochError {
    TooManyEpochs,
    TooManyWrites,
}

impl fmt::Display for EpochError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EpochError::TooManyEpochs => {
                write!(f, "peer closed {EPOCHS_MAX} write epochs that are not acknowledged yet; disconnecting")
            }
            EpochError::TooManyWrites => f.write_str("peer sent 2^32 writes in one write epoch; disconnecting"),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Epoch {
    received: u32,
    done: u32,
    confirmed: u32,
    barrier: Option<u32>,
    flushing: bool,
}

#[derive(Debug)]
pub struct Epochs {
    /// Oldest first, never empty: the last one takes the next write.
    open: VecDeque<Epoch>,
    /// Id of the oldest.
    oldest: u64,
}

impl Default for Epochs {
    fn default() -> Epochs {
        Epochs::new()
    }
}

impl Epochs {
    /// Of a new connection.
    pub fn new() -> Epochs {
        Epochs { open: VecDeque::from([Epoch::default()]), oldest: 0 }
    }

    /// DATA, TRIM or ZEROES came, also one that will be answered with NEG_ACK.
    pub fn write_received(&mut self) -> Result<Received, EpochError> {
        let newest = self.open.len() - 1;
        let epoch = &mut self.open[newest];
        epoch.received = epoch.received.checked_add(1).ok_or(EpochError::TooManyWrites)?;
        Ok(Received {
            epoch: EpochId(self.oldest + newest as u64),
            may_submit_now: newest == 0 || planted(Bug::EpochsNotOrdered),
        })
    }

    /// A write is on disk (or failed there) and its acknowledgement is sent.
    pub fn write_done(&mut self, id: EpochId) -> Option<NeedFlush> {
        assert!(id.0 == self.oldest, "a write of {id:?} is done while epoch {} is the oldest", self.oldest);
        let epoch = &mut self.open[0];
        assert!(epoch.done < epoch.received, "{id:?} has {} writes, all done before", epoch.received);
        epoch.done += 1;
        self.flush_when_complete()
    }

    /// BARRIER closes the epoch that the last writes went into.
    pub fn barrier(&mut self, number: u32) -> Result<Option<NeedFlush>, EpochError> {
        if self.open.len() >= EPOCHS_MAX {
            return Err(EpochError::TooManyEpochs);
        }
        let newest = self.open.len() - 1;
        self.open[newest].barrier = Some(number);
        self.open.push_back(Epoch::default());
        Ok(if newest == 0 { self.flush_when_complete() } else { None })
    }

    /// The flush that was asked for is through.
    pub fn flushed(&mut self, id: EpochId) -> Flushed {
        assert!(id.0 == self.oldest, "{id:?} is flushed while epoch {} is the oldest", self.oldest);
        assert!(self.open[0].flushing, "{id:?} is flushed and no flush was asked for");
        let epoch = self.open.pop_front().expect("never empty");
        let barrier = epoch.barrier.expect("only closed epochs are flushed");
        self.oldest += 1;
        let set_size = epoch.received - epoch.confirmed;
        Flushed { barrier, set_size, submit: EpochId(self.oldest), next: self.flush_when_complete() }
    }

    /// For CONFIRM_STABLE: writes of the oldest epoch, still open, that are done and not confirmed. The caller flushes,
    /// then calls [`Self::confirmed`] with this number and sends it. `None`: nothing to confirm.
    pub fn confirmable(&self) -> Option<(EpochId, u32)> {
        let epoch = &self.open[0];
        let count = epoch.done - epoch.confirmed;
        (epoch.barrier.is_none() && count > 0).then_some((EpochId(self.oldest), count))
    }

    /// `count` writes are stable. Returns whether to send CONFIRM_STABLE: not if the epoch was closed meanwhile, then
    /// its BARRIER_ACK covers them.
    #[must_use]
    pub fn confirmed(&mut self, id: EpochId, count: u32) -> bool {
        if id.0 != self.oldest || self.open[0].barrier.is_some() {
            return false;
        }
        let epoch = &mut self.open[0];
        assert!(
            count <= epoch.done - epoch.confirmed,
            "{count} writes of {id:?} confirmed stable, {} done, {} confirmed before",
            epoch.done,
            epoch.confirmed
        );
        epoch.confirmed += count;
        true
    }

    fn flush_when_complete(&mut self) -> Option<NeedFlush> {
        let epoch = &mut self.open[0];
        if epoch.barrier.is_none() || epoch.done < epoch.received || epoch.flushing {
            return None;
        }
        epoch.flushing = true;
        Some(NeedFlush(EpochId(self.oldest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_epoch_waits_for_the_flush_of_the_one_before() {
        let mut epochs = Epochs::new();
        let first = epochs.write_received().unwrap();
        assert!(first.may_submit_now && epochs.write_received().unwrap().may_submit_now);
        assert_eq!(epochs.write_done(first.epoch), None);
        assert_eq!(epochs.barrier(77), Ok(None));
        let second = epochs.write_received().unwrap();
        assert!(!second.may_submit_now && second.epoch > first.epoch);
        assert_eq!(epochs.write_done(first.epoch), Some(NeedFlush(first.epoch)));
        // A barrier behind it does not ask for the same flush again.
        assert_eq!(epochs.barrier(78), Ok(None));
        let flushed = epochs.flushed(first.epoch);
        assert_eq!(flushed, Flushed { barrier: 77, set_size: 2, submit: second.epoch, next: None });
        assert_eq!(epochs.write_done(second.epoch), Some(NeedFlush(second.epoch)));
        let last = epochs.flushed(second.epoch);
        assert_eq!((last.barrier, last.set_size, last.next), (78, 1, None));
        assert_eq!(epochs.write_received().unwrap(), Received { epoch: last.submit, may_submit_now: true });
    }

    #[test]
    fn the_barrier_of_a_finished_epoch_flushes_at_once() {
        let mut epochs = Epochs::new();
        let epoch = epochs.write_received().unwrap().epoch;
        assert_eq!(epochs.write_done(epoch), None);
        assert_eq!(epochs.barrier(1), Ok(Some(NeedFlush(epoch))));
    }

    #[test]
    fn confirmed_writes_are_not_counted_again() {
        let mut epochs = Epochs::new();
        let epoch = epochs.write_received().unwrap().epoch;
        for _ in 1..82 {
            epochs.write_received().unwrap();
        }
        for _ in 0..53 {
            assert_eq!(epochs.write_done(epoch), None);
        }
        assert_eq!(epochs.confirmable(), Some((epoch, 53)));
        assert!(epochs.confirmed(epoch, 53));
        assert_eq!(epochs.confirmable(), None);
        assert_eq!(epochs.write_done(epoch), None);
        assert!(epochs.confirmed(epoch, 1));
        assert_eq!(epochs.barrier(0), Ok(None));
        assert!(!epochs.confirmed(epoch, 0) && epochs.confirmable().is_none());
        let flushes = (0..28).filter_map(|_| epochs.write_done(epoch)).count();
        assert_eq!(flushes, 1);
        assert_eq!(epochs.flushed(epoch).set_size, 28);
    }

    #[test]
    fn empty_epochs_pass_one_after_the_other() {
        let mut epochs = Epochs::new();
        let Ok(Some(NeedFlush(first))) = epochs.barrier(5) else { panic!() };
        assert_eq!(epochs.barrier(6), Ok(None));
        let flushed = epochs.flushed(first);
        assert_eq!((flushed.barrier, flushed.set_size), (5, 0));
        let Some(NeedFlush(second)) = flushed.next else { panic!() };
        assert_eq!(epochs.flushed(second).barrier, 6);
    }

    #[test]
    fn a_peer_that_closes_epochs_without_end_is_stopped() {
        let mut epochs = Epochs::new();
        epochs.write_received().unwrap();
        let closed = (0..).take_while(|n| epochs.barrier(*n).is_ok()).count();
        assert_eq!(closed, EPOCHS_MAX - 1);
        assert_eq!(epochs.barrier(0), Err(EpochError::TooManyEpochs));
    }

    #[test]
    #[should_panic(expected = "all done before")]
    fn more_done_than_received_is_a_bug() {
        let mut epochs = Epochs::new();
        let epoch = epochs.write_received().unwrap().epoch;
        let _ = epochs.write_done(epoch);
        let _ = epochs.write_done(epoch);
    }
}
