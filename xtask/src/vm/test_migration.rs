//! `xtask vm test-migration`: docs/migrate-from-drbd.md, command by command, on two machines of which each changes from the
//! kernel's DRBD 8.4 to replicad and back, below a mounted file system that a service writes to. `test_migration.sh` has what
//! both guests know; alice's script types, bob's does what it is asked.

use super::image::Image;
use super::kernel::{Flavour, Kernel};
use super::machine::{Builder, Network, Vm, create_disk};
use super::test_replicad::{SMALL_DISK_BYTES, equal_copies, said};
use super::{DRBD_LIB, Lab, judge};
use crate::{packages, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DOCUMENT: &str = include_str!("../../../docs/migrate-from-drbd.md");
const ALICE: &str = include_str!("test_migration_alice.sh");
const BOB: &str = include_str!("test_migration_bob.sh");

/// Every place to turn around at: after step N follows 7 - N.
const ALL_PATHS: &str = "1 6 1 2 5 6 1 2 3 4 5 6";
/// All the way and back.
const QUICK_PATH: &str = "1 2 3 4 5 6";
/// Ends a hang; far above what it takes.
const LIMIT: Duration = Duration::from_secs(7200);
/// For the emulated machines only, where half a second without an answer is nothing: into both configurations.
const TIMEOUTS: [(&str, &str); 2] = [
    ("net { protocol C;", "net { timeout 100; ping-timeout 50; connect-int 11; ping-int 11; protocol C;"),
    ("net = { ", "net = { timeout = 100, ping-timeout = 50, connect-int = 11, ping-int = 11, "),
];

pub fn quick(lab: &Lab, refresh: bool) -> Result<()> {
    println!(
        "SKIPPED: migration: turning around on the way, and other kernels, for time: cargo xtask vm test-migration"
    );
    run(lab, &Flavour::ALL[..1], refresh, QUICK_PATH)
}

pub fn main(lab: &Lab, flavours: &[Flavour], refresh: bool) -> Result<()> {
    run(lab, flavours, refresh, ALL_PATHS)
}

fn run(lab: &Lab, flavours: &[Flavour], refresh: bool, path: &str) -> Result<()> {
    let Some(image) = image_or_skip(lab, "migration")? else { return Ok(()) };
    let steps = steps(DOCUMENT)?;
    let mut failed = Vec::new();
    for flavour in flavours {
        if let Err(e) = test(lab, *flavour, refresh, &image, &format!("path='{path}'\n{steps}")) {
            eprintln!("{e:#}");
            failed.push(flavour.name());
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("the migration failed on kernel {}", failed.join(", ")) }
}

/// The programs and files that the document wants on both machines, or none after saying that `what` is skipped.
pub fn image_or_skip(lab: &Lab, what: &str) -> Result<Option<PathBuf>> {
    packages::ensure_libclang()?;
    match DRBD_LIB.map(Path::new).into_iter().find(|path| path.join("drbdadm-84").is_file()) {
        Some(utils) => image(lab, utils).map(Some),
        None => {
            eprintln!("SKIPPED: {what}: drbd-utils of this machine have no drbdadm-84");
            Ok(None)
        }
    }
}

fn image(lab: &Lab, utils: &Path) -> Result<PathBuf> {
    let mut image = Image::with_tools()?;
    for (package, program) in [("replicad", "replicad"), ("ctl", "replicactl")] {
        image.add_binary(&lab.cargo_build(&["-p", package], program)?, format!("/usr/sbin/{program}"))?;
    }
    for program in ["drbdadm-84", "drbdsetup-84"] {
        image.add_binary(&utils.join(program), format!("/usr/lib/drbd/{program}"))?;
        image.add_binary(&utils.join(program), format!("/usr/sbin/{program}"))?;
    }
    let root = workspace::root();
    image.add_file(&root.join("systemd/replicad.service"), "/etc/systemd/system/replicad.service")?;
    image.add_file(&root.join("xtask/src/vm/test_migration.sh"), "/usr/lib/migration.sh")?;
    let files = lab.run_dir("migration-files")?;
    for (at, (guest, content)) in files_of(DOCUMENT)?.into_iter().enumerate() {
        let here = files.join(at.to_string());
        fs::write(&here, with_timeouts(&content)?).with_context(|| format!("cannot write {}", here.display()))?;
        image.add_file(&here, guest)?;
    }
    // Makes the folder.
    image.add_file(&root.join("systemd/replicad.service"), "/srv/empty")?;
    image.build(&lab.cache)
}

fn test(lab: &Lab, flavour: Flavour, refresh: bool, image: &Path, before: &str) -> Result<()> {
    let Some(kernel) = lab.kernel_or_skip(flavour, refresh, "migration") else { return Ok(()) };
    let dir = lab.run_dir(&format!("migration-{}", flavour.name()))?;
    let title = format!("migration {}", kernel.release);
    let network = Network::new()?;
    let disks = [dir.join("alice.raw"), dir.join("bob.raw")];
    for disk in &disks {
        create_disk(disk, SMALL_DISK_BYTES)?;
    }
    let (alice_dir, bob_dir) = (dir.join("alice"), dir.join("bob"));
    let bob = guest(&kernel, image, BOB).disk(&disks[1]).network(network, 2).start(&lab.cache, &bob_dir)?;
    let alice_script = format!("{before}\n{ALICE}");
    let alice = guest(&kernel, image, &alice_script).disk(&disks[0]).network(network, 1).run(&lab.cache, &alice_dir)?;
    // If she failed, nobody tells bob to end: dropped, it is switched off.
    judge(&title, &alice, &alice_dir)?;
    judge(&format!("{title}, bob"), &bob.wait()?, &bob_dir)?;
    let bytes = said(&alice, "size ").next().context("alice said no size")?.parse()?;
    equal_copies(&disks[0], &disks[1], bytes)?;
    println!("{title}: the two disks, byte by byte ok");
    Ok(())
}

/// A machine with both kinds of DRBD.
pub fn guest(kernel: &Kernel, image: &Path, script: &str) -> Builder {
    Vm::builder(kernel, image)
        .cpus(1)
        .memory_mib(512)
        .module("ublk_drv")
        .module("drbd usermode_helper=/bin/true")
        .timeout(LIMIT)
        .script(script)
}

/// A block of the document between ``` lines, and the mark before it that says where it belongs: `STEP: NODE` or
/// `both: PATH`.
struct Block<'a> {
    mark: &'a str,
    lines: Vec<&'a str>,
}

fn blocks(document: &str) -> Vec<Block<'_>> {
    let (mut blocks, mut mark, mut open) = (Vec::new(), "", None::<Vec<&str>>);
    for line in document.lines() {
        match &mut open {
            Some(_) if line.starts_with("```") => {
                let lines = open.take().expect("inside of a block");
                blocks.push(Block { mark: std::mem::take(&mut mark), lines });
            }
            Some(lines) => lines.push(line),
            None if line.starts_with("```") => open = Some(Vec::new()),
            None => {
                if let Some(found) = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->")) {
                    mark = found;
                }
            }
        }
    }
    blocks
}

/// Path and content of each file that the document shows.
fn files_of(document: &str) -> Result<Vec<(String, String)>> {
    let marked = blocks(document).into_iter().filter_map(|block| {
        let path = block.mark.strip_prefix("both: ")?;
        Some((path.to_owned(), block.lines.join("\n") + "\n"))
    });
    let files: Vec<_> = marked.collect();
    ensure!(files.len() == 2, "the document shows {} configuration files, not two: has it other marks?", files.len());
    Ok(files)
}

fn with_timeouts(content: &str) -> Result<String> {
    let mut content = content.to_owned();
    let before = content.len();
    for (from, to) in TIMEOUTS {
        content = content.replacen(from, to, 1);
    }
    ensure!(content.len() > before, "no net section to give timeouts to in:\n{content}");
    Ok(content)
}

/// Shell functions step_begin, step_1, …: the document's blocks in their order.
fn steps(document: &str) -> Result<String> {
    let mut text = String::new();
    let mut commands = 0;
    let all = blocks(document);
    for step in ["begin", "1", "2", "3", "4", "5", "6"] {
        writeln!(text, "step_{step}() {{")?;
        let mine = all.iter().filter_map(|block| Some((block, block.mark.strip_prefix(step)?.strip_prefix(": ")?)));
        for (at, (block, node)) in mine.enumerate() {
            ensure!(["alice", "bob"].contains(&node), "step {step}: no machine is called {node}");
            writeln!(text, "typed_on {node} \"$(cat <<'TYPED'")?;
            for line in block.lines.iter().filter(|line| !line.trim().is_empty()) {
                writeln!(text, "{}", typed(line)?)?;
                commands += 1;
            }
            writeln!(text, "TYPED\n)\"\nafter_block {step} {}", at + 1)?;
        }
        writeln!(text, "}}")?;
    }
    ensure!(commands > 50, "only {commands} commands were found: has the document other marks?");
    Ok(text)
}

/// A line of a block as a call of type_in. What has to come of it stands behind it: `# says TEXT`, `# soon says TEXT`.
fn typed(line: &str) -> Result<String> {
    let (command, comment) = line.split_once(" # ").unwrap_or((line, ""));
    let expected = match (comment.strip_prefix("says "), comment.strip_prefix("soon says ")) {
        (Some(text), _) => format!(" says '{}'", text.trim()),
        (_, Some(text)) => format!(" soon '{}'", text.trim()),
        _ if comment.contains("says") => {
            bail!("'{line}': a comment says `says TEXT` or `soon says TEXT`, or nothing of it")
        }
        _ => String::new(),
    };
    ensure!(!line.contains('\''), "'{line}': no quotes, please: the test puts its own around it");
    Ok(format!("type_in '{}'{expected}", command.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_has_to_come_of_it() {
        assert_eq!(typed("drbdadm up r0").unwrap(), "type_in 'drbdadm up r0'");
        assert_eq!(typed("drbdadm role r0   # says Primary/").unwrap(), "type_in 'drbdadm role r0' says 'Primary/'");
        assert_eq!(typed("a # soon says B").unwrap(), "type_in 'a' soon 'B'");
        assert_eq!(typed("a # because of b").unwrap(), "type_in 'a'");
        assert!(typed("a # it says b").is_err());
        assert!(typed("echo 'a'").is_err());
    }

    #[test]
    fn the_document_has_all_steps_and_nothing_unmarked() {
        let steps = steps(DOCUMENT).unwrap();
        for step in 1..=6 {
            assert!(steps.contains(&format!("step_{step}() {{\ntyped_on ")), "step {step} is empty:\n{steps}");
        }
        for (path, content) in files_of(DOCUMENT).unwrap() {
            assert_ne!(with_timeouts(&content).unwrap(), content, "{path}");
        }
        let unmarked: Vec<_> = blocks(DOCUMENT).into_iter().filter(|block| block.mark.is_empty()).collect();
        assert_eq!(unmarked.len(), 1, "only the picture is not run");
    }

    /// After step N follows 7 - N, so each way to turn around is gone, and the way ends where it began.
    #[test]
    fn every_turn_is_tried() {
        let path: Vec<u8> = ALL_PATHS.split(' ').map(|step| step.parse().unwrap()).collect();
        let mut after = 0;
        for step in &path {
            assert!([after % 6 + 1, 7 - after].contains(step), "step {step} does not follow {after}");
            after = *step;
        }
        assert_eq!(after, 6);
        for turn in 1..=3 {
            assert!(path.windows(2).any(|pair| pair == [turn, 7 - turn]), "nobody turns around after step {turn}");
        }
    }
}
