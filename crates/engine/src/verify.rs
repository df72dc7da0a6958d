//! Online verify: two nodes compare their copies of a volume while it is in use, block by block, by digests.
//!
//! ```text
//! VerifyS  OV_REQUEST -> VerifyT reads its block, OV_REPLY (digest) -> VerifyS reads its own, compares, OV_RESULT
//! ```
//! Nothing is repaired: a block that differs is out of sync from then on, on both ends, and the next resync fetches it.
//! What the rules are for: a difference is real, and no write of an application made it.
//!
//! Rules: VF-1 a verify never clears a bit. VF-2 the target holds overlapping writes back from its read until the digest is
//! queued behind what went before it on the stream. VF-3 a source that is Primary holds its own writes to a block back from
//! the request until it has compared; any other one takes its turn behind the writes that came before the digest. VF-4 where
//! neither orders the writes (a third node's, one of a node promoted meanwhile) a difference counts as skipped. VF-5 the
//! source ends a verify, when the target has every result (a ping on the same socket).
//!
//! Other designs: to skip each block that is written meanwhile (DRBD's) leaves blocks unverified exactly where much is
//! written; to compare again until it is equal proves nothing about a block that differs.

use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use types::{ByteRange, DiskState, IoError, NodeId, PayloadId, ReplicationState, Role, Time, VolumeNumber};
use wire::Message;
use wire::codec::{ID_SYNCER, ov_result};
use wire::digest::Digest;
use wire::message::{BlockAck, BlockRequest, Dagtag};

use crate::allowance::Allowance;
use crate::api::{CommandId, DiskOp, Event, PeerConfig, Refusal, VerifyStatus};
use crate::digest::DigestOwner;
use crate::planted::{Bug, planted};
use crate::progress::Marks;
use crate::range_owner::RangeOwner;
use crate::serve::ServedKind;
use crate::slab::Key;
use crate::twophase::Change;
use crate::volume::WIRE_BLOCK_BYTES;
use crate::{Engine, IoKind};

/// Blocks asked for and not compared. A MiB at once fills a fast link; on a Primary so many blocks are held for a round trip.
const WINDOW_BLOCKS: u64 = 256;
/// In the block id of a verify's packets, beside the key: its answers are told from those to a resync. No key has this bit of
/// its index set.
const ID_BIT: u64 = 1 << 31;
/// Runs of blocks that differ, as they are named in the log. The rest is counted.
const RUNS_TOLD_MAX: u32 = 100;

/// What of a volume is verified. Bytes. `start` `None`: where the last one was interrupted; `stop` `None`: to the end.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct VerifySpan {
    pub start: Option<u64>,
    pub stop: Option<u64>,
}

/// A verify under way, on either end.
///
/// Invariant: start <= position <= stop, all but `stop` multiples of the block; compared <= blocks from start to position.
pub(crate) struct Verify {
    /// This node asks and compares (VerifyS).
    driving: bool,
    /// Bytes. On the target known with the first request.
    start: u64,
    stop: u64,
    /// The next block to ask for; on the target the end of what was asked for.
    position: u64,
    /// Blocks asked for and not compared.
    open: u64,
    /// Blocks with a result.
    compared: u64,
    different: u64,
    skipped: u64,
    /// The last blocks that differ, as far as they touch each other.
    run: Option<ByteRange>,
    runs_told: u32,
    marks: Marks,
    started: Time,
    allowance: Allowance,
    /// When a block was asked for or compared last.
    moved: Time,
    /// All is compared: the target has all results once this ping is answered.
    ping: Option<u64>,
    /// The peer has said that it takes part, so that its next other state ends it.
    peer_takes_part: bool,
    /// Both ends agree that it is over.
    complete: bool,
}

/// One block, on the source.
pub(crate) struct VerifyBlock {
    pub peer: NodeId,
    pub volume: VolumeNumber,
    pub range: ByteRange,
    stage: Stage,
    /// It holds or waits for its range.
    ranged: bool,
    /// Nothing orders the writes of somebody else: a difference would prove nothing (rule VF-4).
    doubtful: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// On a Primary: its own writes to the block go first.
    Waiting,
    Asked,
    /// The target's digest is here, and its turn behind the writes before it has not come.
    Answered(Digest),
    /// Our own block is read and digested.
    Comparing(Digest),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    InSync,
    OutOfSync,
    Skipped,
}

impl VerifyBlock {
    pub fn is_asked(&self) -> bool {
        self.stage == Stage::Asked
    }
}

impl Engine {
    // ------------------------------------------------------------------ command and agreement

    pub(crate) fn verify(
        &mut self,
        id: CommandId,
        volume: VolumeNumber,
        peer: NodeId,
        start: Option<u64>,
        stop: Option<u64>,
    ) {
        if !self.volumes.contains_key(&volume) || !self.peers.contains_key(&peer) {
            return self.refuse(id, crate::role::unknown_volume(volume));
        }
        match self.check_verify(volume, peer) {
            Ok(()) => self.want_change(Change::Verify { volume, peer, span: VerifySpan { start, stop } }, Some(id)),
            Err(refusal) => self.refuse(id, refusal),
        }
    }

    /// The rules for a verify that this node drives, checked when it is asked for, when it is prepared and when all agreed.
    pub(crate) fn check_verify(&self, number: VolumeNumber, peer: NodeId) -> Result<(), Refusal> {
        let device = &self.peer(peer).volumes[&number];
        let refusal = |code, rule, state, next_step| Err(Refusal { code, rule, state, next_step });
        if !self.peer(peer).is_connected() || device.replication < ReplicationState::Established {
            let state = format!("node {peer}: connection:{}", self.peer(peer).connection);
            return refusal(-15, "SS_NEED_CONNECTION", state, "connect the peer first");
        }
        if self.busy_with_blocks(number) || device.replication != ReplicationState::Established {
            let state = format!("volume {number} towards node {peer}: replication:{}", device.replication);
            return refusal(-8, "SS_RESYNC_RUNNING", state, "wait for the end of the resync or verify");
        }
        if !can_be_verified(self.volume(number).disk) {
            let state = format!("volume {number}: disk:{}", self.volume(number).disk);
            return refusal(-4, "SS_NO_LOCAL_DISK", state, "attach this node's disk first");
        }
        if !can_be_verified(device.disk) {
            let state = format!("volume {number}: node {peer} has disk:{}", device.disk);
            return refusal(-5, "SS_NO_REMOTE_DISK", state, "attach that node's disk first");
        }
        if self.agreed_verify(peer).is_none() {
            let state =
                format!("verify-alg is {:?} here, not the same on node {peer}", self.peer(peer).config.verify_alg);
            let next_step = "set verify-alg to the same hash on both nodes and adjust";
            return refusal(-14, "SS_NO_VERIFY_ALG", state, next_step);
        }
        Ok(())
    }

    /// What this node says when a peer wants to verify.
    pub(crate) fn allows_verify(&self, number: VolumeNumber, peer: NodeId) -> bool {
        self.peers.contains_key(&peer) && self.check_verify(number, peer).is_ok()
    }

    /// Blocks of the volume are fetched, given away or compared, with whomever.
    fn busy_with_blocks(&self, number: VolumeNumber) -> bool {
        let busy = |p: &crate::peer::Peer| p.volumes[&number].replication > ReplicationState::Established;
        self.peers.values().any(busy)
    }

    pub(crate) fn begin_verify(&mut self, peer: NodeId, number: VolumeNumber, driving: bool, span: VerifySpan) {
        let (now, size) = (self.now, self.volume(number).exposed_bytes);
        let device = self.device_mut(peer, number);
        if device.replication != ReplicationState::Established {
            // Something else began since it was agreed on: this end's state tells the other one.
            return self.tell_part_in_verify(peer, number);
        }
        let kept = if device.verify_position < size { device.verify_position } else { 0 };
        // Whole blocks, whatever was asked for; only the last one of the volume may be shorter.
        let stop =
            span.stop.map_or(size, |stop| stop.div_ceil(WIRE_BLOCK_BYTES).saturating_mul(WIRE_BLOCK_BYTES).min(size));
        let start = if driving { span.start.unwrap_or(kept) } else { 0 };
        let start = (start - start % WIRE_BLOCK_BYTES).min(stop);
        let verify = Verify {
            driving,
            start,
            stop,
            position: start,
            open: 0,
            compared: 0,
            different: 0,
            skipped: 0,
            run: None,
            runs_told: 0,
            marks: Marks::new(now, (stop - start).div_ceil(WIRE_BLOCK_BYTES), WIRE_BLOCK_BYTES),
            started: now,
            allowance: Allowance::new(now),
            moved: now,
            ping: None,
            peer_takes_part: false,
            complete: false,
        };
        device.verify = Some(verify);
        self.timer_is_set();
        let to = if driving { ReplicationState::VerifyS } else { ReplicationState::VerifyT };
        self.set_replication(peer, number, to, "verify");
        self.event(Event::VerifyStarted { peer, volume: number, driving, from: start, to: stop });
        self.tell_part_in_verify(peer, number);
    }

    /// A DRBD 9 says at the beginning that it takes part, an 8.4 does not.
    fn tell_part_in_verify(&mut self, peer: NodeId, number: VolumeNumber) {
        if !self.speaks_84(peer) {
            self.send_state(peer, number);
        }
    }

    // ------------------------------------------------------------------ source: requests

    pub(crate) fn pump_verify(&mut self, number: VolumeNumber) {
        for position in 0..self.peers.len() {
            let (peer, entry) = self.peers.at(position);
            if entry.volumes[&number].replication == ReplicationState::VerifyS {
                self.give_up_stuck_verify(peer, number);
                self.ask_for_digests(peer, number);
                self.check_verify_end(peer, number);
            }
        }
    }

    /// A target whose disk hangs answers pings and nothing else. The blocks that wait for it are held back from this node's
    /// application, which under protocols A and B waits for no peer's disk otherwise.
    fn give_up_stuck_verify(&mut self, peer: NodeId, number: VolumeNumber) {
        let (now, patience) = (self.now, verify_patience(&self.peer(peer).config));
        let stuck = |v: &Verify| v.open > 0 && v.moved + patience <= now;
        if self.peer(peer).volumes[&number].verify.as_ref().is_some_and(stuck) {
            self.set_replication(peer, number, ReplicationState::Established, "no answer to a verify in time");
            self.send_state(peer, number);
        }
    }

    fn ask_for_digests(&mut self, peer: NodeId, number: VolumeNumber) {
        let now = self.now;
        let rate = u64::from(self.peer(peer).config.resync.max_rate_kib) * 1024;
        if let Some(verify) = &mut self.device_mut(peer, number).verify {
            verify.allowance.refill(now, rate, WIRE_BLOCK_BYTES);
        }
        while let Some(range) = self.next_to_verify(peer, number, rate) {
            let held = self.is_primary() && !planted(Bug::VerifyNotHeld);
            let stage = if held { Stage::Waiting } else { Stage::Asked };
            let block = VerifyBlock { peer, volume: number, range, stage, ranged: held, doubtful: false };
            let key = self.verify_blocks.insert(block);
            if !held || self.take_range(number, RangeOwner::Verify(key), range) {
                self.ask_for_digest(key);
            }
        }
    }

    fn next_to_verify(&mut self, peer: NodeId, number: VolumeNumber, rate: u64) -> Option<ByteRange> {
        let now = self.now;
        let verify = self.device_mut(peer, number).verify.as_mut()?;
        if !verify.may_ask() || verify.allowance.is_spent(rate) {
            return None;
        }
        let len = WIRE_BLOCK_BYTES.min(verify.stop - verify.position);
        let range = ByteRange::new(verify.position, len).expect("inside the volume");
        verify.position = range.end();
        verify.open += 1;
        verify.moved = now;
        verify.allowance.spend(len);
        Some(range)
    }

    fn ask_for_digest(&mut self, key: Key) {
        let block = self.verify_blocks.get_mut(key).expect("the caller looked at it");
        block.stage = Stage::Asked;
        let (peer, number, range) = (block.peer, block.volume, block.range);
        let request = BlockRequest { range, block_id: Self::verify_id(key), dagtag: self.told_dagtag(peer) };
        self.send_data(peer, Some(number), Message::OvRequest(request), None);
    }

    /// The position in the Primary's stream that the other end has to have reached before it reads. A Primary names what it has
    /// sent it: nothing else touches a block that it holds.
    pub(crate) fn told_dagtag(&self, peer: NodeId) -> Option<Dagtag> {
        let reached = self.reached_dagtag(peer)?;
        if !self.is_primary() {
            return Some(reached);
        }
        Some(Dagtag { node: u32::from(self.me.get()), tag: self.peer(peer).dagtag_sent.unwrap_or(0) })
    }

    pub(crate) fn verify_range_granted(&mut self, number: VolumeNumber, key: Key) {
        // One that ends in this moment gives its range back next.
        let Some(block) = self.verify_blocks.get(key) else { return };
        match block.stage {
            Stage::Waiting => self.ask_for_digest(key),
            Stage::Answered(digest) => self.read_to_compare(number, key, digest),
            Stage::Asked | Stage::Comparing(_) => unreachable!("{key:#x} has its range already"),
        }
    }

    // ------------------------------------------------------------------ source: answers

    /// An answer that finds no block is one to a verify that ended.
    fn verify_block_of(&self, peer: NodeId, number: VolumeNumber, range: ByteRange, id: u64) -> Option<Key> {
        let key = id & !ID_BIT;
        let block = self.verify_blocks.get(key)?;
        let ours = block.peer == peer && block.volume == number && block.range == range;
        (ours && block.is_asked()).then_some(key)
    }

    /// The block id that stands for `key` in a verify's packets.
    pub(crate) fn verify_id(key: Key) -> u64 {
        key | ID_BIT
    }

    /// It answers a request of a verify.
    pub(crate) fn is_verify_block(&self, ack: BlockAck) -> bool {
        ack.block_id & ID_BIT != 0 && ack.block_id != ID_SYNCER
    }

    pub(crate) fn verify_replied(
        &mut self,
        peer: NodeId,
        number: VolumeNumber,
        reply: BlockRequest,
        digest: Option<Digest>,
    ) {
        let Some(key) = self.verify_block_of(peer, number, reply.range, reply.block_id) else { return };
        let Some(digest) = digest else { return self.protocol_error(peer, "OV_REPLY with a digest that is too long") };
        let overtaken = self.is_overtaken(peer, reply.dagtag);
        if let Some(verify) = &mut self.device_mut(peer, number).verify {
            verify.peer_takes_part = true;
        }
        let block = self.verify_blocks.get_mut(key).expect("looked at it just now");
        block.doubtful |= overtaken;
        block.stage = Stage::Answered(digest);
        let has_range = core::mem::replace(&mut block.ranged, true);
        if has_range || self.take_range(number, RangeOwner::Verify(key), reply.range) {
            self.read_to_compare(number, key, digest);
        }
    }

    /// A kernel's Primary lets the block go when it has the digest, before that is sent: what it wrote in between came first.
    fn is_overtaken(&self, peer: NodeId, dagtag: Option<Dagtag>) -> bool {
        let entry = self.peer(peer);
        let Some(dagtag) = dagtag.filter(|_| !entry.is_replicad() && entry.role == Role::Primary) else { return false };
        dagtag.node == u32::from(peer.get()) && dagtag.tag < entry.dagtag_received
    }

    fn read_to_compare(&mut self, number: VolumeNumber, key: Key, digest: Digest) {
        let block = self.verify_blocks.get_mut(key).expect("the caller looked at it");
        block.stage = Stage::Comparing(digest);
        let range = block.range;
        if !self.volume(number).is_writable() {
            return self.conclude(key, Outcome::Skipped);
        }
        self.disk(number, IoKind::VerifyRead { key }, DiskOp::Read { range });
    }

    pub(crate) fn verify_block_read(
        &mut self,
        number: VolumeNumber,
        key: Key,
        result: Result<(), IoError>,
        payload: Option<PayloadId>,
    ) {
        let algorithm = self.verify_blocks.get(key).map(|block| self.agreed_verify(block.peer));
        match (algorithm, payload) {
            (Some(Some(algorithm)), Some(payload)) if result.is_ok() => {
                return self.digest(payload, algorithm, DigestOwner::Verify(key));
            }
            (Some(_), payload) => {
                self.release(payload);
                // An error is a difference, as DRBD has it.
                self.conclude(key, if result.is_err() { Outcome::OutOfSync } else { Outcome::Skipped });
            }
            (None, payload) => self.release(payload),
        }
        if result.is_err() {
            self.local_io_failed(number, "a block to be verified cannot be read");
        }
    }

    pub(crate) fn verify_block_digested(&mut self, key: Key, payload: PayloadId, own: Digest) {
        self.release(Some(payload));
        let Some(block) = self.verify_blocks.get(key) else { return };
        let Stage::Comparing(theirs) = block.stage else { unreachable!("{key:#x} was digested in {:?}", block.stage) };
        self.conclude(key, if theirs == own { Outcome::InSync } else { Outcome::OutOfSync });
    }

    /// The target cannot serve it, or not now: no result is due.
    pub(crate) fn verify_refused(&mut self, peer: NodeId, number: VolumeNumber, ack: BlockAck) {
        let Some(key) = self.verify_block_of(peer, number, ack.range, ack.block_id) else { return };
        let block = self.verify_blocks.remove(key).expect("looked at it just now");
        self.count_outcome(&block, Outcome::Skipped);
        if block.ranged {
            self.give_range_back(number, RangeOwner::Verify(key), block.range);
        }
        self.volume_mut(number).pump = true;
    }

    /// A block is compared: both ends mark what differs.
    fn conclude(&mut self, key: Key, outcome: Outcome) {
        let block = self.verify_blocks.remove(key).expect("the caller holds it");
        let (peer, number, range) = (block.peer, block.volume, block.range);
        let proves_nothing = block.doubtful || self.is_written_by_a_third(peer);
        let outcome = if outcome == Outcome::OutOfSync && proves_nothing { Outcome::Skipped } else { outcome };
        if outcome == Outcome::OutOfSync {
            self.volume_mut(number).mark_out_of_sync(peer, range);
        }
        let result: fn(BlockAck) -> Message = match outcome {
            Outcome::InSync => |ack| Message::OvResult { ack, result: ov_result::IN_SYNC },
            Outcome::OutOfSync => |ack| Message::OvResult { ack, result: ov_result::OUT_OF_SYNC },
            Outcome::Skipped => |ack| Message::OvResult { ack, result: ov_result::SKIPPED },
        };
        self.send_ack(peer, number, range, Self::verify_id(key), result);
        self.count_outcome(&block, outcome);
        self.give_range_back(number, RangeOwner::Verify(key), range);
    }

    fn count_outcome(&mut self, block: &VerifyBlock, outcome: Outcome) {
        let now = self.now;
        let Some(verify) = &mut self.device_mut(block.peer, block.volume).verify else { return };
        verify.open -= 1;
        verify.count(now, 1, outcome);
        if outcome == Outcome::OutOfSync {
            self.tell_run(block.peer, block.volume, Some(block.range));
        }
    }

    /// Blocks that differ and touch each other are one line in the log. `range`: the next one, `None`: it was the last.
    fn tell_run(&mut self, peer: NodeId, number: VolumeNumber, range: Option<ByteRange>) {
        let Some(verify) = &mut self.device_mut(peer, number).verify else { return };
        let (run, told) = verify.add_to_run(range);
        let Some(run) = run.filter(|_| told <= RUNS_TOLD_MAX) else { return };
        let (first, sectors) = (run.sector(), run.sectors());
        let more = if told == RUNS_TOLD_MAX { "; no more are named" } else { "" };
        self.warn(format!(
            "volume {number}: {sectors} sectors from sector {first} differ from those of node {peer}: out of sync{more}"
        ));
    }

    fn is_written_by_a_third(&self, peer: NodeId) -> bool {
        self.peers.values().any(|p| p.id != peer && p.is_connected() && p.role == Role::Primary)
    }

    /// This node was promoted: its writes may have come between a digest and the block it is compared with.
    pub(crate) fn doubt_verify_blocks(&mut self) {
        self.verify_blocks.values_mut().filter(|block| !block.ranged).for_each(|block| block.doubtful = true);
    }

    /// `node` began or ceased to write: blocks that are compared with somebody else's.
    pub(crate) fn doubt_verify_blocks_beside(&mut self, node: NodeId) {
        self.verify_blocks.values_mut().filter(|block| block.peer != node).for_each(|block| block.doubtful = true);
    }

    // ------------------------------------------------------------------ target

    pub(crate) fn is_verified_by(&self, peer: NodeId, number: VolumeNumber) -> bool {
        self.peer(peer).volumes[&number].replication == ReplicationState::VerifyT && self.agreed_verify(peer).is_some()
    }

    pub(crate) fn verify_requested(&mut self, peer: NodeId, number: VolumeNumber, request: BlockRequest) {
        let size = self.volume(number).exposed_bytes;
        if let Some(verify) = &mut self.device_mut(peer, number).verify
            && !verify.driving
            && request.range.is_within(size)
        {
            if !core::mem::replace(&mut verify.peer_takes_part, true) || verify.position == 0 {
                verify.start = request.range.start();
            }
            verify.position = verify.position.max(request.range.end());
        }
        self.serve(peer, number, request, ServedKind::Verify, None);
    }

    pub(crate) fn verify_result_received(&mut self, peer: NodeId, number: VolumeNumber, ack: BlockAck, result: u32) {
        let outcome = match result {
            ov_result::IN_SYNC => Outcome::InSync,
            ov_result::OUT_OF_SYNC => Outcome::OutOfSync,
            _ => Outcome::Skipped,
        };
        if outcome == Outcome::OutOfSync && !planted(Bug::VerifyNotMarked) {
            // It checks the range. Also when the verify has ended here: it is true all the same.
            self.out_of_sync_received(peer, number, ack.range);
        }
        let (now, blocks) = (self.now, ack.range.len().div_ceil(WIRE_BLOCK_BYTES));
        let Some(device) = self.peers.get_mut(&peer).and_then(|p| p.volumes.get_mut(&number)) else { return };
        if let Some(verify) = device.verify.as_mut().filter(|verify| !verify.driving) {
            verify.count(now, blocks, outcome);
        }
    }

    // ------------------------------------------------------------------ end

    fn check_verify_end(&mut self, peer: NodeId, number: VolumeNumber) {
        let over = self.peer(peer).volumes[&number].verify.as_ref().is_some_and(Verify::has_compared_all);
        if over {
            let ping = self.ping(peer);
            if let Some(verify) = &mut self.device_mut(peer, number).verify {
                verify.ping = Some(ping);
            }
        }
    }

    /// Rule VF-5: the target has every result.
    pub(crate) fn verify_ping_acked(&mut self, peer: NodeId, answered: u64) {
        for number in self.volume_numbers() {
            let Some(verify) = &mut self.device_mut(peer, number).verify else { continue };
            if verify.ping.is_some_and(|ping| ping <= answered) {
                verify.complete = true;
                self.set_replication(peer, number, ReplicationState::Established, "verify finished");
                self.send_state(peer, number);
            }
        }
    }

    /// What the peer says of its part in a verify.
    pub(crate) fn follow_verify_state(&mut self, peer: NodeId, number: VolumeNumber, theirs: ReplicationState) {
        let Some(verify) = &mut self.device_mut(peer, number).verify else { return };
        if matches!(theirs, ReplicationState::VerifyS | ReplicationState::VerifyT) {
            verify.peer_takes_part = true;
            return;
        }
        if !verify.peer_takes_part || theirs != ReplicationState::Established {
            return;
        }
        // The source says so when all is compared. A kernel's target may count for itself and be first.
        verify.complete = if verify.driving { verify.is_through() } else { verify.has_all_results() };
        self.set_replication(peer, number, ReplicationState::Established, "the peer ended the verify");
    }

    /// The state changed from a verify to something else, for whatever reason: nothing of it is left.
    pub(crate) fn verify_left(
        &mut self,
        peer: NodeId,
        number: VolumeNumber,
        from: ReplicationState,
        to: ReplicationState,
    ) {
        let verifying = |state| matches!(state, ReplicationState::VerifyS | ReplicationState::VerifyT);
        if !verifying(from) || verifying(to) {
            return;
        }
        self.tell_run(peer, number, None);
        let now = self.now;
        let of_it = |b: &VerifyBlock| b.peer == peer && b.volume == number;
        let keys: Vec<Key> = self.verify_blocks.iter().filter(|(_, b)| of_it(b)).map(|(key, _)| key).collect();
        // All of them first: a range that is given back may be the turn of another one.
        let blocks: Vec<_> = keys.into_iter().filter_map(|key| Some((key, self.verify_blocks.remove(key)?))).collect();
        let first_open = blocks.iter().map(|(_, block)| block.range.start()).min();
        let device = self.device_mut(peer, number);
        let Some(verify) = device.verify.take() else { return };
        if verify.driving {
            device.verify_position = if verify.complete { 0 } else { first_open.unwrap_or(verify.position) };
        }
        for (key, block) in blocks.into_iter().filter(|(_, block)| block.ranged) {
            self.give_range_back(number, RangeOwner::Verify(key), block.range);
        }
        if let Some(backing) = self.volume_mut(number).backing.as_mut().filter(|_| verify.different > 0) {
            // A restart has to know what was found.
            backing.writer.want_pages_first();
            backing.touch();
        }
        self.event(Event::VerifyFinished {
            peer,
            volume: number,
            driving: verify.driving,
            took: now.since(verify.started),
            different: verify.different,
            skipped: verify.skipped,
            complete: verify.complete,
        });
    }
}

impl Verify {
    fn may_ask(&self) -> bool {
        self.driving && self.open < WINDOW_BLOCKS && self.position < self.stop
    }

    fn is_through(&self) -> bool {
        self.driving && self.open == 0 && self.position >= self.stop
    }

    /// On the target: of all that it was asked for.
    fn has_all_results(&self) -> bool {
        self.compared >= self.position.saturating_sub(self.start).div_ceil(WIRE_BLOCK_BYTES)
    }

    /// And has not said so yet.
    fn has_compared_all(&self) -> bool {
        self.is_through() && self.ping.is_none()
    }

    fn count(&mut self, now: Time, blocks: u64, outcome: Outcome) {
        self.compared += blocks;
        self.moved = now;
        match outcome {
            Outcome::InSync => {}
            Outcome::OutOfSync => self.different += blocks,
            Outcome::Skipped => self.skipped += blocks,
        }
        self.marks.update(now, self.left_blocks());
    }

    fn left_blocks(&self) -> u64 {
        // A target does not know where the source stops, and a wild source may send more results than there are blocks.
        (self.stop.saturating_sub(self.start)).div_ceil(WIRE_BLOCK_BYTES).saturating_sub(self.compared)
    }

    /// Returns the run that ended with it, and how many did.
    fn add_to_run(&mut self, range: Option<ByteRange>) -> (Option<ByteRange>, u32) {
        if let (Some(run), Some(range)) = (self.run, range)
            && run.end() == range.start()
        {
            self.run = ByteRange::new(run.start(), run.len() + range.len());
            return (None, self.runs_told);
        }
        let ended = core::mem::replace(&mut self.run, range);
        self.runs_told = self.runs_told.saturating_add(u32::from(ended.is_some()));
        (ended, self.runs_told)
    }

    /// When the next request may go out, if it waits for the rate alone, or the verify is given up.
    pub fn wake_at(&self, rate: u64, config: &PeerConfig) -> Option<Time> {
        let next = if self.may_ask() { self.allowance.ready_at(rate) } else { None };
        let given_up = (self.driving && self.open > 0).then(|| self.moved + verify_patience(config));
        next.into_iter().chain(given_up).min()
    }

    pub fn status(&self, now: Time) -> VerifyStatus {
        VerifyStatus {
            progress: self.marks.progress(now, self.left_blocks()),
            start: self.start,
            position: self.position,
            stop: self.stop,
            different: self.different,
            skipped: self.skipped,
        }
    }
}

/// How long nothing may be answered: as long as a write may wait, or without a bound on that seven times `timeout`.
fn verify_patience(config: &PeerConfig) -> Duration {
    let times = if config.ko_count > 0 { config.ko_count } else { 7 };
    config.timeout * times
}

fn can_be_verified(disk: DiskState) -> bool {
    disk >= DiskState::Inconsistent && disk != DiskState::DUnknown
}
