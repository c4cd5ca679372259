//! Requests of transactions and reads to members, over memory that their [`Holdings`] lend.

use std::rc::Rc;

use super::engine::Engine;
use super::member::is_fault;
use super::memory::{Holdings, VecId};
use crate::frame::Submitter;
use crate::io::{IoFlags, IoRef, Op};

/// A request to the member of one strip.
#[derive(Clone, Copy)]
pub(super) struct Child {
    pub(super) stripe: u64,
    pub(super) strip: usize,
    /// What it moves.
    pub(super) vector: VecId,
    pub(super) op: Op,
    /// Bytes of the member.
    pub(super) at: u64,
    pub(super) len: u32,
    /// It is done in another way if the member is slow.
    pub(super) hedge: bool,
}

/// How a request to a member ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Done,
    /// These blocks cannot be read, or the write failed, or nobody waits for it any more.
    Failed,
    /// The member takes too long: it may well have the blocks.
    Late,
    /// Whatever else it may be, it is not the blocks: the member does not read.
    Faulty,
}

/// What came back.
pub(super) struct Landed {
    pub(super) strip: usize,
    pub(super) end: End,
    /// False: it was given up.
    pub(super) awaited: bool,
}

impl Engine {
    /// Sends a request; `to` gets it back, and calls [`landed`](Engine::landed). False: there is no member, which has failed now.
    pub(super) fn send<S: Submitter>(self: &Rc<Self>, h: &mut Holdings, to: &Rc<S>, c: Child) -> bool {
        let member = &self.members[self.shared.layout.slot_of(c.stripe, c.strip)];
        let (io, mark) = h.launch(c.vector, c.op, IoFlags::NONE, member.lba(c.at), member.blocks(c.len));
        let tag = c.strip as u32 | mark;
        let sent = if c.hedge { member.submit_hedged(io, to, tag) } else { member.submit(io, to, tag) };
        match sent {
            Ok(()) => {
                self.watch();
                true
            }
            Err(io) => {
                h.land(io, c.vector, mark);
                self.lost(member.slot);
                false
            }
        }
    }

    /// A request for a strip of `stripe` came back to `to`. Those of strip `i` use vector `base + i`. None: it was sent again.
    pub(super) fn landed<S: Submitter>(
        &self,
        h: &mut Holdings,
        to: &Rc<S>,
        stripe: u64,
        base: VecId,
        io: IoRef,
        tag: u64,
    ) -> Option<Landed> {
        let strip = (tag & 0xffff) as usize;
        let member = &self.members[self.shared.layout.slot_of(stripe, strip)];
        let late = io.status().is_err() && member.is_hedged(io.status(), tag);
        let io = member.landed(io, to, tag)?;
        let end = match io.status() {
            status if status.is_ok() => End::Done,
            status if io.op() == Op::Read && is_fault(status) => End::Faulty,
            _ if late => End::Late,
            _ => End::Failed,
        };
        let awaited = h.land(io, base + strip, tag as u32);
        Some(Landed { strip, end, awaited })
    }
}
