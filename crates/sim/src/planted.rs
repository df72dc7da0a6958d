//! Does the simulator find what it is for? Each planted bug in turn, seeds from 0 on until one finds it.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use engine::planted::{ALL, Bug, met, plant};

use crate::run::{Outcome, open_findings, run_scenario, run_seed};
use crate::scenario::Scenario;
use crate::swarm::{LEANINGS, Leaning, seed_with};

/// What no walk of a bearable length meets: the scenario that taught us the rule finds it again.
const BY_SCENARIO: [(Bug, &str); 2] = [
    (Bug::BitsOfCrashDropped, include_str!("../scenarios/bits_of_two_inconsistent_disks_dropped.json")),
    (Bug::CsumNotFlushed, include_str!("../scenarios/equal_by_checksum_and_only_in_the_cache.json")),
];
/// What shows where a run leans to something: walks for it lean there.
const BY_LEANING: [(Bug, Leaning); 1] = [(Bug::ReceiptForgotten, Leaning::FailOver)];

/// For the whole process.
pub fn plant_one(name: &str) -> Result<(), String> {
    plant(Some(by_name(name)?));
    Ok(())
}

fn by_name(name: &str) -> Result<Bug, String> {
    let named = |bug: &Bug| format!("{bug:?}") == name;
    ALL.into_iter().find(named).ok_or_else(|| format!("no planted bug is called {name}: {ALL:?}"))
}

/// Looks for the one bug of this name.
pub fn find_one(name: &str, limit: u64) -> Result<ExitCode, String> {
    let bug = by_name(name)?;
    std::panic::set_hook(Box::new(|_| {}));
    Ok(if is_found(bug, limit) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks for every bug, in at most `limit` seeds each. Fails if one stays hidden.
pub fn find(limit: u64) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let missed: Vec<Bug> = ALL.into_iter().filter(|bug| !is_found(*bug, limit)).collect();
    plant(None);
    println!("{} of {} planted bugs found", ALL.len() - missed.len(), ALL.len());
    if missed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("NOT FOUND in {limit} seeds: {missed:?}");
    ExitCode::FAILURE
}

fn is_found(bug: Bug, limit: u64) -> bool {
    plant(Some(bug));
    match BY_SCENARIO.iter().find(|(known, _)| *known == bug) {
        Some((_, text)) => shows_in(bug, text),
        None => shows_in_walks(bug, limit),
    }
}

fn shows_in(bug: Bug, scenario: &str) -> bool {
    let scenario = Scenario::parse(scenario).expect("the scenarios are tests of their own");
    let (Outcome { result, .. }, _) = run_scenario(&scenario, false);
    match &result {
        Ok(()) => println!("{bug:?}: NOT FOUND by its scenario"),
        Err(failure) => println!("{bug:?}: by scenario: {}", brief(&failure.text)),
    }
    result.is_err()
}

fn brief(text: &str) -> String {
    text.chars().take(150).collect()
}

fn shows_in_walks(bug: Bug, limit: u64) -> bool {
    let leaning = BY_LEANING.iter().find(|(known, _)| *known == bug).map(|(_, leaning)| *leaning);
    let leaning = leaning.and_then(|leaning| LEANINGS.iter().position(|l| *l == leaning));
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let open = open_findings();
    let found = Mutex::new(None::<(u64, String)>);
    let near = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                while found.lock().expect("nobody panics with it").is_none() {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= limit {
                        return;
                    }
                    let seed = leaning.map_or(number, |leaning| seed_with(number, leaning));
                    // These find something without the bug too.
                    if open.contains(&seed) {
                        continue;
                    }
                    let before = met();
                    let result = run_seed(seed).result;
                    if met() > before {
                        near.lock().expect("nobody panics with it").push(seed);
                    }
                    if let Err(failure) = result {
                        found.lock().expect("nobody panics with it").get_or_insert((seed, failure.text));
                    }
                }
            });
        }
    });
    let seconds = started.elapsed().as_secs_f32();
    let found = found.into_inner().expect("nobody panicked with it");
    match &found {
        Some((seed, text)) => {
            println!("{bug:?}: seed {seed}, {seconds:.1} s: {}", brief(text))
        }
        None => {
            // Some of these seeds only ran beside one where it did.
            let near = near.into_inner().expect("nobody panicked with it");
            println!("{bug:?}: NOT FOUND, made a difference {} times, seeds {near:?}, {seconds:.1} s", met());
        }
    }
    found.is_some()
}
