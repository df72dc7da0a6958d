//! `xtask vm test-interop`: a kernel's DRBD 8.4 and replicad as the two nodes of a resource, in one machine and two
//! network namespaces. `test_interop.sh` is what the guest runs, after `replicad.sh`; what it shows stands in
//! docs/compatibility.md.

use super::image::Image;
use super::interop_matrix as matrix;
use super::kernel::{Flavour, Kernel};
use super::machine::{Report, Vm};
use super::test_interop_killed as killed;
use super::{DRBDSETUP_84, Lab, judge};
use crate::packages;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Duration;

const COMMON: &str = include_str!("replicad.sh");
const DISKS: &str = include_str!("test_interop_disks.sh");
const VOLUMES: &str = include_str!("test_interop_volumes.sh");
const DIGESTS: &str = include_str!("test_interop_digests.sh");
const SCRIPT: &str = include_str!("test_interop.sh");

/// Of each RAM disk.
const DISK_MIB: u64 = 32;
/// The kernel's, ours, the state of a disk at a crash, and one for drbdmeta to try things on; or two volumes' on both sides.
/// Four more for metadata of these that is not on themselves.
const DISKS_COUNT: u64 = 8;
/// Ends a hang; far above what it takes.
const LIMIT: Duration = Duration::from_secs(7200);

pub fn quick(lab: &Lab, refresh: bool) -> Result<()> {
    let quick = matrix::quick();
    let left = matrix::tests().len() - quick.len();
    println!("SKIPPED: interop: {left} more tests with a kernel's DRBD, for time: cargo xtask vm test-interop");
    run(lab, &Flavour::ALL[..1], refresh, &quick)
}

/// `only`: names of tests, `outage_our_primary@A`, or of functions, with all their protocols.
pub fn main(lab: &Lab, flavours: &[Flavour], refresh: bool, only: &[String]) -> Result<()> {
    let tests = matrix::tests();
    if only.is_empty() {
        return run(lab, flavours, refresh, &tests);
    }
    let mut chosen: Vec<&str> = Vec::new();
    for name in only {
        let named: Vec<&str> =
            tests.iter().filter(|test| *test == name || matrix::function(test) == name).copied().collect();
        if named.is_empty() {
            bail!("no test is called {name}; there are: {}", tests.join(", "));
        }
        let fresh: Vec<&str> = named.into_iter().filter(|test| !chosen.contains(test)).collect();
        chosen.extend(fresh);
    }
    run(lab, flavours, refresh, &chosen)
}

fn run(lab: &Lab, flavours: &[Flavour], refresh: bool, tests: &[&'static str]) -> Result<()> {
    packages::ensure_libclang()?;
    let Some(drbdsetup) = DRBDSETUP_84.map(Path::new).into_iter().find(|path| path.is_file()) else {
        eprintln!("SKIPPED: interop: drbd-utils of this machine have no drbdsetup-84");
        return Ok(());
    };
    let mut image = Image::with_tools()?;
    image.add_binary(&lab.cargo_build(&["-p", "replicad"], "replicad")?, "/usr/bin/replicad")?;
    image.add_binary(&lab.cargo_build(&["-p", "ctl"], "replicactl")?, "/usr/bin/replicactl")?;
    image.add_binary(drbdsetup, "/usr/bin/drbdsetup-84")?;
    let image = image.build(&lab.cache)?;
    let mut failed = Vec::new();
    for flavour in flavours {
        if let Err(e) = test(lab, *flavour, refresh, &image, tests) {
            eprintln!("{e:#}");
            failed.push(flavour.name());
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("interop's tests failed on kernel {}", failed.join(", ")) }
}

/// In one machine what can be, then what needs two; the matrix has both.
fn test(lab: &Lab, flavour: Flavour, refresh: bool, image: &Path, tests: &[&str]) -> Result<()> {
    let Some(kernel) = lab.kernel_or_skip(flavour, refresh, "interop") else { return Ok(()) };
    let (killed, together): (Vec<&str>, Vec<&str>) = tests.iter().partition(|test| test.starts_with(killed::PREFIX));
    let mut whole = Report::default();
    let mut failures = Vec::new();
    let mut note = |(report, verdict): (Report, Result<()>)| {
        whole.results.extend(report.results);
        failures.extend(verdict.err().map(|e| format!("{e:#}")));
    };
    if !together.is_empty() {
        note(in_one_machine(lab, &kernel, flavour, image, &together)?);
    }
    if !killed.is_empty() {
        note(killed::run(lab, &kernel, &killed));
    }
    println!("{}", matrix::printed(&kernel.release, &whole));
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
}

fn in_one_machine(
    lab: &Lab,
    kernel: &Kernel,
    flavour: Flavour,
    image: &Path,
    tests: &[&str],
) -> Result<(Report, Result<()>)> {
    let dir = lab.run_dir(&format!("interop-{}", flavour.name()))?;
    let vm = Vm::builder(kernel, image)
        .memory_mib(768)
        .module("ublk_drv")
        .module("veth")
        // Its handlers would be looked for at each change of a connection.
        .module("drbd usermode_helper=/bin/true")
        .module(&format!("brd rd_nr={DISKS_COUNT} rd_size={}", DISK_MIB << 10))
        .timeout(LIMIT)
        .script(&format!("{COMMON}\n{DISKS}\n{VOLUMES}\n{DIGESTS}\ntests='{}'\n{SCRIPT}", tests.join(" ")));
    // A run that hangs in its last test has told of all the others.
    let ended = vm.run(&lab.cache, &dir).context("interop");
    let report = Report::read(&dir)?;
    let verdict = ended.and_then(|report| judge(&format!("interop {}", kernel.release), &report, &dir));
    Ok((report, verdict))
}
