//! What the process asks of the kernel so that it never waits for itself. All of it is best effort, with a warning:
//! in a container or without privileges the daemon still works, only less safely under memory pressure.

use rustix::mm::MlockAllFlags;

/// The OOM killer takes nearly everything else first; -1000 would hide a leak of ours for ever.
const OOM_SCORE_ADJ: &str = "-900";
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

/// The group that may ask questions, if the host has it.
pub fn group_id(name: &std::ffi::CStr) -> Option<u32> {
    // SAFETY: called before threads are started (getgrnam uses static memory); the result is read at once.
    let group = unsafe { libc::getgrnam(name.as_ptr()) };
    // SAFETY: null or a valid group.
    unsafe { group.as_ref() }.map(|group| group.gr_gid)
}
