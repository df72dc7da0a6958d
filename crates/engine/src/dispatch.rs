//! What arrives on a link whose handshake got as far as the device packets: each message to its room.

use alloc::format;

use types::{
    BlockOp, ConnectionState, DiskState, LinkId, NodeId, NodeSet, PayloadId, ReplicationState, Role, Uuid, VolumeNumber,
};
use wire::Message;
use wire::digest::Digest;
use wire::message::{BlockAck, DataFlags, StateWord, uuid_flag};
use wire::state_word::flag;

use crate::Engine;
use crate::api::Event;
use crate::connect::{End, Phase, name_of};
use crate::handshake::Strategy;
use crate::request::LegState;
use crate::serve::ServedKind;
use crate::state::Deferred;

impl Engine {
    pub(crate) fn dispatch(
        &mut self,
        peer: NodeId,
        volume: Option<VolumeNumber>,
        message: Message,
        payload: Option<PayloadId>,
    ) {
        match message {
            Message::TwopcPrepare(prepare) => return self.prepared(peer, volume, prepare),
            Message::TwopcPrepareResize(resize) => return self.resize_prepared(peer, volume, resize),
            Message::TwopcCommit(decision) => return self.committed(peer, decision),
            Message::TwopcAbort(decision) => return self.aborted(peer, decision),
            Message::TwopcYes(reply) | Message::TwopcNo(reply) | Message::TwopcRetry(reply) => {
                return self.voted(peer, reply, &message);
            }
            Message::Disconnect => {
                let text = "the peer refused the connection; its log says why";
                return self.end_connection(peer, End::StandAlone, ConnectionState::Disconnecting, text);
            }
            Message::State(word) if volume.is_none() => return self.peer_role_told(peer, word),
            Message::V84(_) => {
                return self.protocol_error(peer, &format!("{} in the DRBD 9 dialect", name_of(&message)));
            }
            // Also in a handshake, behind the options that it corrects.
            Message::ProtocolUpdate(theirs) if volume.is_none() => return self.protocol_updated(peer, &theirs),
            // Hints, and things that two nodes do not need.
            Message::UnplugRemote | Message::PeerDagtag { .. } | Message::FlushForward { .. } => return,
            _ => {}
        }
        if let Some(number) = volume {
            if !self.volumes.contains_key(&number) {
                self.release(payload);
                let text = format!("{} for volume {number}, which this node does not have", name_of(&message));
                return self.unknown_volume_named(peer, &message, &text);
            }
            return self.dispatch_volume(peer, number, message, payload);
        }
        self.release(payload);
        if !self.peer(peer).is_connected() {
            return self.protocol_error(peer, &format!("{} before the connection is set up", name_of(&message)));
        }
        match message {
            Message::Barrier(number) => self.barrier_received(peer, number),
            Message::BarrierAck { barrier, set_size } => self.barrier_acked(peer, barrier, set_size),
            Message::ConfirmStable { oldest_block_id, youngest_block_id, set_size } => {
                self.stable_confirmed(peer, oldest_block_id, youngest_block_id, set_size)
            }
            Message::Dagtag(dagtag) => self.peer_mut(peer).dagtag_received = dagtag,
            Message::PeerAck { nodes, dagtag } => self.peer_ack(peer, NodeSet::from_wire(nodes), dagtag),
            Message::FlushRequests(sequence) => self.flush_requested(peer, sequence),
            Message::FlushRequestsAck { sequence, .. } => self.flush_requests_acked(peer, sequence),
            other => self.protocol_error(peer, &format!("unexpected {} for the connection", name_of(&other))),
        }
    }

    /// Handshake packets of a volume that only the peer has are skipped; data for it is an error.
    fn unknown_volume_named(&mut self, peer: NodeId, message: &Message, text: &str) {
        let harmless = matches!(
            message,
            Message::SyncParam(_)
                | Message::Sizes(_)
                | Message::Uuids(_)
                | Message::CurrentUuid { .. }
                | Message::State(_)
                | Message::EnableReplicationNext(_)
        );
        if harmless { self.warn(format!("node {peer}: {text}")) } else { self.protocol_error(peer, text) }
    }

    fn dispatch_volume(&mut self, peer: NodeId, number: VolumeNumber, message: Message, payload: Option<PayloadId>) {
        match message {
            Message::SyncParam(param) => return self.sync_param_received(peer, param),
            Message::EnableReplicationNext(_) | Message::EnableReplication(_) => return,
            Message::Sizes(sizes) => return self.got_sizes(peer, number, sizes),
            Message::Uuids(uuids) => return self.got_uuids(peer, number, uuids),
            Message::CurrentUuid { uuid, weak_nodes } => {
                return self.peer_without_disk(peer, number, uuid, NodeSet::from_wire(weak_nodes));
            }
            // It marks its writes from there on instead of sending them, and comes back without an exchange of bitmaps: only
            // the next handshake tells this node what it lacks.
            Message::State(word) if word.conn() == ReplicationState::Ahead.to_wire() => {
                let text =
                    format!("volume {number}: the peer went Ahead (on-congestion pull-ahead), which this node lacks");
                return self.protocol_error(peer, &text);
            }
            Message::State(word) => return self.peer_state(peer, number, word),
            _ => {}
        }
        if !self.peer(peer).is_connected() {
            self.release(payload);
            return self.protocol_error(peer, &format!("{} before the connection is set up", name_of(&message)));
        }
        match message {
            // An empty flush: a barrier says that since DRBD 8.3, and to confirm one without a flush would be a lie.
            Message::Data(_) if payload.is_none() => {
                self.protocol_error(peer, &format!("DATA without data for volume {number}"));
            }
            Message::Data(head) => {
                let op = BlockOp::Write { fua: head.flags.has(DataFlags::FUA) };
                self.peer_write(peer, number, op, head, payload)
            }
            Message::Trim(head) => self.peer_write(peer, number, BlockOp::Discard, head, payload),
            Message::Zeroes(head) => {
                let may_unmap = head.flags.has(DataFlags::DISCARD);
                let op = BlockOp::WriteZeroes { may_unmap, fua: head.flags.has(DataFlags::FUA) };
                self.peer_write(peer, number, op, head, payload)
            }
            Message::RsDataReply(head) => self.resync_data(peer, number, head, payload),
            Message::DataReply(head) => self.remote_read_done(peer, head.block_id, head.range, payload),
            other => {
                self.release(payload);
                self.dispatch_small(peer, number, other);
            }
        }
    }

    fn dispatch_small(&mut self, peer: NodeId, number: VolumeNumber, message: Message) {
        match message {
            Message::DataRequest(request) => self.serve(peer, number, request, ServedKind::Read, None),
            Message::RsDataRequest(request) | Message::RsThinRequest(request) => {
                self.serve(peer, number, request, ServedKind::Resync, None)
            }
            Message::CsumRsRequest { request, digest } => {
                self.serve(peer, number, request, ServedKind::Resync, Digest::new(&digest))
            }
            Message::RsIsInSync(ack) => self.resync_is_in_sync(peer, number, ack),
            Message::OvRequest(request) => self.verify_requested(peer, number, request),
            Message::OvReply { request, digest } => self.verify_replied(peer, number, request, Digest::new(&digest)),
            Message::OvResult { ack, result } => self.verify_result_received(peer, number, ack, result),
            Message::OutOfSync(range) => self.out_of_sync_received(peer, number, range),
            Message::Bitmap(chunk) => self.bitmap_received(peer, number, chunk),
            Message::RecvAck(ack) => self.leg_answer(peer, ack.block_id, LegState::Received, false),
            Message::WriteAck(ack) => self.leg_answer(peer, ack.block_id, LegState::Written, false),
            Message::WriteAckInSync(ack) => self.leg_answer(peer, ack.block_id, LegState::Written, true),
            Message::NegAck(ack) => self.leg_answer(peer, ack.block_id, LegState::Failed, false),
            Message::RsWriteAck(ack) => self.block_is_written(peer, number, ack),
            Message::RsNegAck(ack) => self.resync_acked(peer, number, ack.range, ack.block_id, false),
            Message::NegDataReply(ack) => self.remote_read_failed(peer, ack.block_id),
            Message::NegRsDataReply(ack) | Message::RsCancel(ack) if self.is_verify_block(ack) => {
                self.verify_refused(peer, number, ack)
            }
            Message::NegRsDataReply(ack) => self.resync_refused(peer, number, ack.block_id, true),
            Message::RsCancel(ack) | Message::RsCancelAhead(ack) => {
                self.resync_refused(peer, number, ack.block_id, false)
            }
            Message::PeersInSync { range, nodes } => self.peers_in_sync(peer, number, range, NodeSet::from_wire(nodes)),
            other => {
                let text = format!("unexpected {} for volume {number}", name_of(&other));
                self.protocol_error(peer, &text)
            }
        }
    }

    /// Before protocol 122 an application write in a resync is acknowledged with the resync's packet.
    fn block_is_written(&mut self, peer: NodeId, number: VolumeNumber, ack: BlockAck) {
        let old = self.peer(peer).link.as_ref().is_some_and(|l| l.protocol < 122);
        if old && self.writes.get(ack.block_id).is_some_and(|w| w.range == ack.range) {
            return self.leg_answer(peer, ack.block_id, LegState::Written, true);
        }
        self.resync_acked(peer, number, ack.range, ack.block_id, true);
    }

    // ------------------------------------------------------------------ states

    fn peer_role_told(&mut self, peer: NodeId, word: StateWord) {
        if let (true, Ok(role)) = (self.peer(peer).is_connected(), word.role()) {
            self.set_peer_role(peer, role);
        }
    }

    /// A node without a disk says which data it shows; a Primary among them may have begun a generation.
    fn peer_without_disk(&mut self, peer: NodeId, number: VolumeNumber, uuid: Uuid, weak: NodeSet) {
        let device = self.device_mut(peer, number);
        device.current_uuid = uuid;
        device.uuids = None;
        if self.peer(peer).is_connected() && self.peer(peer).role == Role::Primary && !uuid.is_zero() {
            self.follow_generation(peer, number, uuid, weak);
        }
    }

    fn peer_state(&mut self, peer: NodeId, number: VolumeNumber, word: StateWord) {
        let (Ok(role), Ok(disk)) = (word.role(), word.disk()) else {
            return self.protocol_error(peer, &format!("STATE {:#010x} names no role or disk state", word.0));
        };
        self.device_mut(peer, number).word = Some(word);
        self.device_mut(peer, number).paused_by_peer = word.0 & (flag::AFTER_PAUSED | flag::USER_PAUSED) != 0;
        match self.peer(peer).link.as_ref().map(|l| &l.phase) {
            Some(Phase::Connected) => {}
            Some(Phase::Exchange { .. }) => return self.exchange_progress(peer),
            _ => return,
        }
        if role != Role::Unknown {
            self.set_peer_role(peer, role);
        }
        let before = self.peer(peer).volumes[&number].disk;
        let appears = disk == DiskState::Negotiating && before != DiskState::Negotiating;
        let volume = self.volume(number);
        // A disk that is attaching itself says what it found in its metadata; and the two wait for each other's word.
        let compares = volume.disk > DiskState::Negotiating;
        let unsettled = compares && volume.backing.as_ref().is_some_and(|b| !b.is_settled());
        // Its word "Negotiating" waited until the next one was there.
        let overtaken = before == DiskState::Attaching && disk > DiskState::Negotiating && !self.speaks_84(peer);
        if (appears || overtaken) && unsettled && !self.speaks_84(peer) {
            let link = self.peer(peer).link_id().expect("a message came in on it");
            return self.when_durable(number, Deferred::PeerDiskAppears { peer, link });
        }
        let theirs = word.replication().unwrap_or(ReplicationState::Off);
        self.follow_verify_state(peer, number, theirs);
        let target_ended = self.peer_ended_resync(peer, number, theirs, disk);
        if !self.peer(peer).is_connected() {
            return;
        }
        // A disk appears over a standing connection: not before it is known to be the one that this Primary showed.
        if disk != before
            && let Err((end, text)) = self.check_shown_data(peer, number)
        {
            return self.end_connection(peer, end, ConnectionState::Disconnecting, &text);
        }
        let disk = if self.says_more_than_it_knows(peer, number, disk) { before } else { disk };
        self.set_peer_disk(peer, number, disk, "told by the peer");
        self.update_pause(peer, number);
        if target_ended {
            return;
        }
        if appears {
            self.send_uuids(peer, number, 0, None);
            self.send_state(peer, number);
        }
        let attached = (before == DiskState::Negotiating || overtaken) && disk > DiskState::Negotiating;
        if attached && theirs == ReplicationState::Established && self.volume(number).disk > DiskState::Negotiating {
            return self.follow_attached(peer, number);
        }
        self.consider_resync(peer, number, theirs, disk);
    }

    /// An Outdated peer calls itself UpToDate by equal generations, and has not heard yet that this Primary began another one
    /// without it (rule GE-5).
    fn says_more_than_it_knows(&self, peer: NodeId, number: VolumeNumber, disk: DiskState) -> bool {
        let device = &self.peer(peer).volumes[&number];
        let rises = device.disk == DiskState::Outdated && disk == DiskState::UpToDate;
        let same = device.current_uuid.same(self.volume(number).current_uuid());
        rises && !same && self.is_primary() && !self.speaks_84(peer)
    }

    /// What this node says of its generations is durable: the peer's disk, whatever it is by now, gets its answer.
    pub(crate) fn peer_disk_appears(&mut self, peer: NodeId, number: VolumeNumber, link: LinkId) {
        let entry = self.peer(peer);
        if let (true, Some(word)) = (entry.link_id() == Some(link), entry.volumes[&number].word) {
            self.peer_state(peer, number, word);
        }
    }

    /// The peer attached a disk over a standing connection, compared, and saw no reason for a resync. It knew of its disk
    /// only that it is consistent then, and this side compared nothing: so it does now. Either it agrees, and bits that
    /// mean nothing go here too, or there is a resync that was put off until the disk of its source is UpToDate.
    fn follow_attached(&mut self, peer: NodeId, number: VolumeNumber) {
        let standing = self.peer(peer).volumes[&number].replication == ReplicationState::Established;
        if !standing || self.sync_source_of(number).is_some() {
            return;
        }
        let decision = self.decide(peer, number, false);
        self.report_decision(peer, number, &decision);
        match decision.strategy {
            Strategy::NoSync | Strategy::Source(_) | Strategy::Target(_) => {
                self.follow_decision(peer, number, &decision)
            }
            _ => self.refuse_comparison(peer, number, &decision),
        }
    }

    /// We are source and the peer says that it is not target any more.
    fn peer_ended_resync(
        &mut self,
        peer: NodeId,
        number: VolumeNumber,
        theirs: ReplicationState,
        disk: DiskState,
    ) -> bool {
        let ours = self.peer(peer).volumes[&number].replication;
        let source = matches!(ours, ReplicationState::SyncSource | ReplicationState::PausedSyncS);
        if !source || theirs != ReplicationState::Established {
            return false;
        }
        self.target_finished(peer, number, disk);
        true
    }

    /// A standing connection compares again: a disk was attached, a peer was promoted by force, or the peer has
    /// decided and waits for us.
    pub(crate) fn consider_resync(
        &mut self,
        peer: NodeId,
        number: VolumeNumber,
        theirs: ReplicationState,
        disk: DiskState,
    ) {
        use ReplicationState as R;
        let ours = self.peer(peer).volumes[&number].replication;
        let mine = self.volume(number).disk;
        let busy = ours > R::Established && !matches!(ours, R::VerifyS | R::VerifyT);
        if busy || disk < DiskState::Negotiating || mine < DiskState::Negotiating {
            if mine == DiskState::Negotiating && disk < DiskState::Negotiating {
                self.leave_negotiating(number);
                self.tell_state(number);
            }
            return;
        }
        if mine == DiskState::Negotiating && !self.has_seen_our_disk(peer, number) {
            return;
        }
        let called = matches!(theirs, R::WFBitMapS | R::WFBitMapT);
        // Two that attach at once: one waits for the other's vote, but in 8.4 there is none.
        let alone = disk != DiskState::Negotiating || self.speaks_84(peer);
        let attaching = mine == DiskState::Negotiating && alone;
        let behind = mine == DiskState::Inconsistent && disk == DiskState::UpToDate && theirs == R::Established;
        let outdated = mine == DiskState::Outdated && disk == DiskState::UpToDate && theirs == R::Established;
        if !called && !attaching && !behind && !outdated {
            return;
        }
        // Rule RS-9: what comes from another node may make this comparison needless.
        if !called && self.sync_source_of(number).is_some() {
            return;
        }
        let decision = self.decide(peer, number, false);
        self.report_decision(peer, number, &decision);
        match decision.strategy {
            Strategy::NoSync if called => {
                self.protocol_error(peer, "the peer starts a resync that this node sees no reason for")
            }
            Strategy::Source(_) if (called && theirs == R::WFBitMapT) || attaching => {
                self.follow_decision(peer, number, &decision)
            }
            Strategy::Target(_) if (called && theirs == R::WFBitMapS) || attaching || behind || outdated => {
                self.follow_decision(peer, number, &decision)
            }
            Strategy::NoSync => self.follow_decision(peer, number, &decision),
            Strategy::Source(_) | Strategy::Target(_) => {
                self.protocol_error(peer, "the peer decided another direction of resync than this node")
            }
            _ => self.refuse_comparison(peer, number, &decision),
        }
    }

    /// What an 8.4 peer said last is its answer to our attach. Before that it may say the end of a resync that ran until
    /// our disk went, and nothing that it said of its generations is true any more. (Others have voted.)
    fn has_seen_our_disk(&self, peer: NodeId, number: VolumeNumber) -> bool {
        let seen = self.peer(peer).volumes[&number].word.and_then(|word| word.peer_disk().ok());
        !self.speaks_84(peer) || seen.is_some_and(|disk| disk >= DiskState::Negotiating)
    }

    fn refuse_comparison(&mut self, peer: NodeId, number: VolumeNumber, decision: &crate::handshake::Decision) {
        if matches!(decision.strategy, Strategy::SplitBrain { .. }) {
            self.event(Event::SplitBrain { peer, volume: number });
            return self.refuse_standing(peer, "split brain");
        }
        self.refuse_standing(peer, "the data of the two nodes does not go together")
    }

    fn follow_decision(&mut self, peer: NodeId, number: VolumeNumber, decision: &crate::handshake::Decision) {
        self.start_as_decided(peer, number, decision, "compared again");
        self.send_uuids(peer, number, 0, None);
        self.send_state(peer, number);
        self.start_exchange(peer, number);
    }

    fn refuse_standing(&mut self, peer: NodeId, text: &str) {
        self.send_data(peer, None, Message::Disconnect, None);
        self.end_connection(peer, End::StandAlone, ConnectionState::Disconnecting, text);
    }

    /// UUIDs that say "declared equal" (skip initial sync).
    pub(crate) fn is_skip_initial_sync(flags: u64) -> bool {
        flags & uuid_flag::SKIP_INITIAL_SYNC != 0
    }
}
