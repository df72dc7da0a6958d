//! What is wrong with bytes that a peer sent.

use core::fmt;

/// Bytes of a peer that break a rule of the protocol. The connection ends; the daemon lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DecodeError {
    /// DRBD's name of the packet; `"header"` or `"unknown packet"` where there is none yet.
    pub packet: &'static str,
    pub field: &'static str,
    /// Bytes from the start of the payload, of the header for header fields.
    pub offset: usize,
    /// What stood there, or a length.
    pub value: u64,
    /// The rule that was broken.
    pub violated: &'static str,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} at offset {} is {} ({:#x}): {}",
            self.packet, self.field, self.offset, self.value, self.value, self.violated
        )
    }
}

impl core::error::Error for DecodeError {}
