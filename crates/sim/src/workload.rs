//! The application: reads, writes, flushes, discards on whoever is Primary, each write with a stamp of its own; and the
//! truth that follows (`truth`): who holds which line of history, what a fail-over may show.

use std::collections::BTreeSet;
use std::rc::Rc;

use engine::{Input, Protocol, Status};
use types::{BlockOp, ByteRange, DiskState, IoError, NodeId, ReplicationState, RequestId, VolumeNumber};

use crate::action::Action;
use crate::checker::is_settled;
use crate::delivery::stamp_of;
use crate::disk::Stamp;
use crate::node::Pending;
use crate::truth::{ReadExpectation, Truth};
use crate::world::{Event, World};

const EXTENT: u64 = 4 << 20;

impl World {
    pub(crate) fn work(&mut self) {
        if self.healing {
            return;
        }
        let rests = self.options.rest_per_mille > 0 && self.whim.chance(self.options.rest_per_mille);
        let delay = self.whim.around(if rests { self.options.rest_time } else { self.options.work_every });
        self.schedule(delay, Event::Work);
        for id in self.node_ids() {
            let node = self.node(id);
            if node.takes_requests() && node.requests.len() < self.options.requests_max {
                self.submit_one(id);
            }
        }
    }

    fn submit_one(&mut self, id: NodeId) {
        let volumes: Vec<(VolumeNumber, u64)> = self.node(id).devices.iter().map(|(v, size)| (*v, *size)).collect();
        if volumes.is_empty() {
            return;
        }
        let (volume, size) = self.whim.pick(&volumes);
        let op = self.draw_op();
        let range = if op == BlockOp::Flush { ByteRange::default() } else { self.draw_range(size, op) };
        self.act(Action::Submit { node: id, volume, op, range });
    }

    /// In a scenario the device may not be there, or be smaller.
    pub(crate) fn submit_if_possible(&mut self, id: NodeId, volume: VolumeNumber, op: BlockOp, range: ByteRange) {
        let node = self.node(id);
        let fits = node.devices.get(&volume).is_some_and(|size| range.is_within(*size));
        if fits && node.takes_requests() {
            self.submit(id, volume, op, range);
        }
    }

    fn draw_op(&mut self) -> BlockOp {
        let o = &self.options;
        let (read, flush, fua, discard) = (o.read_per_mille, o.flush_per_mille, o.fua_per_mille, o.discard_per_mille);
        if self.whim.chance(flush) {
            return BlockOp::Flush;
        }
        if self.whim.chance(discard) {
            let zeroes = self.whim.chance(500);
            let may_unmap = self.whim.chance(500);
            return if zeroes { BlockOp::WriteZeroes { may_unmap, fua: false } } else { BlockOp::Discard };
        }
        if self.whim.chance(read) {
            return BlockOp::Read;
        }
        BlockOp::Write { fua: self.whim.chance(fua) }
    }

    fn draw_range(&mut self, size: u64, op: BlockOp) -> ByteRange {
        let extents = size.div_ceil(EXTENT);
        let extent = self.whim.between(0, extents.min(self.options.hot_extents) - 1)
            * (extents / extents.min(self.options.hot_extents));
        let unit = if self.whim.chance(300) { 512 } else { 4096 };
        let unit = if op == BlockOp::Discard { 4096 } else { unit };
        // A small window makes overlaps; its end crosses into the next extent now and then.
        let window = if self.whim.chance(100) { EXTENT } else { 64 << 10 };
        let base = if self.whim.chance(100) { extent * EXTENT + EXTENT - (32 << 10) } else { extent * EXTENT };
        let len = (self.whim.between(1, self.options.io_bytes_max / unit)) * unit;
        let len = if self.whim.chance(600) { len.min(8192).max(unit) } else { len };
        let start = (base + self.whim.between(0, window / unit) * unit).min(size - len) / unit * unit;
        ByteRange::new(start, len).expect("inside the volume")
    }

    pub fn submit(&mut self, id: NodeId, volume: VolumeNumber, op: BlockOp, range: ByteRange) {
        let stamp = stamp_of(op, self.moment + 1);
        self.issue(id, volume, op, range, stamp);
    }

    /// The device of a daemon that died has another one: its requests come again, as the kernel does it.
    pub(crate) fn reissue(&mut self, id: NodeId, life: u64) {
        if self.node(id).life != life || !self.node(id).is_primary {
            return;
        }
        for pending in std::mem::take(&mut self.node_mut(id).left_behind) {
            let (volume, op, range) = (pending.volume, pending.op, pending.range);
            let fits = self.node(id).devices.get(&volume).is_some_and(|size| range.is_within(*size));
            if !fits {
                self.node_mut(id).left_behind.push(pending);
                continue;
            }
            self.stats.reissued += 1;
            self.truth_of(id, volume).forget_submission(range, pending.submitted);
            self.issue(id, volume, op, range, pending.stamp);
        }
    }

    fn issue(&mut self, id: NodeId, volume: VolumeNumber, op: BlockOp, range: ByteRange, stamp: Stamp) {
        self.moment += 1;
        self.stats.requests += 1;
        let moment = self.moment;
        let request = RequestId(moment);
        let payload = match op {
            BlockOp::Read => Some(self.node_mut(id).lend(None, range.sectors(), 1)),
            BlockOp::Write { .. } => {
                let runs = Rc::new(vec![(range.sectors() as u32, stamp)]);
                Some(self.node_mut(id).lend(Some(runs), range.sectors(), 0))
            }
            _ => None,
        };
        if op.is_write() {
            self.write_submitted(id, volume, range, stamp);
            for pending in self.node_mut(id).requests.values_mut() {
                let touched = pending.volume == volume && pending.range.overlaps(range);
                if let (true, Some(expect)) = (touched, &mut pending.expect) {
                    expect.overlapped(range, stamp);
                }
            }
        }
        let expect = (op == BlockOp::Read).then(|| ReadExpectation::begin(self.truth_of(id, volume), range));
        let since = self.now;
        let pending = Pending { volume, op, range, payload, submitted: moment, stamp, expect, since };
        self.node_mut(id).requests.insert(request, pending);
        self.input(id, Input::Submit { request, volume, op, range, payload });
    }

    /// It may be on each disk that this Primary writes to from now on, also where another line counts on that disk.
    fn write_submitted(&mut self, id: NodeId, volume: VolumeNumber, range: ByteRange, stamp: Stamp) {
        let moment = self.moment;
        self.truth_of(id, volume).submit(range, stamp, moment);
        if self.truths[&volume].len() == 1 {
            return;
        }
        let Some(status) = self.status(id) else { return };
        let (fed, _) = self.holders(id, volume, &status, true);
        for truth in self.truths.entry(volume).or_default().iter_mut().filter(|t| t.primary != Some(id)) {
            if fed.iter().any(|node| truth.complete_on.contains(node) || truth.durable_on.contains(node)) {
                truth.submit(range, stamp, moment);
            }
        }
    }

    pub(crate) fn completed(
        &mut self,
        id: NodeId,
        request: RequestId,
        result: Result<(), IoError>,
    ) -> Result<(), String> {
        let pending = self
            .node_mut(id)
            .requests
            .remove(&request)
            .ok_or_else(|| format!("{request:?} was completed twice or never submitted"))?;
        self.moment += 1;
        let outcome = match (pending.op, result) {
            (_, Err(_)) => Ok(()),
            (BlockOp::Read, Ok(())) => self.read_completed(id, &pending),
            (BlockOp::Flush, Ok(())) => {
                self.flush_completed(id, &pending);
                Ok(())
            }
            (_, Ok(())) => self.write_completed(id, &pending),
        };
        if let (BlockOp::Read, Some(payload)) = (pending.op, pending.payload) {
            self.node_mut(id).unhold(payload);
        }
        outcome.map_err(|e| format!("{request:?} {:?} {:?}: {e}", pending.op, pending.range))
    }

    fn flush_completed(&mut self, id: NodeId, pending: &Pending) {
        let status = self.status(id).expect("it just completed a request");
        // A disk that failed in the flush holds nothing for certain.
        self.flushed_to_peers(id, pending.submitted);
        let (believed, _) = self.holders(id, pending.volume, &status, false);
        let truth = self.truth_of(id, pending.volume);
        truth.flush(pending.submitted);
        truth.durable_on.retain(|node| believed.contains(node));
        self.tempt(id);
    }

    fn read_completed(&mut self, id: NodeId, pending: &Pending) -> Result<(), String> {
        let payload = pending.payload.expect("reads have a buffer");
        let data = self.node(id).payloads.get(&payload).and_then(|b| b.data.clone());
        let data = data.ok_or("completed and the buffer was not filled")?;
        pending.expect.as_ref().expect("reads expect something").check(&data)
    }

    fn write_completed(&mut self, id: NodeId, pending: &Pending) -> Result<(), String> {
        let fua = matches!(pending.op, BlockOp::Write { fua: true } | BlockOp::WriteZeroes { fua: true, .. });
        // FUA is durable on the Primary and, with B and C, where the peer wrote it; A promises nothing about peers.
        let moment = self.moment;
        let status = self.status(id).expect("it just completed a request");
        let (believed, certain) = self.holders(id, pending.volume, &status, false);
        // Who takes part in this line of history is no longer what another line left there, whatever it is promised.
        let (fed, _) = self.holders(id, pending.volume, &status, true);
        for truth in self.truths.entry(pending.volume).or_default().iter_mut().filter(|t| t.primary != Some(id)) {
            truth.complete_on.retain(|n| !fed.contains(n));
            truth.durable_on.retain(|n| !fed.contains(n));
        }
        let truth = self.truth_of(id, pending.volume);
        truth.complete(pending.range, pending.submitted, moment, fua);
        truth.complete_on = certain;
        truth.durable_on = truth.durable_on.intersection(&believed).chain(truth.complete_on.iter()).copied().collect();
        self.tempt_now_and_then(id);
        self.check_acknowledged(id, pending, &status)
    }

    /// Nodes that must hold a write that completes now: by what the Primary's status says, and of these the ones that
    /// are alive (the Primary may not have heard of a crash yet). Not those that it writes to by protocol A, which
    /// promises nothing about a peer, unless `under_a_too`.
    pub(crate) fn holders(
        &self,
        id: NodeId,
        volume: VolumeNumber,
        status: &Status,
        under_a_too: bool,
    ) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        let mut believed = BTreeSet::new();
        let mut certain = BTreeSet::new();
        if status.volumes.get(&volume).is_some_and(|v| v.disk == DiskState::UpToDate) {
            believed.insert(id);
            certain.insert(id);
        }
        let promised = |peer: &NodeId| under_a_too || self.weakest(id, *peer) != Protocol::A;
        for (peer, p) in status.peers.iter().filter(|(peer, _)| promised(peer)) {
            let Some(device) = p.volumes.get(&volume) else { continue };
            let fed = is_settled(device.replication) || device.replication == ReplicationState::SyncTarget;
            if device.disk == DiskState::UpToDate && fed {
                believed.insert(*peer);
                if self.is_link_whole(id, *peer) {
                    certain.insert(*peer);
                }
            }
        }
        (believed, certain)
    }

    pub(crate) fn is_link_whole(&self, a: NodeId, b: NodeId) -> bool {
        let both = self.node(a).is_running() && self.node(b).is_running();
        both && self.net.link_of(a, b).is_some_and(|(_, link)| link.is_up())
    }

    // ------------------------------------------------------------------ lines of history

    pub(crate) fn truth_of(&mut self, primary: NodeId, volume: VolumeNumber) -> &mut Truth {
        let truths = self.truths.entry(volume).or_default();
        match truths.iter().position(|t| t.primary == Some(primary)) {
            Some(index) => &mut truths[index],
            None => {
                // A Primary whose promotion found nothing to start from.
                let disk = self.nodes[&primary].disks.get(&volume);
                truths.push(disk.map_or_else(|| Truth::unknown(primary), |disk| Truth::adopt(primary, disk)));
                truths.last_mut().expect("just pushed")
            }
        }
    }

    pub(crate) fn role_changed(&mut self, id: NodeId, primary: bool) {
        self.node_mut(id).is_primary = primary;
        if !primary {
            self.demoted(id);
            for truth in self.truths.values_mut().flatten().filter(|t| t.primary == Some(id)) {
                truth.primary = None;
            }
            return;
        }
        self.stats.promotions += 1;
        self.check_one_primary(id);
        let force = self.node(id).promote_force;
        self.forced |= force;
        let status = self.status(id).expect("it was just promoted");
        for volume in self.volume_numbers() {
            let basis = self.basis(id, volume, &status);
            if basis.is_none() && !force {
                self.complain(format!("{id:?} was promoted without force and sees no UpToDate disk of {volume:?}"));
            }
            let Some(basis) = basis.or_else(|| self.basis_to_come(id, volume, &status)) else {
                continue;
            };
            let result = self.begin_serving(id, basis, volume, force);
            self.expect(result);
        }
    }

    /// An orderly step down: every write that completed is on every connected UpToDate peer, under any protocol.
    fn demoted(&mut self, id: NodeId) {
        let Some(status) = self.status(id) else { return };
        for volume in self.volume_numbers() {
            let (_, certain) = self.holders(id, volume, &status, true);
            for truth in self.truths.entry(volume).or_default().iter_mut().filter(|t| t.primary == Some(id)) {
                truth.complete_on.extend(certain.iter().copied());
                truth.durable_on.extend(certain.iter().copied());
            }
        }
    }

    /// Whose data a new Primary serves.
    fn basis(&self, id: NodeId, volume: VolumeNumber, status: &Status) -> Option<NodeId> {
        if status.volumes.get(&volume)?.disk == DiskState::UpToDate {
            return Some(id);
        }
        let good = |p: &engine::PeerStatus| p.volumes.get(&volume).is_some_and(|d| d.disk == DiskState::UpToDate);
        status.peers.iter().find(|(_, p)| good(p)).map(|(peer, _)| *peer)
    }

    /// Whose data a Primary will serve that was promoted by force with nothing good in view: what it holds itself, or
    /// without a disk what the peer has that it connects to next.
    fn basis_to_come(&self, id: NodeId, volume: VolumeNumber, status: &Status) -> Option<NodeId> {
        if status.volumes[&volume].disk > DiskState::Diskless {
            return Some(id);
        }
        let good = |peer: &NodeId| self.status(*peer).is_some_and(|s| s.volumes[&volume].disk == DiskState::UpToDate);
        self.diskful().into_iter().filter(|peer| *peer != id).find(good)
    }

    fn begin_serving(&mut self, id: NodeId, basis: NodeId, volume: VolumeNumber, force: bool) -> Result<(), String> {
        let nodes = &self.nodes;
        let disk = &nodes[&basis].disks[&volume];
        let truths = self.truths.entry(volume).or_default();
        let alive = |n: Option<NodeId>| n.is_some_and(|n| nodes[&n].is_primary && n != id);
        if let Some(index) = truths.iter().position(|t| t.complete_on.contains(&basis)) {
            let check = match truths[index].first_violation(disk).filter(|_| !force) {
                Some((sector, value)) => Err(format!(
                    "{id:?} was promoted on the data of {basis:?}, which should hold every acknowledged write: {volume:?} \
                     sector {sector} holds write {value}, allowed {:?}",
                    truths[index].values(sector)
                )),
                None => Ok(()),
            };
            if alive(truths[index].primary) {
                // Two lines from here on.
                let mut branch = truths[index].clone();
                truths[index].complete_on.remove(&basis);
                truths[index].durable_on.remove(&basis);
                branch.complete_on = BTreeSet::from([basis]);
                branch.durable_on = branch.complete_on.clone();
                // What was written so far is on both lines.
                for line in [&mut branch, &mut truths[index]] {
                    (line.completed, line.flushed) = (0, 0);
                }
                branch.primary = Some(id);
                truths.push(branch);
            } else {
                truths[index].primary = Some(id);
            }
            return check;
        }
        let mut check = Ok(());
        if let Some(index) = truths.iter().position(|t| t.durable_on.contains(&basis)) {
            let mut durable = truths[index].clone();
            durable.lose_unflushed();
            if let Some((sector, value)) = durable.first_violation(disk).filter(|_| !force) {
                check = Err(format!(
                    "{id:?} was promoted on the data of {basis:?}, which should hold every flushed write: {volume:?} \
                     sector {sector} holds write {value}, allowed {:?}",
                    durable.values(sector)
                ));
            }
            if alive(truths[index].primary) {
                // Two lines from here on; what was flushed so far is on both.
                truths[index].flushed = 0;
            } else {
                truths.remove(index);
            }
        }
        for truth in truths.iter_mut() {
            truth.durable_on.remove(&basis);
        }
        let mut adopted = Truth::adopt(id, disk);
        adopted.complete_on = BTreeSet::from([basis]);
        adopted.durable_on = adopted.complete_on.clone();
        truths.push(adopted);
        check
    }

    /// The node's memory is gone; with `power`, what its disks had not flushed too.
    pub(crate) fn truths_after_stop(&mut self, id: NodeId, power: bool) {
        let received_only = self.nodes.keys().any(|primary| self.owes_under(*primary, id, Protocol::B));
        for truth in self.truths.values_mut().flatten() {
            let was_primary = truth.primary == Some(id);
            if was_primary {
                truth.primary = None;
            }
            if power || (received_only && !was_primary) {
                truth.complete_on.remove(&id);
            }
        }
    }

    pub(crate) fn resync_starts(&mut self, target: NodeId, source: NodeId, volume: VolumeNumber) {
        // Under protocol A the tail of a crashed Primary may be lost; what it wrote in a generation of its own not. One
        // that never got to its disk, because that had gone, has no writes there.
        let by_a = self.owes_under(target, source, Protocol::A) || self.owes_under(source, target, Protocol::A);
        let theirs = self.nodes[&source].disks[&volume].identity();
        let mine = self.nodes[&target].disks[&volume].identity();
        let began = self.apart.get(&(target, source, volume)).into_iter().flatten();
        let tail = by_a && began.into_iter().all(|began| theirs.has_been(*began) || !mine.has_been(*began));
        // 8.4 decides a split brain by the disks' states, if one is Inconsistent.
        let by_disk = self.options.v84 && !self.nodes[&target].disks[&volume].identity().is_whole();
        let excused = self.forced || self.given_up.contains(&(target, volume)) || tail || by_disk;
        let truths = self.truths.entry(volume).or_default();
        let disk = &self.nodes[&source].disks[&volume];
        let discards = self.options.discard_per_mille > 0;
        let mut lost = None;
        for truth in truths.iter_mut() {
            let only_here = truth.durable_on.contains(&target) && !truth.durable_on.contains(&source);
            // Membership is what was promised; the source may have all of it beyond any promise.
            if only_here && truth.flushed > 0 && truth.durable_on.len() == 1 {
                let mut durable = truth.clone();
                durable.lose_unflushed();
                let behind = durable.first_behind(disk, discards);
                lost = behind.map(|(sector, value)| (sector, value, durable.values(sector))).or(lost);
            }
            truth.complete_on.remove(&target);
            truth.durable_on.remove(&target);
        }
        if self.nodes[&target].is_primary {
            self.goes_on_with(target, source, volume);
        }
        if let (Some((sector, value, allowed)), false) = (lost, excused) {
            self.complain(format!(
                "{target:?} {volume:?} becomes target of {source:?}, which lacks acknowledged and flushed writes that only \
                 {target:?} holds: they are lost silently; sector {sector} is write {value} there, allowed {allowed:?}"
            ));
        }
    }

    /// A Primary without good data of its own lives on `source` from here on, which may have been promoted itself in
    /// between and written nothing: one line again, whatever else the source is promised to hold. (Checker 11 sees to it
    /// that it is the same.)
    pub(crate) fn goes_on_with(&mut self, primary: NodeId, source: NodeId, volume: VolumeNumber) {
        let disk = &self.nodes[&source].disks[&volume];
        let truths = self.truths.entry(volume).or_default();
        let Some(line) = truths.iter_mut().find(|t| t.primary == Some(primary)) else { return };
        if line.first_violation(disk).is_none() {
            line.complete_on.insert(source);
        }
        for truth in truths.iter_mut().filter(|t| t.primary != Some(primary)) {
            truth.complete_on.remove(&source);
            truth.durable_on.remove(&source);
        }
    }

    /// `whole`: the target has everything that the source has completed.
    pub(crate) fn resync_ends(&mut self, target: NodeId, source: NodeId, volume: VolumeNumber, whole: bool) {
        self.given_up.remove(&(target, volume));
        self.untracked.remove(&(target, volume));
        self.untracked.remove(&(source, volume));
        if !whole {
            return;
        }
        for truth in self.truths.entry(volume).or_default() {
            if truth.complete_on.contains(&source) {
                truth.complete_on.insert(target);
            }
            if truth.durable_on.contains(&source) {
                truth.durable_on.insert(target);
            }
        }
    }
}
