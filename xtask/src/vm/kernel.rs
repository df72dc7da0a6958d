//! Kernels for the guests: found in the Debian archive this machine already uses, downloaded and unpacked into the
//! cache folder. Nothing is installed. Touches only `.cache/vm/kernel`.
//!
//! Versions are replaced in the archive all the time, so none is named here: the newest that fits is taken, and kept
//! until `--refresh`.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which kernel a test wants. The names are those of `--kernel`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Flavour {
    /// The long-term kernel: ublk with user copy and recovery, drbd 8.4
    #[value(name = "6.12")]
    V6_12,
    /// The newest: ublk with zero copy, resize and quiesce
    #[value(name = "7")]
    V7,
}

impl Flavour {
    pub const ALL: [Flavour; 2] = [Flavour::V6_12, Flavour::V7];

    pub const fn name(self) -> &'static str {
        match self {
            Flavour::V6_12 => "6.12",
            Flavour::V7 => "7",
        }
    }
    /// Packages that hold the image; a release is what follows the prefix.
    const fn image_prefix(self) -> &'static str {
        match self {
            Flavour::V6_12 => "linux-image-6.12.",
            Flavour::V7 => "linux-binary-7.",
        }
    }
    /// Modules in a package of their own, named by the same release.
    const fn modules_prefix(self) -> Option<&'static str> {
        match self {
            Flavour::V6_12 => None,
            Flavour::V7 => Some("linux-modules-7."),
        }
    }
    /// Suites to try, in order; each entry is fetched on its own until a kernel is found.
    const fn suites(self) -> &'static [Suite] {
        match self {
            Flavour::V6_12 => &[
                Suite::Security("bookworm-security"),
                Suite::Security("trixie-security"),
                Suite::Main("trixie"),
                Suite::Main("bookworm-backports"),
            ],
            Flavour::V7 => &[Suite::Main("trixie-backports"), Suite::Main("forky"), Suite::Main("sid")],
        }
    }
}

#[derive(Clone, Copy)]
enum Suite {
    Main(&'static str),
    Security(&'static str),
}

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub release: String,
    pub vmlinuz: PathBuf,
    /// Holds `modules.dep`.
    modules: PathBuf,
}

impl Kernel {
    /// The newest kernel of this flavour, from the cache unless `refresh`.
    pub fn obtain(flavour: Flavour, cache: &Path, refresh: bool) -> Result<Kernel> {
        let home = cache.join("kernel").join(flavour.name());
        let root = home.join("root");
        if !refresh && let Ok(kernel) = Kernel::open(&root) {
            return Ok(kernel);
        }
        fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
        let unpacked = home.join("root.new");
        remove_dir(&unpacked)?;
        download(flavour, &home, &unpacked)?;
        depmod(&unpacked)?;
        remove_dir(&root)?;
        fs::rename(&unpacked, &root)?;
        Kernel::open(&root)
    }

    fn open(root: &Path) -> Result<Kernel> {
        let all = root.join("lib/modules");
        let release = fs::read_dir(&all)
            .with_context(|| format!("cannot read {}", all.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .next()
            .with_context(|| format!("no kernel in {}", all.display()))?;
        let modules = all.join(&release);
        let candidates = [root.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
        let vmlinuz =
            candidates.into_iter().find(|path| path.is_file()).with_context(|| format!("no vmlinuz for {release}"))?;
        if !modules.join("modules.dep").is_file() {
            bail!("no modules.dep for {release}");
        }
        Ok(Kernel { release, vmlinuz, modules })
    }

    /// Module files for `names` and all they depend on, in the order in which they must be loaded. Names that are
    /// built in, or that this kernel lacks, are left out: the guest finds out when it uses them.
    pub fn module_closure(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let table = fs::read_to_string(self.modules.join("modules.dep"))?;
        let mut seen = BTreeSet::new();
        let mut order = Vec::new();
        for name in names {
            for file in dependencies(&table, name) {
                if seen.insert(file.to_owned()) {
                    order.push(self.modules.join(file));
                }
            }
        }
        Ok(order)
    }
}

/// The line of modules.dep for `name`, last dependency first, the module itself last.
fn dependencies<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    for line in table.lines() {
        let Some((file, needs)) = line.split_once(':') else { continue };
        if module_name(file) == name.replace('-', "_") {
            return needs.split_whitespace().rev().chain([file]).collect();
        }
    }
    Vec::new()
}

/// `kernel/drivers/block/ublk_drv.ko.xz` is `ublk_drv`.
pub fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

fn download(flavour: Flavour, home: &Path, unpacked: &Path) -> Result<()> {
    let archives = Archives::of_this_machine()?;
    let mut tried = Vec::new();
    for suite in flavour.suites() {
        let (uri, name) = match suite {
            Suite::Main(name) => (&archives.main, name),
            Suite::Security(name) => (&archives.security, name),
        };
        let Some(uri) = uri else { continue };
        tried.push(*name);
        let apt = PrivateApt::new(home, uri, name, archives.signed_by.as_deref())?;
        // A suite that this mirror lacks is no error: the next one may have the kernel.
        if apt.command("apt-get").args(["-q", "update"]).output().context("cannot run apt-get")?.status.success()
            && let Some(packages) = newest(flavour, &apt.package_names()?)
        {
            eprintln!("xtask: downloading {} from {name}", packages.join(" "));
            apt.unpack(&packages, unpacked)?;
            return Ok(());
        }
    }
    bail!("no kernel {} found; suites tried: {}", flavour.name(), tried.join(", "))
}

/// The packages of the newest release that is complete.
fn newest(flavour: Flavour, names: &BTreeSet<String>) -> Option<Vec<String>> {
    let releases = names.iter().filter_map(|name| name.strip_prefix(flavour.image_prefix()));
    let mut releases: Vec<&str> = releases.filter(|release| release.ends_with("-cloud-amd64")).collect();
    releases.sort_by_key(|release| version_key(release));
    releases.iter().rev().find_map(|release| {
        let mut packages = vec![format!("{}{release}", flavour.image_prefix())];
        if let Some(prefix) = flavour.modules_prefix() {
            packages.push(format!("{prefix}{release}"));
        }
        packages.iter().all(|package| names.contains(package)).then_some(packages)
    })
}

/// Numbers of a release, for ordering: `12.117+deb12-…` is [12, 117, 12, …].
fn version_key(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// Where this machine gets its packages from.
#[derive(Default, Debug, PartialEq)]
struct Archives {
    main: Option<String>,
    security: Option<String>,
    signed_by: Option<String>,
}

impl Archives {
    fn of_this_machine() -> Result<Archives> {
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
            files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        }
        files.sort();
        let mut archives = Archives::default();
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else { continue };
            match file.extension().and_then(|e| e.to_str()) {
                Some("list") => archives.read_lines(&text),
                Some("sources") => archives.read_stanzas(&text),
                _ => {}
            }
        }
        if archives.main.is_none() && archives.security.is_none() {
            bail!("no Debian archive in /etc/apt/sources.list*: cannot find kernels for virtual machines");
        }
        Ok(archives)
    }

    fn read_lines(&mut self, text: &str) {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words: Vec<&str> = line.split_whitespace().collect();
            if words.first() != Some(&"deb") {
                continue;
            }
            let mut signed_by = None;
            if words.get(1).is_some_and(|word| word.starts_with('[')) {
                let Some(end) = words.iter().position(|word| word.ends_with(']')) else { continue };
                let options = words[1..=end].join(" ");
                signed_by = options
                    .trim_matches(['[', ']'])
                    .split(' ')
                    .find_map(|o| o.strip_prefix("signed-by=").map(str::to_owned));
                words.drain(1..=end);
            }
            if let [_, uri, suite, ..] = words[..] {
                self.note(uri, suite, signed_by);
            }
        }
    }

    fn read_stanzas(&mut self, text: &str) {
        for stanza in text.split("\n\n") {
            let field = |name: &str| {
                stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|v| v.trim().to_owned()))
            };
            let (Some(uris), Some(suites)) = (field("URIs"), field("Suites")) else { continue };
            let Some(uri) = uris.split_whitespace().next() else { continue };
            for suite in suites.split_whitespace() {
                self.note(uri, suite, field("Signed-By"));
            }
        }
    }

    /// Keeps the first address of each kind. Other vendors' archives do not use Debian's suite names.
    fn note(&mut self, uri: &str, suite: &str, signed_by: Option<String>) {
        let base = suite.split(['-', '/']).next().unwrap_or(suite);
        if !["bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable"].contains(&base) {
            return;
        }
        let slot = if suite.contains("security") {
            &mut self.security
        } else if suite == base {
            &mut self.main
        } else {
            return;
        };
        slot.get_or_insert_with(|| uri.to_owned());
        if self.signed_by.is_none() {
            self.signed_by = signed_by;
        }
    }
}

/// apt with its lists, cache and sources in a folder of ours.
struct PrivateApt {
    dir: PathBuf,
}

impl PrivateApt {
    fn new(home: &Path, uri: &str, suite: &str, signed_by: Option<&str>) -> Result<PrivateApt> {
        let dir = home.join("apt").join(suite);
        for part in ["lists/partial", "archives/partial", "sources"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let mut source = format!("Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n");
        if let Some(key) = signed_by {
            source.push_str(&format!("Signed-By: {key}\n"));
        }
        fs::write(dir.join("sources/archive.sources"), source)?;
        Ok(PrivateApt { dir })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |key: &str, value: &str| {
            command.arg("-o").arg(format!("{key}={value}"));
        };
        let at = |part: &str| self.dir.join(part).display().to_string();
        option("Dir::Etc::sourcelist", "/dev/null");
        option("Dir::Etc::sourceparts", &at("sources"));
        option("Dir::State::Lists", &at("lists"));
        option("Dir::Cache", &at(""));
        option("Dir::Cache::archives", &at("archives"));
        option("Acquire::Languages", "none");
        option("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false");
        option("APT::Sandbox::User", "root");
        command
    }

    fn package_names(&self) -> Result<BTreeSet<String>> {
        let out = self.command("apt-cache").args(["pkgnames", "linux-"]).output().context("cannot run apt-cache")?;
        Ok(String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
    }

    fn unpack(&self, packages: &[String], target: &Path) -> Result<()> {
        let debs = self.dir.join("debs");
        remove_dir(&debs)?;
        fs::create_dir_all(&debs)?;
        run(self.command("apt-get").current_dir(&debs).args(["-q", "download"]).args(packages))?;
        // dpkg -x follows the link, so both layouts of Debian (/lib and /usr/lib) end in one place.
        fs::create_dir_all(target.join("usr/lib"))?;
        std::os::unix::fs::symlink("usr/lib", target.join("lib"))?;
        for entry in fs::read_dir(&debs)? {
            run(Command::new("dpkg").arg("-x").arg(entry?.path()).arg(target))?;
        }
        remove_dir(&debs)
    }
}

fn depmod(root: &Path) -> Result<()> {
    let all = root.join("lib/modules");
    for entry in fs::read_dir(&all).with_context(|| format!("no modules in {}", all.display()))? {
        run(Command::new("depmod").arg("-b").arg(root).arg(entry?.file_name()))?;
    }
    Ok(())
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Runs a command whose output matters only when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if out.status.success() {
        return Ok(());
    }
    bail!("{command:?} failed ({}): {}", out.status, String::from_utf8_lossy(&out.stderr).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_after_what_they_need() {
        let table = "kernel/a.ko.xz: kernel/b.ko.xz kernel/c-d.ko.xz\nkernel/c-d.ko.xz:\n";
        assert_eq!(dependencies(table, "a"), ["kernel/c-d.ko.xz", "kernel/b.ko.xz", "kernel/a.ko.xz"]);
        assert_eq!(dependencies(table, "c_d"), ["kernel/c-d.ko.xz"]);
        assert!(dependencies(table, "absent").is_empty());
    }

    #[test]
    fn the_newest_complete_release_is_taken() {
        let names = |list: &[&str]| list.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>();
        let both = names(&[
            "linux-image-6.12.99+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.118+deb12-cloud-amd64-dbg",
            "linux-image-6.12.119+deb12-cloud-arm64",
        ]);
        assert_eq!(newest(Flavour::V6_12, &both).unwrap(), ["linux-image-6.12.117+deb12-cloud-amd64"]);
        let halves = names(&[
            "linux-binary-7.2.9+deb13-cloud-amd64",
            "linux-modules-7.2.9+deb13-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.2.10+deb13-cloud-amd64",
        ]);
        let newest = newest(Flavour::V7, &halves).unwrap();
        assert_eq!(newest, ["linux-binary-7.2.9+deb13-cloud-amd64", "linux-modules-7.2.9+deb13-cloud-amd64"]);
    }

    #[test]
    fn archives_are_read_in_both_forms() {
        let mut a = Archives::default();
        a.read_lines(
            "# deb http://old bookworm main\ndeb [arch=amd64 signed-by=/k.gpg] http://m/debian bookworm main\n",
        );
        a.read_lines("deb http://other.example/x nodistro main\ndeb http://s/debian trixie-security main\n");
        let mut b = Archives::default();
        b.read_stanzas(
            "Types: deb\n# note\nURIs: http://m/debian\nSuites: bookworm bookworm-updates\nSigned-By: /k.gpg\n",
        );
        b.read_stanzas("Types: deb\nURIs: http://s/debian\nSuites: trixie-security\n\n");
        assert_eq!(a, b);
        assert_eq!(a.main.as_deref(), Some("http://m/debian"));
        assert_eq!(a.security.as_deref(), Some("http://s/debian"));
        assert_eq!(a.signed_by.as_deref(), Some("/k.gpg"));
    }
}
