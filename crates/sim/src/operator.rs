//! The person at the prompt: sensible commands, careless ones, and now and then any command at all.

use engine::Protocol;
use types::{DiskState, NodeId, ReplicationState, VolumeNumber};

use crate::action::{Action, ORDERS, ORDERS_TRIED, Order};
use crate::network::pair;
use crate::node::Node;
use crate::protocols::NetChange;
use crate::swarm::{MS, Start};
use crate::world::{Event, World};

pub(crate) const KEEPER_EVERY: u64 = 700 * MS;

impl World {
    /// Somebody usually wants a Primary.
    pub(crate) fn keep_a_primary(&mut self) {
        if self.healing {
            return;
        }
        let delay = self.whim.around(KEEPER_EVERY);
        self.schedule(delay, Event::Keeper);
        let running: Vec<NodeId> =
            self.nodes.values().filter(|n| n.is_running() && !n.stopping && !n.is_primary).map(|n| n.id).collect();
        let waiting = |n: &Node| n.commands.values().any(|c| matches!(c.order, Order::Promote { .. }));
        let busy = self.nodes.values().any(|n| n.is_running() && (n.is_primary || waiting(n)));
        let eager = if busy { self.options.rival_per_mille } else { 600 };
        if running.is_empty() || !self.whim.chance(eager) {
            return;
        }
        let node = self.whim.pick(&running);
        let force = self.options.start == Start::Fresh && self.stats.promotions == 0;
        self.act(Action::Command { node, order: Order::Promote { force } });
    }

    pub(crate) fn random_command(&mut self) {
        let (Some(every), false) = (self.options.operator_every, self.healing) else { return };
        let delay = self.whim.around(every);
        self.schedule(delay, Event::Operator);
        let ids = self.node_ids();
        let node = self.whim.pick(&ids);
        if !self.node(node).is_running() || self.node(node).stopping {
            return;
        }
        let peers: Vec<NodeId> = ids.into_iter().filter(|p| *p != node).collect();
        let peer = self.whim.pick(&peers);
        let volumes = self.volume_numbers();
        let volume = self.whim.pick(&volumes);
        if self.options.options_per_mille > 0 && self.whim.chance(self.options.options_per_mille) {
            return self.change_some_option(node);
        }
        if self.options.verify_per_mille > 0 && self.whim.chance(self.options.verify_per_mille) {
            let order = self.verify_order(peer, volume);
            return self.act(Action::Command { node, order });
        }
        let order = if self.whim.chance(self.options.senseless_per_mille) {
            Some(self.any_order(peer, volume))
        } else if self.whim.chance(self.options.disks_per_mille) {
            self.disk_order(node, peer, volume)
        } else {
            Some(self.common_order(node, peer, volume))
        };
        if let Some(order) = order {
            self.act(Action::Command { node, order });
        }
    }

    /// Often where it was interrupted, to the end; sometimes a part.
    fn verify_order(&mut self, peer: NodeId, volume: VolumeNumber) -> Order {
        // Not more than goes by in a moment: each block is many events.
        let size = self.options.volume_bytes;
        let part = size > (16 << 20) || self.whim.chance(400);
        let start = part.then(|| self.whim.between(0, size));
        let stop = part.then(|| start.unwrap_or(0) + self.whim.between(0, size.min(4 << 20)));
        Order::Verify { volume, peer, start, stop }
    }

    fn common_order(&mut self, node: NodeId, peer: NodeId, volume: VolumeNumber) -> Order {
        let is_primary = self.node(node).is_primary;
        match self.whim.between(0, 9) {
            0..=2 if is_primary => Order::Demote,
            0..=2 => Order::Promote { force: self.whim.chance(self.options.force_per_mille) },
            3 | 4 => Order::Disconnect { peer, force: self.whim.chance(300) },
            5 => Order::PauseSync { volume, peer },
            6 => Order::ResumeSync { volume, peer },
            _ => {
                let split = self.split_brain.contains(&pair(node, peer));
                let discard_my_data = split && !is_primary && self.whim.chance(500);
                Order::Connect { peer, discard_my_data }
            }
        }
    }

    fn disk_order(&mut self, node: NodeId, peer: NodeId, volume: VolumeNumber) -> Option<Order> {
        let status = self.status(node).expect("checked that it runs");
        if status.volumes[&volume].disk == DiskState::Diskless {
            return Some(Order::Attach { volume });
        }
        match self.whim.between(0, 3) {
            // With force the disk goes at once, as one that fails.
            0 | 1 => Some(Order::Detach { volume, force: self.whim.chance(250) }),
            // Only with another copy: the person is careless, not mad.
            2 => self.has_other_copy(node, volume).then_some(Order::Invalidate { volume, from: None }),
            _ => {
                let own = status.volumes[&volume].disk == DiskState::UpToDate;
                let connected = status.peers[&peer].volumes[&volume].replication == ReplicationState::Established;
                (own && connected).then_some(Order::InvalidateRemote { volume, peer })
            }
        }
    }

    /// Whatever comes to mind. What would throw a copy away for good is left to `disk_order`.
    fn any_order(&mut self, peer: NodeId, volume: VolumeNumber) -> Order {
        let force = self.whim.chance(self.options.force_per_mille);
        match self.whim.pick(&ORDERS[..ORDERS_TRIED]) {
            "attach" => Order::Attach { volume },
            "detach" => Order::Detach { volume, force: false },
            "detach --force" => Order::Detach { volume, force: true },
            "connect" => Order::Connect { peer, discard_my_data: false },
            "connect --discard-my-data" => Order::Connect { peer, discard_my_data: true },
            "disconnect" => Order::Disconnect { peer, force: false },
            "disconnect --force" => Order::Disconnect { peer, force: true },
            "promote" => Order::Promote { force: false },
            "promote --force" => Order::Promote { force },
            "demote" => Order::Demote,
            "invalidate" => Order::Invalidate { volume, from: Some(peer).filter(|_| force) },
            "invalidate-remote" => Order::InvalidateRemote { volume, peer },
            "outdate" => Order::Outdate { volume },
            "new-current-uuid" => Order::NewCurrentUuid { volume, clear_bitmap: false },
            "new-current-uuid --clear-bitmap" => Order::NewCurrentUuid { volume, clear_bitmap: force },
            "pause-sync" => Order::PauseSync { volume, peer },
            "resume-sync" => Order::ResumeSync { volume, peer },
            "net-options" => self.net_options(),
            "disk-options" => self.disk_options(),
            "resource-options" => Order::ResourceOptions { suspend_io: self.whim.chance(500) },
            "adjust" => Order::Adjust,
            other => unreachable!("{other} is not in the list"),
        }
    }

    /// Usually first of all where the file says something else already: one change after the other.
    fn change_some_option(&mut self, node: NodeId) {
        let behind: Vec<NodeId> = self.node_ids().into_iter().filter(|id| self.differs_from_file(*id)).collect();
        if !behind.is_empty() && self.whim.chance(700) {
            let node = self.whim.pick(&behind);
            return self.act(Action::Command { node, order: Order::Adjust });
        }
        let order = match self.whim.between(0, 4) {
            0..=2 => self.net_options(),
            3 => self.disk_options(),
            _ => Order::ResourceOptions { suspend_io: self.whim.chance(500) },
        };
        self.act(Action::Command { node, order });
    }

    fn net_options(&mut self) -> Order {
        Order::NetOptions(NetChange {
            protocol: self.whim.pick(&[Protocol::A, Protocol::B, Protocol::C]),
            max_epoch_size: self.whim.pick(&[1, 20, 2048]),
            max_buffers_bytes: self.whim.pick(&[128 << 10, 8 << 20]),
        })
    }

    fn disk_options(&mut self) -> Order {
        Order::DiskOptions { al_extents: self.whim.pick(&[67, 80, 1237]), pass_on: self.whim.chance(200) }
    }

    fn has_other_copy(&self, node: NodeId, volume: VolumeNumber) -> bool {
        let Some(status) = self.status(node) else { return false };
        status.peers.values().any(|p| p.volumes[&volume].disk == DiskState::UpToDate)
    }

    /// What a person takes upon himself with a command.
    pub(crate) fn excuse(&mut self, node: NodeId, order: Order) {
        match order {
            // Also what is newer here than on the peer: both may end Outdated.
            Order::Connect { discard_my_data: true, .. } | Order::Invalidate { .. } => {
                self.give_up(node);
                self.no_good_copy_expected = true;
            }
            Order::InvalidateRemote { peer, .. } => {
                self.give_up(peer);
                self.no_good_copy_expected = true;
            }
            Order::Outdate { .. } => self.no_good_copy_expected = true,
            // Faults that came before it count as well.
            Order::DiskOptions { pass_on: true, .. } => self.no_good_copy_expected |= self.stats.faults > 0,
            _ => {}
        }
    }
}
