//! Debian packages that a task needs on this machine: installs what is missing and says so. Never removes or upgrades.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// What `xtask vm` runs itself, plus what it copies into the guest.
pub const VM: &[&str] = &[
    "qemu-system-x86",
    "busybox-static",
    "e2fsprogs",
    "xfsprogs",
    "fio",
    "kmod",
    "xz-utils",
    "fdisk",
    "util-linux",
    "iproute2",
    "nbd-client",
    "drbd-utils",
];

/// What the end-to-end tests and those of the crates use: DRBD's own tools, NBD clients, file systems.
pub const END_TO_END: &[&str] = &[
    "drbd-utils",
    "iproute2",
    "libnbd-bin",
    "nbd-client",
    "qemu-utils",
    "fio",
    "e2fsprogs",
    "xfsprogs",
    "fuse3",
    "mount",
    "util-linux",
    "procps",
];

/// What the demo uses on a machine without ublk.
pub const DEMO: &[&str] = &["libnbd-bin", "fuse3", "e2fsprogs", "mount", "util-linux"];

/// What drives our NBD frontend and others in `bench`.
pub const LOAD: &[&str] = &["fio"];

/// Whom `bench` compares with, each by itself: one that cannot be installed is left out.
pub const NBDKIT: &[&str] = &["nbdkit"];
pub const QEMU_STORAGE: &[&str] = &["qemu-system-common"];

/// What libFuzzer is compiled with.
pub const FUZZ: &[&str] = &["g++"];

/// What counts the engine's instructions.
pub const ENGINE_BENCH: &[&str] = &["valgrind"];

/// Makes sure that all of `names` are installed.
pub fn ensure(names: &[&str]) -> Result<()> {
    let missing: Vec<&str> = names.iter().copied().filter(|name| !is_installed(name)).collect();
    install(&missing)
}

/// libublk's bindings are made with bindgen, which loads libclang when it is compiled. Debian has it in one package
/// per version, none without a number; any will do.
pub fn ensure_libclang() -> Result<()> {
    let listed = Command::new("dpkg-query").args(["-W", "-f=${Package} ${db:Status-Status}\n", "libclang1-*"]).output();
    if let Ok(listed) = listed
        && String::from_utf8_lossy(&listed.stdout).lines().any(|line| line.ends_with(" installed"))
    {
        return Ok(());
    }
    update()?;
    let found = Command::new("apt-cache")
        .args(["search", "--names-only", "^libclang1-[0-9]+$"])
        .output()
        .context("cannot run apt-cache: is this a Debian machine?")?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    let newest = found
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .max_by_key(|name| name.rsplit('-').next().and_then(|version| version.parse::<u32>().ok()));
    match newest {
        Some(name) => install(&[name]),
        None => bail!("no package libclang1-* in the apt sources; building ublk-frontend needs libclang"),
    }
}

/// rustfmt and clippy: toolchains of the minimal profile come without.
pub fn ensure_rust_components() -> Result<()> {
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let version = crate::workspace::cargo().args([tool, "--version"]).output();
        if version.is_ok_and(|out| out.status.success()) {
            continue;
        }
        eprintln!("xtask: installing with rustup: {component}");
        run(Command::new("rustup").current_dir(crate::workspace::root()).args(["component", "add", component]))?;
    }
    Ok(())
}

fn is_installed(name: &str) -> bool {
    let status = Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", name]).stderr(Stdio::null()).output();
    matches!(status, Ok(out) if out.stdout == b"installed")
}

fn update() -> Result<()> {
    run(Command::new("apt-get").args(["-q", "update"]))
}

fn install(names: &[&str]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    eprintln!("xtask: installing with apt-get: {}", names.join(" "));
    update()?;
    run(Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-q", "-y", "install", "--no-install-recommends"])
        .args(names))
}

fn run(command: &mut Command) -> Result<()> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if out.status.success() {
        return Ok(());
    }
    bail!("{command:?} failed ({}): {}", out.status, String::from_utf8_lossy(&out.stderr).trim())
}
