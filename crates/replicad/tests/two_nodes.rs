//! Two or three daemons with the real engine, sockets, disks and NBD: what an operator and an application see.

mod support;

use control::{Command, Response};
use support::{Cluster, DISK_BYTES, r0};

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

#[test]
fn writes_reach_both_disks_and_survive_a_change_of_roles() {
    let cluster = Cluster::new(2);
    let nodes = cluster.start_all();
    nodes[0].promote(true);
    nodes[0].wait_in_sync();
    let mut client = nodes[0].nbd();
    assert!(client.size_bytes > DISK_BYTES / 2, "size {}", client.size_bytes);
    let (small, large) = (pattern(4096, 1), pattern(3 << 20, 2));
    client.write(512, &small[..512]).unwrap();
    client.write(8192, &small).unwrap();
    // Longer than the largest payload: runs in parts.
    client.write(1 << 20, &large).unwrap();
    client.flush().unwrap();
    assert_eq!(client.read(8192, 4096).unwrap(), small);
    client.disconnect().unwrap();
    assert_eq!(cluster.data(0), cluster.data(1), "protocol C: completed means on both disks");

    nodes[0].done(Command::Demote { target: r0(), force: false });
    assert!(!nodes[0].run_dir.join("r0.0.nbd").exists(), "a Secondary has no device");
    nodes[1].promote(false);
    let mut client = nodes[1].nbd();
    assert_eq!(client.read(1 << 20, 3 << 20).unwrap(), large);
    assert_eq!(client.read(512, 512).unwrap(), small[..512]);
}

#[test]
fn a_crashed_secondary_catches_up() {
    let cluster = Cluster::new(2);
    let mut nodes = cluster.start_all();
    nodes[0].promote(true);
    nodes[0].wait_in_sync();
    let mut client = nodes[0].nbd();
    client.write(0, &pattern(65536, 3)).unwrap();
    nodes.pop().unwrap().kill();
    for block in 0..64u64 {
        client.write(block * 131_072, &pattern(16384, block)).unwrap();
    }
    client.flush().unwrap();
    assert_ne!(cluster.data(0), cluster.data(1), "the test does not test");

    let secondary = cluster.start(1);
    secondary.done(Command::Up { target: r0() });
    secondary.wait_in_sync();
    nodes[0].wait_in_sync();
    assert_eq!(cluster.data(0), cluster.data(1));
    let report = nodes[0].report();
    assert_eq!(report.connections[0].peer_devices[0].out_of_sync, 0);
}

#[test]
fn a_crashed_primary_comes_back_and_both_copies_agree() {
    let cluster = Cluster::new(2);
    let mut nodes = cluster.start_all();
    nodes[0].promote(true);
    nodes[0].wait_in_sync();
    let mut client = nodes[0].nbd();
    let kept = pattern(1 << 20, 4);
    client.write(0, &kept).unwrap();
    nodes.remove(0).kill();

    nodes[0].wait_until("the crash is seen", || nodes[0].report().connections[0].connection_state != "Connected");
    nodes[0].promote(false);
    let mut survivor = nodes[0].nbd();
    assert_eq!(survivor.read(0, 1 << 20).unwrap(), kept, "completed writes are on the survivor");
    let newer = pattern(1 << 20, 5);
    survivor.write(1 << 20, &newer).unwrap();

    let returned = cluster.start(0);
    returned.done(Command::Up { target: r0() });
    returned.wait_in_sync();
    nodes[0].wait_in_sync();
    assert_eq!(cluster.data(0), cluster.data(1));
    assert_eq!(&cluster.data(0)[1 << 20..2 << 20], newer);
}

#[test]
fn what_holds_the_device_keeps_the_role() {
    let cluster = Cluster::new(2);
    let nodes = cluster.start_all();
    nodes[0].promote(true);
    let client = nodes[0].nbd();
    nodes[0].wait_until("the client counts", || nodes[0].report().devices[0].open);
    match nodes[0].ask(Command::Demote { target: r0(), force: false }) {
        Response::Refused { code: -12, next_step: Some(_), .. } => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(nodes[0].report().role, "Primary");
    client.disconnect().unwrap();
    nodes[0].wait_until("the client is gone", || !nodes[0].report().devices[0].open);
    nodes[0].done(Command::Demote { target: r0(), force: false });
}

#[test]
fn terminated_daemons_leave_cleanly() {
    let cluster = Cluster::new(2);
    let mut nodes = cluster.start_all();
    nodes[0].promote(true);
    nodes[0].wait_in_sync();
    let run_dir = nodes[0].run_dir.clone();
    let (status, log) = nodes.remove(0).terminate();
    assert!(status.success(), "{status}\n{log}");
    assert!(!run_dir.join("control.sock").exists() && !run_dir.join("r0.0.nbd").exists());
    assert!(log.contains("Primary -> Secondary"), "{log}");
    nodes[0].wait_until("the peer sees it leave", || nodes[0].report().connections[0].connection_state != "Connected");

    // Clean: nothing to resync, and the other may become Primary.
    let again = cluster.start(0);
    again.done(Command::Up { target: r0() });
    again.wait_in_sync();
    nodes[0].promote(false);
}

#[test]
fn three_nodes_hold_three_copies() {
    let cluster = Cluster::new(3);
    let nodes = cluster.start_all();
    nodes[2].promote(true);
    nodes.iter().for_each(|node| node.wait_in_sync());
    let mut client = nodes[2].nbd();
    client.write(1 << 20, &pattern(1 << 20, 6)).unwrap();
    client.flush().unwrap();
    assert_eq!(cluster.data(2), cluster.data(0));
    assert_eq!(cluster.data(2), cluster.data(1));
}
