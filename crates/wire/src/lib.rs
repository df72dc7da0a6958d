//! Bytes <-> messages of the DRBD wire protocol. No I/O, no state but what a header needs.
//!
//! Bulk data never passes through here: a message that is followed by data says how many bytes follow
//! ([`Message::payload_bytes`]), and the driver moves them.
#![no_std]

extern crate alloc;

pub mod auth;
pub mod bitmap_code;
pub mod codec;
pub mod digest;
pub mod error;
pub mod frame;
pub mod message;
pub mod packet;
pub mod state_word;
pub mod v84;
pub mod version;

pub use codec::{Context, FrameParts, JudgedFrame, decode, encode, frame_parts, volume_of};
pub use error::DecodeError;
pub use frame::{Header, HeaderForm, first_packet, parse_first_packet};
pub use message::{Message, Socket};
pub use packet::Packet;
