//! The runs whose durable points are gone through, and the worlds they run in.

use engine::{Command, Protocol};
use sim::disk::Survival;
use sim::swarm::{MS, Options, SECOND, Start};
use types::BlockOp;

use super::driver::{Driver, Go, is_connected, other};
use super::{A, B, VOLUME};

const EXTENT: u64 = 4 << 20;
const WRITE: BlockOp = BlockOp::Write { fua: false };
const FUA: BlockOp = BlockOp::Write { fua: true };
const FLUSH: (BlockOp, u64, u64) = (BlockOp::Flush, 0, 0);

pub struct Script {
    pub name: &'static str,
    pub options: fn() -> Options,
    pub play: fn(&mut Driver) -> Go,
}

/// 16 extents and a log with fewer slots, so that it evicts; its ring of 8 blocks is overwritten more than once.
/// Below the 67 slots that a configuration must have: evictions then come after a few writes instead of 67.
fn small_log() -> Options {
    Options {
        volume_bytes: 64 << 20,
        al_extents: 5,
        spare_slots: 0,
        start: Start::InSync,
        protocol: Protocol::C,
        external_metadata: false,
        volatile_cache: true,
        use_rle: true,
        latency: 200_000,
        jitter: 0,
        half_open_per_mille: 0,
        restart_after: 100 * MS,
        ping_int: 10 * SECOND,
        timeout: 6 * SECOND,
        ..Options::calm()
    }
}
fn external() -> Options {
    Options { external_metadata: true, ..small_log() }
}
/// The Secondary keeps a log too; the network is much faster than the disks.
fn spare_slot() -> Options {
    Options { spare_slots: 1, latency: 10_000, disk_latency: 2 * MS, ..small_log() }
}
/// More slots than one transaction shows: the window moves.
fn large_log() -> Options {
    Options { al_extents: 1237, ..small_log() }
}

/// Whole copies take as many requests as there are MiB.
fn small_volume() -> Options {
    Options { volume_bytes: 16 << 20, al_extents: 3, ..small_log() }
}
fn small_volume_external() -> Options {
    Options { external_metadata: true, ..small_volume() }
}

pub const SCRIPTS: [Script; 15] = [
    Script { name: "log", options: small_log, play: log },
    Script { name: "log, external metadata", options: external, play: log },
    Script { name: "log, spare slot", options: spare_slot, play: log },
    Script { name: "log, two windows", options: large_log, play: log },
    Script { name: "alone", options: small_log, play: alone },
    Script { name: "alone, external metadata", options: external, play: alone },
    Script { name: "roles", options: small_log, play: roles },
    Script { name: "roles, spare slot", options: spare_slot, play: roles },
    Script { name: "resync", options: small_volume, play: resync },
    Script { name: "resync, external metadata", options: small_volume_external, play: resync },
    Script { name: "peer lost", options: spare_slot, play: peer_lost },
    Script { name: "debt", options: small_log, play: debt },
    Script { name: "restart", options: small_log, play: restart },
    Script { name: "restart, external metadata", options: external, play: restart },
    Script { name: "disks", options: small_log, play: disks },
];

fn at(extent: u64, offset: u64, len: u64) -> (BlockOp, u64, u64) {
    (WRITE, extent * EXTENT + offset, len)
}

/// Writes all over the volume: evictions, a full log, the ring twice around, requests that touch two extents.
fn log(d: &mut Driver) -> Go {
    d.in_sync()?;
    d.promote(A)?;
    d.requests(A, &[at(0, 0, 4096)])?;
    d.requests(A, &[at(1, 512, 512), at(2, 0, 8192), at(0, 4096, 4096)])?;
    for extent in 3..9 {
        d.requests(A, &[at(extent, 0, 4096)])?;
    }
    d.requests(A, &[FLUSH])?;
    d.requests(A, &[at(9, EXTENT - 4096, 8192), (FUA, 11 * EXTENT, 4096), at(12, 0, 512)])?;
    d.requests(A, &[at(13, 0, 4096), at(14, 0, 4096), at(1, 0, 4096), (BlockOp::Discard, 2 * EXTENT, 8192)])?;
    d.requests(A, &[(BlockOp::WriteZeroes { may_unmap: true, fua: true }, 3 * EXTENT, 4096), at(3, 4096, 4096)])?;
    for extent in [4, 10, 5, 8] {
        d.requests(A, &[at(extent, 16384, 4096), (BlockOp::Flush, 0, 0)])?;
    }
    d.demote(A)
}

/// A Primary without its peer: a generation of its own, bits that evictions carry to the disk; then the peer gets all.
fn alone(d: &mut Driver) -> Go {
    d.in_sync()?;
    d.promote(A)?;
    d.requests(A, &[at(0, 0, 4096), at(7, 0, 4096)])?;
    d.disconnect(A)?;
    for extent in 0..8 {
        d.requests(A, &[at(extent, 8192, 4096), at(extent + 4, 65536, 512)])?;
    }
    d.requests(A, &[FLUSH])?;
    d.pause()?;
    d.requests(A, &[at(2, 0, 4096), at(15, EXTENT - 4096, 4096)])?;
    d.connect()?;
    d.in_sync()?;
    d.requests(A, &[at(15, 0, 4096)])?;
    d.demote(A)
}

/// Promotions and orderly step-downs on both sides, with and without a peer, and what was quiet stays quiet.
fn roles(d: &mut Driver) -> Go {
    d.in_sync()?;
    d.promote(A)?;
    d.demote(A)?;
    d.promote(B)?;
    d.requests(B, &[at(0, 0, 4096), at(5, 0, 4096)])?;
    d.demote(B)?;
    d.pause()?;
    d.promote(A)?;
    d.requests(A, &[at(0, 0, 8192), at(6, 0, 4096)])?;
    d.disconnect(B)?;
    d.requests(A, &[at(1, 0, 4096)])?;
    d.demote(A)?;
    d.promote(A)?;
    d.requests(A, &[at(2, 0, 4096)])?;
    d.connect()?;
    d.in_sync()?;
    d.demote(A)?;
    d.pause()
}

/// Resyncs of all kinds: by bits, with writes beside it, whole copies in both directions.
fn resync(d: &mut Driver) -> Go {
    d.in_sync()?;
    d.promote(A)?;
    d.disconnect(A)?;
    d.requests(A, &[at(0, 0, 65536), at(3, 0, 65536), at(2, 4096, 131072)])?;
    d.connect()?;
    d.until("the resync begins", |world| world.stats.resyncs > 0)?;
    d.requests(A, &[at(0, 4096, 4096), at(1, 0, 4096)])?;
    d.requests(A, &[at(2, 0, 8192)])?;
    d.in_sync()?;
    d.demote(A)?;
    d.command(B, Command::Invalidate { volume: VOLUME, from: None })?;
    d.until("the second resync begins", |world| world.stats.resyncs > 1)?;
    d.in_sync()?;
    d.command(B, Command::InvalidateRemote { volume: VOLUME, peer: A })?;
    d.until("the third resync begins", |world| world.stats.resyncs > 2)?;
    d.in_sync()
}

/// The peer's power goes with writes in flight; the survivor goes on in a new generation and feeds it when it is back.
fn peer_lost(d: &mut Driver) -> Go {
    d.in_sync()?;
    d.promote(A)?;
    d.requests(A, &[at(0, 0, 4096), at(1, 0, 4096)])?;
    d.submit(A, &[at(0, 0, 8192), at(2, 0, 4096), (FUA, EXTENT, 4096)])?;
    d.crash(B, Survival::Data)?;
    d.completed(A)?;
    d.requests(A, &[at(3, 0, 4096), at(1, 4096, 4096)])?;
    d.restarted(B)?;
    d.requests(A, &[at(0, 0, 4096)])?;
    d.in_sync()?;
    d.requests(A, &[at(9, 0, 4096), FLUSH])?;
    d.demote(A)
}

/// The peer's power goes with what it had completed in its cache; the Primary writes nothing more, so no new generation
/// says that the copies differ: only its bits do. It steps down, its disk leaves in order and comes back.
fn debt(d: &mut Driver) -> Go {
    d.in_sync()?;
    d.promote(A)?;
    d.requests(A, &[at(0, 0, 4096), at(1, 0, 4096)])?;
    d.requests(A, &[at(0, 0, 8192)])?;
    d.crash(B, Survival::Nothing)?;
    d.until("the Primary hears of it", |world| !is_connected(world, A))?;
    d.demote(A)?;
    d.detach(A)?;
    d.attach(A)?;
    d.restarted(B)?;
    d.in_sync()?;
    d.promote(B)?;
    d.requests(B, &[at(0, 0, 4096)])?;
    d.demote(B)
}

/// A crashed Primary: the log becomes bits, what it missed and what it had comes from, or goes to, the peer.
fn restart(d: &mut Driver) -> Go {
    d.in_sync()?;
    d.promote(A)?;
    for extent in 0..7 {
        d.requests(A, &[at(extent, 0, 4096)])?;
    }
    d.submit(A, &[at(1, 0, 8192), at(8, 0, 4096)])?;
    d.crash(A, Survival::Data)?;
    d.restarted(A)?;
    d.in_sync()?;
    d.promote(A)?;
    d.requests(A, &[at(5, 4096, 4096), at(9, 0, 4096)])?;
    d.disconnect(A)?;
    d.requests(A, &[at(10, 0, 4096), at(5, 4096, 4096)])?;
    d.crash(A, Survival::Data)?;
    d.restarted(A)?;
    // It went down disconnected, and a restart connects.
    d.command(B, Command::Connect { peer: A, discard_my_data: false })?;
    d.in_sync()?;
    d.promote(B)?;
    d.requests(B, &[at(10, 0, 8192)])?;
    d.demote(B)
}

/// Disks that leave in order and come back, on a Primary and on its peer.
fn disks(d: &mut Driver) -> Go {
    d.in_sync()?;
    d.promote(A)?;
    d.requests(A, &[at(0, 0, 4096), at(1, 0, 4096)])?;
    for node in [B, A] {
        d.detach(node)?;
        d.requests(A, &[at(2, 0, 4096), at(1, 4096, 4096)])?;
        d.attach(node)?;
        d.in_sync()?;
        d.requests(A, &[at(3, u64::from(node == A) * 4096, 4096)])?;
    }
    d.demote(A)?;
    for node in [A, B] {
        d.disconnect(other(node))?;
        d.detach(node)?;
        d.attach(node)?;
        d.connect()?;
        d.in_sync()?;
    }
    Ok(())
}
