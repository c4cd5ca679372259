//! Members that fail, and who waits until superblocks say so.

use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::super::event::Event;
use super::super::flush::Offline;
use super::super::format::MemberState;
use super::super::lower::Departure;
use super::super::slow::{abort_period, period, unseen};
use super::super::txn::Txn;
use super::Engine;

/// How long requests to a member that failed have until those who sent them go on without them.
const GRACE: Duration = Duration::from_millis(100);

impl Engine {
    /// A member failed: nothing is sent to it any more, and nothing acknowledged until superblocks say so.
    pub(in crate::ec) fn fail_member(self: &Rc<Self>, slot: usize, why: &'static str) {
        if !matches!(self.shared.state(slot), MemberState::InSync | MemberState::Rebuilding) {
            // If another device is joining in its slot, this is late news of the former one.
            return;
        }
        let name = self.shared.member_name(slot).unwrap_or_default();
        tracing::error!("array '{}': member {slot} ('{name}') failed: {why}", self.shared.name);
        self.shared.set_state(slot, MemberState::Failed);
        self.intent.mark_unflushed(self.members[slot].volatile.get());
        self.failures.set(self.failures.get() + 1);
        self.unstable.set(true);
        self.tell(Event::MemberFailed { slot, why });
        self.give_up(slot);
        self.shared.abort_reads(slot);
        self.flush_given_up(slot);
        self.give_up_later();
        self.rebuild.member_failed(slot);
        self.show_rebuilds();
        if (self.live().count_ones() as usize) < self.quorum.get() {
            self.go_offline("too few members are left");
        }
        self.failed.set();
    }

    /// Too few are left of a block, and the member in `slot` failed to read it, which is not the medium's fault.
    pub(in crate::ec) fn does_not_read(self: &Rc<Self>, slot: usize) {
        // Not a newcomer that is in its slot by now.
        if self.live() >> slot & 1 != 0 && !self.shared.is_offline() {
            self.fail_member(slot, "it cannot be read");
        }
    }

    /// Too many reads of the member in `slot` failed, though it may take writes: it fails, unless the others would not do.
    pub(in crate::ec) fn reads_badly(self: &Rc<Self>, slot: usize) {
        let left = (self.live() & !(1 << slot)).count_ones() as usize;
        if left >= self.quorum.get() {
            return self.does_not_read(slot);
        }
        tracing::error!("array '{}': reads of member {slot} fail, and it cannot be done without", self.shared.name);
    }

    /// As [`fail_member`](Engine::fail_member), of the device that was opened as number `era` in the slot: another one may be there by now.
    pub(in crate::ec) fn fail_device(self: &Rc<Self>, slot: usize, era: u64, why: &'static str) {
        if self.members[slot].era() == era {
            self.fail_member(slot, why);
        }
    }

    /// Sends nothing more to a member. What hangs on it may never end: flushes and metadata do not wait for it.
    pub(in crate::ec) fn give_up(&self, slot: usize) {
        self.members[slot].bar();
        self.members[slot].abort_all();
        self.meta.give_up(slot);
    }

    /// What was aborted ends soon, or hangs: then nobody waits for it.
    pub(in crate::ec) fn give_up_later(self: &Rc<Self>) {
        let me = Rc::downgrade(self);
        let timer = self.core.reactor().timer(GRACE, move |_| {
            let Some(me) = me.upgrade() else { return };
            let txns: Vec<_> = me.all_txns.borrow().iter().filter_map(Weak::upgrade).collect();
            let reads: Vec<_> = me.all_reads.borrow().iter().filter_map(Weak::upgrade).collect();
            for m in me.members.iter().filter(|m| m.is_barred() && m.inflight() > 0) {
                txns.iter().for_each(|t| t.give_up(&me, m.slot));
                reads.iter().for_each(|r| r.give_up(&me, m.slot));
            }
        });
        self.grace.replace(Some(timer));
    }

    /// The device of a member is going away: it fails, and each core lets it go when nothing is in flight on it there.
    pub(in crate::ec) fn member_gone(self: &Rc<Self>, slot: usize, why: &'static str) {
        self.fail_member(slot, why);
        self.depart(slot);
    }

    /// Lets the device in `slot`, whose member is not in use, go when nothing is in flight on it on any core.
    pub(in crate::ec) fn depart(&self, slot: usize) {
        // Once: a second departure might end when another device is there.
        if self.departing.get() >> slot & 1 != 0 || self.shared.descs()[slot].is_none() {
            return;
        }
        self.departing.set(self.departing.get() | 1 << slot);
        let departure = Departure::new(&self.shared, slot);
        self.shared.leave(slot, &departure);
        self.give_up(slot);
        self.members[slot].leave(departure);
    }

    /// No core uses the device in `slot` any more.
    pub(in crate::ec) fn member_left(&self, slot: usize) {
        self.departing.set(self.departing.get() & !(1 << slot));
        self.shared.close_member(slot);
    }

    /// No request is served any more.
    pub(in crate::ec) fn go_offline(self: &Rc<Self>, why: &'static str) {
        if self.shared.is_offline() {
            return;
        }
        tracing::error!("array '{}' is offline: {why}", self.shared.name);
        self.shared.set_offline(true);
        self.why_offline.set(why);
        self.tell(Event::Offline { why });
        // Not from here: whoever found out is in the middle of something.
        let me = self.clone();
        self.core.reactor().defer(move |_| me.resume());
    }

    /// True if superblocks name every failed member.
    pub(in crate::ec) fn is_stable(&self) -> bool {
        !self.unstable.get() && !self.shared.is_offline()
    }

    /// Superblocks name every failed member; those go on who waited for that.
    pub(in crate::ec) fn stable_again(self: &Rc<Self>) {
        self.unstable.set(false);
        self.suspicious.set(false);
        self.resume();
    }

    /// An update of the superblocks has ended, which names every failed member.
    pub(in crate::ec) fn named_all(self: &Rc<Self>) {
        if self.unstable.get() {
            self.stable_again();
        }
    }

    /// True if a member failed that superblocks do not name yet.
    pub(in crate::ec) fn has_unnamed(&self) -> bool {
        self.unstable.get()
    }

    /// If the process was stopped for longer than a member has for a request, others may have taken the members over: until an update of the superblocks
    /// has found none there of another writer, nothing is written in place, acknowledged or begun.
    #[inline]
    pub(in crate::ec) fn look_out(self: &Rc<Self>) {
        if self.core.now() > self.late_at.get() {
            self.suspect_others();
        }
    }

    #[cold]
    fn suspect_others(self: &Rc<Self>) {
        self.late_at.set(u64::MAX);
        if self.shared.is_offline() || self.is_closing() {
            return;
        }
        tracing::warn!(
            "array '{}': this process was stopped for longer than member_timeout_ms: its members are asked whether another writer has taken them over",
            self.shared.name
        );
        // An update that is under way has looked before: it is made once more.
        self.failures.set(self.failures.get() + 1);
        self.suspicious.set(true);
        self.unstable.set(true);
        self.failed.set();
    }

    /// True if nothing is begun: see [`look_out`](Engine::look_out).
    #[inline]
    pub(in crate::ec) fn is_suspicious(&self) -> bool {
        self.suspicious.get()
    }

    /// After a long pause, until the members were asked for other writers: see [`look_out`](Engine::look_out). Where what follows does not wait until
    /// superblocks name every failed member.
    pub(in crate::ec) async fn until_asked(self: &Rc<Self>) -> Result<(), Offline> {
        self.look_out();
        if self.is_suspicious() { self.until_stable().await } else { Ok(()) }
    }

    /// Until superblocks name every failed member. Also while the session begins: then it is so from the start.
    pub(in crate::ec) async fn until_stable(&self) -> Result<(), Offline> {
        poll_fn(|cx| {
            if self.shared.is_offline() {
                return Poll::Ready(Err(Offline));
            }
            if !self.unstable.get() {
                return Poll::Ready(Ok(()));
            }
            self.stable_waiters.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// `txn` waits until the array is stable or offline.
    pub(in crate::ec) fn park(&self, txn: Rc<Txn>) {
        self.parked.borrow_mut().push(txn);
    }

    pub(in crate::ec) fn resume(self: &Rc<Self>) {
        self.stable_waiters.take().into_iter().for_each(Waker::wake);
        for t in self.parked.take() {
            t.go_on(self);
        }
        if self.shared.is_offline() {
            for t in self.intent.take_waiting() {
                t.go_on(self);
            }
            self.map.signal.set();
            self.intent.signal.set();
            self.slots_wanted.set();
            self.drain.look();
        }
        self.unblock_round();
        self.feed();
    }

    /// Something is in flight on a member: looks after it.
    #[inline]
    pub(in crate::ec) fn watch(self: &Rc<Self>) {
        if !self.watching.get() {
            self.watch_on();
        }
    }

    #[cold]
    pub(in crate::ec) fn watch_on(self: &Rc<Self>) {
        self.watching.set(true);
        let (reactor, now) = (self.core.reactor(), self.core.reactor().now());
        let every = period(self.tuning.write_timeout, self.tuning.slow_read);
        self.watched_from.set(now);
        let late = reactor.ticks(every).saturating_add(reactor.ticks(self.tuning.write_timeout));
        self.late_at.set(now.saturating_add(late));
        let me = Rc::downgrade(self);
        let timer = reactor.timer(every, move |_| {
            let Some(me) = me.upgrade() else { return };
            me.watching.set(false);
            me.look_after();
        });
        self.watchdog.replace(Some(timer));
    }

    pub(in crate::ec) fn look_after(self: &Rc<Self>) {
        let limit = self.core.reactor().ticks(self.tuning.write_timeout);
        let pause = self.core.reactor().ticks(abort_period(self.tuning.write_timeout));
        let now = self.core.now();
        let every = self.core.reactor().ticks(period(self.tuning.write_timeout, self.tuning.slow_read));
        let unseen = unseen(self.watched_from.get(), now, every, limit);
        if unseen > 0 {
            self.members.iter().for_each(|m| m.forgive(unseen, now));
        }
        self.look_out();
        self.late_at.set(u64::MAX);
        self.look_for_slow(now);
        for m in &self.members {
            if m.oldest().is_some_and(|since| now.saturating_sub(since) > limit) {
                self.fail_member(m.slot, "it did not answer in time");
                if self.rebuild.is_joining(m.slot) && !m.is_barred() {
                    self.give_up(m.slot);
                }
                // If it has failed before: what hangs is aborted until it ends.
                m.abort_again(now, pause);
            }
        }
        if self.members.iter().any(|m| m.inflight() > 0) {
            self.watch();
        }
    }
}
