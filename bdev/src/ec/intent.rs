//! The write-intent bitmap: regions that a missing member may lack writes of.
//!
//! While members are missing, a region's bit is durable before anything in it is overwritten in place. When the first member fails,
//! the bits of all regions are set that it may lack writes of: those with writes in flight, and those written since the last flush
//! round that it has answered began. They are durable before the superblocks that name it failed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::engine::Engine;
use super::flush::Offline;
use super::format::PageKind;
use super::layout::{Layout, PAGE_BITS};
use super::signal::{Signal, Turn};
use super::txn::Txn;

/// The bits, and which regions were written lately.
pub(super) struct Intent {
    /// Generation that `bits` belong to; 0: all members are in sync, and no bit is kept.
    pub(super) generation: Cell<u64>,
    /// Set, durable or about to be.
    pub(super) bits: RefCell<Vec<u64>>,
    /// Durable on all live members.
    durable: RefCell<Vec<u64>>,
    /// Of each page, the sequence last written.
    pub(super) sequence: RefCell<Vec<u64>>,
    /// Per region: rounds that had begun when a write in it ended, plus 1; 0: none.
    written: RefCell<Vec<u64>>,
    /// Writes in place in flight, per region.
    flying: RefCell<Vec<u16>>,
    flushed: Cell<u64>,
    waiting: RefCell<Vec<Rc<Txn>>>,
    pub(super) signal: Signal,
    /// Of a page only one slot is written at a time: the other is whole meanwhile.
    storing: Turn,
}

fn get(bits: &[u64], at: u64) -> bool {
    bits[(at / 64) as usize] >> (at % 64) & 1 != 0
}

fn set(bits: &mut [u64], at: u64) {
    bits[(at / 64) as usize] |= 1 << (at % 64);
}

impl Intent {
    pub(super) fn new(layout: &Layout) -> Intent {
        let words = (layout.wib_pages() * PAGE_BITS / 64) as usize;
        let regions = layout.regions() as usize;
        Intent {
            generation: Cell::new(0),
            bits: RefCell::new(vec![0; words]),
            durable: RefCell::new(vec![0; words]),
            sequence: RefCell::new(vec![0; layout.wib_pages() as usize]),
            written: RefCell::new(vec![0; regions]),
            flying: RefCell::new(vec![0; regions]),
            flushed: Cell::new(0),
            waiting: RefCell::default(),
            signal: Signal::default(),
            storing: Turn::default(),
        }
    }

    /// A flush round has ended.
    pub(super) fn flushed(&self, round: u64) {
        self.flushed.set(round);
    }

    /// A write in place begins in `region`.
    pub(super) fn begin(&self, region: u64) {
        self.flying.borrow_mut()[region as usize] += 1;
    }

    /// It has ended; `begun` rounds had begun.
    pub(super) fn end(&self, region: u64, begun: u64) {
        self.flying.borrow_mut()[region as usize] -= 1;
        self.written.borrow_mut()[region as usize] = begun + 1;
    }

    /// Sets the bits of all regions that a member which fails now may lack writes of. `volatile`: completed writes count.
    pub(super) fn mark_unflushed(&self, volatile: bool) {
        let mut bits = self.bits.borrow_mut();
        let (written, flying) = (self.written.borrow(), self.flying.borrow());
        for region in 0..written.len() {
            // Written when `w - 1` rounds had begun: covered by round `w` and later ones.
            let unflushed = volatile && written[region] != 0 && written[region] > self.flushed.get();
            if unflushed || flying[region] != 0 {
                set(&mut bits, region as u64);
            }
        }
    }

    /// True if something in `region` may be overwritten in place; else its bit is set and will become durable.
    pub(super) fn may_write(&self, region: u64) -> bool {
        if self.generation.get() == 0 || get(&self.durable.borrow(), region) {
            return true;
        }
        set(&mut self.bits.borrow_mut(), region);
        false
    }

    /// Sets a bit that was found, or must be there before the next generation is stored.
    pub(super) fn set(&self, region: u64) {
        set(&mut self.bits.borrow_mut(), region);
    }

    /// Takes over the bits of a page of the present generation that recovery found.
    pub(super) fn load(&self, page: u32, bytes: &[u8]) {
        let first = page as usize * (PAGE_BITS / 64) as usize;
        for (i, word) in bytes.chunks_exact(8).enumerate() {
            let word = u64::from_le_bytes(std::array::from_fn(|b| word[b]));
            self.bits.borrow_mut()[first + i] = word;
            self.durable.borrow_mut()[first + i] = word;
        }
    }

    /// `txn` waits for its region's bit.
    pub(super) fn wait(&self, txn: Rc<Txn>) {
        self.waiting.borrow_mut().push(txn);
        self.signal.set();
    }

    /// All members are in sync: no region is of interest.
    pub(super) fn forget(&self) {
        self.bits.borrow_mut().fill(0);
        self.durable.borrow_mut().fill(0);
    }

    /// Those who wait.
    pub(super) fn take_waiting(&self) -> Vec<Rc<Txn>> {
        self.waiting.take()
    }

    /// Regions whose bit is set, or about to be.
    pub(super) fn count(&self) -> u64 {
        self.bits.borrow().iter().map(|w| u64::from(w.count_ones())).sum()
    }

    fn dirty_pages(&self) -> Vec<u32> {
        let (bits, durable) = (self.bits.borrow(), self.durable.borrow());
        let per = (PAGE_BITS / 64) as usize;
        let pages = bits.len() / per;
        (0..pages)
            .filter(|p| bits[p * per..(p + 1) * per] != durable[p * per..(p + 1) * per])
            .map(|p| p as u32)
            .collect()
    }
}

/// Bytes of the bits of a page.
pub(super) fn page_bits(bits: &[u64], page: u32) -> Vec<u8> {
    let per = (PAGE_BITS / 64) as usize;
    bits[page as usize * per..(page as usize + 1) * per].iter().flat_map(|w| w.to_le_bytes()).collect()
}

impl Engine {
    /// Writes all pages of the write-intent bitmap to the live members and makes them durable.
    pub(super) async fn store_intent(self: &Rc<Self>, all: bool) -> Result<(), Offline> {
        let i = &self.intent;
        let _turn = i.storing.take().await;
        let pages = if all { (0..self.shared.layout.wib_pages() as u32).collect() } else { i.dirty_pages() };
        if pages.is_empty() {
            return Ok(());
        }
        let snapshot = i.bits.borrow().clone();
        for &page in &pages {
            let Some(sequence) = self.next_sequence(&i.sequence, page) else { return Err(Offline) };
            let bits = page_bits(&snapshot, page);
            self.write_page(PageKind::Wib, page, sequence, i.generation.get(), &bits).await;
        }
        if self.shared.is_offline() {
            return Err(Offline);
        }
        *i.durable.borrow_mut() = snapshot;
        self.show_intent();
        Ok(())
    }

    /// Superblocks may name all members in sync: then no region is of interest.
    pub(super) async fn forget_intent(self: &Rc<Self>) {
        // Whoever stores pages has a copy of the bits, and would bring them back.
        let _turn = self.intent.storing.take().await;
        // Bits of a member that failed meanwhile are those of the next generation.
        if !self.has_unnamed() && self.table.borrow().wib_generation == 0 {
            self.intent.generation.set(0);
            self.intent.forget();
        }
        self.show_intent();
    }

    /// Tells all cores what the bitmap says.
    pub(super) fn show_intent(&self) {
        self.shared.rebuild.show_wib(self.intent.generation.get(), self.intent.count());
    }

    /// Keeps the bits of regions durable that transactions wait for.
    pub(super) async fn intent_task(self: Rc<Self>) {
        loop {
            self.intent.signal.wait().await;
            if self.until_stable().await.is_err() || self.is_closing() {
                return;
            }
            let waiting = std::mem::take(&mut *self.intent.waiting.borrow_mut());
            if waiting.is_empty() {
                continue;
            }
            let _ = self.store_intent(false).await;
            // A member that failed meanwhile has not got them: its superblocks come first.
            let _ = self.until_stable().await;
            waiting.into_iter().for_each(|t| t.go_on(&self));
        }
    }
}
