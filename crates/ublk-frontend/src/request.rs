//! One request as the kernel describes it <-> `Request`. Pure. The only place that knows errno and the sectors of
//! requests.

use libublk::sys;
use types::{BlockOp, ByteRange, IoError};

/// What an application asks, ready for the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Slot of the queue, 0..depth. Unique among the requests not finished.
    pub tag: u16,
    pub op: BlockOp,
    /// Inside the device; empty for a flush.
    pub range: ByteRange,
    /// Where the application's pages stand in the ring's table of fixed buffers, until the request is finished.
    pub registered: Option<u16>,
}

/// Fields of the kernel's descriptor that we use, copied out of the shared memory once: what is checked is what is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Descriptor {
    /// Operation in the low 8 bits, flags above.
    pub op_flags: u32,
    pub sectors: u32,
    pub start_sector: u64,
}

impl Request {
    /// Errors are answers for the application: `Unsupported` for an operation we do not offer, `Invalid` for a range
    /// outside `size_bytes`. `place`: where the kernel was asked to register the pages.
    pub(crate) fn decode(
        tag: u16,
        descriptor: Descriptor,
        size_bytes: u64,
        place: Option<u16>,
    ) -> Result<Request, IoError> {
        let fua = descriptor.op_flags & sys::UBLK_IO_F_FUA != 0;
        let op = match descriptor.op_flags & 0xff {
            sys::UBLK_IO_OP_READ => BlockOp::Read,
            sys::UBLK_IO_OP_WRITE => BlockOp::Write { fua },
            // The kernel fills in a range here too; it means nothing.
            sys::UBLK_IO_OP_FLUSH => {
                return Ok(Request { tag, op: BlockOp::Flush, range: ByteRange::default(), registered: None });
            }
            sys::UBLK_IO_OP_DISCARD => BlockOp::Discard,
            sys::UBLK_IO_OP_WRITE_ZEROES => {
                let may_unmap = descriptor.op_flags & sys::UBLK_IO_F_NOUNMAP == 0;
                BlockOp::WriteZeroes { may_unmap, fua }
            }
            _ => return Err(IoError::Unsupported),
        };
        let len = u64::from(descriptor.sectors) * types::range::SECTOR_BYTES;
        let range = ByteRange::from_sector(descriptor.start_sector, len).ok_or(IoError::Invalid)?;
        if range.is_empty() || !range.is_within(size_bytes) {
            return Err(IoError::Invalid);
        }
        let failed = descriptor.op_flags & sys::UBLK_IO_F_NEED_REG_BUF != 0;
        let registered = place.filter(|_| op.has_payload() && !failed);
        Ok(Request { tag, op, range, registered })
    }

    /// Bytes that move between the application and us.
    pub fn payload_bytes(&self) -> u32 {
        if self.op.has_payload() { u32::try_from(self.range.len()).expect("io_bytes_max is a u32") } else { 0 }
    }

    /// The commit command's result for success. The kernel ends a request that moves data by the bytes moved, any other
    /// by the absence of an error.
    pub(crate) fn success(&self) -> i32 {
        i32::try_from(self.payload_bytes()).expect("a request moves at most 32 MiB")
    }
}

/// The commit command's result for a failure. The block layer knows few codes: what it doesn't know, ReadOnly among
/// them, the application sees as EIO. EAGAIN and ENOMEM must not be used: it would retry for ever.
pub(crate) fn errno(error: IoError) -> i32 {
    -match error {
        IoError::Io => libc::EIO,
        IoError::ReadOnly => libc::EROFS,
        IoError::Invalid => libc::EINVAL,
        IoError::NoSpace => libc::ENOSPC,
        IoError::Unsupported => libc::EOPNOTSUPP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn decode(op_flags: u32, start_sector: u64, sectors: u32) -> Result<Request, IoError> {
        Request::decode(7, Descriptor { op_flags, sectors, start_sector }, SIZE, Some(40))
    }

    fn op(op_flags: u32) -> BlockOp {
        decode(op_flags, 8, 8).unwrap().op
    }

    #[test]
    fn every_operation_and_its_flags() {
        assert_eq!(op(sys::UBLK_IO_OP_READ), BlockOp::Read);
        assert_eq!(op(sys::UBLK_IO_OP_WRITE), BlockOp::Write { fua: false });
        assert_eq!(op(sys::UBLK_IO_OP_WRITE | sys::UBLK_IO_F_FUA), BlockOp::Write { fua: true });
        assert_eq!(op(sys::UBLK_IO_OP_FLUSH), BlockOp::Flush);
        assert_eq!(op(sys::UBLK_IO_OP_DISCARD), BlockOp::Discard);
        assert_eq!(op(sys::UBLK_IO_OP_WRITE_ZEROES), BlockOp::WriteZeroes { may_unmap: true, fua: false });
        let careful = sys::UBLK_IO_OP_WRITE_ZEROES | sys::UBLK_IO_F_NOUNMAP | sys::UBLK_IO_F_FUA;
        assert_eq!(op(careful), BlockOp::WriteZeroes { may_unmap: false, fua: true });
        // Hints change nothing.
        assert_eq!(op(sys::UBLK_IO_OP_READ | sys::UBLK_IO_F_META | sys::UBLK_IO_F_SWAP), BlockOp::Read);
    }

    #[test]
    fn pages_are_registered_if_there_are_some_and_the_kernel_could() {
        let registered = |op_flags| decode(op_flags, 8, 8).unwrap().registered;
        assert_eq!(registered(sys::UBLK_IO_OP_READ), Some(40));
        assert_eq!(registered(sys::UBLK_IO_OP_WRITE), Some(40));
        assert_eq!(registered(sys::UBLK_IO_OP_DISCARD), None);
        assert_eq!(registered(sys::UBLK_IO_OP_READ | sys::UBLK_IO_F_NEED_REG_BUF), None);
        let descriptor = Descriptor { op_flags: sys::UBLK_IO_OP_READ, sectors: 8, start_sector: 8 };
        assert_eq!(Request::decode(7, descriptor, SIZE, None).unwrap().registered, None);
    }

    #[test]
    fn what_we_do_not_offer_is_unsupported() {
        for op in [sys::UBLK_IO_OP_WRITE_SAME, sys::UBLK_IO_OP_ZONE_APPEND, sys::UBLK_IO_OP_REPORT_ZONES, 0xff] {
            assert_eq!(decode(op, 0, 8), Err(IoError::Unsupported));
        }
    }

    #[test]
    fn ranges_are_bytes_inside_the_device() {
        let request = decode(sys::UBLK_IO_OP_READ, 2040, 8).unwrap();
        assert_eq!((request.range.start(), request.range.len(), request.range.end()), (2040 * 512, 4096, SIZE));
        assert_eq!(request.success(), 4096);
        for (start, sectors) in [(2041, 8), (u64::MAX, 8), (u64::MAX / 512, 8), (0, 0)] {
            assert_eq!(decode(sys::UBLK_IO_OP_WRITE, start, sectors), Err(IoError::Invalid), "{start}+{sectors}");
        }
        assert_eq!(decode(sys::UBLK_IO_OP_DISCARD, 0, u32::MAX), Err(IoError::Invalid));
    }

    #[test]
    fn a_flush_has_an_empty_range_and_moves_nothing() {
        let request = decode(sys::UBLK_IO_OP_FLUSH, u64::MAX, 8).unwrap();
        assert!(request.range.is_empty());
        assert_eq!((request.payload_bytes(), request.success()), (0, 0));
        assert_eq!(decode(sys::UBLK_IO_OP_DISCARD, 0, 8).unwrap().success(), 0);
    }

    #[test]
    fn errors_are_negative_and_never_ask_for_a_retry() {
        use IoError::*;
        for (error, code) in [
            (Io, libc::EIO),
            (ReadOnly, libc::EROFS),
            (Invalid, libc::EINVAL),
            (NoSpace, libc::ENOSPC),
            (Unsupported, libc::EOPNOTSUPP),
        ] {
            assert_eq!(errno(error), -code);
            assert!(![libc::EAGAIN, libc::ENOMEM, libc::ENODEV].contains(&code));
        }
    }
}
