//! A part of `xtask vm test-interop`: the machine with the kernel's DRBD loses its power and comes back. Two machines, as in
//! `test_migration.rs` and with its image; bob, with replicad, says when.

use super::kernel::Kernel;
use super::machine::{Builder, Network, Report, create_disk};
use super::test_migration::{self, guest};
use super::test_replicad::{SMALL_DISK_BYTES, equal_copies, said};
use super::{Lab, judge};
use anyhow::{Context, Result, ensure};

const KERNEL: &str = include_str!("test_interop_killed_kernel.sh");
const OURS: &str = include_str!("test_interop_killed_ours.sh");

/// Tests that need it are functions of `test_interop_killed_ours.sh`.
pub const PREFIX: &str = "killed_";

/// The report of the machine that stays; an error if anything is not as it should be.
pub fn run(lab: &Lab, kernel: &Kernel, tests: &[&str]) -> (Report, Result<()>) {
    let mut report = Report::default();
    let verdict = run_into(lab, kernel, tests, &mut report);
    (report, verdict)
}

fn run_into(lab: &Lab, kernel: &Kernel, tests: &[&str], report: &mut Report) -> Result<()> {
    let Some(image) = test_migration::image_or_skip(lab, "the kernel's machine killed")? else { return Ok(()) };
    let dir = lab.run_dir(&format!("interop-killed-{}", kernel.release))?;
    let title = format!("interop {} killed", kernel.release);
    let disks = [dir.join("alice.raw"), dir.join("bob.raw")];
    for disk in &disks {
        create_disk(disk, SMALL_DISK_BYTES)?;
    }
    let network = Network::new()?;
    let alice = |life: usize| -> (Builder, _) {
        let script = format!("life={life}\n{KERNEL}");
        (guest(kernel, &image, &script).disk(&disks[0]).network(network, 1), dir.join(format!("alice-{life}")))
    };
    let start = |life| {
        let (builder, dir) = alice(life);
        builder.start(&lab.cache, &dir)
    };
    let bob_dir = dir.join("bob");
    let script = format!("tests='{}'\n{OURS}", tests.join(" "));
    let mut bob = guest(kernel, &image, &script).disk(&disks[1]).network(network, 2).start(&lab.cache, &bob_dir)?;
    let mut machine = start(0)?;
    let killed = (1..).zip(tests).try_for_each(|(life, test)| -> Result<()> {
        bob.wait_said(&format!("kill {test}"))?;
        machine.power_cut()?;
        ensure!(machine.report()?.script_status.is_none(), "{title}: alice ended before she was killed");
        bob.wait_said(&format!("boot {test}"))?;
        machine = start(life)?;
        Ok(())
    });
    // Whatever ended it, what bob says of it is nearer to the cause.
    *report = bob.wait()?;
    judge(&title, report, &bob_dir)?;
    killed?;
    let last_life = machine.wait()?;
    judge(&format!("{title}, alice"), &last_life, &alice(tests.len()).1)?;
    let bytes = said(report, "size ").next().context("bob said no size")?.parse()?;
    equal_copies(&disks[0], &disks[1], bytes)?;
    println!("{title}: the two disks, byte by byte ok");
    Ok(())
}
