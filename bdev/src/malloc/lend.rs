//! Lending a store's memory as buffers of a reactor.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use longshore_reactor::{DmaBuf, Reactor};

use super::store::{Loan, Store};

/// What one channel has lent.
pub(super) struct Lender {
    store: Arc<Store>,
    /// Entries not in use. There are as many as there ever were loans at a time.
    #[expect(clippy::vec_box, reason = "entries in use are pointed to")]
    free: RefCell<Vec<Box<Entry>>>,
}

/// A loan; it keeps its memory.
struct Entry(Option<(Rc<Lender>, Loan)>);

impl Lender {
    pub(super) fn new(store: &Arc<Store>) -> Rc<Lender> {
        Rc::new(Lender { store: store.clone(), free: RefCell::default() })
    }

    /// The memory of `n` blocks from `lba` on. It stays as it is until the last reference to it goes.
    #[inline]
    pub(super) fn lend(self: &Rc<Self>, reactor: &Reactor, lba: u64, n: u32) -> Option<DmaBuf> {
        let loan = self.store.pin(lba, n)?;
        let mut entry = self.free.borrow_mut().pop().unwrap_or_else(|| Box::new(Entry(None)));
        entry.0 = Some((self.clone(), loan));
        // SAFETY: the entry keeps the store, so the memory stays mapped; the store leaves it as it is until `unpin`, which
        // `give_back` calls, once, with the entry that is made over to it here.
        Some(unsafe { reactor.dma().adopt(loan.base, loan.len, give_back, Box::into_raw(entry).cast()) })
    }
}

/// # Safety
/// `ctx` is an [`Entry`] that came from a box, which this call takes.
unsafe fn give_back(ctx: *mut ()) {
    // SAFETY: the caller's.
    let mut entry = unsafe { Box::from_raw(ctx.cast::<Entry>()) };
    if let Some((lender, loan)) = entry.0.take() {
        lender.store.unpin(&loan);
        lender.free.borrow_mut().push(entry);
    }
}
