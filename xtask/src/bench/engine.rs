//! What a request costs in the engine alone, and what the parts beside it cost: instructions, which a noisy machine
//! cannot change, and allocations. The benches run the requests and count allocations (`crates/engine/benches/`,
//! `benches/parts/`); callgrind counts instructions inside the functions that lead into what is measured. Two runs of different length; what they have in common, the set-up and
//! the warm-up, is in neither number.

use crate::{packages, workspace};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Packages with a bench that speaks this language, and the bench's name.
const PROGRAMS: [(&str, &str); 2] = [("engine", "requests"), ("benches", "parts")];
/// Requests of the shorter run, where a case does not say; the longer one has twice as many.
const REQUESTS: u64 = 4096;
/// The functions of the benches that lead into what is measured.
const DOORS: &str = "*measured_*";
/// Of a run that is timed, in counted runs, and how many of them; the fastest counts, the others were disturbed.
const TIMED: u64 = 16;
const TIMED_RUNS: usize = 3;

/// One case seen in one node's engine, or in one part beside it.
pub struct Cost {
    case: String,
    node: usize,
    instructions: f64,
    allocations: f64,
    /// Where the bench takes the time of nothing else.
    nanoseconds: Option<f64>,
}

struct Case {
    program: PathBuf,
    name: String,
    node: usize,
    requests: u64,
}

pub fn main() -> Result<Vec<Cost>> {
    packages::ensure(packages::ENGINE_BENCH)?;
    let mut costs = Vec::new();
    for (package, bench) in PROGRAMS {
        for case in cases(&build(package, bench)?)? {
            costs.push(case.cost().with_context(|| case.name.clone())?);
        }
    }
    show(&costs);
    let path = workspace::target().join("bench-engine.json");
    let all: Vec<_> = costs.iter().map(Cost::json).collect();
    fs::write(&path, serde_json::to_string_pretty(&all)?)?;
    println!("\n{}", path.display());
    Ok(costs)
}

/// Cargo puts a bench under a name that only it knows.
fn build(package: &str, bench: &str) -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.args(["bench", "-p", package, "--bench", bench, "--no-run", "--message-format=json"]);
    let out = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !out.status.success() {
        bail!("cargo bench --no-run failed");
    }
    let lines = String::from_utf8_lossy(&out.stdout);
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let built = messages.filter(|message| message["target"]["name"] == bench);
    let mut programs = built.filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
    programs.next().context("cargo names no program of the bench")
}

/// A line each: case, node, and how many requests where the usual number does not suit.
fn cases(program: &Path) -> Result<Vec<Case>> {
    let lines = workspace::output::<&str>(program, [])?;
    let case = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, node) = words.next().zip(words.next()).with_context(|| format!("{line:?} is no case and node"))?;
        let requests = words.next().map_or(Ok(REQUESTS), str::parse)?;
        Ok(Case { program: program.into(), name: name.into(), node: node.parse()?, requests })
    };
    lines.lines().map(case).collect()
}

/// What a bench printed of a run: case, node, requests, allocations, and nanoseconds if it measures them.
struct Printed {
    allocations: u64,
    nanoseconds: Option<f64>,
}

impl Case {
    fn cost(&self) -> Result<Cost> {
        let (short, fewer) = self.counted(self.requests)?;
        let (long, more) = self.counted(2 * self.requests)?;
        let each = |short: u64, long: u64| long.saturating_sub(short) as f64 / self.requests as f64;
        let (instructions, allocations) = (each(short, long), each(fewer, more));
        let (case, node) = (self.name.clone(), self.node);
        Ok(Cost { case, node, instructions, allocations, nanoseconds: self.timed()? })
    }

    /// Instructions inside the doors in the whole run, and allocations after the warm-up.
    fn counted(&self, requests: u64) -> Result<(u64, u64)> {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"]);
        command.arg(format!("--toggle-collect={DOORS}")).arg(&self.program);
        let (printed, said) = self.run(command, requests)?;
        let instructions =
            collected(&said).with_context(|| format!("callgrind does not say what it collected: {said}"))?;
        Ok((instructions, printed.allocations))
    }

    /// Of one request, natively.
    fn timed(&self) -> Result<Option<f64>> {
        let requests = TIMED * self.requests;
        let run = |_| Ok(self.run(Command::new(&self.program), requests)?.0.nanoseconds);
        let all = (0..TIMED_RUNS).map(run).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().flatten().min_by(f64::total_cmp).map(|nanoseconds| nanoseconds / requests as f64))
    }

    fn run(&self, mut command: Command, requests: u64) -> Result<(Printed, String)> {
        command.args([&self.name, &self.node.to_string(), &requests.to_string()]).stdin(Stdio::null());
        let out = command.output().with_context(|| format!("cannot run {command:?}"))?;
        let (printed, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        if !out.status.success() {
            bail!("{command:?} failed ({}): {}", out.status, said.trim());
        }
        let mut numbers = printed.split_whitespace().skip(3);
        let allocations = numbers.next().context("the bench printed no allocations")?.parse()?;
        let nanoseconds = numbers.next().map(str::parse).transpose()?;
        Ok((Printed { allocations, nanoseconds }, said.into_owned()))
    }
}

/// `==PID== Collected : NUMBER`. Nothing collected means that the doors have other names now.
fn collected(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.contains("Collected :"))?;
    line.split_whitespace().last()?.parse().ok().filter(|count| *count > 0)
}

fn show(costs: &[Cost]) {
    let width = costs.iter().map(|cost| cost.case.len()).max().unwrap_or_default();
    println!("\n{:<width$}  node  instructions  allocations        ns   per request or operation", "");
    for Cost { case, node, instructions, allocations, nanoseconds } in costs {
        let nanoseconds = nanoseconds.map_or("-".into(), |nanoseconds| format!("{nanoseconds:.0}"));
        println!("{case:<width$}  {node:>4}  {instructions:>12.0}  {allocations:>11.3}  {nanoseconds:>8}");
    }
}

impl Cost {
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "case": self.case, "node": self.node, "instructions": self.instructions, "allocations": self.allocations,
            "nanoseconds": self.nanoseconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::collected;

    #[test]
    fn callgrind_says_what_it_collected() {
        let said = "==7== Events    : Ir\n==7== Collected : 164511832\n==7== \n";
        assert_eq!(collected(said), Some(164_511_832));
        assert_eq!(collected("==7== Collected : 0\n"), None);
        assert_eq!(collected("valgrind: no such file\n"), None);
    }
}
