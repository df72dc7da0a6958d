//! Metadata commands: work on the disks that the configuration gives to this node, without the daemon. A disk that the
//! daemon holds is refused by the exclusive open.

mod convert;
mod disk;
mod gi;

use crate::args::{Cmd, Global, One};
use crate::client::ClientError;
use crate::online::utc;
use crate::output::{Exit, Output};
use config::{Config, LocalResource, Volume};
use control::{Response, Target};
use disk::{DiskError, MetaDevice};
use metadata::{Bitmap, DeviceFlags, DumpOptions, Geometry, Layout, Superblock};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::SystemTime;

/// `None`: not a command of this room.
pub fn run(cmd: &Cmd, global: &Global, output: &mut Output) -> Option<Exit> {
    Some(match cmd {
        Cmd::CreateMd { target, max_peers, force } => {
            each(target, global, output, |volume, output| create_md(volume, *max_peers, *force, output))
        }
        Cmd::DumpMd { target, force } => each(target, global, output, |volume, output| dump_md(volume, *force, output)),
        Cmd::RestoreMd { target, file, force } => restore_command(target, file, *force, global, output),
        Cmd::ApplyAl(One { target }) => each(target, global, output, apply_al),
        _ => return None,
    })
}

/// What the metadata can answer while no daemon runs.
pub fn fallback(cmd: &Cmd, global: &Global, output: &mut Output, error: &ClientError) -> Option<Exit> {
    let (target, explain) = match cmd {
        Cmd::GetGi(One { target }) => (target, false),
        Cmd::ShowGi(One { target }) => (target, true),
        _ => return None,
    };
    let ClientError::Connect { source, .. } = error else { return None };
    if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        return None;
    }
    Some(each(target, global, output, |volume, output| {
        let device = match volume.open(true) {
            Ok(device) => device,
            Err(e) => return volume.failed(&e, output),
        };
        match device.superblock() {
            Ok((superblock, _)) => gi::show(volume, &superblock, target.peer.as_deref(), explain, output),
            Err(e) => volume.failed(&e, output),
        }
    }))
}

/// One volume of this node that has a disk.
pub struct LocalVolume {
    pub resource: LocalResource,
    pub volume: Volume,
}

impl LocalVolume {
    /// `r0/0`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.resource.name, self.volume.number)
    }
    fn open(&self, read_only: bool) -> Result<MetaDevice, DiskError> {
        let disk = self.volume.disk.path().expect("diskless volumes were left out");
        MetaDevice::open(disk, &self.volume.meta_disk, read_only)
    }
    fn failed(&self, error: &DiskError, output: &mut Output) -> Exit {
        let hint = match error {
            // The other reasons come with their own next step.
            DiskError::Store(e) if e.kind == store::StoreErrorKind::InUse && !e.detail.contains("mounted") => {
                "; `replicactl down` or `detach` gives it up if replicad holds it"
            }
            _ => "",
        };
        output.error(Exit(error.exit_code()), format!("{}: {error}{hint}", self.name()))
    }
}

/// Runs `command` on every volume the target names; the highest exit code wins, all are tried.
fn each(
    target: &Target,
    global: &Global,
    output: &mut Output,
    mut command: impl FnMut(&LocalVolume, &mut Output) -> Exit,
) -> Exit {
    let volumes = match volumes(target, global, output) {
        Ok(volumes) => volumes,
        Err(exit) => return exit,
    };
    volumes.iter().fold(Exit::DONE, |exit, volume| exit.and(command(volume, output)))
}

fn volumes(target: &Target, global: &Global, output: &mut Output) -> Result<Vec<LocalVolume>, Exit> {
    let resources = local_resources(global).map_err(|message| output.error(Exit::USAGE, message))?;
    let unknown = |object: String, message: String, output: &mut Output| {
        let response = Response::Unknown { object, message, next_step: None };
        output.failure(&response);
        Exit(response.exit_code())
    };
    let known: Vec<String> = resources.iter().map(|r| r.name.clone()).collect();
    let mut found = Vec::new();
    for resource in resources {
        if target.resource.as_ref().is_some_and(|name| *name != resource.name) {
            continue;
        }
        for volume in resource.volumes() {
            if target.volume.is_none_or(|number| number == volume.number.get()) && volume.disk.path().is_some() {
                found.push(LocalVolume { resource: resource.clone(), volume: volume.clone() });
            }
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let message = match &target.resource {
        Some(name) if !known.contains(name) => {
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            format!("`{name}` is not in the configuration of this node; there are: {known}")
        }
        _ => format!("{target} has no local disk: the configuration gives none to this node"),
    };
    Err(unknown(target.to_string(), message, output))
}

fn local_resources(global: &Global) -> Result<Vec<LocalResource>, String> {
    let config = Config::load(&global.config).map_err(|e| e.to_string())?;
    let node = match &global.node {
        Some(node) => node.clone(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map_err(|e| format!("cannot find out the host name: {e}; give it with --node"))?
            .trim()
            .to_string(),
    };
    config.for_node(&node).map_err(|e| e.to_string())
}

fn create_md(volume: &LocalVolume, max_peers: Option<u8>, force: bool, output: &mut Output) -> Exit {
    let device = match volume.open(false) {
        Ok(device) => device,
        Err(e) => return volume.failed(&e, output),
    };
    let others = volume.resource.node_names.len() - 1;
    let geometry = Geometry::new(max_peers.unwrap_or(others.clamp(1, 31) as u8));
    let layout = match Layout::compute(device.placement, device.size_bytes(), geometry) {
        Ok(layout) => layout,
        Err(e) => {
            return output.error(Exit::FAILED, format!("{}: {}: {e}", volume.name(), device.device().path().display()));
        }
    };
    match convert::create_over_v08(volume, &device, max_peers, force, output) {
        Ok(None) => {}
        Ok(Some(exit)) => return exit,
        Err(e) => return volume.failed(&e, output),
    }
    if let Some(exit) = refuse_occupied(volume, &device, force, "create-md", output) {
        return exit;
    }
    let mut superblock = Superblock::fresh(geometry, &layout);
    superblock.device_uuid = match random() {
        Ok(number) => number,
        Err(e) => return output.error(Exit::FAILED, format!("{}: no random numbers: {e}", volume.name())),
    };
    if let Err(e) = device.write_all(&superblock, &layout, &[]) {
        return volume.failed(&e, output);
    }
    let path = device.device().path().display().to_string();
    if output.json {
        output.json_line(&serde_json::json!({
            "result": "done", "object": volume.name(), "device": path, "max-peers": geometry.max_peers,
            "superblock": layout.superblock, "usable-bytes": layout.usable_bytes,
        }));
    } else {
        output.line(&format!(
            "{}: metadata for {} peer{} written to {path} (superblock at byte {}, {} bytes usable)",
            volume.name(),
            geometry.max_peers,
            if geometry.max_peers == 1 { "" } else { "s" },
            layout.superblock,
            layout.usable_bytes
        ));
    }
    Exit::DONE
}

/// `Some`: something is there and `--force` was not given.
fn refuse_occupied(
    volume: &LocalVolume,
    device: &MetaDevice,
    force: bool,
    command: &str,
    output: &mut Output,
) -> Option<Exit> {
    let found = match device.occupants() {
        Ok(found) if found.is_empty() => return None,
        Ok(found) => found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
        Err(e) => return Some(volume.failed(&e, output)),
    };
    let path = device.device().path().display().to_string();
    if force {
        output.remark(&format!("{}: {path} held {found}; overwritten because of --force", volume.name()));
        return None;
    }
    let response = Response::Refused {
        object: volume.name(),
        code: 0,
        rule: "disk-not-empty".into(),
        state: String::new(),
        message: format!("{path} holds {found}, which {command} would damage"),
        next_step: Some("nothing was changed; save what is needed, then repeat with --force".into()),
    };
    output.failure(&response);
    Some(Exit(response.exit_code()))
}

/// As `drbdadm create-md` does: tells devices apart after they were moved. Never 0, which means none.
fn random() -> Result<u64, getrandom::Error> {
    getrandom::u64().map(|number| number.max(1))
}

fn dump_md(volume: &LocalVolume, force: bool, output: &mut Output) -> Exit {
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
    let (superblock, layout) = device.superblock()?;
    if !superblock.flags.contains(DeviceFlags::AL_CLEAN) && !force {
        return Ok(None);
    }
    let image = device.bitmap(&superblock, &layout)?;
    let command = format!("{}> replicactl dump-md {}", volume.resource.node.name, volume.name());
    // drbdmeta before 9.27 refuses the member mask: only what has one says so.
    let members = superblock.members != 0;
    let options = DumpOptions { time: &utc(SystemTime::now()), command: &command, members };
    let mut text = String::new();
    metadata::write_dump(&mut text, options, &superblock, &layout, &image).expect("a String takes everything");
    Ok(Some(text))
}

/// A dump belongs to one volume.
fn restore_command(target: &Target, file: &Path, force: bool, global: &Global, output: &mut Output) -> Exit {
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
    let dump = match metadata::parse_dump(&text) {
        Ok(dump) => dump,
        Err(e) => {
            return output.error(Exit(10), format!("{} is no dump of metadata v09: {e}", file.display()));
        }
    };
    restore_md(volume, &dump, force, output)
}

/// `/dev/zero` and its kin have no end.
fn read_dump(file: &Path) -> io::Result<String> {
    if std::fs::metadata(file)?.file_type().is_char_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a device; give a file, or a pipe"));
    }
    std::fs::read_to_string(file)
}

fn restore_md(volume: &LocalVolume, dump: &metadata::Dump, force: bool, output: &mut Output) -> Exit {
    let device = match volume.open(false) {
        Ok(device) => device,
        Err(e) => return volume.failed(&e, output),
    };
    let restored = match metadata::restore(dump, device.placement, device.size_bytes()) {
        Ok(restored) => restored,
        Err(e) => return volume.failed(&DiskError::Format(e), output),
    };
    if let Some(exit) = refuse_occupied(volume, &device, force, "restore-md", output) {
        return exit;
    }
    match device.write_all(&restored.superblock, &restored.layout, &restored.bitmap) {
        Ok(()) => done(volume, "metadata restored", output),
        Err(e) => volume.failed(&e, output),
    }
}

fn apply_al(volume: &LocalVolume, output: &mut Output) -> Exit {
    match try_apply_al(volume) {
        Ok(text) => done(volume, &text, output),
        Err(e) => volume.failed(&e, output),
    }
}

fn try_apply_al(volume: &LocalVolume) -> Result<String, DiskError> {
    let device = volume.open(false)?;
    let v08 = device.superblock_v08()?;
    let (mut superblock, layout) = match &v08 {
        Some((v08, _, layout)) => (v08.convert(None), *layout),
        None => device.superblock()?,
    };
    let clean = v08.as_ref().map_or(superblock.flags.contains(DeviceFlags::AL_CLEAN), |(v08, ..)| !v08.unclean());
    if clean {
        return Ok("the activity log was applied already".into());
    }
    let geometry = superblock.geometry();
    let primary = superblock.flags.contains(DeviceFlags::PRIMARY_INDICATOR);
    let ring = device.ring(&layout)?;
    let recovery = match &v08 {
        Some((v08, ..)) => v08.recover(&ring),
        None => metadata::recover(&ring, geometry.al_stripes, geometry.al_stripe_4k, superblock.al_slots, primary),
    };
    let image = device.bitmap(&superblock, &layout)?;
    let bits = geometry.bits(superblock.last_agreed_bytes);
    let mut bitmap = Bitmap::from_image(geometry.max_peers, geometry.bitmap_block_bytes, bits, image);
    metadata::apply_al(&mut superblock, &mut bitmap, &recovery);
    let block = match v08 {
        Some((v08, mut block, _)) => {
            metadata::v08::mark_applied(&mut block, &v08);
            block
        }
        None => superblock.encode(),
    };
    device.write_applied(&block, &layout, bitmap.image())?;
    Ok(match recovery {
        metadata::Recovery::Hot { extents, .. } => format!("{} hot extents marked in the bitmap", extents.len()),
        metadata::Recovery::MarkEverything { reason } => format!("everything marked for resync: {reason}"),
        _ => "no extent was hot".into(),
    })
}

fn done(volume: &LocalVolume, text: &str, output: &mut Output) -> Exit {
    match output.json {
        true => output.json_line(&serde_json::json!({ "result": "done", "object": volume.name(), "message": text })),
        false => output.line(&format!("{}: {text}", volume.name())),
    }
    Exit::DONE
}
