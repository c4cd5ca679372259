//! Counters and latency histograms of one device on one core. One writer, any reader.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use longshore_nvme::wire::Status;

use crate::io::Op;

/// Counters of one kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpStat {
    /// Requests ended.
    pub ops: u64,
    /// Blocks of those that succeeded.
    pub blocks: u64,
    /// Sum of latencies, in ticks.
    pub ticks: u64,
    /// Longest, in ticks.
    pub max_ticks: u64,
    /// Shortest, in ticks; `u64::MAX` if there was none.
    pub min_ticks: u64,
}

impl Default for OpStat {
    fn default() -> Self {
        OpStat { ops: 0, blocks: 0, ticks: 0, max_ticks: 0, min_ticks: u64::MAX }
    }
}

/// Which counters to set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatReset {
    /// Every one.
    All,
    /// Shortest and longest latencies.
    Extremes,
    /// Failures by status.
    Errors,
    /// None.
    Nothing,
}

/// A copy of all counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatSnapshot {
    /// Per operation, indexed by `Op as usize`.
    pub ops: [OpStat; Op::COUNT],
    /// Requests that failed, by status.
    pub errors: Vec<(Status, u64)>,
}

impl StatSnapshot {
    /// Counters of one operation.
    pub fn op(&self, op: Op) -> &OpStat {
        &self.ops[op as usize]
    }

    pub(crate) fn reset(&mut self, what: StatReset) {
        match what {
            StatReset::All => *self = StatSnapshot::default(),
            StatReset::Extremes => {
                for o in &mut self.ops {
                    o.max_ticks = 0;
                    o.min_ticks = u64::MAX;
                }
            }
            StatReset::Errors => self.errors.clear(),
            StatReset::Nothing => {}
        }
    }

    /// Adds the counters of another core.
    pub fn merge(&mut self, other: &StatSnapshot) {
        for (a, b) in self.ops.iter_mut().zip(&other.ops) {
            a.ops += b.ops;
            a.blocks += b.blocks;
            a.ticks += b.ticks;
            a.max_ticks = a.max_ticks.max(b.max_ticks);
            a.min_ticks = a.min_ticks.min(b.min_ticks);
        }
        for &(s, n) in &other.errors {
            match self.errors.iter_mut().find(|(t, _)| *t == s) {
                Some((_, m)) => *m += n,
                None => self.errors.push((s, n)),
            }
        }
    }
}

#[derive(Default)]
#[repr(C, align(64))]
struct OpCell {
    ops: AtomicU64,
    blocks: AtomicU64,
    ticks: AtomicU64,
    max_ticks: AtomicU64,
    /// `u64::MAX` while there is none.
    min_ticks: AtomicU64,
    /// The difference of the two: what lies within needs one comparison.
    span: AtomicU64,
}

impl OpCell {
    #[cold]
    fn widen(&self, ticks: u64) {
        let min = self.min_ticks.load(Relaxed).min(ticks);
        let max = self.max_ticks.load(Relaxed).max(ticks);
        self.min_ticks.store(min, Relaxed);
        self.max_ticks.store(max, Relaxed);
        self.span.store(max - min, Relaxed);
    }

    fn forget_extremes(&self) {
        self.min_ticks.store(u64::MAX, Relaxed);
        self.max_ticks.store(0, Relaxed);
        self.span.store(0, Relaxed);
    }
}

/// Adds without a locked instruction: only this core writes.
#[inline]
fn add(a: &AtomicU64, n: u64) {
    a.store(a.load(Relaxed).wrapping_add(n), Relaxed);
}

/// Distinct failure statuses that are counted one by one; the rest share the last entry.
const ERROR_KINDS: usize = 32;

/// Counters of one device on one core, written by that core only.
#[derive(Default)]
pub struct IoStat {
    ops: [OpCell; Op::COUNT],
    errors: [(AtomicU64, AtomicU64); ERROR_KINDS],
    histogram: OnceLock<Box<Histogram>>,
}

impl IoStat {
    /// Fresh counters.
    pub fn new() -> IoStat {
        let s = IoStat::default();
        s.ops.iter().for_each(OpCell::forget_extremes);
        s
    }

    pub(crate) fn record(&self, op: Op, blocks: u32, ticks: u64, status: Status) {
        if status == Status::SUCCESS {
            return self.record_success(op, blocks, ticks);
        }
        add(&self.ops[op as usize].ops, 1);
        self.record_error(status);
    }

    #[inline]
    pub(crate) fn record_success(&self, op: Op, blocks: u32, ticks: u64) {
        let c = &self.ops[op as usize];
        add(&c.ops, 1);
        add(&c.blocks, u64::from(blocks));
        add(&c.ticks, ticks);
        if ticks.wrapping_sub(c.min_ticks.load(Relaxed)) > c.span.load(Relaxed) {
            c.widen(ticks);
        }
    }

    #[cold]
    fn record_error(&self, status: Status) {
        let key = u64::from(status.raw()) | 1 << 32;
        for (i, (k, n)) in self.errors.iter().enumerate() {
            let cur = k.load(Relaxed);
            if cur == 0 {
                k.store(key, Relaxed);
            } else if cur != key && i + 1 < ERROR_KINDS {
                continue;
            }
            return add(n, 1);
        }
    }

    /// Counts one latency in the histogram, if there is one.
    #[inline]
    pub(crate) fn tally(&self, op: Op, ticks: u64) {
        if let Some(h) = self.histogram.get() {
            h.tally(op, ticks);
        }
    }

    /// The histogram, made on first use.
    pub fn histogram(&self) -> &Histogram {
        self.histogram.get_or_init(Default::default)
    }

    /// A copy of the counters. May be called from any thread.
    pub fn snapshot(&self) -> StatSnapshot {
        let mut s = StatSnapshot::default();
        for (o, c) in s.ops.iter_mut().zip(&self.ops) {
            *o = OpStat {
                ops: c.ops.load(Relaxed),
                blocks: c.blocks.load(Relaxed),
                ticks: c.ticks.load(Relaxed),
                max_ticks: c.max_ticks.load(Relaxed),
                min_ticks: c.min_ticks.load(Relaxed),
            };
        }
        for (k, n) in &self.errors {
            let k = k.load(Relaxed);
            if k != 0 {
                s.errors.push((Status::from_raw(k as u16), n.load(Relaxed)));
            }
        }
        s
    }

    /// Sets counters back. On the owning core only.
    pub(crate) fn reset(&self, what: StatReset) {
        for c in &self.ops {
            if matches!(what, StatReset::All | StatReset::Extremes) {
                c.forget_extremes();
            }
            if what == StatReset::All {
                c.ops.store(0, Relaxed);
                c.blocks.store(0, Relaxed);
                c.ticks.store(0, Relaxed);
            }
        }
        if matches!(what, StatReset::All | StatReset::Errors) {
            for (k, n) in &self.errors {
                n.store(0, Relaxed);
                k.store(0, Relaxed);
            }
        }
    }
}

/// Log-linear latency histogram: each power of two of ticks has `2^GRANULARITY` buckets, so every bucket is exact to 1/128.
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    /// Bit per operation that is counted.
    ops: AtomicU64,
}

impl Histogram {
    /// log2 of the buckets per power of two.
    pub const GRANULARITY: u32 = 7;
    /// Ranges: the first is linear, each of the others covers one power of two.
    pub const RANGES: usize = 64 - Self::GRANULARITY as usize + 1;
    /// Number of buckets.
    pub const BUCKETS: usize = Self::RANGES << Self::GRANULARITY;

    /// The bucket of a value.
    #[inline]
    pub fn bucket(ticks: u64) -> usize {
        let g = Self::GRANULARITY;
        let log = 63 - (ticks | 1).leading_zeros();
        if log < g {
            return ticks as usize;
        }
        let range = log - g + 1;
        let within = (ticks >> (range - 1)) & ((1 << g) - 1);
        ((range as usize) << g) + within as usize
    }

    #[inline]
    fn tally(&self, op: Op, ticks: u64) {
        if self.ops.load(Relaxed) & (1 << op as u64) != 0 {
            add(&self.buckets[Self::bucket(ticks)], 1);
        }
    }

    /// Chooses what is counted: one operation, or all.
    pub fn select(&self, op: Option<Op>) {
        self.ops.store(op.map_or(u64::MAX, |o| 1 << o as u64), Relaxed);
    }

    /// Adds the buckets of this core to `sum`, which has [`BUCKETS`](Self::BUCKETS) entries.
    pub fn add_to(&self, sum: &mut [u64]) {
        for (s, b) in sum.iter_mut().zip(&self.buckets) {
            *s += b.load(Relaxed);
        }
    }

    /// Forgets what was counted. On the owning core only.
    pub fn reset(&self) {
        for b in &self.buckets {
            b.store(0, Relaxed);
        }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: (0..Self::BUCKETS).map(|_| AtomicU64::new(0)).collect(), ops: AtomicU64::new(u64::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_grow_with_the_value_and_never_skip() {
        let mut last = 0;
        for v in 0..100_000u64 {
            let b = Histogram::bucket(v);
            assert!(b == last || b == last + 1, "value {v} jumps from bucket {last} to {b}");
            last = b;
        }
        assert_eq!(Histogram::bucket(u64::MAX), Histogram::BUCKETS - 1);
    }

    #[test]
    fn failures_are_counted_by_status_and_add_no_blocks() {
        let s = IoStat::new();
        s.record(Op::Read, 8, 100, Status::SUCCESS);
        s.record(Op::Read, 8, 300, Status::LBA_OUT_OF_RANGE);
        s.record(Op::Read, 8, 50, Status::SUCCESS);
        let snap = s.snapshot();
        let r = snap.op(Op::Read);
        assert_eq!((r.ops, r.blocks, r.ticks, r.max_ticks, r.min_ticks), (3, 16, 150, 100, 50));
        assert_eq!(snap.errors, vec![(Status::LBA_OUT_OF_RANGE, 1)]);
    }
}
