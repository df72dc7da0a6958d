//! Judges. Each says what it checks and what it does not.

use std::collections::{BTreeMap, BTreeSet};

use engine::{Event as EngineEvent, Protocol, Status};
use types::{ByteRange, ConnectionState, DiskState, NodeId, ReplicationState, Uuid, VolumeNumber};

use crate::delivery::stamp_of;
use crate::disk::{Coverage, SECTOR, View};
use crate::network::{Link, pair};
use crate::node::{Node, Pending};
use crate::world::World;

/// Buffers of one node.
const PAYLOADS_MAX: usize = 20_000;
/// Storage of one bit.
const BLOCK: u64 = 4096;
const SECTORS_PER_BLOCK: u64 = BLOCK / SECTOR;

/// Checker 2, promise 2: where two nodes' disks differ, at least one of the two would know after a restart.
///
/// Checks, whenever data or metadata changes on a disk: for each 4 KiB block in which the visible contents of two nodes
/// differ, one of them has in its metadata (both what is visible and what is durable now) a bit towards the other, a
/// hot extent, the full-sync flag, or has never been synchronised. Writes in flight are not excused: the activity log
/// has to cover them.
/// Does not check: bits in an engine's memory (they are more, never needed), mixtures of old and new metadata sectors
/// (a simulated crash produces them and is checked afterwards), cover through a third node's slot; disks that were
/// exchanged or re-labelled by hand, until their next resync.
#[derive(Default)]
pub struct Differences {
    blocks: BTreeMap<(VolumeNumber, NodeId, NodeId), BTreeSet<u64>>,
    coverage: BTreeMap<(NodeId, VolumeNumber), [Coverage; 2]>,
}

impl World {
    pub(crate) fn data_changed(&mut self, id: NodeId, volume: VolumeNumber, range: ByteRange) {
        let blocks: Vec<u64> = range.blocks_touched(BLOCK).collect();
        self.blocks_changed(id, volume, &blocks, true);
    }

    /// After a crash: the caller rechecks once everything has changed.
    pub(crate) fn sectors_changed(&mut self, id: NodeId, volume: VolumeNumber, sectors: &[u64]) {
        let blocks: BTreeSet<u64> = sectors.iter().map(|s| s / SECTORS_PER_BLOCK).collect();
        let blocks: Vec<u64> = blocks.into_iter().collect();
        self.blocks_changed(id, volume, &blocks, false);
    }

    fn blocks_changed(&mut self, id: NodeId, volume: VolumeNumber, blocks: &[u64], check: bool) {
        for peer in self.diskful().into_iter().filter(|p| *p != id) {
            let mut differing = Vec::new();
            let (a, b) = pair(id, peer);
            let (mine, theirs) = (&self.nodes[&id].disks[&volume], &self.nodes[&peer].disks[&volume]);
            let set = self.differences.blocks.entry((volume, a, b)).or_default();
            for block in blocks {
                if mine.agrees(theirs, block * SECTORS_PER_BLOCK, SECTORS_PER_BLOCK as usize) {
                    set.remove(block);
                } else {
                    set.insert(*block);
                    differing.push(*block);
                }
            }
            if check {
                self.check_covered(volume, a, b, &differing);
            }
        }
    }

    pub(crate) fn metadata_changed_silently(&mut self, id: NodeId, volume: VolumeNumber) {
        self.differences.coverage.remove(&(id, volume));
    }

    pub(crate) fn metadata_changed(&mut self, id: NodeId, volume: VolumeNumber) {
        self.metadata_changed_silently(id, volume);
        self.recheck(id, volume);
    }

    pub(crate) fn recheck(&mut self, id: NodeId, volume: VolumeNumber) {
        for peer in self.diskful().into_iter().filter(|p| *p != id) {
            let (a, b) = pair(id, peer);
            let blocks: Vec<u64> = self.differing(volume, a, b).collect();
            self.check_covered(volume, a, b, &blocks);
        }
    }

    pub fn differing(&self, volume: VolumeNumber, a: NodeId, b: NodeId) -> impl Iterator<Item = u64> + '_ {
        let (a, b) = pair(a, b);
        self.differences.blocks.get(&(volume, a, b)).into_iter().flatten().copied()
    }

    fn check_covered(&mut self, volume: VolumeNumber, a: NodeId, b: NodeId, blocks: &[u64]) {
        let untracked = |node| self.untracked.contains(&(node, volume));
        if blocks.is_empty() || untracked(a) || untracked(b) {
            return;
        }
        for id in [a, b] {
            if let Err(text) = self.know_coverage(id, volume) {
                return self.complain(format!("{id:?} {volume:?}: metadata became unreadable: {text}"));
            }
        }
        let knows = |id: NodeId, other: NodeId, block: u64| {
            self.differences.coverage[&(id, volume)].iter().all(|c| c.covers(other, block))
        };
        let uncovered = blocks.iter().copied().find(|block| !knows(a, b, *block) && !knows(b, a, *block));
        if let Some(block) = uncovered {
            let stamps = |id: NodeId| -> Vec<u64> {
                let disk = &self.nodes[&id].disks[&volume];
                (block * SECTORS_PER_BLOCK..(block + 1) * SECTORS_PER_BLOCK).map(|s| disk.stamp(s)).collect()
            };
            self.complain(format!(
                "promise 2: {volume:?} block {block} ({:#x}) differs, {a:?} holds {:?}, {b:?} holds {:?}, and after a \
                 restart neither would know (no bit, no hot extent)",
                block * BLOCK,
                stamps(a),
                stamps(b)
            ));
        }
    }

    fn know_coverage(&mut self, id: NodeId, volume: VolumeNumber) -> Result<(), String> {
        if self.differences.coverage.contains_key(&(id, volume)) {
            return Ok(());
        }
        let disk = &self.nodes[&id].disks[&volume];
        let both = [disk.coverage(View::Visible)?, disk.coverage(View::Durable)?];
        self.differences.coverage.insert((id, volume), both);
        Ok(())
    }

    /// Checker 3, promise 1 for protocol C: when a write completes, every peer that the Primary's status calls
    /// Established and UpToDate has it on its disk (in the cache at least).
    /// Does not check peers that died or whose link broke before the Primary could know.
    pub(crate) fn check_acknowledged(&self, id: NodeId, pending: &Pending, status: &Status) -> Result<(), String> {
        let volume = pending.volume;
        let truth = self.truths[&volume].iter().find(|t| t.primary == Some(id)).ok_or("a Primary without history")?;
        for (peer, p) in &status.peers {
            let Some(device) = p.volumes.get(&volume) else { continue };
            let good = device.disk == DiskState::UpToDate && is_settled(device.replication);
            if !good || !self.is_link_whole(id, *peer) || self.weakest(id, *peer) != Protocol::C {
                continue;
            }
            let Some(disk) = self.nodes[peer].disks.get(&volume) else { continue };
            let range = pending.range.sector()..pending.range.end() / SECTOR;
            if let Some(sector) = range.into_iter().find(|s| !truth.allows(*s, disk.stamp(*s))) {
                return Err(format!(
                    "promise 1: completed under protocol C as write {}, but {peer:?} (Established, UpToDate) holds {} in \
                     sector {sector}, allowed {:?}",
                    stamp_of(pending.op, pending.submitted),
                    disk.stamp(sector),
                    truth.values(sector)
                ));
            }
        }
        Ok(())
    }

    /// Checker 11, rule GE-7: a Primary that has to read from a peer finds there what it had completed.
    /// Asked when the two become Established, and when the peer's disk becomes good; a promotion by force is no excuse.
    /// Does not check a Primary that wrote by protocol A or B while it had a disk of its own: it has lost that, and the
    /// table of promises says with what else a write is lost. One that is sync target: [`World::check_kept_data`].
    pub(crate) fn check_shown_data(&mut self, id: NodeId, peer: NodeId, volume: VolumeNumber) {
        if !self.node(id).is_primary || self.untracked.contains(&(peer, volume)) {
            return;
        }
        let Some(status) = self.status(id) else { return };
        let (own, device) = (&status.volumes[&volume], &status.peers[&peer].volumes[&volume]);
        let reads_there = own.disk != DiskState::UpToDate && device.disk == DiskState::UpToDate;
        let whole = self.weakest(id, peer) == Protocol::C || own.diskless_configured;
        // It may not know yet that the peer is gone.
        let together = is_settled(device.replication) && self.is_link_whole(id, peer);
        if !reads_there || !together {
            return;
        }
        self.goes_on_with(id, peer, volume);
        if !whole {
            return;
        }
        let truth = self.truths.get(&volume).into_iter().flatten().find(|t| t.primary == Some(id));
        let lacks =
            truth.and_then(|t| t.first_violation(&self.nodes[&peer].disks[&volume]).map(|v| (v, t.values(v.0))));
        if let Some(((sector, value), allowed)) = lacks {
            self.complain(format!(
                "{id:?}, Primary, goes on with the data of {peer:?}, which lacks what it had completed: {volume:?} sector \
                 {sector} holds write {value}, allowed {allowed:?}"
            ));
        }
    }

    /// The other half of checker 11: a Primary that was sync target holds at the end of the resync what it had completed,
    /// before and meanwhile.
    /// Does not check one that had written by protocol A or B: what it goes on with may lack that, and it was told.
    fn check_kept_data(&mut self, id: NodeId, volume: VolumeNumber) {
        let by_c = self.node_ids().into_iter().filter(|p| *p != id).all(|p| self.weakest(id, p) == Protocol::C);
        // A disk that is attached and found to be behind was that for no more than one event.
        let is_good = self.status(id).is_some_and(|s| s.volumes[&volume].disk == DiskState::UpToDate);
        if !self.node(id).is_primary || !is_good || !by_c || self.untracked.contains(&(id, volume)) {
            return;
        }
        let disk = &self.nodes[&id].disks[&volume];
        let truth = self.truths.get(&volume).into_iter().flatten().find(|t| t.primary == Some(id));
        let lacks = truth.and_then(|t| t.first_violation(disk).map(|v| (v, t.values(v.0))));
        if let Some(((sector, value), allowed)) = lacks {
            self.complain(format!(
                "{id:?}, Primary, calls its disk UpToDate, which lacks what it had completed: {volume:?} sector {sector} \
                 holds write {value}, allowed {allowed:?}"
            ));
        }
    }

    /// Checker 4: two nodes that both call each other Connected are not both Primary.
    /// Does not check Primaries that do not see each other (two nodes without quorum cannot prevent these).
    pub(crate) fn check_one_primary(&mut self, id: NodeId) {
        if !self.node(id).is_primary {
            return;
        }
        let Some(mine) = self.status(id) else { return };
        for (peer, p) in &mine.peers {
            if p.connection != ConnectionState::Connected || !self.node(*peer).is_primary {
                continue;
            }
            let Some(theirs) = self.status(*peer) else { continue };
            let same_link = self.is_link_whole(id, *peer);
            if same_link && theirs.peers[&id].connection == ConnectionState::Connected {
                self.complain(format!("promise 4: {id:?} and {peer:?} are connected and both Primary"));
            }
        }
    }

    // ------------------------------------------------------------------ divergence

    /// A node began a generation of its own, or served writes alone.
    pub(crate) fn generation_began(&mut self, id: NodeId, volume: VolumeNumber, current: Uuid) {
        for peer in self.node_ids().into_iter().filter(|p| *p != id) {
            self.apart.entry((id, peer, volume)).or_default().push(current);
        }
    }

    /// A node goes by another generation from here on. Heard before the effects that follow are carried out.
    pub(crate) fn generation_claimed(&mut self, id: NodeId, event: &EngineEvent) {
        let EngineEvent::NewGeneration { volume, current, .. } = event else { return };
        if self.status(id).is_some_and(|s| s.volumes[volume].disk >= DiskState::Inconsistent) {
            self.unsettled.insert((id, *volume), *current);
        } else {
            // It counts on its peers' disks. If they fail before they have it, it is on none.
            self.no_good_copy_expected = true;
        }
    }

    /// Checker 10, rule MD-2 for generations: when data is given to a disk, the generation that the engine goes by is
    /// durable there. What was given to it before may still be on its way.
    /// Does not check flags and slots (the crash points do), nor what is sent to peers, nor the 8.4 dialect, where SYNC_UUID
    /// takes a generation's place before it is ever durable.
    pub(crate) fn check_generation_durable(&mut self, id: NodeId, volume: VolumeNumber) -> Result<(), String> {
        let Some(claimed) = self.unsettled.get(&(id, volume)).copied().filter(|_| !self.options.v84) else {
            return Ok(());
        };
        let durable = self.nodes[&id].disks[&volume].identity_in(View::Durable);
        if !durable.has_been(claimed) {
            return Err(format!("{volume:?} is written in generation {claimed}, durable is {}", durable.current));
        }
        self.unsettled.remove(&(id, volume));
        Ok(())
    }

    /// A node died: a generation that never reached its disk has no writes.
    pub(crate) fn forget_lost_generations(&mut self, id: NodeId, volume: VolumeNumber) {
        self.unsettled.remove(&(id, volume));
        let identity = self.nodes[&id].disks[&volume].identity();
        let survived = |began: &[Uuid]| began.iter().any(|generation| identity.has_been(*generation));
        self.apart.retain(|(node, _, v), began| (*node, *v) != (id, volume) || survived(began));
    }

    /// An operator gave a disk another identifier: from here on he answers for what its data is taken for.
    pub(crate) fn relabelled(&mut self, id: NodeId, volume: VolumeNumber) {
        self.forced = true;
        self.untracked.insert((id, volume));
    }

    pub(crate) fn may_be_together(&mut self, id: NodeId, peer: NodeId) {
        let (Some(mine), Some(theirs)) = (self.status(id), self.status(peer)) else { return };
        let good = |s: &Status, other: NodeId, volume: VolumeNumber| {
            s.volumes.get(&volume).is_some_and(|v| v.disk == DiskState::UpToDate)
                && is_settled(s.peers[&other].volumes[&volume].replication)
        };
        let volumes = self.volume_numbers();
        // One that attaches may call itself UpToDate before it hears of the generation that the other has begun.
        let current = |s: &Status, v: &VolumeNumber| s.volumes.get(v).map(|volume| volume.current_uuid);
        let one_line = |v: &VolumeNumber| match (current(&mine, v), current(&theirs, v)) {
            (Some(ours), Some(its)) => ours.same(its),
            _ => false,
        };
        let together = |v: &VolumeNumber| good(&mine, peer, *v) && good(&theirs, id, *v) && one_line(v);
        let (equal, behind): (Vec<_>, Vec<_>) = volumes.into_iter().partition(together);
        for volume in equal {
            self.apart.remove(&(id, peer, volume));
            self.apart.remove(&(peer, id, volume));
        }
        if behind.is_empty() {
            self.split_brain.remove(&pair(id, peer));
        }
    }

    pub(crate) fn became_up_to_date(&mut self, id: NodeId, volume: VolumeNumber) {
        self.check_kept_data(id, volume);
        for peer in self.node_ids().into_iter().filter(|p| *p != id) {
            self.may_be_together(id, peer);
        }
    }

    /// Checker 6, second half: split brain is only reported where both sides have gone their own way.
    /// Does not check that both had completed writes: a new generation on each side is enough to be told.
    pub(crate) fn split_brain_found(&mut self, id: NodeId, peer: NodeId) {
        self.stats.split_brains += 1;
        self.split_brain.insert(pair(id, peer));
        let alone = |one: NodeId, other: NodeId, volume| self.apart.contains_key(&(one, other, volume));
        let volumes = self.volume_numbers();
        let both = volumes.iter().any(|v| alone(id, peer, *v) && alone(peer, id, *v));
        let reporter = volumes.iter().any(|v| alone(id, peer, *v));
        // A disk of the past brings back what was settled since.
        let of_the_past = |node| volumes.iter().any(|v| self.untracked.contains(&(node, *v)));
        // 8.4 tells two identifiers of its history: with more generations since, a missed end looks like two lines.
        let generations = |one, other, v| self.apart.get(&(one, other, v)).map_or(0, Vec::len);
        let many = volumes.iter().any(|v| generations(id, peer, *v).max(generations(peer, id, *v)) > 1);
        let excused = self.forced || of_the_past(id) || of_the_past(peer) || (self.options.v84 && many);
        if !both && !excused {
            self.complain(format!(
                "{id:?} reports split brain with {peer:?}, but only {} began a generation of its own since they were in sync",
                if reporter { "the reporter" } else { "the peer, or nobody," }
            ));
        }
    }

    // ------------------------------------------------------------------ now and then

    /// Checkers 5 and 8, several times a second: what each node's status says fits together (invariants S1, S5, S6, R6 of
    /// docs/states.md), nothing piles up, and a pair that calls itself in sync and is quiet has equal copies (D7, S4).
    /// Does not check pairs with anything on the way: there the copies differ rightly, and checker 2 sees the bits.
    pub(crate) fn inspect(&mut self) {
        self.stats.inspections += 1;
        let statuses: BTreeMap<NodeId, Status> =
            self.node_ids().into_iter().filter_map(|id| Some((id, self.status(id)?))).collect();
        for (id, status) in &statuses {
            let result = consistent(status).and_then(|()| self.check_bounds(*id));
            self.expect(result.map_err(|e| format!("{id:?}: {e}")));
        }
        if !self.is_quiet() || !self.is_whole_mesh() {
            return;
        }
        let ids: Vec<NodeId> = statuses.keys().copied().collect();
        for (i, a) in ids.iter().enumerate() {
            for b in &ids[i + 1..] {
                if self.is_link_whole(*a, *b) {
                    self.pair_is_quiet(*a, *b);
                    let result = self.check_quiet_pair((*a, &statuses[a]), (*b, &statuses[b]));
                    self.expect(result);
                }
            }
        }
    }

    /// Queues that grow without end are leaks. The bounds: requests of the application, what a peer may have in flight
    /// (`max-buffers`), a window of resync, all with room to spare.
    fn check_bounds(&self, id: NodeId) -> Result<(), String> {
        match self.node(id).payloads.len() {
            n if n <= PAYLOADS_MAX => Ok(()),
            n => Err(format!("holds {n} buffers")),
        }
    }

    /// Nothing on the way anywhere: a third node's writes reach two others at different times. Nor in an engine: a write
    /// under A may wait for a peer's log after it completed.
    fn is_quiet(&self) -> bool {
        let idle = |node: &Node| {
            !node.is_frozen && node.payloads.is_empty() && node.disks.values().all(|d| d.in_flight() == 0)
        };
        let silent = |link: &Link| !link.carries_anything(self.now);
        self.nodes.values().all(idle) && self.net.links.values().all(silent)
    }

    /// Where a third node is cut off, two others learn with a Primary's PEER_ACK what it lacks: a moment later.
    fn is_whole_mesh(&self) -> bool {
        let ids = self.node_ids();
        ids.len() <= 2 || ids.iter().all(|a| ids.iter().all(|b| a == b || self.is_link_whole(*a, *b)))
    }

    fn check_quiet_pair(&mut self, (a, one): (NodeId, &Status), (b, other): (NodeId, &Status)) -> Result<(), String> {
        let (there, back) = (&one.peers[&b], &other.peers[&a]);
        let connected = |p: &engine::PeerStatus| p.connection == ConnectionState::Connected;
        if !connected(there) || !connected(back) {
            return Ok(());
        }
        if there.role != other.role || back.role != one.role {
            return Err(format!(
                "{a:?} is {} and {b:?} takes it for {}; {b:?} is {} and {a:?} takes it for {}",
                one.role, back.role, other.role, there.role
            ));
        }
        for volume in self.volume_numbers() {
            let (there, back) = (&there.volumes[&volume], &back.volumes[&volume]);
            let (mine, its) = (one.volumes[&volume].disk, other.volumes[&volume].disk);
            let established = |d: &engine::PeerDeviceStatus| is_settled(d.replication);
            if !established(there) || !established(back) {
                continue;
            }
            let good = |disk: DiskState| disk == DiskState::UpToDate;
            let in_sync =
                good(there.disk) && good(back.disk) && there.out_of_sync_bytes == 0 && back.out_of_sync_bytes == 0;
            if !in_sync || !good(mine) || !good(its) {
                continue;
            }
            self.stats.quiet_pairs += 1;
            if let Some(block) = self.differing(volume, a, b).next() {
                return Err(format!(
                    "promise 3: {a:?} and {b:?} call each other UpToDate and in sync, nothing is on the way, and {volume:?} \
                     differs in block {block} ({:#x})",
                    block * BLOCK
                ));
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------------ the end

    /// Checkers 6 and 7, asked again and again once trouble has ended: everybody connected, UpToDate, nothing out of
    /// sync, nothing waiting, nothing on the data sockets.
    pub(crate) fn all_is_well(&self) -> bool {
        // Under protocol A a write is complete while it still queues for a slow link: the copies differ until it is there.
        if self.net.links.values().any(|link| link.carries_data(self.now)) {
            return false;
        }
        let diskful = self.diskful();
        self.node_ids().into_iter().all(|id| {
            let node = self.node(id);
            let Some(status) = self.status(id) else { return false };
            let quiet = node.requests.is_empty() && node.commands.is_empty() && !node.stopping && !node.is_frozen;
            quiet
                && node.left_behind.is_empty()
                && node.disks.values().all(|d| d.in_flight() == 0)
                && says_all_is_well(&status, &diskful)
        })
    }

    /// Checker 9 and the rest of 6: what the nodes say is true, their copies are equal, nothing was kept back, and the
    /// data is what the application may see.
    /// The history check is skipped where an operator overrode the rules.
    pub(crate) fn final_checks(&mut self) {
        let ids = self.diskful();
        for volume in self.volume_numbers() {
            for (i, a) in ids.iter().enumerate() {
                for b in &ids[i + 1..] {
                    let result = self.check_equal(volume, *a, *b);
                    self.expect(result);
                }
            }
            let result = self.check_history(volume, ids[0]);
            self.expect(result);
        }
        for id in self.node_ids() {
            let left: Vec<_> = self.node(id).payloads.keys().copied().collect();
            // A transfer log may keep the last epoch open; buffers of writes are not needed for that.
            if !left.is_empty() {
                self.complain(format!("{id:?} is quiet and has not released {left:?}"));
            }
        }
    }

    /// A full comparison, not trusting the incremental one.
    pub fn check_equal(&self, volume: VolumeNumber, a: NodeId, b: NodeId) -> Result<(), String> {
        let (first, second) = (&self.nodes[&a].disks[&volume], &self.nodes[&b].disks[&volume]);
        let sectors: BTreeSet<u64> = first.sectors_written().chain(second.sectors_written()).collect();
        match sectors.into_iter().find(|s| first.stamp(*s) != second.stamp(*s)) {
            None => Ok(()),
            Some(s) => Err(format!(
                "both call themselves in sync, but {volume:?} sector {s} holds write {} on {a:?} and {} on {b:?}",
                first.stamp(s),
                second.stamp(s)
            )),
        }
    }

    fn check_history(&self, volume: VolumeNumber, id: NodeId) -> Result<(), String> {
        if self.forced {
            return Ok(());
        }
        let disk = &self.nodes[&id].disks[&volume];
        let truths = self.truths.get(&volume).into_iter().flatten();
        let mut held = truths.filter(|t| t.complete_on.contains(&id)).peekable();
        if held.peek().is_none() {
            return Ok(());
        }
        let mut found = None;
        for truth in held {
            match truth.first_violation(disk) {
                None => return Ok(()),
                Some((sector, value)) => found = Some((sector, value, truth.values(sector))),
            }
        }
        let (sector, value, allowed) = found.expect("at least one line was held");
        Err(format!("{volume:?} sector {sector} ends as write {value}, allowed {allowed:?}"))
    }
}

/// One node's word about itself: what the states' own rules forbid.
fn consistent(status: &Status) -> Result<(), String> {
    for (peer, p) in &status.peers {
        let connected = p.connection == ConnectionState::Connected;
        if (p.role == types::Role::Unknown) == connected {
            return Err(format!("{peer:?} is {} and its role {}", p.connection, p.role));
        }
        for (volume, device) in &p.volumes {
            if device.replication > ReplicationState::Off && !connected {
                return Err(format!("{peer:?} {volume:?} is {} while {}", device.replication, p.connection));
            }
        }
    }
    for (volume, v) in &status.volumes {
        let is = |state: ReplicationState| {
            status.peers.values().filter(|p| p.volumes.get(volume).is_some_and(|d| d.replication == state)).count()
        };
        let (targets, sources) = (is(ReplicationState::SyncTarget), is(ReplicationState::SyncSource));
        if targets > 1 || (targets > 0 && sources > 0) {
            return Err(format!("{volume:?} is sync target {targets} times and source {sources} times"));
        }
        if targets > 0 && v.disk != DiskState::Inconsistent {
            return Err(format!("{volume:?} is sync target and {}", v.disk));
        }
    }
    Ok(())
}

/// No resync runs: a verify changes nothing of what the two promise.
pub(crate) fn is_settled(state: ReplicationState) -> bool {
    matches!(state, ReplicationState::Established | ReplicationState::VerifyS | ReplicationState::VerifyT)
}

/// `diskful`: nodes that are meant to have a disk.
fn says_all_is_well(status: &Status, diskful: &[NodeId]) -> bool {
    let wanted = |has_disk: bool| if has_disk { DiskState::UpToDate } else { DiskState::Diskless };
    status.volumes.values().all(|v| v.disk == wanted(!v.diskless_configured))
        && status.peers.iter().all(|(id, p)| {
            p.connection == ConnectionState::Connected
                && p.volumes.values().all(|d| {
                    d.replication == ReplicationState::Established
                        && d.disk == wanted(diskful.contains(id))
                        && d.out_of_sync_bytes == 0
                })
        })
}

/// For tests that break a world on purpose and want one judge's word.
impl World {
    pub fn show_change(&mut self, id: NodeId, volume: VolumeNumber, range: ByteRange) {
        self.data_changed(id, volume, range);
    }
    pub fn judge_primaries(&mut self, id: NodeId) {
        self.check_one_primary(id);
    }
    pub fn judge_promotion(&mut self, id: NodeId) {
        self.role_changed(id, true);
    }
    pub fn judge_split_brain(&mut self, id: NodeId, peer: NodeId) {
        self.split_brain_found(id, peer);
    }
    pub fn judge_resync(&mut self, target: NodeId, source: NodeId, volume: VolumeNumber) {
        self.resync_starts(target, source, volume);
    }
}
