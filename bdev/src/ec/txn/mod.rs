//! One write transaction: the writes of a host that are done together in one stripe.
//!
//! Read what is needed, compute parity, write records, make them durable, write in place, acknowledge. Each step begins when all
//! requests of the step before have come back. `docs/ec.md` says why the steps are these.

mod commit;
mod compute;
mod elsewhere;
pub(super) mod plan;
mod prepare;
pub(super) mod rows;
mod state;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use longshore_nvme::wire::Status;

pub(super) use self::compute::range;
use self::state::{Kind, State};
use super::child::End;
use super::engine::Engine;
use super::faults::{self, Mutant};
use crate::frame::Submitter;
use crate::io::{IoFlags, IoRef};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// Waits for memory, requests or a slot of the journal; holds none of them.
    Starved,
    Reading,
    /// An accel core decodes what could not be read.
    Decoding,
    /// An accel core computes parity.
    Encoding,
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
                me.strip_ended(engine, s, i, End::Failed);
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
    fn strip_ended(self: &Rc<Self>, engine: &Rc<Engine>, s: &mut State, i: usize, end: End) {
        let failed = end != End::Done;
        let member = &engine.members[engine.shared.layout.slot_of(s.stripe, i)];
        match self.phase.get() {
            Phase::Reading if failed => {
                s.bad |= 1 << i;
                s.faulty |= u64::from(end == End::Faulty) << i;
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
                me.strip_ended(engine, s, landed.strip, landed.end);
            } else if me.phase.get() == Phase::Lingering {
                me.answer(engine, s);
            }
        });
    }
}
