//! The activity log: a ring of 4 KiB transactions that says which 4 MiB extents may have writes in flight.
//!
//! A transaction carries up to 64 changes of the writer's slot table and a window of 919 slots of the table as it was
//! *before* these changes; the window moves on by 919 per transaction, so that the ring always holds the whole table
//! (`al_extents_max`). Recovery replays the ring from the oldest to the newest transaction, window first, then
//! changes. `docs/ondisk.md` "Activity log" has the recovery table.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crc::{Crc, Table};
use types::ExtentIndex;

use crate::bitmap::Bitmap;
use crate::bytes::{put_u16, put_u32, u16_at, u32_at};
use crate::superblock::{DeviceFlags, Superblock};
use crate::{BLOCK_BYTES, Block};

pub const MAGIC: u32 = 0x69CB_65A2;
/// First word of the area when the writer had persistent memory: a bare slot table follows.
pub const MAGIC_PMEM: u32 = 0x6AA6_67A6;
/// Changes that one transaction can carry.
pub const UPDATES_MAX: usize = 64;
/// Slots that one transaction's context can show.
pub const CONTEXT_MAX: usize = 919;
/// Slot numbers from here on have no meaning.
pub const SLOTS_MAX: u32 = 65534;

const TYPE_UPDATE: u16 = 0;
const TYPE_INITIALISED: u16 = 0xFFFF;
const FREE: u32 = u32::MAX;
const UNUSED_SLOT: u16 = u16::MAX;

mod at {
    pub const MAGIC: usize = 0x000;
    pub const NUMBER: usize = 0x004;
    pub const CRC: usize = 0x008;
    pub const TYPE: usize = 0x00C;
    pub const UPDATES: usize = 0x00E;
    pub const CONTEXT_SIZE: usize = 0x010;
    pub const CONTEXT_FIRST: usize = 0x012;
    pub const UPDATE_SLOTS: usize = 0x024;
    pub const UPDATE_EXTENTS: usize = 0x0A4;
    pub const CONTEXT: usize = 0x1A4;
}
const _: () = assert!(at::CONTEXT + CONTEXT_MAX * 4 == BLOCK_BYTES);

/// Offset, width as in the document, name.
pub const FIELDS: &[(usize, &str, &str)] = &[
    (at::MAGIC, "u32", "magic"),
    (at::NUMBER, "u32", "number"),
    (at::CRC, "u32", "crc"),
    (at::TYPE, "u16", "type"),
    (at::UPDATES, "u16", "updates"),
    (at::CONTEXT_SIZE, "u16", "context size"),
    (at::CONTEXT_FIRST, "u16", "context first"),
    (at::UPDATE_SLOTS, "64 x u16", "update slots"),
    (at::UPDATE_EXTENTS, "64 x u32", "update extents"),
    (at::CONTEXT, "919 x u32", "context"),
];

/// CRC-32C as the Linux kernel's shash gives it to DRBD: neither seed nor result inverted.
const CRC32C_RAW: crc::Algorithm<u32> = crc::Algorithm {
    width: 32,
    poly: 0x1EDC_6F41,
    init: 0,
    refin: true,
    refout: true,
    xorout: 0,
    check: 0x58E3_FA20,
    residue: 0,
};
static CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC32C_RAW);

/// The block that `create-md` and `apply-al` fill the ring with. Unlike a transaction its arrays are zero.
pub const INITIALISED: Block = {
    let mut block = [0; BLOCK_BYTES];
    let words = [(at::MAGIC, MAGIC), (at::CRC, 0x709C_C651), (at::TYPE, 0xFFFF_0000)];
    let mut i = 0;
    while i < words.len() {
        let bytes = words[i].1.to_be_bytes();
        let mut byte = 0;
        while byte < 4 {
            block[words[i].0 + byte] = bytes[byte];
            byte += 1;
        }
        i += 1;
    }
    block
};

/// One transaction. `None` as an extent = the slot is free.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AlTransaction {
    /// Counts on from any value, wraps at 2^32; gives the position in the ring.
    pub number: u32,
    /// Slots of the writer's table ("al-extents").
    pub slot_count: u16,
    /// First slot that `context` shows.
    pub context_first: u16,
    /// At most 919; what slots `context_first..` held before the updates.
    pub context: Vec<Option<ExtentIndex>>,
    /// At most 64: this slot now holds that extent.
    pub updates: Vec<(u16, Option<ExtentIndex>)>,
}

impl AlTransaction {
    /// To be written as one 4 KiB write with preflush and FUA, before the data it covers.
    pub fn encode(&self) -> Block {
        assert!(self.updates.len() <= UPDATES_MAX, "{} updates in one transaction", self.updates.len());
        assert!(self.context.len() <= CONTEXT_MAX, "{} slots in one context", self.context.len());
        let mut block = [0; BLOCK_BYTES];
        put_u32(&mut block, at::MAGIC, MAGIC);
        put_u32(&mut block, at::NUMBER, self.number);
        put_u16(&mut block, at::TYPE, TYPE_UPDATE);
        put_u16(&mut block, at::UPDATES, self.updates.len() as u16);
        put_u16(&mut block, at::CONTEXT_SIZE, self.slot_count);
        put_u16(&mut block, at::CONTEXT_FIRST, self.context_first);
        block[at::UPDATE_SLOTS..].fill(0xFF);
        for (i, (slot, extent)) in self.updates.iter().enumerate() {
            put_u16(&mut block, at::UPDATE_SLOTS + i * 2, *slot);
            put_u32(&mut block, at::UPDATE_EXTENTS + i * 4, extent.map_or(FREE, |e| e.0));
        }
        for (i, extent) in self.context.iter().enumerate() {
            put_u32(&mut block, at::CONTEXT + i * 4, extent.map_or(FREE, |e| e.0));
        }
        let crc = checksum(&block);
        put_u32(&mut block, at::CRC, crc);
        block
    }

    /// Meaning of a block whose checksum fits. Entries beyond the declared counts count if they say something, as
    /// drbdmeta takes them.
    fn decode_checked(block: &Block) -> AlTransaction {
        let extent = |at| Some(u32_at(block, at)).filter(|e| *e != FREE).map(ExtentIndex);
        let slot_count = u16_at(block, at::CONTEXT_SIZE);
        let context_first = u16_at(block, at::CONTEXT_FIRST);
        let context: Vec<_> = (0..CONTEXT_MAX).map(|i| extent(at::CONTEXT + i * 4)).collect();
        let declared = usize::from(slot_count.saturating_sub(context_first)).min(CONTEXT_MAX);
        let used = context.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let updates = (0..UPDATES_MAX).filter_map(|i| {
            let slot = u16_at(block, at::UPDATE_SLOTS + i * 2);
            (slot != UNUSED_SLOT).then(|| (slot, extent(at::UPDATE_EXTENTS + i * 4)))
        });
        AlTransaction {
            number: u32_at(block, at::NUMBER),
            slot_count,
            context_first,
            updates: updates.collect(),
            context: { context }.drain(..declared.max(used)).collect(),
        }
    }
}

/// One block of the ring.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AlBlock {
    Initialised,
    Transaction(AlTransaction),
    /// Magic or checksum do not fit: torn, damaged or never written.
    Invalid,
}

impl AlBlock {
    pub fn decode(block: &Block) -> AlBlock {
        if u32_at(block, at::MAGIC) != MAGIC || u32_at(block, at::CRC) != checksum(block) {
            return AlBlock::Invalid;
        }
        if u16_at(block, at::TYPE) == TYPE_INITIALISED {
            return AlBlock::Initialised;
        }
        // An unknown type counts as an update, as in drbdmeta: its extents are the safe answer.
        AlBlock::Transaction(AlTransaction::decode_checked(block))
    }
}

fn checksum(block: &Block) -> u32 {
    let mut digest = CRC.digest();
    digest.update(&block[..at::CRC]);
    digest.update(&[0; 4]);
    digest.update(&block[at::CRC + 4..]);
    digest.finalize()
}

/// Block of the ring that holds transaction `number`. Neighbours in time lie in different stripes.
pub fn block_index(number: u32, stripes: u32, stripe_4k: u32) -> u32 {
    let blocks = stripes.checked_mul(stripe_4k).expect("checked with the superblock");
    assert!(blocks > 0, "activity log of {stripes} stripes of {stripe_4k} blocks");
    ring_block(number % blocks, stripes, stripe_4k)
}

fn ring_block(position: u32, stripes: u32, stripe_4k: u32) -> u32 {
    position % stripes * stripe_4k + position / stripes
}

/// Most slots that a ring of this many blocks supports: any `ring_blocks - 1` consecutive transactions then show the
/// whole table, so that losing the newest, torn one loses nothing.
pub const fn al_extents_max(ring_blocks: u32) -> u32 {
    if ring_blocks > 72 { SLOTS_MAX } else { ring_blocks.saturating_sub(1) * CONTEXT_MAX as u32 }
}

/// What the log says after a crash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recovery {
    /// The primary indicator is not set: nothing was written since the bitmap was complete; the content is dropped.
    Clean,
    /// The whole ring is as initialised: nothing is hot.
    Nothing,
    /// The very first transaction was torn, so its data was never submitted: nothing is hot.
    TornFirst { block: u32 },
    /// Ascending. `damaged` blocks were left out without losing an extent.
    Hot { extents: Vec<ExtentIndex>, damaged: u32 },
    /// The log can't be trusted: every block may differ from every peer.
    MarkEverything { reason: String },
}

impl Recovery {
    /// The log holds something else than initialised blocks and must be initialised before the next attach.
    pub const fn ring_needs_initialising(&self) -> bool {
        !matches!(self, Recovery::Nothing)
    }
}

/// Reads the log. `ring` is the whole area in order of its blocks, `stripes * stripe_4k` of them (asserted);
/// `al_slots` comes from the superblock (only the persistent-memory layout needs it).
pub fn recover(ring: &[Block], stripes: u32, stripe_4k: u32, al_slots: u32, primary_indicator: bool) -> Recovery {
    let blocks = u64::from(stripes) * u64::from(stripe_4k);
    assert!(blocks > 0 && ring.len() as u64 == blocks, "{} blocks for a ring of {blocks}", ring.len());
    if !primary_indicator {
        return Recovery::Clean;
    }
    if u32_at(&ring[0], at::MAGIC) == MAGIC_PMEM {
        return recover_pmem(ring, al_slots);
    }
    let decoded: Vec<AlBlock> = ring.iter().map(AlBlock::decode).collect();
    recover_decoded(&decoded.iter().collect::<Vec<_>>(), stripes, stripe_4k)
}

/// The same for a ring whose blocks are decoded already and whose superblock has the primary indicator.
pub fn recover_decoded(ring: &[&AlBlock], stripes: u32, stripe_4k: u32) -> Recovery {
    let blocks = u64::from(stripes) * u64::from(stripe_4k);
    assert!(blocks > 0 && ring.len() as u64 == blocks, "{} blocks for a ring of {blocks}", ring.len());
    let by_position = |k: u32| ring[ring_block(k, stripes, stripe_4k) as usize];
    let ring: Vec<&AlBlock> = (0..ring.len() as u32).map(by_position).collect();
    let damaged: Vec<usize> = (0..ring.len()).filter(|k| *ring[*k] == AlBlock::Invalid).collect();
    let any_transaction = ring.iter().any(|block| matches!(block, AlBlock::Transaction(_)));
    match (any_transaction, damaged.as_slice()) {
        (false, []) => Recovery::Nothing,
        (false, [one]) => Recovery::TornFirst { block: ring_block(*one as u32, stripes, stripe_4k) },
        (_, [_, _, ..]) => Recovery::MarkEverything {
            reason: format!("{} of {blocks} activity-log blocks are damaged or were never written", damaged.len()),
        },
        (true, damaged) => replay(&ring, damaged.first().copied()),
    }
}

/// At least one transaction, at most one damaged block.
fn replay(ring: &[&AlBlock], damaged: Option<usize>) -> Recovery {
    let transactions: Vec<(usize, &AlTransaction)> = ring
        .iter()
        .enumerate()
        .filter_map(|(k, block)| if let AlBlock::Transaction(t) = block { Some((k, t)) } else { None })
        .collect();
    // Numbers are compared as signed differences to any one of them, so wrapping at 2^32 keeps the order.
    let base = transactions[0].1.number;
    let age = |t: &&(usize, &AlTransaction)| t.1.number.wrapping_sub(base) as i32;
    let oldest = transactions.iter().min_by_key(age).expect("not empty").0;
    let newest = transactions.iter().max_by_key(age).expect("not empty").0;
    let len = ring.len();
    let steps = (newest + len - oldest) % len;
    let mut table = SlotTable::default();
    for step in 0..=steps {
        match ring[(oldest + step) % len] {
            AlBlock::Transaction(t) => table.apply(t),
            AlBlock::Invalid => table.lost_one(),
            AlBlock::Initialised => {}
        }
    }
    if let Some(slot) = table.first_unknown() {
        let reason =
            format!("an older activity-log transaction is damaged and no later one shows slot {slot}: it may be lost");
        return Recovery::MarkEverything { reason };
    }
    Recovery::Hot { extents: table.hot(), damaged: damaged.is_some().into() }
}

/// The writer's table as far as it is known.
#[derive(Default)]
pub(crate) struct SlotTable {
    extents: Vec<Option<ExtentIndex>>,
    /// Slots seen since a transaction was lost; `None` while none was.
    seen: Option<BTreeSet<usize>>,
    slot_count: usize,
}

impl SlotTable {
    fn apply(&mut self, t: &AlTransaction) {
        self.slot_count = usize::from(t.slot_count);
        for (i, extent) in t.context.iter().enumerate() {
            self.put(usize::from(t.context_first) + i, *extent);
        }
        for (slot, extent) in &t.updates {
            self.put(usize::from(*slot), *extent);
        }
    }
    pub(crate) fn put(&mut self, slot: usize, extent: Option<ExtentIndex>) {
        if slot >= SLOTS_MAX as usize {
            return;
        }
        if slot >= self.extents.len() {
            self.extents.resize(slot + 1, None);
        }
        self.extents[slot] = extent;
        if let Some(seen) = &mut self.seen {
            seen.insert(slot);
        }
    }
    fn lost_one(&mut self) {
        self.seen = Some(BTreeSet::new());
    }
    /// A slot that the lost transaction may have changed and that nothing later shows.
    fn first_unknown(&self) -> Option<usize> {
        let seen = self.seen.as_ref()?;
        (0..self.slot_count.min(SLOTS_MAX as usize)).find(|slot| !seen.contains(slot))
    }
    pub(crate) fn hot(&self) -> Vec<ExtentIndex> {
        self.extents.iter().flatten().copied().collect::<BTreeSet<_>>().into_iter().collect()
    }
}

fn recover_pmem(ring: &[Block], al_slots: u32) -> Recovery {
    let words = ring.as_flattened().chunks_exact(4).skip(1);
    let extents = words.map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]]));
    let hot: BTreeSet<_> = extents.take(al_slots as usize).filter(|e| *e != FREE).map(ExtentIndex).collect();
    Recovery::Hot { extents: hot.into_iter().collect(), damaged: 0 }
}

/// Puts what the log says into the bitmap: the bits of every hot extent in **all** slots, owned or not. Sets the
/// AL-clean flag; the primary indicator stays, as with `apply-al`. Bits past the end of the volume are never set.
///
/// With the log disabled on a crashed primary nobody recorded hot extents, so everything is marked.
/// Pure: the caller writes the bitmap, flushes, initialises the ring, flushes, writes the superblock, flushes.
pub fn apply_al(sb: &mut Superblock, bitmap: &mut Bitmap, recovery: &Recovery) {
    let unrecorded = DeviceFlags::AL_DISABLED.with(DeviceFlags::PRIMARY_INDICATOR).with(DeviceFlags::CRASHED_PRIMARY);
    let everything = matches!(recovery, Recovery::MarkEverything { .. }) || sb.flags.contains(unrecorded);
    for slot in bitmap.slots() {
        if everything {
            bitmap.set_all(slot);
            continue;
        }
        let Recovery::Hot { extents, .. } = recovery else { continue };
        for extent in extents {
            bitmap.set(slot, bitmap.blocks_of_extent(*extent));
        }
    }
    sb.flags.set(DeviceFlags::AL_CLEAN, true);
}
