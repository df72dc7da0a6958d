//! A checker that cannot fail is worth nothing: each is shown a world that is wrong in one way and must say so.

use std::collections::BTreeSet;

use sim::swarm::{Options, SECOND};
use sim::world::{Complaint, World};
use types::{BlockOp, ByteRange, NodeId, RequestId, VolumeNumber};

fn node(n: u8) -> NodeId {
    NodeId::new(n).unwrap()
}
const VOLUME: VolumeNumber = VolumeNumber::new(0).unwrap();

fn calm() -> World {
    World::with_options(Options::calm(), 1, false)
}

/// Runs until somebody is Primary and the application has written.
fn busy() -> World {
    let mut world = calm();
    while world.stats.requests < 200 {
        world.step();
        assert_eq!(world.complaint, None, "a calm world is wrong before anything was broken");
    }
    world
}

fn primary(world: &World) -> (NodeId, NodeId) {
    if world.node(node(0)).is_primary { (node(0), node(1)) } else { (node(1), node(0)) }
}

fn complaint(world: &World) -> String {
    world.complaint.clone().expect("the checker says nothing").text
}

fn a_written_sector(world: &World, id: NodeId) -> u64 {
    world.node(id).disks[&VOLUME].sectors_written().next().expect("the application has written")
}

#[test]
fn a_calm_run_settles() {
    let mut world = calm();
    assert_eq!(world.run(), Ok(()));
    assert!(world.settled && world.stats.requests > 0);
}

#[test]
fn a_block_that_differs_and_no_bit_tells() {
    // Nobody was ever Primary: nothing is hot, no bit is set.
    let mut world = calm();
    let range = ByteRange::new(7 << 20, 4096).unwrap();
    world.node_mut(node(1)).disks.get_mut(&VOLUME).unwrap().corrupt(range.sector(), 999_999);
    world.show_change(node(1), VOLUME, range);
    assert!(complaint(&world).contains("promise 2"), "{}", complaint(&world));
}

#[test]
fn equal_is_compared_in_full() {
    let mut world = busy();
    world.run().unwrap();
    assert_eq!(world.check_equal(VOLUME, node(0), node(1)), Ok(()));
    world.node_mut(node(1)).disks.get_mut(&VOLUME).unwrap().corrupt(77, 999_999);
    assert!(world.check_equal(VOLUME, node(0), node(1)).unwrap_err().contains("999999"));
}

#[test]
fn an_acknowledged_write_that_the_peer_lacks() {
    let mut world = busy();
    let (first, second) = primary(&world);
    // The next write to this sector completes on a disk that swallows it.
    let sector = a_written_sector(&world, first);
    let range = ByteRange::new(sector * 512, 512).unwrap();
    world.submit(first, VOLUME, BlockOp::Write { fua: false }, range);
    let request = *world.node(first).requests.keys().next_back().unwrap();
    let mut seen = false;
    while world.complaint.is_none() && world.node(first).requests.contains_key(&request) {
        world.step();
        world.node_mut(second).disks.get_mut(&VOLUME).unwrap().corrupt(sector, 999_999);
        seen = true;
    }
    assert!(seen && complaint(&world).contains("promise 1"), "{}", complaint(&world));
}

#[test]
fn a_read_of_something_that_was_never_written() {
    let mut world = busy();
    let (first, _) = primary(&world);
    let sector = a_written_sector(&world, first);
    world.node_mut(first).disks.get_mut(&VOLUME).unwrap().corrupt(sector, 999_999);
    world.submit(first, VOLUME, BlockOp::Read, ByteRange::new(sector * 512, 512).unwrap());
    let request = *world.node(first).requests.keys().next_back().unwrap();
    while world.complaint.is_none() && world.node(first).requests.contains_key(&request) {
        world.step();
    }
    assert!(complaint(&world).contains("reads as write 999999"), "{}", complaint(&world));
}

#[test]
fn two_primaries_that_see_each_other() {
    let mut world = busy();
    let (first, second) = primary(&world);
    world.node_mut(second).is_primary = true;
    world.judge_primaries(first);
    assert!(complaint(&world).contains("both Primary"));
}

#[test]
fn a_promotion_onto_data_that_misses_a_write() {
    let mut world = busy();
    let (first, second) = primary(&world);
    let sector = a_written_sector(&world, second);
    world.node_mut(second).disks.get_mut(&VOLUME).unwrap().corrupt(sector, 999_999);
    world.node_mut(first).is_primary = false;
    world.judge_promotion(second);
    assert!(complaint(&world).contains("should hold every acknowledged write"), "{}", complaint(&world));
}

#[test]
fn split_brain_without_divergence() {
    let mut world = busy();
    world.apart.clear();
    world.judge_split_brain(node(0), node(1));
    assert!(complaint(&world).contains("split brain"));
}

#[test]
fn flushed_writes_that_a_resync_would_overwrite() {
    let mut world = busy();
    let (first, second) = primary(&world);
    let range = ByteRange::new(4096, 512).unwrap();
    let truth = &mut world.truths.get_mut(&VOLUME).unwrap()[0];
    let (stamp, now) = (1 << 40, 1 << 41);
    truth.submit(range, stamp, stamp);
    truth.complete(range, stamp, now, true);
    truth.flushed = 3;
    truth.durable_on = BTreeSet::from([first]);
    world.judge_resync(first, second, VOLUME);
    assert!(complaint(&world).contains("lost silently"));
}

#[test]
fn a_request_that_never_ends() {
    let mut world = busy();
    let (first, _) = primary(&world);
    let range = ByteRange::new(0, 512).unwrap();
    let request = RequestId(u64::MAX);
    let forgotten = sim::node::Pending {
        volume: VOLUME,
        op: BlockOp::Read,
        range,
        payload: None,
        submitted: u64::MAX,
        stamp: 0,
        expect: None,
        since: 0,
    };
    world.node_mut(first).requests.insert(request, forgotten);
    let Complaint { at, text } = world.run().expect_err("a request without end");
    assert!(text.contains("not settled") && at > 1000 * SECOND, "{text}");
}

#[test]
fn a_buffer_that_is_kept_back() {
    let mut world = busy();
    world.node_mut(node(0)).lend(None, 8, 0);
    assert!(world.run().expect_err("a leak").text.contains("has not released"));
}

/// On disks that lie about a flush the promise of durability does not hold, and the judges see it.
#[test]
fn a_disk_that_lies_about_a_flush() {
    let found = (0..40).map(|n| sim::swarm::seed_with(n, 1)).filter(|seed| {
        let mut options = Options::draw(*seed);
        options.lying_disks = true;
        options.duration = 40 * SECOND;
        World::with_options(options, *seed, false).run().is_err()
    });
    assert!(found.take(3).count() == 3, "power losses of disks that lie go unnoticed");
}
