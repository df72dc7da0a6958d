//! `check-resize`: internal metadata lies at the end of its device, and moves there after the device has grown.
//!
//! The agreed size stays: the new space belongs to nobody until the nodes agree on it. What a crash between any two writes
//! leaves behind: docs/ondisk.md "Written anew".

use super::disk::{DiskError, MetaDevice, OnDisk};
use super::last_size::LastSize;
use metadata::layout::superblock_offset;
use metadata::{Block, FormatError, Layout, Placement, Superblock, SuperblockV08, rewrite};
use std::fmt;

/// Where the metadata is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resized {
    /// It was there; nothing was written.
    InPlace {
        device_uuid: u64,
    },
    Moved {
        device_uuid: u64,
        from: u64,
        to: u64,
    },
}

impl Resized {
    pub fn device_uuid(self) -> u64 {
        match self {
            Resized::InPlace { device_uuid } | Resized::Moved { device_uuid, .. } => device_uuid,
        }
    }
}

impl fmt::Display for Resized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resized::InPlace { .. } => write!(f, "the metadata is at the end of the device; nothing was changed"),
            Resized::Moved { from, to, .. } => {
                write!(f, "the metadata moved to the end of the device (superblock from byte {from} to {to})")
            }
        }
    }
}

/// Why nothing was moved. Nothing was changed.
pub enum Unmoved {
    Disk(DiskError),
    /// Nothing at the end, and no hint where it was; what is wrong with the end.
    Unknown(FormatError),
    /// The device had that size before, and is not larger now.
    NotGrown {
        was: u64,
    },
    /// Nothing valid where the end was, either.
    NotThere {
        was: u64,
        error: FormatError,
    },
    OtherDevice {
        was: u64,
        expected: u64,
        found: u64,
    },
    /// The longer bitmap would start inside the data.
    NoRoom {
        data: u64,
        usable: u64,
    },
    /// Metadata of DRBD 8.
    V08 {
        was: u64,
    },
    /// Something of DRBD's that does not fit lies where the superblock has to go.
    InTheWay(FormatError),
}

impl<E: Into<DiskError>> From<E> for Unmoved {
    fn from(e: E) -> Unmoved {
        Unmoved::Disk(e.into())
    }
}

impl fmt::Display for Unmoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unmoved::Disk(e) => e.fmt(f),
            Unmoved::Unknown(e) => write!(f, "no metadata at the end of the device ({}, {})", e.field, e.value),
            Unmoved::NotGrown { was } => write!(
                f,
                "no metadata at the end of the device, which had {was} bytes before and is not larger now; metadata moves \
                 only after growth: give the device its old size back, or restore-md from a dump"
            ),
            Unmoved::NotThere { was, error } => {
                write!(f, "no metadata at the end of the device, nor where the end of {was} bytes was: {error}")
            }
            Unmoved::OtherDevice { was, expected, found } => write!(
                f,
                "the metadata at the end of {was} bytes has the device UUID {found:016X}, and {expected:016X} is remembered; \
                 if it is the right device, say so by giving its old size"
            ),
            Unmoved::NoRoom { data, usable } => write!(
                f,
                "the metadata needs a longer bitmap now, which leaves {usable} bytes for {data} bytes of data: give the \
                 device its old size back, or at least 4096 bytes more than it had"
            ),
            Unmoved::V08 { was } => write!(
                f,
                "the metadata at the end of {was} bytes is v08, which does not move here; move it with DRBD's \
                 `drbdmeta ... check-resize`, or give the device its old size back and convert it first"
            ),
            Unmoved::InTheWay(e) => write!(f, "the end of the device holds metadata that does not fit it: {e}"),
        }
    }
}

impl Unmoved {
    pub fn exit_code(&self) -> u8 {
        match self {
            Unmoved::Disk(e) => e.exit_code(),
            _ => 255,
        }
    }
}

/// Moves the internal metadata of `device` if it is not at its end. `last`: what is known of the size before.
pub fn check_resize(device: &MetaDevice, last: Option<LastSize>) -> Result<Resized, Unmoved> {
    let at_end = match device.metadata() {
        Ok(found) => return Ok(Resized::InPlace { device_uuid: found.as_v09().0.device_uuid }),
        Err(DiskError::Format(e)) => e,
        Err(e) => return Err(e.into()),
    };
    let Some(last) = last.filter(|_| device.placement == Placement::Internal) else {
        return Err(Unmoved::Unknown(at_end));
    };
    let (old_sb, old) = find(device, last)?;
    let new = Layout::compute(Placement::Internal, device.size_bytes(), old_sb.geometry())?;
    if old_sb.last_agreed_bytes > new.usable_bytes {
        return Err(Unmoved::NoRoom { data: old_sb.last_agreed_bytes, usable: new.usable_bytes });
    }
    // A few sectors of growth leave the superblock where it is; then it is the old one that does not fit.
    if old.superblock != new.superblock && is_drbd(&device.block(new.superblock)?) {
        return Err(Unmoved::InTheWay(at_end));
    }
    let ring = device.ring(&old)?;
    let bitmap = device.bitmap(&old_sb, &old)?;
    device.rewrite(&rewrite::grow(&old_sb, &old, &new, &ring, &bitmap))?;
    Ok(Resized::Moved { device_uuid: old_sb.device_uuid, from: old.superblock, to: new.superblock })
}

/// The metadata of the device as it was, checked against that size.
fn find(device: &MetaDevice, last: LastSize) -> Result<(Superblock, Layout), Unmoved> {
    let was = last.bytes;
    if was >= device.size_bytes() {
        return Err(Unmoved::NotGrown { was });
    }
    let not_there = |error| Unmoved::NotThere { was, error };
    let offset = superblock_offset(Placement::Internal, was).map_err(not_there)?;
    let found = OnDisk::decode(&device.block(offset)?, Placement::Internal, was).map_err(not_there)?;
    let (superblock, layout) = match found {
        OnDisk::V09(superblock, layout) => (*superblock, layout),
        OnDisk::V08(..) => return Err(Unmoved::V08 { was }),
    };
    let (expected, found) = (last.device_uuid, superblock.device_uuid);
    if expected != 0 && expected != found {
        return Err(Unmoved::OtherDevice { was, expected, found });
    }
    Ok((superblock, layout))
}

fn is_drbd(block: &Block) -> bool {
    Superblock::decode(block, 0).is_ok() || SuperblockV08::decode(block, 0).is_ok()
}
