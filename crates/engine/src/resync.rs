//! The target of a resync: it asks for blocks, writes them, makes them durable, acknowledges them and ends the resync.
//! The other side is `serve`.
//!
//! Rules: RS-3 a bit is cleared when its block is on the target's *stable* storage; acknowledgements of a batch wait
//! for one flush. RS-5 a target that is Primary holds its own writes back from a block between request and write. RS-6
//! the target ends the resync, after the source has every acknowledgement (a ping on the control socket) and after a
//! Primary has told it of every block that it only marked (FLUSH_REQUESTS). RS-10 with `csums-alg` it asks with the
//! digest of its own block; "equal" counts as written, because what the disk had before the resync was flushed.

use alloc::vec::Vec;
use core::time::Duration;

use types::{
    ByteRange, ConnectionState, DiskState, IoError, NodeId, NodeSet, PayloadId, ReplicationState, Role, Time, Uuid,
    VolumeNumber,
};
use wire::Message;
use wire::digest::{Digest, DigestAlgorithm};
use wire::message::{BlockAck, BlockRequest, Dagtag, DataHead};
use wire::version::feature;

use crate::allowance::Allowance;
use crate::api::{CommandId, DiskOp, Event, Refusal};
use crate::connect::End;
use crate::digest::DigestOwner;
use crate::planted::{Bug, planted};
use crate::progress::Marks;
use crate::range_owner::RangeOwner;
use crate::slab::Key;
use crate::state::Deferred;
use crate::volume::WIRE_BLOCK_BYTES;
use crate::{Engine, IoKind};

/// Largest block of one request. Bytes. Source: docs/wire.md "Sizes".
pub(crate) const REQUEST_BYTES_MAX: u64 = 1 << 20;
/// Largest block that is compared by digest: one sector that differs costs all of it, and a digest of more keeps the
/// driver from other work for too long (sha512 of 64 KiB: about 0.1 ms). Bytes.
const CSUM_BYTES_MAX: u64 = 64 << 10;
/// Requested and not yet written. Large enough to fill a fast link, small against `max-buffers`.
const WINDOW_BYTES: u64 = 4 << 20;
/// Written and not yet durable: at most this is acknowledged with one flush.
const FLUSH_BATCH_BYTES: u64 = 8 << 20;
/// Between two passes over the bitmap.
const PASS_PAUSE: Duration = Duration::from_millis(10);
/// Before a cancelled block is asked for again.
const CANCELLED_PAUSE: Duration = Duration::from_millis(100);

/// A resync that this node is the target of.
pub(crate) struct Resync {
    pub phase: ResyncPhase,
    /// Our current UUID when it started.
    start_uuid: Uuid,
    /// Next block to look at.
    position: u64,
    in_flight_bytes: u64,
    requests: u32,
    /// On the disk, not durable.
    written: Vec<Key>,
    written_bytes: u64,
    /// Being made durable, by the flush with this number.
    flushing: Vec<Key>,
    flush: u64,
    failed_blocks: u64,
    pub marks: Marks,
    started: Time,
    allowance: Allowance,
    csums: Csums,
    /// No requests before.
    pub not_before: Time,
}

/// Whether blocks are asked for with their digests (rule RS-10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Csums {
    Off,
    /// The disk makes durable what it had before the resync, with the flush of this number; nothing is asked for before.
    Flushing {
        flush: u64,
        algorithm: DigestAlgorithm,
    },
    On(DigestAlgorithm),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ResyncPhase {
    /// "Inconsistent" is not on disk yet.
    Starting,
    Running,
    /// No bit is left; a Primary source was asked what it has only marked.
    Flushing {
        sequence: u64,
    },
    /// Waiting for the answer to this ping: the source then has all acknowledgements.
    Pinging {
        ping: u64,
    },
    /// The new generation is on its way to disk.
    Adopting,
}

/// One request of a target.
pub(crate) struct ResyncRequest {
    pub peer: NodeId,
    pub volume: VolumeNumber,
    pub range: ByteRange,
    pub payload: Option<PayloadId>,
    /// It is on its way to the source; before, this node's own block is read and digested.
    asked: bool,
    /// With a digest: the source may say that the block is equal.
    by_digest: bool,
    /// It holds or waits for its range.
    ranged: bool,
    /// It holds its range.
    granted: bool,
    pub writing: bool,
    /// Bits were set for it since it was asked for: the block stays out of sync.
    superseded: bool,
    /// The link is gone, or the resync ended before the answer came.
    pub orphan: bool,
}

impl ResyncRequest {
    pub fn awaits_answer(&self) -> bool {
        self.asked && self.payload.is_none() && !self.writing
    }
}

impl Engine {
    // ------------------------------------------------------------------ start

    pub(crate) fn begin_target(&mut self, peer: NodeId, number: VolumeNumber, reason: &'static str) {
        let now = self.now;
        self.adopt_for_resync(peer, number);
        let me = self.me;
        let Some(backing) = &mut self.volume_mut(number).backing else { return };
        // Everybody else counts from what we have now.
        let current = backing.superblock.current_uuid;
        for node in NodeId::all().filter(|n| *n != peer && *n != me) {
            let record = &mut backing.superblock.peers[node.index()];
            if record.slot.is_some() && record.bitmap_uuid.is_zero() && !current.is_just_created() {
                record.bitmap_uuid = current;
            }
        }
        backing.mark_what_comes_from(peer);
        let bits = backing.bits_towards(peer);
        let resync = Resync {
            phase: ResyncPhase::Starting,
            start_uuid: current,
            position: 0,
            in_flight_bytes: 0,
            requests: 0,
            written: Vec::new(),
            written_bytes: 0,
            flushing: Vec::new(),
            flush: 0,
            failed_blocks: 0,
            marks: Marks::new(now, bits, WIRE_BLOCK_BYTES),
            started: now,
            allowance: Allowance::new(now),
            csums: Csums::Off,
            not_before: now,
        };
        let device = self.device_mut(peer, number);
        device.resync = Some(resync);
        device.equal_by_csum_bytes = 0;
        self.timer_is_set();
        self.set_replication(peer, number, ReplicationState::SyncTarget, reason);
        self.set_disk_untold(number, DiskState::Inconsistent, "sync target");
        self.tell_state(number);
        self.update_pause(peer, number);
        self.event(Event::ResyncStarted { peer, volume: number, source: false, bits });
        if planted(Bug::TargetNotInconsistent) {
            self.volume_mut(number).disk = DiskState::UpToDate;
            self.refresh_flags(number);
        }
        self.when_durable(number, Deferred::ResyncReady { peer });
    }

    pub(crate) fn resync_ready(&mut self, peer: NodeId, number: VolumeNumber) {
        if let Some(resync) = &mut self.device_mut(peer, number).resync
            && resync.phase == ResyncPhase::Starting
        {
            resync.phase = ResyncPhase::Running;
            self.prepare_csums(peer, number);
        }
        self.volume_mut(number).pump = true;
    }

    /// Rule RS-10: a block that is equal may lie in the disk's cache alone, written by a resync that was interrupted. So the
    /// cache is made durable first. A block that is being written right now, or a disk that has failed before and may
    /// show what it never kept, is not believed: no digests then.
    fn prepare_csums(&mut self, peer: NodeId, number: VolumeNumber) {
        let Some(algorithm) = self.agreed_csums(peer) else { return };
        let late = |r: &ResyncRequest| r.volume == number && r.writing;
        let volume = self.volume(number);
        if volume.backing.as_ref().is_none_or(|b| b.has_failed) || self.resync_requests.iter().any(|(_, r)| late(r)) {
            return;
        }
        let volatile = volume.backing.as_ref().is_some_and(|b| b.limits.volatile_cache);
        let volatile = volatile && !planted(Bug::CsumNotFlushed);
        let flush = self.flushes_started + 1;
        let Some(resync) = &mut self.device_mut(peer, number).resync else { return };
        if !volatile {
            resync.csums = Csums::On(algorithm);
            return;
        }
        resync.csums = Csums::Flushing { flush, algorithm };
        self.flushes_started = flush;
        self.flush_data(number, IoKind::CsumFlush { peer, flush });
    }

    pub(crate) fn csum_flush_done(
        &mut self,
        peer: NodeId,
        number: VolumeNumber,
        flush: u64,
        result: Result<(), IoError>,
    ) {
        if let Some(resync) = &mut self.device_mut(peer, number).resync
            && let Csums::Flushing { flush: current, algorithm } = resync.csums
            && current == flush
        {
            resync.csums = if result.is_ok() { Csums::On(algorithm) } else { Csums::Off };
        }
        if result.is_err() {
            self.local_flush_failed(number);
        }
        self.volume_mut(number).pump = true;
    }

    /// Running or paused, as the reasons for a pause say.
    pub(crate) fn update_pause(&mut self, peer: NodeId, number: VolumeNumber) {
        use ReplicationState as R;
        let source_is_bad = self.volume(number).disk <= DiskState::Inconsistent;
        let waits = self.waits_for_another_source(peer, number);
        let device = &self.peer(peer).volumes[&number];
        let paused = device.paused_by_user || device.paused_by_peer;
        let to = match device.replication {
            R::SyncSource | R::PausedSyncS if paused || source_is_bad => R::PausedSyncS,
            R::SyncSource | R::PausedSyncS => R::SyncSource,
            R::SyncTarget | R::PausedSyncT if paused || waits => R::PausedSyncT,
            R::SyncTarget | R::PausedSyncT => R::SyncTarget,
            _ => return,
        };
        if to != device.replication {
            let held = matches!(to, R::PausedSyncS | R::PausedSyncT);
            self.set_replication(peer, number, to, if held { "paused" } else { "resumed" });
            self.send_state(peer, number);
        }
    }

    /// Rule RS-9: blocks come from one node at a time.
    pub(crate) fn waits_for_another_source(&self, peer: NodeId, number: VolumeNumber) -> bool {
        self.peer(peer).volumes[&number].is_target()
            && self
                .peers
                .values()
                .any(|p| p.id != peer && p.volumes[&number].replication == ReplicationState::SyncTarget)
    }

    pub(crate) fn pause_sync(&mut self, id: CommandId, number: VolumeNumber, peer: NodeId, pause: bool) {
        if !self.volumes.contains_key(&number) || !self.peers.contains_key(&peer) {
            return self.refuse(id, crate::role::unknown_volume(number));
        }
        let device = self.device_mut(peer, number);
        if device.paused_by_user == pause {
            let (code, rule) = if pause { (-134, "ERR_PAUSE_IS_SET") } else { (-135, "ERR_PAUSE_IS_CLEAR") };
            let state = alloc::format!("resync-suspended by user: {pause}");
            return self.refuse(id, Refusal { code, rule, state, next_step: "nothing to do" });
        }
        device.paused_by_user = pause;
        self.update_pause(peer, number);
        if self.peer(peer).is_connected() {
            self.send_state(peer, number);
        }
        self.volume_mut(number).pump = true;
        self.reply(id, Ok(()));
    }

    // ------------------------------------------------------------------ target: requests

    pub(crate) fn pump_resync(&mut self, number: VolumeNumber) {
        for position in 0..self.peers.len() {
            let (peer, entry) = self.peers.at(position);
            let device = &entry.volumes[&number];
            if !device.is_syncing() && device.resync.is_none() {
                continue;
            }
            self.update_pause(peer, number);
            if self.peer(peer).volumes[&number].replication == ReplicationState::SyncTarget {
                self.make_requests(peer, number);
            }
            self.flush_written(peer, number);
            self.check_target_end(peer, number);
        }
    }

    fn make_requests(&mut self, peer: NodeId, number: VolumeNumber) {
        let now = self.now;
        let rate = u64::from(self.peer(peer).config.resync.max_rate_kib) * 1024;
        let settled = self.volume(number).backing.as_ref().is_some_and(|b| b.is_settled());
        {
            let Some(resync) = &mut self.device_mut(peer, number).resync else { return };
            let waits = resync.phase != ResyncPhase::Running || matches!(resync.csums, Csums::Flushing { .. });
            if waits || !settled || now < resync.not_before {
                return;
            }
            resync.allowance.refill(now, rate, REQUEST_BYTES_MAX);
        }
        loop {
            let resync = self.peer(peer).volumes[&number].resync.as_ref().expect("looked at it above");
            if resync.in_flight_bytes + resync.written_bytes >= WINDOW_BYTES + FLUSH_BATCH_BYTES
                || resync.in_flight_bytes >= WINDOW_BYTES
                || resync.allowance.is_spent(rate)
            {
                return;
            }
            let Some(range) = self.next_dirty(peer, number) else { return };
            self.request_block(peer, number, range);
        }
    }

    /// The next run of set bits, at most one request long. `None`: the end of this pass.
    fn next_dirty(&mut self, peer: NodeId, number: VolumeNumber) -> Option<ByteRange> {
        let held = self.writes_come_past(peer);
        let volume = self.volume(number);
        let backing = volume.backing.as_ref()?;
        let slot = backing.superblock.peers[peer.index()].slot?;
        let block = backing.block_bytes();
        let resync = self.peer(peer).volumes[&number].resync.as_ref()?;
        let mut position = resync.position;
        let bytes_max = if matches!(resync.csums, Csums::On(_)) { CSUM_BYTES_MAX } else { REQUEST_BYTES_MAX };
        let found = loop {
            let Some(first) = backing.bitmap.next_set(slot, position) else { break None };
            let window_end = (first * block / bytes_max + 1) * bytes_max / block;
            let clear = backing.bitmap.next_clear(slot, first).unwrap_or(u64::MAX);
            let end = clear.min(window_end);
            let start_byte = first * block;
            let end_byte = (end * block).min(volume.exposed_bytes);
            position = end;
            if start_byte >= end_byte {
                break None;
            }
            let range = ByteRange::new(start_byte, end_byte - start_byte).expect("inside the volume");
            // These writes go first; this block comes in the next pass.
            if !(held && volume.ranges.conflicts(range)) {
                break Some(range);
            }
        };
        let resync = self.device_mut(peer, number).resync.as_mut()?;
        resync.position = position;
        found
    }

    /// Writes reach this node on another way than the blocks that `source` sends, its own or those of a third node that
    /// is Primary: they wait for a block that was asked for, or an older answer would overwrite them (rule RS-5).
    fn writes_come_past(&self, source: NodeId) -> bool {
        let writes = |p: &crate::peer::Peer| p.id != source && p.is_connected() && p.role == Role::Primary;
        self.is_primary() || self.peers.values().any(writes)
    }

    fn request_block(&mut self, peer: NodeId, number: VolumeNumber, range: ByteRange) {
        let held = self.writes_come_past(peer);
        let key = self.resync_requests.insert(ResyncRequest {
            peer,
            volume: number,
            range,
            payload: None,
            asked: false,
            by_digest: false,
            ranged: held,
            granted: held,
            writing: false,
            superseded: false,
            orphan: false,
        });
        if held {
            let taken = self.take_range(number, RangeOwner::Resync(key), range);
            assert!(taken, "resync asked for {range:?}, which next_dirty found free");
        }
        let resync = self.device_mut(peer, number).resync.as_mut().expect("the caller looked at it");
        resync.in_flight_bytes += range.len();
        resync.requests += 1;
        resync.allowance.spend(range.len());
        if matches!(resync.csums, Csums::On(_)) {
            return self.disk(number, IoKind::ResyncRead { key }, DiskOp::Read { range });
        }
        self.send_request(key, None);
    }

    /// Asks the source for a block, if it differs from what `digest` says.
    fn send_request(&mut self, key: Key, digest: Option<Digest>) {
        let request = self.resync_requests.get_mut(key).expect("the caller looked at it");
        request.asked = true;
        request.by_digest = digest.is_some();
        let (peer, number, range) = (request.peer, request.volume, request.range);
        let request = BlockRequest { range, block_id: key, dagtag: self.reached_dagtag(peer) };
        let message = match digest {
            Some(digest) => Message::CsumRsRequest { request, digest: digest.as_bytes().to_vec() },
            None => Message::RsDataRequest(request),
        };
        self.send_data(peer, Some(number), message, None);
    }

    /// What the Primary has sent here so far, for requests that the other end answers when it has that too. `None`: the peer
    /// does not know such requests.
    pub(crate) fn reached_dagtag(&self, peer: NodeId) -> Option<Dagtag> {
        let with_dagtag = self.peer(peer).link.as_ref().is_some_and(|l| l.features & feature::RESYNC_DAGTAG != 0);
        let primary = self.peers.values().find(|p| p.is_connected() && p.role == Role::Primary);
        let (node, tag) = primary.map_or((peer, 0), |p| (p.id, p.dagtag_received));
        with_dagtag.then_some(Dagtag { node: u32::from(node.get()), tag })
    }

    // ------------------------------------------------------------------ target: the own block's digest

    /// The disk has failed: what it shows may not be what it keeps. Nothing of it is compared any more (rule RS-10).
    pub(crate) fn distrust_disk(&mut self, number: VolumeNumber) {
        if let Some(backing) = &mut self.volume_mut(number).backing {
            backing.has_failed = true;
        }
        for peer in self.peer_ids() {
            if let Some(resync) = &mut self.device_mut(peer, number).resync {
                resync.csums = Csums::Off;
            }
        }
    }

    /// This node's own block was read, to be compared by its digest.
    pub(crate) fn resync_block_read(
        &mut self,
        number: VolumeNumber,
        key: Key,
        result: Result<(), IoError>,
        payload: Option<PayloadId>,
    ) {
        let request = self.resync_requests.get(key).map(|r| (r.peer, r.asked));
        let csums = request.and_then(|(peer, _)| self.peer(peer).volumes[&number].resync.as_ref()).map(|r| r.csums);
        match (request, csums, payload) {
            (Some((_, false)), Some(Csums::On(algorithm)), Some(payload)) if result.is_ok() => {
                return self.digest(payload, algorithm, DigestOwner::Resync(key));
            }
            (Some((_, false)), _, payload) => {
                self.release(payload);
                self.send_request(key, None);
            }
            (_, _, payload) => self.release(payload),
        }
        if result.is_err() {
            self.local_io_failed(number, "a block to be compared in a resync cannot be read");
        }
    }

    pub(crate) fn resync_block_digested(&mut self, key: Key, payload: PayloadId, digest: Digest) {
        self.release(Some(payload));
        if self.resync_requests.get(key).is_some_and(|r| !r.asked) {
            self.send_request(key, Some(digest));
        }
    }

    /// The source has the same. Its bit is gone there; here it goes by the rules for a block that was written.
    pub(crate) fn resync_is_in_sync(&mut self, peer: NodeId, number: VolumeNumber, ack: BlockAck) {
        let ours = |r: &&ResyncRequest| {
            r.peer == peer && r.volume == number && r.range == ack.range && r.awaits_answer() && r.by_digest
        };
        let Some(request) = self.resync_requests.get(ack.block_id).filter(ours) else {
            return self.protocol_error(peer, "RS_IS_IN_SYNC answers no request of ours");
        };
        let (range, superseded, orphan) = (request.range, request.superseded, request.orphan);
        if !orphan {
            if !superseded {
                self.volume_mut(number).mark_in_sync(peer, range);
            }
            let now = self.now;
            let left = self.volume(number).bits_towards(peer);
            let device = self.device_mut(peer, number);
            device.equal_by_csum_bytes += range.len();
            if let Some(resync) = &mut device.resync {
                resync.marks.update(now, left);
            }
        }
        self.end_request(ack.block_id, false);
    }

    // ------------------------------------------------------------------ target: answers

    pub(crate) fn resync_data(
        &mut self,
        peer: NodeId,
        number: VolumeNumber,
        head: DataHead,
        payload: Option<PayloadId>,
    ) {
        let ours =
            |r: &ResyncRequest| r.peer == peer && r.volume == number && r.range == head.range && r.awaits_answer();
        let Some(payload) = payload.filter(|_| self.resync_requests.get(head.block_id).is_some_and(ours)) else {
            self.release(payload);
            return self.protocol_error(peer, "RS_DATA_REPLY answers no request of ours");
        };
        let request = self.resync_requests.get_mut(head.block_id).expect("looked at it just now");
        request.payload = Some(payload);
        if request.orphan {
            return self.end_request(head.block_id, false);
        }
        let (asked, granted) = (core::mem::replace(&mut request.ranged, true), request.granted);
        self.device_mut(peer, number).received_bytes += head.range.len();
        if granted
            || planted(Bug::ResyncBesideWrite)
            || (!asked && self.take_range(number, RangeOwner::Resync(head.block_id), head.range))
        {
            self.resync_range_granted(number, head.block_id);
        }
    }

    /// `primary` became that in the middle of a resync: from here on its writes wait for the blocks that were asked for
    /// before (rule RS-5), but for those asked of itself: it may hold such a block until its write is acknowledged here.
    pub(crate) fn hold_requested_blocks(&mut self, primary: NodeId) {
        let open = |r: &ResyncRequest| r.peer != primary && !r.ranged && !r.orphan && !r.writing && r.payload.is_none();
        let keys: Vec<Key> = self.resync_requests.iter().filter(|(_, r)| open(r)).map(|(key, _)| key).collect();
        for key in keys {
            let request = self.resync_requests.get_mut(key).expect("listed above");
            request.ranged = true;
            let (number, range) = (request.volume, request.range);
            if self.take_range(number, RangeOwner::Resync(key), range) {
                self.resync_range_granted(number, key);
            }
        }
    }

    pub(crate) fn resync_range_granted(&mut self, number: VolumeNumber, key: Key) {
        let request = self.resync_requests.get_mut(key).expect("it holds or wants the range");
        request.granted = true;
        if request.payload.is_none() {
            return;
        }
        let volume = self.volume_mut(number);
        let writable = volume.is_writable();
        let settled = volume.backing.as_ref().is_some_and(|b| b.is_settled());
        if writable && !settled {
            volume.resync_ready.push_back(key);
            volume.pump = true;
            return;
        }
        self.write_resync_block(number, key);
    }

    pub(crate) fn pump_resync_writes(&mut self, number: VolumeNumber) {
        while self.volume(number).backing.as_ref().is_none_or(|b| b.is_settled()) {
            let Some(key) = self.volume_mut(number).resync_ready.pop_front() else { return };
            self.write_resync_block(number, key);
        }
    }

    fn write_resync_block(&mut self, number: VolumeNumber, key: Key) {
        let writable = self.volume(number).is_writable();
        let Some(request) = self.resync_requests.get_mut(key) else { return };
        let (range, peer) = (request.range, request.peer);
        if request.orphan || !writable {
            let payload = request.payload.take();
            self.release(payload);
            return self.end_request(key, false);
        }
        // Third nodes and slots without an owner do not get this block (rule BM-1). Their bits were set when the resync
        // began, but not for what the source has reported since.
        if self.mark_all_but(number, NodeSet::only(peer), range) > 0 {
            let volume = self.volume_mut(number);
            volume.resync_ready.push_front(key);
            let backing = volume.backing.as_mut().expect("a writable volume has its disk");
            backing.writer.want_pages_first();
            backing.touch();
            return;
        }
        let request = self.resync_requests.get_mut(key).expect("looked at it just now");
        request.writing = true;
        let payload = request.payload.take().expect("a block that is written has arrived");
        self.disk(number, IoKind::ResyncWrite { peer, key }, DiskOp::Write { range, payload, fua: false });
        self.release(Some(payload));
    }

    pub(crate) fn resync_write_done(
        &mut self,
        peer: NodeId,
        number: VolumeNumber,
        key: Key,
        result: Result<(), IoError>,
    ) {
        let request = self.resync_requests.get(key).expect("it stays while its write is on its way");
        let (range, orphan) = (request.range, request.orphan);
        self.give_range_back(number, RangeOwner::Resync(key), range);
        self.resync_requests.get_mut(key).expect("looked at it just now").ranged = false;
        if orphan {
            return self.end_request(key, false);
        }
        if result.is_err() {
            self.send_ack(peer, number, range, self.resync_id(peer, key), Message::RsNegAck);
            self.end_request(key, true);
            return self.local_io_failed(number, "resync write failed");
        }
        if let Some(resync) = &mut self.device_mut(peer, number).resync {
            resync.in_flight_bytes -= range.len();
            resync.written_bytes += range.len();
            resync.written.push(key);
        }
        self.volume_mut(number).pump = true;
    }

    /// Makes written blocks durable when enough have come together or nothing else is on its way.
    fn flush_written(&mut self, peer: NodeId, number: VolumeNumber) {
        let volatile = self.volume(number).backing.as_ref().is_some_and(|b| b.limits.volatile_cache);
        let volatile = volatile && !planted(Bug::ResyncNotFlushed);
        let next = self.flushes_started + 1;
        let Some(resync) = &mut self.device_mut(peer, number).resync else { return };
        let due = resync.written_bytes >= FLUSH_BATCH_BYTES || resync.in_flight_bytes == 0 || !volatile;
        if resync.written.is_empty() || !resync.flushing.is_empty() || !due {
            return;
        }
        resync.flushing = core::mem::take(&mut resync.written);
        resync.flush = next;
        if volatile {
            self.flushes_started = next;
            self.flush_data(number, IoKind::ResyncFlush { peer, flush: next });
        } else {
            self.acknowledge_flushed(peer, number);
        }
    }

    pub(crate) fn resync_flush_done(
        &mut self,
        peer: NodeId,
        number: VolumeNumber,
        flush: u64,
        result: Result<(), IoError>,
    ) {
        // A flush of a resync that ended says nothing about blocks written after it began.
        let current = self.peer(peer).volumes[&number].resync.as_ref().is_some_and(|r| r.flush == flush);
        match result {
            Ok(()) if current => self.acknowledge_flushed(peer, number),
            Ok(()) => {}
            Err(_) => {
                if current {
                    self.give_flushed_up(peer, number);
                }
                self.local_flush_failed(number);
            }
        }
    }

    /// These blocks may not be on stable storage: they stay out of sync, as if they could not be written.
    fn give_flushed_up(&mut self, peer: NodeId, number: VolumeNumber) {
        let Some(resync) = &mut self.device_mut(peer, number).resync else { return };
        let keys = core::mem::take(&mut resync.flushing);
        for key in keys {
            let range = self.resync_requests.remove(key).expect("it stays until it is acknowledged").range;
            self.send_ack(peer, number, range, self.resync_id(peer, key), Message::RsNegAck);
            if let Some(resync) = &mut self.device_mut(peer, number).resync {
                resync.written_bytes -= range.len();
                resync.requests -= 1;
                resync.failed_blocks += range.len() / WIRE_BLOCK_BYTES;
            }
        }
        self.volume_mut(number).pump = true;
    }

    /// Rule RS-3: these blocks are on stable storage; the bits may go on both sides.
    fn acknowledge_flushed(&mut self, peer: NodeId, number: VolumeNumber) {
        let Some(resync) = &mut self.device_mut(peer, number).resync else { return };
        let keys = core::mem::take(&mut resync.flushing);
        for key in keys {
            let request = self.resync_requests.get(key).expect("it stays until it is acknowledged");
            let (range, superseded) = (request.range, request.superseded);
            if !superseded {
                self.volume_mut(number).mark_in_sync(peer, range);
            }
            let now = self.now;
            let left = self.volume(number).bits_towards(peer);
            let device = self.device_mut(peer, number);
            device.resynced_bytes += range.len();
            if let Some(resync) = &mut device.resync {
                resync.written_bytes -= range.len();
                resync.requests -= 1;
                resync.marks.update(now, left);
            }
            let id = self.resync_id(peer, key);
            self.send_ack(peer, number, range, id, Message::RsWriteAck);
            self.resync_requests.remove(key);
        }
        self.volume_mut(number).pump = true;
    }

    /// The request ends without its block. `failed`: it counts as a block that could not be synced.
    fn end_request(&mut self, key: Key, failed: bool) {
        let Some(request) = self.resync_requests.remove(key) else { return };
        self.release(request.payload);
        if request.ranged {
            self.give_range_back(request.volume, RangeOwner::Resync(key), request.range);
        }
        if request.orphan {
            return;
        }
        if let Some(resync) = &mut self.device_mut(request.peer, request.volume).resync {
            resync.in_flight_bytes -= request.range.len();
            resync.requests -= 1;
            if failed {
                resync.failed_blocks += request.range.len() / WIRE_BLOCK_BYTES;
            }
        }
        self.volume_mut(request.volume).pump = true;
    }

    /// The source did not send the block: `failed` it could not, otherwise not now.
    pub(crate) fn resync_refused(&mut self, peer: NodeId, number: VolumeNumber, key: Key, failed: bool) {
        let ours = |r: &ResyncRequest| r.peer == peer && r.volume == number && r.awaits_answer();
        if !self.resync_requests.get(key).is_some_and(ours) {
            return self.protocol_error(peer, "a resync answer matches no request of ours");
        }
        self.end_request(key, failed);
        let pause = self.now + CANCELLED_PAUSE;
        if let Some(resync) = &mut self.device_mut(peer, number).resync
            && !failed
        {
            resync.not_before = pause;
        }
    }

    /// The peer changed `range` and did not send it.
    pub(crate) fn out_of_sync_received(&mut self, peer: NodeId, number: VolumeNumber, range: ByteRange) {
        if !range.is_within(self.volume(number).exposed_bytes) {
            return self.protocol_error(peer, "OUT_OF_SYNC beyond the end of the volume");
        }
        self.supersede_blocks(number, NodeSet::only(peer).complement(), range);
        self.volume_mut(number).mark_out_of_sync(peer, range);
        self.volume_mut(number).pump = true;
    }

    /// Bits for `range` in every slot but those of `keep`, also for blocks of a resync that are on their way.
    /// Returns how many were newly set.
    pub(crate) fn mark_all_but(&mut self, number: VolumeNumber, keep: NodeSet, range: ByteRange) -> u64 {
        let newly = self.volume_mut(number).backing.as_mut().map_or(0, |backing| backing.mark_all_but(keep, range));
        self.supersede_blocks(number, keep, range);
        newly
    }

    /// Rule RS-3: the acknowledgement of a block proves nothing against bits that were set after it was read.
    fn supersede_blocks(&mut self, number: VolumeNumber, keep: NodeSet, range: ByteRange) {
        for request in self.resync_requests.values_mut() {
            request.superseded |=
                request.volume == number && !keep.contains(request.peer) && request.range.overlaps(range);
        }
        self.supersede_served(number, keep, range);
    }

    // ------------------------------------------------------------------ target: end

    fn check_target_end(&mut self, peer: NodeId, number: VolumeNumber) {
        let bits = self.volume(number).bits_towards(peer);
        let primary_source = self.peer(peer).role == Role::Primary;
        let can_flush = self.peer(peer).link.as_ref().is_some_and(|l| l.protocol >= 123);
        let sequence = self.peer(peer).flush_sequence + 1;
        let pause = self.now + PASS_PAUSE;
        if self.peer(peer).volumes[&number].replication != ReplicationState::SyncTarget {
            return;
        }
        let Some(resync) = &mut self.device_mut(peer, number).resync else { return };
        if resync.phase != ResyncPhase::Running || resync.requests > 0 {
            return;
        }
        if bits > 0 {
            if resync.failed_blocks > 0 {
                return self.resync_failed(peer, number);
            }
            if resync.position > 0 {
                // Another pass, after a pause: what is left was reported meanwhile, or our own writes hold it now.
                resync.position = 0;
                resync.not_before = pause;
            }
            return;
        }
        if primary_source && can_flush {
            resync.phase = ResyncPhase::Flushing { sequence };
            self.peer_mut(peer).flush_sequence = sequence;
            return self.send_data(peer, None, Message::FlushRequests(sequence), None);
        }
        self.ping_before_end(peer, number);
    }

    pub(crate) fn flush_requests_acked(&mut self, peer: NodeId, sequence: u64) {
        for number in self.volume_numbers() {
            let Some(resync) = &mut self.device_mut(peer, number).resync else { continue };
            // The newest answer covers all that were asked before it: volumes ask one by one.
            match resync.phase {
                ResyncPhase::Flushing { sequence: asked } if asked <= sequence => {}
                _ => continue,
            }
            if self.volume(number).bits_towards(peer) > 0 {
                let resync = self.device_mut(peer, number).resync.as_mut().expect("looked at it just now");
                resync.phase = ResyncPhase::Running;
                resync.position = 0;
                self.volume_mut(number).pump = true;
            } else {
                self.ping_before_end(peer, number);
            }
        }
    }

    fn ping_before_end(&mut self, peer: NodeId, number: VolumeNumber) {
        let ping = self.ping(peer);
        if let Some(resync) = &mut self.device_mut(peer, number).resync {
            resync.phase = ResyncPhase::Pinging { ping };
        }
    }

    /// The source answered a ping: it has processed every acknowledgement that went before.
    pub(crate) fn resync_ping_acked(&mut self, peer: NodeId, answered: u64) {
        for number in self.volume_numbers() {
            let Some(resync) = &mut self.device_mut(peer, number).resync else { continue };
            match resync.phase {
                ResyncPhase::Pinging { ping } if ping <= answered => {}
                _ => continue,
            }
            if self.volume(number).bits_towards(peer) > 0 {
                let resync = self.device_mut(peer, number).resync.as_mut().expect("looked at it just now");
                resync.phase = ResyncPhase::Running;
                resync.position = 0;
                self.volume_mut(number).pump = true;
                continue;
            }
            self.adopt_generation(peer, number);
        }
    }

    /// All blocks equal the source's: its generation becomes ours, on disk before anybody is told (rule GE-6).
    fn adopt_generation(&mut self, peer: NodeId, number: VolumeNumber) {
        if self.speaks_84(peer) {
            return self.adopt_84(peer, number);
        }
        let (me, role) = (self.me, self.role);
        let device = self.device_mut(peer, number);
        let theirs = device.uuids.clone();
        let source_current = device.current_uuid;
        let resync = device.resync.as_mut().expect("the caller looked at it");
        resync.phase = ResyncPhase::Adopting;
        let start = resync.start_uuid;
        let Some(backing) = &mut self.volume_mut(number).backing else { return };
        if let Some(theirs) = &theirs {
            for uuid in theirs.history.iter().rev().chain(theirs.bitmap.iter()) {
                if !uuid.same(Uuid::UNKNOWN) {
                    backing.superblock.push_history(*uuid);
                }
            }
        }
        for node in NodeId::all().filter(|n| *n != me) {
            let behind_source =
                node != peer && theirs.as_ref().and_then(|t| t.bitmap_of(node)).is_some_and(|u| !u.is_zero());
            if behind_source {
                backing.superblock.peers[node.index()].bitmap_uuid = start;
            } else if backing.superblock.peers[node.index()].slot.is_some() {
                backing.clear_all_towards(node);
            }
        }
        let fresh = source_current.with_primary_bit(role == Role::Primary);
        let old = core::mem::replace(&mut backing.superblock.current_uuid, fresh);
        // DRBD forgets it here. Whoever still has it would be a stranger (invariant U5).
        backing.superblock.push_history(old);
        // A disk that calls itself UpToDate and still has the bits is taken for one that knows of differences.
        backing.writer.want_pages_first();
        // Bits also went for blocks that the application wrote meanwhile: nothing has flushed these (rule RS-3).
        backing.writer.want_data_first();
        backing.touch();
        self.when_durable(number, Deferred::ResyncFinished { peer });
    }

    pub(crate) fn announce_resync_finished(&mut self, peer: NodeId, number: VolumeNumber) {
        let now = self.now;
        let source_disk = self.peer(peer).volumes[&number].disk;
        let Some(resync) = self.device_mut(peer, number).resync.take() else { return };
        self.volume_mut(number).crashed_primary = false;
        let disk = if source_disk >= DiskState::Outdated && source_disk != DiskState::DUnknown {
            source_disk
        } else {
            DiskState::Inconsistent
        };
        let volume = self.volume_mut(number);
        volume.lost_received &= disk != DiskState::UpToDate;
        let from = core::mem::replace(&mut volume.disk, disk);
        self.event(Event::Disk { volume: number, from, to: disk, reason: "resync finished" });
        self.set_replication(peer, number, ReplicationState::Established, "resync finished");
        self.refresh_flags(number);
        self.leave_other_sources(number);
        for other in self.peers_to_tell() {
            self.send_uuids(other, number, 0, None);
            self.send_state(other, number);
        }
        let took = now.since(resync.started);
        self.event(Event::ResyncFinished { peer, volume: number, source: false, took, failed_blocks: 0 });
        if let Some(backing) = &mut self.volume_mut(number).backing {
            backing.writer.want_bitmap();
        }
        self.pump_all();
    }

    /// What another node was to give us was decided by what we had before: those connections compare again.
    fn leave_other_sources(&mut self, number: VolumeNumber) {
        use ReplicationState as R;
        for peer in self.peer_ids() {
            let fetching =
                matches!(self.peer(peer).volumes[&number].replication, R::SyncTarget | R::PausedSyncT | R::WFBitMapT);
            if fetching {
                let text = "the data came from another node meanwhile";
                self.end_connection(peer, End::Retry(Duration::ZERO), ConnectionState::Unconnected, text);
            }
        }
    }

    /// Some blocks could not be synced: the disk stays Inconsistent, the bits stay set.
    fn resync_failed(&mut self, peer: NodeId, number: VolumeNumber) {
        let now = self.now;
        let Some(resync) = self.device_mut(peer, number).resync.take() else { return };
        self.set_replication(peer, number, ReplicationState::Established, "resync ended with failed blocks");
        self.send_state(peer, number);
        let (took, failed_blocks) = (now.since(resync.started), resync.failed_blocks);
        self.event(Event::ResyncFinished { peer, volume: number, source: false, took, failed_blocks });
    }

    // ------------------------------------------------------------------ losses

    pub(crate) fn resync_lost(&mut self, peer: NodeId) {
        for number in self.volume_numbers() {
            self.abort_resync(peer, number, "connection lost");
        }
    }

    pub(crate) fn abort_resyncs(&mut self, number: VolumeNumber, reason: &'static str) {
        for peer in self.peer_ids() {
            self.abort_resync(peer, number, reason);
        }
    }

    /// Ends a resync before its end. Bits and identifiers stay as they are: the next one goes on from here.
    pub(crate) fn abort_resync(&mut self, peer: NodeId, number: VolumeNumber, reason: &'static str) {
        let answers_come = self.peer(peer).link.is_some();
        let device = self.device_mut(peer, number);
        device.resync = None;
        device.exchange = None;
        device.source_since = None;
        device.marks = None;
        let keys: Vec<Key> = self
            .resync_requests
            .iter()
            .filter(|(_, r)| r.peer == peer && r.volume == number)
            .map(|(key, _)| key)
            .collect();
        for key in keys {
            let request = self.resync_requests.get_mut(key).expect("listed above");
            request.orphan = true;
            if request.writing && request.ranged {
                continue;
            }
            // Its answer is still on the way: it waits for that, without its range.
            if answers_come && request.awaits_answer() {
                let range = request.range;
                if core::mem::take(&mut request.ranged) {
                    self.give_range_back(number, RangeOwner::Resync(key), range);
                }
                continue;
            }
            self.end_request(key, false);
        }
        self.deferred.retain(|(v, _, action)| {
            !(*v == number
                && matches!(action, Deferred::ResyncReady { peer: p } | Deferred::ResyncFinished { peer: p } if *p == peer))
        });
        let replication = self.peer(peer).volumes[&number].replication;
        if matches!(replication, ReplicationState::SyncSource | ReplicationState::PausedSyncS) {
            let volume = self.volume_mut(number);
            volume.may_be_equal = volume.may_be_equal.with(peer);
        }
        if replication > ReplicationState::Established {
            self.set_replication(peer, number, ReplicationState::Established, reason);
        }
    }
}

impl Resync {
    /// When requests may go on, if they wait for the rate or for a pause.
    pub fn wake_at(&self, rate: u64) -> Option<Time> {
        if self.phase != ResyncPhase::Running {
            return None;
        }
        let at = self.allowance.ready_at(rate).map_or(self.not_before, |at| at.max(self.not_before));
        (at > Time::ZERO).then_some(at)
    }

    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }
}
