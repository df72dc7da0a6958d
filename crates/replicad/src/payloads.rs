//! Who still needs which buffer: the engine's token, and everything the driver has in hand for it.
//!
//! Invariants, asserted: a payload is allocated in the pool exactly while the engine holds it, at least one use is
//! open, or it was reserved and not handed over yet; the engine releases once.

use std::io;

use store::buffers::PAGE_BYTES;
use store::{BufferPool, Span};
use types::PayloadId;

/// For whom a buffer is taken. Each has a bound of its own on the pool, so that application requests can never keep
/// out the answers of peers that would complete them (and so free their buffers).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// Requests of the application: half of the pool.
    Application,
    /// What peers send: a quarter.
    Peer,
    /// Reads for resync, verify and diskless peers: a quarter.
    Engine,
}

const SHARES: usize = 3;

#[derive(Clone, Copy, Debug)]
struct Entry {
    share: Share,
    /// In hand of the engine; also while the driver fills it for the engine.
    held: bool,
    /// What the driver started and still needs the bytes for.
    uses: u32,
}

/// The pool and its references.
pub struct Payloads {
    pool: BufferPool,
    /// By page number, which is the payload's number.
    entries: Box<[Option<Entry>]>,
    /// Bytes taken by each share, in whole pages.
    taken_bytes: [usize; SHARES],
    /// A buffer came back since the last `take_freed`.
    freed: bool,
}

impl Payloads {
    /// `bytes`: bound on payload memory of one resource.
    pub fn new(bytes: usize) -> io::Result<Payloads> {
        let pool = BufferPool::new(bytes)?;
        let entries = vec![None; pool.capacity_bytes() / PAGE_BYTES].into_boxed_slice();
        Ok(Payloads { pool, entries, taken_bytes: [0; SHARES], freed: false })
    }

    fn bound_bytes(&self, share: Share) -> usize {
        match share {
            Share::Application => self.pool.capacity_bytes() / 2,
            Share::Peer | Share::Engine => self.pool.capacity_bytes() / 4,
        }
    }

    /// A buffer of `len` bytes (1 ..= 1 MiB), held. `None`: the share or the pool is used up; ask again when
    /// something came back. A share that has nothing always gets its one buffer if the pool can give it.
    pub fn try_reserve(&mut self, len: usize, share: Share) -> Option<PayloadId> {
        let taken = self.taken_bytes[share as usize];
        if taken > 0 && taken + rounded(len) > self.bound_bytes(share) {
            return None;
        }
        let id = self.pool.try_alloc(len)?;
        self.taken_bytes[share as usize] += rounded(len);
        let old = self.entries[id.0 as usize].replace(Entry { share, held: true, uses: 0 });
        assert!(old.is_none(), "{id:?} was free in the pool and has references: {old:?}");
        Some(id)
    }

    pub fn span(&self, id: PayloadId) -> Span {
        self.pool.span(id)
    }

    /// For copies between a socket's staging area and the payload.
    pub fn bytes_mut(&mut self, id: PayloadId) -> &mut [u8] {
        self.pool.bytes_mut(id)
    }

    /// The bytes of one payload into another of the same length. Neither may be with the kernel.
    pub fn copy(&mut self, from: PayloadId, to: PayloadId) {
        let (source, target) = (self.pool.span(from), self.pool.span(to));
        assert!(from != to && source.len() == target.len(), "copy {from:?} ({source:?}) to {to:?} ({target:?})");
        // SAFETY: two different live payloads never overlap, both are of this length.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target.as_ptr(), source.len()) };
    }

    pub fn len(&self, id: PayloadId) -> usize {
        self.pool.len(id)
    }

    fn entry(&mut self, id: PayloadId) -> &mut Entry {
        match self.entries.get_mut(id.0 as usize) {
            Some(Some(entry)) => entry,
            _ => panic!("{id:?} does not exist"),
        }
    }

    /// Something the driver started needs the bytes.
    pub fn open_use(&mut self, id: PayloadId) {
        self.entry(id).uses += 1;
    }

    /// It is through. True if the buffer went back to the pool.
    pub fn close_use(&mut self, id: PayloadId) -> bool {
        let entry = self.entry(id);
        assert!(entry.uses > 0, "{id:?} has no open use");
        entry.uses -= 1;
        self.free_if_unneeded(id)
    }

    /// The engine gave it back, or a buffer reserved for it is not needed after all. True if it went back to the
    /// pool.
    pub fn release(&mut self, id: PayloadId) -> bool {
        let entry = self.entry(id);
        assert!(entry.held, "{id:?} was released before");
        entry.held = false;
        self.free_if_unneeded(id)
    }

    fn free_if_unneeded(&mut self, id: PayloadId) -> bool {
        let entry = *self.entry(id);
        if entry.held || entry.uses > 0 {
            return false;
        }
        self.taken_bytes[entry.share as usize] -= rounded(self.pool.len(id));
        self.entries[id.0 as usize] = None;
        self.pool.free(id);
        self.freed = true;
        true
    }

    /// True if a buffer came back since the last call: what waits for one may try again.
    pub fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// Bytes of the pool in use, rounding included.
    pub fn allocated_bytes(&self) -> usize {
        self.pool.allocated_bytes()
    }
}

/// What a payload of `len` takes from its share: the pool divides by halves.
fn rounded(len: usize) -> usize {
    len.next_power_of_two().max(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_after_the_last_use_and_the_release_in_either_order() {
        let mut payloads = Payloads::new(4 << 20).unwrap();
        let id = payloads.try_reserve(5000, Share::Peer).unwrap();
        payloads.open_use(id);
        payloads.open_use(id);
        assert!(!payloads.close_use(id));
        assert!(!payloads.release(id));
        assert_eq!(payloads.allocated_bytes(), 8192);
        assert!(payloads.close_use(id));
        assert_eq!(payloads.allocated_bytes(), 0);

        let id = payloads.try_reserve(5000, Share::Peer).unwrap();
        payloads.open_use(id);
        assert!(!payloads.close_use(id));
        assert!(payloads.release(id));
        assert_eq!(payloads.allocated_bytes(), 0);
        assert_eq!(payloads.taken_bytes, [0; SHARES]);
    }

    #[test]
    fn one_share_cannot_keep_out_the_others() {
        let mut payloads = Payloads::new(4 << 20).unwrap();
        let mut application = Vec::new();
        while let Some(id) = payloads.try_reserve(4096, Share::Application) {
            application.push(id);
        }
        assert_eq!(application.len() * 4096, 2 << 20);
        let peer = payloads.try_reserve(1 << 20, Share::Peer).expect("a quarter is kept for peers");
        assert_eq!(payloads.try_reserve(4096, Share::Peer), None);
        payloads.try_reserve(1 << 20, Share::Engine).expect("a quarter is kept for the engine");
        assert!(payloads.release(peer));
        assert!(payloads.try_reserve(4096, Share::Peer).is_some());
    }

    #[test]
    #[should_panic(expected = "released before")]
    fn a_second_release_is_a_bug() {
        let mut payloads = Payloads::new(1 << 20).unwrap();
        let id = payloads.try_reserve(1, Share::Peer).unwrap();
        payloads.open_use(id);
        payloads.release(id);
        payloads.release(id);
    }

    #[test]
    #[should_panic(expected = "does not exist")]
    fn a_use_after_the_end_is_a_bug() {
        let mut payloads = Payloads::new(1 << 20).unwrap();
        let id = payloads.try_reserve(1, Share::Peer).unwrap();
        payloads.release(id);
        payloads.open_use(id);
    }
}
