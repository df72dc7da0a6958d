//! What a disk has to say after power went, before anybody repairs anything.

use std::collections::BTreeSet;

use engine::{AttachedDisk, DiskOp};
use metadata::{DeviceFlags, Recovery};
use sim::disk::{Disk, View};
use sim::world::World;
use types::{ExtentIndex, NodeId};

use super::VOLUME;
use super::driver::other;

const BLOCK: u64 = 4096;

/// The activity log at the moment of a power cut. P11: afterwards it says what it said, or what a transaction in flight
/// would have made of it, never a mixture and never that everything is lost.
pub struct WasLogged {
    before: BTreeSet<ExtentIndex>,
    /// `None`: the whole ring was being initialised. Its bits are in the bitmap already, any part of it will do.
    with_transaction: Option<BTreeSet<ExtentIndex>>,
}

impl WasLogged {
    pub fn of(disk: &Disk) -> Result<WasLogged, String> {
        let mut attached = disk.attach(View::Durable)?;
        let before = hot(&attached)?;
        let mut blocks = 0;
        for (_, op) in disk.operations() {
            let DiskOp::MetaWrite { blocks: written, .. } = op else { continue };
            for block in written {
                let Some(index) = ring_index(&attached, block.offset) else { continue };
                attached.al_blocks[index] = *block.bytes;
                blocks += 1;
            }
        }
        let with_transaction = if blocks > 1 { None } else { Some(hot(&attached)?) };
        Ok(WasLogged { before, with_transaction })
    }

    /// `disk`: after the crash.
    pub fn compare(&self, disk: &Disk) -> Result<(), String> {
        let attached = disk.attach(View::Visible).map_err(|e| format!("P11: metadata is unreadable: {e}"))?;
        let Some(with_transaction) = &self.with_transaction else { return Ok(()) };
        let after = hot(&attached)?;
        if after == self.before || after == *with_transaction {
            return Ok(());
        }
        Err(format!(
            "P11: hot extents were {:?}, the transaction in flight made {with_transaction:?} of them, found were {after:?}",
            self.before
        ))
    }
}

fn ring_index(attached: &AttachedDisk, offset: u64) -> Option<usize> {
    let blocks = 0..attached.layout.al_blocks;
    blocks.into_iter().find(|b| attached.layout.al_block(*b) == offset).map(|b| b as usize)
}

fn hot(attached: &AttachedDisk) -> Result<BTreeSet<ExtentIndex>, String> {
    let sb = &attached.superblock;
    match metadata::recover(&attached.al_blocks, sb.al_stripes, sb.al_stripe_4k, sb.al_slots, true) {
        Recovery::Hot { extents, .. } => Ok(extents.into_iter().collect()),
        Recovery::Nothing | Recovery::TornFirst { .. } | Recovery::Clean => Ok(BTreeSet::new()),
        Recovery::MarkEverything { reason } => Err(format!("P11: the activity log is lost: {reason}")),
    }
}

/// What a crashed disk knows to be out of sync. P12: applying the log only adds to it, also when it is cut short.
pub struct Remains {
    blocks: Vec<u64>,
}

impl Remains {
    pub fn of(world: &World, node: NodeId) -> Result<Remains, String> {
        let disk = &world.node(node).disks[&VOLUME];
        let coverage = disk.coverage(View::Visible)?;
        let blocks = (0..disk.data_bytes / BLOCK).filter(|b| coverage.covers(other(node), *b)).collect();
        Ok(Remains { blocks })
    }

    pub fn still_known(&self, world: &World, node: NodeId) -> Result<(), String> {
        let coverage = world.node(node).disks[&VOLUME].coverage(View::Visible)?;
        match self.blocks.iter().find(|b| !coverage.covers(other(node), **b)) {
            None => Ok(()),
            Some(block) => {
                Err(format!("P12: {node:?} knew that block {block} is out of sync, a cut-off restart forgot it"))
            }
        }
    }
}

/// P14: the answer to a demote has come. `equal`: both copies were in sync when it was given.
pub fn demoted(world: &World, node: NodeId, equal: bool) -> Result<(), String> {
    let disk = &world.node(node).disks[&VOLUME];
    let flags = disk.superblock(View::Durable)?.flags;
    if flags.contains(DeviceFlags::PRIMARY_INDICATOR) && !world.node(other(node)).is_primary {
        return Err(format!("P14: {node:?} stepped down, and its disk says {flags:?}"));
    }
    if !equal {
        return Ok(());
    }
    let coverage = disk.coverage(View::Durable)?;
    match (0..disk.data_bytes / BLOCK).find(|b| coverage.covers(other(node), *b)) {
        None => Ok(()),
        Some(block) => Err(format!("P14: {node:?} stepped down in sync, and its disk calls block {block} out of sync")),
    }
}
