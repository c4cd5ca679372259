//! A small, fast, seeded generator (wyrand). Quality enough to draw offsets with; no secret depends on it.

/// Its state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A generator; equal seeds draw equal numbers.
    pub(crate) fn new(seed: u64) -> Random {
        // Seeds that people choose are small and close to each other.
        Random((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9))
    }

    #[inline]
    fn product(&mut self) -> u128 {
        self.0 = self.0.wrapping_add(0xa076_1d64_78bd_642f);
        u128::from(self.0) * u128::from(self.0 ^ 0xe703_7ed1_a0b4_28db)
    }

    /// The next number.
    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        let p = self.product();
        (p >> 64) as u64 ^ p as u64
    }

    /// A small and a large number from one step; the small one does not show in the high bits of the large one.
    #[inline]
    pub(crate) fn pair(&mut self) -> (u32, u64) {
        let n = self.next();
        (n as u32, n)
    }

    /// A number below `n`.
    #[inline]
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_spread_evenly_and_repeat_with_the_seed() {
        let mut r = Random::new(1);
        let mut hits = [0u32; 10];
        (0..100_000).for_each(|_| hits[r.below(10) as usize] += 1);
        assert!(hits.iter().all(|&h| (9_500..10_500).contains(&h)), "{hits:?}");
        let low = (0..100_000).filter(|_| r.pair().0 < u32::MAX / 10 * 3).count();
        assert!((29_000..31_000).contains(&low), "{low}");
        let draw = |seed| std::iter::repeat_with(move || seed).scan(Random::new(seed), |r, _| Some(r.next())).take(5);
        assert!(draw(3).eq(draw(3)) && !draw(3).eq(draw(4)));
    }
}
