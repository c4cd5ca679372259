//! What was done, by operation: counted per core, summed when somebody asks.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::operation::Operation;

/// What was done of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpStats {
    /// Jobs that were done.
    pub executed: u64,
    /// Jobs that were refused or failed.
    pub failed: u64,
    /// Bytes of those that were done.
    pub bytes: u64,
    /// Jobs, of those that were done, that an accel core did.
    pub offloaded: u64,
    /// Bytes of those.
    pub offloaded_bytes: u64,
    /// Jobs that were done by the core that wanted them because the accel cores had too many.
    pub queue_full: u64,
}

#[derive(Default)]
struct Counter {
    executed: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    offloaded: AtomicU64,
    offloaded_bytes: AtomicU64,
    queue_full: AtomicU64,
}

/// The counters of one core. Only that core writes to them, so their cache lines are theirs alone.
#[derive(Default)]
#[repr(align(64))]
struct Counters([Counter; Operation::COUNT]);

/// One writer: no need for an atomic addition.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed) + by, Relaxed);
}

impl Counters {
    #[inline]
    fn count(&self, op: Operation, bytes: usize) {
        let c = &self.0[op as usize];
        bump(&c.executed, 1);
        bump(&c.bytes, bytes as u64);
    }

    fn fail(&self, op: Operation) {
        bump(&self.0[op as usize].failed, 1);
    }

    fn add_to(&self, sum: &mut [OpStats; Operation::COUNT]) {
        for (s, c) in sum.iter_mut().zip(&self.0) {
            s.executed += c.executed.load(Relaxed);
            s.failed += c.failed.load(Relaxed);
            s.bytes += c.bytes.load(Relaxed);
            s.offloaded += c.offloaded.load(Relaxed);
            s.offloaded_bytes += c.offloaded_bytes.load(Relaxed);
            s.queue_full += c.queue_full.load(Relaxed);
        }
    }
}

#[derive(Default)]
struct Inner {
    live: Vec<Arc<Counters>>,
    gone: [OpStats; Operation::COUNT],
}

/// The counters of all cores, and the sum of those that are gone.
#[derive(Default)]
pub(crate) struct Stats(Mutex<Inner>);

impl Stats {
    /// The counters of whoever asks, to use on one core.
    pub(crate) fn open(self: &Arc<Self>) -> Rc<Counting> {
        let counters = Arc::new(Counters::default());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).live.push(counters.clone());
        Rc::new(Counting { counters, stats: self.clone() })
    }

    fn close(&self, counters: &Arc<Counters>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.live.retain(|c| !Arc::ptr_eq(c, counters));
        counters.add_to(&mut inner.gone);
    }

    pub(crate) fn sum(&self) -> [OpStats; Operation::COUNT] {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = inner.gone;
        inner.live.iter().for_each(|c| c.add_to(&mut sum));
        sum
    }
}

/// Who counts on one core. What it counted stays when it is gone. It does not leave its core: there is one writer.
pub(crate) struct Counting {
    counters: Arc<Counters>,
    stats: Arc<Stats>,
}

impl Counting {
    #[inline]
    pub(crate) fn count(&self, op: Operation, bytes: usize) {
        self.counters.count(op, bytes);
    }

    pub(crate) fn fail(&self, op: Operation) {
        self.counters.fail(op);
    }

    /// A job that an accel core did.
    pub(crate) fn offloaded(&self, op: Operation, bytes: usize) {
        self.counters.count(op, bytes);
        let c = &self.counters.0[op as usize];
        bump(&c.offloaded, 1);
        bump(&c.offloaded_bytes, bytes as u64);
    }

    /// A job for which the accel cores had no place.
    pub(crate) fn full(&self, op: Operation) {
        bump(&self.counters.0[op as usize].queue_full, 1);
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.stats.close(&self.counters);
    }
}
