//! `xtask bench`: ratios, never speeds: each number is ours divided by something that ran in turn with it on the same
//! kind of disk and link. Medians of the rounds. One table, and `target/bench.json` for who compares.
//!
//! What stands here needs no kernel device: its divisors are bare probes. The part in a virtual machine (ublk against
//! a plain pass-through, and against the kernel's DRBD) is `vm::bench`. docs/performance.md says what the rows mean.
//! What a request costs in the engine alone, in instructions, is no ratio and has a table of its own (`engine`).

mod cluster;
mod engine;
mod probe;

use crate::{vm, workspace};
use anyhow::{Context, Result, bail};
use cluster::Pair;
use std::fs;

#[derive(clap::Args)]
pub struct Args {
    /// Leave out all other parts
    #[arg(long, conflicts_with = "skip_vm")]
    only: Option<Part>,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Requests of one round
    #[arg(long, default_value_t = 2000)]
    requests: u64,
    /// Size of the disks
    #[arg(long, default_value_t = 512)]
    size_mib: u64,
    /// Leave out the virtual machine
    #[arg(long)]
    skip_vm: bool,
    #[command(flatten)]
    machine: vm::bench::MachineArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The engine alone: instructions and allocations of a request
    Engine,
    /// What needs no kernel device, on this machine
    Host,
    /// The virtual machine
    Guest,
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part) && !(part == Part::Guest && self.skip_vm)
    }
}

/// One line of the table. The two series were measured in turn, in `unit`; more is better.
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    pub ours: Vec<f64>,
    /// Of the divisor.
    pub probe: Vec<f64>,
    /// What ours is divided by.
    pub divisor: &'static str,
    /// What design and users may expect of the ratio; none where there is no promise.
    pub goal: Option<f64>,
    pub meaning: &'static str,
    /// The virtual machine that it was measured in; none: here.
    pub machine: Option<String>,
}

impl Row {
    fn new(name: &str, unit: &'static str, divisor: &'static str, goal: Option<f64>, meaning: &'static str) -> Row {
        Row { name: name.into(), unit, ours: Vec::new(), probe: Vec::new(), divisor, goal, meaning, machine: None }
    }

    fn add(&mut self, ours: f64, probe: f64) {
        self.ours.push(ours);
        self.probe.push(probe);
    }

    fn ratio(&self) -> f64 {
        median(&self.ours) / median(&self.probe)
    }

    /// Least and greatest of the rounds' own ratios: how far to trust the median's.
    fn range(&self) -> (f64, f64) {
        let ratios = self.ours.iter().zip(&self.probe).map(|(ours, probe)| ours / probe);
        ratios.fold((f64::INFINITY, 0.0), |(least, greatest), ratio| (ratio.min(least), ratio.max(greatest)))
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.name, "unit": self.unit, "ours": self.ours, "probe": self.probe,
            "divisor": self.divisor, "ratio": self.ratio(), "goal": self.goal, "meaning": self.meaning,
            "machine": self.machine,
        })
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

pub fn main(args: Args) -> Result<()> {
    if args.rounds == 0 || args.requests == 0 || args.size_mib < 64 {
        bail!("a bench needs --rounds and --requests of at least 1 and --size-mib of at least 64");
    }
    if args.wants(Part::Engine) {
        engine::main()?;
    }
    let mut rows = Vec::new();
    if args.wants(Part::Host) {
        rows = host(&args)?;
    }
    if args.wants(Part::Guest) {
        // What was measured is shown also when the machine fails.
        let machine = vm::bench::rows(&args.machine, false);
        let failure = machine.map(|more| rows.extend(more)).err();
        publish(&rows)?;
        return failure.map_or(Ok(()), Err);
    }
    if rows.is_empty() {
        return Ok(());
    }
    println!("NOT MEASURED: ublk against a pass-through, and against the kernel's DRBD: --skip-vm or --only");
    publish(&rows)
}

fn host(args: &Args) -> Result<Vec<Row>> {
    let programs = workspace::build_programs("release")?;
    let dir = workspace::target().join("bench");
    // What an ended run left behind.
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut rows = requests(args, &dir, &programs)?;
    rows.push(resync(args, &dir, &programs)?);
    fs::remove_dir_all(&dir)?;
    Ok(rows)
}

/// The table, and the file: what this run measured, in place of what an earlier one did.
pub fn publish(rows: &[Row]) -> Result<()> {
    show(rows);
    let path = workspace::target().join("bench.json");
    let all: Vec<_> = rows.iter().map(Row::json).collect();
    fs::write(&path, serde_json::to_string_pretty(&all)?)?;
    println!("\n{}", path.display());
    Ok(())
}

/// 4 KiB requests, one at a time.
fn requests(args: &Args, dir: &std::path::Path, programs: &std::path::Path) -> Result<Vec<Row>> {
    const UNIT: &str = "requests/s";
    let mut alone = Row::new(
        "NBD, no peer: 4k write",
        UNIT,
        "direct write to a file",
        None,
        "NBD, engine and store with no peer connected, against a write to the same kind of file",
    );
    let mut read = Row::new(
        "NBD: 4k read",
        UNIT,
        "direct read of a file",
        None,
        "a read through NBD, against a read of the same kind of file",
    );
    let mut pair = Row::new(
        "NBD, protocol C: 4k write",
        UNIT,
        "write, and round trip with write",
        Some(0.7),
        "two nodes over loopback through NBD, against a bare write here, 4 KiB over loopback, write there, answer; \
         the goal is for engines without a frontend",
    );
    let nodes = Pair::start(dir, programs, args.size_mib)?;
    let probe = probe::Disks::new(dir, args.size_mib << 20)?;
    let count = args.requests;
    for round in 0..args.rounds {
        println!("round {} of {}: single requests", round + 1, args.rounds);
        nodes.connect()?;
        pair.add(nodes.writes(count)?, probe.writes_on_two(count)?);
        read.add(nodes.reads(count)?, probe.reads(count)?);
        nodes.disconnect()?;
        alone.add(nodes.writes(count)?, probe.writes_on_one(count)?);
    }
    Ok(vec![alone, read, pair])
}

/// A whole disk to a peer without data.
fn resync(args: &Args, dir: &std::path::Path, programs: &std::path::Path) -> Result<Row> {
    let mut row = Row::new(
        "NBD: resync",
        "MiB/s",
        "copy of a file",
        Some(0.9),
        "a first sync with no other load and c-max-rate out of the way, against copying a file of that size past the \
         cache",
    );
    for round in 0..args.rounds {
        println!("round {} of {}: resync", round + 1, args.rounds);
        let ours = cluster::first_sync(dir, programs, args.size_mib)?;
        row.add(ours, probe::copy(dir, args.size_mib << 20)?);
    }
    Ok(row)
}

fn show(rows: &[Row]) {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    println!("\n{:<width$} {:>9} {:>9}  ratio  of rounds   goal  divided by; unit", "", "replicad", "divisor");
    for row in rows {
        let goal = row.goal.map_or("-".into(), |goal| format!("{goal:.2}"));
        let (ours, probe, (least, greatest)) = (median(&row.ours), median(&row.probe), row.range());
        println!(
            "{:<width$} {ours:>9.0} {probe:>9.0} {:>6.2}  {least:.2}..{greatest:.2}  {goal:>5}  {}; {}",
            row.name,
            row.ratio(),
            row.divisor,
            row.unit
        );
    }
    println!();
    for alike in rows.chunk_by(|one, next| one.meaning == next.meaning) {
        let row = &alike[0];
        let more = if alike.len() > 1 { " and below" } else { "" };
        let machine = row.machine.as_ref().map_or(String::new(), |machine| format!(" ({machine})"));
        println!("{}{more}: {}{machine}", row.name, row.meaning);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_ratio_is_of_the_medians() {
        let mut row = Row::new("write", "requests/s", "probe", None, "");
        [(1.0, 10.0), (5.0, 10.0), (900.0, 10.0)].into_iter().for_each(|(ours, probe)| row.add(ours, probe));
        assert_eq!(row.ratio(), 0.5);
        assert_eq!(row.range(), (0.1, 90.0));
    }
}
