//! The slow half of a channel: what holds requests back, cuts them, aborts them, and waits for them.

use longshore_nvme::wire::Status;

use crate::channel::{ChannelInner, PIECE};
use crate::io::{IoFlags, IoId, IoRef, Op};
use crate::{job, qos, range_lock, reset, split};

/// New requests wait (reset, quiesce).
pub(crate) const FROZEN: u32 = 1;
/// The device is going away: new requests fail.
pub(crate) const REMOVED: u32 = 2;
/// Some ranges are locked.
pub(crate) const LOCKED: u32 = 4;
/// Rate limits are set.
pub(crate) const QOS: u32 = 8;
/// The latency histogram is on.
pub(crate) const HISTOGRAM: u32 = 16;
/// Somebody waits for requests in flight to end.
pub(crate) const DRAINING: u32 = 32;
/// Requests must be looked at for boundary, segment or write-unit limits.
pub(crate) const SHAPED: u32 = 64;

type Then = Box<dyn FnOnce()>;

/// Who waits for requests in flight to end. One epoch is waited for at a time: while it empties, new requests are counted in
/// the other one, and drains that begin meanwhile wait for the next change.
#[derive(Default)]
pub(crate) struct Drains {
    active: Option<u32>,
    now: Vec<Then>,
    next: Vec<Then>,
}

impl ChannelInner {
    #[cold]
    pub(crate) fn submit_slow(&self, io: IoRef) {
        if self.gate.get() & QOS != 0 && self.may_be_fast(&io) {
            if let Some(io) = qos::admit(self, io) {
                self.submit_fast(io);
            }
            return;
        }
        if self.gate.get() & REMOVED != 0 {
            return io.complete_later(Status::NAMESPACE_NOT_READY);
        }
        let op = io.op();
        if op.modifies() && self.node.read_only() {
            return io.complete_later(Status::NAMESPACE_WRITE_PROTECTED);
        }
        if !self.node.supports(op) {
            return io.complete_later(Status::INVALID_OPCODE);
        }
        if op.has_range() && !self.in_range(&io) {
            return io.complete_later(Status::LBA_OUT_OF_RANGE);
        }
        if op == Op::Reset {
            return reset::submit(self, io);
        }
        let admitted = if self.gate.get() & QOS != 0 { qos::admit(self, io) } else { Some(io) };
        if let Some(io) = admitted {
            self.submit_admitted(io);
        }
    }

    /// The device goes away: what has not been given to it yet for the sake of its rate limits never will be.
    pub(crate) fn remove(&self) {
        self.set_gate(REMOVED, true);
        let all = self.limited.queue.take();
        while let Some(io) = all.pop() {
            io.complete_later(Status::NAMESPACE_NOT_READY);
        }
    }

    fn in_range(&self, io: &IoRef) -> bool {
        let fits = |lba: u64| lba.checked_add(u64::from(io.nblocks())).is_some_and(|e| e <= self.node.num_blocks());
        fits(io.lba()) && (io.op() != Op::Copy || fits(io.copy_source()))
    }

    /// Rate limits were met.
    pub(crate) fn submit_admitted(&self, io: IoRef) {
        if self.may_be_fast(&io) {
            return self.submit_fast(io);
        }
        if self.gate.get() & FROZEN != 0 {
            return self.held.push(io);
        }
        if self.gate.get() & LOCKED != 0 && range_lock::blocks(&self.locked.borrow(), &io) {
            return self.lock_wait.push(io);
        }
        if io.op() == Op::CompareAndWrite && !self.native.has(Op::CompareAndWrite) {
            return range_lock::begin(self, io);
        }
        self.shape(io, 0);
    }

    /// Cuts or emulates what the device cannot do as it is, passes on the rest.
    fn shape(&self, mut io: IoRef, bits: u64) {
        if !self.native.has(io.op()) {
            return job::emulate(self, io, bits, None);
        }
        if io.op() == Op::CompareAndWrite {
            // The device does both halves: how far it has come nobody knows.
            io.set_flags(io.flags().with(IoFlags::WRITE_BEGUN));
        }
        match split::check(self.geometry(), &io) {
            split::Fit::Whole => self.pass(io, self.stamp() | bits),
            split::Fit::Split => job::split(self, io, bits),
            split::Fit::Never(status) => io.complete_later(status),
        }
    }

    /// Submits a piece of a request that was held, with [`hold`](ChannelInner::hold): gates do not apply again.
    pub(crate) fn submit_piece(&self, io: IoRef) {
        self.shape(io, PIECE);
    }

    pub(crate) fn abort(&self, id: IoId) -> bool {
        if self.core().pool().find(id).is_none() {
            return false;
        }
        for q in [&self.held, &self.limited.queue, &self.lock_wait] {
            if let Some(io) = q.remove(id) {
                io.complete_later(Status::ABORT_REQUESTED);
                return true;
            }
        }
        let parked = {
            let mut p = self.parked.borrow_mut();
            p.iter().position(|(_, io)| io.id() == id).map(|i| p.remove(i))
        };
        if let Some((ticket, io)) = parked {
            range_lock::give_up(self, ticket);
            io.complete_later(Status::ABORT_REQUESTED);
            return true;
        }
        let job = self.jobs.borrow().iter().find(|j| j.is_of(id)).cloned();
        match job {
            Some(j) => {
                j.abort();
                true
            }
            None => self.module().abort(id),
        }
    }

    pub(crate) fn abort_all(&self) {
        for q in [&self.held, &self.limited.queue, &self.lock_wait] {
            let all = q.take();
            while let Some(io) = all.pop() {
                io.complete_later(Status::ABORT_REQUESTED);
            }
        }
        let waiting: Vec<_> = self.parked.borrow_mut().extract_if(.., |(_, io)| io.op() != Op::Reset).collect();
        for (ticket, io) in waiting {
            range_lock::give_up(self, ticket);
            io.complete_later(Status::ABORT_REQUESTED);
        }
        let jobs: Vec<_> = self.jobs.borrow().clone();
        for j in jobs.iter().filter(|j| !j.is_reset()) {
            j.abort();
        }
        self.module().abort_all();
    }

    pub(crate) fn freeze(&self) {
        self.frozen.set(self.frozen.get() + 1);
        self.set_gate(FROZEN, true);
    }

    pub(crate) fn resume(&self) {
        let n = self.frozen.get();
        debug_assert!(n > 0, "resumed more often than frozen");
        self.frozen.set(n.saturating_sub(1));
        if self.frozen.get() == 0 {
            self.set_gate(FROZEN, false);
            let held = self.held.take();
            while let Some(io) = held.pop() {
                self.submit_admitted(io);
            }
        }
    }

    pub(crate) fn drain(&self, then: Then) {
        self.drains.borrow_mut().next.push(then);
        self.set_gate(DRAINING, true);
        self.check_drains();
    }

    pub(crate) fn check_drains(&self) {
        let mut d = self.drains.borrow_mut();
        loop {
            if let Some(epoch) = d.active {
                if self.inflight[(epoch & 1) as usize].get() != 0 || !self.fast_way_empty() {
                    return;
                }
                d.active = None;
                for then in d.now.drain(..) {
                    self.core().reactor().defer(move |_| then());
                }
            }
            if d.next.is_empty() {
                if self.gate.get() & DRAINING != 0 {
                    self.set_gate(DRAINING, false);
                }
                return;
            }
            // No drain is active, so the other epoch is empty and can be counted in.
            let epoch = self.epoch.get();
            debug_assert_eq!(self.inflight[(epoch as usize + 1) & 1].get(), 0);
            self.epoch.set(epoch.wrapping_add(1));
            d.active = Some(epoch);
            d.now = std::mem::take(&mut d.next);
        }
    }
}
