//! `sim --seeds N [--from S]`: many seeds on all cores. `sim --seed S [--trace]`: one, with its story.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sim::reached::Reached;
use sim::run::open_findings;
use sim::scenario::Scenario;
use sim::shrink::Shrinker;
use sim::steer::Steering;
use sim::swarm::{Given, V84_SEED};
use sim::{Outcome, Stats, run_scenario, run_seed_with, trace_seed};

const USAGE: &str = "usage: sim --seeds N [--from S]       seeds S to S+N-1, each on its own merits
       sim --seconds N [--from S]     as many as fit, drawn towards what was rarely reached
       sim --seed S [--trace]         one seed, with its story
       sim --scenario FILE [--trace]  a run that was written down
       sim --shrink S|FILE [--to FILE] [--runs N]  makes a failing run small
       with --given JSON: these options are not drawn, {\"pass_on\": true}
       with --v84: two nodes that speak the 8.4 dialect (the seed gets bit 62)
       built with the feature `planted`:
       sim --planted N [--bug NAME]  looks for each planted bug, or one, in at most N seeds
       with --bug NAME everything else runs with this bug
With --seeds and --seconds: --save DIR writes each failing run down, --table prints all that was reached";
/// Failing seeds that are printed before the run stops looking.
const FAILURES_MAX: usize = 200;
/// Runs of one shrinking.
const SHRINK_RUNS: u64 = 4000;

#[derive(Default)]
struct Arguments {
    seed: Option<u64>,
    seeds: Option<u64>,
    seconds: Option<u64>,
    scenario: Option<PathBuf>,
    shrink: Option<String>,
    from: u64,
    trace: bool,
    table: bool,
    save: Option<PathBuf>,
    to: Option<PathBuf>,
    runs: Option<u64>,
    planted: Option<u64>,
    bug: Option<String>,
    v84: bool,
    given: Given,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let (Some(name), None) = (&arguments.bug, arguments.planted)
        && let Err(error) = plant(name)
    {
        eprintln!("{error}\n{USAGE}");
        return ExitCode::from(2);
    }
    let result = match &arguments {
        Arguments { planted: Some(limit), .. } => find_planted(*limit, arguments.bug.as_deref()),
        Arguments { seed: Some(seed), .. } => Ok(one(*seed, &arguments)),
        Arguments { scenario: Some(file), .. } => replay(file, arguments.trace),
        Arguments { shrink: Some(what), .. } => shrink(what, &arguments),
        Arguments { seeds: Some(_), .. } | Arguments { seconds: Some(_), .. } => Ok(many(&arguments)),
        _ => Err("say what to run".into()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error}\n{USAGE}");
        ExitCode::from(2)
    })
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        let mut text = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{word} {text}: not a number"));
        match word.as_str() {
            "--seed" => arguments.seed = Some(number(text()?)?),
            "--seeds" => arguments.seeds = Some(number(text()?)?),
            "--seconds" => arguments.seconds = Some(number(text()?)?),
            "--from" => arguments.from = number(text()?)?,
            "--runs" => arguments.runs = Some(number(text()?)?),
            "--planted" => arguments.planted = Some(number(text()?)?),
            "--scenario" => arguments.scenario = Some(text()?.into()),
            "--shrink" => arguments.shrink = Some(text()?),
            "--save" => arguments.save = Some(text()?.into()),
            "--given" => arguments.given = Given::parse(&text()?)?,
            "--to" => arguments.to = Some(text()?.into()),
            "--bug" => arguments.bug = Some(text()?),
            "--v84" => arguments.v84 = true,
            "--table" => arguments.table = true,
            "--trace" => arguments.trace = true,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    if arguments.v84 {
        arguments.from |= V84_SEED;
        arguments.seed = arguments.seed.map(|seed| seed | V84_SEED);
    }
    Ok(arguments)
}

#[cfg(feature = "planted")]
fn find_planted(limit: u64, bug: Option<&str>) -> Result<ExitCode, String> {
    match bug {
        Some(name) => sim::planted::find_one(name, limit),
        None => Ok(sim::planted::find(limit)),
    }
}

#[cfg(feature = "planted")]
fn plant(bug: &str) -> Result<(), String> {
    sim::planted::plant_one(bug)
}

#[cfg(not(feature = "planted"))]
const NONE_PLANTED: &str = "this program has no bugs planted: build it with `--features planted`";

#[cfg(not(feature = "planted"))]
fn find_planted(_: u64, _: Option<&str>) -> Result<ExitCode, String> {
    Err(NONE_PLANTED.into())
}

#[cfg(not(feature = "planted"))]
fn plant(_: &str) -> Result<(), String> {
    Err(NONE_PLANTED.into())
}

// ---------------------------------------------------------------------------------------------- one run

fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    let outcome = match arguments.trace {
        true => tell(trace_seed(seed, &arguments.given)),
        false => run_seed_with(seed, &arguments.given),
    };
    println!("{}", summary(&outcome.stats));
    report(&outcome)
}

fn replay(file: &Path, trace: bool) -> Result<ExitCode, String> {
    let outcome = tell(run_scenario(&read(file)?, trace));
    println!("{}", summary(&outcome.stats));
    Ok(report(&outcome))
}

fn tell((outcome, story): (Outcome, Vec<String>)) -> Outcome {
    story.iter().for_each(|line| println!("{line}"));
    outcome
}

fn read(file: &Path) -> Result<Scenario, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    Scenario::parse(&text).map_err(|e| format!("{}: {e}", file.display()))
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

fn shrink(what: &str, arguments: &Arguments) -> Result<ExitCode, String> {
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = match what.parse::<u64>() {
        Ok(seed) => run_seed_with(seed, &arguments.given),
        Err(_) => run_scenario(&read(Path::new(what))?, false).0,
    };
    let (Err(failure), Some(scenario)) = (&outcome.result, outcome.scenario) else {
        return Err(format!("{what} does not fail"));
    };
    let before = scenario.acts.len();
    let budget = arguments.runs.unwrap_or(SHRINK_RUNS) as u32;
    let shrinker = Shrinker::new(scenario, failure, budget)
        .ok_or_else(|| format!("{what}: its actions alone do not fail in the same way"))?;
    let small = shrinker.shrink();
    let text = small.to_text();
    match &arguments.to {
        Some(file) => std::fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))?,
        None => print!("{text}"),
    }
    eprintln!("{} of {before} actions are left: {}", small.acts.len(), small.found);
    Ok(ExitCode::SUCCESS)
}

// ---------------------------------------------------------------------------------------------- many runs

#[derive(Default)]
struct Total {
    runs: u64,
    stats: Stats,
    reached: Reached,
    failures: Vec<Outcome>,
}

fn many(arguments: &Arguments) -> ExitCode {
    // The findings say it; a backtrace for each would bury them.
    std::panic::set_hook(Box::new(|_| {}));
    let started = Instant::now();
    let deadline = arguments.seconds.map(|seconds| started + Duration::from_secs(seconds));
    let next = AtomicU64::new(arguments.from);
    let end = arguments.seeds.map_or(u64::MAX, |count| arguments.from.saturating_add(count));
    let total = Mutex::new(Total::default());
    let steering = Mutex::new(Steering::default());
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= end || deadline.is_some_and(|deadline| Instant::now() > deadline) {
                return;
            }
            // Steered only where it was not said which seeds to run.
            let seed = match deadline {
                Some(_) => steering.lock().expect("no worker panics while it steers").choose(number),
                None => number,
            };
            let outcome = run_seed_with(seed, &arguments.given);
            steering.lock().expect("no worker panics while it steers").learn(seed, &outcome.reached);
            let mut total = total.lock().expect("no worker panics while it counts");
            total.runs += 1;
            add(&mut total.stats, &outcome.stats);
            total.reached.add(&outcome.reached);
            if outcome.result.is_err() {
                report(&outcome);
                save(&outcome, arguments.save.as_deref());
                total.failures.push(outcome);
            }
            if total.failures.len() >= FAILURES_MAX {
                next.store(end, Ordering::Relaxed);
                return;
            }
            if total.runs.is_multiple_of(500) {
                println!("{} runs, {:.0} s", total.runs, started.elapsed().as_secs_f64());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    let total = total.into_inner().expect("no worker panicked while it counted");
    let seconds = started.elapsed().as_secs_f64();
    let open = open_findings();
    let (known, failures): (Vec<Outcome>, Vec<Outcome>) =
        total.failures.into_iter().partition(|o| open.contains(&o.seed));
    for outcome in &known {
        println!("KNOWN AND OPEN, not mended yet: seed {} (crates/sim/regressions.txt)", outcome.seed);
    }
    println!("{} runs in {seconds:.1} s, {} with findings", total.runs, failures.len());
    println!("{}", summary(&total.stats));
    let virtual_seconds = total.stats.virtual_ns as f64 / 1e9;
    println!(
        "{:.0} simulated seconds and {:.0} events per second",
        virtual_seconds / seconds,
        total.stats.events as f64 / seconds
    );
    print!("{}", if arguments.table { total.reached.table() } else { total.reached.missing() });
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn save(outcome: &Outcome, directory: Option<&Path>) {
    let (Some(directory), Some(scenario)) = (directory, &outcome.scenario) else { return };
    let file = directory.join(format!("{}.json", outcome.seed));
    if let Err(error) = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&file, scenario.to_text())) {
        eprintln!("{}: {error}", file.display());
    }
}

fn add(total: &mut Stats, one: &Stats) {
    total.events += one.events;
    total.virtual_ns += one.virtual_ns;
    total.requests += one.requests;
    total.crashes += one.crashes;
    total.power_losses += one.power_losses;
    total.clean_stops += one.clean_stops;
    total.cuts += one.cuts;
    total.stalls += one.stalls;
    total.faults += one.faults;
    total.exchanges += one.exchanges;
    total.reissued += one.reissued;
    total.inspections += one.inspections;
    total.quiet_pairs += one.quiet_pairs;
    total.links += one.links;
    total.promotions += one.promotions;
    total.resyncs += one.resyncs;
    total.split_brains += one.split_brains;
    total.forced_at_end += one.forced_at_end;
    for (command, (done, refused)) in &one.commands {
        let sum = total.commands.entry(command).or_default();
        *sum = (sum.0 + done, sum.1 + refused);
    }
}

fn summary(s: &Stats) -> String {
    let mut text = format!(
        "{} events, {:.2} simulated hours, {} requests ({} issued again), {} crashes, {} power losses of all, {} clean \
         stops, {} cuts, {} stalls and frozen nodes, {} disk faults, {} disks exchanged, {} links, {} promotions, {} \
         resyncs, {} split brains, {} inspections ({} quiet pairs), {} forced at the end",
        s.events,
        s.virtual_ns as f64 / 3.6e12,
        s.requests,
        s.reissued,
        s.crashes,
        s.power_losses,
        s.clean_stops,
        s.cuts,
        s.stalls,
        s.faults,
        s.exchanges,
        s.links,
        s.promotions,
        s.resyncs,
        s.split_brains,
        s.inspections,
        s.quiet_pairs,
        s.forced_at_end
    );
    text += "\ncommands (done/refused):";
    for (command, (done, refused)) in &s.commands {
        text += &format!(" {command} {done}/{refused}");
    }
    text
}
