//! NBD clients on the ring: sockets and buffers around the sans-IO sessions of `nbd-frontend`.
//!
//! Contract as in `stream`: one receive and one send of a client with the kernel, the client stays in the table until
//! both are back and its requests are answered. `Serving -> Leaving -> gone`: a leaving client receives nothing more;
//! when its requests are through and its output is sent, its socket closes.
//! A client receives only while its output is below [`OUTPUT_BYTES_MAX`] and none of its requests waits for a buffer.
//!
//! Whoever comes over TCP may be anybody: strangers find a bounded number of places, which are not those of the unix
//! socket, and only for [`DECISION_PATIENCE`] without choosing the export; what they send fills no log.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use engine::{DeviceShape, Input};
use io_uring::{opcode, types::Fd};
use nbd_frontend::{Event, Export, Request, RequestTag, Session, Want};
use rustix::net::Shutdown;
use store::Span;
use types::{IoError, PayloadId, RequestId, VolumeNumber};

use crate::log::RefusalLog;
use crate::payloads::{Payloads, Share};
use crate::ring::{Kind, Ring, Tag};
use crate::slots::{Key, Slots};
use crate::stream::sender::Sender;

/// Received at once at most, besides payloads. Bytes.
const STAGING_BYTES: usize = 16 << 10;
/// A client that does not read its answers is not listened to above this. Bytes.
const OUTPUT_BYTES_MAX: u64 = 8 << 20;
/// Clients of one resource that came over unix sockets, and as many over TCP. More are closed at once.
const CLIENTS_MAX: usize = 64;
/// For a TCP client to choose the export. Programs need a few round trips.
const DECISION_PATIENCE: Duration = Duration::from_secs(10);

/// The payload of a write on its way into its buffer.
#[derive(Clone, Copy)]
struct Filling {
    payload: PayloadId,
    filled: usize,
    len: usize,
}

struct Client {
    fd: OwnedFd,
    /// Over TCP: from where.
    from: Option<SocketAddr>,
    volume: VolumeNumber,
    session: Session,
    sender: Sender,
    staging: Box<[u8]>,
    start: usize,
    end: usize,
    filling: Option<Filling>,
    /// Reads that wait for a buffer.
    waiting: VecDeque<Request>,
    /// Requests that the engine has.
    submitted: usize,
    receiving: bool,
    sending: bool,
    leaving: bool,
    /// The socket failed: nothing can be sent any more.
    broken: bool,
}

/// A request that the engine has.
struct Pending {
    client: Key,
    tag: RequestTag,
    payload: Option<PayloadId>,
}

#[derive(Default)]
pub struct Nbd {
    exports: BTreeMap<VolumeNumber, Export>,
    clients: Slots<Client>,
    /// TCP clients that have not chosen the export, and until when they may; in this order.
    undecided: VecDeque<(Instant, Key)>,
    refusals: RefusalLog,
    pending: Slots<Pending>,
    /// Clients with something to do before the next wait.
    to_serve: Vec<Key>,
    /// What came in for the engine.
    submitted: VecDeque<Input>,
}

fn request_id(key: Key) -> RequestId {
    RequestId(u64::from(key.generation) << 32 | u64::from(key.slot))
}

fn key_of(id: RequestId) -> Key {
    Key { slot: id.0 as u32, generation: (id.0 >> 32) as u32 }
}

impl Nbd {
    /// The volume can be used, with this size, or cannot. Clients keep the size they were told; when the volume goes
    /// away, they end after their requests.
    pub fn set_export(&mut self, name: &str, volume: VolumeNumber, shape: Option<DeviceShape>) {
        let Some(DeviceShape { size_bytes, limits }) = shape else {
            self.exports.remove(&volume);
            let of_volume = |key: &Key| self.clients.get(*key).is_some_and(|c| c.volume == volume);
            let keys: Vec<Key> = self.clients.keys().filter(of_volume).collect();
            keys.into_iter().for_each(|key| self.leave(key));
            return;
        };
        let name = format!("{name}.{volume}");
        self.exports.insert(volume, Export { name, size_bytes, limits, read_only: false, multi_conn: true });
    }

    /// `from`: over TCP.
    pub fn add(&mut self, volume: VolumeNumber, fd: OwnedFd, from: Option<SocketAddr>, now: Instant) {
        let of_this_kind = |key: &Key| self.clients.get(*key).is_some_and(|c| c.from.is_some() == from.is_some());
        if self.clients.keys().filter(of_this_kind).count() >= CLIENTS_MAX {
            let client = Named(from);
            self.refusals.note(format_args!("volume {volume}: {client} is refused: {CLIENTS_MAX} are connected"));
            return;
        }
        let key = self.clients.insert(Client {
            fd,
            from,
            volume,
            session: Session::new(),
            sender: Sender::default(),
            staging: vec![0; STAGING_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            filling: None,
            waiting: VecDeque::new(),
            submitted: 0,
            receiving: false,
            sending: false,
            leaving: !self.exports.contains_key(&volume),
            broken: false,
        });
        self.to_serve.push(key);
        if from.is_some() {
            self.undecided.push_back((now + DECISION_PATIENCE, key));
        }
    }

    /// Clients of a volume that chose the export: they hold the device. With the address of those over TCP.
    pub fn holders(&self, volume: VolumeNumber) -> impl Iterator<Item = Option<SocketAddr>> {
        let clients = self.clients.keys().filter_map(|key| self.clients.get(key));
        clients.filter(move |c| c.volume == volume && c.session.export().is_some()).map(|c| c.from)
    }

    /// When `cut_undecided` may have something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.undecided.front().map(|(deadline, _)| *deadline)
    }

    pub fn cut_undecided(&mut self, now: Instant) {
        while let Some((deadline, key)) = self.undecided.front().copied()
            && deadline <= now
        {
            self.undecided.pop_front();
            let client = self.clients.get_mut(key).expect("a client that goes is taken out of the list");
            client.fail();
            let (volume, client) = (client.volume, Named(client.from));
            self.refusals
                .note(format_args!("volume {volume}: {client} is cut: it chose no export in {DECISION_PATIENCE:?}"));
            self.to_serve.push(key);
        }
    }

    pub fn leave_all(&mut self) {
        let keys: Vec<Key> = self.clients.keys().collect();
        keys.into_iter().for_each(|key| self.leave(key));
    }

    fn leave(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.leaving = true;
        // Wakes a receive that waits; what is to be sent still is.
        let _ = rustix::net::shutdown(&client.fd, Shutdown::Read);
        self.to_serve.push(key);
    }

    pub fn received(&mut self, key: Key, result: i32) {
        let client = self.clients.get_mut(key).expect("a client stays until its receive came back");
        client.receiving = false;
        match result {
            1.. => match &mut client.filling {
                Some(filling) => filling.filled += result as usize,
                None => client.end += result as usize,
            },
            0 => client.leaving = true,
            _ if matches!(-result, libc::EINTR | libc::EAGAIN) => {}
            _ => client.leaving = true,
        }
        self.to_serve.push(key);
    }

    pub fn sent(&mut self, key: Key, result: i32, payloads: &mut Payloads) {
        let client = self.clients.get_mut(key).expect("a client stays until its send came back");
        client.sending = false;
        match result {
            1.. => client.sender.sent(result as usize, payloads),
            _ if matches!(-result, libc::EINTR | libc::EAGAIN) => {}
            _ => {
                client.fail();
            }
        }
        self.to_serve.push(key);
    }

    /// The engine is through with a request.
    pub fn complete(&mut self, id: RequestId, result: Result<(), IoError>, payloads: &mut Payloads) {
        let pending = self.pending.remove(key_of(id)).unwrap_or_else(|| panic!("{id:?} was completed before"));
        let client = self.clients.get_mut(pending.client).expect("a client stays until its requests are through");
        self.to_serve.push(pending.client);
        client.submitted -= 1;
        match client.session.complete(pending.tag, result) {
            Ok(answer) => {
                let payload = if answer.payload { pending.payload } else { None };
                if !client.broken && (payload.is_some() || !answer.head.is_empty()) {
                    client.sender.push(|out| out.extend_from_slice(&answer.head), payload, payloads);
                }
                client.waiting.extend(answer.next);
            }
            Err(reason) => {
                let (volume, from) = (client.volume, Named(client.from));
                self.refusals.note(format_args!("volume {volume}: {from} is cut: {reason}"));
                client.leaving = true;
            }
        }
        if let Some(id) = pending.payload {
            payloads.close_use(id);
        }
    }

    /// A buffer came back: everyone who may wait for one tries again.
    pub fn retry_waiting(&mut self) {
        self.to_serve.extend(self.clients.keys());
    }

    pub fn take_submitted(&mut self) -> Option<Input> {
        self.submitted.pop_front()
    }

    /// Does what each client has to do: requests to the engine, answers and receives to the ring.
    pub fn serve(&mut self, ring: &mut Ring, payloads: &mut Payloads) {
        let mut keys = std::mem::take(&mut self.to_serve);
        for key in keys.drain(..) {
            self.serve_one(key, ring, payloads);
        }
        std::mem::swap(&mut keys, &mut self.to_serve);
        self.to_serve.append(&mut keys);
    }

    fn serve_one(&mut self, key: Key, ring: &mut Ring, payloads: &mut Payloads) {
        self.start_waiting(key, payloads);
        while self.digest(key, payloads) {}
        let Some(client) = self.clients.get_mut(key) else { return };
        client.arm(key, ring, payloads);
        if client.leaving && client.is_through() {
            let mut client = self.clients.remove(key).expect("found above");
            self.undecided.retain(|(_, undecided)| *undecided != key);
            client.sender.abandon(payloads);
            if let Some(filling) = client.filling {
                payloads.release(filling.payload);
            }
        }
    }

    /// Reads without a buffer, and parts that follow from answers.
    fn start_waiting(&mut self, key: Key, payloads: &mut Payloads) {
        while let Some(client) = self.clients.get_mut(key)
            && let Some(request) = client.waiting.front().copied()
        {
            let payload = match request.op.has_payload() {
                false => None,
                true => match payloads.try_reserve(request.range.len() as usize, Share::Application) {
                    None => return,
                    payload => payload,
                },
            };
            client.waiting.pop_front();
            self.submit(key, request, payload, payloads);
        }
    }

    fn submit(&mut self, key: Key, request: Request, payload: Option<PayloadId>, payloads: &mut Payloads) {
        let client = self.clients.get_mut(key).expect("called with a live client");
        client.submitted += 1;
        let volume = client.volume;
        if let Some(id) = payload {
            // Until the completion: the engine may release before it.
            payloads.open_use(id);
        }
        let id = request_id(self.pending.insert(Pending { client: key, tag: request.tag, payload }));
        self.submitted.push_back(Input::Submit { request: id, volume, op: request.op, range: request.range, payload });
    }

    /// One step of the conversation out of the bytes that are there. False: no further step for now.
    fn digest(&mut self, key: Key, payloads: &mut Payloads) -> bool {
        let Some(client) = self.clients.get_mut(key) else { return false };
        let output = client.session.take_output();
        if !output.is_empty() && !client.broken {
            client.sender.push(|out| out.extend_from_slice(&output), None, payloads);
        }
        if client.leaving || client.receiving || !client.may_receive() {
            return false;
        }
        match client.session.want() {
            Want::Closed => {
                client.leaving = true;
                false
            }
            Want::Nothing => false,
            Want::Payload { len, .. } => self.digest_payload(key, len, payloads),
            Want::Bytes(_) if client.start == client.end => false,
            Want::Bytes(_) => self.digest_bytes(key),
        }
    }

    fn digest_bytes(&mut self, key: Key) -> bool {
        let client = self.clients.get_mut(key).expect("called with a live client");
        let Some(export) = self.exports.get(&client.volume) else {
            client.leaving = true;
            return false;
        };
        match client.session.receive(export, &client.staging[client.start..client.end]) {
            Ok((taken, event)) => {
                client.start += taken;
                match event {
                    Some(Event::Request(request)) => client.waiting.push_back(request),
                    Some(Event::Disconnect) => client.leaving = true,
                    Some(Event::Selected(_)) => self.undecided.retain(|(_, undecided)| *undecided != key),
                    None => {}
                }
                if !client.waiting.is_empty() {
                    self.to_serve.push(key);
                    return false;
                }
                true
            }
            Err(reason) => {
                let (volume, from) = (client.volume, Named(client.from));
                self.refusals.note(format_args!("volume {volume}: {from} is cut: {reason}"));
                client.leaving = true;
                true
            }
        }
    }

    fn digest_payload(&mut self, key: Key, len: usize, payloads: &mut Payloads) -> bool {
        let client = self.clients.get_mut(key).expect("called with a live client");
        let mut filling = match client.filling {
            Some(filling) => filling,
            None => match payloads.try_reserve(len, Share::Application) {
                None => return false,
                Some(payload) => Filling { payload, filled: 0, len },
            },
        };
        let staged = (client.end - client.start).min(filling.len - filling.filled);
        payloads.bytes_mut(filling.payload)[filling.filled..filling.filled + staged]
            .copy_from_slice(&client.staging[client.start..client.start + staged]);
        client.start += staged;
        filling.filled += staged;
        if filling.filled < filling.len {
            client.filling = Some(filling);
            return false;
        }
        client.filling = None;
        let request = client.session.payload_received();
        self.submit(key, request, Some(filling.payload), payloads);
        true
    }

    /// Call `serve` once more before waiting.
    pub fn has_work(&self) -> bool {
        !self.to_serve.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }
}

/// A client in a line of the log.
struct Named(Option<SocketAddr>);

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(address) => write!(f, "the NBD client {address}"),
            None => f.write_str("an NBD client"),
        }
    }
}

impl Client {
    /// Nothing comes in or goes out any more; what is with the kernel comes back soon.
    fn fail(&mut self) {
        self.leaving = true;
        self.broken = true;
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }

    fn may_receive(&self) -> bool {
        self.waiting.is_empty() && self.sender.queued_bytes() <= OUTPUT_BYTES_MAX
    }

    /// Nothing of it is with the kernel or the engine, and nothing is left to send.
    fn is_through(&self) -> bool {
        !self.receiving
            && !self.sending
            && self.submitted == 0
            && self.waiting.is_empty()
            && (self.broken || self.sender.is_idle())
    }

    fn arm(&mut self, key: Key, ring: &mut Ring, payloads: &Payloads) {
        if !self.sending
            && !self.broken
            && let Some(message) = self.sender.next_send(payloads)
        {
            self.sending = true;
            let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
            let entry = opcode::SendMsg::new(Fd(self.fd.as_raw_fd()), message).flags(flags).build();
            // SAFETY: the sender leaves what it gave out as it is until `sent`; payloads have an open use.
            unsafe { ring.push_send(entry, Tag::new(Kind::NbdSend, key), self.sender.queued_bytes()) };
        }
        if self.receiving || self.leaving || !self.may_receive() {
            return;
        }
        let space = match (&self.filling, self.session.want()) {
            (Some(filling), _) => payloads.span(filling.payload).advanced(filling.filled),
            // No buffer yet: `retry_waiting` comes back to it.
            (None, Want::Payload { .. }) => return,
            (None, Want::Bytes(_)) => {
                if self.start > 0 {
                    self.staging.copy_within(self.start..self.end, 0);
                    self.end -= self.start;
                    self.start = 0;
                }
                Span::of(&mut self.staging[self.end..])
            }
            (None, Want::Nothing | Want::Closed) => return,
        };
        self.receiving = true;
        let entry = opcode::Recv::new(Fd(self.fd.as_raw_fd()), space.as_ptr(), space.len() as u32).build();
        // SAFETY: staging area and payload stay until `received`, the descriptor until the client is taken out.
        unsafe { ring.push(entry, Tag::new(Kind::NbdReceive, key)) };
    }
}
