//! `xtask vm bench`: replicad on real ublk against what a user has without it, in one boot of one machine: against a
//! plain ublk pass-through, and against the kernel's own DRBD. `bench.sh` is what the guest runs, after `replicad.sh`.
//!
//! All disks are RAM disks of the guest, and the machine has one processor: no disk hides what software costs, no
//! scheduling between processors makes it vary. Rounds of short jobs, ours and theirs in turn.
//!
//! Two clocks, a boot each, because neither alone is fair. By time, a busy host makes the numbers jump, and emulation
//! makes switches between programs far dearer than hardware does, which is what a daemon does more of than a driver.
//! By instructions, ratios repeat to a percent, but such a switch costs nothing beyond its code.

use super::image::Image;
use super::kernel::{Flavour, Kernel};
use super::machine::{INSTRUCTION_NS, Report, Vm};
use super::{DRBDSETUP_84, Lab, judge};
use crate::bench::Row;
use crate::{packages, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;

const COMMON: &str = include_str!("replicad.sh");
const SCRIPT: &str = include_str!("bench.sh");

/// What the jobs use of each RAM disk, all written before the first round.
const HOT_MIB: u64 = 64;
/// Of each RAM disk: 512 extents of the activity log, of which the pairs for writes beyond it keep 67 hot. A page of a RAM
/// disk takes memory once it is written.
const DISK_MIB: u64 = 2048;
/// What is written of the disks, twice what the daemons take, and fio.
const MEMORY_MIB: u32 = 6144;
/// Ends a hang: far above what a round and the rest take.
const LIMIT_PER_ROUND: Duration = Duration::from_secs(180);
const LIMIT_OF_THE_REST: Duration = Duration::from_secs(300);

/// By instructions, a round with each side first; more would say the same.
const ROUNDS_BY_INSTRUCTIONS: u32 = 2;

/// Options of `bench` and of `vm bench` that concern the machine.
#[derive(clap::Args)]
pub struct MachineArgs {
    /// Kernel of the machine
    #[arg(long, value_enum, default_value = "7")]
    kernel: Flavour,
    /// Clock of the machine; default: one boot with each
    #[arg(long, value_enum)]
    clock: Option<Clock>,
    /// Rounds by time; the median counts. About half a minute each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    vm_rounds: u32,
    /// Only rows whose short name begins so: alone.w1, c.w, cold …
    #[arg(long)]
    vm_row: Option<String>,
}

/// What the guest's time is.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Clock {
    Time,
    /// Those that the guest's processor executed, in the kernel too
    Instructions,
}

impl Clock {
    const ALL: [Clock; 2] = [Clock::Instructions, Clock::Time];

    const fn name(self) -> &'static str {
        match self {
            Clock::Time => "time",
            Clock::Instructions => "instructions",
        }
    }
    const fn unit(self) -> &'static str {
        match self {
            Clock::Time => "requests/s",
            Clock::Instructions => "requests/10^9 instructions",
        }
    }
    /// What counts of a job, and what comes before it.
    const fn duration(self) -> &'static str {
        match self {
            Clock::Time => "runtime=600ms\nramp_time=200ms\n",
            Clock::Instructions => "runtime=300ms\nramp_time=100ms\n",
        }
    }
    /// In its unit, from what the guest took for requests per second.
    fn rate(self, requests_per_second: f64) -> f64 {
        match self {
            Clock::Time => requests_per_second,
            Clock::Instructions => requests_per_second * f64::from(INSTRUCTION_NS),
        }
    }
}

/// What replicad is compared with. Devices are those that `bench.sh` makes.
#[derive(Clone, Copy)]
enum Against {
    PassThrough,
    ZeroCopy,
    DrbdC,
    DrbdA,
    /// Protocol C, on a working set far beyond the activity log.
    DrbdCold,
}

impl Against {
    const fn id(self) -> &'static str {
        match self {
            Against::PassThrough => "alone",
            Against::ZeroCopy => "zero",
            Against::DrbdC => "c",
            Against::DrbdA => "a",
            Against::DrbdCold => "cold",
        }
    }
    const fn ours(self) -> (&'static str, &'static str) {
        match self {
            Against::PassThrough | Against::ZeroCopy => ("ublk, no peer", "/dev/ublkb1"),
            Against::DrbdC => ("ublk, C", "/dev/ublkb3"),
            Against::DrbdA => ("ublk, A", "/dev/ublkb4"),
            Against::DrbdCold => ("ublk, C, beyond the log", "/dev/ublkb6"),
        }
    }
    const fn theirs(self) -> (&'static str, &'static str) {
        match self {
            Against::PassThrough => ("ublk pass-through", "/dev/ublkb2"),
            Against::ZeroCopy => ("the same without a copy", "/dev/ublkb5"),
            Against::DrbdC => ("kernel DRBD 8.4, C", "/dev/drbd0"),
            Against::DrbdA => ("kernel DRBD 8.4, A", "/dev/drbd2"),
            Against::DrbdCold => ("kernel DRBD 8.4, C", "/dev/drbd4"),
        }
    }
    const fn meaning(self) -> &'static str {
        match self {
            Against::PassThrough => "one node's engine, activity log and store between ublk and a RAM disk",
            Against::ZeroCopy => "the same, and the pass-through's disk reads into the application's pages",
            Against::DrbdC | Against::DrbdA => "two nodes in one machine, a RAM disk each",
            Against::DrbdCold => "the same, on 2 GiB with 67 extents in the activity log",
        }
    }
    /// Of a device, how much the jobs use.
    const fn size_mib(self) -> u64 {
        match self {
            // Short of the metadata at its end.
            Against::DrbdCold => DISK_MIB - 8,
            Against::PassThrough | Against::ZeroCopy | Against::DrbdC | Against::DrbdA => HOT_MIB,
        }
    }
}

/// What fio does.
#[derive(Clone, Copy)]
struct Load {
    id: &'static str,
    name: &'static str,
    /// fio's `rw`
    pattern: &'static str,
    block_kib: u32,
    depth: u32,
}

const WRITE_4K: Load = Load { id: "w1", name: "4k random write", pattern: "randwrite", block_kib: 4, depth: 1 };
const WRITES_4K: Load = Load { id: "w32", name: "4k random write", pattern: "randwrite", block_kib: 4, depth: 32 };
const READS_4K: Load = Load { id: "r32", name: "4k random read", pattern: "randread", block_kib: 4, depth: 32 };
const READS_64K: Load = Load { id: "r64k", name: "64k random read", pattern: "randread", block_kib: 64, depth: 8 };
const WRITES_64K: Load = Load { id: "w64k", name: "64k random write", pattern: "randwrite", block_kib: 64, depth: 8 };
const WRITES_1M: Load = Load { id: "w1m", name: "1M sequential write", pattern: "write", block_kib: 1024, depth: 4 };

/// One row of the table: a load, on our device and on theirs.
#[derive(Clone, Copy)]
struct Case {
    against: Against,
    load: Load,
    /// What the ratio should be at least.
    goal: f64,
}

/// fio's name of a job is CASE/SIDE.
const SIDES: [&str; 2] = ["ours", "theirs"];

impl Case {
    fn id(self) -> String {
        format!("{}.{}", self.against.id(), self.load.id)
    }

    fn job(self, side: &str) -> String {
        let Load { pattern, block_kib, depth, .. } = self.load;
        let (_, device) = if side == SIDES[0] { self.against.ours() } else { self.against.theirs() };
        let (id, size_mib) = (self.id(), self.against.size_mib());
        format!("[{id}/{side}]\nfilename={device}\nrw={pattern}\nbs={block_kib}k\niodepth={depth}\nsize={size_mib}m\n")
    }

    fn row(self, kernel: &Kernel, clock: Clock) -> Row {
        let Load { name, depth, .. } = self.load;
        Row {
            name: format!("{}: {name}, depth {depth}, by {}", self.against.ours().0, clock.name()),
            unit: clock.unit(),
            ours: Vec::new(),
            probe: Vec::new(),
            divisor: self.against.theirs().0,
            goal: Some(self.goal),
            meaning: self.against.meaning(),
            machine: Some(format!("QEMU, one processor, kernel {}", kernel.release)),
        }
    }
}

fn cases() -> Vec<Case> {
    use Against::{DrbdA, DrbdC, DrbdCold, PassThrough, ZeroCopy};
    let alone = [WRITE_4K, WRITES_4K, READS_4K, WRITES_64K, WRITES_1M].map(|load| (PassThrough, load, 0.95));
    let zero_copy = [READS_4K, READS_64K].map(|load| (ZeroCopy, load, 0.95));
    let replicated = [
        (DrbdC, WRITE_4K, 1.3),
        (DrbdC, WRITES_4K, 0.9),
        // A device that a program serves begins far behind: what counts is the row without a copy.
        (DrbdC, READS_4K, 0.95),
        (DrbdC, WRITES_64K, 0.65),
        (DrbdC, WRITES_1M, 0.6),
        (DrbdA, WRITE_4K, 1.1),
        (DrbdCold, WRITE_4K, 1.8),
        (DrbdCold, WRITES_4K, 2.0),
    ];
    let all = [&alone[..], &zero_copy, &replicated].concat();
    all.into_iter().map(|(against, load, goal)| Case { against, load, goal }).collect()
}

/// Runs the machine with each clock and gives its rows. None, said loudly, if there is no kernel for it.
pub fn rows(args: &MachineArgs, refresh: bool) -> Result<Vec<Row>> {
    let lab = Lab::open()?;
    let Some(kernel) = lab.kernel_or_skip(args.kernel, refresh, "ratios on real ublk") else { return Ok(Vec::new()) };
    let image = image(&lab)?;
    let clocks = args.clock.as_ref().map_or(&Clock::ALL[..], std::slice::from_ref);
    let mut rows = Vec::new();
    for clock in clocks {
        rows.extend(boot(&lab, &kernel, &image, *clock, args)?);
    }
    Ok(rows)
}

fn boot(lab: &Lab, kernel: &Kernel, image: &Path, clock: Clock, args: &MachineArgs) -> Result<Vec<Row>> {
    let rounds = if clock == Clock::Time { args.vm_rounds } else { ROUNDS_BY_INSTRUCTIONS };
    let title = format!("bench {} by {}", kernel.release, clock.name());
    let dir = lab.run_dir(&format!("bench-{}-{}", kernel.release, clock.name()))?;
    let mut cases = cases();
    if let Some(begin) = &args.vm_row {
        cases.retain(|case| case.id().starts_with(begin));
        ensure!(!cases.is_empty(), "no row's short name begins with '{begin}'");
    }
    println!("{title}: {rounds} rounds");
    let builder = Vm::builder(kernel, image)
        .cpus(1)
        .memory_mib(MEMORY_MIB)
        .module("ublk_drv")
        .module("veth")
        // Its handlers would be looked for at each change of a connection.
        .module("drbd usermode_helper=/bin/true")
        .module(&format!("brd rd_nr=15 rd_size={}", DISK_MIB << 10))
        .timeout(LIMIT_OF_THE_REST + LIMIT_PER_ROUND * rounds)
        .script(&script(&cases, clock, rounds));
    let builder = if clock == Clock::Instructions { builder.clock_by_instructions() } else { builder };
    let report = builder.run(&lab.cache, &dir)?;
    judge(&title, &report, &dir)?;
    let mut rows: Vec<Row> = cases.iter().map(|case| case.row(kernel, clock)).collect();
    read(&report, &cases, clock, &mut rows)?;
    for row in &rows {
        let complete = [&row.ours, &row.probe].iter().all(|side| side.len() == rounds as usize);
        ensure!(complete, "{}: not measured in every round; see {}", row.name, dir.display());
    }
    Ok(rows)
}

fn image(lab: &Lab) -> Result<PathBuf> {
    packages::ensure_libclang()?;
    let programs = workspace::build_programs("release")?;
    let examples = workspace::build("release", &["-p", "ublk-frontend", "--example", "memdisk"])?.join("examples");
    let drbdsetup = DRBDSETUP_84.map(Path::new).into_iter().find(|path| path.is_file());
    let drbdsetup = drbdsetup.context("drbd-utils of this machine have no drbdsetup-84")?;
    let mut image = Image::with_tools()?;
    for program in [&programs.join("replicad"), &programs.join("replicactl"), &examples.join("memdisk"), drbdsetup] {
        let name = program.file_name().expect("a program has a name");
        image.add_binary(program, Path::new("/usr/bin").join(name))?;
    }
    image.build(&lab.cache)
}

fn script(cases: &[Case], clock: Clock, rounds: u32) -> String {
    let (ours_first, theirs_first) = (jobs(cases, clock, SIDES), jobs(cases, clock, [SIDES[1], SIDES[0]]));
    format!(
        "{COMMON}\nrounds={rounds}\nhot_mib={HOT_MIB}\n\
         cat >/tmp/ours_first <<'JOBS'\n{ours_first}JOBS\ncat >/tmp/theirs_first <<'JOBS'\n{theirs_first}JOBS\n{SCRIPT}"
    )
}

/// A round: one job after the other. What fio does besides I/O weighs the same on both sides and brings every ratio
/// nearer to one, so it does as little as it can.
fn jobs(cases: &[Case], clock: Clock, sides: [&str; 2]) -> String {
    const COMMON: &str = "[global]\nioengine=libaio\ndirect=1\nthread=1\nstonewall\ntime_based=1\nnorandommap=1\n\
                          gtod_reduce=1\nscramble_buffers=0\n";
    let jobs = cases.iter().flat_map(|case| sides.map(|side| case.job(side)));
    [COMMON, clock.duration()].map(str::to_owned).into_iter().chain(jobs).collect()
}

/// `measured CASE/SIDE KIB_READ MS KIB_WRITTEN MS` lines into the rows of their cases.
fn read(report: &Report, cases: &[Case], clock: Clock, rows: &mut [Row]) -> Result<()> {
    for line in report.said.iter().filter_map(|line| line.strip_prefix("measured ")) {
        let (at, side, requests) = measured(line, cases).with_context(|| format!("the guest said '{line}'"))?;
        let row = &mut rows[at];
        let series = if side == SIDES[0] { &mut row.ours } else { &mut row.probe };
        series.push(clock.rate(requests));
    }
    Ok(())
}

/// Number of the case, side, requests per second.
fn measured<'a>(line: &'a str, cases: &[Case]) -> Result<(usize, &'a str, f64)> {
    let mut words = line.split(' ');
    let (id, side) = words.next().and_then(|job| job.split_once('/')).context("no job")?;
    let at = cases.iter().position(|case| case.id() == id).context("no such case")?;
    ensure!(SIDES.contains(&side), "no such side");
    let numbers = words.map(|word| Ok(word.parse()?)).collect::<Result<Vec<f64>>>()?;
    let [kib_read, read_ms, kib_written, write_ms] = numbers[..] else { bail!("not four numbers") };
    let (kib, ms) = if kib_read > 0.0 { (kib_read, read_ms) } else { (kib_written, write_ms) };
    ensure!(kib > 0.0 && ms > 0.0, "nothing was done");
    Ok((at, side, kib / f64::from(cases[at].load.block_kib) / (ms / 1000.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_case_has_a_job_per_side_and_a_name_of_its_own() {
        let cases = cases();
        let ids: BTreeSet<String> = cases.iter().map(|case| case.id()).collect();
        assert_eq!(ids.len(), cases.len());
        let file = jobs(&cases, Clock::Time, SIDES);
        assert_eq!(file.matches("filename=").count(), 2 * cases.len());
        let first = "[alone.w1/ours]\nfilename=/dev/ublkb1\nrw=randwrite\nbs=4k\niodepth=1\nsize=64m\n\
                     [alone.w1/theirs]\nfilename=/dev/ublkb2\n";
        assert!(file.contains(first), "{file}");
    }

    #[test]
    fn what_fio_counted_becomes_requests_per_second() {
        let cases = cases();
        let (at, side, requests) = measured("alone.w1/ours 0 0 8000 1000", &cases).unwrap();
        assert_eq!((at, side, requests), (0, "ours", 2000.0));
        let (at, side, requests) = measured("c.w64k/theirs 0 0 64000 500", &cases).unwrap();
        assert_eq!((cases[at].id().as_str(), side, requests), ("c.w64k", "theirs", 2000.0));
        let (_, _, requests) = measured("alone.r32/theirs 4000 1000 0 0", &cases).unwrap();
        assert_eq!(requests, 1000.0);
    }

    #[test]
    fn a_job_that_did_nothing_is_no_measurement() {
        let wrong = [
            "alone.w1/ours 0 0 0 1000",
            "alone.w1/ours 0 0 8000",
            "alone.w1/nobodys 0 0 8000 1000",
            "b.w1/ours 0 0 1 1",
        ];
        wrong.iter().for_each(|line| assert!(measured(line, &cases()).is_err(), "{line}"));
    }
}
