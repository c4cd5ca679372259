//! Those who make the requests of a life and judge the answers.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use longshore_nvme::wire::Status;
use longshore_reactor::JoinHandle;

use super::budget::Budget;
use super::oracle::{self, Oracle};
use super::run::{Place, Runner, Stack, open, rot};
use super::script::{Comes, Life, Step};
use super::world::Health;
use crate::channel::Channel;
use crate::io::IoFlags;

/// How often somebody looks whether a member is rebuilt.
const LOOK: Duration = Duration::from_millis(2);
/// How often at most.
const REBUILT_LOOKS: usize = 1000;

/// What came of the steps of a life.
#[derive(Clone)]
pub(super) struct Done {
    /// Requests made.
    pub(super) requests: usize,
    /// Members given back, and those of them that were rebuilt.
    pub(super) joined: usize,
    pub(super) rebuilt: usize,
    /// The first thing that was wrong.
    pub(super) wrong: Result<(), String>,
}

/// Those who make requests.
pub(super) struct Tasks {
    shared: Rc<RefCell<Shared>>,
    running: Vec<JoinHandle<()>>,
}

struct Shared {
    steps: VecDeque<Step>,
    busy: usize,
    /// A step is under way that is alone.
    alone: bool,
    /// Members that returned and are not whole yet.
    rebuilding: Vec<usize>,
    /// Members to which something was done since they returned.
    harmed: Vec<usize>,
    done: Done,
    waiting: Vec<std::task::Waker>,
}

struct Worker<S> {
    place: Place,
    stack: Rc<S>,
    oracle: Rc<RefCell<Oracle>>,
    budget: Rc<RefCell<Budget>>,
    channel: Channel,
    shared: Rc<RefCell<Shared>>,
    unmap_unit: u64,
}

impl Tasks {
    pub(super) fn start<S: Stack>(r: &Runner<S>, place: &Place, life: &Life) -> Tasks {
        let steps = life.steps.iter().copied().collect();
        let done = Done { requests: 0, joined: 0, rebuilt: 0, wrong: Ok(()) };
        let shared = Shared {
            steps,
            busy: 0,
            alone: false,
            rebuilding: Vec::new(),
            harmed: Vec::new(),
            done,
            waiting: Vec::new(),
        };
        let shared = Rc::new(RefCell::new(shared));
        let run = |i: usize| {
            let reactor = if life.away && i.is_multiple_of(2) { &r.away } else { &r.reactor };
            let place = Place { reactor: reactor.clone(), ..place.clone() };
            let (stack, oracle, budget) = (r.stack.clone(), r.oracle.clone(), r.budget.clone());
            let (shared, unmap_unit) = (shared.clone(), r.stack.shape().unmap_unit);
            reactor.spawn(async move {
                // On the core that it is of.
                match open(&place) {
                    Ok((_desc, channel)) => {
                        Worker { place, stack, oracle, budget, channel, shared, unmap_unit }.work().await;
                    }
                    Err(_) if !place.world.powered() => {}
                    Err(why) => shared.borrow_mut().done.wrong = Err(why),
                }
            })
        };
        Tasks { running: (0..life.depth.max(1)).map(run).collect(), shared }
    }

    pub(super) async fn end(self) -> Done {
        for t in self.running {
            let _ = t.await;
        }
        self.shared.borrow().done.clone()
    }
}

impl<S: Stack> Worker<S> {
    async fn work(self) {
        while let Some(step) = self.take().await {
            if step.is_request() {
                self.shared.borrow_mut().done.requests += 1;
            }
            let outcome = self.step(step).await;
            let mut s = self.shared.borrow_mut();
            s.busy -= 1;
            s.alone &= !step.is_alone();
            if let (Err(why), Ok(())) = (outcome, &s.done.wrong) {
                s.done.wrong = Err(format!("{step:?}: {why}"));
                s.steps.clear();
            }
            s.waiting.drain(..).for_each(|w| w.wake());
        }
    }

    /// The next step. One that is alone comes when nothing is under way, and nothing begins before it has ended.
    async fn take(&self) -> Option<Step> {
        poll_fn(|cx| {
            let mut s = self.shared.borrow_mut();
            if !self.place.world.powered() {
                s.steps.clear();
            }
            let next = s.steps.front().copied();
            let alone = next.is_some_and(|step| step.is_alone());
            if next.is_some() && (s.alone || alone && s.busy > 0) {
                s.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            s.busy += usize::from(next.is_some());
            s.alone |= alone;
            Poll::Ready(s.steps.pop_front())
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
            Step::Scrub(which) => self.scrub(which).await,
            Step::Return(m, comes) => self.give_back(m, comes).await,
            Step::Rebuilt => {
                for _ in 0..REBUILT_LOOKS {
                    if self.shared.borrow().rebuilding.is_empty() || !self.place.world.powered() {
                        break;
                    }
                    self.place.reactor.sleep(LOOK).await;
                }
                Ok(())
            }
            other => {
                self.mischief(other);
                Ok(())
            }
        }
    }

    /// What is done to members and to power.
    fn mischief(&self, step: Step) {
        let world = &self.place.world;
        let mut budget = self.budget.borrow_mut();
        if let Step::Lose(m) | Step::Exceed(m) | Step::Spoil(m, _) | Step::Slow(m, _) | Step::Hang(m, _) = step {
            self.shared.borrow_mut().harmed.push(m);
        }
        let harms = matches!(step, Step::Lose(_) | Step::Exceed(_) | Step::Spoil(..) | Step::Hang(..));
        if harms && budget.needs_salvage() {
            // As soon as one that returned is whole, the device may demand as many as ever. That can be before anybody knows.
            return;
        }
        let change = |m, change: fn(&mut Health, u32), by| {
            let mut health = world.health(m);
            change(&mut health, by);
            world.set_health(m, health);
        };
        match step {
            Step::Lose(m) if budget.lose(m) => change(m, |h, _| h.gone = true, 0),
            Step::Exceed(m) => {
                let whole = budget.lost().iter().all(|&m| world.image(m, |i| !i.is_damaged()));
                if budget.exceed(m, whole) {
                    change(m, |h, _| h.gone = true, 0);
                }
            }
            Step::Spoil(m, block) if !budget.is_exceeded() && budget.lose(m) => {
                world.image(m, |i| i.spoil(block % i.len()));
            }
            Step::Slow(m, slow) => change(m, |h, slow| h.slow = slow != 0, u32::from(slow)),
            Step::Hang(m, some) if some == 0 || budget.lose(m) => change(m, |h, some| h.hangs = some, some),
            Step::Cut(n) => world.crash_in(Some(n)),
            Step::CutAfter(micros) => {
                let (world, life, r) = (world.clone(), world.life(), self.place.reactor.clone());
                drop(self.place.reactor.spawn(async move {
                    r.sleep(Duration::from_micros(micros)).await;
                    if world.life() == life {
                        world.cut();
                    }
                }));
            }
            _ => {}
        }
    }

    /// A member returns, and is watched until it is whole.
    async fn give_back(&self, m: usize, comes: Comes) -> Result<(), String> {
        {
            let mut b = self.budget.borrow_mut();
            let mut s = self.shared.borrow_mut();
            if b.needs_salvage() && (self.stack.is_rebuilding(&self.place) || self.stack.is_whole(&self.place, m)) {
                // It may be one of those without whom the device does not do any more: see `mischief`.
                return Ok(());
            }
            if b.is_exceeded() || s.rebuilding.contains(&m) || !b.lose(m) {
                return Ok(());
            }
            s.rebuilding.push(m);
            s.harmed.retain(|h| *h != m);
        }
        let joined = self.stack.give_back(&self.place, m, comes).await;
        let powered = self.place.world.powered();
        if !powered || joined.is_err() {
            let mut s = self.shared.borrow_mut();
            s.rebuilding.retain(|r| *r != m);
            let excused = !powered || s.harmed.contains(&m) || self.budget.borrow().is_exceeded();
            return joined.or_else(|why| match excused {
                true => Ok(()),
                false => Err(format!("member {m} does not join: {why}")),
            });
        }
        self.shared.borrow_mut().done.joined += 1;
        let (place, stack, budget, shared) =
            (self.place.clone(), self.stack.clone(), self.budget.clone(), self.shared.clone());
        let life = place.world.life();
        drop(self.place.reactor.spawn(async move {
            while place.world.powered() && place.world.life() == life {
                if stack.is_whole(&place, m) {
                    shared.borrow_mut().done.rebuilt += 1;
                    shared.borrow_mut().rebuilding.retain(|r| *r != m);
                    // Unless something has happened to it since.
                    if place.world.health(m) == Health::default() && !place.world.image(m, |i| i.is_damaged()) {
                        budget.borrow_mut().is_whole_again(m);
                    }
                    return;
                }
                place.reactor.sleep(LOOK).await;
            }
        }));
        Ok(())
    }

    /// Lets some blocks become wrong, of as many members as can be told, and the device look for them.
    async fn scrub(&self, which: u64) -> Result<(), String> {
        // A rebuild takes what it reads for right, as every degraded read does.
        if self.shared.borrow().rebuilding.is_empty() && !self.stack.is_rebuilding(&self.place) {
            rot(&self.place.world, &mut self.budget.borrow_mut(), which, |m| self.stack.may_rot(m));
        }
        let mended = self.stack.scrub(&self.place).await;
        if !self.place.world.powered() || self.budget.borrow().is_exceeded() {
            return Ok(());
        }
        if !mended? && !self.budget.borrow().rotten().is_empty() {
            return Err("not everything that was wrong was found and mended".into());
        }
        self.budget.borrow_mut().mended();
        Ok(())
    }

    fn block_size(&self) -> usize {
        self.channel.node().geometry().block_size as usize
    }

    async fn write(&self, lba: u64, n: u64, fua: bool) -> Result<(), String> {
        let bs = self.block_size();
        let mut buf = self.place.reactor.dma().alloc(n as usize * bs).ok_or("out of memory")?;
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
        let buf = self.place.reactor.dma().alloc(n as usize * self.block_size()).ok_or("out of memory")?;
        let ticket = self.oracle.borrow_mut().read(lba, n);
        let (status, buf) = self.channel.read(lba, n as u32, buf).await;
        match (self.judge(status)?, buf) {
            (true, Some(buf)) => self.oracle.borrow_mut().returned(&ticket, buf.as_slice()),
            _ => Ok(()),
        }
    }

    /// True if the request was acknowledged. An answer after power has failed reaches nobody.
    fn judge(&self, status: Status) -> Result<bool, String> {
        match (self.place.world.powered(), status.is_ok()) {
            (true, true) => Ok(true),
            (true, false) if self.budget.borrow().is_exceeded() && status == Status::NAMESPACE_NOT_READY => Ok(false),
            (true, false) => Err(format!("failed: {status}")),
            (false, _) => Ok(false),
        }
    }
}

fn flags(fua: bool) -> IoFlags {
    if fua { IoFlags::FUA } else { IoFlags::NONE }
}
