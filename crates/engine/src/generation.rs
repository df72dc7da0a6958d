//! Generation identifiers: when a new one begins, what the others learn of it, and who equals whom.
//!
//! A Primary that writes without some disk that carries its current UUID starts a new generation first: the old
//! current goes into the bitmap UUIDs of all nodes that do not follow, so that the bits in those slots count from it.

use types::{DiskState, NodeId, NodeSet, ReplicationState, Role, Uuid, VolumeNumber};
use wire::Message;
use wire::message::{Uuids, uuid_flag};

use metadata::superblock::DeviceFlags;

use crate::Engine;
use crate::api::Event;
use crate::handshake::{self, Decision, Rule, Side, Strategy};
use crate::peer::Peer;
use crate::planted::{Bug, planted};
use crate::reconcile::reconcile_bits;
use crate::state::Deferred;

/// Why a generation is due after a change of role.
pub(crate) const PROMOTED: &str = "promoted";

impl Engine {
    /// A new generation has to begin before the next write.
    pub(crate) fn generation_is_due(&mut self, number: VolumeNumber, reason: &'static str) {
        self.volume_mut(number).generation_due.get_or_insert(reason);
    }

    /// Peers that cannot be counted on to get what is written now.
    fn weak_nodes(&self, number: VolumeNumber) -> NodeSet {
        let mut strong = NodeSet::EMPTY;
        if self.volume(number).disk == DiskState::UpToDate {
            strong = strong.with(self.me);
        }
        for peer in self.peers.values().filter(|p| p.is_connected()) {
            let disk = peer.volumes.get(&number).map_or(DiskState::DUnknown, |d| d.disk);
            if disk > DiskState::Negotiating && !matches!(disk, DiskState::DUnknown | DiskState::Outdated) {
                strong = strong.with(peer.id);
            }
        }
        strong.complement()
    }

    /// Starts a new generation if anybody would fall behind (docs/states.md "Rotation"). The superblock is on disk
    /// before the next write, the peers are told before it too.
    pub(crate) fn begin_generation(&mut self, number: VolumeNumber, reason: &'static str) {
        self.volume_mut(number).generation_due = None;
        if planted(Bug::GenerationNotBegun) {
            return;
        }
        let weak = self.weak_nodes(number);
        if !self.volume(number).is_writable() {
            if self.follows_an_84_peer() {
                return;
            }
            return self.begin_diskless_generation(number, weak, reason);
        }
        let before = self.volume(number).current_uuid();
        let changed = self.rotate(number, weak, false);
        if !(changed || reason == PROMOTED && self.replace_current_of_absent(number)) {
            return;
        }
        let current = self.volume(number).current_uuid();
        self.event(Event::NewGeneration { volume: number, current, reason });
        self.when_durable(number, Deferred::AnnounceGeneration { weak, before });
    }

    /// Promoted while a node was away, this Primary gets its own disk back before its first write. Only this disk has the
    /// data for sure, but now it compares itself with others, and a node that crashed as Primary would be its source: so
    /// the generation that is due begins here. Nobody counts as having it.
    pub(crate) fn begin_generation_in_attach(&mut self, number: VolumeNumber) {
        let others = NodeSet::only(self.me).complement();
        if !self.rotate(number, others, false) && !self.replace_current_of_absent(number) {
            return;
        }
        let volume = self.volume_mut(number);
        volume.generation_due = None;
        volume.exposed_uuid = volume.current_uuid();
        let current = volume.exposed_uuid;
        self.event(Event::NewGeneration { volume: number, current, reason: PROMOTED });
    }

    /// Rule GE-7: a promotion while some node is away begins a generation of its own even if that node's bits count
    /// from an older one, or it has no disk: it may be a Primary that still shows the present one. So does one while the
    /// disk of a connected node is missing: it may have gone on from the present one, and would pass for its continuation.
    pub(crate) fn replace_current_of_absent(&mut self, number: VolumeNumber) -> bool {
        let Some(backing) = &self.volume(number).backing else { return false };
        let missing = |peer: &Peer| {
            let disk = peer.volumes[&number].disk;
            let unseen = disk <= DiskState::Negotiating || disk == DiskState::DUnknown;
            unseen && backing.superblock.peers[peer.id.index()].slot.is_some() && !self.speaks_84(peer.id)
        };
        let absent = self.peers.values().filter(|p| !p.is_connected() || missing(p)).map(|p| p.id).collect::<NodeSet>();
        let fresh = self.random_uuid();
        let Some(backing) = &mut self.volume_mut(number).backing else { return false };
        if absent.is_empty() {
            return false;
        }
        let old = core::mem::replace(&mut backing.superblock.current_uuid, fresh);
        backing.superblock.push_history(old);
        backing.touch();
        self.close_epoch();
        true
    }

    fn begin_diskless_generation(&mut self, number: VolumeNumber, weak: NodeSet, reason: &'static str) {
        let current = self.random_uuid();
        let keepers = self.peers.values().filter(|p| {
            let device = &p.volumes[&number];
            let follows = device.disk == DiskState::UpToDate && device.is_settled();
            // A kernel peer need not say when it has it.
            p.is_connected() && follows && p.is_replicad()
        });
        let keepers: NodeSet = keepers.map(|p| p.id).collect();
        let volume = self.volume_mut(number);
        volume.exposed_uuid = current;
        volume.generation_unconfirmed = keepers;
        self.event(Event::NewGeneration { volume: number, current, reason });
        for peer in self.peers_to_tell() {
            let message = Message::CurrentUuid { uuid: current, weak_nodes: weak.to_wire() };
            self.send_data(peer, Some(number), message, None);
        }
    }

    /// Moves the current UUID into the bitmap UUIDs of nodes that fall behind and takes a new one. `force`: also of
    /// connected Inconsistent nodes. Returns whether a new current UUID came of it.
    pub(crate) fn rotate(&mut self, number: VolumeNumber, weak: NodeSet, force: bool) -> bool {
        let me = self.me;
        let fresh = self.random_uuid();
        let replacement = self.random_uuid();
        let mut behind = NodeSet::EMPTY;
        for node in types::NodeId::all().filter(|n| *n != me) {
            let device = self.peers.get(&node).filter(|p| p.is_connected()).and_then(|p| p.volumes.get(&number));
            let disk = device.map_or(DiskState::DUnknown, |d| d.disk);
            let follows = matches!(disk, DiskState::Consistent | DiskState::UpToDate)
                || (disk == DiskState::Inconsistent && !force && device.is_some_and(|d| d.is_syncing()));
            if !follows || weak.contains(node) {
                behind = behind.with(node);
            }
        }
        let dagtag = self.dagtag;
        let volume = self.volume_mut(number);
        let may_be_equal = core::mem::replace(&mut volume.may_be_equal, NodeSet::EMPTY);
        let backing = volume.backing.as_mut().expect("only a disk has generations to rotate");
        let superblock = &mut backing.superblock;
        let previous = if superblock.current_uuid.is_just_created() { replacement } else { superblock.current_uuid };
        let mut changed = false;
        for node in behind.iter() {
            let record = &mut superblock.peers[node.index()];
            let older = !record.bitmap_uuid.is_zero() && !record.bitmap_uuid.same(previous);
            // It has the slot's generation, or the present one and could not say so any more. A full resync is the price
            // then; without a new generation nobody could tell it from one that has all that is written from here on.
            changed |= older && may_be_equal.contains(node);
            if older {
                continue;
            }
            record.bitmap_uuid = previous;
            record.bitmap_dagtag = dagtag;
            // A record without a slot (day 0) takes the UUID along, but nobody is behind because of it.
            changed |= record.slot.is_some();
        }
        if !changed {
            return false;
        }
        superblock.current_uuid = fresh;
        // A record without a slot is not announced: a peer that still has this generation would not find it there.
        let announced =
            |record: &metadata::superblock::PeerRecord| record.slot.is_some() && record.bitmap_uuid.same(previous);
        if !superblock.peers.iter().any(announced) {
            superblock.push_history(previous);
        }
        backing.touch();
        self.close_epoch();
        true
    }

    /// The peer has the generation of this diskless Primary on its disk, or is out of the question.
    pub(crate) fn generation_confirmed(&mut self, peer: NodeId, number: VolumeNumber) {
        let volume = self.volume_mut(number);
        volume.generation_unconfirmed = volume.generation_unconfirmed.without(peer);
        self.check_all_writes();
    }

    /// The superblock with the new generation is on disk.
    pub(crate) fn announce_generation(&mut self, number: VolumeNumber, weak: NodeSet) {
        for peer in self.peers_to_tell() {
            if self.peer(peer).volumes[&number].replication >= ReplicationState::Established {
                self.send_uuids(peer, number, uuid_flag::NEW_DATAGEN, Some(weak));
            }
        }
        self.pump_all();
    }

    /// Connected and replicating until now: what it had counted as ours. `in_flight`: volumes with writes whose fate
    /// there is unknown.
    pub(crate) fn peer_data_lost(&mut self, peer: NodeId, in_flight: &[VolumeNumber]) {
        if !self.is_primary() {
            return;
        }
        for number in self.volume_numbers() {
            let disk = self.peer(peer).volumes[&number].disk;
            let had_data = disk >= DiskState::Inconsistent && disk != DiskState::DUnknown;
            if !had_data {
                continue;
            }
            // Its state must not count as "follows" in the rotation below.
            self.set_connection_lost_disk(peer, number);
            if !self.has_data(number) {
                self.generation_is_due(number, "a peer was lost");
            } else if in_flight.contains(&number) {
                self.begin_generation(number, "a peer was lost with writes in flight");
            } else {
                self.generation_is_due(number, "a peer was lost");
            }
        }
    }

    fn set_connection_lost_disk(&mut self, peer: NodeId, number: VolumeNumber) {
        self.set_peer_disk(peer, number, DiskState::DUnknown, "connection lost");
    }

    /// A graceful disconnect is committed, ours or the peer's: a Secondary that parts from a Primary is outdated from
    /// here on.
    pub(crate) fn left_politely(&mut self, peer: NodeId) {
        if self.is_primary() || self.peer(peer).role != Role::Primary {
            return;
        }
        for number in self.volume_numbers() {
            // A Primary without good data of its own goes on with nothing that we would lack.
            let goes_on = self.peer(peer).volumes[&number].disk == DiskState::UpToDate;
            if goes_on && self.volume(number).disk == DiskState::UpToDate {
                self.set_disk(number, DiskState::Outdated, "parted from a Primary");
            }
        }
    }

    // ------------------------------------------------------------------ announcements

    /// What we say of our generations to one peer.
    pub(crate) fn our_uuids(&self, peer: NodeId, number: VolumeNumber, extra: u64, mask: Option<NodeSet>) -> Uuids {
        let volume = self.volume(number);
        let Some(backing) = volume.backing.as_ref().filter(|_| volume.disk != DiskState::Detaching) else {
            return Uuids {
                current: volume.exposed_uuid,
                dirty_bits: 0,
                flags: extra,
                node_mask: 0,
                bitmap_mask: 0,
                bitmap: alloc::vec::Vec::new(),
                history: alloc::vec::Vec::new(),
            };
        };
        let device = &self.peer(peer).volumes[&number];
        let mut flags = extra;
        let set = |flags: &mut u64, on: bool, bit| *flags |= if on { bit } else { 0 };
        set(&mut flags, self.peer(peer).discard_my_data, uuid_flag::DISCARD_MY_DATA);
        set(&mut flags, volume.crashed_primary, uuid_flag::CRASHED_PRIMARY);
        set(&mut flags, !backing.superblock.flags.contains(DeviceFlags::CONSISTENT), uuid_flag::INCONSISTENT);
        set(&mut flags, device.reconnect, uuid_flag::RECONNECT);
        let tracked = backing.tracked.contains(peer) && self.peer(peer).is_replicad();
        set(&mut flags, tracked, uuid_flag::TRACKED_BITS);
        let primaries: NodeSet = self.peers.values().filter(|p| p.role == Role::Primary).map(|p| p.id).collect();
        let stable = self.is_primary() || primaries.is_empty();
        set(&mut flags, stable, uuid_flag::STABLE);
        let node_mask = match (mask, stable) {
            (Some(mask), _) => mask.to_wire(),
            (None, true) => 0,
            (None, false) => primaries.to_wire(),
        };
        let source = self.sync_source_of(number);
        let (current, sync_target) = match source {
            Some(source) if source != peer => (self.peer(source).volumes[&number].current_uuid, true),
            _ => (backing.superblock.current_uuid, false),
        };
        set(&mut flags, sync_target, uuid_flag::SYNC_TARGET);
        let mut bitmap_mask = 0;
        let mut bitmap = alloc::vec::Vec::new();
        for node in NodeId::all() {
            let record = &backing.superblock.peers[node.index()];
            if node != self.me && record.slot.is_some() {
                bitmap_mask |= 1 << node.get();
                let unknown = node == peer
                    && device.is_target()
                    && record.bitmap_uuid.is_zero()
                    && !device.current_uuid.same(backing.superblock.current_uuid);
                bitmap.push(if unknown { Uuid::UNKNOWN } else { record.bitmap_uuid });
            }
        }
        Uuids {
            current,
            dirty_bits: backing.bits_towards(peer),
            flags,
            node_mask,
            bitmap_mask,
            bitmap,
            history: backing.superblock.history.to_vec(),
        }
    }

    pub(crate) fn send_uuids(&mut self, peer: NodeId, number: VolumeNumber, extra: u64, mask: Option<NodeSet>) {
        let volume = self.volume(number);
        let message = if volume.backing.is_some() && volume.disk != DiskState::Detaching {
            Message::Uuids(self.our_uuids(peer, number, extra, mask))
        } else {
            Message::CurrentUuid { uuid: self.volume(number).exposed_uuid, weak_nodes: 0 }
        };
        self.send_data(peer, Some(number), message, None);
    }

    /// The peer announced its generations over a standing connection.
    pub(crate) fn uuids_changed(&mut self, peer: NodeId, number: VolumeNumber) {
        let theirs = self.peer(peer).volumes[&number].uuids.clone().expect("just stored");
        if theirs.current.same(self.volume(number).exposed_uuid) {
            self.generation_confirmed(peer, number);
        }
        if theirs.flags & uuid_flag::NEW_DATAGEN != 0 {
            return self.follow_generation(peer, number, theirs.current, NodeSet::from_wire(theirs.node_mask));
        }
        self.drop_spent_generation(peer, number);
    }

    /// Rule GE-4: equal generations, no resync between the two and no bit left: the slot's generation has nothing to
    /// count any more. A source learns from its target's announcement that the resync is over; fellow targets, from the
    /// announcement or from the last bit that goes. A bit that is still set has no proof against it.
    pub(crate) fn drop_spent_generation(&mut self, peer: NodeId, number: VolumeNumber) {
        let Some(device) = self.peers.get(&peer).and_then(|p| p.volumes.get(&number)) else { return };
        let Some(theirs) = &device.uuids else { return };
        let fetching = device.is_target() || device.exchange.is_some();
        let settled = !fetching && theirs.flags & (uuid_flag::SYNC_TARGET | uuid_flag::INCONSISTENT) == 0;
        let current = theirs.current;
        let volume = self.volume_mut(number);
        let good = volume.disk >= DiskState::Outdated;
        let Some(backing) = volume.backing.as_mut().filter(|_| settled && good) else { return };
        let equal = backing.superblock.current_uuid.same(current);
        if equal && !backing.bitmap_uuid(peer).is_zero() && backing.bits_towards(peer) == 0 {
            backing.clear_all_towards(peer);
            volume.pump = true;
        }
    }

    /// The target finished and we missed it, no bit is left: the slot's generation is history. Without this the next
    /// handshake finds the same again.
    pub(crate) fn end_missed_resync(&mut self, peer: NodeId, number: VolumeNumber) {
        if let Some(backing) = &mut self.volume_mut(number).backing
            && backing.bits_towards(peer) == 0
        {
            backing.clear_all_towards(peer);
        }
    }

    /// A Primary began a new generation (rule GE-5): we take it over before its first write arrives, and everybody who
    /// does not follow counts from the old one.
    pub(crate) fn follow_generation(&mut self, peer: NodeId, number: VolumeNumber, new: Uuid, weak: NodeSet) {
        self.device_mut(peer, number).current_uuid = new;
        let (me, role) = (self.me, self.role);
        let receiving = self.sync_source_of(number).is_some();
        let becomes_source = self.peer(peer).volumes[&number].replication == ReplicationState::WFBitMapS;
        let volume = self.volume_mut(number);
        let disk = volume.disk;
        let Some(backing) = &mut volume.backing else {
            volume.exposed_uuid = new;
            return;
        };
        // A target keeps its own until the resync ends; it takes the source's then. And a disk that was just found
        // to be newer than the Primary's, which has not agreed yet, is no copy of it.
        if receiving || becomes_source || disk != DiskState::UpToDate || backing.superblock.current_uuid.same(new) {
            return;
        }
        if weak.contains(me) {
            return self.fell_behind(peer, number);
        }
        let old = backing.superblock.current_uuid;
        for node in NodeId::all().filter(|n| *n != me) {
            let record = &mut backing.superblock.peers[node.index()];
            if record.slot.is_none() {
                continue;
            }
            if weak.contains(node) {
                if record.bitmap_uuid.is_zero() {
                    record.bitmap_uuid = old;
                }
            } else if !record.bitmap_uuid.is_zero() && node != peer {
                let passed = core::mem::replace(&mut record.bitmap_uuid, new);
                backing.superblock.push_history(passed);
            }
        }
        backing.superblock.current_uuid = new.with_primary_bit(role == Role::Primary);
        backing.superblock.push_history(old);
        backing.touch();
        self.event(Event::NewGeneration { volume: number, current: new, reason: "the Primary's" });
        // The Primary may complete writes on the strength of it (rule GE-2).
        self.when_durable(number, Deferred::ConfirmGeneration { peer });
    }

    pub(crate) fn confirm_generation(&mut self, peer: NodeId, number: VolumeNumber) {
        if self.peer(peer).is_connected() {
            self.send_uuids(peer, number, 0, None);
        }
    }

    /// The Primary began its generation without counting on this node, which was not UpToDate as far as it knew: what it
    /// wrote since is not here.
    fn fell_behind(&mut self, peer: NodeId, number: VolumeNumber) {
        self.set_disk(number, DiskState::Outdated, "the Primary went on without this node");
        let disk = self.peer(peer).volumes[&number].disk;
        self.consider_resync(peer, number, ReplicationState::Established, disk);
    }

    /// The peer that this node fetches blocks from now, or will as soon as a pause ends.
    pub(crate) fn sync_source_of(&self, number: VolumeNumber) -> Option<NodeId> {
        self.peers.values().find(|p| p.volumes.get(&number).is_some_and(|d| d.is_target())).map(|p| p.id)
    }

    // ------------------------------------------------------------------ decision

    /// Who is source, from what both sides say now. Both have a disk.
    pub(crate) fn decide_with_disks(&self, peer: NodeId, number: VolumeNumber, connecting: bool) -> Decision {
        if self.speaks_84(peer) {
            return self.decide_84(peer, number);
        }
        let entry = self.peer(peer);
        let device = &entry.volumes[&number];
        let link = entry.link.as_ref().expect("a decision needs a link");
        let mine = self.our_uuids(peer, number, 0, None);
        let theirs = device.uuids.as_ref().expect("a peer with a disk says its identifiers");
        let word = device.word.expect("a decision follows a state");
        let peer_disk = word.disk().unwrap_or(DiskState::Diskless);
        let changed = connecting && device.uuids_sent.as_ref().is_some_and(|sent| !same_claims(sent, &mine));
        // A disk that is being attached is not what a Primary works on.
        let role_of = |disk: DiskState, role: Role| if disk == DiskState::Negotiating { Role::Secondary } else { role };
        let my_disk = self.volume(number).disk;
        let me_side = side(&mine, peer, my_disk, role_of(my_disk, self.role));
        let peer_role = role_of(peer_disk, word.role().unwrap_or(Role::Unknown));
        let peer_side = side(theirs, self.me, peer_disk, peer_role);
        let link = handshake::Link {
            protocol: link.protocol,
            wire_protocol: link.protocol_said.unwrap_or(entry.config.protocol),
            arbiter: link.arbiter,
            me: self.me,
            peer,
            connecting,
            changed_since_sent: changed,
        };
        let mut decision = handshake::decide(&me_side, &peer_side, link);
        // DRBD puts a split brain off while one side is not stable and connects meanwhile. Two UpToDate nodes with
        // different data are not connected here: correct or stopped.
        if decision == (Decision { strategy: Strategy::NoSync, rule: Rule::BitmapBoth }) {
            decision.strategy = Strategy::SplitBrain { auto: true };
        }
        reconcile_bits(decision, &me_side, &peer_side, &link, entry.is_replicad())
    }
}

fn side<'a>(uuids: &'a Uuids, other: NodeId, disk: DiskState, role: Role) -> Side<'a> {
    let mut bitmap_for = [None; types::id::NODES_MAX];
    for node in NodeId::all() {
        bitmap_for[node.index()] = uuids.bitmap_of(node);
    }
    Side {
        current: uuids.current,
        bitmap_for_other: uuids.bitmap_of(other).unwrap_or(Uuid::ZERO),
        bitmap_for,
        history: &uuids.history,
        dirty_bits: uuids.dirty_bits,
        flags: uuids.flags,
        disk,
        role,
    }
}

/// Two announcements that lead to the same decision.
pub(crate) fn same_claims(a: &Uuids, b: &Uuids) -> bool {
    let flags = |u: &Uuids| u.flags & !uuid_flag::INCONSISTENT;
    a.current.same(b.current) && a.bitmap == b.bitmap && flags(a) == flags(b)
}
