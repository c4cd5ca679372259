//! Dataset management: deallocate, a few ranges at a time.

use std::rc::Rc;

use longshore_bdev::{IoFlags, Op};
use longshore_nvme::wire::Status;
use longshore_nvme::wire::io::{DsmRange, dsm};
use zerocopy::FromBytes;

use super::{PART_DSM, outcome, starve};
use crate::qpair::Qpair;
use crate::request::Request;

/// Ranges of one command in flight at once.
const WINDOW: u16 = 8;

fn range(r: &Request, i: usize) -> Option<DsmRange> {
    let b = r.buf.as_ref()?.as_slice();
    b.get(i * 16..i * 16 + 16).and_then(|b| DsmRange::read_from_bytes(b).ok())
}

pub(crate) fn execute(qp: &Rc<Qpair>, slot: u16) {
    let status = match prepare(qp, slot) {
        Ok(true) => return start_parts(qp, slot),
        Ok(false) => Status::SUCCESS,
        Err(s) => s,
    };
    qp.complete(slot, status);
}

/// Checks every range before any is touched. False: nothing to do.
fn prepare(qp: &Qpair, slot: u16) -> Result<bool, Status> {
    let mut guard = qp.slots[usize::from(slot)].borrow_mut();
    let r = &mut *guard;
    let access = qp.access.get().ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
    let (live, _) = access.find(r.sqe.nsid.get())?;
    let blocks = live.ns.num_blocks();
    for i in 0..dsm::ranges(&r.sqe) {
        let x = range(r, i).ok_or(Status::DATA_SGL_LENGTH_INVALID.with_dnr())?;
        let (lba, n) = (x.slba.get(), x.nlb.get());
        if lba.checked_add(u64::from(n)).is_none_or(|end| end > blocks) {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
        }
        if access.who.dmrsl != 0 && n > access.who.dmrsl {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr());
        }
    }
    // Everything but deallocation is a hint; so is that, to a device that cannot.
    if r.sqe.cdw11.get() & dsm::DEALLOCATE == 0 || !live.channel.supports(Op::Unmap) {
        return Ok(false);
    }
    (r.parts, r.next_part) = (0, 0);
    r.part_ios.clear();
    r.ns = Some(live);
    Ok(true)
}

/// Starts ranges up to the window; ends the command when none is left.
pub(crate) fn start_parts(qp: &Rc<Qpair>, slot: u16) {
    loop {
        let mut guard = qp.slots[usize::from(slot)].borrow_mut();
        let r = &mut *guard;
        let n = dsm::ranges(&r.sqe) as u16;
        if r.next_part >= n || r.parts >= WINDOW {
            let end = (r.parts == 0).then_some(r.status);
            drop(guard);
            if let Some(status) = end {
                qp.complete(slot, status);
            }
            return;
        }
        let x = range(r, usize::from(r.next_part)).unwrap_or_default();
        if x.nlb.get() == 0 {
            r.next_part += 1;
            continue;
        }
        let Some(live) = r.ns.clone() else {
            r.next_part = n;
            continue;
        };
        let Some(mut io) = qp.get_request() else {
            let wait = r.parts == 0;
            drop(guard);
            qp.group.put_namespace(live);
            if wait {
                starve(qp, slot);
            }
            return; // a part that ends starts the next
        };
        r.next_part += 1;
        r.parts += 1;
        io.prepare(Op::Unmap, IoFlags::NONE, x.slba.get(), x.nlb.get());
        io.begin(qp.clone(), u64::from(slot) | PART_DSM);
        r.io = Some(io.id());
        r.part_ios.push(io.id());
        live.channel.submit(io);
        drop(guard);
    }
}

pub(crate) fn part_done(qp: &Rc<Qpair>, slot: u16, status: Status) {
    {
        let mut r = qp.slots[usize::from(slot)].borrow_mut();
        r.parts -= 1;
        if status != Status::SUCCESS {
            if r.status == Status::SUCCESS {
                r.status = outcome(status);
            }
            r.next_part = u16::MAX; // the rest is not started
        }
    }
    start_parts(qp, slot);
}
