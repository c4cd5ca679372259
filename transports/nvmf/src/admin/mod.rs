//! Admin commands: Base Specification, "Admin Command Set".

mod abort;
pub(crate) mod aer;
pub(crate) mod features;
mod identify;
mod log_page;

use std::rc::Rc;

use longshore_nvme::wire::feature::FeatureCmd;
use longshore_nvme::wire::log::GetLogPageCmd;
use longshore_nvme::wire::opcode::admin as opcode;
use longshore_nvme::wire::{Sqe, Status};

use crate::controller::Controller;
use crate::io::sgl::{Length, from_host, to_host};
use crate::qpair::Qpair;
use crate::request::Begin;

/// Checks a command by its opcode and length.
pub(crate) fn begin(qp: &Rc<Qpair>, slot: u16, sqe: &Sqe, in_capsule: u32) -> Result<Begin, Status> {
    if sqe.flags & 3 != 0 {
        return Err(Status::INVALID_FIELD.with_dnr()); // no admin command can be fused
    }
    let discovery = qp.admin.get().is_some_and(|c| c.discovery);
    match sqe.opcode {
        opcode::IDENTIFY => to_host(qp, slot, sqe, Length::AtLeast(4096), false),
        opcode::GET_LOG_PAGE => {
            let len = GetLogPageCmd::of(sqe).len;
            if len > u64::from(qp.options.max_io_size) {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            to_host(qp, slot, sqe, Length::AtLeast(len as u32), false)
        }
        opcode::GET_FEATURES => match features::data_to_host(&FeatureCmd::of(sqe)) {
            0 => Ok(Begin::Execute),
            n => to_host(qp, slot, sqe, Length::AtLeast(n), false),
        },
        opcode::SET_FEATURES => match features::data_from_host(&FeatureCmd::of(sqe)) {
            0 => Ok(Begin::Execute),
            n => from_host(qp, slot, sqe, in_capsule, Length::AtLeast(n)),
        },
        opcode::KEEP_ALIVE | opcode::ASYNC_EVENT_REQUEST => Ok(Begin::Execute),
        opcode::ABORT if !discovery => Ok(Begin::Execute),
        _ => Err(Status::INVALID_OPCODE.with_dnr()),
    }
}

pub(crate) fn execute(qp: &Rc<Qpair>, slot: u16) {
    let Some(c) = qp.admin.get().cloned() else {
        return qp.complete(slot, Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    };
    let sqe = qp.slots[usize::from(slot)].borrow().sqe;
    // Until the host enables it, a controller only answers fabrics commands.
    if c.cc().en() == 0 {
        return qp.complete(slot, Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    }
    let done = match sqe.opcode {
        opcode::IDENTIFY => identify::identify(&c, &sqe).map(|page| fill(qp, slot, 0, &page)),
        opcode::GET_LOG_PAGE => get_log_page(qp, slot, &c, &sqe),
        opcode::GET_FEATURES => features::get(&c, qp, slot, &FeatureCmd::of(&sqe), sqe.nsid.get()),
        opcode::SET_FEATURES => features::set(&c, qp, slot, &FeatureCmd::of(&sqe)),
        opcode::KEEP_ALIVE => {
            c.alive();
            Ok(())
        }
        opcode::ASYNC_EVENT_REQUEST => match c.events.request(&c, slot) {
            Ok(()) => return, // answered by an event
            Err(e) => Err(e),
        },
        opcode::ABORT => return abort::abort(qp, slot, &c, &sqe),
        _ => Err(Status::INVALID_OPCODE.with_dnr()),
    };
    qp.complete(slot, done.err().unwrap_or(Status::SUCCESS));
}

fn get_log_page(qp: &Qpair, slot: u16, c: &Rc<Controller>, sqe: &Sqe) -> Result<(), Status> {
    let cmd = GetLogPageCmd::of(sqe);
    if cmd.offset & 3 != 0 || cmd.index_offset {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let page = log_page::page(c, &cmd, sqe.nsid.get())?;
    if cmd.offset > page.len() as u64 {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    fill(qp, slot, cmd.offset as usize, &page);
    if !cmd.rae {
        log_page::was_read(c, cmd.lid);
    }
    Ok(())
}

/// Puts `page` from `offset` on into the command's buffer, and zeroes behind it.
fn fill(qp: &Qpair, slot: u16, offset: usize, page: &[u8]) {
    qp.with_buffer(slot, |b| {
        let rest = page.get(offset..).unwrap_or(&[]);
        let n = rest.len().min(b.len());
        b[..n].copy_from_slice(&rest[..n]);
        b[n..].fill(0);
    });
}
