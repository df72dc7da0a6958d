//! Lines to values and back. A line has a bound that is checked before memory is reserved for it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;

/// Longest line, with its end. Bytes. The status of a thousand volumes with three peers each fits.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// Why bytes are no line of this protocol. The connection ends.
#[derive(Debug)]
pub enum FrameError {
    TooLong {
        bytes: usize,
    },
    Json(serde_json::Error),
    /// The other side speaks another version of the protocol.
    Version {
        theirs: u32,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLong { bytes } => {
                write!(f, "a line of {bytes} bytes or more, at most {LINE_BYTES_MAX} are allowed")
            }
            FrameError::Version { theirs } => {
                write!(f, "protocol version {theirs}, here it is {}; update the older program", crate::VERSION)
            }
            FrameError::Json(e) => write!(f, "a line that is not of this protocol: {e}"),
        }
    }
}

impl std::error::Error for FrameError {}

/// With the newline.
pub fn encode_line<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut line = serde_json::to_vec(value).map_err(FrameError::Json)?;
    line.push(b'\n');
    match line.len() {
        0..=LINE_BYTES_MAX => Ok(line),
        bytes => Err(FrameError::TooLong { bytes }),
    }
}

/// `line`: with or without the newline. The version is looked at first: a line of another version may hold what is
/// unknown here.
pub fn decode_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, FrameError> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    if line.len() > LINE_BYTES_MAX {
        return Err(FrameError::TooLong { bytes: line.len() });
    }
    let Versioned { version } = serde_json::from_slice(line).map_err(FrameError::Json)?;
    if version != crate::VERSION {
        return Err(FrameError::Version { theirs: version });
    }
    serde_json::from_slice(line).map_err(FrameError::Json)
}

/// Cuts a stream of bytes into lines, whatever pieces it comes in. Holds at most one line and the last piece.
#[derive(Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// No newline before this index.
    searched: usize,
}

impl LineBuffer {
    pub fn new() -> LineBuffer {
        LineBuffer::default()
    }
    /// After it, [`LineBuffer::next_line`] until `Ok(None)`, or memory grows.
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
    }
    /// The next complete line without its newline.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let Some(end) = self.bytes[self.searched..].iter().position(|b| *b == b'\n') else {
            self.searched = self.bytes.len();
            return match self.bytes.len() {
                0..LINE_BYTES_MAX => Ok(None),
                bytes => Err(FrameError::TooLong { bytes }),
            };
        };
        let end = self.searched + end;
        let rest = self.bytes.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.truncate(end);
        self.searched = 0;
        match line.len() {
            0..LINE_BYTES_MAX => Ok(Some(line)),
            bytes => Err(FrameError::TooLong { bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whatever_the_pieces() {
        let stream = b"{\"a\":1}\n\n[2]\nrest";
        for piece in 1..stream.len() {
            let mut buffer = LineBuffer::new();
            let mut lines = Vec::new();
            for bytes in stream.chunks(piece) {
                buffer.push(bytes);
                while let Some(line) = buffer.next_line().unwrap() {
                    lines.push(line);
                }
            }
            assert_eq!(lines, [b"{\"a\":1}".to_vec(), b"".to_vec(), b"[2]".to_vec()]);
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut buffer = LineBuffer::new();
        buffer.push(&vec![b'x'; LINE_BYTES_MAX]);
        assert!(matches!(buffer.next_line(), Err(FrameError::TooLong { .. })));
        assert!(matches!(
            decode_line::<crate::Request>(&vec![b' '; LINE_BYTES_MAX + 1]),
            Err(FrameError::TooLong { .. })
        ));
        assert!(encode_line(&"x".repeat(LINE_BYTES_MAX)).is_err());
    }
}
