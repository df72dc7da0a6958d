//! The configuration as the daemon and replicactl use it: checked, inherited, typed.

use crate::diagnostic::{ConfigError, Diagnostic};
use crate::options::{DiskOptions, GlobalOptions, NetOptions, PeerDeviceOptions, ResourceOptions, StartupOptions};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use types::{NodeId, VolumeNumber};

/// The same for every node; [`Config::for_node`] gives one node's view.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub global: GlobalOptions,
    /// In the order of the files.
    pub resources: Vec<Resource>,
    /// What is accepted but has no effect. To be logged once at start.
    pub warnings: Vec<Diagnostic>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Resource {
    pub name: String,
    pub options: ResourceOptions,
    pub startup: StartupOptions,
    /// Key: one of [`crate::options::HANDLERS`].
    pub handlers: BTreeMap<&'static str, Handler>,
    /// At resource level; connections have their own.
    pub net: NetOptions,
    /// At resource level; each node has its own list. By number.
    pub volumes: Vec<Volume>,
    /// In the order of the file, at least one. Ids and names are unique.
    pub nodes: Vec<Node>,
    /// Every pair of nodes that talks, the lower id first.
    pub connections: Vec<Connection>,
}

/// What to run on an event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Handler {
    /// Program and arguments; never empty.
    Program(Vec<String>),
    /// For `/bin/sh -c`.
    Shell(String),
}

#[derive(Clone, PartialEq, Debug)]
pub struct Volume {
    pub number: VolumeNumber,
    pub device: Device,
    pub disk: Disk,
    /// `Internal` without a disk.
    pub meta_disk: MetaDisk,
    /// Counts for quorum although it has no disk.
    pub tiebreaker: bool,
    pub options: DiskOptions,
}

/// How applications reach the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// `/dev/ublkbN`.
    Ublk(u32),
    /// `RUN_DIR/RESOURCE.VOLUME.nbd`, and TCP at `listen`: without authentication, so only if somebody asked for it.
    Nbd {
        listen: Option<SocketAddr>,
    },
    None,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Disk {
    /// Block device or regular file.
    Path(PathBuf),
    /// Intentionally diskless.
    None,
}

impl Disk {
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Disk::Path(path) => Some(path),
            Disk::None => None,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaDisk {
    /// At the end of the disk.
    Internal,
    /// The whole of another device.
    External(PathBuf),
    /// Slot of 128 MiB on another device.
    Indexed { path: PathBuf, index: u8 },
}

#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// As written.
    pub name: String,
    /// Other host names of the same node.
    pub aliases: Vec<String>,
    pub id: NodeId,
    pub address: SocketAddr,
    /// With this node's overrides. Same numbers as [`Resource::volumes`].
    pub volumes: Vec<Volume>,
}

impl Node {
    /// Host names compare without regard to case, a short name equals a full one with the same first part.
    pub fn is_named(&self, host: &str) -> bool {
        std::iter::once(&self.name).chain(&self.aliases).any(|name| same_host(name, host))
    }
}

fn same_host(a: &str, b: &str) -> bool {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    match (a.split_once('.'), b.split_once('.')) {
        (None, Some((short, _))) => a == short,
        (Some((short, _)), None) => b == short,
        _ => a == b,
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Connection {
    /// The lower id first.
    pub nodes: [NodeId; 2],
    pub net: NetOptions,
    /// Addresses in the order of `nodes`; at least one pair, the first is preferred.
    pub paths: Vec<[SocketAddr; 2]>,
    pub peer_devices: BTreeMap<VolumeNumber, PeerDeviceOptions>,
}

/// A resource as one node sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct LocalResource {
    pub name: String,
    pub options: ResourceOptions,
    pub startup: StartupOptions,
    pub handlers: BTreeMap<&'static str, Handler>,
    pub node: Node,
    /// By id.
    pub peers: Vec<Peer>,
    /// Host name of every node of the resource, also of those this node has no connection to.
    pub node_names: BTreeMap<NodeId, String>,
}

impl LocalResource {
    pub fn volumes(&self) -> &[Volume] {
        &self.node.volumes
    }
    pub fn volume(&self, number: VolumeNumber) -> Option<&Volume> {
        self.node.volumes.iter().find(|v| v.number == number)
    }
    /// By host name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|p| p.name == name).or_else(|| self.peers.iter().find(|p| same_host(&p.name, name)))
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Peer {
    pub name: String,
    pub id: NodeId,
    pub net: NetOptions,
    /// At least one.
    pub paths: Vec<Path>,
    pub volumes: BTreeMap<VolumeNumber, PeerVolume>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

#[derive(Clone, PartialEq, Debug)]
pub struct PeerVolume {
    /// The configuration gives the peer a disk for this volume.
    pub has_disk: bool,
    /// `bitmap` is off for a peer without disk.
    pub options: PeerDeviceOptions,
}

impl Config {
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|r| r.name == name)
    }

    /// The resources that `node` takes part in. An error if there is none: the name is most likely wrong.
    pub fn for_node(&self, node: &str) -> Result<Vec<LocalResource>, ConfigError> {
        let local: Vec<LocalResource> = self.resources.iter().filter_map(|r| r.for_node(node)).collect();
        if !local.is_empty() || self.resources.is_empty() {
            return Ok(local);
        }
        let mut known: Vec<&str> = self.resources.iter().flat_map(|r| &r.nodes).map(|n| n.name.as_str()).collect();
        known.sort_unstable();
        known.dedup();
        Err(ConfigError::whole(
            format!("no resource has an `on` entry for node `{node}`, only for {}", known.join(", ")),
            "give the right name with --node, or add the node to the configuration",
        ))
    }
}

impl Resource {
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes.iter().find(|n| n.id == id).unwrap_or_else(|| panic!("resource {} has no {id:?}", self.name))
    }

    /// `None` if the node takes no part.
    pub fn for_node(&self, name: &str) -> Option<LocalResource> {
        let node =
            self.nodes.iter().find(|n| n.name == name).or_else(|| self.nodes.iter().find(|n| n.is_named(name)))?;
        let mut peers: Vec<Peer> = self.connections.iter().filter_map(|c| self.peer_of(node, c)).collect();
        peers.sort_by_key(|p| p.id);
        Some(LocalResource {
            name: self.name.clone(),
            options: self.options.clone(),
            startup: self.startup.clone(),
            handlers: self.handlers.clone(),
            node: node.clone(),
            peers,
            node_names: self.nodes.iter().map(|n| (n.id, n.name.clone())).collect(),
        })
    }

    fn peer_of(&self, node: &Node, connection: &Connection) -> Option<Peer> {
        let own = connection.nodes.iter().position(|id| *id == node.id)?;
        let peer = self.node(connection.nodes[1 - own]);
        let volumes = peer.volumes.iter().map(|volume| {
            let has_disk = volume.disk != Disk::None;
            let mut options = connection.peer_devices[&volume.number].clone();
            options.bitmap &= has_disk;
            options.peer_tiebreaker &= volume.tiebreaker;
            (volume.number, PeerVolume { has_disk, options })
        });
        Some(Peer {
            name: peer.name.clone(),
            id: peer.id,
            net: connection.net.clone(),
            paths: connection.paths.iter().map(|p| Path { local: p[own], remote: p[1 - own] }).collect(),
            volumes: volumes.collect(),
        })
    }
}
