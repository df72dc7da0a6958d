//! The path of a request allocates nothing once it is warm: not in a lone node, and not in either of two that are
//! connected. What happens by the clock (pings, peer acks, bitmap pages that are written) comes in between and counts.

#[path = "harness/config.rs"]
mod config;
#[path = "harness/counting.rs"]
mod counting;
#[path = "harness/fresh_disk.rs"]
mod fresh_disk;
#[path = "harness/requests.rs"]
mod requests;

use engine::{Effect, Engine, Input, Protocol};
use requests::{Doors, Load, Rig};
use types::{BlockOp, Time};

const WRITE: BlockOp = BlockOp::Write { fua: false };

/// Allocations in the engines since they were looked at, with the inputs that made them.
#[derive(Default)]
struct Counted {
    inputs: u64,
    allocations: Vec<String>,
}

impl Doors for Counted {
    fn handle(&mut self, node: usize, engine: &mut Engine, now: Time, input: Input, effects: &mut Vec<Effect>) {
        let kind = format!("node {node}: {input:?}");
        let before = counting::allocations();
        engine.handle(now, input, effects);
        let made = counting::allocations() - before;
        self.inputs += 1;
        if made > 0 {
            self.allocations.push(format!("{made} in {kind}"));
        }
    }

    fn next_deadline(&mut self, node: usize, engine: &Engine) -> Option<Time> {
        let before = counting::allocations();
        let deadline = engine.next_deadline();
        let made = counting::allocations() - before;
        if made > 0 {
            self.allocations.push(format!("{made} in next_deadline of node {node}"));
        }
        deadline
    }
}

/// Runs 10 000 requests, warm, and gives what allocated.
fn allocations(nodes: usize, protocol: Protocol, op: BlockOp, len_bytes: u64, depth: u64) -> Vec<String> {
    let load = Load { op, len_bytes, depth, span_bytes: 16 << 20 };
    let mut rig = Rig::new(nodes, protocol, Counted::default());
    // Tables grow to the most that they ever held: how much that is depends on how a load's start, its bursts and late
    // PEER_ACKs meet.
    for _ in 0..8 {
        rig.run(load, load.warm_up());
    }
    rig.doors = Counted::default();
    rig.run(load, 10_000);
    assert!(rig.doors.inputs >= 20_000, "{} inputs", rig.doors.inputs);
    rig.doors.allocations
}

#[test]
fn a_lone_node_reads_and_writes_without_allocating() {
    for depth in [1, 32] {
        for op in [BlockOp::Read, WRITE, BlockOp::Write { fua: true }, BlockOp::Discard] {
            let made = allocations(1, Protocol::C, op, 4096, depth);
            assert!(made.is_empty(), "{op:?}, depth {depth}: {made:#?}");
        }
    }
}

#[test]
fn a_connected_pair_writes_without_allocating() {
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        for (len_bytes, depth) in [(4096, 1), (4096, 32), (65536, 8)] {
            let made = allocations(2, protocol, WRITE, len_bytes, depth);
            assert!(made.is_empty(), "{protocol:?}, {len_bytes} bytes, depth {depth}: {made:#?}");
        }
    }
}

/// The counter counts: a bit that is set for the first time is written to the disk, in a page that is made for it.
#[test]
fn what_is_written_for_the_first_time_allocates() {
    let load = Load { op: WRITE, len_bytes: 4096, depth: 1, span_bytes: 16 << 20 };
    let mut rig = Rig::new(1, Protocol::C, Counted::default());
    rig.doors = Counted::default();
    rig.run(load, 1);
    assert!(!rig.doors.allocations.is_empty());
}
