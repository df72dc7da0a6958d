//! One seed, one trace; and the seeds that once found something.

use sim::scenario::Scenario;
use sim::{run_scenario, run_seed, trace_seed};

/// Where the virtual cluster's story differs between two runs of one seed.
#[test]
fn the_same_seed_gives_the_same_trace_to_the_byte() {
    for seed in [3, 4, 9, 12] {
        let (first, story) = trace_seed(seed);
        let (second, again) = trace_seed(seed);
        assert!(story.len() > 100, "seed {seed} tells nothing");
        let differs = story.iter().zip(&again).position(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed} differs at this line");
        assert_eq!((story.len(), first.result), (again.len(), second.result));
        // Telling the story must not change it.
        let silent = run_seed(seed);
        assert_eq!(silent.stats.events, first.stats.events, "seed {seed}");
    }
}

/// Runs that found something, made small: these mean the same however the simulator draws.
#[test]
fn scenarios_that_found_something_find_it_no_more() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let scenario = Scenario::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let (outcome, _) = run_scenario(&scenario, false);
        assert_eq!(outcome.result, Ok(()), "{}, which had found: {}", file.display(), scenario.found);
    }
}

struct Regression {
    seed: u64,
    open: bool,
    text: &'static str,
}

/// Lines `SEED open|fixed WHAT IT FOUND`.
fn regressions() -> Vec<Regression> {
    let lines = include_str!("../regressions.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let seed = words.next().and_then(|w| w.parse().ok()).expect("a line begins with a seed");
            let open = match words.next() {
                Some("open") => true,
                Some("fixed") => false,
                other => panic!("seed {seed}: {other:?} is neither open nor fixed"),
            };
            Regression { seed, open, text: words.next().expect("a line says what the seed found") }
        })
        .collect()
}

#[test]
fn seeds_that_found_something_find_it_no_more() {
    let again: Vec<String> = regressions()
        .into_iter()
        .filter(|r| !r.open)
        .filter_map(|r| {
            let failure = run_seed(r.seed).result.err()?;
            Some(format!("seed {} ({}): {}", r.seed, r.text, failure.text))
        })
        .collect();
    assert!(again.is_empty(), "{}", again.join("\n"));
}
