//! The bitmap exchange that opens a resync: the source sends its bits, the target merges and sends back, the source
//! merges. Both sides know blocks that the other may lack, so bits are OR-ed, never replaced (rule RS-1).

use alloc::vec::Vec;

use types::{DiskState, NodeId, ReplicationState, Uuid, VolumeNumber};
use wire::Message;
use wire::bitmap_code::{BitmapReceiver, BitmapSender};
use wire::message::{BitmapChunk, uuid_flag};

use crate::Engine;
use crate::api::Event;
use crate::handshake::{BitmapUse, Decision, Rule, Strategy};
use crate::planted::{Bug, planted};
use crate::volume::{Lineage, WIRE_BLOCK_BYTES};

/// A bitmap on its way to us.
pub(crate) struct Exchange {
    receiver: BitmapReceiver,
}

impl Engine {
    /// Decides one volume towards one peer. A side without a disk compares nothing.
    pub(crate) fn decide(&mut self, peer: NodeId, number: VolumeNumber, connecting: bool) -> Decision {
        let peer_disk = self.peer(peer).volumes[&number].word.and_then(|w| w.disk().ok());
        let peer_has_disk = peer_disk.is_some_and(|d| d >= DiskState::Negotiating && d != DiskState::DUnknown)
            && self.peer(peer).volumes[&number].uuids.is_some();
        let have_disk = self.volume(number).disk >= DiskState::Negotiating && self.volume(number).backing.is_some();
        if have_disk && peer_has_disk {
            return self.decide_with_disks(peer, number, connecting);
        }
        let no_sync = Decision { strategy: Strategy::NoSync, rule: Rule::NoDisk };
        let theirs = self.peer(peer).volumes[&number].current_uuid;
        let volume = self.volume(number);
        let shows_nothing = volume.exposed_uuid.is_zero() || !self.is_primary();
        if !have_disk && peer_has_disk && volume.backing.is_none() && shows_nothing {
            self.volume_mut(number).exposed_uuid = theirs;
        }
        no_sync
    }

    pub(crate) fn report_decision(&mut self, peer: NodeId, number: VolumeNumber, decision: &Decision) {
        let mine = self.volume(number).current_uuid();
        let device = self.device_mut(peer, number);
        let text = alloc::format!(
            "{:?} by rule {} (ours {mine}, theirs {})",
            decision.strategy,
            decision.rule.name(),
            device.current_uuid
        );
        device.last_decision = text.clone();
        self.event(Event::Handshake { peer, volume: number, text });
    }

    /// First state after a decision. The bitmap exchange starts separately, after the peer was told.
    pub(crate) fn start_as_decided(
        &mut self,
        peer: NodeId,
        number: VolumeNumber,
        decision: &Decision,
        reason: &'static str,
    ) {
        if decision.rule != Rule::NoDisk {
            // The comparison of the disks says it better.
            let volume = self.volume_mut(number);
            volume.may_be_equal = volume.may_be_equal.without(peer);
            volume.unconfirmed_at = volume.unconfirmed_at.without(peer);
            volume.missing_at = volume.missing_at.without(peer);
        }
        match decision.strategy {
            Strategy::NoSync => self.start_without_sync(peer, number, decision.rule, reason),
            Strategy::Source(bits) => {
                self.repair_claims_84(peer, number, decision.rule);
                self.prepare_bits(peer, number, bits);
                let theirs = self.peer(peer).volumes[&number].current_uuid;
                let v84 = self.speaks_84(peer);
                if let Some(backing) = &mut self.volume_mut(number).backing
                    && bits == BitmapUse::SetAll
                    && !v84
                    && !theirs.is_just_created()
                {
                    // An interrupted full sync goes on by bitmap.
                    backing.superblock.peers[peer.index()].bitmap_uuid = theirs;
                    backing.touch();
                }
                self.leave_negotiating(number);
                // It will say so itself: from here on it is nobody to read from, or to go on with alone.
                if self.peer(peer).volumes[&number].disk > DiskState::Outdated {
                    self.set_peer_disk(peer, number, DiskState::Outdated, "sync target");
                }
                self.set_replication(peer, number, ReplicationState::WFBitMapS, reason);
            }
            Strategy::Target(bits) => {
                self.prepare_bits(peer, number, bits);
                self.leave_negotiating(number);
                if self.volume(number).disk > DiskState::Outdated {
                    self.set_disk_untold(number, DiskState::Outdated, "sync target");
                }
                self.set_replication(peer, number, ReplicationState::WFBitMapT, reason);
            }
            _ => unreachable!("{decision:?} does not start a connection"),
        }
    }

    fn prepare_bits(&mut self, peer: NodeId, number: VolumeNumber, bits: BitmapUse) {
        let Some(backing) = &mut self.volume_mut(number).backing else { return };
        let Some(slot) = backing.superblock.peers[peer.index()].slot else { return };
        match bits {
            // DRBD drops a target's bits where the source copies a column. They may know of blocks that this one does
            // not (rule RS-1).
            BitmapUse::Own | BitmapUse::Clear => {}
            BitmapUse::SetAll => backing.set_all_towards(peer),
            BitmapUse::CopyFrom(node) => match backing.superblock.peers[node.index()].slot {
                Some(from) => {
                    backing.bitmap.merge_slot(from, slot);
                    backing.writer.want_bitmap();
                }
                None => backing.set_all_towards(peer),
            },
        }
    }

    /// Established at once. With equal generations the bits towards the peer say nothing more and go (rule BM-3). While
    /// one disk is missing, or attaches, nothing was compared and nothing goes.
    fn start_without_sync(&mut self, peer: NodeId, number: VolumeNumber, rule: Rule, reason: &'static str) {
        let peer_disk = self.peer(peer).volumes[&number].disk;
        let theirs = self.peer(peer).volumes[&number].current_uuid;
        let mine = self.volume(number).current_uuid();
        // A missed end is a resync that is only put off until its source is UpToDate.
        let open = matches!(rule, Rule::SyncSourceMissedFinish | Rule::SyncSourcePeerMissedFinish);
        let compared = rule != Rule::NoDisk && !open && peer_disk >= DiskState::Negotiating;
        let equal = compared && mine.same(theirs) && !mine.is_just_created();
        if equal && rule != Rule::JustCreatedBoth {
            self.drop_bits_of_equal(peer, number);
            if peer_disk == DiskState::UpToDate && self.volume(number).disk == DiskState::Outdated {
                self.catch_up_without_resync(peer, number);
            }
        }
        self.leave_negotiating(number);
        self.set_replication(peer, number, ReplicationState::Established, reason);
        if equal {
            self.settle_crash(number);
            self.start_sweep(number);
        }
    }

    /// Equal generations make an Outdated disk UpToDate, unless bits of either side say that it is not equal: a kernel
    /// peer does not resync by those (a replicad peer does, see `reconcile`).
    fn catch_up_without_resync(&mut self, peer: NodeId, number: VolumeNumber) {
        let theirs = self.peer(peer).volumes[&number].uuids.as_ref().map_or(0, |u| u.dirty_bits);
        let bits = theirs.max(self.volume(number).bits_towards(peer));
        if bits > 0 {
            return self.warn(alloc::format!(
                "volume {number}: stays Outdated, {bits} blocks differ from node {peer} although the generations are \
                 equal; fetch its data: invalidate"
            ));
        }
        self.set_disk_untold(number, DiskState::UpToDate, "equal to an UpToDate peer");
    }

    /// Rule BM-3: equal generations and no resync. Bits that a restart took from the activity log go, because the
    /// side that wrote has none: all it wrote was acknowledged as stable. Bits that this node set while it ran say
    /// that something is missing over there; no comparison of generations disproves them, they stay.
    fn drop_bits_of_equal(&mut self, peer: NodeId, number: VolumeNumber) {
        let device = &self.peer(peer).volumes[&number];
        let theirs = device.uuids.as_ref().map_or(0, |u| u.dirty_bits);
        let survived = device.uuids_sent.as_ref().is_some_and(|u| u.flags & uuid_flag::RECONNECT != 0)
            || self.volume(number).backing.as_ref().is_some_and(|b| b.tracked.contains(peer));
        let mine = self.volume(number).bits_towards(peer);
        if mine > 0 && (survived || theirs > 0) && !planted(Bug::BitsOfCrashDropped) {
            return self.warn(alloc::format!(
                "volume {number}: {mine} blocks stay out of sync towards node {peer} although the generations are equal"
            ));
        }
        self.drop_bits(peer, number);
    }

    fn drop_bits(&mut self, peer: NodeId, number: VolumeNumber) {
        if let Some(backing) = &mut self.volume_mut(number).backing {
            backing.clear_all_towards(peer);
            backing.writer.want_bitmap_soon();
        }
    }

    /// The peers were asked: the disk is what the metadata says.
    pub(crate) fn leave_negotiating(&mut self, number: VolumeNumber) {
        if self.volume(number).disk == DiskState::Negotiating {
            let state = self.disk_state_by_metadata(number);
            self.set_disk_untold(number, state, "attached");
        }
    }

    /// What the metadata says of the disk; not better than Outdated if it is not the data that this Primary showed so
    /// far (rule GE-7), or if this node has seen the data go on without it, or knows of a write that it lost (rule GE-8).
    pub(crate) fn disk_state_by_metadata(&self, number: VolumeNumber) -> DiskState {
        let volume = self.volume(number);
        let state = volume.backing.as_ref().map_or(DiskState::Diskless, |b| b.disk_state_from_flags());
        let shown = volume.exposed_uuid;
        let other = match &volume.backing {
            _ if shown.is_zero() => false,
            Some(backing) if !self.is_primary() => !Lineage::of_disk(&backing.superblock).continues(shown),
            _ => !volume.current_uuid().same(shown),
        };
        if other || volume.lost_received { state.min(DiskState::Outdated) } else { state }
    }

    /// The last peer is gone in the middle of an attach.
    pub(crate) fn stop_negotiating(&mut self) {
        for number in self.volume_numbers() {
            self.leave_negotiating(number);
        }
    }

    /// The crash of this node as Primary is dealt with: bits and peers agree.
    pub(crate) fn settle_crash(&mut self, number: VolumeNumber) {
        if core::mem::take(&mut self.volume_mut(number).crashed_primary) {
            self.refresh_flags(number);
        }
    }

    // ------------------------------------------------------------------ the exchange

    fn wire_bits(&self, number: VolumeNumber) -> u64 {
        self.volume(number).exposed_bytes.div_ceil(WIRE_BLOCK_BYTES)
    }

    /// Sends our bitmap as source; prepares for the peer's on both sides.
    pub(crate) fn start_exchange(&mut self, peer: NodeId, number: VolumeNumber) {
        let replication = self.peer(peer).volumes[&number].replication;
        let source = match replication {
            ReplicationState::WFBitMapS => true,
            ReplicationState::WFBitMapT => false,
            _ => return,
        };
        if self.peer(peer).volumes[&number].exchange.is_some() {
            return;
        }
        let receiver = BitmapReceiver::new(self.wire_bits(number));
        self.device_mut(peer, number).exchange = Some(Exchange { receiver });
        self.mark_unsent_writes(peer, number);
        if source {
            self.mark_unsettled_peer_writes(peer, number);
            self.send_bitmap(peer, number);
        }
    }

    /// Writes that are on their way to our disk and were never sent to this peer: their bits would come at retirement,
    /// too late for the bitmap that goes out now. The resync reads their blocks after them (rule RS-4), so retirement
    /// need not set these bits again.
    fn mark_unsent_writes(&mut self, peer: NodeId, number: VolumeNumber) {
        let link = self.peer(peer).link_id();
        for index in 0..self.transfer_log.len() {
            let write =
                self.writes.get_mut(self.transfer_log[index]).expect("the transfer log names writes that exist");
            let sent = write.legs.iter().any(|l| l.peer == peer && Some(l.link) == link);
            if write.volume == number && !sent && !planted(Bug::UnsentWritesForgotten) {
                write.marked = write.marked.with(peer);
                let range = write.range;
                self.volume_mut(number).mark_out_of_sync(peer, range);
                self.distrust_older_acks(number, range);
            }
        }
    }

    fn send_bitmap(&mut self, peer: NodeId, number: VolumeNumber) {
        let bits = self.wire_bits(number);
        let use_rle = self.peer(peer).config.use_rle;
        let Some(backing) = &self.volume(number).backing else { return };
        let Some(slot) = backing.superblock.peers[peer.index()].slot else { return };
        let mut sender = BitmapSender::new(bits, use_rle);
        let bitmap = &backing.bitmap;
        let skip = |word, is_set| bitmap.next_word64_unlike(slot, word, is_set);
        let next = || sender.next_chunk_skipping(|word| bitmap.word64(slot, word), skip);
        let chunks: Vec<BitmapChunk> = core::iter::from_fn(next).collect();
        for chunk in chunks {
            self.send_data(peer, Some(number), Message::Bitmap(chunk), None);
        }
    }

    pub(crate) fn bitmap_received(&mut self, peer: NodeId, number: VolumeNumber, chunk: BitmapChunk) {
        let volume = self.volumes.get_mut(&number).expect("dispatch looked it up");
        let device = self.peers.get_mut(&peer).and_then(|p| p.volumes.get_mut(&number));
        let (Some(device), Some(backing)) = (device, &mut volume.backing) else { return };
        let (Some(exchange), Some(slot)) = (&mut device.exchange, backing.superblock.peers[peer.index()].slot) else {
            return self.protocol_error(peer, "BITMAP while no exchange is under way");
        };
        let mut newly = 0;
        let bitmap = &mut backing.bitmap;
        let result = exchange
            .receiver
            .apply(&chunk, |word, bits| newly += bitmap.or_word64(slot, word, bits))
            .map(|()| exchange.receiver.is_complete());
        if newly > 0 {
            backing.writer.want_bitmap();
        }
        match result {
            Err(error) => {
                let text = alloc::format!("BITMAP of volume {number}: {error}");
                self.protocol_error(peer, &text);
            }
            Ok(false) => {}
            Ok(true) => self.bitmap_complete(peer, number),
        }
    }

    fn bitmap_complete(&mut self, peer: NodeId, number: VolumeNumber) {
        self.device_mut(peer, number).exchange = None;
        match self.peer(peer).volumes[&number].replication {
            ReplicationState::WFBitMapT => {
                self.send_bitmap(peer, number);
                if self.speaks_84(peer) {
                    return self.set_replication(peer, number, ReplicationState::WFSyncUUID, "bitmap exchange done");
                }
                self.begin_target(peer, number, "bitmap exchange done");
            }
            ReplicationState::WFBitMapS if self.speaks_84(peer) => self.announce_sync_uuid(peer, number),
            ReplicationState::WFBitMapS => self.begin_source(peer, number, "bitmap exchange done"),
            _ => {}
        }
    }

    /// A full sync that the operator ordered: no exchange, both sides know that every block goes (rule RS-2).
    pub(crate) fn start_full_sync(&mut self, peer: NodeId, number: VolumeNumber, source: bool, reason: &'static str) {
        let v84 = self.speaks_84(peer);
        let Some(backing) = &mut self.volume_mut(number).backing else { return };
        if source {
            backing.set_all_towards(peer);
            if v84 {
                self.set_replication(peer, number, ReplicationState::WFBitMapS, reason);
                return self.announce_sync_uuid(peer, number);
            }
            self.begin_source(peer, number, reason);
            return;
        }
        let nodes: Vec<NodeId> = NodeId::all().collect();
        for node in nodes {
            backing.set_all_towards(node);
        }
        for slot in backing.unowned_slots() {
            backing.bitmap.set_all(slot);
        }
        if v84 {
            return self.await_sync_uuid(peer, number, reason);
        }
        self.begin_target(peer, number, reason);
    }

    /// A peer that never had data takes our data's past as its own, so that an interrupted sync goes on by bitmap.
    pub(crate) fn adopt_for_resync(&mut self, peer: NodeId, number: VolumeNumber) {
        let me = self.me;
        let theirs = self.peer(peer).volumes[&number].uuids.as_ref().and_then(|u| u.bitmap_of(me));
        let Some(backing) = &mut self.volume_mut(number).backing else { return };
        if backing.superblock.current_uuid.is_just_created()
            && let Some(uuid) = theirs.filter(|u| !u.is_just_created() && !u.same(Uuid::UNKNOWN))
        {
            backing.superblock.current_uuid = uuid.with_primary_bit(false);
            backing.touch();
        }
    }
}
