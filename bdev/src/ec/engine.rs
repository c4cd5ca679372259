//! The engine of an array on its home core: who may go on, who waits for what, and what happens when a member fails.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use longshore_accel::erasure::{Codec, Decoder};
use longshore_nvme::wire::Status;
use longshore_reactor::{DmaBuf, Timer};
use uuid::Uuid;

use super::alternate::Offers;
use super::clear::Clear;
use super::device::Missed;
use super::drain::Drain;
use super::event::Event;
use super::flush::{Offline, Rounds};
use super::format::{MemberState, Stamp, Superblock};
use super::intent::Intent;
use super::journal::Journal;
use super::lower::Departure;
use super::map::Map;
use super::member::Member;
use super::meta::Meta;
use super::read::Read;
use super::rebuild::Rebuilds;
use super::remote::Proxies;
use super::shared::Shared;
use super::signal::{Signal, Turn};
use super::spare::Spare;
use super::stripe::{Ready, Stripes, Waiting};
use super::tuning::Tuning;
use super::txn::rows::Join;
use super::txn::{Txn, masked, range};
use crate::core::CoreState;
use crate::io::{IoFlags, IoId, IoRef, Op};

/// How often those who wait for memory look again, if nobody gives any back before.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// How long requests to a member that failed have until those who sent them go on without them.
const GRACE: Duration = Duration::from_millis(100);
/// Clears kept to serve again.
const CLEARS: usize = 64;
/// Decoders kept.
const DECODERS: usize = 256;

/// Who waits for memory, requests or slots, and holds none.
pub(super) enum Starved {
    Txn(Rc<Txn>),
    Read(Rc<Read>),
    Clear(Rc<Clear>),
    Remote(Rc<Proxies>, u32),
}

/// What an engine is made of.
pub(super) struct Parts {
    pub(super) codec: Codec,
    pub(super) head: Superblock,
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
    pub(super) codec: Codec,
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
    all_reads: RefCell<Vec<Weak<Read>>>,
    grace: RefCell<Option<Timer>>,
    gathered: RefCell<Vec<IoRef>>,
    decoders: RefCell<HashMap<(u64, u64), Rc<Decoder>>>,
    watchdog: RefCell<Option<Timer>>,
    watching: Cell<bool>,
    events: Box<dyn Fn(Event)>,
}

impl Engine {
    pub(super) fn new(shared: Arc<Shared>, core: Rc<CoreState>, parts: Parts) -> Rc<Engine> {
        let Parts { codec, head, tuning, zeroes, nonce, events } = parts;
        let l = &shared.layout;
        let spare = Rc::new(Spare::new(l, core.reactor().dma().limit()));
        Rc::new(Engine {
            core,
            codec,
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
            events,
            shared,
        })
    }

    // Requests of the host.

    /// Takes a request of the host, on the home core.
    pub(super) fn submit(self: &Rc<Self>, io: IoRef) {
        let c = &self.shared.counters;
        if self.shared.is_offline() {
            return io.complete_later(Status::NAMESPACE_NOT_READY);
        }
        if io.flags().0 & (IoFlags::ALTERNATE.0 | IoFlags::HEAL.0) != 0 {
            return self.alternate(io);
        }
        match io.op() {
            Op::Read => self.read(io, 0, 0),
            Op::Write if (io.buf_len() as u64) < self.bytes(&io) => io.complete_later(Status::DATA_SGL_LENGTH_INVALID),
            Op::Write => {
                c.host_writes.add(1);
                c.host_written_bytes.add(self.bytes(&io));
                self.write(io);
            }
            Op::Flush => {
                c.host_flushes.add(1);
                self.map.flush(io);
            }
            Op::Unmap | Op::WriteZeroes => Clear::start(self, io),
            Op::Reset => io.complete_later(Status::SUCCESS),
            _ => io.complete_later(Status::INVALID_OPCODE),
        }
    }

    fn bytes(&self, io: &IoRef) -> u64 {
        u64::from(io.nblocks()) * u64::from(self.shared.layout.block)
    }

    /// Takes a request of another core, which has this to say of it: [`Missed`], or nothing.
    pub(super) fn arrived(self: &Rc<Self>, io: IoRef, hint: u32) {
        match Missed::of(hint) {
            None => self.submit(io),
            Some(missed) => self.read_missed(io, missed),
        }
    }

    /// A read whose member did not do it.
    pub(super) fn read_missed(self: &Rc<Self>, io: IoRef, missed: Missed) {
        let strip = 1 << missed.strip;
        self.read(io, strip, if missed.heal { 0 } else { strip });
    }

    /// A read within one stripe; the strips in `bad` could not be read, or were not, those in `kept`.
    pub(super) fn read(self: &Rc<Self>, io: IoRef, bad: u64, kept: u64) {
        let idle = self.reads.borrow_mut().pop();
        let read = idle.unwrap_or_else(|| {
            let read = Read::new(self);
            self.all_reads.borrow_mut().push(Rc::downgrade(&read));
            read
        });
        read.start(self, io, bad, kept);
    }

    /// A write, or a write of zeroes, within one stripe.
    pub(super) fn write(self: &Rc<Self>, io: IoRef) {
        let stripe = io.lba() / self.shared.layout.stripe_blocks();
        if !self.holds_writers(stripe) && self.stripes.lock_idle(stripe) {
            let mut one = self.gathered.take();
            one.push(io);
            self.start_txn(stripe, &mut one);
            self.gathered.replace(one);
            return;
        }
        self.stripes.wait(stripe, Waiting::Write(io));
        self.pump(stripe);
    }

    fn start_txn(self: &Rc<Self>, stripe: u64, hosts: &mut Vec<IoRef>) {
        self.offers.withdraw(stripe);
        let idle = self.txns.borrow_mut().pop();
        let txn = idle.unwrap_or_else(|| {
            let txn = Txn::new(self);
            self.all_txns.borrow_mut().push(Rc::downgrade(&txn));
            txn
        });
        self.drain.begun();
        txn.start(self, stripe, hosts);
    }

    /// Lets those go on who wait for a stripe; if this is called by one of them, after it.
    pub(super) fn pump(self: &Rc<Self>, stripe: u64) {
        self.to_pump.borrow_mut().push_back(stripe);
        if self.pumping.replace(true) {
            // Offline, each ends at once and lets the next go on: thousands, so not one inside the other.
            return;
        }
        loop {
            let next = self.to_pump.borrow_mut().pop_front();
            let Some(stripe) = next else { break };
            self.pump_one(stripe);
        }
        self.pumping.set(false);
    }

    fn pump_one(self: &Rc<Self>, stripe: u64) {
        loop {
            let mut writes = self.gathered.take();
            let l = &self.shared.layout;
            let mut join = Join::new(l.strip);
            let joins = |io: &IoRef| {
                let (start, end) = range(l, stripe, io);
                join.takes(start, end)
            };
            let ready = self.stripes.next(stripe, self.holds_writers(stripe), joins, &mut writes);
            let more = match ready {
                Ready::Write => {
                    self.start_txn(stripe, &mut writes);
                    false
                }
                Ready::Read(r) => {
                    r.locked(self);
                    true
                }
                Ready::Visit(v) => {
                    v.grant();
                    true
                }
                Ready::Clear(c) => {
                    self.offers.withdraw(stripe);
                    c.locked(stripe);
                    true
                }
                Ready::No => false,
            };
            self.gathered.replace(writes);
            if !more {
                return;
            }
        }
    }

    /// Takes back the lock of a stripe's writer.
    pub(super) fn unlock(self: &Rc<Self>, stripe: u64) {
        if self.stripes.unlock(stripe) {
            self.map.idle_now(stripe);
        }
        self.pump(stripe);
    }

    /// A transaction ended and may serve again.
    pub(super) fn txn_idle(&self, txn: Rc<Txn>) {
        self.txns.borrow_mut().push(txn);
    }

    /// A read ended and may serve again.
    pub(super) fn read_idle(&self, read: Rc<Read>) {
        self.reads.borrow_mut().push(read);
    }

    /// A clear for a request of the host.
    pub(super) fn idle_clear(&self) -> Rc<Clear> {
        let idle = self.clears.borrow_mut().pop();
        idle.filter(Clear::is_idle).unwrap_or_default()
    }

    /// A clear ended and may serve again.
    pub(super) fn clear_ended(&self, clear: Rc<Clear>) {
        let mut all = self.clears.borrow_mut();
        if all.len() < CLEARS {
            all.push(clear);
        }
    }

    /// Takes back the lock of one of a stripe's readers.
    pub(super) fn unread(self: &Rc<Self>, stripe: u64) {
        self.stripes.unread(stripe);
        self.pump(stripe);
    }

    /// Ends a write of the host early that waits for its stripe.
    pub(super) fn abort(&self, io: IoId) -> bool {
        for stripe in self.stripes.busy() {
            if let Some(io) = self.stripes.remove(stripe, io) {
                io.complete_later(Status::ABORT_REQUESTED);
                return true;
            }
        }
        false
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

    /// A member failed: nothing is sent to it any more, and nothing acknowledged until superblocks say so.
    pub(super) fn fail_member(self: &Rc<Self>, slot: usize, why: &'static str) {
        if !matches!(self.shared.state(slot), MemberState::InSync | MemberState::Rebuilding) {
            if self.rebuild.is_joining(slot) {
                self.give_up(slot);
            }
            return;
        }
        let name = self.shared.member_name(slot).unwrap_or_default();
        tracing::error!("array '{}': member {slot} ('{name}') failed: {why}", self.shared.name);
        self.shared.set_state(slot, MemberState::Failed);
        self.intent.mark_unflushed(self.members[slot].volatile.get());
        self.failures.set(self.failures.get() + 1);
        self.unstable.set(true);
        self.tell(Event::MemberFailed { slot, why });
        self.give_up(slot);
        self.shared.abort_reads(slot);
        self.flush_given_up(slot);
        self.give_up_later();
        self.rebuild.member_failed(slot);
        self.show_rebuilds();
        if (self.live().count_ones() as usize) < self.table.borrow().quorum() {
            self.go_offline("too few members are left");
        }
        self.failed.set();
    }

    /// What was aborted ends soon, or hangs: then nobody waits for it.
    fn give_up_later(self: &Rc<Self>) {
        let me = Rc::downgrade(self);
        let timer = self.core.reactor().timer(GRACE, move |_| {
            let Some(me) = me.upgrade() else { return };
            let txns: Vec<_> = me.all_txns.borrow().iter().filter_map(Weak::upgrade).collect();
            let reads: Vec<_> = me.all_reads.borrow().iter().filter_map(Weak::upgrade).collect();
            for m in me.members.iter().filter(|m| m.is_barred() && m.inflight() > 0) {
                txns.iter().for_each(|t| t.give_up(&me, m.slot));
                reads.iter().for_each(|r| r.give_up(&me, m.slot));
            }
        });
        self.grace.replace(Some(timer));
    }

    /// A request could not be sent to a member: it is gone. But an array that is offline sends nothing that changes members.
    pub(super) fn lost(self: &Rc<Self>, slot: usize) {
        if !self.shared.is_offline() {
            self.fail_member(slot, "it is gone");
        }
    }

    /// Sends nothing more to a member. What hangs on it may never end: flushes and metadata do not wait for it.
    fn give_up(&self, slot: usize) {
        self.members[slot].bar();
        self.members[slot].abort_all();
        self.meta.give_up(slot);
    }

    /// The device of a member is going away: it fails, and each core lets it go when nothing is in flight on it there.
    pub(super) fn member_gone(self: &Rc<Self>, slot: usize, why: &'static str) {
        self.fail_member(slot, why);
        self.depart(slot);
    }

    /// Lets the device in `slot`, whose member is not in use, go when nothing is in flight on it on any core.
    pub(super) fn depart(&self, slot: usize) {
        // Once: a second departure might end when another device is there.
        if self.departing.get() >> slot & 1 != 0 || self.shared.descs()[slot].is_none() {
            return;
        }
        self.departing.set(self.departing.get() | 1 << slot);
        let departure = Departure::new(&self.shared, slot);
        self.shared.leave(slot, &departure);
        self.give_up(slot);
        self.members[slot].leave(departure);
    }

    /// No core uses the device in `slot` any more.
    pub(super) fn member_left(&self, slot: usize) {
        self.departing.set(self.departing.get() & !(1 << slot));
        self.shared.close_member(slot);
    }

    /// No request is served any more.
    pub(super) fn go_offline(self: &Rc<Self>, why: &'static str) {
        if self.shared.is_offline() {
            return;
        }
        tracing::error!("array '{}' is offline: {why}", self.shared.name);
        self.shared.set_offline(true);
        self.tell(Event::Offline { why });
        // Not from here: whoever found out is in the middle of something.
        let me = self.clone();
        self.core.reactor().defer(move |_| me.resume());
    }

    pub(super) fn tell(&self, event: Event) {
        (self.events)(event);
    }

    // Gates.

    /// True if superblocks name every failed member.
    pub(super) fn is_stable(&self) -> bool {
        !self.unstable.get() && !self.shared.is_offline()
    }

    /// Superblocks name every failed member; those go on who waited for that.
    pub(super) fn stable_again(self: &Rc<Self>) {
        self.unstable.set(false);
        self.resume();
    }

    /// An update of the superblocks has ended, which names every failed member.
    pub(super) fn named_all(self: &Rc<Self>) {
        if self.unstable.get() {
            self.stable_again();
        }
    }

    /// True if a member failed that superblocks do not name yet.
    pub(super) fn has_unnamed(&self) -> bool {
        self.unstable.get()
    }

    /// Until superblocks name every failed member. Also while the session begins: then it is so from the start.
    pub(super) async fn until_stable(&self) -> Result<(), Offline> {
        poll_fn(|cx| {
            if self.shared.is_offline() {
                return Poll::Ready(Err(Offline));
            }
            if !self.unstable.get() {
                return Poll::Ready(Ok(()));
            }
            self.stable_waiters.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// `txn` waits until the array is stable or offline.
    pub(super) fn park(&self, txn: Rc<Txn>) {
        self.parked.borrow_mut().push(txn);
    }

    fn resume(self: &Rc<Self>) {
        self.stable_waiters.take().into_iter().for_each(Waker::wake);
        for t in self.parked.take() {
            t.go_on(self);
        }
        if self.shared.is_offline() {
            for t in self.intent.take_waiting() {
                t.go_on(self);
            }
            self.map.signal.set();
            self.intent.signal.set();
            self.slots_wanted.set();
            self.drain.look();
        }
        self.unblock_round();
        self.feed();
    }

    // Memory, requests, slots.

    /// True if somebody waits for memory already: later ones wait behind.
    pub(super) fn is_starving(&self) -> bool {
        !self.starved.borrow().is_empty()
    }

    /// True if those who wait may take what is set aside: they waited long.
    pub(super) fn is_in_need(&self) -> bool {
        self.in_need.get()
    }

    /// `txn` waits, and holds nothing that others need.
    pub(super) fn starve(self: &Rc<Self>, txn: Rc<Txn>) {
        self.starve_other(Starved::Txn(txn));
    }

    pub(super) fn starve_other(self: &Rc<Self>, who: Starved) {
        self.shared.counters.waits.add(1);
        self.starved.borrow_mut().push_back(who);
        if self.look_again.borrow().is_none() {
            self.look_later();
        }
    }

    fn look_later(self: &Rc<Self>) {
        let me = Rc::downgrade(self);
        let timer = self.core.reactor().timer(LOOK_AGAIN, move |_| {
            if let Some(me) = me.upgrade() {
                me.look_again.take();
                me.in_need.set(true);
                me.feed();
                me.in_need.set(false);
                if me.is_starving() {
                    me.look_later();
                }
            }
        });
        self.look_again.replace(Some(timer));
    }

    /// Something was given back: those who wait try again, in order, until one finds too little. If this is called by one of them,
    /// then after it.
    pub(super) fn feed(self: &Rc<Self>) {
        if self.feeding.replace(true) {
            return self.feed_again.set(true);
        }
        loop {
            self.feed_again.set(false);
            self.feed_in_order();
            if !self.feed_again.get() {
                break;
            }
        }
        self.feeding.set(false);
    }

    fn feed_in_order(self: &Rc<Self>) {
        let left = self.starved.borrow().len();
        for _ in 0..left {
            let next = self.starved.borrow_mut().pop_front();
            let Some(next) = next else { return };
            let fed = match next {
                Starved::Txn(t) => t.retry(self),
                Starved::Read(r) => r.retry(self),
                Starved::Clear(c) => c.advance(),
                Starved::Remote(from, at) => from.start(self, at),
            };
            if !fed {
                // Queueing itself at the end was the last thing it did: it keeps its place.
                let mut q = self.starved.borrow_mut();
                if let Some(last) = q.pop_back() {
                    q.push_front(last);
                }
                return;
            }
        }
    }

    /// Slots of the journal may be free.
    pub(super) fn slots_changed(self: &Rc<Self>) {
        if self.is_starving() {
            self.feed();
        }
    }

    /// There is no slot of the journal.
    pub(super) fn want_slots(&self) {
        self.slots_wanted.set();
    }

    /// Gets slots of the journal free when they run out: by a round of flushes, and by a mark.
    pub(super) async fn slots_task(self: Rc<Self>) {
        loop {
            self.slots_wanted.wait().await;
            if self.is_closing() || self.shared.is_offline() {
                return;
            }
            // Only if something was done: who finds no slot asks again at once.
            let mut changed = false;
            if self.journal.wants_round() {
                if self.round().await.is_err() {
                    return;
                }
                changed = true;
            }
            if self.journal.wants_mark() && (self.is_starving() || self.journal.is_wanted()) {
                changed |= self.write_mark().await.is_ok();
            }
            if changed {
                self.slots_changed();
            }
        }
    }

    /// The decoder of `lost` from exactly the strips of `sources`.
    pub(super) fn decoder(&self, lost: u64, sources: u64) -> Rc<Decoder> {
        let mut all = self.decoders.borrow_mut();
        if let Some(d) = all.get(&(lost, sources)) {
            return d.clone();
        }
        let (l, s): (Vec<_>, Vec<_>) = (masked(lost).collect(), masked(sources).collect());
        let d = self.codec.decoder(&l, &s).expect("any k strips determine the others: the matrix is MDS");
        if all.len() >= DECODERS {
            all.clear();
        }
        let d = Rc::new(d);
        all.insert((lost, sources), d.clone());
        d
    }

    // Watching.

    /// Something is in flight on a member: looks after it.
    #[inline]
    pub(super) fn watch(self: &Rc<Self>) {
        if !self.watching.get() {
            self.watch_on();
        }
    }

    #[cold]
    fn watch_on(self: &Rc<Self>) {
        self.watching.set(true);
        let me = Rc::downgrade(self);
        let timer = self.core.reactor().timer(self.tuning.write_timeout / 4, move |_| {
            let Some(me) = me.upgrade() else { return };
            me.watching.set(false);
            me.look_after();
        });
        self.watchdog.replace(Some(timer));
    }

    fn look_after(self: &Rc<Self>) {
        let limit = self.core.reactor().ticks(self.tuning.write_timeout);
        let now = self.core.now();
        for m in &self.members {
            if m.oldest().is_some_and(|since| now.saturating_sub(since) > limit) {
                self.fail_member(m.slot, "it did not answer in time");
                // Again if it has failed before: what hangs is aborted until it ends.
                m.abort_all();
            }
        }
        if self.members.iter().any(|m| m.inflight() > 0) {
            self.watch();
        }
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
