//! `sim --seeds N [--from S]`: many seeds on all cores. `sim --seed S [--trace]`: one, with its story.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use sim::{Outcome, Stats, run_seed, trace_seed};

const USAGE: &str = "usage: sim --seeds N [--from S]
       sim --seed S [--trace]
       sim --planted N [--all] (built with the feature `planted`): each planted bug, in at most N seeds";
/// Failing seeds that are printed before the run stops looking.
const FAILURES_MAX: usize = 200;

#[derive(Default)]
struct Arguments {
    seed: Option<u64>,
    seeds: Option<u64>,
    from: u64,
    trace: bool,
    planted: Option<u64>,
    all: bool,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Some(limit) = arguments.planted {
        return find_planted(limit, arguments.all);
    }
    match (arguments.seed, arguments.seeds) {
        (Some(seed), None) => one(seed, arguments.trace),
        (None, Some(count)) => many(arguments.from, count),
        _ => {
            eprintln!("give either --seed or --seeds\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64, String> {
            let text = words.next().ok_or_else(|| format!("{word} needs a number"))?;
            text.parse().map_err(|_| format!("{word} {text}: not a number"))
        };
        match word.as_str() {
            "--seed" => arguments.seed = Some(number()?),
            "--seeds" => arguments.seeds = Some(number()?),
            "--from" => arguments.from = number()?,
            "--all" => arguments.all = true,
            "--planted" => arguments.planted = Some(number()?),
            "--trace" => arguments.trace = true,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(arguments)
}

#[cfg(feature = "planted")]
fn find_planted(limit: u64, all: bool) -> ExitCode {
    sim::planted::find(limit, all)
}

#[cfg(not(feature = "planted"))]
fn find_planted(_: u64, _: bool) -> ExitCode {
    eprintln!("this program has no bugs planted: build it with `--features planted`");
    ExitCode::from(2)
}

fn one(seed: u64, trace: bool) -> ExitCode {
    let outcome = if trace {
        let (outcome, story) = trace_seed(seed);
        story.iter().for_each(|line| println!("{line}"));
        outcome
    } else {
        run_seed(seed)
    };
    println!("{}", summary(&outcome.stats));
    report(&outcome)
}

fn report(outcome: &Outcome) -> ExitCode {
    match &outcome.result {
        Ok(()) => {
            println!("seed {}: nothing found", outcome.seed);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let seconds = failure.at as f64 / 1e9;
            println!("seed {} at {seconds:.6} s: {}", outcome.seed, failure.text);
            println!("    replay: cargo run --release -p sim -- --seed {} --trace", outcome.seed);
            ExitCode::FAILURE
        }
    }
}

fn many(from: u64, count: u64) -> ExitCode {
    // The findings say it; a backtrace for each would bury them.
    std::panic::set_hook(Box::new(|_| {}));
    let started = Instant::now();
    let next = AtomicU64::new(from);
    let end = from.saturating_add(count);
    let total = Mutex::new((0u64, Stats::default(), Vec::<Outcome>::new()));
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let outcome = run_seed(seed);
                    let mut total = total.lock().expect("no worker panics while it counts");
                    total.0 += 1;
                    add(&mut total.1, &outcome.stats);
                    if outcome.result.is_err() {
                        report(&outcome);
                        total.2.push(outcome);
                    }
                    if total.2.len() >= FAILURES_MAX {
                        next.store(end, Ordering::Relaxed);
                        return;
                    }
                    if total.0.is_multiple_of(200) {
                        println!("{} of {count} seeds, {:.0} s", total.0, started.elapsed().as_secs_f64());
                    }
                }
            });
        }
    });
    let (runs, stats, failures) = total.into_inner().expect("no worker panicked while it counted");
    let open = open_findings();
    let (known, failures): (Vec<Outcome>, Vec<Outcome>) = failures.into_iter().partition(|o| open.contains(&o.seed));
    for outcome in &known {
        println!("KNOWN AND OPEN, not mended yet: seed {} (crates/sim/regressions.txt)", outcome.seed);
    }
    println!("{runs} seeds in {:.1} s, {} with findings", started.elapsed().as_secs_f64(), failures.len());
    println!("{}", summary(&stats));
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Seeds whose finding is written down and not mended: they are shown, and only new ones make a run fail.
fn open_findings() -> Vec<u64> {
    let lines = include_str!("../regressions.txt").lines();
    lines.filter_map(|line| line.split_once(" open ")).filter_map(|(seed, _)| seed.parse().ok()).collect()
}

fn add(total: &mut Stats, one: &Stats) {
    total.events += one.events;
    total.virtual_ns += one.virtual_ns;
    total.requests += one.requests;
    total.crashes += one.crashes;
    total.power_losses += one.power_losses;
    total.clean_stops += one.clean_stops;
    total.cuts += one.cuts;
    total.links += one.links;
    total.promotions += one.promotions;
    total.resyncs += one.resyncs;
    total.split_brains += one.split_brains;
    total.forced_at_end += one.forced_at_end;
    for (command, (done, refused)) in &one.commands {
        let sum = total.commands.entry(command).or_default();
        *sum = (sum.0 + done, sum.1 + refused);
    }
    for (rule, count) in &one.handshakes {
        *total.handshakes.entry(rule.clone()).or_default() += count;
    }
}

fn summary(s: &Stats) -> String {
    let commands: BTreeMap<_, _> = s.commands.iter().collect();
    let mut text = format!(
        "{} events, {:.2} simulated hours, {} requests, {} crashes, {} power losses of all, {} clean stops, {} cuts, \
         {} links, {} promotions, {} resyncs, {} split brains, {} forced at the end",
        s.events,
        s.virtual_ns as f64 / 3.6e12,
        s.requests,
        s.crashes,
        s.power_losses,
        s.clean_stops,
        s.cuts,
        s.links,
        s.promotions,
        s.resyncs,
        s.split_brains,
        s.forced_at_end
    );
    text += "\ncommands (done, refused):";
    for (command, (done, refused)) in commands {
        text += &format!(" {command} {done}/{refused}");
    }
    text += "\nhandshakes:";
    for (rule, count) in &s.handshakes {
        text += &format!("\n    {count:>8}  {rule}");
    }
    text
}
