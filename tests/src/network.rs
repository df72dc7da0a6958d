//! One network namespace per node, one for every other machine, and one for the switch between them. The addresses exist inside only, so every
//! test has the same.

use crate::tools;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

pub struct Network {
    prefix: String,
    nodes: u8,
}

impl Network {
    /// `nodes` namespaces, each with `eth0` on the switch. A machine that is no node has the next number.
    pub fn new(nodes: u8) -> Network {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("replicad-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Made before its parts, so that a failure on the way removes them.
        let network = Network { prefix, nodes };
        let switch = network.switch();
        tools::run("ip", &["netns", "add", &switch]);
        tools::run("ip", &["-n", &switch, "link", "add", "switch", "type", "bridge"]);
        tools::run("ip", &["-n", &switch, "link", "set", "switch", "up"]);
        (0..nodes).for_each(|node| network.plug(node));
        network
    }

    fn plug(&self, node: u8) {
        let (switch, own, port) = (self.switch(), self.namespace(node), format!("port{node}"));
        let (v4, v6) = (format!("{}/24", address(node)), format!("{}/64", address6(node)));
        tools::run("ip", &["netns", "add", &own]);
        tools::run("ip", &["-n", &own, "link", "set", "lo", "up"]);
        let veth = ["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &own];
        tools::run("ip", &veth);
        tools::run("ip", &["-n", &switch, "link", "set", &port, "master", "switch", "up"]);
        tools::run("ip", &["-n", &own, "addr", "add", &v4, "dev", "eth0"]);
        tools::run("ip", &["-n", &own, "-6", "addr", "add", &v6, "dev", "eth0", "nodad"]);
        tools::run("ip", &["-n", &own, "link", "set", "eth0", "up"]);
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.prefix)
    }

    pub fn namespace(&self, node: u8) -> String {
        format!("{}-{}", self.prefix, char::from(b'a' + node))
    }

    /// One more address, as `10.1.1.31/24`.
    pub fn add_address(&self, node: u8, address: &str) {
        tools::run("ip", &["-n", &self.namespace(node), "addr", "add", address, "dev", "eth0"]);
    }

    /// The cable: the node keeps its interface and its address, nothing gets through.
    pub fn set_link(&self, node: u8, up: bool) {
        let state = if up { "up" } else { "down" };
        tools::run("ip", &["-n", &self.switch(), "link", "set", &format!("port{node}"), state]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Also after a failure half way: some may not be there.
        for node in 0..self.nodes {
            tools::output("ip", &["netns", "del", &self.namespace(node)]);
        }
        tools::output("ip", &["netns", "del", &self.switch()]);
    }
}

pub fn address(node: u8) -> IpAddr {
    Ipv4Addr::new(10, 99, 0, node + 1).into()
}

pub fn address6(node: u8) -> IpAddr {
    Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, u16::from(node) + 1).into()
}

/// Runs `work` as a program in that namespace: sockets that it makes stay there. On a thread of its own, which takes
/// the change of namespace with it.
pub fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let path = format!("/run/netns/{namespace}");
    let file = File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let enter = || {
        // Safety: plain numbers, and the descriptor is held.
        let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(entered, 0, "{path}: {}", std::io::Error::last_os_error());
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter).join().expect("the work in the namespace does not panic"))
}
