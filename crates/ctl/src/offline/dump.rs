//! Metadata as text: `dump-md` and `restore-md`, of v09 and of DRBD 8's v08.

use super::disk::DiskError;
use super::{LocalVolume, done, refuse_occupied, volumes};
use crate::args::Global;
use crate::online::utc;
use crate::output::{Exit, Output};
use control::Target;
use metadata::{AnyDump, Block, DeviceFlags, DumpOptions, DumpV08, FormatError, Layout, Placement};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::SystemTime;

pub fn dump_md(volume: &LocalVolume, force: bool, output: &mut Output) -> Exit {
    match dump_text(volume, force) {
        Ok(Some(text)) => output.text(&text),
        Ok(None) => {
            let text = format!(
                "{}: the activity log is not applied, so the bitmap misses blocks; run `replicactl apply-al {0}` first, \
                 or look at it with --force",
                volume.name()
            );
            return output.error(Exit(255), text);
        }
        Err(e) => return volume.failed(&e, output),
    }
    Exit::DONE
}

/// `None`: unclean and not forced.
fn dump_text(volume: &LocalVolume, force: bool) -> Result<Option<String>, DiskError> {
    let device = volume.open(true)?;
    let found = device.metadata()?;
    if !found.is_clean() && !force {
        return Ok(None);
    }
    let (superblock, layout) = found.as_v09();
    let bitmap = device.bitmap(&superblock, layout)?;
    let command = format!("{}> replicactl dump-md {}", volume.resource.node.name, volume.name());
    // drbdmeta before 9.27 refuses the member mask: only what has one says so.
    let members = superblock.members != 0;
    let options = DumpOptions { time: &utc(SystemTime::now()), command: &command, members };
    Ok(Some(found.dump(options, &bitmap)))
}

/// A dump belongs to one volume.
pub fn restore_command(target: &Target, file: &Path, force: bool, global: &Global, output: &mut Output) -> Exit {
    let volumes = match volumes(target, global, output) {
        Ok(volumes) => volumes,
        Err(exit) => return exit,
    };
    let [volume] = &volumes[..] else {
        let text = format!("{target} has {} volumes with a disk; name one, as in {}", volumes.len(), volumes[0].name());
        return output.error(Exit::USAGE, text);
    };
    let text = match read_dump(file) {
        Ok(text) => text,
        Err(e) => {
            return output.error(Exit::FAILED, format!("cannot read the dump {}: {e}", file.display()));
        }
    };
    let dump = match metadata::parse_any_dump(&text) {
        Ok(dump) => dump,
        Err(e) => {
            return output.error(Exit(10), format!("{} is no dump of metadata: {e}", file.display()));
        }
    };
    restore_md(volume, &dump, force, output)
}

/// `/dev/zero` and its kin have no end.
pub fn read_dump(file: &Path) -> io::Result<String> {
    if std::fs::metadata(file)?.file_type().is_char_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a device; give a file, or a pipe"));
    }
    std::fs::read_to_string(file)
}

fn restore_md(volume: &LocalVolume, dump: &AnyDump, force: bool, output: &mut Output) -> Exit {
    let device = match volume.open(false) {
        Ok(device) => device,
        Err(e) => return volume.failed(&e, output),
    };
    let restored = match Restored::of(dump, device.placement, device.size_bytes()) {
        Ok(restored) => restored,
        Err(e) => return volume.failed(&DiskError::Format(e), output),
    };
    if let Some(exit) = refuse_occupied(volume, &device, force, "restore-md", output) {
        return exit;
    }
    if let AnyDump::V08(DumpV08 { flags: DeviceFlags(0), .. }) = dump {
        output.remark(&format!(
            "{}: the dump has no flags, as every dump of v08 by drbdmeta 9.22: the disk will be Inconsistent",
            volume.name()
        ));
    }
    match device.write_all(&restored.superblock, &restored.layout, &restored.bitmap) {
        Ok(()) => {
            volume.remember(&device, restored.device_uuid, output);
            done(volume, "metadata restored", output)
        }
        Err(e) => volume.failed(&e, output),
    }
}

/// What is written, whatever its format.
pub struct Restored {
    pub superblock: Block,
    pub device_uuid: u64,
    pub layout: Layout,
    pub bitmap: Vec<u8>,
}

impl Restored {
    fn new(superblock: Block, device_uuid: u64, layout: Layout, bitmap: Vec<u8>) -> Restored {
        Restored { superblock, device_uuid, layout, bitmap }
    }
    pub fn of(dump: &AnyDump, placement: Placement, device_bytes: u64) -> Result<Restored, FormatError> {
        Ok(match dump {
            AnyDump::V08(dump) => {
                let r = metadata::restore_v08(dump, placement, device_bytes)?;
                Restored::new(r.superblock.encode(), dump.device_uuid, r.layout, r.bitmap)
            }
            AnyDump::V09(dump) => {
                let r = metadata::restore(dump, placement, device_bytes)?;
                Restored::new(r.superblock.encode(), dump.device_uuid, r.layout, r.bitmap)
            }
        })
    }
}
