//! One guest: starts QEMU, follows what it reports, ends it. Reports come through virtio-serial ports into files of the
//! run's folder; the console is kept beside them for diagnosis. Only processes started here are ever killed.

use super::initramfs;
use super::kernel::Kernel;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How often the reports are looked at.
const POLL: Duration = Duration::from_millis(50);

/// Ports to the host, each a file NAME.log in the run's folder: test results; what the script printed; the kernel's
/// log at the end (the console, which is slow, has only warnings).
const CHANNELS: [&str; 3] = ["results", "output", "kernel"];

/// What every guest's kernel is told. `tsc=reliable`: no clock watchdog. It finds the emulated counter unstable on a busy
/// host, and the kernel then rewrites its own code while it runs, which QEMU's other processor may see half done: the
/// guest dies of a breakpoint in `sched_clock_cpu` (QEMU 7.2, kernel 7.3; one test-ublk in seven).
const KERNEL_PARAMETERS: &str =
    "console=ttyS0 loglevel=5 panic=-1 oops=panic net.ifnames=0 random.trust_cpu=on tsc=reliable";

/// Of a guest whose clock counts instructions: 2 to this power is the nanoseconds of one. It then looks to itself like a
/// processor of 250 million instructions a second, somewhat faster than emulation is: timeouts in it are generous.
const INSTRUCTION_NS_LOG2: u32 = 2;
/// For what a guest measured with that clock.
pub const INSTRUCTION_NS: u32 = 1 << INSTRUCTION_NS_LOG2;

/// A guest to be started. `Vm::builder` makes one.
pub struct Builder {
    kernel: Kernel,
    cpus: u32,
    memory_mib: u32,
    image: PathBuf,
    disks: Vec<PathBuf>,
    modules: Vec<String>,
    network: Option<(Network, u8)>,
    script: String,
    timeout: Duration,
    clock_by_instructions: bool,
}

/// A wire between guests: a multicast group on the loopback interface. The guests see one Ethernet segment.
#[derive(Clone, Copy)]
pub struct Network {
    port: u16,
}

impl Network {
    /// A port that was free a moment ago keeps labs that run at the same time apart.
    pub fn new() -> Result<Network> {
        let probe = std::net::UdpSocket::bind("127.0.0.1:0").context("cannot bind a port for the guests' network")?;
        Ok(Network { port: probe.local_addr()?.port() })
    }
}

/// A running guest. Dropping it is a power cut.
pub struct Vm {
    child: Child,
    dir: PathBuf,
    deadline: Instant,
}

/// Verdict of one named test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Ok,
    Fail(String),
    Skip(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TestResult {
    pub name: String,
    pub verdict: Verdict,
}

/// What a guest reported, up to its end or its cut.
#[derive(Default, PartialEq, Debug)]
pub struct Report {
    pub results: Vec<TestResult>,
    /// Exit status of the script; none if the guest died before.
    pub script_status: Option<i32>,
    /// `say` lines.
    pub said: Vec<String>,
}

impl Vm {
    pub fn builder(kernel: &Kernel, image: &Path) -> Builder {
        Builder {
            kernel: kernel.clone(),
            cpus: 2,
            memory_mib: 1024,
            image: image.to_owned(),
            disks: Vec::new(),
            modules: Vec::new(),
            network: None,
            script: String::new(),
            timeout: Duration::from_secs(600),
            clock_by_instructions: false,
        }
    }

    /// Waits for the guest to switch itself off. The timeout is there to end a hang, and is an error.
    pub fn wait(mut self) -> Result<Report> {
        loop {
            if self.child.try_wait()?.is_some() {
                return self.report();
            }
            if Instant::now() > self.deadline {
                self.power_cut()?;
                bail!("the guest did not end in time; see {}", self.dir.display());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits for the script to `say` a line.
    pub fn wait_said(&mut self, line: &str) -> Result<()> {
        loop {
            let ended = self.child.try_wait()?.is_some();
            if self.report()?.said.iter().any(|said| said == line) {
                return Ok(());
            }
            if ended {
                bail!("the guest ended without saying '{line}'; see {}", self.dir.display());
            }
            if Instant::now() > self.deadline {
                bail!("the guest did not say '{line}' in time; see {}", self.dir.display());
            }
            std::thread::sleep(POLL);
        }
    }

    /// As if the plug was pulled: what the guest had not given to its disks is lost.
    pub fn power_cut(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill QEMU")?;
        self.child.wait()?;
        Ok(())
    }

    pub fn report(&self) -> Result<Report> {
        Report::read(&self.dir)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Builder {
    pub fn cpus(mut self, cpus: u32) -> Builder {
        self.cpus = cpus;
        self
    }
    pub fn memory_mib(mut self, mib: u32) -> Builder {
        self.memory_mib = mib;
        self
    }
    /// The next of /dev/vdb, /dev/vdc, …: a file that exists.
    pub fn disk(mut self, path: &Path) -> Builder {
        self.disks.push(path.to_owned());
        self
    }
    /// Loaded at boot with what it needs, in the order of the calls; options may follow the name.
    pub fn module(mut self, module: &str) -> Builder {
        self.modules.push(module.to_owned());
        self
    }
    /// eth0 on `network`; `index` (1..=254) makes its hardware address.
    pub fn network(mut self, network: Network, index: u8) -> Builder {
        self.network = Some((network, index));
        self
    }
    /// Run by dash in the guest, with lib.sh.
    pub fn script(mut self, script: &str) -> Builder {
        self.script = script.to_owned();
        self
    }
    /// The guest's clock counts its instructions, so that it cannot see what else this machine does. Needs `cpus(1)`.
    pub fn clock_by_instructions(mut self) -> Builder {
        self.clock_by_instructions = true;
        self
    }
    pub fn timeout(mut self, timeout: Duration) -> Builder {
        self.timeout = timeout;
        self
    }

    pub fn run(self, cache: &Path, dir: &Path) -> Result<Report> {
        self.start(cache, dir)?.wait()
    }

    /// `dir` is the run's own folder; reports of an earlier run in it are replaced.
    pub fn start(self, cache: &Path, dir: &Path) -> Result<Vm> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let initramfs = dir.join("initramfs.cpio");
        initramfs::write(&initramfs, cache, &self.kernel, &self.modules, &self.script)?;
        for channel in CHANNELS {
            File::create(dir.join(format!("{channel}.log")))?;
        }
        let mut qemu = self.command(dir, &initramfs);
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(dir.join("qemu.log"))?);
        // SAFETY: prctl is async-signal-safe and touches only the child. It ends the guest when this task dies.
        unsafe {
            qemu.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = qemu.spawn().context("cannot start qemu-system-x86_64: is qemu-system-x86 installed?")?;
        Ok(Vm { child, dir: dir.to_owned(), deadline: Instant::now() + self.timeout })
    }

    fn command(&self, dir: &Path, initramfs: &Path) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        // Emulation works everywhere; KVM is often there and broken, so it is used only on demand, and cannot count.
        match std::env::var_os("REPLICAD_VM_KVM") {
            _ if self.clock_by_instructions => {
                qemu.args(["-accel", "tcg,thread=single", "-icount", &format!("shift={INSTRUCTION_NS_LOG2}")])
            }
            Some(_) => qemu.args(["-accel", "kvm"]),
            None => qemu.args(["-accel", "tcg,thread=multi"]),
        };
        qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-cpu", "max"]);
        qemu.args(["-smp", &self.cpus.to_string(), "-m", &format!("{}M", self.memory_mib)]);
        qemu.arg("-kernel").arg(&self.kernel.vmlinuz).arg("-initrd").arg(initramfs);
        qemu.args(["-append", KERNEL_PARAMETERS]);
        qemu.args(["-serial", &format!("file:{}", dir.join("console.log").display())]);
        qemu.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
        for channel in CHANNELS {
            let path = dir.join(format!("{channel}.log"));
            qemu.args(["-chardev", &format!("file,id={channel},path={}", path.display())]);
            qemu.args(["-device", &format!("virtserialport,chardev={channel},name={channel}")]);
        }
        self.add_disk(&mut qemu, 0, &self.image, ",readonly=on");
        for (at, disk) in self.disks.iter().enumerate() {
            self.add_disk(&mut qemu, at + 1, disk, ",discard=unmap,detect-zeroes=off");
        }
        if let Some((network, index)) = self.network {
            let netdev = format!("socket,id=net,mcast=239.255.77.1:{},localaddr=127.0.0.1", network.port);
            qemu.args(["-netdev", &netdev]);
            qemu.args(["-device", &format!("virtio-net-pci,netdev=net,mac=52:54:00:77:00:{index:02x}")]);
        }
        qemu
    }

    fn add_disk(&self, qemu: &mut Command, at: usize, path: &Path, options: &str) {
        qemu.args(["-drive", &format!("if=none,id=disk{at},format=raw,file={}{options}", path.display())]);
        qemu.args(["-device", &format!("virtio-blk-pci,drive=disk{at}")]);
    }
}

/// A sparse disk for a guest.
pub fn create_disk(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.set_len(bytes).with_context(|| format!("cannot size {}", path.display()))
}

impl Report {
    /// What is there now, of a guest that may be running still.
    pub fn read(dir: &Path) -> Result<Report> {
        let path = dir.join("results.log");
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Report::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// A last line without its end is still being written: left for the next look.
    fn parse(text: &str) -> Report {
        let mut report = Report::default();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in complete.lines() {
            match line.split_once(' ') {
                Some(("TEST", rest)) => report.results.extend(TestResult::parse(rest)),
                Some(("SAY", rest)) => report.said.push(rest.to_owned()),
                Some(("END", status)) => report.script_status = status.trim().parse().ok(),
                _ => {}
            }
        }
        report
    }

    /// Every test passed or was skipped, there was one, and the script came to its end.
    pub fn is_good(&self) -> bool {
        let failed = self.results.iter().any(|r| matches!(r.verdict, Verdict::Fail(_)));
        !failed && !self.results.is_empty() && self.script_status == Some(0)
    }
}

impl TestResult {
    fn parse(text: &str) -> Option<TestResult> {
        let mut words = text.splitn(3, ' ');
        let name = words.next()?.to_owned();
        let verdict = words.next()?;
        let reason = words.next().unwrap_or_default().trim().to_owned();
        let verdict = match verdict {
            "ok" => Verdict::Ok,
            "SKIP" => Verdict::Skip(reason),
            // A word that is none of ours is a broken script: it must not pass.
            _ => Verdict::Fail(reason),
        };
        Some(TestResult { name, verdict })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_line_by_line() {
        let report =
            Report::parse("BOOTED 6\nTEST a ok\nTEST b FAIL no disk\nSAY ready now\nTEST c SKIP old\nEND 0\nTEST d o");
        let verdicts: Vec<&Verdict> = report.results.iter().map(|r| &r.verdict).collect();
        assert_eq!(verdicts, [&Verdict::Ok, &Verdict::Fail("no disk".into()), &Verdict::Skip("old".into())]);
        assert_eq!(report.said, ["ready now"]);
        assert_eq!(report.script_status, Some(0));
        assert!(!report.is_good());
    }

    #[test]
    fn silence_is_not_success() {
        assert!(!Report::parse("END 0\n").is_good());
        assert!(!Report::parse("TEST a ok\n").is_good());
        assert!(!Report::parse("TEST a ok\nEND 1\n").is_good());
        assert!(!Report::parse("TEST a okay\nEND 0\n").is_good());
        assert!(Report::parse("TEST a ok\nEND 0\n").is_good());
    }
}
