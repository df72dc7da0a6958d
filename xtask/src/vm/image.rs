//! The guest's read-only root: an ext4 image of the tools and binaries a test needs, with the libraries they load.
//! Made without root rights by `mkfs.ext4 -d`; cached by what goes in.

use super::kernel::run;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What every guest has besides busybox. Those that this machine lacks are left out: a script that wants one says so.
pub const TOOLS: &[&str] = &[
    "dash",
    "mkfs.ext4",
    "e2fsck",
    "mkfs.xfs",
    "xfs_repair",
    "fio",
    "blkdiscard",
    "blockdev",
    "lsblk",
    "losetup",
    "flock",
    "ip",
    "tc",
    "ss",
    "nbd-client",
    "drbdmeta",
    "drbdsetup",
    "drbdadm",
    "dmsetup",
    "cmp",
    "dd",
    "timeout",
    "mount",
    "umount",
    "sync",
    "fallocate",
    "stat",
    "strace",
];

/// Images kept in the cache; the oldest go first. About 100 MB each.
const IMAGES_KEPT: usize = 6;

/// Content of an image in the making: where it lies in the guest -> the file here.
#[derive(Default)]
pub struct Image {
    files: BTreeMap<PathBuf, PathBuf>,
}

impl Image {
    /// With `TOOLS`.
    pub fn with_tools() -> Result<Image> {
        let mut image = Image::default();
        for tool in TOOLS {
            if let Some(path) = which(tool) {
                image.add_binary(&path, Path::new("/usr/bin").join(tool))?;
            }
        }
        // fio's nbd engine and others come as plug-ins; the engines built in are enough.
        Ok(image)
    }

    /// A file as it is.
    pub fn add_file(&mut self, here: &Path, guest: impl Into<PathBuf>) -> Result<()> {
        if !here.is_file() {
            bail!("{}: no such file, wanted in the guest's image", here.display());
        }
        self.files.insert(guest.into(), here.to_owned());
        Ok(())
    }

    /// A program and the libraries it loads, these at the same place as here.
    pub fn add_binary(&mut self, here: &Path, guest: impl Into<PathBuf>) -> Result<()> {
        self.add_file(here, guest)?;
        for library in libraries(here)? {
            let place = usr_merged(&library);
            self.files.insert(place, library);
        }
        Ok(())
    }

    /// The image file, made if the cache has none with the same content.
    pub fn build(&self, cache: &Path) -> Result<PathBuf> {
        let dir = cache.join("image");
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{:016x}.ext4", self.content_hash()?));
        if !path.is_file() {
            let work = dir.join(format!("{}.tree", std::process::id()));
            let _ = fs::remove_dir_all(&work);
            self.make(&work, &path)?;
            fs::remove_dir_all(&work)?;
        }
        fs::File::options().append(true).open(&path)?.set_modified(std::time::SystemTime::now())?;
        forget_old(&dir)?;
        Ok(path)
    }

    fn content_hash(&self) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        for (guest, here) in &self.files {
            hasher.write(guest.as_os_str().as_encoded_bytes());
            hasher.write(&fs::read(here).with_context(|| format!("cannot read {}", here.display()))?);
        }
        Ok(hasher.finish())
    }

    fn make(&self, tree: &Path, image: &Path) -> Result<()> {
        let dirs = [
            "usr/bin",
            "usr/sbin",
            "usr/lib",
            "usr/lib64",
            "etc/lvm",
            "proc",
            "sys",
            "dev",
            "run",
            "tmp",
            "var",
            "root",
            "mnt",
            "mnt/a",
            "mnt/b",
        ];
        for dir in dirs {
            fs::create_dir_all(tree.join(dir))?;
        }
        for link in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{link}"), tree.join(link))?;
        }
        symlink("/proc/mounts", tree.join("etc/mtab"))?;
        fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        fs::write(tree.join("etc/group"), "root:x:0:\n")?;
        fs::write(tree.join("etc/hosts"), "127.0.0.1 localhost\n")?;
        for (guest, here) in &self.files {
            let place = tree.join(guest.strip_prefix("/").unwrap_or(guest));
            fs::create_dir_all(place.parent().context("a file in the guest has a folder")?)?;
            fs::copy(here, &place).with_context(|| format!("cannot copy {}", here.display()))?;
        }
        add_busybox(tree)?;
        let bytes = tree_bytes(tree)?;
        let fresh = image.with_extension(format!("{}.new", std::process::id()));
        fs::File::create(&fresh)?.set_len((bytes + bytes / 4 + (32 << 20)).next_multiple_of(1 << 20))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-O", "^has_journal", "-d"]).arg(tree).arg(&fresh))?;
        fs::rename(&fresh, image)?;
        Ok(())
    }
}

/// busybox under all its names, where no real tool took the name.
fn add_busybox(tree: &Path) -> Result<()> {
    fs::copy("/bin/busybox", tree.join("usr/bin/busybox")).context("is busybox-static installed?")?;
    let out = Command::new("/bin/busybox").arg("--list").output()?;
    for name in String::from_utf8_lossy(&out.stdout).lines() {
        let link = tree.join("usr/bin").join(name);
        if !link.exists() {
            symlink("busybox", link)?;
        }
    }
    Ok(())
}

/// Where `/lib` is a link to `/usr/lib`, as in the image.
fn usr_merged(path: &Path) -> PathBuf {
    if path.starts_with("/usr") {
        path.to_owned()
    } else {
        Path::new("/usr").join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Everything the dynamic linker would load, and the linker. Empty for a static program or a script.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    parse_ldd(&String::from_utf8_lossy(&out.stdout)).with_context(|| format!("{}", program.display()))
}

fn parse_ldd(listing: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in listing.lines() {
        if line.contains("not found") {
            bail!("a library is missing on this machine: {}", line.trim());
        }
        let file = line.split("=>").last().unwrap_or(line).split_whitespace().next().unwrap_or_default();
        if file.starts_with('/') && line.contains("(0x") {
            found.push(PathBuf::from(file));
        }
    }
    Ok(found)
}

/// A program of this machine, looked up where root's programs are too.
pub fn which(name: &str) -> Option<PathBuf> {
    let dirs = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
    dirs.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

fn tree_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        bytes += if kind.is_dir() {
            4096 + tree_bytes(&entry.path())?
        } else {
            entry.metadata()?.len().next_multiple_of(4096)
        };
    }
    Ok(bytes)
}

fn forget_old(dir: &Path) -> Result<()> {
    let mut images = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|e| e == "ext4") {
            images.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    images.sort();
    let surplus = images.len().saturating_sub(IMAGES_KEPT);
    for (_, path) in &images[..surplus] {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_lines_of_each_form() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = parse_ldd(listing).unwrap();
        assert_eq!(found, [Path::new("/lib/x86_64-linux-gnu/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
        assert!(parse_ldd("\tnot a dynamic executable\n").unwrap().is_empty());
        assert!(parse_ldd("\tlibx.so => not found\n").is_err());
        assert_eq!(usr_merged(&found[1]), Path::new("/usr/lib64/ld-linux-x86-64.so.2"));
    }
}
