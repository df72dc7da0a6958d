//! What a stranger does first: the demo, and the commands of the README, as they stand there.

use e2e::mounted::{Device, possible};
use e2e::network::Network;
use e2e::{Node, pattern, programs, tools};
use std::path::Path;
use std::process::Command;

fn xtask(arguments: &[&str]) -> e2e::Answer {
    e2e::node::answer(Command::new(programs::folder().join("xtask")).args(arguments).current_dir(programs::root()))
}

#[test]
fn the_demo_runs_again_and_stops() {
    let name = "the_demo_runs_again_and_stops";
    if !tools::ready(name, &["mkfs.ext4", "nbdfuse", "mount", "losetup"]) || !possible(name) {
        return;
    }
    let folder = tempfile::TempDir::new().unwrap();
    let dir = folder.path().join("demo");
    let at = dir.to_str().unwrap();
    let ended = Stop(at);
    // Twice: a demo that is there is replaced.
    for _ in 0..2 {
        let answer = xtask(&["demo", "--dir", at, "--size-mib", "64"]);
        assert_eq!(answer.code, 0, "{}\n{}", answer.out, answer.err);
        assert!(answer.out.contains("100.0 %") && answer.out.contains("same checksums"), "{}", answer.out);
    }
    // It goes on running, with the file system mounted on bob.
    let role = tools::run(dir.join("bob").to_str().unwrap(), &["role", "r0"]);
    assert_eq!(role, "Primary\n");
    assert_eq!(std::fs::metadata(dir.join("mnt/four-megabytes")).unwrap().len(), 4 << 20);
    let pids = ["alice.pid", "bob.pid", "nbdfuse.pid"].map(|file| std::fs::read_to_string(dir.join(file)));
    drop(ended);
    assert!(!dir.exists(), "something is left in {at}");
    for pid in pids.into_iter().flatten() {
        let command = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
        assert!(!command.contains(at), "process {pid} still runs");
    }
    let loops = tools::run("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"]);
    assert!(!loops.contains(at), "a loop device is left: {loops}");
}

/// The demo ends, whatever happens to the test.
struct Stop<'a>(&'a str);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        let answer = xtask(&["demo", "--stop", "--dir", self.0]);
        if !std::thread::panicking() {
            assert_eq!(answer.code, 0, "{answer:?}");
        }
    }
}

/// A block of the README between ``` lines, and the comment before it that says where it belongs.
struct Block {
    place: String,
    text: String,
}

fn blocks() -> Vec<Block> {
    let readme = std::fs::read_to_string(programs::root().join("README.md")).unwrap();
    let (mut blocks, mut place, mut text) = (Vec::new(), String::new(), None::<String>);
    for line in readme.lines() {
        match &mut text {
            Some(_) if line.starts_with("```") => {
                let text = text.take().expect("inside of a block");
                blocks.push(Block { place: std::mem::take(&mut place), text });
            }
            Some(text) => *text += &format!("{line}\n"),
            None if line.starts_with("```") => text = Some(String::new()),
            None => {
                if let Some(comment) = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->")) {
                    place = comment.to_string();
                }
            }
        }
    }
    blocks
}

/// Two machines: a node each, with a root folder for what the commands install and mount.
struct Machine<'a> {
    node: Node,
    root: &'a Path,
    device: Option<Device>,
}

impl Machine<'_> {
    /// A command of the README, with this machine's paths; the daemon in place of systemd, which has no namespace.
    fn type_in(&mut self, line: &str) {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        match words[..] {
            [] => {}
            ["replicactl", ..] => drop(self.node.done(&words[1..].join(" "))),
            ["systemctl", "enable", "--now", "replicad"] => {
                let unit = std::fs::read_to_string(self.root.join("etc/systemd/system/replicad.service")).unwrap();
                assert!(unit.contains("ExecStart=/usr/sbin/replicad --config /etc/replicad\n"), "{unit}");
                assert!(self.root.join("usr/sbin/replicad").is_file());
                self.node.start();
                let after = unit.lines().filter_map(|line| line.strip_prefix("ExecStartPost=-/usr/sbin/replicactl "));
                let after: Vec<&str> = after.collect();
                assert_eq!(after, ["up all"], "{unit}");
                after.into_iter().for_each(|line| drop(self.node.done(line)));
            }
            ["install" | "mkfs.ext4" | "mount" | "umount", ..] => self.run(&words),
            _ => panic!("the README has a command that this test does not know: {line}"),
        }
    }

    fn run(&mut self, words: &[&str]) {
        if words.contains(&"/dev/ublkb10") && self.device.is_none() {
            self.device = Some(Device::open(&self.node, self.root));
        }
        let built = programs::folder().to_str().unwrap().to_string();
        let arguments = words[1..].iter().map(|word| match *word {
            "/dev/ublkb10" => self.device.as_ref().expect("opened above").path().to_string(),
            word if word.starts_with('/') => format!("{}{word}", self.root.display()),
            word if word.starts_with("target/release/") => word.replace("target/release", &built),
            word if word.starts_with("systemd/") => programs::root().join(word).display().to_string(),
            word => word.to_string(),
        });
        let arguments: Vec<String> = arguments.collect();
        tools::run(words[0], &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        if words[0] == "umount" {
            self.device = None;
            self.node.wait("nobody holds the device", |state| !state.0.devices[0].open);
        }
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if self.device.is_some() {
            tools::output("umount", &[&self.root.join("mnt").display().to_string()]);
        }
    }
}

#[test]
fn the_commands_of_the_readme_do_what_it_says() {
    let name = "the_commands_of_the_readme_do_what_it_says";
    let programs = ["ip", "mkfs.ext4", "nbdfuse", "mount", "losetup", "install"];
    if !tools::ready(name, &programs) || !possible(name) {
        return;
    }
    let network = Network::new(2);
    let folder = tempfile::TempDir::new().unwrap();
    let roots = ["alice", "bob"].map(|name| folder.path().join(name));
    let mut machines: Vec<Machine> = Vec::new();
    for (at, (name, root)) in (0..2u8).zip(["alice", "bob"].into_iter().zip(&roots)) {
        network.add_address(at, &format!("10.1.1.{}/24", 31 + at));
        for path in ["usr/sbin", "etc/systemd/system", "etc/replicad", "mnt"] {
            std::fs::create_dir_all(root.join(path)).unwrap();
        }
        let mut node = Node::new(root, name, network.namespace(at), root.join("disk"));
        std::fs::File::create(&node.disk).and_then(|disk| disk.set_len(64 << 20)).unwrap();
        node.config = root.join("etc/replicad");
        machines.push(Machine { node, root, device: None });
    }
    let mut typed = 0;
    for block in blocks() {
        let (who, what) = block.place.split_once(": ").unwrap_or((&block.place, ""));
        let chosen = machines.iter_mut().filter(|machine| who == "both" || who == machine.node.name);
        for machine in chosen {
            if let Some(path) = what.strip_prefix('/') {
                // The file as it stands there; only the disk is one that this machine has.
                let text = block.text.replace("/dev/vg0/r0", machine.node.disk.to_str().unwrap());
                std::fs::write(machine.root.join(path), text).unwrap();
                continue;
            }
            for line in block.text.lines() {
                machine.type_in(line);
                typed += 1;
            }
            if machine.node.name == "alice" && machine.device.is_some() {
                std::fs::write(machine.root.join("mnt/file"), pattern(1 << 20, 1)).unwrap();
                machine.node.done("wait-sync r0 --timeout 120");
            }
        }
    }
    assert!(typed >= 15, "only {typed} commands were found: has the README other marks?");
    assert!(std::fs::read(roots[1].join("mnt/file")).unwrap() == pattern(1 << 20, 1), "bob has another file");
    // Blocks without a mark hold the picture, and commands that are tested elsewhere.
    for block in blocks().iter().filter(|block| block.place.is_empty()) {
        let commands = block.text.lines().filter(|line| line.starts_with("cargo"));
        for line in commands.map(|line| line.split('#').next().unwrap_or_default().trim()) {
            assert!(["cargo xtask demo", "cargo xtask test"].contains(&line), "{line} is not tested");
        }
    }
}
