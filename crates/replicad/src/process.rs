//! What the process asks of the kernel so that it never waits for itself. All of it is best effort, with a warning:
//! in a container or without privileges the daemon still works, only less safely under memory pressure.

use std::time::Duration;

use rustix::mm::MlockAllFlags;

/// The OOM killer takes nearly everything else first; -1000 would hide a leak of ours for ever.
const OOM_SCORE_ADJ: &str = "-900";
/// The scheduler's default with eight processors and more, roughly.
const SLICE: Duration = Duration::from_millis(3);
/// Not in every libc crate. Source: linux/prctl.h, since 5.6.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Once, before threads are started.
pub fn prepare() {
    let locked = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
    if let Err(error) = locked {
        tracing::warn!("memory is not locked: {error}; under memory pressure the daemon may wait for its own device");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ) {
        tracing::warn!("the OOM score is not lowered: {error}");
    }
}

/// In each thread on the write path: its allocations must not wait for writeback through its own device.
pub fn mark_thread_as_io_flusher() {
    // SAFETY: takes numbers only and changes nothing but a flag of this thread.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!("PR_SET_IO_FLUSHER: {error}; under memory pressure the daemon may wait for its own device");
    }
}

/// In each thread on the write path: once it runs, it goes on for so long before another program of the same processor has
/// its turn. What a large machine gives everybody; with one processor the default is a quarter of it, and a switch between
/// programs comes with every few requests (docs/decisions/0014). Kernels before 6.12 have one time for all: no effect.
pub fn ask_for_long_slices() {
    if let Err(error) = lengthen_slice(SLICE) {
        tracing::debug!("sched_setattr: {error}; the thread keeps the scheduler's default slice");
    }
}

/// Nice value and policy stay as the service manager set them; a longer slice, too.
fn lengthen_slice(slice: Duration) -> std::io::Result<()> {
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: all fields are numbers.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: writes at most `size` bytes into the structure, which lives here.
    let read = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if read != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let wanted = slice.as_nanos() as u64;
    if attributes.sched_policy != libc::SCHED_OTHER as u32 || attributes.sched_runtime >= wanted {
        return Ok(());
    }
    attributes.sched_runtime = wanted;
    // SAFETY: reads the structure only.
    let written = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if written != 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The group that may ask questions, if the host has it.
pub fn group_id(name: &std::ffi::CStr) -> Option<u32> {
    // SAFETY: called before threads are started (getgrnam uses static memory); the result is read at once.
    let group = unsafe { libc::getgrnam(name.as_ptr()) };
    // SAFETY: null or a valid group.
    unsafe { group.as_ref() }.map(|group| group.gr_gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes() -> libc::sched_attr {
        // SAFETY: all fields are numbers; the call writes at most that many bytes.
        unsafe {
            let mut attributes: libc::sched_attr = std::mem::zeroed();
            let size = size_of::<libc::sched_attr>() as u32;
            assert_eq!(libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0), 0);
            attributes
        }
    }

    #[test]
    fn a_thread_gets_a_longer_slice_and_nothing_else_changes() {
        let (before, after, shorter) = std::thread::spawn(|| {
            // SAFETY: a number; of this thread only.
            unsafe { libc::nice(3) };
            let before = attributes();
            lengthen_slice(Duration::from_millis(9)).unwrap();
            let after = attributes();
            lengthen_slice(Duration::from_millis(5)).unwrap();
            (before, after, attributes())
        })
        .join()
        .unwrap();
        assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, 3));
        if before.sched_runtime == 0 {
            return println!("this kernel has one slice for all");
        }
        assert_eq!(after.sched_runtime, 9_000_000);
        assert_eq!(shorter.sched_runtime, 9_000_000);
    }
}
