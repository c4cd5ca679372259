//! Runs a script against a device on simulated members, and judges what the device answers.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use longshore_reactor::sim::{Random, Settings, Sim};
use longshore_reactor::{DmaOptions, Reactor, RingOptions};
use uuid::Uuid;

use super::author::Author;
use super::budget::Budget;
use super::image::{Content, Image};
use super::member::{SimMember, unhang};
use super::oracle::Oracle;
use super::salvage::{Ledger, Outlook, Plan};
use super::script::{Comes, Life, Script, Shape};
use super::worker::Tasks;
use super::world::{Health, Windows, World};
use crate::channel::Channel;
use crate::core::{CoreOptions, CoreState};
use crate::desc::BdevDesc;
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
    /// The reactor; of those who make requests from another core, that one's.
    pub reactor: Reactor,
    /// The members that are there are registered as [`member_name`].
    pub registry: Arc<Registry>,
    /// The members.
    pub world: World,
    /// Members that are there.
    pub present: Vec<usize>,
    /// Nothing was ever written: the device is to be made.
    pub first: bool,
    /// Too few members are there for it to start by itself, and it is told to start with them. It must not start otherwise.
    pub salvage: bool,
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

    /// What the images of all members say while nothing runs: `true` at `i` if the device counts member `i` as one that lacks
    /// something. `None`: it keeps no book of that, and who was damaged once stays so.
    ///
    /// # Errors
    /// What is wrong with them.
    fn given_up(&self, world: &World) -> Result<Option<Vec<bool>>, String> {
        let _ = world;
        Ok(None)
    }

    /// What the device does with those of its members that are there, as their images say while nothing runs.
    fn outlook(&self, world: &World, present: &[usize]) -> Outlook {
        let _ = (world, present);
        Outlook::Refuses("it cannot be salvaged".into())
    }

    /// True if the image of member `m` says that it is one.
    fn is_member(&self, world: &World, m: usize) -> bool {
        let _ = (world, m);
        true
    }

    /// The member that has a block of the device as it is, if any has.
    fn holder(&self, block: u64) -> Option<usize> {
        let _ = block;
        None
    }

    /// Blocks of a member that may become wrong without any sign while no member is being rebuilt.
    fn may_rot(&self, member: usize) -> Range<usize> {
        let _ = member;
        0..0
    }

    /// Members of the running device are being rebuilt.
    fn is_rebuilding(&self, place: &Place) -> bool {
        let _ = place;
        false
    }

    /// Makes of member `m`, which is blank, a member of another device, while nothing runs.
    fn estrange(&self, world: &World, m: usize) {
        let _ = (world, m);
    }

    /// Takes member `m` out of the running device, lets it come back by [`World::bring`], and gives it to the device. When this ends it is
    /// being rebuilt.
    ///
    /// # Errors
    /// Why the device does not take it.
    fn give_back(&self, place: &Place, m: usize, comes: Comes) -> impl Future<Output = Result<(), String>> {
        let _ = (place, m, comes);
        async { Err("nothing returns to such a device".into()) }
    }

    /// True if the running device counts member `m` as one that lacks nothing.
    fn is_whole(&self, place: &Place, m: usize) -> bool {
        let _ = (place, m);
        false
    }

    /// Lets the device find what is wrong and mend it. False: it did not put everything right.
    ///
    /// # Errors
    /// It could not look.
    fn scrub(&self, place: &Place) -> impl Future<Output = Result<bool, String>> {
        let _ = place;
        async { Ok(true) }
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
    /// Members that were given back to the running device.
    pub joined: usize,
    /// Members of these that were rebuilt in the same life.
    pub rebuilt: usize,
    /// Lives that began with a salvage.
    pub salvaged: usize,
    /// Of these, those in which members stood in that lacked something.
    pub salvaged_stale: usize,
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
    fn next(&mut self, done: usize, budget: &Budget) -> Option<Life> {
        match self {
            Writer::Author(a) => a.next(done, budget),
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
    let mut sim = Sim::with_cores(seed, Settings { dma, ring, ..Settings::default() }, 2);
    let mut parked = [None, None];
    sim.on_switch(move |from, to| parked[from] = CoreState::exchange(parked[to].take()));
    let init = |r: &Reactor| drop(CoreState::init(r, CoreOptions { requests: 1024, child_reserve: 256 }));
    (0..2).for_each(|core| sim.on_core(core, init));
    let away = sim.peer(1).clone();
    let world = World::new(seed, stack.images(), stack.windows());
    let outcome = sim.block_on(move |r| async move {
        let shape = stack.shape();
        let (oracle, budget) = (Oracle::new(shape.blocks), Budget::new(&shape));
        let mut runner = Runner {
            reactor: r,
            away,
            world,
            stack: Rc::new(stack),
            oracle: Rc::new(RefCell::new(oracle)),
            budget: Rc::new(RefCell::new(budget)),
            ledger: Ledger::new(&shape),
            first: true,
        };
        runner.all(writer).await
    });
    (0..2).rev().for_each(|core| sim.on_core(core, |_| CoreState::shutdown()));
    outcome
}

pub(super) struct Runner<S> {
    pub(super) reactor: Reactor,
    /// Another core.
    pub(super) away: Reactor,
    pub(super) world: World,
    pub(super) stack: Rc<S>,
    pub(super) oracle: Rc<RefCell<Oracle>>,
    pub(super) budget: Rc<RefCell<Budget>>,
    ledger: Ledger,
    first: bool,
}

impl<S: Stack> Runner<S> {
    async fn all(&mut self, mut writer: Writer) -> Outcome {
        let mut script = Script::default();
        let mut tally = Tally::default();
        let mut wrong = Ok(());
        loop {
            let next = writer.next(tally.requests, &self.budget.borrow());
            let Some(life) = next else { break };
            script.0.push(life.clone());
            wrong = self.live(&life, &mut tally).await;
            if wrong.is_err() {
                break;
            }
        }
        if let (Ok(()), Writer::Author(author)) = (&wrong, &mut writer) {
            let last = author.last(&self.budget.borrow());
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
        // What a member that is being rebuilt gets is decoded from what is there.
        let may_rot = self.budget.borrow().lost().is_empty();
        let plan = self.plan(life).map_err(said)?;
        let absent = plan.as_ref().map_or_else(|| self.absent(life), |p| p.absent.clone());
        for i in 0..members {
            self.world.set_health(i, Health { gone: absent.contains(&i), ..Health::default() });
        }
        if plan.is_none() {
            self.swap(life, &absent, may_rot);
        }
        if !self.first {
            // What a member held before the device was made may be of another one.
            self.world.remember();
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
            salvage: plan.as_ref().is_some_and(|p| p.salvage),
        };
        tally.salvaged += usize::from(place.salvage);
        tally.salvaged_stale += usize::from(plan.is_some_and(|p| p.lossy));
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
        unhang();
        let stopped = self.take_down(&place).await;
        lived.map_err(said)?;
        stopped.map_err(said)?;
        if self.world.powered() {
            // What it did not flush may be lost now.
            self.world.cut();
        }
        self.oracle.borrow_mut().crashed();
        self.ledger.ended(life, &mut self.oracle.borrow_mut());
        // A salvage that is to be repeated decides who is lost.
        if self.first || self.ledger.pinned.is_some() {
            return Ok(());
        }
        let images = |e| said(format!("the images after it: {e}"));
        self.take_stock(&absent).map_err(images)?;
        if self.budget.borrow().needs_salvage() {
            // They are too few to be an array for the check.
            return Ok(());
        }
        let sound: Vec<bool> = {
            let b = self.budget.borrow();
            (0..members).map(|i| !b.lost().contains(&i) && !b.rotten().contains(&i)).collect()
        };
        self.stack.inspect(&self.world, &sound).map_err(images)
    }

    /// Who is there, if the life is to begin with too few.
    fn plan(&mut self, life: &Life) -> Result<Option<Plan>, String> {
        if self.first {
            return Ok(None);
        }
        let (mut budget, mut oracle) = (self.budget.borrow_mut(), self.oracle.borrow_mut());
        self.ledger.plan(life, &*self.stack, &self.world, &mut budget, &mut oracle)
    }

    /// Those who are absent: no more than may be, or it is a life in which too many are.
    fn absent(&self, life: &Life) -> Vec<usize> {
        if self.first {
            // All of them are needed to make the device.
            return Vec::new();
        }
        let whole = self.are_whole();
        let mut b = self.budget.borrow_mut();
        life.absent.iter().copied().filter(|&m| if life.exceed { b.exceed(m, whole) } else { b.lose(m) }).collect()
    }

    /// Members that have something else by now.
    fn swap(&self, life: &Life, absent: &[usize], may_rot: bool) {
        if self.first {
            return;
        }
        let mut b = self.budget.borrow_mut();
        for &(m, comes) in &life.swapped {
            if !absent.contains(&m) && !b.is_exceeded() && b.lose(m) {
                self.world.bring(m, comes);
                if comes == Comes::Foreign {
                    self.stack.estrange(&self.world, m);
                }
            }
        }
        if let Some(which) = life.rotten.filter(|_| may_rot) {
            rot(&self.world, &mut b, which, |m| self.stack.may_rot(m));
        }
    }

    /// True if every block of every member that is lost can be read, so that it is as good as the others if it was not given up.
    fn are_whole(&self) -> bool {
        self.budget.borrow().lost().iter().all(|&m| self.world.image(m, |i| !i.is_damaged()))
    }

    /// Looks who lacks something: who was away for a moment without anybody's noting it does not.
    fn take_stock(&self, absent: &[usize]) -> Result<(), String> {
        let Some(given_up) = self.stack.given_up(&self.world)? else { return Ok(()) };
        let mut b = self.budget.borrow_mut();
        let lacks = |m: usize| given_up[m] || self.world.image(m, |i| i.is_damaged());
        // Two starts that power cut short left each its own word on some member, of equal worth: those who were absent in the second may
        // be taken, and those given up that were there.
        let mut back = absent.iter().filter(|&&m| b.lost().contains(&m) && !lacks(m)).count();
        b.keep(lacks);
        for m in (0..given_up.len()).filter(|&m| given_up[m]) {
            if b.lost().contains(&m) {
                continue;
            }
            if back == 0 || !b.lose(m) {
                return Err(format!("member {m} was given up, and nothing had been wrong with it"));
            }
            back -= 1;
        }
        Ok(())
    }

    /// From start to the last step, or until power fails.
    async fn serve(&mut self, place: &Place, life: &Life, tally: &mut Tally) -> Result<(), String> {
        let started = within(&self.reactor, self.stack.start(place)).await;
        let too_few = self.budget.borrow().is_exceeded();
        match started.ok_or("the start does not end")? {
            Err(_) if self.world.powered() && too_few => return Ok(()),
            Err(why) if self.world.powered() => return Err(format!("it does not start: {why}")),
            Ok(()) if self.world.powered() => {}
            _ => {
                tally.start_crashes += 1;
                return Ok(());
            }
        }
        self.first = false;
        self.ledger.pinned = None;
        let (desc, channel) = open(place)?;
        let all = async {
            if !self.mend(place).await? {
                return Ok(());
            }
            self.look(&channel, true).await?;
            if self.world.powered() && !too_few {
                self.ledger.started(&self.budget.borrow());
            }
            self.look(&channel, false).await?;
            if too_few {
                return Ok(());
            }
            let tasks = Tasks::start(self, place, life);
            let done = tasks.end().await;
            tally.requests += done.requests;
            tally.joined += done.joined;
            tally.rebuilt += done.rebuilt;
            done.wrong?;
            if self.budget.borrow().is_exceeded() { Ok(()) } else { self.look(&channel, false).await }
        };
        let ended = within(&place.reactor, all).await;
        drop(channel);
        drop::<BdevDesc>(desc);
        ended.ok_or("a request does not end")?
    }

    /// Puts right what has been wrong since before the start. False: power failed.
    async fn mend(&self, place: &Place) -> Result<bool, String> {
        if self.budget.borrow().rotten().is_empty() {
            return Ok(true);
        }
        let mended = self.stack.scrub(place).await;
        if !self.world.powered() {
            return Ok(false);
        }
        if !mended? {
            return Err("not everything that was wrong was found and mended".into());
        }
        self.budget.borrow_mut().mended();
        Ok(true)
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

/// The device, on the calling core.
pub(super) fn open(place: &Place) -> Result<(BdevDesc, Channel), String> {
    let desc = place.registry.open(DEVICE, true, Box::new(|_| {})).map_err(|e| format!("it cannot be opened: {e}"))?;
    let channel = desc.channel().map_err(|e| format!("it has no channel: {e}"))?;
    Ok((desc, channel))
}

/// Lets some blocks become wrong, of as many members as can be told. `which` decides about both.
pub(super) fn rot(world: &World, budget: &mut Budget, which: u64, may: impl Fn(usize) -> Range<usize>) {
    let mut random = Random::new(which);
    let members = world.members() as u64;
    for _ in 0..members {
        let m = random.below(members) as usize;
        let blocks = may(m);
        if blocks.is_empty() || budget.is_exceeded() || !budget.rot(m) {
            continue;
        }
        for _ in 0..1 + random.below(8) {
            let at = blocks.start + random.below(blocks.len() as u64) as usize;
            let content = Content::Fill(random.below(256) as u8);
            world.image(m, |i| i.rot(at, content));
        }
    }
}

/// `None`: it does not end in time.
pub(super) async fn within<F: Future>(r: &Reactor, f: F) -> Option<F::Output> {
    let (mut f, mut late) = (pin!(f), pin!(r.sleep(PATIENCE)));
    poll_fn(|cx| match f.as_mut().poll(cx) {
        Poll::Ready(v) => Poll::Ready(Some(v)),
        Poll::Pending => late.as_mut().poll(cx).map(|()| None),
    })
    .await
}
