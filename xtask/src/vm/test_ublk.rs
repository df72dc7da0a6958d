//! `xtask vm test-ublk`: the ublk frontend on the kernel's ublk driver, through its examples.

use super::image::Image;
use super::kernel::Flavour;
use super::machine::{Vm, create_disk};
use super::{Lab, judge};
use crate::packages;
use anyhow::{Result, bail};
use std::path::Path;

const SCRIPT: &str = include_str!("test_ublk.sh");

pub fn main(lab: &Lab, flavours: &[Flavour], refresh: bool) -> Result<()> {
    packages::ensure_libclang()?;
    let mut image = Image::with_tools()?;
    for example in ["memdisk", "two_on_one_ring"] {
        let built = lab.cargo_build(&["-p", "ublk-frontend", "--example", example], &format!("examples/{example}"))?;
        image.add_binary(&built, Path::new("/usr/bin").join(example))?;
    }
    let image = image.build(&lab.cache)?;
    let mut failed = Vec::new();
    for flavour in flavours {
        if let Err(e) = test(lab, *flavour, refresh, &image) {
            eprintln!("{e:#}");
            failed.push(flavour.name());
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("ublk tests failed on kernel {}", failed.join(", ")) }
}

fn test(lab: &Lab, flavour: Flavour, refresh: bool, image: &Path) -> Result<()> {
    let Some(kernel) = lab.kernel_or_skip(flavour, refresh, "the ublk frontend") else { return Ok(()) };
    let title = format!("ublk {}", kernel.release);
    let dir = lab.run_dir(&format!("ublk-{}", flavour.name()))?;
    let disk = dir.join("backing.raw");
    create_disk(&disk, 1 << 30)?;
    let report = Vm::builder(&kernel, image)
        .module("ublk_drv")
        .module("xfs")
        .disk(&disk)
        .script(SCRIPT)
        .run(&lab.cache, &dir)?;
    judge(&title, &report, &dir)
}
