//! A layer that makes requests take at least a given time: most of them the average latency, one in a hundred the p99 one.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use longshore_nvme::wire::Status;
use longshore_reactor::{Reactor, Timer};
use uuid::Uuid;

use crate::base::Base;
use crate::channel::Channel;
use crate::device::{Bdev, Geometry, IoChannel, Layer, SupportedOps};
use crate::io::{IoId, IoRef, Op};
use crate::node::BdevNode;
use crate::queue::IoQueue;
use crate::registry::{BdevError, Registry};
use crate::vbdev::Vbdev;

/// Product name of delay devices.
pub const PRODUCT_NAME: &str = "delay";

/// Name of the module, in claims and configurations.
pub const MODULE: &str = "delay";

/// Which of a device's latencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// Most reads.
    AvgRead = 0,
    /// One read in a hundred.
    P99Read = 1,
    /// Most writes, unmaps and write zeroes.
    AvgWrite = 2,
    /// One of those in a hundred.
    P99Write = 3,
}

impl Latency {
    const COUNT: usize = 4;
}

/// How to build a delay device. Latencies are in microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// The device below.
    pub base: String,
    /// Its UUID; by default one derived from the base's and the name.
    pub uuid: Option<Uuid>,
    /// Latency of most reads.
    pub avg_read_us: u64,
    /// Latency of one read in a hundred; not below the average.
    pub p99_read_us: u64,
    /// Latency of most writes, unmaps and write zeroes.
    pub avg_write_us: u64,
    /// Latency of one of those in a hundred; not below the average.
    pub p99_write_us: u64,
}

/// A configured delay device; its latencies can change.
struct Spec {
    options: Options,
    latencies: Arc<Latencies>,
}

#[derive(Default)]
struct Latencies([AtomicU64; Latency::COUNT]);

impl Latencies {
    fn get(&self, l: Latency) -> u64 {
        self.0[l as usize].load(Relaxed)
    }
}

/// Configures a delay device; `None` if it waits for its base.
///
/// # Errors
/// The name is taken, the base is in use, or an average is above its p99.
pub fn create(registry: &Arc<Registry>, options: Options) -> Result<Option<Arc<BdevNode>>, BdevError> {
    for (what, avg, p99) in
        [("read", options.avg_read_us, options.p99_read_us), ("write", options.avg_write_us, options.p99_write_us)]
    {
        if avg > p99 {
            return Err(BdevError::Invalid(format!(
                "average {what} latency {avg} us is above the p99 {what} latency {p99} us"
            )));
        }
    }
    let latencies = Arc::new(Latencies([
        AtomicU64::new(options.avg_read_us),
        AtomicU64::new(options.p99_read_us),
        AtomicU64::new(options.avg_write_us),
        AtomicU64::new(options.p99_write_us),
    ]));
    registry.configure(Arc::new(Spec { options, latencies }))
}

/// Options of a configuration of this module, with the latencies of now.
pub fn options(spec: &dyn Vbdev) -> Option<Options> {
    let s = spec.as_any().downcast_ref::<Spec>()?;
    Some(with_latencies(&s.options, &s.latencies))
}

fn with_latencies(o: &Options, l: &Latencies) -> Options {
    Options {
        avg_read_us: l.get(Latency::AvgRead),
        p99_read_us: l.get(Latency::P99Read),
        avg_write_us: l.get(Latency::AvgWrite),
        p99_write_us: l.get(Latency::P99Write),
        ..o.clone()
    }
}

impl Vbdev for Spec {
    fn module(&self) -> &'static str {
        MODULE
    }

    fn name(&self) -> &str {
        &self.options.name
    }

    fn base(&self) -> &str {
        &self.options.base
    }

    fn build(&self, registry: &Arc<Registry>) -> Result<Arc<BdevNode>, BdevError> {
        let o = &self.options;
        Base::build(registry, &o.base, MODULE, &o.name, o.uuid, |base| {
            Arc::new(Delay { base, options: o.clone(), latencies: self.latencies.clone() })
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A device that answers late.
pub struct Delay {
    base: Base,
    options: Options,
    latencies: Arc<Latencies>,
}

impl Delay {
    /// Name of the device below.
    pub fn base_name(&self) -> &str {
        self.base.node().name()
    }

    /// How it was built, with the latencies of now.
    pub fn options(&self) -> Options {
        with_latencies(&self.options, &self.latencies)
    }

    /// Changes one latency, for requests from now on.
    pub fn set_latency(&self, which: Latency, us: u64) {
        self.latencies.0[which as usize].store(us, Relaxed);
    }
}

impl Bdev for Delay {
    fn product_name(&self) -> &'static str {
        PRODUCT_NAME
    }

    fn geometry(&self) -> Geometry {
        self.base.geometry()
    }

    fn supported(&self) -> SupportedOps {
        self.base.supported()
    }

    fn base(&self) -> Option<&Base> {
        Some(&self.base)
    }

    fn open_channel(&self, reactor: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        let lower = self.base.channel()?;
        Ok(Box::new(DelayChannel(Rc::new_cyclic(|me| Inner {
            lower,
            latencies: self.latencies.clone(),
            reactor: reactor.clone(),
            waiting: Default::default(),
            turn: Cell::new(0),
            timer: RefCell::default(),
            me: me.clone(),
        }))))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct DelayChannel(Rc<Inner>);

struct Inner {
    lower: Channel,
    latencies: Arc<Latencies>,
    reactor: Reactor,
    /// Ended below, not yet above: by latency, so that each queue is in order of time.
    waiting: [IoQueue; Latency::COUNT],
    turn: Cell<u32>,
    timer: RefCell<Option<Timer>>,
    me: Weak<Inner>,
}

/// The layer's word: when the request may end, and in the lowest two bits by which latency. 0: not delayed.
fn word(due: u64, l: Latency) -> u64 {
    due.max(4) & !3 | l as u64
}

impl Inner {
    fn pick(&self, op: Op) -> Option<Latency> {
        let (avg, p99) = match op {
            Op::Read | Op::Compare => (Latency::AvgRead, Latency::P99Read),
            Op::Write | Op::Unmap | Op::WriteZeroes | Op::CompareAndWrite | Op::Copy => {
                (Latency::AvgWrite, Latency::P99Write)
            }
            Op::Flush | Op::Reset => return None,
        };
        let n = self.turn.get().wrapping_add(1);
        self.turn.set(n);
        Some(if n.is_multiple_of(100) { p99 } else { avg })
    }

    fn deliver(&self) {
        let now = self.reactor.rdtsc();
        let mut next = u64::MAX;
        for q in &self.waiting {
            loop {
                match q.peek(|io| io.words()[0] & !3) {
                    Some(due) if due <= now => {
                        if let Some(io) = q.pop() {
                            let s = io.status();
                            io.complete(s);
                        }
                    }
                    Some(due) => {
                        next = next.min(due);
                        break;
                    }
                    None => break,
                }
            }
        }
        if next != u64::MAX {
            self.arm(next);
        }
    }

    fn arm(&self, due: u64) {
        let left = due.saturating_sub(self.reactor.rdtsc());
        let me = self.me.clone();
        let after = Duration::from_nanos(longshore_reactor::nanos(left));
        let timer = self.reactor.timer(after, move |_| {
            if let Some(me) = me.upgrade() {
                me.deliver();
            }
        });
        *self.timer.borrow_mut() = Some(timer);
    }
}

impl IoChannel for DelayChannel {
    fn submit(&self, mut io: IoRef) {
        let s = &self.0;
        let due = s.pick(io.op()).map_or(0, |l| {
            let ticks = longshore_reactor::ticks(Duration::from_micros(s.latencies.get(l)));
            word(s.reactor.rdtsc() + ticks, l)
        });
        io.set_saved(due);
        s.lower.submit(io);
    }

    fn hooks_completion(&self) -> bool {
        true
    }

    fn completed(&self, mut io: IoRef) {
        let s = &self.0;
        let due = io.saved();
        if due & !3 <= s.reactor.now() {
            let status = io.status();
            return io.complete(status);
        }
        io.set_words([due, 0]);
        let q = &s.waiting[(due & 3) as usize];
        let first = q.is_empty();
        q.push(io);
        if first {
            // The timer may be set for another queue's first: `deliver` sets it anew for the earliest of all.
            s.deliver_soonest(due & !3);
        }
    }

    fn abort(&self, id: IoId) -> bool {
        for q in &self.0.waiting {
            if let Some(io) = q.remove(id) {
                io.complete_later(Status::ABORT_REQUESTED);
                return true;
            }
        }
        self.0.lower.abort(id)
    }

    fn abort_all(&self) {
        for q in &self.0.waiting {
            let all = q.take();
            while let Some(io) = all.pop() {
                io.complete_later(Status::ABORT_REQUESTED);
            }
        }
        self.0.lower.abort_all();
    }
}

impl Inner {
    /// A queue got its first request, due at `due`.
    fn deliver_soonest(&self, due: u64) {
        let earliest =
            self.waiting.iter().filter_map(|q| q.peek(|io| io.words()[0] & !3)).min().unwrap_or(due).min(due);
        self.arm(earliest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IoFlags;
    use crate::malloc::Malloc;
    use crate::testing::{filled, open, run};

    fn options(read_us: u64, write_us: u64) -> Options {
        Options {
            name: "d".into(),
            base: "m".into(),
            uuid: None,
            avg_read_us: read_us,
            p99_read_us: read_us,
            avg_write_us: write_us,
            p99_write_us: write_us,
        }
    }

    #[test]
    fn requests_take_at_least_their_latency_and_keep_their_result() {
        run(|r| async move {
            let reg = Registry::new();
            reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
            let node = create(&reg, options(0, 2000)).unwrap().unwrap();
            let (_desc, ch) = open(&reg, "d");
            let start = r.rdtsc();
            assert!(ch.write(1, 1, filled(&r, 512, 9), IoFlags::NONE).await.0.is_ok());
            assert!(r.rdtsc() - start >= r.ticks(Duration::from_micros(2000)));
            assert!(ch.read(1, 1, filled(&r, 512, 0)).await.1.unwrap().as_slice().iter().all(|&b| b == 9));
            let d = node.device().as_any().downcast_ref::<Delay>().unwrap();
            d.set_latency(Latency::AvgRead, 1500);
            assert_eq!(d.options().avg_read_us, 1500);
            let start = r.rdtsc();
            assert!(ch.read(1, 1, filled(&r, 512, 0)).await.0.is_ok());
            assert!(r.rdtsc() - start >= r.ticks(Duration::from_micros(1500)));
            assert_eq!(super::options(&*reg.configurations()[0]).unwrap().avg_read_us, 1500);
        });
    }

    #[test]
    fn a_delayed_request_is_aborted_at_once() {
        run(|r| async move {
            let reg = Registry::new();
            reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
            create(&reg, options(30_000_000, 30_000_000)).unwrap().unwrap();
            let (_desc, ch) = open(&reg, "d");
            let read = ch.read(1, 1, filled(&r, 512, 0));
            r.sleep(Duration::from_millis(1)).await;
            ch.abort_all();
            assert_eq!(read.await.0, Status::ABORT_REQUESTED);
            assert_eq!(ch.inflight(), 0);
        });
    }
}
