//! Slots of the journal, and which records a recovery may still need.
//!
//! A slot holds one record on each participant of a transaction. A transaction is *retired* when its writes in place are durable, so
//! that nobody needs its record. Each record names the oldest transaction that was not retired when it was written, the *tail*:
//! recovery ignores what is older than the highest tail that it finds.
//!
//! # When a slot may be written again
//!
//! Not as soon as its transaction Q is retired: an older record P of the same stripe may lie untouched in another slot. A crash that
//! tears the new record over Q's destroys Q's, and recovery would find P whole and nothing newer, and bring P's data back. So a slot is
//! free only when a tail above its transaction is itself durable on all members that take part in some later transaction: of those,
//! at least one survives any further loss, and recovery, finding its tail, ignores P and Q both. Ordinary traffic sees to that by
//! itself. Where it does not, because all slots were taken under one tail, a *mark* is written: a record without payload that carries
//! the tail, to slot 0 of every live member.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// The slot of marks. Its header lies in a single block of the member, so that a crash leaves the old mark or the new one.
pub(super) const MARK: u32 = 0;

/// Fewest slots of a journal that can be used: one for marks, and two.
pub(super) const FEWEST: u32 = 3;

#[derive(Clone, Copy)]
enum Stage {
    /// Records are being written, or data in place.
    Active,
    /// Everything was acknowledged: a flush round of this number retires it.
    Done(u64),
    Retired,
}

struct Entry {
    id: u64,
    slot: u32,
    stripe: u64,
    stage: Stage,
}

/// The slots of the journal.
pub(super) struct Journal {
    free: RefCell<Vec<u32>>,
    /// Transactions from the oldest on that is not retired, by number.
    ring: RefCell<VecDeque<Entry>>,
    /// Retired, but not below `durable_tail`.
    cooling: RefCell<VecDeque<Entry>>,
    next: Cell<u64>,
    /// The highest tail that is durable on all live members of some transaction, or in marks on all live members.
    durable_tail: Cell<u64>,
    /// Somebody waits until a tail above this is durable.
    void_until: Cell<u64>,
}

impl Journal {
    pub(super) fn new(slots: u32) -> Journal {
        Journal {
            free: RefCell::new((MARK + 1..slots).rev().collect()),
            ring: RefCell::default(),
            cooling: RefCell::default(),
            next: Cell::new(1),
            durable_tail: Cell::new(0),
            void_until: Cell::new(0),
        }
    }

    /// A slot for a transaction that is about to begin.
    pub(super) fn take(&self) -> Option<u32> {
        self.free.borrow_mut().pop()
    }

    /// Gives back a slot that was not written to.
    pub(super) fn give_back(&self, slot: u32) {
        self.free.borrow_mut().push(slot);
    }

    /// Numbers a transaction of `stripe` whose records are about to be written to `slot`; returns its number and the tail.
    pub(super) fn begin(&self, slot: u32, stripe: u64) -> (u64, u64) {
        let id = self.next.get();
        self.next.set(id + 1);
        let mut ring = self.ring.borrow_mut();
        ring.push_back(Entry { id, slot, stripe, stage: Stage::Active });
        (id, ring.front().map_or(id, |e| e.id))
    }

    /// The records that carry `tail` are durable on all live members of their transaction.
    pub(super) fn tail_is_durable(&self, tail: u64) {
        if tail <= self.durable_tail.get() {
            return;
        }
        self.durable_tail.set(tail);
        let mut cooling = self.cooling.borrow_mut();
        let mut free = self.free.borrow_mut();
        while cooling.front().is_some_and(|e| e.id < tail) {
            free.extend(cooling.pop_front().map(|e| e.slot));
        }
    }

    fn find(ring: &mut VecDeque<Entry>, id: u64) -> Option<&mut Entry> {
        let first = ring.front()?.id;
        ring.get_mut(usize::try_from(id.checked_sub(first)?).ok()?)
    }

    /// Everything of the transaction was written in place and acknowledged. Flush round `round` makes it durable; none is needed if
    /// that is `None`.
    pub(super) fn done(&self, id: u64, round: Option<u64>) {
        let mut ring = self.ring.borrow_mut();
        if let Some(e) = Self::find(&mut ring, id) {
            e.stage = round.map_or(Stage::Retired, Stage::Done);
        }
        self.settle(&mut ring);
    }

    /// Flush round `round` has ended well.
    pub(super) fn flushed(&self, round: u64) {
        let mut ring = self.ring.borrow_mut();
        for e in ring.iter_mut() {
            if matches!(e.stage, Stage::Done(r) if r <= round) {
                e.stage = Stage::Retired;
            }
        }
        self.settle(&mut ring);
    }

    fn settle(&self, ring: &mut VecDeque<Entry>) {
        let mut cooling = self.cooling.borrow_mut();
        let mut free = self.free.borrow_mut();
        while ring.front().is_some_and(|e| matches!(e.stage, Stage::Retired)) {
            match ring.pop_front() {
                Some(e) if e.id < self.durable_tail.get() => free.push(e.slot),
                e => cooling.extend(e),
            }
        }
    }

    /// The oldest transaction that is not retired; the next one, if all are.
    pub(super) fn tail(&self) -> u64 {
        self.ring.borrow().front().map_or(self.next.get(), |e| e.id)
    }

    /// A number for a mark.
    pub(super) fn mark(&self) -> (u64, u64) {
        // The tail of a mark never exceeds its number: a retired-for-good entry of its own.
        let tail = self.tail();
        let id = self.next.get().max(tail);
        (id, tail)
    }

    /// True if every transaction is retired.
    pub(super) fn is_empty(&self) -> bool {
        self.ring.borrow().is_empty()
    }

    /// A new session has begun while every transaction was retired: all records are void.
    pub(super) fn renew(&self) {
        let mut free = self.free.borrow_mut();
        free.extend(self.cooling.borrow_mut().drain(..).map(|e| e.slot));
        self.void_until.set(0);
    }

    /// True if slots would become free by a flush round.
    pub(super) fn wants_round(&self) -> bool {
        self.ring.borrow().iter().any(|e| matches!(e.stage, Stage::Done(_)))
    }

    /// True if a recovery might still roll forward a transaction of one of these stripes, which are in order. Then [`is_wanted`](Journal::is_wanted)
    /// says that its records have to become void.
    pub(super) fn may_redo(&self, stripes: &[u64]) -> bool {
        let (ring, cooling) = (self.ring.borrow(), self.cooling.borrow());
        let last =
            ring.iter().chain(cooling.iter()).filter(|e| stripes.binary_search(&e.stripe).is_ok()).map(|e| e.id).max();
        self.void_until.set(self.void_until.get().max(last.unwrap_or(0)));
        last.is_some()
    }

    /// True if somebody waits for records to become void.
    pub(super) fn is_wanted(&self) -> bool {
        let until = self.void_until.get();
        until != 0 && until >= self.durable_tail.get()
    }

    /// True if slots would become free by a mark.
    pub(super) fn wants_mark(&self) -> bool {
        self.cooling.borrow().front().is_some_and(|e| e.id < self.tail())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_when_a_tail_above_it_is_durable() {
        let j = Journal::new(4);
        let (a, b, c) = (j.take().unwrap(), j.take().unwrap(), j.take().unwrap());
        assert!(j.take().is_none() && ![a, b, c].contains(&MARK));
        assert_eq!((j.begin(a, 7), j.begin(b, 8)), ((1, 1), (2, 1)));
        j.done(2, None);
        assert_eq!(j.tail(), 1);
        j.done(1, None);
        assert_eq!(j.tail(), 3);
        assert!(j.take().is_none(), "both are retired, but no record says so");
        assert_eq!(j.begin(c, 7), (3, 3));
        assert!(j.take().is_none() && j.may_redo(&[8]) && j.is_wanted() && !j.may_redo(&[9]));
        j.tail_is_durable(3);
        assert!(!j.may_redo(&[8]) && !j.is_wanted() && j.may_redo(&[7]));
        assert!(j.take().is_some() && j.take().is_some() && j.take().is_none());
    }

    #[test]
    fn a_mark_frees_what_one_tail_held() {
        let j = Journal::new(4);
        for want in 1..=3 {
            let slot = j.take().unwrap();
            assert_eq!(j.begin(slot, 0), (want, 1));
        }
        (1..=3).for_each(|id| j.done(id, Some(7)));
        assert!(!j.wants_mark() && j.wants_round());
        j.flushed(6);
        assert_eq!(j.tail(), 1);
        j.flushed(7);
        assert!(j.wants_mark() && !j.wants_round());
        let (id, tail) = j.mark();
        assert_eq!((id, tail), (4, 4));
        j.tail_is_durable(tail);
        assert_eq!(j.free.borrow().len(), 3);
    }

    #[test]
    fn an_old_transaction_holds_the_tail() {
        let j = Journal::new(8);
        let slots: Vec<_> = (0..3).map(|_| j.take().unwrap()).collect();
        for &s in &slots {
            j.begin(s, 0);
        }
        j.done(2, None);
        j.done(3, None);
        let slot = j.take().unwrap();
        assert_eq!(j.begin(slot, 0), (4, 1));
        assert!(!j.wants_mark());
    }
}
