//! The configuration that tests start from: DRBD's defaults, and the smallest activity log, so that it overflows.

use std::time::Duration;

use engine::pacing::PacingConfig;
use engine::*;
use types::*;

/// Of `me` among the nodes `all`, which all have disks for `volumes` and are joined by `protocol`.
pub fn resource(me: NodeId, all: &[NodeId], volumes: u16, protocol: Protocol) -> ResourceConfig {
    let peers: Vec<NodeId> = all.iter().copied().filter(|n| *n != me).collect();
    let volume = VolumeConfig {
        al_extents: 67,
        diskless: false,
        size_max_bytes: None,
        on_io_error: OnIoError::Detach,
        diskful_peers: peers.clone(),
    };
    let connection = PeerConfig {
        protocol,
        auth: None,
        dialects: wire::version::Dialects::Nine,
        timeout: Duration::from_secs(6),
        ko_count: 7,
        ping_int: Duration::from_secs(10),
        ping_timeout: Duration::from_millis(500),
        epoch_writes_max: 2048,
        buffer_bytes_max: 8 << 20,
        use_rle: true,
        resync: PacingConfig::default(),
        verify_alg: String::new(),
        csums_alg: String::new(),
    };
    ResourceConfig {
        node_id: me,
        volumes: (0..volumes).filter_map(VolumeNumber::new).map(|v| (v, volume.clone())).collect(),
        peers: peers.into_iter().map(|p| (p, connection.clone())).collect(),
        on_no_data: OnNoData::IoError,
        twopc_timeout: Duration::from_secs(30),
        twopc_retry_timeout: Duration::from_millis(100),
        peer_ack_delay: Duration::from_millis(100),
        peer_ack_window_bytes: 2 << 20,
        io_depth_max: 8000,
    }
}
