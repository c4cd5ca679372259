//! Memory that is set aside for one transaction or read at a time: however much hosts hold of the pool, one can go on.

use std::cell::RefCell;

use longshore_reactor::DmaBuf;

use super::layout::Layout;
use crate::core::CoreState;
use crate::io::IoRef;

/// Rows that fit into what is set aside, if blocks are not larger.
const ROWS: u32 = 16 << 10;

/// What is set aside: a request for each member, a buffer of some rows for each number that a transaction uses, and headers.
#[derive(Default)]
pub(super) struct SpareSet {
    pub(super) bufs: Vec<Option<DmaBuf>>,
    pub(super) ios: Vec<IoRef>,
    /// Requests that were taken out of it.
    pub(super) count: usize,
}

/// See the module.
pub(super) struct Spare {
    /// Rows that fit.
    pub(super) rows: u32,
    /// Bytes that a transaction takes of the pool at most, unless its fewest rows take more.
    pub(super) most: usize,
    set: RefCell<Option<SpareSet>>,
}

impl Spare {
    pub(super) fn new(l: &Layout, limit: usize) -> Spare {
        Spare { rows: ROWS.clamp(l.block, l.strip), most: limit / 4, set: RefCell::default() }
    }

    /// Bytes of the buffers, by their numbers.
    fn sizes(&self, l: &Layout) -> impl Iterator<Item = usize> + use<> {
        let rows = self.rows as usize;
        std::iter::repeat_n(rows, l.n() + l.k).chain([l.n() * l.block as usize])
    }

    /// Takes the memory from the pools.
    ///
    /// # Errors
    /// Bytes that are needed: there are not as many, or too few requests.
    pub(super) fn stock(&self, l: &Layout, core: &CoreState) -> Result<(), usize> {
        let mut set = SpareSet::default();
        for len in self.sizes(l) {
            set.bufs.push(core.reactor().dma().alloc(len));
        }
        set.ios.extend((0..l.n()).map_while(|_| core.get_child(0)));
        if set.bufs.iter().any(Option::is_none) || set.ios.len() < l.n() {
            set.ios.drain(..).for_each(IoRef::release);
            return Err(self.sizes(l).sum());
        }
        self.give_back(set);
        Ok(())
    }

    /// Takes it, if nobody has it.
    pub(super) fn take(&self) -> Option<SpareSet> {
        self.set.borrow_mut().take()
    }

    /// Gives it back.
    pub(super) fn give_back(&self, set: SpareSet) {
        self.set.replace(Some(set));
    }

    /// Gives everything back to the pools.
    pub(super) fn close(&self) {
        let set = self.set.take();
        set.into_iter().flat_map(|s| s.ios).for_each(IoRef::release);
    }
}
