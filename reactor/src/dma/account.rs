//! Who holds how much of a pool.

use std::cell::Cell;

/// What one user of a pool holds, and the most it may. A buffer counts, with the size of its class, from
/// [`DmaPool::alloc_for`](super::DmaPool::alloc_for) until its last reference goes, wherever that is.
#[derive(Debug)]
pub struct Account {
    held: Cell<usize>,
    limit: Cell<usize>,
}

/// Why there is no buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The account holds all that it may.
    Account,
    /// The pool is dry, or no class is so large.
    Pool,
}

impl Account {
    /// An account that may hold `limit` bytes.
    pub fn new(limit: usize) -> Account {
        Account { held: Cell::new(0), limit: Cell::new(limit) }
    }

    /// Bytes that it holds.
    pub fn held(&self) -> usize {
        self.held.get()
    }

    /// Bytes that it may hold.
    pub fn limit(&self) -> usize {
        self.limit.get()
    }

    /// Changes what it may hold. What it holds already stays.
    pub fn set_limit(&self, bytes: usize) {
        self.limit.set(bytes);
    }

    #[inline]
    pub(super) fn allows(&self, bytes: usize) -> bool {
        self.held.get() + bytes <= self.limit.get()
    }

    #[inline]
    pub(super) fn add(&self, bytes: usize) {
        self.held.set(self.held.get() + bytes);
    }

    #[inline]
    pub(super) fn sub(&self, bytes: usize) {
        self.held.set(self.held.get() - bytes);
    }
}
