//! Readers of bytes that others wrote, under bytes that nobody meant: messages of a peer in both dialects, metadata,
//! dumps, configuration; and an engine whose peer has gone wild. A target panics where a reader breaks what it promises: it
//! never panics itself, and what it accepts it gives back the same.
//!
//! `cargo xtask fuzz` looks for such inputs, guided by coverage. What it finds is kept in `findings/TARGET/` and is a test
//! from then on, as are the seeds that it starts from: captures of kernels, metadata made with DRBD's tools.

mod bitmap;
mod captures;
mod configuration;
mod engine;
mod messages;
mod on_disk;
mod text;

use std::path::PathBuf;

/// One reader.
pub struct Target {
    pub name: &'static str,
    /// Panics if a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs with sense, to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "wire-9", run: messages::run_9, seeds: messages::seeds_9 },
    Target { name: "wire-84", run: messages::run_84, seeds: messages::seeds_84 },
    Target { name: "bitmap", run: bitmap::run, seeds: bitmap::seeds },
    Target { name: "superblock", run: on_disk::run_superblock, seeds: on_disk::superblocks },
    Target { name: "activity-log", run: on_disk::run_log, seeds: on_disk::logs },
    Target { name: "recognise", run: on_disk::run_recognise, seeds: on_disk::superblocks },
    Target { name: "dump", run: text::run, seeds: text::seeds },
    Target { name: "engine", run: engine::run, seeds: engine::seeds },
    Target { name: "config", run: configuration::run, seeds: configuration::seeds },
];

/// Inputs that broke something once.
pub fn findings(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("findings").join(target.name);
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable directory").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).expect("a readable file"))).collect()
}

/// A file of another crate's tests.
fn fixtures(of: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(of).join("tests/fixtures")
}

/// Files of a directory that end so, in order of their names.
fn files(directory: PathBuf, end: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable directory").path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(end));
    paths.sort();
    assert!(!paths.is_empty(), "{} has no *{end}", directory.display());
    paths
}

fn unzipped(path: &std::path::Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(file), &mut bytes)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    bytes
}
