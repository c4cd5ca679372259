//! Which rows of a stripe are written together. Pure.
//!
//! Parity is read, recorded and written for all rows from the first to the last of a transaction. So one takes only rows that lie
//! close together: the hull is at most twice what is written. The border of two strips is the end of one and the beginning of the other,
//! so a write across it is done in two passes.

use super::plan::{Span, strips_of, within};

/// Most writes of the host that are done together.
pub(in crate::ec) const MOST_JOINED: usize = 64;

/// The rows that a write of bytes `[start, end)` of a stripe's data touches: of its first strip, its last, and one between them.
fn rows_of(strip: u32, start: u64, end: u64) -> impl Iterator<Item = Span> + Clone {
    let strips = strips_of(strip, start, end);
    let (first, last) = (*strips.start(), *strips.end());
    [first, last, (first + 1).min(last)].into_iter().map(move |d| within(strip, d, start, end))
}

/// The rows at and above `from` that `writes` touch: from the lowest on, as many as are done together. `None`: there are none.
pub(in crate::ec) fn window(strip: u32, from: u32, writes: impl Iterator<Item = (u64, u64)> + Clone) -> Option<Span> {
    let left = Span { lo: from, hi: strip };
    let rows = || {
        let all = writes.clone().flat_map(|(start, end)| rows_of(strip, start, end));
        all.map(|r| r.meet(left)).filter(|r| !r.is_empty())
    };
    let lo = rows().map(|r| r.lo).min()?;
    let (mut w, mut covered) = (Span { lo, hi: lo }, 0);
    loop {
        // All that begin within the window or right behind it belong to it.
        let hi = rows().filter(|r| r.lo <= w.hi).map(|r| r.hi).max()?;
        if hi > w.hi {
            covered += hi - w.hi;
            w.hi = hi;
            continue;
        }
        let Some(next) = rows().filter(|r| r.lo > w.hi).min_by_key(|r| (r.lo, u32::MAX - r.hi)) else { return Some(w) };
        if next.hi - w.lo > 2 * (covered + next.len()) {
            return Some(w);
        }
        covered += next.len();
        w.hi = next.hi;
    }
}

/// All rows at and above `from` that `writes` touch, and those between them.
pub(in crate::ec) fn hull(strip: u32, from: u32, writes: impl Iterator<Item = (u64, u64)>) -> Option<Span> {
    let left = Span { lo: from, hi: strip };
    let all = writes.flat_map(|(start, end)| rows_of(strip, start, end)).map(|r| r.meet(left));
    all.filter(|r| !r.is_empty()).reduce(Span::hull)
}

/// True if a write of bytes `[start, end)` of the stripe's data touches none of the rows of `window`.
pub(in crate::ec) fn is_outside(strip: u32, window: Span, (start, end): (u64, u64)) -> bool {
    rows_of(strip, start, end).all(|r| r.meet(window).is_empty())
}

/// Whether the writes that wait for a stripe are done together: one after the other is offered.
pub(in crate::ec) struct Join {
    strip: u32,
    count: usize,
    hull: Span,
    /// Bytes of the rows of all.
    sum: u64,
}

impl Join {
    pub(in crate::ec) fn new(strip: u32) -> Join {
        Join { strip, count: 0, hull: Span::default(), sum: 0 }
    }

    /// True if the write of bytes `[start, end)` of the stripe's data goes with those before. The first always does.
    pub(in crate::ec) fn takes(&mut self, start: u64, end: u64) -> bool {
        let (mut hull, mut sum) = (self.hull, self.sum);
        let strips = strips_of(self.strip, start, end);
        let (first, last) = (*strips.start(), *strips.end());
        for d in [first, last].into_iter().take(if first == last { 1 } else { 2 }) {
            let rows = within(self.strip, d, start, end);
            (hull, sum) = (hull.hull(rows), sum + u64::from(rows.len()));
        }
        if last > first + 1 {
            hull = Span { lo: 0, hi: self.strip };
            sum += (last - first - 1) as u64 * u64::from(self.strip);
        }
        if self.count == MOST_JOINED || self.count > 0 && u64::from(hull.len()) > 2 * sum {
            return false;
        }
        (self.hull, self.sum, self.count) = (hull, sum, self.count + 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIP: u32 = 1 << 20;
    const K: u64 = 1024;

    fn windows(writes: &[(u64, u64)]) -> Vec<(u32, u32)> {
        let (mut from, mut all) = (0, Vec::new());
        while let Some(w) = window(STRIP, from, writes.iter().copied()) {
            all.push((w.lo, w.hi));
            from = w.hi;
        }
        all
    }

    #[test]
    fn a_write_across_the_border_of_two_strips_has_two_windows() {
        let border = u64::from(STRIP);
        assert_eq!(windows(&[(border - 4 * K, border + 4 * K)]), [(0, 4096), (STRIP - 4096, STRIP)]);
        assert_eq!(windows(&[(border - 600 * K, border + 4 * K)]), [(0, STRIP)], "more than half of the rows");
        assert_eq!(windows(&[(4 * K, 12 * K)]), [(4096, 12288)]);
        assert_eq!(windows(&[(border - 4 * K, 2 * border + 4 * K)]), [(0, STRIP)]);
    }

    #[test]
    fn a_window_holds_at_least_half_of_what_it_spans() {
        let mut x = 7u64;
        for _ in 0..200 {
            let mut writes = Vec::new();
            for _ in 0..20 {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let start = (x >> 33) % 1500 * 4 * K;
                writes.push((start, start + (1 + (x >> 20) % 9) * 4 * K));
            }
            let all = windows(&writes);
            let mut blocks = std::collections::BTreeSet::new();
            for &(start, end) in &writes {
                blocks.extend((start / 4096..end / 4096).map(|b| b * 4096 % u64::from(STRIP)));
            }
            for &(lo, hi) in &all {
                let inside = blocks.range(u64::from(lo)..u64::from(hi)).count() as u32 * 4096;
                assert!(hi - lo <= 2 * inside, "{lo}..{hi} holds {inside}");
            }
            let everywhere = |&b: &u64| all.iter().any(|w| (u64::from(w.0)..u64::from(w.1)).contains(&b));
            assert!(blocks.iter().all(everywhere));
        }
    }

    #[test]
    fn writes_are_joined_while_their_hull_is_at_most_twice_their_rows() {
        let mut j = Join::new(STRIP);
        assert!(j.takes(0, 4 * K) && j.takes(8 * K, 12 * K) && j.takes(4 * K, 8 * K));
        assert!(!j.takes(40 * K, 44 * K), "too far");
        assert!(j.takes(u64::from(STRIP), u64::from(STRIP) + 4 * K), "the same rows of another strip");
        let mut j = Join::new(STRIP);
        assert!((0..64).all(|i| j.takes(i * 4 * K, (i + 1) * 4 * K)) && !j.takes(0, 4 * K));
        let mut j = Join::new(STRIP);
        assert!(j.takes(u64::from(STRIP) - 4 * K, u64::from(STRIP) + 4 * K), "the first always");
        assert!(!j.takes(u64::from(STRIP) + 4 * K, u64::from(STRIP) + 8 * K));
    }
}
