//! By which protocol each node writes to each other one, and what of older ones may still be owed: options change while
//! writes are under way. Until everything that was written under an older protocol is known to be on the peer, a node
//! promises no more than the weakest of them does.

use engine::{Command, OnIoError, OnNoData, OptionChange, Protocol, VolumeOptions};
use serde::{Deserialize, Serialize};
use types::NodeId;

use crate::action::Order;
use crate::swarm::{Options, ProtocolName};
use crate::world::World;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetChange {
    #[serde(with = "ProtocolName")]
    pub protocol: Protocol,
    pub max_epoch_size: u32,
    pub max_buffers_bytes: u64,
}

/// What the configuration file of all nodes says now. A node takes it over when it starts, or when it is told to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct File {
    pub net: NetChange,
    pub al_extents: u16,
    pub pass_on: bool,
    pub suspend_io: bool,
}

impl File {
    pub fn new(options: &Options) -> File {
        File {
            net: NetChange { protocol: options.protocol, max_epoch_size: 2048, max_buffers_bytes: 8 << 20 },
            al_extents: options.al_extents,
            pass_on: options.pass_on,
            suspend_io: options.suspend_io,
        }
    }

    fn edit(&mut self, order: Order) {
        match order {
            Order::NetOptions(net) => self.net = net,
            Order::DiskOptions { al_extents, pass_on } => (self.al_extents, self.pass_on) = (al_extents, pass_on),
            Order::ResourceOptions { suspend_io } => self.suspend_io = suspend_io,
            _ => {}
        }
    }
}

/// The order that a change of options was given by.
pub(crate) fn order_of(change: &OptionChange) -> Order {
    match (change.resource, change.volumes.values().next(), change.peers.values().next()) {
        (None, None, Some(peer)) => Order::NetOptions(NetChange {
            protocol: peer.protocol,
            max_epoch_size: peer.epoch_writes_max,
            max_buffers_bytes: peer.buffer_bytes_max,
        }),
        (None, Some(volume), None) => {
            Order::DiskOptions { al_extents: volume.al_extents, pass_on: volume.on_io_error == OnIoError::PassOn }
        }
        (Some(resource), None, None) => {
            Order::ResourceOptions { suspend_io: resource.on_no_data == OnNoData::SuspendIo }
        }
        _ => Order::Adjust,
    }
}

impl World {
    /// Edits the file, and tells one node to take over what the order is about.
    pub(crate) fn change_options(&mut self, node: NodeId, order: Order) {
        self.file.edit(order);
        let config = self.config(node);
        let options = |v: &engine::VolumeConfig| VolumeOptions { al_extents: v.al_extents, on_io_error: v.on_io_error };
        let all = order == Order::Adjust;
        let mut change = OptionChange::default();
        if all || matches!(order, Order::NetOptions(_)) {
            change.peers = config.peers.clone();
        }
        if all || matches!(order, Order::DiskOptions { .. }) {
            change.volumes = config.volumes.iter().map(|(number, volume)| (*number, options(volume))).collect();
        }
        if all || matches!(order, Order::ResourceOptions { .. }) {
            change.resource = Some(config.options());
        }
        self.command(node, Command::ChangeOptions { change: Box::new(change) }, false);
    }

    /// It goes by another protocol than its file says: the file was changed, or the peer told it.
    pub(crate) fn differs_from_file(&self, id: NodeId) -> bool {
        self.status(id).is_some_and(|status| status.peers.values().any(|p| p.protocol != self.file.net.protocol))
    }

    /// From now on `id` writes to `peer` by this protocol.
    pub(crate) fn goes_by(&mut self, id: NodeId, peer: NodeId, protocol: Protocol) {
        let moment = self.moment;
        let history = self.protocols.entry((id, peer)).or_default();
        if history.last().is_none_or(|(_, last)| *last != protocol) {
            history.push((moment, protocol));
        }
    }

    /// What `id` promises of its writes to `peer` at least.
    pub(crate) fn weakest(&self, id: NodeId, peer: NodeId) -> Protocol {
        let history = self.protocols.get(&(id, peer)).into_iter().flatten();
        history.map(|(_, protocol)| *protocol).min().unwrap_or(self.file.net.protocol)
    }

    /// Something that `id` wrote to `peer` by this protocol may not be settled yet.
    pub(crate) fn owes_under(&self, id: NodeId, peer: NodeId, protocol: Protocol) -> bool {
        self.protocols.get(&(id, peer)).is_some_and(|history| history.iter().any(|(_, p)| *p == protocol))
    }

    /// A flush that was submitted at `submitted` has succeeded: it waited for every peer that it was sent to by a
    /// protocol better than A, and so for all that went before it.
    pub(crate) fn flushed_to_peers(&mut self, id: NodeId, submitted: u64) {
        for peer in self.node_ids().into_iter().filter(|peer| *peer != id) {
            let Some(history) = self.protocols.get(&(id, peer)) else { continue };
            let in_force = history.iter().rposition(|(since, _)| *since < submitted).unwrap_or(0);
            if in_force > 0 && history[in_force..].iter().all(|(_, protocol)| *protocol != Protocol::A) {
                self.all_is_there(id, peer, in_force);
            }
        }
    }

    /// Nothing is on the way between the two, and neither works: everything that was written is where it should be.
    pub(crate) fn pair_is_quiet(&mut self, a: NodeId, b: NodeId) {
        for (id, peer) in [(a, b), (b, a)] {
            let changes = self.protocols.get(&(id, peer)).map_or(0, Vec::len);
            if changes > 1 {
                self.all_is_there(id, peer, changes - 1);
            }
        }
    }

    /// What `id` wrote before entry `from` of its protocols is on stable storage at `peer`, if that has good data.
    fn all_is_there(&mut self, id: NodeId, peer: NodeId, from: usize) {
        let Some(status) = self.status(id) else { return };
        let volumes = self.volume_numbers();
        if !volumes.iter().all(|volume| self.holders(id, *volume, &status, true).1.contains(&peer)) {
            return;
        }
        self.protocols.get_mut(&(id, peer)).expect("the caller looked it up").drain(..from);
        if self.weakest(id, peer) == Protocol::A {
            return;
        }
        for truth in self.truths.values_mut().flatten().filter(|truth| truth.primary == Some(id)) {
            truth.complete_on.insert(peer);
            truth.durable_on.insert(peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use crate::swarm::SECOND;

    fn net(protocol: Protocol) -> Order {
        Order::NetOptions(NetChange { protocol, max_epoch_size: 2048, max_buffers_bytes: 8 << 20 })
    }

    /// A change weakens what is promised at once; it grows again when what was owed is there, and not before.
    #[test]
    fn the_weakest_protocol_counts_until_all_is_there() {
        let options = Options { duration: 60 * SECOND, ..Options::calm() };
        let mut world = World::with_options(options, 1, false);
        let ids = world.node_ids();
        let (a, b) = (ids[0], ids[1]);
        let run_for = |world: &mut World, time: u64| {
            let end = world.now + time;
            while world.now < end && world.complaint.is_none() {
                world.step();
            }
            assert_eq!(world.complaint, None);
        };
        run_for(&mut world, 5 * SECOND);
        assert_eq!((world.weakest(a, b), world.weakest(b, a)), (Protocol::C, Protocol::C));
        world.act(Action::Command { node: a, order: net(Protocol::A) });
        assert_eq!((world.weakest(a, b), world.weakest(b, a)), (Protocol::A, Protocol::C));
        assert!(world.owes_under(a, b, Protocol::C) && !world.differs_from_file(a) && world.differs_from_file(b));
        run_for(&mut world, SECOND);
        assert_eq!((world.weakest(b, a), world.differs_from_file(b)), (Protocol::A, false), "the peer takes it over");
        world.act(Action::Command { node: b, order: net(Protocol::C) });
        assert_eq!((world.weakest(a, b), world.weakest(b, a)), (Protocol::A, Protocol::A), "nothing has come yet");
        run_for(&mut world, 20 * SECOND);
        assert_eq!((world.weakest(a, b), world.weakest(b, a)), (Protocol::C, Protocol::C));
        assert!(!world.owes_under(a, b, Protocol::A));
    }

    #[test]
    fn orders_are_readable_in_a_scenario() {
        let text = serde_json::to_string(&net(Protocol::B)).unwrap();
        assert_eq!(text, r#"{"net-options":{"protocol":"B","max_epoch_size":2048,"max_buffers_bytes":8388608}}"#);
        assert_eq!(serde_json::from_str::<Order>(&text).unwrap(), net(Protocol::B));
        assert_eq!(serde_json::to_string(&Order::Adjust).unwrap(), r#""adjust""#);
    }
}
