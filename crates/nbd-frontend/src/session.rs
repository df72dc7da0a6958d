//! One client connection: where in the conversation it is, and the requests not answered yet.
//!
//! ```text
//! ClientFlags ─> OptionHeader <─> Option ─> RequestHeader <─> WritePayload / Skip ─> Closed
//! ```
//! What the driver does: send `take_output` whenever it is not empty, before anything that later calls return; then
//! look at `want`. It stops receiving while the socket does not take its output: that bounds the output.
//!
//! A request longer than the export's limits runs in parts under one tag. Reads run part after part; parts of a write
//! run as their payload arrives. With simple replies the data of a read must not be interrupted by other replies: a
//! read in parts then waits until it is alone, and nothing is received before it is through.
//!
//! Invariants: in-flight requests <= [`REQUESTS_MAX`]; bytes kept of the client <= `OPTION_BYTES_MAX`.

use std::fmt;

use types::{BlockOp, ByteRange, IoError};

use crate::negotiation::{self, Agreed, Export, Exports, OPTION_BYTES_MAX, Outcome};
use crate::protocol::{
    CLIENT_FLAGS_BYTES, Command, Errno, FIXED_NEWSTYLE, Head, NO_ZEROES, OPTION_HEADER_BYTES, OPTION_MAGIC,
    REQUEST_BYTES_MAX, REQUEST_HEADER_BYTES, REQUEST_MAGIC, RequestHeader, be32, be64, command_flag,
};

/// Requests of one connection that are not answered yet. When reached, nothing more is received until one is.
pub const REQUESTS_MAX: usize = 128;
/// Longest option that is skipped and refused; a longer one ends the connection. Bytes.
const OPTION_SKIPPED_MAX: u32 = 1 << 20;
/// Options of one connection before it ends: a client has better things to do than to negotiate for ever.
const OPTIONS_MAX: u32 = 1024;

/// A request in flight, unique among those of its session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct RequestTag(pub u32);

/// What the session needs to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// At most this many bytes for `receive`.
    Bytes(usize),
    /// Exactly `len` bytes of data into a buffer of the driver, then `payload_received`.
    Payload { tag: RequestTag, len: usize },
    /// Output to be taken, or requests to be completed.
    Nothing,
    /// No more bytes. In-flight requests are still completed, then the socket is closed.
    Closed,
}

/// A request, or a part of one. The payload, if `op` has one, is `range.len()` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    pub tag: RequestTag,
    pub op: BlockOp,
    pub range: ByteRange,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Negotiation is over, requests to this export follow.
    Selected(Export),
    Request(Request),
    /// The client leaves politely.
    Disconnect,
}

/// What follows from a completed request: send `head`, then the payload if `payload`; then start `next`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    pub head: Head,
    /// The data of the completed read goes behind `head`.
    pub payload: bool,
    pub next: Option<Request>,
}

/// Why a connection ends without the client's wish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    UnknownClientFlags(u32),
    BadOptionMagic(u64),
    OptionTooLong {
        option: u32,
        len: u32,
    },
    TooManyOptions,
    UnknownExport,
    /// The client ended the negotiation.
    Aborted,
    BadRequestMagic(u32),
    WriteTooLong {
        len: u32,
    },
    /// The disk failed after a part of the data was sent: simple replies cannot say so.
    ReadFailedMidway,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::UnknownClientFlags(flags) => write!(f, "the client set unknown flags {flags:#x}"),
            CloseReason::BadOptionMagic(magic) => write!(f, "an option began with {magic:#018x}: not an NBD client"),
            CloseReason::OptionTooLong { option, len } => write!(f, "option {option} announced {len} bytes"),
            CloseReason::TooManyOptions => write!(f, "the client sent more than {OPTIONS_MAX} options"),
            CloseReason::UnknownExport => f.write_str("the client asked for an export that does not exist"),
            CloseReason::Aborted => f.write_str("the client ended the negotiation"),
            CloseReason::BadRequestMagic(magic) => write!(f, "a request began with {magic:#010x}: out of step"),
            CloseReason::WriteTooLong { len } => {
                write!(f, "the client announced a write of {len} bytes, the most is {REQUEST_BYTES_MAX}")
            }
            CloseReason::ReadFailedMidway => f.write_str("a read failed after a part of its data was sent"),
        }
    }
}

impl std::error::Error for CloseReason {}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    ClientFlags,
    OptionHeader,
    /// `len` bytes of an option.
    Option {
        kind: u32,
        len: usize,
    },
    /// The rest of an option that is too long to look at.
    SkipOption {
        kind: u32,
        left: u32,
    },
    RequestHeader,
    /// The next part of the payload of this write.
    WritePayload {
        tag: RequestTag,
    },
    /// The payload of a write that is refused.
    SkipPayload {
        cookie: u64,
        errno: Errno,
        left: u32,
    },
    Closed,
}

struct InFlight {
    cookie: u64,
    command: Command,
    fua: bool,
    no_hole: bool,
    range: ByteRange,
    /// Bytes of `range` handed out in parts.
    submitted: u64,
    /// The part handed out last.
    part: ByteRange,
    parts_running: u32,
    flush_submitted: bool,
    error: Option<IoError>,
}

/// The server's side of one connection.
pub struct Session {
    state: State,
    /// Bytes of the header or option that is not complete.
    partial: Vec<u8>,
    output: Vec<u8>,
    agreed: Agreed,
    options_seen: u32,
    export: Option<Export>,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<u32>,
    /// A read in parts under simple replies.
    alone: Option<RequestTag>,
}

impl Default for Session {
    fn default() -> Session {
        Session::new()
    }
}

impl Session {
    /// A fresh connection. The greeting is in `take_output`.
    pub fn new() -> Session {
        Session {
            state: State::ClientFlags,
            partial: Vec::with_capacity(REQUEST_HEADER_BYTES),
            output: negotiation::greeting(),
            agreed: Agreed { structured: false, no_zeroes: false },
            options_seen: 0,
            export: None,
            in_flight: Vec::new(),
            free: Vec::new(),
            alone: None,
        }
    }

    pub fn want(&self) -> Want {
        if self.state == State::Closed {
            return Want::Closed;
        }
        if !self.output.is_empty() || self.alone.is_some() {
            return Want::Nothing;
        }
        match self.state {
            State::RequestHeader if self.free.is_empty() => Want::Nothing,
            State::WritePayload { tag } => Want::Payload { tag, len: self.next_part_len(tag) as usize },
            _ => Want::Bytes(self.missing()),
        }
    }

    /// Bytes to send now.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// The export, once it is chosen.
    pub fn export(&self) -> Option<&Export> {
        self.export.as_ref()
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len() - self.free.len()
    }

    /// Takes bytes from the socket: at most what `want` said, the number taken is returned. Call again with the rest.
    /// After an error the session is closed: send `take_output`, complete what is in flight, close.
    pub fn receive(&mut self, exports: &dyn Exports, bytes: &[u8]) -> Result<(usize, Option<Event>), CloseReason> {
        let Want::Bytes(wanted) = self.want() else { return Ok((0, None)) };
        let taken = &bytes[..wanted.min(bytes.len())];
        match &mut self.state {
            State::SkipOption { left, .. } | State::SkipPayload { left, .. } => *left -= taken.len() as u32,
            _ => self.partial.extend_from_slice(taken),
        }
        if self.missing() > 0 {
            return Ok((taken.len(), None));
        }
        let step = self.step(exports);
        self.partial.clear();
        match step {
            Ok(event) => Ok((taken.len(), event)),
            Err(reason) => {
                self.state = State::Closed;
                Err(reason)
            }
        }
    }

    /// The payload that `want` asked for is in the driver's buffer.
    pub fn payload_received(&mut self) -> Request {
        let State::WritePayload { tag } = self.state else { panic!("no payload was wanted: {:?}", self.state) };
        let request = self.next_part(tag).expect("a write that waits for payload has a part left");
        if self.next_part_len(tag) == 0 {
            self.state = State::RequestHeader;
        }
        request
    }

    /// The request, or the part, under this tag is through. For a read that succeeded the payload is filled.
    pub fn complete(&mut self, tag: RequestTag, result: Result<(), IoError>) -> Result<Answer, CloseReason> {
        let request = self.slot_mut(tag);
        assert!(request.parts_running > 0, "{tag:?} has no part running");
        request.parts_running -= 1;
        request.error = request.error.or(result.err());
        let mut answer = match request.command {
            Command::Read => self.read_done(tag)?,
            Command::Write => self.write_done(tag),
            Command::Flush | Command::Trim | Command::WriteZeroes => self.command_done(tag),
            Command::Disconnect => unreachable!("a disconnect is never in flight"),
        };
        if answer.next.is_none() {
            answer.next = self.start_alone();
        }
        Ok(answer)
    }

    /// Bytes until the next step.
    fn missing(&self) -> usize {
        let whole = match self.state {
            State::ClientFlags => CLIENT_FLAGS_BYTES,
            State::OptionHeader => OPTION_HEADER_BYTES,
            State::Option { len, .. } => len,
            State::RequestHeader => REQUEST_HEADER_BYTES,
            State::SkipOption { left, .. } | State::SkipPayload { left, .. } => return left as usize,
            State::WritePayload { .. } | State::Closed => 0,
        };
        whole - self.partial.len()
    }

    fn step(&mut self, exports: &dyn Exports) -> Result<Option<Event>, CloseReason> {
        match self.state {
            State::ClientFlags => self.client_flags(),
            State::OptionHeader => self.option_header(exports),
            State::Option { kind, .. } => self.option(exports, kind),
            State::SkipOption { kind, .. } => {
                negotiation::refuse_too_big(kind, &mut self.output);
                self.state = State::OptionHeader;
                Ok(None)
            }
            State::RequestHeader => self.request(),
            State::SkipPayload { cookie, errno, .. } => {
                self.refuse(cookie, errno);
                self.state = State::RequestHeader;
                Ok(None)
            }
            State::WritePayload { .. } | State::Closed => unreachable!("{:?} takes no bytes", self.state),
        }
    }

    fn client_flags(&mut self) -> Result<Option<Event>, CloseReason> {
        let flags = be32(&self.partial);
        if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
            return Err(CloseReason::UnknownClientFlags(flags));
        }
        self.agreed.no_zeroes = flags & u32::from(NO_ZEROES) != 0;
        self.state = State::OptionHeader;
        Ok(None)
    }

    fn option_header(&mut self, exports: &dyn Exports) -> Result<Option<Event>, CloseReason> {
        let (magic, kind, len) = (be64(&self.partial), be32(&self.partial[8..]), be32(&self.partial[12..]));
        if magic != OPTION_MAGIC {
            return Err(CloseReason::BadOptionMagic(magic));
        }
        self.options_seen += 1;
        if self.options_seen > OPTIONS_MAX {
            return Err(CloseReason::TooManyOptions);
        }
        if len > OPTION_SKIPPED_MAX {
            return Err(CloseReason::OptionTooLong { option: kind, len });
        }
        self.partial.clear();
        if len as usize > OPTION_BYTES_MAX {
            self.state = State::SkipOption { kind, left: len };
            return Ok(None);
        }
        self.state = State::Option { kind, len: len as usize };
        if len == 0 { self.option(exports, kind) } else { Ok(None) }
    }

    fn option(&mut self, exports: &dyn Exports, kind: u32) -> Result<Option<Event>, CloseReason> {
        let outcome = negotiation::answer(exports, self.agreed, kind, &self.partial, &mut self.output);
        self.state = State::OptionHeader;
        match outcome {
            Outcome::Continue => Ok(None),
            Outcome::Structured => {
                self.agreed.structured = true;
                Ok(None)
            }
            Outcome::Abort => Err(CloseReason::Aborted),
            Outcome::UnknownExport => Err(CloseReason::UnknownExport),
            Outcome::Transmit(export) => {
                self.state = State::RequestHeader;
                self.partial = Vec::with_capacity(REQUEST_HEADER_BYTES);
                self.in_flight = (0..REQUESTS_MAX).map(|_| None).collect();
                self.free = (0..REQUESTS_MAX as u32).rev().collect();
                self.export = Some((*export).clone());
                Ok(Some(Event::Selected(*export)))
            }
        }
    }

    fn request(&mut self) -> Result<Option<Event>, CloseReason> {
        let bytes = self.partial.as_slice().try_into().expect("a whole request header");
        let header = RequestHeader::decode(bytes);
        if header.magic != REQUEST_MAGIC {
            return Err(CloseReason::BadRequestMagic(header.magic));
        }
        let command = Command::from_wire(header.command);
        match command {
            Some(Command::Disconnect) => {
                self.state = State::Closed;
                return Ok(Some(Event::Disconnect));
            }
            Some(Command::Write) if header.len > REQUEST_BYTES_MAX => {
                return Err(CloseReason::WriteTooLong { len: header.len });
            }
            _ => {}
        }
        match self.check(command, &header) {
            Ok((command, range)) => Ok(self.admit(command, range, &header).map(Event::Request)),
            Err(errno) if command == Some(Command::Write) && header.len > 0 => {
                self.state = State::SkipPayload { cookie: header.cookie, errno, left: header.len };
                Ok(None)
            }
            Err(errno) => {
                self.refuse(header.cookie, errno);
                Ok(None)
            }
        }
    }

    fn check(&self, command: Option<Command>, header: &RequestHeader) -> Result<(Command, ByteRange), Errno> {
        let export = self.export.as_ref().expect("requests follow an export");
        let command = command.ok_or(Errno::Invalid)?;
        if header.flags & !command.flags_known() != 0 {
            return Err(Errno::Invalid);
        }
        if command == Command::Flush {
            let empty = header.offset == 0 && header.len == 0;
            return if empty { Ok((command, ByteRange::default())) } else { Err(Errno::Invalid) };
        }
        if command != Command::Read && export.read_only {
            return Err(Errno::Permission);
        }
        if command == Command::Trim && !export.limits.discard {
            return Err(Errno::Unsupported);
        }
        if header.flags & command_flag::FAST_ZERO != 0 {
            // Whether every disk of the resource is faster at zeroing than at writing is not known here.
            return Err(Errno::Unsupported);
        }
        let range = ByteRange::new(header.offset, u64::from(header.len)).ok_or(Errno::Invalid)?;
        if !range.is_within(export.size_bytes) {
            return Err(if command == Command::Read { Errno::Invalid } else { Errno::NoSpace });
        }
        let block = u64::from(export.limits.logical_block_bytes);
        if range.is_empty() || !range.start().is_multiple_of(block) || !range.len().is_multiple_of(block) {
            return Err(Errno::Invalid);
        }
        let one_chunk = header.flags & command_flag::DF != 0;
        if command == Command::Read && one_chunk && header.len > export.limits.io_bytes_max {
            return Err(Errno::Overflow);
        }
        if command == Command::Read && header.len > REQUEST_BYTES_MAX {
            return Err(Errno::Invalid);
        }
        Ok((command, range))
    }

    /// Gives the request a slot. `None`: a payload must come first, or the read waits until it is alone.
    fn admit(&mut self, command: Command, range: ByteRange, header: &RequestHeader) -> Option<Request> {
        let tag = RequestTag(self.free.pop().expect("a header is received only while a slot is free"));
        self.in_flight[tag.0 as usize] = Some(InFlight {
            cookie: header.cookie,
            command,
            fua: header.flags & command_flag::FUA != 0,
            no_hole: header.flags & command_flag::NO_HOLE != 0,
            range,
            submitted: 0,
            part: ByteRange::default(),
            parts_running: 0,
            flush_submitted: false,
            error: None,
        });
        if command == Command::Write {
            self.state = State::WritePayload { tag };
            return None;
        }
        let in_parts = self.next_part_len(tag) < range.len();
        if command == Command::Read && in_parts && !self.agreed.structured {
            self.alone = Some(tag);
            return self.start_alone();
        }
        self.next_part(tag)
    }

    /// Starts the read that waits to be alone, once it is.
    fn start_alone(&mut self) -> Option<Request> {
        let tag = self.alone?;
        let waiting = self.slot(tag).submitted == 0;
        if waiting && self.in_flight() == 1 { self.next_part(tag) } else { None }
    }

    /// Largest part of a request. Bytes, a multiple of the logical block.
    fn part_bytes_max(&self, command: Command) -> u64 {
        let limits = &self.export.as_ref().expect("requests follow an export").limits;
        let block = u64::from(limits.logical_block_bytes);
        let most = match command {
            Command::Trim | Command::WriteZeroes => limits.discard_bytes_max.max(limits.io_bytes_max),
            _ => limits.io_bytes_max,
        };
        (u64::from(most) / block * block).max(block)
    }

    fn next_part_len(&self, tag: RequestTag) -> u64 {
        let request = self.slot(tag);
        (request.range.len() - request.submitted).min(self.part_bytes_max(request.command))
    }

    /// Hands out the next part. TRIM with FUA ends with a flush: a discard itself promises no durability.
    fn next_part(&mut self, tag: RequestTag) -> Option<Request> {
        let len = self.next_part_len(tag);
        let request = self.slot_mut(tag);
        let trim_to_flush = request.command == Command::Trim && request.fua;
        let op = match request.command {
            Command::Flush if !request.flush_submitted => BlockOp::Flush,
            Command::Trim if len == 0 && trim_to_flush && !request.flush_submitted => BlockOp::Flush,
            _ if len == 0 => return None,
            Command::Read => BlockOp::Read,
            Command::Write => BlockOp::Write { fua: request.fua },
            Command::Trim => BlockOp::Discard,
            Command::WriteZeroes => BlockOp::WriteZeroes { may_unmap: !request.no_hole, fua: request.fua },
            Command::Flush | Command::Disconnect => return None,
        };
        request.flush_submitted |= op == BlockOp::Flush;
        let start = request.range.start() + request.submitted;
        let range = if op == BlockOp::Flush { Some(ByteRange::default()) } else { ByteRange::new(start, len) };
        request.part = range.expect("a part of a checked range");
        request.submitted += len;
        request.parts_running += 1;
        Some(Request { tag, op, range: request.part })
    }

    fn read_done(&mut self, tag: RequestTag) -> Result<Answer, CloseReason> {
        let structured = self.agreed.structured;
        let last = self.next_part_len(tag) == 0;
        let request = self.slot(tag);
        let (cookie, part) = (request.cookie, request.part);
        let first = part.start() == request.range.start();
        if let Some(error) = request.error {
            if !structured && !first {
                self.state = State::Closed;
                self.release(tag);
                return Err(CloseReason::ReadFailedMidway);
            }
            return Ok(self.finish(tag, Some(error)));
        }
        let head = match (structured, first) {
            (true, _) => Head::structured_data(cookie, last, part.start(), part.len() as u32),
            (false, true) => Head::simple(cookie, None),
            (false, false) => Head::default(),
        };
        let next = self.next_part(tag);
        if next.is_none() {
            self.release(tag);
        }
        Ok(Answer { head, payload: true, next })
    }

    /// A write is answered when all of its payload came in and every part is through.
    fn write_done(&mut self, tag: RequestTag) -> Answer {
        let request = self.slot(tag);
        if request.submitted < request.range.len() || request.parts_running > 0 {
            return Answer::default();
        }
        let error = request.error;
        self.finish(tag, error)
    }

    fn command_done(&mut self, tag: RequestTag) -> Answer {
        let error = self.slot(tag).error;
        if error.is_none()
            && let Some(next) = self.next_part(tag)
        {
            return Answer { next: Some(next), ..Answer::default() };
        }
        self.finish(tag, error)
    }

    /// The final reply without data.
    fn finish(&mut self, tag: RequestTag, error: Option<IoError>) -> Answer {
        let (cookie, read) = (self.slot(tag).cookie, self.slot(tag).command == Command::Read);
        self.release(tag);
        let head = match error.map(Errno::from) {
            Some(errno) => self.error_head(cookie, errno),
            None if read => unreachable!("a read that succeeded is answered with its data"),
            None if self.agreed.structured => Head::structured_none(cookie),
            None => Head::simple(cookie, None),
        };
        Answer { head, ..Answer::default() }
    }

    fn error_head(&self, cookie: u64, errno: Errno) -> Head {
        if self.agreed.structured { Head::structured_error(cookie, errno) } else { Head::simple(cookie, Some(errno)) }
    }

    /// Answers a request that never became one.
    fn refuse(&mut self, cookie: u64, errno: Errno) {
        let head = self.error_head(cookie, errno);
        self.output.extend_from_slice(&head);
    }

    fn release(&mut self, tag: RequestTag) {
        self.in_flight[tag.0 as usize] = None;
        self.free.push(tag.0);
        if self.alone == Some(tag) {
            self.alone = None;
        }
    }

    fn slot(&self, tag: RequestTag) -> &InFlight {
        self.in_flight[tag.0 as usize].as_ref().unwrap_or_else(|| panic!("{tag:?} is not in flight"))
    }
    fn slot_mut(&mut self, tag: RequestTag) -> &mut InFlight {
        self.in_flight[tag.0 as usize].as_mut().unwrap_or_else(|| panic!("{tag:?} is not in flight"))
    }
}
