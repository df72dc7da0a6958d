//! What users get wrong: one clear sentence with the place, the cause and the next step, the right exit code, and
//! nothing changed.

use e2e::node::answer;
use e2e::{Cluster, Setup, pattern, tools};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Both programs read the file: both say the same sentence with the exit code for configuration.
fn configuration_is_refused(name: &str, from: &'static str, to: &str, words: &[&str]) {
    if !tools::ready(name, &["ip"]) {
        return;
    }
    let cluster = Setup { differs: vec![(0, from, to.to_string())], ..Setup::default() }.prepare();
    let node = cluster.alice();
    let before = std::fs::read(&node.disk).unwrap();
    for answer in [answer(&mut node.replicad()), node.ctl("create-md r0")] {
        assert_eq!(answer.code, 2, "{answer:?}");
        assert_eq!(answer.err.trim_end().lines().count(), 1, "one sentence: {}", answer.err);
        for word in words.iter().chain(&["alice.toml:"]) {
            assert!(answer.err.contains(word), "`{word}` is not in: {}", answer.err);
        }
    }
    assert!(std::fs::read(&node.disk).unwrap() == before, "the disk was changed");
    assert!(!node.run_dir.join("control.sock").exists());
}

#[test]
fn an_unknown_key_gets_the_nearest_name() {
    let name = "an_unknown_key_gets_the_nearest_name";
    configuration_is_refused(name, "connect-int", "conect-int", &["conect-int", "did you mean", "connect-int"]);
}

#[test]
fn a_missing_key_is_named() {
    let name = "a_missing_key_is_named";
    configuration_is_refused(name, "node-id = 0\n", "", &["node-id", "alice"]);
}

#[test]
fn a_value_out_of_range_is_named_with_the_range() {
    let name = "a_value_out_of_range_is_named_with_the_range";
    configuration_is_refused(name, "connect-int = 3", "connect-int = 300", &["connect-int", "300", "120"]);
}

#[test]
fn one_port_for_two_resources_is_refused() {
    let more = "[[resource]]\nname = \"r1\"\n[[resource.volume]]\nnumber = 0\ndevice = \"nbd\"\ndisk = \"none\"\n\
                [[resource.on]]\nnode = \"alice\"\nnode-id = 0\naddress = \"10.99.0.1:7789\"\n\n[[resource]]\nname = \"r0\"";
    let name = "one_port_for_two_resources_is_refused";
    configuration_is_refused(name, "[[resource]]\nname = \"r0\"", more, &["10.99.0.1:7789", "used by two resources"]);
}

#[test]
fn an_nbd_address_that_replication_has_is_refused() {
    let name = "an_nbd_address_that_replication_has_is_refused";
    let words = ["nbd:0.0.0.0:7789", "resource r0 replicates", "another port"];
    configuration_is_refused(name, "device = \"nbd\"", "device = \"nbd:0.0.0.0:7789\"", &words);
}

#[test]
fn one_disk_for_two_resources_is_refused() {
    let name = "one_disk_for_two_resources_is_refused";
    if !tools::ready(name, &["ip"]) {
        return;
    }
    // The file of alice, which the fixed text cannot name: a second resource on the same path.
    let cluster = Setup::default().prepare();
    let node = cluster.alice();
    let text = std::fs::read_to_string(&node.config).unwrap();
    let again = text.replace("\"r0\"", "\"r1\"").replace(":7789", ":7790");
    std::fs::write(&node.config, text + "\n" + &again).unwrap();
    for answer in [answer(&mut node.replicad()), node.ctl("create-md r0")] {
        assert_eq!(answer.code, 2, "{answer:?}");
        for word in ["alice.img", "is given to two volumes", "give each volume its own disk"] {
            assert!(answer.err.contains(word), "`{word}` is not in: {}", answer.err);
        }
    }
}

#[test]
fn a_node_name_that_is_not_in_the_file_is_refused() {
    let name = "a_node_name_that_is_not_in_the_file_is_refused";
    if !tools::ready(name, &["ip"]) {
        return;
    }
    let mut cluster = Setup::default().prepare();
    cluster.alice_mut().name = "mallory".into();
    let node = cluster.alice();
    for answer in [answer(&mut node.replicad()), node.ctl("create-md r0")] {
        assert_eq!(answer.code, 2, "{answer:?}");
        for word in ["mallory", "alice", "bob", "--node"] {
            assert!(answer.err.contains(word), "`{word}` is not in: {}", answer.err);
        }
    }
}

/// `line` is refused in one sentence, and the disk is as before.
fn refused(cluster: &Cluster, line: &str, exit: i32, words: &[&str]) {
    let node = cluster.alice();
    let before = std::fs::read(&node.disk).unwrap();
    let answer = node.ctl(line);
    assert_eq!(answer.code, exit, "{line}: {answer:?}");
    for word in words {
        assert!(answer.err.contains(word), "{line}: `{word}` is not in: {}", answer.err);
    }
    assert!(std::fs::read(&node.disk).unwrap() == before, "{line}: the disk was changed");
}

#[test]
fn a_disk_too_small_is_refused() {
    if !tools::ready("a_disk_too_small_is_refused", &["ip"]) {
        return;
    }
    let cluster = Setup { disk_bytes: 16 << 10, ..Setup::default() }.prepare();
    refused(&cluster, "create-md r0", 1, &["r0/0", "alice.img", "16384"]);
}

#[test]
fn a_disk_that_is_not_there_is_refused() {
    if !tools::ready("a_disk_that_is_not_there_is_refused", &["ip"]) {
        return;
    }
    let mut cluster = Setup::default().prepare();
    std::fs::remove_file(&cluster.alice().disk).unwrap();
    let answer = cluster.alice().ctl("create-md r0");
    assert_eq!(answer.code, 20, "{answer:?}");
    assert!(answer.err.contains("alice.img") && answer.err.contains("No such file"), "{}", answer.err);
    cluster.alice_mut().start();
    let answer = cluster.alice().ctl("up r0");
    assert_ne!(answer.code, 0, "{answer:?}");
    assert!(answer.err.contains("alice.img"), "{}", answer.err);
    assert!(cluster.alice_mut().is_alive());
}

#[test]
fn a_disk_that_the_daemon_holds_is_refused() {
    if !tools::ready("a_disk_that_the_daemon_holds_is_refused", &["ip"]) {
        return;
    }
    let mut cluster = Setup::default().prepare();
    cluster.alice().done("create-md r0");
    cluster.alice_mut().start();
    cluster.alice().done("up r0");
    refused(&cluster, "create-md r0 --force", 20, &["alice.img", "(replicad) has locked it", "replicactl down"]);
    cluster.alice().done("down r0");
    cluster.alice().done("create-md r0 --force");
}

/// A loop device over alice's file, detached when dropped.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Loop {
        Loop(tools::run("losetup", &["--find", "--show", file.to_str().unwrap()]).trim().to_string())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tools::output("umount", &[&self.0]);
        tools::output("losetup", &["--detach", &self.0]);
    }
}

#[test]
fn a_mounted_disk_is_refused() {
    let name = "a_mounted_disk_is_refused";
    if !tools::ready(name, &["ip", "losetup", "mkfs.ext4", "mount"]) {
        return;
    }
    let mut cluster = Setup::default().prepare();
    tools::run("mkfs.ext4", &["-q", "-F", cluster.alice().disk.to_str().unwrap()]);
    let device = Loop::over(&cluster.alice().disk);
    let folder = cluster.dir.path().join("mounted");
    std::fs::create_dir(&folder).unwrap();
    tools::run("mount", &[&device.0, folder.to_str().unwrap()]);
    let text = std::fs::read_to_string(&cluster.alice().config).unwrap();
    let text = text.replace(cluster.alice().disk.to_str().unwrap(), &device.0);
    std::fs::write(&cluster.alice().config, text).unwrap();
    refused(&cluster, "create-md r0 --force", 20, &[&device.0, "mounted"]);
    cluster.alice_mut().start();
    let answer = cluster.alice().ctl("up r0");
    assert_ne!(answer.code, 0, "{answer:?}");
    assert!(answer.err.contains(&device.0), "{}", answer.err);
}

#[test]
fn an_existing_file_system_is_not_overwritten() {
    let name = "an_existing_file_system_is_not_overwritten";
    if !tools::ready(name, &["ip", "mkfs.ext4", "mkfs.xfs"]) {
        return;
    }
    let cluster = Setup { disk_bytes: 512 << 20, ..Setup::default() }.prepare();
    let disk = cluster.alice().disk.to_str().unwrap();
    for (mkfs, found) in [(&["mkfs.ext4", "-q", "-F"], "ext"), (&["mkfs.xfs", "-q", "-f"], "XFS")] {
        tools::run(mkfs[0], &[&mkfs[1..], &[disk]].concat());
        refused(&cluster, "create-md r0", 1, &[disk, found, "--force"]);
    }
    cluster.alice().done("create-md r0 --force");
    refused(&cluster, "create-md r0", 1, &["v09", "--force"]);
}

#[test]
fn damaged_metadata_is_refused_by_name_and_left_alone() {
    if !tools::ready("damaged_metadata_is_refused_by_name_and_left_alone", &["ip"]) {
        return;
    }
    // Field, offset in the superblock, and a value that cannot be.
    let damages: [(&str, u64, [u8; 4]); 8] = [
        ("magic", 0x3c, [0xde, 0xad, 0xbe, 0xef]),
        ("md-size-sect", 0x40, [0, 0, 0, 1]),
        ("al-offset", 0x44, [0x7f, 0xff, 0xff, 0xff]),
        ("bm-offset", 0x4c, [0x7f, 0xff, 0xff, 0xff]),
        ("bm-byte-per-bit", 0x50, [0, 0, 0, 3]),
        ("max-peers", 0x58, [0, 0, 0, 99]),
        ("al-stripes", 0x60, [0xff; 4]),
        ("al-stripe-size-4k", 0x64, [0, 0, 0, 0]),
    ];
    let mut cluster = Setup::default().prepare();
    cluster.alice().done("create-md r0");
    cluster.alice_mut().start();
    let superblock = (64 << 20) - 4096;
    let disk = File::options().read(true).write(true).open(&cluster.alice().disk).unwrap();
    for (field, offset, value) in damages {
        let mut good = [0; 4];
        disk.read_exact_at(&mut good, superblock + offset).unwrap();
        disk.write_all_at(&value, superblock + offset).unwrap();
        println!("{field}");
        refused(&cluster, "dump-md r0", 255, &["superblock"]);
        let before = std::fs::read(&cluster.alice().disk).unwrap();
        let answer = cluster.alice().ctl("up r0");
        assert_ne!(answer.code, 0, "{field}: {answer:?}");
        assert!(answer.err.contains("superblock"), "{field}: {}", answer.err);
        assert!(std::fs::read(&cluster.alice().disk).unwrap() == before, "{field}: the disk was changed");
        cluster.alice().ctl("down r0");
        disk.write_all_at(&good, superblock + offset).unwrap();
    }
    cluster.alice().done("up r0");
    assert!(cluster.alice_mut().is_alive());
}

#[test]
fn an_address_that_is_taken_is_told() {
    if !tools::ready("an_address_that_is_taken_is_told", &["ip"]) {
        return;
    }
    let mut cluster = Cluster::start();
    // A second daemon of alice, with a run directory of its own.
    let mut second = cluster.alice().replicad();
    second.arg("--run-dir").arg(cluster.dir.path().join("second"));
    let answer = answer_within_patience(&mut second);
    assert_ne!(answer.code, 0, "{answer:?}");
    assert!(answer.err.contains("10.99.0.1:7789") || answer.err.contains("run"), "{}", answer.err);
    assert!(cluster.alice_mut().is_alive());
    cluster.alice().client().write(0, &pattern(4096, 1)).unwrap();
    cluster.assert_equal_copies();
}

/// A daemon that should refuse to start, but might not.
fn answer_within_patience(command: &mut std::process::Command) -> e2e::Answer {
    let mut limited = std::process::Command::new("timeout");
    limited.args(["-s", "KILL", "20"]).arg(command.get_program()).args(command.get_args());
    answer(&mut limited)
}

#[test]
fn commands_without_a_daemon_say_so() {
    if !tools::ready("commands_without_a_daemon_say_so", &["ip"]) {
        return;
    }
    let cluster = Setup::default().prepare();
    for line in ["status", "up r0", "promote r0"] {
        refused(&cluster, line, 20, &["control.sock", "replicad"]);
    }
}
