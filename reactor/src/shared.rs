//! What other threads see of a reactor: its inbox, its doorbell, its counters.

use crate::doorbell::Doorbell;
use crate::inbox::Inbox;
use crate::oneshot;
use crate::poller::PollerStats;
use crate::reactor::Reactor;
use crate::task::TaskWaker;
use rustix::event::{EventfdFlags, eventfd};
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering, fence};
use std::task::Poll;
use std::time::Duration;

/// A message to a reactor.
pub(crate) enum Msg {
    Run(Box<dyn FnOnce(&Reactor) + Send>),
    Wake(Arc<TaskWaker>),
}

/// Counters of one reactor; written by it, read by anyone.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) busy: AtomicU64,
    pub(crate) idle: AtomicU64,
    pub(crate) turns: AtomicU64,
    pub(crate) longest: AtomicU64,
    pub(crate) sleeps: AtomicU64,
    pub(crate) wakeups: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) enters: AtomicU64,
    pub(crate) sq_full: AtomicU64,
    pub(crate) cq_overflow: AtomicU64,
    pub(crate) ops: AtomicU64,
}

/// One writer: a plain load and store do.
#[inline]
pub(crate) fn add(c: &AtomicU64, n: u64) {
    c.store(c.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// A snapshot of a reactor's counters. Times are in ticks of [`rdtsc`](crate::rdtsc).
#[derive(Clone, Copy, Debug, Default)]
pub struct ReactorStats {
    /// Ticks in turns that found work.
    pub busy: u64,
    /// Ticks in turns that found none, and asleep.
    pub idle: u64,
    /// Loop turns.
    pub turns: u64,
    /// The longest turn that found work.
    pub longest_turn: u64,
    /// Times it slept in the ring.
    pub sleeps: u64,
    /// Times another thread woke it.
    pub wakeups: u64,
    /// Messages received.
    pub messages: u64,
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Times the submission queue was full.
    pub sq_full: u64,
    /// Enters that found the completion queue overflowed.
    pub cq_overflow: u64,
    /// Ring operations completed.
    pub ops: u64,
}

pub(crate) struct Shared {
    pub(crate) index: usize,
    pub(crate) cpu: u32,
    pub(crate) tid: AtomicI32,
    pub(crate) inbox: Inbox<Msg>,
    pub(crate) bell: Doorbell,
    /// `None` in a simulation.
    pub(crate) eventfd: Option<OwnedFd>,
    pub(crate) ring_fd: AtomicI32,
    pub(crate) closed: AtomicBool,
    pub(crate) counters: Counters,
}

impl Shared {
    pub(crate) fn new(index: usize, cpu: u32, inbox: usize, simulated: bool) -> io::Result<Self> {
        let eventfd = match simulated {
            true => None,
            false => Some(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
        };
        Ok(Shared {
            index,
            cpu,
            tid: AtomicI32::new(0),
            inbox: Inbox::new(inbox),
            bell: Doorbell::new(),
            eventfd,
            ring_fd: AtomicI32::new(-1),
            closed: AtomicBool::new(false),
            counters: Counters::default(),
        })
    }

    /// Delivers `msg` from whatever thread this is. A plain thread waits while the inbox is full; a reactor keeps the message
    /// and retries each turn, because two reactors that wait for each other would never end. After the reactor stopped, the
    /// message is dropped, which cancels its receiver.
    pub(crate) fn post(self: &Arc<Self>, msg: Msg) {
        match Reactor::try_current() {
            Some(r) => r.post(self, msg),
            None => {
                let mut msg = msg;
                let mut tries = 0u32;
                while let Err(back) = self.try_push(msg) {
                    msg = back;
                    tries += 1;
                    match tries {
                        0..100 => std::thread::yield_now(),
                        _ => std::thread::sleep(Duration::from_micros(50)),
                    }
                }
                if self.bell.must_ring() {
                    self.ring_eventfd();
                }
            }
        }
    }

    /// Pushes, or gives the message back if the inbox is full. Closed inboxes swallow it.
    pub(crate) fn try_push(&self, msg: Msg) -> Result<(), Msg> {
        if self.closed.load(Ordering::Acquire) {
            drop(msg);
            return Ok(());
        }
        self.inbox.push(msg)?;
        // Closing drains the inbox after setting the flag; if it did so before our push, we are the ones to drain.
        fence(Ordering::SeqCst);
        if self.closed.load(Ordering::Acquire) {
            self.drain();
        }
        Ok(())
    }

    pub(crate) fn ring_eventfd(&self) {
        if let Some(fd) = &self.eventfd {
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }

    /// No message is accepted from now on; those that wait are dropped.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.drain();
    }

    fn drain(&self) {
        while let Some(m) = self.inbox.pop() {
            drop(m);
        }
    }
}

/// A reactor as other threads see it.
#[derive(Clone)]
pub struct CoreHandle(pub(crate) Arc<Shared>);

impl std::fmt::Debug for CoreHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoreHandle").field("index", &self.index()).field("cpu", &self.cpu()).finish()
    }
}

impl CoreHandle {
    /// Position in the runtime's list of cores.
    pub fn index(&self) -> usize {
        self.0.index
    }

    /// The CPU it runs on.
    pub fn cpu(&self) -> u32 {
        self.0.cpu
    }

    /// The kernel's thread id.
    pub fn tid(&self) -> i32 {
        self.0.tid.load(Ordering::Relaxed)
    }

    /// Whether this is the reactor of the calling thread.
    pub fn is_current(&self) -> bool {
        Reactor::try_current().is_some_and(|r| std::ptr::eq(r.shared(), &*self.0))
    }

    /// Runs `f` on the reactor, in its next turn. Messages of one sender run in the order they were sent. Control plane: each is boxed.
    pub fn send(&self, f: impl FnOnce(&Reactor) + Send + 'static) {
        self.0.post(Msg::Run(Box::new(f)));
    }

    /// Runs `f` on the reactor and returns its result. A panic of `f` resumes where the receiver is read.
    pub fn call<R: Send + 'static>(&self, f: impl FnOnce(&Reactor) -> R + Send + 'static) -> oneshot::Receiver<R> {
        let (tx, rx) = oneshot::channel();
        self.send(move |r| match catch_unwind(AssertUnwindSafe(|| f(r))) {
            Ok(v) => drop(tx.send(v)),
            Err(p) => tx.send_panic(p),
        });
        rx
    }

    /// Runs the future that `f` makes on the reactor, to its end even if the receiver is dropped. A panic resumes where the
    /// receiver is read.
    pub fn spawn<Fut, R>(&self, f: impl FnOnce(Reactor) -> Fut + Send + 'static) -> oneshot::Receiver<R>
    where
        Fut: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        let (tx, rx) = oneshot::channel();
        self.send(move |r| {
            let reactor = r.clone();
            let task = async move {
                let mut future = pin!(async move { f(reactor).await });
                let end =
                    std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
                        Ok(Poll::Pending) => Poll::Pending,
                        Ok(Poll::Ready(v)) => Poll::Ready(Ok(v)),
                        Err(p) => Poll::Ready(Err(p)),
                    })
                    .await;
                match end {
                    Ok(v) => drop(tx.send(v)),
                    Err(p) => tx.send_panic(p),
                }
            };
            drop(r.spawn(task));
        });
        rx
    }

    /// The counters now.
    pub fn stats(&self) -> ReactorStats {
        let c = &self.0.counters;
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        ReactorStats {
            busy: get(&c.busy),
            idle: get(&c.idle),
            turns: get(&c.turns),
            longest_turn: get(&c.longest),
            sleeps: get(&c.sleeps),
            wakeups: get(&c.wakeups),
            messages: get(&c.messages),
            enters: get(&c.enters),
            sq_full: get(&c.sq_full),
            cq_overflow: get(&c.cq_overflow),
            ops: get(&c.ops),
        }
    }

    /// What its pollers did so far.
    pub fn pollers(&self) -> oneshot::Receiver<Vec<PollerStats>> {
        self.call(|r| r.poller_stats())
    }
}
