//! The repository as the tasks see it: folders, builds, programs that are run with their output kept.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask lies in the repository").to_path_buf()
}

pub fn target() -> PathBuf {
    // `join` takes an absolute path as it is.
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Builds the programs with one profile and gives the folder that holds them.
pub fn build_programs(profile: &str) -> Result<PathBuf> {
    build(profile, &["-p", "replicad", "-p", "ctl"])
}

/// Builds what cargo's arguments name and gives the profile's folder.
pub fn build(profile: &str, arguments: &[&str]) -> Result<PathBuf> {
    let status = cargo().args(["build", "--profile", profile]).args(arguments).status()?;
    if !status.success() {
        bail!("cargo build {} failed", arguments.join(" "));
    }
    Ok(target().join(if profile == "dev" { "debug" } else { profile }))
}

/// Runs to the end with all output in `log`. An error names the log and shows its last lines.
pub fn run_logged(command: &mut Command, log: &Path, limit: Duration) -> Result<()> {
    let folder = log.parent().context("a log lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("ended after its limit of {} s\n{}", limit.as_secs(), tail(log));
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    if status.success() {
        return Ok(());
    }
    bail!("{status}\n{}", tail(log));
}

/// The last lines of a log, indented.
fn tail(log: &Path) -> String {
    const LINES: usize = 40;
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    last.iter().map(|line| format!("    {line}\n")).collect()
}

/// What a program printed; an error has what it said.
pub fn output<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = A>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("{:?} failed ({}): {}", command.get_program(), output.status, said.trim());
}

pub fn is_root() -> bool {
    // Safety: no arguments, no memory.
    unsafe { libc::geteuid() == 0 }
}
