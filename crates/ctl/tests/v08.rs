//! Metadata of DRBD 8 through the real programs: dumped and restored in both directions with Debian's drbdmeta, and v09
//! given back to it.

#[path = "../../metadata/tests/common/mod.rs"]
mod golden;

mod common;

use common::{Answer, volume, written};
use golden::generated::{Device, Image, Kind, Numbers, assert_same_dump, drbdmeta_or_skip};
use metadata::{DeviceFlags, Geometry, Layout, PeerFlags, Placement, Superblock, SuperblockV08};
use types::{NodeId, Slot, Uuid};

const PLACES: [(Kind, Placement, u64); 6] = [
    (Kind::PlainFile, Placement::Internal, 8 << 20),
    (Kind::Loop, Placement::Internal, (1 << 30) + 512),
    (Kind::PlainFile, Placement::Internal, (300 << 20) + 37 * 512),
    (Kind::PlainFile, Placement::External, (2 << 20) + 512),
    (Kind::Loop, Placement::External, 3 << 20),
    (Kind::PlainFile, Placement::Indexed(1), 257 << 20),
];

/// Node 0, whose peer is node 1, as the configuration of [`volume`] says.
const PEER: u8 = 1;

fn ok(placement: Placement, device: &Device, arguments: &str) -> String {
    let Answer { code, out, err } = volume(placement, device.path(), arguments);
    assert_eq!(code, 0, "{placement:?} {arguments}: {err}");
    out
}

fn drbdmeta_ok(device: &Device, placement: Placement, args: &[&str]) -> String {
    let out = device.drbdmeta_as("v08", placement, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn superblock(device: &Device, layout: &Layout) -> SuperblockV08 {
    let block = device.read(layout.superblock, 4096).try_into().unwrap();
    SuperblockV08::decode(&block, layout.superblock).unwrap()
}

/// v09 that node 0 shares with node 1 alone: random identifiers, flags and bits, log clean.
fn shared(placement: Placement, bytes: u64, max_peers: u8, numbers: &mut Numbers) -> Image {
    let mut image = Image::random(placement, bytes, 900 << 20, Geometry::new(max_peers), numbers);
    image.sb.node_id = NodeId::new(0);
    image.sb.flags = DeviceFlags(0x80 | numbers.next() as u32 & 0x753);
    let slot = Slot(numbers.below(max_peers.into()) as u8);
    for node in NodeId::all() {
        image.sb.peer_mut(node).slot = (node.get() == PEER).then_some(slot);
    }
    let record = image.sb.peer_mut(NodeId::new(PEER).unwrap());
    (record.bitmap_uuid, record.flags) = (Uuid(numbers.next()), PeerFlags(numbers.next() as u32 & 0x1001F));
    image
}

/// As drbdmeta sees it, and what its own conversion makes of the same identifiers.
#[test]
fn v09_is_given_back_with_identifiers_and_bits() {
    let Some(_guard) = drbdmeta_or_skip("conversion to v08") else { return };
    let mut numbers = Numbers(0x0FF1_CE08);
    for (kind, placement, bytes) in PLACES {
        for max_peers in [1, 1, 4] {
            let Some(device) = Device::new(kind, bytes) else { break };
            let what = format!("{placement:?} {bytes}, {max_peers} slots");
            let image = shared(placement, bytes, max_peers, &mut numbers);
            image.write_to(&device);
            let ring = device.read(image.layout.activity_log, 32768);
            let out = ok(placement, &device, "create-md r0/0 --format v08 --force");
            assert!(out.contains("converted to v08"), "{out}");

            let layout = Layout::compute(placement, bytes, Geometry::new(1)).unwrap();
            let sb = superblock(&device, &layout);
            sb.check(placement, bytes).unwrap();
            let record = image.sb.peer(NodeId::new(PEER).unwrap());
            assert_eq!((sb.current_uuid, sb.bitmap_uuid), (image.sb.current_uuid, record.bitmap_uuid), "{what}");
            assert_eq!(sb.history, [image.sb.history[0], image.sb.history[1]], "{what}");
            let bitmap = image.bitmap.slot_alone(record.slot.unwrap());
            assert!(device.read(layout.bitmap, bitmap.image().len() as u64) == bitmap.image(), "{what}: bits");
            assert!(device.read(layout.activity_log, 32768) == ring, "{what}: the log");
            let gi = drbdmeta_ok(&device, placement, &["get-gi"]);
            let uuids = [sb.current_uuid, sb.bitmap_uuid, sb.history[0], sb.history[1]].map(|u| u.to_string());
            assert!(gi.starts_with(&uuids.join(":")), "{what}: {gi}");
            assert!(ok(placement, &device, "create-md r0/0 --format v08").contains("v08 already"), "{what}");

            if max_peers == 1 {
                as_drbdmeta_converts(&image, placement, bytes, &sb, &what);
            }
            // And forth again, to the superblock that it was, but for what 8.4 does not know.
            ok(placement, &device, "create-md r0/0 --force");
            let again = Image::read_from(&device, placement, bytes);
            assert_eq!(again.sb.peer(NodeId::new(PEER).unwrap()).bitmap_uuid, sb.bitmap_uuid, "{what}");
            assert!(again.bitmap.image() == bitmap.image(), "{what}: bits after the return");
        }
    }
}

/// drbdmeta takes record 0 for the peer's, and keeps flags that v08 does not have. It keeps the primary indicator of a
/// Secondary, which 8.4 takes for that of a crashed Primary.
fn as_drbdmeta_converts(image: &Image, placement: Placement, bytes: u64, ours: &SuperblockV08, what: &str) {
    let device = Device::new(Kind::PlainFile, bytes).unwrap();
    let mut sb = image.sb.clone();
    sb.peers.swap(0, PEER.into());
    device.write(image.layout.superblock, &sb.encode());
    drbdmeta_ok(&device, placement, &["create-md"]);
    let theirs = superblock(&device, &image.layout);
    let mut known = DeviceFlags(theirs.flags.0 & 0x1FF);
    known.set(DeviceFlags::PRIMARY_INDICATOR, image.sb.flags.contains(DeviceFlags::CRASHED_PRIMARY));
    // It forgets the size of requests.
    let theirs = SuperblockV08 { flags: known, peer_max_io_bytes: ours.peer_max_io_bytes, ..theirs };
    assert_eq!(*ours, theirs, "{what}");
}

#[test]
fn either_dumps_and_restores_v08_as_the_other_does() {
    let Some(_guard) = drbdmeta_or_skip("dumps of v08") else { return };
    let mut numbers = Numbers(0xD0_08);
    for (kind, placement, bytes) in PLACES {
        let Some(device) = Device::new(kind, bytes) else { continue };
        let image = shared(placement, bytes, 1, &mut numbers);
        image.write_to(&device);
        ok(placement, &device, "create-md r0/0 --format v08 --force");
        let our_dump = ok(placement, &device, "dump-md r0/0");
        let their_dump = drbdmeta_ok(&device, placement, &["dump-md"]);
        let sb = superblock(&device, &image.layout);
        let flags = format!("flags 0x{:08X};", sb.flags.0);
        assert!(our_dump.contains(&flags), "{our_dump}");
        // 9.22 prints none (newer ones do).
        let with_flags = their_dump.replace("flags 0x00000000;", &flags);
        assert_same_dump(&our_dump, &with_flags, &format!("{placement:?} {bytes}"));

        let bitmap = image.bitmap.image().len() as u64;
        let regions = |device: &Device| {
            let places =
                [(image.layout.superblock, 4096), (image.layout.activity_log, 32768), (image.layout.bitmap, bitmap)];
            places.map(|(at, len)| device.read(at, len))
        };
        let original = regions(&device);
        let blank = Image {
            sb: Superblock::fresh(Geometry::new(1), &image.layout),
            ..shared(placement, bytes, 1, &mut numbers)
        };
        let text = written(&our_dump);
        let path = text.path().to_str().unwrap();
        blank.write_to(&device);
        // Its restore-md wants v08 to be there.
        drbdmeta_ok(&device, placement, &["create-md"]);
        drbdmeta_ok(&device, placement, &["restore-md", path]);
        assert!(regions(&device) == original, "{placement:?} {bytes}: our dump, restored by drbdmeta");
        blank.write_to(&device);
        ok(placement, &device, &format!("restore-md r0/0 {path} --force"));
        assert!(regions(&device) == original, "{placement:?} {bytes}: our dump, restored by us");
        let text = written(&their_dump);
        let answer = volume(placement, device.path(), &format!("restore-md r0/0 {} --force", text.path().display()));
        assert_eq!(answer.code, 0, "{}", answer.err);
        assert!(answer.err.contains("no flags") && answer.err.contains("Inconsistent"), "{}", answer.err);
        let without_flags = SuperblockV08 { flags: DeviceFlags::AL_CLEAN, ..sb };
        assert_eq!(superblock(&device, &image.layout), without_flags, "{placement:?} {bytes}");
    }
}

#[test]
fn what_v08_cannot_say_is_refused_and_nothing_changes() {
    let bytes = 16 << 20;
    let mut numbers = Numbers(0x0BAD_0008);
    let device = Device::new(Kind::PlainFile, bytes).unwrap();
    let refused = |image: &Image, arguments: &str, words: &[&str]| {
        image.write_to(&device);
        let before = device.read(0, bytes);
        let answer = volume(Placement::Internal, device.path(), &format!("create-md r0/0 {arguments}"));
        assert_eq!((answer.code, answer.out.as_str()), (1, ""), "{}", answer.err);
        for word in words {
            assert!(answer.err.contains(word), "`{word}` is not in: {}", answer.err);
        }
        assert!(device.read(0, bytes) == before, "a refused command changed the disk: {}", answer.err);
    };
    let image = |numbers: &mut Numbers, max_peers| shared(Placement::Internal, bytes, max_peers, numbers);
    let good = image(&mut numbers, 2);
    refused(&good, "--format v08", &["holds DRBD metadata v09", "--force to convert it to v08"]);
    refused(&good, "--format v08 --force --max-peers 2", &["two nodes", "2 were asked for", "without --max-peers"]);
    let mut other = image(&mut numbers, 2);
    other.sb.flags.set(DeviceFlags::AL_CLEAN, false);
    refused(&other, "--format v08 --force", &["log is not applied", "`replicactl apply-al r0/0`"]);
    let mut other = image(&mut numbers, 2);
    let taken = other.sb.peer(NodeId::new(PEER).unwrap()).slot.unwrap();
    other.sb.peers[9].slot = Some(Slot(1 - taken.0));
    refused(&other, "--format v08 --force", &["for other nodes, too: 9", "forget-peer --node-id N"]);
    let mut other = image(&mut numbers, 1);
    other.sb.node_id = NodeId::new(5);
    refused(&other, "--format v08 --force", &["the disk of the node with id 5"]);
    let mut other = image(&mut numbers, 1);
    other.sb.peers[usize::from(PEER)].slot = None;
    other.sb.peers[usize::from(PEER)].flags = PeerFlags::DEVICE_SEEN;
    refused(&other, "--format v08 --force", &["no bitmap for the other node", "`replicactl up r0`"]);
    let larger = Geometry { bitmap_block_bytes: 65536, ..Geometry::new(1) };
    let mut other = Image::random(Placement::Internal, bytes, u64::MAX, larger, &mut numbers);
    other.sb.node_id = None;
    refused(&other, "--format v08 --force", &["stands for 65536 bytes", "full sync"]);
}
