//! The data half: one queue of requests, served from the ring of whoever owns it.
//!
//! Contract.
//! - Ownership: the driver binds a queue to the task that issues its first fetch command. All entries of a queue must be
//!   submitted by that one thread. `Queue` is not `Sync`, and makes no system call but mmap and munmap.
//! - Memory: entries returned by `take_payload` and `give_payload` carry raw pointers: the buffer must stay where it is
//!   until their completion was seen.
//! - Life of a tag: `Fetching` (the kernel holds a command, waiting for a request) -> `Serving` (a request is ours) ->
//!   `finish` -> `Fetching` … Both end in `Down`: an idle tag at once when the device stops, a serving one at the fetch
//!   that follows its `finish`. Every request is finished exactly once (asserted).
//! - Registered buffers (`DeviceOptions::register_buffers`): while a tag is served, the application's pages are a fixed
//!   buffer of the ring, at the place that its request names. Entries on them are through before `finish`.
//! - Liveness: a stop completes only while the loop goes on serving: what is in flight must be finished.

use crate::error::UblkError;
use crate::request::{Descriptor, Request, errno};
use io_uring::{opcode, squeue, types as ring};
use libublk::io::{UblkDev, UblkIOCtx};
use libublk::sys;
use std::io;
use std::os::fd::RawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use types::IoError;

/// How payload bytes travel between the application's pages and our buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataMode {
    /// We read and write them through the character device, from and to any buffer. Linux 6.5 and newer.
    UserCopy,
    /// The driver copies them to and from one fixed buffer per tag, the whole request at once.
    Copy,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tag {
    /// Not started.
    Idle,
    Fetching,
    Serving(Request),
    /// The device went away.
    Down,
}

/// The only queue of a device: one thread serves it, so more would be no faster.
pub struct Queue {
    id: u32,
    device: RawFd,
    size_bytes: u64,
    mode: DataMode,
    /// Place of tag 0 in the ring's table of fixed buffers; tag n has the n-th after it. `None`: no place, so that nothing
    /// is registered. Outer `None`: the device does not register at all.
    registers: Option<Option<u16>>,
    descriptors: Mapping,
    /// One per tag, `io_bytes_max` each; empty in `UserCopy`.
    buffers: Option<Mapping>,
    buffer_bytes: usize,
    tags: Vec<Tag>,
    user_data: u64,
    /// Keeps the character device open. Last: everything above is gone before it.
    _keep_open: Arc<UblkDev>,
}

const QUEUE_ID: u16 = 0;
/// No table is so long: the kernel finds no place, and says so with the request.
const NO_PLACE: u16 = u16::MAX;

impl Queue {
    /// `user_data`: the completions of this queue's commands carry `user_data | tag`; its low 16 bits must be zero.
    /// `first_buffer`: see `Device::queue`.
    pub(crate) fn new(
        dev: Arc<UblkDev>,
        size_bytes: u64,
        mode: DataMode,
        user_data: u64,
        first_buffer: Option<u16>,
    ) -> Result<Queue, UblkError> {
        assert!(user_data & 0xffff == 0, "user data {user_data:#x}: the low 16 bits are the tag's");
        let info = dev.dev_info;
        let id = info.dev_id;
        let device = dev.tgt.fds[0];
        let depth = info.queue_depth;
        let bytes = usize::from(depth) * size_of::<sys::ublksrv_io_desc>();
        let map_error = |source| UblkError::Map { id, source };
        let descriptors = Mapping::of_device(device, bytes).map_err(map_error)?;
        let buffer_bytes = info.max_io_buf_bytes as usize;
        let buffers = match mode {
            DataMode::UserCopy => None,
            DataMode::Copy => Some(Mapping::anonymous(buffer_bytes * usize::from(depth)).map_err(map_error)?),
        };
        let tags = vec![Tag::Idle; usize::from(depth)];
        let registers = (info.flags & u64::from(sys::UBLK_F_AUTO_BUF_REG) != 0).then_some(first_buffer);
        Ok(Queue {
            id,
            device,
            size_bytes,
            mode,
            registers,
            descriptors,
            buffers,
            buffer_bytes,
            tags,
            user_data,
            _keep_open: dev,
        })
    }

    /// Pushes the first fetch command of every tag. Once; from the thread that will serve the queue.
    pub fn start(&mut self, push: &mut impl FnMut(squeue::Entry)) {
        for tag in 0..self.depth() {
            assert!(self.tags[usize::from(tag)] == Tag::Idle, "queue {} was started twice", self.id);
            self.fetch(tag, sys::UBLK_U_IO_FETCH_REQ, -1, push);
        }
    }

    /// A completion whose user data is ours. A request, or nothing if the tag went down or was answered here (`push` is
    /// for that answer). An error means that this tag will never work.
    pub fn on_cqe(
        &mut self,
        tag: u16,
        result: i32,
        push: &mut impl FnMut(squeue::Entry),
    ) -> Result<Option<Request>, UblkError> {
        let state = self.tags[usize::from(tag)];
        assert!(state == Tag::Fetching, "completion for tag {tag} of queue {}, which is {state:?}", self.id);
        if result == sys::UBLK_IO_RES_ABORT || result == -libc::ECANCELED {
            self.tags[usize::from(tag)] = Tag::Down;
            return Ok(None);
        }
        if result != sys::UBLK_IO_RES_OK as i32 {
            self.tags[usize::from(tag)] = Tag::Down;
            let source = io::Error::from_raw_os_error(result.abs());
            return Err(UblkError::Fetch { id: self.id, tag, source });
        }
        let place = self.place(tag);
        match Request::decode(tag, self.descriptor(tag), self.size_bytes, place) {
            Ok(request) => {
                self.tags[usize::from(tag)] = Tag::Serving(request);
                Ok(Some(request))
            }
            Err(refused) => {
                self.fetch(tag, sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ, errno(refused), push);
                Ok(None)
            }
        }
    }

    /// Answers a request and asks for the next on its tag. `Ok`: all of it is done.
    pub fn finish(&mut self, tag: u16, outcome: Result<(), IoError>, push: &mut impl FnMut(squeue::Entry)) {
        let Tag::Serving(request) = self.tags[usize::from(tag)] else {
            panic!("finished tag {tag} of queue {}, which is {:?}", self.id, self.tags[usize::from(tag)]);
        };
        let result = match outcome {
            Ok(()) => request.success(),
            Err(error) => errno(error),
        };
        self.fetch(tag, sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ, result, push);
    }

    /// Moves bytes that the application writes into `buffer`. Returns an entry without user data; its completion's
    /// result is the number of bytes moved. `offset` is from the start of the request. `UserCopy` only.
    ///
    /// # Safety
    /// `buffer .. buffer + len` is writable and stays so until the completion.
    pub unsafe fn take_payload(&self, tag: u16, offset: u32, buffer: *mut u8, len: u32) -> squeue::Entry {
        let position = self.payload_position(tag, offset, len);
        opcode::Read::new(ring::Fd(self.device), buffer, len).offset(position).build()
    }

    /// Moves bytes from `buffer` to the application that reads; otherwise as `take_payload`.
    ///
    /// # Safety
    /// `buffer .. buffer + len` is readable and stays so until the completion.
    pub unsafe fn give_payload(&self, tag: u16, offset: u32, buffer: *const u8, len: u32) -> squeue::Entry {
        let position = self.payload_position(tag, offset, len);
        opcode::Write::new(ring::Fd(self.device), buffer, len).offset(position).build()
    }

    /// The payload of the request in service: what was written, or where to put what is read. Page aligned.
    /// `Copy` only.
    pub fn buffer(&mut self, tag: u16) -> &mut [u8] {
        let request = self.serving(tag);
        let start = usize::from(tag) * self.buffer_bytes;
        let buffers = self.buffers.as_mut().expect("buffers exist in mode Copy only");
        &mut buffers.bytes_mut()[start..start + request.payload_bytes() as usize]
    }

    pub fn mode(&self) -> DataMode {
        self.mode
    }

    pub fn depth(&self) -> u16 {
        u16::try_from(self.tags.len()).expect("the depth was a u16")
    }

    /// New requests are checked against this size. Call it before the kernel learns of a larger one, after of a smaller.
    pub fn set_size(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
    }

    /// The kernel holds no command of this queue any more, and never will: the queue may be dropped.
    pub fn is_down(&self) -> bool {
        self.tags.iter().all(|tag| matches!(tag, Tag::Down | Tag::Idle))
    }

    /// Requests that are ours to finish.
    pub fn serving_count(&self) -> usize {
        self.tags.iter().filter(|tag| matches!(tag, Tag::Serving(_))).count()
    }

    fn serving(&self, tag: u16) -> Request {
        match self.tags[usize::from(tag)] {
            Tag::Serving(request) => request,
            other => panic!("payload of tag {tag} of queue {}, which is {other:?}", self.id),
        }
    }

    fn payload_position(&self, tag: u16, offset: u32, len: u32) -> u64 {
        assert!(self.mode == DataMode::UserCopy, "payload entries exist in mode UserCopy only");
        let total = self.serving(tag).payload_bytes();
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= total),
            "payload {offset}+{len} of a request of {total} bytes"
        );
        UblkIOCtx::ublk_user_copy_pos(QUEUE_ID, tag, offset)
    }

    fn fetch(&mut self, tag: u16, command: u32, result: i32, push: &mut impl FnMut(squeue::Entry)) {
        let addr = match &self.buffers {
            Some(buffers) => buffers.address() + u64::from(tag) * self.buffer_bytes as u64,
            None => 0,
        };
        let command_bytes = encode(sys::ublksrv_io_cmd { q_id: QUEUE_ID, tag, result, addr });
        self.tags[usize::from(tag)] = Tag::Fetching;
        let entry = opcode::UringCmd16::new(ring::Fd(self.device), command)
            .cmd(command_bytes)
            .build()
            .user_data(self.user_data | u64::from(tag));
        push(match self.registers {
            Some(_) => registering_at(entry, self.place(tag).unwrap_or(NO_PLACE)),
            None => entry,
        });
    }

    /// Where the pages of this tag's next request go.
    fn place(&self, tag: u16) -> Option<u16> {
        self.registers.flatten().map(|first| first + tag)
    }

    fn descriptor(&self, tag: u16) -> Descriptor {
        let all = self.descriptors.start.cast::<sys::ublksrv_io_desc>();
        // SAFETY: the mapping holds `depth` descriptors and the tag indexed `tags`, which is as long. The kernel wrote
        // this one before it completed our command and leaves it alone until the next. Volatile: it is shared memory.
        let raw = unsafe { all.add(usize::from(tag)).read_volatile() };
        Descriptor {
            op_flags: raw.op_flags,
            // A union with the zone count in newer headers; the same 32 bits.
            sectors: sectors_of(&raw),
            start_sector: raw.start_sector,
        }
    }
}

fn sectors_of(raw: &sys::ublksrv_io_desc) -> u32 {
    raw.nr_sectors
}

/// As the driver reads it: u16 queue, u16 tag, i32 result, u64 address, in the machine's byte order.
fn encode(command: sys::ublksrv_io_cmd) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..2].copy_from_slice(&command.q_id.to_ne_bytes());
    bytes[2..4].copy_from_slice(&command.tag.to_ne_bytes());
    bytes[4..8].copy_from_slice(&command.result.to_ne_bytes());
    bytes[8..16].copy_from_slice(&command.addr.to_ne_bytes());
    bytes
}

/// The same command, by which the kernel also puts the pages of the next request into the ring's table of fixed buffers, at
/// `place`; where that fails it says so with the request. This is what `struct ublk_auto_buf_reg` is for: it travels in
/// the entry's address, for which io-uring has no setter.
fn registering_at(mut entry: squeue::Entry, place: u16) -> squeue::Entry {
    let wanted = u64::from(place) | u64::from(sys::UBLK_AUTO_BUF_REG_FALLBACK) << 16;
    const { assert!(size_of::<squeue::Entry>() == 64, "the kernel's struct io_uring_sqe") };
    // SAFETY: an entry is those 64 bytes, plain integers; `ADDRESS` and the 8 bytes behind it are inside.
    unsafe { std::ptr::from_mut(&mut entry).cast::<u8>().add(ADDRESS).cast::<u64>().write_unaligned(wanted) };
    entry
}

/// Offset of `addr` in `struct io_uring_sqe`.
const ADDRESS: usize = 16;

/// Pages that are ours until dropped.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the pages belong to this value alone; nothing about them is tied to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// The driver's descriptors of queue 0, read-only.
    fn of_device(device: RawFd, len: usize) -> io::Result<Mapping> {
        let offset = libc::off_t::from(sys::UBLKSRV_CMD_BUF_OFFSET);
        Mapping::map(len, libc::PROT_READ, libc::MAP_SHARED | libc::MAP_POPULATE, device, offset)
    }
    /// Zeroed memory that takes space when it is touched.
    fn anonymous(len: usize) -> io::Result<Mapping> {
        Mapping::map(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }
    fn map(len: usize, protection: i32, flags: i32, fd: RawFd, offset: libc::off_t) -> io::Result<Mapping> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let start = unsafe { libc::mmap(null_mut(), len, protection, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { start: NonNull::new(start.cast()).expect("mmap gives no null"), len })
    }
    fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }
    /// Anonymous mappings only: the kernel's are read-only.
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `len` writable, initialised bytes, borrowed with self. The kernel writes a tag's part only while it
        // holds that tag's command, and `buffer` hands out a part only while the tag is being served.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and no reference outlives self.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        assert!(result == 0, "munmap of {} bytes: {}", self.len, io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_the_drivers_layout() {
        let command = sys::ublksrv_io_cmd { q_id: 1, tag: 2, result: -5, addr: 0x1122_3344_5566_7788 };
        let ours = encode(command);
        // SAFETY: plain integers without padding: 2 + 2 + 4 + 8 bytes.
        let theirs: [u8; 16] = unsafe { std::mem::transmute(command) };
        assert_eq!(ours, theirs);
    }

    #[test]
    fn the_place_travels_where_other_entries_have_their_address() {
        fn address(entry: &squeue::Entry) -> u64 {
            // SAFETY: an entry is 64 bytes of plain integers.
            let bytes: &[u8; 64] = unsafe { &*std::ptr::from_ref(entry).cast() };
            u64::from_ne_bytes(bytes[ADDRESS..ADDRESS + 8].try_into().unwrap())
        }
        let mut byte = 0u8;
        let read = opcode::Read::new(ring::Fd(0), &raw mut byte, 1).build();
        assert_eq!(address(&read), &raw mut byte as u64);
        let command = opcode::UringCmd16::new(ring::Fd(0), 7).build();
        assert_eq!(address(&command), 0);
        // As the kernel reads it: u16 place, u8 flags, five bytes of zeroes.
        assert_eq!(address(&registering_at(command, 0x0123)).to_le_bytes(), [0x23, 0x01, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_mapping_is_zeroed_and_writable() {
        let mut pages = Mapping::anonymous(8192).unwrap();
        assert!(pages.bytes_mut().iter().all(|byte| *byte == 0));
        pages.bytes_mut()[8191] = 1;
        assert_eq!(pages.address() % 4096, 0);
    }
}
