//! What a core holds for its requests: their pool, those who wait for it, and its open channels.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

use longshore_reactor::{Poller, Reactor, Timer};

use crate::channel::ChannelInner;
use crate::io::{IoId, IoRef};
use crate::job::Job;
use crate::pool::{Pool, PoolStats};

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

    /// Makes `other` this thread's state, and returns what was: where one thread stands for several cores.
    pub(crate) fn exchange(other: Option<Rc<CoreState>>) -> Option<Rc<CoreState>> {
        CURRENT.with(|c| c.replace(other))
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
        self.pool.with_owned(id, f)
    }

    /// As [`with_inflight`](CoreState::with_inflight), for every request that is handed out.
    pub(crate) fn each_inflight(&self, f: impl FnMut(&mut [u64; 2])) {
        self.pool.each_owned(f);
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
