//! `create-md` and `wipe-md`.

use super::ask::confirmed;
use super::{Failure, Line, found, open, remember};
use crate::offline::disk::{DiskError, MetaDevice, OnDisk};
use crate::output::{Exit, Output};
use metadata::{Found, Layout, Placement, Superblock, SuperblockV08};

pub fn create_md(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    let Some(argument) = &line.argument else {
        return Err(Failure::new(20, "create-md needs the number of peers, 1 to 31"));
    };
    let max_peers = argument.parse().ok().filter(|n| (1..=31).contains(n));
    let max_peers = max_peers.ok_or_else(|| Failure::new(20, format!("`{argument}` peers: must be 1 to 31")))?;
    let geometry = line.geometry(max_peers)?;
    let peer_max_io_bytes = line.peer_max_io_bytes()?;
    let device = open(line)?;
    let layout = Layout::compute(line.placement, device.size_bytes(), geometry);
    let layout = layout.map_err(|e| Failure::new(10, e.to_string()))?;
    match device.metadata() {
        Ok(OnDisk::V08(v08, layout)) => return convert(line, &device, (v08, layout), max_peers, output),
        Ok(OnDisk::V09(..)) => {
            let place = layout.superblock;
            let path = line.device.display();
            if !confirmed(line, &format!("{path} has metadata v09 at byte {place}. Really overwrite it?")) {
                return cancelled(output);
            }
        }
        Err(DiskError::Format(_)) => {
            if !others_may_go(line, &device, &layout)? {
                return cancelled(output);
            }
        }
        Err(e) => return Err(e.into()),
    }
    output.line("initializing activity log");
    output.line("Writing meta data...");
    let superblock = Superblock { peer_max_io_bytes, ..Superblock::fresh(geometry, &layout) };
    device.write_all(&superblock.encode(), &layout, &[])?;
    remember(line, &device, superblock.device_uuid, output);
    output.line("New drbd meta data block successfully created.");
    Ok(Exit::DONE)
}

fn cancelled(output: &mut Output) -> Result<Exit, Failure> {
    output.line("Operation cancelled.");
    Ok(Exit::FAILED)
}

/// Whatever else is on the device. A file system that reaches into the metadata is refused, as it would be cut off.
fn others_may_go(line: &Line, device: &MetaDevice, layout: &Layout) -> Result<bool, Failure> {
    let path = line.device.display();
    let found = device.occupants()?;
    let first_byte = match line.placement {
        Placement::Internal => layout.usable_bytes,
        Placement::External | Placement::Indexed(_) => layout.superblock,
    };
    let file_system = device.file_system_bytes()?.filter(|_| found.iter().any(|f| matches!(f, Found::Other { .. })));
    if let Some(bytes) = file_system.filter(|bytes| *bytes > first_byte) {
        let text = format!(
            "{path} has a file system of {bytes} bytes, and the metadata would start at byte {first_byte}: shrink the file \
             system, enlarge the device, or use external metadata (erase it, if it is of no use: wipefs)"
        );
        return Err(Failure::new(40, text));
    }
    if found.is_empty() {
        return Ok(true);
    }
    let names: Vec<String> = found.iter().map(ToString::to_string).collect();
    Ok(confirmed(line, &format!("{path} has {}. Go on and write metadata?", names.join(" and "))))
}

/// As drbdmeta does it: the bitmap keeps its place, and the slot belongs to nobody. `replicactl create-md` knows the nodes
/// and keeps the bitmap's generation, too.
fn convert(
    line: &Line,
    device: &MetaDevice,
    (v08, layout): (SuperblockV08, Layout),
    max_peers: u8,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let path = line.device.display();
    if v08.unclean() {
        let text = format!("{path} has metadata v08 whose activity log is not applied; apply-al with format v08 first");
        return Err(Failure::new(1, text));
    }
    let question = format!(
        "{path} has metadata v08. Convert it to v09? The peer will need a full sync; `replicactl create-md --force` \
         converts without"
    );
    if !confirmed(line, &question) {
        return cancelled(output);
    }
    if max_peers > 1 {
        output.line(&format!("Warning: setting max_peers to 1 instead of {max_peers}"));
    }
    output.line("Writing meta data...");
    let converted = v08.convert(None);
    device.write_applied(&converted.encode(), &layout, None)?;
    remember(line, device, converted.device_uuid, output);
    output.line("New drbd meta data block successfully created.");
    Ok(Exit::DONE)
}

pub fn wipe_md(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    let device = open(line)?;
    let layout = match found(line, &device) {
        Ok(found) => *found.as_v09().1,
        Err(failure) if failure.exit == 1 => {
            output.remark("There appears to be no drbd meta data to wipe out?");
            return Ok(Exit::DONE);
        }
        Err(failure) => return Err(failure),
    };
    let question = format!("Really wipe the metadata on {}? It says which blocks differ.", line.device.display());
    if !confirmed(line, &question) {
        return cancelled(output);
    }
    output.line("Wiping meta data...");
    device.write_superblock(&[0; metadata::BLOCK_BYTES], &layout)?;
    output.line("DRBD meta data block successfully wiped out.");
    Ok(Exit::DONE)
}
