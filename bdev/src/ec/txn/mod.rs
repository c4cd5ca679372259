//! One write transaction: the writes of a host that are done together in one stripe.
//!
//! Read what is needed, compute parity, write records, make them durable, write in place, acknowledge. Each step begins when all
//! requests of the step before have come back. `docs/ec.md` says why the steps are these.

mod compute;
pub(super) mod plan;
pub(super) mod rows;
mod state;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use longshore_nvme::wire::Status;

pub(super) use self::compute::range;
use self::plan::{Plan, Way};
use self::state::{Kind, State};
use super::child::Child;
use super::engine::Engine;
use super::faults::{self, Mutant, Window};
use super::format::{RECORD_BYTES, RecordHeader};
use crate::frame::Submitter;
use crate::io::{IoFlags, IoRef, Op};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// Waits for memory, requests or a slot of the journal; holds none of them.
    Starved,
    Reading,
    Journaling,
    /// Waits for a flush round.
    Barrier,
    /// Waits until it may write in place.
    Gate,
    Writing,
    /// All is written: waits until superblocks name who failed.
    Settling,
    /// Over, but for requests that hang on a failed member and still use memory, also of the host.
    Lingering,
    Ended,
}

/// See the module.
pub(super) struct Txn {
    engine: RefCell<Option<Rc<Engine>>>,
    phase: Cell<Phase>,
    s: RefCell<State>,
}

impl Txn {
    pub(super) fn new(engine: &Engine) -> Rc<Txn> {
        Rc::new(Txn { engine: RefCell::default(), phase: Cell::new(Phase::Idle), s: RefCell::new(State::new(engine)) })
    }

    /// Starts with the writes of `hosts`, which are emptied. The stripe is locked.
    pub(super) fn start(self: &Rc<Self>, engine: &Rc<Engine>, stripe: u64, hosts: &mut Vec<IoRef>) {
        self.engine.replace(Some(engine.clone()));
        engine.shared.counters.joined_writes.add(hosts.len() as u64 - 1);
        let starving = engine.is_starving();
        self.run(engine, |me, engine, s| {
            s.start(stripe, hosts);
            if starving { me.starve(engine) } else { me.begin(engine, s) }
        });
    }

    /// Tries once more to get what it needs. False: it waits again.
    pub(super) fn retry(self: &Rc<Self>, engine: &Rc<Engine>) -> bool {
        let mut fed = true;
        // Looked at before it ends: then it may wait again as another one.
        self.run(engine, |me, engine, s| {
            me.begin(engine, s);
            fed = me.phase.get() != Phase::Starved;
        });
        fed
    }

    /// The round that it waited for has ended, or the array is offline.
    pub(super) fn flushed(self: &Rc<Self>, engine: &Rc<Engine>) {
        self.run(engine, |me, engine, s| me.gate(engine, s));
    }

    /// What it waited for at a gate may be there.
    pub(super) fn go_on(self: &Rc<Self>, engine: &Rc<Engine>) {
        self.run(engine, |me, engine, s| match me.phase.get() {
            Phase::Settling => me.settle(engine, s),
            _ => me.gate(engine, s),
        });
    }

    /// The member in `slot` failed: requests that hang on it are not waited for.
    pub(super) fn give_up(self: &Rc<Self>, engine: &Rc<Engine>, slot: usize) {
        if !matches!(self.phase.get(), Phase::Reading | Phase::Journaling | Phase::Writing) {
            return;
        }
        self.run(engine, |me, engine, s| {
            let l = &engine.shared.layout;
            let i = l.index_at(s.stripe, slot);
            if s.h.give_up(2 * l.n() + i) {
                me.strip_ended(engine, s, i, true);
            }
        });
    }

    /// Runs a step; if the transaction ended by it, lets the stripe go on.
    fn run(self: &Rc<Self>, engine: &Rc<Engine>, step: impl FnOnce(&Rc<Self>, &Rc<Engine>, &mut State)) {
        let (stripe, locked) = {
            let mut s = self.s.borrow_mut();
            step(self, engine, &mut s);
            let over = matches!(self.phase.get(), Phase::Lingering | Phase::Ended);
            (s.stripe, over && std::mem::take(&mut s.locked))
        };
        if self.phase.get() == Phase::Ended {
            self.phase.set(Phase::Idle);
            self.engine.replace(None);
            engine.txn_idle(self.clone());
        }
        if locked {
            engine.drain.ended();
            engine.unlock(stripe);
            engine.feed();
        }
    }

    fn starve(self: &Rc<Self>, engine: &Rc<Engine>) {
        self.phase.set(Phase::Starved);
        engine.starve(self.clone());
    }

    /// Begins a pass: the next rows of what is to be written.
    fn begin(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        if engine.shared.is_offline() {
            return self.end(engine, s, Status::NAMESPACE_NOT_READY);
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

    /// Of these rows too much cannot be read: less of them is tried, down to a block, then the writes one by one. Who wants a block that
    /// nothing can be said of, fails.
    fn lost(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        let l = &engine.shared.layout;
        if s.bad == 0 {
            engine.shared.counters.unrecovered_reads.add(1);
            return self.end(engine, s, Status::UNRECOVERED_READ_ERROR);
        }
        s.bad = 0;
        if s.window.len() > l.block {
            s.halve(l);
        } else if !s.part(l) {
            engine.shared.counters.unrecovered_reads.add(1);
            s.refuse(l);
        }
        self.begin(engine, s);
    }

    /// Gives back what was reserved.
    fn let_go(&self, engine: &Rc<Engine>, s: &mut State) {
        if let Some(slot) = s.slot.take() {
            engine.journal.give_back(slot);
        }
        s.h.give_back();
        if std::mem::take(&mut s.degraded) {
            faults::leave(Window::DegradedWrite);
        }
    }

    fn read(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
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
    fn send(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State, i: usize, op: Op, at: u64, len: u32) -> bool {
        let vector = 2 * engine.shared.layout.n() + i;
        engine.send(&mut s.h, self, Child { stripe: s.stripe, strip: i, vector, op, at, len })
    }

    fn reads_ended(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        if s.again {
            // From the start, without what could not be read.
            self.let_go(engine, s);
            return self.begin(engine, s);
        }
        if s.plan.way == Way::Decode {
            compute::decode(engine, s);
        }
        compute::data(&engine.shared.layout, s);
        compute::parity(engine, s);
        match s.kind {
            Kind::Live => self.journal(engine, s),
            Kind::First | Kind::Fresh => self.gate(engine, s),
        }
    }

    /// Writes the records.
    fn journal(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        self.phase.set(Phase::Journaling);
        let l = engine.shared.layout;
        let Some(slot) = s.slot else { return };
        let mut takes_part = engine.up_to_write(s.stripe) & compute::written(&l, s);
        if faults::is(Mutant::JournalOnTooFew) {
            takes_part &= takes_part - 1;
        }
        (s.id, s.tail) = engine.journal.begin(slot, s.stripe);
        // Also members that are out at present: if no superblock that names them failed survives, nothing was begun in place, and
        // recovery, finding such a member in sync but without its record, discards the others.
        let mut participants = 0;
        masked(compute::written(&l, s)).for_each(|i| participants |= 1 << l.slot_of(s.stripe, i));
        // Not those that are being rebuilt and are not filled here: nothing is asked of them.
        participants &= !engine.lacking(s.stripe);
        let (block, at) = (l.block as usize, l.journal_at(slot));
        let headers = compute::headers(&l);
        for i in masked(takes_part) {
            let span = compute::write_span(&l, &s.touch, i);
            let header = RecordHeader {
                array: engine.array,
                session: engine.session.get(),
                txn: s.id,
                tail: s.tail,
                stripe: s.stripe,
                participants,
                slot: l.slot_of(s.stripe, i) as u32,
                index: slot,
                offset: span.lo,
                length: span.len(),
                payload_crc: compute::checksum(s.h.pieces(i)),
            };
            let out = &mut s.h.buf_mut(headers)[i * block..(i + 1) * block];
            header.encode(&mut out[..RECORD_BYTES]);
            out[RECORD_BYTES..].fill(0);
        }
        for i in masked(takes_part) {
            let v = 2 * l.n() + i;
            s.h.clear(v);
            s.h.push_buf(v, headers, i * block, block);
            s.h.push_vec(v, i);
            let len = l.block + compute::write_span(&l, &s.touch, i).len();
            engine.count_record(len);
            self.send(engine, s, i, Op::Write, at, len);
        }
        if !s.h.is_awaited() {
            self.records_written(engine, s);
        }
    }

    fn records_written(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        if engine.needs_rounds() && !faults::is(Mutant::JournalBarrierSkipped) {
            self.phase.set(Phase::Barrier);
            engine.round_for(self.clone());
        } else {
            self.gate(engine, s);
        }
    }

    /// All before is done: data may be overwritten in place if no failure is without its superblocks, and what missing members
    /// miss by it is noted.
    fn gate(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        self.phase.set(Phase::Gate);
        if engine.shared.is_offline() {
            return self.end(engine, s, Status::NAMESPACE_NOT_READY);
        }
        if !engine.is_stable() && !faults::is(Mutant::AckBeforeEpoch) {
            return engine.park(self.clone());
        }
        let region = engine.shared.layout.region_of(s.stripe);
        if !engine.intent.may_write(region) {
            return engine.intent.wait(self.clone());
        }
        if s.kind == Kind::Live {
            engine.journal.tail_is_durable(s.tail);
            faults::enter(Window::JournalDurableDataNot);
        }
        engine.intent.begin(region);
        self.write(engine, s);
    }

    fn write(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        self.phase.set(Phase::Writing);
        faults::enter(Window::BetweenMemberWrites);
        let l = engine.shared.layout;
        s.up = engine.up_to_write(s.stripe);
        let strips = if s.kind == Kind::First { s.up } else { s.up & compute::written(&l, s) };
        for i in masked(strips) {
            let v = 2 * l.n() + i;
            let span = if s.kind == Kind::First {
                compute::whole_strip(&l, s, i)
            } else {
                s.h.clear(v);
                s.h.push_vec(v, i);
                compute::write_span(&l, &s.touch, i)
            };
            engine.count_write(span.len());
            self.send(engine, s, i, Op::Write, l.strip_offset(s.stripe) + u64::from(span.lo), span.len());
        }
        if !s.h.is_awaited() {
            self.written(engine, s);
        }
    }

    fn written(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        faults::leave(Window::BetweenMemberWrites);
        if s.kind == Kind::Live {
            faults::leave(Window::JournalDurableDataNot);
        }
        engine.intent.end(engine.shared.layout.region_of(s.stripe), engine.rounds.begun());
        self.settle(engine, s);
    }

    fn settle(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        self.phase.set(Phase::Settling);
        if engine.shared.is_offline() {
            return self.end(engine, s, Status::NAMESPACE_NOT_READY);
        }
        if !engine.is_stable() && !faults::is(Mutant::AckBeforeEpoch) {
            return engine.park(self.clone());
        }
        match s.kind {
            Kind::First | Kind::Fresh => engine.map.wrote(&engine.shared, s.stripe),
            Kind::Live => {
                s.slot = None;
                let round = engine.needs_rounds().then(|| engine.rounds.begun() + 1);
                engine.journal.done(s.id, round);
                s.id = 0;
            }
        }
        s.advance(&engine.shared.layout);
        if s.is_done(&engine.shared.layout) {
            return self.end(engine, s, Status::SUCCESS);
        }
        self.let_go(engine, s);
        self.begin(engine, s);
    }

    /// What the array knows of the stripe is settled: the host is answered, as far as nobody uses its memory.
    fn end(&self, engine: &Rc<Engine>, s: &mut State, status: Status) {
        s.outcome = status;
        if s.kind == Kind::Live && s.id != 0 {
            // Numbered: the slot is the journal's until the transaction is retired. Offline, that is never.
            s.slot = None;
        }
        s.id = 0;
        self.let_go(engine, s);
        self.answer(engine, s);
    }

    fn answer(&self, engine: &Rc<Engine>, s: &mut State) {
        let commit = s.kind != Kind::Live && !faults::is(Mutant::FuaDropped);
        let (outcome, refused) = (s.outcome, s.refused);
        s.h.take_hosts(|i, io| {
            let status = if refused >> i & 1 != 0 { Status::UNRECOVERED_READ_ERROR } else { outcome };
            if commit && status.is_ok() && io.flags().has(IoFlags::FUA) {
                engine.map.ack_when_durable(io);
            } else {
                io.complete_later(status);
            }
        });
        self.phase.set(if s.h.is_lent() { Phase::Lingering } else { Phase::Ended });
    }

    /// The request to the member of strip `i` has ended, or is not waited for.
    fn strip_ended(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State, i: usize, failed: bool) {
        let member = &engine.members[engine.shared.layout.slot_of(s.stripe, i)];
        match self.phase.get() {
            Phase::Reading if failed => {
                s.bad |= 1 << i;
                s.again = true;
            }
            Phase::Reading => {}
            _ if failed => engine.fail_member(member.slot, "a write failed"),
            _ => member.dirty.set(true),
        }
        if s.h.is_awaited() {
            return;
        }
        match self.phase.get() {
            Phase::Reading => self.reads_ended(engine, s),
            Phase::Journaling => self.records_written(engine, s),
            _ => self.written(engine, s),
        }
    }
}

/// The numbers of the bits that are set.
pub(super) fn masked(mut mask: u64) -> impl Iterator<Item = usize> + Clone {
    std::iter::from_fn(move || {
        let i = mask.trailing_zeros() as usize;
        (mask != 0).then(|| {
            mask &= mask - 1;
            i
        })
    })
}

impl Submitter for Txn {
    fn io_done(self: Rc<Self>, io: IoRef, tag: u64) {
        let engine = self.engine.borrow().clone();
        let Some(engine) = engine else { return io.release() };
        self.run(&engine, |me, engine, s| {
            let base = 2 * engine.shared.layout.n();
            let Some(landed) = engine.landed(&mut s.h, me, s.stripe, base, io, tag) else { return };
            if landed.awaited {
                me.strip_ended(engine, s, landed.strip, landed.failed);
            } else if me.phase.get() == Phase::Lingering {
                me.answer(engine, s);
            }
        });
    }
}
