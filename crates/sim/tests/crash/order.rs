//! What has to be durable before a write is given to a disk: the rules of persistence order whose breach an outcome
//! shows only now and then.
//!
//! Looks, after every event, at the data writes that the event gave to a disk, and at that disk as a power cut would
//! leave it if nothing unflushed survived:
//! - P1: every extent of a write of the application is hot; of a peer's write too where the node keeps a log (AL-5);
//! - P3: the superblock names the generation and the slots' generations that the engine claims;
//! - P4: the primary indicator is set;
//! - P5: a target of a resync says Inconsistent.
//!
//! Does not look at writes that were in flight when a rule began to hold, nor at what is sent to a peer.

use std::collections::BTreeSet;

use engine::{DiskOp, Status};
use metadata::{DeviceFlags, Recovery};
use sim::disk::{Disk, View};
use sim::world::World;
use types::{ByteRange, IoId, NodeId, ReplicationState, Role};

use super::driver::other;
use super::{A, B, VOLUME};

#[derive(Default)]
pub struct Order {
    seen: [BTreeSet<IoId>; 2],
}

impl Order {
    pub fn look(&mut self, world: &World) -> Result<(), String> {
        for id in [A, B] {
            let disk = &world.node(id).disks[&VOLUME];
            let before = std::mem::replace(&mut self.seen[id.index()], disk.operations().map(|(io, _)| io).collect());
            let Some(status) = world.status_if(|| disk.operations().any(|(io, _)| !before.contains(&io)), id) else {
                continue;
            };
            for (_, op) in disk.operations().filter(|(io, _)| !before.contains(io)) {
                let Some(range) = changed_by(op) else { continue };
                check(disk, &status, id, range).map_err(|e| format!("{id:?} writes {range:?}: {e}"))?;
            }
        }
        Ok(())
    }
}

trait StatusIf {
    fn status_if(&self, wanted: impl FnOnce() -> bool, id: NodeId) -> Option<Status>;
}
impl StatusIf for World {
    /// A status costs more than all the rest of a look.
    fn status_if(&self, wanted: impl FnOnce() -> bool, id: NodeId) -> Option<Status> {
        if wanted() { self.status(id) } else { None }
    }
}

fn changed_by(op: &DiskOp) -> Option<ByteRange> {
    match op {
        DiskOp::Write { range, .. } | DiskOp::Discard { range } | DiskOp::WriteZeroes { range, .. } => Some(*range),
        DiskOp::Read { .. } | DiskOp::ReadInto { .. } | DiskOp::Flush | DiskOp::MetaWrite { .. } => None,
    }
}

fn check(disk: &Disk, status: &Status, id: NodeId, range: ByteRange) -> Result<(), String> {
    let attached = disk.attach(View::Durable)?;
    let sb = &attached.superblock;
    let (volume, peer) = (&status.volumes[&VOLUME], &status.peers[&other(id)]);
    let device = &peer.volumes[&VOLUME];
    if !sb.current_uuid.same(volume.current_uuid) {
        return Err(format!("P3: durable is generation {}, the engine's is {}", sb.current_uuid, volume.current_uuid));
    }
    let slot = sb.peer(other(id)).bitmap_uuid;
    if !slot.same(device.bitmap_uuid) {
        return Err(format!("P3: durable is slot {slot}, the engine's is {}", device.bitmap_uuid));
    }
    let target = matches!(device.replication, ReplicationState::SyncTarget | ReplicationState::PausedSyncT);
    if target && sb.flags.contains(DeviceFlags::CONSISTENT) {
        return Err("P5: a target of a resync is consistent".into());
    }
    if status.role != Role::Primary && peer.role != Role::Primary {
        return Ok(());
    }
    if !sb.flags.contains(DeviceFlags::PRIMARY_INDICATOR) {
        return Err("P4: the primary indicator is not durable".into());
    }
    // A target's writes are the resync's or a peer's, and the resync needs no log.
    if target || sb.flags.contains(DeviceFlags::AL_DISABLED) {
        return Ok(());
    }
    let recovery = metadata::recover(&attached.al_blocks, sb.al_stripes, sb.al_stripe_4k, sb.al_slots, true);
    match recovery {
        Recovery::Hot { extents, .. } if range.extents().all(|e| extents.contains(&e)) => Ok(()),
        other => Err(format!("P1: the durable activity log says {other:?}")),
    }
}
