//! Locked ranges: what makes compare-and-write atomic in regard to every other request, on every core.
//!
//! A lock is granted by the device in the order of asking, as far as ranges overlap. Each core then holds back what overlaps
//! the range, and acknowledges when everything it had in flight before has ended.

use std::collections::VecDeque;
use std::sync::Arc;

use longshore_reactor::CoreHandle;

use crate::channel::ChannelInner;
use crate::fanout::with_channel;
use crate::gate;
use crate::io::{IoRef, Op};
use crate::job;
use crate::node::BdevNode;

/// A locked range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) ticket: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Range {
    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start < end && start < self.end
    }
}

/// Ranges of one device that are locked, and who waits.
#[derive(Default)]
pub(crate) struct LockTable {
    held: Vec<Range>,
    waiting: VecDeque<(Range, CoreHandle)>,
}

impl LockTable {
    /// Asks for a range; true if it is granted at once.
    pub(crate) fn acquire(&mut self, range: Range, core: CoreHandle) -> bool {
        let taken = |r: &Range| r.overlaps(range.start, range.end);
        if self.held.iter().any(taken) || self.waiting.iter().any(|(r, _)| taken(r)) {
            self.waiting.push_back((range, core));
            return false;
        }
        self.held.push(range);
        true
    }

    /// Gives a range back; returns those that are granted now, and to whom.
    pub(crate) fn release(&mut self, ticket: u64) -> Vec<(Range, CoreHandle)> {
        self.held.retain(|r| r.ticket != ticket);
        self.waiting.retain(|(r, _)| r.ticket != ticket);
        let mut granted = Vec::new();
        let mut i = 0;
        while i < self.waiting.len() {
            let r = self.waiting[i].0;
            let blocked = self.held.iter().any(|h| h.overlaps(r.start, r.end))
                || self.waiting.iter().take(i).any(|(w, _)| w.overlaps(r.start, r.end));
            if blocked {
                i += 1;
            } else if let Some(w) = self.waiting.remove(i) {
                self.held.push(w.0);
                granted.push(w);
            }
        }
        granted
    }

    /// True if the ticket's owner waits for it; it does so no longer.
    fn forget(&mut self, ticket: u64) -> bool {
        let n = self.waiting.len();
        self.waiting.retain(|(r, _)| r.ticket != ticket);
        self.waiting.len() != n
    }

    pub(crate) fn held(&self) -> Vec<Range> {
        self.held.clone()
    }
}

/// True if a locked range holds `io` back.
pub(crate) fn blocks(locked: &[Range], io: &IoRef) -> bool {
    // A compare-and-write queues for a lock of its own.
    if !io.op().has_range() || io.op() == Op::CompareAndWrite {
        return false;
    }
    let hit = |lba: u64| locked.iter().any(|r| r.overlaps(lba, lba + u64::from(io.nblocks())));
    hit(io.lba()) || (io.op() == Op::Copy && hit(io.copy_source()))
}

/// Locks the range of `io`, then does it.
pub(crate) fn begin(ch: &ChannelInner, io: IoRef) {
    let node = ch.node.clone();
    let core = ch.core().reactor().handle();
    let (start, end) = (io.lba(), io.lba() + u64::from(io.nblocks()));
    let (range, granted) = node.with_locks(|ticket, locks, _| {
        let range = Range { ticket, start, end };
        (range, locks.acquire(range, core.clone()))
    });
    ch.parked.borrow_mut().push((range.ticket, io));
    if granted {
        quiesce(&node, range, core);
    }
}

/// Lets every core close the range and wait for what is in flight, then tells the owner.
fn quiesce(node: &Arc<BdevNode>, range: Range, owner: CoreHandle) {
    let close = move |ch: &ChannelInner, ack| {
        let mut locked = ch.locked.borrow_mut();
        if locked.iter().all(|r| r.ticket != range.ticket) {
            locked.push(range);
            ch.set_gate(gate::LOCKED, true);
        }
        drop(locked);
        ch.drain(Box::new(move || drop(ack)));
    };
    let after = node.clone();
    node.each_channel(node.cores(), close, move || {
        owner.send(move |_| {
            let mut found = false;
            with_channel(&after, |ch| {
                found = true;
                ready(ch, range.ticket);
            });
            if !found {
                open(&after, range.ticket);
            }
        });
    });
}

/// The range is ours alone.
fn ready(ch: &ChannelInner, ticket: u64) {
    let parked = {
        let mut p = ch.parked.borrow_mut();
        p.iter().position(|(t, _)| *t == ticket).map(|i| p.remove(i))
    };
    match parked {
        Some((_, io)) => job::emulate(ch, io, 0, Some(ticket)),
        None => release(ch, ticket), // aborted meanwhile
    }
}

/// The owner is through with its range.
pub(crate) fn release(ch: &ChannelInner, ticket: u64) {
    open(&ch.node, ticket);
}

fn open(node: &Arc<BdevNode>, ticket: u64) {
    let granted = node.with_locks(|_, locks, _| locks.release(ticket));
    let reopen = move |ch: &ChannelInner, _| {
        let mut locked = ch.locked.borrow_mut();
        locked.retain(|r| r.ticket != ticket);
        ch.set_gate(gate::LOCKED, !locked.is_empty());
        drop(locked);
        let waiting = ch.lock_wait.take();
        while let Some(io) = waiting.pop() {
            ch.submit_admitted(io);
        }
    };
    node.each_channel(node.cores(), reopen, || {});
    for (range, owner) in granted {
        quiesce(node, range, owner);
    }
}

/// The request that drew `ticket` was aborted while it waited.
pub(crate) fn give_up(ch: &ChannelInner, ticket: u64) {
    // If it was granted already, `ready` will find nothing parked and release it.
    ch.node.with_locks(|_, locks, resets| locks.forget(ticket) || resets.forget(ticket));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(ticket: u64, start: u64, end: u64) -> Range {
        Range { ticket, start, end }
    }

    #[test]
    fn overlapping_locks_are_granted_in_the_order_of_asking() {
        let rt = longshore_reactor::Runtime::start(crate::testing::options(1)).unwrap();
        let core = rt.cores()[0].clone();
        let mut t = LockTable::default();
        assert!(t.acquire(range(1, 0, 10), core.clone()));
        assert!(!t.acquire(range(2, 5, 15), core.clone()));
        assert!(!t.acquire(range(3, 12, 20), core.clone()), "overlaps one that waits: no overtaking");
        assert!(t.acquire(range(4, 30, 31), core.clone()));
        let granted: Vec<_> = t.release(1).into_iter().map(|(r, _)| r.ticket).collect();
        assert_eq!(granted, [2]);
        let granted: Vec<_> = t.release(2).into_iter().map(|(r, _)| r.ticket).collect();
        assert_eq!(granted, [3]);
        rt.stop();
    }
}
