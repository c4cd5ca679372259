//! The commands outstanding on a queue pair. A command's identifier is the number of its slot.

use std::rc::Rc;

use crate::wire::Cqe;

use super::memory::Memory;
use super::qpair::Completer;

/// Which way a command's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dir {
    None,
    /// To the host.
    Read,
    /// To the controller, in the capsule.
    InCapsule,
    /// To the controller, when it asks for it.
    Write,
}

/// One command outstanding.
pub(crate) struct Slot {
    pub(crate) to: Option<Rc<dyn Completer>>,
    pub(crate) tag: u64,
    pub(crate) dir: Dir,
    pub(crate) opcode: u8,
    /// A data digest did not match.
    pub(crate) bad: bool,
    /// The answer is here, but the command's memory is still queued to be sent.
    pub(crate) answered: bool,
    /// How often the command was found to take too long.
    pub(crate) late: u8,
    pub(crate) len: u32,
    /// Bytes received, or handed to the connection.
    pub(crate) moved: u32,
    /// When it was sent, or found late; `u64::MAX`: it may take for ever.
    pub(crate) stamp: u64,
    /// Bytes the connection has to have sent before this command's memory is free.
    pub(crate) tx_end: u64,
    pub(crate) memory: Memory,
    pub(crate) answer: Cqe,
}

impl Slot {
    pub(crate) fn busy(&self) -> bool {
        self.to.is_some()
    }
}

/// The slots of a queue pair.
pub(crate) struct Slots {
    all: Box<[Slot]>,
    /// Free ones; the last one freed is used first.
    free: Vec<u16>,
    /// Answered ones whose memory is still queued to be sent.
    pub(crate) waiting: Vec<u16>,
}

impl Slots {
    pub(crate) fn new(n: u16) -> Slots {
        let slot = |_| Slot {
            to: None,
            tag: 0,
            dir: Dir::None,
            opcode: 0,
            bad: false,
            answered: false,
            late: 0,
            len: 0,
            moved: 0,
            stamp: 0,
            tx_end: 0,
            memory: Memory::default(),
            answer: Cqe::default(),
        };
        Slots {
            all: (0..n).map(slot).collect(),
            free: (0..n).rev().collect(),
            waiting: Vec::with_capacity(usize::from(n)),
        }
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    #[inline]
    pub(crate) fn take(&mut self) -> Option<(u16, &mut Slot)> {
        let n = self.free.pop()?;
        Some((n, &mut self.all[usize::from(n)]))
    }

    /// The busy slot of a command that is not answered yet.
    #[inline]
    pub(crate) fn open(&mut self, cid: u16) -> Option<&mut Slot> {
        self.all.get_mut(usize::from(cid)).filter(|s| s.to.is_some() && !s.answered)
    }

    #[inline]
    pub(crate) fn get(&self, cid: u16) -> Option<&Slot> {
        self.all.get(usize::from(cid))
    }

    /// Frees a busy slot; returns whom to tell, the tag, and whether it was found late.
    #[inline]
    pub(crate) fn release(&mut self, cid: u16) -> Option<(Rc<dyn Completer>, u64, bool)> {
        let s = self.all.get_mut(usize::from(cid))?;
        let to = s.to.take()?;
        s.memory.clear();
        s.answered = false;
        self.free.push(cid);
        Some((to, s.tag, s.late > 0))
    }

    /// The busy slots.
    pub(crate) fn busy(&self) -> impl Iterator<Item = u16> + '_ {
        (0u16..).zip(self.all.iter()).filter(|(_, s)| s.busy()).map(|(n, _)| n)
    }

    /// The next unanswered command sent before `before`; it counts as sent `now` from here on.
    pub(crate) fn next_late(&mut self, before: u64, now: u64) -> Option<(u16, u8, u8)> {
        let late = |s: &Slot| s.busy() && !s.answered && s.stamp < before;
        let (n, s) = (0u16..).zip(self.all.iter_mut()).find(|(_, s)| late(s))?;
        s.stamp = now;
        s.late = s.late.saturating_add(1);
        Some((n, s.opcode, s.late))
    }
}
