//! The control half: a device from its creation to its removal. libublk does the commands, on one thread per device,
//! which sleeps unless a command is under way: starting waits for the queue's fetch commands and then for the partition
//! scan's reads, stopping for requests in flight, deleting for the last reference. None of that may stop the loop that
//! serves them.

use crate::error::UblkError;
use crate::params;
use crate::queue::{DataMode, Queue};
use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::{UblkFlags, sys};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use types::BlockLimits;

const CONTROL_PATH: &str = "/dev/ublk-control";

/// Where the device comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// A new device with this number, or one of the kernel's choice.
    Add(Option<u32>),
    /// A live device whose server died; it was made with `recovery`. Its requests are waiting and will be issued again.
    Recover(u32),
}

#[derive(Clone, Debug)]
pub struct DeviceOptions {
    pub start: Start,
    /// Requests in flight, 1..=4096.
    pub queue_depth: u16,
    pub size_bytes: u64,
    /// The largest request is rounded down to whole pages, the discard granularity up to whole blocks.
    pub limits: BlockLimits,
    /// None: the best that the kernel has.
    pub mode: Option<DataMode>,
    /// With user copy, and where the kernel can (6.16): each request's pages also become a fixed buffer of the ring, for
    /// disks to read into and to write from.
    pub register_buffers: bool,
    /// When this process dies the device stays, requests wait, those in flight are issued again to the next server.
    /// Off: they fail and the device goes.
    pub recovery: bool,
}

/// Outcome of a control command, in the order of the commands.
#[derive(Debug)]
pub enum DeviceEvent {
    /// `/dev/ublkbN` exists.
    Started(Result<(), UblkError>),
    /// `/dev/ublkbN` is gone, the queue goes down.
    Stopped(Result<(), UblkError>),
    /// Nothing is left, the number is free.
    Deleted(Result<(), UblkError>),
    Resized(Result<(), UblkError>),
}

enum Command {
    Start,
    Stop,
    Delete,
    Resize(u64),
}

/// A device of the driver. Dropping it without `delete` leaves it to recovery (or, without `recovery`, to the kernel,
/// which fails its requests when this process ends).
pub struct Device {
    dev: Arc<UblkDev>,
    size_bytes: u64,
    mode: DataMode,
    commands: Sender<Command>,
    events: Receiver<DeviceEvent>,
    notify: Arc<OwnedFd>,
}

impl Device {
    /// Adds or recovers the device; it appears with `start`. Waits for the driver and the device node: milliseconds.
    pub fn create(options: &DeviceOptions) -> Result<Device, UblkError> {
        let options = &DeviceOptions { limits: params::fitted(&options.limits), ..options.clone() };
        params::check(options.queue_depth, options.size_bytes, &options.limits)?;
        if !Path::new(CONTROL_PATH).exists() {
            return Err(UblkError::NoDriver);
        }
        let id = options.start.id();
        let notify = Arc::new(eventfd().map_err(|source| UblkError::Control { id, command: "eventfd", source })?);
        let (commands, command_queue) = channel();
        let (event_queue, events) = channel();
        let (made, made_answer) = channel();
        let thread_options = options.clone();
        let thread_notify = notify.clone();
        let spawned = std::thread::Builder::new().name("ublk-control".into()).spawn(move || {
            let opened = Opened::new(&thread_options);
            match opened {
                Err(e) => drop(made.send(Err(e))),
                Ok(opened) => {
                    if made.send(Ok((opened.dev.clone(), opened.mode))).is_ok() {
                        drop(made);
                        opened.serve(&command_queue, &event_queue, &thread_notify);
                    }
                }
            }
        });
        spawned.map_err(|source| UblkError::Control { id, command: "thread", source })?;
        let (dev, mode) = made_answer.recv().map_err(|_| UblkError::ControlThread { id })??;
        Ok(Device { dev, size_bytes: options.size_bytes, mode, commands, events, notify })
    }

    pub fn id(&self) -> u32 {
        self.dev.dev_info.dev_id
    }
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/ublkb{}", self.id()))
    }
    pub fn mode(&self) -> DataMode {
        self.mode
    }

    /// The kernel registers the pages of requests. A device that another server made may do so unasked.
    pub fn registers_buffers(&self) -> bool {
        self.dev.dev_info.flags & u64::from(sys::UBLK_F_AUTO_BUF_REG) != 0
    }

    /// The device's queue; one at a time. Completions of its commands will carry `user_data | tag`.
    ///
    /// `first_buffer`: the first of as many empty places as the queue is deep in the ring's table of fixed buffers, for
    /// this queue alone. `None`, or no such places: requests come without registered pages.
    pub fn queue(&self, user_data: u64, first_buffer: Option<u16>) -> Result<Queue, UblkError> {
        Queue::new(self.dev.clone(), self.size_bytes, self.mode, user_data, first_buffer)
    }

    pub fn queue_depth(&self) -> u16 {
        self.dev.dev_info.queue_depth
    }

    /// Makes `/dev/ublkbN` appear; `Started` follows. The queue must have been started and be served: the kernel waits
    /// for its fetch commands, then reads the partition table through it.
    pub fn start(&self) -> Result<(), UblkError> {
        self.send(Command::Start)
    }
    /// Takes `/dev/ublkbN` away; `Stopped` follows when the requests in flight are finished. New ones fail.
    pub fn stop(&self) -> Result<(), UblkError> {
        self.send(Command::Stop)
    }
    /// Tells the kernel of a new size; `Resized` follows. Linux 6.16 and newer. See `Queue::set_size`.
    pub fn resize(&self, size_bytes: u64) -> Result<(), UblkError> {
        self.send(Command::Resize(size_bytes))
    }
    /// Removes the stopped device; `Deleted` follows, from `deleted`. The queue must be dropped before: the kernel waits
    /// for the last user of the character device (asserted, because it would wait for ever).
    pub fn delete(self) -> Result<Deletion, UblkError> {
        let id = self.id();
        let Device { dev, commands, events, notify, .. } = self;
        // The control thread holds the second reference.
        assert!(Arc::strong_count(&dev) <= 2, "device {id} is deleted while its queue exists");
        drop(dev);
        commands.send(Command::Delete).map_err(|_| UblkError::ControlThread { id: id.into() })?;
        Ok(Deletion { id, events, notify })
    }

    /// Readable when `next_event` may have something. For a poll entry of the caller's ring; `next_event` clears it.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.notify.as_fd()
    }
    /// Does not wait. To be called until there is none.
    pub fn next_event(&self) -> Option<DeviceEvent> {
        clear(&self.notify);
        self.events.try_recv().ok()
    }

    fn send(&self, command: Command) -> Result<(), UblkError> {
        self.commands.send(command).map_err(|_| UblkError::ControlThread { id: self.id().into() })
    }
}

/// A device on its way out.
pub struct Deletion {
    id: u32,
    events: Receiver<DeviceEvent>,
    notify: Arc<OwnedFd>,
}

impl Deletion {
    /// As `Device::event_fd`.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.notify.as_fd()
    }
    /// Does not wait. To be called until there is none.
    pub fn next_event(&self) -> Option<DeviceEvent> {
        clear(&self.notify);
        self.events.try_recv().ok()
    }
    /// Waits for the end; for callers that have nothing else to serve.
    pub fn wait(self) -> Result<(), UblkError> {
        loop {
            match self.events.recv() {
                Ok(DeviceEvent::Deleted(result)) => return result,
                Ok(_) => {}
                Err(_) => return Err(UblkError::ControlThread { id: self.id.into() }),
            }
        }
    }
}

impl Start {
    fn id(self) -> i64 {
        match self {
            Start::Add(Some(id)) | Start::Recover(id) => id.into(),
            Start::Add(None) => -1,
        }
    }
}

/// What the control thread owns.
struct Opened {
    ctrl: UblkCtrl,
    dev: Arc<UblkDev>,
    mode: DataMode,
}

impl Opened {
    fn new(options: &DeviceOptions) -> Result<Opened, UblkError> {
        let mode = choose_mode(options.mode)?;
        let id = options.start.id();
        let (command, ctrl) = match options.start {
            Start::Add(_) => ("add", add(options, mode)),
            Start::Recover(_) => ("recover", recover(options)),
        };
        let ctrl = ctrl.map_err(|e| UblkError::control(id, command, e))?;
        let dev = open(&ctrl, options);
        let dev = match dev {
            Ok(dev) => dev,
            Err(e) => {
                if let Start::Add(_) = options.start {
                    // The error that led here is the one to report.
                    let _ = ctrl.del_dev();
                }
                return Err(UblkError::control(id, "open", e));
            }
        };
        if mode == DataMode::Copy {
            // libublk waits for its own queue's buffers before it starts a device; ours are ready with the queue.
            dev.notify_buffer_registration_complete(false);
        }
        let mode = if dev.dev_info.flags & u64::from(sys::UBLK_F_USER_COPY) != 0 { DataMode::UserCopy } else { mode };
        Ok(Opened { ctrl, dev: Arc::new(dev), mode })
    }

    fn serve(self, commands: &Receiver<Command>, events: &Sender<DeviceEvent>, notify: &OwnedFd) {
        let Opened { ctrl, dev, .. } = self;
        let id = i64::from(dev.dev_info.dev_id);
        let mut dev = Some(dev);
        // Ends when the `Device` is dropped.
        while let Ok(command) = commands.recv() {
            let event = match command {
                Command::Start => {
                    let dev = dev.as_ref().expect("delete consumes the device, so nothing follows it");
                    DeviceEvent::Started(outcome(id, "start", ctrl.start_dev(dev)))
                }
                Command::Stop => DeviceEvent::Stopped(outcome(id, "stop", ctrl.stop_dev())),
                Command::Resize(bytes) => DeviceEvent::Resized(resize(&ctrl, id, bytes)),
                Command::Delete => {
                    // Closes the character device: the kernel waits for that.
                    dev = None;
                    DeviceEvent::Deleted(outcome(id, "delete", ctrl.del_dev()))
                }
            };
            // Nobody listens: the device was dropped meanwhile, and the loop ends with the next command.
            if events.send(event).is_ok() {
                signal(notify);
            }
        }
    }
}

fn outcome(id: i64, command: &'static str, result: Result<i32, libublk::UblkError>) -> Result<(), UblkError> {
    result.map(drop).map_err(|e| UblkError::control(id, command, e))
}

fn resize(ctrl: &UblkCtrl, id: i64, bytes: u64) -> Result<(), UblkError> {
    if ctrl.dev_info().flags & u64::from(sys::UBLK_F_UPDATE_SIZE) == 0 {
        return Err(UblkError::NoFeature { feature: "change of a live device's size", since: "6.16" });
    }
    outcome(id, "resize", ctrl.update_size(bytes))
}

fn features() -> u64 {
    // None: a driver older than the question, which has nothing that matters here.
    UblkCtrl::get_features().unwrap_or(0)
}

fn choose_mode(wanted: Option<DataMode>) -> Result<DataMode, UblkError> {
    let user_copy = features() & u64::from(sys::UBLK_F_USER_COPY) != 0;
    match wanted {
        Some(DataMode::UserCopy) if !user_copy => Err(UblkError::NoFeature { feature: "user copy", since: "6.5" }),
        Some(mode) => Ok(mode),
        None if user_copy => Ok(DataMode::UserCopy),
        None => Ok(DataMode::Copy),
    }
}

fn flags(mode: DataMode, options: &DeviceOptions) -> u64 {
    let mut flags = sys::UBLK_F_CMD_IOCTL_ENCODE;
    if mode == DataMode::UserCopy {
        flags |= sys::UBLK_F_USER_COPY;
        if options.register_buffers {
            flags |= sys::UBLK_F_AUTO_BUF_REG & features() as u32;
        }
    }
    if options.recovery {
        flags |= sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE;
    }
    // The kernel drops what it doesn't know; whether it took, the device's own flags say.
    u64::from(flags | (sys::UBLK_F_UPDATE_SIZE & features() as u32))
}

/// ADD_DEV by ourselves: when libublk's own fails because the number is taken, it deletes the device of that number,
/// which is somebody else's (seen with 0.4.8).
fn add(options: &DeviceOptions, mode: DataMode) -> Result<UblkCtrl, libublk::UblkError> {
    let wanted = match options.start.id() {
        // The kernel chooses.
        -1 => u32::MAX,
        id => u32::try_from(id).ok().filter(|id| *id <= i32::MAX as u32).ok_or(libublk::UblkError::InvalidVal)?,
    };
    let mut info = sys::ublksrv_ctrl_dev_info {
        nr_hw_queues: 1,
        queue_depth: options.queue_depth,
        max_io_buf_bytes: options.limits.io_bytes_max,
        dev_id: wanted,
        ublksrv_pid: std::process::id() as i32,
        flags: flags(mode, options),
        ..Default::default()
    };
    let command = sys::ublksrv_ctrl_cmd {
        dev_id: wanted,
        queue_id: u16::MAX,
        addr: std::ptr::from_mut(&mut info) as u64,
        len: size_of_val(&info) as u16,
        ..Default::default()
    };
    let control = std::fs::OpenOptions::new().read(true).write(true).open(CONTROL_PATH)?;
    submit_control(&control, sys::UBLK_U_CMD_ADD_DEV, command)?;
    let id = info.dev_id as i32;
    note_for_libublk(id);
    UblkCtrl::new_simple(id).inspect_err(|_| {
        // A device that was never started can't be recovered, and would keep its number. The error that led here
        // is the one to report.
        let delete = sys::ublksrv_ctrl_cmd { dev_id: info.dev_id, queue_id: u16::MAX, ..Default::default() };
        let _ = submit_control(&control, sys::UBLK_U_CMD_DEL_DEV, delete);
    })
}

/// One command on this thread's control ring, waited for. What `command` points to must live until it returns.
fn submit_control(control: &std::fs::File, op: u32, command: sys::ublksrv_ctrl_cmd) -> io::Result<()> {
    let mut bytes = [0u8; 80];
    // SAFETY: plain integers without padding, shorter than the 80 bytes of a large entry.
    let fields: [u8; size_of::<sys::ublksrv_ctrl_cmd>()] = unsafe { std::mem::transmute(command) };
    bytes[..fields.len()].copy_from_slice(&fields);
    let fd = io_uring::types::Fd(control.as_raw_fd());
    let entry = io_uring::opcode::UringCmd80::new(fd, op).cmd(bytes).build();
    let mut uring = io_uring::IoUring::<io_uring::squeue::Entry128>::builder().build(1)?;
    // SAFETY: the caller keeps what the command points to; the wait below outlasts the kernel's use of it.
    unsafe { uring.submission().push(&entry) }.expect("a fresh ring has room");
    while uring.completion().is_empty() {
        match uring.submit_and_wait(1) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
            _ => {}
        }
    }
    let result = uring.completion().next().expect("not empty").result();
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// libublk looks for a file of its own about each device it opens, and complains on stderr if there is none. It removes
/// the file with the device. Without it nothing is lost but quiet.
fn note_for_libublk(id: i32) {
    let dir = PathBuf::from(UblkCtrl::run_dir());
    let _ = std::fs::create_dir_all(&dir);
    let _ = std::fs::write(dir.join(format!("{id:04}.json")), "{}");
}

fn recover(options: &DeviceOptions) -> Result<UblkCtrl, libublk::UblkError> {
    let id = i32::try_from(options.start.id()).map_err(|_| libublk::UblkError::InvalidVal)?;
    note_for_libublk(id);
    let ctrl = UblkCtrlBuilder::default()
        .name("replicad")
        .id(id)
        .depth(options.queue_depth)
        .dev_flags(UblkFlags::UBLK_DEV_F_RECOVER_DEV)
        .build()?;
    ctrl.start_user_recover()?;
    Ok(ctrl)
}

fn open(ctrl: &UblkCtrl, options: &DeviceOptions) -> Result<UblkDev, libublk::UblkError> {
    let dev = UblkDev::new(
        "replicad".into(),
        |dev| {
            dev.tgt.dev_size = options.size_bytes;
            dev.tgt.params = params::params(options.size_bytes, &options.limits);
            Ok(())
        },
        ctrl,
    )?;
    // A file that may block is handed by io_uring to a worker thread for every payload copy. This one never blocks: it
    // copies from and to pages that are in memory.
    set_nonblocking(dev.tgt.fds[0]).map_err(libublk::UblkError::IOError)?;
    Ok(dev)
}

fn set_nonblocking(fd: i32) -> io::Result<()> {
    // SAFETY: fcntl on a descriptor that `UblkDev` keeps open; no pointers.
    let set = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags < 0 { flags } else { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: eventfd takes no pointers; a result that isn't negative is a descriptor that nobody else owns.
    unsafe {
        match libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Before the events are looked at: one that comes in between leaves the descriptor readable.
fn clear(notify: &OwnedFd) {
    let mut count = [0; 8];
    // SAFETY: 8 writable bytes. It fails with EAGAIN if there was nothing, which is as good.
    unsafe { libc::read(notify.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}

fn signal(notify: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: 8 readable bytes. It blocks only at 2^64 unread events.
    let written = unsafe { libc::write(notify.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    assert!(written == 8, "write to an eventfd: {}", io::Error::last_os_error());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_the_driver_is_told_so() {
        if Path::new(CONTROL_PATH).exists() {
            eprintln!("SKIPPED: this host has ublk");
            return;
        }
        let options = DeviceOptions {
            start: Start::Add(None),
            queue_depth: 16,
            size_bytes: 1 << 20,
            limits: BlockLimits::default(),
            mode: None,
            register_buffers: false,
            recovery: false,
        };
        let error = Device::create(&options).err().expect("no driver");
        assert!(matches!(error, UblkError::NoDriver));
        assert!(error.to_string().contains("modprobe ublk_drv"));
    }

    #[test]
    fn a_device_may_be_made_on_one_thread_and_served_on_another() {
        fn is_send<T: Send>() {}
        is_send::<Device>();
        is_send::<Queue>();
    }

    #[test]
    fn bad_options_are_refused_before_the_driver_is_asked() {
        let limits = BlockLimits::default();
        let options = DeviceOptions {
            start: Start::Add(None),
            queue_depth: 0,
            size_bytes: 512,
            limits,
            mode: None,
            register_buffers: false,
            recovery: false,
        };
        assert!(matches!(Device::create(&options), Err(UblkError::Option { option: "queue depth", .. })));
    }
}
