//! First-in, first-out queues of requests, linked through the requests themselves: no allocation, bounded by the pool.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ptr::NonNull;

use crate::io::{Io, IoId, IoRef};

/// A queue of requests that its holder owns.
#[derive(Default)]
pub(crate) struct IoQueue {
    head: Cell<Option<NonNull<Io>>>,
    tail: Cell<Option<NonNull<Io>>>,
    len: Cell<usize>,
}

impl IoQueue {
    pub(crate) fn len(&self) -> usize {
        self.len.get()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head.get().is_none()
    }

    pub(crate) fn push(&self, mut io: IoRef) {
        io.io_mut().next = None;
        let p = io.into_ptr();
        match self.tail.get() {
            // SAFETY: requests in the queue are owned by the queue.
            Some(t) => unsafe { (*t.as_ptr()).next = Some(p) },
            None => self.head.set(Some(p)),
        }
        self.tail.set(Some(p));
        self.len.set(self.len.get() + 1);
    }

    /// Puts a request where it is popped next.
    pub(crate) fn push_front(&self, mut io: IoRef) {
        io.io_mut().next = self.head.get();
        let p = io.into_ptr();
        self.head.set(Some(p));
        if self.tail.get().is_none() {
            self.tail.set(Some(p));
        }
        self.len.set(self.len.get() + 1);
    }

    pub(crate) fn pop(&self) -> Option<IoRef> {
        let p = self.head.get()?;
        // SAFETY: the queue owned the request; the handle made here is the only one from now on.
        let mut io = unsafe { IoRef::from_ptr(p) };
        self.head.set(io.io_mut().next.take());
        if self.head.get().is_none() {
            self.tail.set(None);
        }
        self.len.set(self.len.get() - 1);
        Some(io)
    }

    /// Looks at the request that would be popped next.
    pub(crate) fn peek<R>(&self, f: impl FnOnce(&IoRef) -> R) -> Option<R> {
        let p = self.head.get()?;
        // SAFETY: the request is the queue's; this handle lives only while `f` looks, and is forgotten, not dropped.
        let io = std::mem::ManuallyDrop::new(unsafe { IoRef::from_ptr(p) });
        Some(f(&io))
    }

    /// Takes all requests out, in order.
    pub(crate) fn take(&self) -> IoQueue {
        IoQueue {
            head: Cell::new(self.head.take()),
            tail: Cell::new(self.tail.take()),
            len: Cell::new(self.len.take()),
        }
    }

    /// Takes out the request that `id` names.
    pub(crate) fn remove(&self, id: IoId) -> Option<IoRef> {
        let mut found = None;
        let all = self.take();
        while let Some(io) = all.pop() {
            if found.is_none() && io.id() == id {
                found = Some(io);
            } else {
                self.push(io);
            }
        }
        found
    }
}

impl Drop for IoQueue {
    fn drop(&mut self) {
        debug_assert!(self.is_empty() || std::thread::panicking(), "queue dropped with {} requests", self.len());
    }
}
