//! Third nodes: two that were both fetched from one Primary hold bits towards each other that no block moved between
//! them disproves. The Primary can: it knows of both (PEERS_IN_SYNC).
//!
//! Rule RS-8. The Primary says "these nodes are equal here" of ranges in which it has no bit towards any of them and
//! no write of its own is open. It says so on the control socket, behind the PEER_ACKs of earlier writes and before
//! those of later ones: so a receiver never drops a bit that a later write set. A receiver believes only the Primary.

use alloc::vec::Vec;
use core::time::Duration;

use types::{ByteRange, DiskState, NodeId, NodeSet, Role, Slot, Time, VolumeNumber};
use wire::Message;

use crate::Engine;
use crate::volume::WIRE_BLOCK_BYTES;

/// What is looked at, and told, at once. Bytes.
const STEP_BYTES: u64 = 64 << 20;
/// Steps of one go: the application's requests come in between.
const STEPS_AT_ONCE: usize = 64;
/// Between two goes, and before a range is looked at again in which a write was open.
const PAUSE: Duration = Duration::from_millis(20);

/// A Primary on its way through a volume, telling what is equal.
pub(crate) struct Sweep {
    position: u64,
    /// Had an open write when the sweep passed.
    again: Vec<ByteRange>,
    pub due: Time,
}

impl Engine {
    /// Some peer became equal to this Primary: others may not know.
    pub(crate) fn start_sweep(&mut self, number: VolumeNumber) {
        // With one peer there is nobody to tell.
        if self.is_primary() && self.peers.len() > 1 {
            let due = self.now;
            self.timer_is_set();
            self.volume_mut(number).sweep = Some(Sweep { position: 0, again: Vec::new(), due });
        }
    }

    pub(crate) fn sweep_timers(&mut self) {
        for position in 0..self.volumes.len() {
            let (number, volume) = self.volumes.at(position);
            if volume.sweep.as_ref().is_some_and(|s| s.due <= self.now) {
                self.sweep(number);
            }
        }
    }

    fn sweep(&mut self, number: VolumeNumber) {
        let Some(mut sweep) = self.volume_mut(number).sweep.take() else { return };
        let equal = self.equal_peers(number);
        if !self.is_primary() || self.volume(number).disk != DiskState::UpToDate || equal.len() < 2 {
            return;
        }
        // What is settled and not told yet would bring bits back that a resync has cleared since.
        for peer in &equal {
            self.send_peer_ack(*peer);
        }
        let size = self.volume(number).exposed_bytes;
        let mut ranges = core::mem::take(&mut sweep.again);
        while ranges.len() < STEPS_AT_ONCE && sweep.position < size {
            let step = ByteRange::new(sweep.position, STEP_BYTES.min(size - sweep.position));
            ranges.push(step.expect("inside the volume"));
            sweep.position += STEP_BYTES;
        }
        for range in ranges {
            self.tell_in_sync(number, range, &equal, &mut sweep.again);
        }
        if sweep.position < size || !sweep.again.is_empty() {
            sweep.due = self.now + PAUSE;
            self.volume_mut(number).sweep = Some(sweep);
        }
    }

    /// Connected, UpToDate, fed with every write.
    fn equal_peers(&self, number: VolumeNumber) -> Vec<NodeId> {
        let fed = |peer: &&crate::peer::Peer| {
            let device = &peer.volumes[&number];
            let good = device.is_settled() && device.disk == DiskState::UpToDate;
            peer.is_connected() && good
        };
        self.peers.values().filter(fed).map(|p| p.id).collect()
    }

    /// Tells of `range` but for the blocks of open writes, which are put aside. A range with bits is not told.
    fn tell_in_sync(&mut self, number: VolumeNumber, range: ByteRange, equal: &[NodeId], aside: &mut Vec<ByteRange>) {
        let Some(backing) = &self.volume(number).backing else { return };
        let blocks = range.blocks_touched(backing.block_bytes());
        let slots: Vec<Slot> = equal.iter().filter_map(|p| backing.superblock.peers[p.index()].slot).collect();
        if slots.len() < equal.len() || slots.iter().any(|slot| backing.bitmap.any(*slot, blocks.clone())) {
            return;
        }
        let open = self.writes.iter().filter(|(_, w)| w.volume == number && w.range.overlaps(range));
        let mut open: Vec<(u64, u64)> = open.map(|(_, w)| block_bounds(w.range, range)).collect();
        open.sort_unstable();
        let nodes = equal.iter().fold(NodeSet::only(self.me), |set, node| set.with(*node)).to_wire();
        let mut start = range.start();
        for (first, end) in open.into_iter().chain([(range.end(), range.end())]) {
            if let Some(free) = between(start, first) {
                for peer in equal {
                    let message = Message::PeersInSync { range: free, nodes };
                    self.send(*peer, wire::Socket::Control, Some(number), message);
                }
            }
            aside.extend(between(start.max(first), end));
            start = start.max(end);
        }
    }

    pub(crate) fn peers_in_sync(&mut self, peer: NodeId, number: VolumeNumber, range: ByteRange, nodes: NodeSet) {
        if !range.is_within(self.volume(number).exposed_bytes) {
            return self.protocol_error(peer, "PEERS_IN_SYNC beyond the end of the volume");
        }
        let believed = self.peer(peer).role == Role::Primary && !self.is_primary() && nodes.contains(self.me);
        let Some(backing) = &self.volume(number).backing else { return };
        let differs = backing.superblock.peers[peer.index()]
            .slot
            .is_none_or(|slot| backing.bitmap.any(slot, range.blocks_touched(backing.block_bytes())));
        if !believed || differs {
            return;
        }
        // Bits that were set for a bitmap exchange stand for writes that this says nothing about.
        let open = self.peer_writes.iter().filter(|(_, w)| w.volume == number && w.range.overlaps(range));
        let marked = open.fold(NodeSet::EMPTY, |set, (_, w)| set.union(w.marked));
        let others: NodeSet = nodes.iter().filter(|n| *n != self.me && *n != peer && !marked.contains(*n)).collect();
        for node in others.iter() {
            self.volume_mut(number).mark_in_sync(node, range);
            self.drop_spent_generation(node, number);
        }
    }
}

/// First byte and end of the blocks that `write` touches, inside `range`.
fn block_bounds(write: ByteRange, range: ByteRange) -> (u64, u64) {
    let start = write.start() / WIRE_BLOCK_BYTES * WIRE_BLOCK_BYTES;
    let end = write.end().div_ceil(WIRE_BLOCK_BYTES) * WIRE_BLOCK_BYTES;
    (start.max(range.start()), end.min(range.end()))
}

fn between(start: u64, end: u64) -> Option<ByteRange> {
    ByteRange::new(start, end.checked_sub(start).filter(|len| *len > 0)?)
}
