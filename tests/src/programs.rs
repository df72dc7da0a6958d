//! Where the programs under test are. `REPLICAD_BIN_DIR` names a folder with `replicad` and `replicactl`; without it
//! they are built here, once per test program, so that a test never runs yesterday's daemon.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

pub fn replicad() -> PathBuf {
    folder().join("replicad")
}

pub fn replicactl() -> PathBuf {
    folder().join("replicactl")
}

/// The repository.
pub fn root() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests lies in the repository").to_path_buf()
}

pub fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| match std::env::var_os("REPLICAD_BIN_DIR") {
        Some(folder) => folder.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = ["build", "--quiet", "-p", "replicad", "-p", "ctl", "-p", "xtask"];
    let status = Command::new(cargo).current_dir(root()).args(build).status().expect("cargo can be run");
    assert!(status.success(), "replicad and replicactl do not build");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    root().join(target).join("debug")
}
