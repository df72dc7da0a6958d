//! The activity log of DRBD 8.3: a ring of sectors; docs/ondisk.md "v08".

use alloc::string::ToString;
use alloc::vec::Vec;

use types::ExtentIndex;

use crate::BLOCK_BYTES;
use crate::activity_log::{Recovery, SlotTable};
use crate::bytes::u32_at;

const SECTOR_BYTES: usize = 512;
const MAGIC_83: u32 = 0x8374_0267;
/// Pairs of slot and extent: the change, then slots as they were before it.
const PAIRS_83: usize = 62;
const PAIRS_AT_83: usize = 8;
const XOR_AT_83: usize = 0x1F8;
const NONE_83: u32 = u32::MAX;

/// One sector of the log: its number and its pairs, the change first.
type Transaction83 = (u32, Vec<(u32, u32)>);

/// A ring of sectors; as there are always more sectors than the table needs, a torn newest one loses nothing.
pub fn recover_83(log: &[u8], al_slots: u32) -> Recovery {
    let context = PAIRS_83 as u32 - 1;
    let len = (1 + al_slots.div_ceil(context) as usize).min(log.len() / SECTOR_BYTES);
    let sectors: Vec<&[u8]> = log.chunks_exact(SECTOR_BYTES).take(len).collect();
    let decoded: Vec<Option<Transaction83>> = sectors.iter().map(|sector| decode_83(sector)).collect();
    let mut order: Vec<usize> = (0..len).filter(|i| decoded[*i].is_some()).collect();
    let number = |i: usize| decoded[i].as_ref().map_or(0, |(number, _)| *number);
    let base = order.first().map_or(0, |first| number(*first));
    order.sort_by_key(|i| number(*i).wrapping_sub(base) as i32);
    let next = order.last().map(|newest| (newest + 1) % len);
    let written = |i: &usize| sectors[*i].iter().any(|byte| *byte != 0);
    if (0..len).filter(written).any(|i| decoded[i].is_none() && Some(i) != next) {
        return Recovery::MarkEverything { reason: "a sector of the activity log is damaged".to_string() };
    }
    if order.is_empty() {
        return Recovery::Nothing;
    }
    let mut table = SlotTable::default();
    for (_, pairs) in order.iter().filter_map(|i| decoded[*i].as_ref()) {
        let (change, context) = pairs.split_first().expect("the change is always there");
        for (slot, extent) in context.iter().chain([change]).filter(|(slot, _)| *slot != NONE_83) {
            table.put(*slot as usize, Some(*extent).filter(|e| *e != NONE_83).map(ExtentIndex));
        }
    }
    Recovery::Hot { extents: table.hot(), damaged: 0 }
}

fn decode_83(sector: &[u8]) -> Option<Transaction83> {
    let mut block = [0; BLOCK_BYTES];
    block[..SECTOR_BYTES].copy_from_slice(sector);
    let word = |at| u32_at(&block, at);
    let pair = |i: usize| (word(PAIRS_AT_83 + i * 8), word(PAIRS_AT_83 + i * 8 + 4));
    let pairs: Vec<(u32, u32)> = (0..PAIRS_83).map(pair).collect();
    let xor = pairs.iter().fold(0, |xor, (_, extent)| xor ^ extent);
    (word(0) == MAGIC_83 && word(XOR_AT_83) == xor).then(|| (word(4), pairs))
}
