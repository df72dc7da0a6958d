//! Generation identifiers ("UUIDs" in DRBD): 64-bit random names of data generations.

use core::fmt;

/// A generation identifier. Bit 0 is not part of the identity: in a *current* UUID it says whether the node was
/// Primary in that generation. `==` compares all 64 bits; rules compare with [`Uuid::same`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Uuid(pub u64);

impl Uuid {
    /// Not set. As bitmap UUID: nothing to sync to that peer.
    pub const ZERO: Uuid = Uuid(0);
    /// Current UUID of fresh metadata: never synchronised.
    pub const JUST_CREATED: Uuid = Uuid(4);
    /// Only on the wire, as a bitmap UUID: "do not conclude anything". Never stored.
    pub const UNKNOWN: Uuid = Uuid(u64::MAX);

    /// The identity: bit 0 cleared.
    pub const fn identity(self) -> Uuid {
        Uuid(self.0 & !1)
    }
    /// Same generation.
    pub const fn same(self, other: Uuid) -> bool {
        self.0 & !1 == other.0 & !1
    }
    pub const fn is_zero(self) -> bool {
        self.0 & !1 == 0
    }
    /// Zero counts as just created, as in the handshake.
    pub const fn is_just_created(self) -> bool {
        self.is_zero() || self.same(Uuid::JUST_CREATED)
    }
    pub const fn with_primary_bit(self, primary: bool) -> Uuid {
        Uuid(self.0 & !1 | primary as u64)
    }
    pub const fn primary_bit(self) -> bool {
        self.0 & 1 != 0
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}
impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}
