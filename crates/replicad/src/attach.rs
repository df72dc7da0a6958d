//! From a configured disk to one the engine can attach: open it for ourselves, read and check its metadata.
//!
//! Blocking; runs on a thread of the control plane, so that reading gigabytes of bitmap does not stop a resource.
//! Every refusal names the file, the cause and what to do.

use std::collections::TryReserveError;
use std::path::Path;

use config::{Disk, MetaDisk, Volume};
use engine::AttachedDisk;
use metadata::layout::{Placement, superblock_offset};
use metadata::{BLOCK_BYTES, Block, FormatError, Layout, Superblock};
use store::sync::{Aligned, read_exact_at};
use store::{Backing, OpenOptions, StoreError, StoreErrorKind};

/// Bitmap is read in pieces of this. Bytes.
const READ_BYTES: usize = 1 << 20;

/// An open disk with its metadata.
#[derive(Debug)]
pub struct OpenedDisk {
    pub data: Backing,
    /// `None`: internal, on the data device.
    pub metadata: Option<Backing>,
    pub attached: Box<AttachedDisk>,
}

/// Why a disk cannot be attached. `code`: DRBD's number (docs/cli.md "Error numbers").
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachRefusal {
    pub code: i32,
    pub rule: &'static str,
    pub message: String,
    pub next_step: String,
}

/// Which of the two devices an error is about; DRBD has a number for each.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Device {
    Data,
    Metadata,
}

/// `object`: resource and volume as the operator writes them.
pub fn open(object: &str, volume: &Volume) -> Result<OpenedDisk, AttachRefusal> {
    let Disk::Path(path) = &volume.disk else {
        return Err(AttachRefusal {
            code: 138,
            rule: "ERR_NO_DISK",
            message: format!("{object} is configured with disk = \"none\""),
            next_step: "give the volume a disk in the configuration".into(),
        });
    };
    let data = open_device(object, path, Device::Data)?;
    let (metadata, placement) = match &volume.meta_disk {
        MetaDisk::Internal => (None, Placement::Internal),
        MetaDisk::External(path) => (Some(open_device(object, path, Device::Metadata)?), Placement::External),
        // Several volumes share the device: each would need its own part of one exclusive open.
        MetaDisk::Indexed { path, index } => {
            return Err(AttachRefusal {
                code: 116,
                rule: "ERR_MD_IDX_INVALID",
                message: format!("{object}: indexed metadata ({} index {index}) cannot be served yet", path.display()),
                next_step: "use meta-disk = \"internal\" or a metadata device of its own".into(),
            });
        }
    };
    let attached = Box::new(read(object, &data, metadata.as_ref(), placement)?);
    Ok(OpenedDisk { data, metadata, attached })
}

fn open_device(object: &str, path: &Path, device: Device) -> Result<Backing, AttachRefusal> {
    Backing::open(path, OpenOptions::SERVE).map_err(|error| refuse_store(object, &error, device))
}

fn read(
    object: &str,
    data: &Backing,
    metadata: Option<&Backing>,
    placement: Placement,
) -> Result<AttachedDisk, AttachRefusal> {
    let backing = metadata.unwrap_or(data);
    let io = |error: StoreError| refuse_store(object, &error, Device::Metadata);
    let format = |error: FormatError| refuse_format(object, backing.path(), &error);
    let offset = superblock_offset(placement, backing.size_bytes()).map_err(|error| AttachRefusal {
        code: if metadata.is_none() { 111 } else { 112 },
        rule: if metadata.is_none() { "ERR_DISK_TOO_SMALL" } else { "ERR_MD_DISK_TOO_SMALL" },
        message: format!("{object}: {} is too small for metadata: {error}", backing.path().display()),
        next_step: "use a larger device".into(),
    })?;
    let superblock = Superblock::decode(&read_block(backing, offset).map_err(io)?, offset).map_err(format)?;
    let layout = metadata::check(&superblock, placement, backing.size_bytes()).map_err(format)?;
    let al_blocks = (0..layout.al_blocks)
        .map(|block| read_block(backing, layout.al_block(block)))
        .collect::<Result<Vec<Block>, StoreError>>()
        .map_err(io)?;
    let data_bytes = data_bytes(data, metadata.is_some(), &layout);
    let bitmap_bytes = superblock.geometry().bitmap_bytes(data_bytes).expect("volumes are at most 1 PiB");
    let bitmap = empty_bitmap(bitmap_bytes)
        .map_err(|source| refuse_memory(object, bitmap_bytes, &source))
        .and_then(|bitmap| read_bitmap(bitmap, backing, &layout, bitmap_bytes).map_err(io))?;
    Ok(AttachedDisk {
        superblock,
        bitmap,
        al_blocks,
        data_bytes,
        limits: data.geometry().limits(),
        external_metadata: metadata.is_some(),
        layout,
    })
}

fn read_block(backing: &Backing, offset: u64) -> Result<Block, StoreError> {
    let mut block = Aligned::zeroed(BLOCK_BYTES);
    read_exact_at(backing, offset, &mut block)?;
    Ok(Block::try_from(&block[..]).expect("one block was allocated"))
}

/// What the volume can hold: whole blocks of the data device, and never more than the metadata has bits for.
fn data_bytes(data: &Backing, external: bool, layout: &Layout) -> u64 {
    if !external {
        return layout.usable_bytes;
    }
    let block = u64::from(data.geometry().logical_block_bytes);
    data.size_bytes().min(layout.usable_bytes) / block * block
}

/// The bitmap of a PiB has a TiB: more than a machine has is a refusal, not the end of the daemon.
fn empty_bitmap(bytes: u64) -> Result<Vec<u8>, TryReserveError> {
    let mut bitmap = Vec::new();
    bitmap.try_reserve_exact(usize::try_from(bytes).unwrap_or(usize::MAX))?;
    Ok(bitmap)
}

/// Whole pages, `bytes` of them, into the room that was reserved. What an external area has beyond that is not looked
/// at: it may be a whole disk for a small volume. Its last page may be cut off by the end of the device: zeroes follow.
fn read_bitmap(mut bitmap: Vec<u8>, backing: &Backing, layout: &Layout, bytes: u64) -> Result<Vec<u8>, StoreError> {
    let on_disk = bytes.min(layout.bitmap_bytes) as usize;
    let mut piece = Aligned::zeroed(READ_BYTES);
    let unit = backing.geometry().logical_block_bytes as usize;
    while bitmap.len() < on_disk {
        let want = READ_BYTES.min(on_disk - bitmap.len());
        // The area ends on a sector; a disk of larger blocks reads whole blocks, as far as there are any.
        let whole = want.next_multiple_of(unit);
        let offset = layout.bitmap + bitmap.len() as u64;
        read_exact_at(backing, offset, &mut piece[..whole])?;
        bitmap.extend_from_slice(&piece[..want]);
    }
    bitmap.resize(bytes as usize, 0);
    Ok(bitmap)
}

fn refuse_memory(object: &str, bytes: u64, source: &TryReserveError) -> AttachRefusal {
    AttachRefusal {
        code: 122,
        rule: "ERR_NOMEM",
        message: format!("{object}: no memory for its bitmap of {bytes} bytes: {source}"),
        next_step: "add memory, or write new metadata with fewer peers".into(),
    }
}

fn refuse_store(object: &str, error: &StoreError, device: Device) -> AttachRefusal {
    let data = device == Device::Data;
    let number = |of_data, of_metadata| if data { of_data } else { of_metadata };
    let rule = |of_data, of_metadata| if data { of_data } else { of_metadata };
    let (code, rule, next_step): (i32, &'static str, &str) = match error.kind {
        StoreErrorKind::InUse => (
            number(114, 115),
            rule("ERR_BDCLAIM_DISK", "ERR_BDCLAIM_MD_DISK"),
            "unmount it, or stop whoever uses it, then attach again",
        ),
        StoreErrorKind::NotADisk => (
            number(107, 108),
            rule("ERR_DISK_NOT_BDEV", "ERR_MD_NOT_BDEV"),
            "give a block device or a regular file in the configuration",
        ),
        StoreErrorKind::NotFound => {
            (number(104, 105), rule("ERR_OPEN_DISK", "ERR_OPEN_MD_DISK"), "check the path in the configuration")
        }
        StoreErrorKind::PermissionDenied | StoreErrorKind::ReadOnly => {
            (number(104, 105), rule("ERR_OPEN_DISK", "ERR_OPEN_MD_DISK"), "give replicad the right to write to it")
        }
        _ if error.operation == store::Operation::Read => {
            (118, "ERR_IO_MD_DISK", "check the device; its metadata cannot be read")
        }
        _ => (number(104, 105), rule("ERR_OPEN_DISK", "ERR_OPEN_MD_DISK"), "check the device"),
    };
    AttachRefusal { code, rule, message: format!("{object}: {error}"), next_step: next_step.into() }
}

fn refuse_format(object: &str, path: &Path, error: &FormatError) -> AttachRefusal {
    AttachRefusal {
        code: 119,
        rule: "ERR_MD_INVALID",
        message: format!("{object}: No valid meta-data signature found on {}: {error}", path.display()),
        next_step: format!("for a new disk: `replicactl create-md {object}`; for one that was in use: check the path"),
    }
}
