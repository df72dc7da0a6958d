//! Programs of other people. A test that needs one which is not here, or root, is skipped loudly: on stderr, and in
//! the file that `REPLICAD_TEST_SKIPS` names, from which `cargo xtask test` tells it at its end.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

/// Says whether this machine has what the test needs; if not, tells so. The test then returns.
pub fn ready(test: &str, programs: &[&str]) -> bool {
    // Safety: no arguments, no memory.
    if unsafe { libc::geteuid() } != 0 {
        return skip(test, "needs root, for network namespaces and loop devices");
    }
    match programs.iter().find(|program| !has(program)) {
        Some(program) => skip(test, &format!("`{program}` is not installed")),
        None => true,
    }
}

/// Always false, for `return skip(...)`.
pub fn skip(test: &str, reason: &str) -> bool {
    eprintln!("SKIPPED: {test}: {reason}");
    if let Some(path) = std::env::var_os("REPLICAD_TEST_SKIPS") {
        let file = std::fs::File::options().create(true).append(true).open(&path);
        let line = format!("{test}: {reason}\n");
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the list of skipped tests can be written");
    }
    false
}

pub fn has(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|folder| Path::new(folder).join(program).is_file())
}

/// Runs a program to its end; a failure ends the test with what the program said.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {}: {}\n{out}{err}", arguments.join(" "), output.status);
    out.into_owned()
}

/// Runs a program to its end, whatever it is.
pub fn output(program: &str, arguments: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program} cannot be run: {e}"))
}

/// As `run`, as a program on the machine with that network namespace.
pub fn run_in(namespace: &str, program: &str, arguments: &[&str]) -> String {
    run("ip", &[&["netns", "exec", namespace, program], arguments].concat())
}

/// As `output`, on the machine with that network namespace.
pub fn output_in(namespace: &str, program: &str, arguments: &[&str]) -> Output {
    output("ip", &[&["netns", "exec", namespace, program], arguments].concat())
}

/// fio through its NBD engine: random writes with checksums, read back and checked in the same run.
pub fn fio_verify(uri: &str, arguments: &[&str]) {
    run("fio", &[&fio_words(uri)[..], arguments].concat());
}

/// As `fio_verify`, on the machine with that network namespace.
pub fn fio_verify_in(namespace: &str, uri: &str, arguments: &[&str]) {
    run_in(namespace, "fio", &[&fio_words(uri)[..], arguments].concat());
}

fn fio_words(uri: &str) -> [&str; 14] {
    [
        "--name=verify",
        "--ioengine=nbd",
        "--uri",
        uri,
        "--rw=randwrite",
        "--bsrange=4k-64k",
        "--bs_unaligned=0",
        "--size=16m",
        "--iodepth=8",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--randseed=7",
        "--fsync=64",
    ]
}
