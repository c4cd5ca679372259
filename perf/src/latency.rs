//! Latencies of a run: recorded in ticks of the CPU, read in microseconds.

use hdrhistogram::Histogram;

/// Percentiles that are reported.
pub(crate) const PERCENTILES: [f64; 8] = [50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.99];

/// Longest latency told apart, in ticks: about 20 minutes. Longer ones count as this.
const HIGHEST: u64 = 1 << 42;

/// A histogram that is exact to three digits at any magnitude.
#[derive(Clone)]
pub(crate) struct Latency {
    ticks: Histogram<u64>,
    /// Exact: the histogram's own mean is that of its buckets.
    sum: u64,
    per_us: f64,
}

impl Latency {
    /// An empty one; `tick_rate` is in ticks per second.
    pub(crate) fn new(tick_rate: u64) -> Latency {
        let ticks = Histogram::new_with_bounds(1, HIGHEST, 3).expect("constant bounds that the histogram accepts");
        Latency { ticks, sum: 0, per_us: tick_rate as f64 / 1e6 }
    }

    /// Counts one request.
    #[inline]
    pub(crate) fn record(&mut self, ticks: u64) {
        self.ticks.saturating_record(ticks);
        self.sum += ticks;
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.ticks.reset();
        self.sum = 0;
    }

    /// Adds what another core measured.
    pub(crate) fn merge(&mut self, other: &Latency) {
        // Same bounds on both sides, so this cannot fail.
        let _ = self.ticks.add(&other.ticks);
        self.sum += other.sum;
    }

    /// Requests counted.
    pub(crate) fn count(&self) -> u64 {
        self.ticks.len()
    }

    /// Mean, in microseconds.
    pub(crate) fn average_us(&self) -> f64 {
        self.sum as f64 / self.count().max(1) as f64 / self.per_us
    }

    /// Shortest, in microseconds.
    pub(crate) fn min_us(&self) -> f64 {
        self.ticks.min() as f64 / self.per_us
    }

    /// Longest, in microseconds.
    pub(crate) fn max_us(&self) -> f64 {
        self.ticks.max() as f64 / self.per_us
    }

    /// The time within which this percentage of requests ended, in microseconds.
    pub(crate) fn percentile_us(&self, percent: f64) -> f64 {
        self.ticks.value_at_quantile(percent / 100.0).min(self.ticks.max()) as f64 / self.per_us
    }

    /// Upper end in microseconds and number of requests, for ranges that grow by a tenth from one to the next.
    pub(crate) fn ranges(&self) -> Vec<(f64, u64)> {
        let mut out: Vec<(f64, u64)> = Vec::new();
        for v in self.ticks.iter_recorded() {
            let us = v.value_iterated_to() as f64 / self.per_us;
            let step = (us.max(0.01).ln() / 1.1f64.ln()).ceil();
            let upto = 1.1f64.powf(step);
            match out.last_mut() {
                Some((last, n)) if *last >= us => *n += v.count_since_last_iteration(),
                _ => out.push((upto, v.count_since_last_iteration())),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_what_was_recorded() {
        // 3 ticks per ns
        let mut l = Latency::new(3_000_000_000);
        for us in 1..=1000u64 {
            l.record(us * 3000);
        }
        assert_eq!(l.count(), 1000);
        let near = |a: f64, b: f64| assert!((a - b).abs() / b < 0.002, "{a} is not about {b}");
        near(l.average_us(), 500.5);
        near(l.percentile_us(50.0), 500.0);
        near(l.percentile_us(99.0), 990.0);
        near(l.max_us(), 1000.0);
        near(l.min_us(), 1.0);
        assert!(l.percentile_us(99.99) <= l.max_us());
        assert_eq!(l.ranges().iter().map(|r| r.1).sum::<u64>(), 1000);
        assert!(l.ranges().windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn merging_adds_and_clearing_forgets() {
        let (mut a, mut b) = (Latency::new(1_000_000), Latency::new(1_000_000));
        a.record(10);
        b.record(30);
        a.merge(&b);
        assert_eq!((a.count(), a.average_us()), (2, 20.0));
        a.clear();
        assert_eq!((a.count(), a.average_us()), (0, 0.0));
    }
}
