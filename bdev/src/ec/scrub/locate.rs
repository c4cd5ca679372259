//! Which strips of a stripe are wrong, from one byte of each.
//!
//! The bytes at one offset of all strips are a codeword of an MDS code: any two differ in more than m places. Of `r` more strips than
//! k, at most `r/2` wrong ones have one explanation: a second one would be a second codeword within `r` places of the first.

use longshore_accel::erasure::Codec;
use longshore_accel::gf;

use super::super::layout::{MAX_MEMBERS, MAX_PARITY};
use super::super::txn::masked;

/// The bytes at one offset of the strips.
pub(super) struct Column {
    m: usize,
    /// What each strip adds to the checks, per unit.
    weights: [[u8; MAX_PARITY]; MAX_MEMBERS],
    /// What the strips that are there leave over in each check: all zero if they fit, and nothing is missing.
    left: [u8; MAX_PARITY],
    missing: u64,
}

impl Column {
    /// `value`: the byte of each strip of `have`.
    pub(super) fn new(codec: &Codec, have: u64, value: impl Fn(usize) -> u8) -> Column {
        let (k, m) = (codec.data_chunks(), codec.parity_chunks());
        let mut c = Column { m, weights: [[0; MAX_PARITY]; MAX_MEMBERS], left: [0; MAX_PARITY], missing: 0 };
        for i in 0..k + m {
            for p in 0..m {
                c.weights[i][p] = if i < k { codec.coefficient(p, i) } else { u8::from(p == i - k) };
            }
        }
        for i in masked(have) {
            let v = value(i);
            (0..m).for_each(|p| c.left[p] ^= gf::mul(c.weights[i][p], v));
        }
        c.missing = ((1 << (k + m)) - 1) & !have;
        c
    }

    /// True if all fits when the strips of `wrong` have other values, and so have those that are missing.
    pub(super) fn explains(&self, wrong: u64) -> bool {
        let mut rest = self.left;
        let mut base: [[u8; MAX_PARITY]; MAX_PARITY] = [[0; MAX_PARITY]; MAX_PARITY];
        let mut pivots = [0usize; MAX_PARITY];
        let mut size = 0;
        for i in masked(wrong | self.missing) {
            let mut v = self.weights[i];
            for (b, &at) in base.iter().zip(&pivots).take(size) {
                cancel(&mut v, b, at, self.m);
            }
            let Some(at) = v[..self.m].iter().position(|&x| x != 0) else { continue };
            let unit = gf::inverse(v[at]).unwrap_or(0);
            v.iter_mut().for_each(|x| *x = gf::mul(*x, unit));
            (base[size], pivots[size]) = (v, at);
            size += 1;
            if size == self.m {
                return true;
            }
        }
        for (b, &at) in base.iter().zip(&pivots).take(size) {
            cancel(&mut rest, b, at, self.m);
        }
        rest[..self.m].iter().all(|&x| x == 0)
    }
}

/// Takes as much of `b`, which is 1 at `at`, from `v` as makes it 0 there.
fn cancel(v: &mut [u8; MAX_PARITY], b: &[u8; MAX_PARITY], at: usize, m: usize) {
    let factor = v[at];
    if factor != 0 {
        (0..m).for_each(|p| v[p] ^= gf::mul(factor, b[p]));
    }
}

/// The sets of `size` members of the set `of`.
pub(in super::super) fn subsets(of: u64, size: usize) -> impl Iterator<Item = u64> {
    let width = of.count_ones() as usize;
    let mut pattern = (1u64 << size) - 1;
    std::iter::from_fn(move || {
        if size == 0 || size > width || pattern >> width != 0 {
            return None;
        }
        let set = masked(of).enumerate().fold(0, |s, (at, i)| s | (pattern >> at & 1) << i);
        // The next number with as many bits.
        let low = pattern & pattern.wrapping_neg();
        let carried = pattern + low;
        pattern = carried | (((pattern ^ carried) >> 2) / low);
        Some(set)
    })
}

#[cfg(test)]
mod tests {
    use longshore_accel::erasure::MatrixKind;
    use longshore_reactor::sim::Random;

    use super::*;

    #[test]
    fn subsets_are_all_of_their_size_and_each_once() {
        for (of, size, count) in
            [(0b1011_0110u64, 2, 10), (0b111, 3, 1), (0b111, 4, 0), ((1 << 40) - 1, 3, 9880), (5, 0, 0)]
        {
            let all: std::collections::BTreeSet<u64> = subsets(of, size).collect();
            assert_eq!((all.len(), subsets(of, size).count()), (count, count));
            assert!(all.iter().all(|s| s & !of == 0 && s.count_ones() as usize == size));
        }
    }

    #[test]
    fn as_many_wrong_bytes_as_half_of_what_is_spare_have_one_explanation() {
        let mut rng = Random::new(7);
        for (k, m) in [(1, 1), (1, 4), (4, 2), (5, 3), (8, 4), (20, 8)] {
            let codec = Codec::new(MatrixKind::Cauchy, k, m).unwrap();
            let n = k + m;
            for round in 0..60 {
                let data: Vec<Vec<u8>> = (0..k).map(|_| vec![rng.below(256) as u8]).collect();
                let mut parity = vec![vec![0u8]; m];
                let src: Vec<&[u8]> = data.iter().map(|d| &d[..]).collect();
                let mut dst: Vec<&mut [u8]> = parity.iter_mut().map(|d| &mut d[..]).collect();
                codec.encode(&src, &mut dst);
                let mut all: Vec<u8> = data.iter().chain(&parity).map(|v| v[0]).collect();
                let missing = rng.below(m as u64 + 1) as usize;
                let mut have = (1u64 << n) - 1;
                while (have.count_ones() as usize) > n - missing {
                    have &= !(1 << rng.below(n as u64));
                }
                let most = (m - missing) / 2;
                let wrong = rng.below(most as u64 + 1) as usize;
                let mut set = 0u64;
                while (set.count_ones() as usize) < wrong {
                    set |= (1 << rng.below(n as u64)) & have;
                }
                masked(set).for_each(|i| all[i] ^= 1 + rng.below(255) as u8);
                let c = Column::new(&codec, have, |i| all[i]);
                assert_eq!(c.explains(0), wrong == 0, "{k}+{m} round {round}");
                for size in 1..=wrong {
                    let found: Vec<u64> = subsets(have, size).filter(|&s| c.explains(s)).collect();
                    assert_eq!(found, if size == wrong { vec![set] } else { vec![] }, "{k}+{m} round {round}");
                }
            }
        }
    }
}
