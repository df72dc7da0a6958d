//! Internal metadata after its device has grown, through the real programs.

#[path = "../../metadata/tests/common/mod.rs"]
mod golden;

mod common;

use common::{Answer, replicactl};
use golden::generated::{Image, Numbers, drbdmeta_or_skip};
use metadata::{Geometry, Placement};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const OLD: u64 = 64 << 20;

/// A volume r0/0 on the file `d0`.
fn world() -> TempDir {
    let folder = TempDir::new().unwrap();
    let disk = folder.path().join("d0");
    fs::File::create(&disk).unwrap().set_len(OLD).unwrap();
    let config = format!(
        r#"
        [[resource]]
        name = "r0"
        volume = [{{ number = 0, device = "nbd", disk = "{}" }}]
        on = [
            {{ node = "alice", node-id = 0, address = "127.0.0.1:7789" }},
            {{ node = "bob", node-id = 1, address = "127.0.0.1:7790" }},
        ]
        "#,
        disk.display()
    );
    fs::write(folder.path().join("config.toml"), config).unwrap();
    folder
}

fn disk(folder: &Path) -> fs::File {
    fs::OpenOptions::new().read(true).write(true).open(folder.join("d0")).unwrap()
}

fn put(folder: &Path, image: &Image) {
    let disk = disk(folder);
    disk.write_all_at(image.bitmap.image(), image.layout.bitmap).unwrap();
    disk.write_all_at(image.ring.as_flattened(), image.layout.activity_log).unwrap();
    disk.write_all_at(&image.sb.encode(), image.layout.superblock).unwrap();
}

fn ok(folder: &Path, arguments: &str) -> String {
    let Answer { code, out, err } = replicactl(folder, arguments);
    assert_eq!(code, 0, "{arguments}: {err}");
    out
}

fn refused(folder: &Path, arguments: &str, words: &[&str]) {
    let before = fs::read(folder.join("d0")).unwrap();
    let Answer { code, out, err } = replicactl(folder, arguments);
    assert_eq!((code, out.as_str()), (255, ""), "{arguments}: {err}");
    for word in words {
        assert!(err.contains(word), "{arguments}: `{word}` is not in: {err}");
    }
    assert!(fs::read(folder.join("d0")).unwrap() == before, "{arguments}: a refused command changed the disk");
}

/// Without what says where the parts lie.
fn dump(folder: &Path) -> String {
    let text = ok(folder, "dump-md r0/0");
    let places = ["# md_size_sect", "# md_offset", "# al_offset", "# bm_offset"];
    text.lines().skip(3).filter(|l| !places.iter().any(|p| l.starts_with(p))).map(|l| format!("{l}\n")).collect()
}

fn random(max_peers: u8, numbers: &mut Numbers) -> Image {
    Image::random(Placement::Internal, OLD, u64::MAX, Geometry::new(max_peers), numbers)
}

#[test]
fn metadata_follows_the_end_of_its_disk() {
    let mut numbers = Numbers(0x6772_6F77);
    for (max_peers, new) in
        [(1, 65 << 20), (1, 512 << 20), (3, OLD + 4096), (31, OLD + (32 << 10)), (7, (1 << 30) + 512)]
    {
        let folder = world();
        let folder = folder.path();
        put(folder, &random(max_peers, &mut numbers));
        // Remembers the size.
        assert!(ok(folder, "check-resize r0/0").contains("nothing was changed"));
        let before = dump(folder);
        disk(folder).set_len(new).unwrap();
        assert_eq!(replicactl(folder, "dump-md r0/0").code, 255, "to {new}");
        let out = ok(folder, "check-resize r0/0");
        assert!(out.contains("moved to the end of the device"), "{out}");
        assert_eq!(dump(folder), before, "{max_peers} peers, to {new}");
        assert!(ok(folder, "check-resize r0/0").contains("nothing was changed"));
        // It remembers the new size, too.
        disk(folder).set_len(new + (1 << 20)).unwrap();
        assert!(ok(folder, "check-resize r0/0").contains("moved"));
        assert_eq!(dump(folder), before);
    }
}

/// As DRBD's tools do it before an attach: with a log to apply, too.
#[test]
fn apply_al_moves_metadata_first() {
    let mut numbers = Numbers(0x616C);
    let folder = world();
    let folder = folder.path();
    ok(folder, "create-md r0/0");
    let mut image = random(1, &mut numbers);
    image.crash(1237, &mut numbers);
    put(folder, &image);
    // What is remembered is the disk that create-md wrote: another device UUID is not it.
    disk(folder).set_len(2 * OLD).unwrap();
    let answer = replicactl(folder, "apply-al r0/0");
    assert_eq!(answer.code, 255, "{}", answer.err);
    assert!(answer.err.contains("device UUID") && answer.err.contains("giving its old size"), "{}", answer.err);
    refused(folder, "check-resize r0/0", &["device UUID"]);
    assert!(ok(folder, &format!("check-resize r0/0 --old-size {OLD}")).contains("moved"));
    disk(folder).set_len(3 * OLD).unwrap();
    let answer = replicactl(folder, "apply-al r0/0");
    assert!(answer.code == 0 && answer.err.contains("moved to the end"), "{}", answer.err);
    assert!(answer.out.contains("hot extents marked"), "{}", answer.out);
    image.apply_al();
    let mut expected = String::new();
    metadata::write_dump(&mut expected, Default::default(), &image.sb, &image.layout, image.bitmap.image()).unwrap();
    let from = |text: &str| text[text.find("\nnode-id").unwrap()..].to_string();
    assert_eq!(from(&dump(folder)), from(&expected));
}

#[test]
fn what_cannot_be_found_is_not_guessed() {
    let folder = world();
    let folder = folder.path();
    put(folder, &random(3, &mut Numbers(0x6E6F)));
    disk(folder).set_len(2 * OLD).unwrap();
    refused(folder, "check-resize r0/0", &["no metadata at the end", "--old-size"]);
    refused(folder, "check-resize r0/0 --old-size 50000000", &["nor where the end of 50000000 bytes was", "magic"]);
    refused(folder, &format!("check-resize r0/0 --old-size {}", 2 * OLD), &["is not larger now"]);
    refused(folder, "check-resize r0/0 --old-size 4096", &["nor where the end of 4096 bytes was"]);
    // Something of DRBD's where the superblock goes, which does not fit.
    disk(folder).write_all_at(&0x8374_026D_u32.to_be_bytes(), 2 * OLD - 4096 + 0x3C).unwrap();
    disk(folder).write_all_at(&3_u32.to_be_bytes(), 2 * OLD - 4096 + 0x58).unwrap();
    refused(folder, &format!("check-resize r0/0 --old-size {OLD}"), &["metadata that does not fit it"]);
    disk(folder).write_all_at(&[0; 4096], 2 * OLD - 4096).unwrap();
    assert!(ok(folder, &format!("check-resize r0/0 --old-size {OLD}")).contains("moved"));
}

/// 128 MiB and a sector: the bitmap becomes a page longer, while the superblock stays where it is.
#[test]
fn a_longer_bitmap_does_not_go_over_data() {
    let folder = world();
    let folder = folder.path();
    let old = 128 << 20;
    disk(folder).set_len(old).unwrap();
    let mut numbers = Numbers(0x0DD);
    put(folder, &Image::random(Placement::Internal, old, u64::MAX, Geometry::new(1), &mut numbers));
    disk(folder).set_len(old + 512).unwrap();
    refused(folder, &format!("check-resize r0/0 --old-size {old}"), &["longer bitmap", "4096 bytes more"]);
    // A volume that leaves the page free can have it.
    put(folder, &Image::random(Placement::Internal, old, 100 << 20, Geometry::new(1), &mut numbers));
    assert!(ok(folder, &format!("check-resize r0/0 --old-size {old}")).contains("moved"));
    disk(folder).set_len(old).unwrap();
    put(folder, &Image::random(Placement::Internal, old, u64::MAX, Geometry::new(1), &mut numbers));
    disk(folder).set_len(old + 4096).unwrap();
    assert!(ok(folder, &format!("check-resize r0/0 --old-size {old}")).contains("moved"));
}

/// Where drbdmeta 9.22 is right: while the bitmap keeps its length.
#[test]
fn a_move_is_that_of_drbdmeta() {
    let Some(_guard) = drbdmeta_or_skip("check-resize") else { return };
    let folder = world();
    let folder = folder.path();
    let image = random(3, &mut Numbers(0x6462));
    put(folder, &image);
    let theirs = folder.join("theirs");
    let state = Path::new("/var/lib/drbd/drbd-minor--1.lkbd");
    let new = OLD + (1 << 20);
    let drbdmeta = |args: &[&str]| {
        let out =
            Command::new("drbdmeta").args(["--force", "-", "v09"]).arg(&theirs).arg("internal").args(args).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    // Its memory is of this file only if it wrote it.
    fs::copy(folder.join("d0"), &theirs).unwrap();
    drbdmeta(&["outdate"]);
    fs::copy(folder.join("d0"), &theirs).unwrap();
    for name in ["d0", "theirs"] {
        fs::OpenOptions::new().write(true).open(folder.join(name)).unwrap().set_len(new).unwrap();
    }
    drbdmeta(&["check-resize"]);
    assert!(ok(folder, &format!("check-resize r0/0 --old-size {OLD}")).contains("moved"));
    fs::remove_file(state).unwrap();
    let layout = metadata::Layout::compute(Placement::Internal, new, Geometry::new(3)).unwrap();
    let read = |name: &str| {
        let file = fs::File::open(folder.join(name)).unwrap();
        let mut bytes = vec![0; (new - layout.bitmap) as usize];
        file.read_exact_at(&mut bytes, layout.bitmap).unwrap();
        let mut old = [0; 4096];
        file.read_exact_at(&mut old, image.layout.superblock).unwrap();
        (bytes, old)
    };
    assert!(read("d0") == read("theirs"), "metadata and what was the superblock");
    assert!(read("d0").1 == [0; 4096]);
}
