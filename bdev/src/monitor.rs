//! Watching a device over all its cores: counters, latency histograms, queue depth.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use longshore_reactor::{CoreHandle, oneshot};

use crate::channel::ChannelInner;
use crate::gate;
use crate::io::Op;
use crate::node::BdevNode;
use crate::stat::{Histogram, StatReset};

/// What queue-depth sampling found so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueDepth {
    /// Time between samples; zero if sampling is off.
    pub period: Duration,
    /// Requests in flight over all cores at the last sample.
    pub depth: u64,
    /// Time during which there were any, in microseconds.
    pub io_time: u64,
    /// The same, times how many there were.
    pub weighted_io_time: u64,
}

/// Cells of one device that the sampler writes.
#[derive(Default)]
pub(crate) struct Sampler {
    /// Counts changes of the period: a sampler that finds it changed ends.
    generation: AtomicU64,
    period_us: AtomicU64,
    depth: AtomicU64,
    io_time: AtomicU64,
    weighted: AtomicU64,
}

/// A latency histogram summed over all cores.
#[derive(Clone, Debug)]
pub struct HistogramSum {
    /// Entries as [`Histogram::bucket`] numbers them.
    pub buckets: Vec<u64>,
    /// Ticks per second of what was counted.
    pub tick_rate: u64,
}

impl BdevNode {
    /// What queue-depth sampling found so far.
    pub fn queue_depth(&self) -> QueueDepth {
        let s = self.sampler();
        QueueDepth {
            period: Duration::from_micros(s.period_us.load(Relaxed)),
            depth: s.depth.load(Relaxed),
            io_time: s.io_time.load(Relaxed),
            weighted_io_time: s.weighted.load(Relaxed),
        }
    }

    /// Samples the queue depth every `period` from `core`; zero ends it.
    pub fn set_qd_sampling(self: &Arc<Self>, core: &CoreHandle, period: Duration) {
        let s = self.sampler();
        let generation = s.generation.fetch_add(1, Relaxed) + 1;
        s.period_us.store(period.as_micros().min(u128::from(u64::MAX)) as u64, Relaxed);
        if period.is_zero() {
            for c in [&s.depth, &s.io_time, &s.weighted] {
                c.store(0, Relaxed);
            }
            return;
        }
        let node = Arc::downgrade(self);
        drop(core.spawn(move |reactor| async move {
            loop {
                reactor.sleep(period).await;
                let Some(node) = node.upgrade() else { return };
                if node.sampler().generation.load(Relaxed) != generation {
                    return;
                }
                let sum = Arc::new(AtomicU64::new(0));
                let adds = sum.clone();
                let counted = node.on_channels(move |ch, _| {
                    adds.fetch_add(u64::from(ch.device_inflight()), Relaxed);
                });
                let _ = counted.await;
                let (s, depth, us) = (node.sampler(), sum.load(Relaxed), period.as_micros() as u64);
                s.depth.store(depth, Relaxed);
                if depth != 0 {
                    s.io_time.fetch_add(us, Relaxed);
                    s.weighted.fetch_add(us.saturating_mul(depth), Relaxed);
                }
            }
        }));
    }

    /// Counts latencies from now on, of one kind of operation or of all, after forgetting what was counted before; or stops. The
    /// receiver fires when every core follows.
    pub fn enable_histogram(self: &Arc<Self>, on: bool, op: Option<Op>) -> oneshot::Receiver<()> {
        self.set_histogram(on.then_some(op));
        self.on_channels(move |ch, _| {
            if on {
                let h = ch.stat().histogram();
                h.reset();
                h.select(op);
            }
            ch.set_gate(gate::HISTOGRAM, on);
        })
    }

    /// The histogram over all cores; `None` if it is off.
    pub fn histogram(&self) -> Option<HistogramSum> {
        self.histogram_op()?;
        let mut buckets = self.closed_histogram();
        for stat in self.histograms() {
            stat.histogram().add_to(&mut buckets);
        }
        Some(HistogramSum { buckets, tick_rate: longshore_reactor::tick_rate() })
    }

    /// Sets counters back. The receiver fires when every core has done so.
    pub fn reset_stats(self: &Arc<Self>, what: StatReset) -> oneshot::Receiver<()> {
        let (tx, rx) = oneshot::channel();
        let node = self.clone();
        let reset = move |ch: &ChannelInner, _| {
            ch.settle_shared();
            ch.stat().reset(what);
        };
        self.each_channel(self.cores(), reset, move || {
            node.reset_closed(what);
            let _ = tx.send(());
        });
        rx
    }
}

/// An empty histogram sum.
pub(crate) fn empty() -> Vec<u64> {
    vec![0; Histogram::BUCKETS]
}
