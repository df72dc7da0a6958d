//! A disk that `create-md` has just made, for two nodes.

use engine::AttachedDisk;
use metadata::layout::{Geometry, Layout, Placement};
use metadata::superblock::Superblock;
use types::BlockLimits;

pub fn fresh_disk(device_bytes: u64) -> AttachedDisk {
    let geometry = Geometry::new(1);
    let layout = Layout::compute(Placement::Internal, device_bytes, geometry).expect("a size that fits metadata");
    AttachedDisk {
        superblock: Superblock::fresh(geometry, &layout),
        bitmap: vec![0; layout.bitmap_bytes as usize],
        al_blocks: vec![metadata::activity_log::INITIALISED; layout.al_blocks as usize],
        data_bytes: layout.usable_bytes,
        layout,
        limits: BlockLimits::default(),
        external_metadata: false,
    }
}
