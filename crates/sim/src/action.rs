//! Everything that the world does to the cluster, as data: drawn by `trouble`, `operator` and `workload` or read from a
//! scenario file, carried out here, and written down in the order it happened. What is not an action (how long a frame
//! or a disk takes, which sectors survive a power cut) comes from the run's own source of chance.

use engine::Command;
use serde::{Deserialize, Serialize};
use types::{BlockOp, ByteRange, NodeId, VolumeNumber};

use crate::node::Node;
use crate::protocols::{NetChange, order_of};
use crate::world::World;

/// Times are virtual nanoseconds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Submit {
        node: NodeId,
        volume: VolumeNumber,
        op: BlockOp,
        range: ByteRange,
    },
    Command {
        node: NodeId,
        order: Order,
    },
    /// Existing links between two nodes break and no new one comes up for a while; `late` learns of it only by its own
    /// means.
    Cut {
        a: NodeId,
        b: NodeId,
        down: u64,
        late: Option<NodeId>,
    },
    /// Nothing gets through in one direction; what was sent arrives when it is over, if anybody still listens.
    Stall {
        from: NodeId,
        to: NodeId,
        lasts: u64,
    },
    /// `power`: the machine; otherwise the daemon alone. `keep_device`: its device waits for the next daemon, with the
    /// requests in flight.
    Crash {
        node: NodeId,
        power: bool,
        keep_device: bool,
        late: bool,
        restart_after: u64,
    },
    CleanStop {
        node: NodeId,
        restart_after: u64,
    },
    /// SIGSTOP and SIGCONT.
    Freeze {
        node: NodeId,
        lasts: u64,
    },
    FailDisk {
        node: NodeId,
        volume: VolumeNumber,
        fault: Fault,
    },
    /// Operations complete no earlier than this.
    HangDisk {
        node: NodeId,
        volume: VolumeNumber,
        lasts: u64,
    },
    /// The machine stops and comes back with new disks and fresh metadata.
    ReplaceDisks {
        node: NodeId,
        restart_after: u64,
    },
    /// Keeps an image of all disks of a node.
    Image {
        node: NodeId,
    },
    /// The machine stops and comes back with the disks of its image.
    RollBack {
        node: NodeId,
        restart_after: u64,
    },
}

/// Which operations of a disk fail. Sectors of the data, blocks of 4 KiB of the metadata.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fault {
    pub metadata: bool,
    pub reads: bool,
    pub writes: bool,
    /// Discards, which may fail on a disk that is good otherwise.
    #[serde(default)]
    pub discards: bool,
    pub first: u64,
    pub end: u64,
    /// `None`: until the disk is replaced or the trouble ends.
    pub times: Option<u32>,
}

/// What a person tells a node. Options: the file of all nodes is edited, and this node takes that part over; `Adjust`: all
/// of it (see `protocols`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    Attach {
        volume: VolumeNumber,
    },
    Detach {
        volume: VolumeNumber,
        force: bool,
    },
    Connect {
        peer: NodeId,
        discard_my_data: bool,
    },
    Disconnect {
        peer: NodeId,
        force: bool,
    },
    Promote {
        force: bool,
    },
    Demote,
    Invalidate {
        volume: VolumeNumber,
        from: Option<NodeId>,
    },
    InvalidateRemote {
        volume: VolumeNumber,
        peer: NodeId,
    },
    Outdate {
        volume: VolumeNumber,
    },
    NewCurrentUuid {
        volume: VolumeNumber,
        clear_bitmap: bool,
    },
    PauseSync {
        volume: VolumeNumber,
        peer: NodeId,
    },
    ResumeSync {
        volume: VolumeNumber,
        peer: NodeId,
    },
    /// Bytes.
    Verify {
        volume: VolumeNumber,
        peer: NodeId,
        start: Option<u64>,
        stop: Option<u64>,
    },
    NetOptions(NetChange),
    DiskOptions {
        al_extents: u16,
        pass_on: bool,
    },
    ResourceOptions {
        suspend_io: bool,
    },
    Adjust,
}

impl Order {
    /// Every command of the engine is an order: a new one does not compile until the simulator can give it.
    pub fn of(command: &Command) -> Order {
        match command {
            Command::Attach { volume, .. } => Order::Attach { volume: *volume },
            Command::Detach { volume, force } => Order::Detach { volume: *volume, force: *force },
            Command::Connect { peer, discard_my_data } => {
                Order::Connect { peer: *peer, discard_my_data: *discard_my_data }
            }
            Command::Disconnect { peer, force } => Order::Disconnect { peer: *peer, force: *force },
            Command::Promote { force } => Order::Promote { force: *force },
            Command::Demote => Order::Demote,
            Command::Invalidate { volume, from } => Order::Invalidate { volume: *volume, from: *from },
            Command::InvalidateRemote { volume, peer } => Order::InvalidateRemote { volume: *volume, peer: *peer },
            Command::Outdate { volume } => Order::Outdate { volume: *volume },
            Command::NewCurrentUuid { volume, clear_bitmap } => {
                Order::NewCurrentUuid { volume: *volume, clear_bitmap: *clear_bitmap }
            }
            Command::PauseSync { volume, peer } => Order::PauseSync { volume: *volume, peer: *peer },
            Command::ResumeSync { volume, peer } => Order::ResumeSync { volume: *volume, peer: *peer },
            Command::Verify { volume, peer, start, stop } => {
                Order::Verify { volume: *volume, peer: *peer, start: *start, stop: *stop }
            }
            Command::ChangeOptions { change } => order_of(change),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Order::Attach { .. } => "attach",
            Order::Detach { force: false, .. } => "detach",
            Order::Detach { force: true, .. } => "detach --force",
            Order::Connect { discard_my_data: false, .. } => "connect",
            Order::Connect { discard_my_data: true, .. } => "connect --discard-my-data",
            Order::Disconnect { force: false, .. } => "disconnect",
            Order::Disconnect { force: true, .. } => "disconnect --force",
            Order::Promote { force: false } => "promote",
            Order::Promote { force: true } => "promote --force",
            Order::Demote => "demote",
            Order::Invalidate { .. } => "invalidate",
            Order::InvalidateRemote { .. } => "invalidate-remote",
            Order::Outdate { .. } => "outdate",
            Order::NewCurrentUuid { clear_bitmap: false, .. } => "new-current-uuid",
            Order::NewCurrentUuid { clear_bitmap: true, .. } => "new-current-uuid --clear-bitmap",
            Order::PauseSync { .. } => "pause-sync",
            Order::ResumeSync { .. } => "resume-sync",
            Order::Verify { .. } => "verify",
            Order::NetOptions(_) => "net-options",
            Order::DiskOptions { .. } => "disk-options",
            Order::ResourceOptions { .. } => "resource-options",
            Order::Adjust => "adjust",
        }
    }

    /// `None` for an attach, which needs what is on the disk, and for options, which need the file.
    fn command(self) -> Option<Command> {
        Some(match self {
            Order::Attach { .. }
            | Order::NetOptions(_)
            | Order::DiskOptions { .. }
            | Order::ResourceOptions { .. }
            | Order::Adjust => return None,
            Order::Detach { volume, force } => Command::Detach { volume, force },
            Order::Connect { peer, discard_my_data } => Command::Connect { peer, discard_my_data },
            Order::Disconnect { peer, force } => Command::Disconnect { peer, force },
            Order::Promote { force } => Command::Promote { force },
            Order::Demote => Command::Demote,
            Order::Invalidate { volume, from } => Command::Invalidate { volume, from },
            Order::InvalidateRemote { volume, peer } => Command::InvalidateRemote { volume, peer },
            Order::Outdate { volume } => Command::Outdate { volume },
            Order::NewCurrentUuid { volume, clear_bitmap } => Command::NewCurrentUuid { volume, clear_bitmap },
            Order::PauseSync { volume, peer } => Command::PauseSync { volume, peer },
            Order::ResumeSync { volume, peer } => Command::ResumeSync { volume, peer },
            Order::Verify { volume, peer, start, stop } => Command::Verify { volume, peer, start, stop },
        })
    }
}

/// Names of [`Order::name`], all of them.
pub const ORDERS: [&str; 22] = [
    "attach",
    "detach",
    "detach --force",
    "connect",
    "connect --discard-my-data",
    "disconnect",
    "disconnect --force",
    "promote",
    "promote --force",
    "demote",
    "invalidate",
    "invalidate-remote",
    "outdate",
    "new-current-uuid",
    "new-current-uuid --clear-bitmap",
    "pause-sync",
    "resume-sync",
    "net-options",
    "disk-options",
    "resource-options",
    "adjust",
    "verify",
];
/// Of [`ORDERS`], from the front, those that come to somebody's mind who tries anything. The rest has a share of its own.
pub const ORDERS_TRIED: usize = 21;

/// One action and its moment.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Act {
    pub at: u64,
    pub action: Action,
}

impl World {
    /// Carries an action out, if the cluster is such that it can happen at all, and writes it down.
    pub fn act(&mut self, action: Action) {
        self.acts.push(Act { at: self.now, action: action.clone() });
        match action {
            Action::Submit { node, volume, op, range } => self.submit_if_possible(node, volume, op, range),
            Action::Command { node, order } => self.order(node, order),
            Action::Cut { a, b, down, late } => self.cut(a, b, down, late),
            Action::Stall { from, to, lasts } => self.stall(from, to, lasts),
            Action::Crash { node, power, keep_device, late, restart_after } => {
                self.crash(node, power, keep_device, late, restart_after)
            }
            Action::CleanStop { node, restart_after } => self.clean_stop(node, restart_after),
            Action::Freeze { node, lasts } => self.freeze(node, lasts),
            Action::FailDisk { node, volume, fault } => self.fail_disk(node, volume, fault),
            Action::HangDisk { node, volume, lasts } => self.hang_disk(node, volume, lasts),
            Action::ReplaceDisks { node, restart_after } => self.replace_disks(node, restart_after),
            Action::Image { node } => self.keep_image(node),
            Action::RollBack { node, restart_after } => self.roll_back(node, restart_after),
        }
    }

    fn order(&mut self, node: NodeId, order: Order) {
        let listens = |node: &Node| node.is_running() && !node.stopping && !node.is_frozen;
        if !listens(self.node(node)) {
            return;
        }
        self.excuse(node, order);
        match (order, order.command()) {
            (Order::Attach { volume }, _) => self.attach(node, volume),
            (_, Some(command)) => self.command(node, command, false),
            (_, None) => self.change_options(node, order),
        }
    }
}
