//! `xtask vm test-interop`: a kernel's DRBD 8.4 and replicad as the two nodes of a resource, in one machine and two
//! network namespaces. `test_interop.sh` is what the guest runs, after `replicad.sh`; what it shows stands in
//! docs/compatibility.md.

use super::image::Image;
use super::kernel::Flavour;
use super::machine::Vm;
use super::{DRBDSETUP_84, Lab, judge};
use crate::packages;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Duration;

const COMMON: &str = include_str!("replicad.sh");
const SCRIPT: &str = include_str!("test_interop.sh");

/// Functions of the script, in this order.
const TESTS: &[&str] = &[
    "first_connect",
    "sync_from_kernel",
    "sync_from_us",
    "skip_initial_sync_ours",
    "skip_initial_sync_kernel",
    "protocol_c",
    "protocol_b",
    "protocol_a",
    "file_system",
    "outage_kernel_primary",
    "outage_our_primary",
    "fail_over_to_us",
    "fail_over_to_kernel",
    "writes_in_resync",
    "invalidate",
    "split_brain",
    "auth_sha256",
    "auth_sha1",
    "wrong_secret",
    "protocol_mismatch",
    "kernel_detach_primary",
    "kernel_detach_secondary",
    "our_detach_primary",
    "our_detach_secondary",
    "our_crash_secondary",
    "our_crash_primary",
    "our_crash_primary_kernel_takes_over",
    "switched_by_the_kernel",
    "checksum_resync",
    "verify_is_refused",
];

/// Those that every run of all tests takes along.
const QUICK: &[&str] = &[
    "first_connect",
    "sync_from_kernel",
    "sync_from_us",
    "protocol_c",
    "outage_kernel_primary",
    "outage_our_primary",
    "fail_over_to_us",
    "fail_over_to_kernel",
];

/// Of each of the two RAM disks.
const DISK_MIB: u64 = 32;
/// Ends a hang; far above what it takes.
const LIMIT: Duration = Duration::from_secs(3600);

pub fn quick(lab: &Lab, refresh: bool) -> Result<()> {
    let left = TESTS.len() - QUICK.len();
    println!("SKIPPED: interop: {left} more tests with a kernel's DRBD, for time: cargo xtask vm test-interop");
    let only: Vec<String> = QUICK.iter().map(ToString::to_string).collect();
    main(lab, &Flavour::ALL[..1], refresh, &only)
}

pub fn main(lab: &Lab, flavours: &[Flavour], refresh: bool, only: &[String]) -> Result<()> {
    if let Some(unknown) = only.iter().find(|name| !TESTS.contains(&name.as_str())) {
        bail!("no test is called {unknown}; there are: {}", TESTS.join(", "));
    }
    let tests = if only.is_empty() { TESTS.join(" ") } else { only.join(" ") };
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
        if let Err(e) = test(lab, *flavour, refresh, &image, &tests) {
            eprintln!("{e:#}");
            failed.push(flavour.name());
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("interop's tests failed on kernel {}", failed.join(", ")) }
}

fn test(lab: &Lab, flavour: Flavour, refresh: bool, image: &Path, tests: &str) -> Result<()> {
    let Some(kernel) = lab.kernel_or_skip(flavour, refresh, "interop") else { return Ok(()) };
    let dir = lab.run_dir(&format!("interop-{}", flavour.name()))?;
    let report = Vm::builder(&kernel, image)
        .memory_mib(768)
        .module("ublk_drv")
        .module("veth")
        // Its handlers would be looked for at each change of a connection.
        .module("drbd usermode_helper=/bin/true")
        .module(&format!("brd rd_nr=2 rd_size={}", DISK_MIB << 10))
        .timeout(LIMIT)
        .script(&format!("{COMMON}\ntests='{tests}'\n{SCRIPT}"))
        .run(&lab.cache, &dir)
        .context("interop")?;
    judge(&format!("interop {}", kernel.release), &report, &dir)
}
