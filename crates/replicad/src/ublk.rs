//! `/dev/ublkbN` on the resource's ring: the queues of `ublk-frontend` between kernel and engine.
//!
//! ```text
//! add: Starting ──Started──> (requests) ──remove──> Stopping ──Stopped, queue down──> Deleting ──Deleted──> gone
//! ```
//! Invariants: a tag of a queue is with at most one of kernel, payload move, engine; a payload has an open use from its
//! reservation until the tag is finished. What is written is copied, once, for disk and peers alike: the application may
//! change its pages meanwhile, and two copies would differ. What is read, a disk may put into the application's pages.
//! A device that is stopped is served until its queue is down: the kernel waits for that.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsRawFd;

use engine::Input;
use io_uring::{opcode, squeue, types::Fd};
use types::{BlockOp, IoError, PayloadId, RequestId, VolumeNumber};
use ublk_frontend::{DataMode, Deletion, Device, DeviceEvent, Queue, Request};

use crate::payloads::{Payloads, Share};
use crate::ring::{Kind, Ring, Tag};
use crate::slots::Key;

/// Marks our request ids; those of NBD have a slot below 2^24 in the low word.
const OURS: u64 = 1 << 31;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Live,
    /// `stop` was asked for; the queue is served on.
    Stopping,
    /// The kernel took it away; its queue goes down.
    Stopped,
    Deleting,
}

/// A request on its way, by tag.
#[derive(Clone, Copy)]
struct Job {
    request: Request,
    payload: Option<PayloadId>,
    /// Bytes that the current payload move has moved.
    moved: u32,
    /// The engine's answer is there: the payload moves to the application.
    answered: bool,
}

struct Served {
    volume: VolumeNumber,
    phase: Phase,
    /// Until `Deleting`.
    device: Option<Device>,
    queue: Option<Queue>,
    /// In `Deleting`.
    deletion: Option<Deletion>,
    /// By tag, as many as the queue is deep.
    jobs: Vec<Option<Job>>,
    /// Of its places in the ring's table of fixed buffers.
    first_buffer: Option<u16>,
    /// Requests without a buffer.
    waiting: VecDeque<Request>,
    /// Where the kernel counts events.
    event_count: Box<u64>,
}

#[derive(Default)]
pub struct Ublk {
    /// Numbers are never used again, so that what comes late is recognised.
    devices: BTreeMap<u32, Served>,
    made: u32,
    submitted: VecDeque<Input>,
}

fn command_tag(device: u32) -> Tag {
    Tag::new(Kind::UblkCommand, Key { slot: device, generation: 0 })
}

fn request_id(device: u32, tag: u16) -> RequestId {
    RequestId(u64::from(device) << 32 | OURS | u64::from(tag))
}

pub fn is_ours(id: RequestId) -> bool {
    id.0 & OURS != 0
}

impl Served {
    fn queue(&mut self) -> &mut Queue {
        self.queue.as_mut().expect("a request in service keeps its queue")
    }

    fn job(&mut self, tag: u16) -> Option<&mut Job> {
        self.jobs.get_mut(usize::from(tag))?.as_mut()
    }

    fn path(&self) -> String {
        self.device.as_ref().map_or("the device".into(), |device| device.path().display().to_string())
    }

    fn listen_for_events(&mut self, number: u32, ring: &mut Ring) {
        let fd = match (&self.device, &self.deletion) {
            (Some(device), _) => device.event_fd().as_raw_fd(),
            (None, Some(deletion)) => deletion.event_fd().as_raw_fd(),
            (None, None) => panic!("{:?} without a device or its deletion", self.phase),
        };
        let place = std::ptr::from_mut(&mut *self.event_count).cast::<u8>();
        let entry = opcode::Read::new(Fd(fd), place, size_of::<u64>() as u32).build();
        // SAFETY: the counter is boxed; the device stays in the table until its last event came.
        unsafe { ring.push(entry, Tag::new(Kind::UblkEvent, Key { slot: number, generation: 0 })) };
    }

    /// Starts or continues moving a request's payload. True if it is through without a ring entry (mode Copy).
    fn move_payload(&mut self, number: u32, tag: u16, ring: &mut Ring, payloads: &mut Payloads) -> bool {
        let job = *self.job(tag).expect("a payload moves for a request in service");
        let id = job.payload.expect("only requests with a payload move one");
        let queue = self.queue();
        if queue.mode() == DataMode::Copy {
            match job.answered {
                true => queue.buffer(tag).copy_from_slice(payloads.bytes_mut(id)),
                false => payloads.bytes_mut(id).copy_from_slice(queue.buffer(tag)),
            }
            return true;
        }
        let rest = payloads.span(id).advanced(job.moved as usize);
        let len = rest.len() as u32;
        // SAFETY: the payload has an open use until the tag is finished.
        let entry = unsafe {
            match job.answered {
                true => queue.give_payload(tag, job.moved, rest.as_ptr(), len),
                false => queue.take_payload(tag, job.moved, rest.as_ptr(), len),
            }
        };
        let ring_tag = Tag::new(Kind::UblkPayload, Key { slot: number, generation: u32::from(tag) });
        // SAFETY: as above; the queue keeps the descriptor.
        unsafe { ring.push(entry, ring_tag) };
        false
    }

    fn finish(&mut self, tag: u16, result: Result<(), IoError>, ring: &mut Ring, payloads: &mut Payloads) {
        let job = self.jobs.get_mut(usize::from(tag)).and_then(Option::take);
        let job = job.unwrap_or_else(|| panic!("ublk tag {tag} was finished before"));
        if let Some(id) = job.payload {
            payloads.close_use(id);
        }
        let queue = self.queue();
        queue.finish(tag, result, &mut |entry| push_command(ring, entry));
    }
}

/// The queue's own entries carry their user data.
fn push_command(ring: &mut Ring, entry: squeue::Entry) {
    // SAFETY: commands name only memory of the queue, which is dropped when the kernel holds none of them any more.
    unsafe { ring.push_tagged(entry) };
}

impl Ublk {
    /// Takes over a device that was made; it appears when the kernel has started it.
    pub fn add(&mut self, volume: VolumeNumber, device: Device, ring: &mut Ring) {
        self.made += 1;
        let number = self.made;
        let first_buffer = self.free_places(&device, ring);
        let mut queue = match device.queue(command_tag(number).to_bits(), first_buffer) {
            Ok(queue) => queue,
            Err(error) => {
                tracing::error!("volume {volume}: cannot serve {}: {error}", device.path().display());
                return;
            }
        };
        queue.start(&mut |entry| push_command(ring, entry));
        if first_buffer.is_some() {
            tracing::info!("volume {volume}: {}: disks read into the application's pages", device.path().display());
        }
        if let Err(error) = device.start() {
            // The kernel holds the queue's commands: it stays, although no device appears.
            tracing::error!("volume {volume}: cannot start {}: {error}", device.path().display());
        }
        let jobs = vec![None; usize::from(queue.depth())];
        let mut served = Served {
            volume,
            phase: Phase::Live,
            device: Some(device),
            queue: Some(queue),
            deletion: None,
            jobs,
            first_buffer,
            waiting: VecDeque::new(),
            event_count: Box::new(0),
        };
        served.listen_for_events(number, ring);
        self.devices.insert(number, served);
    }

    /// As many places in the ring's table of fixed buffers as the device's queue is deep. `None`: the device needs none, or
    /// there are none: then payloads are copied.
    fn free_places(&self, device: &Device, ring: &mut Ring) -> Option<u16> {
        if !device.registers_buffers() {
            return None;
        }
        let places = match ring.fixed_buffers() {
            Ok(places) => places,
            Err(error) => {
                tracing::info!("{}: no table of fixed buffers ({error}); payloads are copied", device.path().display());
                return None;
            }
        };
        let depth = device.queue_depth();
        let mut starts = (0..places / depth).map(|device| device * depth);
        let is_free = |start: u16| {
            let overlaps = |s: &Served| {
                s.first_buffer.is_some_and(|first| start < first + s.jobs.len() as u16 && first < start + depth)
            };
            !self.devices.values().any(overlaps)
        };
        starts.find(|start| is_free(*start))
    }

    /// The device should go; it is served until the kernel has let go of it.
    pub fn remove(&mut self, volume: VolumeNumber) {
        for served in self.devices.values_mut().filter(|s| s.volume == volume && s.phase == Phase::Live) {
            let device = served.device.as_ref().expect("a live one");
            if let Err(error) = device.stop() {
                tracing::error!("volume {volume}: cannot stop {}: {error}", served.path());
            }
            served.phase = Phase::Stopping;
        }
    }

    /// A fetch command came back: a request, or the end of its tag.
    pub fn command(&mut self, number: u32, tag: u16, result: i32, ring: &mut Ring, payloads: &mut Payloads) {
        let served = self.devices.get_mut(&number).expect("a queue stays until the kernel holds no command of it");
        match served.queue().on_cqe(tag, result, &mut |entry| push_command(ring, entry)) {
            Ok(Some(request)) => self.begin(number, request, ring, payloads),
            Ok(None) => self.advance(number, ring),
            Err(error) => {
                tracing::error!("volume {}: {}: {error}", served.volume, served.path());
                self.advance(number, ring);
            }
        }
    }

    fn begin(&mut self, number: u32, request: Request, ring: &mut Ring, payloads: &mut Payloads) {
        let served = self.devices.get_mut(&number).expect("called with a live device");
        let tag = request.tag;
        let payload = match request.payload_bytes() {
            0 => None,
            len => match payloads.try_reserve(len as usize, Share::Application) {
                None => return served.waiting.push_back(request),
                Some(id) => {
                    payloads.open_use(id);
                    if let (BlockOp::Read, Some(buffer)) = (request.op, request.registered) {
                        payloads.lend(id, buffer);
                    }
                    Some(id)
                }
            },
        };
        served.jobs[usize::from(tag)] = Some(Job { request, payload, moved: 0, answered: false });
        let comes_first = matches!(request.op, BlockOp::Write { .. });
        if !comes_first || served.move_payload(number, tag, ring, payloads) {
            self.submit(number, request, payload);
        }
    }

    fn submit(&mut self, number: u32, request: Request, payload: Option<PayloadId>) {
        let volume = self.devices[&number].volume;
        let Request { tag, op, range, registered: _ } = request;
        let request = request_id(number, tag);
        self.submitted.push_back(Input::Submit { request, volume, op, range, payload });
    }

    /// A part of a payload was moved, or could not be.
    pub fn moved(&mut self, number: u32, tag: u16, result: i32, ring: &mut Ring, payloads: &mut Payloads) {
        let served = self.devices.get_mut(&number).expect("a device stays while a payload moves");
        let job = served.job(tag).expect("a job stays while its payload moves");
        if result > 0 {
            job.moved += result as u32;
        }
        let (job, again) = (*job, matches!(-result, libc::EINTR | libc::EAGAIN));
        if result <= 0 && !again {
            // The application may have died: its pages are gone, the answer matters to nobody.
            tracing::warn!("volume {}: {}: payload: error {}", served.volume, served.path(), -result);
            if !job.answered
                && let Some(id) = job.payload
            {
                // The engine never hears of this write.
                payloads.release(id);
            }
            served.finish(tag, Err(IoError::Io), ring, payloads);
        } else if job.moved < job.request.payload_bytes() {
            served.move_payload(number, tag, ring, payloads);
        } else if job.answered {
            served.finish(tag, Ok(()), ring, payloads);
        } else {
            self.submit(number, job.request, job.payload);
        }
    }

    /// The engine is through with a request.
    pub fn complete(&mut self, id: RequestId, result: Result<(), IoError>, ring: &mut Ring, payloads: &mut Payloads) {
        let (number, tag) = ((id.0 >> 32) as u32, id.0 as u16);
        let served = self.devices.get_mut(&number).expect("a device stays while it has requests");
        let job = served.job(tag).unwrap_or_else(|| panic!("{id:?} was completed before"));
        (job.answered, job.moved) = (true, 0);
        let filled = job.payload.is_some_and(|id| payloads.is_filled(id));
        let gives = job.request.op == BlockOp::Read && result.is_ok() && !filled;
        if !gives || served.move_payload(number, tag, ring, payloads) {
            served.finish(tag, result, ring, payloads);
        }
    }

    /// A buffer came back.
    pub fn retry_waiting(&mut self, ring: &mut Ring, payloads: &mut Payloads) {
        // After every request that had a buffer, and almost always for nobody.
        let starved = self.devices.iter().filter(|(_, served)| !served.waiting.is_empty());
        let numbers: Vec<u32> = starved.map(|(number, _)| *number).collect();
        for number in numbers {
            let served = self.devices.get_mut(&number).expect("nothing is removed here");
            for request in std::mem::take(&mut served.waiting) {
                self.begin(number, request, ring, payloads);
            }
        }
    }

    pub fn take_submitted(&mut self) -> Option<Input> {
        self.submitted.pop_front()
    }

    /// The control half has news.
    pub fn event(&mut self, number: u32, ring: &mut Ring) {
        let served = self.devices.get_mut(&number).expect("a device stays until its last event came");
        let mut last = false;
        while let Some(event) = match (&served.device, &served.deletion) {
            (Some(device), _) => device.next_event(),
            (None, Some(deletion)) => deletion.next_event(),
            (None, None) => None,
        } {
            let (what, result) = match event {
                DeviceEvent::Started(result) => ("appears", result),
                DeviceEvent::Stopped(result) => {
                    served.phase = Phase::Stopped;
                    ("is gone", result)
                }
                DeviceEvent::Resized(result) => ("is resized", result),
                DeviceEvent::Deleted(result) => {
                    last = true;
                    ("is deleted", result)
                }
            };
            match result {
                Ok(()) => tracing::info!("volume {}: {} {what}", served.volume, served.path()),
                Err(error) => tracing::error!("volume {}: {}: {error}", served.volume, served.path()),
            }
        }
        if last {
            self.devices.remove(&number);
            return;
        }
        served.listen_for_events(number, ring);
        self.advance(number, ring);
    }

    /// Stopped and nothing left with the kernel: the queue is dropped, the device deleted.
    fn advance(&mut self, number: u32, _ring: &mut Ring) {
        let served = self.devices.get_mut(&number).expect("called with a live device");
        if served.phase != Phase::Stopped || !served.queue.as_ref().is_some_and(Queue::is_down) {
            return;
        }
        served.queue = None;
        served.phase = Phase::Deleting;
        let device = served.device.take().expect("until it is deleted");
        match device.delete() {
            // Its events come through the same eventfd, which is being listened to.
            Ok(deletion) => served.deletion = Some(deletion),
            Err(error) => {
                tracing::error!("volume {}: cannot delete its ublk device: {error}", served.volume);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }
}
