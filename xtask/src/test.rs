//! `xtask test`: everything that has to be right, in layers, the quick ones first. A layer that fails does not stop
//! the others; the end lists what failed with its log, and what was not tested with the reason.

use crate::{fuzz, packages, workspace};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    /// The inner loop: format, clippy, unit tests, 50 seeds
    #[arg(long)]
    fast: bool,
    /// Leave out the virtual machines
    #[arg(long)]
    skip_vm: bool,
    /// How long the simulator runs seeds that no run had before, seconds
    #[arg(long, default_value_t = 300)]
    sim_seconds: u64,
    /// Seeds that every run does, from 0 on
    #[arg(long, default_value_t = 1500)]
    sim_seeds: u64,
}

/// Far above what a layer takes on two cores: only what hangs gets there.
const LIMIT: Duration = Duration::from_secs(25 * 60);
/// Fresh seeds of one call of the simulator.
const SEEDS_AT_ONCE: u64 = 100;
/// How the simulator begins the line of a seed that `regressions.txt` lists as open.
const OPEN_SEED: &str = "KNOWN AND OPEN";
const SEEDS_FAST: u64 = 50;
/// In so many seeds the simulator has to find each planted bug.
const PLANTED_SEEDS: u64 = 600;

struct Run {
    logs: PathBuf,
    /// Tests write here what they skip; see `tests/src/tools.rs`.
    skips: PathBuf,
    failed: Vec<String>,
    skipped: Vec<String>,
}

pub fn main(args: Args) -> Result<()> {
    let start = Instant::now();
    install(&args)?;
    let logs = workspace::target().join("xtask-logs");
    let mut run = Run { skips: logs.join("skipped"), logs, failed: Vec::new(), skipped: Vec::new() };
    fs::create_dir_all(&run.logs)?;
    let _ = fs::remove_file(&run.skips);

    run.cargo("format", &["fmt", "--all", "--check"]);
    run.cargo("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    run.cargo(
        "unit tests",
        &["test", "--workspace", "--exclude", "e2e", "--exclude", "sim", "--no-fail-fast", "--", "--show-output"],
    );
    let (seconds, seeds) = if args.fast { (0, SEEDS_FAST) } else { (args.sim_seconds, args.sim_seeds) };
    run.layer("simulator", |log| simulate(log, Duration::from_secs(seconds), seeds));
    if !args.fast {
        run.layer("planted bugs", find_planted);
        // What was found before is among the unit tests.
        run.layer("fuzz", |log| fuzz::all(log, seeds_of_commit()?));
    }
    if args.fast {
        run.skip("end-to-end tests and virtual machines: --fast");
    } else {
        run.end_to_end();
        run.virtual_machines(args.skip_vm);
    }
    run.summary(start.elapsed())
}

fn install(args: &Args) -> Result<()> {
    packages::ensure_rust_components()?;
    packages::ensure_libclang()?;
    if args.fast {
        return Ok(());
    }
    packages::ensure(packages::END_TO_END)
}

impl Run {
    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{}.log", name.replace(' ', "-")))
    }

    fn layer(&mut self, name: &str, work: impl FnOnce(&Path) -> Result<String>) {
        println!("== {name}");
        let (start, log) = (Instant::now(), self.log(name));
        let result = work(&log);
        let seconds = start.elapsed().as_secs_f32();
        match result {
            Ok(detail) => println!("   ok, {seconds:.0} s{detail}"),
            Err(error) => {
                println!("   FAILED, {seconds:.0} s: {error:#}\n   all of it: {}", log.display());
                self.failed.push(format!("{name}: {}", log.display()));
                self.failed.extend(failed_tests(&log).into_iter().map(|test| format!("{name}: {test}")));
            }
        }
        self.collect_skips(name, &log);
    }

    fn cargo(&mut self, name: &str, arguments: &[&str]) {
        let skips = self.skips.clone();
        self.layer(name, |log| {
            let mut cargo = workspace::cargo();
            cargo.args(arguments).env("REPLICAD_TEST_SKIPS", skips);
            workspace::run_logged(&mut cargo, log, LIMIT)?;
            Ok(counted(log))
        });
    }

    fn end_to_end(&mut self) {
        let name = "end-to-end tests";
        let skips = self.skips.clone();
        self.layer(name, |log| {
            // The daemons under test, the demo, and nothing else. Built by the layers before, for the most part.
            let build = ["build", "--quiet", "-p", "replicad", "-p", "ctl", "-p", "xtask"];
            workspace::run_logged(workspace::cargo().args(build), log, LIMIT)?;
            let mut cargo = workspace::cargo();
            cargo.args(["test", "-p", "e2e", "--no-fail-fast", "--", "--test-threads=4"]);
            cargo.env("REPLICAD_TEST_SKIPS", skips).env("REPLICAD_BIN_DIR", workspace::target().join("debug"));
            workspace::run_logged(&mut cargo, log, LIMIT)?;
            Ok(counted(log))
        });
        let told = fs::read_to_string(&self.skips).unwrap_or_default();
        told.lines().for_each(|line| self.skip(line));
    }

    /// Each on all kernels, as a program of its own so that its output is kept.
    fn virtual_machines(&mut self, skip: bool) {
        if skip {
            return self.skip("virtual machines: --skip-vm");
        }
        if std::env::consts::ARCH != "x86_64" {
            return self.skip("virtual machines: they are x86_64 only");
        }
        for test in crate::vm_tests() {
            self.layer(&format!("vm {test}"), |log| {
                // Not our own path: the layers before rebuilt the workspace, and with it this program's file.
                let mut xtask = workspace::cargo();
                xtask.args(["run", "--quiet", "-p", "xtask", "--", "vm", &test]);
                if ["test-interop", "test-migration"].contains(&test.as_str()) {
                    xtask.arg("--quick");
                }
                workspace::run_logged(&mut xtask, log, LIMIT)?;
                Ok(String::new())
            });
        }
    }

    /// Lines in which a test says that it did not run.
    fn collect_skips(&mut self, name: &str, log: &Path) {
        let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        for line in text.lines().filter(|line| line.contains("SKIPPED") || line.contains(OPEN_SEED)) {
            self.skip(&format!("{name}: {}", line.trim()));
        }
    }

    fn skip(&mut self, what: &str) {
        if !self.skipped.iter().any(|known| known == what) {
            self.skipped.push(what.to_string());
        }
    }

    fn summary(self, took: Duration) -> Result<()> {
        println!("== {} min {:02} s", took.as_secs() / 60, took.as_secs() % 60);
        self.skipped.iter().for_each(|what| println!("   SKIPPED, not tested: {what}"));
        if self.failed.is_empty() {
            println!("   all that ran is good");
            return Ok(());
        }
        self.failed.iter().for_each(|what| println!("   FAILED: {what}"));
        bail!("{} of the layers failed", self.failed.len());
    }
}

/// What the tests in a log say of those that failed, for the last lines of the run: whoever reads a CI's output may have
/// nothing else of it.
fn failed_tests(log: &Path) -> Vec<String> {
    const LINES_MAX: usize = 20;
    const CHARS_MAX: usize = 400;
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let told = text.lines().filter(|line| line.contains("FAILED"));
    told.take(LINES_MAX).map(|line| line.trim().chars().take(CHARS_MAX).collect()).collect()
}

/// `, 123 tests`, from what the test programs print at their ends.
fn counted(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let passed =
        text.lines().filter_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse::<u64>().ok());
    match passed.sum::<u64>() {
        0 => String::new(),
        passed => format!(", {passed} tests"),
    }
}

/// The same seeds always, then seeds that this commit is the first to run: fresh with every commit, and the same for
/// everybody who looks at it, so that what fails here fails there.
fn simulate(log: &Path, budget: Duration, seeds: u64) -> Result<String> {
    let build = ["build", "--release", "--quiet", "-p", "sim"];
    workspace::run_logged(workspace::cargo().args(build), log, LIMIT)?;
    // Its own tests replay scenarios: built for speed, not with the other unit tests.
    let tests = ["test", "--release", "--quiet", "-p", "sim", "--", "--show-output"];
    workspace::run_logged(workspace::cargo().args(tests), log, LIMIT)?;
    let mut open = known_and_open(log)?;
    open += &run_seeds(log, 0, seeds)?;
    let first = seeds_of_commit()?;
    let (start, mut fresh) = (Instant::now(), 0);
    while start.elapsed() < budget {
        open += &run_seeds(log, first + fresh, SEEDS_AT_ONCE)?;
        fresh += SEEDS_AT_ONCE;
    }
    if fresh == 0 {
        open += "SKIPPED: seeds that no run had before (--sim-seconds 300)\n";
    }
    fs::write(log, open)?;
    Ok(format!(", {seeds} seeds, {fresh} fresh ones from {first}"))
}

/// Returns what is known and open: the next run overwrites the log, and it must reach the summary.
fn run_seeds(log: &Path, from: u64, count: u64) -> Result<String> {
    let mut sim = Command::new(workspace::target().join("release/sim"));
    sim.args(["--seeds", &count.to_string(), "--from", &from.to_string()]);
    workspace::run_logged(&mut sim, log, LIMIT)?;
    known_and_open(log)
}

fn known_and_open(log: &Path) -> Result<String> {
    let printed = fs::read_to_string(log)?;
    Ok(printed.lines().filter(|line| line.contains(OPEN_SEED)).map(|line| format!("{line}\n")).collect())
}

/// Where the fresh seeds of the checked-out commit begin: 40 bits of its name.
fn seeds_of_commit() -> Result<u64> {
    let root = workspace::root();
    let root = root.to_str().context("the checkout's path is text")?;
    let name = workspace::output("git", ["-C", root, "rev-parse", "HEAD"])?;
    let head = name.get(..10).context("git rev-parse HEAD says no commit")?;
    Ok(u64::from_str_radix(head, 16)?)
}

/// Does the simulator find bugs that are known to be there? In a directory of its own: the feature changes the engine.
fn find_planted(log: &Path) -> Result<String> {
    let directory = workspace::target().join("planted");
    let mut build = workspace::cargo();
    build.args(["build", "--release", "--quiet", "-p", "sim", "--features", "planted", "--target-dir"]);
    workspace::run_logged(build.arg(&directory), log, LIMIT)?;
    let mut sim = Command::new(directory.join("release/sim"));
    workspace::run_logged(sim.args(["--planted", &PLANTED_SEEDS.to_string()]), log, LIMIT)?;
    let found = fs::read_to_string(log)?.lines().filter(|line| line.contains(": seed ")).count();
    let mut crash_points = workspace::cargo();
    crash_points.args(["test", "--release", "--quiet", "-p", "sim", "--features", "planted", "--target-dir"]);
    crash_points.arg(&directory).args(["--test", "crash_points_planted"]);
    workspace::run_logged(&mut crash_points, &log.with_file_name("planted-crash-points.log"), LIMIT)?;
    Ok(format!(", {found} bugs found"))
}

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct SimArgs {
    /// Passed on to the simulator; without any it prints them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// `xtask sim`: the simulator, built for speed.
pub fn sim(args: SimArgs) -> Result<()> {
    let status =
        workspace::cargo().args(["run", "--release", "--quiet", "-p", "sim", "--"]).args(args.arguments).status()?;
    if status.success() { Ok(()) } else { bail!("the simulator ended with {status}") }
}
