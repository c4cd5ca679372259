//! Read, write, compare, write zeroes, flush.

use std::rc::Rc;

use longshore_bdev::{IoFlags, Op};
use longshore_nvme::wire::identify::oncs;
use longshore_nvme::wire::io::cdw12;
use longshore_nvme::wire::io::dsm::ranges;
use longshore_nvme::wire::opcode::io as opcode;
use longshore_nvme::wire::{Sqe, Status};

use super::sgl::{Length, from_host, to_host};
use super::starve;
use crate::qpair::Qpair;
use crate::request::Begin;

/// Checks a command that is not, or not yet known to be, half of a fused pair.
#[inline]
pub(crate) fn begin(qp: &Rc<Qpair>, slot: u16, sqe: &Sqe, in_capsule: u32) -> Result<Begin, Status> {
    let Some(access) = qp.access.get() else { return Err(Status::COMMAND_SEQUENCE_ERROR) };
    let nsid = sqe.nsid.get();
    let bytes = |bs: u32| Length::Exact(u64::from(sqe.nblocks()) * u64::from(bs));
    match sqe.opcode {
        opcode::READ => {
            let (bs, lends) = access.readable(nsid)?;
            to_host(qp, slot, sqe, bytes(bs), lends)
        }
        opcode::WRITE => from_host(qp, slot, sqe, in_capsule, bytes(access.block_size(nsid)?)),
        opcode::COMPARE if qp.options.masked_oncs & oncs::COMPARE == 0 => {
            from_host(qp, slot, sqe, in_capsule, bytes(access.block_size(nsid)?))
        }
        opcode::FLUSH => access.block_size(nsid).map(|_| Begin::Execute),
        opcode::WRITE_ZEROES if qp.options.masked_oncs & oncs::WRITE_ZEROES == 0 => {
            let bs = access.block_size(nsid)?;
            let limit = 4096u64.checked_shl(u32::from(access.who.wzsl)).unwrap_or(u64::MAX);
            if access.who.wzsl != 0 && u64::from(sqe.nblocks()) * u64::from(bs) > limit {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            Ok(Begin::Execute)
        }
        opcode::DATASET_MANAGEMENT if qp.options.masked_oncs & oncs::DATASET_MANAGEMENT == 0 => {
            access.block_size(nsid)?;
            from_host(qp, slot, sqe, in_capsule, Length::AtLeast(ranges(sqe) as u32 * 16))
        }
        _ => Err(Status::INVALID_OPCODE.with_dnr()),
    }
}

/// The block layer's operation for a command.
#[inline]
fn operation(sqe: &Sqe) -> (Op, IoFlags, u64, u32) {
    let w = sqe.cdw12.get();
    let fua = if w & cdw12::FUA != 0 { IoFlags::FUA } else { IoFlags::NONE };
    match sqe.opcode {
        opcode::READ => (Op::Read, IoFlags::NONE, sqe.slba(), sqe.nblocks()),
        opcode::WRITE => (Op::Write, fua, sqe.slba(), sqe.nblocks()),
        opcode::COMPARE => (Op::Compare, IoFlags::NONE, sqe.slba(), sqe.nblocks()),
        opcode::WRITE_ZEROES => {
            let unmap = if w & cdw12::DEALLOCATE != 0 { IoFlags::MAY_UNMAP } else { IoFlags::NO_UNMAP };
            (Op::WriteZeroes, fua.with(unmap), sqe.slba(), sqe.nblocks())
        }
        _ => (Op::Flush, IoFlags::NONE, 0, 0),
    }
}

/// Hands a command to its device.
#[inline]
pub(crate) fn submit(qp: &Rc<Qpair>, slot: u16) {
    let mut guard = qp.slots[usize::from(slot)].borrow_mut();
    let r = &mut *guard;
    // Looked up again: the namespace may have gone, or be another, since the command came in.
    let found = qp.access.get().map_or(Err(Status::COMMAND_SEQUENCE_ERROR), |a| a.find(r.sqe.nsid.get()));
    let (op, mut flags, lba, blocks) = operation(&r.sqe);
    let live = match found {
        Ok((l, bs)) if !op.has_buffer() || u64::from(blocks) * u64::from(bs) == u64::from(r.len) => l,
        Ok(_) => {
            drop(guard);
            return qp.complete(slot, Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
        }
        Err(status) => {
            drop(guard);
            return qp.complete(slot, status);
        }
    };
    let Some(mut io) = qp.get_request() else {
        drop(guard);
        return starve(qp, slot);
    };
    if op.has_buffer() {
        match r.buf.take() {
            Some(b) if b.len() == r.len as usize => io.set_buf(b),
            None if op == Op::Read && live.lends => flags = flags.with(IoFlags::LEND),
            None if op == Op::Read => {
                // The namespace is another one than when the command came in.
                qp.put_request(io);
                drop(guard);
                return qp.need_buffer(slot);
            }
            _ => {
                qp.put_request(io);
                drop(guard);
                return qp.complete(slot, Status::INTERNAL_ERROR);
            }
        }
    }
    io.prepare(op, flags, lba, blocks);
    io.begin(qp.clone(), u64::from(slot));
    r.io = Some(io.id());
    r.ns.insert(live).channel.submit(io);
}
