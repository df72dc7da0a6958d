//! A volume's metadata on its device: opened, read, written in the order that survives a crash.

use config::MetaDisk;
use metadata::activity_log::INITIALISED;
use metadata::layout::superblock_offset;
use metadata::rewrite::Batch;
use metadata::{
    Bitmap, Block, DeviceFlags, DumpOptions, FormatError, Found, Layout, Placement, Superblock, SuperblockV08,
};
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

/// Metadata that is there, checked against its device.
pub enum OnDisk {
    V08(SuperblockV08, Layout),
    V09(Box<Superblock>, Layout),
}

impl OnDisk {
    /// The superblock of a metadata device of this size.
    pub fn decode(block: &Block, placement: Placement, device_bytes: u64) -> Result<OnDisk, FormatError> {
        let offset = superblock_offset(placement, device_bytes)?;
        if let Ok(superblock) = SuperblockV08::decode(block, offset) {
            return Ok(OnDisk::V08(superblock, superblock.check(placement, device_bytes)?));
        }
        let superblock = Superblock::decode(block, offset)?;
        let layout = metadata::check(&superblock, placement, device_bytes)?;
        Ok(OnDisk::V09(Box::new(superblock), layout))
    }
    /// As v09 has it; of v08 with a slot that nobody owns.
    pub fn as_v09(&self) -> (Superblock, &Layout) {
        match self {
            OnDisk::V08(superblock, layout) => (superblock.convert(None), layout),
            OnDisk::V09(superblock, layout) => (Superblock::clone(superblock), layout),
        }
    }
    /// As text. `bitmap`: of the agreed size.
    pub fn dump(&self, options: DumpOptions<'_>, bitmap: &Bitmap) -> String {
        let mut text = String::new();
        let written = match self {
            OnDisk::V08(superblock, layout) => {
                metadata::write_dump_v08(&mut text, options, superblock, layout, bitmap.image())
            }
            OnDisk::V09(superblock, layout) => {
                metadata::write_dump(&mut text, options, superblock, layout, bitmap.image())
            }
        };
        written.expect("a String takes everything");
        text
    }
    /// The activity log was applied.
    pub fn is_clean(&self) -> bool {
        match self {
            OnDisk::V08(superblock, _) => !superblock.unclean(),
            OnDisk::V09(superblock, _) => superblock.flags.contains(DeviceFlags::AL_CLEAN),
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

    /// The device that carries the metadata, without the one with the data if that is another.
    pub fn alone(path: &Path, placement: Placement, read_only: bool) -> Result<MetaDevice, DiskError> {
        let exclusive = !matches!(placement, Placement::Indexed(_));
        let data = Backing::open(path, OpenOptions { read_only, exclusive, direct: false })?;
        Ok(MetaDevice { data, meta: None, placement })
    }

    /// The device that carries the metadata.
    pub fn device(&self) -> &Backing {
        self.meta.as_ref().unwrap_or(&self.data)
    }

    pub fn size_bytes(&self) -> u64 {
        self.device().size_bytes()
    }

    /// Metadata of either format, checked against this device. What is neither is judged as v09.
    pub fn metadata(&self) -> Result<OnDisk, DiskError> {
        let offset = superblock_offset(self.placement, self.size_bytes())?;
        Ok(OnDisk::decode(&self.block(offset)?, self.placement, self.size_bytes())?)
    }

    /// The v09 superblock, checked against this device.
    pub fn superblock(&self) -> Result<(Superblock, Layout), DiskError> {
        let offset = superblock_offset(self.placement, self.size_bytes())?;
        let superblock = Superblock::decode(&self.block(offset)?, offset)?;
        let layout = metadata::check(&superblock, self.placement, self.size_bytes())?;
        Ok((superblock, layout))
    }

    pub fn block(&self, offset: u64) -> Result<Block, DiskError> {
        let mut block = [0; metadata::BLOCK_BYTES];
        sync::read_exact_at(self.device(), offset, &mut block)?;
        Ok(block)
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

    /// How far the file system on this device reaches, if it is one that says so.
    pub fn file_system_bytes(&self) -> Result<Option<u64>, DiskError> {
        let mut head = [0; metadata::recognise::FILE_SYSTEM_HEAD_BYTES];
        self.read_around(0, &mut head)?;
        Ok(metadata::recognise::file_system_bytes(&head))
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
    pub fn bitmap(&self, superblock: &Superblock, layout: &Layout) -> Result<Bitmap, DiskError> {
        let geometry = superblock.geometry();
        let wanted = geometry.bitmap_bytes(superblock.last_agreed_bytes).unwrap_or(u64::MAX);
        // The last page of an external area may be cut off; `check` has compared the rest with the device.
        let on_disk = wanted.min(layout.bitmap_bytes);
        let mut image = vec![0; on_disk as usize];
        if !image.is_empty() {
            sync::read_exact_at(self.device(), layout.bitmap, &mut image)?;
        }
        image.resize(wanted as usize, 0);
        let bits = geometry.bits(superblock.last_agreed_bytes);
        Ok(Bitmap::from_image(geometry.max_peers, geometry.bitmap_block_bytes, bits, image))
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
    pub fn write_all(&self, superblock: &Block, layout: &Layout, bitmap: &[u8]) -> Result<(), DiskError> {
        sync::write_all_at(self.device(), layout.superblock, &[0; metadata::BLOCK_BYTES])?;
        sync::flush(self.device())?;
        self.initialise_ring(layout)?;
        self.write_bitmap(layout, bitmap)?;
        sync::flush(self.device())?;
        self.write_superblock(superblock, layout)
    }

    /// The bitmap that gained bits (none: it is complete), then the log that said so, then the superblock that says it was
    /// done.
    pub fn write_applied(&self, superblock: &Block, layout: &Layout, bitmap: Option<&Bitmap>) -> Result<(), DiskError> {
        if let Some(bitmap) = bitmap {
            self.write_bits(layout, bitmap)?;
        }
        self.initialise_ring(layout)?;
        sync::flush(self.device())?;
        self.write_superblock(superblock, layout)
    }

    /// One batch after the other, each durable before the next.
    pub fn rewrite(&self, batches: &[Batch]) -> Result<(), DiskError> {
        for batch in batches {
            for write in batch {
                self.write_region(write.offset, write.bytes.len() as u64 + write.zeroes, &write.bytes)?;
            }
            sync::flush(self.device())?;
        }
        Ok(())
    }

    /// The bitmap of the agreed size, durable on return.
    pub fn write_bits(&self, layout: &Layout, bitmap: &Bitmap) -> Result<(), DiskError> {
        let on_disk = bitmap.image().len().min(layout.bitmap_bytes as usize);
        if on_disk > 0 {
            sync::write_all_at(self.device(), layout.bitmap, &bitmap.image()[..on_disk])?;
        }
        Ok(sync::flush(self.device())?)
    }

    /// One block, durable on return.
    pub fn write_superblock(&self, superblock: &Block, layout: &Layout) -> Result<(), DiskError> {
        sync::write_all_at(self.device(), layout.superblock, superblock)?;
        Ok(sync::flush(self.device())?)
    }

    fn initialise_ring(&self, layout: &Layout) -> Result<(), DiskError> {
        for block in 0..layout.al_blocks {
            sync::write_all_at(self.device(), layout.al_block(block), &INITIALISED)?;
        }
        Ok(())
    }

    fn write_bitmap(&self, layout: &Layout, bitmap: &[u8]) -> Result<(), DiskError> {
        self.write_region(layout.bitmap, layout.bitmap_bytes, bitmap)
    }

    /// `bytes` from `offset` on, zeroes after them up to `len_bytes`. What already is as it should be is not written: a
    /// sparse file stays sparse, and a disk of many TiB takes seconds.
    fn write_region(&self, offset: u64, len_bytes: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut present = vec![0; CHUNK_BYTES];
        let mut wanted = vec![0; CHUNK_BYTES];
        let mut done: u64 = 0;
        while done < len_bytes {
            let len = (len_bytes - done).min(CHUNK_BYTES as u64) as usize;
            let given = bytes.get(done as usize..).unwrap_or(&[]);
            let given = &given[..given.len().min(len)];
            wanted.fill(0);
            wanted[..given.len()].copy_from_slice(given);
            sync::read_exact_at(self.device(), offset + done, &mut present[..len])?;
            if present[..len] != wanted[..len] {
                sync::write_all_at(self.device(), offset + done, &wanted[..len])?;
            }
            done += len as u64;
        }
        Ok(())
    }
}
