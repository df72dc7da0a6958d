//! What single parts cost: the wire's codec, the bitmap and its code on the wire, the activity log, and the engine with
//! a real file behind it. Instructions are counted by whoever runs this under `valgrind --tool=callgrind` and collects
//! inside [`measured_operation`] (`cargo xtask bench --only engine` does); allocations and time are counted here.
//!
//! `parts` alone prints the cases, and how many operations to count; `parts CASE NODE COUNT` runs one: `COUNT` operations behind a warm-up. NODE is 0: the
//! words are those of the engine's own bench.

mod activity;
mod bitmap;
mod codec;
#[path = "../../crates/engine/tests/harness/counting.rs"]
mod counting;
mod storage;

use std::time::Instant;

/// Does the operation with this number. What it needs was made before.
type Operation = Box<dyn FnMut(u64)>;

struct Case {
    name: &'static str,
    make: fn() -> Operation,
    warm_up: u64,
    /// Operations of the shorter of two counted runs.
    count: u64,
}

const fn case(name: &'static str, warm_up: u64, count: u64, make: fn() -> Operation) -> Case {
    Case { name, make, warm_up, count }
}

const CASES: [Case; 18] = [
    case("wire-encode-data", 64, 4096, codec::encode_data),
    case("wire-decode-data", 64, 4096, codec::decode_data),
    case("wire-encode-ack", 64, 4096, codec::encode_ack),
    case("wire-decode-ack", 64, 4096, codec::decode_ack),
    case("bitmap-set-a-block", 4096, 4096, bitmap::set),
    case("bitmap-set-a-block-again", 1 << 16, 4096, bitmap::set_again),
    case("bitmap-clear-a-block", 4096, 4096, bitmap::clear),
    case("bitmap-find-next-of-1-in-1000", 4096, 4096, bitmap::next_of_few),
    case("bitmap-find-next-of-1-in-a-million", 64, 64, bitmap::next_of_fewer),
    case("bitmap-send-32-KiB-empty", 1, 64, bitmap::send_empty),
    case("bitmap-send-32-KiB-1-in-100", 1, 64, bitmap::send_scattered),
    case("bitmap-receive-32-KiB-1-in-100", 1, 64, bitmap::receive_scattered),
    case("activity-hot", 4096, 4096, activity::hot),
    case("activity-cold", 4096, 4096, activity::cold),
    case("activity-encode-transaction", 64, 4096, activity::encode),
    case("store-4k-write-1", 4096, 4096, storage::hot_1),
    case("store-4k-write-32", 4096, 4096, storage::hot_32),
    case("store-4k-write-cold-1", 4096, 4096, storage::cold_1),
];

/// Its name is what the collection is switched on and off by.
#[inline(never)]
fn measured_operation(operation: &mut Operation, number: u64) {
    operation(number);
}

fn run(case: &Case, count: u64) {
    let mut operation = (case.make)();
    // Also what is under valgrind collects here; the difference of two lengths does not have it.
    (0..case.warm_up).for_each(|number| measured_operation(&mut operation, number));
    let (before, start) = (counting::allocations(), Instant::now());
    (0..count).for_each(|number| measured_operation(&mut operation, case.warm_up + number));
    let (nanoseconds, allocations) = (start.elapsed().as_nanos(), counting::allocations() - before);
    println!("{} 0 {count} {allocations} {nanoseconds}", case.name);
}

fn main() {
    // Cargo says `--bench`; what is left are ours.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => CASES.iter().for_each(|case| println!("{} 0 {}", case.name, case.count)),
        [name, "0", count] => {
            let case = CASES.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name:?}"));
            run(case, count.parse().expect("a number of operations"));
        }
        _ => panic!("usage: parts [CASE 0 COUNT]"),
    }
}

/// Visits the numbers below a power of two in an order that jumps about, each once.
fn scattered(number: u64, below: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B1) & (below - 1)
}
