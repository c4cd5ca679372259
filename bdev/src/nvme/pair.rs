//! Compare-and-writes under way: two fused commands each.
//!
//! # When one is sent again
//!
//! It may not be executed twice: the second time it would compare with what it wrote itself, and report a failed comparison to a
//! user whose write was done, who then believes that another one holds the lock. So it is sent again only if its write was not
//! executed for certain, not even in part. The Base Specification ("Fused Operations") has one status that says so: the write ends
//! with Command Aborted due to Failed Fused Command, because the compare failed. Nothing else does: a controller that executes
//! both as one may answer an Abort with Abort Requested for both, however far it had come; and of a connection that is
//! lost nobody knows. Then it ends with `ABORTED_BY_HOST` and Do Not Retry.

use longshore_nvme::host::{Data, Done, IoQueue};
use longshore_nvme::wire::io::cdw12;
use longshore_nvme::wire::opcode::io as opcode;
use longshore_nvme::wire::{Fuse, Sqe, Status};
use longshore_reactor::DmaBuf;

use super::core_queue::{CoreQueue, Start};
use super::waiting::aborted;
use crate::io::IoRef;

/// Tags of the two halves of a fused pair.
const FIRST: u64 = 1;
const SECOND: u64 = 2;

/// A compare-and-write under way.
pub(super) struct Pair {
    pub(super) io: IoRef,
    pub(super) cids: [u16; 2],
    ends: [Option<Status>; 2],
    /// One of them took too long, and was to be aborted for that.
    late: bool,
}

/// What is known when both halves have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    /// The write was not executed, for the reason why the compare failed.
    Unwritten(Status),
    /// The write may have been executed, or a part of it.
    Unknown(Status),
}

fn judge(compare: Status, write: Status) -> End {
    if compare.is_ok() && write.is_ok() {
        End::Done
    } else if compare.is_err() && write.is(Status::ABORTED_FAILED_FUSED)
        || compare.is(Status::COMPARE_FAILURE) && write.is_err()
    {
        End::Unwritten(compare)
    } else if compare.is_err() && !(compare.is(Status::ABORTED_FAILED_FUSED) && write.is_err()) {
        End::Unknown(compare)
    } else {
        End::Unknown(write)
    }
}

impl CoreQueue {
    /// A fused Compare and Write: two commands in a row, or none.
    pub(super) fn start_pair(
        &self,
        q: &IoQueue,
        mut io: IoRef,
        first: Sqe,
        pieces: &mut Vec<DmaBuf>,
        want: usize,
    ) -> Start {
        if io.second_segment().len() < want {
            return Start::Failed(io, Status::DATA_SGL_LENGTH_INVALID);
        }
        if q.room() < 2 {
            return match q.outstanding() {
                0 if q.is_open() => Start::Failed(io, Status::INVALID_OPCODE), // never: the queue has one entry
                _ => Start::Later(io),
            };
        }
        let Some(me) = self.me.upgrade() else { return Start::Failed(io, Status::INTERNAL_ERROR) };
        let new = self.lend(io.second_segment().as_ptr(), want);
        let (mut a, mut b) = (first, first);
        a.cdw12 &= !cdw12::FUA;
        a.flags |= Fuse::First as u8;
        b.opcode = opcode::WRITE;
        b.flags |= Fuse::Second as u8;
        let word = io.words()[1];
        let one = match q.submit(&a, Data::WriteMany(pieces), me.clone(), FIRST) {
            Ok(cid) => cid,
            Err(e) => return Start::Failed(io, e.status()), // never: there is room, and it is open
        };
        match q.submit(&b, Data::Write(new), me, SECOND) {
            Ok(two) => {
                io.set_words([u64::from(two) + 1, word]);
                self.pairs.borrow_mut().push(Pair { io, cids: [one, two], ends: [None; 2], late: false });
            }
            Err(e) => {
                // The lone half ends too; the request waits for it.
                q.close("half of a fused pair could not be sent");
                self.pairs.borrow_mut().push(Pair {
                    io,
                    cids: [one, u16::MAX],
                    ends: [None, Some(e.status())],
                    late: false,
                });
            }
        }
        Start::Started
    }

    #[cold]
    pub(super) fn half_ended(&self, done: &Done) {
        let half = usize::from(done.tag == SECOND);
        let ended = {
            let mut pairs = self.pairs.borrow_mut();
            let Some(i) = pairs.iter().position(|p| p.cids[half] == done.cid && p.ends[half].is_none()) else { return };
            pairs[i].ends[half] = Some(done.status);
            pairs[i].late |= done.late;
            matches!(pairs[i].ends, [Some(_), Some(_)]).then(|| pairs.swap_remove(i))
        };
        let Some(Pair { io, ends: [Some(compare), Some(write)], late, .. }) = ended else { return };
        match judge(compare, write) {
            End::Done => io.complete(Status::SUCCESS),
            End::Unwritten(status) => self.failed(io, status, late),
            End::Unknown(status) => {
                let unasked = status.is(Status::ABORT_REQUESTED) && !aborted(&io) && !late;
                let lost = compare.is(Status::ABORTED_BY_HOST) || write.is(Status::ABORTED_BY_HOST);
                io.complete(if unasked || lost { Status::ABORTED_BY_HOST.with_dnr() } else { status });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_write_that_failed_for_its_compare_was_not_executed() {
        let (ok, abort, fused) = (Status::SUCCESS, Status::ABORT_REQUESTED, Status::ABORTED_FAILED_FUSED);
        let (differs, lost, fault) = (Status::COMPARE_FAILURE, Status::ABORTED_BY_HOST, Status::WRITE_FAULT);
        assert_eq!(judge(ok, ok), End::Done);
        for compare in [abort, differs, fault, Status::NAMESPACE_NOT_READY] {
            assert_eq!(judge(compare, fused.with_dnr()), End::Unwritten(compare));
        }
        assert_eq!(
            judge(differs, lost),
            End::Unwritten(differs),
            "it was compared, and the answer for the write was lost"
        );
        for (compare, write, why) in [
            (abort, abort, abort),
            (abort, lost, abort),
            (abort, ok, abort),
            (ok, abort, abort),
            (ok, fault, fault),
            (ok, lost, lost),
            (lost, lost, lost),
            (fused, abort, abort),
            (fused, fault, fault),
        ] {
            assert_eq!(judge(compare, write), End::Unknown(why), "{compare}, {write}");
        }
    }
}
