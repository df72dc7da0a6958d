//! Fields of the 32-bit state word, and the mask and value of a two-phase change. Layout: docs/wire.md "State word".
//!
//! A word off the wire keeps all its bits; reading a field whose number names no state gives that number as error.

use crate::message::StateWord;
use types::{ConnectionState, DiskState, ReplicationState, Role};

/// Where a field lies in the word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    shift: u32,
    /// In place.
    pub mask: u32,
}

pub const ROLE: Field = Field { shift: 0, mask: 0x3 };
pub const PEER_ROLE: Field = Field { shift: 2, mask: 0xc };
/// Connection and replication state share one number space.
pub const CONN: Field = Field { shift: 4, mask: 0x1f0 };
pub const DISK: Field = Field { shift: 9, mask: 0x1e00 };
pub const PEER_DISK: Field = Field { shift: 13, mask: 0x1_e000 };

/// Single bits.
pub mod flag {
    /// I/O suspended by the administrator.
    pub const SUSPENDED: u32 = 1 << 17;
    /// Resync paused: it waits for another one.
    pub const AFTER_PAUSED: u32 = 1 << 18;
    /// Resync paused by the other side.
    pub const PEER_PAUSED: u32 = 1 << 19;
    /// Resync paused by the administrator.
    pub const USER_PAUSED: u32 = 1 << 20;
    /// I/O suspended: no data reachable.
    pub const SUSPENDED_NO_DATA: u32 = 1 << 21;
    /// I/O suspended: fencing.
    pub const SUSPENDED_FENCING: u32 = 1 << 22;
    /// The sender has quorum; always set where quorum is not configured.
    pub const QUORUM: u32 = 1 << 23;
}

impl StateWord {
    pub(crate) fn get(self, field: Field) -> u8 {
        // The widest field has 5 bits.
        ((self.0 & field.mask) >> field.shift) as u8
    }

    pub(crate) fn with(self, field: Field, number: u8) -> StateWord {
        let value = u32::from(number) << field.shift;
        assert!(value & !field.mask == 0, "{number} does not fit in {field:?}");
        StateWord(self.0 & !field.mask | value)
    }

    pub fn role(self) -> Result<Role, u8> {
        named(self.get(ROLE), Role::from_wire)
    }
    pub fn peer_role(self) -> Result<Role, u8> {
        named(self.get(PEER_ROLE), Role::from_wire)
    }
    /// The number for `ConnectionState::from_wire` or `ReplicationState::from_wire`, as the packet means it. 9 is both
    /// Connected and Off.
    pub fn conn(self) -> u8 {
        self.get(CONN)
    }
    pub fn replication(self) -> Result<ReplicationState, u8> {
        named(self.conn(), ReplicationState::from_wire)
    }
    pub fn connection(self) -> Result<ConnectionState, u8> {
        named(self.conn(), ConnectionState::from_wire)
    }
    pub fn disk(self) -> Result<DiskState, u8> {
        named(self.get(DISK), DiskState::from_wire)
    }
    pub fn peer_disk(self) -> Result<DiskState, u8> {
        named(self.get(PEER_DISK), DiskState::from_wire)
    }
    /// All of `flags` (see [`flag`]) are set.
    pub const fn has(self, flags: u32) -> bool {
        self.0 & flags == flags
    }
    /// Bits that no field owns; DRBD sends them as zero.
    pub const fn reserved(self) -> u32 {
        self.0 & 0xff00_0000
    }

    #[must_use]
    pub fn with_role(self, role: Role) -> StateWord {
        self.with(ROLE, role.to_wire())
    }
    #[must_use]
    pub fn with_peer_role(self, role: Role) -> StateWord {
        self.with(PEER_ROLE, role.to_wire())
    }
    /// `number` is 0..=31 (asserted).
    #[must_use]
    pub fn with_conn(self, number: u8) -> StateWord {
        self.with(CONN, number)
    }
    #[must_use]
    pub fn with_replication(self, state: ReplicationState) -> StateWord {
        self.with_conn(state.to_wire())
    }
    #[must_use]
    pub fn with_connection(self, state: ConnectionState) -> StateWord {
        self.with_conn(state.to_wire())
    }
    #[must_use]
    pub fn with_disk(self, disk: DiskState) -> StateWord {
        self.with(DISK, disk.to_wire())
    }
    #[must_use]
    pub fn with_peer_disk(self, disk: DiskState) -> StateWord {
        self.with(PEER_DISK, disk.to_wire())
    }
    #[must_use]
    pub const fn with_flag(self, flag: u32, on: bool) -> StateWord {
        if on { StateWord(self.0 | flag) } else { StateWord(self.0 & !flag) }
    }
}

fn named<T>(number: u8, from_wire: impl Fn(u8) -> Option<T>) -> Result<T, u8> {
    from_wire(number).ok_or(number)
}

/// Mask and value of TWOPC_PREPARE: which fields change, and to what. Both zero: the "empty" change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StateChange {
    pub mask: StateWord,
    pub value: StateWord,
}

impl StateChange {
    pub const EMPTY: StateChange = StateChange { mask: StateWord(0), value: StateWord(0) };

    fn with(self, field: Field, number: u8) -> StateChange {
        StateChange { mask: StateWord(self.mask.0 | field.mask), value: self.value.with(field, number) }
    }

    #[must_use]
    pub fn with_role(self, role: Role) -> StateChange {
        self.with(ROLE, role.to_wire())
    }
    #[must_use]
    pub fn with_replication(self, state: ReplicationState) -> StateChange {
        self.with(CONN, state.to_wire())
    }
    #[must_use]
    pub fn with_connection(self, state: ConnectionState) -> StateChange {
        self.with(CONN, state.to_wire())
    }
    #[must_use]
    pub fn with_disk(self, disk: DiskState) -> StateChange {
        self.with(DISK, disk.to_wire())
    }
    #[must_use]
    pub fn with_peer_disk(self, disk: DiskState) -> StateChange {
        self.with(PEER_DISK, disk.to_wire())
    }

    const fn covers(self, field: Field) -> bool {
        self.mask.0 & field.mask != 0
    }

    /// `None`: the role stays.
    pub fn role(self) -> Result<Option<Role>, u8> {
        if self.covers(ROLE) { self.value.role().map(Some) } else { Ok(None) }
    }
    /// `None`: the state stays. The number, see [`StateWord::conn`].
    pub fn conn(self) -> Option<u8> {
        self.covers(CONN).then(|| self.value.conn())
    }
    /// `None`: the disk stays.
    pub fn disk(self) -> Result<Option<DiskState>, u8> {
        if self.covers(DISK) { self.value.disk().map(Some) } else { Ok(None) }
    }
    /// `None`: the peer's disk stays.
    pub fn peer_disk(self) -> Result<Option<DiskState>, u8> {
        if self.covers(PEER_DISK) { self.value.peer_disk().map(Some) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words out of captures, with what the kernel's own log says they mean.
    #[test]
    fn captured_words() {
        let word = StateWord(0x0081_32aa);
        assert_eq!((word.role(), word.peer_role()), (Ok(Role::Secondary), Ok(Role::Secondary)));
        assert_eq!(word.replication(), Ok(ReplicationState::Established));
        assert_eq!((word.disk(), word.peer_disk()), (Ok(DiskState::UpToDate), Ok(DiskState::UpToDate)));
        assert!(word.has(flag::QUORUM) && !word.has(flag::SUSPENDED));
        let built = StateWord::default()
            .with_role(Role::Secondary)
            .with_peer_role(Role::Secondary)
            .with_replication(ReplicationState::Established)
            .with_disk(DiskState::UpToDate)
            .with_peer_disk(DiskState::UpToDate)
            .with_flag(flag::QUORUM, true);
        assert_eq!(built, word);
        assert_eq!(StateWord::default().with_role(Role::Secondary), StateWord(2));
    }

    #[test]
    fn captured_changes() {
        let connect = StateChange::EMPTY.with_connection(ConnectionState::Connected).with_role(Role::Secondary);
        let disconnect = StateChange::EMPTY.with_connection(ConnectionState::Disconnecting);
        let cases = [
            ("connect", connect, 0x1f3, 0x92),
            ("disconnect", disconnect, 0x1f0, 0x10),
            ("disconnect with quorum", disconnect.with_disk(DiskState::Outdated), 0x1ff0, 0xc10),
            ("promote", StateChange::EMPTY.with_role(Role::Primary), 0x3, 0x1),
            (
                "promote --force",
                StateChange::EMPTY.with_role(Role::Primary).with_disk(DiskState::UpToDate),
                0x1e03,
                0x1201,
            ),
            ("empty", StateChange::EMPTY, 0, 0),
        ];
        for (what, change, mask, value) in cases {
            assert_eq!((change.mask.0, change.value.0), (mask, value), "{what}");
        }
        assert_eq!(connect.role(), Ok(Some(Role::Secondary)));
        assert_eq!((connect.conn(), connect.disk()), (Some(9), Ok(None)));
    }

    #[test]
    fn setting_one_field_leaves_the_others() {
        for start in [0, u32::MAX] {
            let word = StateWord(start);
            assert_eq!(word.with_conn(10).0 & !CONN.mask, start & !CONN.mask);
            assert_eq!(word.with_peer_disk(DiskState::Failed).0 & !PEER_DISK.mask, start & !PEER_DISK.mask);
            assert_eq!(word.with_flag(flag::QUORUM, false).0, start & !flag::QUORUM);
        }
    }

    #[test]
    fn numbers_that_name_no_state_come_back() {
        let word = StateWord(u32::MAX);
        assert_eq!((word.role(), word.disk(), word.replication()), (Err(3), Err(15), Err(31)));
        assert_eq!(word.reserved(), 0xff00_0000);
        let change = StateChange { mask: StateWord(0x1e00), value: StateWord(0x1e00) };
        assert_eq!(change.disk(), Err(15));
    }
}
