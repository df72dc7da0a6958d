//! `xtask bench`: ratios, never speeds: each number is ours divided by a bare probe that ran in turn with it on the
//! same files and the same link. Medians of the rounds. One table, and `target/bench.json` for who compares.
//!
//! What stands here needs no kernel device. The part in virtual machines (ublk against a plain pass-through, and
//! against the kernel's DRBD) adds its rows with [`Row`] through [`rows_of_machines`].

mod cluster;
mod probe;

use crate::workspace;
use anyhow::{Context, Result, bail};
use cluster::Pair;
use std::fs;

#[derive(clap::Args)]
pub struct Args {
    /// Rounds; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Requests of one round
    #[arg(long, default_value_t = 2000)]
    requests: u64,
    /// Size of the disks
    #[arg(long, default_value_t = 512)]
    size_mib: u64,
}

/// One line of the table. The two series were measured in turn, in `unit`; more is better.
pub struct Row {
    pub name: &'static str,
    pub unit: &'static str,
    pub ours: Vec<f64>,
    pub probe: Vec<f64>,
    /// What design and users may expect of the ratio; none where there is no promise.
    pub goal: Option<f64>,
    pub meaning: &'static str,
}

impl Row {
    fn new(name: &'static str, unit: &'static str, goal: Option<f64>, meaning: &'static str) -> Row {
        Row { name, unit, ours: Vec::new(), probe: Vec::new(), goal, meaning }
    }

    fn add(&mut self, ours: f64, probe: f64) {
        self.ours.push(ours);
        self.probe.push(probe);
    }

    fn ratio(&self) -> f64 {
        median(&self.ours) / median(&self.probe)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.name, "unit": self.unit, "ours": self.ours, "probe": self.probe,
            "ratio": self.ratio(), "goal": self.goal, "meaning": self.meaning,
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
    let programs = workspace::build_programs("release")?;
    let dir = workspace::target().join("bench");
    // What an ended run left behind.
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut rows = requests(&args, &dir, &programs)?;
    rows.push(resync(&args, &dir, &programs)?);
    rows.extend(rows_of_machines());
    fs::remove_dir_all(&dir)?;
    show(&rows);
    let path = workspace::target().join("bench.json");
    let all: Vec<_> = rows.iter().map(Row::json).collect();
    fs::write(&path, serde_json::to_string_pretty(&all)?)?;
    println!("\n{}", path.display());
    Ok(())
}

/// The seam for what runs in virtual machines: nothing yet, and said so.
fn rows_of_machines() -> Vec<Row> {
    println!("NOT MEASURED: ublk against a pass-through, and against the kernel's DRBD: `xtask vm` has no bench yet");
    Vec::new()
}

/// 4 KiB requests, one at a time.
fn requests(args: &Args, dir: &std::path::Path, programs: &std::path::Path) -> Result<Vec<Row>> {
    const UNIT: &str = "requests/s";
    let mut alone = Row::new(
        "write, no peer",
        UNIT,
        None,
        "NBD, engine and store with no peer connected, against a write to the same kind of file",
    );
    let mut read = Row::new("read", UNIT, None, "a read through NBD, against a read of the same kind of file");
    let mut pair = Row::new(
        "write, protocol C",
        UNIT,
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
        "resync",
        "MiB/s",
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
    println!("\n{:<20} {:>12} {:>12} {:>7} {:>6}  unit", "", "replicad", "bare probe", "ratio", "goal");
    for row in rows {
        let goal = row.goal.map_or("-".into(), |goal| format!("{goal:.2}"));
        let (ours, probe) = (median(&row.ours), median(&row.probe));
        println!("{:<20} {ours:>12.0} {probe:>12.0} {:>7.2} {goal:>6}  {}", row.name, row.ratio(), row.unit);
    }
    println!();
    rows.iter().for_each(|row| println!("{}: {}", row.name, row.meaning));
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
        let mut row = Row::new("write", "requests/s", None, "");
        [(1.0, 10.0), (5.0, 10.0), (900.0, 10.0)].into_iter().for_each(|(ours, probe)| row.add(ours, probe));
        assert_eq!(row.ratio(), 0.5);
    }
}
