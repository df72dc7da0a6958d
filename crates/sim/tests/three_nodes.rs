//! Three nodes: everybody gets everything, and everybody says so of everybody. Links may break; crashes of three nodes
//! are not mastered yet (docs/testing.md).

use sim::rng::Rng;
use sim::swarm::{MS, Options, SECOND, Start};
use sim::world::World;

const RUNS: u64 = 16;

fn three(seed: u64, start: Start) -> Options {
    let mut rng = Rng::new(seed);
    let mut options = Options::calm();
    options.nodes = 3;
    options.start = start;
    options.latency = rng.pick(&[50_000, MS, 20 * MS]);
    options.jitter = rng.pick(&[0, 5 * MS]);
    options.duration = 20 * SECOND;
    options
}

#[test]
fn the_initial_sync_reaches_all_and_ends() {
    for seed in 0..RUNS {
        let mut world = World::with_options(three(seed, Start::Fresh), seed, false);
        assert_eq!(world.run(), Ok(()), "seed {seed}");
        assert!(world.settled);
    }
}

#[test]
fn links_that_break_leave_nothing_behind() {
    for seed in 0..RUNS {
        let mut options = three(seed, Start::InSync);
        options.cut_every = Some(3 * SECOND);
        options.down_time = 500 * MS;
        let mut world = World::with_options(options, seed, false);
        assert_eq!(world.run(), Ok(()), "seed {seed}");
        assert!(world.settled);
    }
}
