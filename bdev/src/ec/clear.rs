//! Unmap and write zeroes: whole stripes become empty, parts of stripes stay (unmap) or are written with zeroes.
//!
//! The cleared bit is durable before the host is answered and before anybody writes to the stripe again: otherwise a crash could
//! bring back what was there, over what was written since.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use longshore_nvme::wire::Status;

use super::engine::{Engine, Starved};
use super::stripe::Waiting;
use crate::frame::Submitter;
use crate::io::{IoRef, Op};

/// Stripes that are cleared at once.
const BATCH: u64 = 4096;

/// One request of the host.
#[derive(Default)]
pub(super) struct Clear {
    /// While a request is under way.
    engine: RefCell<Option<Rc<Engine>>>,
    s: RefCell<State>,
}

#[derive(Default)]
struct State {
    parent: Option<IoRef>,
    /// Whole stripes that are left.
    next: u64,
    end: u64,
    /// Parts of stripes to be written with zeroes: LBA and blocks.
    parts: [Option<(u64, u32)>; 2],
    /// Parts under way.
    out: u32,
    /// Stripes of the batch whose lock is waited for.
    wanted: u32,
    locked: Vec<u64>,
    status: Status,
}

impl Clear {
    /// Starts a request.
    pub(super) fn start(engine: &Rc<Engine>, io: IoRef) {
        let per = engine.shared.layout.stripe_blocks();
        let (lba, end) = (io.lba(), io.lba() + u64::from(io.nblocks()));
        let (first, last) = (lba.div_ceil(per), end / per);
        let mut parts = [None; 2];
        if io.op() == Op::WriteZeroes {
            if first > last {
                parts[0] = Some((lba, io.nblocks()));
            } else {
                let (head, tail) = (first * per - lba, end - last * per);
                parts = [(tail > 0).then_some((last * per, tail as u32)), (head > 0).then_some((lba, head as u32))];
            }
        }
        let c = engine.idle_clear();
        c.engine.replace(Some(engine.clone()));
        {
            let mut s = c.s.borrow_mut();
            s.parent = Some(io);
            (s.next, s.end, s.parts) = (first, last.max(first), parts);
            (s.out, s.wanted, s.status) = (0, 0, Status::SUCCESS);
        }
        c.advance();
    }

    /// True if it has ended, and only whoever asks knows of it.
    pub(super) fn is_idle(self: &Rc<Self>) -> bool {
        Rc::strong_count(self) == 1
    }

    /// Goes on as far as possible. False: it waits for a request.
    pub(super) fn advance(self: &Rc<Self>) -> bool {
        let e = self.engine.borrow().clone();
        let Some(e) = e else { return true };
        if e.shared.is_offline() {
            self.s.borrow_mut().status = Status::NAMESPACE_NOT_READY;
        }
        while self.s.borrow().status.is_ok() {
            let at = self.s.borrow().parts.iter().rposition(Option::is_some);
            let Some(at) = at else { break };
            let (flags, nest) = {
                let s = self.s.borrow();
                let Some(parent) = s.parent.as_ref() else { return true };
                (parent.flags(), parent.io().nest)
            };
            let Some(mut io) = e.core.get_child(nest) else {
                e.starve_other(Starved::Clear(self.clone()));
                return false;
            };
            let Some((lba, blocks)) = self.s.borrow_mut().parts[at].take() else { break };
            io.io_mut().nest = nest + 1;
            io.prepare(Op::WriteZeroes, flags, lba, blocks);
            io.begin(self.clone(), 0);
            self.s.borrow_mut().out += 1;
            e.write(io);
        }
        loop {
            let batch = {
                let mut s = self.s.borrow_mut();
                if s.wanted > 0 || !s.locked.is_empty() {
                    return true;
                }
                if s.status.is_ok() {
                    s.next = e.first_held(s.next..s.end);
                }
                if s.status.is_err() || s.next == s.end {
                    break;
                }
                let batch = s.next..s.end.min(s.next + BATCH);
                s.next = batch.end;
                // All are queued at once, in order: two requests that overlap never hold what the other waits for.
                for stripe in batch.clone().filter(|&stripe| e.is_held(stripe)) {
                    s.wanted += 1;
                    e.stripes.wait(stripe, Waiting::Clear(self.clone()));
                }
                batch
            };
            for stripe in batch {
                e.pump(stripe);
            }
        }
        self.finish(&e);
        true
    }

    /// The stripe is locked for this.
    pub(super) fn locked(self: &Rc<Self>, stripe: u64) {
        let e = self.engine.borrow().clone();
        let Some(e) = e else { return };
        let durable = e.map.clear(&e.shared, stripe);
        let ready = {
            let mut s = self.s.borrow_mut();
            s.wanted -= 1;
            if durable {
                s.locked.push(stripe);
            }
            s.wanted == 0 && !s.locked.is_empty()
        };
        if !durable {
            e.unlock(stripe);
        }
        if ready {
            e.map.clear_durably(self.clone());
        } else if self.s.borrow().wanted == 0 {
            // The last of a batch without durable bits: not from here, for `advance` may be further up the stack.
            let me = self.clone();
            e.core.reactor().defer(move |_| {
                me.advance();
            });
        }
    }

    /// The bits of this batch are durable, or the array is offline.
    pub(super) fn cleared(self: &Rc<Self>, engine: &Rc<Engine>, status: Status) {
        let locked = {
            let mut s = self.s.borrow_mut();
            if s.status.is_ok() {
                s.status = status;
            }
            std::mem::take(&mut s.locked)
        };
        for &stripe in &locked {
            engine.unlock(stripe);
        }
        {
            let mut s = self.s.borrow_mut();
            s.locked = locked;
            s.locked.clear();
        }
        self.advance();
    }

    fn finish(self: &Rc<Self>, engine: &Engine) {
        let mut s = self.s.borrow_mut();
        if s.out > 0 {
            return;
        }
        if let Some(parent) = s.parent.take() {
            parent.complete_later(s.status);
            self.engine.replace(None);
            engine.clear_ended(self.clone());
        }
    }
}

impl Engine {
    /// True if a clear has something to do in the stripe, or has to wait for those who do.
    fn is_held(&self, stripe: u64) -> bool {
        self.shared.is_mapped(stripe) || !self.stripes.is_idle(stripe)
    }

    /// The first stripe of `range` that is held; its end, if none is.
    pub(super) fn first_held(&self, range: Range<u64>) -> u64 {
        let mut at = range.start;
        while at < range.end {
            let (until, mapped) = match self.shared.next_mapped(at) {
                Ok(stripe) => (stripe.min(range.end), true),
                Err(looked) => (looked.min(range.end), false),
            };
            match self.stripes.first_busy(at..until) {
                Some(busy) => return busy,
                None if mapped => return until,
                None => at = until,
            }
        }
        range.end
    }
}

impl Submitter for Clear {
    fn io_done(self: Rc<Self>, io: IoRef, _: u64) {
        let status = io.status();
        io.release();
        {
            let mut s = self.s.borrow_mut();
            s.out -= 1;
            if s.status.is_ok() {
                s.status = status;
            }
        }
        self.advance();
    }
}
