//! The door of a volume: whether the application's requests are let in now, and in which order what waits goes on.

use metadata::superblock::DeviceFlags;
use types::{BlockOp, DiskState, IoError, ReplicationState, Role, VolumeNumber};

use crate::activity::Hold;
use crate::api::OnNoData;
use crate::planted::{Bug, planted};
use crate::slab::Key;
use crate::volume::{Backing, Parked, Writer};
use crate::{Engine, IoKind};

/// Writes of a peer are not logged (rule AL-5).
const AL_DISABLED: DeviceFlags = DeviceFlags::AL_DISABLED;

/// Answer to "may a request come in".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Door {
    Open,
    /// Later; something that opens it again sets `pump`.
    Shut,
    Fail(IoError),
}

impl Engine {
    /// Rules DR-1..DR-5 of docs/protocol.md.
    pub(crate) fn door(&self, number: VolumeNumber) -> Door {
        let volume = self.volume(number);
        if self.role != Role::Primary {
            return Door::Fail(IoError::ReadOnly);
        }
        if self.is_demoting() || matches!(volume.disk, DiskState::Attaching | DiskState::Negotiating) {
            return Door::Shut;
        }
        let exchanging = |p: &crate::peer::Peer| {
            let state = p.volumes.get(&number).map(|d| d.replication);
            matches!(state, Some(ReplicationState::WFBitMapT | ReplicationState::WFSyncUUID))
        };
        if self.peers.values().any(exchanging) {
            return Door::Shut;
        }
        if volume.backing.as_ref().is_some_and(|b| !b.is_settled()) {
            return Door::Shut;
        }
        if !self.has_data(number) {
            return match self.config.on_no_data {
                OnNoData::IoError => Door::Fail(IoError::Io),
                OnNoData::SuspendIo => Door::Shut,
            };
        }
        if self.writes.len() + self.reads.len() >= self.config.io_depth_max {
            return Door::Shut;
        }
        Door::Open
    }

    /// UpToDate data is in reach: on the own disk, or on a peer that replicates with this node.
    pub(crate) fn has_data(&self, number: VolumeNumber) -> bool {
        self.volume(number).disk == DiskState::UpToDate || self.up_to_date_peer(number).is_some()
    }

    /// The first peer that can answer reads.
    pub(crate) fn up_to_date_peer(&self, number: VolumeNumber) -> Option<types::NodeId> {
        self.peers
            .values()
            .find(|p| {
                p.is_connected()
                    && p.volumes.get(&number).is_some_and(|d| {
                        d.disk == DiskState::UpToDate && d.replication >= ReplicationState::Established
                    })
            })
            .map(|p| p.id)
    }

    /// Lets in and on whatever can go now, oldest first.
    pub(crate) fn pump(&mut self, number: VolumeNumber) {
        if self.volume(number).has_queued() {
            self.pump_log(number);
            self.pump_ready(number);
            self.pump_resync_writes(number);
        }
        self.pump_parked(number);
        if !self.peers.is_empty() {
            self.pump_resync(number);
            self.pump_verify(number);
        }
    }

    fn pump_parked(&mut self, number: VolumeNumber) {
        while let Some(parked) = self.volume(number).parked.front().copied() {
            match self.door(number) {
                Door::Shut => return,
                Door::Fail(error) => {
                    self.volume_mut(number).parked.pop_front();
                    self.complete(parked, Err(error));
                }
                Door::Open => {
                    if self.peers_are_full(parked.op) {
                        return;
                    }
                    self.volume_mut(number).parked.pop_front();
                    if !self.admit(number, parked) {
                        self.volume_mut(number).parked.push_front(parked);
                        return;
                    }
                }
            }
        }
    }

    /// A peer has as much unconfirmed data as it may.
    fn peers_are_full(&self, op: BlockOp) -> bool {
        op.is_write() && self.peers.values().any(|p| p.is_connected() && p.unstable_bytes >= p.config.buffer_bytes_max)
    }

    /// Writes that have their range ask for the activity log, in order. The first that gets no slot stops the queue,
    /// so that none starves. While the disk is being attached all wait: the log that they need is not there yet, and
    /// the disk will be when they are let go.
    fn pump_log(&mut self, number: VolumeNumber) {
        while self.volume(number).disk != DiskState::Attaching {
            let Some(writer) = self.volume(number).log_wanted.front().copied() else { return };
            let Some(range) = self.writer_range(writer) else {
                self.volume_mut(number).log_wanted.pop_front();
                continue;
            };
            let volume = self.volume_mut(number);
            let writable = volume.is_writable();
            let by_peer = matches!(writer, Writer::Peer(_));
            let logged = |backing: &&mut Backing| !(by_peer && backing.superblock.flags.contains(AL_DISABLED));
            let Some(backing) = volume.backing.as_mut().filter(|_| writable).filter(logged) else {
                volume.log_wanted.pop_front();
                volume.ready.push_back(writer);
                continue;
            };
            match backing.log.hold(range.extents()) {
                Hold::Hot => {
                    volume.log_wanted.pop_front();
                    volume.ready.push_back(writer);
                }
                Hold::Pending(_) if planted(Bug::LogNotAwaited) => {
                    volume.log_wanted.pop_front();
                    volume.ready.push_back(writer);
                }
                Hold::Pending(ticket) => {
                    volume.log_wanted.pop_front();
                    volume.log_pending.push_back((ticket, writer));
                }
                Hold::Full => {
                    self.log_is_full();
                    return;
                }
            }
            match writer {
                Writer::Application(key) => self.writes.get_mut(key).expect("it has a range").in_log = true,
                Writer::Peer(key) => self.peer_writes.get_mut(key).expect("it has a range").in_log = true,
            }
        }
    }

    /// The log transaction up to this ticket is durable.
    pub(crate) fn log_covered(&mut self, number: VolumeNumber, covered: u64) {
        let volume = self.volume_mut(number);
        volume.counters.al_writes += 1;
        while volume.log_pending.front().is_some_and(|(ticket, _)| *ticket <= covered) {
            let (_, writer) = volume.log_pending.pop_front().expect("looked at it just now");
            volume.ready.push_back(writer);
        }
        volume.pump = true;
    }

    fn pump_ready(&mut self, number: VolumeNumber) {
        loop {
            let volume = self.volume(number);
            let settled = volume.backing.as_ref().is_none_or(|b| b.is_settled());
            if !settled && !planted(Bug::GenerationNotDurable) {
                return;
            }
            let Some(writer) = volume.ready.front().copied() else { return };
            // A peer may have been lost since this write was let in. With no data left in reach it fails, and a
            // generation that no good disk has would only keep the peer away when it is back.
            let due = volume.generation_due.filter(|_| self.has_data(number));
            if let (Writer::Application(_), Some(reason)) = (writer, due) {
                if self.is_parting_from_unsettled_writes(number) {
                    return;
                }
                self.begin_generation(number, reason);
                continue;
            }
            self.volume_mut(number).ready.pop_front();
            match writer {
                Writer::Application(key) => self.submit_write(key),
                Writer::Peer(key) => self.submit_peer_write(key),
            }
        }
    }

    /// The own disk leaves in order, and has writes that a peer did not confirm as stable (all of them under protocols A
    /// and B). If the peer's disk loses them, this one has the newest data: no later generation may say that it is old
    /// (rule GE-1).
    pub(crate) fn is_parting_from_unsettled_writes(&self, number: VolumeNumber) -> bool {
        let unsettled = |key: &Key| self.writes.get(*key).is_some_and(|w| w.volume == number && w.in_log);
        self.volume(number).disk == DiskState::Detaching && self.transfer_log.iter().any(unsettled)
    }

    fn writer_range(&self, writer: Writer) -> Option<types::ByteRange> {
        match writer {
            Writer::Application(key) => self.writes.get(key).map(|w| w.range),
            Writer::Peer(key) => self.peer_writes.get(key).map(|w| w.range),
        }
    }

    /// A writer got its range: next is the activity log.
    pub(crate) fn range_granted(&mut self, number: VolumeNumber, writer: Writer) {
        let volume = self.volume_mut(number);
        volume.log_wanted.push_back(writer);
        volume.pump = true;
    }

    /// The request leaves before it was let in.
    pub(crate) fn complete(&mut self, parked: Parked, result: Result<(), IoError>) {
        self.emit(crate::Effect::Complete { request: parked.request, result });
        self.release(parked.payload);
    }

    /// Flushes the data device, for `what` waits on it.
    pub(crate) fn flush_data(&mut self, number: VolumeNumber, what: IoKind) {
        self.disk(number, what, crate::DiskOp::Flush);
    }
}
