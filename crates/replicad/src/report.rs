//! From the engine's status to what `status` shows: DRBD's keys, plus the verdict.

use config::{Device, LocalResource, Peer};
use control::{
    ConnectionReport, DeviceReport, LatencyReport, OwnConnectionKeys, OwnDeviceKeys, OwnKeys, OwnPeerDeviceKeys,
    PathReport, PeerDeviceReport, ResourceReport, SyncDetails,
};
use engine::latency::{Average, Latency};
use engine::progress::Progress;
use engine::{PeerDeviceStatus, PeerStatus, Trouble, VerifyStatus, VolumeStatus};
use types::range::SECTOR_BYTES;
use types::{ConnectionState, DiskState, ReplicationState, Role, VolumeNumber};

use crate::resource::{Snapshot, VolumeUse};

const KIB: u64 = 1024;
/// Sectors of a block that progress counts.
const BLOCK_SECTORS: u64 = 8;

/// `device_path`: how applications reach a volume while its device exists.
pub fn report(
    local: &LocalResource,
    snapshot: &Snapshot,
    device_path: impl Fn(VolumeNumber, Device) -> String,
) -> ResourceReport {
    let status = &snapshot.status;
    let mut connections: Vec<ConnectionReport> =
        local.peers.iter().filter_map(|peer| Some(connection(peer, status.peers.get(&peer.id)?, snapshot))).collect();
    connections.sort_by(|a, b| a.name.cmp(&b.name));
    let devices = local.volumes().iter().filter_map(|volume| {
        let usage = snapshot.volumes.get(&volume.number)?;
        let mut report = device(volume.number, status.volumes.get(&volume.number)?, usage);
        if let Device::Ublk(minor) = volume.device {
            report.minor = i64::from(minor);
        }
        if usage.device {
            report.replicad.device = device_path(volume.number, volume.device);
            report.replicad.nbd_trouble = usage.nbd_trouble.clone().unwrap_or_default();
            if let Device::Nbd { listen: Some(address) } = volume.device {
                report.replicad.nbd_address = address.to_string();
            }
        }
        Some(report)
    });
    let (may_promote, promotion_score) = promotion(snapshot);
    ResourceReport {
        name: local.name.clone(),
        node_id: local.node.id.get(),
        role: status.role.name().into(),
        suspended: status.suspended_no_data,
        suspended_no_data: status.suspended_no_data,
        write_ordering: "flush".into(),
        devices: devices.collect(),
        connections,
        replicad: OwnKeys { verdict: verdict(local, snapshot), may_promote, promotion_score },
        ..ResourceReport::default()
    }
}

fn device(number: VolumeNumber, status: &VolumeStatus, usage: &VolumeUse) -> DeviceReport {
    DeviceReport {
        volume: number.get(),
        minor: -1,
        disk_state: status.disk.name().into(),
        client: status.diskless_configured,
        open: usage.clients > 0,
        quorum: true,
        size: status.size_bytes / KIB,
        read: status.read_bytes / KIB,
        written: status.written_bytes / KIB,
        al_writes: status.al_writes,
        bm_writes: status.bitmap_writes,
        upper_pending: status.requests_in_flight,
        lower_pending: 0,
        replicad: OwnDeviceKeys {
            backing_dev: usage.backing.as_ref().map_or("none".into(), |path| path.display().to_string()),
            device: String::new(),
            nbd_address: String::new(),
            nbd_trouble: String::new(),
            al_suspended: status.al_suspended,
            blocked: "no".into(),
            latency: latency(&status.latency),
        },
    }
}

fn connection(peer: &Peer, status: &PeerStatus, snapshot: &Snapshot) -> ConnectionReport {
    let established = status.connection == ConnectionState::Connected;
    let path = |(index, path): (usize, &config::Path)| PathReport {
        this_host: path.local.into(),
        remote_host: path.remote.into(),
        established: established && index == 0,
    };
    let peer_devices = status.volumes.iter().map(|(number, volume)| {
        let size_bytes = snapshot.status.volumes.get(number).map_or(0, |v| v.size_bytes);
        let client = peer.volumes.get(number).is_some_and(|v| !v.has_disk);
        peer_device(*number, volume, size_bytes, client)
    });
    ConnectionReport {
        peer_node_id: peer.id.get(),
        name: peer.name.clone(),
        connection_state: status.connection.name().into(),
        congested: false,
        peer_role: status.role.name().into(),
        tls: false,
        ap_in_flight: status.ap_in_flight_bytes / types::range::SECTOR_BYTES,
        rs_in_flight: status.rs_in_flight_bytes / types::range::SECTOR_BYTES,
        paths: peer.paths.iter().enumerate().map(path).collect(),
        peer_devices: peer_devices.collect(),
        replicad: OwnConnectionKeys { protocol: format!("{:?}", status.protocol) },
    }
}

fn peer_device(number: VolumeNumber, status: &PeerDeviceStatus, size_bytes: u64, client: bool) -> PeerDeviceReport {
    let in_sync = match size_bytes {
        0 => 0.0,
        _ => 100.0 - percent(status.out_of_sync_bytes.min(size_bytes), size_bytes),
    };
    PeerDeviceReport {
        volume: number.get(),
        replication_state: status.replication.name().into(),
        peer_disk_state: status.disk.name().into(),
        peer_client: client && status.disk == DiskState::Diskless,
        resync_suspended: resync_suspended(status),
        received: status.received_bytes / KIB,
        sent: status.sent_bytes / KIB,
        out_of_sync: status.out_of_sync_bytes / KIB,
        pending: status.pending_requests,
        unacked: status.unacked_requests,
        has_sync_details: status.resync.is_some() || status.verify.is_some(),
        has_online_verify_details: status.verify.is_some(),
        percent_in_sync: hundredths(in_sync),
        sync: status.resync.map(|progress| resync(progress, status)).or(status.verify.map(|v| verify(&v, size_bytes))),
        replicad: Some(OwnPeerDeviceKeys {
            decision: status.last_decision.clone(),
            write_answer: micros(status.answer),
        }),
    }
}

fn sync(progress: Progress) -> SyncDetails {
    SyncDetails {
        rs_total: progress.total_bits * BLOCK_SECTORS,
        db_dt: hundredths(progress.rate_kib as f64 / KIB as f64),
        db0_dt0: hundredths(progress.rate_kib as f64 / KIB as f64),
        estimated_seconds_to_finish: progress.left_seconds.unwrap_or(0),
        percent_resync_done: f64::from(progress.done_percent_hundredths) / 100.0,
        ..SyncDetails::default()
    }
}

fn resync(progress: Progress, status: &PeerDeviceStatus) -> SyncDetails {
    SyncDetails { rs_same_csum: status.equal_by_csum_bytes / SECTOR_BYTES, ..sync(progress) }
}

fn verify(status: &VerifyStatus, size_bytes: u64) -> SyncDetails {
    let whole = status.stop >= size_bytes;
    SyncDetails {
        ov_start_sector: Some(status.start / SECTOR_BYTES),
        ov_stop_sector: Some(if whole { -1 } else { (status.stop / SECTOR_BYTES) as i64 }),
        ov_position: Some(status.position / SECTOR_BYTES),
        ov_left: Some(status.progress.left_bits * BLOCK_SECTORS),
        ov_skipped: Some(status.skipped * BLOCK_SECTORS),
        ..sync(status.progress)
    }
}

fn latency(of: &Latency) -> LatencyReport {
    LatencyReport {
        write: micros(of.write),
        write_door: micros(of.door),
        write_log: micros(of.log),
        write_disk: micros(of.disk),
        read: micros(of.read),
        flush: micros(of.flush),
    }
}

fn micros(average: Average) -> Option<f64> {
    average.get().map(|time| hundredths(time.as_nanos() as f64 / 1000.0))
}

fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole as f64
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).floor() / 100.0
}

fn resync_suspended(status: &PeerDeviceStatus) -> String {
    let words = [
        (status.resync_suspended_user, "user"),
        (status.resync_suspended_peer, "peer"),
        (status.resync_suspended_dependency, "dependency"),
    ];
    let on: Vec<&str> = words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word).collect();
    if on.is_empty() { "no".into() } else { on.join(",") }
}

fn is_resyncing(state: ReplicationState) -> bool {
    !matches!(
        state,
        ReplicationState::Off | ReplicationState::Established | ReplicationState::VerifyS | ReplicationState::VerifyT
    )
}

/// DRBD's `may_promote` and `promotion_score` (docs/cli.md "events2").
fn promotion(snapshot: &Snapshot) -> (bool, u32) {
    let status = &snapshot.status;
    let visible = || status.peers.values().filter(|peer| peer.connection == ConnectionState::Connected);
    let replicas = |number: VolumeNumber, volume: &VolumeStatus| {
        let peers = visible().filter(|peer| peer.volumes.get(&number).is_some_and(|v| v.disk == DiskState::UpToDate));
        peers.count() + usize::from(volume.disk == DiskState::UpToDate)
    };
    let least = status.volumes.iter().map(|(number, volume)| replicas(*number, volume)).min().unwrap_or(0);
    if least == 0 {
        return (false, 0);
    }
    let all_have_disks = status.volumes.values().all(|v| v.disk > DiskState::Failed);
    let up_to_date = status.volumes.values().filter(|v| v.disk == DiskState::UpToDate).count();
    let score = u32::from(all_have_disks) * 10_000 + 100 * up_to_date.min(99) as u32 + least.min(99) as u32;
    let primary = status.role == Role::Primary || visible().any(|peer| peer.role == Role::Primary);
    (!primary, score)
}

/// One sentence: is all well, what is missing, what happens next.
fn verdict(local: &LocalResource, snapshot: &Snapshot) -> String {
    let name = |id: &types::NodeId| local.node_names.get(id).map_or("?", String::as_str);
    let mut troubles: Vec<String> =
        snapshot.status.troubles().iter().map(|trouble| explain(trouble, &local.name, name)).collect();
    for (number, volume) in &snapshot.volumes {
        troubles.extend(volume.nbd_trouble.iter().map(|trouble| format!("volume {number} is {trouble}")));
    }
    if troubles.is_empty() { "all disks are UpToDate and all peers connected".into() } else { troubles.join("; ") }
}

/// What is wrong, and what to type where that helps.
fn explain<'a>(trouble: &Trouble, resource: &str, name: impl Fn(&types::NodeId) -> &'a str) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    match trouble {
        Trouble::Suspended => "I/O waits: no UpToDate data can be reached".into(),
        Trouble::NoDisk { volume } => {
            format!("volume {volume} has no disk here: replicactl attach {resource}/{volume}")
        }
        Trouble::Disk { volume, state } => format!("volume {volume} is {state} here"),
        Trouble::NotConnected { peer, state: ConnectionState::StandAlone } => {
            let peer = name(peer);
            format!("{peer} is not connected and not being looked for: replicactl connect {peer}:{resource}")
        }
        Trouble::NotConnected { peer, state } => format!("{} is not reachable ({state}), still trying", name(peer)),
        Trouble::Resync { peer, volume, left } => {
            format!("volume {volume} resyncs with {}, {} MiB to go", name(peer), mib(*left))
        }
        Trouble::PeerDisk { peer, volume, state } => format!("volume {volume} is {state} on {}", name(peer)),
        Trouble::OutOfSync { peer, volume, bytes } => {
            let peer = name(peer);
            format!(
                "volume {volume} may differ from {peer} in {} MiB and nothing resyncs: replicactl disconnect \
                 {peer}:{resource}, then replicactl connect {peer}:{resource}",
                mib(*bytes)
            )
        }
    }
}

/// No resync runs or is due, with any peer that is connected; and every own disk holds good data.
pub fn is_in_sync(snapshot: &Snapshot, wanted: impl Fn(types::NodeId) -> bool, volume: Option<VolumeNumber>) -> bool {
    let status = &snapshot.status;
    let chosen = |number: &VolumeNumber| volume.is_none_or(|v| v == *number);
    let own = status.volumes.iter().filter(|(number, _)| chosen(number));
    let own_good = own.into_iter().all(|(_, v)| v.diskless_configured || v.disk == DiskState::UpToDate);
    own_good
        && status.peers.iter().filter(|(id, _)| wanted(**id)).all(|(_, peer)| {
            peer.connection == ConnectionState::Connected
                && peer.volumes.iter().filter(|(number, _)| chosen(number)).all(|(_, v)| {
                    !is_resyncing(v.replication) && matches!(v.disk, DiskState::UpToDate | DiskState::Diskless)
                })
        })
}

pub fn is_connected(snapshot: &Snapshot, wanted: impl Fn(types::NodeId) -> bool) -> bool {
    let peers = &snapshot.status.peers;
    peers.iter().filter(|(id, _)| wanted(**id)).all(|(_, peer)| peer.connection == ConnectionState::Connected)
}
