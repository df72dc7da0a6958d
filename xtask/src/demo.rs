//! `xtask demo`: two nodes on this machine, on sparse files, over loopback: set up, replicate, fail over, left
//! running to play with. Everything lies in one folder; `--stop` removes it and ends what runs from it.

mod device;
pub mod node;

use crate::{packages, workspace};
use anyhow::{Context, Result, bail};
use node::Node;
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    /// End the demo and remove all of it
    #[arg(long)]
    stop: bool,
    /// Where it lives [default: target/demo]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Size of each disk
    #[arg(long, default_value_t = 256)]
    size_mib: u64,
}

/// A demo that stands still this long has failed.
const PATIENCE: Duration = Duration::from_secs(120);
const SIZE_MIB_MIN: u64 = 32;

pub fn main(args: Args) -> Result<()> {
    let dir = match &args.dir {
        Some(dir) => std::path::absolute(dir)?,
        None => workspace::target().join("demo"),
    };
    if !workspace::is_root() {
        bail!("the demo mounts a file system: run it as root");
    }
    if args.size_mib < SIZE_MIB_MIN {
        bail!("--size-mib {}: a file system with something in it needs {SIZE_MIB_MIN}", args.size_mib);
    }
    stop(&dir)?;
    if args.stop {
        println!("The demo is gone: {} is removed, its daemons have ended.", dir.display());
        return Ok(());
    }
    let kind = device::Kind::of_this_machine();
    packages::ensure_libclang()?;
    packages::ensure(kind.packages())?;
    step("Building replicad and replicactl");
    let programs = workspace::build_programs("dev")?;
    let result = play(&dir, &programs, kind, args.size_mib);
    if result.is_err() {
        eprintln!("The demo failed; logs in {}, `cargo xtask demo --stop` cleans up.", dir.display());
    }
    result
}

fn step(text: &str) {
    println!("\n\x1b[1m== {text}\x1b[0m");
}

fn play(dir: &Path, programs: &Path, kind: device::Kind, size_mib: u64) -> Result<()> {
    step(&format!("Two nodes, alice and bob, each with a sparse file of {size_mib} MiB, in {}", dir.display()));
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::write(dir.join("replicad.toml"), configuration(dir, kind))?;
    let nodes = ["alice", "bob"].map(|name| Node::new(dir, programs, name));
    for node in &nodes {
        File::create(node.disk()).and_then(|file| file.set_len(size_mib << 20)).context("cannot make a disk")?;
        node.write_command()?;
        node.show("create-md r0")?;
        node.start()?;
        node.show("up r0")?;
    }
    let [alice, bob] = &nodes;
    alice.show("wait-connect r0 --timeout 60")?;

    step("alice becomes Primary; her disk is copied to bob");
    alice.show("promote r0 --force")?;
    progress(alice)?;
    print!("{}", alice.show("status r0")?);

    step(&format!("A file system on alice, through {}", kind.words()));
    let files = {
        let device = device::Device::open(alice, kind)?;
        device.make_file_system()?;
        let mounted = device.mount(&dir.join("mnt"))?;
        put_files(mounted.folder())?
    };
    println!("{files}");

    step("Fail-over: alice steps down, bob takes over");
    alice.wait("the device to be closed", |status| !status["devices"][0]["open"].as_bool().unwrap_or(true))?;
    alice.show("demote r0")?;
    bob.show("promote r0")?;
    let device = device::Device::open(bob, kind)?;
    let mounted = device.mount(&dir.join("mnt"))?;
    let found = checksums(mounted.folder())?;
    if found != files {
        bail!("the files on bob are not those of alice:\n{found}");
    }
    println!("{found}\nThe same files with the same checksums, on the other node.");
    mounted.keep();
    device.keep();
    print!("\n{}", bob.show("status r0")?);
    what_next(dir);
    Ok(())
}

/// Loopback addresses that belong to this folder, so that two demos do not meet.
fn addresses(dir: &Path) -> [String; 2] {
    let hash = dir
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    [1, 2].map(|host| format!("127.{}.{}.{host}:7789", 1 + hash % 250, hash / 250 % 250))
}

fn configuration(dir: &Path, kind: device::Kind) -> String {
    let mut text = "[[resource]]\nname = \"r0\"\n\
                    net = { connect-int = 3, timeout = 25, cram-hmac-alg = \"sha256\", shared-secret = \"demo\" }\n\n\
                    [[resource.volume]]\nnumber = 0\ndevice = \"none\"\ndisk = \"none\"\n"
        .to_string();
    for (id, (name, address)) in ["alice", "bob"].into_iter().zip(addresses(dir)).enumerate() {
        text += &format!(
            "\n[[resource.on]]\nnode = \"{name}\"\nnode-id = {id}\naddress = \"{address}\"\n\
             volume = [{{ number = 0, device = \"{}\", disk = \"{}\" }}]\n",
            kind.configured(id),
            dir.join(format!("{name}.img")).display()
        );
    }
    text
}

/// A bar while the first sync runs; lines where nobody looks at a terminal.
fn progress(node: &Node) -> Result<()> {
    const WIDTH: usize = 40;
    let (start, mut shown) = (Instant::now(), None);
    let terminal = std::io::stdout().is_terminal();
    loop {
        let status = node.status()?;
        let peer = &status["connections"][0]["peer_devices"][0];
        let over = peer["peer-disk-state"] == "UpToDate" && peer["out-of-sync"] == 0;
        let percent = if over { 100.0 } else { peer["percent-in-sync"].as_f64().unwrap_or(0.0) };
        let bar = format!("{:<WIDTH$}", "=".repeat((percent / 100.0 * WIDTH as f64) as usize));
        let rate = peer["db/dt [MiB/s]"].as_f64().map_or(String::new(), |rate| format!(" {rate:.0} MiB/s"));
        if terminal {
            print!("\r[{bar}] {percent:5.1} %{rate}   ");
        } else if shown != Some(percent as u32 / 10) {
            println!("[{bar}] {percent:5.1} %{rate}");
            shown = Some(percent as u32 / 10);
        }
        std::io::stdout().flush()?;
        if over {
            println!();
            return Ok(());
        }
        if start.elapsed() > PATIENCE.mul_f32(1.0 + percent as f32) {
            bail!("the sync stands still at {percent} %; see {}", node.log().display());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Things to lose: the project's documents and some megabytes. Their checksums.
fn put_files(folder: &Path) -> Result<String> {
    for entry in fs::read_dir(workspace::root().join("docs"))? {
        let path = entry?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            fs::copy(&path, folder.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    let noise: Vec<u8> = (0..4u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(folder.join("four-megabytes"), noise)?;
    checksums(folder)
}

fn checksums(folder: &Path) -> Result<String> {
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            names.push(path);
        }
    }
    names.sort();
    let out = workspace::output("sha256sum", &names)?;
    Ok(out.replace(&format!("{}/", folder.display()), "").trim_end().to_string())
}

fn what_next(dir: &Path) {
    let dir = dir.strip_prefix(std::env::current_dir().unwrap_or_default()).unwrap_or(dir).display();
    println!("\n\x1b[1mIt goes on running. Next, try\x1b[0m");
    println!("  {dir}/bob status --statistics          # how it is; {dir}/alice asks the other node");
    println!("  {dir}/alice disconnect r0              # then write into {dir}/mnt: bob notes what alice misses");
    println!("  {dir}/alice connect r0                 # only the difference is copied");
    println!("  kill -9 $(cat {dir}/alice.pid)         # a crash; {dir}/alice-daemon & starts her again,");
    println!("  {dir}/alice up r0                      # and she catches up");
    println!("  {dir}/bob events r0                    # every change as it happens");
    println!("  cargo xtask demo --stop                # all gone");
}

/// Ends everything that runs from the folder, then removes it. Nothing there: nothing to do.
fn stop(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    device::close_all(dir);
    for name in ["bob", "alice"] {
        node::end(dir, name)?;
    }
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}
