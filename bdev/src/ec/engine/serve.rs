//! Requests of the host, and whose turn it is at a stripe.

use std::rc::Rc;

use longshore_nvme::wire::Status;

use super::super::clear::Clear;
use super::super::device::Missed;
use super::super::read::Read;
use super::super::stripe::{Ready, Waiting};
use super::super::txn::rows::Join;
use super::super::txn::{Txn, range};
use super::Engine;
use crate::io::{IoFlags, IoId, IoRef, Op};

/// Clears kept to serve again.
const CLEARS: usize = 64;

impl Engine {
    /// Takes a request of another core, which has this to say of it: [`Missed`], or nothing.
    pub(in crate::ec) fn arrived(self: &Rc<Self>, io: IoRef, hint: u32) {
        match Missed::of(hint) {
            None => self.submit(io),
            Some(missed) => self.read_missed(io, missed),
        }
    }

    /// Takes a request of the host, on the home core.
    pub(in crate::ec) fn submit(self: &Rc<Self>, io: IoRef) {
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
            Op::Write => self.write(io),
            Op::Flush => {
                c.host_flushes.add(1);
                self.map.flush(io);
            }
            Op::Unmap | Op::WriteZeroes => {
                c.host_unmaps.add(1);
                Clear::start(self, io);
            }
            Op::Reset => io.complete_later(Status::SUCCESS),
            _ => io.complete_later(Status::INVALID_OPCODE),
        }
    }

    pub(in crate::ec) fn bytes(&self, io: &IoRef) -> u64 {
        u64::from(io.nblocks()) * u64::from(self.shared.layout.block)
    }

    /// A read within one stripe; the strips in `bad` could not be read, or were not, those in `kept`.
    pub(in crate::ec) fn read(self: &Rc<Self>, io: IoRef, bad: u64, kept: u64) {
        let idle = self.reads.borrow_mut().pop();
        let read = idle.unwrap_or_else(|| {
            let read = Read::new(self);
            self.all_reads.borrow_mut().push(Rc::downgrade(&read));
            read
        });
        read.start(self, io, bad, kept);
    }

    /// A read whose member did not do it.
    pub(in crate::ec) fn read_missed(self: &Rc<Self>, io: IoRef, missed: Missed) {
        let strip = 1 << missed.strip;
        self.read(io, strip, if missed.heal { 0 } else { strip });
    }

    /// A write, or a write of zeroes, within one stripe.
    pub(in crate::ec) fn write(self: &Rc<Self>, io: IoRef) {
        self.shared.counters.host_writes.add(1);
        self.shared.counters.host_written_bytes.add(self.bytes(&io));
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

    pub(in crate::ec) fn start_txn(self: &Rc<Self>, stripe: u64, hosts: &mut Vec<IoRef>) {
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
    pub(in crate::ec) fn pump(self: &Rc<Self>, stripe: u64) {
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

    pub(in crate::ec) fn pump_one(self: &Rc<Self>, stripe: u64) {
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
    pub(in crate::ec) fn unlock(self: &Rc<Self>, stripe: u64) {
        if self.stripes.unlock(stripe) {
            self.map.idle_now(stripe);
        }
        self.pump(stripe);
    }

    /// A transaction ended and may serve again.
    pub(in crate::ec) fn txn_idle(&self, txn: Rc<Txn>) {
        self.txns.borrow_mut().push(txn);
    }

    /// A read ended and may serve again.
    pub(in crate::ec) fn read_idle(&self, read: Rc<Read>) {
        self.reads.borrow_mut().push(read);
    }

    /// A clear for a request of the host.
    pub(in crate::ec) fn idle_clear(&self) -> Rc<Clear> {
        let idle = self.clears.borrow_mut().pop();
        idle.filter(Clear::is_idle).unwrap_or_default()
    }

    /// A clear ended and may serve again.
    pub(in crate::ec) fn clear_ended(&self, clear: Rc<Clear>) {
        let mut all = self.clears.borrow_mut();
        if all.len() < CLEARS {
            all.push(clear);
        }
    }

    /// Takes back the lock of one of a stripe's readers.
    pub(in crate::ec) fn unread(self: &Rc<Self>, stripe: u64) {
        self.stripes.unread(stripe);
        self.pump(stripe);
    }

    /// Ends a write of the host early that waits for its stripe.
    pub(in crate::ec) fn abort(&self, io: IoId) -> bool {
        for stripe in self.stripes.busy() {
            if let Some(io) = self.stripes.remove(stripe, io) {
                io.complete_later(Status::ABORT_REQUESTED);
                return true;
            }
        }
        false
    }
}
