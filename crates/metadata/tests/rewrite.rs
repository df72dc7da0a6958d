//! Rewriting metadata, cut at every flush and inside every batch: whatever reached the device, something is found that
//! marks every block which may differ (rule MD-1).

mod common;

use common::generated::{Image, Numbers};
use metadata::rewrite::{self, Batch};
use metadata::{
    Bitmap, Block, DeviceFlags, Geometry, Layout, PeerFlags, Placement, Superblock, SuperblockV08, apply_al, check,
    recover,
};
use types::{NodeId, Slot};

/// Of blocks that reached the device, per batch.
const CUTS: u64 = 6;

/// A device in memory.
#[derive(Clone)]
struct Disk(Vec<u8>);

impl Disk {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }
    fn get(&self, at: u64, len: u64) -> &[u8] {
        &self.0[at as usize..(at + len) as usize]
    }
    fn block(&self, at: u64) -> Block {
        self.get(at, 4096).try_into().unwrap()
    }
    fn with(image: &Image, bytes: u64) -> Disk {
        let mut disk = Disk(vec![0xE7; bytes as usize]);
        disk.put(image.layout.bitmap, image.bitmap.image());
        disk.put(image.layout.activity_log, image.ring.as_flattened());
        disk.put(image.layout.superblock, &image.sb.encode());
        disk
    }
    /// Each block of the batch gets there if `lands` says so.
    fn write(&mut self, batch: &Batch, mut lands: impl FnMut() -> bool) {
        for write in batch {
            let whole = [&write.bytes[..], &vec![0; write.zeroes as usize]].concat();
            for (i, block) in whole.chunks(4096).enumerate().filter(|_| lands()) {
                self.put(write.offset + i as u64 * 4096, block);
            }
        }
    }
    fn v09(&self, placement: Placement, bytes: u64) -> Option<(Superblock, Layout)> {
        let at = metadata::layout::superblock_offset(placement, bytes).unwrap();
        let sb = Superblock::decode(&self.block(at), at).ok()?;
        let layout = check(&sb, placement, bytes).ok()?;
        Some((sb, layout))
    }
    /// What whoever attaches makes of it: the log applied, slots marked for a full sync set.
    fn attached(&self, sb: &Superblock, layout: &Layout) -> Bitmap {
        let bits = sb.geometry().bits(sb.last_agreed_bytes);
        let image = self.get(layout.bitmap, Bitmap::image_bytes(sb.max_peers, bits)).to_vec();
        let mut bitmap = Bitmap::from_image(sb.max_peers, sb.bitmap_block_bytes, bits, image);
        let ring: Vec<Block> = (0..layout.al_blocks).map(|i| self.block(layout.al_block(i))).collect();
        let indicator = sb.flags.contains(DeviceFlags::PRIMARY_INDICATOR);
        let recovery = recover(&ring, sb.al_stripes, sb.al_stripe_4k, sb.al_slots, indicator);
        apply_al(&mut sb.clone(), &mut bitmap, &recovery);
        for slot in bitmap.slots() {
            let owner = sb.slot_owner(slot).map(|node| sb.peer(node));
            if owner.is_some_and(|peer| peer.flags.contains(PeerFlags::FULL_SYNC)) {
                bitmap.set_all(slot);
            }
        }
        bitmap
    }
}

/// Every state that a crash can leave, and the finished one last.
fn crashes(disk: &Disk, batches: &[Batch], numbers: &mut Numbers, mut seen: impl FnMut(&Disk, usize)) {
    let mut durable = disk.clone();
    for (n, batch) in batches.iter().enumerate() {
        for cut in 0..CUTS {
            let mut torn = durable.clone();
            torn.write(batch, || numbers.below(CUTS) < cut);
            seen(&torn, n);
        }
        durable.write(batch, || true);
        seen(&durable, n);
    }
}

fn assert_covers(found: &Bitmap, before: &Bitmap, what: &str) {
    for slot in before.slots() {
        for w in 0..before.words64() {
            let lost = before.word64(slot, w) & !found.word64(slot, w);
            assert_eq!(lost, 0, "{what}: bits of {slot:?} lost in word {w}");
        }
    }
}

/// Old and new size of the device: far apart, and so close that the old metadata lies in the way of the new.
const GROWTHS: [(u64, u64); 7] = [
    (1 << 20, 6 << 20),
    (2 << 20, (2 << 20) + 4096),
    ((3 << 20) + 512, (3 << 20) + 40_960),
    ((3 << 20) + 3584, 4 << 20),
    (8 << 20, (8 << 20) + (44 << 10)),
    (8 << 20, (9 << 20) + 1536),
    // The superblock stays; with 16 slots the bitmap becomes a page longer.
    (8 << 20, (8 << 20) + 512),
];

#[test]
fn a_crash_while_metadata_moves_loses_no_bit() {
    let mut numbers = Numbers(0x6D6F_7665);
    let mut both_ways = [0, 0];
    for (old_bytes, new_bytes) in GROWTHS {
        for max_peers in [1, 3, 16, 31] {
            for crashed in [false, true] {
                let geometry = Geometry::new(max_peers);
                let new = Layout::compute(Placement::Internal, new_bytes, geometry).unwrap();
                let usable = new.usable_bytes;
                let mut image = Image::random(Placement::Internal, old_bytes, usable, geometry, &mut numbers);
                if crashed {
                    image.crash(1237, &mut numbers);
                }
                let batches = rewrite::grow(&image.sb, &image.layout, &new, &image.ring, &image.bitmap);
                let overlap = new.bitmap < image.layout.superblock + 4096;
                both_ways[usize::from(overlap)] += 1;
                let disk = Disk::with(&image, new_bytes);
                let before = disk.attached(&image.sb, &image.layout);
                let what = format!("{old_bytes} to {new_bytes}, {max_peers} peers, crashed {crashed}");
                let mut last = None;
                crashes(&disk, &batches, &mut numbers, |disk, batch| {
                    let what = format!("{what}, batch {batch} of {}", batches.len());
                    let old = || disk.v09(Placement::Internal, old_bytes);
                    let (sb, layout) =
                        disk.v09(Placement::Internal, new_bytes).or_else(old).unwrap_or_else(|| panic!("{what}: lost"));
                    assert_eq!(
                        (sb.current_uuid, sb.last_agreed_bytes),
                        (image.sb.current_uuid, image.sb.last_agreed_bytes)
                    );
                    assert_covers(&disk.attached(&sb, &layout), &before, &what);
                    last = Some((sb, layout, disk.clone()));
                });
                let (sb, layout, disk) = last.unwrap();
                assert_eq!((layout, sb.flags, &sb.peers), (new, image.sb.flags, &image.sb.peers), "{what}");
                let after = disk.attached(&sb, &layout);
                assert!(after.image()[..before.image().len()] == *before.image(), "{what}: more bits than before");
                let old_is_gone =
                    image.layout.superblock == new.superblock || disk.v09(Placement::Internal, old_bytes).is_none();
                assert!(old_is_gone, "{what}: the old superblock is still there");
            }
        }
    }
    assert!(both_ways.iter().all(|n| *n > 0), "beside and over the old metadata: {both_ways:?}");
}

#[test]
fn a_crash_on_the_way_to_v08_loses_no_bit() {
    let mut numbers = Numbers(0x7630_3900);
    let places =
        [(Placement::Internal, 16 << 20), (Placement::Internal, (24 << 20) + 512), (Placement::External, 3 << 20)];
    let (me, peer) = (NodeId::new(31).unwrap(), NodeId::new(0).unwrap());
    for (placement, bytes) in places {
        for max_peers in [1, 3, 31] {
            let mut image = Image::random(placement, bytes, 64 << 20, Geometry::new(max_peers), &mut numbers);
            for other in NodeId::all().filter(|n| *n != peer) {
                image.sb.peer_mut(other).slot = None;
            }
            let layout = Layout::compute(placement, bytes, Geometry::new(1)).unwrap();
            let (v08, slot) = SuperblockV08::from_v09(&image.sb, (me, peer), &layout).unwrap();
            let alone = image.bitmap.slot_alone(slot);
            let moved = (max_peers > 1).then_some(&alone);
            let batches = rewrite::to_v08(&image.sb, &v08, &layout, moved);
            let disk = Disk::with(&image, bytes);
            let mut last_is_v08 = false;
            crashes(&disk, &batches, &mut numbers, |disk, batch| {
                let what = format!("{placement:?} {bytes}, {max_peers} peers, batch {batch} of {}", batches.len());
                let at = layout.superblock;
                last_is_v08 = SuperblockV08::decode(&disk.block(at), at).is_ok();
                if let Some((sb, layout)) = disk.v09(placement, bytes) {
                    let found = disk.attached(&sb, &layout).slot_alone(slot);
                    return assert_covers(&found, &alone, &what);
                }
                let found = SuperblockV08::decode(&disk.block(at), at).unwrap_or_else(|e| panic!("{what}: {e}"));
                let layout = found.check(placement, bytes).unwrap();
                let after = disk.attached(&found.convert(Some((me, peer))), &layout);
                assert_covers(&after, &alone, &what);
                let full_sync = image.sb.peer(peer).flags.contains(PeerFlags::FULL_SYNC);
                assert!(full_sync || after.image() == alone.image(), "{what}: more bits than before");
            });
            assert!(last_is_v08);
            assert_eq!(slot, Slot(max_peers - 1), "the generator gives the slots away from the end");
        }
    }
}

#[test]
fn growth_gives_what_a_correct_drbdmeta_gives() {
    let case = common::case("v09-resize-128m-256m-p1-master");
    let (before, after) = (case.stage("image"), case.stage("after-check-resize"));
    let sb = before.superblock().unwrap();
    let old = check(&sb, Placement::Internal, before.device_bytes).unwrap();
    let new = Layout::compute(Placement::Internal, after.device_bytes, sb.geometry()).unwrap();
    let bitmap = before.bitmap(&sb, &old);
    let batches = rewrite::grow(&sb, &old, &new, &before.ring(&old), &bitmap);
    let mut disk = Disk(vec![0; after.device_bytes as usize]);
    disk.put(before.region_at, &before.region);
    batches.iter().for_each(|batch| disk.write(batch, || true));
    assert!(disk.get(after.region_at, after.region.len() as u64) == after.region, "the new metadata");
    assert!(disk.block(old.superblock) == [0; 4096], "the old superblock");
}
