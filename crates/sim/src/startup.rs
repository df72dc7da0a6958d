//! The cluster as it is built, and how a node starts.

use std::time::Duration;

use engine::pacing::PacingConfig;
use engine::{Command, Engine, OnIoError, OnNoData, PeerConfig, ResourceConfig, VolumeConfig};
use types::{NodeId, Uuid, VolumeNumber};
use wire::version::Dialects;

use crate::disk::{Disk, View};
use crate::node::Node;
use crate::operator::KEEPER_EVERY;
use crate::swarm::Start;
use crate::truth::Truth;
use crate::world::{Event, World};

impl World {
    pub(crate) fn set_up(&mut self) {
        let ids: Vec<NodeId> = (0..self.options.nodes).map(|n| NodeId::new(n).expect("at most 32 nodes")).collect();
        let current = Uuid(self.nature.draw() << 4 | 0x10);
        for id in &ids {
            self.nodes.insert(*id, Node::new(*id));
        }
        for id in self.diskful() {
            for volume in self.volume_numbers() {
                let disk = self.new_disk(id, (self.options.start == Start::InSync).then_some(current));
                self.node_mut(id).disks.insert(volume, disk);
            }
        }
        if self.options.start == Start::InSync {
            for volume in self.volume_numbers() {
                self.truths.insert(volume, vec![Truth::new(self.diskful())]);
            }
        }
        for id in ids {
            self.start(id);
        }
    }

    /// What happens by itself, from time to time.
    pub(crate) fn schedule_the_world(&mut self) {
        let o = self.options.clone();
        self.schedule(KEEPER_EVERY, Event::Keeper);
        self.schedule(o.work_every, Event::Work);
        for (every, event) in [
            (o.cut_every, Event::Cut),
            (o.crash_every, Event::Crash),
            (o.stall_every, Event::Stall),
            (o.fault_every, Event::Fault),
            (o.operator_every, Event::Operator),
        ] {
            if let Some(every) = every {
                let delay = self.whim.around(every);
                self.schedule(delay, event);
            }
        }
    }

    /// Nodes that are meant to have disks, by number.
    pub fn diskful(&self) -> Vec<NodeId> {
        let count = usize::from(self.options.nodes - self.options.diskless);
        self.nodes.keys().copied().take(count).collect()
    }

    /// `in_sync`: the generation that all have had for long; `None`: fresh metadata.
    pub(crate) fn new_disk(&self, me: NodeId, in_sync: Option<Uuid>) -> Disk {
        let o = &self.options;
        let peers: Vec<NodeId> = self.diskful().into_iter().filter(|p| *p != me).collect();
        let slots = (peers.len() as u8).max(1) + o.spare_slots;
        let mut disk = Disk::create(o.volume_bytes, o.external_metadata, o.volatile_cache, slots);
        disk.lies = o.lying_disks;
        if let Some(current) = in_sync {
            let bytes = disk.data_bytes;
            disk.make_in_sync(me, &peers, current, bytes);
        }
        disk
    }

    pub(crate) fn config(&self, me: NodeId) -> ResourceConfig {
        let o = &self.options;
        let peers: Vec<NodeId> = self.nodes.keys().copied().filter(|p| *p != me).collect();
        let diskful = self.diskful();
        let volume = VolumeConfig {
            al_extents: self.file.al_extents,
            diskless: !diskful.contains(&me),
            size_max_bytes: None,
            on_io_error: if self.file.pass_on { OnIoError::PassOn } else { OnIoError::Detach },
            diskful_peers: diskful.into_iter().filter(|p| *p != me).collect(),
        };
        let peer = PeerConfig {
            protocol: self.file.net.protocol,
            auth: None,
            dialects: if o.v84 { Dialects::V84 } else { Dialects::Nine },
            timeout: Duration::from_nanos(o.timeout),
            ko_count: 7,
            ping_int: Duration::from_nanos(o.ping_int),
            ping_timeout: Duration::from_millis(500),
            epoch_writes_max: self.file.net.max_epoch_size,
            buffer_bytes_max: self.file.net.max_buffers_bytes,
            use_rle: o.use_rle,
            resync: PacingConfig { min_rate_kib: 4000, resync_rate_kib: 4000, ..PacingConfig::default() },
            verify_alg: if o.verify_per_mille > 0 { "crc32c".into() } else { String::new() },
            csums_alg: if o.csums { "sha256".into() } else { String::new() },
        };
        ResourceConfig {
            node_id: me,
            volumes: self.volume_numbers().into_iter().map(|v| (v, volume.clone())).collect(),
            peers: peers.into_iter().map(|p| (p, peer.clone())).collect(),
            on_no_data: if self.file.suspend_io { OnNoData::SuspendIo } else { OnNoData::IoError },
            twopc_timeout: Duration::from_secs(30),
            twopc_retry_timeout: Duration::from_millis(100),
            peer_ack_delay: Duration::from_millis(100),
            peer_ack_window_bytes: 2 << 20,
            io_depth_max: 256,
        }
    }

    pub(crate) fn start(&mut self, id: NodeId) {
        let seed = self.nature.seed_of_engine();
        let config = self.config(id);
        for (peer, connection) in &config.peers {
            self.goes_by(id, *peer, connection.protocol);
        }
        let engine = Engine::new(config, seed);
        self.node_mut(id).start(engine);
        self.say(|| format!("{id:?} starts"));
        let volumes: Vec<VolumeNumber> = self.node(id).disks.keys().copied().collect();
        for volume in volumes {
            self.attach(id, volume);
        }
        for peer in self.node_ids().into_iter().filter(|p| *p != id) {
            self.command(id, Command::Connect { peer, discard_my_data: false }, false);
        }
        if !self.node(id).left_behind.is_empty() {
            // The device is still there: the daemon takes it up again if it may.
            self.command(id, Command::Promote { force: false }, false);
        }
    }

    pub(crate) fn restart(&mut self, id: NodeId) {
        if !self.node(id).is_running() {
            self.start(id);
        }
    }

    pub(crate) fn attach(&mut self, id: NodeId, volume: VolumeNumber) {
        let node = self.node(id);
        let Some(disk) = node.disks.get(&volume) else { return };
        if node.metadata_is_unreadable(volume) {
            return self.say(|| format!("{id:?} {volume:?}: the metadata cannot be read, nothing is attached"));
        }
        match disk.attach(View::Visible) {
            Ok(disk) => self.command(id, Command::Attach { volume, disk: Box::new(disk) }, false),
            Err(error) => self.complain(format!("{id:?} {volume:?}: metadata is unreadable at attach: {error}")),
        }
    }
}
