//! Many resources on two nodes: what those that do nothing cost the one that works, and what each costs by itself.

use super::child::Used;
use super::cluster::{Cluster, Setup, TWO};
use super::load::{self, Load};
use super::report::{Figure, Report, Row};
use super::room::Room;
use super::{Args, report};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const COUNTS: [usize; 5] = [1, 2, 4, 8, 64];
/// Of one disk. Small: there are up to 128 of them.
const DISK_BYTES: u64 = 32 << 20;
/// Without load, before and while it is looked at.
const SETTLE: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(5);

const LOADS: [Load; 2] = [
    Load { name: "4k write, depth 1", pattern: "randwrite", block_kib: 4, depth: 1 },
    Load { name: "4k write, depth 32", pattern: "randwrite", block_kib: 4, depth: 32 },
];

/// Requests per second of one cluster, for each load; a value a round.
#[derive(Default)]
struct Rates {
    /// One resource is active.
    one: [Vec<f64>; LOADS.len()],
    /// All are: their sum.
    all: [Vec<f64>; LOADS.len()],
    /// Of both daemons for one request, while one resource is active.
    cpu_us: [Vec<f64>; LOADS.len()],
}

pub fn measure(args: &Args, programs: &Path, report: &mut Report) -> Result<()> {
    const WHAT: &str = "many resources";
    if let Err(reason) = load::ready(report) {
        report.skip(WHAT, &format!("{reason:#}"));
        return Ok(());
    }
    let all: u64 = COUNTS.iter().map(|count| 2 * *count as u64 * DISK_BYTES).sum();
    let room = match Room::open(all) {
        Ok(room) => room,
        Err(reason) => {
            report.skip(WHAT, &format!("{reason:#}"));
            return Ok(());
        }
    };
    let mut clusters = BTreeMap::new();
    for count in COUNTS {
        println!("{count} resources on two nodes");
        clusters.insert(count, start(&room.dir.join(count.to_string()), programs, count)?);
    }
    // Nobody was asked for anything yet.
    idle(&clusters, report)?;
    let mut rates: BTreeMap<usize, Rates> = COUNTS.into_iter().map(|count| (count, Rates::default())).collect();
    for round in 0..args.rounds {
        println!("round {} of {}: many resources", round + 1, args.rounds);
        for turn in 0..COUNTS.len() {
            let count = COUNTS[(round + turn) % COUNTS.len()];
            let rates = rates.get_mut(&count).expect("made for each count");
            one_round(&clusters[&count], count, args.seconds, rates)?;
        }
    }
    rows(&rates, report);
    for (count, cluster) in &clusters {
        let meaning = "two daemons together, after all resources had load";
        let used = mib(Used::of(&cluster.pids())?.resident_bytes);
        let name = format!("{count} resources after load: memory");
        report.figures.push(Figure { values: vec![used], ..Figure::new(name, "MiB", None, meaning) });
    }
    // r0 of each had all kinds of load.
    clusters.into_values().try_for_each(Cluster::finish)
}

fn start(dir: &Path, programs: &Path, resources: usize) -> Result<Cluster> {
    std::fs::create_dir_all(dir)?;
    let (size_bytes, disk_options) = (DISK_BYTES, "");
    let setup = Setup { dir, programs, nodes: TWO, resources, size_bytes, disk_options, written: true };
    let cluster = Cluster::start(&setup).with_context(|| format!("{resources} resources"))?;
    cluster.promote_as_equal()?;
    Ok(cluster)
}

fn one_round(cluster: &Cluster, count: usize, seconds: f64, rates: &mut Rates) -> Result<()> {
    let uris: Vec<String> = (0..count).map(|resource| cluster.uri(resource)).collect();
    for (at, load) in LOADS.into_iter().enumerate() {
        let before = Used::of(&cluster.pids())?.cpu_seconds;
        let one = load::run_one(load, &uris[0], seconds)?;
        let cpu_seconds = Used::of(&cluster.pids())?.cpu_seconds - before;
        rates.cpu_us[at].push(cpu_seconds * 1e6 / one.requests as f64);
        rates.one[at].push(one.requests_per_second);
        let all = load::run(load, &uris, seconds)?;
        rates.all[at].push(all.iter().map(|outcome| outcome.requests_per_second).sum());
    }
    Ok(())
}

/// Memory, processor time and wake-ups of both daemons while nobody asks for anything.
fn idle(clusters: &BTreeMap<usize, Cluster>, report: &mut Report) -> Result<()> {
    std::thread::sleep(SETTLE);
    let look = |cluster: &Cluster| Used::of(&cluster.pids());
    let before = clusters.values().map(look).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(IDLE);
    let after = clusters.values().map(look).collect::<Result<Vec<_>>>()?;
    let smallest = after.first().context("no cluster")?.resident_bytes;
    for ((count, before), after) in clusters.keys().zip(before).zip(after) {
        let seconds = IDLE.as_secs_f64();
        let mut add = |what: &str, unit, value: f64, meaning| {
            let name = format!("idle, {count} resources: {what}");
            report.figures.push(Figure { values: vec![value], ..Figure::new(name, unit, None, meaning) });
        };
        let meaning = "two daemons together, each with so many connected resources and nothing to do for 5 s, before any \
                       load; memory of one more resource is on both nodes, against the cluster with one";
        add("processor", "ms/s", (after.cpu_seconds - before.cpu_seconds) * 1000.0 / seconds, meaning);
        add("wake-ups", "1/s", (after.sleeps - before.sleeps) as f64 / seconds, meaning);
        add("memory", "MiB", mib(after.resident_bytes), meaning);
        if *count > 1 {
            let each = mib(after.resident_bytes.saturating_sub(smallest)) / (*count - 1) as f64;
            add("memory of one more", "MiB", each, meaning);
        }
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn rows(rates: &BTreeMap<usize, Rates>, report: &mut Report) {
    type Series = fn(&Rates) -> &[Vec<f64>; LOADS.len()];
    let kinds: [(&str, Series, &'static str); 2] = [
        (
            "one active",
            |rates| &rates.one,
            "4k writes to one resource, with idle ones beside it in the same two daemons",
        ),
        ("all active", |rates| &rates.all, "4k writes to all resources at once, the sum of their rates"),
    ];
    let (smallest, base) = rates.first_key_value().expect("COUNTS is not empty");
    for (kind, series, meaning) in kinds {
        for (count, rates) in rates.iter().filter(|(count, _)| *count != smallest) {
            for (at, load) in LOADS.iter().enumerate() {
                let name = format!("{count} resources, {kind}: {}", load.name);
                report.rows.push(row(&name, meaning, &series(rates)[at], &series(base)[at]));
            }
        }
    }
    let meaning = "both daemons together; what idle resources cost a request of the one that is active";
    for (count, rates) in rates {
        for (at, load) in LOADS.iter().enumerate() {
            let name = format!("CPU time of a request, {count} resources, one active: {}", load.name);
            let values = rates.cpu_us[at].clone();
            report.figures.push(Figure { values, ..Figure::new(name, "us", None, meaning) });
        }
    }
}

fn row(name: &str, meaning: &'static str, ours: &[f64], base: &[f64]) -> Row {
    let mut row = report::Row::new(name, "requests/s", "the same with one resource", None, meaning);
    ours.iter().zip(base).for_each(|(ours, base)| row.add(*ours, *base));
    row
}
