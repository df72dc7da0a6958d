//! What goes into an engine and what comes out: the whole contract between the engine and whoever drives it.
//!
//! Contract of the driver (daemon, simulator, tests):
//! - Call [`crate::Engine::handle`] with one input, carry out every effect it appended, then the next input. Effects
//!   of one call may be carried out in any order, except that `Send`s to one socket keep their order. What must wait
//!   for a disk or a peer is not emitted before that completion came in.
//! - Every `Effect::Disk` is answered by exactly one `Input::DiskDone` with the same `io`, also after the disk was
//!   closed or failed, and never twice. Metadata writes of one volume go to the metadata device, all others to the
//!   data device.
//! - A `PayloadId` names a buffer of the driver. It comes into being with `Submit`, with a received message that has
//!   bulk data, or with the completion of `DiskOp::Read`. The engine gives each one back with exactly one
//!   `Effect::Release`; the driver keeps the bytes until then and until every `Send`, `Disk` and `Complete` that it
//!   still has in hand for that payload is through.
//! - Every `Effect::Digest` is answered by exactly one `Input::DigestDone` with the same `id`, at any time later; the
//!   engine keeps the payload until then. Two payloads of one length have the same digest exactly if their bytes are equal,
//!   as far as the algorithm can say.
//! - `Received` messages of one socket come in the order of the stream. After `LinkDown` nothing comes from that link.
//! - `Input::Tick` at or after [`crate::Engine::next_deadline`]; early or repeated ticks are harmless.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use metadata::layout::Layout;
use metadata::superblock::Superblock;
use types::{
    BlockLimits, BlockOp, ByteRange, ConnectionState, DiskState, IoError, IoId, LinkId, NodeId, PayloadId,
    ReplicationState, RequestId, Role, Uuid, VolumeNumber,
};
use wire::digest::{Digest, DigestAlgorithm};
use wire::{Message, Socket};

/// A command of the operator, chosen by the driver, unique among those not answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct CommandId(pub u64);

/// A digest that the driver was asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct DigestId(pub u64);

// ---------------------------------------------------------------------------------------------- configuration

/// When a write towards a peer counts as done. Numbers: the wire's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// Handed to the send path.
    A = 1,
    /// Received by the peer.
    B = 2,
    /// On the peer's disk.
    C = 3,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnIoError {
    Detach,
    PassOn,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnNoData {
    IoError,
    SuspendIo,
}

/// One resource as this node is configured for it. Defaults of every option: docs of crate `config`.
#[derive(Clone, Debug)]
pub struct ResourceConfig {
    pub node_id: NodeId,
    pub volumes: BTreeMap<VolumeNumber, VolumeConfig>,
    pub peers: BTreeMap<NodeId, PeerConfig>,
    pub on_no_data: OnNoData,
    pub twopc_timeout: Duration,
    pub twopc_retry_timeout: Duration,
    pub peer_ack_delay: Duration,
    pub peer_ack_window_bytes: u64,
    /// Application requests in flight; more are parked.
    pub io_depth_max: usize,
}

#[derive(Clone, Debug)]
pub struct VolumeConfig {
    /// Slots of the activity log. 67..=65534, bounded by the ring at attach.
    pub al_extents: u16,
    /// `disk = "none"`: intentionally without a disk.
    pub diskless: bool,
    /// Option `size`: use no more than this. Bytes.
    pub size_max_bytes: Option<u64>,
    pub on_io_error: OnIoError,
    /// The peers that have a disk for this volume and so get a bitmap slot.
    pub diskful_peers: Vec<NodeId>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerConfig {
    pub protocol: Protocol,
    /// What is offered; in a resource of more than two nodes never 8.4.
    pub dialects: wire::version::Dialects,
    /// CRAM-HMAC. `None`: no authentication.
    pub auth: Option<AuthConfig>,
    pub timeout: Duration,
    pub ko_count: u32,
    pub ping_int: Duration,
    pub ping_timeout: Duration,
    pub epoch_writes_max: u32,
    /// Bound of data sent and not yet known to be stable on the peer. Bytes (`max-buffers` pages).
    pub buffer_bytes_max: u64,
    pub use_rle: bool,
    pub resync: crate::pacing::PacingConfig,
    /// Names of [`wire::digest::DigestAlgorithm`]; empty: none. Used where both ends have the same one.
    pub verify_alg: String,
    pub csums_alg: String,
}

/// Options of the resource that change while it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResourceOptions {
    pub on_no_data: OnNoData,
    pub twopc_timeout: Duration,
    pub twopc_retry_timeout: Duration,
    pub peer_ack_delay: Duration,
    pub peer_ack_window_bytes: u64,
    pub io_depth_max: usize,
}

/// Options of a volume that change while the resource runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeOptions {
    /// Takes effect at the next attach.
    pub al_extents: u16,
    pub on_io_error: OnIoError,
}

/// New options of a running resource: all of it or, if one part is refused, nothing. What is not named stays as it is. A
/// new secret counts from the next connect on.
#[derive(Clone, Default, Debug)]
pub struct OptionChange {
    pub resource: Option<ResourceOptions>,
    pub volumes: BTreeMap<VolumeNumber, VolumeOptions>,
    pub peers: BTreeMap<NodeId, PeerConfig>,
}

/// Secret of a connection. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthConfig {
    pub algorithm: wire::auth::HmacAlgorithm,
    pub secret: Vec<u8>,
}

impl core::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "AuthConfig({:?}, secret not shown)", self.algorithm)
    }
}

// ---------------------------------------------------------------------------------------------- inputs

/// A disk whose metadata the driver has read and checked against the device.
#[derive(Clone, Debug)]
pub struct AttachedDisk {
    pub superblock: Superblock,
    pub layout: Layout,
    /// The bitmap area as it is on disk, `layout.bitmap_bytes` long.
    pub bitmap: Vec<u8>,
    /// The activity-log ring as it is on disk, in order of position on disk.
    pub al_blocks: Vec<[u8; 4096]>,
    /// What the data device can hold, without internal metadata. Bytes.
    pub data_bytes: u64,
    pub limits: BlockLimits,
    /// Data and metadata are on different devices: a flush of one does not flush the other.
    pub external_metadata: bool,
}

#[derive(Clone, Debug)]
pub enum Command {
    Attach {
        volume: VolumeNumber,
        disk: Box<AttachedDisk>,
    },
    Detach {
        volume: VolumeNumber,
        force: bool,
    },
    Connect {
        peer: NodeId,
        discard_my_data: bool,
    },
    Disconnect {
        peer: NodeId,
        force: bool,
    },
    Promote {
        force: bool,
    },
    Demote,
    Invalidate {
        volume: VolumeNumber,
        from: Option<NodeId>,
    },
    InvalidateRemote {
        volume: VolumeNumber,
        peer: NodeId,
    },
    Outdate {
        volume: VolumeNumber,
    },
    NewCurrentUuid {
        volume: VolumeNumber,
        clear_bitmap: bool,
    },
    PauseSync {
        volume: VolumeNumber,
        peer: NodeId,
    },
    ResumeSync {
        volume: VolumeNumber,
        peer: NodeId,
    },
    /// Compares the blocks of a volume with a peer's. Bytes; `start` `None`: where the last one was interrupted; `stop`
    /// `None`: to the end.
    Verify {
        volume: VolumeNumber,
        peer: NodeId,
        start: Option<u64>,
        stop: Option<u64>,
    },
    ChangeOptions {
        change: Box<OptionChange>,
    },
}

/// Why the driver lost a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkError {
    /// The peer closed a socket.
    Closed,
    /// A read or write failed.
    Failed(String),
    /// Bytes that are no valid message.
    Protocol(String),
}

#[derive(Clone, Debug)]
pub enum Input {
    Command {
        id: CommandId,
        command: Command,
    },
    /// A request of the application. `payload`: for `Read` the buffer to fill, for `Write` the data.
    Submit {
        request: RequestId,
        volume: VolumeNumber,
        op: BlockOp,
        range: ByteRange,
        payload: Option<PayloadId>,
    },
    /// `payload`: the buffer that a `DiskOp::Read` filled.
    DiskDone {
        volume: VolumeNumber,
        io: IoId,
        result: Result<(), IoError>,
        payload: Option<PayloadId>,
    },
    /// The answer to [`Effect::Digest`].
    DigestDone {
        id: DigestId,
        digest: Digest,
    },
    /// Both sockets to `peer` exist and were checked. `arbiter`: this node accepted the control socket
    /// (RESOLVE_CONFLICTS of docs/wire.md); the two ends always differ.
    LinkUp {
        peer: NodeId,
        link: LinkId,
        arbiter: bool,
    },
    LinkDown {
        peer: NodeId,
        link: LinkId,
        error: LinkError,
    },
    /// `volume`: `None` for the whole connection. `payload`: the bulk data that followed.
    Received {
        peer: NodeId,
        link: LinkId,
        socket: Socket,
        volume: Option<VolumeNumber>,
        message: Message,
        payload: Option<PayloadId>,
    },
    Tick,
}

// ---------------------------------------------------------------------------------------------- effects

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetaBlock {
    /// Bytes from the start of the metadata device; a multiple of 4096.
    pub offset: u64,
    pub bytes: Box<[u8; 4096]>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskOp {
    /// The driver brings a buffer and hands it over with the completion (`DiskDone.payload`).
    Read {
        range: ByteRange,
    },
    /// Into the buffer of an application's read.
    ReadInto {
        range: ByteRange,
        payload: PayloadId,
    },
    Write {
        range: ByteRange,
        payload: PayloadId,
        fua: bool,
    },
    /// Everything completed on the data device is durable on completion.
    Flush,
    Discard {
        range: ByteRange,
    },
    WriteZeroes {
        range: ByteRange,
        may_unmap: bool,
        fua: bool,
    },
    /// Writes to the metadata device, in any order among themselves. `preflush`: what completed there before is
    /// durable before the first of them is written. `fua`: they are durable on completion.
    MetaWrite {
        blocks: Vec<MetaBlock>,
        preflush: bool,
        fua: bool,
    },
}

#[derive(Clone, Debug)]
pub enum Effect {
    Reply {
        id: CommandId,
        result: Result<(), Refusal>,
    },
    Complete {
        request: RequestId,
        result: Result<(), IoError>,
    },
    Release {
        payload: PayloadId,
    },
    /// Copies the bytes of one payload into another of the same length, before anything else happens to either
    /// (a read that a peer answered).
    Copy {
        from: PayloadId,
        to: PayloadId,
    },
    Disk {
        volume: VolumeNumber,
        io: IoId,
        op: DiskOp,
    },
    /// Hash the bytes of this payload, all of them.
    Digest {
        id: DigestId,
        payload: PayloadId,
        algorithm: DigestAlgorithm,
    },
    Send {
        peer: NodeId,
        link: LinkId,
        socket: Socket,
        volume: Option<VolumeNumber>,
        message: Message,
        payload: Option<PayloadId>,
    },
    /// Features were agreed on this link: what decoding and encoding needs from now on.
    LinkContext {
        peer: NodeId,
        link: LinkId,
        protocol: u32,
        features: u32,
    },
    /// Try to reach the peer until a `LinkUp` or `StopConnecting`. `delay`: before the first attempt.
    Connect {
        peer: NodeId,
        delay: Duration,
    },
    StopConnecting {
        peer: NodeId,
    },
    /// Close both sockets after what was sent before; no `LinkDown` is expected back.
    CloseLink {
        peer: NodeId,
        link: LinkId,
    },
    /// The application's device should exist with this size, or not exist. Idempotent.
    Device {
        volume: VolumeNumber,
        device: Option<DeviceShape>,
    },
    /// The engine uses this disk no more; all its operations were answered.
    CloseDisk {
        volume: VolumeNumber,
    },
    Event(Event),
}

/// What the application's device looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceShape {
    pub size_bytes: u64,
    pub limits: BlockLimits,
}

/// A refused command: the rule that refused it and the state it found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// DRBD's number for state-change results (negative) where it has one.
    pub code: i32,
    /// DRBD's name for it, e.g. `SS_NO_UP_TO_DATE_DISK`.
    pub rule: &'static str,
    /// The state that the rule met.
    pub state: String,
    /// What the operator can do.
    pub next_step: &'static str,
}

/// One change of state or one thing worth a log line. Every state change has exactly one, with its reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    Role {
        from: Role,
        to: Role,
        reason: &'static str,
    },
    Disk {
        volume: VolumeNumber,
        from: DiskState,
        to: DiskState,
        reason: &'static str,
    },
    Connection {
        peer: NodeId,
        from: ConnectionState,
        to: ConnectionState,
        reason: String,
    },
    PeerRole {
        peer: NodeId,
        from: Role,
        to: Role,
    },
    Replication {
        peer: NodeId,
        volume: VolumeNumber,
        from: ReplicationState,
        to: ReplicationState,
        reason: &'static str,
    },
    PeerDisk {
        peer: NodeId,
        volume: VolumeNumber,
        from: DiskState,
        to: DiskState,
        reason: &'static str,
    },
    /// A handshake was decided; `text` names rule, identifiers and bits.
    Handshake {
        peer: NodeId,
        volume: VolumeNumber,
        text: String,
    },
    /// Split brain was detected; the connection is dropped on both sides.
    SplitBrain {
        peer: NodeId,
        volume: VolumeNumber,
    },
    /// A new generation: why.
    NewGeneration {
        volume: VolumeNumber,
        current: Uuid,
        reason: &'static str,
    },
    ResyncStarted {
        peer: NodeId,
        volume: VolumeNumber,
        source: bool,
        bits: u64,
    },
    ResyncFinished {
        peer: NodeId,
        volume: VolumeNumber,
        source: bool,
        took: Duration,
        failed_blocks: u64,
    },
    /// `driving`: this node asks and compares. `from`, `to`: bytes.
    VerifyStarted {
        peer: NodeId,
        volume: VolumeNumber,
        driving: bool,
        from: u64,
        to: u64,
    },
    /// `different` blocks are out of sync now on both ends; `skipped`: could not be compared. `complete`: all of it was
    /// looked at.
    VerifyFinished {
        peer: NodeId,
        volume: VolumeNumber,
        driving: bool,
        took: Duration,
        different: u64,
        skipped: u64,
        complete: bool,
    },
    Size {
        volume: VolumeNumber,
        bytes: u64,
    },
    /// By which protocol this node writes to that peer from here on.
    Protocol {
        peer: NodeId,
        from: Protocol,
        to: Protocol,
        reason: &'static str,
    },
    Warning {
        text: String,
    },
}

// ---------------------------------------------------------------------------------------------- status

/// A snapshot of everything an operator may ask for.
#[derive(Clone, Debug)]
pub struct Status {
    pub role: Role,
    /// I/O waits for data to become reachable.
    pub suspended_no_data: bool,
    pub volumes: BTreeMap<VolumeNumber, VolumeStatus>,
    pub peers: BTreeMap<NodeId, PeerStatus>,
}

#[derive(Clone, Debug)]
pub struct VolumeStatus {
    pub disk: DiskState,
    pub diskless_configured: bool,
    /// Size the application sees. Bytes.
    pub size_bytes: u64,
    pub current_uuid: Uuid,
    pub history: Vec<Uuid>,
    pub flags: u32,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub al_writes: u64,
    pub bitmap_writes: u64,
    pub requests_in_flight: u64,
    /// Bytes of writes that wait for the activity log.
    pub al_suspended: bool,
    /// How long the application's requests take.
    pub latency: crate::latency::Latency,
}

#[derive(Clone, Debug)]
pub struct PeerStatus {
    pub connection: ConnectionState,
    pub role: Role,
    pub protocol_version: Option<u32>,
    /// By which this node writes to the peer: as configured, or as the peer told it.
    pub protocol: Protocol,
    /// Bytes sent and not yet acknowledged / resync bytes in flight.
    pub ap_in_flight_bytes: u64,
    pub rs_in_flight_bytes: u64,
    pub volumes: BTreeMap<VolumeNumber, PeerDeviceStatus>,
}

/// One thing that keeps the data of this resource from being whole everywhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// I/O waits for UpToDate data.
    Suspended,
    /// The volume should have a disk here and has none.
    NoDisk {
        volume: VolumeNumber,
    },
    Disk {
        volume: VolumeNumber,
        state: DiskState,
    },
    NotConnected {
        peer: NodeId,
        state: ConnectionState,
    },
    /// Bytes left.
    Resync {
        peer: NodeId,
        volume: VolumeNumber,
        left: u64,
    },
    PeerDisk {
        peer: NodeId,
        volume: VolumeNumber,
        state: DiskState,
    },
    /// Blocks differ or may differ, and no resync is under way. Bytes.
    OutOfSync {
        peer: NodeId,
        volume: VolumeNumber,
        bytes: u64,
    },
}

/// A verify under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifyStatus {
    pub progress: crate::progress::Progress,
    /// Bytes.
    pub start: u64,
    pub position: u64,
    pub stop: u64,
    /// Blocks so far.
    pub different: u64,
    pub skipped: u64,
}

#[derive(Clone, Debug)]
pub struct PeerDeviceStatus {
    pub replication: ReplicationState,
    pub disk: DiskState,
    /// The peer is meant to have a disk for this volume.
    pub disk_configured: bool,
    pub resync_suspended_user: bool,
    pub resync_suspended_peer: bool,
    pub resync_suspended_dependency: bool,
    /// Bytes received from and sent to the peer for this volume.
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub out_of_sync_bytes: u64,
    pub pending_requests: u64,
    pub unacked_requests: u64,
    pub bitmap_uuid: Uuid,
    pub peer_flags: u32,
    /// While a resync runs.
    pub resync: Option<crate::progress::Progress>,
    /// While a verify runs.
    pub verify: Option<VerifyStatus>,
    /// Bytes of the last resync that did not move, because the target's digest was the source's.
    pub equal_by_csum_bytes: u64,
    /// Blocks fetched by resync since the engine was made (bytes), for tests and statistics.
    pub resynced_bytes: u64,
    /// Text of the last handshake decision.
    pub last_decision: String,
    /// From sending a write until the peer's answer that it waits for: none under protocol A.
    pub answer: crate::latency::Average,
}
