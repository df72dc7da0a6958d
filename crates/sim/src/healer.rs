//! Who puts everything right at the end: faults are over, and a patient person does what the status asks for.

use std::collections::BTreeMap;

use engine::{Command, Status};
use types::{ConnectionState, DiskState, NodeId, ReplicationState, VolumeNumber};

use crate::action::Order;
use crate::exam::Exam;
use crate::network::pair;
use crate::swarm::{SECOND, Start};
use crate::world::{Event, World};

/// Virtual time for everything to become good after the last trouble. Generous: a full sync over the slowest link.
const SETTLE_MAX: u64 = 1500 * SECOND;
/// Before a person stops what runs on a Primary without data.
const PATIENCE: u64 = 30 * SECOND;
/// Between two attempts to mend what a resync left.
const RECONNECT_EVERY: u64 = 60 * SECOND;

impl World {
    pub(crate) fn heal(&mut self) {
        self.healing = true;
        self.healed_at = self.now;
        self.say(|| "all trouble ends".into());
        let down: Vec<_> = self.net.down.iter().copied().collect();
        for (a, b) in down {
            self.path_heals(a, b);
        }
        for node in self.nodes.values_mut() {
            node.faults.clear();
        }
        self.schedule(SECOND, Event::Settle);
    }

    pub(crate) fn settle(&mut self) {
        for id in self.node_ids() {
            if !self.node(id).is_running() {
                self.restart(id);
            }
        }
        let well = self.all_is_well();
        if well && self.exam == Exam::NotBegun {
            self.final_checks();
        }
        if (well || self.is_examining_rot()) && self.examine() {
            self.settled = true;
            return;
        }
        if self.now - self.healed_at > SETTLE_MAX {
            let picture = self.picture();
            return self.complain(format!("{} s after the last trouble not settled: {picture}", SETTLE_MAX / SECOND));
        }
        self.schedule(SECOND, Event::Settle);
        if self.is_examining_rot() {
            return;
        }
        for id in self.node_ids() {
            self.put_right(id);
        }
        self.choose_a_copy();
    }

    /// What a person does with one node that is not as it should be.
    fn put_right(&mut self, id: NodeId) {
        let node = self.node(id);
        if node.stopping || node.is_frozen || !node.commands.is_empty() {
            return;
        }
        let Some(status) = self.status(id) else { return };
        let patient = self.now - self.healed_at < PATIENCE;
        if !patient && !node.is_primary && !node.left_behind.is_empty() {
            // Another node serves: whatever still holds the old device is told that it is gone.
            self.node_mut(id).left_behind.clear();
        }
        // Two Primaries of a partition refuse each other until one steps down.
        let rival = |peer: NodeId| {
            let (a, b) = pair(id, peer);
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
        if self.node(id).is_primary && !patient && !status.volumes.iter().all(served) {
            return self.command(id, Command::Demote, false);
        }
        // Nor does it take a disk that has more than it shows (rule GE-7).
        let kept_out = |(volume, v): (&VolumeNumber, &engine::VolumeStatus)| {
            v.disk == DiskState::Diskless && self.node(id).disks.contains_key(volume)
        };
        if self.node(id).is_primary && !patient && status.volumes.iter().any(kept_out) {
            return self.command(id, Command::Demote, false);
        }
        // The same on all nodes, or they never connect.
        if self.differs_from_file(id) {
            self.change_options(id, Order::Adjust);
        }
        for (volume, v) in &status.volumes {
            if v.disk == DiskState::Diskless {
                self.attach(id, *volume);
            }
        }
        for (peer, p) in &status.peers {
            if p.connection == ConnectionState::StandAlone {
                self.connect_at_the_end(id, *peer);
            } else if !patient && self.may_need_a_reconnect() && is_left_over(&status, p) {
                self.reconnect(id, *peer);
            }
            for (volume, device) in &p.volumes {
                if device.resync_suspended_user {
                    self.command(id, Command::ResumeSync { volume: *volume, peer: *peer }, false);
                }
            }
        }
    }

    /// A resync that could not read or write everything leaves bits, and a disk that an operator outdated over a
    /// standing connection stays so until the next handshake. Otherwise everything mends itself.
    fn may_need_a_reconnect(&self) -> bool {
        let outdated = self.stats.commands.get("outdate").is_some_and(|(done, _)| *done > 0);
        self.stats.faults > 0 || outdated
    }

    /// Connecting again starts what is due.
    fn reconnect(&mut self, id: NodeId, peer: NodeId) {
        if self.now < self.reconnected_at + RECONNECT_EVERY {
            return;
        }
        self.reconnected_at = self.now;
        self.command(id, Command::Disconnect { peer, force: false }, false);
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
        let both = pair(id, peer);
        let split = self.split_brain.contains(&both);
        let victim = self.worse_of(both.0, both.1);
        // 8.4: a target that discards its data and is lost before SYNC_UUID is on its disk has nothing left in common.
        let discarded = self.options.v84 && self.stats.split_brains > 0;
        let explained = self.forced || !self.untracked.is_empty() || discarded;
        let unrelated = explained
            && self.status(id).is_some_and(|s| {
                s.peers[&peer].volumes.values().any(|device| device.last_decision.starts_with("Unrelated"))
            });
        if unrelated && victim == id {
            let all = self.volume_numbers();
            return self.start_over(id, all);
        }
        // The newer generation is on a disk that is not whole: somebody gives it up for the older copy.
        let useless = self.useless_volumes(id, peer);
        if self.no_good_copy_expected && !useless.is_empty() {
            return self.start_over(id, useless);
        }
        if split && victim == id {
            if self.node(id).is_primary {
                return self.command(id, Command::Demote, false);
            }
            self.give_up(id);
            self.no_good_copy_expected = true;
            return self.command(id, Command::Connect { peer, discard_my_data: true }, false);
        }
        self.command(id, Command::Connect { peer, discard_my_data: false }, false);
    }

    /// Volumes of which this node has the newer generation, and not all of it.
    fn useless_volumes(&self, id: NodeId, peer: NodeId) -> Vec<VolumeNumber> {
        let Some(status) = self.status(id) else { return Vec::new() };
        let devices = status.peers[&peer].volumes.iter().filter(|(volume, device)| {
            let inconsistent = status.volumes[volume].disk == DiskState::Inconsistent;
            inconsistent && device.last_decision.contains("SourceIsInconsistent")
        });
        devices.map(|(volume, _)| *volume).collect()
    }

    /// The two have nothing in common (forced on fresh metadata, an identifier set by hand), or nothing that could be
    /// synchronised: one starts over on empty disks.
    fn start_over(&mut self, id: NodeId, volumes: Vec<VolumeNumber>) {
        self.say(|| format!("{id:?} gets empty disks for {volumes:?}"));
        self.stop(id, false, false);
        let fresh = volumes.into_iter().map(|volume| (volume, self.new_disk(id, None))).collect();
        self.exchange(id, fresh);
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
        let id = self.nature.pick(&ids);
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
            let waiting: Vec<&str> = node.commands.values().map(|c| c.order.name()).collect();
            text += &format!(" requests {} commands {waiting:?} payloads {}", node.requests.len(), node.payloads.len());
            parts.insert(id, text);
        }
        parts.iter().map(|(id, text)| format!("[{id:?} {text}]")).collect::<Vec<_>>().join(" ")
    }
}

/// Nothing runs, and something is still out of sync.
fn is_left_over(status: &Status, peer: &engine::PeerStatus) -> bool {
    peer.volumes.iter().any(|(volume, device)| {
        let idle = device.replication == ReplicationState::Established;
        let good = |disk: DiskState| disk == DiskState::UpToDate || disk == DiskState::Diskless;
        let whole = good(device.disk) && good(status.volumes[volume].disk);
        idle && (!whole || device.out_of_sync_bytes > 0)
    })
}
