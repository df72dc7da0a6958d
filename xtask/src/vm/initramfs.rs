//! What the kernel starts with: busybox, modules in loading order, our init; and the script of one run. Written in the
//! kernel's "newc" cpio format, which is simple enough to need no tool. Archives may be concatenated: the big part is
//! cached, the small one is made for each run.

use super::kernel::{Kernel, module_name};
use anyhow::{Context, Result, bail};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

const INIT: &str = include_str!("init.sh");
const START: &str = include_str!("start.sh");
const LIB: &str = include_str!("lib.sh");

/// Modules every guest needs for its root, its channels to the host and its network.
const BASE_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "ext4"];

/// Writes the archive for one run to `target`. `modules` are names, optionally followed by options:
/// `"drbd disable_sendpage=0"`.
pub fn write(target: &Path, cache: &Path, kernel: &Kernel, modules: &[String], script: &str) -> Result<()> {
    let base = base(cache, kernel, modules)?;
    let mut archive = fs::read(&base).with_context(|| format!("cannot read {}", base.display()))?;
    let mut run = Cpio::default();
    run.directory("vm");
    run.file("vm/start.sh", 0o755, START.as_bytes());
    run.file("vm/lib.sh", 0o644, LIB.as_bytes());
    run.file("vm/script.sh", 0o755, format!(". /run/vm/lib.sh\n{script}\n").as_bytes());
    archive.extend(run.finish());
    fs::write(target, archive).with_context(|| format!("cannot write {}", target.display()))
}

fn base(cache: &Path, kernel: &Kernel, modules: &[String]) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (INIT, &kernel.release, modules).hash(&mut hasher);
    let dir = cache.join("initramfs");
    let path = dir.join(format!("{}-{:016x}.cpio", kernel.release, hasher.finish()));
    if path.is_file() {
        return Ok(path);
    }
    fs::create_dir_all(&dir)?;
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&fresh, make_base(kernel, modules)?)?;
    fs::rename(&fresh, &path)?;
    Ok(path)
}

fn make_base(kernel: &Kernel, modules: &[String]) -> Result<Vec<u8>> {
    let named: Vec<(&str, &str)> = modules.iter().map(|m| m.split_once(' ').unwrap_or((m, ""))).collect();
    let names: Vec<&str> = BASE_MODULES.iter().copied().chain(named.iter().map(|(name, _)| *name)).collect();
    let busybox = fs::read("/bin/busybox").context("cannot read /bin/busybox: is busybox-static installed?")?;
    let mut cpio = Cpio::default();
    for dir in ["bin", "modules"] {
        cpio.directory(dir);
    }
    cpio.file("bin/busybox", 0o755, &busybox);
    cpio.file("init", 0o755, INIT.as_bytes());
    for (at, file) in kernel.module_closure(&names)?.iter().enumerate() {
        let name = module_name(&file.to_string_lossy());
        cpio.file(&format!("modules/{at:03}-{name}.ko"), 0o644, &decompressed(file)?);
        if let Some((_, options)) = named.iter().find(|(n, options)| n.replace('-', "_") == name && !options.is_empty())
        {
            cpio.file(&format!("modules/{at:03}-{name}.options"), 0o644, options.as_bytes());
        }
    }
    Ok(cpio.finish())
}

fn decompressed(file: &Path) -> Result<Vec<u8>> {
    let tool = match file.extension().and_then(|e| e.to_str()) {
        Some("ko") => return fs::read(file).with_context(|| format!("cannot read {}", file.display())),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => bail!("{}: unknown compression of a module", file.display()),
    };
    let out = Command::new(tool).arg("-dc").arg(file).output().with_context(|| format!("cannot run {tool}"))?;
    if !out.status.success() {
        bail!("{tool} -dc {}: {}", file.display(), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(out.stdout)
}

/// A cpio archive in the making.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040755, &[]);
    }
    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, 0o100000 | mode, content);
    }
    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        // The kernel skips zeroes between archives; each begins on a boundary of 4.
        self.pad();
        self.bytes
    }

    /// Header (110 bytes of hexadecimal), name with its zero, content; each padded to 4.
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let len = u32::try_from(content.len()).expect("a file of an initramfs is below 4 GiB");
        let name_len = u32::try_from(name.len() + 1).expect("short names");
        let links = 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name length, checksum
        let fields = [self.inode, mode, 0, 0, links, 0, len, 0, 0, 0, 0, name_len, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_aligned_and_says_its_sizes() {
        let mut cpio = Cpio::default();
        cpio.file("ab", 0o644, b"hello");
        // 110 + "ab\0" = 113, padded to 116, then 5 bytes of content padded to 8.
        assert_eq!(cpio.bytes.len(), 124);
        assert_eq!(&cpio.bytes[54..62], b"00000005");
        assert_eq!(&cpio.bytes[94..102], b"00000003");
        assert_eq!(&cpio.bytes[116..121], b"hello");
        assert_eq!(cpio.finish().len() % 4, 0);
    }
}
