//! Online verify and checksum resync between two daemons: a block that rotted is found while the volume is in use, shown,
//! and repaired by a disconnect and a connect; a checksum resync moves what differs alone.

use e2e::{Cluster, Node, Setup, pattern, tools};
use std::fs::File;
use std::os::unix::fs::FileExt;

const ROTTEN_AT: u64 = 5 << 20;

/// Other bytes in the middle of the block at `at`, behind the daemon's back.
fn corrupt(node: &Node, at: u64) {
    let disk = File::options().write(true).open(&node.disk).expect("the disk is a file");
    disk.write_all_at(b"rotten", at + 2000).expect("it can be written");
    disk.sync_all().expect("it can be made durable");
}

fn wait_verified(node: &Node) {
    node.wait("the verify is over", |state| state.peer_device().replication_state == "Established");
}

fn with_verify() -> Cluster {
    Setup { net: "verify-alg = \"sha1\", csums-alg = \"sha1\",", ..Setup::default() }.start()
}

#[test]
fn a_rotten_block_is_found_and_repaired() {
    if !tools::ready("a_rotten_block_is_found_and_repaired", &["ip"]) {
        return;
    }
    let cluster = with_verify();
    let (alice, bob) = (cluster.alice(), cluster.bob());
    let mut client = alice.client();
    for block in 0..64u64 {
        client.write(block * 131_072, &pattern(4096, block)).unwrap();
    }
    client.flush().unwrap();
    assert_eq!(alice.done("verify r0"), "", "copies that are equal");
    wait_verified(alice);
    assert_eq!((alice.state().out_of_sync_kib(), bob.state().out_of_sync_kib()), (0, 0));
    assert!(alice.log().contains(": 0 blocks of 4 KiB differ, 0 could not be compared"), "{}", alice.log());

    corrupt(bob, ROTTEN_AT);
    assert_eq!(cluster.copies_differ_at().map(|at| at as u64 / 4096), Some(ROTTEN_AT / 4096), "the test does not test");
    // Not where it is looked for, so not found.
    alice.done("verify r0 --start 0 --stop 1M");
    wait_verified(alice);
    assert_eq!(alice.state().out_of_sync_kib(), 0);

    // From the Secondary's side, while the Primary writes.
    bob.done("verify alice:r0 --start 0");
    for block in 0..64u64 {
        client.write(block * 131_072 + 8192, &pattern(4096, block)).unwrap();
    }
    client.flush().unwrap();
    wait_verified(bob);
    wait_verified(alice);
    for node in [alice, bob] {
        let state = node.state();
        assert_eq!(state.out_of_sync_kib(), 4, "{}", node.log());
        assert_eq!(state.disk(), "UpToDate", "a verify changes no disk's state");
        assert!(node.done("status r0").contains("may differ from"), "the verdict says what to do");
    }
    let sector = ROTTEN_AT / 512;
    assert!(bob.log().contains(&format!("8 sectors from sector {sector} differ")), "{}", bob.log());

    bob.done("disconnect r0");
    bob.wait_connection("StandAlone");
    bob.done("connect r0");
    bob.wait_settled();
    alice.wait_settled();
    assert_eq!((alice.state().out_of_sync_kib(), bob.state().out_of_sync_kib()), (0, 0));
    cluster.assert_equal_copies();

    let read = client.read(ROTTEN_AT, 4096).unwrap();
    assert_eq!(read, pattern(4096, ROTTEN_AT / 131_072), "the Primary's data was taken");
}

#[test]
fn status_shows_how_far_a_verify_is() {
    if !tools::ready("status_shows_how_far_a_verify_is", &["ip"]) {
        return;
    }
    let cluster = with_verify();
    let (alice, bob) = (cluster.alice(), cluster.bob());
    for node in [alice, bob] {
        node.done("peer-device-options r0 --c-max-rate 2M");
    }
    alice.done("verify r0 --start 8M");
    let state = alice.wait("it is on its way", |state| {
        let sync = state.peer_device().sync.as_ref();
        sync.is_some_and(|sync| sync.percent_resync_done > 0.0)
    });
    let device = state.peer_device();
    assert_eq!(device.replication_state, "VerifyS");
    assert!(device.has_online_verify_details && device.has_sync_details);
    let sync = device.sync.as_ref().expect("waited for it");
    assert_eq!((sync.ov_start_sector, sync.ov_stop_sector, sync.ov_skipped), (Some(16384), Some(-1), Some(0)));
    let (position, left) = (sync.ov_position.unwrap(), sync.ov_left.unwrap());
    assert!(position > 16384 && left < sync.rs_total && left > 0, "{sync:?}");
    assert_eq!(bob.state().peer_device().replication_state, "VerifyT");
    let shown = alice.done("status r0");
    assert!(
        shown.contains("replication:VerifyS") && shown.contains(" done:") && shown.contains("MiB to go"),
        "{shown}"
    );

    let refused = bob.ctl("verify r0");
    assert_eq!(refused.code, 11, "{refused:?}");
    assert!(refused.err.contains("a resync or verify already runs"), "{refused:?}");
    // Interrupted, it goes on from there.
    alice.done("disconnect r0");
    alice.wait_connection("StandAlone");
    alice.done("connect r0");
    alice.wait_settled();
    alice.done("verify r0");
    let state = alice.wait("it goes on", |state| state.peer_device().sync.is_some());
    let start = state.peer_device().sync.as_ref().unwrap().ov_start_sector.unwrap();
    assert!(start >= position - 2048 && start > 16384, "from {start}, it had been at {position}");
    alice.done("disconnect r0");
}

#[test]
fn a_verify_is_refused_without_an_algorithm_or_a_peer() {
    if !tools::ready("a_verify_is_refused_without_an_algorithm_or_a_peer", &["ip"]) {
        return;
    }
    let cluster = Cluster::start();
    let (alice, bob) = (cluster.alice(), cluster.bob());
    let refused = alice.ctl("verify r0");
    assert_eq!((refused.code, refused.err.contains("Need a verify algorithm")), (11, true), "{refused:?}");
    bob.done("net-options r0 --verify-alg crc32c");
    let refused = bob.ctl("verify r0");
    assert_eq!((refused.code, refused.err.contains("Need a verify algorithm")), (11, true), "{refused:?}");
    alice.done("net-options r0 --verify-alg crc32c");
    bob.done("verify r0");
    wait_verified(bob);
    alice.done("disconnect r0");
    alice.wait_connection("StandAlone");
    let refused = alice.ctl("verify r0");
    assert_eq!((refused.code, refused.err.contains("needs a connection")), (11, true), "{refused:?}");
}

#[test]
fn a_checksum_resync_moves_what_differs_alone() {
    if !tools::ready("a_checksum_resync_moves_what_differs_alone", &["ip"]) {
        return;
    }
    let cluster = with_verify();
    let (alice, bob) = (cluster.alice(), cluster.bob());
    let mut client = alice.client();
    for block in 0..256u64 {
        client.write(block * 16_384, &pattern(4096, block)).unwrap();
    }
    client.flush().unwrap();
    alice.done("disconnect r0");
    alice.wait_connection("StandAlone");
    // One block gets other data, all others the same again.
    for block in 0..256u64 {
        client.write(block * 16_384, &pattern(4096, if block == 77 { 999 } else { block })).unwrap();
    }
    client.flush().unwrap();
    assert_eq!(alice.state().out_of_sync_kib(), 1024);
    let sent = alice.state().peer_device().sent;
    alice.done("connect r0");
    bob.wait_settled();
    alice.wait_settled();
    cluster.assert_equal_copies();
    let moved = alice.state().peer_device().sent;
    assert_eq!(moved - if moved >= sent { sent } else { 0 }, 4, "KiB: one block of 256");
}
