//! Replays the transcripts of `tests/scenarios/` against real engines: two or more, with message bytes and disks in
//! memory. Language: `harness/script.rs`. `REGENERATE=1 cargo test -p engine --test scenarios` writes what came out
//! into the files; a difference is to be explained before it is committed. `ONLY=name` runs one file.

mod harness;

use std::path::Path;

#[test]
fn every_scenario_goes_as_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let regenerate = std::env::var_os("REGENERATE").is_some();
    let only = std::env::var("ONLY").ok();
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .expect("tests/scenarios")
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .filter(|path| only.as_ref().is_none_or(|o| path.file_stem().is_some_and(|s| s.to_string_lossy().contains(o))))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no scenario in {directory:?}");
    let mut failures = Vec::new();
    for path in files {
        let name = path.file_stem().expect("a file name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("a readable scenario");
        match std::panic::catch_unwind(|| harness::script::replay(&text)) {
            Err(panic) => {
                let why = panic.downcast_ref::<String>().cloned();
                let why = why.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
                failures.push(format!("{name}: panic: {}", why.unwrap_or_default()));
            }
            Ok(found) if found == text => {}
            Ok(found) if regenerate => std::fs::write(&path, found).expect("a writable scenario"),
            Ok(found) => failures.push(format!("{name}:\n{}", difference(&text, &found))),
        }
    }
    assert!(failures.is_empty(), "{} scenarios differ:\n{}", failures.len(), failures.join("\n\n"));
}

/// The first place where they differ, with some lines around.
fn difference(expected: &str, found: &str) -> String {
    let (expected, found): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let at = expected.iter().zip(&found).position(|(e, f)| e != f).unwrap_or(expected.len().min(found.len()));
    let show = |sign: &str, lines: &[&str]| -> String {
        lines.iter().skip(at).take(8).map(|line| format!("{sign} {line}\n")).collect()
    };
    let before: String = expected[at.saturating_sub(3)..at].iter().map(|line| format!("  {line}\n")).collect();
    format!("line {}:\n{before}{}{}", at + 1, show("-", &expected), show("+", &found))
}
