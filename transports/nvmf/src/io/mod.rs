//! I/O commands: NVM Command Set Specification. The hot path.

pub(crate) mod dsm;
pub(crate) mod fused;
pub(crate) mod rw;
pub(crate) mod sgl;

use std::rc::Rc;

use longshore_bdev::{IoFlags, IoRef, NOT_LENT};
use longshore_nvme::wire::opcode::io as opcode;
use longshore_nvme::wire::{Sqe, Status};

use crate::qpair::Qpair;
use crate::request::{Begin, Half, Phase};

/// Bits of a request's tag above the slot: what the request is a part of.
pub(crate) const PART_DSM: u64 = 1 << 16;
pub(crate) const PART_FUSED: u64 = 2 << 16;

/// Checks a command: opcode, namespace, lengths, SGL.
#[inline]
pub(crate) fn begin(qp: &Rc<Qpair>, slot: u16, sqe: &Sqe, in_capsule: u32) -> Result<Begin, Status> {
    if sqe.flags & 3 != 0 || qp.fused.get() != fused::Pending::None {
        return fused::begin(qp, slot, sqe, in_capsule);
    }
    rw::begin(qp, slot, sqe, in_capsule)
}

#[inline]
pub(crate) fn execute(qp: &Rc<Qpair>, slot: u16) {
    let (half, op) = {
        let r = qp.slots[usize::from(slot)].borrow();
        (r.half, r.sqe.opcode)
    };
    match (half, op) {
        (Half::Whole, opcode::DATASET_MANAGEMENT) => dsm::execute(qp, slot),
        (Half::Whole, _) => rw::submit(qp, slot),
        _ => fused::execute(qp, slot),
    }
}

/// A request of the block layer is free for a command that waited for one.
pub(crate) fn resume(qp: &Rc<Qpair>, slot: u16) {
    let (half, op) = {
        let r = qp.slots[usize::from(slot)].borrow();
        if r.phase != Phase::Executing {
            return; // it has ended meanwhile
        }
        (r.half, r.sqe.opcode)
    };
    match (half, op) {
        (Half::Whole, opcode::DATASET_MANAGEMENT) => dsm::start_parts(qp, slot),
        (Half::Whole, _) => rw::submit(qp, slot),
        _ => fused::run(qp, slot),
    }
}

/// The command waits for a request of the block layer.
#[cold]
pub(crate) fn starve(qp: &Rc<Qpair>, slot: u16) {
    let c = &qp.group.counters.pending_io;
    c.set(c.get() + 1);
    qp.wait_request(slot);
}

/// A request of the block layer ended.
#[inline]
pub(crate) fn done(qp: &Rc<Qpair>, mut io: IoRef, tag: u64) {
    let (slot, status) = (tag as u16, io.status());
    match tag & !0xffff {
        0 => {
            let buf = io.take_buf();
            // A success without a buffer is against the rules, but no reason to send what is not there.
            let unlent = buf.is_none() && io.flags().has(IoFlags::LEND) && (status == NOT_LENT || status.is_ok());
            qp.put_request(io);
            if unlent {
                return qp.need_buffer(slot);
            }
            qp.slots[usize::from(slot)].borrow_mut().buf = buf;
            qp.complete(slot, outcome(status));
        }
        PART_DSM => {
            qp.put_request(io);
            dsm::part_done(qp, slot, status);
        }
        _ => {
            let begun = io.flags().has(IoFlags::WRITE_BEGUN);
            qp.put_request(io);
            fused::done(qp, slot, status, begun);
        }
    }
}

/// The status that the host sees for one of the block layer: Do Not Retry where a retry cannot help.
#[inline]
pub(crate) fn outcome(status: Status) -> Status {
    if status == Status::SUCCESS { status } else { failure(status) }
}

#[cold]
fn failure(status: Status) -> Status {
    let hopeless = [
        Status::LBA_OUT_OF_RANGE,
        Status::INVALID_OPCODE,
        Status::INVALID_FIELD,
        Status::COMPARE_FAILURE,
        Status::NAMESPACE_WRITE_PROTECTED,
    ];
    if hopeless.iter().any(|s| s.is(status)) { status.with_dnr() } else { status }
}
