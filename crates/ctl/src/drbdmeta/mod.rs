//! `replicactl` called as `drbdmeta`: that program's command line, exit codes, and the lines that scripts read, over the
//! same code as replicactl's own metadata commands. docs/compatibility.md says where it differs.
//!
//! A device is opened exclusively, so that what our daemon or the kernel's DRBD has is refused (exit 20), also with
//! `--force`. Every check comes before the first write.

mod ask;
mod create;
mod gi;
mod held;
mod line;
mod text;

use crate::offline::disk::{DiskError, MetaDevice, OnDisk};
use crate::offline::last_size::{self, LastSize};
use crate::offline::{Applied, apply_log, resize};
use crate::output::{Exit, Output};
use line::{Command, Format, Line};
use metadata::{DeviceFlags, Layout, PeerFlags, Placement, Recovery, Superblock};
use std::path::PathBuf;
use types::NodeId;

/// The name that calls for this command line.
pub const NAME: &str = "drbdmeta";

/// Why a command ends without being done. Nothing was changed, unless a write failed.
#[derive(Debug)]
pub struct Failure {
    pub exit: u8,
    pub message: String,
    pub usage: bool,
}

impl Failure {
    fn new(exit: u8, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), usage: false }
    }
    /// No valid metadata. Newer drbdmeta say 255, Debian 12's says 1.
    fn invalid(error: impl std::fmt::Display) -> Failure {
        Failure::new(1, format!("No valid meta data found: {error}"))
    }
}

impl From<DiskError> for Failure {
    fn from(e: DiskError) -> Failure {
        match &e {
            DiskError::Format(e) => Failure::invalid(e),
            DiskError::Store(store) if e.exit_code() == 20 => Failure::new(20, store.to_string()),
            DiskError::Store(store) => Failure::new(10, store.to_string()),
        }
    }
}

/// `arguments`: without the program's name.
pub fn run(arguments: &[String], output: &mut Output) -> Exit {
    match line::parse(arguments).and_then(|line| command(&line, output)) {
        Ok(exit) => exit,
        Err(failure) => {
            output.remark(&failure.message);
            if failure.usage {
                output.text(line::USAGE);
            }
            Exit(failure.exit)
        }
    }
}

fn command(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    held::check(line, output)?;
    match line.command {
        Command::CreateMd => create::create_md(line, output),
        Command::WipeMd => create::wipe_md(line, output),
        Command::DumpMd => text::dump_md(line, output),
        Command::RestoreMd => text::restore_md(line, output),
        Command::VerifyDump => text::verify_dump(line, output),
        Command::ApplyAl => apply_al(line, output),
        Command::CheckResize => check_resize(line, output),
        Command::GetGi | Command::ShowGi => gi::show(line, output),
        Command::SetGi => gi::set(line, output),
        Command::ForgetPeer => forget_peer(line, output),
        Command::Outdate => outdate(line, output),
        Command::Invalidate => invalidate(line, output),
        Command::Dstate => dstate(line, output),
        Command::ReadDevUuid => read_dev_uuid(line, output),
        Command::WriteDevUuid => write_dev_uuid(line, output),
    }
}

/// The device of the command line, held exclusively from here on.
fn open(line: &Line) -> Result<MetaDevice, Failure> {
    use std::os::unix::fs::FileTypeExt;
    let path = line.device.display();
    let found = std::fs::metadata(&line.device).map_err(|e| Failure::new(20, format!("cannot open {path}: {e}")))?;
    if !found.file_type().is_block_device() && !line.force {
        return Err(Failure::new(20, format!("{path} is no block device; --force takes a file")));
    }
    let device = MetaDevice::alone(&line.device, line.placement, line.command.only_reads())?;
    match metadata::layout::superblock_offset(line.placement, device.size_bytes()) {
        Ok(_) => Ok(device),
        Err(e) => Err(Failure::new(10, e.to_string())),
    }
}

/// Metadata of the format that was asked for.
fn found(line: &Line, device: &MetaDevice) -> Result<OnDisk, Failure> {
    match (device.metadata()?, line.format) {
        (found @ OnDisk::V09(..), Format::V09) | (found @ OnDisk::V08(..), Format::V08) => Ok(found),
        (other, _) => {
            let format = if matches!(other, OnDisk::V08(..)) { "v08" } else { "v09" };
            Err(Failure::invalid(format!("there is {format}, and {} was asked for", line.format.name())))
        }
    }
}

fn superblock(line: &Line, device: &MetaDevice) -> Result<(Superblock, Layout), Failure> {
    match found(line, device)? {
        OnDisk::V09(superblock, layout) => Ok((*superblock, layout)),
        OnDisk::V08(..) => unreachable!("the command line offers this for v09 only"),
    }
}

/// The superblock changes and nothing else.
fn change(
    line: &Line,
    output: &mut Output,
    change: impl FnOnce(&mut Superblock) -> Result<(), Failure>,
) -> Result<Exit, Failure> {
    let device = open(line)?;
    let (mut superblock, layout) = superblock(line, &device)?;
    change(&mut superblock)?;
    device.write_superblock(&superblock.encode(), &layout)?;
    remember(line, &device, superblock.device_uuid, output);
    Ok(Exit::DONE)
}

/// Where drbdmeta remembers it, so that either finds the other's.
fn size_file(line: &Line) -> PathBuf {
    let minor = line.minor.map_or(-1, i64::from);
    PathBuf::from(format!("/var/lib/drbd/drbd-minor-{minor}.lkbd"))
}

fn remember(line: &Line, device: &MetaDevice, device_uuid: u64, output: &mut Output) {
    if line.placement != Placement::Internal {
        return;
    }
    let file = size_file(line);
    let last = LastSize { bytes: device.size_bytes(), device_uuid };
    if last_size::recall(&file) == Some(last) {
        return;
    }
    if let Err(e) = last_size::remember(&file, &line.device, last) {
        output.remark(&format!("cannot remember the size of the device in {}: {e}", file.display()));
    }
}

fn outdate(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    change(line, output, |superblock| {
        if !superblock.flags.contains(DeviceFlags::CONSISTENT) {
            return Err(Failure::new(5, "Device is inconsistent."));
        }
        superblock.flags.set(DeviceFlags::WAS_UP_TO_DATE, false);
        Ok(())
    })
}

fn invalidate(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    change(line, output, |superblock| {
        superblock.flags = superblock.flags.without(DeviceFlags::CONSISTENT.with(DeviceFlags::WAS_UP_TO_DATE));
        superblock.peers.iter_mut().for_each(|peer| peer.flags.set(PeerFlags::FULL_SYNC, true));
        Ok(())
    })
}

/// Never UpToDate: whether it is depends on peers.
fn dstate(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    let (superblock, _) = superblock(line, &open(line)?)?;
    let has = |flag| superblock.flags.contains(flag);
    output.line(match (has(DeviceFlags::CONSISTENT), has(DeviceFlags::WAS_UP_TO_DATE)) {
        (false, _) => "Inconsistent",
        (true, false) => "Outdated",
        (true, true) => "Consistent",
    });
    Ok(Exit::DONE)
}

fn read_dev_uuid(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    let (superblock, _) = superblock(line, &open(line)?)?;
    output.line(&format!("{:016X}", superblock.device_uuid));
    Ok(Exit::DONE)
}

fn write_dev_uuid(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    let uuid = gi::hex(line.required_argument()?)?;
    change(line, output, |superblock| {
        superblock.device_uuid = uuid;
        Ok(())
    })
}

fn apply_al(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    let device = open(line)?;
    let last = last_size::recall(&size_file(line)).filter(|last| last.bytes < device.size_bytes());
    if line.format == Format::V09 && line.placement == Placement::Internal && last.is_some() {
        // Where it cannot move, there is none, which the next line says.
        if let Ok(moved @ resize::Resized::Moved { .. }) = resize::check_resize(&device, last) {
            output.remark(&moved.to_string());
        }
    }
    let metadata = found(line, &device)?;
    match apply_log(&device, &metadata)? {
        Applied::WasClean => {}
        Applied::Now { recovery: Recovery::MarkEverything { reason }, .. } => {
            output.remark(&format!("everything marked out of sync: {reason}"));
        }
        Applied::Now { newly_bytes: 0, .. } => {}
        Applied::Now { newly_bytes, .. } => {
            output.remark(&format!("{} MiB marked out of sync, which the activity log had hot", newly_bytes >> 20));
        }
    }
    remember(line, &device, metadata.as_v09().0.device_uuid, output);
    Ok(Exit::DONE)
}

fn check_resize(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    if line.placement != Placement::Internal {
        return Err(Failure::new(1, "external metadata does not move with the size of the device"));
    }
    let device = open(line)?;
    let resized = match resize::check_resize(&device, last_size::recall(&size_file(line))) {
        Ok(resized) => resized,
        Err(resize::Unmoved::Disk(e)) => return Err(e.into()),
        Err(e) => return Err(Failure::new(1, e.to_string())),
    };
    if let resize::Resized::Moved { .. } = resized {
        output.line("Internal drbd meta data successfully moved.");
    }
    remember(line, &device, resized.device_uuid(), output);
    Ok(Exit::DONE)
}

/// The slot becomes one that collects for a peer yet to come: it gets the bits of another such slot besides its own, and
/// where there is none all of them. They are durable before the record says so.
fn forget_peer(line: &Line, output: &mut Output) -> Result<Exit, Failure> {
    let node = line.node_id()?;
    let device = open(line)?;
    let (mut superblock, layout) = superblock(line, &device)?;
    let mut strangers = NodeId::all().filter(|n| Some(*n) != superblock.node_id && *n != node);
    let day0 = strangers.find(|n| superblock.peer(*n).is_day0()).map(|n| *superblock.peer(n)).unwrap_or_default();
    if let Some(slot) = superblock.peer(node).slot {
        let mut bitmap = device.bitmap(&superblock, &layout)?;
        match superblock.lowest_free_slot() {
            Some(free) => bitmap.merge_slot(free, slot),
            None => _ = bitmap.set_all(slot),
        }
        device.write_bits(&layout, &bitmap)?;
    }
    *superblock.peer_mut(node) = day0;
    device.write_superblock(&superblock.encode(), &layout)?;
    remember(line, &device, superblock.device_uuid, output);
    Ok(Exit::DONE)
}
