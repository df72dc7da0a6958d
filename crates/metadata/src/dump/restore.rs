//! `restore-md`, second half: a [`Dump`] fitted to a device.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::{Dump, DumpV08, Run, slot_words};
use crate::error::{FormatError, Region};
use crate::layout::{Geometry, Layout, Placement};
use crate::superblock::{AL_SLOTS_FRESH, DeviceFlags, Superblock, check};
use crate::v08::{MAGIC_V08, SuperblockV08};

/// What goes to the device: the bitmap, every block of the ring as [`crate::activity_log::INITIALISED`] (drbdmeta leaves
/// the ring as it is), a flush, and the superblock last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    pub superblock: Superblock,
    pub layout: Layout,
    /// Bitmap of the agreed size, whole pages, from `layout.bitmap` on. What lies behind it says nothing.
    pub bitmap: Vec<u8>,
}

/// Refuses a dump that does not fit the device, breaks a rule of [`check`], or whose lists are not complete: drbdmeta
/// would fill what is missing with leftovers.
pub fn restore(dump: &Dump, placement: Placement, meta_device_bytes: u64) -> Result<Restored, FormatError> {
    let layout = Layout::compute(placement, meta_device_bytes, dump.geometry)?;
    let superblock = Superblock {
        last_agreed_bytes: dump.last_agreed_bytes,
        current_uuid: dump.current_uuid,
        members: dump.members.unwrap_or(0),
        device_uuid: dump.device_uuid,
        // The ring will be initialised.
        flags: dump.flags.with(DeviceFlags::AL_CLEAN),
        peer_max_io_bytes: dump.peer_max_io_bytes,
        node_id: dump.node_id,
        peers: dump.peers,
        history: dump.history,
        ..Superblock::fresh(dump.geometry, &layout)
    };
    check(&superblock, placement, meta_device_bytes)?;
    let bitmap = image(dump.geometry, dump.last_agreed_bytes, &layout, &dump.bitmaps)?;
    Ok(Restored { superblock, layout, bitmap })
}

/// As [`Restored`], for metadata of DRBD 8.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoredV08 {
    pub superblock: SuperblockV08,
    pub layout: Layout,
    pub bitmap: Vec<u8>,
}

/// As [`restore`], for a dump of DRBD 8's metadata.
pub fn restore_v08(dump: &DumpV08, placement: Placement, meta_device_bytes: u64) -> Result<RestoredV08, FormatError> {
    let layout = Layout::compute(placement, meta_device_bytes, dump.geometry)?;
    let superblock = SuperblockV08 {
        magic: MAGIC_V08,
        last_agreed_sectors: dump.last_agreed_bytes / types::range::SECTOR_BYTES,
        current_uuid: dump.current_uuid,
        bitmap_uuid: dump.bitmap_uuid,
        history: dump.history,
        device_uuid: dump.device_uuid,
        flags: dump.flags.with(DeviceFlags::AL_CLEAN),
        md_size_sectors: layout.md_size_sectors,
        al_offset_sectors: layout.al_offset_sectors,
        al_slots: AL_SLOTS_FRESH,
        bm_offset_sectors: layout.bm_offset_sectors,
        bitmap_block_bytes: dump.geometry.bitmap_block_bytes,
        peer_max_io_bytes: dump.peer_max_io_bytes,
        al_stripes: dump.geometry.al_stripes,
        al_stripe_4k: dump.geometry.al_stripe_4k,
    };
    superblock.check(placement, meta_device_bytes)?;
    let bitmap = image(dump.geometry, dump.last_agreed_bytes, &layout, core::slice::from_ref(&dump.bitmap))?;
    Ok(RestoredV08 { superblock, layout, bitmap })
}

/// The bitmap of the agreed size, which was checked against the device. `lists`: one per slot, each complete.
fn image(
    geometry: Geometry,
    last_agreed_bytes: u64,
    layout: &Layout,
    lists: &[Vec<Run>],
) -> Result<Vec<u8>, FormatError> {
    let bytes = geometry.bitmap_bytes(last_agreed_bytes).expect("the agreed size fits the device");
    let max_peers = geometry.max_peers;
    assert_eq!(lists.len(), usize::from(max_peers), "bitmap lists of a dump");
    for (slot, runs) in (0..max_peers).zip(lists) {
        let need = slot_words(bytes, max_peers, slot) / 2;
        let found = runs.iter().fold(0u64, |sum, run| sum.saturating_add(run.count));
        if found != need {
            return Err(wrong_length(layout, slot, found, need));
        }
    }
    let len = usize::try_from(bytes).map_err(|_| wrong_length(layout, 0, bytes, 0))?;
    let mut bitmap = vec![0; len];
    for (slot, runs) in (0..max_peers).zip(lists) {
        fill(&mut bitmap, max_peers.into(), slot.into(), runs);
    }
    Ok(bitmap)
}

fn wrong_length(layout: &Layout, slot: u8, found: u64, need: u64) -> FormatError {
    let rule: String = format!("slot {slot} must have exactly {need} values for the agreed size of the dump");
    FormatError::new(Region::Bitmap, "number of values", layout.bitmap, found.to_string(), rule)
}

fn fill(image: &mut [u8], peers: usize, slot: usize, runs: &[Run]) {
    let mut word = slot;
    for run in runs {
        let count = run.count as usize;
        if run.value == 0 {
            word += count * 2 * peers;
            continue;
        }
        for _ in 0..count {
            for half in [run.value as u32, (run.value >> 32) as u32] {
                image[word * 4..word * 4 + 4].copy_from_slice(&half.to_le_bytes());
                word += peers;
            }
        }
    }
}
