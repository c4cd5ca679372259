//! The requests of a core: fixed slots, handed out and taken back, and the queue of those that have ended.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::ptr::NonNull;

use longshore_nvme::wire::Status;

use crate::core::CoreOptions;
use crate::frame::{FRAME_SLOTS, Frame};
use crate::io::{Io, IoFlags, IoId, IoRef, IoVec, Op, State};

/// Completions that one turn of the reactor delivers from the queue of ended requests.
const POLL_BUDGET: usize = 256;

/// Counters of a core's request pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Requests in the pool.
    pub capacity: u32,
    /// Those of them that are kept for children of requests in flight.
    pub child_reserve: u32,
    /// Requests handed out now.
    pub in_use: u32,
    /// Most requests ever handed out at once.
    pub peak: u32,
    /// How often the pool was dry and somebody had to wait.
    pub waits: u64,
}

/// Fixed slots for requests. Memory is touched only as far as it was ever needed at once.
pub(crate) struct Pool {
    base: NonNull<Io>,
    layout: std::alloc::Layout,
    pub(crate) capacity: u32,
    pub(crate) child_reserve: u32,
    fresh: Cell<u32>,
    free: Cell<Option<NonNull<Io>>>,
    pub(crate) in_use: Cell<u32>,
    peak: Cell<u32>,
    pub(crate) waits: Cell<u64>,
    pub(crate) waiting: Cell<u32>,
    /// Ended requests, in order.
    done_head: Cell<Option<NonNull<Io>>>,
    /// Where the next one is to be linked: `done_head`, or the last one's `next`.
    done_tail: Cell<*mut Option<NonNull<Io>>>,
    _pin: PhantomPinned,
}

impl Pool {
    pub(crate) fn new(opts: CoreOptions) -> Pin<Box<Pool>> {
        let capacity = opts.requests.max(16);
        let layout = std::alloc::Layout::array::<Io>(capacity as usize).expect("request pool size");
        // SAFETY: the layout is not empty. Large blocks come from the kernel untouched, so unused slots cost no memory.
        let base = NonNull::new(unsafe { std::alloc::alloc(layout) } as *mut Io)
            .unwrap_or_else(|| std::alloc::handle_alloc_error(layout));
        let pool = Box::pin(Pool {
            base,
            layout,
            capacity,
            child_reserve: opts.child_reserve.min(capacity / 4),
            fresh: Cell::new(0),
            free: Cell::new(None),
            in_use: Cell::new(0),
            peak: Cell::new(0),
            waits: Cell::new(0),
            waiting: Cell::new(0),
            done_head: Cell::new(None),
            done_tail: Cell::new(std::ptr::null_mut()),
            _pin: PhantomPinned,
        });
        pool.done_tail.set(pool.done_head.as_ptr());
        pool
    }

    #[inline]
    pub(crate) fn get(&self, keep: u32) -> Option<IoRef> {
        let used = self.in_use.get();
        if self.capacity - used <= keep {
            return None;
        }
        let ptr = match self.free.get() {
            Some(p) => {
                // SAFETY: free slots are initialised and linked only here.
                self.free.set(unsafe { p.as_ref() }.next);
                p
            }
            None => self.init_fresh(),
        };
        self.in_use.set(used + 1);
        if used >= self.peak.get() {
            self.peak.set(used + 1);
        }
        // SAFETY: the slot was free, so nobody else holds it.
        let io = unsafe { &mut *ptr.as_ptr() };
        io.state = State::Owned;
        io.next = None;
        // SAFETY: as above; the handle is the only one.
        Some(unsafe { IoRef::from_ptr(ptr) })
    }

    #[cold]
    fn init_fresh(&self) -> NonNull<Io> {
        let i = self.fresh.get();
        assert!(i < self.capacity);
        self.fresh.set(i + 1);
        // SAFETY: `i` is inside the block.
        let p = unsafe { self.base.add(i as usize) };
        let null = IoVec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: the slot is ours and uninitialised until now.
        unsafe {
            p.write(Io {
                op: Op::Read,
                flags: IoFlags::NONE,
                // SAFETY: a place inside the slot; nothing is read.
                top: (&raw mut (*p.as_ptr()).frames).cast(),
                state: State::Free,
                status: Status::SUCCESS,
                md_len: 0,
                nblocks: 0,
                index: i,
                lba: 0,
                iov: std::ptr::null(),
                iovcnt: 0,
                generation: 0,
                md: std::ptr::null_mut(),
                next: None,
                pool: NonNull::from(self),
                inline: [null; 2],
                aux: 0,
                words: [0; 2],
                owned: false,
                nest: 0,
                frames: [Frame::EMPTY; FRAME_SLOTS],
                owners: [None, None],
            });
        }
        p
    }

    #[inline]
    pub(crate) fn put(&self, mut io: IoRef) {
        debug_assert!(io.is_idle(), "released with frames");
        io.clear_frames();
        let slot = io.io_mut();
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1);
        slot.nest = 0;
        slot.iovcnt = 0;
        slot.inline[1].iov_len = 0;
        slot.md = std::ptr::null_mut();
        if slot.owned {
            slot.owned = false;
            slot.owners = [None, None];
        }
        slot.next = self.free.get();
        self.free.set(Some(io.into_ptr()));
        self.in_use.set(self.in_use.get() - 1);
    }

    #[inline]
    pub(crate) fn push_done(&self, io: IoRef) {
        let p = io.into_ptr();
        // SAFETY: the pool is pinned, requests in the list are the list's and stay where they are; so the place is valid. The
        // end is written when the list is cut off.
        unsafe {
            *self.done_tail.get() = Some(p);
            self.done_tail.set(&raw mut (*p.as_ptr()).next);
        }
    }

    /// Delivers ended requests; returns how many.
    #[inline]
    pub(crate) fn poll_done(&self) -> usize {
        let mut budget = POLL_BUDGET;
        // Requests that end while this list is delivered wait for the next turn: the list is cut off first.
        let end = self.done_tail.get();
        // SAFETY: as in `push_done`.
        unsafe { *end = None };
        let mut cur = self.done_head.take();
        self.done_tail.set(self.done_head.as_ptr());
        while let Some(p) = cur {
            if budget == 0 {
                self.requeue_front(p, end);
                break;
            }
            budget -= 1;
            // SAFETY: the list owned the request; the handle made here is the only one from now on.
            let io = unsafe { IoRef::from_ptr(p) };
            cur = io.io().next;
            io.unwind();
        }
        POLL_BUDGET - budget
    }

    /// Puts what is left of a list that was cut off, with the link of its last one at `end`, before those that came since.
    fn requeue_front(&self, first: NonNull<Io>, end: *mut Option<NonNull<Io>>) {
        if std::ptr::eq(self.done_tail.get(), self.done_head.as_ptr()) {
            self.done_tail.set(end);
        } else {
            // SAFETY: the list is the caller's, its last request is not delivered yet and stays where it is.
            unsafe { *end = self.done_head.get() };
        }
        self.done_head.set(Some(first));
    }

    /// The request that `id` names, if that use of it is still in flight.
    pub(crate) fn find(&self, id: IoId) -> Option<NonNull<Io>> {
        if id.index >= self.fresh.get() {
            return None;
        }
        // SAFETY: slots below `fresh` are initialised and never move.
        let p = unsafe { self.base.add(id.index as usize) };
        // SAFETY: as above; only plain fields are read.
        let io = unsafe { p.as_ref() };
        (io.state == State::Owned && io.generation == id.generation).then_some(p)
    }

    /// Shows the device's words of the request that `id` names, if that use of it is still in flight.
    pub(crate) fn with_owned<R>(&self, id: IoId, f: impl FnOnce(&mut [u64; 2]) -> R) -> Option<R> {
        let p = self.find(id)?;
        // SAFETY: the slot is initialised and never moves. Its holder is not running, for this is the core's thread and the
        // caller is not a device's submit or completion of this very request; so nobody else looks at the words.
        Some(f(unsafe { &mut (*p.as_ptr()).words }))
    }

    /// As [`with_owned`](Pool::with_owned), for every request that is handed out.
    pub(crate) fn each_owned(&self, mut f: impl FnMut(&mut [u64; 2])) {
        for i in 0..self.fresh.get() {
            // SAFETY: slots below `fresh` are initialised and never move; as above for the access.
            unsafe {
                let p = self.base.add(i as usize);
                if p.as_ref().state == State::Owned {
                    f(&mut (*p.as_ptr()).words);
                }
            }
        }
    }

    pub(crate) fn stats(&self) -> PoolStats {
        PoolStats {
            capacity: self.capacity,
            child_reserve: self.child_reserve,
            in_use: self.in_use.get(),
            peak: self.peak.get(),
            waits: self.waits.get(),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.in_use.get() != 0 {
            tracing::error!(in_use = self.in_use.get(), "request pool dropped with requests in flight: memory kept");
            return;
        }
        for i in 0..self.fresh.get() {
            // SAFETY: initialised slots, all free, dropped once.
            unsafe { self.base.add(i as usize).drop_in_place() };
        }
        // SAFETY: allocated with this layout in `new`.
        unsafe { std::alloc::dealloc(self.base.as_ptr().cast(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::frame::Submitter;

    struct Log {
        pool: Pin<Box<Pool>>,
        begun: Cell<u64>,
        ended: RefCell<Vec<u64>>,
    }

    impl Log {
        fn end_one(self: &Rc<Self>) {
            let mut io = self.pool.get(0).expect("a request");
            io.begin(self.clone(), self.begun.replace(self.begun.get() + 1));
            io.complete_later(Status::SUCCESS);
        }
    }

    impl Submitter for Log {
        fn io_done(self: Rc<Self>, io: IoRef, tag: u64) {
            io.release();
            self.ended.borrow_mut().push(tag);
            if tag.is_multiple_of(3) {
                self.end_one();
            }
        }
    }

    #[test]
    fn ended_requests_are_delivered_in_order_and_so_many_a_turn_also_if_others_end_meanwhile() {
        let pool = Pool::new(CoreOptions { requests: 1024, child_reserve: 0 });
        let log = Rc::new(Log { pool, begun: Cell::new(0), ended: RefCell::default() });
        for first in [1, POLL_BUDGET - 1, POLL_BUDGET, POLL_BUDGET + 1, 3 * POLL_BUDGET] {
            (0..first).for_each(|_| log.end_one());
            while log.pool.in_use.get() > 0 {
                let queued = log.pool.in_use.get() as usize;
                assert_eq!(log.pool.poll_done(), queued.min(POLL_BUDGET));
            }
            assert_eq!(log.pool.poll_done(), 0);
            assert!((0..log.begun.get()).eq(log.ended.borrow().iter().copied()), "after {first}");
        }
    }
}
