//! Nodes over loopback for the bench; gone when dropped.

use super::child::Child;
use super::probe::{self, REQUEST_BYTES, offset, per_second};
use crate::demo::node::Node;
use anyhow::{Result, bail, ensure};
use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

pub const TWO: &[&str] = &["alice", "bob"];
pub const ONE: &[&str] = &["solo"];

pub struct Setup<'a> {
    pub dir: &'a Path,
    pub programs: &'a Path,
    /// Names; one node has no peer.
    pub nodes: &'static [&'static str],
    /// r0, r1, ...; each with one volume.
    pub resources: usize,
    /// Of a disk, with its metadata.
    pub size_bytes: u64,
    /// What stands in the table `disk`.
    pub disk_options: &'static str,
    /// Disks are written once; otherwise they are sparse.
    pub written: bool,
}

impl Setup<'_> {
    fn disk(&self, node: &str, resource: usize) -> PathBuf {
        self.dir.join(format!("{node}-r{resource}.img"))
    }

    fn configuration(&self) -> String {
        // Clusters of one bench may run beside each other.
        static PORTS: AtomicUsize = AtomicUsize::new(7789);
        let first = PORTS.fetch_add(self.resources, Ordering::Relaxed);
        (0..self.resources).map(|resource| self.resource(resource, first + resource)).collect()
    }

    fn resource(&self, resource: usize, port: usize) -> String {
        let mut text = format!(
            "[[resource]]\nname = \"r{resource}\"\nnet = {{ protocol = \"C\" }}\n\
             disk = {{ {} }}\n\n[[resource.volume]]\nnumber = 0\ndevice = \"nbd\"\ndisk = \"none\"\n",
            self.disk_options
        );
        for (id, name) in self.nodes.iter().enumerate() {
            text += &format!(
                "\n[[resource.on]]\nnode = \"{name}\"\nnode-id = {id}\naddress = \"{}:{port}\"\n\
                 volume = [{{ number = 0, disk = \"{}\" }}]\n",
                address(id),
                self.disk(name, resource).display()
            );
        }
        text + "\n"
    }

    fn make_disk(&self, path: &Path) -> Result<()> {
        if self.written {
            return probe::prepare(path, self.size_bytes);
        }
        Ok(File::create(path)?.set_len(self.size_bytes)?)
    }
}

/// Of loopback; another bench that runs beside this one has others.
pub fn address(host: usize) -> String {
    let pid = std::process::id();
    format!("127.{}.{}.{}", 1 + pid % 250, pid / 250 % 250, host + 1)
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    daemons: Vec<Child>,
    disks: Vec<Vec<PathBuf>>,
}

impl Cluster {
    /// All resources up and connected, nobody Primary.
    pub fn start(setup: &Setup) -> Result<Cluster> {
        let mut cluster = Cluster::prepare(setup)?;
        cluster.run(setup)?;
        for resource in 0..setup.resources {
            cluster.each(&format!("up r{resource}"))?;
        }
        if setup.nodes.len() > 1 {
            for resource in 0..setup.resources {
                cluster.nodes[0].ctl(&format!("wait-connect r{resource} --timeout 60"))?;
            }
        }
        Ok(cluster)
    }

    /// Disks with metadata; no daemon.
    pub fn prepare(setup: &Setup) -> Result<Cluster> {
        fs::write(setup.dir.join("replicad.toml"), setup.configuration())?;
        let nodes: Vec<Node> = setup.nodes.iter().map(|name| Node::new(setup.dir, setup.programs, name)).collect();
        let mut disks = Vec::new();
        for node in &nodes {
            node.write_command()?;
            let own: Vec<PathBuf> = (0..setup.resources).map(|resource| setup.disk(&node.name, resource)).collect();
            for (resource, disk) in own.iter().enumerate() {
                setup.make_disk(disk)?;
                node.ctl(&format!("create-md r{resource} --force"))?;
            }
            disks.push(own);
        }
        Ok(Cluster { nodes, daemons: Vec::new(), disks })
    }

    /// The daemons.
    pub fn run(&mut self, setup: &Setup) -> Result<()> {
        for node in &self.nodes {
            let mut command = Command::new(setup.dir.join(format!("{}-daemon", node.name)));
            let mut daemon = Child::start(&mut command, &node.log())?;
            daemon.wait_until("the daemon's answer", || node.status().is_ok())?;
            self.daemons.push(daemon);
        }
        Ok(())
    }

    pub fn each(&self, line: &str) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.ctl(line).map(drop))
    }

    /// The first node becomes Primary of all resources; disks that hold the same count as the same.
    pub fn promote_as_equal(&self) -> Result<()> {
        for resource in 0..self.disks[0].len() {
            if self.nodes.len() > 1 {
                self.nodes[0].ctl(&format!("new-current-uuid --clear-bitmap r{resource}"))?;
                self.nodes[0].ctl(&format!("promote r{resource}"))?;
            } else {
                self.nodes[0].ctl(&format!("promote r{resource} --force"))?;
            }
        }
        self.wait_for_devices()
    }

    /// The first node becomes Primary of r0 and its disk is copied.
    pub fn sync(&self) -> Result<()> {
        self.nodes[0].ctl("promote r0 --force")?;
        self.nodes[1].ctl("wait-sync r0 --timeout 600")?;
        self.wait_for_devices()
    }

    fn wait_for_devices(&self) -> Result<()> {
        let all = || (0..self.disks[0].len()).all(|resource| self.socket(resource).exists());
        self.nodes[0].wait("its devices", |_| all()).map(drop)
    }

    /// Where the first node serves it.
    pub fn socket(&self, resource: usize) -> PathBuf {
        self.nodes[0].dir.join(format!("{}.run/r{resource}.0.nbd", self.nodes[0].name))
    }

    pub fn uri(&self, resource: usize) -> String {
        format!("nbd+unix:///r{resource}.0?socket={}", self.socket(resource).display())
    }

    pub fn pids(&self) -> Vec<u32> {
        self.daemons.iter().map(Child::pid).collect()
    }

    /// Ends it. An error if r0 is not UpToDate on all nodes, or the copies differ.
    pub fn finish(self) -> Result<()> {
        let status = self.nodes[0].status()?;
        let device = &status["devices"][0];
        ensure!(device["disk-state"] == "UpToDate", "the disk is not UpToDate: {device}");
        if self.nodes.len() < 2 {
            return Ok(());
        }
        let peer = &status["connections"][0]["peer_devices"][0];
        let same = peer["peer-disk-state"] == "UpToDate" && peer["out-of-sync"] == 0;
        ensure!(same, "the peer's disk is not UpToDate: {peer}");
        let size_bytes = e2e::Client::connect(&self.socket(0))?.size_bytes;
        let Cluster { daemons, disks, .. } = self;
        drop(daemons);
        probe::compare(&disks[0][0], &disks[1][0], size_bytes)
    }

    /// Where a write of r0 spends its time, as the Primary says. Averages over the last thousands.
    pub fn stages(&self) -> Result<String> {
        let text = self.nodes[0].ctl("status r0 --statistics")?;
        match text.lines().find_map(|line| line.split_once("=> a write takes")) {
            Some((_, rest)) => Ok(format!("a write takes{rest}")),
            None => bail!("status --statistics says nothing of writes: {text}"),
        }
    }
}

/// Rates without limit: the disk and the link are what is measured.
pub const NO_LIMIT: &str = "c-max-rate = \"4G\"";

fn pair<'a>(dir: &'a Path, programs: &'a Path, size_mib: u64) -> Setup<'a> {
    let (size_bytes, nodes) = (size_mib << 20, TWO);
    Setup { dir, programs, nodes, resources: 1, size_bytes, disk_options: NO_LIMIT, written: true }
}

/// MiB per second of a first sync.
pub fn first_sync(dir: &Path, programs: &Path, size_mib: u64) -> Result<f64> {
    let cluster = Cluster::start(&pair(dir, programs, size_mib))?;
    let begun = Instant::now();
    cluster.sync()?;
    let seconds = begun.elapsed().as_secs_f64();
    cluster.finish()?;
    Ok(size_mib as f64 / seconds)
}

/// Two nodes in sync and a client of the bench's own, one request at a time.
pub struct Pair {
    client: RefCell<e2e::Client>,
    cluster: Cluster,
    size_bytes: u64,
}

impl Pair {
    pub fn start(dir: &Path, programs: &Path, size_mib: u64) -> Result<Pair> {
        let cluster = Cluster::start(&pair(dir, programs, size_mib))?;
        cluster.sync()?;
        let client = e2e::Client::connect(&cluster.socket(0))?;
        let size_bytes = client.size_bytes;
        Ok(Pair { client: client.into(), cluster, size_bytes })
    }

    /// And in sync again.
    pub fn connect(&self) -> Result<()> {
        let node = &self.cluster.nodes[0];
        if node.status()?["connections"][0]["connection-state"] == "Connected" {
            return Ok(());
        }
        node.ctl("connect r0")?;
        node.ctl("wait-connect r0 --timeout 60")?;
        node.ctl("wait-sync r0 --timeout 600").map(drop)
    }

    pub fn disconnect(&self) -> Result<()> {
        self.cluster.nodes[0].ctl("disconnect r0").map(drop)
    }

    pub fn writes(&self, count: u64) -> Result<f64> {
        let (mut client, bytes) = (self.client.borrow_mut(), [7; REQUEST_BYTES]);
        per_second(count, |at| Ok(client.write(offset(at, self.size_bytes), &bytes)?))
    }

    pub fn reads(&self, count: u64) -> Result<f64> {
        let mut client = self.client.borrow_mut();
        per_second(count, |at| Ok(client.read(offset(at, self.size_bytes), REQUEST_BYTES as u32).map(drop)?))
    }
}
