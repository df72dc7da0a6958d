//! Options of a device -> what the driver wants to know. Pure.
//!
//! The driver clears what it doesn't know and refuses what contradicts itself; everything it would refuse is refused
//! here first, by name.

use crate::error::UblkError;
use libublk::sys;
use types::BlockLimits;
use types::range::SECTOR_BYTES;

/// Largest request. libublk's bound, and the width of the offset in a user-copy position. Bytes.
pub(crate) const IO_BYTES_MAX: u32 = 32 << 20;

/// The driver's bound on one queue.
pub(crate) const QUEUE_DEPTH_MAX: u16 = sys::UBLK_MAX_QUEUE_DEPTH as u16;

const PAGE_BYTES: u32 = 4096;

/// What nodes with different disks agreed on, made whole: a kernel that takes 255 sectors at once, or one disk's
/// granularity beside another's blocks, is no reason to have no device. Never asks more of a disk than `limits` does.
pub(crate) fn fitted(limits: &BlockLimits) -> BlockLimits {
    let io_bytes_max = limits.io_bytes_max.min(IO_BYTES_MAX) / PAGE_BYTES * PAGE_BYTES;
    let granularity = limits.discard_granularity_bytes.max(limits.logical_block_bytes);
    BlockLimits {
        io_bytes_max,
        discard_granularity_bytes: if limits.discard { granularity } else { limits.discard_granularity_bytes },
        ..*limits
    }
}

/// `limits` are `fitted`.
pub(crate) fn check(queue_depth: u16, size_bytes: u64, limits: &BlockLimits) -> Result<(), UblkError> {
    let refuse = |option, value: u64, violated| Err(UblkError::Option { option, value, violated });
    let logical = limits.logical_block_bytes;
    let physical = limits.physical_block_bytes;
    if queue_depth == 0 || queue_depth > QUEUE_DEPTH_MAX {
        return refuse("queue depth", queue_depth.into(), "not in 1..=4096");
    }
    if !logical.is_power_of_two() || !(512..=PAGE_BYTES).contains(&logical) {
        return refuse("logical block size", logical.into(), "not a power of two in 512..=4096");
    }
    if !physical.is_power_of_two() || physical < logical {
        return refuse("physical block size", physical.into(), "not a power of two, or smaller than the logical one");
    }
    if size_bytes == 0 || !size_bytes.is_multiple_of(logical.into()) {
        return refuse("size", size_bytes, "zero, or not a multiple of the logical block size");
    }
    let io = limits.io_bytes_max;
    if io == 0 || io > IO_BYTES_MAX || !io.is_multiple_of(PAGE_BYTES) {
        return refuse("largest request", io.into(), "not a multiple of 4096 in 4096..=32 MiB");
    }
    if limits.discard && limits.discard_granularity_bytes < logical {
        let granularity = limits.discard_granularity_bytes.into();
        return refuse("discard granularity", granularity, "smaller than the logical block size");
    }
    if limits.discard_bytes_max < logical {
        return refuse("largest discard", limits.discard_bytes_max.into(), "smaller than the logical block size");
    }
    Ok(())
}

/// `limits` passed `check`.
pub(crate) fn params(size_bytes: u64, limits: &BlockLimits) -> sys::ublk_params {
    let cache = if limits.volatile_cache { sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA } else { 0 };
    let physical_shift = shift(limits.physical_block_bytes);
    sys::ublk_params {
        len: size_of::<sys::ublk_params>() as u32,
        types: sys::UBLK_PARAM_TYPE_BASIC | sys::UBLK_PARAM_TYPE_DISCARD,
        basic: sys::ublk_param_basic {
            attrs: cache,
            logical_bs_shift: shift(limits.logical_block_bytes),
            physical_bs_shift: physical_shift,
            // An optimum above the minimum would make file systems lay out stripes.
            io_opt_shift: physical_shift,
            io_min_shift: physical_shift,
            max_sectors: sectors(limits.io_bytes_max),
            dev_sectors: size_bytes / SECTOR_BYTES,
            ..Default::default()
        },
        discard: discard(limits),
        ..Default::default()
    }
}

/// Zeroes are always taken: whoever cannot write them answers "unsupported" and the kernel writes pages of zeroes.
fn discard(limits: &BlockLimits) -> sys::ublk_param_discard {
    // Whole logical blocks: a limit that is none would split a request inside a block.
    let bytes_max = limits.discard_bytes_max / limits.logical_block_bytes * limits.logical_block_bytes;
    let zeroes = sys::ublk_param_discard {
        discard_granularity: limits.logical_block_bytes,
        max_write_zeroes_sectors: sectors(bytes_max),
        ..Default::default()
    };
    if !limits.discard {
        return zeroes;
    }
    sys::ublk_param_discard {
        discard_granularity: limits.discard_granularity_bytes,
        max_discard_sectors: sectors(bytes_max),
        // The driver describes one range per request.
        max_discard_segments: 1,
        ..zeroes
    }
}

fn sectors(bytes: u32) -> u32 {
    bytes / SECTOR_BYTES as u32
}

fn shift(power_of_two: u32) -> u8 {
    assert!(power_of_two.is_power_of_two(), "{power_of_two} passed the check but is no power of two");
    power_of_two.trailing_zeros() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 << 20;

    #[test]
    fn the_defaults_are_what_the_driver_gets() {
        let limits = BlockLimits::default();
        check(128, SIZE, &limits).unwrap();
        let p = params(SIZE, &limits);
        assert_eq!(p.len as usize, size_of::<sys::ublk_params>());
        assert_eq!((p.basic.logical_bs_shift, p.basic.physical_bs_shift), (9, 12));
        assert_eq!((p.basic.dev_sectors, p.basic.max_sectors), (131072, 2048));
        assert_eq!(p.basic.attrs, sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA);
        assert_eq!((p.discard.discard_granularity, p.discard.max_discard_segments), (4096, 1));
        assert_eq!((p.discard.max_discard_sectors, p.discard.max_write_zeroes_sectors), (262144, 262144));
    }

    #[test]
    fn without_discard_zeroes_are_still_taken() {
        let limits = BlockLimits { discard: false, discard_granularity_bytes: 0, ..BlockLimits::default() };
        check(128, SIZE, &limits).unwrap();
        let p = params(SIZE, &limits);
        assert_eq!((p.discard.max_discard_sectors, p.discard.max_discard_segments), (0, 0));
        // The driver refuses a granularity of zero even then.
        assert_eq!((p.discard.discard_granularity, p.discard.max_write_zeroes_sectors), (512, 262144));
    }

    #[test]
    fn a_disk_without_a_cache_promises_durable_writes() {
        let limits = BlockLimits { volatile_cache: false, ..BlockLimits::default() };
        assert_eq!(params(SIZE, &limits).basic.attrs, 0);
    }

    #[test]
    fn limits_of_different_disks_are_fitted() {
        let agreed = BlockLimits {
            logical_block_bytes: 4096,
            discard_granularity_bytes: 512,
            io_bytes_max: 255 * 512,
            ..BlockLimits::default()
        };
        let limits = fitted(&agreed);
        check(128, SIZE, &limits).unwrap();
        assert_eq!((limits.io_bytes_max, limits.discard_granularity_bytes), (31 * 4096, 4096));
        assert_eq!(fitted(&BlockLimits::default()), BlockLimits::default());
    }

    #[test]
    fn each_bad_option_is_named() {
        let good = BlockLimits::default();
        let name = |depth, size, limits: BlockLimits| match check(depth, size, &limits) {
            Err(UblkError::Option { option, .. }) => option,
            other => panic!("accepted or another error: {other:?}"),
        };
        assert_eq!(name(0, SIZE, good), "queue depth");
        assert_eq!(name(4097, SIZE, good), "queue depth");
        assert_eq!(name(1, 0, good), "size");
        assert_eq!(name(1, 513, good), "size");
        assert_eq!(name(1, SIZE, BlockLimits { logical_block_bytes: 520, ..good }), "logical block size");
        assert_eq!(name(1, SIZE, BlockLimits { logical_block_bytes: 8192, ..good }), "logical block size");
        assert_eq!(name(1, SIZE, BlockLimits { physical_block_bytes: 256, ..good }), "physical block size");
        assert_eq!(name(1, SIZE, fitted(&BlockLimits { io_bytes_max: 4095, ..good })), "largest request");
        assert_eq!(name(1, SIZE, BlockLimits { io_bytes_max: 64 << 20, ..good }), "largest request");
        assert_eq!(name(1, SIZE, BlockLimits { discard_granularity_bytes: 0, ..good }), "discard granularity");
        assert_eq!(name(1, SIZE, BlockLimits { discard_bytes_max: 0, ..good }), "largest discard");
    }
}
