//! One node's engine with a file behind it, through the store and io_uring: the daemon without frontend and peers.
//! The file lies in memory where the machine has such a place, so that it costs little beside the software.

#[path = "../../crates/engine/tests/harness/config.rs"]
mod config;
#[path = "../../crates/engine/tests/harness/fresh_disk.rs"]
mod fresh_disk;

use super::{Operation, scattered};
use engine::{Command, CommandId, DiskOp, Effect, Engine, Input, Protocol};
use io_uring::IoUring;
use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;
use store::backing::{Backing, OpenOptions};
use store::buffers::BufferPool;
use store::sync::Aligned;
use store::uring::{self, Completion, Running};
use store::{StoreOp, sync};
use tempfile::TempDir;
use types::{BlockOp, ByteRange, IoId, NodeId, PayloadId, RequestId, Time, VolumeNumber};

const DEVICE_BYTES: u64 = 1 << 30;
const VOLUME: VolumeNumber = VolumeNumber::new(0).unwrap();
const REQUEST_BYTES: u64 = 4096;
/// Extents of the activity log that all stay hot.
const HOT_BYTES: u64 = 64 << 20;
/// Of the activity log.
const EXTENT_BYTES: u64 = 4 << 20;

/// An operation of the engine on its way.
struct Flying {
    io: IoId,
    running: Running,
}

struct Node {
    engine: Engine,
    born: Instant,
    backing: Backing,
    ring: IoUring,
    buffers: BufferPool,
    payloads: Vec<PayloadId>,
    flying: Vec<Option<Flying>>,
    inputs: VecDeque<Input>,
    effects: Vec<Effect>,
    in_flight: usize,
    /// Holds the file.
    _dir: TempDir,
}

/// Few extents over and over.
pub fn hot_1() -> Operation {
    writes(1, |number| scattered(number, HOT_BYTES / REQUEST_BYTES) * REQUEST_BYTES)
}

pub fn hot_32() -> Operation {
    writes(32, |number| scattered(number, HOT_BYTES / REQUEST_BYTES) * REQUEST_BYTES)
}

/// Another extent each time, four times as many as the log has places (67): one metadata write for each.
pub fn cold_1() -> Operation {
    writes(1, |number| scattered(number, DEVICE_BYTES / EXTENT_BYTES / 2) * EXTENT_BYTES)
}

/// With `depth` in flight, an operation is one that begins and one that ends.
fn writes(depth: usize, offset: fn(u64) -> u64) -> Operation {
    let mut node = Node::new(depth);
    Box::new(move |number| {
        let range = ByteRange::new(offset(number), REQUEST_BYTES).expect("inside the device");
        let payload = node.payloads[number as usize % depth];
        node.submit(number, range, payload);
        while node.in_flight == depth {
            node.turn();
        }
    })
}

impl Node {
    fn new(depth: usize) -> Node {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a folder");
        let path = dir.path().join("disk");
        let file = std::fs::File::create(&path).and_then(|file| file.set_len(DEVICE_BYTES));
        file.expect("a sparse file");
        let me = NodeId::new(0).expect("small");
        let mut buffers = BufferPool::new(4 << 20).expect("memory");
        let payloads = (0..depth).map(|_| buffers.try_alloc(REQUEST_BYTES as usize).expect("few")).collect();
        let mut node = Node {
            engine: Engine::new(config::resource(me, &[me], 1, Protocol::C), [1; 32]),
            born: Instant::now(),
            backing: Backing::open(&path, OpenOptions::SERVE).expect("the file can be opened"),
            ring: IoUring::new(64).expect("io_uring"),
            buffers,
            payloads,
            flying: (0..64).map(|_| None).collect(),
            inputs: VecDeque::new(),
            effects: Vec::new(),
            in_flight: 0,
            _dir: dir,
        };
        let disk = Box::new(fresh_disk::fresh_disk(DEVICE_BYTES));
        node.command(1, Command::Attach { volume: VOLUME, disk });
        node.command(2, Command::Promote { force: true });
        node
    }

    fn command(&mut self, id: u64, command: Command) {
        self.inputs.push_back(Input::Command { id: CommandId(id), command });
        self.take_inputs();
    }

    fn submit(&mut self, number: u64, range: ByteRange, payload: PayloadId) {
        self.in_flight += 1;
        let (request, op) = (RequestId(number), BlockOp::Write { fua: false });
        self.inputs.push_back(Input::Submit { request, volume: VOLUME, op, range, payload: Some(payload) });
        self.take_inputs();
    }

    /// As the daemon's loop: completions, inputs, a tick if due.
    fn turn(&mut self) {
        self.ring.submit_and_wait(1).expect("io_uring");
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { break };
            self.completed(entry.user_data() as usize, entry.result());
        }
        self.take_inputs();
        let now = self.now();
        if self.engine.next_deadline().is_some_and(|at| at <= now) {
            self.inputs.push_back(Input::Tick);
            self.take_inputs();
        }
    }

    fn now(&self) -> Time {
        Time(self.born.elapsed().as_nanos() as u64)
    }

    fn take_inputs(&mut self) {
        while let Some(input) = self.inputs.pop_front() {
            let (now, mut effects) = (self.now(), std::mem::take(&mut self.effects));
            self.engine.handle(now, input, &mut effects);
            effects.drain(..).for_each(|effect| self.carry_out(effect));
            self.effects = effects;
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Reply { result, .. } => result.expect("the set-up is allowed"),
            Effect::Complete { result, .. } => {
                result.expect("the disk works");
                self.in_flight -= 1;
            }
            Effect::Disk { io, op: DiskOp::Write { range, payload, fua }, .. } => {
                let from = self.buffers.span(payload);
                self.push(io, StoreOp::Write { range, from, fua });
            }
            Effect::Disk { io, op: DiskOp::Flush, .. } => self.push(io, StoreOp::Flush),
            Effect::Disk { io, op: DiskOp::MetaWrite { blocks, preflush, fua }, .. } => {
                let sync = || preflush.then(|| sync::flush(&self.backing)).transpose();
                sync().expect("a flush");
                for block in &blocks {
                    let mut page = Aligned::zeroed(block.bytes.len());
                    page.copy_from_slice(&block.bytes[..]);
                    sync::write_all_at(&self.backing, block.offset, &page).expect("metadata");
                }
                if fua {
                    sync::flush(&self.backing).expect("a flush");
                }
                self.inputs.push_back(Input::DiskDone { volume: VOLUME, io, result: Ok(()), payload: None });
            }
            Effect::Disk { op, .. } => panic!("{op:?} was not asked for"),
            // Payloads are ours and used again.
            _ => {}
        }
    }

    fn push(&mut self, io: IoId, op: StoreOp) {
        let running = uring::start(&self.backing, op).expect("inside the file");
        let place = self.flying.iter().position(Option::is_none).expect("less in flight than places");
        self.flying[place] = Some(Flying { io, running });
        self.enter(place, &running);
    }

    fn enter(&mut self, place: usize, running: &Running) {
        let entry = uring::prepare(&self.backing, running).user_data(place as u64);
        // SAFETY: the payload lies in a pool that is kept, like the file, until the node is dropped with nothing in
        // flight that writes to memory.
        unsafe { self.ring.submission().push(&entry) }.expect("room for what is in flight");
    }

    fn completed(&mut self, place: usize, result: i32) {
        let Flying { io, running } = self.flying[place].take().expect("one completion each");
        match uring::interpret(&self.backing, &running, result) {
            Completion::Again(running) => {
                self.flying[place] = Some(Flying { io, running });
                self.enter(place, &running);
            }
            Completion::Done => {
                self.inputs.push_back(Input::DiskDone { volume: VOLUME, io, result: Ok(()), payload: None });
            }
            Completion::Failed(error) => panic!("{error}"),
        }
    }
}
