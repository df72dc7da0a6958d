//! The resource thread's io_uring ring: submissions with a tag, completions in batches, a wait with a deadline.
//!
//! Contract: only the thread that made the ring uses it. Memory that a submission names belongs to the kernel from
//! [`Ring::push`] until its completion came out of [`Ring::wait`], whatever happens to the request meanwhile; owners
//! therefore stay in their tables (as "closing") until all of theirs came back.

use std::io;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, squeue};

use crate::slots::Key;

/// What a completion belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// The eventfd by which the control plane wakes the thread.
    Wake = 1,
    PeerReceive = 2,
    PeerSend = 3,
    Disk = 4,
    NbdReceive = 5,
    NbdSend = 6,
    /// The generation's low 16 bits are the tag of the queue.
    UblkCommand = 7,
    UblkPayload = 8,
    UblkEvent = 9,
}

impl Kind {
    fn from_number(number: u8) -> Kind {
        match number {
            1 => Kind::Wake,
            2 => Kind::PeerReceive,
            3 => Kind::PeerSend,
            4 => Kind::Disk,
            5 => Kind::NbdReceive,
            6 => Kind::NbdSend,
            7 => Kind::UblkCommand,
            8 => Kind::UblkPayload,
            9 => Kind::UblkEvent,
            other => panic!("a completion of kind {other}, which was never submitted"),
        }
    }
}

/// The 64 bits that travel with a submission: kind, slot (24 bits), generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    pub kind: Kind,
    pub key: Key,
}

impl Tag {
    pub fn new(kind: Kind, key: Key) -> Tag {
        assert!(key.slot < 1 << 24, "slot {} does not fit in a tag", key.slot);
        Tag { kind, key }
    }

    pub fn to_bits(self) -> u64 {
        (self.kind as u64) << 56 | u64::from(self.key.slot) << 32 | u64::from(self.key.generation)
    }

    fn from_bits(bits: u64) -> Tag {
        let key = Key { slot: (bits >> 32) as u32 & 0xff_ffff, generation: bits as u32 };
        Tag { kind: Kind::from_number((bits >> 56) as u8), key }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub tag: Tag,
    /// Bytes, or minus errno.
    pub result: i32,
}

/// The kernel takes a send of so many bytes at once, unless the peer does not read.
const SMALL_SEND_BYTES: u64 = 16 << 10;
/// How long a wait goes on for completions that should have been there at once. Longer than a tick of the kernel's: for
/// less it would set the processor's timer anew for each wait.
const SOON: Duration = Duration::from_millis(10);
/// A peer that does not read is likely not to for a while: so many sends are waited for as any other operation is.
const SENDS_AFTER_A_SLOW_ONE: u32 = 1000;

/// Places in the table of fixed buffers. The kernel's limit is 16384; a place takes a few bytes.
const FIXED_BUFFERS: u16 = 4096;

pub struct Ring {
    uring: IoUring,
    /// There is a table of fixed buffers.
    has_table: bool,
    /// Small sends since the last wait.
    soon: usize,
    /// Small sends to come that are not expected to be done at once.
    slow_sends: u32,
    /// The kernel can wait for more than one completion and be content with one after a while (6.12).
    waits_for_more: bool,
    /// Taken out while entries were pushed, because the kernel had no room for more.
    early: Vec<Completion>,
}

impl Ring {
    /// `entries`: submissions that are collected before the kernel is called; more are flushed in between.
    pub fn new(entries: u32) -> io::Result<Ring> {
        // One thread submits and is content to run completions when it enters the kernel. Kernel 6.1 and newer;
        // older ones get the plain ring.
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(entries * 4)
            .build(entries)
            .or_else(|_| IoUring::builder().setup_cqsize(entries * 4).build(entries))?;
        if !uring.params().is_feature_ext_arg() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "io_uring of this kernel cannot wait with a timeout; Linux 5.11 or newer is needed",
            ));
        }
        let waits_for_more = uring.params().is_feature_min_timeout();
        Ok(Ring { uring, has_table: false, soon: 0, slow_sends: 0, waits_for_more, early: Vec::new() })
    }

    /// How many places for fixed buffers there are, all empty when it is called first: 5.19 and newer. For buffers that
    /// the kernel puts there by itself.
    pub fn fixed_buffers(&mut self) -> io::Result<u16> {
        if !self.has_table {
            self.uring.submitter().register_buffers_sparse(FIXED_BUFFERS.into())?;
            self.has_table = true;
        }
        Ok(FIXED_BUFFERS)
    }

    /// # Safety
    /// Memory and descriptors that `entry` names stay valid, and memory it writes to is not touched, until the
    /// completion with `tag` was taken from [`Ring::wait`].
    pub unsafe fn push(&mut self, entry: squeue::Entry, tag: Tag) {
        // SAFETY: the caller's promise.
        unsafe { self.push_tagged(entry.user_data(tag.to_bits())) };
    }

    /// A send of so many bytes. A small one is done while it is submitted, and nothing follows from that: the next wait
    /// is for more. If the peer does not read and it is not, other completions may wait for it for [`SOON`], once.
    ///
    /// # Safety
    /// As for `push`.
    pub unsafe fn push_send(&mut self, entry: squeue::Entry, tag: Tag, bytes: u64) {
        if self.waits_for_more && bytes <= SMALL_SEND_BYTES {
            match self.slow_sends.checked_sub(1) {
                Some(left) => self.slow_sends = left,
                None => self.soon += 1,
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.push(entry, tag) };
    }

    /// An entry whose user data are the bits of a [`Tag`] already.
    ///
    /// # Safety
    /// As for `push`.
    pub unsafe fn push_tagged(&mut self, entry: squeue::Entry) {
        // SAFETY: the caller's promise.
        while unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.submit();
        }
    }

    fn submit(&mut self) {
        match self.uring.submit() {
            Ok(_) => {}
            // Completions overflow and the kernel takes nothing more: without room for them it stays so for ever.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => self.early.extend(completions(&mut self.uring)),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {}
            Err(e) => panic!("io_uring_enter failed: {e}"),
        }
    }

    /// Submits what was pushed and appends completions to `out`. Returns once there is one, or after `timeout`;
    /// zero: does not wait.
    pub fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) {
        let ready = !self.early.is_empty() || !self.uring.completion().is_empty();
        let first = out.len();
        out.append(&mut self.early);
        let soon = std::mem::take(&mut self.soon);
        if ready || timeout == Some(Duration::ZERO) {
            self.submit_and_get_events(0, Some(Duration::ZERO));
        } else {
            // The kernel would wait for more beyond a deadline that comes sooner.
            let more = if timeout.is_some_and(|timeout| timeout < SOON) { 0 } else { soon };
            self.submit_and_get_events(1 + more, timeout);
        }
        out.extend(completions(&mut self.uring));
        let sends = out[first..].iter().filter(|completion| completion.tag.kind == Kind::PeerSend).count();
        if sends < soon {
            self.slow_sends = SENDS_AFTER_A_SLOW_ONE;
        }
    }

    fn submit_and_get_events(&mut self, want: usize, timeout: Option<Duration>) {
        let time = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if want > 1 {
            args = args.min_wait_usec(SOON.as_micros() as u32);
        }
        let submitter = self.uring.submitter();
        let result = match &time {
            None => submitter.submit_with_args(want, &args),
            Some(time) => submitter.submit_with_args(want, &args.timespec(time)),
        };
        match result {
            Ok(_) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(e) => panic!("io_uring_enter failed: {e}"),
        }
    }
}

fn completions(uring: &mut IoUring) -> impl Iterator<Item = Completion> {
    let taken = |entry: cqueue::Entry| Completion { tag: Tag::from_bits(entry.user_data()), result: entry.result() };
    uring.completion().map(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_survives_its_64_bits() {
        for kind in [Kind::Wake, Kind::PeerReceive, Kind::PeerSend, Kind::Disk, Kind::NbdReceive, Kind::NbdSend] {
            for (slot, generation) in [(0, 0), (0xff_ffff, u32::MAX), (1, 2)] {
                let tag = Tag::new(kind, Key { slot, generation });
                assert_eq!(Tag::from_bits(tag.to_bits()), tag);
            }
        }
    }

    #[test]
    fn more_submissions_than_entries_and_completions_all_complete() {
        const COUNT: u32 = 5000;
        let mut ring = Ring::new(4).unwrap();
        for slot in 0..COUNT {
            let tag = Tag::new(Kind::Wake, Key { slot, generation: 7 });
            // SAFETY: a no-op names no memory.
            unsafe { ring.push(io_uring::opcode::Nop::new().build(), tag) };
        }
        let mut seen = Vec::new();
        while seen.len() < COUNT as usize {
            let mut batch = Vec::new();
            ring.wait(None, &mut batch);
            seen.extend(batch.iter().map(|c| c.tag.key.slot));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..COUNT).collect::<Vec<_>>());
    }

    #[test]
    fn a_wait_is_for_more_than_small_sends() {
        let mut ring = Ring::new(4).unwrap();
        let tag = |slot| Tag::new(Kind::PeerSend, Key { slot, generation: 7 });
        let time = Timespec::from(Duration::from_millis(5));
        let nop = io_uring::opcode::Nop::new().build();
        // SAFETY: a no-op names no memory; the time lives until the end of the test, which is after its completion.
        unsafe {
            ring.push_send(nop.clone(), tag(1), 0);
            ring.push(io_uring::opcode::Timeout::new(&raw const time).build(), tag(2));
        }
        let mut out = Vec::new();
        while !out.iter().any(|c: &Completion| c.tag == tag(2)) {
            ring.wait(None, &mut out);
        }
        assert_eq!(out.len(), 2);
        // Nothing else comes: the wait ends with what there is.
        // SAFETY: as above.
        unsafe { ring.push_send(nop, tag(3), 0) };
        ring.wait(None, &mut out);
        assert_eq!(out.last().unwrap().tag, tag(3));
    }

    #[test]
    fn a_wait_without_work_ends_at_its_deadline() {
        let mut ring = Ring::new(4).unwrap();
        let mut out = Vec::new();
        ring.wait(Some(Duration::from_millis(1)), &mut out);
        ring.wait(Some(Duration::ZERO), &mut out);
        assert!(out.is_empty());
    }
}
