//! Carries out what an engine wants: disk operations, frames, links, answers.

use std::rc::Rc;

use engine::{DigestId, DiskOp, Effect, Event as EngineEvent, Input, LinkError, Protocol};
use types::{BlockOp, DiskState, IoError, IoId, LinkId, NodeId, PayloadId, ReplicationState, Role, VolumeNumber};
use wire::digest::{Digest, DigestAlgorithm};
use wire::{Context, Message, Socket};

use crate::action::Order;
use crate::disk::{View, sectors};
use crate::network::{EndState, Frame};
use crate::swarm::{SECOND, Stragglers};
use crate::world::{Event, World};

impl World {
    pub(crate) fn carry_out(&mut self, id: NodeId, effect: Effect) {
        if self.is_tracing() && !matches!(effect, Effect::Disk { .. } | Effect::Send { .. }) {
            self.say(|| format!("{id:?} -> {effect:?}"));
        }
        let result = match effect {
            Effect::Reply { id: command, result } => self.replied(id, command, result),
            Effect::Complete { request, result } => self.completed(id, request, result),
            Effect::Disk { volume, io, op } => self.disk_starts(id, volume, io, op),
            Effect::Digest { id: digest, payload, .. } => self.digest_starts(id, digest, payload),
            Effect::Send { peer, link, socket, volume, message, payload } => {
                self.send(id, (peer, link, socket), volume, &message, payload)
            }
            Effect::LinkContext { link, protocol, features, .. } => {
                if let Some(link) = self.net.links.get_mut(&link) {
                    link.end_mut(id).context = Context { features, protocol, integrity_digest_len: 0 };
                }
                Ok(())
            }
            Effect::Connect { peer, delay } => {
                let at = self.now + delay.as_nanos() as u64;
                self.net.wants.insert((id, peer), at);
                self.schedule_connect(id, peer);
                Ok(())
            }
            Effect::StopConnecting { peer } => {
                self.net.wants.remove(&(id, peer));
                Ok(())
            }
            Effect::CloseLink { link, .. } => {
                self.close_link(id, link);
                Ok(())
            }
            Effect::Device { volume, device } => {
                let node = self.node_mut(id);
                match device {
                    Some(shape) => node.devices.insert(volume, shape.size_bytes),
                    None => node.devices.remove(&volume),
                };
                if !node.left_behind.is_empty() {
                    let life = node.life;
                    self.schedule(1, Event::Reissue { node: id, life });
                }
                Ok(())
            }
            Effect::CloseDisk { volume } => self.disk_closed(id, volume),
            Effect::Copy { from, to } => self.node_mut(id).copy(from, to),
            // The loop takes these out before.
            Effect::Release { .. } | Effect::Event(_) => Ok(()),
        };
        self.expect(result.map_err(|e| format!("{id:?}: {e}")));
    }

    // ------------------------------------------------------------------ disk

    fn disk_starts(&mut self, id: NodeId, volume: VolumeNumber, io: IoId, op: DiskOp) -> Result<(), String> {
        if self.is_tracing() {
            self.say(|| format!("{id:?} disk {volume:?} {io:?} {}", brief_op(&op)));
        }
        let data = match &op {
            DiskOp::Write { payload, .. } => Some(self.node_mut(id).content(*payload, "disk write")?),
            DiskOp::ReadInto { payload, range } => {
                let node = self.node_mut(id);
                let size = node.buffer(*payload, "disk read")?.sectors;
                if size != range.sectors() {
                    return Err(format!("{op:?} into a buffer of {size} sectors"));
                }
                node.hold(*payload, "disk read")?;
                None
            }
            _ => None,
        };
        let changes_data = matches!(op, DiskOp::Write { .. } | DiskOp::WriteZeroes { .. } | DiskOp::Discard { .. });
        if changes_data {
            self.check_generation_durable(id, volume)?;
        }
        let metadata = matches!(op, DiskOp::MetaWrite { .. });
        let node = self.node_mut(id);
        let life = node.life;
        let disk = node.disks.get_mut(&volume).ok_or_else(|| format!("{op:?} on {volume:?}, which has no disk"))?;
        disk.submit(io, op, data)?;
        if disk.in_flight() > 20_000 {
            return Err(format!("{} operations on one disk", disk.in_flight()));
        }
        let mean = if metadata { self.options.disk_latency / 4 } else { self.options.disk_latency };
        let hangs = self.node(id).hangs.get(&volume).map_or(0, |until| until.saturating_sub(self.now));
        let delay = hangs + self.straggling(metadata) + self.nature.around(mean.max(8));
        self.schedule(delay, Event::DiskDone { node: id, life, volume, io });
        Ok(())
    }

    /// How much longer than usual an operation takes.
    fn straggling(&mut self, metadata: bool) -> u64 {
        let share = self.options.straggle_per_mille;
        let may = match self.options.stragglers {
            Stragglers::All => true,
            Stragglers::Metadata => metadata,
            Stragglers::Data => !metadata,
        };
        let straggles = share > 0 && may && !self.healing && self.nature.chance(share);
        if straggles { self.nature.around(self.options.straggle_time) } else { 0 }
    }

    pub(crate) fn disk_done(&mut self, id: NodeId, life: u64, volume: VolumeNumber, io: IoId) {
        if self.node(id).life != life {
            return;
        }
        let nature = &mut self.nature;
        let node = self.nodes.get_mut(&id).expect("nodes are never removed");
        let Some(op) = node.disks.get(&volume).and_then(|d| d.in_flight_op(io)).cloned() else { return };
        let ok = !node.op_fails(volume, &op);
        let disk = node.disks.get_mut(&volume).expect("looked at it above");
        let ended = if ok { disk.complete(io) } else { Some(disk.fail(io, nature)) };
        let Some((op, done)) = ended else { return };
        let result = if ok { Ok(()) } else { Err(IoError::Io) };
        let payload = match (op, done.data) {
            (DiskOp::Read { range }, Some(data)) => Some(node.lend(Some(Rc::new(data)), range.sectors(), 0)),
            (DiskOp::ReadInto { payload, .. }, data) => {
                if let Some(data) = data {
                    node.fill(payload, data);
                }
                node.unhold(payload);
                Some(payload)
            }
            _ => None,
        };
        // A failed read brings no data, so there is nothing to give back either.
        let payload = payload.filter(|_| ok);
        if done.metadata_changed {
            self.metadata_changed(id, volume);
        }
        if let Some(range) = done.changed {
            self.data_changed(id, volume, range);
        }
        self.input(id, Input::DiskDone { volume, io, result, payload });
    }

    fn disk_closed(&mut self, id: NodeId, volume: VolumeNumber) -> Result<(), String> {
        let claimed = self.unsettled.remove(&(id, volume));
        let durable = self.node(id).disks[&volume].identity_in(View::Durable);
        if claimed.is_some_and(|generation| !durable.has_been(generation)) {
            // Shown to peers, and on no disk: whatever they have is not what was shown.
            self.no_good_copy_expected = true;
        }
        let disk = &self.node(id).disks[&volume];
        match disk.in_flight() {
            0 => Ok(()),
            n => Err(format!("CloseDisk {volume:?} with {n} operations not answered")),
        }
    }

    /// Of any algorithm the same: one by which nothing differs that is equal, and nothing is equal that differs.
    fn digest_starts(&mut self, id: NodeId, digest: DigestId, payload: PayloadId) -> Result<(), String> {
        let node = self.node_mut(id);
        let content = node.content(payload, "digest")?;
        node.hold(payload, "digest")?;
        let life = node.life;
        let value = DigestAlgorithm::Sha256.digest(&canonical(&content));
        let delay = self.nature.between(1, 20_000);
        self.schedule(delay, Event::Digested { node: id, life, id: digest, payload, value });
        Ok(())
    }

    pub(crate) fn digested(&mut self, id: NodeId, life: u64, digest: DigestId, payload: PayloadId, value: Digest) {
        if self.node(id).life != life {
            return;
        }
        self.node_mut(id).unhold(payload);
        self.input(id, Input::DigestDone { id: digest, digest: value });
    }

    // ------------------------------------------------------------------ network

    fn send(
        &mut self,
        id: NodeId,
        (peer, link_id, socket): (NodeId, LinkId, Socket),
        volume: Option<VolumeNumber>,
        message: &Message,
        payload: Option<PayloadId>,
    ) -> Result<(), String> {
        let data = payload.map(|p| self.node_mut(id).content(p, "Send")).transpose()?;
        if self.is_tracing() {
            self.say(|| format!("{id:?} => {peer:?} {volume:?} {message:?}"));
        }
        let Some(link) = self.net.links.get_mut(&link_id) else { return Ok(()) };
        let end = link.end(id);
        // What is sent to a link that is gone is lost; the engine may not know yet.
        if end.state != EndState::Up {
            return Ok(());
        }
        let frame = Frame::encode(&end.context, volume, message, data)?;
        let transmission = frame.len() * SECOND / self.options.bandwidth;
        let now = self.now;
        let stalls = self.net.stalled.get(&(id, peer)).map_or(0, |until| until.saturating_sub(now));
        let delay = stalls + self.options.latency + self.nature.between(0, self.options.jitter);
        match link.arrival(peer, socket, now, transmission, delay) {
            Some(at) => {
                self.frames_in_flight += 1;
                self.schedule(at - now, Event::Frame { link: link_id, to: peer, socket, frame });
            }
            // A reset answers, if the network works again.
            None if self.net.is_path_up(id, peer) => {
                let error = LinkError::Failed("connection reset".into());
                self.schedule(delay * 2, Event::LinkDown { link: link_id, node: id, error });
            }
            None => {}
        }
        Ok(())
    }

    pub(crate) fn frame_arrives(&mut self, link_id: LinkId, to: NodeId, socket: Socket, frame: Frame) {
        self.frames_in_flight -= 1;
        let Some(link) = self.net.links.get(&link_id) else { return };
        if link.cut.is_some_and(|cut| self.now > cut) || !self.node(to).is_running() {
            return;
        }
        let end = link.end(to);
        let peer = link.other(to);
        match end.state {
            // Nothing arrives before the side was told that the link exists.
            EndState::Down | EndState::Coming => return,
            EndState::Up => {}
        }
        let (packet, volume, message) = match frame.decode(&end.context, socket) {
            Ok(decoded) => decoded,
            Err(error) => return self.complain(format!("{to:?} cannot read what {peer:?} sent: {error}")),
        };
        self.reached.packet(packet);
        let payload = frame.data.map(|data| {
            let count = sectors(&data);
            self.node_mut(to).lend(Some(data), count, 0)
        });
        self.input(to, Input::Received { peer, link: link_id, socket, volume, message, payload });
    }

    /// This side closes; the peer learns of it behind what was sent before.
    fn close_link(&mut self, id: NodeId, link_id: LinkId) {
        let Some(link) = self.net.links.get_mut(&link_id) else { return };
        let peer = link.other(id);
        link.end_mut(id).state = EndState::Down;
        let at = link.last_arrival(peer).max(self.now + self.options.latency);
        let is_cut = link.cut.is_some();
        self.net.forget_dead();
        if !is_cut {
            let delay = at - self.now + 1;
            self.schedule(delay, Event::LinkDown { link: link_id, node: peer, error: LinkError::Closed });
        }
    }

    // ------------------------------------------------------------------ answers and events

    fn replied(
        &mut self,
        id: NodeId,
        command: engine::CommandId,
        result: Result<(), engine::Refusal>,
    ) -> Result<(), String> {
        let life = self.node(id).life;
        let node = self.node_mut(id);
        let entry = node.commands.remove(&command).ok_or_else(|| format!("{command:?} was answered twice"))?;
        let waits = |order: Order| node.commands.values().any(|c| c.order == order);
        let (demoting, forcing) = (waits(Order::Demote), waits(Order::Promote { force: true }));
        match entry.order {
            Order::Demote => node.demoting = demoting,
            Order::Promote { .. } => node.promote_force = forcing,
            _ => {}
        }
        let count = self.stats.commands.entry(entry.order.name()).or_default();
        match &result {
            Ok(()) => count.0 += 1,
            Err(_) => count.1 += 1,
        }
        self.reached.reply(entry.order, &result);
        if entry.scripted {
            self.schedule(1, Event::Script { node: id, life });
        }
        Ok(())
    }

    pub(crate) fn engine_event(&mut self, id: NodeId, event: EngineEvent) {
        self.say(|| format!("{id:?} ** {event:?}"));
        self.reached.event(&event);
        if matters(&event) {
            self.tempt(id);
        }
        match event {
            EngineEvent::Role { to, .. } => self.role_changed(id, to == Role::Primary),
            EngineEvent::NewGeneration { volume, current, reason } => {
                self.generation_began(id, volume, current);
                if reason.starts_with("new-current-uuid") {
                    self.relabelled(id, volume);
                }
            }
            EngineEvent::ResyncStarted { peer, volume, source: false, .. } => {
                self.stats.resyncs += 1;
                self.resync_starts(id, peer, volume);
            }
            EngineEvent::ResyncFinished { peer, volume, source: false, failed_blocks: 0, .. } => {
                // Under A what the source has completed may still be on its way.
                let whole = self.weakest(peer, id) != Protocol::A;
                self.resync_ends(id, peer, volume, whole);
            }
            // What completed while the source had not heard of the end is on the target's disk too.
            EngineEvent::ResyncFinished { peer, volume, source: true, failed_blocks: 0, .. }
                if self.weakest(id, peer) != Protocol::A && self.is_link_whole(id, peer) =>
            {
                self.resync_ends(peer, id, volume, true);
            }
            EngineEvent::Protocol { peer, to, .. } => self.goes_by(id, peer, to),
            EngineEvent::SplitBrain { peer, .. } => self.split_brain_found(id, peer),
            ref event @ (EngineEvent::VerifyStarted { .. } | EngineEvent::VerifyFinished { .. }) => {
                self.verify_event(id, event);
            }
            EngineEvent::Replication { peer, volume, to: ReplicationState::Established, from, .. }
                if !matches!(from, ReplicationState::VerifyS | ReplicationState::VerifyT) =>
            {
                self.may_be_together(id, peer);
                self.check_shown_data(id, peer, volume);
            }
            EngineEvent::PeerDisk { peer, volume, to: DiskState::UpToDate, .. } => {
                self.check_shown_data(id, peer, volume);
            }
            EngineEvent::Connection { .. } => self.check_one_primary(id),
            EngineEvent::Disk { volume, to: DiskState::UpToDate, .. } => self.became_up_to_date(id, volume),
            _ => {}
        }
    }
}

/// A moment at which a crash is worth more than at others.
fn matters(event: &EngineEvent) -> bool {
    use EngineEvent as E;
    matches!(
        event,
        E::Role { .. }
            | E::NewGeneration { .. }
            | E::Disk { .. }
            | E::PeerDisk { .. }
            | E::Handshake { .. }
            | E::Replication { .. }
            | E::ResyncStarted { .. }
            | E::ResyncFinished { .. }
    )
}

/// A disk operation without the bytes of metadata blocks.
fn brief_op(op: &DiskOp) -> String {
    match op {
        DiskOp::MetaWrite { blocks, preflush, fua } => {
            let offsets: Vec<String> = blocks.iter().map(|b| format!("{:#x}", b.offset)).collect();
            format!("MetaWrite [{}] preflush {preflush} fua {fua}", offsets.join(" "))
        }
        other => format!("{other:?}"),
    }
}

/// The same bytes for the same content, however it is divided into runs.
fn canonical(content: &[(u32, u64)]) -> Vec<u8> {
    let mut runs: Vec<(u32, u64)> = Vec::new();
    for (sectors, stamp) in content {
        match runs.last_mut() {
            Some((length, last)) if last == stamp => *length += sectors,
            _ => runs.push((*sectors, *stamp)),
        }
    }
    runs.iter().flat_map(|(sectors, stamp)| [u64::from(*sectors), *stamp]).flat_map(u64::to_le_bytes).collect()
}

/// Operations whose range changes data.
pub fn stamp_of(op: BlockOp, moment: u64) -> u64 {
    if matches!(op, BlockOp::Write { .. }) { moment } else { 0 }
}
