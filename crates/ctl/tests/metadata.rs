//! Metadata commands on files: round trips, what is refused and with which words and exit code.

mod common;

use common::{Answer, replicactl};
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tempfile::TempDir;

const DISK_BYTES: u64 = 64 << 20;

/// Volume 0 internal, 1 external, 2 in slot 3 of a shared device, 3 without disk.
fn world() -> TempDir {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for (name, len) in [("d0", DISK_BYTES), ("d1", DISK_BYTES), ("d2", DISK_BYTES), ("m1", 4 << 20), ("m2", 600 << 20)]
    {
        fs::File::create(path(name)).unwrap().set_len(len).unwrap();
    }
    let config = format!(
        r#"
        [[resource]]
        name = "r0"
        volume = [
            {{ number = 0, device = "nbd", disk = "{}" }},
            {{ number = 1, device = "nbd", disk = "{}", meta-disk = "{}" }},
            {{ number = 2, device = "nbd", disk = "{}", meta-disk = "{} [3]" }},
            {{ number = 3, device = "nbd", disk = "none" }},
        ]
        on = [
            {{ node = "alice", node-id = 0, address = "127.0.0.1:7789" }},
            {{ node = "bob", node-id = 1, address = "127.0.0.1:7790" }},
            {{ node = "carol", node-id = 2, address = "127.0.0.1:7791" }},
        ]
        "#,
        path("d0"),
        path("d1"),
        path("m1"),
        path("d2"),
        path("m2"),
    );
    fs::write(path("config.toml"), config).unwrap();
    folder
}

fn done(folder: &Path, arguments: &str) -> String {
    let Answer { code, out, err } = replicactl(folder, arguments);
    assert_eq!(code, 0, "{arguments}: {err}");
    out
}

fn refused(folder: &Path, arguments: &str, exit: i32, words: &[&str]) {
    let Answer { code, out, err } = replicactl(folder, arguments);
    assert_eq!((code, out.as_str()), (exit, ""), "{arguments}: {err}");
    assert_eq!(err.lines().count(), 1, "one sentence: {err}");
    for word in words {
        assert!(err.contains(word), "{arguments}: `{word}` is not in: {err}");
    }
}

/// Without the comments that name time and command.
fn dump(folder: &Path, volume: &str) -> String {
    let text = done(folder, &format!("dump-md {volume}"));
    assert!(text.starts_with("# DRBD meta data dump\n"), "{text}");
    text.lines().skip(3).map(|l| format!("{l}\n")).collect()
}

#[test]
fn create_on_every_placement_for_all_peers_of_the_file() {
    let folder = world();
    let out = done(folder.path(), "create-md r0");
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(out.contains("r0/0: metadata for 2 peers written to "), "{out}");
    for volume in ["r0/0", "r0/1", "r0/2"] {
        let text = dump(folder.path(), volume);
        assert!(text.contains("max-peers 2;") && text.contains("current-uuid 0x0000000000000004;"), "{text}");
        assert!(!text.contains("device-uuid 0x0000000000000000;"), "the device has no name of its own: {text}");
    }
    let superblock = |name: &str, offset: u64| {
        let mut magic = [0; 4];
        fs::File::open(folder.path().join(name)).unwrap().read_exact_at(&mut magic, offset + 0x3C).unwrap();
        u32::from_be_bytes(magic)
    };
    assert_eq!(superblock("d0", DISK_BYTES - 4096), 0x8374_026D);
    assert_eq!(superblock("m1", 0), 0x8374_026D);
    assert_eq!(superblock("m2", 3 * (128 << 20)), 0x8374_026D);
    refused(folder.path(), "create-md r0/3", 10, &["r0/3 has no local disk"]);
    refused(folder.path(), "create-md r9", 10, &["`r9` is not in the configuration", "there are: r0"]);
}

#[test]
fn the_number_of_peers_can_be_given() {
    let folder = world();
    for peers in [1, 31] {
        done(folder.path(), &format!("create-md r0/0 --force --max-peers {peers}"));
        assert!(dump(folder.path(), "r0/0").contains(&format!("max-peers {peers};")));
    }
}

#[test]
fn a_dump_restores_to_itself() {
    let folder = world();
    for (volume, file) in [("r0/0", "d0"), ("r0/1", "m1"), ("r0/2", "m2")] {
        done(folder.path(), &format!("create-md {volume} --max-peers 3"));
        let text = dump(folder.path(), volume);
        // What create-md would not write: an agreed size of 4 MiB and set bits in all slots.
        let place = |key: &str| -> u64 {
            let line = text.lines().find_map(|l| l.strip_prefix(&format!("# {key} "))).unwrap();
            line.trim().parse().unwrap()
        };
        let disk = fs::OpenOptions::new().write(true).read(true).open(folder.path().join(file)).unwrap();
        disk.write_all_at(&8192_u64.to_be_bytes(), place("md_offset")).unwrap();
        let bits: Vec<u8> = (1..=96).collect();
        disk.write_all_at(&bits, place("bm_offset")).unwrap();
        let before = dump(folder.path(), volume);
        fs::write(folder.path().join("dump"), &before).unwrap();
        done(folder.path(), &format!("create-md {volume} --force --max-peers 1"));
        assert_ne!(dump(folder.path(), volume), before);
        done(folder.path(), &format!("restore-md {volume} dump --force"));
        assert_eq!(dump(folder.path(), volume), before, "{volume}");
        assert!(before.contains("la-size-sect 8192;") && !before.contains("bits-set 0;"), "{before}");
        let mut restored = vec![0; bits.len()];
        disk.read_exact_at(&mut restored, place("bm_offset")).unwrap();
        assert_eq!(restored, bits);
    }
}

#[test]
fn what_is_on_the_disk_is_not_overwritten() {
    let folder = world();
    let disk = fs::OpenOptions::new().write(true).open(folder.path().join("d0")).unwrap();
    disk.write_all_at(&[0x53, 0xEF], 1080).unwrap();
    let before = fs::read(folder.path().join("d0")).unwrap();
    let words = ["r0/0: refused", "d0 holds ext2 file system (signature at byte 1080)", "--force"];
    refused(folder.path(), "create-md r0/0", 1, &words);
    assert!(fs::read(folder.path().join("d0")).unwrap() == before, "a refused command changed the disk");
    done(folder.path(), "create-md r0/0 --force");
    disk.write_all_at(&[0, 0], 1080).unwrap();
    refused(folder.path(), "create-md r0/0", 1, &["holds DRBD metadata v09 (signature at byte 67104768)"]);
    let dump = done(folder.path(), "dump-md r0/0");
    fs::write(folder.path().join("dump"), dump).unwrap();
    refused(folder.path(), "restore-md r0/0 dump", 1, &["which restore-md would damage"]);
    // With external metadata the data disk is not written, so its file system stays and is no reason to refuse.
    let disk = fs::OpenOptions::new().write(true).open(folder.path().join("d1")).unwrap();
    disk.write_all_at(b"XFSB", 0).unwrap();
    done(folder.path(), "create-md r0/1");
    // Kernel metadata of DRBD 8.4.
    let meta = fs::OpenOptions::new().write(true).open(folder.path().join("m1")).unwrap();
    meta.write_all_at(&0x8374_026C_u32.to_be_bytes(), 0x3C).unwrap();
    refused(folder.path(), "create-md r0/1", 1, &["m1 holds DRBD metadata v08"]);
}

#[test]
fn refusals_are_machine_readable() {
    let folder = world();
    done(folder.path(), "create-md r0/0");
    let answer = replicactl(folder.path(), "--json create-md r0/0");
    let value: serde_json::Value = serde_json::from_str(&answer.err).unwrap();
    assert_eq!((answer.code, &value["exit-code"], &value["rule"]), (1, &1.into(), &"disk-not-empty".into()));
    assert_eq!(value["object"], "r0/0");
    let answer = replicactl(folder.path(), "--json create-md r0/0 --force");
    let value: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!((&value["result"], &value["max-peers"]), (&"done".into(), &2.into()));
}

#[test]
fn a_disk_in_use_is_left_alone() {
    let folder = world();
    let holder = store::Backing::open(
        folder.path().join("d0"),
        store::OpenOptions { read_only: false, exclusive: true, direct: false },
    );
    let holder = holder.unwrap();
    for command in ["create-md r0/0 --force", "dump-md r0/0", "apply-al r0/0", "get-gi r0/0"] {
        refused(folder.path(), command, 20, &["r0/0: cannot", "d0", "`replicactl down`"]);
    }
    drop(holder);
    done(folder.path(), "create-md r0/0");
}

#[test]
fn unclean_metadata_asks_for_apply_al() {
    const FLAGS_AT: u64 = DISK_BYTES - 4096 + 0x38;
    let folder = world();
    done(folder.path(), "create-md r0/0");
    let disk = fs::OpenOptions::new().write(true).read(true).open(folder.path().join("d0")).unwrap();
    disk.write_all_at(&0x53_u32.to_be_bytes(), FLAGS_AT).unwrap();
    refused(folder.path(), "dump-md r0/0", 255, &["activity log is not applied", "replicactl apply-al r0/0"]);
    assert!(done(folder.path(), "dump-md r0/0 --force").contains("This_is_an_unclean_meta_data_dump"));
    assert_eq!(done(folder.path(), "apply-al r0/0"), "r0/0: no extent was hot\n");
    assert_eq!(done(folder.path(), "apply-al r0/0"), "r0/0: the activity log was applied already\n");
    let mut flags = [0; 4];
    disk.read_exact_at(&mut flags, FLAGS_AT).unwrap();
    assert_eq!(u32::from_be_bytes(flags), 0xD3, "the log is clean, all else as before");
    dump(folder.path(), "r0/0");
}

#[test]
fn damaged_or_missing_metadata_is_named() {
    let folder = world();
    refused(folder.path(), "dump-md r0/0", 255, &["r0/0: ", "magic", "0x00000000"]);
    done(folder.path(), "create-md r0/0");
    let disk = fs::OpenOptions::new().write(true).open(folder.path().join("d0")).unwrap();
    disk.write_all_at(&99_u32.to_be_bytes(), DISK_BYTES - 4096 + 0x58).unwrap();
    refused(folder.path(), "dump-md r0/0", 255, &["max-peers", "99"]);
    for len in [4096, 0] {
        disk.set_len(len).unwrap();
        refused(folder.path(), "create-md r0/0 --force", 1, &["r0/0: ", "d0: metadata device size", &len.to_string()]);
    }
    fs::remove_file(folder.path().join("d0")).unwrap();
    refused(folder.path(), "create-md r0/0", 20, &["r0/0: cannot open", "d0"]);
}

#[test]
fn bad_dumps_change_nothing() {
    let folder = world();
    done(folder.path(), "create-md r0/0");
    let before = dump(folder.path(), "r0/0");
    fs::write(folder.path().join("bad"), "version \"v09\";\nmax-peers many;\n").unwrap();
    refused(folder.path(), "restore-md r0/0 bad --force", 10, &["bad is no dump of metadata", "2"]);
    refused(folder.path(), "restore-md r0/0 missing --force", 1, &["cannot read the dump missing"]);
    refused(folder.path(), "restore-md r0/0 /dev/zero --force", 1, &["cannot read the dump /dev/zero", "give a file"]);
    refused(folder.path(), "restore-md r0 bad --force", 2, &["r0 has 3 volumes with a disk", "r0/0"]);
    assert_eq!(dump(folder.path(), "r0/0"), before);
}

#[test]
fn a_bad_configuration_is_exit_2() {
    let folder = world();
    let config = fs::read_to_string(folder.path().join("config.toml")).unwrap();
    fs::write(folder.path().join("config.toml"), config.replace("name = \"r0\"", "nam = \"r0\"")).unwrap();
    let answer = replicactl(folder.path(), "create-md r0");
    assert_eq!(answer.code, 2);
    assert!(answer.err.contains("config.toml:2:9: error: resource table 1 has no `name`"), "{}", answer.err);
    fs::write(folder.path().join("config.toml"), config.replace("\"alice\"", "\"alicia\"")).unwrap();
    refused(
        folder.path(),
        "create-md r0",
        2,
        &["no resource has an `on` entry for node `alice`", "alicia, bob, carol"],
    );
}

#[test]
fn identifiers_without_the_daemon() {
    let folder = world();
    done(folder.path(), "create-md r0/0");
    let line = "0000000000000004:0000000000000000:0000000000000000:0000000000000000:0:0:0:0:1:0:0:0:0:0:0:0\n";
    assert_eq!(done(folder.path(), "get-gi bob:r0/0"), line);
    assert_eq!(done(folder.path(), "get-gi r0/0"), line.repeat(2));
    assert!(done(folder.path(), "show-gi carol:r0/0").contains("activity log clean    yes\n"));
    refused(folder.path(), "get-gi dave:r0/0", 10, &["no peer `dave`; there are: bob, carol"]);
}

/// With these redirections and limits, by a shell.
fn in_shell(folder: &Path, before: &str, arguments: &str) -> Option<i32> {
    let program = env!("CARGO_BIN_EXE_replicactl");
    let line = format!("{before} exec {program} --config config.toml --run-dir . --node alice {arguments}");
    std::process::Command::new("sh").args(["-c", &line]).current_dir(folder).status().unwrap().code()
}

#[test]
fn a_stderr_that_takes_nothing_does_not_change_the_exit_code() {
    let folder = world();
    for (arguments, exit) in [("create-md r9", 10), ("status", 20), ("status --json", 20)] {
        assert_eq!(in_shell(folder.path(), "", &format!("{arguments} 2>/dev/full")), Some(exit), "{arguments}");
        assert_eq!(in_shell(folder.path(), "", &format!("{arguments} 2>&-")), Some(exit), "{arguments}");
    }
}

#[test]
fn a_dump_that_does_not_fit_on_the_disk_is_a_failure() {
    let folder = world();
    done(folder.path(), "create-md r0/0");
    assert_eq!(in_shell(folder.path(), "", "dump-md r0/0 >/dev/full 2>/dev/null"), Some(1));
    assert_eq!(in_shell(folder.path(), "", "dump-md r0/0 >/dev/null"), Some(0));
}

#[test]
fn creating_metadata_needs_no_more_files_than_the_disk() {
    let folder = world();
    assert_eq!(in_shell(folder.path(), "exec >/dev/null; ulimit -n 4;", "create-md r0/0"), Some(0));
}

/// Two nodes, and a disk as a crashed DRBD 8.4 left it.
fn disk_of_84() -> TempDir {
    volumes_of_84(1)
}

/// So many volumes, d0, d1, …, that are the same disk.
fn volumes_of_84(count: usize) -> TempDir {
    let folder = TempDir::new().unwrap();
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../metadata/tests/fixtures");
    let region = fs::File::open(format!("{fixtures}/v08-64m-84-needs-apply-al.region.gz")).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(region).read_to_end(&mut bytes).unwrap();
    let mut volumes = String::new();
    for number in 0..count {
        let disk = folder.path().join(format!("d{number}"));
        let file = fs::File::create(&disk).unwrap();
        file.set_len(DISK_BYTES).unwrap();
        file.write_all_at(&bytes, DISK_BYTES - bytes.len() as u64).unwrap();
        volumes += &format!("{{ number = {number}, device = \"nbd\", disk = \"{}\" }},\n", disk.display());
    }
    let config = format!(
        r#"
        [[resource]]
        name = "r0"
        volume = [{volumes}]
        on = [
            {{ node = "alice", node-id = 4, address = "127.0.0.1:7789" }},
            {{ node = "bob", node-id = 1, address = "127.0.0.1:7790" }},
        ]
        "#
    );
    fs::write(folder.path().join("config.toml"), config).unwrap();
    folder
}

#[test]
fn metadata_of_84_is_converted_when_its_log_is_applied() {
    let folder = disk_of_84();
    let image = || fs::read(folder.path().join("d0")).unwrap();
    let crashed = image();
    for command in ["create-md r0/0", "create-md r0/0 --force"] {
        refused(folder.path(), command, 1, &["metadata v08 whose activity log is not applied", "apply-al r0/0"]);
    }
    assert!(image() == crashed, "a refused command changed the disk");

    assert!(done(folder.path(), "apply-al r0/0").contains("2 hot extents"));
    let applied = image();
    assert!(done(folder.path(), "apply-al r0/0").contains("applied already"));
    refused(folder.path(), "create-md r0/0", 1, &["d0 holds DRBD metadata v08", "--force to convert it to v09"]);
    refused(folder.path(), "create-md r0/0 --force --max-peers 3", 1, &["one bitmap slot; 3 were asked for"]);
    assert!(image() == applied, "a refused command changed the disk");

    assert!(done(folder.path(), "create-md r0/0 --force").contains("converted to v09"));
    let text = dump(folder.path(), "r0/0");
    let record = "peer[1] {\n    bitmap-index 0;\n    bitmap-uuid 0xAA22334455667788;";
    for part in ["node-id 4;", "current-uuid 0x1122334455667788;", "la-size-sect 130992;", record, "# bits-set 2056;"] {
        assert!(text.contains(part), "`{part}` is not in {text}");
    }
    assert!(text.contains("0xBB22334455667788") && text.contains("0xCC22334455667788"), "{text}");
}

#[test]
fn volumes_of_84_are_converted_together_or_not_at_all() {
    let folder = volumes_of_84(3);
    let images = || [0, 1, 2].map(|number| fs::read(folder.path().join(format!("d{number}"))).unwrap_or_default());
    let refused = |exit: i32, words: &[&str]| {
        let before = images();
        let Answer { code, out, err } = replicactl(folder.path(), "create-md r0 --force");
        assert_eq!((code, out.as_str()), (exit, ""), "{err}");
        for word in words {
            assert!(err.contains(word), "`{word}` is not in: {err}");
        }
        assert!(images() == before, "a refused command changed a disk: {err}");
    };
    let held_back = "r0/0: refused: another volume of the resource cannot be converted now; nothing was changed";
    done(folder.path(), "apply-al r0/0");
    done(folder.path(), "apply-al r0/1");
    refused(1, &[held_back, "r0/2: refused: ", "activity log is not applied", "`replicactl apply-al r0/2`"]);

    let third = folder.path().join("d2");
    let unclean = images()[2].clone();
    fs::write(&third, vec![0; unclean.len()]).unwrap();
    refused(1, &[held_back, "r0/2: refused: there is no DRBD metadata, but another volume"]);
    fs::remove_file(&third).unwrap();
    refused(20, &[held_back, "r0/2: ", "d2"]);
    fs::write(&third, unclean).unwrap();
    done(folder.path(), "apply-al r0/2");

    // As after a call that was cut short; and the rest is out of reach.
    assert!(done(folder.path(), "create-md r0/1 --force").contains("converted to v09"));
    let [_, second, _] = images();
    let aside = folder.path().join("aside");
    fs::rename(folder.path().join("d0"), &aside).unwrap();
    fs::rename(&third, folder.path().join("d0")).unwrap();
    refused(20, &["r0/0: refused: another volume of the resource", "r0/2: "]);
    done(folder.path(), "create-md r0/0 --force");
    refused(20, &["r0/2: "]);
    fs::rename(folder.path().join("d0"), &third).unwrap();
    fs::rename(&aside, folder.path().join("d0")).unwrap();

    let said = done(folder.path(), "create-md r0 --force");
    assert_eq!(said.matches("converted to v09").count(), 1, "{said}");
    assert!(said.contains("r0/1: the metadata is v09 already; nothing was changed"), "{said}");
    assert!(images()[1] == second, "what was converted before was written again");
    for number in 0..3 {
        let text = dump(folder.path(), &format!("r0/{number}"));
        assert!(text.contains("bitmap-uuid 0xAA22334455667788;") && text.contains("# bits-set 2056;"), "{text}");
    }
}
