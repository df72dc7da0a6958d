//! The application's requests: from the door to completion, and writes on to the moment when every replica's part is
//! settled ("done") and the transfer log forgets them.
//!
//! ```text
//! parked -> range -> activity log -> submitted -> completed (the application is told)
//!                                             \-> done (stable or given up on every peer) -> retired, in order
//! ```
//! Bits are decided at retirement (rule BM-1): a peer that confirmed the write as stable keeps its bits, every other
//! slot gets them; only then the activity log lets the extents go.

use alloc::vec::Vec;
use core::ops::Range;

use types::{
    BlockOp, ByteRange, DiskState, IoError, LinkId, NodeId, NodeSet, PayloadId, RequestId, Role, Time, VolumeNumber,
};
use wire::Message;
use wire::message::{DataFlags, DataHead};

use crate::api::{DiskOp, Effect, Protocol};
use crate::peer::{WRITES_ARE_CLOSE, WriteMode};
use crate::planted::{Bug, planted};
use crate::range_owner::RangeOwner;
use crate::read::ReadAt;
use crate::slab::Key;
use crate::volume::{Parked, Writer};
use crate::{Engine, IoKind};

/// One peer's part in a write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leg {
    pub peer: NodeId,
    pub link: LinkId,
    pub state: LegState,
    pub want: Want,
    /// Number of the epoch on that connection.
    pub barrier: u32,
    /// The peer may take the blocks as in sync, and so may we when it says so.
    pub may_set_in_sync: bool,
    pub in_sync: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LegState {
    /// Not sent: the peer is told "out of sync" when the write retires.
    Marked,
    Sent,
    /// The peer has it in memory.
    Received,
    /// The peer's disk completed it.
    Written,
    /// Its epoch was acknowledged: it survives the peer's power.
    Stable,
    /// The peer could not write it.
    Failed,
    /// The link is gone.
    Lost,
}

/// What the application waits for on this leg.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    Nothing,
    Receipt,
    Disk,
}

impl Leg {
    /// The peer still owes an answer.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.is_settled()
    }
    fn is_settled(&self) -> bool {
        matches!(self.state, LegState::Marked | LegState::Stable | LegState::Failed | LegState::Lost)
    }
    fn holds_up_completion(&self) -> bool {
        match self.want {
            Want::Nothing => false,
            Want::Receipt => self.state == LegState::Sent,
            Want::Disk if planted(Bug::PeerDiskNotAwaited) => false,
            Want::Disk => matches!(self.state, LegState::Sent | LegState::Received),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Local {
    /// No disk to write to.
    None,
    Pending,
    Ok,
    Failed(IoError),
}

#[derive(Debug)]
pub(crate) struct Write {
    pub request: RequestId,
    pub volume: VolumeNumber,
    pub op: BlockOp,
    pub range: ByteRange,
    pub payload: Option<PayloadId>,
    pub local: Local,
    pub legs: Vec<Leg>,
    pub completed: bool,
    /// Position in the stream after this write.
    pub dagtag: u64,
    pub epoch: u64,
    /// The application asked for it.
    pub since: Time,
    /// It went to disk and peers; before that, it was let in.
    pub submitted: Time,
    /// References on the activity log are held.
    pub in_log: bool,
    /// Not sent to these nodes, but marked in the bitmap that opened their resync: it carries the blocks there.
    pub marked: NodeSet,
}

impl Engine {
    pub(crate) fn submit(
        &mut self,
        request: RequestId,
        number: VolumeNumber,
        op: BlockOp,
        range: ByteRange,
        payload: Option<PayloadId>,
    ) {
        let parked = Parked { request, op, range, payload, since: self.now };
        let Some(volume) = self.volumes.get_mut(&number) else {
            return self.complete(parked, Err(IoError::Invalid));
        };
        let aligned = range.start().is_multiple_of(512) && range.len().is_multiple_of(512);
        let fits = range.is_within(volume.exposed_bytes);
        let shape = if op == BlockOp::Flush { range.is_empty() } else { aligned && fits && !range.is_empty() };
        if !shape || op.has_payload() != payload.is_some() {
            return self.complete(parked, Err(IoError::Invalid));
        }
        volume.parked.push_back(parked);
        volume.pump = true;
    }

    /// Starts a request that the door lets in. False: it has to wait at the door after all.
    pub(crate) fn admit(&mut self, number: VolumeNumber, parked: Parked) -> bool {
        if parked.op != BlockOp::Read && !self.is_generation_begun(number) {
            return false;
        }
        match parked.op {
            BlockOp::Read => self.start_read(number, parked),
            BlockOp::Flush => self.start_flush(number, parked),
            BlockOp::Write { .. } | BlockOp::Discard | BlockOp::WriteZeroes { .. } => self.start_write(number, parked),
        }
        true
    }

    /// What is promised from here on, a write or the flush of what was seen, counts in a generation that is due
    /// (rule GE-1). Begins it; false while it is not durable.
    fn is_generation_begun(&mut self, number: VolumeNumber) -> bool {
        let Some(reason) = self.volume(number).generation_due else { return true };
        if self.is_parting_from_unsettled_writes(number) {
            return false;
        }
        self.begin_generation(number, reason);
        self.volume(number).backing.as_ref().is_none_or(|b| b.is_settled())
    }

    // ------------------------------------------------------------------ writes

    fn start_write(&mut self, number: VolumeNumber, parked: Parked) {
        let key = self.writes.insert(Write {
            request: parked.request,
            volume: number,
            op: parked.op,
            range: parked.range,
            payload: parked.payload,
            local: Local::None,
            legs: Vec::new(),
            completed: false,
            dagtag: 0,
            epoch: 0,
            since: parked.since,
            submitted: self.now,
            in_log: false,
            marked: NodeSet::EMPTY,
        });
        let door = self.now.since(parked.since);
        let volume = self.volume_mut(number);
        volume.writes_open += 1;
        volume.latency.door.add(door);
        if self.take_range(number, RangeOwner::Application(key), parked.range) {
            self.range_granted(number, Writer::Application(key));
        }
    }

    /// Range and activity log are held and the superblock is settled: the write goes to the disk and to the peers.
    pub(crate) fn submit_write(&mut self, key: Key) {
        let Some(write) = self.writes.get(key) else { return };
        let (number, op, range, payload) = (write.volume, write.op, write.range, write.payload);
        if self.epoch_writes >= self.epoch_writes_max() {
            self.close_epoch();
        }
        if self.epoch_writes == 0 {
            self.writes_follow_closely = self.now.since(self.epoch_ended) < WRITES_ARE_CLOSE;
        }
        self.epoch_writes += 1;
        let start = self.dagtag;
        self.dagtag += range.sectors();
        let (end, epoch, now) = (self.dagtag, self.epoch, self.now);

        let mut legs = self.spare_legs.pop().unwrap_or_else(|| {
            // All are in use; room for the day when they come back at once.
            self.spare_legs.reserve(self.writes.len());
            Vec::new()
        });
        // With no data left in reach it fails: then no disk, here or over there, is a place for it (rule PR-3).
        let has_data = self.has_data(number);
        let writable = has_data && self.volume(number).is_writable();
        for peer in self.peer_ids().filter(|_| has_data) {
            legs.extend(self.start_leg(peer, key, start..end));
        }
        let write = self.writes.get_mut(key).expect("looked it up above");
        write.legs = legs;
        write.dagtag = end;
        write.epoch = epoch;
        let log = now.since(write.submitted);
        write.submitted = now;
        write.local = if writable { Local::Pending } else { Local::None };
        self.transfer_log.push_back(key);
        self.volume_mut(number).latency.log.add(log);
        if writable {
            self.volume_mut(number).counters.written_bytes += range.len();
            self.disk(number, IoKind::Write(key), disk_write(op, range, payload));
        }
        self.release(payload);
        self.touch_write(key);
    }

    /// `dagtags`: our stream before and after the write.
    fn start_leg(&mut self, peer: NodeId, key: Key, dagtags: Range<u64>) -> Option<Leg> {
        let write = self.writes.get(key).expect("the caller looked it up");
        let (number, op, range, payload) = (write.volume, write.op, write.range, write.payload);
        let mode = self.peer(peer).write_mode(number);
        let link = self.peer(peer).link_id()?;
        let mut leg = Leg {
            peer,
            link,
            state: LegState::Marked,
            want: Want::Nothing,
            barrier: 0,
            may_set_in_sync: false,
            in_sync: false,
        };
        match mode {
            WriteMode::Nothing => return None,
            WriteMode::MarkOnly if self.speaks_84(peer) => {
                self.mark_only_84(peer, key);
                return None;
            }
            WriteMode::MarkOnly => return Some(leg),
            WriteMode::Data { may_set_in_sync } => {
                leg.may_set_in_sync = may_set_in_sync;
                leg.state = LegState::Sent;
            }
        }
        let fua = matches!(op, BlockOp::Write { fua: true } | BlockOp::WriteZeroes { fua: true, .. });
        let has_copy = self.volume(number).disk == DiskState::UpToDate;
        leg.want = match self.peer(peer).config.protocol {
            // Without good data of its own this node's acknowledgement is worth what a peer's disk says (rule PR-1).
            _ if !has_copy => Want::Disk,
            Protocol::A => Want::Nothing,
            // Durable on completion cannot be promised by a receipt.
            Protocol::B if fua => Want::Disk,
            Protocol::B => Want::Receipt,
            Protocol::C => Want::Disk,
        };
        let mut flags = DataFlags::RW_SYNC;
        flags |= match leg.want {
            Want::Nothing => 0,
            Want::Receipt => DataFlags::SEND_RECEIVE_ACK,
            Want::Disk => DataFlags::SEND_WRITE_ACK,
        };
        if leg.may_set_in_sync {
            flags = flags & !DataFlags::SEND_RECEIVE_ACK | DataFlags::MAY_SET_IN_SYNC | DataFlags::SEND_WRITE_ACK;
            if leg.want == Want::Receipt {
                leg.want = Want::Disk;
            }
        }
        if fua {
            flags |= DataFlags::FUA;
        }
        leg.barrier = self.join_epoch(peer);
        self.send_dagtag(peer, dagtags.start, dagtags.end);
        let head = |flags, seq| DataHead { range, block_id: key, seq, flags: DataFlags(flags) };
        let device = self.peer_mut(peer).volumes.get_mut(&number).expect("it has a write mode");
        device.sequence = device.sequence.wrapping_add(1);
        device.pending += 1;
        let seq = device.sequence;
        let message = match op {
            BlockOp::Discard => Message::Trim(head(flags | DataFlags::DISCARD, seq)),
            BlockOp::WriteZeroes { may_unmap, .. } => {
                let unmap = if may_unmap { DataFlags::DISCARD } else { 0 };
                Message::Zeroes(head(flags | DataFlags::ZEROES | unmap, seq))
            }
            _ => {
                device.sent_bytes += range.len();
                self.peer_mut(peer).unstable_bytes += range.len();
                Message::Data(head(flags, seq))
            }
        };
        self.send_data(peer, Some(number), message, if op == BlockOp::Discard { None } else { payload });
        Some(leg)
    }

    pub(crate) fn local_write_done(&mut self, key: Key, result: Result<(), IoError>) {
        let write = self.writes.get_mut(key).expect("a write stays until its local part is settled");
        let number = write.volume;
        write.local = match result {
            Ok(()) => Local::Ok,
            Err(error) => Local::Failed(error),
        };
        let (discard, range, submitted) = (write.op == BlockOp::Discard, write.range, write.submitted);
        let took = self.now.since(submitted);
        self.volume_mut(number).latency.disk.add(took);
        // A failed discard leaves bits behind, it does not condemn the disk.
        if result.is_err() && !discard {
            self.local_io_failed(number, "write failed");
        }
        if result.is_err() {
            // At once: a disk that stays in use is not read here any more.
            self.mark_all_but(number, NodeSet::EMPTY, range);
            self.distrust_older_acks(number, range);
        }
        self.touch_write(key);
    }

    /// A peer's answer to a write. Answers from an old link or to a settled leg are ignored: they come late.
    pub(crate) fn leg_answer(&mut self, peer: NodeId, key: Key, state: LegState, in_sync: bool) {
        let Some(write) = self.writes.get_mut(key) else { return };
        let number = write.volume;
        let took = self.now.since(write.submitted);
        let Some(leg) = write.legs.iter_mut().find(|l| l.peer == peer && !l.is_settled()) else { return };
        let counts = leg.holds_up_completion();
        if leg.state == LegState::Sent
            && let Some(device) = self.peers.get_mut(&peer).and_then(|p| p.volumes.get_mut(&number))
        {
            if counts {
                device.answer.add(took);
            }
            device.pending = device.pending.saturating_sub(1);
        }
        leg.state = state;
        leg.in_sync |= in_sync;
        if state == LegState::Failed && matches!(write.op, BlockOp::Write { .. }) {
            let bytes = write.range.len();
            self.less_unstable(peer, bytes);
        }
        self.touch_write(key);
        let entry = self.peer(peer);
        let counted = entry.is_connected() && entry.volumes[&number].disk > DiskState::Inconsistent;
        if state == LegState::Failed && counted {
            // It will say so itself; until then it must not count as a copy that follows (rule GE-2). A sync target is none,
            // and with `pass_on` it goes on without a word: the block gets its bit on both sides and is requested again.
            self.set_peer_disk(peer, number, DiskState::Failed, "it could not write");
        }
    }

    /// Bits were set out of order: a write that was answered before and retires later does not disprove them (rule BM-2).
    pub(crate) fn distrust_older_acks(&mut self, number: VolumeNumber, range: ByteRange) {
        let overlapping = |write: &&mut Write| write.volume == number && write.range.overlaps(range);
        for write in self.writes.values_mut().filter(overlapping) {
            write.legs.iter_mut().for_each(|leg| leg.may_set_in_sync = false);
        }
    }

    fn touch_write(&mut self, key: Key) {
        self.touched.push(key);
        self.retire = true;
    }

    pub(crate) fn check_all_writes(&mut self) {
        self.check_all = true;
        self.retire = true;
    }

    fn less_unstable(&mut self, peer: NodeId, bytes: u64) {
        let entry = self.peer_mut(peer);
        entry.unstable_bytes = entry.unstable_bytes.saturating_sub(bytes);
    }

    /// Barrier `barrier` of `peer` was acknowledged: all its writes are stable there.
    pub(crate) fn legs_stable(&mut self, peer: NodeId, barrier: u32) {
        let mut bytes = 0;
        for key in &self.transfer_log {
            let write = self.writes.get_mut(*key).expect("the transfer log names writes that exist");
            let data = matches!(write.op, BlockOp::Write { .. });
            for leg in &mut write.legs {
                if leg.peer == peer && leg.barrier == barrier && !leg.is_settled() {
                    leg.state = LegState::Stable;
                    bytes += if data { write.range.len() } else { 0 };
                }
            }
        }
        self.less_unstable(peer, bytes);
        self.check_all_writes();
        self.pump_all();
    }

    /// CONFIRM_STABLE: the writes of the oldest epoch from `oldest` to `youngest` are stable. Returns how many; `None`
    /// if they are not what was sent.
    pub(crate) fn legs_stable_between(&mut self, peer: NodeId, oldest: Key, youngest: Key) -> Option<u32> {
        let barrier = self.writes.get(oldest)?.legs.iter().find(|l| l.peer == peer)?.barrier;
        let first = self.transfer_log.iter().position(|key| *key == oldest)?;
        let last = self.transfer_log.iter().position(|key| *key == youngest)?;
        let (mut count, mut bytes) = (0, 0);
        for key in self.transfer_log.iter().skip(first).take((last + 1).checked_sub(first)?) {
            let write = self.writes.get_mut(*key).expect("the transfer log names writes that exist");
            for leg in write.legs.iter_mut().filter(|l| l.peer == peer && l.barrier == barrier) {
                if leg.state != LegState::Marked {
                    count += 1;
                }
                if leg.is_waiting() {
                    leg.state = LegState::Stable;
                    bytes += if matches!(write.op, BlockOp::Write { .. }) { write.range.len() } else { 0 };
                }
            }
        }
        self.less_unstable(peer, bytes);
        self.check_all_writes();
        Some(count)
    }

    /// The peer's disk is gone with what it may have had in its cache: a later answer to a barrier says nothing of that.
    pub(crate) fn legs_lost_with_disk(&mut self, peer: NodeId, number: VolumeNumber) {
        let (mut bytes, mut unconfirmed, mut pending) = (0, false, 0);
        for key in &self.transfer_log {
            let write = self.writes.get_mut(*key).expect("the transfer log names writes that exist");
            let legs = write.legs.iter_mut().filter(|leg| leg.peer == peer && leg.is_waiting());
            for leg in legs.filter(|_| write.volume == number) {
                pending += u64::from(leg.state == LegState::Sent);
                bytes += if matches!(write.op, BlockOp::Write { .. }) { write.range.len() } else { 0 };
                unconfirmed |= write.completed;
                leg.state = LegState::Failed;
            }
        }
        self.less_unstable(peer, bytes);
        let device = self.device_mut(peer, number);
        device.pending = device.pending.saturating_sub(pending);
        if unconfirmed {
            let volume = self.volume_mut(number);
            volume.unconfirmed_at = volume.unconfirmed_at.with(peer);
        }
        self.check_all_writes();
    }

    /// The link to `peer` is gone: nothing more will be heard of these legs. Returns the volumes that had any.
    pub(crate) fn legs_lost(&mut self, peer: NodeId) -> Vec<VolumeNumber> {
        let mut volumes = Vec::new();
        for key in &self.transfer_log {
            let write = self.writes.get_mut(*key).expect("the transfer log names writes that exist");
            for leg in write.legs.iter_mut().filter(|l| l.peer == peer && !l.is_settled()) {
                let arrived = core::mem::replace(&mut leg.state, LegState::Lost) != LegState::Sent;
                if !volumes.contains(&write.volume) {
                    volumes.push(write.volume);
                }
                if write.completed
                    && let Some(volume) = self.volumes.get_mut(&write.volume)
                {
                    volume.unconfirmed_at = volume.unconfirmed_at.with(peer);
                    if !arrived {
                        volume.missing_at = volume.missing_at.with(peer);
                    }
                }
            }
        }
        let (mut done, mut again) = (Vec::new(), Vec::new());
        for (key, flush) in self.flushes.iter() {
            if flush.waits.iter().any(|(p, ..)| *p == peer) {
                done.push(key);
            }
        }
        for (key, read) in self.reads.iter() {
            if matches!(read.at, ReadAt::Peer(p, _) if p == peer) {
                again.push(key);
            }
        }
        for key in done {
            let flush = self.flushes.get_mut(key).expect("listed above");
            flush.waits.retain(|(p, ..)| *p != peer);
            flush.unheard = true;
        }
        for key in again {
            self.retry_read(key, peer);
        }
        self.peer_mut(peer).unstable_bytes = 0;
        self.check_all_writes();
        volumes
    }

    /// Completes and retires what can be. Completion waits for a settled superblock: a generation that began because
    /// a peer was lost is on disk before a write completes without that peer (rule GE-2).
    pub(crate) fn retire(&mut self) {
        if core::mem::take(&mut self.check_all) {
            self.touched.clear();
            for index in 0..self.transfer_log.len() {
                self.complete_write(self.transfer_log[index]);
            }
        }
        while let Some(key) = self.touched.pop() {
            self.complete_write(key);
        }
        self.complete_flushes();
        while let Some(key) = self.transfer_log.front().copied() {
            let write = &self.writes.get(key).expect("the transfer log names writes that exist");
            if !write.completed || !write.legs.iter().all(Leg::is_settled) {
                break;
            }
            self.transfer_log.pop_front();
            let mut write = self.writes.remove(key).expect("looked at it just now");
            self.settle_bits(&write);
            write.legs.clear();
            if write.legs.capacity() > 0 {
                self.spare_legs.push(write.legs);
            }
        }
        let settled = match self.transfer_log.front().and_then(|key| self.writes.get(*key)) {
            Some(oldest) => oldest.dagtag - 1,
            None => self.dagtag,
        };
        self.answer_flush_requests(settled);
    }

    fn complete_write(&mut self, key: Key) {
        let Some(write) = self.writes.get(key) else { return };
        if write.completed || write.local == Local::Pending || write.legs.iter().any(Leg::holds_up_completion) {
            return;
        }
        let number = write.volume;
        let lost = write.legs.iter().any(|l| matches!(l.state, LegState::Lost | LegState::Failed));
        if lost && self.volume(number).backing.as_ref().is_some_and(|b| !b.is_settled()) {
            return;
        }
        // Without a disk of its own the generation that this write may count on is on the peers' disks first.
        let whole = write.local == Local::Ok;
        if !whole && !self.volume(number).generation_unconfirmed.is_empty() {
            return;
        }
        let result = match self.fate(write) {
            Some(result) => result,
            None => return self.close_epoch_of(write.epoch),
        };
        let (request, range, epoch, since) = (write.request, write.range, write.epoch, write.since);
        self.writes.get_mut(key).expect("looked at it just now").completed = true;
        if result.is_ok() {
            let took = self.now.since(since);
            self.volume_mut(number).latency.write.add(took);
        }
        self.emit(Effect::Complete { request, result });
        self.give_range_back(number, RangeOwner::Application(key), range);
        // What comes after this completion may depend on it: it belongs to a later epoch.
        if epoch == self.epoch {
            self.close_epoch_lazily();
        }
        self.volume_mut(number).pump = true;
    }

    /// Rule PR-2: a write succeeds only where it is on a disk that is UpToDate now, the own one or a peer's; a sync target's
    /// alone is no copy, the resync will overwrite it. `None`: a peer still owes the answer that counts.
    fn fate(&self, write: &Write) -> Option<Result<(), IoError>> {
        let number = write.volume;
        let good = self.volume(number).disk == DiskState::UpToDate || planted(Bug::WriteMadeUpToDate);
        if write.local == Local::Ok && good {
            return Some(Ok(()));
        }
        if let (Local::Failed(error), true) = (write.local, good) {
            // A discard that failed: the disk goes on, with other content than the peers.
            return Some(Err(error));
        }
        let is_copy = |leg: &&Leg| {
            let peer = self.peer(leg.peer);
            peer.link_id() == Some(leg.link) && peer.volumes[&number].disk == DiskState::UpToDate
        };
        let copies = || write.legs.iter().filter(is_copy);
        if copies().any(|leg| matches!(leg.state, LegState::Written | LegState::Stable)) {
            return Some(Ok(()));
        }
        // It was sent without asking for more than a receipt, while this node had a disk.
        if copies().any(|leg| leg.is_waiting()) {
            return None;
        }
        Some(Err(match write.local {
            Local::Failed(error) => error,
            Local::Ok | Local::None | Local::Pending => IoError::Io,
        }))
    }

    /// Rule BM-1: decides the bits of a write that left the transfer log, then frees its extents in the log.
    fn settle_bits(&mut self, write: &Write) {
        let number = write.volume;
        let mut stable = NodeSet::only(self.me);
        for leg in &write.legs {
            if leg.state == LegState::Stable {
                stable = stable.with(leg.peer);
            }
        }
        let local_ok = write.local == Local::Ok;
        let keep = if local_ok || write.local == Local::None { stable.union(write.marked) } else { NodeSet::EMPTY };
        let keep = if planted(Bug::BitsForgottenAtRetirement) { NodeSet::ALL } else { keep };
        self.mark_all_but(number, keep, write.range);
        for leg in &write.legs {
            let in_sync = local_ok && leg.state == LegState::Stable && leg.may_set_in_sync && leg.in_sync;
            if in_sync {
                self.volume_mut(number).mark_in_sync(leg.peer, write.range);
            }
        }
        for leg in &write.legs {
            if leg.state == LegState::Marked && self.peer(leg.peer).link_id() == Some(leg.link) {
                self.send_data(leg.peer, Some(number), Message::OutOfSync(write.range), None);
            }
        }
        if write.in_log
            && let Some(backing) = &mut self.volume_mut(number).backing
        {
            backing.log.release(write.range.extents());
        }
        let has_it = if local_ok { stable } else { stable.without(self.me) };
        for leg in &write.legs {
            if leg.state != LegState::Marked && leg.state != LegState::Lost {
                self.note_peer_ack(leg.peer, leg.link, has_it, write.dagtag);
            }
        }
        let volume = self.volume_mut(number);
        volume.writes_open -= 1;
        volume.pump = true;
    }

    pub(crate) fn pump_all(&mut self) {
        for volume in self.volumes.values_mut() {
            volume.pump = true;
        }
    }

    pub(crate) fn is_primary(&self) -> bool {
        self.role == Role::Primary
    }
}

/// The disk operation of a write.
pub(crate) fn disk_write(op: BlockOp, range: ByteRange, payload: Option<PayloadId>) -> DiskOp {
    match op {
        BlockOp::Write { fua } => {
            let fua = fua && !planted(Bug::FuaForgotten);
            DiskOp::Write { range, payload: payload.expect("a write brings its data: checked at the door"), fua }
        }
        BlockOp::Discard => DiskOp::Discard { range },
        BlockOp::WriteZeroes { may_unmap, fua } => DiskOp::WriteZeroes { range, may_unmap, fua },
        BlockOp::Read | BlockOp::Flush => unreachable!("{op:?} changes nothing"),
    }
}
