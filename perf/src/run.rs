//! A run of load on one kind of port: set up on every core, warm up, measure, drain.

use std::cell::RefCell;
use std::future::Future as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use longshore_reactor::{CoreHandle, DmaBuf, Poller, Reactor, oneshot, rdtsc, tick_rate};

use crate::cpu::CpuTime;
use crate::lane::{Lane, Port};
use crate::latency::Latency;
use crate::random::Random;
use crate::report::CoreResult;

/// What all cores of a run have in common.
#[derive(Clone)]
pub(crate) struct Schedule {
    /// Requests outstanding per lane.
    pub(crate) depth: u32,
    /// Bytes per request.
    pub(crate) io_size: u32,
    /// Bytes per piece of memory of a request.
    pub(crate) piece: u32,
    /// Load before the measurement.
    pub(crate) warm_up: Duration,
    /// The measurement.
    pub(crate) length: Duration,
    /// Open loop: requests per second of one core.
    pub(crate) rate: Option<f64>,
    /// Measure each request.
    pub(crate) track: bool,
    /// Requests that ended, of all cores, for the progress line.
    pub(crate) progress: Arc<AtomicU64>,
}

/// A core that has set up its lanes and waits for the others.
pub(crate) struct Ready {
    go: oneshot::Sender<()>,
    outcome: oneshot::Receiver<Result<CoreResult, String>>,
}

fn fill_random(buf: &mut [u8], seed: u64) {
    let mut random = Random::new(seed);
    for chunk in buf.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
    }
}

/// Sets up lanes on each core with `open`, lets all start together, and collects what they counted.
///
/// # Errors
/// A core could not be set up, or a request failed and that stops the run.
pub(crate) fn run<P: Port>(
    cores: &[CoreHandle],
    schedule: &Schedule,
    open: impl AsyncFn(Reactor) -> Result<Vec<Rc<Lane<P>>>, String> + Send + Sync + 'static,
) -> Result<Vec<CoreResult>, String> {
    let open = Arc::new(open);
    let mut ready = Vec::new();
    for core in cores {
        let (schedule, open) = (schedule.clone(), open.clone());
        let (is_ready, wait_ready) = oneshot::channel();
        let (go, wait_go) = oneshot::channel();
        let outcome = core.spawn(move |r| async move {
            let lanes = match set_up(&r, &schedule, &*open).await {
                Ok(lanes) => lanes,
                Err(e) => {
                    let _ = is_ready.send(Err(e.clone()));
                    return Err(e);
                }
            };
            let _ = is_ready.send(Ok(()));
            let started = wait_go.await.is_ok();
            let outcome = if started { measure(&r, &schedule, &lanes).await } else { Err("not started".into()) };
            for l in &lanes {
                l.release();
                l.port.close().await;
            }
            outcome
        });
        ready.push((wait_ready, Ready { go, outcome }));
    }
    let mut cores = Vec::new();
    let mut failed = None;
    for (wait, core) in ready {
        match wait.wait() {
            Ok(Ok(())) => cores.push(core),
            Ok(Err(e)) => failed = Some(e),
            Err(_) => failed = Some("a reactor stopped".into()),
        }
    }
    let outcomes = cores.into_iter().map(|c| {
        if failed.is_none() {
            let _ = c.go.send(());
        } else {
            drop(c.go);
        }
        c.outcome
    });
    // All are told to start before the first is waited for.
    let outcomes: Vec<_> = outcomes.collect();
    let results: Vec<_> =
        outcomes.into_iter().map(|o| o.wait().unwrap_or_else(|_| Err("a reactor stopped".into()))).collect();
    match failed {
        Some(e) => Err(e),
        None => results.into_iter().collect(),
    }
}

async fn set_up<P: Port>(
    r: &Reactor,
    s: &Schedule,
    open: &impl AsyncFn(Reactor) -> Result<Vec<Rc<Lane<P>>>, String>,
) -> Result<Vec<Rc<Lane<P>>>, String> {
    let lanes = open(r.clone()).await?;
    for lane in &lanes {
        for i in 0..s.depth {
            let added = memory(r, s, u64::from(i)).and_then(|pieces| lane.add(pieces));
            if let Err(e) = added {
                lanes.iter().for_each(|l| l.release());
                return Err(e);
            }
        }
    }
    Ok(lanes)
}

/// The memory of one request, filled with bytes that no layer can shrink.
fn memory(r: &Reactor, s: &Schedule, seed: u64) -> Result<Vec<DmaBuf>, String> {
    let mut pieces = Vec::new();
    let mut left = s.io_size;
    while left > 0 {
        let len = left.min(s.piece);
        left -= len;
        let mut buf = r.dma().alloc(len as usize).ok_or("out of memory for buffers: use a smaller -q or -o")?;
        if let Some(bytes) = buf.get_mut() {
            fill_random(bytes, seed << 32 | u64::from(left));
        }
        pieces.push(buf);
    }
    Ok(pieces)
}

async fn measure<P: Port>(r: &Reactor, s: &Schedule, lanes: &[Rc<Lane<P>>]) -> Result<CoreResult, String> {
    let tid = r.handle().tid();
    let reported = {
        let (lanes, progress) = (lanes.to_vec(), s.progress.clone());
        let mut last = 0;
        r.every(Duration::from_millis(100), move |_| {
            let now: u64 = lanes.iter().map(|l| l.ended()).sum();
            // The counters start again after the warm-up.
            progress.fetch_add(if now >= last { now - last } else { now }, Ordering::Relaxed);
            last = now;
        })
    };
    let pacer = match s.rate {
        Some(rate) => Some(Pacer::start(r, lanes, rate)),
        None => {
            lanes.iter().for_each(Lane::start);
            None
        }
    };
    if !s.warm_up.is_zero() {
        r.sleep(s.warm_up).await;
        lanes.iter().for_each(|l| l.clear());
    }
    let (began, cpu_began) = (rdtsc(), CpuTime::of_thread(tid));
    let samples = Rc::new(RefCell::new(Samples::default()));
    let sampled = {
        let (lanes, samples) = (lanes.to_vec(), samples.clone());
        r.every(SAMPLE, move |_| samples.borrow_mut().take(began, &lanes))
    };
    until_over(r, s, lanes).await;
    let (ended, cpu_ended) = (rdtsc(), CpuTime::of_thread(tid));
    drop(sampled);
    let mut samples = samples.take();
    samples.push(began, lanes);
    let counts: Vec<_> = lanes.iter().map(|l| l.counts()).collect();
    let backlog = pacer.as_ref().map_or(0, |p| p.backlog());
    drop(pacer);
    drop(reported);
    for l in lanes {
        l.stop();
        l.quiet().await;
    }
    if let Some(e) = lanes.iter().find_map(|l| l.failure()) {
        return Err(e);
    }
    let mut latency = [Latency::new(tick_rate()), Latency::new(tick_rate())];
    for c in &counts {
        latency.iter_mut().zip(&c.latency).for_each(|(sum, l)| sum.merge(l));
    }
    Ok(CoreResult {
        cpu: r.handle().cpu(),
        seconds: (ended - began) as f64 / tick_rate() as f64,
        reads: counts.iter().map(|c| c.reads).sum(),
        writes: counts.iter().map(|c| c.writes).sum(),
        errors: counts.iter().map(|c| c.errors).sum(),
        cpu_time: cpu_ended - cpu_began,
        latency: s.track.then_some(latency),
        depth: f64::from(s.depth) * lanes.len() as f64,
        backlog,
        samples: samples.points,
    })
}

/// How often requests are counted while a run goes on.
const SAMPLE: Duration = Duration::from_millis(100);

/// Samples kept at most: of a longer run every second one, every fourth and so on.
const SAMPLES: usize = 1024;

/// How many requests had ended when.
#[derive(Default)]
struct Samples {
    points: Vec<(f64, u64)>,
    taken: u64,
    /// One in so many is kept: two to this power.
    shift: u32,
}

impl Samples {
    fn take<P: Port>(&mut self, began: u64, lanes: &[Rc<Lane<P>>]) {
        self.taken += 1;
        if !self.taken.is_multiple_of(1 << self.shift) {
            return;
        }
        if self.points.len() == SAMPLES {
            let mut i = 0;
            self.points.retain(|_| {
                i += 1;
                i % 2 == 0
            });
            self.shift += 1;
        }
        self.push(began, lanes);
    }

    fn push<P: Port>(&mut self, began: u64, lanes: &[Rc<Lane<P>>]) {
        let seconds = (rdtsc() - began) as f64 / tick_rate() as f64;
        self.points.push((seconds, lanes.iter().map(|l| l.ended()).sum()));
    }
}

/// Waits for the end of the time, or until every lane has made its requests, or one has failed.
async fn until_over<P: Port>(r: &Reactor, s: &Schedule, lanes: &[Rc<Lane<P>>]) {
    let mut sleep = std::pin::pin!(r.sleep(s.length));
    let mut each: Vec<_> = lanes.iter().map(|l| Some(Box::pin(l.exhausted()))).collect();
    std::future::poll_fn(|cx| {
        for (lane, end) in lanes.iter().zip(&mut each) {
            if end.as_mut().is_some_and(|e| e.as_mut().poll(cx).is_ready()) {
                *end = None;
                if lane.failure().is_some() {
                    return std::task::Poll::Ready(());
                }
            }
        }
        if each.iter().all(Option::is_none) { std::task::Poll::Ready(()) } else { sleep.as_mut().poll(cx) }
    })
    .await;
}

/// Starts requests at their time.
struct Pacer {
    _poller: Poller,
    state: Rc<std::cell::Cell<PacerState>>,
}

#[derive(Clone, Copy)]
struct PacerState {
    start: u64,
    interval: f64,
    started: u64,
    turn: usize,
}

impl PacerState {
    fn due(&self) -> u64 {
        self.start + (self.started as f64 * self.interval) as u64
    }
}

impl Pacer {
    fn start<P: Port>(r: &Reactor, lanes: &[Rc<Lane<P>>], rate: f64) -> Pacer {
        let interval = tick_rate() as f64 / rate;
        let state = Rc::new(std::cell::Cell::new(PacerState { start: rdtsc(), interval, started: 0, turn: 0 }));
        let (cell, lanes) = (state.clone(), lanes.to_vec());
        let poller = r.poller("pacer", move |_| {
            let mut s = cell.get();
            let now = rdtsc();
            let mut n = 0;
            let mut full = 0;
            // What is due and finds every request of its lane under way waits, and its latency grows meanwhile.
            while s.due() <= now && full < lanes.len() {
                if lanes[s.turn].start_due(s.due()) {
                    s.started += 1;
                    n += 1;
                    full = 0;
                } else {
                    full += 1;
                }
                s.turn = (s.turn + 1) % lanes.len();
            }
            cell.set(s);
            n
        });
        // Time makes the work here: no event would wake a sleeping reactor for it.
        poller.set_pending(true);
        Pacer { _poller: poller, state }
    }

    /// Requests that are due and not started.
    fn backlog(&self) -> u64 {
        let s = self.state.get();
        let due = ((rdtsc() - s.start) as f64 / s.interval) as u64;
        due.saturating_sub(s.started)
    }
}
