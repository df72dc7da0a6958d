//! One DRBD resource as a value: all rules of replication, no I/O.
//!
//! `handle(now, input, &mut effects)` is the only door (contract: [`api`]). The engine keeps payload bytes outside
//! and owns all ordering: an effect that must wait for a disk or a peer is not emitted before that completion.
//!
//! How the rooms hang together: `request` takes the application's I/O in and lets its writes go, `read` and `flush` the
//! rest, `replica` does the same for writes of a peer; all go through one volume's door (`volume`, `door`), activity log
//! (`activity`) and ranges (`ranges`, `range_owner`). `meta` writes metadata in order. `connect` sets a connection up,
//! `handshake` and `reconcile` decide who is source, `exchange` moves bitmaps, `resync` fetches blocks and `serve` gives
//! them away, `verify` compares them by their digests (`digest`), `in_sync` tells third nodes. `twophase` changes what
//! concerns several nodes. `generation` keeps the identifiers, `state` the states and what follows from a change. Inputs
//! set flags and call one room; `settle` then runs what became possible, until nothing does: no room calls another one
//! in circles.
#![no_std]

extern crate alloc;

pub mod activity;
mod allowance;
pub mod api;
mod attach;
mod connect;
mod digest;
mod dispatch;
mod door;
pub mod epoch;
mod exchange;
mod flush;
mod generation;
pub mod handshake;
mod in_sync;
pub mod latency;
mod meta;
mod options;
pub mod pacing;
mod peer;
pub mod planted;
pub mod progress;
mod range_owner;
pub mod ranges;
mod read;
mod reconcile;
mod replica;
mod request;
mod resync;
mod role;
mod serve;
mod slab;
mod state;
mod status;
mod table;
mod timer;
mod twophase;
mod v84;
mod verify;
mod volume;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use types::{IoError, IoId, LinkId, NodeId, NodeSet, PayloadId, Role, Time, Uuid, VolumeNumber};

pub use api::*;
use digest::Digesting;
use flush::Flush;
use peer::Peer;
use read::Read;
use replica::PeerWrite;
use request::{Leg, Write};
use resync::ResyncRequest;
use role::RoleChange;
use serve::Served;
use slab::{Key, Slab};
use state::Deferred;
use table::Table;
use twophase::TwoPhase;
use verify::VerifyBlock;
use volume::Volume;

/// The resource on this node.
pub struct Engine {
    me: NodeId,
    /// The keys of `peers`.
    peer_set: NodeSet,
    config: ResourceConfig,
    now: Time,
    rng: ChaCha12Rng,
    out: Vec<Effect>,
    /// No timer is due before (see `timer`).
    timers_from: Time,
    role: Role,
    volumes: Table<VolumeNumber, Volume>,
    peers: Table<NodeId, Peer>,
    ios: Slab<Io>,

    reads: Slab<Read>,
    flushes: Slab<Flush>,
    writes: Slab<Write>,
    /// Of writes that are gone, for the next ones: as many as ever were open at once.
    spare_legs: Vec<Vec<Leg>>,
    /// Submitted writes of the application, in order; they leave from the front.
    transfer_log: VecDeque<Key>,
    /// Sectors that this node has written as Primary: the position in its stream.
    dagtag: u64,
    /// Number of the write epoch that the next write belongs to.
    epoch: u64,
    epoch_writes: u32,
    /// When the epoch before it ended.
    epoch_ended: Time,
    /// The first write of the newest epoch came less than [`peer::WRITES_ARE_CLOSE`] after the epoch before had ended.
    writes_follow_closely: bool,
    /// When barriers that wait for a write to go out with go out without.
    barriers_due: Option<Time>,
    /// Something in the transfer log may have become complete or done: these writes, or any of them.
    retire: bool,
    touched: Vec<Key>,
    check_all: bool,

    peer_writes: Slab<PeerWrite>,
    resync_requests: Slab<ResyncRequest>,
    served: Slab<Served>,
    verify_blocks: Slab<VerifyBlock>,
    digests: Slab<Digesting>,
    /// Flushes of resynced blocks so far: their numbers.
    flushes_started: u64,
    twophase: TwoPhase,
    role_change: Option<RoleChange>,
    /// What waits until a superblock is on disk.
    deferred: Vec<(VolumeNumber, u64, Deferred)>,
}

/// A disk operation on its way: of which volume, and what for.
struct Io {
    volume: VolumeNumber,
    kind: IoKind,
}

#[derive(Clone, Copy, Debug)]
enum IoKind {
    Metadata,
    Read(Key),
    Write(Key),
    Flush(Key),
    PeerWrite(Key),
    /// A peer's epoch is closed and written: make it durable.
    EpochFlush {
        peer: NodeId,
        link: LinkId,
    },
    /// Written resync blocks become durable before they are acknowledged.
    ResyncFlush {
        flush: u64,
        peer: NodeId,
    },
    /// A peer reads (resync or remote read).
    Serve {
        key: Key,
    },
    ResyncWrite {
        peer: NodeId,
        key: Key,
    },
    /// A sync target's own block, for its digest.
    ResyncRead {
        key: Key,
    },
    /// What the disk had before the resync becomes durable, so that it may be compared.
    CsumFlush {
        flush: u64,
        peer: NodeId,
    },
    /// A verify source's own block, for its digest.
    VerifyRead {
        key: Key,
    },
    /// Before a Primary steps down, before a clean detach.
    Barrier,
    /// What a lost Primary wrote becomes durable.
    Salvage,
}

impl Engine {
    pub fn new(config: ResourceConfig, seed: [u8; 32]) -> Engine {
        let volumes = config.volumes.iter().map(|(n, c)| (*n, Volume::new(*n, c.clone()))).collect();
        let peers = config.peers.iter().map(|(n, c)| (*n, Peer::new(*n, c.clone(), &config))).collect();
        Engine {
            me: config.node_id,
            peer_set: config.peers.keys().copied().collect(),
            config,
            now: Time::ZERO,
            rng: ChaCha12Rng::from_seed(seed),
            out: Vec::new(),
            timers_from: Time::ZERO,
            role: Role::Secondary,
            volumes,
            peers,
            ios: Slab::new(),
            reads: Slab::new(),
            flushes: Slab::new(),
            writes: Slab::new(),
            spare_legs: Vec::new(),
            transfer_log: VecDeque::new(),
            dagtag: 0,
            epoch: 0,
            epoch_writes: 0,
            epoch_ended: Time::ZERO,
            writes_follow_closely: false,
            barriers_due: None,
            retire: false,
            touched: Vec::new(),
            check_all: false,
            peer_writes: Slab::new(),
            resync_requests: Slab::new(),
            served: Slab::new(),
            verify_blocks: Slab::new(),
            digests: Slab::new(),
            flushes_started: 0,
            twophase: TwoPhase::new(),
            role_change: None,
            deferred: Vec::new(),
        }
    }

    /// Takes one input and appends what follows from it. `now` never goes back; an earlier one counts as the last.
    pub fn handle(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        core::mem::swap(&mut self.out, effects);
        match input {
            Input::Command { id, command } => self.command(id, command),
            Input::Submit { request, volume, op, range, payload } => self.submit(request, volume, op, range, payload),
            Input::DiskDone { volume, io, result, payload } => self.disk_done(volume, io, result, payload),
            Input::DigestDone { id, digest } => self.digest_done(id, digest),
            Input::LinkUp { peer, link, arbiter } => self.link_up(peer, link, arbiter),
            Input::LinkDown { peer, link, error } => self.link_down(peer, link, error),
            Input::Received { peer, link, socket, volume, message, payload } => {
                self.received(peer, link, socket, volume, message, payload)
            }
            Input::Tick => {}
        }
        self.run_timers();
        self.settle();
        core::mem::swap(&mut self.out, effects);
    }

    /// Runs everything that became possible, until nothing more does.
    fn settle(&mut self) {
        while !self.is_at_rest() && self.advance() {}
    }

    /// Nothing is marked as possible: [`Self::advance`] would do nothing.
    fn is_at_rest(&self) -> bool {
        let volume = |v: &Volume| v.is_at_rest() && !v.is_changing();
        let resource = !self.retire && self.deferred.is_empty() && !self.is_changing_as_a_whole();
        resource && self.volumes.values().all(volume)
    }

    fn is_changing_as_a_whole(&self) -> bool {
        self.role_change.is_some() || !self.twophase.is_quiet()
    }

    /// The resource or a volume is on its way to another state. Requests wait for none of this.
    fn is_changing(&self) -> bool {
        self.is_changing_as_a_whole() || self.volumes.values().any(Volume::is_changing)
    }

    /// Everything once. Returns whether it did anything.
    fn advance(&mut self) -> bool {
        // First what a durable superblock allows: a generation is announced before its first write is sent.
        let mut progress = self.run_deferred();
        for position in 0..self.volumes.len() {
            let (number, volume) = self.volumes.at(position);
            if volume.wants_metadata_written() {
                progress |= self.kick_metadata(number);
            }
            if self.volumes.at(position).1.pump {
                self.volume_mut(number).pump = false;
                progress = true;
                self.pump(number);
            }
        }
        if core::mem::take(&mut self.retire) {
            progress = true;
            self.retire();
        }
        if self.is_changing() {
            progress |= self.advance_salvage();
            progress |= self.advance_role_change();
            progress |= self.advance_twophase();
            progress |= self.advance_detach();
        }
        progress
    }

    fn command(&mut self, id: CommandId, command: Command) {
        match command {
            Command::Attach { volume, disk } => self.attach(id, volume, *disk),
            Command::Detach { volume, force } => self.detach(id, volume, force),
            Command::Connect { peer, discard_my_data } => self.connect(id, peer, discard_my_data),
            Command::Disconnect { peer, force } => self.disconnect(id, peer, force),
            Command::Promote { force } => self.promote(id, force),
            Command::Demote => self.demote(id),
            Command::Invalidate { volume, from } => self.invalidate(id, volume, from),
            Command::InvalidateRemote { volume, peer } => self.invalidate_remote(id, volume, peer),
            Command::Outdate { volume } => self.outdate(id, volume),
            Command::NewCurrentUuid { volume, clear_bitmap } => self.new_current_uuid(id, volume, clear_bitmap),
            Command::PauseSync { volume, peer } => self.pause_sync(id, volume, peer, true),
            Command::ResumeSync { volume, peer } => self.pause_sync(id, volume, peer, false),
            Command::Verify { volume, peer, start, stop } => self.verify(id, volume, peer, start, stop),
            Command::ChangeOptions { change } => self.change_options(id, change),
        }
    }

    fn disk_done(&mut self, volume: VolumeNumber, io: IoId, result: Result<(), IoError>, payload: Option<PayloadId>) {
        let Some(done) = self.ios.remove(io.0) else {
            panic!("the driver completed {io:?} of {volume:?}, which is not on its way");
        };
        assert_eq!(done.volume, volume, "the driver completed {io:?} for another volume");
        let entry = self.volume_mut(volume);
        entry.ios -= 1;
        match done.kind {
            IoKind::Metadata => self.metadata_done(volume, result),
            IoKind::Read(key) => self.local_read_done(key, result),
            IoKind::Write(key) => self.local_write_done(key, result),
            IoKind::Flush(key) => self.local_flush_done(key, result),
            IoKind::PeerWrite(key) => self.peer_write_done(key, result),
            IoKind::EpochFlush { peer, link } => self.epoch_flush_done(peer, link, volume, result),
            IoKind::ResyncFlush { peer, flush } => self.resync_flush_done(peer, volume, flush, result),
            IoKind::Serve { key } => self.serve_done(key, result, payload),
            IoKind::ResyncWrite { peer, key } => self.resync_write_done(peer, volume, key, result),
            IoKind::ResyncRead { key } => self.resync_block_read(volume, key, result, payload),
            IoKind::CsumFlush { peer, flush } => self.csum_flush_done(peer, volume, flush, result),
            IoKind::VerifyRead { key } => self.verify_block_read(volume, key, result, payload),
            IoKind::Barrier => self.barrier_flush_done(volume, result),
            IoKind::Salvage => self.salvaged(volume, result),
        }
    }

    // ------------------------------------------------------------------ small helpers of all rooms

    fn emit(&mut self, effect: Effect) {
        self.out.push(effect);
    }

    fn event(&mut self, event: Event) {
        self.out.push(Effect::Event(event));
    }

    fn warn(&mut self, text: alloc::string::String) {
        self.event(Event::Warning { text });
    }

    /// Starts a disk operation. The volume has a disk.
    fn disk(&mut self, volume: VolumeNumber, kind: IoKind, op: DiskOp) {
        let io = IoId(self.ios.insert(Io { volume, kind }));
        self.volume_mut(volume).ios += 1;
        self.emit(Effect::Disk { volume, io, op });
    }

    fn release(&mut self, payload: Option<PayloadId>) {
        if let Some(payload) = payload {
            self.emit(Effect::Release { payload });
        }
    }

    fn reply(&mut self, id: CommandId, result: Result<(), Refusal>) {
        self.emit(Effect::Reply { id, result });
    }

    /// A change that no command asked for has nobody to tell.
    fn answer(&mut self, command: Option<CommandId>, result: Result<(), Refusal>) {
        if let Some(id) = command {
            self.reply(id, result);
        }
    }

    fn refuse(&mut self, id: CommandId, refusal: Refusal) {
        self.emit(Effect::Reply { id, result: Err(refusal) });
    }

    /// For what happens rarely: it allocates. The path of a request goes through `volumes` by position.
    fn volume_numbers(&self) -> Vec<VolumeNumber> {
        self.volumes.keys().copied().collect()
    }

    fn peer_ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        self.peer_set.iter()
    }

    /// The volume exists: the number came from this engine's own state or was looked up before.
    fn volume(&self, number: VolumeNumber) -> &Volume {
        &self.volumes[&number]
    }

    fn volume_mut(&mut self, number: VolumeNumber) -> &mut Volume {
        self.volumes.get_mut(&number).expect("the volume was looked up before")
    }

    fn peer(&self, id: NodeId) -> &Peer {
        &self.peers[&id]
    }

    fn peer_mut(&mut self, id: NodeId) -> &mut Peer {
        self.peers.get_mut(&id).expect("the peer was looked up before")
    }

    /// A duration in 0..limit, evenly spread.
    fn random_duration(&mut self, limit: Duration) -> Duration {
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(self.rng.next_u64() % limit)
    }

    /// A generation that is neither "not set" nor "just created". Bit 0: this node is Primary.
    fn random_uuid(&mut self) -> Uuid {
        loop {
            let uuid = Uuid(self.rng.next_u64()).with_primary_bit(self.role == Role::Primary);
            if !uuid.is_just_created() && !uuid.same(Uuid::UNKNOWN) {
                return uuid;
            }
        }
    }

    /// Peers whose connection is fully set up.
    fn connected_peers(&self) -> NodeSet {
        self.peers.values().filter(|p| p.is_connected()).map(|p| p.id).collect()
    }
}
