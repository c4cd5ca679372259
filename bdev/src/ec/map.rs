//! Which stripes hold data. `docs/ec.md` has the states and their order.
//!
//! A stripe's first write makes it *fresh*: it holds data, but its bit is not durable, and a crash makes it empty again. A commit
//! makes the data of fresh stripes durable (a flush round), then their bits (pages of the map). While that goes on their writers wait.
//! From then on they are *live*, and overwriting them takes records.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use longshore_nvme::wire::Status;

use super::clear::Clear;
use super::engine::Engine;
use super::faults::{self, Mutant, Window};
use super::flush::Offline;
use super::format::PageKind;
use super::layout::{Layout, PAGE_BITS};
use super::shared::Shared;
use super::signal::Signal;
use crate::io::IoRef;

/// How often a clear looks whether the records of its stripes are void.
const RECORDS_LOOK: Duration = Duration::from_micros(100);

#[derive(Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    fn get(&self, at: u64) -> bool {
        self.0[(at / 64) as usize] >> (at % 64) & 1 != 0
    }

    fn set(&mut self, at: u64, on: bool) {
        let (word, bit) = (&mut self.0[(at / 64) as usize], 1 << (at % 64));
        if on {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }
}

/// Who waits for a commit.
enum Waiter {
    Flush(IoRef),
    Clear(Rc<Clear>),
}

/// The map on the home core.
pub(super) struct Map {
    durable: RefCell<Bits>,
    fresh: RefCell<Bits>,
    committing: RefCell<Bits>,
    clearing: RefCell<Bits>,
    /// Stripes that became fresh since the last commit took them, each once: `listed` has their bits.
    fresh_list: RefCell<Vec<u64>>,
    listed: RefCell<Bits>,
    /// Stripes of the commit under way.
    batch: RefCell<Vec<u64>>,
    /// Fresh stripes with a transaction under way that the commit waits for.
    busy: Cell<u32>,
    clear_list: RefCell<Vec<u64>>,
    running: Cell<bool>,
    current: RefCell<Vec<Waiter>>,
    next: RefCell<Vec<Waiter>>,
    pub(super) sequence: RefCell<Vec<u64>>,
    pub(super) signal: Signal,
    idle: Signal,
    /// The bits of the page that is being written.
    page: RefCell<Vec<u8>>,
}

/// Gives an emptied list its memory back.
fn reuse<T>(list: &RefCell<Vec<T>>, mut old: Vec<T>) {
    let mut list = list.borrow_mut();
    if list.capacity() < old.capacity() {
        old.clear();
        old.append(&mut list);
        *list = old;
    }
}

impl Map {
    pub(super) fn new(layout: &Layout) -> Map {
        let words = (layout.map_pages() * PAGE_BITS / 64) as usize;
        let bits = || RefCell::new(Bits(vec![0; words]));
        Map {
            durable: bits(),
            fresh: bits(),
            committing: bits(),
            clearing: bits(),
            fresh_list: RefCell::default(),
            listed: bits(),
            page: RefCell::default(),
            batch: RefCell::default(),
            busy: Cell::new(0),
            clear_list: RefCell::default(),
            running: Cell::new(false),
            current: RefCell::default(),
            next: RefCell::default(),
            sequence: RefCell::new(vec![0; layout.map_pages() as usize]),
            signal: Signal::default(),
            idle: Signal::default(),
        }
    }

    /// Takes over the bits of a page that recovery found.
    pub(super) fn load(&self, shared: &Shared, page: u32, bits: &[u8]) {
        let first = u64::from(page) * PAGE_BITS;
        let mut durable = self.durable.borrow_mut();
        for (i, &byte) in bits.iter().enumerate().filter(|(_, b)| **b != 0) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 != 0) {
                let stripe = first + i as u64 * 8 + bit;
                if stripe < shared.layout.stripes {
                    durable.set(stripe, true);
                    shared.set_mapped(stripe, true);
                }
            }
        }
    }

    /// True if the stripe's bit is durable.
    pub(super) fn is_live(&self, stripe: u64) -> bool {
        self.durable.borrow().get(stripe)
    }

    /// True if the stripe's bit is being written: writers wait.
    pub(super) fn is_committing(&self, stripe: u64) -> bool {
        self.committing.borrow().get(stripe)
    }

    /// True if a commit is under way.
    pub(super) fn is_running(&self) -> bool {
        self.running.get()
    }

    /// The bits of a page as members have it while no commit is under way.
    pub(super) fn durable_page(&self, page: u32) -> Vec<u8> {
        super::intent::page_bits(&self.durable.borrow().0, page)
    }

    /// A write to a stripe that is not live was done on all members.
    pub(super) fn wrote(&self, shared: &Shared, stripe: u64) {
        let mut fresh = self.fresh.borrow_mut();
        if !fresh.get(stripe) {
            fresh.set(stripe, true);
            self.list(stripe);
            shared.set_mapped(stripe, true);
        }
    }

    /// The next commit looks at the stripe.
    fn list(&self, stripe: u64) {
        let mut listed = self.listed.borrow_mut();
        // One that was cleared and written again is there still.
        if !listed.get(stripe) {
            listed.set(stripe, true);
            self.fresh_list.borrow_mut().push(stripe);
        }
    }

    /// How many stripes the next commit looks at.
    #[cfg(test)]
    pub(super) fn listed(&self) -> usize {
        self.fresh_list.borrow().len()
    }

    /// Answers a write with FUA when the bit of its stripe is durable.
    pub(super) fn ack_when_durable(&self, io: IoRef) {
        self.next.borrow_mut().push(Waiter::Flush(io));
        self.signal.set();
    }

    /// Answers a flush when everything acknowledged is durable.
    pub(super) fn flush(&self, io: IoRef) {
        if faults::is(Mutant::BitLate) {
            self.signal.set();
            return io.complete_later(Status::SUCCESS);
        }
        let nothing_new = self.fresh_list.borrow().is_empty() && self.next.borrow().is_empty();
        match (nothing_new, self.running.get()) {
            // Overwritten data are durable as records.
            (true, false) => io.complete_later(Status::SUCCESS),
            // What it must cover is in the commit under way.
            (true, true) => self.current.borrow_mut().push(Waiter::Flush(io)),
            (false, _) => self.ack_when_durable(io),
        }
    }

    /// Clears the bit of a stripe that its clearer has locked. True: the bit was durable, so a commit is needed.
    pub(super) fn clear(&self, shared: &Shared, stripe: u64) -> bool {
        if self.durable.borrow().get(stripe) {
            self.clearing.borrow_mut().set(stripe, true);
            self.clear_list.borrow_mut().push(stripe);
            return true;
        }
        self.fresh.borrow_mut().set(stripe, false);
        shared.set_mapped(stripe, false);
        false
    }

    /// `who` is told when the bits that it cleared are durable.
    pub(super) fn clear_durably(&self, who: Rc<Clear>) {
        self.next.borrow_mut().push(Waiter::Clear(who));
        self.signal.set();
    }

    /// A transaction ended that a commit waited for.
    pub(super) fn idle_now(&self, stripe: u64) {
        if self.fresh.borrow().get(stripe) {
            self.committing.borrow_mut().set(stripe, true);
            self.batch.borrow_mut().push(stripe);
        }
        self.busy.set(self.busy.get() - 1);
        self.idle.set();
    }
}

impl Engine {
    /// Commits when somebody asks for it.
    pub(super) async fn commit_task(self: Rc<Self>) {
        loop {
            self.map.signal.wait().await;
            if self.is_closing() {
                return;
            }
            let m = &self.map;
            if self.drain.is_on() {
                // Asked again when that is over.
                continue;
            }
            m.running.set(true);
            m.current.borrow_mut().append(&mut m.next.borrow_mut());
            let outcome = self.commit().await;
            m.running.set(false);
            let status = if outcome.is_ok() { Status::SUCCESS } else { Status::NAMESPACE_NOT_READY };
            let mut told = std::mem::take(&mut *m.current.borrow_mut());
            for w in told.drain(..) {
                match w {
                    Waiter::Flush(io) => io.complete_later(status),
                    Waiter::Clear(c) => c.cleared(&self, status),
                }
            }
            reuse(&m.current, told);
            if !m.next.borrow().is_empty() {
                m.signal.set();
            }
            self.drain.look();
        }
    }

    /// Makes durable what hosts have written and did not flush: the array is being closed in order.
    pub(super) async fn final_commit(self: &Rc<Self>) {
        while self.map.running.get() {
            // Not by spinning: the commit waits for members.
            self.core.reactor().sleep(RECORDS_LOOK).await;
        }
        let _ = self.commit().await;
    }

    async fn commit(self: &Rc<Self>) -> Result<(), Offline> {
        let m = &self.map;
        let fresh = std::mem::take(&mut *m.fresh_list.borrow_mut());
        for &stripe in &fresh {
            m.listed.borrow_mut().set(stripe, false);
            if !m.fresh.borrow().get(stripe) {
                continue; // cleared since
            }
            if self.stripes.commit_when_idle(stripe) {
                m.busy.set(m.busy.get() + 1);
            } else {
                m.committing.borrow_mut().set(stripe, true);
                m.batch.borrow_mut().push(stripe);
            }
        }
        reuse(&m.fresh_list, fresh);
        while m.busy.get() > 0 {
            m.idle.wait().await;
        }
        let mut batch = std::mem::take(&mut *m.batch.borrow_mut());
        let mut cleared = std::mem::take(&mut *m.clear_list.borrow_mut());
        batch.sort_unstable();
        cleared.sort_unstable();
        let outcome = self.store_bits(&batch, &cleared).await;
        for &stripe in &batch {
            m.committing.borrow_mut().set(stripe, false);
            if outcome.is_ok() {
                m.durable.borrow_mut().set(stripe, true);
                m.fresh.borrow_mut().set(stripe, false);
            } else {
                m.list(stripe);
            }
        }
        for &stripe in &cleared {
            m.clearing.borrow_mut().set(stripe, false);
            if outcome.is_ok() {
                m.durable.borrow_mut().set(stripe, false);
                self.shared.set_mapped(stripe, false);
            }
        }
        for &stripe in &batch {
            self.pump(stripe);
        }
        reuse(&m.batch, batch);
        reuse(&m.clear_list, cleared);
        outcome
    }

    /// Makes the data of `batch` durable, then the bits of `batch` and `cleared`. Both are in order.
    async fn store_bits(self: &Rc<Self>, batch: &[u64], cleared: &[u64]) -> Result<(), Offline> {
        self.until_asked().await?;
        if !batch.is_empty() {
            self.round().await?;
        }
        // What is written to a cleared stripe next has no record: a recovery must not find older ones.
        while self.journal.may_redo(cleared) {
            if self.shared.is_offline() {
                return Err(Offline);
            }
            self.want_slots();
            self.core.reactor().sleep(RECORDS_LOOK).await;
        }
        faults::enter(Window::BitmapCommit);
        let mut from = 0;
        let next = |list: &[u64], from: u64| list.get(list.partition_point(|&s| s < from)).copied();
        while let Some(stripe) = [batch, cleared].into_iter().filter_map(|list| next(list, from)).min() {
            let page = stripe / PAGE_BITS;
            self.store_map_page(page as u32).await;
            from = (page + 1) * PAGE_BITS;
        }
        faults::leave(Window::BitmapCommit);
        // A member that failed a page has not got it: superblocks say so before anybody relies on the bits.
        self.until_stable().await
    }

    /// Writes a page of the map: what is durable, and what is about to be.
    pub(super) async fn store_map_page(self: &Rc<Self>, page: u32) {
        let m = &self.map;
        let Some(sequence) = self.next_sequence(&m.sequence, page) else { return };
        let mut bytes = m.page.take();
        bytes.clear();
        {
            let (d, c, x) = (m.durable.borrow(), m.committing.borrow(), m.clearing.borrow());
            let per = (PAGE_BITS / 64) as usize;
            let words = page as usize * per..(page as usize + 1) * per;
            let word = |at: usize| (d.0[at] | c.0[at]) & !x.0[at];
            bytes.extend(words.flat_map(|at| word(at).to_le_bytes()));
        }
        self.write_page(PageKind::Map, page, sequence, 0, &bytes).await;
        m.page.replace(bytes);
    }
}
