//! A cursor over the payload of one packet. Every reading says which field it reads, for the error.

use crate::error::DecodeError;
use types::range::SECTOR_BYTES;
use types::{ByteRange, NodeId};

pub(super) struct Reader<'a> {
    packet: &'static str,
    /// Not read yet; one slice and no index, so that a field costs one comparison.
    rest: &'a [u8],
    /// Of the whole payload.
    len: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(packet: &'static str, bytes: &'a [u8]) -> Reader<'a> {
        Reader { packet, rest: bytes, len: bytes.len() }
    }

    /// Offset of what comes next.
    #[inline]
    fn at(&self) -> usize {
        self.len - self.rest.len()
    }

    #[inline]
    pub(super) fn take(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else { return Err(self.ends_inside(field)) };
        self.rest = rest;
        Ok(taken)
    }

    #[cold]
    fn ends_inside(&self, field: &'static str) -> DecodeError {
        self.refuse_at(self.at(), field, self.rest.len() as u64, "the packet ends inside this field")
    }

    #[inline]
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let Some((taken, rest)) = self.rest.split_first_chunk() else { return Err(self.ends_inside(field)) };
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array(field)?))
    }
    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }
    #[inline]
    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }
    #[inline]
    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// Padding: kernels leave old memory in some of it, so it is never looked at.
    pub(super) fn pad(&mut self, len: usize) -> Result<(), DecodeError> {
        self.take("pad", len).map(|_| ())
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    #[inline]
    pub(super) fn rest_len(&self) -> usize {
        self.rest.len()
    }

    /// A size in sectors, as bytes.
    pub(super) fn sectors(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let sectors = self.u64(field)?;
        match sectors.checked_mul(SECTOR_BYTES) {
            Some(bytes) => Ok(bytes),
            None => Err(self.refuse_last(8, field, sectors, "does not fit in 64 bits as bytes")),
        }
    }

    /// A range whose sector has been read already, at `sector_at`.
    #[inline]
    pub(super) fn range(&self, sector_at: usize, sector: u64, len: u32) -> Result<ByteRange, DecodeError> {
        match ByteRange::from_sector(sector, len.into()) {
            Some(range) => Ok(range),
            None => Err(self.refuse_at(sector_at, "sector", sector, "the range does not fit in 64 bits as bytes")),
        }
    }

    /// A length in bytes: whole sectors, within `max`.
    #[inline]
    pub(super) fn block_bytes(&mut self, field: &'static str, min: u32, max: u32) -> Result<u32, DecodeError> {
        let len = self.u32(field)?;
        if !u64::from(len).is_multiple_of(SECTOR_BYTES) {
            return Err(self.refuse_last(4, field, len.into(), "must be a multiple of 512"));
        }
        if len < min {
            return Err(self.refuse_last(4, field, len.into(), "must not be empty"));
        }
        if len > max {
            return Err(self.refuse_last(4, field, len.into(), "is more than this packet may ask for"));
        }
        Ok(len)
    }

    /// A node id of 32 bits.
    pub(super) fn node(&mut self, field: &'static str) -> Result<NodeId, DecodeError> {
        let number = self.u32(field)?;
        match u8::try_from(number).ok().and_then(NodeId::new) {
            Some(node) => Ok(node),
            None => Err(self.refuse_last(4, field, number.into(), "is no node id (0..=31)")),
        }
    }

    /// For a field of `len` bytes that was just read.
    pub(super) fn refuse_last(
        &self,
        len: usize,
        field: &'static str,
        value: u64,
        violated: &'static str,
    ) -> DecodeError {
        self.refuse_at(self.at().saturating_sub(len), field, value, violated)
    }

    /// For the packet as a whole.
    pub(super) fn refuse_start(&self, field: &'static str, value: u64, violated: &'static str) -> DecodeError {
        self.refuse_at(0, field, value, violated)
    }

    #[cold]
    pub(super) fn refuse_at(
        &self,
        offset: usize,
        field: &'static str,
        value: u64,
        violated: &'static str,
    ) -> DecodeError {
        DecodeError { packet: self.packet, field, offset, value, violated }
    }

    /// Reads what makes up the whole packet.
    #[inline]
    pub(super) fn whole<T>(
        mut self,
        read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        let value = read(&mut self)?;
        self.finish()?;
        Ok(value)
    }

    /// The whole packet must have been read.
    #[inline]
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        match self.rest_len() {
            0 => Ok(()),
            left => Err(self.refuse_at(self.at(), "end", left as u64, "bytes left over after the last field")),
        }
    }
}
