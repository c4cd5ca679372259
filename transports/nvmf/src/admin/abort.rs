//! Abort: Base Specification, "Abort command".

use std::rc::Rc;
use std::time::Duration;

use longshore_nvme::wire::{Sqe, Status};

use crate::controller::Controller;
use crate::io::fused;
use crate::poll_group::PollGroup;
use crate::qpair::{Life, Qpair};
use crate::request::{Half, Phase};
use crate::share::Want;

/// Aborts that a controller carries out at once, less one: ACL of Identify.
pub(super) const LIMIT: u8 = 3;
/// Dword 0 of an Abort that aborted nothing.
const NOT_ABORTED: u32 = 1;
/// A command between two layers of a device is found by neither: it is looked for again, so often and so long.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
const LOOKS: u32 = 20;

/// What became of an attempt to abort a command.
enum Attempt {
    /// It ends early.
    Aborted,
    /// There is no such command, or it cannot be ended now.
    No,
    /// Its device does not find it yet: the slot, and which of its commands it is.
    NotFound(u16, u32),
}

/// Ends the command that an Abort names, on whatever core its queue is.
pub(crate) fn abort(qp: &Rc<Qpair>, slot: u16, c: &Rc<Controller>, sqe: &Sqe) {
    let (sqid, cid) = (sqe.cdw10.get() as u16, (sqe.cdw10.get() >> 16) as u16);
    if sqid == 0 {
        let found = qp.abort_command(cid, Some(slot));
        return answer(qp, slot, matches!(found, Attempt::Aborted));
    }
    let queue = c.queues.borrow().get(&sqid).copied();
    let Some(q) = queue else {
        return answer(qp, slot, false);
    };
    if c.aborts.get() > LIMIT {
        return qp.complete(slot, Status::ABORT_COMMAND_LIMIT_EXCEEDED);
    }
    c.aborts.set(c.aborts.get() + 1);
    let (home, serial) = (qp.group.core(), qp.serial);
    qp.group.target().send(q.core, move |g| {
        let reply = move |g: &PollGroup, found: bool| {
            g.target().send(home, move |g| {
                let Some(q) = g.find_qpair(serial) else { return };
                if let Some(c) = q.admin.get() {
                    c.aborts.set(c.aborts.get() - 1);
                }
                answer(&q, slot, found);
            });
        };
        let Some(q) = g.find_qpair(q.serial) else {
            return reply(g, false);
        };
        match q.abort_command(cid, None) {
            Attempt::Aborted => reply(g, true),
            Attempt::No => reply(g, false),
            Attempt::NotFound(at, turn) => {
                let (g, reactor) = (g.clone(), g.reactor().clone());
                let again = async move {
                    let mut found = false;
                    for _ in 0..LOOKS {
                        g.reactor().sleep(LOOK_AGAIN).await;
                        let same = {
                            let r = q.slots[usize::from(at)].borrow();
                            r.turn == turn && r.phase == Phase::Executing
                        };
                        if !same || q.abort_in_device(at) {
                            found = same;
                            break;
                        }
                    }
                    reply(&g, found);
                };
                drop(reactor.spawn(again));
            }
        }
    });
}

fn answer(qp: &Qpair, slot: u16, found: bool) {
    qp.slots[usize::from(slot)].borrow_mut().dw0 = if found { 0 } else { NOT_ABORTED };
    qp.complete(slot, Status::SUCCESS);
}

impl Qpair {
    /// Ends the command with this identifier early; `but` is the slot of the Abort itself.
    fn abort_command(self: &Rc<Self>, cid: u16, but: Option<u16>) -> Attempt {
        if self.life.get() != Life::Live {
            return Attempt::No;
        }
        let found = (0..self.slots()).find(|&i| {
            let r = self.slots[usize::from(i)].borrow();
            Some(i) != but && matches!(r.phase, Phase::Begun | Phase::Executing) && r.sqe.cid.get() == cid
        });
        let Some(slot) = found else { return Attempt::No };
        let (phase, half, turn) = {
            let r = self.slots[usize::from(slot)].borrow();
            (r.phase, r.half, r.turn)
        };
        if phase == Phase::Begun {
            // Also where it waits for a buffer: its data may be next in the stream.
            let given_up = self.transport().is_some_and(|t| t.abort_transfer(slot));
            if given_up && half == Half::Second {
                fused::abort_begun(self, slot);
            } else if given_up {
                self.end_begun(slot, Status::ABORT_REQUESTED);
            }
            return if given_up { Attempt::Aborted } else { Attempt::No };
        }
        if self.admin.get().is_some_and(|c| c.events.abort(c, slot)) {
            return Attempt::Aborted;
        }
        let starved = self.group.shares.leave(Want::Request, self, slot);
        if half != Half::Whole && fused::abort(self, slot) {
            return Attempt::Aborted;
        }
        if starved {
            self.complete(slot, Status::ABORT_REQUESTED);
            return Attempt::Aborted;
        }
        if self.abort_in_device(slot) { Attempt::Aborted } else { Attempt::NotFound(slot, turn) }
    }
}
