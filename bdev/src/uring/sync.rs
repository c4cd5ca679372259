//! Flushes of all cores, through one file description and by one `fdatasync` at a time.
//!
//! # Why one
//!
//! When write-back of the page cache fails, the kernel drops the data, marks the pages clean, and reports the failure *once per
//! open file description*: each remembers, in `f_wb_err`, the failures of the file (`errseq_t`) that were reported through it.
//! Every call that checks takes the report for its description: `fdatasync`, and a write with `RWF_DSYNC`, which syncs its range at
//! its end. A description opened when an earlier failure was reported to somebody else, another process for instance, never hears
//! of it. So a flush may claim success only if nobody can have taken its report:
//!
//! * The description of flushes is opened with the device, before its first write, and serves all cores. Whatever fails later is
//!   news to it; a failure of before that nobody has heard of is too.
//! * Nothing but `fdatasync` is done on it, one at a time. Reads and writes have descriptions of their own. With direct I/O a
//!   write with `RWF_DSYNC` waits for its own data and returns its own result; what it hears of others poisons the device, and the
//!   description of flushes hears it too. Through the page cache a FUA write would learn of its own data only by the report,
//!   which another write on its description may have taken: it is a plain write, and then waits for a flush.
//! * A failure poisons the device before the next `fdatasync` starts and before anybody is told. As there is no other one in
//!   flight, none can end with success after it.
//!
//! A block device's own cache needs no report: a flush command that succeeds vouches for all that the device had acknowledged.
//!
//! # How
//!
//! Syncs are numbered. A flush is covered by the first that begins after it came: its number is in the flush's first word. The core
//! that ends a sync begins the next one if any core has asked for it, and tells the others. They share a lock, for a few
//! instructions per flush.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use longshore_nvme::wire::Status;
use longshore_reactor::{Completion, CoreHandle, OpId, Reactor, RingOp};

use super::channel::RETRY;
use super::faults::{skip_sync, sync_fd};
use super::open::Medium;
use super::status::{Verdict, judge_durable};
use crate::fanout::with_channel;
use crate::io::{IoId, IoRef, Op};
use crate::node::BdevNode;
use crate::queue::IoQueue;

/// The order of a device's syncs, shared by its cores.
#[derive(Default)]
pub(super) struct Syncs(Mutex<State>);

#[derive(Default)]
struct State {
    /// Number of the sync under way, or of the last one.
    begun: u64,
    /// Number of the last one that told its outcome.
    ended: u64,
    running: bool,
    /// Somebody needs another one after the one under way.
    asked: bool,
    /// Other cores that wait.
    cores: Vec<CoreHandle>,
}

impl Syncs {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin(&mut self) {
        self.begun += 1;
        (self.running, self.asked) = (true, false);
    }
}

/// The flushes of one core.
pub(super) struct Flusher {
    reactor: Reactor,
    medium: Arc<Medium>,
    node: Weak<BdevNode>,
    /// In order of their numbers.
    waiting: IoQueue,
    /// This core will be told of the end of a sync.
    enlisted: Cell<bool>,
    /// The sync that this core has begun.
    op: Cell<Option<OpId>>,
}

unsafe fn sync_done(ctx: *mut (), res: i32, _flags: u32) {
    // SAFETY: `start` leaked one reference for this call.
    let f = unsafe { Rc::from_raw(ctx.cast_const().cast::<Flusher>()) };
    f.ended(res);
}

impl Flusher {
    pub(super) fn new(reactor: &Reactor, medium: Arc<Medium>, node: &Arc<BdevNode>) -> Rc<Flusher> {
        Rc::new(Flusher {
            reactor: reactor.clone(),
            medium,
            node: Arc::downgrade(node),
            waiting: IoQueue::default(),
            enlisted: Cell::new(false),
            op: Cell::new(None),
        })
    }

    /// Completes `io` when everything that had completed before this call is durable, or with a write fault.
    pub(super) fn join(self: &Rc<Self>, mut io: IoRef) {
        if self.medium.health.poisoned() {
            return io.complete_later(Status::WRITE_FAULT);
        }
        if skip_sync() {
            return io.complete_later(Status::SUCCESS);
        }
        let first = {
            let mut s = self.medium.syncs.state();
            io.set_words([s.begun + 1, 0]);
            if s.running {
                s.asked = true;
                self.enlist(&mut s);
            } else {
                s.begin();
            }
            s.begun == io.words()[0]
        };
        self.waiting.push(io);
        if first {
            self.start();
        }
    }

    fn enlist(&self, s: &mut State) {
        if self.op.get().is_none() && !self.enlisted.replace(true) {
            s.cores.push(self.reactor.handle());
        }
    }

    fn start(self: &Rc<Self>) {
        let done = Completion { func: sync_done, ctx: Rc::into_raw(self.clone()).cast_mut().cast() };
        let op = RingOp::Fsync { fd: sync_fd(&self.medium), datasync: true };
        // SAFETY: the operation uses no memory; its context is a counted reference to this value, which holds the file.
        let id = unsafe { self.reactor.submit(op, done) };
        self.op.set(Some(id));
    }

    fn ended(self: Rc<Self>, res: i32) {
        self.op.set(None);
        let verdict = if res < 0 { judge_durable(Op::Flush, -res) } else { Verdict::Fail(Status::SUCCESS) };
        if verdict == Verdict::Retry {
            // It did not happen, and nobody was told anything. Those who wait are covered by the next one.
            let me = self.clone();
            let again = move |_: &Reactor| {
                me.medium.syncs.state().begin();
                me.start();
            };
            return self.reactor.timer(RETRY, again).detach();
        }
        let happened = verdict != Verdict::Cancelled;
        if happened && res < 0 {
            self.medium.poison(-res, "fdatasync");
        }
        let (covered, more, others) = {
            let mut s = self.medium.syncs.state();
            if self.medium.health.poisoned() {
                (s.ended, s.asked) = (u64::MAX, false); // all that wait fail, and need no sync for that
            } else if happened {
                s.ended = s.begun;
            }
            let covered = self.covered(s.ended);
            let more = s.asked || !self.waiting.is_empty();
            if more {
                s.begin();
            } else {
                s.running = false;
            }
            (covered, more, std::mem::take(&mut s.cores))
        };
        if more {
            self.start();
        }
        for core in others {
            let node = self.node.clone();
            core.send(move |_| {
                if let Some(node) = node.upgrade() {
                    with_channel(&node, |ch| ch.module().notify(0));
                }
            });
        }
        let status = self.outcome();
        while let Some(io) = covered.pop() {
            io.complete(status);
        }
    }

    /// Another core's sync has ended, or was given up.
    pub(super) fn told(self: &Rc<Self>) {
        self.enlisted.set(false);
        let (covered, begin) = {
            let mut s = self.medium.syncs.state();
            let covered = self.covered(s.ended);
            let begin = !self.waiting.is_empty() && !s.running;
            if begin {
                s.begin();
            } else if !self.waiting.is_empty() {
                self.enlist(&mut s);
            }
            (covered, begin)
        };
        if begin {
            self.start();
        }
        let status = self.outcome();
        while let Some(io) = covered.pop() {
            io.complete_later(status);
        }
    }

    fn outcome(&self) -> Status {
        if self.medium.health.poisoned() { Status::WRITE_FAULT } else { Status::SUCCESS }
    }

    /// Takes out what sync `ended` covers.
    fn covered(&self, ended: u64) -> IoQueue {
        let covered = IoQueue::default();
        while self.waiting.peek(|io| io.words()[0] <= ended) == Some(true) {
            let Some(mut io) = self.waiting.pop() else { break };
            io.set_words([0, 0]);
            covered.push(io);
        }
        covered
    }

    pub(super) fn abort(&self, id: IoId) -> bool {
        let found = self.waiting.remove(id);
        found.map(|io| io.complete_later(Status::ABORT_REQUESTED)).is_some()
    }

    pub(super) fn abort_all(&self) {
        let all = self.waiting.take();
        while let Some(io) = all.pop() {
            io.complete_later(Status::ABORT_REQUESTED);
        }
        if let Some(op) = self.op.get() {
            self.reactor.cancel(op);
        }
    }
}
