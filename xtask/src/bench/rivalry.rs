//! Our NBD frontend and protocol C against others over the same door: QEMU's synchronous mirror, which gives the same
//! promise, and what has less to do and so shows where the time goes: our own node without a peer, QEMU's storage
//! daemon without a mirror, nbdkit with nothing but a file.
//!
//! All disks are files in memory, the link is loopback, the load is fio's. Everybody runs from the beginning to the
//! end; one is measured at a time, in an order that turns with each round.

use super::child::Used;
use super::cluster::{Cluster, NO_LIMIT, ONE, Setup, TWO, address};
use super::load::{self, Load, Outcome};
use super::report::{Figure, Report, Row};
use super::room::Room;
use super::{Args, rival};
use anyhow::Result;
use std::path::Path;

/// A load, and what a pair should reach of QEMU's synchronous mirror with it.
struct Case {
    load: Load,
    goal: f64,
}

const fn case(name: &'static str, pattern: &'static str, block_kib: u64, depth: u32, goal: f64) -> Case {
    Case { load: Load { name, pattern, block_kib, depth }, goal }
}

const CASES: [Case; 5] = [
    case("4k write, depth 1", "randwrite", 4, 1, 1.3),
    case("4k write, depth 32", "randwrite", 4, 32, 2.2),
    case("64k write, depth 8", "randwrite", 64, 8, 1.2),
    case("1M write, depth 4", "write", 1024, 4, 1.4),
    case("4k read, depth 32", "randread", 4, 32, 1.8),
];

/// Before the first round: every place of the activity log is hot, every page is there.
const WARM_UP: Load = Load { name: "warm-up", pattern: "write", block_kib: 1024, depth: 4 };

/// The least processor time that can be told from none.
const TICK_SECONDS: f64 = 0.01;

const PAIR: &str = "C";
const ALONE: &str = "no peer";
const MIRROR: &str = "QEMU synchronous mirror";
const STORAGE: &str = "QEMU storage daemon, no mirror";
const FLOOR: &str = "nbdkit, file";

/// Somebody who is measured.
struct Subject {
    name: &'static str,
    uri: String,
    pids: Vec<u32>,
    /// One a round, for each case.
    outcomes: [Vec<Sample>; CASES.len()],
}

struct Sample {
    outcome: Outcome,
    cpu_us_per_request: f64,
}

impl Subject {
    fn new(name: &'static str, uri: String, pids: Vec<u32>) -> Subject {
        Subject { name, uri, pids, outcomes: Default::default() }
    }

    fn measure(&mut self, case: usize, seconds: f64) -> Result<()> {
        let before = Used::of(&self.pids)?.cpu_seconds;
        let outcome = load::run_one(CASES[case].load, &self.uri, seconds)?;
        // The kernel counts in ticks.
        let cpu_seconds = (Used::of(&self.pids)?.cpu_seconds - before).max(TICK_SECONDS);
        let cpu_us_per_request = cpu_seconds * 1e6 / outcome.requests as f64;
        self.outcomes[case].push(Sample { outcome, cpu_us_per_request });
        Ok(())
    }
}

/// Everybody that runs, with what keeps it running.
struct Field {
    pair: Cluster,
    alone: Cluster,
    rivals: rival::Present,
    subjects: Vec<Subject>,
}

impl Field {
    fn start(dir: &Path, programs: &Path, size_bytes: u64, report: &mut Report) -> Result<Field> {
        let start = |name: &str, nodes| {
            let dir = dir.join(name);
            std::fs::create_dir_all(&dir)?;
            let (disk_options, written) = (NO_LIMIT, true);
            Cluster::start(&Setup { dir: &dir, programs, nodes, resources: 1, size_bytes, disk_options, written })
        };
        let (pair, alone) = (start("two", TWO)?, start("one", ONE)?);
        pair.sync()?;
        alone.promote_as_equal()?;
        let mut subjects =
            vec![Subject::new(PAIR, pair.uri(0), pair.pids()), Subject::new(ALONE, alone.uri(0), alone.pids())];
        let rivals = rival::Present::start(dir, size_bytes, &address(2), report)?;
        if let Some(mirror) = &rivals.mirror {
            subjects.push(Subject::new(MIRROR, mirror.uri(), mirror.pids()));
        }
        if let Some(storage) = &rivals.storage {
            subjects.push(Subject::new(STORAGE, storage.uri(), storage.pids()));
        }
        if let Some(floor) = &rivals.floor {
            subjects.push(Subject::new(FLOOR, floor.uri(), floor.pids()));
        }
        Ok(Field { pair, alone, rivals, subjects })
    }

    fn round(&mut self, round: usize, seconds: f64) -> Result<()> {
        for case in 0..CASES.len() {
            let count = self.subjects.len();
            for turn in 0..count {
                self.subjects[(round + turn) % count].measure(case, seconds)?;
            }
        }
        Ok(())
    }

    /// Every copy is still what it should be.
    fn finish(self) -> Result<Vec<Subject>> {
        self.pair.finish()?;
        self.alone.finish()?;
        self.rivals.finish()?;
        Ok(self.subjects)
    }
}

pub fn measure(args: &Args, programs: &Path, report: &mut Report) -> Result<()> {
    const WHAT: &str = "the NBD frontend against QEMU's mirror and nbdkit";
    let size_bytes = args.size_mib << 20;
    if let Err(reason) = load::ready(report) {
        report.skip(WHAT, &format!("{reason:#}"));
        return Ok(());
    }
    // Two nodes, one alone, a mirror's two, a storage daemon's, nbdkit's.
    let room = match Room::open(7 * size_bytes) {
        Ok(room) => room,
        Err(reason) => {
            report.skip(WHAT, &format!("{reason:#}"));
            return Ok(());
        }
    };
    let mut field = Field::start(&room.dir, programs, size_bytes, report)?;
    for subject in &field.subjects {
        load::run_one(WARM_UP, &subject.uri, args.seconds)?;
    }
    for round in 0..args.rounds {
        println!("round {} of {}: against QEMU's mirror and nbdkit", round + 1, args.rounds);
        field.round(round, args.seconds)?;
    }
    notes(&mut field, args.seconds, report)?;
    let subjects = field.finish()?;
    rows(&subjects, report);
    rows_by_processor(&subjects, report);
    figures(&subjects, report);
    Ok(())
}

/// Where a write of ours spends its time, one more job for each case.
fn notes(field: &mut Field, seconds: f64, report: &mut Report) -> Result<()> {
    for case in CASES.iter().filter(|case| !case.load.is_read()) {
        for (name, cluster) in [(PAIR, &field.pair), (ALONE, &field.alone)] {
            load::run_one(case.load, &cluster.uri(0), seconds)?;
            report.notes.push(format!("{name}: {}: {}", case.load.name, cluster.stages()?));
        }
    }
    Ok(())
}

fn rows(subjects: &[Subject], report: &mut Report) {
    for (ours, divisor) in [(PAIR, MIRROR), (PAIR, STORAGE), (PAIR, FLOOR), (ALONE, STORAGE), (ALONE, FLOOR)] {
        let find = |name: &str| subjects.iter().find(|subject| subject.name == name);
        let (Some(one), Some(other)) = (find(ours), find(divisor)) else { continue };
        for (at, case) in CASES.iter().enumerate() {
            let goal = (divisor == MIRROR).then_some(case.goal);
            let (unit, factor) = unit(case.load);
            let name = format!("NBD on tmpfs, {ours}: {}", case.load.name);
            let mut row = Row::new(&name, unit, divisor, goal, meaning(divisor));
            for (one, other) in one.outcomes[at].iter().zip(&other.outcomes[at]) {
                row.add(one.outcome.requests_per_second * factor, other.outcome.requests_per_second * factor);
            }
            report.rows.push(row);
        }
    }
}

/// What a busy machine changes less than rates: requests for a second of processor time, of all daemons of a side.
fn rows_by_processor(subjects: &[Subject], report: &mut Report) {
    let find = |name: &str| subjects.iter().find(|subject| subject.name == name);
    let (Some(pair), Some(mirror)) = (find(PAIR), find(MIRROR)) else { return };
    for (at, case) in CASES.iter().enumerate() {
        let name = format!("NBD on tmpfs, {PAIR}, by processor time: {}", case.load.name);
        let meaning = "as above, requests by the processor time that all daemons of a side took for them";
        let mut row = Row::new(&name, "requests/CPU s", MIRROR, None, meaning);
        for (ours, theirs) in pair.outcomes[at].iter().zip(&mirror.outcomes[at]) {
            row.add(1e6 / ours.cpu_us_per_request, 1e6 / theirs.cpu_us_per_request);
        }
        report.rows.push(row);
    }
}

fn unit(load: Load) -> (&'static str, f64) {
    if load.block_kib > 4 { ("MiB/s", load.block_kib as f64 / 1024.0) } else { ("requests/s", 1.0) }
}

fn meaning(divisor: &str) -> &'static str {
    match divisor {
        MIRROR => {
            "two nodes over loopback, files in memory, fio through NBD on a unix socket; the same for QEMU's \
                   storage daemon with blockdev-mirror, write-blocking, to nbdkit over TCP"
        }
        STORAGE => "the same load and disk, without a second copy there",
        _ => "the same load and disk, with a server that only reads and writes a file: what the door itself costs",
    }
}

/// What stands behind the ratios, of those whose promise is compared and of the floor.
fn figures(subjects: &[Subject], report: &mut Report) {
    type Value = fn(&Sample) -> f64;
    let kinds: [(&str, Value, &[&str], &'static str); 2] = [
        (
            "CPU time of a request",
            |sample| sample.cpu_us_per_request,
            &[PAIR, MIRROR, ALONE, FLOOR],
            "all daemons of a side together, without fio; other programs disturb it less than they do rates",
        ),
        ("p99", |sample| sample.outcome.p99_us, &[PAIR, MIRROR], "99th percentile of a request's time, as fio saw it"),
    ];
    for (kind, value, names, meaning) in kinds {
        for (at, case) in CASES.iter().enumerate() {
            for subject in subjects.iter().filter(|subject| names.contains(&subject.name)) {
                let name = format!("{kind}: {}, {}", case.load.name, subject.name);
                let values = subject.outcomes[at].iter().map(value).collect();
                report.figures.push(Figure { values, ..Figure::new(name, "us", None, meaning) });
            }
        }
    }
}
