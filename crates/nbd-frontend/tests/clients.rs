//! The clients that people use, against the session: libnbd's, QEMU's, fio's. A missing one says SKIPPED on stderr,
//! by name. Debian packages: libnbd-bin, qemu-utils, fio, nbd-client.
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use nbd_frontend::Export;
use support::Disk;
use types::BlockLimits;

const DISK_BYTES: u64 = 64 << 20;

struct Server {
    disk: Arc<Disk>,
    folder: tempfile::TempDir,
    unix: String,
    tcp: String,
}

impl Server {
    fn new(read_only: bool) -> Server {
        let disk = Disk::new(Export {
            name: "r0".to_owned(),
            size_bytes: DISK_BYTES,
            limits: BlockLimits { discard_bytes_max: 4 << 20, ..BlockLimits::default() },
            read_only,
            multi_conn: true,
        });
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("r0.nbd");
        support::listen_unix(&disk, &socket).unwrap();
        let port = support::listen_tcp(&disk, "127.0.0.1:0").unwrap();
        let unix = format!("nbd+unix:///r0?socket={}", socket.display());
        Server { disk, folder, unix, tcp: format!("nbd://127.0.0.1:{port}/r0") }
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
    fn content(&self) -> Vec<u8> {
        self.disk.bytes.read().unwrap().clone()
    }
    fn count(&self, counter: fn(&support::Counters) -> &AtomicUsize) -> usize {
        counter(&self.disk.counters).load(SeqCst)
    }
}

/// Output of a client that succeeded. `None`, loudly, where it is not installed.
fn run(test: &str, program: &str, arguments: &[&str]) -> Option<String> {
    let (success, text) = try_run(test, program, arguments)?;
    assert!(success, "{program} {arguments:?} failed:\n{text}");
    Some(text)
}

fn try_run(test: &str, program: &str, arguments: &[&str]) -> Option<(bool, String)> {
    match Command::new(program).args(arguments).output() {
        Ok(out) => {
            let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            Some((out.status.success(), text))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED {test}: {program} is not installed (Debian: libnbd-bin, qemu-utils, fio, nbd-client)");
            None
        }
        Err(e) => panic!("{program}: {e}"),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Data with holes: zeroes between runs of a generator's output.
fn sparse_image() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..DISK_BYTES).map(|at| if (at >> 20) % 3 == 1 { 0 } else { next() }).collect()
}

#[test]
fn nbdinfo_sees_the_export() {
    let server = Server::new(false);
    let Some(info) = run("nbdinfo", "nbdinfo", &["--json", &server.unix]) else { return };
    for expected in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"export-name\": \"r0\"",
        &format!("\"export-size\": {DISK_BYTES}"),
        "\"can_multi_conn\": true",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_df\": true",
        "\"is_read_only\": false",
        "\"block_size_minimum\": 512",
        "\"block_size_maximum\": 1048576",
    ] {
        assert!(info.contains(expected), "{expected} is missing in\n{info}");
    }
    let list = run("nbdinfo", "nbdinfo", &["--list", &server.tcp.replace("/r0", "/")]).unwrap();
    assert!(list.contains("r0"), "{list}");
    let (found, message) = try_run("nbdinfo", "nbdinfo", &[&server.tcp.replace("/r0", "/r1")]).unwrap();
    assert!(!found && message.contains("No such file or directory"), "{message}");
}

#[test]
fn nbdinfo_sees_a_read_only_export() {
    let server = Server::new(true);
    let Some(info) = run("nbdinfo", "nbdinfo", &["--json", &server.unix]) else { return };
    assert!(info.contains("\"is_read_only\": true"), "{info}");
    let (written, message) =
        try_run("qemu-io", "qemu-io", &["-f", "raw", &server.unix, "-c", "write 0 4k"]).unwrap_or_default();
    assert!(!written, "{message}");
}

#[test]
fn nbdcopy_there_and_back_over_many_connections() {
    let server = Server::new(false);
    let image = sparse_image();
    let source = server.file("source", &image);
    for uri in [&server.unix, &server.tcp] {
        server.disk.bytes.write().unwrap().fill(0xff);
        let copy = ["--connections=4", "--threads=4", "--requests=32", "--flush", text(&source), uri];
        let Some(_) = run("nbdcopy", "nbdcopy", &copy) else { return };
        assert!(server.content() == image, "the disk differs from the source ({uri})");
        let back = server.file("back", &[]);
        run("nbdcopy", "nbdcopy", &["--connections=4", "--threads=4", uri, text(&back)]).unwrap();
        assert!(std::fs::read(&back).unwrap() == image, "the copy differs from the disk ({uri})");
    }
    assert!(server.count(|c| &c.connections) >= 16, "nbdcopy used one connection only");
    assert!(server.count(|c| &c.flushes) > 0);
    assert_eq!(server.count(|c| &c.ended_badly), 0);
}

#[test]
fn qemu_img_converts_and_compares() {
    let server = Server::new(false);
    let image = sparse_image();
    let source = server.file("source", &image);
    let Some(info) = run("qemu-img", "qemu-img", &["info", &server.unix]) else { return };
    assert!(info.contains("64 MiB"), "{info}");
    server.disk.bytes.write().unwrap().fill(0xff);
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", text(&source), &server.tcp];
    run("qemu-img", "qemu-img", &convert).unwrap();
    assert!(server.content() == image, "the disk differs from the source");
    let compare = ["compare", "-f", "raw", "-F", "raw", text(&source), &server.unix];
    run("qemu-img", "qemu-img", &compare).unwrap();
    server.disk.bytes.write().unwrap()[12345] ^= 1;
    let (same, message) = try_run("qemu-img", "qemu-img", &compare).unwrap();
    assert!(!same && message.contains("mismatch"), "{message}");
}

#[test]
fn qemu_io_reaches_every_operation() {
    let server = Server::new(false);
    let io = |commands: &[&str]| {
        let mut arguments = vec!["-f", "raw", "-t", "none", "-d", "unmap", server.unix.as_str()];
        commands.iter().for_each(|c| arguments.extend(["-c", c]));
        let (success, output) = try_run("qemu-io", "qemu-io", &arguments)?;
        assert!(success && !output.contains("failed"), "{commands:?}:\n{output}");
        Some(())
    };
    let Some(()) = io(&["write -P 0x5a 4k 64k", "read -P 0x5a 4k 64k", "read -P 0 0 4k"]) else { return };
    assert!(server.content()[4096..68 << 10].iter().all(|&b| b == 0x5a));
    assert_eq!(server.count(|c| &c.fua_writes), 0);
    io(&["write -f -P 0x11 0 4k", "flush"]).unwrap();
    assert_eq!(server.count(|c| &c.fua_writes), 1);
    assert!(server.count(|c| &c.flushes) > 0);
    io(&["write -P 0x77 0 24M", "read -P 0x77 0 24M"]).unwrap();
    io(&["write -z 1M 1M", "read -P 0 1M 1M", "read -P 0x77 2M 4k"]).unwrap();
    assert!(server.count(|c| &c.zeroes_keep) > 0);
    io(&["write -z -u 3M 64k", "read -P 0 3M 64k"]).unwrap();
    assert!(server.count(|c| &c.zeroes_unmap) > 0);
    let before = server.count(|c| &c.discards);
    io(&["discard 4M 16M", "read -P 0 4M 16M", "read -P 0x77 20M 4k"]).unwrap();
    assert!(server.count(|c| &c.discards) >= before + 4, "a discard of 16 MiB runs in parts of 4 MiB");
    assert_eq!(server.count(|c| &c.ended_badly), 0);
}

#[test]
fn fio_verifies_what_it_wrote() {
    let server = Server::new(false);
    let Some(engines) = run("fio", "fio", &["--enghelp"]) else { return };
    if !engines.contains("nbd") {
        eprintln!("SKIPPED fio: this fio was built without its nbd engine");
        return;
    }
    let uri = format!("--uri={}", server.unix);
    let job = ["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-256k", "--size=32M", "--iodepth=16"];
    let checks = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=64", "--output-format=terse"];
    let arguments: Vec<&str> = job.into_iter().chain(checks).chain([uri.as_str()]).collect();
    let folder = server.folder.path().to_path_buf();
    let out = Command::new("fio").current_dir(folder).args(&arguments).output().unwrap();
    let output = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{output}");
    assert!(!output.contains("bad magic") && !output.contains("verify failed"), "{output}");
}

/// The kernel's client needs a driver that few machines have; its tool at least negotiates.
#[test]
fn nbd_client_lists_the_exports() {
    let server = Server::new(false);
    let port = server.tcp.trim_end_matches("/r0").rsplit(':').next().unwrap();
    let Some(list) = run("nbd-client", "nbd-client", &["-l", "127.0.0.1", port]) else { return };
    assert!(list.lines().any(|line| line == "r0"), "{list}");
}

#[test]
fn garbage_on_the_port_ends_that_connection_only() {
    use std::io::{Read, Write};
    let server = Server::new(false);
    let address = server.tcp.trim_start_matches("nbd://").trim_end_matches("/r0");
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // The greeting, then the end. A reset is an end, too: the server closed with bytes unread.
    let _ = socket.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"NBDMAGIC"), "{answer:?}");
    let Some(size) = run("nbdinfo", "nbdinfo", &["--size", &server.tcp]) else { return };
    assert_eq!(size.trim(), DISK_BYTES.to_string());
}
