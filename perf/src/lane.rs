//! The load of one core on one namespace: requests of a fixed depth, each replaced when it ends (closed loop), or started at
//! their time whether earlier ones ended or not (open loop).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Poll, Waker};

use longshore_nvme::wire::Status;
use longshore_reactor::{DmaBuf, rdtsc, tick_rate};

use crate::latency::Latency;
use crate::random::Random;
use crate::zipf::Zipf;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
}

impl Kind {
    fn verb(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
        }
    }
}

/// One request to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) kind: Kind,
    pub(crate) fua: bool,
    pub(crate) lba: u64,
    pub(crate) blocks: u32,
}

/// Where requests go.
pub(crate) trait Port: Sized + 'static {
    /// A request and its memory, used over and over.
    type Request;

    /// A request with the memory of `pieces`, in this order; none if the port has no more.
    fn request(&self, pieces: Vec<DmaBuf>) -> Option<Self::Request>;

    /// Starts `work`; its end is reported with [`Lane::done`], never from within this call.
    fn submit(lane: &Rc<Lane<Self>>, request: Self::Request, work: Work, tag: u64);

    /// Gives a request up.
    fn release(&self, request: Self::Request);

    /// Lets go of the device; every request was given up.
    fn close(&self) -> impl Future<Output = ()>;
}

/// What load a lane makes.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// First block of the part of the device that is used.
    pub(crate) first_lba: u64,
    /// Requests that fit in that part.
    pub(crate) units: u64,
    /// Blocks per request.
    pub(crate) unit_blocks: u32,
    /// Unit to start with, if sequential.
    pub(crate) start_unit: u64,
    /// Offsets at random.
    pub(crate) random: bool,
    /// Offsets at random and skewed.
    pub(crate) zipf: Option<Zipf>,
    /// Percentage of reads.
    pub(crate) reads: u8,
    /// Percentage of writes with FUA.
    pub(crate) fua: u8,
    /// Flush after so many writes; 0: never.
    pub(crate) flush_every: u64,
    /// Requests to make; `u64::MAX`: no limit.
    pub(crate) limit: u64,
    /// Measure each request.
    pub(crate) track: bool,
    /// Open loop.
    pub(crate) open: bool,
    /// Print every so many failures and go on; none: stop at the first.
    pub(crate) report_every: Option<u64>,
    /// Seed of this lane.
    pub(crate) seed: u64,
}

/// `percent` of 2^32.
fn share(percent: u8) -> u64 {
    (u64::from(percent) << 32) / 100
}

/// See the module.
pub(crate) struct Lane<P: Port> {
    pub(crate) port: P,
    random: Cell<Random>,
    read_below: u64,
    fua_below: u64,
    next_unit: Cell<u64>,
    remaining: Cell<u64>,
    since_flush: Cell<u64>,
    reads: Cell<u64>,
    writes: Cell<u64>,
    errors: Cell<u64>,
    latency: RefCell<[Latency; 2]>,
    idle: RefCell<Vec<P::Request>>,
    requests: Cell<usize>,
    failure: RefCell<Option<String>>,
    waiter: RefCell<Option<Waker>>,
    plan: Plan,
}

/// What a lane counted.
pub(crate) struct Counts {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) errors: u64,
    pub(crate) latency: [Latency; 2],
}

impl<P: Port> Lane<P> {
    /// A lane without requests.
    pub(crate) fn new(port: P, plan: Plan) -> Rc<Lane<P>> {
        Rc::new(Lane {
            port,
            random: Cell::new(Random::new(plan.seed)),
            read_below: share(plan.reads),
            fua_below: share(plan.fua),
            next_unit: Cell::new(plan.start_unit),
            remaining: Cell::new(if plan.open { 0 } else { plan.limit }),
            since_flush: Cell::new(0),
            reads: Cell::new(0),
            writes: Cell::new(0),
            errors: Cell::new(0),
            latency: RefCell::new([Latency::new(tick_rate()), Latency::new(tick_rate())]),
            idle: RefCell::new(Vec::new()),
            requests: Cell::new(0),
            failure: RefCell::new(None),
            waiter: RefCell::new(None),
            plan,
        })
    }

    /// Adds a request that uses the memory of `pieces`.
    ///
    /// # Errors
    /// The port has no more.
    pub(crate) fn add(&self, pieces: Vec<DmaBuf>) -> Result<(), String> {
        let r = self.port.request(pieces).ok_or("the pool of requests is empty: use a smaller -q")?;
        self.requests.set(self.requests.get() + 1);
        self.idle.borrow_mut().push(r);
        Ok(())
    }

    /// Starts every request.
    pub(crate) fn start(self: &Rc<Self>) {
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        for r in idle {
            self.next(r, rdtsc());
        }
    }

    /// Open loop: starts one request that was due at `due`, in ticks. False if all are under way.
    #[inline]
    pub(crate) fn start_due(self: &Rc<Self>, due: u64) -> bool {
        let Some(r) = self.idle.borrow_mut().pop() else { return false };
        let work = self.pick();
        P::submit(self, r, work, due);
        true
    }

    #[inline]
    fn pick(&self) -> Work {
        let plan = &self.plan;
        let mut random = self.random.get();
        let (low, high) = random.pair();
        self.random.set(random);
        let mut kind = if u64::from(low) < self.read_below { Kind::Read } else { Kind::Write };
        let mut fua = false;
        if kind == Kind::Write && (self.fua_below | plan.flush_every) != 0 {
            fua = u64::from(low.rotate_left(16)) < self.fua_below;
            let n = self.since_flush.get() + 1;
            if plan.flush_every != 0 && n > plan.flush_every {
                kind = Kind::Flush;
                self.since_flush.set(0);
            } else {
                self.since_flush.set(n);
            }
        }
        let unit = if let Some(z) = &plan.zipf {
            let mut random = self.random.get();
            let unit = z.draw(&mut random);
            self.random.set(random);
            unit
        } else if plan.random {
            ((u128::from(high) * u128::from(plan.units)) >> 64) as u64
        } else {
            let u = self.next_unit.get();
            self.next_unit.set(if u + 1 == plan.units { 0 } else { u + 1 });
            u
        };
        let blocks = plan.unit_blocks;
        Work { kind, fua, lba: plan.first_lba + unit * u64::from(blocks), blocks }
    }

    #[inline]
    fn next(self: &Rc<Self>, r: P::Request, stamp: u64) {
        let left = self.remaining.get();
        if left == 0 {
            return self.park(r);
        }
        self.remaining.set(left - 1);
        let work = self.pick();
        P::submit(self, r, work, stamp);
    }

    fn park(&self, r: P::Request) {
        self.idle.borrow_mut().push(r);
        if self.is_quiet()
            && let Some(w) = self.waiter.borrow_mut().take()
        {
            w.wake();
        }
    }

    /// A request ended. `tag` is what it was submitted with: the time from which its latency counts.
    #[inline]
    pub(crate) fn done(self: &Rc<Self>, r: P::Request, work: Work, status: Status, tag: u64) {
        if status != Status::SUCCESS {
            self.failed(work, status);
        } else if work.kind == Kind::Read {
            self.reads.set(self.reads.get() + 1);
        } else if work.kind == Kind::Write {
            self.writes.set(self.writes.get() + 1);
        }
        let mut stamp = 0;
        if self.plan.track {
            stamp = rdtsc();
            if work.kind != Kind::Flush {
                let which = usize::from(work.kind == Kind::Write);
                self.latency.borrow_mut()[which].record(stamp.saturating_sub(tag));
            }
        }
        self.next(r, stamp);
    }

    #[cold]
    fn failed(&self, work: Work, status: Status) {
        let n = self.errors.get() + 1;
        self.errors.set(n);
        let what = || {
            let Work { kind, lba, blocks, .. } = work;
            format!("{} of {blocks} blocks at LBA {lba} failed: {status}", kind.verb())
        };
        match self.plan.report_every {
            None => {
                self.failure.borrow_mut().get_or_insert_with(what);
                self.stop();
                // Whoever waits for the end of the run need not wait any longer.
                if let Some(w) = self.waiter.borrow_mut().take() {
                    w.wake();
                }
            }
            Some(0) => {}
            Some(every) if n % every == 1 || every == 1 => eprintln!("longshore-perf: {} (failure {n})", what()),
            Some(_) => {}
        }
    }

    /// Lets requests end and starts no more.
    pub(crate) fn stop(&self) {
        self.remaining.set(0);
    }

    /// The first failure, if failures stop the run.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    /// True if no request is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.idle.borrow().len() == self.requests.get()
    }

    /// Waits until no request is under way.
    pub(crate) async fn quiet(&self) {
        self.until(|| self.is_quiet()).await;
    }

    /// Waits until the lane has nothing more to do before its time is over: a failure stopped it, or its requests are made (in
    /// an open loop a lane is quiet whenever nothing is due, which is not the end).
    pub(crate) async fn exhausted(&self) {
        self.until(|| self.failure.borrow().is_some() || (!self.plan.open && self.is_quiet())).await;
    }

    async fn until(&self, reached: impl Fn() -> bool) {
        std::future::poll_fn(|cx| {
            if reached() {
                return Poll::Ready(());
            }
            *self.waiter.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Requests that ended well since the last [`clear`](Lane::clear).
    pub(crate) fn ended(&self) -> u64 {
        self.reads.get() + self.writes.get()
    }

    /// Sets every counter back: the measurement starts.
    pub(crate) fn clear(&self) {
        self.reads.set(0);
        self.writes.set(0);
        self.errors.set(0);
        self.latency.borrow_mut().iter_mut().for_each(Latency::clear);
    }

    /// The counters now.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            reads: self.reads.get(),
            writes: self.writes.get(),
            errors: self.errors.get(),
            latency: self.latency.borrow().clone(),
        }
    }

    /// Gives all requests back; none may be under way.
    pub(crate) fn release(&self) {
        debug_assert!(self.is_quiet());
        for r in self.idle.take() {
            self.port.release(r);
        }
        self.requests.set(0);
    }
}
