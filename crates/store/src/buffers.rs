//! The arena that payloads live in: one page-aligned mapping of fixed size, divided by halves (a buddy allocator).
//!
//! Invariants: every page belongs to exactly one block, free, kept or allocated; a block of order `k` is
//! `PAGE_BYTES << k` bytes, aligned to its size; two free buddies never stand side by side (they are joined). Single
//! pages that come back are kept for the next requests of one page, most of all there are: without that each of them
//! would divide 1 MiB eight times and join it again. They are joined when a larger block is missing.
//! Fixed classes lost: memory stranded in one class is of no use to another, and the bound is one number.
//!
//! `unsafe` in this file: the mapping and slices of it. A [`Span`] handed to the kernel is the kernel's until the
//! completion: whoever holds the span does not ask for `bytes` or `bytes_mut` of that payload meanwhile.

use std::io;
use std::ptr::NonNull;

use types::PayloadId;

/// Alignment and smallest block of the arena. Bytes; enough for O_DIRECT on every disk of up to 4 KiB blocks.
pub const PAGE_BYTES: usize = 4096;
/// Largest payload. Bytes; DRBD's largest bio, and what the frontends advertise as the largest request.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Orders of blocks: 4 KiB << 0 ..= 4 KiB << 8.
const ORDERS: usize = 9;
const _: () = assert!(PAGE_BYTES << (ORDERS - 1) == PAYLOAD_BYTES_MAX);
/// Largest arena. Bytes; page numbers must fit in a [`PayloadId`] below `NIL`.
const ARENA_BYTES_MAX: usize = 1 << 40;
/// Single pages kept for the next of their kind.
const KEPT_MAX: usize = 64;
/// io_uring registers at most this much as one buffer. Bytes.
const REGISTERED_BYTES_MAX: usize = 1 << 30;
const NIL: u32 = u32::MAX;

/// Memory of one payload, for the kernel. Valid while the pool lives and the payload is allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    ptr: NonNull<u8>,
    len: usize,
}

impl Span {
    /// For memory outside a pool. The caller keeps it alive and unaliased until the operation completed.
    pub fn of(bytes: &mut [u8]) -> Span {
        Span { len: bytes.len(), ptr: NonNull::from(bytes).cast() }
    }
    pub const fn as_ptr(self) -> *mut u8 {
        self.ptr.as_ptr()
    }
    pub const fn len(self) -> usize {
        self.len
    }
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }
    /// Without the first `done` bytes (asserted to be there).
    pub fn advanced(self, done: usize) -> Span {
        assert!(done <= self.len, "advance by {done} in a span of {}", self.len);
        // SAFETY: `done <= len`, so the result stays inside, or one past the end of, the same memory.
        Span { ptr: unsafe { self.ptr.add(done) }, len: self.len - done }
    }
    /// The first `len` bytes (asserted to be there).
    pub fn first(self, len: usize) -> Span {
        assert!(len <= self.len, "the first {len} bytes of a span of {}", self.len);
        Span { ptr: self.ptr, len }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Page {
    /// Inside a block that starts at an earlier page.
    Inner,
    /// In `kept`.
    Kept,
    Free {
        order: u8,
        prev: u32,
        next: u32,
    },
    Allocated {
        order: u8,
        len: u32,
    },
}

/// Bounded memory for payloads. All allocation happens in `new`.
pub struct BufferPool {
    base: NonNull<u8>,
    pages: Box<[Page]>,
    /// First free block of each order.
    free: [u32; ORDERS],
    /// Blocks of one page that are not joined with their buddies; at most [`KEPT_MAX`].
    kept: Vec<u32>,
    allocated_bytes: usize,
}

// SAFETY: the pool owns its mapping; nothing in it is bound to the thread that made it.
unsafe impl Send for BufferPool {}

impl BufferPool {
    /// An arena of `bytes`, rounded up to whole [`PAYLOAD_BYTES_MAX`]. This is the bound on payload memory.
    pub fn new(bytes: usize) -> io::Result<BufferPool> {
        if bytes == 0 || bytes > ARENA_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the buffer arena must have 1 byte to 1 TiB"));
        }
        let len = bytes.next_multiple_of(PAYLOAD_BYTES_MAX);
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        // SAFETY: a new private mapping, no address asked for.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?
        };
        let base = NonNull::new(base.cast()).expect("mmap returned null without an error");
        let pages = vec![Page::Inner; len / PAGE_BYTES].into_boxed_slice();
        let kept = Vec::with_capacity(KEPT_MAX);
        let mut pool = BufferPool { base, pages, free: [NIL; ORDERS], kept, allocated_bytes: 0 };
        let step = PAYLOAD_BYTES_MAX / PAGE_BYTES;
        for first in (0..pool.pages.len()).step_by(step).rev() {
            pool.push_free(first as u32, ORDERS - 1);
        }
        Ok(pool)
    }

    /// Memory for `len` bytes (1 ..= [`PAYLOAD_BYTES_MAX`], asserted), page-aligned. Its content is whatever was
    /// there. `None`: the bound is reached; the caller waits for a `free`.
    pub fn try_alloc(&mut self, len: usize) -> Option<PayloadId> {
        assert!((1..=PAYLOAD_BYTES_MAX).contains(&len), "a payload of {len} bytes");
        let order = order_for(len);
        let kept = if order == 0 { self.kept.pop() } else { None };
        let page = kept.or_else(|| self.divide(order)).or_else(|| {
            self.join_kept();
            self.divide(order)
        })?;
        self.pages[page as usize] = Page::Allocated { order: order as u8, len: len as u32 };
        self.allocated_bytes += PAGE_BYTES << order;
        Some(PayloadId(page))
    }

    /// A block of this order out of the smallest free one that is large enough.
    fn divide(&mut self, order: usize) -> Option<u32> {
        let found = (order..ORDERS).find(|&o| self.free[o] != NIL)?;
        let page = self.free[found];
        self.remove_free(page);
        for half in (order..found).rev() {
            self.push_free(page + (1 << half), half);
        }
        Some(page)
    }

    /// Gives the memory back. Freeing what is not allocated is a bug of the caller (asserted).
    pub fn free(&mut self, payload: PayloadId) {
        let (order, _) = self.allocated(payload);
        self.allocated_bytes -= PAGE_BYTES << order;
        if order == 0 && self.kept.len() < KEPT_MAX {
            self.pages[payload.0 as usize] = Page::Kept;
            self.kept.push(payload.0);
        } else {
            self.join(payload.0, order);
        }
    }

    fn join_kept(&mut self) {
        while let Some(page) = self.kept.pop() {
            self.join(page, 0);
        }
    }

    /// The block is free; so are larger ones if its buddies are.
    fn join(&mut self, mut page: u32, mut order: usize) {
        self.pages[page as usize] = Page::Inner;
        while order < ORDERS - 1 {
            let buddy = page ^ (1 << order);
            match self.pages[buddy as usize] {
                Page::Free { order: o, .. } if usize::from(o) == order => self.remove_free(buddy),
                _ => break,
            }
            page = page.min(buddy);
            order += 1;
        }
        self.push_free(page, order);
    }

    /// Length in bytes that `try_alloc` was asked for, or `shorten` left.
    pub fn len(&self, payload: PayloadId) -> usize {
        self.allocated(payload).1
    }

    /// The payload is `len` bytes from now on (at most what it was, at least 1; asserted).
    pub fn shorten(&mut self, payload: PayloadId, len: usize) {
        let (order, old) = self.allocated(payload);
        assert!((1..=old).contains(&len), "shorten a payload of {old} bytes to {len}");
        self.pages[payload.0 as usize] = Page::Allocated { order: order as u8, len: len as u32 };
    }

    pub fn bytes(&self, payload: PayloadId) -> &[u8] {
        let span = self.span(payload);
        // SAFETY: allocated block inside the mapping; `&self` keeps writers of this process out.
        unsafe { std::slice::from_raw_parts(span.as_ptr(), span.len) }
    }

    pub fn bytes_mut(&mut self, payload: PayloadId) -> &mut [u8] {
        let span = self.span(payload);
        // SAFETY: as in `bytes`, exclusive by `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(span.as_ptr(), span.len) }
    }

    /// The payload's memory, for a ring entry.
    pub fn span(&self, payload: PayloadId) -> Span {
        let (_, len) = self.allocated(payload);
        // SAFETY: an allocated page number lies inside the mapping.
        Span { ptr: unsafe { self.base.add(payload.0 as usize * PAGE_BYTES) }, len }
    }

    /// The bound. Bytes.
    pub fn capacity_bytes(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }

    /// Bytes in allocated blocks, rounding included.
    pub fn allocated_bytes(&self) -> usize {
        self.allocated_bytes
    }

    /// The arena in pieces that io_uring can register as fixed buffers.
    pub fn iovecs(&self) -> Vec<libc::iovec> {
        let piece = |start: usize| libc::iovec {
            // SAFETY: `start` is below the mapping's length.
            iov_base: unsafe { self.base.add(start) }.as_ptr().cast(),
            iov_len: REGISTERED_BYTES_MAX.min(self.capacity_bytes() - start),
        };
        (0..self.capacity_bytes()).step_by(REGISTERED_BYTES_MAX).map(piece).collect()
    }

    fn allocated(&self, payload: PayloadId) -> (usize, usize) {
        match self.pages.get(payload.0 as usize) {
            Some(&Page::Allocated { order, len }) => (usize::from(order), len as usize),
            other => panic!("{payload:?} is not allocated: {other:?}"),
        }
    }

    fn push_free(&mut self, page: u32, order: usize) {
        let next = self.free[order];
        self.pages[page as usize] = Page::Free { order: order as u8, prev: NIL, next };
        if let Some(Page::Free { prev, .. }) = self.pages.get_mut(next as usize) {
            *prev = page;
        }
        self.free[order] = page;
    }

    fn remove_free(&mut self, page: u32) {
        let Page::Free { order, prev, next } = self.pages[page as usize] else {
            panic!("page {page} is not free: {:?}", self.pages[page as usize]);
        };
        match self.pages.get_mut(prev as usize) {
            Some(Page::Free { next: n, .. }) => *n = next,
            _ => self.free[usize::from(order)] = next,
        }
        if let Some(Page::Free { prev: p, .. }) = self.pages.get_mut(next as usize) {
            *p = prev;
        }
        self.pages[page as usize] = Page::Inner;
    }
}

impl Drop for BufferPool {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, unmapped once; spans end with the pool by contract.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.capacity_bytes()) };
        debug_assert!(unmapped.is_ok(), "munmap of the buffer arena: {unmapped:?}");
    }
}

/// Smallest order whose block holds `len` bytes.
fn order_for(len: usize) -> usize {
    len.div_ceil(PAGE_BYTES).next_power_of_two().trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bound_is_reached_and_everything_comes_back() {
        let mut pool = BufferPool::new(2 << 20).unwrap();
        let small: Vec<_> = std::iter::from_fn(|| pool.try_alloc(1)).collect();
        assert_eq!(small.len(), 512);
        assert_eq!(pool.allocated_bytes(), pool.capacity_bytes());
        small.iter().for_each(|&p| pool.free(p));
        assert_eq!(pool.allocated_bytes(), 0);
        let large: Vec<_> = std::iter::from_fn(|| pool.try_alloc(PAYLOAD_BYTES_MAX)).collect();
        assert_eq!(large.len(), 2);
    }

    #[test]
    fn kept_pages_are_joined_when_a_larger_block_is_missing() {
        let mut pool = BufferPool::new(PAYLOAD_BYTES_MAX).unwrap();
        let pages: Vec<_> = (0..KEPT_MAX + 3).map(|_| pool.try_alloc(PAGE_BYTES).unwrap()).collect();
        pages.iter().for_each(|&p| pool.free(p));
        assert_eq!((pool.kept.len(), pool.allocated_bytes()), (KEPT_MAX, 0));
        let again = pool.try_alloc(1).unwrap();
        assert_eq!(pool.kept.len(), KEPT_MAX - 1);
        assert_eq!(pool.try_alloc(PAYLOAD_BYTES_MAX), None);
        assert_eq!(pool.kept.len(), 0);
        pool.free(again);
        assert!(pool.try_alloc(PAYLOAD_BYTES_MAX).is_some());
    }

    #[test]
    #[should_panic(expected = "is not allocated")]
    fn a_double_free_is_caught() {
        let mut pool = BufferPool::new(1).unwrap();
        let payload = pool.try_alloc(10).unwrap();
        pool.free(payload);
        pool.free(payload);
    }

    proptest! {
        #[test]
        fn live_payloads_never_overlap(steps in proptest::collection::vec((any::<bool>(), 1usize..=PAYLOAD_BYTES_MAX, any::<usize>()), 1..200)) {
            let mut pool = BufferPool::new(4 << 20).unwrap();
            let mut live: Vec<(PayloadId, u8)> = Vec::new();
            for (stamp, (alloc, len, pick)) in steps.into_iter().enumerate() {
                let stamp = stamp as u8;
                if alloc || live.is_empty() {
                    // Lengths are spread over the orders, not only over the largest.
                    let len = (len >> (pick % 20)).max(1);
                    if let Some(p) = pool.try_alloc(len) {
                        pool.bytes_mut(p).fill(stamp);
                        prop_assert_eq!(pool.span(p).as_ptr() as usize % PAGE_BYTES, 0);
                        live.push((p, stamp));
                    }
                } else {
                    let (p, stamp) = live.swap_remove(pick % live.len());
                    prop_assert!(pool.bytes(p).iter().all(|&b| b == stamp));
                    pool.free(p);
                }
            }
            for (p, stamp) in live.drain(..) {
                prop_assert!(pool.bytes(p).iter().all(|&b| b == stamp));
                pool.free(p);
            }
            prop_assert_eq!((0..4).filter(|_| pool.try_alloc(PAYLOAD_BYTES_MAX).is_some()).count(), 4);
        }
    }
}
