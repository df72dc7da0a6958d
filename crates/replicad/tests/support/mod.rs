//! Daemons of their own for a test: loopback addresses, sparse files, a run directory each. Everything goes away with
//! the test. Nothing here measures time; waits end by what they wait for, or by [`PATIENCE`] when something hangs.
#![allow(dead_code)] // Each test binary uses its part.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use control::{Command, Reply, Request, ResourceReport, Response, Target, decode_line, encode_line};
use metadata::Superblock;
use metadata::layout::{Geometry, Layout, Placement};
use nbd_client::Client;

/// Far above anything that works; for tests that would hang otherwise.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const DISK_BYTES: u64 = 16 << 20;

pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub config: PathBuf,
    names: Vec<String>,
}

static CLUSTERS: AtomicU8 = AtomicU8::new(1);

impl Cluster {
    /// Nodes `n0`, `n1`, ... of one resource `r0` with one volume, with fresh metadata on sparse files.
    pub fn new(nodes: u8) -> Cluster {
        let cluster = Cluster::without_metadata(nodes);
        (0..nodes).for_each(|node| create_metadata(&cluster.disk(node), nodes - 1));
        cluster
    }

    pub fn without_metadata(nodes: u8) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("replicad.toml");
        let cluster = Cluster { dir, config, names: (0..nodes).map(|n| format!("n{n}")).collect() };
        // 127/8 is all ours: addresses that no other test, nor another run of this one, has.
        let (run, test) = (std::process::id(), CLUSTERS.fetch_add(1, Ordering::Relaxed));
        let network = format!("127.{}.{}", 1 + run % 250, (run / 250 % 8) * 32 + u32::from(test));
        let mut text = "[[resource]]\nname = \"r0\"\n\
             net = { connect-int = 3, timeout = 20, cram-hmac-alg = \"sha256\", shared-secret = \"for tests\" }\n\
             [[resource.volume]]\nnumber = 0\ndevice = \"nbd\"\ndisk = \"/nowhere\"\n"
            .to_string();
        for node in 0..nodes {
            let disk = cluster.disk(node);
            File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();
            text += &format!(
                "[[resource.on]]\nnode = \"n{node}\"\nnode-id = {node}\naddress = \"{network}.{}:7789\"\n\
                 volume = [{{ number = 0, disk = \"{}\" }}]\n",
                node + 1,
                disk.display()
            );
        }
        std::fs::write(&cluster.config, text).unwrap();
        cluster
    }

    pub fn disk(&self, node: u8) -> PathBuf {
        self.dir.path().join(format!("disk{node}.img"))
    }

    /// Gives a node a data file of `data_bytes` and fresh metadata for `peers` on a file of its own.
    pub fn use_external_metadata(&self, node: u8, data_bytes: u64, meta_bytes: u64, peers: u8) {
        let (disk, meta) = (self.disk(node), self.dir.path().join(format!("meta{node}.img")));
        File::create(&disk).unwrap().set_len(data_bytes).unwrap();
        let file = File::create(&meta).unwrap();
        file.set_len(meta_bytes).unwrap();
        let layout = Layout::compute(Placement::External, meta_bytes, Geometry::new(peers)).unwrap();
        let superblock = Superblock::fresh(Geometry::new(peers), &layout).encode();
        file.write_all_at(&superblock, layout.superblock).unwrap();
        let text = std::fs::read_to_string(&self.config).unwrap();
        let (from, to) = (format!("\"{}\"", disk.display()), meta.display());
        std::fs::write(&self.config, text.replace(&from, &format!("{from}, meta-disk = \"{to}\""))).unwrap();
    }

    /// As configured.
    pub fn address(&self, node: u8) -> std::net::SocketAddr {
        let config = config::Config::load(&self.config).unwrap();
        config.resource("r0").unwrap().nodes[usize::from(node)].address
    }

    pub fn start(&self, node: u8) -> Daemon {
        let run_dir = self.dir.path().join(format!("run{node}"));
        let log = self.dir.path().join(format!("log{node}"));
        let log_file = File::options().create(true).append(true).open(&log).unwrap();
        let child = Process::new(env!("CARGO_BIN_EXE_replicad"))
            .arg("--config")
            .arg(&self.config)
            .args(["--node", &self.names[usize::from(node)]])
            .arg("--run-dir")
            .arg(&run_dir)
            .stdin(Stdio::null())
            .stderr(log_file)
            .spawn()
            .unwrap();
        let daemon = Daemon { child, run_dir, log };
        daemon.wait_until("its control socket answers", || daemon.connect().is_some());
        daemon
    }

    /// All nodes, up and connected.
    pub fn start_all(&self) -> Vec<Daemon> {
        let daemons: Vec<Daemon> = (0..self.names.len() as u8).map(|node| self.start(node)).collect();
        daemons.iter().for_each(|daemon| daemon.done(Command::Up { target: r0() }));
        daemons.iter().for_each(|daemon| daemon.wait_connected());
        daemons
    }

    /// What the volume holds on a node's disk.
    pub fn data(&self, node: u8) -> Vec<u8> {
        let usable = layout(node_count(self)).usable_bytes;
        let mut bytes = vec![0; usable as usize];
        File::open(self.disk(node)).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

fn node_count(cluster: &Cluster) -> u8 {
    cluster.names.len() as u8 - 1
}

pub fn r0() -> Target {
    Target::resource("r0")
}

fn layout(peers: u8) -> Layout {
    Layout::compute(Placement::Internal, DISK_BYTES, Geometry::new(peers)).unwrap()
}

/// As `replicactl create-md` on a disk of zeroes: superblock, empty activity log.
fn create_metadata(disk: &Path, peers: u8) {
    let layout = layout(peers);
    let superblock = Superblock::fresh(Geometry::new(peers), &layout).encode();
    File::options().write(true).open(disk).unwrap().write_all_at(&superblock, layout.superblock).unwrap();
}

pub struct Daemon {
    child: Child,
    pub run_dir: PathBuf,
    log: PathBuf,
}

impl Daemon {
    fn connect(&self) -> Option<UnixStream> {
        UnixStream::connect(self.run_dir.join(control::SOCKET_NAME)).ok()
    }

    /// Sends a command and gives all answers, the final one last.
    pub fn answers(&self, command: Command) -> Vec<Response> {
        let mut stream = self.connect().unwrap_or_else(|| panic!("the daemon is gone:\n{}", self.log()));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&encode_line(&Request::new(command.clone())).unwrap()).unwrap();
        let mut answers = Vec::new();
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap_or_else(|e| panic!("{command:?} is not answered: {e}\n{}", self.log()));
            let reply: Reply = decode_line(line.as_bytes()).unwrap();
            let last = reply.response.is_final();
            answers.push(reply.response);
            if last {
                return answers;
            }
        }
        panic!("{command:?} ended after {answers:?}\n{}", self.log());
    }

    pub fn ask(&self, command: Command) -> Response {
        self.answers(command).pop().expect("a final answer")
    }

    pub fn done(&self, command: Command) {
        let answer = self.ask(command.clone());
        assert_eq!(answer, Response::Done, "{command:?}\n{}", self.log());
    }

    pub fn wait_connected(&self) {
        self.done(Command::WaitConnect { target: r0(), timeout_s: Some(PATIENCE.as_secs()) });
    }

    pub fn wait_in_sync(&self) {
        self.done(Command::WaitSync { target: r0(), timeout_s: Some(PATIENCE.as_secs()) });
    }

    pub fn report(&self) -> ResourceReport {
        match self.ask(Command::Status { target: r0() }) {
            Response::Status { mut status } => status.pop().expect("r0 is configured"),
            other => panic!("{other:?}"),
        }
    }

    pub fn promote(&self, force: bool) {
        self.done(Command::Promote { target: r0(), force });
    }

    pub fn nbd(&self) -> Client {
        let path = self.run_dir.join("r0.0.nbd");
        self.wait_until("its NBD socket exists", || path.exists());
        Client::connect(&path).unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "waited for: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// As a crash.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn terminate(mut self) -> (ExitStatus, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        (status, self.log())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
