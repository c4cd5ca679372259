//! Rate limits of a device, shared by its cores. They cost nothing when unset: only a device with limits sends its requests
//! the slow way.
//!
//! A request is admitted when its core has leases on every limit that it falls under (see `lease`). Otherwise it waits in a queue
//! of its core, which a timer looks at when the lease begins: what waits costs nothing meanwhile.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use longshore_reactor::{Timer, oneshot};

use crate::channel::ChannelInner;
use crate::gate;
use crate::io::{IoRef, Op};
use crate::lease::{Arrears, Lease, Limit, TERM};
use crate::node::BdevNode;
use crate::queue::IoQueue;

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

/// The limits of one device: of requests; of bytes read and written, read, and written.
#[derive(Default)]
pub(crate) struct Qos([Limit; 4]);

/// Index of each limit in [`Qos`] and in [`Leases`].
const IOS: usize = 0;
const BYTES: usize = 1;
const READ: usize = 2;
const WRITE: usize = 3;

/// What a read or write takes of which limits.
#[inline]
fn needs(op: Op, bytes: u64) -> [(usize, u64); 3] {
    [(IOS, 1), (BYTES, bytes), (if op == Op::Read { READ } else { WRITE }, bytes)]
}

impl Qos {
    fn limits(&self) -> QosLimits {
        let [ios, bytes, read, write] = &self.0;
        QosLimits {
            rw_ios_per_sec: ios.rate(),
            rw_mbytes_per_sec: bytes.rate() >> 20,
            r_mbytes_per_sec: read.rate() >> 20,
            w_mbytes_per_sec: write.rate() >> 20,
        }
    }

    pub(crate) fn any(&self) -> bool {
        self.limits() != QosLimits::default()
    }

    fn take_back(&self, op: Op, bytes: u64) {
        for (i, need) in needs(op, bytes) {
            self.0[i].take_back(need);
        }
    }
}

/// What one core has of the limits.
#[derive(Default)]
struct Leases {
    of: [Lease; 4],
    /// When the first request in the queue may pass.
    due: Cell<u64>,
    arrears: Arrears,
    /// A term in ticks, once it is known.
    term: Cell<u64>,
    /// Since the timer was set, a lease was taken.
    bought: Cell<bool>,
}

impl Leases {
    /// Ticks until a request may pass. 0: now; it is paid for.
    #[inline]
    fn admit(&self, q: &Qos, op: Op, bytes: u64, now: u64) -> u64 {
        let needs = needs(op, bytes);
        let mut from = 0;
        for (i, need) in needs {
            from = from.max(self.of[i].obtain(&q.0[i], need, || {
                self.bought.set(true);
                self.arrears.since(now)
            }));
        }
        // A term ahead of the rate is allowed, so that a few requests at once do not wait for each other.
        let due = from.saturating_sub(self.term());
        if due > now {
            self.due.set(due);
            return due - now;
        }
        for (i, need) in needs {
            self.of[i].spend(need);
        }
        0
    }

    #[inline]
    fn term(&self) -> u64 {
        if self.term.get() == 0 {
            self.term.set(longshore_reactor::ticks(TERM));
        }
        self.term.get()
    }

    /// Requests that waited are looked at again.
    fn resume(&self, now: u64) {
        self.arrears.late(self.due.get(), now);
    }

    fn is_empty(&self) -> bool {
        self.of.iter().all(Lease::is_empty)
    }

    fn give_back(&self, q: &Qos) {
        self.of.iter().zip(&q.0).for_each(|(lease, limit)| lease.give_back(limit));
    }
}

/// What the limits of a device hold back on one core.
#[derive(Default)]
pub(crate) struct Limited {
    pub(crate) queue: IoQueue,
    leases: Leases,
    /// Set while something waits, or a lease is held.
    timer: RefCell<Option<Timer>>,
    armed: Cell<bool>,
}

/// Gives `io` back if the limits let it pass now; otherwise it waits until they do.
#[inline]
pub(crate) fn admit(ch: &ChannelInner, io: IoRef) -> Option<IoRef> {
    if !matches!(io.op(), Op::Read | Op::Write) {
        return Some(io);
    }
    let l = &ch.limited;
    if !l.queue.is_empty() {
        l.queue.push(io);
        return None;
    }
    let wait = try_admit(ch, &io);
    if wait != 0 {
        l.queue.push(io);
        arm_ticks(ch, wait);
        return None;
    }
    if l.leases.bought.get() && !l.armed.get() {
        arm(ch, TERM);
    }
    Some(io)
}

#[inline]
fn bytes(ch: &ChannelInner, io: &IoRef) -> u64 {
    u64::from(io.nblocks()) * u64::from(ch.geometry().block_size)
}

#[inline]
fn try_admit(ch: &ChannelInner, io: &IoRef) -> u64 {
    ch.limited.leases.admit(ch.node.qos(), io.op(), bytes(ch, io), ch.core().now())
}

/// A read that was admitted has not been done, and will come again: the limits have back what it took. (If they were set while it
/// was in flight, they have never had it: at most what was in flight then passes beyond them, once.)
#[cold]
pub(crate) fn take_back(ch: &ChannelInner, io: &IoRef) {
    ch.node.qos().take_back(io.op(), bytes(ch, io));
}

#[cold]
fn arm_ticks(ch: &ChannelInner, wait: u64) {
    arm(ch, Duration::from_nanos(longshore_reactor::nanos(wait)).max(RETRY));
}

#[cold]
fn arm(ch: &ChannelInner, after: Duration) {
    let weak = ch.channel().downgrade();
    let timer = ch.core().reactor().timer(after, move |_| {
        if let Some(ch) = crate::channel::Channel::upgrade(&weak) {
            pump(ch.inner());
        }
    });
    *ch.limited.timer.borrow_mut() = Some(timer);
    ch.limited.armed.set(true);
    ch.limited.leases.bought.set(false);
}

/// Lets pass what may. With nothing left to wait, leases are given back.
fn pump(ch: &ChannelInner) {
    let l = &ch.limited;
    l.armed.set(false);
    if l.queue.is_empty() {
        return give_back(ch);
    }
    l.leases.resume(ch.core().now());
    loop {
        match l.queue.peek(|io| try_admit(ch, io)) {
            None => break,
            Some(0) => {
                if let Some(io) = l.queue.pop() {
                    ch.submit_admitted(io);
                }
            }
            Some(wait) => return arm_ticks(ch, wait),
        }
    }
    if !l.leases.is_empty() {
        arm(ch, TERM);
    }
}

/// The channel has no use for its leases.
pub(crate) fn give_back(ch: &ChannelInner) {
    ch.limited.leases.give_back(ch.node.qos());
}

impl BdevNode {
    /// The limits of now.
    pub fn qos_limits(&self) -> QosLimits {
        self.qos().limits()
    }

    /// Changes limits. The receiver fires when every core follows them.
    pub fn set_qos(self: &Arc<Self>, u: QosUpdate) -> oneshot::Receiver<()> {
        let ios = u.rw_ios_per_sec.map(|v| v.min(u64::MAX - IOS_UNIT).next_multiple_of(IOS_UNIT));
        let mib = |v: Option<u64>| v.map(|m| m.min(u64::MAX >> 20) << 20);
        let rates = [ios, mib(u.rw_mbytes_per_sec), mib(u.r_mbytes_per_sec), mib(u.w_mbytes_per_sec)];
        let changed = rates.map(|r| r.is_some());
        for (limit, rate) in self.qos().0.iter().zip(rates) {
            if let Some(rate) = rate {
                limit.set(rate);
            }
        }
        self.on_channels(move |ch, _| {
            let leases = ch.limited.leases.of.iter();
            leases.zip(changed).filter(|(_, changed)| *changed).for_each(|(l, _)| l.forget());
            ch.set_gate(gate::QOS, ch.node.qos().any());
            pump(ch);
        })
    }
}

#[cfg(test)]
mod tests {
    use longshore_reactor::sim::Random;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A core that always wants more, or a burst of so many requests each so many ticks.
    struct Core {
        leases: Leases,
        every: Option<(u64, u32)>,
        next: u64,
        wake: u64,
        waiting: u32,
        admitted: u64,
    }

    impl Core {
        fn new(every: Option<(u64, u32)>) -> Core {
            Core { leases: Leases::default(), every, next: 0, wake: 0, waiting: 0, admitted: 0 }
        }

        /// As a channel does when requests come or its timer fires.
        fn run(&mut self, q: &Qos, op: Op, bytes: u64, now: u64) {
            if self.waiting > 0 {
                self.leases.resume(now);
            }
            match self.every {
                None => self.waiting = 100_000,
                Some((period, n)) if self.next <= now => (self.next, self.waiting) = (now + period, self.waiting + n),
                Some(_) => {}
            }
            while self.waiting > 0 {
                let wait = self.leases.admit(q, op, bytes, now);
                if wait != 0 {
                    self.wake = now + wait.max(longshore_reactor::ticks(RETRY));
                    return;
                }
                self.admitted += 1;
                self.waiting -= 1;
            }
            self.wake = self.next;
            self.leases.give_back(q);
        }
    }

    fn run(q: &Qos, cores: &mut [Core], bytes: u64, seconds: u64, late: Option<u64>) -> Vec<u64> {
        let second = longshore_reactor::tick_rate();
        let (start, mut random) = (1000 * second, Random::new(7));
        cores.iter_mut().for_each(|c| c.wake = start);
        loop {
            let c = cores.iter_mut().min_by_key(|c| c.wake).expect("cores");
            if c.wake > start + seconds * second {
                return cores.iter().map(|c| c.admitted).collect();
            }
            let now = c.wake;
            c.run(q, Op::Read, bytes, now);
            c.wake += late.map_or(0, |ms| random.below(ms * second / 1000));
        }
    }

    fn with(limit: usize, rate: u64) -> Qos {
        let q = Qos::default();
        q.0[limit].set(rate);
        q
    }

    fn near(found: u64, want: u64, percent: u64) {
        assert!(found.abs_diff(want) * 100 <= want * percent + 100, "{found} instead of {want}");
    }

    #[test]
    fn one_core_gets_the_whole_rate_and_no_more() {
        for (limit, rate, bytes, want) in [
            (IOS, 1000, 4096, 5000),
            (IOS, 20_000, 4096, 100_000),
            (IOS, 1_000_000, 512, 5_000_000),
            (BYTES, 10 * MIB, 4096, 12_800),
            (READ, MIB, MIB, 5),
            (READ, 16 * MIB, 128 << 10, 640),
        ] {
            let n = run(&with(limit, rate), &mut [Core::new(None)], bytes, 5, None);
            near(n[0], want, 1);
        }
    }

    #[test]
    fn cores_that_want_more_than_they_get_share_evenly() {
        for (limit, rate, want) in [(IOS, 1000, 2500), (IOS, 200_000, 500_000), (BYTES, 10 * MIB, 6400)] {
            let n = run(&with(limit, rate), &mut [Core::new(None), Core::new(None)], 4096, 5, None);
            near(n[0], want, 3);
            near(n[1], want, 3);
        }
    }

    #[test]
    fn what_a_core_does_not_use_another_one_gets() {
        let every = longshore_reactor::tick_rate() / 100;
        let n = run(&with(IOS, 50_000), &mut [Core::new(None), Core::new(Some((every, 5)))], 4096, 5, None);
        near(n[1], 2500, 2);
        near(n[0], 247_500, 1);
    }

    #[test]
    fn a_core_that_comes_late_catches_up_and_one_that_was_idle_does_not() {
        let n = run(&with(IOS, 20_000), &mut [Core::new(None), Core::new(None)], 4096, 5, Some(30));
        near(n.iter().sum(), 100_000, 2);
        let (q, second) = (with(IOS, 20_000), longshore_reactor::tick_rate());
        let mut c = Core::new(Some((second, 5)));
        c.run(&q, Op::Read, 512, second);
        assert_eq!((c.admitted, c.waiting), (5, 0));
        c.every = Some((second, 5000));
        c.run(&q, Op::Read, 512, 2 * second);
        assert!((6..=5 + 40).contains(&c.admitted), "{} at once after a second of rest", c.admitted - 5);
    }

    #[test]
    fn what_is_taken_back_is_had_again_and_no_more() {
        let (q, l) = (with(READ, MIB), Leases::default());
        for _ in 0..100 {
            assert_eq!(l.admit(&q, Op::Read, MIB / 4, 1000), 0);
            q.take_back(Op::Read, MIB / 4);
        }
        assert_eq!(l.admit(&q, Op::Read, MIB / 4, 1000), 0);
        assert!(l.admit(&q, Op::Read, MIB / 4, 1000) > longshore_reactor::tick_rate() / 5);
    }

    #[test]
    fn one_way_limits_leave_the_other_way_alone() {
        let (q, l) = (with(WRITE, MIB), Leases::default());
        assert_eq!(l.admit(&q, Op::Write, 8 * MIB, 1000), 0);
        assert!(l.admit(&q, Op::Write, 512, 1000) > 7 * longshore_reactor::tick_rate());
        assert_eq!(l.admit(&q, Op::Read, MIB, 1000), 0);
    }
}
