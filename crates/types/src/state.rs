//! Role, connection, replication and disk states. The numbers are those of DRBD 9's wire (docs/wire.md "state word")
//! and their order is meaningful. The names are what `status` prints.

use core::fmt;

/// Role of a node in a resource.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum Role {
    /// Only for a peer that is not connected.
    Unknown = 0,
    /// May originate writes.
    Primary = 1,
    /// Never originates writes.
    Secondary = 2,
}

impl Role {
    /// The number on the wire (protocol >= 110).
    pub const fn to_wire(self) -> u8 {
        self as u8
    }
    /// `None` for a number that names no state.
    pub const fn from_wire(number: u8) -> Option<Role> {
        Some(match number {
            0 => Role::Unknown,
            1 => Role::Primary,
            2 => Role::Secondary,
            _ => return None,
        })
    }
    /// As in `drbdsetup status`.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Unknown => "Unknown",
            Role::Primary => "Primary",
            Role::Secondary => "Secondary",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// State of one connection. Reasons (3..=7) lead back to `Unconnected`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum ConnectionState {
    /// No network work; needs an explicit connect.
    StandAlone = 0,
    /// Deliberate local teardown, ends in StandAlone.
    Disconnecting = 1,
    /// About to start a connect attempt.
    Unconnected = 2,
    /// Peer missed a deadline.
    Timeout = 3,
    /// Socket closed or failed.
    BrokenPipe = 4,
    /// Other transport failure.
    NetworkFailure = 5,
    /// Malformed or unexpected packet.
    ProtocolError = 6,
    /// Peer said goodbye politely.
    TearDown = 7,
    /// Searching or handshaking.
    Connecting = 8,
    /// Packets of all kinds flow.
    Connected = 9,
}

impl ConnectionState {
    /// The number on the wire (protocol >= 110).
    pub const fn to_wire(self) -> u8 {
        self as u8
    }
    /// `None` for a number that names no state.
    pub const fn from_wire(number: u8) -> Option<ConnectionState> {
        Some(match number {
            0 => ConnectionState::StandAlone,
            1 => ConnectionState::Disconnecting,
            2 => ConnectionState::Unconnected,
            3 => ConnectionState::Timeout,
            4 => ConnectionState::BrokenPipe,
            5 => ConnectionState::NetworkFailure,
            6 => ConnectionState::ProtocolError,
            7 => ConnectionState::TearDown,
            8 => ConnectionState::Connecting,
            9 => ConnectionState::Connected,
            _ => return None,
        })
    }
    /// As in `drbdsetup status`.
    pub const fn name(self) -> &'static str {
        match self {
            ConnectionState::StandAlone => "StandAlone",
            ConnectionState::Disconnecting => "Disconnecting",
            ConnectionState::Unconnected => "Unconnected",
            ConnectionState::Timeout => "Timeout",
            ConnectionState::BrokenPipe => "BrokenPipe",
            ConnectionState::NetworkFailure => "NetworkFailure",
            ConnectionState::ProtocolError => "ProtocolError",
            ConnectionState::TearDown => "TearDown",
            ConnectionState::Connecting => "Connecting",
            ConnectionState::Connected => "Connected",
        }
    }
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// State of one volume towards one peer. Numbers are those of the wire's state word; `Off` equals "connected, nothing set up".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum ReplicationState {
    /// Connection not Connected, or the volume is not set up.
    Off = 9,
    /// Normal replication.
    Established = 10,
    /// Full resync ordered, this node is source.
    StartingSyncS = 11,
    /// Full resync ordered, this node is target.
    StartingSyncT = 12,
    /// Bitmap exchange, source.
    WFBitMapS = 13,
    /// Bitmap exchange, target.
    WFBitMapT = 14,
    /// Only with protocol < 110.
    WFSyncUUID = 15,
    /// Resync runs, source.
    SyncSource = 16,
    /// Resync runs, target.
    SyncTarget = 17,
    /// Verify runs, this node drives.
    VerifyS = 18,
    /// Verify runs, this node answers.
    VerifyT = 19,
    /// Resync decided, held; source.
    PausedSyncS = 20,
    /// Resync decided, held; target.
    PausedSyncT = 21,
    /// Writes are only marked (congestion).
    Ahead = 22,
    /// Peer of Ahead.
    Behind = 23,
}

impl ReplicationState {
    /// The number on the wire (protocol >= 110).
    pub const fn to_wire(self) -> u8 {
        self as u8
    }
    /// `None` for a number that names no state.
    pub const fn from_wire(number: u8) -> Option<ReplicationState> {
        Some(match number {
            9 => ReplicationState::Off,
            10 => ReplicationState::Established,
            11 => ReplicationState::StartingSyncS,
            12 => ReplicationState::StartingSyncT,
            13 => ReplicationState::WFBitMapS,
            14 => ReplicationState::WFBitMapT,
            15 => ReplicationState::WFSyncUUID,
            16 => ReplicationState::SyncSource,
            17 => ReplicationState::SyncTarget,
            18 => ReplicationState::VerifyS,
            19 => ReplicationState::VerifyT,
            20 => ReplicationState::PausedSyncS,
            21 => ReplicationState::PausedSyncT,
            22 => ReplicationState::Ahead,
            23 => ReplicationState::Behind,
            _ => return None,
        })
    }
    /// As in `drbdsetup status`.
    pub const fn name(self) -> &'static str {
        match self {
            ReplicationState::Off => "Off",
            ReplicationState::Established => "Established",
            ReplicationState::StartingSyncS => "StartingSyncS",
            ReplicationState::StartingSyncT => "StartingSyncT",
            ReplicationState::WFBitMapS => "WFBitMapS",
            ReplicationState::WFBitMapT => "WFBitMapT",
            ReplicationState::WFSyncUUID => "WFSyncUUID",
            ReplicationState::SyncSource => "SyncSource",
            ReplicationState::SyncTarget => "SyncTarget",
            ReplicationState::VerifyS => "VerifyS",
            ReplicationState::VerifyT => "VerifyT",
            ReplicationState::PausedSyncS => "PausedSyncS",
            ReplicationState::PausedSyncT => "PausedSyncT",
            ReplicationState::Ahead => "Ahead",
            ReplicationState::Behind => "Behind",
        }
    }
}

impl fmt::Display for ReplicationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// State of a disk. The order is meaningful: comparisons follow DRBD. Traps: `DUnknown > Outdated`, `Consistent < UpToDate`; all up to `Failed` means "no usable data".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum DiskState {
    /// No backing disk.
    Diskless = 0,
    /// Metadata is being read.
    Attaching = 1,
    /// Going away, local I/O drains.
    Detaching = 2,
    /// I/O error, about to become Diskless.
    Failed = 3,
    /// Attached while connected; waits for the peers' verdict.
    Negotiating = 4,
    /// Mixture of old and new blocks.
    Inconsistent = 5,
    /// Consistent, but known to be superseded.
    Outdated = 6,
    /// Only a peer's disk: no link.
    DUnknown = 7,
    /// Consistent; not known whether the newest. Transient.
    Consistent = 8,
    /// Consistent and authoritative.
    UpToDate = 9,
}

impl DiskState {
    /// The number on the wire (protocol >= 110).
    pub const fn to_wire(self) -> u8 {
        self as u8
    }
    /// `None` for a number that names no state.
    pub const fn from_wire(number: u8) -> Option<DiskState> {
        Some(match number {
            0 => DiskState::Diskless,
            1 => DiskState::Attaching,
            2 => DiskState::Detaching,
            3 => DiskState::Failed,
            4 => DiskState::Negotiating,
            5 => DiskState::Inconsistent,
            6 => DiskState::Outdated,
            7 => DiskState::DUnknown,
            8 => DiskState::Consistent,
            9 => DiskState::UpToDate,
            _ => return None,
        })
    }
    /// As in `drbdsetup status`.
    pub const fn name(self) -> &'static str {
        match self {
            DiskState::Diskless => "Diskless",
            DiskState::Attaching => "Attaching",
            DiskState::Detaching => "Detaching",
            DiskState::Failed => "Failed",
            DiskState::Negotiating => "Negotiating",
            DiskState::Inconsistent => "Inconsistent",
            DiskState::Outdated => "Outdated",
            DiskState::DUnknown => "DUnknown",
            DiskState::Consistent => "Consistent",
            DiskState::UpToDate => "UpToDate",
        }
    }
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
