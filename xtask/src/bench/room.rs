//! A folder in memory for disks that cost only what the software around them costs. One per working copy; gone when
//! dropped, when a signal ends the bench, or at the next start if the bench was killed.

use crate::workspace;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::CString;
use std::fs;
use std::io::Read;
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

const MEMORY: &str = "/dev/shm";
/// For logs, sockets and what a file system needs beside the data.
const SPARE_BYTES: u64 = 64 << 20;

pub struct Room {
    pub dir: PathBuf,
}

impl Room {
    /// With at least `bytes` free. The error is a reason to leave a part of the bench out.
    pub fn open(bytes: u64) -> Result<Room> {
        let dir = path();
        let _ = fs::remove_dir_all(&dir);
        let free = free_bytes(Path::new(MEMORY))?.min(available_bytes()?);
        ensure!(free >= bytes + SPARE_BYTES, "needs {} MiB in {MEMORY}, {} are free", bytes >> 20, free >> 20);
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Room { dir })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("xtask: cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// What the files of a folder take, holes left out.
pub fn allocated_bytes(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let found = entry?.metadata()?;
        sum += if found.is_file() { found.blocks() * 512 } else { 0 };
    }
    Ok(sum)
}

/// Two working copies do not share it. Short: it holds unix sockets.
fn path() -> PathBuf {
    Path::new(MEMORY).join(format!("replicad-bench-{:08x}", hash(workspace::target().as_os_str().as_bytes())))
}

fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(7, |hash: u32, byte| hash.wrapping_mul(31).wrapping_add(u32::from(*byte)))
}

/// Free space of a file system in memory.
fn free_bytes(dir: &Path) -> Result<u64> {
    let name = CString::new(dir.as_os_str().as_bytes())?;
    // Safety: all zeroes is a value of this plain structure; the call fills it.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // Safety: a terminated string and a structure that lives as long as the call.
    if unsafe { libc::statfs(name.as_ptr(), &raw mut found) } != 0 {
        bail!("{}: {}", dir.display(), std::io::Error::last_os_error());
    }
    ensure!(found.f_type == libc::TMPFS_MAGIC, "{} is no tmpfs", dir.display());
    Ok(found.f_bavail * found.f_bsize as u64)
}

/// A tmpfs may promise more than the machine has.
fn available_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("/proc/meminfo")?;
    let kib: u64 = line.split_whitespace().next().context("/proc/meminfo")?.parse()?;
    Ok(kib << 10)
}

/// Where `on_signal` writes to.
static SIGNALS: AtomicI32 = AtomicI32::new(-1);

/// From here on a signal removes the room; the kernel ends the children (`Child`). A handler, not a blocked mask:
/// children would inherit that, and not hear a signal that is meant to end them.
pub fn clean_up_on_signals() -> Result<()> {
    let (mut reader, writer) = UnixStream::pair()?;
    SIGNALS.store(writer.into_raw_fd(), Ordering::Relaxed);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // Safety: the handler does nothing but write(2), which is async-signal-safe.
        let old = unsafe { libc::signal(signal, on_signal as *const () as libc::sighandler_t) };
        ensure!(old != libc::SIG_ERR, "signal {signal}: {}", std::io::Error::last_os_error());
    }
    std::thread::spawn(move || {
        let mut signal = [0];
        if reader.read_exact(&mut signal).is_ok() {
            let _ = fs::remove_dir_all(path());
            eprintln!("xtask: ended by signal {}", signal[0]);
            std::process::exit(128 + i32::from(signal[0]));
        }
    });
    Ok(())
}

extern "C" fn on_signal(signal: libc::c_int) {
    let byte = signal as u8;
    // Safety: the descriptor is open for ever, the byte lives as long as the call. A second signal that finds no room
    // adds nothing.
    let _ = unsafe { libc::write(SIGNALS.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}
