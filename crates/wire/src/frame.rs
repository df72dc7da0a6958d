//! Frame headers and the packet that opens a socket. Layouts: docs/wire.md "Framing".

use crate::error::DecodeError;
use crate::message::Socket;
use crate::packet::Packet;
use alloc::vec::Vec;
use types::VolumeNumber;

const MAGIC_H80: u32 = 0x8374_0267;
const MAGIC_H95: u16 = 0x835a;
const MAGIC_H100: u32 = 0x8620_ec20;

/// Volume field of a packet for the whole connection.
const WHOLE_CONNECTION: u16 = u16::MAX;

/// The three header layouts, named after the protocol version that brought them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderForm {
    /// magic u32, command u16, length u16
    H80,
    /// magic u16, command u16, length u32
    H95,
    /// magic u32, volume u16, command u16, length u32, pad u32
    H100,
}

impl HeaderForm {
    /// Bytes of the shorter headers: this many can be read before the form is known.
    pub const BYTES_MIN: usize = 8;

    /// The form that these first bytes of a header announce.
    #[inline]
    pub fn classify(first: [u8; HeaderForm::BYTES_MIN]) -> Result<HeaderForm, DecodeError> {
        let [a, b, c, d, ..] = first;
        let magic = u32::from_be_bytes([a, b, c, d]);
        match magic {
            MAGIC_H80 => Ok(HeaderForm::H80),
            MAGIC_H100 => Ok(HeaderForm::H100),
            _ if u16::from_be_bytes([a, b]) == MAGIC_H95 => Ok(HeaderForm::H95),
            _ => Err(header_error("magic", 0, magic.into(), "is the magic of no header form")),
        }
    }

    pub const fn header_bytes(self) -> usize {
        match self {
            HeaderForm::H80 | HeaderForm::H95 => 8,
            HeaderForm::H100 => 16,
        }
    }
}

/// A decoded frame header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Raw: an unknown number is refused where the socket is known.
    pub command: u16,
    /// `None`: the whole connection, or a form without volumes.
    pub volume: Option<VolumeNumber>,
    /// Bytes of the frame after the header.
    pub len: u32,
    pub form: HeaderForm,
}

impl Header {
    /// `bytes` is exactly one header (see [`HeaderForm::header_bytes`]).
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Header, DecodeError> {
        let Some(first) = bytes.first_chunk::<{ HeaderForm::BYTES_MIN }>() else {
            return Err(wrong_size(bytes));
        };
        let form = HeaderForm::classify(*first)?;
        match form {
            HeaderForm::H80 => Header::decode_h80(bytes),
            HeaderForm::H95 => Header::decode_h95(bytes),
            HeaderForm::H100 => Header::decode_h100(bytes),
        }
    }

    fn decode_h80(bytes: &[u8]) -> Result<Header, DecodeError> {
        let &[_, _, _, _, c0, c1, l0, l1] = bytes else { return Err(wrong_size(bytes)) };
        Ok(Header {
            command: u16::from_be_bytes([c0, c1]),
            volume: None,
            len: u16::from_be_bytes([l0, l1]).into(),
            form: HeaderForm::H80,
        })
    }

    fn decode_h95(bytes: &[u8]) -> Result<Header, DecodeError> {
        let &[_, _, c0, c1, l0, l1, l2, l3] = bytes else { return Err(wrong_size(bytes)) };
        Ok(Header {
            command: u16::from_be_bytes([c0, c1]),
            volume: None,
            len: u32::from_be_bytes([l0, l1, l2, l3]),
            form: HeaderForm::H95,
        })
    }

    fn decode_h100(bytes: &[u8]) -> Result<Header, DecodeError> {
        let &[_, _, _, _, v0, v1, c0, c1, l0, l1, l2, l3, p0, p1, p2, p3] = bytes else {
            return Err(wrong_size(bytes));
        };
        let pad = u32::from_be_bytes([p0, p1, p2, p3]);
        if pad != 0 {
            return Err(header_error("pad", 12, pad.into(), "must be zero"));
        }
        Ok(Header {
            command: u16::from_be_bytes([c0, c1]),
            volume: VolumeNumber::new(u16::from_be_bytes([v0, v1])),
            len: u32::from_be_bytes([l0, l1, l2, l3]),
            form: HeaderForm::H100,
        })
    }

    /// Appends the header. A length or volume that the form cannot carry is a bug of the caller (asserted).
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        if self.form != HeaderForm::H100 {
            assert!(self.volume.is_none(), "{:?} has no volume field: {self:?}", self.form);
        }
        match self.form {
            HeaderForm::H80 => {
                let [m0, m1, m2, m3] = MAGIC_H80.to_be_bytes();
                let [c0, c1] = self.command.to_be_bytes();
                let [l0, l1] = self.len_h80();
                out.extend_from_slice(&[m0, m1, m2, m3, c0, c1, l0, l1]);
            }
            HeaderForm::H95 => {
                let [m0, m1] = MAGIC_H95.to_be_bytes();
                let [c0, c1] = self.command.to_be_bytes();
                let [l0, l1, l2, l3] = self.len.to_be_bytes();
                out.extend_from_slice(&[m0, m1, c0, c1, l0, l1, l2, l3]);
            }
            HeaderForm::H100 => {
                let [m0, m1, m2, m3] = MAGIC_H100.to_be_bytes();
                let [v0, v1] = self.volume.map_or(WHOLE_CONNECTION, VolumeNumber::get).to_be_bytes();
                let [c0, c1] = self.command.to_be_bytes();
                let [l0, l1, l2, l3] = self.len.to_be_bytes();
                out.extend_from_slice(&[m0, m1, m2, m3, v0, v1, c0, c1, l0, l1, l2, l3, 0, 0, 0, 0]);
            }
        }
    }

    /// Puts this length into a header that [`Header::encode`] wrote when the length was not known yet. `written`
    /// begins with that header (asserted as far as its size goes).
    #[inline]
    pub(crate) fn amend_len(&self, written: &mut [u8]) {
        match self.form {
            HeaderForm::H80 => written[6..8].copy_from_slice(&self.len_h80()),
            HeaderForm::H95 => written[4..8].copy_from_slice(&self.len.to_be_bytes()),
            HeaderForm::H100 => written[8..12].copy_from_slice(&self.len.to_be_bytes()),
        }
    }

    fn len_h80(&self) -> [u8; 2] {
        u16::try_from(self.len).unwrap_or_else(|_| panic!("h80 length field is 16 bits: {self:?}")).to_be_bytes()
    }
}

/// What the connecting side sends first: INITIAL_DATA or INITIAL_META. The accepting side sends nothing back.
pub const fn first_packet(socket: Socket) -> [u8; 8] {
    let [m0, m1, m2, m3] = MAGIC_H80.to_be_bytes();
    let [c0, c1] = match socket {
        Socket::Data => (Packet::InitialData as u16).to_be_bytes(),
        Socket::Control => (Packet::InitialMeta as u16).to_be_bytes(),
    };
    [m0, m1, m2, m3, c0, c1, 0, 0]
}

/// Which socket an accepted connection becomes.
pub fn parse_first_packet(bytes: [u8; 8]) -> Result<Socket, DecodeError> {
    let header = Header::decode(&bytes)?;
    let socket = match Packet::from_number(header.command) {
        Some(Packet::InitialData) => Socket::Data,
        Some(Packet::InitialMeta) => Socket::Control,
        _ => {
            let rule = "the first packet of a socket must be INITIAL_DATA or INITIAL_META";
            return Err(header_error("command", 4, header.command.into(), rule));
        }
    };
    if bytes != first_packet(socket) {
        return Err(header_error("length", 6, header.len.into(), "INITIAL_* is an empty packet in the oldest form"));
    }
    Ok(socket)
}

#[cold]
fn header_error(field: &'static str, offset: usize, value: u64, violated: &'static str) -> DecodeError {
    DecodeError { packet: "header", field, offset, value, violated }
}

fn wrong_size(bytes: &[u8]) -> DecodeError {
    header_error("size", 0, bytes.len() as u64, "must be exactly one header: 8 bytes, 16 for h100")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_in_h100() {
        let bytes = [0x86, 0x20, 0xec, 0x20, 0, 0, 0, 0x13, 0, 0, 0, 0, 0, 0, 0, 0];
        let header = Header::decode(&bytes).unwrap();
        assert_eq!((header.command, header.len, header.form), (0x13, 0, HeaderForm::H100));
        assert_eq!(header.volume, VolumeNumber::new(0));
        let mut out = Vec::new();
        header.encode(&mut out);
        assert_eq!(out, bytes);
    }

    #[test]
    fn a_pad_that_is_not_zero_is_refused() {
        let bytes = [0x86, 0x20, 0xec, 0x20, 0, 0, 0, 0x13, 0, 0, 0, 0, 0, 0, 0, 7];
        let error = Header::decode(&bytes).unwrap_err();
        assert_eq!((error.field, error.offset, error.value), ("pad", 12, 7));
    }

    #[test]
    fn h95_has_a_wide_length_and_no_volume() {
        let bytes = [0x83, 0x5a, 0, 0, 0, 2, 0, 0];
        let header = Header::decode(&bytes).unwrap();
        let mut out = Vec::new();
        header.encode(&mut out);
        assert_eq!((header.volume, header.len, out.as_slice()), (None, 0x20000, bytes.as_slice()));
    }

    #[test]
    fn a_length_that_comes_later_stands_where_encode_puts_it() {
        for form in [HeaderForm::H80, HeaderForm::H95, HeaderForm::H100] {
            let header = Header { command: 0x1234, volume: None, len: 0xabcd, form };
            let (mut later, mut at_once) = (Vec::new(), Vec::new());
            Header { len: 0, ..header }.encode(&mut later);
            header.amend_len(&mut later);
            header.encode(&mut at_once);
            assert_eq!(later, at_once, "{form:?}");
        }
    }

    #[test]
    fn every_cut_header_and_every_unknown_magic_is_refused() {
        let bytes = [0x86, 0x20, 0xec, 0x20, 0, 0, 0, 0x13, 0, 0, 0, 0, 0, 0, 0, 0];
        for len in 0..16 {
            assert!(Header::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert_eq!(Header::decode(b"GET / HT").unwrap_err().field, "magic");
    }

    #[test]
    fn the_first_packet_names_the_socket() {
        assert_eq!(first_packet(Socket::Data), [0x83, 0x74, 0x02, 0x67, 0xff, 0xf2, 0, 0]);
        assert_eq!(first_packet(Socket::Control), [0x83, 0x74, 0x02, 0x67, 0xff, 0xf1, 0, 0]);
        for socket in [Socket::Data, Socket::Control] {
            assert_eq!(parse_first_packet(first_packet(socket)), Ok(socket));
        }
        let with_length = [0x83, 0x74, 0x02, 0x67, 0xff, 0xf2, 0, 1];
        assert_eq!(parse_first_packet(with_length).unwrap_err().field, "length");
        let features = [0x83, 0x74, 0x02, 0x67, 0xff, 0xfe, 0, 72];
        assert_eq!(parse_first_packet(features).unwrap_err().field, "command");
    }
}
