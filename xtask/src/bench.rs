//! `xtask bench`: ratios, never speeds: each number is ours divided by something that ran in turn with it on the same
//! kind of disk and link. Medians of the rounds. One table, and a JSON file for who compares.
//!
//! What stands here needs no kernel device: its divisors are bare probes. The part in a virtual machine (ublk against
//! a plain pass-through, and against the kernel's DRBD) is `vm::bench`. docs/performance.md says what the rows mean.
//! What a request costs in the engine alone, in instructions, is no ratio and has a table of its own (`engine`).

mod child;
mod cluster;
mod engine;
mod huge;
mod load;
mod probe;
mod qmp;
mod report;
mod resync;
mod rival;
mod rivalry;
mod room;
mod scale;

use crate::{vm, workspace};
use anyhow::{Context, Result, bail};
use cluster::Pair;
use report::Report;
pub use report::Row;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// Leave out all other parts
    #[arg(long, conflicts_with = "skip_vm")]
    only: Option<Part>,
    /// Of the part on this machine, only these
    #[arg(long, value_enum, value_delimiter = ',')]
    host: Vec<HostPart>,
    /// File for the numbers of every round [default: target/bench.json]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Requests of one round
    #[arg(long, default_value_t = 2000)]
    requests: u64,
    /// Size of the disks
    #[arg(long, default_value_t = 512)]
    size_mib: u64,
    /// Seconds of one job of fio
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Size of the sparse disk that attach and connect are measured with
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1024))]
    huge_tib: u64,
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

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum HostPart {
    /// On the disk below target: single requests and a first sync, against bare probes
    Disk,
    /// In memory: against QEMU's mirror and nbdkit
    Rivals,
    /// In memory: a first sync, a bitmap resync, and what an application notices
    Resync,
    /// In memory: many resources
    Scale,
    /// In memory: a sparse disk of 100 TiB
    Huge,
}

impl Args {
    fn wants_host(&self, part: HostPart) -> bool {
        self.host.is_empty() || self.host.contains(&part)
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part) && !(part == Part::Guest && self.skip_vm)
    }
}

pub fn main(args: Args) -> Result<()> {
    if args.rounds == 0 || args.requests == 0 || args.size_mib < 64 || args.seconds < 0.1 {
        bail!("a bench needs --rounds and --requests of at least 1, --size-mib of at least 64, --seconds of 0.1");
    }
    room::clean_up_on_signals()?;
    let mut report = Report::default();
    let result = measure(&args, &mut report);
    // What was measured is shown also when something failed.
    let path = args.json.as_ref().map_or_else(|| Ok(default_file()), std::path::absolute)?;
    report.publish(&path).and(result)
}

fn measure(args: &Args, report: &mut Report) -> Result<()> {
    if args.wants(Part::Engine) {
        report.costs = engine::main()?;
    }
    if args.wants(Part::Host) {
        host(args, report)?;
    }
    if args.wants(Part::Guest) {
        report.rows.extend(vm::bench::rows(&args.machine, false)?);
    } else {
        report.skip("ublk against a pass-through, and against the kernel's DRBD", "--skip-vm or --only");
    }
    Ok(())
}

fn default_file() -> PathBuf {
    workspace::target().join("bench.json")
}

/// Rows of a task of its own, in place of what an earlier run left in the file.
pub fn publish(rows: &[Row]) -> Result<()> {
    Report { rows: rows.to_vec(), ..Report::default() }.publish(&default_file())
}

fn host(args: &Args, report: &mut Report) -> Result<()> {
    let programs = workspace::build_programs("release")?;
    if args.wants_host(HostPart::Disk) {
        on_disk(args, &programs, report)?;
    }
    if args.wants_host(HostPart::Rivals) {
        rivalry::measure(args, &programs, report)?;
    }
    if args.wants_host(HostPart::Resync) {
        resync::measure(args, &programs, report)?;
    }
    if args.wants_host(HostPart::Scale) {
        scale::measure(args, &programs, report)?;
    }
    if args.wants_host(HostPart::Huge) {
        huge::measure(args.huge_tib, &programs, report)?;
    }
    Ok(())
}

fn on_disk(args: &Args, programs: &Path, report: &mut Report) -> Result<()> {
    let dir = workspace::target().join("bench");
    // What an ended run left behind.
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    report.rows.extend(requests(args, &dir, programs)?);
    report.rows.push(first_sync(args, &dir, programs)?);
    Ok(fs::remove_dir_all(&dir)?)
}

/// 4 KiB requests, one at a time.
fn requests(args: &Args, dir: &Path, programs: &Path) -> Result<Vec<Row>> {
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
fn first_sync(args: &Args, dir: &Path, programs: &Path) -> Result<Row> {
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
