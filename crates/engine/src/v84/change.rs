//! Cluster-wide changes in the 8.4 dialect. The node that wants one asks its peer with a mask and a value of the state
//! word, as it would have them itself; the peer does its part and answers with a code. A demotion and an attach are not
//! asked for: STATE tells them.

use alloc::collections::BTreeSet;
use alloc::format;

use types::{ConnectionState, DiskState, NodeId, ReplicationState, Role, VolumeNumber};
use wire::message::StateWord;
use wire::state_word::{DISK, PEER_DISK, StateChange};
use wire::v84::{Message84, Request84, disk_from_wire, disk_to_wire, reply};
use wire::{Message, Socket};

use crate::Engine;
use crate::connect::End;
use crate::twophase::Change;
use crate::verify::VerifySpan;

/// A later version than this in the peer's offer: it is a DRBD 9, which puts its own numbers of disk states into
/// requests.
const V84_MAX: u32 = wire::version::V84_MAX;

/// After a peer said goodbye it wants to be left alone for a moment.
const AFTER_TEARDOWN: core::time::Duration = core::time::Duration::from_secs(1);

/// The peer is asked for it.
pub(crate) fn needs_consent(change: Change) -> bool {
    !matches!(change, Change::Demote | Change::Attach { .. })
}

impl Engine {
    // ------------------------------------------------------------------ own changes

    pub(crate) fn ask_84(&mut self, peer: NodeId, change: Change) {
        let none = StateChange::EMPTY;
        let of_volume = |number, change: StateChange| alloc::vec![(Some(number), change)];
        let requests = match change {
            Change::Promote { force } => {
                let volumes = self.volumes.values();
                volumes
                    .map(|volume| {
                        let role = none.with_role(Role::Primary);
                        // Only where the disk gets better by it.
                        let lifted =
                            force && volume.disk >= DiskState::Inconsistent && volume.disk < DiskState::UpToDate;
                        (Some(volume.number), if lifted { role.with_disk(DiskState::UpToDate) } else { role })
                    })
                    .collect()
            }
            Change::Detach { volume } => of_volume(volume, none.with_disk(DiskState::Failed)),
            Change::Invalidate { volume, .. } => {
                of_volume(volume, none.with_replication(ReplicationState::StartingSyncT))
            }
            Change::InvalidateRemote { volume, .. } => {
                of_volume(volume, none.with_replication(ReplicationState::StartingSyncS))
            }
            Change::Verify { volume, .. } => of_volume(volume, none.with_replication(ReplicationState::VerifyS)),
            Change::Disconnect { .. } => {
                alloc::vec![(None, none.with_connection(ConnectionState::Disconnecting))]
            }
            Change::Connect { .. } | Change::Demote | Change::Attach { .. } => {
                unreachable!("{change:?} is not asked for in the 8.4 dialect")
            }
        };
        let asked: BTreeSet<Option<VolumeNumber>> = requests.iter().map(|(volume, _)| *volume).collect();
        if let Some(state) = self.peer_mut(peer).link.as_mut().and_then(|l| l.v84.as_mut()) {
            state.asked = asked;
            state.refused = None;
        }
        for (volume, change) in requests {
            let request = Request84 { mask: change.mask, value: with_their_disks(change) };
            let message = match volume {
                Some(_) => Message84::VolumeRequest(request),
                None => Message84::ConnectionRequest(request),
            };
            self.send_data(peer, volume, Message::V84(message), None);
        }
    }

    /// The peer answered one of our requests.
    pub(crate) fn replied_84(&mut self, peer: NodeId, volume: Option<VolumeNumber>, code: i32) {
        let Some(state) = self.peer_mut(peer).link.as_mut().and_then(|l| l.v84.as_mut()) else { return };
        if !state.asked.remove(&volume) {
            return self.protocol_error(peer, &format!("an answer ({code}) to a state request that is not open"));
        }
        if code < reply::SUCCESS {
            state.refused.get_or_insert(code);
        }
        if !state.asked.is_empty() {
            return;
        }
        let refused = state.refused.take();
        let agrees = match refused {
            None => Some(true),
            Some(reply::CONCURRENT_CHANGE | reply::IN_TRANSIENT_STATE) => None,
            Some(code) => {
                self.warn(format!("node {peer} refuses a change of state with code {code}"));
                Some(false)
            }
        };
        self.voted_84(peer, agrees);
    }

    // ------------------------------------------------------------------ the peer's changes

    pub(crate) fn volume_requested(&mut self, peer: NodeId, number: VolumeNumber, request: Request84) {
        let code = self.answer_volume_request(peer, number, request);
        self.send(peer, Socket::Control, Some(number), Message::V84(Message84::VolumeReply(code)));
        if code >= reply::SUCCESS {
            self.follow_volume_request(peer, number, request);
        }
    }

    /// Both ends want something at once: the arbiter's goes first.
    fn collides(&self, peer: NodeId) -> bool {
        self.has_own_change() && self.peer(peer).link.as_ref().is_some_and(|l| l.arbiter)
    }

    fn change_of(&self, peer: NodeId, number: VolumeNumber, request: Request84) -> Option<Change> {
        let change = self.in_our_numbers(peer, request)?;
        if let Some(conn) = change.conn() {
            return match ReplicationState::from_wire(conn)? {
                ReplicationState::StartingSyncT => Some(Change::Invalidate { volume: number, peer }),
                ReplicationState::StartingSyncS => Some(Change::InvalidateRemote { volume: number, peer }),
                ReplicationState::VerifyS => Some(Change::Verify { volume: number, peer, span: VerifySpan::default() }),
                _ => None,
            };
        }
        match (change.role().ok()?, change.disk().ok()?) {
            (Some(Role::Primary), disk) => Some(Change::Promote { force: disk.is_some() }),
            (Some(Role::Secondary), None) => Some(Change::Demote),
            (None, Some(DiskState::Failed | DiskState::Detaching | DiskState::Diskless)) => {
                Some(Change::Detach { volume: number })
            }
            _ => None,
        }
    }

    fn answer_volume_request(&mut self, peer: NodeId, number: VolumeNumber, request: Request84) -> i32 {
        if self.collides(peer) {
            return reply::CONCURRENT_CHANGE;
        }
        let Some(change) = self.change_of(peer, number, request) else {
            let (mask, value) = (request.mask.0, request.value.0);
            self.warn(format!(
                "node {peer} asks for a change of volume {number} that this node lacks: {mask:#x} {value:#x}"
            ));
            return reply::NOT_SUPPORTED;
        };
        let full_sync = matches!(change, Change::Invalidate { .. } | Change::InvalidateRemote { .. });
        if full_sync && self.peer(peer).volumes[&number].replication != ReplicationState::Established {
            return reply::RESYNC_RUNNING;
        }
        if let Change::Verify { volume, .. } = change
            && let Err(refusal) = self.check_verify(volume, peer)
        {
            // Named by this node's disks: what is local here is remote there.
            return match refusal.code {
                -4 => -5,
                -5 => -4,
                code => code,
            };
        }
        if self.allows(change, peer) {
            return reply::SUCCESS;
        }
        match change {
            Change::Promote { .. } => reply::TWO_PRIMARIES,
            Change::InvalidateRemote { .. } => reply::PRIMARY_NOP,
            _ => reply::NO_UP_TO_DATE_DISK,
        }
    }

    fn follow_volume_request(&mut self, peer: NodeId, number: VolumeNumber, request: Request84) {
        match self.change_of(peer, number, request) {
            Some(Change::Promote { force }) => self.follow_promotion(peer, number, force),
            Some(Change::Demote) => self.set_peer_role(peer, Role::Secondary),
            Some(Change::Detach { volume }) => {
                self.set_peer_disk(peer, volume, DiskState::Detaching, "the peer detaches");
            }
            Some(Change::Invalidate { volume, .. }) => {
                self.start_full_sync(peer, volume, true, "the peer invalidated its data");
            }
            Some(Change::InvalidateRemote { volume, .. }) => {
                self.start_full_sync(peer, volume, false, "the peer invalidated this node's data");
            }
            Some(Change::Verify { volume, span, .. }) => self.begin_verify(peer, volume, false, span),
            _ => {}
        }
    }

    fn follow_promotion(&mut self, peer: NodeId, number: VolumeNumber, force: bool) {
        self.set_peer_role(peer, Role::Primary);
        let disk = self.peer(peer).volumes[&number].disk;
        if force && disk >= DiskState::Inconsistent && disk != DiskState::DUnknown {
            self.set_peer_disk(peer, number, DiskState::UpToDate, "primary --force");
        }
    }

    pub(crate) fn connection_requested(&mut self, peer: NodeId, request: Request84) {
        let code = self.answer_connection_request(peer, request);
        self.send(peer, Socket::Control, None, Message::V84(Message84::ConnectionReply(code)));
        if code < reply::SUCCESS {
            return;
        }
        let Some(change) = self.in_our_numbers(peer, request) else { return };
        if let Some(conn) = change.conn()
            && conn == ConnectionState::Disconnecting.to_wire()
        {
            self.left_politely(peer);
            let outdated = change.peer_disk() == Ok(Some(DiskState::Outdated));
            for number in self.volume_numbers() {
                if outdated && !self.is_primary() && self.volume(number).disk > DiskState::Outdated {
                    self.set_disk(number, DiskState::Outdated, "the peer parted and said so");
                }
            }
            return self.end_connection(
                peer,
                End::Retry(AFTER_TEARDOWN),
                ConnectionState::TearDown,
                "the peer disconnected",
            );
        }
        // DRBD 9 changes its role for all volumes at once.
        match change.role() {
            Ok(Some(Role::Primary)) => {
                let force = matches!(change.disk(), Ok(Some(_)));
                for number in self.volume_numbers() {
                    self.follow_promotion(peer, number, force);
                }
            }
            Ok(Some(_)) => self.set_peer_role(peer, Role::Secondary),
            _ => {}
        }
    }

    fn answer_connection_request(&mut self, peer: NodeId, request: Request84) -> i32 {
        if self.collides(peer) {
            return reply::CONCURRENT_CHANGE;
        }
        let change = self.in_our_numbers(peer, request);
        let disconnects = Some(ConnectionState::Disconnecting.to_wire());
        match change.map(|c| (c.conn(), c.role())) {
            Some((conn, _)) if conn == disconnects => reply::SUCCESS,
            Some((None, Ok(Some(Role::Primary)))) if self.is_primary() => reply::TWO_PRIMARIES,
            Some((None, Ok(Some(_)))) => reply::SUCCESS,
            _ => {
                let (mask, value) = (request.mask.0, request.value.0);
                self.warn(format!(
                    "node {peer} asks for a change of the connection that this node lacks: {mask:#x} {value:#x}"
                ));
                reply::NOT_SUPPORTED
            }
        }
    }

    /// `None`: a number that names no disk state.
    fn in_our_numbers(&self, peer: NodeId, request: Request84) -> Option<StateChange> {
        let link = self.peer(peer).link.as_ref()?;
        let nine = link.v84.as_ref().is_some_and(|state| state.peer_max > V84_MAX);
        let mut change = StateChange { mask: request.mask, value: request.value };
        if nine {
            return Some(change);
        }
        if request.mask.0 & DISK.mask != 0 {
            let disk = disk_from_wire(((request.value.0 & DISK.mask) >> 9) as u8)?;
            change.value = change.value.with_disk(disk);
        }
        if request.mask.0 & PEER_DISK.mask != 0 {
            let disk = disk_from_wire(((request.value.0 & PEER_DISK.mask) >> 13) as u8)?;
            change.value = change.value.with_peer_disk(disk);
        }
        Some(change)
    }
}

/// The value with 8.4's number of the disk state; our requests name no disk of the peer.
fn with_their_disks(change: StateChange) -> StateWord {
    match change.disk() {
        Ok(Some(disk)) => StateWord(change.value.0 & !DISK.mask | u32::from(disk_to_wire(disk)) << 9),
        _ => change.value,
    }
}
