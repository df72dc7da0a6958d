//! Runs the real program.
#![allow(dead_code, reason = "each test file uses its part")]

use metadata::Placement;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub fn replicactl(folder: &Path, arguments: &str) -> Answer {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_replicactl"))
        .args(["--run-dir".as_ref(), folder.as_os_str()])
        .args(["--config".as_ref(), folder.join("config.toml").as_os_str()])
        .args(["--node", "alice"])
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Answer { code: status.code().expect("not killed"), out: text(stdout), err: text(stderr) }
}

/// A file with a dump, for whoever is to restore it.
pub fn written(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

/// replicactl in a world of one volume, `r0/0` of node 0 and node 1, whose metadata lies on `device`.
pub fn volume(placement: Placement, device: &Path, arguments: &str) -> Answer {
    let folder = tempfile::TempDir::new().unwrap();
    let path = device.display();
    let data = folder.path().join("data");
    fs::File::create(&data).unwrap().set_len(1 << 30).unwrap();
    let disks = match placement {
        Placement::Internal => format!("disk = \"{path}\""),
        Placement::External => format!("disk = \"{}\", meta-disk = \"{path}\"", data.display()),
        Placement::Indexed(index) => format!("disk = \"{}\", meta-disk = \"{path} [{index}]\"", data.display()),
    };
    let config = format!(
        r#"
        [[resource]]
        name = "r0"
        volume = [{{ number = 0, device = "nbd", {disks} }}]
        on = [
            {{ node = "alice", node-id = 0, address = "127.0.0.1:7789" }},
            {{ node = "bob", node-id = 1, address = "127.0.0.1:7790" }},
        ]
        "#
    );
    fs::write(folder.path().join("config.toml"), config).unwrap();
    replicactl(folder.path(), arguments)
}
