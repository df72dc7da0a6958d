//! `xtask vm test-replicad`: the daemons on the kernel's ublk driver. In one machine, two nodes in network namespaces:
//! file systems, fail-over, protocols, a Secondary that dies, the kernel's NBD client over TCP. In two machines: a Primary that loses its power under load.
//! The scripts `test_replicad*.sh` are what the guests run, after `replicad.sh`.

use super::image::Image;
use super::kernel::{Flavour, Kernel};
use super::machine::{Builder, Network, Report, Vm, create_disk};
use super::{Lab, judge};
use crate::packages;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const COMMON: &str = include_str!("replicad.sh");
const ONE_MACHINE: &str = include_str!("test_replicad.sh");
const PRIMARY: &str = include_str!("test_replicad_primary.sh");
const SURVIVOR: &str = include_str!("test_replicad_survivor.sh");
const RETURN: &str = include_str!("test_replicad_return.sh");

/// mkfs.xfs wants 300 MiB.
const DISK_BYTES: u64 = 320 << 20;
/// Of the machines that lose power: small, because every sync is emulated.
pub const SMALL_DISK_BYTES: u64 = 192 << 20;
/// Ends a hang; far above what it takes.
const LIMIT: Duration = Duration::from_secs(900);
/// Compared at once. Bytes.
const COMPARE_BYTES: usize = 1 << 20;

/// What to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Part {
    /// Two nodes in one machine
    One,
    /// A machine each, and a power cut
    PowerCut,
}

pub fn main(lab: &Lab, flavours: &[Flavour], refresh: bool, only: Option<Part>) -> Result<()> {
    packages::ensure_libclang()?;
    let mut image = Image::with_tools()?;
    image.add_binary(&lab.cargo_build(&["-p", "replicad"], "replicad")?, "/usr/bin/replicad")?;
    image.add_binary(&lab.cargo_build(&["-p", "ctl"], "replicactl")?, "/usr/bin/replicactl")?;
    let image = image.build(&lab.cache)?;
    let mut failed = Vec::new();
    // Emulated machines mostly wait for each other: kernels side by side take little longer than one.
    std::thread::scope(|scope| {
        let running: Vec<_> = flavours
            .iter()
            .map(|flavour| (flavour, scope.spawn(|| test(lab, *flavour, refresh, &image, only))))
            .collect();
        for (flavour, test) in running {
            if let Err(e) = test.join().expect("a test returns its errors") {
                eprintln!("{e:#}");
                failed.push(flavour.name());
            }
        }
    });
    if failed.is_empty() { Ok(()) } else { bail!("replicad's tests failed on kernel {}", failed.join(", ")) }
}

/// All parts, also when one fails: each tells something of its own.
fn test(lab: &Lab, flavour: Flavour, refresh: bool, image: &Path, only: Option<Part>) -> Result<()> {
    let Some(kernel) = lab.kernel_or_skip(flavour, refresh, "replicad") else { return Ok(()) };
    let mut failures = Vec::new();
    for (part, name) in [(Part::One, "one"), (Part::PowerCut, "power-cut")] {
        if only.is_some_and(|only| only != part) {
            continue;
        }
        let dir = lab.run_dir(&format!("replicad-{name}-{}", flavour.name()))?;
        let outcome = match part {
            Part::One => one_machine(lab, &kernel, image, &dir),
            Part::PowerCut => power_cut(lab, &kernel, image, &dir),
        };
        failures.extend(outcome.err().map(|e| format!("{e:#}")));
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
}

fn guest(kernel: &Kernel, image: &Path, script: &str) -> Builder {
    Vm::builder(kernel, image).module("ublk_drv").timeout(LIMIT).script(&format!("{COMMON}\n{script}"))
}

fn one_machine(lab: &Lab, kernel: &Kernel, image: &Path, dir: &Path) -> Result<()> {
    let mut builder = guest(kernel, image, ONE_MACHINE).module("xfs").module("veth").module("nbd");
    for (name, bytes) in [("alice", DISK_BYTES), ("bob", DISK_BYTES), ("used", 64 << 20)] {
        let disk = dir.join(format!("{name}.raw"));
        create_disk(&disk, bytes)?;
        builder = builder.disk(&disk);
    }
    let report = builder.run(&lab.cache, dir)?;
    judge(&format!("replicad {}", kernel.release), &report, dir)
}

fn power_cut(lab: &Lab, kernel: &Kernel, image: &Path, dir: &Path) -> Result<()> {
    let title = format!("replicad {} power cut", kernel.release);
    let (alice_dir, bob_dir) = (dir.join("alice"), dir.join("bob"));
    let (alice_disk, bob_disk) = (dir.join("alice.raw"), dir.join("bob.raw"));
    create_disk(&alice_disk, SMALL_DISK_BYTES)?;
    create_disk(&bob_disk, SMALL_DISK_BYTES)?;
    let network = Network::new()?;
    let node =
        |script, disk, index| guest(kernel, image, script).cpus(1).memory_mib(768).disk(disk).network(network, index);

    let mut alice = node(PRIMARY, &alice_disk, 1).start(&lab.cache, &alice_dir)?;
    let mut bob = node(SURVIVOR, &bob_disk, 2).start(&lab.cache, &bob_dir)?;
    alice.wait_said("enough")?;
    alice.power_cut()?;
    let cut = alice.report()?;
    ensure!(cut.script_status.is_none(), "{title}: the guest that was cut off reported an end");
    bob.wait_said("survived")?;
    nothing_lost(&cut, &bob.report()?).with_context(|| title.clone())?;
    println!("{title}: nothing_lost ok");

    let again = alice_dir.join("again");
    let again_report = node(RETURN, &alice_disk, 1).run(&lab.cache, &again)?;
    let bob_report = bob.wait()?;
    judge(&format!("{title}, survivor"), &bob_report, &bob_dir)?;
    judge(&format!("{title}, return"), &again_report, &again)?;
    let data_bytes = said(&bob_report, "size ").next().context("the survivor said no size")?.parse()?;
    equal_copies(&alice_disk, &bob_disk, data_bytes)?;
    println!("{title}: equal_copies ok");
    Ok(())
}

pub fn said<'a>(report: &'a Report, what: &'a str) -> impl Iterator<Item = &'a str> {
    report.said.iter().filter_map(move |line| line.strip_prefix(what))
}

/// Every file that the Primary said was durable is on the survivor, with the same content.
fn nothing_lost(primary: &Report, survivor: &Report) -> Result<()> {
    let found: BTreeMap<&str, &str> = said(survivor, "found ").filter_map(|line| line.split_once(' ')).collect();
    let mut durable = 0;
    for (number, sum) in said(primary, "durable ").filter_map(|line| line.split_once(' ')) {
        durable += 1;
        match found.get(number) {
            None => bail!("file {number} was durable and is gone; the survivor has {}", found.len()),
            Some(there) if *there != sum => bail!("file {number} was durable with {sum} and is now {there}"),
            Some(_) => {}
        }
    }
    ensure!(durable >= 10, "the Primary said only {durable} files to be durable");
    Ok(())
}

/// The data areas of the two disks, byte by byte.
pub fn equal_copies(one: &Path, other: &Path, bytes: u64) -> Result<()> {
    ensure!(bytes > SMALL_DISK_BYTES / 2, "a data area of {bytes} bytes is not what was made");
    let files = [File::open(one)?, File::open(other)?];
    let mut at = 0;
    while at < bytes {
        let len = usize::try_from(bytes - at).unwrap_or(COMPARE_BYTES).min(COMPARE_BYTES);
        let mut parts = [vec![0; len], vec![0; len]];
        for (file, part) in files.iter().zip(&mut parts) {
            file.read_exact_at(part, at)?;
        }
        if let Some(differs) = parts[0].iter().zip(&parts[1]).position(|(a, b)| a != b) {
            bail!("{} and {} differ at byte {} of {bytes}", one.display(), other.display(), at + differs as u64);
        }
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Report {
        Report { said: lines.iter().map(|line| (*line).to_owned()).collect(), ..Report::default() }
    }

    #[test]
    fn a_lost_or_changed_file_is_seen() {
        let lines: Vec<String> = (0..10).map(|n| format!("{n} sum{n}")).collect();
        let of = |word: &str, count: usize| -> Vec<String> {
            lines[..count].iter().map(|line| format!("{word} {line}")).collect()
        };
        let make = |lines: Vec<String>| report(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        let primary = make(of("durable", 10));
        nothing_lost(&primary, &make(of("found", 10))).unwrap();
        assert!(nothing_lost(&primary, &make(of("found", 9))).is_err());
        let mut changed = of("found", 9);
        changed.push("found 9 another".into());
        assert!(nothing_lost(&primary, &make(changed)).is_err());
        assert!(nothing_lost(&make(of("durable", 3)), &make(of("found", 3))).is_err());
    }

    #[test]
    fn copies_that_differ_in_one_byte_are_seen() {
        let dir = std::env::temp_dir().join(format!("replicad-copies-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (one, other) = (dir.join("one"), dir.join("other"));
        create_disk(&one, SMALL_DISK_BYTES).unwrap();
        create_disk(&other, SMALL_DISK_BYTES).unwrap();
        equal_copies(&one, &other, SMALL_DISK_BYTES - 4096).unwrap();
        File::options().write(true).open(&other).unwrap().write_all_at(b"x", SMALL_DISK_BYTES - 5000).unwrap();
        let error = equal_copies(&one, &other, SMALL_DISK_BYTES - 4096).unwrap_err().to_string();
        assert!(error.contains(&format!("byte {}", SMALL_DISK_BYTES - 5000)), "{error}");
        assert!(equal_copies(&one, &other, 0).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
