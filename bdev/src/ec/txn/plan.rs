//! What a transaction has to read before it can write. Pure: strips are numbered `0..k` data, `k..k+m` parity; sets are masks.

use super::super::layout::MAX_DATA;

/// Bytes `lo..hi` of a strip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::ec) struct Span {
    pub(in crate::ec) lo: u32,
    pub(in crate::ec) hi: u32,
}

impl Span {
    pub(in crate::ec) fn len(self) -> u32 {
        self.hi - self.lo
    }

    pub(in crate::ec) fn is_empty(self) -> bool {
        self.lo == self.hi
    }

    /// What both have; nothing is `0..0`.
    pub(in crate::ec) fn meet(self, other: Span) -> Span {
        let (lo, hi) = (self.lo.max(other.lo), self.hi.min(other.hi));
        if lo < hi { Span { lo, hi } } else { Span::default() }
    }

    pub(super) fn hull(self, other: Span) -> Span {
        match (self.is_empty(), other.is_empty()) {
            (true, _) => other,
            (_, true) => self,
            _ => Span { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi) },
        }
    }
}

/// What the host's writes touch of a stripe.
#[derive(Clone, Debug)]
pub(in crate::ec) struct Touch {
    /// Of each data strip the bytes from the first to the last that is written.
    pub(in crate::ec) own: [Span; MAX_DATA],
    /// Writes that touch the strip.
    pub(in crate::ec) writes: [u8; MAX_DATA],
    /// Data strips that are touched.
    pub(in crate::ec) touched: u64,
    /// Those of them of which every byte of `own` is written.
    pub(in crate::ec) covered: u64,
    /// The hull of all `own`: the rows of parity that change.
    pub(in crate::ec) rows: Span,
}

impl Touch {
    /// Of writes that cover bytes `[start, end)` of the stripe's data, as far as they lie in `window` of each strip.
    pub(in crate::ec) fn of(
        k: usize,
        strip: u32,
        window: Span,
        writes: impl Iterator<Item = (u64, u64)> + Clone,
    ) -> Touch {
        let mut t = Touch {
            own: [Span::default(); MAX_DATA],
            writes: [0; MAX_DATA],
            touched: 0,
            covered: 0,
            rows: Span::default(),
        };
        for (start, end) in writes.clone() {
            for d in strips_of(strip, start, end) {
                let s = within(strip, d, start, end).meet(window);
                if s.is_empty() {
                    continue;
                }
                t.own[d] = t.own[d].hull(s);
                t.writes[d] = t.writes[d].saturating_add(1);
                t.touched |= 1 << d;
                t.rows = t.rows.hull(s);
            }
        }
        for d in 0..k {
            if t.touched >> d & 1 != 0 && (t.writes[d] == 1 || is_covered(strip, d, t.own[d], writes.clone())) {
                t.covered |= 1 << d;
            }
        }
        t
    }

    /// Data strips of which some of the rows stay as they are.
    pub(in crate::ec) fn kept(&self, k: usize) -> u64 {
        let whole = |d: usize| self.covered >> d & 1 != 0 && self.own[d] == self.rows;
        (0..k).filter(|&d| !whole(d)).fold(0, |mask, d| mask | 1 << d)
    }
}

/// The data strips that bytes `[start, end)` of a stripe's data lie in.
pub(in crate::ec) fn strips_of(strip: u32, start: u64, end: u64) -> std::ops::RangeInclusive<usize> {
    (start / u64::from(strip)) as usize..=((end - 1) / u64::from(strip)) as usize
}

/// The part of strip `d` that bytes `[start, end)` of the stripe's data cover.
pub(in crate::ec) fn within(strip: u32, d: usize, start: u64, end: u64) -> Span {
    let base = d as u64 * u64::from(strip);
    Span {
        lo: start.saturating_sub(base).min(u64::from(strip)) as u32,
        hi: end.saturating_sub(base).min(u64::from(strip)) as u32,
    }
}

fn is_covered(strip: u32, d: usize, own: Span, writes: impl Iterator<Item = (u64, u64)> + Clone) -> bool {
    let mut at = own.lo;
    // Each turn takes the write that reaches furthest from here: at most as many turns as writes.
    while at < own.hi {
        let next =
            writes.clone().map(|(s, e)| within(strip, d, s, e)).filter(|s| s.lo <= at && s.hi > at).map(|s| s.hi).max();
        match next {
            Some(hi) => at = hi,
            None => return false,
        }
    }
    true
}

/// How new parity is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ec) enum Way {
    /// Nothing of the old is needed.
    Plain,
    /// Old data of what is written and old parity: parity takes the difference.
    Modify,
    /// The data that stay: parity is computed anew.
    Reconstruct,
    /// `k` strips, from which the data that cannot be read are decoded; then as `Reconstruct`.
    Decode,
}

/// What to read, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ec) struct Plan {
    pub(in crate::ec) way: Way,
    /// Strips to read: of touched data strips what is written of them (`Modify`), else the rows.
    pub(in crate::ec) read: u64,
    /// Data strips to decode.
    pub(in crate::ec) decode: u64,
}

/// The cheapest way. `up`: strips that are written; `good`: those of them that can be read. `None`: the stripe has lost too much.
pub(in crate::ec) fn plan(k: usize, m: usize, touch: &Touch, up: u64, good: u64) -> Option<Plan> {
    let data = (1u64 << k) - 1;
    let parity = ((1u64 << m) - 1) << k;
    let kept = touch.kept(k);
    let gaps = touch.touched & !touch.covered;
    if kept == 0 {
        return Some(Plan { way: Way::Plain, read: 0, decode: 0 });
    }
    if up & parity == 0 {
        // No parity to keep: only gaps between writes need what was there.
        return (gaps & !good == 0).then_some(Plan { way: Way::Reconstruct, read: gaps, decode: 0 });
    }
    let mut best: Option<(u32, Plan)> = None;
    let mut offer = |cost: u32, p: Plan| {
        if best.is_none_or(|(c, _)| cost < c) {
            best = Some((cost, p));
        }
    };
    // First: where both cost the same, what is read is what is written next, still in a cache of whatever is below.
    let modify = touch.touched | up & parity;
    if modify & !good == 0 {
        offer(modify.count_ones(), Plan { way: Way::Modify, read: modify, decode: 0 });
    }
    if kept & !good == 0 {
        offer(kept.count_ones(), Plan { way: Way::Reconstruct, read: kept, decode: 0 });
    }
    if good.count_ones() as usize >= k && kept & !good != 0 {
        let mut read = 0u64;
        for i in (0..k + m).filter(|i| good >> i & 1 != 0).take(k) {
            read |= 1 << i;
        }
        offer(k as u32, Plan { way: Way::Decode, read, decode: kept & data & !good });
    }
    best.map(|b| b.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(k: usize, writes: &[(u64, u64)]) -> Touch {
        Touch::of(k, 4096, Span { lo: 0, hi: 4096 }, writes.iter().copied())
    }

    #[test]
    fn a_small_write_reads_old_data_and_old_parity() {
        let t = touch(4, &[(512, 1024)]);
        assert_eq!((t.touched, t.covered, t.rows), (1, 1, Span { lo: 512, hi: 1024 }));
        let p = plan(8, 2, &touch(8, &[(512, 1024)]), 0x3ff, 0x3ff).unwrap();
        assert_eq!(p, Plan { way: Way::Modify, read: 0x301, decode: 0 });
    }

    #[test]
    fn a_write_of_most_of_a_stripe_reads_the_rest() {
        let p = plan(4, 2, &touch(4, &[(0, 3 * 4096)]), 0x3f, 0x3f).unwrap();
        assert_eq!(p, Plan { way: Way::Reconstruct, read: 0b1000, decode: 0 });
        let p = plan(4, 2, &touch(4, &[(0, 4 * 4096)]), 0x3f, 0x3f).unwrap();
        assert_eq!(p.way, Way::Plain);
    }

    #[test]
    fn a_missing_strip_that_is_written_is_decoded_unless_it_is_written_whole() {
        // Strip 0 is missing and written in part of the rows: they come from the others.
        let t = touch(2, &[(512, 4096 + 1024)]);
        let p = plan(2, 2, &t, 0b1110, 0b1110).unwrap();
        assert_eq!(p, Plan { way: Way::Decode, read: 0b0110, decode: 0b01 });
        // All rows of it are written: the other data strip is enough.
        let p = plan(2, 1, &touch(2, &[(0, 4096)]), 0b110, 0b110).unwrap();
        assert_eq!(p, Plan { way: Way::Reconstruct, read: 0b10, decode: 0 });
    }

    #[test]
    fn an_untouched_missing_strip_does_not_hinder_a_modify() {
        let p = plan(2, 1, &touch(2, &[(0, 512)]), 0b101, 0b101).unwrap();
        assert_eq!(p, Plan { way: Way::Modify, read: 0b101, decode: 0 });
    }

    #[test]
    fn without_parity_nothing_is_read_but_gaps() {
        let p = plan(2, 1, &touch(2, &[(0, 512)]), 0b011, 0b011).unwrap();
        assert_eq!(p.read, 0);
        let p = plan(2, 1, &touch(2, &[(0, 512), (1024, 1536)]), 0b011, 0b011).unwrap();
        assert_eq!(p.read, 1);
    }

    #[test]
    fn joined_writes_cover_what_they_leave_no_gap_in() {
        let t = touch(2, &[(1024, 2048), (0, 512), (512, 1500)]);
        assert_eq!((t.own[0], t.covered, t.writes[0]), (Span { lo: 0, hi: 2048 }, 1, 3));
        let t = touch(2, &[(1024, 2048), (0, 512), (512, 1000)]);
        assert_eq!(t.covered, 0);
    }

    #[test]
    fn a_stripe_that_has_lost_too_much_has_no_plan() {
        assert_eq!(plan(2, 1, &touch(2, &[(0, 512)]), 0b110, 0b100), None);
    }

    #[test]
    fn every_loss_pattern_within_parity_has_a_plan_that_reads_only_what_is_good() {
        for (k, m) in [(1, 1), (2, 1), (2, 2), (3, 2), (1, 3)] {
            let all = (1u64 << (k + m)) - 1;
            for lost in 0..=all {
                if lost.count_ones() as usize > m {
                    continue;
                }
                for (start, end) in [(0, 512), (3584, 4096), (0, 4096), (2048, 4096 * k as u64), (0, 4096 * k as u64)] {
                    let p = plan(k, m, &touch(k, &[(start, end)]), all & !lost, all & !lost).expect("a plan");
                    assert_eq!(p.read & lost, 0);
                    assert_eq!(p.decode & !lost, 0);
                }
            }
        }
    }
}
