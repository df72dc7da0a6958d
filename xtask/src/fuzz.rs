//! `xtask fuzz`: readers of foreign bytes (`crates/fuzz`) under libFuzzer, guided by coverage. Built by the stable compiler
//! with its coverage switches: the readers are safe Rust, so a panic, an overflow or a hang is all there is to find.

use crate::{packages, workspace};
use ::fuzz::{TARGETS, Target};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// For each target
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only this one
    #[arg(long, value_parser = target_names())]
    target: Option<String>,
}

/// For its build and for what hangs in spite of libFuzzer's own limit.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// Longer ones find no more, and slower.
const INPUT_BYTES_MAX: usize = 40_000;
/// Inputs of a target in `xtask test`; five seconds of the slowest.
const RUNS: u64 = 20_000;
/// One input that takes longer is a finding. Far above what any takes on a busy machine.
const INPUT_SECONDS_MAX: u64 = 60;
/// What libFuzzer looks at, as it is usually set. The names are those of LLVM's options.
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

fn target_names() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(TARGETS.iter().map(|target| target.name))
}

pub fn main(args: Args) -> Result<()> {
    let logs = workspace::target().join("xtask-logs");
    let program = build(&logs.join("fuzz-build.log"))?;
    let wanted = |target: &&Target| args.target.as_ref().is_none_or(|name| name == target.name);
    for target in TARGETS.iter().filter(wanted) {
        println!("{}: {}", target.name, hunt(&program, target, Length::Seconds(args.seconds), &logs)?);
    }
    Ok(())
}

/// How long a hunt is.
#[derive(Clone, Copy)]
enum Length {
    /// On from what earlier ones kept.
    Seconds(u64),
    /// From nothing but the seeds: the same inputs for everybody.
    Runs { count: u64, seed: u32 },
}

/// All targets, for `xtask test`: a number of inputs that belong to the commit, as the simulator's fresh seeds do.
pub fn all(log: &Path, commit: u64) -> Result<String> {
    let program = build(log)?;
    let seed = (commit as u32).max(1);
    for target in TARGETS {
        hunt(&program, target, Length::Runs { count: RUNS, seed }, log.parent().context("a log lies in a folder")?)?;
    }
    Ok(format!(", {} targets, {RUNS} inputs each from seed {seed}", TARGETS.len()))
}

/// Of its own directory and target: the switches would have everything else built anew.
fn build(log: &Path) -> Result<PathBuf> {
    packages::ensure(packages::FUZZ)?;
    let directory = workspace::target().join("fuzz");
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--release", "--quiet", "-p", "fuzz", "--features", "libfuzzer", "--target", &triple]);
    cargo.arg("--target-dir").arg(&directory);
    cargo.env("RUSTFLAGS", COVERAGE.join(" ")).env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
    workspace::run_logged(&mut cargo, log, LIMIT)?;
    Ok(directory.join(triple).join("release/fuzz"))
}

/// What it did. What it finds is an error that says how to keep it.
fn hunt(program: &Path, target: &Target, length: Length, logs: &Path) -> Result<String> {
    let name = target.name;
    let directory = workspace::target().join("fuzz-corpus").join(name);
    let kept = if let Length::Seconds(_) = length { "corpus" } else { "corpus-of-commit" };
    let [corpus, seeds, found] = [kept, "seeds", "found"].map(|part| directory.join(part));
    if let Length::Runs { .. } = length
        && corpus.exists()
    {
        fs::remove_dir_all(&corpus)?;
    }
    for part in [&corpus, &seeds, &found] {
        fs::create_dir_all(part).with_context(|| format!("cannot create {}", part.display()))?;
    }
    for (number, seed) in (target.seeds)().iter().enumerate() {
        fs::write(seeds.join(number.to_string()), seed)?;
    }
    let log = logs.join(format!("fuzz-{name}.log"));
    // Without random addresses: libFuzzer looks at those of comparisons, so that they would choose the inputs too.
    let mut run = Command::new("setarch");
    run.arg("-R").arg(program).env("FUZZ_TARGET", name);
    let seconds = match length {
        Length::Seconds(seconds) => {
            run.arg(format!("-max_total_time={seconds}"));
            seconds
        }
        Length::Runs { count, seed } => {
            run.args([format!("-runs={count}"), format!("-seed={seed}"), "-reload=0".to_owned()]);
            0
        }
    };
    run.arg(format!("-max_len={INPUT_BYTES_MAX}"));
    run.arg(format!("-timeout={INPUT_SECONDS_MAX}")).arg(format!("-artifact_prefix={}/", found.display()));
    run.args([&corpus, &seeds]);
    let limit = LIMIT + Duration::from_secs(seconds);
    workspace::run_logged(&mut run, &log, limit).with_context(|| {
        format!(
            "{name}: an input breaks it. It lies in {}; keep it in crates/fuzz/findings/{name}/, which makes it a test{}",
            found.display(),
            complaint(&log)
        )
    })?;
    summary(&log)
}

/// What the panic said, and the input where libFuzzer prints it: all that is left of a run on another machine.
fn complaint(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let panic = text.lines().skip_while(|line| !line.contains("panicked at")).take(3);
    let input = text.lines().filter(|line| line.starts_with("Base64: "));
    panic.chain(input).map(|line| format!("\n{line}")).collect()
}

/// libFuzzer's last words: how many inputs, and how much of the code they reached.
fn summary(log: &Path) -> Result<String> {
    let text = fs::read(log)?;
    let text = String::from_utf8_lossy(&text);
    let done = text.lines().rfind(|line| line.starts_with("Done ")).unwrap_or_default();
    let covered = text.lines().rev().find_map(|line| line.split_once("cov: ")?.1.split(' ').next());
    ensure!(!done.is_empty(), "libFuzzer did not come to its end: {}", log.display());
    match covered.and_then(|covered| covered.parse::<u64>().ok()) {
        None | Some(0) => bail!("no coverage is measured, so nothing guides the search: {}", log.display()),
        Some(covered) => Ok(format!("{}, {covered} places reached", done.trim_start_matches("Done "))),
    }
}
