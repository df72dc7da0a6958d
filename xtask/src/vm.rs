//! `xtask vm`: whole machines in QEMU. Each module below is one part of the harness; tests build on `Lab` and
//! `machine::Vm`. Touches `.cache/vm` only.

pub mod bench;
pub mod image;
pub mod initramfs;
mod interop_matrix;
pub mod kernel;
pub mod machine;
mod test_harness;
mod test_interop;
mod test_interop_killed;
mod test_migration;
mod test_replicad;
mod test_ublk;

use crate::packages;
use anyhow::{Context, Result, bail};
use kernel::{Flavour, Kernel};
use machine::{Report, Verdict, Vm};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where utilities of DRBD 9 keep their programs for an 8.4.
const DRBD_LIB: [&str; 2] = ["/usr/lib/drbd", "/lib/drbd"];
/// What they call when the module is an 8.4.
const DRBDSETUP_84: [&str; 2] = ["/usr/lib/drbd/drbdsetup-84", "/lib/drbd/drbdsetup-84"];

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: VmCommand,
}

#[derive(clap::Subcommand)]
enum VmCommand {
    /// Run a script or a command in a guest; its output is printed
    Run(RunArgs),
    /// The harness itself: two guests on a wire, a power cut
    TestHarness(TestArgs),
    /// The ublk frontend on real ublk
    TestUblk(TestArgs),
    /// Two daemons on real ublk: fail-over, kills, a power cut
    TestReplicad(ReplicadArgs),
    /// A kernel's DRBD 8.4 and a daemon replicate with each other
    TestInterop(InteropArgs),
    /// Two machines move from the kernel's DRBD 8.4 to replicad and back, by the commands of docs/migrate-from-drbd.md
    TestMigration(MigrationArgs),
    /// Ratios on real ublk, against a pass-through and against the kernel's DRBD; `xtask bench` has them, too
    Bench(BenchArgs),
}

#[derive(clap::Args)]
struct RunArgs {
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Flavour,
    /// Look for a newer kernel than the one in the cache
    #[arg(long)]
    refresh: bool,
    /// For dash; sees the functions of xtask/src/vm/lib.sh
    #[arg(long)]
    script: Option<PathBuf>,
    /// Kernel module to load, with options; repeatable
    #[arg(long = "module")]
    modules: Vec<String>,
    /// Program to put into the guest's /usr/bin; repeatable
    #[arg(long = "binary")]
    binaries: Vec<PathBuf>,
    /// Size of an empty disk in MiB (/dev/vdb, /dev/vdc, …); repeatable
    #[arg(long = "disk")]
    disks_mib: Vec<u64>,
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    #[arg(long, default_value_t = 1024)]
    memory_mib: u32,
    /// Run instead of a script
    #[arg(last = true)]
    cmd: Vec<String>,
}

#[derive(clap::Args)]
struct TestArgs {
    /// Default: all
    #[arg(long, value_enum)]
    kernel: Option<Flavour>,
    #[arg(long)]
    refresh: bool,
}

#[derive(clap::Args)]
struct ReplicadArgs {
    #[command(flatten)]
    test: TestArgs,
    /// Only this part
    #[arg(long, value_enum)]
    only: Option<test_replicad::Part>,
}

#[derive(clap::Args)]
struct InteropArgs {
    #[command(flatten)]
    test: TestArgs,
    /// Only this test; repeatable, in this order
    #[arg(long)]
    only: Vec<String>,
    /// What `xtask test` has time for: both directions, an outage, fail-over, on one kernel
    #[arg(long, conflicts_with = "only")]
    quick: bool,
}

#[derive(clap::Args)]
struct MigrationArgs {
    #[command(flatten)]
    test: TestArgs,
    /// What `xtask test` has time for: all the way and back, without turning around in between, on one kernel
    #[arg(long)]
    quick: bool,
}

#[derive(clap::Args)]
struct BenchArgs {
    #[command(flatten)]
    bench: bench::MachineArgs,
    #[arg(long)]
    refresh: bool,
}

impl TestArgs {
    fn flavours(&self) -> &[Flavour] {
        self.kernel.as_ref().map_or(&Flavour::ALL[..], std::slice::from_ref)
    }
}

pub fn main(args: Args) -> Result<()> {
    match args.command {
        VmCommand::Run(args) => run(args),
        VmCommand::TestHarness(args) => test_harness::main(&Lab::open()?, args.flavours(), args.refresh),
        VmCommand::TestUblk(args) => test_ublk::main(&Lab::open()?, args.flavours(), args.refresh),
        VmCommand::TestReplicad(ReplicadArgs { test, only }) => {
            test_replicad::main(&Lab::open()?, test.flavours(), test.refresh, only)
        }
        VmCommand::TestInterop(args) => {
            let InteropArgs { test, only, quick } = args;
            if quick {
                return test_interop::quick(&Lab::open()?, test.refresh);
            }
            test_interop::main(&Lab::open()?, test.flavours(), test.refresh, &only)
        }
        VmCommand::TestMigration(MigrationArgs { test, quick }) => {
            if quick {
                return test_migration::quick(&Lab::open()?, test.refresh);
            }
            test_migration::main(&Lab::open()?, test.flavours(), test.refresh)
        }
        VmCommand::Bench(args) => crate::bench::publish(&bench::rows(&args.bench, args.refresh)?),
    }
}

/// The repository and its cache, with the packages that the harness needs.
pub struct Lab {
    root: PathBuf,
    pub cache: PathBuf,
}

impl Lab {
    pub fn open() -> Result<Lab> {
        if std::env::consts::ARCH != "x86_64" {
            bail!("the virtual machines are x86_64 only");
        }
        packages::ensure(packages::VM)?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the repository")?.to_owned();
        let cache = root.join(".cache/vm");
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        Ok(Lab { root, cache })
    }

    /// The kernel, or none after saying loudly that all of `what` is skipped.
    pub fn kernel_or_skip(&self, flavour: Flavour, refresh: bool, what: &str) -> Option<Kernel> {
        match Kernel::obtain(flavour, &self.cache, refresh) {
            Ok(kernel) => Some(kernel),
            Err(e) => {
                eprintln!("SKIPPED: {what} on kernel {}: {e:#}", flavour.name());
                None
            }
        }
    }

    /// Builds with cargo, returns the path under `target/debug`.
    pub fn cargo_build(&self, arguments: &[&str], product: &str) -> Result<PathBuf> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo).current_dir(&self.root).args(["build", "--quiet"]).args(arguments).status()?;
        if !status.success() {
            bail!("cargo build {} failed", arguments.join(" "));
        }
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from);
        Ok(target.join("debug").join(product))
    }

    /// A fresh folder for one run; kept for diagnosis until the next run of that name.
    pub fn run_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.cache.join("run").join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }
}

/// Prints one line per test. An error if the report isn't good.
pub fn judge(title: &str, report: &Report, dir: &Path) -> Result<()> {
    for result in &report.results {
        match &result.verdict {
            Verdict::Ok => println!("{title}: {} ok", result.name),
            Verdict::Skip(reason) => println!("{title}: {} SKIPPED: {reason}", result.name),
            Verdict::Fail(reason) => println!("{title}: {} FAILED: {reason}", result.name),
        }
    }
    if report.is_good() {
        return Ok(());
    }
    match report.script_status {
        Some(status) => {
            bail!("{title} failed (script status {status}); output.log and console.log in {}", dir.display())
        }
        None => {
            let words = last_words(dir);
            bail!(
                "{title}: FAILED: the guest died before its script ended{words}; console.log and output.log in {}",
                dir.display()
            )
        }
    }
}

/// Where the kernel of a guest that died says why.
fn last_words(dir: &Path) -> String {
    let console = fs::read(dir.join("console.log")).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let told = console.lines().filter(|line| ["Oops", "RIP:", "Kernel panic"].iter().any(|word| line.contains(word)));
    told.take(3).map(|line| format!("; {}", line.trim())).collect()
}

fn run(args: RunArgs) -> Result<()> {
    let lab = Lab::open()?;
    let kernel = Kernel::obtain(args.kernel, &lab.cache, args.refresh)?;
    let mut image = image::Image::with_tools()?;
    for binary in &args.binaries {
        let name = binary.file_name().with_context(|| format!("{} has no name", binary.display()))?;
        image.add_binary(binary, Path::new("/usr/bin").join(name))?;
    }
    let script = match &args.script {
        Some(path) => fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        None if args.cmd.is_empty() => bail!("nothing to run: give --script FILE or -- COMMAND"),
        None => args.cmd.join(" "),
    };
    let dir = lab.run_dir(&format!("run-{}", std::process::id()))?;
    let mut builder = Vm::builder(&kernel, &image.build(&lab.cache)?).cpus(args.cpus).memory_mib(args.memory_mib);
    for module in &args.modules {
        builder = builder.module(module);
    }
    for (at, mib) in args.disks_mib.iter().enumerate() {
        let path = dir.join(format!("disk{at}.raw"));
        machine::create_disk(&path, mib << 20)?;
        builder = builder.disk(&path);
    }
    let report = builder.script(&script).run(&lab.cache, &dir)?;
    print!("{}", String::from_utf8_lossy(&fs::read(dir.join("output.log"))?));
    for result in &report.results {
        println!("{}: {:?}", result.name, result.verdict);
    }
    match report.script_status {
        Some(0) => Ok(fs::remove_dir_all(&dir)?),
        Some(status) => bail!("the script exited with {status}; logs in {}", dir.display()),
        None => bail!("the guest died before its script ended; console.log in {}", dir.display()),
    }
}
