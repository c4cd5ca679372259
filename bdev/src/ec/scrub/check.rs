//! One stripe of a scrub.
//!
//! It is first read under the shared lock, which keeps writers out. If anything is wrong it is locked alone and looked at again, block
//! row by block row (the same block of every strip): which strips are wrong there, and which cannot be read. Only if every row of the
//! stripe has one answer, these blocks are rewritten: [`Engine::rewrite`] says why that needs no record.

use std::rc::Rc;

use super::super::engine::Engine;
use super::super::flush::Offline;
use super::super::rows::{Rows, lowest};
use super::super::txn::plan::Span;
use super::locate::{Column, subsets};

/// Sets of strips that are tried before others have their turn.
const AT_ONCE: usize = 256;

/// What was found, and done, in a stripe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Strips do not fit together.
    pub(super) mismatch: bool,
    /// Nothing was changed: it cannot be said what is wrong.
    pub(super) ambiguous: bool,
    /// Wrong strips that were rewritten.
    pub(super) repaired: u32,
    /// Strips that could not be read, and were rewritten.
    pub(super) healed: u32,
    /// Somewhere more is missing than can be decoded.
    pub(super) unreadable: bool,
    /// There is no redundancy to check with.
    pub(super) unchecked: bool,
}

/// Blocks that are to be rewritten.
struct Repair {
    row: Span,
    wrong: u64,
    lost: u64,
}

enum Verdict {
    Sound,
    /// Strips `wrong` are not what the others say, strips `lost` cannot be read.
    Repair(u64, u64),
    Ambiguous,
    Unreadable,
}

fn pieces(span: Span, step: u32) -> impl Iterator<Item = Span> {
    (span.lo..span.hi).step_by(step as usize).map(move |lo| Span { lo, hi: span.hi.min(lo + step) })
}

impl Engine {
    pub(super) async fn check_stripe(self: &Rc<Self>, stripe: u64) -> Result<Found, Offline> {
        let l = self.shared.layout;
        let strip = Span { lo: 0, hi: l.strip };
        let mut rows = self.rows(l.strip).await?;
        let mut found = Found::default();
        let mut suspect = Vec::new();
        {
            let _visit = self.visit(stripe, false).await;
            for piece in pieces(strip, rows.most) {
                // Unmapped since, or by then: nothing is kept there.
                if !self.shared.is_mapped(stripe) {
                    return Ok(Found::default());
                }
                if self.shared.is_offline() {
                    return Err(Offline);
                }
                let up = self.in_sync(stripe);
                let have = self.read_rows(&rows, stripe, piece, up).await;
                found.unchecked |= up.count_ones() as usize <= l.k;
                let readable = have == up && have.count_ones() as usize >= l.k;
                if !readable || rows.mismatch(self, have, 0, piece.len()).await.is_some() {
                    suspect.push(piece);
                }
            }
        }
        if suspect.is_empty() {
            return Ok(found);
        }
        let _visit = self.visit(stripe, true).await;
        if !self.shared.is_mapped(stripe) {
            return Ok(Found::default());
        }
        let mut repairs = Vec::new();
        for row in suspect.into_iter().flat_map(|piece| pieces(piece, l.block)) {
            if self.shared.is_offline() {
                return Err(Offline);
            }
            match self.judge(&mut rows, stripe, row).await {
                Verdict::Sound => {}
                Verdict::Repair(wrong, lost) => repairs.push(Repair { row, wrong, lost }),
                Verdict::Ambiguous => found.ambiguous = true,
                Verdict::Unreadable => found.unreadable = true,
            }
        }
        found.mismatch = found.ambiguous || repairs.iter().any(|r| r.wrong != 0);
        if found.ambiguous {
            return Ok(found);
        }
        self.offers.withdraw(stripe);
        let (mut wrong, mut lost) = (0u64, 0u64);
        for repair in repairs {
            if self.repair(&mut rows, stripe, &repair).await? {
                wrong |= repair.wrong;
                lost |= repair.lost;
            }
        }
        (found.repaired, found.healed) = (wrong.count_ones(), lost.count_ones());
        // A member failed in between: it is not known any more which strips are wrong.
        found.ambiguous = found.mismatch && wrong == 0;
        Ok(found)
    }

    /// What is wrong with one row of blocks. The stripe is locked.
    async fn judge(self: &Rc<Self>, rows: &mut Rows, stripe: u64, row: Span) -> Verdict {
        let l = self.shared.layout;
        let up = self.in_sync(stripe);
        let have = self.read_rows(rows, stripe, row, up).await;
        // Members that failed meanwhile are none of the scrub's business.
        let lost = up & !have & self.in_sync(stripe);
        let Some(spare) = (have.count_ones() as usize).checked_sub(l.k) else { return Verdict::Unreadable };
        // Each turn adds a strip at least. If there is a set of `spare/2` strips that explains all, then at every byte that does not
        // fit a part of it does, and nothing else of that size: so this finds it, or there is none.
        let mut wrong = 0u64;
        while let Some(at) = rows.mismatch(self, have, wrong, row.len()).await {
            let column = Column::new(self.coder.codec(), have, |i| rows.strip(i, row.len())[at]);
            let Some(more) = self.explain(&column, have, spare / 2).await else { return Verdict::Ambiguous };
            wrong |= more;
            if wrong.count_ones() as usize > spare / 2 {
                return Verdict::Ambiguous;
            }
        }
        if wrong | lost == 0 { Verdict::Sound } else { Verdict::Repair(wrong, lost) }
    }

    /// The smallest set of at most `most` strips that explains what does not fit.
    async fn explain(&self, column: &Column, have: u64, most: usize) -> Option<u64> {
        for size in 1..=most {
            for (tried, set) in subsets(have, size).enumerate() {
                if column.explains(set) {
                    return Some(set);
                }
                if tried % AT_ONCE == AT_ONCE - 1 {
                    self.core.reactor().yield_now().await;
                }
            }
        }
        None
    }

    /// Rewrites what is wrong in one row of blocks. False: it cannot be done any more.
    async fn repair(self: &Rc<Self>, rows: &mut Rows, stripe: u64, repair: &Repair) -> Result<bool, Offline> {
        let l = self.shared.layout;
        let bad = repair.wrong | repair.lost;
        let good = self.in_sync(stripe) & !bad;
        let have = self.read_rows(rows, stripe, repair.row, good).await;
        let spare = (have.count_ones() as usize).checked_sub(l.k);
        // As much must speak against the wrong strips now as when they were found.
        let enough = spare.is_some_and(|s| s >= repair.wrong.count_ones() as usize);
        if !enough || rows.mismatch(self, have, 0, repair.row.len()).await.is_some() {
            return Ok(false);
        }
        if !rows.decode(self, bad, lowest(have, l.k), repair.row.len()) {
            return Ok(false);
        }
        self.rewrite(rows, stripe, repair.row, bad).await?;
        Ok(true)
    }
}
