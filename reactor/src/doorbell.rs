//! The sleep/wake handshake between a reactor and those who send to it.
//!
//! The reactor announces that it is about to sleep, fences, and looks at its inbox once more; a sender pushes, fences, and
//! looks whether the reactor announced sleep. One of the two sees the other, so a message is never left with the reactor
//! asleep. Of many senders one rings.

use crate::sync::{AtomicBool, Ordering, fence};

/// The flag of the handshake. Every write is an exchange, so that whoever clears an announced sleep knows that it did, and
/// rings.
pub(crate) struct Doorbell {
    sleeping: AtomicBool,
}

impl Doorbell {
    pub(crate) fn new() -> Self {
        Doorbell { sleeping: AtomicBool::new(false) }
    }

    /// Reactor: about to sleep. The caller must look for work once more after this and before it sleeps.
    pub(crate) fn prepare(&self) {
        self.sleeping.swap(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Reactor: awake again, or decided not to sleep.
    pub(crate) fn awake(&self) {
        self.sleeping.swap(false, Ordering::Relaxed);
    }

    /// Sender, after its push: whether this sender must wake the reactor.
    pub(crate) fn must_ring(&self) -> bool {
        fence(Ordering::SeqCst);
        self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed)
    }
}
