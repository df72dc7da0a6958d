//! One node: its daemon, its administrator, its disk. A daemon that is still there when the test ends is killed.

use crate::programs;
use control::{PeerDeviceReport, ResourceReport};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub struct Node {
    pub name: String,
    pub namespace: String,
    pub config: PathBuf,
    pub run_dir: PathBuf,
    pub disk: PathBuf,
    log: PathBuf,
    daemon: Option<Child>,
}

/// What `status` says of `r0`, with short ways to what tests ask for.
#[derive(Debug)]
pub struct State(pub ResourceReport);

impl State {
    pub fn role(&self) -> &str {
        &self.0.role
    }
    pub fn disk(&self) -> &str {
        &self.0.devices[0].disk_state
    }
    pub fn connection(&self) -> &str {
        self.connection_to(0)
    }
    /// By position among the peers, which `status` sorts by name.
    pub fn connection_to(&self, peer: usize) -> &str {
        &self.0.connections[peer].connection_state
    }
    pub fn peer_device(&self) -> &PeerDeviceReport {
        &self.0.connections[0].peer_devices[0]
    }
    /// KiB, as DRBD counts.
    pub fn out_of_sync_kib(&self) -> u64 {
        self.peer_device().out_of_sync
    }
    /// Connected to all, everything UpToDate everywhere, no resync.
    pub fn is_settled(&self) -> bool {
        self.0.devices.iter().all(|device| device.disk_state == "UpToDate")
            && self.0.connections.iter().all(|connection| {
                connection.connection_state == "Connected"
                    && connection.peer_devices.iter().all(|peer| {
                        peer.peer_disk_state == "UpToDate"
                            && peer.replication_state == "Established"
                            && peer.out_of_sync == 0
                    })
            })
    }
}

impl Node {
    pub fn new(dir: &Path, name: &str, namespace: String, disk: PathBuf) -> Node {
        let path = |what: &str| dir.join(format!("{name}.{what}"));
        Node {
            name: name.into(),
            namespace,
            config: path("toml"),
            run_dir: path("run"),
            disk,
            log: path("log"),
            daemon: None,
        }
    }

    /// `replicad`, to be started in the node's namespace.
    pub fn replicad(&self) -> Command {
        let mut command = Command::new("ip");
        // `ip netns exec` becomes the program: the process id is the daemon's.
        command.args(["netns", "exec", &self.namespace]).arg(programs::replicad());
        command.arg("--config").arg(&self.config).args(["--node", &self.name]).arg("--run-dir").arg(&self.run_dir);
        command.stdin(Stdio::null());
        command
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        self.start_without_r0();
        self.state();
    }

    /// As `start`, for a node whose resource has another name.
    pub fn start_without_r0(&mut self) {
        assert!(self.daemon.is_none(), "{} runs", self.name);
        let log = File::options().create(true).append(true).open(&self.log).expect("a log can be written");
        self.daemon = Some(self.replicad().stdout(Stdio::null()).stderr(log).spawn().expect("ip can be run"));
        crate::wait_for("the daemon answers", || self.log(), || (self.ctl("status --json").code == 0).then_some(()));
    }

    /// `kill -9`: as a crash.
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.kill().expect("it is ours");
        daemon.wait().expect("it is ours");
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.daemon.take().expect("the daemon runs").wait().expect("it is ours")
    }

    /// SIGSTOP: alive for the kernel, silent for the peers.
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        let pid = self.daemon.as_ref().expect("the daemon runs").id() as i32;
        // Safety: plain numbers; the process is a child that was not waited for, so the id is still its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{}", std::io::Error::last_os_error());
    }

    pub fn is_alive(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|daemon| daemon.try_wait().expect("it is ours").is_none())
    }

    /// `replicactl`, with its words separated by spaces.
    pub fn ctl(&self, line: &str) -> Answer {
        let mut command = Command::new(programs::replicactl());
        command.arg("--config").arg(&self.config).args(["--node", &self.name]).arg("--run-dir").arg(&self.run_dir);
        answer(command.args(line.split_whitespace()))
    }

    /// A command that has to succeed; what it printed.
    pub fn done(&self, line: &str) -> String {
        let answer = self.ctl(line);
        assert_eq!(answer.code, 0, "{}: replicactl {line}: {answer:?}\n{}", self.name, self.log());
        answer.out
    }

    pub fn state(&self) -> State {
        let text = self.done("status r0 --json");
        let mut reports: Vec<ResourceReport> =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("status --json: {e}\n{text}"));
        State(reports.pop().expect("r0 is configured"))
    }

    /// Polls the status until it is as wanted.
    pub fn wait(&self, what: &str, wanted: impl Fn(&State) -> bool) -> State {
        let context = || format!("{}: {}\n{}", self.name, self.ctl("status r0 --verbose --statistics").out, self.log());
        crate::wait_for(&format!("{}: {what}", self.name), context, || Some(self.state()).filter(|state| wanted(state)))
    }

    pub fn wait_settled(&self) -> State {
        self.wait("everything is UpToDate and connected", State::is_settled)
    }

    pub fn wait_connection(&self, wanted: &str) -> State {
        self.wait(wanted, |state| state.connection() == wanted)
    }

    pub fn wait_log(&self, words: &str) {
        crate::wait_for(&format!("`{words}` in the log"), || self.log(), || self.log().contains(words).then_some(()));
    }

    /// Where applications connect while the node is Primary.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("r0.0.nbd")
    }

    /// As `socket`, once it is there.
    pub fn device(&self) -> PathBuf {
        let socket = self.socket();
        crate::wait_for("the device of a Primary", || self.log(), || socket.exists().then(|| socket.clone()))
    }

    pub fn nbd_uri(&self) -> String {
        format!("nbd+unix:///r0.0?socket={}", self.device().display())
    }

    pub fn client(&self) -> crate::Client {
        crate::Client::connect(&self.device()).unwrap_or_else(|e| panic!("{}: {e}\n{}", self.name, self.log()))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // It may have ended already.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- log of {} ----\n{}", self.name, self.log());
        }
    }
}

/// Runs a program to its end.
pub fn answer(command: &mut Command) -> Answer {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
