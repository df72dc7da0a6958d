//! Do the crash points find what they are for? Each of these planted bugs has to be found in its script. One test: a
//! bug is planted for the whole process.
#![cfg(feature = "planted")]

mod crash;

use crash::enumerate::Enumeration;
use crash::script::SCRIPTS;
use engine::planted::{Bug, plant};

const FOUND: [(Bug, &str); 15] = [
    (Bug::LogNotAwaited, "log"),
    (Bug::LogWithoutEvictedPages, "alone"),
    (Bug::IndicatorForgotten, "log"),
    (Bug::BitsForgottenAtRetirement, "log"),
    (Bug::BitClearedWhenServed, "alone"),
    (Bug::PeerDiskNotAwaited, "log"),
    (Bug::EpochNotFlushed, "log"),
    (Bug::EpochsNotOrdered, "log"),
    (Bug::ResyncNotFlushed, "alone"),
    (Bug::ReadBesideWrite, "log"),
    (Bug::ResyncBesideWrite, "log"),
    (Bug::TargetNotInconsistent, "log"),
    (Bug::GenerationNotBegun, "peer lost"),
    (Bug::GenerationNotDurable, "log, spare slot"),
    (Bug::BitmapRowSaysEqual, "alone"),
];

#[test]
fn planted_bugs_are_found() {
    let mut missed = Vec::new();
    for (bug, name) in FOUND {
        let script = SCRIPTS.iter().find(|script| script.name == name).expect("a script of that name");
        plant(Some(bug));
        let report = Enumeration { script, stride: 1, first_only: true }.run();
        plant(None);
        match report.findings.first() {
            Some(finding) => println!("{bug:?}: {}", finding.chars().take(200).collect::<String>()),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
