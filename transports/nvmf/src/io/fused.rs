//! Compare-and-write as a fused pair: Base Specification, "Fused Operations".
//!
//! The two commands follow each other on the queue. Each brings its own data, in any order of arrival; when both are
//! complete, they run as one request of the block layer, which is atomic towards every other request on every core.

use std::rc::Rc;

use longshore_bdev::{IoFlags, Op};
use longshore_nvme::wire::io::cdw12;
use longshore_nvme::wire::opcode::io as opcode;
use longshore_nvme::wire::{Fuse, Sqe, Status};

use super::{PART_FUSED, outcome, rw, starve};
use crate::qpair::Qpair;
use crate::request::{Begin, Half, NO_SLOT, Phase};
use crate::share::Want;

/// What the next command of the queue may be the second half of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    /// Nothing.
    None,
    /// The first half in this slot.
    First(u16),
    /// A first half that was refused or ended already.
    Failed,
}

/// Checks a command that is part of a pair, or that follows a first half.
#[cold]
pub(crate) fn begin(qp: &Rc<Qpair>, slot: u16, sqe: &Sqe, in_capsule: u32) -> Result<Begin, Status> {
    let pending = qp.fused.replace(Pending::None);
    let fuse = sqe.fuse();
    if fuse == Fuse::Second {
        return second(qp, slot, sqe, in_capsule, pending);
    }
    if let Pending::First(first) = pending {
        end_half(qp, first, Status::MISSING_FUSED.with_dnr());
    }
    match fuse {
        Fuse::Normal => rw::begin(qp, slot, sqe, in_capsule),
        Fuse::First => {
            qp.fused.set(Pending::Failed);
            if sqe.opcode != opcode::COMPARE || qp.options.masked_fuses & 1 != 0 {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            let plan = rw::begin(qp, slot, sqe, in_capsule)?;
            qp.slots[usize::from(slot)].borrow_mut().half = Half::First;
            qp.fused.set(Pending::First(slot));
            Ok(plan)
        }
        _ => Err(Status::INVALID_FIELD.with_dnr()),
    }
}

fn second(qp: &Rc<Qpair>, slot: u16, sqe: &Sqe, in_capsule: u32, pending: Pending) -> Result<Begin, Status> {
    let first = match pending {
        Pending::First(f) => f,
        Pending::Failed => return Err(Status::ABORTED_FAILED_FUSED.with_dnr()),
        Pending::None => return Err(Status::MISSING_FUSED.with_dnr()),
    };
    let same = {
        let a = qp.slots[usize::from(first)].borrow();
        sqe.opcode == opcode::WRITE
            && a.sqe.nsid == sqe.nsid
            && a.sqe.slba() == sqe.slba()
            && a.sqe.nblocks() == sqe.nblocks()
    };
    let plan = if same { rw::begin(qp, slot, sqe, in_capsule) } else { Err(Status::INVALID_FIELD.with_dnr()) };
    if plan.is_err() {
        end_half(qp, first, Status::ABORTED_FAILED_FUSED.with_dnr());
        return plan;
    }
    qp.slots[usize::from(first)].borrow_mut().partner = slot;
    let mut r = qp.slots[usize::from(slot)].borrow_mut();
    r.half = Half::Second;
    r.partner = first;
    plan
}

/// Ends one half, now if the core has it, else when its data has arrived.
fn end_half(qp: &Rc<Qpair>, slot: u16, status: Status) {
    let mut r = qp.slots[usize::from(slot)].borrow_mut();
    match r.phase {
        Phase::Begun => {
            r.status = status;
            r.partner = NO_SLOT;
        }
        Phase::Executing => {
            r.partner = NO_SLOT;
            drop(r);
            // It may be waiting for a request of the block layer: nobody may run it after its end.
            qp.group.shares.leave(Want::Request, qp, slot);
            qp.complete(slot, status);
        }
        Phase::Free | Phase::Done => {}
    }
}

/// One half will not run: neither does the other.
#[inline]
pub(crate) fn half_failed(qp: &Rc<Qpair>, slot: u16) {
    if qp.slots[usize::from(slot)].borrow().half != Half::Whole {
        other_half_ends(qp, slot, Status::ABORTED_FAILED_FUSED.with_dnr());
    }
}

#[cold]
fn other_half_ends(qp: &Rc<Qpair>, slot: u16, status: Status) {
    let partner = std::mem::replace(&mut qp.slots[usize::from(slot)].borrow_mut().partner, NO_SLOT);
    if partner != NO_SLOT {
        end_half(qp, partner, status);
    } else if qp.fused.get() == Pending::First(slot) {
        qp.fused.set(Pending::Failed);
    }
}

/// All data of one half is here.
pub(crate) fn execute(qp: &Rc<Qpair>, slot: u16) {
    let (status, half, partner) = {
        let mut r = qp.slots[usize::from(slot)].borrow_mut();
        r.ready = true;
        (r.status, r.half, r.partner)
    };
    if !status.is_ok() {
        return qp.complete(slot, status);
    }
    if partner == NO_SLOT {
        if half == Half::Second {
            qp.complete(slot, Status::ABORTED_FAILED_FUSED.with_dnr());
        }
        return; // the second half has not come yet
    }
    if qp.slots[usize::from(partner)].borrow().ready {
        run(qp, if half == Half::First { slot } else { partner });
    }
}

/// Both halves are ready: `first` is the compare's slot.
pub(crate) fn run(qp: &Rc<Qpair>, first: u16) {
    let second = qp.slots[usize::from(first)].borrow().partner;
    if second == NO_SLOT {
        return qp.complete(first, Status::ABORTED_FAILED_FUSED.with_dnr());
    }
    let (mut a, mut b) = (qp.slots[usize::from(first)].borrow_mut(), qp.slots[usize::from(second)].borrow_mut());
    let blocks = a.sqe.nblocks();
    let found = qp.access.get().map_or(Err(Status::COMMAND_SEQUENCE_ERROR), |x| x.find(a.sqe.nsid.get()));
    let found = found.and_then(|(l, bs)| {
        let len = u64::from(blocks) * u64::from(bs);
        let fits = len == u64::from(a.len) && len == u64::from(b.len) && a.buf.is_some() && b.buf.is_some();
        if fits { Ok(l) } else { Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()) }
    });
    let live = match found {
        Ok(l) => l,
        Err(status) => {
            drop((a, b));
            return finish(qp, first, second, unwritten(status));
        }
    };
    let Some(mut io) = qp.get_request() else {
        drop((a, b));
        return starve(qp, first);
    };
    let fua = if b.sqe.cdw12.get() & cdw12::FUA != 0 { IoFlags::FUA } else { IoFlags::NONE };
    io.prepare(Op::CompareAndWrite, fua, a.sqe.slba(), blocks);
    if let (Some(x), Some(y)) = (a.buf.take(), b.buf.take()) {
        io.set_buf_pair(x, y);
    }
    io.begin(qp.clone(), u64::from(first) | PART_FUSED);
    (a.io, b.io) = (Some(io.id()), Some(io.id()));
    b.ns = Some(live.clone());
    a.ns.insert(live).channel.submit(io);
}

/// The request ended; `begun`: its write may have begun.
pub(crate) fn done(qp: &Rc<Qpair>, first: u16, status: Status, begun: bool) {
    let second = qp.slots[usize::from(first)].borrow().partner;
    let status = outcome(status);
    if status.is_err() && begun && !status.is(Status::COMPARE_FAILURE) {
        // The host must not take it for a write that was not executed, and send both again.
        return finish(qp, first, second, [Status::SUCCESS, status]);
    }
    finish(qp, first, second, unwritten(status));
}

/// How both halves end where nothing was written if `status` is an error.
fn unwritten(status: Status) -> [Status; 2] {
    [status, if status.is_ok() { status } else { Status::ABORTED_FAILED_FUSED.with_dnr() }]
}

/// Ends both halves, the first one first.
fn finish(qp: &Rc<Qpair>, first: u16, second: u16, [compare, write]: [Status; 2]) {
    qp.complete(first, compare);
    if second != NO_SLOT {
        qp.complete(second, write);
    }
}

/// Abort of a second half whose data will not come: nothing is written, and both halves say so.
pub(crate) fn abort_begun(qp: &Rc<Qpair>, second: u16) {
    other_half_ends(qp, second, Status::ABORT_REQUESTED);
    qp.end_begun(second, Status::ABORTED_FAILED_FUSED.with_dnr());
}

/// Abort of one half that does not run yet: both end, as what was not executed. False: they run, and are to be aborted in the device.
pub(crate) fn abort(qp: &Rc<Qpair>, slot: u16) -> bool {
    let half = {
        let r = qp.slots[usize::from(slot)].borrow();
        if r.phase != Phase::Executing || r.io.is_some() {
            return false;
        }
        r.half
    };
    let [compare, write] = unwritten(Status::ABORT_REQUESTED);
    let (own, other) = if half == Half::First { (compare, write) } else { (write, compare) };
    other_half_ends(qp, slot, other);
    end_half(qp, slot, own);
    true
}

/// The connection ends: halves that wait for each other end.
pub(crate) fn closing(qp: &Rc<Qpair>) {
    qp.fused.set(Pending::None);
    for slot in 0..qp.slots() {
        let waits = {
            let mut r = qp.slots[usize::from(slot)].borrow_mut();
            let waits = r.half != Half::Whole && r.phase == Phase::Executing && r.io.is_none();
            if waits {
                r.partner = NO_SLOT;
            }
            waits
        };
        if waits {
            qp.group.shares.leave(Want::Request, qp, slot);
            qp.complete(slot, Status::ABORTED_SQ_DELETION);
        }
    }
}
