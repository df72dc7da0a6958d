//! The side that gives blocks away: resync blocks to a target, and reads to a peer without good data of its own.
//!
//! Rules: RS-3 a bit goes when the target says that its block is on stable storage, unless it was set again since the
//! block was read. RS-4 a block is read only while no local write to it is in flight, and overlapping writes are held
//! back until the answer is queued: so the answer never carries less than what went before it on the stream. The same
//! holds for a digest, of a block to be verified (VF-2) or to be compared in a resync (RS-10).

use alloc::vec::Vec;
use core::time::Duration;

use types::{ByteRange, DiskState, IoError, NodeId, NodeSet, PayloadId, ReplicationState, VolumeNumber};
use wire::Message;
use wire::digest::{Digest, DigestAlgorithm};
use wire::message::{BlockRequest, Dagtag, DataFlags, DataHead};

use crate::api::{DiskOp, Event};
use crate::digest::DigestOwner;
use crate::planted::{Bug, planted};
use crate::progress::Marks;
use crate::range_owner::RangeOwner;
use crate::resync::REQUEST_BYTES_MAX;
use crate::slab::Key;
use crate::volume::WIRE_BLOCK_BYTES;
use crate::{Engine, IoKind};

/// Reads of one peer that are not answered, or answered and not acknowledged. More is a peer gone wild.
const SERVED_MAX: usize = 16384;

/// A read that we serve to a peer.
pub(crate) struct Served {
    pub peer: NodeId,
    pub volume: VolumeNumber,
    pub range: ByteRange,
    pub block_id: u64,
    pub kind: ServedKind,
    /// What the target has, by its digest: if it is the same here, that is the answer.
    theirs: Option<Digest>,
    /// The request named a position in a Primary's stream, so the answer does.
    with_dagtag: bool,
    reading: bool,
    /// Bits were set for it since it was asked for: the acknowledgement does not disprove them.
    pub superseded: bool,
    orphan: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ServedKind {
    Resync,
    /// A read of the application on the other side.
    Read,
    /// Answered; the target's acknowledgement is due.
    Answered,
    /// The digest of a block that is verified.
    Verify,
}

impl Engine {
    pub(crate) fn begin_source(&mut self, peer: NodeId, number: VolumeNumber, reason: &'static str) {
        let now = self.now;
        let bits = self.volume(number).bits_towards(peer);
        let device = self.device_mut(peer, number);
        device.source_since = Some((now, bits));
        device.marks = Some(Marks::new(now, bits, WIRE_BLOCK_BYTES));
        device.equal_by_csum_bytes = 0;
        self.set_peer_disk(peer, number, DiskState::Inconsistent, "sync target");
        self.set_replication(peer, number, ReplicationState::SyncSource, reason);
        self.send_state(peer, number);
        self.update_pause(peer, number);
        self.event(Event::ResyncStarted { peer, volume: number, source: true, bits });
    }

    /// `theirs`: the digest that came with the request.
    pub(crate) fn serve(
        &mut self,
        peer: NodeId,
        number: VolumeNumber,
        request: BlockRequest,
        kind: ServedKind,
        theirs: Option<Digest>,
    ) {
        let volume = self.volume(number);
        let range = request.range;
        let valid = !range.is_empty() && range.len() <= REQUEST_BYTES_MAX && range.is_within(volume.exposed_bytes);
        if !valid {
            return self.protocol_error(peer, "a read beyond the volume or larger than 1 MiB");
        }
        let enough = match kind {
            ServedKind::Read => volume.disk == DiskState::UpToDate,
            ServedKind::Verify => volume.disk >= DiskState::Inconsistent,
            _ => volume.disk >= DiskState::Outdated,
        };
        if !enough || volume.backing.is_none() {
            let message = if kind == ServedKind::Read { Message::NegDataReply } else { Message::NegRsDataReply };
            return self.send_ack(peer, number, range, request.block_id, message);
        }
        let replication = self.peer(peer).volumes[&number].replication;
        let ready = matches!(replication, ReplicationState::SyncSource | ReplicationState::PausedSyncS);
        let behind = request.dagtag.is_some_and(|d| !self.has_reached(d));
        let ready = if kind == ServedKind::Verify { self.is_verified_by(peer, number) } else { ready };
        if kind != ServedKind::Read && (!ready || behind) {
            return self.send_ack(peer, number, range, request.block_id, Message::RsCancel);
        }
        if self.served.iter().filter(|(_, s)| s.peer == peer).count() >= SERVED_MAX {
            return self.protocol_error(peer, "more reads requested at once than any node asks for");
        }
        let key = self.served.insert(Served {
            peer,
            volume: number,
            range,
            block_id: request.block_id,
            kind,
            theirs,
            with_dagtag: request.dagtag.is_some(),
            reading: false,
            superseded: false,
            orphan: false,
        });
        if planted(Bug::ReadBesideWrite) || self.take_range(number, RangeOwner::Serve(key), range) {
            self.serve_range_granted(number, key);
        }
    }

    /// The write that the request depends on is here. Our own stream is ordered by ranges.
    fn has_reached(&self, dagtag: Dagtag) -> bool {
        if dagtag.tag == 0 || dagtag.node == u32::from(self.me.get()) {
            return true;
        }
        let node = u8::try_from(dagtag.node).ok().and_then(NodeId::new);
        node.and_then(|n| self.peers.get(&n)).is_some_and(|p| p.dagtag_received >= dagtag.tag)
    }

    pub(crate) fn serve_range_granted(&mut self, number: VolumeNumber, key: Key) {
        let Some(served) = self.served.get_mut(key) else { return };
        let range = served.range;
        let usable = self.volumes[&number].is_writable();
        if served.orphan || !usable {
            return self.serve_failed(key);
        }
        served.reading = true;
        self.disk(number, IoKind::Serve { key }, DiskOp::Read { range });
    }

    fn serve_failed(&mut self, key: Key) {
        let served = self.served.remove(key).expect("the caller holds it");
        self.give_range_back(served.volume, RangeOwner::Serve(key), served.range);
        if served.orphan {
            return;
        }
        if let (ServedKind::Verify, Some(algorithm)) = (served.kind, self.agreed_verify(served.peer)) {
            // An error is a difference, as DRBD has it.
            self.send_digest(&served, algorithm.unreadable());
        } else {
            let message = if served.kind == ServedKind::Read { Message::NegDataReply } else { Message::NegRsDataReply };
            self.send_ack(served.peer, served.volume, served.range, served.block_id, message);
        }
    }

    pub(crate) fn serve_done(&mut self, key: Key, result: Result<(), IoError>, payload: Option<PayloadId>) {
        let served = self.served.get_mut(key).expect("it stays while its read is on its way");
        served.reading = false;
        let (number, orphan) = (served.volume, served.orphan);
        if orphan || result.is_err() {
            self.release(payload);
            self.serve_failed(key);
            if result.is_err() {
                self.local_io_failed(number, "read for a peer failed");
            }
            return;
        }
        if let (Some(algorithm), Some(payload)) = (self.digest_wanted(key), payload) {
            return self.digest(payload, algorithm, DigestOwner::Served(key));
        }
        self.serve_data(key, payload);
    }

    /// The block is read for its digest.
    fn digest_wanted(&self, key: Key) -> Option<DigestAlgorithm> {
        let served = self.served.get(key)?;
        match served.kind {
            ServedKind::Verify => self.agreed_verify(served.peer),
            _ => served.theirs.and(self.agreed_csums(served.peer)),
        }
    }

    /// The digest of a block that was read for a peer. Its range is still held, unless the link is gone.
    pub(crate) fn served_digested(&mut self, key: Key, payload: PayloadId, digest: Digest) {
        let Some(served) = self.served.get(key).filter(|served| !served.orphan) else {
            return self.release(Some(payload));
        };
        let (peer, number, range) = (served.peer, served.volume, served.range);
        if served.kind != ServedKind::Verify && served.theirs != Some(digest) {
            return self.serve_data(key, Some(payload));
        }
        self.release(Some(payload));
        let served = self.served.remove(key).expect("looked at it just now");
        if served.kind == ServedKind::Verify {
            self.send_digest(&served, digest);
        } else {
            self.send_ack(peer, number, range, served.block_id, Message::RsIsInSync);
            if !served.superseded {
                self.volume_mut(number).mark_in_sync(peer, range);
            }
            self.device_mut(peer, number).equal_by_csum_bytes += range.len();
            self.update_source_marks(peer, number);
        }
        self.give_range_back(number, RangeOwner::Serve(key), range);
    }

    fn send_digest(&mut self, served: &Served, digest: Digest) {
        let dagtag = if served.with_dagtag { self.told_dagtag(served.peer) } else { None };
        let request = BlockRequest { range: served.range, block_id: served.block_id, dagtag };
        let message = Message::OvReply { request, digest: digest.as_bytes().to_vec() };
        self.send_data(served.peer, Some(served.volume), message, None);
    }

    /// Sends a block that was read for a peer, and lets its range go.
    fn serve_data(&mut self, key: Key, payload: Option<PayloadId>) {
        let served = self.served.get(key).expect("the caller looked at it");
        let (peer, number, range) = (served.peer, served.volume, served.range);
        let (kind, block_id) = (served.kind, served.block_id);
        let head = DataHead { range, block_id, seq: 0, flags: DataFlags(0) };
        self.device_mut(peer, number).sent_bytes += range.len();
        if kind == ServedKind::Read {
            self.served.remove(key);
            self.send_data(peer, Some(number), Message::DataReply(head), payload);
        } else {
            self.served.get_mut(key).expect("looked at it just now").kind = ServedKind::Answered;
            self.send_data(peer, Some(number), Message::RsDataReply(head), payload);
            if planted(Bug::BitClearedWhenServed) {
                self.volume_mut(number).mark_in_sync(peer, range);
            }
        }
        self.release(payload);
        self.give_range_back(number, RangeOwner::Serve(key), range);
    }

    /// The target has a block on stable storage, or could not write it.
    pub(crate) fn resync_acked(
        &mut self,
        peer: NodeId,
        number: VolumeNumber,
        range: ByteRange,
        block_id: u64,
        ok: bool,
    ) {
        let found = self.served.iter().find(|(_, s)| {
            s.peer == peer
                && s.volume == number
                && s.block_id == block_id
                && s.range == range
                && s.kind == ServedKind::Answered
        });
        let Some(key) = found.map(|(key, _)| key) else {
            return self.protocol_error(peer, "RS_WRITE_ACK for a block that was not asked for");
        };
        let served = self.served.remove(key).expect("found just now");
        if ok && !served.superseded {
            self.volume_mut(number).mark_in_sync(peer, range);
        }
        self.update_source_marks(peer, number);
    }

    fn update_source_marks(&mut self, peer: NodeId, number: VolumeNumber) {
        let now = self.now;
        let left = self.volume(number).bits_towards(peer);
        if let Some(marks) = &mut self.device_mut(peer, number).marks {
            marks.update(now, left);
        }
    }

    /// Bits for `range` were set towards all but `keep`: acknowledgements of blocks read before do not disprove them.
    pub(crate) fn supersede_served(&mut self, number: VolumeNumber, keep: NodeSet, range: ByteRange) {
        for served in self.served.values_mut() {
            served.superseded |= served.volume == number && !keep.contains(served.peer) && served.range.overlaps(range);
        }
    }

    /// The target says that it is done (its state is Established). Rule GE-4.
    pub(crate) fn target_finished(&mut self, peer: NodeId, number: VolumeNumber, disk: DiskState) {
        let now = self.now;
        let bits = self.volume(number).bits_towards(peer);
        if disk == DiskState::UpToDate && bits > 0 && !planted(Bug::UnsentWritesForgotten) {
            let text = alloc::format!(
                "node {peer} ended the resync of volume {number} while {bits} blocks are out of sync here"
            );
            return self.protocol_error(peer, &text);
        }
        if disk == DiskState::UpToDate {
            self.source_finished_84(peer, number);
        }
        self.device_mut(peer, number).marks = None;
        let since = self.device_mut(peer, number).source_since.take();
        self.set_replication(peer, number, ReplicationState::Established, "resync finished");
        if disk == DiskState::UpToDate {
            self.settle_crash(number);
        }
        let took = since.map_or(Duration::ZERO, |(at, _)| now.since(at));
        self.event(Event::ResyncFinished { peer, volume: number, source: true, took, failed_blocks: bits });
        if let Some(backing) = &mut self.volume_mut(number).backing {
            backing.writer.want_bitmap();
        }
        self.send_state(peer, number);
        self.start_sweep(number);
    }

    pub(crate) fn served_lost(&mut self, peer: NodeId) {
        let keys: Vec<Key> = self.served.iter().filter(|(_, s)| s.peer == peer).map(|(key, _)| key).collect();
        for key in &keys {
            self.served.get_mut(*key).expect("listed above").orphan = true;
        }
        for key in keys {
            // A range that was given back may have let the next one go on, or end.
            let Some(served) = self.served.get(key).filter(|served| !served.reading) else { continue };
            let answered = served.kind == ServedKind::Answered;
            let (number, range) = (served.volume, served.range);
            self.served.remove(key);
            if !answered {
                self.give_range_back(number, RangeOwner::Serve(key), range);
            }
        }
    }
}
