//! The volume as a block device on this machine: ublk where the kernel has it; otherwise NBD, shown as a file by
//! nbdfuse, made a block device by a loop device.

use super::PATIENCE;
use super::node::{Node, end_process, log_file};
use crate::{packages, workspace};
use anyhow::{Result, bail};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ublk,
    Nbd,
}

/// Numbers of /dev/ublkbN far from what a machine uses.
const UBLK_FIRST: usize = 970;

impl Kind {
    pub fn of_this_machine() -> Kind {
        let control = Path::new("/dev/ublk-control");
        if !control.exists() {
            // Without the module, or without modprobe: then it is NBD.
            let _ = workspace::output("modprobe", ["ublk_drv"]);
        }
        if control.exists() { Kind::Ublk } else { Kind::Nbd }
    }

    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Kind::Ublk => &["e2fsprogs", "mount"],
            Kind::Nbd => packages::DEMO,
        }
    }

    pub fn words(self) -> &'static str {
        match self {
            Kind::Ublk => "ublk",
            Kind::Nbd => "NBD, nbdfuse and a loop device (this kernel has no ublk)",
        }
    }

    pub fn configured(self, node: usize) -> String {
        match self {
            Kind::Ublk => format!("ublk:{}", UBLK_FIRST + node),
            Kind::Nbd => "nbd".into(),
        }
    }
}

/// Closed when dropped, unless kept.
pub struct Device {
    path: PathBuf,
    dir: PathBuf,
    keep: std::cell::Cell<bool>,
}

impl Device {
    pub fn open(node: &Node, kind: Kind) -> Result<Device> {
        let exists = |status: &serde_json::Value| Path::new(path_of(status)).exists();
        let status = node.wait("its device", exists)?;
        let path = path_of(&status).to_string();
        // From here on closed, whatever happens.
        let mut device = Device { path: path.clone().into(), dir: node.dir.clone(), keep: false.into() };
        if kind == Kind::Nbd {
            device.path = loop_over_fuse(node, &path)?;
        }
        Ok(device)
    }

    pub fn make_file_system(&self) -> Result<()> {
        println!("alice# mkfs.ext4 {}", self.path.display());
        workspace::output("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), self.path.as_os_str()]).map(drop)
    }

    pub fn mount(&self, folder: &Path) -> Result<Mounted> {
        fs::create_dir_all(folder)?;
        println!("# mount {} {}", self.path.display(), folder.display());
        workspace::output("mount", [&self.path, folder])?;
        Ok(Mounted { folder: folder.into(), keep: false.into() })
    }

    pub fn keep(&self) {
        self.keep.set(true);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !self.keep.get() {
            close_all(&self.dir);
        }
    }
}

fn path_of(status: &serde_json::Value) -> &str {
    status["devices"][0]["replicad"]["device"].as_str().unwrap_or("")
}

fn loop_over_fuse(node: &Node, socket: &str) -> Result<PathBuf> {
    if !Path::new("/dev/fuse").exists() {
        bail!("this machine has neither ublk nor FUSE (/dev/fuse): nothing can mount {socket}");
    }
    let folder = node.dir.join("fuse");
    fs::create_dir_all(&folder)?;
    let log = log_file(&node.dir.join("nbdfuse.log"))?;
    Command::new("nbdfuse")
        .arg("--pidfile")
        .arg(node.dir.join("nbdfuse.pid"))
        .arg(&folder)
        .arg(format!("nbd+unix:///r0.0?socket={socket}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()?;
    let (file, start) = (folder.join("nbd"), Instant::now());
    while !file.exists() {
        if start.elapsed() > PATIENCE {
            bail!("nbdfuse does not show the device; see {}", node.dir.join("nbdfuse.log").display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let device = workspace::output("losetup", ["--find".as_ref(), "--show".as_ref(), file.as_os_str()])?;
    Ok(device.trim().into())
}

/// Unmounts, detaches and ends what was opened in `dir`. What is not there needs nothing.
pub fn close_all(dir: &Path) {
    let _ = workspace::output("umount", [dir.join("mnt")]);
    let folder = dir.join("fuse");
    if !folder.exists() {
        return;
    }
    if let Ok(list) = workspace::output("losetup", ["--associated".as_ref(), folder.join("nbd").as_os_str()]) {
        let devices = list.lines().filter_map(|line| line.split_once(':').map(|(device, _)| device.to_string()));
        devices.for_each(|device| drop(workspace::output("losetup", ["--detach".into(), device])));
    }
    let start = Instant::now();
    // The loop device may hold the file a moment longer.
    while workspace::output("umount", [&folder]).is_err() && is_mounted(&folder) && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = end_process(&dir.join("nbdfuse.pid"), dir);
}

fn is_mounted(folder: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let folder = folder.display().to_string();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(&folder))
}

pub struct Mounted {
    folder: PathBuf,
    keep: std::cell::Cell<bool>,
}

impl Mounted {
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn keep(&self) {
        self.keep.set(true);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.keep.get() {
            // A failure shows when the device is closed, and in the logs.
            let _ = workspace::output("umount", [&self.folder]);
        }
    }
}
