//! One node: the engine, its disks, the buffers it is lent, and the contract between engine and driver. Whatever the
//! engine does against the contract (head of `engine::api`) is an error that ends the run.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use engine::{Command, CommandId, DiskOp, Engine};
use types::{BlockOp, ByteRange, NodeId, PayloadId, RequestId, VolumeNumber};

use crate::action::{Fault, Order};
use crate::disk::{Disk, Runs, SECTOR, Stamp};
use crate::truth::ReadExpectation;
use crate::world::Event;

pub struct Buffer {
    pub data: Option<Rc<Runs>>,
    pub sectors: u64,
    released: bool,
    /// A read of the application or of the disk still needs it.
    holds: u32,
}

pub struct Pending {
    pub volume: VolumeNumber,
    pub op: BlockOp,
    pub range: ByteRange,
    pub payload: Option<PayloadId>,
    /// Moment of submission: unique, also the stamp of a write.
    pub submitted: u64,
    /// What a write puts into its sectors; kept when it is issued again.
    pub stamp: Stamp,
    pub expect: Option<ReadExpectation>,
    /// Virtual time of submission, for the story.
    pub since: u64,
}

pub struct CommandInFlight {
    pub order: Order,
    pub since: u64,
    /// Part of a clean stop.
    pub scripted: bool,
}

pub struct Node {
    pub id: NodeId,
    pub engine: Option<Engine>,
    /// Counts lives of the engine: what was meant for an earlier one is dropped.
    pub life: u64,
    pub disks: BTreeMap<VolumeNumber, Disk>,
    pub is_primary: bool,
    /// Size of the application's device, where it exists.
    pub devices: BTreeMap<VolumeNumber, u64>,
    /// A demote was asked for: the application keeps still.
    pub demoting: bool,
    pub promote_force: bool,
    pub payloads: BTreeMap<PayloadId, Buffer>,
    next_payload: u32,
    pub commands: BTreeMap<CommandId, CommandInFlight>,
    pub requests: BTreeMap<RequestId, Pending>,
    /// What remains of a clean stop.
    pub script: VecDeque<Command>,
    pub stopping: bool,
    pub restart_after: u64,
    pub tick_at: Option<u64>,
    /// Stopped by a signal: what came for it since waits.
    pub is_frozen: bool,
    pub asleep: Vec<Event>,
    /// Requests of a device whose daemon died: the next one gets them again.
    pub left_behind: Vec<Pending>,
    pub faults: Vec<(VolumeNumber, Fault)>,
    /// No operation of this disk completes before.
    pub hangs: BTreeMap<VolumeNumber, u64>,
    /// Disks as they once were.
    pub image: Option<BTreeMap<VolumeNumber, Disk>>,
}

impl Node {
    /// Without disks.
    pub fn new(id: NodeId) -> Node {
        Node {
            id,
            engine: None,
            life: 0,
            disks: BTreeMap::new(),
            is_primary: false,
            devices: BTreeMap::new(),
            demoting: false,
            promote_force: false,
            payloads: BTreeMap::new(),
            next_payload: 0,
            commands: BTreeMap::new(),
            requests: BTreeMap::new(),
            script: VecDeque::new(),
            stopping: false,
            restart_after: 0,
            tick_at: None,
            is_frozen: false,
            asleep: Vec::new(),
            left_behind: Vec::new(),
            faults: Vec::new(),
            hangs: BTreeMap::new(),
            image: None,
        }
    }

    pub fn start(&mut self, engine: Engine) {
        assert!(self.engine.is_none(), "{:?} was started twice", self.id);
        self.engine = Some(engine);
        self.life += 1;
    }

    /// Everything in memory is gone.
    pub fn forget(&mut self) {
        self.engine = None;
        self.life += 1;
        self.is_primary = false;
        self.devices.clear();
        self.demoting = false;
        self.promote_force = false;
        self.payloads.clear();
        self.commands.clear();
        self.requests.clear();
        self.script.clear();
        self.stopping = false;
        self.tick_at = None;
        self.is_frozen = false;
        self.asleep.clear();
        self.left_behind.clear();
    }

    /// Whether this operation meets a fault; one of the fault's times is used up.
    pub fn op_fails(&mut self, volume: VolumeNumber, op: &DiskOp) -> bool {
        let hit = |fault: &Fault| {
            let (metadata, writes, spans) = span(op);
            let of_kind = if writes { fault.writes } else { fault.reads };
            let of_kind = of_kind || (fault.discards && matches!(op, DiskOp::Discard { .. }));
            let touches = spans.iter().any(|(first, end)| *first < fault.end && fault.first < *end);
            fault.metadata == metadata && of_kind && touches
        };
        let Some(index) = self.faults.iter().position(|(v, fault)| *v == volume && hit(fault)) else { return false };
        match &mut self.faults[index].1.times {
            None => {}
            Some(1) => {
                self.faults.remove(index);
            }
            Some(times) => *times -= 1,
        }
        true
    }

    /// An attach reads all of the metadata.
    pub fn metadata_is_unreadable(&self, volume: VolumeNumber) -> bool {
        self.faults.iter().any(|(v, fault)| *v == volume && fault.metadata && fault.reads)
    }

    pub fn is_running(&self) -> bool {
        self.engine.is_some()
    }

    /// An application can use the device.
    pub fn takes_requests(&self) -> bool {
        self.is_running() && self.is_primary && !self.demoting && !self.stopping && !self.is_frozen
    }

    // ------------------------------------------------------------------ buffers

    pub fn lend(&mut self, data: Option<Rc<Runs>>, sectors: u64, holds: u32) -> PayloadId {
        self.next_payload += 1;
        let id = PayloadId(self.next_payload);
        self.payloads.insert(id, Buffer { data, sectors, released: false, holds });
        id
    }

    pub fn buffer(&mut self, id: PayloadId, what: &str) -> Result<&mut Buffer, String> {
        match self.payloads.get_mut(&id) {
            Some(buffer) if !buffer.released => Ok(buffer),
            _ => Err(format!("{what} uses {id:?}, which is not lent (released before, or never existed)")),
        }
    }

    pub fn content(&mut self, id: PayloadId, what: &str) -> Result<Rc<Runs>, String> {
        self.buffer(id, what)?.data.clone().ok_or_else(|| format!("{what} uses {id:?}, which was never filled"))
    }

    pub fn hold(&mut self, id: PayloadId, what: &str) -> Result<(), String> {
        self.buffer(id, what)?.holds += 1;
        Ok(())
    }

    pub fn unhold(&mut self, id: PayloadId) {
        let Some(buffer) = self.payloads.get_mut(&id) else { return };
        assert!(buffer.holds > 0, "{id:?} is held by nobody");
        buffer.holds -= 1;
        self.drop_unused(id);
    }

    pub fn release(&mut self, id: PayloadId) -> Result<(), String> {
        self.buffer(id, "Release")?.released = true;
        self.drop_unused(id);
        Ok(())
    }

    fn drop_unused(&mut self, id: PayloadId) {
        if self.payloads.get(&id).is_some_and(|b| b.released && b.holds == 0) {
            self.payloads.remove(&id);
        }
    }

    /// Puts what a disk read into a buffer that waits for it.
    pub fn fill(&mut self, id: PayloadId, data: Runs) {
        if let Some(buffer) = self.payloads.get_mut(&id) {
            buffer.data = Some(Rc::new(data));
        }
    }

    pub fn copy(&mut self, from: PayloadId, to: PayloadId) -> Result<(), String> {
        let (data, sectors) = {
            let from = self.buffer(from, "Copy")?;
            (from.data.clone(), from.sectors)
        };
        let target = self.buffer(to, "Copy")?;
        if target.sectors != sectors {
            return Err(format!("Copy of {sectors} sectors into {to:?} of {}", target.sectors));
        }
        target.data = data;
        Ok(())
    }
}

/// Which device an operation is for, whether it writes, and where: sectors of the data, blocks of the metadata.
fn span(op: &DiskOp) -> (bool, bool, Vec<(u64, u64)>) {
    let sectors = |range: &ByteRange| vec![(range.sector(), range.end() / SECTOR)];
    match op {
        DiskOp::Read { range } | DiskOp::ReadInto { range, .. } => (false, false, sectors(range)),
        DiskOp::Write { range, .. } | DiskOp::WriteZeroes { range, .. } => (false, true, sectors(range)),
        DiskOp::Discard { range } => (false, true, sectors(range)),
        DiskOp::Flush => (false, true, vec![(0, u64::MAX)]),
        DiskOp::MetaWrite { blocks, .. } => {
            (true, true, blocks.iter().map(|b| (b.offset / 4096, b.offset / 4096 + 1)).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node::new(NodeId::new(0).unwrap())
    }

    #[test]
    fn a_buffer_is_released_exactly_once() {
        let mut node = node();
        let id = node.lend(Some(Rc::new(vec![(8, 1)])), 8, 0);
        assert!(node.content(id, "Send").is_ok());
        assert!(node.release(id).is_ok());
        assert!(node.release(id).is_err());
        assert!(node.content(id, "Send").is_err());
    }

    #[test]
    fn a_released_buffer_lives_until_its_read_is_through() {
        let mut node = node();
        let id = node.lend(None, 8, 1);
        node.release(id).unwrap();
        node.fill(id, vec![(8, 3)]);
        assert!(node.payloads[&id].data.is_some());
        node.unhold(id);
        assert!(node.payloads.is_empty());
    }
}
