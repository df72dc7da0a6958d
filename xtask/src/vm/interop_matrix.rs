//! What `xtask vm test-interop` has to show: one row for each thing that a pair of a kernel's DRBD 8.4 and replicad does,
//! with the tests that show it for each direction and protocol. Printed with the results; docs/compatibility.md has the
//! same table, and a test below compares the two.

use super::machine::{Report, Verdict};
use std::fmt::Write;

/// A test is a function of test_interop.sh, or of the files that come with it; behind `@` its protocol, where that is not C.
pub struct Row {
    what: &'static str,
    /// The kernel is Primary, or does it, or wrote the disk.
    kernel: &'static [&'static str],
    /// replicad is or does.
    ours: &'static [&'static str],
}

const fn row(what: &'static str, kernel: &'static [&'static str], ours: &'static [&'static str]) -> Row {
    Row { what, kernel, ours }
}

const NONE: &[&str] = &[];

/// In the order in which they run.
pub const ROWS: &[Row] = &[
    row("connect, both fresh", &["first_connect"], &["first_connect"]),
    row("forced promotion, initial full sync", &["sync_from_kernel"], &["sync_from_us"]),
    row("`new-current-uuid --clear-bitmap`", &["skip_initial_sync_kernel"], &["skip_initial_sync_ours"]),
    row(
        "promote, write, demote, by turns; a second Primary is refused; writes of 512 bytes to 4 MiB, flush, FUA, \
         discard, write-zeroes, depth 16",
        &["roles", "roles@B", "roles@A"],
        &["roles", "roles@B", "roles@A"],
    ),
    row("a file system handed over both ways", &["file_system"], &["file_system"]),
    row(
        "outage (own disconnect, the peer's, link down), 40 blocks written: exactly these are resynced",
        &["outage_kernel_primary", "outage_kernel_primary@B", "outage_kernel_primary@A"],
        &["outage_our_primary", "outage_our_primary@B", "outage_our_primary@A"],
    ),
    row(
        "fail-over while one is away, the old Primary comes back as target: exactly the difference",
        &["fail_over_to_kernel", "fail_over_to_kernel@B", "fail_over_to_kernel@A"],
        &["fail_over_to_us", "fail_over_to_us@B", "fail_over_to_us@A"],
    ),
    row("writes during the resync", &["writes_in_resync"], &["writes_in_resync"]),
    row("`invalidate`, `invalidate-remote`", &["invalidate"], &["invalidate"]),
    row("split brain, found by both, solved with `discard-my-data`", &["split_brain"], &["split_brain"]),
    row("CRAM-HMAC sha256, sha1", &["auth_sha256", "auth_sha1"], &["auth_sha256", "auth_sha1"]),
    row("a wrong secret ends in StandAlone on both", &["wrong_secret"], &["wrong_secret"]),
    row("different protocols: StandAlone on both", &["protocol_mismatch"], &["protocol_mismatch"]),
    row(
        "detach on the Primary: the peer serves reads and takes writes; attach again",
        &["kernel_detach_primary", "kernel_detach_primary@A"],
        &["our_detach_primary", "our_detach_primary@A"],
    ),
    row("detach and attach on the Secondary", &["kernel_detach_secondary"], &["our_detach_secondary"]),
    row(
        "the daemon is killed as Secondary: the difference; as Primary: hot extents; the peer took over meanwhile",
        NONE,
        &[
            "our_crash_secondary",
            "our_crash_primary",
            "our_crash_primary@B",
            "our_crash_primary@A",
            "our_crash_primary_kernel_takes_over",
        ],
    ),
    row("protocol switched by the peer while connected", &["switched_by_the_kernel"], NONE),
    row(
        "resync by checksums, to the kernel and to us: what is equal is not transferred",
        &["checksum_resync_to_kernel"],
        &["checksum_resync_to_us"],
    ),
    row(
        "online verify, driven by either: nothing under writes of either Primary, then just the spoiled blocks, which the \
         next resync fetches",
        &["verify_by_kernel", "verify_by_kernel@A"],
        &["verify_by_us", "verify_by_us@A"],
    ),
    row("verify by crc32c, sha1, sha256, md5", &["verify_hashes"], &["verify_hashes"]),
    row("verify without a verify-alg: refused, both stay connected", &["verify_is_refused"], &["verify_is_refused"]),
    row("a disk that the kernel left as Secondary is taken over: the difference", &["takeover_secondary"], NONE),
    row(
        "the same, left by a Primary that wrote alone; both wrote alone",
        NONE,
        &["takeover_primary", "takeover_split_brain"],
    ),
    row(
        "a disk of a kernel that died as Primary is taken over: its hot extents, as drbdmeta counts them; the peer went \
         on meanwhile; of one that died as Secondary: the difference; as sync target: the rest",
        &["takeover_crash_survivor_went_on", "takeover_crash_secondary", "takeover_crash_sync_target"],
        &["takeover_crash", "takeover_crash@A"],
    ),
    row("a disk of ours is handed back with drbdmeta: the difference", &["handback_secondary"], &["handback_primary"]),
    row(
        "the same, wrote alone, and the peer's node-id is not 0: drbdmeta loses the generation, the kernel sees a split brain; the bits solve it",
        NONE,
        &["handback_lost_generation"],
    ),
    row("handed back after the daemon was killed as Primary: hot extents", NONE, &["handback_crash"]),
    row("a disk goes there and back twice under a kernel that is Primary", &["there_and_back"], NONE),
    row(
        "the kernel's machine loses its power as Secondary under load: the difference; as Primary: we take over with all \
         that it had synced, it follows; or it is back first: its hot extents",
        &["killed_primary", "killed_primary_returns"],
        &["killed_secondary"],
    ),
    row(
        "two volumes: sync, an outage with other writes on each, fail-over: exactly the difference of each",
        &["two_volumes"],
        &["two_volumes"],
    ),
    row("metadata on disks of their own on both sides", &["external_metadata"], &["external_metadata"]),
    row(
        "a disk with its metadata on another one goes there and back twice; whoever wrote alone, the node that stays or the \
         one that moves: the difference",
        &["external_metadata_moves"],
        &["external_metadata_moves"],
    ),
    row("such a disk of a kernel that died as Primary: its hot extents", NONE, &["external_metadata_crash"]),
    row(
        "the same for two volumes, one with its metadata inside, one elsewhere: the difference of each",
        &["volumes_move"],
        &["volumes_move"],
    ),
    row("the other one's metadata is refused and left alone", &["wrong_program"], &["wrong_program"]),
];

/// Those that every run of all tests takes along: both directions, an outage, fail-over, a disk that changes sides.
const QUICK: &[&str] = &[
    "first_connect",
    "sync_from_kernel",
    "sync_from_us",
    "roles",
    "outage_kernel_primary",
    "outage_our_primary",
    "fail_over_to_us",
    "fail_over_to_kernel",
    "takeover_crash",
    "handback_secondary",
];

const PROTOCOLS: [char; 3] = ['C', 'B', 'A'];

/// Every test once, in order.
pub fn tests() -> Vec<&'static str> {
    let mut tests = Vec::new();
    for test in ROWS.iter().flat_map(|row| row.kernel.iter().chain(row.ours)) {
        if !tests.contains(test) {
            tests.push(*test);
        }
    }
    tests
}

pub fn quick() -> Vec<&'static str> {
    tests().into_iter().filter(|test| QUICK.contains(test)).collect()
}

pub fn function(test: &str) -> &str {
    test.split('@').next().unwrap_or(test)
}

fn protocol(test: &str) -> char {
    test.split_once('@').and_then(|(_, protocol)| protocol.chars().next()).unwrap_or('C')
}

/// The matrix with what this report says of each cell.
pub fn printed(kernel: &str, report: &Report) -> String {
    let mut text = format!("interop {kernel}, kernel Primary (K) or replicad (R), protocols C B A:\n");
    for row in ROWS {
        let cells = PROTOCOLS.map(|protocol| cell(row.kernel, protocol, report));
        let ours = PROTOCOLS.map(|protocol| cell(row.ours, protocol, report));
        writeln!(text, "K {}R {}{}", joined(&cells), joined(&ours), row.what).expect("text grows");
    }
    text
}

fn joined(cells: &[&str; 3]) -> String {
    cells.iter().map(|cell| format!("{cell:<8}")).collect()
}

/// The worst of the tests of a cell; "-" where there is none.
fn cell(tests: &[&str], of: char, report: &Report) -> &'static str {
    let mut tests = tests.iter().filter(|test| protocol(test) == of).peekable();
    if tests.peek().is_none() {
        return "-";
    }
    let outcome = |test: &&str| match report.results.iter().find(|result| result.name == **test).map(|r| &r.verdict) {
        None => (1, "not run"),
        Some(Verdict::Ok) => (0, "ok"),
        Some(Verdict::Skip(_)) => (2, "SKIPPED"),
        Some(Verdict::Fail(_)) => (3, "FAILED"),
    };
    tests.map(outcome).max().map_or("-", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::machine::TestResult;

    const DOCUMENT: &str = include_str!("../../../docs/compatibility.md");

    /// Columns of the document: protocols for which there are tests, in our order.
    fn protocols(tests: &[&str]) -> String {
        let there = PROTOCOLS.iter().filter(|p| tests.iter().any(|test| protocol(test) == **p));
        match there.map(char::to_string).collect::<Vec<_>>().join(" ") {
            none if none.is_empty() => none,
            some => format!("green {some}"),
        }
    }

    fn line(row: &Row) -> String {
        let mut names: Vec<&str> = Vec::new();
        for name in row.kernel.iter().chain(row.ours).map(|test| function(test)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        format!("| {} | {} | {} | {} |", row.what, protocols(row.kernel), protocols(row.ours), names.join(", "))
    }

    #[test]
    fn the_document_has_the_same_rows() {
        let expected: Vec<String> = ROWS.iter().map(line).collect();
        let found: Vec<&str> = DOCUMENT
            .lines()
            .skip_while(|line| !line.starts_with("| what | K | R | tests |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        assert!(found == expected, "docs/compatibility.md should have:\n{}", expected.join("\n"));
    }

    #[test]
    fn a_cell_shows_its_worst_test() {
        let result = |name: &str, verdict| TestResult { name: name.to_owned(), verdict };
        let mut report = Report { results: vec![result("a", Verdict::Ok)], ..Report::default() };
        assert_eq!(cell(&["a"], 'C', &report), "ok");
        assert_eq!(cell(&["a"], 'B', &report), "-");
        assert_eq!(cell(&["a", "b"], 'C', &report), "not run");
        report.results.push(result("b@A", Verdict::Fail(String::new())));
        assert_eq!(cell(&["a", "b@A"], 'A', &report), "FAILED");
        assert_eq!(cell(&["a", "b@A"], 'C', &report), "ok");
    }

    #[test]
    fn what_every_run_takes_along_is_there() {
        assert_eq!(quick().len(), QUICK.len(), "QUICK names a test that no row has");
    }
}
