//! The simulated disk passes the suite of the stores (`crates/store/tests/suite/mod.rs`): what whole clusters are tested
//! on behaves as what they run on.

#[path = "../../store/tests/suite/mod.rs"]
mod suite;

use std::rc::Rc;

use engine::{DiskOp, MetaBlock};
use sim::disk::{Disk, Runs, SECTOR, Stamp, Survival, View};
use sim::rng::Rng;
use suite::{Device, Op, Refused, conforms};
use types::{ByteRange, IoId, PayloadId};

struct Simulated {
    disk: Disk,
    rng: Rng,
    next_io: u64,
    external: bool,
}

impl Simulated {
    fn new(external: bool) -> Simulated {
        Simulated { disk: Disk::create(512 << 20, external, true, 3), rng: Rng::new(5), next_io: 0, external }
    }

    fn disk_op(&self, op: &Op) -> (DiskOp, Option<Rc<Runs>>) {
        let sectors = |first: u64, count: u64| ByteRange::new(first * SECTOR, count * SECTOR).unwrap();
        let bytes = |start: u64, len: u64| ByteRange::new(start, len).unwrap();
        let payload = PayloadId(0);
        let op = match op {
            Op::Read(sector, count) => DiskOp::Read { range: sectors(*sector, *count) },
            Op::ReadBytes(start, len) => DiskOp::Read { range: bytes(*start, *len) },
            Op::Write { sector, stamps, fua } => {
                let runs = stamps.iter().map(|stamp| (1, *stamp)).collect();
                let range = sectors(*sector, stamps.len() as u64);
                return (DiskOp::Write { range, payload, fua: *fua }, Some(Rc::new(runs)));
            }
            Op::WriteBytes(start, len) => {
                let range = bytes(*start, *len);
                let runs = vec![(range.sectors() as u32, 1)];
                return (DiskOp::Write { range, payload, fua: false }, Some(Rc::new(runs)));
            }
            Op::Flush => DiskOp::Flush,
            Op::Discard(sector, count) => DiskOp::Discard { range: sectors(*sector, *count) },
            Op::DiscardBytes(start, len) => DiskOp::Discard { range: bytes(*start, *len) },
            Op::WriteZeroes { sector, count, may_unmap, fua } => {
                DiskOp::WriteZeroes { range: sectors(*sector, *count), may_unmap: *may_unmap, fua: *fua }
            }
            Op::WriteZeroesBytes(start, len) => {
                DiskOp::WriteZeroes { range: bytes(*start, *len), may_unmap: true, fua: false }
            }
            Op::Metadata { pages, preflush, fua } => {
                let at = self.disk.attach(View::Visible).unwrap().layout.bitmap;
                let block =
                    |(page, fill): &(u64, u8)| MetaBlock { offset: at + page * 4096, bytes: Box::new([*fill; 4096]) };
                DiskOp::MetaWrite { blocks: pages.iter().map(block).collect(), preflush: *preflush, fua: *fua }
            }
        };
        (op, None)
    }
}

fn refused(text: &str) -> Refused {
    match text.contains("multiples of") {
        true => Refused::Misaligned,
        false if text.contains("the disk has") => Refused::OutOfRange,
        false => panic!("{text}"),
    }
}

fn stamps(runs: &Runs) -> Vec<Stamp> {
    runs.iter().flat_map(|(count, stamp)| std::iter::repeat_n(*stamp, *count as usize)).collect()
}

impl Device for Simulated {
    fn size_bytes(&self) -> u64 {
        self.disk.data_bytes
    }
    fn logical_block_bytes(&self) -> u64 {
        SECTOR
    }
    /// Completions come in any order.
    fn run(&mut self, batch: &[Op]) -> Vec<Result<Vec<u64>, Refused>> {
        let mut answers: Vec<_> = batch.iter().map(|_| Ok(Vec::new())).collect();
        let mut in_flight = Vec::new();
        for (tag, op) in batch.iter().enumerate() {
            self.next_io += 1;
            let (op, data) = self.disk_op(op);
            match self.disk.submit(IoId(self.next_io), op, data) {
                Ok(()) => in_flight.push((tag, IoId(self.next_io))),
                Err(text) => answers[tag] = Err(refused(&text)),
            }
        }
        while !in_flight.is_empty() {
            let (tag, io) = in_flight.swap_remove(self.rng.between(0, in_flight.len() as u64 - 1) as usize);
            let (_, done) = self.disk.complete(io).expect("there is power");
            answers[tag] = Ok(done.data.as_ref().map(stamps).unwrap_or_default());
        }
        assert_eq!(self.disk.in_flight(), 0);
        answers
    }
    fn lose_power(&mut self) -> bool {
        self.disk.survive(Survival::Nothing);
        self.disk.crash(&mut self.rng);
        true
    }
    fn is_one_device(&self) -> bool {
        !self.external
    }
    fn metadata(&mut self) -> Option<Vec<u8>> {
        let bitmap = self.disk.attach(View::Visible).expect("the suite leaves the superblock alone").bitmap;
        Some(bitmap.chunks(4096).map(|page| page[0]).collect())
    }
}

#[test]
fn data_and_metadata_on_one_device() {
    conforms(&mut Simulated::new(false), 40);
}

#[test]
fn metadata_on_a_device_of_its_own() {
    conforms(&mut Simulated::new(true), 40);
}
