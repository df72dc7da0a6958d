//! What a request costs in the engine alone: instructions, which a noisy machine cannot change, and allocations. The
//! bench of the crate runs the requests and counts allocations (`crates/engine/benches/requests.rs`); callgrind counts
//! instructions inside the engine's two doors. Two runs of different length; what they have in common, the set-up and
//! the warm-up, is in neither number.

use crate::{packages, workspace};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Requests of the shorter run; the longer one has twice as many.
const REQUESTS: u64 = 4096;
/// The functions of the bench that lead into the engine.
const DOORS: &str = "*measured_*";

/// One case seen in one node's engine.
struct Cost {
    case: String,
    node: usize,
    instructions: f64,
    allocations: f64,
}

pub fn main() -> Result<()> {
    packages::ensure(packages::ENGINE_BENCH)?;
    let program = build()?;
    let cases = workspace::output::<&str>(&program, [])?;
    let mut costs = Vec::new();
    for line in cases.lines() {
        let (case, node) = line.split_once(' ').with_context(|| format!("{line:?} is no case and node"))?;
        costs.push(cost(&program, case, node.parse()?)?);
    }
    show(&costs);
    let path = workspace::target().join("bench-engine.json");
    let all: Vec<_> = costs.iter().map(Cost::json).collect();
    fs::write(&path, serde_json::to_string_pretty(&all)?)?;
    println!("\n{}", path.display());
    Ok(())
}

/// Cargo puts a bench under a name that only it knows.
fn build() -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.args(["bench", "-p", "engine", "--bench", "requests", "--no-run", "--message-format=json"]);
    let out = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !out.status.success() {
        bail!("cargo bench --no-run failed");
    }
    let lines = String::from_utf8_lossy(&out.stdout);
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let built = messages.filter(|message| message["target"]["name"] == "requests");
    let mut programs = built.filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
    programs.next().context("cargo names no program of the bench")
}

fn cost(program: &PathBuf, case: &str, node: usize) -> Result<Cost> {
    let (short, fewer) = run(program, case, node, REQUESTS)?;
    let (long, more) = run(program, case, node, 2 * REQUESTS)?;
    let each = |short: u64, long: u64| long.saturating_sub(short) as f64 / REQUESTS as f64;
    Ok(Cost { case: case.into(), node, instructions: each(short, long), allocations: each(fewer, more) })
}

/// Instructions inside the doors in the whole run, and allocations after the warm-up.
fn run(program: &PathBuf, case: &str, node: usize, requests: u64) -> Result<(u64, u64)> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"]);
    command.arg(format!("--toggle-collect={DOORS}")).arg(program);
    command.args([case, &node.to_string(), &requests.to_string()]).stdin(Stdio::null());
    let out = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let (printed, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if !out.status.success() {
        bail!("{command:?} failed ({}): {}", out.status, said.trim());
    }
    let instructions = collected(&said).with_context(|| format!("callgrind does not say what it collected: {said}"))?;
    let allocations = printed.split_whitespace().last().context("the bench printed nothing")?;
    Ok((instructions, allocations.parse()?))
}

/// `==PID== Collected : NUMBER`. Nothing collected means that the doors have other names now.
fn collected(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.contains("Collected :"))?;
    line.split_whitespace().last()?.parse().ok().filter(|count| *count > 0)
}

fn show(costs: &[Cost]) {
    let width = costs.iter().map(|cost| cost.case.len()).max().unwrap_or_default();
    println!("\n{:<width$}  node  instructions  allocations   per request, in the engine alone", "");
    for Cost { case, node, instructions, allocations } in costs {
        println!("{case:<width$}  {node:>4}  {instructions:>12.0}  {allocations:>11.3}");
    }
}

impl Cost {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "case": self.case, "node": self.node, "instructions": self.instructions, "allocations": self.allocations,
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
