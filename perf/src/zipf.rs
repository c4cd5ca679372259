//! Skewed offsets: place k is drawn with a probability proportional to 1 / k^theta.
//!
//! By rejection-inversion (W. Hormann, G. Derflinger, "Rejection-inversion to generate variates from monotone discrete distributions",
//! 1996): no table, so it serves devices of any size, and about one draw in ten is repeated.

use crate::random::Random;

/// A distribution over `0..n`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zipf {
    n: f64,
    theta: f64,
    low: f64,
    high: f64,
    near: f64,
}

impl Zipf {
    /// `n` places; `theta` above 0.
    pub(crate) fn new(n: u64, theta: f64) -> Zipf {
        let mut z = Zipf { n: n as f64, theta, low: 0.0, high: 0.0, near: 0.0 };
        z.low = z.integral(1.5) - 1.0;
        z.high = z.integral(z.n + 0.5);
        z.near = 2.0 - z.inverse(z.integral(2.5) - 2f64.powf(-theta));
        z
    }

    /// Integral of x^-theta, with the constant that makes it continuous in theta at 1.
    fn integral(&self, x: f64) -> f64 {
        let e = 1.0 - self.theta;
        if e.abs() < 1e-9 { x.ln() } else { (x.powf(e) - 1.0) / e }
    }

    fn inverse(&self, y: f64) -> f64 {
        let e = 1.0 - self.theta;
        if e.abs() < 1e-9 { y.exp() } else { (1.0 + y * e).max(0.0).powf(1.0 / e) }
    }

    /// A place.
    #[inline]
    pub(crate) fn draw(&self, random: &mut Random) -> u64 {
        loop {
            let unit = (random.next() >> 11) as f64 / (1u64 << 53) as f64;
            let u = self.high + unit * (self.low - self.high);
            let x = self.inverse(u);
            let k = x.round().clamp(1.0, self.n);
            if k - x <= self.near || u >= self.integral(k + 0.5) - k.powf(-self.theta) {
                return k as u64 - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_drawn_as_often_as_its_rank_says() {
        for theta in [0.5, 1.0, 1.2] {
            let n = 1000;
            let z = Zipf::new(n, theta);
            let mut r = Random::new(5);
            let draws = 400_000;
            let mut hits = vec![0u32; n as usize];
            (0..draws).for_each(|_| hits[z.draw(&mut r) as usize] += 1);
            let sum: f64 = (1..=n).map(|k| (k as f64).powf(-theta)).sum();
            for k in [1, 2, 3, 10, 100] {
                let want = draws as f64 * (k as f64).powf(-theta) / sum;
                let got = f64::from(hits[k - 1]);
                // five standard deviations
                assert!(
                    (got - want).abs() < 5.0 * want.sqrt(),
                    "theta {theta}, rank {k}: {got} draws, {want:.0} expected"
                );
            }
        }
    }

    #[test]
    fn a_single_place_is_always_drawn_and_a_huge_range_never_left() {
        let mut r = Random::new(1);
        let one = Zipf::new(1, 0.9);
        assert!((0..1000).all(|_| one.draw(&mut r) == 0));
        let huge = Zipf::new(1 << 40, 0.2);
        assert!((0..1000).all(|_| huge.draw(&mut r) < 1 << 40));
    }
}
