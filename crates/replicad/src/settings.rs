//! From the configuration's words to what the engine and the connectors take. Units change here and nowhere else.

use std::collections::BTreeMap;

use config::words;
use config::{Disk, LocalResource, Peer, PeerDeviceOptions, Volume};
use engine::pacing::PacingConfig;
use engine::{AuthConfig, OnIoError, OnNoData, PeerConfig, Protocol, ResourceConfig, VolumeConfig};
use types::{NodeId, VolumeNumber};
use wire::auth::HmacAlgorithm;

use crate::links::PathConfig;

const PAGE_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = types::range::SECTOR_BYTES;

pub fn resource(local: &LocalResource) -> ResourceConfig {
    let options = &local.options;
    ResourceConfig {
        node_id: local.node.id,
        volumes: local.volumes().iter().map(|v| (v.number, volume(v, local))).collect(),
        peers: local.peers.iter().map(|p| (p.id, peer(p))).collect(),
        on_no_data: match options.on_no_data_accessible {
            words::OnNoDataAccessible::IoError => OnNoData::IoError,
            words::OnNoDataAccessible::SuspendIo => OnNoData::SuspendIo,
        },
        twopc_timeout: options.twopc_timeout,
        twopc_retry_timeout: options.twopc_retry_timeout,
        peer_ack_delay: options.peer_ack_delay,
        peer_ack_window_bytes: options.peer_ack_window,
        io_depth_max: options.max_io_depth as usize,
    }
}

fn volume(volume: &Volume, local: &LocalResource) -> VolumeConfig {
    let options = &volume.options;
    let has_disk = |peer: &&Peer| peer.volumes.get(&volume.number).is_some_and(|v| v.has_disk);
    VolumeConfig {
        al_extents: u16::try_from(options.al_extents).expect("at most 65534, checked when it was read"),
        diskless: volume.disk == Disk::None,
        size_max_bytes: (options.size > 0).then_some(options.size),
        on_io_error: match options.on_io_error {
            words::OnIoError::PassOn => OnIoError::PassOn,
            // No handlers yet: losing the disk is the safe half of calling one.
            words::OnIoError::Detach | words::OnIoError::CallLocalIoError => OnIoError::Detach,
        },
        diskful_peers: local.peers.iter().filter(has_disk).map(|p| p.id).collect(),
    }
}

fn peer(peer: &Peer) -> PeerConfig {
    let net = &peer.net;
    let word = |hash: Option<words::Hash>| hash.map(|h| h.word().to_string()).unwrap_or_default();
    PeerConfig {
        protocol: match net.protocol {
            words::Protocol::A => Protocol::A,
            words::Protocol::B => Protocol::B,
            words::Protocol::C => Protocol::C,
        },
        dialects: wire::version::Dialects::Both,
        auth: net.cram_hmac_alg.map(|hash| AuthConfig {
            algorithm: HmacAlgorithm::parse(hash.word())
                .unwrap_or_else(|| panic!("{} was accepted as cram-hmac-alg", hash.word())),
            secret: net.shared_secret.expose().as_bytes().to_vec(),
        }),
        timeout: net.timeout,
        ko_count: net.ko_count,
        ping_int: net.ping_int,
        ping_timeout: net.ping_timeout,
        epoch_writes_max: net.max_epoch_size,
        buffer_bytes_max: u64::from(net.max_buffers) * PAGE_BYTES,
        use_rle: net.use_rle,
        resync: pacing(&peer.volumes),
        verify_alg: word(net.verify_alg),
        csums_alg: word(net.csums_alg),
    }
}

/// DRBD paces each volume by itself; here one controller paces a connection: the first volume's options count.
fn pacing(volumes: &BTreeMap<VolumeNumber, config::PeerVolume>) -> PacingConfig {
    let default = PeerDeviceOptions::default();
    let options = volumes.values().next().map_or(&default, |v| &v.options);
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let kib = |bytes: u64| narrow(bytes / 1024);
    let tenths = |time: std::time::Duration| (time.as_millis() / 100) as u32;
    PacingConfig {
        resync_rate_kib: kib(options.resync_rate),
        plan_ahead_ds: tenths(options.c_plan_ahead),
        delay_target_ds: tenths(options.c_delay_target),
        fill_target_sectors: narrow(options.c_fill_target / SECTOR_BYTES),
        max_rate_kib: kib(options.c_max_rate),
        min_rate_kib: kib(options.c_min_rate),
    }
}

pub fn word_of(protocol: Protocol) -> words::Protocol {
    match protocol {
        Protocol::A => words::Protocol::A,
        Protocol::B => words::Protocol::B,
        Protocol::C => words::Protocol::C,
    }
}

/// Only the first path is used: one connection has two sockets between one pair of addresses.
pub fn paths(local: &LocalResource) -> BTreeMap<NodeId, PathConfig> {
    let path = |peer: &Peer| {
        let net = &peer.net;
        let first = peer.paths.first().expect("a connection has at least one path, checked when it was read");
        let check = net.socket_check_timeout;
        PathConfig {
            peer: format!("{}:{}", peer.name, local.name),
            local: first.local,
            remote: first.remote,
            connect_interval: net.connect_int,
            ping_timeout: net.ping_timeout,
            socket_check: if check.is_zero() { net.ping_timeout } else { check },
            sndbuf_bytes: u32::try_from(net.sndbuf_size).unwrap_or(u32::MAX),
            rcvbuf_bytes: u32::try_from(net.rcvbuf_size).unwrap_or(u32::MAX),
        }
    };
    local.peers.iter().map(|p| (p.id, path(p))).collect()
}
