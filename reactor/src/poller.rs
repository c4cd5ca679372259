//! Pollers: named functions called once per turn.

use crate::reactor::Reactor;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

type Func = Box<dyn FnMut(&Reactor) -> usize>;

pub(crate) struct PollerInner {
    pub(crate) name: String,
    func: RefCell<Option<Func>>,
    live: Cell<bool>,
    pending: Cell<bool>,
    runs: Cell<u64>,
    busy_runs: Cell<u64>,
    busy: Cell<u64>,
    idle: Cell<u64>,
}

/// What a poller did so far. Ticks are an estimate: one turn in [`SAMPLE`] is timed and counts for all.
#[derive(Clone, Debug)]
pub struct PollerStats {
    /// The name it was registered with.
    pub name: String,
    /// Calls.
    pub runs: u64,
    /// Calls that found work.
    pub busy_runs: u64,
    /// Ticks spent in calls that found work.
    pub busy: u64,
    /// Ticks spent in calls that found none.
    pub idle: u64,
}

/// One turn in so many is timed per poller: a TSC read per poller and turn would cost more than most pollers do.
pub const SAMPLE: u64 = 32;

/// A registered poller; dropping it unregisters it.
#[must_use = "dropping a poller unregisters it"]
pub struct Poller {
    pub(crate) inner: Rc<PollerInner>,
    pub(crate) reactor: Reactor,
}

impl Poller {
    /// While `true`, the reactor does not sleep: work waits that no event source announces.
    pub fn set_pending(&self, pending: bool) {
        if self.inner.pending.replace(pending) != pending {
            self.reactor.count_pending(pending);
        }
    }

    /// The name it was registered with.
    pub fn name(&self) -> &str {
        &self.inner.name
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.set_pending(false);
        self.inner.live.set(false);
        // While it runs, `func` is taken and dropped by `run`.
        let func = self.inner.func.borrow_mut().take();
        drop(func);
        self.reactor.forget_dead_pollers();
    }
}

impl PollerInner {
    pub(crate) fn new(name: String, func: Func) -> Self {
        PollerInner {
            name,
            func: RefCell::new(Some(func)),
            live: Cell::new(true),
            pending: Cell::new(false),
            runs: Cell::new(0),
            busy_runs: Cell::new(0),
            busy: Cell::new(0),
            idle: Cell::new(0),
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.live.get()
    }

    pub(crate) fn kill(&self) -> Option<Func> {
        self.live.set(false);
        self.func.borrow_mut().take()
    }

    /// Calls it; `timed` turns are measured.
    pub(crate) fn run(&self, reactor: &Reactor, timed: bool) -> usize {
        let Some(mut func) = self.func.borrow_mut().take() else { return 0 };
        let start = if timed { crate::clock::rdtsc() } else { 0 };
        let work = func(reactor);
        self.runs.set(self.runs.get() + 1);
        if work > 0 {
            self.busy_runs.set(self.busy_runs.get() + 1);
        }
        if timed {
            let spent = crate::clock::rdtsc().saturating_sub(start) * SAMPLE;
            let cell = if work > 0 { &self.busy } else { &self.idle };
            cell.set(cell.get() + spent);
        }
        if self.live.get() {
            *self.func.borrow_mut() = Some(func);
        }
        work
    }

    pub(crate) fn stats(&self) -> PollerStats {
        PollerStats {
            name: self.name.clone(),
            runs: self.runs.get(),
            busy_runs: self.busy_runs.get(),
            busy: self.busy.get(),
            idle: self.idle.get(),
        }
    }
}
