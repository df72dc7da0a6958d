//! Between the metadata of DRBD 8 (v08) and v09, in place: `create-md --force` on a disk with v08, and
//! `create-md --format v08 --force` on one with v09. Generations, bits and the data stay, so the node that moves, there or
//! back, needs no full sync.

use super::LocalVolume;
use super::disk::{DiskError, MetaDevice, OnDisk};
use crate::output::{Exit, Output};
use control::Response;
use metadata::{Geometry, Inexpressible, Layout, Superblock, SuperblockV08, rewrite};
use types::{NodeId, Slot};

/// What `create-md` finds on a volume before it writes to any.
pub enum Before {
    Convertible(Box<Conversion>),
    /// v08 that does not become v09 now: why.
    Refused(Box<Response>),
    V09,
    /// None, or damaged beyond use.
    Neither,
}

/// A disk with v08, held, and the v09 superblock that it is to have.
pub struct Conversion {
    device: MetaDevice,
    layout: Layout,
    superblock: Superblock,
}

pub fn look(volume: &LocalVolume, max_peers: Option<u8>, force: bool) -> Result<Before, DiskError> {
    let device = volume.open(false)?;
    let (v08, layout) = match device.metadata() {
        Ok(OnDisk::V08(v08, layout)) => (v08, layout),
        Ok(OnDisk::V09(..)) => return Ok(Before::V09),
        // Damaged: nothing to convert. What is there is overwritten with --force, like anything else.
        Err(DiskError::Format(_)) => return Ok(Before::Neither),
        Err(e) => return Err(e),
    };
    let path = device.device().path().display().to_string();
    let refused =
        |rule: &str, message: String, next: &str| Ok(Before::Refused(Box::new(refusal(volume, rule, message, next))));
    if v08.unclean() {
        let message = format!("{path} holds DRBD metadata v08 whose activity log is not applied");
        let next = format!("`replicactl apply-al {}`, then again", volume.name());
        return refused("apply-al-first", message, &next);
    }
    let peer = match peers(volume).as_slice() {
        [peer] if max_peers.is_none_or(|n| n == 1) => *peer,
        others => {
            let message = format!(
                "{path} holds DRBD metadata v08, which converts to one bitmap slot; {} were asked for",
                max_peers.map_or(others.len(), usize::from)
            );
            let next = "convert it with a configuration of the two nodes that share it, without --max-peers; for fresh \
                        metadata erase the old one first (`wipefs -a -t drbd`)";
            return refused("one-slot", message, next);
        }
    };
    if !force {
        let message = format!("{path} holds DRBD metadata v08");
        let next = "repeat with --force to convert it to v09 in place: data, generations and bits stay";
        return refused("disk-not-empty", message, next);
    }
    let superblock = v08.convert(Some((volume.resource.node.id, peer)));
    Ok(Before::Convertible(Box::new(Conversion { device, layout, superblock })))
}

/// Whether volumes of one resource are to be converted rather than made anew: one has v08, or may have it beside one with v09.
pub fn is_wanted(found: &[Result<Before, DiskError>]) -> bool {
    let any = |is: fn(&Result<Before, DiskError>) -> bool| found.iter().any(is);
    any(|found| matches!(found, Ok(Before::Convertible(_) | Before::Refused(_))))
        || any(Result::is_err) && any(|found| matches!(found, Ok(Before::V09)))
}

/// All of these volumes are v09 afterwards, or nothing was written. What an earlier call converted stays: made anew, as
/// --force does otherwise, it would need a full sync.
pub fn together(volumes: &[LocalVolume], found: Vec<Result<Before, DiskError>>, output: &mut Output) -> Exit {
    let ready = |found: &Result<Before, DiskError>| matches!(found, Ok(Before::Convertible(_) | Before::V09));
    if !found.iter().all(ready) {
        let hold_back = |exit: Exit, (volume, found)| exit.and(held_back(volume, found, output));
        return volumes.iter().zip(found).fold(Exit::DONE, hold_back);
    }
    let mut write = |volume: &LocalVolume, found| match found {
        Ok(Before::Convertible(conversion)) => conversion.write(volume, output),
        _ => super::done(volume, "the metadata is v09 already; nothing was changed", output),
    };
    volumes.iter().zip(found).fold(Exit::DONE, |exit, (volume, found)| exit.and(write(volume, found)))
}

impl Conversion {
    fn write(&self, volume: &LocalVolume, output: &mut Output) -> Exit {
        let path = self.device.device().path().display().to_string();
        match self.device.write_applied(&self.superblock.encode(), &self.layout, None) {
            Ok(()) => tell(volume, &path, &self.layout, ("v08", "v09"), output),
            Err(e) => volume.failed(&e, output),
        }
    }
}

fn held_back(volume: &LocalVolume, found: Result<Before, DiskError>, output: &mut Output) -> Exit {
    let together = |message: &str, next: &str, output: &mut Output| {
        refuse(volume, "volumes-together", message.into(), next, output)
    };
    match found {
        Err(e) => volume.failed(&e, output),
        Ok(Before::Refused(response)) => told(&response, output),
        Ok(Before::Convertible(_)) => together(
            "another volume of the resource cannot be converted now; nothing was changed",
            "see what is said of that one, then again",
            output,
        ),
        Ok(Before::V09) => Exit::DONE,
        Ok(Before::Neither) => together(
            "there is no DRBD metadata, but another volume of the resource has v08; nothing was changed",
            "check disk and meta-disk; if this volume is new, convert the others by name and give it fresh metadata by its own",
            output,
        ),
    }
}

fn refuse(volume: &LocalVolume, rule: &str, message: String, next: &str, output: &mut Output) -> Exit {
    told(&refusal(volume, rule, message, next), output)
}

fn refusal(volume: &LocalVolume, rule: &str, message: String, next: &str) -> Response {
    Response::Refused {
        object: volume.name(),
        code: 0,
        rule: rule.into(),
        state: String::new(),
        message,
        next_step: Some(next.into()),
    }
}

fn told(response: &Response, output: &mut Output) -> Exit {
    output.failure(response);
    Exit(response.exit_code())
}

fn peers(volume: &LocalVolume) -> Vec<NodeId> {
    let mine = volume.resource.node.id;
    volume.resource.node_names.keys().copied().filter(|id| *id != mine).collect()
}

fn tell(volume: &LocalVolume, path: &str, layout: &Layout, (from, to): (&str, &str), output: &mut Output) -> Exit {
    if output.json {
        output.json_line(&serde_json::json!({
            "result": "done", "object": volume.name(), "device": path, "max-peers": 1, "converted-from": from,
            "superblock": layout.superblock, "usable-bytes": layout.usable_bytes,
        }));
    } else {
        output.line(&format!(
            "{}: metadata {from} on {path} converted to {to} (superblock at byte {})",
            volume.name(),
            layout.superblock
        ));
    }
    Exit::DONE
}

/// `create-md --format v08`: the way back. On v09 metadata only; what is v08 already stays.
pub fn back_to_v08(volume: &LocalVolume, max_peers: Option<u8>, force: bool, output: &mut Output) -> Exit {
    let device = match volume.open(false) {
        Ok(device) => device,
        Err(e) => return volume.failed(&e, output),
    };
    let (superblock, layout) = match device.metadata() {
        Ok(OnDisk::V08(..)) => return super::done(volume, "the metadata is v08 already; nothing was changed", output),
        Ok(OnDisk::V09(superblock, layout)) => (superblock, layout),
        Err(e) => return volume.failed(&e, output),
    };
    let path = device.device().path().display().to_string();
    let peer = match peers(volume).as_slice() {
        [peer] if max_peers.is_none_or(|n| n == 1) => *peer,
        others => {
            let message = format!(
                "metadata v08 is for two nodes, with one bitmap slot; {} were asked for",
                max_peers.map_or(others.len(), usize::from)
            );
            let next = "convert it with a configuration of the two nodes that share it, without --max-peers";
            return refuse(volume, "one-slot", message, next, output);
        }
    };
    let geometry = Geometry { max_peers: 1, ..superblock.geometry() };
    let layout_v08 = match Layout::compute(device.placement, device.size_bytes(), geometry) {
        Ok(layout) => layout,
        Err(e) => return volume.failed(&DiskError::Format(e), output),
    };
    let nodes = (volume.resource.node.id, peer);
    let (converted, slot) = match SuperblockV08::from_v09(&superblock, nodes, &layout_v08) {
        Ok(converted) => converted,
        Err(e) => {
            let message = format!("the metadata on {path} cannot become v08: {e}");
            return refuse(volume, rule(&e), message, &next_step(volume, &e), output);
        }
    };
    if !force {
        let message = format!("{path} holds DRBD metadata v09");
        let next = "repeat with --force to convert it to v08 in place: data, generations and bits stay";
        return refuse(volume, "disk-not-empty", message, next, output);
    }
    match write_v08(&device, (&superblock, &layout), (&converted, slot), &layout_v08) {
        Ok(()) => tell(volume, &path, &layout_v08, ("v09", "v08"), output),
        Err(e) => volume.failed(&e, output),
    }
}

/// With one slot the bitmap lies where it did and only the superblock is written.
fn write_v08(
    device: &MetaDevice,
    (old, old_layout): (&Superblock, &Layout),
    (new, slot): (&SuperblockV08, Slot),
    new_layout: &Layout,
) -> Result<(), DiskError> {
    let bitmap = match old.max_peers {
        1 => None,
        _ => Some(device.bitmap(old, old_layout)?.slot_alone(slot)),
    };
    device.rewrite(&rewrite::to_v08(old, new, new_layout, bitmap.as_ref()))
}

fn rule(error: &Inexpressible) -> &'static str {
    match error {
        Inexpressible::LogNotApplied => "apply-al-first",
        Inexpressible::BitmapBlock { .. } => "bitmap-block-size",
        Inexpressible::OtherNode { .. } => "node-id",
        Inexpressible::OtherPeers { .. } => "one-peer",
        Inexpressible::NoSlot => "no-slot",
    }
}

fn next_step(volume: &LocalVolume, error: &Inexpressible) -> String {
    match error {
        Inexpressible::LogNotApplied => format!("`replicactl apply-al {}`, then again", volume.name()),
        Inexpressible::BitmapBlock { .. } => {
            "make v08 metadata anew with DRBD 8.4's `drbdadm create-md`; the node then needs a full sync".into()
        }
        Inexpressible::OtherNode { .. } => "convert it on that node, or correct node-id in the configuration".into(),
        Inexpressible::OtherPeers { .. } => {
            "take them out of the configuration and forget them (`drbdmeta ... forget-peer --node-id N`), then again"
                .into()
        }
        Inexpressible::NoSlot => {
            format!("`replicactl up {0}` and `down {0}` give it one, then again", volume.resource.name)
        }
    }
}
