use super::*;
use crate::activity::test_random::Random;

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

#[test]
fn a_waiter_goes_when_what_is_before_it_is_gone() {
    let mut set = RangeSet::new();
    set.insert(1, range(0, 10), RangeKind::Application);
    set.insert(2, range(10, 10), RangeKind::Resync);
    assert_eq!(set.first_conflict(range(9, 2)), Some((1, RangeKind::Application)));
    assert!(!set.insert_or_wait(3, range(5, 10), RangeKind::Peer));
    assert_eq!(set.remove(1, range(0, 10)), []);
    // Free of active ranges, but behind waiter 3.
    assert!(!set.insert_or_wait(4, range(0, 6), RangeKind::Peer));
    assert_eq!(set.remove(2, range(10, 10)), [3]);
    assert_eq!(set.remove(3, range(5, 10)), [4]);
    assert_eq!(set.remove(4, range(0, 6)), []);
    assert!(set.is_empty());
}

#[test]
fn a_waiter_that_gives_up_lets_those_behind_it_go() {
    let mut set = RangeSet::new();
    set.insert(1, range(0, 10), RangeKind::Application);
    set.wait(2, range(0, 20), RangeKind::Application);
    set.wait(3, range(15, 2), RangeKind::Application);
    assert_eq!(set.remove(2, range(0, 20)), [3]);
}

#[test]
fn an_empty_range_conflicts_with_nothing() {
    let mut set = RangeSet::new();
    set.insert(1, range(0, 10), RangeKind::Application);
    set.insert(2, range(5, 0), RangeKind::Application);
    assert!(!set.conflicts(range(5, 0)));
    assert!(set.remove(1, range(0, 10)).is_empty() && set.remove(2, range(5, 0)).is_empty());
}

#[test]
#[should_panic(expected = "would overlap")]
fn inserting_over_an_active_range_is_a_bug() {
    let mut set = RangeSet::new();
    set.insert(1, range(0, 10), RangeKind::Application);
    set.insert(2, range(9, 1), RangeKind::Resync);
}

/// The model: all ranges in order of arrival; one may be active iff no earlier one overlaps it.
fn active(model: &[(RangeId, ByteRange)]) -> Vec<RangeId> {
    let free = |i: usize| model[..i].iter().all(|(_, earlier)| !overlaps(*earlier, model[i].1));
    (0..model.len()).filter(|i| free(*i)).map(|i| model[i].0).collect()
}

#[test]
fn it_does_what_the_model_says() {
    let mut woken = 0;
    for seed in 0..30 {
        let mut random = Random::new(seed);
        let mut set = RangeSet::new();
        let mut model: Vec<(RangeId, ByteRange)> = Vec::new();
        for id in 0..300 {
            let before = active(&model);
            if model.len() < 25 && random.below(2) == 0 {
                let wanted = range(random.below(100), random.below(12));
                let went = set.insert_or_wait(id, wanted, RangeKind::Application);
                model.push((id, wanted));
                assert_eq!(went, active(&model).contains(&id), "seed {seed}");
            } else if !model.is_empty() {
                let (gone, at) = model.remove(random.below(model.len() as u64) as usize);
                let expected: Vec<RangeId> = active(&model).into_iter().filter(|id| !before.contains(id)).collect();
                woken += expected.len();
                assert_eq!(set.remove(gone, at), expected, "seed {seed}");
            }
            let mut ids: Vec<RangeId> = set.active.iter().map(|e| e.id).collect();
            ids.sort_unstable();
            assert_eq!(ids, active(&model), "seed {seed}");
            let asked = range(random.below(100), random.below(12));
            let lowest = set.active.iter().find(|e| overlaps(e.range, asked)).map(|e| e.id);
            assert_eq!(set.active_conflict(asked).map(|e| e.id), lowest, "seed {seed}");
        }
    }
    assert!(woken > 300, "{woken}");
}
