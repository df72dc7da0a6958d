//! Nodes `alice`, `bob`, `charlie` of one resource `r0` with one volume, on sparse files.

use crate::network::{Network, address, address6};
use crate::{Node, wait_for};
use metadata::layout::{Geometry, Layout, Placement};
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tempfile::TempDir;

const NAMES: [&str; 3] = ["alice", "bob", "charlie"];
const PORT: u16 = 7789;
const NBD_PORT: u16 = 10809;

/// What a test wants to be different from the usual.
pub struct Setup {
    pub nodes: u8,
    pub disk_bytes: u64,
    pub ipv6: bool,
    /// Machines on the switch that are no nodes.
    pub guests: u8,
    /// Each node serves NBD over TCP, too, at [`Cluster::nbd_address`].
    pub nbd_tcp: bool,
    pub protocol: char,
    /// More of the table `net`, each ending with a comma.
    pub net: &'static str,
    /// Node, text in the configuration, what this node's file has in its place.
    pub differs: Vec<(u8, &'static str, String)>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            nodes: 2,
            disk_bytes: 64 << 20,
            ipv6: false,
            guests: 0,
            nbd_tcp: false,
            protocol: 'C',
            net: "",
            differs: Vec::new(),
        }
    }
}

/// Declared in the order in which they have to go: daemons, namespaces, files.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub network: Network,
    pub dir: TempDir,
    disk_bytes: u64,
    ipv6: bool,
}

impl Setup {
    /// Namespaces, configuration and empty disks; no metadata, no daemon.
    pub fn prepare(self) -> Cluster {
        let network = Network::new(self.nodes + self.guests);
        let dir = TempDir::new().expect("a temporary directory");
        let node = |at: u8| {
            let name = NAMES[usize::from(at)];
            let node = Node::new(dir.path(), name, network.namespace(at), dir.path().join(format!("{name}.img")));
            File::create(&node.disk).and_then(|f| f.set_len(self.disk_bytes)).expect("a sparse file");
            node
        };
        let nodes: Vec<Node> = (0..self.nodes).map(node).collect();
        let text = self.configuration(dir.path());
        for (at, node) in nodes.iter().enumerate() {
            let own = self.differs.iter().filter(|(whose, ..)| usize::from(*whose) == at);
            let text = own.fold(text.clone(), |text, (_, from, to)| {
                assert!(text.contains(from), "`{from}` is not in the configuration");
                text.replace(from, to)
            });
            std::fs::write(&node.config, text).expect("a configuration can be written");
        }
        Cluster { nodes, network, dir, disk_bytes: self.disk_bytes, ipv6: self.ipv6 }
    }

    /// All nodes up, metadata fresh, nobody Primary. Not necessarily connected.
    pub fn up(self) -> Cluster {
        let mut cluster = self.prepare();
        for node in &mut cluster.nodes {
            node.done("create-md r0");
            node.start();
            node.done("up r0");
        }
        cluster
    }

    /// All connected, the first one Primary, the copies equal.
    pub fn start(self) -> Cluster {
        let cluster = self.up();
        cluster.nodes.iter().for_each(|node| drop(node.done("wait-connect r0 --timeout 120")));
        cluster.nodes[0].done("promote r0 --force");
        cluster.nodes.iter().for_each(|node| drop(node.wait_settled()));
        cluster
    }

    fn configuration(&self, dir: &Path) -> String {
        let mut text = format!(
            "[[resource]]\nname = \"r0\"\n\
             net = {{ protocol = \"{}\", connect-int = 3, timeout = 25, ping-int = 3, ping-timeout = 25, {} \
             cram-hmac-alg = \"sha256\", shared-secret = \"for tests\" }}\n\n\
             [[resource.volume]]\nnumber = 0\ndevice = \"nbd\"\ndisk = \"/nowhere\"\n",
            self.protocol, self.net
        );
        for (at, name) in (0..self.nodes).zip(NAMES) {
            let address = socket_address(at, self.ipv6, PORT);
            let nbd = socket_address(at, self.ipv6, NBD_PORT);
            let device = if self.nbd_tcp { format!(", device = \"nbd:{nbd}\"") } else { String::new() };
            let disk = dir.join(format!("{name}.img"));
            text += &format!(
                "\n[[resource.on]]\nnode = \"{name}\"\nnode-id = {at}\naddress = \"{address}\"\n\
                 volume = [{{ number = 0, disk = \"{}\"{device} }}]\n",
                disk.display()
            );
        }
        text
    }
}

fn socket_address(node: u8, ipv6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(if ipv6 { address6(node) } else { address(node) }, port)
}

impl Cluster {
    /// Two nodes, connected, `alice` Primary, copies equal.
    pub fn start() -> Cluster {
        Setup::default().start()
    }

    pub fn alice(&self) -> &Node {
        &self.nodes[0]
    }
    pub fn bob(&self) -> &Node {
        &self.nodes[1]
    }
    pub fn alice_mut(&mut self) -> &mut Node {
        &mut self.nodes[0]
    }
    pub fn bob_mut(&mut self) -> &mut Node {
        &mut self.nodes[1]
    }

    /// Where a node serves NBD over TCP while it is Primary, if the setup wanted it.
    pub fn nbd_address(&self, node: u8) -> SocketAddr {
        socket_address(node, self.ipv6, NBD_PORT)
    }
    pub fn nbd_tcp_uri(&self, node: u8) -> String {
        format!("nbd://{}/r0.0", self.nbd_address(node))
    }
    /// The namespace of a machine that is no node.
    pub fn guest(&self) -> String {
        self.network.namespace(self.nodes.len() as u8)
    }

    /// Bytes of a disk that carry data; the rest is metadata.
    pub fn usable_bytes(&self) -> u64 {
        let geometry = Geometry::new(self.nodes.len() as u8 - 1);
        Layout::compute(Placement::Internal, self.disk_bytes, geometry).expect("the disk is large enough").usable_bytes
    }

    /// What the volume holds on a node's disk, read behind the daemon's back.
    pub fn data(&self, node: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.usable_bytes() as usize];
        File::open(&self.nodes[node].disk).and_then(|f| f.read_exact_at(&mut bytes, 0)).expect("the disk can be read");
        bytes
    }

    pub fn copies_differ_at(&self) -> Option<usize> {
        let (a, b) = (self.data(0), self.data(1));
        a.iter().zip(&b).position(|(a, b)| a != b)
    }

    /// All settled, and the disks the same, byte for byte.
    pub fn assert_equal_copies(&self) {
        self.nodes.iter().for_each(|node| drop(node.wait_settled()));
        if let Some(at) = self.copies_differ_at() {
            panic!("the copies differ at byte {at}, and nobody knows");
        }
    }

    /// Waits until the disks are the same: what protocols A and B allow to be late.
    pub fn wait_equal_copies(&self) {
        let differ = || format!("they differ at byte {:?}", self.copies_differ_at());
        wait_for("equal copies", differ, || self.copies_differ_at().is_none().then_some(()));
    }
}
