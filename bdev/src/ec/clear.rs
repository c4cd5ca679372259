//! Unmap and write zeroes: whole stripes become empty, parts of stripes stay (unmap) or are written with zeroes.
//!
//! The cleared bit is durable before the host is answered and before anybody writes to the stripe again: otherwise a crash could
//! bring back what was there, over what was written since.

use std::cell::RefCell;
use std::rc::Rc;

use longshore_nvme::wire::Status;

use super::engine::{Engine, Starved};
use super::stripe::Waiting;
use crate::frame::Submitter;
use crate::io::{IoRef, Op};

/// Stripes that are cleared at once.
const BATCH: u64 = 256;

/// One request of the host.
pub(super) struct Clear {
    engine: Rc<Engine>,
    s: RefCell<State>,
}

struct State {
    parent: Option<IoRef>,
    /// Whole stripes that are left.
    next: u64,
    end: u64,
    /// Parts of stripes to be written with zeroes: LBA and blocks.
    parts: Vec<(u64, u32)>,
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
        let mut parts = Vec::new();
        if io.op() == Op::WriteZeroes {
            if first > last {
                parts.push((lba, io.nblocks()));
            } else {
                let (head, tail) = (first * per - lba, end - last * per);
                parts.extend((head > 0).then_some((lba, head as u32)));
                parts.extend((tail > 0).then_some((last * per, tail as u32)));
            }
        }
        let state = State {
            parent: Some(io),
            next: first,
            end: last.max(first),
            parts,
            out: 0,
            wanted: 0,
            locked: Vec::new(),
            status: Status::SUCCESS,
        };
        let c = Rc::new(Clear { engine: engine.clone(), s: RefCell::new(state) });
        c.advance();
    }

    /// Goes on as far as possible. False: it waits for a request.
    pub(super) fn advance(self: &Rc<Self>) -> bool {
        let e = &self.engine;
        if e.shared.is_offline() {
            self.s.borrow_mut().status = Status::NAMESPACE_NOT_READY;
        }
        while self.s.borrow().status.is_ok() {
            let Some((lba, blocks)) = self.s.borrow_mut().parts.pop() else { break };
            let (flags, nest) = {
                let s = self.s.borrow();
                let Some(parent) = s.parent.as_ref() else { return true };
                (parent.flags(), parent.io().nest)
            };
            let Some(mut io) = e.core.get_child(nest) else {
                self.s.borrow_mut().parts.push((lba, blocks));
                e.starve_other(Starved::Clear(self.clone()));
                return false;
            };
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
                if s.status.is_err() || s.next == s.end {
                    break;
                }
                let batch = s.next..s.end.min(s.next + BATCH);
                s.next = batch.end;
                s.wanted = (batch.end - batch.start) as u32;
                batch
            };
            // All are queued at once, in order: two requests that overlap never hold what the other waits for.
            for stripe in batch.clone() {
                e.stripes.wait(stripe, Waiting::Clear(self.clone()));
            }
            for stripe in batch {
                e.pump(stripe);
            }
        }
        self.finish();
        true
    }

    /// The stripe is locked for this.
    pub(super) fn locked(self: &Rc<Self>, stripe: u64) {
        let e = &self.engine;
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
        for stripe in locked {
            engine.unlock(stripe);
        }
        self.advance();
    }

    fn finish(&self) {
        let mut s = self.s.borrow_mut();
        if s.out > 0 {
            return;
        }
        if let Some(parent) = s.parent.take() {
            parent.complete_later(s.status);
        }
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
