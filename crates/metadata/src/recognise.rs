//! What is on a device already, so that `create-md` does not destroy it without being forced.
//!
//! Signatures only: nothing here says that the data is intact. A file system inside a volume with internal metadata
//! starts at byte 0 like any other, so one device may hold several things.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::bytes::u32_at;
use crate::layout::{Placement, superblock_offset};
use crate::superblock::MAGIC_V09;
use crate::v08::{MAGIC_V08, MAGIC_V08_UNCLEAN, SuperblockV08};
use crate::{BLOCK_BYTES, Block};

const MAGIC_V07: u32 = 0x8374_026A;
/// DRBD 0.7 kept the last 128 MiB for itself and its superblock at their start.
const V07_BYTES: u64 = 128 << 20;

/// How DRBD's metadata was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    V07,
    /// `unclean`: the activity log has to be applied before anything else.
    V08 {
        unclean: bool,
    },
    V09,
}

/// Something on the device that creating metadata may destroy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// `offset`: of the superblock.
    Drbd { version: Version, offset: u64 },
    /// `offset`: of the signature.
    Other { name: &'static str, offset: u64 },
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, offset) = match self {
            Found::Drbd { version: Version::V07, offset } => ("DRBD metadata v07", offset),
            Found::Drbd { version: Version::V08 { unclean: false }, offset } => ("DRBD metadata v08", offset),
            Found::Drbd { version: Version::V08 { unclean: true }, offset } => {
                ("DRBD metadata v08 whose activity log is not applied", offset)
            }
            Found::Drbd { version: Version::V09, offset } => ("DRBD metadata v09", offset),
            Found::Other { name, offset } => (*name, offset),
        };
        write!(f, "{name} (signature at byte {offset})")
    }
}

/// Looks where metadata of each kind would be (`placement` adds the area of an index) and for signatures of what people
/// keep on disks. `read` fills the buffer from that offset, always inside the device. The order is: DRBD, others.
pub fn recognise<E>(
    placement: Placement,
    device_bytes: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<Found>, E> {
    let mut found = Vec::new();
    for offset in superblock_offsets(placement, device_bytes) {
        let mut block = [0; BLOCK_BYTES];
        read(offset, &mut block)?;
        found.extend(drbd(&block).map(|version| Found::Drbd { version, offset }));
    }
    let mut head = vec![0; HEAD_BYTES];
    let head_len = device_bytes.min(HEAD_BYTES as u64) as usize;
    read(0, &mut head[..head_len])?;
    found.extend(in_head(&head));
    for (name, offset, bytes) in at_end(device_bytes) {
        let mut buffer = [0; 8];
        let buffer = &mut buffer[..bytes.len()];
        read(offset, buffer)?;
        if buffer == bytes {
            found.push(Found::Other { name, offset });
        }
    }
    Ok(found)
}

fn superblock_offsets(placement: Placement, device_bytes: u64) -> Vec<u64> {
    let places = [Placement::Internal, Placement::External, placement];
    let mut offsets: Vec<u64> = places.iter().filter_map(|p| superblock_offset(*p, device_bytes).ok()).collect();
    offsets.extend((device_bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64).checked_sub(V07_BYTES));
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}

fn drbd(block: &Block) -> Option<Version> {
    match u32_at(block, crate::superblock::at::MAGIC) {
        MAGIC_V07 => Some(Version::V07),
        MAGIC_V08 | MAGIC_V08_UNCLEAN => {
            let unclean = SuperblockV08::decode(block, 0).is_ok_and(|sb| sb.unclean());
            Some(Version::V08 { unclean })
        }
        MAGIC_V09 => Some(Version::V09),
        _ => None,
    }
}

/// Covers the farthest signature below, btrfs.
const HEAD_BYTES: usize = 68 << 10;

/// Name, offset, bytes. Each one alone identifies its owner.
const SIGNATURES: &[(&str, usize, &[u8])] = &[
    ("XFS file system", 0, b"XFSB"),
    ("btrfs file system", 0x10040, b"_BHRfS_M"),
    ("F2FS file system", 0x400, &[0x10, 0x20, 0xF5, 0xF2]),
    ("NTFS file system", 3, b"NTFS    "),
    ("exFAT file system", 3, b"EXFAT   "),
    ("FAT file system", 0x36, b"FAT12   "),
    ("FAT file system", 0x36, b"FAT16   "),
    ("FAT file system", 0x52, b"FAT32   "),
    ("ISO 9660 file system", 0x8001, b"CD001"),
    ("LUKS encrypted volume", 0, b"LUKS\xBA\xBE"),
    ("LVM2 physical volume", 0x018, b"LVM2 001"),
    ("LVM2 physical volume", 0x218, b"LVM2 001"),
    ("LVM2 physical volume", 0x418, b"LVM2 001"),
    ("LVM2 physical volume", 0x618, b"LVM2 001"),
    // At the end of the first page, whose size depends on the machine.
    ("swap space", 0x1000 - 10, b"SWAPSPACE2"),
    ("swap space", 0x2000 - 10, b"SWAPSPACE2"),
    ("swap space", 0x4000 - 10, b"SWAPSPACE2"),
    ("swap space", 0x10000 - 10, b"SWAPSPACE2"),
    ("swap space", 0x1000 - 10, b"SWAP-SPACE"),
    ("GPT partition table", 512, b"EFI PART"),
    ("GPT partition table", 4096, b"EFI PART"),
    ("Linux RAID member", 0, &MD_MAGIC),
    ("Linux RAID member", 4096, &MD_MAGIC),
];
const MD_MAGIC: [u8; 4] = 0xA92B_4EFC_u32.to_le_bytes();

fn in_head(head: &[u8]) -> Vec<Found> {
    let has = |at: usize, bytes: &[u8]| head[at..].starts_with(bytes);
    let known = SIGNATURES.iter().filter(|(_, at, bytes)| has(*at, bytes));
    let mut found: Vec<Found> = known.map(|(name, at, _)| Found::Other { name, offset: *at as u64 }).collect();
    if has(0x438, &[0x53, 0xEF]) {
        found.push(Found::Other { name: ext_name(head), offset: 0x438 });
    }
    // Boot sectors of file systems end in the same two bytes.
    if found.is_empty() && has(510, &[0x55, 0xAA]) && has_partitions(head) {
        found.push(Found::Other { name: "MBR partition table", offset: 510 });
    }
    found
}

/// The generations share one magic; journal and extents tell them apart.
fn ext_name(head: &[u8]) -> &'static str {
    const HAS_JOURNAL: u8 = 0x04;
    const EXTENTS: u8 = 0x40;
    if head[0x460] & EXTENTS != 0 {
        return "ext4 file system";
    }
    if head[0x45C] & HAS_JOURNAL != 0 { "ext3 file system" } else { "ext2 file system" }
}

/// What [`file_system_bytes`] looks at. Bytes from the start of the device.
pub const FILE_SYSTEM_HEAD_BYTES: usize = 4096;

/// How many bytes from the start of the device the file system there takes: ext2 to ext4 and XFS; `None` for others.
pub fn file_system_bytes(head: &[u8; FILE_SYSTEM_HEAD_BYTES]) -> Option<u64> {
    let le = |at: usize| u64::from(u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    let be = |at: usize| u64::from(u32_at(head, at));
    if head.starts_with(b"XFSB") {
        let (block_bytes, blocks) = (be(4), be(8) << 32 | be(12));
        return blocks.checked_mul(block_bytes);
    }
    if head[0x438..0x43A] != [0x53, 0xEF] {
        return None;
    }
    const INCOMPAT_64BIT: u64 = 0x80;
    let high = if le(0x460) & INCOMPAT_64BIT != 0 { le(0x550) } else { 0 };
    let block_bytes = 1024_u64.checked_shl(le(0x418) as u32)?;
    (high << 32 | le(0x404)).checked_mul(block_bytes)
}

fn has_partitions(head: &[u8]) -> bool {
    let mut entries = head[446..510].chunks_exact(16);
    let plausible = entries.clone().all(|entry| entry[0] == 0 || entry[0] == 0x80);
    plausible && entries.any(|entry| entry[4] != 0)
}

/// Signatures that lie relative to the end of the device, at most 8 bytes each.
fn at_end(device_bytes: u64) -> Vec<(&'static str, u64, &'static [u8])> {
    let raid_1_0 = (device_bytes / 512).checked_sub(16).map(|sector| sector / 8 * 8 * 512);
    let raid_0_90 = (device_bytes / 65536).checked_sub(1).map(|chunk| chunk * 65536);
    let gpt_backup = (device_bytes / 512).checked_sub(1).map(|sector| sector * 512);
    let mut places: Vec<(&'static str, u64, &'static [u8])> = Vec::new();
    places.extend(raid_1_0.map(|at| ("Linux RAID member", at, &MD_MAGIC[..])));
    places.extend(raid_0_90.filter(|at| *at > 0).map(|at| ("Linux RAID member", at, &MD_MAGIC[..])));
    places.extend(gpt_backup.map(|at| ("backup GPT partition table", at, &b"EFI PART"[..])));
    places
}
