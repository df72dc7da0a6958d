//! A volume's metadata on its device: opened, read, written in the order that survives a crash.

use config::MetaDisk;
use metadata::activity_log::INITIALISED;
use metadata::layout::superblock_offset;
use metadata::{Block, FormatError, Found, Layout, Placement, Superblock, SuperblockV08};
use std::fmt;
use std::path::Path;
use store::{Backing, OpenOptions, StoreError, sync};

/// Read and written at once. Bytes; a multiple of 4096.
const CHUNK_BYTES: usize = 1 << 20;

pub enum DiskError {
    Store(StoreError),
    Format(FormatError),
}

impl From<StoreError> for DiskError {
    fn from(e: StoreError) -> DiskError {
        DiskError::Store(e)
    }
}
impl From<FormatError> for DiskError {
    fn from(e: FormatError) -> DiskError {
        DiskError::Format(e)
    }
}
impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskError::Store(e) => e.fmt(f),
            DiskError::Format(e) => e.fmt(f),
        }
    }
}

impl DiskError {
    /// As `drbdmeta`: 255 no valid metadata, 20 cannot open, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            DiskError::Format(_) => 255,
            DiskError::Store(e) if matches!(e.operation, store::Operation::Open | store::Operation::Lock) => 20,
            DiskError::Store(_) => 1,
        }
    }
}

/// The devices of a volume, held exclusively while this lives.
pub struct MetaDevice {
    data: Backing,
    /// `None`: internal.
    meta: Option<Backing>,
    pub placement: Placement,
}

impl MetaDevice {
    pub fn open(disk: &Path, meta_disk: &MetaDisk, read_only: bool) -> Result<MetaDevice, DiskError> {
        let options = OpenOptions { read_only, exclusive: true, direct: false };
        let data = Backing::open(disk, options)?;
        let (meta, placement) = match meta_disk {
            MetaDisk::Internal => (None, Placement::Internal),
            MetaDisk::External(path) => (Some(Backing::open(path, options)?), Placement::External),
            MetaDisk::Indexed { path, index } => {
                // Volumes of several resources share the device.
                let options = OpenOptions { exclusive: false, ..options };
                (Some(Backing::open(path, options)?), Placement::Indexed(*index))
            }
        };
        Ok(MetaDevice { data, meta, placement })
    }

    /// The device that carries the metadata.
    pub fn device(&self) -> &Backing {
        self.meta.as_ref().unwrap_or(&self.data)
    }

    pub fn size_bytes(&self) -> u64 {
        self.device().size_bytes()
    }

    /// The superblock, checked against this device.
    pub fn superblock(&self) -> Result<(Superblock, Layout), DiskError> {
        let offset = superblock_offset(self.placement, self.size_bytes())?;
        let mut block = [0; metadata::BLOCK_BYTES];
        sync::read_exact_at(self.device(), offset, &mut block)?;
        let superblock = Superblock::decode(&block, offset)?;
        let layout = metadata::check(&superblock, self.placement, self.size_bytes())?;
        Ok((superblock, layout))
    }

    /// Metadata of DRBD 8, if that is what is there: its superblock, the block as it is, and where the rest lies.
    pub fn superblock_v08(&self) -> Result<Option<(SuperblockV08, Block, Layout)>, DiskError> {
        let offset = superblock_offset(self.placement, self.size_bytes())?;
        let mut block = [0; metadata::BLOCK_BYTES];
        sync::read_exact_at(self.device(), offset, &mut block)?;
        let Ok(superblock) = SuperblockV08::decode(&block, offset) else { return Ok(None) };
        // As v09 it would have these positions, too: what does not fit the device is refused here.
        let layout = metadata::check(&superblock.convert(None), self.placement, self.size_bytes())?;
        Ok(Some((superblock, block, layout)))
    }

    /// What is on the device that carries the metadata and would be lost.
    pub fn occupants(&self) -> Result<Vec<Found>, DiskError> {
        let mut found = metadata::recognise(self.placement, self.size_bytes(), |at, into| self.read_around(at, into))?;
        if let Placement::Indexed(_) = self.placement {
            // The rest of a shared device belongs to other volumes.
            let own = superblock_offset(self.placement, self.size_bytes())?;
            found.retain(|found| matches!(found, Found::Drbd { offset, .. } if *offset == own));
        }
        Ok(found)
    }

    /// Reads any range by way of whole blocks of the device.
    fn read_around(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let unit = u64::from(self.device().geometry().logical_block_bytes);
        let start = offset / unit * unit;
        let end = (offset + into.len() as u64).next_multiple_of(unit).min(self.size_bytes());
        let mut blocks = vec![0; (end - start) as usize];
        sync::read_exact_at(self.device(), start, &mut blocks)?;
        let skip = (offset - start) as usize;
        into.copy_from_slice(&blocks[skip..skip + into.len()]);
        Ok(())
    }

    /// The bitmap of the agreed size.
    pub fn bitmap(&self, superblock: &Superblock, layout: &Layout) -> Result<Vec<u8>, DiskError> {
        let wanted = superblock.geometry().bitmap_bytes(superblock.last_agreed_bytes).unwrap_or(u64::MAX);
        // The last page of an external area may be cut off; `check` has compared the rest with the device.
        let on_disk = wanted.min(layout.bitmap_bytes);
        let mut image = vec![0; on_disk as usize];
        if !image.is_empty() {
            sync::read_exact_at(self.device(), layout.bitmap, &mut image)?;
        }
        image.resize(wanted as usize, 0);
        Ok(image)
    }

    pub fn ring(&self, layout: &Layout) -> Result<Vec<Block>, DiskError> {
        let mut ring = vec![[0; metadata::BLOCK_BYTES]; layout.al_blocks as usize];
        for (i, block) in ring.iter_mut().enumerate() {
            sync::read_exact_at(self.device(), layout.al_block(i as u32), block)?;
        }
        Ok(ring)
    }

    /// Everything anew, the superblock last: before its flush has returned the device holds no valid new metadata.
    /// An old superblock goes first, or a crash in between would leave it with a bitmap that is not its own.
    pub fn write_all(&self, superblock: &Superblock, layout: &Layout, bitmap: &[u8]) -> Result<(), DiskError> {
        sync::write_all_at(self.device(), layout.superblock, &[0; metadata::BLOCK_BYTES])?;
        sync::flush(self.device())?;
        self.initialise_ring(layout)?;
        self.write_bitmap(layout, bitmap)?;
        sync::flush(self.device())?;
        self.write_superblock(&superblock.encode(), layout)
    }

    /// The bitmap that gained bits (none: it is complete), then the log that said so, then the superblock that says it was
    /// done.
    pub fn write_applied(&self, superblock: &Block, layout: &Layout, bitmap: &[u8]) -> Result<(), DiskError> {
        let on_disk = bitmap.len().min(layout.bitmap_bytes as usize);
        if on_disk > 0 {
            sync::write_all_at(self.device(), layout.bitmap, &bitmap[..on_disk])?;
        }
        sync::flush(self.device())?;
        self.initialise_ring(layout)?;
        sync::flush(self.device())?;
        self.write_superblock(superblock, layout)
    }

    fn write_superblock(&self, superblock: &Block, layout: &Layout) -> Result<(), DiskError> {
        sync::write_all_at(self.device(), layout.superblock, superblock)?;
        Ok(sync::flush(self.device())?)
    }

    fn initialise_ring(&self, layout: &Layout) -> Result<(), DiskError> {
        for block in 0..layout.al_blocks {
            sync::write_all_at(self.device(), layout.al_block(block), &INITIALISED)?;
        }
        Ok(())
    }

    /// `bitmap` from the start of the area, zeroes after it. What already is as it should be is not written: a sparse
    /// file stays sparse, and a disk of many TiB takes seconds.
    fn write_bitmap(&self, layout: &Layout, bitmap: &[u8]) -> Result<(), DiskError> {
        let mut present = vec![0; CHUNK_BYTES];
        let mut wanted = vec![0; CHUNK_BYTES];
        let mut done: u64 = 0;
        while done < layout.bitmap_bytes {
            let len = (layout.bitmap_bytes - done).min(CHUNK_BYTES as u64) as usize;
            let given = bitmap.get(done as usize..).unwrap_or(&[]);
            let given = &given[..given.len().min(len)];
            wanted.fill(0);
            wanted[..given.len()].copy_from_slice(given);
            sync::read_exact_at(self.device(), layout.bitmap + done, &mut present[..len])?;
            if present[..len] != wanted[..len] {
                sync::write_all_at(self.device(), layout.bitmap + done, &wanted[..len])?;
            }
            done += len as u64;
        }
        Ok(())
    }
}
