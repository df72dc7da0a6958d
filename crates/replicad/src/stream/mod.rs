//! The sockets to peers on the ring: one receive and one send under way each, never more.
//!
//! Contract: a stream stays in the table until the kernel gave back everything it holds of it (the buffers of its
//! receive and its send), also when the connection ended long before. `Open -> Draining -> Dead -> gone`, or
//! `Open -> Dead -> gone`:
//! - `Draining`: what was queued is still sent, then the direction is closed; what comes is thrown away until the peer
//!   closes too. Closing at once could reset the connection under the goodbye that was queued last.
//! - `Dead`: shut down; only waits for the kernel.

pub mod receiver;
pub mod sender;

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::{opcode, types::Fd};
use rustix::net::Shutdown;
use types::{LinkId, NodeId, PayloadId, VolumeNumber};
use wire::{Context, Message, Socket};

use crate::payloads::Payloads;
use crate::ring::{Kind, Ring, Tag};
use crate::slots::{Key, Slots};
use receiver::{Incoming, Poll, Receiver};
use sender::Sender;

/// How long a peer may take to read the last words of a connection.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// Queued for a data socket at most. Bytes. The engine keeps data in flight below `max-buffers` (8 MiB by default,
/// 512 MiB at most); a queue above this is one that nobody reads.
const DATA_QUEUE_BYTES_MAX: u64 = 1 << 30;
/// Queued for a control socket at most. Bytes: a hundred thousand acknowledgements, more than there are writes to
/// acknowledge. A peer that sends pings and reads no answer gets no further.
const CONTROL_QUEUE_BYTES_MAX: u64 = 8 << 20;

pub const fn queue_bytes_max(socket: Socket) -> u64 {
    match socket {
        Socket::Data => DATA_QUEUE_BYTES_MAX,
        Socket::Control => CONTROL_QUEUE_BYTES_MAX,
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Open,
    Draining { until: Instant },
    Dead,
}

/// Whose stream it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    pub peer: NodeId,
    pub link: LinkId,
    pub socket: Socket,
}

struct Stream {
    fd: OwnedFd,
    owner: Owner,
    receiver: Receiver,
    sender: Sender,
    state: State,
    /// With the kernel.
    receiving: bool,
    sending: bool,
    /// The sending direction is closed (while draining).
    write_closed: bool,
}

/// A message on its way out. `payload`: as long as the message says (asserted).
#[derive(Debug)]
pub struct Outgoing {
    pub volume: Option<VolumeNumber>,
    pub message: Message,
    pub payload: Option<PayloadId>,
}

/// What happened to a stream that its owner has to know.
#[derive(Debug)]
pub enum Progress {
    Nothing,
    /// Bytes came: ask [`Streams::next_message`] until it is empty.
    Received(Owner),
    Closed(Owner),
    Failed(Owner, String),
}

#[derive(Default)]
pub struct Streams {
    table: Slots<Stream>,
    /// Something was queued, or a receive is to be started.
    to_arm: Vec<Key>,
    /// Receive nothing because no buffer was free.
    starved: Vec<Key>,
    draining: usize,
}

impl Streams {
    pub fn open(&mut self, fd: OwnedFd, owner: Owner) -> Key {
        let key = self.table.insert(Stream {
            fd,
            owner,
            receiver: Receiver::new(owner.socket),
            sender: Sender::default(),
            state: State::Open,
            receiving: false,
            sending: false,
            write_closed: false,
        });
        self.to_arm.push(key);
        key
    }

    /// Queues a message. Does nothing on a stream that is closing. False: the queue is over its bound.
    #[must_use]
    pub fn send(&mut self, key: Key, ctx: &Context, outgoing: &Outgoing, payloads: &mut Payloads) -> bool {
        let Outgoing { volume, message, payload } = outgoing;
        let Some(stream) = self.table.get_mut(key) else { return true };
        if stream.state != State::Open {
            return true;
        }
        let payload_bytes = payload.map_or(0, |id| payloads.len(id) as u64);
        assert_eq!(message.payload_bytes(), payload_bytes, "{message:?} announces other bytes than it brings");
        if stream.sender.is_idle() {
            self.to_arm.push(key);
        }
        stream.sender.push(|out| wire::encode(ctx, *volume, message, out), *payload, payloads);
        stream.sender.queued_bytes() <= queue_bytes_max(stream.owner.socket)
    }

    /// Sends what is queued, then closes.
    pub fn close(&mut self, key: Key) {
        let Some(stream) = self.table.get_mut(key) else { return };
        if stream.state == State::Open {
            stream.state = State::Draining { until: Instant::now() + DRAIN_TIME };
            self.draining += 1;
            self.to_arm.push(key);
        }
    }

    /// Closes now; what is queued is lost.
    pub fn kill(&mut self, key: Key) {
        let Some(stream) = self.table.get_mut(key) else { return };
        if matches!(stream.state, State::Draining { .. }) {
            self.draining -= 1;
        }
        if stream.state != State::Dead {
            stream.state = State::Dead;
            // A socket that the peer reset is not connected any more; that is what we want.
            let _ = rustix::net::shutdown(&stream.fd, Shutdown::Both);
            self.to_arm.push(key);
        }
    }

    /// Starts receives and sends where there is something to do, takes out what ended. Called once for each round of the
    /// loop: what was queued meanwhile goes out in one send.
    pub fn arm(&mut self, ring: &mut Ring, payloads: &mut Payloads) {
        let mut to_arm = std::mem::take(&mut self.to_arm);
        for key in to_arm.drain(..) {
            let Some(stream) = self.table.get_mut(key) else { continue };
            let starved = stream.arm(key, ring, payloads);
            if starved && !self.starved.contains(&key) {
                self.starved.push(key);
            }
            if stream.state == State::Dead && !stream.receiving && !stream.sending {
                stream.receiver.abandon(payloads);
                stream.sender.abandon(payloads);
                self.table.remove(key);
            }
        }
        // Keeps the allocation.
        std::mem::swap(&mut to_arm, &mut self.to_arm);
        self.to_arm.append(&mut to_arm);
    }

    /// A buffer came back: streams that waited for one may go on. Their owner calls `next_message` for each.
    pub fn take_starved(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.starved)
    }

    pub fn has_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// `result`: what the ring said about this stream's receive.
    pub fn received(&mut self, key: Key, result: i32) -> Progress {
        let Some(stream) = self.table.get_mut(key) else { panic!("a receive of {key:?} came back, which is gone") };
        assert!(stream.receiving, "{:?}: a receive came back twice", stream.owner);
        stream.receiving = false;
        self.to_arm.push(key);
        let owner = stream.owner;
        match (stream.state, result) {
            (State::Dead, _) => Progress::Nothing,
            (State::Draining { .. }, 1..) => Progress::Nothing,
            (State::Draining { .. }, _) => {
                self.kill(key);
                Progress::Nothing
            }
            (State::Open, 0) => Progress::Closed(owner),
            (State::Open, 1..) => {
                stream.receiver.received(result as usize);
                Progress::Received(owner)
            }
            (State::Open, _) => match retry(result) {
                true => Progress::Nothing,
                false => Progress::Failed(owner, os_error("receive", result)),
            },
        }
    }

    /// `result`: what the ring said about this stream's send.
    pub fn sent(&mut self, key: Key, result: i32, payloads: &mut Payloads) -> Progress {
        let Some(stream) = self.table.get_mut(key) else { panic!("a send of {key:?} came back, which is gone") };
        assert!(stream.sending, "{:?}: a send came back twice", stream.owner);
        stream.sending = false;
        self.to_arm.push(key);
        let owner = stream.owner;
        if result > 0 {
            stream.sender.sent(result as usize, payloads);
            return Progress::Nothing;
        }
        match stream.state {
            State::Open if !retry(result) => Progress::Failed(owner, os_error("send", result)),
            State::Draining { .. } if !retry(result) => {
                self.kill(key);
                Progress::Nothing
            }
            _ => Progress::Nothing,
        }
    }

    /// The next complete message of an open stream; `None`: nothing more for now. Errors name the packet and where in
    /// the stream it started.
    pub fn next_message(
        &mut self,
        key: Key,
        ctx: &Context,
        payloads: &mut Payloads,
    ) -> Result<Option<Incoming>, String> {
        let Some(stream) = self.table.get_mut(key) else { return Ok(None) };
        if stream.state != State::Open || stream.receiving {
            return Ok(None);
        }
        match stream.receiver.poll(ctx, payloads) {
            Ok(Poll::Message(incoming)) => Ok(Some(incoming)),
            Ok(Poll::NeedBytes) => Ok(None),
            Ok(Poll::NeedBuffer) => {
                if !self.starved.contains(&key) {
                    self.starved.push(key);
                }
                Ok(None)
            }
            Err(error) => {
                Err(format!("{error} (byte {} of the {:?} socket)", stream.receiver.consumed(), stream.owner.socket))
            }
        }
    }

    pub fn rearm(&mut self, key: Key) {
        self.to_arm.push(key);
    }

    /// When the next draining stream has had its time.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.draining == 0 {
            return None;
        }
        self.table
            .keys()
            .filter_map(|key| match self.table.get(key)?.state {
                State::Draining { until } => Some(until),
                _ => None,
            })
            .min()
    }

    pub fn kill_overdue(&mut self, now: Instant) {
        if self.next_deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let overdue = |s: &Stream| matches!(s.state, State::Draining { until } if until <= now);
        let keys: Vec<Key> = self.table.keys().filter(|key| self.table.get(*key).is_some_and(overdue)).collect();
        keys.into_iter().for_each(|key| self.kill(key));
    }

    /// Whose stream it is, while it is open.
    pub fn owner(&self, key: Key) -> Option<Owner> {
        self.table.get(key).filter(|stream| stream.state == State::Open).map(|stream| stream.owner)
    }

    /// Call `arm` once more before waiting.
    pub fn has_work(&self) -> bool {
        !self.to_arm.is_empty()
    }

    /// No socket is left, not even closing ones.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

impl Stream {
    /// True: there is no buffer for what comes next.
    fn arm(&mut self, key: Key, ring: &mut Ring, payloads: &mut Payloads) -> bool {
        if self.state == State::Dead {
            return false;
        }
        self.arm_send(key, ring, payloads);
        if self.receiving {
            return false;
        }
        let draining = self.state != State::Open;
        if draining {
            self.receiver.abandon(payloads);
        }
        let Some(space) = (if draining { Some(self.receiver.whole_staging()) } else { self.receiver.space(payloads) })
        else {
            return true;
        };
        self.receiving = true;
        let entry = opcode::Recv::new(Fd(self.fd.as_raw_fd()), space.as_ptr(), space.len() as u32).build();
        // SAFETY: the receiver's place stays until `received`, the descriptor until `arm` takes the stream out.
        unsafe { ring.push(entry, Tag::new(Kind::PeerReceive, key)) };
        false
    }

    fn arm_send(&mut self, key: Key, ring: &mut Ring, payloads: &Payloads) {
        if self.sending || self.write_closed {
            return;
        }
        if let Some(message) = self.sender.next_send(payloads) {
            self.sending = true;
            let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
            let entry = opcode::SendMsg::new(Fd(self.fd.as_raw_fd()), message).flags(flags).build();
            // SAFETY: the sender leaves what it gave out as it is until `sent`; payloads have an open use.
            unsafe { ring.push_send(entry, Tag::new(Kind::PeerSend, key), self.sender.queued_bytes()) };
        } else if self.state != State::Open {
            self.write_closed = true;
            // If the peer closed first there is nothing to close any more.
            let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
        }
    }
}

fn retry(result: i32) -> bool {
    matches!(-result, libc::EINTR | libc::EAGAIN)
}

fn os_error(what: &str, result: i32) -> String {
    format!("{what}: {}", std::io::Error::from_raw_os_error(-result))
}

#[cfg(test)]
mod tests;
