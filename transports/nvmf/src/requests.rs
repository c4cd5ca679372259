//! Requests of the block layer: who gets one, and who waits. The rules are in `share`.

use std::rc::Rc;

use longshore_bdev::{IoRef, IoWaiter};

use crate::io;
use crate::poll_group::PollGroup;
use crate::qpair::Qpair;
use crate::share::{OWN_REQUESTS, Want};

/// Commands resumed per turn.
const BUDGET: usize = 64;

impl Qpair {
    /// Requests that it always has: no admin command needs one.
    pub(crate) fn own_requests(&self) -> u32 {
        if self.qid.get() == 0 { 0 } else { OWN_REQUESTS }
    }

    /// A request, or none: then [`wait_request`](Qpair::wait_request).
    #[inline]
    pub(crate) fn get_request(&self) -> Option<IoRef> {
        let shares = &self.group.shares;
        if shares.resuming.get() == self.serial {
            // A command's turn has come: its request is here, and was counted.
            shares.resuming.set(0);
            return shares.handed.take();
        }
        let own = self.requests.get() < self.own.get() && self.lines[Want::Request as usize].is_empty();
        if !own && (self.host().waits(Want::Request) || !self.may_share()) {
            return None;
        }
        let io = self.group.bdev.get()?;
        self.count_request();
        Some(io)
    }

    /// It gets no more. Those that it has count as its host's share until they come back.
    pub(crate) fn give_requests_up(&self) {
        let n = self.own.replace(0).min(self.requests.get());
        let (h, s) = (&self.host().requests, &self.group.shares.requests_used);
        h.set(h.get() + n);
        s.set(s.get() + n);
    }

    #[inline]
    fn may_share(&self) -> bool {
        let s = &self.group.shares;
        self.host().requests.get() < s.requests_each.get() && s.requests_used.get() < s.requests.get()
    }

    /// What a queue pair has beyond its own is the host's share.
    #[inline]
    fn count_request(&self) {
        let n = self.requests.get();
        self.requests.set(n + 1);
        if n >= self.own.get() {
            let (h, s) = (&self.host().requests, &self.group.shares.requests_used);
            h.set(h.get() + 1);
            s.set(s.get() + 1);
        }
    }

    /// A request was given back.
    #[inline]
    pub(crate) fn put_request(&self, io: IoRef) {
        io.release();
        let n = self.requests.get() - 1;
        self.requests.set(n);
        let shares = &self.group.shares;
        if n >= self.own.get() {
            let (h, s) = (&self.host().requests, &shares.requests_used);
            h.set(h.get() - 1);
            s.set(s.get() - 1);
        }
        if !shares.nobody(Want::Request) {
            shares.look[Want::Request as usize].set(true);
        }
    }

    /// The command in `slot` waits for a request.
    #[cold]
    pub(crate) fn wait_request(self: &Rc<Self>, slot: u16) {
        self.group.shares.line_up(Want::Request, self, slot);
        self.group.shares.look[Want::Request as usize].set(true);
    }
}

impl PollGroup {
    /// Resumes commands that waited for a request, if there may be some now. Returns how many.
    #[inline]
    pub(crate) fn serve_requests(self: &Rc<Self>) -> usize {
        let s = &self.shares;
        if !s.look[Want::Request as usize].take() || s.nobody(Want::Request) { 0 } else { self.look_for_requests() }
    }

    #[inline(never)]
    fn look_for_requests(self: &Rc<Self>) -> usize {
        let s = &self.shares;
        let mut below_dry = false;
        let mut one = |qp: &Rc<Qpair>| {
            if below_dry || !(qp.requests.get() < qp.own.get() || qp.may_share()) {
                return false;
            }
            let Some(io) = self.bdev.get() else {
                below_dry = true;
                return false;
            };
            let slot = qp.lines[Want::Request as usize].slots.borrow_mut().pop_front();
            let Some(slot) = slot else {
                io.release();
                return false;
            };
            qp.count_request();
            s.handed.set(Some(io));
            s.resuming.set(qp.serial);
            io::resume(qp, slot);
            s.resuming.set(0);
            // The command may have ended otherwise.
            if let Some(io) = s.handed.take() {
                qp.put_request(io);
            }
            true
        };
        // What is a queue pair's own does not wait behind others of its host, who may wait for ever.
        let mut own = 0;
        s.each_waiting(Want::Request, |qp| {
            let waits = || !qp.lines[Want::Request as usize].slots.borrow().is_empty();
            while qp.requests.get() < qp.own.get() && waits() && one(qp) {
                own += 1;
            }
        });
        let served = s.serve(Want::Request, BUDGET, one);
        if below_dry && !s.waits_below.replace(true) {
            self.bdev.wait(self.clone());
        }
        if served == BUDGET {
            s.look[Want::Request as usize].set(true);
        }
        served + own
    }
}

impl IoWaiter for PollGroup {
    fn io_available(self: Rc<Self>) {
        self.shares.waits_below.set(false);
        self.look_for_requests();
    }
}
