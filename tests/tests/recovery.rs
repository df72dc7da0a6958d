//! Accidents under load: cut links, killed and frozen daemons. Afterwards nothing that was acknowledged is lost, only
//! the difference is resynced, and the copies are equal.

use e2e::load::assert_kept;
use e2e::{Cluster, Load, Node, Setup, State, pattern, tools};

/// Blocks that the newest resync of a node's log had to carry; each is 4 KiB.
fn resynced_blocks(node: &Node) -> u64 {
    let log = node.log();
    let line = log.lines().rev().find(|line| line.contains(": resync ") && line.contains(" blocks"));
    let line = line.unwrap_or_else(|| panic!("no resync was started:\n{log}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    words[words.len() - 2].parse().unwrap_or_else(|e| panic!("{e}: {line}"))
}

/// KiB sent to the peer; with no application writing, that is what a resync carried.
fn sent_kib(state: &State) -> u64 {
    state.peer_device().sent
}

#[test]
fn after_a_disconnect_only_the_difference_is_resynced() {
    if !tools::ready("after_a_disconnect_only_the_difference_is_resynced", &["ip"]) {
        return;
    }
    let cluster = Cluster::start();
    let (alice, bob) = (cluster.alice(), cluster.bob());
    alice.done("disconnect r0");
    alice.wait_connection("StandAlone");
    bob.wait("the peer is gone", |state| state.connection() != "Connected");
    let mut client = alice.client();
    // 40 separate blocks and one that is written twice.
    for block in 0..40u64 {
        client.write(block * 262_144, &pattern(4096, block)).unwrap();
    }
    client.write(0, &pattern(4096, 99)).unwrap();
    client.flush().unwrap();
    assert_eq!(alice.state().out_of_sync_kib(), 160);
    assert!(cluster.copies_differ_at().is_some(), "the test does not test");
    let before = sent_kib(&alice.state());
    alice.done("connect r0");
    cluster.assert_equal_copies();
    assert_eq!(resynced_blocks(alice), 40);
    // The counters of a connection may begin anew with it.
    let after = sent_kib(&alice.state());
    assert_eq!(after - if after >= before { before } else { 0 }, 160, "before {before}, after {after}");
}

#[test]
fn a_killed_secondary_gets_the_difference_alone() {
    if !tools::ready("a_killed_secondary_gets_the_difference_alone", &["ip"]) {
        return;
    }
    let mut cluster = Cluster::start();
    let blocks = cluster.usable_bytes() / 4096;
    let load = Load::start(&cluster.alice().device(), 0, 2000);
    load.wait_acknowledged(200);
    cluster.bob_mut().kill();
    load.wait_acknowledged(300);
    let written = load.stop();
    let missed = cluster.alice().state().out_of_sync_kib() / 4;
    assert!(missed > 0 && missed < blocks / 2, "{missed} of {blocks} blocks were missed");
    cluster.bob_mut().start();
    cluster.bob().done("up r0");
    cluster.assert_equal_copies();
    // To the block: its own activity log adds nothing.
    assert_eq!(resynced_blocks(cluster.alice()), missed);
    assert_kept(&mut cluster.alice().client(), &written);
    cluster.alice().done("demote r0 --force");
    cluster.bob().done("promote r0");
    assert_kept(&mut cluster.bob().client(), &written);
}

#[test]
fn a_killed_primary_is_replaced_and_comes_back_as_target() {
    if !tools::ready("a_killed_primary_is_replaced_and_comes_back_as_target", &["ip"]) {
        return;
    }
    let mut cluster = Cluster::start();
    let blocks = cluster.usable_bytes() / 4096;
    let loads: Vec<Load> = (0..4).map(|at| Load::start(&cluster.alice().device(), at * 1000, 1000)).collect();
    loads.iter().for_each(|load| load.wait_acknowledged(150));
    cluster.alice_mut().kill();
    // The device is gone: each load ends by itself. Under C, every acknowledged write is on the survivor.
    let written: Vec<_> = loads.into_iter().map(Load::stop).collect();
    cluster.bob().wait("the peer is gone", |state| state.connection() != "Connected");
    cluster.bob().done("promote r0");
    let mut survivor = cluster.bob().client();
    written.iter().for_each(|written| assert_kept(&mut survivor, written));
    let newer = pattern(1 << 20, 6);
    survivor.write(32 << 20, &newer).unwrap();

    cluster.alice_mut().start();
    cluster.alice().done("up r0");
    cluster.assert_equal_copies();
    assert_eq!(cluster.alice().state().role(), "Secondary");
    let resynced = resynced_blocks(cluster.bob());
    // Hot extents are 1024 blocks each: the load lies in four, the write of the survivor in one.
    assert!((256..blocks).contains(&resynced), "{resynced} of {blocks} blocks");
    assert!(cluster.data(0)[32 << 20..][..newer.len()] == newer[..], "the newer data did not win");
    written.iter().for_each(|written| assert_kept(&mut survivor, written));
}

#[test]
fn both_killed_at_once_come_back_with_all_that_was_acknowledged() {
    if !tools::ready("both_killed_at_once_come_back_with_all_that_was_acknowledged", &["ip"]) {
        return;
    }
    let mut cluster = Cluster::start();
    let load = Load::start(&cluster.alice().device(), 0, 3000);
    load.wait_acknowledged(300);
    cluster.alice_mut().kill();
    cluster.bob_mut().kill();
    let written = load.stop();
    for node in &mut cluster.nodes {
        node.start();
        node.done("up r0");
    }
    cluster.assert_equal_copies();
    cluster.bob().done("promote r0");
    assert_kept(&mut cluster.bob().client(), &written);
}

#[test]
fn a_cut_link_under_load_is_survived_and_healed() {
    if !tools::ready("a_cut_link_under_load_is_survived_and_healed", &["ip"]) {
        return;
    }
    let cluster = Cluster::start();
    let load = Load::start(&cluster.alice().device(), 0, 2000);
    load.wait_acknowledged(100);
    cluster.network.set_link(1, false);
    cluster.alice().wait("the peer is gone", |state| state.connection() != "Connected");
    load.wait_acknowledged(200);
    assert!(cluster.alice().state().out_of_sync_kib() > 0, "writes without the peer are not noted");
    cluster.network.set_link(1, true);
    cluster.alice().wait_connection("Connected");
    load.wait_acknowledged(200);
    let written = load.stop();
    cluster.assert_equal_copies();
    assert_kept(&mut cluster.alice().client(), &written);
    assert!(resynced_blocks(cluster.alice()) <= 2100, "more than the load's blocks were resynced");
}

#[test]
fn a_frozen_secondary_is_given_up_and_catches_up() {
    if !tools::ready("a_frozen_secondary_is_given_up_and_catches_up", &["ip"]) {
        return;
    }
    let cluster = Cluster::start();
    let load = Load::start(&cluster.alice().device(), 0, 2000);
    load.wait_acknowledged(100);
    cluster.bob().pause();
    cluster.alice().wait("the peer is given up", |state| state.connection() != "Connected");
    load.wait_acknowledged(200);
    cluster.bob().resume();
    cluster.alice().wait_connection("Connected");
    let written = load.stop();
    cluster.assert_equal_copies();
    assert_kept(&mut cluster.alice().client(), &written);
}

#[test]
fn a_resync_that_is_cut_goes_on_where_it_was() {
    if !tools::ready("a_resync_that_is_cut_goes_on_where_it_was", &["ip"]) {
        return;
    }
    let mut cluster = Setup { disk_bytes: 256 << 20, ..Setup::default() }.up();
    cluster.nodes.iter().for_each(|node| drop(node.done("wait-connect r0 --timeout 120")));
    cluster.alice().done("promote r0 --force");
    // Not before something was carried, or it may be over: both are fine, equal copies are what counts.
    cluster.bob().wait("the resync moves", |state| {
        state.is_settled() || state.peer_device().sync.as_ref().is_some_and(|sync| sync.percent_resync_done > 1.0)
    });
    cluster.bob_mut().kill();
    cluster.bob_mut().start();
    cluster.bob().done("up r0");
    cluster.assert_equal_copies();
}

#[test]
fn a_terminated_daemon_leaves_nothing_to_resync() {
    if !tools::ready("a_terminated_daemon_leaves_nothing_to_resync", &["ip"]) {
        return;
    }
    let mut cluster = Cluster::start();
    cluster.alice().client().write(0, &pattern(1 << 20, 8)).unwrap();
    assert!(cluster.alice_mut().terminate().success());
    cluster.alice_mut().start();
    let before = cluster.bob().log().matches(": resync ").count();
    cluster.alice().done("up r0");
    cluster.assert_equal_copies();
    assert_eq!(cluster.bob().log().matches(": resync ").count(), before, "something was resynced");
    cluster.bob().done("promote r0");
}
