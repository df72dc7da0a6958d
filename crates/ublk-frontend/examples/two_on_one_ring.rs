//! Two devices in memory, served by one thread from one io_uring, as the daemon serves the volumes of a resource. Prints
//! the two paths when both are there; removes them when stdin ends.

use io_uring::{IoUring, opcode, squeue, types as ring};
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use types::{BlockLimits, BlockOp, IoError};
use ublk_frontend::{DataMode, Device, DeviceEvent, DeviceOptions, Queue, Request, Start};

type Error = Box<dyn std::error::Error>;

const SIZE_BYTES: u64 = 64 << 20;
const DEPTH: u16 = 32;

/// User data: kind in the top byte, device in the next, tag at the bottom.
const COMMAND: u64 = 1 << 56;
const PAYLOAD: u64 = 2 << 56;
const EVENT: u64 = 3 << 56;
const STDIN: u64 = 4 << 56;
const KIND: u64 = 0xff << 56;
const DEVICE_SHIFT: u32 = 48;

struct Disk {
    device: Device,
    queue: Queue,
    /// Never resized: payload entries point into it.
    bytes: Vec<u8>,
    requests: Vec<Option<Request>>,
    started: bool,
    stopped: bool,
}

impl Disk {
    fn new(at: usize) -> Result<Disk, Error> {
        let device = Device::create(&DeviceOptions {
            start: Start::Add(None),
            queue_depth: DEPTH,
            size_bytes: SIZE_BYTES,
            limits: BlockLimits::default(),
            mode: Some(DataMode::UserCopy),
            register_buffers: false,
            recovery: false,
        })?;
        let queue = device.queue(COMMAND | (at as u64) << DEVICE_SHIFT, None)?;
        let requests = vec![None; usize::from(DEPTH)];
        Ok(Disk { device, queue, bytes: vec![0; SIZE_BYTES as usize], requests, started: false, stopped: false })
    }

    fn begin(&mut self, at: usize, request: Request, backlog: &mut VecDeque<squeue::Entry>) {
        let place = &mut self.bytes[request.range.start() as usize..request.range.end() as usize];
        let (tag, len) = (request.tag, request.payload_bytes());
        // SAFETY: `place` is part of a vector that lives as long as the queue and never moves.
        let entry = match request.op {
            BlockOp::Read => unsafe { self.queue.give_payload(tag, 0, place.as_ptr(), len) },
            BlockOp::Write { .. } => unsafe { self.queue.take_payload(tag, 0, place.as_mut_ptr(), len) },
            BlockOp::Flush | BlockOp::Discard | BlockOp::WriteZeroes { .. } => {
                place.fill(0);
                return self.queue.finish(tag, Ok(()), &mut |entry| backlog.push_back(entry));
            }
        };
        self.requests[usize::from(tag)] = Some(request);
        backlog.push_back(entry.user_data(PAYLOAD | (at as u64) << DEVICE_SHIFT | u64::from(tag)));
    }

    fn on_payload(&mut self, tag: u16, result: i32, backlog: &mut VecDeque<squeue::Entry>) {
        let request = self.requests[usize::from(tag)].take().expect("a payload belongs to a request");
        let complete = u32::try_from(result) == Ok(request.payload_bytes());
        let outcome = if complete { Ok(()) } else { Err(IoError::Io) };
        self.queue.finish(tag, outcome, &mut |entry| backlog.push_back(entry));
    }

    fn on_events(&mut self) -> Result<(), Error> {
        while let Some(event) = self.device.next_event() {
            match event {
                DeviceEvent::Started(result) => self.started = result.map(|()| true)?,
                DeviceEvent::Stopped(result) => self.stopped = result.map(|()| true)?,
                other => unreachable!("never asked for: {other:?}"),
            }
        }
        Ok(())
    }
}

fn main() -> Result<(), Error> {
    let mut disks = [Disk::new(0)?, Disk::new(1)?];
    let mut uring: IoUring = IoUring::builder().setup_single_issuer().build(256)?;
    let mut backlog = VecDeque::new();
    let poll = |fd, user_data| opcode::PollAdd::new(ring::Fd(fd), libc::POLLIN as u32).build().user_data(user_data);
    let poll_events =
        |disk: &Disk, at: usize| poll(disk.device.event_fd().as_raw_fd(), EVENT | (at as u64) << DEVICE_SHIFT);
    for (at, disk) in disks.iter_mut().enumerate() {
        disk.queue.start(&mut |entry| backlog.push_back(entry));
        disk.device.start()?;
        backlog.push_back(poll_events(disk, at));
    }
    backlog.push_back(poll(0, STDIN));
    let mut announced = false;
    while !disks.iter().all(|disk| disk.stopped && disk.queue.is_down()) {
        for entry in backlog.drain(..) {
            // SAFETY: buffers of entries are parts of `disks`, which outlives the ring's use of them. The ring has more
            // room than both queues can fill.
            unsafe { uring.submission().push(&entry) }?;
        }
        uring.submit_and_wait(1)?;
        let completions: Vec<(u64, i32)> = uring.completion().map(|cqe| (cqe.user_data(), cqe.result())).collect();
        for (user_data, result) in completions {
            let at = (user_data >> DEVICE_SHIFT & 0xff) as usize;
            let tag = (user_data & 0xffff) as u16;
            match user_data & KIND {
                COMMAND => {
                    let found = disks[at].queue.on_cqe(tag, result, &mut |entry| backlog.push_back(entry))?;
                    if let Some(request) = found {
                        disks[at].begin(at, request, &mut backlog);
                    }
                }
                PAYLOAD => disks[at].on_payload(tag, result, &mut backlog),
                EVENT => {
                    disks[at].on_events()?;
                    backlog.push_back(poll_events(&disks[at], at));
                }
                STDIN => disks.iter().try_for_each(|disk| disk.device.stop())?,
                other => unreachable!("user data {other:#x}"),
            }
        }
        if !announced && disks.iter().all(|disk| disk.started) {
            announced = true;
            println!("ready {} {}", disks[0].device.path().display(), disks[1].device.path().display());
        }
    }
    // Open polls hold the event descriptors, not the devices; the ring goes with them.
    drop(uring);
    for Disk { device, queue, .. } in disks {
        drop(queue);
        device.delete()?.wait()?;
    }
    println!("removed");
    Ok(())
}
