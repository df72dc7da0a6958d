//! What is on a device: DRBD's metadata of every golden image, and real file systems where their tools are installed.

mod common;

use std::convert::Infallible;
use std::os::unix::fs::FileExt;
use std::process::Command;

use common::{cases, number};
use metadata::{Found, Placement, SuperblockV08, Version, recognise};
use proptest::prelude::*;

fn recognise_bytes(placement: Placement, device: &[u8]) -> Vec<Found> {
    let read = |at: u64, buffer: &mut [u8]| {
        let end = at as usize + buffer.len();
        buffer.copy_from_slice(&device[at as usize..end]);
        Ok::<(), Infallible>(())
    };
    recognise(placement, device.len() as u64, read).unwrap()
}

#[test]
fn metadata_of_every_golden_image_is_recognised_at_its_place() {
    for case in cases().iter().filter(|c| c.name != "v09-64m-p3-sb-bad-magic") {
        for stage in case.stages() {
            let read = |at: u64, buffer: &mut [u8]| {
                assert!(at + buffer.len() as u64 <= stage.device_bytes, "{}: read past the end", stage.name);
                buffer.copy_from_slice(&stage.read(at, buffer.len()));
                Ok::<(), Infallible>(())
            };
            let found = recognise(stage.placement, stage.device_bytes, read).unwrap();
            let offset = stage.superblock_at();
            let recorded = &stage.json["decoded"]["superblock"];
            let unclean = number(&recorded["magic"]) == 0x8374_026C || number(&recorded["flags"]) & 0x80 == 0;
            let version = if stage.v09 { Version::V09 } else { Version::V08 { unclean } };
            assert_eq!(found, [Found::Drbd { version, offset }], "{}", stage.name);
        }
    }
}

#[test]
fn v08_superblocks_decode_to_what_is_recorded() {
    let mut seen = 0;
    for stage in cases().iter().flat_map(|c| c.stages()).filter(|s| !s.v09) {
        let at = stage.superblock_at();
        let sb = SuperblockV08::decode(&stage.block(at), at).unwrap();
        let recorded = &stage.json["decoded"]["superblock"];
        let fields = [
            ("magic", sb.magic.into()),
            ("effective_size", sb.last_agreed_sectors),
            ("current_uuid", sb.current_uuid.0),
            ("bitmap_uuid", sb.bitmap_uuid.0),
            ("history_uuid_0", sb.history[0].0),
            ("history_uuid_1", sb.history[1].0),
            ("device_uuid", sb.device_uuid),
            ("flags", sb.flags.0.into()),
            ("md_size_sect", sb.md_size_sectors.into()),
            ("al_extents", sb.al_slots.into()),
            ("bytes_per_bit", sb.bitmap_block_bytes.into()),
            ("max_bio_size", sb.peer_max_io_bytes.into()),
            ("al_stripes", sb.al_stripes.into()),
            ("al_stripe_size_4k", sb.al_stripe_4k.into()),
        ];
        for (field, value) in fields {
            assert_eq!(value, number(&recorded[field]), "{} {field}", stage.name);
        }
        let layout = metadata::Layout::compute(stage.placement, stage.device_bytes, sb.geometry()).unwrap();
        assert_eq!(layout.bm_offset_sectors, sb.bm_offset_sectors, "{}", stage.name);
        assert_eq!(layout.al_offset_sectors, sb.al_offset_sectors, "{}", stage.name);
        let refused = stage.superblock().unwrap_err();
        assert!(refused.to_string().contains("v08"), "{refused}");
        seen += 1;
    }
    assert_eq!(seen, 6);
}

/// Command that formats the file `FILE`, and the name to find.
const REAL: [(&[&str], &str); 9] = [
    (&["mkfs.ext4", "-q", "-F", "FILE"], "ext4 file system"),
    (&["mkfs.ext3", "-q", "-F", "FILE"], "ext3 file system"),
    (&["mkfs.ext2", "-q", "-F", "FILE"], "ext2 file system"),
    (&["mkfs.xfs", "-q", "-f", "FILE"], "XFS file system"),
    (&["mkfs.btrfs", "-q", "-f", "FILE"], "btrfs file system"),
    (&["mkfs.vfat", "FILE"], "FAT file system"),
    (&["mkswap", "-q", "FILE"], "swap space"),
    (&["sh", "-c", "echo label: gpt | sfdisk -q $0", "FILE"], "GPT partition table"),
    (
        &[
            "cryptsetup",
            "-q",
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            "luksFormat",
            "FILE",
            "/etc/hostname",
        ],
        "LUKS encrypted volume",
    ),
];

#[test]
fn what_real_tools_write_is_recognised() {
    let path = std::env::temp_dir().join(format!("replicad-recognise-{}.img", std::process::id()));
    for (command, name) in REAL {
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(320 << 20).unwrap();
        let args = command[1..].iter().map(|a| if *a == "FILE" { path.to_str().unwrap() } else { a });
        let mut tool = Command::new(command[0]);
        let output = tool.args(args).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(std::process::Stdio::null());
        let Some(output) = output.output().ok().filter(|output| output.status.code() != Some(127)) else {
            common::skipped(&format!("{} not installed", command[0]));
            continue;
        };
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        let file = std::fs::File::open(&path).unwrap();
        let found = recognise(Placement::Internal, 320 << 20, |at, buffer| file.read_exact_at(buffer, at)).unwrap();
        let has = |f: &Found| matches!(f, Found::Other { name: found, .. } if *found == name);
        assert!(found.iter().any(has), "{command:?}: {found:?}");
    }
    let _ = std::fs::remove_file(&path);
}

/// The rest of the table, and what is not to be found.
#[test]
fn signatures_without_a_tool_here() {
    let device = |patches: &[(usize, &[u8])]| {
        let mut bytes = vec![0; 1 << 20];
        for (at, patch) in patches {
            bytes[*at..at + patch.len()].copy_from_slice(patch);
        }
        recognise_bytes(Placement::External, &bytes).iter().map(Found::to_string).collect::<Vec<_>>()
    };
    let raid = [0xFC, 0x4E, 0x2B, 0xA9];
    assert_eq!(device(&[]), [""; 0]);
    assert_eq!(device(&[(0x218, b"LVM2 001")]), ["LVM2 physical volume (signature at byte 536)"]);
    assert_eq!(device(&[(3, b"NTFS    "), (510, &[0x55, 0xAA])]), ["NTFS file system (signature at byte 3)"]);
    assert_eq!(device(&[(4096, &raid)]), ["Linux RAID member (signature at byte 4096)"]);
    assert_eq!(device(&[((1 << 20) - 8192, &raid)]), ["Linux RAID member (signature at byte 1040384)"]);
    assert_eq!(device(&[((1 << 20) - 65536, &raid)]), ["Linux RAID member (signature at byte 983040)"]);
    assert_eq!(device(&[(0, b"LUKS\xBA\xBE")]), ["LUKS encrypted volume (signature at byte 0)"]);
    assert_eq!(device(&[(0x10040, b"_BHRfS_M")]), ["btrfs file system (signature at byte 65600)"]);
    assert_eq!(device(&[(0x52, b"FAT32   "), (510, &[0x55, 0xAA])]), ["FAT file system (signature at byte 82)"]);
    let mbr = device(&[(446 + 4, &[0x83]), (510, &[0x55, 0xAA])]);
    assert_eq!(mbr, ["MBR partition table (signature at byte 510)"]);
    assert_eq!(device(&[(510, &[0x55, 0xAA])]), [""; 0], "an MBR without partitions");
    let v07 = device(&[(0x3C, &0x8374_026A_u32.to_be_bytes())]);
    assert_eq!(v07, ["DRBD metadata v07 (signature at byte 0)"]);
}

proptest! {
    #[test]
    fn devices_of_any_size_and_content_are_read_inside_their_bounds(
        device in prop::collection::vec(any::<u8>(), 0..3000),
        repeat in 0usize..60,
        index in any::<u8>(),
    ) {
        let device = device.repeat(repeat);
        recognise_bytes(Placement::Indexed(index), &device);
    }
}
