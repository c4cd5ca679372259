//! One turn of the loop, sleep, and the orderly end.
#![allow(unsafe_code)]

use crate::clock;
use crate::engine::uring::is_internal;
use crate::engine::{CQE_F_BUFFER, CQE_F_MORE, Cqe, OpId, TOKEN_BELL, TOKEN_SENT, TOKEN_WAKE, Wait};
use crate::poller::SAMPLE;
use crate::reactor::{Action, CURRENT, Reactor};
use crate::shared::{Msg, add};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Messages taken from the inbox per turn.
const INBOX_BUDGET: usize = 256;
/// Tasks polled per turn.
const TASK_BUDGET: usize = 256;
/// Timers fired per turn.
const TIMER_BUDGET: usize = 256;
/// Completions dispatched per turn.
pub(crate) const REAP_BUDGET: usize = 512;

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
        let may_rest = work == 0 && self.may_rest();
        if may_rest && !core.linger.is_on(core.now.get()) {
            self.sleep_in_ring();
        } else {
            if may_rest {
                core.linger.give_way();
            }
            if core.engine.wants_enter() {
                self.enter(Wait::No);
            }
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

    #[inline(always)]
    fn drain_inbox(&self) -> usize {
        if self.0.shared.inbox.is_empty() { 0 } else { self.take_messages() }
    }

    #[inline(never)]
    fn take_messages(&self) -> usize {
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

    #[inline(always)]
    fn run_deferred(&self) -> usize {
        let n = self.0.deferred.borrow().len();
        if n == 0 { 0 } else { self.call_deferred(n) }
    }

    #[inline(never)]
    fn call_deferred(&self, n: usize) -> usize {
        for _ in 0..n {
            let Some(f) = self.0.deferred.borrow_mut().pop_front() else { break };
            f(self);
        }
        n
    }

    #[inline(always)]
    fn run_timers(&self) -> usize {
        let next = self.0.timers.borrow().next();
        if next.is_some_and(|t| t <= self.0.now.get()) { self.fire_timers() } else { 0 }
    }

    #[inline(never)]
    fn fire_timers(&self) -> usize {
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

    #[inline(always)]
    fn run_pollers(&self) -> usize {
        if self.0.pollers.borrow().is_empty() { 0 } else { self.call_pollers() }
    }

    #[inline(never)]
    fn call_pollers(&self) -> usize {
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

    #[inline(never)]
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

    pub(crate) fn nothing_ready(&self) -> bool {
        let core = &*self.0;
        !core.executor.has_ready()
            && core.deferred.borrow().is_empty()
            && core.made.borrow().is_empty()
            && core.outbox_len.get() == 0
            && core.pending.get() == 0
            && !core.socks.has_dirty()
            && !core.stop.get()
    }

    /// Whether there has been nothing to do for as long as the reactor spins.
    fn may_rest(&self) -> bool {
        let core = &*self.0;
        core.spin != u64::MAX
            && core.now.get().saturating_sub(core.last_work.get()) >= core.spin
            && self.nothing_ready()
    }

    /// The reactor's half of the handshake in `doorbell.rs`.
    #[inline(never)]
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
    #[inline(always)]
    fn reap(&self) -> usize {
        let core = &*self.0;
        if core.engine.has_completions() || !core.made.borrow().is_empty() { self.dispatch() } else { 0 }
    }

    #[inline(never)]
    fn dispatch(&self) -> usize {
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

/// The provided buffer that a completion carries.
pub(crate) fn buffer_of(flags: u32) -> Option<u16> {
    (flags & CQE_F_BUFFER != 0).then_some((flags >> 16) as u16)
}
