//! Rate limits of a device, shared by its cores. They cost nothing when unset: only a device with limits sends its requests
//! the slow way.
//!
//! Each limit keeps the moment at which what was admitted so far is paid for. A request is admitted while that moment is not
//! further than a burst ahead, and moves it by its own price; so large requests go into debt and the rate holds exactly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use longshore_reactor::oneshot;

use crate::channel::ChannelInner;
use crate::gate;
use crate::io::{IoRef, Op};
use crate::node::BdevNode;

/// How far ahead of its rate a limit lets requests go.
const BURST: Duration = Duration::from_millis(1);
/// Requests wait at least so long before they are tried again: they go in batches.
const RETRY: Duration = Duration::from_micros(50);
/// Limits on requests are multiples of this.
const IOS_UNIT: u64 = 1000;

/// Rate limits; 0 = none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QosLimits {
    /// Reads and writes per second.
    pub rw_ios_per_sec: u64,
    /// MiB read and written per second.
    pub rw_mbytes_per_sec: u64,
    /// MiB read per second.
    pub r_mbytes_per_sec: u64,
    /// MiB written per second.
    pub w_mbytes_per_sec: u64,
}

/// A change of limits: `None` leaves one as it is, 0 removes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QosUpdate {
    /// Reads and writes per second; rounded up to a multiple of 1,000.
    pub rw_ios_per_sec: Option<u64>,
    /// MiB read and written per second.
    pub rw_mbytes_per_sec: Option<u64>,
    /// MiB read per second.
    pub r_mbytes_per_sec: Option<u64>,
    /// MiB written per second.
    pub w_mbytes_per_sec: Option<u64>,
}

#[derive(Default)]
struct Limit {
    /// Units per second; 0 = none.
    rate: AtomicU64,
    /// Ticks until which everything admitted is paid for.
    paid: AtomicU64,
}

impl Limit {
    /// Ticks from `now` until a request may pass; 0 = now.
    fn wait(&self, now: u64, burst: u64) -> u64 {
        if self.rate.load(Relaxed) == 0 { 0 } else { self.paid.load(Relaxed).saturating_sub(now + burst) }
    }

    fn charge(&self, now: u64, units: u64) {
        let rate = self.rate.load(Relaxed);
        if rate != 0 {
            let price = u128::from(units) * u128::from(longshore_reactor::tick_rate()) / u128::from(rate);
            let price = price.min(u128::from(u64::MAX / 4)) as u64;
            // Unused time does not add up beyond the burst.
            let _ = self.paid.fetch_update(Relaxed, Relaxed, |p| Some(p.max(now) + price));
        }
    }
}

/// The limits of one device.
#[derive(Default)]
pub(crate) struct Qos {
    ios: Limit,
    bytes: Limit,
    read: Limit,
    write: Limit,
}

impl Qos {
    fn limits(&self) -> QosLimits {
        QosLimits {
            rw_ios_per_sec: self.ios.rate.load(Relaxed),
            rw_mbytes_per_sec: self.bytes.rate.load(Relaxed) >> 20,
            r_mbytes_per_sec: self.read.rate.load(Relaxed) >> 20,
            w_mbytes_per_sec: self.write.rate.load(Relaxed) >> 20,
        }
    }

    pub(crate) fn any(&self) -> bool {
        self.limits() != QosLimits::default()
    }

    fn one_way(&self, op: Op) -> &Limit {
        if op == Op::Read { &self.read } else { &self.write }
    }

    /// Ticks until `op` may pass.
    fn wait(&self, op: Op, now: u64, burst: u64) -> u64 {
        [&self.ios, &self.bytes, self.one_way(op)].into_iter().map(|l| l.wait(now, burst)).max().unwrap_or(0)
    }

    fn charge(&self, op: Op, bytes: u64, now: u64) {
        self.ios.charge(now, 1);
        self.bytes.charge(now, bytes);
        self.one_way(op).charge(now, bytes);
    }
}

fn is_limited(op: Op) -> bool {
    matches!(op, Op::Read | Op::Write)
}

/// True if the limits let `io` pass now; it is then charged. Otherwise it has to join `limited`, which is looked after.
pub(crate) fn admit(ch: &ChannelInner, io: &IoRef) -> bool {
    if !is_limited(io.op()) {
        return true;
    }
    if !ch.limited.is_empty() {
        return false;
    }
    match try_admit(ch, io) {
        0 => true,
        wait => {
            arm(ch, wait);
            false
        }
    }
}

fn try_admit(ch: &ChannelInner, io: &IoRef) -> u64 {
    let now = ch.core().now();
    let q = ch.node.qos();
    let wait = q.wait(io.op(), now, longshore_reactor::ticks(BURST));
    if wait == 0 {
        let bytes = u64::from(io.nblocks()) * u64::from(ch.geometry().block_size);
        q.charge(io.op(), bytes, now);
    }
    wait
}

fn arm(ch: &ChannelInner, wait: u64) {
    let wait = Duration::from_secs_f64(wait as f64 / longshore_reactor::tick_rate() as f64).max(RETRY);
    let weak = ch.channel().downgrade();
    let timer = ch.core().reactor().timer(wait, move |_| {
        if let Some(ch) = crate::channel::Channel::upgrade(&weak) {
            pump(ch.inner());
        }
    });
    *ch.limit_timer.borrow_mut() = Some(timer);
}

/// Lets pass what may.
fn pump(ch: &ChannelInner) {
    loop {
        match ch.limited.peek(|io| try_admit(ch, io)) {
            None => return,
            Some(0) => {
                if let Some(io) = ch.limited.pop() {
                    ch.submit_admitted(io);
                }
            }
            Some(wait) => return arm(ch, wait),
        }
    }
}

impl BdevNode {
    /// The limits of now.
    pub fn qos_limits(&self) -> QosLimits {
        self.qos().limits()
    }

    /// Changes limits. The receiver fires when every core follows them.
    pub fn set_qos(self: &Arc<Self>, u: QosUpdate) -> oneshot::Receiver<()> {
        let q = self.qos();
        let set = |l: &Limit, v: Option<u64>| {
            if let Some(v) = v {
                l.rate.store(v, Relaxed);
                l.paid.store(0, Relaxed);
            }
        };
        let mib = |v: Option<u64>| v.map(|m| m.min(u64::MAX >> 20) << 20);
        set(&q.ios, u.rw_ios_per_sec.map(|v| v.min(u64::MAX - IOS_UNIT).next_multiple_of(IOS_UNIT)));
        set(&q.bytes, mib(u.rw_mbytes_per_sec));
        set(&q.read, mib(u.r_mbytes_per_sec));
        set(&q.write, mib(u.w_mbytes_per_sec));
        self.on_channels(|ch, _| {
            ch.set_gate(gate::QOS, ch.node.qos().any());
            pump(ch);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_admits_its_rate_and_a_burst_and_no_more() {
        let q = Qos::default();
        q.ios.rate.store(10_000, Relaxed);
        let second = longshore_reactor::tick_rate();
        let burst = second / 1000;
        let (mut now, mut admitted) = (second, 0);
        while now < 2 * second {
            if q.wait(Op::Read, now, burst) == 0 {
                q.charge(Op::Read, 4096, now);
                admitted += 1;
            } else {
                now += second / 100_000;
            }
        }
        assert!((10_000..=10_012).contains(&admitted), "admitted {admitted} in a second");
    }

    #[test]
    fn one_way_limits_leave_the_other_way_alone() {
        let q = Qos::default();
        q.write.rate.store(1 << 20, Relaxed);
        q.charge(Op::Write, 8 << 20, 1000);
        assert!(q.wait(Op::Write, 1000, 10) > longshore_reactor::tick_rate());
        assert_eq!(q.wait(Op::Read, 1000, 10), 0);
    }
}
