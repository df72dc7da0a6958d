//! States and what follows from a change of one. Every change goes through a setter here: it says so in an event with
//! its reason, brings the superblock's flags in line and tells the peers.

use alloc::string::ToString;
use alloc::vec::Vec;

use metadata::superblock::{DeviceFlags, PeerFlags};
use types::{ByteRange, ConnectionState, DiskState, NodeId, NodeSet, ReplicationState, Role, VolumeNumber};
use wire::Message;
use wire::message::StateWord;
use wire::state_word::flag;

use crate::Engine;
use crate::api::{CommandId, Event, OnIoError, Refusal};
use crate::connect::Phase;
use crate::generation::PROMOTED;
use crate::planted::{Bug, planted};
use crate::volume::Lineage;

/// What waits until a volume's superblock is on disk.
pub(crate) enum Deferred {
    /// Tell the peers of a new generation (rule GE-3: before the first write of it).
    AnnounceGeneration {
        weak: types::NodeSet,
        before: types::Uuid,
    },
    /// Attach: the metadata says that the disk is in use.
    AttachReady,
    /// A Primary's generation was taken over: tell it.
    ConfirmGeneration {
        peer: NodeId,
    },
    /// A sync target's disk is marked Inconsistent: requests may go out.
    ResyncReady {
        peer: NodeId,
    },
    /// A sync target took over the source's generation: tell it.
    ResyncFinished {
        peer: NodeId,
    },
    /// A forced promotion began a generation.
    AnnounceForced,
    /// 8.4: a source has the bitmap UUID that its target will carry during the resync.
    SyncUuid {
        peer: NodeId,
        link: types::LinkId,
        uuid: types::Uuid,
    },
    /// A peer's disk appears over a standing connection, and compares itself with what we say (rule GE-9).
    PeerDiskAppears {
        peer: NodeId,
        link: types::LinkId,
    },
    Reply {
        id: CommandId,
    },
}

impl Engine {
    // ------------------------------------------------------------------ setters

    pub(crate) fn set_role(&mut self, to: Role, reason: &'static str) {
        let from = core::mem::replace(&mut self.role, to);
        if from != to {
            self.event(Event::Role { from, to, reason });
            self.refresh_all_flags();
            self.pump_all();
        }
    }

    pub(crate) fn set_disk(&mut self, number: VolumeNumber, to: DiskState, reason: &'static str) {
        if self.set_disk_untold(number, to, reason) && !planted(Bug::StateNotTold) {
            self.tell_state(number);
        }
    }

    /// For changes that are part of something larger: the caller tells the peers when the rest is in place too.
    pub(crate) fn set_disk_untold(&mut self, number: VolumeNumber, to: DiskState, reason: &'static str) -> bool {
        let volume = self.volume_mut(number);
        let from = core::mem::replace(&mut volume.disk, to);
        volume.pump = true;
        if from == to {
            return false;
        }
        volume.lost_received &= to != DiskState::UpToDate;
        self.event(Event::Disk { volume: number, from, to, reason });
        self.refresh_flags(number);
        true
    }

    pub(crate) fn set_connection(&mut self, peer: NodeId, to: ConnectionState, reason: &str) {
        let from = core::mem::replace(&mut self.peer_mut(peer).connection, to);
        if from != to {
            self.timer_is_set();
            self.event(Event::Connection { peer, from, to, reason: reason.to_string() });
        }
    }

    pub(crate) fn set_peer_role(&mut self, peer: NodeId, to: Role) {
        let from = core::mem::replace(&mut self.peer_mut(peer).role, to);
        if from != to {
            self.event(Event::PeerRole { peer, from, to });
            self.doubt_verify_blocks_beside(peer);
            self.refresh_all_flags();
            if to == Role::Primary {
                self.volume_numbers().into_iter().for_each(|number| self.follow_diskless_primary_84(peer, number));
                self.hold_requested_blocks(peer);
            }
        }
    }

    pub(crate) fn set_replication(
        &mut self,
        peer: NodeId,
        volume: VolumeNumber,
        to: ReplicationState,
        reason: &'static str,
    ) {
        let device = self.device_mut(peer, volume);
        let from = core::mem::replace(&mut device.replication, to);
        if from == to {
            return;
        }
        self.event(Event::Replication { peer, volume, from, to, reason });
        self.verify_left(peer, volume, from, to);
        self.refresh_flags(volume);
        self.volume_mut(volume).pump = true;
    }

    pub(crate) fn set_peer_disk(&mut self, peer: NodeId, volume: VolumeNumber, to: DiskState, reason: &'static str) {
        let device = self.device_mut(peer, volume);
        let from = core::mem::replace(&mut device.disk, to);
        if from == to {
            return;
        }
        self.event(Event::PeerDisk { peer, volume, from, to, reason });
        self.refresh_flags(volume);
        self.volume_mut(volume).pump = true;
        self.peer_disk_changed(peer, volume, from, to);
    }

    // ------------------------------------------------------------------ superblock flags

    fn refresh_all_flags(&mut self) {
        for number in self.volume_numbers() {
            self.refresh_flags(number);
        }
    }

    /// Brings the superblock's flags in line with the states (docs/ondisk.md "Flags"). A change is durable before any
    /// data is written after it.
    pub(crate) fn refresh_flags(&mut self, number: VolumeNumber) {
        let somebody_writes = self.role == Role::Primary
            || self.peers.values().any(|p| p.role == Role::Primary)
            || self.volume(number).writes_open > 0;
        let primary = self.role == Role::Primary;
        let unlogged = self.only_the_primary_logs(number);
        let volume = self.volumes.get_mut(&number).expect("the volume was looked up before");
        let (disk, crashed) = (volume.disk, volume.crashed_primary);
        let Some(backing) = &mut volume.backing else { return };
        let before = (backing.superblock.flags, backing.superblock.peers.map(|p| p.flags));
        let flags = &mut backing.superblock.flags;
        if disk >= DiskState::Inconsistent {
            let was_up_to_date = flags.contains(DeviceFlags::WAS_UP_TO_DATE);
            flags.set(DeviceFlags::CONSISTENT, disk > DiskState::Inconsistent);
            let up = disk == DiskState::UpToDate || (disk == DiskState::Consistent && was_up_to_date);
            flags.set(DeviceFlags::WAS_UP_TO_DATE, up);
        }
        if disk >= DiskState::Negotiating {
            flags.set(DeviceFlags::AL_CLEAN, false);
            flags.set(DeviceFlags::PRIMARY_INDICATOR, somebody_writes && !planted(Bug::IndicatorForgotten));
            flags.set(DeviceFlags::CRASHED_PRIMARY, primary || crashed);
            if unlogged && !flags.contains(DeviceFlags::AL_DISABLED) {
                backing.writer.want_empty_log();
            }
            flags.set(DeviceFlags::AL_DISABLED, unlogged);
        }
        for peer in self.peers.values() {
            let Some(device) = peer.volumes.get(&number) else { continue };
            let record = &mut backing.superblock.peers[peer.id.index()];
            if record.slot.is_none() {
                continue;
            }
            let peer_disk = device.disk;
            record.flags.set(PeerFlags::CONNECTED, device.replication >= ReplicationState::Established);
            if peer.is_connected() {
                let known = peer_disk != DiskState::DUnknown;
                let outdated = known && peer_disk <= DiskState::Outdated && peer_disk >= DiskState::Inconsistent;
                record.flags.set(PeerFlags::OUTDATED, outdated);
                if peer_disk >= DiskState::Inconsistent && known {
                    record.flags.set(PeerFlags::DEVICE_SEEN, true);
                }
            }
        }
        let after = (backing.superblock.flags, backing.superblock.peers.map(|p| p.flags));
        if before != after {
            backing.touch();
            volume.pump = true;
        }
    }

    /// Rule AL-5: the only node that shares this disk's data is a Primary with a disk. Whatever it sends here is hot in
    /// its own log, or in its bitmap: a second record adds nothing. (DRBD's rule for the flag, docs/ondisk.md.) What it
    /// sent before it had a disk is in no log but this one.
    fn only_the_primary_logs(&self, number: VolumeNumber) -> bool {
        let volume = self.volume(number);
        let Some(backing) = &volume.backing else { return false };
        if self.is_primary() || backing.superblock.max_peers != 1 || volume.writes_logged_here > 0 {
            return false;
        }
        self.peers.values().any(|peer| {
            let logs = peer.volumes.get(&number).is_some_and(|device| device.has_log());
            let slot = backing.superblock.peers[peer.id.index()].slot.is_some();
            slot && peer.is_connected() && peer.role == Role::Primary && logs
        })
    }

    // ------------------------------------------------------------------ what peers are told

    /// Our state word of one volume towards one peer.
    pub(crate) fn state_word(&self, peer: NodeId, number: VolumeNumber) -> StateWord {
        let entry = self.peer(peer);
        let device = &entry.volumes[&number];
        let volume = self.volume(number);
        let conn = match entry.link.as_ref().map(|l| &l.phase) {
            Some(Phase::Connected) => device.replication.to_wire(),
            _ => ConnectionState::Connecting.to_wire(),
        };
        // A source whose own data is not good holds the resync, as DRBD says it.
        let bad_source = device.is_syncing() && !device.is_target() && volume.disk <= DiskState::Inconsistent;
        let dependency = bad_source || self.waits_for_another_source(peer, number);
        StateWord::default()
            .with_role(self.role)
            .with_peer_role(entry.role)
            .with_conn(conn)
            .with_disk(volume.disk)
            .with_peer_disk(device.disk)
            .with_flag(flag::AFTER_PAUSED, dependency)
            .with_flag(flag::PEER_PAUSED, device.paused_by_peer)
            .with_flag(flag::USER_PAUSED, device.paused_by_user)
            .with_flag(flag::QUORUM, true)
    }

    pub(crate) fn send_state(&mut self, peer: NodeId, number: VolumeNumber) {
        let word = self.state_word(peer, number);
        self.send_data(peer, Some(number), Message::State(word), None);
    }

    /// Tells all connected peers our state of a volume.
    pub(crate) fn tell_state(&mut self, number: VolumeNumber) {
        for peer in self.peers_to_tell() {
            self.send_state(peer, number);
        }
    }

    // ------------------------------------------------------------------ losses

    /// A data operation on our disk failed.
    pub(crate) fn local_io_failed(&mut self, number: VolumeNumber, what: &'static str) {
        self.distrust_disk(number);
        match self.volume(number).config.on_io_error {
            OnIoError::Detach => self.disk_failed(number, what),
            OnIoError::PassOn => {
                if self.volume(number).disk > DiskState::Inconsistent {
                    // What this Primary goes on with elsewhere has to be what it showed (rule GE-7).
                    if self.is_primary() {
                        self.show_generation_without_disk(number);
                    }
                    self.set_disk(number, DiskState::Inconsistent, what);
                }
            }
        }
    }

    /// A flush failed: what the disk had not made durable by then may be gone, also if a later flush succeeds. Where
    /// the disk stays in use, the activity log says what that can be, and the peers are asked for it (rule ER-2).
    pub(crate) fn local_flush_failed(&mut self, number: VolumeNumber) {
        self.local_io_failed(number, "flush failed");
        let volume = self.volume(number);
        let Some(backing) = volume.backing.as_ref().filter(|_| volume.is_writable()) else { return };
        let hot: Vec<ByteRange> = backing.log.hot_extents().map(|e| e.range_within(volume.exposed_bytes)).collect();
        for range in hot {
            self.mark_all_but(number, NodeSet::EMPTY, range);
            self.distrust_older_acks(number, range);
        }
    }

    /// The disk is not used any more: it ends Diskless once what is on its way came back (rule ER-1). Nothing is
    /// written to its metadata from here on: what it says now is what an attach will find.
    pub(crate) fn disk_failed(&mut self, number: VolumeNumber, what: &'static str) {
        let volume = self.volume_mut(number);
        if volume.backing.is_none() || volume.disk == DiskState::Failed {
            return;
        }
        let attaching = volume.disk == DiskState::Attaching;
        let command = volume.command.take_if(|_| attaching);
        self.show_generation_without_disk(number);
        if let Some(id) = command {
            self.refuse(id, disk_error(number, what));
        }
        self.set_disk(number, DiskState::Failed, what);
        self.drop_backing(number);
        if !self.is_primary() {
            return;
        }
        if self.has_data(number) {
            // What is in flight lands on the peers only: they count from here before it completes.
            self.begin_generation(number, "the disk failed");
        } else {
            // Nor is it on that disk what a peer takes later: a target that becomes whole, say.
            self.generation_is_due(number, "the disk failed");
        }
    }

    /// The disk goes: the data that this node shows is what it was on it, if that was good, or what the peers serve. A disk
    /// that was never in use changes nothing (rule GE-7).
    pub(crate) fn show_generation_without_disk(&mut self, number: VolumeNumber) {
        let volume = self.volume(number);
        let current = volume.current_uuid();
        let good = volume.disk == DiskState::UpToDate;
        let source = self.up_to_date_peer(number).map(|peer| self.peer(peer).volumes[&number].current_uuid);
        let began = self.deferred.iter().find_map(|(owner, _, action)| match action {
            Deferred::AnnounceGeneration { before, .. } if *owner == number => Some(*before),
            _ => None,
        });
        let (shown, before) = match source {
            _ if good && self.was_promoted_alone(number) => (self.random_uuid(), Some(current)),
            _ if good => (current, began),
            Some(theirs) => (theirs, None),
            None => return,
        };
        let own = good && self.is_primary();
        let volume = self.volume_mut(number);
        volume.exposed_uuid = shown;
        volume.shows_own_disk = own;
        volume.shown_before = before.map(|before| (shown, before));
    }

    /// Promoted while a node was away, and nothing was written since: the generation that this begins is only due yet,
    /// but nobody else has this data for sure. A node that crashed as Primary may have more or less of the same one.
    fn was_promoted_alone(&self, number: VolumeNumber) -> bool {
        let due = self.volume(number).generation_due == Some(PROMOTED);
        self.is_primary() && due && self.peers.values().any(|peer| !peer.is_connected())
    }

    /// A disk comes back that this node's new generation never reached: it is still all that was shown, for nothing is
    /// written in a generation before it is durable (rules GE-1, GE-7).
    pub(crate) fn show_generation_before(&mut self, number: VolumeNumber) {
        let volume = self.volume_mut(number);
        let on_disk = volume.current_uuid();
        match volume.shown_before.take() {
            Some((shown, before)) if volume.exposed_uuid.same(shown) && on_disk.same(before) => {
                volume.exposed_uuid = on_disk;
                if self.is_primary() && self.volume(number).generation_due == Some(PROMOTED) {
                    return self.begin_generation_in_attach(number);
                }
                self.generation_is_due(number, "a generation was given up");
            }
            _ => {}
        }
    }

    /// A disk comes back that has what this Primary shows, while a peer may have the generation that was begun since, with
    /// the same data: it is an older one from here on, and the next write begins another (rule GE-7).
    pub(crate) fn take_generation_back(&mut self, number: VolumeNumber) {
        let primary = self.is_primary();
        let volume = self.volume_mut(number);
        let Some(given_up) = volume.given_up.take() else { return };
        let Some(backing) = volume.backing.as_mut().filter(|_| primary) else { return };
        if backing.superblock.current_uuid.same(volume.exposed_uuid) {
            backing.superblock.push_history(given_up);
            self.generation_is_due(number, "a generation was given up");
        }
    }

    /// Takes the disk out of use. What waits for its metadata goes on without it or fails.
    pub(crate) fn drop_backing(&mut self, number: VolumeNumber) {
        self.abort_resyncs(number, "no local disk");
        for key in self.writes.iter().filter(|(_, w)| w.volume == number).map(|(k, _)| k).collect::<Vec<_>>() {
            self.writes.get_mut(key).expect("listed just now").in_log = false;
        }
        for key in self.peer_writes.iter().filter(|(_, w)| w.volume == number).map(|(k, _)| k).collect::<Vec<_>>() {
            self.peer_writes.get_mut(key).expect("listed just now").in_log = false;
        }
        let volume = self.volume_mut(number);
        if let Some(backing) = volume.backing.take() {
            volume.last_disk = Some(Lineage::of_disk(&backing.superblock));
        }
        let pending: Vec<_> = volume.log_pending.drain(..).map(|(_, writer)| writer).collect();
        volume.ready.extend(pending);
        volume.pump = true;
        let dropped = core::mem::take(&mut self.deferred);
        for (owner, version, action) in dropped {
            match action {
                action if owner != number => self.deferred.push((owner, version, action)),
                // It goes on without our disk.
                Deferred::PeerDiskAppears { .. } => self.deferred.push((owner, version, action)),
                Deferred::Reply { id } => self.refuse(id, disk_error(number, "the disk is gone")),
                _ => {}
            }
        }
        self.check_all_writes();
        self.advance_handshakes();
    }

    /// Runs what waited for superblocks that are on disk by now.
    pub(crate) fn run_deferred(&mut self) -> bool {
        let mut progress = false;
        let mut index = 0;
        while index < self.deferred.len() {
            let (number, version, _) = &self.deferred[index];
            let (number, version) = (*number, *version);
            let durable = self.volume(number).backing.as_ref().is_none_or(|b| b.durable >= version);
            // A disk does not appear in the middle of a handshake: the peer decides by what it was told.
            let held = matches!(self.deferred[index].2, Deferred::AttachReady) && self.is_shaking_hands();
            if !durable || held {
                index += 1;
                continue;
            }
            let (_, _, action) = self.deferred.remove(index);
            progress = true;
            match action {
                Deferred::AnnounceGeneration { weak, .. } => self.announce_generation(number, weak),
                Deferred::ConfirmGeneration { peer } => self.confirm_generation(peer, number),
                Deferred::AttachReady => self.attach_ready(number),
                Deferred::ResyncReady { peer } => self.resync_ready(peer, number),
                Deferred::ResyncFinished { peer } => self.announce_resync_finished(peer, number),
                Deferred::AnnounceForced => self.announce_forced(number),
                Deferred::SyncUuid { peer, link, uuid } => self.send_sync_uuid(peer, number, link, uuid),
                Deferred::PeerDiskAppears { peer, link } => self.peer_disk_appears(peer, number, link),
                Deferred::Reply { id } => self.reply(id, Ok(())),
            }
        }
        progress
    }

    /// Runs `action` when the superblock as it is in memory now is on disk.
    pub(crate) fn when_durable(&mut self, number: VolumeNumber, action: Deferred) {
        let version = self.volume(number).backing.as_ref().map_or(0, |b| b.changed);
        self.deferred.push((number, version, action));
    }

    /// A superblock or log transaction is on disk: completions may have waited for it.
    pub(crate) fn metadata_progress(&mut self) {
        self.check_all_writes();
        self.advance_handshakes();
    }

    /// What a Primary without good data of its own has read so far was this peer's (rule GE-7).
    fn show_generation_of(&mut self, peer: NodeId, number: VolumeNumber) {
        let theirs = self.peer(peer).volumes[&number].current_uuid;
        let primary = self.is_primary();
        let volume = self.volume_mut(number);
        if primary && volume.disk != DiskState::UpToDate {
            let shown = core::mem::replace(&mut volume.exposed_uuid, theirs);
            if !shown.is_zero() && !shown.same(theirs) {
                volume.given_up = Some(shown);
            }
        }
    }

    /// A peer's disk came or went: the consequences for us as Primary.
    fn peer_disk_changed(&mut self, peer: NodeId, number: VolumeNumber, from: DiskState, to: DiskState) {
        use DiskState as D;
        if from == D::UpToDate && to != D::UpToDate {
            self.show_generation_of(peer, number);
        }
        let had_data = from >= D::Inconsistent && from != D::DUnknown;
        let lost = to < D::Inconsistent || to == D::DUnknown || to == D::Outdated;
        if had_data && to <= D::Failed {
            self.legs_lost_with_disk(peer, number);
        }
        if had_data && lost && self.is_primary() && self.peer(peer).is_connected() && self.has_data(number) {
            if to <= D::Failed {
                self.begin_generation(number, "a peer's disk failed");
            } else {
                self.generation_is_due(number, "a peer's disk is gone");
            }
        }
        self.follow_diskless_primary_84(peer, number);
        if to != D::UpToDate {
            self.generation_confirmed(peer, number);
        }
        if to <= D::Failed {
            self.abort_resync(peer, number, "the peer has no disk");
        }
    }
}

fn disk_error(number: VolumeNumber, what: &str) -> Refusal {
    Refusal {
        code: -118,
        rule: "ERR_IO_MD_DISK",
        state: alloc::format!("volume {number}: {what}"),
        next_step: "see the kernel's log for the backing device; attach it again when it works",
    }
}
