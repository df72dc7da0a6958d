//! A disk in memory, or the plain pass-through to a file or block device, behind `/dev/ublkbN`: one thread, one io_uring
//! for the queue's commands, the payload, the backing device, signals and control events. The smallest complete use of
//! `ublk-frontend`; the tests' subject and the benchmark's baseline.
//!
//! SIGTERM or SIGINT removes the device. On stdout: `ready PATH MODE`, at the end `removed`.

use clap::Parser;
use io_uring::{IoUring, opcode, squeue, types as ring};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::ExitCode;
use types::{BlockLimits, BlockOp, ByteRange, IoError};
use ublk_frontend::{DataMode, Device, DeviceEvent, DeviceOptions, Queue, Request, Start, UblkError};

type Error = Box<dyn std::error::Error>;

#[derive(Parser)]
struct Args {
    /// Size of a disk in memory, in MiB
    #[arg(long, default_value_t = 64)]
    size_mib: u64,
    /// Serve this file or block device instead, with its size
    #[arg(long)]
    backing: Option<PathBuf>,
    /// N of /dev/ublkbN; default: the kernel's choice
    #[arg(long)]
    id: Option<u32>,
    /// Take over device ID, whose server died
    #[arg(long, requires = "id")]
    recover: bool,
    /// Keep the device when this process dies
    #[arg(long)]
    recovery: bool,
    #[arg(long, default_value_t = 128)]
    depth: u16,
    /// Logical block size, bytes
    #[arg(long, default_value_t = 512)]
    block: u32,
    /// Offer no discard
    #[arg(long)]
    no_discard: bool,
    /// Copy through the driver's buffers, even where user copy exists
    #[arg(long)]
    plain_copy: bool,
    /// Let the backing device read into and write from the application's pages, where the kernel can
    #[arg(long, requires = "backing", conflicts_with = "plain_copy")]
    zero_copy: bool,
    /// Resize to this many MiB on SIGUSR1
    #[arg(long)]
    grow_mib: Option<u64>,
}

/// User data: what a completion belongs to, in the top byte; the tag below.
const COMMAND: u64 = 1 << 56;
const STEP: u64 = 2 << 56;
const SIGNAL: u64 = 3 << 56;
const EVENT: u64 = 4 << 56;
const KIND: u64 = 0xff << 56;

fn main() -> ExitCode {
    match serve(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("memdisk: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> Result<(), Error> {
    let signals = signal_fd()?;
    let backing = match &args.backing {
        Some(path) => Backing::open(path)?,
        None => Backing::Memory(vec![0; usize::try_from(args.size_mib << 20)?]),
    };
    let id = args.id;
    let device = Device::create(&DeviceOptions {
        start: if args.recover { Start::Recover(id.expect("clap requires it")) } else { Start::Add(id) },
        queue_depth: args.depth,
        size_bytes: backing.size()?,
        limits: BlockLimits { logical_block_bytes: args.block, discard: !args.no_discard, ..BlockLimits::default() },
        mode: args.plain_copy.then_some(DataMode::Copy),
        register_buffers: args.zero_copy,
        recovery: args.recovery,
    })?;
    // The ring's table has one place for each tag.
    let queue = device.queue(COMMAND, args.zero_copy.then_some(0))?;
    Disk::new(device, queue, backing, signals, args.grow_mib)?.run()
}

enum Backing {
    Memory(Vec<u8>),
    File(File),
}

impl Backing {
    fn open(path: &PathBuf) -> Result<Backing, Error> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
        Ok(Backing::File(file.map_err(|e| format!("cannot open {}: {e}", path.display()))?))
    }
    fn size(&self) -> io::Result<u64> {
        match self {
            Backing::Memory(bytes) => Ok(bytes.len() as u64),
            Backing::File(file) if file.metadata()?.file_type().is_block_device() => {
                io::Seek::seek(&mut &*file, io::SeekFrom::End(0))
            }
            Backing::File(file) => Ok(file.metadata()?.len()),
        }
    }
}

/// What a request waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The written bytes come from the application.
    Take,
    /// The backing device moves bytes.
    Backing,
    /// What was written must be durable.
    Sync,
    /// The bytes read go to the application.
    Give,
}

#[derive(Clone, Copy)]
struct Job {
    request: Request,
    step: Step,
    /// Bytes of this step that are done: a transfer may be short, and goes on.
    done: u32,
}

struct Disk {
    ring: IoUring,
    backlog: VecDeque<squeue::Entry>,
    /// User data and result; kept to reuse its memory.
    completions: Vec<(u64, i32)>,
    device: Option<Device>,
    queue: Option<Queue>,
    backing: Backing,
    /// One per tag, aligned for O_DIRECT. Never moved or resized: entries in flight point into it.
    buffers: Vec<Page>,
    pages_per_tag: usize,
    jobs: Vec<Option<Job>>,
    signals: OwnedFd,
    grow_mib: Option<u64>,
    stopped: bool,
    /// Why the device was stopped, if nobody asked for it.
    failed: Option<UblkError>,
}

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

impl Disk {
    fn new(
        device: Device,
        queue: Queue,
        backing: Backing,
        signals: OwnedFd,
        grow_mib: Option<u64>,
    ) -> Result<Disk, Error> {
        let depth = u32::from(queue.depth());
        let pages_per_tag = BlockLimits::default().io_bytes_max as usize / 4096;
        let needs_buffers = queue.mode() == DataMode::UserCopy && matches!(backing, Backing::File(_));
        let pages = if needs_buffers { pages_per_tag * depth as usize } else { 0 };
        // Each tag has one entry in flight; signals and events one each.
        let ring =
            IoUring::builder().setup_single_issuer().setup_coop_taskrun().build((depth + 2).next_power_of_two())?;
        if device.registers_buffers() {
            ring.submitter().register_buffers_sparse(depth)?;
        }
        Ok(Disk {
            ring,
            backlog: VecDeque::new(),
            completions: Vec::new(),
            device: Some(device),
            queue: Some(queue),
            backing,
            buffers: vec![Page([0; 4096]); pages],
            pages_per_tag,
            jobs: vec![None; depth as usize],
            signals,
            grow_mib,
            stopped: false,
            failed: None,
        })
    }

    fn run(mut self) -> Result<(), Error> {
        let queue = self.queue.as_mut().expect("there until removal");
        queue.start(&mut |entry| self.backlog.push_back(entry));
        self.device.as_ref().expect("there until removal").start()?;
        self.watch_signals();
        self.watch_events();
        loop {
            self.submit_and_wait()?;
            let mut completions = std::mem::take(&mut self.completions);
            completions.extend(self.ring.completion().map(|cqe| (cqe.user_data(), cqe.result())));
            for (user_data, result) in completions.drain(..) {
                self.on_completion(user_data, result)?;
            }
            self.completions = completions;
            if self.stopped && self.queue.as_ref().is_some_and(Queue::is_down) {
                drop(self.queue.take());
                self.device.take().expect("there until removal").delete()?.wait()?;
                println!("removed");
                return self.failed.map_or(Ok(()), |e| Err(e.into()));
            }
        }
    }

    fn submit_and_wait(&mut self) -> io::Result<()> {
        while let Some(entry) = self.backlog.pop_front() {
            // SAFETY: buffers of entries live in self until their completion (see the fields).
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.backlog.push_front(entry);
                self.ring.submit()?;
            }
        }
        match self.ring.submit_and_wait(1) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other.map(drop),
        }
    }

    fn on_completion(&mut self, user_data: u64, result: i32) -> Result<(), Error> {
        let tag = (user_data & 0xffff) as u16;
        match user_data & KIND {
            COMMAND => {
                let queue = self.queue.as_mut().expect("its completions precede its end");
                if let Some(request) = queue.on_cqe(tag, result, &mut |entry| self.backlog.push_back(entry))? {
                    self.begin(request);
                }
            }
            STEP => self.on_step(tag, result),
            SIGNAL => self.on_signal()?,
            EVENT => self.on_events()?,
            other => unreachable!("user data {other:#x}"),
        }
        Ok(())
    }

    fn begin(&mut self, request: Request) {
        let copies = self.copies(request);
        let step = match request.op {
            BlockOp::Write { .. } if copies => Step::Take,
            BlockOp::Flush => Step::Sync,
            _ => Step::Backing,
        };
        self.enter(Job { request, step, done: 0 });
    }

    /// The payload goes through a buffer of ours, by copies of ours.
    fn copies(&self, request: Request) -> bool {
        request.registered.is_none() && self.queue.as_ref().expect("serving").mode() == DataMode::UserCopy
    }

    /// Starts a step. In memory there is nothing to wait for but the application's bytes.
    fn enter(&mut self, job: Job) {
        let tag = job.request.tag;
        if let Backing::Memory(_) = self.backing {
            match job.step {
                Step::Backing => {
                    self.move_in_memory(job.request);
                    return self.advance(job);
                }
                Step::Sync => return self.advance(job),
                Step::Take | Step::Give => {}
            }
        }
        let entry = self.entry(job).user_data(STEP | u64::from(tag));
        self.jobs[usize::from(tag)] = Some(job);
        self.backlog.push_back(entry);
    }

    fn on_step(&mut self, tag: u16, result: i32) {
        let mut job = self.jobs[usize::from(tag)].take().expect("a completion belongs to a job");
        let has_length = !matches!(job.step, Step::Sync) && job.request.op.has_payload();
        if result < 0 {
            return self.finish(tag, Err(io_error(-result)));
        }
        if has_length {
            job.done += result as u32;
            // Nothing moved: the end of the backing device, which is smaller than it was.
            if result == 0 {
                return self.finish(tag, Err(IoError::Io));
            }
            if job.done < job.request.payload_bytes() {
                return self.enter(job);
            }
        }
        self.advance(job);
    }

    /// The step is done: on to the next, or finish.
    fn advance(&mut self, job: Job) {
        let copies = self.copies(job.request);
        let next = match (job.step, job.request.op) {
            (Step::Take, _) => Some(Step::Backing),
            (Step::Backing, BlockOp::Read) if copies => Some(Step::Give),
            (Step::Backing, BlockOp::Write { fua: true } | BlockOp::WriteZeroes { fua: true, .. }) => Some(Step::Sync),
            _ => None,
        };
        match next {
            Some(step) => self.enter(Job { step, done: 0, ..job }),
            None => self.finish(job.request.tag, Ok(())),
        }
    }

    fn finish(&mut self, tag: u16, outcome: Result<(), IoError>) {
        let queue = self.queue.as_mut().expect("serving");
        queue.finish(tag, outcome, &mut |entry| self.backlog.push_back(entry));
    }

    fn entry(&mut self, job: Job) -> squeue::Entry {
        let Request { tag, op, range, registered } = job.request;
        let left = job.request.payload_bytes() - job.done;
        let buffer = self.buffer(job.request).wrapping_add(job.done as usize);
        let queue = self.queue.as_ref().expect("serving");
        match job.step {
            // SAFETY: the buffer has room for the request and stays in self until the completion.
            Step::Take => return unsafe { queue.take_payload(tag, job.done, buffer, left) },
            // SAFETY: as above.
            Step::Give => return unsafe { queue.give_payload(tag, job.done, buffer, left) },
            Step::Backing | Step::Sync => {}
        }
        let Backing::File(file) = &self.backing else { unreachable!("memory has no entries for {:?}", job.step) };
        let fd = ring::Fd(file.as_raw_fd());
        if job.step == Step::Sync {
            return opcode::Fsync::new(fd).flags(ring::FsyncFlags::DATASYNC).build();
        }
        let offset = range.start() + u64::from(job.done);
        // In a registered buffer addresses count from its start.
        let position = job.done as usize as *mut u8;
        match op {
            BlockOp::Read if let Some(place) = registered => {
                opcode::ReadFixed::new(fd, position, left, place).offset(offset).build()
            }
            BlockOp::Write { .. } if let Some(place) = registered => {
                opcode::WriteFixed::new(fd, position, left, place).offset(offset).build()
            }
            BlockOp::Read => opcode::Read::new(fd, buffer, left).offset(offset).build(),
            BlockOp::Write { .. } => opcode::Write::new(fd, buffer, left).offset(offset).build(),
            BlockOp::Discard | BlockOp::WriteZeroes { may_unmap: true, .. } => {
                fallocate(fd, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, range)
            }
            BlockOp::WriteZeroes { may_unmap: false, .. } => {
                fallocate(fd, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, range)
            }
            BlockOp::Flush => unreachable!("a flush is one sync"),
        }
    }

    /// Where the request's payload lies.
    fn buffer(&mut self, request: Request) -> *mut u8 {
        let queue = self.queue.as_mut().expect("serving");
        match (&mut self.backing, queue.mode()) {
            _ if !request.op.has_payload() => std::ptr::null_mut(),
            (_, DataMode::Copy) => queue.buffer(request.tag).as_mut_ptr(),
            (Backing::Memory(bytes), DataMode::UserCopy) => bytes[index(request.range)].as_mut_ptr(),
            (Backing::File(_), DataMode::UserCopy) => {
                let first = usize::from(request.tag) * self.pages_per_tag;
                self.buffers[first..first + self.pages_per_tag].as_mut_ptr().cast()
            }
        }
    }

    fn move_in_memory(&mut self, request: Request) {
        let queue = self.queue.as_mut().expect("serving");
        let Backing::Memory(bytes) = &mut self.backing else { unreachable!("called for memory") };
        let place = &mut bytes[index(request.range)];
        match request.op {
            BlockOp::Discard | BlockOp::WriteZeroes { .. } => place.fill(0),
            // With user copy the bytes go straight between the application and the disk.
            _ if queue.mode() == DataMode::UserCopy => {}
            BlockOp::Read => queue.buffer(request.tag).copy_from_slice(place),
            BlockOp::Write { .. } => place.copy_from_slice(queue.buffer(request.tag)),
            BlockOp::Flush => {}
        }
    }

    fn watch_signals(&mut self) {
        self.watch(self.signals.as_raw_fd(), SIGNAL);
    }

    /// Polls rather than reads: a read that must wait could take a worker thread.
    fn watch(&mut self, fd: RawFd, user_data: u64) {
        let entry = opcode::PollAdd::new(ring::Fd(fd), libc::POLLIN as u32).build();
        self.backlog.push_back(entry.user_data(user_data));
    }

    fn on_signal(&mut self) -> Result<(), Error> {
        let device = self.device.as_ref().expect("there until removal");
        let queue = self.queue.as_mut().expect("there until removal");
        match (read_signal(&self.signals)?, self.grow_mib) {
            (libc::SIGUSR1, Some(mib)) => {
                let bytes = mib << 20;
                match &mut self.backing {
                    // Memory moves when it grows, and entries in flight point into it.
                    Backing::Memory(_) if queue.serving_count() > 0 => println!("not resized: requests in flight"),
                    Backing::Memory(memory) => {
                        memory.resize(usize::try_from(bytes)?, 0);
                        queue.set_size(bytes);
                        device.resize(bytes)?;
                    }
                    Backing::File(_) => println!("not resized: the backing device is what it is"),
                }
            }
            (libc::SIGUSR1, None) => {}
            _ => device.stop()?,
        }
        self.watch_signals();
        Ok(())
    }

    fn watch_events(&mut self) {
        let device = self.device.as_ref().expect("there until removal");
        self.watch(device.event_fd().as_raw_fd(), EVENT);
    }

    fn on_events(&mut self) -> Result<(), Error> {
        let device = self.device.as_ref().expect("there until removal");
        while let Some(event) = device.next_event() {
            match event {
                DeviceEvent::Started(Ok(())) => {
                    let registered = if device.registers_buffers() { " registered buffers" } else { "" };
                    println!("ready {} {:?}{registered}", device.path().display(), device.mode());
                }
                DeviceEvent::Started(Err(e)) => {
                    self.failed = Some(e);
                    device.stop()?;
                }
                DeviceEvent::Stopped(result) => {
                    result?;
                    self.stopped = true;
                }
                DeviceEvent::Resized(Ok(())) => println!("resized"),
                DeviceEvent::Resized(Err(e)) => println!("not resized: {e}"),
                DeviceEvent::Deleted(_) => unreachable!("delete comes after this loop"),
            }
            io::stdout().flush()?;
        }
        if !self.stopped {
            self.watch_events();
        }
        Ok(())
    }
}

fn index(range: ByteRange) -> std::ops::Range<usize> {
    // The queue checked the range against the size, which is that of a vector.
    range.start() as usize..range.end() as usize
}

fn fallocate(fd: ring::Fd, mode: i32, range: ByteRange) -> squeue::Entry {
    opcode::Fallocate::new(fd, range.len()).offset(range.start()).mode(mode).build()
}

fn io_error(errno: i32) -> IoError {
    match errno {
        libc::EOPNOTSUPP => IoError::Unsupported,
        libc::ENOSPC => IoError::NoSpace,
        libc::EINVAL => IoError::Invalid,
        _ => IoError::Io,
    }
}

/// The poll said that there is one.
fn read_signal(signals: &OwnedFd) -> io::Result<i32> {
    // SAFETY: plain integers, for which zero is a value; the read is bounded by their size.
    let (info, len) = unsafe {
        let mut info: libc::signalfd_siginfo = std::mem::zeroed();
        let len = libc::read(signals.as_raw_fd(), std::ptr::from_mut(&mut info).cast(), size_of_val(&info));
        (info, len)
    };
    if len < 0 { Err(io::Error::last_os_error()) } else { Ok(info.ssi_signo as i32) }
}

fn signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: the set lives on this stack; a descriptor that isn't negative is owned by nobody else. Called before any
    // other thread exists, so that all inherit the mask.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1] {
            libc::sigaddset(&mut set, signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}
