//! Cuts, stalls, crashes, power losses, frozen nodes, failing disks: what is drawn, and how each is carried out.

use engine::{Command, LinkError};
use types::{NodeId, VolumeNumber};

use crate::action::{Action, Fault};
use crate::disk::Disk;
use crate::network::{EndState, pair};
use crate::swarm::{MS, SECOND};
use crate::world::{Event, World};

/// Between two ambushes: whoever is hit must have the time to get somewhere.
const AMBUSH_PAUSE: u64 = SECOND;

impl World {
    /// Draws when this happens next; `None`: it does not happen now either.
    fn again(&mut self, every: Option<u64>, event: Event) -> Option<()> {
        let every = every.filter(|_| !self.healing)?;
        let delay = self.whim.around(every);
        self.schedule(delay, event);
        Some(())
    }

    fn two_nodes(&mut self) -> (NodeId, NodeId) {
        let ids = self.node_ids();
        let a = self.whim.pick(&ids);
        let others: Vec<NodeId> = ids.into_iter().filter(|b| *b != a).collect();
        (a, self.whim.pick(&others))
    }

    fn a_disk(&mut self) -> (NodeId, VolumeNumber) {
        let (ids, volumes) = (self.diskful(), self.volume_numbers());
        (self.whim.pick(&ids), self.whim.pick(&volumes))
    }

    // ------------------------------------------------------------------ drawn

    pub(crate) fn random_cut(&mut self) {
        if self.again(self.options.cut_every, Event::Cut).is_none() {
            return;
        }
        let (a, b) = self.two_nodes();
        let action = self.draw_cut(a, b);
        self.act(action);
    }

    fn draw_cut(&mut self, a: NodeId, b: NodeId) -> Action {
        let down = self.whim.around(self.options.down_time.max(8));
        let half_open = self.whim.chance(self.options.half_open_per_mille);
        let late = if self.whim.chance(500) { a } else { b };
        Action::Cut { a, b, down, late: half_open.then_some(late) }
    }

    pub(crate) fn random_stall(&mut self) {
        if self.again(self.options.stall_every, Event::Stall).is_none() {
            return;
        }
        let (from, to) = self.two_nodes();
        let lasts = self.whim.around(self.options.stall_time.max(8));
        let action = match self.whim.between(0, 2) {
            0 => Action::Freeze { node: from, lasts },
            _ => Action::Stall { from, to, lasts },
        };
        self.act(action);
    }

    pub(crate) fn random_fault(&mut self) {
        if self.again(self.options.fault_every, Event::Fault).is_none() {
            return;
        }
        let (node, volume) = self.a_disk();
        if self.whim.chance(250) {
            let lasts = self.whim.around(self.options.stall_time.max(8));
            return self.act(Action::HangDisk { node, volume, lasts });
        }
        let fault = self.draw_fault();
        self.act(Action::FailDisk { node, volume, fault });
    }

    fn draw_fault(&mut self) -> Fault {
        let refuses = self.options.discard_per_mille > 0 && self.whim.chance(400);
        if refuses {
            let times = self.whim.between(1, 100) as u32;
            let (first, end) = (0, u64::MAX);
            return Fault {
                metadata: false,
                reads: false,
                writes: false,
                discards: true,
                first,
                end,
                times: Some(times),
            };
        }
        let kind = self.whim.between(0, 2);
        let lasting = self.whim.chance(self.options.lasting_per_mille);
        let all = self.whim.chance(400);
        let size = self.options.volume_bytes / 512;
        // Beyond the last sector: a cache that cannot be flushed.
        let first = match self.whim.between(0, 9) {
            _ if all => 0,
            0 => size,
            _ => self.whim.between(0, size - 1),
        };
        let len = self.whim.pick(&[1, 8, 1024, 16384]);
        Fault {
            metadata: self.whim.chance(250),
            reads: kind != 0,
            writes: kind != 1,
            discards: false,
            first,
            end: if all { u64::MAX } else { first + len },
            times: (!lasting).then(|| self.whim.between(1, 3) as u32),
        }
    }

    pub(crate) fn random_crash(&mut self) {
        if self.again(self.options.crash_every, Event::Crash).is_none() {
            return;
        }
        if self.whim.chance(self.options.power_loss_per_mille) {
            return self.power_loss();
        }
        let node = self.whom_to_crash();
        if !self.node(node).is_running() {
            return;
        }
        let restart_after = self.whim.around(self.options.restart_after);
        let action = if self.whim.chance(self.options.clean_stop_per_mille) {
            Action::CleanStop { node, restart_after }
        } else if self.whim.chance(self.options.exchange_per_mille) {
            Action::ReplaceDisks { node, restart_after }
        } else if self.whim.chance(self.options.roll_back_per_mille) {
            match self.node(node).image.is_some() {
                true => Action::RollBack { node, restart_after },
                false => Action::Image { node },
            }
        } else {
            let power = self.whim.chance(700);
            self.draw_crash(node, power)
        };
        self.act(action);
    }

    fn whom_to_crash(&mut self) -> NodeId {
        let ids = self.node_ids();
        let primary = ids.iter().copied().find(|id| self.node(*id).is_primary);
        match primary.filter(|_| self.whim.chance(self.options.primary_per_mille)) {
            Some(primary) => primary,
            None => self.whim.pick(&ids),
        }
    }

    fn draw_crash(&mut self, node: NodeId, power: bool) -> Action {
        let restart_after = self.whim.around(self.options.restart_after);
        let keep_device = !power && self.whim.chance(self.options.keep_device_per_mille);
        let late = power && self.options.half_open_per_mille > 0 && self.whim.chance(500);
        Action::Crash { node, power, keep_device, late, restart_after }
    }

    fn power_loss(&mut self) {
        self.stats.power_losses += 1;
        for node in self.node_ids() {
            let action = self.draw_crash(node, true);
            self.act(action);
        }
    }

    // ------------------------------------------------------------------ ambushes

    /// Something that matters has just happened at this node: the moment for trouble.
    pub(crate) fn tempt(&mut self, node: NodeId) {
        let chance = self.options.ambush_per_mille;
        let soon = self.ambushed_at + AMBUSH_PAUSE > self.now;
        if chance == 0 || self.healing || self.is_replay || soon || !self.whim.chance(chance) {
            return;
        }
        self.ambushed_at = self.now;
        let longest = self.whim.pick(&[1, self.options.disk_latency * 2, self.options.latency * 10, 200 * MS]);
        let delay = self.whim.between(0, longest);
        self.schedule(delay, Event::Ambush { node });
    }

    /// As [`World::tempt`], where it happens all the time.
    pub(crate) fn tempt_now_and_then(&mut self, node: NodeId) {
        if self.options.ambush_per_mille > 0 && !self.is_replay && self.whim.chance(20) {
            self.tempt(node);
        }
    }

    pub(crate) fn ambush(&mut self, node: NodeId) {
        if self.healing {
            return;
        }
        let others: Vec<NodeId> = self.node_ids().into_iter().filter(|n| *n != node).collect();
        let other = self.whim.pick(&others);
        match self.whim.between(0, 7) {
            0 | 1 => self.power_loss(),
            2 => {
                let action = self.draw_crash(node, true);
                self.act(action);
            }
            3 => {
                let action = self.draw_crash(other, true);
                self.act(action);
            }
            4 => {
                let action = self.draw_crash(node, false);
                self.act(action);
            }
            5 => {
                // One loses power while the other is cut off: nobody can tell anybody.
                let cut = self.draw_cut(node, other);
                self.act(cut);
                let crash = self.draw_crash(other, true);
                self.act(crash);
            }
            _ => {
                let action = self.draw_cut(node, other);
                self.act(action);
            }
        }
    }

    // ------------------------------------------------------------------ network

    pub(crate) fn cut(&mut self, a: NodeId, b: NodeId, down: u64, late: Option<NodeId>) {
        self.stats.cuts += 1;
        self.say(|| format!("network {a:?} - {b:?} is cut"));
        if self.net.down.insert(pair(a, b)) {
            self.schedule(down, Event::PathHeals { a, b });
        }
        self.break_links(a, b, late);
    }

    /// Breaks what exists between two nodes; who is `late` learns of it only by its own means, or after a minute.
    fn break_links(&mut self, a: NodeId, b: NodeId, late: Option<NodeId>) {
        let now = self.now;
        let (a, b) = pair(a, b);
        let broken: Vec<_> = self
            .net
            .links
            .iter_mut()
            .filter(|(_, link)| link.nodes == [a, b] && link.cut.is_none())
            .map(|(id, link)| {
                link.cut = Some(now);
                *id
            })
            .collect();
        for link in broken {
            for node in [a, b] {
                let soon = self.nature.between(1, self.options.latency * 20);
                let delay = if late == Some(node) { 60 * SECOND + soon } else { soon };
                let error = LinkError::Failed("connection reset".into());
                self.schedule(delay, Event::LinkDown { link, node, error });
            }
        }
    }

    pub(crate) fn stall(&mut self, from: NodeId, to: NodeId, lasts: u64) {
        self.stats.stalls += 1;
        self.say(|| format!("network {from:?} -> {to:?} stalls"));
        let until = self.now + lasts;
        let entry = self.net.stalled.entry((from, to)).or_default();
        *entry = until.max(*entry);
    }

    pub(crate) fn freeze(&mut self, node: NodeId, lasts: u64) {
        let entry = self.node_mut(node);
        if !entry.is_running() || entry.is_frozen {
            return;
        }
        entry.is_frozen = true;
        let life = entry.life;
        self.stats.stalls += 1;
        self.say(|| format!("{node:?} is frozen"));
        self.schedule(lasts, Event::Thaw { node, life });
    }

    /// Everything that waited for the node comes at once, in order.
    pub(crate) fn thaw(&mut self, id: NodeId, life: u64) {
        let node = self.node_mut(id);
        if node.life != life || !node.is_frozen {
            return;
        }
        node.is_frozen = false;
        node.tick_at = None;
        let waiting = std::mem::take(&mut node.asleep);
        self.say(|| format!("{id:?} goes on"));
        for event in waiting {
            self.schedule(0, event);
        }
        self.arm_timer(id);
    }

    // ------------------------------------------------------------------ nodes

    /// `power`: the machine; otherwise only the daemon dies, and what it had given to the disk completes.
    pub(crate) fn crash(&mut self, id: NodeId, power: bool, keep_device: bool, late: bool, restart_after: u64) {
        if !self.node(id).is_running() {
            return;
        }
        self.stats.crashes += 1;
        self.say(|| format!("{id:?} {}", if power { "loses power" } else { "is killed" }));
        let kept = match keep_device {
            true => std::mem::take(&mut self.node_mut(id).requests).into_values().collect(),
            false => Vec::new(),
        };
        self.stop(id, power, late);
        self.node_mut(id).left_behind = kept;
        self.schedule(restart_after, Event::Restart { node: id });
    }

    pub(crate) fn stop(&mut self, id: NodeId, power: bool, late: bool) {
        self.truths_after_stop(id, power);
        let volumes: Vec<VolumeNumber> = self.node(id).disks.keys().copied().collect();
        for volume in volumes {
            let disk = self.nodes.get_mut(&id).and_then(|n| n.disks.get_mut(&volume)).expect("just listed");
            if power {
                let sectors = disk.crash(&mut self.nature);
                self.metadata_changed_silently(id, volume);
                self.sectors_changed(id, volume, &sectors);
            } else {
                let ranges = disk.finish_all();
                self.metadata_changed_silently(id, volume);
                for range in ranges {
                    self.data_changed(id, volume, range);
                }
            }
            self.recheck(id, volume);
            self.forget_lost_generations(id, volume);
        }
        self.node_mut(id).forget();
        for peer in self.node_ids().into_iter().filter(|p| *p != id) {
            self.net.wants.remove(&(id, peer));
            for link in self.net.links.values_mut().filter(|l| l.nodes.contains(&id) && l.nodes.contains(&peer)) {
                link.end_mut(id).state = EndState::Down;
            }
            self.break_links(id, peer, late.then_some(peer));
        }
        self.net.forget_dead();
    }

    pub(crate) fn clean_stop(&mut self, id: NodeId, restart_after: u64) {
        if self.node(id).stopping || !self.node(id).is_running() {
            return;
        }
        self.stats.clean_stops += 1;
        self.say(|| format!("{id:?} is asked to stop"));
        let volumes = self.volume_numbers();
        let peers: Vec<NodeId> = self.node_ids().into_iter().filter(|p| *p != id).collect();
        let node = self.node_mut(id);
        node.stopping = true;
        node.restart_after = restart_after;
        node.script.push_back(Command::Demote);
        node.script.extend(peers.into_iter().map(|peer| Command::Disconnect { peer, force: false }));
        node.script.extend(volumes.into_iter().map(|volume| Command::Detach { volume, force: false }));
        let life = node.life;
        self.schedule(1, Event::Script { node: id, life });
    }

    pub(crate) fn continue_script(&mut self, id: NodeId, life: u64) {
        if self.node(id).life != life || !self.node(id).stopping {
            return;
        }
        if let Some(command) = self.node_mut(id).script.pop_front() {
            return self.command(id, command, true);
        }
        self.say(|| format!("{id:?} has stopped"));
        let delay = self.node(id).restart_after;
        self.stop(id, false, false);
        self.schedule(delay, Event::Restart { node: id });
    }

    // ------------------------------------------------------------------ disks

    pub(crate) fn fail_disk(&mut self, node: NodeId, volume: VolumeNumber, fault: Fault) {
        self.stats.faults += 1;
        self.say(|| format!("{node:?} {volume:?} fails: {fault:?}"));
        // With pass_on a single error makes a disk Inconsistent, the last good one too.
        self.no_good_copy_expected |= self.file.pass_on || self.options.pass_on;
        self.node_mut(node).faults.push((volume, fault));
    }

    pub(crate) fn hang_disk(&mut self, node: NodeId, volume: VolumeNumber, lasts: u64) {
        self.stats.faults += 1;
        self.say(|| format!("{node:?} {volume:?} hangs"));
        let until = self.now + lasts;
        self.node_mut(node).hangs.insert(volume, until);
    }

    pub(crate) fn replace_disks(&mut self, id: NodeId, restart_after: u64) {
        if !self.node(id).is_running() || self.node(id).disks.is_empty() {
            return;
        }
        self.stats.exchanges += 1;
        self.say(|| format!("{id:?} gets empty disks"));
        self.stop(id, true, false);
        let volumes = self.volume_numbers();
        let fresh = volumes.into_iter().map(|volume| (volume, self.new_disk(id, None))).collect();
        self.exchange(id, fresh);
        self.schedule(restart_after, Event::Restart { node: id });
    }

    pub(crate) fn keep_image(&mut self, id: NodeId) {
        let disks = self.node(id).disks.iter().map(|(volume, disk)| (*volume, disk.image())).collect();
        self.node_mut(id).image = Some(disks);
        self.say(|| format!("an image of {id:?}'s disks is kept"));
    }

    /// Only to an image that nobody can take for what the disk was: where a generation began since, on this node or the
    /// other side. An image of the same generation is the same disk to everybody, by format.
    pub(crate) fn roll_back(&mut self, id: NodeId, restart_after: u64) {
        let Some(image) = self.node_mut(id).image.take().filter(|_| self.node(id).is_running()) else { return };
        if image.iter().any(|(volume, disk)| self.looks_current(id, *volume, disk)) {
            return self.say(|| format!("{id:?} is not rolled back: its image could not be told from its disk"));
        }
        self.stats.exchanges += 1;
        self.say(|| format!("{id:?} is rolled back to an older image"));
        self.stop(id, true, false);
        self.exchange(id, image);
        self.schedule(restart_after, Event::Restart { node: id });
    }

    /// The disk or a peer has the image's generation, a bitmap since then or since what the image counts from, or is in the
    /// middle of a resync.
    fn looks_current(&self, id: NodeId, volume: VolumeNumber, image: &Disk) -> bool {
        let current = image.identity().current;
        let own = self.nodes[&id].disks[&volume].identity();
        if own.current.same(current) || !own.is_whole() {
            return true;
        }
        self.diskful().into_iter().filter(|peer| *peer != id).any(|peer| {
            let theirs = self.nodes[&peer].disks[&volume].identity();
            let base = theirs.bitmap_towards(id);
            // A resync that was cut off leaves blocks of a generation that the target nowhere names, and takes their bits.
            let same_base = !base.is_zero() && base.same(image.identity().bitmap_towards(peer));
            !theirs.is_whole() || theirs.current.same(current) || base.same(current) || same_base
        })
    }

    /// Other disks than those the node had: what it held is gone, and nobody tracked that.
    pub(crate) fn exchange(&mut self, id: NodeId, disks: std::collections::BTreeMap<VolumeNumber, Disk>) {
        self.give_up(id);
        self.no_good_copy_expected = true;
        self.node_mut(id).faults.clear();
        for (volume, disk) in disks {
            let old = self.node_mut(id).disks.insert(volume, disk).expect("it had one before");
            for truth in self.truths.get_mut(&volume).into_iter().flatten() {
                truth.complete_on.remove(&id);
                truth.durable_on.remove(&id);
            }
            self.untracked.insert((id, volume));
            let new: Vec<u64> = self.node(id).disks[&volume].sectors_written().collect();
            let sectors: Vec<u64> = old.sectors_written().chain(new).collect();
            self.metadata_changed_silently(id, volume);
            self.sectors_changed(id, volume, &sectors);
            self.recheck(id, volume);
        }
    }
}
