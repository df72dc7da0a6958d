//! Disks come and go: attach with crash recovery, detach that leaves the metadata clean, agreement on the size.

use alloc::format;
use alloc::string::ToString;

use metadata::activity_log::{self, al_extents_max};
use metadata::bitmap::Bitmap;
use metadata::superblock::{DeviceFlags, PeerFlags};
use types::{DiskState, NodeId, Role, VolumeNumber};
use wire::message::Sizes;

use crate::Engine;
use crate::activity::ActivityLog;
use crate::api::{AttachedDisk, CommandId, DeviceShape, Effect, Event, Refusal};
use crate::meta::MetaWriter;
use crate::role::{busy, unknown_volume};
use crate::state::Deferred;
use crate::twophase::Change;
use crate::volume::{Backing, Lineage};

/// How far a detach got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Detach {
    /// Operations on the disk come back.
    Draining,
    /// Bitmap, an empty activity log and the clean mark are on their way.
    Cleaning,
}

impl Engine {
    pub(crate) fn attach(&mut self, id: CommandId, number: VolumeNumber, disk: AttachedDisk) {
        let Some(volume) = self.volumes.get(&number) else {
            return self.refuse(id, unknown_volume(number));
        };
        if volume.disk != DiskState::Diskless || volume.command.is_some() {
            let state = format!("disk:{}", volume.disk);
            return self.refuse(id, attach_refusal(-124, "ERR_DISK_CONFIGURED", state, "detach the disk first"));
        }
        if self.is_promoting() {
            // The peers were asked about a node without this disk.
            self.refuse(id, busy());
            return self.emit(Effect::CloseDisk { volume: number });
        }
        match self.recover(number, disk) {
            Err(refusal) => {
                self.refuse(id, refusal);
                self.emit(Effect::CloseDisk { volume: number });
            }
            Ok(backing) if self.shows_what_may_be_newer(number, &backing) && !self.can_leave_behind(number) => {
                let state =
                    format!("volume {number}: this Primary shows a peer's data, the disk may not have all of it");
                let next = "connect that peer first: the disk is resynchronised from it; or demote this node";
                self.refuse(id, attach_refusal(-150, "ERR_DATA_NOT_CURRENT", state, next));
                self.emit(Effect::CloseDisk { volume: number });
            }
            Ok(backing) if self.has_more_than_is_shown(number, &backing) => {
                let state = format!(
                    "volume {number}: this Primary shows generation {}, the disk has {}, which goes on from that",
                    self.volume(number).exposed_uuid,
                    backing.superblock.current_uuid
                );
                let next = "demote this node first; then attach, and the peer is resynchronised from this disk";
                self.refuse(id, attach_refusal(-150, "ERR_DATA_NOT_CURRENT", state, next));
                self.emit(Effect::CloseDisk { volume: number });
            }
            Ok(mut backing) => {
                if self.shows_what_may_be_newer(number, &backing) {
                    self.leave_behind(number, &mut backing);
                }
                let volume = self.volume_mut(number);
                volume.crashed_primary = backing.superblock.flags.contains(DeviceFlags::CRASHED_PRIMARY);
                volume.backing = Some(backing);
                volume.last_disk = None;
                volume.command = Some(id);
                self.show_generation_before(number);
                self.take_generation_back(number);
                self.forget_comparisons(number);
                self.forget_proofs(number);
                self.set_disk(number, DiskState::Attaching, "attach");
                self.determine_first_size(number);
                self.volume_mut(number).backing.as_mut().expect("set above").touch();
                self.when_durable(number, Deferred::AttachReady);
            }
        }
    }

    /// Rule GE-8: this Primary has shown a peer's data of the disk's generation. The disk may have lost some of it in a
    /// crash, and by its flags and bits it would count as the better one.
    fn shows_what_may_be_newer(&self, number: VolumeNumber, backing: &Backing) -> bool {
        let volume = self.volume(number);
        let same = !volume.exposed_uuid.is_zero() && volume.exposed_uuid.same(backing.superblock.current_uuid);
        self.is_primary() && same && !volume.shows_own_disk
    }

    /// Rule GE-7: the disk would be the source of the data that this Primary shows, and that would change under it.
    fn has_more_than_is_shown(&self, number: VolumeNumber, backing: &Backing) -> bool {
        let shown = self.volume(number).exposed_uuid;
        let real = !shown.is_zero() && !shown.is_just_created();
        let same = backing.superblock.current_uuid.same(shown);
        self.is_primary() && real && !same && Lineage::of_disk(&backing.superblock).continues(shown)
    }

    /// A peer that has the data will be asked what it thinks of the disk, and takes a generation from here.
    fn can_leave_behind(&self, number: VolumeNumber) -> bool {
        self.up_to_date_peer(number).is_some() && !self.follows_an_84_peer()
    }

    /// The disk counts as Outdated, and the data in use gets a generation that the disk does not have.
    fn leave_behind(&mut self, number: VolumeNumber, backing: &mut Backing) {
        backing.superblock.flags.set(DeviceFlags::WAS_UP_TO_DATE, false);
        backing.superblock.flags.set(DeviceFlags::CRASHED_PRIMARY, false);
        self.begin_generation(number, "a disk is attached");
    }

    /// What was compared with the peers was another disk, or this one before it lost its cache.
    fn forget_comparisons(&mut self, number: VolumeNumber) {
        for peer in self.peer_ids() {
            self.device_mut(peer, number).reconnect = false;
        }
    }

    /// What is acknowledged from here on and was sent before says nothing of a bit that this disk brings: it may stand for
    /// a later write, which did not get to the end of its way (rule BM-2).
    fn forget_proofs(&mut self, number: VolumeNumber) {
        for write in self.writes.values_mut().filter(|w| w.volume == number) {
            write.legs.iter_mut().for_each(|leg| leg.may_set_in_sync = false);
        }
        for write in self.peer_writes.values_mut().filter(|w| w.volume == number) {
            write.proves = false;
        }
        for served in self.served.values_mut().filter(|s| s.volume == number) {
            served.superseded = true;
        }
    }

    /// Crash recovery (docs/ondisk.md "Attach"): what the activity log covers becomes bits, in every slot.
    fn recover(&self, number: VolumeNumber, disk: AttachedDisk) -> Result<Backing, Refusal> {
        let AttachedDisk { mut superblock, layout, bitmap, al_blocks, data_bytes, limits, external_metadata } = disk;
        let volume = self.volume(number);
        match superblock.node_id {
            Some(node) if node != self.me => {
                let state = format!("the metadata belongs to node {node}, this is node {}", self.me);
                let next = "attach the disk on that node, or write new metadata with create-md --force";
                return Err(attach_refusal(-158, "ERR_INVALID_NODE_ID", state, next));
            }
            _ => superblock.node_id = Some(self.me),
        }
        if superblock.last_agreed_bytes > data_bytes {
            let state = format!("the volume has {} bytes, the disk holds {data_bytes}", superblock.last_agreed_bytes);
            return Err(attach_refusal(-111, "ERR_DISK_TOO_SMALL", state, "attach the whole disk"));
        }
        for peer in &volume.config.diskful_peers {
            if superblock.peers[peer.index()].slot.is_some() {
                continue;
            }
            let Some(slot) = superblock.lowest_free_slot() else {
                let state = format!("the metadata has {} bitmap slots, all taken", superblock.max_peers);
                let next = "write new metadata with create-md --max-peers, or forget a peer that is gone";
                return Err(attach_refusal(-150, "ERR_NO_FREE_SLOT", state, next));
            };
            superblock.peers[peer.index()].slot = Some(slot);
        }
        let bits = superblock.last_agreed_bytes.div_ceil(u64::from(superblock.bitmap_block_bytes));
        let mut bitmap = Bitmap::from_image(superblock.max_peers, superblock.bitmap_block_bytes, bits, bitmap);
        let indicator = superblock.flags.contains(DeviceFlags::PRIMARY_INDICATOR);
        let has_bits = |node: &NodeId| superblock.peers[node.index()].slot.is_some_and(|slot| bitmap.count(slot) > 0);
        let tracked = NodeId::all().filter(has_bits).collect();
        let recovery = activity_log::recover(
            &al_blocks,
            superblock.al_stripes,
            superblock.al_stripe_4k,
            superblock.al_slots,
            indicator,
        );
        activity_log::apply_al(&mut superblock, &mut bitmap, &recovery);
        let crashed = superblock.flags.contains(DeviceFlags::CRASHED_PRIMARY);
        let unlogged = superblock.flags.contains(DeviceFlags::AL_DISABLED) && indicator && crashed;
        for slot in bitmap.slots() {
            let owner = superblock.slot_owner(slot);
            let marked = owner.is_some_and(|n| superblock.peers[n.index()].flags.contains(PeerFlags::FULL_SYNC));
            if unlogged || marked {
                bitmap.set_all(slot);
            }
        }
        superblock.flags.set(DeviceFlags::AL_CLEAN, false);
        superblock.flags.set(DeviceFlags::AL_DISABLED, false);
        let extents = u32::from(volume.config.al_extents).min(al_extents_max(layout.al_blocks)) as u16;
        superblock.al_slots = u32::from(extents);
        Ok(Backing {
            tracked,
            has_failed: false,
            superblock,
            bitmap,
            log: ActivityLog::new(extents, layout.al_blocks, 0),
            layout,
            data_bytes,
            limits,
            external_metadata,
            changed: 0,
            durable: 0,
            writer: MetaWriter::new(),
        })
    }

    /// The size to start with: the last one agreed on, else all that fits.
    fn determine_first_size(&mut self, number: VolumeNumber) {
        let size = self.agreed_size(number, None);
        self.apply_size(number, size);
    }

    /// The disk's metadata says "in use".
    pub(crate) fn attach_ready(&mut self, number: VolumeNumber) {
        if self.connected_peers().is_empty() {
            let state = self.disk_state_by_metadata(number);
            self.set_disk(number, state, "attached");
            self.finish_attach(number);
        } else {
            self.want_change(Change::Attach { volume: number }, None);
        }
    }

    fn finish_attach(&mut self, number: VolumeNumber) {
        if let Some(id) = self.volume_mut(number).command.take() {
            self.reply(id, Ok(()));
        }
    }

    /// The peers agree: they see the disk and say what they think of it; their answers decide.
    pub(crate) fn attach_committed(&mut self, number: VolumeNumber) {
        self.set_disk_untold(number, DiskState::Negotiating, "attach");
        // In this order: the peers compare when they hear the state.
        for peer in self.peers_to_tell() {
            self.send_sizes(peer, number);
            self.send_uuids(peer, number, 0, None);
            self.send_state(peer, number);
        }
        self.finish_attach(number);
        if self.connected_peers().is_empty() {
            self.leave_negotiating(number);
        }
    }

    pub(crate) fn attach_refused(&mut self, number: VolumeNumber) {
        if let Some(id) = self.volume_mut(number).command.take() {
            let refusal = attach_refusal(
                -18,
                "SS_IN_TRANSIENT_STATE",
                "a peer refused the attach".to_string(),
                "attach again when the peer's own change is through",
            );
            self.refuse(id, refusal);
        }
        self.set_disk(number, DiskState::Failed, "attach refused");
        self.drop_backing(number);
    }

    // ------------------------------------------------------------------ detach

    pub(crate) fn detach(&mut self, id: CommandId, number: VolumeNumber, force: bool) {
        let Some(volume) = self.volumes.get(&number) else {
            return self.refuse(id, unknown_volume(number));
        };
        if volume.disk == DiskState::Diskless {
            return self.reply(id, Ok(()));
        }
        if volume.command.is_some() || volume.backing.is_none() {
            let state = format!("disk:{}", volume.disk);
            return self.refuse(id, attach_refusal(-18, "SS_IN_TRANSIENT_STATE", state, "try again in a moment"));
        }
        if force {
            self.disk_failed(number, "detach --force");
            return self.reply(id, Ok(()));
        }
        self.want_change(Change::Detach { volume: number }, Some(id));
    }

    pub(crate) fn detach_committed(&mut self, number: VolumeNumber, command: Option<CommandId>) {
        // Another detach was quicker.
        if self.volume(number).disk == DiskState::Diskless {
            return self.answer(command, Ok(()));
        }
        if self.volume(number).detach.is_some() || self.volume(number).backing.is_none() {
            return self.answer(command, Err(busy()));
        }
        self.abort_resyncs(number, "detach");
        self.show_generation_without_disk(number);
        let left_behind = self.peers.values().any(|p| {
            let device = &p.volumes[&number];
            p.is_connected() && p.role == Role::Primary && device.disk == DiskState::UpToDate
        });
        if left_behind && !self.is_primary() && self.volume(number).disk == DiskState::UpToDate {
            // The Primary goes on without this disk, and nobody can tell it later (rule GE-8).
            self.set_disk_untold(number, DiskState::Outdated, "parted from a Primary");
        }
        self.set_disk(number, DiskState::Detaching, "detach");
        let volume = self.volume_mut(number);
        volume.command = command;
        volume.detach = Some(Detach::Draining);
        if self.is_primary() {
            // From here on writes go to the peers only.
            self.generation_is_due(number, "detached");
        }
    }

    /// Part of `settle`: takes detaching and failed disks on. Returns whether one got further.
    pub(crate) fn advance_detach(&mut self) -> bool {
        let mut progress = false;
        for position in 0..self.volumes.len() {
            let (number, volume) = self.volumes.at(position);
            match (volume.disk, volume.detach) {
                (DiskState::Failed, _) if volume.ios == 0 => {
                    self.volume_mut(number).detach = None;
                    self.close_disk(number, "the disk failed");
                    progress = true;
                }
                (DiskState::Detaching, Some(Detach::Draining)) if self.is_drained(number) => {
                    let primary = self.is_primary();
                    let volume = self.volume_mut(number);
                    volume.detach = Some(Detach::Cleaning);
                    let crashed = volume.crashed_primary;
                    let backing = volume.backing.as_mut().expect("it is detaching");
                    backing.superblock.flags.set(DeviceFlags::AL_CLEAN, true);
                    backing.superblock.flags.set(DeviceFlags::PRIMARY_INDICATOR, crashed);
                    backing.superblock.flags.set(DeviceFlags::CRASHED_PRIMARY, crashed);
                    backing.superblock.current_uuid = backing.superblock.current_uuid.with_primary_bit(primary);
                    backing.writer.want_ring();
                    backing.touch();
                    volume.pump = true;
                    progress = true;
                }
                (DiskState::Detaching, Some(Detach::Cleaning)) => {
                    let clean = volume.backing.as_ref().is_some_and(|b| b.is_settled() && b.writer.is_quiet());
                    if clean && volume.ios == 0 {
                        self.volume_mut(number).detach = None;
                        // The log was emptied behind a flush.
                        for peer in self.peer_ids() {
                            self.device_mut(peer, number).unflushed = false;
                        }
                        self.drop_backing(number);
                        self.close_disk(number, "detached");
                        progress = true;
                    }
                }
                _ => {}
            }
        }
        progress
    }

    fn is_drained(&self, number: VolumeNumber) -> bool {
        let volume = self.volume(number);
        let idle = volume.backing.as_ref().is_some_and(|b| b.writer.is_idle());
        // Writes that began on this disk decide their bits on it before it goes.
        let logged = self.writes.iter().any(|(_, w)| w.volume == number && w.in_log)
            || self.peer_writes.iter().any(|(_, w)| w.volume == number && w.in_log);
        idle && volume.ios == 0 && !logged
    }

    fn close_disk(&mut self, number: VolumeNumber, reason: &'static str) {
        self.set_disk(number, DiskState::Diskless, reason);
        self.emit(Effect::CloseDisk { volume: number });
        if let Some(id) = self.volume_mut(number).command.take() {
            self.reply(id, Ok(()));
        }
    }

    // ------------------------------------------------------------------ size

    /// The size all nodes with a disk can hold, never more than was agreed before (growing is a command). Bytes.
    pub(crate) fn agreed_size(&self, number: VolumeNumber, candidate: Option<(NodeId, Sizes)>) -> u64 {
        let volume = self.volume(number);
        let mut size = u64::MAX;
        if let Some(backing) = &volume.backing {
            size = backing.data_bytes;
        }
        size = size.min(volume.config.size_max_bytes.unwrap_or(u64::MAX));
        for peer in self.peers.values() {
            let device = &peer.volumes[&number];
            let is_candidate = candidate.is_some_and(|(id, _)| id == peer.id);
            let Some(sizes) = device.sizes.filter(|_| peer.is_connected() || is_candidate) else { continue };
            let diskless = device.word.and_then(|w| w.disk().ok()).is_none_or(|d| d <= DiskState::Failed);
            if diskless {
                continue;
            }
            size = size.min(sizes.disk_bytes);
            if sizes.user_bytes > 0 {
                size = size.min(sizes.user_bytes);
            }
            if volume.backing.is_none() || volume.exposed_bytes == 0 {
                size = size.min(sizes.current_bytes.max(512));
            }
        }
        let before = volume.backing.as_ref().map_or(volume.exposed_bytes, |b| b.superblock.last_agreed_bytes);
        let size = if before > 0 { size.min(before) } else { size };
        if size == u64::MAX { 0 } else { size / 512 * 512 }
    }

    pub(crate) fn agree_on_size(&mut self, number: VolumeNumber) {
        let size = self.agreed_size(number, None);
        if size != self.volume(number).exposed_bytes {
            self.apply_size(number, size);
            for peer in self.peers_to_tell() {
                self.send_sizes(peer, number);
            }
        }
    }

    fn apply_size(&mut self, number: VolumeNumber, size: u64) {
        let volume = self.volume_mut(number);
        let from = core::mem::replace(&mut volume.exposed_bytes, size);
        if let Some(backing) = &mut volume.backing {
            let bits = size.div_ceil(backing.block_bytes());
            if backing.bitmap.bits() != bits {
                backing.bitmap.set_size(bits);
                backing.writer.want_bitmap();
            }
            if backing.superblock.last_agreed_bytes != size {
                backing.superblock.last_agreed_bytes = size;
                backing.touch();
            }
        }
        if from != size {
            self.event(Event::Size { volume: number, bytes: size });
            self.show_device(number);
        }
    }

    /// The application's device as it should be: it exists while this node is Primary.
    pub(crate) fn show_device(&mut self, number: VolumeNumber) {
        let volume = self.volume(number);
        let visible = self.role == Role::Primary && volume.exposed_bytes > 0 && !self.is_demoting();
        let limits = self.agreed_limits(number);
        let device = visible.then_some(DeviceShape { size_bytes: volume.exposed_bytes, limits });
        self.emit(Effect::Device { volume: number, device });
    }

    /// What every disk that we know of can do.
    fn agreed_limits(&self, number: VolumeNumber) -> types::BlockLimits {
        let volume = self.volume(number);
        let mut limits = volume.backing.as_ref().map(|b| b.limits).unwrap_or_default();
        for peer in self.peers.values().filter(|p| p.is_connected()) {
            let Some(sizes) = peer.volumes[&number].sizes else { continue };
            limits.io_bytes_max = limits.io_bytes_max.min(sizes.io_bytes_max.max(4096));
            if let Some(theirs) = sizes.limits {
                limits.logical_block_bytes = limits.logical_block_bytes.max(theirs.logical_block_bytes.min(4096));
                limits.physical_block_bytes = limits.physical_block_bytes.max(theirs.physical_block_bytes.min(65536));
            }
        }
        limits.volatile_cache = true;
        limits
    }
}

fn attach_refusal(code: i32, rule: &'static str, state: alloc::string::String, next_step: &'static str) -> Refusal {
    Refusal { code, rule, state, next_step }
}
