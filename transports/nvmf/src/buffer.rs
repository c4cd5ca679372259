//! Buffers of commands: who gets one, and who waits. The rules are in `share`.

use std::rc::Rc;

use longshore_reactor::{DmaBuf, Shortage};

use crate::poll_group::PollGroup;
use crate::promise::Refused;
use crate::qpair::Qpair;
use crate::request::Phase;
use crate::share::{Host, Want};

/// Commands served per turn.
const BUDGET: usize = 64;

impl Qpair {
    /// Sets the buffer aside that a connected queue pair of `host` always has.
    pub(crate) fn reserve_buffer(&self, host: Rc<Host>) -> Result<(), Refused> {
        let (reactor, shares) = (self.group.reactor(), &self.group.shares);
        let (len, requests) = (self.options.max_io_size as usize, self.own_requests());
        let mut own = self.reserve.borrow_mut();
        if own.is_none() {
            shares.may_promise(reactor, &host, len, requests)?;
            let buffer = reactor.dma().reserve(len).ok_or(Refused::Core)?;
            shares.promise(reactor, &host, len, requests, true);
            *own = Some((buffer, host));
        }
        Ok(())
    }

    /// Gives it back, unused.
    pub(crate) fn unreserve_buffer(&self) {
        let own = self.reserve.borrow_mut().take();
        if let Some((own, host)) = own {
            self.group.shares.promise(self.group.reactor(), &host, own.size(), self.own_requests(), false);
        }
    }

    /// The queue pair has ended, or its controller ends and it has given up: others may have what it was promised, those of its host that come after it
    /// first of all. Not before: a host that went on with its controller could strand as much as it likes. What its commands in devices still have of that is charged to the host, as if it had been shared.
    pub(crate) fn give_promise_back(&self) {
        let own = self.reserve.borrow_mut().take();
        if let Some((own, host)) = own {
            self.give_requests_up();
            let len = own.size();
            own.give_up(&host.memory);
            self.group.shares.promise(self.group.reactor(), &host, len, self.own_requests(), false);
        }
    }

    /// Gives the command in `slot` the buffer that `begin` asked for. False: `QpairTransport::buffer_ready` comes when it has
    /// it; until then nothing else is done with the command.
    #[inline]
    pub fn get_buffer(self: &Rc<Self>, slot: u16) -> bool {
        let len = self.slots[usize::from(slot)].borrow().len as usize;
        let shares = &self.group.shares;
        // Those of the host who wait go first, and so do all who wait for so large a buffer.
        if len < shares.dry.get() && !self.host().waits(Want::Buffer) {
            match self.shared_buffer(len) {
                Ok(buf) => {
                    self.slots[usize::from(slot)].borrow_mut().buf = Some(buf);
                    return true;
                }
                Err(why) => return self.own_or_wait(slot, len, why == Shortage::Pool),
            }
        }
        self.own_or_wait(slot, len, false)
    }

    #[inline]
    fn shared_buffer(&self, len: usize) -> Result<DmaBuf, Shortage> {
        self.group.reactor().dma().alloc_for(len, &self.host().memory)
    }

    /// The queue pair's own buffer, if it is free.
    fn own_buffer(&self, slot: u16, len: usize) -> Option<DmaBuf> {
        match &*self.reserve.borrow() {
            Some((own, _)) => own.take(len),
            // Not connected yet. What all share must come back at once: not for data that the host has yet to send. (In a capsule it has
            // been sent: a transport asks when all of it is here.)
            None if self.slots[usize::from(slot)].borrow().data_inside => {
                self.group.shares.connect.borrow().as_ref()?.take(len)
            }
            None => None,
        }
    }

    #[cold]
    fn own_or_wait(self: &Rc<Self>, slot: u16, len: usize, dry: bool) -> bool {
        let own = if self.lines[Want::Buffer as usize].is_empty() { self.own_buffer(slot, len) } else { None };
        let mut r = self.slots[usize::from(slot)].borrow_mut();
        if own.is_some() {
            r.buf = own;
            return true;
        }
        r.waits_buffer = true;
        drop(r);
        let shares = &self.group.shares;
        if dry {
            shares.dry.set(shares.dry.get().min(len));
        }
        self.group.reactor().dma().note_wait(len);
        shares.line_up(Want::Buffer, self, slot);
        false
    }

    /// Gives the first command of the line its buffer, if `take` finds one.
    fn serve_buffer(self: &Rc<Self>, take: impl FnOnce(&Qpair, u16, usize) -> Option<DmaBuf>) -> bool {
        let line = &self.lines[Want::Buffer as usize];
        let Some(slot) = line.slots.borrow().front().copied() else { return false };
        let len = {
            let r = self.slots[usize::from(slot)].borrow();
            debug_assert!(r.waits_buffer && r.phase == Phase::Begun, "slot {slot} left the line unseen");
            r.len as usize
        };
        let Some(buf) = take(self, slot, len) else { return false };
        line.slots.borrow_mut().pop_front();
        {
            let mut r = self.slots[usize::from(slot)].borrow_mut();
            r.buf = Some(buf);
            r.waits_buffer = false;
        }
        if let Some(t) = self.transport() {
            t.buffer_ready(slot);
        }
        true
    }

    /// The command in `slot` ends: it waits for no buffer any more.
    #[inline]
    pub(crate) fn stop_waiting_for_buffer(&self, slot: u16) {
        if std::mem::take(&mut self.slots[usize::from(slot)].borrow_mut().waits_buffer) {
            self.group.shares.leave(Want::Buffer, self, slot);
        }
    }
}

impl PollGroup {
    /// Gives buffers to those who wait, if any returned since the last look. Returns how many.
    #[inline]
    pub(crate) fn serve_buffers(&self) -> usize {
        let s = &self.shares;
        if s.nobody(Want::Buffer) {
            return 0;
        }
        let now = self.reactor().dma().returned();
        let look = s.look[Want::Buffer as usize].take();
        if now == s.seen.get() && !look { 0 } else { self.look_for_buffers(now) }
    }

    #[inline(never)]
    fn look_for_buffers(&self, now: (u64, u64)) -> usize {
        let s = &self.shares;
        let (_, own_seen) = s.seen.replace(now);
        let mut served = 0;
        if now.1 != own_seen {
            s.each_waiting(Want::Buffer, |qp| served += usize::from(qp.serve_buffer(Qpair::own_buffer)));
        }
        // Where the pool has nothing for a length, it has nothing for longer ones.
        let mut dry = usize::MAX;
        let shared = s.serve(Want::Buffer, BUDGET, |qp| {
            qp.serve_buffer(|q, _, len| {
                if len >= dry {
                    return None;
                }
                match q.shared_buffer(len) {
                    Ok(buf) => Some(buf),
                    Err(Shortage::Pool) => {
                        dry = len;
                        None
                    }
                    Err(Shortage::Account) => None,
                }
            })
        });
        s.dry.set(dry);
        if shared == BUDGET {
            s.look[Want::Buffer as usize].set(true);
        }
        served + shared
    }
}
