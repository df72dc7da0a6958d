//! A file system on the volume where the kernel has no driver for it: nbdfuse shows the NBD export as a file, a loop
//! device makes a block device of that. Unmounted and detached when dropped, in the right order.

use crate::{Node, tools};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Says loudly if not.
pub fn possible(test: &str) -> bool {
    if !Path::new("/dev/fuse").exists() {
        return tools::skip(test, "there is no /dev/fuse");
    }
    if !tools::output("losetup", &["--find"]).status.success() {
        return tools::skip(test, "there is no free loop device");
    }
    true
}

pub struct Device {
    fuse: Child,
    folder: PathBuf,
    loop_device: Option<String>,
}

impl Device {
    pub fn open(node: &Node, dir: &Path) -> Device {
        let folder = dir.join(format!("{}.fuse", node.name));
        std::fs::create_dir_all(&folder).expect("a folder");
        let fuse = Command::new("nbdfuse")
            .arg(&folder)
            .arg(node.nbd_uri())
            .stdin(Stdio::null())
            .spawn()
            .expect("nbdfuse can be run");
        // From here on dropped, whatever happens.
        let mut device = Device { fuse, folder, loop_device: None };
        let file = device.folder.join("nbd");
        crate::wait_for("nbdfuse shows the device", || node.log(), || file.exists().then_some(()));
        let found = tools::run("losetup", &["--find", "--show", &file.display().to_string()]);
        device.loop_device = Some(found.trim().to_string());
        device
    }

    /// `/dev/loopN`.
    pub fn path(&self) -> &str {
        self.loop_device.as_deref().expect("set when opened")
    }

    pub fn mount(&self, dir: &Path) -> Mount<'_> {
        let folder = dir.join("mounted");
        std::fs::create_dir_all(&folder).expect("a folder");
        tools::run("mount", &[self.path(), &folder.display().to_string()]);
        Mount { folder, _device: self }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(device) = &self.loop_device {
            tools::output("losetup", &["--detach", device]);
        }
        // nbdfuse ends when its folder is unmounted; the loop device may hold it a moment longer. No panic here: the
        // test may be panicking already.
        let start = std::time::Instant::now();
        while start.elapsed() < crate::PATIENCE {
            tools::output("umount", &[&self.folder.display().to_string()]);
            if !matches!(self.fuse.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
    }
}

pub struct Mount<'a> {
    folder: PathBuf,
    _device: &'a Device,
}

impl Mount<'_> {
    pub fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        tools::output("umount", &[&self.folder.display().to_string()]);
    }
}
