//! One node: the engine, its disks, the buffers it is lent, and the contract between engine and driver. Whatever the
//! engine does against the contract (head of `engine::api`) is an error that ends the run.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use engine::{Command, CommandId, Engine};
use types::{BlockOp, ByteRange, NodeId, PayloadId, RequestId, VolumeNumber};

use crate::disk::{Disk, Runs};
use crate::truth::ReadExpectation;

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
    pub expect: Option<ReadExpectation>,
    /// Virtual time of submission, for the story.
    pub since: u64,
}

pub struct CommandInFlight {
    pub command: &'static str,
    pub force: bool,
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
    pub tick_at: Option<u64>,
}

impl Node {
    pub fn new(id: NodeId, disks: BTreeMap<VolumeNumber, Disk>) -> Node {
        Node {
            id,
            engine: None,
            life: 0,
            disks,
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
            tick_at: None,
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
    }

    pub fn is_running(&self) -> bool {
        self.engine.is_some()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node::new(NodeId::new(0).unwrap(), BTreeMap::new())
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
