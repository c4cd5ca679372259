//! Runs a script against a device on simulated members, and judges what the device answers.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use longshore_reactor::sim::{Settings, Sim};
use longshore_reactor::{DmaOptions, Reactor, RingOptions};
use uuid::Uuid;

use super::image::Image;
use super::member::SimMember;
use super::oracle::{self, Oracle};
use super::script::{Author, Life, Script, Shape, Step};
use super::world::{Health, Windows, World};
use crate::channel::Channel;
use crate::core::{CoreOptions, CoreState};
use crate::desc::BdevDesc;
use crate::io::IoFlags;
use crate::registry::Registry;

/// Name of the device that is tried.
pub const DEVICE: &str = "tried";

/// Simulated time in which everything asked of the device ends.
const PATIENCE: Duration = Duration::from_secs(1200);

/// Bytes of the reads that look at the whole device.
const LOOK: u64 = 64 << 10;

/// Where a device is started.
#[derive(Clone)]
pub struct Place {
    /// The reactor.
    pub reactor: Reactor,
    /// The members that are there are registered as [`member_name`].
    pub registry: Arc<Registry>,
    /// The members.
    pub world: World,
    /// Members that are there.
    pub present: Vec<usize>,
    /// Nothing was ever written: the device is to be made.
    pub first: bool,
}

/// The name of member `i`.
pub fn member_name(i: usize) -> String {
    format!("member{i}")
}

/// A device to be tried: how it is made, started and stopped on simulated members.
pub trait Stack: 'static {
    /// What requests should look like.
    fn shape(&self) -> Shape;

    /// The members as they are before the device is made.
    fn images(&self) -> Vec<Image>;

    /// Names what is going on at this moment, whenever power fails.
    fn windows(&self) -> Windows {
        Vec::new
    }

    /// Makes the device, or finds it on its members, and registers it as [`DEVICE`], ready for requests.
    fn start(&self, place: &Place) -> impl Future<Output = Result<(), String>>;

    /// Takes the device down; its members stay. Power may have failed: then every request to them fails.
    fn stop(&self, place: &Place) -> impl Future<Output = ()>;

    /// Looks at the images of the members that are undamaged while nothing runs: `true` at `i` if member `i` is.
    ///
    /// # Errors
    /// What is wrong with them.
    fn inspect(&self, world: &World, sound: &[bool]) -> Result<(), String> {
        let _ = (world, sound);
        Ok(())
    }
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests made.
    pub requests: usize,
    /// Lives.
    pub lives: usize,
    /// Times that power failed.
    pub crashes: usize,
    /// Times that power failed before the device had started.
    pub start_crashes: usize,
    /// What was going on when power failed, each name once for each crash.
    pub windows: Vec<&'static str>,
}

/// How a run ended.
pub struct Outcome {
    /// What was done, to do it again.
    pub script: Script,
    /// How much that was.
    pub tally: Tally,
    /// What the device did wrong.
    pub wrong: Result<(), String>,
}

/// Who says what happens.
enum Writer {
    Author(Box<Author>),
    Fixed(VecDeque<Life>),
}

impl Writer {
    fn next(&mut self, done: usize) -> Option<Life> {
        match self {
            Writer::Author(a) => a.next(done),
            Writer::Fixed(lives) => lives.pop_front(),
        }
    }
}

/// Runs what `seed` makes up for `stack`: at least `requests` requests.
pub fn run_seed<S: Stack>(seed: u64, stack: S, requests: usize) -> Outcome {
    let author = Author::new(seed ^ 0x5eed, stack.shape(), requests);
    run(seed, stack, Writer::Author(Box::new(author)))
}

/// Runs a script again; `seed` decides about latencies and about what crashes leave.
pub fn run_script<S: Stack>(seed: u64, stack: S, script: &Script) -> Outcome {
    run(seed, stack, Writer::Fixed(script.0.iter().cloned().collect()))
}

fn run<S: Stack>(seed: u64, stack: S, writer: Writer) -> Outcome {
    let dma = DmaOptions { max_bytes: 16 << 20, huge: false, register: false };
    let ring = RingOptions { sq_entries: 16, cq_entries: 16, ..RingOptions::default() };
    let mut sim = Sim::with(seed, Settings { dma, ring, ..Settings::default() });
    let world = World::new(seed, stack.images(), stack.windows());
    let outcome = sim.block_on(move |r| async move {
        CoreState::init(&r, CoreOptions { requests: 1024, child_reserve: 256 });
        let oracle = Oracle::new(stack.shape().blocks);
        let damaged = BTreeSet::new();
        let mut runner =
            Runner { reactor: r, world, stack, oracle: Rc::new(RefCell::new(oracle)), damaged, first: true };
        runner.all(writer).await
    });
    CoreState::shutdown();
    outcome
}

struct Runner<S> {
    reactor: Reactor,
    world: World,
    stack: S,
    oracle: Rc<RefCell<Oracle>>,
    /// Members that have been damaged or missing.
    damaged: BTreeSet<usize>,
    first: bool,
}

impl<S: Stack> Runner<S> {
    async fn all(&mut self, mut writer: Writer) -> Outcome {
        let mut script = Script::default();
        let mut tally = Tally::default();
        let mut wrong = Ok(());
        while let Some(life) = writer.next(tally.requests) {
            script.0.push(life.clone());
            wrong = self.live(&life, &mut tally).await;
            if wrong.is_err() {
                break;
            }
        }
        if wrong.is_ok() && matches!(writer, Writer::Author(_)) {
            // What was recovered stays, whoever is missing.
            let absent = self.damaged.iter().copied().collect();
            let last = Life { absent, orderly: true, depth: 1, ..Life::default() };
            script.0.push(last.clone());
            wrong = self.live(&last, &mut tally).await;
        }
        Outcome { script, tally, wrong }
    }

    async fn live(&mut self, life: &Life, tally: &mut Tally) -> Result<(), String> {
        tally.lives += 1;
        let number = tally.lives;
        let said = |what: String| format!("life {number}: {what}");
        let members = self.world.members();
        // All of them are needed to make the device.
        let absent: &[usize] = if self.first { &[] } else { &life.absent };
        self.damaged.extend(absent);
        for i in 0..members {
            self.world.set_health(i, Health { gone: absent.contains(&i), slow: false });
        }
        self.world.power_on();
        self.world.crash_in(life.crash_in);
        let present: Vec<usize> = (0..members).filter(|i| !absent.contains(i)).collect();
        let place = Place {
            reactor: self.reactor.clone(),
            registry: Registry::new(),
            world: self.world.clone(),
            present: present.clone(),
            first: self.first,
        };
        for &i in &present {
            let uuid = Uuid::from_u128(0x6d656d_626572 << 32 | i as u128);
            place
                .registry
                .register(&member_name(i), Some(uuid), SimMember::new(&self.world, i))
                .map_err(|e| e.to_string())?;
        }
        let lived = self.serve(&place, life, tally).await;
        let orderly = lived.is_ok() && self.world.powered() && life.orderly;
        if !orderly {
            tally.crashes += usize::from(lived.is_ok());
            self.world.cut();
            tally.windows.extend(self.world.crashed_in());
        }
        self.world.crash_in(None);
        let stopped = self.take_down(&place).await;
        lived.map_err(said)?;
        stopped.map_err(said)?;
        if self.world.powered() {
            // What it did not flush may be lost now.
            self.world.cut();
        }
        self.oracle.borrow_mut().crashed();
        let sound: Vec<bool> = (0..members).map(|i| !self.damaged.contains(&i)).collect();
        if self.first {
            return Ok(());
        }
        self.stack.inspect(&self.world, &sound).map_err(|e| said(format!("the images after it: {e}")))
    }

    /// From start to the last step, or until power fails.
    async fn serve(&mut self, place: &Place, life: &Life, tally: &mut Tally) -> Result<(), String> {
        let started = within(&self.reactor, self.stack.start(place)).await;
        match started.ok_or("the start does not end")? {
            Err(why) if self.world.powered() => return Err(format!("it does not start: {why}")),
            Ok(()) if self.world.powered() => {}
            _ => {
                tally.start_crashes += 1;
                return Ok(());
            }
        }
        self.first = false;
        let desc =
            place.registry.open(DEVICE, true, Box::new(|_| {})).map_err(|e| format!("it cannot be opened: {e}"))?;
        let channel = desc.channel().map_err(|e| format!("it has no channel: {e}"))?;
        let all = async {
            self.look(&channel, true).await?;
            self.look(&channel, false).await?;
            let tasks = Tasks::start(self, &channel, life);
            let done = tasks.end().await;
            tally.requests += done.0;
            self.damaged.extend(done.2);
            done.1?;
            self.look(&channel, false).await
        };
        let ended = within(&place.reactor, all).await;
        drop(channel);
        drop::<BdevDesc>(desc);
        ended.ok_or("a request does not end")?
    }

    /// Reads everything; with `first`, what is found is from now on what has to be there.
    async fn look(&self, channel: &Channel, first: bool) -> Result<(), String> {
        let bs = u64::from(channel.node().geometry().block_size);
        let blocks = self.oracle.borrow().blocks();
        let step = (LOOK / bs).max(1);
        let mut lba = 0;
        while lba < blocks {
            let n = step.min(blocks - lba);
            let buf = self.reactor.dma().alloc((n * bs) as usize).ok_or("out of memory")?;
            let ticket = (!first).then(|| self.oracle.borrow_mut().read(lba, n));
            let (status, buf) = channel.read(lba, n as u32, buf).await;
            if !self.world.powered() {
                return Ok(());
            }
            let Some(buf) = buf.filter(|_| status.is_ok()) else {
                return Err(format!("after its start, a read of {n} blocks at {lba} failed: {status}"));
            };
            let mut o = self.oracle.borrow_mut();
            match ticket {
                None => o.recovered(lba, buf.as_slice(), bs as usize).map_err(|e| format!("after recovery, {e}"))?,
                Some(t) => o.returned(&t, buf.as_slice()).map_err(|e| format!("read once more, {e}"))?,
            }
            lba += n;
        }
        Ok(())
    }

    async fn take_down(&self, place: &Place) -> Result<(), String> {
        let all = async {
            self.stack.stop(place).await;
            for &i in &place.present {
                let _ = place.registry.unregister(&member_name(i)).await;
            }
        };
        within(&self.reactor, all).await.ok_or_else(|| "it cannot be taken down".to_owned())
    }
}

/// What came of the steps of a life: requests made, the first thing that was wrong, members that were damaged.
type Done = (usize, Result<(), String>, BTreeSet<usize>);

/// Those who make requests.
struct Tasks {
    shared: Rc<RefCell<Shared>>,
    running: Vec<longshore_reactor::JoinHandle<()>>,
}

struct Shared {
    steps: VecDeque<Step>,
    busy: usize,
    done: Done,
    waiting: Vec<std::task::Waker>,
}

#[derive(Clone)]
struct Worker {
    reactor: Reactor,
    world: World,
    oracle: Rc<RefCell<Oracle>>,
    channel: Channel,
    shared: Rc<RefCell<Shared>>,
    unmap_unit: u64,
}

impl Tasks {
    fn start<S: Stack>(r: &Runner<S>, channel: &Channel, life: &Life) -> Tasks {
        let steps = life.steps.iter().copied().collect();
        let done = (0, Ok(()), BTreeSet::new());
        let shared = Rc::new(RefCell::new(Shared { steps, busy: 0, done, waiting: Vec::new() }));
        let worker = Worker {
            reactor: r.reactor.clone(),
            world: r.world.clone(),
            oracle: r.oracle.clone(),
            channel: channel.clone(),
            shared: shared.clone(),
            unmap_unit: r.stack.shape().unmap_unit,
        };
        let running = (0..life.depth.max(1)).map(|_| r.reactor.spawn(worker.clone().work())).collect();
        Tasks { shared, running }
    }

    async fn end(self) -> Done {
        for t in self.running {
            let _ = t.await;
        }
        let s = self.shared.borrow();
        (s.done.0, s.done.1.clone(), s.done.2.clone())
    }
}

impl Worker {
    async fn work(self) {
        while let Some(step) = self.take().await {
            if step.is_request() {
                self.shared.borrow_mut().done.0 += 1;
            }
            let outcome = self.step(step).await;
            let mut s = self.shared.borrow_mut();
            s.busy -= 1;
            if let (Err(why), Ok(())) = (outcome, &s.done.1) {
                s.done.1 = Err(format!("{step:?}: {why}"));
                s.steps.clear();
            }
            s.waiting.drain(..).for_each(|w| w.wake());
        }
    }

    /// The next step. One that settles comes when nothing is under way, and nothing begins before it has ended.
    async fn take(&self) -> Option<Step> {
        poll_fn(|cx| {
            let mut s = self.shared.borrow_mut();
            if !self.world.powered() {
                s.steps.clear();
            }
            while s.busy == 0 && s.steps.front() == Some(&Step::Settle) {
                s.steps.pop_front();
            }
            match s.steps.front() {
                None => Poll::Ready(None),
                Some(Step::Settle) => {
                    s.waiting.push(cx.waker().clone());
                    Poll::Pending
                }
                Some(_) => {
                    s.busy += 1;
                    Poll::Ready(s.steps.pop_front())
                }
            }
        })
        .await
    }

    async fn step(&self, step: Step) -> Result<(), String> {
        match step {
            Step::Write(lba, n, fua) => self.write(lba, n, fua).await,
            Step::Zeroes(lba, n, fua) => {
                let ticket = self.oracle.borrow_mut().write(lba, n, 0);
                let status = self.channel.write_zeroes(lba, n as u32, flags(fua)).await.0;
                self.judge(status)?.then(|| self.oracle.borrow_mut().written(&ticket, fua));
                Ok(())
            }
            Step::Unmap(lba, n) => {
                let unit = self.unmap_unit.max(1);
                let (first, end) = (lba.next_multiple_of(unit), (lba + n) / unit * unit);
                let ticket = (first < end).then(|| self.oracle.borrow_mut().write(first, end - first, 0));
                let status = self.channel.unmap(lba, n as u32).await.0;
                if let (true, Some(ticket)) = (self.judge(status)?, ticket) {
                    self.oracle.borrow_mut().written(&ticket, true);
                }
                Ok(())
            }
            Step::Flush => {
                let ticket = self.oracle.borrow_mut().flush();
                let status = self.channel.flush().await.0;
                self.judge(status)?.then(|| self.oracle.borrow_mut().flushed(&ticket));
                Ok(())
            }
            Step::Read(lba, n) => self.read(lba, n).await,
            Step::Lose(m) => {
                self.shared.borrow_mut().done.2.insert(m);
                self.world.set_health(m, Health { gone: true, ..self.world.health(m) });
                Ok(())
            }
            Step::Spoil(m, block) => {
                self.shared.borrow_mut().done.2.insert(m);
                self.world.image(m, |i| i.spoil(block % i.len()));
                Ok(())
            }
            Step::Slow(m, slow) => {
                self.world.set_health(m, Health { slow, ..self.world.health(m) });
                Ok(())
            }
            Step::Cut(n) => {
                self.world.crash_in(Some(n));
                Ok(())
            }
            Step::Settle => Ok(()),
        }
    }

    fn block_size(&self) -> usize {
        self.channel.node().geometry().block_size as usize
    }

    async fn write(&self, lba: u64, n: u64, fua: bool) -> Result<(), String> {
        let bs = self.block_size();
        let mut buf = self.reactor.dma().alloc(n as usize * bs).ok_or("out of memory")?;
        let ticket = {
            let mut o = self.oracle.borrow_mut();
            let stamp = o.stamp();
            let bytes = buf.get_mut().ok_or("a buffer is shared")?;
            (lba..).zip(bytes.chunks_exact_mut(bs)).for_each(|(lba, b)| oracle::fill(b, lba, stamp));
            o.write(lba, n, stamp)
        };
        let status = self.channel.write(lba, n as u32, buf, flags(fua)).await.0;
        self.judge(status)?.then(|| self.oracle.borrow_mut().written(&ticket, fua));
        Ok(())
    }

    async fn read(&self, lba: u64, n: u64) -> Result<(), String> {
        let buf = self.reactor.dma().alloc(n as usize * self.block_size()).ok_or("out of memory")?;
        let ticket = self.oracle.borrow_mut().read(lba, n);
        let (status, buf) = self.channel.read(lba, n as u32, buf).await;
        match (self.judge(status)?, buf) {
            (true, Some(buf)) => self.oracle.borrow_mut().returned(&ticket, buf.as_slice()),
            _ => Ok(()),
        }
    }

    /// True if the request was acknowledged. An answer after power has failed reaches nobody.
    fn judge(&self, status: crate::Status) -> Result<bool, String> {
        match (self.world.powered(), status.is_ok()) {
            (true, true) => Ok(true),
            (true, false) => Err(format!("failed: {status}")),
            (false, _) => Ok(false),
        }
    }
}

fn flags(fua: bool) -> IoFlags {
    if fua { IoFlags::FUA } else { IoFlags::NONE }
}

/// `None`: it does not end in time.
async fn within<F: Future>(r: &Reactor, f: F) -> Option<F::Output> {
    let (mut f, mut late) = (pin!(f), pin!(r.sleep(PATIENCE)));
    poll_fn(|cx| match f.as_mut().poll(cx) {
        Poll::Ready(v) => Poll::Ready(Some(v)),
        Poll::Pending => late.as_mut().poll(cx).map(|()| None),
    })
    .await
}
