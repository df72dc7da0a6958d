//! Bytes of one socket to messages, without I/O: says where the next bytes go, takes what came, gives messages out.
//!
//! Small things are received into a staging area; what of a payload came along is copied out of it, the rest goes
//! straight into the payload's buffer. Invariants: `start <= end <= staging.len()`; everything a frame needs besides
//! its payload fits in the staging area ([`STAGING_BYTES`] >= largest header + largest fixed part).

use store::Span;
use types::{PayloadId, VolumeNumber};
use wire::{Context, DecodeError, Header, HeaderForm, JudgedFrame, Message, Socket};

use crate::payloads::{Payloads, Share};

/// Received at once at most, besides payloads. Bytes: some dozens of 4 KiB writes would not pay for the copy, the
/// head of the next message and a few acknowledgements do.
pub const STAGING_BYTES: usize = 16 << 10;
/// Largest fixed part of a frame. Source: `wire::FrameParts`.
const FIXED_BYTES_MAX: usize = 4096;
const HEADER_BYTES_MAX: usize = 16;
const _: () = assert!(STAGING_BYTES >= HEADER_BYTES_MAX + FIXED_BYTES_MAX);

/// A message with its payload complete, if it has one.
#[derive(Debug)]
pub struct Incoming {
    pub volume: Option<VolumeNumber>,
    pub message: Message,
    /// Held for the engine (`Payloads::try_reserve`).
    pub payload: Option<PayloadId>,
}

/// What a look at the received bytes gave.
#[derive(Debug)]
pub enum Poll {
    Message(Incoming),
    /// Receive more.
    NeedBytes,
    /// A payload follows and there is no buffer for it: receive nothing until one came back.
    NeedBuffer,
}

enum Phase {
    Frame,
    /// The message stands, its payload of `len` bytes has no buffer yet.
    Starved {
        volume: Option<VolumeNumber>,
        message: Message,
        len: usize,
    },
    Payload {
        volume: Option<VolumeNumber>,
        message: Message,
        payload: PayloadId,
        filled: usize,
        len: usize,
    },
}

pub struct Receiver {
    socket: Socket,
    staging: Box<[u8]>,
    start: usize,
    end: usize,
    phase: Phase,
    /// Bytes of the stream that became messages. For error messages.
    consumed: u64,
}

impl Receiver {
    pub fn new(socket: Socket) -> Receiver {
        let staging = vec![0; STAGING_BYTES].into_boxed_slice();
        Receiver { socket, staging, start: 0, end: 0, phase: Phase::Frame, consumed: 0 }
    }

    /// Where the next bytes of the stream belong. Not empty unless [`Poll::NeedBuffer`] was the last answer of `poll`.
    pub fn space(&mut self, payloads: &Payloads) -> Option<Span> {
        match &self.phase {
            Phase::Starved { .. } => None,
            Phase::Payload { payload, filled, .. } => Some(payloads.span(*payload).advanced(*filled)),
            Phase::Frame => {
                if self.start > 0 {
                    self.staging.copy_within(self.start..self.end, 0);
                    self.end -= self.start;
                    self.start = 0;
                }
                Some(Span::of(&mut self.staging[self.end..]))
            }
        }
    }

    /// `n` bytes of the stream are where `space` said.
    pub fn received(&mut self, n: usize) {
        match &mut self.phase {
            Phase::Starved { .. } => panic!("{n} bytes received without a place for them"),
            Phase::Payload { filled, len, .. } => {
                *filled += n;
                assert!(*filled <= *len, "{filled} bytes in a payload of {len}");
            }
            Phase::Frame => {
                self.end += n;
                assert!(self.end <= self.staging.len(), "{n} bytes received beyond the staging area");
            }
        }
    }

    /// The next message. Call again until it is not [`Poll::Message`]; what the message changes (features) counts for
    /// the next one.
    pub fn poll(&mut self, ctx: &Context, payloads: &mut Payloads) -> Result<Poll, DecodeError> {
        loop {
            match std::mem::replace(&mut self.phase, Phase::Frame) {
                Phase::Frame => match self.frame(ctx)? {
                    None => return Ok(Poll::NeedBytes),
                    Some((volume, message, 0)) => {
                        return Ok(Poll::Message(Incoming { volume, message, payload: None }));
                    }
                    Some((volume, message, len)) => self.phase = Phase::Starved { volume, message, len },
                },
                Phase::Starved { volume, message, len } => {
                    let Some(payload) = payloads.try_reserve(len, Share::Peer) else {
                        self.phase = Phase::Starved { volume, message, len };
                        return Ok(Poll::NeedBuffer);
                    };
                    let filled = len.min(self.end - self.start);
                    payloads.bytes_mut(payload)[..filled]
                        .copy_from_slice(&self.staging[self.start..self.start + filled]);
                    self.start += filled;
                    self.phase = Phase::Payload { volume, message, payload, filled, len };
                }
                Phase::Payload { volume, message, payload, filled, len } if filled == len => {
                    self.consumed += len as u64;
                    return Ok(Poll::Message(Incoming { volume, message, payload: Some(payload) }));
                }
                unfinished @ Phase::Payload { .. } => {
                    self.phase = unfinished;
                    return Ok(Poll::NeedBytes);
                }
            }
        }
    }

    /// Header and fixed part, once they are there, and the length of the payload that follows.
    fn frame(&mut self, ctx: &Context) -> Result<Option<(Option<VolumeNumber>, Message, usize)>, DecodeError> {
        let bytes = &self.staging[self.start..self.end];
        let Some(first) = bytes.first_chunk::<{ HeaderForm::BYTES_MIN }>() else { return Ok(None) };
        let header_bytes = HeaderForm::classify(*first)?.header_bytes();
        let Some((header, rest)) = bytes.split_at_checked(header_bytes) else { return Ok(None) };
        let header = Header::decode(header)?;
        let frame = JudgedFrame::judge(ctx, &header, self.socket)?;
        let parts = frame.parts();
        assert!(parts.fixed_bytes <= FIXED_BYTES_MAX, "a fixed part of {} bytes", parts.fixed_bytes);
        let Some(fixed) = rest.get(..parts.fixed_bytes) else { return Ok(None) };
        let message = frame.decode(fixed)?;
        self.start += header_bytes + parts.fixed_bytes;
        self.consumed += (header_bytes + parts.fixed_bytes) as u64;
        Ok(Some((frame.volume(), message, parts.payload_bytes as usize)))
    }

    /// Bytes of the stream before the message that is being read.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// The staging area, whatever is in it: for bytes that nobody wants. Only after `abandon`.
    pub fn whole_staging(&mut self) -> Span {
        assert!(matches!(self.phase, Phase::Frame), "bytes of a message that is still wanted");
        (self.start, self.end) = (0, 0);
        Span::of(&mut self.staging)
    }

    /// The stream ends here: a payload that is not complete is not needed.
    pub fn abandon(&mut self, payloads: &mut Payloads) {
        if let Phase::Payload { payload, .. } = std::mem::replace(&mut self.phase, Phase::Frame) {
            payloads.release(payload);
        }
    }
}
