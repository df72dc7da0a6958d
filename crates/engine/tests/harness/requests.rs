//! One engine, or two that are connected, under a steady load: disks and links answer at once and keep nothing, so
//! that what is measured around the engine's two doors is the engine alone.
//!
//! Nodes take turns. In its turn a node takes what had come in before and asks for its deadline, as the daemon does for
//! one wake-up. The clock goes on by [`TURN`]: pings, peer acks and bitmap writes happen as often as they
//! would.

use std::collections::VecDeque;
use std::time::Duration;

use engine::*;
use types::*;

use super::config;
use super::fresh_disk::fresh_disk;

/// Virtual time of one turn.
const TURN: Duration = Duration::from_micros(50);
const DEVICE_BYTES: u64 = 1 << 30;
const VOLUME: VolumeNumber = VolumeNumber::new(0).unwrap();
/// DRBD's default; the load never leaves these.
const AL_EXTENTS: u16 = 1237;

/// The engine's two doors, for who wants to measure what happens inside.
pub trait Doors {
    fn handle(&mut self, node: usize, engine: &mut Engine, now: Time, input: Input, effects: &mut Vec<Effect>);
    fn next_deadline(&mut self, node: usize, engine: &Engine) -> Option<Time>;
}

/// What the application on node 0 does: requests of one kind and length, at offsets that jump about in the first
/// `span_bytes`. `span_bytes / len_bytes` is a power of two.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub op: BlockOp,
    pub len_bytes: u64,
    pub depth: u64,
    pub span_bytes: u64,
}

impl Load {
    /// Requests after which each place was written once: no bit, extent or table is new any more.
    pub fn warm_up(&self) -> u64 {
        (self.span_bytes / self.len_bytes).max(4096)
    }

    /// An odd step visits every place once before it comes back to one.
    fn range(&self, request: u64) -> ByteRange {
        let places = self.span_bytes / self.len_bytes;
        let place = request.wrapping_mul(0x9E37_79B1) & (places - 1);
        ByteRange::new(place * self.len_bytes, self.len_bytes).expect("inside the device")
    }
}

struct Node {
    id: NodeId,
    engine: Engine,
    inbox: VecDeque<Input>,
    buffers: u32,
}

pub struct Rig<D> {
    pub doors: D,
    nodes: Vec<Node>,
    now: Time,
    effects: Vec<Effect>,
    load: Option<Load>,
    submitted: u64,
    completed: u64,
    replied: u64,
    commands: u64,
}

fn node(id: usize) -> NodeId {
    NodeId::new(id as u8).expect("a small number")
}

impl<D: Doors> Rig<D> {
    /// `count` nodes, 1 or 2, all UpToDate and connected, the first one Primary.
    pub fn new(count: usize, protocol: Protocol, doors: D) -> Rig<D> {
        let all: Vec<NodeId> = (0..count).map(node).collect();
        let make = |id: NodeId| {
            let mut config = config::resource(id, &all, 1, protocol);
            config.volumes.get_mut(&VOLUME).expect("configured above").al_extents = AL_EXTENTS;
            Node { id, engine: Engine::new(config, [id.get() + 1; 32]), inbox: VecDeque::new(), buffers: 0 }
        };
        let nodes = all.iter().copied().map(make).collect();
        let mut rig = Rig {
            doors,
            nodes,
            now: Time::ZERO,
            effects: Vec::new(),
            load: None,
            submitted: 0,
            completed: 0,
            replied: 0,
            commands: 0,
        };
        for me in 0..count {
            rig.command(me, Command::Attach { volume: VOLUME, disk: Box::new(fresh_disk(DEVICE_BYTES)) });
        }
        for me in 0..count {
            for peer in all.iter().copied().filter(|peer| *peer != node(me)) {
                rig.command(me, Command::Connect { peer, discard_my_data: false });
            }
        }
        if count > 1 {
            for (me, peer) in [(0, node(1)), (1, node(0))] {
                rig.nodes[me].inbox.push_back(Input::LinkUp { peer, link: LinkId(1), arbiter: me == 0 });
            }
            rig.settle();
            rig.command(0, Command::NewCurrentUuid { volume: VOLUME, clear_bitmap: true });
        }
        rig.command(0, Command::Promote { force: count == 1 });
        rig.assert_whole();
        rig
    }

    fn assert_whole(&self) {
        for node in &self.nodes {
            let status = node.engine.status();
            assert_eq!(status.volumes[&VOLUME].disk, DiskState::UpToDate, "node {}", node.id);
            for (peer, seen) in &status.peers {
                let seen = &seen.volumes[&VOLUME];
                assert_eq!(seen.replication, ReplicationState::Established, "node {} of {peer}", node.id);
                assert_eq!((seen.disk, seen.out_of_sync_bytes), (DiskState::UpToDate, 0), "node {} of {peer}", node.id);
            }
        }
    }

    fn command(&mut self, me: usize, command: Command) {
        self.commands += 1;
        self.nodes[me].inbox.push_back(Input::Command { id: CommandId(self.commands), command });
        self.settle();
        assert_eq!(self.replied, self.commands, "a command has no answer");
    }

    /// Until nothing is on its way.
    fn settle(&mut self) {
        while self.nodes.iter().any(|node| !node.inbox.is_empty()) {
            self.turns();
        }
    }

    /// Runs `count` requests of the load, so many at once as it says, and lets them settle.
    pub fn run(&mut self, load: Load, count: u64) {
        self.load = Some(load);
        let until = self.completed + count;
        for _ in 0..load.depth.min(count) {
            self.submit();
        }
        let stop_at = self.submitted - load.depth.min(count) + count;
        while self.completed < until {
            let before = self.completed;
            self.turns();
            let finished = self.completed - before;
            for _ in 0..finished.min(stop_at - self.submitted) {
                self.submit();
            }
        }
        self.load = None;
        self.settle();
        self.assert_whole();
    }

    fn submit(&mut self) {
        let load = self.load.expect("while a load runs");
        let range = load.range(self.submitted);
        self.submitted += 1;
        let payload = load.op.has_payload().then(|| self.nodes[0].buffer());
        let request = RequestId(self.submitted);
        self.nodes[0].inbox.push_back(Input::Submit { request, volume: VOLUME, op: load.op, range, payload });
    }

    fn turns(&mut self) {
        for me in 0..self.nodes.len() {
            self.now = self.now + TURN;
            for _ in 0..self.nodes[me].inbox.len() {
                let input = self.nodes[me].inbox.pop_front().expect("counted above");
                self.handle(me, input);
            }
            if self.doors.next_deadline(me, &self.nodes[me].engine).is_some_and(|at| at <= self.now) {
                self.handle(me, Input::Tick);
            }
        }
    }

    fn handle(&mut self, me: usize, input: Input) {
        let mut effects = std::mem::take(&mut self.effects);
        self.doors.handle(me, &mut self.nodes[me].engine, self.now, input, &mut effects);
        for effect in effects.drain(..) {
            self.carry_out(me, effect);
        }
        self.effects = effects;
    }

    fn carry_out(&mut self, me: usize, effect: Effect) {
        match effect {
            Effect::Reply { result, .. } => {
                result.expect("the set-up is allowed");
                self.replied += 1;
            }
            Effect::Complete { result, .. } => {
                result.expect("disks and links are perfect");
                self.completed += 1;
            }
            Effect::Disk { volume, io, op } => {
                let payload = matches!(op, DiskOp::Read { .. }).then(|| self.nodes[me].buffer());
                self.nodes[me].inbox.push_back(Input::DiskDone { volume, io, result: Ok(()), payload });
            }
            Effect::Send { peer, link, socket, volume, message, payload } => {
                let from = self.nodes[me].id;
                let other = &mut self.nodes[peer.index()];
                let payload = payload.map(|_| other.buffer());
                other.inbox.push_back(Input::Received { peer: from, link, socket, volume, message, payload });
            }
            Effect::CloseLink { .. } => panic!("a link of {} was closed", self.nodes[me].id),
            Effect::Digest { .. } => panic!("nothing is compared here"),
            Effect::Release { .. }
            | Effect::Copy { .. }
            | Effect::LinkContext { .. }
            | Effect::Connect { .. }
            | Effect::StopConnecting { .. }
            | Effect::Device { .. }
            | Effect::CloseDisk { .. }
            | Effect::Event(_) => {}
        }
    }
}

impl Node {
    fn buffer(&mut self) -> PayloadId {
        self.buffers = self.buffers.wrapping_add(1);
        PayloadId(self.buffers)
    }
}
