//! A huge disk (100 TiB) that holds nothing: what attach, connect and the exchange of bitmaps take, in time and memory.
//! Sparse files in memory; what the daemon or the metadata really fills of them shows in the room that is left.

use super::child::Used;
use super::cluster::{Cluster, NO_LIMIT, Setup, TWO};
use super::report::{Figure, Report};
use super::room::{self, Room};
use crate::demo::node::Node;
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;
use std::time::Instant;

/// Design: 32 KiB of bitmap per GiB and peer, in each daemon and in each metadata. Half of it once more for what comes
/// and goes.
const fn room_bytes(disk_bytes: u64) -> u64 {
    let bitmap_bytes = (disk_bytes >> 30) * (32 << 10);
    5 * bitmap_bytes
}

pub fn measure(tib: u64, programs: &Path, report: &mut Report) -> Result<()> {
    let what = format!("a disk of {tib} TiB");
    let size_bytes = tib << 40;
    let room = match Room::open(room_bytes(size_bytes)) {
        Ok(room) => room,
        Err(reason) => {
            report.skip(&what, &format!("{reason:#}"));
            return Ok(());
        }
    };
    if let Err(reason) = stages(&room, programs, size_bytes, report) {
        // A daemon that does not manage it is a result.
        report.skip(&format!("{what}, all or the rest of it"), &format!("{reason:#}"));
    }
    Ok(())
}

/// One after the other, each waited for.
fn stages(room: &Room, programs: &Path, size_bytes: u64, report: &mut Report) -> Result<()> {
    let (dir, disk_options) = (room.dir.as_path(), NO_LIMIT);
    let setup = Setup { dir, programs, nodes: TWO, resources: 1, size_bytes, disk_options, written: false };
    let mut clock = Clock::start(size_bytes >> 40, report);
    let mut cluster = Cluster::prepare(&setup)?;
    clock.lap("create-md, both nodes");
    cluster.run(&setup)?;
    clock.lap("start, both nodes");
    clock.memory("before attach", &cluster)?;
    let [alice, bob] = &cluster.nodes[..] else { unreachable!("two names") };
    for (node, what) in [(alice, "up (attach), first node"), (bob, "up (attach), second node")] {
        node.ctl("up r0")?;
        clock.lap(what);
    }
    alice.ctl("wait-connect r0 --timeout 300")?;
    clock.lap("connect, nothing to compare yet");
    clock.memory("attached and connected", &cluster)?;
    alice.ctl("new-current-uuid --clear-bitmap r0")?;
    alice.ctl("promote r0")?;
    clock.lap("both become UpToDate");
    differ(&cluster)?;
    clock.lap("65 writes without the peer, all over the disk");
    alice.ctl("connect r0")?;
    alice.ctl("wait-sync r0 --timeout 300")?;
    alice.wait("an equal peer", is_equal)?;
    clock.lap("connect, exchange of bitmaps, resync of 65 blocks");
    clock.memory("at the end", &cluster)?;
    clock.room(room)?;
    again(&cluster, alice, &mut clock)
}

/// A restart of one node: its bitmap comes from the disk.
fn again(cluster: &Cluster, alice: &Node, clock: &mut Clock) -> Result<()> {
    let bob = &cluster.nodes[1];
    bob.ctl("down r0")?;
    clock.lap("down, second node");
    bob.ctl("up r0")?;
    clock.lap("up again (attach), second node");
    alice.wait("an equal peer", is_equal)?;
    clock.lap("connected and compared again");
    Ok(())
}

fn is_equal(status: &Value) -> bool {
    let peer = &status["connections"][0]["peer_devices"][0];
    peer["peer-disk-state"] == "UpToDate" && peer["out-of-sync"] == 0 && peer["replication-state"] == "Established"
}

/// Some blocks all over the disk that the peer misses.
fn differ(cluster: &Cluster) -> Result<()> {
    cluster.nodes[0].ctl("disconnect r0")?;
    let mut client = e2e::Client::connect(&cluster.socket(0))?;
    let (size_bytes, bytes) = (client.size_bytes, e2e::pattern(4096, 1));
    (0..65).try_for_each(|at| client.write(size_bytes / 66 * at / 4096 * 4096, &bytes))?;
    client.flush().context("flush")
}

struct Clock<'a> {
    tib: u64,
    report: &'a mut Report,
    last: Instant,
}

const MEANING: &str = "two nodes with a sparse disk of that size in memory, as their user waits for it; bitmaps are 32 KiB \
                       per GiB and peer by the design (3.1 GiB for 100 TiB), memory is of both daemons";

impl Clock<'_> {
    fn start(tib: u64, report: &mut Report) -> Clock<'_> {
        Clock { tib, report, last: Instant::now() }
    }

    fn add(&mut self, what: &str, unit: &'static str, value: f64) {
        let name = format!("{} TiB: {what}", self.tib);
        println!("{name}: {value:.2} {unit}");
        self.report.figures.push(Figure { values: vec![value], ..Figure::new(name, unit, None, MEANING) });
    }

    fn lap(&mut self, what: &str) {
        self.add(what, "s", self.last.elapsed().as_secs_f64());
        self.last = Instant::now();
    }

    fn memory(&mut self, when: &str, cluster: &Cluster) -> Result<()> {
        let used = Used::of(&cluster.pids())?;
        self.add(&format!("memory of both daemons, {when}"), "MiB", used.resident_bytes as f64 / f64::from(1 << 20));
        self.add(&format!("CPU time of both daemons, until then: {when}"), "s", used.cpu_seconds);
        Ok(())
    }

    /// What the two disks really take.
    fn room(&mut self, room: &Room) -> Result<()> {
        self.add("filled of the two disks", "MiB", room::allocated_bytes(&room.dir)? as f64 / f64::from(1 << 20));
        Ok(())
    }
}
