//! History of generation identifiers in the superblock. Rotation (which UUID replaces which) is the engine's.

use types::Uuid;

use crate::Superblock;

impl Superblock {
    /// Remembers a bitmap UUID that was replaced or cleared, so that a later handshake still recognises the
    /// generation. Call it after the record was changed: a value that is still in use as the bitmap UUID of a slot, known
    /// already, the current one, or never synchronised (0, 4) is not pushed. The oldest of 32 drops out.
    pub fn push_history(&mut self, old: Uuid) {
        let old = old.identity();
        if old.is_just_created() || old.same(self.current_uuid) {
            return;
        }
        if self.history[0].0 == 0 {
            self.history[0] = old;
            return;
        }
        // A record without a slot is told to nobody.
        let in_use = self.peers.iter().any(|peer| peer.slot.is_some() && peer.bitmap_uuid.same(old));
        if in_use || self.history.iter().any(|known| known.same(old)) {
            return;
        }
        self.history.rotate_right(1);
        self.history[0] = old;
    }
}
