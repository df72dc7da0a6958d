//! Who still needs which buffer: the engine's token, and everything the driver has in hand for it.
//!
//! Invariants, asserted: a payload is allocated in the pool exactly while the engine holds it, at least one use is
//! open, or it was reserved and not handed over yet; the engine releases once.
//!
//! A payload for a read of the application may come with the application's own pages: then a disk reads into these, and
//! nobody may ask for the payload's memory.

use std::io;

use store::buffers::PAGE_BYTES;
use store::{BufferPool, Place, RegisteredSpan, Span};
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

/// Where the bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pages {
    /// In the pool.
    Pool,
    /// In the pool, unless a disk is asked to read: the application's are in this fixed buffer of the ring.
    Lent(u16),
    /// A disk reads into the application's.
    Reading,
    /// In the application's.
    Filled,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    share: Share,
    /// In hand of the engine; also while the driver fills it for the engine.
    held: bool,
    /// What the driver started and still needs the bytes for.
    uses: u32,
    pages: Pages,
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
        let old = self.entries[id.0 as usize].replace(Entry { share, held: true, uses: 0, pages: Pages::Pool });
        assert!(old.is_none(), "{id:?} was free in the pool and has references: {old:?}");
        Some(id)
    }

    pub fn span(&self, id: PayloadId) -> Span {
        self.assert_in_pool(id);
        self.pool.span(id)
    }

    /// For copies between a socket's staging area and the payload.
    pub fn bytes_mut(&mut self, id: PayloadId) -> &mut [u8] {
        self.assert_in_pool(id);
        self.pool.bytes_mut(id)
    }

    fn assert_in_pool(&self, id: PayloadId) {
        let pages = self.entries[id.0 as usize].map(|entry| entry.pages);
        assert!(!matches!(pages, Some(Pages::Reading | Pages::Filled)), "the bytes of {id:?} are elsewhere: {pages:?}");
    }

    /// The application reads, and its own pages, as many, are this fixed buffer of the ring until it has its answer.
    pub fn lend(&mut self, id: PayloadId, buffer: u16) {
        let entry = self.entry(id);
        assert!(entry.pages == Pages::Pool, "{id:?} has pages: {:?}", entry.pages);
        entry.pages = Pages::Lent(buffer);
    }

    /// A disk reads `len` bytes: opens a use, and says where to.
    pub fn begin_read(&mut self, id: PayloadId, len: usize) -> Place {
        self.open_use(id);
        let whole = self.pool.len(id) == len;
        let entry = self.entry(id);
        if let Pages::Lent(buffer) = entry.pages
            && whole
        {
            entry.pages = Pages::Reading;
            return Place::Registered(RegisteredSpan { buffer, offset: 0, len });
        }
        Place::Memory(self.span(id).first(len))
    }

    /// The disk cannot read into the application's pages: where to instead. The use stays open.
    pub fn read_into_pool(&mut self, id: PayloadId) -> Place {
        let entry = self.entry(id);
        assert!(entry.pages == Pages::Reading, "nothing reads into pages of {id:?}: {:?}", entry.pages);
        entry.pages = Pages::Pool;
        Place::Memory(self.span(id))
    }

    /// The disk is through: closes the use.
    pub fn end_read(&mut self, id: PayloadId, succeeded: bool) {
        let entry = self.entry(id);
        if entry.pages == Pages::Reading {
            // What comes in place of what failed, from a peer, goes to the pool.
            entry.pages = if succeeded { Pages::Filled } else { Pages::Pool };
        }
        self.close_use(id);
    }

    /// The application has its bytes.
    pub fn is_filled(&self, id: PayloadId) -> bool {
        self.entries[id.0 as usize].is_some_and(|entry| entry.pages == Pages::Filled)
    }

    /// The bytes of one payload into another of the same length. Neither may be with the kernel.
    pub fn copy(&mut self, from: PayloadId, to: PayloadId) {
        let (source, target) = (self.span(from), self.span(to));
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
    fn a_disk_reads_into_the_applications_pages_and_a_peers_answer_goes_to_the_pool() {
        let mut payloads = Payloads::new(4 << 20).unwrap();
        let id = payloads.try_reserve(8192, Share::Application).unwrap();
        payloads.lend(id, 7);
        let place = payloads.begin_read(id, 8192);
        assert_eq!(place, Place::Registered(RegisteredSpan { buffer: 7, offset: 0, len: 8192 }));
        payloads.end_read(id, true);
        assert!(payloads.is_filled(id));
        assert!(payloads.release(id));

        let [id, from] = [1, 2].map(|_| payloads.try_reserve(8192, Share::Peer).unwrap());
        payloads.lend(id, 7);
        payloads.begin_read(id, 8192);
        payloads.end_read(id, false);
        payloads.bytes_mut(from).fill(5);
        payloads.copy(from, id);
        assert!(!payloads.is_filled(id));
        assert_eq!(payloads.bytes_mut(id)[8191], 5);
    }

    #[test]
    fn a_disk_that_refuses_the_pages_reads_into_the_pool() {
        let mut payloads = Payloads::new(4 << 20).unwrap();
        let id = payloads.try_reserve(4096, Share::Application).unwrap();
        payloads.lend(id, 7);
        payloads.begin_read(id, 4096);
        assert!(matches!(payloads.read_into_pool(id), Place::Memory(span) if span.len() == 4096));
        payloads.end_read(id, true);
        assert!(!payloads.is_filled(id));
    }

    #[test]
    #[should_panic(expected = "are elsewhere")]
    fn what_the_application_has_is_not_in_the_pool() {
        let mut payloads = Payloads::new(4 << 20).unwrap();
        let id = payloads.try_reserve(4096, Share::Application).unwrap();
        payloads.lend(id, 7);
        payloads.begin_read(id, 4096);
        payloads.span(id);
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
