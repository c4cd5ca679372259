//! The engine of an array on its home core: who may go on, who waits for what, and what happens when a member fails.

mod failure;
mod serve;
mod starve;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Waker;

use longshore_accel::{Channel as Engines, Coder, Offload, Rebuilder};
use longshore_reactor::{DmaBuf, Timer};
use uuid::Uuid;

pub(super) use self::starve::Starved;
use super::alternate::Offers;
use super::clear::Clear;
use super::drain::Drain;
use super::event::Event;
use super::flush::Rounds;
use super::format::{Stamp, Superblock};
use super::intent::Intent;
use super::journal::Journal;
use super::map::Map;
use super::member::Member;
use super::meta::Meta;
use super::read::Read;
use super::rebuild::Rebuilds;
use super::shared::Shared;
use super::signal::{Signal, Turn};
use super::spare::Spare;
use super::stripe::Stripes;
use super::tuning::Tuning;
use super::txn::{Txn, masked};
use crate::core::CoreState;
use crate::io::IoRef;

/// Decoders kept.
const DECODERS: usize = 256;

/// What an engine is made of.
pub(super) struct Parts {
    pub(super) accel: Engines,
    pub(super) coder: Coder,
    pub(super) offload: Option<Offload>,
    pub(super) head: Superblock,
    /// See [`Assembly::quorum`](super::assemble::Assembly::quorum).
    pub(super) quorum: usize,
    pub(super) tuning: Tuning,
    /// As many zeroes as [`ZEROES`](super::memory::ZEROES) says.
    pub(super) zeroes: DmaBuf,
    pub(super) nonce: u64,
    pub(super) events: Box<dyn Fn(Event)>,
}

/// See the module.
pub(super) struct Engine {
    pub(super) shared: Arc<Shared>,
    pub(super) core: Rc<CoreState>,
    /// What adds and takes checksums, by the engines that were assigned when the array was started.
    pub(super) accel: Engines,
    pub(super) coder: Coder,
    /// The way to the accel cores, if there are any, for what would keep this core for long.
    pub(super) offload: Option<Offload>,
    pub(super) array: Uuid,
    pub(super) tuning: Tuning,
    pub(super) members: Vec<Member>,
    pub(super) zeroes: DmaBuf,
    /// For one transaction or read that waited long for memory.
    pub(super) spare: Rc<Spare>,
    pub(super) stripes: Stripes,
    pub(super) journal: Journal,
    pub(super) rounds: Rounds,
    pub(super) map: Map,
    pub(super) intent: Intent,
    pub(super) meta: Meta,
    /// The session that records carry.
    pub(super) session: Cell<u64>,
    /// This session's number in superblocks.
    pub(super) nonce: u64,
    /// The superblock last written, of whatever slot.
    pub(super) table: RefCell<Superblock>,
    /// The fewest members in sync with which the array runs: that of the table, or k after a salvage that did not find as many.
    pub(super) quorum: Cell<usize>,
    /// One update of the superblocks at a time.
    pub(super) establishing: Turn,
    /// By slot, the last superblock that the member is known to have taken.
    pub(super) given: RefCell<Vec<Stamp>>,
    /// Members that failed so far: a failure that no superblock names yet makes the array unstable.
    pub(super) failures: Cell<u64>,
    unstable: Cell<bool>,
    pub(super) failed: Signal,
    pub(super) rebuild: Rebuilds,
    pub(super) drain: Drain,
    /// Members whose device is being let go: bit `i` is slot `i`.
    departing: Cell<u64>,
    /// Reconstructions that may be made to stay.
    pub(super) offers: Offers,
    closing: Cell<bool>,
    /// Of the array, once it is offline.
    pub(super) why_offline: Cell<&'static str>,
    parked: RefCell<Vec<Rc<Txn>>>,
    stable_waiters: RefCell<Vec<Waker>>,
    starved: RefCell<VecDeque<Starved>>,
    feeding: Cell<bool>,
    feed_again: Cell<bool>,
    /// Those who wait have waited long.
    in_need: Cell<bool>,
    /// Stripes whose waiting requests may go on.
    to_pump: RefCell<VecDeque<u64>>,
    pumping: Cell<bool>,
    look_again: RefCell<Option<Timer>>,
    pub(super) slots_wanted: Signal,
    txns: RefCell<Vec<Rc<Txn>>>,
    reads: RefCell<Vec<Rc<Read>>>,
    clears: RefCell<Vec<Rc<Clear>>>,
    /// All that there are, idle or not.
    all_txns: RefCell<Vec<Weak<Txn>>>,
    pub(super) all_reads: RefCell<Vec<Weak<Read>>>,
    grace: RefCell<Option<Timer>>,
    gathered: RefCell<Vec<IoRef>>,
    decoders: RefCell<HashMap<(u64, u64), Rc<Rebuilder>>>,
    watchdog: RefCell<Option<Timer>>,
    watching: Cell<bool>,
    /// Ticks when the watchdog was set.
    watched_from: Cell<u64>,
    /// Ticks after which nobody has looked after the members for longer than their patience.
    late_at: Cell<u64>,
    /// Nobody had, and others may have taken the members over meanwhile.
    suspicious: Cell<bool>,
    events: Box<dyn Fn(Event)>,
}

impl Engine {
    pub(super) fn new(shared: Arc<Shared>, core: Rc<CoreState>, parts: Parts) -> Rc<Engine> {
        let Parts { accel, coder, offload, head, quorum, tuning, zeroes, nonce, events } = parts;
        let l = &shared.layout;
        let spare = Rc::new(Spare::new(l, core.reactor().dma().limit()));
        Rc::new(Engine {
            core,
            accel,
            coder,
            offload,
            array: head.array,
            tuning,
            members: (0..l.n()).map(|slot| Member::new(&shared, slot)).collect(),
            zeroes,
            spare,
            stripes: Stripes::default(),
            journal: Journal::new(l.journal_slots),
            rounds: Rounds::default(),
            map: Map::new(l),
            intent: Intent::new(l),
            meta: Meta::default(),
            session: Cell::new(head.journal_session),
            nonce,
            table: RefCell::new(head),
            quorum: Cell::new(quorum),
            establishing: Turn::default(),
            given: RefCell::new(vec![Stamp::default(); l.n()]),
            failures: Cell::new(0),
            unstable: Cell::new(false),
            failed: Signal::default(),
            rebuild: Rebuilds::new(l.n(), l.stripes, l.region_shift),
            drain: Drain::default(),
            departing: Cell::new(0),
            offers: Offers::default(),
            closing: Cell::new(false),
            why_offline: Cell::new("too few of its members could be started"),
            parked: RefCell::default(),
            stable_waiters: RefCell::default(),
            starved: RefCell::default(),
            feeding: Cell::new(false),
            feed_again: Cell::new(false),
            in_need: Cell::new(false),
            to_pump: RefCell::default(),
            pumping: Cell::new(false),
            look_again: RefCell::default(),
            slots_wanted: Signal::default(),
            txns: RefCell::default(),
            reads: RefCell::default(),
            clears: RefCell::default(),
            all_txns: RefCell::default(),
            all_reads: RefCell::default(),
            grace: RefCell::default(),
            gathered: RefCell::default(),
            decoders: RefCell::default(),
            watchdog: RefCell::default(),
            watching: Cell::new(false),
            watched_from: Cell::new(0),
            late_at: Cell::new(u64::MAX),
            suspicious: Cell::new(false),
            events,
            shared,
        })
    }

    // Members.

    /// Members in sync: bit `i` is slot `i`. Only they are read, and only they count.
    pub(super) fn live(&self) -> u64 {
        self.shared.readable()
    }

    /// Members that superblocks, bitmaps, records and flushes go to: those in sync, and those that are being rebuilt.
    pub(super) fn written_to(&self) -> u64 {
        self.live() | self.rebuild.fillings.mask()
    }

    /// Strips of `stripe` that writes go to: those in sync, and those of members being rebuilt that are filled. Who has the stripe's lock finds
    /// the same ones until a member fails.
    pub(super) fn up_to_write(&self, stripe: u64) -> u64 {
        let up = self.up(stripe);
        if self.rebuild.fillings.mask() == 0 {
            return up;
        }
        let l = &self.shared.layout;
        masked(self.rebuild.fillings.synced(stripe)).fold(up, |up, slot| up | 1 << l.index_at(stripe, slot))
    }

    /// Members, by slot, that are being rebuilt and lack `stripe`: what is written to it is not theirs.
    pub(super) fn lacking(&self, stripe: u64) -> u64 {
        let fillings = &self.rebuild.fillings;
        if fillings.mask() == 0 { 0 } else { fillings.mask() & !fillings.synced(stripe) }
    }

    /// Strips of `stripe` that can be read: bit `i` is strip `i`.
    pub(super) fn up(&self, stripe: u64) -> u64 {
        let l = &self.shared.layout;
        let live = self.live();
        let all = (1u64 << l.n()) - 1;
        if live == all {
            return all;
        }
        masked(live).fold(0, |up, slot| up | 1 << l.index_at(stripe, slot))
    }

    /// A request could not be sent to a member: it is gone. But an array that is offline sends nothing that changes members.
    pub(super) fn lost(self: &Rc<Self>, slot: usize) {
        if !self.shared.is_offline() {
            self.fail_member(slot, "it is gone");
        }
    }

    pub(super) fn tell(&self, event: Event) {
        (self.events)(event);
    }

    /// The decoder of `lost` from exactly the strips of `sources`.
    pub(super) fn decoder(&self, lost: u64, sources: u64) -> Rc<Rebuilder> {
        let mut all = self.decoders.borrow_mut();
        if let Some(d) = all.get(&(lost, sources)) {
            return d.clone();
        }
        let (l, s): (Vec<_>, Vec<_>) = (masked(lost).collect(), masked(sources).collect());
        let d = self.coder.decoder(&l, &s).expect("any k strips determine the others: the matrix is MDS");
        if all.len() >= DECODERS {
            all.clear();
        }
        let d = Rc::new(d);
        all.insert((lost, sources), d.clone());
        d
    }

    // Counting.

    pub(super) fn count_read(&self, bytes: u32) {
        self.shared.counters.member_reads.add(1);
        self.shared.counters.member_read_bytes.add(u64::from(bytes));
    }

    pub(super) fn count_write(&self, bytes: u32) {
        self.shared.counters.member_writes.add(1);
        self.shared.counters.member_written_bytes.add(u64::from(bytes));
    }

    pub(super) fn count_record(&self, bytes: u32) {
        self.shared.counters.journal_writes.add(1);
        self.shared.counters.journal_written_bytes.add(u64::from(bytes));
    }

    // The end.

    pub(super) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Nothing holds the array any more and nothing is in flight: lets tasks end and gives everything back.
    pub(super) fn close(&self) {
        self.closing.set(true);
        for s in [&self.map.signal, &self.intent.signal, &self.failed, &self.slots_wanted, &self.rebuild.signal] {
            s.set();
        }
        self.watchdog.take();
        self.look_again.take();
        self.grace.take();
        self.spare.close();
        self.rounds.close();
        self.meta.close();
        self.txns.take();
        self.reads.take();
        self.members.iter().for_each(Member::close);
        self.shared.descs().iter_mut().for_each(|d| drop(d.take()));
    }

    /// Requests that are set aside for flushes and metadata.
    pub(super) fn stock(&self) -> Result<(), crate::registry::BdevError> {
        let l = &self.shared.layout;
        let n = l.n();
        let limit = self.core.reactor().dma().limit() >> 10;
        let dry = || {
            crate::registry::BdevError::NoMemory(format!(
                "array '{}': no requests or memory left; the core's pool of DMA memory is limited to {limit} KiB",
                self.shared.name
            ))
        };
        // A request that hangs on a failed member is not there for others.
        for i in 0..4 * (n + l.m) {
            let io = self.core.get_child(0).ok_or_else(dry)?;
            if i < n { self.rounds.stock(io) } else { self.meta.stock(io) }
        }
        for _ in 0..n + 4 * (l.m + 1) {
            self.meta.stock_page(self.core.reactor().dma().alloc(4096).ok_or_else(dry)?);
        }
        self.spare.stock(l, &self.core).map_err(|bytes| {
            crate::registry::BdevError::NoMemory(format!(
                "array '{}': {} KiB of DMA memory and {n} requests are to be set aside for its writes and are not to be had; the core's pool \
                 of DMA memory is limited to {limit} KiB: raise the limit, or use fewer members",
                self.shared.name,
                bytes >> 10,
            ))
        })
    }
}
