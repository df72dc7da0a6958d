//! The loop: orders and completions become inputs, inputs become effects, effects become submissions.
//!
//! One round: take orders, take completions, tick if due, let sockets start what was queued, wait. Every input is
//! followed by carrying out all of its effects before the next one (contract of `engine::api`).

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use engine::{Command, CommandId, Effect, Engine, Input, LinkError, Refusal, ResourceConfig};
use io_uring::{opcode, types::Fd};
use tokio::sync::{broadcast, mpsc as tokio_mpsc};
use types::{Time, VolumeNumber};

use super::network::Network;
use super::{Answer, Mailbox, Order, Outside, Snapshot, StartError, VolumeUse, Wish};
use crate::attach::OpenedDisk;
use crate::disks::Disks;
use crate::log;
use crate::nbd::Nbd;
use crate::payloads::Payloads;
use crate::ring::{Completion, Kind, Ring, Tag};
use crate::slots::Key;
use crate::stream::{Outgoing, Owner, Progress, Streams};
use crate::ublk::{self, Ublk};

/// Submissions collected between two calls of the kernel.
const RING_ENTRIES: u32 = 256;
/// How long an ending thread waits for disks and sockets.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// The eventfd's tag; it has no table.
const WAKE: Key = Key { slot: 0, generation: 0 };

pub(super) struct Resource {
    name: String,
    engine: Engine,
    /// Time zero of the engine.
    born: Instant,
    /// When the engine wants a `Tick`, as it said before the last wait. What came since may have put it off: a tick too
    /// many is harmless. What is due earlier since then is seen before the next wait.
    deadline: Option<Time>,
    ring: Ring,
    payloads: Payloads,
    disks: Disks,
    streams: Streams,
    network: Network,
    nbd: Nbd,
    ublk: Ublk,
    volumes: BTreeMap<VolumeNumber, VolumeUse>,

    orders: mpsc::Receiver<Order>,
    wake: Arc<OwnedFd>,
    wake_count: Box<u64>,
    wishes: tokio_mpsc::UnboundedSender<Wish>,
    changes: broadcast::Sender<Arc<Snapshot>>,

    answers: BTreeMap<CommandId, Answer>,
    commands: u64,
    inputs: VecDeque<Input>,
    /// Reused.
    effects: Vec<Effect>,
    /// Something happened that subscribers want to see.
    changed: bool,
    ending: Option<Instant>,
}

impl Resource {
    pub(super) fn new(
        name: String,
        config: ResourceConfig,
        seed: [u8; 32],
        payloads: Payloads,
        mailbox: Mailbox,
        outside: Outside,
    ) -> Result<Resource, StartError> {
        let ring = Ring::new(RING_ENTRIES).map_err(|source| StartError::System {
            name: name.clone(),
            what: "cannot make an io_uring (is it disabled? see /proc/sys/kernel/io_uring_disabled)",
            source,
        })?;
        let volumes = config.volumes.keys().map(|volume| (*volume, VolumeUse::default())).collect();
        Ok(Resource {
            name,
            engine: Engine::new(config, seed),
            born: Instant::now(),
            deadline: None,
            ring,
            payloads,
            disks: Disks::default(),
            streams: Streams::default(),
            network: Network::new(outside.connectors),
            nbd: Nbd::default(),
            ublk: Ublk::default(),
            volumes,
            orders: mailbox.orders,
            wake: mailbox.wake,
            wake_count: Box::new(0),
            wishes: outside.wishes,
            changes: outside.changes,
            answers: BTreeMap::new(),
            commands: 0,
            inputs: VecDeque::new(),
            effects: Vec::new(),
            changed: false,
            ending: None,
        })
    }

    pub(super) fn run(mut self) {
        let span = tracing::info_span!("resource", name = %self.name);
        let _entered = span.enter();
        crate::process::mark_thread_as_io_flusher();
        crate::process::ask_for_long_slices();
        let mut completions = Vec::new();
        self.listen_for_orders();
        loop {
            for completion in completions.drain(..) {
                self.completed(completion);
            }
            self.tick_if_due(Instant::now());
            self.serve();
            if self.is_over() {
                break;
            }
            self.deadline = self.engine.next_deadline();
            let timeout = self.timeout(Instant::now());
            self.ring.wait(timeout, &mut completions);
        }
        self.leave_memory_to_the_kernel_if_it_holds_some();
    }

    fn now(&self) -> Time {
        self.time_of(Instant::now())
    }

    fn time_of(&self, now: Instant) -> Time {
        Time(u64::try_from(now.saturating_duration_since(self.born).as_nanos()).expect("584 years"))
    }

    // ------------------------------------------------------------------------------------------------- engine

    fn feed(&mut self, input: Input) {
        self.inputs.push_back(input);
        self.run_inputs();
    }

    fn run_inputs(&mut self) {
        while let Some(input) = self.next_input() {
            let now = self.now();
            let mut effects = std::mem::take(&mut self.effects);
            self.engine.handle(now, input, &mut effects);
            for effect in effects.drain(..) {
                self.carry_out(effect);
            }
            self.effects = effects;
            if std::mem::take(&mut self.changed) {
                self.publish();
            }
        }
    }

    fn next_input(&mut self) -> Option<Input> {
        if let Some(done) = self.disks.take_done() {
            let crate::disks::Done { volume, io, result, payload } = done;
            return Some(Input::DiskDone { volume, io, result, payload });
        }
        self.inputs.pop_front()
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Reply { id, result } => self.reply(id, result),
            Effect::Complete { request, result } if ublk::is_ours(request) => {
                self.ublk.complete(request, result, &mut self.ring, &mut self.payloads);
            }
            Effect::Complete { request, result } => self.nbd.complete(request, result, &mut self.payloads),
            Effect::Release { payload } => {
                self.payloads.release(payload);
            }
            Effect::Copy { from, to } => self.payloads.copy(from, to),
            Effect::Disk { volume, io, op } => {
                self.disks.start(volume, io, op, &mut self.ring, &mut self.payloads);
            }
            Effect::Digest { id, payload, algorithm } => {
                let digest = crate::digest::of(algorithm, self.payloads.bytes_mut(payload));
                self.inputs.push_back(Input::DigestDone { id, digest });
            }
            Effect::Send { peer, link, socket, volume, message, payload } => {
                let outgoing = Outgoing { volume, message, payload };
                let to = Owner { peer, link, socket };
                if let Err(error) = self.network.send(to, &outgoing, &mut self.streams, &mut self.payloads) {
                    self.inputs.extend(self.network.fail(peer, link, error, &mut self.streams));
                }
            }
            Effect::LinkContext { peer, link, protocol, features } => {
                self.network.set_context(peer, link, protocol, features);
            }
            Effect::Connect { peer, delay } => self.network.connect(peer, delay),
            Effect::StopConnecting { peer } => self.network.stop_connecting(peer),
            Effect::CloseLink { peer, link } => self.network.close(peer, link, &mut self.streams),
            Effect::Device { volume, device } => self.set_device(volume, device),
            Effect::CloseDisk { volume } => {
                self.disks.close(volume);
                self.volume_mut(volume).backing = None;
                self.changed = true;
            }
            Effect::Event(event) => {
                log::event(&event);
                self.changed = true;
            }
        }
    }

    fn volume_mut(&mut self, volume: VolumeNumber) -> &mut VolumeUse {
        self.volumes.get_mut(&volume).unwrap_or_else(|| panic!("{volume:?} is not configured"))
    }

    fn set_device(&mut self, volume: VolumeNumber, shape: Option<engine::DeviceShape>) {
        self.nbd.set_export(&self.name, volume, shape);
        if shape.is_none() {
            self.ublk.remove(volume);
        }
        self.volume_mut(volume).device = shape.is_some();
        self.changed = true;
        // Without a control plane there is nobody to make devices, and the process is about to end.
        let _ = self.wishes.send(Wish::Device { volume, shape });
    }

    fn reply(&mut self, id: CommandId, result: Result<(), Refusal>) {
        let answer = self.answers.remove(&id).unwrap_or_else(|| panic!("{id:?} was answered before"));
        // The operator may have gone away meanwhile.
        let _ = answer.send(result);
    }

    fn tick_if_due(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= self.time_of(now)) {
            self.feed(Input::Tick);
        }
        self.streams.kill_overdue(now);
        self.nbd.cut_undecided(now);
    }

    /// Until the engine or a closing socket has something to do. `None`: for ever.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        let engine = self.deadline.map(|deadline| deadline.since(self.time_of(now)));
        let instants = [self.streams.next_deadline(), self.nbd.next_deadline(), self.ending];
        instants.into_iter().flatten().map(|at| at.saturating_duration_since(now)).chain(engine).min()
    }

    // ------------------------------------------------------------------------------------------------- orders

    fn listen_for_orders(&mut self) {
        let place = std::ptr::from_mut(&mut *self.wake_count).cast::<u8>();
        let entry = opcode::Read::new(Fd(self.wake.as_raw_fd()), place, size_of::<u64>() as u32).build();
        // SAFETY: the counter is boxed and not touched by us, the eventfd is held; both as long as this thread runs.
        unsafe { self.ring.push(entry, Tag::new(Kind::Wake, WAKE)) };
    }

    fn take_orders(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Command { command, answer } => self.command(command, answer),
                Order::Attach { volume, disk, answer } => self.attach(volume, *disk, answer),
                Order::Status { answer } => {
                    // Who asked may have gone away; so in `attach`.
                    let _ = answer.send(Arc::new(self.snapshot()));
                }
                Order::Paths(paths) => self.network.set_paths(paths),
                Order::Established { peer, sockets } => {
                    if let Some(input) = self.network.established(peer, sockets, &mut self.streams) {
                        self.feed(input);
                    }
                }
                Order::NbdClient { volume, socket, from } => self.nbd.add(volume, socket, from, Instant::now()),
                Order::NbdAddress { volume, trouble } => self.nbd_address(volume, trouble),
                Order::UblkDevice { volume, device } => self.ublk_device(volume, *device),
                Order::End => self.end(),
            }
        }
    }

    fn command(&mut self, command: Command, answer: Answer) {
        self.commands += 1;
        let id = CommandId(self.commands);
        self.answers.insert(id, answer);
        self.feed(Input::Command { id, command });
    }

    fn attach(&mut self, volume: VolumeNumber, opened: OpenedDisk, answer: Answer) {
        if self.disks.is_open(volume) {
            let refusal = Refusal {
                code: 124,
                rule: "ERR_DISK_CONFIGURED",
                state: format!("volume {volume} has a disk"),
                next_step: "detach it first",
            };
            let _ = answer.send(Err(refusal));
            return;
        }
        let OpenedDisk { data, metadata, attached } = opened;
        self.volume_mut(volume).backing = Some(data.path().to_path_buf());
        self.disks.open(volume, data, metadata);
        self.command(Command::Attach { volume, disk: attached }, answer);
    }

    fn nbd_address(&mut self, volume: VolumeNumber, trouble: Option<String>) {
        self.volume_mut(volume).nbd_trouble = trouble;
        self.publish();
    }

    fn ublk_device(&mut self, volume: VolumeNumber, device: ublk_frontend::Device) {
        // It may have become unwanted while it was made; then it goes through the same door out.
        self.ublk.add(volume, device, &mut self.ring);
        if !self.volume_mut(volume).device {
            self.ublk.remove(volume);
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut volumes = self.volumes.clone();
        for (number, volume) in &mut volumes {
            volume.clients = self.nbd.holders(*number).count();
            volume.remote_clients = self.nbd.holders(*number).flatten().collect();
        }
        Snapshot { status: self.engine.status(), volumes }
    }

    fn publish(&mut self) {
        if self.changes.receiver_count() > 0 {
            // Nobody may be left by now.
            let _ = self.changes.send(Arc::new(self.snapshot()));
        }
    }

    // -------------------------------------------------------------------------------------------- completions

    fn completed(&mut self, completion: Completion) {
        let Completion { tag: Tag { kind, key }, result } = completion;
        match kind {
            Kind::Wake => {
                self.listen_for_orders();
                self.take_orders();
            }
            Kind::PeerReceive => {
                let progress = self.streams.received(key, result);
                self.progressed(key, progress);
            }
            Kind::PeerSend => {
                let progress = self.streams.sent(key, result, &mut self.payloads);
                self.progressed(key, progress);
            }
            Kind::Disk => {
                self.disks.completed(key, result, &mut self.ring, &mut self.payloads);
                self.run_inputs();
            }
            Kind::NbdReceive => self.nbd.received(key, result),
            Kind::NbdSend => self.nbd.sent(key, result, &mut self.payloads),
            Kind::UblkCommand => {
                self.ublk.command(key.slot, key.generation as u16, result, &mut self.ring, &mut self.payloads);
            }
            Kind::UblkPayload => {
                self.ublk.moved(key.slot, key.generation as u16, result, &mut self.ring, &mut self.payloads);
            }
            Kind::UblkEvent => self.ublk.event(key.slot, &mut self.ring),
        }
    }

    fn progressed(&mut self, key: Key, progress: Progress) {
        let (owner, error) = match progress {
            Progress::Nothing => return,
            Progress::Received(_) => return self.take_messages(key),
            Progress::Closed(owner) => (owner, LinkError::Closed),
            Progress::Failed(owner, text) => (owner, LinkError::Failed(text)),
        };
        if let Some(down) = self.network.fail(owner.peer, owner.link, error, &mut self.streams) {
            self.feed(down);
        }
    }

    /// All complete messages of a stream, one by one: each may change how the next is read, or end the link.
    fn take_messages(&mut self, key: Key) {
        while let Some(owner) = self.streams.owner(key)
            && let Some(context) = self.network.context(owner)
        {
            match self.streams.next_message(key, &context, &mut self.payloads) {
                Ok(None) => return,
                Ok(Some(incoming)) => self.feed(Input::Received {
                    peer: owner.peer,
                    link: owner.link,
                    socket: owner.socket,
                    volume: incoming.volume,
                    message: incoming.message,
                    payload: incoming.payload,
                }),
                Err(text) => {
                    let error = LinkError::Protocol(text);
                    if let Some(down) = self.network.fail(owner.peer, owner.link, error, &mut self.streams) {
                        self.feed(down);
                    }
                }
            }
        }
    }

    /// Before every wait: sockets start what was queued, what waited for buffers goes on.
    fn serve(&mut self) {
        loop {
            self.nbd.serve(&mut self.ring, &mut self.payloads);
            while let Some(input) = self.ublk.take_submitted().or_else(|| self.nbd.take_submitted()) {
                self.feed(input);
            }
            self.streams.arm(&mut self.ring, &mut self.payloads);
            self.run_inputs();
            if self.payloads.take_freed() {
                self.disks.retry_waiting(&mut self.ring, &mut self.payloads);
                self.run_inputs();
                for key in self.streams.take_starved() {
                    self.streams.rearm(key);
                    self.take_messages(key);
                }
                self.nbd.retry_waiting();
                self.ublk.retry_waiting(&mut self.ring, &mut self.payloads);
                continue;
            }
            if !self.nbd.has_work() && !self.streams.has_work() {
                return;
            }
        }
    }

    // ---------------------------------------------------------------------------------------------------- end

    fn end(&mut self) {
        self.ending = Some(Instant::now() + END_PATIENCE);
        self.nbd.leave_all();
    }

    /// Applications first: their last writes need the peers to complete.
    fn is_over(&mut self) -> bool {
        let Some(patience) = self.ending else { return false };
        if self.nbd.is_empty() {
            self.network.close_all(&mut self.streams);
            self.streams.arm(&mut self.ring, &mut self.payloads);
        }
        let idle = self.disks.is_idle() && self.streams.is_empty() && self.nbd.is_empty();
        idle || Instant::now() >= patience
    }

    /// The kernel may still write into buffers of operations that did not come back in time.
    fn leave_memory_to_the_kernel_if_it_holds_some(self) {
        // The read of the eventfd is always under way.
        std::mem::forget(self.wake_count);
        let idle = self.disks.is_idle() && self.streams.is_empty() && self.nbd.is_empty();
        if idle && self.ublk.is_empty() {
            return;
        }
        if !idle {
            tracing::warn!("ended with operations under way after {END_PATIENCE:?}");
        }
        // A ublk device that is still there waits for the next daemon (user recovery).
        std::mem::forget((self.payloads, self.disks, self.streams, self.nbd, self.ublk));
    }
}
