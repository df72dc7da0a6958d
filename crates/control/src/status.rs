//! The value of `status`: the keys, types and order of `drbdsetup status --json`, plus our own under `"replicad"`.
//! Additive changes only: scripts outside this repository read it.
//!
//! Units: sizes in KiB, as DRBD has them; times as the key says.

use serde::{Deserialize, Serialize};

/// Resources, sorted by name.
pub type StatusReport = Vec<ResourceReport>;

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ResourceReport {
    pub name: String,
    pub node_id: u8,
    /// `types::Role::name`.
    pub role: String,
    /// Any of the four that follow.
    pub suspended: bool,
    pub suspended_user: bool,
    pub suspended_no_data: bool,
    pub suspended_fencing: bool,
    pub suspended_quorum: bool,
    pub force_io_failures: bool,
    /// `none`, `drain` or `flush`.
    pub write_ordering: String,
    /// By volume.
    pub devices: Vec<DeviceReport>,
    /// By name.
    pub connections: Vec<ConnectionReport>,
    #[serde(default)]
    pub replicad: OwnKeys,
}

/// What DRBD does not say.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct OwnKeys {
    /// One sentence: is all well, what is missing, what happens next.
    pub verdict: String,
    pub may_promote: bool,
    pub promotion_score: u32,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceReport {
    pub volume: u16,
    /// N of `/dev/ublkbN`; -1 if the volume is not served that way.
    pub minor: i64,
    pub disk_state: String,
    /// Intentionally diskless.
    pub client: bool,
    pub open: bool,
    pub quorum: bool,
    pub size: u64,
    pub read: u64,
    pub written: u64,
    pub al_writes: u64,
    pub bm_writes: u64,
    pub upper_pending: u64,
    pub lower_pending: u64,
    #[serde(default)]
    pub replicad: OwnDeviceKeys,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct OwnDeviceKeys {
    /// `none` without a disk.
    pub backing_dev: String,
    /// How applications reach it: `/dev/ublkb10`, a socket path, or empty.
    pub device: String,
    /// Where it is served over TCP, too, while the device exists; or empty.
    pub nbd_address: String,
    /// Why it is not served there at the moment, and what to do about it; or empty.
    pub nbd_trouble: String,
    pub al_suspended: bool,
    /// `no`, `upper`, `lower` or `upper,lower`.
    pub blocked: String,
    pub latency: LatencyReport,
}

/// How long the application's requests take on average, over the last thousands. Microseconds; missing: none yet.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct LatencyReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write: Option<f64>,
    /// Of a write: before it is let in, then for the activity log and overlapping writes, then on the own disk. Beside
    /// the disk it is with the peers: `write-answer` of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_door: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_log: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_disk: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flush: Option<f64>,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConnectionReport {
    pub peer_node_id: u8,
    pub name: String,
    pub connection_state: String,
    pub congested: bool,
    pub peer_role: String,
    pub tls: bool,
    pub ap_in_flight: u64,
    pub rs_in_flight: u64,
    #[serde(default)]
    pub paths: Vec<PathReport>,
    /// DRBD's key has an underscore. By volume.
    #[serde(rename = "peer_devices")]
    pub peer_devices: Vec<PeerDeviceReport>,
    #[serde(default)]
    pub replicad: OwnConnectionKeys,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct OwnConnectionKeys {
    /// `A`, `B` or `C`, by which this node writes to the peer now.
    pub protocol: String,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PathReport {
    pub this_host: Host,
    pub remote_host: Host,
    pub established: bool,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Host {
    pub address: String,
    pub port: u16,
    /// `ipv4` or `ipv6`.
    pub family: String,
}

impl From<std::net::SocketAddr> for Host {
    fn from(address: std::net::SocketAddr) -> Host {
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        Host { address: address.ip().to_string(), port: address.port(), family: family.into() }
    }
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PeerDeviceReport {
    pub volume: u16,
    pub replication_state: String,
    pub peer_disk_state: String,
    /// The peer is intentionally diskless.
    pub peer_client: bool,
    /// `no` or a comma list of user, peer, dependency.
    pub resync_suspended: String,
    pub received: u64,
    pub sent: u64,
    pub out_of_sync: u64,
    pub pending: u64,
    pub unacked: u64,
    /// `sync` holds the details of a resync.
    pub has_sync_details: bool,
    pub has_online_verify_details: bool,
    /// 0..=100, two digits. 0 for a volume of size 0.
    pub percent_in_sync: f64,
    /// During a resync or verify.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<SyncDetails>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicad: Option<OwnPeerDeviceKeys>,
}

/// Progress of a resync or a verify. Totals in sectors or blocks as DRBD's kernel counts them.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SyncDetails {
    /// Sectors at the start.
    pub rs_total: u64,
    #[serde(default)]
    pub rs_dt_start_ms: u64,
    #[serde(default)]
    pub rs_paused_ms: u64,
    #[serde(default)]
    pub rs_dt0_ms: u64,
    #[serde(default)]
    pub rs_db0_sectors: u64,
    #[serde(default)]
    pub rs_dt1_ms: u64,
    #[serde(default)]
    pub rs_db1_sectors: u64,
    #[serde(default)]
    pub rs_failed: u64,
    #[serde(default)]
    pub rs_same_csum: u64,
    /// Of a verify. Sectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ov_start_sector: Option<u64>,
    /// -1: to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ov_stop_sector: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ov_position: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ov_left: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ov_skipped: Option<u64>,
    #[serde(default)]
    pub want: f64,
    /// Rate over the last mark.
    #[serde(rename = "db0/dt0 [MiB/s]", default)]
    pub db0_dt0: f64,
    /// Rate over the mark before.
    #[serde(rename = "db1/dt1 [MiB/s]", default)]
    pub db1_dt1: f64,
    #[serde(default)]
    pub estimated_seconds_to_finish: u64,
    /// Rate since the start.
    #[serde(rename = "db/dt [MiB/s]", default)]
    pub db_dt: f64,
    pub percent_resync_done: f64,
}

/// Why a resync runs or was decided.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct OwnPeerDeviceKeys {
    /// Text of the last handshake decision.
    pub decision: String,
    /// How long the peer takes to answer a write of ours that waits for it, on average over the last thousands.
    /// Microseconds; missing: none yet, as always under protocol A.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_answer: Option<f64>,
}

/// The one-line questions, answered from the status as DRBD 9's `drbdadm` does.
impl ResourceReport {
    /// `role`: the own role only.
    pub fn role_line(&self) -> String {
        self.role.clone()
    }

    /// `cstate`: a line per connection, all or the one to `peer`.
    pub fn cstate_lines(&self, peer: Option<&str>) -> Vec<String> {
        let wanted = self.connections.iter().filter(|c| peer.is_none_or(|p| c.name == p));
        wanted.map(|c| c.connection_state.clone()).collect()
    }

    /// `dstate`: a line per volume, the own state, then each peer's, separated by `/`.
    pub fn dstate_lines(&self, volume: Option<u16>) -> Vec<String> {
        let wanted = self.devices.iter().filter(|d| volume.is_none_or(|v| d.volume == v));
        wanted
            .map(|device| {
                let of_peer = |c: &ConnectionReport| {
                    let found = c.peer_devices.iter().find(|p| p.volume == device.volume);
                    found.map_or("DUnknown".to_string(), |p| p.peer_disk_state.clone())
                };
                let states = std::iter::once(device.disk_state.clone()).chain(self.connections.iter().map(of_peer));
                states.collect::<Vec<_>>().join("/")
            })
            .collect()
    }
}
