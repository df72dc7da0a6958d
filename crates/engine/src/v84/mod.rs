//! The adapter to a peer that speaks the 8.4 dialect: a kernel's DRBD 8.4, or DRBD 9 in its compatibility path.
//!
//! The rooms of the engine go by the rules of DRBD 9. Here stands what is different, and the messages are translated on
//! their way in ([`Engine::dispatch_84`]) and out ([`Engine::in_dialect`]):
//!
//! | DRBD 9 | 8.4 | here |
//! |---|---|---|
//! | connect by two-phase commit | each side decides by itself when it has the other's states | `handshake_ready_84` |
//! | other changes by two-phase commit | the peer is asked, does it and answers | `change` |
//! | identifiers for each node, 32 of history | one bitmap UUID, two of history | `claims_of`, `decide` |
//! | resync starts behind the bitmaps | the source names it with SYNC_UUID | `announce_sync_uuid` |
//! | the target's UUIDS110 end a resync | its STATE does | `source_finished_84`, `adopt_84` |
//! | PEER_ACK settles a Secondary's writes | the barrier does | `settle_epoch_84` |
//! | a diskless Primary begins generations | its peer does | `follow_diskless_primary_84` |
//!
//! Two nodes only. A message that means nothing here ends the connection with its name.

mod change;
pub(crate) mod decide;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use types::{
    ByteRange, ConnectionState, DiskState, LinkId, NodeId, NodeSet, PayloadId, ReplicationState, Role, Uuid,
    VolumeNumber,
};
use wire::Message;
use wire::codec::ID_SYNCER;
use wire::message::{ConnectionFeatures, Uuids};
use wire::state_word::flag;
use wire::v84::{HISTORY_LEN, Message84, SYNC_UUID_OFFSET, UUID_FLAGS, Uuids84};
use wire::version::{self, Dialects};

pub(crate) use change::needs_consent;

use crate::Engine;
use crate::connect::{End, Phase, name_of};
use crate::epoch::EpochId;
use crate::handshake::{Decision, Rule};
use crate::replica::Stage;
use crate::resync::ResyncRequest;
use crate::slab::Key;
use crate::state::Deferred;
use crate::verify::VerifyBlock;
use crate::volume::Backing;

/// First version whose resync packets carry block ids.
const PROTOCOL_WITH_RESYNC_IDS: u32 = 122;

/// What a link in this dialect remembers.
pub(crate) struct LinkState {
    /// Highest version that the peer offered: above 101 it is a DRBD 9, with other numbers in state requests.
    peer_max: u32,
    /// Requests that it has not answered: of a volume, or of the connection.
    asked: BTreeSet<Option<VolumeNumber>>,
    /// The worst answer to the requests of the present change.
    refused: Option<i32>,
    /// SYNC_UUIDs that came before the answer to the request that they follow from: that travels on the other socket.
    early: BTreeMap<VolumeNumber, Uuid>,
}

impl LinkState {
    pub fn new(peer_max: u32) -> LinkState {
        LinkState { peer_max, asked: BTreeSet::new(), refused: None, early: BTreeMap::new() }
    }
}

impl Engine {
    pub(crate) fn speaks_84(&self, peer: NodeId) -> bool {
        self.peers.get(&peer).and_then(|p| p.link.as_ref()).is_some_and(|l| l.v84.is_some())
    }

    pub(crate) fn our_offer(&self, peer: NodeId) -> ConnectionFeatures {
        let configured = self.peers.get(&peer).map_or(Dialects::Nine, |p| p.config.dialects);
        let dialects = if self.peers.len() == 1 { configured } else { Dialects::Nine };
        version::offer(self.me, peer, dialects)
    }

    // ------------------------------------------------------------------ out

    /// `message` as the peer understands it. `None`: it has no such thing and needs none.
    pub(crate) fn in_dialect(&self, peer: NodeId, volume: Option<VolumeNumber>, message: Message) -> Option<Message> {
        if !self.speaks_84(peer) {
            return Some(message);
        }
        Some(match message {
            Message::Uuids(uuids) => Message::V84(Message84::Uuids(claims_of(&uuids, peer))),
            // A role without a volume: each volume's own STATE says it, too.
            Message::State(_) if volume.is_none() => return None,
            Message::State(word) => Message::State(word.with_flag(flag::QUORUM, false)),
            Message::Sizes(mut sizes) => {
                // Room to grow is not offered: a peer that grew would write where this node has nothing.
                if sizes.current_bytes > 0 {
                    sizes.disk_bytes = sizes.disk_bytes.min(sizes.current_bytes);
                }
                Message::Sizes(sizes)
            }
            Message::RsDataRequest(mut request) => {
                request.block_id = ID_SYNCER;
                Message::RsDataRequest(request)
            }
            Message::CsumRsRequest { mut request, digest } => {
                request.block_id = ID_SYNCER;
                Message::CsumRsRequest { request, digest }
            }
            Message::OvRequest(mut request) => {
                request.block_id = ID_SYNCER;
                Message::OvRequest(request)
            }
            Message::RsNegAck(mut ack) => {
                ack.block_id = ID_SYNCER;
                Message::NegAck(ack)
            }
            // Positions in a Primary's stream, and what only they make possible.
            Message::Dagtag(_)
            | Message::PeerAck { .. }
            | Message::PeersInSync { .. }
            | Message::FlushRequests(_)
            | Message::FlushRequestsAck { .. }
            // A node without a disk says nothing of its data.
            | Message::CurrentUuid { .. }
            // The peer comes to the same verdict by itself; then the socket closes.
            | Message::Disconnect => return None,
            other => other,
        })
    }

    /// The block id that acknowledges a resync block.
    pub(crate) fn resync_id(&self, peer: NodeId, key: Key) -> u64 {
        if self.has_resync_ids(peer) { key } else { ID_SYNCER }
    }

    fn has_resync_ids(&self, peer: NodeId) -> bool {
        self.peer(peer).link.as_ref().is_none_or(|l| l.protocol >= PROTOCOL_WITH_RESYNC_IDS)
    }

    // ------------------------------------------------------------------ in

    /// Before version 122 a resync packet is found by its range. A request that was given up comes first: its answer is
    /// the older one.
    pub(crate) fn with_resync_ids(&self, peer: NodeId, volume: Option<VolumeNumber>, message: Message) -> Message {
        let Some(number) = volume.filter(|_| !self.has_resync_ids(peer)) else { return message };
        let open = |range: ByteRange, r: &ResyncRequest| {
            r.peer == peer && r.volume == number && r.range == range && r.awaits_answer()
        };
        let verified = |range: ByteRange| {
            let of_it = |b: &&VerifyBlock| b.peer == peer && b.volume == number && b.range == range && b.is_asked();
            self.verify_blocks.iter().find(|(_, b)| of_it(b)).map(|(key, _)| Engine::verify_id(key))
        };
        let key_of = |range: ByteRange, id: u64| {
            let found = self.resync_requests.iter().filter(|(_, r)| open(range, r));
            let resync = found.min_by_key(|(_, r)| !r.orphan).map(|(key, _)| key);
            resync.or_else(|| verified(range)).unwrap_or(id)
        };
        match message {
            Message::RsDataReply(mut head) => {
                head.block_id = key_of(head.range, head.block_id);
                Message::RsDataReply(head)
            }
            Message::NegRsDataReply(mut ack) => {
                ack.block_id = key_of(ack.range, ack.block_id);
                Message::NegRsDataReply(ack)
            }
            Message::RsCancel(mut ack) => {
                ack.block_id = key_of(ack.range, ack.block_id);
                Message::RsCancel(ack)
            }
            Message::RsDataRequest(mut request) => {
                request.block_id = ID_SYNCER;
                Message::RsDataRequest(request)
            }
            Message::RsThinRequest(mut request) => {
                request.block_id = ID_SYNCER;
                Message::RsThinRequest(request)
            }
            Message::CsumRsRequest { mut request, digest } => {
                request.block_id = ID_SYNCER;
                Message::CsumRsRequest { request, digest }
            }
            Message::RsIsInSync(mut ack) => {
                ack.block_id = key_of(ack.range, ack.block_id);
                Message::RsIsInSync(ack)
            }
            Message::OvRequest(mut request) => {
                request.block_id = ID_SYNCER;
                Message::OvRequest(request)
            }
            Message::OvReply { mut request, digest } => {
                request.block_id = verified(request.range).unwrap_or(request.block_id);
                Message::OvReply { request, digest }
            }
            Message::NegAck(ack) if ack.block_id == ID_SYNCER => Message::RsNegAck(ack),
            other => other,
        }
    }

    /// In place of `dispatch`.
    pub(crate) fn dispatch_84(
        &mut self,
        peer: NodeId,
        volume: Option<VolumeNumber>,
        message: Message,
        payload: Option<PayloadId>,
    ) {
        if let Some(text) = self.peer(peer).refused.clone() {
            self.release(payload);
            let told = matches!(message, Message::State(_) | Message::Sizes(_) | Message::V84(Message84::Uuids(_)));
            if !told {
                self.end_connection(peer, End::StandAlone, ConnectionState::Disconnecting, &text);
            }
            return;
        }
        match (volume, message) {
            (_, Message::V84(message)) => self.received_84(peer, volume, message),
            (_, Message::ProtocolUpdate(options)) if !options.integrity_alg.is_empty() => {
                let text =
                    format!("the peer turned data-integrity-alg {} on, which this node lacks", options.integrity_alg);
                self.end_connection(peer, End::StandAlone, ConnectionState::Disconnecting, &text)
            }
            (Some(number), Message::OutOfSync(range))
                if self.volumes.contains_key(&number) && !self.fetches_or_will(peer, number) =>
            {
                self.missed_a_block(peer, number, range)
            }
            (Some(number), message @ Message::State(_)) => {
                self.dispatch(peer, Some(number), message, payload);
                self.check_generations_84(peer, number);
            }
            (volume, message) => self.dispatch(peer, volume, message, payload),
        }
    }

    /// An attach is not agreed on: two disks that appear at once, each before it knows of the other, are not compared.
    /// The handshake of a new connection does that.
    fn check_generations_84(&mut self, peer: NodeId, number: VolumeNumber) {
        let Some(device) = self.peers.get(&peer).and_then(|p| p.volumes.get(&number)) else { return };
        let Some(theirs) = device.uuids.as_ref().map(|u| u.current) else { return };
        let idle = device.is_settled() && self.peer(peer).is_connected();
        let good = device.disk == DiskState::UpToDate && self.volume(number).disk == DiskState::UpToDate;
        let mine = self.volume(number).current_uuid();
        if idle && good && !theirs.is_just_created() && !theirs.same(mine) {
            let text =
                format!("volume {number} is UpToDate on both sides, with generation {mine} here and {theirs} there");
            self.protocol_error(peer, &text);
        }
    }

    fn received_84(&mut self, peer: NodeId, volume: Option<VolumeNumber>, message: Message84) {
        let name = name_of(&Message::V84(message));
        if let Some(number) = volume
            && !self.volumes.contains_key(&number)
        {
            let text = format!("{name} for volume {number}, which this node does not have");
            return match message {
                Message84::Uuids(_) => self.warn(format!("node {peer}: {text}")),
                _ => self.protocol_error(peer, &text),
            };
        }
        if let (Message84::Uuids(claims), Some(number)) = (message, volume) {
            return self.claims_received(peer, number, claims);
        }
        if !self.peer(peer).is_connected() {
            return self.protocol_error(peer, &format!("{name} before the connection is set up"));
        }
        match (message, volume) {
            (Message84::SyncUuid(uuid), Some(number)) => self.sync_uuid_received(peer, number, uuid),
            (Message84::VolumeRequest(request), Some(number)) => self.volume_requested(peer, number, request),
            (Message84::VolumeReply(code), Some(number)) => self.replied_84(peer, Some(number), code),
            (Message84::ConnectionRequest(request), _) => self.connection_requested(peer, request),
            (Message84::ConnectionReply(code), _) => self.replied_84(peer, None, code),
            _ => self.protocol_error(peer, &format!("unexpected {name}: it needs two Primaries")),
        }
    }

    fn claims_received(&mut self, peer: NodeId, number: VolumeNumber, claims: Uuids84) {
        let uuids = Uuids {
            current: claims.current,
            dirty_bits: claims.dirty_bits,
            flags: claims.flags & UUID_FLAGS,
            node_mask: 0,
            bitmap_mask: 1 << self.me.get(),
            bitmap: vec![claims.bitmap],
            history: claims.history.to_vec(),
        };
        self.got_uuids(peer, number, uuids);
        // What a Primary without a disk shows is the peer's, and so is the generation that follows on it.
        let shown = self.volume(number).exposed_uuid;
        let follows = shown.is_zero() || claims.bitmap.same(shown);
        let diskless_primary = self.is_primary() && self.volume(number).backing.is_none();
        if diskless_primary && follows && self.peer(peer).is_connected() {
            self.volume_mut(number).exposed_uuid = claims.current;
        }
    }

    /// The peer sends OUT_OF_SYNC only to a target. To another it says: a block is missing there.
    fn missed_a_block(&mut self, peer: NodeId, number: VolumeNumber, range: ByteRange) {
        self.out_of_sync_received(peer, number, range);
        if !self.is_primary() && self.volume(number).disk > DiskState::Outdated {
            self.set_disk(number, DiskState::Outdated, "the peer has blocks that it did not send");
        }
        self.protocol_error(peer, "OUT_OF_SYNC outside of a resync");
    }

    fn fetches_or_will(&self, peer: NodeId, number: VolumeNumber) -> bool {
        use ReplicationState as R;
        let state = self.peer(peer).volumes[&number].replication;
        matches!(state, R::WFBitMapT | R::WFSyncUUID | R::SyncTarget | R::PausedSyncT)
    }

    // ------------------------------------------------------------------ handshake

    /// Both sides have said everything. No vote: each decides by itself, by the same rules.
    pub(crate) fn handshake_ready_84(&mut self, peer: NodeId) {
        if !matches!(self.peer(peer).link.as_ref().map(|l| &l.phase), Some(Phase::Exchange { .. })) {
            return;
        }
        if self.peer(peer).refused.is_some() {
            return;
        }
        match self.decide_all(peer) {
            Ok(decisions) => self.connected(peer, decisions),
            // It closes when it has come to the same verdict; closed from here it would try again for ever.
            Err((End::StandAlone, text)) => self.peer_mut(peer).refused = Some(text),
            Err((end, text)) => self.end_connection(peer, end, ConnectionState::Disconnecting, &text),
        }
    }

    pub(crate) fn decide_84(&self, peer: NodeId, number: VolumeNumber) -> Decision {
        let device = &self.peer(peer).volumes[&number];
        let arbiter = self.peer(peer).link.as_ref().is_some_and(|l| l.arbiter);
        let ours = claims_of(&self.our_uuids(peer, number, 0, None), peer);
        let theirs = device.uuids.as_ref().expect("a peer with a disk says its identifiers");
        let word = device.word.expect("a decision follows a state");
        let me = decide::Side { claims: ours, disk: self.volume(number).disk, role: self.role };
        let its_disk = word.disk().unwrap_or(DiskState::Diskless);
        let peer_side = decide::Side {
            claims: claims_of(theirs, self.me),
            disk: its_disk,
            role: word.role().unwrap_or(Role::Unknown),
        };
        decide::decide(&me, &peer_side, arbiter)
    }

    /// A source that missed the end, or the start, of its last resync knows that now.
    pub(crate) fn repair_claims_84(&mut self, peer: NodeId, number: VolumeNumber, rule: Rule) {
        let Some(backing) = &mut self.volume_mut(number).backing else { return };
        let superblock = &mut backing.superblock;
        let record = &mut superblock.peers[peer.index()];
        match rule {
            Rule::V84MissedEndSelf => {
                let passed = core::mem::replace(&mut record.bitmap_uuid, Uuid::ZERO);
                push(backing, passed);
            }
            Rule::V84LostSyncUuidSelf => {
                let Some(at) = before_resync(record.bitmap_uuid, &superblock.history) else { return };
                record.bitmap_uuid = superblock.history[at];
                superblock.history[at..].rotate_left(1);
                *superblock.history.last_mut().expect("it has 32 entries") = Uuid::ZERO;
            }
            _ => return,
        }
        backing.touch();
    }

    // ------------------------------------------------------------------ resync

    /// The source's last step before a resync: a name for it, durable before the target carries it.
    pub(crate) fn announce_sync_uuid(&mut self, peer: NodeId, number: VolumeNumber) {
        let fresh = self.random_uuid();
        let Some(link) = self.peer(peer).link_id() else { return };
        let Some(backing) = &mut self.volume_mut(number).backing else { return };
        let old = backing.bitmap_uuid(peer);
        let uuid = if old.is_just_created() { fresh } else { Uuid(old.0.wrapping_add(SYNC_UUID_OFFSET)) };
        backing.superblock.peers[peer.index()].bitmap_uuid = uuid;
        push(backing, old);
        backing.touch();
        self.when_durable(number, Deferred::SyncUuid { peer, link, uuid });
    }

    pub(crate) fn send_sync_uuid(&mut self, peer: NodeId, number: VolumeNumber, link: LinkId, uuid: Uuid) {
        let device = &self.peer(peer).volumes[&number];
        let waits = device.replication == ReplicationState::WFBitMapS && device.exchange.is_none();
        let named = self.volume(number).backing.as_ref().is_some_and(|b| b.bitmap_uuid(peer) == uuid);
        if !waits || !named || self.peer(peer).link_id() != Some(link) {
            return;
        }
        self.send_data(peer, Some(number), Message::V84(Message84::SyncUuid(uuid)), None);
        self.begin_source(peer, number, "SYNC_UUID sent");
    }

    /// The target of a full sync by command: every bit is set, the source says the name.
    pub(crate) fn await_sync_uuid(&mut self, peer: NodeId, number: VolumeNumber, reason: &'static str) {
        self.set_replication(peer, number, ReplicationState::WFSyncUUID, reason);
        let link = self.peer_mut(peer).link.as_mut().and_then(|l| l.v84.as_mut());
        if let Some(uuid) = link.and_then(|l| l.early.remove(&number)) {
            self.sync_uuid_received(peer, number, uuid);
        }
    }

    fn sync_uuid_received(&mut self, peer: NodeId, number: VolumeNumber, uuid: Uuid) {
        let state = self.peer(peer).volumes[&number].replication;
        if state != ReplicationState::WFSyncUUID {
            // It overtook the answer to our invalidate, on the other socket.
            let link = self.peer_mut(peer).link.as_mut().and_then(|l| l.v84.as_mut());
            if let Some(link) = link.filter(|l| l.asked.contains(&Some(number))) {
                link.early.insert(number, uuid);
                return;
            }
            return self.protocol_error(peer, &format!("SYNC_UUID of volume {number} in state {state}"));
        }
        if uuid.is_just_created() {
            return self.protocol_error(peer, &format!("SYNC_UUID {uuid} of volume {number} names no generation"));
        }
        let primary = self.is_primary();
        let Some(backing) = &mut self.volume_mut(number).backing else { return };
        backing.superblock.current_uuid = uuid.with_primary_bit(primary);
        backing.superblock.peers[peer.index()].bitmap_uuid = Uuid::ZERO;
        backing.touch();
        self.begin_target(peer, number, "SYNC_UUID received");
    }

    /// In place of `adopt_generation`: both nodes must come to the same current UUID and the same two of history, or
    /// the rules for a missed end do not find them.
    pub(crate) fn adopt_84(&mut self, peer: NodeId, number: VolumeNumber) {
        let primary = self.is_primary();
        let device = self.device_mut(peer, number);
        device.resync.as_mut().expect("the caller looked at it").phase = crate::resync::ResyncPhase::Adopting;
        let Some(theirs) = device.uuids.clone() else {
            return self.protocol_error(peer, "a source that said no identifiers");
        };
        let theirs = claims_of(&theirs, self.me);
        let Some(backing) = &mut self.volume_mut(number).backing else { return };
        backing.clear_all_towards(peer);
        let named = backing.superblock.current_uuid;
        for uuid in theirs.history.into_iter().rev().chain([theirs.bitmap, named]) {
            push(backing, uuid);
        }
        backing.superblock.current_uuid = theirs.current.with_primary_bit(primary);
        backing.writer.want_data_first();
        backing.touch();
        self.peer_is_equal(peer, number);
        self.when_durable(number, Deferred::ResyncFinished { peer });
    }

    /// The target's STATE says that it is UpToDate, and no bit is left (checked): rule GE-4 without an announcement.
    pub(crate) fn source_finished_84(&mut self, peer: NodeId, number: VolumeNumber) {
        if !self.speaks_84(peer) {
            return;
        }
        let Some(backing) = &mut self.volume_mut(number).backing else { return };
        let passed = core::mem::replace(&mut backing.superblock.peers[peer.index()].bitmap_uuid, Uuid::ZERO);
        push(backing, passed);
        backing.clear_all_towards(peer);
        backing.touch();
        self.peer_is_equal(peer, number);
    }

    /// What the peer would say of itself now: it says nothing at the end of a resync.
    fn peer_is_equal(&mut self, peer: NodeId, number: VolumeNumber) {
        let Some(backing) = &self.volume(number).backing else { return };
        let (current, history) = (backing.superblock.current_uuid, backing.superblock.history);
        let device = self.device_mut(peer, number);
        device.current_uuid = current;
        if let Some(uuids) = &mut device.uuids {
            uuids.current = current;
            uuids.dirty_bits = 0;
            uuids.bitmap = vec![Uuid::ZERO];
            uuids.history = history[..HISTORY_LEN].to_vec();
        }
    }

    // ------------------------------------------------------------------ writes

    /// A write that this target-to-be gets by resync: it is told at once, because behind SYNC_UUID it takes no
    /// OUT_OF_SYNC. The block is read for it after the write (rule RS-4), so retirement need not set the bit.
    pub(crate) fn mark_only_84(&mut self, peer: NodeId, key: Key) {
        let write = self.writes.get_mut(key).expect("the caller looked it up");
        write.marked = write.marked.with(peer);
        let (number, range) = (write.volume, write.range);
        self.volume_mut(number).mark_out_of_sync(peer, range);
        if self.peer(peer).volumes[&number].replication == ReplicationState::WFBitMapS {
            self.send_data(peer, Some(number), Message::OutOfSync(range), None);
        }
    }

    /// There is no PEER_ACK: a write of the peer is settled when its epoch is stable here. The Primary answers for its
    /// own copy with its own log, as long as it has a disk (rule BM-4).
    pub(crate) fn settle_epoch_84(&mut self, peer: NodeId, epoch: EpochId) {
        if !self.speaks_84(peer) {
            return;
        }
        let keys: Vec<Key> = self.peer(peer).unacked.iter().copied().collect();
        let of_epoch = |key: &Key| self.peer_writes.get(*key).is_some_and(|w| w.epoch <= epoch);
        let keys: Vec<Key> = keys.into_iter().take_while(of_epoch).collect();
        self.settle_writes_84(peer, &keys);
    }

    /// These writes are stable here.
    pub(crate) fn settle_writes_84(&mut self, peer: NodeId, keys: &[Key]) {
        self.peer_mut(peer).unacked.retain(|key| !keys.contains(key));
        for key in keys {
            let Some(write) = self.peer_writes.get(*key) else { continue };
            let (number, stage) = (write.volume, write.stage);
            assert!(matches!(stage, Stage::Done { .. }), "a write of a stable epoch is {stage:?}");
            let disk = self.peer(peer).volumes[&number].disk;
            let has_copy = disk >= DiskState::Inconsistent && disk != DiskState::DUnknown;
            let nodes = NodeSet::only(self.me);
            self.forget_peer_write(*key, if has_copy { nodes.with(peer) } else { nodes });
        }
    }

    // ------------------------------------------------------------------ generations

    /// This Primary's generations are its peer's: it has no disk, and in 8.4 the peer begins them.
    pub(crate) fn follows_an_84_peer(&self) -> bool {
        self.peers.values().any(|p| p.is_connected() && self.speaks_84(p.id))
    }

    /// A Primary without a disk of its own writes here only: its UpToDate peer begins the generation, unless what the
    /// Primary had counts from an older one already.
    pub(crate) fn follow_diskless_primary_84(&mut self, peer: NodeId, number: VolumeNumber) {
        let entry = self.peer(peer);
        let diskless = entry.volumes[&number].disk <= DiskState::Failed;
        let primary = entry.role == Role::Primary && entry.is_connected();
        if !self.speaks_84(peer) || !primary || !diskless || self.is_primary() {
            return;
        }
        let volume = self.volume(number);
        let counts = volume.backing.as_ref().is_none_or(|b| !b.bitmap_uuid(peer).is_zero());
        if counts || volume.disk != DiskState::UpToDate {
            return;
        }
        let fresh = self.random_uuid().with_primary_bit(false);
        self.follow_generation(peer, number, fresh, NodeSet::only(peer));
    }
}

/// What an identifiers packet of DRBD 9 comes to for one other node.
fn claims_of(uuids: &Uuids, other: NodeId) -> Uuids84 {
    let bitmap = uuids.bitmap_of(other).filter(|u| !u.same(Uuid::UNKNOWN)).unwrap_or(Uuid::ZERO);
    let at = |index: usize| uuids.history.get(index).copied().unwrap_or(Uuid::ZERO);
    // 8.4 begins no generation while a bitmap UUID counts, this node may (rule GE-7). Of the two entries that the peer
    // sees, one is then what the bitmap UUID was before the resync that it names, the other what came next.
    let history = match before_resync(bitmap, &uuids.history) {
        Some(index @ 1..) => [at(index), at(index - 1)],
        _ => [at(0), at(1)],
    };
    let flags = uuids.flags & UUID_FLAGS;
    Uuids84 { current: uuids.current, bitmap, history, dirty_bits: uuids.dirty_bits, flags }
}

/// Where in `history` the bitmap UUID stands that `bitmap` was made of when it became the name of a resync.
fn before_resync(bitmap: Uuid, history: &[Uuid]) -> Option<usize> {
    let before = Uuid(bitmap.identity().0.wrapping_sub(SYNC_UUID_OFFSET));
    history.iter().position(|old| !old.is_zero() && old.same(before))
}

/// 8.4's history: every identifier that passes goes to the front, whatever stands there.
fn push(backing: &mut Backing, passed: Uuid) {
    if passed.is_just_created() {
        return;
    }
    backing.superblock.history.rotate_right(1);
    backing.superblock.history[0] = passed.identity();
}
