//! One member as the home core sees it: its channel, and what is in flight on it.
//!
//! A request that ends for a reason that passes, because its device is reset or the way to it is lost for a moment, is sent again until the
//! member's time is up: the watchdog then fails the member, as if it had hung. So a reset costs time, not the member.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use longshore_nvme::wire::{Status, StatusCodeType};
use longshore_reactor::Timer;

use super::flights::{Asked, Flight, Flights};
use super::lower::Departure;
use super::shared::Shared;
use crate::channel::Channel;
use crate::frame::Submitter;
use crate::io::{IoId, IoRef, Op};
use crate::queue::IoQueue;

/// How long a request waits that ended for a reason that passes.
const AGAIN: Duration = Duration::from_millis(5);

/// True if a request that ended so may well succeed when it is sent again: nobody here asked for its end, and it is not the medium's.
pub(super) fn passes(status: Status) -> bool {
    let of_path = status.is_path_error()
        || [Status::ABORT_REQUESTED, Status::ABORTED_SQ_DELETION, Status::NAMESPACE_NOT_READY]
            .iter()
            .any(|s| status.is(*s));
    of_path && !status.dnr()
}

/// True if a read that ended so says nothing of its blocks, nor of its member: that passes, or somebody asked for its end, and some devices say
/// of such a one that it is not to be sent again.
pub(super) fn says_nothing(status: Status) -> bool {
    passes(status) || status.is(Status::ABORT_REQUESTED)
}

/// True if a read that ended so failed for another reason than its blocks: the medium's errors are of status code type 2.
pub(super) fn is_fault(status: Status) -> bool {
    status.is_err() && status.kind() != StatusCodeType::Media && !says_nothing(status)
}

/// Requests that are to be sent again.
struct Again {
    shared: Arc<Shared>,
    queue: IoQueue,
    timer: RefCell<Option<Timer>>,
}

impl Again {
    /// Sends all of them.
    fn send(&self, channel: &Channel) {
        self.timer.take();
        let all = self.queue.take();
        while let Some(io) = all.pop() {
            if refused(&self.shared, &io) {
                io.complete_later(Status::NAMESPACE_NOT_READY);
            } else {
                channel.submit(io);
            }
        }
    }

    /// Ends all of them.
    fn end(&self) {
        self.timer.take();
        let all = self.queue.take();
        while let Some(io) = all.pop() {
            io.complete_later(Status::ABORT_REQUESTED);
        }
    }
}

/// An array that is offline changes nothing on its members: they may be another writer's by now.
fn refused(shared: &Shared, io: &IoRef) -> bool {
    io.op() != Op::Read && shared.is_offline()
}

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
    /// Devices opened in the slot so far.
    era: Cell<u64>,
    /// It failed: nothing new is sent to it, and who waits for it need not.
    barred: Cell<bool>,
    /// Ticks when what is in flight was last aborted.
    aborted: Cell<u64>,
    /// Its device goes away.
    leaving: RefCell<Option<Arc<Departure>>>,
    again: Rc<Again>,
}

impl Member {
    pub(super) fn new(shared: &Arc<Shared>, slot: usize) -> Member {
        let m = Member {
            slot,
            channel: RefCell::default(),
            block_shift: Cell::new(9),
            volatile: Cell::new(false),
            dirty: Cell::new(false),
            flights: RefCell::default(),
            era: Cell::new(0),
            barred: Cell::new(false),
            aborted: Cell::new(0),
            leaving: RefCell::default(),
            again: Rc::new(Again { shared: shared.clone(), queue: IoQueue::default(), timer: RefCell::default() }),
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
        self.era.set(self.era.get() + 1);
        there
    }

    /// Which of the devices that were opened in the slot it is.
    pub(super) fn era(&self) -> u64 {
        self.era.get()
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
        self.again.end();
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

    /// As [`submit`](Member::submit), of a read that is done in another way if the member is [slow](super::slow).
    pub(super) fn submit_hedged<S: Submitter>(&self, io: IoRef, to: &Rc<S>, tag: u32) -> Result<(), IoRef> {
        self.send(io, to, tag, true)
    }

    /// Sends a request; `to` gets it back with a tag that it must call [`landed`](Member::landed) with. The request comes back at once if
    /// the member is gone.
    ///
    /// # Errors
    /// The request: there is no channel, the member has failed, or the request would change something and the array is offline.
    pub(super) fn submit<S: Submitter>(&self, io: IoRef, to: &Rc<S>, tag: u32) -> Result<(), IoRef> {
        self.send(io, to, tag, false)
    }

    fn send<S: Submitter>(&self, mut io: IoRef, to: &Rc<S>, tag: u32, hedge: bool) -> Result<(), IoRef> {
        let channel = self.channel.borrow();
        let Some(channel) = channel.as_ref().filter(|_| !self.barred.get()) else { return Err(io) };
        if refused(&self.again.shared, &io) {
            return Err(io);
        }
        let since = channel.core().now();
        let flight = Flight { id: io.id(), slot: self.slot as u32, since, asked: Asked::Nobody, hedge };
        let at = self.flights.borrow_mut().insert(flight);
        io.begin(to.clone(), u64::from(tag) | u64::from(at) << 32);
        channel.submit(io);
        Ok(())
    }

    /// A request came back to `to`. None: it is sent again, and comes back once more. `tag & 0xffff_ffff` is what it was sent with.
    pub(super) fn landed<S: Submitter>(&self, mut io: IoRef, to: &Rc<S>, tag: u64) -> Option<IoRef> {
        let at = (tag >> 32) as u32;
        let asked = self.flights.borrow().get(at).is_none_or(|f| f.asked != Asked::Nobody);
        if io.status().is_err()
            && passes(io.status())
            && !asked
            && !self.barred.get()
            && !refused(&self.again.shared, &io)
        {
            io.begin(to.clone(), tag);
            self.send_later(io);
            return None;
        }
        self.flights.borrow_mut().remove(at);
        if self.barred.get() {
            self.leave_if_idle();
        } else if io.op() == Op::Read {
            self.again.shared.note_read(self.slot, io.status());
        }
        Some(io)
    }

    /// True if the request of this tag, which has ended so, was ended for the array to do it in another way.
    pub(super) fn is_hedged(&self, status: Status, tag: u64) -> bool {
        let asked = |f: &Flight| f.asked == Asked::Array;
        says_nothing(status) && self.flights.borrow().get((tag >> 32) as u32).is_some_and(asked)
    }

    /// Ends the reads in flight, as soon as the device can, that are done in another way.
    pub(super) fn hedge(&self) {
        let Some(channel) = self.channel.borrow().clone() else { return };
        let ids = self.flights.borrow_mut().hedge(self.slot, u64::MAX);
        for id in ids {
            channel.abort(id);
        }
    }

    /// True if a read is in flight since before `until` that can be done in another way.
    pub(super) fn reads_since(&self, until: u64) -> bool {
        self.flights.borrow().iter().any(|f| f.hedge && f.since < until && f.asked == Asked::Nobody)
    }

    #[cold]
    fn send_later(&self, io: IoRef) {
        let Some(channel) = self.channel.borrow().clone() else { return io.complete_later(Status::ABORT_REQUESTED) };
        self.again.queue.push(io);
        if self.again.timer.borrow().is_some() {
            return;
        }
        let (again, reactor): (Weak<Again>, _) = (Rc::downgrade(&self.again), channel.core().reactor().clone());
        let timer = reactor.timer(AGAIN, move |_| {
            if let Some(again) = again.upgrade() {
                again.send(&channel);
            }
        });
        self.again.timer.replace(Some(timer));
    }

    /// Requests of the home core in flight.
    pub(super) fn inflight(&self) -> usize {
        self.flights.borrow().len()
    }

    /// Ends everything in flight as soon as the device can.
    pub(super) fn abort_all(&self) {
        let Some(channel) = self.channel.borrow().clone() else { return };
        self.aborted.set(channel.core().now());
        self.again.end();
        let ids: Vec<IoId> = self.flights.borrow().iter().map(|f| f.id).collect();
        for id in ids {
            channel.abort(id);
        }
    }

    /// Ends what still hangs on a member that failed, unless that was tried less than `period` ticks before `now`.
    pub(super) fn abort_again(&self, now: u64, period: u64) {
        if now.saturating_sub(self.aborted.get()) >= period {
            self.abort_all();
        }
    }

    /// Nobody looked for so many ticks until `now`: they do not count.
    pub(super) fn forgive(&self, ticks: u64, now: u64) {
        self.flights.borrow_mut().forgive(ticks, now);
    }

    /// When the oldest request in flight was submitted.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.flights.borrow().iter().map(|f| f.since).min()
    }
}
