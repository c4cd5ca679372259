//! Memory that the kernel is told about and that therefore must not move, nor be assumed untouched: owned like a box, but
//! reached through a raw pointer only.
#![allow(unsafe_code)]

use std::ptr::NonNull;

/// An owned allocation of a `T` for which all zeroes is a valid value (see [`Zeroed`]).
pub(crate) struct Stable<T>(NonNull<T>);

/// Types that may be made of zero bytes.
///
/// # Safety
/// All-zero bytes are a valid value, which needs no drop.
pub(crate) unsafe trait Zeroed {}

impl<T: Zeroed> Stable<T> {
    /// A fresh one, all zeroes.
    pub(crate) fn new() -> Self {
        let b = Box::<T>::new_zeroed();
        // SAFETY: the trait says that zeroes are valid; `into_raw` is never null.
        Stable(unsafe { NonNull::new_unchecked(Box::into_raw(b.assume_init())) })
    }

    /// Where it is. Stays the same however the owner moves.
    #[inline]
    pub(crate) fn ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Drop for Stable<T> {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw` in `new`, and owned.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}
