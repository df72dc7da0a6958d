//! What others do without us, with the same kind of disk: nbdkit (a frontend and a file, nothing else) and QEMU's
//! storage daemon, alone and with a synchronous mirror.

use super::child::Child;
use super::probe;
use super::qmp::Qmp;
use super::report::Report;
use crate::{packages, workspace};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

/// nbdkit's file plugin on a unix socket.
pub struct Nbdkit {
    child: Child,
    socket: PathBuf,
}

impl Nbdkit {
    pub fn start(dir: &Path, size_bytes: u64) -> Result<Nbdkit> {
        let (disk, socket) = (dir.join("floor.img"), dir.join("floor.sock"));
        probe::prepare(&disk, size_bytes)?;
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-U"]).arg(&socket).arg("file").arg(&disk);
        let mut child = Child::start(&mut command, &dir.join("floor.log"))?;
        child.wait_until("nbdkit's socket", || UnixStream::connect(&socket).is_ok())?;
        Ok(Nbdkit { child, socket })
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    pub fn pids(&self) -> Vec<u32> {
        vec![self.child.pid()]
    }
}

/// QEMU's storage daemon, and the other end of its mirror if it has one.
pub struct Storage {
    qmp: Qmp,
    disk: PathBuf,
    socket: PathBuf,
    daemon: Child,
    mirror: Option<Mirror>,
}

/// nbdkit over TCP: QEMU's own NBD server lacks TCP_NODELAY.
struct Mirror {
    disk: PathBuf,
    server: Child,
}

impl Storage {
    /// Without a mirror.
    pub fn start(dir: &Path, size_bytes: u64) -> Result<Storage> {
        let mut storage = Storage::run(dir, "storage", size_bytes)?;
        storage.export("disk")?;
        Ok(storage)
    }

    /// Each write is on both disks before it is answered; so is each from here on: the first copy is done.
    /// `address`: of loopback, where the other end listens.
    pub fn start_mirrored(dir: &Path, size_bytes: u64, address: &str) -> Result<Storage> {
        let mut storage = Storage::run(dir, "mirror", size_bytes)?;
        let peer = dir.join("mirror-peer.img");
        probe::prepare(&peer, size_bytes)?;
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-i", address, "-p", "10809", "file"]).arg(&peer);
        let mut server = Child::start(&mut command, &dir.join("mirror-peer.log"))?;
        server.wait_until("nbdkit's port", || TcpStream::connect((address, 10809)).is_ok())?;
        storage.mirror = Some(Mirror { disk: peer, server });
        let server = json!({ "type": "inet", "host": address, "port": "10809" });
        storage.qmp.execute("blockdev-add", json!({ "driver": "nbd", "node-name": "peer", "server": server }))?;
        let job = json!({
            "job-id": "mirror", "device": "disk", "target": "peer", "sync": "full",
            "copy-mode": "write-blocking", "filter-node-name": "mirrored",
        });
        storage.qmp.execute("blockdev-mirror", job)?;
        let start = Instant::now();
        while storage.job()?["status"] != "ready" {
            if start.elapsed() > PATIENCE {
                bail!("QEMU's mirror does not get ready: {}", storage.job()?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // What is exported is the mirror's node, above the disk.
        storage.export("mirrored")?;
        Ok(storage)
    }

    fn run(dir: &Path, name: &str, size_bytes: u64) -> Result<Storage> {
        let path = |what: &str| dir.join(format!("{name}{what}"));
        let (disk, socket, monitor) = (path(".img"), path(".sock"), path(".qmp"));
        probe::prepare(&disk, size_bytes)?;
        let mut command = Command::new("qemu-storage-daemon");
        command
            .arg("--blockdev")
            // Past the page cache and with io_uring, as we do; also what it is fastest with here.
            .arg(format!("driver=file,node-name=disk,filename={},cache.direct=on,aio=io_uring", disk.display()))
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={}", socket.display()))
            .arg("--chardev")
            .arg(format!("socket,id=monitor,path={},server=on,wait=off", monitor.display()))
            .args(["--monitor", "chardev=monitor"]);
        let mut daemon = Child::start(&mut command, &path(".log"))?;
        daemon.wait_until("QEMU's monitor", || monitor.exists() && socket.exists())?;
        Ok(Storage { qmp: Qmp::connect(&monitor)?, disk, socket, daemon, mirror: None })
    }

    fn export(&mut self, node: &str) -> Result<()> {
        let export = json!({ "type": "nbd", "id": "export", "node-name": node, "name": "disk", "writable": true });
        self.qmp.execute("block-export-add", export).map(drop)
    }

    fn job(&mut self) -> Result<Value> {
        let mut jobs = self.qmp.execute("query-jobs", json!({}))?;
        Ok(jobs[0].take())
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket.display())
    }

    pub fn pids(&self) -> Vec<u32> {
        std::iter::once(&self.daemon).chain(self.mirror.as_ref().map(|mirror| &mirror.server)).map(Child::pid).collect()
    }

    /// Ends it. An error if the mirror has lost anything on the way, or its copies differ.
    pub fn finish(mut self) -> Result<()> {
        if self.mirror.is_none() {
            return Ok(());
        }
        let job = self.job()?;
        if job["status"] != "ready" {
            bail!("QEMU's mirror is not in sync any more: {job}");
        }
        let Storage { qmp, disk, daemon, mirror, .. } = self;
        drop((qmp, daemon));
        let Some(Mirror { disk: peer, server }) = mirror else { return Ok(()) };
        drop(server);
        probe::compare(&disk, &peer, std::fs::metadata(&disk)?.len())
    }
}

/// Those that this machine has.
pub struct Present {
    pub floor: Option<Nbdkit>,
    pub storage: Option<Storage>,
    pub mirror: Option<Storage>,
}

impl Present {
    /// Who is not installed and cannot be is left out, loudly. `address`: of loopback, for the mirror's other end.
    pub fn start(dir: &Path, size_bytes: u64, address: &str, report: &mut Report) -> Result<Present> {
        let nbdkit = present("nbdkit", packages::NBDKIT, report);
        let qemu = present("qemu-storage-daemon", packages::QEMU_STORAGE, report);
        if !nbdkit && qemu {
            report.skip("QEMU's synchronous mirror", "its other end is nbdkit, which is missing");
        }
        let floor = nbdkit.then(|| Nbdkit::start(dir, size_bytes)).transpose()?;
        let storage = qemu.then(|| Storage::start(dir, size_bytes)).transpose()?;
        let mirror = (nbdkit && qemu).then(|| Storage::start_mirrored(dir, size_bytes, address)).transpose()?;
        Ok(Present { floor, storage, mirror })
    }

    pub fn finish(self) -> Result<()> {
        drop(self.floor);
        [self.storage, self.mirror].into_iter().flatten().try_for_each(Storage::finish)
    }
}

fn present(program: &str, package: &[&str], report: &mut Report) -> bool {
    match packages::ensure(package).and_then(|()| version(program)) {
        Ok(version) => {
            report.versions.insert(program.into(), version);
            true
        }
        Err(reason) => {
            report.skip(&format!("rows against {program}"), &format!("{reason:#}"));
            false
        }
    }
}

/// The first line of what it says of itself.
pub fn version(program: &str) -> Result<String> {
    let text = workspace::output(program, ["--version"])?;
    Ok(text.lines().next().unwrap_or_default().trim().to_string())
}
