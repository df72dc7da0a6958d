//! From a configured disk to one the engine can attach: open it for ourselves, read and check its metadata.
//!
//! Blocking; runs on a thread of the control plane, so that reading gigabytes of bitmap does not stop a resource.
//! Every refusal names the file, the cause and what to do.

use std::path::Path;

use config::{Disk, MetaDisk, Volume};
use engine::AttachedDisk;
use metadata::layout::{Placement, superblock_offset};
use metadata::{BLOCK_BYTES, Block, FormatError, Layout, Superblock};
use store::sync::{Aligned, read_exact_at};
use store::{Backing, OpenOptions, StoreError, StoreErrorKind};
use types::BlockLimits;

/// Largest read or write that is offered to frontends. Bytes; DRBD's largest bio.
const IO_BYTES_MAX: u32 = store::buffers::PAYLOAD_BYTES_MAX as u32;
/// Largest discard offered. Bytes; what feature WSAME allows in one packet.
const DISCARD_BYTES_MAX: u32 = 128 << 20;
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
    let bitmap = read_bitmap(backing, &layout).map_err(io)?;
    Ok(AttachedDisk {
        superblock,
        bitmap,
        al_blocks,
        data_bytes: if metadata.is_none() { layout.usable_bytes } else { data.size_bytes() },
        limits: limits_of(data),
        external_metadata: metadata.is_some(),
        layout,
    })
}

fn read_block(backing: &Backing, offset: u64) -> Result<Block, StoreError> {
    let mut block = Aligned::zeroed(BLOCK_BYTES);
    read_exact_at(backing, offset, &mut block)?;
    Ok(Block::try_from(&block[..]).expect("one block was allocated"))
}

fn read_bitmap(backing: &Backing, layout: &Layout) -> Result<Vec<u8>, StoreError> {
    let len = usize::try_from(layout.bitmap_bytes).expect("a bitmap is at most 1 TiB and usize has 64 bits");
    let mut bitmap = Vec::with_capacity(len);
    let mut piece = Aligned::zeroed(READ_BYTES);
    let unit = backing.geometry().logical_block_bytes as usize;
    while bitmap.len() < len {
        let want = READ_BYTES.min(len - bitmap.len());
        // The area ends on a sector; a disk of larger blocks reads whole blocks, as far as there are any.
        let whole = want.next_multiple_of(unit);
        let offset = layout.bitmap + bitmap.len() as u64;
        read_exact_at(backing, offset, &mut piece[..whole])?;
        bitmap.extend_from_slice(&piece[..want]);
    }
    Ok(bitmap)
}

fn limits_of(data: &Backing) -> BlockLimits {
    let geometry = data.geometry();
    BlockLimits {
        logical_block_bytes: geometry.logical_block_bytes,
        physical_block_bytes: geometry.physical_block_bytes,
        io_bytes_max: IO_BYTES_MAX,
        discard: geometry.discard,
        discard_bytes_max: u32::try_from(geometry.discard_bytes_max)
            .map_or(DISCARD_BYTES_MAX, |max| if geometry.discard { max.min(DISCARD_BYTES_MAX) } else { 0 }),
        discard_granularity_bytes: geometry.discard_granularity_bytes,
        volatile_cache: geometry.volatile_cache,
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
