//! Whether the device of the command line is in use. The exclusive open is the real guard; it does not cover indexed
//! metadata, whose device volumes share.

use super::{Failure, Line};
use crate::client::Client;
use crate::output::Output;
use control::{Request, Response, Target};
use metadata::Placement;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Writing is refused with exit 20; for reading a line says that it may be out of date.
pub fn check(line: &Line, output: &mut Output) -> Result<(), Failure> {
    let by_minor =
        line.minor.and_then(|minor| kernel(minor).or_else(|| daemon(Path::new(crate::args::RUN_DIR), minor)));
    let shared = matches!(line.placement, Placement::Indexed(_));
    let Some(holder) = by_minor.or_else(|| opened_by_daemon(&line.device).filter(|_| shared)) else { return Ok(()) };
    let minor = line.minor.map_or("-".into(), |minor| minor.to_string());
    if line.command.only_reads() {
        output.remark(&format!("# Output might be stale, since minor {minor} is attached"));
        return Ok(());
    }
    let message = format!(
        "Device '{minor}' is configured! {holder} has {}: nothing was changed; take it down first, or use replicactl, which \
         knows the volumes",
        line.device.display()
    );
    Err(Failure::new(20, message))
}

/// DRBD's device has a size while a disk is attached.
fn kernel(minor: u32) -> Option<String> {
    let size = fs::read_to_string(format!("/sys/block/drbd{minor}/size")).ok()?;
    (size.trim() != "0").then(|| "the kernel's DRBD".into())
}

fn daemon(run_dir: &Path, minor: u32) -> Option<String> {
    let everything = control::Command::Status { target: Target { resource: None, volume: None, peer: None } };
    let mut client = Client::ask(run_dir, &Request::new(everything)).ok()?;
    let Ok(Response::Status { status }) = client.next() else { return None };
    let mut devices = status.iter().flat_map(|resource| &resource.devices);
    devices.any(|d| d.minor == i64::from(minor) && d.disk_state != "Diskless").then(|| "replicad".into())
}

/// Which of its volumes has it cannot be seen from outside, so any will do.
fn opened_by_daemon(device: &Path) -> Option<String> {
    let identity =
        |path: &Path| fs::metadata(path).ok().map(|m| if m.rdev() != 0 { (m.rdev(), 0) } else { (m.dev(), m.ino()) });
    let wanted = identity(device)?;
    let has_it = |process: &Path| {
        let named = fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim() == "replicad");
        let files = || fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        named && files().any(|file| identity(&file.path()) == Some(wanted))
    };
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    processes
        .filter(|process| has_it(process))
        .find_map(|p| Some(format!("replicad (process {})", p.file_name()?.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::{DeviceReport, Reply, ResourceReport};
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::Stdio;

    #[test]
    fn the_daemon_is_asked_for_the_minor() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(daemon(folder.path(), 7), None, "no daemon");
        let listener = std::os::unix::net::UnixListener::bind(folder.path().join(control::SOCKET_NAME)).unwrap();
        let device = |minor, disk: &str| DeviceReport { minor, disk_state: disk.into(), ..Default::default() };
        let devices = vec![device(-1, "UpToDate"), device(7, "UpToDate"), device(8, "Diskless")];
        let status = vec![ResourceReport { name: "r0".into(), devices, ..Default::default() }];
        let answers = std::thread::spawn(move || {
            for _ in 0..3 {
                let (mut stream, _) = listener.accept().unwrap();
                BufReader::new(&stream).read_until(b'\n', &mut Vec::new()).unwrap();
                let reply = Reply::new(Response::Status { status: status.clone() });
                stream.write_all(&control::encode_line(&reply).unwrap()).unwrap();
            }
        });
        let held = [7, 8, 9].map(|minor| daemon(folder.path(), minor).is_some());
        answers.join().unwrap();
        assert_eq!(held, [true, false, false]);
    }

    #[test]
    fn other_processes_are_not_the_daemon() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(opened_by_daemon(file.path()), None);
        // A program of that name which has it open; it runs once it has answered.
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("replicad");
        fs::copy("/bin/cat", &program).unwrap();
        let open = fs::File::open(file.path()).unwrap();
        let mut command = std::process::Command::new(&program);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(open).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let found = opened_by_daemon(file.path());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, Some(format!("replicad (process {})", child.id())));
    }
}
