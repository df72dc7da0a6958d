//! replicactl and Debian's drbdmeta on the same generated metadata, each reading what the other wrote: dumps, restores,
//! and the activity log applied. Both are the real programs, on files and on loop devices.

#[path = "../../metadata/tests/common/mod.rs"]
mod golden;

mod common;

use common::{Answer, volume, written};
use golden::generated::{Device, Image, Kind, Numbers, assert_same_dump, drbdmeta_or_skip};
use metadata::activity_log::al_extents_max;
use metadata::{Geometry, Layout, Placement, Superblock};

const SEED: u64 = 0x5DEE_CE66_D1CE_4E5B;
const CASES: u32 = 30;

/// What one run of the properties is about.
#[derive(Clone, Copy, Debug)]
struct Case {
    number: u32,
    kind: Kind,
    placement: Placement,
    /// Of the device that carries the metadata.
    bytes: u64,
    geometry: Geometry,
    /// Upper limit of the agreed size; odd like everything else here.
    volume_max: u64,
}

impl Case {
    fn draw(number: u32, numbers: &mut Numbers) -> Case {
        let one_of = |numbers: &mut Numbers, from: &[u32]| from[numbers.below(from.len() as u64) as usize];
        let placement = [Placement::Internal, Placement::External, Placement::Indexed(number as u8 % 3)];
        let placement = placement[number as usize % 3];
        let mut geometry = Geometry::new(1 + numbers.below(31) as u8);
        if number.is_multiple_of(4) {
            geometry.max_peers = 1;
        }
        if !matches!(placement, Placement::Indexed(_)) {
            geometry.al_stripes = one_of(numbers, &[1, 1, 2, 3, 4]);
            geometry.al_stripe_4k = one_of(numbers, &[8, 8, 16, 17, 64]);
        }
        // drbdmeta 9.22 aborts with larger blocks in external metadata (a failed assertion in max_usable_sectors).
        if placement == Placement::Internal {
            geometry.bitmap_block_bytes = one_of(numbers, &[4096, 16384, 65536, 1 << 20]);
        }
        let sectors = |bytes: u64| bytes / 512;
        let bytes = 512
            * match placement {
                Placement::Internal => sectors(8 << 20) + numbers.below(sectors(1 << 30)),
                Placement::External => sectors(3 << 20) + numbers.below(sectors(3 << 20)),
                Placement::Indexed(_) => sectors(384 << 20) + numbers.below(sectors(1 << 20)),
            };
        let volume_max = 512 * (1 + numbers.below(sectors(700 << 20)));
        let kind = if number.is_multiple_of(5) { Kind::Loop } else { Kind::PlainFile };
        Case { number, kind, placement, bytes, geometry, volume_max }
    }
    fn device(&self) -> Option<Device> {
        Device::new(self.kind, self.bytes)
    }
    fn image(&self, numbers: &mut Numbers) -> Image {
        Image::random(self.placement, self.bytes, self.volume_max, self.geometry, numbers)
    }
    /// Whole bytes of superblock, log and the bitmap of the agreed size.
    fn regions(&self, device: &Device) -> (Layout, [Vec<u8>; 3]) {
        let image = Image::read_from(device, self.placement, self.bytes);
        let layout = image.layout;
        let bitmap_bytes = image.sb.geometry().bitmap_bytes(image.sb.last_agreed_bytes).unwrap();
        let regions = [
            device.read(layout.superblock, 4096),
            device.read(layout.activity_log, u64::from(layout.al_blocks) * 4096),
            device.read(layout.bitmap, bitmap_bytes.min(layout.bitmap_bytes)),
        ];
        (layout, regions)
    }
}

fn ours(case: &Case, device: &Device, arguments: &str) -> Answer {
    volume(case.placement, device.path(), arguments)
}

fn ours_ok(case: &Case, device: &Device, arguments: &str) -> String {
    let Answer { code, out, err } = ours(case, device, arguments);
    assert_eq!(code, 0, "{case:?} {arguments}: {err}");
    out
}

fn each_case(name: &str, mut test: impl FnMut(&Case, &mut Numbers)) {
    let Some(_guard) = drbdmeta_or_skip(name) else { return };
    let mut numbers = Numbers(SEED);
    for number in 0..CASES {
        let case = Case::draw(number, &mut numbers);
        test(&case, &mut numbers);
    }
}

#[test]
fn either_dumps_and_restores_what_the_other_does() {
    each_case("dumps of replicactl and drbdmeta", |case, numbers| {
        let image = case.image(numbers);
        let Some(device) = case.device() else { return };
        image.write_to(&device);
        let our_dump = ours_ok(case, &device, "dump-md r0/0");
        let their_dump = device.drbdmeta_ok(case.placement, &["dump-md"]);
        assert_same_dump(&our_dump, &their_dump, &format!("{case:?}"));

        let (layout, original) = case.regions(&device);
        let blank = Image { sb: Superblock::fresh(case.geometry, &layout), ..case.image(numbers) };
        blank.write_to(&device);
        // drbdmeta 9.22 computes the place of the bitmap for 4096 bytes per bit and then refuses what it wrote.
        if case.geometry.bitmap_block_bytes == 4096 {
            let text = written(&our_dump);
            device.drbdmeta_ok(case.placement, &["restore-md", text.path().to_str().unwrap()]);
            assert!(case.regions(&device) == (layout, original.clone()), "{case:?}: our dump, restored by drbdmeta");
        }

        blank.write_to(&device);
        let text = written(&their_dump);
        ours_ok(case, &device, &format!("restore-md r0/0 {} --force", text.path().display()));
        assert!(case.regions(&device) == (layout, original), "{case:?}: drbdmeta's dump, restored by us");
        let again = device.drbdmeta_ok(case.placement, &["dump-md"]);
        assert_same_dump(&again, &their_dump, &format!("{case:?}: dumped again"));
    });
}

#[test]
fn either_applies_the_log_as_the_other_does() {
    each_case("apply-al of replicactl and drbdmeta", |case, numbers| {
        // drbdmeta 9.22 aborts with larger blocks when there is a log to apply.
        let geometry = Geometry { bitmap_block_bytes: 4096, ..case.geometry };
        let case = Case { geometry, ..*case };
        let mut image = case.image(numbers);
        let slots_max = al_extents_max(image.layout.al_blocks) as u16;
        image.crash([67, 1237, slots_max][case.number as usize % 3], numbers);
        let (Some(mine), Some(theirs)) = (case.device(), case.device()) else { return };
        for device in [&mine, &theirs] {
            image.write_to(device);
        }
        assert_eq!(ours(&case, &mine, "dump-md r0/0").code, 255, "{case:?}: not applied");
        ours_ok(&case, &mine, "apply-al r0/0");
        theirs.drbdmeta_ok(case.placement, &["apply-al"]);
        let read = |device: &Device| Image::read_from(device, case.placement, case.bytes);
        read(&mine).assert_same(&read(&theirs), &format!("{case:?}"));
        let set: u64 = image.bitmap.slots().map(|slot| read(&mine).bitmap.count(slot)).sum();
        assert!(set > 0, "{case:?}: a crash of a Primary leaves something to resync");

        // What is left after either is dumped alike by both, and nothing is left to apply for the other.
        for device in [&mine, &theirs] {
            let dump = device.drbdmeta_ok(case.placement, &["dump-md"]);
            assert_same_dump(&ours_ok(&case, device, "dump-md r0/0"), &dump, &format!("{case:?}"));
        }
        assert!(ours_ok(&case, &theirs, "apply-al r0/0").contains("applied already"), "{case:?}");
        let before = case.regions(&mine);
        mine.drbdmeta_ok(case.placement, &["apply-al"]);
        assert!(case.regions(&mine) == before, "{case:?}: drbdmeta found something to apply after us");
    });
}
