//! Promotion and demotion, and the commands that change what a disk is taken for.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use types::{DiskState, IoError, NodeId, ReplicationState, Role, Uuid, VolumeNumber};
use wire::Message;
use wire::message::{StateWord, uuid_flag};

use crate::api::{CommandId, Event, Refusal};
use crate::connect::End;
use crate::generation::PROMOTED;
use crate::planted::{Bug, planted};
use crate::state::Deferred;
use crate::twophase::{Change, Wanted};
use crate::volume::Lineage;
use crate::{Engine, IoKind};

/// A change of role under way.
pub(crate) enum RoleChange {
    /// What a lost Primary counts on reaches the disk first: reads here must see it. And every disk that is being
    /// attached has found out what its data is: a Primary never goes by a peer's older copy because its own was not
    /// ready (rule GE-8).
    AwaitingDisks {
        command: CommandId,
        force: bool,
    },
    /// The cluster is asked.
    Promoting,
    /// Agreed; superblocks say "a Primary is here", then the command is answered.
    Promoted {
        command: Option<CommandId>,
    },
    Demoting {
        command: CommandId,
        step: Demotion,
    },
    /// Agreed; bitmaps and superblocks are on their way.
    Demoted {
        command: Option<CommandId>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Demotion {
    /// Writes and flushes come to an end, on the peers too.
    Drain,
    /// The own disks make it durable.
    Flush { left: u32 },
    /// The cluster is asked.
    Asking,
}

impl Engine {
    pub(crate) fn is_demoting(&self) -> bool {
        matches!(self.role_change, Some(RoleChange::Demoting { .. }))
    }

    pub(crate) fn promote(&mut self, id: CommandId, force: bool) {
        if self.role_change.is_some() {
            return self.refuse(id, busy());
        }
        if self.role == Role::Primary {
            return self.reply(id, Ok(()));
        }
        self.role_change = Some(RoleChange::AwaitingDisks { command: id, force });
    }

    pub(crate) fn demote(&mut self, id: CommandId) {
        if self.role_change.is_some() {
            return self.refuse(id, busy());
        }
        if self.role == Role::Secondary {
            return self.reply(id, Ok(()));
        }
        self.role_change = Some(RoleChange::Demoting { command: id, step: Demotion::Drain });
        self.close_epoch();
        for number in self.volume_numbers() {
            self.show_device(number);
        }
    }

    /// The rules for an own change (docs/states.md "Promotion"), checked when it starts.
    pub(crate) fn check_own(&self, change: Change) -> Result<(), Refusal> {
        match change {
            Change::Promote { force } => self.check_promotion(force),
            Change::Detach { volume } => self.check_detach(volume),
            Change::Invalidate { volume, peer } => self.check_full_sync(volume, peer, false),
            Change::InvalidateRemote { volume, peer } => self.check_full_sync(volume, peer, true),
            Change::Verify { volume, peer, .. } => self.check_verify(volume, peer),
            Change::Connect { .. } | Change::Disconnect { .. } | Change::Demote | Change::Attach { .. } => Ok(()),
        }
    }

    fn check_promotion(&self, force: bool) -> Result<(), Refusal> {
        let rival = self.peers.values().find(|p| p.is_connected() && p.role == Role::Primary);
        if let Some(peer) = rival.filter(|_| !planted(Bug::SecondPrimaryAllowed)) {
            return Err(Refusal {
                code: -1,
                rule: "SS_TWO_PRIMARIES",
                state: format!("node {} is Primary", peer.id),
                next_step: "demote that node first: one Primary at a time",
            });
        }
        for (number, volume) in self.volumes.iter() {
            let force = force || planted(Bug::OutdatedPromoted);
            let usable = if force { volume.disk >= DiskState::Inconsistent } else { false };
            if !self.has_data(*number) && !usable {
                let state = format!("volume {number}: disk:{}, no connected peer has UpToDate data", volume.disk);
                let next_step = if volume.disk >= DiskState::Inconsistent {
                    "connect a peer with UpToDate data; or take this node's data as it is with promote --force \
                     (what other nodes have newer is lost)"
                } else {
                    "attach a disk or connect a peer with UpToDate data"
                };
                return Err(Refusal { code: -2, rule: "SS_NO_UP_TO_DATE_DISK", state, next_step });
            }
            if !force {
                self.check_lineage(*number)?;
            }
        }
        Ok(())
    }

    /// Rule GE-8: what a peer serves in place of this node's lost disk is no older than that was, and has all that this
    /// node completed as Primary.
    fn check_lineage(&self, number: VolumeNumber) -> Result<(), Refusal> {
        let volume = self.volume(number);
        let source = self.up_to_date_peer(number).filter(|_| volume.disk != DiskState::UpToDate);
        let Some(peer) = source else { return Ok(()) };
        let older = |last: &Lineage| {
            let uuids = self.peer(peer).volumes[&number].uuids.as_ref();
            uuids.is_some_and(|uuids| !Lineage::of_peer(uuids).continues(last.current))
        };
        let state = match volume.last_disk.as_ref().filter(|last| older(last)) {
            Some(last) => {
                format!("volume {number}: this node's disk had generation {}, the peers' data is older", last.current)
            }
            None if volume.missing_at.contains(peer) => {
                format!("volume {number}: node {peer} may lack writes that this node had completed as Primary")
            }
            None => return Ok(()),
        };
        Err(Refusal {
            code: -2,
            rule: "SS_NO_UP_TO_DATE_DISK",
            state,
            next_step: "attach the disk again; or take the older data as it is with promote --force",
        })
    }

    fn check_detach(&self, number: VolumeNumber) -> Result<(), Refusal> {
        let syncing = self.peers.values().any(|p| {
            let device = &p.volumes[&number];
            device.is_syncing() && !device.is_target()
        });
        if self.is_primary() && self.up_to_date_peer(number).is_none() {
            return Err(Refusal {
                code: -2,
                rule: "SS_NO_UP_TO_DATE_DISK",
                state: format!("volume {number}: this Primary's disk is the only UpToDate one in reach"),
                next_step: "wait until a peer is UpToDate, or demote first",
            });
        }
        if syncing {
            return Err(Refusal {
                code: -8,
                rule: "SS_RESYNC_RUNNING",
                state: format!("volume {number}: a resync runs from this disk"),
                next_step: "wait for its end, or disconnect the target first",
            });
        }
        Ok(())
    }

    fn check_full_sync(&self, number: VolumeNumber, peer: NodeId, source: bool) -> Result<(), Refusal> {
        let device = &self.peer(peer).volumes[&number];
        if device.replication != ReplicationState::Established {
            return Err(Refusal {
                code: -15,
                rule: "SS_NEED_CONNECTION",
                state: format!("volume {number} towards node {peer}: replication:{}", device.replication),
                next_step: "connect the peer, or wait for the end of the resync",
            });
        }
        let (good, target) = match source {
            true => (self.volume(number).disk, device.disk),
            false => (device.disk, self.volume(number).disk),
        };
        if target < DiskState::Inconsistent || target == DiskState::DUnknown {
            return Err(no_disk(number, if source { peer } else { self.me }, target));
        }
        let target_is_primary = if source { self.peer(peer).role == Role::Primary } else { self.is_primary() };
        if good != DiskState::UpToDate {
            return Err(Refusal {
                code: -2,
                rule: "SS_NO_UP_TO_DATE_DISK",
                state: format!("volume {number}: the data to sync from is {good}"),
                next_step: "invalidate only where the other side is UpToDate",
            });
        }
        if target_is_primary && source {
            return Err(Refusal {
                code: -7,
                rule: "SS_PRIMARY_NOP",
                state: format!("node {peer} is Primary"),
                next_step: "demote it first: a Primary's data is not thrown away",
            });
        }
        Ok(())
    }

    /// What this node says to a peer's change.
    pub(crate) fn allows(&self, change: Change, from: NodeId) -> bool {
        match change {
            Change::Promote { .. } => !self.is_primary() || planted(Bug::SecondPrimaryAllowed),
            Change::Detach { volume } => !self.is_primary() || self.has_data_without(volume, from),
            Change::Invalidate { volume, .. } => {
                let target = self.peer(from).volumes[&volume].disk;
                let has_disk = target >= DiskState::Inconsistent && target != DiskState::DUnknown;
                self.volume(volume).disk == DiskState::UpToDate && has_disk
            }
            Change::InvalidateRemote { volume, .. } => {
                !self.is_primary() && self.volume(volume).disk >= DiskState::Inconsistent
            }
            Change::Demote | Change::Disconnect { .. } | Change::Connect { .. } => true,
            Change::Verify { volume, peer, .. } => self.allows_verify(volume, peer),
            Change::Attach { volume } => !self.peer(from).volumes[&volume].is_syncing(),
        }
    }

    fn has_data_without(&self, number: VolumeNumber, peer: NodeId) -> bool {
        self.volume(number).disk == DiskState::UpToDate
            || self
                .peers
                .values()
                .any(|p| p.id != peer && p.is_connected() && p.volumes[&number].disk == DiskState::UpToDate)
    }

    // ------------------------------------------------------------------ promotion

    pub(crate) fn promotion_committed(&mut self, force: bool, command: Option<CommandId>) {
        if force {
            self.leave_sources();
            if let (true, Some(command)) = (self.has_orphaned_writes(), command) {
                return self.await_left_blocks(command);
            }
            self.force_up_to_date();
        }
        self.set_role(Role::Primary, if force { "promote --force" } else { "promote" });
        self.hold_requested_blocks(self.me);
        self.doubt_verify_blocks();
        for peer in self.peer_ids() {
            self.peer_mut(peer).discard_my_data = false;
        }
        for number in self.volume_numbers() {
            self.volume_mut(number).unconfirmed_at = types::NodeSet::EMPTY;
            self.volume_mut(number).missing_at = types::NodeSet::EMPTY;
            self.generation_is_due(number, PROMOTED);
            self.start_sweep(number);
            // A forced generation tells states too, behind its identifiers.
            if !(force && self.forced_generation(number)) {
                self.tell_state(number);
            }
        }
        self.role_change = Some(RoleChange::Promoted { command });
    }

    /// A resync into this node makes no sense any more once its data is taken as it is: those connections start over.
    fn leave_sources(&mut self) {
        for number in self.volume_numbers() {
            if !self.is_taken_as_it_is(number) {
                continue;
            }
            for peer in self.peer_ids() {
                if self.peer(peer).volumes[&number].is_target() {
                    let end = End::Retry(core::time::Duration::ZERO);
                    self.end_connection(peer, end, types::ConnectionState::Disconnecting, "promote --force");
                }
            }
        }
    }

    /// Blocks of a resync that was cut off just now are on their way to the disk: nobody reads beside them. Whoever was told
    /// of the promotion hears that it is not yet.
    fn await_left_blocks(&mut self, command: CommandId) {
        self.role_change = Some(RoleChange::AwaitingDisks { command, force: true });
        for number in self.volume_numbers() {
            self.tell_state(number);
        }
    }

    fn is_taken_as_it_is(&self, number: VolumeNumber) -> bool {
        !self.has_data(number) && self.volume(number).disk >= DiskState::Inconsistent
    }

    fn force_up_to_date(&mut self) {
        for number in self.volume_numbers() {
            if self.is_taken_as_it_is(number) {
                self.set_disk_untold(number, DiskState::UpToDate, "promote --force");
            }
        }
    }

    /// Begins the generation of a forced promotion. Returns whether it will tell the peers.
    fn forced_generation(&mut self, number: VolumeNumber) -> bool {
        if self.volume(number).backing.is_none() || self.volume(number).disk != DiskState::UpToDate {
            return false;
        }
        let followers: Vec<NodeId> = self
            .peers
            .values()
            .filter(|p| p.is_connected() && p.volumes[&number].disk == DiskState::UpToDate)
            .map(|p| p.id)
            .collect();
        let fresh = self.volume(number).current_uuid().is_just_created();
        if !followers.is_empty() && !fresh {
            return false;
        }
        self.volume_mut(number).generation_due = None;
        let weak = types::NodeSet::only(self.me).complement();
        if self.rotate(number, weak, true) || !fresh && self.replace_current_of_absent(number) {
            let current = self.volume(number).current_uuid();
            self.event(Event::NewGeneration { volume: number, current, reason: "promote --force" });
        } else if fresh {
            // Nobody to count for: still a generation of its own, or the next peer would see fresh metadata.
            let current = self.random_uuid();
            let backing = self.volume_mut(number).backing.as_mut().expect("looked at it above");
            backing.superblock.current_uuid = current;
            backing.touch();
            self.event(Event::NewGeneration { volume: number, current, reason: "promote --force" });
        }
        self.when_durable(number, Deferred::AnnounceForced);
        true
    }

    /// The forced generation is on disk: the peers compare and fetch.
    pub(crate) fn announce_forced(&mut self, number: VolumeNumber) {
        for peer in self.peers_to_tell() {
            self.send_uuids(peer, number, 0, None);
            self.send_state(peer, number);
        }
    }

    /// For what a lost peer still has on its way to the disks, and for disks whose state is not known yet.
    fn promotion_has_to_wait(&self) -> bool {
        self.has_orphaned_writes() || self.is_attaching()
    }

    /// The last word before a change starts, and before it is committed: a peer may have been lost since it was wanted,
    /// and left writes behind. Puts such a promotion back and says so.
    pub(crate) fn put_back(&mut self, wanted: &Wanted) -> bool {
        let Change::Promote { force } = wanted.change else { return false };
        if !self.promotion_has_to_wait() {
            return false;
        }
        let command = wanted.command.expect("only a command promotes");
        self.role_change = Some(RoleChange::AwaitingDisks { command, force });
        true
    }

    pub(crate) fn role_change_refused(&mut self, _refusal: &Refusal) {
        self.role_change = None;
        for number in self.volume_numbers() {
            self.show_device(number);
            self.volume_mut(number).pump = true;
        }
    }

    /// Part of `settle`. Returns whether the change got further.
    pub(crate) fn advance_role_change(&mut self) -> bool {
        match self.role_change.take() {
            Some(RoleChange::AwaitingDisks { command, force }) if !self.promotion_has_to_wait() => {
                self.role_change = Some(RoleChange::Promoting);
                self.want_change(Change::Promote { force }, Some(command));
                true
            }
            Some(RoleChange::Promoted { command }) if self.all_settled() => {
                for number in self.volume_numbers() {
                    self.show_device(number);
                }
                if let Some(id) = command {
                    self.reply(id, Ok(()));
                }
                true
            }
            Some(RoleChange::Demoting { command, step: Demotion::Drain }) if self.is_stream_empty() => {
                for peer in self.peer_ids() {
                    self.send_peer_ack(peer);
                }
                let disks: Vec<VolumeNumber> =
                    self.volumes.values().filter(|v| v.is_writable()).map(|v| v.number).collect();
                let step = Demotion::Flush { left: disks.len() as u32 };
                self.role_change = Some(RoleChange::Demoting { command, step });
                for number in disks {
                    self.flush_data(number, IoKind::Barrier);
                }
                true
            }
            Some(RoleChange::Demoting { command, step: Demotion::Flush { left: 0 } }) => {
                self.role_change = Some(RoleChange::Demoting { command, step: Demotion::Asking });
                self.want_change(Change::Demote, Some(command));
                true
            }
            Some(RoleChange::Demoted { command }) if self.all_settled() && self.bitmaps_are_written() => {
                if let Some(id) = command {
                    self.reply(id, Ok(()));
                }
                true
            }
            other => {
                self.role_change = other;
                false
            }
        }
    }

    pub(crate) fn barrier_flush_done(&mut self, number: VolumeNumber, result: Result<(), IoError>) {
        if result.is_err() {
            self.local_flush_failed(number);
        }
        if let Some(RoleChange::Demoting { step: Demotion::Flush { left }, .. }) = &mut self.role_change {
            *left -= 1;
        }
    }

    pub(crate) fn is_promoting(&self) -> bool {
        matches!(self.role_change, Some(RoleChange::Promoting))
    }

    fn is_attaching(&self) -> bool {
        self.volumes.values().any(|v| matches!(v.disk, DiskState::Attaching | DiskState::Negotiating))
    }

    pub(crate) fn all_settled(&self) -> bool {
        self.volumes.values().all(|v| v.backing.as_ref().is_none_or(|b| b.is_settled()))
    }

    fn bitmaps_are_written(&self) -> bool {
        self.volumes.values().all(|v| v.backing.as_ref().is_none_or(|b| b.writer.is_quiet()))
    }

    /// No request of the application is anywhere but at the door, where it will fail.
    fn is_stream_empty(&self) -> bool {
        self.writes.is_empty() && self.reads.is_empty() && self.flushes.is_empty()
    }

    pub(crate) fn demotion_committed(&mut self, command: Option<CommandId>) {
        self.set_role(Role::Secondary, "demote");
        for number in self.volume_numbers() {
            let volume = self.volume_mut(number);
            volume.generation_due = None;
            volume.shows_own_disk = false;
            if volume.backing.is_some() {
                volume.exposed_uuid = Uuid::ZERO;
            }
            if let Some(backing) = &mut volume.backing {
                backing.superblock.current_uuid = backing.superblock.current_uuid.with_primary_bit(false);
                backing.touch();
                backing.writer.want_bitmap();
            }
            volume.pump = true;
        }
        for peer in self.peers_to_tell() {
            let word = StateWord::default().with_role(Role::Secondary);
            self.send_data(peer, None, Message::State(word), None);
        }
        for number in self.volume_numbers() {
            self.tell_state(number);
        }
        self.role_change = Some(RoleChange::Demoted { command });
    }

    // ------------------------------------------------------------------ a peer's change

    pub(crate) fn peer_promoted(&mut self, peer: NodeId, force: bool) {
        if !self.peers.contains_key(&peer) {
            return;
        }
        self.set_peer_role(peer, Role::Primary);
        for number in self.volume_numbers() {
            let disk = self.peer(peer).volumes[&number].disk;
            if force && disk >= DiskState::Inconsistent && disk < DiskState::UpToDate && self.peer(peer).is_connected()
            {
                self.set_peer_disk(peer, number, DiskState::UpToDate, "promote --force");
            }
            if self.speaks_84(peer) {
                continue;
            }
            self.send_uuids(peer, number, 0, None);
        }
    }

    pub(crate) fn peer_demoted(&mut self, peer: NodeId) {
        if !self.peers.contains_key(&peer) {
            return;
        }
        self.set_peer_role(peer, Role::Secondary);
        for number in self.volume_numbers() {
            self.send_uuids(peer, number, 0, None);
        }
    }

    // ------------------------------------------------------------------ other commands

    pub(crate) fn invalidate(&mut self, id: CommandId, number: VolumeNumber, from: Option<NodeId>) {
        if !self.volumes.contains_key(&number) {
            return self.refuse(id, unknown_volume(number));
        }
        let source = from.or_else(|| self.up_to_date_peer(number));
        if let Some(peer) = source.filter(|p| self.peers.get(p).is_some_and(|p| p.is_connected())) {
            return self.want_change(Change::Invalidate { volume: number, peer }, Some(id));
        }
        if !self.volume(number).is_writable() {
            return self.refuse(id, no_disk(number, self.me, self.volume(number).disk));
        }
        if self.is_primary() {
            return self.refuse(
                id,
                Refusal {
                    code: -2,
                    rule: "SS_NO_UP_TO_DATE_DISK",
                    state: format!("role:{} disk:{}, no UpToDate peer", self.role, self.volume(number).disk),
                    next_step: "demote this node, or connect a peer with UpToDate data first",
                },
            );
        }
        self.set_disk(number, DiskState::Inconsistent, "invalidate");
        let backing = self.volume_mut(number).backing.as_mut().expect("looked at it above");
        for node in NodeId::all() {
            backing.set_all_towards(node);
        }
        for slot in backing.unowned_slots() {
            backing.bitmap.set_all(slot);
        }
        self.when_durable(number, Deferred::Reply { id });
    }

    pub(crate) fn invalidate_remote(&mut self, id: CommandId, number: VolumeNumber, peer: NodeId) {
        if !self.volumes.contains_key(&number) || !self.peers.contains_key(&peer) {
            return self.refuse(id, unknown_volume(number));
        }
        self.want_change(Change::InvalidateRemote { volume: number, peer }, Some(id));
    }

    pub(crate) fn outdate(&mut self, id: CommandId, number: VolumeNumber) {
        let Some(volume) = self.volumes.get(&number) else {
            return self.refuse(id, unknown_volume(number));
        };
        let refusal = |code, rule, next_step| Refusal {
            code,
            rule,
            state: format!("role:{} disk:{}", self.role, volume.disk),
            next_step,
        };
        if self.is_primary() {
            return self.refuse(id, refusal(-7, "SS_PRIMARY_NOP", "demote this node first"));
        }
        if self.role_change.is_some() {
            return self.refuse(id, busy());
        }
        if volume.disk < DiskState::Outdated {
            return self.refuse(id, refusal(-16, "SS_LOWER_THAN_OUTDATED", "nothing to do: the data is worse already"));
        }
        if self.peers.values().any(|p| p.is_connected() && p.role == Role::Primary) {
            let next_step = "disconnect the Primary first: it keeps this node's data current";
            return self.refuse(id, refusal(-6, "SS_CONNECTED_OUTDATES", next_step));
        }
        self.set_disk(number, DiskState::Outdated, "outdate");
        self.when_durable(number, Deferred::Reply { id });
    }

    /// `clear_bitmap`: all nodes have the same content, as the operator knows: skip the initial sync.
    pub(crate) fn new_current_uuid(&mut self, id: CommandId, number: VolumeNumber, clear_bitmap: bool) {
        let Some(volume) = self.volumes.get(&number) else {
            return self.refuse(id, unknown_volume(number));
        };
        let fresh = volume.current_uuid().is_just_created() && volume.backing.is_some();
        let peers_fresh = self
            .peers
            .values()
            .filter(|p| p.is_connected())
            .all(|p| p.volumes[&number].replication == ReplicationState::Established && fresh);
        if volume.backing.is_none() || !peers_fresh {
            let state = format!("disk:{} current:{}", volume.disk, volume.current_uuid());
            let next_step = "disconnect all peers first; with peers connected it works only on fresh metadata";
            return self.refuse(id, Refusal { code: -151, rule: "ERR_CONNECTED", state, next_step });
        }
        if !fresh && volume.disk <= DiskState::Inconsistent {
            // A newer generation on half a copy: no good copy would ever be its source.
            let state = format!("volume {number}: disk:{}", volume.disk);
            let next_step = "let the resync end first; or take this node's data as it is with promote --force";
            return self.refuse(id, Refusal { code: -2, rule: "SS_NO_UP_TO_DATE_DISK", state, next_step });
        }
        if clear_bitmap && !fresh && volume.disk != DiskState::UpToDate {
            let state = format!("volume {number}: disk:{}", volume.disk);
            let next_step = "clear the bitmap only of the copy that the others were made from";
            return self.refuse(id, Refusal { code: -2, rule: "SS_NO_UP_TO_DATE_DISK", state, next_step });
        }
        let current = self.random_uuid();
        let backing = self.volume_mut(number).backing.as_mut().expect("looked at it above");
        for node in NodeId::all() {
            let old = core::mem::replace(&mut backing.superblock.peers[node.index()].bitmap_uuid, Uuid::ZERO);
            backing.superblock.push_history(old);
        }
        let previous = core::mem::replace(&mut backing.superblock.current_uuid, current);
        if clear_bitmap {
            for slot in backing.bitmap.slots() {
                backing.bitmap.clear_all(slot);
            }
        } else {
            backing.superblock.push_history(previous);
        }
        backing.touch();
        backing.writer.want_bitmap();
        self.event(Event::NewGeneration { volume: number, current, reason: "new-current-uuid" });
        if clear_bitmap {
            // A peer that heard of the disk first would compare the old generations and start a full sync.
            for peer in self.peers_to_tell() {
                self.send_uuids(peer, number, uuid_flag::SKIP_INITIAL_SYNC, None);
            }
            self.set_disk(number, DiskState::UpToDate, "new-current-uuid --clear-bitmap");
            for peer in self.peers_to_tell() {
                self.set_peer_disk(peer, number, DiskState::UpToDate, "new-current-uuid --clear-bitmap");
                self.send_state(peer, number);
            }
        }
        self.when_durable(number, Deferred::Reply { id });
    }

    /// A peer skipped the initial sync: on fresh metadata we take its word.
    pub(crate) fn initial_sync_skipped(&mut self, peer: NodeId, number: VolumeNumber, current: Uuid) {
        let Some(backing) = &mut self.volume_mut(number).backing else { return };
        if !backing.superblock.current_uuid.is_just_created() {
            return;
        }
        backing.superblock.current_uuid = current.with_primary_bit(false);
        for slot in backing.bitmap.slots() {
            backing.bitmap.clear_all(slot);
        }
        backing.touch();
        backing.writer.want_bitmap();
        self.set_disk(number, DiskState::UpToDate, "the peer skipped the initial sync");
        self.set_peer_disk(peer, number, DiskState::UpToDate, "the peer skipped the initial sync");
    }
}

pub(crate) fn busy() -> Refusal {
    Refusal {
        code: -18,
        rule: "SS_IN_TRANSIENT_STATE",
        state: "another change is under way".to_string(),
        next_step: "try again when it is through",
    }
}

fn no_disk(number: VolumeNumber, node: NodeId, disk: DiskState) -> Refusal {
    Refusal {
        code: -138,
        rule: "ERR_NO_DISK",
        state: format!("volume {number}: the disk of node {node}, to be overwritten, is {disk}"),
        next_step: "attach that disk first",
    }
}

pub(crate) fn unknown_volume(number: VolumeNumber) -> Refusal {
    Refusal {
        code: -127,
        rule: "ERR_MINOR_INVALID",
        state: format!("volume {number} or that peer is not part of this resource"),
        next_step: "name a volume and peer that the configuration has",
    }
}
