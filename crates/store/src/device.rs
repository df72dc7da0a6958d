//! What sysfs and procfs know about a disk: queue limits, and who holds it. Read-only, best effort: a missing file
//! means "not known", never an error.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Major and minor of a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DeviceNumber {
    major: u32,
    minor: u32,
}

impl DeviceNumber {
    pub(crate) fn from_raw(dev: u64) -> DeviceNumber {
        DeviceNumber { major: rustix::fs::major(dev), minor: rustix::fs::minor(dev) }
    }
    fn sysfs(self) -> PathBuf {
        PathBuf::from(format!("/sys/dev/block/{self}"))
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// The `queue` folder of a disk.
pub(crate) struct Queue(PathBuf);

impl Queue {
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        Some(fs::read_to_string(self.0.join(name)).ok()?.trim().to_owned())
    }
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }
}

/// A partition has no queue of its own: it uses that of its disk, one folder up.
pub(crate) fn queue_of(device: DeviceNumber) -> Queue {
    let node = device.sysfs();
    let own = node.join("queue");
    if own.is_dir() {
        return Queue(own);
    }
    let disk = fs::canonicalize(&node).ok().and_then(|p| p.parent().map(Path::to_path_buf));
    Queue(disk.unwrap_or(node).join("queue"))
}

/// Who holds the device, or one of its partitions: a device on top, a mount, or swap.
pub(crate) fn holder(device: DeviceNumber) -> Option<String> {
    let parts = partitions(device);
    let devices: Vec<DeviceNumber> = std::iter::once(device).chain(parts).collect();
    devices.iter().find_map(|&d| holding_device(d)).or_else(|| mount(&devices)).or_else(|| swap(&devices))
}

fn holding_device(device: DeviceNumber) -> Option<String> {
    let mut holders = fs::read_dir(device.sysfs().join("holders")).ok()?;
    let name = holders.next()?.ok()?.file_name();
    Some(format!("the block device /dev/{} uses it", name.to_string_lossy()))
}

fn mount(devices: &[DeviceNumber]) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let number = fields.next()?;
        let place = fields.nth(1)?;
        devices.iter().any(|d| d.to_string() == number).then(|| format!("it is mounted on {place}; unmount it first"))
    })
}

fn swap(devices: &[DeviceNumber]) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let swaps = fs::read_to_string("/proc/swaps").ok()?;
    swaps.lines().skip(1).find_map(|line| {
        let path = line.split_whitespace().next()?;
        let number = DeviceNumber::from_raw(fs::metadata(path).ok()?.rdev());
        devices.contains(&number).then(|| format!("it is swap space; run swapoff {path} first"))
    })
}

fn partitions(device: DeviceNumber) -> Vec<DeviceNumber> {
    let Ok(entries) = fs::read_dir(device.sysfs()) else { return Vec::new() };
    let folders = entries.flatten().map(|e| e.path()).filter(|p| p.join("partition").exists());
    folders.filter_map(|p| parse_number(fs::read_to_string(p.join("dev")).ok()?.trim())).collect()
}

fn parse_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// The process whose `flock` covers the file. `/proc/locks` names device and inode as `MAJ:MIN:INODE`, the numbers of
/// the device in hexadecimal.
pub(crate) fn lock_owner(device: DeviceNumber, inode: u64) -> Option<String> {
    let wanted = format!("{:02x}:{:02x}:{inode}", device.major, device.minor);
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let held = fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&wanted.as_str());
        held.then(|| fields.get(4).copied()).flatten()
    })?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("process {pid} ({}) has locked it", name.trim()))
}
