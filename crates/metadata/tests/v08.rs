//! DRBD 8's metadata against what drbdmeta made of the same images.

mod common;

use common::{Case, Stage, case};
use metadata::{
    AnyDump, Bitmap, DeviceFlags, DumpOptions, Inexpressible, Layout, PeerRecord, Recovery, Superblock, SuperblockV08,
    apply_al, check, parse_any_dump, restore_v08, write_dump_v08,
};
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

/// A running Primary of 8.4 has only the indicator on disk; in v09 that alone could be a Secondary's, which is no source.
#[test]
fn with_an_owner_a_crashed_primary_is_one_in_v09() {
    let mut sb = superblock(&case("v08-64m-convert").stage("image"));
    for indicator in [false, true] {
        sb.flags.set(DeviceFlags::CRASHED_PRIMARY, false);
        sb.flags.set(DeviceFlags::PRIMARY_INDICATOR, indicator);
        let converted = sb.convert(Some(nodes()));
        assert_eq!(converted.flags.contains(DeviceFlags::CRASHED_PRIMARY), indicator);
        assert_eq!(converted.flags.contains(DeviceFlags::PRIMARY_INDICATOR), indicator);
    }
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
    assert!(sb.applied().encode() == after.block(after.superblock_at()), "{}", case.name);
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

#[test]
fn a_superblock_encodes_to_what_was_decoded() {
    for (name, tag) in [("v08-64m-clean", "image"), ("v08-64m-84-needs-apply-al", "image")] {
        let stage = case(name).stage(tag);
        assert!(superblock(&stage).encode() == stage.block(stage.superblock_at()), "{name}");
    }
}

fn dump(stage: &Stage) -> String {
    let (sb, layout) = (superblock(stage), layout(stage));
    let bitmap = stage.bitmap(&sb.convert(None), &layout);
    let mut text = String::new();
    write_dump_v08(&mut text, DumpOptions::default(), &sb, &layout, bitmap.image()).unwrap();
    text
}

/// Newer drbdmeta print the flags; 9.22 prints 0, which restored would make the disk Inconsistent.
#[test]
fn dumps_are_those_of_drbdmeta() {
    let goldens = [
        ("v08-64m-clean", "image", "v08-64m-clean.master.dump"),
        ("v08-64m-clean", "image", "v08-64m-clean.dump"),
        ("v08-64m-convert", "image", "v08-64m-convert.dump"),
        ("v08-64m-83-needs-apply-al", "image", "v08-64m-83-needs-apply-al.forced.dump"),
        ("v08-64m-83-needs-apply-al", "after-apply-al", "v08-64m-83-needs-apply-al.after-apply-al.dump"),
        ("v08-64m-84-needs-apply-al", "image", "v08-64m-84-needs-apply-al.forced.dump"),
        ("v08-64m-84-needs-apply-al", "after-apply-al", "v08-64m-84-needs-apply-al.after-apply-al.dump"),
    ];
    for (name, tag, file) in goldens {
        let stage = case(name).stage(tag);
        let flags = superblock(&stage).flags;
        let theirs = common::text(file).replace("flags 0x00000000;", &format!("flags 0x{:08X};", flags.0));
        common::generated::assert_same_dump(&dump(&stage), &theirs, file);
    }
}

#[test]
fn a_dump_restores_to_what_was_dumped() {
    for (name, tag) in [("v08-64m-clean", "image"), ("v08-64m-84-needs-apply-al", "after-apply-al")] {
        let stage = case(name).stage(tag);
        let Ok(AnyDump::V08(parsed)) = parse_any_dump(&dump(&stage)) else { panic!("{name} is no dump of v08") };
        let restored = restore_v08(&parsed, stage.placement, stage.device_bytes).unwrap();
        assert!(restored.superblock.encode() == stage.block(stage.superblock_at()), "{name}");
        let bitmap = stage.bitmap(&superblock(&stage).convert(None), &layout(&stage));
        assert!(restored.bitmap == bitmap.image(), "{name}");
        assert!(restore_v08(&parsed, stage.placement, stage.device_bytes / 2).is_err(), "{name} on half the device");
    }
    let unclean = dump(&case("v08-64m-84-needs-apply-al").stage("image"));
    assert!(parse_any_dump(&unclean).unwrap_err().to_string().contains("activity log was not applied"));
    assert!(parse_any_dump("version \"v07\";").unwrap_err().to_string().contains("\"v08\" or \"v09\""));
}

/// There and back again: nothing of what v08 says is lost.
#[test]
fn v08_becomes_v09_and_v08_again() {
    for (name, tag) in [("v08-64m-clean", "image"), ("v08-64m-84-needs-apply-al", "after-apply-al")] {
        let stage = case(name).stage(tag);
        let (me, peer) = nodes();
        let v09 = superblock(&stage).convert(Some((me, peer)));
        let (back, slot) = SuperblockV08::from_v09(&v09, (me, peer), &layout(&stage)).unwrap();
        assert!(back.encode() == stage.block(stage.superblock_at()), "{name}");
        assert_eq!(slot, Slot(0));
    }
}

#[test]
fn what_v08_cannot_say_is_refused() {
    let stage = case("v08-64m-clean").stage("image");
    let (me, peer) = nodes();
    let third = NodeId::new(7).unwrap();
    let v09 = superblock(&stage).convert(Some((me, peer)));
    let refused = |change: &dyn Fn(&mut Superblock)| {
        let mut sb = v09.clone();
        change(&mut sb);
        SuperblockV08::from_v09(&sb, (me, peer), &layout(&stage)).unwrap_err()
    };
    assert_eq!(refused(&|sb| sb.flags.set(DeviceFlags::AL_CLEAN, false)), Inexpressible::LogNotApplied);
    assert_eq!(refused(&|sb| sb.bitmap_block_bytes = 65536), Inexpressible::BitmapBlock { bytes: 65536 });
    assert_eq!(refused(&|sb| sb.node_id = Some(third)), Inexpressible::OtherNode { found: third });
    let others = vec![third];
    assert_eq!(refused(&|sb| sb.peer_mut(third).slot = Some(Slot(1))), Inexpressible::OtherPeers { others });
    assert_eq!(refused(&|sb| sb.peer_mut(peer).slot = None), Inexpressible::NoSlot);
}

/// Nobody has owned the slot yet: it holds what changed since day 0, counted from the day-0 generation.
#[test]
fn a_slot_of_nobody_goes_with_its_generation() {
    let stage = case("v08-64m-clean").stage("image");
    let (me, peer) = nodes();
    let mut v09 = superblock(&stage).convert(Some((me, peer)));
    *v09.peer_mut(peer) = PeerRecord { bitmap_uuid: Uuid(0xDA70_DA70_DA70_DA70), ..PeerRecord::default() };
    let (v08, slot) = SuperblockV08::from_v09(&v09, (me, peer), &layout(&stage)).unwrap();
    assert_eq!((v08.bitmap_uuid, slot), (Uuid(0xDA70_DA70_DA70_DA70), Slot(0)));
}

/// In v09 a Secondary that was written to has the indicator; 8.4 would take it for a crashed Primary, and so for the source.
#[test]
fn only_a_crashed_primary_goes_back_as_one() {
    let stage = case("v08-64m-clean").stage("image");
    let (me, peer) = nodes();
    let mut v09 = superblock(&stage).convert(Some((me, peer)));
    v09.flags.set(DeviceFlags::PRIMARY_INDICATOR, true);
    for crashed in [false, true] {
        v09.flags.set(DeviceFlags::CRASHED_PRIMARY, crashed);
        let (v08, _) = SuperblockV08::from_v09(&v09, (me, peer), &layout(&stage)).unwrap();
        assert_eq!(v08.flags.contains(DeviceFlags::PRIMARY_INDICATOR), crashed);
    }
}
