//! Other reconstructions of what a layer above found wrong, which has checksums.
//!
//! Attempt `i` distrusts the `i`-th set of strips: every set that touches what is read and leaves k strips, small ones first. A set is
//! tried until the caller says that what it got is right; then those strips of the range that were distrusted, and are not what was
//! reconstructed, are rewritten.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use longshore_nvme::wire::Status;

use super::engine::Engine;
use super::flush::Offline;
use super::layout::Layout;
use super::rows::{Rows, lowest};
use super::scrub::locate::subsets;
use super::txn::masked;
use super::txn::plan::{Span, strips_of, within};
use crate::io::{IoFlags, IoRef, NO_ALTERNATE, Op};

/// Most sets that are tried.
const MOST: u64 = 4096;
/// Reconstructions remembered that may be made to stay.
const OFFERS: usize = 64;

/// A reconstruction that was given out. Whoever writes to its stripe withdraws it: what was distrusted may be right by then, and what
/// would be reconstructed wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offer {
    stripe: u64,
    lba: u64,
    nblocks: u32,
    attempt: u64,
    /// Strips in use.
    up: u64,
}

/// The last reconstructions that were given out.
#[derive(Default)]
pub(super) struct Offers(RefCell<VecDeque<Offer>>);

impl Offers {
    /// Something is about to change in `stripe`.
    #[inline]
    pub(super) fn withdraw(&self, stripe: u64) {
        let mut all = self.0.borrow_mut();
        if !all.is_empty() {
            all.retain(|o| o.stripe != stripe);
        }
    }

    fn make(&self, offer: Offer) {
        let mut all = self.0.borrow_mut();
        all.retain(|o| *o != offer);
        if all.len() == OFFERS {
            all.pop_front();
        }
        all.push_back(offer);
    }

    fn stands(&self, offer: Offer) -> bool {
        self.0.borrow().contains(&offer)
    }
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Wanted {
    stripe: u64,
    /// Bytes of the stripe's data.
    start: u64,
    end: u64,
    /// Data strips of the range.
    touched: u64,
    rows: Span,
}

impl Wanted {
    fn of(l: &Layout, lba: u64, nblocks: u32) -> Wanted {
        let per = l.stripe_blocks();
        let start = (lba % per) * u64::from(l.block);
        let end = start + u64::from(nblocks) * u64::from(l.block);
        let mut w = Wanted { stripe: lba / per, start, end, touched: 0, rows: Span { lo: u32::MAX, hi: 0 } };
        for d in strips_of(l.strip, start, end) {
            let span = within(l.strip, d, start, end);
            w.touched |= 1 << d;
            w.rows = Span { lo: w.rows.lo.min(span.lo), hi: w.rows.hi.max(span.hi) };
        }
        w
    }

    /// What is wanted of strip `d` in `rows`: its rows, and where they are in the request's memory.
    fn part(&self, l: &Layout, d: usize, rows: Span) -> Option<(Span, usize)> {
        let span = within(l.strip, d, self.start, self.end);
        let part = Span { lo: span.lo.max(rows.lo), hi: span.hi.min(rows.hi) };
        let at = d as u64 * u64::from(l.strip) + u64::from(part.lo);
        (part.lo < part.hi).then(|| (part, (at - self.start) as usize))
    }
}

/// The strips that attempt `attempt` at `touched` distrusts.
fn distrusted(up: u64, k: usize, touched: u64, attempt: u64) -> Option<u64> {
    let spare = (up.count_ones() as usize).checked_sub(k)?;
    let sets = (1..=spare).flat_map(|size| subsets(up, size));
    sets.filter(|set| set & touched != 0).take(MOST as usize).nth(usize::try_from(attempt).ok()?)
}

impl Engine {
    /// A read of another reconstruction, or a write that makes one stay.
    pub(super) fn alternate(self: &Rc<Self>, mut io: IoRef) {
        let wanted = match (io.op(), io.flags().has(IoFlags::ALTERNATE), io.flags().has(IoFlags::HEAL)) {
            (Op::Read, true, false) | (Op::Write, false, true) => {
                Wanted::of(&self.shared.layout, io.lba(), io.nblocks())
            }
            _ => return io.complete_later(Status::INVALID_FIELD),
        };
        if (io.buf_len() as u64) < wanted.end - wanted.start {
            return io.complete_later(Status::DATA_SGL_LENGTH_INVALID);
        }
        let me = self.clone();
        drop(self.core.reactor().spawn(async move {
            let status = me.try_alternate(&mut io, wanted).await.unwrap_or(Status::NAMESPACE_NOT_READY);
            io.complete_later(status);
        }));
    }

    async fn try_alternate(self: &Rc<Self>, io: &mut IoRef, w: Wanted) -> Result<Status, Offline> {
        let l = self.shared.layout;
        let heal = io.op() == Op::Write;
        let mut rows = self.rows(w.rows.len()).await?;
        // Another one for what is there: memory is not waited for while the stripe is locked.
        let mut there = if heal { Some(self.rows(l.block).await?) } else { None };
        let _visit = self.visit(w.stripe, heal).await;
        if self.shared.is_offline() {
            return Err(Offline);
        }
        if !self.shared.is_mapped(w.stripe) {
            return Ok(NO_ALTERNATE);
        }
        let (up, attempt) = (self.in_sync(w.stripe), io.copy_source());
        let Some(distrust) = distrusted(up, l.k, w.touched, attempt) else { return Ok(NO_ALTERNATE) };
        let offer = Offer { stripe: w.stripe, lba: io.lba(), nblocks: io.nblocks(), attempt, up };
        if heal && !self.offers.stands(offer) {
            return Ok(NO_ALTERNATE);
        }
        if !heal {
            self.shared.counters.alternate_reads.add(1);
        }
        // First all of it is looked at, then it is rewritten: nothing is changed by half.
        for step in 0..if heal { 2 } else { 1 } {
            for lo in (w.rows.lo..w.rows.hi).step_by(rows.most as usize) {
                let piece = Span { lo, hi: w.rows.hi.min(lo + rows.most) };
                let Some(decoded) = self.reconstruct(&mut rows, &w, piece, up, distrust).await else {
                    return Ok(Status::UNRECOVERED_READ_ERROR);
                };
                for d in masked(w.touched) {
                    let Some((part, at)) = w.part(&l, d, piece) else { continue };
                    let off = (part.lo - piece.lo) as usize;
                    let bytes = &rows.strip(d, piece.len())[off..off + part.len() as usize];
                    if !heal {
                        fill(io, at, bytes);
                    } else if !is_same(io, at, bytes) {
                        return Ok(Status::COMPARE_FAILURE);
                    } else if let Some(there) = there.as_mut().filter(|_| step == 1 && decoded >> d & 1 != 0) {
                        self.heal_part(there, w.stripe, d, part, bytes).await?;
                    }
                }
            }
        }
        if heal {
            self.offers.withdraw(w.stripe);
        } else {
            self.offers.make(offer);
        }
        Ok(Status::SUCCESS)
    }

    /// Reads `piece` of what is wanted; returns the strips that were decoded. `None`: too few of those that are trusted can be read.
    async fn reconstruct(
        self: &Rc<Self>,
        rows: &mut Rows,
        w: &Wanted,
        piece: Span,
        up: u64,
        distrust: u64,
    ) -> Option<u64> {
        let k = self.shared.layout.k;
        let mut trusted = up & !distrust;
        loop {
            if (trusted.count_ones() as usize) < k {
                return None;
            }
            let sources = lowest(trusted, k);
            let want = sources | w.touched & trusted;
            let have = self.read_rows(rows, w.stripe, piece, want).await;
            if have != want {
                trusted &= !(want & !have);
                continue;
            }
            let lost = w.touched & !have;
            return rows.decode(self, lost, sources, piece.len()).then_some(lost);
        }
    }

    /// Writes part of strip `d` where it is not `bytes`, block by block.
    async fn heal_part(
        self: &Rc<Self>,
        rows: &mut Rows,
        stripe: u64,
        d: usize,
        part: Span,
        bytes: &[u8],
    ) -> Result<(), Offline> {
        let block = self.shared.layout.block;
        let mut healed = false;
        for (lo, right) in (part.lo..).step_by(block as usize).zip(bytes.chunks(block as usize)) {
            let row = Span { lo, hi: lo + block };
            let there = self.read_rows(rows, stripe, row, self.in_sync(stripe) & 1 << d).await != 0;
            if there && rows.strip(d, block) == right {
                continue;
            }
            if !rows.put(d, right) {
                return Err(Offline);
            }
            self.rewrite(rows, stripe, row, 1 << d).await?;
            healed = true;
        }
        self.shared.counters.healed_alternates.add(u64::from(healed));
        Ok(())
    }
}

/// Copies `bytes` to byte `at` of a read's memory.
fn fill(io: &mut IoRef, at: usize, bytes: &[u8]) {
    let (mut skip, mut left) = (at, bytes);
    for seg in io.segments_mut() {
        if skip >= seg.len() {
            skip -= seg.len();
            continue;
        }
        let n = (seg.len() - skip).min(left.len());
        seg[skip..skip + n].copy_from_slice(&left[..n]);
        left = &left[n..];
        skip = 0;
    }
}

/// True if a write's memory has `bytes` at byte `at`.
fn is_same(io: &IoRef, at: usize, bytes: &[u8]) -> bool {
    let (mut skip, mut left) = (at, bytes);
    for seg in io.segments() {
        if skip >= seg.len() {
            skip -= seg.len();
            continue;
        }
        let n = (seg.len() - skip).min(left.len());
        if seg[skip..skip + n] != left[..n] {
            return false;
        }
        left = &left[n..];
        skip = 0;
    }
    left.is_empty()
}
