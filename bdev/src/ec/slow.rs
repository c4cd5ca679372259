//! Slow members: reads go past them.
//!
//! A read that went straight to a member reads into the host's memory, so the host cannot have it back before that read has ended: it is aborted,
//! and reconstructed when it has come back. A device that aborts nothing holds on to the reads it has. From then on none is sent to it: what it
//! should have been asked is reconstructed from the others, in the array's own memory, and copied. What such a read had asked the slow member
//! itself comes in whenever it does, to memory that nobody uses before.
//!
//! No host's read is used to find out whether the member is fast again: it is asked for a block now and then.

use std::rc::{Rc, Weak};
use std::time::Duration;

use super::engine::Engine;
use super::event::Event;
use super::txn::masked;
use crate::io::{IoFlags, Op};

/// How often a slow member is asked for a block.
const PROBES: Duration = Duration::from_millis(100);
/// As many in a row in good time, and it is slow no more.
const GOOD_PROBES: u32 = 3;

/// How often those look who wait for members.
pub(super) fn period(patience: Duration, slow: Duration) -> Duration {
    if slow.is_zero() { patience / 4 } else { (slow / 4).max(Duration::from_millis(1)).min(patience / 4) }
}

/// How long whoever set a timer for `period` at `set` was kept from looking, if that is so long that what members answered meanwhile may still lie there
/// unseen: the process was stopped, or its machine. All in ticks, as the `patience`.
pub(super) fn unseen(set: u64, now: u64, period: u64, patience: u64) -> u64 {
    let late = now.saturating_sub(set + period);
    if late > patience / 4 { late } else { 0 }
}

/// How long what hangs on a failed member is left alone between one attempt to abort it and the next.
pub(super) fn abort_period(patience: Duration) -> Duration {
    patience / 4
}

impl Engine {
    /// Finds members that are slow, by reads of this core.
    pub(super) fn look_for_slow(self: &Rc<Self>, now: u64) {
        let limit = self.tuning.slow_read;
        if limit.is_zero() {
            return;
        }
        let until = now.saturating_sub(self.core.reactor().ticks(limit));
        let late = self.members.iter().filter(|m| !m.is_barred() && m.reads_since(until));
        let late = late.fold(0u64, |mask, m| mask | 1 << m.slot);
        for slot in masked(self.shared.newly_slow(late)) {
            self.slow_member(slot);
        }
    }

    /// The member in `slot` is slow: reads go past it, also those that are under way.
    pub(super) fn slow_member(self: &Rc<Self>, slot: usize) {
        // Several cores may find out at once.
        if self.shared.newly_slow(1 << slot) == 0 || self.shared.is_offline() || self.is_closing() {
            return;
        }
        let name = self.shared.member_name(slot).unwrap_or_default();
        tracing::warn!("array '{}': member {slot} ('{name}') is slow: its strips are reconstructed", self.shared.name);
        self.shared.set_slow(slot, true);
        self.tell(Event::MemberSlow { slot });
        self.shared.hedge_reads(slot);
        self.members[slot].hedge();
        let reads: Vec<_> = self.all_reads.borrow().iter().filter_map(Weak::upgrade).collect();
        reads.iter().for_each(|r| r.hedge(self, slot));
        drop(self.core.reactor().spawn(probe(Rc::downgrade(self), self.core.reactor().clone(), slot)));
    }

    /// Asks a slow member for a block. True: it answered in time, be it that the block cannot be read.
    async fn answers_in_time(self: &Rc<Self>, slot: usize, stripe: u64) -> bool {
        let (reactor, l) = (self.core.reactor(), &self.shared.layout);
        let page = self.meta.page().await;
        let (block, before) = (page.slice(0, l.block as usize), reactor.now());
        let asked = self.request(slot, Op::Read, IoFlags::NONE, l.strip_offset(stripe), &block).await;
        // An error says as much: what it reads is told from what hosts read.
        let _ = asked.done().await;
        drop(block);
        self.meta.stock_page(page);
        reactor.now().saturating_sub(before) < reactor.ticks(self.tuning.slow_read)
    }
}

/// Asks a slow member for blocks here and there until it is fast again, or has failed.
async fn probe(engine: Weak<Engine>, reactor: longshore_reactor::Reactor, slot: usize) {
    let (mut good, mut stripe) = (0, 0);
    loop {
        // Nobody keeps an array for this that has been stopped.
        reactor.sleep(PROBES).await;
        let Some(e) = engine.upgrade() else { return };
        let shared = &e.shared;
        if e.is_closing() || shared.is_offline() || shared.readable() >> slot & 1 == 0 {
            return shared.set_slow(slot, false);
        }
        // Not the same block each time: it might come from a cache.
        stripe = (stripe + 0x9e37_79b9_7f4a_7c15 % shared.layout.stripes) % shared.layout.stripes;
        good = if e.answers_in_time(slot, stripe).await { good + 1 } else { 0 };
        if good == GOOD_PROBES && !e.is_closing() {
            tracing::info!("array '{}': member {slot} is not slow any more", shared.name);
            shared.set_slow(slot, false);
            return e.tell(Event::MemberFast { slot });
        }
    }
}
