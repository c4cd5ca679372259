//! Which stripes are busy, and who waits for them: in order of arrival, one writer at a time, readers shared.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use super::clear::Clear;
use super::read::Read;
use super::visit::Visitor;
use crate::io::IoRef;

/// Spreads stripe numbers.
#[derive(Default)]
pub(super) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }

    fn write_u64(&mut self, n: u64) {
        let x = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = x ^ x >> 32;
    }
}

/// Who waits for a stripe.
pub(super) enum Waiting {
    /// A write of the host, or of zeroes.
    Write(IoRef),
    /// A read that reconstructs.
    Read(Rc<Read>),
    /// Who clears the stripe.
    Clear(Rc<Clear>),
    /// A task.
    Visit(Rc<Visitor>),
}

#[derive(Default)]
struct Entry {
    writer: bool,
    readers: u32,
    waiting: VecDeque<Waiting>,
    /// A commit waits for the writer to end.
    commit: bool,
}

/// What a stripe is ready for.
pub(super) enum Ready {
    /// A transaction; the writes are in the list that was given. The stripe is locked for it.
    Write,
    /// A read, for which it is locked.
    Read(Rc<Read>),
    /// A clear, for which it is locked.
    Clear(Rc<Clear>),
    /// A task, for which it is locked.
    Visit(Rc<Visitor>),
    /// Nothing.
    No,
}

#[derive(Default)]
struct Table {
    index: HashMap<u64, u32, BuildHasherDefault<Spread>>,
    entries: Vec<Entry>,
    free: Vec<u32>,
}

impl Table {
    fn entry(&mut self, stripe: u64) -> &mut Entry {
        let at = match self.index.get(&stripe) {
            Some(&at) => at,
            None => {
                let at = self.free.pop().unwrap_or_else(|| {
                    self.entries.push(Entry::default());
                    self.entries.len() as u32 - 1
                });
                self.index.insert(stripe, at);
                at
            }
        };
        &mut self.entries[at as usize]
    }

    fn existing(&mut self, stripe: u64) -> Option<&mut Entry> {
        let at = *self.index.get(&stripe)?;
        Some(&mut self.entries[at as usize])
    }

    fn forget_idle(&mut self, stripe: u64) {
        let Some(&at) = self.index.get(&stripe) else { return };
        let e = &self.entries[at as usize];
        if !e.writer && e.readers == 0 && e.waiting.is_empty() && !e.commit {
            self.index.remove(&stripe);
            self.free.push(at);
        }
    }
}

/// The stripes that are busy.
#[derive(Default)]
pub(super) struct Stripes(RefCell<Table>);

impl Stripes {
    /// Queues `who` at the stripe.
    pub(super) fn wait(&self, stripe: u64, who: Waiting) {
        self.0.borrow_mut().entry(stripe).waiting.push_back(who);
    }

    /// Takes the next from the queue, if the stripe is free for it; a write takes those right behind it along, as long as `joins` says so
    /// of the next. `held`: the map is writing the stripe's bit.
    pub(super) fn next(
        &self,
        stripe: u64,
        held: bool,
        mut joins: impl FnMut(&IoRef) -> bool,
        writes: &mut Vec<IoRef>,
    ) -> Ready {
        let mut t = self.0.borrow_mut();
        let Some(e) = t.existing(stripe) else { return Ready::No };
        if e.writer {
            return Ready::No;
        }
        match e.waiting.front() {
            Some(Waiting::Read(_)) => {
                e.readers += 1;
                match e.waiting.pop_front() {
                    Some(Waiting::Read(r)) => Ready::Read(r),
                    _ => Ready::No,
                }
            }
            Some(Waiting::Write(_)) if e.readers == 0 && !held => {
                while matches!(e.waiting.front(), Some(Waiting::Write(io)) if joins(io)) {
                    if let Some(Waiting::Write(io)) = e.waiting.pop_front() {
                        writes.push(io);
                    }
                }
                e.writer = true;
                Ready::Write
            }
            Some(Waiting::Clear(_)) if e.readers == 0 && !held => {
                e.writer = true;
                match e.waiting.pop_front() {
                    Some(Waiting::Clear(c)) => Ready::Clear(c),
                    _ => Ready::No,
                }
            }
            Some(Waiting::Visit(v)) if !v.alone || e.readers == 0 && !held => {
                if v.alone {
                    e.writer = true;
                } else {
                    e.readers += 1;
                }
                match e.waiting.pop_front() {
                    Some(Waiting::Visit(v)) => Ready::Visit(v),
                    _ => Ready::No,
                }
            }
            Some(_) => Ready::No,
            None => {
                t.forget_idle(stripe);
                Ready::No
            }
        }
    }

    /// True if nobody has the stripe or waits for it.
    pub(super) fn is_idle(&self, stripe: u64) -> bool {
        !self.0.borrow().index.contains_key(&stripe)
    }

    /// The first stripe of `range` that is not idle.
    pub(super) fn first_busy(&self, range: std::ops::Range<u64>) -> Option<u64> {
        let t = self.0.borrow();
        if t.index.len() as u64 > range.end - range.start {
            return range.into_iter().find(|s| t.index.contains_key(s));
        }
        t.index.keys().copied().filter(|s| range.contains(s)).min()
    }

    /// Locks an idle stripe for its first writer without queueing. False: it is busy.
    pub(super) fn lock_idle(&self, stripe: u64) -> bool {
        let mut t = self.0.borrow_mut();
        if t.index.contains_key(&stripe) {
            return false;
        }
        t.entry(stripe).writer = true;
        true
    }

    /// A writer lets go. True if a commit waited for that.
    pub(super) fn unlock(&self, stripe: u64) -> bool {
        let mut t = self.0.borrow_mut();
        let e = t.entry(stripe);
        debug_assert!(e.writer, "only a locked stripe is unlocked");
        e.writer = false;
        std::mem::take(&mut e.commit)
    }

    /// A reader lets go.
    pub(super) fn unread(&self, stripe: u64) {
        let mut t = self.0.borrow_mut();
        t.entry(stripe).readers -= 1;
    }

    /// True if the stripe has a writer; a commit is told when it ends.
    pub(super) fn commit_when_idle(&self, stripe: u64) -> bool {
        let mut t = self.0.borrow_mut();
        match t.existing(stripe) {
            Some(e) if e.writer => {
                e.commit = true;
                true
            }
            _ => false,
        }
    }

    /// Takes out a write that waits.
    pub(super) fn remove(&self, stripe: u64, id: crate::io::IoId) -> Option<IoRef> {
        let mut t = self.0.borrow_mut();
        let e = t.existing(stripe)?;
        let at = e.waiting.iter().position(|w| matches!(w, Waiting::Write(io) if io.id() == id))?;
        match e.waiting.remove(at) {
            Some(Waiting::Write(io)) => Some(io),
            _ => None,
        }
    }

    /// Stripes with somebody waiting.
    pub(super) fn busy(&self) -> Vec<u64> {
        let t = self.0.borrow();
        t.index.iter().filter(|&(_, &at)| !t.entries[at as usize].waiting.is_empty()).map(|(&s, _)| s).collect()
    }
}
