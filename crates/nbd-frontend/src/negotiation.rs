//! The options that a client sends before the first request. Bytes to decisions and replies; the state is in `session`.

use types::BlockLimits;

use crate::protocol::FIXED_NEWSTYLE;
use crate::protocol::{
    GREETING_MAGIC, NO_ZEROES, OPTION_MAGIC, OPTION_REPLY_MAGIC, be16, be32, export_flag, info, option, option_reply,
};

/// Longest export name. Bytes; the protocol's bound for strings.
const NAME_BYTES_MAX: usize = 4096;
/// Longest option that is looked at: a name, its length, and every information request there is. Bytes.
pub(crate) const OPTION_BYTES_MAX: usize = NAME_BYTES_MAX + 64;
/// Zeroes behind the answer to EXPORT_NAME that old clients wait for.
const EXPORT_NAME_ZEROES: usize = 124;

/// A volume as clients see it. `limits.io_bytes_max` is advertised as the largest request; longer ones are served in
/// parts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    pub name: String,
    pub size_bytes: u64,
    pub limits: BlockLimits,
    pub read_only: bool,
    /// A flush on one connection covers what completed on all others: true for everything replicad serves.
    pub multi_conn: bool,
}

/// Where a session finds exports. Asked at negotiation only; the session keeps what it was told.
pub trait Exports {
    /// `""` is the default export.
    fn find(&self, name: &str) -> Option<Export>;
    fn names(&self) -> Vec<String>;
}

impl Exports for Export {
    fn find(&self, name: &str) -> Option<Export> {
        (name.is_empty() || name == self.name).then(|| self.clone())
    }
    fn names(&self) -> Vec<String> {
        vec![self.name.clone()]
    }
}

impl Export {
    pub(crate) fn flags(&self, structured: bool) -> u16 {
        use export_flag::*;
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA;
        if self.read_only {
            flags |= READ_ONLY;
        } else {
            flags |= SEND_WRITE_ZEROES | if self.limits.discard { SEND_TRIM } else { 0 };
        }
        if structured {
            flags |= SEND_DF;
        }
        if self.multi_conn {
            flags |= CAN_MULTI_CONN;
        }
        flags
    }
}

pub(crate) fn greeting() -> Vec<u8> {
    let mut out = Vec::with_capacity(18);
    out.extend(GREETING_MAGIC.to_be_bytes());
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    out
}

/// What an option leads to. Replies are already in `out`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The next option, please.
    Continue,
    /// The client wants structured replies from now on.
    Structured,
    /// Requests follow.
    Transmit(Box<Export>),
    Abort,
    /// EXPORT_NAME has no way to refuse but closing.
    UnknownExport,
}

/// What the options before this one agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Agreed {
    pub structured: bool,
    pub no_zeroes: bool,
}

/// Answers one option of at most [`OPTION_BYTES_MAX`] bytes.
pub(crate) fn answer(exports: &dyn Exports, agreed: Agreed, kind: u32, data: &[u8], out: &mut Vec<u8>) -> Outcome {
    match kind {
        option::EXPORT_NAME => export_name(exports, agreed, data, out),
        option::ABORT => {
            reply(out, kind, option_reply::ACK, &[]);
            Outcome::Abort
        }
        option::LIST if data.is_empty() => list(exports, kind, out),
        option::STRUCTURED_REPLY if data.is_empty() => {
            reply(out, kind, option_reply::ACK, &[]);
            Outcome::Structured
        }
        option::LIST | option::STRUCTURED_REPLY => {
            reply(out, kind, option_reply::ERR_INVALID, b"this option carries no data");
            Outcome::Continue
        }
        option::INFO | option::GO => info_or_go(exports, agreed, kind, data, out),
        // STARTTLS, meta contexts, extended headers and what is not invented yet.
        _ => {
            reply(out, kind, option_reply::ERR_UNSUPPORTED, b"this server does not know the option");
            Outcome::Continue
        }
    }
}

pub(crate) fn refuse_too_big(kind: u32, out: &mut Vec<u8>) {
    reply(out, kind, option_reply::ERR_TOO_BIG, b"the option is longer than any that this server knows");
}

fn export_name(exports: &dyn Exports, agreed: Agreed, data: &[u8], out: &mut Vec<u8>) -> Outcome {
    let found = std::str::from_utf8(data).ok().and_then(|name| exports.find(name));
    let Some(export) = found else { return Outcome::UnknownExport };
    out.extend(export.size_bytes.to_be_bytes());
    out.extend(export.flags(agreed.structured).to_be_bytes());
    if !agreed.no_zeroes {
        out.extend([0; EXPORT_NAME_ZEROES]);
    }
    Outcome::Transmit(Box::new(export))
}

fn list(exports: &dyn Exports, kind: u32, out: &mut Vec<u8>) -> Outcome {
    for name in exports.names() {
        let mut entry = (name.len() as u32).to_be_bytes().to_vec();
        entry.extend(name.as_bytes());
        reply(out, kind, option_reply::SERVER, &entry);
    }
    reply(out, kind, option_reply::ACK, &[]);
    Outcome::Continue
}

fn info_or_go(exports: &dyn Exports, agreed: Agreed, kind: u32, data: &[u8], out: &mut Vec<u8>) -> Outcome {
    let Some((name, requests)) = decode_info(data) else {
        reply(out, kind, option_reply::ERR_INVALID, b"the lengths in the option do not add up");
        return Outcome::Continue;
    };
    let Some(export) = exports.find(name) else {
        reply(out, kind, option_reply::ERR_UNKNOWN_EXPORT, b"no such export; see the list");
        return Outcome::Continue;
    };
    let mut size = info::EXPORT.to_be_bytes().to_vec();
    size.extend(export.size_bytes.to_be_bytes());
    size.extend(export.flags(agreed.structured).to_be_bytes());
    reply(out, kind, option_reply::INFO, &size);

    let mut blocks = info::BLOCK_SIZE.to_be_bytes().to_vec();
    let limits = &export.limits;
    for bytes in [limits.logical_block_bytes, limits.physical_block_bytes.max(4096), limits.io_bytes_max] {
        blocks.extend(bytes.to_be_bytes());
    }
    reply(out, kind, option_reply::INFO, &blocks);

    if requests.chunks_exact(2).any(|r| be16(r) == info::NAME) {
        let mut canonical = info::NAME.to_be_bytes().to_vec();
        canonical.extend(export.name.as_bytes());
        reply(out, kind, option_reply::INFO, &canonical);
    }
    reply(out, kind, option_reply::ACK, &[]);
    if kind == option::GO { Outcome::Transmit(Box::new(export)) } else { Outcome::Continue }
}

/// Name and information requests (two bytes each). `None` unless all lengths fit exactly.
fn decode_info(data: &[u8]) -> Option<(&str, &[u8])> {
    let (name_len, rest) = data.split_at_checked(4)?;
    let (name, rest) = rest.split_at_checked(be32(name_len) as usize)?;
    let (count, requests) = rest.split_at_checked(2)?;
    let whole = requests.len() == usize::from(be16(count)) * 2;
    whole.then_some(())?;
    Some((std::str::from_utf8(name).ok()?, requests))
}

fn reply(out: &mut Vec<u8>, kind: u32, answer: u32, data: &[u8]) {
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(answer.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}
