//! A value handed over once: awaited from any executor, or waited for by a plain thread.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// The sender went away without a value: its reactor stopped, or its task was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canceled;

impl fmt::Display for Canceled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reactor stopped, or the task was aborted, before it answered")
    }
}

impl std::error::Error for Canceled {}

enum Slot<T> {
    Empty,
    Value(T),
    /// What the sender's code panicked with; resumed where it is received.
    Panic(Box<dyn Any + Send>),
    Gone,
}

struct State<T> {
    slot: Slot<T>,
    waker: Option<Waker>,
    closed: bool,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, slot: Slot<T>) -> Slot<T> {
        let (old, waker) = {
            let mut s = self.lock();
            if s.closed || !matches!(s.slot, Slot::Empty) {
                return slot;
            }
            (std::mem::replace(&mut s.slot, slot), s.waker.take())
        };
        self.ready.notify_all();
        if let Some(w) = waker {
            w.wake();
        }
        old
    }
}

/// The sending half.
pub struct Sender<T>(Arc<Shared<T>>);

/// The receiving half: a future, or [`wait`](Receiver::wait) from a plain thread.
#[must_use = "the answer arrives here"]
pub struct Receiver<T>(Arc<Shared<T>>);

/// A connected pair.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State { slot: Slot::Empty, waker: None, closed: false }),
        ready: Condvar::new(),
    });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Hands the value over; gives it back if the receiver is gone.
    pub fn send(self, value: T) -> Result<(), T> {
        match self.0.set(Slot::Value(value)) {
            Slot::Value(back) => Err(back),
            _ => Ok(()),
        }
    }

    /// Whether nobody waits any more.
    pub fn is_closed(&self) -> bool {
        self.0.lock().closed
    }

    pub(crate) fn send_panic(self, payload: Box<dyn Any + Send>) {
        self.0.set(Slot::Panic(payload));
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.set(Slot::Gone);
    }
}

impl<T> Receiver<T> {
    fn take(state: &mut State<T>) -> Option<Result<T, Canceled>> {
        match std::mem::replace(&mut state.slot, Slot::Gone) {
            Slot::Empty => {
                state.slot = Slot::Empty;
                None
            }
            Slot::Value(v) => Some(Ok(v)),
            Slot::Panic(p) => std::panic::resume_unwind(p),
            Slot::Gone => Some(Err(Canceled)),
        }
    }

    /// Blocks this thread until the value comes. Not for reactor threads: there, await it.
    pub fn wait(self) -> Result<T, Canceled> {
        debug_assert!(crate::Reactor::try_current().is_none(), "a reactor must not block: await the receiver");
        let mut s = self.0.lock();
        loop {
            if let Some(r) = Self::take(&mut s) {
                return r;
            }
            s = self.0.ready.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Blocks this thread until the value comes or `limit` has passed (`None`; the receiver stays usable).
    pub fn wait_timeout(&self, limit: Duration) -> Option<Result<T, Canceled>> {
        let end = Instant::now() + limit;
        let mut s = self.0.lock();
        loop {
            if let Some(r) = Self::take(&mut s) {
                return Some(r);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            s = self.0.ready.wait_timeout(s, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The value, if it is there already.
    pub fn try_recv(&self) -> Option<Result<T, Canceled>> {
        Self::take(&mut self.0.lock())
    }
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, Canceled>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut s = self.0.lock();
        match Self::take(&mut s) {
            Some(r) => Poll::Ready(r),
            None => {
                s.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let slot = {
            let mut s = self.0.lock();
            s.closed = true;
            s.waker = None;
            std::mem::replace(&mut s.slot, Slot::Gone)
        };
        drop(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_thread_waits_for_the_value() {
        let (tx, rx) = channel();
        let t = std::thread::spawn(move || rx.wait());
        tx.send(7).unwrap();
        assert_eq!(t.join().unwrap(), Ok(7));
    }

    #[test]
    fn a_dropped_sender_cancels_and_a_dropped_receiver_returns_the_value() {
        let (tx, rx) = channel::<u8>();
        drop(tx);
        assert_eq!(rx.wait(), Err(Canceled));
        let (tx, rx) = channel();
        drop(rx);
        assert!(tx.is_closed());
        assert_eq!(tx.send(1), Err(1));
    }

    #[test]
    fn waiting_has_a_limit_after_which_the_receiver_still_works() {
        let (tx, rx) = channel();
        assert!(rx.wait_timeout(Duration::ZERO).is_none());
        tx.send(3).unwrap();
        assert_eq!(rx.wait_timeout(Duration::ZERO), Some(Ok(3)));
    }
}
