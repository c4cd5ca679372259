//! One member as the home core sees it: its channel, and what is in flight on it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::flights::{Flight, Flights};
use super::lower::Departure;
use super::shared::Shared;
use crate::channel::Channel;
use crate::frame::Submitter;
use crate::io::{IoId, IoRef};

/// One member on the home core.
pub(super) struct Member {
    pub(super) slot: usize,
    channel: RefCell<Option<Channel>>,
    block_shift: Cell<u32>,
    /// Completed writes are lost at a crash unless they are flushed.
    pub(super) volatile: Cell<bool>,
    /// Writes have completed since the last flush was submitted.
    pub(super) dirty: Cell<bool>,
    flights: RefCell<Flights>,
    /// It failed: nothing new is sent to it, and who waits for it need not.
    barred: Cell<bool>,
    /// Its device goes away.
    leaving: RefCell<Option<Arc<Departure>>>,
}

impl Member {
    pub(super) fn new(shared: &Shared, slot: usize) -> Member {
        let m = Member {
            slot,
            channel: RefCell::default(),
            block_shift: Cell::new(9),
            volatile: Cell::new(false),
            dirty: Cell::new(false),
            flights: RefCell::default(),
            barred: Cell::new(false),
            leaving: RefCell::default(),
        };
        m.open(shared);
        m
    }

    /// Opens the member's channel on this core. False: there is no member, or it cannot be opened.
    pub(super) fn open(&self, shared: &Shared) -> bool {
        let Some((shift, volatile)) = shared.below(self.slot) else { return false };
        self.block_shift.set(shift);
        self.volatile.set(volatile);
        // Whoever wrote before may have left the cache full.
        self.dirty.set(true);
        let channel = shared.channel(self.slot);
        let there = channel.is_some();
        *self.channel.borrow_mut() = channel;
        self.barred.set(false);
        there
    }

    /// Lets the channel go.
    pub(super) fn close(&self) {
        let channel = self.channel.borrow_mut().take();
        drop(channel);
    }

    /// The member's block that holds byte `offset`.
    #[inline]
    pub(super) fn lba(&self, offset: u64) -> u64 {
        offset >> self.block_shift.get()
    }

    /// Blocks of the member in `bytes`.
    #[inline]
    pub(super) fn blocks(&self, bytes: u32) -> u32 {
        bytes >> self.block_shift.get()
    }

    /// It failed: nothing is sent to it until it is opened again.
    pub(super) fn bar(&self) {
        self.barred.set(true);
    }

    /// True if it failed: what is in flight on it may never end.
    pub(super) fn is_barred(&self) -> bool {
        self.barred.get()
    }

    /// Lets the channel go, and `departure`, when nothing is in flight. The member is barred.
    pub(super) fn leave(&self, departure: Arc<Departure>) {
        self.leaving.replace(Some(departure));
        self.leave_if_idle();
    }

    fn leave_if_idle(&self) {
        if self.inflight() == 0 && self.leaving.borrow().is_some() {
            self.close();
            let departure = self.leaving.borrow_mut().take();
            drop(departure);
        }
    }

    /// Sends a request; `to` gets it back with `tag` in the lower half of its tag and must call [`landed`](Member::landed). The request
    /// comes back at once if the member is gone.
    ///
    /// # Errors
    /// The request: there is no channel, or the member has failed.
    pub(super) fn submit<S: Submitter>(&self, mut io: IoRef, to: &Rc<S>, tag: u32) -> Result<(), IoRef> {
        let channel = self.channel.borrow();
        let Some(channel) = channel.as_ref().filter(|_| !self.barred.get()) else { return Err(io) };
        let flight = Flight { id: io.id(), slot: self.slot as u32, since: channel.core().now() };
        let at = self.flights.borrow_mut().insert(flight);
        io.begin(to.clone(), u64::from(tag) | u64::from(at) << 32);
        channel.submit(io);
        Ok(())
    }

    /// A request came back; returns the tag it was sent with.
    pub(super) fn landed(&self, tag: u64) -> u32 {
        self.flights.borrow_mut().remove((tag >> 32) as u32);
        if self.barred.get() {
            self.leave_if_idle();
        }
        tag as u32
    }

    /// Requests of the home core in flight.
    pub(super) fn inflight(&self) -> usize {
        self.flights.borrow().len()
    }

    /// Ends everything in flight as soon as the device can.
    pub(super) fn abort_all(&self) {
        let Some(channel) = self.channel.borrow().clone() else { return };
        let ids: Vec<IoId> = self.flights.borrow().iter().map(|f| f.id).collect();
        for id in ids {
            channel.abort(id);
        }
    }

    /// When the oldest request in flight was submitted.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.flights.borrow().iter().map(|f| f.since).min()
    }
}
