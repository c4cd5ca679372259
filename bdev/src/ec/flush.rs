//! Rounds of member flushes. One at a time; all who ask while one runs share the next.
//!
//! A flush makes durable what had completed before it was submitted. So who needs something durable waits for a round that *begins*
//! after it has completed. A round asks only members that have a volatile cache and have completed writes since their last flush. It
//! ends when all have answered or failed, and no failed member is without its superblocks: what a member lost by failing must not count as
//! durable before recovery would know of it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::engine::Engine;
use super::faults::{self, Mutant};
use super::txn::Txn;
use crate::frame::Submitter;
use crate::io::{IoFlags, IoRef, Op};

/// Not all flushes of a round are sent yet: among the bits of slots, of which there are fewer.
const SENDING: u64 = 1 << 63;

/// The array went offline: nothing more becomes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offline;

/// Rounds of flushes.
#[derive(Default)]
pub(super) struct Rounds {
    begun: Cell<u64>,
    ended: Cell<u64>,
    /// Members that have not answered yet: bit `i` is slot `i`.
    waited: Cell<u64>,
    running: Cell<bool>,
    /// All members have answered, but the array is not stable.
    blocked: Cell<bool>,
    asked: Cell<bool>,
    txns: RefCell<VecDeque<(u64, Rc<Txn>)>>,
    tasks: RefCell<Vec<(u64, Waker)>>,
    /// Requests for flushes, one per member: a round never waits for the pool.
    ios: RefCell<Vec<IoRef>>,
    covered: RefCell<Vec<Rc<Txn>>>,
}

impl Rounds {
    /// Takes over a request for flushes.
    pub(super) fn stock(&self, io: IoRef) {
        self.ios.borrow_mut().push(io);
    }

    /// Gives the requests back. Nothing is in flight.
    pub(super) fn close(&self) {
        self.ios.take().into_iter().for_each(IoRef::release);
    }

    /// The last round that has begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun.get()
    }
}

impl Engine {
    /// True if some member in use has a volatile cache.
    pub(super) fn needs_rounds(&self) -> bool {
        let live = self.written_to();
        self.members.iter().any(|m| live >> m.slot & 1 != 0 && m.volatile.get())
    }

    /// Asks for a round that begins from now on; returns its number.
    pub(super) fn ask_round(self: &Rc<Self>) -> u64 {
        let r = &self.rounds;
        r.asked.set(true);
        let n = r.begun.get() + 1;
        if !r.running.get() {
            self.begin_round();
        }
        n
    }

    /// Calls [`Txn::flushed`] when a round that begins from now on has ended.
    pub(super) fn round_for(self: &Rc<Self>, txn: Rc<Txn>) {
        // Queued first: the round may end at once.
        let n = self.rounds.begun.get() + 1;
        self.rounds.txns.borrow_mut().push_back((n, txn));
        self.ask_round();
    }

    /// Ends when a round that begins from now on has ended.
    pub(super) async fn round(self: &Rc<Self>) -> Result<(), Offline> {
        // Also if no member has a volatile cache: transactions may wait for a round that were written while one had.
        let n = self.ask_round();
        poll_fn(|cx| {
            if self.shared.is_offline() {
                return Poll::Ready(Err(Offline));
            }
            if self.rounds.ended.get() >= n {
                return Poll::Ready(Ok(()));
            }
            self.rounds.tasks.borrow_mut().push((n, cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    fn begin_round(self: &Rc<Self>) {
        let r = &self.rounds;
        r.asked.set(false);
        r.running.set(true);
        r.begun.set(r.begun.get() + 1);
        let live = self.written_to();
        // Held up until all are sent: a missing member answers at once.
        r.waited.set(SENDING);
        for m in &self.members {
            if live >> m.slot & 1 == 0 || !m.volatile.get() || !m.dirty.get() || faults::is(Mutant::FlushIgnored) {
                continue;
            }
            // One per member, and none in use hangs on a flush of a round before.
            let Some(mut io) = r.ios.borrow_mut().pop() else {
                self.fail_member(m.slot, "there is no request left to flush it");
                continue;
            };
            m.dirty.set(false);
            io.prepare(Op::Flush, IoFlags::NONE, 0, 0);
            match m.submit(io, self, m.slot as u32) {
                Ok(()) => {
                    self.shared.counters.member_flushes.add(1);
                    r.waited.set(r.waited.get() | 1 << m.slot);
                    self.watch();
                }
                Err(io) => {
                    r.ios.borrow_mut().push(io);
                    self.lost(m.slot);
                }
            }
        }
        if self.answered(SENDING) {
            // Nothing was sent. Not from here: whoever asked is in the middle of something.
            let me = self.clone();
            self.core.reactor().defer(move |_| me.all_answered());
        }
    }

    /// True if `bit` was the last that the round waited for.
    fn answered(&self, bit: u64) -> bool {
        let waited = &self.rounds.waited;
        let before = waited.replace(waited.get() & !bit);
        before == bit
    }

    /// A member failed: the round does not wait for its flush, which may hang.
    pub(super) fn flush_given_up(self: &Rc<Self>, slot: usize) {
        if self.answered(1 << slot) {
            // Not from here: whoever found out is in the middle of something.
            let me = self.clone();
            self.core.reactor().defer(move |_| me.all_answered());
        }
    }

    fn all_answered(self: &Rc<Self>) {
        let r = &self.rounds;
        if !self.is_stable() && !faults::is(Mutant::AckBeforeEpoch) {
            r.blocked.set(true);
            if self.shared.is_offline() {
                // It never becomes stable, and whoever joined this round since it went offline waits for it.
                let me = self.clone();
                self.core.reactor().defer(move |_| me.unblock_round());
            }
            return;
        }
        self.end_round();
    }

    /// The array became stable, or went offline.
    pub(super) fn unblock_round(self: &Rc<Self>) {
        if self.shared.is_offline() {
            let tasks = std::mem::take(&mut *self.rounds.tasks.borrow_mut());
            tasks.into_iter().for_each(|(_, w)| w.wake());
            let all = std::mem::take(&mut *self.rounds.txns.borrow_mut());
            all.into_iter().for_each(|(_, t)| t.flushed(self));
        }
        if self.rounds.blocked.replace(false) {
            self.end_round();
        }
    }

    fn end_round(self: &Rc<Self>) {
        let r = &self.rounds;
        let n = r.begun.get();
        r.ended.set(n);
        r.running.set(false);
        // Offline, nobody knows what the members that are gone have kept.
        if !self.shared.is_offline() {
            self.journal.flushed(n);
            self.intent.flushed(n);
        }
        {
            let mut covered = r.covered.borrow_mut();
            let mut txns = r.txns.borrow_mut();
            while txns.front().is_some_and(|t| t.0 <= n) {
                covered.extend(txns.pop_front().map(|t| t.1));
            }
        }
        // The next one goes out before those who waited run: they would not be covered by it anyway.
        if r.asked.get() {
            self.begin_round();
        }
        r.tasks.borrow_mut().retain(|(t, w)| {
            let keep = *t > n;
            if !keep {
                w.wake_by_ref();
            }
            keep
        });
        let mut covered = r.covered.take();
        for t in covered.drain(..) {
            t.flushed(self);
        }
        let mut kept = r.covered.borrow_mut();
        if kept.capacity() < covered.capacity() && kept.is_empty() {
            *kept = covered;
        }
        drop(kept);
        self.slots_changed();
    }
}

impl Submitter for Engine {
    /// A flush ended.
    fn io_done(self: Rc<Self>, io: IoRef, tag: u64) {
        let slot = (tag & 0xffff) as usize;
        let Some(io) = self.members[slot].landed(io, &self, tag) else { return };
        let status = io.status();
        self.rounds.ios.borrow_mut().push(io);
        // First: who fails is not waited for. A flush that was given up is not waited for either.
        let last = self.answered(1 << slot);
        if status.is_err() {
            self.fail_member(slot, "a flush failed");
        }
        if last {
            self.all_answered();
        }
    }
}
