//! Abort: Base Specification, "Abort command".

use std::rc::Rc;

use longshore_nvme::wire::{Sqe, Status};

use crate::controller::Controller;
use crate::io::fused;
use crate::qpair::{Life, Qpair};
use crate::request::{Half, Phase};

/// Dword 0 of an Abort that aborted nothing.
const NOT_ABORTED: u32 = 1;

/// Ends the command that an Abort names, on whatever core its queue is.
pub(crate) fn abort(qp: &Rc<Qpair>, slot: u16, c: &Rc<Controller>, sqe: &Sqe) {
    let (sqid, cid) = (sqe.cdw10.get() as u16, (sqe.cdw10.get() >> 16) as u16);
    if sqid == 0 {
        let found = qp.abort_command(cid, Some(slot));
        return answer(qp, slot, found);
    }
    let queue = c.queues.borrow().get(&sqid).copied();
    let Some(q) = queue else {
        return answer(qp, slot, false);
    };
    let (home, serial) = (qp.group.core(), qp.serial);
    qp.group.target().send(q.core, move |g| {
        let found = g.find_qpair(q.serial).is_some_and(|q| q.abort_command(cid, None));
        g.target().send(home, move |g| {
            if let Some(q) = g.find_qpair(serial) {
                answer(&q, slot, found);
            }
        });
    });
}

fn answer(qp: &Qpair, slot: u16, found: bool) {
    qp.slots[usize::from(slot)].borrow_mut().dw0 = if found { 0 } else { NOT_ABORTED };
    qp.complete(slot, Status::SUCCESS);
}

impl Qpair {
    /// Ends the command with this identifier early; `but` is the slot of the Abort itself. False: there is none, or it can only
    /// run to its end.
    pub(crate) fn abort_command(self: &Rc<Self>, cid: u16, but: Option<u16>) -> bool {
        if self.life.get() != Life::Live {
            return false;
        }
        let found = (0..self.slots()).find(|&i| {
            let r = self.slots[usize::from(i)].borrow();
            Some(i) != but && matches!(r.phase, Phase::Begun | Phase::Executing) && r.sqe.cid.get() == cid
        });
        let Some(slot) = found else { return false };
        let (phase, half) = {
            let r = self.slots[usize::from(slot)].borrow();
            (r.phase, r.half)
        };
        if phase == Phase::Begun {
            // Also where it waits for a buffer: its data may be next in the stream.
            let given_up = self.transport().is_some_and(|t| t.abort_transfer(slot));
            if given_up {
                self.slots[usize::from(slot)].borrow_mut().waits_buffer = false;
                self.end_begun(slot, Status::ABORT_REQUESTED);
            }
            return given_up;
        }
        if self.admin.get().is_some_and(|c| c.events.abort(c, slot)) {
            return true;
        }
        let starved = {
            let mut s = self.starved.borrow_mut();
            s.iter().position(|&x| x == slot).map(|i| s.remove(i))
        };
        if half != Half::Whole && fused::abort(self, slot) {
            return true;
        }
        if starved.is_some() {
            self.complete(slot, Status::ABORT_REQUESTED);
            return true;
        }
        self.abort_in_device(slot)
    }
}
