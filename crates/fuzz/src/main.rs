//! The program behind `cargo xtask fuzz`: one target, named by `FUZZ_TARGET`, under libFuzzer's own command line.
#![no_main]

use std::sync::OnceLock;

use fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&Target> = OnceLock::new();

fn chosen() -> &'static Target {
    TARGET.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        let found = TARGETS.iter().find(|target| target.name == name);
        found.unwrap_or_else(|| panic!("FUZZ_TARGET={name:?}; there are: {}", names.join(", ")))
    })
}

fuzz_target!(|input: &[u8]| (chosen().run)(input));
