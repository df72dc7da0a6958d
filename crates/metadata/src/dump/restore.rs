//! `restore-md`, second half: a [`Dump`] fitted to a device.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::{Dump, Run, slot_words};
use crate::error::{FormatError, Region};
use crate::layout::{Layout, Placement};
use crate::superblock::{DeviceFlags, Superblock, check};

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
    let bytes = dump.geometry.bitmap_bytes(dump.last_agreed_bytes).expect("the agreed size fits the device");
    let max_peers = dump.geometry.max_peers;
    assert_eq!(dump.bitmaps.len(), usize::from(max_peers), "bitmap lists of a dump");
    for (slot, runs) in (0..max_peers).zip(&dump.bitmaps) {
        let need = slot_words(bytes, max_peers, slot) / 2;
        let found = runs.iter().fold(0u64, |sum, run| sum.saturating_add(run.count));
        if found != need {
            return Err(wrong_length(&layout, slot, found, need));
        }
    }
    let len = usize::try_from(bytes).map_err(|_| wrong_length(&layout, 0, bytes, 0))?;
    let mut bitmap = vec![0; len];
    for (slot, runs) in (0..max_peers).zip(&dump.bitmaps) {
        fill(&mut bitmap, max_peers.into(), slot.into(), runs);
    }
    Ok(Restored { superblock, layout, bitmap })
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
