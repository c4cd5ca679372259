//! Asynchronous events: requests the host left for them, events that wait for a request, and those masked until the host
//! read the log page that tells more. Base Specification, "Asynchronous Event Request command".

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use longshore_nvme::wire::Status;
use longshore_nvme::wire::event::{AsyncEvent, config};

use crate::controller::Controller;
use crate::qpair::MAX_AERS;

/// Events a host can ask for here.
pub(crate) const SUPPORTED_IO: u32 = config::NAMESPACE | config::ANA;
/// Events a host of discovery can ask for.
pub(crate) const SUPPORTED_DISCOVERY: u32 = config::DISCOVERY;

/// Events of one controller.
#[derive(Default)]
pub(crate) struct Events {
    /// Slots of the admin queue that hold requests.
    requests: RefCell<VecDeque<u16>>,
    /// Events that wait for a request: at most one of each kind.
    waiting: RefCell<VecDeque<AsyncEvent>>,
    /// Asynchronous Event Configuration, as the host set it.
    pub(crate) config: Cell<u32>,
    /// Log pages whose events were reported and not read since.
    masked: RefCell<Vec<u8>>,
}

impl Events {
    /// The host left a request; it stays in its slot.
    ///
    /// # Errors
    /// There are as many as the controller takes.
    pub(crate) fn request(&self, c: &Controller, slot: u16) -> Result<(), Status> {
        {
            let mut r = self.requests.borrow_mut();
            if r.len() >= usize::from(MAX_AERS) {
                return Err(Status::AER_LIMIT_EXCEEDED.with_dnr());
            }
            r.push_back(slot);
        }
        self.deliver(c);
        Ok(())
    }

    pub(crate) fn namespaces_changed(&self, c: &Controller) {
        self.raise(c, config::NAMESPACE, AsyncEvent::NAMESPACE_CHANGED);
    }

    pub(crate) fn ana_changed(&self, c: &Controller) {
        self.raise(c, config::ANA, AsyncEvent::ANA_CHANGED);
    }

    pub(crate) fn discovery_changed(&self, c: &Controller) {
        self.raise(c, config::DISCOVERY, AsyncEvent::DISCOVERY_CHANGED);
    }

    fn raise(&self, c: &Controller, bit: u32, e: AsyncEvent) {
        if self.config.get() & bit == 0 || self.masked.borrow().contains(&e.lid) {
            return;
        }
        {
            let mut w = self.waiting.borrow_mut();
            if w.contains(&e) {
                return;
            }
            w.push_back(e);
        }
        self.deliver(c);
    }

    fn deliver(&self, c: &Controller) {
        let Some(q) = c.admin.upgrade() else { return };
        loop {
            if self.waiting.borrow().is_empty() {
                return;
            }
            let Some(slot) = self.requests.borrow_mut().pop_front() else { return };
            let Some(e) = self.waiting.borrow_mut().pop_front() else { return };
            self.masked.borrow_mut().push(e.lid);
            q.slots[usize::from(slot)].borrow_mut().dw0 = e.dw0();
            q.complete(slot, Status::SUCCESS);
        }
    }

    /// The host read a log page, and does not want its event kept: it may be told again.
    pub(crate) fn log_read(&self, page: u8) {
        self.masked.borrow_mut().retain(|&l| l != page);
        self.waiting.borrow_mut().retain(|e| e.lid != page);
    }

    /// Abort of a request: true if it was one of these.
    pub(crate) fn abort(&self, c: &Controller, slot: u16) -> bool {
        {
            let mut r = self.requests.borrow_mut();
            let Some(i) = r.iter().position(|&s| s == slot) else { return false };
            r.remove(i);
        }
        if let Some(q) = c.admin.upgrade() {
            q.complete(slot, Status::ABORT_REQUESTED);
        }
        true
    }

    /// A controller reset: requests end, events are forgotten.
    pub(crate) fn reset(&self, c: &Controller) {
        self.drop_requests(c);
        self.waiting.borrow_mut().clear();
        self.masked.borrow_mut().clear();
        self.config.set(0);
    }

    /// Ends the requests without an event.
    pub(crate) fn drop_requests(&self, c: &Controller) {
        let slots: Vec<u16> = self.requests.borrow_mut().drain(..).collect();
        let Some(q) = c.admin.upgrade() else { return };
        for slot in slots {
            q.complete(slot, Status::ABORTED_SQ_DELETION);
        }
    }
}
