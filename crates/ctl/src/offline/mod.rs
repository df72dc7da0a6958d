//! Metadata commands: work on the disks that the configuration gives to this node, without the daemon. A disk that the
//! daemon holds is refused by the exclusive open.

mod convert;
pub mod disk;
pub mod dump;
pub mod gi;
pub mod last_size;
pub mod resize;

use crate::args::{Cmd, Format, Global, One};
use crate::client::ClientError;
use crate::output::{Exit, Output};
use config::{Config, LocalResource, Volume};
use control::{Response, Target};
use disk::{DiskError, MetaDevice, OnDisk};
use last_size::LastSize;
use metadata::{Bitmap, DeviceFlags, Geometry, Layout, Placement, Recovery, Superblock};
use resize::{Resized, Unmoved};
use std::io;
use std::path::PathBuf;

/// `None`: not a command of this room.
pub fn run(cmd: &Cmd, global: &Global, output: &mut Output) -> Option<Exit> {
    Some(match cmd {
        Cmd::CreateMd { target, max_peers, format: Format::V09, force } => {
            create_md(target, *max_peers, *force, global, output)
        }
        Cmd::CreateMd { target, max_peers, format: Format::V08, force } => {
            each(target, global, output, |volume, output| convert::back_to_v08(volume, *max_peers, *force, output))
        }
        Cmd::DumpMd { target, force } => {
            each(target, global, output, |volume, output| dump::dump_md(volume, *force, output))
        }
        Cmd::RestoreMd { target, file, force } => dump::restore_command(target, file, *force, global, output),
        Cmd::ApplyAl(One { target }) => each(target, global, output, apply_al),
        Cmd::CheckResize { target, old_size } => {
            each(target, global, output, |volume, output| check_resize(volume, *old_size, output))
        }
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
    /// Where the size of its disk is remembered.
    size_file: PathBuf,
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
    fn last_size(&self) -> Option<LastSize> {
        last_size::recall(&self.size_file)
    }
    /// After whatever wrote internal metadata. A folder that cannot be written is no reason to fail.
    fn remember(&self, device: &MetaDevice, device_uuid: u64, output: &mut Output) {
        if device.placement != Placement::Internal {
            return;
        }
        let last = LastSize { bytes: device.size_bytes(), device_uuid };
        if self.last_size() == Some(last) {
            return;
        }
        if let Err(e) = last_size::remember(&self.size_file, device.device().path(), last) {
            let file = self.size_file.display();
            let name = self.name();
            output.remark(&format!(
                "{name}: cannot remember the size of the disk in {file}: {e}; after growth, \
                                    check-resize will ask for it"
            ));
        }
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
                let size_file = global.state_dir().join(format!("{}.{}.lkbd", resource.name, volume.number));
                found.push(LocalVolume { resource: resource.clone(), volume: volume.clone(), size_file });
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

/// Every volume of a resource is looked at before the first is written to.
fn create_md(target: &Target, max_peers: Option<u8>, force: bool, global: &Global, output: &mut Output) -> Exit {
    let volumes = match volumes(target, global, output) {
        Ok(volumes) => volumes,
        Err(exit) => return exit,
    };
    let mut create = |volumes: &[LocalVolume]| {
        let found: Vec<_> = volumes.iter().map(|volume| convert::look(volume, max_peers, force)).collect();
        if convert::is_wanted(&found) {
            return convert::together(volumes, found, output);
        }
        drop(found);
        volumes.iter().fold(Exit::DONE, |exit, volume| exit.and(create_fresh(volume, max_peers, force, output)))
    };
    volumes
        .chunk_by(|a, b| a.resource.name == b.resource.name)
        .fold(Exit::DONE, |exit, of_one_resource| exit.and(create(of_one_resource)))
}

fn create_fresh(volume: &LocalVolume, max_peers: Option<u8>, force: bool, output: &mut Output) -> Exit {
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
    if let Some(exit) = refuse_occupied(volume, &device, force, "create-md", output) {
        return exit;
    }
    let mut superblock = Superblock::fresh(geometry, &layout);
    superblock.device_uuid = match random() {
        Ok(number) => number,
        Err(e) => return output.error(Exit::FAILED, format!("{}: no random numbers: {e}", volume.name())),
    };
    if let Err(e) = device.write_all(&superblock.encode(), &layout, &[]) {
        return volume.failed(&e, output);
    }
    volume.remember(&device, superblock.device_uuid, output);
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

fn apply_al(volume: &LocalVolume, output: &mut Output) -> Exit {
    match try_apply_al(volume, output) {
        Ok(text) => done(volume, &text, output),
        Err(e) => volume.failed(&e, output),
    }
}

fn try_apply_al(volume: &LocalVolume, output: &mut Output) -> Result<String, DiskError> {
    let device = volume.open(false)?;
    follow_growth(volume, &device, output);
    let found = device.metadata()?;
    volume.remember(&device, found.as_v09().0.device_uuid, output);
    Ok(match apply_log(&device, &found)? {
        Applied::WasClean => "the activity log was applied already".into(),
        Applied::Now { recovery: Recovery::Hot { extents, .. }, .. } => {
            format!("{} hot extents marked in the bitmap", extents.len())
        }
        Applied::Now { recovery: Recovery::MarkEverything { reason }, .. } => {
            format!("everything marked for resync: {reason}")
        }
        Applied::Now { .. } => "no extent was hot".into(),
    })
}

/// What applying a log came to.
pub enum Applied {
    WasClean,
    /// `newly_bytes`: of storage that was marked, all slots together.
    Now {
        recovery: Recovery,
        newly_bytes: u64,
    },
}

/// Merges the log into the bitmaps and initialises it; durable on return.
pub fn apply_log(device: &MetaDevice, found: &OnDisk) -> Result<Applied, DiskError> {
    if found.is_clean() {
        return Ok(Applied::WasClean);
    }
    let (mut superblock, layout) = found.as_v09();
    let geometry = superblock.geometry();
    let primary = superblock.flags.contains(DeviceFlags::PRIMARY_INDICATOR);
    let ring = device.ring(layout)?;
    let recovery = match found {
        OnDisk::V08(v08, _) => v08.recover(&ring),
        OnDisk::V09(..) => {
            metadata::recover(&ring, geometry.al_stripes, geometry.al_stripe_4k, superblock.al_slots, primary)
        }
    };
    let mut bitmap = device.bitmap(&superblock, layout)?;
    let set = |bitmap: &Bitmap| bitmap.slots().map(|slot| bitmap.count(slot)).sum::<u64>();
    let before = set(&bitmap);
    metadata::apply_al(&mut superblock, &mut bitmap, &recovery);
    let block = match found {
        OnDisk::V08(v08, _) => v08.applied().encode(),
        OnDisk::V09(..) => superblock.encode(),
    };
    device.write_applied(&block, layout, Some(&bitmap))?;
    let newly_bytes = (set(&bitmap) - before) * u64::from(geometry.bitmap_block_bytes);
    Ok(Applied::Now { recovery, newly_bytes })
}

/// As DRBD's tools before an attach: metadata that growth left behind moves first. Where it cannot, the caller finds none.
fn follow_growth(volume: &LocalVolume, device: &MetaDevice, output: &mut Output) {
    let last = volume.last_size().filter(|last| last.bytes < device.size_bytes());
    if last.is_none() || device.placement != Placement::Internal {
        return;
    }
    match resize::check_resize(device, last) {
        Ok(Resized::InPlace { .. }) => {}
        Ok(moved) => output.remark(&format!("{}: {moved}", volume.name())),
        Err(e) => output.remark(&format!("{}: {e}", volume.name())),
    }
}

fn check_resize(volume: &LocalVolume, old_size: Option<u64>, output: &mut Output) -> Exit {
    let device = match volume.open(false) {
        Ok(device) => device,
        Err(e) => return volume.failed(&e, output),
    };
    if device.placement != Placement::Internal {
        return done(volume, "external metadata does not move with the size; nothing was changed", output);
    }
    let given = old_size.map(|bytes| LastSize { bytes, device_uuid: 0 });
    match resize::check_resize(&device, given.or_else(|| volume.last_size())) {
        Ok(resized) => {
            volume.remember(&device, resized.device_uuid(), output);
            done(volume, &resized.to_string(), output)
        }
        Err(Unmoved::Disk(e)) => volume.failed(&e, output),
        Err(e @ Unmoved::Unknown(_)) => {
            let hint = "if it has grown, give the size in bytes that it had before with --old-size; else restore-md from a dump";
            output.error(Exit(e.exit_code()), format!("{}: {e}; {hint}", volume.name()))
        }
        Err(e) => output.error(Exit(e.exit_code()), format!("{}: {e}", volume.name())),
    }
}

fn done(volume: &LocalVolume, text: &str, output: &mut Output) -> Exit {
    match output.json {
        true => output.json_line(&serde_json::json!({ "result": "done", "object": volume.name(), "message": text })),
        false => output.line(&format!("{}: {text}", volume.name())),
    }
    Exit::DONE
}
