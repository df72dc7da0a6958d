//! The line of generation identifiers: four UUIDs, seven flags of the device, five of the peer, with colons between.

use super::ask::confirmed;
use super::{Command, Failure, Line, open, remember, superblock};
use crate::offline::gi;
use crate::output::{Exit, Output};
use metadata::Superblock;
use types::{NodeId, Uuid};

pub fn show(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    let node = line.node_id()?;
    let (superblock, _) = superblock(line, &open(line)?)?;
    if line.command == Command::ShowGi {
        let volume = line.device.display().to_string();
        output.text(&gi::explained(&volume, &superblock, node, "its peer"));
    }
    output.line(&gi::line(&superblock, node));
    Ok(Exit::DONE)
}

/// Asks; a no is exit 0, as with drbdmeta.
pub fn set(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    let node = line.node_id()?;
    let given = line.required_argument()?;
    let device = open(line)?;
    let (mut superblock, layout) = superblock(line, &device)?;
    let before = gi::line(&superblock, node);
    apply(&mut superblock, node, given)?;
    output.line(&format!("previously {before}"));
    output.line(&format!("set GI to  {}", gi::line(&superblock, node)));
    if !confirmed(line, "Write the new identifiers to the metadata?") {
        output.line("Operation canceled.");
        return Ok(Exit::DONE);
    }
    device.write_superblock(&superblock.encode(), &layout)?;
    remember(line, &device, superblock.device_uuid, output);
    Ok(Exit::DONE)
}

/// An empty or missing field keeps what is there; what is behind the last is ignored.
fn apply(superblock: &mut Superblock, node: NodeId, given: &str) -> Result<(), Failure> {
    let mut fields = given.split(':').map(str::trim);
    let mut uuid = |present: &mut Uuid| {
        if let Some(field) = fields.next().filter(|field| !field.is_empty()) {
            *present = Uuid(hex(field)?);
        }
        Ok::<(), Failure>(())
    };
    uuid(&mut superblock.current_uuid)?;
    uuid(&mut superblock.peer_mut(node).bitmap_uuid)?;
    uuid(&mut superblock.history[0])?;
    uuid(&mut superblock.history[1])?;
    let mut flag = || match fields.next() {
        None | Some("") => Ok(None),
        Some("0") => Ok(Some(false)),
        Some("1") => Ok(Some(true)),
        Some(other) => Err(Failure::new(10, format!("`{other}` is no flag: 0 or 1"))),
    };
    for (bit, _) in gi::DEVICE {
        if let Some(on) = flag()? {
            superblock.flags.set(bit, on);
        }
    }
    for (bit, _) in gi::PEER {
        if let Some(on) = flag()? {
            superblock.peer_mut(node).flags.set(bit, on);
        }
    }
    Ok(())
}

/// 64 bits, with or without 0x.
pub fn hex(text: &str) -> Result<u64, Failure> {
    let digits = text.trim_start_matches("0x");
    let value = u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'));
    value.ok_or_else(|| Failure::new(10, format!("`{text}` is no number of 1 to 16 hex digits")))
}
