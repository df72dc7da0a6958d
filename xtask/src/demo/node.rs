//! One node of the demo: its daemon and how to talk to it.

use super::PATIENCE;
use crate::workspace;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub struct Node {
    pub dir: PathBuf,
    programs: PathBuf,
    pub name: String,
}

impl Node {
    pub fn new(dir: &Path, programs: &Path, name: &str) -> Node {
        Node { dir: dir.into(), programs: programs.into(), name: name.into() }
    }

    fn path(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{}.{what}", self.name))
    }

    pub fn disk(&self) -> PathBuf {
        self.path("img")
    }

    pub fn log(&self) -> PathBuf {
        self.path("log")
    }

    pub fn pid_file(&self) -> PathBuf {
        self.path("pid")
    }

    fn arguments(&self) -> String {
        let config = self.dir.join("replicad.toml");
        format!("--config '{}' --node {} --run-dir '{}'", config.display(), self.name, self.path("run").display())
    }

    /// `DIR/alice` is `replicactl` for alice, `DIR/alice-daemon` her daemon, so that there is little to type.
    pub fn write_command(&self) -> Result<()> {
        let ctl = format!("exec '{}' {} \"$@\"", self.programs.join("replicactl").display(), self.arguments());
        let log = self.log().display().to_string();
        let daemon = format!(
            "echo $$ >'{}'\nexec '{}' {} </dev/null >>'{log}' 2>&1",
            self.pid_file().display(),
            self.programs.join("replicad").display(),
            self.arguments()
        );
        for (name, line) in [(self.name.clone(), ctl), (format!("{}-daemon", self.name), daemon)] {
            let path = self.dir.join(name);
            fs::write(&path, format!("#!/bin/sh\n{line}\n"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    /// Starts the daemon in a session of its own: it stays when this program ends.
    pub fn start(&self) -> Result<()> {
        let mut command = Command::new(self.dir.join(format!("{}-daemon", self.name)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut daemon = command.spawn().context("cannot start the daemon")?;
        let start = Instant::now();
        while self.status_text().is_err() {
            if let Some(status) = daemon.try_wait()? {
                bail!("the daemon of {} ended with {status}; see {}", self.name, self.log().display());
            }
            if start.elapsed() > PATIENCE {
                bail!("the daemon of {} does not answer; see {}", self.name, self.log().display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn ctl(&self, line: &str) -> Result<String> {
        workspace::output(self.dir.join(&self.name), line.split_whitespace())
    }

    fn status_text(&self) -> Result<String> {
        self.ctl("status r0 --json")
    }

    /// Shows the command as a person would type it, then runs it.
    pub fn show(&self, line: &str) -> Result<String> {
        println!("{}# replicactl {line}", self.name);
        self.ctl(line)
    }

    pub fn status(&self) -> Result<Value> {
        let text = self.status_text()?;
        let mut all: Value = serde_json::from_str(&text).context("status --json")?;
        Ok(all[0].take())
    }

    pub fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let start = Instant::now();
        loop {
            let status = self.status()?;
            if wanted(&status) {
                return Ok(status);
            }
            if start.elapsed() > PATIENCE {
                bail!("{} waited in vain for {what}; see {}", self.name, self.log().display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Ends the node's daemon if it runs.
pub fn end(dir: &Path, name: &str) -> Result<()> {
    end_process(&dir.join(format!("{name}.pid")), dir)
}

/// Ends the process whose number is in `file`, if its command line names `dir`: numbers are used again.
pub fn end_process(file: &Path, dir: &Path) -> Result<()> {
    let Ok(text) = fs::read_to_string(file) else { return Ok(()) };
    let pid: i32 = text.trim().parse().with_context(|| format!("{} holds no process id", file.display()))?;
    let ours = || {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&*dir.to_string_lossy())
    };
    let start = Instant::now();
    // Leaving cleanly may take a while, for ever it must not.
    let mut signal = libc::SIGTERM;
    while ours() {
        // Safety: plain numbers; the process was just seen to be ours.
        unsafe { libc::kill(pid, signal) };
        signal = if start.elapsed() > Duration::from_secs(15) { libc::SIGKILL } else { 0 };
        if start.elapsed() > PATIENCE {
            bail!("process {pid} of {} does not end", file.display());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A log that a started program writes to.
pub fn log_file(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).with_context(|| format!("cannot write {}", path.display()))
}
