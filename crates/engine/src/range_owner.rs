//! Who holds ranges of a volume, and who goes on when one comes free.

use types::{ByteRange, VolumeNumber};

use crate::Engine;
use crate::ranges::{RangeId, RangeKind};
use crate::slab::Key;
use crate::volume::Writer;

/// Who holds or wants a range of a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum RangeOwner {
    Application(Key),
    PeerWrite(Key),
    /// A read for a peer: it must not see half a write.
    Serve(Key),
    /// A resync block on this target.
    Resync(Key),
    /// A block that this node compares with a peer's.
    Verify(Key),
}

impl RangeOwner {
    /// Highest bits of a key's index, which counts what is held at once and never gets that far.
    const KIND_SHIFT: u32 = 29;

    /// The owner is in bits of the key's lower half: a generation, in the upper one, may get as far as it likes.
    fn id(self) -> RangeId {
        let (kind, key) = match self {
            RangeOwner::Application(key) => (0, key),
            RangeOwner::PeerWrite(key) => (1, key),
            RangeOwner::Serve(key) => (2, key),
            RangeOwner::Resync(key) => (3, key),
            RangeOwner::Verify(key) => (4, key),
        };
        assert!(key as u32 >> Self::KIND_SHIFT == 0, "key {key:#x} is one of too many");
        key | (kind << Self::KIND_SHIFT)
    }

    fn of_id(id: RangeId) -> RangeOwner {
        let kind = id as u32 >> Self::KIND_SHIFT;
        let key = id ^ u64::from(kind) << Self::KIND_SHIFT;
        match kind {
            0 => RangeOwner::Application(key),
            1 => RangeOwner::PeerWrite(key),
            2 => RangeOwner::Serve(key),
            3 => RangeOwner::Resync(key),
            _ => RangeOwner::Verify(key),
        }
    }

    fn kind(self) -> RangeKind {
        match self {
            RangeOwner::Application(_) => RangeKind::Application,
            RangeOwner::PeerWrite(_) => RangeKind::Peer,
            RangeOwner::Serve(_) | RangeOwner::Resync(_) | RangeOwner::Verify(_) => RangeKind::Resync,
        }
    }
}

impl Engine {
    /// Takes a range, or queues for it. Returns whether it is held now.
    pub(crate) fn take_range(&mut self, number: VolumeNumber, owner: RangeOwner, range: ByteRange) -> bool {
        self.volume_mut(number).ranges.insert_or_wait(owner.id(), range, owner.kind())
    }

    /// `range`: as it was taken.
    pub(crate) fn give_range_back(&mut self, number: VolumeNumber, owner: RangeOwner, range: ByteRange) {
        let granted = self.volume_mut(number).ranges.remove(owner.id(), range);
        for id in granted {
            match RangeOwner::of_id(id) {
                RangeOwner::Application(key) => self.range_granted(number, Writer::Application(key)),
                RangeOwner::PeerWrite(key) => self.peer_range_granted(number, key),
                RangeOwner::Serve(key) => self.serve_range_granted(number, key),
                RangeOwner::Resync(key) => self.resync_range_granted(number, key),
                RangeOwner::Verify(key) => self.verify_range_granted(number, key),
            }
        }
        self.volume_mut(number).pump = true;
    }
}

#[cfg(test)]
mod tests {
    use super::RangeOwner as O;

    /// A billion requests and more in one place of the slab: the owner is still told from its key.
    #[test]
    fn owners_of_ranges_survive_any_generation() {
        for generation in [1, 1 << 30, u64::from(u32::MAX)] {
            let key = generation << 32 | 4095;
            for owner in [O::Application(key), O::PeerWrite(key), O::Serve(key), O::Resync(key), O::Verify(key)] {
                assert_eq!(O::of_id(owner.id()), owner, "generation {generation:#x}");
            }
        }
    }
}
