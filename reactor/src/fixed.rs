//! Registers DMA memory as fixed buffers of the reactor's ring, as far as the locked-memory limit reasonably goes.
#![allow(unsafe_code)]

use crate::dma::MemRegistrar;
use crate::reactor::{Core, Reactor};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Registers DMA chunks as fixed buffers of the reactor's ring.
pub(crate) struct FixedBuffers {
    core: Weak<Core>,
    size: usize,
    made: Cell<bool>,
    next: Cell<u16>,
    free: RefCell<Vec<u16>>,
}

impl FixedBuffers {
    pub(crate) fn new(r: &Reactor, chunks: usize) -> Self {
        FixedBuffers {
            core: Rc::downgrade(&r.0),
            size: chunks,
            made: Cell::new(false),
            next: Cell::new(0),
            free: RefCell::default(),
        }
    }
}

impl MemRegistrar for FixedBuffers {
    fn register(&self, addr: *mut u8, len: usize) -> io::Result<u32> {
        let core = self.core.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        let ring = core.engine.uring().ok_or(io::ErrorKind::Unsupported)?;
        if !self.made.get() {
            ring.make_buffer_table(self.size.min(MAX_FIXED) as u32)?;
            self.made.set(true);
        }
        let key = match self.free.borrow_mut().pop() {
            Some(k) => k,
            None if (self.next.get() as usize) < self.size.min(MAX_FIXED) => self.next.replace(self.next.get() + 1),
            None => return Err(io::Error::other("the table of fixed buffers is full")),
        };
        let taken = LOCKED.fetch_add(len, Ordering::Relaxed) + len;
        let done = match lockable() {
            Some(limit) if taken > limit / 2 => Err(io::Error::other(format!(
                "the rest of the {} KiB that may be locked is left to rings and to other processes of this user",
                limit >> 10
            ))),
            // SAFETY: pool memory stays mapped until the pool is dropped, and the kernel pins the pages besides.
            _ => unsafe { ring.register_buffer(key, addr, len) },
        };
        if let Err(e) = done {
            LOCKED.fetch_sub(len, Ordering::Relaxed);
            self.free.borrow_mut().push(key);
            return Err(e);
        }
        Ok(key as u32)
    }

    fn unregister(&self, _: *mut u8, len: usize, key: u32) {
        LOCKED.fetch_sub(len, Ordering::Relaxed);
        if let Some(core) = self.core.upgrade()
            && let Some(ring) = core.engine.uring()
            && ring.unregister_buffer(key as u16).is_ok()
        {
            self.free.borrow_mut().push(key as u16);
        }
    }
}

/// Bytes that reactors of this process have registered.
static LOCKED: AtomicUsize = AtomicUsize::new(0);

/// The limit of locked memory, if there is one for this process. It counts for all processes of the user together, rings
/// included, so that taking all of it would keep the next program from starting.
fn lockable() -> Option<usize> {
    use rustix::process::{Resource, getrlimit};
    use rustix::thread::{CapabilitySet, capabilities};
    static LIMIT: OnceLock<Option<usize>> = OnceLock::new();
    *LIMIT.get_or_init(|| match capabilities(None) {
        Ok(c) if c.effective.contains(CapabilitySet::IPC_LOCK) => None,
        _ => getrlimit(Resource::Memlock).current.map(|l| l as usize),
    })
}

/// Entries of the kernel's table of fixed buffers, at most.
const MAX_FIXED: usize = 1 << 14;
