//! Every durable point of scripted runs is a crash point (`crash/mod.rs`): with what a power cut may leave there, the
//! copies are equal again in the end, and nothing that was promised is lost.
//!
//! `CRASH_STRIDE=1 cargo test --release -p sim --test crash_points -- --nocapture` visits all points, in some minutes.

mod crash;

use crash::enumerate::Enumeration;
use crash::script::SCRIPTS;

/// So many points are passed over for each that is visited, unless `CRASH_STRIDE` says otherwise. All together take half
/// a minute of one core built for release; a debug build takes ten times as long per point.
const STRIDE: u64 = if cfg!(debug_assertions) { 41 } else { 5 };

fn visit(names: &str) {
    let stride = std::env::var("CRASH_STRIDE").map_or(STRIDE, |s| s.parse().expect("a number"));
    let mut findings = Vec::new();
    let scripts = SCRIPTS.iter().filter(|s| s.name.split(',').next() == Some(names));
    for script in scripts {
        let report = Enumeration { script, stride, first_only: false }.run();
        println!(
            "{}: {} of {} durable points, {} cuts, {} of them in a restart",
            script.name, report.points_visited, report.points, report.cuts, report.replays
        );
        assert!(report.points > 0 && report.cuts > report.points_visited, "{}: {:?}", script.name, report.findings);
        if !report.findings.is_empty() {
            findings.push(format!("{}\n{}", report.story, report.findings.join("\n")));
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn evictions_and_a_ring_that_wraps() {
    visit("log");
}

#[test]
fn a_primary_alone() {
    visit("alone");
}

#[test]
fn promotions_and_orderly_step_downs() {
    visit("roles");
}

#[test]
fn resyncs_by_bits_and_of_whole_copies() {
    visit("resync");
}

#[test]
fn a_peer_that_loses_power_first() {
    visit("peer lost");
}

#[test]
fn a_peer_that_lost_what_had_completed() {
    visit("debt");
}

#[test]
fn a_restart_after_a_crash() {
    visit("restart");
}

#[test]
fn disks_that_leave_and_come_back() {
    visit("disks");
}
