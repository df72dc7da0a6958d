//! Two nodes over loopback for the bench; gone when dropped.

use super::probe::{self, REQUEST_BYTES, offset, per_second};
use crate::demo::node::{self, Node};
use anyhow::Result;
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

const NAMES: [&str; 2] = ["alice", "bob"];

/// Ends the daemons of a folder, whatever happens.
struct Daemons(PathBuf);

impl Drop for Daemons {
    fn drop(&mut self) {
        for name in NAMES {
            if let Err(error) = node::end(&self.0, name) {
                eprintln!("xtask: {error:#}");
            }
        }
    }
}

pub struct Pair {
    client: RefCell<e2e::Client>,
    nodes: [Node; 2],
    size_bytes: u64,
    _daemons: Daemons,
}

fn configuration(dir: &Path) -> String {
    // Rates without limit: the disk and the link are what is measured.
    let mut text = "[[resource]]\nname = \"r0\"\nnet = { protocol = \"C\", connect-int = 3, timeout = 25 }\n\
                    disk = { c-max-rate = \"4G\" }\n\n\
                    [[resource.volume]]\nnumber = 0\ndevice = \"nbd\"\ndisk = \"none\"\n"
        .to_string();
    for (id, name) in NAMES.iter().enumerate() {
        text += &format!(
            "\n[[resource.on]]\nnode = \"{name}\"\nnode-id = {id}\naddress = \"127.83.83.{}:7789\"\n\
             volume = [{{ number = 0, disk = \"{}\" }}]\n",
            id + 1,
            dir.join(format!("{name}.img")).display()
        );
    }
    text
}

/// Both up and connected, nobody Primary.
fn start(dir: &Path, programs: &Path, size_mib: u64) -> Result<([Node; 2], Daemons)> {
    fs::write(dir.join("replicad.toml"), configuration(dir))?;
    let nodes = NAMES.map(|name| Node::new(dir, programs, name));
    let daemons = Daemons(dir.into());
    for node in &nodes {
        probe::prepare(&node.disk(), size_mib << 20)?;
        node.write_command()?;
        node.ctl("create-md r0 --force")?;
        node.start()?;
        node.ctl("up r0")?;
    }
    nodes[0].ctl("wait-connect r0 --timeout 60")?;
    Ok((nodes, daemons))
}

fn sync(nodes: &[Node; 2]) -> Result<()> {
    nodes[0].ctl("promote r0 --force")?;
    nodes[1].ctl("wait-sync r0 --timeout 600")?;
    Ok(())
}

/// MiB per second of a first sync.
pub fn first_sync(dir: &Path, programs: &Path, size_mib: u64) -> Result<f64> {
    let (nodes, _daemons) = start(dir, programs, size_mib)?;
    let begun = Instant::now();
    sync(&nodes)?;
    Ok(size_mib as f64 / begun.elapsed().as_secs_f64())
}

impl Pair {
    pub fn start(dir: &Path, programs: &Path, size_mib: u64) -> Result<Pair> {
        let (nodes, daemons) = start(dir, programs, size_mib)?;
        sync(&nodes)?;
        let socket = dir.join("alice.run/r0.0.nbd");
        nodes[0].wait("its device", |_| socket.exists())?;
        let client = e2e::Client::connect(&socket)?;
        let size_bytes = client.size_bytes;
        Ok(Pair { client: client.into(), nodes, size_bytes, _daemons: daemons })
    }

    /// And in sync again.
    pub fn connect(&self) -> Result<()> {
        if self.nodes[0].status()?["connections"][0]["connection-state"] == "Connected" {
            return Ok(());
        }
        self.nodes[0].ctl("connect r0")?;
        self.nodes[0].ctl("wait-connect r0 --timeout 60")?;
        self.nodes[0].ctl("wait-sync r0 --timeout 600").map(drop)
    }

    pub fn disconnect(&self) -> Result<()> {
        self.nodes[0].ctl("disconnect r0").map(drop)
    }

    pub fn writes(&self, count: u64) -> Result<f64> {
        let (mut client, bytes) = (self.client.borrow_mut(), [7; REQUEST_BYTES]);
        per_second(count, |at| Ok(client.write(offset(at, self.size_bytes), &bytes)?))
    }

    pub fn reads(&self, count: u64) -> Result<f64> {
        let mut client = self.client.borrow_mut();
        per_second(count, |at| Ok(client.read(offset(at, self.size_bytes), REQUEST_BYTES as u32).map(drop)?))
    }
}
