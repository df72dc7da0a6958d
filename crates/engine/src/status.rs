//! The snapshot that `status` shows.

use types::{ConnectionState, DiskState, NodeId, ReplicationState, VolumeNumber};

use alloc::vec::Vec;

use crate::Engine;
use crate::api::{OnNoData, PeerDeviceStatus, PeerStatus, Status, Trouble, VolumeStatus};

impl Engine {
    pub fn status(&self) -> Status {
        let suspended = self.is_primary()
            && self.config.on_no_data == OnNoData::SuspendIo
            && self.volumes.keys().any(|v| !self.has_data(*v));
        Status {
            role: self.role,
            suspended_no_data: suspended,
            volumes: self.volumes.keys().map(|v| (*v, self.volume_status(*v))).collect(),
            peers: self.peers.keys().map(|p| (*p, self.peer_status(*p))).collect(),
        }
    }

    fn volume_status(&self, number: VolumeNumber) -> VolumeStatus {
        let volume = self.volume(number);
        let superblock = volume.backing.as_ref().map(|b| &b.superblock);
        VolumeStatus {
            disk: volume.disk,
            diskless_configured: volume.config.diskless,
            size_bytes: volume.exposed_bytes,
            current_uuid: volume.current_uuid(),
            history: superblock.map_or_else(Default::default, |s| s.history.to_vec()),
            flags: superblock.map_or(0, |s| s.flags.0),
            read_bytes: volume.counters.read_bytes,
            written_bytes: volume.counters.written_bytes,
            al_writes: volume.counters.al_writes,
            bitmap_writes: volume.counters.bitmap_writes,
            requests_in_flight: (volume.parked.len() + self.writes.len() + self.reads.len()) as u64,
            al_suspended: !volume.log_wanted.is_empty() || !volume.log_pending.is_empty(),
            latency: volume.latency,
        }
    }

    fn peer_status(&self, peer: NodeId) -> PeerStatus {
        let entry = self.peer(peer);
        let in_flight = entry.volumes.values().filter_map(|d| d.resync.as_ref()).map(|r| r.in_flight_bytes()).sum();
        PeerStatus {
            connection: entry.connection,
            role: entry.role,
            protocol_version: entry.link.as_ref().map(|l| l.protocol).filter(|p| *p > 0),
            protocol: entry.config.protocol,
            ap_in_flight_bytes: entry.unstable_bytes,
            rs_in_flight_bytes: in_flight,
            volumes: entry.volumes.keys().map(|v| (*v, self.peer_device_status(peer, *v))).collect(),
        }
    }

    fn peer_device_status(&self, peer: NodeId, number: VolumeNumber) -> PeerDeviceStatus {
        let device = &self.peer(peer).volumes[&number];
        let volume = self.volume(number);
        let record = volume.backing.as_ref().map(|b| &b.superblock.peers[peer.index()]);
        let block = volume.backing.as_ref().map_or(0, |b| b.block_bytes());
        let bits = volume.bits_towards(peer);
        let marks = device.resync.as_ref().map(|r| &r.marks).or(device.marks.as_ref());
        PeerDeviceStatus {
            replication: device.replication,
            disk: device.disk,
            disk_configured: volume.config.diskful_peers.contains(&peer),
            resync_suspended_user: device.paused_by_user,
            resync_suspended_peer: device.paused_by_peer,
            resync_suspended_dependency: device.is_syncing()
                && !device.is_target()
                && volume.disk <= DiskState::Inconsistent,
            received_bytes: device.received_bytes,
            sent_bytes: device.sent_bytes,
            out_of_sync_bytes: bits * block,
            pending_requests: device.pending,
            unacked_requests: device.unacked,
            bitmap_uuid: record.map_or(types::Uuid::ZERO, |r| r.bitmap_uuid),
            peer_flags: record.map_or(0, |r| r.flags.0),
            resync: marks.map(|m| m.progress(self.now, bits)),
            verify: device.verify.as_ref().map(|v| v.status(self.now)),
            equal_by_csum_bytes: device.equal_by_csum_bytes,
            resynced_bytes: device.resynced_bytes,
            last_decision: device.last_decision.clone(),
            answer: device.answer,
        }
    }
}

impl Status {
    /// What is not as it should be. Empty: every node of the resource has all the data, as far as this one can know.
    pub fn troubles(&self) -> Vec<Trouble> {
        let suspended = self.suspended_no_data.then_some(Trouble::Suspended);
        let own = self.volumes.iter().filter_map(|(number, volume)| own_trouble(*number, volume));
        let peers = self.peers.iter().flat_map(|(id, peer)| peer_troubles(*id, peer));
        suspended.into_iter().chain(own).chain(peers).collect()
    }
}

fn own_trouble(number: VolumeNumber, volume: &VolumeStatus) -> Option<Trouble> {
    match volume.disk {
        DiskState::UpToDate => None,
        DiskState::Diskless if volume.diskless_configured => None,
        DiskState::Diskless => Some(Trouble::NoDisk { volume: number }),
        state => Some(Trouble::Disk { volume: number, state }),
    }
}

fn peer_troubles(id: NodeId, peer: &PeerStatus) -> Vec<Trouble> {
    if peer.connection != ConnectionState::Connected {
        return Vec::from([Trouble::NotConnected { peer: id, state: peer.connection }]);
    }
    peer.volumes.iter().filter_map(|(number, device)| device_trouble(id, *number, device)).collect()
}

fn device_trouble(peer: NodeId, volume: VolumeNumber, device: &PeerDeviceStatus) -> Option<Trouble> {
    let bytes = device.out_of_sync_bytes;
    let wanted = device.disk == DiskState::UpToDate || device.disk == DiskState::Diskless && !device.disk_configured;
    match device.replication {
        ReplicationState::Established | ReplicationState::VerifyS | ReplicationState::VerifyT if !wanted => {
            Some(Trouble::PeerDisk { peer, volume, state: device.disk })
        }
        ReplicationState::Established | ReplicationState::VerifyS | ReplicationState::VerifyT if bytes > 0 => {
            Some(Trouble::OutOfSync { peer, volume, bytes })
        }
        ReplicationState::Established | ReplicationState::VerifyS | ReplicationState::VerifyT => None,
        _ => Some(Trouble::Resync { peer, volume, left: bytes }),
    }
}
