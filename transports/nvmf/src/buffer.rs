//! Buffers of commands. Each queue pair has one of the largest size for itself, so that it always makes progress; the rest of
//! the core's memory is shared, first come first served.

use std::rc::Rc;

use crate::poll_group::PollGroup;
use crate::qpair::{Life, Qpair};
use crate::request::Phase;

/// A command that waits for a buffer.
pub(crate) struct Waiter {
    serial: u64,
    slot: u16,
}

/// Waiters looked at per turn.
const BUDGET: usize = 64;

impl Qpair {
    /// Takes the buffer that a connected queue pair always has. False: the core cannot promise any more.
    pub(crate) fn reserve_buffer(&self) -> bool {
        let mut r = self.reserve.borrow_mut();
        if r.is_none() {
            *r = self.group.reactor().dma().alloc(self.options.max_io_size as usize);
        }
        r.is_some()
    }

    /// Gives the command in `slot` the buffer that `begin` asked for. False: `QpairTransport::buffer_ready` comes when it has
    /// it; until then nothing else is done with the command.
    #[inline]
    pub fn get_buffer(self: &Rc<Self>, slot: u16) -> bool {
        if self.group.waiters.borrow().is_empty() && self.try_buffer(slot) {
            return true;
        }
        self.wait_buffer(slot)
    }

    #[inline]
    fn try_buffer(&self, slot: u16) -> bool {
        let mut r = self.slots[usize::from(slot)].borrow_mut();
        let len = r.len as usize;
        r.buf = self.group.reactor().dma().alloc(len);
        if r.buf.is_none() {
            // The reserve is free if nobody else refers to its memory: no command, and no send queue.
            let mut own = self.reserve.borrow_mut();
            if let Some(b) = own.as_mut().filter(|b| b.len() >= len)
                && b.get_mut().is_some()
            {
                r.buf = Some(b.slice(0, len));
            }
        }
        r.buf.is_some()
    }

    #[cold]
    fn wait_buffer(self: &Rc<Self>, slot: u16) -> bool {
        if self.try_reserve_only(slot) {
            return true;
        }
        let len = {
            let mut r = self.slots[usize::from(slot)].borrow_mut();
            r.waits_buffer = true;
            r.len as usize
        };
        let g = &self.group;
        g.reactor().dma().note_wait(len);
        g.counters.buffer_waits.set(g.counters.buffer_waits.get() + 1);
        g.waiters.borrow_mut().push_back(Waiter { serial: self.serial, slot });
        if let Some(p) = g.poller.get() {
            p.set_pending(true);
        }
        false
    }

    /// Others wait for shared memory: only the own buffer may be taken before them.
    fn try_reserve_only(&self, slot: u16) -> bool {
        let mut r = self.slots[usize::from(slot)].borrow_mut();
        let len = r.len as usize;
        let mut own = self.reserve.borrow_mut();
        if let Some(b) = own.as_mut().filter(|b| b.len() >= len)
            && b.get_mut().is_some()
        {
            r.buf = Some(b.slice(0, len));
            return true;
        }
        false
    }
}

impl PollGroup {
    /// Gives buffers to those who wait, longest wait first; who waits for shared memory does not hold up those whose own
    /// buffer is free again.
    pub(crate) fn serve_waiters(&self) -> usize {
        let n = self.waiters.borrow().len().min(BUDGET);
        if n == 0 {
            return 0;
        }
        let mut served = 0;
        for _ in 0..n {
            let Some(w) = self.waiters.borrow_mut().pop_front() else { break };
            let Some(q) = self.find_qpair(w.serial).filter(|q| q.life.get() < Life::Closing) else { continue };
            let waits = {
                let r = q.slots[usize::from(w.slot)].borrow();
                r.phase == Phase::Begun && r.waits_buffer
            };
            if !waits {
                continue;
            }
            if q.try_buffer(w.slot) {
                q.slots[usize::from(w.slot)].borrow_mut().waits_buffer = false;
                served += 1;
                if let Some(t) = q.transport() {
                    t.buffer_ready(w.slot);
                }
            } else {
                self.waiters.borrow_mut().push_back(w);
            }
        }
        if self.waiters.borrow().is_empty()
            && let Some(p) = self.poller.get()
        {
            p.set_pending(false);
        }
        served
    }

    /// A queue pair waits no more.
    pub(crate) fn forget_waiters(&self, serial: u64) {
        self.waiters.borrow_mut().retain(|w| w.serial != serial);
    }
}
