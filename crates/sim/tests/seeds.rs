//! One seed, one trace; and the seeds that once found something.

use sim::run::Failure;
use sim::scenario::Scenario;
use sim::{run_scenario, run_seed, trace_seed};

/// Where the virtual cluster's story differs between two runs of one seed.
#[test]
fn the_same_seed_gives_the_same_trace_to_the_byte() {
    for seed in [3, 4, 9, 12] {
        let (first, story) = trace_seed(seed, &Default::default());
        let (second, again) = trace_seed(seed, &Default::default());
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
    let files = scenarios(&directory);
    assert!(!files.is_empty());
    for (file, scenario) in files {
        let (outcome, _) = run_scenario(&scenario, false);
        assert_eq!(outcome.result, Ok(()), "{}, which had found: {}", file.display(), scenario.found);
    }
}

/// Found, kept, not mended yet: shown in every run. One that is found no more, or turns into something else, is told.
#[test]
fn scenarios_that_are_open() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/open");
    for (file, scenario) in scenarios(&directory) {
        let (outcome, _) = run_scenario(&scenario, false);
        let name = file.file_stem().unwrap_or_default().display();
        let failure = outcome.result.expect_err(&format!("{name} is found no more: move it up"));
        let known = Failure { at: 0, text: scenario.found.clone() };
        assert_eq!(failure.kind(), known.kind(), "{name} is another finding now: {}", failure.text);
        println!("KNOWN AND OPEN: {name}: {}", failure.text.chars().take(100).collect::<String>());
    }
}

fn scenarios(directory: &std::path::Path) -> Vec<(std::path::PathBuf, Scenario)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    files.sort();
    let read = |file: std::path::PathBuf| {
        let scenario = Scenario::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
        (file, scenario)
    };
    files.into_iter().map(read).collect()
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
