//! A disk in memory: every sector holds the number of the write that filled it, the metadata area holds real bytes.
//!
//! Fault model: a completed write is readable at once and lost at a crash unless it was FUA or a flush completed after
//! it. Operations take effect when they complete. Internal metadata: one device, one cache for both areas.

use std::collections::BTreeMap;

use engine::{AttachedDisk, DiskOp};
use metadata::layout::{Geometry, Layout, Placement};
use metadata::superblock::{self, Superblock};
use types::range::SECTOR_BYTES;
use types::{BlockLimits, ByteRange};

/// What one sector holds: the number of a write, 0 for zeroes.
pub type Stamp = u32;

pub struct Disk {
    device_bytes: u64,
    layout: Layout,
    limits: BlockLimits,
    data_durable: Vec<Stamp>,
    data_volatile: BTreeMap<usize, Stamp>,
    meta_durable: BTreeMap<u64, Box<[u8; 4096]>>,
    meta_volatile: BTreeMap<u64, Box<[u8; 4096]>>,
}

pub fn sectors(range: ByteRange) -> std::ops::Range<usize> {
    (range.start() / SECTOR_BYTES) as usize..(range.end() / SECTOR_BYTES) as usize
}

impl Disk {
    /// After `create-md`, every data sector holding `stamp`.
    pub fn fresh(device_bytes: u64, max_peers: u8, stamp: Stamp) -> Disk {
        let geometry = Geometry::new(max_peers);
        let layout = Layout::compute(Placement::Internal, device_bytes, geometry).expect("a size that fits metadata");
        let mut meta = BTreeMap::new();
        for block in 0..layout.bitmap_bytes / 4096 {
            meta.insert(layout.bitmap + block * 4096, Box::new([0; 4096]));
        }
        for block in 0..layout.al_blocks {
            meta.insert(layout.al_block(block), Box::new(metadata::activity_log::INITIALISED));
        }
        meta.insert(layout.superblock, Box::new(Superblock::fresh(geometry, &layout).encode()));
        Disk {
            device_bytes,
            layout,
            limits: BlockLimits::default(),
            data_durable: vec![stamp; (layout.usable_bytes / SECTOR_BYTES) as usize],
            data_volatile: BTreeMap::new(),
            meta_durable: meta,
            meta_volatile: BTreeMap::new(),
        }
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn superblock(&self) -> Superblock {
        let block = self.meta(self.layout.superblock);
        Superblock::decode(block, self.layout.superblock).expect("the engine writes a superblock that decodes")
    }

    /// What the daemon hands over at attach: the image as it is, through the checks of crate metadata.
    pub fn attached(&self) -> AttachedDisk {
        let superblock = self.superblock();
        let layout = superblock::check(&superblock, Placement::Internal, self.device_bytes).expect("checked metadata");
        let bitmap = (0..layout.bitmap_bytes / 4096).flat_map(|b| *self.meta(layout.bitmap + b * 4096)).collect();
        AttachedDisk {
            superblock,
            bitmap,
            al_blocks: (0..layout.al_blocks).map(|b| *self.meta(layout.al_block(b))).collect(),
            data_bytes: layout.usable_bytes,
            layout,
            limits: self.limits,
            external_metadata: false,
        }
    }

    fn meta(&self, offset: u64) -> &[u8; 4096] {
        self.meta_volatile.get(&offset).unwrap_or_else(|| &self.meta_durable[&offset])
    }

    pub fn read(&self, range: ByteRange) -> Vec<Stamp> {
        sectors(range).map(|s| *self.data_volatile.get(&s).unwrap_or(&self.data_durable[s])).collect()
    }

    fn write(&mut self, range: ByteRange, stamps: impl Iterator<Item = Stamp>, fua: bool) {
        for (sector, stamp) in sectors(range).zip(stamps) {
            if fua {
                self.data_volatile.remove(&sector);
                self.data_durable[sector] = stamp;
            } else {
                self.data_volatile.insert(sector, stamp);
            }
        }
    }

    fn flush(&mut self) {
        for (sector, stamp) in std::mem::take(&mut self.data_volatile) {
            self.data_durable[sector] = stamp;
        }
        self.meta_durable.append(&mut self.meta_volatile);
    }

    /// Carries an operation out at its completion. `stamps`: what a write writes. Returns what a read read.
    pub fn carry_out(&mut self, op: &DiskOp, stamps: Option<Vec<Stamp>>) -> Option<Vec<Stamp>> {
        match op {
            DiskOp::Read { range } | DiskOp::ReadInto { range, .. } => return Some(self.read(*range)),
            DiskOp::Write { range, fua, .. } => {
                let stamps = stamps.expect("a write has data");
                assert_eq!(stamps.len(), sectors(*range).len(), "a write of {range:?} with other data");
                self.write(*range, stamps.into_iter(), *fua);
            }
            DiskOp::Flush => self.flush(),
            DiskOp::Discard { range } => self.write(*range, std::iter::repeat(0), false),
            DiskOp::WriteZeroes { range, fua, .. } => self.write(*range, std::iter::repeat(0), *fua),
            DiskOp::MetaWrite { blocks, preflush, fua } => {
                if *preflush {
                    self.flush();
                }
                for block in blocks {
                    assert!(self.meta_durable.contains_key(&block.offset), "write outside metadata: {}", block.offset);
                    let target = if *fua { &mut self.meta_durable } else { &mut self.meta_volatile };
                    target.insert(block.offset, block.bytes.clone());
                    if *fua {
                        self.meta_volatile.remove(&block.offset);
                    }
                }
            }
        }
        None
    }

    /// Bits rot: other data is on stable storage, and nothing wrote it.
    pub fn corrupt(&mut self, range: ByteRange) {
        self.write(range, std::iter::repeat(Stamp::MAX - 1), true);
    }

    /// This is on stable storage, and nothing wrote it.
    pub fn put(&mut self, range: ByteRange, stamps: Vec<Stamp>) {
        self.write(range, stamps.into_iter(), true);
    }

    /// Power loss.
    pub fn crash(&mut self) {
        self.data_volatile.clear();
        self.meta_volatile.clear();
    }

    /// Bits set in the slot of `peer`, as a restart would read them.
    pub fn bits_on_disk(&self, peer: types::NodeId) -> Option<u64> {
        let superblock = self.superblock();
        let slot = superblock.peer(peer).slot?;
        let bits = superblock.geometry().bits(superblock.last_agreed_bytes);
        let image = self.attached().bitmap;
        let bytes = metadata::bitmap::Bitmap::image_bytes(superblock.max_peers, bits) as usize;
        let image = image[..bytes].to_vec();
        Some(
            metadata::bitmap::Bitmap::from_image(superblock.max_peers, superblock.bitmap_block_bytes, bits, image)
                .count(slot),
        )
    }
}
