//! What one request costs in the engine: allocations, counted here, and instructions, which whoever runs this under
//! `valgrind --tool=callgrind` gets by collecting inside [`measured_handle`] and [`measured_next_deadline`] and taking
//! the difference of two run lengths (`cargo xtask bench --only engine` does).
//!
//! `requests` without a number of requests prints the cases; `requests CASE NODE COUNT` runs one: after a warm-up `COUNT`
//! requests, measured in the engine of that node.

#[path = "../tests/harness/config.rs"]
mod config;
#[path = "../tests/harness/counting.rs"]
mod counting;
#[path = "../tests/harness/fresh_disk.rs"]
mod fresh_disk;
#[path = "../tests/harness/requests.rs"]
mod requests;

use engine::{Effect, Engine, Input, Protocol};
use requests::{Doors, Load, Rig};
use types::{BlockOp, Time};

const WRITE: BlockOp = BlockOp::Write { fua: false };

struct Case {
    name: &'static str,
    nodes: usize,
    load: Load,
}

const fn case(name: &'static str, nodes: usize, op: BlockOp, len_kib: u64, depth: u64) -> Case {
    // Some extents of the activity log, and few enough requests for a warm-up that valgrind does in a second.
    let span_bytes = if len_kib > 4 { 64 << 20 } else { 16 << 20 };
    Case { name, nodes, load: Load { op, len_bytes: len_kib << 10, depth, span_bytes } }
}

const CASES: [Case; 10] = [
    case("alone-4k-write-1", 1, WRITE, 4, 1),
    case("alone-4k-write-32", 1, WRITE, 4, 32),
    case("alone-4k-read-1", 1, BlockOp::Read, 4, 1),
    case("alone-4k-read-32", 1, BlockOp::Read, 4, 32),
    case("alone-64k-write-8", 1, WRITE, 64, 8),
    case("alone-1m-write-4", 1, WRITE, 1024, 4),
    case("C-4k-write-1", 2, WRITE, 4, 1),
    case("C-4k-write-32", 2, WRITE, 4, 32),
    case("C-64k-write-8", 2, WRITE, 64, 8),
    case("C-1m-write-4", 2, WRITE, 1024, 4),
];

/// The doors of one node, measured.
struct Measured {
    node: usize,
    allocations: u64,
}

impl Doors for Measured {
    fn handle(&mut self, node: usize, engine: &mut Engine, now: Time, input: Input, effects: &mut Vec<Effect>) {
        if node != self.node {
            return engine.handle(now, input, effects);
        }
        let before = counting::allocations();
        measured_handle(engine, now, input, effects);
        self.allocations += counting::allocations() - before;
    }

    fn next_deadline(&mut self, node: usize, engine: &Engine) -> Option<Time> {
        if node != self.node {
            return engine.next_deadline();
        }
        measured_next_deadline(engine)
    }
}

/// Its name is what the collection is switched on and off by.
#[inline(never)]
fn measured_handle(engine: &mut Engine, now: Time, input: Input, effects: &mut Vec<Effect>) {
    engine.handle(now, input, effects);
}

#[inline(never)]
fn measured_next_deadline(engine: &Engine) -> Option<Time> {
    engine.next_deadline()
}

fn run(case: &Case, node: usize, count: u64) {
    let mut rig = Rig::new(case.nodes, Protocol::C, Measured { node, allocations: 0 });
    rig.run(case.load, case.load.warm_up());
    let before = rig.doors.allocations;
    rig.run(case.load, count);
    println!("{} {node} {count} {}", case.name, rig.doors.allocations - before);
}

fn main() {
    // Cargo says `--bench`; what is left are ours.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let all = CASES.iter().flat_map(|case| (0..case.nodes).map(move |node| (case, node)));
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => all.for_each(|(case, node)| println!("{} {node}", case.name)),
        [name, node, count] => {
            let case = CASES.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name:?}"));
            let count = count.parse().expect("a number of requests");
            run(case, node.parse().expect("the number of a node"), count);
        }
        _ => panic!("usage: requests [CASE NODE COUNT]"),
    }
}
