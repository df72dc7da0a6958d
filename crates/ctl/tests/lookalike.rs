//! replicactl under the name drbdmeta, beside the real one: the same command line on identical images, then exit code,
//! standard output and the whole device compared. Where ours differs on purpose, the row says how and why.

#[path = "../../metadata/tests/common/mod.rs"]
mod golden;

use golden::generated::drbdmeta_or_skip;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const SUPERBLOCK: usize = (64 << 20) - 4096;

struct World {
    folder: TempDir,
    ours: PathBuf,
}

#[derive(PartialEq, Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
}

/// What is compared besides the exit code.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Compare {
    /// Standard output and every byte of the device.
    All,
    /// Standard output below the lines that name time and command, and the device.
    Dump,
    /// Not what is printed for people.
    Device,
    /// The superblock; the reason stands beside the row.
    Superblock,
}

impl World {
    fn new() -> World {
        let folder = TempDir::new().unwrap();
        let ours = folder.path().join("drbdmeta");
        symlink(env!("CARGO_BIN_EXE_replicactl"), &ours).unwrap();
        World { folder, ours }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
    fn run(&self, program: &Path, device: &Path, line: &str) -> (Ran, String) {
        let fixtures = golden::fixtures().display().to_string();
        let words = line.split_whitespace().map(|w| match w {
            "DEV" => device.display().to_string(),
            word => word.replace("FIXTURES", &fixtures),
        });
        let out = Command::new(program).args(words).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (Ran { code: out.status.code(), out: text(&out.stdout) }, text(&out.stderr))
    }
    /// Two copies of an image: for the real one, and for ours.
    fn copies(&self, image: &[u8]) -> [PathBuf; 2] {
        ["theirs", "mine"].map(|name| {
            let path = self.path(name);
            let file = fs::File::create(&path).unwrap();
            file.set_len(image.len() as u64).unwrap();
            for (i, block) in image.chunks(4096).enumerate().filter(|(_, block)| **block != [0; 4096][..block.len()]) {
                file.write_all_at(block, i as u64 * 4096).unwrap();
            }
            path
        })
    }
    fn compare(&self, image: &[u8], line: &str, how: Compare) {
        let [theirs, mine] = self.copies(image);
        let (real, real_err) = self.run("drbdmeta".as_ref(), &theirs, line);
        let (ours, our_err) = self.run(&self.ours, &mine, line);
        let what = format!("drbdmeta {line}\n  real says: {real_err}  ours says: {our_err}");
        assert_eq!(ours.code, real.code, "{what}");
        let below = |text: &str| text[text.find("\nversion").unwrap_or(0)..].to_string();
        match how {
            Compare::All => assert_eq!(ours.out, real.out, "{what}"),
            Compare::Dump => assert_eq!(below(&ours.out), below(&real.out), "{what}"),
            Compare::Device | Compare::Superblock => {}
        }
        let (real, ours) = (fs::read(theirs).unwrap(), fs::read(mine).unwrap());
        match how {
            Compare::Superblock => assert!(ours[SUPERBLOCK..] == real[SUPERBLOCK..], "{what}: superblocks differ"),
            _ => {
                let differs = ours.chunks(512).zip(real.chunks(512)).position(|(a, b)| a != b);
                assert_eq!((differs, ours.len()), (None, real.len()), "{what}: first sector that differs");
            }
        }
    }
}

fn image(name: &str, tag: &str) -> Vec<u8> {
    let stage = golden::case(name).stage(tag);
    stage.read(0, stage.device_bytes as usize)
}

/// Forced, as on plain files.
fn compare_all(image: &[u8], rows: &[(&str, Compare)]) {
    let world = World::new();
    for (command, how) in rows {
        world.compare(image, &format!("--force - v09 DEV internal {command}"), *how);
    }
}

#[test]
fn on_good_metadata() {
    use Compare::*;
    let Some(_guard) = drbdmeta_or_skip("look-alike on good metadata") else { return };
    let rows = [
        ("get-gi --node-id 1", All),
        ("get-gi --node-id=7", All),
        ("--node-id 2 get-gi", All),
        ("get-gi", All),
        ("get-gi --node-id 40", All),
        // A picture and sentences for people.
        ("show-gi --node-id 1", Device),
        ("dstate", All),
        ("dump-md", Dump),
        ("dump-md more", Dump),
        ("outdate", All),
        ("invalidate", All),
        ("read-dev-uuid", All),
        ("write-dev-uuid 1122334455667788", All),
        ("write-dev-uuid 0xAB", All),
        ("write-dev-uuid", All),
        ("set-gi --node-id 1 0123456789ABCDEF:1:2:3:1:1", All),
        ("set-gi --node-id 2 A:0:B:0:1:1:", All),
        ("set-gi --node-id 2 ::::0:0:1:1:1:1:1:1:1:1:1:1", All),
        ("set-gi --node-id 2 1:2:3:4:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1", All),
        ("set-gi --node-id 9 A:B", All),
        ("set-gi --node-id 1 ZZ", All),
        ("set-gi --node-id 1 1:2:3:4:7", All),
        ("set-gi --node-id 1 12345678901234567:2:3:4", All),
        ("set-gi --node-id 1", All),
        ("set-gi 1:2", All),
        ("apply-al", All),
        ("check-resize", All),
        ("wipe-md", All),
        ("restore-md FIXTURES/v09-64m-p3-needs-apply-al.after-apply-al.dump", All),
        ("restore-md FIXTURES/v09-64m-p1-fresh.dump", All),
        ("restore-md FIXTURES/v08-64m-clean.dump", All),
        ("restore-md FIXTURES/v09-64m-p3-needs-apply-al.forced.dump", All),
        ("restore-md", All),
        ("restore-md /nowhere", All),
        // Remarks on sizes come with the real one's answer.
        ("verify-dump FIXTURES/v09-64m-p3-bits.dump", Device),
        ("verify-dump FIXTURES/v09-64m-p3-needs-apply-al.forced.dump", All),
        ("verify-dump FIXTURES/v08-64m-clean.dump", All),
        ("verify-dump /nowhere", All),
        ("create-md 3", All),
        ("create-md 31", All),
        ("create-md --peer-max-bio-size 65536 2", All),
        ("create-md", All),
        ("create-md 0", All),
        ("create-md 32", All),
        ("create-md many", All),
        ("create-md --al-stripes 2 --al-stripe-size-kB 4 3", All),
        // The real one leaves the bits of the forgotten peer, ours merges in those of day 0 (or sets all).
        ("forget-peer --node-id 1", Superblock),
        ("forget-peer --node-id 9", All),
        ("forget-peer", All),
        ("forget-peer --node-id 32", All),
    ];
    compare_all(&image("v09-64m-p3-bits", "image"), &rows);
}

#[test]
fn on_metadata_of_a_crashed_primary() {
    use Compare::*;
    let Some(_guard) = drbdmeta_or_skip("look-alike after a crash") else { return };
    let rows = [
        ("dump-md", Dump),
        ("apply-al", All),
        ("dstate", All),
        ("outdate", All),
        ("get-gi --node-id 1", All),
        ("check-resize", All),
        ("restore-md FIXTURES/v09-64m-p1-fresh.dump", Superblock),
    ];
    compare_all(&image("v09-64m-p3-needs-apply-al", "image"), &rows);
    // Here the real one refuses, and whoever attaches has to decide: ours marks everything.
    let world = World::new();
    let [theirs, mine] = world.copies(&image("v09-64m-p3-al-uninitialised", "image"));
    let line = "--force - v09 DEV internal apply-al";
    assert_eq!(world.run("drbdmeta".as_ref(), &theirs, line).0.code, Some(1));
    let (ran, err) = world.run(&world.ours, &mine, line);
    assert!(ran.code == Some(0) && err.contains("everything marked out of sync"), "{err}");
    let (dump, _) = world.run("drbdmeta".as_ref(), &mine, "--force - v09 DEV internal dump-md");
    assert!(dump.out.contains("# bits-set 16373;"), "{}", dump.out);
}

#[test]
fn where_there_is_none() {
    use Compare::*;
    let Some(_guard) = drbdmeta_or_skip("look-alike without metadata") else { return };
    let rows = [
        ("dump-md", All),
        ("get-gi --node-id 0", All),
        ("dstate", All),
        ("outdate", All),
        ("invalidate", All),
        ("apply-al", All),
        ("wipe-md", All),
        ("set-gi --node-id 0 1:2", All),
        ("forget-peer --node-id 0", All),
        ("read-dev-uuid", All),
        ("create-md 1", All),
        ("create-md --al-stripes 2 --al-stripe-size-kB 64 7", All),
        // The real one leaves the log as it is, here zeroes under a superblock that says it is clean.
        ("restore-md FIXTURES/v09-64m-p3-bits.dump", Superblock),
    ];
    compare_all(&vec![0; 64 << 20], &rows);
    let world = World::new();
    let image = vec![0; 256 << 20];
    for (place, bytes) in [("flex-external", 3 << 20), ("flex-internal", (9 << 20) + 512), ("1", 256 << 20)] {
        world.compare(&image[..bytes], &format!("--force - v09 DEV {place} create-md 5"), All);
    }
    let image = &image[..1 << 20];
    world.compare(image, "--force - v09 DEV flex-external check-resize", All);
    world.compare(&image[..40000], "--force - v09 DEV internal create-md 1", All);
    let lines = [
        "- v09 DEV internal dump-md",
        "--force - v09 DEV 500 dump-md",
        "--force - v10 DEV internal dump-md",
        "--force - v09 DEV internal fly",
        "--force - v09 /nowhere internal dump-md",
    ];
    lines.iter().for_each(|line| world.compare(image, line, All));
    ["--force - v09", "--flap", ""].iter().for_each(|line| world.compare(image, line, Device));
}

#[test]
fn on_external_metadata() {
    use Compare::*;
    let Some(_guard) = drbdmeta_or_skip("look-alike on external metadata") else { return };
    let world = World::new();
    let commands = [
        ("apply-al", All),
        ("dump-md", Dump),
        ("outdate", All),
        ("invalidate", All),
        ("get-gi --node-id 1", All),
        ("set-gi --node-id 1 1:2:3:4:1:1:0:0", All),
        ("forget-peer --node-id 30", All),
        ("wipe-md", All),
        // Explanations for people.
        ("create-md 4", Device),
    ];
    for (name, place) in [("v09-ext-2m-p3-needs-apply-al", "flex-external"), ("v09-indexed1-p1", "1")] {
        let image = image(name, "image");
        for (command, how) in commands {
            world.compare(&image, &format!("--force - v09 DEV {place} {command}"), how);
        }
    }
}

#[test]
fn on_metadata_of_drbd_8() {
    use Compare::*;
    let Some(_guard) = drbdmeta_or_skip("look-alike on v08") else { return };
    let world = World::new();
    let crashed = image("v08-64m-84-needs-apply-al", "image");
    let clean = image("v08-64m-84-needs-apply-al", "after-apply-al");
    for (image, command) in [(&crashed, "apply-al"), (&clean, "apply-al"), (&clean, "wipe-md")] {
        world.compare(image, &format!("--force - v08 DEV internal {command}"), All);
    }
    world.compare(&image("v08-64m-83-needs-apply-al", "image"), "--force - v08 DEV internal apply-al", All);
    world.compare(&clean, "--force - v08 DEV internal restore-md FIXTURES/v09-64m-p3-bits.dump", All);
    // 9.22 prints no flags.
    world.compare(&clean, "--force - v08 DEV internal dump-md", Device);
    for command in ["dump-md", "dstate", "apply-al", "wipe-md"] {
        world.compare(&clean, &format!("--force - v09 DEV internal {command}"), All);
    }
    world.compare(&clean, "--force - v09 DEV internal create-md 3", Device);
    world.compare(&clean, "--force - v09 DEV internal create-md 1", Device);
    // The real one converts and forgets that the log was not applied.
    let [_, mine] = world.copies(&crashed);
    let (ran, err) = world.run(&world.ours, &mine, "--force - v09 DEV internal create-md 1");
    assert!(ran.code == Some(1) && err.contains("log is not applied"), "{err}");
    assert!(fs::read(mine).unwrap() == crashed);
}

/// A loop device on a copy of an image, gone on drop. `None`, said loudly, where there is none to be had.
struct Loop(String);

impl Loop {
    fn on(file: &Path) -> Option<Loop> {
        let out = Command::new("losetup").args(["-f", "--show"]).arg(file).output().ok();
        match out.filter(|out| out.status.success()) {
            Some(out) => Some(Loop(String::from_utf8(out.stdout).unwrap().trim().into())),
            None => {
                golden::skipped("no loop device (needs root and losetup)");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// Without a terminal nobody says yes, and nothing changes.
#[test]
fn questions_that_nobody_answers() {
    let Some(_guard) = drbdmeta_or_skip("look-alike's questions") else { return };
    let world = World::new();
    let before = image("v09-64m-p3-bits", "image");
    let [theirs, mine] = world.copies(&before);
    let (Some(theirs), Some(on_mine)) = (Loop::on(&theirs), Loop::on(&mine)) else { return };
    let commands =
        ["create-md 3", "wipe-md", "restore-md FIXTURES/v09-64m-p1-fresh.dump", "set-gi --node-id 1 1:2:3:4"];
    for command in commands {
        let line = format!("- v09 DEV internal {command}");
        let (real, real_err) = world.run("drbdmeta".as_ref(), theirs.0.as_ref(), &line);
        let (ours, our_err) = world.run(&world.ours, on_mine.0.as_ref(), &line);
        assert_eq!(ours, real, "{command}\n  real: {real_err}  ours: {our_err}");
        assert!(our_err.contains("stdin not a TTY, not waiting for confirmation"), "{our_err}");
        assert!(fs::read(&mine).unwrap() == before, "{command} without a yes changed the device");
    }
    // Nothing to ask: done without --force.
    for command in ["outdate", "apply-al", "get-gi --node-id 1", "dstate"] {
        let line = format!("- v09 DEV internal {command}");
        let (real, _) = world.run("drbdmeta".as_ref(), theirs.0.as_ref(), &line);
        assert_eq!(world.run(&world.ours, on_mine.0.as_ref(), &line).0, real, "{command}");
    }
}

/// The daemon opens its disks exclusively, as the kernel does: exit 20, and --force does not help (the real one goes on).
#[test]
fn a_device_that_somebody_has_is_refused() {
    let world = World::new();
    let before = image("v09-64m-p3-bits", "image");
    let [_, file] = world.copies(&before);
    let node = Loop::on(&file);
    let devices = [Some(file.clone()), node.as_ref().map(|node| PathBuf::from(&node.0))];
    for device in devices.into_iter().flatten() {
        let held = store::Backing::open(&device, store::OpenOptions { direct: false, ..store::OpenOptions::SERVE });
        let held = held.unwrap();
        for command in ["dump-md", "get-gi --node-id 1", "apply-al", "create-md 3", "wipe-md", "outdate"] {
            let (ran, err) = world.run(&world.ours, &device, &format!("--force 4711 v09 DEV internal {command}"));
            assert_eq!((ran.code, ran.out.as_str()), (Some(20), ""), "{command}: {err}");
            assert!(err.contains(&device.display().to_string()), "{err}");
        }
        drop(held);
        assert_eq!(world.run(&world.ours, &device, "--force 4711 v09 DEV internal dstate").0.code, Some(0));
    }
    assert!(fs::read(&file).unwrap() == before);
}

#[test]
fn a_file_system_in_the_way() {
    let Some(_guard) = drbdmeta_or_skip("look-alike and file systems") else { return };
    let world = World::new();
    let with_file_system = |arguments: &[&str]| {
        let path = world.path("fs");
        fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let made = Command::new(arguments[0])
            .args(&arguments[1..])
            .arg(&path)
            .args(&["60000"][..usize::from(arguments.len() == 4)])
            .output();
        match made {
            Ok(out) if out.status.success() => Some(fs::read(&path).unwrap()),
            _ => {
                golden::skipped(&format!("{} cannot make a file system", arguments[0]));
                None
            }
        }
    };
    // The whole device; then 60000 KiB of it.
    if let Some(image) = with_file_system(&["mke2fs", "-q", "-text4"]) {
        for place in ["internal", "flex-external"] {
            let [_, mine] = world.copies(&image);
            let (ran, err) = world.run(&world.ours, &mine, &format!("--force - v09 DEV {place} create-md 3"));
            assert!(ran.code == Some(40) && err.contains("has a file system of 67108864 bytes"), "{err}");
            assert!(fs::read(mine).unwrap() == image, "a refused command changed the device");
            let [theirs, _] = world.copies(&image);
            let line = format!("--force - v09 DEV {place} create-md 3");
            assert_eq!(world.run("drbdmeta".as_ref(), &theirs, &line).0.code, Some(40));
        }
    }
    if let Some(image) = with_file_system(&["mke2fs", "-q", "-b1024", "-text4"]) {
        world.compare(&image, "--force - v09 DEV internal create-md 3", Compare::Device);
        world.compare(&image, "--force - v09 DEV flex-external create-md 3", Compare::Device);
    }
}

/// Each finds what the other remembered of the size.
#[test]
fn metadata_that_growth_left_behind() {
    let Some(_guard) = drbdmeta_or_skip("look-alike after growth") else { return };
    let world = World::new();
    let before = image("v09-64m-p3-bits", "image");
    let programs = [PathBuf::from("drbdmeta"), world.ours.clone()];
    let mut results = Vec::new();
    for (remembers, moves) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let [_, device] = world.copies(&before);
        let line = "--force - v09 DEV internal write-dev-uuid 00000000000000A1";
        assert_eq!(world.run(&programs[remembers], &device, line).0.code, Some(0));
        fs::OpenOptions::new().write(true).open(&device).unwrap().set_len(65 << 20).unwrap();
        let (ran, err) = world.run(&programs[moves], &device, "--force - v09 DEV internal check-resize");
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), "Internal drbd meta data successfully moved.\n"), "{err}");
        let again = world.run(&programs[1 - moves], &device, "--force - v09 DEV internal check-resize").0;
        assert_eq!((again.code, again.out.as_str()), (Some(0), ""));
        results.push(fs::read(&device).unwrap());
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "one of them moved it otherwise");
    // Ours moves it before it applies the log, as Debian's does.
    let [_, device] = world.copies(&image("v09-64m-p3-needs-apply-al", "image"));
    world.run(&world.ours, &device, "--force - v09 DEV internal write-dev-uuid 2");
    fs::OpenOptions::new().write(true).open(&device).unwrap().set_len(65 << 20).unwrap();
    let (ran, err) = world.run(&world.ours, &device, "--force - v09 DEV internal apply-al");
    assert!(ran.code == Some(0) && err.contains("moved to the end"), "{err}");
    let (dump, _) = world.run("drbdmeta".as_ref(), &device, "--force - v09 DEV internal dump-md");
    let expected = golden::text("v09-64m-p3-needs-apply-al.after-apply-al.dump");
    let bitmaps = |text: &str| text[text.find("\nbitmap[0]").unwrap()..].to_string();
    assert_eq!(bitmaps(&dump.out), bitmaps(&expected));
}
