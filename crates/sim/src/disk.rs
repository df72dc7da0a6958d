//! One backing device of one volume, with its metadata.
//!
//! Fault model:
//! - Data is kept in sectors of 512 bytes; a sector holds the stamp of the write that put it there, 0 is zeroes.
//!   Metadata is kept in real bytes, 4 KiB blocks.
//! - An operation takes effect at the moment of its completion; completions come in any order. A read returns what is
//!   there at its completion.
//! - Volatile cache: a completed write without FUA is visible and not durable. A flush makes durable what had
//!   completed when the flush was *submitted*. At a crash each unflushed sector keeps its durable content or any of
//!   the versions that completed since, each sector for itself; of operations in flight any subset of sectors is
//!   applied. Metadata blocks are torn at 512 bytes in the same way, with one exception: a superblock write is atomic
//!   at 4 KiB, because DRBD's format has no checksum that could tell a torn superblock.
//! - With internal metadata data and metadata are one device with one cache; external metadata has a cache of its own.
//! - Discard and write-zeroes write the stamp 0.
//! - I/O errors: an operation may be told to fail ([`Disk::fail`]); any part of a failed write is applied, nothing of it is
//!   durable.
//! - A disk may be told to lie: a flush makes nothing durable.
//! - Not modelled: bits that rot, reads that tear.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::rc::Rc;

use engine::{AttachedDisk, DiskOp, MetaBlock};
use metadata::layout::{Geometry, Layout, Placement, superblock_offset};
use metadata::superblock::{PeerFlags, Superblock};
use metadata::{AlBlock, Bitmap, DeviceFlags, Recovery};
use types::{BlockLimits, ByteRange, IoId, NodeId, Slot, Uuid};

use crate::few::Few;
use crate::paged::Paged;
use crate::rng::Rng;

mod power;

pub use power::Survival;

/// Which write a sector holds; 0: zeroes.
pub type Stamp = u64;
/// Content of a range: runs of (sectors, stamp).
pub type Runs = Vec<(u32, Stamp)>;
type Page = Rc<MetaPage>;

/// A block of metadata. What it says as a block of the activity log is found out once: every judgement asks all of them.
pub struct MetaPage {
    bytes: [u8; 4096],
    log: OnceCell<AlBlock>,
}

impl MetaPage {
    fn new(bytes: [u8; 4096]) -> Page {
        Rc::new(MetaPage { bytes, log: OnceCell::new() })
    }
    fn as_log(&self) -> &AlBlock {
        self.log.get_or_init(|| AlBlock::decode(&self.bytes))
    }
}

impl PartialEq for MetaPage {
    fn eq(&self, other: &MetaPage) -> bool {
        self.bytes == other.bytes
    }
}

pub const SECTOR: u64 = 512;
/// Bytes of a block of metadata.
const META_BLOCK: u64 = 4096;

/// What lies at one place of a device with a volatile cache.
#[derive(Clone)]
struct Cell<V> {
    durable: Option<V>,
    /// Completed since, oldest first, with the number of the completion.
    versions: Few<(u64, Option<V>)>,
}

/// A sparse device, by number of sector or block: absent is zero.
#[derive(Clone)]
struct Store<V> {
    visible: Paged<V>,
    cache: Paged<Cell<V>>,
}

impl<V: Clone + PartialEq> Store<V> {
    fn new() -> Store<V> {
        Store { visible: Paged::default(), cache: Paged::default() }
    }
    fn put(&mut self, at: u64, value: Option<V>) -> Option<V> {
        match value {
            Some(value) => self.visible.insert(at, value),
            None => self.visible.remove(at),
        }
    }
    fn write(&mut self, at: u64, value: Option<V>, number: u64, durable: bool) {
        let before = self.put(at, value.clone());
        if durable {
            self.cache.remove(at);
            return;
        }
        match self.cache.get_mut(at) {
            Some(cell) => cell.versions.push((number, value)),
            None if before == value => {}
            None => {
                self.cache.insert(at, Cell { durable: before, versions: Few::One((number, value)) });
            }
        }
    }
    /// What completed up to `number` is durable.
    fn flush(&mut self, number: u64) {
        self.cache.retain(|cell| {
            if let Some((_, newest)) = cell.versions.iter().take_while(|(n, _)| *n <= number).last() {
                cell.durable = newest.clone();
                cell.versions.retain(|(n, _)| *n > number);
            }
            !cell.versions.is_empty()
        });
    }
    fn durable(&self, at: u64) -> Option<&V> {
        match self.cache.get(at) {
            Some(cell) => cell.durable.as_ref(),
            None => self.visible.get(at),
        }
    }
}

#[derive(Clone)]
struct InFlight {
    op: DiskOp,
    data: Option<Rc<Runs>>,
    /// What had completed when this was submitted.
    number: u64,
}

/// What a completion did.
#[derive(Default)]
pub struct Done {
    /// For reads.
    pub data: Option<Runs>,
    pub changed: Option<ByteRange>,
    pub metadata_changed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// What a reader sees now.
    Visible,
    /// What is there for certain after a power cut.
    Durable,
}

#[derive(Clone)]
pub struct Disk {
    pub data_bytes: u64,
    placement: Placement,
    meta_device_bytes: u64,
    superblock_at: u64,
    volatile_cache: bool,
    /// A flush does nothing.
    pub lies: bool,
    /// Without the stamp 0.
    data: Store<NonZeroU64>,
    meta: Store<Page>,
    completions: u64,
    in_flight: BTreeMap<IoId, InFlight>,
    power: power::Power,
}

impl Disk {
    /// A device of about `volume_bytes` for data, with metadata as `create-md` writes it for `peers`.
    pub fn create(volume_bytes: u64, external: bool, volatile_cache: bool, peers: u8) -> Disk {
        let geometry = Geometry::new(peers);
        let bitmap_bytes = geometry.bitmap_bytes(volume_bytes).expect("small");
        // All of an external device behind the log is bitmap, and is read at every check: no more than is needed.
        let (placement, device_bytes) = match external {
            true => (Placement::External, (64 << 10) + bitmap_bytes),
            false => (Placement::Internal, volume_bytes + (1 << 20) + bitmap_bytes),
        };
        let layout = Layout::compute(placement, device_bytes, geometry).expect("the simulator's devices are large");
        let data_bytes = if external { volume_bytes } else { layout.usable_bytes };
        let mut disk = Disk {
            data_bytes,
            placement,
            meta_device_bytes: device_bytes,
            superblock_at: superblock_offset(placement, device_bytes).expect("computed a layout"),
            volatile_cache,
            lies: false,
            data: Store::new(),
            meta: Store::new(),
            completions: 0,
            in_flight: BTreeMap::new(),
            power: power::Power::default(),
        };
        disk.put_meta(layout.superblock, Superblock::fresh(geometry, &layout).encode());
        for block in 0..layout.al_blocks {
            disk.put_meta(layout.al_block(block), metadata::activity_log::INITIALISED);
        }
        disk
    }

    fn put_meta(&mut self, at: u64, bytes: [u8; 4096]) {
        self.meta.visible.insert(at / META_BLOCK, MetaPage::new(bytes));
    }

    /// The state after an initial sync long ago: UpToDate, generation `current`, known peers, clean log and bitmap.
    pub fn make_in_sync(&mut self, me: NodeId, peers: &[NodeId], current: Uuid, agreed_bytes: u64) {
        let mut sb = self.superblock(View::Visible).expect("create wrote it");
        sb.current_uuid = current;
        sb.node_id = Some(me);
        sb.last_agreed_bytes = agreed_bytes;
        sb.device_uuid = current.0 ^ (u64::from(me.get()) + 1);
        sb.flags = DeviceFlags::CONSISTENT.with(DeviceFlags::WAS_UP_TO_DATE).with(DeviceFlags::AL_CLEAN);
        for (slot, peer) in peers.iter().enumerate() {
            let record = sb.peer_mut(*peer);
            record.slot = Some(Slot(slot as u8));
            record.flags = PeerFlags::DEVICE_SEEN.with(PeerFlags::NODE_EXISTS);
        }
        self.put_meta(self.superblock_at, sb.encode());
    }

    fn page(&self, at: u64, view: View) -> Option<&Page> {
        match view {
            View::Visible => self.meta.visible.get(at / META_BLOCK),
            View::Durable => self.meta.durable(at / META_BLOCK),
        }
    }
    fn block(&self, at: u64, view: View) -> [u8; 4096] {
        self.page(at, view).map_or([0; 4096], |page| page.bytes)
    }

    pub fn superblock(&self, view: View) -> Result<Superblock, String> {
        Superblock::decode(&self.block(self.superblock_at, view), self.superblock_at).map_err(|e| e.to_string())
    }

    fn layout(&self, sb: &Superblock) -> Result<Layout, String> {
        metadata::check(sb, self.placement, self.meta_device_bytes).map_err(|e| e.to_string())
    }

    /// Reads and checks the metadata as a daemon does before it attaches.
    pub fn attach(&self, view: View) -> Result<AttachedDisk, String> {
        let superblock = self.superblock(view)?;
        let layout = self.layout(&superblock)?;
        let al_blocks = (0..layout.al_blocks).map(|b| self.block(layout.al_block(b), view)).collect();
        Ok(AttachedDisk {
            bitmap: self.bitmap_image(&layout, view),
            al_blocks,
            data_bytes: self.data_bytes,
            limits: BlockLimits { volatile_cache: self.volatile_cache, ..BlockLimits::default() },
            external_metadata: self.placement == Placement::External,
            superblock,
            layout,
        })
    }

    fn bitmap_image(&self, layout: &Layout, view: View) -> Vec<u8> {
        let len = layout.bitmap_bytes as usize;
        let mut image = vec![0; len];
        let end = layout.bitmap + layout.bitmap_bytes;
        for at in (layout.bitmap..end).step_by(META_BLOCK as usize) {
            let Some(page) = self.page(at, view) else { continue };
            let from = (at - layout.bitmap) as usize;
            let take = (len - from).min(4096);
            image[from..from + take].copy_from_slice(&page.bytes[..take]);
        }
        image
    }

    /// Bitmap and log as a restart would find them.
    pub fn coverage(&self, view: View) -> Result<Coverage, String> {
        let superblock = self.superblock(view)?;
        let layout = self.layout(&superblock)?;
        let recovery = match superblock.flags.contains(DeviceFlags::PRIMARY_INDICATOR) {
            true => self.recovery(&superblock, &layout, view),
            false => Recovery::Clean,
        };
        let bits = superblock.geometry().bits(self.data_bytes);
        let mut image = self.bitmap_image(&layout, view);
        image.resize(image.len().next_multiple_of(4096), 0);
        let mut bitmap = Bitmap::from_image(superblock.max_peers, superblock.bitmap_block_bytes, bits, image);
        let mut applied = superblock.clone();
        metadata::apply_al(&mut applied, &mut bitmap, &recovery);
        Ok(Coverage { superblock, bitmap })
    }

    fn recovery(&self, superblock: &Superblock, layout: &Layout, view: View) -> Recovery {
        let decoded = |b| self.page(layout.al_block(b), view).map_or(&AlBlock::Invalid, |page| page.as_log());
        let ring: Vec<&AlBlock> = (0..layout.al_blocks).map(decoded).collect();
        metadata::recover_decoded(&ring, superblock.al_stripes, superblock.al_stripe_4k)
    }

    // ------------------------------------------------------------------ content

    pub fn stamp(&self, sector: u64) -> Stamp {
        self.data.visible.get(sector).map_or(0, |stamp| stamp.get())
    }
    pub fn durable_stamp(&self, sector: u64) -> Stamp {
        self.data.durable(sector).map_or(0, |stamp| stamp.get())
    }
    /// What a power cut may leave of a sector besides what is visible.
    pub fn older_stamps(&self, sector: u64) -> Vec<Stamp> {
        let Some(cell) = self.data.cache.get(sector) else { return Vec::new() };
        let versions = cell.versions.iter().map(|(_, stamp)| *stamp);
        let stamps: BTreeSet<Stamp> =
            versions.chain([cell.durable]).map(|stamp| stamp.map_or(0, NonZeroU64::get)).collect();
        let now = self.stamp(sector);
        stamps.into_iter().filter(|stamp| *stamp != now).collect()
    }
    pub fn sectors_written(&self) -> impl Iterator<Item = u64> + '_ {
        self.data.visible.keys()
    }
    /// Where a power cut changes something.
    pub fn sectors_cached(&self) -> impl Iterator<Item = u64> + '_ {
        self.data.cache.keys()
    }
    pub fn read(&self, range: ByteRange) -> Runs {
        let (first, end) = (range.sector(), range.end() / SECTOR);
        let mut runs = Runs::new();
        let mut at = first;
        for (sector, stamp) in self.data.visible.range(first..end) {
            push(&mut runs, sector - at, 0);
            push(&mut runs, 1, stamp.get());
            at = sector + 1;
        }
        push(&mut runs, end - at, 0);
        runs
    }
    /// Whether the two disks show the same in these sectors, which lie in one block of 4 KiB.
    pub fn agrees(&self, other: &Disk, first: u64, count: usize) -> bool {
        let (mine, theirs) = (self.data.visible.slice(first, count), other.data.visible.slice(first, count));
        match (mine, theirs) {
            (Some(mine), Some(theirs)) => mine == theirs,
            (one, another) => one.or(another).is_none_or(|stamps| stamps.iter().all(Option::is_none)),
        }
    }
    /// A block of 4 KiB holds this on stable storage, and no write explains it.
    pub fn rot(&mut self, first: u64, stamp: Stamp) {
        let number = self.completions;
        (first..first + 8).for_each(|sector| self.data.write(sector, NonZeroU64::new(stamp), number, true));
    }
    /// For tests: content that no write explains.
    pub fn corrupt(&mut self, sector: u64, stamp: Stamp) {
        self.data.put(sector, NonZeroU64::new(stamp));
    }

    /// The disk as it is now, everything on it durable, nothing in flight.
    pub fn image(&self) -> Disk {
        let mut image = self.clone();
        image.in_flight.clear();
        image.data.cache.clear();
        image.meta.cache.clear();
        image
    }

    /// Whose data the metadata says this is.
    pub fn identity(&self) -> Identity {
        self.identity_in(View::Visible)
    }
    pub fn identity_in(&self, view: View) -> Identity {
        let superblock = self.superblock(view).expect("a superblock is written whole");
        Identity { current: superblock.current_uuid, superblock }
    }

    // ------------------------------------------------------------------ operations

    /// `data`: the payload of a write.
    pub fn submit(&mut self, io: IoId, op: DiskOp, data: Option<Rc<Runs>>) -> Result<(), String> {
        self.judge(&op, data.as_deref())?;
        match self.in_flight.insert(io, InFlight { op, data, number: self.completions }) {
            None => Ok(()),
            Some(_) => Err(format!("{io:?} was used twice")),
        }
    }

    fn judge(&self, op: &DiskOp, data: Option<&Runs>) -> Result<(), String> {
        let range = match op {
            DiskOp::Read { range } | DiskOp::ReadInto { range, .. } | DiskOp::Discard { range } => *range,
            DiskOp::Write { range, .. } | DiskOp::WriteZeroes { range, .. } => *range,
            DiskOp::Flush => return Ok(()),
            DiskOp::MetaWrite { blocks, .. } => return self.judge_metadata(blocks),
        };
        if range.is_empty() || !range.is_within(self.data_bytes) {
            return Err(format!("{op:?}: the disk has {} bytes, and no operation is of none", self.data_bytes));
        }
        if !range.start().is_multiple_of(SECTOR) || !range.len().is_multiple_of(SECTOR) {
            return Err(format!("{op:?}: start and length must be multiples of {SECTOR}"));
        }
        if data.is_some_and(|runs| sectors(runs) != range.sectors()) {
            return Err(format!("{op:?} with a payload of {} sectors", data.map_or(0, sectors)));
        }
        Ok(())
    }

    fn judge_metadata(&self, blocks: &[MetaBlock]) -> Result<(), String> {
        for block in blocks {
            if !block.offset.is_multiple_of(4096) || block.offset + 4096 > self.meta_device_bytes {
                return Err(format!("metadata write at {:#x} of {:#x}", block.offset, self.meta_device_bytes));
            }
            if self.placement == Placement::Internal && block.offset < self.data_bytes {
                return Err(format!("metadata write at {:#x} hits the data", block.offset));
            }
        }
        Ok(())
    }

    pub fn is_in_flight(&self, io: IoId) -> bool {
        self.in_flight.contains_key(&io)
    }
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
    pub fn in_flight_op(&self, io: IoId) -> Option<&DiskOp> {
        self.in_flight.get(&io).map(|flight| &flight.op)
    }

    /// The operation, which is in flight, ends with an I/O error.
    pub fn fail(&mut self, io: IoId, rng: &mut Rng) -> (DiskOp, Done) {
        let flight = self.in_flight.remove(&io).expect("it is in flight");
        let op = flight.op.clone();
        let changed = match &op {
            DiskOp::Write { range, .. } | DiskOp::WriteZeroes { range, .. } | DiskOp::Discard { range } => Some(*range),
            _ => None,
        };
        let metadata_changed = matches!(op, DiskOp::MetaWrite { .. });
        if !matches!(op, DiskOp::Flush) {
            self.apply_part(flight, rng, &mut Vec::new());
        }
        (op, Done { data: None, changed, metadata_changed })
    }

    /// The operation, which is in flight, ends well. `None`: there is no power any more.
    pub fn complete(&mut self, io: IoId) -> Option<(DiskOp, Done)> {
        if self.power_is_gone(io) {
            return None;
        }
        let InFlight { op, data, number } = self.in_flight.remove(&io).expect("it is in flight");
        let mut done = Done::default();
        match &op {
            DiskOp::Read { range } | DiskOp::ReadInto { range, .. } => done.data = Some(self.read(*range)),
            DiskOp::Write { range, fua, .. } => {
                self.completions += 1;
                self.put_runs(*range, data.as_deref().expect("judged at submission"), *fua);
                done.changed = Some(*range);
            }
            DiskOp::Discard { range } => {
                self.completions += 1;
                self.put_zeroes(*range, false);
                done.changed = Some(*range);
            }
            DiskOp::WriteZeroes { range, fua, .. } => {
                self.completions += 1;
                self.put_zeroes(*range, *fua);
                done.changed = Some(*range);
            }
            DiskOp::Flush => self.flush_data(number),
            DiskOp::MetaWrite { blocks, preflush, fua } => {
                if *preflush {
                    self.flush_metadata(number);
                }
                self.completions += 1;
                let durable = *fua || !self.volatile_cache;
                for block in blocks {
                    self.put_block(block, durable);
                }
                done.metadata_changed = true;
            }
        }
        if matches!(op, DiskOp::Flush) && self.placement == Placement::Internal {
            done.metadata_changed = true;
        }
        Some((op, done))
    }

    fn put_block(&mut self, block: &MetaBlock, durable: bool) {
        let page = MetaPage::new(*block.bytes);
        self.meta.write(block.offset / META_BLOCK, Some(page), self.completions, durable);
    }
    fn put_runs(&mut self, range: ByteRange, runs: &Runs, fua: bool) {
        let mut at = range.sector();
        for (count, stamp) in runs {
            match NonZeroU64::new(*stamp) {
                None => self.zero_sectors(at, at + u64::from(*count), fua),
                stamp => {
                    for sector in at..at + u64::from(*count) {
                        self.data.write(sector, stamp, self.completions, fua || !self.volatile_cache);
                    }
                }
            }
            at += u64::from(*count);
        }
    }
    fn put_zeroes(&mut self, range: ByteRange, fua: bool) {
        self.zero_sectors(range.sector(), range.end() / SECTOR, fua);
    }
    fn zero_sectors(&mut self, first: u64, end: u64, fua: bool) {
        let durable = fua || !self.volatile_cache;
        let mut present: Vec<u64> = self.data.visible.range(first..end).map(|(s, _)| s).collect();
        // A sector that is zero already but was not when power last counted.
        present.extend(self.data.cache.range(first..end).map(|(s, _)| s).filter(|s| !self.data.visible.contains(*s)));
        for sector in present {
            self.data.write(sector, None, self.completions, durable);
        }
    }

    fn flush_data(&mut self, number: u64) {
        if self.lies {
            return;
        }
        self.data.flush(number);
        if self.placement == Placement::Internal {
            self.meta.flush(number);
        }
    }
    fn flush_metadata(&mut self, number: u64) {
        self.meta.flush(number);
        if self.placement == Placement::Internal {
            self.data.flush(number);
        }
    }

    /// The node stops without the disk losing power (a clean stop, a killed daemon): what was submitted completes.
    pub fn finish_all(&mut self) -> Vec<ByteRange> {
        let ios: Vec<IoId> = self.in_flight.keys().copied().collect();
        ios.into_iter().filter_map(|io| self.complete(io)?.1.changed).collect()
    }

    /// Power goes. Returns the sectors whose content changed.
    pub fn crash(&mut self, rng: &mut Rng) -> Vec<u64> {
        match self.chosen_survival() {
            Some((Survival::Mixture(seed), _)) => self.crash_by_chance(&mut Rng::new(seed)),
            Some((survival, cut)) => self.crash_as_chosen(survival, cut),
            None => self.crash_by_chance(rng),
        }
    }

    fn crash_by_chance(&mut self, rng: &mut Rng) -> Vec<u64> {
        let in_flight = std::mem::take(&mut self.in_flight);
        let mut touched = Vec::new();
        for flight in in_flight.into_values() {
            self.apply_part(flight, rng, &mut touched);
        }
        for (sector, cell) in std::mem::take(&mut self.data.cache).iter() {
            let value = choose(cell, rng);
            self.data.put(sector, value);
            touched.push(sector);
        }
        for (block, cell) in std::mem::take(&mut self.meta.cache).iter() {
            let page = self.surviving_page(block, cell, rng);
            self.meta.put(block, page);
        }
        touched
    }

    fn apply_part(&mut self, flight: InFlight, rng: &mut Rng, touched: &mut Vec<u64>) {
        self.completions += 1;
        match flight.op {
            DiskOp::Read { .. } | DiskOp::ReadInto { .. } => {}
            DiskOp::Flush => {
                if rng.chance(500) {
                    self.flush_data(flight.number);
                }
            }
            DiskOp::Write { range, .. } => {
                let mut at = range.sector();
                for (count, stamp) in flight.data.iter().flat_map(|runs| runs.iter()) {
                    for sector in at..at + u64::from(*count) {
                        self.maybe(sector, NonZeroU64::new(*stamp), rng, touched);
                    }
                    at += u64::from(*count);
                }
            }
            DiskOp::Discard { range } | DiskOp::WriteZeroes { range, .. } => {
                let present: Vec<u64> =
                    self.data.visible.range(range.sector()..range.end() / SECTOR).map(|(s, _)| s).collect();
                for sector in present {
                    self.maybe(sector, None, rng, touched);
                }
            }
            DiskOp::MetaWrite { blocks, preflush, .. } => {
                if preflush {
                    if rng.chance(300) {
                        return;
                    }
                    self.flush_metadata(flight.number);
                }
                for block in blocks {
                    if rng.chance(800) {
                        self.put_block(&block, false);
                    }
                }
            }
        }
    }

    fn maybe(&mut self, sector: u64, value: Option<NonZeroU64>, rng: &mut Rng, touched: &mut Vec<u64>) {
        if rng.chance(500) {
            self.data.write(sector, value, self.completions, false);
            touched.push(sector);
        }
    }

    fn surviving_page(&self, block: u64, cell: &Cell<Page>, rng: &mut Rng) -> Option<Page> {
        let tears = block != self.superblock_at / META_BLOCK && rng.chance(500);
        if !tears {
            return choose(cell, rng);
        }
        let mut bytes = [0; 4096];
        for sector in 0..8 {
            let from = choose(cell, rng);
            let part = sector * 512..(sector + 1) * 512;
            if let Some(page) = from {
                bytes[part.clone()].copy_from_slice(&page.bytes[part]);
            }
        }
        Some(MetaPage::new(bytes))
    }
}

/// The durable content or any version since.
fn choose<V: Clone>(cell: &Cell<V>, rng: &mut Rng) -> Option<V> {
    match rng.between(0, cell.versions.len() as u64) as usize {
        0 => cell.durable.clone(),
        n => cell.versions[n - 1].1.clone(),
    }
}

pub fn push(runs: &mut Runs, count: u64, stamp: Stamp) {
    if count == 0 {
        return;
    }
    let count = u32::try_from(count).expect("requests are small");
    match runs.last_mut() {
        Some(last) if last.1 == stamp => last.0 += count,
        _ => runs.push((count, stamp)),
    }
}

pub fn sectors(runs: &Runs) -> u64 {
    runs.iter().map(|(count, _)| u64::from(*count)).sum()
}

pub struct Identity {
    pub current: Uuid,
    superblock: Superblock,
}

impl Identity {
    pub fn bitmap_towards(&self, peer: NodeId) -> Uuid {
        self.superblock.peer(peer).bitmap_uuid
    }
    /// Not in the middle of a resync.
    pub fn is_whole(&self) -> bool {
        self.superblock.flags.contains(DeviceFlags::CONSISTENT)
    }
    /// The data went through this generation.
    pub fn has_been(&self, generation: Uuid) -> bool {
        let slots = self.superblock.peers.iter().map(|record| record.bitmap_uuid);
        slots.chain(self.superblock.history).chain([self.current]).any(|uuid| uuid.same(generation))
    }
}

/// What a restart would know about differences.
pub struct Coverage {
    superblock: Superblock,
    /// With the log applied.
    bitmap: Bitmap,
}

impl Coverage {
    pub fn covers(&self, peer: NodeId, block: u64) -> bool {
        if self.superblock.current_uuid.is_just_created() {
            return true;
        }
        let record = self.superblock.peer(peer);
        if record.flags.contains(PeerFlags::FULL_SYNC) {
            return true;
        }
        match record.slot {
            Some(slot) => self.bitmap.test(slot, block),
            // A peer without a slot gets a day-0 one, or a full sync.
            None => match self.superblock.lowest_free_slot() {
                Some(slot) => self.bitmap.test(slot, block),
                None => true,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(sector: u64, count: u64) -> ByteRange {
        ByteRange::new(sector * SECTOR, count * SECTOR).unwrap()
    }
    fn write(disk: &mut Disk, io: u64, sector: u64, stamp: Stamp, fua: bool) {
        let op = DiskOp::Write { range: range(sector, 1), payload: types::PayloadId(0), fua };
        disk.submit(IoId(io), op, Some(Rc::new(vec![(1, stamp)]))).unwrap();
        disk.complete(IoId(io));
    }
    fn disk() -> Disk {
        Disk::create(8 << 20, false, true, 1)
    }

    #[test]
    fn a_flush_keeps_what_had_completed_before_it_was_submitted() {
        for seed in 0..50 {
            let mut disk = disk();
            write(&mut disk, 1, 7, 100, false);
            disk.submit(IoId(2), DiskOp::Flush, None).unwrap();
            write(&mut disk, 3, 7, 200, false);
            disk.complete(IoId(2));
            assert_eq!(disk.durable_stamp(7), 100);
            disk.crash(&mut Rng::new(seed));
            assert!([100, 200].contains(&disk.stamp(7)), "{}", disk.stamp(7));
        }
    }

    #[test]
    fn an_unflushed_write_may_be_lost_and_may_survive() {
        let outcomes: std::collections::BTreeSet<Stamp> = (0..50)
            .map(|seed| {
                let mut disk = disk();
                write(&mut disk, 1, 7, 100, false);
                disk.crash(&mut Rng::new(seed));
                disk.stamp(7)
            })
            .collect();
        assert_eq!(outcomes.into_iter().collect::<Vec<_>>(), [0, 100]);
    }

    #[test]
    fn fua_survives() {
        for seed in 0..50 {
            let mut disk = disk();
            write(&mut disk, 1, 7, 100, true);
            disk.crash(&mut Rng::new(seed));
            assert_eq!(disk.stamp(7), 100);
        }
    }

    #[test]
    fn external_metadata_has_a_cache_of_its_own() {
        let mut disk = Disk::create(8 << 20, true, true, 1);
        write(&mut disk, 1, 7, 100, false);
        let op = DiskOp::MetaWrite { blocks: Vec::new(), preflush: true, fua: true };
        disk.submit(IoId(2), op, None).unwrap();
        disk.complete(IoId(2));
        assert_eq!(disk.durable_stamp(7), 0);
    }

    #[test]
    fn a_fresh_disk_attaches() {
        for external in [false, true] {
            let disk = Disk::create(33 << 20, external, true, 1);
            let attached = disk.attach(View::Durable).unwrap();
            assert!(attached.superblock.current_uuid.is_just_created());
            assert!(attached.data_bytes >= 33 << 20);
        }
    }
}
