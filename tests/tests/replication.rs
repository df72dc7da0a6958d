//! The main job: what is written on one node is on the other.

use e2e::{Cluster, Setup, pattern, tools};

#[test]
fn set_up_and_initial_sync_make_the_copies_equal() {
    if !tools::ready("set_up_and_initial_sync_make_the_copies_equal", &["ip"]) {
        return;
    }
    let mut cluster = Setup::default().prepare();
    // Data that is there before: the first sync has to carry it.
    std::fs::File::options()
        .write(true)
        .open(&cluster.alice().disk)
        .and_then(|f| std::os::unix::fs::FileExt::write_all_at(&f, &pattern(8 << 20, 1), 1 << 20))
        .unwrap();
    for node in &mut cluster.nodes {
        node.done("create-md r0");
        node.start();
        node.done("up r0");
    }
    for node in &cluster.nodes {
        node.done("wait-connect r0 --timeout 120");
        let state = node.state();
        assert_eq!((state.role(), state.disk()), ("Secondary", "Inconsistent"));
        assert_eq!(node.ctl("promote r0").code, 17, "no up-to-date data: only --force may");
    }
    assert!(cluster.copies_differ_at().is_some(), "the test does not test");
    cluster.alice().done("promote r0 --force");
    cluster.alice().done("wait-sync r0 --timeout 120");
    cluster.assert_equal_copies();
    assert_eq!(cluster.alice().done("role r0"), "Primary\n");
    assert_eq!(cluster.alice().done("cstate r0"), "Connected\n");
    assert_eq!(cluster.bob().done("dstate r0"), "UpToDate/UpToDate\n");
}

/// Everything that fio wrote and checked is on both disks.
fn fio_over(name: &str, protocol: char) {
    if !tools::ready(name, &["ip", "fio"]) {
        return;
    }
    let cluster = Setup { protocol, ..Setup::default() }.start();
    tools::fio_verify(&cluster.alice().nbd_uri(), &[]);
    match protocol {
        'C' => assert_eq!(cluster.copies_differ_at(), None, "completed means: on both disks"),
        _ => cluster.wait_equal_copies(),
    }
    cluster.assert_equal_copies();
}

#[test]
fn fio_verifies_over_protocol_a() {
    fio_over("fio_verifies_over_protocol_a", 'A');
}

#[test]
fn fio_verifies_over_protocol_b() {
    fio_over("fio_verifies_over_protocol_b", 'B');
}

#[test]
fn fio_verifies_over_protocol_c() {
    fio_over("fio_verifies_over_protocol_c", 'C');
}

#[test]
fn roles_change_and_the_data_stays() {
    if !tools::ready("roles_change_and_the_data_stays", &["ip", "nbdcopy", "nbdinfo", "qemu-io"]) {
        return;
    }
    let cluster = Cluster::start();
    let (alice, bob) = (cluster.alice(), cluster.bob());
    assert_eq!(tools::run("nbdinfo", &["--size", &alice.nbd_uri()]).trim(), cluster.usable_bytes().to_string());
    let source = cluster.dir.path().join("source");
    std::fs::write(&source, pattern(cluster.usable_bytes() as usize, 5)).unwrap();
    tools::run("nbdcopy", &["--flush", source.to_str().unwrap(), &alice.nbd_uri()]);
    let refused = bob.ctl("promote r0");
    assert_eq!(refused.code, 11, "two Primaries: {refused:?}");
    alice.done("demote r0");
    assert!(!alice.socket().exists(), "a Secondary has no device");
    bob.done("promote r0");
    let back = cluster.dir.path().join("back");
    std::fs::File::create(&back).and_then(|f| f.set_len(cluster.usable_bytes())).unwrap();
    tools::run("nbdcopy", &[&bob.nbd_uri(), back.to_str().unwrap()]);
    assert!(std::fs::read(&back).unwrap() == std::fs::read(&source).unwrap(), "the other node has other data");
    // And the way back, with zeroes and discards.
    tools::run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 0x5a 1M 1M",
            "-c",
            "write -z 4M 1M",
            "-c",
            "discard 8M 1M",
            "-c",
            "flush",
            &bob.nbd_uri(),
        ],
    );
    bob.done("demote r0");
    alice.done("promote r0");
    tools::run("qemu-io", &["-f", "raw", "-c", "read -P 0x5a 1M 1M", "-c", "read -P 0 4M 1M", &alice.nbd_uri()]);
    cluster.assert_equal_copies();
}

#[test]
fn peers_find_each_other_over_ipv6() {
    if !tools::ready("peers_find_each_other_over_ipv6", &["ip"]) {
        return;
    }
    let cluster = Setup { ipv6: true, ..Setup::default() }.start();
    let mut client = cluster.alice().client();
    client.write(4096, &pattern(1 << 20, 2)).unwrap();
    cluster.assert_equal_copies();
    let path = &cluster.alice().state().0.connections[0].paths[0];
    assert_eq!((path.remote_host.family.as_str(), path.established), ("ipv6", true));
}

#[test]
fn two_nodes_of_three_go_on_while_the_third_is_away() {
    if !tools::ready("two_nodes_of_three_go_on_while_the_third_is_away", &["ip"]) {
        return;
    }
    let mut cluster = Setup { nodes: 3, ..Setup::default() }.start();
    cluster.nodes[2].kill();
    let mut client = cluster.alice().client();
    client.write(0, &pattern(1 << 20, 3)).unwrap();
    client.flush().unwrap();
    assert_eq!(cluster.copies_differ_at(), None);
    let third = &mut cluster.nodes[2];
    third.start();
    third.done("up r0");
    cluster.assert_equal_copies();
    assert!(cluster.data(2) == cluster.data(0), "the third copy differs");
}

#[test]
fn an_ext4_made_on_one_node_is_mounted_on_the_other() {
    let name = "an_ext4_made_on_one_node_is_mounted_on_the_other";
    if !tools::ready(name, &["ip", "mkfs.ext4", "nbdfuse", "mount", "losetup"]) || !e2e::mounted::possible(name) {
        return;
    }
    let cluster = Cluster::start();
    let text = pattern(3 << 20, 11);
    {
        let device = e2e::mounted::Device::open(cluster.alice(), cluster.dir.path());
        tools::run("mkfs.ext4", &["-q", "-F", device.path()]);
        let folder = device.mount(cluster.dir.path());
        std::fs::write(folder.path().join("file"), &text).unwrap();
    }
    cluster.alice().wait("nobody holds the device", |state| !state.0.devices[0].open);
    cluster.alice().done("demote r0");
    cluster.bob().done("promote r0");
    {
        let device = e2e::mounted::Device::open(cluster.bob(), cluster.dir.path());
        tools::run("fsck.ext4", &["-f", "-n", device.path()]);
        let folder = device.mount(cluster.dir.path());
        assert!(std::fs::read(folder.path().join("file")).unwrap() == text, "the file is another one");
    }
    cluster.assert_equal_copies();
}
