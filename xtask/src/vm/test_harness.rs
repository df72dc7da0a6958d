//! `xtask vm test-harness`: what other tests rely on. Two guests reach each other; what a guest flushed to its disk is
//! there after a power cut, and the guest says so from its next life.

use super::image::Image;
use super::kernel::Flavour;
use super::machine::{Network, Vm, create_disk};
use super::{Lab, judge};
use anyhow::{Result, bail, ensure};
use std::time::Duration;

const WRITE_AND_WAIT: &str = "
ip addr add 10.77.0.1/24 dev eth0; ip link set eth0 up
echo durable | dd of=/dev/vdb bs=512 conv=sync,fsync
say written
sleep 100000
";
const READ_AGAIN: &str = "check kept_over_power_cut equal content \"$(head -c 7 /dev/vdb)\" durable";
const REACH: &str = "
ip addr add 10.77.0.2/24 dev eth0; ip link set eth0 up
check reach_other_guest eventually ping -c 1 -W 5 10.77.0.1
";

pub fn main(lab: &Lab, flavours: &[Flavour], refresh: bool) -> Result<()> {
    let image = Image::with_tools()?.build(&lab.cache)?;
    for flavour in flavours {
        let Some(kernel) = lab.kernel_or_skip(*flavour, refresh, "the harness") else { continue };
        let dir = lab.run_dir(&format!("harness-{}", flavour.name()))?;
        let disk = dir.join("disk.raw");
        create_disk(&disk, 64 << 20)?;
        let network = Network::new()?;
        let guest = || Vm::builder(&kernel, &image).cpus(1).memory_mib(512).timeout(Duration::from_secs(120));

        let alice = guest().disk(&disk).network(network, 1).script(WRITE_AND_WAIT);
        let mut alice = alice.start(&lab.cache, &dir.join("alice"))?;
        alice.wait_said("written")?;
        let bob = guest().network(network, 2).script(REACH).run(&lab.cache, &dir.join("bob"))?;
        judge(&format!("harness {}", kernel.release), &bob, &dir.join("bob"))?;
        alice.power_cut()?;
        let cut = alice.report()?;
        ensure!(cut.script_status.is_none(), "a guest that was cut off reported an end");

        let again = guest().disk(&disk).script(READ_AGAIN).run(&lab.cache, &dir.join("alice"))?;
        judge(&format!("harness {}", kernel.release), &again, &dir.join("alice"))?;
        // A test that can't fail proves nothing: the harness must see a script that fails.
        let bad = guest().script("half() { false; true; }; check impossible half").run(&lab.cache, &dir.join("bad"))?;
        if bad.is_good() {
            bail!("a failing check was reported as good");
        }
    }
    Ok(())
}
