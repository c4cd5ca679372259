//! How far members that are being rebuilt are filled: which stripes of them are in sync, and which come next. Pure but for its cells.

use std::cell::{Cell, RefCell};

use super::super::format::{Rebuild, RebuildMode};
use super::super::txn::masked;

/// Bit `at` of `bits`.
fn get(bits: &[u64], at: u64) -> bool {
    bits[(at / 64) as usize] >> (at % 64) & 1 != 0
}

/// What is next for a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This stripe is to be filled; it is not in sync until [`Fillings::filled`].
    Stripe(u64),
    /// Others are at the last stripes.
    Wait,
    /// Every stripe is in sync.
    Done,
}

/// One member that is being filled.
struct Filling {
    mode: RebuildMode,
    /// By region, in mode wib: the member may lack writes of it.
    dirty: Option<Vec<u64>>,
    /// Stripes below this are in sync, but those that are being filled.
    cursor: u64,
    /// Stripes below `cursor` that are not in sync: those that are being filled, and those that could not be. A few.
    pending: Vec<u64>,
    /// Those of them that nobody fills, and that are next.
    left: Vec<u64>,
}

/// Members that are being filled, by slot.
pub(in crate::ec) struct Fillings {
    slots: RefCell<Vec<Option<Filling>>>,
    mask: Cell<u64>,
    stripes: u64,
    region_shift: u32,
}

impl Filling {
    fn is_dirty(&self, stripe: u64, region_shift: u32) -> bool {
        self.dirty.as_ref().is_none_or(|d| get(d, stripe >> region_shift))
    }

    fn has(&self, stripe: u64, region_shift: u32) -> bool {
        stripe < self.cursor && !self.pending.contains(&stripe) || !self.is_dirty(stripe, region_shift)
    }

    /// Stripes below this are in sync.
    fn watermark(&self) -> u64 {
        self.pending.iter().copied().min().unwrap_or(self.cursor)
    }
}

impl Fillings {
    pub(in crate::ec) fn new(slots: usize, stripes: u64, region_shift: u32) -> Fillings {
        let slots = RefCell::new((0..slots).map(|_| None).collect());
        Fillings { slots, mask: Cell::new(0), stripes, region_shift }
    }

    /// Members that are being filled: bit `i` is slot `i`.
    #[inline]
    pub(in crate::ec) fn mask(&self) -> u64 {
        self.mask.get()
    }

    /// The member in `slot` is being filled from here on. `dirty`, in mode wib: the regions that it may lack writes of.
    pub(in crate::ec) fn begin(&self, slot: usize, at: Rebuild, dirty: Option<Vec<u64>>) {
        let dirty = dirty.filter(|_| at.mode == RebuildMode::Wib);
        let filling = Filling { mode: at.mode, dirty, cursor: at.progress, pending: Vec::new(), left: Vec::new() };
        self.slots.borrow_mut()[slot] = Some(filling);
        self.mask.set(self.mask.get() | 1 << slot);
    }

    /// The member in `slot` is not being filled any more.
    pub(in crate::ec) fn end(&self, slot: usize) {
        self.slots.borrow_mut()[slot] = None;
        self.mask.set(self.mask.get() & !(1 << slot));
    }

    /// Of the members that are being filled, by slot, those that are in sync in `stripe`. It stays so for whoever has the stripe's lock alone.
    pub(in crate::ec) fn synced(&self, stripe: u64) -> u64 {
        let slots = self.slots.borrow();
        let has = |slot: &usize| slots[*slot].as_ref().is_some_and(|f| f.has(stripe, self.region_shift));
        masked(self.mask.get()).filter(has).fold(0, |mask, slot| mask | 1 << slot)
    }

    /// The next stripe for the member in `slot`. Passes those that are idle and hold nothing: who has such a stripe's lock later writes to the member, too.
    /// `busy`: the first stripe from here on that is locked or waited for, or holds data; none: the number of stripes.
    pub(super) fn next(&self, slot: usize, busy: impl Fn(u64) -> u64) -> Next {
        let mut slots = self.slots.borrow_mut();
        let Some(f) = slots[slot].as_mut() else { return Next::Done };
        if let Some(stripe) = f.left.pop() {
            return Next::Stripe(stripe);
        }
        loop {
            let at = f.cursor;
            if at >= self.stripes {
                return if f.pending.is_empty() { Next::Done } else { Next::Wait };
            }
            if !f.is_dirty(at, self.region_shift) {
                f.cursor = (((at >> self.region_shift) + 1) << self.region_shift).min(self.stripes);
                continue;
            }
            let next = busy(at).min(self.stripes);
            if next > at {
                f.cursor = next;
                continue;
            }
            f.cursor = at + 1;
            f.pending.push(at);
            return Next::Stripe(at);
        }
    }

    /// `stripe` is in sync on the member in `slot`. The caller has its lock alone.
    pub(super) fn filled(&self, slot: usize, stripe: u64) {
        if let Some(f) = self.slots.borrow_mut()[slot].as_mut() {
            f.pending.retain(|&s| s != stripe);
        }
    }

    /// What would be stored of the member in `slot`: stripes below this are in sync.
    pub(super) fn progress(&self, slot: usize) -> Option<Rebuild> {
        self.slots.borrow()[slot].as_ref().map(|f| Rebuild { mode: f.mode, progress: f.watermark() })
    }

    /// Nobody fills stripes of the member in `slot`: those that were not finished are next.
    pub(super) fn rewind(&self, slot: usize) {
        if let Some(f) = self.slots.borrow_mut()[slot].as_mut() {
            f.left.clone_from(&f.pending);
        }
    }

    /// The first stripe of the member in `slot` that is not in sync, if it is being filled.
    pub(super) fn first_left(&self, slot: usize) -> Option<u64> {
        let slots = self.slots.borrow();
        slots[slot].as_ref().map(Filling::watermark).filter(|&stripe| stripe < self.stripes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(progress: u64) -> Fillings {
        let f = Fillings::new(3, 100, 2);
        f.begin(1, Rebuild { mode: RebuildMode::Full, progress }, None);
        f
    }

    #[test]
    fn stripes_are_in_sync_below_the_lowest_that_is_being_filled_and_above_it_when_they_were_filled() {
        let f = full(7);
        assert_eq!((f.mask(), f.synced(6), f.synced(7)), (0b010, 0b010, 0));
        assert_eq!([f.next(1, |at| at), f.next(1, |at| at)], [Next::Stripe(7), Next::Stripe(8)]);
        assert_eq!((f.synced(7), f.synced(8), f.progress(1).unwrap().progress), (0, 0, 7));
        f.filled(1, 8);
        assert_eq!((f.synced(7), f.synced(8), f.progress(1).unwrap().progress), (0, 0b010, 7));
        f.filled(1, 7);
        assert_eq!((f.synced(7), f.progress(1).unwrap().progress), (0b010, 9));
        f.end(1);
        assert_eq!((f.mask(), f.synced(0), f.progress(1)), (0, 0, None));
    }

    #[test]
    fn idle_stripes_that_hold_nothing_are_passed() {
        let f = full(0);
        assert_eq!(f.next(1, |at| if at <= 40 { 40 } else { 100 }), Next::Stripe(40));
        assert_eq!((f.synced(39), f.synced(40)), (0b010, 0));
        assert_eq!(f.next(1, |_| 100), Next::Wait);
        assert_eq!(f.synced(99), 0b010);
        f.filled(1, 40);
        assert_eq!(f.next(1, |_| 100), Next::Done);
        assert_eq!(f.progress(1).unwrap().progress, 100);
    }

    #[test]
    fn with_a_bitmap_only_its_regions_are_filled_and_all_others_are_in_sync_from_the_start() {
        let f = Fillings::new(3, 100, 2);
        // Regions 1 and 24: stripes 4 to 7 and 96 to 99.
        f.begin(2, Rebuild { mode: RebuildMode::Wib, progress: 0 }, Some(vec![1 << 1 | 1 << 24]));
        assert_eq!((f.synced(3), f.synced(4), f.synced(8), f.synced(99)), (0b100, 0, 0b100, 0));
        let mut seen = Vec::new();
        while let Next::Stripe(s) = f.next(2, |at| at) {
            seen.push(s);
            f.filled(2, s);
        }
        assert_eq!(seen, [4, 5, 6, 7, 96, 97, 98, 99]);
        assert_eq!(f.synced(4), 0b100);
    }

    #[test]
    fn what_was_begun_and_not_finished_is_filled_again_and_nothing_else() {
        let f = full(0);
        for _ in 0..3 {
            f.next(1, |at| at);
        }
        f.filled(1, 0);
        f.filled(1, 2);
        f.rewind(1);
        assert_eq!((f.synced(0), f.synced(1), f.synced(2), f.first_left(1)), (0b010, 0, 0b010, Some(1)));
        assert_eq!([f.next(1, |at| at), f.next(1, |at| at)], [Next::Stripe(1), Next::Stripe(3)]);
        assert_eq!((f.synced(1), f.progress(1).unwrap().progress), (0, 1));
        f.filled(1, 1);
        assert_eq!((f.synced(1), f.first_left(1)), (0b010, Some(3)));
    }
}
