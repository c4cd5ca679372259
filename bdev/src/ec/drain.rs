//! A moment without transactions: no record counts, no page of the map is being written. Writers wait in the queues of their stripes meanwhile.

use std::cell::Cell;
use std::rc::Rc;

use super::engine::Engine;
use super::flush::Offline;
use super::signal::Signal;

/// See the module.
#[derive(Default)]
pub(super) struct Drain {
    on: Cell<bool>,
    /// Transactions under way.
    active: Cell<usize>,
    changed: Signal,
}

impl Drain {
    /// A transaction begins.
    #[inline]
    pub(super) fn begun(&self) {
        self.active.set(self.active.get() + 1);
    }

    /// A transaction has ended.
    #[inline]
    pub(super) fn ended(&self) {
        self.active.set(self.active.get() - 1);
        if self.on.get() {
            self.changed.set();
        }
    }

    /// True if nothing new may begin.
    pub(super) fn is_on(&self) -> bool {
        self.on.get()
    }

    /// Something has ended that may be waited for.
    pub(super) fn look(&self) {
        self.changed.set();
    }
}

impl Engine {
    /// True if writers have to wait for `stripe`, whoever has its lock.
    #[inline]
    pub(super) fn holds_writers(&self, stripe: u64) -> bool {
        self.drain.on.get() || self.map.is_committing(stripe)
    }

    /// Lets no transaction and no commit begin until [`undrain`](Engine::undrain), and ends when none is under way. For one task at a time.
    ///
    /// Those under way need nothing of those that wait: neither locks, for they have theirs, nor memory, for whoever waits in a queue holds none that
    /// transactions need.
    pub(super) async fn drain(self: &Rc<Self>) -> Result<(), Offline> {
        self.drain.on.set(true);
        while self.drain.active.get() > 0 || self.map.is_running() {
            self.drain.changed.wait().await;
        }
        if !self.shared.is_offline() {
            return Ok(());
        }
        self.undrain();
        Err(Offline)
    }

    /// Those go on who waited.
    pub(super) fn undrain(self: &Rc<Self>) {
        self.drain.on.set(false);
        for stripe in self.stripes.busy() {
            self.pump(stripe);
        }
        self.map.signal.set();
    }
}
