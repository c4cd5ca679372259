//! The members as one core's channel of the array uses them: for reads that go straight to a member. The home core says when a member
//! failed, then its reads are aborted and reconstructed, and when its device goes away, then its channel is let go.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use longshore_reactor::{CoreHandle, Reactor, Timer};

use super::flights::{Asked, Flight, Flights};
use super::shared::Shared;
use super::start::engine_here;
use crate::channel::Channel;
use crate::io::{IoId, IoRef};

/// Reads in flight of one core at most; more take the way over the home core. They are numbered with 16 bits.
const MOST: usize = 1 << 16;

thread_local! {
    /// By core and array: in a simulation a thread stands for several cores.
    static LOWERS: RefCell<HashMap<(usize, u64), Weak<Lower>>> = RefCell::default();
}

/// Held by each core that may still use the device in a slot. When the last lets go of it, the array closes the device.
pub(super) struct Departure {
    array: u64,
    slot: usize,
    home: CoreHandle,
}

impl Departure {
    pub(super) fn new(shared: &Shared, slot: usize) -> Arc<Departure> {
        Arc::new(Departure { array: shared.id, slot, home: shared.home.clone() })
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        let (array, slot) = (self.array, self.slot);
        self.home.send(move |_| {
            if let Some(e) = engine_here(array) {
                e.member_left(slot);
            }
        });
    }
}

struct Slot {
    channel: RefCell<Option<Channel>>,
    /// Bytes of the member's block, as a power of two.
    shift: Cell<u32>,
    out: Cell<u32>,
    /// Ticks when its reads were last aborted, all of them.
    aborted: Cell<u64>,
    leaving: RefCell<Option<Arc<Departure>>>,
}

/// See the module.
pub(super) struct Lower {
    shared: Arc<Shared>,
    reactor: Reactor,
    slots: Vec<Slot>,
    flights: RefCell<Flights>,
    /// A member that takes longer than this has failed.
    patience: Duration,
    /// One that takes longer than this is slow; zero: none is.
    slow: Duration,
    timer: RefCell<Option<Timer>>,
    watching: Cell<bool>,
    /// Ticks when the timer was set.
    watched_from: Cell<u64>,
    me: Weak<Lower>,
}

impl Lower {
    /// The members that are read on this core.
    pub(super) fn open(shared: &Arc<Shared>, reactor: &Reactor, patience: Duration, slow: Duration) -> Rc<Lower> {
        // Before members are opened: one that fails from now on is told to this core, one that failed before is not opened.
        shared.enter_core(reactor.handle());
        let slot = |slot| Slot {
            channel: RefCell::new(if shared.readable() >> slot & 1 != 0 { shared.channel(slot) } else { None }),
            shift: Cell::new(shared.below(slot).map_or(9, |b| b.0)),
            out: Cell::new(0),
            aborted: Cell::new(0),
            leaving: RefCell::default(),
        };
        let lower = Rc::new_cyclic(|me| Lower {
            shared: shared.clone(),
            reactor: reactor.clone(),
            slots: (0..shared.layout.n()).map(slot).collect(),
            flights: RefCell::default(),
            patience,
            slow,
            timer: RefCell::default(),
            watching: Cell::new(false),
            watched_from: Cell::new(0),
            me: me.clone(),
        });
        LOWERS.with_borrow_mut(|all| {
            all.retain(|_, w| w.strong_count() > 0);
            all.insert((reactor.index(), shared.id), Rc::downgrade(&lower));
        });
        lower
    }

    /// True if a read may be submitted to the member in `slot`.
    #[inline]
    pub(super) fn reads(&self, slot: usize) -> bool {
        (self.shared.readable() & !self.shared.slow()) >> slot & 1 != 0
            && self.flights.borrow().len() < MOST
            && self.slots[slot].channel.borrow().is_some()
    }

    /// Bytes of the block of the member in `slot`, as a power of two.
    #[inline]
    pub(super) fn shift(&self, slot: usize) -> u32 {
        self.slots[slot].shift.get()
    }

    /// The member in `slot` is in sync now: reads may go straight to it.
    fn admit(&self, slot: usize) {
        let s = &self.slots[slot];
        if self.shared.readable() >> slot & 1 == 0 || s.channel.borrow().is_some() || s.leaving.borrow().is_some() {
            return;
        }
        let Some((shift, _)) = self.shared.below(slot) else { return };
        s.shift.set(shift);
        let channel = self.shared.channel(slot);
        s.channel.replace(channel);
    }

    /// Enters a read that is about to be [submitted](Lower::submit) to the member in `slot`; its number.
    #[inline]
    pub(super) fn enter(&self, slot: usize, id: IoId) -> u32 {
        let s = &self.slots[slot];
        s.out.set(s.out.get() + 1);
        let since = s.channel.borrow().as_ref().map_or(0, |c| c.core().now());
        if !self.watching.get() {
            self.watch_on();
        }
        self.flights.borrow_mut().insert(Flight { id, slot: slot as u32, since, asked: Asked::Nobody, hedge: true })
    }

    /// Submits a read that was entered.
    #[inline]
    pub(super) fn submit(&self, slot: usize, io: IoRef) {
        // Requests end in a later turn: nobody takes the channel away meanwhile.
        if let Some(channel) = &*self.slots[slot].channel.borrow() {
            channel.submit(io);
        }
    }

    /// Read number `at` came back from the member in `slot`. True: the host had asked for its end.
    #[inline]
    pub(super) fn landed(&self, slot: usize, at: u32) -> bool {
        let asked = self.flights.borrow_mut().remove(at).is_some_and(|f| f.asked == Asked::Host);
        let s = &self.slots[slot];
        s.out.set(s.out.get() - 1);
        if s.out.get() == 0 && s.leaving.borrow().is_some() {
            s.let_go();
        }
        asked
    }

    /// Tries to end a read early: its host asks for it.
    pub(super) fn abort(&self, id: IoId) -> bool {
        let Some(slot) = self.flights.borrow_mut().ask(id) else { return false };
        let channel = self.slots[slot].channel.borrow().clone();
        channel.is_some_and(|c| c.abort(id))
    }

    /// Ends the reads of the member in `slot` as soon as its device can.
    fn abort_reads(&self, slot: usize) {
        let Some(channel) = self.slots[slot].channel.borrow().clone() else { return };
        self.slots[slot].aborted.set(self.reactor.now());
        let ids: Vec<IoId> = self.flights.borrow().iter().filter(|f| f.slot as usize == slot).map(|f| f.id).collect();
        for id in ids {
            channel.abort(id);
        }
    }

    /// The member in `slot` is slow: its reads that were sent before `until` are ended, as soon as its device can, and done in another way.
    fn hedge(&self, slot: usize, until: u64) {
        let Some(channel) = self.slots[slot].channel.borrow().clone() else { return };
        let ids = self.flights.borrow_mut().hedge(slot, until);
        for id in ids {
            channel.abort(id);
        }
    }

    fn look_for_slow(&self, now: u64) {
        let until = now.saturating_sub(self.reactor.ticks(self.slow));
        let is_late = |f: &&Flight| f.since < until && f.asked == Asked::Nobody;
        let late = self.flights.borrow().iter().filter(is_late).fold(0u64, |mask, f| mask | 1 << f.slot);
        // Those that were sent while it was being told that it is slow.
        for slot in super::txn::masked(late & self.shared.slow()) {
            self.hedge(slot, until);
        }
        for slot in super::txn::masked(self.shared.newly_slow(late)) {
            let id = self.shared.id;
            self.shared.home.send(move |_| {
                if let Some(e) = engine_here(id) {
                    e.slow_member(slot);
                }
            });
        }
    }

    #[cold]
    fn watch_on(&self) {
        self.watching.set(true);
        self.watched_from.set(self.reactor.now());
        let me = self.me.clone();
        let timer = self.reactor.timer(super::slow::period(self.patience, self.slow), move |_| {
            let Some(me) = me.upgrade() else { return };
            me.watching.set(false);
            me.look_after();
        });
        self.timer.replace(Some(timer));
    }

    fn look_after(&self) {
        let (limit, now) = (self.reactor.ticks(self.patience), self.reactor.now());
        let pause = self.reactor.ticks(super::slow::abort_period(self.patience));
        let every = self.reactor.ticks(super::slow::period(self.patience, self.slow));
        let unseen = super::slow::unseen(self.watched_from.get(), now, every, limit);
        if unseen > 0 {
            self.flights.borrow_mut().forgive(unseen, now);
        }
        if !self.slow.is_zero() {
            self.look_for_slow(now);
        }
        let late = self.flights.borrow().iter().fold(0u64, |mask, f| {
            let late = now.saturating_sub(f.since) > limit;
            mask | u64::from(late) << f.slot
        });
        for slot in super::txn::masked(late) {
            if self.shared.readable() >> slot & 1 == 0 {
                // It has failed already: what hangs is aborted until it ends, but not each time that is looked.
                if now.saturating_sub(self.slots[slot].aborted.get()) >= pause {
                    self.abort_reads(slot);
                }
                continue;
            }
            // The reads are aborted when it has failed.
            let id = self.shared.id;
            self.shared.home.send(move |_| {
                if let Some(e) = engine_here(id) {
                    e.fail_member(slot, "it did not answer a read in time");
                }
            });
        }
        if self.flights.borrow().len() > 0 {
            self.watch_on();
        }
    }
}

impl Slot {
    fn let_go(&self) {
        let channel = self.channel.borrow_mut().take();
        drop(channel);
        let leaving = self.leaving.borrow_mut().take();
        drop(leaving);
    }
}

impl Shared {
    fn on_cores(self: &Arc<Self>, f: impl Fn(&Lower) + Clone + Send + 'static) {
        for core in self.entered_cores() {
            let (id, f) = (self.id, f.clone());
            core.send(move |r: &Reactor| {
                let lower = LOWERS.with_borrow(|all| all.get(&(r.index(), id)).and_then(Weak::upgrade));
                if let Some(lower) = lower {
                    f(&lower);
                }
            });
        }
    }

    /// Aborts, on all cores, the reads that went straight to the member in `slot`. It has failed, so no new ones do.
    pub(super) fn abort_reads(self: &Arc<Self>, slot: usize) {
        self.on_cores(move |lower| lower.abort_reads(slot));
    }

    /// The member in `slot` is slow: on all cores, the reads that went straight to it are done in another way.
    pub(super) fn hedge_reads(self: &Arc<Self>, slot: usize) {
        self.on_cores(move |lower| lower.hedge(slot, u64::MAX));
    }

    /// Lets each core open the member in `slot`, which is in sync now.
    pub(super) fn admit(self: &Arc<Self>, slot: usize) {
        self.on_cores(move |lower| lower.admit(slot));
    }

    /// Lets each core give up the channel of the member in `slot`, and its part in `departure`, when nothing of it is in flight.
    pub(super) fn leave(self: &Arc<Self>, slot: usize, departure: &Arc<Departure>) {
        let departure = departure.clone();
        self.on_cores(move |lower| {
            let s = &lower.slots[slot];
            s.leaving.replace(Some(departure.clone()));
            if s.out.get() == 0 {
                s.let_go();
            }
        });
    }
}
