//! The reactor's handle on its own thread, and one turn of its loop.
#![allow(unsafe_code)]

use crate::clock;
use crate::dma::{CHUNK, DmaPool, MemRegistrar};
use crate::engine::ops::OpSlab;
use crate::engine::sim::SimEngine;
use crate::engine::uring::is_internal;
use crate::engine::{
    CQE_F_BUFFER, CQE_F_MORE, Completion, Cqe, Engine, OpId, OpKind, RingOp, TOKEN_BELL, TOKEN_SENT, TOKEN_WAKE, Wait,
};
use crate::options::{Options, PollMode};
use crate::poller::{Poller, PollerInner, PollerStats, SAMPLE};
use crate::shared::{CoreHandle, Msg, Shared, add};
use crate::sock::SockTable;
use crate::task::{self, Executor, JoinHandle};
use crate::timer::{TimerId, Timers};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Messages taken from the inbox per turn.
const INBOX_BUDGET: usize = 256;
/// Tasks polled per turn.
const TASK_BUDGET: usize = 256;
/// Timers fired per turn.
const TIMER_BUDGET: usize = 256;
/// Completions dispatched per turn.
const REAP_BUDGET: usize = 512;

thread_local! {
    static CURRENT: RefCell<Option<Reactor>> = const { RefCell::new(None) };
}

enum Action {
    Once(Box<dyn FnOnce(&Reactor)>),
    Every { period: u64, func: Box<dyn FnMut(&Reactor)> },
    Wake(Waker),
}

type Deferred = Box<dyn FnOnce(&Reactor)>;
type Injector = Box<dyn FnMut(OpKind) -> Option<i32>>;

pub(crate) struct Core {
    shared: Arc<Shared>,
    peers: Vec<CoreHandle>,
    pub(crate) engine: Engine,
    ops: RefCell<OpSlab>,
    /// Completions made here rather than by the engine: refused or injected ones.
    made: RefCell<Vec<(Completion, i32)>>,
    batch: RefCell<Vec<Cqe>>,
    injector: RefCell<Option<Injector>>,
    injecting: Cell<bool>,
    now: Cell<u64>,
    turn_start: Cell<u64>,
    last_work: Cell<u64>,
    was_busy: Cell<bool>,
    turns: Cell<u64>,
    /// Ticks to spin before sleep; `u64::MAX`: always.
    spin: u64,
    pollers: RefCell<Vec<Rc<PollerInner>>>,
    dead_pollers: Cell<bool>,
    pending: Cell<usize>,
    timers: RefCell<Timers<Action>>,
    deferred: RefCell<VecDeque<Deferred>>,
    executor: Executor,
    /// Messages for peers whose inbox was full, per peer.
    outbox: RefCell<Vec<VecDeque<Msg>>>,
    outbox_len: Cell<usize>,
    dma: DmaPool,
    pub(crate) socks: SockTable,
    draining: Cell<bool>,
    stop: Cell<bool>,
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

    /// All reactors of the runtime, by index, this one included.
    pub fn peers(&self) -> &[CoreHandle] {
        &self.0.peers
    }

    /// The tick counter as of this turn, or of the batch of completions being handled. Reading it costs one load.
    #[inline]
    pub fn now(&self) -> u64 {
        self.0.now.get()
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

    /// (receive slices committed, bytes of each): what sockets of this reactor receive into.
    pub fn rx_slices(&self) -> (usize, usize) {
        self.0.engine.uring().map_or((0, 0), |e| e.rx_slices())
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
    /// Everything that `op` and `done.ctx` point to stays valid until `done` was called without [`CQE_F_MORE`], and
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

    fn wake(&self, to: &Arc<Shared>) {
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
        let spin = match o.poll {
            PollMode::Busy => u64::MAX,
            PollMode::Adaptive { spin } => clock::ticks(spin),
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

impl Reactor {
    /// Makes this the calling thread's reactor.
    pub(crate) fn enter_thread(&self) {
        CURRENT.with(|c| *c.borrow_mut() = Some(self.clone()));
        if let Some(fd) = &self.0.shared.eventfd {
            self.0.engine.arm_bell(fd.as_raw_fd());
        }
    }

    /// The calling thread has no reactor any more.
    pub(crate) fn leave_thread() {
        let r = CURRENT.with(|c| c.borrow_mut().take());
        drop(r);
    }

    pub(crate) fn request_stop(&self) {
        self.0.stop.set(true);
    }

    /// Turns until a stop is requested.
    pub(crate) fn run(&self) {
        while !self.0.stop.get() {
            self.turn();
        }
    }

    /// One turn of the loop. Returns how much was done.
    pub(crate) fn turn(&self) -> usize {
        let core = &*self.0;
        self.begin_turn();
        let mut work = self.drain_inbox();
        work += self.run_deferred();
        work += self.run_timers();
        work += self.run_pollers();
        if core.executor.has_ready() {
            work += core.executor.run(TASK_BUDGET);
        }
        if core.outbox_len.get() > 0 {
            self.flush_outbox();
        }
        core.socks.flush(self);

        if work > 0 {
            core.last_work.set(core.now.get());
        }
        if work == 0 && self.may_sleep() {
            self.sleep_in_ring();
        } else if core.engine.wants_enter() {
            self.enter(Wait::No);
        }
        work += self.reap();
        if work > 0 {
            core.last_work.set(core.now.get());
        }
        core.was_busy.set(work > 0);
        work
    }

    fn begin_turn(&self) {
        let core = &*self.0;
        let c = &core.shared.counters;
        let now = clock::rdtsc();
        let spent = now.saturating_sub(core.turn_start.get());
        if core.was_busy.get() {
            add(&c.busy, spent);
            if spent > c.longest.load(Ordering::Relaxed) {
                c.longest.store(spent, Ordering::Relaxed);
            }
        } else {
            add(&c.idle, spent);
        }
        add(&c.turns, 1);
        core.turns.set(core.turns.get() + 1);
        core.turn_start.set(now);
        core.now.set(now);
    }

    fn drain_inbox(&self) -> usize {
        let core = &*self.0;
        let mut n = 0;
        while n < INBOX_BUDGET {
            let Some(msg) = core.shared.inbox.pop() else { break };
            n += 1;
            match msg {
                Msg::Run(f) => f(self),
                Msg::Wake(w) => core.executor.make_ready(w),
            }
        }
        if n > 0 {
            add(&core.shared.counters.messages, n as u64);
        }
        n
    }

    fn run_deferred(&self) -> usize {
        let n = self.0.deferred.borrow().len();
        for _ in 0..n {
            let Some(f) = self.0.deferred.borrow_mut().pop_front() else { break };
            f(self);
        }
        n
    }

    fn run_timers(&self) -> usize {
        let core = &*self.0;
        let now = core.now.get();
        let mut n = 0;
        while n < TIMER_BUDGET {
            let fired = core.timers.borrow_mut().fire(now);
            let Some((id, deadline, action)) = fired else { break };
            n += 1;
            match action {
                Action::Once(f) => {
                    core.timers.borrow_mut().cancel(id);
                    f(self);
                }
                Action::Wake(w) => {
                    core.timers.borrow_mut().cancel(id);
                    w.wake();
                }
                Action::Every { period, mut func } => {
                    func(self);
                    let mut next = deadline.saturating_add(period);
                    if next <= now {
                        next = now.saturating_add(period);
                    }
                    let gone = core.timers.borrow_mut().rearm(id, next, Action::Every { period, func });
                    drop(gone);
                }
            }
        }
        n
    }

    fn run_pollers(&self) -> usize {
        let core = &*self.0;
        let timed = core.turns.get().is_multiple_of(SAMPLE);
        let mut work = 0;
        let mut i = 0;
        loop {
            let Some(p) = core.pollers.borrow().get(i).cloned() else { break };
            work += p.run(self, timed);
            i += 1;
        }
        if core.dead_pollers.take() {
            core.pollers.borrow_mut().retain(|p| p.is_live());
        }
        work
    }

    fn flush_outbox(&self) {
        let core = &*self.0;
        for peer in &core.peers {
            loop {
                let Some(msg) = core.outbox.borrow_mut()[peer.index()].pop_front() else { break };
                match peer.0.try_push(msg) {
                    Ok(()) => core.outbox_len.set(core.outbox_len.get() - 1),
                    Err(back) => {
                        core.outbox.borrow_mut()[peer.index()].push_front(back);
                        break;
                    }
                }
            }
            self.wake(&peer.0);
        }
    }

    fn nothing_ready(&self) -> bool {
        let core = &*self.0;
        !core.executor.has_ready()
            && core.deferred.borrow().is_empty()
            && core.made.borrow().is_empty()
            && core.outbox_len.get() == 0
            && core.pending.get() == 0
            && !core.socks.has_dirty()
            && !core.stop.get()
    }

    fn may_sleep(&self) -> bool {
        let core = &*self.0;
        core.spin != u64::MAX
            && core.now.get().saturating_sub(core.last_work.get()) >= core.spin
            && self.nothing_ready()
    }

    /// The reactor's half of the handshake in `doorbell.rs`.
    fn sleep_in_ring(&self) {
        let core = &*self.0;
        let bell = &core.shared.bell;
        bell.prepare();
        let ready = !core.shared.inbox.is_empty() || self.run_pollers() > 0 || !self.nothing_ready();
        if ready {
            bell.awake();
            return;
        }
        // The recheck above may have queued sends.
        core.socks.flush(self);
        let wait = match core.timers.borrow().next() {
            None => Wait::Forever,
            Some(d) => match d.saturating_sub(clock::rdtsc()) {
                0 => Wait::No,
                left => Wait::Nanos(clock::nanos(left).saturating_add(1)),
            },
        };
        add(&core.shared.counters.sleeps, 1);
        self.enter(wait);
        bell.awake();
        // What was slept is idle time even if it ended with work.
        let now = clock::rdtsc();
        add(&core.shared.counters.idle, now.saturating_sub(core.turn_start.get()));
        core.turn_start.set(now);
        core.now.set(now);
    }

    fn enter(&self, wait: Wait) {
        if let Err(e) = self.0.engine.turn(wait) {
            // Nothing that the loop does can cause this; going on would spin or lose completions.
            panic!("io_uring_enter failed on reactor {}: {e}", self.index());
        }
        let (s, c) = (self.0.engine.stats(), &self.0.shared.counters);
        c.enters.store(s.enters, Ordering::Relaxed);
        c.sq_full.store(s.sq_full, Ordering::Relaxed);
        c.cq_overflow.store(s.cq_overflow, Ordering::Relaxed);
    }

    /// Dispatches the completions that are there, up to the turn's budget.
    fn reap(&self) -> usize {
        let core = &*self.0;
        let mut n = 0;
        if !core.made.borrow().is_empty() {
            let made = std::mem::take(&mut *core.made.borrow_mut());
            n += made.len();
            for (done, res) in made {
                // SAFETY: whoever submitted it promised that `func` may be called with `ctx` once.
                unsafe { (done.func)(done.ctx, res, 0) };
            }
        }
        if !core.engine.has_completions() {
            return n;
        }
        let mut batch = std::mem::take(&mut *core.batch.borrow_mut());
        core.engine.reap(&mut batch, REAP_BUDGET);
        core.now.set(clock::rdtsc());
        let mut ops = 0;
        for cqe in batch.drain(..) {
            if is_internal(cqe.user_data) {
                n += self.internal(cqe);
                continue;
            }
            let done = core.ops.borrow_mut().complete(OpId(cqe.user_data), cqe.flags & CQE_F_MORE != 0);
            let Some(done) = done else { continue };
            ops += 1;
            // SAFETY: the slab held this completion for an operation in flight, so its submitter's promise still holds.
            unsafe { (done.func)(done.ctx, cqe.res, cqe.flags) };
        }
        *core.batch.borrow_mut() = batch;
        add(&core.shared.counters.ops, ops);
        n + ops as usize
    }

    fn internal(&self, cqe: Cqe) -> usize {
        let core = &*self.0;
        match cqe.user_data {
            TOKEN_WAKE => add(&core.shared.counters.wakeups, 1),
            TOKEN_BELL => {
                add(&core.shared.counters.wakeups, 1);
                if cqe.flags & CQE_F_MORE == 0
                    && !core.draining.get()
                    && let Some(fd) = &core.shared.eventfd
                {
                    // Level semantics on arming: empty the counter first.
                    let _ = rustix::io::read(fd, &mut [0u8; 8]);
                    core.engine.arm_bell(fd.as_raw_fd());
                }
            }
            t if t & TOKEN_SENT == TOKEN_SENT => {
                if cqe.res < 0
                    && let Some(peer) = core.peers.get((t & 0xffff) as usize)
                {
                    peer.0.ring_eventfd();
                }
                return 0;
            }
            _ => return 0,
        }
        1
    }

    /// Ends everything on this reactor: sockets are closed, tasks dropped, operations cancelled and reaped. Afterwards
    /// nothing is in flight and no memory is known to the kernel.
    pub(crate) fn quiesce(&self) {
        let core = &*self.0;
        let start = std::time::Instant::now();
        core.socks.close_all(self);
        while !core.socks.is_empty() && start.elapsed() < Duration::from_secs(5) {
            self.turn_waiting(Duration::from_millis(20));
        }
        core.draining.set(true);
        let mut cancelled = None::<std::time::Instant>;
        let mut told = false;
        loop {
            core.executor.abort_all();
            let actions = core.timers.borrow_mut().clear();
            drop(actions);
            let deferred = std::mem::take(&mut *core.deferred.borrow_mut());
            drop(deferred);
            let pollers = std::mem::take(&mut *core.pollers.borrow_mut());
            for p in &pollers {
                drop(p.kill());
            }
            drop(pollers);
            self.drain_inbox();
            let idle = self.in_flight() == 0 && core.made.borrow().is_empty();
            if idle && core.deferred.borrow().is_empty() && core.executor.live() == 0 && core.timers.borrow().len() == 0
            {
                break;
            }
            if self.in_flight() > 0 && cancelled.is_none_or(|t| t.elapsed() > Duration::from_millis(100)) {
                core.engine.cancel_all();
                cancelled = Some(std::time::Instant::now());
            }
            if !told && start.elapsed() > Duration::from_secs(10) {
                told = true;
                tracing::warn!(
                    "reactor {} waits for {} operations that the kernel has not finished",
                    self.index(),
                    self.in_flight()
                );
            }
            self.turn_waiting(Duration::from_millis(20));
        }
        core.shared.close();
        self.inject(None);
    }

    /// A turn that waits for completions, whatever the poll mode.
    fn turn_waiting(&self, limit: Duration) {
        self.begin_turn();
        self.drain_inbox();
        self.run_deferred();
        self.0.executor.run(TASK_BUDGET);
        self.0.socks.flush(self);
        let ready = !self.0.made.borrow().is_empty() || !self.0.deferred.borrow().is_empty();
        self.enter(if ready || self.in_flight() == 0 { Wait::No } else { Wait::Nanos(limit.as_nanos() as u64) });
        self.reap();
    }
}

/// Registers DMA chunks as fixed buffers of the reactor's ring.
struct FixedBuffers {
    core: Weak<Core>,
    size: usize,
    made: Cell<bool>,
    next: Cell<u16>,
    free: RefCell<Vec<u16>>,
}

impl FixedBuffers {
    fn new(r: &Reactor, chunks: usize) -> Self {
        FixedBuffers {
            core: Rc::downgrade(&r.0),
            size: chunks,
            made: Cell::new(false),
            next: Cell::new(0),
            free: RefCell::default(),
        }
    }
}

impl MemRegistrar for FixedBuffers {
    fn register(&self, addr: *mut u8, len: usize) -> io::Result<u32> {
        let core = self.core.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        let ring = core.engine.uring().ok_or(io::ErrorKind::Unsupported)?;
        if !self.made.get() {
            ring.make_buffer_table(self.size.min(MAX_FIXED) as u32)?;
            self.made.set(true);
        }
        let key = match self.free.borrow_mut().pop() {
            Some(k) => k,
            None if (self.next.get() as usize) < self.size.min(MAX_FIXED) => self.next.replace(self.next.get() + 1),
            None => return Err(io::Error::other("the table of fixed buffers is full")),
        };
        // SAFETY: pool memory stays mapped until the pool is dropped, and the kernel pins the pages besides.
        match unsafe { ring.register_buffer(key, addr, len) } {
            Ok(()) => Ok(key as u32),
            Err(e) => {
                self.free.borrow_mut().push(key);
                Err(e)
            }
        }
    }

    fn unregister(&self, _: *mut u8, _: usize, key: u32) {
        if let Some(core) = self.core.upgrade()
            && let Some(ring) = core.engine.uring()
            && ring.unregister_buffer(key as u16).is_ok()
        {
            self.free.borrow_mut().push(key as u16);
        }
    }
}

/// Entries of the kernel's table of fixed buffers, at most.
const MAX_FIXED: usize = 1 << 14;

/// The provided buffer that a completion carries.
pub(crate) fn buffer_of(flags: u32) -> Option<u16> {
    (flags & CQE_F_BUFFER != 0).then_some((flags >> 16) as u16)
}
