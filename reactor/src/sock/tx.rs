//! The send queue of one connection: bytes copied into stable segments, buffers by reference, and the one vectored send
//! that is in flight.
#![allow(unsafe_code)]

use super::stable::{Stable, Zeroed};
use crate::dma::{Account, DmaBuf, DmaPool};
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Bytes of one segment of copied bytes.
pub(crate) const SEGMENT: usize = 8 << 10;
/// Vectors of one send.
pub(crate) const VECTORS: usize = 1024;
/// Bytes of one send.
pub(crate) const SEND_BUDGET: usize = 512 << 10;
/// Spare segments and arenas a reactor keeps.
const SPARES: usize = 64;

/// The memory a send needs while it is in flight.
pub(crate) struct SendArena {
    msg: libc::msghdr,
    iov: [libc::iovec; VECTORS],
}

/// The memory a direct receive needs while it is in flight.
pub(crate) struct RecvArena {
    msg: libc::msghdr,
    iov: [libc::iovec; 2],
    tail: [u8; TAIL],
}

/// Copied bytes.
type Bytes = [u8; SEGMENT];

// SAFETY: C structures whose zero is null pointers and no length.
unsafe impl Zeroed for SendArena {}
// SAFETY: as above, and bytes.
unsafe impl Zeroed for RecvArena {}
// SAFETY: bytes.
unsafe impl Zeroed for Bytes {}

/// Bytes a direct receive may take beyond the asked ones.
pub(crate) const TAIL: usize = 4096;

impl Stable<RecvArena> {
    /// Points the receive at `ptr..ptr + len` and then at the tail.
    pub(crate) fn aim(&self, ptr: *mut u8, len: usize) -> *mut libc::msghdr {
        let a = self.ptr();
        // SAFETY: the arena is ours and nothing is in flight over it.
        unsafe {
            let tail = (&raw mut (*a).tail).cast();
            (*a).iov =
                [libc::iovec { iov_base: ptr.cast(), iov_len: len }, libc::iovec { iov_base: tail, iov_len: TAIL }];
            (*a).msg.msg_iov = (&raw mut (*a).iov).cast();
            (*a).msg.msg_iovlen = 2;
            &raw mut (*a).msg
        }
    }

    /// Where in `buf` the receive was aimed.
    pub(crate) fn offset_in(&self, buf: &DmaBuf) -> usize {
        // SAFETY: the arena is ours and the receive over it has ended.
        unsafe { (*self.ptr()).iov[0].iov_base as usize - buf.as_ptr() as usize }
    }

    /// The first `n` bytes of the tail, after the receive has ended.
    pub(crate) fn tail(&self, n: usize) -> &[u8] {
        // SAFETY: as above; the tail was zeroed when it was made.
        unsafe { std::slice::from_raw_parts((&raw const (*self.ptr()).tail).cast(), n.min(TAIL)) }
    }
}

/// Spare memory of a reactor's connections, so that an idle connection holds none and a busy one does not allocate.
#[derive(Default)]
pub(crate) struct Spares {
    segments: Vec<Stable<Bytes>>,
    send: Vec<Stable<SendArena>>,
    recv: Vec<Stable<RecvArena>>,
}

impl Spares {
    pub(crate) fn recv_arena(&mut self) -> Stable<RecvArena> {
        self.recv.pop().unwrap_or_else(Stable::new)
    }

    pub(crate) fn keep_recv(&mut self, a: Stable<RecvArena>) {
        if self.recv.len() < SPARES {
            self.recv.push(a);
        }
    }

    fn keep_segment(&mut self, s: Stable<Bytes>) {
        if self.segments.len() < SPARES {
            self.segments.push(s);
        }
    }
}

struct Segment {
    bytes: Stable<Bytes>,
    used: usize,
    /// Items of the queue that lie in this segment.
    items: usize,
}

struct Item {
    ptr: *const u8,
    len: usize,
    /// `None`: copied bytes, in a segment.
    owner: Option<DmaBuf>,
    /// When it was queued; only for buffers.
    at: u64,
}

/// How far lent memory was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copied {
    All,
    /// The budget was used up.
    Later,
    /// The account may not hold so much, or the pool is dry.
    NoMemory,
}

/// The queue.
#[derive(Default)]
pub(crate) struct Tx {
    items: VecDeque<Item>,
    segments: VecDeque<Segment>,
    queued: usize,
    arena: Option<Stable<SendArena>>,
}

impl Tx {
    /// Bytes not sent yet.
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// Appends up to `max` bytes that `fill` writes; it returns how many. They extend the last item where they follow it in
    /// memory: to the kernel that is one vector.
    pub(crate) fn push_with(&mut self, spares: &mut Spares, max: usize, fill: impl FnOnce(&mut [u8]) -> usize) {
        assert!(max <= SEGMENT, "at most {SEGMENT} bytes are copied at a time, not {max}");
        if self.segments.back().is_none_or(|s| SEGMENT - s.used < max) {
            let bytes = spares.segments.pop().unwrap_or_else(Stable::new);
            self.segments.push_back(Segment { bytes, used: 0, items: 0 });
        }
        let seg = self.segments.back_mut().expect("just made");
        let at = seg.used;
        // SAFETY: `at + max` is within the segment, as checked; the kernel and earlier items only read what is before `at`.
        let ptr = unsafe { seg.bytes.ptr().cast::<u8>().add(at) };
        // SAFETY: as above, and nobody else refers to these bytes.
        let n = fill(unsafe { std::slice::from_raw_parts_mut(ptr, max) });
        assert!(n <= max, "{n} bytes written into {max}");
        if n == 0 {
            return;
        }
        seg.used += n;
        self.queued += n;
        match self.items.back_mut() {
            Some(last) if last.owner.is_none() && seg.items > 0 && at > 0 => last.len += n,
            _ => {
                seg.items += 1;
                self.items.push_back(Item { ptr, len: n, owner: None, at: 0 });
            }
        }
    }

    pub(crate) fn push_bytes(&mut self, spares: &mut Spares, bytes: &[u8]) {
        for part in bytes.chunks(SEGMENT) {
            self.push_with(spares, part.len(), |to| {
                to.copy_from_slice(part);
                part.len()
            });
        }
    }

    pub(crate) fn push_buf(&mut self, buf: DmaBuf, now: u64) {
        if !buf.is_empty() {
            self.queued += buf.len();
            self.items.push_back(Item { ptr: buf.as_ptr(), len: buf.len(), owner: Some(buf), at: now });
        }
    }

    /// Fills the vectors of the next send from the head of the queue. The header and everything it points to stays in place
    /// until [`sent`](Self::sent).
    pub(crate) fn begin(&mut self, spares: &mut Spares) -> Option<*const libc::msghdr> {
        if self.arena.is_some() || self.items.is_empty() {
            return None;
        }
        let arena = spares.send.pop().unwrap_or_else(Stable::new);
        let a = arena.ptr();
        let (mut n, mut bytes) = (0, 0);
        for item in self.items.iter().take(VECTORS) {
            let len = item.len.min(SEND_BUDGET - bytes);
            // SAFETY: `n` is below VECTORS; the arena is ours and nothing is in flight over it.
            unsafe { (*a).iov[n] = libc::iovec { iov_base: item.ptr.cast_mut().cast(), iov_len: len } };
            n += 1;
            bytes += len;
            if bytes == SEND_BUDGET {
                break;
            }
        }
        self.arena = Some(arena);
        // SAFETY: as above.
        unsafe {
            (*a).msg.msg_iov = (&raw mut (*a).iov).cast();
            (*a).msg.msg_iovlen = n;
            Some(&raw const (*a).msg)
        }
    }

    /// Replaces lent memory by copies of it, so that it goes back to its owner. Only when nothing is in flight. What is copied is
    /// taken off `budget`.
    pub(crate) fn copy_lent(&mut self, pool: &DmaPool, account: &Rc<Account>, budget: &Cell<usize>) -> Copied {
        debug_assert!(self.arena.is_none());
        for item in &mut self.items {
            let Some(lent) = item.owner.as_ref().filter(|o| o.is_lent()) else { continue };
            if budget.get() == 0 {
                return Copied::Later;
            }
            let Ok(mut copy) = pool.alloc_for(item.len, account) else { return Copied::NoMemory };
            budget.set(budget.get().saturating_sub(item.len));
            let from = item.ptr as usize - lent.as_ptr() as usize;
            if let Some(to) = copy.get_mut() {
                to.copy_from_slice(&lent.as_slice()[from..from + item.len]);
                item.ptr = copy.as_ptr();
                item.owner = Some(copy);
            }
        }
        Copied::All
    }

    /// Since when lent memory is in the queue.
    pub(crate) fn lent_since(&self) -> Option<u64> {
        self.items.iter().find(|i| i.owner.as_ref().is_some_and(DmaBuf::is_lent)).map(|i| i.at)
    }

    /// The send in flight ended after `n` bytes.
    pub(crate) fn sent(&mut self, spares: &mut Spares, mut n: usize) {
        if let Some(a) = self.arena.take()
            && spares.send.len() < SPARES
        {
            spares.send.push(a);
        }
        debug_assert!(n <= self.queued, "{n} bytes sent of {}", self.queued);
        self.queued -= n;
        while n > 0 {
            let Some(item) = self.items.front_mut() else { break };
            if n < item.len {
                item.ptr = item.ptr.wrapping_add(n);
                item.len -= n;
                return;
            }
            n -= item.len;
            let copied = item.owner.is_none();
            self.items.pop_front();
            if copied {
                self.release_segment(spares);
            }
        }
    }

    /// An item in the first segment is gone.
    fn release_segment(&mut self, spares: &mut Spares) {
        let idle = self.segments.len() > 1 || self.items.is_empty();
        let Some(seg) = self.segments.front_mut() else { return };
        seg.items -= 1;
        if seg.items > 0 {
            return;
        }
        if idle {
            if let Some(s) = self.segments.pop_front() {
                spares.keep_segment(s.bytes);
            }
        } else {
            seg.used = 0;
        }
    }

    /// Forgets the queue; only when nothing is in flight.
    pub(crate) fn clear(&mut self, spares: &mut Spares) {
        debug_assert!(self.arena.is_none());
        self.items.clear();
        self.queued = 0;
        for s in self.segments.drain(..) {
            spares.keep_segment(s.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::DmaOptions;

    fn gather(msg: *const libc::msghdr) -> (usize, Vec<u8>) {
        // SAFETY: `begin` filled the header, and the queue still holds what it points to.
        unsafe {
            let iov = std::slice::from_raw_parts((*msg).msg_iov, (*msg).msg_iovlen);
            let bytes = iov
                .iter()
                .flat_map(|v| std::slice::from_raw_parts(v.iov_base.cast::<u8>(), v.iov_len).to_vec())
                .collect();
            (iov.len(), bytes)
        }
    }

    #[test]
    fn copied_bytes_coalesce_and_buffers_keep_their_place() {
        let pool = DmaPool::new(&DmaOptions::default()).unwrap();
        let (mut tx, mut sp) = (Tx::default(), Spares::default());
        tx.push_bytes(&mut sp, b"ab");
        tx.push_bytes(&mut sp, b"cd");
        let mut b = pool.alloc(2).unwrap();
        b.get_mut().unwrap().copy_from_slice(b"XY");
        tx.push_buf(b, 0);
        tx.push_bytes(&mut sp, b"ef");
        assert_eq!(tx.queued(), 8);
        assert_eq!(gather(tx.begin(&mut sp).unwrap()), (3, b"abcdXYef".to_vec()));
        assert!(tx.begin(&mut sp).is_none(), "one send at a time");
        tx.push_bytes(&mut sp, b"gh");
        tx.sent(&mut sp, 5);
        assert_eq!(gather(tx.begin(&mut sp).unwrap()), (2, b"Yefgh".to_vec()));
        tx.sent(&mut sp, 5);
        assert_eq!((tx.queued(), pool.stats().classes[0].in_use), (0, 0));
        assert!(tx.segments.is_empty(), "an idle connection owns no memory");
    }

    #[test]
    fn lent_memory_is_copied_from_where_sending_stopped() {
        let pool = DmaPool::new(&DmaOptions::default()).unwrap();
        let (mut tx, mut sp) = (Tx::default(), Spares::default());
        let lent = Box::leak(Box::new([*b"0123456789", *b"abcdefghij"]));
        let returned: &'static std::sync::atomic::AtomicU32 = Box::leak(Box::default());
        unsafe fn release(ctx: *mut ()) {
            // SAFETY: the counter below, which lives for ever.
            unsafe { &*ctx.cast::<std::sync::atomic::AtomicU32>() }.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        for part in lent.iter_mut() {
            let ctx = std::ptr::from_ref(returned).cast_mut().cast();
            // SAFETY: the memory lives for ever, and so does the counter.
            tx.push_buf(unsafe { pool.adopt(std::ptr::NonNull::from(&mut *part).cast(), 10, release, ctx) }, 5);
        }
        tx.push_bytes(&mut sp, b"-");
        tx.begin(&mut sp).unwrap();
        tx.sent(&mut sp, 3);
        assert_eq!(tx.lent_since(), Some(5));
        let account = Rc::new(Account::new(0));
        let budget = Cell::new(1000);
        let copy = |tx: &mut Tx| tx.copy_lent(&pool, &account, &budget);
        assert_eq!((copy(&mut tx), budget.get()), (Copied::NoMemory, 1000), "the account is empty");
        account.set_limit(1 << 20);
        budget.set(0);
        assert_eq!(copy(&mut tx), Copied::Later);
        budget.set(1000);
        assert_eq!((copy(&mut tx), budget.get()), (Copied::All, 1000 - 17));
        assert_eq!((tx.lent_since(), returned.load(std::sync::atomic::Ordering::Relaxed)), (None, 2));
        assert!(account.held() > 0);
        assert_eq!(gather(tx.begin(&mut sp).unwrap()).1, b"3456789abcdefghij-");
        tx.sent(&mut sp, 18);
        assert_eq!((pool.stats().classes[0].in_use, account.held()), (0, 0));
    }

    #[test]
    fn any_split_of_any_queue_comes_out_in_order() {
        let pool = DmaPool::new(&DmaOptions::default()).unwrap();
        let (mut tx, mut sp) = (Tx::default(), Spares::default());
        let (mut seed, mut next, mut out, mut want) = (7u64, 0u8, Vec::new(), Vec::new());
        let mut random = move |n: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % n
        };
        let rounds = if cfg!(miri) { 100 } else { 5000 };
        for _ in 0..rounds {
            for _ in 0..random(4) {
                let n = if random(20) == 0 { random(20_000) } else { random(100) };
                let bytes: Vec<u8> = (0..n).map(|_| (next, next = next.wrapping_add(1)).0).collect();
                want.extend_from_slice(&bytes);
                if random(3) == 0 {
                    let mut b = pool.alloc(n.max(1)).unwrap().slice(0, n);
                    b.get_mut().unwrap().copy_from_slice(&bytes);
                    tx.push_buf(b, 0);
                } else {
                    tx.push_bytes(&mut sp, &bytes);
                }
            }
            if let Some(msg) = tx.begin(&mut sp) {
                let (_, bytes) = gather(msg);
                let n = random(bytes.len() + 1);
                out.extend_from_slice(&bytes[..n]);
                tx.sent(&mut sp, n);
            }
        }
        while let Some(msg) = tx.begin(&mut sp) {
            let (_, bytes) = gather(msg);
            out.extend_from_slice(&bytes);
            tx.sent(&mut sp, bytes.len());
        }
        assert!(out == want, "the bytes sent are not the bytes queued");
    }
}
