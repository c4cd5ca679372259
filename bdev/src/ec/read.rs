//! Reads on the home core: several strips at once, and whatever has to be reconstructed.
//!
//! Strips that can be read are read without a lock: each block is as some write left it. If something is missing or unreadable, the
//! stripe is locked against writers, as many strips are read as decode it, piece by piece, and what a live member could not read is
//! written back to it.

mod elsewhere;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use longshore_nvme::wire::Status;

use super::child::{Child, End};
use super::engine::{Engine, Starved};
use super::layout::{Layout, MAX_MEMBERS};
use super::memory::Holdings;
use super::stripe::Waiting;
use super::txn::masked;
use super::txn::plan::{Span, strips_of, within};
use crate::frame::Submitter;
use crate::io::{IoRef, Op};

/// Bytes of each strip that are decoded at once.
const PIECE: u32 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// Waits for requests, then reads what can be read.
    Starved,
    Direct,
    /// Waits for the stripe.
    Queued,
    /// Has the stripe; waits for memory.
    Hungry,
    Sources,
    /// An accel core decodes.
    Decoding,
    Healing,
    /// Over, but for requests that hang on a failed member and still use its memory.
    Lingering,
    Ended,
}

/// One read of a host within one stripe.
pub(super) struct Read {
    engine: RefCell<Option<Rc<Engine>>>,
    phase: Cell<Phase>,
    s: RefCell<State>,
}

struct State {
    h: Holdings,
    stripe: u64,
    /// Bytes of the stripe's data.
    start: u64,
    end: u64,
    /// Data strips that are to be reconstructed.
    bad: u64,
    /// Of them, those that stay as they are on their members, which may well have them.
    kept: u64,
    /// Of those, the ones that the present piece cannot do without.
    needed: u64,
    /// Strips that could not be read in the present piece.
    exclude: u64,
    /// Strips whose member does not read, as the present piece shows.
    faulty: u64,
    /// Rows of the present piece.
    cur: Span,
    /// Single blocks until here: too much was lost of a larger piece.
    fine: u32,
    read: u64,
    lost: u64,
    failed: bool,
    has_lock: bool,
    /// It waited long for memory: it may take what is set aside.
    in_need: bool,
}

impl Read {
    pub(super) fn new(engine: &Engine) -> Rc<Read> {
        let n = engine.shared.layout.n();
        Rc::new(Read {
            engine: RefCell::default(),
            phase: Cell::new(Phase::Idle),
            s: RefCell::new(State {
                h: Holdings::new(n, 2 * n, engine.zeroes.clone(), engine.spare.clone()),
                stripe: 0,
                start: 0,
                end: 0,
                bad: 0,
                kept: 0,
                needed: 0,
                exclude: 0,
                faulty: 0,
                cur: Span::default(),
                fine: 0,
                read: 0,
                lost: 0,
                failed: false,
                has_lock: false,
                in_need: false,
            }),
        })
    }

    /// Starts the read `io`. The strips in `bad` could not be read, or were not, those in `kept`.
    pub(super) fn start(self: &Rc<Self>, engine: &Rc<Engine>, io: IoRef, bad: u64, kept: u64) {
        self.engine.replace(Some(engine.clone()));
        let l = engine.shared.layout;
        self.run(engine, |me, engine, s| {
            let per = l.stripe_blocks();
            s.stripe = io.lba() / per;
            s.start = (io.lba() % per) * u64::from(l.block);
            s.end = s.start + u64::from(io.nblocks()) * u64::from(l.block);
            (s.bad, s.kept, s.needed, s.fine, s.exclude) = (bad, kept, 0, 0, 0);
            (s.has_lock, s.in_need) = (false, false);
            s.cur = Span::default();
            let enough = io.buf_len() as u64 >= s.end - s.start;
            s.h.hold(io);
            if !enough {
                return me.end(s, Status::DATA_SGL_LENGTH_INVALID);
            }
            me.direct(engine, s);
        });
    }

    /// Tries once more to get what it waits for. False: it waits again.
    pub(super) fn retry(self: &Rc<Self>, engine: &Rc<Engine>) -> bool {
        let mut fed = true;
        self.run(engine, |me, engine, s| {
            match me.phase.get() {
                Phase::Starved => me.direct(engine, s),
                _ => me.sources(engine, s),
            }
            fed = !matches!(me.phase.get(), Phase::Starved | Phase::Hungry);
        });
        fed
    }

    /// The stripe is locked against writers.
    pub(super) fn locked(self: &Rc<Self>, engine: &Rc<Engine>) {
        self.run(engine, |me, engine, s| {
            s.has_lock = true;
            let l = &engine.shared.layout;
            if !engine.shared.is_mapped(s.stripe) {
                let len = (s.end - s.start) as usize;
                s.h.copy_to_host(0, 0, len, None);
                return me.end(s, Status::SUCCESS);
            }
            let rows = rows(l, s);
            s.cur = Span { lo: rows.lo, hi: rows.lo };
            me.next_piece(engine, s);
        });
    }

    /// The member in `slot` failed: requests that hang on it are not waited for, but for those that read to the host's memory.
    pub(super) fn give_up(self: &Rc<Self>, engine: &Rc<Engine>, slot: usize) {
        if !matches!(self.phase.get(), Phase::Sources | Phase::Healing) {
            return;
        }
        self.run(engine, |me, engine, s| {
            let l = &engine.shared.layout;
            let i = l.index_at(s.stripe, slot);
            if s.h.give_up(l.n() + i) {
                me.strip_ended(engine, s, i, End::Failed);
            }
        });
    }

    /// The member in `slot` is slow: what is read from it into memory of the array is read from others instead. It comes in where it was
    /// to come in, which nobody else uses until then.
    pub(super) fn hedge(self: &Rc<Self>, engine: &Rc<Engine>, slot: usize) {
        if self.phase.get() != Phase::Sources {
            return;
        }
        self.run(engine, |me, engine, s| {
            let l = &engine.shared.layout;
            let i = l.index_at(s.stripe, slot);
            if s.needed >> i & 1 == 0 && s.h.give_up(l.n() + i) {
                me.strip_ended(engine, s, i, End::Late);
            }
        });
    }

    fn run(self: &Rc<Self>, engine: &Rc<Engine>, step: impl FnOnce(&Rc<Self>, &Rc<Engine>, &mut State)) {
        let (stripe, over, unlock) = {
            let mut s = self.s.borrow_mut();
            step(self, engine, &mut s);
            let over = matches!(self.phase.get(), Phase::Lingering | Phase::Ended);
            (s.stripe, over, over && std::mem::take(&mut s.has_lock))
        };
        match self.phase.get() {
            Phase::Ended => {
                self.phase.set(Phase::Idle);
                self.engine.replace(None);
                engine.read_idle(self.clone());
            }
            Phase::Queued => engine.pump(stripe),
            _ => {}
        }
        if unlock {
            engine.unread(stripe);
        }
        if over {
            engine.feed();
        }
    }

    fn end(&self, s: &mut State, status: Status) {
        s.h.take_hosts(|_, io| io.complete_later(status));
        s.h.give_back();
        self.phase.set(if s.h.is_lent() { Phase::Lingering } else { Phase::Ended });
    }

    /// Reads every strip that can be read.
    fn direct(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        if engine.shared.is_offline() {
            return self.end(s, Status::NAMESPACE_NOT_READY);
        }
        if !engine.shared.is_mapped(s.stripe) {
            let len = (s.end - s.start) as usize;
            s.h.copy_to_host(0, 0, len, None);
            return self.end(s, Status::SUCCESS);
        }
        let l = engine.shared.layout;
        let readable = engine.shared.readable();
        let mut wanted = 0u64;
        for d in strips_of(l.strip, s.start, s.end) {
            let slot = l.slot_of(s.stripe, d);
            if readable >> slot & 1 == 0 {
                s.bad |= 1 << d;
            } else if engine.shared.is_slow(slot) {
                (s.bad, s.kept) = (s.bad | 1 << d, s.kept | 1 << d);
            }
            wanted |= 1 << d;
        }
        wanted &= !s.bad;
        if !s.h.reserve(&engine.core, wanted.count_ones() as usize, std::iter::empty()) {
            self.phase.set(Phase::Starved);
            return engine.starve_other(Starved::Read(self.clone()));
        }
        self.phase.set(Phase::Direct);
        for d in masked(wanted) {
            let span = within(l.strip, d, s.start, s.end);
            let from = d as u64 * u64::from(l.strip) + u64::from(span.lo) - s.start;
            s.h.clear(l.n() + d);
            s.h.push_host(l.n() + d, 0, from as usize, span.len() as usize);
            if !self.send(engine, s, d, Op::Read, span) {
                s.bad |= 1 << d;
            }
        }
        if !s.h.is_awaited() {
            self.direct_ended(engine, s);
        }
    }

    fn direct_ended(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        if s.bad == 0 {
            return self.end(s, Status::SUCCESS);
        }
        engine.shared.counters.reconstructed_reads.add(u64::from(s.bad.count_ones()));
        s.h.give_back();
        self.phase.set(Phase::Queued);
        engine.stripes.wait(s.stripe, Waiting::Read(self.clone()));
    }

    /// Sends a request over vector `n + i` to the member of strip `i`. False: there is none.
    fn send(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State, i: usize, op: Op, span: Span) -> bool {
        let l = &engine.shared.layout;
        if op == Op::Read {
            engine.count_read(span.len());
        } else {
            engine.count_write(span.len());
        }
        let at = l.strip_offset(s.stripe) + u64::from(span.lo);
        // What cannot be done without is waited for.
        let hedge = op == Op::Read && s.needed >> i & 1 == 0;
        let child = Child { stripe: s.stripe, strip: i, vector: l.n() + i, op, at, len: span.len(), hedge };
        engine.send(&mut s.h, self, child)
    }

    /// Goes on behind the piece that was reconstructed.
    fn next_piece(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        let l = &engine.shared.layout;
        s.h.give_back();
        let rows = rows(l, s);
        let lo = s.cur.hi;
        if lo >= rows.hi {
            return self.end(s, Status::SUCCESS);
        }
        let most = if lo < s.fine { l.block } else { PIECE.max(l.block) };
        s.cur = Span { lo, hi: rows.hi.min(lo + most) };
        // A single block of a strip may be readable though the strip as a whole is not.
        s.exclude = if lo < s.fine { 0 } else { s.bad };
        (s.needed, s.faulty) = (0, 0);
        self.sources(engine, s);
    }

    /// Reads what the present piece is decoded from.
    fn sources(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        if engine.shared.is_offline() {
            return self.end(s, Status::NAMESPACE_NOT_READY);
        }
        let l = engine.shared.layout;
        let good = engine.up(s.stripe) & !s.exclude;
        let here = masked(s.bad).filter(|&d| overlap(&l, s, d).is_some()).fold(0, |mask, d| mask | 1u64 << d);
        s.lost = here & !good;
        s.read = here & good;
        if s.lost != 0 {
            let slow = masked(engine.shared.slow()).fold(0u64, |mask, slot| mask | 1 << l.index_at(s.stripe, slot));
            let rest = good & !s.read;
            for i in masked(rest & !slow).chain(masked(rest & slow)) {
                if s.read.count_ones() as usize >= l.k {
                    break;
                }
                s.read |= 1 << i;
            }
            if (s.read.count_ones() as usize) < l.k {
                if s.exclude & s.kept & !s.needed != 0 {
                    // Not without them. Once: what fails then has failed.
                    s.needed |= s.kept;
                    s.exclude &= !s.kept;
                    return self.sources(engine, s);
                }
                return self.too_few(engine, s);
            }
        }
        let len = s.cur.len() as usize;
        let (read, lost) = (s.read, s.lost);
        let bufs = masked(read | lost).map(move |i| (i, len));
        if !s.h.reserve(&engine.core, l.n(), bufs) {
            s.in_need |= engine.is_in_need();
            if s.in_need && s.h.take_spare() {
                s.cur.hi = s.cur.hi.min(s.cur.lo + engine.spare.rows);
                return self.sources(engine, s);
            }
            self.phase.set(Phase::Hungry);
            return engine.starve_other(Starved::Read(self.clone()));
        }
        self.phase.set(Phase::Sources);
        s.failed = false;
        for i in masked(read) {
            s.h.clear(l.n() + i);
            s.h.push_buf(l.n() + i, i, 0, len);
            let cur = s.cur;
            if !self.send(engine, s, i, Op::Read, cur) {
                s.exclude |= 1 << i;
                s.failed = true;
            }
        }
        if !s.h.is_awaited() {
            self.sources_read(engine, s);
        }
    }

    fn too_few(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        if s.cur.lo >= s.fine {
            // Block by block, not every one may have lost too much; and all are asked once more.
            s.fine = s.cur.hi;
            s.cur.hi = s.cur.lo;
            return self.next_piece(engine, s);
        }
        let l = engine.shared.layout;
        masked(s.faulty).for_each(|i| engine.does_not_read(l.slot_of(s.stripe, i)));
        if engine.shared.is_offline() {
            // Nothing is wrong with the block: its members are not there.
            return self.end(s, Status::NAMESPACE_NOT_READY);
        }
        engine.shared.counters.unrecovered_reads.add(1);
        self.end(s, Status::UNRECOVERED_READ_ERROR);
    }

    fn sources_read(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        if s.failed {
            // What hangs keeps its memory.
            s.h.give_back();
            return self.sources(engine, s);
        }
        let l = engine.shared.layout;
        let len = s.cur.len() as usize;
        if s.lost != 0 {
            let decoder = engine.decoder(s.lost, s.read);
            let mut sources = [0; MAX_MEMBERS];
            let mut results = [(0, 0); MAX_MEMBERS];
            sources.iter_mut().zip(decoder.sources()).for_each(|(v, &i)| *v = l.n() + i);
            results.iter_mut().zip(decoder.lost()).for_each(|(r, &i)| *r = (i, 0));
            let (ns, nr) = (decoder.sources().len(), decoder.lost().len());
            if let Some(offload) = &engine.offload
                && offload.pays((ns * len) as u64, nr as u64)
            {
                let job = s.h.job_of(&engine.accel, &decoder, &sources[..ns], &results[..nr], len);
                return self.decode_elsewhere(engine, s, offload, job);
            }
            s.h.combine(&sources[..ns], &results[..nr], len, |src, dst| decoder.decode(src, dst));
        }
        self.decoded(engine, s);
    }

    /// All of the piece is there.
    #[inline]
    fn decoded(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        let l = engine.shared.layout;
        for d in masked(s.bad) {
            let Some(part) = overlap(&l, s, d) else { continue };
            let to = d as u64 * u64::from(l.strip) + u64::from(part.lo) - s.start;
            let off = (part.lo - s.cur.lo) as usize;
            s.h.copy_to_host(0, to as usize, part.len() as usize, Some((d, off)));
        }
        self.heal(engine, s);
    }

    /// Writes back what a live member could not read.
    fn heal(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State) {
        self.phase.set(Phase::Healing);
        let l = engine.shared.layout;
        engine.look_out();
        let heal = if engine.is_suspicious() { 0 } else { s.lost & engine.up(s.stripe) & !s.kept };
        for i in masked(heal) {
            engine.shared.counters.healed_reads.add(1);
            s.h.clear(l.n() + i);
            s.h.push_buf(l.n() + i, i, 0, s.cur.len() as usize);
            let cur = s.cur;
            self.send(engine, s, i, Op::Write, cur);
        }
        if !s.h.is_awaited() {
            self.next_piece(engine, s);
        }
    }
}

impl Read {
    /// The request to the member of strip `i` has ended, or is not waited for.
    fn strip_ended(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State, i: usize, end: End) {
        let failed = end != End::Done;
        if end == End::Late {
            s.kept |= 1 << i;
        }
        let member = &engine.members[engine.shared.layout.slot_of(s.stripe, i)];
        match self.phase.get() {
            Phase::Direct if failed => s.bad |= 1 << i,
            Phase::Sources if failed => {
                s.exclude |= 1 << i;
                s.faulty |= u64::from(end == End::Faulty) << i;
                s.failed = true;
            }
            Phase::Healing if failed => engine.fail_member(member.slot, "a write failed"),
            Phase::Healing => member.dirty.set(true),
            _ => {}
        }
        if s.h.is_awaited() {
            return;
        }
        match self.phase.get() {
            Phase::Direct => self.direct_ended(engine, s),
            Phase::Sources => self.sources_read(engine, s),
            _ => self.next_piece(engine, s),
        }
    }
}

/// Rows that hold something to reconstruct.
fn rows(l: &Layout, s: &State) -> Span {
    let mut rows = Span { lo: u32::MAX, hi: 0 };
    for d in masked(s.bad) {
        let span = within(l.strip, d, s.start, s.end);
        rows = Span { lo: rows.lo.min(span.lo), hi: rows.hi.max(span.hi) };
    }
    rows
}

/// What is wanted of strip `d` in the present piece.
fn overlap(l: &Layout, s: &State, d: usize) -> Option<Span> {
    let span = within(l.strip, d, s.start, s.end);
    let part = Span { lo: span.lo.max(s.cur.lo), hi: span.hi.min(s.cur.hi) };
    (part.lo < part.hi).then_some(part)
}

impl Submitter for Read {
    fn io_done(self: Rc<Self>, io: IoRef, tag: u64) {
        let engine = self.engine.borrow().clone();
        let Some(engine) = engine else { return io.release() };
        self.run(&engine, |me, engine, s| {
            let base = engine.shared.layout.n();
            let Some(landed) = engine.landed(&mut s.h, me, s.stripe, base, io, tag) else { return };
            if landed.awaited {
                me.strip_ended(engine, s, landed.strip, landed.end);
            } else if me.phase.get() == Phase::Lingering && !s.h.is_lent() {
                me.phase.set(Phase::Ended);
            }
        });
    }
}
