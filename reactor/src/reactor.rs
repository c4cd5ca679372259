//! The reactor's handle on its own thread, and one turn of its loop.
#![allow(unsafe_code)]

use crate::clock;
use crate::dma::{CHUNK, DmaPool};
use crate::engine::ops::OpSlab;
use crate::engine::sim::SimEngine;
use crate::engine::{Completion, Cqe, Engine, OpId, OpKind, RingOp, TOKEN_SENT};
use crate::fixed::FixedBuffers;
use crate::linger::Linger;
use crate::options::{Options, PollMode};
use crate::poller::{Poller, PollerInner, PollerStats};
use crate::shared::{CoreHandle, Msg, Shared};
use crate::sock::{SockStats, SockTable};
use crate::task::{self, Executor, JoinHandle};
use crate::timer::{TimerId, Timers};
use crate::turn::REAP_BUDGET;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

thread_local! {
    pub(crate) static CURRENT: RefCell<Option<Reactor>> = const { RefCell::new(None) };
}

pub(crate) enum Action {
    Once(Box<dyn FnOnce(&Reactor)>),
    Every { period: u64, func: Box<dyn FnMut(&Reactor)> },
    Wake(Waker),
}

pub(crate) type Deferred = Box<dyn FnOnce(&Reactor)>;
pub(crate) type Injector = Box<dyn FnMut(OpKind) -> Option<i32>>;

pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    pub(crate) peers: Vec<CoreHandle>,
    pub(crate) engine: Engine,
    pub(crate) ops: RefCell<OpSlab>,
    /// Completions made here rather than by the engine: refused or injected ones.
    pub(crate) made: RefCell<Vec<(Completion, i32)>>,
    pub(crate) batch: RefCell<Vec<Cqe>>,
    pub(crate) injector: RefCell<Option<Injector>>,
    pub(crate) injecting: Cell<bool>,
    pub(crate) now: Cell<u64>,
    pub(crate) turn_start: Cell<u64>,
    pub(crate) last_work: Cell<u64>,
    pub(crate) was_busy: Cell<bool>,
    pub(crate) turns: Cell<u64>,
    /// Ticks to spin before sleep; `u64::MAX`: always.
    pub(crate) spin: u64,
    pub(crate) linger: Linger,
    pub(crate) pollers: RefCell<Vec<Rc<PollerInner>>>,
    pub(crate) dead_pollers: Cell<bool>,
    pub(crate) pending: Cell<usize>,
    pub(crate) timers: RefCell<Timers<Action>>,
    pub(crate) deferred: RefCell<VecDeque<Deferred>>,
    pub(crate) executor: Executor,
    /// Messages for peers whose inbox was full, per peer.
    pub(crate) outbox: RefCell<Vec<VecDeque<Msg>>>,
    pub(crate) outbox_len: Cell<usize>,
    pub(crate) dma: DmaPool,
    pub(crate) socks: SockTable,
    pub(crate) draining: Cell<bool>,
    pub(crate) stop: Cell<bool>,
}

/// A reactor, on its own thread. Cheap to clone; not `Send`.
#[derive(Clone)]
pub struct Reactor(pub(crate) Rc<Core>);

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reactor").field("index", &self.index()).finish()
    }
}

impl Reactor {
    /// The calling thread's reactor.
    ///
    /// # Panics
    /// On a thread that is not a reactor's.
    pub fn current() -> Reactor {
        Self::try_current().expect("Reactor::current() was called on a thread that is not a reactor's")
    }

    /// The calling thread's reactor, if it is one's.
    pub fn try_current() -> Option<Reactor> {
        CURRENT.try_with(|c| c.borrow().clone()).ok().flatten()
    }

    /// Position in the runtime's list of cores.
    pub fn index(&self) -> usize {
        self.0.shared.index
    }

    /// This reactor as other threads see it.
    pub fn handle(&self) -> CoreHandle {
        CoreHandle(self.0.shared.clone())
    }

    /// Whether its files, its clock and its chance are those of a [`sim::Sim`](crate::sim::Sim).
    pub fn is_simulated(&self) -> bool {
        self.sim_engine().is_some()
    }

    /// All reactors of the runtime, by index, this one included.
    pub fn peers(&self) -> &[CoreHandle] {
        &self.0.peers
    }

    /// The tick counter as of this turn, or of the batch of completions being handled. Reading it costs one load.
    #[inline]
    pub fn now(&self) -> u64 {
        self.0.now.get()
    }

    /// A request is served that somebody waits for: the reactor stays awake for as long as [`PollMode::Adaptive`] says for these.
    #[inline]
    pub fn serving(&self) {
        self.0.linger.request(self.0.now.get());
    }

    /// Where [`now`](Self::now) is kept, for those who read it very often.
    #[inline]
    pub fn clock(&self) -> &Cell<u64> {
        &self.0.now
    }

    /// The tick counter exactly now (13 ns in a virtual machine: not per I/O).
    #[inline]
    pub fn rdtsc(&self) -> u64 {
        clock::rdtsc()
    }

    /// Ticks per second.
    pub fn tick_rate(&self) -> u64 {
        clock::tick_rate()
    }

    /// Ticks in a duration.
    pub fn ticks(&self, d: Duration) -> u64 {
        clock::ticks(d)
    }

    /// This reactor's DMA memory.
    #[inline]
    pub fn dma(&self) -> &DmaPool {
        &self.0.dma
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> usize {
        self.0.ops.borrow().in_flight()
    }

    /// Counters of this reactor's connections and of what they receive into.
    pub fn sock_stats(&self) -> SockStats {
        let (slices, slice) = self.0.engine.uring().map_or((0, 0), |e| e.rx_slices());
        let t = &self.0.socks;
        SockStats { connections: t.count(), rx_slices: slices, rx_slice_bytes: slice, rx_starved: t.starved.get() }
    }

    /// Calls `f` once per turn until the handle is dropped. `f` returns how much it did; while it returns 0 the reactor may
    /// sleep (see [`Poller::set_pending`]).
    pub fn poller(&self, name: impl Into<String>, f: impl FnMut(&Reactor) -> usize + 'static) -> Poller {
        let inner = Rc::new(PollerInner::new(name.into(), Box::new(f)));
        self.0.pollers.borrow_mut().push(inner.clone());
        Poller { inner, reactor: self.clone() }
    }

    /// Calls `f` once, `after` from now, unless the handle is dropped before.
    pub fn timer(&self, after: Duration, f: impl FnOnce(&Reactor) + 'static) -> Timer {
        self.arm(clock::ticks(after), Action::Once(Box::new(f)))
    }

    /// Calls `f` every `period` until the handle is dropped. Periods that could not be kept are skipped, not made up for.
    pub fn every(&self, period: Duration, f: impl FnMut(&Reactor) + 'static) -> Timer {
        let period = clock::ticks(period).max(1);
        self.arm(period, Action::Every { period, func: Box::new(f) })
    }

    fn arm(&self, after: u64, action: Action) -> Timer {
        let deadline = clock::rdtsc().saturating_add(after);
        let id = self.0.timers.borrow_mut().insert(deadline, action);
        Timer { reactor: self.clone(), id, detached: false }
    }

    /// Completes after `d`.
    pub fn sleep(&self, d: Duration) -> Sleep {
        Sleep { reactor: self.clone(), deadline: clock::rdtsc().saturating_add(clock::ticks(d)), timer: None }
    }

    /// Lets the rest of the turn run before the task goes on.
    pub fn yield_now(&self) -> impl Future<Output = ()> + use<> {
        let mut yielded = false;
        std::future::poll_fn(move |cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    /// Runs `future` as a task of this reactor.
    pub fn spawn<F: Future + 'static>(&self, future: F) -> JoinHandle<F::Output> {
        task::spawn(self, future)
    }

    /// Runs `f` in the next turn, never from within this call.
    pub fn defer(&self, f: impl FnOnce(&Reactor) + 'static) {
        self.0.deferred.borrow_mut().push_back(Box::new(f));
    }

    /// Queues a ring operation; it is submitted with this turn's enter. `done` is called from the reap phase, never from
    /// within this call, also when the operation is refused (`-EAGAIN`: too many in flight; `-ECANCELED`: the reactor stops).
    ///
    /// # Safety
    /// Everything that `op` and `done.ctx` point to stays valid until `done` was called without [`CQE_F_MORE`](crate::CQE_F_MORE), and
    /// `done.func` is sound to call with `done.ctx` until then.
    pub unsafe fn submit(&self, op: RingOp, done: Completion) -> OpId {
        let core = &*self.0;
        if core.injecting.get() || core.draining.get() {
            let refuse = match core.draining.get() {
                true => Some(-libc::ECANCELED),
                false => core.injector.borrow_mut().as_mut().and_then(|i| i(op.kind())),
            };
            if let Some(res) = refuse {
                core.made.borrow_mut().push((done, res));
                return OpId(u64::MAX >> 1);
            }
        }
        let id = core.ops.borrow_mut().insert(done, op.kind());
        let Some(id) = id else {
            core.made.borrow_mut().push((done, -libc::EAGAIN));
            return OpId(u64::MAX >> 1);
        };
        // SAFETY: passed on from the caller.
        unsafe { core.engine.push(&op, id.0) };
        id
    }

    /// Asks for `id` to be cancelled. Its completion comes all the same, with `-ECANCELED` if it had not finished before.
    pub fn cancel(&self, id: OpId) {
        if self.0.ops.borrow().kind(id).is_some() {
            self.0.engine.cancel(id);
        }
    }

    /// Fault injection for tests: `f` sees the kind of each operation that is submitted and may decide its result (`-EIO`,
    /// `-ENOBUFS`, `-ENOSPC`...), in which case the kernel never sees the operation. `None` ends it.
    pub fn inject(&self, f: Option<Box<dyn FnMut(OpKind) -> Option<i32>>>) {
        self.0.injecting.set(f.is_some());
        let old = std::mem::replace(&mut *self.0.injector.borrow_mut(), f);
        drop(old);
    }

    /// Fault injection for tests: every `n`-th submission finds the submission queue full; 0 ends it.
    pub fn inject_sq_full(&self, n: u32) {
        self.0.engine.inject_sq_full(n);
    }

    pub(crate) fn sim_engine(&self) -> Option<&SimEngine> {
        match &self.0.engine {
            Engine::Sim(e) => Some(e),
            Engine::Uring(_) => None,
        }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    pub(crate) fn shared_arc(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    pub(crate) fn executor(&self) -> &Executor {
        &self.0.executor
    }

    pub(crate) fn count_pending(&self, up: bool) {
        let p = &self.0.pending;
        p.set(if up { p.get() + 1 } else { p.get() - 1 });
    }

    pub(crate) fn forget_dead_pollers(&self) {
        self.0.dead_pollers.set(true);
    }

    pub(crate) fn poller_stats(&self) -> Vec<PollerStats> {
        self.0.pollers.borrow().iter().map(|p| p.stats()).collect()
    }

    /// Sends from this reactor's thread: never blocks.
    pub(crate) fn post(&self, to: &Arc<Shared>, msg: Msg) {
        let core = &*self.0;
        if std::ptr::eq(&**to, &*core.shared) {
            match msg {
                Msg::Run(f) => core.deferred.borrow_mut().push_back(f),
                Msg::Wake(w) => core.executor.make_ready(w),
            }
            return;
        }
        let mine = core.peers.get(to.index).is_some_and(|p| Arc::ptr_eq(&p.0, to));
        let waiting = mine && core.outbox_len.get() > 0 && !core.outbox.borrow()[to.index].is_empty();
        let refused = if waiting { Err(msg) } else { to.try_push(msg) };
        match refused {
            Ok(()) => self.wake(to),
            Err(msg) if mine => {
                core.outbox.borrow_mut()[to.index].push_back(msg);
                core.outbox_len.set(core.outbox_len.get() + 1);
                self.wake(to);
            }
            // A reactor of another runtime: there is no outbox for it.
            Err(msg) => {
                let mut msg = msg;
                while let Err(back) = to.try_push(msg) {
                    msg = back;
                    std::thread::yield_now();
                }
                self.wake(to);
            }
        }
    }

    pub(crate) fn wake(&self, to: &Arc<Shared>) {
        if !to.bell.must_ring() {
            return;
        }
        match to.ring_fd.load(Ordering::Acquire) {
            fd if fd >= 0 && self.0.peers.get(to.index).is_some_and(|p| Arc::ptr_eq(&p.0, to)) => {
                self.0.engine.wake_peer(fd, TOKEN_SENT | to.index as u64);
            }
            _ => to.ring_eventfd(),
        }
    }
}

/// A timer that is set; dropping it cancels it.
#[must_use = "dropping a timer cancels it"]
pub struct Timer {
    reactor: Reactor,
    id: TimerId,
    detached: bool,
}

impl Timer {
    /// Moves the deadline to `after` from now without allocating. False: it has fired already.
    pub fn reset(&self, after: Duration) -> bool {
        let deadline = clock::rdtsc().saturating_add(clock::ticks(after));
        self.reactor.0.timers.borrow_mut().reset(self.id, deadline)
    }

    /// Lets it fire (or go on firing) without a handle.
    pub fn detach(mut self) {
        self.detached = true;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if !self.detached {
            let action = self.reactor.0.timers.borrow_mut().cancel(self.id);
            drop(action);
        }
    }
}

/// See [`Reactor::sleep`].
pub struct Sleep {
    reactor: Reactor,
    deadline: u64,
    timer: Option<Timer>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if clock::rdtsc() >= self.deadline {
            return Poll::Ready(());
        }
        // A fresh timer on each poll: the waker may have changed, and polls of a sleep are rare.
        self.timer = None;
        let wake = Action::Wake(cx.waker().clone());
        let id = self.reactor.0.timers.borrow_mut().insert(self.deadline, wake);
        self.timer = Some(Timer { reactor: self.reactor.clone(), id, detached: false });
        Poll::Pending
    }
}

impl Core {
    pub(crate) fn build(
        o: &Options,
        shared: Arc<Shared>,
        peers: Vec<CoreHandle>,
        engine: Engine,
    ) -> io::Result<Reactor> {
        let (spin, linger) = match o.poll {
            PollMode::Busy => (u64::MAX, Duration::ZERO),
            PollMode::Adaptive { spin, linger } => (clock::ticks(spin), linger),
        };
        let now = clock::rdtsc();
        let core = Reactor(Rc::new(Core {
            engine,
            ops: RefCell::new(OpSlab::new(o.ring.max_ops as usize)),
            made: RefCell::default(),
            batch: RefCell::new(Vec::with_capacity(REAP_BUDGET)),
            injector: RefCell::default(),
            injecting: Cell::new(false),
            now: Cell::new(now),
            turn_start: Cell::new(now),
            last_work: Cell::new(now),
            was_busy: Cell::new(false),
            turns: Cell::new(0),
            spin,
            linger: Linger::new(linger, now),
            pollers: RefCell::default(),
            dead_pollers: Cell::new(false),
            pending: Cell::new(0),
            timers: RefCell::new(Timers::new()),
            deferred: RefCell::default(),
            executor: Executor::new(),
            outbox: RefCell::new(peers.iter().map(|_| VecDeque::new()).collect()),
            outbox_len: Cell::new(0),
            dma: DmaPool::new(&o.dma)?,
            socks: SockTable::new(),
            draining: Cell::new(false),
            stop: Cell::new(false),
            shared,
            peers,
        }));
        if o.dma.register && core.0.engine.uring().is_some() {
            let registrar = FixedBuffers::new(&core, core.0.dma.stats().limit / CHUNK);
            core.0.dma.set_registrar(Some(Box::new(registrar)));
        }
        Ok(core)
    }
}
