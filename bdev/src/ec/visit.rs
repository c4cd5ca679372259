//! The lock of a stripe for tasks.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::engine::Engine;
use super::stripe::Waiting;

/// A task that waits for a stripe.
pub(super) struct Visitor {
    /// Nobody else may be there; otherwise only writers may not.
    pub(super) alone: bool,
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Visitor {
    /// The stripe is locked for the task.
    pub(super) fn grant(&self) {
        self.granted.set(true);
        if let Some(w) = self.waker.borrow_mut().take() {
            w.wake();
        }
    }
}

/// A stripe that is locked for a task, until this is dropped.
pub(super) struct Visit {
    engine: Rc<Engine>,
    stripe: u64,
    alone: bool,
}

impl Engine {
    /// Locks a stripe: `alone`, or as a reader. The task must not be dropped while it waits for this.
    pub(super) async fn visit(self: &Rc<Self>, stripe: u64, alone: bool) -> Visit {
        let visitor = Rc::new(Visitor { alone, granted: Cell::new(false), waker: RefCell::default() });
        self.stripes.wait(stripe, Waiting::Visit(visitor.clone()));
        self.pump(stripe);
        poll_fn(|cx| {
            if visitor.granted.get() {
                return Poll::Ready(());
            }
            visitor.waker.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
        Visit { engine: self.clone(), stripe, alone }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.alone {
            return self.engine.unlock(self.stripe);
        }
        self.engine.stripes.unread(self.stripe);
        self.engine.pump(self.stripe);
    }
}
