//! Both directions against the real drbdmeta (Debian package drbd-utils), on plain files and on loop devices: what we
//! write it dumps and recovers as we do; what it creates and restores we decode, and dump as it does.
//!
//! Without drbdmeta each test says so loudly and passes; `cargo xtask test` installs the package before.

mod common;

use common::generated::{Device, Image, KINDS, Numbers, assert_same_dump, devices, drbdmeta_or_skip, geometries};
use metadata::activity_log::{INITIALISED, al_extents_max};
use metadata::{DeviceFlags, Geometry, Placement, Superblock, parse_dump, restore};

/// Runs `test` on every kind of device, placement, size and number of peers.
fn everywhere(name: &str, test: impl Fn(&Device, Placement, u64, u64, Geometry, &mut Numbers)) {
    let Some(_guard) = drbdmeta_or_skip(name) else { return };
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    for kind in KINDS {
        for (placement, bytes, volume_max) in devices() {
            for geometry in geometries() {
                let default_only = matches!(placement, Placement::Indexed(_)) || bytes == 1 << 20;
                if default_only && geometry != Geometry::new(geometry.max_peers) {
                    continue;
                }
                let Some(device) = Device::new(kind, bytes) else { break };
                test(&device, placement, bytes, volume_max, geometry, &mut numbers);
            }
        }
    }
}

#[test]
fn it_dumps_what_we_write_as_we_do() {
    everywhere("dump", |device, placement, bytes, volume_max, geometry, numbers| {
        let image = Image::random(placement, bytes, volume_max, geometry, numbers);
        image.write_to(device);
        let theirs = device.drbdmeta_ok(placement, &["dump-md"]);
        assert_same_dump(&image.dump(), &theirs, &format!("{placement:?} {bytes} {geometry:?}"));
    });
}

#[test]
fn it_applies_our_activity_log_as_we_do() {
    everywhere("apply-al", |device, placement, bytes, volume_max, geometry, numbers| {
        let mut image = Image::random(placement, bytes, volume_max, geometry, numbers);
        let slots_max = al_extents_max(image.layout.al_blocks) as u16;
        for slots in [67, 1237, slots_max] {
            image.crash(slots, numbers);
            image.write_to(device);
            device.drbdmeta_ok(placement, &["apply-al"]);
            image.apply_al();
            let theirs = Image::read_from(device, placement, bytes);
            image.assert_same(&theirs, &format!("{placement:?} {bytes} {geometry:?}, {slots} slots"));
            let dump = device.drbdmeta_ok(placement, &["dump-md"]);
            assert_same_dump(&theirs.dump(), &dump, &format!("{placement:?} {bytes} {geometry:?}"));
        }
    });
}

#[test]
fn what_it_creates_is_what_we_create_and_both_dump_it_alike() {
    everywhere("create-md", |device, placement, bytes, _, geometry, _| {
        let peers = geometry.max_peers.to_string();
        let stripes = geometry.al_stripes.to_string();
        let stripe_kb = (geometry.al_stripe_4k * 4).to_string();
        let mut args = vec!["create-md"];
        if geometry != Geometry::new(geometry.max_peers) {
            args.extend(["--al-stripes", &stripes, "--al-stripe-size-kB", &stripe_kb]);
        }
        args.push(&peers);
        device.drbdmeta_ok(placement, &args);
        let theirs = Image::read_from(device, placement, bytes);
        assert_eq!(theirs.sb, Superblock::fresh(geometry, &theirs.layout), "{placement:?} {bytes}");
        assert!(theirs.ring.iter().all(|block| *block == INITIALISED), "{placement:?} {bytes}");
        let dump = device.drbdmeta_ok(placement, &["dump-md"]);
        assert_same_dump(&theirs.dump(), &dump, &format!("{placement:?} {bytes} {geometry:?}"));
    });
}

#[test]
fn it_restores_our_dump_and_we_restore_its_dump() {
    everywhere("restore-md", |device, placement, bytes, volume_max, geometry, numbers| {
        let image = Image::random(placement, bytes, volume_max, geometry, numbers);
        let text = device.file.with_extension("dump");
        std::fs::write(&text, image.dump()).unwrap();
        // Into metadata that exists: what restore-md leaves alone (the log) is then defined.
        let mut blank = Image::random(placement, bytes, volume_max, geometry, numbers);
        blank.sb = Superblock::fresh(geometry, &blank.layout);
        blank.write_to(device);
        device.drbdmeta_ok(placement, &["restore-md", text.to_str().unwrap()]);
        std::fs::remove_file(&text).unwrap();
        let theirs = Image::read_from(device, placement, bytes);
        image.assert_same(&theirs, &format!("{placement:?} {bytes} {geometry:?}"));

        let dump = device.drbdmeta_ok(placement, &["dump-md"]);
        let restored = restore(&parse_dump(&dump).unwrap(), placement, bytes).unwrap();
        assert_eq!(restored.superblock, image.sb);
        assert!(restored.bitmap == image.bitmap.image(), "{placement:?} {bytes} {geometry:?}: restored bitmap");
    });
}

#[test]
fn it_accepts_the_log_we_initialise_and_finds_nothing_hot() {
    everywhere("initialised log", |device, placement, bytes, volume_max, geometry, numbers| {
        let mut image = Image::random(placement, bytes, volume_max, geometry, numbers);
        image.sb.flags = DeviceFlags(0x53);
        image.write_to(device);
        device.drbdmeta_ok(placement, &["apply-al"]);
        image.apply_al();
        image.assert_same(&Image::read_from(device, placement, bytes), &format!("{placement:?} {bytes}"));
    });
}
