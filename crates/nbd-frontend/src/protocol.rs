//! Numbers and layouts of the NBD protocol, fixed newstyle. All integers are big-endian.
//! Source: the protocol document of the NetworkBlockDevice project (doc/proto.md).

use types::IoError;

/// "NBDMAGIC".
pub(crate) const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": in the greeting, and before each option of the client.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

pub(crate) const CLIENT_FLAGS_BYTES: usize = 4;
/// Magic, option, length.
pub(crate) const OPTION_HEADER_BYTES: usize = 16;
/// Magic, flags, command, cookie, offset, length.
pub(crate) const REQUEST_HEADER_BYTES: usize = 28;

/// Handshake flags, both directions.
pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
pub(crate) const NO_ZEROES: u16 = 1 << 1;

/// Largest read or write that is served, in parts. Bytes. Clients that were told no block sizes (the kernel's, for
/// one) may assume this much; the protocol document names it as the portable limit.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;

pub(crate) mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
}

pub(crate) mod option_reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const ERR_UNSUPPORTED: u32 = (1 << 31) + 1;
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    pub const ERR_UNKNOWN_EXPORT: u32 = (1 << 31) + 6;
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
}

pub(crate) mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Flags of an export.
pub(crate) mod export_flag {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Flags of a request.
pub(crate) mod command_flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const FAST_ZERO: u16 = 1 << 4;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
}

impl Command {
    pub(crate) fn from_wire(number: u16) -> Option<Command> {
        Some(match number {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            6 => Command::WriteZeroes,
            _ => return None,
        })
    }

    /// Flags that mean something with this command. FUA is allowed with each, and ignored where nothing is written.
    pub(crate) fn flags_known(self) -> u16 {
        command_flag::FUA
            | match self {
                Command::Read => command_flag::DF,
                Command::WriteZeroes => command_flag::NO_HOLE | command_flag::FAST_ZERO,
                _ => 0,
            }
    }
}

/// Error numbers of the protocol: Linux errno values, fixed for all systems.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Errno {
    Permission = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    Overflow = 75,
    Unsupported = 95,
}

impl From<IoError> for Errno {
    fn from(error: IoError) -> Errno {
        match error {
            IoError::Io => Errno::Io,
            IoError::ReadOnly => Errno::Permission,
            IoError::Invalid => Errno::Invalid,
            IoError::NoSpace => Errno::NoSpace,
            IoError::Unsupported => Errno::Unsupported,
        }
    }
}

/// The 28 bytes before a request, as sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RequestHeader {
    pub magic: u32,
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
}

impl RequestHeader {
    pub(crate) fn decode(bytes: &[u8; REQUEST_HEADER_BYTES]) -> RequestHeader {
        RequestHeader {
            magic: be32(&bytes[0..]),
            flags: be16(&bytes[4..]),
            command: be16(&bytes[6..]),
            cookie: be64(&bytes[8..]),
            offset: be64(&bytes[16..]),
            len: be32(&bytes[24..]),
        }
    }
}

pub(crate) fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(bytes[..2].try_into().expect("two bytes"))
}
pub(crate) fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}
pub(crate) fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"))
}

/// Bytes that go before a payload, or are the whole reply. No allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Head {
    bytes: [u8; 32],
    len: u8,
}

impl Head {
    fn put(mut self, bytes: &[u8]) -> Head {
        let at = usize::from(self.len);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
        self
    }

    pub(crate) fn simple(cookie: u64, error: Option<Errno>) -> Head {
        let number = error.map_or(0, |e| e as u32);
        Head::default().put(&SIMPLE_REPLY_MAGIC.to_be_bytes()).put(&number.to_be_bytes()).put(&cookie.to_be_bytes())
    }

    fn chunk(cookie: u64, kind: u16, last: bool, len: u32) -> Head {
        Head::default()
            .put(&STRUCTURED_REPLY_MAGIC.to_be_bytes())
            .put(&u16::from(last).to_be_bytes())
            .put(&kind.to_be_bytes())
            .put(&cookie.to_be_bytes())
            .put(&len.to_be_bytes())
    }

    /// Success without data.
    pub(crate) fn structured_none(cookie: u64) -> Head {
        Head::chunk(cookie, 0, true, 0)
    }

    /// `len` bytes of data follow.
    pub(crate) fn structured_data(cookie: u64, last: bool, offset: u64, len: u32) -> Head {
        Head::chunk(cookie, 1, last, len + 8).put(&offset.to_be_bytes())
    }

    pub(crate) fn structured_error(cookie: u64, error: Errno) -> Head {
        let no_message = 0u16;
        Head::chunk(cookie, (1 << 15) + 1, true, 6).put(&(error as u32).to_be_bytes()).put(&no_message.to_be_bytes())
    }
}

impl std::ops::Deref for Head {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}
