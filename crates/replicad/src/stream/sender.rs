//! Messages of one socket to bytes, without I/O: a queue in order, sent in batches straight from where the bytes lie.
//!
//! Two batches: one is filled while the other is with the kernel, so nothing moves under a send. A batch is a buffer
//! of heads and a list of parts, each a range of that buffer or a payload. Invariants: while `flying` is not empty a
//! send may be under way and `flying` is not changed but by `sent`; every payload in either batch has one open use.

use store::Span;
use types::PayloadId;

use crate::payloads::Payloads;

/// Pieces in one send. The kernel takes 1024; enough for a hundred writes with their heads.
const PIECES_MAX: usize = 256;

enum Part {
    /// Of the batch's heads.
    Head(std::ops::Range<usize>),
    Payload(PayloadId),
}

#[derive(Default)]
struct Batch {
    heads: Vec<u8>,
    parts: std::collections::VecDeque<Part>,
}

impl Batch {
    fn push_head(&mut self, from: usize) {
        let to = self.heads.len();
        match self.parts.back_mut() {
            Some(Part::Head(range)) if range.end == from => range.end = to,
            _ => self.parts.push_back(Part::Head(from..to)),
        }
    }
}

pub struct Sender {
    filling: Batch,
    flying: Batch,
    /// Of the first part of `flying`: bytes that are sent.
    part_done: usize,
    queued_bytes: u64,
    pieces: Box<[libc::iovec]>,
    header: Box<libc::msghdr>,
}

// SAFETY: the raw pointers in `pieces` and `header` lead to this value's own boxes and to the pool, and are only used
// by the thread that drives the ring.
unsafe impl Send for Sender {}

impl Default for Sender {
    fn default() -> Sender {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Sender {
            filling: Batch::default(),
            flying: Batch::default(),
            part_done: 0,
            queued_bytes: 0,
            pieces: vec![empty; PIECES_MAX].into_boxed_slice(),
            // SAFETY: a msghdr of zeroes is one without address, data and control part.
            header: Box::new(unsafe { std::mem::zeroed() }),
        }
    }
}

impl Sender {
    /// Appends a message: `encode` writes everything before the payload. The payload gets a use until it is sent.
    pub fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>), payload: Option<PayloadId>, payloads: &mut Payloads) {
        let from = self.filling.heads.len();
        encode(&mut self.filling.heads);
        self.queued_bytes += (self.filling.heads.len() - from) as u64;
        self.filling.push_head(from);
        if let Some(id) = payload {
            payloads.open_use(id);
            self.queued_bytes += payloads.len(id) as u64;
            self.filling.parts.push_back(Part::Payload(id));
        }
    }

    /// Not sent yet. Bytes.
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    pub fn is_idle(&self) -> bool {
        self.queued_bytes == 0
    }

    /// What the next send should take; `None` if there is nothing. The memory behind it stays as it is until `sent`.
    pub fn next_send(&mut self, payloads: &Payloads) -> Option<*const libc::msghdr> {
        if self.flying.parts.is_empty() {
            self.flying.heads.clear();
            std::mem::swap(&mut self.flying, &mut self.filling);
        }
        let mut count = 0;
        for part in self.flying.parts.iter().take(PIECES_MAX) {
            let span = match part {
                Part::Head(range) => Span::of(&mut self.flying.heads[range.clone()]),
                Part::Payload(id) => payloads.span(*id),
            };
            let span = if count == 0 { span.advanced(self.part_done) } else { span };
            self.pieces[count] = libc::iovec { iov_base: span.as_ptr().cast(), iov_len: span.len() };
            count += 1;
        }
        if count == 0 {
            return None;
        }
        self.header.msg_iov = self.pieces.as_mut_ptr();
        self.header.msg_iovlen = count as _;
        Some(&raw const *self.header)
    }

    /// The kernel took the next `n` bytes.
    pub fn sent(&mut self, n: usize, payloads: &mut Payloads) {
        self.queued_bytes -= n as u64;
        self.part_done += n;
        while let Some(part) = self.flying.parts.front() {
            let len = match part {
                Part::Head(range) => range.len(),
                Part::Payload(id) => payloads.len(*id),
            };
            if self.part_done < len {
                break;
            }
            self.part_done -= len;
            if let Some(Part::Payload(id)) = self.flying.parts.pop_front() {
                payloads.close_use(id);
            }
        }
        assert!(!self.flying.parts.is_empty() || self.part_done == 0, "sent {n} bytes, more than were queued");
    }

    /// The socket is gone and no send under way: drops the queue.
    pub fn abandon(&mut self, payloads: &mut Payloads) {
        for part in self.flying.parts.drain(..).chain(self.filling.parts.drain(..)) {
            if let Part::Payload(id) = part {
                payloads.close_use(id);
            }
        }
        self.filling.heads.clear();
        self.part_done = 0;
        self.queued_bytes = 0;
    }
}
