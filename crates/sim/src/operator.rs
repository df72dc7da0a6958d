//! The person at the prompt and the world around the machines: commands, cuts, crashes, power losses, clean stops; and
//! at the end the one who puts everything right.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::pacing::PacingConfig;
use engine::{Command, Engine, LinkError, OnIoError, OnNoData, PeerConfig, ResourceConfig, Status, VolumeConfig};
use types::{ConnectionState, DiskState, NodeId, ReplicationState, Uuid, VolumeNumber};

use crate::disk::{Disk, View};
use crate::network::EndState;
use crate::node::Node;
use crate::swarm::{MS, SECOND, Start};
use crate::truth::Truth;
use crate::world::{Event, World};

/// Virtual time for everything to become good after the last trouble. Generous: a full sync over the slowest link.
const SETTLE_MAX: u64 = 1500 * SECOND;
/// Before a person stops what runs on a Primary without data.
const PATIENCE: u64 = 30 * SECOND;
const KEEPER_EVERY: u64 = 700 * MS;

impl World {
    // ------------------------------------------------------------------ set-up

    pub(crate) fn set_up(&mut self) {
        let ids: Vec<NodeId> = (0..self.options.nodes).map(|n| NodeId::new(n).expect("at most 32 nodes")).collect();
        let current = Uuid(self.rng.draw() << 4 | 0x10);
        for id in &ids {
            let peers: Vec<NodeId> = ids.iter().copied().filter(|p| p != id).collect();
            let disks = self.volume_numbers().into_iter().map(|v| (v, self.new_disk(*id, &peers, current))).collect();
            self.nodes.insert(*id, Node::new(*id, disks));
        }
        for volume in self.volume_numbers() {
            if self.options.start == Start::InSync {
                self.truths.insert(volume, vec![Truth::new(ids.iter().copied())]);
            }
        }
        for id in ids {
            self.start(id);
        }
        let o = self.options.clone();
        self.schedule(o.duration, Event::Heal);
        self.schedule(KEEPER_EVERY, Event::Keeper);
        self.schedule(o.work_every, Event::Work);
        for (every, event) in
            [(o.cut_every, Event::Cut), (o.crash_every, Event::Crash), (o.operator_every, Event::Operator)]
        {
            if let Some(every) = every {
                let delay = self.rng.around(every);
                self.schedule(delay, event);
            }
        }
    }

    fn new_disk(&self, me: NodeId, peers: &[NodeId], current: Uuid) -> Disk {
        let o = &self.options;
        let slots = peers.len() as u8 + o.spare_slots;
        let mut disk = Disk::create(o.volume_bytes, o.external_metadata, o.volatile_cache, slots);
        if o.start == Start::InSync {
            let bytes = disk.data_bytes;
            disk.make_in_sync(me, peers, current, bytes);
        }
        disk
    }

    fn config(&self, me: NodeId) -> ResourceConfig {
        let o = &self.options;
        let peers: Vec<NodeId> = self.nodes.keys().copied().filter(|p| *p != me).collect();
        let volume = VolumeConfig {
            al_extents: o.al_extents,
            diskless: false,
            size_max_bytes: None,
            on_io_error: OnIoError::Detach,
            diskful_peers: peers.clone(),
        };
        let peer = PeerConfig {
            protocol: o.protocol,
            auth: None,
            timeout: Duration::from_nanos(o.timeout),
            ko_count: 7,
            ping_int: Duration::from_nanos(o.ping_int),
            ping_timeout: Duration::from_millis(500),
            epoch_writes_max: 2048,
            buffer_bytes_max: 8 << 20,
            use_rle: o.use_rle,
            resync: PacingConfig { min_rate_kib: 4000, resync_rate_kib: 4000, ..PacingConfig::default() },
            verify_alg: String::new(),
            csums_alg: String::new(),
        };
        ResourceConfig {
            node_id: me,
            volumes: self.volume_numbers().into_iter().map(|v| (v, volume.clone())).collect(),
            peers: peers.into_iter().map(|p| (p, peer.clone())).collect(),
            on_no_data: OnNoData::IoError,
            twopc_timeout: Duration::from_secs(30),
            twopc_retry_timeout: Duration::from_millis(100),
            peer_ack_delay: Duration::from_millis(100),
            peer_ack_window_bytes: 2 << 20,
            io_depth_max: 256,
        }
    }

    fn start(&mut self, id: NodeId) {
        let seed = self.rng.seed_of_engine();
        let engine = Engine::new(self.config(id), seed);
        self.node_mut(id).start(engine);
        self.say(|| format!("{id:?} starts"));
        for volume in self.volume_numbers() {
            self.attach(id, volume);
        }
        for peer in self.node_ids().into_iter().filter(|p| *p != id) {
            self.command(id, Command::Connect { peer, discard_my_data: false }, false);
        }
    }

    pub(crate) fn restart(&mut self, id: NodeId) {
        if !self.node(id).is_running() {
            self.start(id);
        }
    }

    fn attach(&mut self, id: NodeId, volume: VolumeNumber) {
        match self.node(id).disks[&volume].attach(View::Visible) {
            Ok(disk) => self.command(id, Command::Attach { volume, disk: Box::new(disk) }, false),
            Err(error) => self.complain(format!("{id:?} {volume:?}: metadata is unreadable at attach: {error}")),
        }
    }

    // ------------------------------------------------------------------ trouble

    pub(crate) fn random_cut(&mut self) {
        let (Some(every), false) = (self.options.cut_every, self.healing) else { return };
        let delay = self.rng.around(every);
        self.schedule(delay, Event::Cut);
        let ids = self.node_ids();
        let a = self.rng.pick(&ids);
        let others: Vec<NodeId> = ids.into_iter().filter(|b| *b != a).collect();
        let b = self.rng.pick(&others);
        self.cut(a, b);
    }

    fn cut(&mut self, a: NodeId, b: NodeId) {
        self.stats.cuts += 1;
        self.say(|| format!("network {a:?} - {b:?} is cut"));
        if self.net.down.insert(crate::network::pair(a, b)) {
            let down = self.rng.around(self.options.down_time.max(8));
            self.schedule(down, Event::PathHeals { a, b });
        }
        let half_open = self.rng.chance(self.options.half_open_per_mille);
        let first = if self.rng.chance(500) { a } else { b };
        self.break_links(a, b, |node| half_open && node != first);
    }

    /// Breaks what exists between two nodes; those who are `late` learn of it only by their own means, or after a
    /// minute.
    fn break_links(&mut self, a: NodeId, b: NodeId, late: impl Fn(NodeId) -> bool) {
        let now = self.now;
        let (a, b) = crate::network::pair(a, b);
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
                let soon = self.rng.between(1, self.options.latency * 20);
                let delay = if late(node) { 60 * SECOND + soon } else { soon };
                let error = LinkError::Failed("connection reset".into());
                self.schedule(delay, Event::LinkDown { link, node, error });
            }
        }
    }

    pub(crate) fn random_crash(&mut self) {
        let (Some(every), false) = (self.options.crash_every, self.healing) else { return };
        let delay = self.rng.around(every);
        self.schedule(delay, Event::Crash);
        let ids = self.node_ids();
        if self.rng.chance(self.options.power_loss_per_mille) {
            self.stats.power_losses += 1;
            for id in ids {
                self.crash(id, true);
            }
            return;
        }
        let id = self.rng.pick(&ids);
        if !self.node(id).is_running() {
            return;
        }
        if self.rng.chance(self.options.clean_stop_per_mille) {
            return self.clean_stop(id);
        }
        let power = self.rng.chance(700);
        self.crash(id, power);
    }

    /// `power`: the machine; otherwise only the daemon dies, and what it had given to the disk completes.
    pub fn crash(&mut self, id: NodeId, power: bool) {
        if !self.node(id).is_running() {
            return;
        }
        self.stats.crashes += 1;
        self.say(|| format!("{id:?} {}", if power { "loses power" } else { "is killed" }));
        self.stop(id, power);
        let delay = self.rng.around(self.options.restart_after);
        self.schedule(delay, Event::Restart { node: id });
    }

    fn stop(&mut self, id: NodeId, power: bool) {
        self.truths_after_stop(id, power);
        for volume in self.volume_numbers() {
            let disk = self.nodes.get_mut(&id).and_then(|n| n.disks.get_mut(&volume)).expect("every node has disks");
            if power {
                let sectors = disk.crash(&mut self.rng);
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
        }
        self.node_mut(id).forget();
        let late_chance = self.options.half_open_per_mille > 0;
        for peer in self.node_ids().into_iter().filter(|p| *p != id) {
            self.net.wants.remove(&(id, peer));
            let late = power && late_chance && self.rng.chance(500);
            for link in self.net.links.values_mut().filter(|l| l.nodes.contains(&id) && l.nodes.contains(&peer)) {
                link.end_mut(id).state = EndState::Down;
            }
            self.break_links(id, peer, |node| node == peer && late);
        }
        self.net.forget_dead();
    }

    fn clean_stop(&mut self, id: NodeId) {
        if self.node(id).stopping {
            return;
        }
        self.stats.clean_stops += 1;
        self.say(|| format!("{id:?} is asked to stop"));
        let volumes = self.volume_numbers();
        let peers: Vec<NodeId> = self.node_ids().into_iter().filter(|p| *p != id).collect();
        let node = self.node_mut(id);
        node.stopping = true;
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
        self.stop(id, false);
        let delay = self.rng.around(self.options.restart_after);
        self.schedule(delay, Event::Restart { node: id });
    }

    // ------------------------------------------------------------------ commands

    /// Somebody usually wants a Primary.
    pub(crate) fn keep_a_primary(&mut self) {
        if self.healing {
            return;
        }
        let delay = self.rng.around(KEEPER_EVERY);
        self.schedule(delay, Event::Keeper);
        let running: Vec<NodeId> =
            self.nodes.values().filter(|n| n.is_running() && !n.stopping).map(|n| n.id).collect();
        let waiting = |n: &Node| n.commands.values().any(|c| c.command == "promote");
        let busy = self.nodes.values().any(|n| n.is_running() && (n.is_primary || waiting(n)));
        if running.is_empty() || busy || !self.rng.chance(600) {
            return;
        }
        let id = self.rng.pick(&running);
        let fresh = self.options.start == Start::Fresh && self.stats.promotions == 0;
        self.command(id, Command::Promote { force: fresh }, false);
    }

    pub(crate) fn random_command(&mut self) {
        let (Some(every), false) = (self.options.operator_every, self.healing) else { return };
        let delay = self.rng.around(every);
        self.schedule(delay, Event::Operator);
        let ids = self.node_ids();
        let id = self.rng.pick(&ids);
        if !self.node(id).is_running() || self.node(id).stopping {
            return;
        }
        let peers: Vec<NodeId> = ids.into_iter().filter(|p| *p != id).collect();
        let peer = self.rng.pick(&peers);
        let volumes = self.volume_numbers();
        let volume = self.rng.pick(&volumes);
        let is_primary = self.node(id).is_primary;
        if self.rng.chance(self.options.disks_per_mille) {
            return self.random_disk_command(id, peer, volume);
        }
        let command = match self.rng.between(0, 9) {
            0..=2 if is_primary => Command::Demote,
            0..=2 => Command::Promote { force: self.rng.chance(self.options.force_per_mille) },
            3 | 4 => Command::Disconnect { peer, force: self.rng.chance(300) },
            5 => Command::PauseSync { volume, peer },
            6 => Command::ResumeSync { volume, peer },
            _ => {
                let split = self.split_brain.contains(&crate::network::pair(id, peer));
                let discard_my_data = split && !is_primary && self.rng.chance(500);
                if discard_my_data {
                    // Also what is newer here than on the peer: both may end Outdated.
                    self.give_up(id);
                    self.no_good_copy_expected = true;
                }
                Command::Connect { peer, discard_my_data }
            }
        };
        self.command(id, command, false);
    }

    fn random_disk_command(&mut self, id: NodeId, peer: NodeId, volume: VolumeNumber) {
        let status = self.status(id).expect("checked that it runs");
        if status.volumes[&volume].disk == DiskState::Diskless {
            return self.attach(id, volume);
        }
        match self.rng.between(0, 3) {
            // With force the disk goes at once, as one that fails. Not drawn: seeds of before would mean something else.
            0 | 1 => {
                let force = self.now.is_multiple_of(4);
                self.command(id, Command::Detach { volume, force }, false);
            }
            2 => {
                // Only with another copy: the person is careless, not mad.
                if self.has_other_copy(id, volume, &status) {
                    self.give_up(id);
                    self.no_good_copy_expected = true;
                    self.command(id, Command::Invalidate { volume, from: None }, false);
                }
            }
            _ => {
                let own = status.volumes[&volume].disk == DiskState::UpToDate;
                let connected = status.peers[&peer].volumes[&volume].replication == ReplicationState::Established;
                if own && connected {
                    self.give_up(peer);
                    self.no_good_copy_expected = true;
                    self.command(id, Command::InvalidateRemote { volume, peer }, false);
                }
            }
        }
    }

    fn has_other_copy(&self, id: NodeId, volume: VolumeNumber, status: &Status) -> bool {
        status.peers.iter().any(|(peer, p)| *peer != id && p.volumes[&volume].disk == DiskState::UpToDate)
    }

    // ------------------------------------------------------------------ the end

    pub(crate) fn heal(&mut self) {
        self.healing = true;
        self.healed_at = self.now;
        self.say(|| "all trouble ends".into());
        let down: Vec<_> = self.net.down.iter().copied().collect();
        for (a, b) in down {
            self.path_heals(a, b);
        }
        self.schedule(SECOND, Event::Settle);
    }

    pub(crate) fn settle(&mut self) {
        for id in self.node_ids() {
            if !self.node(id).is_running() {
                self.restart(id);
            }
        }
        if self.all_is_well() {
            self.final_checks();
            self.settled = true;
            return;
        }
        if self.now - self.healed_at > SETTLE_MAX {
            let picture = self.picture();
            return self.complain(format!("{} s after the last trouble not settled: {picture}", SETTLE_MAX / SECOND));
        }
        self.schedule(SECOND, Event::Settle);
        for id in self.node_ids() {
            self.put_right(id);
        }
        self.choose_a_copy();
    }

    /// What a person does with one node that is not as it should be.
    fn put_right(&mut self, id: NodeId) {
        if self.node(id).stopping || !self.node(id).commands.is_empty() {
            return;
        }
        let Some(status) = self.status(id) else { return };
        // Two Primaries of a partition refuse each other until one steps down.
        let rival = |peer: NodeId| {
            let (a, b) = crate::network::pair(id, peer);
            self.node(id).is_primary && self.node(peer).is_primary && self.worse_of(a, b) == id
        };
        if status.peers.iter().any(|(peer, p)| p.connection != ConnectionState::Connected && rival(*peer)) {
            return self.command(id, Command::Demote, false);
        }
        // A Primary that would be overwritten refuses for ever (rr-conflict); a person stops what runs on it.
        let refuses = |device: &engine::PeerDeviceStatus| device.last_decision.contains("PrimaryWouldBeTarget");
        let conflict = status
            .peers
            .values()
            .any(|p| p.connection == ConnectionState::StandAlone && p.volumes.values().any(refuses));
        if conflict && self.node(id).is_primary {
            return self.command(id, Command::Demote, false);
        }
        // So does a Primary without any data: it refuses to go on with other data than it showed (rule GE-7).
        let served = |(volume, v): (&VolumeNumber, &engine::VolumeStatus)| {
            let reached = |p: &engine::PeerStatus| {
                let device = &p.volumes[volume];
                device.disk == DiskState::UpToDate && device.replication >= ReplicationState::Established
            };
            v.disk == DiskState::UpToDate || status.peers.values().any(reached)
        };
        let patient = self.now - self.healed_at < PATIENCE;
        if self.node(id).is_primary && !patient && !status.volumes.iter().all(served) {
            return self.command(id, Command::Demote, false);
        }
        for (volume, v) in &status.volumes {
            if v.disk == DiskState::Diskless {
                self.attach(id, *volume);
            }
        }
        for (peer, p) in &status.peers {
            if p.connection == ConnectionState::StandAlone {
                self.connect_at_the_end(id, *peer);
            }
            for (volume, device) in &p.volumes {
                if device.resync_suspended_user {
                    self.command(id, Command::ResumeSync { volume: *volume, peer: *peer }, false);
                }
            }
        }
    }

    /// Whose data a person gives up: the worse disk, then whoever is not Primary, then the higher number.
    fn worse_of(&self, a: NodeId, b: NodeId) -> NodeId {
        let worth = |node: NodeId| {
            let worst = self.status(node).and_then(|s| s.volumes.values().map(|v| v.disk).min());
            (worst, self.node(node).is_primary)
        };
        if worth(a) < worth(b) { a } else { b }
    }

    fn connect_at_the_end(&mut self, id: NodeId, peer: NodeId) {
        let pair = crate::network::pair(id, peer);
        let split = self.split_brain.contains(&pair);
        let victim = self.worse_of(pair.0, pair.1);
        if split && victim == id {
            if self.node(id).is_primary {
                return self.command(id, Command::Demote, false);
            }
            self.give_up(id);
            self.no_good_copy_expected = true;
            return self.command(id, Command::Connect { peer, discard_my_data: true }, false);
        }
        let unrelated = self.forced
            && self.status(id).is_some_and(|s| {
                s.peers[&peer].volumes.values().any(|device| device.last_decision.starts_with("Unrelated"))
            });
        if unrelated && victim == id {
            return self.start_over(id);
        }
        self.command(id, Command::Connect { peer, discard_my_data: false }, false);
    }

    /// Both were forced on fresh metadata: they have nothing in common. One gets new metadata, on an empty disk.
    fn start_over(&mut self, id: NodeId) {
        self.say(|| format!("{id:?} gets empty disks"));
        self.give_up(id);
        self.stop(id, false);
        for volume in self.volume_numbers() {
            let o = &self.options;
            let slots = o.nodes - 1 + o.spare_slots;
            let fresh = Disk::create(o.volume_bytes, o.external_metadata, o.volatile_cache, slots);
            let old = self.node_mut(id).disks.insert(volume, fresh).expect("every node has disks");
            for truth in self.truths.get_mut(&volume).into_iter().flatten() {
                truth.complete_on.remove(&id);
                truth.durable_on.remove(&id);
            }
            let sectors: Vec<u64> = old.sectors_written().collect();
            self.metadata_changed_silently(id, volume);
            self.sectors_changed(id, volume, &sectors);
            self.recheck(id, volume);
        }
        self.start(id);
    }

    /// No UpToDate copy anywhere for a while: somebody has to say which one to take.
    fn choose_a_copy(&mut self) {
        let waited = self.now - self.healed_at;
        if waited < 60 * SECOND || !(waited / SECOND).is_multiple_of(30) {
            return;
        }
        let statuses: Vec<Status> = self.node_ids().into_iter().filter_map(|id| self.status(id)).collect();
        let good = |v: VolumeNumber| statuses.iter().any(|s| s.volumes[&v].disk == DiskState::UpToDate);
        if self.volume_numbers().into_iter().all(good) {
            return;
        }
        let expected = self.no_good_copy_expected || self.forced || self.options.start == Start::Fresh;
        if !expected {
            let picture = self.picture();
            return self.complain(format!("no UpToDate copy is left and nobody gave one up: {picture}"));
        }
        self.stats.forced_at_end += 1;
        self.forced = true;
        let ids = self.node_ids();
        let id = self.rng.pick(&ids);
        self.command(id, Command::Promote { force: true }, false);
    }

    pub(crate) fn picture(&self) -> String {
        let mut parts: BTreeMap<NodeId, String> = BTreeMap::new();
        for id in self.node_ids() {
            let Some(status) = self.status(id) else {
                parts.insert(id, "down".into());
                continue;
            };
            let node = self.node(id);
            let mut text = format!("{}", status.role);
            for (volume, v) in &status.volumes {
                text += &format!(" {volume:?}:{} gen {}", v.disk, v.current_uuid);
            }
            for (peer, p) in &status.peers {
                text += &format!(" to {peer:?}: {}", p.connection);
                for (volume, d) in &p.volumes {
                    text += &format!(
                        " {volume:?} {}/{} oos {} last [{}]",
                        d.replication, d.disk, d.out_of_sync_bytes, d.last_decision
                    );
                }
            }
            let waiting: Vec<&str> = node.commands.values().map(|c| c.command).collect();
            text += &format!(" requests {} commands {waiting:?} payloads {}", node.requests.len(), node.payloads.len());
            parts.insert(id, text);
        }
        parts.iter().map(|(id, text)| format!("[{id:?} {text}]")).collect::<Vec<_>>().join(" ")
    }
}
