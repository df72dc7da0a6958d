//! One connection: its link, what was last said on it, the sender's side of write epochs and of peer acks, and one
//! [`PeerDevice`] a volume.
//!
//! ```text
//! StandAlone <- Disconnecting <-------------------+
//!     | connect                                   | disconnect
//!     v                                           |
//! Unconnected -> Connecting -> Connected ---------+
//!     ^               \            |
//!     +---- Timeout, BrokenPipe, NetworkFailure, ProtocolError, TearDown
//! ```
//! `Connecting` covers everything from "looking for the peer" to the end of the handshake ([`Phase`]).

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use types::{ConnectionState, DiskState, LinkId, NodeId, NodeSet, ReplicationState, Role, Time, Uuid, VolumeNumber};
use wire::message::{Sizes, StateWord, Uuids};
use wire::{Message, Socket};

use crate::Engine;
use crate::api::{AuthConfig, Effect, PeerConfig, Protocol, ResourceConfig};
use crate::connect::Phase;
use crate::epoch::{EpochId, Epochs};
use crate::exchange::Exchange;
use crate::latency::Average;
use crate::progress::Marks;
use crate::resync::Resync;
use crate::slab::Key;
use crate::table::Table;
use crate::verify::Verify;

/// Writes of which one begins so soon after another has ended follow each other closely: longer than an application takes
/// from one write's completion to its next write.
pub(crate) const WRITES_ARE_CLOSE: Duration = Duration::from_millis(2);

/// How long a barrier waits for the next of such writes. Longer than a tick of the kernel's, before which it would have to
/// set the processor's timer for each wait anew. Nobody waits for this barrier, see [`Engine::close_epoch_lazily`].
pub(crate) const BARRIER_DELAY: Duration = Duration::from_millis(10);

pub(crate) struct Peer {
    pub id: NodeId,
    pub config: PeerConfig,
    pub connection: ConnectionState,
    pub role: Role,
    pub link: Option<Link>,
    /// The operator wants this connection.
    pub wanted: bool,
    pub discard_my_data: bool,
    /// We voted against this connection for good: why.
    pub refused: Option<String>,
    pub volumes: Table<VolumeNumber, PeerDevice>,

    // Our writes towards it.
    pub open_epoch: Option<OpenEpoch>,
    /// Closed, not acknowledged, oldest first.
    pub closed_epochs: VecDeque<ClosedEpoch>,
    pub next_barrier: u32,
    pub dagtag_sent: Option<u64>,
    /// Bytes of our writes that are not yet stable there.
    pub unstable_bytes: u64,
    pub peer_ack: Option<PendingPeerAck>,
    /// FLUSH_REQUESTS to answer: its number, and the position that has to be settled first.
    pub flush_asked: Option<(u64, u64)>,

    // Its writes towards us.
    pub epochs: Epochs,
    /// Its writes that its next PEER_ACKs will settle, in order of its stream.
    pub unacked: VecDeque<Key>,
    /// Its writes of an epoch that may not start yet.
    pub held: VecDeque<Key>,
    pub dagtag_received: u64,
    /// Volumes whose flush is on its way for the oldest epoch, or to confirm part of it.
    pub epoch_flushes: u32,
    /// The epoch that this flush makes stable, and one that needs another flush after it.
    pub epoch_flushing: Option<EpochId>,
    pub epoch_due: Option<EpochId>,
    pub flush_failed: bool,
    /// Writes that the flush under way will let us confirm as stable.
    pub confirm: Vec<Key>,
    /// Number of the last FLUSH_REQUESTS to it.
    pub flush_sequence: u64,
}

pub(crate) struct Link {
    pub id: LinkId,
    pub arbiter: bool,
    pub phase: Phase,
    pub protocol: u32,
    /// Agreed.
    pub features: u32,
    /// As the peer offered them.
    pub offered: u32,
    /// The 8.4 dialect was agreed on.
    pub v84: Option<crate::v84::LinkState>,
    /// As it was when the link came up: a new secret is for the next one.
    pub auth: Option<AuthConfig>,
    /// Protocol A, B or C as this end said it in the handshake. If that succeeds, the other end said the same: what is
    /// decided from it is decided alike on both.
    pub protocol_said: Option<Protocol>,
    /// By which the peer digests blocks, as it said with SYNC_PARAM89.
    pub hashes: Option<crate::digest::PeerHashes>,
    /// End of the handshake, or of waiting for it.
    pub deadline: Option<Time>,
    /// Last sign of life on the control socket.
    pub heard: Time,
    /// When the pings were sent that are not answered yet.
    pub pings: VecDeque<Time>,
    pub pings_sent: u64,
    pub pings_answered: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenEpoch {
    pub epoch: u64,
    pub barrier: u32,
    pub writes: u32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ClosedEpoch {
    pub barrier: u32,
    pub writes: u32,
    pub sent: Time,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingPeerAck {
    pub nodes: NodeSet,
    pub dagtag: u64,
    pub since: Time,
}

/// One volume seen over one connection.
pub(crate) struct PeerDevice {
    pub replication: ReplicationState,
    /// The peer's disk as this node knows it.
    pub disk: DiskState,
    /// What the peer last said of itself.
    pub sizes: Option<Sizes>,
    pub uuids: Option<Uuids>,
    /// A diskless peer's data.
    pub current_uuid: Uuid,
    pub word: Option<StateWord>,
    /// We were connected before with both disks compared, since the disk was attached: a reconnect is not a restart.
    pub reconnect: bool,
    /// UUIDs as we sent them in this handshake; if ours changed since, the handshake starts over.
    pub uuids_sent: Option<Uuids>,
    pub disk_sent: Option<DiskState>,

    pub paused_by_user: bool,
    pub paused_by_peer: bool,
    pub exchange: Option<Exchange>,
    pub resync: Option<Resync>,
    pub verify: Option<Verify>,
    /// Where the last verify was interrupted, and the next one goes on. Bytes.
    pub verify_position: u64,
    /// Started as source; for the report at the end.
    pub source_since: Option<(Time, u64)>,
    /// Progress of a resync that this node is the source of.
    pub marks: Option<Marks>,

    /// Last sequence number that went out, on both sockets together.
    pub sequence: u32,
    pub pending: u64,
    pub unacked: u64,
    /// It wrote here what no flush has made stable yet.
    pub unflushed: bool,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub resynced_bytes: u64,
    pub equal_by_csum_bytes: u64,
    pub last_decision: String,
    /// What it takes to answer a write of ours that waits for it.
    pub answer: Average,
}

/// How a write reaches a peer (docs/states.md "Who receives a write").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WriteMode {
    Nothing,
    MarkOnly,
    Data { may_set_in_sync: bool },
}

impl PeerDevice {
    pub fn new() -> PeerDevice {
        PeerDevice {
            replication: ReplicationState::Off,
            disk: DiskState::DUnknown,
            sizes: None,
            uuids: None,
            current_uuid: Uuid::ZERO,
            word: None,
            reconnect: false,
            uuids_sent: None,
            disk_sent: None,
            paused_by_user: false,
            paused_by_peer: false,
            exchange: None,
            resync: None,
            verify: None,
            verify_position: 0,
            source_since: None,
            marks: None,
            sequence: 0,
            pending: 0,
            unacked: 0,
            unflushed: false,
            sent_bytes: 0,
            received_bytes: 0,
            resynced_bytes: 0,
            equal_by_csum_bytes: 0,
            last_decision: String::new(),
            answer: Average::default(),
        }
    }

    pub fn write_mode(&self) -> WriteMode {
        use ReplicationState as R;
        match (self.replication, self.disk) {
            (R::Off, _) => WriteMode::Nothing,
            (_, DiskState::Diskless | DiskState::Attaching | DiskState::Detaching | DiskState::Failed) => {
                WriteMode::Nothing
            }
            (R::Ahead | R::WFBitMapS, _) | (_, DiskState::Outdated) => WriteMode::MarkOnly,
            (R::SyncSource | R::SyncTarget | R::PausedSyncS | R::PausedSyncT, _) => {
                WriteMode::Data { may_set_in_sync: true }
            }
            (_, DiskState::Negotiating) => WriteMode::MarkOnly,
            _ => WriteMode::Data { may_set_in_sync: false },
        }
    }

    /// It has a disk, and with that, as Primary, a log of what it writes.
    pub fn has_log(&self) -> bool {
        self.disk >= DiskState::Inconsistent && self.disk != DiskState::DUnknown
    }

    pub fn is_syncing(&self) -> bool {
        use ReplicationState as R;
        matches!(self.replication, R::SyncSource | R::SyncTarget | R::PausedSyncS | R::PausedSyncT)
    }

    pub fn is_verifying(&self) -> bool {
        matches!(self.replication, ReplicationState::VerifyS | ReplicationState::VerifyT)
    }

    /// No resync runs, or is about to: what is written goes to both, and both are equal where no bit says otherwise.
    pub fn is_settled(&self) -> bool {
        self.replication == ReplicationState::Established || self.is_verifying()
    }

    pub fn is_target(&self) -> bool {
        use ReplicationState as R;
        matches!(self.replication, R::SyncTarget | R::PausedSyncT)
    }
}

impl Peer {
    pub fn new(id: NodeId, config: PeerConfig, resource: &ResourceConfig) -> Peer {
        Peer {
            id,
            config,
            connection: ConnectionState::StandAlone,
            role: Role::Unknown,
            link: None,
            wanted: false,
            discard_my_data: false,
            refused: None,
            volumes: resource.volumes.keys().map(|v| (*v, PeerDevice::new())).collect(),
            open_epoch: None,
            closed_epochs: VecDeque::new(),
            next_barrier: 0,
            dagtag_sent: None,
            unstable_bytes: 0,
            peer_ack: None,
            flush_asked: None,
            epochs: Epochs::new(),
            unacked: VecDeque::new(),
            held: VecDeque::new(),
            dagtag_received: 0,
            epoch_flushes: 0,
            epoch_flushing: None,
            epoch_due: None,
            flush_failed: false,
            confirm: Vec::new(),
            flush_sequence: 0,
        }
    }

    pub fn is_connected(&self) -> bool {
        self.connection == ConnectionState::Connected
    }

    /// Every kernel offers THIN_RESYNC, we do not.
    pub fn is_replicad(&self) -> bool {
        self.link.as_ref().is_some_and(|l| l.offered & wire::version::feature::THIN_RESYNC == 0)
    }

    pub fn link_id(&self) -> Option<LinkId> {
        self.link.as_ref().map(|l| l.id)
    }

    pub fn write_mode(&self, volume: VolumeNumber) -> WriteMode {
        if !self.is_connected() {
            return WriteMode::Nothing;
        }
        self.volumes.get(&volume).map_or(WriteMode::Nothing, PeerDevice::write_mode)
    }

    /// The last barrier that has to come back before everything sent so far is stable there.
    pub fn last_open_barrier(&self) -> Option<u32> {
        self.closed_epochs.back().map(|e| e.barrier)
    }
}

impl Engine {
    // ------------------------------------------------------------------ sending

    pub(crate) fn send(&mut self, peer: NodeId, socket: Socket, volume: Option<VolumeNumber>, message: Message) {
        if let Some(link) = self.peer(peer).link_id()
            && let Some(message) = self.in_dialect(peer, volume, message)
        {
            self.emit(Effect::Send { peer, link, socket, volume, message, payload: None });
        }
    }

    pub(crate) fn send_data(
        &mut self,
        peer: NodeId,
        volume: Option<VolumeNumber>,
        message: Message,
        payload: Option<types::PayloadId>,
    ) {
        if let Some(link) = self.peer(peer).link_id()
            && let Some(message) = self.in_dialect(peer, volume, message)
        {
            self.emit(Effect::Send { peer, link, socket: Socket::Data, volume, message, payload });
        }
    }

    /// An acknowledgement: the next sequence number of that volume and direction is taken here.
    pub(crate) fn send_ack(
        &mut self,
        peer: NodeId,
        volume: VolumeNumber,
        range: types::ByteRange,
        block_id: u64,
        message: fn(wire::message::BlockAck) -> Message,
    ) {
        let Some(device) = self.peer_mut(peer).volumes.get_mut(&volume) else { return };
        device.sequence = device.sequence.wrapping_add(1);
        let ack = wire::message::BlockAck { range, block_id, seq: device.sequence };
        self.send(peer, Socket::Control, Some(volume), message(ack));
    }

    /// Sends a ping. Returns its number: once so many are answered, the peer has processed everything that went
    /// before it on the control socket.
    pub(crate) fn ping(&mut self, peer: NodeId) -> u64 {
        let now = self.now;
        let Some(link) = &mut self.peer_mut(peer).link else { return 0 };
        link.pings.push_back(now);
        link.pings_sent += 1;
        let number = link.pings_sent;
        self.send(peer, Socket::Control, None, Message::Ping);
        number
    }

    pub(crate) fn ping_acked(&mut self, peer: NodeId) {
        let Some(link) = &mut self.peer_mut(peer).link else { return };
        if link.pings.pop_front().is_none() {
            return self.protocol_error(peer, "PING_ACK without a PING");
        }
        link.pings_answered += 1;
        let answered = link.pings_answered;
        self.timer_is_set();
        self.resync_ping_acked(peer, answered);
        self.verify_ping_acked(peer, answered);
    }

    // ------------------------------------------------------------------ epochs, sender's side

    pub(crate) fn epoch_writes_max(&self) -> u32 {
        self.peers.values().map(|p| p.config.epoch_writes_max).min().unwrap_or(u32::MAX)
    }

    /// Ends the current write epoch: what is written from now on may depend on what completed before (rule EP-1). The
    /// peers are told at once.
    pub(crate) fn close_epoch(&mut self) {
        self.end_epoch();
        self.send_due_barriers();
    }

    /// The same where nobody waits for the peers' answers: while writes follow each other closely, the barrier goes out
    /// with the next one, and its answer comes back with that one's.
    pub(crate) fn close_epoch_lazily(&mut self) {
        self.end_epoch();
        if self.writes_follow_closely {
            self.barriers_due.get_or_insert(self.now + BARRIER_DELAY);
        } else {
            self.send_due_barriers();
        }
    }

    /// A write of that epoch completes only with the peers' answers to its barrier.
    pub(crate) fn close_epoch_of(&mut self, epoch: u64) {
        if epoch == self.epoch {
            self.end_epoch();
        }
        self.send_due_barriers();
    }

    fn end_epoch(&mut self) {
        if self.epoch_writes > 0 {
            self.epoch += 1;
            self.epoch_writes = 0;
            self.epoch_ended = self.now;
        }
    }

    /// Barriers of all epochs that have ended.
    pub(crate) fn send_due_barriers(&mut self) {
        self.barriers_due = None;
        for at in 0..self.peers.len() {
            let (peer, entry) = self.peers.at(at);
            if entry.open_epoch.is_some_and(|open| open.epoch != self.epoch) {
                self.close_epoch_towards(peer);
            }
        }
    }

    fn close_epoch_towards(&mut self, peer: NodeId) {
        let now = self.now;
        let entry = self.peer_mut(peer);
        if let Some(open) = entry.open_epoch.take() {
            entry.closed_epochs.push_back(ClosedEpoch { barrier: open.barrier, writes: open.writes, sent: now });
            self.send_data(peer, None, Message::Barrier(open.barrier), None);
        }
    }

    /// A write joins the current epoch of that connection. Returns the barrier that will close it.
    pub(crate) fn join_epoch(&mut self, peer: NodeId) -> u32 {
        let epoch = self.epoch;
        if self.peer(peer).open_epoch.is_some_and(|o| o.epoch != epoch) {
            self.close_epoch_towards(peer);
            let is_late = |p: &Peer| p.open_epoch.is_some_and(|o| o.epoch != epoch);
            if !self.peers.values().any(is_late) {
                self.barriers_due = None;
            }
        }
        let entry = self.peer_mut(peer);
        let barrier = entry.next_barrier;
        let open = entry.open_epoch.get_or_insert(OpenEpoch { epoch, barrier, writes: 0 });
        if open.writes == 0 {
            entry.next_barrier = entry.next_barrier.wrapping_add(1);
        }
        open.writes += 1;
        open.barrier
    }

    pub(crate) fn barrier_acked(&mut self, peer: NodeId, barrier: u32, set_size: u32) {
        let expected = self.peer_mut(peer).closed_epochs.pop_front();
        match expected {
            Some(epoch) if epoch.barrier == barrier && epoch.writes == set_size => {
                self.legs_stable(peer, barrier);
                self.flush_barrier_acked(peer, barrier);
            }
            _ => self.protocol_error(peer, "BARRIER_ACK does not match the oldest open epoch"),
        }
    }

    /// Part of the open epoch is stable on the peer, whose activity log is full: peer acks free it.
    pub(crate) fn stable_confirmed(&mut self, peer: NodeId, oldest: Key, youngest: Key, set_size: u32) {
        let Some(count) = self.legs_stable_between(peer, oldest, youngest).filter(|n| *n == set_size) else {
            return self.protocol_error(peer, "CONFIRM_STABLE does not match our open epoch");
        };
        let entry = self.peer_mut(peer);
        let oldest_epoch = match entry.closed_epochs.front_mut() {
            Some(closed) => Some(&mut closed.writes),
            None => entry.open_epoch.as_mut().map(|o| &mut o.writes),
        };
        match oldest_epoch {
            Some(writes) if *writes >= count => *writes -= count,
            _ => return self.protocol_error(peer, "CONFIRM_STABLE counts more writes than the epoch has"),
        }
        self.retire();
        self.send_peer_ack(peer);
    }

    // ------------------------------------------------------------------ dagtags and peer acks

    /// Before a write: where in our stream it starts, if the peer can't know.
    pub(crate) fn send_dagtag(&mut self, peer: NodeId, start: u64, end: u64) {
        let known = self.peer_mut(peer).dagtag_sent.replace(end);
        if known != Some(start) {
            self.send_data(peer, None, Message::Dagtag(start), None);
        }
    }

    /// A write that was sent to `peer` is settled everywhere; `nodes` have it. Equal sets are told together.
    pub(crate) fn note_peer_ack(&mut self, peer: NodeId, link: LinkId, nodes: NodeSet, dagtag: u64) {
        if self.peer(peer).link_id() != Some(link) {
            return;
        }
        if self.peer(peer).peer_ack.is_some_and(|p| p.nodes != nodes) {
            self.send_peer_ack(peer);
        }
        let now = self.now;
        let window = self.config.peer_ack_window_bytes / 512;
        let pending = self.peer_mut(peer).peer_ack.get_or_insert(PendingPeerAck { nodes, dagtag, since: now });
        let first = pending.dagtag;
        pending.dagtag = dagtag;
        if dagtag - first >= window {
            self.send_peer_ack(peer);
        }
    }

    pub(crate) fn send_peer_ack(&mut self, peer: NodeId) {
        if let Some(pending) = self.peer_mut(peer).peer_ack.take() {
            let message = Message::PeerAck { nodes: pending.nodes.to_wire(), dagtag: pending.dagtag };
            self.send(peer, Socket::Control, None, message);
        }
    }

    /// Writes left the transfer log: answers the FLUSH_REQUESTS that waited for them. `settled`: our stream up to
    /// this position is.
    pub(crate) fn answer_flush_requests(&mut self, settled: u64) {
        for at in 0..self.peers.len() {
            let (peer, entry) = self.peers.at(at);
            let Some((sequence, position)) = entry.flush_asked else { continue };
            if position > settled {
                continue;
            }
            self.peer_mut(peer).flush_asked = None;
            self.send_peer_ack(peer);
            let primary = u32::from(self.me.get());
            self.send_data(peer, None, Message::FlushRequestsAck { sequence, primary }, None);
        }
    }

    pub(crate) fn flush_requested(&mut self, peer: NodeId, sequence: u64) {
        self.close_epoch();
        let position = self.dagtag;
        self.peer_mut(peer).flush_asked = Some((sequence, position));
        self.retire = true;
    }

    /// Peers with an open handshake or connection, to be told about states.
    pub(crate) fn peers_to_tell(&self) -> Vec<NodeId> {
        self.peers.values().filter(|p| p.is_connected()).map(|p| p.id).collect()
    }
}
