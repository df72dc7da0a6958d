use alloc::collections::BTreeSet;

use super::*;
use test_random::Random;

fn extents(list: &[u32]) -> Vec<ExtentIndex> {
    list.iter().map(|e| ExtentIndex(*e)).collect()
}

fn range(first: u32, count: u32) -> impl Iterator<Item = ExtentIndex> {
    (first..first + count).map(ExtentIndex)
}

#[test]
fn a_miss_becomes_hot_with_its_transaction() {
    let mut log = ActivityLog::new(67, 8, 7);
    assert_eq!(log.hold(extents(&[5, 6])), Hold::Pending(1));
    let t = log.start_transaction().unwrap();
    assert_eq!((t.number, t.context_first, t.context.len()), (7, 0, 67));
    assert!(t.context.iter().all(Option::is_none));
    assert_eq!(t.updates, [(0, ExtentIndex(5)), (1, ExtentIndex(6))]);
    assert!(t.evicted.is_empty() && !log.is_hot(ExtentIndex(5)));
    // On its way: the same ticket for what it covers, the next one for what it does not.
    assert_eq!(log.hold(extents(&[6])), Hold::Pending(1));
    assert_eq!(log.hold(extents(&[6, 9])), Hold::Pending(2));
    assert_eq!(log.start_transaction(), None);
    assert_eq!(log.transaction_written(), 1);
    assert_eq!(log.hold(extents(&[5, 6])), Hold::Hot);
    let t = log.start_transaction().unwrap();
    assert_eq!((t.number, &t.context[..3]), (8, &[Some(ExtentIndex(5)), Some(ExtentIndex(6)), None][..]));
    assert_eq!(log.transaction_written(), 2);
    assert_eq!(log.hot_extents().collect::<Vec<_>>(), extents(&[5, 6, 9]));
}

#[test]
fn more_misses_than_a_block_holds_take_several_transactions() {
    let mut log = ActivityLog::new(200, 8, 0);
    assert_eq!(log.hold(range(0, 65)), Hold::Pending(2));
    assert_eq!(log.hold(range(0, 64)), Hold::Pending(1));
    assert_eq!(log.start_transaction().unwrap().updates.len(), 64);
    assert_eq!(log.transaction_written(), 1);
    assert!(log.is_hot(ExtentIndex(63)) && !log.is_hot(ExtentIndex(64)));
    assert_eq!(log.start_transaction().unwrap().updates.len(), 1);
}

#[test]
fn the_least_recently_used_goes_first_and_references_stay() {
    let mut log = ActivityLog::new(3, 2, 0);
    for extent in 0..3 {
        log.hold(range(extent, 1));
    }
    log.start_transaction().unwrap();
    log.transaction_written();
    assert_eq!(log.hold(range(9, 1)), Hold::Full);
    assert!(log.wants_slots());
    assert!(log.release(range(1, 1)));
    log.release(range(0, 1));
    // 1 is older than 0, but a hold that wants it itself does not push it out.
    assert_eq!(log.hold(extents(&[1, 9])), Hold::Pending(2));
    assert!(!log.wants_slots());
    let t = log.start_transaction().unwrap();
    assert_eq!((t.updates, t.evicted), (vec![(0, ExtentIndex(9))], extents(&[0])));
    assert_eq!(log.hold(range(20, 2)), Hold::Full);
    assert_eq!(log.hold(range(0, 100)), Hold::Full);
}

#[test]
#[should_panic(expected = "no references")]
fn one_release_too_many_is_a_bug() {
    let mut log = ActivityLog::new(3, 2, 0);
    log.hold(range(0, 1));
    log.release(range(0, 1));
    log.release(range(0, 1));
}

#[test]
#[should_panic(expected = "slots in a ring")]
fn more_slots_than_the_ring_repeats_are_refused() {
    ActivityLog::new(920, 2, 0);
}

/// The ring as it would be on disk, replayed by the rules of the format.
struct Ring(Vec<Option<Transaction>>);

impl Ring {
    fn position(&self, transaction: &Transaction) -> usize {
        transaction.number as usize % self.0.len()
    }

    fn replay(&self) -> BTreeSet<u32> {
        let mut blocks: Vec<&Transaction> = self.0.iter().flatten().collect();
        let Some(origin) = blocks.first().map(|t| t.number) else { return BTreeSet::new() };
        blocks.sort_by_key(|t| t.number.wrapping_sub(origin) as i32);
        let mut table = vec![None; usize::from(u16::MAX)];
        for block in blocks {
            for (i, extent) in block.context.iter().enumerate() {
                table[usize::from(block.context_first) + i] = *extent;
            }
            for (slot, extent) in &block.updates {
                table[usize::from(*slot)] = Some(*extent);
            }
        }
        table.into_iter().flatten().map(|e| e.0).collect()
    }
}

/// At any moment, also with the newest block torn, what is referenced and covered is found in the ring.
fn covered_extents_survive(slots: u16, blocks: u32, first: u32, universe: u64, steps: u32, seed: u64) {
    let mut random = Random::new(seed);
    let mut log = ActivityLog::new(slots, blocks, first);
    let mut ring = Ring(vec![None; blocks as usize]);
    let mut held: Vec<(u64, Vec<ExtentIndex>)> = Vec::new();
    let (mut covered, mut written, mut evictions, mut fulls) = (0, 0, 0, 0);
    let mut on_its_way: Option<Transaction> = None;
    let check = |ring: &Ring, held: &[(u64, Vec<ExtentIndex>)], covered: u64| {
        let found = ring.replay();
        for (_, extents) in held.iter().filter(|(ticket, _)| *ticket <= covered) {
            assert!(extents.iter().all(|e| found.contains(&e.0)), "{extents:?} not in the ring, seed {seed}");
        }
    };
    for _ in 0..steps {
        match random.below(8) {
            0..=3 => {
                let (start, count) = (random.below(universe) as u32, 1 + random.below(40) as u32);
                match log.hold(range(start, count)) {
                    Hold::Hot => held.push((0, range(start, count).collect())),
                    Hold::Pending(ticket) => held.push((ticket, range(start, count).collect())),
                    Hold::Full => fulls += 1,
                }
            }
            4..=5 if !held.is_empty() => {
                let at = random.below(held.len() as u64) as usize;
                let (_, extents) = held.swap_remove(at);
                log.release(extents);
            }
            6 => {
                if let Some(t) = log.start_transaction() {
                    evictions += t.evicted.len();
                    // Torn: its place in the ring holds nothing valid.
                    let at = ring.position(&t);
                    ring.0[at] = None;
                    on_its_way = Some(t);
                    check(&ring, &held, covered);
                }
            }
            _ => {
                if let Some(t) = on_its_way.take() {
                    let at = ring.position(&t);
                    ring.0[at] = Some(t);
                    covered = log.transaction_written();
                    written += 1;
                    check(&ring, &held, covered);
                    let found = ring.replay();
                    assert!(log.hot_extents().all(|e| found.contains(&e.0)));
                }
            }
        }
    }
    assert!(written > blocks * 3 && evictions > 100, "{written} transactions, {evictions} evictions");
    assert!(fulls > 0 || slots > 100);
    for (_, extents) in held.drain(..) {
        log.release(extents);
    }
    while on_its_way.is_some() || log.start_transaction().is_some() {
        on_its_way = None;
        log.transaction_written();
    }
    log.forget_all();
    assert_eq!(log.hot_extents().count(), 0);
    assert_eq!(log.hold(range(0, u32::from(slots))), Hold::Pending(log.next_ticket + u64::from(slots - 1) / 64));
}

#[test]
fn covered_extents_are_in_every_ring_small() {
    for seed in 1..5 {
        covered_extents_survive(67, 2, u32::MAX - 5, 300, 2000, seed);
    }
}

#[test]
fn covered_extents_are_in_every_ring_with_several_windows() {
    for seed in 1..3 {
        covered_extents_survive(2757, 4, u32::MAX - 20, 9000, 2500, seed);
    }
}
