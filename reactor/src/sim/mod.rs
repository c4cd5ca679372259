//! A reactor in a world of its own: simulated clock, simulated files, seeded chance. The same seed gives the same run.
//!
//! Everything that runs on a [`Reactor`] and does file I/O through [`File`](crate::file::File) or [`Reactor::submit`] runs here
//! unchanged. A crash keeps durable data and any part of the rest, torn at 512 bytes; afterwards a new reactor runs over the
//! same files.
//!
//! There may be several reactors ([`Sim::with_cores`]). They take turns in a seeded order on the same thread, some many turns in a row, and
//! send each other messages as real ones do. What is kept by thread has to be kept by core: see [`Sim::on_switch`].
//!
//! ```
//! use longshore_reactor::sim::Sim;
//! use std::time::Duration;
//!
//! let mut sim = Sim::new(1);
//! let slept = sim.block_on(|r| async move {
//!     let start = r.now();
//!     r.sleep(Duration::from_secs(3600)).await;
//!     r.now() - start
//! });
//! assert!(slept >= 3_600_000_000_000); // an hour, at once
//! ```

pub(crate) mod disk;
pub(crate) mod random;

mod cores;

use crate::engine::Engine;
use crate::engine::sim::{SimEngine, World};
use crate::options::{DmaOptions, Options, PollMode, RingOptions};
use crate::reactor::{Core, Reactor};
use crate::shared::{CoreHandle, Shared};
pub use random::Random;
use std::cell::RefCell;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Chances of faults, in one per thousand operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Reads that fail with `EIO`.
    pub read_eio: u32,
    /// Writes that fail with `EIO`, having happened in part.
    pub write_eio: u32,
    /// `fsync` and `fdatasync` that fail; what they covered may never become durable.
    pub sync_eio: u32,
    /// Writes that fail with `ENOSPC`.
    pub enospc: u32,
    /// Reads and writes of more than a sector that do less than asked.
    pub short: u32,
    /// Writes to the page cache after which the write-back of one that is cached fails.
    pub write_back: u32,
}

/// Sizes of the simulation.
#[derive(Clone, Debug)]
pub struct Settings {
    /// An operation takes between these.
    pub latency: (Duration, Duration),
    /// Ring sizes; small ones make it overflow.
    pub ring: RingOptions,
    /// DMA memory.
    pub dma: DmaOptions,
    /// Files can be opened for direct I/O; otherwise that fails with `EINVAL`.
    pub direct: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            latency: (Duration::from_micros(5), Duration::from_micros(200)),
            ring: RingOptions::default(),
            dma: DmaOptions { max_bytes: 64 << 20, huge: false, register: false },
            direct: true,
        }
    }
}

/// A simulated world with its reactors, on the calling thread. One at a time per thread.
pub struct Sim {
    world: Rc<RefCell<World>>,
    cores: usize,
    /// By index. Empty while power is off.
    reactors: Vec<Reactor>,
    /// Whose turn it is.
    at: usize,
    switch: Option<Switch>,
}

/// Time passes in which the processor of `r` does nothing, as if the process was stopped or the machine paused: timers are late, and what ended
/// meanwhile is found afterwards.
///
/// # Panics
/// If `r` is not simulated.
pub fn pause(r: &Reactor, time: Duration) {
    let mut world = r.sim_engine().expect("a simulated reactor").world();
    let to = world.now() + time.as_nanos() as u64;
    world.advance(to);
}

/// Told whose turn ends, and whose begins.
type Switch = Box<dyn FnMut(usize, usize)>;

impl Sim {
    /// The world of `seed`.
    pub fn new(seed: u64) -> Sim {
        Sim::with(seed, Settings::default())
    }

    /// The world of `seed` with other sizes.
    ///
    /// # Panics
    /// If the thread has a reactor already.
    pub fn with(seed: u64, settings: Settings) -> Sim {
        Sim::with_cores(seed, settings, 1)
    }

    /// The world of `seed` with so many reactors, at least one.
    ///
    /// # Panics
    /// If the thread has a reactor already.
    pub fn with_cores(seed: u64, settings: Settings, cores: usize) -> Sim {
        assert!(Reactor::try_current().is_none(), "this thread has a reactor already");
        let world = Rc::new(RefCell::new(World::new(seed, settings)));
        world.borrow_mut().shared = cores > 1;
        let mut sim = Sim { world, cores: cores.max(1), reactors: Vec::new(), at: 0, switch: None };
        sim.boot();
        sim
    }

    fn boot(&mut self) {
        let settings = self.world.borrow().settings.clone();
        let (sq, cq) = (settings.ring.sq_entries, settings.ring.cq_entries);
        let o = Options {
            poll: PollMode::Adaptive { spin: Duration::ZERO, linger: Duration::ZERO },
            ring: settings.ring,
            dma: settings.dma,
            ..Options::default()
        };
        let shared = |i| Arc::new(Shared::new(i, i as u32, 64, true).expect("a simulated reactor needs no descriptor"));
        let peers: Vec<CoreHandle> = (0..self.cores).map(|i| CoreHandle(shared(i))).collect();
        for peer in &peers {
            let engine = Engine::Sim(Box::new(SimEngine::new(self.world.clone(), sq, cq)));
            let r = Core::build(&o, peer.0.clone(), peers.clone(), engine).expect("address space for DMA memory");
            self.reactors.push(r);
        }
        self.reactors[self.at].enter_thread();
    }

    /// The first reactor; after a crash, the new one.
    pub fn reactor(&self) -> &Reactor {
        self.peer(0)
    }

    /// The reactor of this index.
    pub fn peer(&self, index: usize) -> &Reactor {
        self.reactors.get(index).expect("a simulation has a reactor")
    }

    /// Runs the future that `f` makes to its end.
    ///
    /// # Panics
    /// If it waits for something that will never come, or at the moment set by [`crash_at`](Self::crash_at).
    pub fn block_on<F: Future + 'static>(&mut self, f: impl FnOnce(Reactor) -> F) -> F::Output {
        self.run(f).expect("power failed; use `run` where it may")
    }

    /// Runs the future that `f` makes on the first reactor, to its end or until power fails: then `None`, and [`crash`](Self::crash) comes next.
    ///
    /// # Panics
    /// If it waits for something that will never come.
    pub fn run<F: Future + 'static>(&mut self, f: impl FnOnce(Reactor) -> F) -> Option<F::Output> {
        self.switch_to(0);
        let r = self.reactor().clone();
        let slot = Rc::new(RefCell::new(None));
        let (out, future) = (slot.clone(), f(r.clone()));
        drop(r.spawn(async move {
            let v = future.await;
            *out.borrow_mut() = Some(v);
        }));
        loop {
            self.turn();
            if self.world.borrow().crashed {
                return None;
            }
            if let Some(v) = slot.borrow_mut().take() {
                self.switch_to(0);
                return Some(v);
            }
            let stuck = std::mem::take(&mut self.world.borrow_mut().stuck);
            assert!(!stuck, "the simulation is stuck: nothing is in flight and no timer is set");
        }
    }

    /// Lets power fail when so many more operations have been submitted or completed.
    pub fn crash_at(&mut self, steps: u64) {
        let mut w = self.world.borrow_mut();
        w.crash_at = Some(w.steps + steps);
    }

    /// Power fails now (or has, in [`run`](Self::run)): what was not durable survives in part. The reactor is torn down, every
    /// operation in flight answered with `EIO`, and a new one started. Open files have to be opened again.
    pub fn crash(&mut self) {
        let lost = |r: &Reactor| r.sim_engine().expect("it is simulated").crash();
        self.reactors.iter().for_each(lost);
        self.tear_down();
        {
            let mut w = self.world.borrow_mut();
            (w.crashed, w.crash_at, w.stuck) = (false, None, false);
        }
        self.boot();
    }

    /// Sets the chances of faults from now on.
    pub fn set_faults(&mut self, f: Faults) {
        self.world.borrow_mut().faults = f;
    }

    /// Operations submitted and completed so far.
    pub fn steps(&self) -> u64 {
        self.world.borrow().steps
    }

    /// Simulated time since the world began.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.world.borrow().now())
    }

    /// Makes a file of `len` zero bytes.
    pub fn create(&mut self, path: impl AsRef<Path>, len: u64) {
        let mut w = self.world.borrow_mut();
        if let Some(fd) = w.open(path.as_ref(), true, false) {
            if let Some(d) = w.disk(fd) {
                d.set_len(len as usize);
            }
            w.close(fd);
        }
    }

    /// What a reader of the file would see now.
    pub fn contents(&mut self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let mut w = self.world.borrow_mut();
        let d = w.named(path.as_ref())?;
        let mut all = vec![0; d.len()];
        d.read(0, &mut all);
        Some(all)
    }

    /// Chance of the same seed, for what the test itself decides.
    pub fn random(&mut self) -> Random {
        Random::new(self.world.borrow_mut().random.bits())
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // After a failed assertion, tasks may hold anything: leave them be.
            Reactor::leave_thread();
            self.reactors.drain(..).for_each(std::mem::forget);
        } else {
            if self.world.borrow().crashed {
                self.reactors.iter().filter_map(|r| r.sim_engine()).for_each(|e| e.crash());
            }
            self.tear_down();
        }
        crate::clock::set_simulated(None);
    }
}
