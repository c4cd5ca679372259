//! Requests of transactions and reads to members, over memory that their [`Holdings`] lend.

use std::rc::Rc;

use super::engine::Engine;
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
}

/// What came back.
pub(super) struct Landed {
    pub(super) strip: usize,
    pub(super) failed: bool,
    /// False: it was given up.
    pub(super) awaited: bool,
}

impl Engine {
    /// Sends a request; `to` gets it back, and calls [`landed`](Engine::landed). False: there is no member, which has failed now.
    pub(super) fn send<S: Submitter>(self: &Rc<Self>, h: &mut Holdings, to: &Rc<S>, c: Child) -> bool {
        let member = &self.members[self.shared.layout.slot_of(c.stripe, c.strip)];
        let (io, mark) = h.launch(c.vector, c.op, IoFlags::NONE, member.lba(c.at), member.blocks(c.len));
        match member.submit(io, to, c.strip as u32 | mark) {
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
        let io = self.members[self.shared.layout.slot_of(stripe, strip)].landed(io, to, tag)?;
        let failed = io.status().is_err();
        let awaited = h.land(io, base + strip, tag as u32);
        Some(Landed { strip, failed, awaited })
    }
}
