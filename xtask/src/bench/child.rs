//! Programs that run beside the bench and never outlive it: neither an error nor a signal leaves one behind.

use crate::demo::node::log_file;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::time::{Duration, Instant};

/// For a start or an end; far above anything that works.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

pub struct Child {
    child: process::Child,
    log: PathBuf,
}

impl Child {
    /// Call it from the main thread: the kernel ends the program when the thread that started it ends.
    pub fn start(command: &mut Command, log: &Path) -> Result<Child> {
        let file = log_file(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let die_with_us = || {
            // Safety: plain numbers, no memory.
            let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // Safety: between fork and exec it calls only prctl, which is async-signal-safe.
        let child = unsafe { command.pre_exec(die_with_us) }.spawn();
        Ok(Child { child: child.with_context(|| format!("cannot run {command:?}"))?, log: log.into() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Until `ready`. An error says what the program said if it ends before.
    pub fn wait_until(&mut self, what: &str, ready: impl Fn() -> bool) -> Result<()> {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("waited for {what}; the program ended with {status}: {}", self.said());
            }
            if start.elapsed() > PATIENCE {
                bail!("waited in vain for {what}: {}", self.said());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The last of its log.
    fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Child {
    /// Politely, then not: a disk's copies are compared after this.
    fn drop(&mut self) {
        let start = Instant::now();
        // Safety: plain numbers; the process is our child and was not waited for, so the number is still its own.
        if !self.has_ended() {
            unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        }
        while !self.has_ended() {
            if start.elapsed() > PATIENCE {
                eprintln!("xtask: process {} does not end and is killed; see {}", self.pid(), self.log.display());
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}

/// What the kernel counts of some processes.
#[derive(Clone, Copy, Default)]
pub struct Used {
    /// In programs and in the kernel, all threads.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    /// Times that a thread went to sleep: each was woken up before.
    pub sleeps: u64,
}

impl Used {
    pub fn of(pids: &[u32]) -> Result<Used> {
        let mut sum = Used::default();
        for pid in pids {
            let one = used(*pid).with_context(|| format!("process {pid}"))?;
            sum.cpu_seconds += one.cpu_seconds;
            sum.resident_bytes += one.resident_bytes;
            sum.sleeps += one.sleeps;
        }
        Ok(sum)
    }
}

fn used(pid: u32) -> Result<Used> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold anything, its closing bracket is the last one. utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3).context("too short").and_then(|text| Ok(text.parse::<u64>()?));
    // Safety: no memory.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut sleeps = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let status = fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
        sleeps += number(&status, "voluntary_ctxt_switches:").unwrap_or(0);
    }
    Ok(Used {
        cpu_seconds: (ticks(14)? + ticks(15)?) as f64 / per_second,
        resident_bytes: number(&status, "VmRSS:").context("no VmRSS")? << 10,
        sleeps,
    })
}

fn number(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_something() {
        let used = Used::of(&[process::id()]).expect("this process runs");
        assert!(used.resident_bytes > 1 << 20);
    }
}
