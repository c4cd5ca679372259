//! One ring operation as a future that owns what the kernel uses: dropping it orphans the operation, whose memory is
//! released when the kernel is done.
#![allow(unsafe_code)]

use crate::engine::{CQE_F_MORE, Completion, OpId, RingOp};
use crate::reactor::Reactor;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

struct OpCell<T> {
    payload: UnsafeCell<Option<T>>,
    result: Cell<Option<i32>>,
    waker: RefCell<Option<Waker>>,
}

unsafe fn complete<T>(ctx: *mut (), res: i32, flags: u32) {
    debug_assert_eq!(flags & CQE_F_MORE, 0, "a multishot operation is not a future");
    // SAFETY: `start` leaked one reference for this single call.
    let cell = unsafe { Rc::from_raw(ctx.cast_const().cast::<OpCell<T>>()) };
    cell.result.set(Some(res));
    let waker = cell.waker.borrow_mut().take();
    if let Some(w) = waker {
        w.wake();
    }
}

/// Cancels the operation if the future is dropped before it completed.
pub(crate) struct Started<T> {
    cell: Rc<OpCell<T>>,
    reactor: Reactor,
    pub(crate) id: OpId,
}

impl<T> Drop for Started<T> {
    fn drop(&mut self) {
        if self.cell.result.get().is_none() {
            self.reactor.cancel(self.id);
        }
    }
}

/// Submits the operation `make` builds over `payload`, which stays in place until the operation completed.
///
/// # Safety
/// All pointers in the operation lead into `payload` or into memory that `payload` owns.
pub(crate) unsafe fn start<T: 'static>(
    reactor: &Reactor,
    payload: T,
    make: impl FnOnce(&mut T) -> RingOp,
) -> Started<T> {
    let cell =
        Rc::new(OpCell { payload: UnsafeCell::new(Some(payload)), result: Cell::new(None), waker: RefCell::new(None) });
    // SAFETY: nobody else refers to the payload before the operation is submitted, or until it completed.
    let op = make(unsafe { &mut *cell.payload.get() }.as_mut().expect("just put there"));
    let done = Completion { func: complete::<T>, ctx: Rc::into_raw(cell.clone()).cast_mut().cast() };
    // SAFETY: the leaked reference keeps the payload in place; the caller vouches for the pointers.
    let id = unsafe { reactor.submit(op, done) };
    Started { cell, reactor: reactor.clone(), id }
}

impl<T> Started<T> {
    /// The operation's result, and the payload back.
    pub(crate) async fn wait(self) -> (i32, T) {
        let res = poll_fn(|cx| match self.cell.result.get() {
            Some(r) => Poll::Ready(r),
            None => {
                *self.cell.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await;
        // SAFETY: the operation completed, so the kernel has no pointer into the payload any more, and `self` is the only
        // one that takes it.
        let payload = unsafe { &mut *self.cell.payload.get() }.take().expect("taken once");
        (res, payload)
    }
}
