//! The first half of a pass: what it writes, what it needs, and reading what is there.

use std::rc::Rc;

use super::super::child::Child;
use super::super::engine::Engine;
use super::super::faults::{self, Window};
use super::compute::Here;
use super::plan::{self, Plan, Way};
use super::state::{Kind, State};
use super::{Phase, Txn, compute, masked};
use crate::Status;
use crate::io::Op;

impl Txn {
    /// Begins a pass: the next rows of what is to be written.
    pub(super) fn begin(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        if engine.shared.is_offline() {
            return self.end(engine, s, Status::NAMESPACE_NOT_READY);
        }
        engine.look_out();
        if engine.is_suspicious() {
            return self.starve(engine);
        }
        let l = &engine.shared.layout;
        let (k, m) = (l.k, l.m);
        s.kind = match (engine.shared.is_mapped(s.stripe), engine.map.is_live(s.stripe)) {
            (false, _) => Kind::First,
            (true, false) => Kind::Fresh,
            (true, true) => Kind::Live,
        };
        if !s.choose(l) {
            return self.end(engine, s, Status::SUCCESS);
        }
        s.up = engine.up_to_write(s.stripe);
        s.plan = Plan { way: Way::Plain, read: 0, decode: 0 };
        if s.kind != Kind::First {
            let Some(p) = plan::plan(k, m, &s.touch, s.up, engine.up(s.stripe) & !s.bad) else {
                return self.lost(engine, s);
            };
            s.plan = p;
        }
        let buffers = compute::buffers(l, s.kind == Kind::Live, &s.touch, &s.plan);
        if s.window.len() > engine.spare.rows && buffers.clone().map(|b| b.1).sum::<usize>() > engine.spare.most {
            s.halve(l);
            return self.begin(engine, s);
        }
        if s.kind == Kind::Live {
            s.slot = engine.journal.take();
            if s.slot.is_none() {
                engine.want_slots();
                self.let_go(engine, s);
                return self.starve(engine);
            }
        }
        if !s.h.reserve(&engine.core, k + m, buffers) {
            self.let_go(engine, s);
            // One that has got what is set aside is done by it, piece by piece.
            s.in_need |= engine.is_in_need();
            if s.in_need && s.h.take_spare() {
                s.most = s.most.min(engine.spare.rows);
                return self.begin(engine, s);
            }
            return self.starve(engine);
        }
        s.degraded = s.up.count_ones() as usize != k + m;
        if s.degraded {
            faults::enter(Window::DegradedWrite);
        }
        let c = &engine.shared.counters;
        match s.plan.way {
            Way::Modify => c.read_modify_writes.add(1),
            Way::Reconstruct | Way::Decode => c.reconstruct_writes.add(1),
            Way::Plain if s.touch.kept(k) == 0 && s.touch.rows.len() == l.strip => c.full_stripe_writes.add(1),
            Way::Plain => {}
        }
        self.read(engine, s);
    }

    /// Of these rows too much cannot be read: less of them is tried, down to a block, then the writes one by one. Members that do not
    /// read, though they are asked once more, fail before. Who then wants a block that nothing can be said of, fails.
    pub(super) fn lost(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        let l = &engine.shared.layout;
        if s.bad == 0 {
            engine.shared.counters.unrecovered_reads.add(1);
            return self.end(engine, s, Status::UNRECOVERED_READ_ERROR);
        }
        let faulty = std::mem::take(&mut s.faulty);
        s.bad = 0;
        if s.window.len() > l.block {
            s.halve(l);
        } else if faulty != 0 {
            // One error is not yet a member that does not read: all are asked once more.
            if std::mem::replace(&mut s.asked, true) {
                // Without them it has lost no more than it had, or the array is offline.
                masked(faulty).for_each(|i| engine.does_not_read(l.slot_of(s.stripe, i)));
            }
        } else if !s.part(l) {
            engine.shared.counters.unrecovered_reads.add(1);
            s.refuse(l);
        }
        self.begin(engine, s);
    }

    /// Gives back what was reserved.
    pub(super) fn let_go(&self, engine: &Rc<Engine>, s: &mut State) {
        if let Some(slot) = s.slot.take() {
            engine.journal.give_back(slot);
        }
        s.h.give_back();
        if std::mem::take(&mut s.degraded) {
            faults::leave(Window::DegradedWrite);
        }
    }

    pub(super) fn read(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        self.phase.set(Phase::Reading);
        s.again = false;
        let l = engine.shared.layout;
        for i in masked(s.plan.read) {
            let span = compute::read_span(&s.touch, s.plan.way, i);
            let v = 2 * l.n() + i;
            s.h.clear(v);
            s.h.push_buf(v, i, 0, span.len() as usize);
            engine.count_read(span.len());
            let at = l.strip_offset(s.stripe) + u64::from(span.lo);
            if !self.send(engine, s, i, Op::Read, at, span.len()) {
                s.bad |= 1 << i;
                s.again = true;
            }
        }
        if !s.h.is_awaited() {
            self.reads_ended(engine, s);
        }
    }

    /// Sends a request over vector `2n + i` to the member of strip `i`. False: there is none.
    pub(super) fn send(
        self: &Rc<Self>,
        engine: &Rc<Engine>,
        s: &mut State,
        i: usize,
        op: Op,
        at: u64,
        len: u32,
    ) -> bool {
        let vector = 2 * engine.shared.layout.n() + i;
        engine.send(&mut s.h, self, Child { stripe: s.stripe, strip: i, vector, op, at, len, hedge: false })
    }

    pub(super) fn reads_ended(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        if s.again {
            // From the start, without what could not be read.
            self.let_go(engine, s);
            return self.begin(engine, s);
        }
        if engine.offload.is_some() {
            return self.compute_elsewhere(engine, s);
        }
        if s.plan.way == Way::Decode {
            compute::decode(engine, s, &mut Here);
        }
        compute::data(&engine.shared.layout, s);
        compute::parity(engine, s, &mut Here);
        self.computed(engine, s);
    }

    /// Parity is there; checksums are not.
    #[inline]
    pub(super) fn computed(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        match s.kind {
            Kind::Live => self.journal(engine, s, |s, i| engine.accel.crc32c(0, s.h.pieces(i))),
            Kind::First | Kind::Fresh => self.gate(engine, s),
        }
    }
}
