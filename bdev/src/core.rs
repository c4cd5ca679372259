//! What a core holds for its requests: the pool, the queue of ended requests, and its open channels.
#![allow(unsafe_code)]

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

use longshore_nvme::wire::Status;
use longshore_reactor::{Poller, Reactor, Timer};

use crate::channel::ChannelInner;
use crate::frame::{FRAME_SLOTS, Frame};
use crate::io::{Io, IoFlags, IoId, IoRef, IoVec, Op, State};
use crate::job::Job;

/// Completions that one turn of the reactor delivers from the queue of ended requests.
const POLL_BUDGET: usize = 256;

/// Sizes of a core's pools.
#[derive(Clone, Copy, Debug)]
pub struct CoreOptions {
    /// Requests in the pool of one core.
    pub requests: u32,
    /// Requests of `requests` kept for children of requests in flight (splits), so that parents cannot starve them.
    pub child_reserve: u32,
}

impl Default for CoreOptions {
    fn default() -> Self {
        CoreOptions { requests: 32768, child_reserve: 1024 }
    }
}

/// Told when a request may be had again after [`CoreState::get`] returned none.
pub trait IoWaiter: 'static {
    /// Try again. Called from the core's poll phase, in the order of waiting.
    fn io_available(self: Rc<Self>);
}

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
    capacity: u32,
    child_reserve: u32,
    fresh: Cell<u32>,
    free: Cell<Option<NonNull<Io>>>,
    in_use: Cell<u32>,
    peak: Cell<u32>,
    waits: Cell<u64>,
    waiting: Cell<u32>,
    /// Ended requests, in order.
    done_head: Cell<Option<NonNull<Io>>>,
    /// Where the next one is to be linked: `done_head`, or the last one's `next`.
    done_tail: Cell<*mut Option<NonNull<Io>>>,
    _pin: PhantomPinned,
}

impl Pool {
    fn new(opts: CoreOptions) -> Pin<Box<Pool>> {
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
    fn get(&self, keep: u32) -> Option<IoRef> {
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
    fn poll_done(&self) -> usize {
        let mut budget = POLL_BUDGET;
        // Requests that end while this list is delivered wait for the next turn: the list is cut off first.
        // SAFETY: as in `push_done`.
        unsafe { *self.done_tail.get() = None };
        let mut cur = self.done_head.take();
        self.done_tail.set(self.done_head.as_ptr());
        while let Some(p) = cur {
            if budget == 0 {
                self.requeue_front(p);
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

    /// Puts what is left of a list that was cut off before those that came since.
    #[cold]
    fn requeue_front(&self, first: NonNull<Io>) {
        let mut last = first;
        // SAFETY: the cut-off list is owned by the caller and ends with None.
        while let Some(n) = unsafe { last.as_ref() }.next {
            last = n;
        }
        // SAFETY: as above, and as in `push_done`.
        let end = unsafe { &raw mut (*last.as_ptr()).next };
        if std::ptr::eq(self.done_tail.get(), self.done_head.as_ptr()) {
            self.done_tail.set(end);
        } else {
            // SAFETY: as above.
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

    fn stats(&self) -> PoolStats {
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

/// A core's block-device state. One per reactor, made on first use.
pub struct CoreState {
    pool: Pin<Box<Pool>>,
    reactor: Reactor,
    waiters: RefCell<VecDeque<Rc<dyn IoWaiter>>>,
    channels: RefCell<HashMap<usize, Weak<ChannelInner>>>,
    /// Closed channels: freed here, at the top of the stack, when nothing is in flight on them.
    buried: RefCell<Vec<Rc<ChannelInner>>>,
    /// Jobs that wait for a request or for scratch memory.
    starved: RefCell<Vec<Rc<Job>>>,
    idle_jobs: RefCell<Vec<Rc<Job>>>,
    /// There is something in `buried` or `starved`.
    chores: Cell<bool>,
    nudge: RefCell<Option<Timer>>,
    poller: OnceCell<Poller>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<CoreState>>> = const { RefCell::new(None) };
}

impl CoreState {
    /// Makes this reactor's state with pools of the given size. Does nothing if it exists.
    pub fn init(reactor: &Reactor, opts: CoreOptions) -> Rc<CoreState> {
        CURRENT.with(|c| {
            if let Some(s) = &*c.borrow() {
                return s.clone();
            }
            let s = Rc::new(CoreState {
                pool: Pool::new(opts),
                reactor: reactor.clone(),
                waiters: RefCell::new(VecDeque::new()),
                channels: RefCell::new(HashMap::new()),
                buried: RefCell::default(),
                starved: RefCell::default(),
                idle_jobs: RefCell::default(),
                chores: Cell::new(false),
                nudge: RefCell::default(),
                poller: OnceCell::new(),
            });
            let weak = Rc::downgrade(&s);
            let _ = s.poller.set(reactor.poller("bdev", move |_| weak.upgrade().map_or(0, |s| s.poll())));
            *c.borrow_mut() = Some(s.clone());
            s
        })
    }

    /// This reactor's state.
    ///
    /// # Panics
    /// Outside a reactor thread.
    pub fn current() -> Rc<CoreState> {
        if let Some(s) = CURRENT.with(|c| c.borrow().clone()) {
            return s;
        }
        CoreState::init(&Reactor::current(), CoreOptions::default())
    }

    /// This thread's state, if there is one.
    pub(crate) fn existing() -> Option<Rc<CoreState>> {
        CURRENT.with(|c| c.borrow().clone())
    }

    /// Gives up this thread's state: the last step before its reactor ends. Channels must be closed.
    pub fn shutdown() {
        if let Some(s) = CURRENT.with(|c| c.borrow_mut().take()) {
            // What has ended is delivered still.
            while s.pool.poll_done() > 0 {}
            s.clear_buried();
            // What is still busy now never ends: its memory is kept.
            std::mem::forget(s.buried.take());
            s.idle_jobs.take();
            s.nudge.take();
        }
    }

    /// Takes over a channel that nobody holds any more.
    pub(crate) fn bury(&self, ch: Rc<ChannelInner>) {
        self.buried.borrow_mut().push(ch);
        self.chores.set(true);
    }

    fn clear_buried(&self) {
        // A freed channel may bury those below it: again until nothing changes.
        loop {
            let all = self.buried.take();
            let n = all.len();
            let mut kept: Vec<_> = Vec::new();
            for ch in all {
                // Somebody may have opened it again, then its last handle buries it once more.
                if Rc::strong_count(&ch) == 1 && ch.busy() {
                    kept.push(ch);
                }
            }
            let freed = n != kept.len();
            self.buried.borrow_mut().extend(kept);
            if !freed {
                return;
            }
        }
    }

    #[cold]
    fn do_chores(&self) {
        self.clear_buried();
        for job in self.starved.take() {
            job.advance(false);
        }
        let busy = !self.buried.borrow().is_empty() || !self.starved.borrow().is_empty();
        self.chores.set(busy);
        if !self.starved.borrow().is_empty() {
            self.nudge_later();
        }
    }

    /// `job` waits for a request or for scratch memory.
    pub(crate) fn starve(&self, job: Rc<Job>) {
        self.pool.waits.set(self.pool.waits.get() + 1);
        self.starved.borrow_mut().push(job);
        self.chores.set(true);
        self.nudge_later();
    }

    /// Memory may come back without any request ending: look again in a millisecond.
    fn nudge_later(&self) {
        let t = self.reactor.timer(std::time::Duration::from_millis(1), |_| {});
        *self.nudge.borrow_mut() = Some(t);
    }

    pub(crate) fn take_job(&self) -> Option<Rc<Job>> {
        self.idle_jobs.borrow_mut().pop()
    }

    pub(crate) fn put_job(&self, job: Rc<Job>) {
        let mut idle = self.idle_jobs.borrow_mut();
        if idle.len() < 256 {
            idle.push(job);
        }
    }

    /// The core's reactor.
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// Where the coarse time stamp is kept. Valid as long as this state.
    pub(crate) fn clock(&self) -> NonNull<Cell<u64>> {
        NonNull::from(self.reactor.clock())
    }

    /// The coarse time stamp of this turn.
    #[inline]
    pub fn now(&self) -> u64 {
        self.reactor.now()
    }

    /// A fresh request, or none: then wait with [`wait`](CoreState::wait).
    #[inline]
    pub fn get(&self) -> Option<IoRef> {
        if self.pool.waiting.get() != 0 {
            return None;
        }
        self.pool.get(self.pool.child_reserve)
    }

    /// A request for a child of one in flight: may use the reserve.
    ///
    /// Children of children (`nest` > 0) may use more of it than children, so that the innermost can always go on.
    #[inline]
    pub(crate) fn get_child(&self, nest: u8) -> Option<IoRef> {
        self.pool.get(self.pool.child_reserve >> nest.saturating_add(1).min(31))
    }

    /// Tells `waiter` when requests are free again; those who waited longer go first.
    pub fn wait(&self, waiter: Rc<dyn IoWaiter>) {
        self.pool.waits.set(self.pool.waits.get() + 1);
        let mut q = self.waiters.borrow_mut();
        q.push_back(waiter);
        self.pool.waiting.set(q.len() as u32);
    }

    /// Counters of the request pool.
    pub fn pool_stats(&self) -> PoolStats {
        self.pool.stats()
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Shows the device's words of the request `id`, if that use of it is still in flight.
    pub(crate) fn with_inflight<R>(&self, id: IoId, f: impl FnOnce(&mut [u64; 2]) -> R) -> Option<R> {
        let p = self.pool.find(id)?;
        // SAFETY: the slot is initialised and never moves. Its holder is not running, for this is the core's thread and the
        // caller is not a device's submit or completion of this very request; so nobody else looks at the words.
        Some(f(unsafe { &mut (*p.as_ptr()).words }))
    }

    /// As [`with_inflight`](CoreState::with_inflight), for every request that is handed out.
    pub(crate) fn each_inflight(&self, mut f: impl FnMut(&mut [u64; 2])) {
        for i in 0..self.pool.fresh.get() {
            // SAFETY: slots below `fresh` are initialised and never move; as above for the access.
            unsafe {
                let p = self.pool.base.add(i as usize);
                if p.as_ref().state == State::Owned {
                    f(&mut (*p.as_ptr()).words);
                }
            }
        }
    }

    /// True if the use of a request named by `id` is still in flight.
    pub fn is_inflight(&self, id: IoId) -> bool {
        self.pool.find(id).is_some()
    }

    fn poll(&self) -> usize {
        if self.chores.get() {
            self.do_chores();
        }
        let n = self.pool.poll_done();
        if self.pool.waiting.get() != 0 {
            return n + self.wake_waiters();
        }
        n
    }

    /// Lets those who wait try again, as many as there are requests; returns how many it told. One who wants none any more
    /// does not count against those behind it.
    #[cold]
    fn wake_waiters(&self) -> usize {
        let mut woken = 0;
        let queued = self.waiters.borrow().len();
        let mut free = (self.pool.capacity - self.pool.in_use.get()).saturating_sub(self.pool.child_reserve);
        while free > 0 && woken < queued {
            let next = self.waiters.borrow_mut().pop_front();
            let Some(w) = next else { break };
            self.pool.waiting.set(0); // the one woken may take its request now
            let before = self.pool.in_use.get();
            w.io_available();
            woken += 1;
            free = free.saturating_sub(self.pool.in_use.get().saturating_sub(before));
        }
        self.pool.waiting.set(self.waiters.borrow().len() as u32);
        woken
    }

    pub(crate) fn channels(&self) -> &RefCell<HashMap<usize, Weak<ChannelInner>>> {
        &self.channels
    }
}
