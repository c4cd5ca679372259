//! Who waits for memory, requests or slots of the journal, and holds none of them.

use std::rc::Rc;
use std::time::Duration;

use super::super::clear::Clear;
use super::super::read::Read;
use super::super::remote::Proxies;
use super::super::txn::Txn;
use super::Engine;

/// How often those who wait for memory look again, if nobody gives any back before.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Who waits for memory, requests or slots, and holds none.
pub(in crate::ec) enum Starved {
    Txn(Rc<Txn>),
    Read(Rc<Read>),
    Clear(Rc<Clear>),
    Remote(Rc<Proxies>, u32),
}

impl Engine {
    /// True if somebody waits for memory already: later ones wait behind.
    pub(in crate::ec) fn is_starving(&self) -> bool {
        !self.starved.borrow().is_empty()
    }

    /// True if those who wait may take what is set aside: they waited long.
    pub(in crate::ec) fn is_in_need(&self) -> bool {
        self.in_need.get()
    }

    /// `txn` waits, and holds nothing that others need.
    pub(in crate::ec) fn starve(self: &Rc<Self>, txn: Rc<Txn>) {
        self.starve_other(Starved::Txn(txn));
    }

    pub(in crate::ec) fn starve_other(self: &Rc<Self>, who: Starved) {
        self.shared.counters.waits.add(1);
        self.starved.borrow_mut().push_back(who);
        if self.look_again.borrow().is_none() {
            self.look_later();
        }
    }

    pub(in crate::ec) fn look_later(self: &Rc<Self>) {
        let me = Rc::downgrade(self);
        let timer = self.core.reactor().timer(LOOK_AGAIN, move |_| {
            if let Some(me) = me.upgrade() {
                me.look_again.take();
                me.in_need.set(true);
                me.feed();
                me.in_need.set(false);
                if me.is_starving() {
                    me.look_later();
                }
            }
        });
        self.look_again.replace(Some(timer));
    }

    /// Something was given back: those who wait try again, in order, until one finds too little. If this is called by one of them,
    /// then after it.
    pub(in crate::ec) fn feed(self: &Rc<Self>) {
        if self.feeding.replace(true) {
            return self.feed_again.set(true);
        }
        loop {
            self.feed_again.set(false);
            self.feed_in_order();
            if !self.feed_again.get() {
                break;
            }
        }
        self.feeding.set(false);
    }

    pub(in crate::ec) fn feed_in_order(self: &Rc<Self>) {
        let left = self.starved.borrow().len();
        for _ in 0..left {
            let next = self.starved.borrow_mut().pop_front();
            let Some(next) = next else { return };
            let fed = match next {
                Starved::Txn(t) => t.retry(self),
                Starved::Read(r) => r.retry(self),
                Starved::Clear(c) => c.advance(),
                Starved::Remote(from, at) => from.start(self, at),
            };
            if !fed {
                // Queueing itself at the end was the last thing it did: it keeps its place.
                let mut q = self.starved.borrow_mut();
                if let Some(last) = q.pop_back() {
                    q.push_front(last);
                }
                return;
            }
        }
    }

    /// Slots of the journal may be free.
    pub(in crate::ec) fn slots_changed(self: &Rc<Self>) {
        if self.is_starving() {
            self.feed();
        }
    }

    /// There is no slot of the journal.
    pub(in crate::ec) fn want_slots(&self) {
        self.slots_wanted.set();
    }

    /// Gets slots of the journal free when they run out: by a round of flushes, and by a mark.
    pub(in crate::ec) async fn slots_task(self: Rc<Self>) {
        loop {
            self.slots_wanted.wait().await;
            if self.is_closing() || self.shared.is_offline() {
                return;
            }
            // Only if something was done: who finds no slot asks again at once.
            let mut changed = false;
            if self.journal.wants_round() {
                if self.round().await.is_err() {
                    return;
                }
                changed = true;
            }
            if self.journal.wants_mark() && (self.is_starving() || self.journal.is_wanted()) {
                changed |= self.write_mark().await.is_ok();
            }
            if changed {
                self.slots_changed();
            }
        }
    }
}
