//! Writes that a peer sends us: order of its epochs, activity log, disk, acknowledgements, and the decision about
//! bits when the Primary says who has them.
//!
//! ```text
//! received -> (held: its epoch may not start yet) -> range -> activity log -> disk -> acknowledged
//!                                                                                 \-> PEER_ACK: bits, log released
//! ```
//! Rule EP-2: a write of a later epoch starts only when all writes of earlier epochs are on stable storage, so a crash
//! here leaves a prefix of the Primary's history.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use types::{BlockOp, ByteRange, IoError, LinkId, NodeId, NodeSet, PayloadId, VolumeNumber};
use wire::Message;
use wire::message::{DataFlags, DataHead};

use crate::epoch::{EpochId, NeedFlush};
use crate::planted::{Bug, planted};
use crate::range_owner::RangeOwner;
use crate::request::disk_write;
use crate::slab::Key;
use crate::volume::{Salvage, Volume, Writer};
use crate::{Engine, IoKind};

/// Writes of one peer that no PEER_ACK settled. More is a peer gone wild.
const UNACKED_MAX: usize = 65536;

pub(crate) struct PeerWrite {
    pub peer: NodeId,
    pub link: LinkId,
    pub volume: VolumeNumber,
    pub op: BlockOp,
    pub range: ByteRange,
    pub payload: Option<PayloadId>,
    pub flags: DataFlags,
    pub block_id: u64,
    pub epoch: EpochId,
    /// Position in the Primary's stream after this write.
    pub dagtag: u64,
    pub stage: Stage,
    /// It holds its range. It asks for it on arrival, so that a read that comes later waits for it (rule EP-4).
    pub ranged: bool,
    /// Its epoch may start.
    pub due: bool,
    /// References on the activity log are held.
    pub in_log: bool,
    /// The Primary had a disk, and so a log of its own that covers this, when it sent it (rule AL-5).
    pub logged_there: bool,
    /// With it both have the blocks: the Primary says so, and this disk was not exchanged since.
    pub proves: bool,
    /// The link died before the disk was done with it: settle as soon as it comes back, for these nodes.
    pub orphan: Option<NodeSet>,
    /// The Primary was told that it is stable.
    pub confirmed: bool,
    /// Its bits towards these nodes were set for a bitmap exchange, a resync of this life carries it there.
    pub marked: NodeSet,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Waiting,
    Submitted,
    Done { ok: bool },
}

impl Engine {
    pub(crate) fn peer_write(
        &mut self,
        peer: NodeId,
        number: VolumeNumber,
        op: BlockOp,
        head: DataHead,
        payload: Option<PayloadId>,
    ) {
        let size = self.volume(number).exposed_bytes;
        if !head.range.is_within(size) {
            self.release(payload);
            let text = format!("write of {:?} beyond the volume's {size} bytes", head.range);
            return self.protocol_error(peer, &text);
        }
        if self.is_primary() {
            self.release(payload);
            return self.protocol_error(peer, "write from a peer while this node is Primary");
        }
        let link = self.peer(peer).link_id().expect("a message came in on it");
        let entry = self.peer_mut(peer);
        entry.dagtag_received += head.range.sectors();
        let dagtag = entry.dagtag_received;
        if entry.unacked.len() >= UNACKED_MAX {
            self.release(payload);
            return self.protocol_error(peer, "more writes without a PEER_ACK than any node has open");
        }
        let entry = self.peer_mut(peer);
        let received = match entry.epochs.write_received() {
            Ok(received) => received,
            Err(error) => {
                self.release(payload);
                return self.protocol_error(peer, &error.to_string());
            }
        };
        let device = self.device_mut(peer, number);
        device.received_bytes += head.range.len();
        device.unacked += 1;
        let logged_there = device.has_log();
        let key = self.peer_writes.insert(PeerWrite {
            peer,
            link,
            volume: number,
            op,
            range: head.range,
            payload,
            flags: head.flags,
            block_id: head.block_id,
            epoch: received.epoch,
            dagtag,
            stage: Stage::Waiting,
            ranged: false,
            due: received.may_submit_now,
            in_log: false,
            logged_there,
            proves: head.flags.has(DataFlags::MAY_SET_IN_SYNC),
            orphan: None,
            confirmed: false,
            marked: NodeSet::EMPTY,
        });
        let volume = self.volume_mut(number);
        volume.writes_open += 1;
        volume.writes_logged_here += u64::from(!logged_there);
        self.peer_mut(peer).unacked.push_back(key);
        if received.may_submit_now {
            self.acknowledge_receipt(key);
        } else {
            self.peer_mut(peer).held.push_back(key);
        }
        if self.take_range(number, RangeOwner::PeerWrite(key), head.range) {
            self.peer_range_granted(number, key);
        }
    }

    /// Protocol B: from here on the write reaches the disk whatever becomes of the link. Not said of a write that an
    /// earlier epoch still holds back: with the link gone nobody would let it go on in order.
    fn acknowledge_receipt(&mut self, key: Key) {
        let write = self.peer_writes.get(key).expect("the caller holds it");
        let (peer, number, range, block_id) = (write.peer, write.volume, write.range, write.block_id);
        if write.flags.has(DataFlags::SEND_RECEIVE_ACK) {
            self.send_ack(peer, number, range, block_id, Message::RecvAck);
        }
    }

    /// Writes that a lost peer counts on are still on their way to the disk, or blocks of a resync that was cut off.
    pub(crate) fn has_orphaned_writes(&self) -> bool {
        self.peer_writes.iter().any(|(_, w)| w.orphan.is_some())
            || self.resync_requests.iter().any(|(_, request)| request.orphan && request.writing)
    }

    pub(crate) fn peer_range_granted(&mut self, number: VolumeNumber, key: Key) {
        let write = self.peer_writes.get_mut(key).expect("it holds or wants the range");
        write.ranged = true;
        if write.due {
            self.range_granted(number, Writer::Peer(key));
        }
    }

    fn epoch_is_due(&mut self, number: VolumeNumber, key: Key) {
        let write = self.peer_writes.get_mut(key).expect("the caller looked it up");
        write.due = true;
        let ranged = write.ranged;
        self.acknowledge_receipt(key);
        if ranged {
            self.range_granted(number, Writer::Peer(key));
        }
    }

    /// Range and activity log are held and the superblock is settled: to the disk.
    pub(crate) fn submit_peer_write(&mut self, key: Key) {
        let Some(write) = self.peer_writes.get_mut(key) else { return };
        let (number, op, range, payload) = (write.volume, write.op, write.range, write.payload.take());
        if !self.volumes[&number].is_writable() {
            self.release(payload);
            return self.peer_write_settled(key, false);
        }
        let write = self.peer_writes.get_mut(key).expect("just looked at");
        write.stage = Stage::Submitted;
        let fua = write.flags.has(DataFlags::FUA);
        let op = match op {
            BlockOp::Write { .. } => BlockOp::Write { fua },
            BlockOp::WriteZeroes { may_unmap, .. } => BlockOp::WriteZeroes { may_unmap, fua },
            other => other,
        };
        self.volume_mut(number).counters.written_bytes += range.len();
        self.disk(number, IoKind::PeerWrite(key), disk_write(op, range, payload));
        self.release(payload);
    }

    pub(crate) fn peer_write_done(&mut self, key: Key, result: Result<(), IoError>) {
        let write = self.peer_writes.get_mut(key).expect("it stays until its disk part is settled");
        let number = write.volume;
        if result.is_err() && write.op == BlockOp::Discard {
            // The Primary counts on equal copies: what this disk does not discard it writes.
            write.op = BlockOp::WriteZeroes { may_unmap: false, fua: false };
            let volume = self.volume_mut(number);
            volume.ready.push_back(Writer::Peer(key));
            volume.pump = true;
            return;
        }
        self.peer_write_settled(key, result.is_ok());
        if result.is_err() {
            self.local_io_failed(number, "write for a peer failed");
        }
    }

    fn peer_write_settled(&mut self, key: Key, ok: bool) {
        let write = self.peer_writes.get_mut(key).expect("the caller holds it");
        write.stage = Stage::Done { ok };
        let (peer, number, range, block_id) = (write.peer, write.volume, write.range, write.block_id);
        let (flags, epoch, orphan, link) = (write.flags, write.epoch, write.orphan, write.link);
        self.give_range_back(number, RangeOwner::PeerWrite(key), range);
        if !ok && flags.has(DataFlags::SEND_RECEIVE_ACK) {
            self.volume_mut(number).lost_received = true;
        }
        if let Some(has_it) = orphan {
            return self.forget_peer_write(key, has_it);
        }
        assert_eq!(self.peer(peer).link_id(), Some(link), "a write outlived its link and is no orphan");
        let volume = self.volume(number);
        let stable = volume.backing.is_some() && !volume.may_lose_writes();
        let device = self.device_mut(peer, number);
        device.unacked = device.unacked.saturating_sub(1);
        device.unflushed |= ok && !stable;
        let syncing = device.is_syncing();
        if !ok {
            self.send_ack(peer, number, range, block_id, Message::NegAck);
        } else if flags.has(DataFlags::SEND_WRITE_ACK) {
            let in_sync = flags.has(DataFlags::MAY_SET_IN_SYNC) && syncing;
            let message = if in_sync { self.in_sync_ack(peer) } else { Message::WriteAck };
            self.send_ack(peer, number, range, block_id, message);
        }
        self.epoch_write_done(peer, epoch);
    }

    /// Protocol 122 gave "written and in sync" a packet of its own.
    fn in_sync_ack(&self, peer: NodeId) -> fn(wire::message::BlockAck) -> Message {
        let protocol = self.peer(peer).link.as_ref().map_or(0, |l| l.protocol);
        if protocol >= 122 { Message::WriteAckInSync } else { Message::RsWriteAck }
    }

    // ------------------------------------------------------------------ epochs

    fn epoch_write_done(&mut self, peer: NodeId, epoch: EpochId) {
        if let Some(need) = self.peer_mut(peer).epochs.write_done(epoch) {
            self.flush_epoch(peer, need);
        }
    }

    pub(crate) fn barrier_received(&mut self, peer: NodeId, barrier: u32) {
        match self.peer_mut(peer).epochs.barrier(barrier) {
            Ok(Some(need)) => self.flush_epoch(peer, need),
            Ok(None) => {}
            Err(error) => self.protocol_error(peer, &error.to_string()),
        }
    }

    /// All writes of the oldest closed epoch are on the disks: make them durable. A flush that is under way to confirm
    /// part of that epoch does not count for the rest: it is asked for again behind it.
    fn flush_epoch(&mut self, peer: NodeId, need: NeedFlush) {
        self.peer_mut(peer).epoch_due = Some(need.0);
        if self.peer(peer).epoch_flushes == 0 {
            self.flush_volumes(peer);
        }
    }

    /// Flushes every volume that has a volatile cache; with none, what is on the disks is stable as it is.
    fn flush_volumes(&mut self, peer: NodeId) {
        let link = self.peer(peer).link_id().expect("epochs live as long as the link");
        let mut flushes = self.volumes.values().filter(|v| v.may_lose_writes()).count() as u32;
        if planted(Bug::EpochNotFlushed) {
            flushes = 0;
        }
        // A disk that failed with such writes in its cache takes no flush any more.
        let unflushed = |v: &Volume| v.backing.is_none() && self.peer(peer).volumes[&v.number].unflushed;
        let lost = self.volumes.values().any(unflushed);
        let entry = self.peer_mut(peer);
        entry.flush_failed = lost;
        entry.epoch_flushes = flushes;
        entry.epoch_flushing = entry.epoch_due.take();
        if flushes == 0 {
            return self.epoch_flushed(peer);
        }
        for position in 0..self.volumes.len() {
            let (number, volume) = self.volumes.at(position);
            if volume.may_lose_writes() {
                self.device_mut(peer, number).unflushed = false;
                self.flush_data(number, IoKind::EpochFlush { peer, link });
            }
        }
    }

    pub(crate) fn epoch_flush_done(
        &mut self,
        peer: NodeId,
        link: LinkId,
        number: VolumeNumber,
        result: Result<(), IoError>,
    ) {
        let current = self.peers.get(&peer).and_then(|p| p.link_id()) == Some(link);
        if current {
            let entry = self.peer_mut(peer);
            entry.flush_failed |= result.is_err();
            entry.epoch_flushes -= 1;
        }
        if result.is_err() {
            self.local_flush_failed(number);
        }
        if current && self.peer(peer).epoch_flushes == 0 && self.peer(peer).link_id() == Some(link) {
            self.epoch_flushed(peer);
        }
    }

    /// What was on the disks when the flush started is stable now, if it succeeded.
    fn epoch_flushed(&mut self, peer: NodeId) {
        if self.peer(peer).flush_failed {
            // Never acknowledge what may be lost: the Primary keeps it and marks it.
            return self.protocol_error(peer, "an epoch could not be made durable");
        }
        if !self.peer(peer).confirm.is_empty() {
            self.confirm_flushed(peer);
        }
        if let Some(epoch) = self.peer_mut(peer).epoch_flushing.take() {
            self.epoch_stable(peer, epoch);
        }
        if self.peer(peer).epoch_due.is_some() && self.peer(peer).epoch_flushes == 0 {
            self.flush_volumes(peer);
        }
    }

    fn epoch_stable(&mut self, peer: NodeId, epoch: EpochId) {
        let flushed = self.peer_mut(peer).epochs.flushed(epoch);
        let message = Message::BarrierAck { barrier: flushed.barrier, set_size: flushed.set_size };
        self.send(peer, wire::Socket::Control, None, message);
        self.settle_epoch_84(peer, epoch);
        // Each once: what has to wait goes to the back and keeps its order.
        for _ in 0..self.peer(peer).held.len() {
            let Some(key) = self.peer_mut(peer).held.pop_front() else { break };
            let Some(write) = self.peer_writes.get(key) else { continue };
            let (number, epoch) = (write.volume, write.epoch);
            if epoch == flushed.submit {
                self.epoch_is_due(number, key);
            } else {
                self.peer_mut(peer).held.push_back(key);
            }
        }
        if let Some(need) = flushed.next {
            self.flush_epoch(peer, need);
        }
    }

    // ------------------------------------------------------------------ peer acks

    /// The Primary says who has its writes up to `dagtag` (rule BM-1 on this side).
    pub(crate) fn peer_ack(&mut self, peer: NodeId, nodes: NodeSet, dagtag: u64) {
        while let Some(key) = self.peer(peer).unacked.front().copied() {
            let write = self.peer_writes.get(key).expect("unacked names writes that exist");
            if write.dagtag > dagtag {
                break;
            }
            if !matches!(write.stage, Stage::Done { .. }) {
                return self.protocol_error(peer, "PEER_ACK for a write that this node has not completed");
            }
            self.peer_mut(peer).unacked.pop_front();
            self.forget_peer_write(key, nodes);
        }
    }

    /// A source is about to send its bitmap: writes that no PEER_ACK has settled count as missing there. Their bits
    /// would come too late for the target, which then ends the resync without them. The resync reads their blocks
    /// after them (rule EP-4), so the PEER_ACK need not set these bits again.
    pub(crate) fn mark_unsettled_peer_writes(&mut self, target: NodeId, number: VolumeNumber) {
        let keys: Vec<Key> = self.peer_writes.iter().filter(|(_, w)| w.volume == number).map(|(key, _)| key).collect();
        for key in keys {
            let write = self.peer_writes.get_mut(key).expect("listed above");
            write.marked = write.marked.with(target);
            let range = write.range;
            self.volume_mut(number).mark_out_of_sync(target, range);
        }
    }

    /// The write's bits are decided: nodes in `has_it` keep theirs, every other slot gets them.
    pub(crate) fn forget_peer_write(&mut self, key: Key, has_it: NodeSet) {
        let write = self.peer_writes.remove(key).expect("the caller holds it");
        self.release(write.payload);
        let ok = write.stage == (Stage::Done { ok: true });
        // Bits that were marked for a bitmap exchange stand for later writes too: the resync clears them.
        let proven = has_it.contains(write.peer) && !write.marked.contains(write.peer);
        let in_sync = ok && write.proves && proven;
        if write.stage != Stage::Waiting {
            let keep = if ok { has_it.union(write.marked) } else { NodeSet::EMPTY };
            self.mark_all_but(write.volume, keep, write.range);
        }
        let volume = self.volume_mut(write.volume);
        volume.writes_open -= 1;
        volume.writes_logged_here -= u64::from(!write.logged_there);
        let last = volume.writes_open == 0 || !write.logged_there && volume.writes_logged_here == 0;
        if in_sync && write.orphan.is_none() {
            volume.mark_in_sync(write.peer, write.range);
        }
        if write.in_log
            && let Some(backing) = &mut volume.backing
        {
            backing.log.release(write.range.extents());
        }
        volume.pump = true;
        if last {
            self.refresh_flags(write.volume);
        }
    }

    /// The link is gone. What was acknowledged as received still goes to the disk; of the rest, what has not reached
    /// the disk never will. What has counts against everybody but a Primary with a disk, which knows by its own log
    /// what it sent (rule BM-4).
    pub(crate) fn peer_writes_lost(&mut self, peer: NodeId) {
        self.peer_mut(peer).held.clear();
        let entry = self.peer_mut(peer);
        entry.confirm.clear();
        entry.epoch_due = None;
        entry.epoch_flushing = None;
        entry.epoch_flushes = 0;
        let keys: Vec<Key> = core::mem::take(&mut self.peer_mut(peer).unacked).into_iter().collect();
        for key in keys {
            let write = self.peer_writes.get_mut(key).expect("unacked names writes that exist");
            let (number, range) = (write.volume, write.range);
            // A log that went with the Primary's disk, or that came after the write, does not cover it.
            let covered = write.logged_there && self.peers[&peer].volumes[&number].has_log();
            let covered = if covered { NodeSet::only(peer) } else { NodeSet::EMPTY };
            let received = write.due && write.flags.has(DataFlags::SEND_RECEIVE_ACK);
            match write.stage {
                Stage::Submitted => write.orphan = Some(covered),
                Stage::Waiting if received && !planted(Bug::ReceiptForgotten) => write.orphan = Some(covered),
                Stage::Done { .. } => self.forget_peer_write(key, covered),
                Stage::Waiting => {
                    self.leave_queues(number, Writer::Peer(key));
                    self.give_range_back(number, RangeOwner::PeerWrite(key), range);
                    self.forget_peer_write(key, covered);
                }
            }
            self.salvage(number);
        }
    }

    /// Rule EP-5: the Primary that wrote this may have no other copy and go on with us when the link is back.
    fn salvage(&mut self, number: VolumeNumber) {
        let volume = self.volume_mut(number);
        volume.salvage = match volume.salvage {
            Salvage::Nothing | Salvage::Due => Salvage::Due,
            Salvage::Flushing { .. } => Salvage::Flushing { again: true },
        };
    }

    /// Part of `settle`: rule EP-5. Returns whether it did anything.
    pub(crate) fn advance_salvage(&mut self) -> bool {
        let mut progress = false;
        for position in 0..self.volumes.len() {
            let (number, volume) = self.volumes.at(position);
            if volume.salvage != Salvage::Due {
                continue;
            }
            if self.peer_writes.iter().any(|(_, w)| w.volume == number && w.orphan.is_some()) {
                continue;
            }
            progress = true;
            let volume = self.volume_mut(number);
            let volatile = volume.backing.as_ref().is_some_and(|b| b.limits.volatile_cache);
            if volatile && volume.is_writable() {
                volume.salvage = Salvage::Flushing { again: false };
                self.flush_data(number, IoKind::Salvage);
            } else {
                self.end_salvage(number);
            }
        }
        progress
    }

    pub(crate) fn salvaged(&mut self, number: VolumeNumber, result: Result<(), IoError>) {
        if result.is_err() {
            self.local_flush_failed(number);
        }
        match self.volume(number).salvage {
            Salvage::Flushing { again: true } => self.volume_mut(number).salvage = Salvage::Due,
            _ => self.end_salvage(number),
        }
    }

    /// Handshakes may have waited for it.
    fn end_salvage(&mut self, number: VolumeNumber) {
        self.volume_mut(number).salvage = Salvage::Nothing;
        for peer in self.peer_ids() {
            self.exchange_progress(peer);
        }
    }

    /// Takes a writer out of the volume's queues.
    fn leave_queues(&mut self, number: VolumeNumber, writer: Writer) {
        let volume = self.volume_mut(number);
        volume.log_wanted.retain(|w| *w != writer);
        volume.log_pending.retain(|(_, w)| *w != writer);
        volume.ready.retain(|w| *w != writer);
    }

    // ------------------------------------------------------------------ a full activity log

    /// No slot is free. If writes of a peer hold them that only wait for the Primary's PEER_ACK, and their epoch is
    /// still open, tell the Primary that they are stable: it answers with the PEER_ACK (rule AL-4).
    pub(crate) fn log_is_full(&mut self) {
        for peer in self.peer_ids() {
            let entry = self.peer(peer);
            if !entry.is_connected() || entry.epoch_flushes > 0 {
                continue;
            }
            let writes = self.confirmable(peer);
            if !writes.is_empty() {
                self.peer_mut(peer).confirm = writes;
                return self.flush_volumes(peer);
            }
        }
    }

    /// The oldest writes of the open epoch, as far as they are on the disk, that are not confirmed yet.
    fn confirmable(&self, peer: NodeId) -> Vec<Key> {
        let entry = self.peer(peer);
        let Some((epoch, _)) = entry.epochs.confirmable() else { return Vec::new() };
        let write = |key: &Key| self.peer_writes.get(*key).expect("unacked names writes that exist");
        entry
            .unacked
            .iter()
            .copied()
            .filter(|key| write(key).epoch == epoch && !write(key).confirmed)
            .take_while(|key| matches!(write(key).stage, Stage::Done { .. }))
            .collect()
    }

    fn confirm_flushed(&mut self, peer: NodeId) {
        let keys = core::mem::take(&mut self.peer_mut(peer).confirm);
        if self.speaks_84(peer) {
            return self.settle_writes_84(peer, &keys);
        }
        let Some((first, last)) = keys.first().zip(keys.last()) else { return };
        let write = |key: &Key| self.peer_writes.get(*key).expect("unacked names writes that exist");
        let (oldest, youngest, epoch) = (write(first).block_id, write(last).block_id, write(first).epoch);
        let count = keys.len() as u32;
        if !self.peer_mut(peer).epochs.confirmed(epoch, count) {
            return;
        }
        for key in &keys {
            self.peer_writes.get_mut(*key).expect("named above").confirmed = true;
        }
        let message = Message::ConfirmStable { oldest_block_id: oldest, youngest_block_id: youngest, set_size: count };
        self.send(peer, wire::Socket::Control, None, message);
    }
}
