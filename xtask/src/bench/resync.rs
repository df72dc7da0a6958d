//! A resync against the slower of disk and link, both measured in the same round, and what an application notices of
//! it. Disks are files in memory, the link is loopback: what is left is what the software costs.

use super::Args;
use super::cluster::{self, Cluster, NO_LIMIT, Setup, TWO};
use super::load::{self, Load};
use super::probe::{self, REQUEST_BYTES};
use super::report::{Figure, Report, Row};
use super::room::Room;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::{Duration, Instant};

/// Of the disk that a bitmap resync is measured on: sparse, so that only what is written takes memory.
const SCATTERED_DISK_BYTES: u64 = 8 << 30;
/// Every so manieth block differs: one percent, never two side by side.
const SCATTER: u64 = 100;
/// Between two looks at a resync.
const POLL: Duration = Duration::from_millis(50);

const APPLICATION: Load = Load { name: "4k write, depth 1", pattern: "randwrite", block_kib: 4, depth: 1 };

pub fn measure(args: &Args, programs: &Path, report: &mut Report) -> Result<()> {
    let size_bytes = args.size_mib << 20;
    // Two nodes and the probe's two files; later the scattered blocks, four times.
    let room = match Room::open(4 * size_bytes.max(SCATTERED_DISK_BYTES / SCATTER)) {
        Ok(room) => room,
        Err(reason) => {
            report.skip("resync in memory", &format!("{reason:#}"));
            return Ok(());
        }
    };
    let rows = [first(args, &room.dir, programs)?, scattered(args, &room.dir, programs)?];
    report.rows.extend(rows);
    match load::ready(report) {
        Ok(()) => noticed(args, &room.dir, programs, report),
        Err(reason) => {
            report.skip("what an application notices of a resync", &format!("{reason:#}"));
            Ok(())
        }
    }
}

/// A whole disk to a peer without data.
fn first(args: &Args, dir: &Path, programs: &Path) -> Result<Row> {
    let meaning = "the whole disk to a peer without data, no other load, c-max-rate out of the way; the divisor is the \
                   slower of copying such a file and of sending it through a socket, 1 MiB at a time";
    let mut row = Row::new("NBD on tmpfs: first sync", "MiB/s", "slower of disk and link", Some(0.9), meaning);
    for round in 0..args.rounds {
        println!("round {} of {}: first sync in memory", round + 1, args.rounds);
        let ours = cluster::first_sync(dir, programs, args.size_mib)?;
        let files = probe::Disks::new(dir, args.size_mib << 20)?;
        let disk = probe::copy(dir, args.size_mib << 20)?;
        drop(files);
        row.add(ours, disk.min(probe::link(args.size_mib << 20, 1 << 20)?));
    }
    probe::remove(dir)?;
    Ok(row)
}

/// One percent of a disk, all over it, that a peer missed.
fn scattered(args: &Args, dir: &Path, programs: &Path) -> Result<Row> {
    let meaning = "one percent of the blocks, all over the disk, written while the peer was away; from the end of the \
                   handshake to the end of the resync; the divisor is the slower of copying these blocks and of sending \
                   as much through a socket, 4 KiB at a time";
    let mut row =
        Row::new("NBD on tmpfs: bitmap resync of 1 %", "MiB/s", "slower of disk and link", Some(0.9), meaning);
    let (size_bytes, disk_options) = (SCATTERED_DISK_BYTES, NO_LIMIT);
    let setup = Setup { dir, programs, nodes: TWO, resources: 1, size_bytes, disk_options, written: false };
    for round in 0..args.rounds {
        println!("round {} of {}: bitmap resync", round + 1, args.rounds);
        let cluster = Cluster::start(&setup)?;
        cluster.promote_as_equal()?;
        let blocks = scatter(&cluster)?;
        let bytes = blocks.len() as u64 * REQUEST_BYTES as u64;
        let seconds = bitmap_resync(&cluster)?;
        cluster.finish()?;
        let disk = probe::copy_scattered(dir, SCATTERED_DISK_BYTES, &blocks)?;
        let link = probe::link(bytes, REQUEST_BYTES)?;
        row.add(bytes as f64 / seconds / f64::from(1 << 20), disk.min(link));
        probe::remove(dir)?;
    }
    Ok(row)
}

/// Writes without the peer; the offsets.
fn scatter(cluster: &Cluster) -> Result<Vec<u64>> {
    cluster.nodes[0].ctl("disconnect r0")?;
    let mut client = e2e::Client::connect(&cluster.socket(0))?;
    let blocks = client.size_bytes / REQUEST_BYTES as u64;
    let bytes = e2e::pattern(REQUEST_BYTES, 1);
    // The first of each hundred, then the second of the next, and so on: no stride that a read-ahead likes.
    let offsets: Vec<u64> =
        (0..blocks / SCATTER).map(|at| (at * SCATTER + at % SCATTER) * REQUEST_BYTES as u64).collect();
    offsets.iter().try_for_each(|offset| client.write(*offset, &bytes))?;
    Ok(offsets)
}

/// Seconds from a connection with a resync in waiting to its end.
fn bitmap_resync(cluster: &Cluster) -> Result<f64> {
    let node = &cluster.nodes[0];
    node.ctl("pause-sync r0")?;
    node.ctl("connect r0")?;
    node.wait("a paused resync", |status| replication(status).starts_with("PausedSync"))?;
    let begun = Instant::now();
    node.ctl("resume-sync r0")?;
    node.ctl("wait-sync r0 --timeout 600")?;
    Ok(begun.elapsed().as_secs_f64())
}

fn replication(status: &serde_json::Value) -> String {
    let state = &status["connections"][0]["peer_devices"][0]["replication-state"];
    state.as_str().unwrap_or_default().to_string()
}

/// The 99th percentile of a write, with a resync and without.
fn noticed(args: &Args, dir: &Path, programs: &Path, report: &mut Report) -> Result<()> {
    let kinds = [("defaults", "", Some(2.0)), ("c-max-rate 4G", NO_LIMIT, None)];
    for (kind, disk_options, goal) in kinds {
        let meaning =
            "p99 of 4k writes, one at a time, while the peer is resynchronised over and over, by the p99 without";
        let name = format!("NBD on tmpfs: p99 during a resync, {kind}");
        let mut figure = Figure::new(name, "times that without", goal, meaning);
        let size_bytes = args.size_mib << 20;
        let setup = Setup { dir, programs, nodes: TWO, resources: 1, size_bytes, disk_options, written: true };
        let cluster = Cluster::start(&setup)?;
        cluster.promote_as_equal()?;
        for round in 0..args.rounds {
            println!("round {} of {}: an application during a resync, {kind}", round + 1, args.rounds);
            let calm = load::run_one(APPLICATION, &cluster.uri(0), args.seconds)?;
            let (busy, resynced) = during_resync(&cluster, args.seconds)?;
            figure.values.push(busy.p99_us / calm.p99_us);
            report.notes.push(format!(
                "p99 during a resync, {kind}: {:.0} us, without {:.0} us; {:.0} requests/s, without {:.0}; {resynced}",
                busy.p99_us, calm.p99_us, busy.requests_per_second, calm.requests_per_second
            ));
        }
        cluster.finish()?;
        report.figures.push(figure);
    }
    Ok(())
}

/// The load, with a resync under way from its begin to its end. Also what the resync did, in words.
fn during_resync(cluster: &Cluster, seconds: f64) -> Result<(load::Outcome, String)> {
    let node = &cluster.nodes[0];
    node.ctl("invalidate-remote r0")?;
    node.wait("a resync", |status| replication(status) == "SyncSource")?;
    let (uri, mut begun, mut most) = (cluster.uri(0), 1, 0.0_f64);
    let outcome = std::thread::scope(|scope| {
        let load = scope.spawn(|| load::run_one(APPLICATION, &uri, seconds));
        while !load.is_finished() {
            let status = node.status()?;
            let rate = status["connections"][0]["peer_devices"][0]["db/dt [MiB/s]"].as_f64();
            most = rate.map_or(most, |rate| rate.max(most));
            if replication(&status) == "Established" {
                node.ctl("invalidate-remote r0")?;
                begun += 1;
            }
            std::thread::sleep(POLL);
        }
        load.join().expect("the load does not panic")
    })?;
    if replication(&node.status()?) != "SyncSource" && begun == 1 {
        bail!("the resync ended under the load, and no other began");
    }
    node.ctl("wait-sync r0 --timeout 600").context("the last resync")?;
    Ok((outcome, format!("{begun} resyncs, up to {most:.0} MiB/s")))
}
