//! DRBD 8's metadata against what drbdmeta made of the same images.

mod common;

use common::{Case, Stage, case};
use metadata::{Bitmap, Layout, Recovery, SuperblockV08, apply_al, check, v08};
use types::{NodeId, Slot, Uuid};

fn superblock(stage: &Stage) -> SuperblockV08 {
    let at = stage.superblock_at();
    SuperblockV08::decode(&stage.block(at), at).unwrap()
}

fn layout(stage: &Stage) -> Layout {
    Layout::compute(stage.placement, stage.device_bytes, superblock(stage).geometry()).unwrap()
}

fn nodes() -> (NodeId, NodeId) {
    (NodeId::new(1).unwrap(), NodeId::new(0).unwrap())
}

#[test]
fn without_an_owner_it_converts_like_drbdmeta() {
    let case = case("v08-64m-convert");
    let (before, after) = (case.stage("image"), case.stage("after-convert-v09"));
    let mut converted = superblock(&before).convert(None);
    assert_eq!(converted.peer_max_io_bytes, 131_072);
    // drbdmeta 9.22 forgets it, newer ones keep it.
    converted.peer_max_io_bytes = 0;
    assert_eq!(converted, after.superblock().unwrap());
    assert_eq!(converted.encode(), after.block(after.superblock_at()));
}

/// drbdmeta loses it; without it the next handshake knows of no common generation to count the bits from.
#[test]
fn with_an_owner_the_slot_keeps_its_generation() {
    let stage = case("v08-64m-convert").stage("image");
    let (me, peer) = nodes();
    let converted = superblock(&stage).convert(Some((me, peer)));
    let record = converted.peer(peer);
    assert_eq!(converted.node_id, Some(me));
    assert_eq!((record.bitmap_uuid, record.slot), (Uuid(0xAA22_3344_5566_7788), Some(Slot(0))));
    let layout = check(&converted, stage.placement, stage.device_bytes).unwrap();
    assert_eq!(common::set_ranges(&stage.bitmap(&converted, &layout), Slot(0)), [(36, 43)]);
}

fn applied(case: &Case) {
    let (before, after) = (case.stage("image"), case.stage("after-apply-al"));
    let (sb, layout) = (superblock(&before), layout(&before));
    assert!(sb.unclean(), "{}", case.name);
    let recovery = sb.recover(&before.ring(&layout));
    let mut converted = sb.convert(None);
    let mut bitmap: Bitmap = before.bitmap(&converted, &layout);
    apply_al(&mut converted, &mut bitmap, &recovery);
    let expected = after.bitmap(&converted, &layout);
    assert!(bitmap.image() == expected.image(), "{}: {recovery:?}", case.name);
    let mut block = before.block(before.superblock_at());
    v08::mark_applied(&mut block, &sb);
    assert!(block == after.block(after.superblock_at()), "{}", case.name);
    assert!(!superblock(&after).unclean());
}

#[test]
fn the_log_of_84_is_applied_like_drbdmeta_does() {
    applied(&case("v08-64m-84-needs-apply-al"));
}

#[test]
fn the_log_of_83_is_applied_like_drbdmeta_does() {
    applied(&case("v08-64m-83-needs-apply-al"));
}

#[test]
fn a_torn_newest_sector_of_83_loses_nothing_an_older_one_everything() {
    let stage = case("v08-64m-83-needs-apply-al").stage("image");
    let (sb, layout) = (superblock(&stage), layout(&stage));
    let ring = stage.ring(&layout);
    let torn = |sector: usize| {
        let mut ring = ring.clone();
        ring[0][sector * 512 + 20] ^= 1;
        sb.recover(&ring)
    };
    assert!(matches!(torn(3), Recovery::Hot { .. }));
    assert!(matches!(torn(1), Recovery::MarkEverything { .. }));
}

#[test]
fn a_log_of_83_without_a_good_sector_marks_everything() {
    let stage = case("v08-64m-83-needs-apply-al").stage("image");
    let (sb, layout) = (superblock(&stage), layout(&stage));
    let mut ring = stage.ring(&layout);
    for sector in 0..4 {
        ring[0][sector * 512 + 20] ^= 1;
    }
    assert!(matches!(sb.recover(&ring), Recovery::MarkEverything { .. }));
    ring.iter_mut().for_each(|block| block.fill(0));
    assert_eq!(sb.recover(&ring), Recovery::Nothing, "never written");
}
