//! Runs the real program.

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
