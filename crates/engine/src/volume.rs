//! One volume on this node: its disk with everything the metadata says, and the requests that wait at its door.
//!
//! Superblock changes are counted. `Backing::changed` is the version in memory, `Backing::durable` the one on disk,
//! durable <= changed. Data is written to the disk only while the two are equal ([`Backing::is_settled`]): so whatever
//! a superblock says about a write (Inconsistent, a new generation, "somebody is Primary") is on disk before it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use metadata::bitmap::Bitmap;
use metadata::layout::Layout;
use metadata::superblock::{DeviceFlags, PeerFlags, Superblock};
use types::{
    BlockLimits, BlockOp, ByteRange, DiskState, NodeId, NodeSet, PayloadId, RequestId, Slot, Time, Uuid, VolumeNumber,
};

use wire::message::Uuids;

use crate::activity::ActivityLog;
use crate::api::{CommandId, VolumeConfig};
use crate::attach::Detach;
use crate::in_sync::Sweep;
use crate::latency::Latency;
use crate::meta::MetaWriter;
use crate::ranges::RangeSet;
use crate::slab::Key;

/// Storage behind one bitmap bit on the wire. Bytes. Source: docs/wire.md "Bitmap".
pub(crate) const WIRE_BLOCK_BYTES: u64 = 4096;

/// A request of the application that has not been let in yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parked {
    pub request: RequestId,
    pub op: BlockOp,
    pub range: ByteRange,
    pub payload: Option<PayloadId>,
    pub since: Time,
}

/// A write that wants the activity log or a settled superblock: the application's, or a peer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Writer {
    Application(Key),
    Peer(Key),
}

/// What a lost Primary wrote here and did not see confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Salvage {
    Nothing,
    /// A flush is due as soon as all of it is on the disk.
    Due,
    /// The flush is on its way. `again`: more came after it.
    Flushing {
        again: bool,
    },
}

pub(crate) struct Volume {
    pub number: VolumeNumber,
    pub config: VolumeConfig,
    pub disk: DiskState,
    pub backing: Option<Backing>,
    /// What the application sees. Bytes; 0: not known yet.
    pub exposed_bytes: u64,
    /// Generation of the data that a diskless node shows.
    pub exposed_uuid: Uuid,
    /// As Primary: it is what was on its own disk when that went, whoever has served it since.
    pub shows_own_disk: bool,
    /// That generation and the one before it, if the disk went before the new one was known to be on it.
    pub shown_before: Option<(Uuid, Uuid)>,
    /// Begun by this diskless Primary, and lost with the peer before that said that it has it. It may have.
    pub given_up: Option<Uuid>,
    /// The disk failed on a write that its Primary was told of as received (protocol B): it is behind, whatever its
    /// metadata says, until a peer made it whole.
    pub lost_received: bool,
    /// What the disk was that went, failed or detached: nothing older takes its place unasked (rule GE-8).
    pub last_disk: Option<Lineage>,
    /// A new generation has to begin before the next write is let in; why.
    pub generation_due: Option<&'static str>,
    /// Targets whose link died before they could say whether they had finished: they may have the current generation.
    pub may_be_equal: NodeSet,
    /// Peers that do not have the generation of this diskless Primary on their disks yet.
    pub generation_unconfirmed: NodeSet,
    /// Peers whose link died while they held completed writes of this Primary that they had not confirmed as stable.
    pub unconfirmed_at: NodeSet,
    /// Those of them that may not even have received all of it (protocol A).
    pub missing_at: NodeSet,
    /// A lost Primary's writes are made durable before a peer is connected (rule EP-5).
    pub salvage: Salvage,
    /// This node was Primary when it went down and the peers have not been compared since.
    pub crashed_primary: bool,
    /// Overlap of application writes, peer writes and resync.
    pub ranges: RangeSet,
    /// Not let in: the door is shut (see `Engine::door`).
    pub parked: VecDeque<Parked>,
    /// Have their range, want the activity log, in order.
    pub log_wanted: VecDeque<Writer>,
    /// Have their range and wait for the log transaction with this ticket.
    pub log_pending: VecDeque<(u64, Writer)>,
    /// Have range and log, wait for a settled superblock.
    pub ready: VecDeque<Writer>,
    /// Resync blocks that have their range and wait for a settled superblock.
    pub resync_ready: VecDeque<Key>,
    pub detach: Option<Detach>,
    /// Attach or detach under way: the command to answer.
    pub command: Option<CommandId>,
    /// Operations on the disk that have not come back.
    pub ios: u32,
    /// Something may be able to go on: look at the queues.
    pub pump: bool,
    /// When changed bitmap pages go to disk at the latest.
    pub bitmap_due: Option<Time>,
    /// As Primary: third nodes are told what is equal (see `in_sync`).
    pub sweep: Option<Sweep>,
    /// Writes of the application and of peers that are not forgotten yet.
    pub writes_open: u64,
    /// Of these, a peer's that no log of its own covers: it had no disk when it sent them.
    pub writes_logged_here: u64,
    pub counters: Counters,
    pub latency: Latency,
}

#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counters {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub al_writes: u64,
    pub bitmap_writes: u64,
}

pub(crate) struct Backing {
    /// Nodes towards which bits were on disk at the attach, before the activity log was applied: these tell of real
    /// differences, and equal generations do not disprove them (rule BM-3).
    pub tracked: NodeSet,
    /// An operation on it failed since it was attached: what it shows may not be what it keeps.
    pub has_failed: bool,
    pub superblock: Superblock,
    pub layout: Layout,
    pub bitmap: Bitmap,
    pub log: ActivityLog,
    pub data_bytes: u64,
    pub limits: BlockLimits,
    pub external_metadata: bool,
    pub changed: u64,
    pub durable: u64,
    pub writer: MetaWriter,
}

/// The generations that some data has gone through.
#[derive(Clone, Debug)]
pub(crate) struct Lineage {
    pub current: Uuid,
    older: Vec<Uuid>,
}

impl Lineage {
    pub fn of_disk(superblock: &Superblock) -> Lineage {
        let slots = superblock.peers.iter().map(|record| record.bitmap_uuid);
        Lineage { current: superblock.current_uuid, older: slots.chain(superblock.history).collect() }
    }
    pub fn of_peer(uuids: &Uuids) -> Lineage {
        let older = uuids.bitmap.iter().chain(&uuids.history).copied().collect();
        Lineage { current: uuids.current, older }
    }
    /// All that `generation` ever was is part of it.
    pub fn continues(&self, generation: Uuid) -> bool {
        let real = !generation.is_zero() && !generation.is_just_created();
        !real || self.current.same(generation) || self.older.iter().any(|older| older.same(generation))
    }
}

impl Volume {
    pub fn new(number: VolumeNumber, config: VolumeConfig) -> Volume {
        Volume {
            number,
            config,
            disk: DiskState::Diskless,
            backing: None,
            exposed_bytes: 0,
            exposed_uuid: Uuid::ZERO,
            shows_own_disk: false,
            lost_received: false,
            shown_before: None,
            given_up: None,
            last_disk: None,
            generation_due: None,
            may_be_equal: NodeSet::EMPTY,
            generation_unconfirmed: NodeSet::EMPTY,
            unconfirmed_at: NodeSet::EMPTY,
            missing_at: NodeSet::EMPTY,
            salvage: Salvage::Nothing,
            crashed_primary: false,
            ranges: RangeSet::new(),
            parked: VecDeque::new(),
            log_wanted: VecDeque::new(),
            log_pending: VecDeque::new(),
            ready: VecDeque::new(),
            resync_ready: VecDeque::new(),
            detach: None,
            command: None,
            ios: 0,
            pump: false,
            bitmap_due: None,
            sweep: None,
            writes_open: 0,
            writes_logged_here: 0,
            counters: Counters::default(),
            latency: Latency::default(),
        }
    }

    /// The disk takes writes: attached and not failed.
    pub fn is_writable(&self) -> bool {
        self.backing.is_some() && self.disk >= DiskState::Negotiating
    }

    /// Completed writes are stable only after a flush, which the disk takes also while it is being detached.
    pub fn may_lose_writes(&self) -> bool {
        let used = self.disk > DiskState::Attaching;
        used && self.backing.as_ref().is_some_and(|b| b.limits.volatile_cache)
    }

    /// Nothing of it can go on before something is answered.
    pub fn is_at_rest(&self) -> bool {
        !self.pump && !self.wants_metadata_written()
    }

    /// A disk that goes, or writes of a lost Primary that become durable.
    pub fn is_changing(&self) -> bool {
        self.salvage != Salvage::Nothing || matches!(self.disk, DiskState::Failed | DiskState::Detaching)
    }

    /// Some queue behind the door has something.
    pub fn has_queued(&self) -> bool {
        !(self.log_wanted.is_empty() && self.ready.is_empty() && self.resync_ready.is_empty())
    }

    /// A metadata write may be due, and none is on its way.
    pub fn wants_metadata_written(&self) -> bool {
        self.backing.as_ref().is_some_and(|b| b.writer.is_idle() && (!b.is_settled() || b.wants_more_written()))
    }

    /// What this node says its data is.
    pub fn current_uuid(&self) -> Uuid {
        match &self.backing {
            Some(backing) if self.disk != DiskState::Detaching => backing.superblock.current_uuid,
            _ => self.exposed_uuid,
        }
    }

    pub fn bits_towards(&self, node: NodeId) -> u64 {
        self.backing.as_ref().map_or(0, |b| b.bits_towards(node))
    }

    /// Bits for `range` towards `node`, rounded outward. Returns how many were newly set.
    pub fn mark_out_of_sync(&mut self, node: NodeId, range: ByteRange) -> u64 {
        let Some(backing) = &mut self.backing else { return 0 };
        let Some(slot) = backing.superblock.peers[node.index()].slot else { return 0 };
        let blocks = range.blocks_touched(backing.block_bytes());
        let newly = backing.bitmap.set(slot, blocks);
        if newly > 0 {
            backing.writer.want_bitmap_soon();
        }
        newly
    }

    /// Clears the bits of blocks that `range` covers completely. The caller has the proof (docs/protocol.md BM-2).
    pub fn mark_in_sync(&mut self, node: NodeId, range: ByteRange) -> u64 {
        let size = self.exposed_bytes;
        let Some(backing) = &mut self.backing else { return 0 };
        let Some(slot) = backing.superblock.peers[node.index()].slot else { return 0 };
        let blocks = range.blocks_covered(backing.block_bytes(), size);
        let newly = backing.bitmap.clear(slot, blocks);
        if newly > 0 {
            backing.writer.want_bitmap_soon();
        }
        newly
    }
}

impl Backing {
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.superblock.bitmap_block_bytes)
    }

    pub fn is_settled(&self) -> bool {
        self.durable == self.changed
    }

    fn wants_more_written(&self) -> bool {
        self.log.has_changes() || self.writer.wants_something()
    }

    /// The superblock in memory changed: it goes to disk before any further data.
    pub fn touch(&mut self) -> u64 {
        self.changed += 1;
        self.changed
    }

    pub fn bits_towards(&self, node: NodeId) -> u64 {
        self.superblock.peers[node.index()].slot.map_or(0, |slot| self.bitmap.count(slot))
    }

    /// Slots that belong to nobody: they collect every write since day 0.
    pub fn unowned_slots(&self) -> Vec<Slot> {
        let owned: Vec<Slot> = self.superblock.peers.iter().filter_map(|p| p.slot).collect();
        (0..self.superblock.max_peers).map(Slot).filter(|s| !owned.contains(s)).collect()
    }

    /// After a write is settled: a slot whose node is in `keep` is left alone, every other one, owned or not, gets
    /// the bits. The set covers whole blocks, rounded outward. Returns how many bits were newly set.
    pub fn mark_all_but(&mut self, keep: NodeSet, range: ByteRange) -> u64 {
        let blocks = range.blocks_touched(self.block_bytes());
        let mut keep_slots = 0u32;
        for node in keep.iter() {
            if let Some(slot) = self.superblock.peers[node.index()].slot {
                keep_slots |= 1 << slot.0;
            }
        }
        let mut newly = 0;
        for slot in (0..self.superblock.max_peers).map(Slot) {
            if keep_slots & (1 << slot.0) == 0 {
                newly += self.bitmap.set(slot, blocks.clone());
            }
        }
        if newly > 0 {
            self.writer.want_bitmap_soon();
        }
        newly
    }

    /// What comes from `source` is missing everywhere else, also where nobody owns the slot: as far as it is known now,
    /// those bits are durable with the superblock.
    pub fn mark_what_comes_from(&mut self, source: NodeId) {
        let Some(from) = self.superblock.peers[source.index()].slot else { return };
        for slot in (0..self.superblock.max_peers).map(Slot).filter(|slot| *slot != from) {
            self.bitmap.merge_slot(from, slot);
            self.writer.want_pages_first();
        }
        self.touch();
    }

    /// Sets every bit towards `node`, crash-safe: the record says "full sync" until the bits are on disk.
    pub fn set_all_towards(&mut self, node: NodeId) {
        let record = &mut self.superblock.peers[node.index()];
        let Some(slot) = record.slot else { return };
        record.flags.set(PeerFlags::FULL_SYNC, true);
        self.bitmap.set_all(slot);
        self.touch();
        self.writer.want_bitmap();
    }

    /// Drops every bit towards `node` and its bitmap UUID. The caller has the proof that the two are equal.
    pub fn clear_all_towards(&mut self, node: NodeId) {
        let record = &mut self.superblock.peers[node.index()];
        let old = core::mem::replace(&mut record.bitmap_uuid, Uuid::ZERO);
        record.bitmap_dagtag = 0;
        self.tracked = self.tracked.without(node);
        if let Some(slot) = record.slot {
            self.bitmap.clear_all(slot);
        }
        if !old.is_zero() {
            self.superblock.push_history(old);
            self.touch();
        }
    }

    pub fn bitmap_uuid(&self, node: NodeId) -> Uuid {
        self.superblock.peers[node.index()].bitmap_uuid
    }

    /// What the superblock says of the disk after a restart (no fencing: docs/states.md "Disk state from metadata").
    pub fn disk_state_from_flags(&self) -> DiskState {
        let flags = self.superblock.flags;
        if !flags.contains(DeviceFlags::CONSISTENT) {
            DiskState::Inconsistent
        } else if !flags.contains(DeviceFlags::WAS_UP_TO_DATE) {
            DiskState::Outdated
        } else {
            DiskState::UpToDate
        }
    }
}
