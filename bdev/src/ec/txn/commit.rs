//! The second half of a pass: records, and what is written in place.

use std::rc::Rc;

use super::super::engine::Engine;
use super::super::faults::{self, Mutant, Window};
use super::super::format::{RECORD_BYTES, RecordHeader};
use super::state::{Kind, State};
use super::{Phase, Txn, compute, masked};
use crate::Status;
use crate::io::Op;

impl Txn {
    /// Writes the records. `crc` says the checksum of what is written of a strip.
    #[inline(always)] // There are two, and one of them is on the path of every write.
    pub(super) fn journal(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State, crc: impl Fn(&State, usize) -> u32) {
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
                payload_crc: crc(s, i),
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

    pub(super) fn records_written(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        if engine.needs_rounds() && !faults::is(Mutant::JournalBarrierSkipped) {
            self.phase.set(Phase::Barrier);
            engine.round_for(self.clone());
        } else {
            self.gate(engine, s);
        }
    }

    /// All before is done: data may be overwritten in place if no failure is without its superblocks, and what missing members
    /// miss by it is noted.
    pub(super) fn gate(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        self.phase.set(Phase::Gate);
        if engine.shared.is_offline() {
            return self.end(engine, s, Status::NAMESPACE_NOT_READY);
        }
        engine.look_out();
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

    pub(super) fn write(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
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

    pub(super) fn written(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        faults::leave(Window::BetweenMemberWrites);
        if s.kind == Kind::Live {
            faults::leave(Window::JournalDurableDataNot);
        }
        engine.intent.end(engine.shared.layout.region_of(s.stripe), engine.rounds.begun());
        self.settle(engine, s);
    }

    pub(super) fn settle(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        self.phase.set(Phase::Settling);
        if engine.shared.is_offline() {
            return self.end(engine, s, Status::NAMESPACE_NOT_READY);
        }
        engine.look_out();
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
}
